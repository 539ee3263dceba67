//! Identity tokens, against real nodes and a real issuer.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a failure in a helper is a failed test"
)]

#[path = "support/files.rs"]
mod files;
#[path = "support/issuer.rs"]
mod issuer;
#[path = "support/node.rs"]
mod node;

use std::time::Instant;

use files::Folder;
use issuer::{AUDIENCE, Issuer, Mood, Signer, now_unix_s, token_under_secret};
use node::{Answer, Client, GUARD, Node, command};
use serde_json::{Value, json};

const SETTING_ISSUER: &str = "HYPERCACHE_OIDC_ISSUER";
const SETTING_AUDIENCE: &str = "HYPERCACHE_OIDC_AUDIENCE";
const SETTING_CA: &str = "HYPERCACHE_OIDC_CA";
/// Keys come at the start and when asked for, never by the clock.
const SELDOM: (&str, &str) = ("HYPERCACHE_OIDC_REFRESH", "1h");
const NO_LEEWAY: (&str, &str) = ("HYPERCACHE_OIDC_LEEWAY", "0s");

/// A node that trusts an issuer, and what it needs.
struct Trusting {
    node: Node,
    folder: Folder,
}

impl Trusting {
    fn start(issuer: &Issuer, env: &[(&str, &str)]) -> Self {
        Self::vouched_for_by(issuer, &issuer.ca_pem, env)
    }

    fn vouched_for_by(issuer: &Issuer, ca_pem: &str, env: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let ca = folder.file("ca.pem", ca_pem);
        let trust = [
            (SETTING_ISSUER, issuer.url.as_str()),
            (SETTING_AUDIENCE, AUDIENCE),
            (SETTING_CA, ca.as_str()),
            SELDOM,
        ];
        let node = Node::start(&[&trust, env].concat());
        Self { node, folder }
    }

