//! How two replicas find out what differs between them, and hand it over.
//!
//! **What it costs.** Partitions in step cost [9 bytes and 2 bits](PeerOp::CompareMany)
//! each, and no key is looked through. One that differs is looked through twice by either
//! node, for its leaves and for its entries, however much it holds; what one answer has no
//! room for is found by hash. Every item is sent once, and so are the entries of leaves that
//! differ. Only so much is under way at a time ([`EXCHANGES_MAX`], [`OPEN_KEYS_MAX`]) that
//! neither core is kept from its clients for long; a replica that has more to look through
//! says [`Refusal::Later`], and what was asked is asked again.

use std::collections::VecDeque;

use super::super::coordinator::{Call, Coordinator, Lane};
use super::super::message::{
    Answer, Entry, Hashes, Items, LEAVES, PeerOp, Refusal, Takes, Verdict, entries, hashes, items,
    leaf_of, partition_digests, put_entry, put_hash, put_partition_digests,
};
use super::super::replica::{HANDED_ITEMS_MAX, stored_write};
use super::super::view::NodeIx;
use super::{Session, SyncState};
use crate::clock::UnixMs;
use crate::hash::{KeyHash, PartitionId};
use crate::store::{Digest, StoredItem};

/// Partitions that are compared at once.
const COMPARES_MAX: usize = 1024;
/// Partitions of one session that are being exchanged at once.
const EXCHANGES_MAX: usize = 8;
/// How many keys these partitions may have here, if it is more than one partition.
const OPEN_KEYS_MAX: usize = 2 << 10;
/// Items that are offered to the other node at once.
const OFFERS_MAX: usize = 512;
/// How many bytes their values may have, give or take an item.
const OFFERED_BYTES_MAX: usize = 256 << 10;
/// The entries of so many keys take no more than the digests of all leaves: a partition that
/// has no more here is exchanged as a whole.
const WHOLE_KEYS_MAX: usize = 25;

/// What a partition needs next that is not the same at the other node.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// To compare its leaves; with few keys here, to exchange it as a whole.
    Compare(PartitionId),
    /// To exchange what is in these leaves.
    Exchange(PartitionId, u64),
    /// To fetch more of what the exchange left.
    Fetch(PartitionId),
}

impl Step {
    fn partition(self) -> PartitionId {
        match self {
            Self::Compare(partition) | Self::Exchange(partition, _) | Self::Fetch(partition) => {
                partition
            }
        }
    }
}

/// A partition of which the other node has more than one answer could hold.
#[derive(Debug)]
pub(super) struct Fetching {
    partition: PartitionId,
    /// Whether the other node holds it.
    holding: bool,
    /// Whether something of it could not be taken in.
    refused: bool,
    /// What is still to be fetched.
    hashes: VecDeque<KeyHash>,
}

impl Coordinator {
    pub(in crate::cluster) fn sync_answered(
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
        let later = *answer == Answer::Refused(Refusal::Later);
        match *op {
            PeerOp::CompareMany { digests } => {
                session.comparing = false;
                if let Answer::Compared { verdicts } = *answer {
                    for ((partition, _), verdict) in digests.iter().zip(verdicts.iter()) {
                        self.compared(node, partition, verdict);
                    }
                } else {
                    session.failed = true;
                }
            }
            PeerOp::Compare { partition, .. } => {
                session.exchanges_open -= 1;
                match *answer {
                    _ if later => session.steps.push_front(Step::Compare(partition)),
                    Answer::Same { holding } => self.in_step(partition, node, holding),
                    Answer::Differs { holding, leaves } => {
                        let leaves = leaves.differing(&self.leaf_digests(partition, now));
                        if leaves == 0 {
                            self.in_step(partition, node, holding);
                        } else {
                            let steps = &mut self.sync.session(node).steps;
                            steps.push_front(Step::Exchange(partition, leaves));
                        }
                    }
                    _ => session.failed = true,
                }
            }
            PeerOp::Exchange {
                partition, leaves, ..
            } => {
                session.exchanges_open -= 1;
                if later {
                    let step = Step::Exchange(partition, leaves);
                    session.steps.push_front(step);
                } else {
                    self.exchanged(node, partition, answer, now);
                }
            }
            PeerOp::Fetch { partition, .. } => {
                session.exchanges_open -= 1;
                match *answer {
                    _ if later => session.steps.push_front(Step::Fetch(partition)),
                    // Whoever deals with none would have us ask for ever.
                    Answer::Fetched {
                        holding,
                        done,
                        items,
                    } if done > 0 => {
                        let refused = self.pull(node, partition, items, now);
                        let mut fetching = self.sync.session(node).fetching.iter_mut();
                        if let Some(one) = fetching.find(|one| one.partition == partition) {
                            // Not if it has lost what it had and begun anew.
                            one.holding &= holding;
                            one.refused |= refused;
                            one.hashes.drain(..one.hashes.len().min(done as usize));
                        }
                        self.fetch_more(node, partition);
                    }
                    _ => {
                        session.failed = true;
                        self.sync.copied(partition, node);
                    }
                }
            }
            PeerOp::Offer(_) => session.offers_open -= 1,
            PeerOp::Write(_) | PeerOp::Apply(_) | PeerOp::Read { .. } => {}
        }
        self.go_on(node, now);
        if self.sync.missing_count > 0 {
            // What it was done with others may have waited for.
            for index in 0..self.links.len() {
                let other = NodeIx(index as u16);
                if self.sync.session(other).waits_for_others() {
                    self.go_on(other, now);
                }
            }
        }
    }

