//! Doubly linked lists threaded through the items themselves.
//!
//! Every item is in at most one list at a time: its policy's, or the queue of
//! tombstones. All operations are O(1) and allocate nothing.

use super::item::ItemId;
use super::slab::Slab;

/// A list of items; the links are in their headers.
#[derive(Clone, Copy)]
pub(super) struct List {
    front: ItemId,
    back: ItemId,
    len: u32,
}

impl Default for List {
    fn default() -> Self {
        Self {
            front: ItemId::NONE,
            back: ItemId::NONE,
            len: 0,
        }
    }
}

impl List {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(super) fn front(&self) -> Option<ItemId> {
        self.front.some()
    }

    #[inline]
    pub(super) fn back(&self) -> Option<ItemId> {
        self.back.some()
    }

    /// Adds an item that is in no list.
    #[inline]
    pub(super) fn push_front(&mut self, slab: &mut Slab, id: ItemId) {
        let item = &mut slab[id];
        item.set_prev(ItemId::NONE);
        item.set_next(self.front);
        match self.front.some() {
            Some(front) => slab[front].set_prev(id),
            None => self.back = id,
        }
        self.front = id;
        self.len += 1;
    }

    /// Adds an item that is in no list.
    #[inline]
    pub(super) fn push_back(&mut self, slab: &mut Slab, id: ItemId) {
        let item = &mut slab[id];
        item.set_prev(self.back);
        item.set_next(ItemId::NONE);
        match self.back.some() {
            Some(back) => slab[back].set_next(id),
            None => self.front = id,
        }
        self.back = id;
        self.len += 1;
    }

    /// Takes out an item that is in this list.
    #[inline]
    pub(super) fn remove(&mut self, slab: &mut Slab, id: ItemId) {
        let (prev, next) = (slab[id].prev(), slab[id].next());
        match prev.some() {
            Some(prev) => slab[prev].set_next(next),
            None => self.front = next,
        }
        match next.some() {
            Some(next) => slab[next].set_prev(prev),
            None => self.back = prev,
        }
        self.len -= 1;
    }
}
