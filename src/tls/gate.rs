//! Which handshake may compute, and when: handshakes together get about half of a core.
//!
//! Steps of handshakes that involve cryptography go one at a time, in the order in which
//! they were asked for, and at most one in a turn of the core's loop. After a step that
//! took some time, the next has to wait until as much time has passed without one. What
//! is owed so is gathered up to a whole [`REST_MIN`], since timers are no finer; so a lone
//! handshake waits for nothing.
//!
//! Pure: the time is an argument, counted from any fixed point. The caller sees to the
//! turns of the loop.

use std::collections::VecDeque;
use std::time::Duration;

/// The least that is waited for.
const REST_MIN: Duration = Duration::from_millis(1);

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

/// What the gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This one may take its step now; the gate is shut until it has.
    Go(Place),
    /// A step is being taken.
    Busy,
    /// Nobody may until this much time has passed.
    Rest(Duration),
    /// Nobody wants to.
    Idle,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    places: u64,
    queue: VecDeque<Place>,
    stepping: Option<Place>,
    /// The time without a step that was owed when the last one had ended.
    owed: Duration,
    /// When that was.
    since: Duration,
}

impl Gate {
    /// Joins the queue.
    pub(super) fn arrive(&mut self) -> Place {
        let place = Place(self.places);
        self.places += 1;
        self.queue.push_back(place);
        place
    }

    /// Gives a place up, whether in the queue or at its step.
    pub(super) fn leave(&mut self, place: Place) {
        if self.stepping == Some(place) {
            self.stepping = None;
        } else if let Ok(index) = self.queue.binary_search(&place) {
            self.queue.remove(index);
        }
    }

    /// Who may take a step now.
    pub(super) fn admit(&mut self, now: Duration) -> Verdict {
        if self.stepping.is_some() {
            return Verdict::Busy;
        }
        let Some(&first) = self.queue.front() else {
            return Verdict::Idle;
        };
        let owed = self.owed_at(now);
        if owed >= REST_MIN {
            return Verdict::Rest(Duration::from_millis(owed.as_millis() as u64));
        }
        self.queue.pop_front();
        self.stepping = Some(first);
        Verdict::Go(first)
    }

    /// Whether it is this one's turn to take its step.
    pub(super) fn is_stepping(&self, place: Place) -> bool {
        self.stepping == Some(place)
    }

    /// A step was taken, which began and ended then.
    pub(super) fn stepped(&mut self, place: Place, began: Duration, ended: Duration) {
        self.owed = self.owed_at(began) + ended.saturating_sub(began);
        self.since = ended;
        self.leave(place);
    }

    fn owed_at(&self, now: Duration) -> Duration {
        self.owed.saturating_sub(now.saturating_sub(self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// Takes the next step, which lasts `took`; returns when it ended.
    fn step(gate: &mut Gate, now: Duration, took: Duration) -> Duration {
        let Verdict::Go(place) = gate.admit(now) else {
            panic!("{:?} at {now:?}", gate.admit(now));
        };
        gate.stepped(place, now, now + took);
        now + took
    }

    #[test]
    fn steps_are_taken_in_the_order_of_arrival() {
        let mut gate = Gate::default();
        let places = [gate.arrive(), gate.arrive(), gate.arrive()];
        for place in places {
            assert_eq!(gate.admit(us(0)), Verdict::Go(place));
            assert!(gate.is_stepping(place));
            gate.stepped(place, us(0), us(0));
        }
        assert_eq!(gate.admit(us(0)), Verdict::Idle);
    }

    #[test]
    fn nobody_steps_beside_another() {
        let mut gate = Gate::default();
        let (first, second) = (gate.arrive(), gate.arrive());
        assert_eq!(gate.admit(us(0)), Verdict::Go(first));
        assert_eq!(gate.admit(us(0)), Verdict::Busy);
        assert!(!gate.is_stepping(second));
        gate.stepped(first, us(0), us(10));
        assert_eq!(gate.admit(us(10)), Verdict::Go(second));
    }

    #[test]
    fn who_leaves_is_passed_over_and_never_shuts_the_gate() {
        let mut gate = Gate::default();
        let (first, second, third) = (gate.arrive(), gate.arrive(), gate.arrive());
        gate.leave(second);
        assert_eq!(gate.admit(us(0)), Verdict::Go(first));
        gate.leave(first);
        assert_eq!(gate.admit(us(0)), Verdict::Go(third));
        gate.leave(third);
        assert_eq!(gate.admit(us(0)), Verdict::Idle);
    }

    #[test]
    fn a_lone_short_step_makes_nobody_wait() {
        let mut gate = Gate::default();
        gate.arrive();
        gate.arrive();
        let ended = step(&mut gate, us(0), us(900));
        assert!(matches!(gate.admit(ended), Verdict::Go(_)));
    }

    #[test]
    fn a_long_step_is_followed_by_as_long_a_rest() {
        let mut gate = Gate::default();
        gate.arrive();
        gate.arrive();
        let ended = step(&mut gate, us(0), us(3_500));
        assert_eq!(gate.admit(ended), Verdict::Rest(us(3_000)));
        assert_eq!(gate.admit(ended + us(2_000)), Verdict::Rest(us(1_000)));
        assert!(matches!(gate.admit(ended + us(2_501)), Verdict::Go(_)));
    }

    #[test]
    fn however_short_the_steps_they_take_half_of_the_time_at_most() {
        for took in [us(30), us(100), us(300), us(999), us(1_000), us(2_700)] {
            let mut gate = Gate::default();
            let (mut now, mut stepped, end) = (us(0), us(0), us(1_000_000));
            while now < end {
                gate.arrive();
                match gate.admit(now) {
                    Verdict::Go(place) => {
                        gate.stepped(place, now, now + took);
                        now += took;
                        stepped += took;
                    }
                    Verdict::Rest(rest) => now += rest,
                    other => panic!("{other:?}"),
                }
            }
            let share = stepped.as_secs_f64() / now.as_secs_f64();
            assert!(share < 0.51, "{share} in steps of {took:?}");
            assert!(share > 0.45, "{share} in steps of {took:?}");
        }
    }

    #[test]
    fn time_without_steps_pays_what_is_owed() {
        let mut gate = Gate::default();
        for _ in 0..100 {
            gate.arrive();
        }
        let mut now = us(0);
        for _ in 0..100 {
            now = step(&mut gate, now, us(800)) + us(800);
        }
    }
}
