//! How long requests of clients take, by what they ask for and by how far they go.

use super::histogram::{Counts, Histogram};

/// Whether durations are recorded at all: a build without serves to measure their cost.
pub const RECORDS: bool = cfg!(not(feature = "without-telemetry"));

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The value or the metadata of a key.
    Get,
    /// That a value be written.
    Put,
    /// That a key be deleted.
    Delete,
    /// Many keys at once.
    BatchGet,
    /// Many writes at once.
    BatchPut,
    /// Many deletes at once.
    BatchDelete,
    /// A listing of keys.
    List,
    /// Anything else, errors of the protocol included.
    Other,
}

/// How many kinds of [`Operation`] there are.
pub const OPERATIONS: usize = Operation::ALL.len();

impl Operation {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Get,
        Self::Put,
        Self::Delete,
        Self::BatchGet,
        Self::BatchPut,
        Self::BatchDelete,
        Self::List,
        Self::Other,
    ];

    /// As it stands in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::BatchGet => "batch_get",
            Self::BatchPut => "batch_put",
            Self::BatchDelete => "batch_delete",
            Self::List => "list",
            Self::Other => "other",
        }
    }
}

/// How far a request has to go until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// Answered by the core that received it.
    Local,
    /// By another core of this node.
    Remote,
    /// Not without other nodes.
    Forwarded,
}

impl Via {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Local, Self::Remote, Self::Forwarded];

    /// As it stands in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Forwarded => "forwarded",
        }
    }
}

/// One core's durations.
#[derive(Debug, Default)]
pub struct Latencies([[Histogram; OPERATIONS]; Via::ALL.len()]);

impl Latencies {
    /// Counts `times` requests that took this long; only ever called by the owner.
    #[inline]
    pub fn record(&self, operation: Operation, via: Via, nanos: u64, times: u64) {
        if RECORDS {
            self.0[via as usize][operation as usize].record(nanos, times);
        }
    }

    /// Adds those of one kind to `counts`.
    pub fn add_to(&self, operation: Operation, via: Via, counts: &mut Counts) {
        self.0[via as usize][operation as usize].add_to(counts);
    }
}

/// The requests of one turn of a connection, until it is known how long they took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally([u16; OPERATIONS]);

impl Tally {
    /// One more.
    #[inline]
    pub fn count(&mut self, operation: Operation) {
        if RECORDS {
            self.0[operation as usize] += 1;
        }
    }

    /// Records all of them as having taken this long, and forgets them.
    #[inline]
    pub fn record(&mut self, latencies: &Latencies, via: Via, nanos: u64) {
        for operation in Operation::ALL {
            let times = std::mem::take(&mut self.0[operation as usize]);
            if times > 0 {
                latencies.record(operation, via, nanos, u64::from(times));
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|&times| usize::from(times)).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&times| times == 0)
    }
}
