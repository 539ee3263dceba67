//! Two nodes that compare what they hold, back to back: what they come to hold, and what
//! that costs.

use super::*;
use crate::cluster::message::{
    Items, Verdict, hashes, items, partition_digests, put_hash, put_partition_digests,
};
use crate::cluster::replica::{HANDED_BYTES_MAX, HANDED_ITEMS_MAX, SCANNED_KEYS_MAX};
use crate::cluster::retire::DROPPED_KEYS_MAX;
use crate::hash::PARTITION_COUNT;
use crate::store::{Content, Digest};

/// What the heads of a request and of its answer take, and more.
const HEADS_BYTES: usize = 512;

/// What passed between two nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traffic {
    frames: usize,
    /// Of frames and answers.
    bytes: usize,
    /// Entries of exchanges.
    entries: usize,
    /// Items, whichever way.
    items: usize,
}

struct Pair {
    nodes: [Coordinator; 2],
    now: UnixMs,
}

impl Pair {
    /// Two nodes that own everything and may hold so many items each; 0 for any number.
    fn new(items_max: usize) -> Self {
        let nodes = [0, 1].map(|me| {
            let view = view_of(me, 2, 2);
            coordinator_of_size(&format!("n{me}"), &view, items_max)
        });
        Self { nodes, now: NOW }
    }

    /// Has a node hold a key, stamped `at` milliseconds after the beginning.
    fn store(&mut self, node: usize, key: &[u8], at: u64, value: &[u8]) {
        let content = Content::Value {
            value: ValueIn::Bytes(value),
            expires_at: None,
        };
        let version = Version::at(NOW).later(at);
        let hash = KeyHash::of(key);
        let local = self.nodes[node].local_mut();
        let stored = local.apply(hash, key, version, Origin(7), content, NOW);
        stored.unwrap();
    }

    /// Runs one session of a node with the other, which has none of its own.
    fn session(&mut self, asking: usize) -> Traffic {
        let mut traffic = Traffic::default();
        let done = |nodes: &[Coordinator; 2]| nodes[asking].sync().counters().syncs;
        let before = done(&self.nodes);
        let asked = NodeIx(1 - asking as u16);
        while done(&self.nodes) == before {
            let (sequence, frame) = loop {
                // Between sessions: the next is due when its time has come.
                if let Some((sequence, frame)) = self.nodes[asking].poll(asked, Lane::Bulk) {
                    break (sequence, frame.to_vec());
                }
                self.now = UnixMs(self.now.0 + 1_000);
                self.nodes[asking].tick(self.now);
            };
            let mut reply = Vec::new();
            let serving = &mut self.nodes[asked.index()];
            serving.serve(&frame, self.now, &mut reply).unwrap();
            traffic.frames += 1;
            traffic.bytes += frame.len() + reply.len();
            traffic.count(&frame, &reply);
            self.nodes[asking].answered(asked, Lane::Bulk, sequence, &reply, self.now);
        }
        assert_eq!(self.nodes[asking].sync().counters().failed, 0);
        traffic
    }

    fn in_step(&self) -> bool {
        let [one, other] = [0, 1].map(|node| self.nodes[node].local().shard());
        PartitionId::all().all(|partition| one.digest(partition) == other.digest(partition))
    }

    fn keys_scanned(&self) -> [u64; 2] {
        [0, 1].map(|node| self.nodes[node].sync().counters().keys_scanned)
    }

    fn evicted(&self) -> u64 {
        let stats = self.nodes.iter().map(|node| node.stats().evicted_items);
        stats.sum()
    }
}

