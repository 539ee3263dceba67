//! Blocks for items: pages of one size each, from the system itself.
//!
//! malloc adds 8 bytes to a block and rounds to 16, 15 bytes on an item of a hundred; and when
//! sizes drift it keeps the holes that items leave, since it cannot move what lies between
//! them. Here a block takes what was asked for, rounded, and nothing beside it, and moves.
//!
//! ```text
//!   Pool ── regions (256 pages of address space) ── pages ── blocks of one size
//!
//!                 take              last block freed
//!   idle page ──────────► of a size ────────────────► spare ──► idle
//!                              │                        │        (memory given back
//!                              └──── evacuated ─────────┘         to the system)
//! ```
//!
//! | [`Kind`] | blocks                     | rounded to                            | pages   |
//! |----------|----------------------------|---------------------------------------|---------|
//! | small    | to 512 bytes               | 4 bytes, 16 above 256                 | 16 KiB  |
//! | large    | to [`BLOCK_BYTES_MAX`]     | an even share of the page: 5 % more on average, 14 % at most | 128 KiB |
//!
//! * Address space is kept until the pool ends; memory is not: a page that is idle takes
//!   none. A few empty pages are spare, so that a size that comes and goes costs no calls.
//! * What the pool holds is counted by the page, unused blocks included, and that is
//!   what it takes of the system's memory, except where that hands out huge pages.
//! * Sizes drift: a page stays taken while one block of it is in use. When as many blocks
//!   of a size are free as a page has, one page of it can be *evacuated*: its items move
//!   to other pages, at most one page of them at a time. The shard does so when it needs
//!   room, and without need when a quarter of a size's blocks and a page more lie unused. Less than a page
//!   of each size may stay unused: 5 MiB of a shard that has items of all large sizes.
//!
//! A region begins with its number, in a page that has no blocks, and is aligned to its
//! size: so a block's address and size tell its page, and that first line of each region is
//! one the processor has at hand. What is known of pages is outside of them, in [`Page`],
//! but for the chain of free blocks, which runs through their first two bytes.

use std::alloc::{Layout, handle_alloc_error};
use std::mem::size_of;
use std::ptr::NonNull;

use super::memory::malloc_charge;

/// What every block is aligned to. One of a size that is a multiple of 8 is aligned to 8.
pub(super) const BLOCK_ALIGN: usize = FINE_STEP;
/// Up to here sizes go in steps of 4, above in steps of 16.
const FINE_BYTES_MAX: usize = 256;
const FINE_STEP: usize = 4;
const COARSE_STEP: usize = 16;
const FINE_SIZES: usize = FINE_BYTES_MAX / FINE_STEP;
/// The largest small block.
const SMALL_BYTES_MAX: usize = 512;
const SMALL_SIZES: usize = FINE_SIZES + (SMALL_BYTES_MAX - FINE_BYTES_MAX) / COARSE_STEP + 1;
/// What large blocks are rounded to, so that an Arc can be in each.
const LARGE_STEP: usize = 8;
/// The largest block: a page has 7 of them.
pub(super) const BLOCK_BYTES_MAX: usize = blocks_bytes(LARGE_BLOCKS_MIN);
const LARGE_BLOCKS_MIN: usize = 7;
const LARGE_SIZES: usize = large_size(SMALL_BYTES_MAX + 1) + 1;
const SIZES: usize = SMALL_SIZES + LARGE_SIZES;

/// Where blocks begin, so that no block is at 0, which stands for none.
const PAGE_HEAD_BYTES: usize = 8;
/// Offsets in pages are kept in units of this.
const OFFSET_UNIT: usize = FINE_STEP;
const REGION_PAGES: usize = if cfg!(miri) { 16 } else { 256 };
/// What of a region's first page is in memory.
const REGION_HEAD_BYTES: usize = 4096;
/// What is kept of empty pages.
#[cfg(test)]
pub(super) const SPARE_BYTES_MAX: usize = Kind::Small.spare_pages_max() * Kind::Small.page_bytes()
    + Kind::Large.spare_pages_max() * Kind::Large.page_bytes();
