//! A data core: one thread, its shard, its listener, its mailbox.
//!
//! Three kinds of tasks run on it: one per connection ([`super::connection`]),
//! the mailbox loop, which serves other cores and takes their answers home, and
//! the tick, which keeps time (dates, timeouts, expiry, counters). All of them
//! run on this thread, so the shard needs no lock; no borrow of it is held across
//! an await.
//!
//! **Backpressure between cores.** For each other core a core holds [`Credits`]: as
//! many as messages of one kind it may have outstanding there. A connection takes one
//! before it sends and waits when there is none; the credit returns with the answer. An
//! inbox is as large as all credits of all cores together with the answers to its own,
//! so sending never finds it full and no core ever waits to send. A connection that
//! waits for a credit or an answer is not reading.
//!
//! **Who waits for whom.** A batch of a client may wait for other nodes, at most for the
//! deadline of requests to peers, and so may whoever waits for its credit. A frame of a
//! peer is carried out at once by the core that gets it, without asking anyone; it has
//! credits of its own, because with those of batches its sender could be waiting for a
//! node that waits for the sender. Scans for listings are the third kind: each core looks
//! through its own keys. So nodes, like cores, cannot wait for each other in a circle.
//!
//! **Rest.** A core without work does not tick ([`super::rest`]): whatever comes in but peers'
//! membership messages, which concern nobody here, ends that ([`Core::stir`]).
//!
//! **Stop.** On [`Message::Stop`] the listener closes and connections end after
//! their current answers; the core reports [`Event::Drained`] when the last is
//! gone and goes on serving the other cores until [`Message::Exit`].

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::connection::{self, Common, Entry, Form, Limits, Service};
use super::control::ControlMessage;
use super::door::{Door, Visitor};
use super::errand::{ERRANDS_MAX, Errand};
use super::gathering::Gathering;
use super::measuring::{Meter, SlowRequests};
use super::peering::{Links, PeerFrame, PeerService, keys_of};
use super::readiness::{CoreReport, Readiness};
use super::rest::{REST_MAX, Rest};
use super::security::{Entrance, Security};
use super::spread::{MOVING_MAX, Spread};
use super::verifying::Verifiers;
use crate::api::browse::KeyScan;
use crate::api::router;
use crate::api::{Api, ApiError, Job, Moment, Turn, Writer};
use crate::buffers::{Allotment, Buffers, Pool};
use crate::clock::UnixMs;
use crate::cluster::coordinator::Lane;
use crate::cluster::membership::State;
use crate::cluster::{Coordinator, NodeIx, View};
use crate::hash::{CoreCount, CoreId, KeyHash, RoughCores};
use crate::http::{Head, HttpDate};
use crate::operations::{Batch, Exchange, Home};
use crate::peer::client::{Access, Dialing};
use crate::runtime::{
    self, Alarm, CHOSEN_PORTS, Deadlines, Listener, Receiver, Sender, Timeouts, Watch,
};
use crate::store::{FORESEEN_MAX, SHARED_VALUE_BYTES};
use crate::telemetry::cluster::{ClusterCounts, SharedCounts};
use crate::telemetry::counters::CoreCounters;
use crate::telemetry::latency::{Operation, Via};
use crate::telemetry::trace::{Tracer, Tracing};
use crate::telemetry::work::Work;
use crate::tls::{self, Handshakes};

/// How often a core looks at the clock for its housekeeping.
const TICK: Duration = Duration::from_millis(100);

/// How much of the time between two ticks counts against clients: while a core was busy
/// for longer it was not they who were slow.
const BUSY_TICK_MAX: Duration = Duration::from_millis(500);

/// How long a core goes on removing what has expired before it looks at the clock again.
const REAP_MAX: Duration = Duration::from_millis(50);

/// How often a core looks after its peers: retries, hints, overdue answers.
const CLUSTER_TICK: Duration = Duration::from_millis(20);

/// Hints, repair and listings may take this many times as long as what clients
/// wait for.
const SLOW_FACTOR: u32 = 5;

/// How long a TLS handshake with a peer may take, where its requests may not take longer:
/// on the other side it waits for its turn among others. Were it cut short under load, all
/// its cost would be paid again, and nodes would lose each other by that.
const PEER_HANDSHAKE: Duration = Duration::from_secs(2);

/// After how long what was counted of hot keys is worth half.
const HOT_KEYS_AGE: Duration = Duration::from_secs(30);

/// How many listings one core has under way in another at once, and itself: of clients,
/// and as many of peers.
pub(super) const SCANS_MAX: usize = 2;

/// How many batches wait for their turn when there is no room for all, and how often and
/// how soon each asks again then.
const CROWDED_QUEUE_MAX: usize = 32;
const CROWDED_TRIES: usize = 5;
const CROWDED_PAUSE: Duration = Duration::from_millis(10);

/// How many frames of peers one core has outstanding at another: they come back after
/// one turn of that core.
const FRAMES_MAX: usize = 64;

/// How many connections above the limit a core serves all the same, for a moment: only to
/// tell whether it lives. Kubelets ask that where clients connect, and would end a node, and
/// then every other, for having too many clients.
pub(super) const LATE_MAX: usize = 64;

/// How long such a connection may take for anything.
const LATE_PATIENCE: Duration = Duration::from_secs(1);

/// The answer to whoever connects when there are more than those.
const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Content-Type: application/json\r\nContent-Length: 61\r\nRetry-After: 1\r\n\
    Connection: close\r\n\r\n\
    {\"error\":\"too many connections; try again\",\"code\":\"INTERNAL\"}";

/// How long to wait after the kernel refused to accept for want of resources.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    /// Carry out what another node asks of this core.
    Serve(Box<PeerFrame>, Home),
    /// What another node asked of another core, carried out.
    Served(Box<PeerFrame>, Home),
    /// A connection that the core that accepted it passes on.
    Adopt(std::net::TcpStream),
    /// The cluster has changed. The second counts messages of this kind that wait here.
    View(Arc<View>, Arc<()>),
    /// Something else decides who is let in. The second counts as for views.
    Security(Arc<Security>, Arc<()>),
    /// Do or tell what the management listener was asked for.
    Errand(Errand),
    /// Accept nothing more, end connections as they fall idle.
    Stop,
    /// End now.
    Exit,
}

