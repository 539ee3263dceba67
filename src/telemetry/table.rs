//! The list of all metrics, each defined once.
//!
//! `/metrics`, OTLP and `/dist/metrics` are made from it, and the tests that read
//! docs/operations.md, the dashboards and the alert rules look names up in what is made
//! from it.

use super::histogram::Counts;
use super::latency::{Operation, Via};
use super::logs;
use super::metric::{Kind, Metric, Point, Read, Unit, Value};
use super::snapshot::{CoreCounts, Snapshot};
use super::work::{LONG, Work, WorkCells};

type OfCore = fn(&CoreCounts) -> u64;
type OfNode = fn(&Snapshot) -> u64;

const fn metric(
    name: &'static str,
    help: &'static str,
    kind: Kind,
    unit: Unit,
    read: Read,
) -> Metric {
    Metric {
        name,
        help,
        unit,
        kind,
        field: None,
        read,
    }
}

const fn per_core(
    name: &'static str,
    help: &'static str,
    kind: Kind,
    unit: Unit,
    read: OfCore,
) -> Metric {
    metric(name, help, kind, unit, Read::PerCore(read))
}

const fn node(
    name: &'static str,
    help: &'static str,
    kind: Kind,
    unit: Unit,
    read: OfNode,
) -> Metric {
    metric(name, help, kind, unit, Read::Node(read))
}

/// A metric that is also a field of `/dist/metrics`.
const fn dist(
    field: &'static str,
    name: &'static str,
    help: &'static str,
    kind: Kind,
    unit: Unit,
    read: Read,
) -> Metric {
    Metric {
        name,
        help,
        unit,
        kind,
        field: Some(field),
        read,
    }
}

/// A sum over the cores that only grows.
const fn summed(
    field: &'static str,
    name: &'static str,
    help: &'static str,
    read: OfCore,
) -> Metric {
    dist(
        field,
        name,
        help,
        Kind::Counter,
        Unit::None,
        Read::Sum(read),
    )
}

/// What the cores hold together.
const fn held(field: &'static str, name: &'static str, help: &'static str, read: OfCore) -> Metric {
    dist(field, name, help, Kind::Gauge, Unit::None, Read::Sum(read))
}

/// How long something took last, on the core where it took longest.
const fn lasted(
    field: &'static str,
    name: &'static str,
    help: &'static str,
    read: OfCore,
) -> Metric {
    dist(
        field,
        name,
        help,
        Kind::Gauge,
        Unit::Nanoseconds,
        Read::Max(read),
    )
}

/// What membership has counted.
const fn counted(
    field: &'static str,
    name: &'static str,
    help: &'static str,
    read: OfNode,
) -> Metric {
    dist(
        field,
        name,
        help,
        Kind::Counter,
        Unit::None,
        Read::Node(read),
    )
}

/// What this node knows of the cluster now.
const fn known(
    field: &'static str,
    name: &'static str,
    help: &'static str,
    read: OfNode,
) -> Metric {
    dist(field, name, help, Kind::Gauge, Unit::None, Read::Node(read))
}

const NS_PER_MS: u64 = 1_000_000;

