use std::sync::Arc;

use super::*;
use crate::clock::Origin;
use crate::cluster::membership::State;
use crate::cluster::membership::{RosterId, Terms};
use crate::cluster::message::{FORMAT, Frames, Held, HeldBody, WriteOp};
use crate::cluster::replica::REPLY_BYTES_MAX;
use crate::cluster::view::Node;
use crate::operations::{Exchange, Ticket};
use crate::store::{EvictionPolicy, Shard, ShardConfig, ValueIn};

const NOW: UnixMs = UnixMs(1_800_000_000_000);
const SKEW_MS: u64 = 10_000;
const PATIENCE_MS: u64 = 1_000;

mod sessions;

fn coordinator(id: &str, view: &Arc<View>) -> Coordinator {
    coordinator_of_size(id, view, 0)
}

/// One that holds so many items at most; 0 for any number.
fn coordinator_of_size(id: &str, view: &Arc<View>, items_max: usize) -> Coordinator {
    let shard = Shard::new(ShardConfig {
        cores: CoreCount::ONE,
        core: CoreId::new(0),
        items_max,
        bytes_max: 64 << 20,
        value_bytes_max: 2 << 20,
        tombstones_max: 100,
        eviction: EvictionPolicy::default(),
    });
    let config = Config {
        core: CoreId::new(0),
        cores: CoreCount::ONE,
        hints: HintLimits {
            ttl_ms: 30_000,
            per_node: 100,
            per_node_bytes: 1 << 20,
            total: 100,
            total_bytes: 1 << 20,
        },
        hint_replay_ms: 200,
        clock_skew_ms_max: SKEW_MS,
        sync_interval_ms: 10_000,
        rebalance_interval_ms: 200,
        sync_interval_ms_max: 10_000,
        patience_ms: PATIENCE_MS,
        transfer_rate: 0,
        drop_grace_ms: 1_000,
        bootstrap_timeout_ms: 30_000,
        copies_bytes_max: 0,
    };
    let local = LocalStore::new(shard.unwrap(), Origin::of(id, 0), 60_000);
    Coordinator::new(config, local, Arc::clone(view), 1, NOW)
}

/// Nodes `n0`, `n1`, …, seen by the first; every one of them owns everything.
fn view(count: u16) -> Arc<View> {
    view_of(0, count, count)
}

/// The same seen by one of them, with fewer owners.
fn view_of(me: u16, count: u16, replication: u16) -> Arc<View> {
    let node = |index: u16| {
        let id = format!("n{index}");
        let node = Node {
            hash: crate::clock::NodeHash::of(&id),
            id: Arc::from(id),
            peer_address: Arc::from("peer:1"),
            client_address: Arc::from("client:1"),
            state: State::Alive,
            incarnation: 1,
            placed: true,
            holding: true,
            draining: false,
        };
        (NodeIx(index), node)
    };
    let nodes = (0..count).map(node).collect();
    Arc::new(View::settled(
        NodeIx(me),
        nodes,
        usize::from(replication),
        8,
    ))
}

/// Starts one operation, which has to wait for other nodes.
fn start(cluster: &mut Coordinator, action: Action<'_>, level: Consistency) -> (Exchange, Ticket) {
    let mut exchange = Exchange::new(CoreCount::ONE);
    let operation = Operation {
        hash: KeyHash::of(b"k"),
        key: b"k",
        action,
        consistency: level,
    };
    let ticket = exchange.add(CoreId::new(0), operation);
    let home = Home {
        core: CoreId::new(0),
        reply: 0,
        served_by: CoreId::new(0),
    };
    let batch = exchange.take(0).unwrap();
    assert!(cluster.run(batch, home, NOW).is_none(), "it waits");
    (exchange, ticket)
}

/// What became of it: nothing while it waits still.
fn outcome_of(cluster: &mut Coordinator, started: (Exchange, Ticket)) -> Option<String> {
    let (mut exchange, ticket) = started;
    let mut finished = Vec::new();
    cluster.take_finished(&mut finished);
    exchange.put_back(finished.pop()?.0);
    exchange
        .outcome(ticket)
        .map(|(_, outcome)| format!("{outcome:?}"))
}

/// Has a node answer the one operation of its frame, by the rosters of the one that asks.
fn answer(cluster: &mut Coordinator, node: u16, answer: &Answer<'_>) {
    let terms = cluster.view().terms();
    answer_by(cluster, node, terms, answer);
}

