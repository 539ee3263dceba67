//! What a node tells about itself: counters, metrics, logs.
//!
//! Cores count in [`counters`] and leave structures in [`cluster`]; [`snapshot`] puts them
//! together, [`table`] says what each number is called and means, and [`prometheus`] writes
//! what the table finds in a snapshot.

pub mod cluster;
pub mod counters;
pub mod export;
pub mod histogram;
pub mod latency;
pub mod logs;
pub mod metric;
pub mod otlp;
pub mod prometheus;
pub mod security;
pub mod snapshot;
pub mod table;
pub mod trace;
pub mod work;
