//! Strangers on the listeners that are not for clients: management and peers.

use std::io::Write;
use std::net::TcpStream;

use crate::hostile::{metric, read_to_end, wait_for_metric};
use crate::node::{Client, GUARD, Node};

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
    wait_for_metric(&node, "peer_connections_displaced_total", |count| count == 101);
    assert_eq!(metric(&node, "peer_connections_refused_total"), 0);
    assert!(!node.has_logged("over the limit"));
    drop(strangers);
}
