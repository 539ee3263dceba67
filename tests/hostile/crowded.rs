//! Many who together ask for more memory than there is.

use std::io::Write;
use std::net::TcpStream;

use crate::hostile::{
    MIB, Neighbours, Peak, connect, metric, read_to_end, resident, send_what_goes, show, status_of,
    wait_for_metric,
};
use crate::node::{Client, GUARD, Node, request};

/// What a buffer limit of 32 MiB leaves for large requests.
const LIMIT: usize = 32 * MIB;
const LARGE: usize = LIMIT / 8 * 7;

/// More than the limit, for what is not counted by the byte: stacks, tasks, blocks that
/// the allocator has not given back.
const SLACK: usize = 96 * MIB;

fn node(more: &[(&str, &str)]) -> Node {
    let patient = [
        ("HYPERCACHE_BUFFER_LIMIT", "32MiB"),
        ("HYPERCACHE_READ_TIMEOUT", "2m"),
        ("HYPERCACHE_WRITE_TIMEOUT", "2m"),
        ("HYPERCACHE_IDLE_TIMEOUT", "10m"),
    ];
    Node::start(&[&patient, more].concat())
}

/// Whether the node has answered by closing this connection, after a moment at most.
fn is_refused(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut first = [0; 1];
    let answered = stream.peek(&mut first).is_ok();
    stream.set_nonblocking(false).unwrap();
    answered
}

fn bodies_that_together_exceed_the_limit(framing: &str, first: &[u8], part: &[u8], last: &[u8]) {
    const CLIENTS: usize = 64;
    let node = node(&[]);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let peak = Peak::of(&node, "buffer_taken_bytes");
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = connect(&node);
        let head = format!("PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        clients.push(client);
    }
    // All grow at the same time, to 3 MiB each but for the last byte.
    for round in 0..3 {
        for client in &mut clients {
            send_what_goes(client, if round == 0 { first } else { part });
        }
    }
    let refusals = wait_for_metric(&node, "requests_crowded_total", |refused| refused > 0);
    println!("{refusals} refused so far");
    let mut stored = 0;
    let mut refused = 0;
    for client in &mut clients {
        if !is_refused(client) {
            send_what_goes(client, last);
        }
        let answer = read_to_end_of_answer(client);
        match status_of(&answer) {
            Some(200) => stored += 1,
            Some(503) => {
                let text = String::from_utf8_lossy(&answer);
                assert!(text.contains("Retry-After: 1"), "{text}");
                assert!(text.contains("\"code\":\"INTERNAL\""), "{text}");
                assert!(text.contains("Connection: close"), "{text}");
                refused += 1;
            }
            // It was refused while it sent, and the reset overtook the answer.
            None => refused += 1,
            other => panic!("{other:?}: {}", String::from_utf8_lossy(&answer)),
        }
    }
    let (buffered, highest) = peak.end();
    println!("{stored} stored, {refused} refused");
    show("buffered at most", buffered as usize);
    show("resident, grown by at most", highest.saturating_sub(before));
    assert!(refused >= CLIENTS - 2 * LIMIT / (3 * MIB), "{refused}");
    assert!(stored > 0, "some find room");
    assert!(buffered as usize <= LIMIT + 4 * MIB, "{buffered}");
    assert!(highest < before + LIMIT + SLACK, "{before} to {highest}");
    wait_for_metric(&node, "requests_crowded_total", |counted| {
        counted as usize >= refused
    });
    drop(clients);
    wait_for_metric(&node, "buffered_bytes", |bytes| bytes == 0);
    let put = node.connect().put("/v1/cache/k", &vec![b'v'; 3 * MIB]);
    assert_eq!(put.status, 200, "there is room again");
    neighbours.were_served();
}

/// The first answer, from a connection that may go on.
fn read_to_end_of_answer(stream: &mut TcpStream) -> Vec<u8> {
    let _ = stream.shutdown(std::net::Shutdown::Write);
    read_to_end(stream)
}

#[test]
fn bodies_with_a_length_that_together_exceed_the_limit_are_refused_beyond_it() {
    let length = format!("Content-Length: {}", 3 * MIB);
    let part = vec![b'v'; MIB];
    bodies_that_together_exceed_the_limit(&length, &part[1..], &part, b"v");
}

#[test]
fn bodies_in_chunks_that_together_exceed_the_limit_are_refused_beyond_it() {
    let size = format!("{:x}\r\n", 3 * MIB);
    let first = [size.as_bytes(), &vec![b'v'; MIB - 1]].concat();
    let part = vec![b'v'; MIB];
    let chunked = "Transfer-Encoding: chunked";
    bodies_that_together_exceed_the_limit(chunked, &first, &part, b"v\r\n0\r\n\r\n");
}

