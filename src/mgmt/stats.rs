//! What this node has done and how it is set up, as monitors and the dashboard read it:
//! `/stats`, `/stats/cores`, `/config`, `/cluster/partitions`.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::cluster::View;
use crate::hash::{PARTITION_COUNT, PartitionId};
use crate::settings::Settings;
use crate::telemetry::counters::CoreCounters;
use crate::telemetry::histogram::Counts;
use crate::telemetry::latency::{Operation, Via};
use crate::telemetry::snapshot::Snapshot;

/// How many values stand for a distribution: one for each of as many equal parts of it.
const VALUES: usize = 100;

/// How often expired items are looked for, and when eviction happens: in the write that
/// needs room.
const EXPIRATION_INTERVAL: &str = "100ms";
const EVICTION_INTERVAL: &str = "0s";

/// One distribution, under the names that monitors expect.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Stat {
    mean: f64,
    median: u64,
    min: u64,
    max: u64,
    count: u64,
    sum: u64,
    variance: f64,
    values: Vec<u64>,
}

impl Stat {
    /// Something that happened so many times, each time by one.
    fn times(count: u64) -> Self {
        let one = u64::from(count > 0);
        Self {
            mean: one as f64,
            median: one,
            min: one,
            max: one,
            count,
            sum: count,
            variance: 0.0,
            values: if count > 0 { vec![1] } else { Vec::new() },
        }
    }

    /// Durations, as exact as their histogram.
    fn durations(counts: &Counts) -> Self {
        let count = counts.count();
        if count == 0 {
            return Self::default();
        }
        let parts = VALUES.min(usize::try_from(count).unwrap_or(VALUES));
        let at = |part: usize| counts.quantile_ns((part as f64 + 0.5) / parts as f64);
        Self {
            mean: counts.sum_ns() as f64 / count as f64,
            median: counts.quantile_ns(0.5),
            min: counts.quantile_ns(0.0),
            max: counts.quantile_ns(1.0),
            count,
            sum: counts.sum_ns(),
            variance: counts.variance_ns2(),
            values: (0..parts).map(at).collect(),
        }
    }
}

/// `/stats`.
pub struct Stats<'a>(pub &'a Snapshot);

impl Serialize for Stats<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let snapshot = self.0;
        let sum = |read: fn(&CoreCounters) -> u64| {
            let cores = snapshot.cores.iter();
            Stat::times(cores.map(|core| read(&core.counters)).sum())
        };
        let latency = |operation| {
            let mut counts = Counts::default();
            for via in Via::ALL {
                snapshot.add_latencies(operation, via, &mut counts);
            }
            Stat::durations(&counts)
        };
        let mut evictions = Counts::default();
        for core in &snapshot.cores {
            core.counters.evictions.add_to(&mut evictions);
        }
        let stats = [
            ("get_count", sum(|c| c.gets.get())),
            ("get_latency_ns", latency(Operation::Get)),
            ("set_count", sum(|c| c.sets.get())),
            ("set_latency_ns", latency(Operation::Put)),
            ("remove_count", sum(|c| c.removes.get())),
            ("remove_latency_ns", latency(Operation::Delete)),
            ("item_evicted_count", sum(|c| c.evicted.get())),
            ("evicted_item_count", sum(|c| c.evicted.get())),
            ("eviction_loop_count", Stat::times(evictions.count())),
            ("eviction_loop_duration", Stat::durations(&evictions)),
            ("expired_item_count", sum(|c| c.expired.get())),
            // Ours.
            ("get_hit_count", sum(|c| c.hits.get())),
            ("batch_get_latency_ns", latency(Operation::BatchGet)),
            ("batch_set_latency_ns", latency(Operation::BatchPut)),
            ("batch_remove_latency_ns", latency(Operation::BatchDelete)),
            ("list_latency_ns", latency(Operation::List)),
        ];
        let mut map = serializer.serialize_map(Some(stats.len()))?;
        for (name, stat) in &stats {
            map.serialize_entry(name, stat)?;
        }
        map.end()
    }
}

/// `/stats/cores`.
#[derive(Serialize)]
pub struct Cores<'a> {
    node: &'a str,
    version: &'static str,
    at_ms: u64,
    uptime_seconds: f64,
    draining: bool,
    bootstrapping: bool,
    driver: &'static str,
    pinned: bool,
    cpus: &'a str,
    cpu_quota: Option<f64>,
    memory: Memory,
    cores: Vec<CoreStats>,
    latency: Vec<Latency>,
}

