//! Chunked bodies (RFC 9112 section 7.1), decoded as they arrive.
//!
//! Strict: a size is 1 to 16 hexadecimal digits and nothing else, lines end in CR
//! LF, extensions and trailers are bounded, checked and thrown away. A trailer must be a
//! field, and none that says where a message ends: otherwise it may be the beginning of a
//! request that somebody else has seen. Any way of cutting the input into pieces gives
//! the same result.

use super::request::RequestError;

/// The most bytes of chunk extensions in one size line.
const EXTENSION_BYTES_MAX: usize = 256;

/// The most bytes of trailer fields.
const TRAILER_BYTES_MAX: usize = 8 << 10;

/// How far a decoder got with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// Whether the body is complete.
    pub finished: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    SizeStart,
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
        bytes: usize,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Finished,
}

/// Fields that have no place behind a body (RFC 9110 section 6.5.1).
const NO_TRAILERS: [&[u8]; 3] = [b"content-length", b"transfer-encoding", b"host"];

/// Decodes one chunked body.
#[derive(Debug, Default)]
pub struct ChunkedDecoder {
    state: State,
    trailer_bytes: usize,
    /// The trailer line that is being received.
    trailer: Vec<u8>,
}

impl ChunkedDecoder {
    /// What it holds of the input.
    pub fn held(&self) -> usize {
        self.trailer.capacity()
    }

    /// Decodes what `input` holds of the body, appending to `out`.
    ///
    /// # Errors
    ///
    /// [`RequestError::Chunk`] for anything that is not a chunked body,
    /// [`RequestError::Trailer`] for a trailer that is not allowed,
    /// [`RequestError::BodyTooLarge`] before `out` would exceed `body_bytes_max`.
    pub fn decode(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        body_bytes_max: u64,
    ) -> Result<Decoded, RequestError> {
        let mut at = 0;
        while at < input.len() && !matches!(self.state, State::Finished) {
            if let State::Data { left } = self.state {
                let available = (input.len() - at) as u64;
                let taken = left.min(available) as usize;
                out.extend_from_slice(&input[at..at + taken]);
                at += taken;
                let left = left - taken as u64;
                self.state = if left == 0 {
                    State::DataCr
                } else {
                    State::Data { left }
                };
                continue;
            }
            let room = body_bytes_max.saturating_sub(out.len() as u64);
            self.state = self.after(input[at], room)?;
            at += 1;
        }
        Ok(Decoded {
            consumed: at,
            finished: matches!(self.state, State::Finished),
        })
    }

    /// The state after one byte that is not chunk data.
    fn after(&mut self, byte: u8, room: u64) -> Result<State, RequestError> {
        Ok(match (self.state, byte) {
            (State::SizeStart, _) => State::Size {
                size: hex(byte)?,
                digits: 1,
            },
            (State::Size { size, .. }, b'\r') => State::SizeLf { size },
            (State::Size { size, .. }, b';') => State::Extension { size, bytes: 0 },
            (State::Size { size, digits }, _) if digits < 16 => State::Size {
                size: size << 4 | hex(byte)?,
                digits: digits + 1,
            },
            (State::Extension { size, .. }, b'\r') => State::SizeLf { size },
            (State::Extension { size, bytes }, _)
                if bytes < EXTENSION_BYTES_MAX && is_text(byte) =>
            {
                State::Extension {
                    size,
                    bytes: bytes + 1,
                }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { size }, b'\n') if size <= room => State::Data { left: size },
            (State::SizeLf { .. }, b'\n') => return Err(RequestError::BodyTooLarge),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeStart,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::EndLf, b'\n') => State::Finished,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => {
                check_trailer(&self.trailer)?;
                self.trailer.clear();
                State::TrailerStart
            }
            (State::TrailerStart | State::Trailer, _) if is_text(byte) => {
                self.trailer_bytes += 1;
                if self.trailer_bytes > TRAILER_BYTES_MAX {
                    return Err(RequestError::HeadTooLarge);
                }
                self.trailer.push(byte);
                State::Trailer
            }
            _ => return Err(RequestError::Chunk),
        })
    }
}

fn hex(byte: u8) -> Result<u64, RequestError> {
    char::from(byte)
        .to_digit(16)
        .map(u64::from)
        .ok_or(RequestError::Chunk)
}

/// A name, a colon, anything; and none of [`NO_TRAILERS`].
fn check_trailer(line: &[u8]) -> Result<(), RequestError> {
    let colon = memchr::memchr(b':', line).ok_or(RequestError::Trailer)?;
    let name = &line[..colon];
    let forbidden = NO_TRAILERS
        .iter()
        .any(|field| name.eq_ignore_ascii_case(field));
    if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) || forbidden {
        return Err(RequestError::Trailer);
    }
    Ok(())
}

