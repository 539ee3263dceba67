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
    /// For each core the version of its view, and below [`MISSING_BITS`] how many of its
    /// partitions lack their data: one word, so that they belong together.
    cores: Vec<AtomicU64>,
}

const MISSING_BITS: u32 = 16;
/// A core that does not know yet what it should have.
const UNKNOWN: u64 = (1 << MISSING_BITS) - 1;

impl Readiness {
    /// A node of so many cores that has not found its cluster.
    pub fn new(cores: usize) -> Self {
        Self {
            ready: AtomicBool::new(false),
            cores: (0..cores).map(|_| AtomicU64::new(UNKNOWN)).collect(),
        }
    }

    /// A core goes by the view of this version, and by it lacks the data of so many
    /// partitions; `None` while the node looks for its cluster.
    pub fn report(&self, core: usize, version: u64, missing: Option<usize>) {
        let missing = missing.map_or(UNKNOWN, |missing| (missing as u64).min(UNKNOWN - 1));
        if let Some(cell) = self.cores.get(core) {
            cell.store(version << MISSING_BITS | missing, Ordering::Release);
        }
        if missing == 0 && self.followed().1 {
            self.ready.store(true, Ordering::Release);
        }
    }

    /// The version of the view by which all cores go at least, and whether none of them
    /// lacks anything.
    pub fn followed(&self) -> (u64, bool) {
        let cores = self.cores.iter().map(|cell| cell.load(Ordering::Acquire));
        cores.fold((u64::MAX, true), |(version, holding), core| {
            let (followed, missing) = (core >> MISSING_BITS, core & UNKNOWN);
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

    #[test]
    fn a_node_is_ready_when_every_core_has_its_data_and_stays_so() {
        let readiness = Readiness::new(2);
        readiness.report(0, 5, Some(0));
        readiness.report(1, 5, None);
        assert!(
            readiness.bootstrapping(),
            "core 1 has not found its cluster"
        );
        readiness.report(1, 5, Some(7));
        assert!(readiness.bootstrapping());
        readiness.report(1, 5, Some(0));
        assert!(!readiness.bootstrapping());
        readiness.report(0, 6, Some(3));
        assert!(!readiness.bootstrapping());
    }

    #[test]
    fn the_slowest_core_says_how_far_the_node_has_come() {
        let readiness = Readiness::new(2);
        assert_eq!(readiness.followed(), (0, false));
        readiness.report(0, 9, Some(0));
        readiness.report(1, 7, Some(0));
        assert_eq!(readiness.followed(), (7, true));
        readiness.report(1, 9, Some(4096));
        assert_eq!(readiness.followed(), (9, false));
    }
}
