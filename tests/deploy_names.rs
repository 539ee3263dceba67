//! Dashboards and alerts name metrics that exist, and runbook sections that do.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use hypercache::telemetry::metric::Kind;
use hypercache::telemetry::table::METRICS;

const ALERTS: &str = include_str!("../deploy/prometheus/alerts.yaml");
const ALERT_TESTS: &str = include_str!("../deploy/prometheus/alerts_test.yaml");
const DASHBOARD: &str = include_str!("../deploy/grafana/hypercache.json");
const OPERATIONS: &str = include_str!("../docs/operations.md");
const ON_CALL: &str = include_str!("../docs/oncall.md");

/// Every series that a scrape can bring.
fn series() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for metric in METRICS {
        let name = metric.prometheus_name();
        if metric.kind == Kind::Histogram {
            all.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        } else {
            all.insert(name);
        }
    }
    all
}

/// The words of a text that are names of ours.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("hypercache_") || word.starts_with("process_"))
        .collect()
}

#[test]
fn every_series_in_alerts_and_dashboards_exists() {
    let series = series();
    for (what, text) in [
        ("alerts", ALERTS),
        ("tests of alerts", ALERT_TESTS),
        ("dashboard", DASHBOARD),
    ] {
        let named = named(text);
        assert!(named.len() > 10, "{what} was read: {named:?}");
        for name in named {
            assert!(series.contains(name), "{what}: {name}");
        }
    }
}

#[test]
fn every_alert_leads_to_a_section_that_exists() {
    let anchor = |heading: &str| heading.trim().to_lowercase().replace(' ', "-");
    let sections: BTreeSet<String> = OPERATIONS
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(anchor)
        .collect();
    let runbooks = ALERTS.lines().filter_map(|line| {
        let place = line.trim().strip_prefix("runbook: ")?;
        Some(place.strip_prefix("docs/operations.md#").expect(place))
    });
    let runbooks: Vec<&str> = runbooks.collect();
    let alerts = ALERTS.matches("- alert: ").count();
    assert_eq!(runbooks.len(), alerts, "each has one");
    for section in runbooks {
        assert!(sections.contains(section), "{section}: {sections:?}");
    }
}

#[test]
fn every_alert_is_tested_and_is_in_the_page_for_who_is_on_call() {
    for alert in ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(ALERT_TESTS.contains(alert), "{alert} has no test");
        assert!(
            ON_CALL.contains(&format!("`{alert}`")),
            "{alert} is on no page"
        );
    }
}
