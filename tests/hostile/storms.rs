//! Clients that connect and go, again and again.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::hostile::{
    MIB, Neighbours, connect, metric, read_to_end, resident, show, status_of, wait_for_metric,
};
use crate::node::{Node, request};

/// Connections of one thread of a storm. Closed in order each would occupy a port for a
/// minute, so most are reset.
const STORM: usize = 3000;

fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

#[test]
fn a_storm_of_connections_that_come_and_go_keeps_nobody_else_waiting() {
    let node = Node::start(&[
        ("HYPERCACHE_READ_TIMEOUT", "1s"),
        ("HYPERCACHE_IDLE_TIMEOUT", "2s"),
    ]);
    let neighbours = Neighbours::of(&node);
    let before = resident(&node);
    let at_once: fn(TcpStream) = reset;
    let in_the_middle: fn(TcpStream) = |mut stream| {
        let _ = stream.write_all(b"PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Le");
        reset(stream);
    };
    let without_reading: fn(TcpStream) = |mut stream| {
        let _ = stream.write_all(&request("GET", "/v1/openapi.yaml", "", b"").repeat(3));
        reset(stream);
    };
    let storms: Vec<_> = [at_once, in_the_middle, without_reading]
        .into_iter()
        .map(|end| {
            let api = node.api.clone();
            thread::spawn(move || {
                for _ in 0..STORM {
                    end(TcpStream::connect(&api).unwrap());
                }
            })
        })
        .collect();
    // And some that close one side only.
    let half: Vec<TcpStream> = (0..1000)
        .map(|number| {
            let mut stream = connect(&node);
            if number % 2 == 0 {
                stream.write_all(b"GET /healthz HT").unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .collect();
    for storm in storms {
        storm.join().unwrap();
    }
    for mut stream in half {
        assert_eq!(
            status_of(&read_to_end(&mut stream)),
            None,
            "nothing was asked"
        );
    }
    let accepted = metric(&node, "connections_accepted_total") as usize;
    assert!(accepted > STORM, "{accepted}");
    wait_for_metric(&node, "connections_open", |open| open <= 2);
    wait_for_metric(&node, "buffered_bytes", |bytes| bytes == 0);
    let grown = resident(&node).saturating_sub(before);
    show("resident, grown by", grown);
    assert!(grown < 64 * MIB, "{grown}");
    neighbours.were_served();
}

#[test]
fn whoever_comes_when_there_is_no_room_is_told_when_to_come_again_and_counted() {
    const COME: usize = 1000;
    let node = Node::start(&[("HYPERCACHE_CONNECTIONS", "20")]);
    let neighbours = Neighbours::of(&node);
    wait_for_metric(&node, "connections_open", |open| open <= 20);
    let mut room = 20 - metric(&node, "connections_open") as usize;
    let held: Vec<TcpStream> = std::iter::repeat_with(|| connect(&node))
        .take(room)
        .collect();
    wait_for_metric(&node, "connections_open", |open| open == 20);
    room = 0;
    let mut told = room;
    for _ in 0..COME {
        let mut stream = connect(&node);
        let _ = stream.write_all(&request("GET", "/v1/me", "", b""));
        let answer = read_to_end(&mut stream);
        if status_of(&answer) == Some(503) {
            let text = String::from_utf8(answer).unwrap();
            assert!(text.contains("\r\nRetry-After: 1\r\n"), "{text}");
            let (_, body) = text.split_once("\r\n\r\n").unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["code"], "INTERNAL");
            told += 1;
        } else {
            assert!(answer.is_empty(), "{answer:?}");
        }
    }
    assert_eq!(told, COME);
    let refused = metric(&node, "connections_refused_total") as usize;
    assert!(refused >= COME, "{refused}");
    drop(held);
    neighbours.were_served();
}
