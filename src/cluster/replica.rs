//! What a core answers to the cores of other nodes. Every answer is immediate: a
//! replica never asks anyone. What one frame may cost is bounded ([`Budget`]): beyond it
//! operations are answered [`Refusal::Later`], and asked again in the next frame.

use std::collections::BTreeMap;

use super::coordinator::Coordinator;
use super::message::{
    Answer, Entries, Frames, Held, HeldBody, Malformed, PeerOp, Refusal, WriteOp, begin_answers,
    put_differs, put_exchanged,
};
use crate::clock::UnixMs;
use crate::hash::{KeyHash, PartitionId};
use crate::mutation::{Mutation, planted};
use crate::store::Applied;

/// How many bytes of items one exchange hands over, give or take one item.
const EXCHANGE_BYTES: usize = 256 << 10;

/// How many bytes the answer to one frame takes, give or take one operation's.
pub const REPLY_BYTES_MAX: usize = 8 << 20;
/// How many keys are looked through for one frame, give or take a partition.
const SCANNED_KEYS_MAX: usize = 16 << 10;

/// What is left of what one frame may cost.
struct Budget {
    reply_end: usize,
    scanned_keys: usize,
}

impl Budget {
    fn admits(&self, op: &PeerOp<'_>, reply: &[u8]) -> bool {
        match op {
            PeerOp::Write(_) | PeerOp::Apply(_) => true,
            PeerOp::Read { .. } => reply.len() < self.reply_end,
            PeerOp::Compare { .. } | PeerOp::Exchange { .. } => {
                reply.len() < self.reply_end && self.scanned_keys > 0
            }
        }
    }

    fn charge_keys(&mut self, keys: usize) {
        // Looking at a partition costs something even when it is empty.
        self.scanned_keys = self.scanned_keys.saturating_sub(keys + 1);
    }
}

impl Coordinator {
    /// Carries out a frame whose operations are all this core's, and appends the
    /// answer to `reply`.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when it is no frame; operations before the fault were done.
    pub fn serve(
        &mut self,
        frame: &[u8],
        now: UnixMs,
        reply: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        let begin = reply.len();
        let mut budget = Budget {
            reply_end: reply.len() + REPLY_BYTES_MAX,
            scanned_keys: SCANNED_KEYS_MAX,
        };
        begin_answers(reply, self.view.terms());
        for body in Frames::new(frame)? {
            let body = body?;
            self.counters.peer_operations_served += 1;
            match PeerOp::decode(body) {
                Ok(op) if budget.admits(&op, reply) => {
                    self.serve_one(&op, &mut budget, now, reply);
                }
                Ok(_) => Answer::Refused(Refusal::Later).encode(reply),
                Err(Malformed) => Answer::Refused(Refusal::Unknown).encode(reply),
            }
        }
        self.counters.peer_bytes_received += frame.len() as u64;
        self.counters.peer_bytes_sent += (reply.len() - begin) as u64;
        Ok(())
    }

    fn serve_one(
        &mut self,
        op: &PeerOp<'_>,
        budget: &mut Budget,
        now: UnixMs,
        reply: &mut Vec<u8>,
    ) {
        let partition = op.partition();
        if let Some(refusal) = self.refusal(partition) {
            Answer::Refused(refusal).encode(reply);
            return;
        }
        let holding = self.sync.holds(partition);
        match *op {
            PeerOp::Write(write) => self.serve_write(&write, now).encode(reply),
            PeerOp::Apply(write) => {
                let hash = KeyHash::of(write.key);
                self.take_in(hash, &write, now).encode(reply);
            }
            PeerOp::Read { key, value } => self.serve_read(key, value, now, reply),
            PeerOp::Compare { partition, digest } => {
                if self.local.shard().digest(partition) == digest {
                    Answer::Same { holding }.encode(reply);
                } else {
                    let (leaves, keys) = self.leaf_digests(partition, now);
                    budget.charge_keys(keys);
                    put_differs(reply, holding, &leaves);
                }
            }
            PeerOp::Exchange {
                partition,
                leaves,
                entries,
            } => {
                let keys = self.serve_exchange(partition, leaves, entries, now, reply);
                budget.charge_keys(keys);
            }
        }
    }

    /// Why nothing of a partition is served here, if that is so.
    fn refusal(&self, partition: PartitionId) -> Option<Refusal> {
        if !self.view.joined() {
            return Some(Refusal::NotJoined);
        }
        let is_here = partition.core(self.config.cores) == self.config.core;
        let is_kept =
            self.view.takes(self.view.me(), partition) || self.sync.retired.contains(partition);
        (!is_here || !is_kept).then_some(Refusal::NotOwner)
    }

