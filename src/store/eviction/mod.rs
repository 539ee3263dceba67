//! Which item leaves when room is needed.
//!
//! Each policy is a small struct that threads its order through the items' links and
//! keeps what it knows of an item in the 8 state bits of its header; only S3-FIFO has
//! memory of its own, fixed at start. Order is per shard: a core never asks another.
//!
//! Every operation is O(1) amortised and bounded: SIEVE, CLOCK and S3-FIFO give items
//! that were used another chance, and an unlucky sweep could pass over all of them. A
//! sweep therefore looks at [`SWEEP_MAX`] items and then takes the one at hand. Each
//! item it passed lost its mark, so the next sweep starts where this one ended and the
//! whole list is still covered; the deviation from the papers shows only when more
//! than that many neighbours were all used since the hand last came by.
//!
//! Dispatch is by enum: a branch that is always taken the same way, not a virtual call.

mod clock;
mod lfu;
mod lru;
mod s3fifo;
mod sieve;

use std::fmt;
use std::str::FromStr;

use super::item::ItemId;
use super::slab::Slab;
use clock::Clock;
use lfu::Lfu;
use lru::Lru;
use s3fifo::S3Fifo;
use sieve::Sieve;

/// How many items one sweep may spare before it takes one regardless.
const SWEEP_MAX: usize = 128;

/// Which eviction policy a shard runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvictionPolicy {
    /// S3-FIFO: a small queue filters what is used once from the main queue.
    #[default]
    S3Fifo,
    /// SIEVE: one queue, one bit, a hand that spares what was used.
    Sieve,
    /// Least recently used.
    Lru,
    /// Least frequently used, the least recent first among equals.
    Lfu,
    /// CLOCK: first in, first out, with a second chance.
    Clock,
}

impl EvictionPolicy {
    /// Every policy, the default first.
    pub const ALL: [Self; 5] = [Self::S3Fifo, Self::Sieve, Self::Lru, Self::Lfu, Self::Clock];

    /// Its name in settings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sieve => "sieve",
            Self::S3Fifo => "s3fifo",
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Clock => "clock",
        }
    }
}

impl fmt::Display for EvictionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no eviction policy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownEvictionPolicy;

impl fmt::Display for UnknownEvictionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected one of")?;
        for (nth, policy) in EvictionPolicy::ALL.into_iter().enumerate() {
            write!(f, "{} {policy}", if nth == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl std::error::Error for UnknownEvictionPolicy {}

impl FromStr for EvictionPolicy {
    type Err = UnknownEvictionPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.name() == name)
            .ok_or(UnknownEvictionPolicy)
    }
}

/// What a policy must be able to do. It sees values only, never tombstones.
pub(super) trait Policy {
    /// Takes in an item that is in no list. Its state is 0 unless it was taken out
    /// with [`Policy::remove`] before.
    fn insert(&mut self, slab: &mut Slab, id: ItemId);

    /// An item it holds was read or overwritten.
    fn access(&mut self, slab: &mut Slab, id: ItemId);

    /// Lets go of an item it holds, for a reason of the caller's.
    fn remove(&mut self, slab: &mut Slab, id: ItemId);

    /// Chooses the item to evict and lets go of it; `None` if it holds none.
    fn evict(&mut self, slab: &mut Slab) -> Option<ItemId>;

    /// What it takes on the heap.
    fn bytes(&self) -> usize {
        0
    }
}

/// The policy of a shard.
pub(super) enum Evictor {
    Sieve(Sieve),
    S3Fifo(S3Fifo),
    Lru(Lru),
    Lfu(Lfu),
    Clock(Clock),
}

impl Evictor {
    /// The policy `policy` for a shard that may hold about `items` items.
    pub(super) fn new(policy: EvictionPolicy, items: usize) -> Self {
        match policy {
            EvictionPolicy::Sieve => Self::Sieve(Sieve::default()),
            EvictionPolicy::S3Fifo => Self::S3Fifo(S3Fifo::new(items)),
            EvictionPolicy::Lru => Self::Lru(Lru::default()),
            EvictionPolicy::Lfu => Self::Lfu(Lfu::default()),
            EvictionPolicy::Clock => Self::Clock(Clock::default()),
        }
    }
}

macro_rules! dispatch {
    ($evictor:expr, $policy:ident => $call:expr) => {
        match $evictor {
            Evictor::Sieve($policy) => $call,
            Evictor::S3Fifo($policy) => $call,
            Evictor::Lru($policy) => $call,
            Evictor::Lfu($policy) => $call,
            Evictor::Clock($policy) => $call,
        }
    };
}

impl Policy for Evictor {
    #[inline]
    fn insert(&mut self, slab: &mut Slab, id: ItemId) {
        dispatch!(self, policy => policy.insert(slab, id));
    }

    #[inline]
    fn access(&mut self, slab: &mut Slab, id: ItemId) {
        dispatch!(self, policy => policy.access(slab, id));
    }

    fn remove(&mut self, slab: &mut Slab, id: ItemId) {
        dispatch!(self, policy => policy.remove(slab, id));
    }

    fn evict(&mut self, slab: &mut Slab) -> Option<ItemId> {
        dispatch!(self, policy => policy.evict(slab))
    }

    fn bytes(&self) -> usize {
        dispatch!(self, policy => policy.bytes())
    }
}

#[cfg(test)]
mod tests;
