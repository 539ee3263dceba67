//! One TLS endpoint without its socket: received records in, plaintext out, and back.
//!
//! It drives rustls's unbuffered interface, which keeps no received bytes of its own: so
//! an idle connection holds nothing but its keys, and ciphertext is opened where the
//! socket has put it.
//!
//! **One record at a time.** rustls is shown at most one record that it has not seen, so
//! that whoever calls decides how much is worked on before others have their turn, and
//! records that carry no data can be counted: after [`SILENT_RECORDS_MAX`] of them in a
//! row the connection fails, whatever they are (key updates, warnings, empty records).
//!
//! **What stays.** A handshake message may be cut into several records; rustls then wants
//! to see the earlier ones again, at the same place before the later. `kept` counts those
//! bytes at the start of the input.
//!
//! States: handshaking, then open, then closed by the peer (its close_notify was seen;
//! writing goes on), or failed: an error is final, and what alert is to be sent for it
//! stands in the output.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ServerConfig};

/// The most plaintext that one record carries.
pub(super) const RECORD_DATA_MAX: usize = 16 << 10;

/// What a record takes beyond its plaintext, at most, with any suite of rustls.
const RECORD_OVERHEAD_MAX: usize = 32;

/// Of each record: its type, version and length.
const HEADER_BYTES: usize = 5;

/// The types of records that there are, and the first byte of every version.
const KINDS: std::ops::RangeInclusive<u8> = 20..=24;
const VERSION_MAJOR: u8 = 3;

/// The longest a record may say it is (RFC 8446 section 5.2, RFC 5246 section 6.2.3).
const RECORD_LENGTH_MAX: usize = RECORD_DATA_MAX + 2048;

/// Room for the last alert, and for an answer to a key update before it.
const ALERT_BYTES_MAX: usize = 128;

/// How many records in a row may carry no data once the handshake is done. A server
/// sends some with tickets; nobody needs more.
const SILENT_RECORDS_MAX: u32 = 64;

/// How many bytes of an unfinished handshake message are kept.
const KEPT_BYTES_MAX: usize = 96 << 10;

/// How many alerts and the like may wait to be sent: after the handshake, tens of bytes.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// Why a connection has failed.
#[derive(Clone, Debug)]
pub enum SessionError {
    /// What rustls says.
    Tls(rustls::Error),
    /// The peer sends and sends, but no data.
    Flood,
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(error) => error.fmt(f),
            Self::Flood => f.write_str("the peer sends too much that carries no data"),
        }
    }
}

impl std::error::Error for SessionError {}

impl From<rustls::Error> for SessionError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

impl From<SessionError> for io::Error {
    fn from(error: SessionError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// See the module.
pub(super) struct Session {
    side: Side,
    /// How many bytes at the start of the input rustls has seen and wants to see again.
    kept: usize,
    /// Records to be sent before any other.
    output: Vec<u8>,
    /// Records since the last one that carried data.
    silent: u32,
    closed_by_peer: bool,
}

/// What is known of the next record in some received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is there whole, and ends here; or it is no record, which rustls will say.
    Whole { end: usize },
    /// So many bytes of it are missing, or more.
    Missing { bytes: usize },
}

/// Where the record behind the first `kept` bytes of `input` ends.
pub(super) fn next_record(input: &[u8], kept: usize) -> Next {
    let record = input.get(kept..).unwrap_or_default();
    let Some(&[kind, major, _, high, low]) = record.first_chunk::<HEADER_BYTES>() else {
        let bytes = HEADER_BYTES - record.len();
        return Next::Missing { bytes };
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let whole = HEADER_BYTES + length;
    if !(KINDS.contains(&kind) && major == VERSION_MAJOR && length <= RECORD_LENGTH_MAX) {
        Next::Whole { end: input.len() }
    } else if record.len() < whole {
        let bytes = whole - record.len();
        Next::Missing { bytes }
    } else {
        let end = kept + whole;
        Next::Whole { end }
    }
}

/// What rustls is at, after some of the input.
enum Progress {
    /// There is more to do without further input.
    Again,
    /// Nothing is left to do until there is more input, or more to send.
    Idle,
    /// The peer will send no more.
    PeerClosed,
}

impl Session {
    /// A server's endpoint, waiting for a client.
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, SessionError> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self::new(Side::Server(Box::new(connection))))
    }

