//! Which key is asked for how often.

use crate::checked::Random;

/// How requests are spread over the keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    /// One key after the other.
    InTurn,
    /// By chance, all equally often.
    Uniform,
    /// By chance; the key of rank r in proportion to 1 / r to the power of this exponent.
    Zipf(f64),
}

/// Chooses keys, numbered from 0 with the most popular first.
///
/// For Zipf's law it searches the cumulated shares of all keys for a number by chance. That is
/// exact but for the rounding of the shares, and needs 8 bytes a key; requests are drawn before
/// the clock starts, so the search costs no measurement.
#[derive(Debug)]
pub enum Sampler {
    /// One of so many after the other.
    InTurn(usize),
    /// One of so many.
    Uniform(usize),
    /// By these cumulated weights.
    Weighted(Vec<f64>),
}

impl Sampler {
    /// For so many keys.
    pub fn new(popularity: Popularity, count: usize) -> Self {
        match popularity {
            Popularity::InTurn => Self::InTurn(count),
            Popularity::Uniform => Self::Uniform(count),
            Popularity::Zipf(exponent) => {
                let mut sum = 0.0;
                let weights = (1..=count).map(|rank| (rank as f64).powf(-exponent));
                let cumulated = weights.map(|weight| {
                    sum += weight;
                    sum
                });
                Self::Weighted(cumulated.collect())
            }
        }
    }

    /// The next key: by chance, or that of `turn`, which it moves on. There must be one.
    pub fn draw(&self, turn: &mut usize, random: &mut Random) -> usize {
        const STEPS: usize = 1 << 53;
        match self {
            Self::InTurn(count) => {
                let key = *turn % count;
                *turn += 1;
                key
            }
            Self::Uniform(count) => random.below(*count),
            Self::Weighted(cumulated) => {
                let total = cumulated.last().copied().unwrap_or_default();
                let point = random.below(STEPS) as f64 / STEPS as f64 * total;
                let key = cumulated.partition_point(|&sum| sum <= point);
                // The product may be rounded up to the total itself.
                key.min(cumulated.len().saturating_sub(1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pearson's statistic of draws against the exact shares, with ranks joined until each
    /// class expects at least 100 draws; and the classes less one.
    fn chi_squared(count: usize, exponent: f64, draws: usize, seed: u64) -> (f64, f64) {
        let weights: Vec<f64> = (1..=count)
            .map(|rank| (rank as f64).powf(-exponent))
            .collect();
        let total: f64 = weights.iter().sum();
        let (sampler, mut random) = (
            Sampler::new(Popularity::Zipf(exponent), count),
            Random::new(seed),
        );
        let mut drawn = vec![0_u32; count];
        (0..draws).for_each(|_| drawn[sampler.draw(&mut 0, &mut random)] += 1);
        let (mut statistic, mut classes) = (0.0, 0);
        let (mut expected, mut observed) = (0.0, 0.0);
        for (weight, drawn) in weights.iter().zip(drawn) {
            expected += weight / total * draws as f64;
            observed += f64::from(drawn);
            if expected >= 100.0 {
                statistic += (observed - expected) * (observed - expected) / expected;
                classes += 1;
                (expected, observed) = (0.0, 0.0);
            }
        }
        (statistic, f64::from(classes - 1))
    }

    #[test]
    fn draws_have_the_exact_distribution() {
        for (exponent, seed) in [(0.99, 1), (0.99, 2), (0.7, 3), (1.2, 4), (0.0, 5)] {
            let (statistic, freedom) = chi_squared(10_000, exponent, 1_000_000, seed);
            // Five standard deviations: sqrt(2 x freedom) each.
            let most = freedom + 5.0 * (2.0 * freedom).sqrt();
            assert!(
                freedom > 100.0 && statistic < most,
                "{exponent}: {statistic} of {freedom}"
            );
        }
    }

    #[test]
    fn another_exponent_is_told_apart() {
        let (sampler, mut random) = (Sampler::new(Popularity::Zipf(0.99), 10_000), Random::new(1));
        let first = (0..100_000)
            .filter(|_| sampler.draw(&mut 0, &mut random) == 0)
            .count();
        // 1 / sum of r^-0.99 for r up to 10,000 is 0.0978.
        assert!((9_400..10_200).contains(&first), "{first}");
    }

    #[test]
    fn a_single_key_is_always_drawn() {
        let (sampler, mut random) = (Sampler::new(Popularity::Zipf(0.99), 1), Random::new(1));
        assert!((0..100).all(|_| sampler.draw(&mut 0, &mut random) == 0));
    }
}
