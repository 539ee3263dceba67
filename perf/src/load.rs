//! The load generator: one thread, non-blocking sockets, epoll, closed loop.
//!
//! All requests are built before the clock starts; the loop only writes them and
//! counts answers. It is meant to be lighter than any server it drives, so that
//! the server's core is the one that is full.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::socket::Socket;

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 GET or PUT of `/v1/cache/{key}`.
    Http,
    /// RESP GET or SET.
    Resp,
}

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
    /// Whether to write instead of reading.
    pub put: bool,
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

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Answers received.
    pub requests: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// Processor time of the servers, all their threads, in microseconds per request.
    pub server_cpu_us: f64,
}

struct Connection {
    stream: Socket,
    rounds: Vec<Vec<u8>>,
    round: usize,
    written: usize,
    outstanding: usize,
    parser: Answers,
}

impl Load {
    /// Stores all keys, then measures the servers running as these processes.
    ///
    /// # Errors
    ///
    /// When a server cannot be reached or answers anything but success.
    pub fn run(&self, pids: &[u32]) -> io::Result<Outcome> {
        self.preload()?;
        let mut connections = Vec::new();
        for index in 0..self.connections {
            connections.push(self.connect(index)?);
        }
        self.drive(&mut connections, Duration::from_millis(300))?;
        let cpu_ns = || pids.iter().map(|&pid| cpu_ns(pid)).sum::<io::Result<u64>>();
        let (before, started) = (cpu_ns()?, Instant::now());
        let requests = self.drive(&mut connections, self.duration)?;
        let (after, seconds) = (cpu_ns()?, started.elapsed().as_secs_f64());
        let server_cpu_us = (after - before) as f64 / 1000.0 / requests as f64;
        Ok(Outcome {
            requests,
            seconds,
            server_cpu_us,
        })
    }

    fn request(&self, key: usize, put: bool, out: &mut Vec<u8>) {
        let value = vec![b'v'; self.value_bytes];
        match (self.protocol, put) {
            (Protocol::Http, false) => {
                out.extend(
                    format!("GET /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\n\r\n").into_bytes(),
                );
            }
            (Protocol::Http, true) => {
                out.extend(format!("PUT /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\nContent-Length: {}\r\n\r\n", value.len()).into_bytes());
                out.extend(value);
            }
            (Protocol::Resp, false) => {
                let key = format!("key{key}");
                out.extend(format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).into_bytes());
            }
            (Protocol::Resp, true) => {
                let key = format!("key{key}");
                out.extend(
                    format!(
                        "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n",
                        key.len(),
                        value.len()
                    )
                    .into_bytes(),
                );
                out.extend(value);
                out.extend(b"\r\n");
            }
        }
    }

    fn preload(&self) -> io::Result<()> {
        let mut stream = Socket::connect(&self.targets[0], self.tls.as_ref())?;
        stream
            .tcp()
            .set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut parser = Answers::new(self.protocol);
        let mut chunk = vec![0; 65536];
        for keys in self.keys.chunks(64) {
            let mut bytes = Vec::new();
            keys.iter()
                .for_each(|&key| self.request(key, true, &mut bytes));
            stream.write_all(&bytes)?;
            stream.flush()?;
            let mut answered = 0;
            while answered < keys.len() {
                let read = stream.read(&mut chunk)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                answered += parser.feed(&chunk[..read])?;
            }
        }
        Ok(())
    }

    fn connect(&self, index: usize) -> io::Result<Connection> {
        let target = &self.targets[index % self.targets.len()];
        let mut stream = Socket::connect(target, self.tls.as_ref())?;
        let keys: Vec<usize> = match self.locality {
            Locality::Any => self.keys.clone(),
            Locality::Local | Locality::Half => {
                let core = serving_core(&mut stream)?;
                let (own, other): (Vec<_>, Vec<_>) =
                    self.keys.iter().partition(|&&key| core_of(key) == core);
                match self.locality {
                    Locality::Half => own
                        .into_iter()
                        .zip(other)
                        .flat_map(|(a, b)| [a, b])
                        .collect(),
                    _ => own,
                }
            }
        };
        stream.tcp().set_nonblocking(true)?;
        let mut next = index * 7919;
        let rounds = (0..32)
            .map(|_| {
                let mut bytes = Vec::new();
                for _ in 0..self.pipeline {
                    self.request(keys[next % keys.len()], self.put, &mut bytes);
                    next += 1;
                }
                bytes
            })
            .collect();
        let parser = Answers::new(self.protocol);
        Ok(Connection {
            stream,
            rounds,
            round: 0,
            written: 0,
            outstanding: 0,
            parser,
        })
    }

    /// Sends and receives for `duration`, then lets what is outstanding arrive.
    fn drive(&self, connections: &mut [Connection], duration: Duration) -> io::Result<u64> {
        let poll = Epoll::new()?;
        for (index, connection) in connections.iter_mut().enumerate() {
            poll.add(connection.stream.as_raw_fd(), index)?;
            connection.send(self.pipeline)?;
        }
        let deadline = Instant::now() + duration;
        let mut chunk = vec![0; 256 << 10];
        let mut answered = 0_u64;
        let mut running = connections.len();
        while running > 0 {
            let over = Instant::now() >= deadline;
            let mut failure = None;
            poll.wait(|index| {
                let connection = &mut connections[index];
                match connection.receive(&mut chunk) {
                    Ok(count) => {
                        answered += count as u64;
                        if connection.outstanding == 0 && count > 0 {
                            if over {
                                running -= 1;
                            } else if let Err(error) = connection.send(self.pipeline) {
                                failure = Some(error);
                            }
                        }
                    }
                    Err(error) => failure = Some(error),
                }
            })?;
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(answered)
    }
}

