//! What clients see of changes that operators make as Kubernetes makes them: nothing. For a
//! new image all nodes are restarted in turn: each ends at SIGTERM, starts again empty under
//! its id and address, and is waited for until it is ready. A cluster that is scaled gets
//! nodes one after the other, each when the one before is ready, and loses the last one first.
//!
//! Clients write, delete and read at QUORUM all the while and check each answer; the load and
//! what it promises to find are `hypercache_perf::checked`. `./perf/rolling-restart` is the
//! rolling restart with more keys and figures.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/node.rs"]
mod node;

use std::time::Duration;

use cluster::{API, Cluster, until};
use hypercache_perf::checked::{Clients, Kind, Report, Workload};
use node::Node;

const NODES: usize = 5;
/// How many there are before a cluster grows, and after it has shrunk.
const FEW: usize = 3;

/// No node forgets or drops anything by choice.
const ENV: &[(&str, &str)] = &[("HYPERCACHE_CAPACITY", "0")];

/// Requests that clients are to have asked in each state of the cluster.
const STEP: u64 = 250;

/// Clients of the nodes that run.
fn start(cluster: &Cluster, keys: usize) -> Clients {
    let workload = Workload {
        keys,
        written: 20_000,
        value_bytes: 100,
        clients: 6,
        requests_per_second: 1_000,
        patience: Duration::from_secs(10),
        seed: 7,
    };
    let running = cluster.running().count();
    Clients::start_on(workload, &cluster.addresses(API), running).expect("all keys are stored")
}

/// Waits until the clients have asked for so much more.
fn go_on(clients: &Clients) {
    let enough = clients.requests() + STEP;
    until("the clients go on", || clients.requests() >= enough);
}

fn terminate(cluster: &mut Cluster, node: usize) -> Node {
    let leaver = cluster.take(node);
    leaver.signal(libc::SIGTERM);
    leaver
}

fn await_end(mut leaver: Node) {
    until("the node has ended", || !leaver.is_running());
    let status = leaver.wait();
    assert!(status.success(), "{status}");
}

fn await_ready(cluster: &Cluster, node: usize) {
    let mut management = cluster.connect_management(node);
    until("the node is ready", || {
        management.get("/health").status == 200
    });
}

fn finish(clients: Clients) -> Report {
    let report = clients.finish().expect("all keys can be read");
    let broken = [Kind::Lost, Kind::Resurrected].map(|kind| report.count(kind));
    assert_eq!(broken, [0, 0], "lost and resurrected\n{report}");
    report
}

/// The same when every request was to be served by one of two nodes.
fn finish_unnoticed(clients: Clients) {
    let report = finish(clients);
    assert_eq!(report.count(Kind::Failed), 0, "failed\n{report}");
    assert!(
        report.retries > 0,
        "no client met a node that ends\n{report}"
    );
}

#[test]
fn clients_do_not_notice_a_rolling_restart() {
    let mut cluster = Cluster::start(NODES, ENV);
    let clients = start(&cluster, 200_000);
    for node in 0..NODES {
        go_on(&clients);
        let leaver = terminate(&mut cluster, node);
        await_end(leaver);
        go_on(&clients);
        cluster.launch(node);
        await_ready(&cluster, node);
    }
    go_on(&clients);
    finish_unnoticed(clients);
}

/// The copies of a key that both nodes own are down to one when both are gone: the node
/// that is told to stop must see to it that this one has everything, or wait.
#[test]
fn nothing_is_lost_when_a_node_is_told_to_stop_while_another_is_dead() {
    let (dead, told) = (0, 1);
    let mut cluster = Cluster::start(NODES, ENV);
    let clients = start(&cluster, 20_000);
    go_on(&clients);
    cluster.kill(dead);
    clients.set_in_service(dead, false);
    for node in 1..NODES {
        cluster.await_state(node, dead, "dead");
    }
    go_on(&clients);
    let leaver = terminate(&mut cluster, told);
    go_on(&clients);
    cluster.launch(dead);
    await_ready(&cluster, dead);
    clients.set_in_service(dead, true);
    await_end(leaver);
    go_on(&clients);
    cluster.launch(told);
    await_ready(&cluster, told);
    go_on(&clients);
    finish(clients);
}

/// Waits until no change of owners is under way and nobody keeps what is not its own;
/// returns how many rosters have been settled.
fn await_settled(cluster: &Cluster) -> u64 {
    let epochs = cluster.running().map(|node| {
        until("the change of owners is over", || {
            cluster.metric(node, "RosterChanging") == 0
                && cluster.metric(node, "PartitionsRetired") == 0
        });
        cluster.metric(node, "RosterEpoch")
    });
    let epochs: Vec<u64> = epochs.collect();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
    epochs[0]
}

/// Keys have three copies each, all on nodes that run.
fn assert_owners_run(cluster: &Cluster) {
    let running: Vec<usize> = cluster.running().collect();
    for key in (0..GROWN_KEYS).step_by(GROWN_KEYS / 50) {
        let mut owners = cluster.owners(&format!("key{key}"));
        owners.sort_unstable();
        owners.dedup();
        assert_eq!(owners.len(), 3, "key{key}: {owners:?}");
        let run = owners.iter().all(|owner| running.contains(owner));
        assert!(run, "key{key}: {owners:?} of {running:?}");
    }
}

/// Keys of the cluster that grows.
const GROWN_KEYS: usize = 30_000;

#[test]
fn clients_do_not_notice_that_a_cluster_grows_and_shrinks() {
    let env: Vec<_> = ENV
        .iter()
        .copied()
        .chain([
            // Nodes that share busy processors answer late.
            ("HYPERCACHE_HEARTBEAT", "500ms"),
            ("HYPERCACHE_DROP_GRACE", "1s"),
        ])
        .collect();
    let mut cluster = Cluster::start_with_spares(FEW, NODES - FEW, &env);
    let clients = start(&cluster, GROWN_KEYS);
    let founded = await_settled(&cluster);
    for node in FEW..NODES {
        go_on(&clients);
        cluster.launch(node);
        await_ready(&cluster, node);
        clients.set_in_service(node, true);
    }
    go_on(&clients);
    let grown = await_settled(&cluster);
    assert!(grown > founded, "{grown} after {founded}");
    assert_owners_run(&cluster);
    for node in 0..FEW {
        let dropped = cluster.metric(node, "PartitionsDropped");
        assert!(dropped > 0, "node-{node} keeps everything");
    }
    for node in (FEW..NODES).rev() {
        let leaver = terminate(&mut cluster, node);
        await_end(leaver);
        clients.set_in_service(node, false);
        go_on(&clients);
    }
    let shrunk = await_settled(&cluster);
    assert!(shrunk > grown, "{shrunk} after {grown}");
    assert_owners_run(&cluster);
    finish_unnoticed(clients);
}
