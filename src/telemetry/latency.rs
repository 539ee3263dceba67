//! How long requests of clients take, by what they ask for and by how far they go.
//!
//! Requests that arrive together are handled together and their answers leave together: a
//! [`Tally`] counts them by kind, and all of a kind are recorded at the cost of one.

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
}

/// How many kinds of [`Operation`] there are.
pub const OPERATIONS: usize = Operation::ALL.len();

impl Operation {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Get,
        Self::Put,
        Self::Delete,
        Self::BatchGet,
        Self::BatchPut,
        Self::BatchDelete,
        Self::List,
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
        self.0[via as usize][operation as usize].record(nanos, times);
    }

    /// Adds those of one kind to `counts`.
    pub fn add_to(&self, operation: Operation, via: Via, counts: &mut Counts) {
        self.0[via as usize][operation as usize].add_to(counts);
    }
}

/// The requests of one turn of a connection, until it is known how long they took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally([OfVia; Via::ALL.len()]);

#[derive(Clone, Copy, Debug, Default)]
struct OfVia {
    times: [u16; OPERATIONS],
    /// The operations of which there are any, as bits.
    any: u8,
}

impl Tally {
    /// One more.
    #[inline]
    pub fn count(&mut self, operation: Operation, via: Via) {
        if RECORDS {
            let of_via = &mut self.0[via as usize];
            of_via.times[operation as usize] += 1;
            of_via.any |= 1 << operation as u8;
        }
    }

    /// Whether any went this way.
    #[inline]
    pub fn has(&self, via: Via) -> bool {
        self.0[via as usize].any != 0
    }

    /// Records all that went this way as having taken this long, and forgets them.
    #[inline]
    pub fn record(&mut self, latencies: &Latencies, via: Via, nanos: u64) {
        self.drain(via, |operation, times| {
            latencies.record(operation, via, nanos, times);
        });
    }

    /// The first kind of operation that went this way, and how many of all kinds did.
    pub fn summary(&self, via: Via) -> Option<(Operation, u64)> {
        let of_via = &self.0[via as usize];
        let first = of_via.any.trailing_zeros() as usize;
        let all = of_via.times.iter().map(|&times| u64::from(times)).sum();
        Some((*Operation::ALL.get(first)?, all))
    }

    #[inline]
    fn drain(&mut self, via: Via, mut each: impl FnMut(Operation, u64)) {
        let of_via = &mut self.0[via as usize];
        while of_via.any != 0 {
            let index = of_via.any.trailing_zeros() as usize;
            of_via.any &= of_via.any - 1;
            let times = std::mem::take(&mut of_via.times[index]);
            each(Operation::ALL[index], u64::from(times));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tallied_is_recorded_once() {
        let latencies = Latencies::default();
        let mut tally = Tally::default();
        for _ in 0..3 {
            tally.count(Operation::Get, Via::Local);
        }
        tally.count(Operation::List, Via::Local);
        tally.count(Operation::Put, Via::Forwarded);
        assert_eq!(tally.summary(Via::Local), Some((Operation::Get, 4)));
        assert_eq!(tally.summary(Via::Remote), None);
        tally.record(&latencies, Via::Local, 1000);
        tally.record(&latencies, Via::Local, 5000);
        assert!(!tally.has(Via::Local) && tally.has(Via::Forwarded));
        let counts = |operation, via| {
            let mut counts = Counts::default();
            latencies.add_to(operation, via, &mut counts);
            (counts.count(), counts.sum_ns())
        };
        assert_eq!(counts(Operation::Get, Via::Local), (3, 3000));
        assert_eq!(counts(Operation::List, Via::Local), (1, 1000));
        assert_eq!(counts(Operation::Put, Via::Forwarded), (0, 0));
    }
}
