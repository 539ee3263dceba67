//! What a core has done by itself: plain records for whoever wants to tell of it.
//!
//! They are made whether anybody takes them or not; only the first [`ACTIVITIES_MAX`] since
//! the last look are kept.

use super::view::NodeIx;

/// How many are kept until they are taken.
pub const ACTIVITIES_MAX: usize = 64;

/// Something that has ended just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// With which node, where it is one.
    pub node: Option<NodeIx>,
    /// How long it took.
    pub took_ms: u64,
    /// Whether it came to no good end.
    pub failed: bool,
    /// What it was.
    pub done: Done,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Writes that a node had not taken were sent to it.
    HintReplay {
        /// How many were sent.
        sent: u64,
        /// How many of them it has taken.
        taken: u64,
    },
    /// What is held here was compared with another owner.
    Sync(Told),
    /// All that is owned here has come, for the first time.
    Bootstrap {
        /// Items that were copied for it.
        keys: u64,
        /// Their bytes.
        bytes: u64,
    },
}

/// What one comparison with another owner did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Partitions that were to be compared.
    pub partitions: u64,
    /// Items taken over.
    pub pulled: u64,
    /// Items sent.
    pub pushed: u64,
    /// Items taken over of partitions that were lacking.
    pub copied: u64,
    /// Bytes of the answers that brought them.
    pub copied_bytes: u64,
    /// Items sent of partitions that have other owners now.
    pub handed_over: u64,
}

impl Told {
    /// Items that went either way.
    pub fn moved(&self) -> u64 {
        self.pulled + self.pushed
    }

    /// Whether data went to where it belongs, beyond what differed.
    pub fn has_transfer(&self) -> bool {
        self.copied > 0 || self.handed_over > 0
    }
}

/// Those that were not taken yet.
#[derive(Debug, Default)]
pub(super) struct Activities(Vec<Activity>);

impl Activities {
    pub(super) fn add(&mut self, activity: Activity) {
        if self.0.len() < ACTIVITIES_MAX {
            self.0.push(activity);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Activity> {
        std::mem::take(&mut self.0)
    }
}
