//! The laws of a shard: it agrees with a map, bounds hold, order does not matter.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod store_support;

use std::collections::HashMap;
use std::sync::Arc;

use hypercache::clock::{UnixMs, Version};
use hypercache::hash::{KeyHash, PartitionId};
use hypercache::store::{Applied, Content, EvictionPolicy, Shard, ShardConfig, ValueIn, ValueView};
use proptest::collection::vec;
use proptest::prelude::*;
use store_support::*;

/// Lengths on both sides of what the store treats differently.
const LENS: [usize; 8] = [0, 1, 100, 3000, 16_383, 16_384, 100_000, 400_000];
const BYTES_MAX: usize = 1 << 20;

/// A write whose content follows from its key, version and origin, as in a cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Plan {
    key: u8,
    version: u64,
    origin: u32,
}

impl Plan {
    fn seed(self) -> usize {
        let seed = (self.version * 3 + u64::from(self.origin)) * 256 + u64::from(self.key);
        (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize
    }

    fn is_tombstone(self) -> bool {
        self.seed().is_multiple_of(4)
    }

    fn value(self) -> Vec<u8> {
        vec![self.seed() as u8; LENS[self.seed() / 4 % LENS.len()]]
    }

    fn expires_at(self) -> Option<UnixMs> {
        let ms = [
            None,
            None,
            Some(0),
            Some(NOW.0 + 500),
            Some(NOW.0 + 100_000),
        ];
        ms[self.seed() / 32 % ms.len()].map(UnixMs)
    }

    fn apply(self, shard: &mut Shard, now: UnixMs) -> Result<Applied, hypercache::store::TooLarge> {
        let value = self.value();
        let content = if self.is_tombstone() {
            Content::Tombstone {
                expires_at: self.expires_at().unwrap_or(LATER),
            }
        } else {
            let value = match self.seed() % 2 {
                0 => ValueIn::Bytes(&value),
                _ => ValueIn::Shared(Arc::from(&value[..])),
            };
            Content::Value {
                value,
                expires_at: self.expires_at(),
            }
        };
        shard.apply(write(&[self.key], self.version, self.origin, content), now)
    }

    fn is_visible(self, now: UnixMs) -> bool {
        !self.is_tombstone() && self.expires_at().is_none_or(|at| now < at)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(Plan),
    Get(u8),
    Pass(u64),
    Reap(usize),
    Evict(usize),
    Clear(u64),
}

fn plan() -> impl Strategy<Value = Plan> {
    (0_u8..24, 0_u64..60, 0_u32..3).prop_map(|(key, version, origin)| Plan {
        key,
        version,
        origin,
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => plan().prop_map(Op::Write),
        10 => (0_u8..24).prop_map(Op::Get),
        2 => (0_u64..2000).prop_map(Op::Pass),
        2 => (0_usize..10).prop_map(Op::Reap),
        1 => (0_usize..3).prop_map(Op::Evict),
        1 => (0_u64..60).prop_map(Op::Clear),
    ]
}

/// Checks everything that must hold between calls.
fn check_invariants(shard: &Shard, config: &ShardConfig) -> Result<(), TestCaseError> {
    prop_assert!(shard.bytes() <= config.bytes_max);
    prop_assert!(config.items_max == 0 || shard.len() <= config.items_max);
    prop_assert!(shard.tombstones() <= config.tombstones_max);
    let (mut values, mut tombstones) = (0, 0);
    for key in 0_u8..24 {
        let Some(item) = shard.resident(KeyHash::of(&[key]), &[key]) else {
            continue;
        };
        if item.tombstone {
            tombstones += 1
        } else {
            values += 1
        }
    }
    prop_assert_eq!((shard.len(), shard.tombstones()), (values, tombstones));
    for key in 0_u8..24 {
        let partition = KeyHash::of(&[key]).partition();
        prop_assert_eq!(shard.digest(partition), digest_by_scan(shard, partition));
    }
    Ok(())
}

fn check_content(shard: &Shard, plan: Plan, now: UnixMs) -> Result<(), TestCaseError> {
    let item = peek(shard, &[plan.key], now).unwrap();
    prop_assert_eq!(
        (item.version, item.origin.0),
        (version(plan.version), plan.origin)
    );
    prop_assert_eq!(item.key, &[plan.key]);
    prop_assert_eq!(item.expires_at, plan.expires_at());
    prop_assert!(item.value.bytes() == plan.value(), "the wrong value");
    let shared = matches!(item.value, ValueView::Shared(_));
    prop_assert_eq!(shared, item.value.bytes().len() >= 16_384);
    Ok(())
}

/// Runs `ops`; the model knows for each key the write that was stored last.
fn run(ops: &[Op], config: &ShardConfig, exact: bool) -> Result<(), TestCaseError> {
    let mut shard = Shard::new(config.clone()).unwrap();
    let mut model: HashMap<u8, Plan> = HashMap::new();
    let mut now = NOW;
    let mut cleared = None;
    for op in ops {
        match *op {
            Op::Write(plan) => {
                let before = model.get(&plan.key).copied();
                let resident = shard.resident(KeyHash::of(&[plan.key]), &[plan.key]);
                let applied = plan.apply(&mut shard, now);
                let newer = resident.is_none_or(|resident| {
                    (plan.version, plan.origin) > (resident.version.get(), resident.origin.0)
                }) && Some(plan.version) > cleared;
                let expected = if newer {
                    Applied::Stored
                } else {
                    Applied::Stale
                };
                prop_assert_eq!(applied, Ok(expected));
                if exact && let Some(before) = before {
                    let greater = (plan.version, plan.origin) > (before.version, before.origin);
                    prop_assert_eq!(greater, newer);
                }
                if newer {
                    model.insert(plan.key, plan);
                    // It was just written: whatever had to leave, it was not this.
                    let resident = shard
                        .resident(KeyHash::of(&[plan.key]), &[plan.key])
                        .unwrap();
                    prop_assert_eq!(resident.version, version(plan.version));
                    if plan.is_visible(now) {
                        check_content(&shard, plan, now)?;
                    }
                }
            }
            Op::Get(key) => {
                let stats = *shard.stats();
                let hit = shard.get(KeyHash::of(&[key]), &[key], now).is_some();
                prop_assert_eq!(shard.stats().gets, stats.gets + 1);
                prop_assert_eq!(shard.stats().hits, stats.hits + u64::from(hit));
                let visible = model.get(&key).is_some_and(|plan| plan.is_visible(now));
                let allowed = if exact {
                    hit == visible
                } else {
                    visible || !hit
                };
                prop_assert!(allowed, "hit {}, visible {}", hit, visible);
                if hit {
                    check_content(&shard, model[&key], now)?;
                }
            }
            Op::Pass(ms) => now = UnixMs(now.0 + ms),
            Op::Reap(_) | Op::Evict(_) if exact => {}
            Op::Reap(steps) => {
                shard.reap(now, steps);
            }
            Op::Evict(count) => {
                let before = shard.len();
                prop_assert_eq!(shard.evict(count), count.min(before));
                prop_assert_eq!(shard.len(), before - count.min(before));
            }
            Op::Clear(up_to) => {
                shard.clear(version(up_to));
                cleared = cleared.max(Some(up_to));
                model.retain(|_, plan| Some(plan.version) > cleared);
                for key in 0_u8..24 {
                    let hash = KeyHash::of(&[key]);
                    let left = shard.resident(hash, &[key]);
                    prop_assert!(left.is_none_or(|left| Some(left.version.get()) > cleared));
                    let seen = peek(&shard, &[key], now).map(|item| item.version.get());
                    prop_assert!(seen.is_none_or(|seen| Some(seen) > cleared));
                    shard.scan_stored(hash.partition(), |item| {
                        assert!(Some(item.resident().version.get()) > cleared);
                    });
                }
                while shard.clear_step(2) {}
            }
        }
        check_invariants(&shard, config)?;
    }
    shard.clear(Version::MAX);
    while shard.clear_step(1) {}
    prop_assert_eq!((shard.len(), shard.tombstones()), (0, 0));
    prop_assert_eq!(
        PartitionId::all().map(|at| shard.digest(at).0).max(),
        Some(0)
    );
    // A chunk of the slab and the pages that are spare may stay: 8 small and 2 large ones.
    const STAYS: usize = (8 << 14) + (2 << 17) + 32_000;
    let empty = Shard::new(config.clone()).unwrap().bytes();
    prop_assert!(shard.bytes() <= empty + STAYS, "{}", shard.bytes() - empty);
    Ok(())
}

proptest! {
    #[test]
    fn an_unbounded_shard_agrees_with_a_map(ops in vec(op(), 1..150)) {
        run(&ops, &roomy(), true)?;
    }

    #[test]
    fn a_shard_bounded_in_bytes_returns_the_last_write_or_nothing(ops in vec(op(), 1..150)) {
        for eviction in EvictionPolicy::ALL {
            let config = ShardConfig { bytes_max: BYTES_MAX, eviction, ..roomy() };
            run(&ops, &config, false)?;
        }
    }

    #[test]
    fn a_shard_bounded_in_items_returns_the_last_write_or_nothing(ops in vec(op(), 1..150)) {
        for eviction in EvictionPolicy::ALL {
            let config = ShardConfig { items_max: 5, tombstones_max: 2, eviction, ..roomy() };
            run(&ops, &config, false)?;
        }
    }

    #[test]
    fn apply_is_a_join_semilattice(
        (writes, again) in vec(plan(), 1..60).prop_flat_map(|writes| {
            let shuffled = Just(writes.clone()).prop_shuffle();
            let repeated = proptest::sample::subsequence(writes.clone(), 0..=writes.len());
            (Just(writes), (shuffled, repeated).prop_map(|(mut all, some)| {
                all.extend(some);
                all
            }).prop_shuffle())
        })
    ) {
        let mut one = Shard::new(roomy()).unwrap();
        let mut other = Shard::new(roomy()).unwrap();
        for plan in &writes {
            plan.apply(&mut one, NOW).unwrap();
        }
        for plan in &again {
            plan.apply(&mut other, LATER).unwrap();
        }
        for partition in PartitionId::all() {
            prop_assert_eq!(one.digest(partition), other.digest(partition));
        }
        for key in 0_u8..24 {
            let winner = writes.iter().filter(|plan| plan.key == key)
                .max_by_key(|plan| (plan.version, plan.origin));
            for shard in [&one, &other] {
                match winner.filter(|plan| plan.is_visible(NOW)) {
                    Some(&plan) => check_content(shard, plan, NOW)?,
                    None => prop_assert!(peek(shard, &[key], NOW).is_none()),
                }
            }
        }
    }
}
