//! The cluster as monitors see it: members, ring, heartbeat, `/dist/metrics`. Field
//! names are a contract with existing monitors.

use std::time::Instant;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::cluster::View;
use crate::cluster::membership::Counters;
use crate::cluster::membership::Stage;
use crate::telemetry::cluster::ClusterCounts;
use crate::telemetry::snapshot::Snapshot;
use crate::telemetry::table::{METRICS, ZERO_FIELDS};

/// `/cluster/members`.
#[derive(Serialize)]
pub struct Members<'a> {
    replication: usize,
    #[serde(rename = "virtualNodes")]
    virtual_nodes: u32,
    members: Vec<Member<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Member<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    address: &'a str,
    state: &'static str,
    incarnation: u64,
}

impl<'a> Members<'a> {
    /// The members of a view, by their peer addresses.
    pub fn of(view: &'a View) -> Self {
        let members = view.members().into_iter().map(|node| Member {
            id: &node.id,
            address: &node.peer_address,
            state: node.state.name(),
            incarnation: node.incarnation,
        });
        Self {
            replication: view.replication_wanted(),
            virtual_nodes: view.virtual_nodes(),
            members: members.collect(),
        }
    }
}

/// `/cluster/ring`.
#[derive(Serialize)]
pub struct Ring {
    count: usize,
    vnodes: Vec<String>,
}

impl Ring {
    /// Every virtual node as `point:member`, in the order of the ring.
    pub fn of(view: &View) -> Self {
        let points = view.ring();
        let vnodes: Vec<String> = points
            .iter()
            .map(|(point, member)| format!("{point:016x}:{member}"))
            .collect();
        Self {
            count: vnodes.len(),
            vnodes,
        }
    }
}

/// `/cluster/heartbeat`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    heartbeat_success: u64,
    heartbeat_failure: u64,
    nodes_removed: u64,
    read_primary_promote: u64,
}

impl Heartbeat {
    /// What was counted so far.
    pub fn of(counters: &Counters, cores: &[ClusterCounts]) -> Self {
        Self {
            heartbeat_success: counters.heartbeat_success,
            heartbeat_failure: counters.heartbeat_failure,
            nodes_removed: counters.nodes_removed,
            read_primary_promote: cores
                .iter()
                .map(|core| core.coordinator.read_primary_promote)
                .sum(),
        }
    }
}

/// `/cluster/rebalance`: how far a change of owners is, and what this node still lacks.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebalance<'a> {
    epoch: u64,
    stage: &'static str,
    /// The owners that are read from.
    owners: Vec<&'a str>,
    /// Those that are written to besides, while owners change.
    owners_also: Vec<&'a str>,
    draining: bool,
    fenced: bool,
    partitions_to_go: u64,
    seconds_left: Option<u64>,
    keys_copied: u64,
    bytes_copied: u64,
    partitions_retired: u64,
    partitions_dropped: u64,
}

impl<'a> Rebalance<'a> {
    /// Where a node stands.
    pub fn of(view: &'a View, cores: &[ClusterCounts], pace: &Pace, draining: bool) -> Self {
        let sum = |read: fn(&ClusterCounts) -> u64| cores.iter().map(read).sum();
        let partitions_to_go = sum(|core| core.partitions_missing);
        Self {
            epoch: view.epoch(),
            stage: match view.stage() {
                Stage::Joint => "joint",
                Stage::Ready => "ready",
                Stage::Switched => "switched",
                Stage::Settled => "settled",
            },
            owners: view.roster().collect(),
            owners_also: view.roster_also().collect(),
            draining,
            fenced: view.fenced(),
            partitions_to_go,
            seconds_left: pace.seconds_left(partitions_to_go),
            keys_copied: sum(|core| core.sync.keys_copied),
            bytes_copied: sum(|core| core.sync.bytes_copied),
            partitions_retired: sum(|core| core.partitions_retired),
            partitions_dropped: sum(|core| core.partitions_dropped),
        }
    }
}

/// How quickly the partitions that a node lacks become fewer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// When they were most, and how many they were.
    most: Option<(Instant, u64)>,
    now: Option<Instant>,
}

impl Pace {
    /// Notes how many are to go.
    pub fn note(&mut self, to_go: u64, now: Instant) {
        self.now = Some(now);
        self.most = match self.most {
            _ if to_go == 0 => None,
            Some((_, most)) if to_go <= most => self.most,
            _ => Some((now, to_go)),
        };
    }

    /// How long the rest takes if it goes on like this; nothing as long as nobody can tell.
    fn seconds_left(&self, to_go: u64) -> Option<u64> {
        let (since, most) = self.most?;
        let took = self.now?.saturating_duration_since(since);
        let done = most.checked_sub(to_go).filter(|&done| done > 0)?;
        Some((took.as_secs_f64() * to_go as f64 / done as f64).ceil() as u64)
    }
}

/// `/dist/metrics`.
pub struct DistMetrics<'a> {
    /// What was counted.
    pub snapshot: &'a Snapshot,
    /// The cluster.
    pub view: &'a View,
}

impl Serialize for DistMetrics<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for metric in METRICS {
            if let Some(field) = metric.field {
                map.serialize_entry(field, &metric.total(self.snapshot))?;
            }
        }
        for field in ZERO_FIELDS {
            map.serialize_entry(field, &0)?;
        }
        let mut cores = self.snapshot.cores.iter();
        let failed_with = cores.find_map(|core| core.cluster.sync_failed_with);
        let error = failed_with
            .and_then(|ix| self.view.node(ix))
            .map(|node| format!("{} did not answer a comparison", node.id));
        map.serialize_entry("LastAutoSyncError", error.as_deref().unwrap_or_default())?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_time_left_follows_from_how_long_the_first_part_took() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.seconds_left(100), None);
        pace.note(100, start);
        assert_eq!(pace.seconds_left(100), None, "nothing is done yet");
        pace.note(75, start + Duration::from_secs(10));
        assert_eq!(pace.seconds_left(75), Some(30));
        pace.note(0, start + Duration::from_secs(40));
        pace.note(50, start + Duration::from_secs(50));
        assert_eq!(pace.seconds_left(50), None, "another change has begun");
    }
}
