//! Clusters of real nodes, as clients, monitors and operators meet them.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/node.rs"]
mod node;

use cluster::{API, Cluster, PEERS, until};
use node::{Answer, Client};
use serde_json::{Value, json};

const QUORUM: &str = "X-Cache-Consistency: QUORUM\r\n";
const ALL: &str = "X-Cache-Consistency: ALL\r\n";
const ONE: &str = "X-Cache-Consistency: ONE\r\n";

fn at(client: &mut Client, consistency: &str, method: &str, key: &str, body: &[u8]) -> Answer {
    client.request(method, &format!("/v1/cache/{key}"), consistency, body)
}

#[track_caller]
fn done(answer: Answer) {
    assert_eq!(answer.status, 200, "{answer:?}\n{}", answer.text());
}

#[test]
fn any_node_serves_any_key() {
    let cluster = Cluster::start(5, &[]);
    let values: [&[u8]; 4] = [b"plain", b"aGVsbG8=", b"{\"a\":1}", &[0, 255, 13, 10]];
    for number in 0..40 {
        let key = format!("key-{number}");
        let value = values[number % values.len()];
        let stored = at(&mut cluster.connect(number % 5), ALL, "PUT", &key, value);
        assert_eq!(stored.status, 200, "{stored:?}");
        assert_eq!(stored.json()["owners"].as_array().unwrap().len(), 3);
        let mut versions = Vec::new();
        for node in 0..5 {
            let mut client = cluster.connect(node);
            for consistency in ["", ONE, QUORUM, ALL] {
                let found = at(&mut client, consistency, "GET", &key, b"");
                assert_eq!((found.status, &*found.body), (200, value), "{found:?}");
            }
            let head = at(&mut client, "", "HEAD", &key, b"");
            assert_eq!(head.header("X-Cache-Node"), Some(&*Cluster::id(node)));
            versions.push(head.header("X-Cache-Version").unwrap().to_owned());
        }
        assert!(
            versions.iter().all(|version| *version == versions[0]),
            "{versions:?}"
        );
    }
    for node in 0..5 {
        let gone = at(
            &mut cluster.connect(node),
            ALL,
            "DELETE",
            &format!("key-{node}"),
            b"",
        );
        assert_eq!(gone.status, 200, "{gone:?}");
        for other in 0..5 {
            let missing = at(
                &mut cluster.connect(other),
                "",
                "GET",
                &format!("key-{node}"),
                b"",
            );
            missing.expect_error(404, "NOT_FOUND");
        }
    }
}

/// Where containers' seccomp profiles refuse io_uring.
#[cfg(not(feature = "glommio"))]
#[test]
fn a_cluster_on_epoll_outlives_a_node_as_well() {
    let mut cluster = Cluster::start(3, &[("HYPERCACHE_IO_DRIVER", "epoll")]);
    let keys: Vec<String> = (0..100).map(|number| format!("key-{number}")).collect();
    for (number, key) in keys.iter().enumerate() {
        let mut client = cluster.connect(number % 3);
        done(at(&mut client, ALL, "PUT", key, key.as_bytes()));
    }
    cluster.kill(1);
    for node in [0, 2] {
        let mut client = cluster.connect(node);
        for key in &keys {
            let found = at(&mut client, QUORUM, "GET", key, b"");
            assert_eq!(found.body, key.as_bytes());
            done(at(&mut client, QUORUM, "PUT", key, key.as_bytes()));
        }
    }
}

#[test]
fn all_nodes_agree_on_the_owners() {
    let cluster = Cluster::start(5, &[]);
    let mut primaries = [0; 5];
    for number in 0..100 {
        let owners = cluster.owners(&format!("key-{number}"));
        primaries[owners[0]] += 1;
        for node in 0..5 {
            let answer = cluster
                .connect(node)
                .get(&format!("/v1/owners/key-{number}"))
                .json();
            let ids: Vec<String> = owners.iter().map(|&owner| Cluster::id(owner)).collect();
            assert_eq!(answer["owners"], json!(ids));
            let target = format!("/dist/owners?key=key-{number}");
            let answer = cluster.connect_management(node).get(&target).json();
            assert_eq!(answer["owners"], json!(ids));
        }
    }
    assert!(primaries.iter().all(|&count| count > 0), "{primaries:?}");
}

