//! The shell: threads, sockets and clocks around the pure parts.

pub mod connection;
pub mod control;
pub mod core;
pub mod door;
pub mod errand;
mod gathering;
mod input;
pub mod lifecycle;
mod measuring;
pub mod peering;
pub mod readiness;
mod recording;
pub mod rest;
pub mod security;
mod slices;
mod spread;
mod stalls;
pub mod verifying;
