//! What one core measures of itself: how long requests take, which are slow, how late its
//! own housekeeping comes, which pieces of work keep its loop from turning
//! ([`super::stalls`]), and what time it is.
//!
//! A turn reads the clock when its first request is handled, once when those that this
//! core could answer alone are answered, and once more when the rest are: no read per
//! request. The time on the wall follows from the same reading, by an offset that is
//! renewed with each tick.
//!
//! Slow requests are counted, and some are logged: at most
//! [`SlowRequests::logs_per_second`] lines a second on each core, so that a node that is
//! slow is not made slower by saying so. A line says how many it stands for.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::wall_time;
use super::stalls::{Length, SUSPICIOUS, StallWatch};
use crate::api::Turn;
use crate::clock::UnixMs;
use crate::hash::CoreId;
use crate::runtime;
use crate::telemetry::counters::CoreCounters;
use crate::telemetry::latency::{Operation, RECORDS, Via};
use crate::telemetry::work::Work;

/// Which requests are slow, and how often that is said.
#[derive(Clone, Copy, Debug)]
pub struct SlowRequests {
    /// Those that take longer; none are when this is zero.
    pub threshold: Duration,
    /// How many lines one core logs in a second at most.
    pub logs_per_second: u32,
}

/// A piece of work of this length is said in the log.
const HELD_UP: Duration = Duration::from_millis(10);

/// How many such lines one core logs in a second at most.
const HELD_UP_LOGS_PER_SECOND: u32 = 1;

/// A piece of work that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    work: Work,
    began: Instant,
    /// What the thread had of the CPU by then, if it is known.
    cpu: Option<Duration>,
}

/// See the module's comment.
pub struct Meter {
    core: CoreId,
    counters: Arc<CoreCounters>,
    /// The same moment on both clocks.
    clocks: Cell<(Instant, UnixMs)>,
    slow_ns: u64,
    sample: RefCell<Sample>,
    stalls: RefCell<Stalls>,
    watch: StallWatch,
    held_up: RefCell<Sample>,
    /// What the thread had of the CPU when that was last read.
    cpu: Cell<Duration>,
    /// What it had waited for one.
    waited: Cell<Duration>,
}

impl Meter {
    /// Measures one core, and counts there.
    pub fn new(core: CoreId, counters: Arc<CoreCounters>, slow: SlowRequests) -> Self {
        let now = Instant::now();
        Self {
            core,
            counters,
            clocks: Cell::new((now, wall_time())),
            slow_ns: match nanos(slow.threshold) {
                0 => u64::MAX,
                threshold => threshold,
            },
            sample: RefCell::new(Sample::new(slow.logs_per_second, now)),
            stalls: RefCell::new(Stalls::new(now)),
            watch: StallWatch::new(now),
            held_up: RefCell::new(Sample::new(HELD_UP_LOGS_PER_SECOND, now)),
            cpu: Cell::new(runtime::thread_cpu()),
            waited: Cell::new(runtime::thread_waited()),
        }
    }

    /// What time it is, on both clocks.
    #[inline]
    pub fn now(&self) -> (Instant, UnixMs) {
        let now = Instant::now();
        (now, self.wall_at(now))
    }

    #[inline]
    fn wall_at(&self, now: Instant) -> UnixMs {
        let (then, wall) = self.clocks.get();
        let passed = now.saturating_duration_since(then).as_millis() as u64;
        UnixMs(wall.0.saturating_add(passed))
    }

    /// Sets the clocks after a long time without work.
    pub fn catch_up(&self, now: Instant, wall: UnixMs) {
        self.clocks.set((now, wall));
        self.waited.set(runtime::thread_waited());
    }

    /// Notes that housekeeping comes `late`, and sets the clocks.
    pub fn tick(&self, now: Instant, wall: UnixMs, late: Duration) {
        self.clocks.set((now, wall));
        self.counters.stall_us.add(late.as_micros() as u64);
        self.note_late(now, late);
        self.watch.tick(now, &self.counters.work);
        let cpu = runtime::thread_cpu();
        self.counters.cpu_us.set(cpu.as_micros() as u64);
    }

