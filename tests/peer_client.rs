//! The deadlines of a connection to a peer, with a clock that only the test moves.
#![allow(clippy::unwrap_used)]

#[path = "support/runtime.rs"]
mod support;

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::time::Duration;

use hypercache::peer::client::{Client, Dialing};
use hypercache::runtime::{Deadlines, Timeouts, spawn, yield_to_io};
use support::{Flag, LONG, listen, on_each_driver, read_exactly};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// More than sockets buffer.
const LARGE: usize = 16 << 20;

/// Exchanges may take a second of the test's time, and connecting longer than it lasts.
fn dialing() -> Dialing {
    let second = Duration::from_secs(1);
    Dialing {
        deadlines: Deadlines::new(Timeouts {
            read: second,
            write: second,
            idle: second,
            exchange: second,
        }),
        timeout: LONG,
        access: Default::default(),
    }
}

/// What becomes of a request, once it has ended.
#[derive(Clone, Default)]
struct Ending {
    ended: Flag,
    answer: Rc<RefCell<Option<io::Result<Vec<u8>>>>>,
}

impl Ending {
    async fn wait(&self) -> io::Result<Vec<u8>> {
        self.ended.wait().await;
        self.answer.take().unwrap()
    }
}

/// Starts a request with a large body; says how long it is.
fn start(dialing: Dialing, address: &str) -> (usize, Ending) {
    let mut client = Client::new(dialing, address.into(), None);
    let mut request = client.head("POST", "/", LARGE);
    request.resize(request.len() + LARGE, 0);
    let len = request.len();
    let ending = Ending::default();
    let told = ending.clone();
    spawn(async move {
        let answer = client.exchange(request).await;
        told.answer.replace(Some(answer));
        told.ended.set();
    });
    (len, ending)
}

#[test]
fn one_deadline_covers_a_request_and_its_answer() {
    on_each_driver(async || {
        let (listener, address) = listen();
        let dialing = dialing();
        let (len, ending) = start(dialing.clone(), &address.to_string());
        let (mut peer, _) = listener.accept().await.unwrap();
        read_exactly(&mut peer, 1).await;
        dialing.deadlines.sweep(999);
        read_exactly(&mut peer, len - 1).await;
        // Lets the client see that all is written.
        for _ in 0..10 {
            yield_to_io().await;
        }
        dialing.deadlines.sweep(1000);
        // Too late, and perhaps refused.
        let _ = peer.write_all(ANSWER.to_vec()).await;
        assert!(ending.wait().await.is_err());
    });
}

#[test]
fn a_request_that_the_peer_does_not_take_ends() {
    on_each_driver(async || {
        let (listener, address) = listen();
        let dialing = dialing();
        let (_, ending) = start(dialing.clone(), &address.to_string());
        let (mut peer, _) = listener.accept().await.unwrap();
        read_exactly(&mut peer, 1).await;
        dialing.deadlines.sweep(1000);
        assert!(ending.wait().await.is_err());
    });
}

#[test]
fn an_answer_at_the_last_moment_does_not_spoil_the_next_request() {
    on_each_driver(async || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dialing = dialing();
        let deadlines = Rc::clone(&dialing.deadlines);
        spawn(async move {
            for connection in 0..2 {
                let mut peer = accept(&listener).await;
                read_head(&mut peer).await;
                // Nothing runs between the answer and the sweep: the client finds both.
                peer.write_all(ANSWER).unwrap();
                if connection == 0 {
                    deadlines.sweep(1000);
                }
            }
        });
        let mut client = Client::new(dialing, address.into(), None);
        for _ in 0..2 {
            let request = client.head("GET", "/", 0);
            assert_eq!(client.exchange(request).await.unwrap(), b"ok");
        }
    });
}

/// Takes a connection without leaving the core's thread, nor stopping it.
async fn accept(listener: &std::net::TcpListener) -> std::net::TcpStream {
    listener.set_nonblocking(true).unwrap();
    loop {
        if let Ok((peer, _)) = listener.accept() {
            peer.set_nonblocking(true).unwrap();
            return peer;
        }
        yield_to_io().await;
    }
}

/// The same for a request without a body.
async fn read_head(peer: &mut std::net::TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match peer.read(&mut byte) {
            Ok(count) => head.extend_from_slice(&byte[..count]),
            Err(_) => yield_to_io().await,
        }
    }
}
