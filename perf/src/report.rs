//! Medians and the facts of the machine, as every table shows them.

use std::io;
use std::process::{Command, ExitCode};

/// Values of one figure over the rounds of a run.
#[derive(Clone, Debug, Default)]
pub struct Rounds(Vec<f64>);

impl Rounds {
    /// Adds the value of a round.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// What each value is to that of another figure in the same round.
    pub fn to(&self, other: &Self) -> Self {
        let pairs = self.0.iter().zip(&other.0);
        Self(pairs.map(|(value, other)| value / other).collect())
    }

    /// Whether no round was run.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle value; NaN without any.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The least value.
    pub fn min(&self) -> f64 {
        self.quantile(0.0)
    }

    /// The greatest value.
    pub fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    /// The value below which this share of the values lies; NaN without any.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (sorted.len().saturating_sub(1) as f64 * share).round();
        sorted.get(place as usize).copied().unwrap_or(f64::NAN)
    }
}

/// Prints what the figures were measured on.
pub fn print_machine(programs: &[&str]) {
    let first = |path: &str, field: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find(|line| line.starts_with(field))
            .unwrap_or_default()
            .to_owned()
    };
    let version = |program: &&str| {
        let output = Command::new(program).arg("--version").output();
        output.map_or_else(
            |_| format!("{program}: absent"),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    println!(
        "{}; {}",
        first("/proc/cpuinfo", "model name"),
        first("/proc/version", "Linux")
    );
    let versions: Vec<String> = programs.iter().map(version).collect();
    println!("{}", versions.join("; "));
}

/// How a program ends that checks promises: well only if every one was kept. What it could
/// not do is printed.
pub fn exit_code(kept: io::Result<bool>) -> ExitCode {
    match kept {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// One line of a table of targets: what was reached, and the bound.
pub fn print_target(what: &str, reached: f64, bound: &str, met: bool) {
    let verdict = if met { "" } else { ", **missed**" };
    println!("| {what} | {reached:.2}{verdict} | {bound} |");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_one_round_each() {
        let [mut slow, mut quick] = [Rounds::default(), Rounds::default()];
        [4.0, 8.0, 6.0].into_iter().for_each(|v| slow.push(v));
        [2.0, 2.0, 6.0].into_iter().for_each(|v| quick.push(v));
        assert_eq!(slow.to(&quick).0, [2.0, 4.0, 1.0]);
    }

    #[test]
    fn the_median_is_the_middle_value() {
        let mut rounds = Rounds::default();
        assert!(rounds.median().is_nan());
        [5.0, 1.0, 3.0].into_iter().for_each(|v| rounds.push(v));
        assert_eq!(
            (rounds.min(), rounds.median(), rounds.max()),
            (1.0, 3.0, 5.0)
        );
    }
}
