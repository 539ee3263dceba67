//! The digest of a partition: one number that tells whether two replicas agree.
//!
//! A digest is the wrapping sum of one 64-bit word per stored item, tombstones
//! included. A sum does not depend on order and can be taken back, so the digest
//! follows every insert, replacement and removal in O(1).
//!
//! The word is part of what nodes say to each other: **every node and every
//! release must compute the same one.** It covers the top 48 bits of the key's
//! hash, the version, the origin and whether the item is a tombstone. Content is
//! not covered: (version, origin) names one write, and one write has one content.
//! Expiry is not covered either; it is part of that content.
//!
//! Two replicas that applied the same writes have equal digests except while one
//! has already reaped or evicted what the other still holds.

use crate::clock::{Origin, Version};
use crate::hash::{KeyHash, splitmix64};

/// A digest, or the contribution of one item to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Digest {
    /// What one item contributes. Fixed for the life of a cluster.
    #[inline]
    pub fn of(hash: KeyHash, version: Version, origin: Origin, tombstone: bool) -> Self {
        // The low 16 bits of the hash are not kept in memory; bit 0 says what it is.
        let place = (hash.0 & !0xFFFF) | u64::from(tombstone);
        let write = splitmix64(version.get() ^ splitmix64(u64::from(origin.0)));
        Self(splitmix64(place ^ write))
    }

    /// The digest with the item `one` added.
    #[inline]
    #[must_use]
    pub fn with(self, one: Self) -> Self {
        Self(self.0.wrapping_add(one.0))
    }

    /// The digest with the item `one` taken out.
    #[inline]
    #[must_use]
    pub fn without(self, one: Self) -> Self {
        Self(self.0.wrapping_sub(one.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(hash: u64, version: u64, origin: u32, tombstone: bool) -> u64 {
        Digest::of(
            KeyHash(hash),
            Version::new(version).unwrap(),
            Origin(origin),
            tombstone,
        )
        .0
    }

    #[test]
    fn the_word_of_an_item_never_changes_between_releases() {
        assert_eq!(word(0, 0, 0, false), splitmix64(splitmix64(splitmix64(0))));
        assert_eq!(
            word(0x0123_4567_89AB_CDEF, 42, 7, true),
            0xA386_3891_3929_7BAF
        );
    }

    #[test]
    fn every_field_counts_and_the_low_hash_bits_do_not() {
        let word_of_all = word(1 << 20, 5, 6, false);
        assert_ne!(word_of_all, word(1 << 21, 5, 6, false));
        assert_ne!(word_of_all, word(1 << 20, 6, 6, false));
        assert_ne!(word_of_all, word(1 << 20, 5, 7, false));
        assert_ne!(word_of_all, word(1 << 20, 5, 6, true));
        assert_eq!(word_of_all, word((1 << 20) | 0xFFFF, 5, 6, false));
    }
}
