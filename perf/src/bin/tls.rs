//! Measures what TLS costs a node: per request, per connection, and what a flood of
//! handshakes does to a connection that stands.
//!
//! `cargo run --release -p hypercache-perf --bin tls [rounds] [seconds]`

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hypercache_perf::certificates::{Certificates, KeyKind};
use hypercache_perf::report::{Rounds, print_machine};
use hypercache_perf::servers::{Server, build, node_with};
use hypercache_perf::socket::Socket;
use hypercache_perf::{Load, Protocol, cpu_ns, pin};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection};
use socket2::SockRef;

/// Connections made per round and kind.
const CONNECTIONS: u64 = 300;

/// Half handshakes that a flood holds open.
const FLOOD_OPEN: usize = 200;

const GET: &[u8] = b"GET /v1/cache/key1 HTTP/1.1\r\nHost: perf\r\n\r\n";
const PUT: &[u8] = b"PUT /v1/cache/key1 HTTP/1.1\r\nHost: perf\r\nContent-Length: 5\r\n\r\nvalue";

type Client = Option<Arc<ClientConfig>>;

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let rounds = args.next().and_then(Result::ok).unwrap_or(5);
    let seconds = Duration::from_secs(args.next().and_then(Result::ok).unwrap_or(2));
    build(&["--bin", "hypercache"])?;
    pin(1);
    print_machine(&["rustc"]);
    let ecdsa = Certificates::new(KeyKind::P256)?;
    let rsa = Certificates::new(KeyKind::Rsa2048)?;
    let mut nodes = BTreeMap::new();
    nodes.insert("plain", node_with(1, "auto", &[])?);
    nodes.insert("ecdsa", node_with(1, "auto", &ecdsa.settings(false))?);
    nodes.insert("mutual", node_with(1, "auto", &ecdsa.settings(true))?);
    nodes.insert("rsa", node_with(1, "auto", &rsa.settings(false))?);
    measure_requests(&nodes, &ecdsa, rounds, seconds)?;
    measure_connections(&nodes, &ecdsa, &rsa, rounds)?;
    measure_flood(
        &nodes["ecdsa"],
        &ecdsa.client(&TLS13, false, false)?,
        seconds,
    )
}

/// Processor time per request, in the clear and under either version.
fn measure_requests(
    nodes: &BTreeMap<&str, Server>,
    certificates: &Certificates,
    rounds: u64,
    duration: Duration,
) -> io::Result<()> {
    let clients: [(&str, &str, Client); 3] = [
        ("in the clear", "plain", None),
        (
            "TLS 1.3",
            "ecdsa",
            Some(certificates.client(&TLS13, false, true)?),
        ),
        (
            "TLS 1.2",
            "ecdsa",
            Some(certificates.client(&TLS12, false, true)?),
        ),
    ];
    let shapes = [
        (false, 100, 1),
        (false, 100, 16),
        (true, 100, 1),
        (false, 64 << 10, 1),
    ];
    let mut cases = Vec::new();
    for (put, value_bytes, pipeline) in shapes {
        for (name, node, tls) in &clients {
            let load = Load {
                targets: vec![nodes[node].address.clone()],
                put_percent: 100 * u32::from(put),
                pipeline,
                keys: (0..1000).collect(),
                value_bytes,
                duration,
                tls: tls.clone(),
                ..Load::default()
            };
            cases.push((
                *name,
                nodes[node].pid(),
                load,
                Rounds::default(),
                Rounds::default(),
            ));
        }
    }
    for _ in 0..rounds {
        for (_, pid, load, cpu, rate) in &mut cases {
            let outcome = load.run(&[*pid])?;
            cpu.push(outcome.server_cpu_us);
            rate.push(outcome.requests as f64 / outcome.seconds);
        }
    }
    println!("\n| request | over | CPU us/request: median (min to max) | requests/s |");
    println!("|---|---|---|---|");
    for (name, _, load, cpu, rate) in &cases {
        println!(
            "| {} of {} bytes, {} at a time | {name} | {:.2} ({:.2} to {:.2}) | {:.0} |",
            if load.put_percent > 0 { "PUT" } else { "GET" },
            load.value_bytes,
            load.pipeline,
            cpu.median(),
            cpu.min(),
            cpu.max(),
            rate.median()
        );
    }
    Ok(())
}

