//! One key: GET, HEAD, PUT, DELETE on `/v1/cache/{key}`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::owners::{OwnerIds, origin_name};
use super::turn::Subject;
use super::{Answers, Api, ApiError, Moment, Turn, Writer, key_text};
use crate::clock::UnixMs;
use crate::cluster::{Consistency, Coordinator, View};
use crate::duration::GoDuration;
use crate::http::{Connection, Head, Query, Status, percent_decode, push_number};
use crate::operations::{Action, Found, Operation, Outcome};
use crate::store::{KEY_BYTES_MAX, SHARED_VALUE_BYTES, ValueIn, ValueView};
use crate::telemetry::latency::{self, Via};

/// What is asked of the key.
#[derive(Debug)]
pub enum Request<'a> {
    /// Its value.
    Get(Render),
    /// Its metadata.
    Head,
    /// To hold this value.
    Put {
        /// The value.
        value: ValueIn<'a>,
        /// When it ends.
        expires_at: Option<UnixMs>,
        /// How the answer reads.
        render: Render,
    },
    /// To hold nothing.
    Delete,
}

impl<'a> Request<'a> {
    /// Whether it changes anything.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Delete)
    }

    /// What to do, and how to tell what came of it.
    pub fn parts(self) -> (Action<'a>, Render) {
        match self {
            Self::Get(render) => (Action::Get, render),
            Self::Head => (Action::Get, Render::Head),
            Self::Put {
                value,
                expires_at,
                render,
            } => (Action::Put { value, expires_at }, render),
            Self::Delete => (Action::Delete, Render::Delete),
        }
    }
}

/// How an outcome becomes an answer.
#[derive(Clone, Copy, Debug)]
pub enum Render {
    /// The bare value.
    Octets,
    /// The value in its JSON envelope.
    Envelope,
    /// Headers only.
    Head,
    /// A PutResponse.
    Put {
        /// Length of the value that was put.
        bytes: usize,
        /// Its life in milliseconds, 0 for no end.
        ttl_ms: u64,
    },
    /// A DeleteResponse.
    Delete,
}

/// Decodes the key of a path.
///
/// # Errors
///
/// 400 for a broken escape and for a key of no or of more than
/// [`KEY_BYTES_MAX`] bytes.
pub fn decode(raw_key: &[u8]) -> Result<Cow<'_, [u8]>, ApiError> {
    let key = percent_decode(raw_key)
        .map_err(|_| ApiError::bad_request("the key has a malformed percent escape"))?;
    check(&key)?;
    Ok(key)
}

/// Checks a decoded key's length.
///
/// # Errors
///
/// 400 for no or for more than [`KEY_BYTES_MAX`] bytes.
pub fn check(key: &[u8]) -> Result<(), ApiError> {
    match key.len() {
        0 => Err(ApiError::bad_request("missing key")),
        1..=KEY_BYTES_MAX => Ok(()),
        length => Err(ApiError::bad_request(format!(
            "the key has {length} bytes, more than {KEY_BYTES_MAX}"
        ))),
    }
}

/// Reads what a GET wants.
#[inline]
pub fn plan_get<'a>(head: &Head<'_>) -> Result<Request<'a>, ApiError> {
    let render = match head.accept {
        Some(accept) if accepts_json(accept) => Render::Envelope,
        _ => Render::Octets,
    };
    Ok(Request::Get(render))
}

/// Whether an `Accept` header names `application/json` without refusing it.
fn accepts_json(accept: &[u8]) -> bool {
    accept.split(|&byte| byte == b',').any(|range| {
        let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let names_json = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(b"application/json"));
        names_json && !parts.any(|part| matches!(part, b"q=0" | b"q=0.0" | b"q=0.00" | b"q=0.000"))
    })
}