    /// Notes that a timer of this core's comes `late`.
    fn note_late(&self, now: Instant, late: Duration) {
        let worst = self.stalls.borrow_mut().worst_with(late, now);
        self.counters.stall_us_max.set(worst.as_micros() as u64);
    }

    /// Notes how late a piece of work has begun. To be called some ten times a second at least
    /// while there is work.
    pub fn note_late_piece(&self, piece: &Piece, expected: Instant) {
        self.waited.set(runtime::thread_waited());
        let late = piece.began.saturating_duration_since(expected);
        self.note_late(piece.began, late);
    }

    /// Begins a piece of work that comes seldom, or takes long: the CPU's clock is read.
    pub fn begin(&self, work: Work) -> Piece {
        let cpu = runtime::thread_cpu();
        self.cpu.set(cpu);
        Piece {
            work,
            began: Instant::now(),
            cpu: Some(cpu),
        }
    }

    /// Begins a piece of work that may be one of very many: that clock is read only if there
    /// is a reason.
    #[inline]
    pub fn begin_lightly(&self, work: Work) -> Piece {
        if self.watch.is_suspected(work) {
            return self.begin(work);
        }
        Piece {
            work,
            began: Instant::now(),
            cpu: None,
        }
    }

    /// What time it was when a piece of work began.
    #[inline]
    pub fn began_at(&self, piece: &Piece) -> UnixMs {
        self.wall_at(piece.began)
    }

    /// Ends a piece of work: the loop can turn.
    #[inline]
    pub fn end(&self, piece: Piece) {
        self.worked(piece, piece.began.elapsed());
    }

    #[inline]
    fn worked(&self, piece: Piece, wall: Duration) {
        if self.watch.is_notable(piece.work, wall) {
            self.note_work(piece, wall);
        }
    }

    #[cold]
    fn note_work(&self, piece: Piece, wall: Duration) {
        let mut length = Length::of(wall, wall);
        if wall > SUSPICIOUS {
            let now = runtime::thread_cpu();
            let before = self.cpu.replace(now);
            length = match piece.cpu {
                Some(began) => Length::of(wall, now.saturating_sub(began)),
                None => {
                    let waited = runtime::thread_waited();
                    let waited = waited.saturating_sub(self.waited.replace(waited));
                    let ran = wall.saturating_sub(waited);
                    Length::of(wall, ran.min(now.saturating_sub(before)))
                }
            };
        }
        self.watch.note(piece.work, length, &self.counters.work);
        if length.cpu < HELD_UP {
            return;
        }
        let Some(left_out) = self.held_up.borrow_mut().take(Instant::now()) else {
            return;
        };
        tracing::warn!(
            core = self.core.index(),
            work = piece.work.name(),
            duration_us = length.wall.as_micros() as u64,
            cpu_us = length.cpu.as_micros() as u64,
            left_out,
            "a piece of work held its core up"
        );
    }

    /// What this core could answer alone of a turn is answered.
    #[inline]
    pub fn answered_alone(&self, turn: &mut Turn) {
        if let Some((began, took)) = self.answered(turn, &[Via::Local]) {
            let cpu = None;
            let work = Work::Requests;
            self.worked(Piece { work, began, cpu }, took);
        }
    }

    /// The other requests of a turn are answered, of which work that began then was the last.
    pub fn answered_all(&self, turn: &mut Turn, began: Instant) {
        if let Some((started, took)) = self.answered(turn, &Via::ALL) {
            let waited = began.saturating_duration_since(started);
            let (work, cpu) = (Work::Answers, None);
            let piece = Piece { work, began, cpu };
            self.worked(piece, took.saturating_sub(waited));
        }
    }

