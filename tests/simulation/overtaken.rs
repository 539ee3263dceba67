//! Changes of owners that are overtaken by something else: a partition, a node that hangs,
//! another change. Each was once a way to lose a write.

use hypercache::cluster::Consistency;
use hypercache::cluster::membership::Stage;
use hypercache::cluster::rng::Rng;

use crate::history::{Done, Kind};
use crate::scenarios::{at_quorum, isolate, put, run};
use crate::settle;
use crate::world::{NEVER_MS, World, WorldSettings};

const SETTINGS: WorldSettings = WorldSettings {
    nodes: 3,
    spares: 0,
    dead_grace_ms: 60_000,
    replication: 3,
    sync_interval_ms: 10_000,
    hint_ttl_ms: NEVER_MS,
    keys: 1,
    items_max: 0,
};

const DEAD_MS: u64 = 1_500;

fn start(settings: WorldSettings) -> World {
    let mut world = World::new(settings, Rng::new(3));
    settle(&mut world, 20_000).unwrap();
    world
}

fn ask(world: &mut World, node: usize, key: usize, kind: Kind) -> Option<Done> {
    let number = world.request(node, key, kind, Consistency::Quorum);
    run(world, 50);
    world.requests[number].result.clone()
}

/// Writes all keys through one node at once; returns those that were acknowledged in time.
fn write_all(world: &mut World, node: usize, ms: u64) -> Vec<usize> {
    let keys = 0..world.keys.len();
    let write = |key| world.request(node, key, put("new"), Consistency::Quorum);
    let writes: Vec<usize> = keys.clone().map(write).collect();
    run(world, ms);
    let result = |key: &usize| world.requests[writes[*key]].result.clone();
    keys.filter(|key| is_written(result(key))).collect()
}

/// A read of what was acknowledged may be refused, but finds nothing older.
fn assert_nothing_older(world: &mut World, node: usize, keys: &[usize], when: u64) {
    for &key in keys {
        match ask(world, node, key, Kind::Get) {
            Some(Done::Found(value, _)) => assert_eq!(value, b"new", "{when} {key}"),
            Some(Done::Failed) | None => {}
            other => panic!("{when} {key}: {other:?}"),
        }
    }
}

fn assert_all_found(world: &mut World, nodes: &[usize], keys: &[usize]) {
    for &key in keys {
        for &node in nodes {
            match ask(world, node, key, Kind::Get) {
                Some(Done::Found(value, _)) => assert_eq!(value, b"new", "{key} at {node}"),
                other => panic!("{key} at {node}: {other:?}"),
            }
        }
    }
}

fn is_written(done: Option<Done>) -> bool {
    matches!(done, Some(Done::Written(_)))
}

/// Of three owners one missed a write, one hangs, and the third is told to leave.
#[test]
fn a_node_does_not_leave_with_the_only_copy_in_reach() {
    let mut world = start(SETTINGS);
    isolate(&mut world, &[2]);
    let written = at_quorum(&mut world, 0, put("kept"));
    assert!(matches!(written, Done::Written(_)), "{written:?}");
    isolate(&mut world, &[0]);
    run(&mut world, DEAD_MS);
    world.drain(1);
    run(&mut world, 5_000);
    assert!(world.nodes[1].up, "nobody else has all that it has");
    let read = at_quorum(&mut world, 2, Kind::Get);
    assert!(matches!(read, Done::Found(..)), "{read:?}");
    world.cut.clear();
    settle(&mut world, 20_000).unwrap();
    assert!(!world.nodes[1].up);
    let read = at_quorum(&mut world, 2, Kind::Get);
    assert!(matches!(read, Done::Found(..)), "{read:?}");
}

/// A partition that is shorter than the grace, and on its larger side a node is restarted.
#[test]
fn no_owners_change_on_one_side_of_a_short_partition() {
    let mut world = start(WorldSettings {
        nodes: 5,
        ..SETTINGS
    });
    let owners = world.owners(0);
    let few = [owners[0], owners[1]];
    let mut most: Vec<usize> = (0..5).filter(|node| !few.contains(node)).collect();
    most.retain(|&node| node != owners[2]);
    isolate(&mut world, &few);
    let written = at_quorum(&mut world, few[0], put("by few"));
    assert!(matches!(written, Done::Written(_)), "{written:?}");
    run(&mut world, DEAD_MS);
    world.drain(most[0]);
    run(&mut world, 5_000);
    for kind in [Kind::Get, put("by most")] {
        assert_eq!(at_quorum(&mut world, most[1], kind), Done::Failed);
    }
    world.cut.clear();
    settle(&mut world, 20_000).unwrap();
    let read = at_quorum(&mut world, most[1], Kind::Get);
    assert!(
        matches!(&read, Done::Found(value, _) if value == b"by few"),
        "{read:?}"
    );
}

