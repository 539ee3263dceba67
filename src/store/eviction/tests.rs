//! Each policy against its paper's algorithm, written the slow and obvious way.

use super::super::slab::tests::add;
use super::super::{Content, Shard, ShardConfig, ValueIn, Write};
use super::*;
use crate::clock::{Origin, UnixMs, Version};
use crate::hash::{CoreCount, CoreId, KeyHash};
use hypercache_perf::trace::{Disturbance, Shape};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet, VecDeque};

/// A policy as its paper tells it, over plain numbers.
trait Model {
    fn insert(&mut self, id: u64);
    fn access(&mut self, id: u64);
    fn remove(&mut self, id: u64);
    fn evict(&mut self) -> Option<u64>;
}

#[derive(Default)]
struct SieveModel {
    /// The newest first.
    queue: Vec<u64>,
    visited: HashSet<u64>,
    hand: Option<u64>,
}

impl SieveModel {
    fn before(&self, id: u64) -> Option<u64> {
        let at = self.queue.iter().position(|&other| other == id).unwrap();
        at.checked_sub(1).map(|at| self.queue[at])
    }
}

impl Model for SieveModel {
    fn insert(&mut self, id: u64) {
        self.queue.insert(0, id);
    }

    fn access(&mut self, id: u64) {
        self.visited.insert(id);
    }

    fn remove(&mut self, id: u64) {
        if self.hand == Some(id) {
            self.hand = self.before(id);
        }
        self.queue.retain(|&other| other != id);
        self.visited.remove(&id);
    }

    fn evict(&mut self) -> Option<u64> {
        let tail = *self.queue.last()?;
        let mut at = self.hand.unwrap_or(tail);
        while self.visited.remove(&at) {
            at = self.before(at).unwrap_or(tail);
        }
        self.hand = self.before(at);
        self.queue.retain(|&other| other != at);
        Some(at)
    }
}

/// A ring that stands still and a hand that moves.
#[derive(Default)]
struct ClockModel {
    ring: Vec<u64>,
    referenced: HashSet<u64>,
    hand: usize,
}

impl Model for ClockModel {
    fn insert(&mut self, id: u64) {
        self.ring.insert(self.hand, id);
        self.hand = (self.hand + 1) % self.ring.len();
    }

    fn access(&mut self, id: u64) {
        self.referenced.insert(id);
    }

    fn remove(&mut self, id: u64) {
        let at = self.ring.iter().position(|&other| other == id).unwrap();
        self.ring.remove(at);
        self.referenced.remove(&id);
        if at < self.hand {
            self.hand -= 1;
        }
        self.hand %= self.ring.len().max(1);
    }

    fn evict(&mut self) -> Option<u64> {
        while self.referenced.remove(self.ring.get(self.hand)?) {
            self.hand = (self.hand + 1) % self.ring.len();
        }
        let victim = self.ring[self.hand];
        self.remove(victim);
        Some(victim)
    }
}

#[derive(Default)]
struct LruModel {
    recent: VecDeque<u64>,
}

impl Model for LruModel {
    fn insert(&mut self, id: u64) {
        self.recent.push_front(id);
    }

    fn access(&mut self, id: u64) {
        self.remove(id);
        self.insert(id);
    }

    fn remove(&mut self, id: u64) {
        self.recent.retain(|&other| other != id);
    }

    fn evict(&mut self) -> Option<u64> {
        self.recent.pop_back()
    }
}

#[derive(Default)]
struct LfuModel {
    /// Count, then when it was last used.
    uses: HashMap<u64, (u32, u64)>,
    time: u64,
}

impl Model for LfuModel {
    fn insert(&mut self, id: u64) {
        self.time += 1;
        self.uses.insert(id, (1, self.time));
    }

    fn access(&mut self, id: u64) {
        self.time += 1;
        let uses = self.uses.get_mut(&id).unwrap();
        *uses = ((uses.0 + 1).min(255), self.time);
    }

    fn remove(&mut self, id: u64) {
        self.uses.remove(&id);
    }

    fn evict(&mut self) -> Option<u64> {
        let victim = *self.uses.iter().min_by_key(|(_, uses)| **uses)?.0;
        self.uses.remove(&victim);
        Some(victim)
    }
}

