//! What reading and writing at a level costs on three nodes that have three copies of each key,
//! and how long clients wait for it.
//!
//! `cargo run --release -p hypercache-perf --bin quorum -- [--rounds n] [--seconds n]
//! [--no-build]`
//!
//! All nodes share CPU 0, the load has CPU 1: what is compared is work. Requests go to all
//! nodes alike; each of them owns each key. Levels are the defaults of the nodes: one cluster
//! reads at ONE, the other at QUORUM, and the one that is not measured is stopped.
//!
//! Each round goes over all operations in a closed loop, plain and 16 pipelined; then rounds at
//! fixed rates (`open_loop`) follow, at shares of what the closed loop reached without
//! pipelining. It ends with a failure when frames carry too few operations, when a read at
//! QUORUM costs more than it may beside one at ONE, or when a rate was not kept up with.

use std::cell::Cell;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use hypercache_perf::open_loop::Timed;
use hypercache_perf::options::read_numbers;
use hypercache_perf::report::{Rounds, exit_code, print_machine, print_target};
use hypercache_perf::servers::{Cluster, Server, build};
use hypercache_perf::{Load, pin};

/// Shares of the closed loop's operations/s at which latency is measured.
const SHARES: [f64; 3] = [0.2, 0.45, 0.7];

/// The share of what is due that has to be answered in time.
const ANSWERED_MIN: f64 = 0.98;

/// Operations that share a request between peers, at least, in a closed loop.
const GROUPED_MIN: f64 = 4.0;

/// What a read at QUORUM may cost, to one at ONE, without pipelining.
const QUORUM_READ_MAX: f64 = 3.0;

/// What nodes count is published ten times a second.
const PUBLISHED: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    exit_code(run())
}

/// Which cluster an operation goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    One,
    Quorum,
}

struct Case {
    name: &'static str,
    level: Level,
    put_percent: u32,
    pipeline: usize,
    cpu_us: Rounds,
    per_s: Rounds,
    /// Operations per request between peers; empty if there were none.
    grouped: Rounds,
}

impl Case {
    fn all() -> Vec<Self> {
        let operations = [
            ("ONE GET", Level::One, 0),
            ("QUORUM GET", Level::Quorum, 0),
            ("QUORUM PUT", Level::Quorum, 100),
        ];
        let pipelined = operations.iter().flat_map(|&(name, level, put_percent)| {
            [1, 16].map(|pipeline| Self {
                name,
                level,
                put_percent,
                pipeline,
                cpu_us: Rounds::default(),
                per_s: Rounds::default(),
                grouped: Rounds::default(),
            })
        });
        pipelined.collect()
    }
}

/// Latencies of one operation at one rate.
struct AtRate {
    case: usize,
    per_s: u32,
    answered: Rounds,
    unanswered: Rounds,
    percentiles_us: [Rounds; 3],
    late_us: Rounds,
    waited: Rounds,
}

const PERCENTILES: [f64; 3] = [0.5, 0.99, 0.999];

struct Options {
    rounds: u64,
    seconds: f64,
    builds: bool,
}

impl Options {
    fn read() -> io::Result<Self> {
        let mut options = Self {
            rounds: 5,
            seconds: 2.0,
            builds: true,
        };
        let is_positive = |number: &f64| *number > 0.0;
        options.builds = read_numbers(is_positive, |name, number| {
            match name {
                "--rounds" => options.rounds = number as u64,
                "--seconds" => options.seconds = number,
                _ => return false,
            }
            true
        })?;
        Ok(options)
    }
}

/// How long nodes have, after they stood still, to find that what they waited for is overdue, and
/// to try their peers again.
const RECOVERY: Duration = Duration::from_millis(500);

/// Both clusters, of which one runs at a time.
struct Clusters {
    one: Cluster,
    quorum: Cluster,
    /// Which one that is, once one has been stopped.
    running: Cell<Option<Level>>,
}