    fn serve_write(&mut self, write: &WriteOp<'_>, now: UnixMs) -> Answer<'static> {
        if planted(Mutation::AckBeforeApply)
            || write.value.is_none() && planted(Mutation::DropTombstones)
        {
            return Answer::Stored { holding: true };
        }
        let hash = KeyHash::of(write.key);
        let known = self.local.resident(hash, write.key);
        if let Some(known) = known
            && known.version == write.version
            && known.origin != write.origin
        {
            // Versions grow with each write of a key: this one is to be stamped anew.
            // It is not taken in, or the same frame, come twice, would pass for stored.
            self.counters.version_tie_breaks += 1;
            return Answer::Stale {
                holding: self.sync.holds(hash.partition()),
                version: known.version,
                origin: known.origin,
            };
        }
        self.take_in(hash, write, now)
    }

    /// Takes in a write of another node if it is the newer one, unless its version lies
    /// too far ahead of the clock.
    pub(super) fn take_in(
        &mut self,
        hash: KeyHash,
        write: &WriteOp<'_>,
        now: UnixMs,
    ) -> Answer<'static> {
        let WriteOp {
            key,
            version,
            origin,
            ..
        } = *write;
        if version > self.newest_credible(now) {
            self.counters.clock_skew_refused += 1;
            return Answer::Refused(Refusal::Skewed);
        }
        let holding = self.sync.holds(hash.partition());
        let applied = self
            .local
            .apply(hash, key, version, origin, write.content(), now);
        match applied {
            Ok(Applied::Stored) => Answer::Stored { holding },
            Ok(Applied::Stale) => match self.local.resident(hash, key) {
                Some(known) if (known.version, known.origin) != (version, origin) => {
                    self.counters.version_conflicts += 1;
                    Answer::Stale {
                        holding,
                        version: known.version,
                        origin: known.origin,
                    }
                }
                _ => Answer::Stored { holding },
            },
            Err(_) => Answer::Refused(Refusal::TooLarge),
        }
    }

    fn serve_read(&mut self, key: &[u8], value: bool, now: UnixMs, reply: &mut Vec<u8>) {
        let hash = KeyHash::of(key);
        let holding = self.sync.holds(hash.partition());
        if value && let Some(item) = self.local.get(hash, key, now) {
            let held = Held {
                version: item.version,
                origin: item.origin,
                expires_at: item.expires_at,
                body: HeldBody::Value(item.value.bytes()),
            };
            let held = Some(held);
            Answer::Read { holding, held }.encode(reply);
            return;
        }
        // Without the value; or it is deleted, expired or not there.
        let held = self.local.resident(hash, key).map(|resident| Held {
            version: resident.version,
            origin: resident.origin,
            expires_at: resident.expires_at,
            body: if resident.tombstone {
                HeldBody::Tombstone
            } else {
                HeldBody::Omitted
            },
        });
        Answer::Read { holding, held }.encode(reply);
    }

    /// Returns how many keys were looked through.
    fn serve_exchange(
        &self,
        partition: PartitionId,
        leaves: u64,
        entries: Entries<'_>,
        now: UnixMs,
        reply: &mut Vec<u8>,
    ) -> usize {
        let mut theirs: BTreeMap<KeyHash, _> = entries
            .iter()
            .map(|entry| (entry.hash, (entry.version, entry.origin)))
            .collect();
        let mut wanted = Vec::new();
        let mut items = Vec::new();
        let mut more = false;
        let keys = self.for_each_entry(partition, leaves, now, |key, entry, resident| {
            let known = theirs.remove(&entry.hash);
            let own = (entry.version, entry.origin);
            if known > Some(own) {
                wanted.push(entry.hash);
            }
            if known >= Some(own) {
                return;
            }
            if items.len() > EXCHANGE_BYTES {
                more = true;
                return;
            }
            let peeked = self.local.shard().peek(entry.hash, key, now);
            let value = peeked.as_ref().map(|item| item.value.bytes());
            if value.is_some() || resident.tombstone {
                let write = WriteOp {
                    key,
                    version: entry.version,
                    origin: entry.origin,
                    value,
                    expires_at: resident.expires_at,
                };
                write.encode(&mut items);
            }
        });
        wanted.extend(theirs.into_keys());
        let holding = self.sync.holds(partition);
        put_exchanged(reply, holding, more, &wanted, &items);
        keys
    }
}
