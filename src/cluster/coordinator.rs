//! One core's part of the cluster: it coordinates every operation on the partitions
//! of its core, answers the same cores of other nodes, and keeps replicas in step.
//!
//! **A write** is stamped here, applied here if this node is an owner, and sent to
//! all other owners at once.
//!
//! ```text
//!            enough owners took it ──────────────► Stored / Deleted
//!  started ─┤ an owner holds something newer ────► stamped anew, sent again (once)
//!            too few can still take it ──────────► Unreached: it may survive or not
//! ```
//!
//! Only real owners that applied it count, and only those that hold the partition's
//! data: one that came back empty stores the write but cannot know whether it is newer
//! than what was acknowledged before. One that did not take it (down, slow,
//! its outbox full) gets a hint instead. A write whose stamp is behind what an owner
//! holds, because that was stamped by a clock that runs ahead, is stamped anew:
//! what is acknowledged is newer than what was acknowledged before it. That is
//! done when as many owners as are needed have answered, so that the new stamp is above
//! all that was acknowledged before the write began. An owner that then holds something
//! newer still counts: it was written at the same time, and ours came before it. One
//! that holds the same version of a smaller origin took nothing: the write is stamped
//! once more, [`RESTAMPS_MAX`] times in all.
//!
//! **A read** at ONE is answered from this core when this node owns the partition and
//! holds its data, else by the first owner that answers (the next is tried when one
//! fails). At QUORUM and ALL the answers of that many owners are compared, the newest
//! is returned, and those that had something older are repaired. An owner that came
//! back empty and has not caught up yet says so, and its answer does not count.
//!
//! Invariants: every operation that was started gets exactly one outcome; a batch
//! goes home when its last operation has one; memory is bounded by what connections
//! have under way, by the outboxes and by the hints: values that wait for the answers of
//! other owners take [`COLLECTED_BYTES_MAX`] at most, what is beyond is fetched when it is
//! needed. Nothing here waits: whoever does not answer is failed by the transport within
//! its deadline. What takes time is measured by a [`SteadyClock`]; the wall clock only
//! says when items expire and what versions are stamped.
//!
//! A version that lies further ahead of this node's clock than `clock_skew_ms_max` is
//! neither taken in nor believed: it does not move the clock, and a read passes over it.

mod reads;
mod writes;

use std::sync::Arc;

use super::Consistency;
use super::activity::{Activities, Activity, Done};
use super::hints::{HintLimits, Hints};
use super::local::LocalStore;
use super::membership::State;
use super::message::{self, Answer, PeerOp, Refusal};
use super::outbox::{Frame, Outbox};
use super::placement::OWNERS_MAX;
use super::rng::Rng;
use super::sync::SyncState;
use super::view::{NodeIx, View};
use crate::clock::{SteadyClock, SteadyMs, UnixMs, Version};
use crate::hash::{CoreCount, CoreId, KeyHash, PartitionId, RoughCores};
use crate::mutation::{Mutation, planted};
use crate::operations::{Action, Batch, Exchange, Home, Operation, Outcome};
use crate::store::{Copies, FORESEEN_MAX, ItemView, ShardStats, ValueView};
use crate::trace_context::Context;
use reads::{CollectWork, ForwardWork};
use writes::WriteWork;

pub use reads::COLLECTED_BYTES_MAX;
pub use writes::RESTAMPS_MAX;

/// From one try to the next of operations that wait for owners to change rosters.
const ROSTER_RETRY_MS: u64 = 50;

/// Hints for one node that one tick drops for their age at most.
const EXPIRE_STEPS: usize = 256;

/// Items that were cleared and that one tick removes at most: few, for a tick is not cut by
/// the clock. A core that has time goes on between ticks.
const CLEAR_STEPS: usize = 16;

/// The most that one call moves the time of timeouts on.
const STEADY_STEP_MS_MAX: u64 = 1_000;

/// What is fixed while a node runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// This core.
    pub core: CoreId,
    /// How many cores this node runs.
    pub cores: CoreCount,
    /// How much is kept for owners that are away, on this core.
    pub hints: HintLimits,
    /// How often hints are replayed.
    pub hint_replay_ms: u64,
    /// How far ahead of this node's clock a version may lie.
    pub clock_skew_ms_max: u64,
    /// How often replicas are compared.
    pub sync_interval_ms: u64,
    /// The same while this node lacks something that it owns, or a comparison has failed.
    pub rebalance_interval_ms: u64,
    /// What that may be stretched to while nothing differs.
    pub sync_interval_ms_max: u64,
    /// How long an operation waits for owners that go by another roster than this node.
    pub patience_ms: u64,
    /// Bytes of items that this core hands over and takes over in a second; 0 for no bound.
    pub transfer_rate: u64,
    /// How long a partition is kept that has other owners now.
    pub drop_grace_ms: u64,
    /// How long a node may lack the data of its partitions before its answers count
    /// all the same.
    pub bootstrap_timeout_ms: u64,
    /// What copies of other cores' items may take on this core.
    pub copies_bytes_max: usize,
}