/// What the main thread is told.
#[derive(Debug)]
pub enum Event {
    /// A core serves, on this driver.
    Ready(CoreId, runtime::DriverReport),
    /// A core has no connection left after a stop.
    Drained(CoreId),
    /// The cluster can do without this node: what only it had is elsewhere.
    HandedOver,
    /// A thread has ended; with what went wrong, if anything did.
    Ended(Thread, Option<String>),
    /// The process got a signal.
    Signal(i32),
}

/// A thread that a node cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// A data core.
    Core(CoreId),
    /// The one that keeps membership and answers the management listener.
    Control,
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Core(core) => write!(f, "core {}", core.index()),
            Self::Control => f.write_str("the control thread"),
        }
    }
}

/// How many messages a mailbox must hold on a node of `cores` cores that may
/// have `depth` batches outstanding between any two (see the module's comment).
pub fn mailbox_capacity(cores: usize, depth: usize) -> usize {
    const CONTROL: usize = 16 + ERRANDS_MAX;
    2 * (depth + SCANS_MAX + FRAMES_MAX) * (cores - 1) + MOVING_MAX + CONTROL
}

/// What a core is made of.
pub struct Parts {
    /// The API it serves.
    pub api: Api,
    /// Its part of the cluster, with its items.
    pub cluster: Coordinator,
    /// The cluster as it is at the start.
    pub view: Arc<View>,
    /// Where the control thread is told.
    pub control: Sender<ControlMessage>,
    /// How peers are reached.
    pub dial: Dial,
    /// Where it counts what concerns peers.
    pub cluster_counts: SharedCounts,
    /// Limits of what peers send.
    pub peer_limits: Limits,
    /// Whether all cores have what they need.
    pub readiness: Arc<Readiness>,
    /// What decides who is let in.
    pub security: Arc<Security>,
    /// Where credentials are verified.
    pub verifiers: Verifiers,
    /// How many TLS handshakes this core has under way at once with clients, and as many
    /// with peers.
    pub handshakes_max: usize,
    /// Set once this node is going to leave.
    pub draining: Arc<AtomicBool>,
    /// The mailboxes of all cores, its own included.
    pub mailboxes: Vec<Sender<Message>>,
    /// Batches it may have outstanding at each other core.
    pub mailbox_depth: usize,
    /// Limits of its connections.
    pub limits: Limits,
    /// What the node's client connections may hold together.
    pub buffers: Arc<Pool>,
    /// What this core's connections of peers may hold together.
    pub peer_buffers_max: usize,
    /// Timeouts of its connections.
    pub timeouts: Timeouts,
    /// Connections open on the whole node.
    pub connections: Arc<AtomicUsize>,
    /// How many there may be.
    pub connections_max: usize,
    /// Where they are.
    pub spread: Arc<Spread>,
    /// Where it counts.
    pub counters: Arc<CoreCounters>,
    /// Where its spans go.
    pub tracing: Tracing,
    /// Which requests it calls slow.
    pub slow_requests: SlowRequests,
    /// Where it reports.
    pub events: std::sync::mpsc::Sender<Event>,
}

/// How a core reaches other nodes.
#[derive(Clone, Debug)]
pub struct Dial {
    /// How long a request to a peer may take, and a connect.
    pub timeout: Duration,
    /// What peers are shown at first.
    pub access: Access,
}

impl Dial {
    /// Connections of this core whose deadlines are `factor` times the usual one.
    pub fn dialing(&self, factor: u32) -> Dialing {
        let timeout = self.timeout * factor;
        Dialing {
            deadlines: Deadlines::new(Timeouts {
                read: timeout.max(PEER_HANDSHAKE),
                write: timeout,
                idle: timeout,
                exchange: timeout,
            }),
            timeout: self.timeout,
            access: Rc::new(RefCell::new(self.access.clone())),
        }
    }
}

/// A view that one core's requests share: counting its users touches no line of memory
/// that other cores write.
pub(super) type LocalView = Rc<Arc<View>>;

/// A running core.
pub struct Core {
    pub(super) api: Api,
    pub(super) cluster: RefCell<Coordinator>,
    view: RefCell<LocalView>,
    pub(super) links: Links,
    pub(super) dialing: Dialing,
    /// The same for what may take longer.
    pub(super) dialing_slowly: Dialing,
    pub(super) control: Sender<ControlMessage>,
    siblings: Vec<Sibling>,
    replies: RefCell<Replies>,
    rest: Rest,
    /// Has the tick of the cluster go on after a rest.
    peers_alarm: Alarm,
    started: Instant,
    deadlines: Rc<Deadlines>,
    /// Of connections above the limit.
    late: Rc<Deadlines>,
    pub(super) peer_connections: Rc<Deadlines>,
    common: Rc<Common>,
    pub(super) peer_common: Rc<Common>,
    /// What requests may have copied by other cores and nodes.
    allotment: Arc<Allotment>,
    /// Batches whose values found no room at first, and which get them in turn.
    crowded: Credits,
    /// Listings of clients, and of peers, that this core has under way. Apart, because the
    /// former wait for those of other nodes.
    listings: Credits,
    pub(super) peer_listings: Credits,
    cluster_counts: SharedCounts,
    readiness: Arc<Readiness>,
    pub(super) door: Door,
    handshakes: Rc<Handshakes>,
    /// Apart, so that clients cannot keep peers out.
    pub(super) peer_handshakes: Rc<Handshakes>,
    pub(super) draining: Arc<AtomicBool>,
    pub(super) date: Cell<HttpDate>,
    gathering: Gathering,
    finished: Cell<Vec<(Box<Batch>, Home)>>,
    dirty: Cell<Vec<(NodeIx, Lane)>>,
    connections: Arc<AtomicUsize>,
    connections_max: usize,
    spread: Arc<Spread>,
    pub(super) counters: Arc<CoreCounters>,
    pub(super) meter: Meter,
    pub(super) tracer: Tracer,
    events: std::sync::mpsc::Sender<Event>,
}

