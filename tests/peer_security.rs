//! What nodes show each other, in clusters of real ones: certificates, tokens, and both
//! replaced while clients write.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/files.rs"]
mod files;
#[path = "support/node.rs"]
mod node;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use certificates::{Authority, Identity, client_config};
use cluster::{API, Cluster, MANAGEMENT, PEERS, until};
use files::Folder;
use node::{Client, GUARD, StopOnDrop};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

const NAME: &str = "node.test";
const SOON: (&str, &str) = ("HYPERCACHE_RELOAD_INTERVAL", "10ms");

fn env(folder: &Folder) -> Vec<(&'static str, String)> {
    vec![
        ("HYPERCACHE_PEER_TLS_CERT", folder.path("cert.pem")),
        ("HYPERCACHE_PEER_TLS_KEY", folder.path("key.pem")),
        ("HYPERCACHE_PEER_TLS_CA", folder.path("ca.pem")),
    ]
}

fn borrowed<'a>(env: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    env.iter().map(|(name, value)| (*name, &**value)).collect()
}

fn install(folder: &Folder, identity: &Identity) {
    folder.file("cert.pem", &identity.cert);
    folder.file("key.pem", &identity.key);
}

/// Asks a peer listener over TLS, showing what `config` has.
fn health(address: &str, config: &Arc<ClientConfig>) -> io::Result<u16> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(GUARD))?;
    let name = ServerName::try_from(NAME).unwrap();
    let session = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut tls = StreamOwned::new(session, stream);
    tls.write_all(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")?;
    let mut head = [0; 12];
    tls.read_exact(&mut head)?;
    Ok(std::str::from_utf8(&head[9..]).unwrap().parse().unwrap())
}

fn is_served(address: &str, config: &Arc<ClientConfig>) -> bool {
    health(address, config).is_ok_and(|status| status == 200)
}

/// A counter of a node, over its cores.
fn counted(cluster: &Cluster, node: usize, name: &str) -> u64 {
    let text = Client::connect(&cluster.address(node, MANAGEMENT))
        .get("/metrics")
        .text();
    let of_name = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (_, value) = rest.rsplit_once(' ')?;
        value.parse::<u64>().ok()
    };
    text.lines().filter_map(of_name).sum()
}

/// Writes and reads at QUORUM through all nodes until told to stop; panics when one is
/// refused. Says how often.
fn write_until(cluster: &Cluster, stop: &AtomicBool, rounds: &AtomicU64) {
    let mut clients: Vec<Client> = (0..3)
        .map(|node| Client::connect(&cluster.address(node, API)))
        .collect();
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        for client in &mut clients {
            let target = format!("/v1/cache/k{}", round % 100);
            let quorum = "X-Cache-Consistency: QUORUM\r\n";
            let put = client.request("PUT", &target, quorum, b"v");
            assert_eq!(put.status, 200, "{put:?}");
            let got = client.request("GET", &target, quorum, b"");
            assert_eq!(got.status, 200, "{got:?}");
        }
        round += 1;
        rounds.store(round, Ordering::Relaxed);
    }
}

/// Does `change` while clients write, and has them write on for a while after it.
fn while_clients_write(cluster: &Cluster, change: impl FnOnce()) {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _ends = StopOnDrop(&stop);
        let writer = scope.spawn(|| write_until(cluster, &stop, &rounds));
        let some_rounds = || {
            let from = rounds.load(Ordering::Relaxed);
            until("clients write", || {
                writer.is_finished() || rounds.load(Ordering::Relaxed) > from + 20
            });
        };
        some_rounds();
        change();
        some_rounds();
    });
}

#[test]
fn nodes_know_each_other_by_certificates_and_nobody_else_is_served() {
    let (folder, authority) = (Folder::new(), Authority::new("cluster"));
    install(&folder, &authority.node(&[NAME]));
    folder.file("ca.pem", &authority.pem());
    let mut settings = env(&folder);
    settings.push(("HYPERCACHE_PEER_TLS_SERVER_NAME", NAME.to_owned()));
    let mut cluster = Cluster::start_with_spares(3, 1, &borrowed(&settings));
    while_clients_write(&cluster, || {});

    let address = cluster.address(0, PEERS);
    let member = authority.client("any");
    assert!(is_served(
        &address,
        &client_config(&authority, Some(&member), &TLS13)
    ));
    assert!(!is_served(
        &address,
        &client_config(&authority, None, &TLS13)
    ));
    let other = Authority::new("another");
    let stranger = other.client("any");
    assert!(!is_served(
        &address,
        &client_config(&authority, Some(&stranger), &TLS13)
    ));
    let mut plain = Client::connect(&address);
    plain.send("GET /health HTTP/1.1\r\nHost: t\r\n\r\n");
    let mut seen = Vec::new();
    let _ = plain.stream.read_to_end(&mut seen);
    assert!(!seen.starts_with(b"HTTP/"), "answered in the clear");

    // A node that another authority vouches for does not come in.
    let foreign = Folder::new();
    install(&foreign, &other.node(&[NAME]));
    foreign.file("ca.pem", &format!("{}{}", authority.pem(), other.pem()));
    let before = counted(&cluster, 0, "hypercache_handshakes_failed_total");
    cluster.launch_with(3, &borrowed(&env(&foreign)));
    until("the stranger is refused", || {
        counted(&cluster, 0, "hypercache_handshakes_failed_total") > before
    });
    let members = cluster.connect_management(0).get("/cluster/members").json();
    assert_eq!(members["members"].as_array().unwrap().len(), 3);
}

