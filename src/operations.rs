//! What may be asked of a core's items, and what comes back.
//!
//! A core owns its shard outright ([`LocalStore`]); every other core that wants
//! something of it sends a [`Batch`]: the operations of one pipelined read (or
//! of one client batch) for that core, with their keys and values copied into
//! one arena, so that one message, one wake-up and no allocation per operation
//! carry them. The owner fills in one outcome per operation, in order, and sends
//! the same box home. An [`Exchange`] is the sender's side: it sorts operations
//! into batches and finds each outcome again by its [`Ticket`].
//!
//! Everything here is plain data and calls on the store; who carries the boxes
//! is the business of `node`. Bounds: a batch holds at most
//! [`OPERATIONS_PER_BATCH`] operations, and stops copying values out at
//! [`ANSWER_BYTES_MAX`]: what does not fit is answered [`Outcome::Overflow`].
//!
//! Versions are stamped here, by the core that owns the partition, so two writes
//! of one key on one node never carry the same version.

use std::ops::Range;
use std::sync::Arc;

use crate::clock::{HybridClock, Origin, UnixMs, Version};
use crate::hash::{CoreCount, CoreId, KeyHash};
use crate::store::{Applied, Content, ItemView, Shard, TooLarge, ValueIn, ValueView, Write};

/// How many operations one message between cores carries at most. Small enough
/// that the owner's loop turns between two of them, large enough that the price
/// of a wake-up is shared.
pub const OPERATIONS_PER_BATCH: usize = 256;

/// How many bytes of values one batch copies out at most.
pub const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Arenas larger than this are given back to the allocator between uses.
const ARENA_BYTES_KEPT: usize = 64 << 10;

/// What to do with one key.
#[derive(Debug)]
pub enum Action<'a> {
    /// Read it.
    Get,
    /// Write it, whole.
    Put {
        /// The value's bytes.
        value: ValueIn<'a>,
        /// When it ceases to exist; `None` for never.
        expires_at: Option<UnixMs>,
    },
    /// Delete it.
    Delete,
}

/// What became of one operation.
#[derive(Debug)]
pub enum Outcome<V> {
    /// The key holds nothing (any more).
    Missing,
    /// The key's item.
    Found(Found<V>),
    /// The value is stored under this version.
    Stored(Version),
    /// The key is deleted.
    Deleted,
    /// The value is larger than this node takes; nothing was changed.
    TooLarge(TooLarge),
    /// The value was found, but the batch's answers are full.
    Overflow,
}

/// An item that was read, without its key.
#[derive(Clone, Copy, Debug)]
pub struct Found<V> {
    /// The value, wherever it lies.
    pub value: V,
    /// When it was written.
    pub version: Version,
    /// Which node wrote it.
    pub origin: Origin,
    /// When it ceases to exist.
    pub expires_at: Option<UnixMs>,
}

impl<'a> From<ItemView<'a>> for Found<ValueView<'a>> {
    #[inline]
    fn from(item: ItemView<'a>) -> Self {
        Self {
            value: item.value,
            version: item.version,
            origin: item.origin,
            expires_at: item.expires_at,
        }
    }
}

/// One core's items and the clock that stamps their versions.
#[derive(Debug)]
pub struct LocalStore {
    shard: Shard,
    clock: HybridClock,
    origin: Origin,
    tombstone_ttl_ms: u64,
}

impl LocalStore {
    /// The store of one core of the node called by `origin`.
    pub fn new(shard: Shard, origin: Origin, tombstone_ttl_ms: u64) -> Self {
        Self {
            shard,
            clock: HybridClock::default(),
            origin,
            tombstone_ttl_ms,
        }
    }