    fn compared(&mut self, node: NodeIx, partition: PartitionId, verdict: Verdict) {
        let session = self.sync.session(node);
        match verdict {
            Verdict::Same { holding } => {
                self.sync.retired.in_step(partition, node, holding);
                self.in_step(partition, node, holding);
            }
            Verdict::Differs => session.steps.push_back(Step::Compare(partition)),
            // It does not know yet that it is an owner, or is none any more.
            Verdict::Refused => {}
        }
    }

    /// Takes over what the other node has newer; notes what it wants, and what it left.
    fn exchanged(
        &mut self,
        node: NodeIx,
        partition: PartitionId,
        answer: &Answer<'_>,
        now: UnixMs,
    ) {
        let Answer::Exchanged {
            holding,
            wanted,
            left,
            kept_back,
            items,
        } = *answer
        else {
            self.sync.session(node).failed = true;
            self.sync.copied(partition, node);
            return;
        };
        let refused = self.pull(node, partition, items, now);
        self.sync.leave_keys(u64::from(kept_back));
        let here = |hashes: Hashes<'_>| -> VecDeque<KeyHash> {
            let hashes = hashes.iter();
            hashes
                .filter(|hash| hash.partition() == partition)
                .collect()
        };
        if wanted.iter().next().is_none() {
            self.sync.retired.in_step(partition, node, holding);
        }
        let session = self.sync.session(node);
        session.wanted.extend(here(wanted));
        session.fetching.push(Fetching {
            partition,
            holding,
            refused,
            hashes: here(left),
        });
        self.fetch_more(node, partition);
    }

    /// Goes on with what the other node had left of a partition, if there is more.
    fn fetch_more(&mut self, node: NodeIx, partition: PartitionId) {
        let shard = self.local.shard();
        let session = self.sync.session(node);
        let mut fetching = session.fetching.iter();
        let Some(at) = fetching.position(|one| one.partition == partition) else {
            return;
        };
        let hashes = &mut session.fetching[at].hashes;
        let mut kept_back = 0;
        if shard.is_full() {
            let before = hashes.len();
            hashes.retain(|&hash| shard.stored_with_hash(hash).next().is_some());
            kept_back = before - hashes.len();
        }
        if !hashes.is_empty() {
            session.steps.push_front(Step::Fetch(partition));
        } else {
            let done = session.fetching.swap_remove(at);
            self.sync.copied(partition, node);
            // What it cannot take it does not hold.
            if !done.refused {
                self.in_step(partition, node, done.holding);
            }
        }
        self.sync.leave_keys(kept_back as u64);
    }

    /// Takes in items that the other node has newer; returns whether one was refused.
    fn pull(
        &mut self,
        node: NodeIx,
        partition: PartitionId,
        items: Items<'_>,
        now: UnixMs,
    ) -> bool {
        let (mut pulled, mut refused) = (0, false);
        for write in items.iter() {
            let hash = KeyHash::of(write.key);
            if hash.partition() != partition {
                continue;
            }
            match self.take_offered(hash, &write, now) {
                Answer::Stored { .. } => pulled += 1,
                // It is full: it goes without.
                Answer::Refused(Refusal::Full) => {}
                Answer::Refused(_) => refused = true,
                _ => {}
            }
        }
        let bytes = items.len();
        self.charge(bytes);
        let is_primary = self.view.owners(partition).first() == Some(&self.view.me());
        let counters = &mut self.sync.counters;
        counters.keys_pulled += pulled;
        if self.sync.missing[partition.index()].is_some() && bytes > 0 {
            counters.keys_copied += pulled;
            counters.keys_copied_as_primary += if is_primary { pulled } else { 0 };
            counters.copies += 1;
            counters.bytes_copied += bytes as u64;
            self.sync.progressed = self.steady.now();
            let told = &mut self.sync.session(node).told;
            told.copied += pulled;
            told.copied_bytes += bytes as u64;
        }
        self.sync.session(node).told.pulled += pulled;
        refused
    }

    /// Asks for what is next; ends the session when nothing is left.
    pub(super) fn go_on(&mut self, node: NodeIx, now: UnixMs) {
        while self.sync.session(node).active {
            match self.next_request(node, now) {
                Some(true) => {}
                Some(false) => {
                    self.sync.session(node).failed = true;
                    self.end_session(node);
                }
                None if self.sync.is_throttled() => return,
                None if !self.sync.session(node).is_idle() => return,
                None if self.sync.session(node).waits_for_others() => return,
                None => self.end_session(node),
            }
        }
    }

    /// Sends the next request, if there is one that may be under way besides those that
    /// are; false when the node is out of reach.
    fn next_request(&mut self, node: NodeIx, now: UnixMs) -> Option<bool> {
        if self.sync.is_throttled() {
            return None;
        }
        let steady = self.steady.now();
        let session = self.sync.session(node);
        let call = Call::Sync {
            session: session.number,
        };
        if session.offers_open == 0 && !session.wanted.is_empty() {
            return Some(self.offer_wanted(node, call, now));
        }
        let open = session.exchanges_open;
        if let Some((at, step)) = self.next_step(node) {
            let keys = self.local.shard().stored_len(step.partition());
            if open == 0 || open < EXCHANGES_MAX && (open + 1) * keys <= OPEN_KEYS_MAX {
                let session = self.sync.session(node);
                session.steps.remove(at);
                session.exchanges_open += 1;
                return Some(self.take_step(node, call, step, now));
            }
            return None;
        }
        let session = self.sync.session(node);
        if !session.comparing && !session.to_compare.is_empty() {
            session.comparing = true;
            session.compared = steady;
            return Some(self.compare_next(node, call));
        }
        None
    }

    /// The first step of a session that need not wait for a session with another node, and
    /// where it stands. Those that have to are to compare anew.
    fn next_step(&mut self, node: NodeIx) -> Option<(usize, Step)> {
        let SyncState {
            sessions, missing, ..
        } = &mut self.sync;
        let Session {
            steps, fetching, ..
        } = sessions.get_mut(node.index())?;
        let at = steps.iter_mut().position(|step| {
            let partition = step.partition();
            let missing = missing[partition.index()].as_ref();
            let waits = missing.is_some_and(|missing| missing.is_copied_from_another(node));
            if waits {
                if matches!(step, Step::Fetch(_)) {
                    fetching.retain(|one| one.partition != partition);
                }
                *step = Step::Compare(partition);
            }
            !waits
        })?;
        Some((at, steps[at]))
    }

    fn compare_next(&mut self, node: NodeIx, call: Call) -> bool {
        let to_compare = &mut self.sync.session(node).to_compare;
        let next = to_compare.drain(..to_compare.len().min(COMPARES_MAX));
        let shard = self.local.shard();
        let mut digests: Vec<_> = next
            .map(|partition| (partition, shard.digest(partition)))
            .collect();
        digests.sort_unstable_by_key(|(partition, _)| *partition);
        let mut bytes = Vec::new();
        put_partition_digests(&mut bytes, &digests);
        partition_digests(&bytes).is_some_and(|digests| {
            let op = PeerOp::CompareMany { digests };
            self.push(node, Lane::Bulk, call, &op)
        })
    }

    fn take_step(&mut self, node: NodeIx, call: Call, step: Step, now: UnixMs) -> bool {
        let few_keys = |partition| self.local.shard().stored_len(partition) <= WHOLE_KEYS_MAX;
        let step = match step {
            Step::Compare(partition) if few_keys(partition) => Step::Exchange(partition, u64::MAX),
            step => step,
        };
        match step {
            Step::Compare(partition) => {
                let digest = self.local.shard().digest(partition);
                let op = PeerOp::Compare { partition, digest };
                self.push(node, Lane::Bulk, call, &op)
            }
            Step::Exchange(partition, leaves) => {
                self.sync.copy_from(partition, node);
                let mut bytes = Vec::new();
                self.for_each_entry(partition, leaves, now, |entry, _| {
                    put_entry(&mut bytes, entry);
                });
                let op = PeerOp::Exchange {
                    partition,
                    leaves,
                    takes: match self.sync.retired.contains(partition) {
                        true => Takes::Nothing,
                        false if self.local.shard().is_full() => Takes::Newer,
                        false => Takes::All,
                    },
                    entries: entries(&bytes),
                };
                self.push(node, Lane::Bulk, call, &op)
            }
            Step::Fetch(partition) => self.fetch_next(node, call, partition),
        }
    }

    fn fetch_next(&mut self, node: NodeIx, call: Call, partition: PartitionId) -> bool {
        let mut bytes = Vec::new();
        let fetching = self.sync.session(node).fetching.iter();
        for one in fetching.filter(|one| one.partition == partition) {
            for &hash in one.hashes.iter().take(HANDED_ITEMS_MAX) {
                put_hash(&mut bytes, hash);
            }
        }
        let hashes = hashes(&bytes);
        let op = PeerOp::Fetch { partition, hashes };
        self.push(node, Lane::Bulk, call, &op)
    }

    /// Offers a node some of what it wants; false when it is out of reach.
    fn offer_wanted(&mut self, node: NodeIx, call: Call, now: UnixMs) -> bool {
        let mut bytes = Vec::new();
        for _ in 0..OFFERS_MAX {
            if bytes.len() >= OFFERED_BYTES_MAX {
                break;
            }
            let Some(hash) = self.sync.session(node).wanted.pop_front() else {
                break;
            };
            for item in self.with_hash(hash, now) {
                stored_write(item).encode(&mut bytes);
            }
        }
        self.charge(bytes.len());
        for write in items(&bytes).iter() {
            let partition = KeyHash::of(write.key).partition();
            let is_retired = self.sync.retired.contains(partition);
            self.sync.counters.keys_handed_over += u64::from(is_retired);
            if !self.push(node, Lane::Bulk, call, &PeerOp::Offer(write)) {
                return false;
            }
            self.sync.counters.keys_pushed += 1;
            let session = self.sync.session(node);
            session.offers_open += 1;
            session.told.pushed += 1;
            session.told.handed_over += u64::from(is_retired);
        }
        true
    }

    /// The digests of a partition's leaves, without what has expired.
    pub(in crate::cluster) fn leaf_digests(
        &mut self,
        partition: PartitionId,
        now: UnixMs,
    ) -> [Digest; LEAVES] {
        let mut leaves = [Digest::default(); LEAVES];
        self.scan(partition, now, |item| {
            let leaf = &mut leaves[leaf_of(item.kept_hash())];
            *leaf = leaf.with(item.digest());
        });
        leaves
    }

    /// Visits what is known of some leaves of a partition, without what has expired.
    pub(in crate::cluster) fn for_each_entry(
        &mut self,
        partition: PartitionId,
        leaves: u64,
        now: UnixMs,
        mut visit: impl FnMut(Entry, StoredItem<'_>),
    ) {
        self.scan(partition, now, |item| {
            if leaves & 1 << leaf_of(item.kept_hash()) != 0 {
                let known = item.resident();
                let entry = Entry {
                    hash: KeyHash::of(item.key()),
                    version: known.version,
                    origin: known.origin,
                };
                visit(entry, item);
            }
        });
    }

    fn scan(&mut self, partition: PartitionId, now: UnixMs, mut visit: impl FnMut(StoredItem<'_>)) {
        let shard = self.local.shard();
        self.sync.counters.keys_scanned += shard.stored_len(partition) as u64;
        shard.scan_stored(partition, |item| {
            if !has_expired(item, now) {
                visit(item);
            }
        });
    }

    /// What is known of the keys with a hash, without what has expired.
    pub(in crate::cluster) fn with_hash(
        &self,
        hash: KeyHash,
        now: UnixMs,
    ) -> impl Iterator<Item = StoredItem<'_>> {
        let items = self.local.shard().stored_with_hash(hash);
        items.filter(move |item| !has_expired(*item, now) && KeyHash::of(item.key()) == hash)
    }
}

fn has_expired(item: StoredItem<'_>, now: UnixMs) -> bool {
    item.resident().expires_at.is_some_and(|at| at <= now)
}
