//! Who is let in, against real nodes: tokens, passwords, policies, their rotation.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/files.rs"]
mod files;
#[path = "support/node.rs"]
mod node;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use files::Folder;
use hypercache::api::router::ENDPOINTS;
use hypercache::auth::Scope;
use hypercache::http::Method;
use hypercache::mgmt::routes::{self, Operation};
use node::{Answer, Client, GUARD, Node, StopOnDrop, command};
use serde_json::json;

const POLICY: &str = "HYPERCACHE_AUTH_CONFIG";
const TOKEN: &str = "HYPERCACHE_AUTH_TOKEN";
const TOKEN_FILE: &str = "HYPERCACHE_AUTH_TOKEN_FILE";
const SOON: (&str, &str) = ("HYPERCACHE_RELOAD_INTERVAL", "10ms");

/// One token for each scope, named like it.
const BY_SCOPE: &str = "tokens:
  - {id: reader, token: read, scopes: [read]}
  - {id: writer, token: write, scopes: [write]}
  - {id: admin, token: admin, scopes: [admin]}
";

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn basic(pair: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(pair))
}

fn get(client: &mut Client, target: &str, token: &str) -> Answer {
    client.request("GET", target, &bearer(token), b"")
}

/// Asks again and again until the answer is as wanted: what is waited for is an event
/// that the node does not announce.
fn until(mut ask: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !ask() {
        assert!(begun.elapsed() < GUARD, "it does not happen");
    }
}

fn metric(node: &Node, token: &str, name: &str) -> u64 {
    let answer = get(&mut Client::connect(&node.mgmt), "/metrics", token);
    assert_eq!(answer.status, 200, "{answer:?}");
    let of_name = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let value = rest
            .strip_prefix(' ')
            .or_else(|| rest.split_once("} ").map(|(_, v)| v))?;
        value.parse::<u64>().ok()
    };
    answer.text().lines().filter_map(of_name).sum()
}

#[test]
fn every_route_of_the_client_listener_wants_its_scope() {
    let folder = Folder::new();
    let policy = folder.file("policy.yaml", BY_SCOPE);
    let node = Node::start(&[(POLICY, &policy)]);
    let mut client = node.connect();
    for endpoint in ENDPOINTS {
        let target = endpoint.path.replace("{key}", "k");
        let method = endpoint.method.name();
        let body = if method == "POST" { &b"{}"[..] } else { b"" };
        let mut status = |headers: &str| {
            let answer = client.request(method, &target, headers, body);
            if answer.status == 401 {
                let challenge = answer.header("WWW-Authenticate").unwrap();
                assert!(challenge.starts_with("Bearer"), "{challenge}");
            }
            if answer.status == 401 && method != "HEAD" {
                answer.expect_error(401, "UNAUTHORIZED");
            } else if answer.status == 403 && method != "HEAD" {
                answer.expect_error(403, "FORBIDDEN");
            }
            answer.status
        };
        let Some(scope) = endpoint.scope else {
            for headers in ["", &bearer("wrong"), &bearer("read")] {
                assert_eq!(status(headers), 200, "{target}");
            }
            continue;
        };
        assert_eq!(status(""), 401, "{method} {target}");
        assert_eq!(status(&bearer("wrong")), 401, "{method} {target}");
        for other in Scope::ALL {
            let answered = status(&bearer(other.name()));
            let passes = other == scope;
            assert_eq!(
                ![401, 403].contains(&answered),
                passes,
                "{method} {target} {other:?}"
            );
            assert_eq!(answered == 403, !passes, "{method} {target} {other:?}");
        }
    }
}

