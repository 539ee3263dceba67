//! From settings to a serving node, and from a signal to a clean end.
//!
//! ```text
//! listen to signals -> plan cores -> bind every socket -> start threads -> all Ready -> "serving"
//!     -> first SIGTERM or SIGINT: writes are refused -> HandedOver, or most of the deadline
//!     -> goodbye to the other nodes -> Stop to all cores -> all Drained, or the deadline
//!     -> Exit to all cores -> all Ended -> exit code 0
//! ```
//!
//! A second signal ends the process at once with 128 + its number. A core, or the
//! control thread, that ends by itself ends the process with a failure: a node without
//! one of its shards, or with a view that never changes again, must not go on as if
//! nothing had happened.
//!
//! The calling thread, the main thread, waits for events and does nothing else, so it
//! is never in the way of a data core. The control thread is another
//! ([`super::control`]).

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::connection::Limits;
use super::control::{Control, ControlMessage, ControlParts};
use super::core::{
    Core, Dial, Event, LATE_MAX, Message, Parts, SCANS_MAX, Thread, mailbox_capacity, wall_time,
};
use super::measuring::SlowRequests;
use super::peering;
use super::readiness::Readiness;
use super::security::{Audience, Entrance, Loaded, Loader, Security, Wake, Watcher};
use super::spread::Spread;
use super::verifying::Verifiers;
use crate::api::{Api, NodeFacts};
use crate::auth::secret::Sealer;
use crate::buffers::Pool;
use crate::clock::Origin;
use crate::cluster::coordinator::{Config, Lane};
use crate::cluster::hints::HintLimits;
use crate::cluster::membership::{self, Identity, MEMBERS_MAX, Membership};
use crate::cluster::view::{Placements, Views};
use crate::cluster::{Coordinator, LocalStore};
use crate::hash::{CoreCount, CoreId};
use crate::http;
use crate::mgmt::{self, Management};
use crate::peer;
use crate::runtime::{self, CorePlan, DriverReport, Listener, Receiver, Steered, Timeouts};
use crate::settings::{ListenAddr, Settings};
use crate::store::{Shard, ShardConfig};
use crate::telemetry::cluster::SharedCounts;
use crate::telemetry::counters::CoreCounters;
use crate::telemetry::logs;
use crate::telemetry::otlp::Exporter;
use crate::telemetry::security::SecurityCounters;
use crate::telemetry::snapshot::{ProcessFacts, Sources};

/// What the process is taken to have when no limit can be read anywhere.
const MEMORY_FALLBACK: u64 = 1 << 30;

/// Descriptors of one thread that are no connections: its ring, listeners, wake-ups.
const DESCRIPTORS_PER_THREAD: usize = 16;

/// Descriptors of the process: what it logs to, signals, files that are re-read, a fetch
/// from the issuer.
const DESCRIPTORS_OF_PROCESS: usize = 64;

/// How long a node that was just killed may still hold its address.
const PREDECESSOR_GRACE: Duration = Duration::from_secs(1);
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(10);

/// Messages of cores that wait for the control thread.
const CONTROL_MAILBOX: usize = 4096;

const VIRTUAL_NODES: u32 = 64;
/// The share of the shutdown deadline that handing over may take; the rest is for saying
/// goodbye and for the connections of clients.
const HAND_OVER_PERCENT: u32 = 80;

/// How long a stopping node waits until the others know.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// How many of the largest frames the peer connections of a core may always hold: one,
/// with what carrying it to other cores takes.
const PEER_FRAMES_BUFFERED: usize = 5;

const LISTEN_BACKLOG: u16 = 4096;

/// Why a node did not start: one line, for the person who started it.
#[derive(Debug)]
pub struct StartError(String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

fn cannot(what: impl std::fmt::Display) -> StartError {
    StartError(what.to_string())
}

/// Checks that the files the settings name can be used.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn check(settings: &Settings) -> Result<(), StartError> {
    load(settings)?;
    Exporter::prepare(&settings.telemetry, &Arc::default()).map_err(cannot)?;
    Ok(())
}

fn load(settings: &Settings) -> Result<Loaded, StartError> {
    let sealer = Sealer::new().ok_or_else(|| cannot("the system gives no randomness"))?;
    let in_cluster = !settings.seeds.is_empty();
    Loader::new(settings.security.clone(), sealer, in_cluster)
        .load()
        .map_err(cannot)
}

