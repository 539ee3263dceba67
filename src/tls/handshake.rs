//! Becoming a [`TlsStream`], as a server or as a client, without stalling a core.
//!
//! ```text
//! accept -> read one record -> a slot is free? -> gate -> one step -> write -> read ... -> done
//!           too slow, gone       no: refused     too slow, too long, gone, not TLS: failed
//! ```
//!
//! A step of a server's handshake costs a tenth of a millisecond to a whole one, on a
//! thread that also serves requests. So the steps of one core's handshakes go through a
//! gate ([`super::gate`]), one per turn of the loop and half of the time at most:
//! whatever clients send, an established connection waits for about one step, and a step
//! checks ten or so signatures at most ([`super::config::ClientVerifier`]). Who is too late
//! takes no step any more. A flood makes new connections slow, not old ones.
//!
//! **What one handshake may cost.** Its whole duration is at most the read timeout
//! ([`Wait::Handshake`]), however its bytes are spread; it takes at most
//! [`RECEIVED_BYTES_MAX`] in [`RECORDS_MAX`] records.
//!
//! **A slot** of the limit of handshakes in progress is taken by who has sent a whole
//! record. Until then a client holds its connection and a buffer: [`READ_BYTES`] when it
//! is silent, and about twice what it has sent of one record when it dribbles. The limit
//! of connections and the read timeout bound how many do so, and they keep nobody from
//! shaking hands. Beyond the limit the newest is refused, before anything was computed.
//!
//! **A resumed session** shows no certificate: rustls restores it from the ticket, where
//! it was put when it was verified, perhaps long ago. So it is verified again.
//!
//! After a failure the client is told by an alert, and has [`Wait::Linger`] to read it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Instant;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::config::ServerTls;
use super::gate::{Gate, Place, Verdict};
use super::session::{Next, Session, SessionError, next_record};
use super::stream::TlsStream;
use crate::runtime::{self, Stream, Wait, Watch};

/// The most that a client may send before its handshake is done: a chain of large
/// certificates fits several times.
const RECEIVED_BYTES_MAX: usize = 64 << 10;

/// In how many records. Ten are many.
const RECORDS_MAX: usize = 64;

/// Room for a first message, with a post-quantum key share.
const READ_BYTES: usize = 2 << 10;

/// How much a client may still send after it was refused, while it reads the alert.
const LINGER_BYTES_MAX: usize = 64 << 10;

/// Why a handshake came to nothing.
#[derive(Debug)]
pub enum HandshakeError {
    /// As many as may be are in progress already.
    Refused,
    /// It took too long.
    TimedOut,
    /// The peer has left.
    Closed,
    /// It takes more than a handshake needs.
    TooLong,
    /// What the peer says is not TLS, or not to be accepted.
    Tls(SessionError),
    /// The socket failed.
    Io(io::Error),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("too many TLS handshakes are in progress"),
            Self::TimedOut => f.write_str("the TLS handshake took too long"),
            Self::Closed => f.write_str("the peer left during the TLS handshake"),
            Self::TooLong => f.write_str("the TLS handshake takes too many bytes"),
            Self::Tls(error) => write!(f, "the TLS handshake failed: {error}"),
            Self::Io(error) => write!(f, "the TLS handshake failed: {error}"),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<SessionError> for HandshakeError {
    fn from(error: SessionError) -> Self {
        Self::Tls(error)
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error.into())
    }
}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        let kind = match &error {
            HandshakeError::Io(error) => error.kind(),
            HandshakeError::TimedOut => io::ErrorKind::TimedOut,
            HandshakeError::Closed => io::ErrorKind::UnexpectedEof,
            HandshakeError::Refused => io::ErrorKind::ConnectionRefused,
            HandshakeError::TooLong | HandshakeError::Tls(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// How many handshakes ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeCounts {
    /// Those that became connections.
    pub completed: u64,
    /// Those that did not, for other reasons than the next two.
    pub failed: u64,
    /// Those that took too long.
    pub timed_out: u64,
    /// Those that took no step, since too many were in progress.
    pub refused: u64,
}

/// The server's handshakes of one core.
pub struct Handshakes {
    in_progress_max: usize,
    in_progress: Cell<usize>,
    counts: Cell<HandshakeCounts>,
    /// When time began for the gate.
    epoch: Instant,
    gate: RefCell<Gate>,
    waiting: RefCell<BTreeMap<Place, Waker>>,
    /// Whether a task sees to it that the gate opens again.
    tended: Cell<bool>,
}

impl Handshakes {
    /// None yet; at most `in_progress_max` at a time.
    pub fn new(in_progress_max: usize) -> Rc<Self> {
        Rc::new(Self {
            in_progress_max,
            in_progress: Cell::new(0),
            counts: Cell::default(),
            epoch: Instant::now(),
            gate: RefCell::default(),
            waiting: RefCell::default(),
            tended: Cell::new(false),
        })
    }

    /// How many are in progress: their first record has come, and they have not ended.
    pub fn in_progress(&self) -> usize {
        self.in_progress.get()
    }

    /// How the others have ended.
    pub fn counts(&self) -> HandshakeCounts {
        self.counts.get()
    }

    fn begin(&self) -> Option<Slot<'_>> {
        if self.in_progress.get() >= self.in_progress_max {
            return None;
        }
        self.in_progress.set(self.in_progress.get() + 1);
        Some(Slot(&self.in_progress))
    }

    fn count<T>(&self, result: &Result<T, HandshakeError>) {
        let mut counts = self.counts.get();
        let ending = match result {
            Ok(_) => &mut counts.completed,
            Err(HandshakeError::Refused) => &mut counts.refused,
            Err(HandshakeError::TimedOut) => &mut counts.timed_out,
            Err(_) => &mut counts.failed,
        };
        *ending += 1;
        self.counts.set(counts);
    }

    /// Waits for this handshake's turn, takes its step and lets the next one go later.
    /// Takes none when it is too late by then.
    async fn step(
        self: &Rc<Self>,
        watch: &Watch,
        step: impl FnOnce() -> Result<(), HandshakeError>,
    ) -> Result<(), HandshakeError> {
        let pass = Pass {
            handshakes: self,
            place: self.gate.borrow_mut().arrive(),
        };
        if !self.tended.get() {
            self.open();
        }
        pass.wait().await;
        if watch.expired().is_some() {
            return Err(HandshakeError::TimedOut);
        }
        let began = self.epoch.elapsed();
        let result = step();
        let ended = self.epoch.elapsed();
        self.gate.borrow_mut().stepped(pass.place, began, ended);
        result
    }

    /// Opens the gate for the first in the queue if it may go now; the next is seen to by
    /// a task, which ends when nobody is waiting.
    fn open(self: &Rc<Self>) {
        self.tended.set(true);
        runtime::spawn(Rc::clone(self).tend(self.admit()));
    }

    async fn tend(self: Rc<Self>, mut verdict: Verdict) {
        loop {
            match verdict {
                Verdict::Idle => break,
                Verdict::Rest(rest) => runtime::sleep(rest).await,
                Verdict::Go(_) | Verdict::Busy => runtime::yield_to_io().await,
            }
            verdict = self.admit();
        }
        self.tended.set(false);
    }

    fn admit(&self) -> Verdict {
        let verdict = self.gate.borrow_mut().admit(self.epoch.elapsed());
        if let Verdict::Go(place) = verdict
            && let Some(waker) = self.waiting.borrow_mut().remove(&place)
        {
            waker.wake();
        }
        verdict
    }
}

