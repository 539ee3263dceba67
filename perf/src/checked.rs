//! A mixed load that checks every answer: whether something acknowledged is lost, whether
//! something deleted is back, and whether a request fails that a client may expect to be
//! served.
//!
//! All requests are at QUORUM. Each key belongs to one client, which asks for one thing at
//! a time. So a client knows what each of its keys must hold without any clock or common
//! history: what its last acknowledged write left there (docs/consistency.md, promises 1
//! to 3).
//!
//! When a node refuses a request (503), cannot be reached or closes the connection before it
//! answers, the client asks another node, once. What is not done then has failed.
//!
//! A write that got no answer, or one that leaves it open (too few owners took it), may take
//! effect at any later time: a node that hangs finds it in its socket when it goes on. From
//! then on its key is only read, or the late write could undo a newer one and nobody would be
//! to blame. What the key must hold stays certain if the other node acknowledged the write;
//! otherwise it holds that write or what was there before.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::report::Rounds;

/// How often a client asks for one thing: of a node, then of another one.
const ATTEMPTS: usize = 2;

/// Requests under way on a connection while keys are stored and checked.
const PIPELINE: usize = 64;

/// What makes values as long as they shall be.
const FILLER: u8 = b'.';

/// How many findings a report shows.
const SHOWN_MAX: usize = 10;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Keys that are stored before the load begins, and read again when it ends.
    pub keys: usize,
    /// So many of them, the first ones, are also written and deleted by the load.
    pub written: usize,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Clients that ask at the same time.
    pub clients: usize,
    /// Requests of all clients together.
    pub requests_per_second: u32,
    /// How long a client waits for a node.
    pub patience: Duration,
    /// What the choice of keys and nodes follows from.
    pub seed: u64,
}

/// Clients at work; stopped when dropped.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<io::Result<Tally>>>,
}

impl Clients {
    /// Stores all keys, then sets the clients to work on these nodes.
    ///
    /// # Errors
    ///
    /// When a key cannot be stored.
    pub fn start(workload: Workload, addresses: &[String]) -> io::Result<Self> {
        Self::start_on(workload, addresses, addresses.len())
    }

