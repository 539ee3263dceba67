//! A core among the cores of other nodes: the connections it keeps to them, and what
//! it answers on the peer listener.
//!
//! **Out.** For each node and [`Lane`] one task, which takes the next frame from the
//! coordinator, sends it, and hands back the answer or the failure. It owns its
//! connection; nothing else waits for it. It ends when the node leaves.
//!
//! **In.** A frame that comes from the same core of a node with as many cores is this
//! core's alone and is answered at once: connections are steered to the core of their
//! sender ([`runtime::steer`]). Any other frame is cut up and goes through mailboxes.
//! Membership messages go to the control thread; the connection waits for its reply.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use super::connection::{self, Entry, Form, Service};
use super::control::ControlMessage;
use super::core::{Core, Link, wall_time};
use super::door::Visitor;
use super::recording::Calling;
use super::security::Entrance;
use crate::api::browse::{self, KeyScan};
use crate::api::{ApiError, Turn, Writer};
use crate::auth::Scope;
use crate::clock::UnixMs;
use crate::cluster::coordinator::{Coordinator, Lane};
use crate::cluster::message;
use crate::cluster::{NodeIx, View};
use crate::hash::{CoreCount, CoreId};
use crate::http::{Head, Method, Status};
use crate::peer::client::{Client, Dialing};
use crate::peer::{DRAIN_PATH, KEYS_PATH, MEMBERSHIP_PATH, OPERATIONS_PATH, keys};
use crate::runtime::{self, Listener, Resumed, Steering, Stream, Wait, Watch, handoff};
use crate::telemetry::trace::Begun;
use crate::telemetry::work::Work;
use crate::tls;

/// Peer connections one core serves: with each node of a cluster as large as may be, one.
/// Beyond them whoever has been idle for longest makes room.
pub(super) const CONNECTIONS_MAX: usize = 1024;

/// How many bytes of keys one node lists for another at most.
const KEYS_BYTES_MAX: usize = 32 << 20;

/// The first byte of a TLS connection (RFC 8446, section 5.1), and of no HTTP request.
const TLS_HANDSHAKE: u8 = 22;
/// How much is read to find out which of them it is.
const FIRST_BYTES: usize = 2 << 10;

/// What a kubelet asks for; to read it never needs credentials.
const HEALTH_PATH: &[u8] = b"/health";

/// A frame of a peer on its way through this node.
#[derive(Debug)]
pub struct PeerFrame {
    core: CoreId,
    bytes: Vec<u8>,
    answer: Vec<u8>,
    malformed: bool,
}

impl PeerFrame {
    /// A frame for one core.
    pub fn new(core: CoreId, bytes: Vec<u8>) -> Self {
        Self {
            core,
            bytes,
            answer: Vec::new(),
            malformed: false,
        }
    }

    /// Carries it out on its core.
    pub fn serve(&mut self, cluster: &mut Coordinator, now: UnixMs) {
        self.malformed = cluster.serve(&self.bytes, now, &mut self.answer).is_err();
    }
}

/// The tasks that keep a core's connections to other nodes.
#[derive(Default)]
pub struct Links(RefCell<Vec<Option<[Rc<LinkState>; 2]>>>);