/// A size is wasteful when more than one in this many of its blocks is free.
const WASTE_SHARE: usize = 4;
/// How many pages are looked at to find an emptier one.
const CANDIDATES_MAX: usize = 16;

const NONE: u32 = u32::MAX;

/// A set of sizes.
type Sizes = u128;

// A set has room for all of them, and an offset in a page fits 16 bits.
const _: () = assert!(SIZES <= Sizes::BITS as usize);
const _: () = assert!(Kind::Large.page_bytes() / OFFSET_UNIT <= u16::MAX as usize);

/// What a block for `bytes` takes; they are at most [`BLOCK_BYTES_MAX`].
#[inline]
pub(super) const fn block_bytes(bytes: usize) -> usize {
    if bytes <= FINE_BYTES_MAX {
        bytes.next_multiple_of(FINE_STEP)
    } else if bytes <= SMALL_BYTES_MAX {
        bytes.next_multiple_of(COARSE_STEP)
    } else {
        blocks_bytes(blocks_of(bytes))
    }
}

/// How many blocks for `bytes` a page for large ones has: as many as fit, in numbers with
/// four significant bits.
#[inline]
const fn blocks_of(bytes: usize) -> usize {
    let fit = (Kind::Large.page_bytes() - PAGE_HEAD_BYTES) / bytes.next_multiple_of(LARGE_STEP);
    let dropped = fit.ilog2().saturating_sub(3);
    fit >> dropped << dropped
}

/// What each of so many blocks takes in a page for large ones.
#[inline]
const fn blocks_bytes(blocks: usize) -> usize {
    (Kind::Large.page_bytes() - PAGE_HEAD_BYTES) / blocks / LARGE_STEP * LARGE_STEP
}

/// The place of a large size among them: the largest first, eight for each power of two.
#[inline]
const fn large_size(bytes: usize) -> usize {
    let blocks = blocks_of(bytes);
    let dropped = blocks.ilog2().saturating_sub(3) as usize;
    (blocks >> dropped) + 8 * dropped - LARGE_BLOCKS_MIN
}

/// What pages are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Small,
    Large,
}

impl Kind {
    /// Pages are aligned to their size.
    #[inline]
    const fn page_bytes(self) -> usize {
        match self {
            Self::Small => 16 * 1024,
            Self::Large => 128 * 1024,
        }
    }

    #[inline]
    const fn region_bytes(self) -> usize {
        REGION_PAGES * self.page_bytes()
    }

    /// How many empty pages are kept in memory.
    const fn spare_pages_max(self) -> usize {
        match self {
            Self::Small => 8,
            Self::Large => 2,
        }
    }
}

/// One of the sizes that blocks have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(u8);

impl Size {
    /// The size of blocks for so many bytes, which are at most [`BLOCK_BYTES_MAX`].
    #[inline]
    fn of(bytes: usize) -> Self {
        debug_assert!(0 < bytes && bytes <= BLOCK_BYTES_MAX);
        Self(if bytes <= FINE_BYTES_MAX {
            bytes.div_ceil(FINE_STEP)
        } else if bytes <= SMALL_BYTES_MAX {
            FINE_SIZES + (bytes - FINE_BYTES_MAX).div_ceil(COARSE_STEP)
        } else {
            SMALL_SIZES + large_size(bytes)
        } as u8)
    }

    #[inline]
    fn index(self) -> usize {
        usize::from(self.0)
    }

    #[inline]
    fn kind(self) -> Kind {
        if self.index() < SMALL_SIZES {
            Kind::Small
        } else {
            Kind::Large
        }
    }

    #[inline]
    fn bytes(self) -> usize {
        MEASURES[self.index()].bytes as usize
    }

    /// How many blocks a page of this size has.
    #[inline]
    fn blocks(self) -> usize {
        usize::from(MEASURES[self.index()].blocks)
    }
}

