//! Reads that this core cannot answer alone: forwarded to the first owner that answers,
//! or compared among as many owners as the consistency level asks for. See the parent
//! module.

use super::{Call, Coordinator, Pending, Takers, Work, found};
use crate::clock::{Origin, SteadyMs, UnixMs, Version};
use crate::cluster::coordinator::Lane;
use crate::cluster::membership::State;
use crate::cluster::message::{Answer, Held, HeldBody, PeerOp, Refusal, WriteOp};
use crate::cluster::view::{NodeIx, View};
use crate::hash::PartitionId;
use crate::mutation::{Mutation, planted};
use crate::operations::{Found, Operation, Outcome};
use crate::store::ValueView;

/// Bytes of values that may wait for the answers of other owners, on one core.
pub const COLLECTED_BYTES_MAX: usize = 32 << 20;

/// A read that any one owner may answer.
#[derive(Debug, Default)]
pub(super) struct ForwardWork {
    /// The owners that were asked, by their place in the list.
    tried: u32,
    /// Whether one of them, or one that could not be asked, may have had the key.
    failed: bool,
}

/// A read that compares the answers of several owners.
#[derive(Debug)]
pub(super) struct CollectWork {
    needed: usize,
    /// Owners that answered and hold the partition's data.
    got: usize,
    /// Owners that have yet to answer.
    open: usize,
    best: Option<Best>,
    /// What each owner that answered holds.
    seen: Vec<(NodeIx, Option<Stamp>)>,
    /// Whether enough have answered and only the value is missing.
    fetching: bool,
    /// Whether one of those that answered goes by another roster.
    refused: bool,
    /// Until when it may be tried again for such owners.
    patience: SteadyMs,
}

type Stamp = (Version, Origin);

/// The newest that a read has seen so far.
#[derive(Debug)]
struct Best {
    version: Version,
    origin: Origin,
    expires_at: Option<UnixMs>,
    body: BestBody,
}

#[derive(Debug)]
enum BestBody {
    Tombstone,
    /// In this core's store.
    Local,
    /// At this node, not yet asked for.
    At(NodeIx),
    /// Nowhere any more.
    Gone,
    Value(Vec<u8>),
}

impl Best {
    /// What `node` holds; its value is copied if it has `room`.
    fn from_held(held: &Held<'_>, node: NodeIx, room: usize) -> Self {
        Self {
            version: held.version,
            origin: held.origin,
            expires_at: held.expires_at,
            body: match held.body {
                HeldBody::Tombstone => BestBody::Tombstone,
                HeldBody::Value(value) if value.len() <= room => BestBody::Value(value.to_vec()),
                HeldBody::Value(_) | HeldBody::Omitted => BestBody::At(node),
            },
        }
    }

    fn stamp(&self) -> Stamp {
        (self.version, self.origin)
    }

    fn is_visible(&self, now: UnixMs) -> bool {
        !matches!(self.body, BestBody::Tombstone | BestBody::Gone)
            && self.expires_at.is_none_or(|at| at > now)
    }

    fn is_elsewhere(&self) -> bool {
        matches!(self.body, BestBody::At(_))
    }

    fn bytes(&self) -> usize {
        match &self.body {
            BestBody::Value(value) => value.len(),
            _ => 0,
        }
    }
}

impl CollectWork {
    /// Bytes of the value it keeps.
    pub(super) fn best_bytes(&self) -> usize {
        self.best.as_ref().map_or(0, Best::bytes)
    }
}

impl Coordinator {
    // At ONE.

    pub(super) fn start_forward(
        &mut self,
        operation: &Operation<'_>,
        place: (usize, usize),
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        self.counters.forward_get += 1;
        let call = self.next_call();
        let mut work = ForwardWork::default();
        let partition = operation.hash.partition();
        if self.forward(partition, operation.key, &mut work, call) {
            self.wait(place, Work::Forward(work));
            return None;
        }
        if self.knows(operation, &work) {
            return Some(found(self.local.get(operation.hash, operation.key, now)));
        }
        self.counters.read_quorum_failures += 1;
        Some(Outcome::Unreached {
            reached: 0,
            needed: 1,
        })
    }

    /// Asks the next owner, those that are not suspected first; false when none is left.
    fn forward(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        work: &mut ForwardWork,
        call: Call,
    ) -> bool {
        let owners = Takers::of(&self.view, partition);
        let me = self.view.me();
        let alive = |view: &View, owner: NodeIx| {
            view.node(owner)
                .is_some_and(|node| node.state == State::Alive && !node.draining)
        };
        for suspects in [false, true] {
            for (position, &owner) in owners.readers().iter().enumerate() {
                if owner == me
                    || work.tried & 1 << position != 0
                    || alive(&self.view, owner) == suspects
                {
                    continue;
                }
                work.tried |= 1 << position;
                if self.push(owner, Lane::Data, call, &PeerOp::Read { key, value: true }) {
                    if position > 0 {
                        self.counters.read_primary_promote += 1;
                    }
                    return true;
                }
                work.failed = true;
            }
        }
        false
    }

