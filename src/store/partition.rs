//! The partitions of one core: their tables and their digests.
//!
//! A shard always has about [`PARTITION_COUNT`] tables, however many cores the node
//! runs: with fewer partitions per core, each is cut into more tables. So a table
//! holds a four-thousandth of the shard, and growing one, which rehashes it, stays
//! well below a millisecond for tens of millions of items.
//!
//! The caller routes: a hash of a partition that another core owns is a bug there.
//! It is caught by a debug assertion and harmless to memory otherwise.

use std::mem::size_of;
use std::ptr::NonNull;

use super::digest::Digest;
use super::item::{ItemBox, ItemId};
use super::memory::malloc_charge;
use super::slab::Slab;
use super::table::Table;
use crate::hash::{CoreCount, CoreId, KeyHash, PARTITION_COUNT, PartitionId};

/// The tables of a shard are picked by bits below this one of the hash's top 48.
const TABLE_BIT_END: u32 = 29;

/// The tables and digests of all partitions of a core.
pub(super) struct Partitions {
    tables: Box<[Table]>,
    digests: Box<[Digest]>,
    cores: CoreCount,
    core: CoreId,
    /// Each partition has 2^table_bits tables.
    table_bits: u32,
    table_bytes: usize,
}

impl Partitions {
    pub(super) fn new(cores: CoreCount, core: CoreId) -> Self {
        // Rounded up, so that every partition id has a place, ours or not.
        let owned = PARTITION_COUNT.div_ceil(cores.get());
        let table_bits = (PARTITION_COUNT / owned).ilog2();
        Self {
            tables: (0..owned << table_bits).map(|_| Table::default()).collect(),
            digests: vec![Digest::default(); owned].into_boxed_slice(),
            cores,
            core,
            table_bits,
            table_bytes: 0,
        }
    }

    /// The item of `key`, if it is here.
    #[inline]
    pub(super) fn find(&self, slab: &Slab, hash: KeyHash, key: &[u8]) -> Option<ItemId> {
        self.tables[self.table_of(hash)].find(slab, hash, key)
    }

    /// What is probably the item of this hash, of a partition of this core: no item is looked at.
    #[inline]
    pub(super) fn guess(&self, hash: KeyHash) -> Option<ItemId> {
        self.tables[self.table_of(hash)].guess(hash)
    }

    /// Adds an item whose key, of this hash, is not here yet.
    pub(super) fn insert(&mut self, slab: &Slab, hash: KeyHash, id: ItemId) {
        let at = self.table_of(hash);
        self.change_table(at, |table| table.insert(slab, hash, id));
        let digest = self.digest_mut(hash.partition());
        *digest = digest.with(slab[id].digest(hash));
    }

    /// Takes out an item that is here.
    pub(super) fn remove(&mut self, slab: &Slab, id: ItemId) {
        let hash = slab[id].hash();
        let at = self.table_of(hash);
        self.change_table(at, |table| table.remove(slab, hash, id));
        let digest = self.digest_mut(hash.partition());
        *digest = digest.without(slab[id].digest(hash));
    }

    /// An item of `partition` was replaced by another with the same key and id.
    pub(super) fn replaced(&mut self, partition: PartitionId, old: Digest, new: Digest) {
        let digest = self.digest_mut(partition);
        *digest = digest.without(old).with(new);
    }

    /// The digest of one partition.
    pub(super) fn digest(&self, partition: PartitionId) -> Digest {
        if self.owns(partition) {
            self.digests[self.place_of(partition)]
        } else {
            Digest::default()
        }
    }

    /// The items of this core whose keys have this hash, as far as replicas compare it.
    pub(super) fn with_hash(&self, slab: &Slab, hash: KeyHash) -> impl Iterator<Item = ItemId> {
        let table = self.owns(hash.partition()).then(|| self.table_of(hash));
        table
            .into_iter()
            .flat_map(move |at| self.tables[at].with_hash(slab, hash))
    }

    /// The id of an item, known by the block it is in.
    pub(super) fn id_of(&self, slab: &Slab, item: &ItemBox, block: NonNull<u8>) -> ItemId {
        let hash = item.hash();
        let ids = self.tables[self.table_of(hash)].with_hash(slab, hash);
        let mut ids = ids.filter(|&id| slab[id].is_at(block));
        match ids.next() {
            Some(id) => id,
            None => unreachable!("an item that is in no table"),
        }
    }

    /// Every item of one partition, in no particular order.
    pub(super) fn ids(&self, partition: PartitionId) -> impl Iterator<Item = ItemId> {
        self.tables_of(partition).iter().flat_map(Table::ids)
    }

    /// How many items one partition holds.
    pub(super) fn len(&self, partition: PartitionId) -> usize {
        self.tables_of(partition).iter().map(Table::len).sum()
    }

    /// What tables and digests take.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.table_bytes + self.bytes_fixed()
    }

    /// What they take when empty.
    pub(super) fn bytes_fixed(&self) -> usize {
        malloc_charge(self.tables.len() * size_of::<Table>())
            + malloc_charge(self.digests.len() * size_of::<Digest>())
    }

    /// The tables of one partition; none if another core owns it.
    fn tables_of(&self, partition: PartitionId) -> &[Table] {
        if !self.owns(partition) {
            return &[];
        }
        let first = self.place_of(partition) << self.table_bits;
        &self.tables[first..first + (1 << self.table_bits)]
    }

    fn change_table(&mut self, at: usize, change: impl FnOnce(&mut Table)) {
        let table = &mut self.tables[at];
        let before = table.bytes();
        change(table);
        self.table_bytes = self.table_bytes - before + table.bytes();
    }

    #[inline]
    fn table_of(&self, hash: KeyHash) -> usize {
        debug_assert!(self.owns(hash.partition()), "the partition of another core");
        let mask = (1 << self.table_bits) - 1;
        let within = (hash.0 >> 16 >> (TABLE_BIT_END - self.table_bits)) as usize & mask;
        self.place_of(hash.partition()) << self.table_bits | within
    }

    fn digest_mut(&mut self, partition: PartitionId) -> &mut Digest {
        &mut self.digests[self.place_of(partition)]
    }

    #[inline]
    fn place_of(&self, partition: PartitionId) -> usize {
        partition.index() / self.cores.get()
    }

    fn owns(&self, partition: PartitionId) -> bool {
        partition.core(self.cores) == self.core
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_has_thousands_of_tables_whatever_the_number_of_cores() {
        for count in [1, 2, 3, 7, 64, 1000, CoreCount::MAX] {
            let cores = CoreCount::new(count).unwrap();
            for core in [CoreId::new(0), CoreId::new(count as u16 - 1)] {
                let tables = Partitions::new(cores, core).tables.len();
                assert!(
                    (2048..=4096 + 64).contains(&tables),
                    "{tables} with {count} cores"
                );
            }
        }
    }

    #[test]
    fn every_hash_of_every_core_has_a_table() {
        for count in [1, 3, 64, CoreCount::MAX] {
            let cores = CoreCount::new(count).unwrap();
            for partition in PartitionId::all() {
                let partitions = Partitions::new(cores, partition.core(cores));
                for low in [0, u64::MAX >> 12] {
                    let hash = KeyHash((partition.index() as u64) << 52 | low);
                    assert!(partitions.table_of(hash) < partitions.tables.len());
                }
                if partition.index() > 64 {
                    break;
                }
            }
        }
    }
}
