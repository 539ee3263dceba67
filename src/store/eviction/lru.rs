//! LRU: least recently used. The measure of the others: Mattson, Gecsei, Slutz, Traiger,
//! "Evaluation techniques for storage hierarchies" (IBM Systems Journal, 1970).
//!
//! A hit moves the item to the front, which touches up to four items; the back leaves.
//! One scan over more keys than fit empties the cache of everything else.

use super::super::item::ItemId;
use super::super::list::List;
use super::super::slab::Slab;
use super::Policy;

/// The items, the most recently used first.
#[derive(Default)]
pub(in super::super) struct Lru {
    recent: List,
}

impl Policy for Lru {
    #[inline]
    fn insert(&mut self, slab: &mut Slab, id: ItemId) {
        self.recent.push_front(slab, id);
    }

    #[inline]
    fn access(&mut self, slab: &mut Slab, id: ItemId) {
        if self.recent.front() != Some(id) {
            self.recent.remove(slab, id);
            self.recent.push_front(slab, id);
        }
    }

    fn remove(&mut self, slab: &mut Slab, id: ItemId) {
        self.recent.remove(slab, id);
    }

    fn evict(&mut self, slab: &mut Slab) -> Option<ItemId> {
        let oldest = self.recent.back()?;
        self.recent.remove(slab, oldest);
        Some(oldest)
    }
}
