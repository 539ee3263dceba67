//! Keeping replicas the same: comparison, exchange, and what a node that starts
//! empty must have seen before its answers count.
//!
//! A *session* with one co-owner goes through the partitions both own on this core:
//!
//! ```text
//!  Compare(digest) ──► Same ─────────────────────────────► in step
//!        └──► Differs(64 leaves) ──► Exchange(leaves, entries) ──► items, wanted
//!                                          ▲ more                     │
//!                                          └──────────────────────────┴─► in step
//! ```
//!
//! Each step stands for itself: whatever is lost, late or said twice, the next
//! session finds what still differs. Items go both ways through last writer wins,
//! deletes as tombstones; nothing is concluded from absence.
//!
//! **Holding.** A node holds a partition when it has every write that was
//! acknowledged at QUORUM. One that joins or comes back empty does not: it takes
//! writes (which count) but its reads do not count until it has been in step, since it
//! came, with so many co-owners that every write quorum had one of them: with n
//! owners and quorum w that is n - w + 1. If they cannot be reached within
//! `bootstrap_timeout_ms` it holds the partition all the same, and that is counted.
//!
//! The session interval doubles while nothing differs, up to eight times.

use std::collections::VecDeque;

use super::Consistency;
use super::coordinator::{Call, Coordinator, Lane};
use super::message::{Answer, Entry, LEAVES, PeerOp, WriteOp, entries, leaf_of, put_entry};
use super::view::NodeIx;
use crate::clock::UnixMs;
use crate::hash::{KeyHash, PARTITION_COUNT, PartitionId};
use crate::store::{Digest, Resident};

/// Exchanges of one session under way at once.
const EXCHANGES_MAX: usize = 4;
/// How long after a failed session the next one may begin.
const RETRY_MS: u64 = 200;
/// How far the interval is stretched while nothing differs.
const BACKOFF_MAX: u64 = 8;

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncCounters {
    /// Sessions that were completed.
    pub syncs: u64,
    /// Those of them in which nothing differed.
    pub clean: u64,
    /// Items taken over from co-owners.
    pub keys_pulled: u64,
    /// Items sent to co-owners that wanted them.
    pub keys_pushed: u64,
    /// Sessions that failed.
    pub failed: u64,
    /// Partitions held because the time was over, not because they were in step.
    pub bootstrap_timeouts: u64,
    /// How long the last session took, in milliseconds.
    pub last_ms: u64,
}

#[derive(Debug)]
struct Missing {
    since: UnixMs,
    in_step_with: Vec<NodeIx>,
}

#[derive(Debug, Default)]
struct Session {
    /// Tells this session's answers from those of the one before.
    number: u32,
    active: bool,
    failed: bool,
    differed: bool,
    compares_open: usize,
    exchanges_open: usize,
    differing: VecDeque<(PartitionId, u64)>,
    started: UnixMs,
    retry_at: UnixMs,
}

/// Repair and bootstrap of one core.
#[derive(Debug)]
pub struct SyncState {
    holding: Vec<bool>,
    missing: Vec<Option<Missing>>,
    missing_count: usize,
    sessions: Vec<Session>,
    next_round: UnixMs,
    backoff: u64,
    turn: usize,
    counters: SyncCounters,
}

impl SyncState {
    pub(super) fn new() -> Self {
        Self {
            holding: vec![false; PARTITION_COUNT],
            missing: std::iter::repeat_with(|| None)
                .take(PARTITION_COUNT)
                .collect(),
            missing_count: 0,
            sessions: Vec::new(),
            next_round: UnixMs(0),
            backoff: 1,
            turn: 0,
            counters: SyncCounters::default(),
        }
    }

    /// Whether this node has the data of a partition that it owns.
    #[inline]
    pub fn holds(&self, partition: PartitionId) -> bool {
        self.holding[partition.index()]
    }

    /// How many of its partitions this core still lacks the data of.
    pub fn missing(&self) -> usize {
        self.missing_count
    }

