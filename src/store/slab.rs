//! Where items live: a slab of owning pointers, named by 32-bit ids.
//!
//! Tables and lists hold ids, half the size of pointers and safe to get wrong: a
//! dangling id panics like an index out of bounds, it never reads freed memory.
//!
//! Slots come in chunks of [`CHUNK_SLOTS`] that never move, so growing never
//! copies items' slots. The slab also has the [`Pool`] that items' blocks come from:
//! the slot is the only place where an item's address is, so its block can be moved.
//!
//! A chunk whose last item leaves is given back, except that
//! one with room stays; a slab that was emptied therefore holds at most one chunk.

use std::mem::size_of;
use std::ops::{Index, IndexMut};
use std::ptr::NonNull;
use std::sync::Arc;

use super::item::{ItemBox, ItemId, NewItem};
use super::memory::malloc_charge;
use super::pool::{Pool, Size};

const CHUNK_BITS: u32 = 11;
/// Slots per chunk: 16 KiB of pointers.
pub(super) const CHUNK_SLOTS: usize = 1 << CHUNK_BITS;
const WORDS: usize = CHUNK_SLOTS / 64;
const CHUNK_CHARGE: usize = malloc_charge(size_of::<Chunk>());

struct Chunk {
    slots: [Option<ItemBox>; CHUNK_SLOTS],
    /// One bit per slot, set when the slot is free.
    free: [u64; WORDS],
    free_count: usize,
    /// A word of `free` where a search may well begin.
    hint: usize,
    /// Where this chunk stands in `Slab::open`, while it has a free slot.
    open_at: usize,
}

/// The items of a shard by id.
#[derive(Default)]
pub(super) struct Slab {
    chunks: Vec<Option<Box<Chunk>>>,
    /// Chunks with at least one free slot; the last is filled first.
    open: Vec<u32>,
    /// Places in `chunks` whose chunk was given back.
    vacant: Vec<u32>,
    chunk_count: usize,
    pool: Pool,
}

impl Slab {
    /// Makes an item, which has no name yet.
    pub(super) fn make(&mut self, new: NewItem<'_>) -> ItemBox {
        ItemBox::new(&mut self.pool, new)
    }

    /// Ends an item that was moved out, or never in. Returns its value if it was shared.
    pub(super) fn free(&mut self, item: ItemBox) -> Option<Arc<[u8]>> {
        item.free(&mut self.pool)
    }

    /// Moves `item` in and names it.
    ///
    /// # Panics
    /// When all [`ItemId::LIMIT`] ids are taken; the shard's own bounds are below.
    pub(super) fn insert(&mut self, item: ItemBox) -> ItemId {
        let at = match self.open.last() {
            Some(&at) => at,
            None => self.add_chunk(),
        };
        let chunk = self.chunk_mut(at);
        let slot = chunk.take_free_slot();
        chunk.slots[slot] = Some(item);
        if chunk.free_count == 0 {
            // It is the one we took from the end.
            self.open.pop();
        }
        ItemId(at << CHUNK_BITS | slot as u32)
    }

    /// Moves the item out; its id may be given to another.
    pub(super) fn remove(&mut self, id: ItemId) -> ItemBox {
        let (at, slot) = split(id);
        let position = self.open.len();
        let chunk = self.chunk_mut(at);
        let Some(item) = chunk.slots[slot].take() else {
            dangling(id)
        };
        chunk.free[slot / 64] |= 1 << (slot % 64);
        chunk.hint = slot / 64;
        chunk.free_count += 1;
        let free_count = chunk.free_count;
        if free_count == 1 {
            chunk.open_at = position;
            self.open.push(at);
        }
        if free_count == CHUNK_SLOTS && self.open.len() > 1 {
            self.release(at);
        }
        item
    }

    /// Puts `item` in the place of the item `id`, which is returned.
    pub(super) fn replace(&mut self, id: ItemId, item: ItemBox) -> ItemBox {
        std::mem::replace(&mut self[id], item)
    }

    /// What the slab takes beyond its items' charges, unused blocks of theirs included.
    pub(super) fn bytes(&self) -> usize {
        self.pool.bytes()
            + self.chunk_count * CHUNK_CHARGE
            + malloc_charge(self.chunks.capacity() * size_of::<Option<Box<Chunk>>>())
            + malloc_charge(self.open.capacity() * size_of::<u32>())
            + malloc_charge(self.vacant.capacity() * size_of::<u32>())
    }

