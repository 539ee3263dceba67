//! Concurrent clients of a cluster, which record what they did and saw.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses its part of it, and a failure here is a failed test"
)]

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hypercache::clock::Version;
use hypercache::cluster::Consistency;
use hypercache::cluster::rng::Rng;
use serde_json::Value;

use super::cluster::{Cluster, until};
use super::history::{self, Done, Kind, Request};
use super::node::{self, StopOnDrop};

/// Clients that read, write and delete a few keys through all nodes, at QUORUM.
#[derive(Clone, Copy)]
pub struct Load {
    pub clients: usize,
    pub keys: usize,
}

impl Load {
    /// What the clients did and saw while `disturb` ran.
    pub fn record(
        self,
        addresses: &[String],
        disturb: impl FnOnce(&Running<'_, '_>),
    ) -> Vec<Request> {
        let start = Instant::now();
        let progress = &Progress {
            finished: AtomicUsize::new(0),
            avoided: AtomicUsize::new(NOBODY),
            stop: AtomicBool::new(false),
        };
        std::thread::scope(|scope| {
            let drives = (0..self.clients).map(|client| Drive {
                client,
                keys: self.keys,
                addresses,
                start,
                progress,
            });
            let clients: Vec<_> = drives
                .map(|drive| scope.spawn(move || drive.run()))
                .collect();
            let stop = StopOnDrop(&progress.stop);
            disturb(&Running {
                clients: &clients,
                progress,
            });
            drop(stop);
            clients
                .into_iter()
                .flat_map(|client| client.join().unwrap())
                .collect()
        })
    }

    /// Checks the history against what the cluster, undisturbed again, holds in the end.
    pub fn check(self, cluster: &Cluster, history: &[Request]) {
        for node in 0..cluster.count() {
            until("hints are replayed", || {
                cluster.metric(node, "HintsKept") == 0
            });
        }
        for key in 0..self.keys {
            let of_key: Vec<&Request> = history
                .iter()
                .filter(|request| request.key == key)
                .collect();
            history::quorum_reads(&of_key).unwrap_or_else(|broken| panic!("{broken}"));
            let reader = &mut cluster.connect(key % cluster.count());
            let target = format!("/v1/cache/key-{key}");
            let mut value = None;
            // Connections may still wait to send again what was lost on them.
            until("all owners are read", || {
                let last = reader.request("GET", &target, "X-Cache-Consistency: ALL\r\n", b"");
                value = (last.status == 200).then_some(last.body);
                last.status != 503
            });
            history::ends_with(&of_key, value.as_deref(), u64::MAX)
                .unwrap_or_else(|broken| panic!("{broken}"));
        }
    }
}

/// Clients under way.
pub struct Running<'scope, 'a> {
    clients: &'a [ScopedJoinHandle<'scope, Vec<Request>>],
    progress: &'a Progress,
}

impl Running<'_, '_> {
    /// Waits until so many more requests have been answered or failed.
    pub fn finish(&self, count: usize) {
        let finished = &self.progress.finished;
        let until = finished.load(Ordering::Relaxed) + count;
        while finished.load(Ordering::Relaxed) < until {
            let failed = self.clients.iter().any(|client| client.is_finished());
            assert!(!failed, "a client saw what it must never see");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends new requests to the other nodes.
    pub fn avoid(&self, node: usize) {
        self.progress.avoided.store(node, Ordering::Relaxed);
    }

    /// Sends requests to all nodes again.
    pub fn avoid_nobody(&self) {
        self.avoid(NOBODY);
    }
}

/// What clients and the test tell each other.
struct Progress {
    /// Requests that are over.
    finished: AtomicUsize,
    /// The node that gets no requests.
    avoided: AtomicUsize,
    stop: AtomicBool,
}

/// In the place of a node.
const NOBODY: usize = usize::MAX;

/// One client's part.
struct Drive<'a> {
    client: usize,
    keys: usize,
    addresses: &'a [String],
    start: Instant,
    progress: &'a Progress,
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
        while !self.progress.stop.load(Ordering::Relaxed) {
            let key = rng.below(self.keys);
            let kind = match rng.below(10) {
                0..4 => Kind::Put(format!("client-{}-{}", self.client, history.len()).into_bytes()),
                4 => Kind::Delete,
                _ => Kind::Get,
            };
            let node = rng.below(connections.len());
            if node == self.progress.avoided.load(Ordering::Relaxed) {
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
                expiry: None,
                result: Some(done),
            });
            self.progress.finished.fetch_add(1, Ordering::Relaxed);
        }
        history
    }
}

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
