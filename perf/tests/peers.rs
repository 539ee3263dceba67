//! The comparison with peers, run for fractions of a second on the floor, and on the node
//! where its binary is there. No figure is judged, only that there are figures.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs the program with its binaries as they are; its figures go to this directory.
fn peers(directory: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_peers"))
        .args(["--no-build", "--rounds", "1", "--seconds", "0.05"])
        .arg("--json")
        .arg(directory.join("peers.json"))
        .arg("--svg")
        .arg(directory.join("peers.svg"))
        .args(arguments)
        // Peers that are installed are not found: what is found must not depend on that.
        .env("PATH", directory)
        .output();
    output.unwrap()
}

fn directory(name: &str) -> std::path::PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn report(directory: &Path) -> Value {
    let text = std::fs::read_to_string(directory.join("peers.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The rows of a server in one table.
fn rows<'a>(report: &'a Value, table: &str, server: &str) -> Vec<&'a Value> {
    let rows = report[table].as_array().unwrap().iter();
    rows.filter(|row| row["server"] == server).collect()
}

#[test]
fn a_short_run_has_a_table_a_json_file_and_a_picture() {
    let directory = directory("short-run");
    let servers = "hypercache-epoll,floor-epoll,redis,memcached,nginx";
    let scenarios = "get,put-p16,mix-zipf,get-16k,rate-get";
    let output = peers(
        &directory,
        &["--servers", servers, "--scenarios", scenarios],
    );
    let (said, complained) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(output.status.success(), "{said}{complained}");
    for absent in ["redis", "memcached", "nginx"] {
        let line = format!("- {absent}: **missing** (not installed)");
        assert!(said.contains(&line), "{said}");
    }

    let report = report(&directory);
    let closed = rows(&report, "closed", "floor-epoll");
    // It cannot store anything.
    assert_eq!(closed.len(), 2);
    for row in closed {
        assert!(
            row["requests_per_s"]["median"].as_f64() > Some(0.0),
            "{row}"
        );
        assert!(row["server_cpu_us"]["median"].as_f64() > Some(0.0), "{row}");
    }
    let open = rows(&report, "open", "floor-epoll");
    assert_eq!(open.len(), 5);
    for row in open {
        assert!(row["p99_us"]["median"].as_f64() > Some(0.0), "{row}");
    }
    let node = Path::new(env!("CARGO_BIN_EXE_peers")).with_file_name("hypercache");
    if node.exists() {
        assert_eq!(rows(&report, "closed", "hypercache-epoll").len(), 4);
        assert_eq!(rows(&report, "open", "hypercache-epoll").len(), 5);
    } else {
        assert!(said.contains("- hypercache-epoll: **missing**"), "{said}");
    }

    let picture = std::fs::read_to_string(directory.join("peers.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("<polyline"));
}

#[test]
fn the_floor_without_the_runtime_runs_when_it_is_named() {
    let directory = directory("ring");
    let servers = "floor-epoll,ring:multishot+files,ring:triangle";
    let output = peers(&directory, &["--servers", servers, "--scenarios", "get"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("triangle is no variant"), "{said}");
    match io_uring::IoUring::new(8) {
        Ok(_) => assert_eq!(
            rows(&report(&directory), "closed", "ring:multishot+files").len(),
            1
        ),
        Err(_) => assert!(said.contains("- ring:multishot+files: **missing**")),
    }
}

#[test]
fn a_run_without_any_server_fails() {
    let output = peers(&directory("no-server"), &["--servers", "redis,nginx"]);
    assert_eq!(output.status.code(), Some(1));
    let complained = String::from_utf8(output.stderr).unwrap();
    assert!(complained.contains("none of the servers"), "{complained}");
}

#[test]
fn what_does_not_exist_cannot_be_chosen() {
    let output = peers(&directory("no-choice"), &["--scenarios", "get-everything"]);
    assert_eq!(output.status.code(), Some(2));
    let complained = String::from_utf8(output.stderr).unwrap();
    assert!(complained.contains("get-everything is no scenario"));
    assert!(complained.contains("rate-get"), "the list is shown");
}
