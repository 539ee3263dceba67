//! A connection under TLS, as a [`Transport`].
//!
//! **Reading.** The socket reads into the caller's buffer, and records are opened there;
//! so while it waits, a connection has no buffer of its own. What does not fit waits in
//! one: the beginning of a record (at most one), plaintext that the caller's buffer had
//! no room for (of at most what one read of the socket brought), and records beyond
//! [`RECORDS_PER_TURN`]. These buffers are given back when they are empty, and what is
//! left of received bytes is moved only once more than half are done with: so opening
//! costs as much as there are bytes and records, however small the records are.
//!
//! **Turns.** After [`RECORDS_PER_TURN`] records others have their turn, whether there was
//! data in them or not, and however many reads they were given out with.
//!
//! **Writing.** At most [`PIECE_BYTES`] are encrypted before they are sent, whatever the
//! size of the answer. Large parts are encrypted from where they lie; only a record that
//! reaches over several parts is put together first.
//!
//! **The end.** A read gives 0 after the peer's close_notify, and also when the socket
//! ends without one: whoever reads knows how long a message is, and so sees that it was
//! cut off ([`TlsStream::ended_in_order`] tells the two apart). Bytes of a record that
//! did not arrive whole are never given out. After a record that cannot be opened, an
//! alert is sent if the socket takes it at once, and the connection is of no use: every
//! call fails.
//!
//! What rustls wants to say by itself (an answer to a key update, a warning) goes out with
//! the next write.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;

use rustls::pki_types::CertificateDer;
use rustls::{HandshakeKind, ProtocolVersion};

use super::session::{Next, RECORD_DATA_MAX, Session, SessionError};
use crate::runtime::{Segment, Stream, Transport, yield_to_io};

/// How much plaintext is encrypted before it is sent.
const PIECE_BYTES: usize = 4 * RECORD_DATA_MAX;

/// How many records are opened before others have their turn.
const RECORDS_PER_TURN: usize = 32;

/// The least room that is made for the rest of a record.
const REST_BYTES_MIN: usize = 1 << 10;

/// What each core keeps to put plaintext together in.
const SCRATCH_BYTES_KEPT: usize = 64 << 10;

thread_local! {
    /// Plaintext on its way; used between two awaits only, and empty otherwise.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        let result = work(scratch);
        scratch.clear();
        scratch.shrink_to(SCRATCH_BYTES_KEPT);
        result
    })
}

/// A TCP connection under TLS, living on one core.
pub struct TlsStream {
    stream: Stream,
    session: Session,
    /// Received and not opened, from `input_at` on.
    input: Vec<u8>,
    input_at: usize,
    /// Opened and not given out, from `plain_at` on.
    plain: Vec<u8>,
    plain_at: usize,
    /// Records opened since others had their turn.
    records: usize,
    /// Why nothing can be read or written any more.
    failed: Option<SessionError>,
    finished: bool,
}

impl TlsStream {
    /// A connection whose handshake is done; `input` came behind it.
    pub(super) fn new(stream: Stream, session: Session, input: Vec<u8>) -> Self {
        Self {
            stream,
            session,
            input,
            input_at: 0,
            plain: Vec::new(),
            plain_at: 0,
            records: 0,
            failed: None,
            finished: false,
        }
    }

