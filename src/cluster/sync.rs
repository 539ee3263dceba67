//! Keeping replicas the same: comparison, exchange, and what a node that starts
//! empty must have seen before its answers count.
//!
//! A *session* with one co-owner goes through the partitions both own on this core, those
//! that are not held yet first:
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
//! deletes as tombstones; nothing is concluded from absence. So much is under way at a
//! time ([`COMPARES_MAX`], [`EXCHANGES_MAX`]) that neither core is kept from its clients
//! for long; a replica that has much to look through says [`Refusal::Later`].
//!
//! **Holding.** A node holds a partition when it has every write that was
//! acknowledged at QUORUM. One that joins, comes back empty or had a cluster of its own
//! does not: it takes writes, but neither they nor its reads count until it has been in
//! step, since then, with so many owners that hold the partition that every write
//! quorum had one of them: with n owners and quorum w that is n - w + 1. Being in step
//! with all other owners will do as well, holding or not: nobody has more; those that are
//! dead and given up by the members are not waited for. If they cannot be reached within
//! `bootstrap_timeout_ms` it holds the partition all the same, and that is counted.
//!
//! The owners meant are those that reads ask. One that is to become an owner
//! ([`super::membership::Stage::Joint`]) copies from them; what it copied before all nodes
//! were known to write to it as well does not count.
//!
//! **When.** Each co-owner has its own interval, which doubles, up to
//! [`BACKOFF_MAX`] times, while sessions find nothing to hand over. A session begins at
//! once with a node that is back and with one for which hints were lost. No interval is
//! longer than half the life of a tombstone: a delete is known to all before it is
//! forgotten.
//!
//! **Full.** A shard at a bound evicts what it likes: it takes newer versions of what it
//! has, and nothing else. Two full replicas that hold different items would fill each
//! other up for ever.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::Consistency;
use super::coordinator::{Call, Coordinator, Lane};
use super::message::{
    Answer, Entry, LEAVES, PeerOp, Refusal, WriteOp, differing, entries, leaf_of, put_entry,
};
use super::retire::Retired;
use super::view::{NodeIx, View};
use crate::clock::{SteadyMs, UnixMs};
use crate::hash::{KeyHash, PARTITION_COUNT, PartitionId};
use crate::mutation::{Mutation, planted};
use crate::store::{Digest, Resident};

/// Partitions of one session that are being compared at once, or wait to be exchanged.
pub const COMPARES_MAX: usize = 256;
/// Exchanges of one session under way at once.
pub const EXCHANGES_MAX: usize = 4;
/// How long after a failed session the next one may begin.
const RETRY_MS: u64 = 200;
/// How far the interval is stretched while there is nothing to hand over.
pub const BACKOFF_MAX: u64 = 8;

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncCounters {
    /// Sessions that were completed.
    pub syncs: u64,
    /// Those of them in which nothing was handed over.
    pub clean: u64,
    /// Items taken over from co-owners.
    pub keys_pulled: u64,
    /// Items sent to co-owners that wanted them.
    pub keys_pushed: u64,
    /// Items not taken over because this shard is full.
    pub keys_left: u64,
    /// Sessions that failed.
    pub failed: u64,
    /// Partitions held because the time was over, not because they were in step.
    pub bootstrap_timeouts: u64,
    /// How long the last session took, in milliseconds.
    pub last_ms: u64,
}

#[derive(Debug)]
struct Missing {
    since: SteadyMs,
    /// The owners it was in step with, and whether they held it.
    in_step_with: Vec<(NodeIx, bool)>,
}

/// A partition that is not the same at the other node.
#[derive(Debug)]
struct Differing {
    partition: PartitionId,
    /// The other node's leaves.
    leaves: Box<[Digest; LEAVES]>,
    /// Whether the other node holds it.
    holding: bool,
}

