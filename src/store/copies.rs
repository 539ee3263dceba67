//! A core's copies of items that belong to other cores of its node.
//!
//! A core counts how often its clients read keys of other cores ([`Frequency`]). Of one that is
//! read often it asks the owner, together with the read itself, for a copy and its
//! [`Lease`]; from then on it answers alone, until the lease is revoked or the item expires.
//! What makes that as good as asking the owner is written in [`lease`](super::lease).
//!
//! Copies live in a table of sets of [`WAYS`] places. A key has one set. In a full set, or when
//! bytes are short, a copy gives way to a key that was used more than twice as often as the least
//! used there, so a load that uses all keys alike leaves them where they are. At most
//! [`ASKS_PER_TICK`] copies are
//! asked for between two ticks, so that keys written as often as they are read, or a
//! changing working set, cost little.
//!
//! Bounds: places, of which there are more the more bytes copies may take (up to [`SETS_MAX`]
//! sets), and [`Copies::new`]'s bytes; who finds no room has no copy. A core alone, or with too
//! little memory, has none at all. Revoked copies are dropped when they are met, and by the tick
//! within [`SWEEP_TICKS`] ticks, or more where there are very many places.

use std::mem::size_of;
use std::sync::Arc;

use super::frequency::Frequency;
use super::item::{ItemView, ValueView};
use super::lease::Lease;
use super::memory::malloc_charge;
use super::shard::ends_of;
use crate::clock::{Origin, UnixMs, Version};
use crate::hash::KeyHash;

/// Places of a set: as many hashes as fit in a line of the processor's cache.
const WAYS: usize = 8;

/// All places of a set are taken.
const FULL: u8 = u8::MAX;

/// There is a place for so many bytes that copies may take: a copy of a small item.
const BYTES_PER_PLACE: usize = 256;

/// The fewest sets worth having, and the most.
const SETS_MIN: usize = 64;
const SETS_MAX: usize = 1 << 15;

/// One of so many reads is counted, at random.
const COUNT_ONE_IN: u32 = 4;

/// A key must have been counted so often lately for a copy to pay.
const USES_MIN: u8 = 4;

/// In a full set, a key that is used often is considered at every so many of these counts.
const CONSIDER: u8 = 4;

/// How many copies a core asks for between two ticks.
const ASKS_PER_TICK: u32 = 1024;

/// After so many ticks every copy was looked at, where there are not very many.
const SWEEP_TICKS: usize = 8;

/// How many sets a tick looks at, at most.
const SWEPT_SETS_MAX: usize = 512;

/// One copy may take one part in so many of what all may.
const COPY_SHARE: usize = 16;

/// One of so many uses is told to the owner.
const TELL: u32 = super::HOT_KEYS_SAMPLE as u32;

/// What a table of so many sets takes when it is empty.
const fn fixed_bytes(sets: usize) -> usize {
    let place = size_of::<u64>() + size_of::<Option<Box<Copied>>>();
    sets * (WAYS * place + 1) + Frequency::bytes()
}

/// What copies have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyCounts {
    /// Reads answered from a copy.
    pub hits: u64,
    /// Copies taken.
    pub taken: u64,
    /// Copies met that were revoked or had expired.
    pub outdated: u64,
}

/// One item of another core.
#[derive(Debug)]
struct Copied {
    lease: Arc<Lease>,
    version: Version,
    expires_at: Option<UnixMs>,
    value: CopiedValue,
    key_len: u16,
    origin: Origin,
}

#[derive(Debug)]
enum CopiedValue {
    /// The key, then the value.
    Inline(Box<[u8]>),
    /// The key, and a value that the owner keeps by reference too.
    Shared(Box<[u8]>, Arc<[u8]>),
}

impl Copied {
    fn key(&self) -> &[u8] {
        match &self.value {
            CopiedValue::Inline(bytes) => &bytes[..usize::from(self.key_len)],
            CopiedValue::Shared(key, _) => key,
        }
    }

