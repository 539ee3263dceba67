//! Metrics as OpenMetrics text.
//!
//! [`TABLE`] defines each per-core metric once: its name, what it means, its kind
//! and where its number is. Numbers are read when scraped; nothing is copied or
//! computed between scrapes.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::counters::{Cell, CoreCounters};
use super::security::{SecurityCounters, Shared};
use crate::buffers::Pool;

/// Facts about the process that do not change while it runs.
#[derive(Clone, Debug)]
pub struct ProcessFacts {
    /// The release.
    pub version: &'static str,
    /// The I/O driver the cores run on.
    pub driver: &'static str,
    /// Why not a better driver; empty when there is none.
    pub driver_reason: String,
    /// Data cores.
    pub cores: usize,
    /// Whether each core's thread is pinned to a CPU.
    pub pinned: bool,
    /// Why the cores were chosen as they were.
    pub cores_reason: String,
    /// Bytes the shards together may hold.
    pub memory_limit_bytes: u64,
    /// Bytes one client connection may have under way at most.
    pub connection_bytes_max: u64,
}

struct Metric {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    read: fn(&CoreCounters) -> &Cell,
}

const fn counter(
    name: &'static str,
    help: &'static str,
    read: fn(&CoreCounters) -> &Cell,
) -> Metric {
    Metric {
        name,
        help,
        unit: None,
        kind: MetricType::Counter,
        read,
    }
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    read: fn(&CoreCounters) -> &Cell,
) -> Metric {
    Metric {
        name,
        help,
        unit,
        kind: MetricType::Gauge,
        read,
    }
}

/// Every per-core metric, without the `hypercache_` in front and the `_total`
/// behind counters.
const TABLE: &[Metric] = &[
    counter("requests", "Requests handled by client listeners", |c| {
        &c.requests
    }),
    counter(
        "requests_refused",
        "Requests refused as malformed, late or over a limit",
        |c| &c.requests_refused,
    ),
    counter(
        "requests_unauthorized",
        "Requests refused for want of credentials that count",
        |c| &c.requests_unauthorized,
    ),
    counter(
        "requests_forbidden",
        "Requests refused because the caller lacks the scope",
        |c| &c.requests_forbidden,
    ),
    counter(
        "verifications_refused",
        "Requests refused because too many credentials waited to be verified",
        |c| &c.verifications_refused,
    ),
    counter(
        "handshakes",
        "TLS handshakes of clients and peers that became connections",
        |c| &c.handshakes,
    ),
    counter(
        "handshakes_failed",
        "TLS handshakes that came to no good end",
        |c| &c.handshakes_failed,
    ),
    counter(
        "handshakes_timed_out",
        "TLS handshakes that took too long",
        |c| &c.handshakes_timed_out,
    ),
    counter(
        "handshakes_refused",
        "TLS handshakes not begun because as many as may be were under way",
        |c| &c.handshakes_refused,
    ),
    counter("connections_accepted", "Client connections accepted", |c| {
        &c.connections_accepted
    }),
    counter(
        "connections_refused",
        "Client connections closed for being over the limit",
        |c| &c.connections_refused,
    ),
    gauge("connections_open", "Client connections open", None, |c| {
        &c.connections_open
    }),
    counter(
        "connections_expired",
        "Client connections cut for being too slow",
        |c| &c.connections_expired,
    ),
    counter(
        "connections_expired_idle",
        "Client connections closed for bringing no next request in time",
        |c| &c.connections_expired_idle,
    ),
    counter(
        "connections_expired_request",
        "Client connections cut because a request did not arrive whole in time",
        |c| &c.connections_expired_request,
    ),
    counter(
        "connections_expired_write",
        "Client connections cut because answers were not taken in time",
        |c| &c.connections_expired_write,
    ),
    gauge(
        "buffered",
        "What requests and answers of clients take while under way",
        Some(Unit::Bytes),
        |c| &c.buffered_bytes,
    ),
    counter(
        "requests_crowded",
        "Requests refused because too many bytes of others were under way",
        |c| &c.requests_crowded,
    ),
    counter(
        "batches_sent",
        "Batches of operations sent to other cores",
        |c| &c.batches_sent,
    ),
    counter(
        "operations_for_others",
        "Operations carried out for other cores",
        |c| &c.operations_for_others,
    ),
    counter(
        "peer_frames",
        "Frames of operations received from peers",
        |c| &c.peer_frames,
    ),
    counter(
        "peer_frames_hopped",
        "Frames of peers that went to another core than the one they reached",
        |c| &c.peer_frames_hopped,
    ),
    counter(
        "peer_connections_refused",
        "Connections of peers closed for being over the limit",
        |c| &c.peer_connections_refused,
    ),
    counter(
        "peer_connections_displaced",
        "Idle connections of peers closed to make room for others",
        |c| &c.peer_connections_displaced,
    ),
    counter(
        "peer_unauthorized",
        "Requests refused for want of the peer token",
        |c| &c.peer_unauthorized,
    ),
    gauge("items", "Live items held", None, |c| &c.items),
    gauge(
        "store",
        "Memory held by the store, overhead included",
        Some(Unit::Bytes),
        |c| &c.bytes,
    ),
    gauge("tombstones", "Tombstones held", None, |c| &c.tombstones),
    counter("gets", "Reads of keys", |c| &c.gets),
    counter("hits", "Reads of keys that found a value", |c| &c.hits),
    counter("sets", "Values written", |c| &c.sets),
    counter("removes", "Deletes", |c| &c.removes),
    counter(
        "evicted_items",
        "Items evicted to stay within the bounds",
        |c| &c.evicted,
    ),
    counter(
        "expired_items",
        "Items removed after their time had passed",
        |c| &c.expired,
    ),
    counter("values_too_large", "Values refused for their size", |c| {
        &c.too_large
    }),
    gauge(
        "tick_delay_us_max",
        "Longest delay of the housekeeping tick, in microseconds",
        None,
        |c| &c.tick_delay_us_max,
    ),
];