/// A handshake in progress.
struct Slot<'a>(&'a Cell<usize>);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// One handshake at the gate; gives its place up when dropped.
struct Pass<'a> {
    handshakes: &'a Handshakes,
    place: Place,
}

impl Pass<'_> {
    async fn wait(&self) {
        poll_fn(|context| {
            if self.handshakes.gate.borrow().is_stepping(self.place) {
                return Poll::Ready(());
            }
            let mut waiting = self.handshakes.waiting.borrow_mut();
            waiting.insert(self.place, context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.handshakes.waiting.borrow_mut().remove(&self.place);
        self.handshakes.gate.borrow_mut().leave(self.place);
    }
}

/// Has a client shake hands on a new connection. Sets what `watch` waits for.
///
/// # Errors
///
/// When there are too many already, or it does not come to an end within its limits, or
/// not to a good one. The client was told if it could be; the connection is closed.
pub async fn accept(
    stream: Stream,
    tls: &ServerTls,
    handshakes: &Rc<Handshakes>,
    watch: &Watch,
) -> Result<TlsStream, HandshakeError> {
    accept_begun(stream, Vec::new(), tls, handshakes, watch).await
}

/// The same with a client of whom this much was received already.
///
/// # Errors
///
/// See [`accept`].
pub async fn accept_begun(
    stream: Stream,
    received: Vec<u8>,
    tls: &ServerTls,
    handshakes: &Rc<Handshakes>,
    watch: &Watch,
) -> Result<TlsStream, HandshakeError> {
    watch.wait_for(Wait::Handshake);
    let accepted = serve(stream, received, tls, handshakes, watch).await;
    let in_time = watch.expired() != Some(Wait::Handshake);
    watch.wait_for(Wait::Nothing);
    let result = match accepted {
        _ if !in_time => Err((HandshakeError::TimedOut, None)),
        accepted => accepted,
    };
    match result {
        Ok(stream) => {
            let result = Ok(stream);
            handshakes.count(&result);
            result
        }
        Err((error, stream)) => {
            let result = Err(error);
            handshakes.count(&result);
            if let Some(stream) = stream {
                linger(stream, watch).await;
            }
            result
        }
    }
}

/// A failure, and the connection if the peer may still read why.
type Failure = (HandshakeError, Option<Stream>);

/// A server's side of a handshake.
async fn serve(
    stream: Stream,
    received: Vec<u8>,
    tls: &ServerTls,
    handshakes: &Rc<Handshakes>,
    watch: &Watch,
) -> Result<TlsStream, Failure> {
    let mut wire = Wire {
        received: received.len(),
        input: received,
        stream,
    };
    // The slot is taken and the endpoint made when there is something to look at: a client
    // that only connects, or dribbles, costs no more than its buffer.
    let end = wire.record(0).await.map_err(|error| (error, None))?;
    let _slot = handshakes.begin().ok_or((HandshakeError::Refused, None))?;
    let session = Session::server(Arc::clone(&tls.config));
    let mut session = session.map_err(|error| (error.into(), None))?;
    let shaken = shake(&mut wire, &mut session, end, tls, handshakes, watch).await;
    let alert = session.take_output();
    match shaken {
        Ok(()) => Ok(TlsStream::new(wire.stream, session, wire.input)),
        Err(HandshakeError::Tls(error)) if !alert.is_empty() => {
            let told = wire.send(alert).await.is_ok();
            Err((error.into(), told.then_some(wire.stream)))
        }
        Err(error) => Err((error, None)),
    }
}

/// From the first record, which ends at `end`, to the last.
async fn shake(
    wire: &mut Wire,
    session: &mut Session,
    mut end: usize,
    tls: &ServerTls,
    handshakes: &Rc<Handshakes>,
    watch: &Watch,
) -> Result<(), HandshakeError> {
    for _ in 0..RECORDS_MAX {
        let input = &mut wire.input;
        let step = handshakes.step(watch, || server_step(session, tls, input, end));
        step.await?;
        wire.send(session.take_output()).await?;
        if !session.state().is_handshaking() {
            wire.input.shrink_to_fit();
            return Ok(());
        }
        end = wire.record(session.kept()).await?;
    }
    Err(HandshakeError::TooLong)
}

/// Takes one record of a client's in.
fn server_step(
    session: &mut Session,
    tls: &ServerTls,
    input: &mut Vec<u8>,
    end: usize,
) -> Result<(), HandshakeError> {
    // No data comes before the end of a handshake.
    let done = session.open(input, end, &mut Vec::new())?;
    input.drain(..done);
    let state = session.state();
    let is_resumed = state.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    if !state.is_handshaking()
        && is_resumed
        && let Some(clients) = &tls.clients
        && let Some(chain) = state.peer_certificates()
    {
        let now = tls.config.time_provider.current_time();
        clients.verify(chain, now.ok_or(rustls::Error::FailedToGetCurrentTime)?)?;
    }
    Ok(())
}

/// Shakes hands with a server that is to have this name. The caller keeps the deadline.
///
/// # Errors
///
/// When the server does not prove to be what it should, or the connection fails.
pub async fn connect(
    stream: Stream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<TlsStream, HandshakeError> {
    let mut session = Session::client(config, name)?;
    let mut wire = Wire::new(stream);
    for _ in 0..RECORDS_MAX {
        wire.send(session.take_output()).await?;
        if !session.state().is_handshaking() {
            wire.input.shrink_to_fit();
            return Ok(TlsStream::new(wire.stream, session, wire.input));
        }
        let end = wire.record(session.kept()).await?;
        match session.open(&mut wire.input, end, &mut Vec::new()) {
            Ok(done) => drop(wire.input.drain(..done)),
            Err(error) => {
                // Who is no peer may miss it.
                let _ = wire.stream.write_now(&session.take_output());
                return Err(error.into());
            }
        }
        runtime::yield_to_io().await;
    }
    Err(HandshakeError::TooLong)
}

/// A connection during its handshake, and what was received and not taken in.
struct Wire {
    stream: Stream,
    input: Vec<u8>,
    received: usize,
}

impl Wire {
    fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: Vec::with_capacity(READ_BYTES),
            received: 0,
        }
    }

    /// Waits until there is a whole record behind the first `kept` bytes; returns where
    /// it ends.
    async fn record(&mut self, kept: usize) -> Result<usize, HandshakeError> {
        loop {
            let missing = match next_record(&self.input, kept) {
                Next::Whole { end } => return Ok(end),
                Next::Missing { bytes } => bytes,
            };
            if self.received >= RECEIVED_BYTES_MAX {
                return Err(HandshakeError::TooLong);
            }
            // Memory follows bytes that came, not bytes that were announced.
            self.input.reserve(missing.min(READ_BYTES));
            let input = std::mem::take(&mut self.input);
            let (read, input) = self.stream.read(input).await;
            self.input = input;
            match read {
                Ok(0) => return Err(HandshakeError::Closed),
                Ok(count) => self.received += count,
                Err(error) => return Err(HandshakeError::Io(error)),
            }
        }
    }

    async fn send(&mut self, output: Vec<u8>) -> Result<(), HandshakeError> {
        if output.is_empty() {
            return Ok(());
        }
        let (written, _) = self.stream.write_all(output).await;
        written.map_err(HandshakeError::Io)
    }
}

/// Reads on for a while, since closing a socket with unread input makes the kernel send
/// a reset, which can overtake the alert.
async fn linger(mut stream: Stream, watch: &Watch) {
    if stream.shutdown_write().is_err() {
        return;
    }
    watch.wait_for(Wait::Linger);
    let mut discarded = 0;
    let mut buffer = Vec::with_capacity(READ_BYTES);
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

#[cfg(test)]
mod tests;
