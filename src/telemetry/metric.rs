//! What a metric is: its name, its meaning, and where its numbers are.
//!
//! A metric has one name, in the style of OpenTelemetry (`dist.members.alive`); how it is
//! called elsewhere follows from that, its kind and its unit. The list is
//! [`METRICS`](super::table::METRICS).

use std::borrow::Cow;

use super::histogram::Counts;
use super::snapshot::{CoreCounts, Snapshot};

/// What numbers of a metric do over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They only grow, until the process ends.
    Counter,
    /// They come and go.
    Gauge,
    /// Durations, counted by their length.
    Histogram,
    /// Facts as labels of a constant 1.
    Info,
}

/// What a metric's numbers count, where they are not just many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Just many.
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Milliseconds here; seconds in Prometheus, which knows base units only.
    Milliseconds,
    /// The same of microseconds.
    Microseconds,
    /// The same of nanoseconds.
    Nanoseconds,
}

impl Unit {
    /// How many of it make one of the base unit.
    pub fn per_base(self) -> f64 {
        match self {
            Self::None | Self::Bytes | Self::Seconds => 1.0,
            Self::Milliseconds => 1e3,
            Self::Microseconds => 1e6,
            Self::Nanoseconds => 1e9,
        }
    }

    /// Its UCUM code, as OpenTelemetry has it.
    pub fn ucum(self) -> &'static str {
        match self {
            // Not "1", which collectors take for a ratio.
            Self::None => "",
            Self::Bytes => "By",
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::Microseconds => "us",
            Self::Nanoseconds => "ns",
        }
    }

    /// Its base unit as Prometheus puts it behind a name.
    pub fn base_name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Bytes => Some("bytes"),
            _ => Some("seconds"),
        }
    }

    /// How it may end a metric's name, where Prometheus puts the base unit instead.
    fn suffix(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Bytes => Some("bytes"),
            Self::Seconds => Some("seconds"),
            Self::Milliseconds => Some("ms"),
            Self::Microseconds => Some("us"),
            Self::Nanoseconds => Some("ns"),
        }
    }
}

/// Where the numbers of a metric come from.
#[derive(Clone, Copy)]
pub enum Read {
    /// Each core has one; the label `core` tells which.
    PerCore(fn(&CoreCounts) -> u64),
    /// The sum over the cores.
    Sum(fn(&CoreCounts) -> u64),
    /// The greatest of the cores.
    Max(fn(&CoreCounts) -> u64),
    /// The node has one.
    Node(fn(&Snapshot) -> u64),
    /// Several that labels tell apart.
    Points(fn(&Snapshot) -> Vec<Point>),
}

/// One metric. See the module's comment.
pub struct Metric {
    /// Its name: words with underscores, parts with dots.
    pub name: &'static str,
    /// What it means, in a few words without a full stop.
    pub help: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// How it behaves.
    pub kind: Kind,
    /// Its field in `/dist/metrics`, if it has one there.
    pub field: Option<&'static str>,
    /// Where its numbers are.
    pub read: Read,
}

/// A number at one moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter, a gauge or, always 1, of facts.
    Number(u64),
    /// Of a histogram.
    Histogram(Counts),
}

/// What tells a point from others of its metric.
pub type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// A metric's number, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Which.
    pub labels: Labels,
    /// The number.
    pub value: Value,
}

impl Point {
    /// The only point of its metric.
    pub fn only(number: u64) -> Self {
        Self {
            labels: Labels::new(),
            value: Value::Number(number),
        }
    }

    /// Facts.
    pub fn info(labels: Labels) -> Self {
        Self {
            labels,
            value: Value::Number(1),
        }
    }
}

impl Metric {
    /// Its numbers.
    pub fn points(&self, snapshot: &Snapshot) -> Vec<Point> {
        match self.read {
            Read::PerCore(read) => {
                let cores = snapshot.cores.iter().enumerate();
                let point = |(core, counts): (usize, &CoreCounts)| Point {
                    labels: vec![("core", core.to_string().into())],
                    value: Value::Number(read(counts)),
                };
                cores.map(point).collect()
            }
            Read::Points(read) => read(snapshot),
            Read::Sum(_) | Read::Max(_) | Read::Node(_) => vec![Point::only(self.total(snapshot))],
        }
    }

    /// Its numbers as one.
    pub fn total(&self, snapshot: &Snapshot) -> u64 {
        match self.read {
            Read::PerCore(read) | Read::Sum(read) => snapshot.cores.iter().map(read).sum(),
            Read::Max(read) => snapshot.cores.iter().map(read).max().unwrap_or(0),
            Read::Node(read) => read(snapshot),
            Read::Points(read) => {
                let numbers = read(snapshot).into_iter().map(|point| match point.value {
                    Value::Number(number) => number,
                    Value::Histogram(counts) => counts.count(),
                });
                numbers.sum()
            }
        }
    }

    /// Its name to OpenTelemetry: what belongs to the cluster stands for itself, all else
    /// is told to be ours.
    pub fn otel_name(&self) -> Cow<'static, str> {
        if self.name.starts_with("dist.") || self.name.starts_with("process.") {
            Cow::Borrowed(self.name)
        } else {
            Cow::Owned(format!("hypercache.{}", self.name))
        }
    }

    /// Its name to Prometheus without what follows it there: the unit and, except for
    /// gauges and histograms, `_total` or `_info`.
    pub fn prometheus_family(&self) -> String {
        let suffix = self.unit.suffix();
        let stem = suffix.and_then(|suffix| self.name.strip_suffix(suffix));
        let stem = stem.and_then(|stem| stem.strip_suffix(['_', '.']));
        let stem = stem.unwrap_or(self.name).replace('.', "_");
        if self.name.starts_with("process.") {
            stem
        } else {
            format!("hypercache_{stem}")
        }
    }

    /// Its name to Prometheus, whole. The series of a histogram add to it.
    pub fn prometheus_name(&self) -> String {
        let mut name = self.prometheus_family();
        if let Some(unit) = self.unit.base_name() {
            name.push('_');
            name.push_str(unit);
        }
        match self.kind {
            Kind::Counter => name.push_str("_total"),
            Kind::Info => name.push_str("_info"),
            Kind::Gauge | Kind::Histogram => {}
        }
        name
    }
}
