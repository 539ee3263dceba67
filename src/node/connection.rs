//! One client connection, from accept to close.
//!
//! ```text
//!            +----------------------- read more <-----------------------+
//!            v                                                          |
//!   idle -> parse -> admit -> handle every complete request -> settle with other cores -> write all answers
//!            |         |                      |
//!            |         |                      +- head says close, bad request, timeout -> write, linger, close
//!            |         +- credentials not seen before -> write, have them verified, go on
//!            +- end of file -> close
//! ```
//!
//! A request is admitted by its head, before its body is waited for: who may not write
//! cannot make a node receive what it would write.
//!
//! The connection owns its input buffer and its [`Turn`]. It holds at most one
//! request (head and body limits) plus one read of what follows; requests are
//! handled in batches of at most [`Limits::pipeline_depth`], and a batch's answers
//! leave before the next batch is handled, so a client that does not read stops
//! being read. Slow clients are cut by [`Watch`]. What a
//! request means is the [`Service`]'s business.
//!
//! No read or write is ever dropped while it is pending: io_uring may have
//! completed it already.

use std::borrow::Cow;
use std::rc::Rc;

use crate::api::turn::TURN_BYTES_KEPT;
use crate::api::{Answers, ApiError, Turn};
use crate::http::{self, BodyFraming, ChunkedDecoder, Head};
use crate::runtime::{Segment, Transport, Wait, Watch};

/// What a connection allows.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Limits of a single request.
    pub request: http::Limits,
    /// How many pipelined requests are answered in one write.
    pub pipeline_depth: usize,
}

/// A turn with this many bytes of answers is written before more is handled.
const TURN_BYTES_MAX: usize = 256 << 10;

/// What an idle connection keeps for its next request.
const INPUT_BYTES_IDLE: usize = 4 << 10;

/// How far the input buffer grows at once.
const INPUT_GROWTH_MAX: usize = 256 << 10;

/// How much a client may still send after its last answer before it is cut off.
const LINGER_BYTES_MAX: usize = 8 << 20;

/// What [`Service::admit`] says of a request.
pub enum Entry {
    /// It may pass.
    Granted,
    /// It may not.
    Denied(ApiError),
    /// Nor may any other on this connection.
    Expelled(ApiError),
    /// Its credentials have to be verified first.
    Unverified,
}

/// What is served on a connection.
pub trait Service {
    /// Work that [`Service::handle`] could not do at once.
    type Job;
    /// What the service keeps per connection.
    type Link;

