//! The control thread's part of the cluster: it drives membership, makes a view of
//! every change and hands it to the cores.
//!
//! Membership itself is pure ([`Membership`]); here are its clock, its randomness and
//! its connections. A message that cannot be sent is lost, as the protocol allows. At
//! most [`SENDS_MAX`] are on their way to one address.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::core::{Dial, Message, wall_time};
use crate::cluster::View;
use crate::cluster::membership::{Action, Counters, Membership, Message as Gossip};
use crate::cluster::rng::Rng;
use crate::cluster::view::{Placements, Views};
use crate::peer::MEMBERSHIP_PATH;
use crate::peer::client::{Client, Dialing};
use crate::runtime::{self, Giver, Receiver, Sender};

/// Membership messages on their way to one address.
const SENDS_MAX: usize = 8;

/// The shortest time between two looks at the clock.
const TICK_MIN: Duration = Duration::from_millis(5);

/// What reaches the control thread.
#[derive(Debug)]
pub enum ControlMessage {
    /// A membership message of another node, and where the reply is waited for.
    Membership(Vec<u8>, Giver<Vec<u8>>),
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
    mailboxes: Vec<Sender<Message>>,
    dialing: Dialing,
    heartbeat: Duration,
    idle: RefCell<BTreeMap<Arc<str>, Vec<Client>>>,
    sending: RefCell<BTreeMap<Arc<str>, usize>>,
    watchers: RefCell<Vec<Weak<RefCell<Option<Waker>>>>>,
    changes: Cell<u64>,
}

impl Control {
    /// Puts it together; nothing runs yet.
    pub fn new(parts: ControlParts) -> Rc<Self> {
        let timeout = (parts.heartbeat / 2).max(Duration::from_millis(20));
        let dial = Dial {
            timeout,
            token: parts.dial.token,
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
            mailboxes: parts.mailboxes,
            dialing: dial.dialing(1),
            heartbeat: parts.heartbeat,
            idle: RefCell::default(),
            sending: RefCell::default(),
            watchers: RefCell::default(),
            changes: Cell::new(0),
        })
    }

    /// The cluster as it is now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// What membership has counted.
    pub fn counters(&self) -> Counters {
        *self.membership.borrow().counters()
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
                    ControlMessage::Leave(told) => {
                        self.membership.borrow_mut().leave(now_ms());
                        self.act();
                        runtime::spawn(Rc::clone(&self).tell_when_sent(told));
                    }
                }
            }
        }
    }

    /// Answers once nothing is on its way any more: the deadline of each send bounds it.
    async fn tell_when_sent(self: Rc<Self>, told: std::sync::mpsc::Sender<()>) {
        while self.sending.borrow().values().any(|&count| count > 0) {
            runtime::sleep(TICK_MIN).await;
        }
        let _ = told.send(());
    }

    async fn tick(self: Rc<Self>) {
        let started = Instant::now();
        let interval = (self.heartbeat / 10).max(TICK_MIN);
        self.act();
        loop {
            self.membership
                .borrow_mut()
                .tick(now_ms(), &mut self.rng.borrow_mut());
            self.act();
            runtime::sleep(interval).await;
            self.dialing
                .deadlines
                .sweep(started.elapsed().as_millis() as u64);
        }
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
        loop {
            let action = self.membership.borrow_mut().poll_action();
            match action {
                None => break,
                Some(Action::Send { to, message }) => self.send(to, &message),
                Some(Action::Changed) => self.renew_view(),
            }
        }
        let joined = self.membership.borrow().joined();
        if joined != self.view.borrow().joined() {
            self.renew_view();
        }
        let view = self.view();
        self.untold.borrow_mut().retain(|&core| {
            self.mailboxes[core]
                .try_send(Message::View(Arc::clone(&view)))
                .is_err()
        });
    }

    fn renew_view(&self) {
        let membership = self.membership.borrow();
        let view = self
            .views
            .borrow_mut()
            .of(&membership, &mut self.placements.borrow_mut());
        let old = self.view.replace(Arc::new(view));
        let new = self.view();
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
        *self.untold.borrow_mut() = (0..self.mailboxes.len()).collect();
        self.changes.set(self.changes.get() + 1);
        for watcher in &*self.watchers.borrow() {
            if let Some(waker) = watcher.upgrade().and_then(|waker| waker.take()) {
                waker.wake();
            }
        }
    }

    fn send(self: &Rc<Self>, to: Arc<str>, message: &Gossip) {
        {
            let mut sending = self.sending.borrow_mut();
            let count = sending.entry(Arc::clone(&to)).or_default();
            if *count >= SENDS_MAX {
                return;
            }
            *count += 1;
        }
        let mut body = Vec::new();
        message.encode(&mut body);
        let control = Rc::clone(self);
        runtime::spawn(async move {
            let idle = control.idle.borrow_mut().get_mut(&to).and_then(Vec::pop);
            let mut client =
                idle.unwrap_or_else(|| Client::new(control.dialing.clone(), Arc::clone(&to), None));
            let mut request = client.head("POST", MEMBERSHIP_PATH, body.len());
            request.extend_from_slice(&body);
            let answered = client.exchange(request).await;
            if let Some(count) = control.sending.borrow_mut().get_mut(&to) {
                *count -= 1;
            }
            match answered {
                Ok(reply) => {
                    control
                        .idle
                        .borrow_mut()
                        .entry(to)
                        .or_default()
                        .push(client);
                    if let Ok(message) = Gossip::decode(&reply) {
                        control.receive(message);
                    }
                }
                Err(error) => {
                    if error.kind() == std::io::ErrorKind::PermissionDenied {
                        tracing::error!(address = %to, "a peer refuses our token");
                    } else {
                        tracing::debug!(address = %to, %error, "a member did not answer");
                    }
                    control.idle.borrow_mut().remove(&to);
                }
            }
        });
    }
}

fn now_ms() -> u64 {
    wall_time().0
}