/// Every metric of a node. A line each, so that it reads as the table it is.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    // The process.
    metric("build", "The release that runs", Kind::Info, Unit::None, Read::Points(|s| {
        vec![Point::info(vec![("version", s.facts().version.into())])]
    })),
    metric("runtime_driver", "The I/O driver the cores run on, and why not a better one", Kind::Info, Unit::None, Read::Points(|s| {
        let facts = s.facts();
        let reason = facts.driver_reason.clone();
        vec![Point::info(vec![("driver", facts.driver.into()), ("reason", reason.into())])]
    })),
    metric("core_plan", "Whether cores are pinned to CPUs, and why; the CPUs the process may run on, and how many it may use at once", Kind::Info, Unit::None, Read::Points(|s| {
        let facts = s.facts();
        let pinned = if facts.pinned { "true" } else { "false" };
        let reason = facts.cores_reason.clone();
        let (cpus, quota) = (facts.cpus.clone(), facts.cpu_quota_text());
        vec![Point::info(vec![("pinned", pinned.into()), ("reason", reason.into()), ("cpus", cpus.into()), ("cpu_quota", quota.into())])]
    })),
    metric("core_pinned_cpu", "The CPU that a core is pinned to; absent where it is not", Kind::Gauge, Unit::None, Read::Points(|s| {
        let cpus = s.facts().core_cpus.iter().enumerate();
        let point = |(core, cpu): (usize, &Option<usize>)| Some(Point { labels: vec![("core", core.to_string().into())], value: Value::Number((*cpu)? as u64) });
        cpus.filter_map(point).collect()
    })),
    node("cores", "Data cores", Kind::Gauge, Unit::None, |s| s.facts().cores as u64),
    node("process.resident_memory", "Memory of the process that is in RAM", Kind::Gauge, Unit::Bytes, |s| s.process().resident_bytes),
    node("process.virtual_memory", "Address space of the process", Kind::Gauge, Unit::Bytes, |s| s.process().virtual_bytes),
    node("process.cpu", "CPU time of the process", Kind::Counter, Unit::Milliseconds, |s| s.process().cpu_ms),
    node("process.threads", "Threads of the process", Kind::Gauge, Unit::None, |s| s.process().threads),
    node("process.open_fds", "Descriptors that are open", Kind::Gauge, Unit::None, |s| s.process().open_descriptors),
    node("process.max_fds", "Descriptors that may be open", Kind::Gauge, Unit::None, |s| s.process().descriptors_max),
    node("process.start_time", "When the process started, in seconds since 1970", Kind::Gauge, Unit::Seconds, |s| s.process().started_s),
    node("process_memory_limit", "Memory the whole process may take; 0 when nobody says", Kind::Gauge, Unit::Bytes, |s| s.facts().process_limit_bytes),
    node("memory_limit", "Memory all shards together may hold", Kind::Gauge, Unit::Bytes, |s| s.facts().memory_limit_bytes),
    node("capacity_items", "Items all shards together may hold; 0 for no bound", Kind::Gauge, Unit::None, |s| s.facts().capacity),
    node("throttled_periods", "Periods in which the container was stopped because its CPU quota was used up", Kind::Counter, Unit::None, |s| s.throttling().periods),
    node("throttled", "For how long it was stopped", Kind::Counter, Unit::Microseconds, |s| s.throttling().stopped_us),
    node("buffer_limit", "What requests and answers of all clients may take while under way", Kind::Gauge, Unit::Bytes, |s| s.buffers().limit() as u64),
    node("buffer_taken", "What cores have taken of it, in chunks", Kind::Gauge, Unit::Bytes, |s| s.buffers().taken() as u64),
    node("connection_buffer_max", "What requests and answers of one client connection may take at most", Kind::Gauge, Unit::Bytes, |s| s.facts().connection_bytes_max),
    node("copies_refused", "Values not copied between cores because too many bytes were under way", Kind::Counter, Unit::None, |s| s.buffers().rations_refused() as u64),
    node("log_lines_lost", "Log lines lost because standard error did not take them in time", Kind::Counter, Unit::None, |_| logs::lost()),
    node("draining", "1 while this node is going to leave", Kind::Gauge, Unit::None, |s| s.node.draining.into()),
    node("bootstrapping", "1 while this node lacks data that it owns", Kind::Gauge, Unit::None, |s| s.node.bootstrapping.into()),
    // Requests.
    metric("request_duration", "From when a core takes up a whole request of a client until its answer is ready to be written", Kind::Histogram, Unit::Nanoseconds, Read::Points(latencies)),
    per_core("requests", "Requests handled by client listeners", Kind::Counter, Unit::None, |c| c.counters.requests.get()),
    per_core("requests_refused", "Requests refused as malformed, late or over a limit", Kind::Counter, Unit::None, |c| c.counters.requests_refused.get()),
    per_core("requests_unauthorized", "Requests refused for want of credentials that count", Kind::Counter, Unit::None, |c| c.counters.requests_unauthorized.get()),
    per_core("requests_forbidden", "Requests refused because the caller lacks the scope", Kind::Counter, Unit::None, |c| c.counters.requests_forbidden.get()),
    per_core("verifications_refused", "Requests refused because too many credentials waited to be verified", Kind::Counter, Unit::None, |c| c.counters.verifications_refused.get()),
    per_core("handshakes", "TLS handshakes of clients and peers that became connections", Kind::Counter, Unit::None, |c| c.counters.handshakes.get()),
    per_core("handshakes_failed", "TLS handshakes that came to no good end", Kind::Counter, Unit::None, |c| c.counters.handshakes_failed.get()),
    per_core("handshakes_timed_out", "TLS handshakes that took too long", Kind::Counter, Unit::None, |c| c.counters.handshakes_timed_out.get()),
    per_core("handshakes_refused", "TLS handshakes not begun because as many as may be were under way", Kind::Counter, Unit::None, |c| c.counters.handshakes_refused.get()),
    per_core("connections_accepted", "Client connections accepted", Kind::Counter, Unit::None, |c| c.counters.connections_accepted.get()),
    per_core("connections_moved", "Client connections accepted and passed on to a core that has fewer", Kind::Counter, Unit::None, |c| c.counters.connections_moved.get()),
    per_core("connections_refused", "Client connections closed for being over the limit", Kind::Counter, Unit::None, |c| c.counters.connections_refused.get()),
    per_core("connections_open", "Client connections open", Kind::Gauge, Unit::None, |c| c.counters.connections_open.get()),
    per_core("connections_expired", "Client connections cut for being too slow", Kind::Counter, Unit::None, |c| c.counters.connections_expired.get()),
    per_core("connections_expired_idle", "Client connections closed for bringing no next request in time", Kind::Counter, Unit::None, |c| c.counters.connections_expired_idle.get()),
    per_core("connections_expired_request", "Client connections cut because a request did not arrive whole in time", Kind::Counter, Unit::None, |c| c.counters.connections_expired_request.get()),
    per_core("connections_expired_write", "Client connections cut because answers were not taken in time", Kind::Counter, Unit::None, |c| c.counters.connections_expired_write.get()),
    per_core("buffered", "What requests and answers of clients take while under way", Kind::Gauge, Unit::Bytes, |c| c.counters.buffered_bytes.get()),
    per_core("requests_crowded", "Requests refused because too many bytes of others were under way", Kind::Counter, Unit::None, |c| c.counters.requests_crowded.get()),
    per_core("batches_sent", "Batches of operations sent to other cores", Kind::Counter, Unit::None, |c| c.counters.batches_sent.get()),
    per_core("operations_for_others", "Operations carried out for other cores", Kind::Counter, Unit::None, |c| c.counters.operations_for_others.get()),
    per_core("peer_frames", "Frames of operations received from peers", Kind::Counter, Unit::None, |c| c.counters.peer_frames.get()),
    per_core("peer_frames_hopped", "Frames of peers that went to another core than the one they reached", Kind::Counter, Unit::None, |c| c.counters.peer_frames_hopped.get()),
    per_core("peer_connections_refused", "Connections of peers closed for being over the limit", Kind::Counter, Unit::None, |c| c.counters.peer_connections_refused.get()),
    per_core("peer_connections_displaced", "Idle connections of peers closed to make room for others", Kind::Counter, Unit::None, |c| c.counters.peer_connections_displaced.get()),
    per_core("peer_unauthorized", "Requests refused for want of the peer token", Kind::Counter, Unit::None, |c| c.counters.peer_unauthorized.get()),
    per_core("items", "Live items held", Kind::Gauge, Unit::None, |c| c.counters.items.get()),
    per_core("store", "Memory held by the store, overhead included", Kind::Gauge, Unit::Bytes, |c| c.counters.bytes.get()),
    per_core("tombstones", "Tombstones held", Kind::Gauge, Unit::None, |c| c.counters.tombstones.get()),
    per_core("hot_copies", "Copies of hot items of other cores", Kind::Gauge, Unit::None, |c| c.counters.copies.get()),
    per_core("hot_copies.size", "What these copies take, their table included", Kind::Gauge, Unit::Bytes, |c| c.counters.copy_bytes.get()),
    per_core("hot_copy_hits", "Reads of other cores' keys answered from copies", Kind::Counter, Unit::None, |c| c.counters.copy_hits.get()),
    per_core("hot_copies_taken", "Copies of hot items of other cores that were taken", Kind::Counter, Unit::None, |c| c.counters.copies_taken.get()),
    per_core("hot_leases", "Items of which other cores may read copies", Kind::Gauge, Unit::None, |c| c.counters.leases.get()),
    per_core("hot_leases_revoked", "Items that changed or went while other cores had copies of them", Kind::Counter, Unit::None, |c| c.counters.leases_revoked.get()),
    per_core("gets", "Reads of keys", Kind::Counter, Unit::None, |c| c.counters.gets.get()),
    per_core("hits", "Reads of keys that found a value", Kind::Counter, Unit::None, |c| c.counters.hits.get()),
    per_core("sets", "Values written", Kind::Counter, Unit::None, |c| c.counters.sets.get()),
    per_core("removes", "Deletes", Kind::Counter, Unit::None, |c| c.counters.removes.get()),
    per_core("evicted_items", "Items evicted to stay within the bounds", Kind::Counter, Unit::None, |c| c.counters.evicted.get()),
    per_core("expired_items", "Items removed after their time had passed", Kind::Counter, Unit::None, |c| c.counters.expired.get()),
    per_core("values_too_large", "Values refused for their size", Kind::Counter, Unit::None, |c| c.counters.too_large.get()),
    per_core("core_cpu", "CPU time of the core's thread", Kind::Counter, Unit::Microseconds, |c| c.counters.cpu_us.get()),
    per_core("stall", "How late the core's housekeeping came, in all", Kind::Counter, Unit::Microseconds, |c| c.counters.stall_us.get()),
    per_core("stall_max", "The latest it came within the last minute", Kind::Gauge, Unit::Microseconds, |c| c.counters.stall_us_max.get()),
    metric("work_longest", "The longest that the core worked in one piece within the last minute, by kind of work", Kind::Gauge, Unit::Microseconds, Read::Points(|s| work_by_core(s, |cells| cells.longest_us.get()))),
    metric("work_longest_cpu", "The most CPU time that one such piece took", Kind::Gauge, Unit::Microseconds, Read::Points(|s| work_by_core(s, |cells| cells.longest_cpu_us.get()))),
    metric("work_long", "Pieces of work that had the CPU for longer than the label says", Kind::Counter, Unit::None, Read::Points(long_work)),
    per_core("mailbox_depth", "Messages of other cores that wait", Kind::Gauge, Unit::None, |c| c.mailbox_depth),
    per_core("slow_requests", "Requests that took longer than HYPERCACHE_SLOW_REQUEST", Kind::Counter, Unit::None, |c| c.counters.slow_requests.get()),
    // Credentials, certificates, the management listener.
    node("passwords_verified", "Passwords compared with a bcrypt hash", Kind::Counter, Unit::None, |s| s.security().passwords_verified.get()),
    node("tokens_verified", "Identity tokens whose signature was verified", Kind::Counter, Unit::None, |s| s.security().tokens_verified.get()),
    node("verifications_failed", "Passwords and identity tokens that were verified and found wrong", Kind::Counter, Unit::None, |s| s.security().verifications_failed.get()),
    node("security_reloads", "Times changed credentials, policies and certificates came into force", Kind::Counter, Unit::None, |s| s.security().reloads.get()),
    node("security_reload_failures", "Times they could not be taken over", Kind::Counter, Unit::None, |s| s.security().reload_failures.get()),
    node("security_reload_failing", "1 while files differ from what is in force because they cannot be taken over", Kind::Gauge, Unit::None, |s| s.security().reload_failing.get()),
    node("management_connections_refused", "Management connections closed for being over the limit", Kind::Counter, Unit::None, |s| s.security().management_connections_refused.get()),
    node("management_connections_displaced", "Idle management connections closed to make room for others", Kind::Counter, Unit::None, |s| s.security().management_connections_displaced.get()),
    node("management_unauthorized", "Requests of the management listener refused for want of credentials that count", Kind::Counter, Unit::None, |s| s.security().management_unauthorized.get()),
    node("management_forbidden", "Requests of the management listener refused because the caller lacks the scope", Kind::Counter, Unit::None, |s| s.security().management_forbidden.get()),
    node("management_verifications_refused", "Those refused because too many credentials waited to be verified", Kind::Counter, Unit::None, |s| s.security().management_verifications_refused.get()),
    node("management_handshakes", "TLS handshakes on the management listener that became connections", Kind::Counter, Unit::None, |s| s.security().management_handshakes.get()),
    node("management_handshakes_failed", "TLS handshakes on the management listener that came to no good end", Kind::Counter, Unit::None, |s| s.security().management_handshakes_failed.get()),
    node("management_handshakes_timed_out", "TLS handshakes on the management listener that took too long", Kind::Counter, Unit::None, |s| s.security().management_handshakes_timed_out.get()),
    node("management_handshakes_refused", "TLS handshakes on the management listener not begun because as many as may be were under way", Kind::Counter, Unit::None, |s| s.security().management_handshakes_refused.get()),
    node("oidc_fetches", "Fetches of the issuer's keys that have ended", Kind::Counter, Unit::None, |s| s.security().oidc_fetches.get()),
    node("oidc_fetch_failures", "Those of them that failed", Kind::Counter, Unit::None, |s| s.security().oidc_fetch_failures.get()),
    node("oidc_keys", "Keys of the issuer in use", Kind::Gauge, Unit::None, |s| s.security().oidc_keys.get()),
    node("oidc_fetched_timestamp", "When the issuer's keys were last fetched, in seconds since 1970; 0 before they were", Kind::Gauge, Unit::Seconds, |s| s.security().oidc_fetched_s.get()),
    node("certificate_expires_timestamp", "When the first certificate in use ends, in seconds since 1970; 0 without any", Kind::Gauge, Unit::Seconds, |s| s.security().certificate_expires_s.get()),
    // Telemetry itself.
    node("otlp_exports", "Requests with metrics or spans that the collector has taken", Kind::Counter, Unit::None, |s| s.export().exports.get()),
    node("otlp_export_failures", "Requests with metrics or spans that it has not taken", Kind::Counter, Unit::None, |s| s.export().export_failures.get()),
    node("spans_exported", "Spans that the collector has taken", Kind::Counter, Unit::None, |s| s.export().spans_exported.get()),
    node("spans_dropped", "Spans given up because too many waited or the collector did not take them", Kind::Counter, Unit::None, |s| s.export().spans_dropped.get()),
    // The cluster.
    known("MembersAlive", "dist.members.alive", "Members that answer", |s| s.node.members_alive),
    known("MembersSuspect", "dist.members.suspect", "Members that may be dead", |s| s.node.members_suspect),
    known("MembersDead", "dist.members.dead", "Members that are dead", |s| s.node.members_dead),
    known("MembershipVersion", "dist.membership.version", "How often this node's view of the cluster has changed", |s| s.node.view_version),
    known("RosterEpoch", "dist.roster.epoch", "How many rosters of owners there were", |s| s.node.roster_epoch),
    known("RosterChanging", "dist.roster.changing", "1 while owners are changing", |s| s.node.roster_changing.into()),
    metric("dist.clears.refused", "Times another node asked to clear up to a version in the future", Kind::Counter, Unit::None, Read::Node(|s| s.node.membership.clears_refused)),
    known("Fenced", "dist.fenced", "1 while this node serves no quorums because it is cut off from most of the cluster", |s| s.node.fenced.into()),
    counted("HeartbeatSuccess", "dist.heartbeat.success", "Probes answered directly", |s| s.node.membership.heartbeat_success),
    counted("HeartbeatFailure", "dist.heartbeat.failure", "Probes answered in no way", |s| s.node.membership.heartbeat_failure),
    counted("IndirectProbeSuccess", "dist.heartbeat.indirect_probe.success", "Probes answered by way of another member", |s| s.node.membership.indirect_probe_success),
    counted("IndirectProbeFailure", "dist.heartbeat.indirect_probe.failure", "Probes that other members were asked for too, in vain", |s| s.node.membership.indirect_probe_failure),
    counted("IndirectProbeRefuted", "dist.heartbeat.indirect_probe.refuted", "Indirect answers from members that were suspect", |s| s.node.membership.indirect_probe_refuted),
    counted("NodesSuspect", "dist.nodes.suspect", "Times that members became suspect", |s| s.node.membership.nodes_suspect),
    counted("NodesDead", "dist.nodes.dead", "Times that members became dead", |s| s.node.membership.nodes_dead),
    counted("NodesRemoved", "dist.nodes.removed", "Dead members that were removed", |s| s.node.membership.nodes_removed),
    counted("Drains", "dist.drains", "1 once this node drains", |s| s.node.draining.into()),
    summed("ForwardGet", "dist.forward.get", "Reads that another node was asked for", |c| c.cluster.coordinator.forward_get),
    summed("ForwardSet", "dist.forward.set", "Writes of keys that this node does not own", |c| c.cluster.coordinator.forward_set),
    summed("ForwardRemove", "dist.forward.remove", "Deletes of keys that this node does not own", |c| c.cluster.coordinator.forward_remove),
    summed("ReplicaFanoutSet", "dist.replica.fanout_set", "Writes sent to other owners", |c| c.cluster.coordinator.replica_fanout_set),
    summed("ReplicaFanoutRemove", "dist.replica.fanout_remove", "Deletes sent to other owners", |c| c.cluster.coordinator.replica_fanout_remove),
    summed("ReplicaGetMiss", "dist.replica.get_miss", "Reads that an owner had nothing for", |c| c.cluster.coordinator.replica_get_miss),
    summed("ReadPrimaryPromote", "dist.read.primary_promote", "Reads answered by another owner because the first did not", |c| c.cluster.coordinator.read_primary_promote),
    summed("ReadQuorumFailures", "dist.read.quorum_failures", "Reads that too few owners answered", |c| c.cluster.coordinator.read_quorum_failures),
    summed("ReadRepair", "dist.read_repair", "Owners that were sent something newer because of a read", |c| c.cluster.coordinator.read_repair),
    summed("ReadRepairBatched", "dist.read_repair.batched", "Those sent together with others", |c| c.cluster.coordinator.read_repair_batched),
    summed("ReadRepairCoalesced", "dist.read_repair.coalesced", "Those left out because one was under way", |c| c.cluster.coordinator.read_repair_coalesced),
    summed("WriteAttempts", "dist.write.attempts", "Writes and deletes begun", |c| c.cluster.coordinator.write_attempts),
    summed("WriteAcks", "dist.write.acks", "Writes and deletes that enough owners took", |c| c.cluster.coordinator.write_acks),
    summed("WriteQuorumFailures", "dist.write.quorum_failures", "Writes and deletes that too few owners took", |c| c.cluster.coordinator.write_quorum_failures),
    summed("WriteForwardPromotion", "dist.write.forward_promotion", "Writes that went on without their first owner", |c| c.cluster.coordinator.write_forward_promotion),
    summed("WriteApplyRefused", "dist.write.apply_refused", "Writes that an owner refused", |c| c.cluster.coordinator.write_apply_refused),
    summed("WriteRestamps", "dist.write.restamps", "Writes stamped anew because an owner held something newer", |c| c.cluster.coordinator.write_restamps),
    summed("VersionConflicts", "dist.version.conflicts", "Writes that met a newer version", |c| c.cluster.coordinator.version_conflicts),
    summed("VersionTieBreaks", "dist.version.tie_breaks", "Writes that met the same version of another origin", |c| c.cluster.coordinator.version_tie_breaks),
    summed("ClockSkewRefused", "dist.clock_skew.refused", "Versions refused for lying too far ahead of this node's clock", |c| c.cluster.coordinator.clock_skew_refused),
    summed("HintedQueued", "dist.hinted.queued", "Hints kept for owners that did not take a write", |c| c.cluster.hints.queued),
    summed("HintedReplayed", "dist.hinted.replayed", "Hints that their node has taken", |c| c.cluster.hints.replayed),
    summed("HintedExpired", "dist.hinted.expired", "Hints that outlived their time", |c| c.cluster.hints.expired),
    summed("HintedDropped", "dist.hinted.dropped", "Hints given up for a bound of one node, or because it does not own the key any more", |c| c.cluster.hints.dropped),
    summed("HintedGlobalDropped", "dist.hinted.global_dropped", "Hints not kept for the bound of all nodes", |c| c.cluster.hints.global_dropped),
    dist("HintedBytes", "dist.hinted.bytes", "Memory that hints take", Kind::Gauge, Unit::Bytes, Read::Sum(|c| c.cluster.hint_bytes)),
    held("HintsKept", "dist.hinted.kept", "Hints that wait", |c| c.cluster.hints_kept),
    summed("MerkleSyncs", "dist.merkle.syncs", "Comparisons with other owners that were completed", |c| c.cluster.sync.syncs),
    summed("MerkleKeysPulled", "dist.merkle.keys_pulled", "Items taken over from other owners", |c| c.cluster.sync.keys_pulled),
    lasted("MerkleDiffNanos", "dist.merkle.last_diff_ns", "How long the last comparison of all partitions took", |c| c.cluster.sync.last_compare_ms * NS_PER_MS),
    lasted("MerkleFetchNanos", "dist.merkle.last_fetch_ns", "How long the last exchange of what differed took", |c| c.cluster.sync.last_exchange_ms * NS_PER_MS),
    summed("AutoSyncLoops", "dist.auto_sync.loops", "Comparisons with other owners that ended, well or not", |c| c.cluster.sync.syncs + c.cluster.sync.failed),
    lasted("LastAutoSyncNanos", "dist.auto_sync.last_ns", "How long the last comparison and exchange took", |c| c.cluster.sync.last_ms * NS_PER_MS),
    summed("AutoSyncCleanTicks", "dist.auto_sync.clean", "Comparisons in which nothing was handed over", |c| c.cluster.sync.clean),
    dist("AutoSyncBackoffFactor", "dist.auto_sync.backoff_factor", "How far the interval between comparisons is stretched", Kind::Gauge, Unit::None, Read::Max(|c| c.cluster.sync_backoff)),
    summed("SyncKeysLeft", "dist.sync.keys_left", "Items not taken over because a shard is full", |c| c.cluster.sync.keys_left),
    summed("SyncKeysScanned", "dist.sync.keys_scanned", "Keys looked through in comparisons", |c| c.cluster.sync.keys_scanned),
    held("TombstonesActive", "dist.tombstones.active", "Deletes that are remembered", |c| c.cluster.tombstones),
    summed("TombstonesPurged", "dist.tombstones.purged", "Deletes forgotten by age or for room", |c| c.cluster.tombstones_purged),
    summed("RebalancedKeys", "dist.rebalance.keys", "Items taken over of partitions that this node did not hold yet", |c| c.cluster.sync.keys_copied),
    dist("RebalancedBytes", "dist.rebalance.bytes", "Bytes of such items", Kind::Counter, Unit::Bytes, Read::Sum(|c| c.cluster.sync.bytes_copied)),
    summed("RebalanceBatches", "dist.rebalance.batches", "Answers that brought such items", |c| c.cluster.sync.copies),
    summed("RebalanceThrottle", "dist.rebalance.throttle", "Times that transfers waited for HYPERCACHE_TRANSFER_RATE", |c| c.cluster.sync.throttled),
    lasted("RebalanceLastNanos", "dist.rebalance.last_ns", "How long it took to copy what this node lacked last", |c| c.cluster.sync.last_copy_ms * NS_PER_MS),
    summed("RebalancedReplicaDiff", "dist.rebalance.handed_over", "Items sent to owners of partitions that are not this node's any more", |c| c.cluster.sync.keys_handed_over),
    summed("RebalancedPrimary", "dist.rebalance.primary", "Items taken over of partitions of which this node is the first owner", |c| c.cluster.sync.keys_copied_as_primary),
    held("PartitionsMissing", "dist.partitions.missing", "Partitions this node owns and has not copied yet", |c| c.cluster.partitions_missing),
    held("PartitionsRetired", "dist.partitions.retired", "Partitions that have other owners and are kept for a while", |c| c.cluster.partitions_retired),
    summed("PartitionsDropped", "dist.partitions.dropped", "Partitions that had other owners and were dropped", |c| c.cluster.partitions_dropped),
    summed("BootstrapTimeouts", "dist.bootstrap.timeouts", "Partitions that count although they could not be copied whole in time", |c| c.cluster.sync.bootstrap_timeouts),
    summed("RosterRetries", "dist.roster.retries", "Operations asked anew because nodes were in different stages of a change", |c| c.cluster.coordinator.roster_retries),
    summed("FencedRequests", "dist.fenced.requests", "Requests refused because this node is cut off", |c| c.cluster.coordinator.fenced),
    // A node plants no faults in itself: these two are always 0.
    summed("ChaosDrops", "dist.chaos.drops", "Messages dropped by planted faults", |_| 0),
    summed("ChaosLatencies", "dist.chaos.latencies", "Messages delayed by planted faults", |_| 0),
    summed("PeerFramesSent", "dist.peer.frames_sent", "Frames of operations sent to other nodes", |c| c.cluster.frames_sent),
    dist("PeerBytesSent", "dist.peer.sent_bytes", "Bytes of such frames", Kind::Counter, Unit::Bytes, Read::Sum(|c| c.cluster.coordinator.peer_bytes_sent)),
    dist("PeerBytesReceived", "dist.peer.received_bytes", "Bytes of the answers to them", Kind::Counter, Unit::Bytes, Read::Sum(|c| c.cluster.coordinator.peer_bytes_received)),
    summed("PeerOperationsSent", "dist.peer.operations_sent", "Operations in such frames", |c| c.cluster.operations_sent),
    summed("PeerOperationsServed", "dist.peer.operations_served", "Operations carried out for other nodes", |c| c.cluster.coordinator.peer_operations_served),
    summed("PeerFailures", "dist.peer.failures", "Frames that were not answered in time", |c| c.cluster.coordinator.peer_failures),
    summed("PeerMalformed", "dist.peer.malformed", "Answers of other nodes that made no sense", |c| c.cluster.coordinator.peer_malformed),
];

