//! What the load speaks: requests written, answers taken apart and checked.
//!
//! Answers may arrive cut at any byte. Whatever is not the success that was asked for is an
//! error: a miss, a refusal, a value of another length, an answer nobody asked for.

use std::io;

/// Bytes of an answer's head or line. A server that sends more speaks something else.
const HEAD_BYTES_MAX: usize = 8192;

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 GET or PUT of `/v1/cache/{key}`.
    Http,
    /// RESP GET or SET, as redis speaks it.
    Resp,
    /// The text protocol of memcached: `get` or `set`.
    Memcached,
    /// The same with its meta command `mg` instead of `get`: memcached answers those that come
    /// together in one piece, and each `get` by itself.
    MemcachedMeta,
}

impl Protocol {
    /// Writes the request that reads a key.
    pub fn write_get(self, key: usize, out: &mut Vec<u8>) {
        let request = match self {
            Self::Http => format!("GET /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\n\r\n"),
            Self::Resp => {
                let key = format!("key{key}");
                format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len())
            }
            Self::Memcached => format!("get key{key}\r\n"),
            Self::MemcachedMeta => format!("mg key{key} v\r\n"),
        };
        out.extend(request.into_bytes());
    }

    /// Writes the request that stores so many bytes under a key.
    pub fn write_put(self, key: usize, value_bytes: usize, out: &mut Vec<u8>) {
        let head = match self {
            Self::Http => format!(
                "PUT /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\nContent-Length: {value_bytes}\r\n\r\n"
            ),
            Self::Resp => {
                let key = format!("key{key}");
                format!(
                    "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${value_bytes}\r\n",
                    key.len()
                )
            }
            Self::Memcached | Self::MemcachedMeta => format!("set key{key} 0 0 {value_bytes}\r\n"),
        };
        out.extend(head.into_bytes());
        out.resize(out.len() + value_bytes, b'v');
        if self != Self::Http {
            out.extend(b"\r\n");
        }
    }

    /// What follows a value.
    fn trailer(self) -> &'static [u8] {
        match self {
            Self::Http => b"",
            Self::Resp | Self::MemcachedMeta => b"\r\n",
            Self::Memcached => b"\r\nEND\r\n",
        }
    }

    /// The answer whose head these bytes begin with, and the length of the head; `None` if it
    /// goes on.
    #[inline]
    fn head(self, bytes: &[u8]) -> io::Result<Option<(Answer, usize)>> {
        if self == Self::Http {
            let head = http_head(bytes)?;
            return Ok(head.map(|(length, end)| (Answer::Value(length), end)));
        }
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            return Ok(None);
        };
        let line = bytes[..end].strip_suffix(b"\r");
        let answer = match (self, line) {
            (Self::Resp, Some(b"+OK")) => Some(Answer::Stored),
            (Self::Resp, Some([b'$', digits @ ..])) => number(digits).map(Answer::Value),
            (Self::Memcached | Self::MemcachedMeta, Some(b"STORED")) => Some(Answer::Stored),
            (Self::MemcachedMeta, Some(line)) => meta_length(line).map(Answer::Value),
            (Self::Memcached, Some(line)) => memcached_length(line).map(Answer::Value),
            _ => None,
        };
        let answer = answer.ok_or_else(|| refused(bytes))?;
        Ok(Some((answer, end + 1)))
    }

    /// Whether this answers such a request well. An HTTP answer does not show what it
    /// answers; that of a PUT may say anything.
    #[inline]
    pub fn is_right(self, answer: Answer, put: bool, value_bytes: usize) -> bool {
        match (answer, put) {
            (Answer::Value(bytes), false) => bytes == value_bytes,
            (Answer::Value(_), true) => self == Self::Http,
            (Answer::Stored, put) => put,
        }
    }
}

/// A success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a value, or any other body, of so many bytes.
    Value(usize),
    /// That says a value was stored.
    Stored,
}

/// Where in an answer the stream is.
#[derive(Debug)]
enum Place {
    /// In its head.
    Head,
    /// In its value, of which so many bytes are to come.
    Value { bytes: usize, left: usize },
    /// Behind its value; so many bytes of the trailer are there.
    Trailer { bytes: usize, seen: usize },
}

