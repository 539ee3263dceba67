//! Keeping replicas the same: comparison, exchange, and what a node that starts
//! empty must have seen before its answers count.
//!
//! A *session* with one co-owner goes through the partitions both own on this core, those
//! that are not held yet first:
//!
//! ```text
//!  CompareMany(digests) ──► Same ────────────────────────────────────► in step
//!        │ Differs                                                        ▲
//!        ├── few keys here, when its turn comes ──┐                       │
//!        ▼                                        ▼                       │
//!  Compare ──► Differs(64 leaves) ──► Exchange(leaves, entries) ──► items ┤
//!                                                 │ left                  │
//!                                                 └──► Fetch(hashes) ─────┘
//! ```
//!
//! What this node lacks it takes from one node at a time: while a partition that it does not
//! hold is exchanged with one, the sessions with others go on with other partitions, and
//! compare it again afterwards, when most often nothing differs any more.
//!
//! What the other node wants in turn is offered meanwhile. Each step stands for itself:
//! whatever is lost, late or said twice, the next session finds what still differs. Items
//! go both ways through last writer wins, deletes as tombstones; nothing is concluded from
//! absence.
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
//! other up for ever. What it would not take it neither asks for nor is sent.

mod exchange;

use std::collections::VecDeque;
use std::sync::Arc;

use super::Consistency;
use super::activity::{Activity, Done, Told};
use super::coordinator::Coordinator;
use super::retire::Retired;
use super::view::{NodeIx, View};
use crate::clock::{SteadyMs, UnixMs};
use crate::hash::{KeyHash, PARTITION_COUNT, PartitionId};
use crate::mutation::{Mutation, planted};
use exchange::{Fetching, Step};

/// For how long credit for transfers is saved up.
const CREDIT_MS_MAX: i64 = 100;
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
    /// Items taken over of partitions that this node did not hold yet.
    pub keys_copied: u64,
    /// Those of them of partitions of which it is the primary.
    pub keys_copied_as_primary: u64,
    /// Answers that brought such items.
    pub copies: u64,
    /// Bytes of such items, as they came.
    pub bytes_copied: u64,
    /// Items sent to owners of partitions that are not this node's any more.
    pub keys_handed_over: u64,
    /// How often a session waited because so much had been transferred.
    pub throttled: u64,
    /// How long it took to copy what this node lacked last, in milliseconds.
    pub last_copy_ms: u64,
    /// How long it took the last session to compare all partitions, in milliseconds.
    pub last_compare_ms: u64,
    /// How long it took the last session to exchange what differed, in milliseconds.
    pub last_exchange_ms: u64,
    /// Items not taken over because this shard is full; once for each time that it was
    /// found to lack them.
    pub keys_left: u64,
    /// Keys that were looked through, for sessions of this node and of others.
    pub keys_scanned: u64,
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
    /// With whom it is being exchanged.
    copied_from: Option<NodeIx>,
}

impl Missing {
    /// Whether it is being exchanged with another node than this one.
    fn is_copied_from_another(&self, node: NodeIx) -> bool {
        self.copied_from.is_some_and(|from| from != node)
    }
}

#[derive(Debug, Default)]
struct Session {
    /// Tells this session's answers from those of the one before.
    number: u32,
    active: bool,
    failed: bool,
    /// Whether being in step in this session counts for what this node is to own.
    counts: bool,
    /// Whether it does not count at all, because others are read from since it began.
    void: bool,
    /// What it did.
    told: Told,
    to_compare: VecDeque<PartitionId>,
    /// Whether partitions are being compared.
    comparing: bool,
    /// Of partitions that differ.
    steps: VecDeque<Step>,
    exchanges_open: usize,
    fetching: Vec<Fetching>,
    /// What the other node wants.
    wanted: VecDeque<KeyHash>,
    offers_open: usize,
    started: SteadyMs,
    /// When all partitions had been compared.
    compared: SteadyMs,
    /// When the next one begins.
    due: SteadyMs,
    /// How far the interval is stretched.
    backoff: u64,
    /// Whether the next one is to begin at once.
    hurried: bool,
}

