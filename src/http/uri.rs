//! Percent-encoding (RFC 3986 section 2.1) and query strings.

use std::borrow::Cow;

/// A `%` that is not followed by two hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEscape;

/// Decodes percent escapes; `+` stays `+`. Borrows when there are none.
///
/// # Errors
///
/// [`BadEscape`] for a broken escape.
#[inline]
pub fn percent_decode(raw: &[u8]) -> Result<Cow<'_, [u8]>, BadEscape> {
    match memchr::memchr(b'%', raw) {
        None => Ok(Cow::Borrowed(raw)),
        Some(first) => decode_from(raw, first, false).map(Cow::Owned),
    }
}

fn decode_from(raw: &[u8], first: usize, plus_is_space: bool) -> Result<Vec<u8>, BadEscape> {
    let mut out = Vec::with_capacity(raw.len());
    out.extend_from_slice(&raw[..first]);
    let mut rest = &raw[first..];
    loop {
        match rest {
            [] => return Ok(out),
            [b'%', high, low, after @ ..] => {
                out.push(digit(*high)? << 4 | digit(*low)?);
                rest = after;
            }
            [b'%', ..] => return Err(BadEscape),
            [b'+', after @ ..] if plus_is_space => {
                out.push(b' ');
                rest = after;
            }
            [byte, after @ ..] => {
                out.push(*byte);
                rest = after;
            }
        }
    }
}

fn digit(byte: u8) -> Result<u8, BadEscape> {
    char::from(byte)
        .to_digit(16)
        .map(|digit| digit as u8)
        .ok_or(BadEscape)
}

/// The `name=value` pairs of a query string, decoded; `+` is a space.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    rest: &'a [u8],
}

impl<'a> Query<'a> {
    /// The pairs of what stands behind the `?`.
    pub fn new(query: &'a [u8]) -> Self {
        Self { rest: query }
    }

    /// The value of the first pair of this name; those with broken escapes are passed over.
    pub fn first(query: Option<&'a [u8]>, wanted: &[u8]) -> Option<Cow<'a, [u8]>> {
        let mut pairs = Self::new(query.unwrap_or_default()).flatten();
        let (_, value) = pairs.find(|(name, _)| name.as_ref() == wanted)?;
        Some(value)
    }
}

/// A decoded name and value.
pub type Pair<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

impl<'a> Iterator for Query<'a> {
    type Item = Result<Pair<'a>, BadEscape>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let (pair, rest) = match memchr::memchr(b'&', self.rest) {
                Some(at) => (&self.rest[..at], &self.rest[at + 1..]),
                None => (self.rest, &[][..]),
            };
            self.rest = rest;
            if !pair.is_empty() {
                let (name, value) = match memchr::memchr(b'=', pair) {
                    Some(at) => (&pair[..at], &pair[at + 1..]),
                    None => (pair, &[][..]),
                };
                let decoded = form_decode(name).and_then(|name| Ok((name, form_decode(value)?)));
                return Some(decoded);
            }
        }
        None
    }
}

fn form_decode(raw: &[u8]) -> Result<Cow<'_, [u8]>, BadEscape> {
    match memchr::memchr2(b'%', b'+', raw) {
        None => Ok(Cow::Borrowed(raw)),
        Some(first) => decode_from(raw, first, true).map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_keeps_its_plus() {
        assert_eq!(percent_decode(b"a+b%2F%ff").unwrap().as_ref(), b"a+b/\xff");
        assert!(matches!(percent_decode(b"plain"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn broken_escapes_are_refused() {
        for bad in [&b"%"[..], b"%1", b"%zz", b"a%+1", b"%1%"] {
            assert_eq!(percent_decode(bad), Err(BadEscape), "{bad:?}");
        }
    }

    #[test]
    fn a_query_is_decoded_pair_by_pair() {
        let pairs: Vec<_> = Query::new(b"q=a+b%2B&&flag&x==")
            .map(Result::unwrap)
            .collect();
        let expected: [(&[u8], &[u8]); 3] = [(b"q", b"a b+"), (b"flag", b""), (b"x", b"=")];
        for ((name, value), expected) in pairs.iter().zip(expected) {
            assert_eq!((name.as_ref(), value.as_ref()), expected);
        }
        assert_eq!(pairs.len(), 3);
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            let encoded: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
            let decoded = percent_decode(encoded.as_bytes()).unwrap();
            prop_assert_eq!(decoded.as_ref(), bytes.as_slice());
        }
    }
}
