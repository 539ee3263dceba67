//! What one core records as spans: requests of clients, calls to other nodes and theirs to
//! it, and what it does by itself.
//!
//! Whether something is recorded is asked once, when it begins; everything else here runs
//! for what is, which is rare. A span says what [`crate::telemetry::trace`] has a place
//! for: no key, no value.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Link};
use crate::api::router::{self, Operation as Routed, Route};
use crate::api::turn::Recorded;
use crate::api::{Job, Turn};
use crate::cluster::activity::{Activity, Done};
use crate::cluster::coordinator::{Lane, Travelling};
use crate::cluster::{NodeIx, View};
use crate::http::{Head, Method};
use crate::telemetry::latency::{Operation, Via};
use crate::telemetry::trace::{Begun, PeerCall, Request, Upkeep, UpkeepKind, Work};
use crate::trace_context::Context;

/// A call to another node that is recorded.
pub(super) struct Calling {
    begun: Begun,
    /// Others than the parent that it serves.
    links: Vec<Context>,
    call: PeerCall,
}

impl Calling {
    /// What the other node is told.
    pub(super) fn context(&self) -> &Context {
        &self.begun.context
    }
}

impl Core {
    /// As [`Core::answer`], for a request of which there is to be a span.
    #[cold]
    pub(super) fn answer_recorded(
        &self,
        begun: Begun,
        link: &Link,
        head: &Head<'_>,
        body: Cow<'_, [u8]>,
        turn: &mut Turn,
    ) -> Option<Job> {
        turn.recording = Some(Recorded::new(begun, described(head)));
        turn.exchange.context = Some(begun.context);
        let job = self.answer(link, head, body, turn);
        turn.exchange.context = None;
        if job.is_none() {
            self.end_recording(turn, Via::Local);
        }
        job
    }

    /// Records a request that was not let in.
    #[cold]
    pub(super) fn record_denied(&self, begun: Begun, head: &Head<'_>, turn: &mut Turn) {
        turn.recording = Some(Recorded::new(begun, described(head)));
        self.end_recording(turn, Via::Local);
    }

    /// Ends the span of the request that was being handled, if there is one, and if its
    /// answer does not wait for other cores.
    pub(super) fn end_recording(&self, turn: &mut Turn, via: Via) {
        if let Some(mut recorded) = turn.recording.take() {
            recorded.request.via = via;
            recorded.request.status = turn.answers.status;
            self.end_request(&recorded);
        }
    }

    /// Ends the spans of requests whose answers have come from other cores.
    pub(super) fn end_recorded(&self, turn: &mut Turn) {
        for recorded in turn.take_recorded() {
            self.end_request(&recorded);
        }
    }

    fn end_request(&self, recorded: &Recorded) {
        let failed = recorded.request.status >= 500;
        let work = Work::Request(recorded.request);
        self.tracer.end(&recorded.begun, work, failed);
    }

    /// Begins the span of a call to another node, if it is for something recorded.
    pub(super) fn begin_call(
        &self,
        node: NodeIx,
        lane: Lane,
        frame: &Travelling<'_>,
    ) -> Option<Calling> {
        let (parent, links) = frame.contexts.split_first()?;
        let begun = self.tracer.begin_part_of(parent)?;
        let peer = name_of(&self.view(), node).unwrap_or_default();
        let lane = match lane {
            Lane::Data => "data",
            Lane::Bulk => "bulk",
        };
        Some(Calling {
            begun,
            links: links.to_vec(),
            call: PeerCall {
                peer,
                lane,
                operations: frame.operations as u64,
                bytes: frame.bytes.len() as u64,
            },
        })
    }

    pub(super) fn end_call(&self, calling: Calling, failed: bool) {
        let Calling { begun, links, call } = calling;
        let work = Work::PeerCall(call);
        self.tracer.end_linked(&begun, links, work, failed);
    }

    /// Ends the span of what another node asked for.
    pub(super) fn end_serving(&self, begun: &Begun, bytes: usize, answer: Option<usize>) {
        let work = Work::PeerServe {
            bytes: bytes as u64,
            answer_bytes: answer.unwrap_or(0) as u64,
        };
        self.tracer.end(begun, work, answer.is_none());
    }

    /// Records what this core has done by itself since the last call.
    pub(super) fn record_activities(&self) {
        let activities = self.cluster.borrow_mut().take_activities();
        if activities.is_empty() || !self.tracer.is_on() {
            return;
        }
        let view = self.view();
        for activity in activities {
            self.record_activity(&view, activity);
        }
    }

    fn record_activity(&self, view: &View, activity: Activity) {
        let upkeep = |kind, counts| Upkeep {
            kind,
            peer: activity.node.and_then(|node| name_of(view, node)),
            core: self.api.core.index() as u64,
            counts,
        };
        let took = Duration::from_millis(activity.took_ms);
        let failed = activity.failed;
        let (kind, counts) = match activity.done {
            Done::HintReplay { sent, taken } => (
                UpkeepKind::HintReplay,
                vec![
                    ("hypercache.hints_sent", sent),
                    ("hypercache.hints_taken", taken),
                ],
            ),
            Done::Sync(told) => (
                UpkeepKind::Sync,
                vec![
                    ("hypercache.partitions", told.partitions),
                    ("hypercache.keys_pulled", told.pulled),
                    ("hypercache.keys_pushed", told.pushed),
                ],
            ),
            Done::Bootstrap { keys, bytes } => (
                UpkeepKind::Bootstrap,
                vec![
                    ("hypercache.keys_copied", keys),
                    ("hypercache.bytes_copied", bytes),
                ],
            ),
        };
        let recorded = self
            .tracer
            .record_upkeep(None, upkeep(kind, counts), took, failed);
        if let (Some(parent), Done::Sync(told)) = (recorded, activity.done)
            && told.has_transfer()
        {
            let counts = vec![
                ("hypercache.keys_copied", told.copied),
                ("hypercache.bytes_copied", told.copied_bytes),
                ("hypercache.keys_handed_over", told.handed_over),
            ];
            let transfer = upkeep(UpkeepKind::Transfer, counts);
            self.tracer
                .record_upkeep(Some(&parent), transfer, took, failed);
        }
    }
}

fn name_of(view: &View, node: NodeIx) -> Option<Arc<str>> {
    view.node(node).map(|node| Arc::clone(&node.id))
}

/// What is known of a request by its head.
fn described(head: &Head<'_>) -> Request {
    let (route, operation) = match router::route(head.method, head.path) {
        Route::Found { operation, .. } => (router::path_of(operation), kind_of(operation)),
        Route::WrongMethod { path } => (path, None),
        Route::Unknown => ("", None),
    };
    let method = match head.method {
        Method::Other => "_OTHER",
        method => method.name(),
    };
    Request {
        method,
        route,
        operation,
        via: Via::Local,
        status: 0,
        key_bytes: None,
        value_bytes: None,
    }
}

fn kind_of(operation: Routed) -> Option<Operation> {
    Some(match operation {
        Routed::GetKey | Routed::HeadKey => Operation::Get,
        Routed::PutKey => Operation::Put,
        Routed::DeleteKey => Operation::Delete,
        Routed::ListKeys => Operation::List,
        Routed::BatchGet => Operation::BatchGet,
        Routed::BatchPut => Operation::BatchPut,
        Routed::BatchDelete => Operation::BatchDelete,
        Routed::Liveness
        | Routed::OpenApi
        | Routed::Owners
        | Routed::Me
        | Routed::MeCan
        | Routed::Members => return None,
    })
}