    /// What was counted.
    pub fn counters(&self) -> &SyncCounters {
        &self.counters
    }

    /// How far the interval is stretched at present.
    pub fn backoff(&self) -> u64 {
        self.backoff
    }

    fn session(&mut self, node: NodeIx) -> &mut Session {
        if self.sessions.len() <= node.index() {
            self.sessions
                .resize_with(node.index() + 1, Session::default);
        }
        &mut self.sessions[node.index()]
    }

    fn hold(&mut self, partition: PartitionId) {
        self.holding[partition.index()] = true;
        if self.missing[partition.index()].take().is_some() {
            self.missing_count -= 1;
        }
    }

    fn lack(&mut self, partition: PartitionId, since: UnixMs) {
        self.holding[partition.index()] = false;
        let missing = &mut self.missing[partition.index()];
        if missing.is_none() {
            *missing = Some(Missing {
                since,
                in_step_with: Vec::new(),
            });
            self.missing_count += 1;
        }
    }

    fn disown(&mut self, partition: PartitionId) {
        self.holding[partition.index()] = false;
        if self.missing[partition.index()].take().is_some() {
            self.missing_count -= 1;
        }
    }
}

/// With how many co-owners a newcomer among `owners` must be in step.
fn in_step_needed(owners: usize) -> usize {
    (owners - Consistency::Quorum.needed(owners) + 1).min(owners - 1)
}

impl Coordinator {
    pub(super) fn sync_view_changed(&mut self, now: UnixMs) {
        for partition in PartitionId::all() {
            if partition.core(self.config.cores) != self.config.core {
                continue;
            }
            if !self.view.joined() || !self.view.owns(partition) {
                self.sync.disown(partition);
            } else if self.view.solo() || in_step_needed(self.view.owners(partition).len()) == 0 {
                self.sync.hold(partition);
            } else if !self.sync.holds(partition) {
                self.sync.lack(partition, now);
            }
        }
    }

    pub(super) fn sync_tick(&mut self, now: UnixMs) {
        if self.view.solo() || !self.view.joined() {
            return;
        }
        if self.sync.missing_count > 0 {
            self.bootstrap(now);
        }
        if self.sync.next_round > now {
            return;
        }
        let interval = self.config.sync_interval_ms * self.sync.backoff;
        let jitter = self.rng.below(interval as usize / 4 + 1) as u64;
        self.sync.next_round = UnixMs(now.0 + interval + jitter);
        let count = self.links.len();
        for _ in 0..count {
            self.sync.turn = (self.sync.turn + 1) % count;
            let node = NodeIx(self.sync.turn as u16);
            if node != self.view.me()
                && self.view.reachable(node)
                && !self.sync.session(node).active
            {
                self.start_session(node, false, now);
                if self.sync.session(node).active {
                    return;
                }
            }
        }
    }

    fn bootstrap(&mut self, now: UnixMs) {
        for partition in PartitionId::all() {
            let overdue = self.sync.missing[partition.index()]
                .as_ref()
                .is_some_and(|missing| {
                    now.0.saturating_sub(missing.since.0) >= self.config.bootstrap_timeout_ms
                });
            if overdue {
                self.sync.counters.bootstrap_timeouts += 1;
                self.sync.hold(partition);
            }
        }
        for index in 0..self.links.len() {
            let node = NodeIx(index as u16);
            let session = self.sync.session(node);
            if node != self.view.me()
                && !session.active
                && session.retry_at <= now
                && self.view.reachable(node)
            {
                self.start_session(node, true, now);
            }
        }
    }

