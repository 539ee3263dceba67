//! The management listener: health, metrics and the state of the cluster, for kubelets
//! and monitoring.
//!
//! Runs on the control thread, beside the data cores, on the same connection code as
//! the client listener; it reads what the cores count and never waits for them.
//!
//! When it has as many connections as it may, the one that has been idle for longest is
//! closed for a new one, so that those who hold connections without using them do not keep
//! a kubelet out; only when none is idle the new one is refused.

mod cluster;
mod dashboard;
mod errands;
pub mod routes;
mod stats;

use std::borrow::Cow;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::api::owners::OwnerIds;
use crate::api::{ApiError, NodeFacts, Turn, Writer, key_text};
use crate::auth::Scope;
use crate::buffers::{Buffers, Pool};
use crate::cluster::View;
use crate::hash::{CoreCount, PartitionId};
use crate::http::{Head, HttpDate, Method, Query, Status};
use crate::node::connection::{self, Common, Entry, Form, Limits, Service};
use crate::node::control::{Control, Watch};
use crate::node::core::{Message, wall_time};
use crate::node::door::Visitor;
use crate::node::errand::Errand;
use crate::node::readiness::Readiness;
use crate::node::rest::Rest;
use crate::node::security::Entrance;
use crate::operations::Exchange;
use crate::runtime::{self, Deadlines, Giver, Listener, Sender, Stream, Timeouts};
use crate::settings::Settings;
use crate::telemetry::cluster::ClusterCounts;
use crate::telemetry::prometheus::{Exposition, Format};
use crate::telemetry::snapshot::{NodeCounts, Snapshot, Sources};
use crate::tls::{self, Handshakes};
use cluster::{DistMetrics, Heartbeat, Members, Pace, Rebalance, Ring};
use dashboard::Dashboard;
use errands::Errands;
use routes::{Operation, Route};
use stats::{Config, Cores, Partitions, Stats};

/// How many management connections may be open.
pub const CONNECTIONS_MAX: usize = 256;

/// What their requests and answers may take together while under way.
const BUFFER_BYTES_MAX: usize = 32 << 20;

/// Between two heartbeat events.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

const TICK: Duration = Duration::from_millis(100);

/// Between two ticks at most while nobody asks for anything. The control thread wakes more
/// often by itself, and has this tick come along.
const REST: Duration = Duration::from_secs(2);

/// What an answer depends on besides its target.
const VARIES: &[(&str, &[u8])] = &[("Vary", b"Accept")];

/// What the management listener serves.
pub struct Management {
    /// About the node.
    pub facts: Arc<NodeFacts>,
    /// What the node counts.
    pub sources: Arc<Sources>,
    /// Set once the node is going to leave.
    pub draining: Arc<AtomicBool>,
    /// Whether the node has its data.
    pub readiness: Arc<Readiness>,
    /// The cluster.
    pub control: Rc<Control>,
    /// What this node was started with.
    pub settings: Arc<Settings>,
    /// The cores.
    pub mailboxes: Vec<Sender<Message>>,
}

struct Serving {
    management: Management,
    dashboard: Dashboard,
    exposition: Exposition,
    errands: Errands,
    started: Instant,
    rest: Rest,
    deadlines: Rc<Deadlines>,
    handshakes: Rc<Handshakes>,
    pace: Cell<Pace>,
    date: Cell<HttpDate>,
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

impl Management {
    /// Serves until the process ends.
    pub async fn run(self, listener: Listener, limits: Limits, timeouts: Timeouts) {
        let deadlines = Deadlines::new(timeouts);
        let serving = Rc::new(Serving {
            exposition: Exposition::new(Arc::clone(&self.sources)),
            errands: Errands::new(self.mailboxes.clone()),
            started: Instant::now(),
            rest: Rest::following(Rc::clone(self.control.follower())),
            management: self,
            dashboard: Dashboard::new(),
            deadlines: Rc::clone(&deadlines),
            handshakes: Handshakes::new(CONNECTIONS_MAX),
            pace: Cell::default(),
            date: Cell::new(HttpDate::at(unix_seconds())),
        });
        let common = Common::new(limits, Buffers::new(Pool::new(BUFFER_BYTES_MAX)));
        runtime::spawn(tick(Rc::clone(&serving)));
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    serving.stir();
                    let crowded = deadlines.open() >= CONNECTIONS_MAX;
                    if deadlines.make_room(CONNECTIONS_MAX) {
                        let watch = deadlines.watch(stream.aborter());
                        let (serving, common) = (Rc::clone(&serving), Rc::clone(&common));
                        runtime::spawn(serving.serve(stream, watch, common));
                    } else {
                        let counters = &serving.management.sources.security;
                        counters.management_connections_refused.count();
                    }
                    if crowded {
                        // Those that were cut are to go before more come.
                        runtime::yield_to_io().await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the management listener");
                    runtime::sleep(TICK).await;
                }
            }
        }
    }
}