/// Another core of this node, as seen from this one.
struct Sibling {
    mailbox: Sender<Message>,
    batches: Credits,
    scans: Credits,
    frames: Credits,
}

/// Permits for messages to one other core.
#[derive(Debug)]
pub(super) struct Credits {
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

    pub(super) async fn acquire(&self) {
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

    /// How many wait for a permit.
    fn queue_len(&self) -> usize {
        self.waiting.borrow().len()
    }

    pub(super) fn release(&self) {
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
    pub(super) frames: RefCell<Vec<PeerFrame>>,
    waker: RefCell<Option<Waker>>,
}

impl Reply {
    pub(super) fn expect_one(&self) {
        self.outstanding.set(self.outstanding.get() + 1);
    }

    pub(super) fn arrived(&self) {
        self.outstanding.set(self.outstanding.get() - 1);
        if self.outstanding.get() == 0
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    pub(super) async fn all(&self) {
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
    pub(super) reply: Rc<Reply>,
    index: usize,
    /// Who speaks here.
    pub(super) visitor: Visitor,
    /// Whether there were as many connections as there may be when it came.
    late: bool,
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut replies = self.core.replies.borrow_mut();
        replies.slots[self.index] = None;
        replies.free.push(self.index);
    }
}

pub(crate) fn wall_time() -> UnixMs {
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
        let siblings = parts
            .mailboxes
            .into_iter()
            .map(|mailbox| Sibling {
                mailbox,
                batches: Credits::new(parts.mailbox_depth),
                scans: Credits::new(SCANS_MAX),
                frames: Credits::new(FRAMES_MAX),
            })
            .collect();
        let counters = Arc::clone(&parts.counters);
        Rc::new(Self {
            meter: Meter::new(parts.api.core, counters, parts.slow_requests),
            api: parts.api,
            cluster: RefCell::new(parts.cluster),
            view: RefCell::new(Rc::new(parts.view)),
            links: Links::default(),
            dialing: parts.dial.dialing(1),
            dialing_slowly: parts.dial.dialing(SLOW_FACTOR),
            control: parts.control,
            cluster_counts: parts.cluster_counts,
            readiness: parts.readiness,
            door: Door::new(parts.security, parts.verifiers, wall_time()),
            handshakes: Handshakes::new(parts.handshakes_max),
            peer_handshakes: Handshakes::new(parts.handshakes_max),
            draining: parts.draining,
            peer_common: Common::new(
                parts.peer_limits,
                Buffers::new(Pool::new(parts.peer_buffers_max)),
            ),
            common: Common::new(parts.limits, Buffers::new(Arc::clone(&parts.buffers))),
            allotment: Allotment::of(parts.buffers),
            crowded: Credits::new(1),
            listings: Credits::new(SCANS_MAX),
            peer_listings: Credits::new(SCANS_MAX),
            siblings,
            replies: RefCell::default(),
            rest: Rest::default(),
            peers_alarm: Alarm::default(),
            started: Instant::now(),
            deadlines: Deadlines::new(parts.timeouts),
            late: Deadlines::new(Timeouts {
                read: LATE_PATIENCE,
                write: LATE_PATIENCE,
                idle: LATE_PATIENCE,
                ..parts.timeouts
            }),
            peer_connections: Deadlines::new(parts.timeouts),
            date: Cell::new(date_at(wall_time())),
            gathering: Gathering::default(),
            finished: Cell::default(),
            dirty: Cell::default(),
            connections: parts.connections,
            connections_max: parts.connections_max,
            spread: parts.spread,
            counters: parts.counters,
            tracer: parts.tracing.tracer(),
            events: parts.events,
        })
    }

    /// Serves until told to exit.
    pub async fn run(
        self: Rc<Self>,
        listener: Listener,
        peer_listener: Listener,
        mut inbox: Receiver<Message>,
    ) {
        let closer = listener.closer();
        runtime::spawn(Rc::clone(&self).accept(listener));
        runtime::spawn(PeerService::accept(Rc::clone(&self), peer_listener));
        runtime::spawn(Rc::clone(&self).gather_requests());
        runtime::spawn(Rc::clone(&self).tick());
        runtime::spawn(Rc::clone(&self).cluster_tick());
        let mut messages = Vec::new();
        loop {
            inbox.recv_many(&mut messages).await;
            self.stir();
            let piece = self.meter.begin_lightly(Work::Mailbox);
            for message in messages.drain(..) {
                match message {
                    Message::Run(batch, home) => {
                        self.run_for(batch, home, self.meter.began_at(&piece));
                    }
                    Message::Done(batch, home) => {
                        self.siblings[home.served_by.index()].batches.release();
                        self.deliver(batch, home);
                    }
                    Message::Scan(scan, home) => {
                        runtime::spawn(Rc::clone(&self).scan_for(scan, home));
                    }
                    Message::Scanned(scan, home) => {
                        self.siblings[home.served_by.index()].scans.release();
                        if let Some(reply) = self.reply(home.reply) {
                            reply.scans.borrow_mut().push(*scan);
                            reply.arrived();
                        }
                    }
                    Message::Serve(mut frame, home) => {
                        self.serve_frame(&mut frame);
                        self.send(home.core, Message::Served(frame, home));
                    }
                    Message::Served(frame, home) => {
                        self.siblings[home.served_by.index()].frames.release();
                        if let Some(reply) = self.reply(home.reply) {
                            reply.frames.borrow_mut().push(*frame);
                            reply.arrived();
                        }
                    }
                    Message::Adopt(stream) => {
                        self.spread.arrived(self.api.core);
                        match runtime::Stream::from_std(stream) {
                            // It comes as late as one that the listener had not accepted.
                            Ok(stream) if !self.deadlines.stopping() => self.take_in(stream),
                            _ => self.end_counted(self.api.core),
                        }
                    }
                    Message::View(view, _) => self.set_view(view),
                    Message::Security(security, _) => self.set_security(security),
                    Message::Errand(errand) => self.run_errand(errand),
                    Message::Stop => {
                        closer.close();
                        self.deadlines.stop();
                        self.late.stop();
                        self.report_if_drained();
                    }
                    Message::Exit => return,
                }
            }
            self.after_cluster();
            self.meter.end(piece);
        }
    }

    async fn gather_requests(self: Rc<Self>) {
        let gathered = self.gathering.gather(|hashes| {
            let cluster = self.cluster.borrow();
            let shard = cluster.local().shard();
            hashes
                .chunks(FORESEEN_MAX)
                .for_each(|hashes| shard.foresee(hashes));
        });
        match gathered.await {}
    }

    /// The cluster as this core knows it.
    pub(super) fn view(&self) -> LocalView {
        Rc::clone(&self.view.borrow())
    }

    fn set_view(self: &Rc<Self>, view: Arc<View>) {
        let piece = self.meter.begin(Work::View);
        *self.view.borrow_mut() = Rc::new(Arc::clone(&view));
        self.cluster
            .borrow_mut()
            .set_view(Arc::clone(&view), wall_time());
        self.links.follow(self, &view);
        self.publish();
        self.meter.end(piece);
    }

    fn set_security(&self, security: Arc<Security>) {
        self.dialing.access.replace(security.peer_access.clone());
        self.dialing_slowly
            .access
            .replace(security.peer_access.clone());
        self.door.set_security(security);
    }

    /// Carries on what the coordinator has left to do: answers that are complete go
    /// home, connections with something to send are woken.
    pub(super) fn after_cluster(&self) {
        let mut finished = self.finished.take();
        let mut dirty = self.dirty.take();
        {
            let mut cluster = self.cluster.borrow_mut();
            cluster.take_finished(&mut finished);
            cluster.take_dirty(&mut dirty);
        }
        for (batch, home) in finished.drain(..) {
            if home.core == self.api.core {
                self.deliver(batch, home);
            } else {
                self.send(home.core, Message::Done(batch, home));
            }
        }
        for (node, lane) in dirty.drain(..) {
            self.links.wake(node, lane);
        }
        self.finished.replace(finished);
        self.dirty.replace(dirty);
    }

    fn deliver(&self, batch: Box<Batch>, home: Home) {
        if let Some(reply) = self.reply(home.reply) {
            reply.batches.borrow_mut().push(batch);
            reply.arrived();
        }
    }

    async fn cluster_tick(self: Rc<Self>) {
        let mut expected = Instant::now() + CLUSTER_TICK;
        loop {
            if self.rest.is_resting() {
                self.peers_alarm.rung().await;
                expected = Instant::now();
            } else {
                runtime::sleep(CLUSTER_TICK).await;
            }
            self.look_after_peers(expected);
            self.clear().await;
            expected = Instant::now() + CLUSTER_TICK;
        }
    }

    fn look_after_peers(&self, expected: Instant) {
        let piece = self.meter.begin(Work::Peers);
        self.meter.note_late_piece(&piece, expected);
        // On a node alone as well: what was sent to a peer before it vanished still
        // waits for its deadline.
        let now = wall_time();
        let elapsed_ms = self.started.elapsed().as_millis() as u64;
        self.dialing.deadlines.sweep(elapsed_ms);
        self.dialing_slowly.deadlines.sweep(elapsed_ms);
        self.cluster.borrow_mut().tick(now);
        self.links.wake_due(&self.cluster.borrow());
        self.after_cluster();
        self.record_activities();
        self.report_readiness();
        if self.draining.load(Ordering::Relaxed) {
            // Whoever waits for this core to have nothing left need not wait for long.
            self.publish();
        }
        self.meter.end(piece);
    }

    /// Something happens here. Call it before anything goes by the time that ticks keep.
    #[inline]
    pub(super) fn stir(&self) {
        if self.rest.ends_now() {
            self.catch_up();
        }
    }

    #[cold]
    fn catch_up(&self) {
        let (now, wall) = (Instant::now(), wall_time());
        self.meter.catch_up(now, wall);
        self.date.set(date_at(wall));
        self.door.set_now(wall);
        self.cluster.borrow_mut().catch_up(wall);
    }

    /// How long it is until this core has to do something of its own accord; `None` while
    /// something is under way.
    fn due(&self, wall: UnixMs) -> Option<Duration> {
        let cluster = self.cluster.borrow();
        let shard = cluster.local().shard();
        let is_quiet = !self.is_draining()
            && !self.deadlines.stopping()
            && shard.lent_bytes() == 0
            && shard.leases().0 == 0
            && cluster.copies().is_empty()
            && !shard.has_expired(UnixMs(wall.0 + REST_MAX.as_millis() as u64));
        if !is_quiet {
            return None;
        }
        let quiet = Duration::from_millis(cluster.quiet_ms(wall)?);
        let next = self
            .all_deadlines()
            .into_iter()
            .filter_map(|all| all.next());
        Some(next.fold(quiet, Duration::min))
    }

    fn all_deadlines(&self) -> [&Rc<Deadlines>; 5] {
        [
            &self.deadlines,
            &self.late,
            &self.peer_connections,
            &self.dialing.deadlines,
            &self.dialing_slowly.deadlines,
        ]
    }

    /// Tells how far this core has come.
    fn report_readiness(&self) {
        let cluster = self.cluster.borrow();
        let view = cluster.view();
        let report = CoreReport {
            version: view.version(),
            missing: view.joined().then(|| cluster.sync().missing()),
            stuck: cluster.is_stuck(),
        };
        self.readiness.report(self.api.core.index(), report);
    }

    fn reply(&self, index: usize) -> Option<Rc<Reply>> {
        self.replies.borrow().slots.get(index).cloned().flatten()
    }

    fn run_for(&self, batch: Box<Batch>, home: Home, now: UnixMs) {
        self.counters.operations_for_others.add(batch.len() as u64);
        let done = self.cluster.borrow_mut().run(batch, home, now);
        if let Some(batch) = done {
            self.send(home.core, Message::Done(batch, home));
        }
    }

    async fn scan_for(self: Rc<Self>, mut scan: Box<KeyScan>, home: Home) {
        self.scan(&mut scan).await;
        self.send(home.core, Message::Scanned(scan, home));
    }

    async fn scan(&self, scan: &mut KeyScan) {
        loop {
            let piece = self.meter.begin(Work::Scan);
            let more = {
                let cluster = self.cluster.borrow();
                let shard = cluster.local().shard();
                scan.step(shard, self.api.core, self.api.cores, wall_time())
            };
            self.meter.end(piece);
            if !more {
                return;
            }
            runtime::yield_to_io().await;
        }
    }

    /// Sends what a credit was taken for: there is room (see the module's comment).
    fn send(&self, to: CoreId, message: Message) {
        if self.siblings[to.index()].mailbox.try_send(message).is_err() {
            tracing::error!(
                core = to.index(),
                "a mailbox refused a message it has room for"
            );
        }
    }

    async fn accept(self: Rc<Self>, listener: Listener) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
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
            self.stir();
            let others = self.connections.fetch_add(1, Ordering::Relaxed);
            if others >= self.connections_max {
                self.connections.fetch_sub(1, Ordering::Relaxed);
                self.counters.connections_refused.add(1);
                if self.late.open() < LATE_MAX {
                    let watch = self.late.watch(stream.aborter());
                    runtime::spawn(Rc::clone(&self).serve(stream, watch, true));
                } else {
                    self.turn_away(stream);
                }
                continue;
            }
            self.counters.connections_accepted.add(1);
            let chosen = CHOSEN_PORTS.contains(&peer.port());
            match self.spread.place(self.api.core, chosen) {
                core if core == self.api.core => self.take_in(stream),
                core => self.pass_on(stream, core),
            }
        }
    }

