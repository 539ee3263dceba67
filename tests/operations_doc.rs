//! What docs/operations.md and docs/security.md name exists: metrics, settings, log lines.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/node.rs"]
mod node;

use std::fs;
use std::path::Path;

use cluster::{Cluster, MANAGEMENT};
use node::{Client, command};

const PAGE: &str = include_str!("../docs/operations.md");
const SECURITY: &str = include_str!("../docs/security.md");

/// What stands between backticks, line breaks as spaces.
fn quoted(page: &str) -> Vec<String> {
    let parts = page.split('`').skip(1).step_by(2);
    let words = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    parts.map(words).collect()
}

fn is_field(word: &str) -> bool {
    let starts = word.starts_with(|c: char| c.is_ascii_uppercase());
    let mixed = word.chars().any(|c| c.is_ascii_lowercase());
    starts && mixed && word.chars().all(|c| c.is_ascii_alphanumeric()) && word != "CamelCase"
}

fn source_under(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_under(&path, text);
        } else {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_metric_that_the_page_names_exists() {
    let cluster = Cluster::start(1, &[]);
    let address = cluster.address(0, MANAGEMENT);
    let metrics = Client::connect(&address).get("/dist/metrics").json();
    let named: Vec<String> = quoted(PAGE)
        .into_iter()
        .filter(|word| is_field(word))
        .collect();
    assert!(named.len() > 30, "the page is read: {named:?}");
    for name in named {
        assert!(!metrics[&*name].is_null(), "{name}");
    }
}

#[test]
fn every_series_that_the_pages_name_exists() {
    let cluster = Cluster::start(1, &[]);
    let address = cluster.address(0, MANAGEMENT);
    let metrics = Client::connect(&address).get("/metrics").text();
    let mut named = quoted(PAGE);
    named.extend(quoted(SECURITY));
    named.retain(|word| word.starts_with("hypercache_"));
    assert!(named.len() > 15, "the pages are read: {named:?}");
    for name in named {
        let found = metrics.lines().any(|line| {
            let rest = line.strip_prefix(&*name);
            let rest = rest.map(|rest| rest.strip_prefix("_total").unwrap_or(rest));
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        assert!(found, "{name}");
    }
}

#[test]
fn every_setting_and_route_that_the_page_names_exists() {
    let help = command(&[]).arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let words = quoted(PAGE);
    let both = [&words[..], &quoted(SECURITY)].concat();
    let settings = both.iter().filter(|word| word.starts_with("HYPERCACHE_"));
    assert!(settings.clone().count() > 5);
    for setting in settings {
        let name = setting.split('=').next().unwrap();
        assert!(help.contains(name), "{setting}");
    }
    let cluster = Cluster::start(1, &[]);
    let mut management = Client::connect(&cluster.address(0, MANAGEMENT));
    for word in words.iter().filter_map(|word| word.strip_prefix("GET ")) {
        assert_eq!(management.get(word).status, 200, "{word}");
    }
}

#[test]
fn every_log_line_that_the_page_lists_is_one_that_the_node_writes() {
    let mut source = String::new();
    source_under(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut source,
    );
    let (_, table) = PAGE.split_once("## Log lines").unwrap();
    let lines: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(line, _)| line)
        .collect();
    assert!(lines.len() > 10);
    for line in lines {
        assert!(source.contains(&format!("\"{line}\"")), "{line}");
    }
}
