//! One value on its way from one thread to a task of another.
//!
//! For the control plane: answers of the control thread, of a resolver. The lock is
//! held for a move in or out of the slot, never across a wait.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;

struct Shared<T> {
    value: Mutex<Option<T>>,
    /// The giver is done, with a value or without.
    done: AtomicBool,
    waker: AtomicWaker,
}

/// The side that gives.
pub struct Giver<T>(Arc<Shared<T>>);

/// The side that waits: a future of the value, or of nothing when the giver is gone.
pub struct Taker<T>(Arc<Shared<T>>);

/// Makes both sides.
pub fn handoff<T: Send>() -> (Giver<T>, Taker<T>) {
    let shared = Arc::new(Shared {
        value: Mutex::new(None),
        done: AtomicBool::new(false),
        waker: AtomicWaker::new(),
    });
    (Giver(Arc::clone(&shared)), Taker(shared))
}

impl<T> Giver<T> {
    /// Hands the value over.
    pub fn give(self, value: T) {
        *self.0.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

impl<T> std::fmt::Debug for Giver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Giver")
    }
}

impl<T> Drop for Giver<T> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

impl<T> Future for Taker<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.waker.register(context.waker());
        if !self.0.done.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        let mut value = self.0.value.lock().unwrap_or_else(PoisonError::into_inner);
        Poll::Ready(value.take())
    }
}