    /// What a slab of a single item takes.
    pub(super) const fn bytes_min() -> usize {
        CHUNK_CHARGE + 3 * malloc_charge(64) + Pool::bytes_min()
    }

    /// What of it, and of its items' charges, comes by the page and not from malloc.
    pub(super) fn page_bytes(&self) -> usize {
        self.pool.page_bytes()
    }

    /// Gives memory back that no item uses, if there is any; `id_of` finds the id of an item
    /// by the block it is in. Moves a page of items at most. Whether it did.
    pub(super) fn shrink(
        &mut self,
        id_of: impl Fn(&Self, &ItemBox, NonNull<u8>) -> ItemId,
    ) -> bool {
        if self.pool.give_back_spare() {
            return true;
        }
        let size = self.pool.sparse();
        size.inspect(|&size| self.evacuate(size, id_of)).is_some()
    }

    /// The same, if much of what is used for items of some size is unused.
    pub(super) fn tidy(&mut self, id_of: impl Fn(&Self, &ItemBox, NonNull<u8>) -> ItemId) {
        if let Some(size) = self.pool.wasteful() {
            self.evacuate(size, id_of);
        }
    }

    #[cold]
    fn evacuate(&mut self, size: Size, id_of: impl Fn(&Self, &ItemBox, NonNull<u8>) -> ItemId) {
        let evacuation = self.pool.begin_evacuation(size);
        for &block in &evacuation.used {
            // SAFETY: a block in use holds an item; nothing changes it before it is copied.
            let id = id_of(self, &unsafe { ItemBox::at(block) }, block);
            // SAFETY: as above.
            let copy = unsafe { self.pool.copy_out(size, block) };
            // SAFETY: the copy of an item, whose original is not used any more: the slot,
            // which held its only address, gets that of the copy.
            self[id] = unsafe { ItemBox::at(copy) };
        }
        // SAFETY: every block in use was copied, and its slot points to the copy.
        unsafe { self.pool.end_evacuation(evacuation) };
    }

    fn add_chunk(&mut self) -> u32 {
        let at = match self.vacant.pop() {
            Some(at) => at,
            None => {
                assert!(self.chunks.len() < (ItemId::LIMIT >> CHUNK_BITS) as usize);
                self.chunks.push(None);
                (self.chunks.len() - 1) as u32
            }
        };
        self.chunks[at as usize] = Some(Box::new(Chunk {
            slots: [const { None }; CHUNK_SLOTS],
            free: [u64::MAX; WORDS],
            free_count: CHUNK_SLOTS,
            hint: 0,
            open_at: self.open.len(),
        }));
        self.open.push(at);
        self.chunk_count += 1;
        at
    }

    fn release(&mut self, at: u32) {
        let position = self.chunk_mut(at).open_at;
        self.open.swap_remove(position);
        if let Some(&moved) = self.open.get(position) {
            self.chunk_mut(moved).open_at = position;
        }
        self.chunks[at as usize] = None;
        self.vacant.push(at);
        self.chunk_count -= 1;
    }

    fn chunk_mut(&mut self, at: u32) -> &mut Chunk {
        match &mut self.chunks[at as usize] {
            Some(chunk) => chunk,
            None => dangling(ItemId(at << CHUNK_BITS)),
        }
    }
}

impl Chunk {
    /// Takes a free slot. The caller knows there is one.
    fn take_free_slot(&mut self) -> usize {
        let word = if self.free[self.hint] != 0 {
            self.hint
        } else {
            self.free.iter().position(|&word| word != 0).unwrap_or(0)
        };
        let slot = word * 64 + self.free[word].trailing_zeros() as usize;
        self.free[word] &= self.free[word] - 1;
        self.free_count -= 1;
        self.hint = word;
        slot
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let chunks = std::mem::take(&mut self.chunks);
        for item in chunks
            .into_iter()
            .flatten()
            .flat_map(|chunk| chunk.slots)
            .flatten()
        {
            item.free(&mut self.pool);
        }
    }
}

impl Index<ItemId> for Slab {
    type Output = ItemBox;