#[test]
fn reference_defect_16_the_client_port_tells_the_client_addresses() {
    let cluster = Cluster::start(3, &[]);
    for node in 0..3 {
        let answer = cluster.connect(node).get("/cluster/members").json();
        assert_eq!(answer["replication"], 3);
        let members = answer["members"].as_array().unwrap();
        assert_eq!(members.len(), 3);
        for (number, member) in members.iter().enumerate() {
            assert_eq!(member["ID"], Cluster::id(number));
            assert_eq!(member["id"], Cluster::id(number));
            assert_eq!(member["Address"], cluster.address(number, PEERS));
            assert_eq!(member["address"], cluster.address(number, API));
            assert_eq!(member["State"], "alive");
            assert_eq!(member["state"], "alive");
            assert!(member["Incarnation"].as_u64().unwrap() > 0);
        }
        let answer = cluster
            .connect_management(node)
            .get("/cluster/members")
            .json();
        for (number, member) in answer["members"].as_array().unwrap().iter().enumerate() {
            let keys: Vec<_> = member.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["Address", "ID", "Incarnation", "State"]);
            assert_eq!(member["Address"], cluster.address(number, PEERS));
        }
        let ring = cluster.connect_management(node).get("/cluster/ring").json();
        assert_eq!(ring["count"], 3 * answer["virtualNodes"].as_u64().unwrap());
        assert_eq!(ring["count"], ring["vnodes"].as_array().unwrap().len());
        let heartbeat = cluster
            .connect_management(node)
            .get("/cluster/heartbeat")
            .json();
        for field in [
            "heartbeatSuccess",
            "heartbeatFailure",
            "nodesRemoved",
            "readPrimaryPromote",
        ] {
            assert!(heartbeat[field].is_u64(), "{heartbeat}");
        }
    }
}

#[test]
fn a_batch_costs_one_request_per_peer() {
    let cluster = Cluster::start(3, &[]);
    let keys: Vec<String> = (0..500).map(|number| format!("key-{number}")).collect();
    let frames = || -> u64 {
        (0..3)
            .map(|node| cluster.metric(node, "PeerFramesSent"))
            .sum()
    };
    let operations = || -> u64 { cluster.metric(0, "PeerOperationsSent") };
    let items: Vec<Value> = keys
        .iter()
        .map(|key| json!({"key": key, "value": key}))
        .collect();
    let (frames_before, operations_before) = (frames(), operations());
    let mut client = cluster.connect(0);
    let stored = client.post("/v1/cache/batch/put", &json!({"items": items}).to_string());
    let stored = stored.json();
    assert!(
        stored["results"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["stored"] == true)
    );
    // What node 0 counts is published in time; comparisons of replicas send some frames too.
    until("the operations are counted", || {
        operations() >= operations_before + 1000
    });
    let sent = frames() - frames_before;
    assert!(sent < 60, "{sent} frames for one batch");

    let body = json!({"keys": keys}).to_string();
    let answer = client
        .request("POST", "/v1/cache/batch/get", QUORUM, body.as_bytes())
        .json();
    for (key, item) in keys.iter().zip(answer["results"].as_array().unwrap()) {
        assert_eq!(item["found"], true);
        assert_eq!(item["value"], {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.encode(key)
        });
    }
    let deleted = client.post("/v1/cache/batch/delete", &body).json();
    assert!(
        deleted["results"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["deleted"] == true)
    );
    let answer = cluster
        .connect(1)
        .request("POST", "/v1/cache/batch/get", QUORUM, body.as_bytes())
        .json();
    assert!(
        answer["results"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["found"] == false)
    );
}

