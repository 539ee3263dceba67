//! What waits to be sent to one peer over one connection.
//!
//! ```text
//!        push                     poll                  answered
//!  op ─────────► gathering frame ─────► frame in flight ─────────► (next poll)
//!                                          │ failed
//!                                          ▼
//!                     down until retry_at: everything fails at once
//! ```
//!
//! Group commit: one frame is in flight at a time; what comes meanwhile gathers and
//! leaves together in the next. When nothing is in flight an operation leaves at
//! once, so batching adds no delay.
//!
//! Promises: every operation that was pushed comes back exactly once, answered or
//! failed. A peer that is gone or does not answer costs one deadline: its frame and
//! all that waited behind it fail together, and until the peer has answered a probe
//! (an empty frame, sent after a backoff with jitter) nothing is accepted for it.
//! When full, [`Outbox::push`] refuses; the caller treats that like a failure.

use std::collections::VecDeque;

use super::message::{FORMAT, Frames, PeerOp};
use super::rng::Rng;
use crate::clock::SteadyMs;
use crate::trace_context::Context;

/// A frame is closed once it has so many bytes; one operation may go beyond.
const FRAME_BYTES: usize = 1 << 20;
/// A frame is closed once it has so many operations.
const FRAME_OPS: usize = 4096;
/// For so many recorded requests a frame is known to travel.
const CONTEXTS_MAX: usize = 32;
/// What may wait for one peer on one connection.
const QUEUED_BYTES_MAX: usize = 16 << 20;

const BACKOFF_MS_MIN: u64 = 50;
const BACKOFF_MS_MAX: u64 = 2_000;

/// A buffer larger than this is given back after use.
const BYTES_KEPT: usize = 64 << 10;

/// Operations that travel together, each with the caller's note on it.
#[derive(Debug)]
pub struct Frame<C> {
    bytes: Vec<u8>,
    calls: Vec<C>,
    /// The recorded requests for which it travels.
    contexts: Vec<Context>,
}

impl<C> Default for Frame<C> {
    fn default() -> Self {
        Self {
            bytes: vec![FORMAT],
            calls: Vec::new(),
            contexts: Vec::new(),
        }
    }
}

impl<C> Frame<C> {
    /// How many operations it carries.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether it carries none: a probe.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// What travels.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Some of the recorded requests for which it travels, the first of them first.
    pub fn contexts(&self) -> &[Context] {
        &self.contexts
    }

    /// Each operation with the caller's note.
    pub fn operations(&self) -> impl Iterator<Item = (&C, PeerOp<'_>)> {
        let bodies = Frames::new(&self.bytes).into_iter().flatten();
        let ops = bodies.filter_map(|body| PeerOp::decode(body.ok()?).ok());
        self.calls.iter().zip(ops)
    }

    fn clear(&mut self) {
        self.bytes.truncate(1);
        self.calls.clear();
        self.contexts.clear();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Down { retry_at: SteadyMs },
}

/// The operations on their way to one peer.
#[derive(Debug)]
pub struct Outbox<C> {
    queue: VecDeque<Frame<C>>,
    queued_bytes: usize,
    in_flight: Option<Frame<C>>,
    sequence: u64,
    state: State,
    failures: u32,
    spare: Option<Frame<C>>,
    /// Frames that were sent, probes not counted.
    pub frames_sent: u64,
    /// Operations in them.
    pub operations_sent: u64,
}

impl<C> Default for Outbox<C> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            in_flight: None,
            sequence: 0,
            state: State::Up,
            failures: 0,
            spare: None,
            frames_sent: 0,
            operations_sent: 0,
        }
    }
}

