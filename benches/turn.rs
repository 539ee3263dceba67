//! A turn of a connection without its sockets: parse, handle, render, and for another core's
//! keys the way there and back. `instructions` counts the same without a clock.
#![allow(missing_docs)]

mod hot_path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hot_path::{CASES, HotPath};

fn turns(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("turn");
    for case in CASES {
        let Ok(mut path) = HotPath::new(case) else {
            unreachable!("10,000 small values fit")
        };
        assert!(path.is_right(case), "{}", case.name);
        group.throughput(Throughput::Elements(case.pipeline as u64));
        group.bench_function(case.name, |b| b.iter(|| path.turn()));
    }
    group.finish();
}

criterion_group!(benches, turns);
criterion_main!(benches);
