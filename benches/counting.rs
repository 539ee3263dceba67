//! What is counted for each request or turn: latencies in histograms, and hot keys.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use hypercache::hash::KeyHash;
use hypercache::store::HotKeys;
use hypercache::telemetry::latency::{Latencies, Operation, Tally, Via};

/// Keys that are used by turns: many more than the sketch has counters.
const KEYS: usize = 4096;

fn latencies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("latency");
    let latencies = Latencies::default();
    let mut nanos = 1_u64;
    let mut next = move || {
        // Around 2 us to 1 ms, so that the bucket is another each time.
        nanos = nanos
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        2_000 + (nanos >> 44)
    };
    group.bench_function("record", |b| {
        b.iter(|| latencies.record(Operation::Get, Via::Local, black_box(next()), 1));
    });
    let mut tally = Tally::default();
    group.bench_function("tally and record 16", |b| {
        b.iter(|| {
            for _ in 0..16 {
                black_box(&mut tally).count(Operation::Get, Via::Local);
            }
            tally.record(&latencies, Via::Local, black_box(next()));
        });
    });
    group.finish();
}

fn hot_keys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hot keys");
    let keys: Vec<Vec<u8>> = (0..KEYS)
        .map(|key| format!("key{key}").into_bytes())
        .collect();
    let keys: Vec<(KeyHash, &[u8])> = keys
        .iter()
        .map(|key| (KeyHash::of(key), &key[..]))
        .collect();
    // Uniform use is the worst: what is looked at takes over a counter each time.
    for (name, keys) in [("uniform", &keys[..]), ("one key", &keys[..1])] {
        let mut hot = HotKeys::new(1);
        let mut uses = keys.iter().cycle();
        group.bench_function(name, |b| {
            b.iter(|| {
                if let Some(&(hash, key)) = uses.next() {
                    hot.touch(hash, key);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, latencies, hot_keys);
criterion_main!(benches);