    /// Whether what is here answers a read after all owners were asked: the key is here,
    /// or no owner that may have it is missing among those that answered.
    fn knows(&self, operation: &Operation<'_>, work: &ForwardWork) -> bool {
        let resident = self.local.resident(operation.hash, operation.key);
        self.view.owns(operation.hash.partition()) && resident.is_some() || !work.failed
    }

    /// The owner that was asked has nothing to say: asks the next one.
    fn forward_on(&mut self, slot: usize, failed: bool, now: UnixMs) {
        let call = self.call(slot);
        let Some(Pending {
            work: Work::Forward(work),
            batch,
            index,
        }) = &mut self.pending[slot].1
        else {
            return;
        };
        let mut work = std::mem::take(work);
        work.failed |= failed;
        let Some(held) = self.batches[*batch].take() else {
            return;
        };
        let (batch, index) = (*batch, *index);
        let operation = held.batch.operation(index);
        let partition = operation.hash.partition();
        let asked = self.forward(partition, operation.key, &mut work, call);
        let knows = !asked && self.knows(&operation, &work);
        self.batches[batch] = Some(held);
        if let Some(pending) = &mut self.pending[slot].1 {
            pending.work = Work::Forward(work);
        }
        if asked {
            return;
        }
        if knows {
            self.finish_from_local(slot, now);
        } else {
            self.unreached(slot, 0, 1);
        }
    }

    fn unreached(&mut self, slot: usize, reached: usize, needed: usize) {
        self.counters.read_quorum_failures += 1;
        self.finish(slot, Outcome::Unreached { reached, needed });
    }

    // At QUORUM and ALL.

    pub(super) fn start_collect(
        &mut self,
        operation: &Operation<'_>,
        place: (usize, usize),
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        let call = self.next_call();
        let work = self.collect(operation, call, self.patience());
        if work.got >= work.needed {
            self.abandon_call();
            return Some(found(self.local.get(operation.hash, operation.key, now)));
        }
        if work.got + work.open < work.needed {
            self.abandon_call();
            self.counters.read_quorum_failures += 1;
            return Some(Outcome::Unreached {
                reached: work.got,
                needed: work.needed,
            });
        }
        self.wait(place, Work::Collect(work));
        None
    }

    /// Asks all owners what they hold, this node first, and one of them for the value.
    fn collect(
        &mut self,
        operation: &Operation<'_>,
        call: Call,
        patience: SteadyMs,
    ) -> CollectWork {
        let partition = operation.hash.partition();
        let takers = Takers::of(&self.view, partition);
        let (owners, me) = (takers.readers(), self.view.me());
        let mut work = CollectWork {
            needed: operation.consistency.needed(owners.len()),
            got: 0,
            open: 0,
            best: None,
            seen: Vec::new(),
            fetching: false,
            refused: false,
            patience,
        };
        if owners.contains(&me) {
            let resident = self.local.resident(operation.hash, operation.key);
            work.got +=
                usize::from(self.sync.holds(partition) || planted(Mutation::TrustEmptyReplicas));
            work.seen
                .push((me, resident.map(|item| (item.version, item.origin))));
            work.best = resident.map(|item| Best {
                version: item.version,
                origin: item.origin,
                expires_at: item.expires_at,
                body: if item.tombstone {
                    BestBody::Tombstone
                } else {
                    BestBody::Local
                },
            });
        } else {
            self.counters.forward_get += 1;
        }
        if work.got >= work.needed {
            return work;
        }
        let mut value = work.best.is_none();
        for &owner in owners {
            let key = operation.key;
            if owner != me && self.push(owner, Lane::Data, call, &PeerOp::Read { key, value }) {
                work.open += 1;
                value = false;
            }
        }
        work
    }

    /// Asks all owners anew, because the rosters have changed. What was answered is void.
    pub(super) fn collect_again(&mut self, slot: usize, now: UnixMs) {
        let Some(Pending {
            work: Work::Collect(work),
            batch,
            index,
        }) = &mut self.pending[slot].1
        else {
            return;
        };
        let (batch, index, patience) = (*batch, *index, work.patience);
        self.collected_bytes -= work.best_bytes();
        work.best = None;
        let Some(held) = self.batches[batch].take() else {
            return;
        };
        self.pending[slot].0 = self.pending[slot].0.wrapping_add(1);
        let call = self.call(slot);
        let work = self.collect(&held.batch.operation(index), call, patience);
        self.batches[batch] = Some(held);
        if let Some(pending) = &mut self.pending[slot].1 {
            pending.work = Work::Collect(work);
        }
        self.check_collect(slot, now);
    }

