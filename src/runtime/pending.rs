//! The guard on the rule that no pending I/O future is dropped.
//!
//! With io_uring the kernel owns the buffer of a pending operation. When the future
//! is dropped, monoio 0.2.4 throws away the bytes the operation then delivers, and
//! leaks the socket a dropped accept takes. So an I/O future is always awaited to its
//! end, and whoever wants it to end early shuts its socket down
//! ([`Aborter`](super::Aborter), [`Closer`](super::Closer)).
//!
//! Each I/O future of this module carries a [`PendingIo`]. Dropped unfinished on a
//! running core it is counted, and in debug builds it panics. A core that is
//! stopping drops its tasks, and that is not counted.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// What a thread has to do with cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It runs none.
    None,
    /// It runs one.
    Running,
    /// It has run one, whose tasks are being dropped, some after a last turn.
    Ended,
}

thread_local! {
    static PHASE: Cell<Phase> = const { Cell::new(Phase::None) };
}

/// How many pending I/O futures this process has dropped. Anything but zero is a defect.
pub fn dropped_pending_io() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Marks this thread as a running core until dropped.
pub(super) struct RunningCore(());

impl RunningCore {
    pub(super) fn enter() -> Self {
        PHASE.set(Phase::Running);
        Self(())
    }

    pub(super) fn here() -> bool {
        PHASE.get() == Phase::Running
    }

    pub(super) fn phase() -> Phase {
        PHASE.get()
    }
}

impl Drop for RunningCore {
    fn drop(&mut self) {
        PHASE.set(Phase::Ended);
    }
}

/// Held across an I/O await; must be finished, not dropped.
#[must_use]
pub(super) struct PendingIo {
    operation: &'static str,
}

impl PendingIo {
    #[inline]
    pub(super) fn new(operation: &'static str) -> Self {
        Self { operation }
    }

    #[inline]
    pub(super) fn finish(self) {
        std::mem::forget(self);
    }
}

impl Drop for PendingIo {
    #[cold]
    fn drop(&mut self) {
        if !RunningCore::here() || std::thread::panicking() {
            return;
        }
        DROPPED.fetch_add(1, Ordering::Relaxed);
        if cfg!(debug_assertions) {
            panic!(
                "a pending {} was dropped: shut its socket down and await it",
                self.operation
            );
        }
    }
}
