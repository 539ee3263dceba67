//! What a cluster costs that nobody uses: heartbeats, anti-entropy and metrics of nodes that hold
//! data and have no clients.
//!
//! `cargo run --release -p hypercache-perf --bin at-rest -- [--keys n] [--nodes n] [--cores n]
//! [--seconds n] [--rounds n] [--settle n] [--no-build]`
//!
//! Fills five nodes (a million keys of 100 bytes, three copies of each), waits until they have
//! little to do any more, and then measures by turns: while nobody asks for anything, and while
//! `/metrics` of each node is read every 15 seconds, as Prometheus does, over a connection that
//! stays. Settings are the defaults, but for the number of cores. Processor time is that of all
//! threads, from `/proc/<pid>/task/*/schedstat`, wake-ups are their voluntary context switches.
//!
//! It ends with a failure when all nodes together took more than 0.5 % of one core.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use hypercache_perf::Load;
use hypercache_perf::options::read_numbers;
use hypercache_perf::report::{Rounds, exit_code, print_machine, print_target};
use hypercache_perf::servers::{Addresses, Cluster, build};

/// What all nodes together may take of one core, in per cent.
const PERCENT_MAX: f64 = 0.5;

/// How often a monitor reads the metrics.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(15);

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    exit_code(run())
}

struct Options {
    keys: usize,
    nodes: usize,
    cores: usize,
    seconds: u64,
    rounds: u64,
    settle: u64,
    builds: bool,
}

impl Options {
    fn read() -> io::Result<Self> {
        let mut options = Self {
            keys: 1_000_000,
            nodes: 5,
            cores: 1,
            seconds: 90,
            rounds: 2,
            settle: 90,
            builds: true,
        };
        options.builds = read_numbers(
            |_| true,
            |name, number: u64| {
                match name {
                    "--keys" => options.keys = number as usize,
                    "--nodes" => options.nodes = number.max(1) as usize,
                    "--cores" => options.cores = number.max(1) as usize,
                    "--seconds" => options.seconds = number.max(1),
                    "--rounds" => options.rounds = number.max(1),
                    "--settle" => options.settle = number,
                    _ => return false,
                }
                true
            },
        )?;
        Ok(options)
    }
}

/// What one node took while it was watched, or one of its threads in all nodes.
#[derive(Clone, Default)]
struct Figures {
    percent: Rounds,
    wakes: Rounds,
}

/// Both ways of resting.
#[derive(Default)]
struct Measured {
    nodes: Vec<Figures>,
    threads: BTreeMap<String, Figures>,
    sum: Figures,
}

fn run() -> io::Result<bool> {
    let options = Options::read()?;
    if options.builds {
        build(&["--bin", "hypercache"])?;
    }
    print_machine(&["rustc"]);
    let cores = options.cores.to_string();
    let cluster = Cluster::start(options.nodes, &[("HYPERCACHE_CORES", &cores)], &[])?;
    let load = Load {
        targets: vec![cluster.addresses[0].api.clone()],
        keys: (0..options.keys).collect(),
        ..Load::default()
    };
    load.preload()?;
    thread::sleep(Duration::from_secs(options.settle));
    let sessions = || cluster.metric("AutoSyncLoops");
    let (before, started) = (sessions()?, Instant::now());
    let window = Duration::from_secs(options.seconds);
    let mut alone = Measured::default();
    let mut scraped = Measured::default();
    for _ in 0..options.rounds {
        alone.add(&cluster, || {
            thread::sleep(window);
            Ok(())
        })?;
        scraped.add(&cluster, || scrape(&cluster.addresses, window))?;
    }
    let (sessions, took) = (sessions()? - before, started.elapsed());
    let percent = |figure: &Rounds| {
        let (median, min, max) = (figure.median(), figure.min(), figure.max());
        format!("{median:.3} ({min:.3} to {max:.3})")
    };
    println!(
        "\n{} nodes of {} cores at rest, {} keys; {} rounds of {} s; {sessions} comparisons of \
         replicas in {} s\n",
        options.nodes,
        options.cores,
        options.keys,
        options.rounds,
        options.seconds,
        took.as_secs()
    );
    println!("| node | % of a core | wake-ups/s | scraped, % of a core | wake-ups/s |");
    println!("|---|---|---|---|---|");
    let nodes = alone.nodes.iter().zip(&scraped.nodes).enumerate();
    let rows = nodes.map(|(index, both)| (format!("{}", index + 1), both));
    let threads = alone.threads.iter();
    let threads = threads.filter_map(|(name, figures)| {
        let both = (figures, scraped.threads.get(name)?);
        Some((format!("mean of all, thread {name}"), both))
    });
    let sum = [("all together".to_owned(), (&alone.sum, &scraped.sum))];
    for (what, (alone, scraped)) in rows.chain(threads).chain(sum) {
        println!(
            "| {what} | {} | {:.1} | {} | {:.1} |",
            percent(&alone.percent),
            alone.wakes.median(),
            percent(&scraped.percent),
            scraped.wakes.median()
        );
    }
    println!("\n| target | reached | bound |\n|---|---|---|");
    let mut kept = true;
    for (how, measured) in [("", &alone), (", scraped", &scraped)] {
        let reached = measured.sum.percent.median();
        let met = reached <= PERCENT_MAX;
        kept &= met;
        let what = format!("all nodes together{how}, % of one core");
        print_target(&what, reached, "at most 0.5", met);
    }
    Ok(kept)
}

