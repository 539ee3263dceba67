//! Which piece of work kept a core's loop from turning, and for how long.
//!
//! Tasks of a core take turns: while one works, no other does, no answer is read and no
//! timer fires. So each kind of work that may take long is measured as a *piece*: from one
//! point at which the loop could turn to the next. What it took on the wall is told apart
//! from what it had of the CPU: the rest was taken by others, or by the hypervisor, and is
//! none of our code's doing.
//!
//! **What it costs.** Where the clock is read already (a turn of requests, a batch that
//! comes home) a piece costs one comparison: with the longest of its kind so far, or with
//! [`SUSPICIOUS`] if that is less. Only what is longer is looked at. The CPU's clock is a system
//! call: it is read at the end of suspicious pieces, and at the beginning of those of
//! housekeeping, which are few, and of kinds of which one was suspicious since the last tick.
//!
//! **How exact it is.** Such a beginning says exactly what a piece had of the CPU. Of the
//! others is taken off what the thread has waited for a CPU since that was last read, which is
//! a tick of the cluster (20 ms) ago at most. Where nobody else wants the core's CPU that is
//! nothing; where others do, a piece may have had more than is said.
//!
//! A piece within another counts in both. What tasks do between pieces (handshakes,
//! accepting, the kernel's part of reads and writes) is in no piece; that a core was late
//! all the same shows in `stall_max`, which is measured by the core's timers.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::telemetry::work::{LONG, Work, WorkCounters};

/// A piece of work that takes longer than this has the CPU's clock read at its end.
pub(super) const SUSPICIOUS: Duration = Duration::from_micros(250);

/// Half of the time for which the longest piece is remembered.
const PERIOD: Duration = Duration::from_secs(30);

/// How long a piece of work took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Length {
    /// From its beginning to its end.
    pub(super) wall: Duration,
    /// What it had of the CPU.
    pub(super) cpu: Duration,
}

impl Length {
    /// Of a piece that took so long while its thread had so much of the CPU, or more.
    pub(super) fn of(wall: Duration, thread_cpu: Duration) -> Self {
        let cpu = wall.min(thread_cpu);
        Self { wall, cpu }
    }

    /// The longest of both in each respect.
    fn max(self, other: Self) -> Self {
        Self {
            wall: self.wall.max(other.wall),
            cpu: self.cpu.max(other.cpu),
        }
    }
}

/// See the module's comment. It reads no clock itself.
#[derive(Debug)]
pub(super) struct StallWatch {
    since: Cell<Instant>,
    kinds: [Kind; Work::COUNT],
}

#[derive(Debug, Default)]
struct Kind {
    /// What is longer is to be noted.
    noted_from: Cell<Duration>,
    /// Whether one was suspicious since the last tick.
    suspected: Cell<bool>,
    /// The longest since the period began.
    latest: Cell<Length>,
    /// The longest of the period before.
    before: Cell<Length>,
}

