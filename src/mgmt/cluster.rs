//! The cluster as monitors see it: members, ring, heartbeat, `/dist/metrics`. Field
//! names are a contract with existing monitors.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::cluster::View;
use crate::cluster::membership::Counters;
use crate::cluster::membership::{Stage, State};
use crate::telemetry::cluster::{ClusterCounts, FIELDS};

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

/// `/dist/metrics`.
pub struct DistMetrics<'a> {
    /// The cluster.
    pub view: &'a View,
    /// What membership has counted.
    pub counters: &'a Counters,
    /// What the cores have counted.
    pub cores: &'a [ClusterCounts],
    /// Whether this node drains.
    pub draining: bool,
}

impl Serialize for DistMetrics<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let states = |state| {
            self.view
                .nodes()
                .filter(|(_, node)| node.state == state)
                .count() as u64
        };
        let counters = self.counters;
        let own = [
            ("HeartbeatSuccess", counters.heartbeat_success),
            ("HeartbeatFailure", counters.heartbeat_failure),
            ("IndirectProbeSuccess", counters.indirect_probe_success),
            ("IndirectProbeFailure", counters.indirect_probe_failure),
            ("IndirectProbeRefuted", counters.indirect_probe_refuted),
            ("NodesSuspect", counters.nodes_suspect),
            ("NodesDead", counters.nodes_dead),
            ("NodesRemoved", counters.nodes_removed),
            ("MembershipVersion", self.view.version()),
            ("MembersAlive", states(State::Alive)),
            ("MembersSuspect", states(State::Suspect)),
            ("MembersDead", states(State::Dead)),
            ("Drains", u64::from(self.draining)),
            // Ours, beyond the reference.
            ("RosterEpoch", self.view.epoch()),
            (
                "RosterChanging",
                u64::from(self.view.stage() != Stage::Settled),
            ),
            ("Fenced", u64::from(self.view.fenced())),
        ];
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in own {
            map.serialize_entry(name, &value)?;
        }
        for (name, read) in FIELDS {
            let values = self.cores.iter().map(read);
            // How far an interval is stretched, and how long ago, are no sums.
            let value: u64 = match *name {
                "AutoSyncBackoffFactor" | "LastAutoSyncNanos" => values.max().unwrap_or(0),
                _ => values.sum(),
            };
            map.serialize_entry(name, &value)?;
        }
        map.serialize_entry("LastAutoSyncError", "")?;
        map.end()
    }
}
