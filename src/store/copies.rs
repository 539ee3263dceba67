//! A core's copies of items that belong to other cores of its node.
//!
//! A core counts how often its clients read keys of other cores ([`Frequency`]). Of one that is
//! read often it asks the owner, together with the read itself, for a copy and its
//! [`Lease`]; from then on it answers alone, until the lease is revoked or the item expires.
//! What makes that as good as asking the owner is written in [`lease`](super::lease).
//!
//! ```text
//!   sets: one line each, WAYS places           cells, numbered, in chunks
//!   ┌──────┬──────┬─ … ─┬──────┐               ┌──────┬─────┬───────┬───────────── … ┐
//!   │tag, n│tag, n│     │ -, 0 │  ── n ─────►  │lease │stamp│lengths│key, value      │
//!   └──────┴──────┴─ … ─┴──────┘               └──┬───┴─────┴───────┴───────────── … ┘
//!                                                 └► a term, beside those of other leases
//! ```
//!
//! A key has one set, of [`WAYS`] places, and the *tag* by which it is found there is the half of
//! its hash that chooses no set. A copy is a [`Cell`]: what is known of the item, the key and, where
//! it is small, the value, on adjoining lines. So a read goes to memory for its set, its cell and
//! the term of its lease, and waits for no more than that. What does not fit into a cell
//! has a block of its own.
//!
//! In a full set, or when bytes are short, a copy gives way to a key that was used more than
//! twice as often as the least used there, so a load that uses all keys alike leaves them where they
//! are. At most [`ASKS_MAX`] copies are asked for between two ticks, and fewer while those there
//! are are hardly read, so that keys written as often as they are read, too many keys used alike, or a
//! changing working set cost little.
//!
//! A copy that is in no near cache costs more than one more read in a message that its owner
//! gets anyway. So of keys asked for together, those of a core of which one has no copy are all read
//! there ([`Copies::foresee`]), and their copies left alone.
//!
//! Bounds: places, of which there are more the more bytes copies may take (up to [`SETS_MAX`]
//! sets), and [`Copies::new`]'s bytes; who finds no room has no copy. A core alone, or with too
//! little memory, has none at all. Revoked copies are dropped when they are met, and by the tick
//! within [`SWEEP_TICKS`] ticks. Blocks of large ones are given back at once; cells are kept for
//! others, until there is no copy at all.

use std::mem::size_of;
use std::sync::Arc;

use super::frequency::Frequency;
use super::item::{ItemView, ValueView};
use super::lease::Lease;
use super::memory::malloc_charge;
use super::shard::{FORESEEN_MAX, look_at};
use crate::clock::{Origin, UnixMs, Version};
use crate::hash::{CoreCount, KeyHash, RoughCores};

/// Places of a set: as many words as fit in a line of the processor's cache.
const WAYS: usize = 8;

/// What a copy takes that is no larger than most: four lines.
const CELL_BYTES: usize = 256;

/// How much of that is for key and value.
const INLINE_BYTES: usize = 200;

/// In how many sets a copy is looked for that gives way to another.
const SETS_NEAR: usize = 16;

/// Cells made at once, and what they take with their numbers.
const CHUNK_CELLS: usize = 128;
const CHUNK_BYTES: usize = CHUNK_CELLS * (CELL_BYTES + size_of::<u32>());

/// Cells take no more than so many fourths of the bytes: the rest is for blocks of large copies.
const CELL_FOURTHS: usize = 3;

/// The fewest sets worth having, and the most.
const SETS_MIN: usize = 64;
const SETS_MAX: usize = 1 << 15;

/// One of so many reads is counted, at random, and one of so many where copies do not pay.
const COUNT_ONE_IN: u32 = 4;
const COUNT_ONE_IN_IDLE: u32 = 16;

/// A key must have been counted so often lately to be copied while there is room.
const USES_MIN: u8 = 2;

/// A key takes the place of another if it was counted more than twice as often, and so many
/// times beyond that.
const MARGIN: u16 = 4;

/// In a full set, a key that is used often is considered at every so many of these counts.
const CONSIDER: u8 = 4;

/// How many copies a core asks for between two ticks, at least and at most.
const ASKS_MIN: u32 = 64;
const ASKS_MAX: u32 = 1024;

