//! CLOCK: Corbató, "A Paging Experiment with the Multics System" (MIT, 1968).
//!
//! Items stand in a ring; a hand goes round. An item that was used since the hand last
//! passed is spared and loses its mark, the first that was not leaves; new items enter
//! just behind the hand. The ring is cut at the hand and kept as a queue: the front is
//! under the hand, and moving the hand on moves the front to the back.
//!
//! A hit sets one bit, and only if it was clear. The sweep is bounded as `mod.rs` says.

use super::super::item::ItemId;
use super::super::list::List;
use super::super::slab::Slab;
use super::{Policy, SWEEP_MAX};

const REFERENCED: u8 = 1;

/// The ring, cut at the hand.
#[derive(Default)]
pub(in super::super) struct Clock {
    ring: List,
}

impl Policy for Clock {
    #[inline]
    fn insert(&mut self, slab: &mut Slab, id: ItemId) {
        self.ring.push_back(slab, id);
    }

    #[inline]
    fn access(&mut self, slab: &mut Slab, id: ItemId) {
        let item = &mut slab[id];
        if item.state() != REFERENCED {
            item.set_state(REFERENCED);
        }
    }

    fn remove(&mut self, slab: &mut Slab, id: ItemId) {
        self.ring.remove(slab, id);
    }

    fn evict(&mut self, slab: &mut Slab) -> Option<ItemId> {
        for _ in 0..SWEEP_MAX {
            let hand = self.ring.front()?;
            if slab[hand].state() != REFERENCED {
                break;
            }
            slab[hand].set_state(0);
            self.ring.remove(slab, hand);
            self.ring.push_back(slab, hand);
        }
        let hand = self.ring.front()?;
        self.ring.remove(slab, hand);
        Some(hand)
    }
}
