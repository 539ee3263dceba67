//! Every route of the client API, as a client uses it.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/node.rs"]
mod node;

use node::{Node, key_on, request};
use serde_json::json;

#[test]
fn values_come_back_byte_for_byte_from_every_core() {
    let node = Node::start(&[]);
    let every_byte: Vec<u8> = (0..=255).collect();
    let large = vec![b'L'; 3 << 20];
    for serving in 0..2 {
        let mut client = node.connect_to_core(serving);
        for owning in 0..2 {
            let key = key_on(owning, &format!("s{serving}-"));
            for value in [
                &b""[..],
                b"x",
                b"aGVsbG8=",
                b"{\"a\":1}",
                &every_byte,
                &large,
            ] {
                let target = format!("/v1/cache/{key}");
                let put = client.put(&target, value);
                assert_eq!(put.status, 200, "{put:?}");
                assert_eq!(put.json()["bytes"], value.len());
                let got = client.get(&target);
                assert_eq!(got.header("Content-Type"), Some("application/octet-stream"));
                assert!(
                    got.body == value,
                    "a value of {} bytes came back changed",
                    value.len()
                );
            }
        }
    }
}

#[test]
fn reference_defect_15_values_that_look_encoded_are_left_alone() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    for key in [key_on(0, "k"), key_on(1, "k")] {
        client.put(&format!("/v1/cache/{key}"), b"aGVsbG8=");
        assert_eq!(client.get(&format!("/v1/cache/{key}")).text(), "aGVsbG8=");
        let got = client.post("/v1/cache/batch/get", &json!({"keys": [key]}).to_string());
        assert_eq!(got.json()["results"][0]["value"], "YUdWc2JHOD0=");
    }
}

#[test]
fn keys_are_any_bytes_up_to_1024() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    let longest = "k".repeat(1024);
    let escaped: String = "%41".repeat(1024);
    for target in [
        "a%2Fb",
        "%00",
        "%ff%fe",
        "%20",
        "+",
        "caf%C3%A9",
        &longest,
        &escaped,
    ] {
        let put = client.put(&format!("/v1/cache/{target}"), target.as_bytes());
        assert_eq!(put.status, 200, "{put:?}");
        assert_eq!(client.get(&format!("/v1/cache/{target}")).text(), *target);
    }
    assert_eq!(client.get("/v1/cache/%61%2f%62").text(), "a%2Fb");
    for bad in ["", "%4", "%zz", &"k".repeat(1025)] {
        client
            .get(&format!("/v1/cache/{bad}"))
            .expect_error(400, "BAD_REQUEST");
        client
            .put(&format!("/v1/cache/{bad}"), b"v")
            .expect_error(400, "BAD_REQUEST");
    }
}

#[test]
fn a_ttl_is_told_and_a_bad_one_is_named() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    let put = client.put("/v1/cache/k?ttl=1h30m", b"v").json();
    assert_eq!(put["ttl_ms"], 5_400_000);
    assert_eq!(put["stored"], true);
    for none in ["/v1/cache/k", "/v1/cache/k?ttl=0", "/v1/cache/k?ttl=0s"] {
        assert!(client.put(none, b"v").json().get("ttl_ms").is_none());
    }
    for bad in ["-1s", "10", "1d", "soon"] {
        let refused = client.put(&format!("/v1/cache/k?ttl={bad}"), b"other");
        refused.expect_error(400, "BAD_REQUEST");
        assert!(refused.text().contains(bad), "{refused:?}");
    }
    assert_eq!(client.get("/v1/cache/k").text(), "v");
}

#[test]
fn reference_defect_09_reading_does_not_prolong_a_life() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    client.put("/v1/cache/k?ttl=1h", b"v");
    let first = client.request("HEAD", "/v1/cache/k", "", b"");
    for _ in 0..20 {
        client.get("/v1/cache/k");
    }
    let last = client.request("HEAD", "/v1/cache/k", "", b"");
    assert!(first.header("X-Cache-Expires-At").is_some());
    assert_eq!(
        first.header("X-Cache-Expires-At"),
        last.header("X-Cache-Expires-At")
    );
}