impl Measured {
    /// Watches the nodes while something goes on, or nothing does.
    fn add(
        &mut self,
        cluster: &Cluster,
        meanwhile: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let pids = cluster.pids();
        let look = || pids.iter().map(|&pid| threads_of(pid)).collect();
        let (before, started): (io::Result<Vec<_>>, _) = (look(), Instant::now());
        meanwhile()?;
        let (after, seconds): (io::Result<Vec<_>>, _) = (look(), started.elapsed().as_secs_f64());
        let (before, after) = (before?, after?);
        self.nodes.resize(pids.len(), Figures::default());
        let mut all = Activity::default();
        let mut threads: BTreeMap<String, Activity> = BTreeMap::new();
        for (figures, (before, after)) in self.nodes.iter_mut().zip(before.iter().zip(&after)) {
            let mut node = Activity::default();
            for (thread, now) in after {
                let used = now.since(before.get(thread).copied().unwrap_or_default());
                node.add(used);
                threads.entry(thread.1.clone()).or_default().add(used);
            }
            figures.push(node, seconds);
            all.add(node);
        }
        self.sum.push(all, seconds);
        for (name, used) in threads.into_iter().filter(|(_, used)| used.wakes > 0) {
            let figures = self.threads.entry(name).or_default();
            figures.push(used, seconds * pids.len() as f64);
        }
        Ok(())
    }
}

impl Figures {
    fn push(&mut self, used: Activity, seconds: f64) {
        self.percent.push(used.ran_ns as f64 / 1e7 / seconds);
        self.wakes.push(used.wakes as f64 / seconds);
    }
}

/// What a thread has done so far.
#[derive(Clone, Copy, Default)]
struct Activity {
    ran_ns: u64,
    wakes: u64,
}

impl Activity {
    fn add(&mut self, more: Self) {
        self.ran_ns += more.ran_ns;
        self.wakes += more.wakes;
    }

    fn since(self, before: Self) -> Self {
        Self {
            ran_ns: self.ran_ns.saturating_sub(before.ran_ns),
            wakes: self.wakes.saturating_sub(before.wakes),
        }
    }
}

/// The threads of a process, by number and name.
fn threads_of(pid: u32) -> io::Result<BTreeMap<(String, String), Activity>> {
    let mut threads = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let (number, path) = {
            let task = task?;
            (task.file_name().to_string_lossy().into_owned(), task.path())
        };
        let read = |file: &str| std::fs::read_to_string(path.join(file));
        let (name, schedstat, status) = (read("comm")?, read("schedstat")?, read("status")?);
        let ran_ns = schedstat.split(' ').next();
        let mut lines = status.lines();
        let wakes = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let number_in = |text: Option<&str>| text.and_then(|text| text.trim().parse().ok());
        let (Some(ran_ns), Some(wakes)) = (number_in(ran_ns), number_in(wakes)) else {
            return Err(io::Error::other("/proc has another form"));
        };
        let thread = (number, name.trim().to_owned());
        threads.insert(thread, Activity { ran_ns, wakes });
    }
    Ok(threads)
}

/// Reads the metrics of all nodes again and again over connections that stay.
fn scrape(nodes: &[Addresses], window: Duration) -> io::Result<()> {
    let started = Instant::now();
    let mut connections = Vec::new();
    for node in nodes {
        let stream = TcpStream::connect(&node.management)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        connections.push(stream);
    }
    let mut due = Duration::ZERO;
    while due < window {
        thread::sleep(due.saturating_sub(started.elapsed()));
        connections.iter_mut().try_for_each(read_metrics)?;
        due += SCRAPE_INTERVAL;
    }
    thread::sleep(window.saturating_sub(started.elapsed()));
    Ok(())
}

fn read_metrics(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: perf\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&chunk[..count]);
        if is_whole(&answer)? {
            return Ok(());
        }
    }
}

/// Whether an answer with a length has arrived whole.
fn is_whole(answer: &[u8]) -> io::Result<bool> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(head_len) = answer.windows(END.len()).position(|at| at == END) else {
        return Ok(false);
    };
    let head = String::from_utf8_lossy(&answer[..head_len]);
    if !head.starts_with("HTTP/1.1 200") {
        return Err(io::Error::other(format!("metrics were refused: {head}")));
    }
    let mut lines = head.lines().map(str::to_ascii_lowercase);
    let length = lines.find_map(|line| {
        let length = line.strip_prefix("content-length:")?;
        length.trim().parse::<usize>().ok()
    });
    let length = length.ok_or_else(|| io::Error::other("metrics without a length"))?;
    Ok(answer.len() >= head_len + END.len() + length)
}
