//! One hash table of ids.
//!
//! The table stores 4 bytes per slot, a byte of hashbrown's tags beside them, and
//! hashes each item's key again when it grows, having fetched the keys before. It stays
//! small (see `partition.rs`), so growing it is short. When fewer than an eighth of its
//! places are used it shrinks; when empty it holds no memory at all.
//!
//! hashbrown takes the position from the low bits of a hash and its tag from the
//! top 7. The top 12 bits are equal within a partition and would make every tag the
//! same, so [`spread`] moves varying bits there.

use std::hint::black_box;

use hashbrown::HashTable;

use super::item::ItemId;
use super::memory::malloc_charge;
use super::slab::Slab;
use crate::hash::KeyHash;

/// Tables of at most this many places are not worth shrinking, except to nothing.
const SHRINK_PLACES_MIN: usize = 32;

/// Growing a table of fewer items is short as it is.
const FETCH_ITEMS_MIN: usize = 64;

/// Ids of items, found by hash and key.
#[derive(Default)]
pub(super) struct Table {
    ids: HashTable<u32>,
}

impl Table {
    /// The item of `key`, if it is here.
    #[inline]
    pub(super) fn find(&self, slab: &Slab, hash: KeyHash, key: &[u8]) -> Option<ItemId> {
        self.ids
            .find(spread(hash), |&id| slab[ItemId(id)].key() == key)
            .copied()
            .map(ItemId)
    }

    /// What is probably the item of this hash, by its tag alone: no item is looked at.
    #[inline]
    pub(super) fn guess(&self, hash: KeyHash) -> Option<ItemId> {
        let first = self.ids.find(spread(hash), |_| true);
        first.copied().map(ItemId)
    }

    /// The items whose keys have this hash, as far as replicas compare it.
    pub(super) fn with_hash(&self, slab: &Slab, hash: KeyHash) -> impl Iterator<Item = ItemId> {
        let ids = self.ids.iter_hash(spread(hash)).copied().map(ItemId);
        ids.filter(move |&id| slab[id].has(hash))
    }

    /// Adds an item whose key, of this hash, is not here yet.
    pub(super) fn insert(&mut self, slab: &Slab, hash: KeyHash, id: ItemId) {
        let hasher = |&id: &u32| spread(slab[ItemId(id)].hash());
        if self.ids.len() == self.ids.capacity() && self.ids.len() >= FETCH_ITEMS_MIN {
            self.fetch_keys(slab);
        }
        self.ids.insert_unique(spread(hash), id.0, hasher);
    }

    /// Reads of each item what hashing its key will read. The processor waits for many of
    /// these reads at once; while it hashes it waits for one or two.
    #[cold]
    fn fetch_keys(&self, slab: &Slab) {
        let last = |&id: &u32| slab[ItemId(id)].key().last().copied().unwrap_or(0);
        black_box(self.ids.iter().map(last).fold(0, u8::wrapping_add));
    }

    /// Takes out an item that is here, and shrinks if few are left.
    pub(super) fn remove(&mut self, slab: &Slab, hash: KeyHash, id: ItemId) {
        let hasher = |&id: &u32| spread(slab[ItemId(id)].hash());
        if let Ok(entry) = self.ids.find_entry(spread(hash), |&other| other == id.0) {
            entry.remove();
        }
        // Not the capacity: that of hashbrown sinks as removals leave marks behind.
        let (len, places) = (self.ids.len(), self.ids.num_buckets());
        if len == 0 {
            self.ids = HashTable::new();
        } else if places > SHRINK_PLACES_MIN && len < places / 8 {
            self.ids.shrink_to(2 * len, hasher);
        }
    }

    /// Every item, in no particular order.
    pub(super) fn ids(&self) -> impl Iterator<Item = ItemId> {
        self.ids.iter().copied().map(ItemId)
    }

    /// How many items it holds.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// What the table takes beyond its own struct.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        malloc_charge(self.ids.allocation_size())
    }
}

/// The hash given to hashbrown: of the 36 bits that vary within a partition and
/// that replicas compare, the upper ones become the tag and the lower the position.
///
/// Bits 29..=35 of these end up in the tag, bits 0..=27 in the position;
/// `partition.rs` picks the table by bits 28 and below, of which a table of less than
/// half a million places uses none.
#[inline]
fn spread(hash: KeyHash) -> u64 {
    let kept = hash.0 >> 16;
    kept << 28 | (kept & ((1 << 28) - 1))
}

#[cfg(test)]
mod tests {
    use super::super::slab::tests::add;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tags_and_positions_vary_within_a_partition() {
        let mut tags = HashSet::new();
        let mut positions = HashSet::new();
        for key in 0..100_000_u32 {
            let hash = KeyHash(KeyHash::of(&key.to_le_bytes()).0 >> 12 | 7 << 52);
            let spread = spread(hash);
            tags.insert(spread >> 57);
            positions.insert(spread & 1023);
        }
        assert_eq!((tags.len(), positions.len()), (128, 1024));
    }

    #[test]
    fn bits_that_replicas_do_not_compare_do_not_matter() {
        assert_eq!(
            spread(KeyHash(0x1234_5678_9ABC_0000)),
            spread(KeyHash(0x1234_5678_9ABC_FFFF))
        );
    }

    #[test]
    fn keys_with_one_hash_are_told_apart() {
        let (mut slab, mut table) = (Slab::default(), Table::default());
        // As many as fit before the table grows and finds the true hashes.
        let hash = KeyHash(42 << 30);
        let ids: Vec<_> = (0..3).map(|n| add(&mut slab, n, None)).collect();
        ids.iter().for_each(|&id| table.insert(&slab, hash, id));
        for (n, &id) in (0..3_u64).zip(&ids) {
            assert_eq!(table.find(&slab, hash, &n.to_le_bytes()), Some(id));
        }
        assert_eq!(table.find(&slab, hash, &3_u64.to_le_bytes()), None);
        table.remove(&slab, hash, ids[1]);
        assert_eq!(table.find(&slab, hash, &1_u64.to_le_bytes()), None);
        assert_eq!(table.find(&slab, hash, &2_u64.to_le_bytes()), Some(ids[2]));
    }
}
