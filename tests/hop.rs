//! Keys of other cores, and which core a connection is served by, on a node of two cores.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/node.rs"]
mod node;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use node::{Client, Node, StopOnDrop, key_on};

/// How many reads make a key hot for certain.
const OFTEN: usize = 50;

fn number(answer: &node::Answer) -> u64 {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text().parse().expect("what was written")
}

/// Reads a key of core 1 over core 0 until that answers from a copy.
fn heat(node: &Node, reader: &mut Client, path: &str) {
    let before = node.metric("hot_copy_hits_total");
    for _ in 0..OFTEN {
        assert_eq!(reader.get(path).status, 200);
    }
    // Cores tell what they have counted ten times a second.
    while node.metric("hot_copy_hits_total") == before {
        reader.get(path);
    }
}

#[test]
fn what_was_acknowledged_is_read_through_every_core_from_then_on() {
    let node = Node::start(&[]);
    let path = format!("/v1/cache/{}", key_on(1, "hot"));
    let mut writer = node.connect_to_core(1);
    let mut reader = node.connect_to_core(0);
    writer.put(&path, b"0");
    heat(&node, &mut reader, &path);
    for value in 1..500_u64 {
        writer.put(&path, value.to_string().as_bytes());
        assert_eq!(number(&reader.get(&path)), value);
        // And again, from the copy if there is one.
        for _ in 0..3 {
            assert_eq!(number(&reader.get(&path)), value);
        }
    }
    writer.request("DELETE", &path, "", b"");
    assert_eq!(reader.get(&path).status, 404);
    writer.put(&path, b"501");
    assert_eq!(number(&reader.get(&path)), 501);
    heat(&node, &mut reader, &path);
    assert!(node.metric("hot_leases_revoked_total") > 0);
    let management = &mut node.connect_management();
    assert_eq!(management.post("/clear", "").status, 200);
    assert_eq!(reader.get(&path).status, 404);
}

/// Requests that arrive together are answered as if one came after the other, and a copy
/// that came of them is of what was written last.
#[test]
fn a_read_sees_the_write_before_it_on_its_connection() {
    let node = Node::start(&[]);
    let path = format!("/v1/cache/{}", key_on(1, "order"));
    let mut client = node.connect_to_core(0);
    let mut other = node.connect_to_core(0);
    client.put(&path, b"0");
    heat(&node, &mut client, &path);
    for round in 0..500_u64 {
        let (first, second) = (2 * round + 1, 2 * round + 2);
        let mut batch = node::request("GET", &path, "", b"");
        for value in [first, second] {
            let value = value.to_string();
            batch.extend(node::request("PUT", &path, "", value.as_bytes()));
            batch.extend(node::request("GET", &path, "", b""));
        }
        client.send(&batch);
        assert_eq!(number(&client.answer()), 2 * round);
        for value in [first, second] {
            assert_eq!(client.answer().status, 200);
            assert_eq!(number(&client.answer()), value);
        }
        assert_eq!(number(&other.get(&path)), second);
    }
}