impl Traffic {
    /// Counts what a frame and its answer carry, which has bounds.
    fn count(&mut self, frame: &[u8], reply: &[u8]) {
        for body in Frames::new(frame).unwrap() {
            match PeerOp::decode(body.unwrap()).unwrap() {
                PeerOp::Exchange { entries, .. } => self.entries += entries.iter().count(),
                PeerOp::Offer(_) => self.items += 1,
                PeerOp::CompareMany { .. } | PeerOp::Compare { .. } | PeerOp::Fetch { .. } => {}
                op => panic!("{op:?}"),
            }
        }
        let (mut handed, mut handed_bytes) = (0, 0);
        let mut hand = |items: Items<'_>| {
            for write in items.iter() {
                handed += 1;
                handed_bytes += write.key.len() + write.value.map_or(0, <[u8]>::len);
            }
        };
        for body in message::answers(reply).unwrap().1 {
            match Answer::decode(body.unwrap()).unwrap() {
                Answer::Exchanged { items, .. } | Answer::Fetched { items, .. } => hand(items),
                _ => {}
            }
        }
        let item_bytes_max = 64 << 10;
        assert!(handed <= HANDED_ITEMS_MAX && handed_bytes <= HANDED_BYTES_MAX + item_bytes_max);
        self.items += handed;
    }
}

/// So many keys of one partition.
fn keys_of_one_partition(count: usize) -> Vec<[u8; 8]> {
    keys_of(5..6, count)
}

/// So many keys of these partitions together.
fn keys_of(partitions: std::ops::Range<usize>, count: usize) -> Vec<[u8; 8]> {
    let keys = (0_u64..).map(u64::to_le_bytes);
    let here = keys.filter(|key| partitions.contains(&KeyHash::of(key).partition().index()));
    here.take(count).collect()
}

#[test]
fn a_core_says_for_how_long_it_has_nothing_to_do() {
    let mut alone = coordinator("n0", &view_of(0, 1, 1));
    alone.tick(NOW);
    alone.take_activities();
    assert_eq!(alone.quiet_ms(NOW), Some(u64::MAX));

    let mut pair = Pair::new(0);
    assert_eq!(
        pair.nodes[0].quiet_ms(NOW),
        None,
        "it lacks all that it owns"
    );
    pair.session(0);
    let (now, cluster) = (pair.now, &mut pair.nodes[0]);
    cluster.tick(now);
    assert_eq!(cluster.quiet_ms(now), None, "what it did is to be told");
    cluster.take_activities();
    let quiet = cluster.quiet_ms(now).expect("it is in step");
    assert!(quiet >= 1_000, "{quiet} ms to the next session");

    let later = UnixMs(now.0 + 700);
    assert_eq!(
        cluster.quiet_ms(later),
        Some(quiet - 700),
        "it was not told the time"
    );
    cluster.tick(later);
    assert_eq!(cluster.quiet_ms(later), Some(quiet - 700));
    assert!(cluster.poll(NodeIx(1), Lane::Bulk).is_none());

    let _put = start(cluster, put(), Consistency::Quorum);
    assert_eq!(cluster.quiet_ms(later), None, "an operation waits");
}

#[test]
fn one_frame_has_few_keys_looked_through_however_much_it_asks() {
    const PARTITIONS: usize = 8;
    let mut pair = Pair::new(0);
    for key in keys_of(0..PARTITIONS, 2 * SCANNED_KEYS_MAX) {
        pair.store(1, &key, 0, b"v");
    }
    let mut frame = vec![FORMAT];
    for partition in PartitionId::all().take(PARTITIONS) {
        let digest = Digest::default();
        PeerOp::Compare { partition, digest }.encode(&mut frame);
    }
    let mut reply = Vec::new();
    pair.nodes[1].serve(&frame, pair.now, &mut reply).unwrap();
    let shard = pair.nodes[1].local().shard();
    let lens = PartitionId::all().map(|partition| shard.stored_len(partition));
    let largest = lens.max().unwrap();
    let scanned = pair.keys_scanned()[1] as usize;
    let bounds = SCANNED_KEYS_MAX - largest..=SCANNED_KEYS_MAX + largest;
    assert!(bounds.contains(&scanned), "{scanned} not in {bounds:?}");
    let answers = message::answers(&reply).unwrap().1;
    let later = answers.filter(|body| {
        let answer = Answer::decode(body.as_ref().copied().unwrap());
        answer.unwrap() == Answer::Refused(Refusal::Later)
    });
    assert!(
        later.count() >= PARTITIONS / 2 - 1,
        "the others are asked again"
    );
}

