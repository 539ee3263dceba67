//! Chunked bodies.
//!
//! * Any way of cutting the input gives the same result.
//! * What is decoded stays within the limit, and what follows the body is left alone.
//! * A second, slow reader of the grammar finds the same body and the same end.
//! * Written anew, the body is decoded to the same bytes.

use hypercache::http::{ChunkedDecoder, RequestError};

use super::cuts::Cuts;

const BODY_BYTES_MAX: u64 = 1000;

/// The body, how much of the input it took, and whether it is whole.
type Outcome = Result<(Vec<u8>, usize, bool), RequestError>;

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let whole = decode(bytes, std::iter::repeat(usize::MAX));
    assert_eq!(decode(bytes, std::iter::repeat(1)), whole);
    for salt in 0..2 {
        assert_eq!(decode(bytes, Cuts::of(bytes, salt, 20)), whole);
    }
    let read = read_slowly(bytes);
    let Ok((body, consumed, finished)) = whole else {
        assert_eq!(read, None, "refused, but it is a body");
        return;
    };
    assert!(body.len() as u64 <= BODY_BYTES_MAX && consumed <= bytes.len());
    if !finished {
        assert_eq!(read, None, "incomplete, but it is a body");
        assert_eq!(consumed, bytes.len());
        return;
    }
    assert_eq!(read, Some((body.clone(), consumed)));
    let mut anew = Vec::new();
    for chunk in body.chunks(7) {
        anew.extend_from_slice(format!("{:X};a=b\r\n", chunk.len()).as_bytes());
        anew.extend_from_slice(chunk);
        anew.extend_from_slice(b"\r\n");
    }
    anew.extend_from_slice(b"0\r\nA: b\r\n\r\n");
    let len = anew.len();
    anew.extend_from_slice(b"GET / HTTP/1.1");
    let again = decode(&anew, std::iter::repeat(usize::MAX));
    assert_eq!(again, Ok((body, len, true)));
}

fn decode(bytes: &[u8], pieces: impl Iterator<Item = usize>) -> Outcome {
    let (mut decoder, mut body) = (ChunkedDecoder::default(), Vec::new());
    let mut consumed = 0;
    for piece in pieces {
        let end = consumed + piece.min(bytes.len() - consumed);
        let decoded = decoder.decode(&bytes[consumed..end], &mut body, BODY_BYTES_MAX)?;
        consumed += decoded.consumed;
        if decoded.finished || consumed == bytes.len() {
            return Ok((body, consumed, decoded.finished));
        }
        assert_eq!(consumed, end, "nothing is left over before the end");
    }
    unreachable!("pieces never end")
}

/// RFC 9112 section 7.1, line by line, with this parser's bounds.
fn read_slowly(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut rest) = (Vec::new(), bytes);
    loop {
        let line = take_line(&mut rest)?;
        let digits = line
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let (digits, extension) = line.split_at(digits);
        if !(1..=16).contains(&digits.len()) || extension.len() > 257 {
            return None;
        }
        if !matches!(extension, [] | [b';', ..]) || !extension.iter().all(is_text) {
            return None;
        }
        let size = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        if size > BODY_BYTES_MAX - body.len() as u64 {
            return None;
        }
        let (data, after) = rest.split_at_checked(size as usize)?;
        body.extend_from_slice(data);
        rest = after.strip_prefix(b"\r\n")?;
    }
    let mut trailer_bytes = 0;
    loop {
        let line = take_line(&mut rest)?;
        if line.is_empty() {
            return Some((body, bytes.len() - rest.len()));
        }
        trailer_bytes += line.len();
        let colon = line.iter().position(|&byte| byte == b':')?;
        let name = std::str::from_utf8(&line[..colon]).ok()?.to_lowercase();
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let framing = ["content-length", "transfer-encoding", "host"];
        let good = !name.is_empty() && name.chars().all(token) && line.iter().all(is_text);
        if !good || framing.contains(&name.as_str()) || trailer_bytes > 8 << 10 {
            return None;
        }
    }
}

/// A line that ends in CR LF, and has neither in it.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|&byte| byte == b'\n')?;
    let line = rest[..end].strip_suffix(b"\r")?;
    *rest = &rest[end + 1..];
    (!line.contains(&b'\r')).then_some(line)
}

fn is_text(byte: &u8) -> bool {
    *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f)
}