    /// A connection on which this token is accepted.
    fn connect(&self, token: &str) -> Client {
        let mut client = self.node.connect();
        until(|| get(&mut client, "/v1/me", token).status == 200);
        client
    }
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
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

/// Checks that nobody was let in and the caller is told to come again.
fn expect_later(answer: &Answer) {
    answer.expect_error(503, "INTERNAL");
    assert!(answer.header("Retry-After").is_some(), "{answer:?}");
}

fn with(mut object: Value, member: &str, value: Value) -> Value {
    object[member] = value;
    object
}

#[test]
fn tokens_of_each_algorithm_say_who_a_caller_is_and_what_it_may() {
    let signers = [Signer::rs256("r"), Signer::es256("p"), Signer::eddsa("e")];
    let issuer = Issuer::start(&signers.each_ref());
    let trusting = Trusting::start(&issuer, &[]);
    for signer in &signers {
        let name = signer.algorithm();
        let claims = with(issuer.claims(), "sub", json!(name));
        let token = signer.token(&with(claims, "scope", json!("openid read")));
        let mut client = trusting.connect(&token);
        assert_eq!(
            get(&mut client, "/v1/me", &token).json(),
            json!({"id": name, "scopes": ["read"], "capabilities": ["cache.read"]})
        );
        let put = client.request("PUT", "/v1/cache/k", &bearer(&token), b"v");
        put.expect_error(403, "FORBIDDEN");
        let mut management = Client::connect(&trusting.node.mgmt);
        assert_eq!(get(&mut management, "/cluster/members", &token).status, 200);
    }
}

#[test]
fn tokens_that_are_not_right_are_unauthorized() {
    let (rsa, p256) = (Signer::rs256("r"), Signer::es256("p"));
    let issuer = Issuer::start(&[&rsa, &p256]);
    let trusting = Trusting::start(&issuer, &[NO_LEEWAY]);
    let claims = issuer.claims();
    let good = p256.token(&claims);
    let mut client = trusting.connect(&good);
    let unsigned = issuer::message(r#"{"alg":"none"}"#, &claims.to_string());
    let confused = with(rsa.header(), "alg", json!("HS256"));
    let mut wrong: Vec<String> = rsa
        .public_forms()
        .iter()
        .map(|secret| token_under_secret(secret, &confused, &claims))
        .collect();
    for (claim, value) in [
        ("exp", json!(now_unix_s() - 1)),
        ("nbf", json!(now_unix_s() + 600)),
        ("aud", json!("others")),
        ("iss", json!("https://other.example.com")),
        ("sub", json!("")),
    ] {
        wrong.push(p256.token(&with(claims.clone(), claim, value)));
    }
    let critical = with(p256.header(), "crit", json!(["x"]));
    wrong.extend([
        format!("{unsigned}."),
        Signer::es256("p").token(&claims),
        p256.token_with(&critical, &claims),
        good[..good.len() - 1].to_owned(),
        "a.b.c".to_owned(),
        "..".to_owned(),
        "x".repeat(8 << 10),
    ]);
    for token in &wrong {
        let answer = get(&mut client, "/v1/me", token);
        answer.expect_error(401, "UNAUTHORIZED");
        assert!(answer.header("WWW-Authenticate").is_some(), "{answer:?}");
    }
    client.get("/v1/me").expect_error(401, "UNAUTHORIZED");
    assert_eq!(get(&mut client, "/v1/me", &good).status, 200);
}

#[test]
fn a_rotated_key_is_accepted_and_the_former_one_no_more_on_connections_that_are_open() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let issuer = Issuer::start(&[&old]);
    let trusting = Trusting::start(&issuer, &[]);
    let (by_old, by_new) = (old.token(&issuer.claims()), new.token(&issuer.claims()));
    let mut client = trusting.connect(&by_old);
    let mut other = trusting.connect(&by_old);
    issuer.rotate(&[&new]);
    until(|| get(&mut client, "/v1/me", &by_new).status == 200);
    for client in [&mut client, &mut other] {
        until(|| get(client, "/v1/me", &by_old).status == 401);
        assert_eq!(get(client, "/v1/me", &by_new).status, 200);
    }
}

#[test]
fn tokens_are_accepted_while_the_issuer_is_down() {
    let (old, new) = (Signer::eddsa("old"), Signer::eddsa("new"));
    let issuer = Issuer::start(&[&old]);
    let trusting = Trusting::start(&issuer, &[("HYPERCACHE_OIDC_REFRESH", "10ms")]);
    let token = old.token(&issuer.claims());
    let mut client = trusting.connect(&token);
    issuer.set_mood(Mood::Status(503));
    issuer.rotate(&[&new]);
    until(|| trusting.node.has_logged("answers 503"));
    let mut management = Client::connect(&trusting.node.mgmt);
    until(|| {
        let metrics = get(&mut management, "/metrics", &token).text();
        let failures = metrics
            .lines()
            .find_map(|line| line.strip_prefix("hypercache_oidc_fetch_failures_total "));
        failures.is_some_and(|failures| failures != "0")
    });
    for core in 0..2 {
        let mut client = trusting.node.connect_to_core(core);
        let fresh = old.token(&with(issuer.claims(), "jti", json!(core)));
        assert_eq!(get(&mut client, "/v1/me", &fresh).status, 200);
    }
    issuer.set_mood(Mood::Well);
    let by_new = new.token(&issuer.claims());
    until(|| get(&mut client, "/v1/me", &by_new).status == 200);
    assert_eq!(get(&mut client, "/v1/me", &token).status, 401);
}

#[test]
fn a_node_starts_without_its_issuer_and_has_tokens_wait_until_it_has_keys() {
    let signer = Signer::es256("a");
    let issuer = Issuer::start(&[&signer]);
    issuer.set_mood(Mood::Silent);
    let trusting = Trusting::start(&issuer, &[]);
    let token = signer.token(&issuer.claims());
    let mut client = trusting.node.connect();
    assert_eq!(client.get("/healthz").status, 200);
    expect_later(&get(&mut client, "/v1/me", &token));
    client.get("/v1/me").expect_error(401, "UNAUTHORIZED");
    issuer.set_mood(Mood::Well);
    until(|| get(&mut client, "/v1/me", &token).status == 200);
}

#[test]
fn a_token_that_expires_stops_working_on_a_connection_that_is_open() {
    let signer = Signer::es256("a");
    let issuer = Issuer::start(&[&signer]);
    let trusting = Trusting::start(&issuer, &[NO_LEEWAY]);
    let mut client = trusting.connect(&signer.token(&issuer.claims()));
    let expiry = now_unix_s() + 3;
    let token = signer.token(&with(issuer.claims(), "exp", json!(expiry)));
    loop {
        let asked = now_unix_s();
        if get(&mut client, "/v1/me", &token).status != 200 {
            break;
        }
        // The clock of a core may lag behind by a part of a second.
        assert!(asked <= expiry + 1, "it still works");
    }
    assert!(now_unix_s() >= expiry, "it was refused before its time");
    get(&mut client, "/v1/me", &token).expect_error(401, "UNAUTHORIZED");
}

#[test]
fn claims_and_the_leeway_are_settings() {
    let signer = Signer::es256("a");
    let issuer = Issuer::start(&[&signer]);
    let settings = [
        ("HYPERCACHE_OIDC_IDENTITY_CLAIM", "email"),
        ("HYPERCACHE_OIDC_SCOPE_CLAIM", "roles"),
        ("HYPERCACHE_OIDC_LEEWAY", "10m"),
    ];
    let trusting = Trusting::start(&issuer, &settings);
    let claims = with(issuer.claims(), "email", json!("alice@example.com"));
    let claims = with(claims, "roles", json!(["read", "other", "admin"]));
    let claims = with(claims, "exp", json!(now_unix_s() - 60));
    let token = signer.token(&claims);
    let mut client = trusting.connect(&token);
    let me = get(&mut client, "/v1/me", &token).json();
    assert_eq!(me["id"], "alice@example.com");
    assert_eq!(me["scopes"], json!(["read", "admin"]));
    let unnamed = signer.token(&issuer.claims());
    get(&mut client, "/v1/me", &unnamed).expect_error(401, "UNAUTHORIZED");
}

#[test]
fn tokens_of_the_policy_count_beside_those_of_an_issuer() {
    let signer = Signer::es256("a");
    let issuer = Issuer::start(&[&signer]);
    let trusting = Trusting::start(&issuer, &[("HYPERCACHE_AUTH_TOKEN", "static")]);
    let token = signer.token(&issuer.claims());
    let mut client = trusting.connect(&token);
    assert_eq!(get(&mut client, "/v1/me", &token).json()["id"], "alice");
    let static_id = get(&mut client, "/v1/me", "static").json()["id"].clone();
    assert_eq!(static_id, "default");
    get(&mut client, "/v1/me", "wrong").expect_error(401, "UNAUTHORIZED");
}

#[test]
fn made_up_keys_cost_the_issuer_a_few_fetches() {
    let signer = Signer::es256("a");
    let issuer = Issuer::start(&[&signer]);
    let trusting = Trusting::start(&issuer, &[]);
    let good = signer.token(&issuer.claims());
    let mut client = trusting.connect(&good);
    let stranger = Signer::eddsa("x");
    for made_up in 0..500 {
        let header = with(
            stranger.header(),
            "kid",
            json!(format!("made-up-{made_up}")),
        );
        let token = stranger.token_with(&header, &issuer.claims());
        assert_eq!(get(&mut client, "/v1/me", &token).status, 401);
    }
    // One at the start, three at once, and one more for each ten seconds.
    assert!(
        (2..10).contains(&issuer.asked().discovery),
        "{:?}",
        issuer.asked()
    );
    assert_eq!(get(&mut client, "/v1/me", &good).status, 200);
}

#[test]
fn authorities_that_change_are_taken_over() {
    let signer = Signer::es256("a");
    let issuer = Issuer::start(&[&signer]);
    let stranger = Issuer::start(&[]);
    let soon = ("HYPERCACHE_RELOAD_INTERVAL", "10ms");
    let trusting = Trusting::vouched_for_by(&issuer, &stranger.ca_pem, &[soon]);
    until(|| trusting.node.has_logged("invalid peer certificate"));
    let token = signer.token(&issuer.claims());
    let mut client = trusting.node.connect();
    expect_later(&get(&mut client, "/v1/me", &token));
    trusting.folder.file("ca.pem", &issuer.ca_pem);
    until(|| get(&mut client, "/v1/me", &token).status == 200);
}

#[test]
fn an_issuer_that_cannot_be_right_stops_the_start_with_one_line() {
    let folder = Folder::new();
    let junk = folder.file("junk.pem", "no certificate");
    let absent = folder.path("absent.pem");
    let https = "https://id.example.com";
    let audience = (SETTING_AUDIENCE, AUDIENCE);
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[(SETTING_ISSUER, https)], SETTING_AUDIENCE),
        (&[audience], SETTING_ISSUER),
        (
            &[(SETTING_ISSUER, "http://id.example.com"), audience],
            SETTING_ISSUER,
        ),
        (
            &[(SETTING_ISSUER, "https://id.example.com?a"), audience],
            SETTING_ISSUER,
        ),
        (
            &[(SETTING_ISSUER, "id.example.com"), audience],
            SETTING_ISSUER,
        ),
        (
            &[(SETTING_ISSUER, https), audience, (SETTING_CA, &junk)],
            SETTING_CA,
        ),
        (
            &[(SETTING_ISSUER, https), audience, (SETTING_CA, &absent)],
            SETTING_CA,
        ),
        (&[(SETTING_CA, &junk)], SETTING_ISSUER),
    ];
    for (env, named) in cases {
        let output = command(env).output().expect("the node runs");
        assert!(!output.status.success(), "{env:?}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(told.lines().count(), 1, "{env:?}: {told}");
        assert!(told.contains(named), "{env:?}: {told}");
    }
}