    /// The same when only the first few of the nodes are in service.
    ///
    /// # Errors
    ///
    /// When a key cannot be stored.
    pub fn start_on(
        workload: Workload,
        addresses: &[String],
        in_service: usize,
    ) -> io::Result<Self> {
        let nodes = addresses
            .iter()
            .enumerate()
            .map(|(node, address)| {
                let address = address.parse().map_err(io::Error::other)?;
                let in_service = AtomicBool::new(node < in_service);
                Ok(Target {
                    address,
                    in_service,
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let shared = Arc::new(Shared {
            workload,
            nodes,
            requests: AtomicU64::new(0),
            findings: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let clients: Vec<Client> = (0..shared.workload.clients)
            .map(|number| Client::new(number, &shared))
            .collect();
        std::thread::scope(|scope| {
            let stores: Vec<_> = clients
                .into_iter()
                .map(|client| scope.spawn(|| client.store()))
                .collect();
            stores
                .into_iter()
                .try_for_each(|store| store.join().unwrap_or_else(|_| Err(panicked())))
        })?;
        let threads = (0..shared.workload.clients)
            .map(|number| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || Client::new(number, &shared).work())
            })
            .collect();
        Ok(Self { shared, threads })
    }

    /// How many requests were asked so far, answered or not.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many findings there are so far.
    pub fn findings(&self) -> u64 {
        self.shared.findings.load(Ordering::Relaxed)
    }

    /// Whether new requests may go to a node, as a load balancer decides it.
    pub fn set_in_service(&self, node: usize, in_service: bool) {
        let node = &self.shared.nodes[node].in_service;
        node.store(in_service, Ordering::Relaxed);
    }

    /// Ends the load, then reads every key and says what was found.
    ///
    /// # Errors
    ///
    /// When a key cannot be read.
    pub fn finish(mut self) -> io::Result<Report> {
        self.shared.over.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for thread in self.threads.drain(..) {
            let tally = thread.join().unwrap_or_else(|_| Err(panicked()))?;
            report.add(tally);
        }
        Ok(report)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn panicked() -> io::Error {
    io::Error::other("a client panicked")
}

/// What breaks a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A key does not hold what was acknowledged last, but nothing or something older.
    Lost,
    /// A key holds something although its delete was acknowledged last.
    Resurrected,
    /// Neither of two nodes did what was asked.
    Failed,
}

/// One broken promise. A key is found lost or resurrected once.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Since the load began.
    pub at: Duration,
    /// What it is.
    pub kind: Kind,
    /// The evidence.
    pub what: String,
}

/// What became of a load.
#[derive(Debug, Default)]
pub struct Report {
    /// Things asked for, however often.
    pub requests: u64,
    /// How many of them were asked for a second time.
    pub retries: u64,
    /// Keys that were only read from some time on, a write of them being open.
    pub keys_frozen: u64,
    /// Milliseconds each took, the second attempt included.
    pub took_ms: Rounds,
    /// Everything that broke a promise.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings are of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        let of_kind = self.findings.iter().filter(|finding| finding.kind == kind);
        of_kind.count()
    }

    fn add(&mut self, tally: Tally) {
        self.requests += tally.requests;
        self.retries += tally.retries;
        self.keys_frozen += tally.keys_frozen;
        tally.took_ms.iter().for_each(|&ms| self.took_ms.push(ms));
        self.findings.extend(tally.findings);
        self.findings.sort_by_key(|finding| finding.at);
    }
}

/// The lines of a table of two columns, then the first findings.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| requests | {} |", self.requests)?;
        writeln!(f, "| asked of a second node | {} |", self.retries)?;
        for (what, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let ms = self.took_ms.quantile(share);
            writeln!(f, "| {what}, second attempt included | {ms:.2} ms |")?;
        }
        writeln!(
            f,
            "| keys left alone, a write being open | {} |",
            self.keys_frozen
        )?;
        for kind in [Kind::Failed, Kind::Lost, Kind::Resurrected] {
            let what = format!("{kind:?}").to_lowercase();
            writeln!(f, "| {what} | {} |", self.count(kind))?;
        }
        if !self.findings.is_empty() {
            writeln!(f)?;
        }
        for finding in self.findings.iter().take(SHOWN_MAX) {
            let Finding { at, kind, what } = finding;
            writeln!(f, "{:.3} s, {kind:?}: {what}", at.as_secs_f64())?;
        }
        match self.findings.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => writeln!(f, "and {more} more"),
        }
    }
}

/// Numbers by chance, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    /// The numbers of one seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// A number below `bound`; 0 when there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        self.drawn += 1;
        let bits = xxh3_64_with_seed(&self.drawn.to_le_bytes(), self.seed);
        ((u128::from(bits) * bound as u128) >> 64) as usize
    }
}

struct Shared {
    workload: Workload,
    nodes: Vec<Target>,
    requests: AtomicU64,
    findings: AtomicU64,
    over: AtomicBool,
}

impl Shared {
    /// The nodes in service.
    fn in_service(&self) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        let in_service = nodes.filter(|(_, node)| node.in_service.load(Ordering::Relaxed));
        in_service.map(|(node, _)| node).collect()
    }
}

struct Target {
    address: SocketAddr,
    in_service: AtomicBool,
}

/// What a key holds: the value of the write with this number, counted per key, or nothing.
type Content = Option<u32>;

/// What a client knows of a key that it writes.
#[derive(Clone, Copy)]
struct Entry {
    /// What the last acknowledged write left.
    certain: Content,
    /// What may be there instead: left by a write that failed, and is not over.
    possible: Option<Content>,
    /// Whether it may not be written again.
    frozen: bool,
    /// The number of its next write.
    next: u32,
}

/// A key that was stored, and not written since.
const STORED: Entry = Entry {
    certain: Some(0),
    possible: None,
    frozen: false,
    next: 1,
};

/// What one client did and found.
#[derive(Default)]
struct Tally {
    requests: u64,
    retries: u64,
    keys_frozen: u64,
    took_ms: Vec<f64>,
    findings: Vec<Finding>,
}

/// What came of asking one node.
enum Attempt {
    Done(Answer),
    /// It did nothing, and will not.
    Refused(String),
    /// It may have done it, or may do it yet.
    Open(String),
}

struct Client<'a> {
    number: usize,
    shared: &'a Shared,
    random: Random,
    began: Instant,
    /// To each node.
    connections: Vec<Option<Connection>>,
    /// The keys this client writes.
    entries: Vec<Entry>,
    /// Keys that were found lost or resurrected.
    broken: HashSet<usize>,
    tally: Tally,
}

