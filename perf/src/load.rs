//! The load generator: one thread, non-blocking sockets, epoll, closed loop.
//!
//! All requests are built before the clock starts; the loop only writes them and
//! checks answers. It is meant to be lighter than any server it drives, so that
//! the server's core is the one that is full. `open_loop` sends at a fixed rate instead.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::poll::Epoll;
use crate::popularity::{Popularity, Sampler};
use crate::protocol::{Answers, Protocol};
use crate::requests::Requests;
use crate::socket::Socket;

/// How long no connection may get an answer while some wait for one.
const SILENCE_MS_MAX: i32 = 2000;

/// How long a server may take to answer while keys are stored.
const PRELOAD_ANSWER_MAX: Duration = Duration::from_secs(10);

/// Bytes written before answers are awaited while keys are stored, and requests.
const PRELOAD_BYTES: usize = 64 << 10;
const PRELOAD_REQUESTS: usize = 64;

/// How long the load runs before the measurement begins.
const WARM_UP_MAX: Duration = Duration::from_millis(300);

/// Bytes read at once.
pub(crate) const READ_BYTES: usize = 256 << 10;

/// Which of the keys a connection uses, on a node of two cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locality {
    /// All of them.
    Any,
    /// Those of the core that serves the connection.
    Local,
    /// By turns its core's and the other's.
    Half,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where the servers listen; connections are spread over them.
    pub targets: Vec<String>,
    /// What it speaks.
    pub protocol: Protocol,
    /// How many of a hundred requests write instead of reading.
    pub put_percent: u32,
    /// Which keys are asked for how often.
    pub popularity: Popularity,
    /// Connections.
    pub connections: usize,
    /// Requests outstanding per connection.
    pub pipeline: usize,
    /// The keys, by number.
    pub keys: Vec<usize>,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Which keys go over which connection.
    pub locality: Locality,
    /// How long to measure.
    pub duration: Duration,
    /// How the servers are trusted, if they speak TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Default for Load {
    /// GETs of 10,000 keys of 100 bytes in turn, over 64 connections of HTTP.
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            protocol: Protocol::Http,
            put_percent: 0,
            popularity: Popularity::InTurn,
            connections: 64,
            pipeline: 1,
            keys: (0..10_000).collect(),
            value_bytes: 100,
            locality: Locality::Any,
            duration: Duration::from_secs(1),
            tls: None,
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Answers received.
    pub requests: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// Processor time of the servers, all their threads, in microseconds per request.
    pub server_cpu_us: f64,
    /// For what share of the time the servers' threads could have run, but others had the
    /// processor: how much else went on there. Threads are summed.
    pub server_waited: f64,
}

/// A connection, its requests, and how far it is with them.
pub(crate) struct Connection {
    stream: Socket,
    protocol: Protocol,
    value_bytes: usize,
    requests: Requests,
    /// The request to send next.
    next: usize,
    /// The request whose answer comes next.
    awaited: usize,
    /// What of the requests' bytes is to be written.
    unwritten: Range<usize>,
    /// Whether room to write is waited for.
    blocked: bool,
    /// Requests sent and not answered.
    outstanding: usize,
    answers: Answers,
}

impl Load {
    /// Stores all keys, then measures the servers running as these processes.
    ///
    /// # Errors
    ///
    /// When a server cannot be reached or answers anything but what it should.
    pub fn run(&self, pids: &[u32]) -> io::Result<Outcome> {
        self.preload()?;
        self.measure(pids)
    }

    /// Measures servers that have all keys.
    ///
    /// # Errors
    ///
    /// As `run`.
    pub fn measure(&self, pids: &[u32]) -> io::Result<Outcome> {
        let mut connections = self.connect_all()?;
        self.drive(&mut connections, WARM_UP_MAX.min(self.duration))?;
        let (before, started) = (Usage::of(pids)?, Instant::now());
        let requests = self.drive(&mut connections, self.duration)?;
        let (used, seconds) = (
            Usage::of(pids)?.since(before),
            started.elapsed().as_secs_f64(),
        );
        Ok(Outcome {
            requests,
            seconds,
            server_cpu_us: used.ran_ns as f64 / 1000.0 / requests as f64,
            server_waited: used.waited_ns as f64 / 1e9 / seconds,
        })
    }

