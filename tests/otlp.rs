//! Metrics and spans of real nodes, as a collector gets them.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may fail"
)]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/collector.rs"]
mod collector;
#[path = "support/files.rs"]
mod files;
#[path = "support/node.rs"]
mod node;

use std::collections::HashMap;
use std::process::Output;

use certificates::Authority;
use cluster::{Cluster, until};
use collector::{Collector, attribute};
use node::{Client, Node, command};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";

/// Exports at once what there is.
const SOON: &[(&str, &str)] = &[
    ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
];
const NO_METRICS: (&str, &str) = ("OTEL_METRICS_EXPORTER", "none");
const NO_TRACES: (&str, &str) = ("OTEL_TRACES_EXPORTER", "none");

fn env<'a>(endpoint: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut env = vec![(ENDPOINT, endpoint)];
    env.extend(SOON);
    env.extend(more);
    env
}

fn traceparent(sampled: bool) -> String {
    format!(
        "traceparent: 00-{TRACE}-{PARENT}-0{}\r\n",
        u8::from(sampled)
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = named(spans, name);
    assert_eq!(found.len(), 1, "{name}: {spans:?}");
    found[0]
}

fn metric<'a>(metrics: &'a [Metric], name: &str) -> &'a Metric {
    let found = metrics.iter().find(|metric| metric.name == name);
    found.unwrap_or_else(|| panic!("{name} is there"))
}

/// The numbers of a monotonic sum, added up.
fn sum(metrics: &[Metric], name: &str) -> i64 {
    let Some(Data::Sum(sum)) = &metric(metrics, name).data else {
        panic!("{name} is a sum");
    };
    assert!(sum.is_monotonic, "{name}");
    let cumulative = AggregationTemporality::Cumulative as i32;
    assert_eq!(sum.aggregation_temporality, cumulative, "{name}");
    let points = sum.data_points.iter();
    points
        .map(|point| match point.value {
            Some(Value::AsInt(number)) => number,
            other => panic!("{name}: {other:?}"),
        })
        .sum()
}

/// A field of `/dist/metrics`, and a series of `/metrics`, all labels together.
fn field(node: &Node, name: &str) -> i64 {
    let metrics = Client::connect(&node.mgmt).get("/dist/metrics").json();
    metrics[name].as_i64().expect(name)
}

fn series(node: &Node, name: &str) -> u64 {
    let text = Client::connect(&node.mgmt).get("/metrics").text();
    let lines = text.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([' ', '{']))
    });
    let numbers = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    numbers.sum()
}

fn run(mut command: std::process::Command) -> Output {
    command.output().expect("the program runs")
}

// Metrics.

