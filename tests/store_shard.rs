//! What a shard does at its edges: full, too small, too large, expired, cleared.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod store_support;

use std::sync::Arc;

use hypercache::clock::UnixMs;
use hypercache::hash::{CoreCount, CoreId, KeyHash, PartitionId};
use hypercache::store::{
    Applied, Content, Digest, EvictionPolicy, KEY_BYTES_MAX, SHARED_VALUE_BYTES, Shard,
    ShardConfig, ShardStats, ValueIn, ValueView,
};
use store_support::*;

#[test]
fn a_shard_without_room_for_anything_useful_is_refused_with_the_least_that_works() {
    for eviction in EvictionPolicy::ALL {
        let refused = Shard::new(ShardConfig {
            bytes_max: 1000,
            eviction,
            ..roomy()
        });
        let bytes_min = refused.unwrap_err().bytes_min;
        let config = ShardConfig {
            bytes_max: bytes_min,
            eviction,
            ..roomy()
        };
        assert!(Shard::new(config).is_ok(), "{eviction} with {bytes_min}");
    }
}

#[test]
fn the_largest_legal_value_fits_whatever_was_there_before() {
    for eviction in EvictionPolicy::ALL {
        for bytes_max in [1 << 20, 8 << 20] {
            let config = ShardConfig {
                bytes_max,
                value_bytes_max: bytes_max,
                eviction,
                ..roomy()
            };
            let mut shard = Shard::new(config).unwrap();
            let largest = vec![7; bytes_max / 2 - 1024];
            for round in 0..3_u64 {
                for n in 0..30_000_u64 {
                    let content = if n % 3 == 0 {
                        tombstone()
                    } else {
                        value(b"small")
                    };
                    let version = round * 2 + 1;
                    shard
                        .apply(write(&n.to_le_bytes(), version, 1, content), NOW)
                        .unwrap();
                }
                let key = (round * 10_007).to_le_bytes();
                assert_eq!(
                    set(&mut shard, &key, round * 2 + 2, &largest),
                    Ok(Applied::Stored)
                );
                assert_eq!(read(&shard, &key), Some(&largest[..]), "{eviction}");
                assert!(shard.bytes() <= bytes_max);
            }
        }
    }
}

#[test]
fn an_item_that_grows_is_not_its_own_victim() {
    let bytes = vec![7; 400_000];
    for eviction in EvictionPolicy::ALL {
        let config = ShardConfig {
            bytes_max: 1 << 20,
            eviction,
            ..roomy()
        };
        let mut shard = Shard::new(config).unwrap();
        set(&mut shard, b"grows", 1, b"small").unwrap();
        // Everything else is used more often than what is about to grow.
        for n in 0..7_u8 {
            set(&mut shard, &[n], 1, &bytes[..100_000]).unwrap();
            for _ in 0..10 {
                shard.get(KeyHash::of(&[n]), &[n], NOW);
            }
        }
        set(&mut shard, b"grows", 2, &bytes).unwrap();
        assert!(shard.stats().evicted_items > 0);
        assert_eq!(read(&shard, b"grows"), Some(&bytes[..]), "{eviction}");
    }
}

#[test]
fn a_refused_write_touches_nothing() {
    let config = ShardConfig {
        bytes_max: 1 << 20,
        value_bytes_max: 1 << 19,
        ..roomy()
    };
    let mut shard = Shard::new(config).unwrap();
    set(&mut shard, b"key", 1, b"old").unwrap();
    let bytes = shard.bytes();
    // One is longer than a value may be, the other takes more than half of the shard.
    for len in [(1 << 19) + 1, 1 << 19] {
        assert!(set(&mut shard, b"key", 2, &vec![0; len]).is_err());
    }
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    assert!(set(&mut shard, &long, 1, b"value").is_err());
    assert!(shard.apply(write(&long, 1, 1, tombstone()), NOW).is_err());
    assert_eq!(read(&shard, b"key"), Some(&b"old"[..]));
    assert_eq!(
        (shard.len(), shard.tombstones(), shard.bytes()),
        (1, 0, bytes)
    );
    assert_eq!(shard.stats().too_large, 4);
    assert_eq!(shard.stats().sets, 1);
}

