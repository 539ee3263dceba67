//! How long a node's core works without letting its loop turn, and what clients notice of
//! it, while the node has much else to do.
//!
//! `cargo run --release -p hypercache-perf --bin stalls -- [--full] [--items n]
//! [--expiring n] [--fill-rate n] [--rate n] [--seconds n] [--settle] [--only a,b]
//! [--no-build]`
//!
//! Each circumstance has a node of its own (the transfer two), filled first. A light load at a
//! fixed rate runs twice: while there is nothing else, and while there is. Longest pieces
//! of work and their kinds come from `/metrics`, which remember them for a minute: with
//! `--full` or `--settle` it waits that long, so that what filling took is forgotten; else a
//! kind is left out of the longest that had a longer one then. It ends with a failure when a
//! piece had the CPU for more than 2 ms.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hypercache_perf::open_loop::Timed;
use hypercache_perf::protocol::Answers;
use hypercache_perf::report::{exit_code, print_machine};
use hypercache_perf::servers::{Cluster, await_healthy, build, free_port, get, node_with};
use hypercache_perf::{Load, Protocol, pin};

/// The longest piece of work that is allowed, as metrics name it.
const LONGEST: &str = "2ms";

/// How much longer the slowest of a thousand requests may take than when it is quiet.
const SLOWER_MAX: f64 = 2.0;

/// Requests that are sent as one piece while a node is filled.
const FILL_BATCH: usize = 64;

/// Keys that the light load asks for. Others are numbered from here on.
const KEYS_ASKED: usize = 10_000;

const VALUE_BYTES: usize = 100;

/// How many items a second are stored at least while a node is filled.
const FILL_MIN: u64 = 50_000;

/// From the beginning of a measurement until the first item expires.
const LEAD: Duration = Duration::from_millis(500);

/// For how long a node remembers its longest pieces of work at most.
const FORGOTTEN: Duration = Duration::from_secs(61);

/// How many items a second a node that comes back empty gets at least.
const COPIED_MIN: u64 = 300_000;

/// How long a node may take to answer what it is filled with.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How often the node is scraped meanwhile: as a monitor would, only more often.
const SCRAPE_PAUSE: Duration = Duration::from_millis(100);

/// What a node has to do beside the light load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Circumstance {
    Growth,
    Expiry,
    Eviction,
    Clear,
    Scrape,
    Transfer,
}

impl Circumstance {
    const ALL: [Self; 6] = [
        Self::Growth,
        Self::Expiry,
        Self::Eviction,
        Self::Clear,
        Self::Scrape,
        Self::Transfer,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Growth => "growth",
            Self::Expiry => "expiry",
            Self::Eviction => "eviction",
            Self::Clear => "clear",
            Self::Scrape => "scrape",
            Self::Transfer => "transfer",
        }
    }
}

struct Options {
    items: usize,
    expiring: usize,
    /// PUTs a second while the node is filled under the light load.
    fill_rate: usize,
    /// Requests a second of the light load.
    rate: u32,
    seconds: u64,
    /// Whether to wait until a node has forgotten how it was filled.
    settles: bool,
    only: Vec<Circumstance>,
    builds: bool,
}

impl Options {
    fn parse() -> io::Result<Self> {
        let mut options = Self {
            items: 1_000_000,
            expiring: 200_000,
            fill_rate: 100_000,
            rate: 2_000,
            seconds: 5,
            settles: false,
            only: Circumstance::ALL.to_vec(),
            builds: true,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut number = || -> io::Result<usize> {
                let value = arguments.next().and_then(|value| value.parse().ok());
                value.ok_or_else(|| io::Error::other(format!("{name} takes a number")))
            };
            match name.as_str() {
                "--full" => {
                    (options.items, options.expiring) = (10_000_000, 1_000_000);
                    options.settles = true;
                }
                "--settle" => options.settles = true,
                "--items" => options.items = number()?,
                "--expiring" => options.expiring = number()?,
                "--fill-rate" => options.fill_rate = number()?.max(1),
                "--rate" => options.rate = number()? as u32,
                "--seconds" => options.seconds = number()? as u64,
                "--no-build" => options.builds = false,
                "--only" => {
                    let names = arguments.next().unwrap_or_default();
                    let wanted = |one: &Circumstance| names.split(',').any(|n| n == one.name());
                    options.only.retain(wanted);
                    if options.only.len() != names.split(',').count() {
                        return Err(io::Error::other(format!(
                            "--only {names}: names not all known"
                        )));
                    }
                }
                _ => return Err(io::Error::other(format!("unknown argument {name}"))),
            }
        }
        Ok(options)
    }