#[test]
fn without_a_name_of_the_cluster_a_node_is_expected_under_its_address() {
    let (folder, authority) = (Folder::new(), Authority::new("cluster"));
    let settings = env(&folder);
    let mut cluster = Cluster::prepare(2, &borrowed(&settings));
    let hosts: Vec<String> = (0..2)
        .map(|node| cluster.address(node, PEERS))
        .map(|address| address.split(':').next().unwrap().to_owned())
        .collect();
    let hosts: Vec<&str> = hosts.iter().map(|host| &**host).collect();
    install(&folder, &authority.node(&hosts));
    folder.file("ca.pem", &authority.pem());
    cluster.launch(0);
    cluster.launch(1);
    cluster.settle();

    // One whose certificate names another address is taken for an impostor.
    let elsewhere = Folder::new();
    install(&elsewhere, &authority.node(&["192.0.2.1"]));
    elsewhere.file("ca.pem", &authority.pem());
    cluster.kill(1);
    cluster.launch_with(1, &borrowed(&env(&elsewhere)));
    let handshakes = || counted(&cluster, 1, "hypercache_handshakes_failed_total");
    until("the other hangs up", || handshakes() > 0);
}

#[test]
fn the_authority_of_nodes_is_replaced_while_clients_write() {
    let (folder, old) = (Folder::new(), Authority::new("old"));
    install(&folder, &old.node(&[NAME]));
    folder.file("ca.pem", &old.pem());
    let mut settings = env(&folder);
    settings.push(("HYPERCACHE_PEER_TLS_SERVER_NAME", NAME.to_owned()));
    settings.push((SOON.0, SOON.1.to_owned()));
    let cluster = Cluster::start(3, &borrowed(&settings));
    let new = Authority::new("new");
    let by_old = client_config(&old, Some(&old.client("any")), &TLS13);
    let by_new = client_config(&new, Some(&new.client("any")), &TLS13);
    let on_all = |what: &str, holds: &dyn Fn(&str) -> bool| {
        until(what, || {
            (0..3).all(|node| holds(&cluster.address(node, PEERS)))
        });
    };
    let reloads = |count: u64| {
        until("all nodes have seen it", || {
            (0..3).all(|node| counted(&cluster, node, "hypercache_security_reloads_total") >= count)
        });
    };
    while_clients_write(&cluster, || {
        folder.file("ca.pem", &format!("{}{}", old.pem(), new.pem()));
        reloads(1);
        install(&folder, &new.node(&[NAME]));
        on_all("nodes show new certificates", &|address| {
            is_served(address, &by_new)
        });
        reloads(2);
        folder.file("ca.pem", &new.pem());
        on_all("the old ones count no more", &|address| {
            !is_served(address, &by_old)
        });
        assert!(is_served(&cluster.address(0, PEERS), &by_new));
    });
}

#[test]
fn the_token_of_peers_is_replaced_while_clients_write() {
    let folder = Folder::new();
    let file = folder.secret("token", "old\n");
    let cluster = Cluster::start(3, &[("HYPERCACHE_PEER_TOKEN_FILE", &file), SOON]);
    let admits = |token: &str| {
        let headers = format!("Authorization: Bearer {token}\r\n");
        (0..3).all(|node| {
            let mut peer = Client::connect(&cluster.address(node, PEERS));
            peer.request("GET", "/peer/v1/keys", &headers, b"").status == 200
        })
    };
    assert!(admits("old") && !admits("new"));
    while_clients_write(&cluster, || {
        folder.replace_secret("token", "old\nnew\n");
        until("all nodes take both", || admits("new"));
        folder.replace_secret("token", "new\nold\n");
        until("all nodes have seen it", || {
            (0..3).all(|node| counted(&cluster, node, "hypercache_security_reloads_total") == 2)
        });
        folder.replace_secret("token", "new\n");
        until("the old one counts no more", || !admits("old"));
        assert!(admits("new"));
    });
    assert_eq!(
        counted(&cluster, 0, "hypercache_security_reload_failures_total"),
        0
    );
}

#[test]
fn a_cluster_goes_over_to_tls_in_steps_whose_neighbours_speak_to_each_other() {
    let (folder, authority) = (Folder::new(), Authority::new("cluster"));
    install(&folder, &authority.node(&[NAME]));
    folder.file("ca.pem", &authority.pem());
    for step in [
        ["off", "accept"],
        ["accept", "prefer"],
        ["prefer", "require"],
    ] {
        let mut cluster = Cluster::prepare(3, &[]);
        for node in 0..3 {
            let mode = step[usize::from(node > 0)];
            let mut settings = env(&folder);
            settings.push(("HYPERCACHE_PEER_TLS_SERVER_NAME", NAME.to_owned()));
            settings.push(("HYPERCACHE_PEER_TLS_MODE", mode.to_owned()));
            if mode == "off" {
                settings.clear();
            }
            cluster.launch_with(node, &borrowed(&settings));
        }
        cluster.settle();
        while_clients_write(&cluster, || {});
        let tls: u64 = (0..3)
            .map(|node| counted(&cluster, node, "hypercache_handshakes_total"))
            .sum();
        assert_eq!(tls > 0, step[1] != "accept", "{step:?}");
    }
}
