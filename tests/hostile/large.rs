//! Too much of anything, and what nobody should send.

use std::io::Write;
use std::thread;

use crate::hostile::{MIB, Neighbours, metric, resident, show, wait_for_metric};
use crate::node::{Client, Node, request};

/// A request with a field that is no plain header.
fn chunked(body: &str) -> String {
    format!("PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

#[test]
fn whatever_is_too_large_to_be_a_request_is_refused_at_once_and_counted() {
    let node = Node::start(&[]);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let get = |rest: &str| format!("GET {rest}");
    let long = |bytes: usize| "x".repeat(bytes);
    let cases = [
        (414, get(&long(20_000))),
        (
            414,
            get(&format!(
                "/v1/cache/keys?q={} HTTP/1.1\r\nHost: x\r\n\r\n",
                long(9000)
            )),
        ),
        (
            431,
            get(&format!("/ HTTP/1.1\r\nHost: x\r\nX: {}", long(20_000))),
        ),
        (
            431,
            get(&format!("/ HTTP/1.1\r\nHost: x\r\n{}", long(20_000))),
        ),
        (
            431,
            get(&format!(
                "/ HTTP/1.1\r\nHost: x\r\n{}\r\n",
                "X: y\r\n".repeat(100)
            )),
        ),
        (
            413,
            "PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length: 4194305\r\n\r\n".into(),
        ),
        (
            413,
            "PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n"
                .into(),
        ),
        (413, chunked("400001\r\n")),
        (413, chunked("ffffffffffffffff\r\n")),
        (400, chunked("00000000000000001\r\n")),
        (400, chunked(&format!("1;{}\r\n", long(300)))),
        (431, chunked(&format!("0\r\nT: {}", long(9000)))),
        (431, chunked(&format!("0\r\n{}", "T: u\r\n".repeat(3000)))),
    ];
    for (status, bytes) in &cases {
        let mut client = node.connect();
        // It may hang up before it has taken everything.
        let _ = client.stream.write_all(bytes.as_bytes());
        let shown: String = bytes.chars().take(100).collect();
        let answer = client.answer();
        assert_eq!(answer.status, *status, "{shown:?}: {answer:?}");
        assert_eq!(answer.header("Connection"), Some("close"), "{shown:?}");
        client.expect_closed();
    }
    let refused = metric(&node, "requests_refused_total") as usize;
    assert_eq!(refused, cases.len());
    assert!(resident(&node) < before + 32 * MIB);
    neighbours.were_served();
}

#[test]
fn whatever_is_too_large_to_be_served_is_refused_and_the_connection_goes_on() {
    let node = Node::start(&[
        ("HYPERCACHE_VALUE_LIMIT", "1MiB"),
        ("HYPERCACHE_BATCH_LIMIT", "1000"),
    ]);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let mut client = node.connect();
    let key = "k".repeat(1025);
    client
        .get(&format!("/v1/cache/{key}"))
        .expect_error(400, "BAD_REQUEST");
    let value = vec![b'v'; MIB + 1];
    client
        .put("/v1/cache/k", &value)
        .expect_error(413, "TOO_LARGE");
    wait_for_metric(&node, "values_too_large_total", |refused| refused == 1);

    let items = format!("{{\"keys\":[{}\"k\"]}}", "\"k\",".repeat(1000));
    client
        .post("/v1/cache/batch/get", &items)
        .expect_error(413, "TOO_LARGE");
    // As many items as a body has room for.
    let items = format!("{{\"keys\":[{}\"\"]}}", "\"\",".repeat(1_300_000));
    client
        .post("/v1/cache/batch/delete", &items)
        .expect_error(413, "TOO_LARGE");

    let long = format!("{{\"keys\":[\"{}\",\"k\"]}}", "k".repeat(4_000_000));
    let answer = client.post("/v1/cache/batch/get", &long);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["results"][0]["code"], "BAD_REQUEST");
    let large = "v".repeat(MIB + 1);
    let items = format!(
        "{{\"items\":[{{\"key\":\"k\",\"value\":\"{large}\"}},{{\"key\":\"l\",\"value\":\"v\"}}]}}"
    );
    let answer = client.post("/v1/cache/batch/put", &items).json();
    assert_eq!(answer["results"][0]["code"], "TOO_LARGE", "{answer}");
    assert_eq!(answer["results"][1]["stored"], true, "{answer}");

    // An answer of 1000 times a MiB.
    client.put("/v1/cache/big", &vec![b'v'; MIB]);
    let items = format!("{{\"keys\":[{}\"big\"]}}", "\"big\",".repeat(999));
    client
        .post("/v1/cache/batch/get", &items)
        .expect_error(413, "TOO_LARGE");
    let query = "*".repeat(8000);
    let listing = client.get(&format!("/v1/cache/keys?q={query}"));
    assert!([200, 400].contains(&listing.status), "{listing:?}");
    let grown = resident(&node).saturating_sub(before);
    show("resident, grown by", grown);
    assert!(grown < 256 * MIB, "{grown}");
    neighbours.were_served();
}

#[test]
fn ten_thousand_requests_in_one_write_are_answered_in_order() {
    const REQUESTS: usize = 10_000;
    let node = Node::start(&[]);
    let mut client = node.connect();
    for number in 0..100 {
        let key = format!("/v1/cache/k{number}");
        assert_eq!(
            client.put(&key, format!("v{number}").as_bytes()).status,
            200
        );
    }
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let flood: Vec<u8> = (0..REQUESTS)
        .flat_map(|number| request("GET", &format!("/v1/cache/k{}", number % 100), "", b""))
        .collect();
    let mut writer = client.stream.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&flood).unwrap());
    for number in 0..REQUESTS {
        assert_eq!(
            client.answer().text(),
            format!("v{}", number % 100),
            "{number}"
        );
    }
    writing.join().unwrap();
    assert!(metric(&node, "requests_total") as usize >= REQUESTS);
    assert!(resident(&node) < before + 32 * MIB);
    neighbours.were_served();
}