#[test]
fn small_requests_are_served_while_large_ones_have_taken_all_they_may() {
    let node = node(&[]);
    let mut clients = Vec::new();
    let head = format!(
        "PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        4 * MIB
    );
    // One after the other, until one is refused: then there is no room for more.
    loop {
        let mut client = connect(&node);
        client.write_all(head.as_bytes()).unwrap();
        if !send_what_goes(&mut client, &vec![b'v'; 4 * MIB - 1]) {
            break;
        }
        clients.push(client);
        if metric(&node, "requests_crowded_total") > 0 {
            break;
        }
    }
    let full = |held| (LARGE - 5 * MIB..LARGE + MIB).contains(&(held as usize));
    wait_for_metric(&node, "buffered_bytes", full);
    let mut small = node.connect();
    for size in [1, 100, 4000, 12_000] {
        let value = vec![b's'; size];
        assert_eq!(small.put("/v1/cache/small", &value).status, 200, "{size}");
        assert_eq!(small.get("/v1/cache/small").body, value);
    }
    let answer = small.post("/v1/cache/batch/get", "{\"keys\":[\"small\"]}");
    assert_eq!(answer.status, 200, "{answer:?}");
    drop(clients);
    wait_for_metric(&node, "buffered_bytes", |bytes| bytes < MIB as u64);
    assert_eq!(
        node.connect()
            .put("/v1/cache/k", &vec![b'v'; 3 * MIB])
            .status,
        200
    );
}