/// A fourth node joins three that hold as many keys.
fn newcomer() -> World {
    let mut world = start(WorldSettings {
        spares: 1,
        keys: 40,
        ..SETTINGS
    });
    for key in 0..40 {
        assert!(is_written(ask(&mut world, 0, key, put("old"))));
    }
    world.restart_empty(3);
    world
}

/// The newcomer switches to the new owners at one moment and is cut off before or after it.
#[test]
fn a_newcomer_that_vanishes_at_any_moment_of_a_change_loses_nothing() {
    let mut world = newcomer();
    let mut until_switched = 0_u64;
    while world.nodes[3].membership.stage() != Stage::Switched {
        run(&mut world, 1);
        until_switched += 1;
        assert!(until_switched < 10_000, "it never switches");
    }
    for moment in until_switched.saturating_sub(12)..until_switched + 3 {
        let mut world = newcomer();
        run(&mut world, moment);
        isolate(&mut world, &[3]);
        run(&mut world, DEAD_MS);
        world.cut.extend([(0, 2), (2, 0), (1, 2), (2, 1)]);
        let acknowledged = write_all(&mut world, 0, 300);
        isolate(&mut world, &[0, 1]);
        run(&mut world, 700);
        assert_nothing_older(&mut world, 2, &acknowledged, moment);
        world.cut.clear();
        settle(&mut world, 30_000).unwrap();
    }
}

/// One node hangs while another joins, and wakes when the newcomer has copied.
#[test]
fn owners_change_only_when_one_that_hangs_has_come_along() {
    let mut world = start(WorldSettings {
        nodes: 4,
        spares: 1,
        keys: 40,
        ..SETTINGS
    });
    for key in 0..40 {
        assert!(is_written(ask(&mut world, 0, key, put("old"))));
    }
    world.pause(3);
    run(&mut world, DEAD_MS);
    world.restart_empty(4);
    run(&mut world, 5_000);
    for node in [0, 1, 2, 4] {
        let stage = world.nodes[node].membership.stage();
        assert_eq!(stage, Stage::Joint, "node {node}");
    }
    // It wakes, and its clients write before it has heard of anything.
    world.cut.insert((3, 2));
    world.nodes[3].paused = false;
    let acknowledged = write_all(&mut world, 3, 1_000);
    world.cut.clear();
    world.resume(3);
    settle(&mut world, 30_000).unwrap();
    assert_eq!(world.nodes[0].membership.epoch(), 2);
    assert_all_found(&mut world, &[0, 1, 2, 3, 4], &acknowledged);
}

/// One hangs, another is restarted meanwhile, and both are members of a roster with the same
/// members afterwards.
#[test]
fn a_node_that_hung_through_a_restart_does_not_pass_for_one_that_has_all() {
    let mut world = start(WorldSettings {
        nodes: 5,
        keys: 60,
        ..SETTINGS
    });
    for key in 0..60 {
        assert!(is_written(ask(&mut world, 0, key, put("old"))));
    }
    world.pause(1);
    run(&mut world, DEAD_MS);
    world.drain(4);
    run(&mut world, 3_000);
    let acknowledged: Vec<usize> = (0..60)
        .filter(|&key| is_written(ask(&mut world, 0, key, put("new"))))
        .collect();
    assert!(!acknowledged.is_empty());
    world.resume(1);
    settle(&mut world, 30_000).unwrap();
    assert_all_found(&mut world, &[0, 1, 2, 3], &acknowledged);
}

/// A newcomer is ready, unheard, and is taken for dead; the others turn away, write, and take
/// it back. It has to copy what they wrote meanwhile.
#[test]
fn a_newcomer_that_was_given_up_copies_anew() {
    let settings = WorldSettings {
        nodes: 4,
        spares: 1,
        keys: 60,
        ..SETTINGS
    };
    let joining = || {
        let mut world = start(settings);
        for key in 0..60 {
            assert!(is_written(ask(&mut world, 0, key, put("old"))));
        }
        world.restart_empty(4);
        world
    };
    let mut world = joining();
    let mut until_ready = 0_u64;
    while world.nodes[4].membership.stage() != Stage::Ready {
        run(&mut world, 1);
        until_ready += 1;
        assert!(until_ready < 10_000, "it never is");
    }
    for early in 1..4 {
        let mut world = joining();
        run(&mut world, until_ready - early);
        world.cut.extend([(4, 0), (4, 1), (4, 2), (4, 3)]);
        run(&mut world, early + 2);
        isolate(&mut world, &[4]);
        run(&mut world, DEAD_MS);
        world.cut.extend([(3, 0), (0, 3), (3, 1), (1, 3)]);
        let acknowledged = write_all(&mut world, 0, 300);
        // Those that took the writes do not hear of it when it is back.
        world.cut.clear();
        let apart = [(3, 0), (3, 1), (4, 0), (4, 1)];
        world
            .cut
            .extend(apart.iter().flat_map(|&(a, b)| [(a, b), (b, a)]));
        run(&mut world, 3_000);
        assert_nothing_older(&mut world, 3, &acknowledged, early);
        world.cut.clear();
        settle(&mut world, 30_000).unwrap();
    }
}

