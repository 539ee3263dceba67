//! What may be asked of a core, and what comes back.
//!
//! The core that owns a key's partition deals with every operation on it
//! ([`Coordinator`](crate::cluster::coordinator::Coordinator)); every other core
//! that wants something of it sends a [`Batch`]: the operations of one pipelined
//! read (or of one client batch) for that core, with their keys and values copied
//! into one arena, so that one message, one wake-up and no allocation per operation
//! carry them. The owner fills in one outcome per operation, in its own time, and
//! sends the same box home when the last is there. An [`Exchange`] is the sender's
//! side: it sorts operations into batches and finds each outcome again by its
//! [`Ticket`].
//!
//! Everything here is plain data; who carries the boxes is the business of `node`.
//! Bounds: a batch holds at most [`OPERATIONS_PER_BATCH`] operations, and copies values
//! out only as long as its [`Ration`] lasts: what does not fit is answered
//! [`Outcome::Overflow`] when its own request has asked for too much, and
//! [`Outcome::Crowded`] when the node has too much under way.

use std::ops::Range;
use std::sync::Arc;

use crate::buffers::{Allotment, Pool, Ration, RationRefused};
use crate::clock::{Origin, UnixMs, Version};
use crate::cluster::Consistency;
use crate::hash::{CoreCount, CoreId, KeyHash, RoughCores};
use crate::store::{ItemView, Lease, TooLarge, ValueIn, ValueView};
use crate::telemetry::latency::Via;
use crate::trace_context::Context;

/// How many operations one message between cores carries at most. Small enough
/// that the owner's loop turns between two of them, large enough that the price
/// of a wake-up is shared.
pub const OPERATIONS_PER_BATCH: usize = 256;

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
    /// The key is deleted under this version.
    Deleted(Version),
    /// The value is larger than this node takes; nothing was changed.
    TooLarge(TooLarge),
    /// The value was found, but the request has had as many bytes as one may have.
    Overflow,
    /// The value was found, but the node has too much under way to copy it.
    Crowded,
    /// Too few owners answered. A write may have reached some and may survive.
    Unreached {
        /// Owners that answered.
        reached: usize,
        /// Owners that had to.
        needed: usize,
    },
    /// This node has not found its cluster yet.
    Joining,
}

impl<V> Outcome<V> {
    fn map<W>(self, value: impl FnOnce(V) -> Result<W, RationRefused>) -> Outcome<W> {
        match self {
            Self::Missing => Outcome::Missing,
            Self::Found(found) => match value(found.value) {
                Err(RationRefused::Spent) => Outcome::Overflow,
                Err(RationRefused::Full) => Outcome::Crowded,
                Ok(value) => Outcome::Found(Found {
                    value,
                    version: found.version,
                    origin: found.origin,
                    expires_at: found.expires_at,
                }),
            },
            Self::Stored(version) => Outcome::Stored(version),
            Self::Deleted(version) => Outcome::Deleted(version),
            Self::TooLarge(too_large) => Outcome::TooLarge(too_large),
            Self::Overflow => Outcome::Overflow,
            Self::Crowded => Outcome::Crowded,
            Self::Unreached { reached, needed } => Outcome::Unreached { reached, needed },
            Self::Joining => Outcome::Joining,
        }
    }
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
    consistency: Consistency,
    /// Whether other nodes were asked.
    forwarded: bool,
    outcome: Option<Outcome<Carried>>,
}

/// One operation of a batch.
#[derive(Debug)]
pub struct Operation<'a> {
    /// The key's hash.
    pub hash: KeyHash,
    /// The key.
    pub key: &'a [u8],
    /// What to do with it.
    pub action: Action<'a>,
    /// How many owners must have answered.
    pub consistency: Consistency,
}

/// Who waits for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The core whose connection it is.
    pub core: CoreId,
    /// The number of the connection's reply there.
    pub reply: usize,
    /// The core that the batch was sent to.
    pub served_by: CoreId,
}

/// Operations for one core, and afterwards their outcomes.
#[derive(Debug)]
pub struct Batch {
    target: CoreId,
    slot: u32,
    arena: Vec<u8>,
    operations: Vec<StoredOperation>,
    /// How much of the arena was there before outcomes came.
    asked_bytes: usize,
    ration: Ration,
    /// Which operations belong to recorded requests: runs of them, each from, to, whose.
    contexts: Vec<(usize, usize, Context)>,
    /// Reads whose items the sender would like to copy.
    copies_wanted: Vec<usize>,
    /// The leases of those it may copy.
    leases: Vec<(usize, Lease)>,
}