#[derive(Debug, Default)]
struct Session {
    /// Tells this session's answers from those of the one before.
    number: u32,
    active: bool,
    failed: bool,
    /// Whether being in step in this session counts.
    counts: bool,
    /// Items that went either way.
    moved: u64,
    to_compare: VecDeque<PartitionId>,
    compares_open: usize,
    differing: VecDeque<Differing>,
    exchanges_open: usize,
    started: SteadyMs,
    /// When the next one begins.
    due: SteadyMs,
    /// How far the interval is stretched.
    backoff: u64,
    /// Whether the next one is to begin at once.
    hurried: bool,
}

/// Repair and bootstrap of one core.
#[derive(Debug)]
pub struct SyncState {
    holding: Vec<bool>,
    missing: Vec<Option<Missing>>,
    missing_count: usize,
    pub(super) retired: Retired,
    sessions: Vec<Session>,
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
            retired: Retired::new(),
            sessions: Vec::new(),
            counters: SyncCounters::default(),
        }
    }

    /// Whether this node has the data of a partition that it owns, or owned until lately.
    #[inline]
    pub fn holds(&self, partition: PartitionId) -> bool {
        self.holding[partition.index()]
    }

    /// How many of its partitions this core still lacks the data of.
    pub fn missing(&self) -> usize {
        self.missing_count
    }

    /// Partitions that have other owners now.
    pub fn retired(&self) -> &Retired {
        &self.retired
    }

    /// What was counted.
    pub fn counters(&self) -> &SyncCounters {
        &self.counters
    }

    /// How far the intervals are stretched at present, the most of all.
    pub fn backoff(&self) -> u64 {
        let backoffs = self.sessions.iter().map(|session| session.backoff);
        backoffs.max().unwrap_or(0).max(1)
    }

    /// Has the next session with a node begin at once.
    pub(super) fn hurry(&mut self, node: NodeIx) {
        let session = self.session(node);
        session.due = SteadyMs(0);
        session.backoff = 1;
        session.hurried = true;
    }

    fn session(&mut self, node: NodeIx) -> &mut Session {
        if self.sessions.len() <= node.index() {
            self.sessions
                .resize_with(node.index() + 1, Session::default);
        }
        &mut self.sessions[node.index()]
    }

    fn hold(&mut self, partition: PartitionId) {
        self.forget_missing(partition);
        self.holding[partition.index()] = true;
    }

    fn lack(&mut self, partition: PartitionId, since: SteadyMs) {
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

    /// The partition is this node's no more, or has been dropped.
    pub(super) fn disown(&mut self, partition: PartitionId) {
        self.holding[partition.index()] = false;
        self.forget_missing(partition);
    }

    fn forget_missing(&mut self, partition: PartitionId) {
        if self.missing[partition.index()].take().is_some() {
            self.missing_count -= 1;
        }
    }

    /// What was compared so far counts no more.
    fn void(&mut self) {
        for missing in self.missing.iter_mut().flatten() {
            missing.in_step_with.clear();
        }
        for session in &mut self.sessions {
            session.counts = false;
        }
    }
}

/// With how many of `owners` owners that hold a partition one must be in step to hold it
/// too, if `others` of them are others.
fn in_step_needed(owners: usize, others: usize) -> usize {
    (owners - Consistency::Quorum.needed(owners) + 1).min(others)
}