/// Reads what a PUT wants.
///
/// # Errors
///
/// 400 for a malformed or negative `ttl`.
pub fn plan_put<'a>(head: &Head<'_>, body: &'a [u8], now: UnixMs) -> Result<Request<'a>, ApiError> {
    let ttl_ms = match head.query {
        None => 0,
        Some(query) => ttl_ms(query)?,
    };
    Ok(Request::Put {
        value: value_in(body),
        expires_at: expiry(ttl_ms, now),
        render: Render::Put {
            bytes: body.len(),
            ttl_ms,
        },
    })
}

/// A value on its way in: the large ones move into the block the store will keep.
pub fn value_in(body: &[u8]) -> ValueIn<'_> {
    if body.len() >= SHARED_VALUE_BYTES {
        ValueIn::Shared(Arc::from(body))
    } else {
        ValueIn::Bytes(body)
    }
}

/// When a value put now with this life ends; `None` for 0.
pub fn expiry(ttl_ms: u64, now: UnixMs) -> Option<UnixMs> {
    (ttl_ms > 0).then(|| UnixMs(now.0.saturating_add(ttl_ms)))
}

/// The `ttl` parameter in milliseconds, rounded up; 0 when absent or zero.
fn ttl_ms(query: &[u8]) -> Result<u64, ApiError> {
    for pair in Query::new(query) {
        let (name, value) =
            pair.map_err(|_| ApiError::bad_request("the query has a malformed percent escape"))?;
        if name.as_ref() != b"ttl" {
            continue;
        }
        let refuse = || {
            let value = key_text(&value);
            ApiError::bad_request(format!(
                "ttl {value:?} is not a duration such as 300ms, 90s or 1h30m, zero or more"
            ))
        };
        if value.is_empty() {
            return Ok(0);
        }
        let text = std::str::from_utf8(&value).map_err(|_| refuse())?;
        let ttl = GoDuration::parse(text).map_err(|_| refuse())?;
        let nanos = u64::try_from(ttl.as_nanos()).map_err(|_| refuse())?;
        return Ok(nanos.div_ceil(1_000_000));
    }
    Ok(0)
}

/// Carries an operation out if this core can do so alone, or leaves it to the key's
/// own core and to other nodes.
#[inline]
pub fn serve(
    api: &Api,
    operation: Operation<'_>,
    render: Render,
    cluster: &mut Coordinator,
    turn: &mut Turn,
    connection: Connection,
    moment: Moment<'_>,
) {
    let partition = operation.hash.partition();
    turn.keyed += 1;
    turn.subject = (turn.keyed == 1).then_some(Subject {
        partition,
        key_bytes: operation.key.len() as u16,
    });
    let owner = partition.core(api.cores);
    let Operation {
        hash,
        key,
        consistency,
        ..
    } = operation;
    let is_own = owner == api.core;
    let reads = matches!(operation.action, Action::Get);
    let outcome = match (is_own, reads) {
        (true, true) => cluster.get_here(hash, key, consistency, moment.now),
        (true, false) => cluster.write_here(&operation, moment.now),
        // A copy would overtake a write of this connection that still waits. And where its owner
        // is asked anyway, one more read there costs less than a copy that is in no near cache.
        (false, true) if !turn.exchange.has_writes() && !turn.exchange.asks(owner) => {
            cluster.get_copy(hash, key, consistency, moment.now)
        }
        (false, _) => None,
    };
    if let Some(outcome) = outcome {
        if let Some(recording) = &mut turn.recording {
            recording.note(key, render, &outcome);
        }
        let mut writer = Writer {
            answers: &mut turn.answers,
            facts: &api.facts,
            view: moment.view,
            date: moment.date,
            connection,
            head_only: matches!(render, Render::Head),
        };
        render.answer(&mut writer, key, outcome, moment.now);
        turn.tally.count(render.operation(), Via::Local);
        return;
    }
    let may_copy = consistency == Consistency::One || moment.view.solo();
    let wants_copy = reads && !is_own && may_copy && cluster.wants_copy(hash);
    let ticket = turn.exchange.add(owner, operation);
    if wants_copy {
        turn.exchange.want_copy(ticket);
    }
    turn.leave_gap(ticket, render, connection);
}

