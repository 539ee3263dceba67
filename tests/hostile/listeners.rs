//! Strangers on the listeners that are not for clients: management and peers.

use std::io::Write;
use std::net::TcpStream;

use crate::hostile::{metric, read_to_end, wait_for_metric};
use crate::node::{Client, GUARD, Node, command};

/// Connections that ask for nothing.
fn idle(address: &str, count: usize) -> Vec<TcpStream> {
    let connect = |_| {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream
    };
    (0..count).map(connect).collect()
}

fn patient(more: &[(&str, &str)]) -> Node {
    Node::start(&[&[("HYPERCACHE_IDLE_TIMEOUT", "10m")], more].concat())
}

fn peer(node: &Node) -> &str {
    node.serving["peer"].as_str().unwrap()
}

#[test]
fn idle_strangers_do_not_keep_a_kubelet_from_the_management_listener() {
    let node = patient(&[]);
    let mut strangers = idle(&node.mgmt, 300);
    let mut kubelet = Client::connect(&node.mgmt);
    assert!([200, 503].contains(&kubelet.get("/health").status));
    let displaced = metric(&node, "management_connections_displaced_total");
    // One more for the kubelet, and one for whoever asked for the metric.
    assert_eq!(displaced, 300 + 2 - 256);
    assert_eq!(metric(&node, "management_connections_refused_total"), 0);
    // The first that came have gone, the last have not.
    for stranger in &mut strangers[..46] {
        assert!(read_to_end(stranger).is_empty());
    }
    let last = strangers.last_mut().unwrap();
    last.write_all(b"GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert!(!read_to_end(last).is_empty());
    assert!(!node.has_logged("over the limit"));
}

#[test]
fn idle_strangers_do_not_keep_peers_from_their_listener() {
    // One core, so that all connections are its.
    let node = patient(&[("HYPERCACHE_CORES", "1")]);
    let strangers = idle(peer(&node), 1024 + 100);
    let mut other = Client::connect(peer(&node));
    assert!([200, 503].contains(&other.get("/health").status));
    wait_for_metric(&node, "peer_connections_displaced_total", |count| {
        count == 101
    });
    assert_eq!(metric(&node, "peer_connections_refused_total"), 0);
    assert!(!node.has_logged("over the limit"));
    drop(strangers);
}

#[test]
fn descriptors_are_asked_for_all_connections_that_may_be_open() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    use std::os::unix::process::CommandExt;
    let mut few = command(&[("HYPERCACHE_CONNECTIONS", "1000")]);
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(256);
    // SAFETY: setrlimit is async-signal-safe and touches nothing of this process.
    unsafe {
        few.pre_exec(move || Ok(setrlimit(Resource::Nofile, limit)?));
    }
    let node = Node::spawn(few);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    let (granted, most) = (words[3], words[4]);
    // Clients, peers on two cores, management.
    let accepted: u64 = 1000 + 2 * 1024 + 256;
    let enough = granted == "unlimited" || granted.parse::<u64>().unwrap() > accepted;
    // Or as many as there may be, and that is told.
    let told = || node.has_logged_soon("the limit on open files is lower");
    assert!(enough || (granted == most && told()), "{granted} of {most}");
}

#[test]
fn no_answer_to_head_has_a_body_whatever_is_wrong() {
    let node = Node::start(&[
        ("HYPERCACHE_PEER_TOKEN", "peers"),
        ("HYPERCACHE_READ_TIMEOUT", "300ms"),
    ]);
    let token = "Authorization: Bearer peers\r\n";
    let mut client = Client::connect(peer(&node));
    for (target, headers, status) in [
        ("/peer/v1/keys", "", 401),
        ("/nowhere", token, 404),
        ("/peer/v1/keys", token, 404),
        ("/health", "", 200),
    ] {
        let answer = client.request("HEAD", target, headers, b"");
        // Were there a body, it would be taken for the start of the next answer.
        assert!(
            [status, 503].contains(&answer.status),
            "{target}: {answer:?}"
        );
    }
    let long = "x".repeat(9000);
    for address in [&node.api, &node.mgmt, peer(&node)] {
        for (request, status) in [
            (format!("HEAD /{long} HTTP/1.1\r\nHost: t\r\n\r\n"), 414),
            (
                format!("HEAD / HTTP/1.1\r\nHost: t\r\nX: {long}{long}\r\n\r\n"),
                431,
            ),
            ("HEAD / HTTP/1.1\r\n\r\n".to_owned(), 400),
            ("HEAD / HTTP/1.1\r\nHost: ".to_owned(), 408),
        ] {
            let mut client = Client::connect(address);
            client.send(request);
            let answer = client.answer_to("HEAD");
            assert_eq!(answer.status, status, "{address}");
            client.expect_closed();
        }
    }
}
