//! What a shard believes to take against what the allocator handed out.
//!
//! The allocator counts per thread, so that tests may run side by side.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod store_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use hypercache::clock::{UnixMs, Version};
use hypercache::hash::{KeyHash, PartitionId};
use hypercache::store::{Content, EvictionPolicy, Shard, ShardConfig};
use store_support::*;

struct Counting;

thread_local! {
    static BYTES: Cell<isize> = const { Cell::new(0) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// What a block really takes: its usable bytes and malloc's own 8.
fn real(block: *mut u8) -> isize {
    // SAFETY: the block is live and came from the system's malloc.
    unsafe { libc::malloc_usable_size(block.cast()) as isize + 8 }
}

// SAFETY: everything is handed on to `System`; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the one `System` asks for.
        let block = unsafe { System.alloc(layout) };
        BYTES.with(|bytes| bytes.set(bytes.get() + real(block)));
        CALLS.with(|calls| calls.set(calls.get() + 1));
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the one `System` asks for.
        let block = unsafe { System.alloc_zeroed(layout) };
        BYTES.with(|bytes| bytes.set(bytes.get() + real(block)));
        CALLS.with(|calls| calls.set(calls.get() + 1));
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        BYTES.with(|bytes| bytes.set(bytes.get() - real(block)));
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: the caller's promise is the one `System` asks for.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let before = real(block);
        // SAFETY: the caller's promise is the one `System` asks for.
        let block = unsafe { System.realloc(block, layout, size) };
        BYTES.with(|bytes| bytes.set(bytes.get() - before + real(block)));
        CALLS.with(|calls| calls.set(calls.get() + 1));
        block
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Fills a boxed shard by `fill` and compares; the shard's belief must be within a tenth.
fn compare(mix: &str, config: ShardConfig, fill: impl FnOnce(&mut Shard)) {
    let before = BYTES.get();
    let mut shard = Box::new(Shard::new(config).unwrap());
    fill(&mut shard);
    let real = BYTES.get() - before + shard.page_bytes() as isize;
    let believed = shard.bytes() as isize;
    drop(shard);
    let left = BYTES.get() - before;
    // Printing allocates too, so it comes last.
    println!("{mix}: {real} bytes really, {believed} believed");
    let off = (real - believed).abs();
    assert!(
        off * 10 <= real,
        "{mix}: {real} really, {believed} believed"
    );
    assert_eq!(left, 0, "{mix}: a dropped shard gives everything back");
}

fn fill(shard: &mut Shard, keys: u64, content: impl Fn(u64) -> Content<'static>) {
    for n in 0..keys {
        shard
            .apply(write(&n.to_le_bytes(), n + 1, 1, content(n)), NOW)
            .unwrap();
    }
}

static BLOCK: [u8; 300_000] = [7; 300_000];

#[test]
fn an_empty_shard_takes_what_it_says() {
    for eviction in EvictionPolicy::ALL {
        let config = ShardConfig {
            bytes_max: 64 << 20,
            eviction,
            ..roomy()
        };
        compare(eviction.name(), config, |_| {});
    }
}

#[test]
fn small_values_take_what_is_charged() {
    compare("small", roomy(), |shard| {
        fill(shard, 100_000, |n| value(&BLOCK[..n as usize % 64]))
    });
}

#[test]
fn large_values_take_what_is_charged() {
    let len = |n: u64| 10_000 + n as usize * 7919 % 290_000;
    compare("large", roomy(), |shard| {
        fill(shard, 500, |n| value(&BLOCK[..len(n)]))
    });
}

#[test]
fn expiring_values_take_what_is_charged() {
    compare("expiring", roomy(), |shard| {
        fill(shard, 100_000, |n| {
            expiring(&BLOCK[..100], UnixMs(NOW.0 + n * 100))
        });
    });
}

#[test]
fn tombstones_take_what_is_charged() {
    compare("tombstones", roomy(), |shard| {
        fill(shard, 100_000, |_| tombstone())
    });
}

#[test]
fn memory_is_as_charged_after_churn() {
    for eviction in EvictionPolicy::ALL {
        let config = ShardConfig {
            bytes_max: 8 << 20,
            eviction,
            ..roomy()
        };
        compare(eviction.name(), config, |shard| {
            let real = |shard: &Shard| BYTES.get() + shard.page_bytes() as isize;
            let before = real(shard) - shard.bytes() as isize;
            for n in 0..200_000_u64 {
                let key = (n * 7919 % 60_000).to_le_bytes();
                let len = [0, 10, 100, 1000, 20_000][n as usize % 5 * (n as usize / 40_000) % 5];
                let content = match n % 7 {
                    0 => tombstone(),
                    1 => expiring(&BLOCK[..len], UnixMs(NOW.0 + n)),
                    _ => value(&BLOCK[..len]),
                };
                shard.apply(write(&key, n + 1, 1, content), NOW).unwrap();
                if n % 1000 == 0 {
                    shard.reap(UnixMs(NOW.0 + n), 100);
                }
            }
            // The bound is one on real memory.
            assert!(real(shard) - before <= (8 << 20) + (8 << 20) / 50);
        });
    }
}

#[test]
fn memory_comes_back_when_a_grown_shard_is_emptied() {
    for by_eviction in [true, false] {
        compare("emptied", roomy(), |shard| {
            let empty = shard.bytes();
            fill(shard, 200_000, |_| value(b"value"));
            if by_eviction {
                assert_eq!(shard.evict(usize::MAX), 200_000);
            } else {
                shard.clear(Version::MAX);
                while shard.clear_step(1000) {}
            }
            // A few pages are spare, and what is known of the idle ones is kept.
            assert!(shard.bytes() - empty < 200_000);
        });
    }
}

#[test]
fn a_hit_allocates_nothing() {
    for eviction in EvictionPolicy::ALL {
        let mut shard = Shard::new(ShardConfig {
            eviction,
            ..roomy()
        })
        .unwrap();
        fill(&mut shard, 10_000, |n| value(&BLOCK[..n as usize * 3]));
        let keys: Vec<_> = (0..11_000_u64).map(u64::to_le_bytes).collect();
        let before = CALLS.get();
        let mut hits = 0;
        for key in &keys {
            hits += usize::from(shard.get(KeyHash::of(key), key, NOW).is_some());
        }
        assert_eq!(hits, 10_000);
        assert_eq!(
            CALLS.get(),
            before,
            "{eviction}: a get called the allocator"
        );
    }
}

/// What items of these lengths take beyond key and value while a shard grows from one growth
/// of its tables to the next: on average, and at worst.
fn overhead(value_len: impl Fn(u64) -> usize) -> (f64, f64) {
    const KEYS: u64 = 240_000;
    let mut shard = Shard::new(roomy()).unwrap();
    let empty = shard.bytes();
    let (mut payload, mut overheads) = (0, Vec::new());
    for n in 1..=KEYS {
        let len = value_len(n);
        payload += 8 + len;
        shard
            .apply(write(&n.to_le_bytes(), 1, 1, value(&BLOCK[..len])), NOW)
            .unwrap();
        if n > KEYS / 2 && n % 1000 == 0 {
            overheads.push((shard.bytes() - empty - payload) as f64 / n as f64);
        }
    }
    let mean = overheads.iter().sum::<f64>() / overheads.len() as f64;
    let worst = overheads.iter().copied().fold(0.0, f64::max);
    println!("{mean:.1} bytes per item on average, {worst:.1} at worst");
    (mean, worst)
}

/// Header 24, slab slot 8, a table slot that costs 5 bytes at a load between 7/16 and 7/8, and
/// the ends of pages. All tables are of about one size, so the whole shard swings with them.
#[test]
fn an_item_costs_about_42_bytes_beside_key_and_value() {
    // Key and value of 8 + 96 bytes fill a block exactly.
    let (mean, worst) = overhead(|_| 96);
    assert!(
        mean < 43.0 && worst < 45.0,
        "{mean:.1}, {worst:.1} at worst"
    );
}

#[test]
fn an_item_of_any_small_size_costs_less_than_48_bytes_beside_key_and_value() {
    let (mean, worst) = overhead(|n| 50 + n as usize % 100);
    assert!(
        mean < 46.0 && worst < 48.0,
        "{mean:.1}, {worst:.1} at worst"
    );
}

/// Pages of one size are worth nothing to another: what is left on them has to move.
#[test]
fn values_of_another_size_push_out_no_more_than_they_need() {
    drift(3 << 19, 20_000, [60, 200, 20, 300]);
}

/// Of pages for large blocks less than one each may be unused; blocks are rounded.
#[test]
fn so_do_larger_values() {
    drift(16 << 20, 8_000, [10_000, 3_000, 700, 15_000]);
}

fn drift(bytes_max: usize, keys: u64, lens: [usize; 4]) {
    for eviction in [EvictionPolicy::Sieve, EvictionPolicy::Lfu] {
        let mut shard = Shard::new(ShardConfig {
            bytes_max,
            eviction,
            ..roomy()
        })
        .unwrap();
        let (empty, mut at) = (shard.bytes(), 0);
        for len in lens {
            for n in 0..keys {
                at += 1;
                let key = (n * 7919 % keys + ((len as u64) << 32)).to_le_bytes();
                let content = value(&BLOCK[..len]);
                shard.apply(write(&key, at, 1, content), NOW).unwrap();
                // Some are used, so that eviction does not go by age alone.
                let used = (n * n % keys + ((len as u64) << 32)).to_le_bytes();
                shard.get(KeyHash::of(&used), &used, NOW);
                assert!(shard.bytes() <= bytes_max);
            }
            let mut payload = 0;
            for partition in PartitionId::all() {
                shard.scan(partition, NOW, |item| {
                    payload += item.key.len() + item.value.bytes().len();
                });
            }
            let overhead = shard.bytes() - empty - payload;
            println!("{eviction}, {len}: {overhead} for {} items", shard.len());
            let rounding = if len > 400 { payload / 8 } else { 0 };
            let pages = if len > 400 { 512 << 10 } else { 256 << 10 };
            assert!(overhead < 50 * shard.len() + rounding + pages);
            assert!(shard.is_full());
            for n in 0..keys {
                let key = (n + ((len as u64) << 32)).to_le_bytes();
                if let Some(item) = shard.peek(KeyHash::of(&key), &key, NOW) {
                    assert_eq!((item.key, item.value.bytes()), (&key[..], &BLOCK[..len]));
                }
            }
        }
    }
}

#[test]
fn tables_that_became_sparse_give_memory_back() {
    let mut shard = Shard::new(roomy()).unwrap();
    let empty = shard.bytes();
    fill(&mut shard, 400_000, |_| value(b"value"));
    shard.evict(380_000);
    let per_item = (shard.bytes() - empty) / 20_000;
    // 64 for the block, 8 for the slab, 40 for the smallest table that does not shrink;
    // tables that never shrank would make it 200.
    assert!(per_item < 128, "{per_item} bytes per item");
}