impl Batch {
    /// The core whose items this batch is about.
    pub fn target(&self) -> CoreId {
        self.target
    }

    /// How many operations it holds.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it holds no operation.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The operation numbered `index`, which is below [`Batch::len`].
    pub fn operation(&self, index: usize) -> Operation<'_> {
        let operation = &self.operations[index];
        let action = match &operation.action {
            StoredAction::Get => Action::Get,
            StoredAction::Delete => Action::Delete,
            StoredAction::Put { value, expires_at } => Action::Put {
                value: match value {
                    Carried::Copied(range) => ValueIn::Bytes(&self.arena[range.clone()]),
                    Carried::Shared(bytes) => ValueIn::Shared(Arc::clone(bytes)),
                },
                expires_at: *expires_at,
            },
        };
        Operation {
            hash: operation.hash,
            key: &self.arena[operation.key.clone()],
            action,
            consistency: operation.consistency,
        }
    }

    /// Copies the hashes of the keys from the operation numbered `index` on, as many as there are
    /// and have room, and says how many.
    pub fn hashes_from(&self, index: usize, into: &mut [KeyHash]) -> usize {
        let operations = self.operations[index..].iter();
        let copied = into.iter_mut().zip(operations);
        copied
            .map(|(hash, operation)| *hash = operation.hash)
            .count()
    }

    /// The recorded request that the operation numbered `index` belongs to, if it does.
    #[inline]
    pub fn context(&self, index: usize) -> Option<Context> {
        let mut contexts = self.contexts.iter();
        let found = contexts.find(|(from, to, _)| (*from..*to).contains(&index));
        found.map(|(_, _, context)| *context)
    }

    #[cold]
    fn belongs(&mut self, index: usize, context: Context) {
        match self.contexts.last_mut() {
            Some((_, to, last)) if *to == index && *last == context => *to += 1,
            _ => self.contexts.push((index, index + 1, context)),
        }
    }

    /// Whether the sender would like to copy what the operation numbered `index` finds.
    #[inline]
    pub fn wants_copy(&self, index: usize) -> bool {
        !self.copies_wanted.is_empty() && self.copies_wanted.contains(&index)
    }

    /// Lets the sender copy what the operation numbered `index` has found.
    pub fn lend(&mut self, index: usize, lease: Lease) {
        self.leases.push((index, lease));
    }

    /// Says that the operation numbered `index` has to wait for other nodes.
    pub fn forwarded(&mut self, index: usize) {
        self.operations[index].forwarded = true;
    }

    /// Says what became of the operation numbered `index`. A small value is copied,
    /// a large one referenced.
    pub fn finish(&mut self, index: usize, outcome: Outcome<ValueView<'_>>) {
        let Self {
            arena,
            operations,
            ration,
            ..
        } = self;
        operations[index].outcome = Some(outcome.map(|value| {
            match value {
                ValueView::Shared(bytes) => Ok(Carried::Shared(Arc::clone(bytes))),
                ValueView::Bytes(bytes) => ration
                    .ask(bytes.len())
                    .map(|()| Carried::Copied(append(arena, bytes))),
            }
        }));
    }

    /// Whether a value was not copied because there was no room.
    fn is_crowded(&self) -> bool {
        let mut outcomes = self.operations.iter().map(|operation| &operation.outcome);
        outcomes.any(|outcome| matches!(outcome, Some(Outcome::Crowded)))
    }

    /// Forgets the outcomes, but not what was asked.
    fn ask_again(&mut self) {
        self.arena.truncate(self.asked_bytes);
        self.arena.shrink_to_fit();
        self.ration.release();
        self.leases.clear();
        for operation in &mut self.operations {
            operation.outcome = None;
        }
    }

    fn clear(&mut self) {
        self.operations.clear();
        self.contexts.clear();
        self.copies_wanted.clear();
        self.leases.clear();
        self.arena.clear();
        self.ration.release();
    }

    /// What it holds besides what its ration has taken.
    fn held(&self) -> usize {
        self.arena.capacity().saturating_sub(self.ration.taken())
            + self.operations.capacity() * size_of::<StoredOperation>()
            + self.contexts.capacity() * size_of::<(usize, usize, Context)>()
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
    allotment: Arc<Allotment>,
    /// The allotment of the request that is under way, where it has one of its own.
    own_allotment: Option<Arc<Allotment>>,
    /// The recorded request to which the operations belong that are added.
    pub context: Option<Context>,
    writes: bool,
    /// The cores that operations are expected for: a guess, for speed.
    expected: RoughCores,
    /// The cores that operations were added for since the last reset, at least.
    asked: RoughCores,
}