#[test]
fn head_tells_everything_but_the_value() {
    let node = Node::start(&[]);
    for core in 0..2 {
        let mut client = node.connect_to_core(core);
        client.put("/v1/cache/k?ttl=1m", b"12345");
        let head = client.request("HEAD", "/v1/cache/k", "", b"");
        assert_eq!(head.status, 200);
        assert_eq!(head.header("Content-Length"), Some("5"));
        assert_eq!(head.header("X-Cache-Node"), Some("test-node"));
        assert_eq!(head.header("X-Cache-Owners"), Some("test-node"));
        assert_eq!(head.header("X-Cache-Origin"), Some("test-node"));
        let ttl: u64 = head.header("X-Cache-Ttl-Ms").unwrap().parse().unwrap();
        assert!((1..=60_000).contains(&ttl));
        assert!(head.header("X-Cache-Last-Updated").unwrap().ends_with('Z'));
        let missing = client.request("HEAD", "/v1/cache/none", "", b"");
        assert_eq!(missing.status, 404);
        // Had a body followed, it would be read as the next answer.
        assert_eq!(client.get("/healthz").text(), "ok");
    }
}

#[test]
fn versions_grow_and_fit_a_javascript_number() {
    let node = Node::start(&[]);
    let mut clients = [node.connect_to_core(0), node.connect_to_core(1)];
    let mut last = 0;
    for round in 0..50 {
        let client = &mut clients[round % 2];
        client.put("/v1/cache/k", b"v");
        let envelope = client.request("GET", "/v1/cache/k", "Accept: application/json\r\n", b"");
        let envelope = envelope.json();
        let version = envelope["version"].as_u64().unwrap();
        assert!(version > last && version < 1 << 53);
        assert_eq!(envelope["value"], "dg==");
        assert_eq!(envelope["value_encoding"], "base64");
        last = version;
    }
}

#[test]
fn a_missing_key_is_not_found_and_can_be_deleted() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    client.get("/v1/cache/none").expect_error(404, "NOT_FOUND");
    client.put("/v1/cache/k", b"v");
    for key in ["k", "k", "none"] {
        let deleted = client
            .request("DELETE", &format!("/v1/cache/{key}"), "", b"")
            .json();
        let expected =
            json!({"key": key, "deleted": true, "node": "test-node", "owners": ["test-node"]});
        assert_eq!(deleted, expected);
    }
    client.get("/v1/cache/k").expect_error(404, "NOT_FOUND");
}

#[test]
fn reference_defect_14_a_key_named_keys_can_be_read() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    client.put("/v1/cache/keys", b"the value");
    assert_eq!(client.get("/v1/cache/%6Beys").text(), "the value");
    let got = client
        .post("/v1/cache/batch/get", r#"{"keys":["keys"]}"#)
        .json();
    assert_eq!(got["results"][0]["found"], true);
    assert_eq!(client.get("/v1/cache/keys").json()["keys"], json!(["keys"]));
}

