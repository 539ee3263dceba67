//! What the cores count about other nodes, and the fields of `/dist/metrics`.

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

/// One field of `/dist/metrics` that the cores count: its name and where it is.
pub type Field = (&'static str, fn(&ClusterCounts) -> u64);

/// The fields that are sums over the cores.
pub const FIELDS: &[Field] = &[
    ("ForwardGet", |c| c.coordinator.forward_get),
    ("ForwardSet", |c| c.coordinator.forward_set),
    ("ForwardRemove", |c| c.coordinator.forward_remove),
    ("ReplicaFanoutSet", |c| c.coordinator.replica_fanout_set),
    ("ReplicaFanoutRemove", |c| {
        c.coordinator.replica_fanout_remove
    }),
    ("ReadRepair", |c| c.coordinator.read_repair),
    ("ReadRepairBatched", |c| c.coordinator.read_repair_batched),
    ("ReadRepairCoalesced", |c| {
        c.coordinator.read_repair_coalesced
    }),
    ("ReplicaGetMiss", |c| c.coordinator.replica_get_miss),
    ("VersionConflicts", |c| c.coordinator.version_conflicts),
    ("VersionTieBreaks", |c| c.coordinator.version_tie_breaks),
    ("ReadPrimaryPromote", |c| c.coordinator.read_primary_promote),
    ("HintedQueued", |c| c.hints.queued),
    ("HintedReplayed", |c| c.hints.replayed),
    ("HintedExpired", |c| c.hints.expired),
    ("HintedDropped", |c| c.hints.dropped),
    ("HintedGlobalDropped", |c| c.hints.global_dropped),
    ("HintedBytes", |c| c.hint_bytes),
    // A new owner copies; no hints are kept for it apart.
    ("MigrationHintQueued", |_| 0),
    ("MigrationHintReplayed", |_| 0),
    ("MigrationHintExpired", |_| 0),
    ("MigrationHintDropped", |_| 0),
    ("MigrationHintLastAgeNanos", |_| 0),
    ("MerkleSyncs", |c| c.sync.syncs),
    ("MerkleKeysPulled", |c| c.sync.keys_pulled),
    // Digests are always current: nothing is built.
    ("MerkleBuildNanos", |_| 0),
    ("MerkleDiffNanos", |c| c.sync.last_compare_ms * 1_000_000),
    ("MerkleFetchNanos", |c| c.sync.last_exchange_ms * 1_000_000),
    ("AutoSyncLoops", |c| c.sync.syncs + c.sync.failed),
    ("LastAutoSyncNanos", |c| c.sync.last_ms * 1_000_000),
    ("AutoSyncCleanTicks", |c| c.sync.clean),
    ("AutoSyncBackoffFactor", |c| c.sync_backoff),
    ("ChaosDrops", |_| 0),
    ("ChaosLatencies", |_| 0),
    ("TombstonesActive", |c| c.tombstones),
    ("TombstonesPurged", |c| c.tombstones_purged),
    ("WriteQuorumFailures", |c| {
        c.coordinator.write_quorum_failures
    }),
    ("WriteAcks", |c| c.coordinator.write_acks),
    ("WriteAttempts", |c| c.coordinator.write_attempts),
    ("WriteForwardPromotion", |c| {
        c.coordinator.write_forward_promotion
    }),
    ("WriteApplyRefused", |c| c.coordinator.write_apply_refused),
    ("RebalancedKeys", |c| c.sync.keys_copied),
    ("RebalanceBatches", |c| c.sync.copies),
    ("RebalanceThrottle", |c| c.sync.throttled),
    ("RebalanceLastNanos", |c| c.sync.last_copy_ms * 1_000_000),
    ("RebalancedReplicaDiff", |c| c.sync.keys_handed_over),
    // One bound serves all transfers.
    ("RebalanceReplicaDiffThrottle", |_| 0),
    ("RebalancedPrimary", |c| c.sync.keys_copied_as_primary),
    // Ours, beyond the reference.
    ("WriteRestamps", |c| c.coordinator.write_restamps),
    ("ReadQuorumFailures", |c| c.coordinator.read_quorum_failures),
    ("ClockSkewRefused", |c| c.coordinator.clock_skew_refused),
    ("HintsKept", |c| c.hints_kept),
    ("PartitionsMissing", |c| c.partitions_missing),
    ("RebalancedBytes", |c| c.sync.bytes_copied),
    ("PartitionsRetired", |c| c.partitions_retired),
    ("PartitionsDropped", |c| c.partitions_dropped),
    ("RosterRetries", |c| c.coordinator.roster_retries),
    ("FencedRequests", |c| c.coordinator.fenced),
    ("SyncKeysLeft", |c| c.sync.keys_left),
    ("SyncKeysScanned", |c| c.sync.keys_scanned),
    ("BootstrapTimeouts", |c| c.sync.bootstrap_timeouts),
    ("PeerFramesSent", |c| c.frames_sent),
    ("PeerBytesSent", |c| c.coordinator.peer_bytes_sent),
    ("PeerBytesReceived", |c| c.coordinator.peer_bytes_received),
    ("PeerOperationsSent", |c| c.operations_sent),
    ("PeerOperationsServed", |c| {
        c.coordinator.peer_operations_served
    }),
    ("PeerFailures", |c| c.coordinator.peer_failures),
    ("PeerMalformed", |c| c.coordinator.peer_malformed),
];