#[test]
fn keys_of_any_legal_length_are_told_apart() {
    let mut shard = Shard::new(roomy()).unwrap();
    for len in 1..=KEY_BYTES_MAX {
        set(&mut shard, &vec![0; len], 1, &len.to_le_bytes()).unwrap();
    }
    for len in 1..=KEY_BYTES_MAX {
        assert_eq!(read(&shard, &vec![0; len]), Some(&len.to_le_bytes()[..]));
    }
}

#[test]
fn equal_versions_are_ordered_by_origin() {
    let mut shard = Shard::new(roomy()).unwrap();
    let apply = |shard: &mut Shard, origin, bytes| {
        shard
            .apply(write(b"key", 1, origin, value(bytes)), NOW)
            .unwrap()
    };
    assert_eq!(apply(&mut shard, 5, b"five"), Applied::Stored);
    assert_eq!(apply(&mut shard, 4, b"four"), Applied::Stale);
    assert_eq!(apply(&mut shard, 5, b"five"), Applied::Stale);
    assert_eq!(apply(&mut shard, 6, b"six"), Applied::Stored);
    assert_eq!(read(&shard, b"key"), Some(&b"six"[..]));
}

#[test]
fn a_large_shared_value_is_kept_without_copying_and_a_small_one_is_copied() {
    let mut shard = Shard::new(roomy()).unwrap();
    for (len, is_shared) in [(SHARED_VALUE_BYTES, true), (SHARED_VALUE_BYTES - 1, false)] {
        let block: Arc<[u8]> = Arc::from(vec![7; len]);
        let key = len.to_le_bytes();
        let content = Content::Value {
            value: ValueIn::Shared(Arc::clone(&block)),
            expires_at: None,
        };
        shard.apply(write(&key, 1, 1, content), NOW).unwrap();
        match peek(&shard, &key, NOW).unwrap().value {
            ValueView::Shared(held) => assert!(is_shared && Arc::ptr_eq(held, &block)),
            ValueView::Bytes(_) => assert!(!is_shared),
        }
    }
}

#[test]
fn a_shared_value_outlives_its_item_for_those_who_hold_it() {
    let mut shard = Shard::new(roomy()).unwrap();
    let block = vec![7; SHARED_VALUE_BYTES];
    set(&mut shard, b"key", 1, &block).unwrap();
    let held = match peek(&shard, b"key", NOW).unwrap().value {
        ValueView::Shared(held) => Arc::clone(held),
        ValueView::Bytes(_) => panic!("not shared"),
    };
    shard.evict(1);
    assert_eq!(&held[..], &block[..]);
    // The shard counts it until whoever holds it has let go.
    assert!(Arc::strong_count(&held) <= 2);
}

#[test]
fn peek_neither_counts_nor_marks_and_get_does_both() {
    let config = ShardConfig {
        items_max: 2,
        eviction: EvictionPolicy::Lru,
        ..roomy()
    };
    let mut shard = Shard::new(config).unwrap();
    set(&mut shard, b"a", 1, b"").unwrap();
    set(&mut shard, b"b", 1, b"").unwrap();
    assert!(peek(&shard, b"a", NOW).is_some());
    set(&mut shard, b"c", 1, b"").unwrap();
    assert!(read(&shard, b"a").is_none(), "a peek does not save it");
    assert!(shard.get(KeyHash::of(b"b"), b"b", NOW).is_some());
    set(&mut shard, b"d", 1, b"").unwrap();
    assert!(read(&shard, b"b").is_some(), "a get does");
    let stats = *shard.stats();
    assert_eq!(
        (stats.gets, stats.hits, stats.sets, stats.evicted_items),
        (1, 1, 4, 2)
    );
    assert!(stats.evicted_bytes > 0);
}

#[test]
fn a_miss_a_tombstone_and_an_expired_value_are_no_hits() {
    let mut shard = Shard::new(roomy()).unwrap();
    shard
        .apply(write(b"deleted", 1, 1, tombstone()), NOW)
        .unwrap();
    shard
        .apply(write(b"expired", 1, 1, expiring(b"value", NOW)), NOW)
        .unwrap();
    for key in [&b"absent"[..], b"deleted", b"expired"] {
        assert!(shard.get(KeyHash::of(key), key, NOW).is_none());
    }
    assert_eq!((shard.stats().gets, shard.stats().hits), (3, 0));
}