#[test]
fn batches_answer_each_item_in_order() {
    let node = Node::start(&[("HYPERCACHE_VALUE_LIMIT", "1000")]);
    let mut client = node.connect();
    let items = json!({"items": [
        {"key": "a", "value": "plain"},
        {"key": "", "value": "x"},
        {"key": "b", "value": "aGk=", "value_encoding": "base64", "ttl_ms": 60000},
        {"key": "c", "value": "!", "value_encoding": "base64"},
        {"key": "d", "value": "x", "ttl_ms": -1},
        {"key": "e", "value": "y".repeat(1001)},
        {"key": "f", "value": "caf\u{e9} \"\\\n", "value_encoding": "utf-8"},
        {"key": "k".repeat(1025), "value": "x"},
    ]});
    let put = client.post("/v1/cache/batch/put", &items.to_string());
    assert_eq!(put.status, 200, "{put:?}");
    let put = put.json();
    let codes: Vec<_> = put["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| {
            (
                result["stored"].as_bool().unwrap(),
                result["code"].as_str().unwrap_or("").to_owned(),
            )
        })
        .collect();
    let bad = || (false, "BAD_REQUEST".to_owned());
    let stored = || (true, String::new());
    let large = (false, "TOO_LARGE".to_owned());
    assert_eq!(
        codes,
        [
            stored(),
            bad(),
            stored(),
            bad(),
            bad(),
            large,
            stored(),
            bad()
        ]
    );
    assert_eq!(put["results"][1]["error"], "missing key");
    assert_eq!(client.get("/v1/cache/f").text(), "caf\u{e9} \"\\\n");

    let got = client
        .post("/v1/cache/batch/get", r#"{"keys":["b","none","a","a"]}"#)
        .json();
    let results = got["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    assert_eq!(
        (&results[0]["key"], &results[0]["value"]),
        (&json!("b"), &json!("aGk="))
    );
    assert!(results[0]["ttl_ms"].as_u64().unwrap() <= 60_000);
    assert_eq!(results[1], json!({"key": "none", "found": false}));
    assert_eq!(results[2]["value"], results[3]["value"]);

    let gone = client
        .post("/v1/cache/batch/delete", r#"{"keys":["a","","none"]}"#)
        .json();
    let deleted: Vec<_> = gone["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["deleted"].clone())
        .collect();
    assert_eq!(deleted, [true, false, true]);
    client.get("/v1/cache/a").expect_error(404, "NOT_FOUND");
}

#[test]
fn a_batch_may_be_empty_and_must_be_what_it_says() {
    let node = Node::start(&[("HYPERCACHE_BATCH_LIMIT", "10")]);
    let mut client = node.connect();
    for (route, empty) in [
        ("get", r#"{"keys":[]}"#),
        ("put", r#"{"items":[]}"#),
        ("delete", r#"{"keys":[]}"#),
    ] {
        let target = format!("/v1/cache/batch/{route}");
        let answer = client.post(&target, empty);
        assert_eq!(answer.json(), json!({"results": [], "node": "test-node"}));
        let deep = format!("{{\"x\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        for bad in [
            "",
            "{",
            "[]",
            "{}",
            "null",
            r#"{"keys":1}"#,
            r#"{"keys":[1]}"#,
            r#"{"items":[1]}"#,
            r#"[["k"]]"#,
            r#"[[{"key":"k"}]]"#,
            r#"{"items":[["k","v"]]}"#,
            &deep,
        ] {
            client.post(&target, bad).expect_error(400, "BAD_REQUEST");
        }
        client
            .request("POST", &target, "", b"{\"keys\":[\"\xff\"]}")
            .expect_error(400, "BAD_REQUEST");
    }
    let eleven = json!({"keys": vec!["k"; 11]}).to_string();
    client
        .post("/v1/cache/batch/get", &eleven)
        .expect_error(413, "TOO_LARGE");
}

#[test]
fn numbers_of_a_batch_are_those_of_json() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    let mut put = |ttl_ms: &str| {
        let body = format!(
            r#"{{"items":[{{"key":"k","ttl_ms":{ttl_ms},"x":-1{}}}]}}"#,
            "0".repeat(40)
        );
        client.post("/v1/cache/batch/put", &body)
    };
    for whole in ["60000", "60000.0", "6e4", "null", "9223372036854775807"] {
        let answer = put(whole);
        assert_eq!(
            answer.json()["results"][0]["stored"],
            true,
            "{whole}: {answer:?}"
        );
    }
    for negative in ["-1", "-1.0", "-9223372036854775808"] {
        let answer = put(negative);
        assert_eq!(
            answer.json()["results"][0]["code"],
            "BAD_REQUEST",
            "{answer:?}"
        );
    }
    for none in [
        "0.5",
        "9223372036854775808",
        "-9223372036854775809",
        "1e300",
        "true",
        "\"1\"",
    ] {
        put(none).expect_error(400, "BAD_REQUEST");
    }
    client.post(
        "/v1/cache/batch/put",
        r#"{"items":[{"key":"k","value":"v","ttl_ms":6e4}]}"#,
    );
    let accept = "Accept: application/json\r\n";
    let kept = client.request("GET", "/v1/cache/k", accept, b"").json();
    assert!(
        (1..=60_000).contains(&kept["ttl_ms"].as_u64().unwrap()),
        "{kept}"
    );
}

#[test]
fn thousands_of_keys_in_one_batch_find_their_cores() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    let keys: Vec<String> = (0..5000).map(|n| format!("key-{n}")).collect();
    let items: Vec<_> = keys
        .iter()
        .map(|key| json!({"key": key, "value": key}))
        .collect();
    client.post("/v1/cache/batch/put", &json!({"items": items}).to_string());
    let got = client
        .post("/v1/cache/batch/get", &json!({"keys": keys}).to_string())
        .json();
    for (key, result) in keys.iter().zip(got["results"].as_array().unwrap()) {
        assert_eq!(
            (&result["key"], &result["found"]),
            (&json!(key), &json!(true))
        );
    }
}

#[test]
fn keys_are_listed_sorted_and_in_pages() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    for n in 0..250 {
        client.put(&format!("/v1/cache/list-{n:03}"), b"v");
    }
    client.put("/v1/cache/other", b"v");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client
            .get(&format!(
                "/v1/cache/keys?q=list-&limit=60&cursor={}",
                if cursor.is_empty() { "0" } else { &cursor }
            ))
            .json();
        assert_eq!(
            (&page["total_matched"], &page["truncated"]),
            (&json!(250), &json!(false))
        );
        seen.extend(
            page["keys"]
                .as_array()
                .unwrap()
                .iter()
                .map(|key| key.as_str().unwrap().to_owned()),
        );
        cursor = page["next_cursor"].as_str().unwrap().to_owned();
        if cursor.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..250).map(|n| format!("list-{n:03}")).collect();
    assert_eq!(seen, expected);

    let listed = |client: &mut node::Client, query: &str| {
        client.get(&format!("/v1/cache/keys?{query}")).json()
    };
    assert_eq!(listed(&mut client, "q=list-00%3F")["total_matched"], 10);
    assert_eq!(
        listed(&mut client, "q=list-%5B01%5D*")["total_matched"],
        200
    );
    assert_eq!(listed(&mut client, "q=ist")["total_matched"], 0);
    assert_eq!(
        listed(&mut client, "")["keys"].as_array().unwrap().len(),
        100
    );
    assert_eq!(
        listed(&mut client, "limit=9999")["keys"]
            .as_array()
            .unwrap()
            .len(),
        251
    );
    let past = listed(&mut client, "cursor=9999");
    assert_eq!(
        (&past["keys"], &past["next_cursor"]),
        (&json!([]), &json!(""))
    );
    let cut = listed(&mut client, "max=7");
    assert_eq!(
        (&cut["total_matched"], &cut["truncated"]),
        (&json!(7), &json!(true))
    );
    assert_eq!(cut["keys"][6], "list-006");
    for bad in [
        "q=%5B",
        "q=*%5C",
        "limit=0",
        "limit=x",
        "limit=-5",
        "max=0",
        "cursor=-1",
        "cursor=x",
    ] {
        client
            .get(&format!("/v1/cache/keys?{bad}"))
            .expect_error(400, "BAD_REQUEST");
    }
}

#[test]
fn the_caller_and_the_cluster_are_described() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    assert_eq!(
        client.get("/v1/me").json(),
        json!({
            "id": "anonymous",
            "scopes": ["read", "write", "admin"],
            "capabilities": ["cache.read", "cache.write", "cache.admin"],
        })
    );
    for capability in ["cache.read", "cache.write", "cache.admin"] {
        let can = client
            .get(&format!("/v1/me/can?capability={capability}"))
            .json();
        assert_eq!(can, json!({"capability": capability, "allowed": true}));
    }
    client
        .get("/v1/me/can?capability=cache.fly")
        .expect_error(400, "BAD_REQUEST");
    client.get("/v1/me/can").expect_error(400, "BAD_REQUEST");
    let owners = client.get("/v1/owners/a%2Fb").json();
    assert_eq!(
        owners,
        json!({"key": "a/b", "owners": ["test-node"], "node": "test-node"})
    );
    let members = client.get("/cluster/members").json();
    assert_eq!(members["members"][0]["address"], node.api.as_str());
    assert_eq!(members["members"][0]["State"], "alive");
}

