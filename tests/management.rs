//! The management listener as monitors, scrapers and operators use it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/node.rs"]
mod node;

use std::collections::{BTreeSet, HashMap};

use cluster::Cluster;
use node::{Client, Node, key_on};
use serde_json::{Value, json};

/// Asks until the answer is as it should be.
fn eventually<T: std::fmt::Debug>(mut ask: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let mut answer = ask();
    cluster::until("the answer that is wanted", || {
        let good = wanted(&answer);
        if !good {
            answer = ask();
        }
        good
    });
    answer
}

fn object(properties: &Value) -> Value {
    let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn assert_valid(schema: &Value, answer: &Value, what: &str) {
    let validator = jsonschema::validator_for(schema).unwrap();
    let faults: Vec<String> = validator
        .iter_errors(answer)
        .map(|fault| format!("{} at {}", fault, fault.instance_path()))
        .collect();
    assert!(faults.is_empty(), "{what}: {faults:?}\n{answer}");
}

/// What strict monitors accept of the routes that exist for them.
#[test]
fn monitors_get_exactly_the_shapes_they_expect() {
    let cluster = Cluster::start(2, &[]);
    let mut client = cluster.connect(0);
    client.put("/v1/cache/key", b"value");
    client.get("/v1/cache/key");
    let mut management = cluster.connect_management(0);
    let count = json!({"type": "integer", "minimum": 0});
    let number = json!({"type": "number"});
    let text = json!({"type": "string"});
    let stat = object(&json!({
        "Mean": number, "Median": number, "Min": number, "Max": number,
        "Count": count, "Sum": number, "Variance": number,
        "Values": {"type": "array", "items": number},
    }));
    let member = object(&json!({
        "ID": text, "Address": text, "Incarnation": count,
        "State": {"enum": ["alive", "suspect", "dead"]},
    }));
    let shapes = [
        (
            "/stats",
            json!({"type": "object", "additionalProperties": stat}),
        ),
        (
            "/cluster/members",
            object(&json!({
                "replication": count, "virtualNodes": count,
                "members": {"type": "array", "items": member, "minItems": 2},
            })),
        ),
        (
            "/cluster/ring",
            object(&json!({"count": count, "vnodes": {"type": "array", "items": text}})),
        ),
        (
            "/cluster/heartbeat",
            object(&json!({
                "heartbeatSuccess": count, "heartbeatFailure": count,
                "nodesRemoved": count, "readPrimaryPromote": count,
            })),
        ),
        (
            "/dist/owners?key=key",
            object(&json!({"key": text, "owners": {"type": "array", "items": text}})),
        ),
    ];
    for (route, schema) in &shapes {
        assert_valid(schema, &management.get(route).json(), route);
    }

    let stats = management.get("/stats").json();
    for name in [
        "get_count",
        "get_latency_ns",
        "set_count",
        "set_latency_ns",
        "remove_count",
        "remove_latency_ns",
        "item_evicted_count",
        "evicted_item_count",
        "eviction_loop_count",
        "eviction_loop_duration",
        "expired_item_count",
    ] {
        assert!(stats[name].is_object(), "{name}");
    }

    let config = management.get("/config").json();
    for name in [
        "capacity",
        "allocation",
        "maxCacheSize",
        "replication",
        "virtualNodesPerNode",
    ] {
        assert!(config[name].is_u64(), "{name}: {config}");
    }
    for name in ["evictionInterval", "expirationInterval"] {
        let interval = config[name].as_str().unwrap();
        assert!(
            hypercache::duration::GoDuration::parse(interval).is_ok(),
            "{name}"
        );
    }
    assert_eq!(config["evictionAlgorithm"], "s3fifo");

    let fields = management.get("/dist/metrics").json();
    let contract = "ForwardGet ForwardSet ForwardRemove ReplicaFanoutSet ReplicaFanoutRemove \
        ReadRepair ReadRepairBatched ReadRepairCoalesced ReplicaGetMiss HeartbeatSuccess \
        HeartbeatFailure IndirectProbeSuccess IndirectProbeFailure IndirectProbeRefuted Drains \
        NodesSuspect NodesDead NodesRemoved VersionConflicts VersionTieBreaks ReadPrimaryPromote \
        HintedQueued HintedReplayed HintedExpired HintedDropped HintedGlobalDropped HintedBytes \
        MigrationHintQueued MigrationHintReplayed MigrationHintExpired MigrationHintDropped \
        MigrationHintLastAgeNanos MerkleSyncs MerkleKeysPulled MerkleBuildNanos MerkleDiffNanos \
        MerkleFetchNanos AutoSyncLoops LastAutoSyncNanos AutoSyncCleanTicks AutoSyncBackoffFactor \
        ChaosDrops ChaosLatencies TombstonesActive TombstonesPurged WriteQuorumFailures WriteAcks \
        WriteAttempts WriteForwardPromotion WriteApplyRefused RebalancedKeys RebalanceBatches \
        RebalanceThrottle RebalanceLastNanos RebalancedReplicaDiff RebalanceReplicaDiffThrottle \
        RebalancedPrimary MembershipVersion MembersAlive MembersSuspect MembersDead";
    for field in contract.split_whitespace() {
        assert!(fields[field].is_u64(), "{field}: {}", fields[field]);
    }
    assert!(fields["LastAutoSyncError"].is_string());
}

#[test]
fn stats_are_the_distributions_of_what_was_asked() {
    // Copies would spare some reads the way to the other core.
    let node = Node::start(&[("HYPERCACHE_HOT_COPIES", "0")]);
    let keys = [key_on(0, "k"), key_on(1, "k")];
    let mut client = node.connect();
    for key in &keys {
        client.put(&format!("/v1/cache/{key}"), b"value");
        for _ in 0..20 {
            client.get(&format!("/v1/cache/{key}"));
        }
        client.request("DELETE", &format!("/v1/cache/{key}"), "", b"");
    }
    let mut management = Client::connect(&node.mgmt);
    let stats = eventually(
        || management.get("/stats").json(),
        |stats| stats["get_count"]["Sum"] == 40 && stats["remove_count"]["Sum"] == 2,
    );
    let latency = &stats["get_latency_ns"];
    assert_eq!(
        (&latency["Count"], &stats["set_count"]["Count"]),
        (&json!(40), &json!(2))
    );
    let number = |name: &str| latency[name].as_f64().unwrap();
    let (min, median, max) = (number("Min"), number("Median"), number("Max"));
    assert!(0.0 < min && min <= median && median <= max, "{latency}");
    assert!(number("Variance") > 0.0, "{latency}");
    assert!(
        (number("Mean") - number("Sum") / 40.0).abs() < 1.0,
        "{latency}"
    );
    assert_eq!(latency["Values"].as_array().unwrap().len(), 40);

    let cores = management.get("/stats/cores").json();
    let by_kind: HashMap<(&str, &str), u64> = cores["latency"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let name = |field: &str| one[field].as_str().unwrap();
            let buckets = one["buckets"].as_array().unwrap();
            let counts = buckets.iter().map(|bucket| bucket[1].as_u64().unwrap());
            assert_eq!(counts.sum::<u64>(), one["count"].as_u64().unwrap());
            (
                (name("operation"), name("via")),
                one["count"].as_u64().unwrap(),
            )
        })
        .collect();
    for operation in ["get", "put", "delete"] {
        let local = by_kind[&(operation, "local")];
        assert_eq!(
            local,
            by_kind[&(operation, "remote")],
            "half the keys are elsewhere"
        );
        assert!(
            !by_kind.contains_key(&(operation, "forwarded")),
            "{by_kind:?}"
        );
    }
}

