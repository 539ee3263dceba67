//! What the cores count about other nodes.

use std::sync::{Arc, Mutex, PoisonError};

use crate::cluster::NodeIx;
use crate::cluster::coordinator::{Coordinator, Counters};
use crate::cluster::hints::HintCounters;
use crate::cluster::sync::SyncCounters;

/// One core's counts at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterCounts {
    /// Requests and replicas.
    pub coordinator: Counters,
    /// Hints.
    pub hints: HintCounters,
    /// Bytes of hints kept.
    pub hint_bytes: u64,
    /// Hints kept.
    pub hints_kept: u64,
    /// Repair.
    pub sync: SyncCounters,
    /// With which node the last comparison failed, if none has ended well with it since.
    pub sync_failed_with: Option<NodeIx>,
    /// How far the interval between comparisons is stretched.
    pub sync_backoff: u64,
    /// Partitions whose data is not there yet.
    pub partitions_missing: u64,
    /// What a node that leaves has yet to send: hints for nodes that can be reached, and
    /// operations under way.
    pub unsent: u64,
    /// Partitions that have other owners and are kept for a while.
    pub partitions_retired: u64,
    /// Partitions that had other owners and were dropped.
    pub partitions_dropped: u64,
    /// Tombstones kept.
    pub tombstones: u64,
    /// Tombstones given up, by age or for room.
    pub tombstones_purged: u64,
    /// Frames sent to peers.
    pub frames_sent: u64,
    /// Operations in them.
    pub operations_sent: u64,
}

impl ClusterCounts {
    /// What a core has counted so far.
    pub fn of(cluster: &Coordinator) -> Self {
        let stats = cluster.stats();
        let (frames_sent, operations_sent) = cluster.sent();
        Self {
            coordinator: *cluster.counters(),
            hints: *cluster.hints().counters(),
            hint_bytes: cluster.hints().bytes() as u64,
            hints_kept: cluster.hints().len() as u64,
            sync: *cluster.sync().counters(),
            sync_failed_with: cluster.sync().last_failed(),
            sync_backoff: cluster.sync().backoff(),
            partitions_missing: cluster.sync().missing() as u64,
            unsent: cluster.unsent() as u64,
            partitions_retired: cluster.sync().retired().len() as u64,
            partitions_dropped: cluster.sync().retired().dropped(),
            tombstones: cluster.local().shard().tombstones() as u64,
            tombstones_purged: stats.tombstones_expired + stats.tombstones_purged,
            frames_sent,
            operations_sent,
        }
    }
}

/// Where one core leaves its counts for the control thread. The core never waits: when
/// they are being read it leaves them the next time.
#[derive(Clone, Debug, Default)]
pub struct SharedCounts(Arc<Mutex<ClusterCounts>>);

impl SharedCounts {
    /// Leaves the counts.
    pub fn publish(&self, counts: &ClusterCounts) {
        if let Ok(mut shared) = self.0.try_lock() {
            *shared = *counts;
        }
    }

    /// The counts that were left last.
    pub fn read(&self) -> ClusterCounts {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