/// Processor time of a connection with one request on it.
fn measure_connections(
    nodes: &BTreeMap<&str, Server>,
    ecdsa: &Certificates,
    rsa: &Certificates,
    rounds: u64,
) -> io::Result<()> {
    let client =
        |of: &Certificates, version, mutual, resumes| of.client(version, mutual, resumes).map(Some);
    let cases: Vec<(&str, &str, Client, bool)> = vec![
        ("in the clear", "plain", None, false),
        (
            "TLS 1.3, ECDSA P-256",
            "ecdsa",
            client(ecdsa, &TLS13, false, false)?,
            false,
        ),
        (
            "TLS 1.3, RSA 2048",
            "rsa",
            client(rsa, &TLS13, false, false)?,
            false,
        ),
        (
            "TLS 1.3, resumed",
            "ecdsa",
            client(ecdsa, &TLS13, false, true)?,
            true,
        ),
        (
            "TLS 1.3, mutual, ECDSA",
            "mutual",
            client(ecdsa, &TLS13, true, false)?,
            false,
        ),
        (
            "TLS 1.3, mutual, resumed",
            "mutual",
            client(ecdsa, &TLS13, true, true)?,
            true,
        ),
        (
            "TLS 1.2, ECDSA P-256",
            "ecdsa",
            client(ecdsa, &TLS12, false, false)?,
            false,
        ),
        (
            "TLS 1.2, resumed",
            "ecdsa",
            client(ecdsa, &TLS12, false, true)?,
            true,
        ),
    ];
    for (_, node, tls, _) in &cases {
        let mut socket = Socket::connect(&nodes[node].address, tls.as_ref())?;
        ask(&mut socket, PUT)?;
    }
    let mut results = vec![(Rounds::default(), Rounds::default()); cases.len()];
    for _ in 0..rounds {
        for ((_, node, tls, resumed), (cpu, time)) in cases.iter().zip(&mut results) {
            let node = &nodes[node];
            for _ in 0..10 {
                connect_once(&node.address, tls.as_ref())?;
            }
            let (before, begun) = (cpu_ns(node.pid())?, Instant::now());
            for _ in 0..CONNECTIONS {
                if connect_once(&node.address, tls.as_ref())? != *resumed {
                    return Err(io::Error::other("a session was not resumed, or was"));
                }
            }
            let elapsed = begun.elapsed();
            cpu.push((cpu_ns(node.pid())? - before) as f64 / 1000.0 / CONNECTIONS as f64);
            time.push(elapsed.as_secs_f64() * 1e6 / CONNECTIONS as f64);
        }
    }
    println!("\n| connection with one GET | server's CPU us: median (min to max) | took us |");
    println!("|---|---|---|");
    for ((name, ..), (cpu, time)) in cases.iter().zip(&results) {
        println!(
            "| {name} | {:.0} ({:.0} to {:.0}) | {:.0} |",
            cpu.median(),
            cpu.min(),
            cpu.max(),
            time.median()
        );
    }
    Ok(())
}

/// One connection with one request; whether it resumed a session.
fn connect_once(address: &str, tls: Option<&Arc<ClientConfig>>) -> io::Result<bool> {
    let mut socket = Socket::connect(address, tls)?;
    ask(&mut socket, GET)?;
    Ok(socket.is_resumed())
}

/// Sends a request, and reads the answer, which must be a success.
fn ask(socket: &mut Socket, request: &[u8]) -> io::Result<()> {
    socket.write_all(request)?;
    socket.flush()?;
    let mut answers = hypercache_perf::protocol::Answers::new(Protocol::Http);
    let mut chunk = [0; 64 << 10];
    loop {
        let count = socket.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if answers.feed(&chunk[..count])? > 0 {
            return Ok(());
        }
    }
}

/// How long requests on a standing connection take while a flood of first messages of
/// handshakes comes, which costs its sender next to nothing.
fn measure_flood(node: &Server, config: &Arc<ClientConfig>, duration: Duration) -> io::Result<()> {
    let name = ServerName::try_from("127.0.0.1").map_err(io::Error::other)?;
    let mut hello = Vec::new();
    ClientConnection::new(Arc::clone(config), name)
        .map_err(io::Error::other)?
        .write_tls(&mut hello)?;
    let mut standing = Socket::connect(&node.address, Some(config))?;
    println!("\n| GETs one by one | half handshakes/s | server's CPU | p50 us | p99 us | max us |");
    println!("|---|---|---|---|---|---|");
    for floods in [false, true] {
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut times = Rounds::default();
        let (before, begun) = (cpu_ns(node.pid())?, Instant::now());
        thread::scope(|scope| {
            if floods {
                scope.spawn(|| flood(&node.address, &hello, &stop, &sent));
            }
            let measured = (|| {
                while begun.elapsed() < duration {
                    let asked = Instant::now();
                    ask(&mut standing, GET)?;
                    times.push(asked.elapsed().as_secs_f64() * 1e6);
                }
                Ok::<_, io::Error>(())
            })();
            stop.store(true, Ordering::Relaxed);
            measured
        })?;
        let elapsed = begun.elapsed().as_secs_f64();
        let cpu = (cpu_ns(node.pid())? - before) as f64 / 1e9 / elapsed;
        println!(
            "| {} | {:.0} | {:.0} % | {:.0} | {:.0} | {:.0} |",
            if floods { "during the flood" } else { "alone" },
            sent.load(Ordering::Relaxed) as f64 / elapsed,
            cpu * 100.0,
            times.median(),
            times.quantile(0.99),
            times.max()
        );
    }
    Ok(())
}

/// Opens connections, sends the beginning of a handshake on each, and resets the oldest
/// when there are too many. Runs only when this CPU has nothing else to do.
fn flood(address: &str, hello: &[u8], stop: &AtomicBool, sent: &AtomicU64) {
    // SAFETY: a system call on plain values and a struct that outlives it.
    unsafe {
        let none = libc::sched_param { sched_priority: 0 };
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &none);
    }
    let mut open = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address) else {
            thread::yield_now();
            continue;
        };
        if stream.write_all(hello).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        open.push_back(stream);
        if open.len() > FLOOD_OPEN
            && let Some(oldest) = open.pop_front()
        {
            reset(&oldest);
        }
    }
    open.iter().for_each(reset);
}

/// Has a connection reset when it is closed, so that its port is free again at once.
fn reset(stream: &TcpStream) {
    // Where that fails the port is free a little later.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