/// Takes answers from a byte stream and fails on any that is not a success.
#[derive(Debug)]
pub struct Answers {
    protocol: Protocol,
    /// What is there of a head that is not complete.
    head: Vec<u8>,
    place: Place,
}

impl Answers {
    /// At the start of a stream.
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            head: Vec::new(),
            place: Place::Head,
        }
    }

    /// Takes more of the stream; how many answers it completes.
    ///
    /// # Errors
    ///
    /// For an answer that is not a success.
    pub fn feed(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut complete = 0;
        self.feed_each(bytes, |_| {
            complete += 1;
            Ok(())
        })?;
        Ok(complete)
    }

    /// Takes more of the stream and calls `complete` for each answer it completes.
    ///
    /// # Errors
    ///
    /// For an answer that is not a success, or with what `complete` failed with.
    pub fn feed_each(
        &mut self,
        mut bytes: &[u8],
        mut complete: impl FnMut(Answer) -> io::Result<()>,
    ) -> io::Result<()> {
        let trailer = self.protocol.trailer();
        while !bytes.is_empty() {
            match self.place {
                Place::Head => match self.take_head(&mut bytes)? {
                    // Most answers lie in the bytes as a whole.
                    Some(answer @ Answer::Value(length))
                        if bytes.len() >= length + trailer.len()
                            && (trailer.is_empty() || bytes[length..].starts_with(trailer)) =>
                    {
                        bytes = &bytes[length + trailer.len()..];
                        complete(answer)?;
                    }
                    Some(Answer::Value(length)) => {
                        self.place = Place::Value {
                            bytes: length,
                            left: length,
                        };
                    }
                    Some(Answer::Stored) => complete(Answer::Stored)?,
                    None => {}
                },
                Place::Value { .. } => self.take_value(&mut bytes, &mut complete)?,
                Place::Trailer { .. } => self.take_trailer(&mut bytes, &mut complete)?,
            }
        }
        Ok(())
    }

    /// The answer whose head ends in these bytes, if one does; takes what belongs to it.
    #[inline]
    fn take_head(&mut self, bytes: &mut &[u8]) -> io::Result<Option<Answer>> {
        if self.head.is_empty()
            && let Some((answer, length)) = self.protocol.head(bytes)?
        {
            *bytes = &bytes[length..];
            return Ok(Some(answer));
        }
        self.take_part_of_head(bytes)
    }

    /// The same for a head that is cut.
    #[cold]
    fn take_part_of_head(&mut self, bytes: &mut &[u8]) -> io::Result<Option<Answer>> {
        while let Some((&byte, rest)) = bytes.split_first() {
            *bytes = rest;
            self.head.push(byte);
            if byte == b'\n'
                && let Some((answer, _)) = self.protocol.head(&self.head)?
            {
                self.head.clear();
                return Ok(Some(answer));
            }
        }
        match self.head.len() > HEAD_BYTES_MAX {
            true => Err(io::Error::other("an answer without end of its head")),
            false => Ok(None),
        }
    }

    #[inline]
    fn take_value(
        &mut self,
        rest: &mut &[u8],
        complete: &mut impl FnMut(Answer) -> io::Result<()>,
    ) -> io::Result<()> {
        let Place::Value { bytes, left } = self.place else {
            return Ok(());
        };
        let taken = left.min(rest.len());
        *rest = &rest[taken..];
        if taken < left {
            let left = left - taken;
            self.place = Place::Value { bytes, left };
        } else if self.protocol.trailer().is_empty() {
            self.place = Place::Head;
            complete(Answer::Value(bytes))?;
        } else {
            self.place = Place::Trailer { bytes, seen: 0 };
        }
        Ok(())
    }

    #[inline]
    fn take_trailer(
        &mut self,
        rest: &mut &[u8],
        complete: &mut impl FnMut(Answer) -> io::Result<()>,
    ) -> io::Result<()> {
        let Place::Trailer { bytes, seen } = self.place else {
            return Ok(());
        };
        let missing = &self.protocol.trailer()[seen..];
        let taken = missing.len().min(rest.len());
        if rest[..taken] != missing[..taken] {
            return Err(io::Error::other(
                "a value does not end where its answer said",
            ));
        }
        *rest = &rest[taken..];
        if taken < missing.len() {
            let seen = seen + taken;
            self.place = Place::Trailer { bytes, seen };
            return Ok(());
        }
        self.place = Place::Head;
        complete(Answer::Value(bytes))
    }
}

