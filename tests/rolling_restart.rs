//! What clients see while all nodes are restarted in turn, as Kubernetes does it for a new
//! image: nothing. Every node ends at SIGTERM, starts again empty under its id and address,
//! and is waited for until it is ready. Clients write, delete and read at QUORUM all the
//! while and check each answer; the load and what it promises to find are
//! `hypercache_perf::checked`. `./perf/rolling-restart` is the same with more keys and figures.

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

/// No node forgets or drops anything by choice.
const ENV: &[(&str, &str)] = &[("HYPERCACHE_CAPACITY", "0")];

/// Requests that clients are to have asked in each state of the cluster.
const STEP: u64 = 250;

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
    let addresses: Vec<String> = (0..NODES).map(|node| cluster.address(node, API)).collect();
    Clients::start(workload, &addresses).expect("all keys are stored")
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
    let report = finish(clients);
    assert_eq!(report.count(Kind::Failed), 0, "failed\n{report}");
    assert!(
        report.retries > 0,
        "no client met a node that ends\n{report}"
    );
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
