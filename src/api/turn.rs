//! The answers to one batch of pipelined requests, in the order of the requests.
//!
//! A connection reads, handles every complete request in its buffer, and writes
//! all answers at once: that is a turn. Answers that this core can give go
//! straight into [`Answers`]. A request for another core's key leaves a gap: its
//! operation goes into the turn's [`Exchange`], and when all outcomes are home
//! [`Turn::close_gaps`] puts everything in order. With no gap nothing is moved.
//!
//! Small bodies are copied into the answer bytes; large ones (those the store
//! keeps by reference) are only referenced, and written from where they lie.

use std::sync::Arc;
use std::time::Instant;

use crate::api::key;
use crate::clock::UnixMs;
use crate::cluster::View;
use crate::hash::{CoreId, PartitionId};
use crate::http::{Connection, HttpDate};
use crate::operations::{Exchange, Outcome, Ticket};
use crate::store::ValueView;
use crate::telemetry::latency::Tally;
use crate::telemetry::trace::{self, Begun};

/// Response bytes in order, with large bodies by reference.
#[derive(Debug)]
pub struct Answers {
    /// How much may be built here, the intermediate forms of answers included.
    pub room: usize,
    /// How many requests were refused for want of room.
    pub refused: u64,
    /// The status of the last answer.
    pub status: u16,
    /// Everything but the referenced bodies.
    pub bytes: Vec<u8>,
    /// Bodies by reference, each with its place in `bytes`, in ascending order.
    pub shared: Vec<SharedBody>,
    shared_bytes: usize,
    /// Where bodies are put together whose length their head must say.
    pub scratch: Vec<u8>,
}

/// A large body that is written from where the store keeps it.
#[derive(Debug)]
pub struct SharedBody {
    /// The body stands before this index of the answers' own bytes.
    pub at: usize,
    /// The body.
    pub body: Arc<[u8]>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            room: usize::MAX,
            refused: 0,
            status: 0,
            bytes: Vec::new(),
            shared: Vec::new(),
            shared_bytes: 0,
            scratch: Vec::new(),
        }
    }
}

impl Answers {
    /// What it holds, without bodies by reference.
    #[inline]
    fn held(&self) -> usize {
        self.bytes.capacity() + self.scratch.capacity()
    }

    /// Whether an answer that takes this many bytes of its own may join those that are
    /// here.
    #[inline]
    pub fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes.len() + bytes <= self.room
    }

    /// How many bytes will go out.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.shared_bytes
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.shared.is_empty()
    }

    /// Adds a response body.
    #[inline]
    pub fn push_body(&mut self, body: ValueView<'_>) {
        match body {
            ValueView::Bytes(bytes) => self.bytes.extend_from_slice(bytes),
            ValueView::Shared(body) => {
                self.shared_bytes += body.len();
                self.shared.push(SharedBody {
                    at: self.bytes.len(),
                    body: Arc::clone(body),
                });
            }
        }
    }

    /// Forgets everything; keeps each buffer that is small.
    pub fn clear(&mut self, capacity_kept: usize) {
        self.shared.clear();
        self.shared_bytes = 0;
        self.refused = 0;
        for buffer in [&mut self.bytes, &mut self.scratch] {
            if buffer.capacity() > capacity_kept {
                *buffer = Vec::new();
            } else {
                buffer.clear();
            }
        }
    }

    fn append_from(&mut self, other: &mut Self, from: usize, to: usize, next_shared: &mut usize) {
        let mut start = from;
        while let Some(shared) = other
            .shared
            .get(*next_shared)
            .filter(|shared| shared.at <= to)
        {
            self.bytes.extend_from_slice(&other.bytes[start..shared.at]);
            start = shared.at;
            let body = Arc::clone(&shared.body);
            self.push_body(ValueView::Shared(&body));
            *next_shared += 1;
        }
        self.bytes.extend_from_slice(&other.bytes[start..to]);
    }
}

