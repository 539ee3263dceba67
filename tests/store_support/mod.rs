//! What the tests of the store share: short ways to make shards and writes.
#![allow(dead_code)] // Each test binary uses a part of it.
#![allow(clippy::unwrap_used)]

use hypercache::clock::{Origin, UnixMs, Version};
use hypercache::hash::{CoreCount, CoreId, KeyHash, PartitionId};
use hypercache::store::{
    Applied, Content, Digest, EvictionPolicy, ItemView, Shard, ShardConfig, TooLarge, ValueIn,
    Write,
};

/// A present for tests that do not care.
pub const NOW: UnixMs = UnixMs(1_800_000_000_000);
/// Long after.
pub const LATER: UnixMs = UnixMs(NOW.0 + 3_600_000);

/// The only shard of a node, without bounds that matter.
pub fn roomy() -> ShardConfig {
    ShardConfig {
        cores: CoreCount::new(1).unwrap(),
        core: CoreId::new(0),
        items_max: 0,
        bytes_max: 1 << 34,
        value_bytes_max: 1 << 20,
        tombstones_max: 1 << 20,
        eviction: EvictionPolicy::Sieve,
    }
}

pub fn version(raw: u64) -> Version {
    Version::new(raw).unwrap()
}

pub fn write<'a>(key: &'a [u8], at: u64, origin: u32, content: Content<'a>) -> Write<'a> {
    Write {
        hash: KeyHash::of(key),
        key,
        version: version(at),
        origin: Origin(origin),
        content,
    }
}

pub fn value(bytes: &[u8]) -> Content<'_> {
    Content::Value {
        value: ValueIn::Bytes(bytes),
        expires_at: None,
    }
}

pub fn expiring(bytes: &[u8], expires_at: UnixMs) -> Content<'_> {
    Content::Value {
        value: ValueIn::Bytes(bytes),
        expires_at: Some(expires_at),
    }
}

pub fn tombstone() -> Content<'static> {
    Content::Tombstone { expires_at: LATER }
}

/// Writes as the node itself would, now.
pub fn set(shard: &mut Shard, key: &[u8], at: u64, bytes: &[u8]) -> Result<Applied, TooLarge> {
    shard.apply(write(key, at, 1, value(bytes)), NOW)
}

pub fn peek<'a>(shard: &'a Shard, key: &[u8], now: UnixMs) -> Option<ItemView<'a>> {
    shard.peek(KeyHash::of(key), key, now)
}

/// The bytes of a visible value.
pub fn read<'a>(shard: &'a Shard, key: &[u8]) -> Option<&'a [u8]> {
    peek(shard, key, NOW).map(|item| item.value.bytes())
}

/// The digest of a partition from what a scan shows.
pub fn digest_by_scan(shard: &Shard, partition: PartitionId) -> Digest {
    let mut digest = Digest::default();
    shard.scan_stored(partition, |item| {
        let hash = KeyHash::of(item.key());
        assert_eq!(hash.partition(), partition);
        let known = item.resident();
        let one = Digest::of(hash, known.version, known.origin, known.tombstone);
        assert_eq!(item.digest(), one);
        digest = digest.with(one);
    });
    digest
}
