//! The reference's defects that are the store's to avoid, one test or more for each.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod store_support;

use hypercache::clock::UnixMs;
use hypercache::hash::{CoreCount, CoreId, KeyHash};
use hypercache::store::{Applied, EvictionPolicy, Shard, ShardConfig};
use store_support::*;

#[test]
fn reference_defect_01_a_late_write_does_not_downgrade_a_newer_value() {
    let mut shard = Shard::new(roomy()).unwrap();
    set(&mut shard, b"key", 20, b"new").unwrap();
    assert_eq!(set(&mut shard, b"key", 10, b"old"), Ok(Applied::Stale));
    assert_eq!(read(&shard, b"key"), Some(&b"new"[..]));
    assert_eq!(shard.stats().stale_writes, 1);
}

#[test]
fn reference_defect_01_a_late_write_does_not_bring_a_deleted_key_back() {
    let mut shard = Shard::new(roomy()).unwrap();
    set(&mut shard, b"key", 10, b"value").unwrap();
    shard.apply(write(b"key", 20, 1, tombstone()), NOW).unwrap();
    assert_eq!(set(&mut shard, b"key", 15, b"hint"), Ok(Applied::Stale));
    assert_eq!(read(&shard, b"key"), None);
}

#[test]
fn reference_defect_01_a_deletion_that_overtakes_its_write_still_wins() {
    let mut shard = Shard::new(roomy()).unwrap();
    shard.apply(write(b"key", 20, 1, tombstone()), NOW).unwrap();
    assert_eq!(set(&mut shard, b"key", 10, b"value"), Ok(Applied::Stale));
    assert_eq!(read(&shard, b"key"), None);
    assert!(
        shard
            .resident(KeyHash::of(b"key"), b"key")
            .unwrap()
            .tombstone
    );
}

#[test]
fn reference_defect_01_a_late_deletion_does_not_remove_a_newer_value() {
    let mut shard = Shard::new(roomy()).unwrap();
    set(&mut shard, b"key", 20, b"new").unwrap();
    assert_eq!(
        shard.apply(write(b"key", 10, 1, tombstone()), NOW),
        Ok(Applied::Stale)
    );
    assert_eq!(read(&shard, b"key"), Some(&b"new"[..]));
}

#[test]
fn reference_defect_01_an_expired_value_still_beats_older_writes_until_it_is_reaped() {
    let mut shard = Shard::new(roomy()).unwrap();
    let soon = UnixMs(NOW.0 + 10);
    shard
        .apply(write(b"key", 20, 1, expiring(b"new", soon)), NOW)
        .unwrap();
    assert_eq!(
        shard.apply(write(b"key", 10, 1, value(b"old")), soon),
        Ok(Applied::Stale)
    );
    assert!(peek(&shard, b"key", soon).is_none());
}

#[test]
fn reference_defect_09_reading_does_not_move_the_expiry() {
    let mut shard = Shard::new(roomy()).unwrap();
    let at = UnixMs(NOW.0 + 1000);
    shard
        .apply(write(b"key", 1, 1, expiring(b"value", at)), NOW)
        .unwrap();
    for ms in (0..1000).step_by(10) {
        let item = shard.get(KeyHash::of(b"key"), b"key", UnixMs(NOW.0 + ms));
        assert_eq!(item.unwrap().expires_at, Some(at));
    }
    assert!(shard.get(KeyHash::of(b"key"), b"key", at).is_none());
}

#[test]
fn reference_defect_09_a_replica_takes_over_the_expiry_as_it_is() {
    let mut shard = Shard::new(roomy()).unwrap();
    let at = UnixMs(NOW.0 + 1000);
    let late = UnixMs(NOW.0 + 900);
    // The write arrives late and twice: neither restarts its time.
    for _ in 0..2 {
        shard
            .apply(write(b"key", 1, 1, expiring(b"value", at)), late)
            .unwrap();
    }
    assert_eq!(peek(&shard, b"key", late).unwrap().expires_at, Some(at));
    assert!(peek(&shard, b"key", at).is_none());
}

