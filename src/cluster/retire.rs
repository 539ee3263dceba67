//! Partitions that have other owners now: kept for a while, offered to them, dropped.
//!
//! ```text
//!  owned ──► retired: still takes writes ──► owners have all of it, and ──► dropped
//!              │     and answers of those      the grace is over
//!              │     who do not know yet
//!              └──► owned again: copies anew
//! ```
//!
//! New owners have copied what was acknowledged at QUORUM before anything is retired. What
//! only this node has, from writes at ONE or a cluster founded apart, goes over when it is
//! compared with the owners. A partition is dropped when so many owners that hold it are in
//! step with it that every quorum has one of them. A full shard does not wait for the grace.
//! So much is dropped at a time ([`DROPPED_KEYS_MAX`]) that clients do not feel it.

use super::Consistency;
use super::coordinator::Coordinator;
use super::membership::Stage;
use super::view::{NodeIx, View};
use crate::clock::SteadyMs;
use crate::hash::{PARTITION_COUNT, PartitionId};

/// How many keys one tick drops.
pub(super) const DROPPED_KEYS_MAX: usize = 500;

/// The partitions of one core that have other owners now.
#[derive(Debug)]
pub struct Retired {
    partitions: Vec<Option<Retirement>>,
    count: usize,
    dropped: u64,
}

#[derive(Debug)]
struct Retirement {
    since: SteadyMs,
    /// Owners that hold it and have all that is here.
    in_step: Vec<NodeIx>,
}

impl Retired {
    pub(super) fn new() -> Self {
        Self {
            partitions: std::iter::repeat_with(|| None)
                .take(PARTITION_COUNT)
                .collect(),
            count: 0,
            dropped: 0,
        }
    }

    /// How many partitions wait to be dropped.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn contains(&self, partition: PartitionId) -> bool {
        self.partitions[partition.index()].is_some()
    }

    pub(super) fn add(&mut self, partition: PartitionId, since: SteadyMs) {
        let place = &mut self.partitions[partition.index()];
        if place.is_none() {
            let in_step = Vec::new();
            *place = Some(Retirement { since, in_step });
            self.count += 1;
        }
    }

    pub(super) fn remove(&mut self, partition: PartitionId) {
        if self.partitions[partition.index()].take().is_some() {
            self.count -= 1;
        }
    }

    /// Whether a partition is to be compared with a node because of this.
    pub(super) fn is_offered_to(&self, partition: PartitionId, node: NodeIx, view: &View) -> bool {
        let place = &self.partitions[partition.index()];
        place.as_ref().is_some_and(|retirement| {
            view.owners(partition).contains(&node) && !retirement.in_step.contains(&node)
        })
    }

    /// A node may not have any more what it had.
    pub(super) fn forget(&mut self, node: NodeIx) {
        for retirement in self.partitions.iter_mut().flatten() {
            retirement.in_step.retain(|known| *known != node);
        }
    }

    /// Something was stored in a partition: nobody is known to have it.
    pub(super) fn touch(&mut self, partition: PartitionId) {
        if let Some(retirement) = &mut self.partitions[partition.index()] {
            retirement.in_step.clear();
        }
    }

    /// How many partitions with something in them have owners that lack it, as far as is
    /// known.
    pub(super) fn unoffered(&self, view: &View, is_empty: impl Fn(PartitionId) -> bool) -> usize {
        let partitions = PartitionId::all().filter(|partition| self.contains(*partition));
        partitions
            .filter(|&partition| !is_empty(partition) && !self.is_in_step(partition, view))
            .count()
    }

    /// An owner has all that is here of a partition.
    pub(super) fn in_step(&mut self, partition: PartitionId, node: NodeIx, holding: bool) {
        if holding
            && let Some(retirement) = &mut self.partitions[partition.index()]
            && !retirement.in_step.contains(&node)
        {
            retirement.in_step.push(node);
        }
    }

    fn may_be_dropped(
        &self,
        partition: PartitionId,
        is_empty: bool,
        view: &View,
        before: SteadyMs,
    ) -> bool {
        let place = &self.partitions[partition.index()];
        place.as_ref().is_some_and(|retirement| {
            retirement.since <= before && (is_empty || self.is_in_step(partition, view))
        })
    }

    /// Whether so many owners have all that is here that every quorum has one of them.
    fn is_in_step(&self, partition: PartitionId, view: &View) -> bool {
        let owners = view.owners(partition);
        let needed = owners.len() - Consistency::Quorum.needed(owners.len()) + 1;
        let place = &self.partitions[partition.index()];
        place.as_ref().is_some_and(|retirement| {
            let owners = owners.iter();
            let in_step = owners.filter(|owner| retirement.in_step.contains(owner));
            in_step.count() >= needed
        })
    }
}

impl Coordinator {
    /// Drops some of what has other owners, once all nodes have settled.
    pub(super) fn drop_retired(&mut self) {
        if self.sync.retired.is_empty() || self.view.stage() != Stage::Settled {
            return;
        }
        let now = self.steady.now();
        let grace = match self.local.shard().is_full() {
            true => 0,
            false => self.config.drop_grace_ms,
        };
        let before = SteadyMs(now.0.saturating_sub(grace));
        let mut left = DROPPED_KEYS_MAX;
        for partition in self.own_partitions() {
            if left == 0 {
                return;
            }
            let is_empty = self.local.shard().stored_len(partition) == 0;
            let retired = &self.sync.retired;
            if !retired.may_be_dropped(partition, is_empty, &self.view, before) {
                continue;
            }
            left -= self.local.shard_mut().drop_step(partition, left);
            if self.local.shard().stored_len(partition) == 0 {
                self.sync.retired.remove(partition);
                self.sync.retired.dropped += 1;
                self.sync.disown(partition);
            }
        }
    }
}