/// Which of the connections to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What clients wait for, and what repairs the owners they have just read from.
    Data,
    /// Hints and the comparison of replicas, which may take long.
    Bulk,
}

impl Lane {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Data, Self::Bulk];
}

/// What a core's part of the cluster has counted. Cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "named like the fields of /dist/metrics, which docs explain"
)]
pub struct Counters {
    pub forward_get: u64,
    pub forward_set: u64,
    pub forward_remove: u64,
    pub replica_fanout_set: u64,
    pub replica_fanout_remove: u64,
    pub read_repair: u64,
    pub read_repair_batched: u64,
    pub read_repair_coalesced: u64,
    pub replica_get_miss: u64,
    pub read_primary_promote: u64,
    pub version_conflicts: u64,
    pub version_tie_breaks: u64,
    pub write_attempts: u64,
    pub write_acks: u64,
    pub write_quorum_failures: u64,
    pub write_forward_promotion: u64,
    pub write_apply_refused: u64,
    pub write_restamps: u64,
    pub clock_skew_refused: u64,
    pub read_quorum_failures: u64,
    pub peer_operations_served: u64,
    pub peer_failures: u64,
    pub peer_malformed: u64,
    pub peer_bytes_sent: u64,
    pub peer_bytes_received: u64,
    pub fenced: u64,
    pub roster_retries: u64,
}

/// The caller's note on an operation in an outbox.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// Somebody waits for it.
    Pending { slot: u32, generation: u32 },
    /// Nobody does.
    Repair,
    /// The replay of a hint.
    Hint { number: u64 },
    /// Part of the sync session of this number.
    Sync { session: u32 },
}

#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) data: Outbox<Call>,
    pub(super) bulk: Outbox<Call>,
    /// Hints that were sent and are not answered yet.
    replaying: usize,
    /// How many were sent with them.
    replay_sent: u64,
    /// How many of those were taken.
    replay_taken: u64,
    /// When they were sent.
    replay_began: SteadyMs,
}

impl Link {
    fn lane(&mut self, lane: Lane) -> &mut Outbox<Call> {
        match lane {
            Lane::Data => &mut self.data,
            Lane::Bulk => &mut self.bulk,
        }
    }
}

/// The owners that a write goes to, copied out of the view, and whose word it takes.
#[derive(Clone, Copy, Debug)]
struct Takers {
    /// Those that reads ask come first.
    list: [NodeIx; 2 * OWNERS_MAX],
    len: usize,
    /// Those that reads ask, as bits.
    reading: u32,
    /// Those by the roster that is written to besides; none where they are the same.
    also: u32,
    /// Whether reads do not ask the latter yet: then it is enough that they store a write.
    joint: bool,
}

impl Takers {
    fn of(view: &View, partition: PartitionId) -> Self {
        let mut takers = Self {
            list: [NodeIx(0); 2 * OWNERS_MAX],
            len: 0,
            reading: 0,
            also: 0,
            joint: view.stage().reads_old(),
        };
        for &owner in view.owners(partition).iter().take(OWNERS_MAX) {
            takers.reading |= takers.add(owner);
        }
        for &owner in view.owners_also(partition).into_iter().flatten() {
            takers.also |= takers.add(owner);
        }
        if takers.also == takers.reading {
            takers.also = 0;
        }
        takers
    }

    /// The bit of an owner, which is new or not.
    fn add(&mut self, owner: NodeIx) -> u32 {
        let bit = self.bit(owner);
        if bit != 0 || self.len == self.list.len() {
            return bit;
        }
        self.list[self.len] = owner;
        self.len += 1;
        1 << (self.len - 1)
    }

    fn bit(&self, owner: NodeIx) -> u32 {
        let position = self.as_slice().iter().position(|known| *known == owner);
        position.map_or(0, |position| 1 << position)
    }

    fn as_slice(&self) -> &[NodeIx] {
        &self.list[..self.len]
    }

    /// Those that reads ask, the primary first.
    fn readers(&self) -> &[NodeIx] {
        &self.list[..self.reading.count_ones() as usize]
    }

    /// Whether it is enough that these stored a write, of which the second hold the partition.
    fn suffice(&self, level: Consistency, stored: u32, held: u32) -> bool {
        if level == Consistency::One {
            return stored != 0;
        }
        let enough = |of: u32, have: u32| {
            (of & have).count_ones() as usize >= level.needed(of.count_ones() as usize)
        };
        let also = if self.joint { stored } else { held };
        enough(self.reading, held) && (self.also == 0 || enough(self.also, also))
    }