#[test]
fn every_route_of_the_management_listener_but_health_wants_to_know_who_asks() {
    let folder = Folder::new();
    let policy = folder.file("policy.yaml", BY_SCOPE);
    let node = Node::start(&[(POLICY, &policy)]);
    let mut client = Client::connect(&node.mgmt);
    let health = client.get("/health");
    assert!(
        ["ok", "bootstrapping"].contains(&&*health.text()),
        "{health:?}"
    );
    for endpoint in routes::ENDPOINTS {
        let Some(wanted) = endpoint.scope else {
            assert!(["/", "/health", "/healthz"].contains(&endpoint.path));
            continue;
        };
        let (method, path) = (endpoint.method.name(), endpoint.path);
        let target = match path {
            "/dist/owners" => "/dist/owners?key=k",
            path => path,
        };
        let mut ask = |headers: &str| client.request(method, target, headers, b"");
        ask("").expect_error(401, "UNAUTHORIZED");
        for scope in Scope::ALL.into_iter().filter(|scope| *scope != wanted) {
            ask(&bearer(scope.name())).expect_error(403, "FORBIDDEN");
        }
        // Events have no end.
        if endpoint.operation != Operation::Events {
            let status = ask(&bearer(wanted.name())).status;
            assert!((200..300).contains(&status), "{method} {path}: {status}");
        }
    }
    assert_eq!(
        metric(&node, "read", "hypercache_security_reload_failing"),
        0
    );
}

#[test]
fn the_management_listener_answers_head_wherever_it_answers_get() {
    let node = Node::start(&[(TOKEN, "sesame")]);
    let of_get = |endpoint: &&routes::Endpoint| endpoint.method == Method::Get;
    for endpoint in routes::ENDPOINTS.iter().filter(of_get) {
        let target = format!("{}?key=k", endpoint.path);
        let mut client = Client::connect(&node.mgmt);
        assert_eq!(
            client.request("HEAD", &target, "", b"").status == 401,
            endpoint.scope.is_some()
        );
        let answer = client.request("HEAD", &target, &bearer("sesame"), b"");
        assert!([200, 503].contains(&answer.status), "{target} {answer:?}");
        let wrong = Client::connect(&node.mgmt).request("PUT", &target, &bearer("sesame"), b"");
        wrong.expect_error(405, "METHOD_NOT_ALLOWED");
        assert_eq!(wrong.header("Allow"), Some("GET, HEAD"), "{target}");
        if endpoint.operation == Operation::Events {
            assert_eq!(answer.header("Content-Type"), Some("text/event-stream"));
            client.expect_closed();
        }
    }
}

#[test]
fn whom_the_management_listener_turns_away_is_counted() {
    let folder = Folder::new();
    let policy = folder.file("policy.yaml", BY_SCOPE);
    let node = Node::start(&[(POLICY, &policy)]);
    let mut client = Client::connect(&node.mgmt);
    client.get("/metrics").expect_error(401, "UNAUTHORIZED");
    get(&mut client, "/metrics", "wrong").expect_error(401, "UNAUTHORIZED");
    get(&mut client, "/metrics", "write").expect_error(403, "FORBIDDEN");
    let counted = |name: &str| {
        metric(
            &node,
            "read",
            &format!("hypercache_management_{name}_total"),
        )
    };
    assert_eq!(counted("unauthorized"), 2);
    assert_eq!(counted("forbidden"), 1);
}

#[test]
fn health_of_the_peer_listener_is_open_to_be_read_and_no_more() {
    let node = Node::start(&[("HYPERCACHE_PEER_TOKEN", "peers")]);
    let mut client = Client::connect(node.serving["peer"].as_str().unwrap());
    for method in ["GET", "HEAD"] {
        let status = client.request(method, "/health", "", b"").status;
        assert!([200, 503].contains(&status), "{method}: {status}");
    }
    for method in ["POST", "PUT", "DELETE", "BREW"] {
        let answer = client.request(method, "/health", "", b"");
        answer.expect_error(401, "UNAUTHORIZED");
        let answer = client.request(method, "/health", &bearer("peers"), b"");
        answer.expect_error(404, "NOT_FOUND");
    }
}

#[test]
fn only_the_peer_token_or_an_admin_has_a_node_drain() {
    let folder = Folder::new();
    let policy = folder.file("policy.yaml", BY_SCOPE);
    let drain = |env: &[(&str, &str)], headers: &str| {
        let node = Node::start(env);
        let peer = node.serving["peer"].as_str().unwrap().to_owned();
        let mut client = Client::connect(&peer);
        let status = client.request("POST", "/dist/drain", headers, b"").status;
        let health = Client::connect(&node.mgmt).get("/health").text();
        assert_eq!(health == "draining", status == 200, "{health}");
        status
    };
    let only_policy = [(POLICY, policy.as_str())];
    assert_eq!(drain(&only_policy, ""), 401);
    assert_eq!(drain(&only_policy, &bearer("write")), 403);
    assert_eq!(drain(&only_policy, &bearer("admin")), 200);
    let both = [
        (POLICY, policy.as_str()),
        ("HYPERCACHE_PEER_TOKEN", "peers"),
    ];
    assert_eq!(drain(&both, &bearer("wrong")), 401);
    assert_eq!(drain(&both, &bearer("peers")), 200);
    assert_eq!(drain(&both, &bearer("admin")), 200);
    assert_eq!(drain(&[], ""), 200);
}