/// Runs a node until it is told to stop.
///
/// # Errors
///
/// When it cannot start as the settings ask; nothing was served then.
pub fn run(settings: &Settings) -> Result<ExitCode, StartError> {
    let (events, inbox) = mpsc::channel();
    listen_for_signals(events.clone())?;
    let loaded = load(settings)?;
    let security = Arc::clone(&loaded.security);
    let export_counters = Arc::default();
    let (exporter, tracing) =
        Exporter::prepare(&settings.telemetry, &export_counters).map_err(cannot)?;
    let security_counters = Arc::new(SecurityCounters::default());
    let verifiers = Verifiers::start(&security_counters)
        .map_err(|error| cannot(format!("cannot start a thread: {error}")))?;
    let plan = plan_cores(settings)?;
    let cores = CoreCount::new(plan.cpus.len())
        .ok_or_else(|| cannot(format!("cannot run {} cores", plan.cpus.len())))?;
    let client_listeners = bind("HYPERCACHE_API_ADDR", &settings.api_addr, cores.get())?;
    let steered = runtime::steer(&client_listeners[0], cores.get() as u16, Steered::Chosen);
    if let Err(error) = steered {
        tracing::warn!(%error, "clients cannot choose their core by source port");
    }
    let mgmt_listener = bind("HYPERCACHE_MGMT_ADDR", &settings.mgmt_addr, 1)?
        .pop()
        .ok_or_else(|| cannot("no management listener"))?;
    let peer_listeners = bind_peers(&settings.dist_addr, cores.get())?;
    let client_address = local_address(&client_listeners[0])?;
    let peer_address = local_address(&peer_listeners[0])?;
    let mgmt_address = local_address(&mgmt_listener)?;
    raise_descriptor_limit(descriptors_max(settings.connections, cores));

    let process_limit = runtime::memory_limit_bytes();
    let memory_limit = settings
        .memory_limit
        .bytes_of(process_limit.unwrap_or(MEMORY_FALLBACK));
    let facts = Arc::new(node_facts(settings));
    let identity = identity(settings, client_address, peer_address);
    let now = wall_time();
    let membership = membership(settings, identity, now.0);
    let readiness = Arc::new(Readiness::new(cores.get()));
    let (control_sender, control_inbox) = runtime::mailbox(CONTROL_MAILBOX);
    let dial = Dial {
        timeout: settings.peer_timeout,
        access: security.peer_access.clone(),
    };
    let boot = (now.0 >> 8) as u8 ^ now.0 as u8;
    let origin = Origin::of(&facts.node_id, boot);
    let mut views = Views::new(settings.replication as usize, VIRTUAL_NODES);
    let view = Arc::new(views.of(&membership, &mut Placements::default()));
    let cluster_counts: Vec<SharedCounts> = cores.cores().map(|_| Default::default()).collect();
    let counters: Vec<Arc<CoreCounters>> = cores.cores().map(|_| Arc::default()).collect();
    let depth = settings.mailbox_depth;
    let (mailboxes, receivers): (Vec<_>, Vec<_>) = cores
        .cores()
        .map(|_| runtime::mailbox(mailbox_capacity(cores.get(), depth)))
        .unzip();
    let connections = Arc::new(AtomicUsize::new(0));
    let spread = Arc::new(Spread::new(cores.get()));
    let buffers = Pool::new(settings.buffer_limit.0 as usize);
    let draining = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for ((((core, listener), peer_listener), inbox), counters) in cores
        .cores()
        .zip(client_listeners)
        .zip(peer_listeners)
        .zip(receivers)
        .zip(&counters)
    {
        let mut shard_config = shard_config(settings, core, cores, memory_limit);
        let copies_bytes_max = copies_bytes_max(settings, cores, shard_config.bytes_max);
        shard_config.bytes_max -= copies_bytes_max;
        let shard = Shard::new(shard_config)
            .map_err(|error| cannot(format!("HYPERCACHE_MEMORY_LIMIT: {error}")))?;
        let tombstone_ttl_ms = settings.tombstone_ttl.as_millis() as u64;
        let api = Api {
            facts: Arc::clone(&facts),
            core,
            cores,
        };
        let cluster = Coordinator::new(
            cluster_config(settings, core, cores, copies_bytes_max),
            LocalStore::new(shard, origin, tombstone_ttl_ms),
            Arc::clone(&view),
            now.0 ^ (core.index() as u64) << 48 ^ u64::from(std::process::id()) << 32,
            now,
        );
        let parts = Parts {
            api,
            cluster,
            view: Arc::clone(&view),
            control: control_sender.clone(),
            dial: dial.clone(),
            cluster_counts: cluster_counts[core.index()].clone(),
            peer_limits: peer_limits(settings),
            readiness: Arc::clone(&readiness),
            security: Arc::clone(&security),
            verifiers: verifiers.clone(),
            handshakes_max: settings.security.handshakes.div_ceil(cores.get()),
            draining: Arc::clone(&draining),
            mailboxes: mailboxes.clone(),
            mailbox_depth: depth,
            limits: limits(settings),
            buffers: Arc::clone(&buffers),
            peer_buffers_max: peer_buffers_max(settings, cores),
            timeouts: timeouts(settings),
            connections: Arc::clone(&connections),
            connections_max: settings.connections,
            spread: Arc::clone(&spread),
            counters: Arc::clone(counters),
            tracing: tracing.clone(),
            slow_requests: SlowRequests {
                threshold: settings.slow_request,
                logs_per_second: settings.slow_request_logs,
            },
            events: events.clone(),
        };
        let cpu = plan.cpus[core.index()];
        let choice = settings.io_driver;
        let listeners = (listener, peer_listener);
        threads.push(start_core(core, cpu, choice, parts, listeners, inbox)?);
    }

    let drivers = wait_until_ready(&inbox, cores)?;
    let report = &drivers[0];
    let process = ProcessFacts {
        node_id: facts.node_id.clone(),
        version: env!("CARGO_PKG_VERSION"),
        driver: report.kind.name(),
        driver_reason: report.fallback_reason.clone().unwrap_or_default(),
        cores: cores.get(),
        pinned: plan.pinned,
        cores_reason: plan.reason.to_string(),
        cpus: plan.cpu_list(),
        cpu_quota: plan.quota_cores,
        core_cpus: plan.cpus.clone(),
        memory_limit_bytes: memory_limit,
        process_limit_bytes: process_limit.unwrap_or(0),
        capacity: settings.capacity as u64,
        connection_bytes_max: limits(settings).connection_bytes_max() as u64,
    };
    let inboxes = mailboxes.clone();
    let sources = Arc::new(Sources {
        facts: process.clone(),
        cores: counters,
        cluster: cluster_counts.clone(),
        mailbox_depths: Box::new(move || inboxes.iter().map(runtime::Sender::len).collect()),
        security: Arc::clone(&security_counters),
        export: export_counters,
        buffers,
        node: Default::default(),
    });
    let control_parts = ControlParts {
        membership,
        views,
        view,
        mailboxes: mailboxes.clone(),
        dial,
        heartbeat: settings.heartbeat,
        readiness: Arc::clone(&readiness),
        cluster_counts,
        security: Arc::clone(&security),
        verifiers,
        events: events.clone(),
    };
    let exporter = exporter.map(|exporter| exporter.start(Arc::clone(&sources)));
    let exporter = exporter
        .transpose()
        .map_err(|error| cannot(format!("cannot start a thread: {error}")))?;
    start_management(ManagementParts {
        listener: mgmt_listener,
        limits: limits(settings),
        timeouts: timeouts(settings),
        choice: settings.io_driver,
        facts: Arc::clone(&facts),
        sources,
        draining: Arc::clone(&draining),
        readiness: Arc::clone(&readiness),
        control: control_parts,
        settings: Arc::new(settings.clone()),
        mailboxes: mailboxes.clone(),
        inbox: control_inbox,
        events,
    })?;
    tracing::info!(
        api = %client_address,
        mgmt = %mgmt_address,
        peer = %peer_address,
        node = %facts.node_id,
        version = process.version,
        driver = process.driver,
        driver_reason = %process.driver_reason,
        cores = process.cores,
        pinned = process.pinned,
        cores_reason = %process.cores_reason,
        cpus = %process.cpus,
        cpu_quota = %process.cpu_quota_text(),
        core_cpus = %process.core_cpus_text(),
        memory_limit_bytes = memory_limit,
        "serving"
    );
    warn_of_what_is_open(settings, &security);
    warn_of_too_little_memory(settings, memory_limit, process_limit);
    let audience = Audience {
        mailboxes: mailboxes.clone(),
        control: control_sender.clone(),
    };
    let watcher = Watcher::new(loaded, audience, security_counters);
    let watcher_waker = watcher.waker();
    watcher
        .start()
        .map_err(|error| cannot(format!("cannot start a thread: {error}")))?;

    let main = MainThread {
        inbox,
        control: control_sender,
        cores,
        mailboxes,
        draining,
        watcher: watcher_waker,
    };
    let code = main.until_stopped(settings.shutdown_timeout, threads);
    if let Some(exporter) = exporter {
        exporter.end();
    }
    Ok(code)
}