/// Readers on the other core, each by itself, never see an older value after a newer one,
/// nor one older than was acknowledged when they asked, while it is written all the time.
#[test]
fn readers_of_a_key_that_is_written_all_the_time_never_go_back() {
    const WRITES: u64 = 3_000;
    let node = Node::start(&[]);
    let path = format!("/v1/cache/{}", key_on(1, "busy"));
    let mut writer = node.connect_to_core(0);
    writer.put(&path, b"0");
    let (acknowledged, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let copies_read = node.metric("hot_copy_hits_total");
    std::thread::scope(|scope| {
        let _ends = StopOnDrop(&over);
        for core in [0, 0, 1] {
            let mut reader = node.connect_to_core(core);
            let (path, acknowledged, over) = (&path, &acknowledged, &over);
            scope.spawn(move || {
                let mut last = 0;
                while !over.load(Ordering::SeqCst) {
                    let least = acknowledged.load(Ordering::SeqCst).max(last);
                    last = number(&reader.get(path));
                    assert!(last >= least, "read {last} after {least}");
                }
            });
        }
        let mut value = 0;
        // Cores tell what they have counted ten times a second.
        while value < WRITES || node.metric("hot_copy_hits_total") == copies_read {
            value += 1;
            assert!(value < 20 * WRITES, "no copy is ever read");
            writer.put(&path, value.to_string().as_bytes());
            acknowledged.store(value, Ordering::SeqCst);
        }
    });
}

#[test]
fn the_metadata_of_a_copy_is_that_of_its_item() {
    let node = Node::start(&[]);
    let path = format!("/v1/cache/{}", key_on(1, "meta"));
    let mut owner = node.connect_to_core(1);
    let mut reader = node.connect_to_core(0);
    owner.put(&format!("{path}?ttl=1h"), b"value");
    heat(&node, &mut reader, &path);
    let (copied, owned) = (
        reader.request("HEAD", &path, "", b""),
        owner.request("HEAD", &path, "", b""),
    );
    for name in [
        "X-Cache-Version",
        "X-Cache-Origin",
        "X-Cache-Expires-At",
        "Content-Length",
    ] {
        assert!(owned.header(name).is_some(), "{owned:?}");
        assert_eq!(copied.header(name), owned.header(name), "{name}");
    }
    let json = "Accept: application/json\r\n";
    let envelope = |client: &mut Client| client.request("GET", &path, json, b"").json();
    let (copied, owned) = (envelope(&mut reader), envelope(&mut owner));
    for field in ["key", "value", "version", "origin", "owners"] {
        assert_eq!(copied[field], owned[field], "{field}");
    }
}

#[test]
fn without_memory_for_them_there_are_no_copies() {
    let node = Node::start(&[("HYPERCACHE_HOT_COPIES", "0")]);
    let path = format!("/v1/cache/{}", key_on(1, "hot"));
    let mut reader = node.connect_to_core(0);
    reader.put(&path, b"value");
    for _ in 0..10 * OFTEN {
        assert_eq!(reader.get(&path).text(), "value");
    }
    assert_eq!(node.metric("hot_copies_size_bytes"), 0);
    assert_eq!(node.metric("hot_copies_taken_total"), 0);
}

#[test]
fn of_64_connections_no_core_has_more_than_a_quarter_above_the_mean() {
    for driver in ["auto", "epoll"] {
        let node = Node::start(&[("HYPERCACHE_IO_DRIVER", driver)]);
        let mut clients: Vec<_> = (0..64).map(|_| node.connect()).collect();
        let mut served = [0; 2];
        for client in &mut clients {
            let answer = client.get("/healthz");
            let core: usize = answer.header("X-Cache-Core").unwrap().parse().unwrap();
            served[core] += 1;
        }
        assert!(
            served.iter().all(|&count| count <= 40),
            "{driver}: {served:?}"
        );
        // One that was passed on is served like any other.
        for client in &mut clients {
            assert_eq!(client.put("/v1/cache/key", b"value").status, 200);
            assert_eq!(client.get("/v1/cache/key").text(), "value");
        }
    }
}

#[test]
fn a_client_that_chooses_its_port_is_served_by_the_core_it_wants() {
    let node = Node::start(&[]);
    // Many on one core: none of them is passed on.
    let mut clients: Vec<_> = (0..20).map(|_| node.connect_to_core(1)).collect();
    let asked = node.metric("operations_for_others_total");
    let path = format!("/v1/cache/{}", key_on(1, "own"));
    for client in &mut clients {
        client.put(&path, b"value");
        assert_eq!(client.get(&path).text(), "value");
    }
    assert_eq!(node.metric("operations_for_others_total"), asked);
}

/// What docs/clients.md says about one key, so that authors of clients can check theirs.
#[test]
fn the_example_for_authors_of_clients_is_right() {
    use hypercache::hash::{CoreCount, KeyHash};
    let hash = KeyHash::of(b"key0");
    let core = hash.partition().core(CoreCount::new(4).unwrap());
    let said = format!(
        "For `key0` the hash is {:#x}, the partition {}, and of 4 cores the core is {}.",
        hash.0,
        hash.partition().index(),
        core.index()
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clients.md");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(&said), "docs/clients.md should say: {said}");
}
