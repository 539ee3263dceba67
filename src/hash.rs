//! How a key becomes a place: its hash, its partition, its core.
//!
//! The hash of a key is computed once per request (XXH3, 64 bit) and handed on
//! from there; only the store, which does not keep it, hashes again when it moves an
//! item in or out of a table. The partition is the top 12 bits of
//! the hash, fixed for the life of a cluster; the core of a partition depends on
//! how many cores this node runs and is nobody else's business.
//!
//! What is a number already is mixed with [`splitmix64`].

/// How many slices the hash space has. Fixed for the life of a cluster: every
/// node, whatever its size or release, cuts the space the same way.
pub const PARTITION_COUNT: usize = 4096;

const PARTITION_BITS: u32 = PARTITION_COUNT.trailing_zeros();

/// The 64-bit XXH3 hash of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// Hashes `key`. Call it once per request and pass the result on.
    #[inline]
    pub fn of(key: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(key))
    }

    /// The partition this hash falls into: its top 12 bits.
    #[inline]
    pub fn partition(self) -> PartitionId {
        PartitionId((self.0 >> (64 - PARTITION_BITS)) as u16)
    }
}

/// One of the [`PARTITION_COUNT`] slices of the hash space; always below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(u16);

impl PartitionId {
    /// The first one.
    pub const FIRST: Self = Self(0);

    /// The partition numbered `index`, or `None` when there is no such one.
    pub fn new(index: usize) -> Option<Self> {
        (index < PARTITION_COUNT).then_some(Self(index as u16))
    }

    /// Every partition, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..PARTITION_COUNT as u16).map(Self)
    }

    /// Its number, below [`PARTITION_COUNT`].
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The core that owns this partition on a node that runs `cores` cores.
    #[inline]
    pub fn core(self, cores: CoreCount) -> CoreId {
        CoreId(self.0 % cores.0)
    }
}

/// One data core of this node, counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(u16);

impl CoreId {
    /// The core numbered `index`.
    pub fn new(index: u16) -> Self {
        Self(index)
    }

    /// Its number, counted from zero.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of cores. Cores whose numbers differ by a multiple of 64 count as one: it is for
/// guesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoughCores(u64);

impl RoughCores {
    /// Adds a core.
    #[inline]
    pub fn add(&mut self, core: CoreId) {
        self.0 |= 1 << (core.0 % 64);
    }

    /// Whether a core may be among them.
    #[inline]
    pub fn may_have(self, core: CoreId) -> bool {
        self.0 & 1 << (core.0 % 64) != 0
    }
}

/// How many data cores a node runs: at least 1, at most [`CoreCount::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreCount(u16);

impl CoreCount {
    /// A single core.
    pub const ONE: Self = Self(1);

    /// The largest number of cores one node runs.
    pub const MAX: usize = 1024;

    /// `count` cores, or `None` outside 1..=[`CoreCount::MAX`].
    pub fn new(count: usize) -> Option<Self> {
        (1..=Self::MAX)
            .contains(&count)
            .then_some(Self(count as u16))
    }

    /// The number itself.
    #[inline]
    pub fn get(self) -> usize {
        usize::from(self.0)
    }

    /// Every core, in order.
    pub fn cores(self) -> impl Iterator<Item = CoreId> {
        (0..self.0).map(CoreId)
    }
}

/// By how much the state of a SplitMix64 generator grows with each number.
pub const SPLITMIX64_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The number that a SplitMix64 generator in this state gives next (Steele, Lea, Flood,
/// "Fast splittable pseudorandom number generators", 2014).
///
/// A bijection that changes about half of all bits for each bit of the argument, 0
/// included, because the state grows by [`SPLITMIX64_STEP`] before it is mixed. For
/// digests, placement and jitter; never for secrets.
#[inline]
pub const fn splitmix64(state: u64) -> u64 {
    let word = state.wrapping_add(SPLITMIX64_STEP);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_is_the_published_one() {
        // First outputs of the published generator seeded with 0.
        assert_eq!(splitmix64(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(splitmix64(SPLITMIX64_STEP), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn partitions_are_the_top_twelve_bits() {
        assert_eq!(KeyHash(0).partition().index(), 0);
        assert_eq!(KeyHash(u64::MAX).partition().index(), 4095);
        assert_eq!(KeyHash(1 << 52).partition().index(), 1);
        assert_eq!(KeyHash((1 << 52) - 1).partition().index(), 0);
    }

    #[test]
    fn every_partition_has_exactly_one_core() {
        for count in [1, 2, 3, 7, 64] {
            let cores = CoreCount::new(count).unwrap();
            let mut owned = vec![0; count];
            for partition in PartitionId::all() {
                owned[partition.core(cores).index()] += 1;
            }
            assert_eq!(owned.iter().sum::<usize>(), PARTITION_COUNT);
            assert!(owned.iter().max().unwrap() - owned.iter().min().unwrap() <= 1);
        }
    }
}