    /// How many of those that are lacking most took a write, and how many it needs.
    fn shortage(&self, level: Consistency, stored: u32, held: u32) -> Outcome<ValueView<'static>> {
        let count = |of: u32, have: u32| {
            let needed = level.needed(of.count_ones() as usize);
            ((of & have).count_ones() as usize, needed)
        };
        let (reached, needed) = match count(self.reading, held) {
            (reached, needed) if reached >= needed && self.also != 0 => {
                count(self.also, if self.joint { stored } else { held })
            }
            shortage => shortage,
        };
        Outcome::Unreached { reached, needed }
    }
}

#[derive(Debug)]
struct HeldBatch {
    batch: Box<Batch>,
    home: Home,
    open: usize,
}

#[derive(Debug)]
struct Pending {
    batch: usize,
    index: usize,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Write(WriteWork),
    Collect(CollectWork),
    Forward(ForwardWork),
}

/// See the module's comment.
#[derive(Debug)]
pub struct Coordinator {
    pub(super) config: Config,
    pub(super) local: LocalStore,
    pub(super) view: Arc<View>,
    pub(super) links: Vec<Link>,
    pub(super) hints: Hints,
    pub(super) sync: SyncState,
    pub(super) counters: Counters,
    pub(super) rng: Rng,
    batches: Vec<Option<HeldBatch>>,
    batches_free: Vec<usize>,
    pending: Vec<(u32, Option<Pending>)>,
    pending_free: Vec<usize>,
    finished: Vec<(Box<Batch>, Home)>,
    /// Operations that owners refused because they go by another roster, to be tried again.
    refused: Vec<Call>,
    /// Outboxes that had nothing in flight when something was pushed.
    dirty: Vec<(NodeIx, Lane)>,
    /// Bytes of values that wait for the answers of other owners.
    collected_bytes: usize,
    pub(super) steady: SteadyClock,
    next_replay: SteadyMs,
    next_retry: SteadyMs,
    /// The recorded request to which the operation belongs that is being started.
    context: Option<Context>,
    pub(super) activities: Activities,
    /// Of items that belong to other cores of this node.
    copies: Copies,
}

/// A frame on its way to another node.
#[derive(Clone, Copy, Debug)]
pub struct Travelling<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// How many operations it carries.
    pub operations: usize,
    /// Some of the recorded requests to which they belong.
    pub contexts: &'a [Context],
}

impl Coordinator {
    /// A core that knows of no other node until it is given a view.
    pub fn new(config: Config, local: LocalStore, view: Arc<View>, seed: u64, now: UnixMs) -> Self {
        let mut coordinator = Self {
            hints: Hints::new(config.hints),
            sync: SyncState::new(),
            copies: Copies::new(config.copies_bytes_max),
            config,
            local,
            view: Arc::clone(&view),
            links: Vec::new(),
            counters: Counters::default(),
            rng: Rng::new(seed),
            batches: Vec::new(),
            batches_free: Vec::new(),
            pending: Vec::new(),
            pending_free: Vec::new(),
            finished: Vec::new(),
            refused: Vec::new(),
            dirty: Vec::new(),
            collected_bytes: 0,
            steady: SteadyClock::new(now, STEADY_STEP_MS_MAX),
            next_replay: SteadyMs(0),
            next_retry: SteadyMs(0),
            context: None,
            activities: Activities::default(),
        };
        coordinator.set_view(view, now);
        coordinator
    }

    /// What is fixed while the node runs.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// This core's items.
    pub fn local(&self) -> &LocalStore {
        &self.local
    }

    /// This core's items, for housekeeping.
    pub fn local_mut(&mut self) -> &mut LocalStore {
        &mut self.local
    }