/// The series of `request_duration`: those of operations on one key always, so that rates
/// have something to start from, the others once there were any.
fn latencies(snapshot: &Snapshot) -> Vec<Point> {
    let on_one_key = [Operation::Get, Operation::Put, Operation::Delete];
    let shown = snapshot
        .latencies()
        .filter(|(operation, _, counts)| on_one_key.contains(operation) || counts.count() > 0);
    let point = |(operation, via, counts): (Operation, Via, Counts)| Point {
        labels: vec![
            ("operation", operation.name().into()),
            ("via", via.name().into()),
        ],
        value: Value::Histogram(counts),
    };
    shown.map(point).collect()
}

/// A number of each kind of work on each core.
fn work_by_core(snapshot: &Snapshot, read: fn(&WorkCells) -> u64) -> Vec<Point> {
    let cores = snapshot.cores.iter().enumerate();
    let of_core = |(core, counts): (usize, &CoreCounts)| {
        Work::ALL.map(|work| Point {
            labels: vec![
                ("core", core.to_string().into()),
                ("work", work.name().into()),
            ],
            value: Value::Number(read(counts.counters.work.of(work))),
        })
    };
    cores.flat_map(of_core).collect()
}

/// How many pieces of each kind of work were long, on all cores.
fn long_work(snapshot: &Snapshot) -> Vec<Point> {
    let kinds = Work::ALL.into_iter();
    let of_kind = |work: Work| {
        LONG.iter().enumerate().map(move |(index, (_, over))| {
            let cores = snapshot.cores.iter();
            let counts = cores.map(|core| core.counters.work.of(work).long[index].get());
            Point {
                labels: vec![("work", work.name().into()), ("over", (*over).into())],
                value: Value::Number(counts.sum()),
            }
        })
    };
    kinds.flat_map(of_kind).collect()
}