    /// The requests of a turn that went this way are answered: when they began, and what they
    /// took, if there were any.
    #[inline]
    fn answered(&self, turn: &mut Turn, ways: &[Via]) -> Option<(Instant, Duration)> {
        if !RECORDS || !ways.iter().any(|&via| turn.tally.has(via)) {
            return None;
        }
        let (started, _) = turn.now?;
        let elapsed = started.elapsed();
        let took = nanos(elapsed);
        for &via in ways {
            if took > self.slow_ns
                && let Some((operation, requests)) = turn.tally.summary(via)
            {
                self.note_slow(turn, operation, via, requests, took);
            }
            turn.tally.record(&self.counters.latencies, via, took);
        }
        Some((started, elapsed))
    }

    /// A request that is a turn of its own is answered.
    pub fn done(&self, turn: &Turn, operation: Operation, via: Via, started: Instant) {
        if !RECORDS {
            return;
        }
        let took = nanos(started.elapsed());
        self.counters.latencies.record(operation, via, took, 1);
        if took > self.slow_ns {
            self.note_slow(turn, operation, via, 1, took);
        }
    }

    #[cold]
    fn note_slow(&self, turn: &Turn, operation: Operation, via: Via, requests: u64, took: u64) {
        self.counters.slow_requests.add(requests);
        let Some(left_out) = self.sample.borrow_mut().take(Instant::now()) else {
            return;
        };
        let subject = turn.subject;
        tracing::warn!(
            core = self.core.index(),
            operation = operation.name(),
            via = via.name(),
            duration_us = took / 1000,
            requests,
            partition = subject.map(|subject| subject.partition.index()),
            key_bytes = subject.map(|subject| subject.key_bytes),
            answer_bytes = turn.answers.len(),
            left_out,
            "slow request"
        );
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Lets so many through in each second, and counts the others.
#[derive(Debug)]
struct Sample {
    per_second: u32,
    since: Instant,
    taken: u32,
    left_out: u64,
}

impl Sample {
    fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second,
            since: now,
            taken: 0,
            left_out: 0,
        }
    }

    /// Whether this one goes through, and then how many did not since the last.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            self.since = now;
            self.taken = 0;
        }
        if self.taken >= self.per_second {
            self.left_out += 1;
            return None;
        }
        self.taken += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// The longest stall of the last minute, or of a little less.
#[derive(Debug)]
struct Stalls {
    since: Instant,
    latest: Duration,
    before: Duration,
}

impl Stalls {
    const PERIOD: Duration = Duration::from_secs(30);

    fn new(now: Instant) -> Self {
        Self {
            since: now,
            latest: Duration::ZERO,
            before: Duration::ZERO,
        }
    }

    fn worst_with(&mut self, stall: Duration, now: Instant) -> Duration {
        if now.saturating_duration_since(self.since) >= Self::PERIOD {
            self.since = now;
            self.before = std::mem::take(&mut self.latest);
        }
        self.latest = self.latest.max(stall);
        self.latest.max(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_says_how_many_it_stands_for() {
        let start = Instant::now();
        let mut sample = Sample::new(2, start);
        let taken: Vec<_> = (0..5).map(|_| sample.take(start)).collect();
        assert_eq!(taken, [Some(0), Some(0), None, None, None]);
        let later = start + Duration::from_secs(1);
        assert_eq!(sample.take(later), Some(3));
        assert_eq!(sample.take(later), Some(0));
        assert_eq!(sample.take(later), None);
    }

    #[test]
    fn a_stall_is_forgotten_after_a_minute() {
        let start = Instant::now();
        let mut stalls = Stalls::new(start);
        let at = |seconds| start + Duration::from_secs(seconds);
        let ms = Duration::from_millis;
        assert_eq!(stalls.worst_with(ms(50), at(1)), ms(50));
        assert_eq!(stalls.worst_with(ms(5), at(35)), ms(50));
        assert_eq!(stalls.worst_with(ms(1), at(66)), ms(5));
    }
}