#[test]
fn unknown_routes_and_methods_are_refused_and_the_connection_goes_on() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    for target in [
        "/",
        "/v1",
        "/v1/cache",
        "/v1/cache/a/b",
        "/v2/cache/k",
        "/V1/cache/k",
        "//healthz",
    ] {
        client.get(target).expect_error(404, "NOT_FOUND");
    }
    for (method, target) in [
        ("POST", "/v1/cache/k"),
        ("PUT", "/healthz"),
        ("DELETE", "/v1/me"),
        ("PATCH", "/v1/cache/k"),
        ("OPTIONS", "/v1/cache/k"),
        ("PUT", "/v1/cache/batch/get"),
    ] {
        let answer = client.request(method, target, "", b"");
        if target == "/v1/cache/batch/get" {
            answer.expect_error(405, "METHOD_NOT_ALLOWED");
            assert_eq!(answer.header("Allow"), Some("POST"));
        } else {
            answer.expect_error(405, "METHOD_NOT_ALLOWED");
            assert!(answer.header("Allow").is_some(), "{answer:?}");
        }
    }
    assert_eq!(client.get("/healthz").text(), "ok");
}

#[test]
fn reference_defect_13_items_and_bytes_stay_within_their_bounds() {
    let node = Node::start(&[
        ("HYPERCACHE_CAPACITY", "100"),
        ("HYPERCACHE_MEMORY_LIMIT", "16MiB"),
    ]);
    let mut client = node.connect();
    for n in 0..1000 {
        assert_eq!(client.put(&format!("/v1/cache/k{n}"), b"v").status, 200);
    }
    let total = client.get("/v1/cache/keys").json()["total_matched"]
        .as_u64()
        .unwrap();
    assert!((50..=100).contains(&total), "{total} items");
    let value = vec![b'v'; 1 << 20];
    for n in 0..100 {
        let key = format!("/v1/cache/big{n}");
        assert_eq!(client.put(&key, &value).status, 200);
        assert!(
            client.get(&key).body == value,
            "what was just written is there"
        );
    }
    let total = client.get("/v1/cache/keys?q=big").json()["total_matched"]
        .as_u64()
        .unwrap();
    assert!(total <= 16, "{total} MiB in a node of 16");
    client
        .put("/v1/cache/big0", &vec![0; (4 << 20) + 1])
        .expect_error(413, "TOO_LARGE");
}