/// Copies pay if between two ticks they are read so many times for each that was asked for.
const READS_PER_ASK: u64 = 2;

/// After so many ticks every copy was looked at. Looking costs what reading does, and who
/// reads a copy looks anyway.
const SWEEP_TICKS: usize = 32;

/// One copy may take one part in so many of what all may.
const COPY_SHARE: usize = 16;

/// One of so many uses is told to the owner.
const TELL: u32 = super::HOT_KEYS_SAMPLE as u32;

/// What a table of so many sets takes when it is empty.
const fn fixed_bytes(sets: usize) -> usize {
    sets * size_of::<Set>() + Frequency::bytes()
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

/// Where the copies of some keys are.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Set {
    /// The tag of the key in each way; of no meaning where there is none.
    tags: [u32; WAYS],
    /// The number of its cell, plus one; 0 where there is none.
    cells: [u32; WAYS],
}

/// The lower half of a hash: it neither chooses the set nor the partition.
fn tag_of(hash: KeyHash) -> u32 {
    hash.0 as u32
}

impl Set {
    /// The ways whose keys have the tag of `hash`, and their cells: seldom more than one.
    #[inline]
    fn alike(&self, hash: KeyHash) -> impl Iterator<Item = (usize, usize)> {
        // All are compared first, which takes some instructions and no guess of the processor's.
        let mut alike = 0_u32;
        for way in 0..WAYS {
            alike |= u32::from(self.tags[way] == tag_of(hash)) << way;
        }
        std::iter::from_fn(move || {
            while alike != 0 {
                let way = alike.trailing_zeros() as usize;
                alike &= alike - 1;
                if let Some(cell) = self.cell(way) {
                    return Some((way, cell));
                }
            }
            None
        })
    }

    #[inline]
    fn cell(&self, way: usize) -> Option<usize> {
        self.cells[way].checked_sub(1).map(|cell| cell as usize)
    }

    fn free_way(&self) -> Option<usize> {
        self.cells.iter().position(|&cell| cell == 0)
    }
}

/// A copy of an item of another core, or room for one.
#[derive(Debug)]
#[repr(align(64))]
struct Cell {
    /// None where there is no copy.
    lease: Option<Lease>,
    large: Option<Box<Large>>,
    version: Version,
    expires_at: Option<UnixMs>,
    origin: Origin,
    key_len: u16,
    /// Of a value that is in the cell.
    value_len: u16,
    /// The key, then the value, unless they are too large for that.
    bytes: [u8; INLINE_BYTES],
}

const _: () = assert!(size_of::<Cell>() == CELL_BYTES);

/// The block of a copy that does not fit into its cell.
#[derive(Debug)]
enum Large {
    /// The key, then the value.
    Bytes(Box<[u8]>),
    /// The key, and a value that the owner keeps by reference too.
    Shared(Box<[u8]>, Arc<[u8]>),
}

impl Large {
    /// Of what does not fit into a cell; none of what does.
    fn of(item: &ItemView<'_>) -> Option<Box<Self>> {
        match item.value {
            ValueView::Shared(value) => {
                let key = item.key.into();
                Some(Box::new(Self::Shared(key, Arc::clone(value))))
            }
            ValueView::Bytes(value) => (item.key.len() + value.len() > INLINE_BYTES)
                .then(|| Box::new(Self::Bytes([item.key, value].concat().into()))),
        }
    }

    fn charge(&self) -> usize {
        match self {
            Self::Bytes(bytes) => Self::charge_of_bytes(bytes.len()),
            Self::Shared(key, value) => Self::charge_of_shared(key.len(), value.len()),
        }
    }

    /// What that of an item will be; nothing if it fits into a cell.
    fn charge_for(item: &ItemView<'_>) -> usize {
        match item.value {
            ValueView::Shared(value) => Self::charge_of_shared(item.key.len(), value.len()),
            ValueView::Bytes(value) => match item.key.len() + value.len() {
                0..=INLINE_BYTES => 0,
                len => Self::charge_of_bytes(len),
            },
        }
    }

    fn charge_of_bytes(len: usize) -> usize {
        malloc_charge(size_of::<Self>()) + malloc_charge(len)
    }

