//! Writes: stamped, applied here if this node is an owner, sent to all other owners at
//! once, and answered when enough of them have it. See the parent module.

use super::{Call, Coordinator, Pending, Takers, Work};
use crate::clock::{SteadyMs, UnixMs, Version};
use crate::cluster::Consistency;
use crate::cluster::coordinator::Lane;
use crate::cluster::message::{Answer, PeerOp, Refusal, WriteOp};
use crate::cluster::view::NodeIx;
use crate::mutation::{Mutation, planted};
use crate::operations::{Action, Operation, Outcome};
use crate::store::{Content, TooLarge, ValueIn, ValueView, Write};

/// How often one write is stamped anew.
pub const RESTAMPS_MAX: u32 = 8;

/// A write that waits for owners. Owners are bits, by their places among the takers.
#[derive(Debug)]
pub(super) struct WriteWork {
    version: Version,
    level: Consistency,
    takers: Takers,
    answers: Answers,
    /// How often it was stamped anew.
    restamps: u32,
    /// Until when it may be tried again for owners that go by another roster.
    patience: SteadyMs,
}

/// What became of a write at its owners.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    /// Those that have it.
    stored: u32,
    /// Those of them that hold the partition.
    held: u32,
    /// Those that have something newer.
    stale: u32,
    /// Those of them that hold the partition.
    stale_held: u32,
    /// Those that have yet to answer for this version.
    open: u32,
    /// Whether one of the others goes by another roster.
    refused: bool,
}

impl WriteWork {
    fn is_met(&self) -> bool {
        let Answers { stored, held, .. } = self.answers;
        self.takers.suffice(self.level, stored, held)
    }

    /// Whether it will be met if all that is open goes well, and so does what is stale.
    fn can_be_met(&self, with_stale: bool) -> bool {
        let Answers {
            stored,
            held,
            stale,
            stale_held,
            open,
            ..
        } = self.answers;
        let (stale, stale_held) = if with_stale {
            (stale, stale_held)
        } else {
            (0, 0)
        };
        let (stored, held) = (stored | stale | open, held | stale_held | open);
        self.takers.suffice(self.level, stored, held)
    }

    /// Whether enough have answered to know how new it must be.
    fn is_answered(&self) -> bool {
        let Answers {
            stored,
            held,
            stale,
            stale_held,
            ..
        } = self.answers;
        self.takers
            .suffice(self.level, stored | stale, held | stale_held)
    }
}