    pub(super) fn read_answered(
        &mut self,
        slot: usize,
        node: NodeIx,
        answer: &Answer<'_>,
        agrees: bool,
        now: UnixMs,
    ) {
        let credible = self.newest_credible(now);
        let is_refused = matches!(
            answer,
            Answer::Refused(Refusal::NotOwner | Refusal::NotJoined)
        );
        if let Some(Pending {
            work: Work::Collect(work),
            ..
        }) = &mut self.pending[slot].1
        {
            work.refused |= is_refused || !agrees;
        }
        let Answer::Read { holding, held } = *answer else {
            self.read_failed(slot, now);
            return;
        };
        // It has yet to hear that this was cleared.
        let kept_from = self.local.shard().kept_from();
        let held = held.filter(|held| held.version >= kept_from);
        // Of one that goes by other rosters it says nothing that it holds the partition.
        let holding = holding && agrees;
        if held.is_some_and(|held| held.version > credible) {
            // Stamped by a clock that is wrong: no write that follows could be newer.
            self.counters.clock_skew_refused += 1;
            self.read_failed(slot, now);
            return;
        }
        let Some(pending) = &mut self.pending[slot].1 else {
            return;
        };
        match &mut pending.work {
            Work::Write(_) => {}
            Work::Forward(_) => match held {
                Some(held) => self.finish_with(slot, &held, now),
                None if holding => {
                    self.counters.replica_get_miss += 1;
                    self.finish(slot, Outcome::Missing);
                }
                None => self.forward_on(slot, false, now),
            },
            Work::Collect(work) if work.fetching => {
                let sought = work.best.as_ref().map(Best::stamp);
                match held {
                    // A node that was restarted since may hold less than it told of.
                    Some(held) if Some((held.version, held.origin)) >= sought => {
                        let best = Best::from_held(&held, node, usize::MAX);
                        if best.is_elsewhere() {
                            // It was asked for the value: by its clock there is none any more.
                            self.finish(slot, Outcome::Missing);
                            return;
                        }
                        self.collected_bytes += best.bytes();
                        work.best = Some(best);
                        self.conclude(slot, now);
                    }
                    _ => self.read_failed(slot, now),
                }
            }
            Work::Collect(work) => {
                work.open -= 1;
                if holding || planted(Mutation::TrustEmptyReplicas) {
                    work.got += 1;
                }
                work.seen
                    .push((node, held.map(|held| (held.version, held.origin))));
                if let Some(held) = &held {
                    let stamp = (held.version, held.origin);
                    let known = work.best.as_ref().map(Best::stamp);
                    let fills = known == Some(stamp)
                        && matches!(held.body, HeldBody::Value(_))
                        && work.best.as_ref().is_some_and(Best::is_elsewhere);
                    if known < Some(stamp) || fills {
                        let before = work.best_bytes();
                        let room =
                            COLLECTED_BYTES_MAX.saturating_sub(self.collected_bytes - before);
                        work.best = Some(Best::from_held(held, node, room));
                        self.collected_bytes = self.collected_bytes - before + work.best_bytes();
                    }
                }
                self.check_collect(slot, now);
            }
        }
    }

    pub(super) fn read_failed(&mut self, slot: usize, now: UnixMs) {
        let Some(pending) = &mut self.pending[slot].1 else {
            return;
        };
        match &mut pending.work {
            Work::Write(_) => {}
            Work::Forward(_) => self.forward_on(slot, true, now),
            Work::Collect(work) if work.fetching => {
                let needed = work.needed;
                self.unreached(slot, needed - 1, needed);
            }
            Work::Collect(work) => {
                work.open -= 1;
                self.check_collect(slot, now);
            }
        }
    }

    fn check_collect(&mut self, slot: usize, now: UnixMs) {
        let Some(Pending {
            work: Work::Collect(work),
            ..
        }) = &self.pending[slot].1
        else {
            return;
        };
        if work.got >= work.needed {
            self.conclude(slot, now);
        } else if work.got + work.open < work.needed {
            if work.refused && self.steady.now() < work.patience {
                self.wait_for_rosters(slot);
                return;
            }
            self.unreached(slot, work.got, work.needed);
        }
    }

