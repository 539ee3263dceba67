//! TLS on the listeners of real nodes: who is served, who is known by a certificate, and
//! how certificates are replaced.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/files.rs"]
mod files;
#[path = "support/node.rs"]
mod node;

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use certificates::{Authority, Identity, client_config};
use files::Folder;
use node::{Client, GUARD, Node, command};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Each core takes over what has changed in its own time: where one connection has seen it
/// and the next must, they are to meet the same core.
const ONE_CORE: (&str, &str) = ("HYPERCACHE_CORES", "1");
const SOON: (&str, &str) = ("HYPERCACHE_RELOAD_INTERVAL", "10ms");
const POLICY: &str = "HYPERCACHE_AUTH_CONFIG";

/// Certificates of a node, in files.
struct Setup {
    folder: Folder,
    authority: Authority,
}

impl Setup {
    fn new() -> Self {
        let setup = Self {
            folder: Folder::new(),
            authority: Authority::new("test authority"),
        };
        setup.install(&setup.authority.server(&["localhost", "127.0.0.1"]));
        setup.folder.file("ca.pem", &setup.authority.pem());
        setup
    }

    fn install(&self, identity: &Identity) {
        self.folder.file("cert.pem", &identity.cert);
        self.folder.file("key.pem", &identity.key);
    }

    /// What a node is told for one of its listeners.
    fn settings(&self, listener: &str, names: &[&str]) -> Vec<(String, String)> {
        let setting = |name: &&str| {
            let (name, file) = match *name {
                "CERT" => ("CERT", "cert.pem"),
                "KEY" => ("KEY", "key.pem"),
                other => (other, "ca.pem"),
            };
            (
                format!("HYPERCACHE_{listener}_TLS_{name}"),
                self.folder.path(file),
            )
        };
        names.iter().map(setting).collect()
    }

    fn start(&self, listeners: &[(&str, &[&str])], more: &[(&str, &str)]) -> Node {
        let mut env = Vec::new();
        for (listener, names) in listeners {
            env.extend(self.settings(listener, names));
        }
        let mut all: Vec<(&str, &str)> =
            env.iter().map(|(name, file)| (&**name, &**file)).collect();
        all.extend_from_slice(more);
        Node::start(&all)
    }

    fn trusting(&self) -> Arc<ClientConfig> {
        client_config(&self.authority, None, &TLS13)
    }

    fn showing(&self, identity: &Identity) -> Arc<ClientConfig> {
        client_config(&self.authority, Some(identity), &TLS13)
    }
}

const PAIR: &[&str] = &["CERT", "KEY"];
const MUTUAL: &[&str] = &["CERT", "KEY", "CLIENT_CA"];

/// Shakes hands; a server that demands a certificate refuses with the first read.
fn connect(address: &str, config: &Arc<ClientConfig>) -> io::Result<Client<Tls>> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(GUARD))?;
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut tls = StreamOwned::new(session, stream);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    Ok(Client::over(tls))
}

/// Whether a whole exchange works: under TLS 1.3 a client only learns from its first
/// answer that its certificate is not good.
fn is_served(address: &str, config: &Arc<ClientConfig>) -> bool {
    let Ok(mut client) = connect(address, config) else {
        return false;
    };
    let request = node::request("GET", "/healthz", "", b"");
    let asked = io::Write::write_all(&mut client.stream, &request);
    let mut answer = [0; 12];
    asked
        .and_then(|()| io::Read::read_exact(&mut client.stream, &mut answer))
        .is_ok()
}

fn until(mut ask: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !ask() {
        assert!(begun.elapsed() < GUARD, "it does not happen");
    }
}

