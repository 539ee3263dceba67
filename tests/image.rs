//! What the Dockerfile, .dockerignore and compose.yaml say is so: they name facts of other
//! files, and are built and run where no test is.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use hypercache::settings::{Invocation, Settings};
use serde_norway::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const DOCKERFILE: &str = include_str!("../Dockerfile");
const IGNORED: &str = include_str!("../.dockerignore");
const COMPOSE: &str = include_str!("../compose.yaml");
const MANIFEST: &str = include_str!("../Cargo.toml");

/// The instructions with their arguments, lines that go on in the next joined.
fn instructions() -> Vec<(String, String)> {
    let lines = DOCKERFILE
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let of = |line: &str| {
        let (name, arguments) = line.split_once(' ')?;
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        Some((name.to_owned(), arguments.join(" ")))
    };
    joined.lines().filter_map(of).collect()
}

/// The arguments of all instructions with this name.
fn all(name: &str) -> Vec<String> {
    let of_name = instructions().into_iter().filter(|(of, _)| of == name);
    of_name.map(|(_, arguments)| arguments).collect()
}

/// The instructions of the image itself, behind the last FROM.
fn last_stage() -> Vec<(String, String)> {
    let all = instructions();
    let from = all.iter().rposition(|(name, _)| name == "FROM").unwrap();
    all[from..].to_vec()
}

/// A field of the manifest's first table.
fn manifest(field: &str) -> &'static str {
    let lines = MANIFEST.lines().filter_map(|line| line.split_once(" = "));
    let (_, value) = lines.clone().find(|(name, _)| *name == field).unwrap();
    value.trim_matches('"')
}

/// The default ports for clients, management and peers.
fn ports() -> [u16; 3] {
    let Ok(Invocation::Run(settings)) = Settings::from([], [], "host") else {
        panic!("defaults are no settings");
    };
    [settings.api_addr, settings.mgmt_addr, settings.dist_addr].map(|address| address.port)
}

