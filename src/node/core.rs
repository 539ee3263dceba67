//! A data core: one thread, its shard, its listener, its mailbox.
//!
//! Three kinds of tasks run on it: one per connection ([`super::connection`]),
//! the mailbox loop, which serves other cores and takes their answers home, and
//! the tick, which keeps time (dates, timeouts, expiry, counters). All of them
//! run on this thread, so the shard needs no lock; no borrow of it is held across
//! an await.
//!
//! **Backpressure between cores.** For each other core a core holds
//! [`Credits`]: as many as batches it may have outstanding there. A connection
//! takes one per batch before it sends and waits when there is none; the credit
//! returns with the answer. An inbox is as large as all credits of all cores
//! together with the answers to its own, so sending never finds it full, no core
//! ever waits to send, and two cores cannot wait for each other in a circle.
//! A connection that waits for a credit or an answer is not reading.
//!
//! **Stop.** On [`Message::Stop`] the listener closes and connections end after
//! their current answers; the core reports [`Event::Drained`] when the last is
//! gone and goes on serving the other cores until [`Message::Exit`].

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::connection::{self, Limits, Service};
use super::deadlines::{Deadlines, Timeouts};
use crate::api::browse::KeyScan;
use crate::api::{Api, ApiError, Job, Moment, Turn, Writer};
use crate::clock::UnixMs;
use crate::hash::CoreId;
use crate::http::{Connection, Head, HttpDate};
use crate::operations::{Batch, Exchange, LocalStore};
use crate::runtime::{self, Listener, Receiver, Sender};
use crate::telemetry::counters::CoreCounters;

/// How often a core looks at the clock for its housekeeping.
const TICK: Duration = Duration::from_millis(100);

/// How many steps of expiry are done before the loop turns.
const REAP_STEPS: usize = 512;

/// How many listings one core has under way in another at once.
const SCANS_MAX: usize = 2;

/// How long to wait after the kernel refused to accept for want of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What reaches a core's mailbox.
#[derive(Debug)]
pub enum Message {
    /// Carry these operations out and send them home.
    Run(Box<Batch>, Home),
    /// Operations of ours, carried out.
    Done(Box<Batch>, Home),
    /// Look through the keys and send the result home.
    Scan(Box<KeyScan>, Home),
    /// A scan of ours, finished.
    Scanned(Box<KeyScan>, Home),
    /// Accept nothing more, end connections as they fall idle.
    Stop,
    /// End now.
    Exit,
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Home {
    core: CoreId,
    reply: usize,
    served_by: CoreId,
}

/// What a core tells the control thread.
#[derive(Debug)]
pub enum Event {
    /// It serves, on this driver.
    Ready(CoreId, runtime::DriverReport),
    /// It has no connection left after a stop.
    Drained(CoreId),
    /// It has ended; with what went wrong, if anything did.
    Ended(CoreId, Option<String>),
    /// The process got a signal.
    Signal(i32),
}

/// How many messages a mailbox must hold on a node of `cores` cores that may
/// have `depth` batches outstanding between any two (see the module's comment).
pub fn mailbox_capacity(cores: usize, depth: usize) -> usize {
    const CONTROL: usize = 8;
    2 * (depth + SCANS_MAX) * (cores - 1) + CONTROL
}

/// What a core is made of.
pub struct Parts {
    /// The API it serves.
    pub api: Api,
    /// Its items.
    pub store: LocalStore,
    /// The mailboxes of all cores, its own included.
    pub mailboxes: Vec<Sender<Message>>,
    /// Batches it may have outstanding at each other core.
    pub mailbox_depth: usize,
    /// Limits of its connections.
    pub limits: Limits,
    /// Timeouts of its connections.
    pub timeouts: Timeouts,
    /// Connections open on the whole node.
    pub connections: Arc<AtomicUsize>,
    /// How many there may be.
    pub connections_max: usize,
    /// Where it counts.
    pub counters: Arc<CoreCounters>,
    /// Where it reports.
    pub events: std::sync::mpsc::Sender<Event>,
}

/// A running core.
pub struct Core {
    api: Api,
    store: RefCell<LocalStore>,
    peers: Vec<Peer>,
    replies: RefCell<Replies>,
    deadlines: Rc<Deadlines>,
    limits: Rc<Limits>,
    date: Cell<HttpDate>,
    connections: Arc<AtomicUsize>,
    connections_max: usize,
    counters: Arc<CoreCounters>,
    events: std::sync::mpsc::Sender<Event>,
}

/// Another core, as seen from this one.
struct Peer {
    mailbox: Sender<Message>,
    batches: Credits,
    scans: Credits,
}

/// Permits for messages to one other core.
#[derive(Debug)]
struct Credits {
    available: Cell<usize>,
    waiting: RefCell<VecDeque<Waker>>,
}

impl Credits {
    fn new(available: usize) -> Self {
        Self {
            available: Cell::new(available),
            waiting: RefCell::new(VecDeque::new()),
        }
    }