#[derive(Default)]
struct S3FifoModel {
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    /// The latest last.
    ghost: VecDeque<u64>,
    ghost_max: usize,
    uses: HashMap<u64, u32>,
}

impl Model for S3FifoModel {
    fn insert(&mut self, id: u64) {
        self.uses.insert(id, 0);
        let remembered = self.ghost.iter().position(|&other| other == id);
        if remembered.and_then(|at| self.ghost.remove(at)).is_some() {
            &mut self.main
        } else {
            &mut self.small
        }
        .push_back(id);
    }

    fn access(&mut self, id: u64) {
        let uses = self.uses.get_mut(&id).unwrap();
        *uses = (*uses + 1).min(3);
    }

    fn remove(&mut self, id: u64) {
        self.small.retain(|&other| other != id);
        self.main.retain(|&other| other != id);
        self.uses.remove(&id);
    }

    fn evict(&mut self) -> Option<u64> {
        loop {
            let tenth = self.small.len() * 10 >= self.small.len() + self.main.len();
            if (tenth || self.main.is_empty()) && !self.small.is_empty() {
                let id = self.small.pop_front()?;
                if self.uses[&id] > 1 {
                    self.uses.insert(id, 0);
                    self.main.push_back(id);
                    continue;
                }
                self.ghost.push_back(id);
                if self.ghost.len() > self.ghost_max {
                    self.ghost.pop_front();
                }
                self.uses.remove(&id);
                return Some(id);
            }
            let id = self.main.pop_front()?;
            if self.uses[&id] == 0 {
                self.uses.remove(&id);
                return Some(id);
            }
            *self.uses.get_mut(&id).unwrap() -= 1;
            self.main.push_back(id);
        }
    }
}

/// The model of a policy for so many items.
fn model(policy: EvictionPolicy, items: usize) -> Box<dyn Model> {
    match policy {
        EvictionPolicy::Sieve => Box::new(SieveModel::default()),
        EvictionPolicy::S3Fifo => Box::new(S3FifoModel {
            ghost_max: items - items / 10,
            ..S3FifoModel::default()
        }),
        EvictionPolicy::Lru => Box::new(LruModel::default()),
        EvictionPolicy::Lfu => Box::new(LfuModel::default()),
        EvictionPolicy::Clock => Box::new(ClockModel::default()),
    }
}

/// More than the tests of single evictions put in: there the ghost forgets nothing.
const ITEMS: usize = 1 << 16;

/// A policy over numbered items, each held by a key of its number.
struct Policed {
    slab: Slab,
    evictor: Evictor,
    ids: HashMap<u64, ItemId>,
}

impl Policed {
    fn new(policy: EvictionPolicy) -> Self {
        Self {
            slab: Slab::default(),
            evictor: Evictor::new(policy, ITEMS),
            ids: HashMap::new(),
        }
    }

    fn insert(&mut self, number: u64) {
        let id = add(&mut self.slab, number, None);
        self.evictor.insert(&mut self.slab, id);
        self.ids.insert(number, id);
    }

    fn access(&mut self, number: u64) {
        self.evictor.access(&mut self.slab, self.ids[&number]);
    }

    fn remove(&mut self, number: u64) {
        let id = self.ids.remove(&number).unwrap();
        self.evictor.remove(&mut self.slab, id);
        self.slab.remove(id);
    }