impl Clusters {
    fn start() -> io::Result<Self> {
        let start = |level| Cluster::start(3, &[("HYPERCACHE_READ_CONSISTENCY", level)], &[0]);
        Ok(Self {
            one: start("ONE")?,
            quorum: start("QUORUM")?,
            running: Cell::new(None),
        })
    }

    /// Has the cluster of a level run, and the other stand still.
    fn run_only(&self, level: Level) -> io::Result<&Cluster> {
        let (running, still) = match level {
            Level::One => (&self.one, &self.quorum),
            Level::Quorum => (&self.quorum, &self.one),
        };
        if self.running.replace(Some(level)) == Some(level) {
            return Ok(running);
        }
        let all = |cluster: &Cluster, signal| {
            let nodes = cluster.nodes.iter().flatten();
            nodes.for_each(|node: &Server| node.signal(signal));
        };
        all(still, libc::SIGSTOP);
        all(running, libc::SIGCONT);
        std::thread::sleep(RECOVERY);
        running.await_ready()?;
        Ok(running)
    }

    fn load(&self, case: &Case, duration: Duration) -> io::Result<Load> {
        let cluster = self.run_only(case.level)?;
        let nodes = cluster.addresses.iter();
        Ok(Load {
            targets: nodes.map(|node| node.api.clone()).collect(),
            put_percent: case.put_percent,
            pipeline: case.pipeline,
            duration,
            ..Load::default()
        })
    }
}

fn run() -> io::Result<bool> {
    let options = Options::read()?;
    if options.builds {
        build(&["--bin", "hypercache"])?;
    }
    print_machine(&["rustc"]);
    // On a thread of its own: it binds itself to a CPU, and what is started later would
    // inherit that.
    let measured = std::thread::spawn(move || measure(&options));
    let measured = measured.join();
    measured.unwrap_or_else(|_| Err(io::Error::other("the measurement panicked")))
}

fn measure(options: &Options) -> io::Result<bool> {
    let duration = Duration::from_secs_f64(options.seconds);
    let clusters = Clusters::start()?;
    pin(1);
    let mut cases = Case::all();
    for level in [Level::One, Level::Quorum] {
        let first = cases.iter().find(|case| case.level == level);
        first.map_or(Ok(()), |case| clusters.load(case, duration)?.preload())?;
    }
    for _ in 0..options.rounds {
        for case in &mut cases {
            measure_closed(&clusters, case, duration)?;
        }
    }
    let plain = cases.iter().enumerate();
    let plain = plain.filter(|(_, case)| case.pipeline == 1);
    let mut rates: Vec<AtRate> = plain
        .flat_map(|(index, case)| {
            let most = case.per_s.median();
            SHARES.map(|share| {
                AtRate::new(index, ((most * share / 100.0).round() as u32).max(1) * 100)
            })
        })
        .collect();
    for _ in 0..options.rounds {
        for rate in &mut rates {
            let load = clusters.load(&cases[rate.case], duration)?;
            let pids = clusters.run_only(cases[rate.case].level)?.pids();
            let timed = load.measure_at(rate.per_s, &pids)?;
            rate.push(&timed);
        }
    }
    print_closed(&cases);
    print_rates(&cases, &rates);
    Ok(judge(&cases, &rates))
}

fn measure_closed(clusters: &Clusters, case: &mut Case, duration: Duration) -> io::Result<()> {
    let load = clusters.load(case, duration)?;
    let cluster = clusters.run_only(case.level)?;
    let sent = || {
        std::thread::sleep(PUBLISHED);
        let frames = cluster.metric("PeerFramesSent")?;
        Ok::<_, io::Error>((frames, cluster.metric("PeerOperationsSent")?))
    };
    let before = sent()?;
    let outcome = load.measure(&cluster.pids())?;
    let after = sent()?;
    case.cpu_us.push(outcome.server_cpu_us);
    case.per_s.push(outcome.requests as f64 / outcome.seconds);
    let (frames, operations) = (after.0 - before.0, after.1 - before.1);
    // A few are of the nodes' own doing.
    if operations > outcome.requests / 4 {
        case.grouped.push(operations as f64 / frames.max(1) as f64);
    }
    Ok(())
}

