//! `GET /v1/cache/keys`: which keys there are, a page at a time.
//!
//! Each core scans its own partitions in short steps ([`KeyScan`]) so that a
//! listing never holds a core up, and keeps only the smallest `max` matching
//! keys. The coordinator merges, sorts and cuts the page ([`Request::answer`]).
//! A cursor is an offset into the sorted keys of a fresh scan: keys that come and
//! go between two pages can be seen twice or not at all.

use std::borrow::Cow;
use std::collections::BinaryHeap;
use std::sync::Arc;

use serde::Serialize;

use super::glob::KeyFilter;
use super::{ApiError, Writer, key_text};
use crate::clock::UnixMs;
use crate::hash::{CoreCount, CoreId, PARTITION_COUNT, PartitionId};
use crate::http::{Connection, Query, Status};
use crate::store::Shard;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 500;
const MATCHES_DEFAULT: usize = 10_000;
const MATCHES_MAX: usize = 50_000;

/// How many bytes of keys, with what each takes beside them, one scan keeps at most: a
/// listing of longer keys is cut there and says so.
pub const SCAN_BYTES_MAX: usize = 16 << 20;

/// What a key takes in a scan beside its bytes.
const KEY_OVERHEAD: usize = 32;

/// What a key of usual length takes in a scan.
const KEY_BYTES_GUESS: usize = 128;

/// How many items one step of a scan looks at, give or take a partition.
const ITEMS_PER_STEP: usize = 2048;

/// A listing that was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    filter: Arc<KeyFilter>,
    /// The filter as it was given, for other nodes.
    pattern: Arc<[u8]>,
    cursor: usize,
    limit: usize,
    matches_max: usize,
    /// What the answer says about the connection.
    pub connection: Connection,
}

/// Reads the query.
///
/// # Errors
///
/// 400 for a malformed pattern and for numbers that are none or not positive.
pub fn plan(query: Option<&[u8]>, connection: Connection) -> Result<Request, ApiError> {
    let mut request = Request {
        filter: Arc::new(KeyFilter::parse(b"").map_err(|_| bad_pattern(b""))?),
        pattern: Arc::from(&b""[..]),
        cursor: 0,
        limit: LIMIT_DEFAULT,
        matches_max: MATCHES_DEFAULT,
        connection,
    };
    for pair in Query::new(query.unwrap_or_default()) {
        let (name, value) =
            pair.map_err(|_| ApiError::bad_request("the query has a malformed percent escape"))?;
        match name.as_ref() {
            b"q" => {
                let filter = KeyFilter::parse(&value).map_err(|_| bad_pattern(&value))?;
                request.filter = Arc::new(filter);
                request.pattern = Arc::from(&*value);
            }
            b"cursor" => request.cursor = number("cursor", &value, 0)?,
            b"limit" => request.limit = number("limit", &value, 1)?.min(LIMIT_MAX),
            b"max" => request.matches_max = number("max", &value, 1)?.min(MATCHES_MAX),
            _ => {}
        }
    }
    Ok(request)
}

fn number(name: &str, value: &[u8], least: usize) -> Result<usize, ApiError> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let refuse = || {
        let value = key_text(value);
        ApiError::bad_request(format!(
            "{name} {value:?} is not a whole number of at least {least}"
        ))
    };
    if !digits {
        return Err(refuse());
    }
    // Digits that overflow mean "as many as there can be".
    let parsed = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok());
    let parsed: usize = parsed.unwrap_or(usize::MAX);
    if parsed < least {
        Err(refuse())
    } else {
        Ok(parsed)
    }
}

fn bad_pattern(pattern: &[u8]) -> ApiError {
    ApiError::bad_request(format!("q {:?} is not a valid pattern", key_text(pattern)))
}

/// One core's part of a listing, carried out in steps.
#[derive(Debug)]
pub struct KeyScan {
    filter: Arc<KeyFilter>,
    matches_max: usize,
    next_partition: usize,
    /// The smallest matching keys, largest on top.
    found: BinaryHeap<Box<[u8]>>,
    found_bytes: usize,
    /// Whether matching keys were left out.
    truncated: bool,
}

impl KeyScan {
    /// Looks at some more partitions of `core`; true when there are more.
    pub fn step(&mut self, shard: &Shard, core: CoreId, cores: CoreCount, now: UnixMs) -> bool {
        let mut looked_at = 0;
        while looked_at < ITEMS_PER_STEP && self.next_partition < PARTITION_COUNT {
            let Some(partition) = PartitionId::new(self.next_partition) else {
                break;
            };
            self.next_partition += 1;
            if partition.core(cores) == core {
                looked_at += 1;
                shard.scan(partition, now, |item| {
                    looked_at += 1;
                    if self.filter.matches(item.key) {
                        self.keep(item.key);
                    }
                });
            }
        }
        self.next_partition < PARTITION_COUNT
    }