fn id(client: &mut Client<Tls>, headers: &str) -> String {
    let answer = client.request("GET", "/v1/me", headers, b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}

#[test]
fn clients_and_monitors_are_served_under_both_versions_and_nothing_in_the_clear() {
    let setup = Setup::new();
    let node = setup.start(&[("API", PAIR), ("MGMT", PAIR)], &[]);
    for version in [&TLS12, &TLS13] {
        let config = client_config(&setup.authority, None, version);
        let mut client = connect(&node.api, &config).unwrap();
        assert_eq!(client.stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let value: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
        assert_eq!(client.put("/v1/cache/large", &value).status, 200);
        assert!(
            client.get("/v1/cache/large").body == value,
            "it comes back changed"
        );
        let many = node::request("GET", "/v1/cache/large", "", b"").repeat(3);
        client.send(many);
        for _ in 0..3 {
            assert_eq!(client.answer().body.len(), value.len());
        }
        let mut monitor = connect(&node.mgmt, &config).unwrap();
        let metrics = monitor.get("/metrics").text();
        assert!(metrics.contains("hypercache_certificate_expires_timestamp_seconds"));
    }
    for address in [&node.api, &node.mgmt] {
        let mut plain = Client::connect(address);
        plain.send(node::request("GET", "/healthz", "", b""));
        let mut seen = Vec::new();
        let _ = io::Read::read_to_end(&mut plain.stream, &mut seen);
        assert!(!seen.starts_with(b"HTTP/"), "answered in the clear");
    }
}

#[test]
fn a_password_is_taken_under_tls() {
    let setup = Setup::new();
    let hash = bcrypt::hash("pw", 4).unwrap();
    let policy =
        format!("users: [{{id: ops, username: olga, password_bcrypt: '{hash}', scopes: [read]}}]");
    let policy = setup.folder.file("policy", &policy);
    let node = setup.start(&[("API", PAIR)], &[(POLICY, &policy)]);
    let mut client = connect(&node.api, &setup.trusting()).unwrap();
    let shown = format!("Authorization: Basic {}\r\n", STANDARD.encode("olga:pw"));
    assert_eq!(id(&mut client, &shown), "ops");
    client.get("/v1/me").expect_error(401, "UNAUTHORIZED");
}

#[test]
fn a_client_is_known_by_its_certificate_and_a_token_goes_first() {
    let setup = Setup::new();
    let policy = setup.folder.file(
        "policy",
        "tokens: [{id: svc, token: t, scopes: [read]}]\n\
         cert_identities: [{subject_cn: batch, scopes: [read]}]\n",
    );
    let env = [
        (POLICY, policy.as_str()),
        ("HYPERCACHE_API_TLS_CLIENT_AUTH", "request"),
    ];
    let node = setup.start(&[("API", MUTUAL)], &env);
    let batch = setup.authority.client("batch");
    let mut client = connect(&node.api, &setup.showing(&batch)).unwrap();
    assert_eq!(id(&mut client, ""), "batch");
    client
        .put("/v1/cache/k", b"v")
        .expect_error(403, "FORBIDDEN");
    assert_eq!(id(&mut client, "Authorization: Bearer t\r\n"), "svc");
    assert_eq!(id(&mut client, "Authorization: Bearer wrong\r\n"), "batch");

    // Good, but nobody's; none at all; and one that another authority vouches for.
    let stranger = setup.authority.client("stranger");
    let mut client = connect(&node.api, &setup.showing(&stranger)).unwrap();
    client.get("/v1/me").expect_error(401, "UNAUTHORIZED");
    let mut client = connect(&node.api, &setup.trusting()).unwrap();
    client.get("/v1/me").expect_error(401, "UNAUTHORIZED");
    let foreign = Authority::new("another").client("batch");
    assert!(!is_served(&node.api, &setup.showing(&foreign)));
    let expired = setup.authority.client_until("batch", (2020, 1, 1));
    assert!(!is_served(&node.api, &setup.showing(&expired)));
}

#[test]
fn where_a_certificate_is_required_nobody_is_served_without() {
    let setup = Setup::new();
    let node = setup.start(&[("API", MUTUAL), ("MGMT", MUTUAL)], &[]);
    assert!(!is_served(&node.api, &setup.trusting()));
    assert!(is_served(
        &node.api,
        &setup.showing(&setup.authority.client("any"))
    ));
    // On the management listener it is only asked for: kubelets have none.
    let mut kubelet = connect(&node.mgmt, &setup.trusting()).unwrap();
    assert!(["ok", "bootstrapping"].contains(&&*kubelet.get("/health").text()));
}

#[test]
fn a_new_certificate_is_shown_without_a_restart_and_a_broken_one_is_not() {
    let setup = Setup::new();
    let node = setup.start(&[("API", PAIR)], &[SOON, ONE_CORE]);
    let old = setup.trusting();
    let mut open = connect(&node.api, &old).unwrap();
    let serial = |config: &Arc<ClientConfig>| {
        let client = connect(&node.api, config).ok()?;
        let shown = client.stream.conn.peer_certificates()?.first()?.clone();
        Some(shown.into_owned())
    };
    let first = serial(&setup.trusting()).unwrap();

    // A key that is another's: what is in force stays, and it is told.
    let next = setup.authority.server(&["localhost"]);
    setup.folder.file("cert.pem", &next.cert);
    assert!(node.has_logged_soon("HYPERCACHE_API_TLS_KEY"));
    assert!(node.has_logged_soon("cannot be taken over"));
    assert_eq!(serial(&setup.trusting()), Some(first.clone()));

    setup.folder.file("key.pem", &next.key);
    until(|| serial(&setup.trusting()) == Some(next.der()));
    // Who is connected stays so, and a session from before is not resumed.
    assert_eq!(open.get("/healthz").status, 200);
    assert_eq!(serial(&old), Some(next.der()));
}

#[test]
fn who_is_not_vouched_for_any_more_is_expelled_from_an_open_connection() {
    let setup = Setup::new();
    let policy = setup.folder.file(
        "policy",
        "cert_identities: [{subject_cn: batch, scopes: [read]}]\nallow_anonymous: true\n",
    );
    let node = setup.start(&[("API", MUTUAL)], &[(POLICY, &policy), SOON, ONE_CORE]);
    let batch = setup.authority.client("batch");
    let showing = setup.showing(&batch);
    let mut client = connect(&node.api, &showing).unwrap();
    assert_eq!(id(&mut client, ""), "batch");
    let other = Authority::new("another");
    setup.folder.file("ca.pem", &other.pem());
    until(|| {
        let answer = client.get("/v1/me");
        if answer.status == 401 {
            assert!(answer.text().contains("no longer good"), "{answer:?}");
        }
        answer.status == 401
    });
    client.expect_closed();
    assert!(!is_served(&node.api, &showing), "not by a ticket either");
    let known = other.client("batch");
    let mut client = connect(&node.api, &setup.showing(&known)).unwrap();
    assert_eq!(id(&mut client, ""), "batch");
}

#[test]
fn who_shows_a_certificate_is_served_until_it_ends() {
    let setup = Setup::new();
    let node = setup.start(&[("API", MUTUAL)], &[]);
    let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(3);
    let short = setup
        .authority
        .sign("any", &[], |params| params.not_after = soon.into());
    let mut client = connect(&node.api, &setup.showing(&short)).unwrap();
    assert_eq!(client.get("/v1/me").status, 200);
    until(|| client.get("/v1/me").status == 401);
    client.expect_closed();
}

#[test]
fn files_that_cannot_be_used_stop_the_start_with_one_line() {
    let setup = Setup::new();
    let other = setup.authority.server(&["localhost"]);
    let empty = setup.folder.file("empty", "");
    let text = setup
        .folder
        .file("text", "-----BEGIN CERTIFICATE-----\n!\n");
    let key = setup.folder.file("other-key", &other.key);
    for (replaced, file, named) in [
        ("CERT", "/nowhere", "cannot be read"),
        ("CERT", &empty, "no certificate"),
        ("CERT", &text, "PEM"),
        ("KEY", &empty, "no private key"),
        ("KEY", &key, "not the one of the first certificate"),
        ("CLIENT_CA", &empty, "no certificate"),
    ] {
        let mut env = setup.settings("API", MUTUAL);
        let setting = format!("HYPERCACHE_API_TLS_{replaced}");
        for (name, value) in &mut env {
            if *name == setting {
                *value = file.to_owned();
            }
        }
        let env: Vec<(&str, &str)> = env.iter().map(|(name, file)| (&**name, &**file)).collect();
        for args in [&[][..], &["--check-config"]] {
            let output = command(&env).args(args).output().unwrap();
            assert!(!output.status.success(), "{env:?} starts");
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(log.lines().count(), 1, "{log}");
            assert!(log.contains(&setting) && log.contains(named), "{log}");
        }
    }
}

#[test]
fn handshakes_with_the_management_listener_are_counted() {
    let setup = Setup::new();
    let node = setup.start(&[("MGMT", PAIR)], &[]);
    let mut stranger = TcpStream::connect(&node.mgmt).unwrap();
    stranger.set_read_timeout(Some(GUARD)).unwrap();
    io::Write::write_all(&mut stranger, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // An alert, or a reset that overtakes it: either way it is over then.
    let _ = io::Read::read_to_end(&mut stranger, &mut Vec::new());
    let mut monitor = connect(&node.mgmt, &setup.trusting()).unwrap();
    let metrics = monitor.get("/metrics").text();
    for counted in [
        "hypercache_management_handshakes_total 1\n",
        "hypercache_management_handshakes_failed_total 1\n",
    ] {
        assert!(metrics.contains(counted), "{counted}");
    }
}
