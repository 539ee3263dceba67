//! Which keys of a shard are used most, in bounded memory.
//!
//! One use in about [`SAMPLE`] is looked at, at random, so that regular patterns hide
//! nothing. What is looked at is counted by the Space-Saving algorithm (Metwally, Agrawal
//! and El Abbadi, "Efficient computation of frequent and top-k elements in data streams",
//! 2005): a key that has no counter takes over the smallest one, and with it, as its
//! error, what that had counted. So a key used in more than one of [`COUNTERS`] uses is
//! always among them, and a count is never too low, nor too high by more than its error.
//! All counts are halved from time to time: what was hot an hour ago is not hot.

use crate::hash::{KeyHash, splitmix64};

/// Whether anything is counted: a build without serves to measure what it costs.
const COUNTS: bool = cfg!(not(feature = "without-telemetry"));

/// How many keys are counted.
pub const COUNTERS: usize = 64;

/// One use in so many is looked at, on average.
pub const SAMPLE: u64 = 32;

/// A key and how often it was used, in uses that were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotKey {
    /// The key.
    pub key: Vec<u8>,
    /// How often it was seen, at most.
    pub count: u64,
    /// By how much that may be too high.
    pub error: u64,
}

/// See the module's comment.
#[derive(Debug)]
pub struct HotKeys {
    /// Uses until the next one that is looked at.
    skip: u64,
    random: u64,
    hashes: Vec<u64>,
    keys: Vec<HotKey>,
    looked_at: u64,
}

impl HotKeys {
    /// Nothing was used yet. The seed decides which uses are looked at.
    pub fn new(seed: u64) -> Self {
        Self {
            skip: 1,
            random: seed,
            hashes: Vec::with_capacity(COUNTERS),
            keys: Vec::with_capacity(COUNTERS),
            looked_at: 0,
        }
    }

    /// A key is used.
    #[inline]
    pub fn touch(&mut self, hash: KeyHash, key: &[u8]) {
        if !COUNTS {
            return;
        }
        self.skip -= 1;
        if self.skip == 0 {
            self.random = splitmix64(self.random);
            self.skip = 1 + self.random % (2 * SAMPLE - 1);
            self.count(hash, key, 1);
        }
    }

    /// A key is used elsewhere: so many uses of it were looked at, as many as here would have been.
    pub fn add(&mut self, hash: KeyHash, key: &[u8], looked_at: u64) {
        if COUNTS {
            self.count(hash, key, looked_at);
        }
    }

    #[cold]
    fn count(&mut self, hash: KeyHash, key: &[u8], uses: u64) {
        self.looked_at += uses;
        let known = self.hashes.iter().position(|&known| known == hash.0);
        if let Some(index) = known
            && self.keys[index].key == key
        {
            self.keys[index].count += uses;
        } else if self.keys.len() < COUNTERS {
            self.hashes.push(hash.0);
            self.keys.push(HotKey {
                key: key.to_vec(),
                count: uses,
                error: 0,
            });
        } else {
            let counts = self.keys.iter().map(|hot| hot.count).enumerate();
            let Some((index, least)) = counts.min_by_key(|&(_, count)| count) else {
                return;
            };
            self.hashes[index] = hash.0;
            let hot = &mut self.keys[index];
            // The buffer stays.
            hot.key.clear();
            hot.key.extend_from_slice(key);
            hot.count = least + uses;
            hot.error = least;
        }
    }

    /// Halves what was counted.
    pub fn age(&mut self) {
        for hot in &mut self.keys {
            hot.count /= 2;
            hot.error /= 2;
        }
        self.looked_at /= 2;
    }

    /// How many uses were looked at, older ones for less.
    pub fn looked_at(&self) -> u64 {
        self.looked_at
    }

    /// The keys that are counted, those used most first.
    pub fn hottest(&self) -> Vec<HotKey> {
        let mut keys: Vec<HotKey> = self
            .keys
            .iter()
            .filter(|hot| hot.count > 0)
            .cloned()
            .collect();
        keys.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn use_key(hot: &mut HotKeys, key: &[u8]) {
        hot.touch(KeyHash::of(key), key);
    }

    #[test]
    fn a_key_among_many_is_found_and_counted_within_its_error() {
        let mut hot = HotKeys::new(7);
        let mut uses = 0_u64;
        for round in 0..200_000_u64 {
            use_key(&mut hot, &splitmix64(round).to_le_bytes());
            if round % 10 == 0 {
                use_key(&mut hot, b"hot");
                uses += 1;
            }
        }
        let hottest = hot.hottest();
        assert_eq!(hottest.len(), COUNTERS);
        let first = &hottest[0];
        assert_eq!(first.key, b"hot");
        let seen = uses as f64 / SAMPLE as f64;
        let (low, high) = ((first.count - first.error) as f64, first.count as f64);
        assert!(
            low <= seen * 1.2 && seen * 0.8 <= high,
            "{low} {seen} {high}"
        );
        let total: u64 = hottest.iter().map(|hot| hot.count).sum();
        assert_eq!(total, hot.looked_at(), "what one loses another has");
    }

    #[test]
    fn a_regular_pattern_is_not_mistaken() {
        let mut hot = HotKeys::new(1);
        for round in 0..SAMPLE * 4000 {
            let key: &[u8] = if round % SAMPLE == 0 {
                b"every32nd"
            } else {
                b"others"
            };
            use_key(&mut hot, key);
        }
        let hottest = hot.hottest();
        assert_eq!(hottest[0].key, b"others");
        assert!(hottest[1].count < hot.looked_at() / 16, "{hottest:?}");
    }

    #[test]
    fn what_was_hot_once_fades() {
        let mut hot = HotKeys::new(1);
        for _ in 0..SAMPLE * 100 {
            use_key(&mut hot, b"old");
        }
        for _ in 0..20 {
            hot.age();
        }
        assert_eq!((hot.hottest(), hot.looked_at()), (Vec::new(), 0));
    }
}
