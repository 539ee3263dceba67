//! Measures what being scraped costs a node that holds millions of items: how long a scrape
//! takes, and what a client that asks for one key after the other notices of ten scrapes a
//! second.
//!
//! `cargo run --release -p hypercache-perf --bin scrape [rounds] [seconds] [items]`

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hypercache_perf::report::{Rounds, print_machine, print_target};
use hypercache_perf::servers::{build, free_port, get, node_with};
use hypercache_perf::{Load, pin};

/// The longest that a scrape may take, in milliseconds.
const SCRAPE_MS_MAX: f64 = 10.0;

/// From the end of a scrape to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// How many keys the client asks for.
const KEYS_ASKED: usize = 10_000;

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let rounds = args.next().and_then(Result::ok).unwrap_or(5);
    let seconds = args.next().and_then(Result::ok).unwrap_or(5);
    let items = args.next().and_then(Result::ok).unwrap_or(5_000_000) as usize;
    build(&["--bin", "hypercache"])?;
    print_machine(&["rustc"]);
    let management = format!("127.0.0.1:{}", free_port()?);
    let setting = ("HYPERCACHE_MGMT_ADDR".to_owned(), management.clone());
    let server = node_with(1, "auto", &[setting])?;
    pin(1);
    fill(&server.address, items)?;
    let (_, metrics) = get(&management, "/metrics")?;
    let series = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .count();
    let held = number(&metrics, "hypercache_items{core=\"0\"} ");
    println!(
        "\n{held} items, {series} series, {} KiB a scrape",
        metrics.len() >> 10
    );

    let duration = Duration::from_secs(seconds);
    let mut scrapes = Rounds::default();
    let mut noticed = [(); 2].map(|()| [(); 3].map(|()| Rounds::default()));
    for round in 0..rounds {
        for turn in 0..2 {
            let scraped = (round + turn) % 2 == 1;
            let scraper = scraped.then(|| Scraper::start(management.clone()));
            let mut times = ask(&server.address, duration)?;
            if let Some(scraper) = scraper {
                for ms in scraper.stop()? {
                    scrapes.push(ms);
                }
            }
            times.sort_unstable();
            for (rounds, share) in noticed[usize::from(scraped)]
                .iter_mut()
                .zip([0.5, 0.99, 0.999])
            {
                let at = (times.len() as f64 * share) as usize;
                rounds.push(times[at.min(times.len() - 1)] as f64 / 1000.0);
            }
        }
    }

    println!("\n| a client's round trip, us | p50 | p99 | p99.9 |\n|---|---|---|---|");
    for (scraped, rounds) in noticed.iter().enumerate() {
        let name = ["not scraped", "scraped ten times a second"][scraped];
        let [half, most, nearly_all] = rounds.each_ref().map(Rounds::median);
        println!("| {name} | {half:.1} | {most:.1} | {nearly_all:.1} |");
    }
    println!("\n| target | reached | at most |\n|---|---|---|");
    let (median, worst) = (scrapes.median(), scrapes.max());
    print_target(
        "a scrape, ms, median",
        median,
        &format!("{SCRAPE_MS_MAX}"),
        median < SCRAPE_MS_MAX,
    );
    print_target(
        "the longest scrape, ms",
        worst,
        &format!("{SCRAPE_MS_MAX}"),
        worst < SCRAPE_MS_MAX,
    );
    println!(
        "| p99 while scraped, to p99 while not | {:.2} | |",
        noticed[1][1].median() / noticed[0][1].median()
    );
    Ok(())
}

fn number(metrics: &str, series: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Stores the keys from 0 on.
fn fill(address: &str, items: usize) -> io::Result<()> {
    let load = Load {
        targets: vec![address.to_owned()],
        keys: (0..items).collect(),
        ..Load::default()
    };
    load.preload()
}

/// Asks for one key after the other; returns how long each answer took, in nanoseconds.
fn ask(address: &str, duration: Duration) -> io::Result<Vec<u64>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (mut times, started) = (Vec::new(), Instant::now());
    let mut answer = [0; 1024];
    while started.elapsed() < duration {
        let key = times.len() % KEYS_ASKED;
        let request = format!("GET /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\n\r\n");
        let asked = Instant::now();
        stream.write_all(request.as_bytes())?;
        let count = stream.read(&mut answer)?;
        times.push(asked.elapsed().as_nanos() as u64);
        if !answer[..count].starts_with(b"HTTP/1.1 200 ") {
            return Err(io::Error::other("a key was not found"));
        }
    }
    Ok(times)
}

/// Scrapes as a monitor would, only more often.
struct Scraper {
    ends: Arc<AtomicBool>,
    thread: thread::JoinHandle<io::Result<Vec<f64>>>,
}

impl Scraper {
    fn start(management: String) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            let mut times = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let started = Instant::now();
                get(&management, "/metrics")?;
                times.push(started.elapsed().as_secs_f64() * 1000.0);
                thread::sleep(PAUSE);
            }
            Ok(times)
        });
        Self { ends, thread }
    }

    /// How long each scrape took, in milliseconds.
    fn stop(self) -> io::Result<Vec<f64>> {
        self.ends.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        joined.map_err(|_| io::Error::other("the scraper panicked"))?
    }
}
