//! Keeping replicas the same: comparison, exchange, and what a node that starts
//! empty must have seen before its answers count.
//!
//! A *session* with one co-owner goes through the partitions both own on this core, those
//! that are not held yet first:
//!
//! ```text
//!  CompareMany(digests) ──► Same ────────────────────────────────────► in step
//!        │ Differs                                                        ▲
//!        ├── few keys here ───────────────────────┐                       │
//!        ▼                                        ▼                       │
//!  Compare ──► Differs(64 leaves) ──► Exchange(leaves, entries) ──► items ┤
//!                                                 │ left                  │
//!                                                 └──► Fetch(hashes) ─────┘
//! ```
//!
//! What the other node wants in turn is offered meanwhile. Each step stands for itself:
//! whatever is lost, late or said twice, the next session finds what still differs. Items
//! go both ways through last writer wins, deletes as tombstones; nothing is concluded from
//! absence.
//!
//! **Holding.** A node holds a partition when it has every write that was
//! acknowledged at QUORUM. One that joins, comes back empty or had a cluster of its own
//! does not: it takes writes, but neither they nor its reads count until it has been in
//! step, since then, with so many co-owners that hold the partition that every write
//! quorum had one of them: with n owners and quorum w that is n - w + 1. Being in step
//! with all co-owners will do as well, holding or not: nobody has more. If they cannot be
//! reached within `bootstrap_timeout_ms` it holds the partition all the same, and that
//! is counted.
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

use super::Consistency;
use super::coordinator::Coordinator;
use super::view::{NodeIx, View};
use crate::clock::{SteadyMs, UnixMs};
use crate::hash::{KeyHash, PARTITION_COUNT, PartitionId};
use crate::mutation::{Mutation, planted};
use exchange::{Fetching, Step};

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
    /// The co-owners it was in step with, and whether they held it.
    in_step_with: Vec<(NodeIx, bool)>,
}

#[derive(Debug, Default)]
struct Session {
    /// Tells this session's answers from those of the one before.
    number: u32,
    active: bool,
    failed: bool,
    /// Items that went either way.
    moved: u64,
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
}

/// Repair and bootstrap of one core.
#[derive(Debug)]
pub struct SyncState {
    holding: Vec<bool>,
    missing: Vec<Option<Missing>>,
    missing_count: usize,
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
            sessions: Vec::new(),
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
        self.disown(partition);
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

    fn disown(&mut self, partition: PartitionId) {
        self.holding[partition.index()] = false;
        if self.missing[partition.index()].take().is_some() {
            self.missing_count -= 1;
        }
    }
}

/// With how many co-owners that hold it a newcomer among `owners` must be in step.
fn in_step_needed(owners: usize) -> usize {
    (owners - Consistency::Quorum.needed(owners) + 1).min(owners - 1)
}

impl Coordinator {
    fn own_partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        let (core, cores) = (self.config.core, self.config.cores);
        PartitionId::all().filter(move |partition| partition.core(cores) == core)
    }

    pub(super) fn sync_view_changed(&mut self, old: &View) {
        let now = self.steady.now();
        // What was acknowledged by this node alone is no more than one owner's word now.
        let no_more_alone = old.joined() && old.solo() && !self.view.solo();
        let missing_before = self.sync.missing_count;
        for partition in self.own_partitions() {
            if !self.view.joined() || !self.view.owns(partition) {
                self.sync.disown(partition);
            } else if self.view.solo() || in_step_needed(self.view.owners(partition).len()) == 0 {
                self.sync.hold(partition);
            } else if no_more_alone || !self.sync.holds(partition) {
                self.sync.lack(partition, now);
            }
        }
        if self.sync.missing_count > missing_before {
            for index in 0..self.links.len() {
                self.sync.hurry(NodeIx(index as u16));
            }
        }
    }

    pub(super) fn sync_tick(&mut self, now: UnixMs) {
        if self.view.solo() || !self.view.joined() {
            return;
        }
        if self.sync.missing_count > 0 {
            self.end_overdue_bootstrap();
        }
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
        let shared = |partition: &PartitionId| {
            self.view.owns(*partition) && self.view.owners(*partition).contains(&node)
        };
        let mut to_compare: VecDeque<_> = self.own_partitions().filter(shared).collect();
        let is_missing = |partition: &PartitionId| self.sync.missing[partition.index()].is_some();
        to_compare
            .make_contiguous()
            .sort_by_key(|partition| !is_missing(partition));
        let (steady, interval) = (self.steady.now(), self.config.sync_interval_ms);
        let session = self.sync.session(node);
        *session = Session {
            number: session.number.wrapping_add(1),
            active: !to_compare.is_empty(),
            to_compare,
            started: steady,
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
        let session = self.sync.session(node);
        session.active = false;
        session.stop();
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

    fn in_step(&mut self, partition: PartitionId, node: NodeIx, holding: bool) {
        let owners = self.view.owners(partition);
        let Some(missing) = &mut self.sync.missing[partition.index()] else {
            return;
        };
        missing.in_step_with.retain(|(known, _)| *known != node);
        let counts = holding || planted(Mutation::CountEmptyCoOwners);
        missing.in_step_with.push((node, counts));
        let counted = || {
            let in_step = missing.in_step_with.iter();
            in_step.filter(|(node, _)| owners.contains(node))
        };
        let holders = counted().filter(|(_, holding)| *holding).count();
        if holders >= in_step_needed(owners.len()) || counted().count() == owners.len() - 1 {
            self.sync.hold(partition);
        }
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
