//! Traces that tell caches apart: which key is asked for, request by request.
//!
//! A trace is made from its seed alone, so it is the same everywhere, and can be written in the
//! form `oracleGeneral` of libCacheSim, which tells for each request when its key is asked for
//! next: what Belady's rule has to know.

use std::collections::HashMap;
use std::io::{self, Write};

use crate::checked::Random;
use crate::popularity::{Popularity, Sampler};

/// One request in so many is of a scan, or of a key that is asked for once.
const DISTURBED_SHARE: usize = 5;
/// A scan reads one in so many of the keys that are scanned.
const SCAN_SHARE: usize = 20;

/// What comes between the requests that follow Zipf's law.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Nothing.
    None,
    /// Runs over other keys, one key after the other: a fifth of all requests. There are as many of
    /// these keys as of the popular ones, each run reads a twentieth of them, and the next one
    /// goes on where it ended.
    Scans,
    /// Keys that are asked for only once: a fifth of all requests, by chance.
    OneHitWonders,
}

/// What kind of trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// The exponent of Zipf's law.
    pub exponent: f64,
    /// What comes between.
    pub disturbance: Disturbance,
    /// How many keys follow Zipf's law. At least 1.
    pub keys: usize,
    /// How many requests there are.
    pub requests: usize,
}

impl Shape {
    /// The keys asked for, in turn. The popular ones are numbered from 0, by rank.
    pub fn trace(&self, seed: u64) -> Vec<u64> {
        let sampler = Sampler::new(Popularity::Zipf(self.exponent), self.keys);
        let mut random = Random::new(seed);
        let mut popular = move || sampler.draw(&mut 0, &mut random) as u64;
        let mut by_chance = Random::new(!seed);
        let run = (self.keys / SCAN_SHARE).max(1);
        let mut others = 0;
        let trace = (0..self.requests).map(|request| {
            let disturbed = match self.disturbance {
                Disturbance::None => false,
                Disturbance::Scans => (request / run) % DISTURBED_SHARE == DISTURBED_SHARE - 1,
                Disturbance::OneHitWonders => by_chance.below(DISTURBED_SHARE) == 0,
            };
            if !disturbed {
                return popular();
            }
            let other = match self.disturbance {
                Disturbance::Scans => others % self.keys,
                _ => others,
            };
            others += 1;
            (self.keys + other) as u64
        });
        trace.collect()
    }
}

/// Writes a trace as libCacheSim's `oracleGeneral`: for each request its time in seconds, key,
/// size and the number of the next request of that key, packed, in the order of bytes of x86.
/// All sizes are 1 and all times 0, so that nothing expires.
///
/// # Errors
///
/// What the writer says.
pub fn write_oracle_general(trace: &[u64], mut to: impl Write) -> io::Result<()> {
    /// No later request.
    const NEVER: i64 = -1;
    let mut next_of = HashMap::new();
    let mut next: Vec<i64> = Vec::with_capacity(trace.len());
    for (request, &key) in trace.iter().enumerate().rev() {
        // Requests are numbered from 1 there.
        let later = next_of.insert(key, request as i64 + 1);
        next.push(later.unwrap_or(NEVER));
    }
    for (&key, next) in trace.iter().zip(next.into_iter().rev()) {
        to.write_all(&0_u32.to_le_bytes())?;
        to.write_all(&key.to_le_bytes())?;
        to.write_all(&1_u32.to_le_bytes())?;
        to.write_all(&next.to_le_bytes())?;
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(disturbance: Disturbance) -> Shape {
        Shape {
            exponent: 0.9,
            disturbance,
            keys: 1000,
            requests: 50_000,
        }
    }

    /// How many requests are of keys that do not follow Zipf's law.
    fn disturbed(trace: &[u64]) -> Vec<u64> {
        trace.iter().copied().filter(|&key| key >= 1000).collect()
    }

    #[test]
    fn a_seed_makes_the_same_trace_and_another_seed_another() {
        let shape = shape(Disturbance::OneHitWonders);
        assert_eq!(shape.trace(1), shape.trace(1));
        assert_ne!(shape.trace(1), shape.trace(2));
    }

    #[test]
    fn scans_take_a_fifth_and_go_round_the_other_keys() {
        let trace = shape(Disturbance::Scans).trace(1);
        let expected: Vec<u64> = (0..10_000).map(|nth| 1000 + nth % 1000).collect();
        assert_eq!(disturbed(&trace), expected);
        let run = &trace[200..250];
        assert!(run.iter().all(|&key| key >= 1000), "{run:?}");
    }

    #[test]
    fn one_hit_wonders_take_a_fifth_and_never_come_back() {
        let disturbed = disturbed(&shape(Disturbance::OneHitWonders).trace(1));
        assert!((9_500..10_500).contains(&disturbed.len()));
        assert!(disturbed.is_sorted_by(|key, next| key < next));
    }

    #[test]
    fn the_file_tells_when_each_key_is_asked_for_next() {
        let mut file = Vec::new();
        let Ok(()) = write_oracle_general(&[7, 8, 7], &mut file) else {
            unreachable!("a vector takes all");
        };
        let record = |key: u64, next: i64| {
            let mut bytes = vec![0; 4];
            bytes.extend(key.to_le_bytes());
            bytes.extend(1_u32.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            bytes
        };
        assert_eq!(file, [record(7, 3), record(8, -1), record(7, -1)].concat());
    }
}
