//! Writes that an owner did not take, kept for it until it is back.
//!
//! One per node and key: a newer write takes the place of an older one, an older
//! one is not kept at all. Bounds: so many hints and so many bytes for one node and
//! for all, and a time to live; what is dropped for a bound is counted and left to
//! anti-entropy. Hints are replayed oldest first, a batch at a time; a hint is
//! forgotten when its node has answered for exactly that write.
//!
//! A hint never counts towards a quorum.

use std::collections::BTreeMap;

use super::message::{Frames, PeerOp, WriteOp};
use super::view::NodeIx;
use crate::clock::{Origin, SteadyMs, Version};
use crate::mutation::{Mutation, planted};

/// How many hints one replay sends.
pub const REPLAY_BATCH: usize = 256;

/// What a hint costs beyond its write and the second copy of its key, roughly: two map
/// entries.
const OVERHEAD_BYTES: usize = 128;

/// How much may be kept.
#[derive(Clone, Copy, Debug)]
pub struct HintLimits {
    /// Life of a hint.
    pub ttl_ms: u64,
    /// Hints for one node.
    pub per_node: usize,
    /// Bytes for one node.
    pub per_node_bytes: usize,
    /// Hints for all nodes.
    pub total: usize,
    /// Bytes for all nodes.
    pub total_bytes: usize,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintCounters {
    /// Hints kept.
    pub queued: u64,
    /// Hints their node has taken.
    pub replayed: u64,
    /// Hints that outlived their time.
    pub expired: u64,
    /// Hints not kept or given up for a bound of one node, or because the node does
    /// not own the key any more.
    pub dropped: u64,
    /// Hints not kept for a bound of all nodes.
    pub global_dropped: u64,
}

#[derive(Debug)]
struct Hint {
    version: Version,
    origin: Origin,
    added_at: SteadyMs,
    key_len: usize,
    /// A frame's format byte and the one write.
    encoded: Vec<u8>,
}

impl Hint {
    fn write(&self) -> Option<WriteOp<'_>> {
        let body = Frames::new(&self.encoded).ok()?.next()?.ok()?;
        match PeerOp::decode(body).ok()? {
            PeerOp::Apply(write) => Some(write),
            _ => None,
        }
    }

    fn charge(&self) -> usize {
        self.encoded.len() + self.key_len + OVERHEAD_BYTES
    }
}

/// The hints for one node, in the order they came.
#[derive(Debug, Default)]
struct NodeHints {
    hints: BTreeMap<u64, Hint>,
    by_key: BTreeMap<Vec<u8>, u64>,
    bytes: usize,
    /// Whether a write that the node did not take is kept here no more.
    lost_any: bool,
}

impl NodeHints {
    fn remove(&mut self, number: u64) -> Option<Hint> {
        let hint = self.hints.remove(&number)?;
        self.bytes -= hint.charge();
        if let Some(write) = hint.write() {
            self.by_key.remove(write.key);
        }
        Some(hint)
    }
}

/// The hints of one core.
#[derive(Debug)]
pub struct Hints {
    limits: HintLimits,
    nodes: Vec<NodeHints>,
    count: usize,
    bytes: usize,
    next_number: u64,
    counters: HintCounters,
}

impl Hints {
    /// No hints yet.
    pub fn new(limits: HintLimits) -> Self {
        Self {
            limits,
            nodes: Vec::new(),
            count: 0,
            bytes: 0,
            next_number: 0,
            counters: HintCounters::default(),
        }
    }

    /// How many hints are kept.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What they take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was counted.
    pub fn counters(&self) -> &HintCounters {
        &self.counters
    }

    /// How many are kept for one node.
    pub fn len_for(&self, node: NodeIx) -> usize {
        self.nodes
            .get(node.index())
            .map_or(0, |node| node.hints.len())
    }

