//! Long work in slices, between which the core's loop turns.
//!
//! What a step costs depends on what is in the processor's caches, and that on how many
//! items there are: so a slice ends by the clock, which is looked at after every few steps,
//! not after a number of steps that was measured once. Between slices whoever became ready
//! has a turn; a client that comes meanwhile waits for one slice.

use std::time::{Duration, Instant};

use super::core::Core;
use crate::runtime;
use crate::store::Shard;
use crate::telemetry::work::Work;

/// How long a slice takes, give or take a step.
const SLICE: Duration = Duration::from_micros(100);

impl Core {
    /// Repeats a step until it has nothing more to do or so much time has passed; whether
    /// there may be more.
    pub(super) async fn in_slices(
        &self,
        work: Work,
        limit: Duration,
        mut step: impl FnMut(&mut Shard) -> bool,
    ) -> bool {
        let began = Instant::now();
        loop {
            let piece = self.meter.begin(work);
            let more = {
                let mut cluster = self.cluster.borrow_mut();
                let shard = cluster.local_mut().shard_mut();
                slice(Instant::now, || step(shard))
            };
            self.meter.end(piece);
            if !more || began.elapsed() >= limit {
                return more;
            }
            runtime::yield_to_io().await;
        }
    }
}

/// Repeats a step until it has nothing more to do or the slice is over; whether there may be
/// more.
fn slice(mut now: impl FnMut() -> Instant, mut step: impl FnMut() -> bool) -> bool {
    let began = now();
    while step() {
        if now().saturating_duration_since(began) >= SLICE {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many steps of so many microseconds a slice takes, of so many there are; and
    /// whether it says that there are more.
    fn steps_of(step_us: u64, there_are: usize) -> (usize, bool) {
        let time = std::cell::Cell::new(Instant::now());
        let mut taken = 0;
        let more = slice(
            || time.get(),
            || {
                taken += 1;
                time.set(time.get() + Duration::from_micros(step_us));
                taken < there_are
            },
        );
        (taken, more)
    }

    #[test]
    fn a_slice_has_as_many_steps_as_its_time_allows() {
        assert_eq!(steps_of(1, 1_000_000), (100, true));
        assert_eq!(steps_of(30, 1_000_000), (4, true));
    }

    #[test]
    fn a_step_that_takes_too_long_is_the_only_one() {
        assert_eq!(steps_of(5_000, 1_000_000), (1, true));
    }

    #[test]
    fn a_slice_ends_with_the_work() {
        assert_eq!(steps_of(1, 7), (7, false));
    }
}
