//! How often keys were used lately, for any number of keys in fixed memory.
//!
//! A count-min sketch (Cormode and Muthukrishnan, "An improved data stream summary: the count-min
//! sketch and its applications", 2005) of two rows, with conservative update: of a key's two
//! counters only the smaller grows. An estimate is never too low while counters are not
//! halved, and too high by what shares both counters with the key. After every [`AGE`] uses all counters are
//! halved, so that what was used long ago does not count (Einziger, Friedman and Manes,
//! "TinyLFU: a highly efficient cache admission policy", 2017).

use crate::hash::KeyHash;

/// Counters in each row.
const WIDTH: usize = 1 << 16;

/// After so many uses counters are halved.
const AGE: u32 = 1 << 18;

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Frequency {
    rows: [Box<[u8]>; 2],
    uses: u32,
}

impl Frequency {
    pub(super) fn new() -> Self {
        let row = || vec![0; WIDTH].into_boxed_slice();
        Self {
            rows: [row(), row()],
            uses: 0,
        }
    }

    /// What it takes.
    pub(super) const fn bytes() -> usize {
        2 * WIDTH
    }

    /// Counts a use, and estimates how many there were.
    #[inline]
    pub(super) fn touch(&mut self, hash: KeyHash) -> u8 {
        self.uses += 1;
        if self.uses == AGE {
            self.halve();
        }
        let [first, second] = self.rows.each_mut();
        let (first, second) = (&mut first[place(hash, 0)], &mut second[place(hash, 1)]);
        let count = (*first).min(*second).saturating_add(1);
        *first = (*first).max(count);
        *second = (*second).max(count);
        count
    }

    /// Estimates how often a key was used.
    #[inline]
    pub(super) fn of(&self, hash: KeyHash) -> u8 {
        self.rows[0][place(hash, 0)].min(self.rows[1][place(hash, 1)])
    }

    #[cold]
    fn halve(&mut self) {
        self.uses = 0;
        for row in &mut self.rows {
            for count in row.iter_mut() {
                *count /= 2;
            }
        }
    }
}

/// Where a key is counted: bits of its hash that do not decide its partition.
#[inline]
fn place(hash: KeyHash, row: u32) -> usize {
    (hash.0 >> (16 * row)) as usize % WIDTH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::splitmix64;

    #[test]
    fn a_key_used_often_stands_out_among_many() {
        let mut frequency = Frequency::new();
        let hot = KeyHash::of(b"hot");
        for round in 0..40_000 {
            frequency.touch(KeyHash(splitmix64(round)));
            if round % 400 == 0 {
                frequency.touch(hot);
            }
        }
        assert!((100..=110).contains(&frequency.of(hot)));
        let others = (0..40_000).map(|round| frequency.of(KeyHash(splitmix64(round))));
        let above = others.filter(|&count| count > 8).count();
        assert!(above < 40, "{above} of 40,000 counted as more than 8 uses");
    }

    #[test]
    fn what_was_used_long_ago_fades() {
        let mut frequency = Frequency::new();
        let old = KeyHash::of(b"old");
        for _ in 0..200 {
            frequency.touch(old);
        }
        for round in 0..u64::from(AGE) * 4 {
            // Few keys, which share no counter with it.
            frequency.touch(KeyHash(round % 8));
        }
        assert!(frequency.of(old) <= 200 / 16);
    }
}