async fn tick(serving: Rc<Serving>) {
    let started = Instant::now();
    let mut rest = None;
    loop {
        match rest {
            None => runtime::sleep(TICK).await,
            Some(rest) => serving.rest.alarm().pause(rest).await,
        }
        serving.rest.end();
        serving.deadlines.end_rest();
        serving.look_at_clock();
        serving.publish();
        let missing = |core: &ClusterCounts| core.partitions_missing;
        let missing = serving.counts().iter().map(missing).sum();
        let mut pace = serving.pace.get();
        pace.note(missing, Instant::now());
        serving.pace.set(pace);
        serving
            .deadlines
            .sweep(started.elapsed().as_millis() as u64);
        let next = serving.deadlines.next().unwrap_or(REST);
        rest = serving.rest.begin(REST, || (missing == 0).then_some(next));
        if let Some(rest) = rest {
            serving.deadlines.rest(rest, serving.rest.alarm());
        }
    }
}

/// The head of an answer without a length: it ends with the connection.
const EVENTS_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
    Cache-Control: no-store\r\nX-Accel-Buffering: no\r\nConnection: close\r\n\r\n";

/// What events begin with: how long a client waits before it connects anew.
const EVENTS_START: &[u8] = b"retry: 5000\n\n";

impl Serving {
    /// Somebody asks for something. Call it before anything goes by the time that ticks keep.
    fn stir(&self) {
        if self.rest.ends_now() {
            self.look_at_clock();
        }
    }

    fn look_at_clock(&self) {
        self.date.set(HttpDate::at(unix_seconds()));
        self.management.control.door().set_now(wall_time());
    }

    async fn serve(self: Rc<Self>, stream: Stream, watch: runtime::Watch, common: Rc<Common>) {
        let security = self.management.control.door().security();
        match security.tls(Entrance::Management) {
            None => {
                let told = self.link(Visitor::in_the_clear(Entrance::Management));
                connection::serve(self, told, common, stream, watch).await;
            }
            Some(tls) => match tls::accept(stream, tls, &self.handshakes, &watch).await {
                Ok(stream) => {
                    let told =
                        self.link(Visitor::over_tls(Entrance::Management, &stream, &security));
                    connection::serve(self, told, common, stream, watch).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a handshake on the management listener failed");
                }
            },
        }
    }

    fn link(&self, visitor: Visitor) -> Told {
        Told {
            members: self.management.control.watch(),
            visitor,
            heartbeat: Cell::new(Instant::now()),
        }
    }

    /// Copies what this thread counts and knows to where it is read.
    fn publish(&self) {
        let control = &self.management.control;
        self.management.sources.publish(NodeCounts::of(
            &control.view(),
            control.counters(),
            self.is_draining(),
            self.management.readiness.bootstrapping(),
        ));
        let counters = &self.management.sources.security;
        let displaced = self.deadlines.displaced();
        counters.management_connections_displaced.set(displaced);
        let refused = self.management.control.door().refused();
        counters.management_unauthorized.set(refused.unauthorized);
        counters.management_forbidden.set(refused.forbidden);
        counters.management_verifications_refused.set(refused.busy);
        let handshakes = self.handshakes.counts();
        counters.management_handshakes.set(handshakes.completed);
        counters.management_handshakes_failed.set(handshakes.failed);
        let timed_out = handshakes.timed_out;
        counters.management_handshakes_timed_out.set(timed_out);
        counters
            .management_handshakes_refused
            .set(handshakes.refused);
    }

