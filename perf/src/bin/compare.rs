//! Compares two builds of the node: `perf/compare` makes them from two commits.
//!
//! `compare --nodes A B [--benches A B] [--scenarios a,b] [--rounds n] [--seconds s] [--driver d]`

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use hypercache_perf::comparing::{Comparison, Ratios};
use hypercache_perf::peers::Scenario;
use hypercache_perf::pin;
use hypercache_perf::profiling::{Count, count_all};
use hypercache_perf::report::{exit_code, print_machine};

/// What is measured unless told otherwise.
const SCENARIOS: &str = "get,get-p16,put,put-p16";

/// In fewer rounds equal nodes do not show by how much they can differ.
const ROUNDS_MIN: f64 = 5.0;

/// Builds of the bench `instructions`, where both commits have it.
type Benches = Option<[PathBuf; 2]>;

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok((comparison, scenarios, benches)) => {
            exit_code(compare(&comparison, &scenarios, benches.as_ref()).map(|()| true))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn parse(
    mut arguments: impl Iterator<Item = String>,
) -> Result<(Comparison, Vec<&'static Scenario>, Benches), String> {
    let (mut nodes, mut benches) = (None, None);
    let (mut names, mut driver) = (SCENARIOS.to_owned(), "auto".to_owned());
    let (mut rounds, mut seconds) = (11, 0.5);
    while let Some(option) = arguments.next() {
        let mut value = || {
            let value = arguments.next();
            value.ok_or_else(|| format!("{option}: a value is missing"))
        };
        match option.as_str() {
            "--nodes" => nodes = Some([value()?.into(), value()?.into()]),
            "--benches" => benches = Some([value()?.into(), value()?.into()]),
            "--scenarios" => names = value()?,
            "--driver" => driver = value()?,
            "--rounds" => rounds = number(&value()?, ROUNDS_MIN..=1000.0)? as u32,
            "--seconds" => seconds = number(&value()?, 0.05..=600.0)?,
            _ => return Err(format!("{option} is no option")),
        }
    }
    let comparison = Comparison {
        binaries: nodes.ok_or("--nodes: name two builds of the node")?,
        driver,
        rounds,
        duration: Duration::from_secs_f64(seconds),
    };
    let scenarios = names.split(',').map(scenario).collect::<Result<_, _>>()?;
    Ok((comparison, scenarios, benches))
}

fn number(text: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("{text} is not from {} to {}", range.start(), range.end()))
}

fn scenario(name: &str) -> Result<&'static Scenario, String> {
    let scenario = Scenario::named(name).filter(|scenario| scenario.rates.is_empty());
    scenario.ok_or_else(|| format!("{name} is no scenario of a closed loop"))
}

fn compare(
    comparison: &Comparison,
    scenarios: &[&'static Scenario],
    benches: Option<&[PathBuf; 2]>,
) -> io::Result<()> {
    pin(1);
    print_machine(&["rustc"]);
    println!(
        "{} rounds of {} s\n\n{}",
        comparison.rounds,
        comparison.duration.as_secs_f64(),
        Ratios::HEAD
    );
    for scenario in scenarios {
        let ratios = comparison.measure(scenario)?;
        println!("{}", ratios.row(scenario.name));
    }
    match benches {
        Some([first, second]) => compare_instructions(first, second),
        None => {
            println!("\nNo count of instructions: one of the two does not have the bench.");
            Ok(())
        }
    }
}

fn compare_instructions(first: &Path, second: &Path) -> io::Result<()> {
    let count = |bench: &Path| {
        let folder = bench.parent().unwrap_or(Path::new("."));
        count_all(bench, folder)
    };
    let (first, second) = (count(first)?, count(second)?);
    println!("\n| instructions per request | first | second | ratio |\n|---|---|---|---|");
    for Count { case, per_request } in &first {
        let Some(other) = second.iter().find(|other| other.case == *case) else {
            continue;
        };
        println!(
            "| {case} | {per_request:.1} | {:.1} | {:.4} |",
            other.per_request,
            other.per_request / per_request
        );
    }
    Ok(())
}
