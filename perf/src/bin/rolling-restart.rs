//! Restarts five nodes in turn, as Kubernetes does it for a new image, under a load that
//! checks every answer, and prints what it cost and what clients noticed of it.
//!
//! `./perf/rolling-restart [keys] [requests/s] [clients]`; values have 100 bytes. Ends with
//! a failure when anything is lost, resurrected or not done by the second node asked.
//! `HYPERCACHE_` settings in the environment go to all nodes.

use std::io;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use hypercache_perf::checked::{Clients, Workload};
use hypercache_perf::report::{exit_code, print_machine};
use hypercache_perf::servers::{Cluster, await_healthy, build, id};

const NODES: usize = 5;

/// How long the load runs before the first restart and after the last one.
const CALM: Duration = Duration::from_secs(2);

/// How long a node may take to end.
const END_MAX: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    exit_code(run())
}

/// Whether every promise was kept.
fn run() -> io::Result<bool> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u32>());
    let keys = args.next().and_then(Result::ok).unwrap_or(1_000_000) as usize;
    let requests_per_second = args.next().and_then(Result::ok).unwrap_or(4_000);
    let clients = args.next().and_then(Result::ok).unwrap_or(16) as usize;
    build(&["--bin", "hypercache"])?;
    print_machine(&["rustc"]);
    let mut cluster = Cluster::start(NODES, &[], &[])?;
    let addresses: Vec<String> = cluster.addresses.iter().map(|a| a.api.clone()).collect();
    let workload = Workload {
        keys,
        written: keys / 10,
        value_bytes: 100,
        clients,
        requests_per_second,
        patience: Duration::from_secs(5),
        seed: 7,
    };
    let clients = Clients::start(workload, &addresses)?;
    std::thread::sleep(CALM);

    let mut traffic = Traffic::begin(&cluster);
    let began = Instant::now();
    println!(
        "\n| node | drain s | bootstrap s | items | items/s | received by then | timeouts |\n\
         |---|---|---|---|---|---|---|"
    );
    for node in 0..NODES {
        restart(&mut cluster, node, &mut traffic)?;
    }
    let took = began.elapsed();
    let (sent, received) = traffic.end(&cluster);
    std::thread::sleep(CALM);
    let report = clients.finish()?;

    println!("\n| {keys} keys, {requests_per_second} requests/s at most | |\n|---|---|");
    println!("| the whole restart | {:.1} s |", took.as_secs_f64());
    println!("| sent between nodes meanwhile, load included | {sent} |");
    println!("| received | {received} |");
    print!("{report}");
    Ok(report.findings.is_empty())
}

/// One node's turn: told to stop, waited for, started again empty, and waited for until it
/// is ready.
fn restart(cluster: &mut Cluster, node: usize, traffic: &mut Traffic) -> io::Result<()> {
    let told = Instant::now();
    cluster.node(node)?.signal(libc::SIGTERM);
    let status = await_end(cluster, node, traffic)?;
    let drained = told.elapsed();
    if !status.success() {
        return Err(io::Error::other(format!("{} ended, {status}", id(node))));
    }
    let started = Instant::now();
    cluster.launch(node)?;
    await_healthy(&cluster.addresses[node].management)?;
    let bootstrap = started.elapsed().as_secs_f64();
    let items = cluster.prometheus_of(node, "hypercache_items{")?;
    let received = Amount(cluster.metric_of(node, RECEIVED)?);
    let timeouts = cluster.metric_of(node, "BootstrapTimeouts")?.unwrap_or(0);
    println!(
        "| {} | {:.2} | {bootstrap:.2} | {items} | {:.0} | {received} | {timeouts} |",
        id(node),
        drained.as_secs_f64(),
        items as f64 / bootstrap,
    );
    Ok(())
}

fn await_end(cluster: &mut Cluster, node: usize, traffic: &mut Traffic) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + END_MAX;
    loop {
        traffic.observe(cluster, node);
        if let Some(status) = cluster.node(node)?.child.try_wait()? {
            traffic.ended(node);
            return Ok(status);
        }
        if Instant::now() >= deadline {
            let what = format!("{} does not end at SIGTERM", id(node));
            return Err(io::Error::other(what));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

const SENT: &str = "PeerBytesSent";
const RECEIVED: &str = "PeerBytesReceived";

/// What nodes send each other from one moment to another. A node's counters end with its
/// process: what it counted last is what was seen while it drained.
struct Traffic {
    /// Of processes that have ended.
    past: [Amount; 2],
    /// What each node counted when this began: nothing, if it started later.
    before: Vec<[Amount; 2]>,
    /// What it counted last.
    last: Vec<[Amount; 2]>,
}

impl Traffic {
    fn begin(cluster: &Cluster) -> Self {
        let before: Vec<_> = (0..NODES).map(|node| counted(cluster, node)).collect();
        Self {
            past: [Amount(Some(0)); 2],
            last: before.clone(),
            before,
        }
    }

    /// Looks at a node that may end soon.
    fn observe(&mut self, cluster: &Cluster, node: usize) {
        if let now @ [Amount(Some(_)), Amount(Some(_))] = counted(cluster, node) {
            self.last[node] = now;
        }
    }

    fn ended(&mut self, node: usize) {
        self.past = self.with(node);
        self.before[node] = [Amount(Some(0)); 2];
        self.last[node] = self.before[node];
    }

    /// Sent and received.
    fn end(mut self, cluster: &Cluster) -> (Amount, Amount) {
        for node in 0..NODES {
            self.last[node] = counted(cluster, node);
            self.past = self.with(node);
        }
        let [sent, received] = self.past;
        (sent, received)
    }

    /// What has passed, a node's part added.
    fn with(&self, node: usize) -> [Amount; 2] {
        std::array::from_fn(|which| {
            let (before, last) = (self.before[node][which].0, self.last[node][which].0);
            let part = last.zip(before).map(|(last, before)| last - before);
            Amount(self.past[which].0.zip(part).map(|(past, part)| past + part))
        })
    }
}

fn counted(cluster: &Cluster, node: usize) -> [Amount; 2] {
    [SENT, RECEIVED].map(|name| Amount(cluster.metric_of(node, name).ok().flatten()))
}

/// Bytes, if the nodes count them.
#[derive(Clone, Copy)]
struct Amount(Option<u64>);

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{:.1} MB", bytes as f64 / 1e6),
            None => f.write_str("unknown"),
        }
    }
}
