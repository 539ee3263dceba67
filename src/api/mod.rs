//! The client's API: which bytes in mean what, and which bytes go out.
//!
//! Pure: it is handed a parsed request, this core's store and the time, and
//! either answers into the [`Turn`] at once, leaves a gap there for another
//! core's answer, or hands back a [`Job`] that needs several cores. It never
//! waits, and it knows no sockets.
//!
//! Every answer is written by [`Writer`], every error by [`Writer::error`], so
//! that the contract's shapes stand in one place.

pub mod batch;
pub mod browse;
pub mod errors;
pub mod glob;
pub mod identity;
pub mod key;
pub mod owners;
pub mod router;
pub mod turn;

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

pub use errors::ApiError;
pub use turn::{Answers, Turn};

use crate::auth::Identity;
use crate::clock::UnixMs;
use crate::cluster::{Consistency, Coordinator, View};
use crate::hash::{CoreCount, CoreId, KeyHash};
use crate::http::{self, Connection, Head, HttpDate, Method, ResponseHead, Status};
use crate::operations;
use crate::store::ValueView;
use router::{Operation, Route};

/// The document served at `/v1/openapi.yaml`.
pub const OPENAPI_YAML: &str = include_str!("openapi.yaml");

/// What every answer may have to say about this node. Fixed while it runs.
#[derive(Debug)]
pub struct NodeFacts {
    /// This node's id.
    pub node_id: String,
    /// How many owners a read asks that does not say.
    pub read_consistency: Consistency,
    /// How many owners a write needs that does not say.
    pub write_consistency: Consistency,
    /// How many items one batch request may name.
    pub batch_items_max: usize,
}

/// The API as one core serves it.
#[derive(Debug)]
pub struct Api {
    /// About the node.
    pub facts: Arc<NodeFacts>,
    /// This core.
    pub core: CoreId,
    /// How many cores there are.
    pub cores: CoreCount,
}

/// Work that needs more than one core or more than one look.
#[derive(Debug)]
pub enum Job {
    /// A batch of keys.
    Batch(batch::Request),
    /// A listing of keys.
    Browse(browse::Request),
}

impl Job {
    /// How much carrying it out takes, beside its answer.
    pub fn weight(&self, facts: &NodeFacts) -> usize {
        match self {
            Self::Batch(request) => request.weight(facts.batch_items_max),
            Self::Browse(request) => request.weight(),
        }
    }
}

/// What [`Api::handle`] is told besides the request.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// Wall time of this turn.
    pub now: UnixMs,
    /// The same for the `Date` header.
    pub date: &'a HttpDate,
    /// Whether this node is going to leave: it refuses writes, and answers close their
    /// connections.
    pub draining: bool,
    /// The cluster as this core knows it.
    pub view: &'a View,
    /// Who asks, where that matters: an endpoint with a scope is only reached by
    /// somebody.
    pub caller: Option<&'a Identity>,
}

