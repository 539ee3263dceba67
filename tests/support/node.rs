//! Starts real nodes and speaks HTTP to them byte by byte.

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::zombie_processes,
    reason = "each test uses its part of it, and a failure here is a failed test"
)]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypercache::hash::{CoreCount, KeyHash};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use socket2::{Domain, Socket, Type};

/// How long a test waits for what should come at once, before it fails.
pub const GUARD: Duration = Duration::from_secs(20);

/// Tells threads of a scope to stop, also when what it is held for fails: or the scope
/// would wait for them forever, and nobody would learn what has failed.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A running node; killed when dropped.
pub struct Node {
    child: Child,
    /// What it has logged so far, taken at once so that it never waits for a reader.
    logs: Arc<Mutex<String>>,
    log_reader: Option<std::thread::JoinHandle<()>>,
    pub api: String,
    pub mgmt: String,
    pub serving: serde_json::Value,
}

/// The command of a node on free ports with two cores.
pub fn command(env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hypercache"));
    command
        .env_clear()
        .env("HYPERCACHE_API_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_MGMT_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_DIST_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_NODE_ID", "test-node")
        .env("HYPERCACHE_CORES", "2")
        .env("HYPERCACHE_MEMORY_LIMIT", "256MiB")
        .envs(env.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: prctl is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command
}

/// A key that this core owns on a node of two.
pub fn key_on(core: usize, prefix: &str) -> String {
    let cores = CoreCount::new(2).expect("two cores");
    let owner = |key: &str| KeyHash::of(key.as_bytes()).partition().core(cores);
    (0..)
        .map(|n| format!("{prefix}{n}"))
        .find(|key| owner(key).index() == core)
        .expect("numbers do not end")
}

impl Node {
    pub fn start(env: &[(&str, &str)]) -> Self {
        Self::spawn(command(env))
    }

    /// Starts a node and waits until it says that it serves.
    pub fn spawn(command: Command) -> Self {
        Self::try_spawn(command)
            .unwrap_or_else(|seen| panic!("the node ended before it served:\n{seen}"))
    }

    /// The same for a node that may end before: then what it has logged.
    pub fn try_spawn(mut command: Command) -> Result<Self, String> {
        let mut child = command.spawn().expect("the node starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            let read = stderr.read_line(&mut line).expect("logs are readable");
            if read == 0 {
                child.wait().expect("the node ends");
                return Err(seen);
            }
            seen.push_str(&line);
            let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else {
                continue;
            };
            if event["message"] == "serving" {
                let text = |field: &str| event[field].as_str().expect(field).to_owned();
                let (api, mgmt) = (text("api"), text("mgmt"));
                let logs = Arc::new(Mutex::new(seen));
                let log = Arc::clone(&logs);
                let log_reader = std::thread::spawn(move || {
                    for line in stderr.lines().map_while(Result::ok) {
                        let mut log = log.lock().expect("no reader panics");
                        log.push_str(&line);
                        log.push('\n');
                    }
                });
                return Ok(Self {
                    child,
                    logs,
                    log_reader: Some(log_reader),
                    api,
                    mgmt,
                    serving: event,
                });
            }
        }
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.api)
    }

    pub fn connect_management(&self) -> Client {
        Client::connect(&self.mgmt)
    }

    /// A metric of all cores together, by its name without prefix.
    pub fn metric(&self, name: &str) -> u64 {
        let metrics = self.connect_management().get("/metrics").text();
        let name = format!("hypercache_{name}");
        let of_it = |line: &&str| {
            let rest = line.strip_prefix(name.as_str());
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        let value = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
        let values: Vec<f64> = metrics.lines().filter(of_it).filter_map(value).collect();
        assert!(!values.is_empty(), "there is no metric {name}");
        values.iter().sum::<f64>() as u64
    }

    /// A connection served by the core with this number, chosen by its source port.
    pub fn connect_to_core(&self, core: usize) -> Client {
        let cores = self.connect().get("/healthz");
        let cores: usize = cores.header("X-Cache-Cores").unwrap().parse().unwrap();
        let mut client = Client::over(connect_from(&self.api, |port| port / 2 % cores == core));
        let answer = client.get("/healthz");
        assert_eq!(answer.header("X-Cache-Core").unwrap(), core.to_string());
        client
    }

    /// Sends a signal. A node that is told to stop has stopped when this returns: it takes
    /// a moment until all its threads have.
    pub fn signal(&self, signal: i32) {
        let pid = self.child.id() as i32;
        // SAFETY: plain system call on our own child, which was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        if signal == libc::SIGSTOP {
            let pid = WaitId::Pid(Pid::from_raw(pid).expect("a process id"));
            waitid(pid, WaitIdOptions::STOPPED).expect("the node stops");
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("the node ends")
    }

    /// Ends the node as a crash would, if it still runs.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.log_reader.take() {
            let _ = reader.join();
        }
    }

    /// Whether it has logged this text.
    pub fn has_logged(&self, text: &str) -> bool {
        self.logs.lock().expect("no writer panics").contains(text)
    }

    /// In how many lines it has logged this text.
    pub fn times_logged(&self, text: &str) -> usize {
        let logs = self.logs.lock().expect("no writer panics");
        logs.lines().filter(|line| line.contains(text)).count()
    }

    /// Waits until it has logged this text; its logs arrive a moment after what they tell.
    pub fn has_logged_soon(&self, text: &str) -> bool {
        let begun = std::time::Instant::now();
        while !self.has_logged(text) {
            if begun.elapsed() > GUARD {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its state is known").is_none()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking()
            && let Ok(logs) = self.logs.lock()
        {
            eprintln!("the node at {} logged:\n{logs}", self.api);
        }
    }
}

/// A connection from a source port by which clients choose their core.
fn connect_from(address: &str, is_wanted: impl Fn(usize) -> bool) -> TcpStream {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let address: SocketAddr = address.parse().expect("an address");
    let (first, count) = (16_384, 16_384);
    for _ in 0..count {
        // Other tests look for free ports at the same time: each begins elsewhere.
        let step = NEXT.fetch_add(1, Ordering::Relaxed) * 97 + std::process::id() as usize * 31;
        let port = first + step % count;
        if !is_wanted(port) {
            continue;
        }
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        let source = SocketAddr::new(address.ip(), port as u16);
        let connected = socket
            .bind(&source.into())
            .and_then(|()| socket.connect(&address.into()));
        match connected {
            Ok(()) => return socket.into(),
            // In use, or this very connection was there a moment ago.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable
                ) => {}
            Err(error) => panic!("cannot connect from port {port}: {error}"),
        }
    }
    panic!("no port is free");
}

