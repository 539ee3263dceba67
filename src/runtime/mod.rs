//! One thin module over the async runtime: cores, drivers, sockets, timers, mailboxes.
//!
//! Everything above is written against this module and runs unchanged on monoio
//! (io_uring, or epoll where it is refused) and on glommio; the same tests hold both to
//! it. It knows nothing of caches.
//!
//! Promises: [`run_core`] gives a thread its own driver, tasks, timers and sockets, and
//! shares none of them; the driver it got and the reason are reported. Only mailboxes
//! cross threads.
//!
//! Never: a lock on the way of a message or a byte; a pending I/O future dropped (see
//! [`dropped_pending_io`]).
//!
//! When something is full, a mailbox makes its senders wait ([`mailbox()`]); a slow peer
//! makes its writer wait; a peer or a receiver that is gone is an error to whoever
//! speaks to it. A task that computes for long calls [`yield_to_io`], or the whole core
//! stalls with it.

#[cfg(not(any(feature = "monoio", feature = "glommio")))]
compile_error!("enable one of the features `monoio` and `glommio`");

mod alarm;
mod cgroup;
mod cores;
mod deadlines;
mod driver;
#[cfg(feature = "glommio")]
mod glommio;
mod handoff;
mod mailbox;
mod memory;
#[cfg(all(feature = "monoio", not(feature = "glommio")))]
mod monoio;
mod orphans;
mod pending;
mod process;
mod resolve;
mod segment;
#[cfg(all(feature = "monoio", not(feature = "glommio")))]
mod sleep;
#[cfg(all(feature = "monoio", not(feature = "glommio")))]
mod sleepers;
mod sockets;
mod transport;

#[cfg(feature = "glommio")]
use self::glommio as backend;
#[cfg(all(feature = "monoio", not(feature = "glommio")))]
use self::monoio as backend;

pub use self::alarm::Alarm;
pub use self::cores::{
    CORES_MAX, CoreFacts, CorePlan, CorePlanError, PlanReason, plan, read_facts,
};
pub use self::deadlines::{CUT_MAX, Deadlines, Expired, Timeouts, Wait, Watch};
pub use self::driver::{DriverChoice, DriverKind, DriverReport};
pub use self::handoff::{Giver, Taker, handoff};
pub use self::mailbox::{RECEIVE_BATCH_MAX, Receiver, Sender, TrySendError, mailbox};
pub use self::memory::memory_limit_bytes;
pub use self::orphans::{adopts_orphans, reap_orphans};
use self::pending::Phase;
pub use self::pending::dropped_pending_io;
pub use self::process::{
    ProcessUsage, Throttling, process_usage, thread_cpu, thread_waited, throttling,
};
pub use self::resolve::resolve;
pub use self::segment::Segment;
pub use self::sockets::{
    Aborter, CHOSEN_PORTS, Closer, Listener, Steered, Steering, Stream, bind_alone, bind_reuseport,
    connect, steer,
};

pub use self::transport::{Resumed, Transport};

use std::future::Future;
use std::io;
use std::time::Duration;

/// Runs a core on the calling thread: pins it to `cpu` if there is one, builds the
/// driver, and runs the future that `main` makes, and all that it spawns, until that
/// future ends. Tasks still running then are dropped.
///
/// Fails when the thread cannot be pinned, and when no driver that `choice` allows can be
/// built: the error says why.
pub fn run_core<F, Fut>(
    cpu: Option<usize>,
    choice: DriverChoice,
    main: F,
) -> io::Result<Fut::Output>
where
    F: FnOnce(DriverReport) -> Fut,
    Fut: Future,
{
    if let Some(cpu) = cpu {
        cores::pin_this_thread(cpu)?;
    }
    backend::run_core(choice, main)
}

/// Starts a task on this core, detached. Call it on a core. The task takes turns with
/// the others there and never moves; a panic in it ends the whole core.
pub fn spawn<F>(future: F)
where
    F: Future<Output = ()> + 'static,
{
    backend::spawn(future);
}

/// Waits for `duration`, rounded up to whole milliseconds. May be dropped early.
pub async fn sleep(duration: Duration) {
    backend::sleep(duration).await;
}

/// Lets this core have one whole turn before going on: I/O completions, timers, wake-ups
/// from other cores, and the tasks they make ready, sleeping ones a turn later at the latest.
/// Returns at once off a core, and never on one that has ended: there are no more turns, and a
/// task that waits for something by yielding would keep the core from ending.
///
/// A task that works for longer than about 100 microseconds calls it now and then.
/// Yielding by waking oneself is not enough: with io_uring, I/O would starve.
pub async fn yield_to_io() {
    match pending::RunningCore::phase() {
        Phase::None => {}
        Phase::Running => backend::yield_to_io().await,
        Phase::Ended => std::future::pending().await,
    }
}
