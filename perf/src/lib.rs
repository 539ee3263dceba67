//! What measures hypercache: load generators, servers to drive, and how results are
//! printed. Each program in `src/bin` answers one question; perf/README.md lists them.

pub mod certificates;
pub mod checked;
pub mod comparing;
pub mod histogram;
pub mod load;
pub mod open_loop;
pub mod options;
pub mod peers;
pub mod poll;
pub mod popularity;
pub mod profiling;
pub mod protocol;
pub mod report;
mod requests;
pub mod servers;
pub mod socket;
pub mod trace;

pub use load::{Load, Locality, cpu_ns, pin};
pub use popularity::Popularity;
pub use protocol::Protocol;
