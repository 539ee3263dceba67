//! S3-FIFO: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache
//! eviction" (SOSP '23).
//!
//! New items enter a small queue, a tenth of all; those used more than once by the time
//! they reach its end move to the main queue, the others leave and are remembered in the
//! ghost. An item the ghost remembers enters the main queue at once. The main queue
//! gives an item as many further rounds as it was used, three at most.
//!
//! The ghost is a table of fingerprints in sets of eight; a set forgets its oldest when
//! it is full. Its size is fixed at start, 4 bytes for each item that the main queue of a
//! full shard is expected to hold. A shard that is full with fewer items, because they are
//! large, uses only so many of the sets: a longer ghost is not a better one, what was
//! used twice in a long time would crowd out what is used often. It is never searched
//! beyond one set, and a false match (one in 268 million) merely promotes an item too early.

use std::mem::size_of;

use super::super::item::ItemId;
use super::super::list::List;
use super::super::memory::malloc_charge;
use super::super::slab::Slab;
use super::{Policy, SWEEP_MAX};
use crate::hash::KeyHash;

const USES: u8 = 0b011;
const USES_MAX: u8 = 3;
const IN_MAIN: u8 = 0b100;
/// The small queue aims at one in this many items.
const SMALL_SHARE: usize = 10;

/// How many of so many items are for the main queue.
fn main_share(items: usize) -> usize {
    items - items / SMALL_SHARE
}

/// The two queues and the ghost.
pub(in super::super) struct S3Fifo {
    small: List,
    main: List,
    ghost: Ghost,
}

impl S3Fifo {
    /// For a shard that may hold about `items` items.
    pub(in super::super) fn new(items: usize) -> Self {
        Self {
            small: List::default(),
            main: List::default(),
            ghost: Ghost::new(main_share(items)),
        }
    }

    fn small_is_due(&self) -> bool {
        self.main.is_empty() || self.small.len() * SMALL_SHARE >= self.small.len() + self.main.len()
    }

    fn push_main(&mut self, slab: &mut Slab, id: ItemId, uses: u8) {
        slab[id].set_state(IN_MAIN | uses);
        self.main.push_back(slab, id);
    }

    /// Spares the next candidate if it deserves it; else returns it.
    fn next_victim(&mut self, slab: &mut Slab, spare: bool) -> Option<ItemId> {
        if self.small_is_due()
            && let Some(id) = self.small.front()
        {
            self.small.remove(slab, id);
            if spare && slab[id].state() & USES > 1 {
                self.push_main(slab, id, 0);
                return None;
            }
            let items = self.small.len() + self.main.len();
            self.ghost.fit(main_share(items));
            self.ghost.remember(slab[id].hash());
            return Some(id);
        }
        let id = self.main.front()?;
        self.main.remove(slab, id);
        let uses = slab[id].state() & USES;
        if spare && uses > 0 {
            self.push_main(slab, id, uses - 1);
            return None;
        }
        Some(id)
    }
}

impl Policy for S3Fifo {
    fn insert(&mut self, slab: &mut Slab, id: ItemId) {
        let state = slab[id].state();
        if state & IN_MAIN != 0 || self.ghost.forget(slab[id].hash()) {
            self.push_main(slab, id, state & USES);
        } else {
            self.small.push_back(slab, id);
        }
    }

    #[inline]
    fn access(&mut self, slab: &mut Slab, id: ItemId) {
        let item = &mut slab[id];
        let state = item.state();
        if state & USES < USES_MAX {
            item.set_state(state + 1);
        }
    }

    fn remove(&mut self, slab: &mut Slab, id: ItemId) {
        if slab[id].state() & IN_MAIN != 0 {
            self.main.remove(slab, id);
        } else {
            self.small.remove(slab, id);
        }
    }

    fn evict(&mut self, slab: &mut Slab) -> Option<ItemId> {
        for _ in 0..SWEEP_MAX {
            let victim = self.next_victim(slab, true);
            if victim.is_some() {
                return victim;
            }
        }
        self.next_victim(slab, false)
    }

    fn bytes(&self) -> usize {
        malloc_charge(self.ghost.sets.len() * size_of::<[u32; WAYS]>())
    }
}

const WAYS: usize = 8;
/// At most 2^26 entries: 256 MiB for a shard that has far more than that.
const GHOST_SETS_MAX: usize = 1 << 23;
/// It uses no fewer, if it has them: so few items need no exact ghost.
const GHOST_SETS_USED_MIN: usize = 64;

/// Keys that left the small queue lately.
struct Ghost {
    /// Fingerprints, the latest of a set first; 0 is none.
    sets: Box<[[u32; WAYS]]>,
    /// How many of the sets are in use, from the first.
    used: usize,
}

impl Ghost {
    fn new(entries: usize) -> Self {
        let sets = entries.div_ceil(WAYS).clamp(1, GHOST_SETS_MAX);
        Self {
            sets: vec![[0; WAYS]; sets].into_boxed_slice(),
            used: sets,
        }
    }

    /// Uses as many sets as hold `entries`, give or take a quarter: another number of them gives
    /// the keys other places, so that what is remembered is as good as forgotten.
    fn fit(&mut self, entries: usize) {
        let least = GHOST_SETS_USED_MIN.min(self.sets.len());
        let wanted = entries.div_ceil(WAYS).clamp(least, self.sets.len());
        if wanted.abs_diff(self.used) > self.used / 4 {
            self.used = wanted;
        }
    }

    fn remember(&mut self, hash: KeyHash) {
        let (set, fingerprint) = self.place(hash);
        set.copy_within(0..WAYS - 1, 1);
        set[0] = fingerprint;
    }

    /// Whether `hash` was remembered; it no longer is.
    fn forget(&mut self, hash: KeyHash) -> bool {
        let (set, fingerprint) = self.place(hash);
        let Some(at) = set.iter().position(|&other| other == fingerprint) else {
            return false;
        };
        set.copy_within(at + 1.., at);
        set[WAYS - 1] = 0;
        true
    }

    fn place(&mut self, hash: KeyHash) -> (&mut [u32; WAYS], u32) {
        // Items keep the top 48 bits; a multiplication spreads them over the word.
        let word = (hash.0 >> 16).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // The upper half of the word as a fraction of the sets in use.
        let at = ((word >> 32) * self.used as u64) >> 32;
        (&mut self.sets[at as usize], word as u32 | 1)
    }
}