/// What blocks of a size take, and how many of them a page has.
#[derive(Clone, Copy)]
struct Measure {
    bytes: u32,
    blocks: u16,
}

/// By the index of the size. That of 0 is not used.
static MEASURES: [Measure; SIZES] = {
    let nothing = Measure {
        bytes: 0,
        blocks: 0,
    };
    let mut measures = [nothing; SIZES];
    let mut index = 1;
    while index < SIZES {
        measures[index] = measure(index);
        index += 1;
    }
    measures
};

const fn measure(index: usize) -> Measure {
    let (bytes, blocks) = if index < SMALL_SIZES {
        let bytes = if index <= FINE_SIZES {
            index * FINE_STEP
        } else {
            FINE_BYTES_MAX + (index - FINE_SIZES) * COARSE_STEP
        };
        (bytes, (Kind::Small.page_bytes() - PAGE_HEAD_BYTES) / bytes)
    } else {
        let number = index - SMALL_SIZES + LARGE_BLOCKS_MIN;
        let dropped = (number / 8).saturating_sub(1);
        let blocks = (number - 8 * dropped) << dropped;
        (blocks_bytes(blocks), blocks)
    };
    Measure {
        bytes: bytes as u32,
        blocks: blocks as u16,
    }
}

/// What the start of a region takes, and what is known of its pages.
const REGION_CHARGE: usize = REGION_HEAD_BYTES + malloc_charge(REGION_PAGES * size_of::<Page>());

/// What is known of a page. Pages are chained: those of a size with room; of each kind those
/// that are spare, and those that are idle.
struct Page {
    prev: u32,
    next: u32,
    size: Size,
    /// Blocks in use.
    used: u16,
    /// Where the blocks begin that were never in use, in units of [`OFFSET_UNIT`].
    untouched: u16,
    /// Where the first free block is, in the same units; 0 for none.
    free: u16,
}

const NEW_PAGE: Page = Page {
    prev: NONE,
    next: NONE,
    size: Size(0),
    used: 0,
    untouched: 0,
    free: 0,
};

/// All pages of one size.
#[derive(Clone, Copy)]
struct Pages {
    /// The first page with room.
    open: u32,
    count: u32,
    blocks_free: u32,
}

/// Pages of one kind that have no size.
#[derive(Clone, Copy)]
struct Empty {
    idle: u32,
    spare: u32,
    spare_count: usize,
}

/// The blocks of one shard.
pub(super) struct Pool {
    regions: Vec<Region>,
    sizes: [Pages; SIZES],
    /// The sizes of which a page can be evacuated.
    sparse: Sizes,
    /// Those of them of which one should be.
    wasteful: Sizes,
    /// By kind.
    empty: [Empty; 2],
    /// What pages take that are of a size or spare.
    page_bytes: usize,
    blocks_bytes: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            regions: Vec::new(),
            sizes: [Pages {
                open: NONE,
                count: 0,
                blocks_free: 0,
            }; SIZES],
            sparse: 0,
            wasteful: 0,
            empty: [Empty {
                idle: NONE,
                spare: NONE,
                spare_count: 0,
            }; 2],
            page_bytes: 0,
            blocks_bytes: 0,
        }
    }
}

impl Pool {
    /// A block of `bytes` bytes, aligned to [`BLOCK_ALIGN`]; they are at most [`BLOCK_BYTES_MAX`].
    pub(super) fn take(&mut self, bytes: usize) -> NonNull<u8> {
        self.take_of(Size::of(bytes))
    }

    fn take_of(&mut self, size: Size) -> NonNull<u8> {
        let at = match self.sizes[size.index()].open {
            NONE => self.open_page(size),
            open => open,
        };
        let base = self.base(at);
        let page = self.page_mut(at);
        let offset = match page.free {
            0 => {
                let untouched = page.untouched;
                page.untouched += (size.bytes() / OFFSET_UNIT) as u16;
                untouched
            }
            free => free,
        };
        // SAFETY: `offset` is that of a block of this page, which is in memory.
        let block = unsafe { base.add(usize::from(offset) * OFFSET_UNIT) };
        if page.free != 0 {
            // SAFETY: a free block begins with the offset of the next; it is aligned to 4
            // and nobody else's.
            page.free = unsafe { block.cast::<u16>().read() };
        }
        page.used += 1;
        let full = usize::from(page.used) == size.blocks();
        if full {
            let open = self.sizes[size.index()].open;
            self.sizes[size.index()].open = self.unchain(open, at);
        }
        self.sizes[size.index()].blocks_free -= 1;
        self.blocks_bytes += size.bytes();
        self.judge(size);
        block
    }

