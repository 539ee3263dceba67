//! Measures memory: what an item takes beside redis and memcached, whether what the node
//! believes to take is what it takes while sizes change, within a limit of a container if
//! cgroups can be made here, and what idle connections take.
//!
//! `cargo run --release -p hypercache-perf --bin memory [items [count] | churn [seconds] |
//! idle [connections]]`; without an argument all three.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use hypercache_perf::certificates::{Certificates, KeyKind};
use hypercache_perf::checked::Random;
use hypercache_perf::peers::raise_descriptor_limit;
use hypercache_perf::protocol::Answers;
use hypercache_perf::report::{exit_code, print_machine, print_target};
use hypercache_perf::servers::{
    Server, beside, build, free_port, get, node_with, redis, serving, start, start_at,
};
use hypercache_perf::socket::Socket;
use hypercache_perf::{Load, Protocol, pin};

/// Keys of one length: `key` and ten digits.
const KEYS_FROM: usize = 1_000_000_000;
const KEY_BYTES: usize = 13;
const VALUE_BYTES: usize = 100;

/// What an item may take beyond its key and value.
const OVERHEAD_MAX: f64 = 48.0;

/// How much more the process may take than its store believes to take, under churn.
const RESIDENT_MAX: f64 = 1.15;

/// What the idle connections may take together, by default 10,000 of them.
const IDLE_MIB_MAX: f64 = 100.0;

/// The container of the churn. By default the store gets 70 % of it.
const CONTAINER_BYTES: u64 = 1 << 30;

/// Values of the churn: sizes go through these ranges, each as likely at any magnitude.
const RANGES: [(f64, f64); 4] = [
    (16.0, 65536.0),
    (16.0, 300.0),
    (300.0, 5000.0),
    (5000.0, 65536.0),
];
/// For how long one range lasts.
const RANGE_S: u64 = 10;
/// How many keys there are of a range: more than fit.
const CHURN_KEYS: usize = 3_000_000;
/// One in so many operations deletes.
const DELETE_SHARE: usize = 10;
/// Bytes of requests sent before their answers are awaited.
const BATCH_BYTES: usize = 128 << 10;
/// What is handed on to the node of the churn.
const ALLOCATOR_VARIABLES: [&str; 2] = ["GLIBC_TUNABLES", "LD_PRELOAD"];
/// How often the process is looked at.
const LOOK: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    exit_code(run())
}

fn run() -> io::Result<bool> {
    let mut args = std::env::args().skip(1);
    let what = args.next();
    let number = args.next().and_then(|arg| arg.parse().ok());
    build(&["--bin", "hypercache"])?;
    print_machine(&["rustc", "redis-server", "memcached"]);
    pin(1);
    match what.as_deref() {
        Some("items") => items(number.unwrap_or(5_000_000)),
        Some("churn") => churn(number.unwrap_or(120) as u64),
        Some("idle") => idle(number.unwrap_or(10_000)),
        None => Ok(items(5_000_000)? & churn(120)? & idle(10_000)?),
        Some(other) => Err(io::Error::other(format!("unknown: {other}"))),
    }
}

/// What of a process is in memory.
fn resident(server: &Server) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.ok_or_else(|| io::Error::other("no VmRSS"))? << 10)
}

/// A metric of a node, summed over its cores.
fn metric(management: &str, name: &str) -> io::Result<u64> {
    let (_, metrics) = get(management, "/metrics")?;
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let samples = samples.filter(|rest| rest.starts_with(['{', ' ']));
    let values = samples.filter_map(|sample| sample.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(values.sum())
}

/// Where the management of a node of ours listens, and the setting that says so.
fn management() -> io::Result<(String, (String, String))> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let setting = ("HYPERCACHE_MGMT_ADDR".to_owned(), address.clone());
    Ok((address, setting))
}

fn memcached() -> io::Result<Server> {
    let port = free_port()?.to_string();
    let mut command = Command::new("memcached");
    command
        .args(["-l", "127.0.0.1", "-p", &port, "-U", "0", "-t", "1"])
        // More than is stored, and root as it is refused otherwise.
        .args(["-m", "65536", "-u", "root"]);
    start_at(command, &[0], format!("127.0.0.1:{port}"))
}

