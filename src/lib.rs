//! hypercache: a distributed in-memory cache node, one thread per core.
//!
//! The library exists for the binary, its tests and its benchmarks; it is not an
//! API for others. Layers, each importing only what stands below it:
//!
//! ```text
//! main -> node -> api -> store -> {hash, clock}
//!           \-> http (codec)   runtime (cores, sockets, mailboxes)   telemetry   settings
//! ```

pub mod api;
pub mod clock;
pub mod hash;
pub mod http;
pub mod node;
pub mod runtime;
pub mod settings;
pub mod store;
pub mod telemetry;
