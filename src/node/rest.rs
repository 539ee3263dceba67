//! When a thread need not look at the clock: it has had nothing to do for a while, and nothing
//! is due.
//!
//! ```text
//!            a tick finds nothing       another finds nothing, and nothing is due soon
//!     ┌──────┐ ───────────────► ┌───────┐ ───────────────────────────────► ┌─────────┐
//!     │ Busy │                  │ Quiet │                                  │ Resting │
//!     └──────┘ ◄─────────────── └───────┘ ◄─────────────────────────────── └─────────┘
//!         ▲       something happens      the rest is over                       │
//!         └─────────────────────────────────────────────────────────────────────┘
//!            something happens: whoever is told catches up with the clock first
//! ```
//!
//! An idle node would do little else but wake for its ticks, and each wake-up costs more than
//! what is done then. A rest ends before the next deadline.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::runtime::Alarm;

/// The longest rest of a core: less than what the clocks of timeouts take for a stop of the process
/// ([`crate::clock::SteadyClock`]), so that all of it counts.
pub const REST_MAX: Duration = Duration::from_millis(900);

/// A shorter rest is not worth it.
const REST_MIN: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Busy,
    Quiet,
    Resting,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Rest {
    state: Cell<State>,
    alarm: Rc<Alarm>,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            state: Cell::new(State::Busy),
            alarm: Rc::default(),
        }
    }
}

impl Rest {
    /// The rests of a task that ticks, at the latest, whenever another one on its thread rings.
    pub fn following(alarm: Rc<Alarm>) -> Self {
        Self {
            alarm,
            ..Self::default()
        }
    }

    /// Something happens. True if that ends a rest: then the caller catches up with what the
    /// ticks have left out before anything goes by it.
    #[inline]
    #[must_use]
    pub fn ends_now(&self) -> bool {
        let was = self.state.replace(State::Busy);
        if was == State::Resting {
            self.alarm.ring();
        }
        was == State::Resting
    }

    /// Whether a rest is under way.
    pub fn is_resting(&self) -> bool {
        self.state.get() == State::Resting
    }

    /// Ends the pause between two ticks.
    pub fn alarm(&self) -> &Rc<Alarm> {
        &self.alarm
    }

    /// A tick begins.
    pub fn end(&self) {
        if self.is_resting() {
            self.state.set(State::Quiet);
        }
    }

    /// A tick is over: how long the rest that begins is, if one does. `due` says how long it is
    /// until anything is due, `None` if something is under way.
    pub fn begin(
        &self,
        longest: Duration,
        due: impl FnOnce() -> Option<Duration>,
    ) -> Option<Duration> {
        if self.state.get() == State::Busy {
            self.state.set(State::Quiet);
            return None;
        }
        let rest = due()?.min(longest);
        if rest < REST_MIN {
            return None;
        }
        self.state.set(State::Resting);
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_thread_rests_once_a_whole_tick_has_passed_without_work() {
        let rest = Rest::default();
        assert_eq!(
            rest.begin(REST_MAX, || Some(LONG)),
            None,
            "there was work before it"
        );
        assert_eq!(rest.begin(REST_MAX, || Some(LONG)), Some(REST_MAX));
        rest.end();
        assert!(!rest.ends_now(), "the tick has begun already");
        assert_eq!(rest.begin(REST_MAX, || Some(LONG)), None);
    }

    #[test]
    fn a_rest_without_work_is_followed_by_another() {
        let rest = Rest::default();
        assert_eq!(rest.begin(REST_MAX, || Some(LONG)), None);
        for _ in 0..3 {
            assert_eq!(rest.begin(REST_MAX, || Some(LONG)), Some(REST_MAX));
            assert!(rest.is_resting());
            rest.end();
        }
    }

    #[test]
    fn the_first_of_what_happens_ends_a_rest() {
        let rest = Rest::default();
        assert_eq!(rest.begin(REST_MAX, || Some(LONG)), None);
        assert!(rest.begin(REST_MAX, || Some(LONG)).is_some());
        assert!(rest.ends_now());
        assert!(!rest.ends_now());
    }

    #[test]
    fn nothing_rests_while_anything_is_under_way_or_due_soon() {
        let rest = Rest::default();
        assert_eq!(rest.begin(REST_MAX, || Some(LONG)), None);
        assert_eq!(rest.begin(REST_MAX, || None), None);
        assert_eq!(rest.begin(REST_MAX, || Some(REST_MIN / 2)), None);
        assert_eq!(rest.begin(REST_MAX, || Some(REST_MIN)), Some(REST_MIN));
    }
}
