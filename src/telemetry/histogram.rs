//! A histogram of durations that one core fills and others read.
//!
//! Buckets are log-linear, as in HdrHistogram: each power of two of nanoseconds is cut into
//! [`STEPS`] equal parts, so a bucket is at most an eighth as wide as what it holds,
//! whatever the duration. Recording is three additions to plain cells; any number of
//! equal durations is recorded at the cost of one.

use super::counters::Cell;

/// Into how many buckets a power of two is cut.
const STEPS: usize = 1 << STEP_BITS;
const STEP_BITS: u32 = 3;

/// The bits of the shortest and of the longest duration told apart: 128 ns and 17 s.
const BITS_MIN: u32 = 7;
const BITS_MAX: u32 = 34;

/// How many buckets there are: one for all that is shorter, one for all that is longer.
pub const BUCKETS: usize = (BITS_MAX - BITS_MIN) as usize * STEPS + 2;

/// The bucket of a duration.
#[inline]
fn index(nanos: u64) -> usize {
    if nanos < 1 << BITS_MIN {
        return 0;
    }
    let bits = u64::BITS - 1 - nanos.leading_zeros();
    if bits >= BITS_MAX {
        return BUCKETS - 1;
    }
    let step = (nanos >> (bits - STEP_BITS)) as usize & (STEPS - 1);
    (bits - BITS_MIN) as usize * STEPS + step + 1
}

/// The nanoseconds that all durations of a bucket are below; nothing for the last.
pub fn upper_bound(bucket: usize) -> Option<u64> {
    match bucket {
        0 => Some(1 << BITS_MIN),
        _ if bucket >= BUCKETS - 1 => None,
        _ => {
            let bits = BITS_MIN + ((bucket - 1) / STEPS) as u32;
            let step = ((bucket - 1) % STEPS + 1) as u64;
            Some((1 << bits) + (step << (bits - STEP_BITS)))
        }
    }
}

/// See the module's comment.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Cell; BUCKETS],
    sum_ns: Cell,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| Cell::default()),
            sum_ns: Cell::default(),
        }
    }
}

impl Histogram {
    /// Counts `times` durations of this length; only ever called by the owner.
    #[inline]
    pub fn record(&self, nanos: u64, times: u64) {
        self.buckets[index(nanos)].add(times);
        self.sum_ns.add(nanos.saturating_mul(times));
    }

    /// Adds what was counted so far to `counts`.
    pub fn add_to(&self, counts: &mut Counts) {
        for (count, cell) in counts.buckets.iter_mut().zip(&self.buckets) {
            *count += cell.get();
        }
        counts.sum_ns = counts.sum_ns.wrapping_add(self.sum_ns.get());
    }
}

/// What histograms had counted at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    buckets: Vec<u64>,
    sum_ns: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            sum_ns: 0,
        }
    }
}

impl Counts {
    /// How many durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// How many in each bucket; the last one's bound is missing.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let counts = self.buckets.iter().enumerate();
        counts.map(|(bucket, &count)| (upper_bound(bucket), count))
    }

    /// The same with `per_octave` buckets for each power of two (1, 2, 4 or 8).
    pub fn coarser(&self, per_octave: usize) -> Vec<(Option<u64>, u64)> {
        let width = STEPS / per_octave.clamp(1, STEPS);
        let mut merged = vec![(upper_bound(0), self.buckets[0])];
        let inner = &self.buckets[1..BUCKETS - 1];
        for (group, counts) in inner.chunks(width).enumerate() {
            let last = group * width + counts.len();
            merged.push((upper_bound(last), counts.iter().sum()));
        }
        merged.push((None, self.buckets[BUCKETS - 1]));
        merged
    }

    /// A duration that at least this share of all, from 0 to 1, does not exceed by more
    /// than a bucket's width; 0 when there are none.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let rank = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(bucket);
            }
        }
        0
    }

    /// The mean square distance from the mean, as exact as the buckets are.
    pub fn variance_ns2(&self) -> f64 {
        let count = self.count() as f64;
        if count == 0.0 {
            return 0.0;
        }
        let mean = self.sum_ns as f64 / count;
        let squares = self.buckets.iter().enumerate().map(|(bucket, &times)| {
            let distance = middle(bucket) as f64 - mean;
            distance * distance * times as f64
        });
        squares.sum::<f64>() / count
    }
}

/// What stands for the durations of a bucket.
fn middle(bucket: usize) -> u64 {
    let below = match bucket {
        0 => 0,
        _ => upper_bound(bucket - 1).unwrap_or_default(),
    };
    upper_bound(bucket).map_or(below, |above| (below + above) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_falls_into_the_bucket_whose_bounds_enclose_it() {
        let mut nanos = 1_u64;
        while nanos < 1 << 40 {
            for at in [nanos - 1, nanos, nanos + nanos / 3] {
                let bucket = index(at);
                assert!(upper_bound(bucket).is_none_or(|above| at < above), "{at}");
                if bucket > 0 {
                    assert!(at >= upper_bound(bucket - 1).unwrap(), "{at}");
                }
            }
            nanos *= 2;
        }
    }

    #[test]
    fn a_quantile_is_within_an_eighth_of_what_was_recorded() {
        let histogram = Histogram::default();
        for nanos in 1..=1000_u64 {
            histogram.record(nanos * 1000, 1);
        }
        let mut counts = Counts::default();
        histogram.add_to(&mut counts);
        assert_eq!((counts.count(), counts.sum_ns()), (1000, 500_500_000));
        for share in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let exact = share * 1_000_000.0;
            let found = counts.quantile_ns(share) as f64;
            assert!((found / exact - 1.0).abs() < 0.125, "{share}: {found}");
        }
        let variance = counts.variance_ns2().sqrt();
        assert!((variance / 288_675.0 - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn coarser_buckets_lose_nothing() {
        let histogram = Histogram::default();
        for nanos in [1, 127, 128, 200, 4095, 4096, 1 << 33, 1 << 34, u64::MAX] {
            histogram.record(nanos, 2);
        }
        let mut counts = Counts::default();
        histogram.add_to(&mut counts);
        for per_octave in [1, 2, 4, 8] {
            let merged = counts.coarser(per_octave);
            assert_eq!(merged.iter().map(|(_, count)| count).sum::<u64>(), 18);
            let bounds: Vec<_> = merged.iter().filter_map(|(bound, _)| *bound).collect();
            assert!(bounds.is_sorted());
            for (bound, _) in &merged {
                let inside = counts.buckets().filter(|(upper, _)| match (upper, bound) {
                    (Some(upper), Some(bound)) => upper <= bound,
                    (None, Some(_)) => false,
                    (_, None) => true,
                });
                let below = merged.iter().take_while(|(other, _)| other != bound);
                let cumulative = below.map(|(_, count)| count).sum::<u64>();
                let own = merged.iter().find(|(other, _)| other == bound).unwrap().1;
                assert_eq!(
                    inside.map(|(_, count)| count).sum::<u64>(),
                    cumulative + own
                );
            }
        }
    }
}
