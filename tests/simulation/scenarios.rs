//! Rare circumstances, made on purpose: each is a promise that chance would test once in
//! thousands of seeds.

use hypercache::cluster::Consistency;
use hypercache::cluster::rng::Rng;

use crate::history::{Done, Kind};
use crate::settle;
use crate::world::{NEVER_MS, World, WorldSettings};

fn start(settings: WorldSettings) -> World {
    let mut world = World::new(settings, Rng::new(1));
    settle(&mut world, 20_000).unwrap();
    world
}

const SETTINGS: WorldSettings = WorldSettings {
    nodes: 5,
    replication: 5,
    sync_interval_ms: 500,
    hint_ttl_ms: NEVER_MS,
    keys: 1,
};

/// Cuts some nodes off from all others, and heals what was cut before.
fn isolate(world: &mut World, side: &[usize]) {
    world.cut.clear();
    for a in 0..world.nodes.len() {
        for b in 0..world.nodes.len() {
            if side.contains(&a) != side.contains(&b) {
                world.cut.insert((a, b));
            }
        }
    }
}

fn run(world: &mut World, ms: u64) {
    let end = world.now + ms;
    while world.run_until(end).is_some() {}
}

/// Does something at QUORUM and waits for what comes of it.
fn at_quorum(world: &mut World, node: usize, kind: Kind) -> Done {
    let number = world.request(node, 0, kind, Consistency::Quorum);
    run(world, 1_000);
    world.requests[number]
        .result
        .clone()
        .expect("it is answered")
}

fn put(value: &str) -> Kind {
    Kind::Put(value.as_bytes().to_vec())
}

/// Of five owners three have a write; two of them crash, and the third is cut off while
/// the two come back. What both know together with those who missed it must not count.
fn two_that_came_back_empty_ask_each_other() -> Done {
    let mut world = start(SETTINGS);
    isolate(&mut world, &[3, 4]);
    let written = at_quorum(&mut world, 0, put("kept by the third"));
    assert!(matches!(written, Done::Written(_)), "{written:?}");
    isolate(&mut world, &[2]);
    world.restart_empty(0);
    world.restart_empty(1);
    run(&mut world, 5_000);
    let read = at_quorum(&mut world, 0, Kind::Get);
    world.cut.clear();
    settle(&mut world, 20_000).unwrap();
    for node in 0..5 {
        let found = at_quorum(&mut world, node, Kind::Get);
        assert!(matches!(found, Done::Found(..)), "{node}: {found:?}");
    }
    read
}

#[test]
fn nodes_that_came_back_empty_do_not_vouch_for_each_other() {
    assert_eq!(two_that_came_back_empty_ask_each_other(), Done::Failed);
}

#[cfg(feature = "mutations")]
#[test]
fn counting_empty_co_owners_is_found() {
    use hypercache::mutation::{Mutation, plant};
    plant(Some(Mutation::CountEmptyCoOwners));
    let read = two_that_came_back_empty_ask_each_other();
    plant(None);
    assert_eq!(read, Done::Missing);
}

#[test]
fn a_delete_missed_for_longer_than_hints_live_is_known_as_soon_as_the_node_is_back() {
    // The next regular comparison is far away.
    let mut world = start(WorldSettings {
        nodes: 3,
        replication: 3,
        sync_interval_ms: NEVER_MS / 16,
        hint_ttl_ms: 300,
        ..SETTINGS
    });
    let written = at_quorum(&mut world, 0, put("to be deleted"));
    assert!(matches!(written, Done::Written(_)));
    isolate(&mut world, &[2]);
    let deleted = at_quorum(&mut world, 0, Kind::Delete);
    assert!(matches!(deleted, Done::Written(_)));
    run(&mut world, 3_000);
    let hints = world.nodes[0].cores.iter().map(|core| core.hints().len());
    assert_eq!(hints.sum::<usize>(), 0, "hints have expired");
    assert!(world.value(2, 0).is_some());
    world.cut.clear();
    run(&mut world, 3_000);
    assert_eq!(world.value(2, 0), None);
}

#[test]
fn a_minority_refuses_and_the_majority_serves() {
    let mut world = start(SETTINGS);
    isolate(&mut world, &[0, 1]);
    run(&mut world, 2_000);
    assert_eq!(at_quorum(&mut world, 0, put("refused")), Done::Failed);
    assert_eq!(at_quorum(&mut world, 1, Kind::Get), Done::Failed);
    let written = at_quorum(&mut world, 2, put("taken"));
    assert!(matches!(written, Done::Written(_)), "{written:?}");
    // Nor does one of the minority found a cluster when it restarts.
    world.restart_empty(1);
    run(&mut world, 10_000);
    assert_eq!(
        at_quorum(&mut world, 1, put("refused as well")),
        Done::Failed
    );
}