    /// Serves a connection that counts here.
    fn take_in(self: &Rc<Self>, stream: runtime::Stream) {
        let watch = self.deadlines.watch(stream.aborter());
        runtime::spawn(Rc::clone(self).serve_counted(stream, watch));
    }

    /// Has another core serve a connection, which counts there already.
    fn pass_on(&self, stream: runtime::Stream, core: CoreId) {
        match stream.into_std() {
            Ok(stream) => {
                self.counters.connections_moved.add(1);
                self.send(core, Message::Adopt(stream));
            }
            // No descriptor is left: neither would the other core have got far with it.
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                self.spread.arrived(core);
                self.end_counted(core);
            }
        }
    }

    /// A connection counted to a core has ended.
    fn end_counted(&self, core: CoreId) {
        self.stir();
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.spread.ended(core);
    }

    /// Says why, if that can be said without waiting, and closes.
    fn turn_away(&self, mut stream: runtime::Stream) {
        let security = self.door.security();
        if security.tls(Entrance::Client).is_none() {
            stream.discard_now();
            let _ = stream.write_now(TOO_MANY_CONNECTIONS);
            let _ = stream.shutdown_write();
        }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Why this node is not ready for clients, if it is not.
    pub(super) fn unready(&self) -> Option<&'static str> {
        if self.is_draining() {
            return Some("draining");
        }
        self.readiness.bootstrapping().then_some("bootstrapping")
    }

    /// The keys of the whole cluster, and the nodes that did not answer.
    async fn browse(
        self: &Rc<Self>,
        link: &Link,
        request: &crate::api::browse::Request,
    ) -> (Vec<KeyScan>, Vec<String>) {
        self.listings.acquire().await;
        let view = self.view();
        let silent: Rc<RefCell<Vec<String>>> = Rc::default();
        let found: Rc<RefCell<Vec<KeyScan>>> = Rc::default();
        for (_, node) in view
            .nodes()
            .filter(|(ix, node)| *ix != view.me() && node.placed)
        {
            let (id, address) = (node.id.to_string(), Arc::clone(&node.peer_address));
            let (silent, found) = (Rc::clone(&silent), Rc::clone(&found));
            if node.state == State::Dead {
                silent.borrow_mut().push(id);
                continue;
            }
            link.reply.expect_one();
            let reply = Rc::clone(&link.reply);
            let (dialing, request) = (self.dialing_slowly.clone(), request.clone());
            runtime::spawn(async move {
                match keys_of(dialing, address, &request).await {
                    Some(scan) => found.borrow_mut().push(scan),
                    None => silent.borrow_mut().push(id),
                }
                reply.arrived();
            });
        }
        // Waits for the tasks as well: all count on the same reply.
        let mut scans = self.browse_here(link, request).await;
        scans.append(&mut found.borrow_mut());
        (scans, silent.take())
    }

    async fn serve_counted(self: Rc<Self>, stream: runtime::Stream, watch: Watch) {
        Rc::clone(&self).serve(stream, watch, false).await;
        self.end_counted(self.api.core);
        self.report_if_drained();
    }

    async fn serve(self: Rc<Self>, stream: runtime::Stream, watch: Watch, late: bool) {
        let (service, common) = (Rc::new(Rc::clone(&self)), Rc::clone(&self.common));
        let security = self.door.security();
        match security.tls(Entrance::Client) {
            None => {
                let mut link = self.link(Visitor::in_the_clear(Entrance::Client));
                link.late = late;
                connection::serve(service, link, common, stream, watch).await;
            }
            Some(tls) => {
                // What fails is counted by the handshakes. In boxes, or connections without
                // TLS would have room for them.
                let accepted = Box::pin(tls::accept(stream, tls, &self.handshakes, &watch)).await;
                if let Ok(stream) = accepted {
                    let mut link =
                        self.link(Visitor::over_tls(Entrance::Client, &stream, &security));
                    link.late = late;
                    Box::pin(connection::serve(service, link, common, stream, watch)).await;
                }
            }
        }
    }

    /// An entry for a new connection.
    pub(super) fn link(self: &Rc<Self>, visitor: Visitor) -> Link {
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
            visitor,
            late: false,
        }
    }

    fn report_if_drained(&self) {
        if self.deadlines.stopping() && self.deadlines.open() == 0 {
            let _ = self.events.send(Event::Drained(self.api.core));
        }
    }

    async fn tick(self: Rc<Self>) {
        let mut clients_ms = 0;
        let mut last = Instant::now();
        let mut expected = last + TICK;
        let mut aged = last;
        let mut rest = None;
        loop {
            match rest {
                None => runtime::sleep(TICK).await,
                Some(rest) => self.rest.alarm().pause(rest).await,
            }
            if rest.is_some() {
                self.rest.end();
                self.all_deadlines().iter().for_each(|all| all.end_rest());
                self.look_after_peers(expected);
            }
            let piece = self.meter.begin(Work::Housekeeping);
            let now = Instant::now();
            let late = now.saturating_duration_since(expected);
            let wall = wall_time();
            self.meter.tick(now, wall, late);
            self.date.set(date_at(wall));
            self.door.set_now(wall);
            let passed = now.duration_since(last);
            let passed = passed.min(rest.unwrap_or_default() + BUSY_TICK_MAX);
            clients_ms += passed.as_millis() as u64;
            last = now;
            self.deadlines.sweep(clients_ms);
            self.late.sweep(clients_ms);
            self.peer_connections.sweep(clients_ms);
            if now.saturating_duration_since(aged) >= HOT_KEYS_AGE {
                aged = now;
                self.cluster.borrow_mut().local_mut().hot_keys_mut().age();
            }
            self.collect_lent();
            self.cluster.borrow_mut().tick_copies(wall);
            self.publish();
            self.meter.end(piece);
            self.reap(REAP_MAX).await;
            let rested = rest.is_some();
            rest = self.rest.begin(REST_MAX, || self.due(wall));
            match rest {
                Some(rest) => {
                    let all = self.all_deadlines().into_iter();
                    all.for_each(|deadlines| deadlines.rest(rest, self.rest.alarm()));
                }
                None if rested => self.peers_alarm.ring(),
                None => {}
            }
            expected = Instant::now() + rest.unwrap_or(TICK);
        }
    }

    /// Lets go of values that the shard has dropped and no answer carries any more.
    fn collect_lent(&self) {
        let mut cluster = self.cluster.borrow_mut();
        let shard = cluster.local_mut().shard_mut();
        if shard.lent_bytes() > 0 {
            shard.collect_lent();
        }
    }

    /// Copies what the shard counts to where other threads may read it.
    fn publish(&self) {
        let cluster = self.cluster.borrow();
        let counts = ClusterCounts::of(&cluster);
        self.cluster_counts.publish(&counts);
        let shard = cluster.local().shard();
        let stats = shard.stats();
        let counters = &self.counters;
        counters
            .cpu_us
            .set(runtime::thread_cpu().as_micros() as u64);
        counters.connections_open.set(self.deadlines.open() as u64);
        let expired = self.deadlines.expired();
        counters.connections_expired.set(expired.total());
        counters.connections_expired_idle.set(expired.idle);
        counters.connections_expired_request.set(expired.request);
        counters.connections_expired_write.set(expired.write);
        let displaced = self.peer_connections.displaced();
        counters.peer_connections_displaced.set(displaced);
        let buffers = &self.common.buffers;
        buffers.set_lent(shard.lent_bytes());
        counters.buffered_bytes.set(buffers.held() as u64);
        counters.requests_crowded.set(buffers.refused());
        let refused = self.door.refused();
        counters.requests_unauthorized.set(refused.unauthorized);
        counters.requests_forbidden.set(refused.forbidden);
        counters.verifications_refused.set(refused.busy);
        let (clients, peers) = (self.handshakes.counts(), self.peer_handshakes.counts());
        counters.handshakes.set(clients.completed + peers.completed);
        counters
            .handshakes_failed
            .set(clients.failed + peers.failed);
        counters
            .handshakes_timed_out
            .set(clients.timed_out + peers.timed_out);
        counters
            .handshakes_refused
            .set(clients.refused + peers.refused);
        counters.items.set(shard.len() as u64);
        counters.bytes.set(shard.bytes() as u64);
        counters.tombstones.set(shard.tombstones() as u64);
        let copies = cluster.copies();
        let (leases, leases_revoked) = shard.leases();
        counters.copies.set(copies.len() as u64);
        counters.copy_bytes.set(copies.bytes() as u64);
        counters.copy_hits.set(copies.counts().hits);
        counters.copies_taken.set(copies.counts().taken);
        counters.leases.set(leases as u64);
        counters.leases_revoked.set(leases_revoked);
        counters.gets.set(stats.gets + copies.counts().hits);
        counters.hits.set(stats.hits + copies.counts().hits);
        counters.sets.set(stats.sets);
        counters.removes.set(stats.removes);
        counters.evicted.set(stats.evicted_items);
        counters.expired.set(stats.expired);
        counters.too_large.set(stats.too_large);
    }

    /// Has every batch of the exchange carried out, here or where it belongs.
    async fn complete(&self, link: &Link, exchange: &mut Exchange) {
        // Before this a client may have taken its time to read what was answered.
        self.stir();
        for slot in 0..exchange.batch_count() {
            let Some(batch) = exchange.take(slot) else {
                continue;
            };
            let target = batch.target();
            if target == self.api.core {
                let home = self.home(link, target);
                let done = self.cluster.borrow_mut().run(batch, home, wall_time());
                match done {
                    Some(batch) => exchange.put_back(batch),
                    None => link.reply.expect_one(),
                }
                continue;
            }
            self.siblings[target.index()].batches.acquire().await;
            self.counters.batches_sent.add(1);
            link.reply.expect_one();
            self.send(target, Message::Run(batch, self.home(link, target)));
        }
        self.after_cluster();
        link.reply.all().await;
        for batch in link.reply.batches.borrow_mut().drain(..) {
            exchange.put_back(batch);
        }
    }

    /// Asks again for values that found no room: where many batches came at once and none
    /// of them got all it needs, one after the other does.
    async fn ask_in_turn(&self, link: &Link, exchange: &mut Exchange) {
        if self.crowded.queue_len() >= CROWDED_QUEUE_MAX {
            return;
        }
        exchange.ask_again();
        self.crowded.acquire().await;
        for tries_left in (0..CROWDED_TRIES).rev() {
            self.complete(link, exchange).await;
            if tries_left == 0 || !exchange.is_crowded() {
                break;
            }
            exchange.ask_again();
            runtime::sleep(CROWDED_PAUSE).await;
        }
        self.crowded.release();
    }

    fn home(&self, link: &Link, served_by: CoreId) -> Home {
        Home {
            core: self.api.core,
            reply: link.index,
            served_by,
        }
    }

    /// Hands the parts of a peer's frame to the cores they belong to; `frames` comes
    /// back in no order.
    pub(super) async fn serve_parts(
        &self,
        link: &Link,
        parts: Vec<(CoreId, Vec<u8>)>,
    ) -> Vec<PeerFrame> {
        let mut done = Vec::new();
        for (core, bytes) in parts {
            let mut frame = PeerFrame::new(core, bytes);
            if core == self.api.core {
                self.serve_frame(&mut frame);
                done.push(frame);
                continue;
            }
            self.siblings[core.index()].frames.acquire().await;
            link.reply.expect_one();
            let home = self.home(link, core);
            self.send(core, Message::Serve(Box::new(frame), home));
        }
        link.reply.all().await;
        done.append(&mut link.reply.frames.borrow_mut());
        done
    }

    fn serve_frame(&self, frame: &mut PeerFrame) {
        frame.serve(&mut self.cluster.borrow_mut(), wall_time());
    }

    /// The keys of this node.
    pub(super) async fn browse_here(
        &self,
        link: &Link,
        request: &crate::api::browse::Request,
    ) -> Vec<KeyScan> {
        for core in self.api.cores.cores().filter(|&core| core != self.api.core) {
            self.siblings[core.index()].scans.acquire().await;
            link.reply.expect_one();
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

    /// Handles a request, as [`Service::handle`] says.
    #[inline]
    pub(super) fn answer(
        &self,
        link: &Link,
        head: &Head<'_>,
        body: Cow<'_, [u8]>,
        turn: &mut Turn,
    ) -> Option<Job> {
        self.counters.requests.add(1);
        let date = self.date.get();
        let view = self.view();
        let caller = link.visitor.caller().identity();
        let moment = Moment {
            now: turn.now.get_or_insert_with(|| self.meter.now()).1,
            date: &date,
            draining: self.is_draining(),
            view: &view,
            caller: caller.as_deref().map(|caller| &**caller),
        };
        let mut cluster = self.cluster.borrow_mut();
        let large = body.len() >= SHARED_VALUE_BYTES;
        let job = self.api.handle(head, body, &mut cluster, turn, moment);
        if large {
            // What such writes replace may be on its way out still.
            self.common
                .buffers
                .set_lent(cluster.local().shard().lent_bytes());
        }
        job
    }

    pub(super) fn writer<'a>(
        &'a self,
        turn: &'a mut Turn,
        view: &'a View,
        date: &'a HttpDate,
        form: Form,
    ) -> Writer<'a> {
        Writer {
            answers: &mut turn.answers,
            facts: &self.api.facts,
            view,
            date,
            connection: form.connection,
            head_only: form.head_only,
        }
    }
}