/// The first line of what is no success.
#[cold]
fn refused(bytes: &[u8]) -> io::Error {
    let line = bytes.split(|&byte| byte == b'\n').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    io::Error::other(format!("not a success: {:?}", line.trim_end()))
}

#[inline]
fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The head of an answer 200: its Content-Length, and how long it is itself. Walking along its
/// lines takes half the time of searching for its end and for the name.
#[inline]
fn http_head(bytes: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let (mut at, mut length) = (0, None);
    while let Some(end) = memchr::memchr(b'\n', &bytes[at..]) {
        let line = &bytes[at..at + end];
        let first = at == 0;
        at += end + 1;
        if first {
            if !line.starts_with(b"HTTP/1.1 200") {
                return Err(refused(bytes));
            }
        } else if line == b"\r" {
            let length = length.ok_or_else(|| refused(b"an answer without its length"))?;
            return Ok(Some((length, at)));
        } else if let Some(digits) = line.strip_prefix(b"Content-Length: ") {
            length = number(digits.strip_suffix(b"\r").unwrap_or(digits));
        }
    }
    Ok(None)
}

/// The length in `VALUE key flags length`.
fn memcached_length(line: &[u8]) -> Option<usize> {
    let fields = line.strip_prefix(b"VALUE ")?;
    let at = memchr::memrchr(b' ', fields)?;
    number(&fields[at + 1..])
}