impl StallWatch {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: Cell::new(now),
            kinds: Default::default(),
        }
    }

    /// Whether a piece that took so long is to be noted.
    #[inline]
    pub(super) fn is_notable(&self, work: Work, wall: Duration) -> bool {
        wall > self.kinds[work as usize].noted_from.get()
    }

    /// Whether the CPU's clock is to be read as a piece of this kind begins.
    #[inline]
    pub(super) fn is_suspected(&self, work: Work) -> bool {
        self.kinds[work as usize].suspected.get()
    }

    /// Notes a piece of work.
    pub(super) fn note(&self, work: Work, length: Length, counters: &WorkCounters) {
        let kind = &self.kinds[work as usize];
        kind.latest.set(kind.latest.get().max(length));
        kind.noted_from.set(kind.latest.get().wall.min(SUSPICIOUS));
        kind.suspected.set(length.wall > SUSPICIOUS);
        let cells = counters.of(work);
        for ((bound, _), cell) in LONG.iter().zip(&cells.long) {
            cell.add(u64::from(length.cpu > *bound));
        }
        self.publish(work, counters);
    }

    /// Trusts all kinds of work again, and forgets what is more than a minute ago; what was
    /// within the last half of one stays.
    pub(super) fn tick(&self, now: Instant, counters: &WorkCounters) {
        self.kinds.iter().for_each(|kind| kind.suspected.set(false));
        if now.saturating_duration_since(self.since.get()) < PERIOD {
            return;
        }
        self.since.set(now);
        for work in Work::ALL {
            let kind = &self.kinds[work as usize];
            kind.before.set(kind.latest.take());
            kind.noted_from.set(Duration::ZERO);
            self.publish(work, counters);
        }
    }

    fn publish(&self, work: Work, counters: &WorkCounters) {
        let kind = &self.kinds[work as usize];
        let longest = kind.latest.get().max(kind.before.get());
        let cells = counters.of(work);
        cells.longest_us.set(longest.wall.as_micros() as u64);
        cells.longest_cpu_us.set(longest.cpu.as_micros() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn note(watch: &StallWatch, counters: &WorkCounters, work: Work, length: Length) {
        if watch.is_notable(work, length.wall) {
            watch.note(work, length, counters);
        }
    }

    fn ran(length: Duration) -> Length {
        Length::of(length, length)
    }

    fn shown(counters: &WorkCounters, work: Work) -> (u64, u64, [u64; LONG.len()]) {
        let cells = counters.of(work);
        let long = cells.long.each_ref().map(|cell| cell.get());
        (cells.longest_us.get(), cells.longest_cpu_us.get(), long)
    }

    #[test]
    fn the_longest_piece_of_each_kind_is_shown() {
        let (watch, counters) = (StallWatch::new(Instant::now()), WorkCounters::default());
        for took in [3, 7, 5] {
            note(&watch, &counters, Work::Expire, ran(ms(took)));
        }
        note(
            &watch,
            &counters,
            Work::Requests,
            ran(Duration::from_micros(40)),
        );
        assert_eq!(
            shown(&counters, Work::Expire),
            (7_000, 7_000, [3, 3, 1, 0, 0])
        );
        assert_eq!(shown(&counters, Work::Requests), (40, 40, [0; LONG.len()]));
        assert_eq!(shown(&counters, Work::Clear), (0, 0, [0; LONG.len()]));
    }

    #[test]
    fn every_piece_that_is_long_is_counted_though_a_longer_one_was_before() {
        let (watch, counters) = (StallWatch::new(Instant::now()), WorkCounters::default());
        for took in [200, 3, 12, 1] {
            note(&watch, &counters, Work::Mailbox, ran(ms(took)));
        }
        assert_eq!(shown(&counters, Work::Mailbox).2, [3, 3, 2, 2, 1]);
    }

    #[test]
    fn a_piece_that_waited_for_the_cpu_is_long_but_not_by_its_own_doing() {
        let (watch, counters) = (StallWatch::new(Instant::now()), WorkCounters::default());
        let waited = Length::of(ms(30), Duration::from_micros(300));
        note(&watch, &counters, Work::Peers, waited);
        assert_eq!(
            shown(&counters, Work::Peers),
            (30_000, 300, [0; LONG.len()])
        );
    }

    #[test]
    fn no_piece_has_more_of_the_cpu_than_it_took() {
        let length = Length::of(ms(3), ms(19));
        assert_eq!((length.wall, length.cpu), (ms(3), ms(3)));
    }

    #[test]
    fn pieces_shorter_than_the_longest_are_not_looked_at() {
        let (watch, counters) = (StallWatch::new(Instant::now()), WorkCounters::default());
        note(
            &watch,
            &counters,
            Work::Requests,
            ran(Duration::from_micros(200)),
        );
        assert!(!watch.is_notable(Work::Requests, Duration::from_micros(150)));
        assert!(watch.is_notable(Work::Requests, Duration::from_micros(201)));
        note(&watch, &counters, Work::Requests, ran(ms(50)));
        assert!(!watch.is_notable(Work::Requests, SUSPICIOUS));
        assert!(
            watch.is_notable(Work::Requests, ms(2)),
            "it is to be counted"
        );
    }

    #[test]
    fn after_a_suspicious_piece_its_kind_is_suspected_until_the_next_tick() {
        let start = Instant::now();
        let (watch, counters) = (StallWatch::new(start), WorkCounters::default());
        note(&watch, &counters, Work::PeerFrames, ran(SUSPICIOUS));
        assert!(!watch.is_suspected(Work::PeerFrames));
        note(&watch, &counters, Work::PeerFrames, ran(ms(1)));
        assert!(watch.is_suspected(Work::PeerFrames));
        assert!(!watch.is_suspected(Work::Mailbox));
        watch.tick(start + ms(100), &counters);
        assert!(!watch.is_suspected(Work::PeerFrames));
    }

    #[test]
    fn a_long_piece_is_forgotten_after_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (watch, counters) = (StallWatch::new(start), WorkCounters::default());
        note(&watch, &counters, Work::View, ran(ms(9)));
        watch.tick(at(31), &counters);
        note(&watch, &counters, Work::View, ran(ms(4)));
        assert_eq!(shown(&counters, Work::View).0, 9_000);
        watch.tick(at(40), &counters);
        assert_eq!(
            shown(&counters, Work::View).0,
            9_000,
            "the period is not over"
        );
        watch.tick(at(62), &counters);
        assert_eq!(shown(&counters, Work::View).0, 4_000);
        watch.tick(at(93), &counters);
        assert_eq!(shown(&counters, Work::View).0, 0);
    }
}
