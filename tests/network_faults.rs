//! What a cluster of real nodes promises (docs/consistency.md) on a network that loses, delays
//! and throttles packets, and cuts nodes off in one or both directions.
//!
//! The nodes run in network namespaces, between which `support/network.rs` carries the packets.
//! Where those cannot be made, no case runs, and one line on stderr says so: this file has its
//! own `main`, because what a passing `#[test]` prints is not shown, and because the process
//! must move into a namespace while it has one thread.
//!
//! Cases run one after the other. They wait for what must come about, never for a time.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/clients.rs"]
mod clients;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/history.rs"]
mod history;
#[path = "support/network.rs"]
mod network;
#[path = "support/node.rs"]
mod node;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clients::Load;
use cluster::{API, Cluster, until};
use history::{Done, Request};
use network::{CUT, Link, Network};
use node::{Answer, Client};

const ONE: &str = "X-Cache-Consistency: ONE\r\n";
const QUORUM: &str = "X-Cache-Consistency: QUORUM\r\n";
const ALL: &str = "X-Cache-Consistency: ALL\r\n";

/// The names of functions, and these.
macro_rules! cases {
    ($($case:ident),* $(,)?) => { &[$((stringify!($case), $case)),*] };
}

const CASES: &[(&str, fn())] = cases![
    no_promise_is_broken_by_loss_and_delay,
    a_partition_is_served_where_a_majority_is_and_heals,
    a_link_that_is_cut_one_way_costs_no_request_and_no_member,
    a_node_with_a_slow_link_serves_while_it_catches_up,
    a_node_that_nothing_reaches_is_found_dead_and_gets_what_it_missed,
];

/// Runs all cases, or those whose names contain one of the arguments before the first flag.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments
        .iter()
        .take_while(|argument| !argument.starts_with('-'))
        .collect();
    let is_chosen =
        |name: &str| filters.is_empty() || filters.iter().any(|part| name.contains(part.as_str()));
    let chosen: Vec<_> = CASES.iter().filter(|(name, _)| is_chosen(name)).collect();
    if let Err(reason) = network::isolate() {
        eprintln!("network faults: NOT RUN: {reason}");
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, case) in &chosen {
        let start = Instant::now();
        let result = match catch_unwind(case) {
            Ok(()) => "ok",
            Err(_) => {
                failed += 1;
                "FAILED"
            }
        };
        let took = start.elapsed().as_secs_f32();
        println!("network faults: {name} ... {result} ({took:.1} s)");
    }
    println!("network faults: {} run, {failed} failed", chosen.len());
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// A cluster on a network without faults yet.
fn start(nodes: usize, env: &[(&str, &str)]) -> (Arc<Network>, Cluster) {
    // Slower than other tests: a member is to be found dead because of a fault, and not
    // because it waited for the CPU that all nodes here share.
    let env = [&[("HYPERCACHE_HEARTBEAT", "500ms")], env].concat();
    let network = Arc::new(Network::between(nodes).unwrap());
    let cluster = Cluster::start_in(network.clone(), nodes, &env);
    (network, cluster)
}

fn at(client: &mut Client, consistency: &str, method: &str, key: &str, body: &[u8]) -> Answer {
    client.request(method, &format!("/v1/cache/{key}"), consistency, body)
}

#[track_caller]
fn done(answer: Answer) {
    assert_eq!(answer.status, 200, "{answer:?}\n{}", answer.text());
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key-{number}")).collect()
}

/// Writes, reads and deletes through a node, all of which must be done.
#[track_caller]
fn expect_service(client: &mut Client, key: &str) {
    done(at(client, QUORUM, "PUT", key, b"v"));
    let found = at(client, QUORUM, "GET", key, b"");
    assert_eq!((found.status, &*found.body), (200, &b"v"[..]), "{found:?}");
    done(at(client, QUORUM, "DELETE", key, b""));
    at(client, QUORUM, "GET", key, b"").expect_error(404, "NOT_FOUND");
}

/// Waits until all nodes tell of the same members, all alive.
fn await_agreement(cluster: &Cluster) {
    cluster.settle();
    until("all nodes agree on the members", || {
        let told = |node| {
            cluster
                .connect_management(node)
                .get("/cluster/members")
                .json()
        };
        let first = told(0);
        (1..cluster.count()).all(|node| told(node)["members"] == first["members"])
    });
}