    fn settle(&self) -> Duration {
        match self.settles {
            true => FORGOTTEN,
            false => Duration::ZERO,
        }
    }
}

fn main() -> ExitCode {
    exit_code(run())
}

/// Whether no piece of work was too long.
fn run() -> io::Result<bool> {
    let options = Options::parse()?;
    if options.builds {
        build(&["--bin", "hypercache"])?;
    }
    print_machine(&["rustc"]);
    println!(
        "\n{} items, {} expiring, a light load of {} requests/s\n",
        options.items, options.expiring, options.rate
    );
    println!(
        "| circumstance | node | longest piece, CPU ms | longest piece, ms | over {LONGEST} of CPU | latest timer, ms | \
         p99.9 quiet, us | p99.9 meanwhile, us | ratio | sent late, p99.9 us |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    );
    let mut kept = true;
    for &circumstance in &options.only {
        kept &= match circumstance {
            Circumstance::Transfer => transfer(&options)?,
            _ => alone(&options, circumstance)?,
        };
    }
    Ok(kept)
}

/// One node by itself, on CPU 0; the load has CPU 1.
fn alone(options: &Options, circumstance: Circumstance) -> io::Result<bool> {
    let management = format!("127.0.0.1:{}", free_port()?);
    let mut settings = vec![("HYPERCACHE_MGMT_ADDR".to_owned(), management.clone())];
    if circumstance == Circumstance::Eviction {
        let capacity = options.items.to_string();
        settings.push(("HYPERCACHE_CAPACITY".to_owned(), capacity));
    }
    let server = node_with(1, "auto", &settings)?;
    pin(1);
    let address = server.address.clone();
    // Where keys vanish they cannot be asked for.
    let puts = matches!(circumstance, Circumstance::Eviction | Circumstance::Clear);
    let mut load = light_load(options, &address, puts);
    load.preload()?;
    let items = KEYS_ASKED..KEYS_ASKED + options.items;
    let mut expire_at = UNIX_EPOCH;
    match circumstance {
        Circumstance::Growth => {}
        Circumstance::Expiry => expire_at = fill_expiring(options, &address)?,
        _ => fill(&address, items.clone(), None)?,
    }
    thread::sleep(options.settle());
    let quiet = load.measure_at(options.rate, &[server.pid()])?;
    let before = Lengths::of(&management)?;
    let scraped = management.clone();
    let (rate, seconds) = (options.fill_rate, options.seconds);
    let beside: Beside = match circumstance {
        Circumstance::Growth => {
            load.duration = Duration::from_secs_f64(options.items as f64 / rate as f64);
            Box::new(move || fill(&address, items, Some(rate)))
        }
        Circumstance::Eviction => {
            let more = items.end..items.end + rate * seconds as usize;
            Box::new(move || fill(&address, more, Some(rate)))
        }
        Circumstance::Expiry => {
            let ahead = expire_at.duration_since(SystemTime::now());
            let early =
                |_| io::Error::other("items expired while the node was filled: see FILL_MIN");
            thread::sleep(ahead.map_err(early)?.saturating_sub(LEAD));
            load.duration += LEAD;
            Box::new(|| Ok(()))
        }
        Circumstance::Clear => Box::new(move || post(&scraped, "/clear")),
        Circumstance::Scrape | Circumstance::Transfer => {
            Box::new(move || scrape_for(&scraped, Duration::from_secs(seconds)))
        }
    };
    let beside = thread::spawn(beside);
    let busy = load.measure_at(options.rate, &[server.pid()])?;
    joined(beside)?;
    let after = Lengths::of(&management)?;
    let row = Row {
        circumstance,
        node: "alone",
        before,
        after,
    };
    Ok(row.print(Some((&quiet, &busy))))
}

/// Two nodes, of which one comes back empty. The other has CPU 0; the load shares CPU 1 with
/// the newcomer.
fn transfer(options: &Options) -> io::Result<bool> {
    let mut cluster = Cluster::start(2, &[("HYPERCACHE_TRANSFER_RATE", "0")], &[0])?;
    pin(1);
    let address = cluster.addresses[0].api.clone();
    let [giver, taker] = [0, 1].map(|node| cluster.addresses[node].management.clone());
    let mut load = light_load(options, &address, false);
    load.preload()?;
    fill(&address, KEYS_ASKED..KEYS_ASKED + options.items, None)?;
    cluster.await_ready()?;
    thread::sleep(options.settle());
    let quiet = load.measure_at(options.rate, &cluster.pids())?;
    let leaving = cluster.node(1)?;
    leaving.signal(libc::SIGTERM);
    leaving.child.wait()?;
    let before = Lengths::of(&giver)?;
    cluster.launch_on(1, &[1])?;
    let ready = thread::spawn({
        let taker = taker.clone();
        move || {
            let began = Instant::now();
            await_healthy(&taker)?;
            Ok(began.elapsed())
        }
    });
    load.duration = load
        .duration
        .max(Duration::from_secs(options.items as u64 / COPIED_MIN));
    let busy = load.measure_at(options.rate, &cluster.pids())?;
    let took = joined(ready)?;
    let rows = [
        ("that has the items", before, Lengths::of(&giver)?),
        ("that gets them", Lengths::default(), Lengths::of(&taker)?),
    ];
    let mut kept = true;
    for (node, before, after) in rows {
        let row = Row {
            circumstance: Circumstance::Transfer,
            node,
            before,
            after,
        };
        let seen = (node == "that has the items").then_some((&quiet, &busy));
        kept &= row.print(seen);
    }
    println!("\nThe items were there after {:.2} s.", took.as_secs_f64());
    Ok(kept)
}

type Beside = Box<dyn FnOnce() -> io::Result<()> + Send>;

fn joined<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    let ended = thread.join();
    ended.map_err(|_| io::Error::other("a thread panicked"))?
}