    #[inline]
    fn index(&self, id: ItemId) -> &ItemBox {
        let (at, slot) = split(id);
        match &self.chunks[at as usize] {
            Some(chunk) => match &chunk.slots[slot] {
                Some(item) => item,
                None => dangling(id),
            },
            None => dangling(id),
        }
    }
}

impl IndexMut<ItemId> for Slab {
    #[inline]
    fn index_mut(&mut self, id: ItemId) -> &mut ItemBox {
        let (at, slot) = split(id);
        match &mut self.chunk_mut(at).slots[slot] {
            Some(item) => item,
            None => dangling(id),
        }
    }
}

#[inline]
fn split(id: ItemId) -> (u32, usize) {
    (id.0 >> CHUNK_BITS, id.0 as usize % CHUNK_SLOTS)
}

#[cold]
fn dangling(id: ItemId) -> ! {
    unreachable!("no item {}", id.0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::item::{Body, NewItem};
    use super::super::pool::SPARE_BYTES_MAX;
    use super::*;
    use crate::clock::{Origin, UnixMs, Version};

    pub(in super::super) fn add(
        slab: &mut Slab,
        number: u64,
        expires_at: Option<UnixMs>,
    ) -> ItemId {
        let item = item(slab, number, expires_at);
        slab.insert(item)
    }

    fn item(slab: &mut Slab, number: u64, expires_at: Option<UnixMs>) -> ItemBox {
        let key = number.to_le_bytes();
        slab.make(NewItem {
            key: &key,
            version: Version::default(),
            origin: Origin(0),
            expires_at,
            body: Body::Inline(b""),
        })
    }

    /// Under Miri every access is checked and slow.
    const ITEMS: u64 = if cfg!(miri) { 5_000 } else { 50_000 };

    #[test]
    fn ids_stay_good_while_others_come_and_go() {
        let mut slab = Slab::default();
        let ids: Vec<_> = (0..ITEMS).map(|n| add(&mut slab, n, None)).collect();
        for &id in ids.iter().skip(1).step_by(2) {
            let item = slab.remove(id);
            slab.free(item);
        }
        let again: Vec<_> = (0..ITEMS / 2)
            .map(|n| add(&mut slab, n + ITEMS, None))
            .collect();
        for (n, &id) in ids.iter().enumerate().step_by(2) {
            assert_eq!(slab[id].key(), (n as u64).to_le_bytes());
        }
        for (n, &id) in again.iter().enumerate() {
            assert_eq!(slab[id].key(), (n as u64 + ITEMS).to_le_bytes());
        }
        assert_eq!(
            slab.chunk_count,
            ITEMS.div_ceil(CHUNK_SLOTS as u64) as usize,
            "no hole unused"
        );
    }

    #[test]
    fn an_emptied_slab_keeps_one_chunk_at_most() {
        let mut slab = Slab::default();
        for order in 0..3 {
            let mut ids: Vec<_> = (0..ITEMS).map(|n| add(&mut slab, n, None)).collect();
            match order {
                0 => {}
                1 => ids.reverse(),
                // 7919 is prime to the number of items: every id once, scattered.
                _ => ids = (0..ids.len()).map(|n| ids[n * 7919 % ids.len()]).collect(),
            }
            for id in ids {
                let item = slab.remove(id);
                slab.free(item);
            }
            assert_eq!(slab.chunk_count, 1);
        }
        let vectors = 3 * malloc_charge(64 + 16 * ITEMS as usize / CHUNK_SLOTS);
        let pool = SPARE_BYTES_MAX + (16 << 10);
        assert!(slab.bytes() <= CHUNK_CHARGE + vectors + pool);
    }

    #[test]
    fn a_replaced_item_keeps_its_id() {
        let mut slab = Slab::default();
        let id = add(&mut slab, 1, None);
        let new = item(&mut slab, 2, Some(UnixMs(5)));
        let old = slab.replace(id, new);
        assert_eq!(old.key(), 1_u64.to_le_bytes());
        assert_eq!(slab[id].key(), 2_u64.to_le_bytes());
    }

    #[test]
    #[should_panic = "no item"]
    fn a_dangling_id_is_caught() {
        let mut slab = Slab::default();
        let id = add(&mut slab, 1, None);
        add(&mut slab, 2, None);
        slab.remove(id);
        let _ = &slab[id];
    }
}
