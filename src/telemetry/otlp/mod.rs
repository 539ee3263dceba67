//! OpenTelemetry: metrics and spans to a collector, by OTLP over HTTP.
//!
//! * [`config`]: what the standard variables ask for.
//! * [`metrics`], [`spans`]: the messages, made of what there is here anyway.
//! * [`client`]: one request to a collector and what its answer means.
//! * [`exporter`]: the thread that sends them.
//!
//! Nothing here runs on a core, and no core waits for it: cores count as ever, and leave
//! spans in a bounded queue ([`super::trace`]). A collector that is slow or gone costs
//! spans, which are counted, and nothing else.

pub mod client;
pub mod config;
pub mod exporter;
pub mod metrics;
pub mod spans;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

pub use config::Config;
pub use exporter::{Exporter, Handle};

/// An attribute whose value is text.
fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

/// An attribute whose value is a number.
fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(value.try_into().unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Who tells.
fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "hypercache".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// About what: this node, and what the environment says of it, which wins.
fn resource(node_id: &str, given: &[(String, String)]) -> Resource {
    let host = rustix::system::uname();
    let own = [
        text("service.name", "hypercache"),
        text("service.instance.id", node_id),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("host.name", host.nodename().to_string_lossy()),
        number("process.pid", std::process::id().into()),
    ];
    let is_given = |own: &KeyValue| given.iter().any(|(name, _)| *name == own.key);
    let own = own.into_iter().filter(|own| !is_given(own));
    let given = given.iter().map(|(name, value)| text(name, value));
    Resource {
        attributes: own.chain(given).collect(),
        ..Resource::default()
    }
}
