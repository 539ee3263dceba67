//! How fast a node that starts empty pulls its items from a co-owner, and what it costs to
//! find out that two nodes hold the same.
//!
//! `cargo bench --bench sync -- [items] [value bytes]`: two cores of two nodes back to back
//! in one thread, so what is measured is the work of both and no network. Prints items per
//! second, and how long either is busy with one frame, which is how long its clients wait
//! for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hypercache::clock::{NodeHash, Origin, UnixMs};
use hypercache::cluster::coordinator::{Config, Lane};
use hypercache::cluster::hints::HintLimits;
use hypercache::cluster::membership::State;
use hypercache::cluster::view::Node;
use hypercache::cluster::{Coordinator, LocalStore, NodeIx, View};
use hypercache::hash::{CoreCount, CoreId, KeyHash};
use hypercache::store::{EvictionPolicy, Shard, ShardConfig, ValueIn};

const START: UnixMs = UnixMs(1_800_000_000_000);
const INTERVAL_MS: u64 = 10_000;

/// What passed between the two.
#[derive(Default)]
struct Traffic {
    asked_bytes: usize,
    answered_bytes: usize,
    /// How long serving each frame took.
    served: Vec<Duration>,
    /// How long taking each answer in took.
    taken_in: Vec<Duration>,
}

fn main() {
    // Cargo passes `--bench`; what is left are our two numbers.
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|arg| arg.parse::<usize>().ok());
    let items = numbers.next().unwrap_or(1_000_000);
    let value = vec![7; numbers.next().unwrap_or(100)];
    let (Some(mut full), Some(mut empty)) = (node(0), node(1)) else {
        return;
    };
    for n in 0..items as u64 {
        let key = n.to_le_bytes();
        let content = ValueIn::Bytes(&value);
        let stored = full
            .local_mut()
            .put(KeyHash::of(&key), &key, content, None, START);
        if stored.is_err() {
            return;
        }
    }
    let mut now = START;
    for what in ["pulling all", "finding all the same"] {
        // However far the wall clock moves, a core takes a second of it at a time.
        for _ in 0..INTERVAL_MS / 500 {
            now = UnixMs(now.0 + 1_000);
            empty.tick(now);
        }
        let started = Instant::now();
        let traffic = session(&mut empty, &mut full, now);
        let took = started.elapsed();
        println!(
            "{what}: {} of {items} items of {} bytes in {took:.1?}, {:.0} items/s",
            empty.local().shard().len(),
            value.len(),
            items as f64 / took.as_secs_f64()
        );
        println!(
            "  {} frames, {} bytes asked, {} answered",
            traffic.served.len(),
            traffic.asked_bytes,
            traffic.answered_bytes
        );
        print_times("serving a frame", traffic.served);
        print_times("taking an answer in", traffic.taken_in);
    }
}

/// Runs one session of `asking` with `asked`.
fn session(asking: &mut Coordinator, asked: &mut Coordinator, now: UnixMs) -> Traffic {
    let mut traffic = Traffic::default();
    let mut reply = Vec::new();
    let syncs = asking.sync().counters().syncs;
    while asking.sync().counters().syncs == syncs {
        let Some((sequence, frame)) = asking.poll(NodeIx(0), Lane::Bulk) else {
            return traffic;
        };
        traffic.asked_bytes += frame.len();
        reply.clear();
        let started = Instant::now();
        if asked.serve(frame, now, &mut reply).is_err() {
            return traffic;
        }
        traffic.served.push(started.elapsed());
        traffic.answered_bytes += reply.len();
        let started = Instant::now();
        asking.answered(NodeIx(0), Lane::Bulk, sequence, &reply, now);
        traffic.taken_in.push(started.elapsed());
    }
    traffic
}

fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100);
    if let (Some(median), Some(high), Some(longest)) = (at(50), at(99), at(100)) {
        println!("  {what}: p50 {median:.1?}, p99 {high:.1?}, max {longest:.1?}");
    }
}

/// One of two nodes of one core that both own everything.
fn node(me: u16) -> Option<Coordinator> {
    let member = |index: u16| {
        let id = format!("n{index}");
        let node = Node {
            hash: NodeHash::of(&id),
            id: Arc::from(id),
            peer_address: Arc::from("peer:1"),
            client_address: Arc::from("client:1"),
            state: State::Alive,
            incarnation: 1,
            placed: true,
            holding: true,
            draining: false,
        };
        (NodeIx(index), node)
    };
    let members = (0..2).map(member).collect();
    let view = Arc::new(View::settled(NodeIx(me), members, 2, 8));
    let shard = Shard::new(ShardConfig {
        cores: CoreCount::ONE,
        core: CoreId::new(0),
        items_max: 0,
        bytes_max: 1 << 40,
        value_bytes_max: 1 << 20,
        tombstones_max: 1 << 20,
        eviction: EvictionPolicy::Sieve,
    });
    let config = Config {
        core: CoreId::new(0),
        cores: CoreCount::ONE,
        hints: HintLimits {
            ttl_ms: 30_000,
            per_node: 100,
            per_node_bytes: 1 << 20,
            total: 100,
            total_bytes: 1 << 20,
        },
        hint_replay_ms: 200,
        clock_skew_ms_max: 10_000,
        sync_interval_ms: INTERVAL_MS,
        rebalance_interval_ms: 200,
        sync_interval_ms_max: INTERVAL_MS,
        patience_ms: 1_000,
        transfer_rate: 0,
        drop_grace_ms: 30_000,
        bootstrap_timeout_ms: 30_000,
        copies_bytes_max: 0,
    };
    let origin = Origin::of(&format!("n{me}"), 0);
    let local = LocalStore::new(shard.ok()?, origin, 60_000);
    Some(Coordinator::new(config, local, view, 1, START))
}
