//! What one core counts, in cells of its own that others may only read.
//!
//! One writer, any reader: the core adds with a plain load and store (no locked
//! instruction), the control thread reads relaxed. A scrape never makes a core
//! wait, and no two cores share a cache line.

use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::Histogram;
use super::latency::Latencies;
use super::work::WorkCounters;

/// A number that one thread changes and others read.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds; only ever called by the owner.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    /// Replaces; only ever called by the owner.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The cells of one core.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CoreCounters {
    /// Requests handled.
    pub requests: Cell,
    /// Requests refused as malformed or over a limit of the protocol.
    pub requests_refused: Cell,
    /// Requests that showed no credentials that count.
    pub requests_unauthorized: Cell,
    /// Requests by callers that lack the scope.
    pub requests_forbidden: Cell,
    /// Requests refused because their credentials could not be verified then.
    pub verifications_refused: Cell,
    /// TLS handshakes that became connections.
    pub handshakes: Cell,
    /// Those that came to no good end.
    pub handshakes_failed: Cell,
    /// Those that took too long.
    pub handshakes_timed_out: Cell,
    /// Those that were not begun because as many as may be were under way.
    pub handshakes_refused: Cell,
    /// Connections accepted.
    pub connections_accepted: Cell,
    /// Those of them that were passed on to another core.
    pub connections_moved: Cell,
    /// Connections turned away because the node has as many as it may.
    pub connections_refused: Cell,
    /// Connections open now.
    pub connections_open: Cell,
    /// Connections cut because the client took too long.
    pub connections_expired: Cell,
    /// Those of them that brought no next request.
    pub connections_expired_idle: Cell,
    /// Those of them whose request did not arrive whole.
    pub connections_expired_request: Cell,
    /// Those of them that did not take their answer.
    pub connections_expired_write: Cell,
    /// Bytes of requests and answers under way.
    pub buffered_bytes: Cell,
    /// Requests refused because there were too many of these.
    pub requests_crowded: Cell,
    /// Batches of operations sent to other cores.
    pub batches_sent: Cell,
    /// Operations carried out for other cores.
    pub operations_for_others: Cell,
    /// Frames of peers received.
    pub peer_frames: Cell,
    /// Those of them that had to go to another core.
    pub peer_frames_hopped: Cell,
    /// Connections of peers turned away because the core has as many as it may.
    pub peer_connections_refused: Cell,
    /// Idle connections of peers that were closed to make room for others.
    pub peer_connections_displaced: Cell,
    /// Requests of peers without the token.
    pub peer_unauthorized: Cell,
    /// Live items.
    pub items: Cell,
    /// Bytes held, all overhead included.
    pub bytes: Cell,
    /// Tombstones held.
    pub tombstones: Cell,
    /// Copies of other cores' items.
    pub copies: Cell,
    /// What they take.
    pub copy_bytes: Cell,
    /// Reads answered from them.
    pub copy_hits: Cell,
    /// Copies taken.
    pub copies_taken: Cell,
    /// Items of which other cores may have copies.
    pub leases: Cell,
    /// How often such items have changed or gone.
    pub leases_revoked: Cell,
    /// Reads of keys, from copies too.
    pub gets: Cell,
    /// Reads that found something.
    pub hits: Cell,
    /// Values written.
    pub sets: Cell,
    /// Deletes.
    pub removes: Cell,
    /// Items evicted.
    pub evicted: Cell,
    /// Items reaped after they expired.
    pub expired: Cell,
    /// Values refused for their size.
    pub too_large: Cell,
    /// CPU time of the core's thread, in microseconds.
    pub cpu_us: Cell,
    /// How late its ticks came, in all, in microseconds.
    pub stall_us: Cell,
    /// The latest that one came within the last minute.
    pub stall_us_max: Cell,
    /// Requests that took longer than they should.
    pub slow_requests: Cell,
    /// How long requests took.
    pub latencies: Latencies,
    /// How long eviction cycles took that were asked for.
    pub evictions: Histogram,
    /// How long it worked in one piece.
    pub work: WorkCounters,
}