    /// Enough owners have answered: fetches the newest value if need be, repairs those
    /// that have something older, and answers.
    fn conclude(&mut self, slot: usize, now: UnixMs) {
        let Some(Pending {
            work: Work::Collect(work),
            batch,
            index,
        }) = &mut self.pending[slot].1
        else {
            return;
        };
        let (batch, index) = (*batch, *index);
        let Some(mut best) = work.best.take() else {
            self.finish(slot, Outcome::Missing);
            return;
        };
        self.collected_bytes -= best.bytes();
        let seen = std::mem::take(&mut work.seen);
        let Some(held) = self.batches[batch].take() else {
            return;
        };
        let operation = held.batch.operation(index);
        if matches!(best.body, BestBody::Local) && !self.still_holds(&operation, &best) {
            // It was evicted meanwhile: whoever showed the same has it, or nobody.
            let me = self.view.me();
            let same = |(node, stamp): &&(NodeIx, Option<Stamp>)| {
                *node != me && *stamp == Some(best.stamp())
            };
            best.body = match seen.iter().find(same) {
                Some((node, _)) => BestBody::At(*node),
                None => BestBody::Gone,
            };
        }
        if let BestBody::At(node) = best.body
            && best.is_visible(now)
        {
            let asked = self.fetch(slot, node, operation.key);
            self.batches[batch] = Some(held);
            if let Some(Pending {
                work: Work::Collect(work),
                ..
            }) = &mut self.pending[slot].1
            {
                (work.best, work.seen, work.fetching) = (Some(best), seen, true);
            }
            if !asked {
                self.read_failed(slot, now);
            }
            return;
        }
        self.repair(&operation, &best, &seen, now);
        self.batches[batch] = Some(held);
        match best.body {
            _ if !best.is_visible(now) => self.finish(slot, Outcome::Missing),
            BestBody::Value(value) => {
                let item = Found {
                    value: ValueView::Bytes(&value),
                    version: best.version,
                    origin: best.origin,
                    expires_at: best.expires_at,
                };
                self.finish(slot, Outcome::Found(item));
            }
            _ => self.finish_from_local(slot, now),
        }
    }

    /// Whether what was read here is here still, or something newer.
    fn still_holds(&self, operation: &Operation<'_>, best: &Best) -> bool {
        let resident = self.local.resident(operation.hash, operation.key);
        resident.map(|item| (item.version, item.origin)) >= Some(best.stamp())
    }

    /// Asks for a value. From here on only the answer to this counts.
    fn fetch(&mut self, slot: usize, node: NodeIx, key: &[u8]) -> bool {
        self.pending[slot].0 = self.pending[slot].0.wrapping_add(1);
        let call = self.call(slot);
        self.push(node, Lane::Data, call, &PeerOp::Read { key, value: true })
    }

    /// Sends the newest to those who showed something older.
    fn repair(
        &mut self,
        operation: &Operation<'_>,
        best: &Best,
        seen: &[(NodeIx, Option<Stamp>)],
        now: UnixMs,
    ) {
        let Operation { hash, key, .. } = *operation;
        let is_older = |(_, stamp): &&(NodeIx, Option<Stamp>)| *stamp < Some(best.stamp());
        if best.expires_at.is_some_and(|at| at <= now) || !seen.iter().any(|one| is_older(&one)) {
            return;
        }
        // A copy, because pushing needs the rest of self.
        let local_value = match best.body {
            BestBody::Local => match self.local.shard().peek(hash, key, now) {
                Some(item) if (item.version, item.origin) == best.stamp() => {
                    Some(item.value.bytes().to_vec())
                }
                _ => return,
            },
            _ => None,
        };
        let value = match &best.body {
            BestBody::Tombstone => None,
            BestBody::Value(value) => Some(value.as_slice()),
            BestBody::Local => local_value.as_deref(),
            BestBody::At(_) | BestBody::Gone => return,
        };
        let write = WriteOp {
            key,
            version: best.version,
            origin: best.origin,
            value,
            expires_at: best.expires_at,
        };
        for &(node, _) in seen.iter().filter(is_older) {
            self.counters.read_repair += 1;
            let waits = |link: &super::Link| !link.data.is_idle();
            let coalesced = self.links.get(node.index()).is_some_and(waits);
            if node == self.view.me() {
                self.take_in(hash, &write, now);
            } else if self.push(node, Lane::Data, Call::Repair, &PeerOp::Apply(write)) {
                self.counters.read_repair_batched += 1;
                self.counters.read_repair_coalesced += u64::from(coalesced);
            }
        }
    }

    fn finish_with(&mut self, slot: usize, held: &Held<'_>, now: UnixMs) {
        let visible = held.expires_at.is_none_or(|at| at > now);
        let outcome = match held.body {
            HeldBody::Value(value) if visible => Outcome::Found(Found {
                value: ValueView::Bytes(value),
                version: held.version,
                origin: held.origin,
                expires_at: held.expires_at,
            }),
            _ => Outcome::Missing,
        };
        self.finish(slot, outcome);
    }
}
