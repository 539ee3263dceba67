//! Shows where a node spends its time: `perf/profile --help`. docs/profiling.md tells how to
//! read what it draws.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use hypercache_perf::Load;
use hypercache_perf::peers::Scenario;
use hypercache_perf::pin;
use hypercache_perf::profiling::{Profile, View, count_all};
use hypercache_perf::report::exit_code;
use hypercache_perf::servers::node_of;

const HELP: &str = "\
Shows where a node spends its time.

  perf/profile cpu [options]        a flamegraph of processor time
  perf/profile off-cpu [options]    flamegraphs of where threads leave their CPUs: for how
                                    long, and how often
  perf/profile instructions         instructions per request on the hot path, by callgrind

Options:
  --scenario name   what the node is asked meanwhile (perf/profile cpu --list) [get]
  --seconds s       how long to record [5]
  --cores n         cores of the node: the first on CPU 0, the load on CPU 1 [1]
  --driver name     auto, io_uring or epoll [auto]
  --pid n           record this process, and put no load on it
  --out directory   where files go [target/profiles]
";

/// How long the load goes on beyond the recording, which takes a moment to begin.
const MARGIN: Duration = Duration::from_secs(2);

const SECONDS_MAX: f64 = 3600.0;

/// What is to be recorded, and how.
struct Options {
    scenario: &'static Scenario,
    duration: Duration,
    cores: usize,
    driver: String,
    pid: Option<u32>,
    directory: PathBuf,
    /// The build of the node, or of the bench.
    binary: Option<PathBuf>,
}

enum Task {
    Print(String),
    Record(View),
    Count,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok((Task::Print(text), _)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok((Task::Record(view), options)) => exit_code(record(view, &options).map(|()| true)),
        Ok((Task::Count, options)) => exit_code(count(&options).map(|()| true)),
        Err(error) => {
            eprintln!("{error}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(Task, Options), String> {
    let mut task = match arguments.next().as_deref() {
        Some("cpu") => Task::Record(View::Cpu),
        Some("off-cpu") => Task::Record(View::OffCpu),
        Some("instructions") => Task::Count,
        Some("--help") | None => Task::Print(HELP.to_owned()),
        Some(other) => return Err(format!("{other} is none of cpu, off-cpu and instructions")),
    };
    let mut options = Options {
        scenario: Scenario::named("get").ok_or("no scenario")?,
        duration: Duration::from_secs(5),
        cores: 1,
        driver: "auto".to_owned(),
        pid: None,
        directory: PathBuf::from("target/profiles"),
        binary: None,
    };
    while let Some(option) = arguments.next() {
        let mut value = || {
            let value = arguments.next();
            value.ok_or_else(|| format!("{option} takes a value"))
        };
        let number = |text: String| {
            let number = text.parse::<u32>().ok().filter(|&number| number > 0);
            number.ok_or_else(|| format!("{text} is no number above 0"))
        };
        match option.as_str() {
            "--scenario" => {
                let name = value()?;
                options.scenario =
                    Scenario::named(&name).ok_or_else(|| format!("{name} is no scenario"))?;
            }
            "--seconds" => options.duration = seconds(&value()?)?,
            "--cores" => options.cores = number(value()?)? as usize,
            "--driver" => options.driver = value()?,
            "--pid" => options.pid = Some(number(value()?)?),
            "--out" => options.directory = value()?.into(),
            "--binary" => options.binary = Some(value()?.into()),
            "--list" => task = Task::Print(list()),
            "--help" => task = Task::Print(HELP.to_owned()),
            _ => return Err(format!("{option} is no option")),
        }
    }
    Ok((task, options))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    seconds
        .filter(|seconds| (0.1..=SECONDS_MAX).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("{text}: seconds are a number from 0.1 to {SECONDS_MAX}"))
}

fn list() -> String {
    let scenarios = hypercache_perf::peers::SCENARIOS.iter();
    scenarios
        .map(|scenario| format!("  {:<18} {}\n", scenario.name, scenario.describe()))
        .collect()
}

fn record(view: View, options: &Options) -> io::Result<()> {
    std::fs::create_dir_all(&options.directory)?;
    let kind = match view {
        View::Cpu => "cpu",
        View::OffCpu => "off-cpu",
    };
    let start = |pid| Profile::start(view, pid, options.duration, &options.directory);
    let (name, what, profile) = match options.pid {
        Some(pid) => {
            let profile = start(pid)?;
            (format!("{kind}-{pid}"), format!("process {pid}"), profile)
        }
        None => {
            let scenario = options.scenario;
            let profile = under_load(options, start)?;
            (
                format!("{kind}-{}", scenario.name),
                scenario.describe(),
                profile,
            )
        }
    };
    let subtitle = format!("{what}; {}", profile.event());
    for (path, what) in profile.draw(&name, &subtitle)? {
        println!("{what}: {}", path.display());
    }
    Ok(())
}

/// Begins to record a node of our own, and drives it until some time after the recording.
fn under_load(
    options: &Options,
    start: impl Fn(u32) -> io::Result<Profile>,
) -> io::Result<Profile> {
    pin(1);
    let binary = needed(options)?;
    let server = node_of(binary, options.cores, &options.driver, &[])?;
    let load = Load {
        targets: vec![server.address.clone()],
        duration: options.duration + MARGIN,
        ..options.scenario.load()
    };
    load.preload()?;
    let profile = start(server.pid())?;
    let pids = [server.pid()];
    match options.scenario.rates.first() {
        Some(&Some(rate)) => {
            let timed = load.measure_at(rate, &pids)?;
            println!("{:.0} requests/s", timed.answered_per_s);
        }
        _ => {
            let outcome = load.measure(&pids)?;
            println!(
                "{:.0} requests/s, {:.3} us of server CPU each, recording included",
                outcome.requests as f64 / outcome.seconds,
                outcome.server_cpu_us
            );
        }
    }
    Ok(profile)
}

fn needed(options: &Options) -> io::Result<&Path> {
    let binary = options.binary.as_deref();
    binary.ok_or_else(|| io::Error::other("--binary: which build? perf/profile names it"))
}

fn count(options: &Options) -> io::Result<()> {
    std::fs::create_dir_all(&options.directory)?;
    let counts = count_all(needed(options)?, &options.directory)?;
    println!("| case | instructions per request |\n|---|---|");
    for count in counts {
        println!("| {} | {:.1} |", count.case, count.per_request);
    }
    println!(
        "\nBy function: callgrind_annotate {}/callgrind.out.CASE",
        options.directory.display()
    );
    Ok(())
}
