//! What a connection has received and not yet handled: where requests begin and end.
//!
//! It holds at most one request (head and body limits) plus one read of what follows, and
//! a chunked body twice for as long as one read of it is decoded. The buffer doubles as
//! bytes come, within what its [`Account`] allows, and shrinks again when a request was
//! handled: thousands of connections that once sent much do not keep room for it.

use std::borrow::Cow;

use super::connection::{Common, Entry, Limits, Service};
use crate::api::turn::TURN_BYTES_MAX;
use crate::api::{ApiError, Turn};
use crate::buffers::Account;
use crate::http::{self, BodyFraming, ChunkedDecoder, Head, Recall};
use crate::runtime::{Transport, Wait, Watch};
use crate::store::FORESEEN_MAX;

/// What an idle connection keeps for its next request.
pub(super) const INPUT_BYTES_IDLE: usize = 4 << 10;

/// What a connection keeps for its next request while the node has little under way: one
/// that sends values of some size again and again would have its buffer grow for each.
const INPUT_BYTES_KEPT: usize = 256 << 10;

/// How far the input buffer grows at once while the end of a request is not known.
const INPUT_GROWTH_MAX: usize = 256 << 10;

pub(super) enum Step<J> {
    /// The rest of the next request has not arrived.
    NeedMore,
    /// Enough answers for one write; there may be more requests in the buffer.
    Flush,
    /// The client waits for permission to send its body.
    Continue,
    /// A request that is answered by a job.
    Run(J),
    /// A request that ends the connection.
    Refuse(ApiError),
    /// A request for whose body there is no room.
    Crowded,
    /// A request whose credentials have to be verified.
    Verify(Vec<u8>),
}

/// How a read has ended.
pub(super) enum Filled {
    /// There is more.
    Some,
    /// There will not be more.
    Over,
    /// There may be more, but no room for it.
    Crowded,
}

/// Bytes received and not yet handled.
#[derive(Default)]
pub(super) struct Input {
    buffer: Vec<u8>,
    /// Where the next request begins.
    start: usize,
    /// With fewer bytes than this from `start`, no use looking at it again.
    needed: usize,
    /// A chunked body that is being received.
    chunked: Option<Chunked>,
    /// Whether the request being received was told to go on.
    continued: bool,
    /// Whether the clock for a whole request is running.
    pub(super) timed: bool,
    /// The fields of the last requests.
    recall: Recall,
}

/// Answers a request whose body does not matter and has not arrived.
fn answer_and_close<S: Service>(
    service: &S,
    link: &S::Link,
    head: Head<'_>,
    turn: &mut Turn,
) -> Step<S::Job> {
    let head = Head {
        keep_alive: false,
        ..head
    };
    turn.closes = true;
    match service.handle(link, &head, Cow::Borrowed(&[]), turn) {
        Some(job) => Step::Run(job),
        None => Step::NeedMore,
    }
}

struct Chunked {
    decoder: ChunkedDecoder,
    body: Vec<u8>,
    head_len: usize,
    finished: bool,
}