    fn charge_of_shared(key_len: usize, value_len: usize) -> usize {
        malloc_charge(size_of::<Self>()) + malloc_charge(key_len) + value_len
    }
}

impl Cell {
    const EMPTY: Self = Self {
        lease: None,
        large: None,
        version: Version::ZERO,
        expires_at: None,
        origin: Origin(0),
        key_len: 0,
        value_len: 0,
        bytes: [0; INLINE_BYTES],
    };

    fn fill(&mut self, item: &ItemView<'_>, large: Option<Box<Large>>, lease: Lease) {
        self.lease = Some(lease);
        self.version = item.version;
        self.expires_at = item.expires_at;
        self.origin = item.origin;
        self.key_len = item.key.len() as u16;
        if large.is_none() {
            let value = item.value.bytes();
            self.value_len = value.len() as u16;
            let (key, rest) = self.bytes.split_at_mut(item.key.len());
            key.copy_from_slice(item.key);
            rest[..value.len()].copy_from_slice(value);
        }
        self.large = large;
    }

    #[inline]
    fn view(&self) -> ItemView<'_> {
        let key_len = usize::from(self.key_len);
        let (key, value) = match self.large.as_deref() {
            None => {
                let (key, rest) = self.bytes.split_at(key_len);
                (key, ValueView::Bytes(&rest[..usize::from(self.value_len)]))
            }
            Some(Large::Bytes(bytes)) => {
                let (key, value) = bytes.split_at(key_len);
                (key, ValueView::Bytes(value))
            }
            Some(Large::Shared(key, value)) => (&**key, ValueView::Shared(value)),
        };
        ItemView {
            key,
            value,
            version: self.version,
            origin: self.origin,
            expires_at: self.expires_at,
        }
    }

    /// The lease, if the copy may be read.
    #[inline]
    fn good_lease(&self, now: UnixMs) -> Option<&Lease> {
        let lease = self.lease.as_ref()?;
        (lease.is_good() && self.expires_at.is_none_or(|at| at > now)).then_some(lease)
    }

    fn charge(&self) -> usize {
        self.large.as_ref().map_or(0, |large| large.charge())
    }
}

/// The cells, by number.
#[derive(Debug, Default)]
struct Cells {
    chunks: Vec<Box<[Cell]>>,
    free: Vec<u32>,
}

impl Cells {
    /// The number of a free cell, if there is one.
    fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    fn extend(&mut self) {
        let first = (self.chunks.len() * CHUNK_CELLS) as u32;
        self.chunks
            .push((0..CHUNK_CELLS).map(|_| Cell::EMPTY).collect());
        self.free.extend((first..first + CHUNK_CELLS as u32).rev());
    }
}

impl std::ops::Index<usize> for Cells {
    type Output = Cell;

    #[inline]
    fn index(&self, number: usize) -> &Cell {
        &self.chunks[number / CHUNK_CELLS][number % CHUNK_CELLS]
    }
}

impl std::ops::IndexMut<usize> for Cells {
    fn index_mut(&mut self, number: usize) -> &mut Cell {
        &mut self.chunks[number / CHUNK_CELLS][number % CHUNK_CELLS]
    }
}

/// The table, where there is one.
#[derive(Debug)]
struct Table {
    sets: Box<[Set]>,
    cells: Cells,
    frequency: Frequency,
    random: u32,
    /// Uses are counted whose random number is below this.
    counted_below: u32,
    len: usize,
    bytes: usize,
    bytes_max: usize,
    /// How many copies may be asked for between two ticks.
    asks_max: u32,
    asks_left: u32,
    /// What `CopyCounts::hits` was at the last tick.
    hits_before: u64,
    until_told: u32,
    next_swept: usize,
    /// Whether a copy found no room since the last one left.
    refused: bool,
}