#[derive(Serialize)]
struct Memory {
    resident_bytes: u64,
    limit_bytes: u64,
    process_limit_bytes: u64,
    store_bytes: u64,
    buffered_bytes: u64,
    buffer_limit_bytes: u64,
}

#[derive(Serialize)]
struct CoreStats {
    core: usize,
    pinned_cpu: Option<usize>,
    requests: u64,
    gets: u64,
    hits: u64,
    sets: u64,
    removes: u64,
    items: u64,
    bytes: u64,
    tombstones: u64,
    evicted: u64,
    expired: u64,
    connections: u64,
    operations_for_others: u64,
    batches_sent: u64,
    mailbox_depth: u64,
    stall_ns_max: u64,
    cpu_us: u64,
    slow_requests: u64,
}

/// The histogram of one kind of request; its buckets that are not empty, by the bound
/// their durations are below.
#[derive(Serialize)]
struct Latency {
    operation: &'static str,
    via: &'static str,
    count: u64,
    sum_ns: u64,
    buckets: Vec<(u64, u64)>,
}

impl<'a> Cores<'a> {
    /// What each core does.
    pub fn of(snapshot: &'a Snapshot, at_ms: u64, uptime_seconds: f64) -> Self {
        let facts = snapshot.facts();
        let core = |(core, counts): (usize, &crate::telemetry::snapshot::CoreCounts)| {
            let counters = &counts.counters;
            CoreStats {
                core,
                pinned_cpu: facts.core_cpus.get(core).copied().flatten(),
                requests: counters.requests.get(),
                gets: counters.gets.get(),
                hits: counters.hits.get(),
                sets: counters.sets.get(),
                removes: counters.removes.get(),
                items: counters.items.get(),
                bytes: counters.bytes.get(),
                tombstones: counters.tombstones.get(),
                evicted: counters.evicted.get(),
                expired: counters.expired.get(),
                connections: counters.connections_open.get(),
                operations_for_others: counters.operations_for_others.get(),
                batches_sent: counters.batches_sent.get(),
                mailbox_depth: counts.mailbox_depth,
                stall_ns_max: counters.stall_us_max.get() * 1000,
                cpu_us: counters.cpu_us.get(),
                slow_requests: counters.slow_requests.get(),
            }
        };
        let cores: Vec<CoreStats> = snapshot.cores.iter().enumerate().map(core).collect();
        let buffered = snapshot.cores.iter();
        Self {
            node: &facts.node_id,
            version: facts.version,
            at_ms,
            uptime_seconds,
            draining: snapshot.node.draining,
            bootstrapping: snapshot.node.bootstrapping,
            driver: facts.driver,
            pinned: facts.pinned,
            cpus: &facts.cpus,
            cpu_quota: facts.cpu_quota,
            memory: Memory {
                resident_bytes: snapshot.process().resident_bytes,
                limit_bytes: facts.memory_limit_bytes,
                process_limit_bytes: facts.process_limit_bytes,
                store_bytes: cores.iter().map(|core| core.bytes).sum(),
                buffered_bytes: buffered
                    .map(|core| core.counters.buffered_bytes.get())
                    .sum(),
                buffer_limit_bytes: snapshot.buffers().limit() as u64,
            },
            cores,
            latency: latencies(snapshot),
        }
    }
}

fn latencies(snapshot: &Snapshot) -> Vec<Latency> {
    let measured = snapshot
        .latencies()
        .filter(|(_, _, counts)| counts.count() > 0);
    // What is longer than all bounds is told by twice the greatest.
    let bound = |bound: Option<u64>| bound.unwrap_or(1 << 35);
    let latency = |(operation, via, counts): (Operation, Via, Counts)| {
        let filled = counts.buckets().filter(|(_, count)| *count > 0);
        Latency {
            operation: operation.name(),
            via: via.name(),
            count: counts.count(),
            sum_ns: counts.sum_ns(),
            buckets: filled.map(|(upper, count)| (bound(upper), count)).collect(),
        }
    };
    measured.map(latency).collect()
}