/// Waits until all owners of a key hold the same, which must be one of these values. At ONE
/// an owner answers by itself.
fn await_one_of(cluster: &Cluster, key: &str, values: &[Option<&[u8]>]) {
    let owners = cluster.owners(key);
    let mut clients: Vec<Client> = owners.iter().map(|&node| cluster.connect(node)).collect();
    until("the replicas agree", || {
        let held = clients.iter_mut().map(|client| {
            let head = at(client, ONE, "HEAD", key, b"");
            let version = head.header("X-Cache-Version").map(str::to_owned);
            (head.status, version)
        });
        let held: Vec<_> = held.collect();
        held[0].0 != 503 && held.iter().all(|other| *other == held[0])
    });
    for client in &mut clients {
        let answer = at(client, ONE, "GET", key, b"");
        let value = (answer.status != 404).then_some(&*answer.body);
        assert!(values.contains(&value), "{key}: {answer:?}");
    }
}

fn no_promise_is_broken_by_loss_and_delay() {
    const LOAD: Load = Load {
        clients: 24,
        keys: 6,
    };
    const LOSSY: Link = Link {
        loss_percent: 15,
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(30),
        rate: None,
    };
    let (network, cluster) = start(5, &[]);
    let nodes: Vec<usize> = (0..cluster.count()).collect();
    let history = LOAD.record(&cluster.addresses(API), |clients| {
        network.set_between(&nodes, &nodes, LOSSY);
        clients.finish(800);
        network.heal();
        cluster.settle();
    });
    LOAD.check(&cluster, &history);
    assert!(network.lost() > 0);
    let is_failed = |request: &&Request| request.result == Some(Done::Failed);
    let failed = history.iter().filter(is_failed).count();
    assert!(
        failed < history.len() / 2,
        "{failed} of {} failed",
        history.len()
    );
}

fn a_partition_is_served_where_a_majority_is_and_heals() {
    const SMALLER: &[usize] = &[0, 1];
    const LARGER: &[usize] = &[2, 3, 4];
    let (network, cluster) = start(5, &[]);
    let keys = keys(200);
    for key in &keys {
        done(at(&mut cluster.connect(0), ALL, "PUT", key, b"before"));
    }
    let owners: Vec<Vec<usize>> = keys.iter().map(|key| cluster.owners(key)).collect();
    let conflicts = || -> u64 {
        let nodes = 0..cluster.count();
        nodes
            .map(|node| cluster.metric(node, "VersionConflicts"))
            .sum()
    };
    let conflicts_before = conflicts();
    network.set_between(SMALLER, LARGER, CUT);
    for (side, others) in [(SMALLER, LARGER), (LARGER, SMALLER)] {
        for &node in side {
            for &other in others {
                cluster.await_state(node, other, "dead");
            }
        }
    }
    let mut ends = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let with_larger = owners[number]
            .iter()
            .filter(|owner| LARGER.contains(owner))
            .count();
        let (majority, minority) = match with_larger {
            3 | 2 => (LARGER, SMALLER),
            _ => (SMALLER, LARGER),
        };
        let majority = &mut cluster.connect(majority[number % majority.len()]);
        let minority = &mut cluster.connect(minority[number % minority.len()]);
        ends.push(match number % 4 {
            0 => put_at_quorum(majority, minority, key),
            1 => delete_at_quorum(majority, key),
            2 => put_without_quorum(minority, key),
            _ if with_larger == 3 => put_without_owner(minority, key),
            _ => put_on_both_sides(majority, minority, key),
        });
    }
    network.heal();
    await_agreement(&cluster);
    for (key, end) in keys.iter().zip(ends) {
        await_one_of(&cluster, key, end);
    }
    until("conflicts are counted", || conflicts() > conflicts_before);
}

/// What a key may hold after a partition has healed.
type Ends = &'static [Option<&'static [u8]>];

fn put_at_quorum(majority: &mut Client, minority: &mut Client, key: &str) -> Ends {
    done(at(majority, QUORUM, "PUT", key, b"written"));
    let found = at(majority, QUORUM, "GET", key, b"");
    assert_eq!(found.body, b"written", "{found:?}");
    at(minority, QUORUM, "GET", key, b"").expect_error(503, "INTERNAL");
    &[Some(b"written")]
}

fn delete_at_quorum(majority: &mut Client, key: &str) -> Ends {
    done(at(majority, QUORUM, "DELETE", key, b""));
    at(majority, QUORUM, "GET", key, b"").expect_error(404, "NOT_FOUND");
    &[None]
}

