//! Sleeping on monoio: the shell around [`Sleepers`].
//!
//! The core's timer is a timerfd; one task waits for it to become readable, wakes whoever is
//! due, and sets it for the next.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use monoio::net::UnixStream;
use monoio::task::JoinHandle;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::pending::RunningCore;
use super::sleepers::{Place, Sleepers};

thread_local! {
    static TIMER: RefCell<Option<Rc<Timer>>> = const { RefCell::new(None) };
}

/// The timer of a core and who waits for it.
struct Timer {
    began: Instant,
    timerfd: OwnedFd,
    /// The same timer, to wait for.
    readable: UnixStream,
    /// When it goes off.
    set_for: Cell<Option<u64>>,
    sleepers: RefCell<Sleepers>,
    ended: Cell<bool>,
}

/// Lets the tasks of this thread sleep until it ends.
pub(super) struct Sleeping {
    timer: Rc<Timer>,
    waking: JoinHandle<()>,
}

impl Sleeping {
    /// To be called on a running core.
    pub(super) fn begin() -> io::Result<Self> {
        let timerfd = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let timer = Rc::new(Timer {
            began: Instant::now(),
            // For the runtime any descriptor that can be polled is like another.
            readable: UnixStream::from_std(StdStream::from(timerfd.try_clone()?))?,
            timerfd,
            set_for: Cell::new(None),
            sleepers: RefCell::default(),
            ended: Cell::new(false),
        });
        // Where that is refused it is refused now.
        timer.set(None)?;
        let waking = monoio::spawn(wake(Rc::clone(&timer)));
        TIMER.set(Some(Rc::clone(&timer)));
        Ok(Self { timer, waking })
    }

    /// Wakes nobody any more and drops the tasks that sleep. An operation that never ends keeps
    /// the driver, whose memory and descriptors would be lost: so the task that waits for the
    /// timer comes to its end, too.
    pub(super) async fn end(self) {
        TIMER.take();
        self.timer.ended.set(true);
        self.timer.set_again(Some(0));
        self.waking.await;
        let sleepers = self.timer.sleepers.take();
        drop(sleepers);
    }
}

/// Wakes whoever is due, for as long as the core runs.
async fn wake(timer: Rc<Timer>) {
    while !timer.ended.get() {
        let readable = timer.readable.readable(false).await;
        timer.go_off();
        if readable.is_err() {
            // It did not wait, and may not the next time. Whoever is due is woken all the same.
            super::yield_to_io().await;
        }
    }
}

/// Waits for `duration`, rounded up to whole milliseconds; for ever on a core that has ended.
pub(super) async fn sleep(duration: Duration) {
    let timer = TIMER.with_borrow(Clone::clone);
    let Some(timer) = timer else {
        debug_assert!(!RunningCore::here(), "a running core has a timer");
        return std::future::pending().await;
    };
    let sleep = Sleep {
        due: due_after(timer.began.elapsed(), duration),
        timer,
        place: None,
    };
    sleep.await;
}

/// The millisecond in which who sleeps for `duration` is due, so long after the core began.
fn due_after(elapsed: Duration, duration: Duration) -> u64 {
    let due = elapsed.saturating_add(duration).as_nanos();
    u64::try_from(due.div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// How long the timer has to wait then, so long after the core began.
fn wait_until(due: u64, elapsed: Duration) -> Duration {
    let left = Duration::from_millis(due).saturating_sub(elapsed);
    // To the kernel no time at all means never.
    left.max(Duration::from_nanos(1))
}

struct Sleep {
    timer: Rc<Timer>,
    due: u64,
    /// Where it waits, once it does.
    place: Option<Place>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let waker = context.waker();
        let mut sleepers = self.timer.sleepers.borrow_mut();
        let Some(place) = self.place else {
            let place = sleepers.enter(self.due, waker.clone());
            drop(sleepers);
            self.timer.follow();
            self.place = Some(place);
            return Poll::Pending;
        };
        let former = sleepers.stay(place, waker);
        drop(sleepers);
        match former {
            Some(_) => Poll::Pending,
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            // The timer stays as it is: at worst it goes off for nobody.
            let waker = self.timer.sleepers.borrow_mut().leave(place);
            drop(waker);
        }
    }
}

impl Timer {
    fn go_off(&self) {
        let now = self.began.elapsed().as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        loop {
            let due = self.sleepers.borrow_mut().take_due(now);
            let Some(waker) = due else { break };
            waker.wake();
        }
        // It is set anew in any case, and so is not readable any more.
        let next = self.sleepers.borrow().next_due();
        self.set_again(next);
    }

    /// Sees to it that the timer goes off when the next one is due.
    fn follow(&self) {
        let due = self.sleepers.borrow().next_due();
        let is_early = |due| self.set_for.get().is_none_or(|set_for| due < set_for);
        if due.is_some_and(is_early) {
            self.set_again(due);
        }
    }

    fn set_again(&self, due: Option<u64>) {
        let set = self.set(due);
        // It was set once; with a descriptor of ours and a time that is not negative there is
        // nothing left to go wrong.
        debug_assert!(set.is_ok(), "{set:?}");
    }

    fn set(&self, due: Option<u64>) -> io::Result<()> {
        let wait = due.map_or(Duration::ZERO, |due| wait_until(due, self.began.elapsed()));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: wait.as_secs().min(i64::MAX as u64) as i64,
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timerfd, TimerfdTimerFlags::empty(), &once)?;
        self.set_for.set(due);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DriverChoice, run_core};
    use super::*;
    use std::task::Waker;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nobody_is_due_before_the_time_is_over() {
        for (elapsed_us, duration_us, due) in [(0, 0, 0), (0, 1, 1), (999, 2, 2), (1500, 500, 2)] {
            let [elapsed, duration] = [elapsed_us, duration_us].map(Duration::from_micros);
            assert_eq!(due_after(elapsed, duration), due);
        }
        assert_eq!(due_after(MS, Duration::MAX), u64::MAX);
    }

    #[test]
    fn the_timer_goes_off_at_once_for_what_is_past() {
        assert_eq!(wait_until(5, 2 * MS), 3 * MS);
        for elapsed in [5 * MS, Duration::MAX] {
            assert_eq!(wait_until(5, elapsed), Duration::from_nanos(1));
        }
        assert_eq!(
            wait_until(u64::MAX, MS),
            Duration::from_millis(u64::MAX - 1)
        );
    }

    #[test]
    fn a_sleep_that_is_dropped_leaves_nothing() {
        let left = run_core(None, DriverChoice::Auto, |_| async {
            let mut context = Context::from_waker(Waker::noop());
            for ms in 1..100 {
                let mut sleep = Box::pin(sleep(ms * 1000 * MS));
                assert!(sleep.as_mut().poll(&mut context).is_pending());
            }
            TIMER.with_borrow(|timer| {
                let timer = timer
                    .as_ref()
                    .map(|timer| timer.sleepers.borrow().next_due());
                timer.unwrap()
            })
        });
        assert_eq!(left.unwrap(), None);
    }

    #[test]
    fn whoever_has_slept_has_slept_for_long_enough() {
        run_core(None, DriverChoice::Auto, |_| async {
            for duration in [MS / 3, MS, 5 * MS / 2] {
                let began = Instant::now();
                sleep(duration).await;
                assert!(began.elapsed() >= duration);
            }
        })
        .unwrap();
    }
}