/// The paths of all files below a folder, but for what was built and for Git's own.
fn below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if [".git", "target"]
                .iter()
                .any(|name| entry.file_name() == *name)
            {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else {
                let path = path.strip_prefix(folder).unwrap();
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn the_image_is_built_by_the_release_of_rust_that_the_manifest_names() {
    let from = all("FROM");
    let version = manifest("rust-version");
    assert_eq!(from[0], format!("rust:{version}-slim AS build"));
}

#[test]
fn the_image_says_which_ports_a_node_has_by_default() {
    let exposed = ports().map(|port| port.to_string()).join(" ");
    assert_eq!(all("EXPOSE"), [exposed]);
}

#[test]
fn the_image_runs_the_binary_alone_and_as_nobody_in_particular() {
    let stage = last_stage();
    let of = |name: &str| -> Vec<&str> {
        let named = stage.iter().filter(|(of, _)| of == name);
        named.map(|(_, arguments)| arguments.as_str()).collect()
    };
    assert_eq!(of("FROM"), ["scratch"]);
    assert_eq!(of("COPY"), ["--from=build /hypercache /hypercache"]);
    assert_eq!(of("ENTRYPOINT"), [r#"["/hypercache"]"#]);
    // By number: a kubelet that is told runAsNonRoot does not know names.
    assert_eq!(of("USER"), ["65532:65532"]);
    assert_eq!(of("STOPSIGNAL"), ["SIGTERM"]);
    for absent in ["RUN", "CMD", "ADD", "VOLUME", "ENV", "HEALTHCHECK"] {
        assert_eq!(of(absent), [""; 0], "{absent}");
    }
}

#[test]
fn the_labels_say_what_the_manifest_says() {
    let labels = all("LABEL").concat();
    let label = |name: &str, value: &str| {
        let label = format!("org.opencontainers.image.{name}=\"{value}\"");
        assert!(labels.contains(&label), "{label}");
    };
    label("title", manifest("name"));
    label("description", manifest("description"));
    label("licenses", manifest("license"));
    label("source", "${SOURCE}");
    label("version", "${VERSION}");
    label("revision", "${REVISION}");
    let version = format!("VERSION={}", manifest("version"));
    assert_eq!(all("ARG"), ["SOURCE", "REVISION", &version]);
}

/// Whether the build gets this file: the last pattern that fits it, or a folder it is in,
/// decides. Patterns here have no other wildcard than a whole name.
fn is_sent(path: &str) -> bool {
    let fits = |pattern: &str| {
        let mut names = path.split('/');
        pattern
            .split('/')
            .all(|part| names.next().is_some_and(|name| part == "*" || part == name))
    };
    let patterns = IGNORED
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    patterns.fold(true, |sent, pattern| match pattern.strip_prefix('!') {
        Some(pattern) => sent || fits(pattern),
        None => sent && !fits(pattern),
    })
}

#[test]
fn what_the_build_copies_is_there_and_is_sent_and_nothing_else_is() {
    let mut copied = BTreeSet::new();
    for arguments in all("COPY") {
        if arguments.starts_with("--from") {
            continue;
        }
        let words: Vec<&str> = arguments.split(' ').collect();
        let (_, sources) = words.split_last().unwrap();
        copied.extend(sources.iter().map(|source| (*source).to_owned()));
    }
    assert!(copied.contains("src"), "{copied:?}");
    for path in &copied {
        assert!(Path::new(ROOT).join(path).exists(), "{path}");
        assert!(is_sent(path), "{path} is kept back by .dockerignore");
    }
    for path in below(Path::new(ROOT)) {
        let is_copied = copied
            .iter()
            .any(|copied| path == *copied || path.starts_with(&format!("{copied}/")));
        assert_eq!(is_sent(&path), is_copied, "{path}");
    }
    assert!(!is_sent("target/debug/hypercache") && !is_sent(".git/index"));
}

#[test]
fn the_sources_need_no_file_that_the_build_does_not_copy() {
    let src = Path::new(ROOT).join("src").canonicalize().unwrap();
    let mut found = 0;
    for path in below(&src) {
        let text = fs::read_to_string(src.join(&path)).unwrap();
        let folder = src.join(&path).parent().unwrap().to_owned();
        for part in text.split("include_").skip(1) {
            let Some(("str" | "bytes", rest)) = part.split_once("!(\"") else {
                continue;
            };
            let (name, _) = rest.split_once('"').unwrap();
            let file = folder.join(name).canonicalize().unwrap();
            assert!(file.starts_with(&src), "{path} includes {name}");
            found += 1;
        }
    }
    assert!(found > 1, "{found} includes");
}

/// As the Dockerfile's `sed` does: from a line that begins with `[[` to an empty one.
#[test]
fn tables_of_tests_can_be_cut_out_of_the_manifest() {
    assert!(DOCKERFILE.contains(r"sed -i '/^\[\[/,/^$/d' Cargo.toml"));
    let mut cut = false;
    let mut kept = Vec::new();
    for line in MANIFEST.lines() {
        cut |= line.starts_with("[[");
        if !cut {
            kept.push(line);
        }
        cut &= !line.is_empty();
    }
    let tables = |text: &[&str]| -> Vec<String> {
        let heads = text.iter().filter(|line| line.starts_with('['));
        let heads = heads.filter(|line| !line.starts_with("[["));
        heads.map(|line| (*line).to_owned()).collect()
    };
    let whole: Vec<&str> = MANIFEST.lines().collect();
    assert!(whole.len() > kept.len());
    assert_eq!(tables(&kept), tables(&whole), "a table is cut out too");
    let targets = ["path = \"tests", "path = \"benches", "harness"];
    for line in kept {
        assert!(!targets.iter().any(|of| line.starts_with(of)), "{line}");
    }
}

fn services() -> Vec<(String, Value)> {
    let mut compose: Value = serde_norway::from_str(COMPOSE).unwrap();
    compose.apply_merge().unwrap();
    let services = compose["services"].as_mapping().unwrap();
    let name = |name: &Value| name.as_str().unwrap().to_owned();
    services
        .iter()
        .map(|(key, service)| (name(key), service.clone()))
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value:?}"))
}

#[test]
fn compose_runs_five_nodes_where_the_readme_looks_for_them() {
    let services = services();
    let names: Vec<&str> = services.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3", "n4", "n5"]);
    let [api, mgmt, _] = ports();
    for (number, (name, service)) in (1..).zip(&services) {
        let published: Vec<&str> = service["ports"]
            .as_sequence()
            .unwrap()
            .iter()
            .map(text)
            .collect();
        let expected = [
            format!("127.0.0.1:{}:{api}", 8080 + number),
            format!("127.0.0.1:{}:{mgmt}", 9080 + number),
        ];
        assert_eq!(published, expected, "{name}");
    }
}

#[test]
fn compose_gives_nodes_no_more_than_they_need() {
    for (name, service) in services() {
        // Five builds at once would be of one image.
        let (build, pull) = match name.as_str() {
            "n1" => (Some("."), "build"),
            _ => (None, "never"),
        };
        assert_eq!(service.get("build").map(text), build, "{name}");
        assert_eq!(text(&service["pull_policy"]), pull, "{name}");
        assert_eq!(service["read_only"], Value::Bool(true), "{name}");
        assert_eq!(service["cap_drop"][0], "ALL", "{name}");
        assert_eq!(service["security_opt"][0], "no-new-privileges:true");
        for absent in ["cap_add", "privileged", "healthcheck", "user"] {
            assert!(service.get(absent).is_none(), "{name}: {absent}");
        }
        assert_eq!(text(&service["stop_grace_period"]), "45s", "{name}");
    }
}

#[test]
fn compose_gives_each_node_settings_that_it_takes() {
    let services = services();
    let [.., peers] = ports();
    let seed = |(name, _): &(String, Value)| format!("{name}@{name}:{peers}");
    let seeds: Vec<String> = services.iter().map(seed).collect();
    for (name, service) in &services {
        let environment = service["environment"].as_mapping().unwrap();
        assert_eq!(text(&environment["HYPERCACHE_NODE_ID"]), name);
        assert_eq!(text(&environment["HYPERCACHE_SEEDS"]), seeds.join(","));
        assert_eq!(text(&environment["HYPERCACHE_REPLICATION"]), "3");
        let output = Command::new(env!("CARGO_BIN_EXE_hypercache"))
            .arg("--check-config")
            .env_clear()
            .envs(
                environment
                    .iter()
                    .map(|(key, value)| (text(key), text(value))),
            )
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
    }
}