impl Session {
    /// Forgets what was to be done.
    fn stop(&mut self) {
        *self = Self {
            to_compare: VecDeque::new(),
            comparing: false,
            steps: VecDeque::new(),
            exchanges_open: 0,
            fetching: Vec::new(),
            wanted: VecDeque::new(),
            offers_open: 0,
            ..*self
        };
    }

    /// Whether nothing is under way. What is to be done begins as soon as it may.
    fn is_idle(&self) -> bool {
        !self.comparing && self.exchanges_open == 0 && self.offers_open == 0
    }

    /// Whether all that is left to do waits for sessions with others.
    fn waits_for_others(&self) -> bool {
        self.active && self.is_idle() && !self.steps.is_empty()
    }
}

/// Repair and bootstrap of one core.
#[derive(Debug)]
pub struct SyncState {
    holding: Vec<bool>,
    missing: Vec<Option<Missing>>,
    missing_count: usize,
    pub(super) retired: Retired,
    sessions: Vec<Session>,
    /// Bytes that may be transferred now; below zero it is waited.
    credit: i64,
    credited: SteadyMs,
    /// When something of what this core lacks was last taken over.
    progressed: SteadyMs,
    /// Since when this core lacks something.
    copying_since: Option<SteadyMs>,
    /// Whether it once had all that it owns.
    bootstrapped: bool,
    /// With whom the last session that ended badly was, until one ends well.
    last_failed: Option<NodeIx>,
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
            credit: 0,
            credited: SteadyMs(0),
            progressed: SteadyMs(0),
            copying_since: None,
            bootstrapped: false,
            last_failed: None,
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

