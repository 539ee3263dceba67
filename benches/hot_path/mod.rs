//! Drives the hot path of a node of one or two cores without sockets: from the bytes of
//! the requests that one read has brought to the bytes of the answers that one write takes.
//!
//! Each turn does what `node::connection` and `node::core` have done for it: parse each head,
//! see which scope it needs, handle it, have the other core carry out what is its own, with a
//! mailbox each way, close the gaps, and record latencies. Left out are reading and writing,
//! polling of futures, waking a core up, finding out who the caller is, the accounts of memory,
//! and reading the clock. What one read brings is drawn beforehand, from 10,000 keys of
//! 100-byte values.

use std::borrow::Cow;
use std::error::Error;
use std::sync::Arc;

use hypercache::api::{Api, Moment, NodeFacts, Turn, router};
use hypercache::clock::{Origin, UnixMs};
use hypercache::cluster::coordinator::Config;
use hypercache::cluster::hints::HintLimits;
use hypercache::cluster::{Consistency, Coordinator, LocalStore, View};
use hypercache::hash::{CoreCount, CoreId, KeyHash};
use hypercache::http::{BodyFraming, HttpDate, Limits, Recall};
use hypercache::operations::{Batch, Exchange, Home};
use hypercache::runtime::{Receiver, Sender, mailbox};
use hypercache::store::{EvictionPolicy, Shard, ShardConfig};
use hypercache::telemetry::export::ExportCounters;
use hypercache::telemetry::latency::{Latencies, Via};
use hypercache::telemetry::trace::{Sampler, Tracer, Tracing};

const KEYS: usize = 10_000;
const VALUE: [u8; 100] = [b'v'; 100];
const NOW: UnixMs = UnixMs(1_800_000_000_000);

/// Reads that are drawn, before they repeat.
const READS: usize = 4096;

const LIMITS: Limits = Limits {
    head_bytes_max: 16 << 10,
    target_bytes_max: 8 << 10,
    headers_max: 64,
    body_bytes_max: 1 << 20,
};

/// What is asked, and how many requests one read brings.
#[derive(Clone, Copy)]
pub struct Case {
    /// By which it is chosen.
    pub name: &'static str,
    put: bool,
    /// Whether the keys are the other core's, on a node of two.
    elsewhere: bool,
    /// Requests that arrive together.
    pub pipeline: usize,
}

/// All of them.
pub const CASES: [Case; 6] = [
    Case::of("get", false, false, 1),
    Case::of("get-p16", false, false, 16),
    Case::of("put", true, false, 1),
    Case::of("put-p16", true, false, 16),
    Case::of("get-elsewhere", false, true, 1),
    Case::of("get-elsewhere-p16", false, true, 16),
];

impl Case {
    const fn of(name: &'static str, put: bool, elsewhere: bool, pipeline: usize) -> Self {
        Self {
            name,
            put,
            elsewhere,
            pipeline,
        }
    }

    fn write(&self, key: usize, out: &mut Vec<u8>) {
        if !self.put {
            let head = format!("GET /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\n\r\n");
            out.extend_from_slice(head.as_bytes());
            return;
        }
        let length = VALUE.len();
        let head = format!(
            "PUT /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\nContent-Length: {length}\r\n\r\n"
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(&VALUE);
    }
}

/// The core that reads the requests, the other if there is one, and what is asked.
pub struct HotPath {
    here: CoreId,
    api: Api,
    cluster: Coordinator,
    /// The other core's part, with the mailbox to it and the one back.
    other: Option<(Coordinator, Mailbox, Mailbox)>,
    view: Arc<View>,
    date: HttpDate,
    tracer: Tracer,
    latencies: Latencies,
    turn: Turn,
    recall: Recall,
    #[allow(clippy::vec_box, reason = "the boxes travel between cores as they are")]
    arrived: Vec<Box<Batch>>,
    reads: Vec<Vec<u8>>,
    next: usize,
}

type Mailbox = (Sender<Box<Batch>>, Receiver<Box<Batch>>);

impl HotPath {
    /// A node that has all keys.
    pub fn new(case: Case) -> Result<Self, Box<dyn Error>> {
        let cores = CoreCount::new(1 + usize::from(case.elsewhere)).ok_or("no cores")?;
        let view = Arc::new(View::alone("n", 3, 64));
        let mut clusters = Vec::new();
        for core in cores.cores() {
            let mut cluster = coordinator(core, cores, &view)?;
            for key in (0..KEYS).map(|key| format!("key{key}").into_bytes()) {
                let hash = KeyHash::of(&key);
                if hash.partition().core(cores) == core {
                    let value = hypercache::store::ValueIn::Bytes(&VALUE);
                    let stored = cluster.local_mut().put(hash, &key, value, None, NOW);
                    stored.map_err(|_| "a value does not fit")?;
                }
            }
            clusters.push(cluster);
        }
        let mut clusters = clusters.into_iter();
        let here = CoreId::new(0);
        let facts = NodeFacts {
            node_id: "n".to_owned(),
            read_consistency: Consistency::One,
            write_consistency: Consistency::Quorum,
            batch_items_max: 10,
        };
        // Spans are off in a node as it is delivered, and nothing asks for them here.
        let counters = Arc::new(ExportCounters::default());
        let (tracing, _) = Tracing::new(Sampler::ratio(true, 0.0), 8, 8, counters);
        Ok(Self {
            here,
            api: Api {
                facts: Arc::new(facts),
                core: here,
                cores,
            },
            cluster: clusters.next().ok_or("no core")?,
            other: clusters
                .next()
                .map(|other| (other, mailbox(64), mailbox(64))),
            view,
            date: HttpDate::at(0),
            tracer: tracing.tracer(),
            latencies: Latencies::default(),
            turn: Turn::new(Exchange::new(cores)),
            recall: Recall::default(),
            arrived: Vec::new(),
            reads: draw(case, cores, here),
            next: 0,
        })
    }

