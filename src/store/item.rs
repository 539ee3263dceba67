//! One stored item: header, key and value in one block behind a thin pointer.
//!
//! ```text
//!   0  version (53 bits), flags (3), eviction state (8)
//!   8  origin
//!  12  key length (11 bits), value length unless shared (21)
//!  16  links of the list the item is in: previous, next
//!  24  only if it expires: expiry, wheel links          (16 bytes)
//!   …  only if the value is shared: Arc<[u8]>           (16 bytes)
//!   …  key bytes, then the value bytes unless shared
//! ```
//!
//! The hash of the key is not kept: hashing a short key again costs a few nanoseconds,
//! less than the memory it would take on every item, and only what moves an item in or
//! out of a table needs it; a lookup brings it along.
//!
//! An item never changes after it was made, except its links and its eviction
//! state. The unsafe code of this file rests on two invariants: **the flags and lengths in
//! the header describe the block exactly**; they are written once, in [`ItemBox::new`],
//! and no method changes them. And **an item does not outlive the pool of its slab**:
//! only the slab makes items, moves their blocks and ends them.

use std::fmt;
use std::mem::size_of;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use super::digest::Digest;
use super::memory::shared_charge;
use super::pool::{BLOCK_ALIGN, BLOCK_BYTES_MAX, Pool, block_bytes};
use super::write::{KEY_BYTES_MAX, SHARED_VALUE_BYTES};
use crate::clock::{Origin, UnixMs, Version};
use crate::hash::KeyHash;

/// An item as a reader sees it.
#[derive(Clone, Copy, Debug)]
pub struct ItemView<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: ValueView<'a>,
    /// When it was written.
    pub version: Version,
    /// Who stamped that version.
    pub origin: Origin,
    /// When it stops being visible, if ever.
    pub expires_at: Option<UnixMs>,
}

/// A value as a reader sees it.
#[derive(Clone, Copy, Debug)]
pub enum ValueView<'a> {
    /// A small value: copy it into the answer.
    Bytes(&'a [u8]),
    /// A large value: clone the handle rather than the bytes.
    Shared(&'a Arc<[u8]>),
}

impl<'a> ValueView<'a> {
    /// The bytes, however they are held.
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Shared(shared) => shared,
        }
    }
}

/// What is known of a key, visible or not: what last writer wins compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// When it was written.
    pub version: Version,
    /// Who stamped that version.
    pub origin: Origin,
    /// Whether it is a deletion.
    pub tombstone: bool,
    /// When it expires, if ever; possibly past.
    pub expires_at: Option<UnixMs>,
}

/// An item as it is stored, visible or not. What is not asked for is not read.
#[derive(Clone, Copy)]
pub struct StoredItem<'a>(&'a ItemBox);

impl<'a> StoredItem<'a> {
    pub(super) fn new(item: &'a ItemBox) -> Self {
        Self(item)
    }

    /// The key.
    #[inline]
    pub fn key(self) -> &'a [u8] {
        self.0.key()
    }

    /// The top 48 bits of the key's hash; the low 16, which replicas do not compare, are 0.
    #[inline]
    pub fn kept_hash(self) -> KeyHash {
        KeyHash(self.0.hash().0 & HASH_MASK)
    }

    /// What last writer wins compares with.
    #[inline]
    pub fn resident(self) -> Resident {
        self.0.resident()
    }

    /// The value, expired or not; nothing for a tombstone.
    #[inline]
    pub fn value(self) -> Option<ValueView<'a>> {
        (!self.0.is_tombstone()).then(|| self.0.value())
    }

    /// What it contributes to the digest of its partition.
    #[inline]
    pub fn digest(self) -> Digest {
        self.0.digest(self.0.hash())
    }
}

impl fmt::Debug for StoredItem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredItem")
            .field("key", &self.key())
            .field("resident", &self.resident())
            .finish_non_exhaustive()
    }
}

/// The place of an item in the slab. Ids are below [`ItemId::LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct ItemId(pub(super) u32);

impl ItemId {
    /// No item: the end of a list.
    pub(super) const NONE: Self = Self(u32::MAX);
    /// Above every id. The top bit is left to the timing wheel.
    pub(super) const LIMIT: u32 = 1 << 31;

