//! What a core answers to the cores of other nodes. Every answer is immediate: a
//! replica never asks anyone. What one frame may cost is bounded ([`Budget`]): beyond it
//! operations are answered [`Refusal::Later`], and asked again in the next frame.

use super::coordinator::Coordinator;
use super::message::{
    Answer, Entries, Entry, Frames, Hashes, Held, HeldBody, Malformed, PartitionDigests, PeerOp,
    Refusal, Takes, Verdict, WriteOp, begin_answers, hashes, items, pack_verdicts, put_differs,
    put_hash, verdicts,
};
use crate::clock::{Origin, UnixMs, Version};
use crate::hash::{KeyHash, PartitionId};
use crate::mutation::{Mutation, planted};
use crate::store::{Applied, StoredItem, ValueView};

/// How many bytes the answer to one frame takes, give or take one operation's.
pub const REPLY_BYTES_MAX: usize = 8 << 20;
/// How many keys are looked through for one frame; a partition that has more, if it is
/// the first.
pub const SCANNED_KEYS_MAX: usize = 4 << 10;
/// How many items the comparison of replicas hands over in the answer to one frame. The
/// receiver takes them in within one turn.
pub const HANDED_ITEMS_MAX: usize = 1 << 10;
/// How many bytes these take, give or take an item.
pub const HANDED_BYTES_MAX: usize = 512 << 10;

/// What is left of what one frame may cost.
struct Budget {
    reply_end: usize,
    scanned_keys: usize,
    handed_items: usize,
    handed_bytes: usize,
}

impl Budget {
    fn new(reply_start: usize) -> Self {
        Self {
            reply_end: reply_start + REPLY_BYTES_MAX,
            scanned_keys: SCANNED_KEYS_MAX,
            handed_items: HANDED_ITEMS_MAX,
            handed_bytes: HANDED_BYTES_MAX,
        }
    }

    /// Whether as many keys may be looked through; if no other was yet, any number.
    fn admits_keys(&self, keys: usize) -> bool {
        self.scanned_keys > keys.min(SCANNED_KEYS_MAX - 1)
    }

    fn charge_keys(&mut self, keys: usize) {
        // Looking at a partition costs something even when it is empty.
        self.scanned_keys = self.scanned_keys.saturating_sub(keys + 1);
    }

    fn admits_item(&self) -> bool {
        self.handed_items > 0 && self.handed_bytes > 0
    }

