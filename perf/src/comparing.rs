//! Two builds of the node beside each other: by how much the second differs, and whether that
//! is more than two nodes of the first differ by.
//!
//! A round measures one node after the other: two of the first build, one of the second. Their
//! order turns with each round, so that no build always comes first. A ratio is of figures
//! of the same round: what the machine did meanwhile reached both.

use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use crate::load::Load;
use crate::peers::Scenario;
use crate::report::Rounds;
use crate::servers::{Server, node_of};

/// What to compare.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The two builds of the node.
    pub binaries: [PathBuf; 2],
    /// The driver the nodes run on.
    pub driver: String,
    /// Rounds for each scenario.
    pub rounds: u32,
    /// How long each node is measured in each.
    pub duration: Duration,
}

/// Server processor time per request, as ratios over the rounds.
#[derive(Clone, Debug, Default)]
pub struct Ratios {
    /// Of the first build, in microseconds.
    pub first_us: Rounds,
    /// The second build to the first.
    pub second: Rounds,
    /// Another node of the first build to the first.
    pub equal: Rounds,
}

/// What can be said of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Equal nodes differ by as much in some rounds.
    WithinEqual,
    /// The second takes less.
    Less,
    /// The second takes more.
    More,
}

impl Comparison {
    /// Drives fresh nodes by a scenario in a closed loop.
    ///
    /// # Errors
    ///
    /// When a node does not start or answers wrongly.
    pub fn measure(&self, scenario: &Scenario) -> io::Result<Ratios> {
        let [first, second] = &self.binaries;
        let mut nodes: Vec<(Server, Load)> = Vec::new();
        for binary in [first, first, second] {
            let server = node_of(binary, 1, &self.driver, &[])?;
            let load = Load {
                targets: vec![server.address.clone()],
                duration: self.duration,
                ..scenario.load()
            };
            load.preload()?;
            nodes.push((server, load));
        }
        let mut ratios = Ratios::default();
        for round in 0..self.rounds as usize {
            let mut cpu_us = [0.0; 3];
            for turn in 0..nodes.len() {
                let index = (round + turn) % nodes.len();
                let (server, load) = &nodes[index];
                cpu_us[index] = load.measure(&[server.pid()])?.server_cpu_us;
            }
            ratios.push(cpu_us);
        }
        Ok(ratios)
    }
}

impl Ratios {
    /// A round's figures: of the first build, of the first again, of the second.
    fn push(&mut self, [first, again, second]: [f64; 3]) {
        self.first_us.push(first);
        self.equal.push(again / first);
        self.second.push(second / first);
    }

    /// Whether the second build's median lies outside of what equal nodes gave in any round.
    pub fn verdict(&self) -> Verdict {
        let median = self.second.median();
        if median < self.equal.min() {
            Verdict::Less
        } else if median > self.equal.max() {
            Verdict::More
        } else {
            Verdict::WithinEqual
        }
    }

    /// Its line in the table whose head is [`Ratios::HEAD`].
    pub fn row(&self, scenario: &str) -> String {
        let range = |rounds: &Rounds| {
            format!(
                "{:.3} ({:.3} to {:.3})",
                rounds.median(),
                rounds.min(),
                rounds.max()
            )
        };
        format!(
            "| {scenario} | {:.3} | {} | {} | {} |",
            self.first_us.median(),
            range(&self.second),
            range(&self.equal),
            self.verdict()
        )
    }

    /// The head of the table.
    pub const HEAD: &'static str = "\
| scenario | first, CPU us/request | second to first: median (min to max) | equal nodes | verdict |
|---|---|---|---|---|";
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WithinEqual => "within what equal nodes differ by",
            Self::Less => "**less**",
            Self::More => "**more**",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratios(rounds: &[[f64; 3]]) -> Ratios {
        let mut ratios = Ratios::default();
        rounds.iter().for_each(|&round| ratios.push(round));
        ratios
    }

    #[test]
    fn a_difference_that_equal_nodes_have_too_says_nothing() {
        let noisy = ratios(&[[5.0, 5.5, 5.4], [5.0, 4.8, 5.2], [5.0, 5.0, 5.3]]);
        assert_eq!(noisy.verdict(), Verdict::WithinEqual);
        let row = noisy.row("get");
        assert!(
            row.starts_with("| get | 5.000 | 1.060 (1.040 to 1.080) | 1.000 (0.960 to 1.100) |")
        );
    }

    #[test]
    fn a_difference_beyond_that_is_told() {
        let slower = ratios(&[[5.0, 5.1, 6.0], [10.0, 9.9, 12.0]]);
        assert_eq!(slower.verdict(), Verdict::More);
        let faster = ratios(&[[5.0, 5.1, 4.0], [10.0, 9.9, 8.0]]);
        assert_eq!(faster.verdict(), Verdict::Less);
    }
}
