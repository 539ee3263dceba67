//! Response heads (RFC 9110 section 15, RFC 9112 section 4), appended to a buffer.
//!
//! Constant parts are constant bytes; numbers are written by hand. Nothing is
//! allocated beyond the buffer.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::request::HttpVersion;

/// The interim answer to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The statuses we answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Status {
    Ok = 200,
    Accepted = 202,
    BadRequest = 400,
    Unauthorized = 401,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    PayloadTooLarge = 413,
    UriTooLong = 414,
    ExpectationFailed = 417,
    HeaderFieldsTooLarge = 431,
    InternalServerError = 500,
    NotImplemented = 501,
    ServiceUnavailable = 503,
    HttpVersionNotSupported = 505,
}

impl Status {
    /// The three digits.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// The reason phrase.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Accepted => "Accepted",
            Self::BadRequest => "Bad Request",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::RequestTimeout => "Request Timeout",
            Self::PayloadTooLarge => "Content Too Large",
            Self::UriTooLong => "URI Too Long",
            Self::ExpectationFailed => "Expectation Failed",
            Self::HeaderFieldsTooLarge => "Request Header Fields Too Large",
            Self::InternalServerError => "Internal Server Error",
            Self::NotImplemented => "Not Implemented",
            Self::ServiceUnavailable => "Service Unavailable",
            Self::HttpVersionNotSupported => "HTTP Version Not Supported",
        }
    }
}

/// What an answer says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It goes on, as HTTP/1.1 has it by default: nothing is said.
    KeepAlive,
    /// It goes on, which an HTTP/1.0 client must be told.
    KeepAliveStated,
    /// It ends with this answer.
    Close,
}

impl Connection {
    /// What to say to a client of `version` whose connection goes on or not.
    #[inline]
    pub fn after(version: HttpVersion, keep_alive: bool) -> Self {
        match (version, keep_alive) {
            (_, false) => Self::Close,
            (HttpVersion::Http11, true) => Self::KeepAlive,
            (HttpVersion::Http10, true) => Self::KeepAliveStated,
        }
    }

    #[inline]
    fn field(self) -> &'static [u8] {
        match self {
            Self::KeepAlive => b"",
            Self::KeepAliveStated => b"Connection: keep-alive\r\n",
            Self::Close => b"Connection: close\r\n",
        }
    }
}

const DATE_BYTES: usize = b"Sun, 06 Nov 1994 08:49:37 GMT".len();

const DATE_FIELD: &[u8; DATE_FIELD_BYTES] = b"\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
const DATE_FIELD_BYTES: usize = b"\r\nDate: ".len() + DATE_BYTES + b"\r\n".len();
const DATE_AT: usize = b"\r\nDate: ".len();

/// A point in time as `Date` has it (RFC 9110 section 5.6.7); made once a second. It is kept
/// as it stands in most heads: the end of a line, and the whole field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpDate([u8; DATE_FIELD_BYTES]);

impl HttpDate {
    /// The date of a Unix time in seconds; beyond the calendar, its last second.
    pub fn at(unix_seconds: u64) -> Self {
        let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
        let at = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let text = at
            .to_zoned(TimeZone::UTC)
            .strftime("%a, %d %b %Y %H:%M:%S GMT")
            .to_string();
        let mut field = *DATE_FIELD;
        if text.len() == DATE_BYTES {
            field[DATE_AT..DATE_AT + DATE_BYTES].copy_from_slice(text.as_bytes());
        }
        Self(field)
    }

    /// Its bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0[DATE_AT..DATE_AT + DATE_BYTES]
    }
}

/// Appends a decimal number.
#[inline]
pub fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0_u8; 20];
    let count = write_number(&mut digits, number);
    out.extend_from_slice(&digits[..count]);
}

/// The head of the most frequent answer: 200 with opaque bytes.
#[inline]
pub fn write_ok_octets(
    out: &mut Vec<u8>,
    date: &HttpDate,
    content_length: usize,
    connection: Connection,
) {
    const START: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: ";
    write_ok(START, out, date, content_length, connection);
}

/// The head of the answer to most writes: 200 with JSON.
#[inline]
pub fn write_ok_json(
    out: &mut Vec<u8>,
    date: &HttpDate,
    content_length: usize,
    connection: Connection,
) {
    const START: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ";
    write_ok(START, out, date, content_length, connection);
}