fn answer_by(cluster: &mut Coordinator, node: u16, terms: Terms, answer: &Answer<'_>) {
    let (sequence, frame) = cluster.poll(NodeIx(node), Lane::Data).expect("a frame");
    assert_eq!(Frames::new(frame).unwrap().count(), 1);
    let mut reply = Vec::new();
    message::begin_answers(&mut reply, terms);
    answer.encode(&mut reply);
    cluster.answered(NodeIx(node), Lane::Data, sequence, &reply, NOW);
}

fn held(version: Version, body: HeldBody<'static>) -> Answer<'static> {
    Answer::Read {
        holding: true,
        held: Some(Held {
            version,
            origin: Origin(9),
            expires_at: None,
            body,
        }),
    }
}

fn put() -> Action<'static> {
    Action::Put {
        value: ValueIn::Bytes(b"v"),
        expires_at: None,
    }
}

#[test]
fn the_answer_to_a_frame_of_large_values_is_bounded_and_the_rest_is_told_to_ask_again() {
    let mut cluster = coordinator("n0", &Arc::new(View::alone("n0", 3, 8)));
    let value = vec![7; 1 << 20];
    let mut frame = vec![FORMAT];
    for number in 0..20_u8 {
        let key = [number];
        let stored =
            cluster
                .local_mut()
                .put(KeyHash::of(&key), &key, ValueIn::Bytes(&value), None, NOW);
        stored.unwrap();
        PeerOp::Read {
            key: &key,
            value: true,
        }
        .encode(&mut frame);
    }
    let mut reply = Vec::new();
    cluster.serve(&frame, NOW, &mut reply).unwrap();
    assert!(reply.len() < REPLY_BYTES_MAX + 2 * value.len());
    let later = message::answers(&reply)
        .unwrap()
        .1
        .map(|body| Answer::decode(body.unwrap()).unwrap())
        .skip_while(|answer| matches!(answer, Answer::Read { held: Some(_), .. }));
    let later: Vec<_> = later.collect();
    assert_eq!(later, [Answer::Refused(Refusal::Later); 12]);
}

#[test]
fn a_read_that_was_put_off_is_asked_again() {
    let mut cluster = coordinator("n0", &view(3));
    let started = start(&mut cluster, Action::Get, Consistency::One);
    // The first owner that is asked, whichever it is.
    let asked = |cluster: &mut Coordinator| {
        (1..3)
            .find(|&node| !cluster.links[usize::from(node)].data.is_idle())
            .expect("an owner is asked")
    };
    let node = asked(&mut cluster);
    answer(&mut cluster, node, &Answer::Refused(Refusal::Later));
    assert_eq!(asked(&mut cluster), node);
    let version = Version::at(NOW);
    answer(&mut cluster, node, &held(version, HeldBody::Value(b"v")));
    let outcome = outcome_of(&mut cluster, started).unwrap();
    assert!(outcome.starts_with("Found"), "{outcome}");
}

#[test]
fn reference_defect_06_a_write_that_a_node_refuses_to_own_is_not_acknowledged() {
    let mut cluster = coordinator("n0", &view(3));
    let started = start(&mut cluster, put(), Consistency::Quorum);
    // It may be about to learn that it is an owner, so it is asked again for a while.
    let rounds = 1 + PATIENCE_MS / STEADY_STEP_MS_MAX;
    for round in 0..=rounds {
        cluster.tick(UnixMs(NOW.0 + round * STEADY_STEP_MS_MAX));
        answer(&mut cluster, 1, &Answer::Refused(Refusal::NotOwner));
        answer(&mut cluster, 2, &Answer::Stored { holding: true });
        if cluster.waiting() == 0 {
            break;
        }
    }
    let outcome = outcome_of(&mut cluster, started).unwrap();
    assert!(outcome.starts_with("Unreached"), "{outcome}");
    assert_eq!(cluster.counters().write_acks, 0);
    assert!(cluster.counters().write_apply_refused > 1);
    assert_eq!(cluster.hints().len_for(NodeIx(1)), 1, "it may yet own it");
}

