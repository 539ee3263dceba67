//! All that a node has counted, at one moment.
//!
//! Taken by whoever exports it, on a thread of their own, from what the cores and the
//! control thread leave in [`Sources`]. Nobody waits for it: cells are read relaxed, and
//! those that publish whole structures skip a time rather than wait.

use std::cell::OnceCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::cluster::{ClusterCounts, SharedCounts};
use super::counters::CoreCounters;
use super::export::ExportCounters;
use super::histogram::Counts;
use super::latency::{Operation, Via};
use super::security::SecurityCounters;
use crate::buffers::Pool;
use crate::cluster::View;
use crate::cluster::membership::{Counters, Stage, State};
use crate::runtime::{ProcessUsage, Throttling, process_usage, throttling};

/// Facts about the process that do not change while it runs.
#[derive(Clone, Debug)]
pub struct ProcessFacts {
    /// This node's id.
    pub node_id: String,
    /// The release.
    pub version: &'static str,
    /// The I/O driver the cores run on.
    pub driver: &'static str,
    /// Why not a better driver; empty when there is none.
    pub driver_reason: String,
    /// Data cores.
    pub cores: usize,
    /// Whether each core's thread is pinned to a CPU.
    pub pinned: bool,
    /// Why the cores were chosen as they were.
    pub cores_reason: String,
    /// The CPUs the process may run on, as the kernel lists them.
    pub cpus: String,
    /// CPUs it may use at once, if that is limited.
    pub cpu_quota: Option<f64>,
    /// The CPU that each core is pinned to, if it is.
    pub core_cpus: Vec<Option<usize>>,
    /// Bytes the shards together may hold.
    pub memory_limit_bytes: u64,
    /// Bytes the whole process may take; 0 when nobody says.
    pub process_limit_bytes: u64,
    /// Items the shards together may hold; 0 for no bound.
    pub capacity: u64,
    /// Bytes one client connection may have under way at most.
    pub connection_bytes_max: u64,
}

impl ProcessFacts {
    /// The CPU quota in words: a number of CPUs, or `none`.
    pub fn cpu_quota_text(&self) -> String {
        self.cpu_quota
            .map_or_else(|| "none".to_owned(), |quota| quota.to_string())
    }

    /// The CPU that each core is pinned to, in the order of cores; `any` for those that are
    /// not.
    pub fn core_cpus_text(&self) -> String {
        let text =
            |cpu: &Option<usize>| cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
        self.core_cpus
            .iter()
            .map(text)
            .collect::<Vec<_>>()
            .join(",")
    }
}

/// What the control thread counts and knows about the cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeCounts {
    /// What membership has counted.
    pub membership: Counters,
    /// The number of the view.
    pub view_version: u64,
    /// Members that answer.
    pub members_alive: u64,
    /// Members that may be dead.
    pub members_suspect: u64,
    /// Members that are.
    pub members_dead: u64,
    /// How many rosters of owners there were.
    pub roster_epoch: u64,
    /// Whether owners are changing.
    pub roster_changing: bool,
    /// Whether this node serves no quorums because it is cut off.
    pub fenced: bool,
    /// Whether this node drains.
    pub draining: bool,
    /// Whether this node lacks data that it owns.
    pub bootstrapping: bool,
}

impl NodeCounts {
    /// What is known by this view.
    pub fn of(view: &View, membership: Counters, draining: bool, bootstrapping: bool) -> Self {
        let states = |state| {
            let nodes = view.nodes().filter(|(_, node)| node.state == state);
            nodes.count() as u64
        };
        Self {
            membership,
            view_version: view.version(),
            members_alive: states(State::Alive),
            members_suspect: states(State::Suspect),
            members_dead: states(State::Dead),
            roster_epoch: view.epoch(),
            roster_changing: view.stage() != Stage::Settled,
            fenced: view.fenced(),
            draining,
            bootstrapping,
        }
    }
}