    /// Compares the partitions shared with a node: all, or those missing here that
    /// were not in step with it yet.
    fn start_session(&mut self, node: NodeIx, only_missing: bool, now: UnixMs) {
        let mut compares = 0;
        let mut failed = false;
        let number = self.sync.session(node).number.wrapping_add(1);
        let call = Call::Sync { session: number };
        for partition in PartitionId::all() {
            if partition.core(self.config.cores) != self.config.core
                || !self.view.owns(partition)
                || !self.view.owners(partition).contains(&node)
            {
                continue;
            }
            if only_missing {
                let wanted = self.sync.missing[partition.index()]
                    .as_ref()
                    .is_some_and(|missing| !missing.in_step_with.contains(&node));
                if !wanted {
                    continue;
                }
            }
            let digest = self.local.shard().digest(partition);
            let op = PeerOp::Compare { partition, digest };
            if !self.push(node, Lane::Bulk, call, &op) {
                failed = true;
                break;
            }
            compares += 1;
        }
        let session = self.sync.session(node);
        if compares > 0 {
            *session = Session {
                number,
                active: true,
                failed,
                compares_open: compares,
                started: now,
                ..Session::default()
            };
        } else if failed {
            session.retry_at = UnixMs(now.0 + RETRY_MS);
        }
    }

    pub(super) fn sync_answered(
        &mut self,
        node: NodeIx,
        number: u32,
        op: &PeerOp<'_>,
        answer: &Answer<'_>,
        now: UnixMs,
    ) {
        let session = self.sync.session(node);
        if !session.active || session.number != number {
            return;
        }
        match (op, answer) {
            (PeerOp::Compare { partition, .. }, answer) => {
                self.sync.session(node).compares_open -= 1;
                match answer {
                    Answer::Same => self.in_step(*partition, node),
                    Answer::Differs(leaves) => {
                        let own = self.leaf_digests(*partition, now);
                        match leaves.differing(&own) {
                            0 => self.in_step(*partition, node),
                            leaves => {
                                let session = self.sync.session(node);
                                session.differed = true;
                                session.differing.push_back((*partition, leaves));
                            }
                        }
                    }
                    _ => self.sync.session(node).failed = true,
                }
            }
            (
                PeerOp::Exchange {
                    partition, leaves, ..
                },
                answer,
            ) => {
                self.sync.session(node).exchanges_open -= 1;
                if let Answer::Exchanged {
                    more,
                    wanted,
                    items,
                } = answer
                {
                    for write in items.iter() {
                        let hash = KeyHash::of(write.key);
                        if hash.partition() == *partition
                            && !matches!(self.take_in(hash, &write, now), Answer::Refused(_))
                        {
                            self.sync.counters.keys_pulled += 1;
                        }
                    }
                    let wanted: Vec<KeyHash> = wanted.iter().collect();
                    self.push_wanted(node, *partition, *leaves, &wanted, now);
                    if *more {
                        let session = self.sync.session(node);
                        session.differing.push_front((*partition, *leaves));
                    } else {
                        self.in_step(*partition, node);
                    }
                } else {
                    self.sync.session(node).failed = true;
                }
            }
            _ => {}
        }
        self.go_on(node, now);
    }

    pub(super) fn sync_failed(&mut self, node: NodeIx, number: u32, now: UnixMs) {
        let session = self.sync.session(node);
        if session.active && session.number == number {
            session.active = false;
            session.differing.clear();
            session.compares_open = 0;
            session.exchanges_open = 0;
            session.retry_at = UnixMs(now.0 + RETRY_MS);
            self.sync.counters.failed += 1;
        }
    }

    /// Asks for the next exchanges; ends the session when nothing is left.
    fn go_on(&mut self, node: NodeIx, now: UnixMs) {
        loop {
            let session = self.sync.session(node);
            if !session.active || session.exchanges_open >= EXCHANGES_MAX {
                return;
            }
            let number = session.number;
            let Some((partition, leaves)) = session.differing.pop_front() else {
                break;
            };
            let mut bytes = Vec::new();
            self.for_each_entry(partition, leaves, now, |_, entry, _| {
                put_entry(&mut bytes, entry);
            });
            let op = PeerOp::Exchange {
                partition,
                leaves,
                entries: entries(&bytes),
            };
            let call = Call::Sync { session: number };
            if !self.push(node, Lane::Bulk, call, &op) {
                self.sync_failed(node, number, now);
                return;
            }
            self.sync.session(node).exchanges_open += 1;
        }
        let session = self.sync.session(node);
        if session.compares_open > 0 || session.exchanges_open > 0 {
            return;
        }
        session.active = false;
        let (failed, differed) = (session.failed, session.differed);
        let took = now.0.saturating_sub(session.started.0);
        if failed {
            session.retry_at = UnixMs(now.0 + RETRY_MS);
            self.sync.counters.failed += 1;
            return;
        }
        self.sync.counters.syncs += 1;
        self.sync.counters.clean += u64::from(!differed);
        self.sync.counters.last_ms = took;
        self.sync.backoff = if differed {
            1
        } else {
            (self.sync.backoff * 2).min(BACKOFF_MAX)
        };
    }

