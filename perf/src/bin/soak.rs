//! Five nodes under random faults for a given time, and a load that checks every answer: a
//! node is killed or told to stop and starts again empty, or hangs for a while.
//!
//! `./perf/soak [seconds] [keys] [requests/s] [clients]`; values have 100 bytes. Ends with a
//! failure as soon as anything is lost, resurrected or not done by the second node asked, or
//! when a node's memory has grown at the end. The seed of the faults is printed;
//! `HC_SOAK_SEED` chooses the same faults, nodes and spans again. `HYPERCACHE_` settings in
//! the environment go to all nodes.
//!
//! There is one fault at a time: the next one waits until every node is ready, so that a
//! majority of the owners of every key has its data. What clients can expect then is what
//! docs/consistency.md promises with stable membership.
//!
//! The working set is constant: the same keys are overwritten and deleted. So memory must
//! not grow once the load has been everywhere: what is resident at the end is compared with
//! the most that was in the first fifth of the time. Whoever starts again gives back what it
//! leaked. So the first node is never restarted, it only hangs: it is the one whose memory
//! tells.

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use hypercache_perf::checked::{Clients, Random, Workload};
use hypercache_perf::report::{exit_code, print_machine, print_target};
use hypercache_perf::servers::{Cluster, build, id};

const NODES: usize = 5;

/// The node that lives as long as the cluster.
const ELDEST: usize = 0;

/// How much memory a node may have at the end, to the most in the first fifth of the time.
const GROWTH_MAX: f64 = 1.3;

/// How long a node that was told to stop may take to end.
const END_MAX: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    exit_code(run())
}

/// Whether every promise was kept and memory has not grown.
fn run() -> io::Result<bool> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u32>());
    let seconds = args.next().and_then(Result::ok).unwrap_or(600);
    let keys = args.next().and_then(Result::ok).unwrap_or(100_000) as usize;
    let requests_per_second = args.next().and_then(Result::ok).unwrap_or(4_000);
    let clients = args.next().and_then(Result::ok).unwrap_or(16) as usize;
    let seed = seed()?;
    build(&["--bin", "hypercache"])?;
    print_machine(&["rustc"]);
    println!("HC_SOAK_SEED={seed}");
    let mut cluster = Cluster::start(NODES, &[], &[])?;
    let addresses: Vec<String> = cluster.addresses.iter().map(|a| a.api.clone()).collect();
    let workload = Workload {
        keys,
        written: keys,
        value_bytes: 100,
        clients,
        requests_per_second,
        patience: Duration::from_secs(2),
        seed,
    };
    let clients = Clients::start(workload, &addresses)?;
    let mut memory = Memory::default();
    let (began, mut random) = (Instant::now(), Random::new(seed));
    memory.sample(&cluster, began)?;
    let mut faults = 0;
    while began.elapsed() < Duration::from_secs(seconds.into()) && clients.findings() == 0 {
        let fault = Fault::choose(&mut random);
        let at = began.elapsed().as_secs_f64();
        fault.happen(&mut cluster, &clients)?;
        let took = began.elapsed().as_secs_f64() - at;
        println!("{at:8.1} s  {fault}; all were ready {took:.1} s later");
        std::thread::sleep(fault.calm);
        memory.sample(&cluster, began)?;
        faults += 1;
    }
    let report = clients.finish()?;
    println!(
        "\n| {faults} faults in {:.0} s, seed {seed} | |",
        began.elapsed().as_secs_f64()
    );
    print!("|---|---|\n{report}");
    let grown = memory.print();
    Ok(report.findings.is_empty() && !grown)
}

/// The one in `HC_SOAK_SEED`, or one by the clock.
fn seed() -> io::Result<u64> {
    match std::env::var("HC_SOAK_SEED") {
        Ok(text) => text
            .parse()
            .map_err(|_| io::Error::other(format!("HC_SOAK_SEED={text}: expected a number"))),
        Err(_) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            Ok(now.map_err(io::Error::other)?.as_millis() as u64)
        }
    }
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It crashes, and starts again after a while.
    Killed,
    /// It is told to stop, and starts again a while after it has ended.
    Told,
    /// It does nothing for a while.
    Hangs,
}

/// One disturbance; nothing in it depends on how the nodes take it.
#[derive(Clone, Copy, Debug)]
struct Fault {
    node: usize,
    how: How,
    /// How long the node is gone or hangs.
    span: Duration,
    /// How long all is well afterwards.
    calm: Duration,
}

