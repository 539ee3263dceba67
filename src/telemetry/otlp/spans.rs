//! Spans as OTLP has them. What they say is a fixed list; see [`Work`].

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as proto;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use super::{number, scope, text};
use crate::telemetry::latency::Operation;
use crate::telemetry::trace::{Request, Span, Work};
use crate::trace_context::Context;

/// It is told whether the parent is in another process, and it is.
const PARENT_IS_KNOWN: u32 = proto::SpanFlags::ContextHasIsRemoteMask as u32;
const PARENT_IS_REMOTE: u32 = proto::SpanFlags::ContextIsRemoteMask as u32;

/// These spans.
pub fn request(spans: Vec<Span>, resource: Resource) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![proto::ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![proto::ScopeSpans {
                scope: Some(scope()),
                spans: spans.into_iter().map(of).collect(),
                ..proto::ScopeSpans::default()
            }],
            ..proto::ResourceSpans::default()
        }],
    }
}

fn of(span: Span) -> proto::Span {
    let (kind, remote) = match &span.work {
        Work::Request(_) | Work::PeerServe { .. } => (SpanKind::Server, PARENT_IS_REMOTE),
        Work::PeerCall(_) => (SpanKind::Client, 0),
        Work::Upkeep(_) => (SpanKind::Internal, 0),
    };
    let remote = span.parent.map_or(0, |_| remote);
    let parent = span.parent.map(|parent| parent.to_bytes().to_vec());
    let status = span.failed.then(|| proto::Status {
        code: StatusCode::Error as i32,
        ..proto::Status::default()
    });
    proto::Span {
        trace_id: span.context.trace.to_bytes().to_vec(),
        span_id: span.context.span.to_bytes().to_vec(),
        parent_span_id: parent.unwrap_or_default(),
        flags: flags(&span.context) | PARENT_IS_KNOWN | remote,
        name: name(&span.work),
        kind: kind as i32,
        start_time_unix_nano: span.started_ns,
        end_time_unix_nano: span.ended_ns,
        attributes: attributes(span.work),
        links: span.links.iter().map(link).collect(),
        status,
        ..proto::Span::default()
    }
}

fn flags(context: &Context) -> u32 {
    context.flags.to_u8().into()
}

fn link(context: &Context) -> Link {
    Link {
        trace_id: context.trace.to_bytes().to_vec(),
        span_id: context.span.to_bytes().to_vec(),
        flags: flags(context) | PARENT_IS_KNOWN,
        ..Link::default()
    }
}

fn name(work: &Work) -> String {
    match work {
        Work::Request(Request { method, route, .. }) => {
            // As the conventions have it where the method is none that is known.
            let method = if *method == "_OTHER" { "HTTP" } else { method };
            format!("{method} {route}").trim_end().to_owned()
        }
        Work::PeerCall(_) => "peer.call".to_owned(),
        Work::PeerServe { .. } => "peer.serve".to_owned(),
        Work::Upkeep(upkeep) => upkeep.kind.name().to_owned(),
    }
}

fn attributes(work: Work) -> Vec<KeyValue> {
    match work {
        Work::Request(request) => of_request(&request),
        Work::PeerCall(call) => vec![
            text("hypercache.peer", &*call.peer),
            text("hypercache.lane", call.lane),
            number("hypercache.operations", call.operations),
            number("hypercache.bytes", call.bytes),
        ],
        Work::PeerServe {
            bytes,
            answer_bytes,
        } => vec![
            number("hypercache.bytes", bytes),
            number("hypercache.answer_bytes", answer_bytes),
        ],
        Work::Upkeep(upkeep) => {
            let peer = upkeep.peer.map(|peer| text("hypercache.peer", &*peer));
            let mut attributes = Vec::from_iter(peer);
            attributes.push(number("hypercache.core", upkeep.core));
            let counts = upkeep.counts.into_iter();
            attributes.extend(counts.map(|(name, count)| number(name, count)));
            attributes
        }
    }
}

fn of_request(request: &Request) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("http.request.method", request.method),
        text("hypercache.via", request.via.name()),
    ];
    let operation = request.operation.map(Operation::name);
    attributes.extend(operation.map(|name| text("hypercache.operation", name)));
    if !request.route.is_empty() {
        attributes.push(text("http.route", request.route));
    }
    if request.status > 0 {
        attributes.push(number("http.response.status_code", request.status.into()));
    }
    for (name, bytes) in [
        ("hypercache.key_bytes", request.key_bytes),
        ("hypercache.value_bytes", request.value_bytes),
    ] {
        attributes.extend(bytes.map(|bytes| number(name, bytes)));
    }
    attributes
}