    /// The items themselves.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The items themselves, for housekeeping (reaping, eviction, clearing).
    pub fn shard_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }

    /// Reads a key.
    #[inline]
    pub fn get(&mut self, hash: KeyHash, key: &[u8], now: UnixMs) -> Option<ItemView<'_>> {
        self.shard.get(hash, key, now)
    }

    /// Writes a key and tells the version it got.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when the value does not fit; what the key held stays.
    pub fn put(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        value: ValueIn<'_>,
        expires_at: Option<UnixMs>,
        now: UnixMs,
    ) -> Result<Version, TooLarge> {
        self.write(hash, key, Content::Value { value, expires_at }, now)
    }

    /// Deletes a key, leaving a tombstone.
    pub fn delete(&mut self, hash: KeyHash, key: &[u8], now: UnixMs) {
        let expires_at = UnixMs(now.0.saturating_add(self.tombstone_ttl_ms));
        // A tombstone has no value that could be too large.
        let _ = self.write(hash, key, Content::Tombstone { expires_at }, now);
    }

    fn write(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        content: Content<'_>,
        now: UnixMs,
    ) -> Result<Version, TooLarge> {
        let version = self.clock.stamp(now);
        let write = Write {
            hash,
            key,
            version,
            origin: self.origin,
            content,
        };
        let applied = self.shard.apply(write, now)?;
        debug_assert!(
            applied == Applied::Stored,
            "a fresh stamp is newer than all before it"
        );
        Ok(version)
    }

    /// Carries out a batch that another core (or this one) put together.
    pub fn run(&mut self, batch: &mut Batch, now: UnixMs) {
        let Batch {
            operations,
            outcomes,
            arena,
            ..
        } = batch;
        outcomes.clear();
        let answers_start = arena.len();
        for operation in operations.drain(..) {
            let StoredOperation { hash, key, action } = operation;
            let outcome = match action {
                StoredAction::Get => match self.shard.get(hash, &arena[key.clone()], now) {
                    None => Outcome::Missing,
                    Some(item) => {
                        let found = Found::from(item);
                        match carry(found.value, arena, answers_start) {
                            None => Outcome::Overflow,
                            Some(value) => Outcome::Found(Found {
                                value,
                                version: found.version,
                                origin: found.origin,
                                expires_at: found.expires_at,
                            }),
                        }
                    }
                },
                StoredAction::Put { value, expires_at } => {
                    let value = match value {
                        Carried::Copied(range) => ValueIn::Bytes(&arena[range]),
                        Carried::Shared(bytes) => ValueIn::Shared(bytes),
                    };
                    match self.put(hash, &arena[key.clone()], value, expires_at, now) {
                        Ok(version) => Outcome::Stored(version),
                        Err(too_large) => Outcome::TooLarge(too_large),
                    }
                }
                StoredAction::Delete => {
                    self.delete(hash, &arena[key.clone()], now);
                    Outcome::Deleted
                }
            };
            outcomes.push((key, outcome));
        }
    }
}

/// Copies a small value into the arena, or takes another reference to a large one.
fn carry(value: ValueView<'_>, arena: &mut Vec<u8>, answers_start: usize) -> Option<Carried> {
    match value {
        ValueView::Shared(bytes) => Some(Carried::Shared(Arc::clone(bytes))),
        ValueView::Bytes(bytes) => {
            if arena.len() - answers_start + bytes.len() > ANSWER_BYTES_MAX {
                return None;
            }
            Some(Carried::Copied(append(arena, bytes)))
        }
    }
}

fn append(arena: &mut Vec<u8>, bytes: &[u8]) -> Range<usize> {
    let start = arena.len();
    arena.extend_from_slice(bytes);
    start..arena.len()
}

/// A value on its way between cores.
#[derive(Debug)]
enum Carried {
    Copied(Range<usize>),
    Shared(Arc<[u8]>),
}

#[derive(Debug)]
enum StoredAction {
    Get,
    Put {
        value: Carried,
        expires_at: Option<UnixMs>,
    },
    Delete,
}

#[derive(Debug)]
struct StoredOperation {
    hash: KeyHash,
    key: Range<usize>,
    action: StoredAction,
}

/// Operations for one core, and afterwards their outcomes.
#[derive(Debug)]
pub struct Batch {
    target: CoreId,
    slot: u32,
    arena: Vec<u8>,
    operations: Vec<StoredOperation>,
    outcomes: Vec<(Range<usize>, Outcome<Carried>)>,
}

impl Batch {
    /// The core whose items this batch is about.
    pub fn target(&self) -> CoreId {
        self.target
    }

    /// How many operations wait to be carried out.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether no operation waits to be carried out.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

/// Where an operation's outcome will be found in its [`Exchange`].
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    slot: u32,
    index: u32,
}

/// The operations one connection has for other cores, sorted into batches.
///
/// Used in rounds: add operations, take the batches and send them, put each
/// back when it comes home, read the outcomes, reset.
#[derive(Debug)]
pub struct Exchange {
    /// For each core, the batch that takes its next operation.
    open: Vec<Option<u32>>,
    batches: Vec<Option<Box<Batch>>>,
    #[allow(clippy::vec_box, reason = "the boxes travel between cores as they are")]
    spare: Vec<Box<Batch>>,
}

