//! How many requests of a trace the store answers, by policy, size and number of cores.
//!
//! `hit_ratio list` names the traces; `hit_ratio TRACE FILE` writes one for `perf/hit-ratio` to
//! replay elsewhere, and prints what is asked of the store, a line for each: policy, items, cores,
//! hits. Without arguments each trace is replayed in small.
#![allow(missing_docs)]

use std::fs::File;
use std::io::{self, BufWriter};
use std::process::ExitCode;

use hypercache::clock::{Origin, UnixMs, Version};
use hypercache::hash::{CoreCount, KeyHash};
use hypercache::store::{Content, EvictionPolicy, Shard, ShardConfig, ValueIn, Write};
use hypercache_perf::trace::{Disturbance, Shape, write_oracle_general};

const NOW: UnixMs = UnixMs(1_800_000_000_000);
const SEED: u64 = 8;
const KEYS: usize = 100_000;
const REQUESTS: usize = 2_000_000;
/// The cache holds one in so many of the popular keys.
const SIZES: [usize; 2] = [100, 10];
const CORES: [usize; 4] = [1, 2, 8, 64];

const EXPONENTS: [f64; 3] = [0.7, 0.9, 1.1];
const DISTURBANCES: [(&str, Disturbance); 3] = [
    ("", Disturbance::None),
    ("-scans", Disturbance::Scans),
    ("-wonders", Disturbance::OneHitWonders),
];

/// All traces, with their names.
fn shapes(keys: usize, requests: usize) -> impl Iterator<Item = (String, Shape)> {
    EXPONENTS.into_iter().flat_map(move |exponent| {
        DISTURBANCES.into_iter().map(move |(suffix, disturbance)| {
            let shape = Shape {
                exponent,
                disturbance,
                keys,
                requests,
            };
            (format!("zipf-{exponent}{suffix}"), shape)
        })
    })
}

fn main() -> ExitCode {
    // Cargo passes `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments.as_slice() {
        [] => {
            for (name, shape) in shapes(KEYS / 100, REQUESTS / 100) {
                println!("{name}");
                replay_all(shape, &shape.trace(SEED));
            }
            ExitCode::SUCCESS
        }
        ["list"] => {
            shapes(KEYS, REQUESTS).for_each(|(name, _)| println!("{name}"));
            ExitCode::SUCCESS
        }
        [name, file] => {
            let Some((_, shape)) = shapes(KEYS, REQUESTS).find(|shape| shape.0 == name) else {
                eprintln!("there is no trace {name}");
                return ExitCode::from(2);
            };
            let trace = shape.trace(SEED);
            if let Err(error) = write(&trace, file) {
                eprintln!("{file}: {error}");
                return ExitCode::FAILURE;
            }
            replay_all(shape, &trace);
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(2),
    }
}

fn write(trace: &[u64], file: &str) -> io::Result<()> {
    write_oracle_general(trace, BufWriter::new(File::create(file)?))
}

fn replay_all(shape: Shape, trace: &[u64]) {
    for share in SIZES {
        let items = shape.keys / share;
        for count in CORES.into_iter().filter(|&count| count <= items) {
            let Some(cores) = CoreCount::new(count) else {
                unreachable!("a node may have {count} cores")
            };
            for policy in EvictionPolicy::ALL {
                let hits = replay(policy, items, cores, trace);
                println!("{policy} {items} {count} {hits}");
            }
        }
    }
}

/// Asks the shards of a node for each key, and stores what is missing.
fn replay(eviction: EvictionPolicy, items: usize, cores: CoreCount, trace: &[u64]) -> usize {
    let shards = cores.cores().map(|core| {
        let config = ShardConfig {
            cores,
            core,
            // As a node shares its capacity among its cores.
            items_max: items / cores.get() + usize::from(core.index() < items % cores.get()),
            bytes_max: 1 << 32,
            value_bytes_max: 8,
            tombstones_max: 1,
            eviction,
        };
        let Ok(shard) = Shard::new(config) else {
            unreachable!("4 GiB are enough")
        };
        shard
    });
    let mut shards: Vec<Shard> = shards.collect();
    let mut hits = 0;
    for (request, key) in trace.iter().enumerate() {
        let key = key.to_le_bytes();
        let hash = KeyHash::of(&key);
        let shard = &mut shards[hash.partition().core(cores).index()];
        if shard.get(hash, &key, NOW).is_some() {
            hits += 1;
            continue;
        }
        let write = Write {
            hash,
            key: &key,
            version: Version::new(request as u64 + 1).unwrap_or(Version::MAX),
            origin: Origin(1),
            content: Content::Value {
                value: ValueIn::Bytes(&key),
                expires_at: None,
            },
        };
        if shard.apply(write, NOW).is_err() {
            unreachable!("8 bytes are not too large")
        }
    }
    hits
}