    /// The cluster as this core knows it.
    #[inline]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// This core's copies of other cores' items.
    pub fn copies(&self) -> &Copies {
        &self.copies
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The hints this core keeps.
    pub fn hints(&self) -> &Hints {
        &self.hints
    }

    /// Repair and bootstrap of this core.
    pub fn sync(&self) -> &SyncState {
        &self.sync
    }

    /// What the store has counted.
    pub fn stats(&self) -> &ShardStats {
        self.local.shard().stats()
    }

    /// Frames and operations sent to peers so far.
    pub fn sent(&self) -> (u64, u64) {
        let outboxes = self.links.iter().flat_map(|link| [&link.data, &link.bulk]);
        outboxes.fold((0, 0), |(frames, operations), outbox| {
            (
                frames + outbox.frames_sent,
                operations + outbox.operations_sent,
            )
        })
    }

    /// Operations that wait for other nodes.
    pub fn waiting(&self) -> usize {
        self.pending.len() - self.pending_free.len()
    }

    /// What other nodes that can be reached have yet to be sent by this core: hints,
    /// operations that clients wait for, and, when this node drains, what it had as an owner.
    pub fn unsent(&self) -> usize {
        let nodes = self.view.nodes();
        let hints = nodes
            .filter(|(_, node)| node.state == State::Alive)
            .map(|(ix, _)| self.hints.len_for(ix));
        let me = self.view.node(self.view.me());
        let offers = match me.is_some_and(|node| node.draining) {
            true => {
                let shard = self.local.shard();
                let is_empty = |partition| shard.stored_len(partition) == 0;
                self.sync.retired.unoffered(&self.view, is_empty)
            }
            false => 0,
        };
        self.waiting() + hints.sum::<usize>() + offers
    }

    /// Goes over to another view.
    pub fn set_view(&mut self, view: Arc<View>, now: UnixMs) {
        self.steady.advance(now);
        // By another view this core may not answer alone what it did so far.
        self.local.shard_mut().revoke_leases();
        let old = std::mem::replace(&mut self.view, view);
        self.follow_clearing(now);
        let view = Arc::clone(&self.view);
        let count = view.nodes().map(|(ix, _)| ix.index() + 1).max();
        self.links
            .resize_with(self.links.len().max(count.unwrap_or(0)), Link::default);
        for index in 0..self.links.len() {
            let ix = NodeIx(index as u16);
            if !view.reachable(ix) {
                let link = &mut self.links[index];
                let waiting: Vec<_> = [link.data.give_up(), link.bulk.give_up()]
                    .into_iter()
                    .flatten()
                    .collect();
                for frame in waiting {
                    self.fail_frame(ix, &frame, now);
                }
            } else if view.node(ix).map(|node| node.incarnation)
                != old.node(ix).map(|node| node.incarnation)
                || !old.reachable(ix)
            {
                for lane in Lane::ALL {
                    self.links[index].lane(lane).retry_now(self.steady.now());
                    self.dirty.push((ix, lane));
                }
                // It may have missed anything while it was away, or lost what it had.
                self.sync.hurry(ix);
                self.sync.retired.forget(ix);
            }
            if !view.node(ix).is_some_and(|node| node.placed) {
                self.hints.forget_node(ix);
            }
        }
        self.sync_view_changed(&old);
        if view.rosters() != old.rosters() {
            self.restart_all(now);
        }
    }

    /// Begins anew what waits for owners by rosters that this node does not go by any more:
    /// answers to what was sent so far do not count.
    fn restart_all(&mut self, now: UnixMs) {
        for slot in 0..self.pending.len() {
            self.restart(slot, now);
        }
    }

    fn restart(&mut self, slot: usize, now: UnixMs) {
        match self.pending[slot].1.as_ref().map(|pending| &pending.work) {
            Some(Work::Write(_)) => self.send_write_again(slot, now),
            Some(Work::Collect(_)) => self.collect_again(slot, now),
            Some(Work::Forward(_)) | None => return,
        }
        self.counters.roster_retries += 1;
    }

    /// Tries again what owners refused.
    fn retry_refused(&mut self, now: UnixMs) {
        if self.steady.now() < self.next_retry {
            return;
        }
        self.next_retry = self.steady.now().later(ROSTER_RETRY_MS);
        for call in std::mem::take(&mut self.refused) {
            if let Call::Pending { slot, generation } = call
                && self.pending[slot as usize].0 == generation
            {
                self.restart(slot as usize, now);
            }
        }
    }

    /// Has an operation wait for owners that go by another roster, which will not be long.
    fn wait_for_rosters(&mut self, slot: usize) {
        let call = self.call(slot);
        self.refused.push(call);
    }

    /// Until when an operation that begins now may be tried again.
    fn patience(&self) -> SteadyMs {
        self.steady.now().later(self.config.patience_ms)
    }

    /// Reads a key of this core's, if that needs no other node.
    #[inline]
    pub fn get_here(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        consistency: Consistency,
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        if !self.answers_alone(hash.partition(), consistency) {
            return None;
        }
        Some(found(self.local.get(hash, key, now)))
    }

    /// Reads a key of another core's from this core's copy, if there is one that answers
    /// reads at this level.
    #[inline]
    pub fn get_copy(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        consistency: Consistency,
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        let any_level = consistency != Consistency::One;
        let item = self.copies.get(hash, key, any_level, now)?;
        Some(Outcome::Found(item.into()))
    }

    /// Some of these keys, of whichever core, may be asked for soon. Those of this core come
    /// first when this returns, which tells of the others what cores will have to be asked.
    pub fn foresee(&self, hashes: &mut [KeyHash]) -> RoughCores {
        let mut own = 0;
        for index in 0..hashes.len() {
            if hashes[index].partition().core(self.config.cores) == self.config.core {
                hashes.swap(own, index);
                own += 1;
            }
        }
        let (own, others) = hashes.split_at(own);
        self.local.shard().foresee(own);
        self.copies.foresee(others, self.config.cores)
    }

    /// Whether to ask for a copy of a key's item, now that it has to be read from its core.
    #[inline]
    pub fn wants_copy(&mut self, hash: KeyHash) -> bool {
        self.copies.wants(hash)
    }

    /// Takes the copies that came home with the outcomes of an exchange.
    pub fn keep_copies(&mut self, exchange: &mut Exchange) {
        for (ticket, lease) in exchange.take_leases() {
            if let Some((key, Outcome::Found(found))) = exchange.outcome(ticket) {
                let item = ItemView {
                    key,
                    value: found.value,
                    version: found.version,
                    origin: found.origin,
                    expires_at: found.expires_at,
                };
                self.copies.insert(KeyHash::of(key), item, lease);
            }
        }
    }

    /// Looks after copies and leases. Call it ten times a second or so.
    pub fn tick_copies(&mut self, now: UnixMs) {
        self.copies.tick(now);
        self.local.sweep_leases();
    }

    #[inline]
    fn answers_alone(&self, partition: PartitionId, consistency: Consistency) -> bool {
        if self.view.solo() {
            return self.view.joined();
        }
        consistency == Consistency::One && self.view.owns(partition) && self.sync.holds(partition)
    }

    /// Writes a key of this core's, if that needs no other node.
    #[inline]
    pub fn write_here(
        &mut self,
        operation: &Operation<'_>,
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        if !self.view.solo() || !self.view.joined() {
            return None;
        }
        Some(self.write_alone(operation, now))
    }

    /// Starts every operation of a batch. It comes back at once when none needs
    /// another node, else through [`Coordinator::take_finished`].
    pub fn run(&mut self, mut batch: Box<Batch>, home: Home, now: UnixMs) -> Option<Box<Batch>> {
        let slot = self.batches_free.pop().unwrap_or_else(|| {
            self.batches.push(None);
            self.batches.len() - 1
        });
        let mut open = 0;
        for index in 0..batch.len() {
            if index.is_multiple_of(FORESEEN_MAX) && index + 1 < batch.len() {
                let mut hashes = [KeyHash(0); FORESEEN_MAX];
                let count = batch.hashes_from(index, &mut hashes);
                self.local.shard().foresee(&hashes[..count]);
            }
            self.context = batch.context(index);
            match self.start(batch.operation(index), (slot, index), now) {
                Some(outcome) => {
                    batch.finish(index, outcome);
                    self.lend(&mut batch, index, now);
                }
                None => {
                    batch.forwarded(index);
                    open += 1;
                }
            }
        }
        self.context = None;
        if open == 0 {
            self.batches_free.push(slot);
            return Some(batch);
        }
        self.batches[slot] = Some(HeldBatch { batch, home, open });
        None
    }

    /// Gives the lease of what an operation has found just now, if the batch asks for it and this
    /// core has answered alone. At once: the next operation may write the same key.
    #[inline]
    fn lend(&mut self, batch: &mut Batch, index: usize, now: UnixMs) {
        if !batch.wants_copy(index) {
            return;
        }
        let operation = batch.operation(index);
        let (hash, consistency) = (operation.hash, operation.consistency);
        if !self.answers_alone(hash.partition(), consistency) {
            return;
        }
        let any_level = self.view.solo();
        let shard = self.local.shard_mut();
        if let Some(lease) = shard.lend(hash, operation.key, any_level, now) {
            batch.lend(index, lease);
        }
    }

    /// Takes the batches whose last operation got its outcome.
    pub fn take_finished(&mut self, into: &mut Vec<(Box<Batch>, Home)>) {
        into.append(&mut self.finished);
    }

    /// Takes the outboxes that may have something to send although nothing is in
    /// flight on their connection.
    pub fn take_dirty(&mut self, into: &mut Vec<(NodeIx, Lane)>) {
        into.append(&mut self.dirty);
    }

    /// The next frame for a peer, with its number.
    pub fn poll(&mut self, node: NodeIx, lane: Lane) -> Option<(u64, &[u8])> {
        if !self.view.reachable(node) {
            // Whatever was pushed before it was given up is handed back by set_view.
            return None;
        }
        let now = self.steady.now();
        let polled = self.links.get_mut(node.index())?.lane(lane).poll(now)?;
        self.counters.peer_bytes_sent += polled.1.len() as u64;
        Some(polled)
    }

    /// The frame that [`Coordinator::poll`] returned last and that is not answered yet.
    pub fn in_flight(&self, node: NodeIx, lane: Lane) -> Option<Travelling<'_>> {
        let link = self.links.get(node.index())?;
        let outbox = match lane {
            Lane::Data => &link.data,
            Lane::Bulk => &link.bulk,
        };
        let frame = outbox.in_flight()?;
        Some(Travelling {
            bytes: frame.bytes(),
            operations: frame.len(),
            contexts: frame.contexts(),
        })
    }