#[test]
fn peers_that_can_show_nothing_are_refused_where_clients_are_asked() {
    let folder = Folder::new();
    let policy = folder.file("policy.yaml", BY_SCOPE);
    let node = Node::start(&[(POLICY, &policy)]);
    assert!(node.has_logged_soon("peers are refused"));
    let mut peer = Client::connect(node.serving["peer"].as_str().unwrap());
    for (method, target) in [("GET", "/peer/v1/keys"), ("POST", "/peer/v1/membership")] {
        let answer = peer.request(method, target, &bearer("admin"), b"");
        answer.expect_error(401, "UNAUTHORIZED");
    }
    assert!(["ok", "bootstrapping"].contains(&&*peer.get("/health").text()));
    let seeds = [
        (POLICY, policy.as_str()),
        ("HYPERCACHE_SEEDS", "a@10.0.0.1:7946"),
    ];
    let output = command(&seeds).arg("--check-config").output().unwrap();
    assert!(!output.status.success());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        log.contains("HYPERCACHE_PEER_TOKEN") && log.lines().count() == 1,
        "{log}"
    );
}

#[test]
fn callers_are_told_who_they_are_and_what_they_may() {
    let folder = Folder::new();
    let policy = folder.file(
        "policy.yaml",
        "tokens: [{id: svc, token: t, scopes: [write, read]}]\nallow_anonymous: true\n",
    );
    let node = Node::start(&[(POLICY, &policy)]);
    let mut client = node.connect();
    assert_eq!(
        get(&mut client, "/v1/me", "t").json(),
        json!({
            "id": "svc",
            "scopes": ["read", "write"],
            "capabilities": ["cache.read", "cache.write"],
        })
    );
    for (capability, allowed) in [("cache.write", true), ("cache.admin", false)] {
        let target = format!("/v1/me/can?capability={capability}");
        let can = get(&mut client, &target, "t").json();
        assert_eq!(can, json!({"capability": capability, "allowed": allowed}));
    }
    get(&mut client, "/v1/me/can?capability=cache.fly", "t").expect_error(400, "BAD_REQUEST");
    assert_eq!(client.get("/v1/me").json()["id"], "anonymous");
    assert_eq!(
        get(&mut client, "/v1/me", "wrong").json()["id"],
        "anonymous"
    );
    assert_eq!(get(&mut client, "/v1/me", "t").json()["id"], "svc");
}

#[test]
fn a_token_in_the_environment_is_the_default_identity_on_all_listeners() {
    let node = Node::start(&[(TOKEN, "sesame")]);
    let mut client = node.connect();
    client.get("/v1/me").expect_error(401, "UNAUTHORIZED");
    let me = get(&mut client, "/v1/me", "sesame").json();
    assert_eq!(me["id"], "default");
    assert_eq!(me["scopes"], json!(["read", "write", "admin"]));
    let mut management = Client::connect(&node.mgmt);
    management.get("/metrics").expect_error(401, "UNAUTHORIZED");
    assert_eq!(get(&mut management, "/metrics", "sesame").status, 200);
    let mut peer = Client::connect(node.serving["peer"].as_str().unwrap());
    peer.get("/peer/v1/keys").expect_error(401, "UNAUTHORIZED");
    assert_eq!(get(&mut peer, "/peer/v1/keys", "sesame").status, 200);
    assert!(!node.has_logged("no authentication is configured"));
    assert!(!node.has_logged("sesame"));
    assert!(Node::start(&[]).has_logged_soon("no authentication is configured"));
}

