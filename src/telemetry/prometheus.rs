//! Metrics as text for Prometheus: OpenMetrics 1.0 for those that ask for it, else the
//! older text format 0.0.4.
//!
//! Everything comes from [`METRICS`]; numbers are read when scraped.

use std::fmt::{self, Write};
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit as ClientUnit};

use super::histogram::Counts;
use super::metric::{Kind, Metric, Unit, Value};
use super::snapshot::{Snapshot, Sources};
use super::table::METRICS;

/// How many buckets of a histogram a power of two has here.
const BUCKETS_PER_OCTAVE: usize = 2;

/// The shortest and the longest duration told apart here, in nanoseconds.
const SHORTEST_NS: u64 = 1 << 10;
const LONGEST_NS: u64 = 1 << 34;

/// In which of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The older one, which anything can read.
    Text,
    /// Its successor.
    OpenMetrics,
}

impl Format {
    /// What the `Accept` header of a scraper asks for: the one it prefers, and the older
    /// one where it does not say.
    pub fn accepted(accept: Option<&[u8]>) -> Self {
        let text = accept.map(String::from_utf8_lossy).unwrap_or_default();
        let (mut open_metrics, mut older) = (0.0, 0.0);
        for range in text.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0_f32, "");
            for parameter in parts {
                match parameter.split_once('=') {
                    Some(("q", value)) => quality = value.trim().parse().unwrap_or(0.0),
                    Some(("version", value)) => version = value.trim().trim_matches('"'),
                    _ => {}
                }
            }
            match &*media {
                "application/openmetrics-text" if matches!(version, "" | "1.0.0" | "0.0.1") => {
                    open_metrics = quality.max(open_metrics);
                }
                "text/plain" | "text/*" | "*/*" => older = quality.max(older),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= older {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// The content type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Renders the metrics of a node.
#[derive(Debug)]
pub struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// What these sources count.
    pub fn new(sources: Arc<Sources>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(NodeCollector(sources)));
        Self { registry }
    }

    /// The metrics now.
    ///
    /// # Errors
    ///
    /// When the encoder fails; it writes to memory, so it does not.
    pub fn render(&self, format: Format) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        match format {
            Format::OpenMetrics => Ok(text),
            Format::Text => older(&text),
        }
    }
}

/// The same in the older format: there, families of counters and of facts are named like
/// their series, units are not told, and nothing marks the end.
fn older(text: &str) -> Result<String, fmt::Error> {
    let types = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types: std::collections::HashMap<&str, &str> = types.collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let described = ["# HELP ", "# TYPE "]
            .into_iter()
            .find_map(|what| Some((what, line.strip_prefix(what)?.split_once(' ')?)));
        match described {
            Some((what, (family, rest))) => {
                let (suffix, kind) = match types.get(family) {
                    Some(&"counter") => ("_total", "counter"),
                    Some(&"info") => ("_info", "gauge"),
                    Some(&kind) => ("", kind),
                    None => ("", rest),
                };
                let rest = if what == "# TYPE " { kind } else { rest };
                writeln!(out, "{what}{family}{suffix} {rest}")?;
            }
            None if line.starts_with("# ") => {}
            None => writeln!(out, "{line}")?,
        }
    }
    Ok(out)
}

#[derive(Debug)]
struct NodeCollector(Arc<Sources>);

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.0.snapshot();
        for metric in METRICS {
            encode(metric, &snapshot, &mut encoder)?;
        }
        Ok(())
    }
}

fn encode(
    metric: &Metric,
    snapshot: &Snapshot,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), fmt::Error> {
    let unit = match metric.unit {
        Unit::None => None,
        Unit::Bytes => Some(ClientUnit::Bytes),
        _ => Some(ClientUnit::Seconds),
    };
    let kind = match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Info => MetricType::Info,
    };
    let name = metric.prometheus_family();
    let mut family = encoder.encode_descriptor(&name, metric.help, unit.as_ref(), kind)?;
    for point in metric.points(snapshot) {
        if metric.kind == Kind::Info {
            let labels: Vec<(&str, &str)> = labels(&point.labels);
            family.encode_info(&labels.as_slice())?;
        } else if point.labels.is_empty() {
            encode_value(metric, &point.value, &mut family)?;
        } else {
            let labels = labels(&point.labels);
            let labels = labels.as_slice();
            encode_value(metric, &point.value, &mut family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn labels<'a>(
    labels: &'a [(&'static str, std::borrow::Cow<'static, str>)],
) -> Vec<(&'a str, &'a str)> {
    labels
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect()
}

fn encode_value(
    metric: &Metric,
    value: &Value,
    encoder: &mut MetricEncoder<'_>,
) -> Result<(), fmt::Error> {
    match value {
        Value::Histogram(counts) => {
            let (sum, buckets) = in_seconds(counts);
            encoder.encode_histogram::<NoLabelSet>(sum, counts.count(), &buckets, None)
        }
        Value::Number(number) => {
            let divisor = metric.unit.per_base();
            let whole = divisor == 1.0;
            let scaled = *number as f64 / divisor;
            match (metric.kind, whole) {
                (Kind::Counter, true) => encoder.encode_counter::<NoLabelSet, _, u64>(number, None),
                (Kind::Counter, false) => {
                    encoder.encode_counter::<NoLabelSet, _, u64>(&scaled, None)
                }
                (_, true) => encoder.encode_gauge(number),
                (_, false) => encoder.encode_gauge(&scaled),
            }
        }
    }
}

/// A histogram's sum and buckets, as many as a scraper should keep.
pub(super) fn in_seconds(counts: &Counts) -> (f64, Vec<(f64, u64)>) {
    let mut buckets = Vec::new();
    let mut below = 0;
    for (bound, count) in counts.coarser(BUCKETS_PER_OCTAVE) {
        below += count;
        match bound {
            Some(bound) if bound < SHORTEST_NS => {}
            Some(bound) if bound <= LONGEST_NS => {
                buckets.push((bound as f64 / 1e9, std::mem::take(&mut below)));
            }
            _ => {}
        }
    }
    buckets.push((f64::INFINITY, below));
    (counts.sum_ns() as f64 / 1e9, buckets)
}
