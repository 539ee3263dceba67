//! Measures one node beside the floor and redis, interleaved, and prints medians.
//!
//! `cargo run --release -p hypercache-perf --bin single-node [rounds] [seconds]`

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hypercache_perf::{Load, Locality, Protocol, pin};

struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server on these CPUs; `read` finds its address in its output.
fn start(
    mut command: Command,
    cpus: &'static [usize],
    read: impl Fn(&str) -> Option<String>,
) -> io::Result<Server> {
    // SAFETY: between fork and exec only system calls on plain values.
    unsafe {
        command.pre_exec(move || {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            cpus.iter().for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("no pipes"));
    };
    let (send, lines) = std::sync::mpsc::channel();
    let output: [Box<dyn io::Read + Send>; 2] = [Box::new(stdout), Box::new(stderr)];
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
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        if let Some(address) = read(&line) {
            return Ok(Server { child, address });
        }
    }
    let _ = child.kill();
    Err(io::Error::other(format!("{command:?} did not start")))
}

fn floor(driver: &str) -> io::Result<Server> {
    let mut command = Command::new(beside("floor")?);
    command.arg(driver);
    start(command, &[0], |line| Some(line.to_owned()))
}

fn node(cores: usize, driver: &str) -> io::Result<Server> {
    let mut command = Command::new(beside("hypercache")?);
    command
        .env_clear()
        .env("HYPERCACHE_API_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_MGMT_ADDR", "127.0.0.1:0")
        .env("HYPERCACHE_CORES", cores.to_string())
        .env("HYPERCACHE_IO_DRIVER", driver)
        .env("HYPERCACHE_CAPACITY", "0");
    start(command, if cores == 1 { &[0] } else { &[0, 1] }, |line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["message"] == "serving").then(|| event["api"].as_str().map(str::to_owned))?
    })
}

fn redis() -> io::Result<Server> {
    // Redis cannot be told to take any free port: ask the kernel for one first.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
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

/// A program built beside this one.
fn beside(name: &str) -> io::Result<std::path::PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let rounds = args.next().and_then(Result::ok).unwrap_or(5);
    let seconds = args.next().and_then(Result::ok).unwrap_or(3);
    let built = Command::new("cargo")
        .args(["build", "--release", "--bin", "hypercache"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()?;
    let built_floor = Command::new("cargo")
        .args([
            "build",
            "--release",
            "-p",
            "hypercache-perf",
            "--bin",
            "floor",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()?;
    if !built.success() || !built_floor.success() {
        return Err(io::Error::other("the release build failed"));
    }
    pin(1);
    print_machine();

    let mut servers = BTreeMap::new();
    servers.insert("floor", floor("io_uring")?);
    servers.insert("floor-epoll", floor("epoll")?);
    servers.insert("hypercache", node(1, "auto")?);
    servers.insert("hypercache-epoll", node(1, "epoll")?);
    servers.insert("hypercache-2", node(2, "auto")?);
    match redis() {
        Ok(server) => drop(servers.insert("redis", server)),
        Err(error) => println!("redis-server is not measured: {error}"),
    }

    let base = Load {
        target: String::new(),
        protocol: Protocol::Http,
        put: false,
        connections: 64,
        pipeline: 1,
        keys: 10_000,
        value_bytes: 100,
        locality: Locality::Any,
        duration: Duration::from_secs(seconds),
    };
    let mut cases = Vec::new();
    for pipeline in [1, 16] {
        for put in [false, true] {
            for server in [
                "floor",
                "hypercache",
                "redis",
                "floor-epoll",
                "hypercache-epoll",
            ] {
                let protocol = if server == "redis" {
                    Protocol::Resp
                } else {
                    Protocol::Http
                };
                // The floor knows one answer: it is measured with GET only.
                if !(put && server.starts_with("floor")) {
                    cases.push((
                        server,
                        Load {
                            pipeline,
                            put,
                            protocol,
                            ..base.clone()
                        },
                    ));
                }
            }
        }
        for locality in [Locality::Local, Locality::Half] {
            cases.push((
                "hypercache-2",
                Load {
                    pipeline,
                    locality,
                    ..base.clone()
                },
            ));
        }
    }
    let mut results: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); cases.len()];
    for _ in 0..rounds {
        for ((name, load), (cpu, rate)) in cases.iter().zip(&mut results) {
            let Some(server) = servers.get(name) else {
                continue;
            };
            let load = Load {
                target: server.address.clone(),
                ..load.clone()
            };
            let outcome = load
                .run(server.child.id())
                .map_err(|error| io::Error::other(format!("{name}: {error}")))?;
            cpu.push(outcome.server_cpu_us);
            rate.push(outcome.requests as f64 / outcome.seconds);
        }
    }
    println!(
        "\n| server | operation | pipeline | keys | CPU us/request: median (min to max) | requests/s |"
    );
    println!("|---|---|---|---|---|---|");
    let mut medians = BTreeMap::new();
    for ((name, load), (cpu, rate)) in cases.iter().zip(&mut results) {
        if cpu.is_empty() {
            continue;
        }
        let operation = if load.put { "PUT" } else { "GET" };
        let (cpu_median, rate) = (median(cpu), median(rate));
        println!(
            "| {name} | {operation} | {} | {:?} | {cpu_median:.3} ({:.3} to {:.3}) | {rate:.0} |",
            load.pipeline,
            load.locality,
            cpu[0],
            cpu[cpu.len() - 1]
        );
        medians.insert(
            format!("{name} {operation} {} {:?}", load.pipeline, load.locality),
            cpu_median,
        );
    }
    println!("\n| target | reached | at most |\n|---|---|---|");
    for (what, one, other, most) in [
        (
            "GET, to the floor",
            "hypercache GET 1 Any",
            "floor GET 1 Any",
            1.10,
        ),
        (
            "GET pipelined 16, to the floor",
            "hypercache GET 16 Any",
            "floor GET 16 Any",
            1.6,
        ),
        (
            "GET pipelined 16, to redis",
            "hypercache GET 16 Any",
            "redis GET 16 Any",
            1.0,
        ),
        (
            "half of the keys elsewhere, to none, pipelined 16",
            "hypercache-2 GET 16 Half",
            "hypercache-2 GET 16 Local",
            1.5,
        ),
    ] {
        if let (Some(one), Some(other)) = (medians.get(one), medians.get(other)) {
            println!("| {what} | {:.2} | {most:.2} |", one / other);
        }
    }
    Ok(())
}

fn print_machine() {
    let first = |path: &str, field: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find(|line| line.starts_with(field))
            .unwrap_or_default()
            .to_owned()
    };
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output();
        output.map_or_else(
            |_| format!("{program}: absent"),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    println!(
        "{}; {}",
        first("/proc/cpuinfo", "model name"),
        first("/proc/version", "Linux")
    );
    println!("{}; {}", version("redis-server"), version("rustc"));
}
