//! Hostile clients against a real node. In every case neighbours are served throughout,
//! memory stays within a bound, and a metric shows what was done.
//!
//! * `slow`: who sends or reads too slowly, or not at all.
//! * `storms`: who connects and goes, again and again.
//! * `large`: who sends too much of anything, or what nobody should.
//! * `listeners`: strangers on the listeners that are not for clients.
//! * `crowded`: many who together ask for more memory than there is.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "../support/hostile.rs"]
mod hostile;
#[path = "../support/node.rs"]
mod node;

mod crowded;
mod large;
mod listeners;
mod slow;
mod storms;
