//! One shard: everything one data core stores.
//!
//! Pure state: no I/O, no async, no threads, no clock. Whoever needs time passes
//! it in as [`UnixMs`](crate::clock::UnixMs). The same code therefore serves a
//! data core, the simulation and the tests.
//!
//! What a [`Shard`] promises:
//!
//! * **Last writer wins.** [`Shard::apply`] is the one way in. Of two writes of a
//!   key the one with the greater (version, origin) stays, in whatever order and
//!   however often they arrive. A stale write changes nothing.
//! * **Bounds hold after every call.** Items, bytes and tombstones are bounded;
//!   room is made in the call that needs it. Bytes are what the allocator really
//!   hands out, our own structures included.
//! * **Bounded work.** No call walks all items: tables are small and grow one at a
//!   time, expiry is a timing wheel advanced in steps, eviction sweeps stop after
//!   a fixed number of items.
//! * **Exact expiry.** An item is invisible from the millisecond it expires, reaped
//!   or not, and reading it never moves that millisecond.
//!
//! What it never does: hash a key to find it, read a clock, decide who owns a partition.
//!
//! ```text
//!   KeyHash ─ partition ─► Table (hashbrown, u32 ids) ─► Slab ─► Item (one block of the Pool)
//!                 │                                        ▲
//!                 └─► Digest            eviction lists, tombstone queue and
//!                                       timing wheel are threaded through items
//! ```

mod copies;
mod digest;
mod eviction;
mod expiry;
mod frequency;
mod hotkeys;
mod item;
mod lease;
mod list;
mod memory;
mod partition;
mod pool;
mod shard;
mod shared;
mod slab;
mod table;
mod write;

pub use copies::{Copies, CopyCounts};
pub use digest::Digest;
pub use eviction::{EvictionPolicy, UnknownEvictionPolicy};
pub use hotkeys::{HotKey, HotKeys, SAMPLE as HOT_KEYS_SAMPLE};
pub use item::{ItemView, Resident, StoredItem, ValueView};
pub use lease::{LEASES_MAX, Lease};
pub use shard::{FORESEEN_MAX, Shard, ShardConfig, ShardStats, ShardTooSmall};
pub use write::{Applied, Content, KEY_BYTES_MAX, SHARED_VALUE_BYTES, TooLarge, ValueIn, Write};
