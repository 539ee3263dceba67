//! The metrics of a node as OTLP has them: every [`METRICS`] entry under its
//! OpenTelemetry name and unit, counted since the process started.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1 as proto;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::{scope, text};
use crate::telemetry::histogram::Counts;
use crate::telemetry::metric::{Kind, Metric, Point, Value};
use crate::telemetry::prometheus;
use crate::telemetry::snapshot::Snapshot;
use crate::telemetry::table::METRICS;

const CUMULATIVE: i32 = proto::AggregationTemporality::Cumulative as i32;

/// When what is told was counted, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Period {
    /// Since when.
    pub since_ns: u64,
    /// Until when.
    pub until_ns: u64,
}

/// All metrics.
pub fn request(
    snapshot: &Snapshot,
    resource: Resource,
    period: Period,
) -> ExportMetricsServiceRequest {
    let metrics = METRICS.iter();
    let metrics = metrics.map(|metric| of(metric, metric.points(snapshot), period));
    ExportMetricsServiceRequest {
        resource_metrics: vec![proto::ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![proto::ScopeMetrics {
                scope: Some(scope()),
                metrics: metrics.collect(),
                ..proto::ScopeMetrics::default()
            }],
            ..proto::ResourceMetrics::default()
        }],
    }
}

fn of(metric: &Metric, points: Vec<Point>, period: Period) -> proto::Metric {
    let numbers = |period| {
        let numbers = points.iter().map(move |point| number(point, period));
        numbers.collect()
    };
    // A gauge is of one moment.
    let moment = Period {
        since_ns: 0,
        ..period
    };
    let data = match metric.kind {
        Kind::Gauge | Kind::Info => Data::Gauge(proto::Gauge {
            data_points: numbers(moment),
        }),
        Kind::Counter => Data::Sum(proto::Sum {
            data_points: numbers(period),
            aggregation_temporality: CUMULATIVE,
            is_monotonic: true,
        }),
        Kind::Histogram => Data::Histogram(proto::Histogram {
            data_points: points
                .iter()
                .filter_map(|point| match &point.value {
                    Value::Histogram(counts) => Some(histogram(point, counts, period)),
                    Value::Number(_) => None,
                })
                .collect(),
            aggregation_temporality: CUMULATIVE,
        }),
    };
    let unit = match metric.kind {
        Kind::Histogram => "s",
        _ => metric.unit.ucum(),
    };
    proto::Metric {
        name: metric.otel_name().into_owned(),
        description: metric.help.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..proto::Metric::default()
    }
}

fn attributes(point: &Point) -> Vec<KeyValue> {
    let labels = point.labels.iter();
    labels
        .map(|(name, value)| text(name, value.as_ref()))
        .collect()
}

fn number(point: &Point, period: Period) -> proto::NumberDataPoint {
    let value = match &point.value {
        Value::Number(number) => *number,
        Value::Histogram(counts) => counts.count(),
    };
    proto::NumberDataPoint {
        attributes: attributes(point),
        start_time_unix_nano: period.since_ns,
        time_unix_nano: period.until_ns,
        value: Some(Number::AsInt(value.try_into().unwrap_or(i64::MAX))),
        ..proto::NumberDataPoint::default()
    }
}

/// In seconds, in as many buckets as Prometheus gets.
fn histogram(point: &Point, counts: &Counts, period: Period) -> proto::HistogramDataPoint {
    let (sum, buckets) = prometheus::in_seconds(counts);
    let (mut bounds, bucket_counts): (Vec<f64>, Vec<u64>) = buckets.into_iter().unzip();
    // The last bucket has none.
    bounds.pop();
    proto::HistogramDataPoint {
        attributes: attributes(point),
        start_time_unix_nano: period.since_ns,
        time_unix_nano: period.until_ns,
        count: bucket_counts.iter().sum(),
        sum: Some(sum),
        bucket_counts,
        explicit_bounds: bounds,
        ..proto::HistogramDataPoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::histogram::Histogram;

    #[test]
    fn a_histogram_keeps_its_count_and_has_a_bucket_more_than_bounds() {
        let histogram = Histogram::default();
        for nanos in [1, 5_000, 5_000_000, u64::MAX / 2] {
            histogram.record(nanos, 1);
        }
        let mut counts = Counts::default();
        histogram.add_to(&mut counts);
        let point = Point {
            labels: vec![("operation", "get".into())],
            value: Value::Histogram(counts.clone()),
        };
        let period = Period {
            since_ns: 1,
            until_ns: 2,
        };
        let point = super::histogram(&point, &counts, period);
        assert_eq!(point.count, 4);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 4);
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert!(point.explicit_bounds.is_sorted());
        assert!(point.explicit_bounds[0] < 1e-4);
        assert_eq!(point.attributes, [text("operation", "get")]);
    }
}