impl Api {
    /// Answers a request into `turn`, or says what it takes to answer it.
    ///
    /// A returned job is to be carried out, and its answer written, before the
    /// next request of the connection is handled.
    #[inline]
    pub fn handle(
        &self,
        head: &Head<'_>,
        body: Cow<'_, [u8]>,
        cluster: &mut Coordinator,
        turn: &mut Turn,
        moment: Moment<'_>,
    ) -> Option<Job> {
        let connection = self.connection(head, moment.draining, turn);
        let (operation, raw_key) = match router::route(head.method, head.path) {
            Route::Found {
                operation, raw_key, ..
            } => (operation, raw_key),
            Route::WrongMethod { path } => {
                let error = ApiError::method_not_allowed(router::allowed_methods(path));
                self.writer(turn, head, moment, connection).error(&error);
                return None;
            }
            Route::Unknown => {
                self.writer(turn, head, moment, connection)
                    .error(&ApiError::not_found("no such route"));
                return None;
            }
        };
        let keyed = match operation {
            Operation::GetKey => Some(key::plan_get(head)),
            Operation::HeadKey => Some(Ok(key::Request::Head)),
            Operation::PutKey => Some(key::plan_put(head, body.as_ref(), moment.now)),
            Operation::DeleteKey => Some(Ok(key::Request::Delete)),
            _ => None,
        };
        if let Some(request) = keyed {
            let planned = request.and_then(|request| {
                if moment.draining && request.writes() {
                    return Err(ApiError::draining());
                }
                let consistency = self.consistency(head, request.writes())?;
                Ok((request, consistency, key::decode(raw_key)?))
            });
            match planned {
                Ok((request, consistency, key)) => {
                    let (action, render) = request.parts();
                    let operation = operations::Operation {
                        hash: KeyHash::of(&key),
                        key: &key,
                        action,
                        consistency,
                    };
                    key::serve(self, operation, render, cluster, turn, connection, moment);
                }
                Err(error) => self.writer(turn, head, moment, connection).error(&error),
            }
            return None;
        }
        let mut writer = self.writer(turn, head, moment, connection);
        let plan_batch = |kind: batch::Kind, body| {
            let writes = kind != batch::Kind::Get;
            if moment.draining && writes {
                return Err(ApiError::draining());
            }
            let consistency = self.consistency(head, writes)?;
            Ok(batch::plan(kind, body, consistency, connection))
        };
        let job = match operation {
            // Before it has found its cluster a node knows neither whom to ask nor whether
            // what it holds is current.
            Operation::ListKeys => match browse::plan(head.query, connection) {
                Ok(_) if !moment.view.joined() => Err(ApiError::joining()),
                planned => planned.map(Job::Browse),
            },
            Operation::BatchGet => plan_batch(batch::Kind::Get, body),
            Operation::BatchPut => plan_batch(batch::Kind::Put, body),
            Operation::BatchDelete => plan_batch(batch::Kind::Delete, body),
            Operation::Liveness => {
                let core = self.core.index().to_string();
                let cores = self.cores.get().to_string();
                writer.respond(
                    Status::Ok,
                    "text/plain",
                    b"ok",
                    &[
                        ("X-Cache-Core", core.as_bytes()),
                        ("X-Cache-Cores", cores.as_bytes()),
                    ],
                );
                return None;
            }
            Operation::OpenApi => {
                writer.respond(Status::Ok, "application/yaml", OPENAPI_YAML.as_bytes(), &[]);
                return None;
            }
            Operation::Owners => {
                owners::owners(raw_key, &mut writer);
                return None;
            }
            Operation::Members => {
                owners::members(&mut writer);
                return None;
            }
            Operation::Me | Operation::MeCan => {
                match moment.caller {
                    Some(caller) if operation == Operation::Me => identity::me(caller, &mut writer),
                    Some(caller) => identity::can(caller, head.query, &mut writer),
                    None => writer.error(&ApiError::unauthorized()),
                }
                return None;
            }
            Operation::GetKey | Operation::HeadKey | Operation::PutKey | Operation::DeleteKey => {
                unreachable!("operations on a key were served above")
            }
        };
        match job {
            Ok(job) => Some(job),
            Err(error) => {
                writer.error(&error);
                None
            }
        }
    }

    /// What the answer says about the connection; the turn is told if it closes.
    pub fn connection(&self, head: &Head<'_>, draining: bool, turn: &mut Turn) -> Connection {
        let keep_alive = head.keep_alive && !draining;
        turn.closes |= !keep_alive;
        Connection::after(head.version, keep_alive)
    }

    /// How many owners a request asks for.
    fn consistency(&self, head: &Head<'_>, writes: bool) -> Result<Consistency, ApiError> {
        match head.consistency {
            None if writes => Ok(self.facts.write_consistency),
            None => Ok(self.facts.read_consistency),
            Some(text) => Consistency::parse(text).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "X-Cache-Consistency {:?} is none of ONE, QUORUM and ALL",
                    key_text(text)
                ))
            }),
        }
    }

    fn writer<'a>(
        &'a self,
        turn: &'a mut Turn,
        head: &Head<'_>,
        moment: Moment<'a>,
        connection: Connection,
    ) -> Writer<'a> {
        Writer {
            answers: &mut turn.answers,
            facts: &self.facts,
            view: moment.view,
            date: moment.date,
            connection,
            head_only: head.method == Method::Head,
        }
    }
}

/// Writes answers, complete with their heads.
pub struct Writer<'a> {
    /// Where they go.
    pub answers: &'a mut Answers,
    /// About the node.
    pub facts: &'a NodeFacts,
    /// The cluster.
    pub view: &'a View,
    /// The `Date` header.
    pub date: &'a HttpDate,
    /// What the answer says about the connection.
    pub connection: Connection,
    /// Whether the body is left out, as for `HEAD`.
    pub head_only: bool,
}