/// An answer that waits for another core.
#[derive(Debug)]
struct Gap {
    at: usize,
    ticket: Ticket,
    render: key::Render,
    connection: Connection,
}

/// How far the gaps of a turn are closed.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    gap: usize,
    at: usize,
    shared: usize,
}

/// One batch of pipelined requests being answered.
#[derive(Debug)]
pub struct Turn {
    /// The answers so far, without those that wait.
    pub answers: Answers,
    /// What other cores are asked.
    pub exchange: Exchange,
    gaps: Vec<Gap>,
    /// While gaps are closed: the answers between them.
    parts: Answers,
    closing: Option<Cursor>,
    /// Whether the connection closes after these answers.
    pub closes: bool,
    /// Whether the answer goes on after what is there.
    pub streams: bool,
    /// When the requests of this turn began to be handled, and the same on the wall clock,
    /// for which they are answered. Read once.
    pub now: Option<(Instant, UnixMs)>,
    /// Since when some of the answers are being written before the rest is put together.
    pub paused: Option<Instant>,
    /// The requests on keys, until it is known how long they took.
    pub tally: Tally,
    /// What the only one of them was about; nothing when there are more.
    pub subject: Option<Subject>,
    /// How many there were.
    pub keyed: u32,
    /// The request that is being handled, if there is to be a span of it.
    pub recording: Option<Recorded>,
    /// Those of which there is to be one and whose answers wait for other cores.
    recorded: Vec<Recorded>,
}

/// A request of which there is to be a span.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// The span.
    pub begun: Begun,
    /// What it will say.
    pub request: trace::Request,
    /// Which of the gaps is its answer's.
    gap: usize,
    answered: bool,
}

impl Recorded {
    /// A request that has yet to be handled.
    pub fn new(begun: Begun, request: trace::Request) -> Self {
        Self {
            begun,
            request,
            gap: 0,
            answered: false,
        }
    }

    /// Takes down how long key and value are.
    #[cold]
    pub fn note(&mut self, key: &[u8], render: key::Render, outcome: &Outcome<ValueView<'_>>) {
        self.request.key_bytes = Some(key.len() as u64);
        self.request.value_bytes = match (render, outcome) {
            (key::Render::Put { bytes, .. }, _) => Some(bytes as u64),
            (_, Outcome::Found(found)) => Some(found.value.bytes().len() as u64),
            _ => None,
        };
    }
}

/// What a request on a key was about, as far as others may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Where the key belongs.
    pub partition: PartitionId,
    /// How long it is.
    pub key_bytes: u16,
}

impl Turn {
    /// An empty turn that asks through `exchange`.
    pub fn new(exchange: Exchange) -> Self {
        Self {
            answers: Answers::default(),
            exchange,
            gaps: Vec::new(),
            parts: Answers::default(),
            closing: None,
            closes: false,
            streams: false,
            now: None,
            paused: None,
            tally: Tally::default(),
            subject: None,
            keyed: 0,
            recording: None,
            recorded: Vec::new(),
        }
    }

    /// Takes the recorded requests whose answers are in their places now.
    pub fn take_recorded(&mut self) -> Vec<Recorded> {
        if self.recorded.is_empty() {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.recorded).into_iter();
        let (answered, waiting) = all.partition(|recorded| recorded.answered);
        self.recorded = waiting;
        answered
    }

    /// What it holds, without bodies by reference, which are the store's or were lent by
    /// it, and without batches that are away.
    #[inline]
    pub fn held(&self) -> usize {
        self.answers.held() + self.parts.held() + self.exchange.held()
    }