    fn counts(&self) -> Vec<ClusterCounts> {
        self.management.sources.cluster_counts()
    }

    fn snapshot(&self) -> Snapshot {
        self.publish();
        self.management.sources.snapshot()
    }

    fn writer<'a>(
        &'a self,
        turn: &'a mut Turn,
        view: &'a View,
        date: &'a HttpDate,
        form: Form,
    ) -> Writer<'a> {
        Writer {
            answers: &mut turn.answers,
            facts: &self.management.facts,
            view,
            date,
            connection: form.connection,
            head_only: form.head_only,
        }
    }

    fn is_draining(&self) -> bool {
        self.management.draining.load(Ordering::Relaxed)
    }

    fn health(&self, writer: &mut Writer<'_>) {
        let unready = if self.is_draining() {
            "draining"
        } else if self.management.readiness.bootstrapping() {
            "bootstrapping"
        } else {
            writer.respond(Status::Ok, "text/plain", b"ok", &[]);
            return;
        };
        let body = unready.as_bytes();
        writer.respond(Status::ServiceUnavailable, "text/plain", body, &[]);
    }

    fn metrics(&self, accept: Option<&[u8]>, writer: &mut Writer<'_>) {
        self.publish();
        let format = Format::accepted(accept);
        match self.exposition.render(format) {
            Ok(text) => {
                writer.respond(Status::Ok, format.media_type(), text.as_bytes(), VARIES);
            }
            Err(_) => writer.error(&ApiError::internal("the metrics could not be written")),
        }
    }

    fn owners(&self, query: Option<&[u8]>, writer: &mut Writer<'_>) {
        #[derive(serde::Serialize)]
        struct Owners<'a> {
            key: Cow<'a, str>,
            owners: OwnerIds<'a>,
        }
        let raw = Query::first(query, b"key").unwrap_or_default();
        match crate::api::key::check(&raw) {
            Ok(()) => {
                let owners = OwnerIds::of(writer.view, &raw);
                let key = key_text(&raw);
                writer.json(Status::Ok, &Owners { key, owners });
            }
            Err(error) => writer.error(&error),
        }
    }

    /// Has the whole cluster forget what was written until now.
    async fn clear(&self) -> Result<Cleared, ApiError> {
        let control = &self.management.control;
        if !control.view().joined() {
            return Err(ApiError::joining());
        }
        if self.is_draining() {
            return Err(ApiError::unavailable("node is draining; ask a peer"));
        }
        let version = self.errands.stamp().await?;
        if !control.clear(version) {
            return Err(ApiError::internal(
                "the cluster was cleared by a node whose clock is ahead of this one's; ask that one",
            ));
        }
        tracing::warn!(
            version = version.get(),
            "asked to clear the cluster: everything written until now is forgotten"
        );
        // The views are in the mailboxes: behind them nothing is seen any more. It is done
        // even if nobody can be waited for.
        let _ = self.errands.stamp().await;
        Ok(Cleared {
            cleared: true,
            version: version.get(),
        })
    }

    fn start(&self, errand: fn(Giver<()>) -> Errand, writer: &mut Writer<'_>) {
        match self.errands.start(errand) {
            Ok(()) => writer.json(Status::Accepted, &Accepted { accepted: true }),
            Err(error) => writer.error(&error),
        }
    }

    fn answer<T: serde::Serialize>(
        &self,
        answer: Result<T, ApiError>,
        form: Form,
        turn: &mut Turn,
    ) {
        let (date, view) = (self.date.get(), self.management.control.view());
        let mut writer = self.writer(turn, &view, &date, form);
        match answer {
            Ok(body) => writer.json(Status::Ok, &body),
            Err(error) => writer.error(&error),
        }
    }

    fn event(&self, turn: &mut Turn, name: &str, body: &impl serde::Serialize) {
        let out = &mut turn.answers.bytes;
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\ndata: ");
        if simd_json::serde::to_writer(&mut *out, body).is_err() {
            out.extend_from_slice(b"{}");
        }
        out.extend_from_slice(b"\n\n");
    }

    fn heartbeat(&self, turn: &mut Turn) {
        let counters = self.management.control.counters();
        let heartbeat = Heartbeat::of(&counters, &self.counts());
        self.event(turn, "heartbeat", &heartbeat);
    }
}