#[test]
fn metrics_arrive_under_their_names_and_units_and_agree_with_those_that_are_scraped() {
    let collector = Collector::start();
    let node = Node::start(&env(&collector.endpoint(), &[NO_TRACES]));
    let mut client = node.connect();
    for number in 0..7 {
        assert_eq!(client.put(&format!("/v1/cache/{number}"), b"v").status, 200);
    }
    let metrics = collector.metrics_until("all writes are counted", |metrics| {
        sum(metrics, "hypercache.sets") == 7
    });
    for metric in hypercache::telemetry::table::METRICS {
        let found = self::metric(&metrics, &metric.otel_name());
        assert!(!found.description.is_empty());
        assert!(found.data.is_some());
    }
    assert_eq!(
        metrics.len(),
        hypercache::telemetry::table::METRICS.len(),
        "each once"
    );
    assert_eq!(
        sum(&metrics, "dist.write.attempts"),
        field(&node, "WriteAttempts")
    );
    assert_eq!(sum(&metrics, "dist.write.acks"), field(&node, "WriteAcks"));
    assert_eq!(series(&node, "hypercache_sets_total"), 7);
    for (name, unit) in [
        ("hypercache.requests", ""),
        ("hypercache.store", "By"),
        ("hypercache.stall", "us"),
        ("process.cpu", "ms"),
        ("dist.rebalance.last_ns", "ns"),
        ("hypercache.request_duration", "s"),
    ] {
        assert_eq!(metric(&metrics, name).unit, unit, "{name}");
    }
    let Some(Data::Gauge(build)) = &metric(&metrics, "hypercache.build").data else {
        panic!("facts are a gauge");
    };
    let build = &build.data_points[0];
    assert_eq!(build.value, Some(Value::AsInt(1)));
    let version = attribute(&build.attributes, "version");
    assert_eq!(version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
}

#[test]
fn durations_are_a_histogram_in_seconds_that_began_with_the_process() {
    let collector = Collector::start();
    let node = Node::start(&env(&collector.endpoint(), &[NO_TRACES]));
    let mut client = node.connect_to_core(0);
    for _ in 0..5 {
        client.get("/v1/cache/k").expect_error(404, "NOT_FOUND");
    }
    let durations = |metrics: &[Metric]| {
        let found = &metric(metrics, "hypercache.request_duration").data;
        let Some(Data::Histogram(histogram)) = found else {
            panic!("durations are a histogram");
        };
        let points = histogram.data_points.clone().into_iter();
        let gets = points
            .filter(|point| attribute(&point.attributes, "operation").as_deref() == Some("get"));
        gets.collect::<Vec<_>>()
    };
    let metrics = collector.metrics_until("all reads are counted", |metrics| {
        let counts = durations(metrics).into_iter().map(|point| point.count);
        counts.sum::<u64>() == 5
    });
    let started_s = series(&node, "process_start_time_seconds");
    for point in durations(&metrics) {
        assert_eq!(point.start_time_unix_nano, started_s * 1_000_000_000);
        assert!(point.time_unix_nano > point.start_time_unix_nano);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert!(point.sum.unwrap() < 20.0, "in seconds: {point:?}");
    }
}

#[test]
fn each_request_says_whose_it_is_and_who_asks() {
    let collector = Collector::start();
    let secret = "hush%20hush";
    let headers = format!("x-tenant=cache,authorization=Bearer%20{secret}");
    let _node = Node::start(&env(
        &collector.endpoint(),
        &[
            (HEADERS, &headers),
            ("OTEL_SERVICE_NAME", "shop-cache"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "k8s.pod.name=pod-1,host.name=h%2C1",
            ),
            (SAMPLER, "always_on"),
        ],
    ));
    let received = collector.until("metrics arrive", |received| !received.is_empty());
    let request = &received[0];
    assert_eq!(request.path, "/v1/metrics");
    assert_eq!(
        request.header("content-type"),
        Some("application/x-protobuf")
    );
    assert_eq!(request.header("x-tenant"), Some("cache"));
    assert_eq!(request.header("authorization"), Some("Bearer hush hush"));
    let resource = request.metrics().resource_metrics.remove(0).resource;
    let attributes = resource.unwrap().attributes;
    for (name, value) in [
        ("service.name", "shop-cache"),
        ("service.instance.id", "test-node"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("k8s.pod.name", "pod-1"),
        ("host.name", "h,1"),
    ] {
        assert_eq!(attribute(&attributes, name).as_deref(), Some(value));
    }
    assert!(attribute(&attributes, "process.pid").is_some());
    let mut names: Vec<_> = attributes.iter().map(|one| &one.key).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), attributes.len(), "each once");
}

#[test]
fn a_collector_over_https_is_trusted_by_its_authority_only() {
    let authority = Authority::new("an authority");
    let server = authority.server(&["127.0.0.1"]);
    let key = PrivateKeyDer::from_pem_slice(server.key.as_bytes()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![server.der()], key)
        .unwrap();
    let collector = Collector::over_tls(config);
    let folder = files::Folder::new();
    let path = folder.file("ca.pem", &authority.pem());
    let certificate = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    let trusting = [NO_TRACES, (certificate, &*path)];
    let _node = Node::start(&env(&collector.endpoint(), &trusting));
    collector.metrics_until("metrics arrive", |metrics| !metrics.is_empty());

    let other = Authority::new("another authority");
    let path = folder.file("other.pem", &other.pem());
    let distrusting = [NO_TRACES, (certificate, &*path)];
    let node = Node::start(&env(&collector.endpoint(), &distrusting));
    assert!(node.has_logged_soon("telemetry cannot be exported"));
    assert!(node.has_logged("TLS: "), "the log says why");
}

