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
//! This is the one thing that cores share besides mailboxes. Leases stand in [`Page`]s of
//! [`PAGE_LEASES`] places. A place has a *term*, a number that only grows, and a lease is a place
//! and its term at the time: good while that is still the term. Revoking is adding one, after which the
//! place can be given anew at once, for another item: nobody can take the new lease for the
//! old one, since a place whose terms are used up is never given again. Terms stand side by side, so that those of all
//! hot items fit into a reader's nearest caches, and on lines that only the owner writes; what readers write
//! has lines of its own. No core ever waits for another.
//!
//! Who owns what: a copy's bytes are its reader's. A page is made by the owner when it runs out of
//! places, kept for as long as it lives, and freed by whoever has the last lease of it. There are no more than
//! [`LEASES_MAX`] places; when all are given nothing more is lent, and readers go on asking.
//!
//! An owner knows how many hold a lease by a count that its holders make less when they let go
//! of one that is still good. One that ends a lease in that very moment may count too few in the
//! place's next term. Then that lease is taken back though somebody holds it: it is
//! revoked like any other, and the copy is lost for no need, but never wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use hashbrown::HashTable;

use super::item::ItemId;
use crate::hash::splitmix64;

/// How many items of a shard may be lent at once.
pub const LEASES_MAX: usize = 64 << 10;

/// Places of a page.
const PAGE_LEASES: usize = 1024;

/// How many places one sweep looks at: with ten a second, all within some seconds.
const SWEPT_AT_ONCE: usize = 2048;

/// The last term of a place, in which it is never given.
const TERM_MAX: u32 = u32::MAX;

/// One word for each place of a page. Aligned, so that it shares no line, nor a pair of lines
/// that are fetched together, with anything else.
#[derive(Debug)]
#[repr(align(128))]
struct Column<T>([T; PAGE_LEASES]);

/// What the owner of some leases and their holders share. See the module's comment.
#[derive(Debug)]
struct Page {
    /// Written by the owner alone.
    terms: Column<AtomicU32>,
    /// How many hold the lease of this term.
    held: Column<AtomicI32>,
    /// How often it was used, of what holders told.
    uses: Column<AtomicU32>,
}

impl Page {
    fn new() -> Self {
        Self {
            terms: Column(std::array::from_fn(|_| AtomicU32::new(0))),
            held: Column(std::array::from_fn(|_| AtomicI32::new(0))),
            uses: Column(std::array::from_fn(|_| AtomicU32::new(0))),
        }
    }

    /// Ends the lease of a place, and says whether there can be another.
    fn end(&self, place: usize) -> bool {
        let term = &self.terms.0[place];
        // Nobody else writes it.
        let next = term.load(Ordering::Relaxed).saturating_add(1);
        term.store(next, Ordering::Release);
        next < TERM_MAX
    }
}

/// The right to answer from copies of one item. See the module's comment.
#[derive(Debug)]
pub struct Lease {
    page: Arc<Page>,
    term: u32,
    place: u16,
    /// Whether this item answers reads at every level, and not only at ONE: so on a node that
    /// is alone.
    any_level: bool,
}

impl Lease {
    /// Whether the copy may still be read.
    #[inline]
    pub fn is_good(&self) -> bool {
        self.page.terms.0[usize::from(self.place)].load(Ordering::Acquire) == self.term
    }

    /// Whether it may be read for more than one owner's word.
    #[inline]
    pub fn is_for_any_level(&self) -> bool {
        self.any_level
    }

