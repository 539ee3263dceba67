//! One shard: the single owner of a core's items.
//!
//! An item is in one of these states; every change is one call here.
//!
//! ```text
//!            apply(value)              apply(tombstone)
//!  absent ───────────────► value ─────────────────────► tombstone
//!    ▲ ▲                     │  ◄─────────────────────      │
//!    │ └─ evict, reap, clear ┘       apply(value)           │
//!    └──────────────── reap, purge, clear ──────────────────┘
//! ```
//!
//! What was written up to a version that is cleared is as good as absent from then on,
//! though its memory is given back in steps.
//!
//! A value that has expired is still a value to last writer wins, until it is reaped;
//! readers do not see it.
//!
//! Invariants between calls:
//! * every item is in one table, in one list (values in the policy's, tombstones in
//!   the queue) and, if it expires, in the wheel;
//! * a partition's digest is the sum over its items; `item_bytes` the sum of their charges;
//! * `len() <= items_max`, `tombstones() <= tombstones_max`, `bytes() <= bytes_max`;
//! * an item whose lease is good is as it was when that was given ([`super::lease`]).
//!
//! What happens when full: the call that goes over a bound evicts values until it
//! holds, and purges the oldest tombstones when no value is left. The item being
//! written is in no list meanwhile, so nothing that makes room can find it: what
//! `apply` reports as stored can be read afterwards. That this ends in time follows
//! from three bounds: fixed structures take at most a quarter of `bytes_max`, an item
//! at most half, and with all others gone tables and slab shrink to less than the
//! last quarter.

use std::fmt;
use std::mem::size_of;
use std::sync::Arc;

use super::digest::Digest;
use super::eviction::{EvictionPolicy, Evictor, Policy};
use super::expiry::{Step, Wheel};
use super::item::{ItemBox, ItemId, ItemView, Resident, StoredItem, ValueView};
use super::lease::{Lease, Leases};
use super::list::List;
use super::partition::Partitions;
use super::shared::Ended;
use super::slab::{CHUNK_SLOTS, Slab};
use super::write::{Applied, Content, KEY_BYTES_MAX, TooLarge, Write};
use crate::clock::{UnixMs, Version};
use crate::hash::{CoreCount, CoreId, KeyHash, PartitionId};
use crate::mutation::{Mutation, planted};

/// Item ids are shared by values and tombstones: so many of each at most, less what
/// may lie unused in chunks.
const ITEMS_LIMIT: usize = (ItemId::LIMIT / 2) as usize - CHUNK_SLOTS;

/// Fixed structures may take one part in this many of a shard, and as much what a single item
/// takes beyond its charge.
const FIXED_SHARE: usize = 4;
/// An item may take one part in this many of a shard.
const ITEM_SHARE: usize = 2;
/// A shard is nearly full when no more than this part of a bound is free.
const NEARLY_FULL_SHARE: usize = 64;
/// What an item is taken to be when only the number of items is to be guessed.
const ITEM_BYTES_GUESS: usize = 256;

/// How many keys [`Shard::foresee`] looks after at once: as many as loads are under way in one core
/// of a processor, and some more.
pub const FORESEEN_MAX: usize = 16;

/// How large a shard may become, and which one it is.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// How many cores the node runs.
    pub cores: CoreCount,
    /// Which of them this shard belongs to.
    pub core: CoreId,
    /// The most items it holds, tombstones not counted; 0 for no such bound.
    pub items_max: usize,
    /// The most bytes it takes, everything included.
    pub bytes_max: usize,
    /// The longest value it accepts.
    pub value_bytes_max: usize,
    /// The most tombstones it holds; taken as 1 if 0.
    pub tombstones_max: usize,
    /// Which items leave first.
    pub eviction: EvictionPolicy,
}

/// The byte bound leaves no useful room beside the shard's fixed structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardTooSmall {
    /// The bound that was asked for.
    pub bytes_max: usize,
    /// The least that works with these settings.
    pub bytes_min: usize,
}

