//! LFU: least frequently used, by the constant-time scheme of Shah, Mitra, Matani, "An
//! O(1) algorithm for implementing the LFU cache eviction scheme" (2010).
//!
//! One list per use count. A hit moves the item to the next list; the oldest item of the
//! lowest list in use leaves. The paper's list of lists grows; ours is an array, because
//! counts are 8 bits and stop at 255. From there on the last list is an LRU list.
//!
//! Counts never decay: what was popular once stays until its peers catch up. That is
//! LFU; those who mind choose another policy.

use std::mem::size_of;

use super::super::item::ItemId;
use super::super::list::List;
use super::super::memory::malloc_charge;
use super::super::slab::Slab;
use super::Policy;

const COUNTS: usize = 256;

/// The items by how often they were used.
pub(in super::super) struct Lfu {
    /// Indexed by count, the least recently used first. A new item has count 1.
    lists: Box<[List; COUNTS]>,
    /// One bit per list, set when it has items.
    occupied: [u64; COUNTS / 64],
}

impl Default for Lfu {
    fn default() -> Self {
        Self {
            lists: Box::new([List::default(); COUNTS]),
            occupied: [0; COUNTS / 64],
        }
    }
}

impl Lfu {
    fn push(&mut self, slab: &mut Slab, id: ItemId) {
        let count = usize::from(slab[id].state());
        self.lists[count].push_back(slab, id);
        self.occupied[count / 64] |= 1 << (count % 64);
    }

    fn least_used(&self) -> Option<ItemId> {
        let word = self.occupied.iter().position(|&word| word != 0)?;
        self.lists[word * 64 + self.occupied[word].trailing_zeros() as usize].front()
    }
}

impl Policy for Lfu {
    fn insert(&mut self, slab: &mut Slab, id: ItemId) {
        let item = &mut slab[id];
        item.set_state(item.state().max(1));
        self.push(slab, id);
    }

    fn access(&mut self, slab: &mut Slab, id: ItemId) {
        self.remove(slab, id);
        let item = &mut slab[id];
        item.set_state(item.state().saturating_add(1));
        self.push(slab, id);
    }

    fn remove(&mut self, slab: &mut Slab, id: ItemId) {
        let count = usize::from(slab[id].state());
        self.lists[count].remove(slab, id);
        if self.lists[count].is_empty() {
            self.occupied[count / 64] &= !(1 << (count % 64));
        }
    }

    fn evict(&mut self, slab: &mut Slab) -> Option<ItemId> {
        let id = self.least_used()?;
        self.remove(slab, id);
        Some(id)
    }

    fn bytes(&self) -> usize {
        malloc_charge(size_of::<[List; COUNTS]>())
    }
}
