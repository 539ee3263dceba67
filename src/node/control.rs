//! The control thread's part of the cluster: it drives membership, makes a view of
//! every change and hands it to the cores.
//!
//! Membership itself is pure ([`Membership`]); here are its clock, its randomness and
//! its connections. A message that cannot be sent is lost, as the protocol allows. At
//! most [`SENDS_MAX`] are on their way to one address. Connections are kept to members
//! only: their descriptors would pile up with every node that comes and goes.
//!
//! The clock is looked at ten times per heartbeat, and when nothing runs out but the round
//! ([`Membership::quiet_ms`]) and the cores have all that they own, as seldom as a thread
//! without work does ([`super::rest`]). What a message changes of that ends the pause.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::core::{Dial, Event, Message, wall_time};
use super::door::Door;
use super::readiness::Readiness;
use super::security::Security;
use super::verifying::Verifiers;
use crate::clock::Version;
use crate::cluster::View;
use crate::cluster::membership::{Action, Counters, Membership, Message as Gossip, Stage};
use crate::cluster::rng::Rng;
use crate::cluster::view::{Placements, Views};
use crate::peer::MEMBERSHIP_PATH;
use crate::peer::client::{Client, Dialing};
use crate::runtime::{self, Alarm, Giver, Receiver, Sender};
use crate::telemetry::cluster::SharedCounts;

/// Membership messages on their way to one address.
const SENDS_MAX: usize = 8;

/// Views that may wait in the mailbox of one core; the next is the newest by then.
const VIEWS_WAITING_MAX: usize = 4;

/// How often a node that knows no cluster says so.
const WAITING_COMPLAINT: Duration = Duration::from_secs(10);

/// The shortest time between two views that news of members make.
const VIEW_INTERVAL: Duration = Duration::from_millis(10);

/// So many looks at the cores in a row must find that nothing is left to hand over.
const QUIET_TICKS: u32 = 3;

/// The shortest time between two looks at the clock.
const TICK_MIN: Duration = Duration::from_millis(5);

/// What reaches the control thread.
#[derive(Debug)]
pub enum ControlMessage {
    /// A membership message of another node, and where the reply is waited for.
    Membership(Vec<u8>, Giver<Vec<u8>>),
    /// This node is going to leave, and its cores know: see to it that others can do without
    /// it, and tell the main thread when they can ([`Event::HandedOver`]). More than once is
    /// the same.
    Drain,
    /// Something else decides who is let in. The second counts messages of this kind that
    /// wait here.
    Security(Arc<Security>, Arc<()>),
    /// Tell the others that this node leaves, and say when they were told.
    Leave(std::sync::mpsc::Sender<()>),
}

/// What the control thread is made of.
pub struct ControlParts {
    /// The members.
    pub membership: Membership,
    /// Makes views of the members.
    pub views: Views,
    /// The view the cores began with.
    pub view: Arc<View>,
    /// The cores.
    pub mailboxes: Vec<Sender<Message>>,
    /// How peers are reached.
    pub dial: Dial,
    /// How often a member is probed.
    pub heartbeat: Duration,
    /// How far the cores have come.
    pub readiness: Arc<Readiness>,
    /// What the cores count.
    pub cluster_counts: Vec<SharedCounts>,
    /// What decides who is let in.
    pub security: Arc<Security>,
    /// Where credentials are verified.
    pub verifiers: Verifiers,
    /// Where the main thread is told.
    pub events: std::sync::mpsc::Sender<Event>,
}

/// Tells one task of each change of the view.
pub struct Watch {
    control: Rc<Control>,
    /// How many changes there were when it last told.
    seen: Cell<Option<u64>>,
    waker: Rc<RefCell<Option<Waker>>>,
}

