//! Whether this node has had the data it should have since it started.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What the cores say about it. A cell per core; nobody waits.
///
/// A node becomes ready once. What it lacks later, because members came or went, is
/// no reason to send clients elsewhere: it serves from the co-owners meanwhile.
#[derive(Debug)]
pub struct Readiness {
    ready: AtomicBool,
    /// For each core, how many of its partitions lack their data.
    missing: Vec<AtomicUsize>,
}

/// A core that does not know yet what it should have.
const UNKNOWN: usize = usize::MAX;

impl Readiness {
    /// A node of so many cores that has not found its cluster.
    pub fn new(cores: usize) -> Self {
        Self {
            ready: AtomicBool::new(false),
            missing: (0..cores).map(|_| AtomicUsize::new(UNKNOWN)).collect(),
        }
    }

    /// A core has found its cluster and lacks the data of so many partitions.
    pub fn set_missing(&self, core: usize, partitions: usize) {
        if let Some(cell) = self.missing.get(core) {
            cell.store(partitions, Ordering::Release);
        }
        let mut cells = self.missing.iter();
        if partitions == 0 && cells.all(|cell| cell.load(Ordering::Acquire) == 0) {
            self.ready.store(true, Ordering::Release);
        }
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
        readiness.set_missing(0, 0);
        assert!(
            readiness.bootstrapping(),
            "core 1 has not found its cluster"
        );
        readiness.set_missing(1, 7);
        assert!(readiness.bootstrapping());
        readiness.set_missing(1, 0);
        assert!(!readiness.bootstrapping());
        readiness.set_missing(0, 3);
        assert!(!readiness.bootstrapping());
    }
}
