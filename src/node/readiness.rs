//! How far the cores of this node have come: by which view they go, and whether they hold
//! the data of all they own by it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the cores say. A cell per core; nobody waits.
///
/// A node becomes ready once. What it lacks later, because members came or went, is
/// no reason to send clients elsewhere: it serves from the co-owners meanwhile.
#[derive(Debug)]
pub struct Readiness {
    ready: AtomicBool,
    /// For each core the version of its view, then [`STUCK`], then how many of its partitions
    /// lack their data: one word, so that they belong together.
    cores: Vec<AtomicU64>,
}

/// How far one core has come.
#[derive(Clone, Copy, Debug)]
pub struct CoreReport {
    /// The version of the view it goes by.
    pub version: u64,
    /// How many of its partitions lack their data; `None` while the node looks for its
    /// cluster.
    pub missing: Option<usize>,
    /// Whether it has not come any further for as long as it may take.
    pub stuck: bool,
}

const VERSION_SHIFT: u32 = 17;
const STUCK: u64 = 1 << 16;
const MISSING: u64 = STUCK - 1;
/// A core that does not know yet what it should have.
const UNKNOWN: u64 = MISSING;

impl Readiness {
    /// A node of so many cores that has not found its cluster.
    pub fn new(cores: usize) -> Self {
        Self {
            ready: AtomicBool::new(false),
            cores: (0..cores).map(|_| AtomicU64::new(UNKNOWN)).collect(),
        }
    }

    /// Takes in what a core says.
    pub fn report(&self, core: usize, report: CoreReport) {
        let missing = report.missing.map_or(UNKNOWN, |missing| {
            u64::try_from(missing).unwrap_or(UNKNOWN).min(UNKNOWN - 1)
        });
        let stuck = if report.stuck { STUCK } else { 0 };
        if let Some(cell) = self.cores.get(core) {
            cell.store(
                report.version << VERSION_SHIFT | stuck | missing,
                Ordering::Release,
            );
        }
        let has_what_it_can = |cell: &AtomicU64| {
            let core = cell.load(Ordering::Acquire);
            core & MISSING == 0 || core & STUCK != 0 && core & MISSING != UNKNOWN
        };
        if self.cores.iter().all(has_what_it_can) {
            self.ready.store(true, Ordering::Release);
        }
    }

    /// The version of the view by which all cores go at least, and whether none of them
    /// lacks anything.
    pub fn followed(&self) -> (u64, bool) {
        let cores = self.cores.iter().map(|cell| cell.load(Ordering::Acquire));
        cores.fold((u64::MAX, true), |(version, holding), core| {
            let (followed, missing) = (core >> VERSION_SHIFT, core & MISSING);
            (version.min(followed), holding && missing == 0)
        })
    }

    /// Whether the node is still looking for its cluster or its data.
    pub fn bootstrapping(&self) -> bool {
        !self.ready.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(readiness: &Readiness, core: usize, version: u64, missing: Option<usize>) {
        let report = CoreReport {
            version,
            missing,
            stuck: false,
        };
        readiness.report(core, report);
    }

    #[test]
    fn a_node_is_ready_when_every_core_has_its_data_and_stays_so() {
        let readiness = Readiness::new(2);
        report(&readiness, 0, 5, Some(0));
        report(&readiness, 1, 5, None);
        assert!(
            readiness.bootstrapping(),
            "core 1 has not found its cluster"
        );
        report(&readiness, 1, 5, Some(7));
        assert!(readiness.bootstrapping());
        report(&readiness, 1, 5, Some(0));
        assert!(!readiness.bootstrapping());
        report(&readiness, 0, 6, Some(3));
        assert!(!readiness.bootstrapping());
    }

    #[test]
    fn one_that_cannot_get_its_data_serves_at_last_but_does_not_pass_for_holding_it() {
        let readiness = Readiness::new(1);
        let stuck = |missing| CoreReport {
            version: 5,
            missing,
            stuck: true,
        };
        readiness.report(0, stuck(None));
        assert!(readiness.bootstrapping(), "it has found no cluster");
        readiness.report(0, stuck(Some(7)));
        assert!(!readiness.bootstrapping());
        assert_eq!(readiness.followed(), (5, false));
    }

    #[test]
    fn the_slowest_core_says_how_far_the_node_has_come() {
        let readiness = Readiness::new(2);
        assert_eq!(readiness.followed(), (0, false));
        report(&readiness, 0, 9, Some(0));
        report(&readiness, 1, 7, Some(0));
        assert_eq!(readiness.followed(), (7, true));
        report(&readiness, 1, 9, Some(4096));
        assert_eq!(readiness.followed(), (9, false));
    }
}