/// Where everything that is counted can be read.
pub struct Sources {
    /// What does not change.
    pub facts: ProcessFacts,
    /// What each core counts.
    pub cores: Vec<Arc<CoreCounters>>,
    /// What each core counts about other nodes.
    pub cluster: Vec<SharedCounts>,
    /// How many messages wait in each core's mailbox.
    pub mailbox_depths: Box<dyn Fn() -> Vec<usize> + Send + Sync>,
    /// What threads that are no cores count.
    pub security: Arc<SecurityCounters>,
    /// What is counted about handing on telemetry.
    pub export: Arc<ExportCounters>,
    /// What clients' connections hold.
    pub buffers: Arc<Pool>,
    /// What the control thread left last.
    pub node: Mutex<NodeCounts>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Sources {
    /// Leaves what the control thread knows.
    pub fn publish(&self, counts: NodeCounts) {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// What each core has counted about other nodes.
    pub fn cluster_counts(&self) -> Vec<ClusterCounts> {
        self.cluster.iter().map(SharedCounts::read).collect()
    }

    /// Everything as it is now.
    pub fn snapshot(self: &Arc<Self>) -> Snapshot {
        let depths = (self.mailbox_depths)();
        let cores = self.cores.iter().zip(&self.cluster).enumerate();
        Snapshot {
            cores: cores
                .map(|(core, (counters, cluster))| CoreCounts {
                    counters: Arc::clone(counters),
                    cluster: cluster.read(),
                    mailbox_depth: depths.get(core).map_or(0, |&depth| depth as u64),
                })
                .collect(),
            node: *self.node.lock().unwrap_or_else(PoisonError::into_inner),
            process: OnceCell::new(),
            throttling: OnceCell::new(),
            sources: Arc::clone(self),
        }
    }
}

/// What one core has counted.
#[derive(Debug)]
pub struct CoreCounts {
    /// In its cells.
    pub counters: Arc<CoreCounters>,
    /// About other nodes.
    pub cluster: ClusterCounts,
    /// Messages that wait in its mailbox.
    pub mailbox_depth: u64,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Snapshot {
    /// Each core.
    pub cores: Vec<CoreCounts>,
    /// The cluster.
    pub node: NodeCounts,
    process: OnceCell<ProcessUsage>,
    throttling: OnceCell<Throttling>,
    sources: Arc<Sources>,
}

impl Snapshot {
    /// What does not change.
    pub fn facts(&self) -> &ProcessFacts {
        &self.sources.facts
    }

    /// What threads that are no cores count.
    pub fn security(&self) -> &SecurityCounters {
        &self.sources.security
    }

    /// What is counted about handing on telemetry.
    pub fn export(&self) -> &ExportCounters {
        &self.sources.export
    }

    /// What clients' connections hold.
    pub fn buffers(&self) -> &Pool {
        &self.sources.buffers
    }

    /// The process, as the kernel accounts for it: read when it is first asked for.
    pub fn process(&self) -> &ProcessUsage {
        self.process.get_or_init(process_usage)
    }

    /// How the container's quota has held it up, read likewise.
    pub fn throttling(&self) -> &Throttling {
        self.throttling.get_or_init(throttling)
    }

    /// Adds how long requests of one kind took, on all cores, to `counts`.
    pub fn add_latencies(&self, operation: Operation, via: Via, counts: &mut Counts) {
        for core in &self.cores {
            core.counters.latencies.add_to(operation, via, counts);
        }
    }

    /// How long requests of each kind took, on all cores.
    pub fn latencies(&self) -> impl Iterator<Item = (Operation, Via, Counts)> {
        let kinds = Operation::ALL
            .into_iter()
            .flat_map(|operation| Via::ALL.map(|via| (operation, via)));
        kinds.map(|(operation, via)| {
            let mut counts = Counts::default();
            self.add_latencies(operation, via, &mut counts);
            (operation, via, counts)
        })
    }
}
