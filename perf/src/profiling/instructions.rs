//! Instructions per request on the hot path, counted by callgrind.
//!
//! The program that is counted is the node's bench `instructions`: it names its cases, and runs
//! one with what is measured in a function of its own. The counts are of user code on one
//! thread, and the same each time: they tell two versions apart where the clock cannot. They
//! do not tell how long an instruction takes: a miss of the cache counts as much as an addition.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The bench that is counted.
pub const CASES_BENCH: &str = "instructions";

/// Inside of which function is counted.
const MEASURED: &str = "*hypercache_measured*";

/// Requests of each case: all reads that are drawn, once.
const REQUESTS: u64 = 65_536;

/// What one case takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    /// The case.
    pub case: String,
    /// Instructions per request.
    pub per_request: f64,
}

/// Counts all cases of a build of the bench; callgrind's files go to this directory, by case.
///
/// # Errors
///
/// When valgrind is not installed, or the bench fails.
pub fn count_all(bench: &Path, directory: &Path) -> io::Result<Vec<Count>> {
    let cases = run(Command::new(bench).arg("list"))?;
    let mut counts = Vec::new();
    for case in cases.lines() {
        counts.push(count(bench, case, &file(directory, case))?);
    }
    Ok(counts)
}

/// Where callgrind's file of a case is.
fn file(directory: &Path, case: &str) -> PathBuf {
    directory.join(format!("callgrind.out.{case}"))
}

fn count(bench: &Path, case: &str, file: &Path) -> io::Result<Count> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={MEASURED}"))
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(bench)
        .args([case, &REQUESTS.to_string()]);
    let said = run(&mut command)?;
    let requests = requests(&said, case);
    let profile = std::fs::read_to_string(file)?;
    match (requests, instructions(&profile)) {
        (Some(requests), Some(instructions)) if requests > 0 && instructions > 0 => Ok(Count {
            case: case.to_owned(),
            per_request: instructions as f64 / requests as f64,
        }),
        _ => Err(io::Error::other(format!("{case}: nothing was counted"))),
    }
}

fn run(command: &mut Command) -> io::Result<String> {
    let output = command.output().map_err(|error| {
        let program = command.get_program().to_string_lossy();
        io::Error::other(format!("{program}: {error}"))
    })?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(io::Error::other(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}

/// How many requests the bench says it has answered.
fn requests(said: &str, case: &str) -> Option<u64> {
    let line = said.lines().find_map(|line| line.strip_prefix(case))?;
    line.trim().parse().ok()
}

/// The total in callgrind's file.
fn instructions(profile: &str) -> Option<u64> {
    let total = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals:"))?;
    total.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_and_the_requests_are_found() {
        let profile =
            "# callgrind format\nevents: Ir\nsummary: 12\n\nfn=(1) a\n1 12\n\ntotals: 12\n";
        assert_eq!(instructions(profile), Some(12));
        assert_eq!(instructions("events: Ir\n"), None);
        assert_eq!(requests("get 16000\n", "get"), Some(16_000));
        assert_eq!(requests("get-p16 16000\n", "get"), None);
    }
}
