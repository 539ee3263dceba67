//! Mailboxes: bounded queues into one core, from any thread.
//!
//! Promises: messages of one sender arrive in the order sent; a message that was
//! accepted is delivered as long as the receiver lives; no wake-up is lost; the receiver
//! is woken at most once per turn, and only while it waits, since waking a parked core is
//! nearly the whole price of a hop. A receiver that always finds messages still lets its
//! core do I/O between batches.
//!
//! Never: a lock, a message dropped because of pressure, growth beyond the capacity.
//!
//! Full: `try_send` hands the message back, `send` waits until the receiver has drained;
//! whoever feeds the mailbox then stops reading its own input, which is the backpressure.
//! Slow: the same. Gone: when the receiver is dropped, messages are handed back as
//! [`TrySendError::Closed`] and what was queued is dropped; when all senders are gone,
//! the receiver gets what is queued and then zero.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_channel::{self as channel, TryRecvError};

/// The most messages one [`Receiver::recv_many`] takes. More stay queued for the next
/// turn, so that a flood cannot keep a core from its sockets.
pub const RECEIVE_BATCH_MAX: usize = 1024;

/// After so many batches in a row the receiver lets its core reap I/O, even though it
/// waited between them: a wake-up from another core that comes before the core parks
/// makes monoio skip the reaping, so a steady stream of them would starve its sockets.
const BATCHES_PER_IO_TURN: u32 = 16;

/// Makes a mailbox that holds up to `capacity` messages (at least 1).
pub fn mailbox<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (into, queue) = channel::bounded(capacity.max(1));
    let (blocked, waiting_senders) = channel::unbounded();
    let shared = Arc::new(Shared {
        receiver: AtomicWaker::new(),
        receiver_waits: AtomicBool::new(false),
        receiver_gone: AtomicBool::new(false),
        waiting_senders,
    });
    let sender = Sender {
        queue: Some(into),
        blocked,
        shared: Arc::clone(&shared),
    };
    (
        sender,
        Receiver {
            queue: Some(queue),
            shared,
            batches: 0,
            found_at_once: false,
        },
    )
}

struct Shared {
    receiver: AtomicWaker,
    /// Set by the receiver before it waits; whoever clears it wakes it.
    receiver_waits: AtomicBool,
    receiver_gone: AtomicBool,
    /// Senders waiting for room. Unbounded, and as long as there are pending `send`s.
    waiting_senders: channel::Receiver<Arc<WaitingSender>>,
}

impl Shared {
    /// Wakes the receiver if it waits. Call it after the change it waits for.
    ///
    /// The fence pairs with the one in `recv_many`: either we see that it waits, or it
    /// sees our change when it looks once more before waiting (store, fence, load on both
    /// sides).
    #[inline]
    fn wake_receiver(&self) {
        fence(Ordering::SeqCst);
        if self.receiver_waits.load(Ordering::Relaxed)
            && self.receiver_waits.swap(false, Ordering::AcqRel)
        {
            self.receiver.wake();
        }
    }

    /// Wakes every waiting sender. Call it after the change they wait for; the fence
    /// pairs with the one in `send`.
    #[inline]
    fn wake_senders(&self) {
        fence(Ordering::SeqCst);
        while let Ok(sender) = self.waiting_senders.try_recv() {
            sender.woken.store(true, Ordering::Release);
            sender.waker.wake();
        }
    }
}

struct WaitingSender {
    waker: AtomicWaker,
    woken: AtomicBool,
}

/// Why a message was not taken; the message is inside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// The mailbox is full: wait with [`Sender::send`], or stop taking in work.
    Full(T),
    /// The receiver is gone for good.
    Closed(T),
}

impl<T> TrySendError<T> {
    /// The message.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the mailbox is full",
            Self::Closed(_) => "the mailbox's receiver is gone",
        })
    }
}

impl<T> std::error::Error for TrySendError<T> {}

/// Puts messages into a mailbox, from any thread.
pub struct Sender<T> {
    /// Always there, but taken first when dropped.
    queue: Option<channel::Sender<T>>,
    blocked: channel::Sender<Arc<WaitingSender>>,
    shared: Arc<Shared>,
}