    /// Tells the owner that the item was read, so that it is neither evicted as unused nor
    /// forgotten among the keys used most. Costs a line that others write: readers tell one of
    /// [`HOT_KEYS_SAMPLE`](super::HOT_KEYS_SAMPLE) reads.
    pub fn note_use(&self) {
        self.page.uses.0[usize::from(self.place)].fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_good() {
            self.page.held.0[usize::from(self.place)].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The leases that one shard has given, by item.
#[derive(Debug, Default)]
pub(super) struct Leases {
    pages: Vec<Arc<Page>>,
    /// The item lent in each place of all pages.
    items: Vec<Option<ItemId>>,
    free: Vec<u32>,
    /// The places by item.
    by_item: HashTable<u32>,
    next_swept: usize,
    revoked: u64,
}

fn order(id: ItemId) -> u64 {
    splitmix64(u64::from(id.0))
}

impl Leases {
    /// The lease of an item, which is there; none when too many are given.
    pub(super) fn give(&mut self, id: ItemId, any_level: bool) -> Option<Lease> {
        let known = self.by_item.find(order(id), |&at| self.is_of(at, id));
        let (at, is_new) = match known {
            Some(&at) => (at, false),
            None => (self.free.pop().or_else(|| self.extend())?, true),
        };
        let (page, place) = place_of(&self.pages, at);
        match is_new {
            false => {
                page.held.0[place].fetch_add(1, Ordering::Relaxed);
            }
            true => {
                page.held.0[place].store(1, Ordering::Relaxed);
                page.uses.0[place].store(0, Ordering::Relaxed);
            }
        }
        let lease = Lease {
            page: Arc::clone(page),
            term: page.terms.0[place].load(Ordering::Relaxed),
            place: place as u16,
            any_level,
        };
        if is_new {
            self.items[at as usize] = Some(id);
            let items = &self.items;
            self.by_item
                .insert_unique(order(id), at, |&at| items[at as usize].map_or(0, order));
        }
        Some(lease)
    }

    /// Makes places, and takes one of them.
    #[cold]
    fn extend(&mut self) -> Option<u32> {
        let first = self.items.len();
        if first + PAGE_LEASES > LEASES_MAX {
            return None;
        }
        self.pages.push(Arc::new(Page::new()));
        self.items.resize(first + PAGE_LEASES, None);
        self.free
            .extend((first as u32..self.items.len() as u32).rev());
        self.free.pop()
    }

    fn is_of(&self, at: u32, id: ItemId) -> bool {
        self.items[at as usize] == Some(id)
    }

    /// The item is about to change or to leave.
    #[inline]
    pub(super) fn revoke(&mut self, id: ItemId) {
        if !self.by_item.is_empty() && self.end(id) {
            self.revoked += 1;
        }
    }

    /// Ends the lease of an item, if it has one.
    fn end(&mut self, id: ItemId) -> bool {
        let Self { items, by_item, .. } = self;
        let Ok(entry) = by_item.find_entry(order(id), |&at| items[at as usize] == Some(id)) else {
            return false;
        };
        let (at, _) = entry.remove();
        items[at as usize] = None;
        let (page, place) = place_of(&self.pages, at);
        if page.end(place) {
            self.free.push(at);
        }
        true
    }

    /// All of them end: a store for each, of which there are [`LEASES_MAX`] at most.
    pub(super) fn revoke_all(&mut self) {
        if self.by_item.is_empty() {
            return;
        }
        self.revoked += self.len() as u64;
        self.by_item.clear();
        // In the order in which terms stand, so that each line is fetched once.
        for (at, item) in self.items.iter_mut().enumerate() {
            let (page, place) = place_of(&self.pages, at as u32);
            if item.take().is_some() && page.end(place) {
                self.free.push(at as u32);
            }
        }
    }

    /// Looks at [`SWEPT_AT_ONCE`] places: takes back leases that no reader holds; of the others,
    /// `used` is told how often readers said they were used since the last time.
    pub(super) fn sweep(&mut self, mut used: impl FnMut(ItemId, u32)) {
        let end = (self.next_swept + SWEPT_AT_ONCE).min(self.items.len());
        for at in self.next_swept..end {
            let Some(id) = self.items[at] else {
                continue;
            };
            let (page, place) = place_of(&self.pages, at as u32);
            let is_held = page.held.0[place].load(Ordering::Relaxed) > 0;
            // Readers write this word: who has told nothing costs no write.
            if page.uses.0[place].load(Ordering::Relaxed) > 0 {
                used(id, page.uses.0[place].swap(0, Ordering::Relaxed));
            }
            if !is_held {
                self.end(id);
            }
        }
        self.next_swept = if end == self.items.len() { 0 } else { end };
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

/// Where the place numbered `at` is.
#[inline]
fn place_of(pages: &[Arc<Page>], at: u32) -> (&Arc<Page>, usize) {
    let at = at as usize;
    (&pages[at / PAGE_LEASES], at % PAGE_LEASES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_given_anew_does_not_bring_back_what_it_was_given_for() {
        let mut leases = Leases::default();
        let first = leases.give(ItemId(1), false).unwrap();
        leases.revoke(ItemId(1));
        let second = leases.give(ItemId(2), false).unwrap();
        assert_eq!(first.place, second.place);
        assert_eq!((first.is_good(), second.is_good()), (false, true));
        // Letting go of the old one says nothing of the new one.
        drop(first);
        leases.sweep(|_, _| {});
        assert!(second.is_good());
        drop(second);
        leases.sweep(|_, _| {});
        assert_eq!((leases.len(), leases.revoked()), (0, 1));
    }

    #[test]
    fn a_place_whose_terms_are_used_up_is_never_given_again() {
        let mut leases = Leases::default();
        let old = leases.give(ItemId(1), false).unwrap();
        let term = &old.page.terms.0[usize::from(old.place)];
        term.store(TERM_MAX - 1, Ordering::Relaxed);
        let last = leases.give(ItemId(1), false).unwrap();
        assert!(last.is_good());
        for _ in 0..2 {
            leases.revoke(ItemId(1));
            let next = leases.give(ItemId(1), false).unwrap();
            assert_ne!(next.place, last.place);
            assert_eq!((last.is_good(), next.is_good()), (false, true));
        }
    }

    #[test]
    fn leases_are_bounded_also_where_all_of_them_end_again_and_again() {
        let mut leases = Leases::default();
        let ids = if cfg!(miri) {
            0..2
        } else {
            0..LEASES_MAX as u32
        };
        for _ in 0..3 {
            let given: Vec<_> = ids
                .clone()
                .map(|id| leases.give(ItemId(id), false).unwrap())
                .collect();
            if !cfg!(miri) {
                assert!(leases.give(ItemId(ids.end), false).is_none());
                assert_eq!(leases.pages.len() * PAGE_LEASES, LEASES_MAX);
            }
            leases.revoke_all();
            // Those that are held still are in nobody's way.
            assert!(given.iter().all(|lease| !lease.is_good()));
            assert_eq!((leases.len(), leases.items.len()), (0, leases.free.len()));
        }
    }

    #[test]
    fn a_lease_is_kept_for_as_long_as_one_of_many_holds_it() {
        let mut leases = Leases::default();
        let mut held: Vec<_> = (0..3)
            .map(|_| leases.give(ItemId(1), true).unwrap())
            .collect();
        while held.pop().is_some() {
            leases.sweep(|_, _| {});
            assert_eq!(leases.len(), usize::from(!held.is_empty()));
        }
    }
}