// Spans.

#[test]
fn nothing_is_exported_unless_it_is_asked_for() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    for env in [
        vec![(SAMPLER, "always_on")],
        vec![(ENDPOINT, &*endpoint), ("OTEL_SDK_DISABLED", "true")],
        vec![(ENDPOINT, &*endpoint), NO_METRICS, NO_TRACES],
    ] {
        let mut node = Node::start(&[SOON, &*env].concat());
        let mut client = node.connect();
        client.request("GET", "/v1/cache/k", &traceparent(true), b"");
        assert!(!node.has_logged("telemetry"), "{env:?}");
        // What is left to export would be exported now.
        node.signal(libc::SIGTERM);
        assert!(node.wait().success());
    }
    assert_eq!(collector.connections(), 0);
}

#[test]
fn a_request_is_a_part_of_the_callers_trace() {
    let collector = Collector::start();
    let off = [NO_METRICS, (SAMPLER, "parentbased_always_off")];
    let node = Node::start(&env(&collector.endpoint(), &off));
    let mut client = node.connect();
    let value = vec![b'v'; 123];
    let sampled = traceparent(true);
    assert_eq!(
        client
            .request("PUT", "/v1/cache/key", &sampled, &value)
            .status,
        200
    );
    assert_eq!(
        client.request("GET", "/v1/cache/key", &sampled, b"").status,
        200
    );
    assert_eq!(
        client
            .request("GET", "/v1/cache/other", &sampled, b"")
            .status,
        404
    );
    let batch = br#"{"keys":["key","other"]}"#;
    let answer = client.request("POST", "/v1/cache/batch/get", &sampled, batch);
    assert_eq!(answer.status, 200);
    let answer = client.request("GET", "/v1/cache/keys", &sampled, b"");
    assert_eq!(answer.status, 200);
    let spans = collector.spans_until("five spans arrive", |spans| spans.len() >= 5);
    assert_eq!(spans.len(), 5);
    for span in &spans {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert_eq!(hex(&span.parent_span_id), PARENT);
        assert_eq!(span.kind, SpanKind::Server as i32);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        assert!(span.status.is_none());
    }
    let put = only(&spans, "PUT /v1/cache/{key}");
    for (name, value) in [
        ("http.request.method", "PUT"),
        ("http.route", "/v1/cache/{key}"),
        ("http.response.status_code", "200"),
        ("hypercache.operation", "put"),
        ("hypercache.key_bytes", "3"),
        ("hypercache.value_bytes", "123"),
    ] {
        assert_eq!(attribute(&put.attributes, name).as_deref(), Some(value));
    }
    let via = attribute(&put.attributes, "hypercache.via").unwrap();
    assert!(["local", "remote"].contains(&&*via), "{via}");
    let gets = named(&spans, "GET /v1/cache/{key}");
    let said = |name: &str| {
        let mut all: Vec<_> = gets
            .iter()
            .map(|get| attribute(&get.attributes, name))
            .collect();
        all.sort();
        all
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        said("http.response.status_code"),
        [text("200"), text("404")]
    );
    assert_eq!(said("hypercache.value_bytes"), [None, text("123")]);
    assert_eq!(said("hypercache.key_bytes"), [text("3"), text("5")]);
    let batch = only(&spans, "POST /v1/cache/batch/get");
    let operation = attribute(&batch.attributes, "hypercache.operation");
    assert_eq!(operation.as_deref(), Some("batch_get"));
    only(&spans, "GET /v1/cache/keys");
}

#[test]
fn pipelined_requests_are_told_apart() {
    let collector = Collector::start();
    let off = [NO_METRICS, (SAMPLER, "parentbased_always_off")];
    let node = Node::start(&env(&collector.endpoint(), &off));
    let mut client = node.connect();
    for number in 1..=20 {
        let value = vec![b'v'; number];
        assert_eq!(
            client
                .put(&format!("/v1/cache/{number:020}"), &value)
                .status,
            200
        );
    }
    let mut all = Vec::new();
    for number in 1..=20 {
        let headers = traceparent(number % 2 == 0);
        let key = format!("/v1/cache/{number:020}");
        all.extend(node::request("GET", &key, &headers, b""));
    }
    client.send(all);
    for number in 1..=20 {
        assert_eq!(client.answer().body.len(), number);
    }
    let spans = collector.spans_until("the spans arrive", |spans| spans.len() >= 10);
    let bytes = |span: &Span| {
        let bytes = attribute(&span.attributes, "hypercache.value_bytes");
        bytes.unwrap().parse::<usize>().unwrap()
    };
    let mut lengths: Vec<usize> = spans.iter().map(bytes).collect();
    lengths.sort_unstable();
    let sampled: Vec<usize> = (1..=20).filter(|number| number % 2 == 0).collect();
    assert_eq!(lengths, sampled);
}