impl Coordinator {
    pub(super) fn write_alone(
        &mut self,
        operation: &Operation<'_>,
        now: UnixMs,
    ) -> Outcome<ValueView<'static>> {
        let Operation { hash, key, .. } = *operation;
        match &operation.action {
            Action::Put { value, expires_at } => {
                match self.local.put(hash, key, value.clone(), *expires_at, now) {
                    Ok(version) => Outcome::Stored(version),
                    Err(too_large) => Outcome::TooLarge(too_large),
                }
            }
            _ => match self.local.delete(hash, key, now) {
                Ok(version) => Outcome::Deleted(version),
                Err(too_large) => Outcome::TooLarge(too_large),
            },
        }
    }

    pub(super) fn start_write(
        &mut self,
        operation: &Operation<'_>,
        place: (usize, usize),
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        let partition = operation.hash.partition();
        let takers = Takers::of(&self.view, partition);
        let primary = self.view.owners(partition).first().copied();
        self.counters.write_attempts += 1;
        if takers.as_slice() == [self.view.me()] && self.sync.holds(partition) {
            self.counters.write_acks += 1;
            return Some(self.write_alone(operation, now));
        }
        let in_reach = self.in_reach(&takers);
        if !takers.suffice(operation.consistency, in_reach, in_reach) {
            // It would be refused in the end: nobody is troubled with it.
            self.counters.write_quorum_failures += 1;
            return Some(takers.shortage(operation.consistency, 0, 0));
        }
        let deletes = matches!(operation.action, Action::Delete);
        if takers.bit(self.view.me()) == 0 {
            let counter = match deletes {
                true => &mut self.counters.forward_remove,
                false => &mut self.counters.forward_set,
            };
            *counter += 1;
            if !primary.is_some_and(|primary| self.view.reachable(primary)) {
                self.counters.write_forward_promotion += 1;
            }
        }
        let version = self.local.stamp(now);
        let call = self.next_call();
        let answers = match self.send_write(operation, version, &takers, call, now) {
            Ok(answers) => answers,
            Err(too_large) => return Some(Outcome::TooLarge(too_large)),
        };
        let work = WriteWork {
            version,
            level: operation.consistency,
            takers,
            answers,
            restamps: 0,
            patience: self.patience(),
        };
        if work.is_met() {
            self.abandon_call();
            self.counters.write_acks += 1;
            return Some(written(deletes, version));
        }
        if !work.can_be_met(false) {
            self.abandon_call();
            self.counters.write_quorum_failures += 1;
            return Some(takers.shortage(work.level, answers.stored, answers.held));
        }
        self.wait(place, Work::Write(work));
        None
    }

    /// Those that a write can be sent to.
    fn in_reach(&self, takers: &Takers) -> u32 {
        let owners = takers.as_slice().iter().enumerate();
        owners.fold(0, |bits, (position, &owner)| {
            let link = self.links.get(owner.index());
            let is_up = link.is_some_and(|link| link.data.is_up());
            let is_here = owner == self.view.me();
            match is_here || is_up && self.view.reachable(owner) {
                true => bits | 1 << position,
                false => bits,
            }
        })
    }

    /// Applies a write here if this node takes it and sends it to the others that do, or
    /// keeps hints for them.
    fn send_write(
        &mut self,
        operation: &Operation<'_>,
        version: Version,
        takers: &Takers,
        call: Call,
        now: UnixMs,
    ) -> Result<Answers, TooLarge> {
        let Operation { hash, key, .. } = *operation;
        let origin = self.local.origin();
        let content = match &operation.action {
            Action::Put { value, expires_at } => Content::Value {
                value: value.clone(),
                expires_at: *expires_at,
            },
            _ => Content::Tombstone {
                expires_at: self.local.tombstone_expiry(version.stamped_at()),
            },
        };
        let mut answers = Answers::default();
        let me = takers.bit(self.view.me());
        if me != 0 {
            self.local
                .apply(hash, key, version, origin, content.clone(), now)?;
            answers.stored |= me;
            if self.sync.holds(hash.partition()) {
                answers.held |= me;
            }
        } else {
            let write = Write {
                hash,
                key,
                version,
                origin,
                content: content.clone(),
            };
            self.local.shard().accepts(&write)?;
        }
        let (value, expires_at) = match &content {
            Content::Value { value, expires_at } => (Some(bytes_of(value)), *expires_at),
            Content::Tombstone { expires_at } => (None, Some(*expires_at)),
        };
        let write = WriteOp {
            key,
            version,
            origin,
            value,
            expires_at,
        };
        for &owner in takers.as_slice() {
            if owner == self.view.me() {
                continue;
            }
            if self.push(owner, Lane::Data, call, &PeerOp::Write(write)) {
                answers.open |= takers.bit(owner);
            } else {
                self.keep_hint(owner, &write);
            }
        }
        let fanout = match value {
            Some(_) => &mut self.counters.replica_fanout_set,
            None => &mut self.counters.replica_fanout_remove,
        };
        *fanout += u64::from(answers.open.count_ones());
        Ok(answers)
    }

    pub(super) fn keep_hint(&mut self, node: NodeIx, write: &WriteOp<'_>) {
        if self.view.node(node).is_some_and(|node| node.placed) {
            self.hints.add(node, write, self.steady.now());
        }
    }

    /// Keeps a hint for an owner that did not take a write it will have to take in the end.
    pub(super) fn keep_hint_of_untaken(
        &mut self,
        node: NodeIx,
        write: &WriteOp<'_>,
        answer: &Answer<'_>,
    ) {
        let untaken = match *answer {
            // Of two writes of one version this is the one that stays.
            Answer::Stale {
                version, origin, ..
            } => (version, origin) < (write.version, write.origin),
            Answer::Refused(Refusal::Skewed | Refusal::NotJoined | Refusal::NotOwner) => true,
            _ => false,
        };
        if untaken {
            self.keep_hint(node, write);
        }
    }

    /// An owner answered a write; `agrees` says whether each of the two writes where the
    /// other reads. If not the answer does not count: there may be quorums that do not meet.
    pub(super) fn write_answered(
        &mut self,
        slot: usize,
        node: NodeIx,
        version: Version,
        answer: &Answer<'_>,
        agrees: bool,
        now: UnixMs,
    ) {
        let credible = self.newest_credible(now);
        let own_origin = self.local.origin();
        let Some(Pending {
            work: Work::Write(work),
            ..
        }) = &mut self.pending[slot].1
        else {
            return;
        };
        if work.version != version {
            return;
        }
        let bit = work.takers.bit(node);
        let answers = &mut work.answers;
        answers.open &= !bit;
        let held = |holding: bool| match holding || planted(Mutation::TrustEmptyReplicas) {
            true => bit,
            false => 0,
        };
        match *answer {
            Answer::Stale { version, .. } if version > credible => {
                // Nothing this node may stamp is newer: not acknowledged.
                self.counters.clock_skew_refused += 1;
            }
            Answer::Stored { .. } | Answer::Stale { .. } if !agrees => {
                answers.refused = true;
            }
            Answer::Stale {
                version: known,
                origin,
                holding,
            } => {
                self.local.observe(known);
                // Of a write that was stamped anew: it was newer than all that a quorum
                // held after it had begun. What is newer was written at the same time, and
                // ours came before it.
                let came_before = work.restamps > 0 && (known, origin) > (version, own_origin);
                if came_before || planted(Mutation::AcceptStaleWrites) {
                    answers.stored |= bit;
                    answers.held |= held(holding);
                } else {
                    answers.stale |= bit;
                    answers.stale_held |= held(holding);
                }
            }
            Answer::Stored { holding } => {
                answers.stored |= bit;
                answers.held |= held(holding);
            }
            Answer::Refused(Refusal::NotOwner | Refusal::NotJoined) => answers.refused = true,
            _ => {}
        }
        self.check_write(slot, now);
    }

    pub(super) fn write_failed(
        &mut self,
        slot: usize,
        node: NodeIx,
        version: Version,
        now: UnixMs,
    ) {
        if let Some(Pending {
            work: Work::Write(work),
            ..
        }) = &mut self.pending[slot].1
            && work.version == version
        {
            work.answers.open &= !work.takers.bit(node);
            self.check_write(slot, now);
        }
    }

    fn check_write(&mut self, slot: usize, now: UnixMs) {
        let Some(pending) = &self.pending[slot].1 else {
            return;
        };
        let Work::Write(work) = &pending.work else {
            return;
        };
        let Answers {
            stored,
            held,
            refused,
            ..
        } = work.answers;
        let spent = work.restamps == RESTAMPS_MAX;
        if work.is_met() {
            let deletes = self.batches[pending.batch].as_ref().is_some_and(|batch| {
                matches!(batch.batch.operation(pending.index).action, Action::Delete)
            });
            let outcome = written(deletes, work.version);
            self.counters.write_acks += 1;
            self.finish(slot, outcome);
        } else if work.is_answered() && !spent {
            self.counters.write_restamps += 1;
            if let Some(Pending {
                work: Work::Write(work),
                ..
            }) = &mut self.pending[slot].1
            {
                work.restamps += 1;
            }
            self.send_write_again(slot, now);
        } else if !work.can_be_met(!spent) {
            if refused && self.steady.now() < work.patience {
                self.wait_for_rosters(slot);
                return;
            }
            let outcome = work.takers.shortage(work.level, stored, held);
            self.counters.write_quorum_failures += 1;
            self.finish(slot, outcome);
        }
    }

    /// Sends a write again under a newer version, because an owner holds something newer or the
    /// rosters have changed. What was answered so far is void. (Under the same version it
    /// could be taken for stored where only a hint of it has won a tie.)
    pub(super) fn send_write_again(&mut self, slot: usize, now: UnixMs) {
        let version = self.local.stamp(now);
        let Some(Pending {
            work: Work::Write(work),
            batch,
            index,
        }) = &mut self.pending[slot].1
        else {
            return;
        };
        work.version = version;
        let (batch_slot, index) = (*batch, *index);
        // The batch is out of its place while it is read and the rest of self changes.
        let Some(held) = self.batches[batch_slot].take() else {
            return;
        };
        let operation = held.batch.operation(index);
        let takers = Takers::of(&self.view, operation.hash.partition());
        self.pending[slot].0 = self.pending[slot].0.wrapping_add(1);
        let call = self.call(slot);
        let sent = self.send_write(&operation, version, &takers, call, now);
        self.batches[batch_slot] = Some(held);
        if let Some(Pending {
            work: Work::Write(work),
            ..
        }) = &mut self.pending[slot].1
        {
            work.takers = takers;
            // It fitted before; if it does not any more, nobody has it under this version.
            work.answers = sent.unwrap_or_default();
        }
        self.check_write(slot, now);
    }
}

fn written(deletes: bool, version: Version) -> Outcome<ValueView<'static>> {
    if deletes {
        Outcome::Deleted(version)
    } else {
        Outcome::Stored(version)
    }
}

fn bytes_of<'a>(value: &'a ValueIn<'_>) -> &'a [u8] {
    match value {
        ValueIn::Bytes(bytes) => bytes,
        ValueIn::Shared(bytes) => bytes,
    }
}