    fn view(&self) -> ItemView<'_> {
        ItemView {
            key: self.key(),
            value: match &self.value {
                CopiedValue::Inline(bytes) => ValueView::Bytes(&bytes[usize::from(self.key_len)..]),
                CopiedValue::Shared(_, value) => ValueView::Shared(value),
            },
            version: self.version,
            origin: self.origin,
            expires_at: self.expires_at,
        }
    }

    fn is_outdated(&self, now: UnixMs) -> bool {
        !self.lease.is_good() || self.expires_at.is_some_and(|at| at <= now)
    }

    fn charge(&self) -> usize {
        let bytes = match &self.value {
            CopiedValue::Inline(bytes) => malloc_charge(bytes.len()),
            CopiedValue::Shared(key, value) => malloc_charge(key.len()) + value.len(),
        };
        malloc_charge(size_of::<Self>()) + bytes
    }
}

/// The table, where there is one.
#[derive(Debug)]
struct Table {
    /// Hashes of the keys in `places`; of no meaning where there is none.
    hashes: Box<[[u64; WAYS]]>,
    places: Box<[[Option<Box<Copied>>; WAYS]]>,
    /// Which places of each set are taken, as bits.
    used: Box<[u8]>,
    frequency: Frequency,
    random: u32,
    len: usize,
    bytes: usize,
    bytes_max: usize,
    asks_left: u32,
    until_told: u32,
    next_swept: usize,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Copies {
    table: Option<Table>,
    counts: CopyCounts,
}

impl Copies {
    /// No copies yet, and never more than take `bytes_max`, all included; none at all if
    /// that is too little for the table itself.
    pub fn new(bytes_max: usize) -> Self {
        let places = bytes_max / BYTES_PER_PLACE;
        let sets = (places / WAYS + 1).next_power_of_two() / 2;
        let sets = sets.clamp(SETS_MIN, SETS_MAX);
        let table = (bytes_max > 2 * fixed_bytes(sets)).then(|| Table {
            hashes: vec![[0; WAYS]; sets].into_boxed_slice(),
            places: (0..sets).map(|_| Default::default()).collect(),
            used: vec![0; sets].into_boxed_slice(),
            frequency: Frequency::new(),
            random: 1,
            len: 0,
            bytes: fixed_bytes(sets),
            bytes_max,
            asks_left: ASKS_PER_TICK,
            until_told: TELL,
            next_swept: 0,
        });
        Self {
            table,
            counts: CopyCounts::default(),
        }
    }

    /// The copy of a key, if there is one that may be read: with `any_level`, for more than
    /// one owner's word.
    #[inline]
    pub fn get(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        any_level: bool,
        now: UnixMs,
    ) -> Option<ItemView<'_>> {
        let table = self.table.as_mut()?;
        let (set, way) = table.find(hash, key)?;
        if table.places[set][way].as_ref()?.is_outdated(now) {
            table.remove(set, way);
            self.counts.outdated += 1;
            return None;
        }
        if table.counts() {
            table.frequency.touch(hash);
        }
        let copied = table.places[set][way].as_ref()?;
        if any_level && !copied.lease.is_for_any_level() {
            return None;
        }
        table.until_told -= 1;
        if table.until_told == 0 {
            // At random, so that regular patterns hide nothing.
            table.until_told = 1 + (table.random >> 16) % (2 * TELL - 1);
            copied.lease.note_use();
        }
        self.counts.hits += 1;
        Some(copied.view())
    }