impl Connection {
    fn send(&mut self, pipeline: usize) -> io::Result<()> {
        let bytes = &self.rounds[self.round];
        self.written = 0;
        while self.written < bytes.len() {
            match self.stream.write(&bytes[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error),
            }
        }
        while let Err(error) = self.stream.flush() {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
        }
        self.round = (self.round + 1) % self.rounds.len();
        self.outstanding = pipeline;
        Ok(())
    }

    fn receive(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let answered = self.parser.feed(&chunk[..count])?;
                self.outstanding -= answered;
                Ok(answered)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// Counts answers in a byte stream and fails on any that is not a success.
#[derive(Debug)]
pub struct Answers {
    protocol: Protocol,
    head: Vec<u8>,
    body_left: usize,
}

impl Answers {
    /// At the start of a stream.
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            head: Vec::new(),
            body_left: 0,
        }
    }

    /// Takes more of the stream; how many answers it completes.
    ///
    /// # Errors
    ///
    /// For an answer that is not a success.
    pub fn feed(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        let end: &[u8] = match self.protocol {
            Protocol::Http => b"\r\n\r\n",
            Protocol::Resp => b"\r\n",
        };
        let mut complete = 0;
        loop {
            let body = self.body_left.min(bytes.len());
            self.body_left -= body;
            bytes = &bytes[body..];
            if body > 0 && self.body_left == 0 {
                complete += 1;
            }
            if bytes.is_empty() {
                return Ok(complete);
            }
            let at = if self.head.is_empty() {
                memchr::memmem::find(bytes, end)
            } else {
                None
            };
            let body = match at {
                Some(at) => {
                    let body = self.body_of(&bytes[..at])?;
                    bytes = &bytes[at + end.len()..];
                    body
                }
                None => {
                    self.head.push(bytes[0]);
                    bytes = &bytes[1..];
                    if !self.head.ends_with(end) {
                        continue;
                    }
                    let head = std::mem::take(&mut self.head);
                    self.body_of(&head[..head.len() - end.len()])?
                }
            };
            self.body_left = body;
            if body == 0 {
                complete += 1;
            }
        }
    }

    fn body_of(&self, head: &[u8]) -> io::Result<usize> {
        let bad = || {
            io::Error::other(format!(
                "not a success: {:?}",
                String::from_utf8_lossy(head)
            ))
        };
        let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.trim().parse().ok();
        match self.protocol {
            Protocol::Resp => match head {
                b"+OK" => Ok(0),
                [b'$', digits @ ..] => number(digits)
                    .map(|length: usize| length + 2)
                    .ok_or_else(bad),
                _ => Err(bad()),
            },
            Protocol::Http => {
                if !head.starts_with(b"HTTP/1.1 200") {
                    return Err(bad());
                }
                const NAME: &[u8] = b"Content-Length: ";
                let at = memchr::memmem::find(head, NAME).ok_or_else(bad)? + NAME.len();
                let line = memchr::memchr(b'\r', &head[at..]).map_or(head.len(), |end| at + end);
                number(&head[at..line]).ok_or_else(bad)
            }
        }
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
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let ran = schedstat
            .split(' ')
            .next()
            .and_then(|field| field.parse::<u64>().ok());
        total += ran.ok_or_else(|| io::Error::other("schedstat has another form"))?;
    }
    Ok(total)
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

struct Epoll(i32);

impl Epoll {
    fn new() -> io::Result<Self> {
        // SAFETY: no arguments to get wrong; the result is checked.
        match unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(Self(fd)),
        }
    }

    fn add(&self, fd: i32, index: usize) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: index as u64,
        };
        // SAFETY: both descriptors are open and the event outlives the call.
        match unsafe { libc::epoll_ctl(self.0, libc::EPOLL_CTL_ADD, fd, &mut event) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn wait(&self, mut ready: impl FnMut(usize)) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 128];
        // SAFETY: the kernel writes at most as many events as it is told there is room for.
        let count =
            unsafe { libc::epoll_wait(self.0, events.as_mut_ptr(), events.len() as i32, 2000) };
        if count <= 0 {
            return Err(io::Error::other("no answer for two seconds"));
        }
        for event in &events[..count as usize] {
            ready(event.u64 as usize);
        }
        Ok(())
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // SAFETY: ours, open, and not used afterwards.
        unsafe { libc::close(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(protocol: Protocol, stream: &[u8]) -> Vec<usize> {
        (1..=stream.len())
            .map(|size| {
                let mut answers = Answers::new(protocol);
                stream
                    .chunks(size)
                    .map(|chunk| answers.feed(chunk).unwrap())
                    .sum()
            })
            .collect()
    }

    #[test]
    fn answers_are_counted_however_they_are_cut() {
        let http = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nDate: x\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        assert!(
            count(Protocol::Http, http)
                .iter()
                .all(|&answers| answers == 2)
        );
        assert!(
            count(Protocol::Resp, b"$3\r\nabc\r\n+OK\r\n")
                .iter()
                .all(|&answers| answers == 2)
        );
    }

    #[test]
    fn an_error_is_not_an_answer() {
        assert!(
            Answers::new(Protocol::Http)
                .feed(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                .is_err()
        );
        assert!(Answers::new(Protocol::Resp).feed(b"-ERR\r\n").is_err());
        assert!(Answers::new(Protocol::Resp).feed(b"$-1\r\n").is_err());
    }
}
