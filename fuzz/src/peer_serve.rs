//! A core that is sent frames: the input is one frame, which comes twice.
//!
//! * Each operation has one answer, which can be read, and they stay within their bounds.
//! * What is said twice is as if it was said once: what is stored is the same.
//! * Nothing is stored that is newer than a clock may be, and no more than fits.

use std::sync::Arc;

use hypercache::clock::{Origin, UnixMs, Version};
use hypercache::cluster::coordinator::{Config, Coordinator};
use hypercache::cluster::hints::HintLimits;
use hypercache::cluster::message::{Answer, Frames, answers};
use hypercache::cluster::{LocalStore, View};
use hypercache::hash::{CoreCount, CoreId, PartitionId};
use hypercache::store::{EvictionPolicy, Shard, ShardConfig};

/// The time, within the first milliseconds that a version can tell: fuzzed versions are
/// on both sides of it.
const NOW: UnixMs = UnixMs(1_577_836_800_000 + (1 << 24));
const SKEW_MS: u64 = 10_000;
const BYTES_MAX: usize = 1 << 20;

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let mut core = core();
    let once = serve(&mut core, bytes);
    let digests = |core: &Coordinator| -> Vec<_> {
        let shard = core.local().shard();
        PartitionId::all()
            .map(|partition| shard.digest(partition))
            .collect()
    };
    let evicted = |core: &Coordinator| core.stats().evicted_items + core.stats().tombstones_purged;
    let before = (digests(&core), evicted(&core));
    let twice = serve(&mut core, bytes);
    assert_eq!(once, twice);
    // What had to go to make room may be offered again.
    if before.1 == 0 && evicted(&core) == 0 {
        assert_eq!(digests(&core), before.0);
    }
    let shard = core.local().shard();
    assert!(shard.bytes() <= BYTES_MAX);
    let newest = Version::at(UnixMs(NOW.0 + SKEW_MS + 1));
    for partition in PartitionId::all().filter(|partition| shard.stored_len(*partition) > 0) {
        shard.scan_stored(partition, |item| assert!(item.resident().version <= newest));
    }
    core.tick(UnixMs(NOW.0 + 1_000_000));
}

/// How many operations were answered, and whether the whole frame was one.
fn serve(core: &mut Coordinator, frame: &[u8]) -> (usize, bool) {
    let mut reply = Vec::new();
    let served = core.serve(frame, NOW, &mut reply);
    let (_, bodies) = answers(&reply).expect("answers");
    let mut count = 0;
    for body in bodies {
        Answer::decode(body.expect("whole")).expect("an answer");
        count += 1;
    }
    let asked = Frames::new(frame).into_iter().flatten();
    assert_eq!(count, asked.map_while(Result::ok).count());
    assert!(reply.len() <= (8 << 20) + 2 * frame.len() + (1 << 20));
    (count, served.is_ok())
}

fn core() -> Coordinator {
    let shard = Shard::new(ShardConfig {
        cores: CoreCount::ONE,
        core: CoreId::new(0),
        items_max: 100,
        bytes_max: BYTES_MAX,
        value_bytes_max: 1000,
        tombstones_max: 20,
        eviction: EvictionPolicy::default(),
    })
    .expect("there is room");
    let config = Config {
        core: CoreId::new(0),
        cores: CoreCount::ONE,
        hints: HintLimits {
            ttl_ms: 30_000,
            per_node: 10,
            per_node_bytes: 1 << 16,
            total: 10,
            total_bytes: 1 << 16,
        },
        hint_replay_ms: 200,
        clock_skew_ms_max: SKEW_MS,
        sync_interval_ms: 10_000,
        rebalance_interval_ms: 200,
        sync_interval_ms_max: 10_000,
        patience_ms: 1_000,
        transfer_rate: 0,
        drop_grace_ms: 1_000,
        bootstrap_timeout_ms: 30_000,
        copies_bytes_max: 0,
    };
    let local = LocalStore::new(shard, Origin::of("n0", 0), 60_000);
    // Nothing changes it, and it takes most of the time to make.
    thread_local! {
        static VIEW: Arc<View> = Arc::new(View::alone("n0", 1, 1));
    }
    Coordinator::new(config, local, VIEW.with(Arc::clone), 1, NOW)
}