#[test]
fn what_is_not_admitted_is_refused_before_its_body_is_received() {
    let node = Node::start(&[(TOKEN, "sesame")]);
    for headers in [
        "Content-Length: 4000000\r\n",
        "Content-Length: 4000000\r\nExpect: 100-continue\r\n",
        "Transfer-Encoding: chunked\r\n",
    ] {
        let mut client = node.connect();
        client.send(format!(
            "PUT /v1/cache/k HTTP/1.1\r\nHost: t\r\n{headers}\r\n"
        ));
        let answer = client.answer();
        answer.expect_error(401, "UNAUTHORIZED");
        assert_eq!(answer.header("Connection"), Some("close"));
        client.expect_closed();
    }
    // Nor is it where anybody may ask, and nothing depends on it.
    for target in ["/nope", "/healthz", "/v1/openapi.yaml"] {
        for headers in [
            "Content-Length: 4000000\r\n",
            "Transfer-Encoding: chunked\r\n",
        ] {
            for method in ["GET", "POST"] {
                let mut client = node.connect();
                let head = format!("{method} {target} HTTP/1.1\r\nHost: t\r\n{headers}\r\n");
                client.send(head);
                let answer = client.answer();
                assert!([200, 404, 405].contains(&answer.status), "{answer:?}");
                assert_eq!(answer.header("Connection"), Some("close"));
                client.expect_closed();
            }
        }
    }
    // One that is there already costs nothing to step over.
    let mut client = node.connect();
    client
        .put("/v1/cache/k", b"value")
        .expect_error(401, "UNAUTHORIZED");
    let written = client.request("PUT", "/v1/cache/k", &bearer("sesame"), b"value");
    assert_eq!(written.status, 200);
    let twice = format!("{}{}", bearer("sesame"), bearer("sesame"));
    let answer = client.request("GET", "/v1/cache/k", &twice, b"");
    answer.expect_error(400, "BAD_REQUEST");
    client.expect_closed();
}

#[test]
fn a_policy_that_cannot_be_right_stops_the_start_with_one_line() {
    let folder = Folder::new();
    let broken = |name: &str, text: &str| folder.file(name, text);
    let good = broken("good", BY_SCOPE);
    let cases = [
        (
            vec![(POLICY, "/nowhere/policy.yaml".to_owned())],
            "cannot be read",
        ),
        (vec![(POLICY, broken("1", "tokens: ["))], "line 2"),
        (
            vec![(POLICY, broken("2", "tokns: []"))],
            "unknown field `tokns`",
        ),
        (
            vec![(
                POLICY,
                broken("3", "tokens: [{id: a, token: hidden, scopes: []}]"),
            )],
            "tokens[0].scopes",
        ),
        (
            vec![(
                POLICY,
                broken("4", "tokens: [{id: a, token: hidden, scopes: [all]}]"),
            )],
            "unknown scope \"all\"",
        ),
        (vec![(POLICY, broken("5", ""))], "lets nobody in"),
        (
            vec![(POLICY, good), (TOKEN, "hidden".to_owned())],
            "both set",
        ),
        (vec![(TOKEN_FILE, broken("6", "\n"))], "expected 1 to"),
        (
            vec![(TOKEN_FILE, broken("7", "two words"))],
            "without spaces",
        ),
    ];
    for (env, named) in cases {
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, &**value)).collect();
        for args in [&[][..], &["--check-config"]] {
            let output = command(&env).args(args).output().unwrap();
            assert!(!output.status.success(), "{env:?} starts");
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(log.lines().count(), 1, "{log}");
            assert!(log.contains(named) && log.contains(env[0].0), "{log}");
            assert!(!log.contains("hidden"), "{log}");
        }
    }
}

#[test]
fn a_token_that_is_taken_away_stops_working_on_connections_that_are_open() {
    let folder = Folder::new();
    let tokens = folder.secret("token", "first\nsecond\n");
    let node = Node::start(&[(TOKEN_FILE, &tokens), SOON]);
    let mut client = node.connect();
    assert_eq!(get(&mut client, "/v1/me", "first").status, 200);
    assert_eq!(get(&mut client, "/v1/me", "second").status, 200);
    folder.replace_secret("token", "second\nthird\n");
    until(|| get(&mut client, "/v1/me", "first").status == 401);
    assert_eq!(get(&mut client, "/v1/me", "second").status, 200);
    until(|| get(&mut Client::connect(&node.mgmt), "/metrics", "third").status == 200);
    assert_eq!(
        metric(&node, "third", "hypercache_security_reloads_total"),
        1
    );
}