#[test]
fn requests_that_ask_other_nodes_are_told_apart() {
    let cluster = Cluster::start(3, &[]);
    let mut client = cluster.connect(0);
    for n in 0..8 {
        assert_eq!(client.put(&format!("/v1/cache/{n}"), b"v").status, 200);
    }
    client.post(
        "/v1/cache/batch/put",
        r#"{"items":[{"key":"a","value":"b"}]}"#,
    );
    client.get("/v1/cache/keys");
    let metrics = cluster.connect_management(0).get("/metrics").text();
    let counted = |operation: &str, via: &str| {
        let series = format!(
            "hypercache_request_duration_seconds_count{{operation=\"{operation}\",via=\"{via}\"}} "
        );
        let line = metrics.lines().find_map(|line| line.strip_prefix(&*series));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    assert_eq!(
        (counted("put", "forwarded"), counted("put", "local")),
        (8, 0)
    );
    assert_eq!(counted("batch_put", "forwarded"), 1);
    assert_eq!(counted("list", "forwarded"), 1);
}

#[test]
fn metrics_are_told_in_the_format_that_is_asked_for() {
    let node = Node::start(&[]);
    let mut client = Client::connect(&node.mgmt);
    for (accept, open_metrics) in [
        ("", false),
        ("Accept: */*\r\n", false),
        ("Accept: text/plain;version=0.0.4\r\n", false),
        (
            "Accept: application/openmetrics-text; version=1.0.0\r\n",
            true,
        ),
        (
            "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n",
            true,
        ),
        (
            "Accept: application/openmetrics-text;q=0.1,text/plain\r\n",
            false,
        ),
        (
            "Accept: application/openmetrics-text;version=9.0.0\r\n",
            false,
        ),
    ] {
        let answer = client.request("GET", "/metrics", accept, b"");
        let media = answer.header("Content-Type").unwrap().to_owned();
        assert_eq!(
            media.starts_with("application/openmetrics-text"),
            open_metrics,
            "{accept}"
        );
        assert_eq!(answer.header("Vary"), Some("Accept"));
        let text = answer.text();
        assert_eq!(text.ends_with("# EOF\n"), open_metrics);
        assert_eq!(text.contains("# UNIT"), open_metrics);
        let family = match open_metrics {
            true => "# TYPE hypercache_requests counter\n",
            false => "# TYPE hypercache_requests_total counter\n",
        };
        assert!(text.contains(family), "{text}");
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
    }
}

#[test]
fn a_scrape_tells_each_series_once_and_agrees_with_dist_metrics() {
    let cluster = Cluster::start(3, &[]);
    let mut client = cluster.connect(0);
    for n in 0..20 {
        client.put(&format!("/v1/cache/{n}"), b"v");
    }
    let mut management = cluster.connect_management(0);
    // The cores publish a few times in a second: until then the numbers differ.
    let attempts = eventually(
        || management.get("/dist/metrics").json()["WriteAttempts"].clone(),
        |attempts| *attempts == 20,
    );
    let text = management.get("/metrics").text();
    let series = text.lines().filter(|line| !line.starts_with('#'));
    let names: Vec<&str> = series
        .map(|line| line.rsplit_once(' ').unwrap().0)
        .collect();
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(names.len(), unique.len());
    let line = format!("hypercache_dist_write_attempts_total {attempts}\n");
    assert!(text.contains(&line), "{text}");
    assert!(text.contains("hypercache_dist_members_alive 3\n"), "{text}");
}

#[test]
fn secrets_are_in_no_answer() {
    let secrets = [
        ("HYPERCACHE_AUTH_TOKEN", "sesame-of-clients"),
        ("HYPERCACHE_PEER_TOKEN", "sesame-of-peers"),
    ];
    let node = Node::start(&secrets);
    let mut client = Client::connect(&node.mgmt);
    let bearer = "Authorization: Bearer sesame-of-clients\r\n";
    for route in [
        "/config",
        "/metrics",
        "/stats",
        "/stats/cores",
        "/dist/metrics",
    ] {
        let answer = client.request("GET", route, bearer, b"");
        assert_eq!(answer.status, 200, "{route}");
        for (variable, secret) in secrets {
            assert!(!answer.text().contains(secret), "{route}");
            let quoted = format!("\"{variable}\"");
            assert!(!answer.text().contains(&quoted), "{route}");
        }
    }
    let config = client.request("GET", "/config", bearer, b"").json();
    assert_eq!(config["settings"]["HYPERCACHE_CORES"], "2");
    assert_eq!(config["settings"]["HYPERCACHE_EVICTION"], "s3fifo");
}

#[test]
fn an_eviction_cycle_makes_room_and_is_measured() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    for n in 0..200 {
        client.put(&format!("/v1/cache/{n}"), b"value");
    }
    let mut management = Client::connect(&node.mgmt);
    let answer = management.post("/evict", "");
    assert_eq!(
        (answer.status, answer.json()),
        (202, json!({"accepted": true}))
    );
    let stats = eventually(
        || management.get("/stats").json(),
        |stats| {
            stats["evicted_item_count"]["Sum"].as_u64() >= Some(2)
                && stats["eviction_loop_count"]["Count"] == 2
        },
    );
    assert_eq!(stats["eviction_loop_duration"]["Count"], 2);
    let evicted = stats["evicted_item_count"]["Sum"].as_u64().unwrap();
    assert!(evicted <= 200 / 64 + 2, "{evicted}");
}