impl Service for Rc<Core> {
    type Job = Job;
    type Link = Link;

    fn turn(&self) -> Turn {
        Turn::new(Exchange::within(
            self.api.cores,
            Arc::clone(&self.allotment),
        ))
    }

    fn weight(&self, job: &Job) -> usize {
        let places = match job {
            Job::Batch(_) => 1,
            Job::Browse(_) => self.api.cores.get() + self.view().nodes().count() - 1,
        };
        job.weight(&self.api.facts).saturating_mul(places)
    }

    #[inline]
    fn admit(&self, link: &Link, head: &Head<'_>) -> Entry {
        self.stir();
        if link.late && !router::is_liveness(head.method, head.path) {
            return Entry::Expelled(ApiError::too_many_connections());
        }
        let scope = router::scope(head.method, head.path);
        self.door.admit(&link.visitor, head.authorization, scope)
    }

    async fn verify(&self, link: &Link, authorization: Vec<u8>) {
        self.door.verify(&link.visitor, &authorization).await;
    }

    fn foresee(&self, received: &[u8], turn: &mut Turn) {
        if received.is_empty() {
            turn.exchange.expect(RoughCores::default());
            return;
        }
        let mut hashes = [KeyHash(0); FORESEEN_MAX];
        let keys = router::keys_ahead(received);
        let count = hashes
            .iter_mut()
            .zip(keys)
            .map(|(hash, key)| *hash = KeyHash::of(key))
            .count();
        let asked = self.cluster.borrow().foresee(&mut hashes[..count]);
        turn.exchange.expect(asked);
    }