    /// Gives a block of `bytes` bytes back.
    ///
    /// # Safety
    ///
    /// It came from [`Pool::take`] of this pool for as many bytes, was not given back yet,
    /// and is not used any more.
    pub(super) unsafe fn give(&mut self, block: NonNull<u8>, bytes: usize) {
        let size = Size::of(bytes);
        let kind = size.kind();
        let within = block.addr().get() % kind.region_bytes();
        // SAFETY: a block lies in a region of its kind, so many bytes from its start, which is
        // its number.
        let region = unsafe { block.sub(within).cast::<u32>().read() };
        let at = region * REGION_PAGES as u32 + (within / kind.page_bytes()) as u32;
        let offset = within % kind.page_bytes() / OFFSET_UNIT;
        let page = self.page_mut(at);
        // SAFETY: the block is not in use any more, has 4 bytes at least and is aligned to 4.
        unsafe { block.cast::<u16>().write(page.free) };
        page.free = offset as u16;
        let was_full = usize::from(page.used) == size.blocks();
        page.used -= 1;
        let empty = page.used == 0;
        if was_full {
            let open = self.sizes[size.index()].open;
            self.sizes[size.index()].open = self.chain(open, at);
        }
        self.sizes[size.index()].blocks_free += 1;
        self.blocks_bytes -= size.bytes();
        if empty {
            let open = self.sizes[size.index()].open;
            self.sizes[size.index()].open = self.unchain(open, at);
            self.close_page(at);
        }
        self.judge(size);
    }

