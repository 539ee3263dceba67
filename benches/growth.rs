//! How long a write takes while a shard grows to millions of items, and what they cost.
//!
//! `cargo bench --bench growth -- [items] [cores]`: prints percentiles of the time of one
//! `apply`, the overhead per item the shard accounts for, and what the process takes.
//! Growing must not stop the world: compare the maximum with the percentiles.
//!
//! glibc's malloc keeps small freed blocks apart and merges them all at once when a large
//! block is freed: after millions of small ones that is one call of 100 ms. Reaping shows
//! it; `GLIBC_TUNABLES=glibc.malloc.mxfast=0` shows how it is without.

use std::hint::black_box;
use std::time::Instant;

use hypercache::clock::{Origin, UnixMs, Version};
use hypercache::hash::{CoreCount, CoreId, KeyHash};
use hypercache::store::{Content, EvictionPolicy, Shard, ShardConfig, ValueIn, Write};

const NOW: UnixMs = UnixMs(1_800_000_000_000);
const VALUE: [u8; 32] = [7; 32];
const KEY_BYTES: usize = 8;

fn main() {
    // Cargo passes `--bench`; what is left are our two numbers.
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|arg| arg.parse::<usize>().ok());
    let items = numbers.next().unwrap_or(5_000_000);
    let cores = numbers
        .next()
        .and_then(CoreCount::new)
        .or(CoreCount::new(1));
    let Some(cores) = cores else { return };

    for expiring in [false, true] {
        grow(items, cores, expiring);
    }
}

fn grow(items: usize, cores: CoreCount, expiring: bool) {
    let core = CoreId::new(0);
    let config = ShardConfig {
        cores,
        core,
        items_max: 0,
        bytes_max: 1 << 40,
        value_bytes_max: 1 << 20,
        tombstones_max: 1 << 20,
        eviction: EvictionPolicy::Sieve,
    };
    let Ok(mut shard) = Shard::new(config) else {
        return;
    };
    let mut nanos: Vec<u32> = Vec::with_capacity(items);
    nanos.resize(items, 1);
    nanos.clear();
    let rss_before = rss_bytes();
    let bytes_before = shard.bytes();
    let mut version = 0;
    let mut worst = (0, 0);
    for n in 0_u64.. {
        if shard.len() == items {
            break;
        }
        let key = n.to_le_bytes();
        let hash = KeyHash::of(&key);
        if hash.partition().core(cores) != core {
            continue;
        }
        version += 1;
        let expires_at = expiring.then(|| UnixMs(NOW.0 + 1000 + n % 3_600_000));
        let write = Write {
            hash,
            key: &key,
            version: Version::new(version).unwrap_or(Version::MAX),
            origin: Origin(1),
            content: Content::Value {
                value: ValueIn::Bytes(&VALUE),
                expires_at,
            },
        };
        let started = Instant::now();
        let _ = black_box(shard.apply(write, NOW));
        let took = started.elapsed().as_nanos().min(u128::from(u32::MAX)) as u32;
        worst = worst.max((took, shard.len()));
        nanos.push(took);
    }
    nanos.sort_unstable();
    let at = |share: f64| nanos[((nanos.len() - 1) as f64 * share) as usize];
    let per_item = |bytes: usize| bytes as f64 / items as f64 - (KEY_BYTES + VALUE.len()) as f64;
    println!(
        "{items} items of one of {} cores, expiring: {expiring}",
        cores.get()
    );
    println!(
        "  apply ns: p50 {}, p99 {}, p99.9 {}",
        at(0.5),
        at(0.99),
        at(0.999)
    );
    println!(
        "  apply ns: p99.99 {}, p99.999 {}, max {} (at {} items)",
        at(0.9999),
        at(0.99999),
        worst.0,
        worst.1
    );
    let over = nanos.iter().filter(|&&took| took > 1_000_000).count();
    println!("  applies over 1 ms: {over}");
    println!(
        "  overhead per item: {:.1} bytes accounted",
        per_item(shard.bytes() - bytes_before)
    );
    if !expiring {
        // Only the first run starts from a process that has freed nothing yet.
        let rss = rss_bytes().saturating_sub(rss_before);
        println!("  overhead per item: {:.1} bytes resident", per_item(rss));
        println!("  resident in all: {} MiB", rss_bytes() >> 20);
    }

    let started = Instant::now();
    let later = UnixMs(NOW.0 + 7_200_000);
    let mut worst = 0;
    let mut more = expiring;
    while more {
        let step = Instant::now();
        more = shard.reap(later, 64);
        worst = worst.max(step.elapsed().as_nanos());
    }
    if expiring {
        let took = started.elapsed().as_millis();
        println!("  reaping all in steps of 64: {took} ms, longest call {worst} ns");
    }
}

/// What the process takes of physical memory.
fn rss_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}