    fn keep(&mut self, key: &[u8]) {
        let is_full = self.found.len() >= self.matches_max || self.found_bytes >= SCAN_BYTES_MAX;
        if is_full {
            self.truncated = true;
            if self.found.peek().is_some_and(|largest| *key >= **largest) {
                return;
            }
        }
        self.found_bytes += key.len() + KEY_OVERHEAD;
        self.found.push(Box::from(key));
        while self.found.len() > self.matches_max || self.found_bytes > SCAN_BYTES_MAX {
            self.truncated = true;
            let Some(largest) = self.found.pop() else {
                break;
            };
            self.found_bytes -= largest.len() + KEY_OVERHEAD;
        }
    }
}

#[derive(Serialize)]
struct ListKeysResponse<'a> {
    keys: Vec<Cow<'a, str>>,
    next_cursor: String,
    total_matched: usize,
    truncated: bool,
    node: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    partial_nodes: Vec<String>,
}

impl Request {
    /// How much carrying it out takes, in each core and node that is asked.
    pub fn weight(&self) -> usize {
        (self.matches_max * KEY_BYTES_GUESS).min(SCAN_BYTES_MAX)
    }

    /// The scan each core is to carry out.
    pub fn scan(&self) -> KeyScan {
        KeyScan {
            filter: Arc::clone(&self.filter),
            matches_max: self.matches_max,
            next_partition: 0,
            found: BinaryHeap::new(),
            found_bytes: 0,
            truncated: false,
        }
    }

    /// The query by which another node is asked for the same keys.
    pub fn query(&self) -> String {
        let pattern: String = self
            .pattern
            .iter()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        format!("q={pattern}&max={}", self.matches_max)
    }

    /// What another node has found.
    pub fn found_elsewhere(&self, keys: Vec<Box<[u8]>>, truncated: bool) -> KeyScan {
        KeyScan {
            found: keys.into(),
            truncated,
            ..self.scan()
        }
    }

    /// Merges finished scans: the smallest keys, in order, and whether some were left out.
    pub fn merge(&self, scans: Vec<KeyScan>) -> (Vec<Box<[u8]>>, bool) {
        let mut truncated = scans.iter().any(|scan| scan.truncated);
        let mut keys: Vec<Box<[u8]>> = scans.into_iter().flat_map(|scan| scan.found).collect();
        keys.sort_unstable();
        keys.dedup();
        truncated |= keys.len() > self.matches_max;
        keys.truncate(self.matches_max);
        (keys, truncated)
    }

    /// Merges the finished scans of all cores and nodes and writes the page; `silent`
    /// names the nodes that did not answer.
    pub fn answer(&self, scans: Vec<KeyScan>, mut silent: Vec<String>, writer: &mut Writer<'_>) {
        let (keys, truncated) = self.merge(scans);
        silent.sort_unstable();
        let start = self.cursor.min(keys.len());
        let end = start.saturating_add(self.limit).min(keys.len());
        let next_cursor = if end < keys.len() {
            end.to_string()
        } else {
            String::new()
        };
        let body = ListKeysResponse {
            keys: keys[start..end].iter().map(|key| key_text(key)).collect(),
            next_cursor,
            total_matched: keys.len(),
            truncated,
            node: &writer.facts.node_id,
            partial_nodes: silent,
        };
        writer.json(Status::Ok, &body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(query: &str) -> Result<Request, ApiError> {
        plan(Some(query.as_bytes()), Connection::KeepAlive)
    }

    #[test]
    fn limits_are_clamped_and_have_defaults() {
        let defaults = request("").unwrap();
        assert_eq!(
            (defaults.limit, defaults.matches_max, defaults.cursor),
            (100, 10_000, 0)
        );
        let clamped = request("limit=501&max=99999999999999999999999&cursor=7").unwrap();
        assert_eq!(
            (clamped.limit, clamped.matches_max, clamped.cursor),
            (500, 50_000, 7)
        );
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        for query in [
            "limit=0",
            "limit=-1",
            "limit=x",
            "max=0",
            "max=",
            "cursor=-1",
            "cursor=1.0",
        ] {
            assert!(request(query).is_err(), "{query}");
        }
    }

    #[test]
    fn a_scan_of_long_keys_stays_within_its_bytes_and_says_that_it_left_some_out() {
        let mut scan = request("max=50000").unwrap().scan();
        for number in 0..20_000_u32 {
            let mut key = vec![b'k'; 1000];
            key.extend(number.to_be_bytes());
            scan.keep(&key);
        }
        let bytes: usize = scan.found.iter().map(|key| key.len() + KEY_OVERHEAD).sum();
        assert_eq!(bytes, scan.found_bytes);
        assert!(bytes <= SCAN_BYTES_MAX && bytes > SCAN_BYTES_MAX / 2);
        assert!(scan.truncated);
        let kept = scan.found.len();
        let largest = scan.found.into_iter().max().unwrap();
        assert_eq!(
            largest[1000..],
            (kept as u32 - 1).to_be_bytes(),
            "the smallest"
        );
    }

    #[test]
    fn a_scan_keeps_the_smallest_keys() {
        let mut scan = request("max=2").unwrap().scan();
        for key in [b"c", b"a", b"d", b"b"] {
            scan.keep(key);
        }
        assert!(scan.truncated);
        let mut kept: Vec<_> = scan.found.into_vec();
        kept.sort();
        assert_eq!(
            kept,
            [Box::from(b"a".as_slice()), Box::from(b"b".as_slice())]
        );
    }
}