    async fn gather(&self, received: &[u8]) {
        let Some(key) = router::first_key(received) else {
            return;
        };
        // Nothing is hashed for one that is alone.
        if !self.gathering.expects_others() {
            return;
        }
        let hash = KeyHash::of(key);
        if hash.partition().core(self.api.cores) == self.api.core {
            self.gathering.join(hash).await;
        }
    }

    fn deny(&self, head: &Head<'_>, error: &ApiError, turn: &mut Turn) {
        self.counters.requests.add(1);
        let connection = self.api.connection(head, self.is_draining(), turn);
        let form = Form {
            connection,
            ..Form::of(head)
        };
        let (view, date) = (self.view(), self.date.get());
        self.writer(turn, &view, &date, form).error(error);
        // Whoever is not let in does not decide what is recorded.
        if let Some(begun) = self.tracer.begin_request(None) {
            self.record_denied(begun, head, turn);
        }
    }

    #[inline]
    fn handle(
        &self,
        link: &Link,
        head: &Head<'_>,
        body: Cow<'_, [u8]>,
        turn: &mut Turn,
    ) -> Option<Job> {
        match self.tracer.begin_request(head.traceparent) {
            None => self.answer(link, head, body, turn),
            Some(begun) => self.answer_recorded(begun, link, head, body, turn),
        }
    }