#[test]
fn reaping_takes_bounded_steps_and_says_when_it_is_done() {
    let mut shard = Shard::new(roomy()).unwrap();
    for n in 0..1000_u64 {
        let at = UnixMs(NOW.0 + n);
        shard
            .apply(write(&n.to_le_bytes(), 1, 1, expiring(b"value", at)), NOW)
            .unwrap();
    }
    shard
        .apply(write(b"deleted", 1, 1, tombstone()), NOW)
        .unwrap();
    shard
        .apply(write(b"stays", 1, 1, value(b"value")), NOW)
        .unwrap();
    assert!(!shard.reap(NOW, 100), "nothing is due yet");
    assert!(shard.reap(UnixMs(NOW.0 + 5000), 100));
    assert!(shard.len() >= 1001 - 100);
    while shard.reap(UnixMs(NOW.0 + 5000), 100) {}
    assert_eq!(
        (shard.len(), shard.tombstones(), shard.stats().expired),
        (1, 1, 1000)
    );
    while shard.reap(UnixMs(LATER.0 + 1000), 100) {}
    assert_eq!((shard.len(), shard.tombstones()), (1, 0));
    assert_eq!(shard.stats().tombstones_expired, 1);
    assert_eq!(read(&shard, b"stays"), Some(&b"value"[..]));
}

#[test]
fn an_overwrite_moves_or_ends_the_expiry() {
    let mut shard = Shard::new(roomy()).unwrap();
    let soon = UnixMs(NOW.0 + 1000);
    shard
        .apply(write(b"later", 1, 1, expiring(b"", soon)), NOW)
        .unwrap();
    shard
        .apply(write(b"later", 2, 1, expiring(b"", LATER)), NOW)
        .unwrap();
    shard
        .apply(write(b"never", 1, 1, expiring(b"", soon)), NOW)
        .unwrap();
    shard.apply(write(b"never", 2, 1, value(b"")), NOW).unwrap();
    shard.apply(write(b"soon", 1, 1, value(b"")), NOW).unwrap();
    shard
        .apply(write(b"soon", 2, 1, expiring(b"", soon)), NOW)
        .unwrap();
    while shard.reap(UnixMs(LATER.0 - 1), 1) {}
    assert!(read(&shard, b"later").is_some() && read(&shard, b"never").is_some());
    assert_eq!(shard.resident(KeyHash::of(b"soon"), b"soon"), None);
    while shard.reap(UnixMs(LATER.0 + 1000), 1) {}
    assert_eq!((shard.len(), shard.stats().expired), (1, 2));
}

#[test]
fn an_expired_tombstone_makes_place_for_any_write() {
    let mut shard = Shard::new(roomy()).unwrap();
    shard.apply(write(b"key", 20, 1, tombstone()), NOW).unwrap();
    while shard.reap(UnixMs(LATER.0 + 1000), 10) {}
    assert_eq!(set(&mut shard, b"key", 10, b"value"), Ok(Applied::Stored));
}

#[test]
fn tombstones_are_purged_when_no_value_is_left_to_evict() {
    let mut shard = Shard::new(ShardConfig {
        bytes_max: 1 << 20,
        ..roomy()
    })
    .unwrap();
    for n in 0..100_000_u64 {
        shard
            .apply(write(&n.to_le_bytes(), 1, 1, tombstone()), NOW)
            .unwrap();
        assert!(shard.bytes() <= 1 << 20);
    }
    let stats = *shard.stats();
    assert!(stats.tombstones_purged > 0 && shard.tombstones() > 1000);
    assert_eq!(stats.tombstones_purged + shard.tombstones() as u64, 100_000);
}

#[test]
fn a_shard_without_room_for_tombstones_still_keeps_the_last() {
    let mut shard = Shard::new(ShardConfig {
        tombstones_max: 0,
        ..roomy()
    })
    .unwrap();
    set(&mut shard, b"key", 1, b"value").unwrap();
    shard.apply(write(b"key", 2, 1, tombstone()), NOW).unwrap();
    assert_eq!((shard.len(), shard.tombstones()), (0, 1));
    assert_eq!(set(&mut shard, b"key", 1, b"value"), Ok(Applied::Stale));
}