fn items(count: usize) -> io::Result<bool> {
    println!("\n{count} items, keys of {KEY_BYTES} bytes, values of {VALUE_BYTES}\n");
    println!(
        "| server | resident, MiB | bytes per item beyond key and value | as the node believes |"
    );
    println!("|---|---|---|---|");
    let mut reached = f64::NAN;
    for (name, protocol) in [
        ("hypercache", Protocol::Http),
        ("redis", Protocol::Resp),
        ("memcached", Protocol::Memcached),
    ] {
        let (management, setting) = management()?;
        let memory = ("HYPERCACHE_MEMORY_LIMIT".to_owned(), "16GiB".to_owned());
        let server = match name {
            "hypercache" => node_with(1, "auto", &[setting, memory]),
            "redis" => redis(),
            _ => memcached(),
        };
        let server = match server {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("| {name} | not installed | | |");
                continue;
            }
            server => server?,
        };
        let believed = || match name {
            "hypercache" => metric(&management, "hypercache_store_bytes").map(Some),
            _ => Ok(None),
        };
        let before = (resident(&server)?, believed()?);
        let load = Load {
            targets: vec![server.address.clone()],
            protocol,
            keys: (KEYS_FROM..KEYS_FROM + count).collect(),
            value_bytes: VALUE_BYTES,
            ..Load::default()
        };
        load.preload()?;
        // What the node counts it publishes a few times a second.
        std::thread::sleep(Duration::from_secs(2));
        let after = (resident(&server)?, believed()?);
        let beyond = |bytes: u64| bytes as f64 / count as f64 - (KEY_BYTES + VALUE_BYTES) as f64;
        let taken = beyond(after.0.saturating_sub(before.0));
        let believed = before.1.zip(after.1);
        let believed =
            believed.map(|(before, after)| format!("{:.1}", beyond(after.saturating_sub(before))));
        let (mib, believed) = (after.0 >> 20, believed.unwrap_or_default());
        println!("| {name} | {mib} | {taken:.1} | {believed} |");
        if name == "hypercache" {
            reached = taken;
            if metric(&management, "hypercache_items")? != count as u64 {
                return Err(io::Error::other("the node does not hold all items"));
            }
        }
    }
    println!("\n| target | reached | at most |\n|---|---|---|");
    let met = reached <= OVERHEAD_MAX;
    print_target("bytes per item beyond key and value", reached, "48", met);
    Ok(met)
}

/// A cgroup with a limit on memory, if this machine lets us make one.
struct Container {
    path: PathBuf,
    peak: &'static str,
}