fn put_without_quorum(minority: &mut Client, key: &str) -> Ends {
    let refused = at(minority, QUORUM, "PUT", key, b"refused");
    refused.expect_error(503, "INTERNAL");
    assert!(refused.header("Retry-After").is_some());
    &[Some(b"before"), Some(b"refused")]
}

fn put_without_owner(minority: &mut Client, key: &str) -> Ends {
    at(minority, ONE, "PUT", key, b"refused").expect_error(503, "INTERNAL");
    &[Some(b"before"), Some(b"refused")]
}

fn put_on_both_sides(majority: &mut Client, minority: &mut Client, key: &str) -> Ends {
    done(at(majority, ONE, "PUT", key, b"majority's"));
    done(at(minority, ONE, "PUT", key, b"minority's"));
    &[Some(b"majority's"), Some(b"minority's")]
}

fn a_link_that_is_cut_one_way_costs_no_request_and_no_member() {
    // Who is found dead is soon removed.
    let (network, cluster) = start(5, &[("HYPERCACHE_DEAD_GRACE", "3s")]);
    let nodes = 0..cluster.count();
    network.set(0, 1, CUT);
    for node in [0, 1] {
        until("others confirm that the far end is there", || {
            cluster.metric(node, "IndirectProbeSuccess") >= 5
        });
    }
    for node in nodes.clone() {
        let mut client = cluster.connect(node);
        for key in keys(40) {
            expect_service(&mut client, &key);
        }
    }
    network.heal();
    await_agreement(&cluster);
    for node in nodes {
        assert_eq!(cluster.metric(node, "NodesRemoved"), 0);
    }
}

fn a_node_with_a_slow_link_serves_while_it_catches_up() {
    const SLOW: Link = Link {
        loss_percent: 0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        rate: Some(1_000_000),
    };
    let env = [
        // Nothing but its data makes it ready.
        ("HYPERCACHE_BOOTSTRAP_TIMEOUT", "1h"),
        // Heartbeats must be answered in time although they wait for the link.
        ("HYPERCACHE_HEARTBEAT", "1s"),
    ];
    let (network, mut cluster) = start(3, &env);
    let keys = keys(60);
    let value = vec![b'v'; 4 * 1024];
    for key in &keys {
        done(at(&mut cluster.connect(0), ALL, "PUT", key, &value));
    }
    cluster.kill(2);
    network.set_between(&[2], &[0, 1], SLOW);
    cluster.launch(2);
    let mut management = cluster.connect_management(2);
    let mut clients: Vec<Client> = (0..3).map(|node| cluster.connect(node)).collect();
    let mut served = 0;
    until("the node has caught up", || {
        expect_service(&mut clients[0], "by-node-0");
        expect_service(&mut clients[1], "by-node-1");
        let written = at(&mut clients[2], QUORUM, "PUT", "by-node-2", b"v").status == 200;
        let found = at(&mut clients[2], QUORUM, "GET", "by-node-2", b"").body == b"v";
        let health = management.get("/health");
        if health.text() == "bootstrapping" && written && found {
            served += 1;
        }
        health.status == 200
    });
    assert!(served > 0, "it was ready before it served");
    network.heal();
    await_agreement(&cluster);
    for key in &keys {
        await_one_of(&cluster, key, &[Some(&value)]);
    }
}

fn a_node_that_nothing_reaches_is_found_dead_and_gets_what_it_missed() {
    let (network, cluster) = start(3, &[]);
    let keys = keys(60);
    let mut clients: Vec<Client> = (0..3).map(|node| cluster.connect(node)).collect();
    for key in &keys {
        done(at(&mut clients[0], ALL, "PUT", key, b"old"));
    }
    network.set_between(&[2], &[0, 1], CUT);
    for (number, key) in keys.iter().enumerate() {
        let client = &mut clients[number % 2];
        expect_service(client, "service");
        match number % 3 {
            0 => done(at(client, QUORUM, "DELETE", key, b"")),
            _ => done(at(client, QUORUM, "PUT", key, b"new")),
        }
        if number == keys.len() / 2 {
            cluster.await_state(0, 2, "dead");
            cluster.await_state(1, 2, "dead");
        }
    }
    at(&mut clients[2], QUORUM, "PUT", "alone", b"v").expect_error(503, "INTERNAL");
    network.heal();
    await_agreement(&cluster);
    for (number, key) in keys.iter().enumerate() {
        let end = match number % 3 {
            0 => None,
            _ => Some(&b"new"[..]),
        };
        await_one_of(&cluster, key, &[end]);
    }
}