#[test]
fn a_request_that_is_not_let_in_is_told_too() {
    let collector = Collector::start();
    let off = [
        NO_METRICS,
        (SAMPLER, "parentbased_always_on"),
        ("HYPERCACHE_AUTH_TOKEN", "let-me-in"),
    ];
    let node = Node::start(&env(&collector.endpoint(), &off));
    let mut client = node.connect();
    // By the sampler, not by what a stranger says.
    let answer = client.request("GET", "/v1/cache/key", &traceparent(false), b"");
    assert_eq!(answer.status, 401);
    let spans = collector.spans_until("the span arrives", |spans| !spans.is_empty());
    let status = attribute(&spans[0].attributes, "http.response.status_code");
    assert_eq!(status.as_deref(), Some("401"));
}

#[test]
fn the_sampler_decides_about_requests_that_have_no_parent() {
    for (ratio, expected) in [("0", 0), ("1", 8)] {
        let collector = Collector::start();
        let node = Node::start(&env(
            &collector.endpoint(),
            &[
                NO_METRICS,
                (SAMPLER, "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", ratio),
            ],
        ));
        let mut client = node.connect();
        for _ in 0..8 {
            client.get("/v1/cache/k");
        }
        // A parent that is not recorded is not, whatever the ratio; one that is comes last.
        for sampled in [false, true] {
            client.request("GET", "/v1/cache/k", &traceparent(sampled), b"");
        }
        let spans = collector.spans_until("the last one arrives", |spans| {
            spans.iter().any(|span| hex(&span.trace_id) == TRACE)
        });
        assert_eq!(spans.len(), expected + 1, "{ratio}");
        let mut traces: Vec<_> = spans.iter().map(|span| hex(&span.trace_id)).collect();
        traces.sort();
        traces.dedup();
        assert_eq!(traces.len(), expected + 1, "each is a trace of its own");
    }
}

/// Nodes of a cluster that record what they are told to, on so many cores.
fn recording(count: usize, collector: &Collector, more: &[(&str, &str)]) -> Cluster {
    let mut settings = vec![NO_METRICS, (SAMPLER, "parentbased_always_off")];
    settings.extend(more);
    Cluster::start(count, &env(&collector.endpoint(), &settings))
}

fn attribute_of(span: &Span, name: &str) -> String {
    attribute(&span.attributes, name).unwrap_or_else(|| panic!("{name}: {span:?}"))
}

#[test]
fn a_trace_goes_from_the_caller_through_one_node_into_another() {
    for cores in ["1", "2"] {
        let collector = Collector::start();
        let cluster = recording(2, &collector, &[("HYPERCACHE_CORES", cores)]);
        let mut client = cluster.connect(0);
        let headers = format!("{}X-Cache-Consistency: ALL\r\n", traceparent(true));
        let answer = client.request("PUT", "/v1/cache/key", &headers, b"value");
        assert_eq!(answer.status, 200);
        let spans = collector.spans_until("all three arrive", |spans| {
            spans.iter().any(|span| span.name.starts_with("PUT"))
                && !named(spans, "peer.call").is_empty()
                && !named(spans, "peer.serve").is_empty()
        });
        let request = only(&spans, "PUT /v1/cache/{key}");
        let call = only(&spans, "peer.call");
        let served = only(&spans, "peer.serve");
        for (span, parent) in [
            (request, PARENT.to_owned()),
            (call, hex(&request.span_id)),
            (served, hex(&call.span_id)),
        ] {
            assert_eq!(hex(&span.trace_id), TRACE, "{span:?}");
            assert_eq!(hex(&span.parent_span_id), parent, "{span:?}");
        }
        assert_eq!(attribute_of(request, "hypercache.via"), "forwarded");
        assert_eq!(call.kind, SpanKind::Client as i32);
        assert_eq!(attribute_of(call, "hypercache.peer"), "node-1");
        assert_eq!(attribute_of(call, "hypercache.lane"), "data");
        assert_eq!(attribute_of(call, "hypercache.operations"), "1");
        assert_eq!(served.kind, SpanKind::Server as i32);
        let bytes = |span| attribute_of(span, "hypercache.bytes");
        assert_eq!(bytes(call), bytes(served));
    }
}

