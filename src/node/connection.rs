//! One client connection, from accept to close.
//!
//! ```text
//!            +------------------------- read more <--------------------------+
//!            v                                                               |
//!   idle -> gather -> parse -> admit -> handle every complete request -> settle with other cores -> write all answers
//!            |                   |                      |
//!            |                   |                      +- head says close, bad request, timeout -> write, linger, close
//!            |                   +- credentials not seen before -> write, have them verified, go on
//!            +- end of file -> close
//! ```
//!
//! A request is admitted by its head, before its body is waited for: who may not write
//! cannot make a node receive what it would write.
//!
//! The connection owns its [`Input`], and a [`Turn`] from the moment something has
//! arrived until it is answered; connections that wait share the turns of their core.
//! Requests are handled in batches of at most [`Limits::pipeline_depth`], and a batch's
//! answers leave before the next batch is handled, so a client that does not read stops
//! being read. Slow clients are cut by [`Watch`]. What a request means is the
//! [`Service`]'s business.
//!
//! **Memory.** All that a connection holds while it waits is in its [`Account`], but for
//! the few KiB that an idle one has. Together they are bounded by the node's
//! [`Pool`](crate::buffers::Pool), and one alone by [`Limits::connection_bytes_max`]. A
//! request that needs more than there is gets 503 and, unless it has arrived whole, the
//! connection is closed.
//!
//! No read or write is ever dropped while it is pending: io_uring may have
//! completed it already.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

use super::input::{Filled, INPUT_BYTES_IDLE, Input, Step};
use crate::api::batch::COPIES_BYTES_MAX;
use crate::api::turn::TURN_BYTES_KEPT;
use crate::api::{Answers, ApiError, Turn};
use crate::buffers::{ANSWER_BYTES_MAX, Account, Buffers};
use crate::http::{self, Connection, Head, Method};
use crate::runtime::{self, Segment, Transport, Wait, Watch};

/// What a connection allows.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Limits of a single request.
    pub request: http::Limits,
    /// How many pipelined requests are answered in one write.
    pub pipeline_depth: usize,
}

impl Limits {
    /// What one connection may hold at most: a batch request, once as it came and twice
    /// for the cores that carry it out, the values copied for it and its answer; anything
    /// else takes less.
    pub fn connection_bytes_max(&self) -> usize {
        let body = self.request.body_bytes_max as usize;
        let input = 2 * (self.request.head_bytes_max + body);
        input + 2 * body + COPIES_BYTES_MAX + ANSWER_BYTES_MAX
    }
}

/// How many turns wait for the next connection that has something to do.
const TURNS_KEPT: usize = 32;

/// How much a client may still send after its last answer before it is cut off.
const LINGER_BYTES_MAX: usize = 8 << 20;

/// What the connections of one listener on one core have in common.
pub struct Common {
    /// What each may do.
    pub limits: Limits,
    /// What they hold.
    pub buffers: Rc<Buffers>,
    /// Turns that no connection needs: the one that was used last is on top, and warm.
    #[allow(clippy::vec_box, reason = "a connection holds its turn in a box")]
    turns: RefCell<Vec<Box<Turn>>>,
}

impl Common {
    /// No connections yet.
    pub fn new(limits: Limits, buffers: Buffers) -> Rc<Self> {
        Rc::new(Self {
            limits,
            buffers: Rc::new(buffers),
            turns: RefCell::default(),
        })
    }

    fn take_turn(&self, service: &impl Service) -> Box<Turn> {
        let kept = self.turns.borrow_mut().pop();
        kept.unwrap_or_else(|| Box::new(service.turn()))
    }

    /// Takes back a turn whose answers were written.
    fn keep_turn(&self, mut turn: Box<Turn>) {
        turn.closes = false;
        let mut turns = self.turns.borrow_mut();
        if turns.len() < TURNS_KEPT {
            turns.push(turn);
        }
    }
}