impl Container {
    fn new(limit: u64) -> Option<Self> {
        let name = format!("hypercache-perf-{}", std::process::id());
        [
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.max_usage_in_bytes",
            ),
            ("/sys/fs/cgroup", "memory.max", "memory.peak"),
        ]
        .into_iter()
        .find_map(|(root, limit_file, peak)| {
            let path = PathBuf::from(root).join(&name);
            fs::create_dir(&path).ok()?;
            let made = Self { path, peak };
            fs::write(made.path.join(limit_file), limit.to_string()).ok()?;
            Some(made)
        })
    }

    /// The most that was charged to it: also what the kernel keeps for it.
    fn peak(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.path.join(self.peak))?;
        text.trim().parse().map_err(io::Error::other)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Its processes have ended, but the kernel may not have noticed yet.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn churn(seconds: u64) -> io::Result<bool> {
    let container = Container::new(CONTAINER_BYTES);
    let (management, setting) = management()?;
    let mut command = Command::new("sh");
    let join = container
        .as_ref()
        .map(|made| made.path.join("cgroup.procs"));
    let join = join.map(|procs| format!("echo $$ > {} && ", procs.display()));
    let binary = beside("hypercache")?;
    command
        .args([
            "-c",
            &format!("{}exec {}", join.unwrap_or_default(), binary.display()),
        ])
        .env_clear()
        .env("HYPERCACHE_API_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_DIST_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_CORES", "1")
        .env("HYPERCACHE_CAPACITY", "0")
        .env(setting.0, setting.1)
        // To try other settings of malloc, or another malloc.
        .envs(
            std::env::vars_os()
                .filter(|(name, _)| ALLOCATOR_VARIABLES.iter().any(|ours| name == ours)),
        );
    match &container {
        Some(_) => println!(
            "\nchurn for {seconds} s in a container of {} MiB",
            CONTAINER_BYTES >> 20
        ),
        None => {
            println!(
                "\nchurn for {seconds} s; no cgroup could be made here, so nothing enforces a limit"
            );
            let share = CONTAINER_BYTES * 7 / 10;
            command.env("HYPERCACHE_MEMORY_LIMIT", share.to_string());
        }
    }
    let server = start(command, &[0], serving)?;
    let limit = metric(&management, "hypercache_memory_limit_bytes")?;
    let mut stream = TcpStream::connect(&server.address)?;
    let mut answers = Answers::new(Protocol::Http);
    let mut random = Random::new(1);
    let (started, mut looked) = (Instant::now(), Instant::now());
    let (mut requests, mut worst, mut most) = (0_u64, 0.0_f64, 0);
    let mut chunk = vec![0; 1 << 20];
    while started.elapsed() < Duration::from_secs(seconds) {
        let range = (started.elapsed().as_secs() / RANGE_S) as usize % RANGES.len();
        let (least, greatest) = RANGES[range];
        let (mut bytes, mut sent) = (Vec::new(), 0);
        while bytes.len() < BATCH_BYTES {
            let key = range * CHURN_KEYS + random.below(CHURN_KEYS);
            if random.below(DELETE_SHARE) == 0 {
                let head = format!("DELETE /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\n\r\n");
                bytes.extend(head.into_bytes());
            } else {
                let at = random.below(1 << 20) as f64 / f64::from(1 << 20);
                let size = least * (greatest / least).powf(at);
                Protocol::Http.write_put(key, size as usize, &mut bytes);
            }
            sent += 1;
        }
        stream.write_all(&bytes)?;
        requests += sent as u64;
        while sent > 0 {
            let read = stream.read(&mut chunk)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            sent -= answers.feed(&chunk[..read])?;
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            let believed = metric(&management, "hypercache_store_bytes")?;
            let resident = resident(&server)?;
            most = most.max(resident);
            // Once it is full: what a node takes without a store is nothing to compare with.
            if believed > limit - limit / 20 {
                worst = worst.max(resident as f64 / believed as f64);
            }
        }
    }
    println!(
        "{requests} writes and deletes, {} MiB resident at most\n",
        most >> 20
    );
    println!("| target | reached | at most |\n|---|---|---|");
    let mut met = 0.0 < worst && worst <= RESIDENT_MAX;
    print_target(
        "resident, to what the store believes to take",
        worst,
        "1.15",
        met,
    );
    if let Some(container) = &container {
        let share = container.peak()? as f64 / CONTAINER_BYTES as f64;
        print_target(
            "charged to the container at most, to its limit",
            share,
            "1",
            share < 1.0,
        );
        met &= share < 1.0;
    }
    drop(server);
    Ok(met)
}

fn idle(count: usize) -> io::Result<bool> {
    println!("\n| target | reached | at most |\n|---|---|---|");
    let mut met = true;
    raise_descriptor_limit();
    for (tls, used) in [(false, false), (false, true), (true, true)] {
        let certificates = tls.then(|| Certificates::new(KeyKind::P256)).transpose()?;
        let mut settings = vec![
            (
                "HYPERCACHE_CONNECTIONS".to_owned(),
                (count + 100).to_string(),
            ),
            ("HYPERCACHE_IDLE_TIMEOUT".to_owned(), "10m".to_owned()),
            ("HYPERCACHE_READ_TIMEOUT".to_owned(), "10m".to_owned()),
        ];
        settings.extend(certificates.iter().flat_map(|made| made.settings(false)));
        let server = node_with(1, "auto", &settings)?;
        let config = match &certificates {
            Some(made) => Some(made.client(&rustls::version::TLS13, false, false)?),
            None => None,
        };
        let before = resident(&server)?;
        let mut connections = Vec::new();
        for _ in 0..count {
            let mut socket = Socket::connect(&server.address, config.as_ref())?;
            if used {
                socket.write_all(
                    b"PUT /v1/cache/k HTTP/1.1\r\nHost: perf\r\nContent-Length: 1\r\n\r\nv",
                )?;
                socket.flush()?;
                let mut answer = [0; 1024];
                if socket.read(&mut answer)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            connections.push(socket);
        }
        std::thread::sleep(Duration::from_secs(2));
        let mib = resident(&server)?.saturating_sub(before) as f64 / f64::from(1 << 20);
        let kind = if tls { "under TLS" } else { "in the clear" };
        let use_made = if used { "used once" } else { "never used" };
        let name = format!("{count} idle connections {kind}, {use_made}, MiB");
        let kept = mib <= IDLE_MIB_MAX;
        print_target(&name, mib, "100", kept);
        met &= kept || tls;
    }
    Ok(met)
}