/// Nodes that were suspended together hear each other first, and what waited in their sockets.
#[test]
fn nodes_that_stood_still_together_do_not_serve_what_others_have_left_behind() {
    let mut world = start(WorldSettings {
        nodes: 5,
        dead_grace_ms: 4_000,
        keys: 60,
        ..SETTINGS
    });
    for key in 0..60 {
        assert!(is_written(ask(&mut world, 0, key, put("old"))));
    }
    world.pause(3);
    world.pause(4);
    isolate(&mut world, &[3, 4]);
    run(&mut world, 15_000);
    let acknowledged: Vec<usize> = (0..60)
        .filter(|&key| is_written(ask(&mut world, 0, key, put("new"))))
        .collect();
    assert!(!acknowledged.is_empty());
    world.resume(3);
    world.resume(4);
    run(&mut world, 1);
    for key in acknowledged {
        for node in [3, 4] {
            assert_eq!(ask(&mut world, node, key, Kind::Get), Some(Done::Failed));
        }
    }
    world.cut.clear();
    settle(&mut world, 30_000).unwrap();
}

/// The seeds of a cluster are those that founded it; meanwhile it has grown.
#[test]
fn a_restarted_founder_founds_no_second_cluster() {
    for (nodes, spares) in [(3, 1), (3, 2), (4, 1)] {
        let mut world = start(WorldSettings {
            nodes,
            spares,
            ..SETTINGS
        });
        for newcomer in nodes..nodes + spares {
            world.restart_empty(newcomer);
            settle(&mut world, 20_000).unwrap();
        }
        let epoch = world.nodes[0].membership.epoch();
        for restarted in 0..nodes + spares {
            world.restart_empty(restarted);
            for _ in 0..300 {
                run(&mut world, 5);
                for node in (0..nodes + spares).filter(|&node| node != restarted) {
                    assert!(world.nodes[node].membership.epoch() >= epoch, "{node}");
                }
            }
            settle(&mut world, 60_000).unwrap();
        }
    }
}

/// The last news of a node that leaves are lost.
#[test]
fn one_that_remains_of_two_settles() {
    let leaving = || {
        let mut world = start(WorldSettings {
            nodes: 2,
            keys: 4,
            ..SETTINGS
        });
        world.drain(1);
        world
    };
    let mut world = leaving();
    let mut until_settled = 0_u64;
    while world.nodes[1].membership.epoch() != 2 {
        run(&mut world, 1);
        until_settled += 1;
        assert!(until_settled < 10_000, "it never does");
    }
    for early in 0..3 {
        let mut world = leaving();
        run(&mut world, until_settled - early);
        world.cut.insert((1, 0));
        run(&mut world, early + 200);
        world.cut.clear();
        settle(&mut world, 120_000).unwrap();
        assert!(is_written(ask(&mut world, 0, 0, put("alone"))), "{early}");
    }
}

/// All were told of a change, and the newcomer is gone for good.
#[test]
fn a_change_that_nobody_began_in_this_life_can_be_given_up() {
    let mut world = start(WorldSettings {
        spares: 2,
        keys: 4,
        ..SETTINGS
    });
    world.restart_empty(4);
    settle(&mut world, 20_000).unwrap();
    // As long as this one is dead within the grace the next change waits.
    world.kill(4);
    run(&mut world, DEAD_MS);
    world.restart_empty(3);
    run(&mut world, 3_000);
    for node in 0..3 {
        world.restart_empty(node);
        run(&mut world, 3_000);
    }
    world.kill(3);
    run(&mut world, 200_000);
    for node in 0..3 {
        let membership = &world.nodes[node].membership;
        assert!(membership.placed(), "{node}: {:?}", membership.stage());
        assert_eq!(membership.reading().members().len(), 3);
    }
}
