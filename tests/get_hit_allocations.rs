//! A GET hit allocates nothing, from the request's bytes to the answer's.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use hypercache::api::{Api, Moment, NodeFacts, Turn};
use hypercache::clock::{Origin, UnixMs};
use hypercache::cluster::coordinator::Config;
use hypercache::cluster::hints::HintLimits;
use hypercache::cluster::{Consistency, Coordinator, LocalStore, View};
use hypercache::hash::{CoreCount, CoreId};
use hypercache::http::{HttpDate, Limits, parse_head};
use hypercache::operations::Exchange;
use hypercache::store::{EvictionPolicy, Shard, ShardConfig};
use hypercache::telemetry::export::ExportCounters;
use hypercache::telemetry::trace::{Sampler, Tracing};

struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn api() -> Api {
    let facts = NodeFacts {
        node_id: "n".to_owned(),
        read_consistency: Consistency::One,
        write_consistency: Consistency::Quorum,
        batch_items_max: 10,
    };
    Api {
        facts: Arc::new(facts),
        core: CoreId::new(0),
        cores: CoreCount::ONE,
    }
}

#[test]
fn a_get_hit_allocates_nothing() {
    let api = api();
    let shard = Shard::new(ShardConfig {
        cores: CoreCount::ONE,
        core: CoreId::new(0),
        items_max: 0,
        bytes_max: 64 << 20,
        value_bytes_max: 1 << 20,
        tombstones_max: 10,
        eviction: EvictionPolicy::default(),
    });
    let now = UnixMs(1_800_000_000_000);
    let view = Arc::new(View::alone("n", 3, 64));
    let config = Config {
        core: CoreId::new(0),
        cores: CoreCount::ONE,
        hints: HintLimits {
            ttl_ms: 1,
            per_node: 1,
            per_node_bytes: 1,
            total: 1,
            total_bytes: 1,
        },
        hint_replay_ms: 1,
        clock_skew_ms_max: 1,
        sync_interval_ms: 1,
        rebalance_interval_ms: 200,
        sync_interval_ms_max: 1_000,
        patience_ms: 1,
        transfer_rate: 0,
        drop_grace_ms: 1,
        bootstrap_timeout_ms: 1,
        copies_bytes_max: 0,
    };
    let local = LocalStore::new(shard.unwrap(), Origin::of("n", 0), 1000);
    let mut cluster = Coordinator::new(config, local, Arc::clone(&view), 1, now);
    let mut turn = Turn::new(Exchange::new(CoreCount::ONE));
    let date = HttpDate::at(0);
    let moment = Moment {
        caller: None,
        now,
        date: &date,
        draining: false,
        view: &view,
    };
    let limits = Limits {
        head_bytes_max: 16 << 10,
        target_bytes_max: 8 << 10,
        headers_max: 64,
        body_bytes_max: 1 << 20,
    };
    let counters = Arc::new(ExportCounters::default());
    let (tracing, _spans) = Tracing::new(Sampler::ratio(true, 0.0), 8, 8, counters);
    let (on, off) = (tracing.tracer(), Tracing::off().tracer());
    let mut handle = |input: &[u8], body: &[u8], turn: &mut Turn| {
        let head = parse_head(input, &limits).unwrap().unwrap();
        // Asked as a core asks: nothing of it is recorded.
        for tracer in [&on, &off] {
            assert!(tracer.begin_request(head.traceparent).is_none());
        }
        let job = api.handle(&head, Cow::Borrowed(body), &mut cluster, turn, moment);
        assert!(job.is_none());
    };

    let value = [b'v'; 100];
    handle(
        b"PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n",
        &value,
        &mut turn,
    );
    turn.answers.clear(0);
    turn.answers.bytes.reserve(64 << 10);

    let before = CALLS.get();
    for _ in 0..16 {
        handle(
            b"GET /v1/cache/k HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\n\
              traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n\r\n",
            b"",
            &mut turn,
        );
    }
    let calls = CALLS.get() - before;

    assert_eq!(calls, 0, "calls to the allocator");
    assert_eq!(
        turn.answers
            .bytes
            .windows(100)
            .filter(|part| *part == value)
            .count(),
        16
    );
    assert!(before > 0, "the counter counts");
}
