//! What concurrent clients of real nodes see while nodes crash, hang and come back:
//! the promises of docs/consistency.md, checked on the history.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/history.rs"]
mod history;
#[path = "support/node.rs"]
mod node;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cluster::{API, Cluster, until};
use history::{Done, Kind, Request};
use hypercache::clock::Version;
use hypercache::cluster::Consistency;
use hypercache::cluster::rng::Rng;
use serde_json::Value;

const NODES: usize = 5;
const CLIENTS: usize = 6;
const KEYS: usize = 6;
/// Requests from one disturbance to the next.
const STEP: usize = 1_500;

/// A client that takes every failure as an answer.
struct Client {
    address: String,
    stream: Option<TcpStream>,
}

impl Client {
    fn request(&mut self, kind: &Kind, key: usize) -> Done {
        let done = self.exchange(kind, key);
        if done.is_err() {
            self.stream = None;
        }
        done.unwrap_or(Done::Failed)
    }

    fn exchange(&mut self, kind: &Kind, key: usize) -> io::Result<Done> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(&self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                self.stream.insert(stream)
            }
        };
        let (method, body) = match kind {
            Kind::Get => ("GET", &[][..]),
            Kind::Put(value) => ("PUT", value.as_slice()),
            Kind::Delete => ("DELETE", &[][..]),
        };
        let headers = "X-Cache-Consistency: QUORUM\r\nAccept: application/json\r\n";
        let target = format!("/v1/cache/key-{key}");
        stream.write_all(&node::request(method, &target, headers, body))?;
        let (status, head, body) = answer(stream)?;
        Ok(match (kind, status) {
            (Kind::Get, 200) => {
                let item: Value = serde_json::from_slice(&body).unwrap();
                let version = Version::new(item["version"].as_u64().unwrap()).unwrap();
                let value = BASE64_STANDARD.decode(item["value"].as_str().unwrap());
                Done::Found(value.unwrap(), version)
            }
            (Kind::Get, 404) => Done::Missing,
            (_, 200) => Done::Written(None),
            (_, 503) => Done::Failed,
            _ => panic!("{kind:?}: {head}"),
        })
    }
}

fn answer(stream: &mut TcpStream) -> io::Result<(u16, String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "))
                .map_or(0, |length| length.parse().unwrap());
            if bytes.len() >= at + 4 + length {
                let status = head[9..12].parse().unwrap();
                return Ok((status, head, bytes.split_off(at + 4)));
            }
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

#[test]
fn no_promise_is_broken_while_nodes_crash_hang_and_come_back() {
    let mut cluster = Cluster::start(NODES, &[]);
    let addresses: Vec<String> = (0..NODES).map(|node| cluster.address(node, API)).collect();
    let start = Instant::now();
    let (finished, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    // A node that hangs answers nobody: new requests go to the others.
    let avoided = AtomicUsize::new(NODES);
    let history: Vec<Request> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let drive = Drive {
                    client,
                    addresses: &addresses,
                    start,
                    avoided: &avoided,
                    finished: &finished,
                    stop: &stop,
                };
                scope.spawn(move || drive.run())
            })
            .collect();
        // Also when this thread fails: or the scope would wait for the clients forever.
        let _stop = StopOnDrop(&stop);
        let pause = || {
            let until = finished.load(Ordering::Relaxed) + STEP;
            while finished.load(Ordering::Relaxed) < until {
                let failed = clients.iter().any(|client| client.is_finished());
                assert!(!failed, "a client saw what it must never see");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        pause();
        for round in 0..3 {
            let (crashed, hung) = (round, round + 1);
            cluster.kill(crashed);
            pause();
            cluster.launch(crashed);
            cluster.settle();
            pause();
            avoided.store(hung, Ordering::Relaxed);
            cluster.node(hung).signal(libc::SIGSTOP);
            pause();
            cluster.node(hung).signal(libc::SIGCONT);
            avoided.store(NODES, Ordering::Relaxed);
            cluster.settle();
        }
        pause();
        stop.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    for node in 0..NODES {
        until("hints are replayed", || {
            cluster.metric(node, "HintsKept") == 0
        });
    }
    for key in 0..KEYS {
        let of_key: Vec<&Request> = history
            .iter()
            .filter(|request| request.key == key)
            .collect();
        let acknowledged = |request: &&&Request| request.result != Some(Done::Failed);
        let count = of_key.iter().filter(acknowledged).count();
        assert!(
            count * 2 > of_key.len(),
            "{count} of {} answered",
            of_key.len()
        );
        history::quorum_reads(&of_key).unwrap_or_else(|broken| panic!("{broken}"));
        let reader = &mut cluster.connect(key % NODES);
        let target = format!("/v1/cache/key-{key}");
        let last = reader.request("GET", &target, "X-Cache-Consistency: ALL\r\n", b"");
        let value = (last.status == 200).then_some(&*last.body);
        history::ends_with(&of_key, value).unwrap_or_else(|broken| panic!("{broken}"));
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One client's part.
struct Drive<'a> {
    client: usize,
    addresses: &'a [String],
    start: Instant,
    avoided: &'a AtomicUsize,
    finished: &'a AtomicUsize,
    stop: &'a AtomicBool,
}

impl Drive<'_> {
    /// Sends one request after the other until told to stop.
    fn run(self) -> Vec<Request> {
        let mut rng = Rng::new(self.client as u64);
        let mut connections: Vec<Client> = self
            .addresses
            .iter()
            .map(|address| Client {
                address: address.clone(),
                stream: None,
            })
            .collect();
        let mut history = Vec::new();
        let now = || self.start.elapsed().as_micros() as u64;
        while !self.stop.load(Ordering::Relaxed) {
            let key = rng.below(KEYS);
            let kind = match rng.below(10) {
                0..4 => Kind::Put(format!("client-{}-{}", self.client, history.len()).into_bytes()),
                4 => Kind::Delete,
                _ => Kind::Get,
            };
            let node = rng.below(NODES);
            if node == self.avoided.load(Ordering::Relaxed) {
                continue;
            }
            let started = now();
            let done = connections[node].request(&kind, key);
            if done == Done::Failed {
                // Not to spin on a node that is gone.
                std::thread::sleep(Duration::from_millis(1));
            }
            history.push(Request {
                key,
                started,
                ended: now(),
                consistency: Consistency::Quorum,
                kind,
                result: Some(done),
            });
            self.finished.fetch_add(1, Ordering::Relaxed);
        }
        history
    }
}