    /// Takes what this core has done by itself since the last call.
    pub fn take_activities(&mut self) -> Vec<Activity> {
        self.activities.take()
    }

    /// Whether to poll for a peer although nothing was pushed: to see whether it is back.
    pub fn retry_is_due(&self, node: NodeIx, lane: Lane) -> bool {
        let Some(link) = self.links.get(node.index()) else {
            return false;
        };
        let retry_at = match lane {
            Lane::Data => link.data.retry_at(),
            Lane::Bulk => link.bulk.retry_at(),
        };
        retry_at.is_some_and(|at| at <= self.steady.now())
    }

    /// A peer answered a frame.
    pub fn answered(
        &mut self,
        node: NodeIx,
        lane: Lane,
        sequence: u64,
        answer: &[u8],
        now: UnixMs,
    ) {
        let Some(link) = self.links.get_mut(node.index()) else {
            return;
        };
        let Some(frame) = link.lane(lane).answered(sequence) else {
            return;
        };
        self.dirty.push((node, lane));
        self.counters.peer_bytes_received += answer.len() as u64;
        let (theirs, bodies) = message::answers(answer).ok().unzip();
        let mut bodies = bodies.into_iter().flatten();
        let agrees = theirs.is_some_and(|theirs| self.view.terms().agree(theirs));
        for (call, op) in frame.operations() {
            let answer = bodies
                .next()
                .and_then(|body| Answer::decode(body.ok()?).ok());
            match answer {
                Some(answer) => self.call_answered(node, *call, &op, &answer, agrees, now),
                None => {
                    self.counters.peer_malformed += 1;
                    self.call_failed(node, *call, &op, now);
                }
            }
        }
        if let Some(link) = self.links.get_mut(node.index()) {
            link.lane(lane).recycle(frame);
        }
    }