/// What the request says of its answer's form.
#[derive(Clone, Copy)]
pub struct Form {
    /// Whether the connection goes on.
    pub connection: Connection,
    /// Whether only the head is wanted.
    pub head_only: bool,
}

impl Form {
    /// As this request has it.
    pub fn of(head: &Head<'_>) -> Self {
        Self {
            connection: Connection::after(head.version, head.keep_alive),
            head_only: head.method == Method::Head,
        }
    }

    /// With its body, whatever was asked.
    pub fn whole(connection: Connection) -> Self {
        Self {
            connection,
            head_only: false,
        }
    }

    /// The last one on its connection.
    pub fn last(head_only: bool) -> Self {
        Self {
            connection: Connection::Close,
            head_only,
        }
    }
}

/// What [`Service::admit`] says of a request.
pub enum Entry {
    /// It may pass.
    Granted,
    /// Anybody's may, and nothing depends on its body: that is not waited for.
    Open,
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

    /// Told of what has been received behind the request that is about to be handled. It may
    /// be anything; nothing may depend on it but speed.
    fn foresee(&self, _received: &[u8], _turn: &mut Turn) {}

    /// Told of what a connection has received, before it is looked at and before anybody is
    /// admitted; that waits until this returns. Nothing may depend on it but speed.
    fn gather(&self, _received: &[u8]) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Answers a whole request that was not admitted; the connection goes on.
    fn deny(&self, head: &Head<'_>, error: &ApiError, turn: &mut Turn);

    /// Answers with an error and marks the connection as closing; `head_only` leaves out
    /// the error's body.
    fn refuse(&self, error: &ApiError, head_only: bool, turn: &mut Turn);

    /// Told when all requests of a turn that could be answered at once are.
    fn handled(&self, _turn: &mut Turn) {}

    /// Completes the answers that wait for other cores, or as many of them as one write
    /// takes: if there are gaps left, this is called again once they are written.
    fn settle(&self, link: &Self::Link, turn: &mut Turn) -> impl Future<Output = ()>;

    /// How much memory a job takes while it is done, beside its answer.
    fn weight(&self, _job: &Self::Job) -> usize {
        0
    }

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
    common: Rc<Common>,
    stream: impl Transport,
    watch: Watch,
) {
    let account = Account::new(Rc::clone(&common.buffers));
    let mut serving = Serving {
        service,
        link,
        common,
        stream,
        watch,
        account,
        input: Input::new(),
    };
    while serving.read_and_answer().await {}
}

/// A connection being served.
struct Serving<S: Service, T> {
    service: Rc<S>,
    link: S::Link,
    common: Rc<Common>,
    stream: T,
    watch: Watch,
    account: Account,
    input: Input,
}

impl<S: Service, T: Transport> Serving<S, T> {
    /// Reads once and answers what is complete; false when the connection is over.
    async fn read_and_answer(&mut self) -> bool {
        let filled = self.input.fill(
            &mut self.stream,
            &self.watch,
            &self.common,
            &mut self.account,
        );
        let filled = filled.await;
        if matches!(filled, Filled::Over) && self.watch.expired() != Some(Wait::Request) {
            return false;
        }
        if matches!(filled, Filled::Some) {
            self.service.gather(self.input.unseen()).await;
        }
        let mut turn = self.common.take_turn(&*self.service);
        let goes_on = match filled {
            Filled::Some => self.answer(&mut turn).await,
            Filled::Over => {
                self.refuse(&ApiError::request_timeout(), &mut turn);
                self.write(&mut turn).await;
                false
            }
            Filled::Crowded => {
                self.refuse_crowded(&mut turn);
                self.write(&mut turn).await
            }
        };
        let closes = turn.closes;
        if goes_on {
            self.common.keep_turn(turn);
        }
        if goes_on && closes {
            self.linger().await;
        }
        goes_on && !closes
    }