#[test]
fn clearing_takes_bounded_steps_and_leaves_nothing() {
    let mut shard = Shard::new(roomy()).unwrap();
    for n in 0..1000_u64 {
        let content = if n % 2 == 0 {
            tombstone()
        } else {
            expiring(b"value", LATER)
        };
        shard
            .apply(write(&n.to_le_bytes(), 1, 1, content), NOW)
            .unwrap();
    }
    shard.clear(version(1));
    let mut calls = 1;
    while shard.clear_step(10) {
        calls += 1;
        assert_eq!(shard.len() + shard.tombstones(), 1000 - 10 * (calls - 1));
    }
    assert_eq!((shard.len(), shard.tombstones(), calls), (0, 0, 101));
    assert_eq!(set(&mut shard, b"old", 1, b"value"), Ok(Applied::Stale));
    assert_eq!(set(&mut shard, b"new", 2, b"value"), Ok(Applied::Stored));
    shard.clear(version(2));
    assert!(peek(&shard, b"new", NOW).is_none(), "at once");
    while shard.clear_step(10) {}
    assert!(PartitionId::all().all(|partition| shard.digest(partition) == Digest::default()));
    assert_eq!(shard.stats().evicted_items, 0, "clearing is not evicting");
    assert!(
        !shard.reap(UnixMs(u64::MAX), 10),
        "nothing is left in the wheel"
    );
}

#[test]
fn a_scan_shows_what_is_visible_in_one_partition() {
    let cores = CoreCount::new(512).unwrap();
    let core = CoreId::new(3);
    let mut shard = Shard::new(ShardConfig {
        cores,
        core,
        ..roomy()
    })
    .unwrap();
    let keys = (0..50_000_u32).map(u32::to_le_bytes);
    let ours = keys.filter(|key| KeyHash::of(key).partition().core(cores) == core);
    let mut expected = vec![Vec::new(); 4096];
    for (n, key) in ours.enumerate() {
        let content = match n % 3 {
            0 => tombstone(),
            1 => expiring(b"", UnixMs(NOW.0 + 1)),
            _ => value(b""),
        };
        if n % 3 == 2 {
            expected[KeyHash::of(&key).partition().index()].push(key.to_vec());
        }
        shard.apply(write(&key, 1, 1, content), NOW).unwrap();
    }
    for partition in PartitionId::all() {
        let mut seen = Vec::new();
        shard.scan(partition, UnixMs(NOW.0 + 1), |item| {
            seen.push(item.key.to_vec())
        });
        seen.sort();
        expected[partition.index()].sort();
        assert_eq!(seen, expected[partition.index()]);
        assert_eq!(shard.digest(partition), digest_by_scan(&shard, partition));
    }
}

#[test]
fn extreme_times_and_versions_do_no_harm() {
    let mut shard = Shard::new(roomy()).unwrap();
    let times = [0, 1, NOW.0, u64::MAX - 1, u64::MAX];
    let versions = [0, 1, (1 << 53) - 1];
    let mut n = 0_u32;
    for now in times {
        for expires_at in times {
            for version in versions {
                n += 1;
                let key = (n % 20).to_le_bytes();
                let content = expiring(b"value", UnixMs(expires_at));
                shard
                    .apply(write(&key, version, n, content), UnixMs(now))
                    .unwrap();
                let content = Content::Tombstone {
                    expires_at: UnixMs(expires_at),
                };
                shard
                    .apply(write(&key[..2], version, n, content), UnixMs(now))
                    .unwrap();
                shard.reap(UnixMs(now), 3);
            }
        }
    }
    while shard.reap(UnixMs(u64::MAX), 100) {}
    // Only what expires in the last tick of time may be left.
    for key in (0..20_u32).map(u32::to_le_bytes) {
        let left = shard.resident(KeyHash::of(&key), &key);
        assert!(left.is_none_or(|item| item.expires_at.unwrap().0 >= u64::MAX - 255));
    }
}

#[test]
fn a_new_shard_has_counted_nothing() {
    let shard = Shard::new(roomy()).unwrap();
    assert_eq!(*shard.stats(), ShardStats::default());
    assert!(shard.is_empty());
}