impl<T: Send> Sender<T> {
    /// Puts `message` in if there is room, and wakes the receiver if it waits.
    #[inline]
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let Some(queue) = &self.queue else {
            return Err(TrySendError::Closed(message));
        };
        match queue.try_send(message) {
            Ok(()) => {
                self.shared.wake_receiver();
                Ok(())
            }
            Err(channel::TrySendError::Full(message)) => Err(TrySendError::Full(message)),
            Err(channel::TrySendError::Disconnected(message)) => Err(TrySendError::Closed(message)),
        }
    }

    /// Puts `message` in, waiting for room. Gives it back only when the receiver is gone.
    /// Dropped while it waits, it drops the message.
    pub async fn send(&self, message: T) -> Result<(), T> {
        let mut message = Some(message);
        let mut waiting: Option<Arc<WaitingSender>> = None;
        poll_fn(move |context| self.poll_send(&mut message, &mut waiting, context)).await
    }

    fn poll_send(
        &self,
        slot: &mut Option<T>,
        waiting: &mut Option<Arc<WaitingSender>>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), T>> {
        let Some(message) = slot.take() else {
            return Poll::Ready(Ok(()));
        };
        let message = match self.try_send(message) {
            Ok(()) => return Poll::Ready(Ok(())),
            Err(TrySendError::Closed(message)) => return Poll::Ready(Err(message)),
            Err(TrySendError::Full(message)) => message,
        };
        let entry = waiting.get_or_insert_with(|| {
            Arc::new(WaitingSender {
                waker: AtomicWaker::new(),
                woken: AtomicBool::new(true),
            })
        });
        entry.waker.register(context.waker());
        // Listed once, however often it is polled, until it is woken.
        if entry.woken.swap(false, Ordering::AcqRel) {
            // The list lives as long as `shared`.
            let _ = self.blocked.send(Arc::clone(entry));
        }
        // Room made before the receiver could see us in the list: see `wake_senders`.
        fence(Ordering::SeqCst);
        match self.try_send(message) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(TrySendError::Closed(message)) => Poll::Ready(Err(message)),
            Err(TrySendError::Full(message)) => {
                *slot = Some(message);
                Poll::Pending
            }
        }
    }

    /// How many messages wait to be received.
    pub fn len(&self) -> usize {
        self.queue.as_ref().map_or(0, channel::Sender::len)
    }

    /// Whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.receiver_gone.load(Ordering::Acquire)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            blocked: self.blocked.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // The last one disconnects the queue, and the receiver must learn of it.
        drop(self.queue.take());
        self.shared.wake_receiver();
    }
}

/// Takes messages out of a mailbox: one core's inbox.
pub struct Receiver<T> {
    /// Always there, but taken first when dropped.
    queue: Option<channel::Receiver<T>>,
    shared: Arc<Shared>,
    batches: u32,
    found_at_once: bool,
}

impl<T: Send> Receiver<T> {
    /// Waits until there are messages, then moves all of them, up to
    /// [`RECEIVE_BATCH_MAX`], to the end of `into`, and says how many. Zero means that
    /// all senders are gone.
    ///
    /// May be dropped while it waits: no message is lost.
    pub async fn recv_many(&mut self, into: &mut Vec<T>) -> usize {
        self.batches = self.batches.wrapping_add(1);
        if self.found_at_once || self.batches.is_multiple_of(BATCHES_PER_IO_TURN) {
            super::yield_to_io().await;
        }
        let mut waited = false;
        let taken = poll_fn(|context| {
            let taken = self.poll_recv(into, context);
            waited |= taken.is_pending();
            taken
        })
        .await;
        self.found_at_once = !waited;
        taken
    }

    fn poll_recv(&mut self, into: &mut Vec<T>, context: &mut Context<'_>) -> Poll<usize> {
        if let Some(taken) = self.drain(into) {
            return Poll::Ready(taken);
        }
        self.shared.receiver.register(context.waker());
        self.shared.receiver_waits.store(true, Ordering::Release);
        // Messages put in before their sender could see us wait: see `wake_receiver`.
        fence(Ordering::SeqCst);
        match self.drain(into) {
            Some(taken) => {
                self.shared.receiver_waits.store(false, Ordering::Relaxed);
                Poll::Ready(taken)
            }
            None => Poll::Pending,
        }
    }

    /// Moves what is there, up to [`RECEIVE_BATCH_MAX`], to the end of `into`, and says
    /// how many.
    pub fn try_drain(&mut self, into: &mut Vec<T>) -> usize {
        self.drain(into).unwrap_or(0)
    }

    /// `None` when nothing is there but may come; zero when nothing will ever come.
    #[inline]
    fn drain(&self, into: &mut Vec<T>) -> Option<usize> {
        let Some(queue) = &self.queue else {
            return Some(0);
        };
        let mut taken = 0;
        while taken < RECEIVE_BATCH_MAX {
            match queue.try_recv() {
                Ok(message) => into.push(message),
                Err(TryRecvError::Empty) if taken == 0 => return None,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
            taken += 1;
        }
        if taken > 0 {
            self.shared.wake_senders();
        }
        Some(taken)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_gone.store(true, Ordering::Release);
        drop(self.queue.take());
        self.shared.wake_senders();
    }
}