    /// With whom the last session that ended badly was, if none has ended well with it since.
    pub fn last_failed(&self) -> Option<NodeIx> {
        self.last_failed
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

    /// Whether so much was transferred that the next request has to wait for a tick.
    fn is_throttled(&self) -> bool {
        self.credit < 0
    }

    /// Counts items that were not taken over.
    pub(super) fn leave_keys(&mut self, count: u64) {
        self.counters.keys_left += count;
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
        self.compare_anew(partition, since);
    }

    /// Has a partition compared with others, whether it is held or not.
    fn compare_anew(&mut self, partition: PartitionId, since: SteadyMs) {
        let missing = &mut self.missing[partition.index()];
        if missing.is_none() {
            *missing = Some(Missing {
                since,
                in_step_with: Vec::new(),
                copied_from: None,
            });
            self.missing_count += 1;
        }
    }

    /// A partition is exchanged with this node from now on.
    fn copy_from(&mut self, partition: PartitionId, node: NodeIx) {
        if let Some(missing) = &mut self.missing[partition.index()] {
            missing.copied_from = Some(node);
        }
    }

    /// It is so no more.
    fn copied(&mut self, partition: PartitionId, node: NodeIx) {
        if let Some(missing) = &mut self.missing[partition.index()] {
            missing.copied_from.take_if(|from| *from == node);
        }
    }

    /// Nothing is exchanged with this node any more.
    fn copy_no_more_from(&mut self, node: NodeIx) {
        if self.missing_count > 0 {
            for missing in self.missing.iter_mut().flatten() {
                missing.copied_from.take_if(|from| *from == node);
            }
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

    /// What was compared so far counts no more: none of it if others are read from now, else
    /// what is compared for owners to come, not what this node regains as an owner.
    fn void(&mut self, all: bool, is_owned: impl Fn(PartitionId) -> bool) {
        for partition in PartitionId::all() {
            if let Some(missing) = &mut self.missing[partition.index()]
                && (all || self.holding[partition.index()] || !is_owned(partition))
            {
                missing.in_step_with.clear();
            }
        }
        for session in &mut self.sessions {
            session.counts = false;
            session.void |= all;
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
        let jumped = old.joined() && !view.rosters().writes_to(old.rosters().reading);
        let recopies = view.companions() != old.companions();
        let missing_before = self.sync.missing_count;
        let retired_before = self.sync.retired.len();
        for partition in self.own_partitions() {
            let took = old.joined() && old.takes(me, partition);
            if !view.joined() || !view.takes(me, partition) {
                self.sync.forget_missing(partition);
                if took {
                    // Those who do not know yet that it has other owners still write here.
                    self.sync.retired.add(partition, now);
                } else if !self.sync.retired.contains(partition) {
                    self.sync.disown(partition);
                }
                continue;
            }
            self.sync.retired.remove(partition);
            let is_new = !took || jumped || recopies && !view.owns(partition);
            if view.owners(partition) == [me] {
                self.sync.hold(partition);
            } else if is_new || !self.sync.holds(partition) {
                self.sync.lack(partition, now);
            } else if !view.needs_refresh(partition) {
                self.sync.forget_missing(partition);
            } else if recopies {
                self.sync.compare_anew(partition, now);
            }
        }
        if view.rosters() != old.rosters() || recopies {
            let reads_others = view.rosters().reading != old.rosters().reading;
            self.sync
                .void(reads_others, |partition| view.owns(partition));
        }
        let is_busy = self.sync.missing_count > missing_before
            || recopies && self.sync.missing_count > 0
            || self.sync.retired.len() > retired_before;
        if is_busy {
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
        self.time_copying();
        self.give_credit(now);
        for index in 0..self.links.len() {
            let node = NodeIx(index as u16);
            let due = self.steady.now();
            let session = self.sync.session(node);
            if node != self.view.me()
                && !session.active
                && session.due <= due
                && self.view.reachable(node)
            {
                self.start_session(node, now);
            }
            if self.sync.session(node).waits_for_others() {
                self.go_on(node, now);
            }
        }
    }

    /// How long it is until the next session begins; `None` while there is anything to do.
    pub(super) fn sync_quiet_ms(&self, now: UnixMs) -> Option<u64> {
        let sync = &self.sync;
        if self.view.solo() || !self.view.joined() {
            return Some(u64::MAX);
        }
        let is_quiet = sync.missing_count == 0
            && sync.copying_since.is_none()
            && sync.retired.is_empty()
            && !sync.is_throttled();
        let mut next = u64::MAX;
        for index in 0..self.links.len() {
            let node = NodeIx(index as u16);
            if node == self.view.me() || !self.view.reachable(node) {
                continue;
            }
            let session = sync.sessions.get(index).filter(|session| !session.active)?;
            next = next.min(session.due.since(self.steady.now()));
        }
        let unnoticed_ms = now.0.saturating_sub(self.steady.told().0);
        is_quiet.then_some(next.saturating_sub(unnoticed_ms))
    }

    /// Whether it lacks something and has not come any further for as long as it may take.
    pub fn is_stuck(&self) -> bool {
        let (sync, now) = (&self.sync, self.steady.now());
        let since = sync.copying_since.map(|since| since.max(sync.progressed));
        since.is_some_and(|since| now.since(since) >= self.config.bootstrap_timeout_ms)
    }

    fn time_copying(&mut self) {
        let now = self.steady.now();
        match (self.sync.missing_count, self.sync.copying_since) {
            (0, Some(since)) => {
                let took_ms = now.since(since);
                self.sync.counters.last_copy_ms = took_ms;
                self.sync.copying_since = None;
                if !std::mem::replace(&mut self.sync.bootstrapped, true) {
                    let counters = &self.sync.counters;
                    let (keys, bytes) = (counters.keys_copied, counters.bytes_copied);
                    self.activities.add(Activity {
                        node: None,
                        took_ms,
                        failed: counters.bootstrap_timeouts > 0,
                        done: Done::Bootstrap { keys, bytes },
                    });
                }
            }
            (0, None) | (_, Some(_)) => {}
            (_, None) => self.sync.copying_since = Some(now),
        }
    }

    /// Allows as many bytes to be transferred as the time since the last call is worth, and
    /// goes on with the sessions that waited for it.
    fn give_credit(&mut self, now: UnixMs) {
        let steady = self.steady.now();
        let rate = i64::try_from(self.config.transfer_rate).unwrap_or(i64::MAX);
        let passed = i64::try_from(steady.since(self.sync.credited)).unwrap_or(i64::MAX);
        let due = rate.saturating_mul(passed.min(CREDIT_MS_MAX)) / 1000;
        self.sync.credited = steady;
        let waited = self.sync.credit < 0;
        self.sync.credit = self.sync.credit.saturating_add(due).min(due);
        if waited && self.sync.credit >= 0 {
            for index in 0..self.links.len() {
                self.go_on(NodeIx(index as u16), now);
            }
        }
    }

    /// Counts bytes that were transferred against what is allowed.
    fn charge(&mut self, bytes: usize) {
        if self.config.transfer_rate == 0 {
            return;
        }
        let had = self.sync.credit >= 0;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.sync.credit = self.sync.credit.saturating_sub(bytes);
        self.sync.counters.throttled += u64::from(had && self.sync.credit < 0);
    }

    fn end_overdue_bootstrap(&mut self) {
        let now = self.steady.now();
        for partition in self.own_partitions() {
            // One that is to become an owner can wait: the others go on without it.
            let may_end = self.view.owns(partition) && !self.sync.holds(partition);
            let overdue = self.sync.missing[partition.index()]
                .as_ref()
                .is_some_and(|missing| {
                    let since = missing.since.max(self.sync.progressed);
                    now.since(since) >= self.config.bootstrap_timeout_ms
                });
            if may_end && overdue {
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
            told: Told {
                partitions: to_compare.len() as u64,
                ..Told::default()
            },
            to_compare,
            started: steady,
            compared: steady,
            due: steady.later(interval),
            backoff: session.backoff.max(1),
            ..Session::default()
        };
        self.go_on(node, now);
    }

    pub(super) fn sync_failed(&mut self, node: NodeIx, number: u32) {
        let session = self.sync.session(node);
        if session.active && session.number == number {
            session.failed = true;
            self.end_session(node);
        }
    }

    fn end_session(&mut self, node: NodeIx) {
        let now = self.steady.now();
        let interval = self.config.sync_interval_ms;
        let longest = self.config.sync_interval_ms_max;
        let jitter = self.rng.below(interval as usize / 4 + 1) as u64;
        let missing = self.sync.missing_count > 0;
        self.sync.copy_no_more_from(node);
        let session = self.sync.session(node);
        session.active = false;
        let (started, compared) = (session.started, session.compared);
        session.stop();
        let told = session.told;
        let (failed, moved, took) = (session.failed, told.moved(), now.since(session.started));
        session.backoff = match moved {
            0 if !failed && !session.hurried => (session.backoff * 2).min(BACKOFF_MAX),
            _ => 1,
        };
        session.due = now.later(match session.hurried {
            _ if failed || missing => self.config.rebalance_interval_ms,
            true => 0,
            false => (interval * session.backoff).min(longest.max(interval)) + jitter,
        });
        self.activities.add(Activity {
            node: Some(node),
            took_ms: took,
            failed,
            done: Done::Sync(told),
        });
        if failed {
            self.sync.counters.failed += 1;
            self.sync.last_failed = Some(node);
        } else {
            if self.sync.last_failed == Some(node) {
                self.sync.last_failed = None;
            }
            self.sync.counters.syncs += 1;
            self.sync.counters.clean += u64::from(moved == 0);
            self.sync.counters.last_ms = took;
            self.sync.counters.last_compare_ms = compared.since(started);
            self.sync.counters.last_exchange_ms = now.since(compared);
        }
    }

    /// This node has all that an owner has of a partition.
    fn in_step(&mut self, partition: PartitionId, node: NodeIx, holding: bool) {
        let session = self.sync.session(node);
        // What it owns already it may have lost; what others write besides is no matter then.
        let (counts, void) = (session.counts, session.void);
        let is_owner = self.view.owns(partition) && !self.sync.holds(partition);
        let counts = !void && (counts || is_owner);
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
        // One that has its part already counts itself.
        let own = usize::from(view.owns(partition) && self.sync.holds(partition));
        let needed = in_step_needed(owners.len(), others().count()).saturating_sub(own);
        let all = || others().all(|owner| seen(*owner).is_some() || view.given_up(*owner));
        let may_count_all = view.copying() || own == 0 && view.owns(partition);
        if holders.count() >= needed || may_count_all && all() {
            self.sync.progressed = self.steady.now();
            self.sync.hold(partition);
        }
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
