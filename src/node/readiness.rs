//! Whether this node has the data it should have.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What the cores and the control thread say about it. A cell per core; nobody waits.
#[derive(Debug)]
pub struct Readiness {
    joined: AtomicBool,
    /// For each core, how many of its partitions lack their data.
    missing: Vec<AtomicUsize>,
}

impl Readiness {
    /// A node of so many cores that has not found its cluster.
    pub fn new(cores: usize, joined: bool) -> Self {
        Self {
            joined: AtomicBool::new(joined),
            missing: (0..cores).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// The node has found its cluster.
    pub fn set_joined(&self) {
        self.joined.store(true, Ordering::Release);
    }

    /// A core lacks the data of so many partitions.
    pub fn set_missing(&self, core: usize, partitions: usize) {
        if let Some(cell) = self.missing.get(core) {
            cell.store(partitions, Ordering::Release);
        }
    }

    /// Partitions that lack their data, on all cores.
    pub fn missing(&self) -> usize {
        let cells = self.missing.iter();
        cells.map(|cell| cell.load(Ordering::Acquire)).sum()
    }

    /// Whether the node is still looking for its cluster or its data.
    pub fn bootstrapping(&self) -> bool {
        !self.joined.load(Ordering::Acquire) || self.missing() > 0
    }
}
