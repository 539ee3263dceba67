//! How requests arrive and end, and what slow or hostile clients get. What is ambiguous
//! stands in http_smuggling.rs.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/node.rs"]
mod node;

use std::net::Shutdown;

use node::{Client, Node, request};

const POISON: &str = "GET /v1/cache/poison HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn a_head_over_a_limit_is_refused_and_nothing_behind_it_is_answered() {
    let node = Node::start(&[]);
    node.connect().put("/v1/cache/poison", b"POISON");
    let long_target = format!(
        "GET /v1/cache/{} HTTP/1.1\r\nHost: x\r\n\r\n",
        "k".repeat(9000)
    );
    let long_head = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(65));
    for (status, bytes) in [(414, long_target), (431, long_head), (431, many)] {
        let mut client = node.connect();
        client.send(&bytes);
        client.send(POISON);
        let shown: String = bytes.chars().take(120).collect();
        let answer = client.answer();
        assert_eq!(answer.status, status, "{shown:?}: {answer:?}");
        assert_eq!(answer.header("Connection"), Some("close"), "{shown:?}");
        assert!(answer.json()["error"].is_string());
        client.expect_closed();
    }
}

#[test]
fn a_request_may_arrive_one_byte_at_a_time() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    let mut bytes = request("PUT", "/v1/cache/k", "", b"value");
    bytes.extend(b"PUT /v1/cache/c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: t\r\n\r\n");
    bytes.extend(request("GET", "/v1/cache/c", "", b""));
    for byte in bytes {
        client.send([byte]);
    }
    assert_eq!(client.answer().json()["bytes"], 5);
    assert_eq!(client.answer().json()["bytes"], 5);
    assert_eq!(client.answer().text(), "abcde");
}

#[test]
fn a_body_is_read_up_to_its_limit_and_refused_before_it_is_sent() {
    let node = Node::start(&[
        ("HYPERCACHE_BODY_LIMIT", "100000"),
        ("HYPERCACHE_VALUE_LIMIT", "50000"),
    ]);
    let mut client = node.connect();
    assert_eq!(client.put("/v1/cache/k", &[b'v'; 50_000]).status, 200);
    client
        .put("/v1/cache/k", &[b'v'; 50_001])
        .expect_error(413, "TOO_LARGE");
    client
        .put("/v1/cache/k", &[b'v'; 100_000])
        .expect_error(413, "TOO_LARGE");
    assert_eq!(client.get("/v1/cache/k").body.len(), 50_000);
    client.send("PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n");
    client.answer().expect_error(413, "TOO_LARGE");
    client.expect_closed();
}

