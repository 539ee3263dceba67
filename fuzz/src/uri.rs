//! Percent escapes, queries, paths and the queries of listings.
//!
//! * Decoding agrees with a slow second reader, never grows, borrows what needs no
//!   decoding, and is undone by encoding.
//! * A query falls into the same pairs for both.
//! * A route's key is a part of the path; a decoded key has a length that is allowed.
//! * A listing that was planned cuts any page without overflow.

use std::borrow::Cow;

use hypercache::api::router::{Route, route};
use hypercache::api::{browse, key};
use hypercache::http::{Connection, Method, Query, percent_decode};
use hypercache::store::KEY_BYTES_MAX;

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let decoded = percent_decode(bytes).ok();
    assert_eq!(decoded.as_deref(), decode_slowly(bytes, false).as_deref());
    if let Some(decoded) = &decoded {
        assert!(decoded.len() <= bytes.len());
        let plain = !bytes.contains(&b'%');
        assert_eq!(plain, matches!(decoded, Cow::Borrowed(_)));
        let encoded: String = decoded.iter().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(percent_decode(encoded.as_bytes()).as_ref(), Ok(decoded));
    }
    pairs(bytes);
    paths(bytes);
    let _ = browse::plan(Some(bytes), Connection::Close).map(|request| request.query());
}

fn pairs(bytes: &[u8]) {
    let read: Vec<_> = Query::new(bytes)
        .map(|pair| {
            pair.ok()
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
        })
        .collect();
    let expected: Vec<_> = bytes
        .split(|&byte| byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let at = pair.iter().position(|&byte| byte == b'=');
            let (name, value) = pair.split_at(at.unwrap_or(pair.len()));
            let value = value.strip_prefix(b"=").unwrap_or(value);
            Some((decode_slowly(name, true)?, decode_slowly(value, true)?))
        })
        .collect();
    assert_eq!(read, expected);
}

fn paths(bytes: &[u8]) {
    for method in [
        Method::Get,
        Method::Head,
        Method::Put,
        Method::Post,
        Method::Delete,
        Method::Options,
        Method::Other,
    ] {
        match route(method, bytes) {
            Route::Found { raw_key, .. } => {
                assert!(bytes.ends_with(raw_key) && !raw_key.contains(&b'/'));
                if let Ok(key) = key::decode(raw_key) {
                    assert!((1..=KEY_BYTES_MAX).contains(&key.len()));
                }
            }
            Route::WrongMethod { path } => assert!(path.starts_with('/')),
            Route::Unknown => {}
        }
    }
}

fn decode_slowly(bytes: &[u8], plus_is_space: bool) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let digits = bytes.get(at + 1..at + 3)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                let text = std::str::from_utf8(digits).ok()?;
                out.push(u8::from_str_radix(text, 16).ok()?);
                at += 2;
            }
            b'+' if plus_is_space => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    Some(out)
}