    /// The id, unless it is [`ItemId::NONE`].
    #[inline]
    pub(super) fn some(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

/// What an item holds besides its key.
pub(super) enum Body<'a> {
    Tombstone,
    Inline(&'a [u8]),
    Shared(Arc<[u8]>),
}

/// Everything a new item is made of.
pub(super) struct NewItem<'a> {
    pub(super) key: &'a [u8],
    pub(super) version: Version,
    pub(super) origin: Origin,
    pub(super) expires_at: Option<UnixMs>,
    pub(super) body: Body<'a>,
}

// Blocks of the pool are aligned to 4 only: half of what rounding to 8 takes.
#[repr(C, packed(4))]
struct Header {
    version_and_state: u64,
    origin: u32,
    lens: u32,
    prev: ItemId,
    next: ItemId,
}

#[repr(C, packed(4))]
struct Expiry {
    at: u64,
    prev: ItemId,
    next: ItemId,
}

const HEADER_BYTES: usize = size_of::<Header>();
const EXPIRY_BYTES: usize = size_of::<Expiry>();
const SHARED_BYTES: usize = size_of::<Arc<[u8]>>();
const ALIGN: usize = BLOCK_ALIGN;
/// What a block with an Arc in it is aligned to.
const ARC_ALIGN: usize = align_of::<Arc<[u8]>>();

const _: () = assert!(HEADER_BYTES == 24 && EXPIRY_BYTES == 16 && SHARED_BYTES == 16);
const _: () = assert!(align_of::<Header>() <= ALIGN && align_of::<Expiry>() <= ALIGN);
// An Arc after the header and an expiry stays aligned in a block that is.
const _: () =
    assert!(HEADER_BYTES.is_multiple_of(ARC_ALIGN) && EXPIRY_BYTES.is_multiple_of(ARC_ALIGN));

const TOMBSTONE: u64 = 1 << 53;
const EXPIRING: u64 = 1 << 54;
const SHARED: u64 = 1 << 55;
const STATE_SHIFT: u32 = 56;
const STATE_MASK: u64 = 0xFF << STATE_SHIFT;

/// In `Header::lens` the key's length stands above the value's.
const KEY_LEN_SHIFT: u32 = 21;
const KEY_LEN_MAX: usize = (1 << (u32::BITS - KEY_LEN_SHIFT)) - 1;
const INLINE_LEN_MAX: usize = (1 << KEY_LEN_SHIFT) - 1;

const _: () = assert!(KEY_BYTES_MAX <= KEY_LEN_MAX && BLOCK_BYTES_MAX <= INLINE_LEN_MAX);

/// The largest item that a shard makes; a shared value takes less in it than a long one.
const ITEM_BYTES_MAX: usize = HEADER_BYTES + EXPIRY_BYTES + KEY_BYTES_MAX + SHARED_VALUE_BYTES;

const _: () = assert!(ITEM_BYTES_MAX <= BLOCK_BYTES_MAX);

/// The bits of a hash by which replicas name a key.
const HASH_MASK: u64 = !0xFFFF;

/// What an item takes in memory, before it is made.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) key_len: usize,
    pub(super) value_len: usize,
    pub(super) expiring: bool,
    pub(super) shared: bool,
}

impl Shape {
    /// The bytes charged for the item, a shared value's block included.
    #[inline]
    pub(super) fn charge(self) -> usize {
        let shared = if self.shared {
            shared_charge(self.value_len)
        } else {
            0
        };
        block_bytes(self.size()).saturating_add(shared)
    }

    #[inline]
    fn shared_offset(self) -> usize {
        HEADER_BYTES + if self.expiring { EXPIRY_BYTES } else { 0 }
    }

    #[inline]
    fn key_offset(self) -> usize {
        self.shared_offset() + if self.shared { SHARED_BYTES } else { 0 }
    }

    #[inline]
    fn size(self) -> usize {
        let key_end = self.key_offset().saturating_add(self.key_len);
        if self.shared {
            // Which makes the pool give a block that is aligned for the Arc.
            key_end.next_multiple_of(ARC_ALIGN)
        } else {
            key_end.saturating_add(self.value_len)
        }
    }
}