impl Render {
    /// What was asked for.
    #[inline]
    pub fn operation(self) -> latency::Operation {
        match self {
            Self::Octets | Self::Envelope | Self::Head => latency::Operation::Get,
            Self::Put { .. } => latency::Operation::Put,
            Self::Delete => latency::Operation::Delete,
        }
    }

    /// Writes the answer.
    #[inline]
    pub fn answer(
        self,
        writer: &mut Writer<'_>,
        key: &[u8],
        outcome: Outcome<ValueView<'_>>,
        now: UnixMs,
    ) {
        match (self, outcome) {
            (Self::Octets, Outcome::Found(found)) => match found.value {
                ValueView::Bytes(bytes) if !writer.answers.has_room_for(bytes.len()) => {
                    writer.crowded();
                }
                value => writer.octets(value),
            },
            (_, Outcome::Missing) => writer.error(&ApiError::not_found("key not found")),
            (Self::Envelope, Outcome::Found(found))
                if !has_room_for_envelope(writer.answers, found.value) =>
            {
                writer.crowded();
            }
            (Self::Envelope, Outcome::Found(found)) => {
                let envelope = ItemEnvelope::of(key, &found, writer, now);
                writer.json(Status::Ok, &envelope);
            }
            (_, Outcome::Found(found)) => metadata(writer, key, &found, now),
            (render, Outcome::Stored(_)) => {
                let (bytes, ttl_ms) = match render {
                    Self::Put { bytes, ttl_ms } => (bytes, ttl_ms),
                    _ => (0, 0),
                };
                writer.written(key, |body| {
                    body.extend_from_slice(b",\"stored\":true,");
                    if ttl_ms > 0 {
                        body.extend_from_slice(b"\"ttl_ms\":");
                        push_number(body, ttl_ms);
                        body.push(b',');
                    }
                    body.extend_from_slice(b"\"bytes\":");
                    push_number(body, bytes as u64);
                });
            }
            (_, Outcome::Deleted(_)) => {
                writer.written(key, |body| body.extend_from_slice(b",\"deleted\":true"));
            }
            (_, Outcome::TooLarge(too_large)) => {
                writer.error(&ApiError::too_large(too_large.to_string()));
            }
            (_, Outcome::Overflow) => {
                // Pipelined reads of many values at once: the client may ask again.
                writer.error(&ApiError::unavailable(
                    "too many bytes in one pipelined batch",
                ));
            }
            (render, Outcome::Unreached { reached, needed }) => {
                let writes = matches!(render, Self::Put { .. } | Self::Delete);
                writer.error(&ApiError::unreached(writes, reached, needed));
            }
            (_, Outcome::Crowded) => writer.crowded(),
            (_, Outcome::Joining) => writer.error(&ApiError::joining()),
        }
    }
}

/// A small envelope goes wherever its value would; a large one takes three times its
/// value while it is written, because it is base64, and once more put behind its head.
fn has_room_for_envelope(answers: &Answers, value: ValueView<'_>) -> bool {
    let bytes = value.bytes().len();
    let factor = if bytes < SHARED_VALUE_BYTES { 1 } else { 3 };
    answers.has_room_for(factor * bytes)
}

/// The answer to HEAD: everything about the item but its bytes.
fn metadata(writer: &mut Writer<'_>, key: &[u8], found: &Found<ValueView<'_>>, now: UnixMs) {
    let facts = writer.facts;
    let view = writer.view;
    let version = found.version.get().to_string();
    let last_updated = Rfc3339(found.version.stamped_at()).to_string();
    let owners: Vec<&str> = OwnerIds::of(view, key).iter().collect();
    let owners = owners.join(",");
    let origin = origin_name(view, found.origin);
    let mut extra: Vec<(&str, &[u8])> = vec![
        ("X-Cache-Version", version.as_bytes()),
        ("X-Cache-Origin", origin.as_bytes()),
        ("X-Cache-Last-Updated", last_updated.as_bytes()),
        ("X-Cache-Owners", owners.as_bytes()),
        ("X-Cache-Node", facts.node_id.as_bytes()),
    ];
    let expiry = found.expires_at.map(|at| {
        (
            at.0.saturating_sub(now.0).to_string(),
            Rfc3339(at).to_string(),
        )
    });
    if let Some((ttl_ms, expires_at)) = &expiry {
        extra.push(("X-Cache-Ttl-Ms", ttl_ms.as_bytes()));
        extra.push(("X-Cache-Expires-At", expires_at.as_bytes()));
    }
    let length = found.value.bytes().len() as u64;
    writer.head(
        Status::Ok,
        Some("application/octet-stream"),
        length,
        None,
        &extra,
    );
}