    async fn acquire(&self) {
        poll_fn(|context| match self.available.get() {
            0 => {
                self.waiting.borrow_mut().push_back(context.waker().clone());
                Poll::Pending
            }
            available => {
                self.available.set(available - 1);
                Poll::Ready(())
            }
        })
        .await;
    }

    fn release(&self) {
        self.available.set(self.available.get() + 1);
        if let Some(waker) = self.waiting.borrow_mut().pop_front() {
            waker.wake();
        }
    }
}

/// The connections that may be waiting for other cores, by a number that travels
/// with their messages.
#[derive(Debug, Default)]
struct Replies {
    slots: Vec<Option<Rc<Reply>>>,
    free: Vec<usize>,
}

/// Where one connection's answers from other cores arrive.
#[derive(Debug, Default)]
pub struct Reply {
    outstanding: Cell<usize>,
    #[allow(clippy::vec_box, reason = "the boxes travel on as they are")]
    batches: RefCell<Vec<Box<Batch>>>,
    scans: RefCell<Vec<KeyScan>>,
    waker: RefCell<Option<Waker>>,
}

impl Reply {
    fn arrived(&self) {
        self.outstanding.set(self.outstanding.get() - 1);
        if self.outstanding.get() == 0
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    async fn all(&self) {
        poll_fn(|context| {
            if self.outstanding.get() == 0 {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A connection's entry among its core's replies.
pub struct Link {
    core: Rc<Core>,
    reply: Rc<Reply>,
    index: usize,
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut replies = self.core.replies.borrow_mut();
        replies.slots[self.index] = None;
        replies.free.push(self.index);
    }
}

fn wall_time() -> UnixMs {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMs(since.as_millis() as u64)
}

fn date_at(now: UnixMs) -> HttpDate {
    HttpDate::at(now.0 / 1000)
}

impl Core {
    /// Puts a core together; nothing runs yet.
    pub fn new(parts: Parts) -> Rc<Self> {
        let peers = parts
            .mailboxes
            .into_iter()
            .map(|mailbox| Peer {
                mailbox,
                batches: Credits::new(parts.mailbox_depth),
                scans: Credits::new(SCANS_MAX),
            })
            .collect();
        Rc::new(Self {
            api: parts.api,
            store: RefCell::new(parts.store),
            peers,
            replies: RefCell::default(),
            deadlines: Deadlines::new(parts.timeouts),
            limits: Rc::new(parts.limits),
            date: Cell::new(date_at(wall_time())),
            connections: parts.connections,
            connections_max: parts.connections_max,
            counters: parts.counters,
            events: parts.events,
        })
    }

    /// Serves until told to exit.
    pub async fn run(self: Rc<Self>, listener: Listener, mut inbox: Receiver<Message>) {
        let closer = listener.closer();
        runtime::spawn(Rc::clone(&self).accept(listener));
        runtime::spawn(Rc::clone(&self).tick());
        let mut messages = Vec::new();
        loop {
            inbox.recv_many(&mut messages).await;
            for message in messages.drain(..) {
                match message {
                    Message::Run(batch, home) => self.run_for(batch, home),
                    Message::Done(batch, home) => {
                        self.peers[home.served_by.index()].batches.release();
                        if let Some(reply) = self.reply(home.reply) {
                            reply.batches.borrow_mut().push(batch);
                            reply.arrived();
                        }
                    }
                    Message::Scan(scan, home) => {
                        runtime::spawn(Rc::clone(&self).scan_for(scan, home));
                    }
                    Message::Scanned(scan, home) => {
                        self.peers[home.served_by.index()].scans.release();
                        if let Some(reply) = self.reply(home.reply) {
                            reply.scans.borrow_mut().push(*scan);
                            reply.arrived();
                        }
                    }
                    Message::Stop => {
                        closer.close();
                        self.deadlines.stop();
                        self.report_if_drained();
                    }
                    Message::Exit => return,
                }
            }
        }
    }

    fn reply(&self, index: usize) -> Option<Rc<Reply>> {
        self.replies.borrow().slots.get(index).cloned().flatten()
    }

    fn run_for(&self, mut batch: Box<Batch>, home: Home) {
        self.counters.operations_for_others.add(batch.len() as u64);
        self.store.borrow_mut().run(&mut batch, wall_time());
        self.send(home.core, Message::Done(batch, home));
    }

    async fn scan_for(self: Rc<Self>, mut scan: Box<KeyScan>, home: Home) {
        self.scan(&mut scan).await;
        self.send(home.core, Message::Scanned(scan, home));
    }

    async fn scan(&self, scan: &mut KeyScan) {
        loop {
            let more = {
                let store = self.store.borrow();
                scan.step(store.shard(), self.api.core, self.api.cores, wall_time())
            };
            if !more {
                return;
            }
            runtime::yield_to_io().await;
        }
    }

    /// Sends what a credit was taken for: there is room (see the module's comment).
    fn send(&self, to: CoreId, message: Message) {
        if self.peers[to.index()].mailbox.try_send(message).is_err() {
            tracing::error!(
                core = to.index(),
                "a mailbox refused a message it has room for"
            );
        }
    }

    async fn accept(self: Rc<Self>, listener: Listener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(_) if self.deadlines.stopping() => return,
                Err(error) => {
                    // A connection that was reset while it waited is its client's
                    // business; want of descriptors or memory passes or persists.
                    if !matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR)) {
                        tracing::warn!(%error, "accept failed");
                        runtime::sleep(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            };
            let others = self.connections.fetch_add(1, Ordering::Relaxed);
            if others >= self.connections_max {
                self.connections.fetch_sub(1, Ordering::Relaxed);
                self.counters.connections_refused.add(1);
                continue;
            }
            self.counters.connections_accepted.add(1);
            runtime::spawn(Rc::clone(&self).serve(stream));
        }
    }

    async fn serve(self: Rc<Self>, stream: runtime::Stream) {
        let watch = self.deadlines.watch(stream.aborter());
        let limits = Rc::clone(&self.limits);
        connection::serve(Rc::new(Rc::clone(&self)), limits, stream, watch).await;
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.report_if_drained();
    }

    fn report_if_drained(&self) {
        if self.deadlines.stopping() && self.deadlines.open() == 0 {
            let _ = self.events.send(Event::Drained(self.api.core));
        }
    }

    async fn tick(self: Rc<Self>) {
        let started = Instant::now();
        let mut expected = started + TICK;
        loop {
            runtime::sleep(TICK).await;
            let now = Instant::now();
            let delay = now.saturating_duration_since(expected).as_micros() as u64;
            let counters = &self.counters;
            counters
                .tick_delay_us_max
                .set(counters.tick_delay_us_max.get().max(delay));

            let wall = wall_time();
            self.date.set(date_at(wall));
            self.deadlines
                .sweep(now.duration_since(started).as_millis() as u64);
            loop {
                let more = self
                    .store
                    .borrow_mut()
                    .shard_mut()
                    .reap(wall_time(), REAP_STEPS);
                if !more {
                    break;
                }
                runtime::yield_to_io().await;
            }
            self.publish();
            expected = Instant::now() + TICK;
        }
    }

    /// Copies what the shard counts to where other threads may read it.
    fn publish(&self) {
        let store = self.store.borrow();
        let shard = store.shard();
        let stats = shard.stats();
        let counters = &self.counters;
        counters.connections_open.set(self.deadlines.open() as u64);
        counters
            .connections_expired
            .set(self.deadlines.expired_count());
        counters.items.set(shard.len() as u64);
        counters.bytes.set(shard.bytes() as u64);
        counters.tombstones.set(shard.tombstones() as u64);
        counters.gets.set(stats.gets);
        counters.hits.set(stats.hits);
        counters.sets.set(stats.sets);
        counters.removes.set(stats.removes);
        counters.evicted.set(stats.evicted_items);
        counters.expired.set(stats.expired);
        counters.too_large.set(stats.too_large);
    }

    /// Has every batch of the exchange carried out, here or where it belongs.
    async fn complete(&self, link: &Link, exchange: &mut Exchange) {
        for slot in 0..exchange.batch_count() {
            let Some(mut batch) = exchange.take(slot) else {
                continue;
            };
            let target = batch.target();
            if target == self.api.core {
                self.store.borrow_mut().run(&mut batch, wall_time());
                exchange.put_back(batch);
                continue;
            }
            self.peers[target.index()].batches.acquire().await;
            self.counters.batches_sent.add(1);
            link.reply.outstanding.set(link.reply.outstanding.get() + 1);
            self.send(target, Message::Run(batch, self.home(link, target)));
        }
        link.reply.all().await;
        for batch in link.reply.batches.borrow_mut().drain(..) {
            exchange.put_back(batch);
        }
    }

    fn home(&self, link: &Link, served_by: CoreId) -> Home {
        Home {
            core: self.api.core,
            reply: link.index,
            served_by,
        }
    }

    async fn browse(&self, link: &Link, request: &crate::api::browse::Request) -> Vec<KeyScan> {
        for core in self.api.cores.cores().filter(|&core| core != self.api.core) {
            self.peers[core.index()].scans.acquire().await;
            link.reply.outstanding.set(link.reply.outstanding.get() + 1);
            self.send(
                core,
                Message::Scan(Box::new(request.scan()), self.home(link, core)),
            );
        }
        let mut own = request.scan();
        self.scan(&mut own).await;
        link.reply.all().await;
        let mut scans = link.reply.scans.take();
        scans.push(own);
        scans
    }

    fn writer<'a>(
        &'a self,
        turn: &'a mut Turn,
        date: &'a HttpDate,
        connection: Connection,
    ) -> Writer<'a> {
        let answers = &mut turn.answers;
        Writer {
            answers,
            facts: &self.api.facts,
            date,
            connection,
            head_only: false,
        }
    }
}

impl Service for Rc<Core> {
    type Job = Job;
    type Link = Link;

    fn link(&self) -> Link {
        let reply = Rc::new(Reply::default());
        let mut replies = self.replies.borrow_mut();
        let index = replies.free.pop().unwrap_or_else(|| {
            replies.slots.push(None);
            replies.slots.len() - 1
        });
        replies.slots[index] = Some(Rc::clone(&reply));
        Link {
            core: Rc::clone(self),
            reply,
            index,
        }
    }

    fn turn(&self) -> Turn {
        Turn::new(Exchange::new(self.api.cores))
    }

    #[inline]
    fn handle(&self, head: &Head<'_>, body: Cow<'_, [u8]>, turn: &mut Turn) -> Option<Job> {
        self.counters.requests.add(1);
        let date = self.date.get();
        let moment = Moment {
            now: *turn.now.get_or_insert_with(wall_time),
            date: &date,
            stopping: self.deadlines.stopping(),
        };
        self.api
            .handle(head, body, &mut self.store.borrow_mut(), turn, moment)
    }

    fn refuse(&self, error: &ApiError, turn: &mut Turn) {
        self.counters.requests_refused.add(1);
        turn.closes = true;
        self.writer(turn, &self.date.get(), Connection::Close)
            .error(error);
    }

    async fn settle(&self, link: &Link, turn: &mut Turn) {
        if turn.has_gaps() {
            self.complete(link, &mut turn.exchange).await;
            turn.close_gaps(&self.api.facts, &self.date.get(), wall_time());
        }
    }

    async fn run(&self, link: &Link, job: Job, turn: &mut Turn) {
        let date = self.date.get();
        match job {
            Job::Browse(request) => {
                let scans = self.browse(link, &request).await;
                request.answer(scans, &mut self.writer(turn, &date, request.connection));
            }
            Job::Batch(mut request) => {
                let now = wall_time();
                let entries = match request.ask(&self.api, &mut turn.exchange, now) {
                    Ok(entries) => entries,
                    Err(error) => {
                        self.writer(turn, &date, request.connection).error(&error);
                        return;
                    }
                };
                self.complete(link, &mut turn.exchange).await;
                let Turn {
                    answers, exchange, ..
                } = turn;
                let mut writer = Writer {
                    answers,
                    facts: &self.api.facts,
                    date: &date,
                    connection: request.connection,
                    head_only: false,
                };
                request.answer(&entries, exchange, &mut writer, now);
                turn.exchange.reset();
            }
        }
    }
}
