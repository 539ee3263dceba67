//! Many keys in one request: `/v1/cache/batch/{get,put,delete}`.
//!
//! Results stand in input order, one per input, and a bad item never fails its
//! neighbours: it gets its own error and no operation. Sizes are bounded: at most
//! [`NodeFacts::batch_items_max`](super::NodeFacts::batch_items_max) items, and an
//! answer over [`RESPONSE_BYTES_MAX`] is refused with 413 rather than built.
//!
//! Bodies are parsed by simd-json into borrowed text. It builds its tape without
//! recursion but skips unknown members recursively, so the nesting is bounded
//! before it sees the body.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::key::{Base64Text, ItemFields, check, expiry, value_in};
use super::owners::OwnerIds;
use super::{Api, ApiError, Job, Writer, key_text, to_json};
use crate::clock::UnixMs;
use crate::cluster::Consistency;
use crate::hash::KeyHash;
use crate::http::{Connection, Status};
use crate::operations::{Action, Exchange, Operation, Outcome, Ticket};
use crate::telemetry::latency;

/// How large the JSON answer to one batch may grow.
pub const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// How many bytes of values one batch may have copied between cores and nodes: as base64
/// they are the whole answer.
pub const COPIES_BYTES_MAX: usize = RESPONSE_BYTES_MAX / 4 * 3;

/// What an item of a batch takes beside its text, while it is on its way.
const ITEM_BYTES: usize = 256;

/// The least text of an item: `"",`.
const ITEM_TEXT_MIN: usize = 3;

/// How deeply arrays and objects may nest in a batch body.
const NESTING_MAX: usize = 32;

/// Which of the three batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read keys.
    Get,
    /// Write items.
    Put,
    /// Delete keys.
    Delete,
}

impl Kind {
    /// As durations are recorded.
    pub fn operation(self) -> latency::Operation {
        match self {
            Self::Get => latency::Operation::BatchGet,
            Self::Put => latency::Operation::BatchPut,
            Self::Delete => latency::Operation::BatchDelete,
        }
    }
}

/// A batch that was received and not yet read.
#[derive(Debug)]
pub struct Request {
    /// Which of the three.
    pub kind: Kind,
    body: Vec<u8>,
    consistency: Consistency,
    /// What the answer says about the connection.
    pub connection: Connection,
}

/// One item of the batch on its way: what stands in the answer besides the outcome.
#[derive(Debug)]
pub struct Entry {
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    /// Its outcome will be in the exchange.
    Asked { ticket: Ticket, bytes: usize },
    /// It was refused without asking.
    Refused { key: String, error: ApiError },
}

/// Takes the body for later.
pub fn plan(
    kind: Kind,
    body: Cow<'_, [u8]>,
    consistency: Consistency,
    connection: Connection,
) -> Job {
    Job::Batch(Request {
        kind,
        body: body.into_owned(),
        consistency,
        connection,
    })
}

#[derive(Deserialize)]
struct KeysBody<'a> {
    #[serde(borrow)]
    keys: Vec<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct ItemsBody<'a> {
    #[serde(borrow)]
    items: Vec<Object<PutItem<'a>>>,
}

#[derive(Deserialize)]
struct PutItem<'a> {
    #[serde(borrow, default)]
    key: Cow<'a, str>,
    #[serde(borrow, default)]
    value: Cow<'a, str>,
    #[serde(borrow, default)]
    value_encoding: Option<Cow<'a, str>>,
    #[serde(default)]
    ttl_ms: Option<Whole>,
}

/// What is read from an object only: a derived reader takes an array of the members'
/// values as well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members)).map(Object)
    }
}

/// A whole number, however it is written: JSON has one kind of number, and 60000.0 and
/// 6e4 are what some clients make of 60000.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Whole(i64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WholeVisitor)
    }
}

struct WholeVisitor;