#[test]
fn the_listing_covers_all_nodes_and_names_those_that_are_silent() {
    let mut cluster = Cluster::start(4, &[]);
    let mut keys: Vec<String> = (0..200).map(|number| format!("list-{number:03}")).collect();
    keys.sort();
    for key in &keys {
        done(at(&mut cluster.connect(0), ALL, "PUT", key, b"v"));
    }
    for node in 0..4 {
        let answer = cluster
            .connect(node)
            .get("/v1/cache/keys?q=list-&limit=500")
            .json();
        assert_eq!(answer["keys"], json!(keys));
        assert_eq!(answer["total_matched"], 200);
        assert_eq!(answer.get("partial_nodes"), None, "{answer}");
    }
    cluster.node(3).signal(libc::SIGSTOP);
    let answer = cluster
        .connect(0)
        .get("/v1/cache/keys?q=list-&limit=500")
        .json();
    // Every key has an owner among the three that answer.
    assert_eq!(answer["keys"], json!(keys));
    assert_eq!(answer["partial_nodes"], json!(["node-3"]));
    cluster.take(3);
}

#[test]
fn reference_defect_11_consistency_is_chosen_per_request() {
    let mut cluster = Cluster::start(3, &[]);
    done(at(&mut cluster.connect(0), ALL, "PUT", "k", b"1"));
    at(
        &mut cluster.connect(0),
        "X-Cache-Consistency: MOST\r\n",
        "GET",
        "k",
        b"",
    )
    .expect_error(400, "BAD_REQUEST");
    cluster.kill(2);
    cluster.await_state(0, 2, "dead");
    let mut client = cluster.connect(0);
    for (consistency, status) in [(ONE, 200), (QUORUM, 200), (ALL, 503)] {
        for (method, value) in [("PUT", &b"1"[..]), ("GET", b""), ("DELETE", b"")] {
            let answer = at(&mut client, consistency, method, "k", value);
            assert_eq!(answer.status, status, "{consistency}{method}: {answer:?}");
        }
    }
    cluster.kill(1);
    cluster.await_state(0, 1, "dead");
    for (consistency, status) in [(ONE, 200), (QUORUM, 503)] {
        assert_eq!(
            at(&mut client, consistency, "PUT", "k", b"2").status,
            status
        );
        assert_eq!(at(&mut client, consistency, "GET", "k", b"").status, status);
    }
}

#[test]
fn reference_defect_08_a_write_without_its_quorum_is_told() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.kill(1);
    cluster.kill(2);
    cluster.await_state(0, 1, "dead");
    cluster.await_state(0, 2, "dead");
    let mut client = cluster.connect(0);
    let refused = client.put("/v1/cache/k", b"v");
    refused.expect_error(503, "INTERNAL");
    assert_eq!(
        refused.json()["details"],
        json!({"reached": 0, "needed": 2})
    );
    assert!(refused.header("Retry-After").is_some());
    until("it is counted", || {
        cluster.metric(0, "WriteQuorumFailures") > 0
    });
    // It was known beforehand that it would not get its quorum: it was not begun.
    assert_eq!(at(&mut client, ONE, "GET", "k", b"").status, 404);
}

#[test]
fn reference_defect_07_a_hung_peer_slows_nothing_that_does_not_need_it() {
    // Whoever waits for the peer waits longer than the test does.
    let cluster = Cluster::start(5, &[("HYPERCACHE_PEER_TIMEOUT", "10m")]);
    let hung = 4;
    let keys: Vec<String> = (0..60).map(|number| format!("key-{number}")).collect();
    assert!(keys.iter().any(|key| cluster.owners(key).contains(&hung)));
    cluster.node(hung).signal(libc::SIGSTOP);
    for node in 0..4 {
        let mut client = cluster.connect(node);
        for key in &keys {
            done(at(&mut client, QUORUM, "PUT", key, b"v"));
            done(at(&mut client, QUORUM, "GET", key, b""));
            done(at(&mut client, QUORUM, "DELETE", key, b""));
        }
    }
}