    fn evict(&mut self) -> Option<u64> {
        let id = self.evictor.evict(&mut self.slab)?;
        let key = self.slab.remove(id).key().try_into().unwrap();
        let number = u64::from_le_bytes(key);
        self.ids.remove(&number);
        Some(number)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Use(u64),
    Remove(u64),
    Evict,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Fewer keys than a sweep may spare: within it the papers hold to the letter.
    let op = prop_oneof![
        6 => (0_u64..40).prop_map(Op::Use),
        1 => (0_u64..40).prop_map(Op::Remove),
        3 => Just(Op::Evict),
    ];
    vec(op, 1..400)
}

proptest! {
    #[test]
    fn every_policy_evicts_what_its_paper_says(ops in ops()) {
        for policy in EvictionPolicy::ALL {
            let mut policed = Policed::new(policy);
            let mut model = model(policy, ITEMS);
            for op in &ops {
                match *op {
                    Op::Use(number) if policed.ids.contains_key(&number) => {
                        policed.access(number);
                        model.access(number);
                    }
                    Op::Use(number) => {
                        policed.insert(number);
                        model.insert(number);
                    }
                    Op::Remove(number) if policed.ids.contains_key(&number) => {
                        policed.remove(number);
                        model.remove(number);
                    }
                    Op::Remove(_) => {}
                    Op::Evict => prop_assert_eq!(policed.evict(), model.evict(), "{}", policy),
                }
            }
        }
    }
}

#[test]
fn every_item_is_evicted_once_and_only_once() {
    for policy in EvictionPolicy::ALL {
        let mut policed = Policed::new(policy);
        for number in 0..10_000 {
            policed.insert(number);
            for _ in 0..number % 5 {
                policed.access(number);
            }
        }
        let evicted: HashSet<_> = std::iter::from_fn(|| policed.evict()).collect();
        assert_eq!(evicted.len(), 10_000, "{policy}");
    }
}

#[test]
fn a_sweep_over_items_that_were_all_used_stops() {
    for policy in [
        EvictionPolicy::Sieve,
        EvictionPolicy::Clock,
        EvictionPolicy::S3Fifo,
    ] {
        let mut policed = Policed::new(policy);
        for number in 0..10_000 {
            policed.insert(number);
        }
        for number in 0..10_000 {
            (0..3).for_each(|_| policed.access(number));
        }
        let used = |policed: &Policed| {
            let marked = |id: &&ItemId| policed.slab[**id].state() & 0b011 != 0;
            policed.ids.values().filter(marked).count()
        };
        let before = used(&policed);
        assert!(policed.evict().is_some());
        assert!(before - used(&policed) <= SWEEP_MAX + 1, "{policy}");
    }
}

#[test]
fn an_item_taken_out_and_put_back_keeps_its_standing() {
    let mut policed = Policed::new(EvictionPolicy::Lfu);
    for number in 0..3 {
        policed.insert(number);
    }
    policed.access(0);
    let id = policed.ids[&0];
    policed.evictor.remove(&mut policed.slab, id);
    policed.evictor.insert(&mut policed.slab, id);
    assert_eq!(
        [policed.evict(), policed.evict(), policed.evict()],
        [Some(1), Some(2), Some(0)]
    );
}

#[test]
fn counts_of_lfu_stop_at_their_maximum() {
    let mut policed = Policed::new(EvictionPolicy::Lfu);
    policed.insert(1);
    policed.insert(2);
    (0..1000).for_each(|_| policed.access(1));
    (0..300).for_each(|_| policed.access(2));
    assert_eq!(
        [policed.evict(), policed.evict(), policed.evict()],
        [Some(1), Some(2), None]
    );
}

/// Hits per thousand on a skewed trace with room for a tenth of the keys.
fn hits_per_thousand(policy: EvictionPolicy) -> usize {
    const KEYS: u64 = 10_000;
    const REQUESTS: usize = 200_000;
    let mut random = 1_u64;
    let trace: Vec<u64> = (0..REQUESTS)
        .map(|_| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Reciprocal density: key k is asked about in proportion to 1/k.
            let uniform = (random >> 11) as f64 / (1_u64 << 53) as f64;
            (KEYS as f64).powf(uniform) as u64
        })
        .collect();
    let hits = hits_of_policed(policy, KEYS as usize / 10, &trace);
    hits * 1000 / REQUESTS
}

#[test]
fn on_a_skewed_trace_the_newer_policies_beat_lru() {
    let lru = hits_per_thousand(EvictionPolicy::Lru);
    assert!(lru > 500, "lru {lru}");
    for policy in [
        EvictionPolicy::Sieve,
        EvictionPolicy::S3Fifo,
        EvictionPolicy::Lfu,
    ] {
        let hits = hits_per_thousand(policy);
        assert!(hits > lru, "{policy} {hits}, lru {lru}");
    }
}

