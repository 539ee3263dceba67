//! hypercache: a distributed in-memory cache node, one thread per core.
//!
//! The library exists for the binary, its tests and its benchmarks; it is not an
//! API for others. Layers, each importing only what stands below it:
//!
//! ```text
//! main -> node -> {mgmt, peer} -> api -> {cluster, operations} -> store -> {hash, clock, bytes, buffers, trace_context}
//!           \-> http (codec)    tls -> runtime (cores, sockets, mailboxes)    telemetry    settings
//! ```

pub mod api;
pub mod auth;
pub mod buffers;
pub mod bytes;
pub mod clock;
pub mod cluster;
pub mod duration;
pub mod hash;
pub mod http;
pub mod mgmt;
pub mod mutation;
pub mod node;
pub mod operations;
pub mod peer;
pub mod runtime;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod trace_context;