    /// The certificates that the peer has shown and proved to own, its own first.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.session.state().peer_certificates()
    }

    /// The version agreed upon.
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.session.state().protocol_version()
    }

    /// The application protocol agreed upon, if one was asked for.
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.session.state().alpn_protocol()
    }

    /// Whether the handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.session.state().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Whether the peer has said that it will send no more.
    pub fn ended_in_order(&self) -> bool {
        self.session.is_closed_by_peer()
    }

    /// The address of the other side.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// See [`Stream::read`].
    pub async fn read(&mut self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        if buf.len() == buf.capacity() {
            return (Err(io::ErrorKind::InvalidInput.into()), buf);
        }
        loop {
            if self.plain_at < self.plain.len() {
                return (Ok(self.give(&mut buf)), buf);
            }
            if let Some(error) = &self.failed {
                return (Err(error.clone().into()), buf);
            }
            if self.session.is_closed_by_peer() {
                self.keep(Vec::new(), 0);
                return (Ok(0), buf);
            }
            if self.records >= RECORDS_PER_TURN {
                yield_to_io().await;
                self.records = 0;
            }
            let data = match self.session.next(&self.input[self.input_at..]) {
                Next::Whole { .. } => self.open_input(&mut buf),
                Next::Missing { bytes } if !self.input.is_empty() => {
                    match self.read_rest(bytes).await {
                        Ok(0) => return (Ok(0), buf),
                        Ok(_) => continue,
                        Err(error) => return (Err(error), buf),
                    }
                }
                Next::Missing { .. } => {
                    let begin = buf.len();
                    let (read, back) = self.stream.read(buf).await;
                    buf = back;
                    match read {
                        Ok(0) => return (Ok(0), buf),
                        Ok(_) => self.open_in_place(&mut buf, begin),
                        Err(error) => return (Err(error), buf),
                    }
                }
            };
            if data > 0 {
                return (Ok(data), buf);
            }
        }
    }

    /// Reads into the own buffer, where a record has begun.
    async fn read_rest(&mut self, missing: usize) -> io::Result<usize> {
        self.input.reserve(missing.max(REST_BYTES_MIN));
        let (read, input) = self.stream.read(std::mem::take(&mut self.input)).await;
        self.input = input;
        read
    }

    /// Opens records in the own buffer. Returns how much data came of them.
    fn open_input(&mut self, buf: &mut Vec<u8>) -> usize {
        let mut input = std::mem::take(&mut self.input);
        let at = self.input_at;
        with_scratch(|scratch| {
            let done = self.open(&mut input[at..], scratch);
            self.keep(input, at + done);
            self.deliver(scratch, buf)
        })
    }

    /// Keeps what there is of `input` from `at` on.
    fn keep(&mut self, input: Vec<u8>, at: usize) {
        let rest = input.len() - at;
        (self.input, self.input_at) = if rest == 0 || self.failed.is_some() {
            (Vec::new(), 0)
        } else if rest < at {
            (input[at..].to_vec(), 0)
        } else {
            (input, at)
        };
    }

    /// Opens the records that were read into `buf` from `begin` on, and leaves plaintext
    /// in their place. Returns how much.
    fn open_in_place(&mut self, buf: &mut Vec<u8>, begin: usize) -> usize {
        with_scratch(|scratch| {
            let done = self.open(&mut buf[begin..], scratch);
            let rest = &buf[begin + done..];
            if !rest.is_empty() {
                let missing = match self.session.next(rest) {
                    Next::Missing { bytes } => bytes,
                    Next::Whole { .. } => 0,
                };
                self.input.reserve_exact(rest.len() + missing);
                self.input.extend_from_slice(rest);
            }
            buf.truncate(begin);
            self.deliver(scratch, buf)
        })
    }

    /// Opens whole records of `input`, as many as this turn may. Returns how many bytes
    /// are done with.
    fn open(&mut self, input: &mut [u8], data: &mut Vec<u8>) -> usize {
        let mut done = 0;
        while self.records < RECORDS_PER_TURN && !self.session.is_closed_by_peer() {
            let input = &mut input[done..];
            let Next::Whole { end } = self.session.next(input) else {
                break;
            };
            self.records += 1;
            match self.session.open(input, end, data) {
                Ok(bytes) => done += bytes,
                Err(error) => {
                    self.fail(error);
                    break;
                }
            }
        }
        done
    }

    /// Gives out `data`: what `buf` has room for, and the rest with the next reads.
    fn deliver(&mut self, data: &[u8], buf: &mut Vec<u8>) -> usize {
        let room = buf.capacity() - buf.len();
        let (now, later) = data.split_at(room.min(data.len()));
        buf.extend_from_slice(now);
        if !later.is_empty() {
            self.plain = later.to_vec();
            self.plain_at = 0;
        }
        now.len()
    }

    /// Gives out plaintext that had to wait.
    fn give(&mut self, buf: &mut Vec<u8>) -> usize {
        let room = buf.capacity() - buf.len();
        let waiting = &self.plain[self.plain_at..];
        let given = room.min(waiting.len());
        buf.extend_from_slice(&waiting[..given]);
        self.plain_at += given;
        if self.plain_at == self.plain.len() {
            self.plain = Vec::new();
            self.plain_at = 0;
        }
        given
    }

    fn fail(&mut self, error: SessionError) {
        self.failed = Some(error);
        self.keep(Vec::new(), 0);
        let alert = self.session.take_output();
        if !alert.is_empty() && !self.finished {
            // Waiting for a peer that lies is not worth the while.
            let _ = self.stream.write_now(&alert);
        }
    }

    /// See [`Stream::write_all`].
    pub async fn write_all(&mut self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let mut sealed = Vec::new();
        let mut pieces = buf.chunks(PIECE_BYTES);
        let result = loop {
            let Some(piece) = pieces.next() else {
                break Ok(());
            };
            if let Err(error) = self.seal(piece, &mut sealed) {
                break Err(error);
            }
            let (written, back) = self.stream.write_all(sealed).await;
            sealed = back;
            sealed.clear();
            if written.is_err() {
                break written;
            }
        };
        (result, buf)
    }

    /// See [`Stream::write_vectored_all`].
    pub async fn write_vectored_all(
        &mut self,
        parts: Vec<Segment>,
    ) -> (io::Result<()>, Vec<Segment>) {
        let mut sealed = Vec::new();
        let mut pieces = Pieces::new(&parts);
        let result = loop {
            let more = with_scratch(|scratch| self.seal_piece(&mut pieces, scratch, &mut sealed));
            match more {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
            let (written, back) = self.stream.write_all(sealed).await;
            sealed = back;
            sealed.clear();
            if written.is_err() {
                break written;
            }
        };
        (result, parts)
    }

    /// Encrypts the next [`PIECE_BYTES`] or so; false when there is nothing left.
    fn seal_piece(
        &mut self,
        pieces: &mut Pieces<'_>,
        record: &mut Vec<u8>,
        sealed: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let mut begun = false;
        while sealed.len() < PIECE_BYTES {
            let room = RECORD_DATA_MAX - record.len();
            let Some(bytes) = pieces.take(room, record.is_empty()) else {
                break;
            };
            begun = true;
            if bytes.len() >= RECORD_DATA_MAX {
                self.seal(bytes, sealed)?;
                continue;
            }
            record.extend_from_slice(bytes);
            if record.len() == RECORD_DATA_MAX {
                self.seal(record, sealed)?;
                record.clear();
            }
        }
        if !record.is_empty() {
            self.seal(record, sealed)?;
        }
        Ok(begun)
    }

    fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>) -> io::Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone().into());
        }
        if self.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let input = &mut self.input[self.input_at..];
        let result = self.session.seal(plain, input, sealed);
        result.map_err(|error| {
            self.failed = Some(error.clone());
            error.into()
        })
    }

    /// Tells the peer that nothing more will be written: waits until it has taken the
    /// alert that says so, then shuts the socket. Reading goes on.
    pub async fn shutdown_write(&mut self) -> io::Result<()> {
        if !self.finished && self.failed.is_none() {
            self.finished = true;
            let mut alert = Vec::new();
            let input = &mut self.input[self.input_at..];
            self.session.close(input, &mut alert)?;
            self.stream.write_all(alert).await.0?;
        }
        self.stream.shutdown_write()
    }

    /// See [`Stream::set_linger_zero`].
    pub fn set_linger_zero(&self) -> io::Result<()> {
        self.stream.set_linger_zero()
    }
}