#[test]
fn events_end_for_whom_they_are_no_longer_meant() {
    let folder = Folder::new();
    let tokens = folder.file("token", "first\n");
    let node = Node::start(&[(TOKEN_FILE, &tokens), SOON]);
    let mut events = Client::connect(&node.mgmt);
    let asked = bearer("first");
    events.send(format!(
        "GET /cluster/events HTTP/1.1\r\nHost: t\r\n{asked}\r\n"
    ));
    while events.line() != "event: heartbeat" {}
    folder.file("token", "second\n");
    until(|| get(&mut Client::connect(&node.mgmt), "/metrics", "first").status == 401);
    // What was on its way still comes, then the end.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut events.stream, &mut rest).unwrap();
}

#[test]
fn a_signal_has_files_read_again_and_does_not_end_the_node() {
    let folder = Folder::new();
    let policy = folder.file("policy.yaml", BY_SCOPE);
    let node = Node::start(&[(POLICY, &policy), ("HYPERCACHE_RELOAD_INTERVAL", "24h")]);
    let mut client = node.connect();
    assert_eq!(get(&mut client, "/v1/me", "new").status, 401);
    folder.file(
        "policy.yaml",
        "tokens: [{id: a, token: new, scopes: [read]}]",
    );
    node.signal(libc::SIGHUP);
    until(|| get(&mut client, "/v1/me", "new").status == 200);
}

#[test]
fn a_broken_file_leaves_the_former_policy_in_force_and_is_told() {
    let folder = Folder::new();
    let policy = folder.file("policy.yaml", BY_SCOPE);
    let node = Node::start(&[(POLICY, &policy), SOON]);
    let failing = || metric(&node, "read", "hypercache_security_reload_failing");
    folder.file("policy.yaml", "tokens: hidden");
    until(|| failing() == 1);
    let mut client = node.connect();
    assert_eq!(get(&mut client, "/v1/me", "read").status, 200);
    assert!(node.has_logged_soon("cannot be taken over"));
    assert!(!node.has_logged("hidden"));
    folder.remove("policy.yaml");
    until(|| metric(&node, "read", "hypercache_security_reload_failures_total") == 2);
    assert_eq!(get(&mut client, "/v1/me", "read").status, 200);
    folder.file("policy.yaml", BY_SCOPE);
    until(|| failing() == 0);
    folder.file(
        "policy.yaml",
        "tokens: [{id: a, token: new, scopes: [read]}]",
    );
    until(|| get(&mut client, "/v1/me", "new").status == 200);
    get(&mut client, "/v1/me", "read").expect_error(401, "UNAUTHORIZED");
}

/// A policy with users whose passwords are their names.
fn users(names: &[&str], more: &str) -> String {
    let mut text = String::from(BY_SCOPE);
    text.push_str("users:\n");
    for name in names {
        let hash = bcrypt::hash(name, 5).unwrap();
        text.push_str(&format!(
            "  - {{id: {name}, username: {name}, password_bcrypt: '{hash}', scopes: [read]}}\n"
        ));
    }
    text.push_str(more);
    text
}

#[test]
fn passwords_are_refused_in_the_clear_unless_the_policy_allows_it() {
    let folder = Folder::new();
    let strict = folder.file("strict", &users(&["olga"], ""));
    let node = Node::start(&[(POLICY, &strict)]);
    let answer = node
        .connect()
        .request("GET", "/v1/me", &basic("olga:olga"), b"");
    answer.expect_error(401, "UNAUTHORIZED");
    assert!(answer.text().contains("TLS"), "{answer:?}");
    let challenge = answer.header("WWW-Authenticate").unwrap();
    assert!(
        !challenge.contains("Basic"),
        "asks for a password in the clear"
    );

    let lax = folder.file(
        "lax",
        &users(&["olga", "ulf"], "allow_basic_without_tls: true"),
    );
    let node = Node::start(&[(POLICY, &lax)]);
    let mut client = node.connect();
    for (pair, status) in [
        ("olga:olga", 200),
        ("olga:wrong", 401),
        ("ulf:ulf", 200),
        ("nobody:nobody", 401),
        ("olga:", 401),
        (&format!("olga:{}", "x".repeat(5000)), 401),
        ("olga:olga", 200),
    ] {
        let answer = client.request("GET", "/v1/me", &basic(pair), b"");
        assert_eq!(answer.status, status, "{pair}");
        if status == 200 {
            assert_eq!(answer.json()["id"], pair.split(':').next().unwrap());
        } else {
            assert!(answer.header("WWW-Authenticate").unwrap().contains("Basic"));
        }
    }
}

