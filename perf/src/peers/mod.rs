//! The node beside its peers: the same load on each of them in turn, on one core each.
//!
//! `fleet` knows the servers, `scenarios` what is asked of them, `options` what was chosen of
//! both, `results` keeps and prints what was measured, `picture` draws it.

mod fleet;
mod options;
mod picture;
mod results;
mod scenarios;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::load::{Load, pin};
use crate::report::Rounds;
use crate::servers::build;

pub use fleet::Peer;
pub use options::{Invocation, Options};
pub use results::{Closed, Facts, Open, Report, Summary};
pub use scenarios::{SCENARIOS, Scenario};

use fleet::Fleet;
use results::Machine;

/// Starts the servers and measures them by all chosen scenarios; what cannot be started is
/// named in the report and left out.
///
/// # Errors
///
/// When a server answers wrongly or not at all, or none can be started.
pub fn run(options: &Options) -> io::Result<Report> {
    if options.build {
        build(&["--bin", "hypercache"])?;
        build(&["-p", "hypercache-perf", "--bin", "floor", "--bin", "ring"])?;
    }
    raise_descriptor_limit();
    pin(1);
    let mut machine = Machine::read();
    let mut fleet = Fleet::default();
    let facts: Vec<Facts> = options
        .peers
        .iter()
        .map(|&peer| fleet.introduce(peer))
        .collect();
    let present: Vec<Peer> = facts
        .iter()
        .zip(&options.peers)
        .filter_map(|(facts, &peer)| facts.missing.is_none().then_some(peer))
        .collect();
    if present.is_empty() {
        return Err(io::Error::other("none of the servers can be started"));
    }
    let mut cases = Vec::new();
    for &scenario in &options.scenarios {
        for &rate in scenario.rates_or_none() {
            let asked = present.iter().filter(|peer| peer.can(scenario));
            cases.extend(asked.map(|&peer| Case::new(scenario, rate, peer)));
        }
    }
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for case in &mut cases {
            let place = format!("{}, {}", case.peer.name(), case.scenario.name);
            case.measure(&mut fleet, options.duration)
                .map_err(|error| io::Error::other(format!("{place}: {error}")))?;
        }
    }
    machine.load_average_after = results::load_average();
    let (open, closed): (Vec<Case>, Vec<Case>) =
        cases.into_iter().partition(|case| case.rate.is_some());
    Ok(Report {
        machine,
        rounds: options.rounds,
        seconds: options.duration.as_secs_f64(),
        servers: facts,
        scenarios: options.scenarios.clone(),
        closed: closed.iter().map(|case| case.closed(&closed)).collect(),
        open: open.iter().map(Case::open).collect(),
    })
}

/// One server under one scenario, at one rate or as fast as it can, and its figures by name.
struct Case {
    scenario: &'static Scenario,
    rate: Option<u32>,
    peer: Peer,
    figures: BTreeMap<&'static str, Rounds>,
}

impl Case {
    fn new(scenario: &'static Scenario, rate: Option<u32>, peer: Peer) -> Self {
        Self {
            scenario,
            rate,
            peer,
            figures: BTreeMap::new(),
        }
    }

    /// One round.
    fn measure(&mut self, fleet: &mut Fleet, duration: Duration) -> io::Result<()> {
        let scenario = self.scenario;
        let load = Load {
            protocol: self.peer.protocol(),
            duration,
            ..scenario.load()
        };
        let (load, pids) = fleet.prepare(self.peer, load)?;
        let mut push = |name, value| self.figures.entry(name).or_default().push(value);
        let Some(rate) = self.rate else {
            let outcome = load.measure(&pids)?;
            push("per_s", outcome.requests as f64 / outcome.seconds);
            push("cpu_us", outcome.server_cpu_us);
            push("waited_percent", 100.0 * outcome.server_waited);
            return Ok(());
        };
        let timed = load.measure_at(rate, &pids)?;
        let us = |ns: u64| ns as f64 / 1000.0;
        push("per_s", timed.answered_per_s);
        push("cpu_us", timed.server_cpu_us);
        push("waited_percent", 100.0 * timed.server_waited);
        push("p50_us", us(timed.latency_ns.quantile(0.5)));
        push("p99_us", us(timed.latency_ns.quantile(0.99)));
        push("p999_us", us(timed.latency_ns.quantile(0.999)));
        push("max_us", us(timed.latency_ns.max()));
        push("late_p99_us", us(timed.late_ns.quantile(0.99)));
        push("unanswered", timed.unanswered as f64);
        Ok(())
    }

    fn figure(&self, name: &str) -> Summary {
        self.figures.get(name).map(Summary::of).unwrap_or_default()
    }

    /// That of each round to what the first of these with the same scenario took.
    fn cpu_to_first(&self, cases: &[Self]) -> Rounds {
        let cpu_us = |case: &Self| case.figures.get("cpu_us").cloned().unwrap_or_default();
        let mut alike = cases
            .iter()
            .filter(|case| case.scenario.name == self.scenario.name);
        cpu_us(self).to(&alike.next().map(cpu_us).unwrap_or_default())
    }

    fn closed(&self, cases: &[Self]) -> Closed {
        Closed {
            scenario: self.scenario.name,
            server: self.peer.name(),
            requests_per_s: self.figure("per_s"),
            server_cpu_us: self.figure("cpu_us"),
            server_cpu_to_first: Summary::of(&self.cpu_to_first(cases)),
            server_waited_percent: self.figure("waited_percent"),
        }
    }

    fn open(&self) -> Open {
        Open {
            scenario: self.scenario.name,
            server: self.peer.name(),
            offered_per_s: self.rate.unwrap_or_default(),
            answered_per_s: self.figure("per_s"),
            server_cpu_us: self.figure("cpu_us"),
            server_waited_percent: self.figure("waited_percent"),
            p50_us: self.figure("p50_us"),
            p99_us: self.figure("p99_us"),
            p999_us: self.figure("p999_us"),
            max_us: self.figure("max_us"),
            late_p99_us: self.figure("late_p99_us"),
            unanswered: self.figure("unanswered"),
        }
    }
}

/// Lets this process and the servers it starts have as many connections as the system allows.
/// Where it allows too few, connecting fails and says so.
pub fn raise_descriptor_limit() {
    // SAFETY: both calls take a structure that outlives them.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