#[test]
fn what_its_caller_does_not_record_is_recorded_nowhere() {
    let collector = Collector::start();
    let cluster = recording(2, &collector, &[]);
    let mut client = cluster.connect(0);
    let all = "X-Cache-Consistency: ALL\r\n";
    for headers in ["", &traceparent(false)] {
        let headers = format!("{headers}{all}");
        let answer = client.request("PUT", "/v1/cache/key", &headers, b"value");
        assert_eq!(answer.status, 200);
    }
    // The nodes send what they have recorded before they end.
    let mut cluster = cluster;
    for node in 0..2 {
        let mut node = cluster.take(node);
        node.signal(libc::SIGTERM);
        assert!(node.wait().success());
    }
    assert_eq!(collector.spans(), []);
}

#[test]
fn requests_whose_operations_travel_together_are_parent_and_links() {
    let collector = Collector::start();
    let cluster = recording(2, &collector, &[]);
    let mut client = cluster.connect(0);
    let mut all = Vec::new();
    for number in 0..10 {
        let headers = format!("{}X-Cache-Consistency: ALL\r\n", traceparent(true));
        let key = format!("/v1/cache/key-{number}");
        all.extend(node::request("PUT", &key, &headers, b"value"));
    }
    client.send(all);
    for _ in 0..10 {
        assert_eq!(client.answer().status, 200);
    }
    let calls =
        |spans: &[Span]| -> Vec<Span> { named(spans, "peer.call").into_iter().cloned().collect() };
    let served = |spans: &[Span]| {
        let calls = calls(spans).into_iter();
        let counts = calls.map(|call| attribute_of(&call, "hypercache.operations"));
        counts
            .map(|count| count.parse::<usize>().unwrap())
            .sum::<usize>()
    };
    let spans = collector.spans_until("all operations have travelled", |spans| {
        served(spans) == 10 && named(spans, "PUT /v1/cache/{key}").len() == 10
    });
    let requests: HashMap<String, &Span> = named(&spans, "PUT /v1/cache/{key}")
        .into_iter()
        .map(|span| (hex(&span.span_id), span))
        .collect();
    let mut referred = Vec::new();
    for call in calls(&spans) {
        referred.push(hex(&call.parent_span_id));
        referred.extend(call.links.iter().map(|link| hex(&link.span_id)));
    }
    referred.sort();
    referred.dedup();
    assert_eq!(referred.len(), 10, "each request once");
    assert!(referred.iter().all(|span| requests.contains_key(span)));
    assert!(calls(&spans).iter().any(|call| !call.links.is_empty()));
}