#[test]
fn a_client_that_asks_is_told_to_continue() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    client.send(
        "PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    );
    assert_eq!(client.answer().status, 100);
    client.send("hello");
    assert_eq!(client.answer().status, 200);
    client.send("PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.answer().status, 100);
    client.send("2\r\nhi\r\n0\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.get("/v1/cache/k").text(), "hi");
    client.send("PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n");
    client.answer().expect_error(413, "TOO_LARGE");
}

#[test]
fn connections_last_as_their_version_and_their_client_say() {
    let node = Node::start(&[]);
    let mut old = node.connect();
    old.send("GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer().text(), "ok");
    old.expect_closed();

    let mut kept = node.connect();
    for _ in 0..2 {
        kept.send("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(kept.answer().header("Connection"), Some("keep-alive"));
    }
    let mut closed = node.connect();
    closed.send(format!(
        "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\n{POISON}"
    ));
    assert_eq!(closed.answer().header("Connection"), Some("close"));
    closed.expect_closed();

    let mut half = node.connect();
    half.send("\r\nGET http://host/healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    half.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half.answer().text(), "ok");
    half.expect_closed();
}

#[test]
fn head_never_has_a_body() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    for target in [
        "/healthz",
        "/v1/openapi.yaml",
        "/v1/me",
        "/v1/me/can",
        "/cluster/members",
        "/v1/owners/k",
        "/v1/cache/k",
        "/nowhere",
    ] {
        let head = client.request("HEAD", target, "", b"");
        assert!(head.header("Content-Length").is_some(), "{head:?}");
    }
    assert_eq!(client.get("/healthz").text(), "ok");
}

#[test]
fn a_request_that_does_not_arrive_in_time_is_cut() {
    let node = Node::start(&[
        ("HYPERCACHE_READ_TIMEOUT", "300ms"),
        ("HYPERCACHE_IDLE_TIMEOUT", "300ms"),
    ]);
    for start in [
        "GET /healthz HT",
        "PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf",
    ] {
        let mut slow = node.connect();
        slow.send(start);
        assert_eq!(slow.answer().status, 408, "{start:?}");
        slow.expect_closed();
    }
    // One byte now and then does not buy more time: the clock is the request's.
    let mut dribbling = node.connect();
    dribbling.send("GET /healthz HTTP/1.1\r\nX: ");
    let mut writer = dribbling.stream.try_clone().unwrap();
    let dribble = std::thread::spawn(move || {
        while std::io::Write::write_all(&mut writer, b"x").is_ok() {
            std::thread::yield_now();
        }
    });
    let cut = dribbling.try_answer("GET").map(|answer| answer.status);
    assert!(matches!(cut, Some(408 | 431)), "{cut:?}");
    drop(dribbling);
    dribble.join().unwrap();

    let mut idle = node.connect();
    assert_eq!(idle.get("/healthz").status, 200);
    idle.expect_closed();
}

#[test]
fn a_client_that_never_reads_is_cut_and_nobody_else_waits() {
    let node = Node::start(&[
        ("HYPERCACHE_CORES", "1"),
        ("HYPERCACHE_WRITE_TIMEOUT", "300ms"),
    ]);
    let mut other = node.connect();
    other.put("/v1/cache/big", &vec![b'B'; 3 << 20]);
    let mut stuck = node.connect();
    for _ in 0..50 {
        stuck.send(request("GET", "/v1/cache/big", "", b""));
    }
    let mut expired = 0;
    while expired == 0 {
        assert_eq!(other.get("/healthz").text(), "ok");
        let metrics = Client::connect(&node.mgmt).get("/metrics").text();
        let line = metrics
            .lines()
            .find(|l| l.starts_with("hypercache_connections_expired_total"))
            .unwrap();
        expired = line.rsplit(' ').next().unwrap().parse().unwrap();
    }
    assert_eq!(expired, 1);
}

#[test]
fn connections_over_the_limit_are_told_whether_the_node_lives_and_nothing_else() {
    let node = Node::start(&[("HYPERCACHE_CONNECTIONS", "8")]);
    let mut clients: Vec<Client> = (0..8).map(|_| node.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/healthz").status, 200);
    }
    // A kubelet that asked in vain would end a node for having too many clients.
    let mut kubelet = node.connect();
    assert_eq!(kubelet.get("/healthz").status, 200);
    let mut turned_away = node.connect();
    let answer = turned_away.get("/v1/me");
    answer.expect_error(503, "INTERNAL");
    assert_eq!(answer.header("Retry-After"), Some("1"));
    turned_away.expect_closed();
    // Who asks nothing does not stay.
    node.connect().expect_closed();
    let mut leaving = clients.pop().unwrap();
    leaving.send("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    leaving.answer();
    leaving.expect_closed();
    drop(leaving);
    // The node notices in its own time; until then it may still turn us away.
    loop {
        let mut next = node.connect();
        let sent = std::io::Write::write_all(&mut next.stream, &request("GET", "/v1/me", "", b""));
        if sent.is_ok()
            && next
                .try_answer("GET")
                .is_some_and(|answer| answer.status == 200)
        {
            break;
        }
    }
}

#[test]
fn noise_on_two_thousand_connections_leaves_the_node_serving() {
    let node = Node::start(&[]);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    const WORDS: &[&str] = &[
        "GET ",
        "PUT ",
        "/v1/cache/",
        "keys",
        " HTTP/1.1",
        "\r\n",
        "\r\n\r\n",
        "Host: x",
        "Content-Length: ",
        "Transfer-Encoding: chunked",
        "0",
        "ff",
        ":",
        "%",
        "\0",
        "\n",
        "{\"keys\":[",
    ];
    for _ in 0..2000 {
        let mut client = node.connect();
        let mut bytes = Vec::new();
        for _ in 0..random() % 30 {
            if random() % 4 == 0 {
                bytes.push(random() as u8);
            } else {
                bytes.extend(WORDS[random() as usize % WORDS.len()].as_bytes());
            }
        }
        // The node may have hung up already.
        let _ = std::io::Write::write_all(&mut client.stream, &bytes);
    }
    let mut client = node.connect();
    assert_eq!(client.put("/v1/cache/after", b"v").status, 200);
    assert_eq!(client.get("/v1/cache/after").text(), "v");
}