    /// What the pool takes beyond the blocks in use.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.page_bytes - self.blocks_bytes
            + self.regions.len() * REGION_CHARGE
            + malloc_charge(self.regions.capacity() * size_of::<Region>())
    }

    /// What a pool of a single block takes beyond it, at most.
    pub(super) const fn bytes_min() -> usize {
        Kind::Large.page_bytes() + 2 * REGION_CHARGE + malloc_charge(4 * size_of::<Region>())
    }

    /// What it takes of the system, by the page.
    #[inline]
    pub(super) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Gives a spare page back to the system; whether there was one.
    pub(super) fn give_back_spare(&mut self) -> bool {
        let kinds = [Kind::Large, Kind::Small];
        let has_spare = |kind: &Kind| self.empty[*kind as usize].spare != NONE;
        let Some(kind) = kinds.into_iter().find(has_spare) else {
            return false;
        };
        let at = self.take_spare(kind);
        self.give_back(kind, at);
        true
    }

    /// Takes the first spare page of a kind that has one.
    fn take_spare(&mut self, kind: Kind) -> u32 {
        let at = self.empty[kind as usize].spare;
        self.empty[kind as usize].spare = self.unchain(at, at);
        self.empty[kind as usize].spare_count -= 1;
        at
    }

    /// Gives a page that is in no chain back to the system.
    fn give_back(&mut self, kind: Kind, at: u32) {
        give_back(self.base(at), kind.page_bytes());
        self.page_bytes -= kind.page_bytes();
        let idle = self.empty[kind as usize].idle;
        self.empty[kind as usize].idle = self.chain(idle, at);
    }

    /// A size of which a page can be evacuated.
    pub(super) fn sparse(&self) -> Option<Size> {
        first_of(self.sparse)
    }

    /// A size of which a page should be evacuated.
    #[inline]
    pub(super) fn wasteful(&self) -> Option<Size> {
        first_of(self.wasteful)
    }

    /// Begins to evacuate a page of a size that is [`Pool::sparse`]; tells which of its
    /// blocks are in use.
    pub(super) fn begin_evacuation(&mut self, size: Size) -> Evacuation {
        let open = self.sizes[size.index()].open;
        let (mut at, mut next) = (open, open);
        for _ in 0..CANDIDATES_MAX {
            if next == NONE {
                break;
            }
            let page = self.page(next);
            if page.used < self.page(at).used {
                at = next;
            }
            next = page.next;
        }
        self.sizes[size.index()].open = self.unchain(open, at);
        let (base, page) = (self.base(at), self.page(at));
        // SAFETY: for offsets of blocks of this page.
        let block_at = |offset: usize| unsafe { base.add(offset * OFFSET_UNIT) };
        let mut is_free = [0_u64; Kind::Large.page_bytes() / OFFSET_UNIT / 64];
        let mut free = usize::from(page.free);
        while free != 0 {
            is_free[free / 64] |= 1 << (free % 64);
            // SAFETY: a free block of a page in memory begins with the offset of the next.
            free = usize::from(unsafe { block_at(free).cast::<u16>().read() });
        }
        let blocks = PAGE_HEAD_BYTES / OFFSET_UNIT..usize::from(page.untouched);
        let used = blocks
            .step_by(size.bytes() / OFFSET_UNIT)
            .filter(|at| is_free[at / 64] >> (at % 64) & 1 == 0)
            .map(block_at)
            .collect();
        Evacuation { at, size, used }
    }

    /// Copies a block that is evacuated to another page.
    ///
    /// # Safety
    ///
    /// It is in use and stays unchanged until the evacuation ends.
    pub(super) unsafe fn copy_out(&mut self, size: Size, block: NonNull<u8>) -> NonNull<u8> {
        let copy = self.take_of(size);
        // SAFETY: two different blocks of this size: the caller says the one is in use,
        // the other was free.
        unsafe { block.copy_to_nonoverlapping(copy, size.bytes()) };
        copy
    }

    /// Ends an evacuation.
    ///
    /// # Safety
    ///
    /// All blocks that were in use have been copied, and nothing points at them any more.
    pub(super) unsafe fn end_evacuation(&mut self, evacuation: Evacuation) {
        let Evacuation { at, size, .. } = evacuation;
        let used = std::mem::take(&mut self.page_mut(at).used);
        self.sizes[size.index()].blocks_free += u32::from(used);
        self.blocks_bytes -= usize::from(used) * size.bytes();
        self.close_page(at);
        self.judge(size);
    }

    /// Takes a page for blocks of this size.
    #[cold]
    fn open_page(&mut self, size: Size) -> u32 {
        let kind = size.kind();
        let at = if self.empty[kind as usize].spare != NONE {
            self.take_spare(kind)
        } else {
            if self.empty[kind as usize].idle == NONE {
                self.add_region(kind);
            }
            let at = self.empty[kind as usize].idle;
            self.empty[kind as usize].idle = self.unchain(at, at);
            self.page_bytes += kind.page_bytes();
            at
        };
        let page = self.page_mut(at);
        page.size = size;
        page.untouched = (PAGE_HEAD_BYTES / OFFSET_UNIT) as u16;
        page.free = 0;
        let pages = &mut self.sizes[size.index()];
        pages.count += 1;
        pages.blocks_free += size.blocks() as u32;
        let open = pages.open;
        self.sizes[size.index()].open = self.chain(open, at);
        at
    }

    /// Takes back a page that is in no chain and has no block in use.
    #[cold]
    fn close_page(&mut self, at: u32) {
        let size = self.page(at).size;
        let pages = &mut self.sizes[size.index()];
        pages.count -= 1;
        pages.blocks_free -= size.blocks() as u32;
        let kind = size.kind();
        let Empty {
            spare, spare_count, ..
        } = self.empty[kind as usize];
        if spare_count < kind.spare_pages_max() {
            self.empty[kind as usize].spare = self.chain(spare, at);
            self.empty[kind as usize].spare_count += 1;
        } else {
            self.give_back(kind, at);
        }
    }

    fn add_region(&mut self, kind: Kind) {
        let number = self.regions.len() as u32;
        let region = Region::new(kind);
        // SAFETY: a region is aligned, and nothing else is written to its first page.
        unsafe { region.start.cast::<u32>().write(number) };
        self.regions.push(region);
        let first = number * REGION_PAGES as u32;
        for at in (first + 1..first + REGION_PAGES as u32).rev() {
            let idle = self.empty[kind as usize].idle;
            self.empty[kind as usize].idle = self.chain(idle, at);
        }
    }

    /// Notes whether pages of this size can or should be evacuated.
    #[inline]
    fn judge(&mut self, size: Size) {
        let pages = &self.sizes[size.index()];
        let (free, blocks) = (pages.blocks_free as usize, size.blocks());
        let bit = 1 << size.0;
        let mark = |set: Sizes, is: bool| if is { set | bit } else { set & !bit };
        self.sparse = mark(self.sparse, free >= blocks);
        let all = pages.count as usize * blocks;
        self.wasteful = mark(self.wasteful, free >= blocks + all / WASTE_SHARE);
    }

    /// Puts a page before the first of a chain; returns the new first.
    fn chain(&mut self, first: u32, at: u32) -> u32 {
        if first != NONE {
            self.page_mut(first).prev = at;
        }
        let page = self.page_mut(at);
        (page.prev, page.next) = (NONE, first);
        at
    }

    /// Takes a page out of a chain; returns the first of what is left.
    fn unchain(&mut self, first: u32, at: u32) -> u32 {
        let page = self.page(at);
        let (prev, next) = (page.prev, page.next);
        if next != NONE {
            self.page_mut(next).prev = prev;
        }
        if prev == NONE {
            return next;
        }
        self.page_mut(prev).next = next;
        first
    }

    #[inline]
    fn page(&self, at: u32) -> &Page {
        &self.regions[at as usize / REGION_PAGES].pages[at as usize % REGION_PAGES]
    }

    #[inline]
    fn page_mut(&mut self, at: u32) -> &mut Page {
        &mut self.regions[at as usize / REGION_PAGES].pages[at as usize % REGION_PAGES]
    }

    #[inline]
    fn base(&self, at: u32) -> NonNull<u8> {
        let region = &self.regions[at as usize / REGION_PAGES];
        // SAFETY: a region has REGION_PAGES pages.
        unsafe {
            region
                .start
                .add(at as usize % REGION_PAGES * region.kind.page_bytes())
        }
    }
}