/// One response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// Checks an error's status, code and form.
    pub fn expect_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let body = self.json();
        assert_eq!(body["code"], code, "{self:?}");
        assert!(
            body["error"].as_str().is_some_and(|text| !text.is_empty()),
            "{self:?}"
        );
        assert_eq!(self.header("Content-Type"), Some("application/json"));
    }
}

/// One connection, in the clear if not otherwise said.
pub struct Client<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the node accepts");
        stream
            .set_read_timeout(Some(GUARD))
            .expect("a timeout can be set");
        stream
            .set_write_timeout(Some(GUARD))
            .expect("a timeout can be set");
        stream.set_nodelay(true).expect("nodelay can be set");
        Self::over(stream)
    }
}

impl<S: Read + Write> Client<S> {
    /// Speaks over what was connected otherwise.
    pub fn over(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .expect("the node reads");
    }

    pub fn request(&mut self, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
        self.send(request(method, target, headers, body));
        self.answer_to(method)
    }

    pub fn get(&mut self, target: &str) -> Answer {
        self.request("GET", target, "", b"")
    }

    pub fn put(&mut self, target: &str, body: &[u8]) -> Answer {
        self.request("PUT", target, "", body)
    }

    pub fn post(&mut self, target: &str, body: &str) -> Answer {
        self.request("POST", target, "", body.as_bytes())
    }

    /// Reads a line, without its end.
    pub fn line(&mut self) -> String {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\n") {
                break at + 1;
            }
            assert!(self.fill(), "the stream ends");
        };
        let line: Vec<u8> = self.buffer.drain(..end).collect();
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    pub fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    /// Reads one response; `None` at the end of the stream.
    pub fn try_answer(&mut self, method: &str) -> Option<Answer> {
        let head_len = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill() {
                assert!(
                    self.buffer.is_empty(),
                    "cut off: {:?}",
                    String::from_utf8_lossy(&self.buffer)
                );
                return None;
            }
        };
        let head = String::from_utf8(self.buffer.drain(..head_len).collect()).expect("text");
        let status = head[9..12].parse().expect("a status");
        let mut answer = Answer {
            status,
            head,
            body: Vec::new(),
        };
        if status >= 200 && method != "HEAD" {
            let length = answer
                .header("Content-Length")
                .expect("a length")
                .parse()
                .expect("a number");
            while self.buffer.len() < length {
                assert!(self.fill(), "the body is cut off");
            }
            answer.body = self.buffer.drain(..length).collect();
        }
        Some(answer)
    }

    pub fn answer_to(&mut self, method: &str) -> Answer {
        self.try_answer(method)
            .expect("an answer before the end of the stream")
    }

    /// Checks that nothing comes any more and the connection is closed.
    pub fn expect_closed(&mut self) {
        assert!(
            !self.fill() && self.buffer.is_empty(),
            "more came: {:?}",
            String::from_utf8_lossy(&self.buffer)
        );
    }

    /// Reads more; false at the end of the stream or on a reset.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                count > 0
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("waiting for an answer: {error}"),
        }
    }
}

pub fn request(method: &str, target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}").into_bytes();
    if !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