/// An owned item; 8 bytes, and `Option<ItemBox>` is no larger. One that is dropped and not
/// given to [`ItemBox::free`] keeps what it holds.
pub(super) struct ItemBox(NonNull<Header>);

// SAFETY: an ItemBox owns its block and the only things inside are plain words and
// an Arc<[u8]>, which may itself be sent. It is deliberately not Sync.
unsafe impl Send for ItemBox {}

impl ItemBox {
    /// Makes an item, linked to nothing, in a block of `pool`.
    ///
    /// # Panics
    /// When the key is longer than [`KEY_LEN_MAX`] or no block holds it and the value beside
    /// it, and only then; the shard refuses longer keys and shares longer values.
    pub(super) fn new(pool: &mut Pool, new: NewItem<'_>) -> Self {
        let (flag, value_len) = match &new.body {
            Body::Tombstone => (TOMBSTONE, 0),
            Body::Inline(bytes) => (0, bytes.len()),
            Body::Shared(shared) => (SHARED, shared.len()),
        };
        let expiring = if new.expires_at.is_some() {
            EXPIRING
        } else {
            0
        };
        let shape = Shape {
            key_len: new.key.len(),
            value_len,
            expiring: new.expires_at.is_some(),
            shared: flag == SHARED,
        };
        assert!(shape.key_len <= KEY_LEN_MAX && shape.size() <= BLOCK_BYTES_MAX);
        let inline_len = if shape.shared { 0 } else { value_len as u32 };
        let block = pool.take(shape.size());
        // SAFETY: the block is ours alone, aligned to ALIGN and, when the value is shared, to
        // ARC_ALIGN, and its size was computed from `shape`: the header, then an expiry and an Arc exactly when the shape has
        // them, then key_len bytes, then value_len bytes unless the value is shared.
        // Source slices are borrowed from elsewhere, so nothing overlaps.
        unsafe {
            block.cast::<Header>().write(Header {
                version_and_state: new.version.get() | flag | expiring,
                origin: new.origin.0,
                lens: (shape.key_len as u32) << KEY_LEN_SHIFT | inline_len,
                prev: ItemId::NONE,
                next: ItemId::NONE,
            });
            if let Some(at) = new.expires_at {
                let expiry = Expiry {
                    at: at.0,
                    prev: ItemId::NONE,
                    next: ItemId::NONE,
                };
                block.add(HEADER_BYTES).cast::<Expiry>().write(expiry);
            }
            let key = block.add(shape.key_offset());
            ptr::copy_nonoverlapping(new.key.as_ptr(), key.as_ptr(), shape.key_len);
            match new.body {
                Body::Tombstone => {}
                Body::Inline(bytes) => {
                    let value = key.add(shape.key_len).as_ptr();
                    ptr::copy_nonoverlapping(bytes.as_ptr(), value, value_len);
                }
                Body::Shared(shared) => {
                    block
                        .add(shape.shared_offset())
                        .cast::<Arc<[u8]>>()
                        .write(shared);
                }
            }
        }
        Self(block.cast())
    }

    /// The item in `block`.
    ///
    /// # Safety
    ///
    /// [`ItemBox::new`] made one there, or it was copied there bit by bit, and either nobody
    /// else uses it or nobody changes it.
    pub(super) unsafe fn at(block: NonNull<u8>) -> Self {
        Self(block.cast())
    }

    /// Whether it is the item in `block`.
    #[inline]
    pub(super) fn is_at(&self, block: NonNull<u8>) -> bool {
        self.0.cast() == block
    }

    /// Ends the item; `pool` is the one it was made with. Returns its value if it was shared.
    pub(super) fn free(self, pool: &mut Pool) -> Option<Arc<[u8]>> {
        let shape = self.shape();
        let block = self.0.cast::<u8>();
        // SAFETY: the block was taken in `new` for this very shape, or one like it when the item
        // moved, from this pool, and an item ends once; its Arc, if it has one, was written
        // there and is moved out only here.
        unsafe {
            let shared = block.add(shape.shared_offset()).cast::<Arc<[u8]>>();
            let shared = shape.shared.then(|| shared.read());
            pool.give(block, shape.size());
            shared
        }
    }