    /// Whether some answers wait for other cores.
    #[inline]
    pub fn has_gaps(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// Leaves a place for the answer behind `ticket`.
    pub fn leave_gap(&mut self, ticket: Ticket, render: key::Render, connection: Connection) {
        if let Some(mut recorded) = self.recording.take() {
            recorded.gap = self.gaps.len();
            self.recorded.push(recorded);
        }
        self.gaps.push(Gap {
            at: self.answers.bytes.len(),
            ticket,
            render,
            connection,
        });
    }

    /// Puts outcomes, which must all be home, into their places, until there are as many
    /// bytes as one write takes: if there are still gaps then, the answers are to be
    /// written, and this called again.
    pub fn close_gaps(
        &mut self,
        facts: &super::NodeFacts,
        core: CoreId,
        view: &View,
        date: &HttpDate,
        now: UnixMs,
    ) {
        let Self {
            answers,
            exchange,
            gaps,
            parts,
            closing,
            tally,
            recorded,
            ..
        } = self;
        let cursor = closing.get_or_insert_with(|| {
            std::mem::swap(answers, parts);
            answers.room = parts.room;
            answers.refused = std::mem::take(&mut parts.refused);
            Cursor::default()
        });
        while let Some(gap) = gaps.get(cursor.gap) {
            if answers.len() > TURN_BYTES_MAX {
                return;
            }
            answers.append_from(parts, cursor.at, gap.at, &mut cursor.shared);
            cursor.at = gap.at;
            let mut recorded = recorded.iter_mut().find(|one| one.gap == cursor.gap);
            cursor.gap += 1;
            let mut writer = super::Writer {
                answers,
                facts,
                view,
                date,
                connection: gap.connection,
                head_only: matches!(gap.render, key::Render::Head),
            };
            let via = exchange.via(gap.ticket, core);
            tally.count(gap.render.operation(), via);
            match exchange.outcome(gap.ticket) {
                Some((key, outcome)) => {
                    if let Some(recorded) = &mut recorded {
                        recorded.note(key, gap.render, &outcome);
                    }
                    gap.render.answer(&mut writer, key, outcome, now);
                }
                None => writer.error(&super::ApiError::internal("the owning core did not answer")),
            }
            if let Some(recorded) = recorded {
                recorded.request.via = via;
                recorded.request.status = answers.status;
                recorded.answered = true;
            }
        }
        let end = parts.bytes.len();
        answers.append_from(parts, cursor.at, end, &mut cursor.shared);
        parts.clear(TURN_BYTES_KEPT);
        gaps.clear();
        *closing = None;
        exchange.reset();
    }

    /// Whether the outcomes are home and some of them are in their places.
    #[inline]
    pub fn is_closing_gaps(&self) -> bool {
        self.closing.is_some()
    }
}

/// A turn with this many bytes of answers is written before more is handled; with fewer
/// while the node has much under way.
pub const TURN_BYTES_MAX: usize = 256 << 10;

/// Turn buffers larger than this are given back between turns.
pub const TURN_BYTES_KEPT: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_by_reference_keep_their_place() {
        let body: Arc<[u8]> = Arc::from(b"BODY".as_slice());
        let mut first = Answers::default();
        first.bytes.extend_from_slice(b"ab");
        first.push_body(ValueView::Shared(&body));
        first.bytes.extend_from_slice(b"cd");

        let mut second = Answers::default();
        second.bytes.extend_from_slice(b"_");
        let mut next_shared = 0;
        second.append_from(&mut first, 0, 1, &mut next_shared);
        second.bytes.extend_from_slice(b"-");
        second.append_from(&mut first, 1, 4, &mut next_shared);

        assert_eq!(second.bytes, b"_a-bcd");
        assert_eq!(second.shared.len(), 1);
        assert_eq!(second.shared[0].at, 4);
        assert_eq!(second.len(), 10);
    }

    #[test]
    fn a_large_answer_leaves_no_large_buffer_behind() {
        let mut answers = Answers {
            bytes: vec![0; 1000],
            scratch: vec![0; 1001],
            ..Answers::default()
        };
        answers.clear(1000);
        assert!(answers.is_empty());
        assert_eq!(
            (answers.bytes.capacity(), answers.scratch.capacity()),
            (1000, 0)
        );
    }
}