    /// Stores all keys.
    ///
    /// # Errors
    ///
    /// When the first server cannot be reached or does not store.
    pub fn preload(&self) -> io::Result<()> {
        let mut stream = Socket::connect(&self.targets[0], self.tls.as_ref())?;
        stream.tcp().set_read_timeout(Some(PRELOAD_ANSWER_MAX))?;
        let mut answers = Answers::new(self.protocol);
        let mut chunk = vec![0; 65536];
        let batch = PRELOAD_BYTES / self.value_bytes.max(1);
        for keys in self.keys.chunks(batch.clamp(1, PRELOAD_REQUESTS)) {
            let mut bytes = Vec::new();
            keys.iter()
                .for_each(|&key| self.protocol.write_put(key, self.value_bytes, &mut bytes));
            stream.write_all(&bytes)?;
            stream.flush()?;
            let mut answered = 0;
            while answered < keys.len() {
                let read = stream.read(&mut chunk)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                answered += answers.feed(&chunk[..read])?;
            }
        }
        Ok(())
    }

    /// Opens all connections and draws their requests.
    pub(crate) fn connect_all(&self) -> io::Result<Vec<Connection>> {
        let sampler = Sampler::new(self.popularity, self.keys.len());
        (0..self.connections)
            .map(|index| self.connect(index, &sampler))
            .collect()
    }

    fn connect(&self, index: usize, sampler: &Sampler) -> io::Result<Connection> {
        let target = &self.targets[index % self.targets.len()];
        let mut stream = Socket::connect(target, self.tls.as_ref())?;
        let requests = match self.locality {
            Locality::Any => Requests::draw(self, index, &self.keys, sampler)?,
            Locality::Local | Locality::Half => {
                let core = serving_core(&mut stream)?;
                let (own, other): (Vec<_>, Vec<_>) =
                    self.keys.iter().partition(|&&key| core_of(key) == core);
                let keys = match self.locality {
                    Locality::Half => own
                        .into_iter()
                        .zip(other)
                        .flat_map(|(a, b)| [a, b])
                        .collect(),
                    _ => own,
                };
                let sampler = Sampler::new(self.popularity, keys.len());
                Requests::draw(self, index, &keys, &sampler)?
            }
        };
        stream.tcp().set_nonblocking(true)?;
        Ok(Connection {
            stream,
            protocol: self.protocol,
            value_bytes: self.value_bytes,
            requests,
            next: 0,
            awaited: 0,
            unwritten: 0..0,
            blocked: false,
            outstanding: 0,
            answers: Answers::new(self.protocol),
        })
    }

    /// Sends and receives for `duration`, then lets what is outstanding arrive.
    fn drive(&self, connections: &mut [Connection], duration: Duration) -> io::Result<u64> {
        let poll = Epoll::new()?;
        for (index, connection) in connections.iter_mut().enumerate() {
            connection.register(&poll, index)?;
            connection.send(self.pipeline, &poll, index)?;
        }
        let deadline = Instant::now() + duration;
        let mut chunk = vec![0; READ_BYTES];
        let mut answered = 0_u64;
        let mut running = connections.len();
        while running > 0 {
            let over = Instant::now() >= deadline;
            let ready = poll.wait(SILENCE_MS_MAX, |index| {
                let connection = &mut connections[index];
                connection.write_rest(&poll, index)?;
                let count = connection.receive(&mut chunk)?;
                answered += count as u64;
                if connection.outstanding == 0 && count > 0 {
                    match over {
                        true => running -= 1,
                        false => connection.send(self.pipeline, &poll, index)?,
                    }
                }
                Ok(())
            })?;
            if ready == 0 {
                return Err(io::Error::other("no answer for two seconds"));
            }
        }
        Ok(answered)
    }
}

impl Connection {
    /// Has this set tell what arrives.
    pub(crate) fn register(&self, poll: &Epoll, index: usize) -> io::Result<()> {
        poll.add(self.stream.as_raw_fd(), index)
    }

    /// How many requests can be sent now. They are written as one piece: those from the start
    /// of the list wait until the ones from its end are written.
    pub(crate) fn sendable(&self) -> usize {
        match self.next == 0 && !self.unwritten.is_empty() {
            true => 0,
            false => self.requests.count() - self.next,
        }
    }