impl Fault {
    fn choose(random: &mut Random) -> Self {
        let node = random.below(NODES);
        let how = match random.below(3) {
            0 if node != ELDEST => How::Killed,
            1 if node != ELDEST => How::Told,
            _ => How::Hangs,
        };
        // Shorter than it takes to be found dead as often as longer.
        let span_ms = 100 << random.below(7);
        Self {
            node,
            how,
            span: Duration::from_millis((span_ms + random.below(span_ms)) as u64),
            calm: Duration::from_millis(random.below(1_000) as u64),
        }
    }

    /// Returns when all nodes are ready again.
    fn happen(&self, cluster: &mut Cluster, clients: &Clients) -> io::Result<()> {
        let &Self { node, span, .. } = self;
        match self.how {
            How::Killed => {
                cluster.nodes[node] = None;
                std::thread::sleep(span);
                cluster.launch(node)?;
            }
            How::Told => {
                cluster.node(node)?.signal(libc::SIGTERM);
                await_end(cluster, node)?;
                std::thread::sleep(span);
                cluster.launch(node)?;
            }
            How::Hangs => {
                cluster.node(node)?.signal(libc::SIGSTOP);
                // Who has asked it waits in vain; the others are sent elsewhere, as a load
                // balancer does it.
                clients.set_in_service(node, false);
                std::thread::sleep(span);
                cluster.node(node)?.signal(libc::SIGCONT);
            }
        }
        cluster.await_ready()?;
        clients.set_in_service(node, true);
        Ok(())
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self.how {
            How::Killed => "killed, gone for",
            How::Told => "told to stop, gone for",
            How::Hangs => "hung for",
        };
        let span = self.span.as_secs_f64();
        write!(f, "{} {how} {span:.1} s", id(self.node))
    }
}

fn await_end(cluster: &mut Cluster, node: usize) -> io::Result<()> {
    let deadline = Instant::now() + END_MAX;
    loop {
        match cluster.node(node)?.child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(io::Error::other(format!("{} ended, {status}", id(node))));
            }
            None if Instant::now() >= deadline => {
                let what = format!("{} does not end at SIGTERM", id(node));
                return Err(io::Error::other(what));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Resident memory of each node, in KiB, by the second it was seen at: first when all keys
/// were stored, then after each fault.
#[derive(Default)]
struct Memory(Vec<(f64, Vec<f64>)>);

impl Memory {
    fn sample(&mut self, cluster: &Cluster, began: Instant) -> io::Result<()> {
        let nodes = cluster.pids().into_iter().map(resident_kib);
        let nodes = nodes.collect::<io::Result<Vec<_>>>()?;
        self.0.push((began.elapsed().as_secs_f64(), nodes));
        Ok(())
    }

    /// Whether a node has grown beyond the bound.
    fn print(&self) -> bool {
        let (Some((_, stored)), Some((end, last))) = (self.0.first(), self.0.last()) else {
            return false;
        };
        let (early, late): (Vec<_>, Vec<_>) = self.0.iter().partition(|(at, _)| *at < end / 5.0);
        let mut grown = false;
        println!(
            "\n| resident memory at the end, to the most in the first fifth of the time \
             | reached | bound |\n|---|---|---|"
        );
        for node in 0..NODES {
            let most = early.iter().map(|(_, kib)| kib[node]);
            let most = most.fold(stored[node], f64::max);
            let points: Vec<_> = late.iter().map(|(at, kib)| (*at, kib[node])).collect();
            let what = format!(
                "{}: {:.1} MiB when all was stored, at most {:.1} then, {:.1} at the end, \
                 {:+.2} MiB/min since",
                id(node),
                stored[node] / 1024.0,
                most / 1024.0,
                last[node] / 1024.0,
                slope(&points) * 60.0 / 1024.0
            );
            let ratio = last[node] / most;
            grown |= ratio > GROWTH_MAX;
            let bound = format!("at most {GROWTH_MAX}");
            print_target(&what, ratio, &bound, ratio <= GROWTH_MAX);
        }
        grown
    }
}

/// The slope of the line that fits the points best, by least squares; 0 without two.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let products = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y));
    let squares = points.iter().map(|(x, _)| (x - mean_x).powi(2));
    match squares.sum::<f64>() {
        0.0 => 0.0,
        squares => products.sum::<f64>() / squares,
    }
}

fn resident_kib(pid: u32) -> io::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.ok_or_else(|| io::Error::other(format!("process {pid} has no VmRSS")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_of_a_line_is_its_own() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), 2.0);
        assert_eq!(slope(&[(1.0, 3.0)]), 0.0);
        assert_eq!(slope(&[]), 0.0);
    }
}