    /// Keeps a write for a node.
    pub fn add(&mut self, node: NodeIx, write: &WriteOp<'_>, now: SteadyMs) {
        if planted(Mutation::SkipHints) {
            return;
        }
        if self.nodes.len() <= node.index() {
            self.nodes.resize_with(node.index() + 1, NodeHints::default);
        }
        let kept = &mut self.nodes[node.index()];
        if let Some(&number) = kept.by_key.get(write.key) {
            let newer = kept.hints.get(&number).is_some_and(|hint| {
                (hint.version, hint.origin) >= (write.version, write.origin)
                    || planted(Mutation::KeepFirstHint)
            });
            if newer {
                return;
            }
            if let Some(old) = kept.remove(number) {
                self.count -= 1;
                self.bytes -= old.charge();
            }
        }
        let mut encoded = vec![super::message::FORMAT];
        write.encode(&mut encoded);
        let hint = Hint {
            version: write.version,
            origin: write.origin,
            added_at: now,
            key_len: write.key.len(),
            encoded,
        };
        let charge = hint.charge();
        if kept.hints.len() >= self.limits.per_node
            || kept.bytes + charge > self.limits.per_node_bytes
        {
            self.counters.dropped += 1;
            kept.lost_any = true;
            return;
        }
        if self.count >= self.limits.total || self.bytes + charge > self.limits.total_bytes {
            self.counters.global_dropped += 1;
            kept.lost_any = true;
            return;
        }
        kept.by_key.insert(write.key.to_vec(), self.next_number);
        kept.hints.insert(self.next_number, hint);
        kept.bytes += charge;
        self.next_number += 1;
        self.count += 1;
        self.bytes += charge;
        self.counters.queued += 1;
    }

    /// The oldest hints for a node, [`REPLAY_BATCH`] at most, each with its number.
    pub fn oldest(&self, node: NodeIx) -> impl Iterator<Item = (u64, WriteOp<'_>)> {
        let hints = self.nodes.get(node.index()).map(|node| node.hints.iter());
        hints
            .into_iter()
            .flatten()
            .take(REPLAY_BATCH)
            .filter_map(|(&number, hint)| Some((number, hint.write()?)))
    }

    /// The node has taken this hint.
    pub fn replayed(&mut self, node: NodeIx, number: u64) {
        if self.forget(node, number) {
            self.counters.replayed += 1;
        }
    }

    /// The node will never take this hint.
    pub fn refused(&mut self, node: NodeIx, number: u64) {
        if self.forget(node, number) {
            self.counters.dropped += 1;
        }
    }

    /// Forgets all hints for a node that left.
    pub fn forget_node(&mut self, node: NodeIx) {
        if let Some(kept) = self.nodes.get_mut(node.index()) {
            let gone = std::mem::take(kept);
            self.count -= gone.hints.len();
            self.bytes -= gone.bytes;
            self.counters.dropped += gone.hints.len() as u64;
        }
    }

    /// Drops hints that have outlived their time, `steps_max` at most.
    pub fn expire(&mut self, now: SteadyMs, steps_max: usize) {
        for index in 0..self.nodes.len() {
            for _ in 0..steps_max {
                let oldest = self.nodes[index].hints.first_key_value();
                let Some((&number, hint)) = oldest else {
                    break;
                };
                if now.since(hint.added_at) < self.limits.ttl_ms {
                    break;
                }
                self.forget(NodeIx(index as u16), number);
                self.nodes[index].lost_any = true;
                self.counters.expired += 1;
            }
        }
    }

    /// Tells once of each node for which hints were lost to a bound or to their age: only
    /// comparing replicas can bring it what it missed.
    pub fn take_lost(&mut self) -> impl Iterator<Item = NodeIx> {
        let nodes = self.nodes.iter_mut().enumerate();
        nodes.filter_map(|(index, node)| {
            std::mem::take(&mut node.lost_any).then_some(NodeIx(index as u16))
        })
    }