#[test]
fn no_byte_of_a_key_or_a_value_is_exported() {
    const KEY: &str = "Zq7-the-key-of-somebody";
    const VALUE: &[u8] = b"Xw9-what-nobody-else-may-see";
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let mut cluster = Cluster::start(2, &env(&endpoint, &[(SAMPLER, "always_on")]));
    let mut client = cluster.connect(0);
    let path = format!("/v1/cache/{KEY}");
    let all = "X-Cache-Consistency: ALL\r\n";
    assert_eq!(client.request("PUT", &path, all, VALUE).status, 200);
    assert_eq!(client.request("GET", &path, all, b"").body, VALUE);
    let listed = client.get("/v1/cache/keys").text();
    assert!(listed.contains(KEY));
    let batch = format!(r#"{{"keys":["{KEY}"]}}"#);
    assert_eq!(client.post("/v1/cache/batch/get", &batch).status, 200);
    assert_eq!(client.get(&format!("/v1/owners/{KEY}")).status, 200);
    client
        .get(&format!("/v1/{KEY}"))
        .expect_error(404, "NOT_FOUND");
    let unknown = format!("/v1/cache/{KEY}?ttl={KEY}");
    client.put(&unknown, VALUE).expect_error(400, "BAD_REQUEST");
    assert_eq!(client.request("DELETE", &path, all, b"").status, 200);
    for node in 0..2 {
        let mut node = cluster.take(node);
        node.signal(libc::SIGTERM);
        assert!(node.wait().success());
    }
    let spans = collector.spans();
    assert!(named(&spans, "PUT /v1/cache/{key}").len() == 2, "{spans:?}");
    assert!(!named(&spans, "peer.serve").is_empty());
    let bytes = collector.bytes();
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(
        has(b"hypercache.key_bytes"),
        "the search finds what is there"
    );
    for part in [&KEY.as_bytes()[..4], &VALUE[..4]] {
        assert!(!has(part), "{part:?}");
    }
}

#[test]
fn what_a_core_does_by_itself_is_told() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let settings = [NO_METRICS, (SAMPLER, "always_on")];
    let mut cluster = Cluster::start_with_spares(2, 1, &env(&endpoint, &settings));
    let mut client = cluster.connect(0);
    for number in 0..50 {
        assert_eq!(
            client
                .put(&format!("/v1/cache/key-{number}"), b"value")
                .status,
            200
        );
    }
    cluster.node(1).signal(libc::SIGSTOP);
    cluster.await_state(0, 1, "dead");
    // With two nodes both have to take a write at QUORUM; ONE keeps a hint for the other.
    for number in 0..20 {
        let headers = "X-Cache-Consistency: ONE\r\n";
        let path = format!("/v1/cache/key-{number}");
        assert_eq!(client.request("PUT", &path, headers, b"new").status, 200);
    }
    until("hints are kept", || cluster.metric(0, "HintsKept") >= 20);
    cluster.node(1).signal(libc::SIGCONT);
    let spans = collector.spans_until("the hints are replayed", |spans| {
        let replays = named(spans, "hint.replay").into_iter();
        let taken = replays.map(|span| attribute_of(span, "hypercache.hints_taken"));
        taken
            .map(|taken| taken.parse::<u64>().unwrap())
            .sum::<u64>()
            >= 20
    });
    let replay = named(&spans, "hint.replay")[0];
    assert_eq!(attribute_of(replay, "hypercache.peer"), "node-1");
    assert!(replay.parent_span_id.is_empty());

    cluster.launch(2);
    let of_newcomer = |span: &Span, name: &str| {
        span.name == name && attribute(&span.attributes, "hypercache.keys_copied").is_some()
    };
    let spans = collector.spans_until("the third node has what it owns", |spans| {
        spans.iter().any(|span| of_newcomer(span, "bootstrap"))
            && spans.iter().any(|span| of_newcomer(span, "transfer"))
    });
    let transfer = spans
        .iter()
        .find(|span| of_newcomer(span, "transfer"))
        .unwrap();
    let sync = spans
        .iter()
        .find(|span| span.span_id == transfer.parent_span_id);
    let sync = sync.expect("a transfer is a part of a sync");
    assert_eq!(sync.name, "sync");
    assert_eq!(sync.trace_id, transfer.trace_id);
    assert_eq!(
        attribute_of(sync, "hypercache.peer"),
        attribute_of(transfer, "hypercache.peer")
    );
    assert!(
        attribute_of(sync, "hypercache.partitions")
            .parse::<u64>()
            .unwrap()
            > 0
    );
}

// Collectors that do not behave.