#[test]
fn an_identity_is_found_before_a_pipelined_body_is_taken() {
    let folder = Folder::new();
    let lax = folder.file("lax", &users(&["olga"], "allow_basic_without_tls: true"));
    let node = Node::start(&[(POLICY, &lax)]);
    let mut client = node.connect();
    let mut bytes = node::request("PUT", "/v1/cache/k", &bearer("write"), b"value");
    bytes.extend(node::request(
        "GET",
        "/v1/cache/k",
        &basic("olga:olga"),
        b"",
    ));
    bytes.extend(node::request(
        "PUT",
        "/v1/cache/k",
        &basic("olga:olga"),
        b"other",
    ));
    bytes.extend(node::request(
        "GET",
        "/v1/cache/k",
        &basic("olga:wrong"),
        b"",
    ));
    bytes.extend(node::request("GET", "/v1/cache/k", &bearer("read"), b""));
    client.send(bytes);
    let statuses: Vec<u16> = (0..5).map(|_| client.answer().status).collect();
    assert_eq!(statuses, [200, 200, 403, 401, 200]);
}

#[test]
fn a_storm_of_logins_keeps_nobody_out_who_is_in() {
    /// Names share lanes by a hash that nobody can foresee, 64 of them: so few of these share
    /// the lane of the one that is stormed that all but half of them never do.
    const OTHERS: [&str; 8] = ["ada", "bo", "cy", "di", "ed", "fay", "gus", "ulf"];
    let folder = Folder::new();
    let names = [&["olga"], &OTHERS[..]].concat();
    let lax = folder.file("lax", &users(&names, "allow_basic_without_tls: true"));
    let node = Node::start(&[(POLICY, &lax)]);
    let mut inside = node.connect();
    let login = basic("olga:olga");
    assert_eq!(inside.request("GET", "/v1/me", &login, b"").status, 200);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = StopOnDrop(&stop);
        let storms: Vec<_> = (0..64)
            .map(|storm| {
                let (node, stop) = (&node, &stop);
                scope.spawn(move || {
                    let (mut client, mut refused) = (node.connect(), 0);
                    for guess in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let wrong = basic(&format!("olga:{storm}-{guess}"));
                        let answer = client.request("GET", "/v1/me", &wrong, b"");
                        match answer.status {
                            401 => {}
                            503 => {
                                answer.expect_error(503, "INTERNAL");
                                assert!(answer.header("Retry-After").is_some());
                                refused += 1;
                            }
                            other => panic!("{other}"),
                        }
                    }
                    refused
                })
            })
            .collect();
        // Whoever is in stays in, on new connections as well; other users get in.
        for _ in 0..200 {
            let mut other = node.connect();
            assert_eq!(inside.request("GET", "/v1/me", &login, b"").status, 200);
            assert_eq!(get(&mut other, "/v1/me", "read").status, 200);
        }
        let kept_out = OTHERS.iter().filter(|name| {
            let login = basic(&format!("{name}:{name}"));
            let answer = node.connect().request("GET", "/v1/me", &login, b"");
            if answer.status != 200 {
                answer.expect_error(503, "INTERNAL");
                assert!(answer.header("Retry-After").is_some());
            }
            answer.status != 200
        });
        let kept_out = kept_out.count();
        assert!(kept_out <= OTHERS.len() / 2, "{kept_out}");
        drop(ends);
        let refused: u64 = storms.into_iter().map(|storm| storm.join().unwrap()).sum();
        assert!(refused > 0, "nobody had to wait");
        let counted = || metric(&node, "read", "hypercache_verifications_refused_total");
        until(|| counted() >= refused);
    });
}