    /// Sends so many requests, not more than are sendable, as far as there is room; the
    /// rest when the set tells that there is.
    pub(crate) fn send(&mut self, count: usize, poll: &Epoll, index: usize) -> io::Result<()> {
        let place = self.requests.place(self.next..self.next + count);
        self.unwritten = match self.unwritten.is_empty() {
            true => place,
            false => self.unwritten.start..place.end,
        };
        self.next += count;
        if self.next == self.requests.count() {
            self.next = 0;
        }
        self.outstanding += count;
        match self.blocked {
            true => Ok(()),
            false => self.write(poll, index),
        }
    }

    /// Goes on writing if there was no room.
    #[inline]
    pub(crate) fn write_rest(&mut self, poll: &Epoll, index: usize) -> io::Result<()> {
        match self.blocked {
            true => self.write(poll, index),
            false => Ok(()),
        }
    }

    fn write(&mut self, poll: &Epoll, index: usize) -> io::Result<()> {
        while !self.unwritten.is_empty() {
            let bytes = self.requests.bytes(self.unwritten.clone());
            match self.stream.write(bytes) {
                Ok(count) => self.unwritten.start += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.set_blocked(true, poll, index);
                }
                Err(error) => return Err(error),
            }
        }
        while let Err(error) = self.stream.flush() {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
        }
        self.set_blocked(false, poll, index)
    }

    fn set_blocked(&mut self, blocked: bool, poll: &Epoll, index: usize) -> io::Result<()> {
        if self.blocked == blocked {
            return Ok(());
        }
        self.blocked = blocked;
        poll.await_room(self.stream.as_raw_fd(), index, blocked)
    }

    /// Takes what has arrived; how many answers it completes.
    #[inline]
    pub(crate) fn receive(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let count = match self.stream.read(chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error),
        };
        let before = self.outstanding;
        self.answers.feed_each(&chunk[..count], |answer| {
            let put = self.requests.is_put(self.awaited);
            if self.outstanding == 0 || !self.protocol.is_right(answer, put, self.value_bytes) {
                let asked = if put { "write" } else { "read" };
                return Err(io::Error::other(format!(
                    "{answer:?} to a {asked}, with {} requests outstanding; values have {} bytes",
                    self.outstanding, self.value_bytes
                )));
            }
            self.outstanding -= 1;
            self.awaited += 1;
            if self.awaited == self.requests.count() {
                self.awaited = 0;
            }
            Ok(())
        })?;
        Ok(before - self.outstanding)
    }
}

/// The core that serves this connection, as the node tells it.
fn serving_core(stream: &mut Socket) -> io::Result<u64> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: perf\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while !answer.ends_with(b"ok") {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&chunk[..count]);
    }
    let text = String::from_utf8_lossy(&answer);
    text.lines()
        .find_map(|line| line.strip_prefix("X-Cache-Core: ")?.parse().ok())
        .ok_or_else(|| io::Error::other("the server does not say which core serves"))
}

/// The core of a key on a node of two.
fn core_of(key: usize) -> u64 {
    xxhash_rust::xxh3::xxh3_64(format!("key{key}").as_bytes()) >> 52 & 1
}

/// Processor time of all threads of a process, in nanoseconds.
///
/// # Errors
///
/// When there is no such process.
pub fn cpu_ns(pid: u32) -> io::Result<u64> {
    Usage::of(&[pid]).map(|usage| usage.ran_ns)
}

/// What all threads of some processes had of the processors so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// For how long they ran.
    pub(crate) ran_ns: u64,
    /// For how long they were ready to run and did not.
    pub(crate) waited_ns: u64,
}

impl Usage {
    pub(crate) fn of(pids: &[u32]) -> io::Result<Self> {
        let mut usage = Self::default();
        for pid in pids {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let schedstat = std::fs::read_to_string(task?.path().join("schedstat"))?;
                let mut fields = schedstat
                    .split(' ')
                    .map(|field| field.trim().parse::<u64>());
                let (Some(Ok(ran)), Some(Ok(waited))) = (fields.next(), fields.next()) else {
                    return Err(io::Error::other("schedstat has another form"));
                };
                usage.ran_ns += ran;
                usage.waited_ns += waited;
            }
        }
        Ok(usage)
    }

    /// What was added since then. A thread that has ended meanwhile is not counted any more.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            ran_ns: self.ran_ns.saturating_sub(before.ran_ns),
            waited_ns: self.waited_ns.saturating_sub(before.waited_ns),
        }
    }
}

/// Binds the calling thread to one CPU.
pub fn pin(cpu: usize) {
    // SAFETY: a zeroed cpu_set_t is the empty set; the call reads it only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
