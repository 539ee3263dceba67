//! Servers to drive: started on chosen CPUs, found by what they print, killed when
//! dropped.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to start.
const START_MAX: Duration = Duration::from_secs(30);

/// How long a node may take to find its cluster and get its data.
const READY_MAX: Duration = Duration::from_secs(300);

/// Where the nodes of a cluster serve clients, management and peers. Below the ports that
/// the system gives to connections: a node that starts again finds its own free.
const PORTS: [u16; 3] = [18080, 18081, 17946];

/// A running server.
pub struct Server {
    /// The process.
    pub child: Child,
    /// Where it serves clients.
    pub address: String,
}

impl Server {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a system call on plain values; the child is not reaped yet.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has a command run on these CPUs only and end with this thread. None given means all.
pub fn confine(command: &mut Command, cpus: &'static [usize]) {
    // SAFETY: between fork and exec only system calls on plain values.
    unsafe {
        command.pre_exec(move || {
            if !cpus.is_empty() {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                cpus.iter().for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
                libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// Starts a server; `read` finds its address in a line of its output.
///
/// # Errors
///
/// When it does not start, with what it said last.
pub fn start(
    mut command: Command,
    cpus: &'static [usize],
    read: impl Fn(&str) -> Option<String>,
) -> io::Result<Server> {
    confine(&mut command, cpus);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("no pipes"));
    };
    let (send, lines) = std::sync::mpsc::channel();
    let output: [Box<dyn Read + Send>; 2] = [Box::new(stdout), Box::new(stderr)];
    for pipe in output {
        let send = send.clone();
        std::thread::spawn(move || {
            BufReader::new(pipe)
                .lines()
                .map_while(Result::ok)
                .for_each(|line| {
                    let _ = send.send(line);
                });
        });
    }
    drop(send);
    let deadline = Instant::now() + START_MAX;
    let mut said = String::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        if let Some(address) = read(&line) {
            return Ok(Server { child, address });
        }
        said = line;
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(io::Error::other(format!(
        "{command:?} did not start: {said}"
    )))
}

/// Starts a server that does not say when it serves, and waits until it takes connections at
/// this address, which it was told to use.
///
/// # Errors
///
/// When it does not start, with what it said last.
pub fn start_at(
    mut command: Command,
    cpus: &'static [usize],
    address: String,
) -> io::Result<Server> {
    confine(&mut command, cpus);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let (send, lines) = std::sync::mpsc::channel();
    if let Some(stderr) = child.stderr.take() {
        // Reads on when nobody listens any more: the pipe must not fill.
        std::thread::spawn(move || {
            BufReader::new(stderr)
                .lines()
                .map_while(Result::ok)
                .for_each(|line| {
                    let _ = send.send(line);
                });
        });
    }
    let mut server = Server { child, address };
    let deadline = Instant::now() + START_MAX;
    while server.child.try_wait()?.is_none() && Instant::now() < deadline {
        if TcpStream::connect(&server.address).is_ok() {
            return Ok(server);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(server);
    let said = lines.iter().last().unwrap_or_default();
    Err(io::Error::other(format!(
        "{command:?} did not start: {said}"
    )))
}

/// A program built beside this one.
///
/// # Errors
///
/// When this program does not know where it is.
pub fn beside(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// Builds release binaries of this workspace.
///
/// # Errors
///
/// When cargo fails.
pub fn build(arguments: &[&str]) -> io::Result<()> {
    let status = Command::new("cargo")
        .args(["build", "--release"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other("the release build failed")),
    }
}

/// The floor server on one CPU.
///
/// # Errors
///
/// When it does not start.
pub fn floor(driver: &str) -> io::Result<Server> {
    floor_of(driver, 100)
}

/// The same with answers of so many bytes.
///
/// # Errors
///
/// When it does not start.
pub fn floor_of(driver: &str, value_bytes: usize) -> io::Result<Server> {
    let mut command = Command::new(beside("floor")?);
    command.args([driver, &value_bytes.to_string()]);
    start(command, &[0], |line| Some(line.to_owned()))
}

/// What the floor answers to each request, with or without the runtime.
pub fn floor_answer(value_bytes: usize) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
        Content-Length: {value_bytes}\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
    );
    [head.into_bytes(), vec![b'v'; value_bytes]].concat()
}

/// The floor without the runtime, in these variants, on one CPU.
///
/// # Errors
///
/// When it does not start.
pub fn ring<'a>(
    variants: impl IntoIterator<Item = &'a str>,
    value_bytes: usize,
) -> io::Result<Server> {
    let mut command = Command::new(beside("ring")?);
    command.args(variants).arg(value_bytes.to_string());
    start(command, &[0], |line| {
        // Not what it says of variants it does not have.
        line.parse::<SocketAddr>().ok().map(|_| line.to_owned())
    })
}

/// The address in a node's line that says it serves.
pub fn serving(line: &str) -> Option<String> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    (event["message"] == "serving").then(|| event["api"].as_str().map(str::to_owned))?
}

/// A node by itself, on as many CPUs as cores.
///
/// # Errors
///
/// When it does not start.
pub fn node(cores: usize, driver: &str) -> io::Result<Server> {
    node_with(cores, driver, &[])
}

/// The same with some settings.
///
/// # Errors
///
/// When it does not start.
pub fn node_with(cores: usize, driver: &str, settings: &[(String, String)]) -> io::Result<Server> {
    node_of(&beside("hypercache")?, cores, driver, settings)
}

/// The same of another build.
///
/// # Errors
///
/// When it does not start.
pub fn node_of(
    binary: &Path,
    cores: usize,
    driver: &str,
    settings: &[(String, String)],
) -> io::Result<Server> {
    let mut command = Command::new(binary);
    command
        .env_clear()
        .env("HYPERCACHE_API_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_MGMT_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_DIST_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_CORES", cores.to_string())
        .env("HYPERCACHE_IO_DRIVER", driver)
        .env("HYPERCACHE_CAPACITY", "0")
        .envs(settings.iter().map(|(name, value)| (name, value)));
    start(command, if cores == 1 { &[0] } else { &[0, 1] }, serving)
}

/// redis-server on one CPU.
///
/// # Errors
///
/// When it is not installed or does not start.
pub fn redis() -> io::Result<Server> {
    let port = free_port()?;
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        &port.to_string(),
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    start(command, &[0], move |line| {
        line.contains("Ready to accept connections")
            .then(|| format!("127.0.0.1:{port}"))
    })
}

/// A port that was free a moment ago, for servers that cannot be told to take any.
///
/// # Errors
///
/// When none is free.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where one node of a cluster listens.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// For clients.
    pub api: String,
    /// For management.
    pub management: String,
    /// For peers.
    pub peers: String,
}

/// The id of a cluster's node numbered from 0.
pub fn id(node: usize) -> String {
    format!("node-{}", node + 1)
}

/// The command that runs one node of a cluster with these addresses. What the
/// environment says of HYPERCACHE_ settings goes to every node.
///
/// # Errors
///
/// When this program does not know where it is.
pub fn member(node: usize, cluster: &[Addresses], binary: &Path) -> Command {
    let seeds = cluster
        .iter()
        .enumerate()
        .map(|(index, addresses)| format!("{}@{}", id(index), addresses.peers));
    let own = &cluster[node];
    let mut command = Command::new(binary);
    if std::env::var_os("HYPERCACHE_CORES").is_none() {
        command.env("HYPERCACHE_CORES", "1");
    }
    command
        .env("HYPERCACHE_NODE_ID", id(node))
        .env("HYPERCACHE_API_ADDR", &own.api)
        .env("HYPERCACHE_MGMT_ADDR", &own.management)
        .env("HYPERCACHE_DIST_ADDR", &own.peers)
        .env("HYPERCACHE_SEEDS", seeds.collect::<Vec<_>>().join(","));
    command
}

/// Nodes that know each other, each on a loopback address of its own.
pub struct Cluster {
    /// Where they listen.
    pub addresses: Vec<Addresses>,
    /// The nodes; `None` for one that does not run.
    pub nodes: Vec<Option<Server>>,
    env: Vec<(String, String)>,
    cpus: &'static [usize],
    /// Keeps others off these addresses.
    _claim: TcpListener,
}

impl Cluster {
    /// Starts nodes of one core each on these CPUs and waits until all are ready.
    ///
    /// # Errors
    ///
    /// When one does not start or never gets ready.
    pub fn start(count: usize, env: &[(&str, &str)], cpus: &'static [usize]) -> io::Result<Self> {
        let (network, claim) = claim_network()?;
        let address = |node: usize, port: u16| format!("{network}.{}:{port}", node + 1);
        let [api, management, peers] = PORTS;
        let addresses = (0..count).map(|node| Addresses {
            api: address(node, api),
            management: address(node, management),
            peers: address(node, peers),
        });
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let mut cluster = Self {
            addresses: addresses.collect(),
            nodes: (0..count).map(|_| None).collect(),
            env: env.iter().map(own).collect(),
            cpus,
            _claim: claim,
        };
        for node in 0..count {
            cluster.launch(node)?;
        }
        cluster.await_ready()?;
        Ok(cluster)
    }

    /// Starts a node that does not run under its id and addresses, empty.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn launch(&mut self, node: usize) -> io::Result<()> {
        self.launch_on(node, self.cpus)
    }

    /// The same on these CPUs.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn launch_on(&mut self, node: usize, cpus: &'static [usize]) -> io::Result<()> {
        let mut command = member(node, &self.addresses, &beside("hypercache")?);
        let env = self.env.iter().map(|(name, value)| (name, value));
        command.env("HYPERCACHE_CAPACITY", "0").envs(env);
        self.nodes[node] = Some(start(command, cpus, serving)?);
        Ok(())
    }