impl Coordinator {
    pub(super) fn own_partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        let (core, cores) = (self.config.core, self.config.cores);
        PartitionId::all().filter(move |partition| partition.core(cores) == core)
    }

    pub(super) fn sync_view_changed(&mut self, old: &View) {
        let now = self.steady.now();
        let view = Arc::clone(&self.view);
        let me = view.me();
        // It was left behind, or meets a cluster founded elsewhere.
        let jumped = old.joined() && !view.terms().writes_to(old.terms().reading);
        let missing_before = self.sync.missing_count;
        for partition in self.own_partitions() {
            let took = old.joined() && old.takes(me, partition);
            if !view.joined() || !view.takes(me, partition) {
                match took && self.sync.holds(partition) {
                    // Those who do not know yet that it has other owners still write here.
                    true => self.sync.retired.add(partition, now),
                    false => self.sync.disown(partition),
                }
                continue;
            }
            self.sync.retired.remove(partition);
            if view.owners(partition) == [me] {
                self.sync.hold(partition);
            } else if !took || jumped && (old.solo() || !view.owns(partition)) {
                self.sync.disown(partition);
                self.sync.lack(partition, now);
            } else if !self.sync.holds(partition) {
                self.sync.lack(partition, now);
            }
        }
        let starts_copying = view.copying() && !old.copying();
        if view.terms() != old.terms() || starts_copying {
            self.sync.void();
        }
        if self.sync.missing_count > missing_before || starts_copying && self.sync.missing_count > 0
        {
            for index in 0..self.links.len() {
                self.sync.hurry(NodeIx(index as u16));
            }
        }
        if self.sync.missing_count > 0 {
            self.own_partitions()
                .for_each(|partition| self.hold_if_in_step(partition));
        }
    }

    pub(super) fn sync_tick(&mut self, now: UnixMs) {
        if self.view.solo() || !self.view.joined() {
            return;
        }
        if self.sync.missing_count > 0 {
            self.end_overdue_bootstrap();
        }
        self.drop_retired();
        for index in 0..self.links.len() {
            let node = NodeIx(index as u16);
            let due = self.steady.now();
            let session = self.sync.session(node);
            if !session.active && session.due <= due && self.view.reachable(node) {
                self.start_session(node, now);
            }
        }
    }

    fn end_overdue_bootstrap(&mut self) {
        let now = self.steady.now();
        for partition in self.own_partitions() {
            let overdue = self.sync.missing[partition.index()]
                .as_ref()
                .is_some_and(|missing| {
                    now.since(missing.since) >= self.config.bootstrap_timeout_ms
                });
            if overdue {
                self.sync.counters.bootstrap_timeouts += 1;
                self.sync.hold(partition);
            }
        }
    }

    /// Begins to go through the partitions shared with a node.
    fn start_session(&mut self, node: NodeIx, now: UnixMs) {
        let (view, me) = (&self.view, self.view.me());
        let shared = |partition: &PartitionId| {
            view.takes(me, *partition) && view.takes(node, *partition)
                || self.sync.retired.is_offered_to(*partition, node, view)
        };
        let mut to_compare: VecDeque<_> = self.own_partitions().filter(shared).collect();
        let is_missing = |partition: &PartitionId| self.sync.missing[partition.index()].is_some();
        to_compare
            .make_contiguous()
            .sort_by_key(|partition| !is_missing(partition));
        let (steady, interval) = (self.steady.now(), self.config.sync_interval_ms);
        let counts = self.view.copying();
        let session = self.sync.session(node);
        *session = Session {
            number: session.number.wrapping_add(1),
            active: !to_compare.is_empty(),
            counts,
            to_compare,
            started: steady,
            due: steady.later(interval),
            backoff: session.backoff.max(1),
            ..Session::default()
        };
        self.go_on(node, now);
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
        match *op {
            PeerOp::Compare { partition, .. } => {
                session.compares_open -= 1;
                match *answer {
                    Answer::Same { holding } => self.in_step(partition, node, holding),
                    Answer::Differs { holding, leaves } => session.differing.push_back(Differing {
                        partition,
                        leaves: leaves.to_digests(),
                        holding,
                    }),
                    Answer::Refused(Refusal::Later) => session.to_compare.push_front(partition),
                    _ => session.failed = true,
                }
            }
            PeerOp::Exchange {
                partition, leaves, ..
            } => {
                session.exchanges_open -= 1;
                match answer {
                    Answer::Refused(Refusal::Later) => session.to_compare.push_front(partition),
                    _ => self.exchanged(node, partition, leaves, answer, now),
                }
            }
            _ => {}
        }
        self.go_on(node, now);
    }

    /// Takes over what the other node has newer and sends what it asks for.
    fn exchanged(
        &mut self,
        node: NodeIx,
        partition: PartitionId,
        leaves: u64,
        answer: &Answer<'_>,
        now: UnixMs,
    ) {
        let Answer::Exchanged {
            holding,
            more,
            wanted,
            items,
        } = *answer
        else {
            self.sync.session(node).failed = true;
            return;
        };
        let (mut pulled, mut refused) = (0, false);
        for write in items.iter() {
            let hash = KeyHash::of(write.key);
            if hash.partition() != partition {
                continue;
            }
            if self.local.shard().is_full() && self.local.resident(hash, write.key).is_none() {
                self.sync.counters.keys_left += 1;
                continue;
            }
            match self.take_in(hash, &write, now) {
                Answer::Stored { .. } => pulled += 1,
                Answer::Refused(_) => refused = true,
                _ => {}
            }
        }
        let pushed = self.push_wanted(node, partition, leaves, wanted.iter().collect(), now);
        self.sync.counters.keys_pulled += pulled;
        self.sync.counters.keys_pushed += pushed;
        let session = self.sync.session(node);
        session.moved += pulled + pushed;
        if more && pulled > 0 {
            session.to_compare.push_front(partition);
        } else if !refused {
            // What it cannot take it does not hold.
            self.in_step(partition, node, holding);
        }
    }

    pub(super) fn sync_failed(&mut self, node: NodeIx, number: u32) {
        let session = self.sync.session(node);
        if session.active && session.number == number {
            session.failed = true;
            self.end_session(node);
        }
    }

    /// Asks for the next comparisons and exchanges; ends the session when nothing is left.
    fn go_on(&mut self, node: NodeIx, now: UnixMs) {
        loop {
            let session = self.sync.session(node);
            if !session.active {
                return;
            }
            let call = Call::Sync {
                session: session.number,
            };
            let pushed = if session.exchanges_open < EXCHANGES_MAX && !session.differing.is_empty()
            {
                self.exchange_next(node, call, now)
            } else if session.compares_open + session.differing.len() < COMPARES_MAX
                && let Some(partition) = session.to_compare.pop_front()
            {
                session.compares_open += 1;
                let digest = self.local.shard().digest(partition);
                let op = PeerOp::Compare { partition, digest };
                self.push(node, Lane::Bulk, call, &op)
            } else {
                break;
            };
            if !pushed {
                self.sync.session(node).failed = true;
                self.end_session(node);
                return;
            }
        }
        let session = self.sync.session(node);
        if session.compares_open == 0 && session.exchanges_open == 0 {
            self.end_session(node);
        }
    }

    /// Sends what is here of the leaves that differ; false when the node is out of reach.
    fn exchange_next(&mut self, node: NodeIx, call: Call, now: UnixMs) -> bool {
        let Some(differs) = self.sync.session(node).differing.pop_front() else {
            return true;
        };
        let Differing {
            partition,
            leaves,
            holding,
        } = differs;
        let leaves = differing(&leaves, &self.leaf_digests(partition, now).0);
        if leaves == 0 {
            self.in_step(partition, node, holding);
            return true;
        }
        let mut bytes = Vec::new();
        self.for_each_entry(partition, leaves, now, |_, entry, _| {
            put_entry(&mut bytes, entry);
        });
        let op = PeerOp::Exchange {
            partition,
            leaves,
            entries: entries(&bytes),
        };
        self.sync.session(node).exchanges_open += 1;
        self.push(node, Lane::Bulk, call, &op)
    }

    fn end_session(&mut self, node: NodeIx) {
        let now = self.steady.now();
        let interval = self.config.sync_interval_ms;
        let longest = self.config.sync_interval_ms_max;
        let jitter = self.rng.below(interval as usize / 4 + 1) as u64;
        let missing = self.sync.missing_count > 0;
        let session = self.sync.session(node);
        session.active = false;
        session.to_compare.clear();
        session.differing.clear();
        (session.compares_open, session.exchanges_open) = (0, 0);
        let (failed, moved, took) = (session.failed, session.moved, now.since(session.started));
        session.backoff = match moved {
            0 if !failed && !session.hurried => (session.backoff * 2).min(BACKOFF_MAX),
            _ => 1,
        };
        session.due = now.later(match session.hurried {
            _ if failed || missing => RETRY_MS,
            true => 0,
            false => (interval * session.backoff).min(longest.max(interval)) + jitter,
        });
        if failed {
            self.sync.counters.failed += 1;
        } else {
            self.sync.counters.syncs += 1;
            self.sync.counters.clean += u64::from(moved == 0);
            self.sync.counters.last_ms = took;
        }
    }

    /// A co-owner has all that this node has of a partition, and the other way round.
    fn in_step(&mut self, partition: PartitionId, node: NodeIx, holding: bool) {
        self.sync.retired.in_step(partition, node, holding);
        let counts = self.sync.session(node).counts || planted(Mutation::CountEarlyCopies);
        let Some(missing) = &mut self.sync.missing[partition.index()] else {
            return;
        };
        if counts {
            missing.in_step_with.retain(|(known, _)| *known != node);
            let holding = holding || planted(Mutation::CountEmptyCoOwners);
            missing.in_step_with.push((node, holding));
            self.hold_if_in_step(partition);
        }
    }

    fn hold_if_in_step(&mut self, partition: PartitionId) {
        let Some(missing) = &self.sync.missing[partition.index()] else {
            return;
        };
        let (view, owners) = (&self.view, self.view.owners(partition));
        let others = || owners.iter().filter(|owner| **owner != view.me());
        let seen = |owner: NodeIx| {
            let mut seen = missing.in_step_with.iter();
            seen.find(|(node, _)| *node == owner)
        };
        let holders = others().filter(|owner| seen(**owner).is_some_and(|(_, holding)| *holding));
        let needed = in_step_needed(owners.len(), others().count());
        let all = || others().all(|owner| seen(*owner).is_some() || view.given_up(*owner));
        if holders.count() >= needed || view.copying() && all() {
            self.sync.hold(partition);
        }
    }

    /// Sends the items that a node asked for; returns how many.
    fn push_wanted(
        &mut self,
        node: NodeIx,
        partition: PartitionId,
        leaves: u64,
        wanted: BTreeSet<KeyHash>,
        now: UnixMs,
    ) -> u64 {
        if wanted.is_empty() {
            return 0;
        }
        let mut writes = Vec::new();
        self.for_each_entry(partition, leaves, now, |key, entry, resident| {
            if wanted.contains(&entry.hash) {
                writes.push((key.to_vec(), entry, resident));
            }
        });
        let mut pushed = 0;
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
            pushed += u64::from(self.push(node, Lane::Bulk, Call::Repair, &PeerOp::Apply(write)));
        }
        pushed
    }

    /// The digests of a partition's leaves, without what has expired, and how many keys
    /// were looked through.
    pub(super) fn leaf_digests(
        &self,
        partition: PartitionId,
        now: UnixMs,
    ) -> ([Digest; LEAVES], usize) {
        let mut leaves = [Digest::default(); LEAVES];
        let keys = self.for_each_entry(partition, u64::MAX, now, |_, entry, resident| {
            let leaf = &mut leaves[leaf_of(entry.hash)];
            let one = Digest::of(entry.hash, entry.version, entry.origin, resident.tombstone);
            *leaf = leaf.with(one);
        });
        (leaves, keys)
    }

    /// Visits what is known of some leaves of a partition, without what has expired.
    /// Returns how many keys were looked through.
    pub(super) fn for_each_entry(
        &self,
        partition: PartitionId,
        leaves: u64,
        now: UnixMs,
        mut visit: impl FnMut(&[u8], Entry, Resident),
    ) -> usize {
        let mut keys = 0;
        self.local
            .shard()
            .scan_residents(partition, |key, resident| {
                keys += 1;
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
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_in_step_meets_every_write_quorum() {
        for owners in 1..=16 {
            let quorum = Consistency::Quorum.needed(owners);
            // One that was an owner before: a quorum that counted it has this many others.
            let others = owners - 1;
            let needed = in_step_needed(owners, others);
            assert!(
                quorum == 1 || needed + quorum - 1 > others,
                "{owners} owners"
            );
            // One that was not.
            assert!(in_step_needed(owners, owners) + quorum > owners);
        }
        assert_eq!(in_step_needed(1, 0), 0);
        assert_eq!(in_step_needed(1, 1), 1);
        assert_eq!(in_step_needed(3, 2), 2);
    }
}