    /// A frame could not be sent, or was not answered in time.
    pub fn failed(&mut self, node: NodeIx, lane: Lane, sequence: u64, now: UnixMs) {
        let Some(link) = self.links.get_mut(node.index()) else {
            return;
        };
        let steady = self.steady.advance(now);
        let frames = link.lane(lane).failed(sequence, steady, &mut self.rng);
        self.counters.peer_failures += u64::from(!frames.is_empty());
        for frame in &frames {
            self.fail_frame(node, frame, now);
        }
        self.dirty.push((node, lane));
    }

    fn fail_frame(&mut self, node: NodeIx, frame: &Frame<Call>, now: UnixMs) {
        for (call, op) in frame.operations() {
            self.call_failed(node, *call, &op, now);
        }
    }

    /// Forgets what the cluster has cleared, as soon as this node's clock allows it to have
    /// been written.
    fn follow_clearing(&mut self, now: UnixMs) {
        let cleared = self.view.cleared();
        if cleared >= self.local.shard().kept_from()
            && cleared > Version::ZERO
            && cleared <= self.newest_credible(now)
        {
            self.local.clear(cleared);
        }
    }

    /// Tells what time it is, if [`Coordinator::tick`] was not called for long.
    pub fn catch_up(&mut self, now: UnixMs) {
        self.steady.advance(now);
    }

    /// Does what is due. Call it every few milliseconds to tens of milliseconds, or when
    /// [`Coordinator::quiet_ms`] is over, but at least once a second.
    pub fn tick(&mut self, now: UnixMs) {
        let steady = self.steady.advance(now);
        self.hints.expire(steady, EXPIRE_STEPS);
        self.follow_clearing(now);
        self.local.shard_mut().clear_step(CLEAR_STEPS);
        for node in self.hints.take_lost() {
            self.sync.hurry(node);
        }
        if self.next_replay <= steady {
            self.next_replay = steady.later(self.config.hint_replay_ms);
            for index in 0..self.links.len() {
                self.replay_hints(NodeIx(index as u16), now);
            }
        }
        self.sync_tick(now);
        self.retry_refused(now);
    }

    /// For how long [`Coordinator::tick`] would find nothing to do, in milliseconds, unless
    /// something happens meanwhile: an operation, a frame, an answer or a view. `None` while
    /// anything is under way.
    pub fn quiet_ms(&self, now: UnixMs) -> Option<u64> {
        let is_still = |outbox: &Outbox<Call>| outbox.is_up() && outbox.is_idle();
        let links = self.links.iter().enumerate();
        let mut links = links.filter(|(index, _)| self.view.node(NodeIx(*index as u16)).is_some());
        let shard = self.local.shard();
        let cleared = self.view.cleared();
        let is_quiet = self.pending.len() == self.pending_free.len()
            && self.refused.is_empty()
            && self.hints.is_empty()
            && self.activities.is_empty()
            && !shard.is_clearing()
            && (cleared == Version::ZERO || cleared < shard.kept_from())
            && links.all(|(_, link)| is_still(&link.data) && is_still(&link.bulk));
        is_quiet.then(|| self.sync_quiet_ms(now)).flatten()
    }