impl fmt::Display for ShardTooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a shard of {} bytes is too small, it needs {}",
            self.bytes_max, self.bytes_min
        )
    }
}

impl std::error::Error for ShardTooSmall {}

/// What a shard has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Calls of [`Shard::get`].
    pub gets: u64,
    /// Those that found a visible item.
    pub hits: u64,
    /// Values stored.
    pub sets: u64,
    /// Tombstones stored.
    pub removes: u64,
    /// Writes that lost to what was there.
    pub stale_writes: u64,
    /// Values evicted to make room.
    pub evicted_items: u64,
    /// What these were charged for.
    pub evicted_bytes: u64,
    /// Values reaped after they had expired.
    pub expired: u64,
    /// Tombstones reaped after they had expired.
    pub tombstones_expired: u64,
    /// Tombstones dropped before they expired, to make room.
    pub tombstones_purged: u64,
    /// Writes refused as too large.
    pub too_large: u64,
}

/// A line of the processor's caches.
const LINE_BYTES: usize = 64;

/// Of a longer value only the first lines and the last are looked at: the processor itself
/// fetches what is read in order.
const LINES_MAX: usize = 8;

/// Looks at a key and its value, so that they are in the processor's caches.
#[inline]
pub(super) fn look_at(key: &[u8], value: ValueView<'_>) -> u64 {
    let value = value.bytes();
    let lines = value.iter().step_by(LINE_BYTES).take(LINES_MAX);
    let ends = key.first().into_iter().chain(value.last());
    ends.chain(lines)
        .fold(0, |seen, byte| seen ^ u64::from(*byte))
}

/// Everything one core stores. See the module's comment.
pub struct Shard {
    slab: Slab,
    partitions: Partitions,
    policy: Evictor,
    /// Tombstones, the oldest arrival first.
    tombstones: List,
    wheel: Wheel,
    /// How many values there are.
    len: usize,
    item_bytes: usize,
    items_max: usize,
    bytes_max: usize,
    value_bytes_max: usize,
    charge_max: usize,
    tombstones_max: usize,
    stats: ShardStats,
    /// What was written before this version is forgotten.
    kept_from: Version,
    /// The first partition in which some of it may be left.
    clearing: Option<PartitionId>,
    /// Values that are gone from here while readers still had a share of them.
    lent: Vec<Arc<[u8]>>,
    lent_bytes: usize,
    leases: Leases,
    ended: Ended,
}

impl Shard {
    /// An empty shard; an error if `bytes_max` is too small to be of use.
    pub fn new(config: ShardConfig) -> Result<Self, ShardTooSmall> {
        let items_max = if config.items_max == 0 {
            ITEMS_LIMIT
        } else {
            config.items_max
        };
        let items_max = items_max.min(ITEMS_LIMIT);
        let shard = Self {
            slab: Slab::default(),
            partitions: Partitions::new(config.cores, config.core),
            policy: Evictor::new(
                config.eviction,
                items_max.min(config.bytes_max / ITEM_BYTES_GUESS),
            ),
            tombstones: List::default(),
            wheel: Wheel::new(),
            len: 0,
            item_bytes: 0,
            items_max,
            bytes_max: config.bytes_max,
            value_bytes_max: config.value_bytes_max.min(u32::MAX as usize),
            charge_max: config.bytes_max / ITEM_SHARE,
            tombstones_max: config.tombstones_max.clamp(1, ITEMS_LIMIT),
            stats: ShardStats::default(),
            kept_from: Version::ZERO,
            clearing: None,
            lent: Vec::new(),
            lent_bytes: 0,
            leases: Leases::default(),
            ended: Ended::new(config.bytes_max),
        };
        let needs = |fixed: usize| FIXED_SHARE * fixed.max(Slab::bytes_min());
        let bytes_max = config.bytes_max;
        let mut bytes_min = needs(shard.bytes());
        if bytes_max >= bytes_min {
            return Ok(shard);
        }
        // What the policy takes grows with the bound, though much slower.
        let others = shard.bytes() - shard.policy.bytes();
        loop {
            let items = items_max.min(bytes_min / ITEM_BYTES_GUESS);
            let policy = Evictor::new(config.eviction, items).bytes();
            let more = needs(others + policy);
            if more <= bytes_min {
                return Err(ShardTooSmall {
                    bytes_max,
                    bytes_min,
                });
            }
            bytes_min = more;
        }
    }

