//! What the management listener asks a core to do or to tell.
//!
//! An errand reaches a core by its mailbox and is carried out between its other work, in
//! bounded steps; the answer goes back through a [`Giver`], whose being dropped tells the
//! other side that there will be none. The asking side keeps at most
//! [`ERRANDS_MAX`] outstanding at each core, which its mailbox has room for.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::core::{Core, wall_time};
use crate::clock::Version;
use crate::hash::PartitionId;
use crate::runtime::{self, Giver};
use crate::store::{HotKey, Shard};
use crate::telemetry::work::Work;

/// How many errands one core may have at once.
pub const ERRANDS_MAX: usize = 4;

/// One eviction cycle evicts one value of so many, at least one.
const EVICTED_SHARE: usize = 64;

/// How many values are evicted, removed or looked at between two looks at the clock.
const STEPS: usize = 16;

/// The same of what was cleared: each time a partition is looked through from its start.
const CLEAR_STEPS: usize = 128;

/// How long one tick goes on removing what was cleared.
const CLEAR_MAX: Duration = Duration::from_millis(10);

/// See the module's comment.
#[derive(Debug)]
pub enum Errand {
    /// Run one eviction cycle.
    Evict(Giver<()>),
    /// Forget what has expired.
    Expire(Giver<()>),
    /// Tell a version newer than all that this core knows of.
    Stamp(Giver<Version>),
    /// Tell which keys are used most.
    HotKeys(Giver<Hottest>),
    /// Tell which keys there are, from this partition on, and stop behind the partition
    /// with which there are so many.
    Keys(PartitionId, usize, Giver<KeysFrom>),
    /// Tell the digests of so many partitions from this one on.
    Digests(PartitionId, usize, Giver<Vec<PartitionDigest>>),
}

/// The keys of one core that are used most.
#[derive(Debug)]
pub struct Hottest {
    /// How many uses were looked at.
    pub looked_at: u64,
    /// The keys, those used most first.
    pub keys: Vec<HotKey>,
}

/// The keys of one core's partitions.
#[derive(Debug)]
pub struct KeysFrom {
    /// By partition, ascending.
    pub partitions: Vec<(PartitionId, Vec<Box<[u8]>>)>,
    /// The first partition that was not looked at; nothing when all were.
    pub next: Option<PartitionId>,
}

/// What replicas compare.
#[derive(Clone, Copy, Debug)]
pub struct PartitionDigest {
    /// Of which partition.
    pub partition: PartitionId,
    /// The digest.
    pub digest: u64,
    /// Items and tombstones in it.
    pub items: usize,
}

impl Core {
    /// Carries an errand out.
    pub(super) fn run_errand(self: &Rc<Self>, errand: Errand) {
        let core = Rc::clone(self);
        match errand {
            Errand::Evict(done) => runtime::spawn(async move {
                core.evict().await;
                done.give(());
            }),
            Errand::Expire(done) => runtime::spawn(async move {
                core.reap(Duration::MAX).await;
                done.give(());
            }),
            Errand::Stamp(told) => {
                let mut cluster = self.cluster.borrow_mut();
                told.give(cluster.local_mut().stamp(wall_time()));
            }
            Errand::HotKeys(told) => {
                let cluster = self.cluster.borrow();
                let hot = cluster.local().hot_keys();
                told.give(Hottest {
                    looked_at: hot.looked_at(),
                    keys: hot.hottest(),
                });
            }
            Errand::Keys(from, wanted, told) => runtime::spawn(async move {
                told.give(core.keys_from(from, wanted).await);
            }),
            Errand::Digests(from, count, told) => told.give(self.digests(from, count)),
        }
    }

    async fn evict(&self) {
        let started = Instant::now();
        let shard_len = self.cluster.borrow().local().shard().len();
        let mut left = shard_len.div_ceil(EVICTED_SHARE);
        let evict = |shard: &mut Shard| {
            let evicted = shard.evict(left.min(STEPS));
            left -= evicted;
            left > 0 && evicted > 0
        };
        self.in_slices(Work::Evict, Duration::MAX, evict).await;
        let took = started.elapsed().as_nanos() as u64;
        self.counters.evictions.record(took, 1);
    }

    /// Forgets what has expired, for so long at most.
    pub(super) async fn reap(&self, limit: Duration) {
        let now = wall_time();
        self.in_slices(Work::Expire, limit, |shard| shard.reap(now, STEPS))
            .await;
    }

    /// Removes some of what was cleared.
    pub(super) async fn clear(&self) {
        self.in_slices(Work::Clear, CLEAR_MAX, |shard| {
            shard.clear_step(CLEAR_STEPS)
        })
        .await;
    }

    fn own_partitions(&self, from: PartitionId) -> impl Iterator<Item = PartitionId> {
        let (core, cores) = (self.api.core, self.api.cores);
        PartitionId::all()
            .skip(from.index())
            .filter(move |partition| partition.core(cores) == core)
    }

    async fn keys_from(&self, from: PartitionId, wanted: usize) -> KeysFrom {
        let mut found = KeysFrom {
            partitions: Vec::new(),
            next: None,
        };
        let mut keys_len = 0;
        for partition in self.own_partitions(from) {
            if keys_len >= wanted {
                found.next = Some(partition);
                break;
            }
            let piece = self.meter.begin(Work::Scan);
            let keys = self.keys_of(partition);
            self.meter.end(piece);
            if !keys.is_empty() {
                keys_len += keys.len();
                found.partitions.push((partition, keys));
                runtime::yield_to_io().await;
            }
        }
        found
    }

    fn keys_of(&self, partition: PartitionId) -> Vec<Box<[u8]>> {
        let mut keys = Vec::new();
        let cluster = self.cluster.borrow();
        let shard = cluster.local().shard();
        let now = wall_time();
        shard.scan(partition, now, |item| keys.push(Box::from(item.key)));
        keys
    }

    fn digests(&self, from: PartitionId, count: usize) -> Vec<PartitionDigest> {
        let cluster = self.cluster.borrow();
        let shard = cluster.local().shard();
        let end = from.index() + count;
        let partitions = self.own_partitions(from);
        partitions
            .take_while(|partition| partition.index() < end)
            .map(|partition| PartitionDigest {
                partition,
                digest: shard.digest(partition).0,
                items: shard.stored_len(partition),
            })
            .collect()
    }
}