#[test]
fn reference_defect_06_a_node_that_is_no_owner_says_so() {
    let key = b"k";
    let stored_by = [0, 1].map(|me| {
        // Two members with one copy of each key.
        let mut cluster = coordinator(&format!("n{me}"), &view_of(me, 2, 1));
        let owns = cluster.view().owns(KeyHash::of(key).partition());
        let write = WriteOp {
            key,
            version: Version::at(NOW),
            origin: Origin(1),
            value: Some(b"v"),
            expires_at: None,
        };
        let mut frame = vec![FORMAT];
        PeerOp::Write(write).encode(&mut frame);
        let mut reply = Vec::new();
        cluster.serve(&frame, NOW, &mut reply).unwrap();
        let (_, mut bodies) = message::answers(&reply).unwrap();
        let body = bodies.next().unwrap().unwrap();
        let stored = matches!(Answer::decode(body).unwrap(), Answer::Stored { .. });
        assert_eq!(stored, owns);
        let resident = cluster.local().resident(KeyHash::of(key), key);
        assert_eq!(resident.is_some(), owns);
        stored
    });
    assert_ne!(stored_by[0], stored_by[1]);
}

#[test]
fn a_version_from_a_clock_that_is_wrong_is_not_believed_and_moves_no_clock() {
    let wrong = Version::at(NOW).later(SKEW_MS + 1_000);
    let mut cluster = coordinator("n0", &view(3));
    let started = start(&mut cluster, Action::Get, Consistency::Quorum);
    answer(&mut cluster, 1, &held(wrong, HeldBody::Value(b"v")));
    answer(&mut cluster, 2, &held(wrong, HeldBody::Omitted));
    let outcome = outcome_of(&mut cluster, started).unwrap();
    assert!(outcome.starts_with("Unreached"), "{outcome}");

    let started = start(&mut cluster, put(), Consistency::Quorum);
    let stale = Answer::Stale {
        holding: true,
        version: wrong,
        origin: Origin(9),
    };
    answer(&mut cluster, 1, &stale);
    answer(&mut cluster, 2, &stale);
    let outcome = outcome_of(&mut cluster, started).unwrap();
    assert!(outcome.starts_with("Unreached"), "{outcome}");
    assert!(cluster.local_mut().stamp(NOW) < Version::at(NOW).later(1));
    // With the first answer each was lost already.
    assert_eq!(cluster.counters().clock_skew_refused, 2);
}

#[test]
fn a_write_that_loses_a_tie_is_stamped_again_until_it_is_taken_or_given_up() {
    let mut cluster = coordinator("n0", &view(3));
    // Before it holds the partition its own copy does not count.
    let _ = start(&mut cluster, put(), Consistency::Quorum);
    let mut stamps = Vec::new();
    while let Some((first, frame)) = cluster.poll(NodeIx(1), Lane::Data) {
        let body = Frames::new(frame).unwrap().next().unwrap().unwrap();
        let PeerOp::Write(WriteOp { version, .. }) = PeerOp::decode(body).unwrap() else {
            panic!("another operation");
        };
        stamps.push(version);
        // The same version of an origin that comes before ours.
        let mut reply = Vec::new();
        message::begin_answers(&mut reply, cluster.view().terms());
        Answer::Stale {
            holding: true,
            version,
            origin: Origin(0),
        }
        .encode(&mut reply);
        cluster.answered(NodeIx(1), Lane::Data, first, &reply, NOW);
        let (second, _) = cluster.poll(NodeIx(2), Lane::Data).unwrap();
        cluster.answered(NodeIx(2), Lane::Data, second, &reply, NOW);
    }
    assert_eq!(stamps.len() as u32, 1 + RESTAMPS_MAX);
    assert!(stamps.is_sorted_by(|one, next| one < next));
    assert_eq!(cluster.counters().write_quorum_failures, 1);
    assert_eq!(cluster.counters().write_acks, 0);
}

#[test]
fn an_owner_that_neither_writes_where_we_read_nor_reads_where_we_write_does_not_count() {
    let others = Terms {
        reading: RosterId(1),
        also: RosterId(2),
    };
    for (action, good) in [
        (put(), Answer::Stored { holding: true }),
        (Action::Get, held(Version::at(NOW), HeldBody::Value(b"v"))),
    ] {
        let mut cluster = coordinator("n0", &view(3));
        let started = start(&mut cluster, action, Consistency::Quorum);
        answer_by(&mut cluster, 1, others, &good);
        answer_by(&mut cluster, 2, others, &good);
        assert_eq!(cluster.waiting(), 1, "it is asked again for a while");
        cluster.tick(UnixMs(NOW.0 + 1));
        // One has come to terms with us, and its next answer counts.
        answer(&mut cluster, 1, &good);
        answer(&mut cluster, 2, &good);
        let outcome = outcome_of(&mut cluster, started).unwrap();
        assert!(!outcome.starts_with("Unreached"), "{outcome}");
    }
}
