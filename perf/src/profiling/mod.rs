//! What `perf/profile` is made of: a node under load or one that runs already, `perf record`
//! beside it, and the picture; and callgrind on the hot path.
//!
//! `stacks` reads what perf prints, `record` runs it, `instructions` runs callgrind.

mod instructions;
mod record;
mod stacks;

pub use instructions::{CASES_BENCH, Count, count_all};
pub use record::{Profile, View};
pub use stacks::{FIELDS, OffCpu, Stacks};