/// A page whose blocks move elsewhere.
pub(super) struct Evacuation {
    at: u32,
    pub(super) size: Size,
    pub(super) used: Vec<NonNull<u8>>,
}

#[inline]
fn first_of(sizes: Sizes) -> Option<Size> {
    (sizes != 0).then(|| Size(sizes.trailing_zeros() as u8))
}

/// Address space of the pool's own, aligned to its size.
struct Region {
    start: NonNull<u8>,
    kind: Kind,
    pages: Box<[Page; REGION_PAGES]>,
}

// SAFETY: memory that belongs to nobody else.
unsafe impl Send for Region {}

impl Kind {
    /// What a region is.
    const fn region_layout(self) -> Layout {
        match Layout::from_size_align(self.region_bytes(), self.region_bytes()) {
            Ok(layout) => layout,
            Err(_) => panic!("no layout"),
        }
    }
}

#[cfg(not(miri))]
mod system {
    use super::*;
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    impl Region {
        pub(super) fn new(kind: Kind) -> Self {
            let region_bytes = kind.region_bytes();
            // More than the region, so that an aligned one is within.
            let mapping_bytes = 2 * region_bytes;
            let access = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            // SAFETY: a new mapping anywhere changes none that exists.
            let mapped =
                unsafe { mmap_anonymous(std::ptr::null_mut(), mapping_bytes, access, flags) };
            let Some(mapping) = mapped.ok().and_then(NonNull::new) else {
                handle_alloc_error(kind.region_layout())
            };
            let before = mapping.cast::<u8>().align_offset(region_bytes);
            // SAFETY: less than a region, and the mapping has room for two. What lies before
            // and behind the aligned one is unmapped, and used by nobody.
            let start = unsafe {
                let start = mapping.cast::<u8>().add(before);
                let _ = munmap(mapping.as_ptr(), before);
                let behind = start.add(region_bytes).cast().as_ptr();
                let _ = munmap(behind, mapping_bytes - region_bytes - before);
                start
            };
            Self {
                start,
                kind,
                pages: Box::new([NEW_PAGE; REGION_PAGES]),
            }
        }
    }

