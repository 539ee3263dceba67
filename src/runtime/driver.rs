//! Which I/O driver a core runs on, and why not a better one.
//!
//! Names only: the trying is done where the runtime is built. A report is made
//! once per core at its start and never changes afterwards, so that a node can say
//! in its log and in a metric what it runs on.

use std::fmt;

/// The I/O driver a core runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DriverKind {
    /// io_uring with `SINGLE_ISSUER | DEFER_TASKRUN` (Linux 6.1): the least CPU per request.
    IoUringTuned,
    /// io_uring with default flags.
    IoUring,
    /// epoll: where io_uring is refused, as containers' default profiles do.
    Epoll,
    /// glommio's io_uring reactor, when that runtime is compiled in.
    GlommioIoUring,
}

impl DriverKind {
    /// Its name in logs, metrics and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUringTuned => "io_uring_tuned",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
            Self::GlommioIoUring => "glommio_io_uring",
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a core runs on, and why a better driver was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverReport {
    /// The driver in use.
    pub kind: DriverKind,
    /// Why each better driver was not used, such as
    /// `io_uring refused: Operation not permitted (os error 1)`; none for the best one
    /// and for a driver that was asked for.
    pub fallback_reason: Option<String>,
}

/// Which driver the settings ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// The best driver this machine grants.
    #[default]
    Auto,
    /// io_uring, with or without tuned flags; a core whose io_uring is refused fails to start.
    IoUring,
    /// epoll, even where io_uring is granted.
    Epoll,
}