    /// The bytes this item is charged for.
    #[inline]
    pub(super) fn charge(&self) -> usize {
        let mut shape = self.shape();
        if let ValueView::Shared(shared) = self.value() {
            shape.value_len = shared.len();
        }
        shape.charge()
    }

    /// The key.
    #[inline]
    pub(super) fn key(&self) -> &[u8] {
        let shape = self.shape();
        // SAFETY: `new` wrote key_len bytes at key_offset of this block; both follow
        // from the header, which describes the block exactly. Nothing writes there again.
        unsafe {
            let key = self.0.as_ptr().cast::<u8>().add(shape.key_offset());
            slice::from_raw_parts(key, shape.key_len)
        }
    }

    /// The value; empty for a tombstone.
    #[inline]
    pub(super) fn value(&self) -> ValueView<'_> {
        let shape = self.shape();
        let block = self.0.as_ptr().cast::<u8>();
        // SAFETY: as in `key`: the header says what `new` wrote and where. A shared
        // value's Arc is alive until `free` and stands where it is aligned.
        unsafe {
            if shape.shared {
                ValueView::Shared(&*block.add(shape.shared_offset()).cast::<Arc<[u8]>>())
            } else {
                let value = block.add(shape.key_offset() + shape.key_len);
                ValueView::Bytes(slice::from_raw_parts(value, shape.value_len))
            }
        }
    }

    /// The item as a reader sees it.
    #[inline]
    pub(super) fn view(&self) -> ItemView<'_> {
        ItemView {
            key: self.key(),
            value: self.value(),
            version: self.version(),
            origin: self.origin(),
            expires_at: self.expires_at(),
        }
    }

    /// What last writer wins compares with.
    #[inline]
    pub(super) fn resident(&self) -> Resident {
        Resident {
            version: self.version(),
            origin: self.origin(),
            tombstone: self.is_tombstone(),
            expires_at: self.expires_at(),
        }
    }

    /// What the item contributes to its partition's digest.
    /// The caller knows the hash of its key.
    #[inline]
    pub(super) fn digest(&self, hash: KeyHash) -> Digest {
        Digest::of(hash, self.version(), self.origin(), self.is_tombstone())
    }

    #[inline]
    pub(super) fn version(&self) -> Version {
        let raw = self.header().version_and_state & Version::MAX.get();
        // Masked to 53 bits, so it is always a version.
        Version::new(raw).unwrap_or(Version::MAX)
    }

    #[inline]
    pub(super) fn origin(&self) -> Origin {
        Origin(self.header().origin)
    }

    /// The key's hash, computed anew.
    #[inline]
    pub(super) fn hash(&self) -> KeyHash {
        KeyHash::of(self.key())
    }

    /// Whether its key has this hash, as far as replicas compare it.
    #[inline]
    pub(super) fn has(&self, hash: KeyHash) -> bool {
        (self.hash().0 ^ hash.0) & HASH_MASK == 0
    }

    #[inline]
    pub(super) fn is_tombstone(&self) -> bool {
        self.header().version_and_state & TOMBSTONE != 0
    }

    /// Whether a read at `now` sees the item.
    #[inline]
    pub(super) fn is_visible(&self, now: UnixMs) -> bool {
        !self.is_tombstone() && self.expires_at().is_none_or(|at| now < at)
    }

    #[inline]
    pub(super) fn expires_at(&self) -> Option<UnixMs> {
        self.expiry().map(|expiry| UnixMs(expiry.at))
    }

    /// The eviction policy's 8 bits; 0 in a new item.
    #[inline]
    pub(super) fn state(&self) -> u8 {
        (self.header().version_and_state >> STATE_SHIFT) as u8
    }

    #[inline]
    pub(super) fn set_state(&mut self, state: u8) {
        let header = self.header_mut();
        let word = header.version_and_state & !STATE_MASK;
        header.version_and_state = word | u64::from(state) << STATE_SHIFT;
    }

    #[inline]
    pub(super) fn prev(&self) -> ItemId {
        self.header().prev
    }

    #[inline]
    pub(super) fn next(&self) -> ItemId {
        self.header().next
    }

    #[inline]
    pub(super) fn set_prev(&mut self, id: ItemId) {
        self.header_mut().prev = id;
    }

    #[inline]
    pub(super) fn set_next(&mut self, id: ItemId) {
        self.header_mut().next = id;
    }

    /// The links in the timing wheel; both [`ItemId::NONE`] if it never expires.
    #[inline]
    pub(super) fn wheel_links(&self) -> (ItemId, ItemId) {
        self.expiry()
            .map_or((ItemId::NONE, ItemId::NONE), |expiry| {
                (expiry.prev, expiry.next)
            })
    }

    /// Sets the previous link in the timing wheel; nothing if it never expires.
    #[inline]
    pub(super) fn set_wheel_prev(&mut self, id: ItemId) {
        if let Some(expiry) = self.expiry_mut() {
            expiry.prev = id;
        }
    }

    /// Sets the next link in the timing wheel; nothing if it never expires.
    #[inline]
    pub(super) fn set_wheel_next(&mut self, id: ItemId) {
        if let Some(expiry) = self.expiry_mut() {
            expiry.next = id;
        }
    }

    /// Takes over the eviction state and list links of the item it replaces.
    pub(super) fn inherit_place(&mut self, old: &Self) {
        self.set_state(old.state());
        self.set_prev(old.prev());
        self.set_next(old.next());
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the block starts with an initialised header and is ours; `&self`
        // keeps it from being written meanwhile.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn header_mut(&mut self) -> &mut Header {
        // SAFETY: as in `header`, and `&mut self` makes the access exclusive. Callers
        // in this file change only links and state.
        unsafe { self.0.as_mut() }
    }

    #[inline]
    fn expiry(&self) -> Option<&Expiry> {
        if self.header().version_and_state & EXPIRING == 0 {
            return None;
        }
        // SAFETY: the flag says that `new` wrote an Expiry right after the header.
        Some(unsafe {
            &*self
                .0
                .as_ptr()
                .cast::<u8>()
                .add(HEADER_BYTES)
                .cast::<Expiry>()
        })
    }

    #[inline]
    fn expiry_mut(&mut self) -> Option<&mut Expiry> {
        if self.header().version_and_state & EXPIRING == 0 {
            return None;
        }
        // SAFETY: as in `expiry`, and `&mut self` makes the access exclusive.
        Some(unsafe {
            &mut *self
                .0
                .as_ptr()
                .cast::<u8>()
                .add(HEADER_BYTES)
                .cast::<Expiry>()
        })
    }

    /// The shape of the block: of a shared value, which is not in it, the length is 0.
    #[inline]
    fn shape(&self) -> Shape {
        let header = self.header();
        Shape {
            key_len: (header.lens >> KEY_LEN_SHIFT) as usize,
            value_len: header.lens as usize & INLINE_LEN_MAX,
            expiring: header.version_and_state & EXPIRING != 0,
            shared: header.version_and_state & SHARED != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(pool: &mut Pool, key: &[u8], expires_at: Option<u64>, body: Body<'_>) -> ItemBox {
        let new = NewItem {
            key,
            version: Version::MAX,
            origin: Origin(u32::MAX),
            expires_at: expires_at.map(UnixMs),
            body,
        };
        ItemBox::new(pool, new)
    }

    #[test]
    fn an_item_gives_back_what_it_was_made_of() {
        let mut pool = Pool::default();
        let lens = [0, 1, 7, 8, 9, 250, 1024];
        for key_len in lens {
            for value_len in lens {
                for expires_at in [None, Some(0), Some(u64::MAX)] {
                    let key: Vec<u8> = (0..key_len).map(|n| n as u8).collect();
                    let value: Vec<u8> = (0..value_len).map(|n| !n as u8).collect();
                    let shared: Arc<[u8]> = Arc::from(&value[..]);
                    for body in [Body::Inline(&value), Body::Shared(Arc::clone(&shared))] {
                        let item = item(&mut pool, &key, expires_at, body);
                        let view = item.view();
                        assert_eq!((view.key, view.value.bytes()), (&key[..], &value[..]));
                        assert_eq!(
                            (view.version, view.origin),
                            (Version::MAX, Origin(u32::MAX))
                        );
                        assert_eq!(view.expires_at, expires_at.map(UnixMs));
                        assert_eq!(item.hash(), KeyHash::of(&key));
                        assert!(!item.is_tombstone());
                        item.free(&mut pool);
                    }
                    assert_eq!(
                        Arc::strong_count(&shared),
                        1,
                        "an item that ends drops its Arc"
                    );
                }
            }
        }
    }

    #[test]
    fn a_tombstone_has_no_value_and_is_never_visible() {
        let mut pool = Pool::default();
        let item = item(&mut pool, b"key", Some(100), Body::Tombstone);
        assert!(item.is_tombstone() && item.value().bytes().is_empty());
        assert!(!item.is_visible(UnixMs(0)));
    }

    #[test]
    fn an_item_is_visible_until_the_millisecond_it_expires() {
        let mut pool = Pool::default();
        let item = item(&mut pool, b"key", Some(100), Body::Inline(b"value"));
        assert!(item.is_visible(UnixMs(99)));
        assert!(!item.is_visible(UnixMs(100)));
    }

    #[test]
    fn links_and_state_change_without_touching_the_rest() {
        let mut pool = Pool::default();
        let mut item = item(&mut pool, b"key", Some(100), Body::Inline(b"value"));
        item.set_state(0xFF);
        item.set_prev(ItemId(1));
        item.set_next(ItemId(2));
        item.set_wheel_prev(ItemId(3));
        item.set_wheel_next(ItemId(4));
        assert_eq!(
            (item.state(), item.prev(), item.next()),
            (0xFF, ItemId(1), ItemId(2))
        );
        assert_eq!(item.wheel_links(), (ItemId(3), ItemId(4)));
        item.set_state(0x0F);
        assert_eq!((item.state(), item.version()), (0x0F, Version::MAX));
        assert_eq!(
            (item.key(), item.value().bytes()),
            (&b"key"[..], &b"value"[..])
        );
        assert_eq!(item.expires_at(), Some(UnixMs(100)));
    }

    #[test]
    fn wheel_links_of_an_item_that_never_expires_are_ignored() {
        let mut pool = Pool::default();
        let mut item = item(&mut pool, b"key", None, Body::Inline(b"value"));
        item.set_wheel_prev(ItemId(3));
        item.set_wheel_next(ItemId(4));
        assert_eq!(item.wheel_links(), (ItemId::NONE, ItemId::NONE));
        assert_eq!(item.value().bytes(), b"value");
    }

    #[test]
    fn a_hash_is_compared_as_far_as_replicas_do() {
        let mut pool = Pool::default();
        let item = item(&mut pool, b"key", None, Body::Inline(b""));
        let hash = KeyHash::of(b"key");
        assert!(item.has(hash) && item.has(KeyHash(hash.0 ^ 0xFFFF)));
        assert!(!item.has(KeyHash(hash.0 ^ 1 << 16)));
    }

    #[test]
    #[should_panic]
    fn a_key_that_does_not_fit_its_length_field_is_never_stored() {
        item(
            &mut Pool::default(),
            &vec![0; KEY_LEN_MAX + 1],
            None,
            Body::Tombstone,
        );
    }

    #[test]
    #[should_panic]
    fn a_value_that_fits_no_block_is_never_stored_beside_its_key() {
        item(
            &mut Pool::default(),
            b"key",
            None,
            Body::Inline(&vec![0; BLOCK_BYTES_MAX]),
        );
    }

    #[test]
    fn a_shared_value_is_charged_by_its_own_length() {
        let mut pool = Pool::default();
        for len in [0, 100, INLINE_LEN_MAX + 1] {
            let shared: Arc<[u8]> = vec![0; len].into();
            let item = item(&mut pool, b"key", None, Body::Shared(shared));
            let shape = Shape {
                key_len: 3,
                value_len: len,
                expiring: false,
                shared: true,
            };
            assert_eq!(item.charge(), shape.charge());
            item.free(&mut pool);
        }
    }

    #[test]
    fn an_item_can_move_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<ItemBox>();
    }
}