    /// Answers every complete request; false when the client is gone.
    async fn answer(&mut self, turn: &mut Turn) -> bool {
        loop {
            turn.now = None;
            turn.keyed = 0;
            let step = self.input.handle_batch(
                &*self.service,
                &self.link,
                &self.common,
                &self.account,
                turn,
            );
            self.service.handled(turn);
            if !self.input.timed {
                self.watch.wait_for(Wait::Nothing);
            }
            self.account.hold(self.held(turn));
            let more = match step {
                Step::NeedMore => false,
                Step::Flush => true,
                Step::Continue => {
                    if !self.settle(turn).await {
                        return false;
                    }
                    turn.answers.bytes.extend_from_slice(http::CONTINUE);
                    false
                }
                Step::Run(job) => {
                    if !self.settle(turn).await {
                        return false;
                    }
                    self.run(job, turn).await
                }
                Step::Refuse(error) => {
                    if !self.settle(turn).await {
                        return false;
                    }
                    self.refuse(&error, turn);
                    false
                }
                Step::Crowded => {
                    if !self.settle(turn).await {
                        return false;
                    }
                    self.refuse_crowded(turn);
                    false
                }
                Step::Verify(authorization) => {
                    if !self.settle(turn).await {
                        return false;
                    }
                    // It may take a while: what was answered before is not held back.
                    if !self.write(turn).await {
                        return false;
                    }
                    self.input.timed = false;
                    self.watch.wait_for(Wait::Nothing);
                    Box::pin(self.service.verify(&self.link, authorization)).await;
                    continue;
                }
            };
            if turn.has_gaps() && !self.settle(turn).await {
                return false;
            }
            if !turn.answers.is_empty() {
                // Writing takes over the watch: the clock of a request that is
                // still arriving starts anew.
                self.input.timed = false;
            }
            if !self.write(turn).await {
                return false;
            }
            while turn.streams {
                self.service.next_part(&self.link, turn).await;
                if self.watch.stopping() || !self.write(turn).await {
                    return false;
                }
            }
            if turn.closes || !more {
                return true;
            }
        }
    }

    /// Completes all answers that wait for other cores, and writes all but the last of
    /// them; false when the client is gone.
    async fn settle(&mut self, turn: &mut Turn) -> bool {
        while turn.has_gaps() {
            self.service.settle(&self.link, turn).await;
            self.account.hold(self.held(turn));
            if turn.has_gaps() {
                if !self.write(turn).await {
                    return false;
                }
                // Each part may have taken a while to put together.
                runtime::yield_to_io().await;
            }
        }
        true
    }

    /// Does a job, if there is room for it; whether there may be more to handle.
    async fn run(&mut self, job: S::Job, turn: &mut Turn) -> bool {
        let weight = self.service.weight(&job);
        if !self.account.may_grow(weight) {
            // Its request was taken from the input; no job answers a HEAD.
            self.common.buffers.count_refused(1);
            self.service.refuse(&ApiError::crowded(), false, turn);
            return false;
        }
        self.account.hold(self.held(turn) + weight);
        // In a box: a connection that waits would have to have room for it.
        Box::pin(self.service.run(&self.link, job, turn)).await;
        self.account.hold(self.held(turn));
        true
    }

    fn refuse_crowded(&self, turn: &mut Turn) {
        self.common.buffers.count_refused(1);
        self.refuse(&ApiError::crowded(), turn);
    }

    /// Refuses the request at which the input stands.
    fn refuse(&self, error: &ApiError, turn: &mut Turn) {
        self.service.refuse(error, self.input.asks_for_head(), turn);
    }

    fn held(&self, turn: &Turn) -> usize {
        self.input.held() + turn.held()
    }

    /// Writes the turn's answers; false when the client is gone or too slow.
    async fn write(&mut self, turn: &mut Turn) -> bool {
        let refused = std::mem::take(&mut turn.answers.refused);
        if refused > 0 {
            self.common.buffers.count_refused(refused);
        }
        write(&mut self.stream, &self.watch, turn).await
    }

    async fn linger(&mut self) {
        self.input = Input::default();
        self.account.hold(0);
        linger(&mut self.stream, &self.watch).await;
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