/// Says once what a stranger may do.
fn warn_of_what_is_open(settings: &Settings, security: &Security) {
    if security.policy.is_open() {
        tracing::warn!(
            "no authentication is configured: every client may read and write everything"
        );
    }
    let token = &security.peer_access.token;
    let has_plain_peers = security.tls(Entrance::Peer).is_none() || security.peers_in_the_clear;
    if has_plain_peers && security.refuses_unknown_peers() {
        tracing::warn!("no peer token is configured: peers are refused");
    } else if has_plain_peers && !token.is_set() && !settings.seeds.is_empty() {
        tracing::warn!("no peer token is configured: whoever reaches the peer listener may write");
    }
    let policy = &security.policy;
    let (api, mgmt) = (Entrance::Client, Entrance::Management);
    if policy.has_certificates() && security.clients(api).or(security.clients(mgmt)).is_none() {
        tracing::warn!("cert_identities are of no use: no authorities of clients are configured");
    }
    if policy.has_users()
        && policy.basic_needs_tls()
        && security.tls(api).or(security.tls(mgmt)).is_none()
    {
        tracing::warn!("users are of no use: passwords are not taken without TLS");
    }
    if security.peers_in_the_clear {
        tracing::warn!(
            "peers are served in the clear too: a step to HYPERCACHE_PEER_TLS_MODE=require"
        );
    }
}