impl<'a> Client<'a> {
    fn new(number: usize, shared: &'a Shared) -> Self {
        let workload = &shared.workload;
        let own = |count: usize| count.saturating_sub(number).div_ceil(workload.clients);
        Self {
            number,
            shared,
            random: Random::new(workload.seed.wrapping_add(number as u64)),
            began: Instant::now(),
            connections: shared.nodes.iter().map(|_| None).collect(),
            entries: vec![STORED; own(workload.written)],
            broken: HashSet::new(),
            tally: Tally::default(),
        }
    }

    /// Stores all its keys.
    fn store(mut self) -> io::Result<()> {
        let put = |client: &Self, key| client.put(key, 0);
        self.pipeline(put, |_, key, answer| match answer.status {
            200 => Ok(()),
            status => Err(io::Error::other(format!("PUT of {}: {status}", name(key)))),
        })
    }

    /// Asks until the load is over, then checks all its keys.
    fn work(mut self) -> io::Result<Tally> {
        let Workload {
            clients,
            requests_per_second,
            ..
        } = self.shared.workload;
        let interval = Duration::from_secs(clients as u64) / requests_per_second;
        let mut due = Instant::now();
        while !self.shared.over.load(Ordering::Relaxed) {
            // Who is late goes on from now, and makes up for nothing.
            due = (due + interval).max(Instant::now());
            self.step();
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let get = |_: &Self, key| request("GET", key, &[]);
        self.pipeline(get, |client, key, answer| {
            client.judge(key, &answer);
            Ok(())
        })?;
        self.tally.keys_frozen = self.entries.iter().filter(|entry| entry.frozen).count() as u64;
        Ok(self.tally)
    }

    /// One request: half of them read any key, the others write or delete one.
    fn step(&mut self) {
        let turn = self.random.below(10);
        let index = self.random.below(self.entries.len());
        let entry = self.entries.get(index).filter(|entry| !entry.frozen);
        let Some(entry) = entry.filter(|_| turn < 5) else {
            let own = self.keys().len();
            let key = self.number + self.random.below(own) * self.shared.workload.clients;
            return self.read(key);
        };
        let content = (turn < 3).then_some(entry.next);
        self.write(index, content);
    }

    fn read(&mut self, key: usize) {
        let (answer, _) = self.ask(&request("GET", key, &[]), key);
        if let Some(answer) = answer {
            self.judge(key, &answer);
        }
    }

    fn write(&mut self, index: usize, content: Content) {
        let key = self.number + index * self.shared.workload.clients;
        let request = match content {
            Some(write) => self.put(key, write),
            None => request("DELETE", key, &[]),
        };
        let (answer, over) = self.ask(&request, key);
        let entry = &mut self.entries[index];
        entry.frozen = !over;
        entry.next += 1;
        if answer.is_some() {
            entry.certain = content;
        } else if !over {
            entry.possible = Some(content);
        }
    }

    /// Asks a node, and another one when that does not do it. The answer, unless neither
    /// did; and whether both are done with the request for certain.
    fn ask(&mut self, request: &[u8], key: usize) -> (Option<Answer>, bool) {
        let began = Instant::now();
        self.tally.requests += 1;
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        let (mut over, mut done, mut node, mut said) = (true, None, None, Vec::new());
        for attempt in 0..ATTEMPTS {
            self.tally.retries += u64::from(attempt > 0);
            let asked = self.choose(node);
            node = Some(asked);
            match self.attempt(asked, request) {
                Attempt::Done(answer) => {
                    done = Some(answer);
                    break;
                }
                Attempt::Refused(why) => said.push(why),
                Attempt::Open(why) => {
                    over = false;
                    said.push(why);
                }
            }
        }
        self.tally
            .took_ms
            .push(began.elapsed().as_secs_f64() * 1000.0);
        if done.is_none() {
            let method = request.split(|&byte| byte == b' ').next();
            let method = String::from_utf8_lossy(method.unwrap_or_default());
            let what = format!("{method} of {}: {}", name(key), said.join("; "));
            self.found(Kind::Failed, what);
        }
        (done, over)
    }

    /// A node in service, not this one.
    fn choose(&mut self, except: Option<usize>) -> usize {
        let mut choice = self.shared.in_service();
        choice.retain(|&node| Some(node) != except);
        let index = self.random.below(choice.len());
        choice.get(index).copied().or(except).unwrap_or(0)
    }

    fn attempt(&mut self, node: usize, request: &[u8]) -> Attempt {
        let address = self.shared.nodes[node].address;
        let open = match self.connections[node].take() {
            Some(open) => Ok(open),
            None => Connection::open(address, self.shared.workload.patience),
        };
        let mut connection = match open {
            Ok(connection) => connection,
            Err(error) => return Attempt::Refused(format!("{address}: {error}")),
        };
        let answer = match connection.exchange(request) {
            Ok(answer) => answer,
            Err(error) => return Attempt::Open(format!("{address}: {error}")),
        };
        if !answer.closes {
            self.connections[node] = Some(connection);
        }
        match answer.status {
            200 => Attempt::Done(answer),
            404 if request.starts_with(b"GET") => Attempt::Done(answer),
            503 if answer.says("DRAINING") => Attempt::Refused(format!("{address} drains")),
            status => Attempt::Open(format!("{address}: {status} {}", answer.text())),
        }
    }

    /// Compares what a key holds with what it must hold.
    fn judge(&mut self, key: usize, answer: &Answer) {
        let index = key / self.shared.workload.clients;
        let entry = self.entries.get(index).copied().unwrap_or(STORED);
        let held = match answer.status {
            200 => Some(answer.body.as_slice()),
            404 => None,
            status => {
                let what = format!("GET of {}: {status} {}", name(key), answer.text());
                return self.found(Kind::Failed, what);
            }
        };
        let mut wanted = [entry.certain].into_iter().chain(entry.possible);
        let fine = wanted.any(|content| match (content, held) {
            (Some(write), Some(held)) => held == self.value(key, write),
            (None, None) => true,
            _ => false,
        });
        if fine || !self.broken.insert(key) {
            return;
        }
        let kind = match (entry.certain, entry.possible, held) {
            (None, None | Some(None), Some(_)) => Kind::Resurrected,
            _ => Kind::Lost,
        };
        let text = |value| {
            String::from_utf8_lossy(value)
                .trim_end_matches(FILLER as char)
                .to_owned()
        };
        let held = held.map(text);
        let what = format!(
            "{} holds {held:?}, acknowledged was write {:?} of {}, possible {:?}",
            name(key),
            entry.certain,
            entry.next - 1,
            entry.possible
        );
        self.found(kind, what);
    }

    fn found(&mut self, kind: Kind, what: String) {
        self.shared.findings.fetch_add(1, Ordering::Relaxed);
        let at = self.began.elapsed();
        self.tally.findings.push(Finding { at, kind, what });
    }

    /// Sends one request for each of its keys, many at a time, to one node in service.
    fn pipeline(
        &mut self,
        request: impl Fn(&Self, usize) -> Vec<u8>,
        mut take: impl FnMut(&mut Self, usize, Answer) -> io::Result<()>,
    ) -> io::Result<()> {
        let in_service = self.shared.in_service();
        let node = in_service[self.number % in_service.len()];
        let address = self.shared.nodes[node].address;
        let mut connection = Connection::open(address, self.shared.workload.patience)?;
        let keys: Vec<usize> = self.keys().collect();
        for keys in keys.chunks(PIPELINE) {
            let requests: Vec<u8> = keys.iter().flat_map(|&key| request(self, key)).collect();
            connection.stream.write_all(&requests)?;
            for &key in keys {
                let answer = connection.answer()?;
                take(self, key, answer)?;
            }
        }
        Ok(())
    }

    /// All keys that are its own.
    fn keys(&self) -> std::iter::StepBy<std::ops::Range<usize>> {
        let workload = &self.shared.workload;
        (self.number..workload.keys).step_by(workload.clients)
    }

    fn put(&self, key: usize, write: u32) -> Vec<u8> {
        request("PUT", key, &self.value(key, write))
    }

    /// What a write leaves: no two writes leave the same.
    fn value(&self, key: usize, write: u32) -> Vec<u8> {
        let mut value = format!("{} write {write} ", name(key)).into_bytes();
        let length = value.len().max(self.shared.workload.value_bytes);
        value.resize(length, FILLER);
        value
    }
}

fn name(key: usize) -> String {
    format!("key{key}")
}

fn request(method: &str, key: usize, body: &[u8]) -> Vec<u8> {
    let name = name(key);
    let mut request = format!(
        "{method} /v1/cache/{name} HTTP/1.1\r\nHost: perf\r\nX-Cache-Consistency: QUORUM\r\n"
    )
    .into_bytes();
    if !body.is_empty() {
        request.extend(format!("Content-Length: {}\r\n", body.len()).into_bytes());
    }
    request.extend(b"\r\n");
    request.extend(body);
    request
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

struct Answer {
    status: u16,
    /// Whether it is the last one on its connection.
    closes: bool,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether this is the code of the error.
    fn says(&self, code: &str) -> bool {
        serde_json::from_slice::<serde_json::Value>(&self.body)
            .is_ok_and(|error| error["code"] == code)
    }
}

impl Connection {
    fn open(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request)?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        const END: &[u8] = b"\r\n\r\n";
        let mut chunk = [0; 16384];
        loop {
            if let Some(at) = memchr::memmem::find(&self.received, END) {
                let head = String::from_utf8_lossy(&self.received[..at]);
                let bad = || io::Error::other(format!("not HTTP: {head:?}"));
                let status = head.get(9..12).and_then(|status| status.parse().ok());
                let mut lines = head.lines();
                let length = lines.find_map(|line| line.strip_prefix("Content-Length: "));
                let length: usize = length.and_then(|text| text.parse().ok()).ok_or_else(bad)?;
                let (status, begin) = (status.ok_or_else(bad)?, at + END.len());
                let closes = head.lines().any(|line| line == "Connection: close");
                if self.received.len() >= begin + length {
                    let mut body: Vec<u8> = self.received.drain(..begin + length).collect();
                    body.drain(..begin);
                    return Ok(Answer {
                        status,
                        closes,
                        body,
                    });
                }
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.received.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One client without nodes, which owns all keys and wrote key 0 as said.
    fn judged(entry: Entry, key: usize, held: Content) -> Vec<Kind> {
        let workload = Workload {
            keys: 2,
            written: 1,
            value_bytes: 100,
            clients: 1,
            requests_per_second: 1,
            patience: Duration::from_secs(1),
            seed: 0,
        };
        let shared = Shared {
            workload,
            nodes: Vec::new(),
            requests: AtomicU64::new(0),
            findings: AtomicU64::new(0),
            over: AtomicBool::new(false),
        };
        let mut client = Client::new(0, &shared);
        client.entries[0] = entry;
        let answer = Answer {
            status: if held.is_some() { 200 } else { 404 },
            closes: false,
            body: held.map_or_else(Vec::new, |write| client.value(key, write)),
        };
        // Found once, however often it is read.
        client.judge(key, &answer);
        client.judge(key, &answer);
        let findings = client.tally.findings.into_iter();
        findings.map(|finding| finding.kind).collect()
    }

    fn wrote(certain: Content, possible: Option<Content>) -> Entry {
        Entry {
            certain,
            possible,
            ..STORED
        }
    }

    #[test]
    fn what_was_acknowledged_last_must_be_there() {
        assert_eq!(judged(wrote(Some(3), None), 0, Some(3)), []);
        assert_eq!(judged(wrote(Some(3), None), 0, Some(2)), [Kind::Lost]);
        assert_eq!(judged(wrote(Some(3), None), 0, None), [Kind::Lost]);
        assert_eq!(judged(STORED, 1, Some(0)), []);
        assert_eq!(judged(STORED, 1, None), [Kind::Lost]);
    }

    #[test]
    fn what_was_deleted_must_stay_so() {
        assert_eq!(judged(wrote(None, None), 0, None), []);
        assert_eq!(judged(wrote(None, None), 0, Some(2)), [Kind::Resurrected]);
    }

    #[test]
    fn a_write_that_failed_may_be_there_or_not() {
        let entry = wrote(Some(3), Some(Some(4)));
        assert_eq!(judged(entry, 0, Some(3)), []);
        assert_eq!(judged(entry, 0, Some(4)), []);
        assert_eq!(judged(entry, 0, Some(2)), [Kind::Lost]);
        assert_eq!(judged(wrote(Some(3), Some(None)), 0, None), []);
    }
}