impl Watch {
    /// Ready when the view is another than at the last time it was ready.
    pub fn poll_changed(&self, context: &mut Context<'_>) -> Poll<()> {
        let changes = Some(self.control.changes.get());
        if self.seen.replace(changes) != changes {
            return Poll::Ready(());
        }
        *self.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

/// See the module's comment.
pub struct Control {
    membership: RefCell<Membership>,
    views: RefCell<Views>,
    placements: RefCell<Placements>,
    rng: RefCell<Rng>,
    view: RefCell<Arc<View>>,
    /// Cores that have not been given the newest view.
    untold: RefCell<Vec<usize>>,
    /// For each core, as many more references as views wait in its mailbox.
    views_waiting: Vec<Arc<()>>,
    mailboxes: Vec<Sender<Message>>,
    dialing: Dialing,
    door: Door,
    heartbeat: Duration,
    readiness: Arc<Readiness>,
    cluster_counts: Vec<SharedCounts>,
    events: std::sync::mpsc::Sender<Event>,
    /// Whether the main thread has yet to be told that others can do without this node, and
    /// how many ticks in a row they could.
    handing_over: Cell<Option<u32>>,
    /// Ends the pause between two looks at the clock.
    alarm: Rc<Alarm>,
    /// Whether that pause is a long one; `None` outside of it.
    pauses_long: Cell<Option<bool>>,
    /// Told at each look at the clock.
    follower: Rc<Alarm>,
    contacts: RefCell<Contacts<Client>>,
    watchers: RefCell<Vec<Weak<RefCell<Option<Waker>>>>>,
    changes: Cell<u64>,
    /// When the last view was made, and whether a task waits to make the next.
    renewed: Cell<Instant>,
    renewal_waits: Cell<bool>,
}

impl Control {
    /// Puts it together; nothing runs yet.
    pub fn new(parts: ControlParts) -> Rc<Self> {
        let timeout = (parts.heartbeat / 2).max(Duration::from_millis(20));
        let dial = Dial {
            timeout,
            access: parts.dial.access,
        };
        Rc::new(Self {
            rng: RefCell::new(Rng::new(
                wall_time().0 ^ u64::from(std::process::id()) << 40,
            )),
            view: RefCell::new(parts.view),
            membership: RefCell::new(parts.membership),
            views: RefCell::new(parts.views),
            placements: RefCell::default(),
            untold: RefCell::new((0..parts.mailboxes.len()).collect()),
            views_waiting: parts.mailboxes.iter().map(|_| Arc::default()).collect(),
            mailboxes: parts.mailboxes,
            dialing: dial.dialing(1),
            door: Door::new(parts.security, parts.verifiers, wall_time()),
            heartbeat: parts.heartbeat,
            readiness: parts.readiness,
            cluster_counts: parts.cluster_counts,
            events: parts.events,
            handing_over: Cell::new(None),
            alarm: Rc::default(),
            pauses_long: Cell::new(None),
            follower: Rc::default(),
            contacts: RefCell::default(),
            watchers: RefCell::default(),
            changes: Cell::new(0),
            renewed: Cell::new(Instant::now()),
            renewal_waits: Cell::new(false),
        })
    }

    /// The cluster as it is now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The door of the management listener.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Rung at each look at the clock: who rests on this thread need not wake by itself.
    pub fn follower(&self) -> &Rc<Alarm> {
        &self.follower
    }

    /// What membership has counted.
    pub fn counters(&self) -> Counters {
        *self.membership.borrow().counters()
    }

    /// Has the cluster forget what was written up to this version; the cores of this node
    /// are told at once. False if that is no news, because a later version is cleared.
    pub fn clear(self: &Rc<Self>, version: Version) -> bool {
        if !self.membership.borrow_mut().clear(now_ms(), version) {
            return false;
        }
        self.act();
        self.renew_view();
        self.act();
        true
    }

    /// Tells of the changes from now on, the first time at once.
    pub fn watch(self: &Rc<Self>) -> Watch {
        let waker = Rc::default();
        let mut watchers = self.watchers.borrow_mut();
        watchers.retain(|watcher: &Weak<_>| watcher.strong_count() > 0);
        watchers.push(Rc::downgrade(&waker));
        Watch {
            control: Rc::clone(self),
            seen: Cell::new(None),
            waker,
        }
    }

    /// Runs until the thread ends.
    pub async fn run(self: Rc<Self>, mut inbox: Receiver<ControlMessage>) {
        runtime::spawn(Rc::clone(&self).tick());
        let mut messages = Vec::new();
        loop {
            inbox.recv_many(&mut messages).await;
            for message in messages.drain(..) {
                match message {
                    ControlMessage::Membership(bytes, reply) => {
                        // Without a reply the giver is dropped, and the sender is refused.
                        if let Ok(message) = Gossip::decode(&bytes) {
                            let mut out = Vec::new();
                            if let Some(answer) = self.receive(message) {
                                answer.encode(&mut out);
                            }
                            reply.give(out);
                        }
                    }
                    ControlMessage::Drain => self.drain(),
                    ControlMessage::Security(security, _) => {
                        self.dialing.access.replace(security.peer_access.clone());
                        self.door.set_security(security);
                    }
                    ControlMessage::Leave(told) => {
                        // A node alone has nobody to tell, and what is in flight still
                        // needs an owner.
                        if !self.view().solo() {
                            self.membership.borrow_mut().leave(now_ms());
                            self.act();
                        }
                        runtime::spawn(Rc::clone(&self).tell_when_sent(told));
                    }
                }
            }
        }
    }

    fn drain(self: &Rc<Self>) {
        if !self.membership.borrow().draining() {
            tracing::info!("draining: writes are refused, others take over");
        }
        self.membership
            .borrow_mut()
            .drain(now_ms(), &mut self.rng.borrow_mut());
        self.handing_over.set(Some(0));
        self.act();
    }

    /// Tells the main thread when nothing is left that others need this node for.
    fn conclude_drain(&self) {
        let Some(ticks) = self.handing_over.get() else {
            return;
        };
        let view = self.view();
        let followed = self.membership.borrow().is_followed();
        let counts = self.cluster_counts.iter().map(SharedCounts::read);
        let unsent: u64 = counts.map(|counts| counts.unsent).sum();
        let can_go = followed && unsent == 0 && view.can_spare_me();
        // What the cores count is as old as their last tick: it has to hold for a while.
        let ticks = if can_go { ticks + 1 } else { 0 };
        self.handing_over.set(Some(ticks));
        if ticks >= QUIET_TICKS {
            self.handing_over.set(None);
            tracing::info!("drained: others hold all that this node holds");
            let _ = self.events.send(Event::HandedOver);
        }
    }

    /// Answers once nothing is on its way any more: the deadline of each send bounds it.
    async fn tell_when_sent(self: Rc<Self>, told: std::sync::mpsc::Sender<()>) {
        while self.contacts.borrow().sending() {
            runtime::sleep(TICK_MIN).await;
        }
        let _ = told.send(());
    }

    async fn tick(self: Rc<Self>) {
        let started = Instant::now();
        let interval = (self.heartbeat / 10).max(TICK_MIN);
        self.act();
        let mut next_complaint = WAITING_COMPLAINT;
        loop {
            if started.elapsed() >= next_complaint && !self.view().joined() {
                next_complaint += WAITING_COMPLAINT;
                let (met, seeds) = self.membership.borrow().seeds_met();
                tracing::warn!(
                    met,
                    seeds,
                    "waiting for seeds: this node knows no cluster yet"
                );
            }
            self.membership
                .borrow_mut()
                .tick(now_ms(), &mut self.rng.borrow_mut());
            let (followed, holding) = self.readiness.followed();
            self.membership.borrow_mut().follow(
                now_ms(),
                &mut self.rng.borrow_mut(),
                followed,
                holding,
            );
            self.act();
            self.conclude_drain();
            self.follower.ring();
            self.pause(interval).await;
            self.dialing
                .deadlines
                .sweep(started.elapsed().as_millis() as u64);
        }
    }

    /// Waits until there is something to look at.
    async fn pause(&self, interval: Duration) {
        let deadlines = &self.dialing.deadlines;
        let next = deadlines.next().unwrap_or(Duration::MAX);
        let rest = self.quiet().map(|quiet| quiet.min(next));
        let rest = rest.filter(|&rest| rest > interval);
        self.pauses_long.set(Some(rest.is_some()));
        if let Some(rest) = rest {
            deadlines.rest(rest, &self.alarm);
        }
        self.alarm.pause(rest.unwrap_or(interval)).await;
        deadlines.end_rest();
        self.pauses_long.set(None);
    }

    /// For how long nothing is to be done unless something comes in; `None` while anything is
    /// under way that only looking shows.
    fn quiet(&self) -> Option<Duration> {
        let membership = self.membership.borrow();
        let (followed, holding) = self.readiness.followed();
        let is_followed = followed >= self.view.borrow().version() && membership.is_followed();
        let is_quiet = is_followed
            && holding
            && self.handing_over.get().is_none()
            && self.untold.borrow().is_empty()
            && !self.renewal_waits.get();
        is_quiet.then(|| membership.quiet_ms().map(Duration::from_millis))?
    }

    fn receive(self: &Rc<Self>, message: Gossip) -> Option<Gossip> {
        let reply =
            self.membership
                .borrow_mut()
                .receive(now_ms(), &mut self.rng.borrow_mut(), message);
        self.act();
        reply
    }

    /// Does what membership has asked for.
    fn act(self: &Rc<Self>) {
        self.do_what_is_asked();
        let pauses_long = self.pauses_long.get();
        if pauses_long.is_some_and(|long| long != self.quiet().is_some()) {
            self.alarm.ring();
        }
    }

    fn do_what_is_asked(self: &Rc<Self>) {
        loop {
            let action = self.membership.borrow_mut().poll_action();
            match action {
                None => break,
                Some(Action::Send { to, message }) => self.send(to, &message),
                Some(Action::Changed) => self.renew_view_soon(),
            }
        }
        let joined = self.membership.borrow().joined();
        if joined != self.view.borrow().joined() {
            self.renew_view();
        }
        let view = self.view();
        self.untold.borrow_mut().retain(|&core| {
            let waiting = &self.views_waiting[core];
            // What is left of the mailbox belongs to those that hold credits.
            if Arc::strong_count(waiting) > VIEWS_WAITING_MAX {
                return true;
            }
            let message = Message::View(Arc::clone(&view), Arc::clone(waiting));
            self.mailboxes[core].try_send(message).is_err()
        });
    }

    /// Makes a new view, but no more often than so: news come in bursts, and each view
    /// costs every core a look at all partitions.
    fn renew_view_soon(self: &Rc<Self>) {
        if self.renewal_waits.get() {
            return;
        }
        let left = VIEW_INTERVAL.saturating_sub(self.renewed.get().elapsed());
        if left.is_zero() {
            self.renew_view();
            return;
        }
        self.renewal_waits.set(true);
        let control = Rc::clone(self);
        runtime::spawn(async move {
            runtime::sleep(left).await;
            control.renewal_waits.set(false);
            control.renew_view();
            control.act();
        });
    }

    fn renew_view(&self) {
        self.renewed.set(Instant::now());
        let membership = self.membership.borrow();
        let view = self
            .views
            .borrow_mut()
            .of(&membership, &mut self.placements.borrow_mut());
        let old = self.view.replace(Arc::new(view));
        let new = self.view();
        self.contacts
            .borrow_mut()
            .retain(|address| is_member(&new, address));
        log_changes(&old, &new);
        *self.untold.borrow_mut() = (0..self.mailboxes.len()).collect();
        self.changes.set(self.changes.get() + 1);
        for watcher in &*self.watchers.borrow() {
            if let Some(waker) = watcher.upgrade().and_then(|waker| waker.take()) {
                waker.wake();
            }
        }
    }

    fn send(self: &Rc<Self>, to: Arc<str>, message: &Gossip) {
        let Some(idle) = self.contacts.borrow_mut().begin(&to) else {
            return;
        };
        let mut body = Vec::new();
        message.encode(&mut body);
        let control = Rc::clone(self);
        runtime::spawn(async move {
            let mut client =
                idle.unwrap_or_else(|| Client::new(control.dialing.clone(), Arc::clone(&to), None));
            let mut request = client.head("POST", MEMBERSHIP_PATH, body.len());
            request.extend_from_slice(&body);
            let answered = client.exchange(request).await;
            let kept = answered.is_ok() && is_member(&control.view(), &to);
            let client = kept.then_some(client);
            control.contacts.borrow_mut().end(&to, client);
            match answered {
                Ok(reply) => {
                    if let Ok(message) = Gossip::decode(&reply) {
                        control.receive(message);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    tracing::error!(address = %to, "a peer refuses our token");
                }
                Err(error) => {
                    tracing::debug!(address = %to, %error, "a member did not answer");
                }
            }
        });
    }
}

/// Tells the log what an operator wants to know of a change.
fn log_changes(old: &View, new: &View) {
    for (ix, node) in new.nodes() {
        let before = old.node(ix).map(|node| node.state);
        if before != Some(node.state) {
            tracing::info!(
                member = %node.id,
                state = node.state.name(),
                incarnation = node.incarnation,
                address = %node.peer_address,
                "member"
            );
        }
    }
    let (was, is) = (old.stage(), new.stage());
    let names = |ids: &mut dyn Iterator<Item = &str>| ids.collect::<Vec<_>>().join(",");
    if is == Stage::Joint && was != Stage::Joint {
        let (from, to) = (names(&mut new.roster()), names(&mut new.roster_also()));
        tracing::info!(epoch = new.epoch(), from, to, "owners begin to change");
    }
    if is == Stage::Settled && (new.epoch() != old.epoch() || was != Stage::Settled) {
        let owners = names(&mut new.roster());
        tracing::info!(epoch = new.epoch(), owners, "owners are settled");
    }
    match (old.fenced(), new.fenced()) {
        (false, true) => tracing::error!(
            "cut off from most of the cluster for half of the grace: no quorums are served"
        ),
        (true, false) => tracing::info!("back in touch: quorums are served again"),
        _ => {}
    }
}

fn is_member(view: &View, address: &str) -> bool {
    view.nodes().any(|(_, node)| &*node.peer_address == address)
}

/// What is kept for each address that messages go to.
struct Contacts<C>(BTreeMap<Arc<str>, Contact<C>>);

struct Contact<C> {
    /// Messages on their way.
    sending: usize,
    /// Connections that wait for a message.
    idle: Vec<C>,
}

impl<C> Default for Contacts<C> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<C> Contacts<C> {
    /// Begins to send to an address, over the idle connection that comes with the answer
    /// if there is one; nothing when [`SENDS_MAX`] messages are on their way there.
    fn begin(&mut self, to: &Arc<str>) -> Option<Option<C>> {
        let contact = self.0.entry(Arc::clone(to)).or_insert_with(|| Contact {
            sending: 0,
            idle: Vec::new(),
        });
        if contact.sending >= SENDS_MAX {
            return None;
        }
        contact.sending += 1;
        Some(contact.idle.pop())
    }

    /// A message is no longer on its way. Its connection is kept if it is given; if not,
    /// none is: what has ended one has most likely ended them all.
    fn end(&mut self, to: &str, connection: Option<C>) {
        let Some(contact) = self.0.get_mut(to) else {
            return;
        };
        contact.sending -= 1;
        match connection {
            Some(connection) if contact.idle.len() < SENDS_MAX => contact.idle.push(connection),
            Some(_) => {}
            None => contact.idle.clear(),
        }
        if contact.sending == 0 && contact.idle.is_empty() {
            self.0.remove(to);
        }
    }

    /// Whether a message is on its way to anyone.
    fn sending(&self) -> bool {
        self.0.values().any(|contact| contact.sending > 0)
    }

    /// Keeps no connection to other addresses than these.
    fn retain(&mut self, is_member: impl Fn(&str) -> bool) {
        self.0.retain(|address, contact| {
            if is_member(address) {
                return true;
            }
            contact.idle.clear();
            contact.sending > 0
        });
    }
}

fn now_ms() -> u64 {
    wall_time().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_used_again_and_one_that_failed_takes_the_others_along() {
        let to = Arc::from("a:1");
        let mut contacts = Contacts::default();
        assert_eq!(contacts.begin(&to), Some(None));
        assert_eq!(contacts.begin(&to), Some(None));
        contacts.end(&to, Some("first"));
        contacts.end(&to, Some("second"));
        assert!(!contacts.sending());
        assert_eq!(contacts.begin(&to), Some(Some("second")));
        contacts.end(&to, None);
        assert!(contacts.0.is_empty());
    }

    #[test]
    fn no_more_messages_are_under_way_to_one_address_than_may_be() {
        let to = Arc::from("a:1");
        let mut contacts = Contacts::<()>::default();
        let begun = (0..2 * SENDS_MAX).filter(|_| contacts.begin(&to).is_some());
        assert_eq!(begun.count(), SENDS_MAX);
        contacts.end(&to, None);
        assert!(contacts.begin(&to).is_some());
    }

    #[test]
    fn nothing_is_kept_of_an_address_that_is_no_members() {
        let (member, gone) = (Arc::from("member:1"), Arc::from("gone:1"));
        let mut contacts = Contacts::default();
        for to in [&member, &gone, &gone] {
            contacts.begin(to);
        }
        contacts.end(&member, Some(()));
        contacts.end(&gone, Some(()));
        contacts.retain(|address| address == &*member);
        assert!(contacts.sending(), "one is still under way");
        assert_eq!(
            contacts.begin(&gone),
            Some(None),
            "its connection is closed"
        );
        contacts.end(&gone, None);
        contacts.end(&gone, None);
        assert_eq!(contacts.0.keys().collect::<Vec<_>>(), [&member]);
    }
}
