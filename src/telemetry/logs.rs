//! Logs: JSON lines on standard error.
//!
//! One object per event: `timestamp` (RFC 3339, UTC), `level`, `message`, and the
//! event's own fields beside them. Data cores log rarely (accept failures, broken
//! invariants), never per request. A standard error that is closed loses the line
//! and nothing else.

use std::io::{self, Write};

use tracing::Level;

/// Standard error whose failures are swallowed: a node outlives its log reader.
struct Tolerant;

impl Write for Tolerant {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging events of at least this severity.
pub fn init(level: Level) {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_max_level(level)
        .with_writer(|| Tolerant)
        .init();
}

/// Says why there is no start, in one plain line: whoever started the program
/// reads it, not a log collector.
pub fn start_error(reason: &str) {
    let _ = writeln!(io::stderr(), "hypercache: {reason}");
}