#[test]
fn one_tick_removes_few_of_the_items_that_were_cleared() {
    const ITEMS: usize = 3 * CLEAR_STEPS;
    let mut pair = Pair::new(0);
    for key in 0..ITEMS as u64 {
        pair.store(0, &key.to_le_bytes(), 0, b"v");
    }
    let cluster = &mut pair.nodes[0];
    cluster.local_mut().clear(Version::at(NOW).later(1));
    let mut left = ITEMS;
    while left > 0 {
        pair.now = UnixMs(pair.now.0 + 20);
        cluster.tick(pair.now);
        let removed = left - cluster.local().shard().len();
        assert!((1..=CLEAR_STEPS).contains(&removed), "{removed} of {left}");
        left -= removed;
    }
}

#[test]
fn one_tick_drops_few_keys_of_a_partition_that_others_own() {
    const KEYS: usize = 2 * DROPPED_KEYS_MAX + 10;
    let keys = keys_of_one_partition(KEYS);
    let partition = KeyHash::of(&keys[0]).partition();
    let views = [0, 1].map(|me| view_of(me, 2, 1));
    let view = views.iter().find(|view| !view.takes(view.me(), partition));
    let view = view.unwrap();
    let mut cluster = coordinator_of_size("n", view, 0);
    let content = || Content::Value {
        value: ValueIn::Bytes(b"v"),
        expires_at: None,
    };
    for key in &keys {
        let (hash, version) = (KeyHash::of(key), Version::at(NOW));
        let local = cluster.local_mut();
        let stored = local.apply(hash, key, version, Origin(7), content(), NOW);
        stored.unwrap();
    }
    cluster.sync.retired.add(partition, SteadyMs(0));
    let owner = view.owners(partition)[0];
    cluster.sync.retired.in_step(partition, owner, true);
    for second in 1..=3 {
        cluster.steady.advance(UnixMs(NOW.0 + 1_000 * second));
    }
    let mut lens = Vec::new();
    while cluster.sync.retired().contains(partition) {
        cluster.drop_retired();
        lens.push(cluster.local().shard().stored_len(partition));
    }
    assert_eq!(lens, [KEYS - DROPPED_KEYS_MAX, 10, 0]);
}

#[test]
fn comparing_nodes_in_step_costs_little_and_looks_through_no_key() {
    let mut pair = Pair::new(0);
    for key in 0..60_000_u64 {
        for node in [0, 1] {
            pair.store(node, &key.to_le_bytes(), key, b"v");
        }
    }
    let held = PartitionId::all()
        .filter(|&partition| pair.nodes[0].local().shard().stored_len(partition) > 0);
    assert_eq!(held.count(), PARTITION_COUNT);

    let traffic = pair.session(0);
    let bytes = traffic.bytes + traffic.frames * HEADS_BYTES;
    assert!(bytes < 48 << 10, "{bytes} bytes, {traffic:?}");
    assert_eq!(pair.keys_scanned(), [0, 0]);
    assert_eq!(pair.nodes[0].sync().missing(), 0);
}

#[test]
fn a_partition_of_many_answers_is_sent_once_and_looked_through_once() {
    const KEYS: usize = 500;
    let value = vec![7; 10 << 10];
    let mut pair = Pair::new(0);
    for key in keys_of_one_partition(KEYS) {
        pair.store(1, &key, 0, &value);
    }
    let traffic = pair.session(0);
    assert!(pair.in_step());
    assert!(traffic.frames > 4, "{traffic:?}");
    assert_eq!((traffic.items, traffic.entries), (KEYS, 0));
    // Each answer has room for few of the items that were asked for.
    let asked = traffic.frames * HANDED_ITEMS_MAX * size_of::<u64>();
    assert!(traffic.bytes < KEYS * (value.len() + 64) + asked + (48 << 10));
    assert_eq!(pair.keys_scanned(), [0, KEYS as u64]);
}