    /// A client's endpoint, its first message in the output.
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, SessionError> {
        let connection = UnbufferedClientConnection::new(config, name)?;
        let mut session = Self::new(Side::Client(Box::new(connection)));
        session.feed(&mut [], &mut Vec::new())?;
        Ok(session)
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            kept: 0,
            output: Vec::new(),
            silent: 0,
            closed_by_peer: false,
        }
    }

    /// What rustls tells of the connection.
    pub(super) fn state(&self) -> &CommonState {
        match &self.side {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    /// Whether the peer has said that it will send no more.
    pub(super) fn is_closed_by_peer(&self) -> bool {
        self.closed_by_peer
    }

    /// Records to be sent now, if there are any.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Where the next record in `input` ends.
    pub(super) fn next(&self, input: &[u8]) -> Next {
        next_record(input, self.kept)
    }

    /// How many bytes at the start of the input are kept.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Opens the record that ends at `end` ([`Session::next`]), in place; its plaintext
    /// is appended to `data`. Returns how many bytes of `input` are done with.
    pub(super) fn open(
        &mut self,
        input: &mut [u8],
        end: usize,
        data: &mut Vec<u8>,
    ) -> Result<usize, SessionError> {
        let data_before = data.len();
        let Some(record) = input.get_mut(..end) else {
            return Ok(0);
        };
        let done = self.feed(record, data)?;
        self.kept = end.saturating_sub(done);
        if data.len() > data_before || self.state().is_handshaking() {
            self.silent = 0;
        } else {
            self.silent += 1;
        }
        let flooded = self.silent > SILENT_RECORDS_MAX
            || self.kept > KEPT_BYTES_MAX
            || (self.output.len() > OUTPUT_BYTES_MAX && !self.state().is_handshaking());
        if flooded {
            return Err(SessionError::Flood);
        }
        Ok(done)
    }

    /// Shows rustls `input` and does all that it asks for. Returns how many bytes of
    /// `input` it is done with.
    fn feed(&mut self, input: &mut [u8], data: &mut Vec<u8>) -> Result<usize, SessionError> {
        let mut done = 0;
        loop {
            let (discarded, progress) = self.step(&mut input[done..], data);
            done += discarded;
            match progress {
                Ok(Progress::Again) => {}
                Ok(Progress::Idle) => return Ok(done),
                Ok(Progress::PeerClosed) => {
                    self.closed_by_peer = true;
                    return Ok(done);
                }
                Err(error) => {
                    self.queue_alert(&mut input[done..], data);
                    return Err(error.into());
                }
            }
        }
    }

    /// Moves the alert for an error to the output. Only while there is one, since rustls
    /// would look at the input again otherwise.
    fn queue_alert(&mut self, input: &mut [u8], data: &mut Vec<u8>) {
        while self.state().wants_write() {
            if self.step(input, data).1.is_err() {
                return;
            }
        }
    }

    fn step(
        &mut self,
        input: &mut [u8],
        data: &mut Vec<u8>,
    ) -> (usize, Result<Progress, rustls::Error>) {
        let output = &mut self.output;
        match &mut self.side {
            Side::Server(connection) => {
                advance(connection.process_tls_records(input), output, data)
            }
            Side::Client(connection) => {
                advance(connection.process_tls_records(input), output, data)
            }
        }
    }

    /// Appends `plain` to `sealed`, as records, behind what is to be sent before it.
    /// `input` is what was received and not opened.
    pub(super) fn seal(
        &mut self,
        plain: &[u8],
        input: &mut [u8],
        sealed: &mut Vec<u8>,
    ) -> Result<(), SessionError> {
        let records = plain.len().div_ceil(RECORD_DATA_MAX);
        let room = plain.len() + records * RECORD_OVERHEAD_MAX;
        // A second time when an answer to a key update turned up and took the room.
        for _ in 0..2 {
            self.settle(input)?;
            sealed.append(&mut self.output);
            if plain.is_empty() {
                return Ok(());
            }
            let begin = sealed.len();
            sealed.resize(begin + room, 0);
            let target = &mut sealed[begin..];
            let kept = input.get_mut(..self.kept).unwrap_or_default();
            let result = match &mut self.side {
                Side::Server(connection) => {
                    encrypt(connection.process_tls_records(kept), plain, target)
                }
                Side::Client(connection) => {
                    encrypt(connection.process_tls_records(kept), plain, target)
                }
            };
            sealed.truncate(begin + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(_) => return Ok(()),
                Err(EncryptError::InsufficientSize(_)) => {}
                Err(EncryptError::EncryptExhausted) => break,
            }
        }
        Err(rustls::Error::EncryptError.into())
    }

    /// Appends the record that tells the peer that nothing more will be sent.
    pub(super) fn close(
        &mut self,
        input: &mut [u8],
        sealed: &mut Vec<u8>,
    ) -> Result<(), SessionError> {
        self.settle(input)?;
        sealed.append(&mut self.output);
        let kept = input.get_mut(..self.kept).unwrap_or_default();
        let mut alert = [0; ALERT_BYTES_MAX];
        let result = match &mut self.side {
            Side::Server(connection) => {
                close_notify(connection.process_tls_records(kept), &mut alert)
            }
            Side::Client(connection) => {
                close_notify(connection.process_tls_records(kept), &mut alert)
            }
        };
        let written = result.map_err(|_| rustls::Error::EncryptError)?;
        sealed.extend_from_slice(&alert[..written]);
        Ok(())
    }

    /// Lets rustls put into the output what it has to say, before anything is sealed.
    fn settle(&mut self, input: &mut [u8]) -> Result<(), SessionError> {
        let kept = input.get_mut(..self.kept).unwrap_or_default();
        // Nothing is opened: rustls has seen these bytes before.
        self.feed(kept, &mut Vec::new()).map(|_| ())
    }
}

/// Does what a state of rustls asks for. Returns how many bytes of the input are done
/// with.
fn advance<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    output: &mut Vec<u8>,
    data: &mut Vec<u8>,
) -> (usize, Result<Progress, rustls::Error>) {
    let mut discard = status.discard;
    let progress = match status.state {
        Err(error) => Err(error),
        Ok(ConnectionState::EncodeTlsData(mut encode)) => {
            append(output, |room| encode.encode(room)).map(|()| Progress::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            // It stands in the output, which goes out before anything else.
            transmit.done();
            Ok(Progress::Again)
        }
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    data.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Progress::Again),
            }
        },
        Ok(ConnectionState::PeerClosed) => Ok(Progress::PeerClosed),
        Ok(
            ConnectionState::BlockedHandshake
            | ConnectionState::WriteTraffic(_)
            | ConnectionState::Closed,
        ) => Ok(Progress::Idle),
        // Early data is never allowed, and there are no other states.
        Ok(_) => Err(rustls::Error::General("unexpected early data".into())),
    };
    (discard, progress)
}

/// Appends what `encode` writes once it is given enough room.
fn append(
    output: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), rustls::Error> {
    let begin = output.len();
    loop {
        match encode(&mut output[begin..]) {
            Ok(written) => {
                output.truncate(begin + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(needed)) => {
                output.resize(begin + needed.required_size, 0);
            }
            Err(EncodeError::AlreadyEncoded) => return Ok(()),
        }
    }
}

fn encrypt<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &[u8],
    target: &mut [u8],
) -> Result<usize, EncryptError> {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic.encrypt(plain, target),
        _ => Err(EncryptError::EncryptExhausted),
    }
}

fn close_notify<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    target: &mut [u8],
) -> Result<usize, EncryptError> {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic.queue_close_notify(target),
        _ => Err(EncryptError::EncryptExhausted),
    }
}

#[cfg(test)]
mod tests;