/// `/config`: what this node goes by. Monitors expect the first eight; `settings` has all
/// of them, but for secrets.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config<'a> {
    capacity: usize,
    allocation: u64,
    max_cache_size: u64,
    eviction_interval: &'static str,
    expiration_interval: &'static str,
    eviction_algorithm: &'static str,
    replication: u32,
    virtual_nodes_per_node: u32,
    node: &'a str,
    version: &'static str,
    cores: usize,
    driver: &'static str,
    partitions: usize,
    settings: Effective<'a>,
}

struct Effective<'a>(&'a Settings);

impl Serialize for Effective<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = self.0.effective.iter();
        serializer.collect_map(values.map(|(variable, value)| (variable, value)))
    }
}

impl<'a> Config<'a> {
    /// What a node with these settings goes by now.
    pub fn of(settings: &'a Settings, snapshot: &'a Snapshot, view: &View) -> Self {
        let facts = snapshot.facts();
        let stored = snapshot.cores.iter().map(|core| core.counters.bytes.get());
        Self {
            capacity: settings.capacity,
            allocation: stored.sum(),
            max_cache_size: facts.memory_limit_bytes,
            eviction_interval: EVICTION_INTERVAL,
            expiration_interval: EXPIRATION_INTERVAL,
            eviction_algorithm: settings.eviction.name(),
            replication: settings.replication,
            virtual_nodes_per_node: view.virtual_nodes(),
            node: &facts.node_id,
            version: facts.version,
            cores: facts.cores,
            driver: facts.driver,
            partitions: PARTITION_COUNT,
            settings: Effective(settings),
        }
    }
}

/// `/cluster/partitions`: whose each partition is.
#[derive(Serialize)]
pub struct Partitions<'a> {
    count: usize,
    replication: usize,
    epoch: u64,
    members: Vec<&'a str>,
    /// For each partition the place of its first owner in `members`, -1 for none.
    primaries: Vec<i32>,
    /// In the order of `members`.
    owned: Vec<Owned>,
    missing: u64,
}

#[derive(Clone, Default, Serialize)]
struct Owned {
    primary: usize,
    replica: usize,
}

impl<'a> Partitions<'a> {
    /// The owners by this view; `missing` of this node's partitions are not copied yet.
    pub fn of(view: &'a View, missing: u64) -> Self {
        let nodes: Vec<_> = view.nodes().collect();
        let place = |wanted| nodes.iter().position(|(ix, _)| *ix == wanted);
        let mut owned = vec![Owned::default(); nodes.len()];
        let mut primaries = Vec::with_capacity(PARTITION_COUNT);
        for partition in PartitionId::all() {
            let owners = view.owners(partition);
            for (rank, &owner) in owners.iter().enumerate() {
                if let Some(place) = place(owner) {
                    match rank {
                        0 => owned[place].primary += 1,
                        _ => owned[place].replica += 1,
                    }
                }
            }
            let primary = owners.first().and_then(|&owner| place(owner));
            primaries.push(primary.map_or(-1, |place| place as i32));
        }
        Self {
            count: PARTITION_COUNT,
            replication: view.replication_wanted(),
            epoch: view.epoch(),
            members: nodes.iter().map(|(_, node)| &*node.id).collect(),
            primaries,
            owned,
            missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::histogram::Histogram;

    #[test]
    fn a_distribution_is_told_by_a_hundred_values_in_order() {
        let histogram = Histogram::default();
        for micros in 1..=1000_u64 {
            histogram.record(micros * 1000, 1);
        }
        let mut counts = Counts::default();
        histogram.add_to(&mut counts);
        let stat = Stat::durations(&counts);
        assert_eq!(
            (stat.count, stat.sum, stat.values.len()),
            (1000, 500_500_000, 100)
        );
        assert!(stat.values.is_sorted());
        assert!(stat.min <= 1100 && stat.max >= 900_000, "{stat:?}");
        assert!(
            (stat.median as f64 / 500_000.0 - 1.0).abs() < 0.125,
            "{stat:?}"
        );
        assert!(Stat::durations(&Counts::default()).values.is_empty());
    }

    #[test]
    fn a_node_alone_owns_every_partition() {
        let view = View::alone("me", 3, 64);
        let partitions = Partitions::of(&view, 0);
        assert_eq!(partitions.members, ["me"]);
        assert_eq!(partitions.owned[0].primary, PARTITION_COUNT);
        assert!(partitions.primaries.iter().all(|&primary| primary == 0));
    }
}