struct LinkState {
    address: RefCell<Arc<str>>,
    gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl LinkState {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Links {
    /// Starts and ends tasks so that there are some for every other node of the view.
    pub fn follow(&self, core: &Rc<Core>, view: &View) {
        let mut links = self.0.borrow_mut();
        for (ix, node) in view.nodes().filter(|(ix, _)| *ix != view.me()) {
            if links.len() <= ix.index() {
                links.resize_with(ix.index() + 1, || None);
            }
            let states = links[ix.index()].get_or_insert_with(|| {
                Lane::ALL.map(|lane| {
                    let state = Rc::new(LinkState {
                        address: RefCell::new(Arc::clone(&node.peer_address)),
                        gone: Cell::new(false),
                        waker: RefCell::new(None),
                    });
                    runtime::spawn(carry(Rc::clone(core), ix, lane, Rc::clone(&state)));
                    state
                })
            });
            for state in states {
                state.address.replace(Arc::clone(&node.peer_address));
            }
        }
        for (index, link) in links.iter_mut().enumerate() {
            if view.node(NodeIx(index as u16)).is_none()
                && let Some(states) = link.take()
            {
                for state in states {
                    state.gone.set(true);
                    state.wake();
                }
            }
        }
    }

    /// Has a task look for something to send.
    pub fn wake(&self, node: NodeIx, lane: Lane) {
        if let Some(Some(states)) = self.0.borrow().get(node.index()) {
            states[lane as usize].wake();
        }
    }

    /// Wakes the tasks whose peers are due for another try.
    pub fn wake_due(&self, cluster: &Coordinator) {
        for (index, link) in self.0.borrow().iter().enumerate() {
            let Some(states) = link else { continue };
            for lane in Lane::ALL {
                if cluster.retry_is_due(NodeIx(index as u16), lane) {
                    states[lane as usize].wake();
                }
            }
        }
    }
}

/// Carries the frames of one lane to one node.
async fn carry(core: Rc<Core>, node: NodeIx, lane: Lane, state: Rc<LinkState>) {
    let (own, cores) = (core.api.core.index() as u16, core.api.cores.get() as u16);
    let steering = Steering {
        listener: own,
        listeners: cores,
    };
    let target = format!("{OPERATIONS_PATH}{own}/{cores}");
    let dialing = match lane {
        Lane::Data => core.dialing.clone(),
        Lane::Bulk => core.dialing_slowly.clone(),
    };
    let address = Arc::clone(&state.address.borrow());
    let mut client = Client::new(dialing, address, Some(steering));
    loop {
        let next = poll_fn(|context| {
            if state.gone.get() {
                return Poll::Ready(None);
            }
            let mut cluster = core.cluster.borrow_mut();
            let sequence = cluster.poll(node, lane).map(|(sequence, _)| sequence);
            let Some((sequence, frame)) = sequence.zip(cluster.in_flight(node, lane)) else {
                *state.waker.borrow_mut() = Some(context.waker().clone());
                return Poll::Pending;
            };
            let calling = core.begin_call(node, lane, &frame);
            let within = calling.as_ref().map(Calling::context);
            let body = frame.bytes;
            let mut request = client.head_within(within, "POST", &target, body.len());
            request.extend_from_slice(body);
            Poll::Ready(Some((sequence, request, calling)))
        });
        let Some((sequence, request, calling)) = next.await else {
            return;
        };
        client.set_address(Arc::clone(&state.address.borrow()));
        let answered = client.exchange(request).await;
        if let Some(calling) = calling {
            core.end_call(calling, answered.is_err());
        }
        let piece = match lane {
            Lane::Data => core.meter.begin_lightly(Work::PeerAnswers),
            Lane::Bulk => core.meter.begin(Work::PeerAnswers),
        };
        let now = wall_time();
        match answered {
            Ok(answer) => {
                let mut cluster = core.cluster.borrow_mut();
                cluster.answered(node, lane, sequence, &answer, now);
            }
            Err(error) => {
                tracing::debug!(
                    core = own,
                    address = %client.address(),
                    %error,
                    "a request to a peer failed"
                );
                core.cluster.borrow_mut().failed(node, lane, sequence, now);
            }
        }
        core.after_cluster();
        core.meter.end(piece);
    }
}

/// Work of the peer listener that cannot be done at once.
pub enum PeerJob {
    /// A frame of operations of which some are other cores'.
    Frame(Vec<u8>),
    /// A frame that is another core's as a whole.
    Elsewhere(CoreId, Vec<u8>),
    /// A message for the control thread.
    Membership(Vec<u8>),
    /// A listing of this node's keys.
    Keys(browse::Request),
    /// This node is to drain.
    Drain,
}

impl PeerJob {
    /// How long the frame is, where it is about one.
    fn frame_len(&self) -> usize {
        match self {
            Self::Frame(frame) | Self::Elsewhere(_, frame) => frame.len(),
            Self::Membership(_) | Self::Keys(_) | Self::Drain => 0,
        }
    }
}

/// What one core serves on the peer listener.
pub struct PeerService(Rc<Core>);

impl PeerService {
    /// Accepts peers until the core ends.
    pub async fn accept(core: Rc<Core>, listener: Listener) {
        let service = Rc::new(Self(core));
        loop {
            let core = &service.0;
            match listener.accept().await {
                Ok((stream, _)) => {
                    core.stir();
                    let crowded = core.peer_connections.open() >= CONNECTIONS_MAX;
                    if core.peer_connections.make_room(CONNECTIONS_MAX) {
                        let watch = core.peer_connections.watch(stream.aborter());
                        runtime::spawn(Rc::clone(&service).serve(stream, watch));
                    } else {
                        core.counters.peer_connections_refused.add(1);
                    }
                    if crowded {
                        // Those that were cut are to go before more come.
                        runtime::yield_to_io().await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the peer listener");
                    runtime::sleep(super::core::ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Rc<Self>, mut stream: Stream, watch: Watch) {
        let core = Rc::clone(&self.0);
        let common = Rc::clone(&core.peer_common);
        let security = core.door.security();
        let in_the_clear = Visitor::in_the_clear(Entrance::Peer);
        let Some(tls) = security.tls(Entrance::Peer) else {
            connection::serve(self, core.link(in_the_clear), common, stream, watch).await;
            return;
        };
        let mut received = Vec::new();
        if security.peers_in_the_clear {
            watch.wait_for(Wait::Idle);
            let first = stream.read(Vec::with_capacity(FIRST_BYTES)).await;
            watch.wait_for(Wait::Nothing);
            let (Ok(1..), bytes) = first else {
                return;
            };
            if bytes[0] != TLS_HANDSHAKE {
                let stream = Resumed::new(stream, bytes);
                connection::serve(self, core.link(in_the_clear), common, stream, watch).await;
                return;
            }
            received = bytes;
        }
        let handshakes = &core.peer_handshakes;
        match tls::accept_begun(stream, received, tls, handshakes, &watch).await {
            Ok(stream) => {
                let visitor = Visitor::over_tls(Entrance::Peer, &stream, &security);
                connection::serve(self, core.link(visitor), common, stream, watch).await;
            }
            Err(error) => tracing::debug!(%error, "a handshake of a peer failed"),
        }
    }

    fn answer(&self, turn: &mut Turn, form: Form, body: Result<&[u8], &ApiError>) {
        let view = self.0.view();
        let date = self.0.date.get();
        let mut writer = self.0.writer(turn, &view, &date, form);
        match body {
            Ok(body) => writer.respond(Status::Ok, "application/octet-stream", body, &[]),
            Err(error) => writer.error(error),
        }
    }

    fn health(&self, writer: &mut Writer<'_>) {
        match self.0.unready() {
            None => writer.respond(Status::Ok, "text/plain", b"ok", &[]),
            Some(why) => {
                writer.respond(
                    Status::ServiceUnavailable,
                    "text/plain",
                    why.as_bytes(),
                    &[],
                );
            }
        }
    }

    async fn elsewhere(&self, link: &Link, parts: Vec<(CoreId, Vec<u8>)>) -> Option<Parts> {
        self.0.counters.peer_frames_hopped.add(1);
        let frames = self.0.serve_parts(link, parts).await;
        let whole = frames.iter().all(|frame| !frame.malformed);
        whole.then(|| {
            let answers = frames.into_iter();
            answers.map(|frame| (frame.core, frame.answer)).collect()
        })
    }
}

type Parts = Vec<(CoreId, Vec<u8>)>;

/// The sender's core and its number of cores, behind [`OPERATIONS_PATH`].
fn sender(path: &[u8]) -> Option<(CoreId, CoreCount)> {
    let text = std::str::from_utf8(path.strip_prefix(OPERATIONS_PATH.as_bytes())?).ok()?;
    let (core, cores) = text.split_once('/')?;
    let cores = CoreCount::new(cores.parse().ok()?)?;
    let core: u16 = core.parse().ok()?;
    (usize::from(core) < cores.get()).then(|| (CoreId::new(core), cores))
}

fn asks_for_health(head: &Head<'_>) -> bool {
    head.path == HEALTH_PATH && matches!(head.method, Method::Get | Method::Head)
}

fn malformed() -> ApiError {
    ApiError::bad_request("malformed peer frame")
}

impl Service for PeerService {
    type Job = (PeerJob, Form, Option<Begun>);
    type Link = Link;

    fn turn(&self) -> Turn {
        self.0.turn()
    }

    /// Peers show the cluster's secret; people show that, or who they are.
    fn admit(&self, link: &Link, head: &Head<'_>) -> Entry {
        let core = &self.0;
        if head.path != MEMBERSHIP_PATH.as_bytes() {
            core.stir();
        }
        if let Err(expelled) = core.door.check_certificates(&link.visitor) {
            return expelled;
        }
        if asks_for_health(head) {
            return Entry::Open;
        }
        let token = &core.dialing.access.borrow().token;
        let is_peer = match token.is_set() {
            true => token.admits(head.authorization),
            // A certificate of a node, or nothing that anybody here has to show.
            false => link.visitor.is_encrypted() || !core.door.security().refuses_unknown_peers(),
        };
        let drains = head.path == DRAIN_PATH.as_bytes();
        if is_peer && (token.is_set() || !drains) {
            return Entry::Granted;
        }
        if drains {
            let admin = Some(Scope::Admin);
            return core.door.admit(&link.visitor, head.authorization, admin);
        }
        core.counters.peer_unauthorized.add(1);
        Entry::Denied(ApiError::unauthorized())
    }

    async fn verify(&self, link: &Link, authorization: Vec<u8>) {
        self.0.verify(link, authorization).await;
    }

    fn deny(&self, head: &Head<'_>, error: &ApiError, turn: &mut Turn) {
        turn.closes |= !head.keep_alive;
        self.answer(turn, Form::of(head), Err(error));
    }

    fn handle(
        &self,
        _link: &Link,
        head: &Head<'_>,
        body: Cow<'_, [u8]>,
        turn: &mut Turn,
    ) -> Option<Self::Job> {
        let core = &self.0;
        turn.closes |= !head.keep_alive;
        let form = Form::of(head);
        let mut serving = None;
        if asks_for_health(head) {
            let (view, date) = (core.view(), core.date.get());
            let mut writer = core.writer(turn, &view, &date, form);
            self.health(&mut writer);
            return None;
        }
        let job = match (head.method, head.path) {
            (Method::Post, path) if path.starts_with(OPERATIONS_PATH.as_bytes()) => {
                core.counters.peer_frames.add(1);
                serving = core.tracer.begin_remote_part(head.traceparent);
                match sender(path) {
                    Some((own, cores)) if cores == core.api.cores && own == core.api.core => {
                        let mut answer = std::mem::take(&mut turn.answers.scratch);
                        answer.clear();
                        let piece = core.meter.begin_lightly(Work::PeerFrames);
                        let now = core.meter.began_at(&piece);
                        let served = core.cluster.borrow_mut().serve(&body, now, &mut answer);
                        match served {
                            Ok(()) => self.answer(turn, form, Ok(&answer)),
                            Err(_) => self.answer(turn, form, Err(&malformed())),
                        }
                        if let Some(begun) = &serving {
                            let answer = served.is_ok().then_some(answer.len());
                            core.end_serving(begun, body.len(), answer);
                        }
                        turn.answers.scratch = answer;
                        core.meter.end(piece);
                        return None;
                    }
                    Some((own, cores)) if cores == core.api.cores => {
                        PeerJob::Elsewhere(own, body.into_owned())
                    }
                    Some(_) => PeerJob::Frame(body.into_owned()),
                    None => {
                        self.answer(turn, form, Err(&malformed()));
                        return None;
                    }
                }
            }
            (Method::Post, path) if path == MEMBERSHIP_PATH.as_bytes() => {
                PeerJob::Membership(body.into_owned())
            }
            (Method::Post, path) if path == DRAIN_PATH.as_bytes() => PeerJob::Drain,
            (Method::Get, path) if path == KEYS_PATH.as_bytes() => {
                match browse::plan(head.query, form.connection) {
                    Ok(request) => PeerJob::Keys(request),
                    Err(error) => {
                        self.answer(turn, form, Err(&error));
                        return None;
                    }
                }
            }
            _ => {
                self.answer(turn, form, Err(&ApiError::not_found("no such route")));
                return None;
            }
        };
        Some((job, form, serving))
    }

    fn refuse(&self, error: &ApiError, head_only: bool, turn: &mut Turn) {
        turn.closes = true;
        self.answer(turn, Form::last(head_only), Err(error));
    }

    async fn settle(&self, _link: &Link, _turn: &mut Turn) {}

    /// The frame once more for the cores it goes to, and their answers.
    fn weight(&self, (job, ..): &Self::Job) -> usize {
        match job {
            PeerJob::Frame(frame) | PeerJob::Elsewhere(_, frame) => 3 * frame.len(),
            PeerJob::Membership(message) => message.len(),
            PeerJob::Keys(request) => request.weight() * self.0.api.cores.get(),
            PeerJob::Drain => 0,
        }
    }

    async fn run(&self, link: &Link, (job, form, serving): Self::Job, turn: &mut Turn) {
        let frame_len = job.frame_len();
        let body = match job {
            PeerJob::Frame(frame) => match message::split(&frame, self.0.api.cores) {
                Err(_) => Err(malformed()),
                Ok(split) => match self.elsewhere(link, split.parts).await {
                    None => Err(malformed()),
                    Some(answers) => message::join(&split.order, &answers).map_err(|_| malformed()),
                },
            },
            PeerJob::Elsewhere(core, frame) => {
                match self.elsewhere(link, vec![(core, frame)]).await {
                    Some(answers) => {
                        Ok(answers.into_iter().flat_map(|(_, answer)| answer).collect())
                    }
                    None => Err(malformed()),
                }
            }
            PeerJob::Membership(message) => {
                let (reply, taker) = handoff();
                let message = ControlMessage::Membership(message, reply);
                let _ = self.0.control.send(message).await;
                match taker.await {
                    Some(reply) => Ok(reply),
                    None => Err(ApiError::bad_request("malformed membership message")),
                }
            }
            PeerJob::Drain => {
                tracing::info!("asked to drain");
                self.0.draining.store(true, Ordering::Relaxed);
                let _ = self.0.control.send(ControlMessage::Drain).await;
                let date = self.0.date.get();
                let view = self.0.view();
                let mut writer = self.0.writer(turn, &view, &date, form);
                writer.respond(Status::Ok, "text/plain", b"draining", &[]);
                return;
            }
            PeerJob::Keys(request) => {
                self.0.peer_listings.acquire().await;
                let scans = self.0.browse_here(link, &request).await;
                let (keys, truncated) = request.merge(scans);
                self.0.peer_listings.release();
                let mut body = Vec::new();
                let listed = keys.iter().map(|key| &**key);
                keys::encode(truncated, listed, KEYS_BYTES_MAX, &mut body);
                Ok(body)
            }
        };
        self.answer(turn, form, body.as_ref().map(Vec::as_slice));
        if let Some(begun) = &serving {
            let answer = body.as_ref().ok().map(Vec::len);
            self.0.end_serving(begun, frame_len, answer);
        }
    }
}

/// Asks one node for its keys; nothing when it does not answer.
pub async fn keys_of(
    dialing: Dialing,
    address: Arc<str>,
    request: &browse::Request,
) -> Option<KeyScan> {
    let mut client = Client::new(dialing, address, None);
    let target = format!("{KEYS_PATH}?{}", request.query());
    let head = client.head("GET", &target, 0);
    let body = client.exchange(head).await.ok()?;
    let (truncated, keys) = keys::decode(&body)?;
    Some(request.found_elsewhere(keys, truncated))
}