#[test]
fn reference_defect_10_concurrent_deletes_and_writes_leave_the_node_whole() {
    let node = Node::start(&[]);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let mut client = node.connect();
            scope.spawn(move || {
                for round in 0..300 {
                    let target = format!("/v1/cache/k{}", round % 7);
                    let answer = match (round + thread) % 3 {
                        0 => client.put(&target, target.as_bytes()),
                        1 => client.request("DELETE", &target, "", b""),
                        _ => client.get(&target),
                    };
                    match answer.status {
                        200 | 404 => {}
                        status => panic!("{status}: {answer:?}"),
                    }
                }
            });
        }
    });
    let mut client = node.connect();
    for n in 0..7 {
        client.put(&format!("/v1/cache/k{n}"), b"last");
        assert_eq!(client.get(&format!("/v1/cache/k{n}")).text(), "last");
    }
}

#[test]
fn pipelined_requests_for_both_cores_are_answered_in_order() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    let big = vec![b'B'; 100_000];
    client.put("/v1/cache/big", &big);
    for n in 0..200 {
        client.put(&format!("/v1/cache/p{n}"), format!("value {n}").as_bytes());
    }
    let mut bytes = Vec::new();
    for n in 0..400 {
        bytes.extend(match n % 5 {
            0 => request("GET", &format!("/v1/cache/p{}", n / 2), "", b""),
            1 => request("GET", "/v1/cache/none", "", b""),
            2 => request("PUT", &format!("/v1/cache/w{n}"), "", b"w"),
            3 => request("GET", "/v1/cache/big", "", b""),
            _ => request(
                "POST",
                "/v1/cache/batch/get",
                "",
                format!("{{\"keys\":[\"p{}\"]}}", n / 2).as_bytes(),
            ),
        });
    }
    let mut writer = client.stream.try_clone().unwrap();
    let sender =
        std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes).unwrap());
    for n in 0..400 {
        let answer = client.answer();
        match n % 5 {
            0 => assert_eq!(answer.text(), format!("value {}", n / 2)),
            1 => answer.expect_error(404, "NOT_FOUND"),
            2 => assert_eq!(answer.json()["key"], format!("w{n}")),
            3 => assert!(answer.body == big),
            _ => assert_eq!(answer.json()["results"][0]["key"], format!("p{}", n / 2)),
        }
    }
    sender.join().unwrap();
}
