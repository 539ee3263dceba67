//! Requests that became ready together are looked up together.
//!
//! A look-up is a chain of loads that miss the processor's caches
//! ([`Shard::foresee`](crate::store::Shard::foresee)), as long as a tenth of all that a small
//! request costs. The chains of pipelined requests stand next to each other already; but most
//! clients send one request at a time, and then a turn of the core's loop finds many
//! connections with one each. So a connection that has received something does not look its key up
//! at once. It joins, and lets those go first that became ready in the same turn and
//! have not joined yet:
//!
//! ```text
//!   run queue:  A B C                A reads, joins; the gatherer is woken
//!               B C gatherer         B and C read and join
//!               gatherer             looks ahead for A, B and C at once, wakes them
//!               A B C                answer, from the near caches
//! ```
//!
//! That holds because tasks run in the order in which they were woken; on a runtime where
//! they did not, nothing would suffer but speed. Nobody waits for longer than the
//! rest of the turn: the gatherer is in the queue while anybody waits.
//!
//! Where a turn brings one request only, it has waited for nobody: then the next
//! [`ALONE`] do not join, nor are their keys hashed.
//!
//! Only keys of the core itself are worth it. A connection joins once at a time, so there are no
//! more entries than connections; of [`GATHERED_MAX`] keys at most something is looked at, which
//! takes some ten microseconds. What a request waits here is no part of the latency that is
//! measured of it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::mem;
use std::task::{Poll, Waker};

use crate::hash::KeyHash;

/// How many requests do not join after one that was alone.
const ALONE: u32 = 15;

/// How many keys are looked at ahead: what is known of more would push each other out of the
/// caches again.
const GATHERED_MAX: usize = 512;

/// The requests of a core that wait for each other.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    hashes: RefCell<Vec<KeyHash>>,
    waiting: RefCell<Vec<Waker>>,
    gatherer: RefCell<Option<Waker>>,
    /// How many more requests with a key are not to join.
    alone: Cell<u32>,
}

impl Gathering {
    /// Whether it is worth while to join. To be asked once for each request with a key.
    #[inline]
    pub(super) fn expects_others(&self) -> bool {
        let alone = self.alone.get();
        self.alone.set(alone.saturating_sub(1));
        alone == 0
    }

    /// Waits until whoever became ready in this turn has joined too, and the gatherer has
    /// looked ahead for all. There has to be a gatherer.
    pub(super) async fn join(&self, hash: KeyHash) {
        let mut joined = false;
        poll_fn(|context| {
            if mem::replace(&mut joined, true) {
                return Poll::Ready(());
            }
            self.hashes.borrow_mut().push(hash);
            self.waiting.borrow_mut().push(context.waker().clone());
            if let Some(gatherer) = self.gatherer.borrow_mut().take() {
                gatherer.wake();
            }
            Poll::Pending
        })
        .await;
    }

    /// Is the gatherer, for ever: hands over the hashes of all that have joined, and lets them
    /// go on.
    pub(super) async fn gather(&self, mut look_ahead: impl FnMut(&[KeyHash])) -> Infallible {
        poll_fn(|context| {
            self.gatherer.replace(Some(context.waker().clone()));
            let mut hashes = self.hashes.borrow_mut();
            if hashes.len() == 1 {
                self.alone.set(ALONE);
            }
            look_ahead(&hashes[..hashes.len().min(GATHERED_MAX)]);
            hashes.clear();
            for waiting in self.waiting.borrow_mut().drain(..) {
                waiting.wake();
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{self, DriverChoice};
    use std::rc::Rc;

    /// What the gatherer was given while so many tasks that became ready together joined, one after
    /// the other so many times.
    fn gathered(tasks: u64, times: u64) -> Vec<Vec<u64>> {
        let seen = runtime::run_core(None, DriverChoice::Auto, |_| async move {
            let gathering = Rc::new(Gathering::default());
            let seen = Rc::new(RefCell::new(Vec::new()));
            let gatherer = {
                let (gathering, seen) = (Rc::clone(&gathering), Rc::clone(&seen));
                async move {
                    let look = |hashes: &[KeyHash]| {
                        if !hashes.is_empty() {
                            let hashes = hashes.iter().map(|hash| hash.0).collect();
                            seen.borrow_mut().push(hashes);
                        }
                    };
                    gathering.gather(look).await;
                }
            };
            runtime::spawn(gatherer);
            let left = Rc::new(Cell::new(tasks));
            for task in 0..tasks {
                let (gathering, left) = (Rc::clone(&gathering), Rc::clone(&left));
                runtime::spawn(async move {
                    for time in 0..times {
                        if gathering.expects_others() {
                            gathering.join(KeyHash(100 * time + task)).await;
                        }
                    }
                    left.set(left.get() - 1);
                });
            }
            // More turns than there can be, or somebody waits for ever.
            for _ in 0..100 * times {
                runtime::yield_to_io().await;
            }
            assert_eq!(left.get(), 0);
            seen.take()
        });
        seen.unwrap()
    }

    #[test]
    fn those_that_are_ready_together_are_looked_after_together() {
        let expected: [Vec<u64>; 3] = [0, 100, 200].map(|first| (first..first + 40).collect());
        assert_eq!(gathered(40, 3), expected);
    }

    #[test]
    fn whoever_was_alone_tries_seldom() {
        let expected: Vec<_> = (0..4)
            .map(|n| vec![100 * n * (u64::from(ALONE) + 1)])
            .collect();
        assert_eq!(gathered(1, 4 * (u64::from(ALONE) + 1)), expected);
    }

    #[test]
    fn one_that_is_gone_keeps_nobody() {
        let gathering = Gathering::default();
        let mut context = std::task::Context::from_waker(Waker::noop());
        {
            let mut gone = std::pin::pin!(gathering.join(KeyHash(1)));
            assert!(gone.as_mut().poll(&mut context).is_pending());
        }
        let mut here = std::pin::pin!(gathering.join(KeyHash(2)));
        assert!(here.as_mut().poll(&mut context).is_pending());
        let mut seen = 0;
        let mut gatherer = std::pin::pin!(gathering.gather(|hashes| seen += hashes.len()));
        assert!(gatherer.as_mut().poll(&mut context).is_pending());
        assert!(here.as_mut().poll(&mut context).is_ready());
        assert!(gathering.waiting.borrow().is_empty());
    }
}