/// Where a copy goes, and which one leaves for it, by set and way.
struct Place {
    at: (usize, usize),
    leaves: Option<(usize, usize)>,
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
        let places = bytes_max / CELL_BYTES;
        let sets = (places / WAYS + 1).next_power_of_two() / 2;
        let sets = sets.clamp(SETS_MIN, SETS_MAX);
        let table = (bytes_max > 2 * fixed_bytes(sets)).then(|| Table {
            sets: vec![Set::default(); sets].into_boxed_slice(),
            cells: Cells::default(),
            frequency: Frequency::new(),
            random: 1,
            counted_below: u32::MAX / COUNT_ONE_IN,
            len: 0,
            bytes: fixed_bytes(sets),
            bytes_max,
            asks_max: ASKS_MAX,
            asks_left: ASKS_MAX,
            hits_before: 0,
            until_told: TELL,
            next_swept: 0,
            refused: false,
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
        let (set, way, cell) = table.find(hash, key)?;
        if table.cells[cell].good_lease(now).is_none() {
            table.remove(set, way);
            self.counts.outdated += 1;
            return None;
        }
        if table.counts() {
            table.frequency.touch(hash);
        }
        let copied = &table.cells[cell];
        let lease = copied.lease.as_ref()?;
        if any_level && !lease.is_for_any_level() {
            return None;
        }
        table.until_told -= 1;
        if table.until_told == 0 {
            // At random, so that regular patterns hide nothing.
            table.until_told = 1 + (table.random >> 16) % (2 * TELL - 1);
            lease.note_use();
        }
        self.counts.hits += 1;
        Some(copied.view())
    }

    /// Which of other cores will be asked, when these keys are soon asked for that belong to
    /// others: those that have one of which there is no copy. What is known of the keys of the rest
    /// is brought into the processor's caches, as [`Shard::foresee`](super::Shard::foresee) does.
    pub fn foresee(&self, hashes: &[KeyHash], cores: CoreCount) -> RoughCores {
        let mut asked = RoughCores::default();
        let Some(table) = &self.table else {
            return asked;
        };
        let mut cells = [None; FORESEEN_MAX];
        for (cell, hash) in cells.iter_mut().zip(hashes) {
            let core = hash.partition().core(cores);
            if asked.may_have(core) {
                continue;
            }
            match table.sets[table.set_of(*hash)].alike(*hash).next() {
                Some((_, found)) => *cell = Some((core, found)),
                None => asked.add(core),
            }
        }
        let mut seen = 0;
        for (core, cell) in cells.iter().flatten() {
            if asked.may_have(*core) {
                continue;
            }
            let cell = &table.cells[*cell];
            let is_good = cell.lease.as_ref().is_some_and(Lease::is_good);
            let item = cell.view();
            seen ^= u64::from(is_good) ^ look_at(item.key, item.value);
        }
        std::hint::black_box(seen);
        asked
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
        uses >= USES_MIN
            && table.asks_left > 0
            && !table.has_good(hash, uses)
            && table.has_place_for(hash, uses)
    }

    /// Takes the copy of an item that came with its lease.
    pub fn insert(&mut self, hash: KeyHash, item: ItemView<'_>, lease: Lease) {
        let Some(table) = &mut self.table else {
            return;
        };
        // It may come late, and there may be one that is newer.
        if !lease.is_good() {
            return;
        }
        let former = table.find(hash, item.key).map(|(set, way, _)| Place {
            at: (set, way),
            leaves: Some((set, way)),
        });
        let Some(place) = former.or_else(|| table.place_for(hash)) else {
            return;
        };
        let charge = Large::charge_for(&item);
        let left = place
            .leaves
            .and_then(|(set, way)| table.sets[set].cell(way));
        let freed = left.map_or(0, |cell| table.cells[cell].charge());
        let grows = left.is_none() && table.cells.free.is_empty();
        let chunk = if grows { CHUNK_BYTES } else { 0 };
        let fits = table.bytes - freed + charge + chunk <= table.bytes_max
            && (!grows || table.may_extend());
        if !fits || charge > table.bytes_max / COPY_SHARE {
            table.refused |= !fits;
            return;
        }
        let large = Large::of(&item);
        // One that only takes the room of another leaves none.
        let refused = table.refused && freed <= charge;
        if let Some((set, way)) = place.leaves {
            table.remove(set, way);
        }
        table.refused = refused;
        if grows {
            table.cells.extend();
        }
        let Some(cell) = table.cells.take() else {
            return;
        };
        table.cells[cell as usize].fill(&item, large, lease);
        let (set, way) = place.at;
        table.sets[set].tags[way] = tag_of(hash);
        table.sets[set].cells[way] = cell + 1;
        table.bytes += charge + chunk;
        table.len += 1;
        self.counts.taken += 1;
    }

    /// Call it ten times a second or so: more copies may be asked for, and what is outdated
    /// makes room.
    pub fn tick(&mut self, now: UnixMs) {
        let Some(table) = &mut self.table else {
            return;
        };
        table.adapt(self.counts.hits);
        let sets = table.sets.len();
        let end = (table.next_swept + sets / SWEEP_TICKS).min(sets);
        for set in table.next_swept..end {
            for way in 0..WAYS {
                let cell = table.sets[set].cell(way);
                if cell.is_some_and(|cell| table.cells[cell].good_lease(now).is_none()) {
                    table.remove(set, way);
                    self.counts.outdated += 1;
                }
            }
        }
        table.next_swept = end % sets;
        if table.len == 0 {
            table.bytes -= table.cells.chunks.len() * CHUNK_BYTES;
            table.cells = Cells::default();
        }
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
        (hash.0 >> 32) as usize & (self.sets.len() - 1)
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
        self.random < self.counted_below
    }

    /// The set, the way and the cell of a key that has a copy.
    #[inline]
    fn find(&self, hash: KeyHash, key: &[u8]) -> Option<(usize, usize, usize)> {
        let set = self.set_of(hash);
        let mut alike = self.sets[set].alike(hash);
        let (way, cell) = alike.find(|&(_, cell)| self.cells[cell].view().key == key)?;
        Some((set, way, cell))
    }

    /// Whether a key that is used so often has a copy that may be read, and is read from its
    /// owner all the same. That it has an outdated one is noticed at every so many uses.
    fn has_good(&self, hash: KeyHash, uses: u8) -> bool {
        let mut alike = self.sets[self.set_of(hash)].alike(hash);
        alike.next().is_some_and(|(_, cell)| {
            let lease = self.cells[cell].lease.as_ref();
            !uses.is_multiple_of(CONSIDER) || lease.is_some_and(Lease::is_good)
        })
    }

    /// Whether a key that is used often should have a copy. Spends an ask if so.
    ///
    /// A place is taken from a key that was used less than half as much, and by a margin: were
    /// equals to take turns, each turn would cost a copy and bring nothing.
    fn has_place_for(&mut self, hash: KeyHash, uses: u8) -> bool {
        let is_full = self.sets[self.set_of(hash)].free_way().is_none() || self.is_short();
        if is_full && !uses.is_multiple_of(CONSIDER) {
            return false;
        }
        let Some(place) = self.place_for(hash) else {
            return false;
        };
        let pays = place
            .leaves
            .is_none_or(|(set, way)| 2 * u16::from(self.uses(set, way)) + MARGIN < u16::from(uses));
        self.asks_left -= u32::from(pays);
        pays
    }

    /// A tick is over: doubles how many copies may be asked for where those there are pay, or
    /// halves it where they do not. Where fewer were asked for there is nothing to learn.
    fn adapt(&mut self, hits: u64) {
        let read = hits - self.hits_before;
        if self.asks_left == 0 {
            let pays = read >= READS_PER_ASK * u64::from(self.asks_max);
            let asks = if pays {
                self.asks_max * 2
            } else {
                self.asks_max / 2
            };
            self.asks_max = asks.clamp(ASKS_MIN, ASKS_MAX);
            let is_idle = self.asks_max == ASKS_MIN;
            self.counted_below = match is_idle {
                true => u32::MAX / COUNT_ONE_IN_IDLE,
                false => u32::MAX / COUNT_ONE_IN,
            };
        }
        self.asks_left = self.asks_max;
        self.hits_before = hits;
    }

    /// Whether there is no room for another copy: none for its cell, or none for the block of
    /// the last that had to go without.
    fn is_short(&self) -> bool {
        self.refused || self.cells.free.is_empty() && !self.may_extend()
    }

    /// Whether there may be more cells.
    fn may_extend(&self) -> bool {
        let cells = (self.cells.chunks.len() + 1) * CHUNK_BYTES;
        self.bytes + CHUNK_BYTES <= self.bytes_max && cells <= self.bytes_max / 4 * CELL_FOURTHS
    }

    /// Where a copy of a key would go. In a full set the one used least gives way; where there is
    /// no room for another one, that of the key's set or of the next one that has any.
    fn place_for(&self, hash: KeyHash) -> Option<Place> {
        let own = self.set_of(hash);
        let free = self.sets[own].free_way().map(|way| (own, way));
        if let Some(at) = free
            && !self.is_short()
        {
            return Some(Place { at, leaves: None });
        }
        let near = (own..own + SETS_NEAR).map(|set| set & (self.sets.len() - 1));
        let leaves = near.flat_map(|set| self.least_used(set)).next()?;
        Some(Place {
            at: free.filter(|_| leaves.0 != own).unwrap_or(leaves),
            leaves: Some(leaves),
        })
    }

    /// The copy of a set that is used least.
    fn least_used(&self, set: usize) -> Option<(usize, usize)> {
        let taken = (0..WAYS).filter(|&way| self.sets[set].cells[way] != 0);
        let way = taken.min_by_key(|&way| self.uses(set, way))?;
        Some((set, way))
    }

    /// Where a key is counted is decided by its tag.
    fn uses(&self, set: usize, way: usize) -> u8 {
        self.frequency
            .of(KeyHash(u64::from(self.sets[set].tags[way])))
    }

    fn remove(&mut self, set: usize, way: usize) {
        if let Some(cell) = self.sets[set].cell(way) {
            self.sets[set].cells[way] = 0;
            self.bytes -= self.cells[cell].charge();
            self.cells[cell].lease = None;
            self.cells[cell].large = None;
            self.cells.free.push(cell as u32);
            self.len -= 1;
            self.refused = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Content, EvictionPolicy, FORESEEN_MAX, SHARED_VALUE_BYTES, Shard, ShardConfig, ValueIn,
        Write,
    };
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
            let mut lent: Vec<(Vec<u8>, Version, Lease)> = Vec::new();
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
        // Some are taken for each other by the sketch.
        assert!(cold.count() < 10);
        // Too little memory for a table: no copies.
        assert!(!(0..100).any(|_| Copies::new(1 << 10).wants(hot)));
    }

    #[test]
    fn fewer_copies_are_asked_for_while_those_there_are_are_not_read() {
        let mut shard = shard(0, EvictionPolicy::default());
        let mut copies = Copies::new(8 << 20);
        put(&mut shard, b"key", 1, b"value", None);
        copy(&mut copies, &mut shard, b"key", false);
        let hot = KeyHash::of(b"hot");
        let mut tick = |reads| {
            for _ in 0..reads {
                read(&mut copies, b"key", NOW).unwrap();
            }
            let asked = (0..40_000).filter(|_| copies.wants(hot)).count();
            assert!(!copies.wants(hot), "no more before the next tick");
            copies.tick(NOW);
            asked
        };
        assert_eq!([0; 6].map(&mut tick), [1024, 512, 256, 128, 64, 64]);
        // Read twice for each that was asked for, and once less.
        assert_eq!([128, 255, 128, 0].map(&mut tick), [64, 128, 64, 128]);
        assert_eq!([1 << 12; 6].map(tick), [64, 128, 256, 512, 1024, 1024]);
    }

    #[test]
    fn a_core_is_asked_for_all_if_it_must_be_asked_for_one() {
        let mut shard = shard(0, EvictionPolicy::default());
        let mut copies = Copies::new(8 << 20);
        let cores = CoreCount::new(3).unwrap();
        let of_core = |core: u16| {
            let keys = (0_u64..).map(|n| n.to_le_bytes());
            keys.filter(move |key| KeyHash::of(key).partition().core(cores) == CoreId::new(core))
        };
        let (one, two): (Vec<_>, Vec<_>) =
            (of_core(1).take(3).collect(), of_core(2).take(2).collect());
        for key in one[..2].iter().chain(&two) {
            put(&mut shard, key, 1, b"value", None);
            copy(&mut copies, &mut shard, key, false);
        }
        let asked = |keys: &[[u8; 8]]| {
            let hashes: Vec<_> = keys
                .iter()
                .chain(&two)
                .map(|key| KeyHash::of(key))
                .collect();
            let asked = copies.foresee(&hashes, cores);
            [1, 2].map(|core| asked.may_have(CoreId::new(core)))
        };
        assert_eq!(asked(&one[..2]), [false, false]);
        assert_eq!(asked(&one), [true, false]);
        // Where there is nothing to copy into there is nothing to choose.
        let none = Copies::new(0).foresee(&[KeyHash::of(&one[0])], cores);
        assert_eq!(none, RoughCores::default());
    }

    #[test]
    fn a_key_read_from_its_owner_though_there_is_a_copy_is_not_copied_again_unless_outdated() {
        let mut shard = shard(0, EvictionPolicy::default());
        let mut copies = Copies::new(8 << 20);
        put(&mut shard, b"key", 1, b"value", None);
        copy(&mut copies, &mut shard, b"key", false);
        let hash = KeyHash::of(b"key");
        let asks = |copies: &mut Copies| (0..200).filter(|_| copies.wants(hash)).count();
        assert_eq!(asks(&mut copies), 0);
        put(&mut shard, b"key", 2, b"other", None);
        assert!(asks(&mut copies) > 0);
        copy(&mut copies, &mut shard, b"key", false);
        assert_eq!(copies.len(), 1);
        assert_eq!(read(&mut copies, b"key", NOW).unwrap(), b"other");
    }

    #[test]
    fn items_of_any_size_are_copied_as_they_are() {
        let mut shard = shard(0, EvictionPolicy::default());
        let mut copies = Copies::new(8 << 20);
        let mut version = 0;
        for key_len in [
            1,
            100,
            INLINE_BYTES - 1,
            INLINE_BYTES,
            INLINE_BYTES + 1,
            1024,
        ] {
            let room = INLINE_BYTES.saturating_sub(key_len);
            for value_len in [room, 0, SHARED_VALUE_BYTES, room + 1] {
                let key = vec![b'k'; key_len];
                let value: Vec<_> = (0..value_len).map(|n| n as u8).collect();
                version += 1;
                put(&mut shard, &key, version, &value, None);
                copy(&mut copies, &mut shard, &key, false);
                assert_eq!(read(&mut copies, &key, NOW).unwrap(), value);
            }
        }
        assert_eq!(copies.len(), 6);
    }

    #[test]
    fn the_bound_on_bytes_holds_and_outdated_copies_give_their_blocks_back() {
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
        assert!(copies.len() > 20, "{}", copies.len());
        shard.clear(Version::new(1).unwrap());
        (0..SWEEP_TICKS).for_each(|_| copies.tick(NOW));
        assert_eq!((copies.len(), copies.bytes()), (0, fixed));
    }

    #[test]
    fn a_large_copy_used_more_takes_the_place_of_one_used_less_when_bytes_are_short() {
        // Where bytes end, there are cells left, or not.
        for len in [900, 1 << 10, 1500, 2 << 10, 3 << 10] {
            large_copies_give_way(len);
        }
    }

    fn large_copies_give_way(value_len: usize) {
        let mut shard = shard(0, EvictionPolicy::default());
        let mut copies = Copies::new(2 << 20);
        let value = vec![7; value_len];
        let keys: Vec<_> = (0..3_000_u64).map(|n| n.to_le_bytes()).collect();
        for key in &keys {
            put(&mut shard, key, 1, &value, None);
            copy(&mut copies, &mut shard, key, false);
        }
        let is_copied = |copies: &mut Copies, key: &[u8]| read(copies, key, NOW).is_some();
        let mut late = keys.clone();
        late.retain(|key| !is_copied(&mut copies, key));
        late.truncate(20);
        for key in &late {
            // Read for as long as it takes: the owner is asked, or gives a copy.
            let wanted = (0..1_000).find(|_| copies.wants(KeyHash::of(key)));
            assert!(wanted.is_some(), "it is never asked for");
            copy(&mut copies, &mut shard, key, false);
        }
        let copied = late.iter().filter(|key| is_copied(&mut copies, *key));
        assert!(copied.count() >= 15, "those used more have a place");
        let cold = (0..40_000_u64).map(|n| KeyHash(splitmix64(n)));
        let wanted = cold.filter(|&hash| copies.wants(hash)).count();
        assert!(wanted < 40, "{wanted} that are used no more than others");
    }
}