/// Compiles only while `Shard` is not `Sync`: a second impl would make `_` ambiguous.
#[allow(dead_code)]
fn reference_defect_10_a_shard_cannot_be_shared_between_threads() {
    trait AmbiguousIfSync<T> {
        fn check() {}
    }
    struct IsSync;
    impl<T: ?Sized> AmbiguousIfSync<()> for T {}
    impl<T: ?Sized + Sync> AmbiguousIfSync<IsSync> for T {}
    <Shard as AmbiguousIfSync<_>>::check();
}

#[test]
fn reference_defect_10_a_shard_can_be_handed_to_the_core_that_owns_it() {
    fn is_send<T: Send>() {}
    is_send::<Shard>();
}

#[test]
fn reference_defect_10_tombstones_belong_to_one_shard_and_are_bounded_there() {
    let cores = CoreCount::new(2).unwrap();
    let config = |core| ShardConfig {
        cores,
        core,
        tombstones_max: 10,
        ..roomy()
    };
    let mut shards = [0, 1].map(|core| Shard::new(config(CoreId::new(core))).unwrap());
    let mut routed = [0_u64; 2];
    for n in 0..100_u32 {
        let key = n.to_le_bytes();
        let core = KeyHash::of(&key).partition().core(cores).index();
        routed[core] += 1;
        shards[core]
            .apply(write(&key, 1, 1, tombstone()), NOW)
            .unwrap();
        assert!(shards.iter().all(|shard| shard.tombstones() <= 10));
    }
    for (shard, routed) in shards.iter().zip(routed) {
        assert_eq!(shard.tombstones(), 10);
        assert_eq!(shard.stats().tombstones_purged, routed - 10);
    }
}

#[test]
fn reference_defect_10_the_oldest_tombstone_is_purged_first() {
    let mut shard = Shard::new(ShardConfig {
        tombstones_max: 2,
        ..roomy()
    })
    .unwrap();
    for key in [b"a", b"b", b"c"] {
        shard.apply(write(key, 1, 1, tombstone()), NOW).unwrap();
    }
    assert_eq!(shard.resident(KeyHash::of(b"a"), b"a"), None);
    assert!(shard.resident(KeyHash::of(b"c"), b"c").is_some());
}

#[test]
fn reference_defect_13_the_item_bound_holds_after_every_write() {
    for eviction in EvictionPolicy::ALL {
        let config = ShardConfig {
            items_max: 100,
            eviction,
            ..roomy()
        };
        let mut shard = Shard::new(config).unwrap();
        for n in 0..10_000_u64 {
            let key = (n * 7919 % 500).to_le_bytes();
            set(&mut shard, &key, n + 1, b"value").unwrap();
            assert!(shard.len() <= 100, "{eviction}");
            assert!(
                read(&shard, &key).is_some(),
                "{eviction}: what was stored can be read"
            );
        }
        assert_eq!(shard.len(), 100, "{eviction}");
    }
}

#[test]
fn reference_defect_13_the_byte_bound_holds_after_every_write() {
    for eviction in EvictionPolicy::ALL {
        let config = ShardConfig {
            bytes_max: 2 << 20,
            eviction,
            ..roomy()
        };
        let mut shard = Shard::new(config).unwrap();
        let block = vec![7; 800_000];
        for n in 0..20_000_u64 {
            let key = (n * 7919 % 5_000).to_le_bytes();
            let len = if n % 1000 == 999 {
                block.len()
            } else {
                n as usize % 500
            };
            set(&mut shard, &key, n + 1, &block[..len]).unwrap();
            assert!(shard.bytes() <= 2 << 20, "{eviction}");
            assert_eq!(read(&shard, &key).map(<[u8]>::len), Some(len), "{eviction}");
        }
        assert!(shard.stats().evicted_items > 0, "{eviction}");
    }
}
