//! The shard's own speed: hits, misses, overwrites, writes that evict, and the end of all leases.
//!
//! Hashing a key is part of what is measured; random keys keep caches honest.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hypercache::clock::{Origin, UnixMs, Version};
use hypercache::hash::{CoreCount, CoreId, KeyHash};
use hypercache::store::{
    Content, EvictionPolicy, LEASES_MAX, Lease, Shard, ShardConfig, ValueIn, Write,
};

const NOW: UnixMs = UnixMs(1_800_000_000_000);
const VALUE: [u8; 100] = [7; 100];

/// A shard, a source of keys and a source of versions.
struct Bench {
    shard: Shard,
    random: u64,
    version: u64,
}

impl Bench {
    fn new(eviction: EvictionPolicy, items_max: usize, keys: u64) -> Self {
        let Some(cores) = CoreCount::new(1) else {
            unreachable!("one core is a core")
        };
        let config = ShardConfig {
            cores,
            core: CoreId::new(0),
            items_max,
            bytes_max: 1 << 32,
            value_bytes_max: 1 << 20,
            tombstones_max: 1 << 20,
            eviction,
        };
        let Ok(shard) = Shard::new(config) else {
            unreachable!("4 GiB are enough")
        };
        let mut bench = Self {
            shard,
            random: 1,
            version: 0,
        };
        (0..keys).for_each(|key| bench.put(key));
        bench
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn put(&mut self, key: u64) {
        self.version += 1;
        let key = key.to_le_bytes();
        let write = Write {
            hash: KeyHash::of(&key),
            key: &key,
            version: Version::new(self.version).unwrap_or(Version::MAX),
            origin: Origin(1),
            content: Content::Value {
                value: ValueIn::Bytes(&VALUE),
                expires_at: None,
            },
        };
        let _ = black_box(self.shard.apply(write, NOW));
    }

    fn get(&mut self, key: u64) -> usize {
        let key = key.to_le_bytes();
        let item = self.shard.get(KeyHash::of(&key), &key, NOW);
        item.map_or(0, |item| item.value.bytes().len())
    }
}

fn get(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("get");
    for keys in [10_000, 1_000_000] {
        let mut bench = Bench::new(EvictionPolicy::Sieve, 0, keys);
        group.bench_function(BenchmarkId::new("hit", keys), |b| {
            b.iter(|| {
                let key = bench.random(keys);
                black_box(bench.get(key))
            });
        });
        group.bench_function(BenchmarkId::new("miss", keys), |b| {
            b.iter(|| {
                let key = keys + bench.random(keys);
                black_box(bench.get(key))
            });
        });
    }
    for eviction in EvictionPolicy::ALL {
        let keys = 100_000;
        let mut bench = Bench::new(eviction, 0, keys);
        group.bench_function(BenchmarkId::new("hit by policy", eviction), |b| {
            b.iter(|| {
                let key = bench.random(keys);
                black_box(bench.get(key))
            });
        });
    }
    group.finish();
}

fn put(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("put");
    for keys in [10_000, 1_000_000] {
        let mut bench = Bench::new(EvictionPolicy::Sieve, 0, keys);
        group.bench_function(BenchmarkId::new("overwrite", keys), |b| {
            b.iter(|| {
                let key = bench.random(keys);
                bench.put(key);
            });
        });
    }
    for eviction in EvictionPolicy::ALL {
        let keys = 100_000;
        let mut bench = Bench::new(eviction, keys as usize, keys);
        group.bench_function(BenchmarkId::new("evict", eviction), |b| {
            b.iter(|| {
                // Half of what is asked for does not fit.
                let key = bench.random(2 * keys);
                if bench.get(key) == 0 {
                    bench.put(key);
                }
            });
        });
    }
    group.finish();
}

/// In one piece: nobody else has a turn meanwhile.
fn leases(criterion: &mut Criterion) {
    let keys = LEASES_MAX as u64;
    let mut bench = Bench::new(EvictionPolicy::S3Fifo, 0, keys);
    let mut group = criterion.benchmark_group("leases");
    group.sample_size(10);
    group.bench_function(BenchmarkId::new("end all", keys), |b| {
        b.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let held: Vec<Option<Lease>> = (0..keys)
                    .map(|key| {
                        let key = key.to_le_bytes();
                        bench.shard.lend(KeyHash::of(&key), &key, true, NOW)
                    })
                    .collect();
                let began = Instant::now();
                bench.shard.revoke_leases();
                took += began.elapsed();
                assert!(held.iter().flatten().count() == LEASES_MAX);
            }
            took
        });
    });
    group.finish();
}

criterion_group!(benches, get, put, leases);
criterion_main!(benches);