struct NodeMetric {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    read: fn(&SecurityCounters) -> &Shared,
}

/// What is counted for the node as a whole.
const NODE_TABLE: &[NodeMetric] = &[
    NodeMetric {
        name: "passwords_verified",
        help: "Passwords compared with a bcrypt hash",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.passwords_verified,
    },
    NodeMetric {
        name: "tokens_verified",
        help: "Identity tokens whose signature was verified",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.tokens_verified,
    },
    NodeMetric {
        name: "verifications_failed",
        help: "Passwords and identity tokens that were verified and found wrong",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.verifications_failed,
    },
    NodeMetric {
        name: "security_reloads",
        help: "Times changed credentials, policies and certificates came into force",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.reloads,
    },
    NodeMetric {
        name: "security_reload_failures",
        help: "Times they could not be taken over",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.reload_failures,
    },
    NodeMetric {
        name: "security_reload_failing",
        help: "1 while files differ from what is in force because they cannot be taken over",
        unit: None,
        kind: MetricType::Gauge,
        read: |c| &c.reload_failing,
    },
    NodeMetric {
        name: "management_connections_refused",
        help: "Management connections closed for being over the limit",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.management_connections_refused,
    },
    NodeMetric {
        name: "management_connections_displaced",
        help: "Idle management connections closed to make room for others",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.management_connections_displaced,
    },
    NodeMetric {
        name: "management_unauthorized",
        help: "Requests of the management listener refused for want of credentials that count",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.management_unauthorized,
    },
    NodeMetric {
        name: "management_forbidden",
        help: "Requests of the management listener refused because the caller lacks the scope",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.management_forbidden,
    },
    NodeMetric {
        name: "management_verifications_refused",
        help: "Those refused because too many credentials waited to be verified",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.management_verifications_refused,
    },
    NodeMetric {
        name: "management_handshakes",
        help: "TLS handshakes on the management listener that became connections",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.management_handshakes,
    },
    NodeMetric {
        name: "management_handshakes_failed",
        help: "TLS handshakes on the management listener that came to no good end",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.management_handshakes_failed,
    },
    NodeMetric {
        name: "management_handshakes_timed_out",
        help: "TLS handshakes on the management listener that took too long",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.management_handshakes_timed_out,
    },
    NodeMetric {
        name: "management_handshakes_refused",
        help: "TLS handshakes on the management listener not begun because as many as may be were under way",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.management_handshakes_refused,
    },
    NodeMetric {
        name: "oidc_fetches",
        help: "Fetches of the issuer's keys that have ended",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.oidc_fetches,
    },
    NodeMetric {
        name: "oidc_fetch_failures",
        help: "Those of them that failed",
        unit: None,
        kind: MetricType::Counter,
        read: |c| &c.oidc_fetch_failures,
    },
    NodeMetric {
        name: "oidc_keys",
        help: "Keys of the issuer in use",
        unit: None,
        kind: MetricType::Gauge,
        read: |c| &c.oidc_keys,
    },
    NodeMetric {
        name: "oidc_fetched_timestamp",
        help: "When the issuer's keys were last fetched, in seconds since 1970; 0 before they were",
        unit: Some(Unit::Seconds),
        kind: MetricType::Gauge,
        read: |c| &c.oidc_fetched_s,
    },
    NodeMetric {
        name: "certificate_expires_timestamp",
        help: "When the first certificate in use ends, in seconds since 1970; 0 without any",
        unit: Some(Unit::Seconds),
        kind: MetricType::Gauge,
        read: |c| &c.certificate_expires_s,
    },
];