impl Visitor<'_> for WholeVisitor {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number of 64 bits")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whole, E> {
        Ok(Whole(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole, E> {
        let unsigned = de::Unexpected::Unsigned(number);
        let signed = i64::try_from(number).map_err(|_| E::invalid_value(unsigned, &self))?;
        Ok(Whole(signed))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Whole, E> {
        // 2^63, which floats can tell from what is within, but not from what is just beyond.
        let fits = number.abs() < 9_223_372_036_854_775_808.0;
        if fits && number.fract() == 0.0 {
            Ok(Whole(number as i64))
        } else {
            Err(E::invalid_value(de::Unexpected::Float(number), &self))
        }
    }
}

impl Request {
    /// How much carrying it out takes: the body, what other cores are handed of it, and
    /// the items.
    pub fn weight(&self, items_max: usize) -> usize {
        let items = items_max.min(self.body.len() / ITEM_TEXT_MIN);
        2 * self.body.len() + items * ITEM_BYTES
    }

    /// Reads the body and adds one operation per good item to `exchange`.
    ///
    /// # Errors
    ///
    /// 400 when the body is not of the expected form, 413 when it names more
    /// items than one batch may; nothing was added then.
    pub fn ask(
        &mut self,
        api: &Api,
        exchange: &mut Exchange,
        now: UnixMs,
    ) -> Result<Vec<Entry>, ApiError> {
        if nesting(&self.body) > NESTING_MAX {
            return Err(ApiError::bad_request(format!(
                "the body nests more than {NESTING_MAX} levels deep"
            )));
        }
        exchange.limit_copies(COPIES_BYTES_MAX);
        let items_max = api.facts.batch_items_max;
        let consistency = self.consistency;
        let mut asking = Asking {
            api,
            exchange,
            consistency,
        };
        match self.kind {
            Kind::Get | Kind::Delete => {
                let action = || {
                    if self.kind == Kind::Get {
                        Action::Get
                    } else {
                        Action::Delete
                    }
                };
                let Object(body) =
                    simd_json::serde::from_slice::<Object<KeysBody<'_>>>(&mut self.body)
                        .map_err(|error| malformed("{\"keys\":[…]}", &error))?;
                bound(body.keys.len(), items_max)?;
                let ask = |key: &Cow<'_, str>| asking.one(key, 0, Ok(action()));
                Ok(body.keys.iter().map(ask).collect())
            }
            Kind::Put => {
                let Object(body) = simd_json::serde::from_slice::<Object<ItemsBody<'_>>>(
                    &mut self.body,
                )
                .map_err(|error| malformed("{\"items\":[{\"key\",\"value\",…}]}", &error))?;
                bound(body.items.len(), items_max)?;
                Ok(body
                    .items
                    .iter()
                    .map(|Object(item)| asking.put(item, now))
                    .collect())
            }
        }
    }

    /// Writes the answer; every batch of `exchange` must be home.
    pub fn answer(
        &self,
        entries: &[Entry],
        exchange: &Exchange,
        writer: &mut Writer<'_>,
        now: UnixMs,
    ) {
        let mut body = Vec::with_capacity(64 + entries.len() * 64);
        match self.results(entries, exchange, writer, now, &mut body) {
            Ok(()) => writer.respond(Status::Ok, "application/json", &body, &[]),
            Err(error) => {
                writer.answers.refused += u64::from(error == ApiError::crowded());
                writer.error(&error);
            }
        }
    }

    fn results(
        &self,
        entries: &[Entry],
        exchange: &Exchange,
        writer: &Writer<'_>,
        now: UnixMs,
        out: &mut Vec<u8>,
    ) -> Result<(), ApiError> {
        let facts = writer.facts;
        out.extend_from_slice(b"{\"results\":[");
        for (index, entry) in entries.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            match &entry.progress {
                Progress::Refused { key, error } => self.refused(out, key, error)?,
                Progress::Asked { ticket, bytes } => {
                    let (key, outcome) = exchange
                        .outcome(*ticket)
                        .ok_or_else(|| ApiError::internal("the owning core did not answer"))?;
                    let owners = OwnerIds::of(writer.view, key);
                    let key = key_text(key);
                    match outcome {
                        Outcome::TooLarge(too_large) => {
                            let error = ApiError::too_large(too_large.to_string());
                            self.refused(out, &key, &error)?;
                        }
                        Outcome::Overflow => return Err(answer_too_large()),
                        Outcome::Crowded => return Err(ApiError::crowded()),
                        Outcome::Unreached { reached, needed } => {
                            let writes = self.kind != Kind::Get;
                            let error = ApiError::unreached(writes, reached, needed);
                            self.refused(out, &key, &error)?;
                        }
                        Outcome::Joining => self.refused(out, &key, &ApiError::joining())?,
                        Outcome::Missing => {
                            to_json(
                                out,
                                &GetResult {
                                    key,
                                    found: false,
                                    held: None,
                                },
                            )?;
                        }
                        Outcome::Found(found) => {
                            let value = found.value.bytes();
                            let held = Some(Held {
                                value: Base64Text(value),
                                value_encoding: "base64",
                                item: ItemFields::of(&found, writer.view, now),
                                owners,
                            });
                            to_json(
                                out,
                                &GetResult {
                                    key,
                                    found: true,
                                    held,
                                },
                            )?;
                        }
                        Outcome::Stored(_) => {
                            to_json(
                                out,
                                &PutResult {
                                    key,
                                    stored: true,
                                    bytes: *bytes,
                                    owners,
                                },
                            )?;
                        }
                        Outcome::Deleted(_) => {
                            to_json(
                                out,
                                &DeleteResult {
                                    key,
                                    deleted: true,
                                    owners,
                                },
                            )?;
                        }
                    }
                }
            }
            if out.len() > RESPONSE_BYTES_MAX {
                return Err(answer_too_large());
            }
            // It is there twice when it is put behind its head.
            if !writer.answers.has_room_for(2 * out.len()) {
                return Err(ApiError::crowded());
            }
        }
        out.extend_from_slice(b"],\"node\":");
        to_json(out, &facts.node_id)?;
        out.push(b'}');
        Ok(())
    }

    /// The result of an item that got an error of its own.
    fn refused(&self, out: &mut Vec<u8>, key: &str, error: &ApiError) -> Result<(), ApiError> {
        let problem = Problem {
            error: &error.message,
            code: error.code,
        };
        match self.kind {
            Kind::Get => to_json(
                out,
                &Refused {
                    key,
                    found: Some(false),
                    problem,
                    ..Refused::NONE
                },
            ),
            Kind::Put => to_json(
                out,
                &Refused {
                    key,
                    stored: Some(false),
                    problem,
                    ..Refused::NONE
                },
            ),
            Kind::Delete => to_json(
                out,
                &Refused {
                    key,
                    deleted: Some(false),
                    problem,
                    ..Refused::NONE
                },
            ),
        }
    }
}