impl Exchange {
    /// An empty exchange on a node of `cores` cores, without bounds.
    pub fn new(cores: CoreCount) -> Self {
        Self::within(cores, Allotment::of(Pool::unlimited()))
    }

    /// An empty exchange on a node of `cores` cores, whose batches copy what `allotment`
    /// allows.
    pub fn within(cores: CoreCount, allotment: Arc<Allotment>) -> Self {
        Self {
            open: vec![None; cores.get()],
            batches: Vec::new(),
            spare: Vec::new(),
            allotment,
            own_allotment: None,
            context: None,
            writes: false,
            expected: RoughCores::default(),
            asked: RoughCores::default(),
        }
    }

    /// Until the next reset, has values copied only up to `bytes` in all.
    pub fn limit_copies(&mut self, bytes: usize) {
        let pool = Arc::clone(self.allotment.pool());
        self.own_allotment = Some(Allotment::new(pool, bytes));
    }

    /// What it holds, without batches that are away and what was taken for copies.
    pub fn held(&self) -> usize {
        let here = self.batches.iter().flatten().chain(&self.spare);
        here.map(|batch| batch.held()).sum()
    }

    /// Whether no operation was added since the last reset.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Whether an operation that writes was added since the last reset: what comes after it on
    /// the same connection must not be answered before it.
    #[inline]
    pub fn has_writes(&self) -> bool {
        self.writes
    }

    /// Says for which cores operations are to be expected.
    pub fn expect(&mut self, cores: RoughCores) {
        self.expected = cores;
    }

    /// Whether `core` gets operations anyway, so that one more costs little. Once it has been
    /// asked for something this is so until the next reset: whatever is answered without it
    /// could be older than what it is going to answer to an earlier request for the same key.
    #[inline]
    pub fn asks(&self, core: CoreId) -> bool {
        self.expected.may_have(core) || self.asked.may_have(core)
    }

    /// How many batches were filled since the last reset.
    pub fn batch_count(&self) -> usize {
        self.batches.len()
    }

    /// Adds an operation for `core`, copying its key and, if small, its value.
    pub fn add(&mut self, core: CoreId, operation: Operation<'_>) -> Ticket {
        let Operation {
            hash,
            key,
            action,
            consistency,
        } = operation;
        self.asked.add(core);
        let slot = match self.open[core.index()] {
            Some(slot) => slot,
            None => self.open_batch(core),
        };
        let Some(batch) = &mut self.batches[slot as usize] else {
            unreachable!("an open batch has not been taken")
        };
        let key = append(&mut batch.arena, key);
        self.writes |= !matches!(action, Action::Get);
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
        batch.operations.push(StoredOperation {
            hash,
            key,
            action,
            consistency,
            forwarded: false,
            outcome: None,
        });
        if let Some(context) = self.context {
            batch.belongs(index as usize, context);
        }
        if batch.operations.len() == OPERATIONS_PER_BATCH {
            self.open[core.index()] = None;
        }
        Ticket { slot, index }
    }

    /// Asks for a copy of what the read behind `ticket`, which was added last, finds.
    #[cold]
    pub fn want_copy(&mut self, ticket: Ticket) {
        if let Some(batch) = &mut self.batches[ticket.slot as usize] {
            batch.copies_wanted.push(ticket.index as usize);
        }
    }

    /// Takes the leases that came home, each with the read that found its item.
    pub fn take_leases(&mut self) -> Vec<(Ticket, Lease)> {
        let mut all = Vec::new();
        for (slot, batch) in self.batches.iter_mut().enumerate() {
            let Some(batch) = batch else { continue };
            for (index, lease) in batch.leases.drain(..) {
                let (slot, index) = (slot as u32, index as u32);
                all.push((Ticket { slot, index }, lease));
            }
        }
        all
    }

    fn open_batch(&mut self, core: CoreId) -> u32 {
        let slot = self.batches.len() as u32;
        let allotment = self.own_allotment.as_ref().unwrap_or(&self.allotment);
        let batch = match self.spare.pop() {
            Some(mut batch) => {
                batch.target = core;
                batch.slot = slot;
                batch.ration.renew(allotment);
                batch
            }
            None => Box::new(Batch {
                target: core,
                slot,
                arena: Vec::new(),
                operations: Vec::new(),
                asked_bytes: 0,
                ration: Ration::new(Arc::clone(allotment)),
                contexts: Vec::new(),
                copies_wanted: Vec::new(),
                leases: Vec::new(),
            }),
        };
        self.batches.push(Some(batch));
        self.open[core.index()] = Some(slot);
        slot
    }