    fn forget(&mut self, node: NodeIx, number: u64) -> bool {
        let Some(kept) = self.nodes.get_mut(node.index()) else {
            return false;
        };
        match kept.remove(number) {
            None => false,
            Some(hint) => {
                self.count -= 1;
                self.bytes -= hint.charge();
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HintLimits = HintLimits {
        ttl_ms: 1_000,
        per_node: 3,
        per_node_bytes: 10_000,
        total: 4,
        total_bytes: 20_000,
    };
    const A: NodeIx = NodeIx(0);
    const B: NodeIx = NodeIx(1);

    fn write(key: &[u8], version: u64) -> WriteOp<'_> {
        WriteOp {
            key,
            version: Version::new(version).unwrap(),
            origin: Origin(1),
            value: Some(b"value"),
            expires_at: None,
        }
    }

    fn kept(hints: &Hints, node: NodeIx) -> Vec<(Vec<u8>, u64)> {
        let oldest = hints.oldest(node);
        oldest
            .map(|(_, write)| (write.key.to_vec(), write.version.get()))
            .collect()
    }

    #[test]
    fn the_newest_write_of_a_key_is_kept_whatever_the_order() {
        let mut hints = Hints::new(LIMITS);
        for version in [2, 5, 3] {
            hints.add(A, &write(b"k", version), SteadyMs(0));
        }
        assert_eq!(kept(&hints, A), [(b"k".to_vec(), 5)]);
        assert_eq!(hints.len(), 1);
    }

    #[test]
    fn a_hint_older_than_its_ttl_is_dropped_and_counted() {
        let mut hints = Hints::new(LIMITS);
        hints.add(A, &write(b"old", 1), SteadyMs(0));
        hints.add(A, &write(b"young", 1), SteadyMs(500));
        hints.expire(SteadyMs(1_000), 10);
        assert_eq!(kept(&hints, A), [(b"young".to_vec(), 1)]);
        assert_eq!(hints.counters().expired, 1);
        assert_eq!(hints.take_lost().collect::<Vec<_>>(), [A]);
        assert_eq!(hints.take_lost().count(), 0);
    }

    #[test]
    fn caps_of_one_node_and_of_all_hold_and_are_counted_apart() {
        let mut hints = Hints::new(LIMITS);
        for key in [b"a", b"b", b"c", b"d"] {
            hints.add(A, &write(key, 1), SteadyMs(0));
        }
        assert_eq!((hints.len(), hints.counters().dropped), (3, 1));
        hints.add(B, &write(b"a", 1), SteadyMs(0));
        hints.add(B, &write(b"b", 1), SteadyMs(0));
        assert_eq!((hints.len(), hints.counters().global_dropped), (4, 1));
        hints.forget_node(A);
        hints.forget_node(B);
        assert_eq!((hints.len(), hints.bytes()), (0, 0));
    }

    #[test]
    fn bytes_are_bounded() {
        let mut hints = Hints::new(LIMITS);
        let value = vec![0; 6_000];
        for key in [b"a", b"b"] {
            let write = WriteOp {
                value: Some(&value),
                ..write(key, 1)
            };
            hints.add(A, &write, SteadyMs(0));
        }
        assert_eq!((hints.len(), hints.counters().dropped), (1, 1));
        assert!(hints.bytes() <= LIMITS.per_node_bytes);
    }

    #[test]
    fn a_hint_that_was_replaced_meanwhile_is_not_forgotten() {
        let mut hints = Hints::new(LIMITS);
        hints.add(A, &write(b"k", 1), SteadyMs(0));
        let (number, _) = hints.oldest(A).next().unwrap();
        hints.add(A, &write(b"k", 2), SteadyMs(0));
        hints.replayed(A, number);
        assert_eq!(kept(&hints, A), [(b"k".to_vec(), 2)]);
        assert_eq!(hints.counters().replayed, 0);
    }
}