/// Fields of `/dist/metrics` that monitors expect and that are always 0 here: digests are
/// always current, so nothing is built; new owners copy, so there are no hints for them
/// apart; one bound serves all transfers.
pub const ZERO_FIELDS: &[&str] = &[
    "MerkleBuildNanos",
    "MigrationHintQueued",
    "MigrationHintReplayed",
    "MigrationHintExpired",
    "MigrationHintDropped",
    "MigrationHintLastAgeNanos",
    "RebalanceReplicaDiffThrottle",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn is_name(text: &str) -> bool {
        let part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_lowercase())
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        text.split('.').all(part)
    }

    #[test]
    fn each_metric_is_defined_once_and_named_as_exporters_demand() {
        let mut names = HashSet::new();
        let mut fields = HashSet::new();
        for metric in METRICS {
            assert!(is_name(metric.name), "{}", metric.name);
            assert!(!metric.help.ends_with('.'), "{}", metric.help);
            assert!(names.insert(metric.otel_name()), "{}", metric.name);
            assert!(
                names.insert(metric.prometheus_name().into()),
                "{}",
                metric.name
            );
            assert!(metric.field.is_none_or(|field| fields.insert(field)));
        }
        for field in ZERO_FIELDS {
            assert!(fields.insert(field), "{field}");
        }
    }

    #[test]
    fn names_follow_from_kind_and_unit() {
        let name = |wanted: &str| {
            let metric = METRICS.iter().find(|metric| metric.name == wanted).unwrap();
            (metric.prometheus_name(), metric.otel_name())
        };
        for (name, prometheus, otel) in [
            (
                name("requests"),
                "hypercache_requests_total",
                "hypercache.requests",
            ),
            (
                name("dist.hinted.bytes"),
                "hypercache_dist_hinted_bytes",
                "dist.hinted.bytes",
            ),
            (
                name("dist.rebalance.last_ns"),
                "hypercache_dist_rebalance_last_seconds",
                "dist.rebalance.last_ns",
            ),
            (
                name("process.cpu"),
                "process_cpu_seconds_total",
                "process.cpu",
            ),
            (name("build"), "hypercache_build_info", "hypercache.build"),
        ] {
            assert_eq!(name, (prometheus.to_owned(), otel.into()));
        }
    }

    #[test]
    fn the_names_that_runbooks_use_exist() {
        let names: HashSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        for name in [
            "dist.members.alive",
            "dist.nodes.suspect",
            "dist.nodes.dead",
            "dist.nodes.removed",
            "dist.write.quorum_failures",
            "dist.hinted.queued",
            "dist.hinted.replayed",
            "dist.hinted.expired",
            "dist.hinted.dropped",
            "dist.hinted.global_dropped",
            "dist.hinted.bytes",
            "dist.heartbeat.failure",
            "dist.heartbeat.success",
            "dist.heartbeat.indirect_probe.success",
            "dist.heartbeat.indirect_probe.failure",
            "dist.heartbeat.indirect_probe.refuted",
            "dist.version.conflicts",
            "dist.rebalance.keys",
            "dist.rebalance.batches",
            "dist.rebalance.throttle",
            "dist.rebalance.last_ns",
            "dist.merkle.syncs",
            "dist.merkle.keys_pulled",
            "dist.merkle.last_diff_ns",
            "dist.auto_sync.last_ns",
            "dist.read_repair",
            "dist.read_repair.batched",
            "dist.read_repair.coalesced",
            "dist.drains",
            "dist.tombstones.active",
            "dist.tombstones.purged",
            "dist.chaos.drops",
            "dist.chaos.latencies",
        ] {
            assert!(names.contains(name), "{name}");
        }
    }
}