#[test]
fn what_a_collector_cannot_take_now_is_sent_again() {
    for status in [503, 429, 502, 504] {
        let collector = Collector::start();
        collector.answer_next(status, "");
        let off = [NO_METRICS, (SAMPLER, "parentbased_always_off")];
        let node = Node::start(&env(&collector.endpoint(), &off));
        let mut client = node.connect();
        client.request("GET", "/v1/cache/k", &traceparent(true), b"");
        let spans = collector.spans_until("the span is taken", |spans| !spans.is_empty());
        assert_eq!(spans.len(), 1);
        let received = collector.received();
        let answers: Vec<u16> = received.iter().map(|one| one.answered).collect();
        assert_eq!(answers, [status, 200]);
        assert_eq!(received[0].body, received[1].body);
        until("both are counted", || {
            series(&node, "hypercache_otlp_exports_total") == 1
                && series(&node, "hypercache_otlp_export_failures_total") == 1
                && series(&node, "hypercache_spans_exported_total") == 1
        });
        assert_eq!(series(&node, "hypercache_spans_dropped_total"), 0);
        assert!(node.has_logged_soon("telemetry is exported again"));
    }
}

#[test]
fn what_a_collector_does_not_want_is_given_up() {
    let collector = Collector::start();
    collector.answer_next(400, "");
    let off = [NO_METRICS, (SAMPLER, "parentbased_always_off")];
    let node = Node::start(&env(&collector.endpoint(), &off));
    let mut client = node.connect();
    client.request("GET", "/v1/cache/k", &traceparent(true), b"");
    until("the span is given up", || {
        series(&node, "hypercache_spans_dropped_total") == 1
    });
    client.request("GET", "/v1/cache/k", &traceparent(true), b"");
    let spans = collector.spans_until("the next is taken", |spans| !spans.is_empty());
    assert_eq!((spans.len(), collector.received().len()), (1, 2));
}

#[test]
fn a_part_that_is_rejected_is_counted_and_told_once() {
    let collector = Collector::start();
    collector.reject_spans(1);
    let off = [NO_METRICS, (SAMPLER, "parentbased_always_off")];
    let mut node = Node::start(&env(&collector.endpoint(), &off));
    let mut client = node.connect();
    for expected in 1..=2 {
        client.request("GET", "/v1/cache/k", &traceparent(true), b"");
        until("the span is counted", || {
            series(&node, "hypercache_spans_dropped_total") == expected
        });
    }
    assert_eq!(series(&node, "hypercache_spans_exported_total"), 0);
    node.signal(libc::SIGTERM);
    assert!(node.wait().success());
    assert!(node.has_logged_soon("stopped"));
    assert_eq!(node.times_logged("too many for me"), 1);
}

#[test]
fn a_collector_that_never_answers_costs_spans_and_nothing_else() {
    let collector = Collector::hanging();
    let mut node = Node::start(&env(
        &collector.endpoint(),
        &[
            (SAMPLER, "always_on"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),
            // No answer is ever late.
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000"),
        ],
    ));
    collector.until("it has a request", |received| !received.is_empty());
    let mut client = node.connect();
    for number in 0..200 {
        let path = format!("/v1/cache/{number}");
        assert_eq!(client.put(&path, b"value").status, 200);
        assert_eq!(client.get(&path).body, b"value");
    }
    // Sixteen wait, and as many may be on their way.
    until("the others are counted", || {
        series(&node, "hypercache_spans_dropped_total") >= 400 - 32
    });
    assert_eq!(series(&node, "hypercache_spans_exported_total"), 0);
    node.signal(libc::SIGTERM);
    assert!(node.wait().success());
    assert!(node.has_logged_soon("the last telemetry could not be exported in time"));
}

#[test]
fn a_failure_is_told_when_it_changes() {
    let collector = Collector::start();
    for _ in 0..3 {
        collector.answer_next(503, "Retry-After: 0\r\n");
    }
    collector.answer_next(500, "");
    let mut node = Node::start(&env(&collector.endpoint(), &[NO_TRACES]));
    let received = collector.until("it is taken at last", |received| received.len() >= 5);
    let answers: Vec<u16> = received.iter().map(|one| one.answered).take(5).collect();
    assert_eq!(answers, [503, 503, 503, 500, 200]);
    assert!(node.has_logged_soon("telemetry is exported again"));
    node.signal(libc::SIGTERM);
    assert!(node.wait().success());
    assert!(node.has_logged_soon("stopped"));
    assert_eq!(node.times_logged("telemetry cannot be exported"), 2);
    assert_eq!(node.times_logged("it answers 503"), 1);
}

