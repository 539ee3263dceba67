//! What a node tells about itself: counters, metrics, logs.

pub mod cluster;
pub mod counters;
pub mod logs;
pub mod prometheus;
pub mod security;