    /// Brings what is known of keys that may be read soon into the processor's caches, as
    /// [`Shard::foresee`](super::Shard::foresee) does.
    pub fn foresee(&self, hashes: &[KeyHash]) {
        let Some(table) = &self.table else {
            return;
        };
        let mut seen = 0;
        for hash in hashes {
            let set = table.set_of(*hash);
            let way = table.hashes[set].iter().position(|&known| known == hash.0);
            if let Some(copied) = way.and_then(|way| table.places[set][way].as_ref()) {
                // Each of these is on a line of its own.
                let item = copied.view();
                seen ^= u64::from(copied.lease.is_good()) ^ ends_of(item.key, item.value);
            }
        }
        std::hint::black_box(seen);
    }

    /// Counts a read that goes to another core, and says whether to ask for a copy with it.
    #[inline]
    pub fn wants(&mut self, hash: KeyHash) -> bool {
        let Some(table) = &mut self.table else {
            return false;
        };
        if !table.counts() {
            return false;
        }
        let uses = table.frequency.touch(hash);
        uses >= USES_MIN && table.has_place_for(hash, uses)
    }

    /// Takes the copy of an item that came with its lease.
    pub fn insert(&mut self, hash: KeyHash, item: ItemView<'_>, lease: Arc<Lease>) {
        let Some(table) = &mut self.table else {
            return;
        };
        let copied = Box::new(Copied {
            lease,
            version: item.version,
            expires_at: item.expires_at,
            value: match item.value {
                ValueView::Bytes(value) => CopiedValue::Inline([item.key, value].concat().into()),
                ValueView::Shared(value) => CopiedValue::Shared(item.key.into(), Arc::clone(value)),
            },
            key_len: item.key.len() as u16,
            origin: item.origin,
        });
        let charge = copied.charge();
        let place = table.find(hash, item.key);
        let Some((set, way)) = place.or_else(|| table.least_used(hash)) else {
            return;
        };
        let left = table.places[set][way].as_ref();
        let freed = left.map_or(0, |copied| copied.charge());
        let fits = table.bytes - freed + charge <= table.bytes_max;
        if fits && charge <= table.bytes_max / COPY_SHARE {
            table.remove(set, way);
            table.hashes[set][way] = hash.0;
            table.places[set][way] = Some(copied);
            table.used[set] |= 1 << way;
            table.bytes += charge;
            table.len += 1;
            self.counts.taken += 1;
        }
    }

    /// Call it ten times a second or so: more copies may be asked for, and what is outdated
    /// gives its memory back.
    pub fn tick(&mut self, now: UnixMs) {
        let Some(table) = &mut self.table else {
            return;
        };
        table.asks_left = ASKS_PER_TICK;
        let sets = table.places.len();
        let end = (table.next_swept + (sets / SWEEP_TICKS).min(SWEPT_SETS_MAX)).min(sets);
        for set in table.next_swept..end {
            for way in 0..WAYS {
                let place = table.places[set][way].as_ref();
                if place.is_some_and(|copied| copied.is_outdated(now)) {
                    table.remove(set, way);
                    self.counts.outdated += 1;
                }
            }
        }
        table.next_swept = end % sets;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.as_ref().map_or(0, |table| table.len)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they take, the table included.
    pub fn bytes(&self) -> usize {
        self.table.as_ref().map_or(0, |table| table.bytes)
    }

    /// What they may take.
    pub fn bytes_max(&self) -> usize {
        self.table.as_ref().map_or(0, |table| table.bytes_max)
    }

    /// What they have done so far.
    pub fn counts(&self) -> &CopyCounts {
        &self.counts
    }
}

impl Table {
    /// The set of a key, by bits of its hash that decide neither its partition nor where it
    /// is counted.
    #[inline]
    fn set_of(&self, hash: KeyHash) -> usize {
        (hash.0 >> 32) as usize & (self.places.len() - 1)
    }

    /// Whether to count this use. Counting all of them would cost more and tell no more.
    #[inline]
    fn counts(&mut self) -> bool {
        // A linear congruential generator (Knuth, "The Art of Computer Programming", volume 2,
        // section 3.2.1): its upper bits are random enough to follow no pattern of the keys.
        self.random = self
            .random
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        self.random < u32::MAX / COUNT_ONE_IN
    }

