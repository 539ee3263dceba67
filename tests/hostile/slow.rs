//! Clients that send or read too slowly, or not at all.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use crate::hostile::{
    MIB, Neighbours, Peak, connect, metric, read_to_end, resident, send_what_goes, show, status_of,
    wait_for_metric,
};
use crate::node::{Node, request};

/// Sends one byte again and again until the node has had enough.
fn dribble(mut stream: TcpStream, byte: u8) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while stream.write_all(&[byte]).is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    })
}

#[test]
fn whoever_dribbles_a_request_for_ever_is_cut_by_the_deadline_of_the_whole_request() {
    let node = Node::start(&[("HYPERCACHE_READ_TIMEOUT", "700ms")]);
    let neighbours = Neighbours::of(&node);
    let put = "PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\n";
    let chunked = format!("{put}Transfer-Encoding: chunked\r\n\r\n");
    let cases: [(String, u8); 9] = [
        ("G".into(), b'E'),
        ("GET /v1/cache/".into(), b'k'),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nX: ".into(), b'x'),
        (format!("{put}Content-Length: 4000000\r\n\r\n"), b'v'),
        (format!("{chunked}100000\r\n"), b'v'),
        (format!("{chunked}1;"), b'e'),
        (chunked.clone(), b'0'),
        (format!("{chunked}1\r\nv\r\n0\r\nT: "), b't'),
        // A first request that is complete buys the second no time.
        (
            format!("{}GET", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"),
            b'E',
        ),
    ];
    let slow: Vec<_> = cases
        .iter()
        .map(|(start, byte)| {
            let mut stream = connect(&node);
            stream.write_all(start.as_bytes()).unwrap();
            let dribbling = dribble(stream.try_clone().unwrap(), *byte);
            (start, stream, dribbling)
        })
        .collect();
    for (start, mut stream, dribbling) in slow {
        let answers = read_to_end(&mut stream);
        let text = String::from_utf8_lossy(&answers);
        let last = text.rfind("HTTP/1.1 ").map(|at| &text.as_bytes()[at..]);
        // Sixteen digits of a chunk's size are too many before the time is over.
        let refused = last.and_then(status_of);
        assert!(matches!(refused, Some(408 | 400)), "{start:?}: {text}");
        drop(stream);
        dribbling.join().unwrap();
    }
    let expired = wait_for_metric(&node, "connections_expired_request_total", |cut| cut >= 7);
    assert!(expired <= 9, "{expired}");
    assert!(metric(&node, "connections_expired_total") >= expired);
    neighbours.were_served();
}

#[test]
fn clients_that_never_read_large_answers_are_cut_and_the_memory_is_bounded() {
    const CLIENTS: usize = 200;
    const LIMIT: usize = 64 * MIB;
    let node = Node::start(&[
        ("HYPERCACHE_WRITE_TIMEOUT", "2s"),
        ("HYPERCACHE_BUFFER_LIMIT", "64MiB"),
    ]);
    let value = vec![b'B'; MIB];
    assert_eq!(node.connect().put("/v1/cache/big", &value).status, 200);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let peak = Peak::of(&node, "buffer_taken_bytes");
    // By turns the bytes themselves, which are the store's, and JSON, which is not.
    let asks: Vec<Vec<u8>> = ["", "Accept: application/json\r\n"]
        .map(|accept| request("GET", "/v1/cache/big", accept, b"").repeat(20))
        .into();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = connect(&node);
        send_what_goes(&mut client, &asks[number % 2]);
        clients.push(client);
    }
    let cut = "connections_expired_write_total";
    // Those whose JSON was refused for want of room were sent nothing they had to read.
    wait_for_metric(&node, cut, |cut| cut as usize >= CLIENTS / 2);
    wait_for_metric(&node, "buffered_bytes", |bytes| bytes == 0);
    let (buffered, highest) = peak.end();
    show("buffered at most", buffered as usize);
    show("resident, grown by at most", highest.saturating_sub(before));
    assert!(buffered as usize <= LIMIT + 16 * MIB, "{buffered}");
    assert!(highest < before + LIMIT + 96 * MIB, "{before} to {highest}");
    neighbours.were_served();
}

#[test]
fn floods_of_pipelined_requests_whose_answers_nobody_reads_stop_being_read() {
    let node = Node::start(&[("HYPERCACHE_WRITE_TIMEOUT", "2s")]);
    node.connect().put("/v1/cache/k", &[b'v'; 10_000]);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let floods: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = connect(&node);
            thread::spawn(move || {
                let requests = request("GET", "/v1/cache/k", "", b"").repeat(1000);
                // Ends when the node, having cut the connection, resets it.
                while send_what_goes(&mut stream, &requests) {}
            })
        })
        .collect();
    wait_for_metric(&node, "connections_expired_write_total", |cut| cut == 50);
    for flood in floods {
        flood.join().unwrap();
    }
    let grown = resident(&node).saturating_sub(before);
    show("resident, grown by", grown);
    assert!(grown < 64 * MIB, "{grown}");
    neighbours.were_served();
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_are_closed_when_their_time_is_over() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut descriptors = getrlimit(Resource::Nofile);
    descriptors.current = descriptors.maximum;
    setrlimit(Resource::Nofile, descriptors).unwrap();
    let room = descriptors.current.unwrap_or(u64::MAX).saturating_sub(2000);
    let count = room.min(10_000) as usize;
    if count < 10_000 {
        println!("only {count} connections: more descriptors are not granted");
    }
    let node = Node::start(&[("HYPERCACHE_IDLE_TIMEOUT", "15s")]);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let ask = request("GET", "/healthz", "", b"");
    let mut idle: Vec<TcpStream> = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = TcpStream::connect(&node.api).unwrap();
        // Every other one has asked for something before.
        if number % 2 == 0 {
            stream.write_all(&ask).unwrap();
        }
        idle.push(stream);
    }
    let open = |open| open as usize >= count;
    wait_for_metric(&node, "connections_open", open);
    let grown = resident(&node).saturating_sub(before);
    show("resident, grown by", grown);
    println!("that is {} bytes for each connection", grown / count);
    assert!(grown < 100 * MIB, "{grown}");
    let all = |expired| expired as usize == count;
    wait_for_metric(&node, "connections_expired_idle_total", all);
    wait_for_metric(&node, "connections_open", |open| open <= 2);
    neighbours.were_served();
}