fn plan_cores(settings: &Settings) -> Result<CorePlan, StartError> {
    let mut facts = runtime::read_facts()
        .map_err(|error| cannot(format!("cannot read which CPUs may be used: {error}")))?;
    facts.cpu_limit = settings.cpu_limit.map(f64::from);
    facts.override_cores = settings.cores;
    facts.exclusive_required = settings.require_exclusive_cpus;
    let plan = runtime::plan(&facts).map_err(cannot)?;
    if let Some(warning) = &plan.warning {
        tracing::warn!("{warning}");
    }
    Ok(plan)
}

/// Says when the kernel may end this process although every bound is kept.
fn warn_of_too_little_memory(settings: &Settings, items: u64, process: Option<u64>) {
    let [requests, hints] = [settings.buffer_limit.0, settings.hint_bytes.0];
    let needed = items.saturating_add(requests).saturating_add(hints);
    if process.is_some_and(|process| needed > process) {
        tracing::warn!(
            items_bytes = items,
            requests_bytes = requests,
            hints_bytes = hints,
            process_bytes = process,
            "items, requests under way and hints may together take more memory than there is"
        );
    }
}

/// How many descriptors may be open at once, in a cluster as large as may be.
fn descriptors_max(client_connections: usize, cores: CoreCount) -> u64 {
    let clients = client_connections + (LATE_MAX + 1) * cores.get();
    let peers = peering::CONNECTIONS_MAX + runtime::CUT_MAX;
    let management = mgmt::CONNECTIONS_MAX + runtime::CUT_MAX;
    let outgoing = (Lane::ALL.len() + SCANS_MAX) * MEMBERS_MAX;
    let per_core = peers + outgoing + DESCRIPTORS_PER_THREAD;
    let control = management + MEMBERS_MAX + DESCRIPTORS_PER_THREAD;
    (clients + per_core * cores.get() + control + DESCRIPTORS_OF_PROCESS) as u64
}

/// Asks for as many descriptors as may be open.
fn raise_descriptor_limit(wanted: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        let raised = setrlimit(Resource::Nofile, limit);
        if raised.is_err() || limit.current.is_some_and(|current| current < wanted) {
            tracing::warn!(
                limit = limit.current,
                wanted,
                "the limit on open files is lower than what connections of clients and of a large cluster may take"
            );
        }
    }
}