#[test]
fn a_request_to_a_peer_ends_although_the_node_is_alone_by_then() {
    let env = [
        ("HYPERCACHE_PEER_TIMEOUT", "4s"),
        ("HYPERCACHE_DEAD_GRACE", "1ms"),
    ];
    let mut cluster = Cluster::start(3, &env);
    cluster.node(1).signal(libc::SIGSTOP);
    let mut waiting = cluster.connect(0);
    waiting.send(node::request("PUT", "/v1/cache/k", ALL, b"v"));
    cluster.await_members(0, |members| members.as_array().unwrap().len() == 2);
    let leaver = cluster.take(2);
    leaver.signal(libc::SIGTERM);
    cluster.await_members(0, |members| members.as_array().unwrap().len() == 1);
    waiting.answer().expect_error(503, "INTERNAL");
}

#[test]
fn reference_defect_05_hints_bring_writes_and_deletes_to_a_node_that_was_away() {
    // Without comparison of replicas: hints alone must do it.
    let cluster = Cluster::start(3, &[("HYPERCACHE_SYNC_INTERVAL", "24h")]);
    let mut client = cluster.connect(0);
    for number in 0..50 {
        let key = format!("key-{number}");
        done(at(&mut client, ALL, "PUT", &key, b"old"));
    }
    cluster.node(2).signal(libc::SIGSTOP);
    cluster.await_state(0, 2, "dead");
    for number in 0..50 {
        let key = format!("key-{number}");
        let method = if number % 2 == 0 { "DELETE" } else { "PUT" };
        done(at(&mut client, QUORUM, method, &key, b"new"));
    }
    until("hints are kept", || cluster.metric(0, "HintsKept") >= 50);
    cluster.node(2).signal(libc::SIGCONT);
    until("the hints are replayed", || {
        cluster.metric(0, "HintsKept") == 0
    });
    assert_eq!(cluster.metric(0, "HintedReplayed"), 50);
    let mut back = cluster.connect(2);
    for number in 0..50 {
        let found = at(&mut back, ONE, "GET", &format!("key-{number}"), b"");
        if number % 2 == 0 {
            found.expect_error(404, "NOT_FOUND");
        } else {
            assert_eq!(found.body, b"new");
        }
    }
}

#[test]
fn reference_defect_04_replicas_are_compared_without_being_asked() {
    // No hint lives long enough to be replayed.
    let cluster = Cluster::start(3, &[("HYPERCACHE_HINT_TTL", "1ms")]);
    let keys: Vec<String> = (0..50).map(|number| format!("key-{number}")).collect();
    let mut client = cluster.connect(0);
    for key in &keys {
        done(at(&mut client, ALL, "PUT", key, b"old"));
    }
    cluster.node(2).signal(libc::SIGSTOP);
    cluster.await_state(0, 2, "dead");
    for key in &keys {
        done(at(&mut client, QUORUM, "PUT", key, b"new"));
    }
    until("the hints have expired", || {
        cluster.metric(0, "HintedExpired") >= 50 && cluster.metric(0, "HintsKept") == 0
    });
    cluster.node(2).signal(libc::SIGCONT);
    let mut back = cluster.connect(2);
    until("the node has caught up", || {
        keys.iter()
            .all(|key| at(&mut back, ONE, "GET", key, b"").body == b"new")
    });
    assert_eq!(cluster.metric(0, "HintedReplayed"), 0);
}

#[test]
fn reference_defect_02_a_restarted_node_writes_newer_versions() {
    let mut cluster = Cluster::start(3, &[]);
    for number in 0..20 {
        let key = format!("key-{number}");
        done(at(&mut cluster.connect(0), ALL, "PUT", &key, b"old"));
    }
    cluster.kill(0);
    cluster.launch(0);
    cluster.settle();
    for number in 0..20 {
        let key = format!("key-{number}");
        done(at(&mut cluster.connect(0), ALL, "PUT", &key, b"new"));
        for node in 0..3 {
            assert_eq!(
                at(&mut cluster.connect(node), ONE, "GET", &key, b"").body,
                b"new"
            );
        }
    }
}

