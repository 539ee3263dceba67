//! The pieces of work that a core does without letting its loop turn, by kind, and how long
//! they took.

use std::time::Duration;

use super::counters::Cell;

/// What a core works at in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A turn of requests that it answers alone.
    Requests,
    /// Answers that are put together once other cores or nodes have theirs.
    Answers,
    /// A batch request or a listing of a client, as far as it is not spread over turns.
    Jobs,
    /// What was in its mailbox.
    Mailbox,
    /// A frame of operations of another node.
    PeerFrames,
    /// Another node's answer to such a frame.
    PeerAnswers,
    /// Going over to another view of the cluster.
    View,
    /// Looking after peers: hints, comparison of replicas, partitions that have others now.
    Peers,
    /// Removing what was cleared.
    Clear,
    /// Removing what has expired.
    Expire,
    /// Evicting because it was asked to.
    Evict,
    /// Looking through its keys.
    Scan,
    /// Timeouts and counters.
    Housekeeping,
}

impl Work {
    /// How many kinds there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Requests,
        Self::Answers,
        Self::Jobs,
        Self::Mailbox,
        Self::PeerFrames,
        Self::PeerAnswers,
        Self::View,
        Self::Peers,
        Self::Clear,
        Self::Expire,
        Self::Evict,
        Self::Scan,
        Self::Housekeeping,
    ];

    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Answers => "answers",
            Self::Jobs => "jobs",
            Self::Mailbox => "mailbox",
            Self::PeerFrames => "peer_frames",
            Self::PeerAnswers => "peer_answers",
            Self::View => "view",
            Self::Peers => "peers",
            Self::Clear => "clear",
            Self::Expire => "expire",
            Self::Evict => "evict",
            Self::Scan => "scan",
            Self::Housekeeping => "housekeeping",
        }
    }
}

/// What counts as long, each with its name in metrics.
pub const LONG: [(Duration, &str); 5] = [
    (Duration::from_millis(1), "1ms"),
    (Duration::from_millis(2), "2ms"),
    (Duration::from_millis(5), "5ms"),
    (Duration::from_millis(10), "10ms"),
    (Duration::from_millis(100), "100ms"),
];

/// What one core counts of one kind of work.
#[derive(Debug, Default)]
pub struct WorkCells {
    /// The longest piece of the last minute, in microseconds on the wall.
    pub longest_us: Cell,
    /// The most that one piece of the last minute had of the CPU, in microseconds.
    pub longest_cpu_us: Cell,
    /// Pieces that had the CPU for longer than each of [`LONG`].
    pub long: [Cell; LONG.len()],
}

/// What one core counts of its work, by kind.
#[derive(Debug, Default)]
pub struct WorkCounters([WorkCells; Work::COUNT]);

impl WorkCounters {
    /// What is counted of one kind.
    pub fn of(&self, work: Work) -> &WorkCells {
        &self.0[work as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_work_has_its_own_cells() {
        for (index, work) in Work::ALL.into_iter().enumerate() {
            assert_eq!(work as usize, index, "{}", work.name());
        }
    }
}