/// The length in `VA length flags…`.
fn meta_length(line: &[u8]) -> Option<usize> {
    let fields = line.strip_prefix(b"VA ")?;
    number(fields.split(|&byte| byte == b' ').next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nDate: x\r\n\r\nabc\
        HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\r\n\r\n";
    const RESP: &[u8] = b"$3\r\nabc\r\n+OK\r\n$0\r\n\r\n$4\r\n\r\n\r\n\r\n";
    const MEMCACHED: &[u8] = b"VALUE key1 0 3\r\nabc\r\nEND\r\nSTORED\r\n\
        VALUE key22 0 0\r\n\r\nEND\r\nVALUE k 0 5\r\nEND\r\n\r\nEND\r\n";

    const META: &[u8] = b"VA 3\r\nabc\r\nSTORED\r\nVA 0 f1\r\n\r\nVA 4 \r\nVA \n\r\n";

    fn answers(protocol: Protocol, pieces: &[&[u8]]) -> io::Result<Vec<Answer>> {
        let mut answers = Answers::new(protocol);
        let mut found = Vec::new();
        for piece in pieces {
            answers.feed_each(piece, |answer| {
                found.push(answer);
                Ok(())
            })?;
        }
        Ok(found)
    }

    fn cut_everywhere(protocol: Protocol, stream: &[u8], expected: &[Answer]) {
        for size in 1..=stream.len() {
            let pieces: Vec<&[u8]> = stream.chunks(size).collect();
            assert_eq!(answers(protocol, &pieces).unwrap(), expected, "{size}");
        }
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(answers(protocol, &pieces).unwrap(), expected);
            }
        }
    }

    #[test]
    fn answers_are_found_however_they_are_cut() {
        use Answer::{Stored, Value};
        cut_everywhere(Protocol::Http, HTTP, &[Value(3), Value(0), Value(4)]);
        cut_everywhere(
            Protocol::Resp,
            RESP,
            &[Value(3), Stored, Value(0), Value(4)],
        );
        let expected = [Value(3), Stored, Value(0), Value(5)];
        cut_everywhere(Protocol::Memcached, MEMCACHED, &expected);
        let expected = [Value(3), Stored, Value(0), Value(4)];
        cut_everywhere(Protocol::MemcachedMeta, META, &expected);
    }

    #[test]
    fn an_answer_is_complete_with_its_last_byte_and_not_before() {
        for (protocol, stream) in [
            (Protocol::Http, HTTP),
            (Protocol::Resp, RESP),
            (Protocol::Memcached, MEMCACHED),
            (Protocol::MemcachedMeta, META),
        ] {
            let all = answers(protocol, &[stream]).unwrap().len();
            let but_one = &stream[..stream.len() - 1];
            assert_eq!(answers(protocol, &[but_one]).unwrap().len(), all - 1);
        }
    }

    #[test]
    fn what_is_not_a_success_is_an_error() {
        for (protocol, stream) in [
            (
                Protocol::Http,
                &b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"[..],
            ),
            (Protocol::Http, b"HTTP/1.1 200 OK\r\nDate: x\r\n\r\n"),
            (
                Protocol::Http,
                b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            ),
            (Protocol::Resp, b"-ERR\r\n"),
            (Protocol::Resp, b"$-1\r\n"),
            (Protocol::Resp, b"$3\r\nabcd\r\n"),
            (Protocol::MemcachedMeta, b"EN\r\n"),
            (Protocol::MemcachedMeta, b"VA \r\n"),
            (Protocol::MemcachedMeta, b"HD\r\n"),
            (Protocol::MemcachedMeta, b"VA 3\r\nabcd\r\n"),
            (Protocol::Memcached, b"END\r\n"),
            (Protocol::Memcached, b"SERVER_ERROR out of memory\r\n"),
            (Protocol::Memcached, b"NOT_STORED\r\n"),
            (Protocol::Memcached, b"VALUE key1 0 3\r\nabcd\r\nEND\r\n"),
            (
                Protocol::Memcached,
                b"VALUE k 0 3\r\nabc\r\nVALUE k 0 3\r\n",
            ),
        ] {
            for size in 1..=stream.len() {
                let pieces: Vec<&[u8]> = stream.chunks(size).collect();
                assert!(answers(protocol, &pieces).is_err(), "{stream:?}");
            }
        }
        let endless = vec![b'x'; HEAD_BYTES_MAX + 1];
        assert!(answers(Protocol::Http, &[&endless]).is_err());
    }

    #[test]
    fn an_answer_must_be_that_of_its_request() {
        for protocol in [Protocol::Http, Protocol::Resp, Protocol::Memcached] {
            assert!(protocol.is_right(Answer::Value(100), false, 100));
            assert!(!protocol.is_right(Answer::Value(99), false, 100));
            assert!(!protocol.is_right(Answer::Stored, false, 100));
        }
        assert!(Protocol::Resp.is_right(Answer::Stored, true, 100));
        assert!(!Protocol::Resp.is_right(Answer::Value(100), true, 100));
        assert!(!Protocol::Memcached.is_right(Answer::Value(100), true, 100));
        assert!(Protocol::Http.is_right(Answer::Value(27), true, 100));
    }

    #[test]
    fn requests_are_as_the_protocols_have_them() {
        let written = |protocol: Protocol| {
            let mut out = Vec::new();
            protocol.write_get(7, &mut out);
            protocol.write_put(12, 3, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(Protocol::Http),
            "GET /v1/cache/key7 HTTP/1.1\r\nHost: perf\r\n\r\n\
             PUT /v1/cache/key12 HTTP/1.1\r\nHost: perf\r\nContent-Length: 3\r\n\r\nvvv"
        );
        assert_eq!(
            written(Protocol::Resp),
            "*2\r\n$3\r\nGET\r\n$4\r\nkey7\r\n*3\r\n$3\r\nSET\r\n$5\r\nkey12\r\n$3\r\nvvv\r\n"
        );
        assert_eq!(
            written(Protocol::Memcached),
            "get key7\r\nset key12 0 0 3\r\nvvv\r\n"
        );
        assert_eq!(
            written(Protocol::MemcachedMeta),
            "mg key7 v\r\nset key12 0 0 3\r\nvvv\r\n"
        );
    }
}