    #[inline]
    fn find(&self, hash: KeyHash, key: &[u8]) -> Option<(usize, usize)> {
        let set = self.set_of(hash);
        let hashes = &self.hashes[set];
        let way = (0..WAYS).find(|&way| {
            hashes[way] == hash.0
                && self.places[set][way]
                    .as_ref()
                    .is_some_and(|copied| copied.key() == key)
        })?;
        Some((set, way))
    }

    /// Whether a key that is used often should have a copy. Spends an ask if so.
    ///
    /// A place is taken from a key that was used less than half as much, and by a margin: were
    /// equals to take turns, each turn would cost a copy and bring nothing.
    fn has_place_for(&mut self, hash: KeyHash, uses: u8) -> bool {
        let is_full = self.used[self.set_of(hash)] == FULL || self.is_short();
        if self.asks_left == 0 || is_full && !uses.is_multiple_of(CONSIDER) {
            return false;
        }
        let Some((set, way)) = self.least_used(hash) else {
            return false;
        };
        let pays =
            !is_full || 2 * u16::from(self.uses(set, way)) + u16::from(USES_MIN) < u16::from(uses);
        self.asks_left -= u32::from(pays);
        pays
    }

    /// Whether another copy, though a small one, would go over the bound.
    fn is_short(&self) -> bool {
        self.bytes + BYTES_PER_PLACE > self.bytes_max
    }

    /// The place in a key's set that is free, if there are bytes for another copy, or else
    /// that of the copy used least.
    fn least_used(&self, hash: KeyHash) -> Option<(usize, usize)> {
        let set = self.set_of(hash);
        let free = (!self.used[set]).trailing_zeros() as usize;
        if free < WAYS && !self.is_short() {
            return Some((set, free));
        }
        let taken = (0..WAYS).filter(|way| self.used[set] & 1 << way != 0);
        let way = taken.min_by_key(|&way| self.uses(set, way))?;
        Some((set, way))
    }

    fn uses(&self, set: usize, way: usize) -> u8 {
        self.frequency.of(KeyHash(self.hashes[set][way]))
    }