fn light_load(options: &Options, address: &str, puts: bool) -> Load {
    Load {
        targets: vec![address.to_owned()],
        connections: 8,
        put_percent: if puts { 100 } else { 0 },
        keys: (0..KEYS_ASKED).collect(),
        value_bytes: VALUE_BYTES,
        duration: Duration::from_secs(options.seconds),
        ..Load::default()
    }
}

/// Stores items, as many a second as said or as fast as one connection can.
fn fill(address: &str, keys: Range<usize>, per_second: Option<usize>) -> io::Result<()> {
    let put = |key, out: &mut Vec<u8>| Protocol::Http.write_put(key, VALUE_BYTES, out);
    store(address, keys, per_second, put)
}

/// Stores items that expire within one second; when the first does.
fn fill_expiring(options: &Options, address: &str) -> io::Result<SystemTime> {
    let fill = Duration::from_secs(options.expiring as u64 / FILL_MIN + 2 + options.seconds);
    let expire_at = SystemTime::now() + fill + options.settle();
    let keys = KEYS_ASKED..KEYS_ASKED + options.expiring;
    store(address, keys, None, |key, out| {
        let at = expire_at + Duration::from_millis(key as u64 % 1000);
        let ttl = at.duration_since(SystemTime::now()).unwrap_or_default();
        let ttl_ms = ttl.as_millis().max(1);
        let head = format!(
            "PUT /v1/cache/key{key}?ttl={ttl_ms}ms HTTP/1.1\r\nHost: perf\r\n\
             Content-Length: {VALUE_BYTES}\r\n\r\n"
        );
        out.extend(head.into_bytes());
        out.resize(out.len() + VALUE_BYTES, b'v');
    })?;
    Ok(expire_at)
}

fn store(
    address: &str,
    mut keys: Range<usize>,
    per_second: Option<usize>,
    write_put: impl Fn(usize, &mut Vec<u8>),
) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut answers = Answers::new(Protocol::Http);
    let (started, first) = (Instant::now(), keys.start);
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    while !keys.is_empty() {
        if let Some(per_second) = per_second {
            let due = Duration::from_secs_f64((keys.start - first) as f64 / per_second as f64);
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
        bytes.clear();
        let batch = keys.by_ref().take(FILL_BATCH);
        let sent = batch.map(|key| write_put(key, &mut bytes)).count();
        stream.write_all(&bytes)?;
        let mut answered = 0;
        while answered < sent {
            match stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => answered += answers.feed(&chunk[..count])?,
            }
        }
    }
    Ok(())
}

fn scrape_for(management: &str, duration: Duration) -> io::Result<()> {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        get(management, "/metrics")?;
        thread::sleep(SCRAPE_PAUSE);
    }
    Ok(())
}

fn post(management: &str, target: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(management)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let request = format!(
        "POST {target} HTTP/1.1\r\nHost: perf\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.starts_with("HTTP/1.1 2") {
        true => Ok(()),
        false => Err(io::Error::other(format!("{target}: {answer}"))),
    }
}

