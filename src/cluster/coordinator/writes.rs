//! Writes: stamped, applied here if this node is an owner, sent to all other owners at
//! once, and answered when enough of them have it. See the parent module.

use super::{Call, Coordinator, Owners, Pending, Work};
use crate::clock::{UnixMs, Version};
use crate::cluster::Consistency;
use crate::cluster::coordinator::Lane;
use crate::cluster::message::{Answer, PeerOp, Refusal, WriteOp};
use crate::cluster::view::NodeIx;
use crate::mutation::{Mutation, planted};
use crate::operations::{Action, Operation, Outcome};
use crate::store::{Content, TooLarge, ValueIn, ValueView, Write};

/// How often one write is stamped anew.
pub const RESTAMPS_MAX: u32 = 8;

/// A write that waits for owners.
#[derive(Debug)]
pub(super) struct WriteWork {
    version: Version,
    needed: usize,
    /// Owners that have it.
    acks: usize,
    /// Owners that hold something newer.
    stale: usize,
    /// Owners that have yet to answer for this version.
    open: usize,
    /// How often it was stamped anew.
    restamps: u32,
    /// Whether any owner will do.
    one: bool,
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
        let owners = Owners::of(&self.view, partition);
        let mine = owners.as_slice().contains(&self.view.me());
        self.counters.write_attempts += 1;
        if mine && owners.len == 1 {
            self.counters.write_acks += 1;
            return Some(self.write_alone(operation, now));
        }
        let deletes = matches!(operation.action, Action::Delete);
        if !mine {
            let counter = match deletes {
                true => &mut self.counters.forward_remove,
                false => &mut self.counters.forward_set,
            };
            *counter += 1;
            if !self.view.reachable(owners.list[0]) {
                self.counters.write_forward_promotion += 1;
            }
        }
        let version = self.local.stamp(now);
        let call = self.next_call();
        let sent = self.send_write(operation, version, &owners, call, now);
        let (acks, open) = match sent {
            Ok(sent) => sent,
            Err(too_large) => return Some(Outcome::TooLarge(too_large)),
        };
        let needed = operation.consistency.needed(owners.len);
        if acks >= needed {
            self.abandon_call();
            self.counters.write_acks += 1;
            return Some(written(deletes, version));
        }
        if acks + open < needed {
            self.abandon_call();
            self.counters.write_quorum_failures += 1;
            return Some(Outcome::Unreached {
                reached: acks,
                needed,
            });
        }
        let work = WriteWork {
            version,
            needed,
            acks,
            stale: 0,
            open,
            restamps: 0,
            one: operation.consistency == Consistency::One,
        };
        self.wait(place, Work::Write(work));
        None
    }

    /// Applies a write here if this node is an owner and sends it to the others, or
    /// keeps hints for them. Returns how many have it and how many may yet take it.
    fn send_write(
        &mut self,
        operation: &Operation<'_>,
        version: Version,
        owners: &Owners,
        call: Call,
        now: UnixMs,
    ) -> Result<(usize, usize), TooLarge> {
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
        let mut acks = 0;
        if owners.as_slice().contains(&self.view.me()) {
            self.local
                .apply(hash, key, version, origin, content.clone(), now)?;
            let knows = self.sync.holds(hash.partition());
            acks += usize::from(knows || operation.consistency == Consistency::One);
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
        let mut open = 0;
        for &owner in owners.as_slice() {
            if owner == self.view.me() {
                continue;
            }
            if self.push(owner, Lane::Data, call, &PeerOp::Write(write)) {
                open += 1;
            } else {
                self.keep_hint(owner, &write);
            }
        }
        let fanout = match value {
            Some(_) => &mut self.counters.replica_fanout_set,
            None => &mut self.counters.replica_fanout_remove,
        };
        *fanout += open as u64;
        Ok((acks, open))
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

    pub(super) fn write_answered(
        &mut self,
        slot: usize,
        version: Version,
        answer: &Answer<'_>,
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
        work.open -= 1;
        match *answer {
            Answer::Stale { version, .. } if version > credible => {
                // Nothing this node may stamp is newer: not acknowledged.
                self.counters.clock_skew_refused += 1;
            }
            Answer::Stale {
                version: known,
                origin,
                holding,
            } => {
                self.local.observe(known);
                if !counts(holding, work) {
                } else if planted(Mutation::AcceptStaleWrites) {
                    work.acks += 1;
                } else if work.restamps > 0 && (known, origin) > (version, own_origin) {
                    // Ours was newer than all that a quorum held after it had begun: this
                    // was written at the same time, and ours came before it.
                    work.acks += 1;
                } else {
                    work.stale += 1;
                }
            }
            Answer::Stored { holding } if counts(holding, work) => work.acks += 1,
            _ => {}
        }
        self.check_write(slot, now);
    }

    pub(super) fn write_failed(&mut self, slot: usize, version: Version, now: UnixMs) {
        if let Some(Pending {
            work: Work::Write(work),
            ..
        }) = &mut self.pending[slot].1
            && work.version == version
        {
            work.open -= 1;
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
        if work.acks >= work.needed {
            let deletes = self.batches[pending.batch].as_ref().is_some_and(|held| {
                matches!(held.batch.operation(pending.index).action, Action::Delete)
            });
            let outcome = written(deletes, work.version);
            self.counters.write_acks += 1;
            self.finish(slot, outcome);
        } else if work.acks + work.stale >= work.needed && work.restamps < RESTAMPS_MAX {
            self.restamp(slot, now);
        } else if work.acks + work.stale + work.open < work.needed
            || work.acks + work.open < work.needed && work.restamps == RESTAMPS_MAX
        {
            let outcome = Outcome::Unreached {
                reached: work.acks,
                needed: work.needed,
            };
            self.counters.write_quorum_failures += 1;
            self.finish(slot, outcome);
        }
    }

    /// Sends a write again under a newer version: an owner holds something newer.
    fn restamp(&mut self, slot: usize, now: UnixMs) {
        let Some(pending) = &self.pending[slot].1 else {
            return;
        };
        let (batch_slot, index) = (pending.batch, pending.index);
        // The batch is out of its place while it is read and the rest of self changes.
        let Some(held) = self.batches[batch_slot].take() else {
            return;
        };
        self.counters.write_restamps += 1;
        let operation = held.batch.operation(index);
        let owners = Owners::of(&self.view, operation.hash.partition());
        let version = self.local.stamp(now);
        let call = self.call(slot);
        let sent = self.send_write(&operation, version, &owners, call, now);
        let needed = operation.consistency.needed(owners.len);
        self.batches[batch_slot] = Some(held);
        // It fitted before; if it does not any more, nobody has it under this version.
        let (acks, open) = sent.unwrap_or((0, 0));
        if let Some(Pending {
            work: Work::Write(work),
            ..
        }) = &mut self.pending[slot].1
        {
            work.version = version;
            work.needed = needed;
            work.acks = acks;
            work.open = open;
            work.stale = 0;
            work.restamps += 1;
        }
        self.check_write(slot, now);
    }
}

/// Whether the answer of an owner counts: of what came before, one that lacks data can
/// tell nothing.
fn counts(holding: bool, work: &WriteWork) -> bool {
    holding || work.one || planted(Mutation::TrustEmptyReplicas)
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