    /// Whether a request with this head may do what it asks for.
    fn admit(&self, link: &Self::Link, head: &Head<'_>) -> Entry;

    /// Finds out who shows these credentials; [`Service::admit`] knows it then.
    fn verify(&self, link: &Self::Link, authorization: Vec<u8>) -> impl Future<Output = ()>;

    /// Handles one whole request that was admitted: answers into `turn`, or returns what
    /// is left to do.
    fn handle(
        &self,
        link: &Self::Link,
        head: &Head<'_>,
        body: Cow<'_, [u8]>,
        turn: &mut Turn,
    ) -> Option<Self::Job>;

    /// Answers a whole request that was not admitted; the connection goes on.
    fn deny(&self, head: &Head<'_>, error: &ApiError, turn: &mut Turn);

    /// Answers with an error and marks the connection as closing.
    fn refuse(&self, error: &ApiError, turn: &mut Turn);

    /// Completes the answers that wait for other cores.
    fn settle(&self, link: &Self::Link, turn: &mut Turn) -> impl Future<Output = ()>;

    /// Does a job and answers it.
    fn run(&self, link: &Self::Link, job: Self::Job, turn: &mut Turn) -> impl Future<Output = ()>;

    /// An empty turn.
    fn turn(&self) -> Turn;

    /// Waits for the next part of an answer that has no end ([`Turn::streams`]).
    fn next_part(&self, _link: &Self::Link, turn: &mut Turn) -> impl Future<Output = ()> {
        turn.streams = false;
        std::future::ready(())
    }
}

/// Serves one connection until it is closed.
pub async fn serve<S: Service>(
    service: Rc<S>,
    link: S::Link,
    limits: Rc<Limits>,
    mut stream: impl Transport,
    watch: Watch,
) {
    let mut turn = service.turn();
    let mut input = Input {
        buffer: Vec::with_capacity(INPUT_BYTES_IDLE),
        ..Input::default()
    };
    loop {
        if !input.fill(&mut stream, &watch).await {
            if watch.expired() == Some(Wait::Request) {
                service.refuse(&ApiError::request_timeout(), &mut turn);
                write(&mut stream, &watch, &mut turn).await;
            }
            return;
        }
        loop {
            turn.now = None;
            let step = input.handle_batch(&*service, &link, &limits, &mut turn);
            if !input.timed {
                watch.wait_for(Wait::Nothing);
            }
            let more = match step {
                Step::NeedMore => false,
                Step::Flush => true,
                Step::Continue => {
                    service.settle(&link, &mut turn).await;
                    turn.answers.bytes.extend_from_slice(http::CONTINUE);
                    false
                }
                Step::Run(job) => {
                    service.settle(&link, &mut turn).await;
                    service.run(&link, job, &mut turn).await;
                    true
                }
                Step::Refuse(error) => {
                    service.settle(&link, &mut turn).await;
                    service.refuse(&error, &mut turn);
                    false
                }
                Step::Verify(authorization) => {
                    service.settle(&link, &mut turn).await;
                    // It may take a while: what was answered before is not held back.
                    if !write(&mut stream, &watch, &mut turn).await {
                        return;
                    }
                    input.timed = false;
                    watch.wait_for(Wait::Nothing);
                    service.verify(&link, authorization).await;
                    continue;
                }
            };
            if turn.has_gaps() {
                service.settle(&link, &mut turn).await;
            }
            if !turn.answers.is_empty() {
                // Writing takes over the watch: the clock of a request that is
                // still arriving starts anew.
                input.timed = false;
            }
            if !write(&mut stream, &watch, &mut turn).await {
                return;
            }
            while turn.streams {
                service.next_part(&link, &mut turn).await;
                if watch.stopping() || !write(&mut stream, &watch, &mut turn).await {
                    return;
                }
            }
            if turn.closes {
                linger(&mut stream, &watch).await;
                return;
            }
            if !more {
                break;
            }
        }
    }
}

enum Step<J> {
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
    /// A request whose credentials have to be verified.
    Verify(Vec<u8>),
}

/// Bytes received and not yet handled.
#[derive(Default)]
struct Input {
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
    timed: bool,
}

struct Chunked {
    decoder: ChunkedDecoder,
    body: Vec<u8>,
    head_len: usize,
    finished: bool,
}

impl Input {
    fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Reads more; false when the connection is over.
    async fn fill(&mut self, stream: &mut impl Transport, watch: &Watch) -> bool {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        if self.buffer.is_empty() {
            if self.buffer.capacity() > TURN_BYTES_KEPT {
                self.buffer = Vec::with_capacity(INPUT_BYTES_IDLE);
            }
            self.timed = false;
            watch.wait_for(Wait::Idle);
        } else if !self.timed {
            self.timed = true;
            watch.wait_for(Wait::Request);
        }
        let missing = self.needed.saturating_sub(self.buffer.len());
        if missing > 0 {
            // No more than was received already: memory follows bytes that came,
            // not bytes that were announced.
            let growth = missing.min(self.buffer.len().clamp(INPUT_BYTES_IDLE, INPUT_GROWTH_MAX));
            self.buffer.reserve(growth);
        } else if self.buffer.spare_capacity_mut().len() < INPUT_BYTES_IDLE / 4 {
            self.buffer
                .reserve(self.buffer.len().clamp(INPUT_BYTES_IDLE, INPUT_GROWTH_MAX));
        }
        let (read, buffer) = stream.read(std::mem::take(&mut self.buffer)).await;
        self.buffer = buffer;
        matches!(read, Ok(count) if count > 0)
    }

    /// Handles requests until one is incomplete or the turn is full.
    fn handle_batch<S: Service>(
        &mut self,
        service: &S,
        link: &S::Link,
        limits: &Limits,
        turn: &mut Turn,
    ) -> Step<S::Job> {
        let mut handled = 0;
        loop {
            if self.pending() == 0 || self.pending() < self.needed {
                return Step::NeedMore;
            }
            if handled == limits.pipeline_depth || turn.answers.len() > TURN_BYTES_MAX {
                return Step::Flush;
            }
            if let Some(step) = self.receive_chunks(limits) {
                return step;
            }
            let head = match http::parse_head(&self.buffer[self.start..], &limits.request) {
                Ok(Some(head)) => head,
                Ok(None) => {
                    self.needed = self.pending() + 1;
                    return Step::NeedMore;
                }
                Err(error) => return Step::Refuse(error.into()),
            };
            let denied = match service.admit(link, &head) {
                Entry::Granted => None,
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
    fn receive_chunks<J>(&mut self, limits: &Limits) -> Option<Step<J>> {
        let chunked = self.chunked.as_mut().filter(|chunked| !chunked.finished)?;
        let from = self.start + chunked.head_len;
        let body_max = limits.request.body_bytes_max;
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

/// Writes the turn's answers; false when the client is gone or too slow.
async fn write(stream: &mut impl Transport, watch: &Watch, turn: &mut Turn) -> bool {
    let answers = &mut turn.answers;
    if answers.is_empty() {
        return true;
    }
    watch.wait_for(Wait::Write);
    let bytes = std::mem::take(&mut answers.bytes);
    let written = if answers.shared.is_empty() {
        let (written, bytes) = stream.write_all(bytes).await;
        answers.bytes = bytes;
        written
    } else {
        let segments = segments(bytes, answers);
        stream.write_vectored_all(segments).await.0
    };
    watch.wait_for(Wait::Nothing);
    answers.clear(TURN_BYTES_KEPT);
    if watch.expired() == Some(Wait::Write) {
        // It would not take what it was sent: no point in waiting for its FIN.
        let _ = stream.set_linger_zero();
        return false;
    }
    written.is_ok()
}

/// The answers as parts of one vectored write, large bodies from where they lie.
fn segments(mut bytes: Vec<u8>, answers: &mut Answers) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(2 * answers.shared.len() + 1);
    // From the back, so that each split moves only what follows the last body.
    for shared in answers.shared.drain(..).rev() {
        let behind = bytes.split_off(shared.at);
        if !behind.is_empty() {
            segments.push(Segment::from(behind));
        }
        segments.push(Segment::from(shared.body));
    }
    segments.push(Segment::from(bytes));
    segments.reverse();
    segments
}

/// Closes our side and reads on for a while: closing a socket with unread input
/// makes the kernel send a reset, which can overtake the last answer (RFC 9112
/// section 9.6).
async fn linger(stream: &mut impl Transport, watch: &Watch) {
    // Under TLS it writes, too.
    watch.wait_for(Wait::Write);
    if stream.shutdown_write().await.is_err() {
        return;
    }
    watch.wait_for(Wait::Linger);
    let mut discarded = 0;
    let mut buffer = Vec::with_capacity(INPUT_BYTES_IDLE);
    while discarded < LINGER_BYTES_MAX && watch.expired().is_none() && !watch.stopping() {
        buffer.clear();
        let (read, returned) = stream.read(buffer).await;
        buffer = returned;
        match read {
            Ok(count) if count > 0 => discarded += count,
            _ => return,
        }
    }
}
