//! Rare circumstances, made on purpose: each is a promise that chance would test once in
//! thousands of seeds.

use hypercache::cluster::Consistency;
use hypercache::cluster::rng::Rng;

use crate::history::{Done, Kind};
use crate::world::{NEVER_MS, World, WorldSettings};
use crate::{agreement, settle};

fn start(settings: WorldSettings) -> World {
    let mut world = World::new(settings, Rng::new(1));
    settle(&mut world, 20_000).unwrap();
    world
}

const SETTINGS: WorldSettings = WorldSettings {
    nodes: 5,
    spares: 0,
    dead_grace_ms: NEVER_MS,
    replication: 5,
    sync_interval_ms: 500,
    hint_ttl_ms: NEVER_MS,
    keys: 1,
    items_max: 0,
};

/// Cuts some nodes off from all others, and heals what was cut before.
pub fn isolate(world: &mut World, side: &[usize]) {
    world.cut.clear();
    for a in 0..world.nodes.len() {
        for b in 0..world.nodes.len() {
            if side.contains(&a) != side.contains(&b) {
                world.cut.insert((a, b));
            }
        }
    }
}

pub fn run(world: &mut World, ms: u64) {
    let end = world.now + ms;
    while world.run_until(end).is_some() {}
}

/// Does something at QUORUM and waits for what comes of it.
pub fn at_quorum(world: &mut World, node: usize, kind: Kind) -> Done {
    let number = world.request(node, 0, kind, Consistency::Quorum);
    run(world, 1_000);
    world.requests[number]
        .result
        .clone()
        .expect("it is answered")
}

