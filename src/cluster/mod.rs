//! The cluster, without a socket, a thread or a clock: pure state machines that are
//! told what happened and when, and say what to do.
//!
//! ```text
//!  client operations          peers' frames, answers, failures         time
//!          │                            │                                │
//!          ▼                            ▼                                ▼
//!   ┌──────────────────────── Coordinator (one per core) ───────────────────────┐
//!   │ quorums · LocalStore · Outbox per peer · Hints · Sync · reads View         │
//!   └────────────────────────────────────────────────────────────────────────────┘
//!                                       ▲ View (immutable, replaced whole)
//!   Membership (one per node, SWIM) ────┘ members → ring → table of owners
//! ```
//!
//! What is promised to clients stands in docs/consistency.md; `tests/simulation`
//! runs these machines under every fault it names and asserts exactly that.

pub mod activity;
pub mod consistency;
pub mod coordinator;
pub mod hints;
pub mod local;
pub mod membership;
pub mod message;
pub mod outbox;
pub mod placement;
mod replica;
pub mod retire;
pub mod rng;
pub mod sync;
pub mod view;

pub use consistency::Consistency;
pub use coordinator::Coordinator;
pub use local::LocalStore;
pub use view::{NodeIx, View};