    /// Takes the batch in `slot` (below [`Exchange::batch_count`]) to be sent;
    /// no operation can be added to it any more.
    pub fn take(&mut self, slot: usize) -> Option<Box<Batch>> {
        let mut batch = self.batches.get_mut(slot)?.take()?;
        batch.asked_bytes = batch.arena.len();
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
        let operation = batch.operations.get(ticket.index as usize)?;
        let outcome = match operation.outcome.as_ref()? {
            Outcome::Found(found) => Outcome::Found(Found {
                value: match &found.value {
                    Carried::Copied(range) => ValueView::Bytes(&batch.arena[range.clone()]),
                    Carried::Shared(bytes) => ValueView::Shared(bytes),
                },
                version: found.version,
                origin: found.origin,
                expires_at: found.expires_at,
            }),
            Outcome::Missing => Outcome::Missing,
            Outcome::Stored(version) => Outcome::Stored(*version),
            Outcome::Deleted(version) => Outcome::Deleted(*version),
            Outcome::TooLarge(too_large) => Outcome::TooLarge(*too_large),
            Outcome::Overflow => Outcome::Overflow,
            Outcome::Crowded => Outcome::Crowded,
            Outcome::Unreached { reached, needed } => Outcome::Unreached {
                reached: *reached,
                needed: *needed,
            },
            Outcome::Joining => Outcome::Joining,
        };
        Some((&batch.arena[operation.key.clone()], outcome))
    }

    /// How far the operation behind `ticket` went from this core.
    pub fn via(&self, ticket: Ticket, from: CoreId) -> Via {
        let batch = self.batches.get(ticket.slot as usize);
        let batch = batch.and_then(Option::as_ref);
        let operation = batch.and_then(|batch| batch.operations.get(ticket.index as usize));
        match (batch, operation) {
            (_, Some(operation)) if operation.forwarded => Via::Forwarded,
            (Some(batch), _) if batch.target != from => Via::Remote,
            _ => Via::Local,
        }
    }

    /// How far the operation went that went furthest.
    pub fn furthest(&self, from: CoreId) -> Via {
        let mut furthest = Via::Local;
        for batch in self.batches.iter().flatten() {
            if batch.operations.iter().any(|operation| operation.forwarded) {
                return Via::Forwarded;
            }
            if batch.target != from {
                furthest = Via::Remote;
            }
        }
        furthest
    }

    /// Whether values were not copied because there was no room.
    pub fn is_crowded(&self) -> bool {
        self.batches
            .iter()
            .flatten()
            .any(|batch| batch.is_crowded())
    }

    /// Forgets all outcomes, and gives back what was taken for copies: the batches can be
    /// taken and sent again.
    pub fn ask_again(&mut self) {
        for batch in self.batches.iter_mut().flatten() {
            batch.ask_again();
        }
    }

    /// Forgets all operations and outcomes; keeps small boxes for the next round.
    pub fn reset(&mut self) {
        self.open.fill(None);
        self.own_allotment = None;
        self.writes = false;
        self.expected = RoughCores::default();
        self.asked = RoughCores::default();
        for mut batch in self.batches.drain(..).flatten() {
            batch.clear();
            if batch.arena.capacity() <= ARENA_BYTES_KEPT && self.spare.len() < self.open.len() {
                self.spare.push(batch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read from a copy after an earlier read of the same key was left to its owner
    /// could be older than what the owner answers.
    #[test]
    fn a_core_once_asked_is_asked_until_the_reset_however_many_batches_that_takes() {
        let cores = CoreCount::new(2).unwrap();
        let mut exchange = Exchange::new(cores);
        let [one, other] = [0, 1].map(CoreId::new);
        let read = || Operation {
            hash: KeyHash::of(b"k"),
            key: b"k",
            action: Action::Get,
            consistency: Consistency::One,
        };
        assert!(!exchange.asks(one));
        for _ in 0..OPERATIONS_PER_BATCH {
            exchange.add(one, read());
            assert!(exchange.asks(one) && !exchange.asks(other));
        }
        // The batch is full, and others are expected.
        let mut expected = RoughCores::default();
        expected.add(other);
        exchange.expect(expected);
        assert!(exchange.asks(one) && exchange.asks(other));
        exchange.reset();
        assert!(!exchange.asks(one) && !exchange.asks(other));
    }
}
