//! Starts clusters of real nodes, each on an address of its own.

#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test uses its part of it, and a failure here is a failed test"
)]

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use hypercache_perf::servers::claim_network;

use super::node::{Client, GUARD, Node, command};

/// Where clients, management and peers are served.
pub const API: u16 = 18080;
pub const MANAGEMENT: u16 = 18081;
pub const PEERS: u16 = 17946;

/// How the tests pace a cluster: members are found dead in about a second, and what
/// is awaited never comes by way of a timeout.
const ENV: &[(&str, &str)] = &[
    ("HYPERCACHE_HEARTBEAT", "200ms"),
    ("HYPERCACHE_GOSSIP_INTERVAL", "200ms"),
    ("HYPERCACHE_SYNC_INTERVAL", "500ms"),
    ("HYPERCACHE_JOIN_TIMEOUT", "1m"),
    ("HYPERCACHE_PEER_TIMEOUT", "1s"),
    ("HYPERCACHE_CORES", "1"),
    ("HYPERCACHE_MEMORY_LIMIT", "64MiB"),
];

/// Where the nodes of a cluster run and have their addresses.
pub trait Place: Send + Sync {
    /// The first three bytes of the addresses.
    fn network(&self) -> &str;
    /// Makes the command of a node run there.
    fn enter(&self, node: usize, command: &mut Command);
}

/// Nodes under the ids `node-0`, `node-1`, …; killed when dropped.
pub struct Cluster {
    place: Arc<dyn Place>,
    env: Vec<(String, String)>,
    /// So many of the nodes, the first ones, are the seeds of all.
    founders: usize,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    /// Starts `count` nodes and waits until each knows all and has its data.
    pub fn start(count: usize, env: &[(&str, &str)]) -> Self {
        Self::prepare(count, env).started()
    }

    /// The same with `spares` more nodes that are no seeds and not running yet.
    pub fn start_with_spares(founders: usize, spares: usize, env: &[(&str, &str)]) -> Self {
        let mut cluster = Self::prepare(founders, env);
        cluster.nodes.resize_with(founders + spares, || None);
        cluster.started()
    }

    /// The same in a place of the test's own.
    pub fn start_in(place: Arc<dyn Place>, count: usize, env: &[(&str, &str)]) -> Self {
        Self::prepare_in(place, count, env).started()
    }

    /// Nodes that are not running yet.
    pub fn prepare(count: usize, env: &[(&str, &str)]) -> Self {
        Self::prepare_in(Arc::new(Loopback::claim()), count, env)
    }

    fn prepare_in(place: Arc<dyn Place>, count: usize, env: &[(&str, &str)]) -> Self {
        Self {
            place,
            env: ENV
                .iter()
                .chain(env)
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            founders: count,
            nodes: (0..count).map(|_| None).collect(),
        }
    }

    fn started(mut self) -> Self {
        for node in 0..self.founders {
            self.launch(node);
        }
        self.settle();
        self
    }

    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    pub fn id(node: usize) -> String {
        format!("node-{node}")
    }

    /// Where a node listens.
    pub fn address(&self, node: usize, port: u16) -> String {
        format!("{}.{}:{port}", self.place.network(), node + 1)
    }

    /// Where each node listens.
    pub fn addresses(&self, port: u16) -> Vec<String> {
        (0..self.count())
            .map(|node| self.address(node, port))
            .collect()
    }

    pub fn seeds(&self) -> String {
        let seeds = (0..self.founders).map(|node| {
            let address = self.address(node, PEERS);
            format!("{}@{address}", Self::id(node))
        });
        seeds.collect::<Vec<_>>().join(",")
    }

    /// Starts a node under its id and addresses, empty.
    pub fn launch(&mut self, node: usize) {
        self.launch_with(node, &[]);
    }