    fn remove(&mut self, set: usize, way: usize) {
        if let Some(copied) = self.places[set][way].take() {
            self.used[set] &= !(1 << way);
            self.bytes -= copied.charge();
            self.len -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Content, EvictionPolicy, FORESEEN_MAX, Shard, ShardConfig, ValueIn, Write};
    use super::*;
    use crate::hash::{CoreCount, CoreId, splitmix64};

    const NOW: UnixMs = UnixMs(1_000);

    fn shard(items_max: usize, eviction: EvictionPolicy) -> Shard {
        let config = ShardConfig {
            cores: CoreCount::ONE,
            core: CoreId::new(0),
            items_max,
            bytes_max: 64 << 20,
            value_bytes_max: 1 << 20,
            tombstones_max: 100,
            eviction,
        };
        Shard::new(config).unwrap()
    }

    fn write<'a>(key: &'a [u8], version: u64, content: Content<'a>) -> Write<'a> {
        Write {
            hash: KeyHash::of(key),
            key,
            version: Version::new(version).unwrap(),
            origin: Origin(1),
            content,
        }
    }

    fn put(shard: &mut Shard, key: &[u8], version: u64, value: &[u8], until: Option<UnixMs>) {
        let content = Content::Value {
            value: ValueIn::Bytes(value),
            expires_at: until,
        };
        shard.apply(write(key, version, content), NOW).unwrap();
    }

    /// Copies a key as a core does that reads it from its owner.
    fn copy(copies: &mut Copies, shard: &mut Shard, key: &[u8], any_level: bool) {
        let hash = KeyHash::of(key);
        let lease = shard.lend(hash, key, any_level, NOW).unwrap();
        copies.insert(hash, shard.peek(hash, key, NOW).unwrap(), lease);
    }

    fn read(copies: &mut Copies, key: &[u8], now: UnixMs) -> Option<Vec<u8>> {
        let item = copies.get(KeyHash::of(key), key, false, now)?;
        Some(item.value.bytes().to_vec())
    }

    /// Whatever happens to a shard, in any order: a lease that is good is that of the item as
    /// it was lent.
    #[test]
    fn a_good_lease_is_that_of_what_the_owner_holds() {
        const STEPS: u64 = if cfg!(miri) { 400 } else { 20_000 };
        for eviction in EvictionPolicy::ALL {
            let mut shard = shard(20, eviction);
            let mut lent: Vec<(Vec<u8>, Version, Arc<Lease>)> = Vec::new();
            let mut revoked = 0;
            for step in 1..STEPS {
                let random = splitmix64(step);
                let key = [b'k', (random >> 8) as u8 % 30];
                let now = UnixMs(step);
                match random % 64 {
                    0..20 => {
                        let until = (random & 1 << 20 != 0).then_some(UnixMs(step + 50));
                        let content = Content::Value {
                            value: ValueIn::Bytes(&step.to_le_bytes()),
                            expires_at: until,
                        };
                        // Some come late and change nothing.
                        let version = step - (random >> 24) % 3;
                        shard.apply(write(&key, version, content), now).unwrap();
                    }
                    20..26 => {
                        let expires_at = UnixMs(step + 100);
                        let content = Content::Tombstone { expires_at };
                        shard.apply(write(&key, step, content), now).unwrap();
                    }
                    26 => drop(shard.evict(1)),
                    27 => drop(shard.reap(now, 8)),
                    28 if random & 1 << 30 != 0 => {
                        shard.clear(Version::new(step).unwrap());
                        shard.clear_step(2);
                    }
                    29 => drop(shard.drop_step(KeyHash::of(&key).partition(), 1)),
                    30 => shard.sweep_leases(|_, _, _| {}),
                    _ => {
                        let hash = KeyHash::of(&key);
                        let version = shard.peek(hash, &key, now).map(|item| item.version);
                        let lease = shard.lend(hash, &key, false, now);
                        assert_eq!(lease.is_some(), version.is_some());
                        if let (Some(version), Some(lease)) = (version, lease) {
                            lent.push((key.to_vec(), version, lease));
                        }
                    }
                }
                // Looking ahead finds nothing wrong, whatever is there.
                let hashes: [_; FORESEEN_MAX] =
                    std::array::from_fn(|n| KeyHash::of(&[b'k', n as u8]));
                shard.foresee(&hashes);
                let before = lent.len();
                lent.retain(|(_, _, lease)| lease.is_good());
                revoked += before - lent.len();
                for (key, version, _) in &lent {
                    let held = shard.resident(KeyHash::of(key), key);
                    let held = held.map(|held| (held.version, held.tombstone));
                    assert_eq!(held, Some((*version, false)), "{eviction}, step {step}");
                }
            }
            assert!(revoked > STEPS as usize / 20, "{revoked}");
        }
    }

    #[test]
    fn a_copy_is_read_until_its_item_is_written() {
        let mut shard = shard(0, EvictionPolicy::default());
        let mut copies = Copies::new(8 << 20);
        put(&mut shard, b"key", 1, b"old", None);
        copy(&mut copies, &mut shard, b"key", false);
        assert_eq!(read(&mut copies, b"key", NOW).unwrap(), b"old");
        assert_eq!(read(&mut copies, b"other", NOW), None);
        put(&mut shard, b"key", 2, b"new", None);
        assert_eq!(read(&mut copies, b"key", NOW), None);
        assert_eq!(copies.len(), 0);
        copy(&mut copies, &mut shard, b"key", false);
        assert_eq!(read(&mut copies, b"key", NOW).unwrap(), b"new");
    }

    #[test]
    fn a_copy_ends_with_its_item() {
        let mut shard = shard(0, EvictionPolicy::default());
        let mut copies = Copies::new(8 << 20);
        let end = UnixMs(NOW.0 + 5);
        put(&mut shard, b"key", 1, b"value", Some(end));
        copy(&mut copies, &mut shard, b"key", false);
        assert!(read(&mut copies, b"key", UnixMs(end.0 - 1)).is_some());
        assert!(read(&mut copies, b"key", end).is_none());
    }

    #[test]
    fn a_copy_for_one_owners_word_is_not_read_for_more() {
        let mut shard = shard(0, EvictionPolicy::default());
        let mut copies = Copies::new(8 << 20);
        for (key, any_level) in [(b"a", false), (b"b", true)] {
            put(&mut shard, key, 1, b"value", None);
            copy(&mut copies, &mut shard, key, any_level);
            let found = copies.get(KeyHash::of(key), key, true, NOW);
            assert_eq!(found.is_some(), any_level);
        }
    }

    #[test]
    fn leases_nobody_holds_are_taken_back_and_uses_are_told() {
        let mut shard = shard(0, EvictionPolicy::default());
        let mut copies = Copies::new(8 << 20);
        put(&mut shard, b"key", 1, b"value", None);
        copy(&mut copies, &mut shard, b"key", false);
        for _ in 0..300 * TELL {
            read(&mut copies, b"key", NOW).unwrap();
        }
        let mut told = Vec::new();
        shard.sweep_leases(|_, key, uses| told.push((key.to_vec(), uses)));
        let [(key, uses)] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!(key, b"key");
        assert!((200..400).contains(uses), "{uses}");
        assert_eq!(shard.leases(), (1, 0));
        drop(copies);
        shard.sweep_leases(|_, _, _| unreachable!("nothing was used since"));
        assert_eq!(shard.leases(), (0, 0));
    }

    #[test]
    fn what_is_read_often_is_wanted_and_what_is_read_once_is_not() {
        let mut copies = Copies::new(8 << 20);
        let hot = KeyHash::of(b"hot");
        let asked = (0..1_000).filter(|_| copies.wants(hot)).count();
        assert!((100..400).contains(&asked), "{asked}");
        let cold = (0..10_000_u64).filter(|n| copies.wants(KeyHash(splitmix64(*n))));
        assert_eq!(cold.count(), 0);
        // Too little memory for a table: no copies.
        assert!(!(0..100).any(|_| Copies::new(1 << 10).wants(hot)));
    }

    #[test]
    fn asks_are_bounded_from_tick_to_tick() {
        let mut copies = Copies::new(8 << 20);
        for _ in 0..2 {
            let asked = (0..20_000).filter(|_| copies.wants(KeyHash::of(b"hot")));
            assert_eq!(asked.count(), ASKS_PER_TICK as usize);
            assert!(!copies.wants(KeyHash::of(b"hot")));
            copies.tick(NOW);
        }
    }

    #[test]
    fn the_bound_on_bytes_holds_and_outdated_copies_give_theirs_back() {
        let mut shard = shard(0, EvictionPolicy::default());
        let bytes_max = 2 * fixed_bytes(256);
        let fixed = Copies::new(bytes_max).bytes();
        let mut copies = Copies::new(bytes_max);
        let keys: Vec<_> = (0..200_u64).map(|n| n.to_le_bytes()).collect();
        for key in &keys {
            put(&mut shard, key, 1, &[7; 4 << 10], None);
            copy(&mut copies, &mut shard, key, false);
            assert!(copies.bytes() <= bytes_max);
        }
        assert!(copies.len() > 30, "{}", copies.len());
        shard.clear(Version::new(1).unwrap());
        (0..SWEEP_TICKS).for_each(|_| copies.tick(NOW));
        assert_eq!((copies.len(), copies.bytes()), (0, fixed));
    }
}
