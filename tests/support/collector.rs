//! An OpenTelemetry collector on a loopback address, as far as exporters can tell: it takes
//! OTLP over HTTP, reads it by the official definitions, and misbehaves on demand.

#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test uses its part of it, and a failure here is a failed test"
)]

#[path = "opened.rs"]
mod opened;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use opened::opened;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rustls::ServerConfig;

/// How long the collector waits for what should come at once.
const GUARD: Duration = Duration::from_secs(20);

/// A request that has arrived whole.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub head: String,
    pub body: Vec<u8>,
    pub answered: u16,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The metrics in it, by which it is known that it is well formed.
    pub fn metrics(&self) -> ExportMetricsServiceRequest {
        ExportMetricsServiceRequest::decode(&*self.body).expect("metrics")
    }

    pub fn traces(&self) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest::decode(&*self.body).expect("spans")
    }
}

/// A running collector; it ends when dropped.
pub struct Collector {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    tls: Option<Arc<ServerConfig>>,
}

#[derive(Default)]
struct State {
    received: Vec<Received>,
    connections: usize,
    /// What the next requests are answered with, each with header fields.
    answers: VecDeque<(u16, String)>,
    /// So many spans of each request are rejected.
    rejects: i64,
    hangs: bool,
    ended: bool,
}

impl Collector {
    pub fn start() -> Self {
        Self::with(None, State::default())
    }

    /// One that takes requests and never answers.
    pub fn hanging() -> Self {
        let hangs = State {
            hangs: true,
            ..State::default()
        };
        Self::with(None, hangs)
    }

    /// One over https.
    pub fn over_tls(config: ServerConfig) -> Self {
        Self::with(Some(Arc::new(config)), State::default())
    }

    fn with(tls: Option<Arc<ServerConfig>>, state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            tls,
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Self {
            address,
            scheme,
            shared,
            thread: Some(thread),
        }
    }

    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Answers the next request with this instead.
    pub fn answer_next(&self, status: u16, headers: &str) {
        let mut state = self.shared.state();
        state.answers.push_back((status, headers.to_owned()));
    }

    /// Says of each request with spans from now on that so many were rejected.
    pub fn reject_spans(&self, count: i64) {
        self.shared.state().rejects = count;
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    pub fn received(&self) -> Vec<Received> {
        self.shared.state().received.clone()
    }

    /// Waits until what was received, answered well or not, is so.
    pub fn until(&self, what: &str, so: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        let state = self.shared.state();
        let (state, waited) = self
            .shared
            .changed
            .wait_timeout_while(state, GUARD, |state| !so(&state.received))
            .expect("no thread panics");
        let requests = state.received.len();
        assert!(
            !waited.timed_out(),
            "in vain: {what}; {requests} requests came"
        );
        state.received.clone()
    }

    /// All spans that were taken.
    pub fn spans(&self) -> Vec<Span> {
        spans_of(&self.received())
    }

    /// Waits until the spans that were taken are so.
    pub fn spans_until(&self, what: &str, so: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        spans_of(&self.until(what, |received| so(&spans_of(received))))
    }

    /// Waits until metrics were taken that are so, and returns those.
    pub fn metrics_until(&self, what: &str, so: impl Fn(&[Metric]) -> bool) -> Vec<Metric> {
        let mut found = Vec::new();
        let begun = Instant::now();
        let mut seen = 0;
        while begun.elapsed() < GUARD {
            let received = self.until(what, |received| received.len() > seen);
            for metrics in received[seen..].iter().filter_map(metrics_of) {
                if so(&metrics) {
                    found = metrics;
                }
            }
            if !found.is_empty() {
                return found;
            }
            seen = received.len();
        }
        panic!("in vain: {what}");
    }

    /// All bytes that came, heads and bodies.
    pub fn bytes(&self) -> Vec<u8> {
        let received = self.received().into_iter();
        let parts = received.flat_map(|one| [one.head.into_bytes(), one.body]);
        parts.flatten().collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn spans_of(received: &[Received]) -> Vec<Span> {
    let taken = received.iter().filter(|one| one.answered == 200);
    let taken = taken.filter(|one| one.path.ends_with("/traces"));
    taken
        .flat_map(|one| one.traces().resource_spans)
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect()
}

fn metrics_of(received: &Received) -> Option<Vec<Metric>> {
    let taken = received.answered == 200 && received.path.ends_with("/metrics");
    taken.then(|| {
        let resources = received.metrics().resource_metrics.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_metrics);
        scopes.flat_map(|scope| scope.metrics).collect()
    })
}

/// An attribute as text.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A test that fails panics while it holds it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            let mut state = self.state();
            if state.ended {
                return;
            }
            state.connections += 1;
            drop(state);
            let stream = stream.expect("a connection");
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.serve(stream));
        }
    }

    /// One connection, until the exporter closes it.
    fn serve(&self, stream: TcpStream) {
        self.answer_all(opened(stream, self.tls.as_ref(), 4 * GUARD));
    }

    fn answer_all(&self, mut stream: impl Read + Write) {
        while let Some(mut request) = read(&mut stream) {
            let mut state = self.state();
            if state.hangs {
                state.received.push(request);
                self.changed.notify_all();
                while !state.ended {
                    state = self.changed.wait(state).expect("no thread panics");
                }
                return;
            }
            let (status, headers) = state.answers.pop_front().unwrap_or((200, String::new()));
            request.answered = status;
            let body = match request.path.ends_with("/traces") && state.rejects > 0 {
                true => ExportTraceServiceResponse {
                    partial_success: Some(ExportTracePartialSuccess {
                        rejected_spans: state.rejects,
                        error_message: "too many for me".to_owned(),
                    }),
                }
                .encode_to_vec(),
                false => Vec::new(),
            };
            state.received.push(request);
            drop(state);
            self.changed.notify_all();
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/x-protobuf\r\n\
                 Content-Length: {}\r\n{headers}\r\n",
                body.len()
            );
            let written = stream.write_all(&[head.as_bytes(), &body].concat());
            if written.and_then(|()| stream.flush()).is_err() {
                return;
            }
        }
    }
}

/// Reads one request; nothing at the end of the stream.
fn read(stream: &mut impl Read) -> Option<Received> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 65536];
    let head_len = loop {
        if let Some(at) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => bytes.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    };
    let head = String::from_utf8(bytes[..head_len].to_vec()).expect("text");
    let path = head.split(' ').nth(1).expect("a path").to_owned();
    let mut request = Received {
        path,
        head,
        body: bytes[head_len..].to_vec(),
        answered: 0,
    };
    let length = request.header("Content-Length").expect("a length");
    let length: usize = length.parse().expect("a number");
    while request.body.len() < length {
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => request.body.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    }
    Some(request)
}