#[test]
fn controls_are_not_taken_from_pages_of_other_sites() {
    let node = Node::start(&[]);
    let mut client = Client::connect(&node.mgmt);
    for route in ["/clear", "/evict", "/trigger-expiration"] {
        for origin in ["https://elsewhere.example", "null", "http://x.example"] {
            let header = format!("Origin: {origin}\r\n");
            let refused = client.request("POST", route, &header, b"");
            refused.expect_error(403, "FORBIDDEN");
        }
        let own = client.request("POST", route, "Origin: http://TEST\r\n", b"");
        assert!((200..300).contains(&own.status), "{route}: {own:?}");
    }
    let read = client.request(
        "GET",
        "/stats",
        "Origin: https://elsewhere.example\r\n",
        b"",
    );
    assert_eq!(read.status, 200);
}

#[test]
fn expiration_can_be_asked_for() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    client.put("/v1/cache/key?ttl=1ms", b"value");
    let mut management = Client::connect(&node.mgmt);
    let answer = management.post("/trigger-expiration", "");
    assert_eq!(answer.status, 202);
    eventually(
        || management.get("/stats").json()["expired_item_count"]["Sum"].clone(),
        |expired| *expired == 1,
    );
}

#[test]
fn clearing_is_for_the_whole_cluster_and_for_those_that_were_away() {
    let mut cluster = Cluster::start(3, &[]);
    for n in 0..50 {
        let target = format!("/v1/cache/{n}");
        let consistency = "X-Cache-Consistency: ALL\r\n";
        let mut client = cluster.connect(n % 3);
        assert_eq!(
            client.request("PUT", &target, consistency, b"v").status,
            200
        );
    }
    let answer = cluster.connect_management(1).post("/clear", "");
    assert_eq!(
        (answer.status, &answer.json()["cleared"]),
        (200, &json!(true))
    );
    let keys_at = |cluster: &Cluster, node: usize| {
        cluster.connect(node).get("/v1/cache/keys").json()["total_matched"].clone()
    };
    for node in 0..3 {
        eventually(|| keys_at(&cluster, node), |keys| *keys == 0);
    }
    let quorum = "X-Cache-Consistency: QUORUM\r\n";
    let mut client = cluster.connect(0);
    assert_eq!(
        client.request("GET", "/v1/cache/7", quorum, b"").status,
        404
    );
    assert_eq!(client.put("/v1/cache/7", b"new").status, 200);
    cluster.kill(2);
    cluster.launch(2);
    cluster.settle();
    let mut client = cluster.connect(2);
    assert_eq!(
        client.request("GET", "/v1/cache/7", quorum, b"").text(),
        "new"
    );
    assert_eq!(
        client.request("GET", "/v1/cache/8", quorum, b"").status,
        404
    );
    let partitions = cluster.connect_management(2).get("/internal/keys").json();
    assert_eq!(partitions["keys"], json!(["7"]));
}