impl Writer<'_> {
    /// A value, as it was put.
    #[inline]
    pub fn octets(&mut self, value: ValueView<'_>) {
        let length = value.bytes().len();
        self.answers.status = 200;
        http::write_ok_octets(&mut self.answers.bytes, self.date, length, self.connection);
        self.answers.push_body(value);
    }

    /// An answer with a body of our own.
    pub fn respond(
        &mut self,
        status: Status,
        content_type: &'static str,
        body: &[u8],
        extra: &[(&str, &[u8])],
    ) {
        self.head(status, Some(content_type), body.len() as u64, None, extra);
        if !self.head_only {
            self.answers.bytes.extend_from_slice(body);
        }
    }

    /// A JSON answer.
    pub fn json(&mut self, status: Status, body: &impl Serialize) {
        let mut scratch = std::mem::take(&mut self.answers.scratch);
        scratch.clear();
        match to_json(&mut scratch, body) {
            Ok(()) => self.respond(status, "application/json", &scratch, &[]),
            Err(error) => self.error(&error),
        }
        if scratch.capacity() <= turn::TURN_BYTES_KEPT {
            self.answers.scratch = scratch;
        }
    }

    /// The answer to a write that was done: a PutResponse or a DeleteResponse, of which `rest`
    /// adds what differs. It is as frequent as writes are, so it is put together by hand.
    pub fn written(&mut self, key: &[u8], rest: impl FnOnce(&mut Vec<u8>)) {
        let mut body = std::mem::take(&mut self.answers.scratch);
        body.clear();
        body.extend_from_slice(b"{\"key\":");
        push_text(&mut body, key);
        rest(&mut body);
        body.extend_from_slice(b",\"node\":");
        push_text(&mut body, self.facts.node_id.as_bytes());
        body.extend_from_slice(b",\"owners\":[");
        for (index, owner) in owners::OwnerIds::of(self.view, key).iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            push_text(&mut body, owner.as_bytes());
        }
        body.extend_from_slice(b"]}");
        self.answers.status = 200;
        let bytes = &mut self.answers.bytes;
        http::write_ok_json(bytes, self.date, body.len(), self.connection);
        if !self.head_only {
            bytes.extend_from_slice(&body);
        }
        if body.capacity() <= turn::TURN_BYTES_KEPT {
            self.answers.scratch = body;
        }
    }

    /// The answer to a request that is refused for want of room.
    #[cold]
    pub fn crowded(&mut self) {
        self.answers.refused += 1;
        self.error(&ApiError::crowded());
    }

    /// An error, in the contract's words.
    pub fn error(&mut self, error: &ApiError) {
        let mut body = Vec::with_capacity(128);
        let shape = ErrorBody {
            error: &error.message,
            code: error.code,
            details: error.details.as_ref(),
        };
        if to_json(&mut body, &shape).is_err() {
            body.clear();
        }
        let retry_after = error.retry_after_s.map(|seconds| seconds.to_string());
        let extra: &[(&str, &[u8])] = match (&retry_after, error.challenge) {
            (Some(seconds), _) => &[("Retry-After", seconds.as_bytes())],
            (None, Some(challenge)) => &[("WWW-Authenticate", challenge.as_bytes())],
            (None, None) => &[],
        };
        let length = body.len() as u64;
        self.head(
            error.status,
            Some("application/json"),
            length,
            error.allow.as_deref(),
            extra,
        );
        if !self.head_only {
            self.answers.bytes.extend_from_slice(&body);
        }
    }

    /// A head whose body the caller sends, or which stands alone.
    pub fn head(
        &mut self,
        status: Status,
        content_type: Option<&'static str>,
        content_length: u64,
        allow: Option<&str>,
        extra: &[(&str, &[u8])],
    ) {
        self.answers.status = status.code();
        ResponseHead {
            status,
            content_type,
            content_length,
            connection: self.connection,
            date: self.date,
            allow,
            extra,
        }
        .write(&mut self.answers.bytes);
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a errors::Details>,
}

/// Appends `body` as JSON.
fn to_json(out: &mut Vec<u8>, body: &impl Serialize) -> Result<(), ApiError> {
    simd_json::serde::to_writer(out, body)
        .map_err(|_| ApiError::internal("the answer could not be written as JSON"))
}

/// Appends any bytes as a JSON string.
fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    let is_plain = |byte: &u8| matches!(byte, 0x20..=0x7e) & (*byte != b'"') & (*byte != b'\\');
    if text.iter().fold(true, |plain, byte| plain & is_plain(byte)) {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    } else if to_json(out, &key_text(text)).is_err() {
        // A string can always be written.
        out.extend_from_slice(b"\"\"");
    }
}

/// Any bytes as a JSON string: what is not UTF-8 is replaced, as JSON demands.
pub(crate) fn key_text(key: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_written_as_a_serializer_writes_it() {
        let mut texts: Vec<Vec<u8>> = (0..=255).map(|byte| vec![b'a', byte, b'z']).collect();
        texts.extend([
            Vec::new(),
            b"plain text".to_vec(),
            "two \u{fc} and \u{1f600}".into(),
            b"cut \xf0\x9f".to_vec(),
        ]);
        for text in texts {
            let (mut quick, mut general) = (Vec::new(), Vec::new());
            push_text(&mut quick, &text);
            to_json(&mut general, &key_text(&text)).unwrap();
            assert_eq!(quick, general, "{text:?}");
        }
    }
}
