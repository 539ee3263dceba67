//! The tasks of a core that sleep, and when each is to be woken.
//!
//! A core that waits for I/O until the next of them is due would give each of its waits an
//! end, for which the kernel starts a timer when the core begins to wait and stops it when
//! something has come: thousands of times between two ticks. So there is one timer of the
//! kernel per core, a descriptor that becomes readable; it is set only when another task
//! is the first to be woken, and the core waits for it as for any I/O.
//!
//! Time is in whole milliseconds since the core began, so that tasks due at about the same
//! time are woken together. A task that does not want to sleep any longer leaves.

use std::collections::BTreeMap;
use std::mem;
use std::task::Waker;

/// A task that sleeps: when it is due, and its number.
pub(super) type Place = (u64, u64);

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Sleepers {
    wakers: BTreeMap<Place, Waker>,
    number: u64,
}

impl Sleepers {
    /// Adds one to be woken at `due`.
    pub(super) fn enter(&mut self, due: u64, waker: Waker) -> Place {
        self.number += 1;
        let place = (due, self.number);
        self.wakers.insert(place, waker);
        place
    }

    /// Has one that is still there woken by this waker; none if it is not. The former waker
    /// comes back, as from [`Sleepers::leave`], because dropping it may drop a task and all
    /// that it sleeps with.
    pub(super) fn stay(&mut self, place: Place, waker: &Waker) -> Option<Waker> {
        let known = self.wakers.get_mut(&place)?;
        Some(mem::replace(known, waker.clone()))
    }

    /// Takes one out; it may have been woken already.
    pub(super) fn leave(&mut self, place: Place) -> Option<Waker> {
        self.wakers.remove(&place)
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.wakers.keys().next().map(|&(due, _)| due)
    }

    /// Takes one out that is due, the earliest first.
    pub(super) fn take_due(&mut self, now: u64) -> Option<Waker> {
        let first = self.wakers.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use std::task::Wake;

    /// Writes its number down when it is woken.
    struct Noted(usize, Arc<Mutex<Vec<usize>>>);

    impl Wake for Noted {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    fn waker(number: usize, woken: &Arc<Mutex<Vec<usize>>>) -> Waker {
        Waker::from(Arc::new(Noted(number, Arc::clone(woken))))
    }

    #[test]
    fn whoever_is_due_is_woken_once_and_in_order() {
        let woken = Arc::default();
        let mut sleepers = Sleepers::default();
        let places: Vec<_> = [30, 10, 20, 10]
            .into_iter()
            .enumerate()
            .map(|(number, due)| sleepers.enter(due, waker(number, &woken)))
            .collect();
        assert_eq!(sleepers.next_due(), Some(10));
        assert!(sleepers.take_due(9).is_none());
        while let Some(waker) = sleepers.take_due(20) {
            waker.wake();
        }
        assert_eq!(*woken.lock().unwrap(), [1, 3, 2]);
        assert_eq!(sleepers.next_due(), Some(30));
        assert!(sleepers.stay(places[1], Waker::noop()).is_none());
        assert!(sleepers.leave(places[1]).is_none());
        assert!(sleepers.leave(places[0]).is_some());
        assert!(sleepers.take_due(u64::MAX).is_none());
        assert_eq!(sleepers.next_due(), None);
    }

    #[test]
    fn the_last_waker_is_the_one_that_is_woken() {
        let woken = Arc::default();
        let [first, last] = [1, 2].map(|number| waker(number, &woken));
        let mut sleepers = Sleepers::default();
        let place = sleepers.enter(5, first.clone());
        let former = sleepers.stay(place, &last);
        assert!(former.unwrap().will_wake(&first));
        sleepers.take_due(5).unwrap().wake();
        assert_eq!(*woken.lock().unwrap(), [2]);
    }
}
