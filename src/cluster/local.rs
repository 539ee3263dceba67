//! One core's items and the clock that stamps their versions.

use crate::clock::{HybridClock, Origin, UnixMs, Version};
use crate::hash::KeyHash;
use crate::store::{
    Applied, Content, HotKeys, ItemView, Resident, Shard, TooLarge, ValueIn, Write,
};

/// The items of one core, and its clock. Invariant: the clock is behind nothing
/// that was ever applied here.
#[derive(Debug)]
pub struct LocalStore {
    shard: Shard,
    clock: HybridClock,
    origin: Origin,
    tombstone_ttl_ms: u64,
    hot: HotKeys,
}

impl LocalStore {
    /// The store of one core of the node called by `origin`.
    pub fn new(shard: Shard, origin: Origin, tombstone_ttl_ms: u64) -> Self {
        Self {
            shard,
            clock: HybridClock::new(origin),
            origin,
            tombstone_ttl_ms,
            hot: HotKeys::new(u64::from(origin.0)),
        }
    }

    /// The keys that are used most, by clients and by other nodes.
    pub fn hot_keys(&self) -> &HotKeys {
        &self.hot
    }

    /// The same, to be aged.
    pub fn hot_keys_mut(&mut self) -> &mut HotKeys {
        &mut self.hot
    }

    /// Who this node is in versions.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The items themselves.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The items themselves, for housekeeping (reaping, eviction, clearing).
    pub fn shard_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }

    /// A version newer than all that was applied or observed here.
    #[inline]
    pub fn stamp(&mut self, now: UnixMs) -> Version {
        self.clock.stamp(now)
    }

    /// Learns of a version that exists elsewhere.
    pub fn observe(&mut self, seen: Version) {
        self.clock.observe(seen);
    }

    /// Until when a delete stamped now is remembered.
    pub fn tombstone_expiry(&self, now: UnixMs) -> UnixMs {
        UnixMs(now.0.saturating_add(self.tombstone_ttl_ms))
    }

    /// Forgets everything written up to `version`; what comes later under such a version is
    /// stale.
    pub fn clear(&mut self, version: Version) {
        self.clock.observe(version);
        self.shard.clear(version);
    }

    /// Reads a key.
    #[inline]
    pub fn get(&mut self, hash: KeyHash, key: &[u8], now: UnixMs) -> Option<ItemView<'_>> {
        self.hot.touch(hash, key);
        self.shard.get(hash, key, now)
    }

    /// Hears of what other cores have read from their copies.
    pub fn sweep_leases(&mut self) {
        let Self { shard, hot, .. } = self;
        shard.sweep_leases(|hash, key, uses| hot.add(hash, key, u64::from(uses)));
    }

    /// What is known of a key, even if it is deleted or expired.
    pub fn resident(&self, hash: KeyHash, key: &[u8]) -> Option<Resident> {
        self.shard.resident(hash, key)
    }

    /// Takes in a write of this node under a fresh version.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when the value does not fit; what the key held stays.
    pub fn write(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        content: Content<'_>,
        now: UnixMs,
    ) -> Result<Version, TooLarge> {
        let version = self.clock.stamp(now);
        let applied = self.apply(hash, key, version, self.origin, content, now)?;
        debug_assert!(
            applied == Applied::Stored,
            "a fresh stamp is newer than all before it"
        );
        Ok(version)
    }

    /// Writes a key and tells the version it got.
    ///
    /// # Errors
    ///
    /// As [`LocalStore::write`].
    pub fn put(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        value: ValueIn<'_>,
        expires_at: Option<UnixMs>,
        now: UnixMs,
    ) -> Result<Version, TooLarge> {
        self.write(hash, key, Content::Value { value, expires_at }, now)
    }

    /// Deletes a key, leaving a tombstone.
    ///
    /// # Errors
    ///
    /// As [`LocalStore::write`].
    pub fn delete(&mut self, hash: KeyHash, key: &[u8], now: UnixMs) -> Result<Version, TooLarge> {
        let expires_at = self.tombstone_expiry(now);
        self.write(hash, key, Content::Tombstone { expires_at }, now)
    }

    /// Takes in a write that was stamped here or elsewhere.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when it does not fit; what the key held stays.
    pub fn apply(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        version: Version,
        origin: Origin,
        content: Content<'_>,
        now: UnixMs,
    ) -> Result<Applied, TooLarge> {
        self.hot.touch(hash, key);
        let write = Write {
            hash,
            key,
            version,
            origin,
            content,
        };
        let applied = self.shard.apply(write, now)?;
        self.clock.observe(version);
        Ok(applied)
    }
}