impl Input {
    /// An empty buffer of the size an idle connection has.
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::with_capacity(INPUT_BYTES_IDLE),
            ..Self::default()
        }
    }

    fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The request that begins here, as far as it has come, unless it was looked at already.
    pub(super) fn unseen(&self) -> &[u8] {
        match self.needed {
            0 => &self.buffer[self.start..],
            _ => &[],
        }
    }

    /// Whether the request that begins here is a HEAD, as far as it has come.
    pub(super) fn asks_for_head(&self) -> bool {
        http::begins_with_head(&self.buffer[self.start..])
    }

    /// What it holds beyond what an idle connection does.
    pub(super) fn held(&self) -> usize {
        let chunked = self
            .chunked
            .as_ref()
            .map(|chunked| chunked.body.capacity() + chunked.decoder.held());
        self.buffer.capacity().saturating_sub(INPUT_BYTES_IDLE) + chunked.unwrap_or(0)
    }

    /// Reads more, into no more room than the account allows.
    pub(super) async fn fill(
        &mut self,
        stream: &mut impl Transport,
        watch: &Watch,
        common: &Common,
        account: &mut Account,
    ) -> Filled {
        self.compact(common.buffers.keeps());
        account.hold(self.held());
        if self.buffer.is_empty() {
            self.timed = false;
            watch.wait_for(Wait::Idle);
        } else if !self.timed {
            self.timed = true;
            watch.wait_for(Wait::Request);
        }
        let growth = self.growth();
        if growth > 0 {
            if !account.may_grow(growth) {
                return Filled::Crowded;
            }
            let spare = self.buffer.capacity() - self.buffer.len();
            self.buffer.reserve_exact(spare + growth);
            account.hold(self.held());
        }
        let (read, buffer) = stream.read(std::mem::take(&mut self.buffer)).await;
        self.buffer = buffer;
        match read {
            Ok(count) if count > 0 => Filled::Some,
            _ => Filled::Over,
        }
    }

    /// Lets go of what was handled, and of a buffer that is far larger than what is left
    /// in it.
    fn compact(&mut self, keeps: bool) {
        self.buffer.drain(..self.start);
        self.start = 0;
        let kept = if keeps {
            INPUT_BYTES_KEPT
        } else {
            INPUT_BYTES_IDLE
        };
        if self.buffer.capacity() > kept && self.buffer.len() <= INPUT_BYTES_IDLE / 2 {
            let mut small = Vec::with_capacity(INPUT_BYTES_IDLE);
            small.extend_from_slice(&self.buffer);
            self.buffer = small;
        }
    }

    /// How many bytes more than it has the buffer needs for the next read. No more than
    /// was received already: memory follows bytes that came, not bytes that were
    /// announced.
    fn growth(&self) -> usize {
        let received = self.buffer.len().max(INPUT_BYTES_IDLE);
        let spare = self.buffer.capacity() - self.buffer.len();
        let missing = self.needed.saturating_sub(self.buffer.len());
        let wanted = if missing > 1 {
            missing.min(received)
        } else if spare < INPUT_BYTES_IDLE / 4 {
            // Where the request ends is not known yet.
            received.min(INPUT_GROWTH_MAX)
        } else {
            0
        };
        wanted.saturating_sub(spare)
    }

    /// Handles requests until one is incomplete or the turn is full.
    pub(super) fn handle_batch<S: Service>(
        &mut self,
        service: &S,
        link: &S::Link,
        common: &Common,
        account: &Account,
        turn: &mut Turn,
    ) -> Step<S::Job> {
        let limits = &common.limits;
        turn.answers.room = common.buffers.answer_room();
        let turn_bytes_max = TURN_BYTES_MAX.min(turn.answers.room);
        let mut handled = 0;
        loop {
            if self.pending() == 0 || self.pending() < self.needed {
                return Step::NeedMore;
            }
            if handled == limits.pipeline_depth || turn.answers.len() > turn_bytes_max {
                return Step::Flush;
            }
            if let Some(step) = self.receive_chunks(limits, account) {
                return step;
            }
            let head = match self
                .recall
                .parse_head(&self.buffer[self.start..], &limits.request)
            {
                Ok(Some(head)) => head,
                Ok(None) => {
                    self.needed = self.pending() + 1;
                    return Step::NeedMore;
                }
                Err(error) => return Step::Refuse(error.into()),
            };
            let entry = service.admit(link, &head);
            let is_open = matches!(entry, Entry::Open);
            let denied = match entry {
                Entry::Granted | Entry::Open => None,
                Entry::Denied(error) => Some(error),
                Entry::Expelled(error) => return Step::Refuse(error),
                Entry::Unverified => {
                    return Step::Verify(head.authorization.unwrap_or_default().to_vec());
                }
            };
            let head_len = head.len;
            let mut consumed = head_len;
            let body = match head.body {
                BodyFraming::None => Cow::Borrowed(&[][..]),
                BodyFraming::Length(length) => {
                    // The parser has checked the length against the body limit.
                    let whole = head_len + length as usize;
                    if self.pending() < whole {
                        if let Some(error) = denied {
                            return Step::Refuse(error);
                        }
                        if is_open {
                            return answer_and_close(service, link, head, turn);
                        }
                        let asks = head.expects_continue && self.pending() == head_len;
                        self.needed = whole;
                        return self.wait_for_body(asks);
                    }
                    consumed = whole;
                    Cow::Borrowed(&self.buffer[self.start + head_len..self.start + whole])
                }
                BodyFraming::Chunked => match self.chunked.take_if(|chunked| chunked.finished) {
                    Some(chunked) => Cow::Owned(chunked.body),
                    None => {
                        if let Some(error) = denied {
                            return Step::Refuse(error);
                        }
                        if is_open {
                            return answer_and_close(service, link, head, turn);
                        }
                        let asks = head.expects_continue && self.pending() == head_len;
                        self.chunked = Some(Chunked {
                            decoder: ChunkedDecoder::default(),
                            body: Vec::new(),
                            head_len,
                            finished: false,
                        });
                        if self.pending() > head_len {
                            continue;
                        }
                        self.needed = head_len + 1;
                        return self.wait_for_body(asks);
                    }
                },
            };
            if handled.is_multiple_of(FORESEEN_MAX) {
                service.foresee(&self.buffer[self.start + consumed..], turn);
            }
            let job = match denied {
                None => service.handle(link, &head, body, turn),
                Some(error) => {
                    service.deny(&head, &error, turn);
                    None
                }
            };
            handled += 1;
            self.start += consumed;
            self.needed = 0;
            self.continued = false;
            self.timed = false;
            if let Some(job) = job {
                return Step::Run(job);
            }
            if turn.closes {
                return Step::NeedMore;
            }
        }
    }

    fn wait_for_body<J>(&mut self, asks: bool) -> Step<J> {
        if asks && !self.continued {
            self.continued = true;
            return Step::Continue;
        }
        Step::NeedMore
    }

    /// Moves received chunks of a chunked body out of the buffer; `None` when
    /// there is no such body or it is complete.
    fn receive_chunks<J>(&mut self, limits: &Limits, account: &Account) -> Option<Step<J>> {
        let chunked = self.chunked.as_mut().filter(|chunked| !chunked.finished)?;
        let from = self.start + chunked.head_len;
        let body_max = limits.request.body_bytes_max;
        let body = &mut chunked.body;
        // Some of what has come is not body.
        let whole = body.len() + self.buffer.len() - from;
        if whole > body.capacity() {
            // By doubling, but not beyond the largest body there can be.
            let wanted = whole.max(2 * body.len()).min(body_max as usize);
            if !account.may_grow(wanted.saturating_sub(body.capacity())) {
                return Some(Step::Crowded);
            }
            body.reserve_exact(wanted.saturating_sub(body.len()));
        }
        match chunked
            .decoder
            .decode(&self.buffer[from..], &mut chunked.body, body_max)
        {
            Err(error) => Some(Step::Refuse(error.into())),
            Ok(decoded) => {
                self.buffer.drain(from..from + decoded.consumed);
                chunked.finished = decoded.finished;
                if decoded.finished {
                    self.needed = 0;
                    return None;
                }
                self.needed = self.pending() + 1;
                Some(Step::NeedMore)
            }
        }
    }
}
