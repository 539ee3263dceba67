//! Latencies counted in buckets: percentiles with an error of at most 1/128 of the value,
//! in constant space, however many there are.

/// Buckets for each doubling of the value.
const SUB_BUCKETS: u64 = 1 << SUB_BITS;
const SUB_BITS: u32 = 7;

/// Values below `SUB_BUCKETS` have a bucket each; above, each doubling up to `u64::MAX` has
/// `SUB_BUCKETS` of them.
const BUCKETS: usize = (SUB_BUCKETS * (u64::BITS - SUB_BITS + 1) as u64) as usize;

/// A count for each range of values.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// How many values there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The greatest value, exactly; 0 without any.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The least value that at least this share of the values does not exceed, or up to 1/128
    /// more; 0 without any.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return greatest(bucket).min(self.max);
            }
        }
        self.max
    }
}

/// The bucket of a value: its highest bit says how wide the buckets are there, the
/// `SUB_BITS` bits below that which of them it is.
fn bucket(value: u64) -> usize {
    if value < SUB_BUCKETS {
        return value as usize;
    }
    let shift = value.ilog2() - SUB_BITS;
    (SUB_BUCKETS * u64::from(shift) + (value >> shift)) as usize
}

/// The greatest value in a bucket.
fn greatest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * SUB_BUCKETS {
        return bucket;
    }
    let shift = bucket / SUB_BUCKETS - 1;
    let least = (SUB_BUCKETS + bucket % SUB_BUCKETS) << shift;
    least + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_not_wider_than_a_128th_of_it() {
        let around = |power: u32| {
            let value = 1_u64 << power;
            [value - 1, value, value + 1, value + (value >> 1)]
        };
        let values = (0..u64::BITS).flat_map(around).chain([u64::MAX]);
        for value in values {
            let greatest = greatest(bucket(value));
            assert!(greatest >= value, "{value}");
            assert!(greatest - value <= value / SUB_BUCKETS, "{value}");
        }
    }

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(greatest(index)), index);
            assert_eq!(bucket(greatest(index) + 1), index + 1);
        }
        assert_eq!(greatest(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.99), histogram.max()), (0, 0));
        (1..=100_000).for_each(|value| histogram.record(value * 1_000));
        for share in [0.0001, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = (100_000.0 * share) as u64 * 1_000;
            let found = histogram.quantile(share);
            assert!(
                (exact..=exact + exact / SUB_BUCKETS).contains(&found),
                "{share}: {found}"
            );
        }
        assert_eq!(histogram.max(), 100_000_000);
        assert_eq!(histogram.total(), 100_000);
    }
}