#[test]
fn json_that_nests_a_hundred_thousand_levels_deep_is_refused() {
    const LEVELS: usize = 100_000;
    let node = Node::start(&[]);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let mut client = node.connect();
    let (open, close) = ("[".repeat(LEVELS), "]".repeat(LEVELS));
    let objects = format!("{}1{}", "{\"a\":".repeat(LEVELS), "}".repeat(LEVELS));
    for (route, body) in [
        ("get", format!("{{\"keys\":{open}{close}}}")),
        (
            "get",
            format!("{{\"unknown\":{open}{close},\"keys\":[\"k\"]}}"),
        ),
        ("get", format!("{{\"unknown\":{objects},\"keys\":[\"k\"]}}")),
        ("put", format!("{{\"items\":{open}{close}}}")),
        (
            "put",
            format!("{{\"items\":[{{\"key\":\"k\",\"value\":\"v\",\"unknown\":{objects}}}]}}"),
        ),
        ("put", format!("{{\"items\":[{{\"key\":{open}{close}}}]}}")),
        ("delete", open.clone()),
        ("delete", format!("{{\"keys\":{open}")),
    ] {
        let answer = client.post(&format!("/v1/cache/batch/{route}"), &body);
        answer.expect_error(400, "BAD_REQUEST");
    }
    // Brackets that are text are no levels.
    let text = format!("{{\"keys\":[\"{}\"]}}", "[".repeat(1000));
    assert_eq!(client.post("/v1/cache/batch/get", &text).status, 200);
    assert!(resident(&node) < before + 64 * MIB);
    assert!(metric(&node, "requests_total") >= 9);
    neighbours.were_served();
}

#[test]
fn text_that_is_none_is_refused_where_text_is_asked_for_and_kept_where_bytes_are() {
    let node = Node::start(&[]);
    let neighbours = Neighbours::of(&node);
    let mut client = node.connect();
    for bad in [
        &b"{\"keys\":[\"\xff\"]}"[..],
        b"{\"keys\":[\"\xc3\"]}",
        b"{\"keys\":[\"\xed\xa0\x80\"]}",
        b"{\"\xff\":1,\"keys\":[]}",
        b"\xff\xfe",
        b"{\"keys\":[\"\0\"]}",
        b"{\"keys\":[\"\\ud800\"]}",
    ] {
        let answer = client.request("POST", "/v1/cache/batch/get", "", bad);
        answer.expect_error(400, "BAD_REQUEST");
    }
    // A key is any bytes, percent-encoded.
    for key in ["%00", "a%00b", "%FF%FE", "%00%00"] {
        let target = format!("/v1/cache/{key}");
        assert_eq!(client.put(&target, key.as_bytes()).status, 200, "{key}");
    }
    for key in ["%00", "a%00b", "%FF%FE", "%00%00"] {
        assert_eq!(client.get(&format!("/v1/cache/{key}")).text(), key);
    }
    let batch = client
        .post("/v1/cache/batch/get", "{\"keys\":[\"a\\u0000b\"]}")
        .json();
    assert_eq!(batch["results"][0]["found"], true, "{batch}");
    assert_eq!(batch["results"][0]["key"], "a\0b", "{batch}");
    for bad in ["%0", "%zz", "%"] {
        let answer = client.get(&format!("/v1/cache/{bad}"));
        answer.expect_error(400, "BAD_REQUEST");
    }
    // As they are they stand in no target and in no field.
    let before = metric(&node, "requests_refused_total");
    for raw in [
        &b"GET /v1/cache/a\0b HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"GET /v1/cache/a HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
        b"GET\0/v1/cache/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/cache/a\x7fb HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut client: Client = node.connect();
        client.send(raw);
        client.answer().expect_error(400, "BAD_REQUEST");
        client.expect_closed();
    }
    assert_eq!(metric(&node, "requests_refused_total"), before + 4);
    let mut client: Client = node.connect();
    client.send(b"GET /v1/cache/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n");
    let status = client.answer().status;
    assert!([200, 400].contains(&status), "bytes beyond ASCII: {status}");
    neighbours.were_served();
}