/// What the cores have to be asked for.
pub enum Job {
    /// That the cluster forgets what was written.
    Clear,
    /// The keys that are used most.
    HotKeys,
    /// The keys of partitions from this one on.
    Keys(PartitionId),
    /// The digests of partitions from this one on.
    Digests(PartitionId),
}

/// What it takes to answer with a page, whose beginning the query tells.
fn page(
    job: fn(PartitionId) -> Job,
    query: Option<&[u8]>,
    form: Form,
    writer: &mut Writer<'_>,
) -> Option<(Job, Form)> {
    match errands::cursor(query) {
        Ok(from) => Some((job(from), form)),
        Err(error) => {
            writer.error(&error);
            None
        }
    }
}

/// What an answer says once its work is under way.
#[derive(serde::Serialize)]
struct Accepted {
    accepted: bool,
}

/// The answer to `POST /clear`.
#[derive(serde::Serialize)]
struct Cleared {
    cleared: bool,
    /// What was written up to this version is forgotten.
    version: u64,
}

/// What a connection is told of the cluster.
pub struct Told {
    members: Watch,
    /// Who speaks here.
    visitor: Visitor,
    /// When the next heartbeat is due.
    heartbeat: Cell<Instant>,
}

impl Service for Serving {
    type Job = (Job, Form);
    type Link = Told;

    fn turn(&self) -> Turn {
        Turn::new(Exchange::new(CoreCount::ONE))
    }

    fn admit(&self, told: &Told, head: &Head<'_>) -> Entry {
        self.stir();
        let scope = routes::scope(head.method, head.path);
        let door = self.management.control.door();
        door.admit(&told.visitor, head.authorization, scope)
    }

    async fn verify(&self, told: &Told, authorization: Vec<u8>) {
        let door = self.management.control.door();
        door.verify(&told.visitor, &authorization).await;
    }

    fn deny(&self, head: &Head<'_>, error: &ApiError, turn: &mut Turn) {
        turn.closes |= !head.keep_alive;
        let (date, view) = (self.date.get(), self.management.control.view());
        let form = Form::of(head);
        self.writer(turn, &view, &date, form).error(error);
    }

