//! Logs: JSON lines on standard error.
//!
//! One object per event: `timestamp` (RFC 3339, UTC), `level`, `message`, and the
//! event's own fields beside them. Data cores log rarely (accept failures, slow requests,
//! broken invariants), never per request.
//!
//! Whoever logs hands its line to a thread that writes, and never waits: whoever reads
//! standard error may be slow. When [`LINES_WAITING_MAX`] lines wait, further ones are lost
//! and counted. A standard error that is closed loses all of them and nothing else. Before
//! the process ends it waits for what was logged ([`flush`]), but not for long.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing::Level;

/// How many lines wait to be written at most.
const LINES_WAITING_MAX: usize = 1024;

/// How long the end of the process waits until its last lines are written.
const FLUSH_MAX: Duration = Duration::from_secs(1);

enum Entry {
    Line(Vec<u8>),
    /// Everything before this was written once the sender is told.
    Mark(Sender<()>),
}

/// Where lines go, once logging has started.
static QUEUE: OnceLock<Sender<Entry>> = OnceLock::new();
static LOST: AtomicU64 = AtomicU64::new(0);

/// Takes one event's line per write.
struct Queue;

impl Write for Queue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let queue = QUEUE.get();
        let sent = queue.map(|queue| queue.try_send(Entry::Line(bytes.to_vec())));
        if !matches!(sent, Some(Ok(()))) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging events of at least this severity.
///
/// # Errors
///
/// When there can be no thread for it.
pub fn init(level: Level) -> io::Result<()> {
    let (sender, receiver) = bounded(LINES_WAITING_MAX);
    thread::Builder::new()
        .name("logs".to_owned())
        .spawn(move || write_lines(&receiver))?;
    // Started once: a second queue would be dropped, and its thread would end.
    let _ = QUEUE.set(sender);
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_max_level(level)
        .with_writer(|| Queue)
        .init();
    Ok(())
}

fn write_lines(entries: &Receiver<Entry>) {
    let mut stderr = io::stderr();
    for entry in entries {
        match entry {
            // A node outlives its log reader.
            Entry::Line(line) => {
                let _ = stderr.write_all(&line);
            }
            Entry::Mark(reached) => {
                let _ = reached.try_send(());
            }
        }
    }
}

/// Waits until what was logged so far is written, for a second at most.
pub fn flush() {
    let Some(queue) = QUEUE.get() else {
        return;
    };
    let (sender, reached) = bounded(1);
    if queue.send_timeout(Entry::Mark(sender), FLUSH_MAX).is_ok() {
        let _ = reached.recv_timeout(FLUSH_MAX);
    }
}

/// How many lines were lost because too many waited.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Says why there is no start, in one plain line: whoever started the program
/// reads it, not a log collector.
pub fn start_error(reason: &str) {
    flush();
    let _ = writeln!(io::stderr(), "hypercache: {reason}");
}