    /// Appends an item to those that are handed over.
    fn hand_over(&mut self, write: &WriteOp<'_>, handed: &mut Vec<u8>) {
        let before = handed.len();
        write.encode(handed);
        self.handed_items = self.handed_items.saturating_sub(1);
        self.handed_bytes = self.handed_bytes.saturating_sub(handed.len() - before);
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
        let mut budget = Budget::new(begin);
        begin_answers(reply, self.view.terms());
        for body in Frames::new(frame)? {
            let body = body?;
            self.counters.peer_operations_served += 1;
            match PeerOp::decode(body) {
                Ok(op) if self.admits(&budget, &op, reply) => {
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

    fn admits(&self, budget: &Budget, op: &PeerOp<'_>, reply: &[u8]) -> bool {
        let admits_scan = |partition| budget.admits_keys(self.local.shard().stored_len(partition));
        match op {
            PeerOp::Write(_) | PeerOp::Apply(_) | PeerOp::Offer(_) | PeerOp::CompareMany { .. } => {
                true
            }
            PeerOp::Read { .. } => reply.len() < budget.reply_end,
            PeerOp::Compare { partition, .. } => admits_scan(*partition),
            PeerOp::Exchange { partition, .. } => budget.admits_item() && admits_scan(*partition),
            PeerOp::Fetch { .. } => budget.admits_item(),
        }
    }

    fn serve_one(
        &mut self,
        op: &PeerOp<'_>,
        budget: &mut Budget,
        now: UnixMs,
        reply: &mut Vec<u8>,
    ) {
        let refusal = match op {
            // Each of its partitions has a verdict of its own.
            PeerOp::CompareMany { .. } => None,
            _ => self.refusal(op.partition()),
        };
        if let Some(refusal) = refusal {
            Answer::Refused(refusal).encode(reply);
            return;
        }
        match *op {
            PeerOp::Write(write) => self.serve_write(&write, now).encode(reply),
            PeerOp::Apply(write) => {
                let hash = KeyHash::of(write.key);
                self.take_in(hash, &write, now).encode(reply);
            }
            PeerOp::Offer(write) => {
                let hash = KeyHash::of(write.key);
                self.take_offered(hash, &write, now).encode(reply);
            }
            PeerOp::Read { key, value } => self.serve_read(key, value, now, reply),
            PeerOp::CompareMany { digests } => self.serve_compare_many(digests, reply),
            PeerOp::Compare { partition, digest } => {
                let holding = self.sync.holds(partition);
                if self.local.shard().digest(partition) == digest {
                    Answer::Same { holding }.encode(reply);
                } else {
                    budget.charge_keys(self.local.shard().stored_len(partition));
                    let leaves = self.leaf_digests(partition, now);
                    put_differs(reply, holding, &leaves);
                }
            }
            PeerOp::Exchange {
                partition,
                leaves,
                takes,
                entries,
            } => {
                budget.charge_keys(self.local.shard().stored_len(partition));
                let asked = Asked {
                    partition,
                    leaves,
                    takes,
                };
                self.serve_exchange(&asked, entries, budget, now, reply);
            }
            PeerOp::Fetch { partition, hashes } => {
                self.serve_fetch(partition, hashes, budget, now, reply);
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
            Ok(Applied::Stored) => {
                self.sync.retired.touch(hash.partition());
                Answer::Stored { holding }
            }
            Ok(Applied::Stale) => match self.local.resident(hash, key) {
                Some(known) if (known.version, known.origin) != (version, origin) => {
                    self.counters.version_conflicts += 1;
                    Answer::Stale {
                        holding,
                        version: known.version,
                        origin: known.origin,
                    }
                }
                // It is older than what the cluster has cleared.
                None if version < self.local.shard().kept_from() => Answer::Stale {
                    holding,
                    version: self.local.shard().kept_from(),
                    origin: self.local.origin(),
                },
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

    fn serve_compare_many(&self, digests: PartitionDigests<'_>, reply: &mut Vec<u8>) {
        let packed = pack_verdicts(digests.iter().map(|(partition, digest)| {
            if self.refusal(partition).is_some() {
                Verdict::Refused
            } else if self.local.shard().digest(partition) != digest {
                Verdict::Differs
            } else {
                let holding = self.sync.holds(partition);
                Verdict::Same { holding }
            }
        }));
        let verdicts = verdicts(&packed);
        Answer::Compared { verdicts }.encode(reply);
    }

    fn serve_exchange(
        &mut self,
        asked: &Asked,
        entries: Entries<'_>,
        budget: &mut Budget,
        now: UnixMs,
        reply: &mut Vec<u8>,
    ) {
        let Asked {
            partition,
            leaves,
            takes,
        } = *asked;
        let mut theirs = Theirs::new(entries);
        let (mut wanted, mut left, mut handed) = (Vec::new(), Vec::new(), Vec::new());
        let mut kept_back = 0;
        self.for_each_entry(partition, leaves, now, |entry, item| {
            let own = (entry.version, entry.origin);
            match theirs.take(entry.hash) {
                Some(known) if known > own => put_hash(&mut wanted, entry.hash),
                Some(known) if known == own => {}
                _ if takes == Takes::Nothing => {}
                None if takes == Takes::Newer => kept_back += 1,
                _ if budget.admits_item() => {
                    budget.hand_over(&stored_write(item), &mut handed);
                }
                _ => put_hash(&mut left, entry.hash),
            }
        });
        let absent = theirs.untaken();
        if self.local.shard().is_full() {
            self.sync.leave_keys(absent.count() as u64);
        } else {
            absent.for_each(|hash| put_hash(&mut wanted, hash));
        }
        let answer = Answer::Exchanged {
            holding: self.sync.holds(partition),
            wanted: hashes(&wanted),
            left: hashes(&left),
            kept_back,
            items: items(&handed),
        };
        answer.encode(reply);
    }

    fn serve_fetch(
        &self,
        partition: PartitionId,
        hashes: Hashes<'_>,
        budget: &mut Budget,
        now: UnixMs,
        reply: &mut Vec<u8>,
    ) {
        let mut handed = Vec::new();
        let mut done = 0;
        for hash in hashes.iter() {
            if !budget.admits_item() {
                break;
            }
            done += 1;
            if hash.partition() == partition {
                for item in self.with_hash(hash, now) {
                    budget.hand_over(&stored_write(item), &mut handed);
                }
            }
        }
        let answer = Answer::Fetched {
            holding: self.sync.holds(partition),
            done,
            items: items(&handed),
        };
        answer.encode(reply);
    }

    /// Takes in a write that an exchange has brought to light, unless it would make
    /// something else go.
    pub(super) fn take_offered(
        &mut self,
        hash: KeyHash,
        write: &WriteOp<'_>,
        now: UnixMs,
    ) -> Answer<'static> {
        if self.local.shard().is_full() && self.local.resident(hash, write.key).is_none() {
            self.sync.leave_keys(1);
            return Answer::Refused(Refusal::Full);
        }
        self.take_in(hash, write, now)
    }
}

/// What an exchange is about.
struct Asked {
    partition: PartitionId,
    leaves: u64,
    takes: Takes,
}

/// What the other side of an exchange holds.
struct Theirs {
    /// By hash, each with whether we hold it too.
    entries: Vec<(Entry, bool)>,
}

impl Theirs {
    fn new(entries: Entries<'_>) -> Self {
        let mut entries: Vec<_> = entries.iter().map(|entry| (entry, false)).collect();
        entries.sort_unstable_by_key(|(entry, _)| entry.hash);
        Self { entries }
    }

    /// What they hold under a hash.
    fn take(&mut self, hash: KeyHash) -> Option<(Version, Origin)> {
        let found = self
            .entries
            .binary_search_by_key(&hash, |(entry, _)| entry.hash);
        let (entry, taken) = self.entries.get_mut(found.ok()?)?;
        *taken = true;
        Some((entry.version, entry.origin))
    }

    /// The hashes that were not taken.
    fn untaken(&self) -> impl Iterator<Item = KeyHash> {
        let untaken = self.entries.iter().filter(|(_, taken)| !taken);
        untaken.map(|(entry, _)| entry.hash)
    }
}

/// An item as it is sent.
pub(super) fn stored_write(item: StoredItem<'_>) -> WriteOp<'_> {
    let known = item.resident();
    WriteOp {
        key: item.key(),
        version: known.version,
        origin: known.origin,
        value: item.value().map(ValueView::bytes),
        expires_at: known.expires_at,
    }
}