#[derive(Serialize)]
struct ItemEnvelope<'a> {
    key: Cow<'a, str>,
    value: Base64Text<'a>,
    value_encoding: &'static str,
    #[serde(flatten)]
    item: ItemFields<'a>,
    node: &'a str,
    owners: OwnerIds<'a>,
}

impl<'a> ItemEnvelope<'a> {
    fn of(key: &'a [u8], found: &Found<ValueView<'a>>, writer: &Writer<'a>, now: UnixMs) -> Self {
        Self {
            key: key_text(key),
            value: Base64Text(found.value.bytes()),
            value_encoding: "base64",
            item: ItemFields::of(found, writer.view, now),
            node: &writer.facts.node_id,
            owners: OwnerIds::of(writer.view, key),
        }
    }
}

/// What an envelope and a batch result say about an item besides its value.
#[derive(Debug, Serialize)]
pub struct ItemFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Rfc3339>,
    version: u64,
    origin: Cow<'a, str>,
    last_updated: Rfc3339,
}

impl<'a> ItemFields<'a> {
    /// The fields of an item that was read at `now`.
    pub fn of<V>(found: &Found<V>, view: &'a View, now: UnixMs) -> Self {
        Self {
            ttl_ms: found.expires_at.map(|at| at.0.saturating_sub(now.0)),
            expires_at: found.expires_at.map(Rfc3339),
            version: found.version.get(),
            origin: origin_name(view, found.origin),
            last_updated: Rfc3339(found.version.stamped_at()),
        }
    }
}

/// Bytes as base64 text, encoded while they are written.
#[derive(Clone, Copy, Debug)]
pub struct Base64Text<'a>(pub &'a [u8]);

impl Serialize for Base64Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

/// A point in time as RFC 3339 in UTC with milliseconds; times beyond the
/// calendar are written as its last second.
#[derive(Clone, Copy, Debug)]
pub struct Rfc3339(pub UnixMs);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i64::try_from(self.0.0).unwrap_or(i64::MAX);
        let at = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX);
        write!(f, "{at:.3}")
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_chosen_only_when_it_is_named() {
        assert!(accepts_json(b"application/json"));
        assert!(accepts_json(b"text/html, Application/JSON;q=0.9"));
        assert!(!accepts_json(b"*/*"));
        assert!(!accepts_json(b"application/json;q=0"));
        assert!(!accepts_json(b"application/jsonp"));
    }

    #[test]
    fn a_ttl_is_rounded_up_to_whole_milliseconds() {
        assert_eq!(ttl_ms(b"ttl=1h30m").unwrap(), 5_400_000);
        assert_eq!(ttl_ms(b"ttl=1ns").unwrap(), 1);
        assert_eq!(ttl_ms(b"x=1&ttl=0").unwrap(), 0);
        assert_eq!(ttl_ms(b"").unwrap(), 0);
    }

    #[test]
    fn a_ttl_that_is_refused_is_named() {
        for bad in ["-1s", "soon", "10"] {
            let error = ttl_ms(format!("ttl={bad}").as_bytes()).unwrap_err();
            assert!(error.message.contains(bad), "{error:?}");
        }
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(
            Rfc3339(UnixMs(1_800_000_000_120)).to_string(),
            "2027-01-15T08:00:00.120Z"
        );
        assert!(
            Rfc3339(UnixMs(u64::MAX))
                .to_string()
                .starts_with("9999-12-3")
        );
    }
}