    /// Reads a key: counts it, and marks the item as used. Allocates nothing.
    #[inline]
    pub fn get(&mut self, hash: KeyHash, key: &[u8], now: UnixMs) -> Option<ItemView<'_>> {
        self.stats.gets += 1;
        let id = self.find(hash, key)?;
        if !self.slab[id].is_visible(now) {
            return None;
        }
        self.stats.hits += 1;
        self.policy.access(&mut self.slab, id);
        Some(self.slab[id].view())
    }

    /// Brings what is known of these keys, of which some may be looked up soon, into the
    /// processor's caches. Changes nothing.
    ///
    /// A look-up is a chain of loads, each of which needs the one before and may go to memory: its
    /// table, its place there, its slot, its item. One look-up after the other waits for all of
    /// them in turn. Here the chains of many keys stand next to each other with little
    /// between them, so that the processor follows many at once (Chen, Ailamaki, Gibbons and Mowry,
    /// "Improving hash join performance through prefetching", 2004, without its
    /// instructions: loads that nobody waits for are enough).
    ///
    /// No more than [`FORESEEN_MAX`] are looked after; further ones are left out.
    pub fn foresee(&self, hashes: &[KeyHash]) {
        let mut ids = [None; FORESEEN_MAX];
        for (id, hash) in ids.iter_mut().zip(hashes) {
            *id = self.partitions.guess(*hash);
        }
        let mut seen = 0;
        for &id in ids.iter().flatten() {
            let item = self.slab[id].view();
            seen ^= look_at(item.key, item.value);
        }
        std::hint::black_box(seen);
    }

    /// Reads a key without leaving a trace.
    pub fn peek(&self, hash: KeyHash, key: &[u8], now: UnixMs) -> Option<ItemView<'_>> {
        let item = &self.slab[self.find(hash, key)?];
        item.is_visible(now).then(|| item.view())
    }

    /// What is known of a key, even if it is deleted or expired.
    pub fn resident(&self, hash: KeyHash, key: &[u8]) -> Option<Resident> {
        Some(self.slab[self.find(hash, key)?].resident())
    }

    /// Gives the lease of a key's item to a core that is about to copy it, if it is visible: for
    /// reads at any level, or at ONE. None either when too many are given.
    pub fn lend(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        any_level: bool,
        now: UnixMs,
    ) -> Option<Lease> {
        let id = self.find(hash, key)?;
        self.slab[id].is_visible(now).then_some(())?;
        self.leases.give(id, any_level)
    }

    /// Ends all leases: what this core may answer has changed.
    pub fn revoke_leases(&mut self) {
        self.leases.revoke_all();
    }

    /// Takes back leases that nobody holds. What was read from copies counts as used; `used`
    /// is told of it, and how often that was noted.
    pub fn sweep_leases(&mut self, mut used: impl FnMut(KeyHash, &[u8], u32)) {
        let Self {
            leases,
            slab,
            policy,
            ..
        } = self;
        leases.sweep(|id, uses| {
            policy.access(slab, id);
            let item = &slab[id];
            used(KeyHash::of(item.key()), item.key(), uses);
        });
    }

    /// How many leases are given, and how many were revoked so far.
    pub fn leases(&self) -> (usize, u64) {
        (self.leases.len(), self.leases.revoked())
    }

    /// The item of a key, unless it is cleared and only not gone yet.
    #[inline]
    fn find(&self, hash: KeyHash, key: &[u8]) -> Option<ItemId> {
        let id = self.partitions.find(&self.slab, hash, key)?;
        (self.slab[id].version() >= self.kept_from).then_some(id)
    }

    /// Takes in a write, wherever it comes from. The one way in.
    ///
    /// Of all writes of a key the one with the greatest (version, origin) stays. The
    /// same write again is stale, so writes may come late, twice and in any order.
    pub fn apply(&mut self, write: Write<'_>, now: UnixMs) -> Result<Applied, TooLarge> {
        if let Err(refused) = self.accepts(&write) {
            self.stats.too_large += 1;
            return Err(refused);
        }
        if write.version < self.kept_from {
            self.stats.stale_writes += 1;
            return Ok(Applied::Stale);
        }
        let found = self.partitions.find(&self.slab, write.hash, write.key);
        if let Some(id) = found {
            let item = &self.slab[id];
            let stale = if planted(Mutation::IgnoreOrigin) {
                write.version <= item.version()
            } else {
                (write.version, write.origin) <= (item.version(), item.origin())
            };
            if stale {
                self.stats.stale_writes += 1;
                return Ok(Applied::Stale);
            }
        }
        match write.content {
            Content::Value { .. } => self.stats.sets += 1,
            Content::Tombstone { .. } => self.stats.removes += 1,
        }
        let hash = write.hash;
        debug_assert_eq!(hash, KeyHash::of(write.key), "the hash of another key");
        let item = write.into_item(&mut self.slab);
        if let ValueView::Shared(value) = item.value() {
            self.ended.made(value.len());
        }
        self.item_bytes += item.charge();
        match found {
            Some(id) => self.replace(id, hash, item, now),
            None => self.insert(hash, item, now),
        }
        Ok(Applied::Stored)
    }

    /// Whether a write is small enough to be taken in.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] names what is too much.
    pub fn accepts(&self, write: &Write<'_>) -> Result<(), TooLarge> {
        let check = |bytes, bytes_max| {
            if bytes > bytes_max {
                Err(TooLarge { bytes, bytes_max })
            } else {
                Ok(())
            }
        };
        let shape = write.shape();
        check(write.key.len(), KEY_BYTES_MAX)?;
        check(shape.value_len, self.value_bytes_max)?;
        check(shape.charge(), self.charge_max)
    }

    /// Forgets what has expired, doing at most `steps_max` small steps.
    ///
    /// Returns whether there is more to do at `now`.
    pub fn reap(&mut self, now: UnixMs, steps_max: usize) -> bool {
        for _ in 0..steps_max {
            match self.wheel.step(&mut self.slab, now) {
                Step::Due(id) => {
                    if self.slab[id].is_tombstone() {
                        self.stats.tombstones_expired += 1;
                    } else {
                        self.stats.expired += 1;
                    }
                    self.unlist(id);
                    self.forget(id);
                }
                Step::Moved => {}
                Step::Idle => return false,
            }
        }
        self.wheel.has_work(now)
    }

    /// Whether [`Shard::reap`] would have something to do at `now`.
    pub fn has_expired(&self, now: UnixMs) -> bool {
        self.wheel.has_work(now)
    }

    /// Whether there is something left to do for [`Shard::clear_step`].
    pub fn is_clearing(&self) -> bool {
        self.clearing.is_some()
    }

    /// Evicts up to `count` values; returns how many there were to evict.
    pub fn evict(&mut self, count: usize) -> usize {
        (0..count).take_while(|_| self.evict_one()).count()
    }

    /// Forgets everything written up to `version`: it is not seen from now on, is removed by
    /// [`Shard::clear_step`], and what is yet to come of it is stale.
    pub fn clear(&mut self, version: Version) {
        let kept_from = version.next();
        if kept_from > self.kept_from {
            self.leases.revoke_all();
            self.kept_from = kept_from;
            self.clearing = Some(PartitionId::FIRST);
        }
    }

    /// The first version that is not forgotten.
    pub fn kept_from(&self) -> Version {
        self.kept_from
    }

    /// Removes what was cleared, `steps_max` items at most, and looks at as many, give or
    /// take a partition.
    ///
    /// Returns whether there is more to do.
    pub fn clear_step(&mut self, steps_max: usize) -> bool {
        let mut left = steps_max;
        while let Some(partition) = self.clearing {
            let ids = self.partitions.ids(partition);
            let outdated = ids.filter(|&id| self.slab[id].version() < self.kept_from);
            let ids: Vec<_> = outdated.take(left).collect();
            for &id in &ids {
                self.unlist(id);
                self.wheel.remove(&mut self.slab, id);
                self.forget(id);
            }
            let looked_at = ids.len() + self.partitions.len(partition);
            if ids.len() == left {
                return true;
            }
            self.clearing = PartitionId::new(partition.index() + 1);
            left = left.saturating_sub(looked_at);
            if left == 0 {
                return self.clearing.is_some();
            }
        }
        false
    }

    /// Removes what is known of one partition, `steps_max` keys at most; returns how many
    /// there were.
    pub fn drop_step(&mut self, partition: PartitionId, steps_max: usize) -> usize {
        let ids: Vec<_> = self.partitions.ids(partition).take(steps_max).collect();
        for &id in &ids {
            self.unlist(id);
            self.wheel.remove(&mut self.slab, id);
            self.forget(id);
        }
        ids.len()
    }

    /// The digest of one partition; that of nothing if another core owns it.
    pub fn digest(&self, partition: PartitionId) -> Digest {
        self.partitions.digest(partition)
    }

    /// Visits every visible item of one partition, in no particular order.
    pub fn scan(&self, partition: PartitionId, now: UnixMs, mut visit: impl FnMut(ItemView<'_>)) {
        for id in self.partitions.ids(partition) {
            let item = &self.slab[id];
            if item.is_visible(now) && item.version() >= self.kept_from {
                visit(item.view());
            }
        }
    }

    /// Visits all that is known of one partition, tombstones and expired items too: what
    /// its digest is the sum of.
    pub fn scan_stored(&self, partition: PartitionId, mut visit: impl FnMut(StoredItem<'_>)) {
        for id in self.partitions.ids(partition) {
            let item = &self.slab[id];
            if item.version() >= self.kept_from {
                visit(StoredItem::new(item));
            }
        }
    }

    /// How many items [`Shard::scan_stored`] visits.
    pub fn stored_len(&self, partition: PartitionId) -> usize {
        self.partitions.len(partition)
    }

    /// Finds items by the hash of their keys, tombstones and expired items too. There may
    /// be others among them, whose keys have the same hash but for its low 16 bits.
    pub fn stored_with_hash(&self, hash: KeyHash) -> impl Iterator<Item = StoredItem<'_>> {
        let ids = self.partitions.with_hash(&self.slab, hash);
        ids.map(|id| StoredItem::new(&self.slab[id]))
            .filter(|item| item.resident().version >= self.kept_from)
    }

    /// How many values it holds, expired ones included until they are reaped.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no value; there may be tombstones.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it is at one of its bounds, or so near that what comes in makes something
    /// else go.
    pub fn is_full(&self) -> bool {
        let near = |used: usize, max: usize| used >= max - max / NEARLY_FULL_SHARE;
        near(self.len, self.items_max) || near(self.bytes(), self.bytes_max)
    }

    /// How many tombstones it holds.
    #[inline]
    pub fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    /// What it takes in memory, everything included but leases, of which there are 64 K at most, and
    /// values that are lent.
    #[inline]
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.item_bytes
            + self.partitions.bytes()
            + self.slab.bytes()
            + self.policy.bytes()
    }

    /// What of it comes from the system by the page, and not from malloc.
    pub fn page_bytes(&self) -> usize {
        self.slab.page_bytes()
    }

    /// What it has counted.
    #[inline]
    pub fn stats(&self) -> &ShardStats {
        &self.stats
    }

    fn insert(&mut self, hash: KeyHash, item: ItemBox, now: UnixMs) {
        let id = self.slab.insert(item);
        self.partitions.insert(&self.slab, hash, id);
        self.settle(id, now);
    }

    fn replace(&mut self, id: ItemId, hash: KeyHash, mut item: ItemBox, now: UnixMs) {
        if !planted(Mutation::KeepLeases) {
            self.leases.revoke(id);
        }
        self.wheel.remove(&mut self.slab, id);
        let old = &self.slab[id];
        let keeps_place = !old.is_tombstone() && !item.is_tombstone();
        if keeps_place {
            item.inherit_place(old);
        } else {
            self.unlist(id);
        }
        let new_digest = item.digest(hash);
        let old = self.slab.replace(id, item);
        self.item_bytes -= old.charge();
        self.partitions
            .replaced(hash.partition(), old.digest(hash), new_digest);
        self.let_go(old);
        self.tidy();
        if keeps_place {
            self.policy.access(&mut self.slab, id);
            if self.bytes() <= self.bytes_max {
                self.wheel.insert(&mut self.slab, id, now);
                return;
            }
            self.unlist(id);
        }
        self.settle(id, now);
    }

    /// Makes room for an item that is in no list, then puts it in its own.
    fn settle(&mut self, id: ItemId, now: UnixMs) {
        if self.slab[id].is_tombstone() {
            while self.tombstones.len() >= self.tombstones_max && self.purge_tombstone() {}
            self.make_room(self.items_max);
            self.tombstones.push_back(&mut self.slab, id);
        } else {
            self.make_room(self.items_max - 1);
            self.policy.insert(&mut self.slab, id);
            self.len += 1;
        }
        self.wheel.insert(&mut self.slab, id, now);
    }

    /// Evicts until at most `len_max` values are listed and the byte bound holds.
    fn make_room(&mut self, len_max: usize) {
        while self.len > len_max || self.bytes() > self.bytes_max {
            if self.len <= len_max && self.shrink() {
                continue;
            }
            if !self.evict_one() && !self.purge_tombstone() {
                break;
            }
        }
        debug_assert!(
            self.bytes() <= self.bytes_max,
            "an item that was let in does not fit"
        );
    }

    fn evict_one(&mut self) -> bool {
        let Some(id) = self.policy.evict(&mut self.slab) else {
            return false;
        };
        self.len -= 1;
        self.wheel.remove(&mut self.slab, id);
        let charge = self.forget(id);
        self.stats.evicted_items += 1;
        self.stats.evicted_bytes += charge as u64;
        true
    }

    fn purge_tombstone(&mut self) -> bool {
        let Some(id) = self.tombstones.front() else {
            return false;
        };
        self.unlist(id);
        self.wheel.remove(&mut self.slab, id);
        self.forget(id);
        self.stats.tombstones_purged += 1;
        true
    }

    /// Takes an item out of the policy's list or the queue of tombstones.
    fn unlist(&mut self, id: ItemId) {
        if self.slab[id].is_tombstone() {
            self.tombstones.remove(&mut self.slab, id);
        } else {
            self.policy.remove(&mut self.slab, id);
            self.len -= 1;
        }
    }

    /// Frees an item that is in no list and not in the wheel; returns its charge.
    fn forget(&mut self, id: ItemId) -> usize {
        self.leases.revoke(id);
        self.partitions.remove(&self.slab, id);
        let item = self.slab.remove(id);
        let charge = item.charge();
        self.item_bytes -= charge;
        self.let_go(item);
        self.tidy();
        charge
    }

    /// Moves items together if much lies unused between those of one size.
    fn tidy(&mut self) {
        let Self {
            slab, partitions, ..
        } = self;
        slab.tidy(|slab, item, block| partitions.id_of(slab, item, block));
    }

    /// Gives memory back that no item uses, moving a page of items at most; whether there
    /// was any.
    fn shrink(&mut self) -> bool {
        let Self {
            slab, partitions, ..
        } = self;
        slab.shrink(|slab, item, block| partitions.id_of(slab, item, block))
    }

    /// Ends an item; a value that readers still have a share of is remembered.
    fn let_go(&mut self, item: ItemBox) {
        let Some(value) = self.slab.free(item) else {
            return;
        };
        if let Err(value) = self.ended.end(value) {
            self.lent_bytes += value.len();
            self.lent.push(value);
        }
    }

    /// Bytes of values that are gone from here while readers had a share of them, as of
    /// the last [`Shard::collect_lent`] at least.
    pub fn lent_bytes(&self) -> usize {
        self.lent_bytes
    }

    /// Forgets the values that readers are done with.
    pub fn collect_lent(&mut self) {
        let lent = std::mem::take(&mut self.lent);
        let ended = lent.into_iter().map(|value| self.ended.end(value));
        self.lent = ended.filter_map(Result::err).collect();
        self.lent_bytes = self.lent.iter().map(|value| value.len()).sum();
        if self.lent.is_empty() {
            self.lent = Vec::new();
        }
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("len", &self.len)
            .field("tombstones", &self.tombstones.len())
            .field("bytes", &self.bytes())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::write::{SHARED_VALUE_BYTES, ValueIn};
    use super::*;
    use crate::clock::{Origin, Version};

    #[test]
    #[cfg_attr(miri, ignore = "slow")]
    fn large_values_that_give_way_to_small_ones_give_their_memory_back() {
        const BYTES_MAX: usize = 4 << 20;
        let mut shard = Shard::new(ShardConfig {
            cores: CoreCount::ONE,
            core: CoreId::new(0),
            items_max: 0,
            bytes_max: BYTES_MAX,
            value_bytes_max: 1 << 18,
            tombstones_max: 4,
            eviction: EvictionPolicy::Sieve,
        })
        .unwrap();
        let mut version = 0_u64;
        let mut put = |shard: &mut Shard, value: &[u8]| {
            version += 1;
            let key = version.to_le_bytes();
            let write = Write {
                hash: KeyHash::of(&key),
                key: &key,
                version: Version::new(version).unwrap(),
                origin: Origin(1),
                content: Content::Value {
                    value: ValueIn::Bytes(value),
                    expires_at: None,
                },
            };
            assert_eq!(shard.apply(write, UnixMs(0)), Ok(Applied::Stored));
        };
        let large = vec![7; 2 * SHARED_VALUE_BYTES];
        let count = if cfg!(miri) { 150 } else { 1_000 };
        (0..count).for_each(|_| put(&mut shard, &large));
        assert_eq!(shard.ended.emptied_bytes(), 0, "large ones use it again");
        while shard.stats.evicted_items < count {
            put(&mut shard, b"small");
        }
        assert!(shard.ended.emptied_bytes() > BYTES_MAX / 2);
    }

    /// Small enough for Miri, and through every state an item can be in.
    #[test]
    fn a_short_busy_life_under_every_policy() {
        for eviction in EvictionPolicy::ALL {
            let mut shard = Shard::new(ShardConfig {
                cores: CoreCount::ONE,
                core: CoreId::new(0),
                items_max: 8,
                bytes_max: 1 << 20,
                value_bytes_max: 1 << 18,
                tombstones_max: 4,
                eviction,
            })
            .unwrap();
            let large = vec![7; SHARED_VALUE_BYTES];
            for step in 0..200_u64 {
                let key = (step * 7 % 23).to_le_bytes();
                let hash = KeyHash::of(&key);
                let now = UnixMs(step * 100);
                let soon = UnixMs(now.0 + 1000);
                let value = ValueIn::Bytes(if step % 3 == 0 { &large } else { &key });
                let content = match step % 5 {
                    0 => Content::Tombstone { expires_at: soon },
                    1 | 2 => Content::Value {
                        value,
                        expires_at: Some(soon),
                    },
                    _ => Content::Value {
                        value,
                        expires_at: None,
                    },
                };
                let version = Version::new(step).unwrap();
                let write = Write {
                    hash,
                    key: &key,
                    version,
                    origin: Origin(1),
                    content,
                };
                assert_eq!(shard.apply(write, now), Ok(Applied::Stored));
                let item = shard.get(hash, &key, now);
                assert_eq!(item.is_some(), step % 5 != 0, "{eviction}, step {step}");
                shard.reap(now, 2);
                assert!(shard.len() <= 8 && shard.tombstones() <= 4);
            }
            shard.clear(Version::MAX);
            while shard.clear_step(3) {}
            assert_eq!(shard.item_bytes, 0);
        }
    }
}