#[test]
fn spans_that_wait_when_a_node_stops_are_sent() {
    let collector = Collector::start();
    let later = [
        NO_METRICS,
        (SAMPLER, "parentbased_always_off"),
        ("OTEL_BSP_SCHEDULE_DELAY", "86400000"),
    ];
    let mut node = Node::start(&env(&collector.endpoint(), &later));
    let mut client = node.connect();
    client.request("GET", "/v1/cache/k", &traceparent(true), b"");
    drop(client);
    node.signal(libc::SIGTERM);
    assert!(node.wait().success());
    assert_eq!(collector.spans().len(), 1);
}

#[test]
fn a_full_batch_is_sent_before_its_time() {
    let collector = Collector::start();
    let later = [
        NO_METRICS,
        (SAMPLER, "always_on"),
        ("OTEL_BSP_SCHEDULE_DELAY", "86400000"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10"),
    ];
    let node = Node::start(&env(&collector.endpoint(), &later));
    let mut client = node.connect();
    for _ in 0..10 {
        client.get("/v1/cache/k");
    }
    let spans = collector.spans_until("the batch arrives", |spans| !spans.is_empty());
    assert_eq!(spans.len(), 10);
}

// Settings.

#[test]
fn a_variable_that_cannot_be_meant_stops_the_start_in_one_line() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
    ] {
        for check in [false, true] {
            let mut command = command(&[(ENDPOINT, "http://127.0.0.1:9"), (name, value)]);
            if check {
                command.arg("--check-config");
            }
            let output = run(command);
            assert!(!output.status.success(), "{name}");
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(said.contains(&format!("{name}={value}: ")), "{said}");
        }
    }
}

#[test]
fn what_the_headers_hold_is_not_told() {
    const SECRET: &str = "s3same";
    let collector = Collector::start();
    collector.answer_next(401, "");
    let headers = format!("authorization=Bearer%20{SECRET}");
    let debug = [
        NO_TRACES,
        (HEADERS, &*headers),
        ("HYPERCACHE_LOG_LEVEL", "debug"),
    ];
    let mut node = Node::start(&env(&collector.endpoint(), &debug));
    assert!(node.has_logged_soon("it answers 401"));
    for path in ["/config", "/metrics", "/dist/metrics"] {
        let answer = Client::connect(&node.mgmt).get(path);
        assert!(!answer.text().contains(SECRET), "{path}");
    }
    node.signal(libc::SIGTERM);
    assert!(node.wait().success());
    assert!(node.has_logged_soon("stopped"));
    assert!(!node.has_logged(SECRET));
    assert!(
        collector
            .bytes()
            .windows(6)
            .any(|part| part == SECRET.as_bytes())
    );

    let output = run(command(&[
        (HEADERS, SECRET),
        (ENDPOINT, "http://127.0.0.1:9"),
    ]));
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(HEADERS) && !said.contains(SECRET), "{said}");
}

#[test]
fn the_page_lists_every_variable_with_its_default_and_every_attribute() {
    let page = include_str!("../docs/observability.md");
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    for variable in hypercache::telemetry::otlp::config::VARIABLES {
        let mut of_it = rows
            .iter()
            .filter(|row| row.contains(&format!("`{}`", variable.name)));
        let row = of_it.next().unwrap_or_else(|| panic!("{}", variable.name));
        let default = row.split('|').nth(2).unwrap().trim();
        assert_eq!(
            default.trim_matches('`'),
            variable.default,
            "{}",
            variable.name
        );
    }
    let sources = [
        include_str!("../src/telemetry/otlp/spans.rs"),
        include_str!("../src/node/recording.rs"),
    ];
    let literals = sources
        .iter()
        .flat_map(|source| source.split('"').skip(1).step_by(2));
    let attributes: Vec<&str> = literals
        .filter(|text| text.starts_with("hypercache.") || text.starts_with("http."))
        .collect();
    assert!(attributes.len() > 15, "{attributes:?}");
    for attribute in attributes {
        assert!(page.contains(&format!("`{attribute}`")), "{attribute}");
    }
}

#[test]
fn the_help_says_that_they_are_read() {
    let mut command = command(&[]);
    command.arg("--help");
    let output = run(command);
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("OTEL_"), "{help}");
}