impl<C> Outbox<C> {
    /// Whether operations are accepted.
    #[inline]
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.queue.is_empty()
    }

    /// Adds an operation; false when the peer is down or too much waits for it.
    #[must_use]
    pub fn push(&mut self, call: C, op: &PeerOp<'_>) -> bool {
        if !self.is_up() || self.queued_bytes > QUEUED_BYTES_MAX {
            return false;
        }
        let open = self
            .queue
            .back()
            .is_some_and(|frame| frame.bytes.len() < FRAME_BYTES && frame.len() < FRAME_OPS);
        if !open {
            self.queue.push_back(self.spare.take().unwrap_or_default());
        }
        if let Some(frame) = self.queue.back_mut() {
            let before = frame.bytes.len();
            op.encode(&mut frame.bytes);
            frame.calls.push(call);
            self.queued_bytes += frame.bytes.len() - before;
        }
        true
    }

    /// Says for which recorded request the operation travels that was pushed last.
    pub fn note(&mut self, context: Context) {
        if let Some(frame) = self.queue.back_mut()
            && frame.contexts.len() < CONTEXTS_MAX
            && !frame.contexts.contains(&context)
        {
            frame.contexts.push(context);
        }
    }

    /// The frame in flight.
    pub fn in_flight(&self) -> Option<&Frame<C>> {
        self.in_flight.as_ref()
    }

    /// The next frame to send, with its number; nothing while one is in flight.
    pub fn poll(&mut self, now: SteadyMs) -> Option<(u64, &[u8])> {
        if self.in_flight.is_some() {
            return None;
        }
        let frame = match self.state {
            State::Up => {
                let frame = self.queue.pop_front()?;
                self.queued_bytes -= frame.bytes.len() - 1;
                self.frames_sent += 1;
                self.operations_sent += frame.len() as u64;
                frame
            }
            State::Down { retry_at } if retry_at <= now => Frame::default(),
            State::Down { .. } => return None,
        };
        self.sequence += 1;
        let frame = self.in_flight.insert(frame);
        Some((self.sequence, &frame.bytes))
    }

    /// When [`Outbox::poll`] may have something although nothing was pushed.
    pub fn retry_at(&self) -> Option<SteadyMs> {
        match self.state {
            State::Down { retry_at } if self.in_flight.is_none() => Some(retry_at),
            _ => None,
        }
    }

    /// The frame in flight was answered: hands it back. `None` when it is not the one
    /// in flight any more.
    pub fn answered(&mut self, sequence: u64) -> Option<Frame<C>> {
        if sequence != self.sequence {
            return None;
        }
        let frame = self.in_flight.take()?;
        self.state = State::Up;
        self.failures = 0;
        Some(frame)
    }

    /// The frame in flight failed: hands back it and all that waited, to fail too.
    pub fn failed(&mut self, sequence: u64, now: SteadyMs, rng: &mut Rng) -> Vec<Frame<C>> {
        if sequence != self.sequence {
            return Vec::new();
        }
        let Some(frame) = self.in_flight.take() else {
            return Vec::new();
        };
        let backoff = (BACKOFF_MS_MIN << self.failures.min(16)).min(BACKOFF_MS_MAX);
        let jittered = backoff / 2 + rng.below(backoff as usize / 2 + 1) as u64;
        self.failures += 1;
        self.state = State::Down {
            retry_at: now.later(jittered),
        };
        let mut failed = vec![frame];
        failed.extend(self.queue.drain(..));
        self.queued_bytes = 0;
        failed
    }

    /// The peer is said to be gone: hands back what waits. What is in flight goes on.
    pub fn give_up(&mut self) -> Vec<Frame<C>> {
        self.queued_bytes = 0;
        self.queue.drain(..).collect()
    }

    /// The peer is said to be back: tries it at once.
    pub fn retry_now(&mut self, now: SteadyMs) {
        if let State::Down { retry_at } = &mut self.state {
            *retry_at = now;
            self.failures = 0;
        }
    }

    /// Takes a frame that was dealt with, for its buffers.
    pub fn recycle(&mut self, mut frame: Frame<C>) {
        if frame.bytes.capacity() <= BYTES_KEPT {
            frame.clear();
            self.spare = Some(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SteadyMs = SteadyMs(1_000);

    fn read(key: &[u8]) -> PeerOp<'_> {
        PeerOp::Read { key, value: true }
    }

    #[test]
    fn what_comes_while_a_frame_is_in_flight_leaves_together() {
        let mut outbox = Outbox::default();
        assert!(outbox.push(1, &read(b"a")));
        let (first, _) = outbox.poll(NOW).unwrap();
        for (call, key) in [(2, b"b"), (3, b"c"), (4, b"d")] {
            assert!(outbox.push(call, &read(key)));
        }
        assert!(outbox.poll(NOW).is_none(), "one frame at a time");
        let frame = outbox.answered(first).unwrap();
        assert_eq!(
            frame
                .operations()
                .map(|(call, _)| *call)
                .collect::<Vec<_>>(),
            [1]
        );
        let (second, _) = outbox.poll(NOW).unwrap();
        let frame = outbox.answered(second).unwrap();
        let calls: Vec<_> = frame.operations().collect();
        assert_eq!(
            calls,
            [(&2, read(b"b")), (&3, read(b"c")), (&4, read(b"d"))]
        );
    }

    #[test]
    fn a_failure_fails_all_that_waits_and_a_probe_reopens() {
        let mut rng = Rng::new(1);
        let mut outbox = Outbox::default();
        assert!(outbox.push(1, &read(b"a")));
        let (sequence, _) = outbox.poll(NOW).unwrap();
        assert!(outbox.push(2, &read(b"b")));
        let failed = outbox.failed(sequence, NOW, &mut rng);
        assert_eq!(failed.iter().map(Frame::len).sum::<usize>(), 2);
        assert!(!outbox.push(3, &read(b"c")), "it is down");
        assert!(outbox.poll(NOW).is_none());

        let retry_at = outbox.retry_at().unwrap();
        let (probe, bytes) = outbox.poll(retry_at).unwrap();
        assert_eq!(bytes, [FORMAT]);
        assert!(outbox.answered(probe).unwrap().is_empty());
        assert!(outbox.push(4, &read(b"d")));
    }

    #[test]
    fn an_answer_to_an_earlier_frame_is_ignored() {
        let mut rng = Rng::new(1);
        let mut outbox = Outbox::default();
        assert!(outbox.push(1, &read(b"a")));
        let (old, _) = outbox.poll(NOW).unwrap();
        outbox.failed(old, NOW, &mut rng);
        let (probe, _) = outbox.poll(SteadyMs(NOW.0 + BACKOFF_MS_MAX)).unwrap();
        assert!(outbox.answered(old).is_none());
        assert!(outbox.failed(old, NOW, &mut rng).is_empty());
        assert!(outbox.answered(probe).is_some());
    }

    #[test]
    fn an_outbox_that_is_full_refuses() {
        let mut outbox = Outbox::default();
        let value = vec![0; 1 << 20];
        let write = PeerOp::Write(super::super::message::WriteOp {
            key: b"k",
            version: crate::clock::Version::MAX,
            origin: crate::clock::Origin(0),
            value: Some(&value),
            expires_at: None,
        });
        let accepted = (0..100).filter(|&call| outbox.push(call, &write)).count();
        assert_eq!(accepted, 16);
    }
}
