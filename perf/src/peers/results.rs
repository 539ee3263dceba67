//! What was measured: kept as it goes into the JSON file, and printed as Markdown.

use std::fmt::Write;

use serde::Serialize;

use super::scenarios::Scenario;
use crate::report::Rounds;

/// One figure over the rounds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Summary {
    /// The middle value.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Summary {
    pub(super) fn of(rounds: &Rounds) -> Self {
        Self {
            median: rounds.median(),
            min: rounds.min(),
            max: rounds.max(),
        }
    }

    fn text(&self, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}

/// What it was measured on.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    processor: String,
    processors: usize,
    kernel: String,
    compiler: String,
    load_average_before: String,
    pub(super) load_average_after: String,
}

impl Machine {
    pub(super) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let processor = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown processor", |(_, name)| name);
        let compiler = std::process::Command::new("rustc")
            .arg("--version")
            .output();
        let compiler = compiler.map(|output| output.stdout).unwrap_or_default();
        Self {
            processor: processor.to_owned(),
            processors: cpuinfo.matches("processor\t").count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            compiler: String::from_utf8_lossy(&compiler).trim().to_owned(),
            load_average_before: load_average(),
            load_average_after: String::new(),
        }
    }
}

/// Of the last one, five and fifteen minutes.
pub(super) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// A server that was to be measured.
#[derive(Debug, Serialize)]
pub struct Facts {
    /// Its name.
    pub server: &'static str,
    /// What it says of its version.
    pub version: Option<String>,
    /// Why it is not measured.
    pub missing: Option<String>,
}

/// A closed loop on one server.
#[derive(Debug, Serialize)]
pub struct Closed {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The server's name.
    pub server: &'static str,
    /// Answers per second.
    pub requests_per_s: Summary,
    /// Processor time of the server, all its threads, in microseconds per request.
    pub server_cpu_us: Summary,
    /// That of each round to what the first server took just before.
    pub server_cpu_to_first: Summary,
    /// For what share of the time the server's threads were kept from running by others.
    pub server_waited_percent: Summary,
}

/// A fixed rate on one server. Latencies are microseconds from when a request was due, each
/// percentile that of one round.
#[derive(Debug, Serialize)]
pub struct Open {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The server's name.
    pub server: &'static str,
    /// Requests due per second.
    pub offered_per_s: u32,
    /// Answers per second.
    pub answered_per_s: Summary,
    /// As in a closed loop.
    pub server_cpu_us: Summary,
    /// As in a closed loop.
    pub server_waited_percent: Summary,
    /// Half of the requests took at most this.
    pub p50_us: Summary,
    /// 99 of a hundred.
    pub p99_us: Summary,
    /// 999 of a thousand.
    pub p999_us: Summary,
    /// All.
    pub max_us: Summary,
    /// How late the load generator itself was in sending, for 99 of a hundred.
    pub late_p99_us: Summary,
    /// Requests without an answer when the round was over.
    pub unanswered: Summary,
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    /// Of each measurement.
    pub(super) seconds: f64,
    /// All servers that were asked for.
    pub servers: Vec<Facts>,
    pub(super) scenarios: Vec<&'static Scenario>,
    /// Closed loops.
    pub closed: Vec<Closed>,
    /// Fixed rates.
    pub open: Vec<Open>,
}

impl Report {
    /// All tables.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let machine = &self.machine;
        writeln!(
            out,
            "{} x {}, Linux {}, {}; load average {} before, {} after.",
            machine.processors,
            machine.processor,
            machine.kernel,
            machine.compiler,
            machine.load_average_before,
            machine.load_average_after
        )?;
        writeln!(
            out,
            "Servers on CPU 0, load on CPU 1. {} rounds of {} s: median (min to max).\n",
            self.rounds, self.seconds
        )?;
        for facts in &self.servers {
            let server = facts.server;
            match (&facts.version, &facts.missing) {
                (_, Some(why)) => writeln!(out, "- {server}: **missing** ({why})")?,
                (version, None) => {
                    writeln!(
                        out,
                        "- {server}: {}",
                        version.as_deref().unwrap_or_default()
                    )?;
                }
            }
        }
        for scenario in &self.scenarios {
            writeln!(out, "\n**{}**: {}\n", scenario.name, scenario.describe())?;
            match scenario.rates.is_empty() {
                true => self.write_closed(scenario, out)?,
                false => self.write_open(scenario, out)?,
            }
        }
        Ok(())
    }

    fn write_closed(&self, scenario: &Scenario, out: &mut String) -> std::fmt::Result {
        let rows = self.closed.iter();
        let rows: Vec<&Closed> = rows.filter(|row| row.scenario == scenario.name).collect();
        writeln!(
            out,
            "| server | requests/s | server CPU us/request | to the first row | waited for CPU, % |"
        )?;
        writeln!(out, "|---|---|---|---|---|")?;
        for row in rows {
            writeln!(
                out,
                "| {} | {} | {} | {} | {:.1} |",
                row.server,
                row.requests_per_s.text(0),
                row.server_cpu_us.text(3),
                row.server_cpu_to_first.text(2),
                row.server_waited_percent.median
            )?;
        }
        Ok(())
    }

    fn write_open(&self, scenario: &Scenario, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "| due/s | server | answered/s | p50 us | p99 us | p99.9 us | longest us | sent late, p99 us | server CPU us/request | waited for CPU, % |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|---|---|---|")?;
        for row in self.open.iter().filter(|row| row.scenario == scenario.name) {
            writeln!(
                out,
                "| {} | {} | {:.0} | {:.0} | {} | {} | {:.0} | {:.0} | {:.3} | {:.1} |",
                row.offered_per_s,
                row.server,
                row.answered_per_s.median,
                row.p50_us.median,
                row.p99_us.text(0),
                row.p999_us.text(0),
                row.max_us.median,
                row.late_p99_us.median,
                row.server_cpu_us.median,
                row.server_waited_percent.median
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_shown_with_what_it_lay_between() {
        let mut rounds = Rounds::default();
        [3.0, 1.0, 2.0].into_iter().for_each(|v| rounds.push(v));
        assert_eq!(Summary::of(&rounds).text(1), "2.0 (1.0 to 3.0)");
    }
}
