//! A pause that can be cut short, for tasks that have nothing to do for a while.
//!
//! One task pauses on an [`Alarm`]; whoever gives it something to do rings, from the same
//! thread. A ring while nobody pauses is not lost: it ends the next pause at once.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Duration;

/// See the module's comment.
#[derive(Debug, Default)]
pub struct Alarm {
    rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Alarm {
    /// Ends the pause.
    pub fn ring(&self) {
        self.rung.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits until it rings, but no longer than this.
    pub async fn pause(&self, longest: Duration) {
        let mut over = pin!(super::sleep(longest));
        poll_fn(|context| {
            if self.rung.get() || over.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.rung.set(false);
    }

    /// Waits until it rings.
    pub async fn rung(&self) {
        poll_fn(|context| {
            if self.rung.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.rung.set(false);
    }
}