/// A shard that holds so many items and nothing else that matters.
fn shard(eviction: EvictionPolicy, items_max: usize) -> Shard {
    Shard::new(ShardConfig {
        cores: CoreCount::ONE,
        core: CoreId::new(0),
        items_max,
        bytes_max: 1 << 30,
        value_bytes_max: 8,
        tombstones_max: 1,
        eviction,
    })
    .unwrap()
}

/// How often the shard has the key that is asked for; what it lacks is stored.
fn hits_of_shard(policy: EvictionPolicy, items: usize, trace: &[u64]) -> usize {
    let mut shard = shard(policy, items);
    let now = UnixMs(1);
    for (request, key) in trace.iter().enumerate() {
        let key = key.to_le_bytes();
        let hash = KeyHash::of(&key);
        if shard.get(hash, &key, now).is_none() {
            let write = Write {
                hash,
                key: &key,
                version: Version::new(request as u64 + 1).unwrap(),
                origin: Origin(1),
                content: Content::Value {
                    value: ValueIn::Bytes(&key),
                    expires_at: None,
                },
            };
            shard.apply(write, now).unwrap();
        }
    }
    shard.stats().hits as usize
}

/// The same of a policy that was made for far more items than there may be.
fn hits_of_policed(policy: EvictionPolicy, items: usize, trace: &[u64]) -> usize {
    let mut policed = Policed::new(policy);
    let mut hits = 0;
    for &key in trace {
        if policed.ids.contains_key(&key) {
            hits += 1;
            policed.access(key);
            continue;
        }
        if policed.ids.len() == items {
            policed.evict();
        }
        policed.insert(key);
    }
    hits
}

/// The same of the policy's paper.
fn hits_of_model(policy: EvictionPolicy, items: usize, trace: &[u64]) -> usize {
    let mut model = model(policy, items);
    let mut held = HashSet::new();
    let mut hits = 0;
    for &key in trace {
        if held.contains(&key) {
            hits += 1;
            model.access(key);
            continue;
        }
        if held.len() == items {
            held.remove(&model.evict().unwrap());
        }
        held.insert(key);
        model.insert(key);
    }
    hits
}

#[test]
fn every_policy_hits_as_often_as_its_paper_says() {
    for disturbance in [
        Disturbance::None,
        Disturbance::Scans,
        Disturbance::OneHitWonders,
    ] {
        let shape = Shape {
            exponent: 0.9,
            disturbance,
            keys: 3000,
            requests: 60_000,
        };
        let trace = shape.trace(1);
        for (policy, items) in EvictionPolicy::ALL
            .into_iter()
            .flat_map(|policy| [(policy, 30), (policy, 300)])
        {
            let ours = hits_of_shard(policy, items, &trace);
            let paper = hits_of_model(policy, items, &trace);
            let most = match policy {
                EvictionPolicy::Lru | EvictionPolicy::Lfu => 0,
                // Sets of the ghost forget a little earlier or later than a queue, and sweeps are
                // bounded: half a point.
                _ => trace.len() / 200,
            };
            assert!(
                ours.abs_diff(paper) <= most,
                "{policy}, {items} items, {disturbance:?}: {ours} of {}, its paper {paper}",
                trace.len()
            );
        }
    }
}

#[test]
fn a_ghost_for_far_more_items_remembers_no_more_than_there_are() {
    let shape = Shape {
        exponent: 0.7,
        disturbance: Disturbance::None,
        keys: 10_000,
        requests: 100_000,
    };
    let (trace, items) = (shape.trace(1), 1000);
    let ours = hits_of_policed(EvictionPolicy::S3Fifo, items, &trace);
    let paper = hits_of_model(EvictionPolicy::S3Fifo, items, &trace);
    assert!(ours.abs_diff(paper) <= 500, "{ours}, its paper {paper}");
}

#[test]
fn every_policy_has_a_name_that_parses() {
    for policy in EvictionPolicy::ALL {
        assert_eq!(policy.name().parse(), Ok(policy));
    }
    assert_eq!("fifo".parse::<EvictionPolicy>(), Err(UnknownEvictionPolicy));
    let message = UnknownEvictionPolicy.to_string();
    assert_eq!(message, "expected one of s3fifo, sieve, lru, lfu, clock");
    assert_eq!(EvictionPolicy::default(), EvictionPolicy::S3Fifo);
}