    fn in_step(&mut self, partition: PartitionId, node: NodeIx) {
        let owners = self.view.owners(partition);
        let Some(missing) = &mut self.sync.missing[partition.index()] else {
            return;
        };
        if !missing.in_step_with.contains(&node) {
            missing.in_step_with.push(node);
        }
        let counted = missing.in_step_with.iter();
        let counted = counted.filter(|node| owners.contains(node)).count();
        if counted >= in_step_needed(owners.len()) {
            self.sync.hold(partition);
        }
    }

    fn push_wanted(
        &mut self,
        node: NodeIx,
        partition: PartitionId,
        leaves: u64,
        wanted: &[KeyHash],
        now: UnixMs,
    ) {
        if wanted.is_empty() {
            return;
        }
        let mut writes = Vec::new();
        self.for_each_entry(partition, leaves, now, |key, entry, resident| {
            if wanted.contains(&entry.hash) {
                writes.push((key.to_vec(), entry, resident));
            }
        });
        for (key, entry, resident) in writes {
            let peeked = self.local.shard().peek(entry.hash, &key, now);
            let value = peeked.map(|item| item.value.bytes().to_vec());
            if value.is_none() && !resident.tombstone {
                continue;
            }
            let write = WriteOp {
                key: &key,
                version: entry.version,
                origin: entry.origin,
                value: value.as_deref(),
                expires_at: resident.expires_at,
            };
            if self.push(node, Lane::Bulk, Call::Repair, &PeerOp::Apply(write)) {
                self.sync.counters.keys_pushed += 1;
            }
        }
    }

    /// The digests of a partition's leaves, without what has expired.
    pub(super) fn leaf_digests(&self, partition: PartitionId, now: UnixMs) -> [Digest; LEAVES] {
        let mut leaves = [Digest::default(); LEAVES];
        self.for_each_entry(partition, u64::MAX, now, |_, entry, resident| {
            let leaf = &mut leaves[leaf_of(entry.hash)];
            let one = Digest::of(entry.hash, entry.version, entry.origin, resident.tombstone);
            *leaf = leaf.with(one);
        });
        leaves
    }

    /// Visits what is known of some leaves of a partition, without what has expired.
    pub(super) fn for_each_entry(
        &self,
        partition: PartitionId,
        leaves: u64,
        now: UnixMs,
        mut visit: impl FnMut(&[u8], Entry, Resident),
    ) {
        self.local
            .shard()
            .scan_residents(partition, |key, resident| {
                let hash = KeyHash::of(key);
                let expired = resident.expires_at.is_some_and(|at| at <= now);
                if !expired && leaves & 1 << leaf_of(hash) != 0 {
                    let entry = Entry {
                        hash,
                        version: resident.version,
                        origin: resident.origin,
                    };
                    visit(key, entry, resident);
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_in_step_meets_every_write_quorum() {
        for owners in 2..=16 {
            let quorum = Consistency::Quorum.needed(owners);
            // Of the others, a quorum that counted the newcomer has at least this many.
            let others = quorum - 1;
            assert!(
                others == 0 || in_step_needed(owners) + others > owners - 1,
                "{owners} owners"
            );
        }
        assert_eq!(in_step_needed(1), 0);
        assert_eq!(in_step_needed(3), 2);
    }
}