/// Binds `count` listeners that share one address, which no other process may be
/// using: without that check a second node would silently take half of the first
/// one's connections.
fn bind(setting: &str, address: &ListenAddr, count: usize) -> Result<Vec<TcpListener>, StartError> {
    let refuse =
        |error: io::Error| cannot(format!("{setting}={address}: cannot listen there: {error}"));
    let wanted = resolve(address).map_err(refuse)?;
    let first = free_address(wanted).map_err(refuse)?;
    (0..count)
        .map(|_| runtime::bind_reuseport(first, LISTEN_BACKLOG).map_err(refuse))
        .collect()
}

/// The address itself, with its port chosen, once nobody listens on it.
///
/// The kernel ends a killed process before it has let go of the sockets its rings
/// were using; its successor waits that long.
fn free_address(wanted: SocketAddr) -> io::Result<SocketAddr> {
    let deadline = Instant::now() + PREDECESSOR_GRACE;
    loop {
        match runtime::bind_alone(wanted) {
            Ok(alone) => return alone.local_addr(),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(PREDECESSOR_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

fn resolve(address: &ListenAddr) -> io::Result<SocketAddr> {
    match &address.host {
        None => Ok(SocketAddr::from((
            std::net::Ipv6Addr::UNSPECIFIED,
            address.port,
        ))),
        Some(host) => (host.as_str(), address.port)
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
    }
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener
        .local_addr()
        .map_err(|error| cannot(format!("a listener has no address: {error}")))
}

fn node_facts(settings: &Settings) -> NodeFacts {
    NodeFacts {
        node_id: settings.node_id.to_string(),
        read_consistency: settings.read_consistency,
        write_consistency: settings.write_consistency,
        batch_items_max: settings.batch_limit,
    }
}

/// What other nodes are told of this one.
fn identity(settings: &Settings, client: SocketAddr, peer: SocketAddr) -> Identity {
    let reachable = |address: &ListenAddr, port: u16| {
        let host = address
            .host
            .as_deref()
            .or(settings.dist_addr.host.as_deref());
        match host {
            Some(host) if host.contains(':') => format!("[{host}]:{port}"),
            Some(host) => format!("{host}:{port}"),
            None => format!("{}:{port}", settings.node_id),
        }
    };
    Identity {
        id: Arc::from(&*settings.node_id),
        peer_address: Arc::from(reachable(&settings.dist_addr, peer.port())),
        client_address: Arc::from(reachable(&settings.api_addr, client.port())),
    }
}

fn membership(settings: &Settings, me: Identity, now_ms: u64) -> Membership {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let config = membership::Config {
        heartbeat_ms: ms(settings.heartbeat),
        gossip_interval_ms: ms(settings.gossip_interval),
        indirect_probes: settings.indirect_probe_k,
        dead_grace_ms: ms(settings.dead_grace),
        clock_skew_ms: ms(settings.clock_skew),
        join_timeout_ms: ms(settings.join_timeout),
        replication: settings.replication as usize,
    };
    let seeds = settings.seeds.iter().map(|seed| membership::Seed {
        id: seed.id.as_deref().map(Arc::from),
        address: Arc::from(&*seed.address),
    });
    Membership::new(config, me, now_ms, seeds.collect(), now_ms)
}

fn cluster_config(
    settings: &Settings,
    core: CoreId,
    cores: CoreCount,
    copies_bytes_max: usize,
) -> Config {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let share = |total: usize| (total / cores.get()).max(1);
    Config {
        core,
        cores,
        hints: HintLimits {
            ttl_ms: ms(settings.hint_ttl),
            per_node: share(settings.hints_per_node),
            per_node_bytes: share(settings.hint_bytes_per_node.0 as usize),
            total: share(settings.hints),
            total_bytes: share(settings.hint_bytes.0 as usize),
        },
        hint_replay_ms: ms(settings.hint_replay),
        clock_skew_ms_max: ms(settings.clock_skew),
        sync_interval_ms: ms(settings.sync_interval),
        rebalance_interval_ms: ms(settings.rebalance_interval),
        sync_interval_ms_max: ms(settings.tombstone_ttl) / 2,
        patience_ms: ms(settings.peer_timeout),
        transfer_rate: settings.transfer_rate.0.div_ceil(cores.get() as u64),
        drop_grace_ms: ms(settings.drop_grace),
        bootstrap_timeout_ms: ms(settings.bootstrap_timeout),
        copies_bytes_max,
    }
}

/// The peer listeners. An address is bound as given; a name is what peers are told, and
/// every address is bound, because the name may not resolve yet.
fn bind_peers(address: &ListenAddr, count: usize) -> Result<Vec<TcpListener>, StartError> {
    let is_address = |host: &String| host.parse::<std::net::IpAddr>().is_ok();
    let bound = ListenAddr {
        host: address.host.clone().filter(is_address),
        port: address.port,
    };
    let listeners = bind("HYPERCACHE_DIST_ADDR", &bound, count)?;
    if let Err(error) = runtime::steer(&listeners[0], count as u16, Steered::All) {
        tracing::warn!(%error, "peers cannot be steered to their cores: some requests hop");
    }
    Ok(listeners)
}

fn peer_limits(settings: &Settings) -> Limits {
    let mut limits = limits(settings);
    limits.request.body_bytes_max = peer::BODY_BYTES_MAX + settings.value_limit.0;
    limits
}

/// What the connections of peers on one core may hold: a share of what clients may, so
/// that they are bounded alike, but room for frames of any size.
fn peer_buffers_max(settings: &Settings, cores: CoreCount) -> usize {
    let frame = peer_limits(settings).request.body_bytes_max as usize;
    let share = settings.buffer_limit.0 as usize / cores.get();
    share.max(PEER_FRAMES_BUFFERED * frame)
}

fn shard_config(
    settings: &Settings,
    core: CoreId,
    cores: CoreCount,
    memory_limit: u64,
) -> ShardConfig {
    // Rounded up or down so that the shards' bounds together are the node's.
    let share =
        |total: usize| total / cores.get() + usize::from(core.index() < total % cores.get());
    ShardConfig {
        cores,
        core,
        items_max: match settings.capacity {
            0 => 0,
            capacity => share(capacity).max(1),
        },
        bytes_max: share(memory_limit as usize),
        value_bytes_max: settings.value_limit.0 as usize,
        tombstones_max: share(settings.tombstones).max(1),
        eviction: settings.eviction,
    }
}

/// What copies of other cores' items may take of one core's memory.
fn copies_bytes_max(settings: &Settings, cores: CoreCount, core_bytes: usize) -> usize {
    const SHARE: usize = 16;
    if cores == CoreCount::ONE {
        return 0;
    }
    (settings.hot_copies.0 as usize).min(core_bytes / SHARE)
}

fn limits(settings: &Settings) -> Limits {
    Limits {
        request: http::Limits {
            head_bytes_max: settings.head_limit.0 as usize,
            target_bytes_max: settings.target_limit.0 as usize,
            headers_max: settings.headers_limit,
            body_bytes_max: settings.body_limit.0,
        },
        pipeline_depth: settings.pipeline_depth,
    }
}

fn timeouts(settings: &Settings) -> Timeouts {
    Timeouts {
        read: settings.read_timeout,
        write: settings.write_timeout,
        idle: settings.idle_timeout,
        exchange: settings.peer_timeout,
    }
}

/// Turns signals into events. The handlers stay installed: from here on no signal
/// of these ends the process by itself. SIGHUP has files looked at again.
///
/// This comes before all else: process 1 is not even sent a signal that it does not
/// handle, so a SIGTERM that came before would be lost. SIGPIPE is ignored since before
/// `main`, as by every Rust program.
fn listen_for_signals(events: mpsc::Sender<Event>) -> Result<(), StartError> {
    let adopts = runtime::adopts_orphans();
    let handled = [SIGTERM, SIGINT, SIGHUP].into_iter();
    let mut signals = Signals::new(handled.chain(adopts.then_some(SIGCHLD)))
        .map_err(|error| cannot(format!("cannot handle signals: {error}")))?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if adopts {
                // Those that ended before the handler was there.
                runtime::reap_orphans();
            }
            for signal in signals.forever() {
                if signal == SIGCHLD {
                    runtime::reap_orphans();
                } else if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| cannot(format!("cannot start a thread: {error}")))?;
    Ok(())
}

fn start_core(
    core: CoreId,
    cpu: Option<usize>,
    choice: runtime::DriverChoice,
    parts: Parts,
    listeners: (TcpListener, TcpListener),
    inbox: Receiver<Message>,
) -> Result<thread::JoinHandle<()>, StartError> {
    let events = parts.events.clone();
    thread::Builder::new()
        .name(format!("core-{}", core.index()))
        .spawn(move || {
            let ready = events.clone();
            run_thread(Thread::Core(core), &events, || {
                runtime::run_core(cpu, choice, |report| async move {
                    let listener = Listener::from_std(listeners.0)?;
                    let peer_listener = Listener::from_std(listeners.1)?;
                    let _ = ready.send(Event::Ready(core, report));
                    Core::new(parts).run(listener, peer_listener, inbox).await;
                    Ok(())
                })
            });
        })
        .map_err(|error| cannot(format!("cannot start a thread: {error}")))
}

/// Does a thread's work and tells the main thread when it has ended, however it has.
fn run_thread(
    thread: Thread,
    events: &mpsc::Sender<Event>,
    work: impl FnOnce() -> io::Result<io::Result<()>>,
) {
    let problem = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(error)) | Err(error)) => Some(error.to_string()),
        Err(_) => Some("it panicked".to_owned()),
    };
    let _ = events.send(Event::Ended(thread, problem));
}

fn wait_until_ready(
    inbox: &mpsc::Receiver<Event>,
    cores: CoreCount,
) -> Result<Vec<DriverReport>, StartError> {
    let mut reports = Vec::new();
    while reports.len() < cores.get() {
        match inbox.recv() {
            Ok(Event::Ready(_, report)) => reports.push(report),
            Ok(Event::Ended(thread, problem)) => {
                let problem = problem.unwrap_or_else(|| "it ended at once".to_owned());
                return Err(cannot(format!("{thread} did not start: {problem}")));
            }
            Ok(Event::Signal(SIGHUP)) => {}
            Ok(Event::Signal(signal)) => end_at_once(signal),
            Ok(Event::Drained(_) | Event::HandedOver) => {}
            Err(_) => return Err(cannot("the cores ended before they had started")),
        }
    }
    Ok(reports)
}

/// What the control thread is made of, and the listener it answers.
struct ManagementParts {
    listener: TcpListener,
    limits: Limits,
    timeouts: Timeouts,
    choice: runtime::DriverChoice,
    facts: Arc<NodeFacts>,
    sources: Arc<Sources>,
    draining: Arc<AtomicBool>,
    readiness: Arc<Readiness>,
    control: ControlParts,
    settings: Arc<Settings>,
    mailboxes: Vec<runtime::Sender<Message>>,
    inbox: Receiver<ControlMessage>,
    events: mpsc::Sender<Event>,
}

/// Starts the thread that keeps membership and answers the management listener.
fn start_management(parts: ManagementParts) -> Result<(), StartError> {
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            run_thread(Thread::Control, &parts.events, || {
                runtime::run_core(None, parts.choice, |_| async move {
                    let control = Control::new(parts.control);
                    let management = Management {
                        facts: parts.facts,
                        sources: parts.sources,
                        draining: parts.draining,
                        readiness: parts.readiness,
                        control: Rc::clone(&control),
                        settings: parts.settings,
                        mailboxes: parts.mailboxes,
                    };
                    runtime::spawn(control.run(parts.inbox));
                    let listener = Listener::from_std(parts.listener)?;
                    management.run(listener, parts.limits, parts.timeouts).await;
                    Ok(())
                })
            });
        })
        .map_err(|error| cannot(format!("cannot start a thread: {error}")))?;
    Ok(())
}