    impl Drop for Region {
        fn drop(&mut self) {
            // SAFETY: the mapping is this region's, and with the pool all of its blocks end.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.kind.region_bytes()) };
        }
    }

    /// Gives the memory of a page back, of which nothing is in use. Where the system's own
    /// pages are larger than ours, that cannot be done: the memory stays until the page is used
    /// again, and is not counted meanwhile.
    pub(super) fn give_back(page: NonNull<u8>, bytes: usize) {
        // The system would round up, and take the neighbours' blocks with it.
        if !bytes.is_multiple_of(rustix::param::page_size()) {
            return;
        }
        // SAFETY: the page is within a region and nothing in it is needed any more.
        let _ = unsafe { madvise(page.as_ptr().cast(), bytes, Advice::LinuxDontNeed) };
    }
}

/// Miri has no system to ask.
#[cfg(miri)]
mod system {
    use super::*;
    use std::alloc::{alloc_zeroed, dealloc};

    impl Region {
        pub(super) fn new(kind: Kind) -> Self {
            // SAFETY: the layout has a size.
            let Some(start) = NonNull::new(unsafe { alloc_zeroed(kind.region_layout()) }) else {
                handle_alloc_error(kind.region_layout())
            };
            let pages = Box::new([NEW_PAGE; REGION_PAGES]);
            Self { start, kind, pages }
        }
    }

    impl Drop for Region {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.start.as_ptr(), self.kind.region_layout()) };
        }
    }

    pub(super) fn give_back(_: NonNull<u8>, _: usize) {}
}

use system::give_back;

#[cfg(test)]
mod tests {
    use super::*;

    /// Under Miri every access is checked and slow: one byte in so many is looked at.
    const LOOK_STEP: usize = if cfg!(miri) { 997 } else { 1 };

    /// A block with a pattern in it, for which it is watched.
    struct Held {
        block: NonNull<u8>,
        bytes: usize,
        pattern: u8,
    }

    impl Held {
        fn new(pool: &mut Pool, bytes: usize, pattern: u8) -> Self {
            let block = pool.take(bytes);
            let align = if bytes.is_multiple_of(8) {
                8
            } else {
                BLOCK_ALIGN
            };
            assert_eq!(block.addr().get() % align, 0);
            // SAFETY: the block has so many bytes and is ours.
            unsafe { block.write_bytes(pattern, bytes) };
            Self {
                block,
                bytes,
                pattern,
            }
        }

        fn check(&self) {
            // SAFETY: written in `new`, or copied.
            let bytes = unsafe { std::slice::from_raw_parts(self.block.as_ptr(), self.bytes) };
            let mut looked_at = bytes.iter().step_by(LOOK_STEP).chain(bytes.last());
            assert!(looked_at.all(|&byte| byte == self.pattern));
        }

        fn give(self, pool: &mut Pool) {
            self.check();
            // SAFETY: taken for so many bytes and not used any more.
            unsafe { pool.give(self.block, self.bytes) };
        }
    }

    fn evacuate(pool: &mut Pool, size: Size, held: &mut [Held]) -> usize {
        let evacuation = pool.begin_evacuation(size);
        for &block in &evacuation.used {
            let holder = held.iter_mut().find(|held| held.block == block);
            let holder = holder.expect("a block in use is held");
            // SAFETY: it is in use.
            holder.block = unsafe { pool.copy_out(size, block) };
        }
        let moved = evacuation.used.len();
        // SAFETY: all were copied, and their holders know.
        unsafe { pool.end_evacuation(evacuation) };
        moved
    }

