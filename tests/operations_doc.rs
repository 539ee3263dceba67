//! What the pages for operators name exists: metrics, settings, routes, log lines. And every
//! log line that the node writes is on the page for who is on call.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/node.rs"]
mod node;

use std::fs;
use std::path::Path;

use cluster::{Cluster, MANAGEMENT};
use hypercache::mgmt::routes::ENDPOINTS;
use node::{Client, command};

const OPERATIONS: &str = include_str!("../docs/operations.md");
const ON_CALL: &str = include_str!("../docs/oncall.md");
const OBSERVABILITY: &str = include_str!("../docs/observability.md");
const SECURITY: &str = include_str!("../docs/security.md");

/// What stands between backticks on any of the pages.
fn words() -> Vec<String> {
    let pages = [OPERATIONS, ON_CALL, OBSERVABILITY, SECURITY];
    pages.into_iter().flat_map(quoted).collect()
}

/// What stands between backticks on one page, line breaks as spaces.
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
fn every_field_that_a_page_names_exists() {
    let cluster = Cluster::start(1, &[]);
    let address = cluster.address(0, MANAGEMENT);
    let metrics = Client::connect(&address).get("/dist/metrics").json();
    let mut named = quoted(OPERATIONS);
    named.extend(quoted(ON_CALL));
    named.retain(|word| is_field(word) && !word.starts_with("Hypercache"));
    assert!(named.len() > 30, "the pages are read: {named:?}");
    for name in named {
        assert!(!metrics[&*name].is_null(), "{name}");
    }
}

#[test]
fn every_series_that_a_page_names_exists() {
    let cluster = Cluster::start(1, &[]);
    let address = cluster.address(0, MANAGEMENT);
    let metrics = Client::connect(&address).get("/metrics").text();
    let mut named = words();
    named.retain(|word| word.starts_with("hypercache_") || word.starts_with("process_"));
    assert!(named.len() > 50, "the pages are read: {named:?}");
    for name in named {
        let found = metrics.lines().any(|line| {
            let Some(rest) = line.strip_prefix(&*name) else {
                return false;
            };
            ["", "_total", "_count"]
                .iter()
                .filter_map(|suffix| rest.strip_prefix(suffix))
                .any(|rest| rest.starts_with([' ', '{']))
        });
        assert!(found, "{name}");
    }
}

#[test]
fn every_setting_and_route_that_a_page_names_exists() {
    let help = command(&[]).arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let words = words();
    let settings = words.iter().filter(|word| word.starts_with("HYPERCACHE_"));
    assert!(settings.clone().count() > 5);
    for setting in settings {
        let name = setting.split('=').next().unwrap();
        assert!(help.contains(name), "{setting}");
    }
    let routes = words.iter().filter_map(|word| {
        let (method, target) = word.split_once(' ')?;
        ["GET", "POST"]
            .contains(&method)
            .then_some((method, target))
    });
    let (management, peers, clients) = (ENDPOINTS, ["/dist/drain"], ["/v1/owners/{key}", "/v1/me"]);
    for (method, target) in routes.clone() {
        let path = target.split('?').next().unwrap();
        let known = management
            .iter()
            .any(|endpoint| endpoint.method.name() == method && endpoint.path == path);
        assert!(
            known || peers.contains(&path) || clients.contains(&path),
            "{method} {target}"
        );
    }
    let routes: Vec<_> = routes.collect();
    for endpoint in management {
        let (method, path) = (endpoint.method.name(), endpoint.path);
        let is_listed = routes
            .iter()
            .any(|(of, target)| *of == method && target.split('?').next() == Some(path));
        assert!(is_listed, "{method} {path} is on no page");
    }
}

/// The last text among the arguments of a call, of which `rest` begins with the first: the
/// message of an event, where what is quoted before it belongs to fields.
fn last_text(rest: &str) -> String {
    let (mut depth, mut last) = (0, String::new());
    let mut chars = rest.chars();
    while let Some(char) = chars.next() {
        match char {
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' if depth == 0 => return last,
            ')' | '}' | ']' => depth -= 1,
            '"' => {
                let text: String = chars.by_ref().take_while(|&char| char != '"').collect();
                if depth == 0 {
                    last = text;
                }
            }
            _ => {}
        }
    }
    panic!("a call that has no end")
}

/// What the node's code logs: the messages of its events, those for debugging left out.
fn logged() -> Vec<String> {
    let mut source = String::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    source_under(&directory, &mut source);
    let mut messages = Vec::new();
    for level in ["info", "warn", "error"] {
        for call in source.split(&format!("tracing::{level}!(")).skip(1) {
            messages.push(last_text(call));
        }
    }
    messages
}

#[test]
fn the_page_for_who_is_on_call_lists_the_log_lines_that_there_are() {
    let (_, table) = ON_CALL.split_once("## Log lines").unwrap();
    let listed: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(line, _)| line)
        .collect();
    let mut logged = logged();
    // Words of its own, with a reason behind them.
    logged.retain(|message| message != "{warning}");
    assert!(logged.len() > 30, "{logged:?}");
    for message in &logged {
        assert!(listed.contains(&&**message), "not listed: {message}");
    }
    for line in listed {
        assert!(
            logged.iter().any(|message| message == line),
            "not logged: {line}"
        );
    }
}