/// Whoever restarted empty between an exchange and a fetch answers the fetch with nothing.
/// Has an empty node copy `keys` from two others that hold them, whose answers come by
/// turns, until so many sessions ended well; what passed. One of the others may answer no
/// more from some frame on.
fn copied_from_two(keys: &[[u8; 8]], gone: Option<(u16, usize)>, sessions: u64) -> Traffic {
    let mut nodes =
        [0, 1, 2].map(|me| coordinator_of_size(&format!("n{me}"), &view_of(me, 3, 3), 0));
    for node in &mut nodes[1..] {
        for key in keys {
            let content = Content::Value {
                value: ValueIn::Bytes(b"v"),
                expires_at: None,
            };
            let (hash, version) = (KeyHash::of(key), Version::at(NOW));
            let local = node.local_mut();
            let stored = local.apply(hash, key, version, Origin(7), content, NOW);
            stored.unwrap();
        }
    }
    let [asking, others @ ..] = &mut nodes;
    let (mut traffic, mut now, mut sent) = (Traffic::default(), NOW, [0; 3]);
    for round in 0.. {
        assert!(round < 10_000, "it comes to no end");
        let mut quiet = true;
        for node in [1, 2] {
            let asked = NodeIx(node);
            let Some((sequence, frame)) = asking.poll(asked, Lane::Bulk) else {
                continue;
            };
            let frame = frame.to_vec();
            quiet = false;
            sent[usize::from(node)] += 1;
            if gone.is_some_and(|(gone, from)| gone == node && sent[usize::from(node)] > from) {
                asking.failed(asked, Lane::Bulk, sequence, now);
                continue;
            }
            let mut reply = Vec::new();
            let serving = &mut others[usize::from(node) - 1];
            serving.serve(&frame, now, &mut reply).unwrap();
            traffic.frames += 1;
            traffic.bytes += frame.len() + reply.len();
            traffic.count(&frame, &reply);
            asking.answered(asked, Lane::Bulk, sequence, &reply, now);
        }
        if quiet {
            if asking.sync().counters().syncs >= sessions {
                break;
            }
            now = UnixMs(now.0 + 200);
            asking.tick(now);
        }
    }
    assert_eq!(asking.sync().counters().bootstrap_timeouts, 0);
    let shards = [asking.local().shard(), others[0].local().shard()];
    let [copied, held] = shards.map(Shard::len);
    assert_eq!((copied, held), (keys.len(), keys.len()));
    traffic
}

#[test]
fn what_two_nodes_hold_is_copied_from_one_of_them() {
    let keys = keys_of(0..16, 8_000);
    let traffic = copied_from_two(&keys, None, 2);
    assert_eq!(traffic.items, keys.len());
    assert!(traffic.entries < keys.len() / 4, "{traffic:?}");
}

#[test]
fn what_one_of_two_nodes_was_to_send_the_other_sends_when_the_first_is_gone() {
    let keys = keys_of(0..16, 8_000);
    for gone in [(1, 0), (1, 1), (1, 3), (2, 3), (2, 6)] {
        let traffic = copied_from_two(&keys, Some(gone), 1);
        // What was on its way is sent again, no more than that.
        let twice = traffic.items - keys.len();
        assert!(twice <= 2 * HANDED_ITEMS_MAX, "{traffic:?}");
    }
}

#[test]
fn the_answer_to_a_fetch_says_whether_the_partition_is_held() {
    let mut pair = Pair::new(0);
    let key = keys_of_one_partition(1)[0];
    pair.store(1, &key, 0, b"v");
    let mut bytes = Vec::new();
    put_hash(&mut bytes, KeyHash::of(&key));
    let mut frame = vec![FORMAT];
    let fetch = PeerOp::Fetch {
        partition: KeyHash::of(&key).partition(),
        hashes: hashes(&bytes),
    };
    fetch.encode(&mut frame);
    for held in [false, true] {
        let mut reply = Vec::new();
        pair.nodes[1].serve(&frame, pair.now, &mut reply).unwrap();
        let body = message::answers(&reply).unwrap().1.next().unwrap().unwrap();
        let Answer::Fetched {
            holding,
            done,
            items,
        } = Answer::decode(body).unwrap()
        else {
            panic!("another answer");
        };
        assert_eq!((holding, done, items.iter().count()), (held, 1, 1));
        // Being in step with the only co-owner is enough to hold it.
        pair.session(1);
    }
}