    #[test]
    fn a_size_is_the_least_that_holds_what_is_asked_for() {
        for bytes in (1..=BLOCK_BYTES_MAX).step_by(if cfg!(miri) { 101 } else { 1 }) {
            let size = Size::of(bytes);
            assert_eq!(size.bytes(), block_bytes(bytes));
            assert_eq!(Size::of(size.bytes()), size);
            assert!(size.index() < SIZES && size.bytes() >= bytes);
            let more = size.bytes() - bytes;
            match size.kind() {
                Kind::Small => assert!(more < COARSE_STEP),
                Kind::Large => {
                    assert!(more <= bytes / 7 + LARGE_STEP && size.bytes().is_multiple_of(8));
                }
            }
            let page = size.kind().page_bytes() - PAGE_HEAD_BYTES;
            assert!(size.blocks() * size.bytes() <= page);
        }
    }

    #[test]
    fn blocks_of_all_sizes_keep_what_is_in_them_while_pages_are_evacuated() {
        const STEPS: u64 = if cfg!(miri) { 500 } else { 60_000 };
        let mut pool = Pool::default();
        let mut held: Vec<Held> = Vec::new();
        let (mut random, mut moved) = (1_u64, 0);
        for step in 0..STEPS {
            random = crate::hash::splitmix64(random);
            // Grows, shrinks, grows again.
            let growing = (step * 5 / STEPS).is_multiple_of(2);
            let bytes = [25, 64, 144, 500, 2000, 18_000][random as usize % 6];
            let bytes = bytes + (random >> 8) as usize % 8;
            if growing == (random >> 16).is_multiple_of(4) && !held.is_empty() {
                let nth = (random >> 32) as usize % held.len();
                held.swap_remove(nth).give(&mut pool);
            } else {
                held.push(Held::new(&mut pool, bytes, step as u8));
            }
            if let Some(size) = pool.wasteful() {
                moved += evacuate(&mut pool, size, &mut held);
            }
        }
        while let Some(size) = pool.sparse() {
            moved += evacuate(&mut pool, size, &mut held);
        }
        assert!(moved > 0);
        held.iter().for_each(Held::check);
        let used: usize = held.iter().map(|held| Size::of(held.bytes).bytes()).sum();
        assert_eq!(pool.blocks_bytes, used);
        held.into_iter().for_each(|held| held.give(&mut pool));
        while pool.give_back_spare() {}
        assert_eq!((pool.page_bytes(), pool.blocks_bytes), (0, 0));
        assert_eq!((pool.sparse, pool.wasteful), (0, 0));
    }

    #[test]
    fn a_page_with_anything_in_it_stays_and_an_empty_one_is_spare() {
        let mut pool = Pool::default();
        let blocks = Size::of(64).blocks();
        let mut held: Vec<_> = (0..blocks).map(|_| Held::new(&mut pool, 64, 7)).collect();
        let page_bytes = Kind::Small.page_bytes();
        assert_eq!(pool.page_bytes(), page_bytes);
        let last = held.pop();
        held.into_iter().for_each(|held| held.give(&mut pool));
        let spare_count = |pool: &Pool| pool.empty[Kind::Small as usize].spare_count;
        assert_eq!((pool.page_bytes(), spare_count(&pool)), (page_bytes, 0));
        last.into_iter().for_each(|held| held.give(&mut pool));
        assert_eq!((pool.page_bytes(), spare_count(&pool)), (page_bytes, 1));
        // Another size takes the same page.
        Held::new(&mut pool, 128, 8).give(&mut pool);
        assert_eq!(pool.page_bytes(), page_bytes);
        assert!(pool.give_back_spare() && !pool.give_back_spare());
        assert_eq!(pool.page_bytes(), 0);
    }
}