#[test]
fn batch_answers_that_nobody_reads_together_stay_within_the_limit() {
    const CLIENTS: usize = 40;
    let node = node(&[]);
    let mut client = node.connect();
    for number in 0..400 {
        // Below the size from which values are shared, so that they are copied.
        let key = format!("/v1/cache/k{number}");
        assert_eq!(client.put(&key, &[b'v'; 16_000]).status, 200);
    }
    drop(client);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let peak = Peak::of(&node, "buffer_taken_bytes");
    let keys: Vec<String> = (0..400).map(|number| format!("\"k{number}\"")).collect();
    // 6.4 MB of values, 8.5 MB as base64.
    let body = format!("{{\"keys\":[{}]}}", keys.join(","));
    let ask = request("POST", "/v1/cache/batch/get", "", body.as_bytes());
    let mut clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| {
            let mut stream = connect(&node);
            stream.write_all(&ask).unwrap();
            stream
        })
        .collect();
    wait_for_metric(&node, "requests_crowded_total", |refused| refused > 0);
    wait_for_metric(&node, "requests_total", |requests| {
        requests as usize >= 400 + CLIENTS
    });
    let (mut whole, mut refused) = (0, 0);
    for client in &mut clients {
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = read_to_end(client);
        match status_of(&answer) {
            Some(200) => whole += 1,
            Some(503) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    let (buffered, highest) = peak.end();
    println!("{whole} answered, {refused} refused");
    show("buffered at most", buffered as usize);
    show("resident, grown by at most", highest.saturating_sub(before));
    assert!(whole > 0 && refused > 0);
    assert!(
        metric(&node, "copies_refused_total") > 0,
        "none got all at once"
    );
    assert!(buffered as usize <= LIMIT + 32 * MIB, "{buffered}");
    assert!(highest < before + LIMIT + SLACK, "{before} to {highest}");
    wait_for_metric(&node, "buffered_bytes", |bytes| bytes == 0);
    let answer = node.connect().post("/v1/cache/batch/get", &body);
    assert_eq!(answer.status, 200, "there is room again");
    neighbours.were_served();
}

#[test]
fn values_that_are_replaced_while_nobody_takes_them_count_and_come_back() {
    let node = node(&[]);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let peak = Peak::of(&node, "buffer_taken_bytes");
    let mut writer = node.connect();
    let mut stuck = Vec::new();
    // Each gets a value that is replaced as soon as it is on its way.
    let refused = (0..200).find(|number| {
        let value = vec![b'0' + (number % 10) as u8; 3 * MIB];
        if writer.put("/v1/cache/k", &value).status == 503 {
            return true;
        }
        let mut client = connect(&node);
        let mut first = [0; 1];
        // The kernel takes the first few.
        client
            .write_all(&request("GET", "/v1/cache/k", "", b"").repeat(8))
            .unwrap();
        client.peek(&mut first).unwrap();
        stuck.push(client);
        false
    });
    let (buffered, highest) = peak.end();
    println!("refused after {refused:?} values");
    show("buffered at most", buffered as usize);
    show("resident, grown by at most", highest.saturating_sub(before));
    assert!(
        refused.is_some(),
        "writes are refused when too many values are kept by readers"
    );
    assert!(highest < before + LIMIT + SLACK, "{before} to {highest}");
    drop(stuck);
    wait_for_metric(&node, "buffered_bytes", |bytes| bytes == 0);
    let put = node.connect().put("/v1/cache/k", &vec![b'v'; 3 * MIB]);
    assert_eq!(put.status, 200, "there is room again");
    neighbours.were_served();
}

#[test]
fn connections_that_were_busy_once_keep_no_room_for_it() {
    const CLIENTS: usize = 2000;
    let node = Node::start(&[("HYPERCACHE_IDLE_TIMEOUT", "10m")]);
    let neighbours = Neighbours::of(&node);
    let body = request("PUT", "/v1/cache/k", "", &vec![b'v'; MIB]);
    let pipeline = request("GET", "/v1/cache/small", "", b"").repeat(700);
    node.connect().put("/v1/cache/small", b"v");
    let visit = || {
        let mut client = node.connect();
        client.send(&body);
        assert_eq!(client.answer().status, 200);
        client.send(&pipeline);
        for _ in 0..700 {
            assert_eq!(client.answer().text(), "v");
        }
        client
    };
    // What the first few take is there for all.
    let mut idle: Vec<Client> = (0..10).map(|_| visit()).collect();
    let before = resident(&node);
    idle.extend((10..CLIENTS).map(|_| visit()));
    let grown = resident(&node).saturating_sub(before);
    show("resident, grown by", grown);
    println!("that is {} bytes for each connection", grown / CLIENTS);
    let kept = metric(&node, "buffered_bytes") as usize;
    show("kept for next requests", kept);
    assert!(kept <= 65 * MIB, "a quarter of the limit: {kept}");
    assert!(grown < 128 * MIB, "{grown}");
    neighbours.were_served();
}

#[test]
fn one_connection_holds_no_more_than_it_says() {
    let node = Node::start(&[("HYPERCACHE_WRITE_TIMEOUT", "2m")]);
    let mut client = node.connect();
    for number in 0..2800 {
        let key = format!("/v1/cache/k{number}");
        assert_eq!(client.put(&key, &[b'v'; 16_000]).status, 200);
    }
    drop(client);
    let neighbours = Neighbours::of(&node);
    let limit = metric(&node, "connection_buffer_max_bytes");
    assert!(limit < metric(&node, "buffer_limit_bytes"));
    let peak = Peak::of(&node, "buffer_taken_bytes");
    // 45 MB of values, 60 MB as base64: hardly below what is refused as too large.
    let keys: Vec<String> = (0..2800).map(|number| format!("\"k{number}\"")).collect();
    let body = format!("{{\"keys\":[{}]}}", keys.join(","));
    let mut large = node.connect();
    large.send(request("POST", "/v1/cache/batch/get", "", body.as_bytes()));
    let mut first = [0; 1];
    large.stream.peek(&mut first).unwrap();
    // Its answer, as far as nobody has read it.
    let held = wait_for_metric(&node, "buffered_bytes", |held| held > 59_000_000);
    let (taken, _) = peak.end();
    show("held while nobody reads", held as usize);
    show("taken at most", taken as usize);
    assert!(taken <= limit, "{taken} of {limit}");
    assert_eq!(large.answer().status, 200);
    drop(large);
    wait_for_metric(&node, "buffered_bytes", |bytes| bytes == 0);
    neighbours.were_served();
}

#[test]
fn pipelines_of_values_that_other_cores_copy_are_answered_in_order_within_little_room() {
    const REQUESTS: usize = 4096;
    let node = node(&[("HYPERCACHE_PIPELINE_DEPTH", "4096")]);
    let mut client = node.connect();
    for number in 0..64 {
        let value = [b"v", number.to_string().as_bytes(), &[b'-'; 16_000]].concat();
        assert_eq!(
            client.put(&format!("/v1/cache/k{number}"), &value).status,
            200
        );
    }
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let ask = |number| request("GET", &format!("/v1/cache/k{}", number % 64), "", b"");
    let flood: Vec<u8> = (0..REQUESTS).flat_map(ask).collect();
    let mut client = node.connect();
    client.stream.set_read_timeout(Some(GUARD)).unwrap();
    let mut writer = client.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&flood).unwrap());
    let mut refused = 0;
    for number in 0..REQUESTS {
        let answer = client.answer();
        if answer.status == 503 {
            answer.expect_error(503, "INTERNAL");
            refused += 1;
        } else {
            let value = format!("v{}-", number % 64);
            assert!(answer.body.starts_with(value.as_bytes()), "{number}");
        }
    }
    writing.join().unwrap();
    println!("{refused} of {REQUESTS} refused");
    let counted = metric(&node, "copies_refused_total");
    assert_eq!(counted > 0, refused > 0, "{counted}, {refused}");
    let grown = resident(&node).saturating_sub(before);
    show("resident, grown by", grown);
    assert!(grown < LIMIT + SLACK, "{grown}");
    neighbours.were_served();
}
