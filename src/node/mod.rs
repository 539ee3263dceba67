//! The shell: threads, sockets and clocks around the pure parts.

pub mod connection;
pub mod core;
pub mod deadlines;
pub mod lifecycle;