    fn refuse(&self, error: &ApiError, head_only: bool, turn: &mut Turn) {
        self.stir();
        // The door counts those it turns away itself.
        self.counters
            .requests_refused
            .add(u64::from(!error.is_about_the_caller()));
        turn.closes = true;
        let (view, date) = (self.view(), self.date.get());
        let form = Form::last(head_only);
        self.writer(turn, &view, &date, form).error(error);
        self.end_recording(turn, Via::Local);
    }

    async fn settle(&self, link: &Link, turn: &mut Turn) {
        if turn.has_gaps() {
            // How long a client takes to read is not how long its requests took.
            if let (Some(paused), Some((started, _))) = (turn.paused.take(), &mut turn.now) {
                *started += paused.elapsed();
            }
            if !turn.is_closing_gaps() {
                self.complete(link, &mut turn.exchange).await;
                self.cluster.borrow_mut().keep_copies(&mut turn.exchange);
            }
            turn.answers.room = self.common.buffers.answer_room();
            let view = self.view();
            let (facts, date) = (&self.api.facts, self.date.get());
            let (began, now) = self.meter.now();
            turn.close_gaps(facts, self.api.core, &view, &date, now);
            self.meter.answered_all(turn, began);
            turn.paused = turn.has_gaps().then(Instant::now);
            self.end_recorded(turn);
        }
    }

