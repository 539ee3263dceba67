//! SIEVE: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU: an Efficient
//! Turn-Key Eviction Algorithm for Web Caches" (NSDI '24).
//!
//! New items enter at the front. A hand walks from back to front: an item that was used
//! is spared and loses its mark, the first that was not leaves. Unlike CLOCK, what is
//! spared stays where it is, so new items are sieved quickly and popular ones settle.
//!
//! A hit sets one bit, and only if it was clear. The sweep is bounded as `mod.rs` says.

use super::super::item::ItemId;
use super::super::list::List;
use super::super::slab::Slab;
use super::{Policy, SWEEP_MAX};

const VISITED: u8 = 1;

/// The queue and the hand.
pub(in super::super) struct Sieve {
    queue: List,
    /// Where the next sweep begins; at the back if there is none.
    hand: ItemId,
}

impl Default for Sieve {
    fn default() -> Self {
        Self {
            queue: List::default(),
            hand: ItemId::NONE,
        }
    }
}

impl Policy for Sieve {
    #[inline]
    fn insert(&mut self, slab: &mut Slab, id: ItemId) {
        self.queue.push_front(slab, id);
    }

    #[inline]
    fn access(&mut self, slab: &mut Slab, id: ItemId) {
        let item = &mut slab[id];
        if item.state() != VISITED {
            item.set_state(VISITED);
        }
    }

    fn remove(&mut self, slab: &mut Slab, id: ItemId) {
        if self.hand == id {
            self.hand = slab[id].prev();
        }
        self.queue.remove(slab, id);
    }

    fn evict(&mut self, slab: &mut Slab) -> Option<ItemId> {
        let back = self.queue.back()?;
        let mut at = self.hand.some().unwrap_or(back);
        for _ in 0..SWEEP_MAX {
            let item = &mut slab[at];
            if item.state() != VISITED {
                break;
            }
            item.set_state(0);
            at = item.prev().some().unwrap_or(back);
        }
        self.hand = at;
        self.remove(slab, at);
        Some(at)
    }
}