pub fn put(value: &str) -> Kind {
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
fn an_owner_that_is_back_before_a_value_expires_does_not_uncover_an_older_one() {
    let mut world = start(WorldSettings {
        nodes: 3,
        replication: 3,
        ..SETTINGS
    });
    let written = at_quorum(&mut world, 0, put("older"));
    assert!(matches!(written, Done::Written(_)), "{written:?}");
    isolate(&mut world, &[2]);
    let newer = put("newer, for a while");
    let number = world.request_expiring(0, 0, newer, Consistency::Quorum, Some(5_000));
    run(&mut world, 3_000);
    let written = &world.requests[number].result;
    assert!(matches!(written, Some(Done::Written(_))), "{written:?}");
    assert_eq!(world.value(2, 0).as_deref(), Some(&b"older"[..]));
    world.cut.clear();
    run(&mut world, 3_000);
    for node in 0..3 {
        assert_eq!(at_quorum(&mut world, node, Kind::Get), Done::Missing);
        assert!(world.resident(node, 0).is_none(), "nothing is left");
    }
}

/// One node is cut off, another is down: neither brings back what was cleared meanwhile.
#[test]
fn what_was_cleared_comes_back_from_nobody() {
    let mut world = start(WorldSettings {
        nodes: 5,
        replication: 5,
        keys: 2,
        ..SETTINGS
    });
    for (key, node) in [(0, 0), (1, 4)] {
        let number = world.request(node, key, put("before"), Consistency::All);
        run(&mut world, 1_000);
        let written = &world.requests[number].result;
        assert!(matches!(written, Some(Done::Written(_))), "{written:?}");
    }
    isolate(&mut world, &[4]);
    world.pause(3);
    world.clear(0);
    assert_eq!(world.value(0, 0), None, "at once");
    run(&mut world, 1_000);
    assert_eq!(world.value(2, 0), None);
    assert_eq!(world.value(4, 0).as_deref(), Some(&b"before"[..]));
    let written = at_quorum(&mut world, 2, put("after"));
    assert!(matches!(written, Done::Written(_)), "{written:?}");
    world.cut.clear();
    world.resume(3);
    run(&mut world, 3_000);
    world.restart_empty(1);
    run(&mut world, 5_000);
    for node in 0..5 {
        assert_eq!(world.value(node, 0).as_deref(), Some(&b"after"[..]));
        assert!(world.resident(node, 1).is_none(), "node {node}");
        let shards = world.nodes[node].cores.iter();
        let stored: usize = shards.map(|core| core.local().shard().len()).sum();
        assert_eq!(stored, 1, "its memory is given back");
    }
}

/// A node that has not heard of it yet is asked too: what it has does not count.
#[test]
fn what_was_cleared_is_not_read_from_who_has_not_heard() {
    let mut world = start(WorldSettings {
        nodes: 3,
        replication: 3,
        ..SETTINGS
    });
    let number = world.request(0, 0, put("before"), Consistency::All);
    run(&mut world, 1_000);
    let written = &world.requests[number].result;
    assert!(matches!(written, Some(Done::Written(_))), "{written:?}");
    let now = world.time_of(0);
    let version = world.nodes[0].cores[0].local_mut().stamp(now);
    for core in &mut world.nodes[0].cores {
        core.local_mut().clear(version);
    }
    assert!(world.value(2, 0).is_some() && world.value(1, 0).is_some());
    assert_eq!(at_quorum(&mut world, 0, Kind::Get), Done::Missing);
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

/// Two members of five that own most copies of the only key, and the other three.
fn sides(world: &World) -> ([usize; 2], [usize; 3]) {
    let owners = world.owners(0);
    let others: Vec<usize> = (0..5).filter(|node| !owners[..2].contains(node)).collect();
    ([owners[0], owners[1]], [others[0], others[1], others[2]])
}

const SPLIT: WorldSettings = WorldSettings {
    replication: 3,
    dead_grace_ms: 2_000,
    ..SETTINGS
};

/// Most owners of a key are on the smaller side of a partition that outlasts the grace.
/// What does the smaller side say to a write, when the larger has gone on without it?
fn writes_on_both_sides() -> (World, Done) {
    let mut world = start(SPLIT);
    let (few, most) = sides(&world);
    isolate(&mut world, &few);
    run(&mut world, 8_000);
    let written = at_quorum(&mut world, most[0], put("by most"));
    assert!(matches!(written, Done::Written(_)), "{written:?}");
    let written = at_quorum(&mut world, few[0], put("by few"));
    (world, written)
}

#[test]
fn once_the_others_may_have_gone_on_the_smaller_side_of_a_partition_refuses_quorums() {
    let (mut world, by_few) = writes_on_both_sides();
    assert_eq!(by_few, Done::Failed);
    let (few, _) = sides(&world);
    assert_eq!(at_quorum(&mut world, few[1], Kind::Get), Done::Failed);
    world.cut.clear();
    settle(&mut world, 20_000).unwrap();
    for node in 0..5 {
        let found = at_quorum(&mut world, node, Kind::Get);
        assert!(matches!(found, Done::Found(..)), "{node}: {found:?}");
    }
}

#[cfg(feature = "mutations")]
#[test]
fn going_on_after_being_cut_off_for_long_is_found() {
    use hypercache::mutation::{Mutation, plant};
    plant(Some(Mutation::IgnoreFence));
    let (_, by_few) = writes_on_both_sides();
    plant(None);
    assert!(matches!(by_few, Done::Written(_)), "{by_few:?}");
}

#[test]
fn what_both_sides_of_a_partition_wrote_at_one_is_settled_by_versions() {
    let mut world = start(SPLIT);
    let (few, most) = sides(&world);
    isolate(&mut world, &few);
    run(&mut world, 1_000);
    let number = world.request(few[0], 0, put("earlier"), Consistency::One);
    run(&mut world, 500);
    let earlier = world.requests[number].result.clone();
    assert!(matches!(earlier, Some(Done::Written(_))), "{earlier:?}");
    let number = world.request(most[0], 0, put("later"), Consistency::One);
    run(&mut world, 500);
    let later = world.requests[number].result.clone();
    assert!(matches!(later, Some(Done::Written(_))), "{later:?}");
    world.cut.clear();
    settle(&mut world, 20_000).unwrap();
    for owner in world.owners(0) {
        assert_eq!(world.value(owner, 0).as_deref(), Some(&b"later"[..]));
    }
    assert!(conflicts(&world) > 0);
}

/// How many writes met a newer one of their key.
fn conflicts(world: &World) -> u64 {
    let cores = world.nodes.iter().flat_map(|node| &node.cores);
    cores.map(|core| core.counters().version_conflicts).sum()
}

const SYNC_INTERVAL_MS: u64 = 10_000;

#[test]
fn what_both_sides_wrote_for_a_minute_is_the_same_within_two_intervals_of_comparison() {
    let mut world = start(WorldSettings {
        dead_grace_ms: NEVER_MS,
        sync_interval_ms: SYNC_INTERVAL_MS,
        hint_ttl_ms: 5_000,
        keys: 300,
        ..SPLIT
    });
    let (few, most) = ([0, 1], [2, 3, 4]);
    isolate(&mut world, &few);
    let cut = world.now;
    let mut acknowledged = [0, 0];
    for key in 0..world.keys.len() {
        // By turns the one and the other side is the last to write.
        for turn in 0..2 {
            let side = (key + turn) % 2;
            let node = [few[key % 2], most[key % 3]][side];
            let value = put(&format!("{key} by {side}"));
            let number = world.request(node, key, value, Consistency::One);
            run(&mut world, 100);
            let result = &world.requests[number].result;
            acknowledged[side] += usize::from(matches!(result, Some(Done::Written(_))));
        }
    }
    assert_eq!(world.now - cut, 60_000);
    let half = world.keys.len() / 2;
    let many = acknowledged.iter().all(|&count| count > half);
    assert!(many, "{acknowledged:?}");
    let cores = world.nodes.iter().flat_map(|node| &node.cores);
    let expired: u64 = cores.map(|core| core.hints().counters().expired).sum();
    assert!(expired > world.keys.len() as u64, "{expired} hints expired");
    assert!(agreement(&world).is_err(), "the sides differ");
    let before = conflicts(&world);
    world.cut.clear();
    let healed = world.now;
    while let Err(difference) = agreement(&world) {
        let took = world.now - healed;
        let in_time = took < 2 * SYNC_INTERVAL_MS;
        assert!(in_time, "after {took} ms, 150 ms is usual: {difference}");
        run(&mut world, 10);
    }
    settle(&mut world, 20_000).unwrap();
    assert!(conflicts(&world) > before);
}

/// Writes all keys at QUORUM, one after the other, through nodes that take writes; returns
/// how many were not acknowledged.
fn fill(world: &mut World, value: &str) -> usize {
    let failed = (0..world.keys.len()).filter(|&key| {
        let takes_writes = |node: &usize| world.takes_writes(*node);
        let nodes: Vec<usize> = world.up().filter(takes_writes).collect();
        let node = nodes[key % 2];
        let number = world.request(node, key, put(value), Consistency::Quorum);
        run(world, 50);
        let result = &world.requests[number].result;
        !matches!(result, Some(Done::Written(_)))
    });
    failed.count()
}

fn all_read(world: &mut World, value: &str) {
    for node in world.up().collect::<Vec<_>>() {
        for key in 0..world.keys.len() {
            let number = world.request(node, key, Kind::Get, Consistency::Quorum);
            run(world, 50);
            let result = world.requests[number].result.clone();
            match result {
                Some(Done::Found(found, _)) => assert_eq!(found, value.as_bytes()),
                other => panic!("key {key} at {node}: {other:?}"),
            }
        }
    }
}

const MANY_KEYS: WorldSettings = WorldSettings {
    nodes: 3,
    spares: 2,
    replication: 3,
    keys: 40,
    ..SETTINGS
};

/// Two nodes join a cluster of three at once while keys are written, then two leave at once.
/// How many writes are refused meanwhile?
fn grow_and_shrink() -> (World, usize) {
    let mut world = start(MANY_KEYS);
    let mut refused = fill(&mut world, "three");
    world.restart_empty(3);
    world.restart_empty(4);
    refused += fill(&mut world, "growing");
    settle(&mut world, 20_000).unwrap();
    world.drain(1);
    world.drain(4);
    refused += fill(&mut world, "shrinking");
    (world, refused)
}

#[test]
fn a_cluster_grows_from_three_to_five_at_once_and_shrinks_back_at_once() {
    let (mut world, refused) = grow_and_shrink();
    assert_eq!(refused, 0);
    settle(&mut world, 20_000).unwrap();
    assert_eq!(world.up().collect::<Vec<_>>(), [0, 2, 3]);
    let placed = world.nodes[0].membership.reading().members().len();
    assert_eq!(
        placed, 3,
        "two that could not be spared have lost their places"
    );
    all_read(&mut world, "shrinking");
}

#[cfg(feature = "mutations")]
#[test]
fn leaving_unannounced_is_found() {
    use hypercache::mutation::{Mutation, plant};
    plant(Some(Mutation::LeaveUnannounced));
    let (_, refused) = grow_and_shrink();
    plant(None);
    assert_ne!(refused, 0);
}

#[test]
fn one_copy_of_each_key_moves_away_from_a_node_that_drains() {
    let mut world = start(WorldSettings {
        replication: 1,
        ..MANY_KEYS
    });
    assert_eq!(fill(&mut world, "only here"), 0);
    world.drain(0);
    settle(&mut world, 20_000).unwrap();
    assert!(!world.nodes[0].up);
    all_read(&mut world, "only here");
}

#[test]
fn former_owners_drop_what_has_other_owners() {
    let mut world = start(MANY_KEYS);
    assert_eq!(fill(&mut world, "v"), 0);
    world.restart_empty(3);
    settle(&mut world, 20_000).unwrap();
    run(&mut world, 5_000);
    for node in 0..4 {
        for key in 0..world.keys.len() {
            let owns = world.owners(key).contains(&node);
            assert_eq!(world.resident(node, key).is_some(), owns, "{key} at {node}");
        }
    }
}

#[test]
fn a_rolling_restart_changes_no_owners() {
    let mut world = start(MANY_KEYS);
    assert_eq!(fill(&mut world, "kept"), 0);
    for node in 0..3 {
        world.drain(node);
        run(&mut world, 1_000);
        assert!(!world.nodes[node].up, "{node} has left");
        world.restart_empty(node);
        settle(&mut world, 20_000).unwrap();
    }
    all_read(&mut world, "kept");
    assert_eq!(world.nodes[0].membership.epoch(), 1);
}