    /// Answers what the next read brings; the bytes of the answers.
    #[inline]
    pub fn turn(&mut self) -> usize {
        self.next = (self.next + 1) % READS;
        let input = std::mem::take(&mut self.reads[self.next]);
        self.turn.keyed = 0;
        let mut rest = &input[..];
        while !rest.is_empty() {
            rest = self.request(rest);
        }
        self.turn.tally.record(&self.latencies, Via::Local, 1000);
        if self.turn.has_gaps() {
            self.settle();
            self.turn.tally.record(&self.latencies, Via::Remote, 9000);
        }
        let bytes = self.turn.answers.len();
        self.turn.answers.clear(64 << 10);
        self.reads[self.next] = input;
        bytes
    }

    /// Handles the first request; what comes after it.
    #[inline]
    fn request<'a>(&mut self, input: &'a [u8]) -> &'a [u8] {
        let Ok(Some(head)) = self.recall.parse_head(input, &LIMITS) else {
            return &[];
        };
        std::hint::black_box(router::scope(head.method, head.path));
        std::hint::black_box(self.tracer.begin_request(head.traceparent).is_some());
        let length = match head.body {
            BodyFraming::Length(length) => length as usize,
            _ => 0,
        };
        let (body, rest) = input[head.len..].split_at(length);
        let moment = Moment {
            caller: None,
            now: NOW,
            date: &self.date,
            draining: false,
            view: &self.view,
        };
        let (cluster, turn) = (&mut self.cluster, &mut self.turn);
        self.api
            .handle(&head, Cow::Borrowed(body), cluster, turn, moment);
        rest
    }

    /// Has the other core carry out what is its own, and puts its answers into their places.
    fn settle(&mut self) {
        let Some((cluster, to, from)) = &mut self.other else {
            return;
        };
        let home = Home {
            core: self.here,
            reply: 0,
            served_by: CoreId::new(1),
        };
        let exchange = &mut self.turn.exchange;
        for slot in 0..exchange.batch_count() {
            if let Some(batch) = exchange.take(slot) {
                let _ = to.0.try_send(batch);
            }
        }
        to.1.try_drain(&mut self.arrived);
        for batch in self.arrived.drain(..) {
            if let Some(batch) = cluster.run(batch, home, NOW) {
                let _ = from.0.try_send(batch);
            }
        }
        from.1.try_drain(&mut self.arrived);
        for batch in self.arrived.drain(..) {
            exchange.put_back(batch);
        }
        let (facts, here) = (&self.api.facts, self.here);
        self.turn
            .close_gaps(facts, here, &self.view, &self.date, NOW);
    }

    /// Whether each request of some turns gets the answer it should.
    pub fn is_right(&mut self, case: Case) -> bool {
        let found = "HTTP/1.1 200 OK".len() + VALUE.len();
        (0..100).all(|_| {
            let bytes = self.turn();
            // A PUT has a JSON body instead; an error is shorter than either of them twice.
            bytes > case.pipeline * found
        })
    }
}

/// What so many reads bring: requests for keys at random, of the core that they are to be.
fn draw(case: Case, cores: CoreCount, here: CoreId) -> Vec<Vec<u8>> {
    let is_meant = |key: &usize| {
        let hash = KeyHash::of(format!("key{key}").as_bytes());
        (hash.partition().core(cores) != here) == case.elsewhere
    };
    let keys: Vec<usize> = (0..KEYS).filter(is_meant).collect();
    let mut random = 1_u64;
    let mut read = || {
        let mut input = Vec::new();
        for _ in 0..case.pipeline {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            case.write(keys[(random % keys.len() as u64) as usize], &mut input);
        }
        input
    };
    (0..READS).map(|_| read()).collect()
}

/// The part of a node by itself that is this core's.
fn coordinator(
    core: CoreId,
    cores: CoreCount,
    view: &Arc<View>,
) -> Result<Coordinator, Box<dyn Error>> {
    let shard = Shard::new(ShardConfig {
        cores,
        core,
        items_max: 0,
        bytes_max: 64 << 20,
        value_bytes_max: 1 << 20,
        tombstones_max: 10,
        eviction: EvictionPolicy::default(),
    });
    let config = Config {
        core,
        cores,
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
    let shard = shard.map_err(|_| "the shard has no room")?;
    let local = LocalStore::new(shard, Origin::of("n", 0), 1000);
    Ok(Coordinator::new(config, local, Arc::clone(view), 1, NOW))
}