#[test]
fn a_node_that_deals_with_nothing_is_not_asked_for_ever() {
    let mut pair = Pair::new(0);
    for key in keys_of_one_partition(500) {
        pair.store(1, &key, 0, &[7; 10 << 10]);
    }
    for _ in 0..100 {
        pair.now = UnixMs(pair.now.0 + 100);
        pair.nodes[0].tick(pair.now);
        let [asking, asked] = &mut pair.nodes;
        let Some((sequence, frame)) = asking.poll(NodeIx(1), Lane::Bulk) else {
            break;
        };
        let mut reply = Vec::new();
        message::begin_answers(&mut reply, asked.view().terms());
        let head = reply.len();
        for body in Frames::new(frame).unwrap().flatten() {
            let op = PeerOp::decode(body).unwrap();
            if matches!(op, PeerOp::Fetch { .. }) {
                let nothing = Answer::Fetched {
                    holding: true,
                    done: 0,
                    items: items(&[]),
                };
                nothing.encode(&mut reply);
            } else {
                let (mut alone, mut answer) = (vec![FORMAT], Vec::new());
                op.encode(&mut alone);
                asked.serve(&alone, pair.now, &mut answer).unwrap();
                reply.extend_from_slice(&answer[head..]);
            }
        }
        asking.answered(NodeIx(1), Lane::Bulk, sequence, &reply, pair.now);
    }
    assert_eq!(pair.nodes[0].sync().counters().failed, 1);
    let partition = KeyHash::of(&keys_of_one_partition(1)[0]).partition();
    assert!(!pair.nodes[0].sync().holds(partition));
}

#[test]
fn what_either_has_newer_goes_over_once_each_way() {
    const KEYS: usize = 600;
    let value = vec![7; 5 << 10];
    let mut pair = Pair::new(0);
    for (number, key) in keys_of_one_partition(KEYS).iter().enumerate() {
        let number = number as u64;
        match number % 4 {
            // Newer here, newer there, only here, only there.
            0 => {
                pair.store(0, key, number + 1, &value);
                pair.store(1, key, number, &value);
            }
            1 => {
                pair.store(0, key, number, &value);
                pair.store(1, key, number + 1, &value);
            }
            2 => pair.store(0, key, number, &value),
            _ => pair.store(1, key, number, &value),
        }
    }
    let traffic = pair.session(0);
    assert!(pair.in_step());
    assert_eq!(traffic.items, KEYS);
    assert_eq!(traffic.entries, KEYS * 3 / 4);
    // Once for the leaves and once for what is in them.
    assert_eq!(pair.keys_scanned(), [KEYS as u64 * 3 / 2; 2]);
    let counters = *pair.nodes[0].sync().counters();
    let half = KEYS as u64 / 2;
    assert_eq!((counters.keys_pulled, counters.keys_pushed), (half, half));
    assert_eq!(counters.keys_left, 0);
}