impl Exchange {
    /// An empty exchange on a node of `cores` cores.
    pub fn new(cores: CoreCount) -> Self {
        Self {
            open: vec![None; cores.get()],
            batches: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Whether no operation was added since the last reset.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// How many batches were filled since the last reset.
    pub fn batch_count(&self) -> usize {
        self.batches.len()
    }

    /// Adds an operation for `core`, copying its key and, if small, its value.
    pub fn add(&mut self, core: CoreId, hash: KeyHash, key: &[u8], action: Action<'_>) -> Ticket {
        let slot = match self.open[core.index()] {
            Some(slot) => slot,
            None => self.open_batch(core),
        };
        let Some(batch) = &mut self.batches[slot as usize] else {
            unreachable!("an open batch has not been taken")
        };
        let key = append(&mut batch.arena, key);
        let action = match action {
            Action::Get => StoredAction::Get,
            Action::Delete => StoredAction::Delete,
            Action::Put { value, expires_at } => {
                let value = match value {
                    ValueIn::Bytes(bytes) => Carried::Copied(append(&mut batch.arena, bytes)),
                    ValueIn::Shared(bytes) => Carried::Shared(bytes),
                };
                StoredAction::Put { value, expires_at }
            }
        };
        let index = batch.operations.len() as u32;
        batch.operations.push(StoredOperation { hash, key, action });
        if batch.operations.len() == OPERATIONS_PER_BATCH {
            self.open[core.index()] = None;
        }
        Ticket { slot, index }
    }

    fn open_batch(&mut self, core: CoreId) -> u32 {
        let slot = self.batches.len() as u32;
        let batch = match self.spare.pop() {
            Some(mut batch) => {
                batch.target = core;
                batch.slot = slot;
                batch
            }
            None => Box::new(Batch {
                target: core,
                slot,
                arena: Vec::new(),
                operations: Vec::new(),
                outcomes: Vec::new(),
            }),
        };
        self.batches.push(Some(batch));
        self.open[core.index()] = Some(slot);
        slot
    }

    /// Takes the batch in `slot` (below [`Exchange::batch_count`]) to be sent;
    /// no operation can be added to it any more.
    pub fn take(&mut self, slot: usize) -> Option<Box<Batch>> {
        let batch = self.batches.get_mut(slot)?.take()?;
        let open = &mut self.open[batch.target.index()];
        if *open == Some(slot as u32) {
            *open = None;
        }
        Some(batch)
    }

    /// Puts a batch that came home back into its place.
    pub fn put_back(&mut self, batch: Box<Batch>) {
        let slot = batch.slot as usize;
        if let Some(place) = self.batches.get_mut(slot) {
            *place = Some(batch);
        }
    }

    /// The key and the outcome of the operation behind `ticket`; call it after
    /// its batch was put back.
    pub fn outcome(&self, ticket: Ticket) -> Option<(&[u8], Outcome<ValueView<'_>>)> {
        let batch = self.batches.get(ticket.slot as usize)?.as_ref()?;
        let (key, outcome) = batch.outcomes.get(ticket.index as usize)?;
        let outcome = match outcome {
            Outcome::Missing => Outcome::Missing,
            Outcome::Stored(version) => Outcome::Stored(*version),
            Outcome::Deleted => Outcome::Deleted,
            Outcome::TooLarge(too_large) => Outcome::TooLarge(*too_large),
            Outcome::Overflow => Outcome::Overflow,
            Outcome::Found(found) => Outcome::Found(Found {
                value: match &found.value {
                    Carried::Copied(range) => ValueView::Bytes(&batch.arena[range.clone()]),
                    Carried::Shared(bytes) => ValueView::Shared(bytes),
                },
                version: found.version,
                origin: found.origin,
                expires_at: found.expires_at,
            }),
        };
        Some((&batch.arena[key.clone()], outcome))
    }

    /// Forgets all operations and outcomes; keeps small boxes for the next round.
    pub fn reset(&mut self) {
        self.open.fill(None);
        for mut batch in self.batches.drain(..).flatten() {
            batch.operations.clear();
            batch.outcomes.clear();
            batch.arena.clear();
            if batch.arena.capacity() <= ARENA_BYTES_KEPT && self.spare.len() < self.open.len() {
                self.spare.push(batch);
            }
        }
    }
}