    #[inline]
    fn handled(&self, turn: &mut Turn) {
        self.meter.answered_alone(turn);
    }

    async fn run(&self, link: &Link, job: Job, turn: &mut Turn) {
        let date = self.date.get();
        let (started, now) = self.meter.now();
        turn.subject = None;
        match job {
            Job::Browse(request) => {
                let (scans, silent) = self.browse(link, &request).await;
                let piece = self.meter.begin(Work::Jobs);
                let view = self.view();
                let form = Form::whole(request.connection);
                let mut writer = self.writer(turn, &view, &date, form);
                request.answer(scans, silent, &mut writer);
                self.meter.end(piece);
                self.listings.release();
                let via = match (view.solo(), self.api.cores) {
                    (false, _) => Via::Forwarded,
                    (true, CoreCount::ONE) => Via::Local,
                    (true, _) => Via::Remote,
                };
                self.meter.done(turn, Operation::List, via, started);
                self.end_recording(turn, via);
            }
            Job::Batch(mut request) => {
                let recording = turn.recording.as_ref();
                turn.exchange.context = recording.map(|recorded| recorded.begun.context);
                let piece = self.meter.begin_lightly(Work::Jobs);
                let asked = request.ask(&self.api, &mut turn.exchange, now);
                self.meter.end(piece);
                turn.exchange.context = None;
                let entries = match asked {
                    Ok(entries) => entries,
                    Err(error) => {
                        let view = self.view();
                        self.writer(turn, &view, &date, Form::whole(request.connection))
                            .error(&error);
                        turn.exchange.reset();
                        self.end_recording(turn, Via::Local);
                        return;
                    }
                };
                self.complete(link, &mut turn.exchange).await;
                if turn.exchange.is_crowded() {
                    self.ask_in_turn(link, &mut turn.exchange).await;
                }
                turn.answers.room = self.common.buffers.answer_room();
                let view = self.view();
                let Turn {
                    answers, exchange, ..
                } = turn;
                let mut writer = Writer {
                    answers,
                    facts: &self.api.facts,
                    view: &view,
                    date: &date,
                    connection: request.connection,
                    head_only: false,
                };
                let piece = self.meter.begin_lightly(Work::Jobs);
                request.answer(&entries, exchange, &mut writer, now);
                self.meter.end(piece);
                let via = exchange.furthest(self.api.core);
                turn.exchange.reset();
                let operation = request.kind.operation();
                self.meter.done(turn, operation, via, started);
                self.end_recording(turn, via);
            }
        }
    }
}