    fn handle(
        &self,
        _told: &Told,
        head: &Head<'_>,
        _body: Cow<'_, [u8]>,
        turn: &mut Turn,
    ) -> Option<Self::Job> {
        turn.closes |= !head.keep_alive;
        let control = &self.management.control;
        let (date, view) = (self.date.get(), control.view());
        let form = Form::of(head);
        let mut writer = self.writer(turn, &view, &date, form);
        let operation = match routes::route(head.method, head.path) {
            Route::Found { .. } if head.cross_origin && head.method == Method::Post => {
                writer.error(&ApiError::cross_origin());
                return None;
            }
            Route::Found { operation, .. } => operation,
            Route::WrongMethod { allow } => {
                writer.error(&ApiError::method_not_allowed(allow));
                return None;
            }
            Route::Unknown => {
                writer.error(&ApiError::not_found("no such route"));
                return None;
            }
        };
        match operation {
            Operation::Dashboard => self.dashboard.answer(&mut writer),
            Operation::Health => self.health(&mut writer),
            Operation::Liveness => writer.respond(Status::Ok, "text/plain", b"ok", &[]),
            Operation::Members => writer.json(Status::Ok, &Members::of(&view)),
            Operation::Ring => writer.json(Status::Ok, &Ring::of(&view)),
            Operation::Heartbeat => {
                let heartbeat = Heartbeat::of(&control.counters(), &self.counts());
                writer.json(Status::Ok, &heartbeat);
            }
            Operation::Rebalance => {
                let draining = self.is_draining();
                let rebalance = Rebalance::of(&view, &self.counts(), &self.pace.get(), draining);
                writer.json(Status::Ok, &rebalance);
            }
            Operation::DistMetrics => {
                let metrics = DistMetrics {
                    snapshot: &self.snapshot(),
                    view: &view,
                };
                writer.json(Status::Ok, &metrics);
            }
            Operation::Owners => self.owners(head.query, &mut writer),
            Operation::Stats => writer.json(Status::Ok, &Stats(&self.snapshot())),
            Operation::Cores => {
                let snapshot = self.snapshot();
                let uptime = self.started.elapsed().as_secs_f64();
                writer.json(Status::Ok, &Cores::of(&snapshot, wall_time().0, uptime));
            }
            Operation::Config => {
                let snapshot = self.snapshot();
                let settings = &self.management.settings;
                writer.json(Status::Ok, &Config::of(settings, &snapshot, &view));
            }
            Operation::Partitions => {
                let counts = self.counts();
                let missing = counts.iter().map(|core| core.partitions_missing).sum();
                writer.json(Status::Ok, &Partitions::of(&view, missing));
            }
            Operation::Clear => return Some((Job::Clear, form)),
            Operation::HotKeys => return Some((Job::HotKeys, form)),
            Operation::Keys => return page(Job::Keys, head.query, form, &mut writer),
            Operation::Digests => return page(Job::Digests, head.query, form, &mut writer),
            Operation::Evict => self.start(Errand::Evict, &mut writer),
            Operation::Expire => self.start(Errand::Expire, &mut writer),
            Operation::Metrics => self.metrics(head.accept, &mut writer),
            Operation::Events => {
                turn.closes = true;
                turn.answers.bytes.extend_from_slice(EVENTS_HEAD);
                if head.method != Method::Head {
                    turn.answers.bytes.extend_from_slice(EVENTS_START);
                    turn.streams = true;
                }
            }
        }
        None
    }

    /// Members at once and on each change, the heartbeat at once and each second.
    async fn next_part(&self, told: &Told, turn: &mut Turn) {
        let due = told.heartbeat.get();
        let mut pause = pin!(runtime::sleep(
            due.saturating_duration_since(Instant::now())
        ));
        let changed = poll_fn(|context| match told.members.poll_changed(context) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => pause.as_mut().poll(context).map(|()| false),
        })
        .await;
        self.stir();
        let door = self.management.control.door();
        if !door.still_admits(&told.visitor, Some(Scope::Read)) {
            turn.streams = false;
        } else if changed {
            let view = self.management.control.view();
            self.event(turn, "members", &Members::of(&view));
        } else {
            told.heartbeat.set(Instant::now() + EVENT_INTERVAL);
            self.heartbeat(turn);
        }
    }

    fn refuse(&self, error: &ApiError, head_only: bool, turn: &mut Turn) {
        self.stir();
        turn.closes = true;
        let (date, view) = (self.date.get(), self.management.control.view());
        let form = Form::last(head_only);
        self.writer(turn, &view, &date, form).error(error);
    }

    async fn settle(&self, _link: &Told, _turn: &mut Turn) {}

    async fn run(&self, _link: &Told, (job, form): Self::Job, turn: &mut Turn) {
        match job {
            Job::Clear => self.answer(self.clear().await, form, turn),
            Job::HotKeys => self.answer(self.errands.hot_keys().await, form, turn),
            Job::Keys(from) => self.answer(self.errands.keys(from).await, form, turn),
            Job::Digests(from) => self.answer(self.errands.digests(from).await, form, turn),
        }
    }
}