    fn replay_hints(&mut self, node: NodeIx, now: UnixMs) {
        let link = &mut self.links[node.index()];
        if link.replaying > 0 || !link.bulk.is_up() || !self.view.reachable(node) {
            return;
        }
        let fresh = planted(Mutation::RestampHints).then(|| self.local.stamp(now));
        for (number, mut write) in self.hints.oldest(node) {
            write.version = fresh.unwrap_or(write.version);
            if !link.bulk.push(Call::Hint { number }, &PeerOp::Apply(write)) {
                break;
            }
            link.replaying += 1;
        }
        if link.replaying > 0 {
            link.replay_sent = link.replaying as u64;
            link.replay_taken = 0;
            link.replay_began = self.steady.now();
            self.dirty.push((node, Lane::Bulk));
        }
    }

    /// Pushes an operation; false when the node cannot be reached.
    pub(super) fn push(&mut self, node: NodeIx, lane: Lane, call: Call, op: &PeerOp<'_>) -> bool {
        if !self.view.reachable(node) {
            return false;
        }
        let context = self.context.or_else(|| self.context_of(call));
        let Some(link) = self.links.get_mut(node.index()) else {
            return false;
        };
        let outbox = link.lane(lane);
        let idle = outbox.is_idle();
        let pushed = outbox.push(call, op);
        if pushed && let Some(context) = context {
            outbox.note(context);
        }
        if pushed && idle {
            self.dirty.push((node, lane));
        }
        pushed
    }

    /// The recorded request to which the operation belongs that waits for this call.
    fn context_of(&self, call: Call) -> Option<Context> {
        let Call::Pending { slot, .. } = call else {
            return None;
        };
        let (_, pending) = self.pending.get(slot as usize)?;
        let pending = pending.as_ref()?;
        let held = self.batches.get(pending.batch)?.as_ref()?;
        held.batch.context(pending.index)
    }

    fn start(
        &mut self,
        operation: Operation<'_>,
        place: (usize, usize),
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        if !self.view.joined() {
            return Some(Outcome::Joining);
        }
        let partition = operation.hash.partition();
        if self.view.fenced() && operation.consistency != Consistency::One {
            let needed = operation
                .consistency
                .needed(self.view.owners(partition).len());
            self.counters.fenced += 1;
            return Some(Outcome::Unreached { reached: 0, needed });
        }
        match operation.action {
            Action::Get if self.answers_alone(partition, operation.consistency) => {
                Some(found(self.local.get(operation.hash, operation.key, now)))
            }
            Action::Get if operation.consistency == Consistency::One => {
                self.start_forward(&operation, place, now)
            }
            Action::Get => self.start_collect(&operation, place, now),
            Action::Put { .. } | Action::Delete => self.start_write(&operation, place, now),
        }
    }

    fn wait(&mut self, (batch, index): (usize, usize), work: Work) {
        let pending = Pending { batch, index, work };
        let slot = self.next_slot();
        self.pending_free.pop();
        self.pending[slot].1 = Some(pending);
    }

    /// The slot that [`Coordinator::wait`] will use next, and the call that names it.
    fn next_slot(&mut self) -> usize {
        if self.pending_free.is_empty() {
            self.pending.push((0, None));
            self.pending_free.push(self.pending.len() - 1);
        }
        self.pending_free[self.pending_free.len() - 1]
    }

    fn next_call(&mut self) -> Call {
        let slot = self.next_slot();
        self.call(slot)
    }

    /// Lets what was pushed under [`Coordinator::next_call`] be answered to nobody.
    fn abandon_call(&mut self) {
        let slot = self.next_slot();
        self.pending[slot].0 = self.pending[slot].0.wrapping_add(1);
    }

    fn call(&self, slot: usize) -> Call {
        Call::Pending {
            slot: slot as u32,
            generation: self.pending[slot].0,
        }
    }

    fn finish(&mut self, slot: usize, outcome: Outcome<ValueView<'_>>) {
        if let Some((batch, index)) = self.release(slot) {
            if let Some(held) = &mut self.batches[batch] {
                held.batch.finish(index, outcome);
            }
            self.settle(batch);
        }
    }

    /// As [`Coordinator::finish`], with what this core's store holds.
    fn finish_from_local(&mut self, slot: usize, now: UnixMs) {
        if let Some((batch, index)) = self.release(slot) {
            if let Some(held) = &mut self.batches[batch] {
                let operation = held.batch.operation(index);
                let outcome = found(self.local.get(operation.hash, operation.key, now));
                held.batch.finish(index, outcome);
            }
            self.settle(batch);
        }
    }

