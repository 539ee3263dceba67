//! What another node answers to a request, as far as its head says: pure.
//!
//! Only whole answers of status 200 with one plain length count. A peer may be of another
//! release, but never needs another framing than that, so anything that leaves open where
//! an answer ends is refused, and its connection closed by the caller.

use std::io;

/// The largest answer.
pub const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The most fields an answer has.
const FIELDS_MAX: usize = 32;

/// The head of an answer with status 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// Bytes up to the body.
    pub len: usize,
    /// Bytes of the body, at most [`ANSWER_BYTES_MAX`].
    pub body_len: usize,
    /// Whether the connection closes after it.
    pub closes: bool,
}

/// Reads the head at the start of `bytes`; nothing while it is incomplete.
///
/// # Errors
///
/// [`io::ErrorKind::PermissionDenied`] for status 401, [`io::ErrorKind::InvalidData`] for
/// anything else that is no answer of status 200 with a length.
pub fn parse_head(bytes: &[u8]) -> io::Result<Option<AnswerHead>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(broken("the answer is not HTTP")),
    };
    match response.code {
        Some(200) => {}
        Some(401) => return Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        _ => return Err(broken("the peer refused the request")),
    }
    let (mut body_len, mut closes) = (None, false);
    for field in response.headers {
        if field.name.eq_ignore_ascii_case("Content-Length") {
            if body_len.is_some() {
                return Err(broken("the answer has two lengths"));
            }
            body_len = Some(length(field.value)?);
        } else if field.name.eq_ignore_ascii_case("Transfer-Encoding") {
            return Err(broken("the answer is not sent by its length"));
        } else if field.name.eq_ignore_ascii_case("Connection") {
            closes |= field.value.eq_ignore_ascii_case(b"close");
        }
    }
    let body_len = body_len.ok_or_else(|| broken("the answer has no length"))?;
    Ok(Some(AnswerHead {
        len,
        body_len,
        closes,
    }))
}

fn length(value: &[u8]) -> io::Result<usize> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(broken("the answer's length is no number"));
    }
    value
        .iter()
        .try_fold(0_usize, |length, digit| {
            length
                .checked_mul(10)?
                .checked_add(usize::from(digit - b'0'))
        })
        .filter(|&length| length <= ANSWER_BYTES_MAX)
        .ok_or_else(|| broken("the answer is too long"))
}

pub(super) fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> io::Result<Option<AnswerHead>> {
        parse_head(text.as_bytes())
    }

    #[test]
    fn only_whole_answers_with_status_200_and_a_length_count() {
        assert!(parsed("HTTP/1.1 200 OK\r\nContent-Le").unwrap().is_none());
        let answer = parsed("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
        let expected = AnswerHead {
            len: 38,
            body_len: 3,
            closes: false,
        };
        assert_eq!(answer.unwrap(), Some(expected));
        let closing = parsed("HTTP/1.1 200 OK\r\nconnection: Close\r\nContent-Length: 0\r\n\r\n");
        assert!(closing.unwrap().unwrap().closes);
        for bad in [
            "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        let denied = parsed("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n").unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn an_answer_whose_end_is_open_to_doubt_is_refused() {
        for fields in [
            "Content-Length: +3\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length:\r\n",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\n",
        ] {
            assert!(
                parsed(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).is_err(),
                "{fields:?}"
            );
        }
    }
}