impl AtRate {
    fn new(case: usize, per_s: u32) -> Self {
        Self {
            case,
            per_s,
            answered: Rounds::default(),
            unanswered: Rounds::default(),
            percentiles_us: Default::default(),
            late_us: Rounds::default(),
            waited: Rounds::default(),
        }
    }

    fn push(&mut self, timed: &Timed) {
        let us = |ns: u64| ns as f64 / 1000.0;
        self.answered.push(timed.answered_per_s);
        self.unanswered.push(timed.unanswered as f64);
        for (rounds, share) in self.percentiles_us.iter_mut().zip(PERCENTILES) {
            rounds.push(us(timed.latency_ns.quantile(share)));
        }
        self.late_us.push(us(timed.late_ns.quantile(0.99)));
        self.waited.push(timed.server_waited);
    }

    fn is_kept_up(&self) -> bool {
        let answered = self.answered.median() / f64::from(self.per_s);
        answered >= ANSWERED_MIN && self.unanswered.median() == 0.0
    }
}

fn print_closed(cases: &[Case]) {
    println!(
        "\n| operation | pipelining | CPU us/operation, summed: median (min to max) | \
         operations/s | operations per peer request |\n|---|---|---|---|---|"
    );
    for case in cases {
        let grouped = match case.grouped.is_empty() {
            true => "none".to_owned(),
            false => format!("{:.1}", case.grouped.median()),
        };
        let cpu = &case.cpu_us;
        println!(
            "| {} | {} | {:.2} ({:.2} to {:.2}) | {:.0} | {grouped} |",
            case.name,
            case.pipeline,
            cpu.median(),
            cpu.min(),
            cpu.max(),
            case.per_s.median()
        );
    }
}

fn print_rates(cases: &[Case], rates: &[AtRate]) {
    println!(
        "\n| operation | due/s | answered/s | p50 us | p99 us | p99.9 us | sent late, p99 us | \
         waited for CPU, % |\n|---|---|---|---|---|---|---|---|"
    );
    for rate in rates {
        let [p50, p99, p999] = rate.percentiles_us.each_ref().map(|rounds| {
            let (median, min, max) = (rounds.median(), rounds.min(), rounds.max());
            format!("{median:.0} ({min:.0} to {max:.0})")
        });
        println!(
            "| {} | {} | {:.0} | {p50} | {p99} | {p999} | {:.0} | {:.1} |",
            cases[rate.case].name,
            rate.per_s,
            rate.answered.median(),
            rate.late_us.median(),
            rate.waited.median() * 100.0
        );
    }
}

/// Prints what was to be reached; true if all of it was.
fn judge(cases: &[Case], rates: &[AtRate]) -> bool {
    println!("\n| target | reached | bound |\n|---|---|---|");
    let mut kept = true;
    let mut print = |what: &str, reached: f64, bound: &str, met: bool| {
        kept &= met;
        print_target(what, reached, bound, met);
    };
    for case in cases.iter().filter(|case| case.level == Level::Quorum) {
        let what = format!(
            "operations per request between peers, {}, pipelining {}",
            case.name, case.pipeline
        );
        let grouped = case.grouped.median();
        print(&what, grouped, "more than 4", grouped > GROUPED_MIN);
    }
    let cost = |level| {
        let mut gets = cases.iter().filter(|case| case.put_percent == 0);
        let plain = gets.find(|case| case.level == level && case.pipeline == 1);
        plain.map_or(f64::NAN, |case| case.cpu_us.median())
    };
    let ratio = cost(Level::Quorum) / cost(Level::One);
    let what = "GET at QUORUM to GET at ONE, summed CPU";
    print(what, ratio, "at most 3", ratio <= QUORUM_READ_MAX);
    for rate in rates {
        let what = format!(
            "{} at {}/s: answered of what was due",
            cases[rate.case].name, rate.per_s
        );
        let answered = rate.answered.median() / f64::from(rate.per_s);
        print(
            &what,
            answered,
            "at least 0.98, none left out",
            rate.is_kept_up(),
        );
    }
    kept
}