#[test]
fn full_nodes_do_not_fill_each_other_up() {
    const ITEMS_MAX: u64 = 1_000;
    const COMMON: u64 = 100;
    let mut pair = Pair::new(ITEMS_MAX as usize);
    for node in [0, 1] {
        for key in 0..ITEMS_MAX {
            // Some keys are the same on both, and half of these newer on either.
            let common = key < COMMON;
            let name = if common {
                key
            } else {
                key | (node as u64) << 32
            };
            let newer = common && key % 2 == node as u64;
            pair.store(node, &name.to_le_bytes(), u64::from(newer), &[7; 100]);
        }
    }
    let first = pair.session(0);
    assert_eq!(
        first.items as u64, COMMON,
        "newer versions of what either has"
    );
    for session in 0..20 {
        let traffic = pair.session(session % 2);
        assert_eq!(traffic.items, 0, "session {session}: {traffic:?}");
        assert!(traffic.bytes < 128 << 10, "session {session}: {traffic:?}");
    }
    assert_eq!(pair.evicted(), 0);
    let left = [0, 1].map(|node| pair.nodes[node].sync().counters().keys_left);
    assert_eq!(left, [21 * (ITEMS_MAX - COMMON); 2]);
}

#[test]
fn nodes_that_become_full_meanwhile_evict_nothing() {
    const ITEMS_MAX: u64 = 4_000;
    let mut pair = Pair::new(ITEMS_MAX as usize);
    for node in [0, 1] {
        for key in 0..ITEMS_MAX * 3 / 4 {
            let name = key | (node as u64) << 32;
            pair.store(node, &name.to_le_bytes(), 0, &[7; 10]);
        }
    }
    let room = 2 * ITEMS_MAX as usize / 4;
    let mut items = 0;
    for session in 0..20 {
        items += pair.session(session % 2).items;
    }
    // What was on its way when one became full was sent in vain.
    assert!((1..=2 * room).contains(&items), "{items} items");
    assert_eq!(pair.evicted(), 0);
    assert_eq!(pair.session(0).items, 0);
}

#[test]
fn a_node_that_becomes_full_fetches_no_more() {
    let mut pair = Pair::new(0);
    pair.nodes[0] = coordinator_of_size("n0", &view_of(0, 2, 2), 300);
    for key in keys_of_one_partition(500) {
        pair.store(1, &key, 0, &[7; 10 << 10]);
    }
    let traffic = pair.session(0);
    assert!((290..=400).contains(&traffic.items), "{traffic:?}");
    assert_eq!(pair.evicted(), 0);
    let counters = pair.nodes[0].sync().counters();
    assert_eq!(counters.keys_pulled + counters.keys_left, 500);
}

#[test]
fn a_node_that_becomes_full_takes_no_more_of_what_it_asked_for() {
    let mut pair = Pair::new(0);
    pair.nodes[0] = coordinator_of_size("n0", &view_of(0, 2, 2), 300);
    for key in keys_of_one_partition(500) {
        pair.store(1, &key, 0, b"v");
    }
    let traffic = pair.session(1);
    assert_eq!(traffic.items, 500);
    assert_eq!(pair.evicted(), 0);
    let taken = pair.nodes[0].local().shard().len() as u64;
    let left = pair.nodes[0].sync().counters().keys_left;
    assert!(
        taken > 290 && taken + left == 500,
        "{taken} taken, {left} left"
    );
    assert_eq!(pair.session(1).items, 0);
}

#[test]
fn a_node_that_owns_nothing_there_has_a_verdict_for_each_partition() {
    let mut here = coordinator("n0", &view_of(0, 2, 1));
    let all: Vec<_> = PartitionId::all()
        .map(|partition| (partition, here.local().shard().digest(partition)))
        .collect();
    let mut bytes = Vec::new();
    put_partition_digests(&mut bytes, &all);
    let digests = partition_digests(&bytes).unwrap();
    let mut frame = vec![FORMAT];
    PeerOp::CompareMany { digests }.encode(&mut frame);
    let mut reply = Vec::new();
    here.serve(&frame, NOW, &mut reply).unwrap();
    let body = message::answers(&reply).unwrap().1.next().unwrap().unwrap();
    let Answer::Compared { verdicts } = Answer::decode(body).unwrap() else {
        panic!("another answer");
    };
    for (partition, verdict) in PartitionId::all().zip(verdicts.iter()) {
        let refused = verdict == Verdict::Refused;
        assert_eq!(refused, !here.view().owns(partition), "{partition:?}");
    }
}