/// Renders the metrics of a node.
#[derive(Debug)]
pub struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// The content type of [`Exposition::render`].
    pub const MEDIA_TYPE: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// The metrics of these cores.
    pub fn new(
        facts: ProcessFacts,
        cores: Vec<Arc<CoreCounters>>,
        security: Arc<SecurityCounters>,
        buffers: Arc<Pool>,
    ) -> Self {
        let mut registry = Registry::with_prefix("hypercache");
        registry.register_collector(Box::new(NodeCollector {
            facts,
            cores,
            security,
            buffers,
        }));
        Self { registry }
    }

    /// The metrics now.
    ///
    /// # Errors
    ///
    /// When the encoder fails; it writes to memory, so it does not.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct NodeCollector {
    facts: ProcessFacts,
    cores: Vec<Arc<CoreCounters>>,
    security: Arc<SecurityCounters>,
    buffers: Arc<Pool>,
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let facts = &self.facts;
        encoder
            .encode_descriptor("build", "The release that runs", None, MetricType::Info)?
            .encode_info(&[("version", facts.version)])?;
        encoder
            .encode_descriptor(
                "runtime_driver",
                "The I/O driver the cores run on, and why not a better one",
                None,
                MetricType::Info,
            )?
            .encode_info(&[
                ("driver", facts.driver),
                ("reason", facts.driver_reason.as_str()),
            ])?;
        encoder
            .encode_descriptor("cores", "Data cores", None, MetricType::Gauge)?
            .encode_gauge(&(facts.cores as u64))?;
        let pinned = if facts.pinned { "true" } else { "false" };
        encoder
            .encode_descriptor(
                "core_plan",
                "Whether cores are pinned to CPUs, and why",
                None,
                MetricType::Info,
            )?
            .encode_info(&[("pinned", pinned), ("reason", facts.cores_reason.as_str())])?;
        encoder
            .encode_descriptor(
                "memory_limit",
                "Memory all shards together may hold",
                Some(&Unit::Bytes),
                MetricType::Gauge,
            )?
            .encode_gauge(&facts.memory_limit_bytes)?;
        let buffers = [
            (
                "buffer_limit",
                "What requests and answers of all clients may take while under way",
                self.buffers.limit() as u64,
            ),
            (
                "buffer_taken",
                "What cores have taken of it, in chunks",
                self.buffers.taken() as u64,
            ),
            (
                "connection_buffer_max",
                "What requests and answers of one client connection may take at most",
                facts.connection_bytes_max,
            ),
        ];
        for (name, help, bytes) in buffers {
            encoder
                .encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?
                .encode_gauge(&bytes)?;
        }
        encoder
            .encode_descriptor(
                "copies_refused",
                "Values not copied between cores because too many bytes were under way",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, u64>(&(self.buffers.rations_refused() as u64), None)?;
        for metric in NODE_TABLE {
            let value = (metric.read)(&self.security).get();
            let unit = metric.unit.as_ref();
            let mut sample =
                encoder.encode_descriptor(metric.name, metric.help, unit, metric.kind)?;
            match metric.kind {
                MetricType::Counter => sample.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                _ => sample.encode_gauge(&value)?,
            }
        }
        for metric in TABLE {
            let mut family = encoder.encode_descriptor(
                metric.name,
                metric.help,
                metric.unit.as_ref(),
                metric.kind,
            )?;
            for (index, core) in self.cores.iter().enumerate() {
                let value = (metric.read)(core).get();
                let labels = [("core", index)];
                let mut sample = family.encode_family(&labels)?;
                match metric.kind {
                    MetricType::Counter => {
                        sample.encode_counter::<NoLabelSet, _, u64>(&value, None)?
                    }
                    _ => sample.encode_gauge(&value)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_and_each_core_are_named() {
        let facts = ProcessFacts {
            version: "1.2.3",
            driver: "epoll",
            driver_reason: "io_uring refused".to_owned(),
            cores: 2,
            pinned: true,
            cores_reason: "the mask is ours".to_owned(),
            memory_limit_bytes: 1024,
            connection_bytes_max: 1,
        };
        let cores = vec![
            Arc::new(CoreCounters::default()),
            Arc::new(CoreCounters::default()),
        ];
        cores[1].requests.add(3);
        let text = Exposition::new(facts, cores, Arc::default(), Pool::unlimited())
            .render()
            .unwrap();
        assert!(
            text.contains("hypercache_runtime_driver_info{driver=\"epoll\""),
            "{text}"
        );
        assert!(
            text.contains("hypercache_requests_total{core=\"1\"} 3"),
            "{text}"
        );
        assert!(
            text.contains("hypercache_memory_limit_bytes 1024"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