#[test]
fn reference_defect_03_a_node_that_restarts_empty_gets_its_data_back_and_deletes_nothing() {
    let mut cluster = Cluster::start(3, &[]);
    for number in 0..300 {
        let key = format!("key-{number}");
        done(at(
            &mut cluster.connect(0),
            ALL,
            "PUT",
            &key,
            key.as_bytes(),
        ));
    }
    cluster.kill(1);
    cluster.launch(1);
    cluster.settle();
    // The others are gone: what it answers is its own.
    cluster.kill(0);
    cluster.kill(2);
    cluster.await_state(1, 0, "dead");
    cluster.await_state(1, 2, "dead");
    let mut client = cluster.connect(1);
    for number in 0..300 {
        let key = format!("key-{number}");
        assert_eq!(at(&mut client, ONE, "GET", &key, b"").body, key.as_bytes());
    }
}

#[test]
fn peers_must_show_the_token() {
    let token = [("HYPERCACHE_PEER_TOKEN", "open-sesame")];
    let mut cluster = Cluster::start(3, &token);
    done(at(&mut cluster.connect(0), ALL, "PUT", "k", b"v"));
    let mut peer = Client::connect(&cluster.address(0, PEERS));
    peer.post("/peer/v1/operations/0", "x")
        .expect_error(401, "UNAUTHORIZED");
    let mut peer = Client::connect(&cluster.address(0, PEERS));
    let header = "Authorization: Bearer open-sesam\r\n";
    peer.request("POST", "/peer/v1/membership", header, b"x")
        .expect_error(401, "UNAUTHORIZED");
    let mut peer = Client::connect(&cluster.address(0, PEERS));
    assert_eq!(peer.get("/health").text(), "ok");
    // One with the wrong token is no member, and says why.
    cluster.kill(2);
    cluster.await_state(0, 2, "dead");
    cluster.launch_with(2, &[("HYPERCACHE_PEER_TOKEN", "wrong")]);
    cluster.await_members(2, |members| members.as_array().unwrap().len() == 1);
    assert_eq!(cluster.connect_management(2).get("/health").status, 503);
    until("it says why", || {
        cluster.node(2).has_logged("refuses our token")
    });
}

#[test]
fn a_node_that_is_joining_answers_nothing_about_keys() {
    let mut cluster = Cluster::prepare(3, &[]);
    cluster.launch(0);
    let mut client = cluster.connect(0);
    for target in ["/v1/cache/k", "/v1/cache/keys"] {
        let refused = client.get(target);
        refused.expect_error(503, "INTERNAL");
        assert!(refused.header("Retry-After").is_some(), "{target}");
    }
}