/// What is left of the parts of a write.
struct Pieces<'a> {
    parts: &'a [Segment],
    offset: usize,
}

impl<'a> Pieces<'a> {
    fn new(parts: &'a [Segment]) -> Self {
        Self { parts, offset: 0 }
    }

    /// The next bytes: several whole records of one part when `whole` allows it, else at
    /// most `room`. Nothing at the end.
    fn take(&mut self, room: usize, whole: bool) -> Option<&'a [u8]> {
        loop {
            let (part, others) = self.parts.split_first()?;
            let rest = &part.as_slice()[self.offset..];
            if rest.is_empty() {
                self.parts = others;
                self.offset = 0;
                continue;
            }
            let records = rest.len().min(PIECE_BYTES) / RECORD_DATA_MAX * RECORD_DATA_MAX;
            let len = match whole && records > 0 {
                true => records,
                false => rest.len().min(room),
            };
            self.offset += len;
            return Some(&rest[..len]);
        }
    }
}

impl Transport for TlsStream {
    fn read(&mut self, buf: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> {
        Self::read(self, buf)
    }

    fn write_all(&mut self, buf: Vec<u8>) -> impl Future<Output = (io::Result<()>, Vec<u8>)> {
        Self::write_all(self, buf)
    }

    fn write_vectored_all(
        &mut self,
        parts: Vec<Segment>,
    ) -> impl Future<Output = (io::Result<()>, Vec<Segment>)> {
        Self::write_vectored_all(self, parts)
    }

    fn shutdown_write(&mut self) -> impl Future<Output = io::Result<()>> {
        Self::shutdown_write(self)
    }

    fn set_linger_zero(&self) -> io::Result<()> {
        Self::set_linger_zero(self)
    }
}