    /// A node that runs.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn node(&mut self, node: usize) -> io::Result<&mut Server> {
        let server = self.nodes[node].as_mut();
        server.ok_or_else(|| io::Error::other(format!("{} does not run", id(node))))
    }

    /// Waits until every node sees all of them alive and has its data.
    ///
    /// # Errors
    ///
    /// When one does not get there in time.
    pub fn await_ready(&self) -> io::Result<()> {
        let mut nodes = self.addresses.iter();
        nodes.try_for_each(|node| await_ready(&node.management, self.addresses.len()))
    }

    /// The process ids of the nodes that run.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().flatten().map(Server::pid).collect()
    }

    /// A field of `/dist/metrics`, summed over the nodes that run.
    ///
    /// # Errors
    ///
    /// When one does not answer.
    pub fn metric(&self, name: &str) -> io::Result<u64> {
        self.sum("/dist/metrics", |metrics| field(metrics, name))
    }

    /// The same of one node; `None` if it does not have that field.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn metric_of(&self, node: usize, name: &str) -> io::Result<Option<u64>> {
        let (_, metrics) = get(&self.addresses[node].management, "/dist/metrics")?;
        Ok(field(&metrics, name))
    }

    /// A metric of `/metrics`, summed over cores and over the nodes that run.
    ///
    /// # Errors
    ///
    /// When one does not answer.
    pub fn prometheus(&self, name: &str) -> io::Result<u64> {
        self.sum("/metrics", |metrics| samples(metrics, name))
    }

    /// The same of one node.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn prometheus_of(&self, node: usize, name: &str) -> io::Result<u64> {
        let (_, metrics) = get(&self.addresses[node].management, "/metrics")?;
        samples(&metrics, name).ok_or_else(|| io::Error::other(format!("{name}: not a number")))
    }

    fn sum(&self, target: &str, read: impl Fn(&str) -> Option<u64>) -> io::Result<u64> {
        let running = self.addresses.iter().zip(&self.nodes);
        let running = running.filter(|(_, node)| node.is_some());
        let values = running.map(|(addresses, _)| {
            let (_, body) = get(&addresses.management, target)?;
            read(&body).ok_or_else(|| io::Error::other(format!("not found in {target}")))
        });
        values.sum()
    }
}