    /// The same with settings of its own.
    pub fn launch_with(&mut self, node: usize, env: &[(&str, &str)]) {
        let mut command = command(&[]);
        command
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("HYPERCACHE_NODE_ID", Self::id(node))
            .env("HYPERCACHE_API_ADDR", self.address(node, API))
            .env("HYPERCACHE_MGMT_ADDR", self.address(node, MANAGEMENT))
            .env("HYPERCACHE_DIST_ADDR", self.address(node, PEERS))
            .env("HYPERCACHE_SEEDS", self.seeds())
            .envs(env.iter().copied());
        self.place.enter(node, &mut command);
        self.nodes[node] = Some(Node::spawn(command));
    }

    pub fn node(&self, node: usize) -> &Node {
        self.nodes[node].as_ref().expect("the node runs")
    }

    /// Takes the node out of the cluster's hands.
    pub fn take(&mut self, node: usize) -> Node {
        self.nodes[node].take().expect("the node runs")
    }

    /// Ends a node as a crash would.
    pub fn kill(&mut self, node: usize) {
        self.take(node).kill();
    }

    pub fn connect(&self, node: usize) -> Client {
        Client::connect(&self.address(node, API))
    }

    pub fn connect_management(&self, node: usize) -> Client {
        Client::connect(&self.address(node, MANAGEMENT))
    }

    /// Waits until every running node sees all running nodes alive, and is ready.
    pub fn settle(&self) {
        let running: Vec<usize> = self.running().collect();
        for &node in &running {
            self.await_members(node, |members| {
                running
                    .iter()
                    .all(|&other| state(members, other) == Some("alive"))
            });
        }
        for node in running {
            let mut management = self.connect_management(node);
            until("the node is ready", || {
                management.get("/health").status == 200
            });
        }
    }

    pub fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.count()).filter(|&node| self.nodes[node].is_some())
    }

    /// Waits until `node` believes this of `other`.
    pub fn await_state(&self, node: usize, other: usize, wanted: &str) {
        self.await_members(node, |members| state(members, other) == Some(wanted));
    }

    /// Waits until the members that `node` tells of are as wanted.
    pub fn await_members(&self, node: usize, wanted: impl Fn(&serde_json::Value) -> bool) {
        let mut events = self.connect_management(node);
        events.send("GET /cluster/events HTTP/1.1\r\nHost: test\r\n\r\n");
        let mut seen = serde_json::Value::Null;
        let start = Instant::now();
        while start.elapsed() < GUARD {
            let line = events.line();
            if line != "event: members" {
                continue;
            }
            let data = events.line();
            let data = data.strip_prefix("data: ").expect("data follows");
            seen = serde_json::from_str(data).expect("members are JSON");
            if wanted(&seen["members"]) {
                return;
            }
        }
        panic!("node-{node} still sees {seen}");
    }

    /// The nodes that own a key, the primary first.
    pub fn owners(&self, key: &str) -> Vec<usize> {
        let asked = self.running().next().expect("a node runs");
        let answer = self.connect(asked).get(&format!("/v1/owners/{key}")).json();
        let owners = answer["owners"].as_array().expect("a list");
        let number = |id: &serde_json::Value| {
            let id = id.as_str().expect("an id");
            id.strip_prefix("node-")
                .and_then(|number| number.parse().ok())
                .expect("one of ours")
        };
        owners.iter().map(number).collect()
    }

    /// One of the fields of a node's `/dist/metrics`.
    pub fn metric(&self, node: usize, name: &str) -> u64 {
        let metrics = self.connect_management(node).get("/dist/metrics").json();
        metrics[name].as_u64().expect("a number")
    }
}

fn state(members: &serde_json::Value, node: usize) -> Option<&str> {
    let id = Cluster::id(node);
    let member = members
        .as_array()?
        .iter()
        .find(|member| member["ID"] == id)?;
    member["State"].as_str()
}

/// Waits until something holds that comes about by itself.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < GUARD, "in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Loopback addresses that no other test has.
pub struct Loopback {
    network: String,
    /// A listener on the last of them.
    _claim: TcpListener,
}

impl Loopback {
    pub fn claim() -> Self {
        let (network, _claim) = claim_network().expect("some loopback addresses are free");
        Self { network, _claim }
    }
}

impl Place for Loopback {
    fn network(&self) -> &str {
        &self.network
    }

    fn enter(&self, _: usize, _: &mut Command) {}
}
