//! What tests of hostile clients share: the neighbour who must not notice, and what the
//! node says of itself.

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "each test uses its part of it, and a failure here is a failed test"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::node::{Client, GUARD, Node};

pub const MIB: usize = 1 << 20;

/// How long a test waits for what takes a while on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Well-behaved clients, one of each core, who are served all the time: each answer must
/// be right and come within [`GUARD`].
pub struct Neighbours {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Neighbours {
    pub fn of(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..2).map(|core| {
            let mut client = node.connect_to_core(core);
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let key = format!("/v1/cache/neighbour-{core}");
                let mut served = 0;
                while !stop.load(Ordering::Relaxed) {
                    let value = format!("value {served}");
                    let put = client.put(&key, value.as_bytes());
                    assert_eq!(put.status, 200, "{put:?}");
                    let got = client.get(&key);
                    assert_eq!(got.text(), value, "{got:?}");
                    served += 1;
                }
                served
            })
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    /// Ends them; fails if one was not served.
    pub fn were_served(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let served = thread.join().expect("a neighbour was served");
            assert!(served > 0);
        }
    }
}

/// The sum of a metric over all cores; counters with their `_total`.
pub fn metric(node: &Node, name: &str) -> u64 {
    let text = Client::connect(&node.mgmt).get("/metrics").text();
    sum(&text, name)
}

fn sum(text: &str, name: &str) -> u64 {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("hypercache_")?.strip_prefix(name)?;
        (rest.starts_with(['{', ' '])).then(|| rest.rsplit(' ').next().unwrap())
    });
    let numbers: Vec<u64> = samples.map(|number| number.parse().unwrap()).collect();
    assert!(!numbers.is_empty(), "there is no metric {name}");
    numbers.iter().sum()
}

/// Waits until a metric is so, asking again and again; what it is then.
pub fn wait_for_metric(node: &Node, name: &str, so: impl Fn(u64) -> bool) -> u64 {
    let begun = Instant::now();
    let mut client = Client::connect(&node.mgmt);
    loop {
        let value = sum(&client.get("/metrics").text(), name);
        if so(value) {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "{name} stays {value}");
        thread::yield_now();
    }
}

/// What a metric was at most while something was done.
pub struct Peak {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, usize)>,
}

impl Peak {
    /// Watches a metric and the memory of a node. The metric must be the node's own: what each
    /// core says was so at a moment of its own, and the sum may never have been.
    pub fn of(node: &Node, name: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (mut client, pid) = (Client::connect(&node.mgmt), node.pid());
        let thread = thread::spawn(move || {
            let (mut highest, mut resident) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                highest = highest.max(sum(&client.get("/metrics").text(), name));
                resident = resident.max(resident_bytes(pid));
            }
            (highest, resident)
        });
        Self { stop, thread }
    }

    /// The highest it was, and the most memory the node had.
    pub fn end(self) -> (u64, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the metrics are served")
    }
}

/// Memory of a process that is in RAM.
pub fn resident_bytes(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.expect("a size").trim().trim_end_matches(" kB");
    kib.parse::<usize>().expect("a number") << 10
}

/// Memory of the node that is in RAM.
pub fn resident(node: &Node) -> usize {
    resident_bytes(node.pid())
}

/// A figure for whoever reads the test's output.
pub fn show(what: &str, bytes: usize) {
    println!("{what}: {:.1} MiB", bytes as f64 / MIB as f64);
}

/// A connection that this test keeps and does not read from by itself.
pub fn connect(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(&node.api).expect("the node accepts");
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream.set_write_timeout(Some(GUARD)).unwrap();
    stream
}

/// Writes as much as is taken, without caring what becomes of the connection.
pub fn send_what_goes(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).is_ok()
}

/// What comes until the connection ends or is reset.
pub fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("neither answered nor closed: {error}"),
        }
    }
}

/// The status of the first answer in these bytes.
pub fn status_of(bytes: &[u8]) -> Option<u16> {
    std::str::from_utf8(bytes.get(9..12)?).ok()?.parse().ok()
}
