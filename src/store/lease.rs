//! Leases: what a core gives to others that keep copies of its hot items.
//!
//! Most keys belong to another core than the one a client is connected to, and asking it
//! costs more than all the rest of a small read. So a core may keep copies
//! ([`Copies`](super::Copies)) of items of other cores that its clients read often. A copy
//! comes with the item's [`Lease`], and may be read for as long as that is good.
//!
//! ```text
//!            Shard::lend                     the item changes or leaves, or
//!   no lease ───────────► good, held by ───► what the owner may answer changes ──► revoked
//!      ▲                 │ its readers                                       (for good)
//!      └─────────────────┘ no reader holds it any more (seen by sweep)
//! ```
//!
//! **Invariant.** As long as a lease is good its shard holds the very item it was given for,
//! and its core would answer a read of that key at the lease's level from it, but for
//! expiry, of which the copy knows the time. The owner revokes *before* it changes anything, in
//! the same call ([`Shard`](super::Shard) does for items, the coordinator for views).
//! Whoever has heard of a change, by an answer, by a message or by way of a client, has
//! heard of it after the lease was revoked, and finds it revoked: the store is a release, the
//! load an acquire, and whatever carried the news in between orders the two. So a read
//! from a copy is one that the owner could have answered at the moment the lease was
//! looked at.
//!
//! This is the one thing that cores share besides mailboxes: two words for each item lent, of which one
//! is written once in its life, the other once in many reads. No core ever waits for another.
//!
//! Who owns what: a copy's bytes are its reader's. The lease is shared by the owner's table and
//! all readers, and freed by the last. The table is bounded by [`LEASES_MAX`]; when it is full
//! nothing more is lent, and readers go on asking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hashbrown::HashTable;

use super::item::ItemId;
use crate::hash::splitmix64;

/// How many items of a shard may be lent at once.
pub const LEASES_MAX: usize = 64 << 10;

/// How many places for leases one sweep looks at: with ten a second, all within some seconds.
const SWEPT_AT_ONCE: usize = 2048;

/// The right to answer from copies of one item. See the module's comment.
#[derive(Debug)]
pub struct Lease {
    revoked: AtomicBool,
    /// Whether all leases given with it have ended: one word for all of them, so that ending
    /// tens of thousands takes no longer than ending one.
    term_over: Arc<AtomicBool>,
    /// Whether this item answers reads at every level, and not only at ONE: so on a node that
    /// is alone.
    any_level: bool,
    uses: AtomicU32,
}

impl Lease {
    /// Whether the copy may still be read.
    #[inline]
    pub fn is_good(&self) -> bool {
        !self.revoked.load(Ordering::Acquire) && !self.term_over.load(Ordering::Acquire)
    }

    /// Whether it may be read for more than one owner's word.
    #[inline]
    pub fn is_for_any_level(&self) -> bool {
        self.any_level
    }

    /// Tells the owner that the item was read, so that it is neither evicted as unused nor
    /// forgotten among the keys used most. Costs the owner's cache line: readers tell one of
    /// [`HOT_KEYS_SAMPLE`](super::HOT_KEYS_SAMPLE) reads.
    pub fn note_use(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }
}

/// The leases that one shard has given, by item.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Each in a slot of its own, so that they can be gone through in steps.
    slots: Vec<Option<(ItemId, Arc<Lease>)>>,
    free: Vec<u32>,
    /// The slots by item.
    by_item: HashTable<u32>,
    next_swept: usize,
    term_over: Arc<AtomicBool>,
    /// Those of terms that are over, to be let go in steps.
    ended: Vec<Option<(ItemId, Arc<Lease>)>>,
    revoked: u64,
}

fn place(id: ItemId) -> u64 {
    splitmix64(u64::from(id.0))
}

impl Leases {
    /// The lease of an item, which is there; none when too many are given.
    pub(super) fn give(&mut self, id: ItemId, any_level: bool) -> Option<Arc<Lease>> {
        if let Some(&slot) = self.by_item.find(place(id), |&slot| self.is_of(slot, id)) {
            let (_, lease) = self.slots[slot as usize].as_ref()?;
            return Some(Arc::clone(lease));
        }
        if self.len() == LEASES_MAX {
            return None;
        }
        let lease = Arc::new(Lease {
            revoked: AtomicBool::new(false),
            term_over: Arc::clone(&self.term_over),
            any_level,
            uses: AtomicU32::new(0),
        });
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some((id, Arc::clone(&lease)));
        let slots = &self.slots;
        self.by_item.insert_unique(place(id), slot, |&slot| {
            slots[slot as usize]
                .as_ref()
                .map_or(0, |(id, _)| place(*id))
        });
        Some(lease)
    }

    fn is_of(&self, slot: u32, id: ItemId) -> bool {
        matches!(&self.slots[slot as usize], Some((known, _)) if *known == id)
    }

    /// The item is about to change or to leave.
    #[inline]
    pub(super) fn revoke(&mut self, id: ItemId) {
        if self.by_item.is_empty() {
            return;
        }
        if let Some(lease) = self.take(id) {
            lease.revoke();
            self.revoked += 1;
        }
    }

    fn take(&mut self, id: ItemId) -> Option<Arc<Lease>> {
        let Self { slots, by_item, .. } = self;
        let is_of = |slot: &u32| matches!(&slots[*slot as usize], Some((known, _)) if *known == id);
        let entry = by_item.find_entry(place(id), is_of).ok()?;
        let (slot, _) = entry.remove();
        self.free.push(slot);
        let (_, lease) = self.slots[slot as usize].take()?;
        Some(lease)
    }

    /// All of them end.
    pub(super) fn revoke_all(&mut self) {
        if self.by_item.is_empty() {
            return;
        }
        self.term_over.store(true, Ordering::Release);
        self.term_over = Arc::default();
        self.revoked += self.len() as u64;
        match self.ended.is_empty() {
            true => self.ended = std::mem::take(&mut self.slots),
            // Again within seconds, when there are few.
            false => self.ended.append(&mut self.slots),
        }
        self.free.clear();
        self.by_item.clear();
        self.next_swept = 0;
    }

    /// Looks at [`SWEPT_AT_ONCE`] slots: takes back leases that no reader holds; of the others,
    /// `used` is told how often readers said they were used since the last time.
    pub(super) fn sweep(&mut self, mut used: impl FnMut(ItemId, u32)) {
        let left = self.ended.len().saturating_sub(SWEPT_AT_ONCE);
        self.ended.truncate(left);
        if self.ended.is_empty() {
            self.ended = Vec::new();
        }
        let end = (self.next_swept + SWEPT_AT_ONCE).min(self.slots.len());
        for slot in self.next_swept..end {
            let Some((id, lease)) = &self.slots[slot] else {
                continue;
            };
            let (id, is_held) = (*id, Arc::strong_count(lease) > 1);
            let uses = lease.uses.load(Ordering::Relaxed);
            if uses > 0 {
                // What is added in between is not lost.
                lease.uses.fetch_sub(uses, Ordering::Relaxed);
                used(id, uses);
            }
            if !is_held {
                self.take(id);
            }
        }
        self.next_swept = if end == self.slots.len() { 0 } else { end };
    }

    /// How many are given.
    pub(super) fn len(&self) -> usize {
        self.by_item.len()
    }

    /// How many were revoked.
    pub(super) fn revoked(&self) -> u64 {
        self.revoked
    }
}