#[test]
fn the_hottest_keys_of_each_core_are_found() {
    let node = Node::start(&[]);
    let hot = [key_on(0, "hot"), key_on(1, "hot")];
    let mut client = node.connect();
    for round in 0..400 {
        for key in &hot {
            client.get(&format!("/v1/cache/{key}"));
        }
        client.get(&format!("/v1/cache/cold{round}"));
    }
    let found = Client::connect(&node.mgmt).get("/debug/hotkeys").json();
    for (core, key) in hot.iter().enumerate() {
        let hottest = &found["cores"][core]["keys"][0];
        assert_eq!(hottest["key"], **key, "{found}");
        assert!(hottest["share"].as_f64().unwrap() > 0.3, "{found}");
    }
    assert!(found["keys"].as_array().unwrap().len() >= 2);
}

#[test]
fn keys_and_digests_come_in_pages_that_hold_each_once() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    let mut wanted = BTreeSet::new();
    for batch in 0..6 {
        let items = (0..500).map(|n| format!(r#"{{"key":"key-{batch}-{n}","value":"v"}}"#));
        let items: Vec<String> = items.collect();
        let body = format!(r#"{{"items":[{}]}}"#, items.join(","));
        assert_eq!(client.post("/v1/cache/batch/put", &body).status, 200);
        wanted.extend((0..500).map(|n| format!("key-{batch}-{n}")));
    }
    let mut management = Client::connect(&node.mgmt);
    let mut pages = |route: &str, field: &str| {
        let (mut all, mut cursor, mut count) = (Vec::new(), json!(0), 0);
        while !cursor.is_null() {
            let page = management.get(&format!("{route}?cursor={cursor}")).json();
            all.extend(page[field].as_array().unwrap().iter().cloned());
            cursor = page["next_cursor"].clone();
            count += 1;
        }
        (all, count)
    };
    let (keys, count) = pages("/internal/keys", "keys");
    assert!(count >= 2, "{count} pages");
    assert_eq!(keys.len(), wanted.len());
    let keys: BTreeSet<String> = keys
        .iter()
        .map(|key| key.as_str().unwrap().into())
        .collect();
    assert_eq!(keys, wanted);
    let (digests, _) = pages("/internal/merkle", "partitions");
    assert_eq!(digests.len(), 4096);
    let items = digests.iter().map(|one| one["items"].as_u64().unwrap());
    assert_eq!(items.sum::<u64>(), 3000);
    for cursor in ["4096", "-1", "x"] {
        let answer = management.get(&format!("/internal/keys?cursor={cursor}"));
        answer.expect_error(400, "BAD_REQUEST");
        assert!(answer.text().contains(cursor));
    }
}

#[test]
fn every_partition_has_its_owners() {
    let cluster = Cluster::start(3, &[("HYPERCACHE_REPLICATION", "2")]);
    let answer = cluster
        .connect_management(0)
        .get("/cluster/partitions")
        .json();
    assert_eq!(
        (&answer["count"], &answer["replication"]),
        (&json!(4096), &json!(2))
    );
    let members = answer["members"].as_array().unwrap();
    let owned = answer["owned"].as_array().unwrap();
    let primaries = answer["primaries"].as_array().unwrap();
    assert_eq!((members.len(), owned.len(), primaries.len()), (3, 3, 4096));
    for (place, owned) in owned.iter().enumerate() {
        let first = primaries.iter().filter(|&primary| *primary == place);
        assert_eq!(owned["primary"], first.count());
    }
    let replicas = owned.iter().map(|owned| owned["replica"].as_u64().unwrap());
    assert_eq!(replicas.sum::<u64>(), 4096);
}

#[test]
fn slow_requests_are_counted_and_some_are_logged() {
    let node = Node::start(&[
        ("HYPERCACHE_SLOW_REQUEST", "1ns"),
        ("HYPERCACHE_SLOW_REQUEST_LOGS", "2"),
    ]);
    let key = key_on(0, "k");
    let mut client = node.connect_to_core(0);
    for _ in 0..50 {
        client.put(&format!("/v1/cache/{key}"), b"value");
    }
    let metrics = Client::connect(&node.mgmt).get("/metrics").text();
    assert!(metrics.contains("hypercache_slow_requests_total{core=\"0\"} 50\n"));
    assert!(node.has_logged_soon("slow request"));
    assert!(node.has_logged_soon("\"operation\":\"put\",\"via\":\"local\""));
    assert!(
        !node.has_logged(&format!("\"{key}\"")),
        "keys are not logged"
    );

    let quiet = Node::start(&[("HYPERCACHE_SLOW_REQUEST", "0")]);
    quiet.connect().get("/v1/cache/key");
    let metrics = Client::connect(&quiet.mgmt).get("/metrics").text();
    assert!(metrics.contains("hypercache_slow_requests_total{core=\"0\"} 0\n"));
}