/// Puts the head together from pieces whose lengths are known, but for that of the number, and
/// appends it at once. Always inlined: then the length of `start` is known.
#[inline(always)]
fn write_ok(
    start: &'static [u8],
    out: &mut Vec<u8>,
    date: &HttpDate,
    content_length: usize,
    connection: Connection,
) {
    let mut head = [0_u8; 192];
    let mut end = start.len();
    head[..end].copy_from_slice(start);
    end += write_number(&mut head[end..], content_length as u64);
    head[end..end + DATE_FIELD_BYTES].copy_from_slice(&date.0);
    end += DATE_FIELD_BYTES;
    let field = connection.field();
    if !field.is_empty() {
        head[end..end + field.len()].copy_from_slice(field);
        end += field.len();
    }
    head[end..end + 2].copy_from_slice(b"\r\n");
    out.extend_from_slice(&head[..end + 2]);
}

/// Writes a decimal number, and says how many digits it has.
#[inline]
fn write_number(out: &mut [u8], mut number: u64) -> usize {
    let count = number.checked_ilog10().map_or(1, |log| log as usize + 1);
    for digit in out[..count].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    count
}

/// Any other response head.
#[derive(Debug)]
pub struct ResponseHead<'a> {
    /// The status.
    pub status: Status,
    /// `Content-Type`, if there is a body or would be one.
    pub content_type: Option<&'a str>,
    /// `Content-Length`.
    pub content_length: u64,
    /// What it says about the connection.
    pub connection: Connection,
    /// `Date`.
    pub date: &'a HttpDate,
    /// `Allow`, for 405.
    pub allow: Option<&'a str>,
    /// Further fields. A value with control characters is left out: it could end
    /// the head.
    pub extra: &'a [(&'a str, &'a [u8])],
}

impl ResponseHead<'_> {
    /// Appends the head and the empty line behind it.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        push_number(out, u64::from(self.status.code()));
        out.push(b' ');
        out.extend_from_slice(self.status.reason().as_bytes());
        out.extend_from_slice(b"\r\n");
        if let Some(content_type) = self.content_type {
            push_field(out, "Content-Type", content_type.as_bytes());
        }
        out.extend_from_slice(b"Content-Length: ");
        push_number(out, self.content_length);
        out.extend_from_slice(b"\r\n");
        push_field(out, "Date", self.date.as_bytes());
        if let Some(allow) = self.allow {
            push_field(out, "Allow", allow.as_bytes());
        }
        for (name, value) in self.extra {
            push_field(out, name, value);
        }
        out.extend_from_slice(self.connection.field());
        out.extend_from_slice(b"\r\n");
    }
}

fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if value
        .iter()
        .any(|&byte| byte < 0x20 && byte != b'\t' || byte == 0x7f)
    {
        return;
    }
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_as_rfc_9110_writes_it() {
        assert_eq!(
            HttpDate::at(784_111_777).as_bytes(),
            b"Sun, 06 Nov 1994 08:49:37 GMT"
        );
    }

    #[test]
    fn the_frequent_answer_reads_like_any_other() {
        let date = HttpDate::at(784_111_777);
        let (mut quick, mut general) = (Vec::new(), Vec::new());
        for connection in [
            Connection::KeepAlive,
            Connection::KeepAliveStated,
            Connection::Close,
        ] {
            for content_length in [0, 9, 10, 1234, usize::MAX] {
                write_ok_octets(&mut quick, &date, content_length, connection);
                write_ok_json(&mut quick, &date, content_length, connection);
                for content_type in ["application/octet-stream", "application/json"] {
                    ResponseHead {
                        status: Status::Ok,
                        content_type: Some(content_type),
                        content_length: content_length as u64,
                        connection,
                        date: &date,
                        allow: None,
                        extra: &[],
                    }
                    .write(&mut general);
                }
            }
        }
        assert_eq!(String::from_utf8(quick), String::from_utf8(general));
    }

    #[test]
    fn numbers_are_written_whole() {
        for number in [0, 7, 10, 99, 100, u64::MAX] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    #[test]
    fn a_field_cannot_end_the_head() {
        let mut out = Vec::new();
        push_field(&mut out, "X", b"a\r\nY: b");
        assert!(out.is_empty());
    }
}