/// A field of `/dist/metrics`.
fn field(metrics: &str, name: &str) -> Option<u64> {
    let metrics: serde_json::Value = serde_json::from_str(metrics).ok()?;
    metrics[name].as_u64()
}

/// The sum of a metric's samples in `/metrics`.
fn samples(metrics: &str, name: &str) -> Option<u64> {
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let values = samples.map(|sample| sample.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

/// Loopback addresses that nobody else has: their first three bytes, and a listener on the
/// last of them, which is the claim.
///
/// # Errors
///
/// When none are left.
pub fn claim_network() -> io::Result<(String, TcpListener)> {
    let first = std::process::id().wrapping_mul(7);
    (0..60_000)
        .map(|step| first.wrapping_add(step))
        .find_map(|number| {
            let network = format!("127.{}.{}", 1 + (number >> 8) % 250, number % 256);
            let claim = TcpListener::bind(format!("{network}.254:7000")).ok()?;
            Some((network, claim))
        })
        .ok_or_else(|| io::Error::other("no loopback addresses are free"))
}

/// Waits until a node sees so many members alive and has its data.
///
/// # Errors
///
/// When it does not get there in time.
pub fn await_ready(management: &str, members: usize) -> io::Result<()> {
    await_that(
        &format!("{management} sees {members} members alive"),
        || {
            let known = get(management, "/cluster/members");
            known.is_ok_and(|(_, body)| body.matches("\"alive\"").count() == members)
        },
    )?;
    await_healthy(management)
}

/// Waits until a node's health is `ok`: it is in its cluster and has its data.
///
/// # Errors
///
/// When it does not get there in time.
pub fn await_healthy(management: &str) -> io::Result<()> {
    await_that(&format!("{management} is ready"), || {
        get(management, "/health").is_ok_and(|(status, _)| status == 200)
    })
}

fn await_that(what: &str, holds: impl Fn() -> bool) -> io::Result<()> {
    let deadline = Instant::now() + READY_MAX;
    while !holds() {
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("in vain: {what}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// One GET on a connection of its own: status and body.
///
/// # Errors
///
/// When the server cannot be reached or does not speak HTTP.
pub fn get(address: &str, target: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let request = format!("GET {target} HTTP/1.1\r\nHost: perf\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || io::Error::other(format!("not HTTP: {answer:?}"));
    let status = answer.get(9..12).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").ok_or_else(bad)?.1;
    Ok((status.ok_or_else(bad)?, body.to_owned()))
}