/// What a node says of its pieces of work.
#[derive(Default)]
struct Lengths {
    /// By kind: the longest, in ms, on the wall and of the CPU.
    kinds: Vec<(String, [f64; 2])>,
    /// How many had the CPU for too long, by kind.
    too_long: Vec<(String, u64)>,
    /// How late a timer came at worst, in ms.
    late: f64,
}

impl Lengths {
    fn of(management: &str) -> io::Result<Self> {
        let (_, metrics) = get(management, "/metrics")?;
        let value = |series: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(series));
            let value = line.and_then(|text| text.trim().parse::<f64>().ok());
            value.ok_or_else(|| io::Error::other(format!("the node has no {series}")))
        };
        let mut lengths = Self {
            late: 1e3 * value("hypercache_stall_max_seconds{core=\"0\"} ")?,
            ..Self::default()
        };
        const LONGEST_ON_THE_WALL: &str = "hypercache_work_longest_seconds{core=\"0\",work=\"";
        let kinds = metrics
            .lines()
            .filter_map(|line| line.strip_prefix(LONGEST_ON_THE_WALL));
        for kind in kinds.filter_map(|rest| rest.split('"').next()) {
            let wall = value(&format!("{LONGEST_ON_THE_WALL}{kind}\"}} "))?;
            let cpu = value(&format!(
                "hypercache_work_longest_cpu_seconds{{core=\"0\",work=\"{kind}\"}} "
            ))?;
            let long = value(&format!(
                "hypercache_work_long_total{{work=\"{kind}\",over=\"{LONGEST}\"}} "
            ))?;
            lengths
                .kinds
                .push((kind.to_owned(), [1e3 * wall, 1e3 * cpu]));
            lengths.too_long.push((kind.to_owned(), long as u64));
        }
        Ok(lengths)
    }

    /// How many pieces of which kinds were too long since then.
    fn too_long_since(&self, before: &Self) -> Vec<String> {
        let was = |kind: &str| {
            let mut kinds = before.too_long.iter();
            let known = kinds.find(|(name, _)| name == kind);
            known.map_or(0, |(_, count)| *count)
        };
        let new = self.too_long.iter().filter_map(|(kind, count)| {
            let new = count - was(kind);
            (new > 0).then(|| format!("{new} ({kind})"))
        });
        new.collect()
    }

    /// The kind whose longest piece is the longest, and how long that is; none that was there
    /// before.
    fn longest(&self, which: usize, before: &Self) -> Option<(&str, f64)> {
        let was = |kind: &str| {
            let mut kinds = before.kinds.iter();
            let known = kinds.find(|(name, _)| name == kind);
            known.map_or(0.0, |(_, lengths)| lengths[which])
        };
        let kinds = self
            .kinds
            .iter()
            .map(|(kind, lengths)| (&**kind, lengths[which]));
        let new = kinds.filter(|(kind, length)| *length > was(kind));
        new.max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// What a circumstance came to on one node.
struct Row {
    circumstance: Circumstance,
    node: &'static str,
    before: Lengths,
    after: Lengths,
}

impl Row {
    /// Prints it; whether no piece of work was too long.
    fn print(&self, seen: Option<(&Timed, &Timed)>) -> bool {
        let longest = |which| match self.after.longest(which, &self.before) {
            Some((kind, ms)) => format!("{ms:.2} ({kind})"),
            None => "no longer than before".to_owned(),
        };
        let too_long = self.after.too_long_since(&self.before);
        let kept = too_long.is_empty();
        let too_long = match kept {
            true => "none".to_owned(),
            false => format!("{}, **missed**", too_long.join(", ")),
        };
        let slowest = |timed: &Timed| timed.latency_ns.quantile(0.999) as f64 / 1e3;
        let noticed = match seen {
            None => "| | | ".to_owned(),
            Some((quiet, busy)) => {
                let late = busy.late_ns.quantile(0.999) as f64 / 1e3;
                let (quiet, busy) = (slowest(quiet), slowest(busy));
                let ratio = busy / quiet;
                let verdict = if ratio > SLOWER_MAX {
                    ", **missed**"
                } else {
                    ""
                };
                format!("{quiet:.0} | {busy:.0} | {ratio:.2}{verdict} | {late:.0}")
            }
        };
        println!(
            "| {} | {} | {} | {} | {too_long} | {:.2} | {noticed} |",
            self.circumstance.name(),
            self.node,
            longest(1),
            longest(0),
            self.after.late,
        );
        kept
    }
}