    /// Frees a slot: whatever is still answered to it is answered to nobody. Returns the
    /// place of the operation that had it.
    fn release(&mut self, slot: usize) -> Option<(usize, usize)> {
        let (generation, pending) = &mut self.pending[slot];
        *generation = generation.wrapping_add(1);
        let pending = pending.take()?;
        self.pending_free.push(slot);
        if let Work::Collect(work) = &pending.work {
            self.collected_bytes -= work.best_bytes();
        }
        Some((pending.batch, pending.index))
    }

    /// One operation of a batch has its outcome.
    fn settle(&mut self, slot: usize) {
        let Some(held) = &mut self.batches[slot] else {
            return;
        };
        held.open -= 1;
        if held.open == 0
            && let Some(held) = self.batches[slot].take()
        {
            self.batches_free.push(slot);
            self.finished.push((held.batch, held.home));
        }
    }

    /// The newest version that may exist by this node's clock and the skew allowed.
    pub(super) fn newest_credible(&self, now: UnixMs) -> Version {
        Version::at(now).later(self.config.clock_skew_ms_max)
    }

    // What comes back from peers.

    fn call_answered(
        &mut self,
        node: NodeIx,
        call: Call,
        op: &PeerOp<'_>,
        answer: &Answer<'_>,
        agrees: bool,
        now: UnixMs,
    ) {
        match (op, answer) {
            // One that is full goes without: nobody wrote that just now.
            (PeerOp::Offer(_), Answer::Refused(Refusal::Full)) => {}
            (PeerOp::Write(_) | PeerOp::Apply(_) | PeerOp::Offer(_), Answer::Refused(_)) => {
                self.counters.write_apply_refused += 1;
            }
            _ => {}
        }
        match call {
            Call::Pending { slot, generation } => {
                let slot = slot as usize;
                let waits = self.pending[slot].0 == generation;
                match op {
                    PeerOp::Write(write) => {
                        self.keep_hint_of_untaken(node, write, answer);
                        if waits {
                            self.write_answered(slot, node, write.version, answer, agrees, now);
                        }
                    }
                    _ if !waits => {}
                    _ if *answer == Answer::Refused(Refusal::Later)
                        && self.push(node, Lane::Data, call, op) => {}
                    _ => self.read_answered(slot, node, answer, agrees, now),
                }
            }
            Call::Repair => {}
            Call::Hint { number } => {
                let taken = matches!(answer, Answer::Stored { .. } | Answer::Stale { .. });
                self.links[node.index()].replay_taken += u64::from(taken);
                let partition = op.partition();
                match answer {
                    _ if taken => self.hints.replayed(node, number),
                    // It will take it later.
                    Answer::Refused(Refusal::Skewed | Refusal::NotJoined) => {}
                    // It may have to learn that it is an owner.
                    Answer::Refused(Refusal::NotOwner) if self.view.takes(node, partition) => {}
                    _ => self.hints.refused(node, number),
                }
                self.hint_done(node, now);
            }
            Call::Sync { session } => self.sync_answered(node, session, op, answer, now),
        }
    }

    fn call_failed(&mut self, node: NodeIx, call: Call, op: &PeerOp<'_>, now: UnixMs) {
        match call {
            Call::Pending { slot, generation } => {
                let slot = slot as usize;
                let waits = self.pending[slot].0 == generation;
                if let PeerOp::Write(write) = op {
                    self.keep_hint(node, write);
                    if waits {
                        self.write_failed(slot, node, write.version, now);
                    }
                } else if waits {
                    self.read_failed(slot, now);
                }
            }
            Call::Repair => {}
            Call::Hint { .. } => self.hint_done(node, now),
            Call::Sync { session } => self.sync_failed(node, session),
        }
    }

    /// The next hints follow at once, unless the node takes none at present.
    fn hint_done(&mut self, node: NodeIx, now: UnixMs) {
        let link = &mut self.links[node.index()];
        link.replaying -= 1;
        if link.replaying > 0 {
            return;
        }
        let (sent, taken) = (link.replay_sent, link.replay_taken);
        let took_ms = self.steady.now().since(link.replay_began);
        self.activities.add(Activity {
            node: Some(node),
            took_ms,
            failed: taken == 0,
            done: Done::HintReplay { sent, taken },
        });
        if taken > 0 {
            self.replay_hints(node, now);
        }
    }
}

fn found(item: Option<ItemView<'_>>) -> Outcome<ValueView<'_>> {
    match item {
        Some(item) => Outcome::Found(item.into()),
        None => Outcome::Missing,
    }
}

#[cfg(test)]
mod tests;