/// What the main thread needs to stop a serving node.
struct MainThread {
    inbox: mpsc::Receiver<Event>,
    control: runtime::Sender<ControlMessage>,
    cores: CoreCount,
    mailboxes: Vec<runtime::Sender<Message>>,
    draining: Arc<AtomicBool>,
    /// Has the files of credentials looked at again.
    watcher: mpsc::Sender<Wake>,
}

impl MainThread {
    fn until_stopped(self, deadline: Duration, threads: Vec<thread::JoinHandle<()>>) -> ExitCode {
        loop {
            match self.inbox.recv() {
                Ok(Event::Signal(SIGHUP)) => {
                    let _ = self.watcher.send(Wake::Look);
                }
                Ok(Event::Signal(signal)) => {
                    tracing::info!(signal, "stopping");
                    return self.stop(deadline, threads);
                }
                Ok(Event::Ended(thread, problem)) => return died(thread, problem),
                Ok(Event::Ready(..) | Event::Drained(_) | Event::HandedOver) => {}
                Err(_) => return ExitCode::FAILURE,
            }
        }
    }

    fn stop(self, deadline: Duration, threads: Vec<thread::JoinHandle<()>>) -> ExitCode {
        let hand_over_until = Instant::now() + deadline * HAND_OVER_PERCENT / 100;
        let deadline = Instant::now() + deadline;
        if let Err(died) = self.hand_over(hand_over_until) {
            return died;
        }
        self.leave(deadline);
        self.tell_all(|| Message::Stop);
        let mut drained = vec![false; self.cores.get()];
        while drained.contains(&false) {
            match self
                .inbox
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(Event::Drained(core)) => drained[core.index()] = true,
                Ok(Event::Ended(thread, problem)) => return died(thread, problem),
                Ok(Event::Signal(SIGHUP)) => {}
                Ok(Event::Signal(signal)) => second_signal(signal),
                Ok(Event::Ready(..) | Event::HandedOver) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let cores = drained.iter().filter(|&&drained| !drained).count();
                    tracing::warn!(
                        cores,
                        "the shutdown deadline passed: open connections are cut"
                    );
                    // The threads may be busy; the process ends without them.
                    return ExitCode::SUCCESS;
                }
            }
        }
        self.tell_all(|| Message::Exit);
        let mut running = self.cores.get();
        while running > 0 {
            match self
                .inbox
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(Event::Ended(Thread::Core(_), None)) => running -= 1,
                Ok(Event::Ended(thread, problem)) => return died(thread, problem),
                Ok(Event::Signal(SIGHUP)) => {}
                Ok(Event::Signal(signal)) => second_signal(signal),
                Ok(Event::Ready(..) | Event::Drained(_) | Event::HandedOver) => {}
                Err(_) => return ExitCode::SUCCESS,
            }
        }
        for thread in threads {
            let _ = thread.join();
        }
        tracing::info!("stopped");
        ExitCode::SUCCESS
    }

    /// Refuses writes from now on and waits until the cluster can do without this node, but
    /// not for ever.
    fn hand_over(&self, until: Instant) -> Result<(), ExitCode> {
        self.draining.store(true, Ordering::Relaxed);
        if self.control.try_send(ControlMessage::Drain).is_err() {
            return Ok(());
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Event::HandedOver) => return Ok(()),
                Ok(Event::Ended(thread, problem)) => return Err(died(thread, problem)),
                Ok(Event::Signal(SIGHUP)) => {}
                Ok(Event::Signal(signal)) => second_signal(signal),
                Ok(Event::Ready(..) | Event::Drained(_)) => {}
                Err(_) => {
                    tracing::warn!(
                        "the time to hand over has passed: what only this node has is lost"
                    );
                    return Ok(());
                }
            }
        }
    }

    /// Tells the other nodes, so that they send nothing more; not waiting for long.
    fn leave(&self, deadline: Instant) {
        let (told, heard) = mpsc::channel();
        if self.control.try_send(ControlMessage::Leave(told)).is_ok() {
            let left = deadline.saturating_duration_since(Instant::now());
            let _ = heard.recv_timeout(left.min(LEAVE_MAX));
        }
    }

    fn tell_all(&self, message: impl Fn() -> Message) {
        for (core, mailbox) in self.mailboxes.iter().enumerate() {
            if mailbox.try_send(message()).is_err() {
                tracing::error!(core, "a mailbox refused a message of the main thread");
            }
        }
    }
}

fn died(thread: Thread, problem: Option<String>) -> ExitCode {
    let problem = problem.unwrap_or_else(|| "it ended by itself".to_owned());
    tracing::error!(%thread, problem, "a thread ended: this node cannot go on");
    ExitCode::FAILURE
}

fn second_signal(signal: i32) -> ! {
    tracing::warn!(signal, "a second signal: ending at once");
    end_at_once(signal)
}

fn end_at_once(signal: i32) -> ! {
    logs::flush();
    std::process::exit(128 + signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_cores_may_have_more_descriptors_open_than_clients_have_connections() {
        let of = |cores| descriptors_max(20_000, CoreCount::new(cores).unwrap());
        let accepted = |cores: u64| 20_000 + 1024 * cores + 256;
        assert!(of(1) > accepted(1));
        assert!(of(8) - of(1) > accepted(8) - accepted(1));
    }
}