/// A byte of a field's name (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte that may stand in an extension or a trailer: no controls but tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(input: &[u8]) -> Result<(Vec<u8>, Decoded), RequestError> {
        let mut out = Vec::new();
        let decoded = ChunkedDecoder::default().decode(input, &mut out, 1000)?;
        Ok((out, decoded))
    }

    #[test]
    fn chunks_are_joined_and_what_follows_is_left() {
        let (body, decoded) =
            decode(b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET").unwrap();
        assert_eq!(body, b"abc0123456789");
        assert!(decoded.finished);
        assert_eq!(
            decoded.consumed,
            b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\n".len()
        );
    }

    #[test]
    fn sizes_and_line_ends_that_two_parsers_could_read_differently_are_refused() {
        for bad in [
            "+5\r\nhello",
            "-1\r\n",
            "0x5\r\nhello",
            " 5\r\nhello",
            "5 \r\nhello",
            "5\nhello",
            "\r\n",
            "g\r\n",
            "5_0\r\n",
            "5;ext\nhello",
            "5;\0\r\n",
            "3\r\nabcX\r\n",
            "3\r\nabc\n",
            "11111111111111111\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\n\n",
            "5\r5",
        ] {
            assert_eq!(
                decode(bad.as_bytes()).unwrap_err(),
                RequestError::Chunk,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_trailer_is_a_field_and_says_nothing_of_where_a_message_ends() {
        for bad in [
            " x: y",
            "x : y",
            ": y",
            "GET /k HTTP/1.1",
            "x",
            "Content-Length: 3",
            "TRANSFER-ENCODING: chunked",
            "Host: x",
        ] {
            let input = format!("0\r\n{bad}\r\n\r\n");
            let refused = decode(input.as_bytes()).unwrap_err();
            assert_eq!(refused, RequestError::Trailer, "{bad:?}");
            let second = format!("0\r\nA: b\r\n{bad}\r\n\r\n");
            assert!(decode(second.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(
            decode(b"0\r\nx:\r\nContent-MD5: y\r\n\r\n")
                .unwrap()
                .1
                .finished
        );
    }

    #[test]
    fn a_body_over_the_limit_is_refused_at_its_size_line() {
        assert_eq!(decode(b"3e9\r\n").unwrap_err(), RequestError::BodyTooLarge);
        assert_eq!(
            decode(b"ffffffffffffffff\r\n").unwrap_err(),
            RequestError::BodyTooLarge
        );
        assert!(decode(b"3e8\r\n").is_ok());
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let extension = format!("1;{}\r\n", "x".repeat(EXTENSION_BYTES_MAX + 1));
        assert_eq!(
            decode(extension.as_bytes()).unwrap_err(),
            RequestError::Chunk
        );
        let trailer = format!("0\r\nx: {}\r\n", "x".repeat(TRAILER_BYTES_MAX));
        assert_eq!(
            decode(trailer.as_bytes()).unwrap_err(),
            RequestError::HeadTooLarge
        );
    }

    proptest! {
        #[test]
        fn any_split_of_any_input_gives_the_same_result(
            input in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "[0-3a;\r\n]{0,40}".prop_map(String::into_bytes),
                "0\r\n([a: \r\n]{0,8}\r\n){0,3}\r\n".prop_map(String::into_bytes),
                prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..5).prop_map(encode),
            ],
            cuts in prop::collection::vec(0_usize..60, 0..6),
        ) {
            let whole = decode(&input);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
            cuts.push(input.len());
            cuts.sort_unstable();
            let (mut decoder, mut out, mut from, mut consumed) = (ChunkedDecoder::default(), Vec::new(), 0, 0);
            let mut last = Ok(Decoded { consumed: 0, finished: false });
            for cut in cuts {
                last = decoder.decode(&input[from..cut], &mut out, 1000);
                match last {
                    Ok(decoded) => consumed += decoded.consumed,
                    Err(_) => break,
                }
                from = cut;
                if last.is_ok_and(|decoded| decoded.finished) {
                    break;
                }
            }
            let pieces = last.map(|decoded| (out, Decoded { consumed, ..decoded }));
            prop_assert_eq!(pieces, whole);
        }
    }

    fn encode(chunks: Vec<Vec<u8>>) -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            out.extend_from_slice(&chunk);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n\r\n");
        out
    }
}