#[test]
fn events_tell_of_members_at_once_and_of_each_change() {
    let mut cluster = Cluster::start(3, &[]);
    let mut events = cluster.connect_management(0);
    events.send("GET /cluster/events HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut head = Vec::new();
    loop {
        match events.line() {
            line if line.is_empty() => break,
            line => head.push(line),
        }
    }
    assert_eq!(head[0], "HTTP/1.1 200 OK");
    assert!(head.contains(&"Content-Type: text/event-stream".to_owned()));
    assert!(head.contains(&"X-Accel-Buffering: no".to_owned()));
    assert_eq!(events.line(), "retry: 5000");
    assert_eq!(events.line(), "");
    let mut event = |wanted: &str| loop {
        let name = events.line();
        let data: Value = serde_json::from_str(&events.line()["data: ".len()..]).unwrap();
        assert_eq!(events.line(), "");
        if name == format!("event: {wanted}") {
            return data;
        }
    };
    let states = |members: &Value| -> Vec<String> {
        let members = members["members"].as_array().unwrap();
        members
            .iter()
            .map(|member| member["State"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(states(&event("members")), ["alive"; 3]);
    assert!(event("heartbeat")["heartbeatSuccess"].is_u64());
    cluster.kill(1);
    let mut seen = states(&event("members"));
    while seen != ["alive", "dead", "alive"] {
        assert_eq!((&*seen[0], &*seen[2]), ("alive", "alive"), "{seen:?}");
        seen = states(&event("members"));
    }
}

#[test]
fn a_node_that_leaves_says_so() {
    let mut cluster = Cluster::start(3, &[]);
    let mut leaver = cluster.take(2);
    leaver.signal(libc::SIGTERM);
    assert!(leaver.wait().success());
    for node in 0..2 {
        cluster.await_state(node, 2, "dead");
        assert_eq!(cluster.metric(node, "NodesSuspect"), 0);
    }
    done(at(&mut cluster.connect(0), QUORUM, "PUT", "k", b"v"));
    // It is taken back in the place that was kept for it: no owners have changed.
    cluster.launch(2);
    cluster.settle();
    assert_eq!(at(&mut cluster.connect(2), ONE, "GET", "k", b"").body, b"v");
    done(at(&mut cluster.connect(0), ALL, "PUT", "k", b"w"));
    for node in 0..3 {
        assert_eq!(cluster.metric(node, "RosterEpoch"), 1, "node-{node}");
    }
}

#[test]
fn a_node_that_stays_away_loses_its_place_after_the_grace() {
    let mut cluster = Cluster::start(4, &[("HYPERCACHE_DEAD_GRACE", "1s")]);
    let mut client = cluster.connect(0);
    for number in 0..200 {
        done(at(&mut client, ALL, "PUT", &format!("key-{number}"), b"v"));
    }
    let mut leaver = cluster.take(3);
    leaver.signal(libc::SIGTERM);
    assert!(leaver.wait().success());
    for node in 0..3 {
        let has_changed = || cluster.metric(node, "RosterEpoch") == 2;
        until("the others own all keys", has_changed);
        assert_eq!(cluster.metric(node, "RosterChanging"), 0);
    }
    // Every key has three owners again, and they have it.
    for number in 0..200 {
        let key = format!("key-{number}");
        assert_eq!(cluster.owners(&key).len(), 3);
        for node in 0..3 {
            let found = at(&mut cluster.connect(node), ONE, "GET", &key, b"");
            assert_eq!(found.body, b"v", "{key} at node-{node}");
        }
    }
}

#[test]
fn a_draining_node_refuses_writes_and_hands_over_what_only_it_has() {
    // One copy of each key: nobody else has what it has.
    let mut cluster = Cluster::start(3, &[("HYPERCACHE_REPLICATION", "1")]);
    let mut client = cluster.connect(0);
    for number in 0..300 {
        done(at(&mut client, ONE, "PUT", &format!("key-{number}"), b"v"));
    }
    let mut peer = Client::connect(&cluster.address(2, PEERS));
    assert_eq!(peer.request("POST", "/dist/drain", "", b"").status, 200);
    let refused = at(&mut cluster.connect(2), ONE, "PUT", "late", b"v");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["code"], "DRAINING");
    assert_eq!(
        refused.json()["error"],
        "node is draining; redirect to a peer"
    );
    assert_eq!(peer.request("GET", "/health", "", b"").body, b"draining");
    let health = cluster.connect_management(2).get("/health");
    assert_eq!((health.status, &*health.body), (503, &b"draining"[..]));
    assert_eq!(cluster.metric(2, "Drains"), 1);
    // Reads are served meanwhile.
    let found = at(&mut cluster.connect(2), ONE, "GET", "key-0", b"");
    assert_eq!(found.body, b"v");
    let mut leaver = cluster.take(2);
    leaver.signal(libc::SIGTERM);
    assert!(leaver.wait().success());
    for number in 0..300 {
        let key = format!("key-{number}");
        let found = at(&mut cluster.connect(number % 2), ONE, "GET", &key, b"");
        assert_eq!(found.body, b"v", "{key}");
    }
}

#[test]
fn a_draining_node_ends_within_its_deadline_though_a_peer_hangs() {
    let env = [
        ("HYPERCACHE_REPLICATION", "1"),
        ("HYPERCACHE_SHUTDOWN_TIMEOUT", "2s"),
        ("HYPERCACHE_HEARTBEAT", "10s"),
    ];
    let mut cluster = Cluster::start(2, &env);
    done(at(&mut cluster.connect(0), ONE, "PUT", "k", b"v"));
    // It looks alive for a minute, and takes nothing over.
    cluster.node(1).signal(libc::SIGSTOP);
    let mut leaver = cluster.take(0);
    leaver.signal(libc::SIGTERM);
    assert!(leaver.wait().success());
    assert!(leaver.has_logged("the time to hand over has passed"));
    cluster.node(1).signal(libc::SIGCONT);
}

#[test]
fn an_item_names_its_writer_when_that_has_left() {
    let mut cluster = Cluster::start(3, &[("HYPERCACHE_DEAD_GRACE", "1s")]);
    done(at(&mut cluster.connect(2), ALL, "PUT", "k", b"v"));
    let origin = |cluster: &Cluster| {
        let mut client = cluster.connect(0);
        let head = at(&mut client, ONE, "HEAD", "k", b"");
        let json = client.request("GET", "/v1/cache/k", "Accept: application/json\r\n", b"");
        let origin = head.header("X-Cache-Origin").expect("always there");
        assert_eq!(json.json()["origin"], origin);
        origin.to_owned()
    };
    assert_eq!(origin(&cluster), "node-2");
    let mut leaver = cluster.take(2);
    leaver.signal(libc::SIGTERM);
    assert!(leaver.wait().success());
    cluster.await_members(0, |members| members.as_array().unwrap().len() == 2);
    assert_eq!(origin(&cluster).len(), 6, "a hash");
}

#[test]
fn frames_arrive_on_the_core_that_owns_the_partition() {
    let cluster = Cluster::start(3, &[("HYPERCACHE_CORES", "2")]);
    let mut client = cluster.connect(0);
    for number in 0..200 {
        done(at(&mut client, ALL, "PUT", &format!("key-{number}"), b"v"));
    }
    for node in 0..3 {
        let hopped = per_core(&cluster, node, "hypercache_peer_frames_hopped_total");
        // glommio cannot choose the source ports by which peers are steered.
        if !cfg!(feature = "glommio") {
            assert_eq!(hopped, [0, 0], "node-{node}");
        }
        let frames = per_core(&cluster, node, "hypercache_peer_frames_total");
        assert!(frames.iter().sum::<u64>() > 0, "node-{node}: {frames:?}");
    }
}

#[test]
fn frames_of_peers_do_not_wait_for_batches_of_clients() {
    // Whoever waits for a deadline waits longer than the test does.
    let env = [
        ("HYPERCACHE_PEER_TIMEOUT", "10m"),
        ("HYPERCACHE_MAILBOX_DEPTH", "1"),
    ];
    let mut cluster = Cluster::prepare(2, &env);
    // Frames of a node with another number of cores belong to several cores each.
    cluster.launch_with(0, &[("HYPERCACHE_CORES", "3")]);
    cluster.launch_with(1, &[("HYPERCACHE_CORES", "4")]);
    cluster.settle();
    let items: Vec<Value> = (0..64)
        .map(|number| json!({"key": format!("key-{number}"), "value": "v"}))
        .collect();
    let body = json!({"items": items}).to_string();
    std::thread::scope(|scope| {
        for client in 0..16 {
            let (cluster, body) = (&cluster, &body);
            scope.spawn(move || {
                let mut client = cluster.connect(client % 2);
                for _ in 0..50 {
                    let target = "/v1/cache/batch/put";
                    done(client.request("POST", target, ALL, body.as_bytes()));
                }
            });
        }
    });
    for node in 0..2 {
        let hopped = per_core(&cluster, node, "hypercache_peer_frames_hopped_total");
        assert!(hopped.iter().sum::<u64>() > 0, "node-{node}: {hopped:?}");
    }
}

/// What each core of a node counts under this name.
fn per_core(cluster: &Cluster, node: usize, name: &str) -> Vec<u64> {
    let metrics = cluster.connect_management(node).get("/metrics").text();
    let samples = metrics.lines().filter_map(|line| {
        let sample = line.strip_prefix(name)?.strip_prefix("{core=\"")?;
        sample.split_once("\"} ")?.1.parse().ok()
    });
    samples.collect()
}