/// Adds the operations of one batch to an exchange.
struct Asking<'a> {
    api: &'a Api,
    exchange: &'a mut Exchange,
    consistency: Consistency,
}

impl Asking<'_> {
    fn put(&mut self, item: &PutItem<'_>, now: UnixMs) -> Entry {
        let decoded = match item.value_encoding.as_deref() {
            Some("base64") => match STANDARD.decode(item.value.as_bytes()) {
                Ok(bytes) => Cow::Owned(bytes),
                Err(_) => {
                    let error = ApiError::bad_request("the value is not valid base64");
                    return self.one(&item.key, 0, Err(error));
                }
            },
            _ => Cow::Borrowed(item.value.as_bytes()),
        };
        let action = match u64::try_from(item.ttl_ms.map_or(0, |Whole(ttl_ms)| ttl_ms)) {
            Ok(ttl_ms) => Ok(Action::Put {
                value: value_in(&decoded),
                expires_at: expiry(ttl_ms, now),
            }),
            Err(_) => Err(ApiError::bad_request("ttl_ms must be zero or more")),
        };
        self.one(&item.key, decoded.len(), action)
    }

    fn one(&mut self, key: &str, bytes: usize, action: Result<Action<'_>, ApiError>) -> Entry {
        let progress = match check(key.as_bytes()).and(action) {
            Err(error) => Progress::Refused {
                key: key.to_owned(),
                error,
            },
            Ok(action) => {
                let hash = KeyHash::of(key.as_bytes());
                let owner = hash.partition().core(self.api.cores);
                let operation = Operation {
                    hash,
                    key: key.as_bytes(),
                    action,
                    consistency: self.consistency,
                };
                let ticket = self.exchange.add(owner, operation);
                Progress::Asked { ticket, bytes }
            }
        };
        Entry { progress }
    }
}

fn bound(items: usize, items_max: usize) -> Result<(), ApiError> {
    if items > items_max {
        return Err(ApiError::too_large(format!(
            "a batch of {items} items, more than {items_max}; send it in parts"
        )));
    }
    Ok(())
}

fn malformed(expected: &str, error: &simd_json::Error) -> ApiError {
    ApiError::bad_request(format!(
        "the body is not JSON of the form {expected}: {error}"
    ))
}

fn answer_too_large() -> ApiError {
    ApiError::too_large(format!(
        "the answer would exceed {RESPONSE_BYTES_MAX} bytes; ask for fewer keys at once"
    ))
}

/// How deeply arrays and objects nest, strings left out. Malformed text gets a
/// number too; the parser refuses it afterwards.
fn nesting(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for &byte in body {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[derive(Serialize)]
struct GetResult<'a> {
    key: Cow<'a, str>,
    found: bool,
    #[serde(flatten)]
    held: Option<Held<'a>>,
}

#[derive(Serialize)]
struct Held<'a> {
    value: Base64Text<'a>,
    value_encoding: &'static str,
    #[serde(flatten)]
    item: ItemFields<'a>,
    owners: OwnerIds<'a>,
}

#[derive(Serialize)]
struct PutResult<'a> {
    key: Cow<'a, str>,
    stored: bool,
    bytes: usize,
    owners: OwnerIds<'a>,
}

#[derive(Serialize)]
struct DeleteResult<'a> {
    key: Cow<'a, str>,
    deleted: bool,
    owners: OwnerIds<'a>,
}

#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
    code: &'a str,
}

#[derive(Serialize)]
struct Refused<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<bool>,
    #[serde(flatten)]
    problem: Problem<'a>,
}

impl Refused<'_> {
    const NONE: Self = Self {
        key: "",
        found: None,
        stored: None,
        deleted: None,
        problem: Problem {
            error: "",
            code: "",
        },
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_counted_outside_strings() {
        assert_eq!(nesting(br#"{"keys":["[[[["]}"#), 2);
        assert_eq!(nesting(br#"{"a":"\"[["}"#), 1);
        assert_eq!(nesting(&[b'['; 1000]), 1000);
    }
}
