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
//! all that was acknowledged before the write began.
//!
//! **A read** at ONE is answered from this core when this node owns the partition and
//! holds its data, else by the first owner that answers (the next is tried when one
//! fails). At QUORUM and ALL the answers of that many owners are compared, the newest
//! is returned, and those that had something older are repaired. An owner that came
//! back empty and has not caught up yet says so, and its answer does not count.
//!
//! Invariants: every operation that was started gets exactly one outcome; a batch
//! goes home when its last operation has one; memory is bounded by what connections
//! have under way, by the outboxes and by the hints. Nothing here waits: whoever does
//! not answer is failed by the transport within its deadline.

use std::sync::Arc;

use super::Consistency;
use super::hints::{HintLimits, Hints};
use super::local::LocalStore;
use super::message::{Answer, Frames, Held, HeldBody, PeerOp, Refusal, WriteOp};
use super::outbox::{Frame, Outbox};
use super::placement::OWNERS_MAX;
use super::rng::Rng;
use super::sync::SyncState;
use super::view::{NodeIx, View};
use crate::clock::{Origin, UnixMs, Version};
use crate::hash::{CoreCount, CoreId, KeyHash, PartitionId};
use crate::mutation::{Mutation, planted};
use crate::operations::{Action, Batch, Found, Home, Operation, Outcome};
use crate::store::{Content, ItemView, ShardStats, TooLarge, ValueIn, ValueView, Write};

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
    /// How long a node may lack the data of its partitions before its answers count
    /// all the same.
    pub bootstrap_timeout_ms: u64,
}

/// Which of the connections to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What clients wait for.
    Data,
    /// Hints and repair, which may take long.
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
    replaying: usize,
}

impl Link {
    fn lane(&mut self, lane: Lane) -> &mut Outbox<Call> {
        match lane {
            Lane::Data => &mut self.data,
            Lane::Bulk => &mut self.bulk,
        }
    }
}

/// The owners of one partition, copied out of the view.
#[derive(Clone, Copy)]
struct Owners {
    list: [NodeIx; OWNERS_MAX],
    len: usize,
}

impl Owners {
    fn of(view: &View, partition: PartitionId) -> Self {
        let owners = view.owners(partition);
        let mut list = [NodeIx(0); OWNERS_MAX];
        let len = owners.len().min(OWNERS_MAX);
        list[..len].copy_from_slice(&owners[..len]);
        Self { list, len }
    }

    fn as_slice(&self) -> &[NodeIx] {
        &self.list[..self.len]
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

#[derive(Debug)]
struct WriteWork {
    version: Version,
    needed: usize,
    /// Owners that have it.
    acks: usize,
    /// Owners that hold something newer.
    stale: usize,
    /// Owners that have yet to answer for this version.
    open: usize,
    restamped: bool,
    /// Whether any owner will do.
    one: bool,
}

/// A read that compares the answers of several owners.
#[derive(Debug)]
struct CollectWork {
    needed: usize,
    got: usize,
    open: usize,
    best: Option<Best>,
    seen: Vec<(NodeIx, Option<(Version, Origin)>)>,
    fetching: bool,
}

/// A read that any one owner may answer.
#[derive(Debug, Default)]
struct ForwardWork {
    /// The owners that were asked, by their place in the list.
    tried: u32,
    /// Whether an owner answered that it has nothing but may lack data.
    missed: bool,
}

/// The newest that a read has seen so far.
#[derive(Debug)]
struct Best {
    version: Version,
    origin: Origin,
    expires_at: Option<UnixMs>,
    body: BestBody,
}

#[derive(Debug)]
enum BestBody {
    Tombstone,
    /// In this core's store.
    Local,
    /// At this node, not yet asked for.
    At(NodeIx),
    Value(Vec<u8>),
}

impl Best {
    fn from_held(held: &Held<'_>, node: NodeIx) -> Self {
        Self {
            version: held.version,
            origin: held.origin,
            expires_at: held.expires_at,
            body: match held.body {
                HeldBody::Tombstone => BestBody::Tombstone,
                HeldBody::Omitted => BestBody::At(node),
                HeldBody::Value(value) => BestBody::Value(value.to_vec()),
            },
        }
    }

    fn stamp(&self) -> (Version, Origin) {
        (self.version, self.origin)
    }

    fn is_visible(&self, now: UnixMs) -> bool {
        !matches!(self.body, BestBody::Tombstone) && self.expires_at.is_none_or(|at| at > now)
    }
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
    /// Outboxes that had nothing in flight when something was pushed.
    dirty: Vec<(NodeIx, Lane)>,
    next_replay: UnixMs,
}

impl Coordinator {
    /// A core that knows of no other node until it is given a view.
    pub fn new(config: Config, local: LocalStore, view: Arc<View>, seed: u64, now: UnixMs) -> Self {
        let mut coordinator = Self {
            hints: Hints::new(config.hints),
            sync: SyncState::new(),
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
            dirty: Vec::new(),
            next_replay: now,
        };
        coordinator.set_view(view, now);
        coordinator
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

    /// Goes over to another view.
    pub fn set_view(&mut self, view: Arc<View>, now: UnixMs) {
        let old = std::mem::replace(&mut self.view, view);
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
                    self.links[index].lane(lane).retry_now(now);
                    self.dirty.push((ix, lane));
                }
            }
            if !view.node(ix).is_some_and(|node| node.placed) {
                self.hints.forget_node(ix);
            }
        }
        self.sync_view_changed(now);
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

    fn write_alone(
        &mut self,
        operation: &Operation<'_>,
        now: UnixMs,
    ) -> Outcome<ValueView<'static>> {
        let Operation { hash, key, .. } = *operation;
        match &operation.action {
            Action::Put { value, expires_at } => {
                match self.local.put(hash, key, value.clone(), *expires_at, now) {
                    Ok(version) => Outcome::Stored(version),
                    Err(too_large) => Outcome::TooLarge(too_large),
                }
            }
            _ => match self.local.delete(hash, key, now) {
                Ok(version) => Outcome::Deleted(version),
                Err(too_large) => Outcome::TooLarge(too_large),
            },
        }
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
            match self.start(batch.operation(index), (slot, index), now) {
                Some(outcome) => batch.finish(index, outcome),
                None => open += 1,
            }
        }
        if open == 0 {
            self.batches_free.push(slot);
            return Some(batch);
        }
        self.batches[slot] = Some(HeldBatch { batch, home, open });
        None
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
    pub fn poll(&mut self, node: NodeIx, lane: Lane, now: UnixMs) -> Option<(u64, &[u8])> {
        if !self.view.reachable(node) {
            // Whatever was pushed before it was given up is handed back by set_view.
            return None;
        }
        self.links.get_mut(node.index())?.lane(lane).poll(now)
    }

    /// When to poll for a peer although nothing was pushed: to see whether it is back.
    pub fn retry_at(&self, node: NodeIx, lane: Lane) -> Option<UnixMs> {
        let link = self.links.get(node.index())?;
        match lane {
            Lane::Data => link.data.retry_at(),
            Lane::Bulk => link.bulk.retry_at(),
        }
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
        let mut bodies = Frames::new(answer).into_iter().flatten();
        for (call, op) in frame.operations() {
            let answer = bodies
                .next()
                .and_then(|body| Answer::decode(body.ok()?).ok());
            match answer {
                Some(answer) => self.call_answered(node, *call, &op, &answer, now),
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
        let frames = link.lane(lane).failed(sequence, now, &mut self.rng);
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

    /// Does what is due. Call it every few milliseconds to tens of milliseconds.
    pub fn tick(&mut self, now: UnixMs) {
        const EXPIRE_STEPS: usize = 1024;
        self.hints.expire(now, EXPIRE_STEPS);
        if self.next_replay <= now {
            self.next_replay = UnixMs(now.0 + self.config.hint_replay_ms);
            for index in 0..self.links.len() {
                self.replay_hints(NodeIx(index as u16), now);
            }
        }
        self.sync_tick(now);
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
            self.dirty.push((node, Lane::Bulk));
        }
    }

    /// Pushes an operation; false when the node cannot be reached.
    pub(super) fn push(&mut self, node: NodeIx, lane: Lane, call: Call, op: &PeerOp<'_>) -> bool {
        if !self.view.reachable(node) {
            return false;
        }
        let Some(link) = self.links.get_mut(node.index()) else {
            return false;
        };
        let outbox = link.lane(lane);
        let idle = outbox.is_idle();
        let pushed = outbox.push(call, op);
        if pushed && idle {
            self.dirty.push((node, lane));
        }
        pushed
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
        let (generation, pending) = &mut self.pending[slot];
        *generation = generation.wrapping_add(1);
        let Some(pending) = pending.take() else {
            return;
        };
        self.pending_free.push(slot);
        self.settle(pending.batch, pending.index, outcome);
    }

    fn settle(&mut self, slot: usize, index: usize, outcome: Outcome<ValueView<'_>>) {
        let Some(held) = &mut self.batches[slot] else {
            return;
        };
        held.batch.finish(index, outcome);
        held.open -= 1;
        if held.open == 0
            && let Some(held) = self.batches[slot].take()
        {
            self.batches_free.push(slot);
            self.finished.push((held.batch, held.home));
        }
    }

    /// As [`Coordinator::finish`], with what this core's store holds.
    fn finish_from_local(&mut self, slot: usize, now: UnixMs) {
        let (generation, pending) = &mut self.pending[slot];
        *generation = generation.wrapping_add(1);
        let Some(pending) = pending.take() else {
            return;
        };
        self.pending_free.push(slot);
        let Some(held) = &mut self.batches[pending.batch] else {
            return;
        };
        let operation = held.batch.operation(pending.index);
        let outcome = found(self.local.get(operation.hash, operation.key, now));
        held.batch.finish(pending.index, outcome);
        held.open -= 1;
        if held.open == 0
            && let Some(held) = self.batches[pending.batch].take()
        {
            self.batches_free.push(pending.batch);
            self.finished.push((held.batch, held.home));
        }
    }

    // Writes.

    fn start_write(
        &mut self,
        operation: &Operation<'_>,
        place: (usize, usize),
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        let partition = operation.hash.partition();
        let owners = Owners::of(&self.view, partition);
        let mine = owners.as_slice().contains(&self.view.me());
        self.counters.write_attempts += 1;
        if mine && owners.len == 1 {
            self.counters.write_acks += 1;
            return Some(self.write_alone(operation, now));
        }
        let deletes = matches!(operation.action, Action::Delete);
        if !mine {
            let counter = match deletes {
                true => &mut self.counters.forward_remove,
                false => &mut self.counters.forward_set,
            };
            *counter += 1;
            if !self.view.reachable(owners.list[0]) {
                self.counters.write_forward_promotion += 1;
            }
        }
        let version = self.local.stamp(now);
        let call = self.next_call();
        let acks = match self.send_write(operation, version, &owners, call, now) {
            Ok(sent) => sent,
            Err(too_large) => return Some(Outcome::TooLarge(too_large)),
        };
        let (acks, open) = acks;
        let needed = operation.consistency.needed(owners.len);
        if acks >= needed {
            self.abandon_call();
            self.counters.write_acks += 1;
            return Some(written(deletes, version));
        }
        if acks + open < needed {
            self.abandon_call();
            self.counters.write_quorum_failures += 1;
            return Some(Outcome::Unreached {
                reached: acks,
                needed,
            });
        }
        let work = WriteWork {
            version,
            needed,
            acks,
            stale: 0,
            open,
            restamped: false,
            one: operation.consistency == Consistency::One,
        };
        self.wait(place, Work::Write(work));
        None
    }

    /// Applies a write here if this node is an owner and sends it to the others, or
    /// keeps hints for them. Returns how many have it and how many may yet take it.
    fn send_write(
        &mut self,
        operation: &Operation<'_>,
        version: Version,
        owners: &Owners,
        call: Call,
        now: UnixMs,
    ) -> Result<(usize, usize), TooLarge> {
        let Operation { hash, key, .. } = *operation;
        let origin = self.local.origin();
        let content = match &operation.action {
            Action::Put { value, expires_at } => Content::Value {
                value: value.clone(),
                expires_at: *expires_at,
            },
            _ => Content::Tombstone {
                expires_at: self.local.tombstone_expiry(version.stamped_at()),
            },
        };
        let mut acks = 0;
        if owners.as_slice().contains(&self.view.me()) {
            self.local
                .apply(hash, key, version, origin, content.clone(), now)?;
            let knows = self.sync.holds(hash.partition());
            acks += usize::from(knows || operation.consistency == Consistency::One);
        } else {
            let write = Write {
                hash,
                key,
                version,
                origin,
                content: content.clone(),
            };
            self.local.shard().accepts(&write)?;
        }
        let (value, expires_at) = match &content {
            Content::Value { value, expires_at } => (Some(bytes_of(value)), *expires_at),
            Content::Tombstone { expires_at } => (None, Some(*expires_at)),
        };
        let write = WriteOp {
            key,
            version,
            origin,
            value,
            expires_at,
        };
        let mut open = 0;
        for &owner in owners.as_slice() {
            if owner == self.view.me() {
                continue;
            }
            if self.push(owner, Lane::Data, call, &PeerOp::Write(write)) {
                open += 1;
            } else {
                self.hints.add(owner, &write, now);
            }
        }
        let fanout = match value {
            Some(_) => &mut self.counters.replica_fanout_set,
            None => &mut self.counters.replica_fanout_remove,
        };
        *fanout += open as u64;
        Ok((acks, open))
    }

    fn write_answered(&mut self, slot: usize, version: Version, answer: &Answer<'_>, now: UnixMs) {
        let Some(Pending {
            work: Work::Write(work),
            ..
        }) = &mut self.pending[slot].1
        else {
            return;
        };
        if work.version != version {
            return;
        }
        work.open -= 1;
        if let Answer::Stale { version, .. } = *answer {
            let limit = Version::at(now).later(self.config.clock_skew_ms_max);
            self.local.observe(version.min(limit));
        }
        match *answer {
            // Of what came before, an owner that lacks data can tell nothing.
            Answer::Stored { holding: false } | Answer::Stale { holding: false, .. }
                if !work.one && !planted(Mutation::TrustEmptyReplicas) => {}
            Answer::Stored { .. } => work.acks += 1,
            Answer::Stale { .. } if planted(Mutation::AcceptStaleWrites) => work.acks += 1,
            Answer::Stale { version, .. }
                if version > Version::at(now).later(self.config.clock_skew_ms_max) =>
            {
                // Nothing this node may stamp is newer: not acknowledged.
                self.counters.clock_skew_refused += 1;
            }
            // Ours was newer than all that a quorum held after it had begun: this was
            // written at the same time, and ours came before it.
            Answer::Stale { .. } if work.restamped => work.acks += 1,
            Answer::Stale { .. } => work.stale += 1,
            _ => {}
        }
        self.check_write(slot, now);
    }

    fn write_failed(&mut self, slot: usize, version: Version, now: UnixMs) {
        if let Some(Pending {
            work: Work::Write(work),
            ..
        }) = &mut self.pending[slot].1
            && work.version == version
        {
            work.open -= 1;
            self.check_write(slot, now);
        }
    }

    fn check_write(&mut self, slot: usize, now: UnixMs) {
        let Some(pending) = &self.pending[slot].1 else {
            return;
        };
        let Work::Write(work) = &pending.work else {
            return;
        };
        if work.acks >= work.needed {
            let deletes = self.batches[pending.batch].as_ref().is_some_and(|held| {
                matches!(held.batch.operation(pending.index).action, Action::Delete)
            });
            let outcome = written(deletes, work.version);
            self.counters.write_acks += 1;
            self.finish(slot, outcome);
        } else if work.acks + work.stale >= work.needed {
            self.restamp(slot, now);
        } else if work.acks + work.stale + work.open < work.needed {
            let outcome = Outcome::Unreached {
                reached: work.acks,
                needed: work.needed,
            };
            self.counters.write_quorum_failures += 1;
            self.finish(slot, outcome);
        }
    }

    /// Sends a write again under a newer version: an owner holds something newer.
    fn restamp(&mut self, slot: usize, now: UnixMs) {
        let Some(pending) = &self.pending[slot].1 else {
            return;
        };
        let (batch_slot, index) = (pending.batch, pending.index);
        // The batch is out of its place while it is read and the rest of self changes.
        let Some(held) = self.batches[batch_slot].take() else {
            return;
        };
        self.counters.write_restamps += 1;
        let operation = held.batch.operation(index);
        let owners = Owners::of(&self.view, operation.hash.partition());
        let version = self.local.stamp(now);
        let call = self.call(slot);
        let sent = self.send_write(&operation, version, &owners, call, now);
        let needed = operation.consistency.needed(owners.len);
        self.batches[batch_slot] = Some(held);
        // It fitted before; if it does not any more, nobody has it under this version.
        let (acks, open) = sent.unwrap_or((0, 0));
        if let Some(Pending {
            work: Work::Write(work),
            ..
        }) = &mut self.pending[slot].1
        {
            work.version = version;
            work.needed = needed;
            work.acks = acks;
            work.open = open;
            work.stale = 0;
            work.restamped = true;
        }
        self.check_write(slot, now);
    }

    // Reads at ONE that this node cannot answer.

    fn start_forward(
        &mut self,
        operation: &Operation<'_>,
        place: (usize, usize),
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        self.counters.forward_get += 1;
        let call = self.next_call();
        let mut work = ForwardWork::default();
        let partition = operation.hash.partition();
        if self.forward(partition, operation.key, &mut work, call) {
            self.wait(place, Work::Forward(work));
            return None;
        }
        if self.view.owns(partition) {
            return Some(found(self.local.get(operation.hash, operation.key, now)));
        }
        self.counters.read_quorum_failures += 1;
        Some(Outcome::Unreached {
            reached: 0,
            needed: 1,
        })
    }

    /// Asks the next owner, those that are not suspected first; false when none is left.
    fn forward(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        work: &mut ForwardWork,
        call: Call,
    ) -> bool {
        let owners = Owners::of(&self.view, partition);
        let me = self.view.me();
        let alive = |view: &View, owner: NodeIx| {
            view.node(owner)
                .is_some_and(|node| node.state == super::membership::State::Alive)
        };
        for suspects in [false, true] {
            for (position, &owner) in owners.as_slice().iter().enumerate() {
                if owner == me
                    || work.tried & 1 << position != 0
                    || alive(&self.view, owner) == suspects
                {
                    continue;
                }
                work.tried |= 1 << position;
                if self.push(owner, Lane::Data, call, &PeerOp::Read { key, value: true }) {
                    if position > 0 {
                        self.counters.read_primary_promote += 1;
                    }
                    return true;
                }
            }
        }
        false
    }

    /// The owner that was asked has nothing to say: asks the next one.
    fn forward_on(&mut self, slot: usize, now: UnixMs) {
        let call = self.call(slot);
        let Some(Pending {
            work: Work::Forward(work),
            batch,
            index,
        }) = &mut self.pending[slot].1
        else {
            return;
        };
        let mut work = std::mem::take(work);
        let Some(held) = self.batches[*batch].take() else {
            return;
        };
        let (batch, index) = (*batch, *index);
        let operation = held.batch.operation(index);
        let partition = operation.hash.partition();
        let asked = self.forward(partition, operation.key, &mut work, call);
        self.batches[batch] = Some(held);
        let missed = work.missed;
        if let Some(pending) = &mut self.pending[slot].1 {
            pending.work = Work::Forward(work);
        }
        if asked {
            return;
        }
        if self.view.owns(partition) {
            self.finish_from_local(slot, now);
        } else if missed {
            self.finish(slot, Outcome::Missing);
        } else {
            self.counters.read_quorum_failures += 1;
            let outcome = Outcome::Unreached {
                reached: 0,
                needed: 1,
            };
            self.finish(slot, outcome);
        }
    }

    // Reads that compare.

    fn start_collect(
        &mut self,
        operation: &Operation<'_>,
        place: (usize, usize),
        now: UnixMs,
    ) -> Option<Outcome<ValueView<'_>>> {
        let partition = operation.hash.partition();
        let owners = Owners::of(&self.view, partition);
        let me = self.view.me();
        let mut work = CollectWork {
            needed: operation.consistency.needed(owners.len),
            got: 0,
            open: 0,
            best: None,
            seen: Vec::new(),
            fetching: false,
        };
        if owners.as_slice().contains(&me) {
            let resident = self.local.resident(operation.hash, operation.key);
            work.got +=
                usize::from(self.sync.holds(partition) || planted(Mutation::TrustEmptyReplicas));
            work.seen
                .push((me, resident.map(|item| (item.version, item.origin))));
            work.best = resident.map(|item| Best {
                version: item.version,
                origin: item.origin,
                expires_at: item.expires_at,
                body: if item.tombstone {
                    BestBody::Tombstone
                } else {
                    BestBody::Local
                },
            });
        } else {
            self.counters.forward_get += 1;
        }
        if work.got >= work.needed {
            return Some(found(self.local.get(operation.hash, operation.key, now)));
        }
        let call = self.next_call();
        let mut value = work.best.is_none();
        for &owner in owners.as_slice() {
            let key = operation.key;
            if owner != me && self.push(owner, Lane::Data, call, &PeerOp::Read { key, value }) {
                work.open += 1;
                value = false;
            }
        }
        if work.got + work.open < work.needed {
            self.abandon_call();
            self.counters.read_quorum_failures += 1;
            return Some(Outcome::Unreached {
                reached: work.got,
                needed: work.needed,
            });
        }
        self.wait(place, Work::Collect(work));
        None
    }

    fn read_answered(&mut self, slot: usize, node: NodeIx, answer: &Answer<'_>, now: UnixMs) {
        let Some(pending) = &mut self.pending[slot].1 else {
            return;
        };
        let Answer::Read { holding, held } = *answer else {
            self.read_failed(slot, now);
            return;
        };
        match &mut pending.work {
            Work::Write(_) => {}
            Work::Forward(work) => match held {
                Some(held) => self.finish_with(slot, &held, now),
                None if holding => {
                    self.counters.replica_get_miss += 1;
                    self.finish(slot, Outcome::Missing);
                }
                None => {
                    work.missed = true;
                    self.forward_on(slot, now);
                }
            },
            Work::Collect(work) if work.fetching => {
                // A node that was restarted since may hold less than it told of.
                let sought = work.best.as_ref().map(Best::stamp);
                if let Some(held) = held.filter(|held| Some((held.version, held.origin)) >= sought)
                {
                    work.best = Some(Best::from_held(&held, node));
                }
                self.conclude(slot, now);
            }
            Work::Collect(work) => {
                work.open -= 1;
                if holding || planted(Mutation::TrustEmptyReplicas) {
                    work.got += 1;
                }
                work.seen
                    .push((node, held.map(|held| (held.version, held.origin))));
                if let Some(held) = &held {
                    let stamp = (held.version, held.origin);
                    let known = work.best.as_ref().map(Best::stamp);
                    let fills = known == Some(stamp)
                        && matches!(held.body, HeldBody::Value(_))
                        && matches!(
                            work.best.as_ref().map(|best| &best.body),
                            Some(BestBody::At(_))
                        );
                    if known < Some(stamp) || fills {
                        work.best = Some(Best::from_held(held, node));
                    }
                }
                self.check_collect(slot, now);
            }
        }
    }

    fn read_failed(&mut self, slot: usize, now: UnixMs) {
        let Some(pending) = &mut self.pending[slot].1 else {
            return;
        };
        match &mut pending.work {
            Work::Write(_) => {}
            Work::Forward(_) => self.forward_on(slot, now),
            Work::Collect(work) if work.fetching => {
                let outcome = Outcome::Unreached {
                    reached: work.needed - 1,
                    needed: work.needed,
                };
                self.counters.read_quorum_failures += 1;
                self.finish(slot, outcome);
            }
            Work::Collect(work) => {
                work.open -= 1;
                self.check_collect(slot, now);
            }
        }
    }

    fn check_collect(&mut self, slot: usize, now: UnixMs) {
        let Some(Pending {
            work: Work::Collect(work),
            ..
        }) = &self.pending[slot].1
        else {
            return;
        };
        if work.got >= work.needed {
            self.conclude(slot, now);
        } else if work.got + work.open < work.needed {
            let outcome = Outcome::Unreached {
                reached: work.got,
                needed: work.needed,
            };
            self.counters.read_quorum_failures += 1;
            self.finish(slot, outcome);
        }
    }

    /// Enough owners have answered: fetches the newest value if need be, repairs those
    /// that have something older, and answers.
    fn conclude(&mut self, slot: usize, now: UnixMs) {
        let Some(Pending {
            work: Work::Collect(work),
            batch: batch_slot,
            index,
        }) = &mut self.pending[slot].1
        else {
            return;
        };
        let (batch_slot, index) = (*batch_slot, *index);
        let Some(best) = work.best.take() else {
            self.finish(slot, Outcome::Missing);
            return;
        };
        if let BestBody::At(node) = best.body
            && best.is_visible(now)
        {
            let first = !work.fetching;
            work.fetching = true;
            let needed = work.needed;
            work.best = Some(best);
            let Some(held) = self.batches[batch_slot].take() else {
                return;
            };
            let key = held.batch.operation(index).key;
            // From here on only the answer to this counts, and none of the others.
            self.pending[slot].0 = self.pending[slot].0.wrapping_add(1);
            let call = self.call(slot);
            let asked =
                first && self.push(node, Lane::Data, call, &PeerOp::Read { key, value: true });
            self.batches[batch_slot] = Some(held);
            if !asked {
                self.counters.read_quorum_failures += 1;
                let outcome = Outcome::Unreached {
                    reached: needed - 1,
                    needed,
                };
                self.finish(slot, outcome);
            }
            return;
        }
        let seen = std::mem::take(&mut work.seen);
        let Some(held) = self.batches[batch_slot].take() else {
            return;
        };
        let operation = held.batch.operation(index);
        self.repair(&operation, &best, &seen, now);
        self.batches[batch_slot] = Some(held);
        match best.body {
            _ if !best.is_visible(now) => self.finish(slot, Outcome::Missing),
            BestBody::Value(value) => {
                let item = Found {
                    value: ValueView::Bytes(&value),
                    version: best.version,
                    origin: best.origin,
                    expires_at: best.expires_at,
                };
                self.finish(slot, Outcome::Found(item));
            }
            _ => self.finish_from_local(slot, now),
        }
    }

    /// Sends the newest to those who showed something older.
    fn repair(
        &mut self,
        operation: &Operation<'_>,
        best: &Best,
        seen: &[(NodeIx, Option<(Version, Origin)>)],
        now: UnixMs,
    ) {
        let Operation { hash, key, .. } = *operation;
        if best.expires_at.is_some_and(|at| at <= now) {
            return;
        }
        // A copy, because pushing needs the rest of self.
        let local_value = match best.body {
            BestBody::Local => match self.local.shard().peek(hash, key, now) {
                Some(item) if (item.version, item.origin) == best.stamp() => {
                    Some(item.value.bytes().to_vec())
                }
                _ => return,
            },
            _ => None,
        };
        let value = match &best.body {
            BestBody::Tombstone => None,
            BestBody::Value(value) => Some(value.as_slice()),
            BestBody::Local => local_value.as_deref(),
            BestBody::At(_) => return,
        };
        let write = WriteOp {
            key,
            version: best.version,
            origin: best.origin,
            value,
            expires_at: best.expires_at,
        };
        for &(node, stamp) in seen {
            if stamp >= Some(best.stamp()) {
                continue;
            }
            self.counters.read_repair += 1;
            if node == self.view.me() {
                self.take_in(hash, &write, now);
            } else if self.push(node, Lane::Data, Call::Repair, &PeerOp::Apply(write)) {
                self.counters.read_repair_batched += 1;
            }
        }
    }

    fn finish_with(&mut self, slot: usize, held: &Held<'_>, now: UnixMs) {
        let visible = held.expires_at.is_none_or(|at| at > now);
        let outcome = match held.body {
            HeldBody::Value(value) if visible => Outcome::Found(Found {
                value: ValueView::Bytes(value),
                version: held.version,
                origin: held.origin,
                expires_at: held.expires_at,
            }),
            _ => Outcome::Missing,
        };
        self.finish(slot, outcome);
    }

    // What comes back from peers.

    fn call_answered(
        &mut self,
        node: NodeIx,
        call: Call,
        op: &PeerOp<'_>,
        answer: &Answer<'_>,
        now: UnixMs,
    ) {
        if let (PeerOp::Write(_) | PeerOp::Apply(_), Answer::Refused(_)) = (op, answer) {
            self.counters.write_apply_refused += 1;
        }
        match call {
            Call::Pending { slot, generation } => {
                let slot = slot as usize;
                if let (
                    PeerOp::Write(write),
                    Answer::Stale {
                        version, origin, ..
                    },
                ) = (op, answer)
                    && (*version, *origin) < (write.version, write.origin)
                {
                    // A tie that we win: not acknowledged, but to be known there too.
                    self.hints.add(node, write, now);
                }
                if self.pending[slot].0 != generation {
                    return;
                }
                match op {
                    PeerOp::Write(write) => self.write_answered(slot, write.version, answer, now),
                    _ => self.read_answered(slot, node, answer, now),
                }
            }
            Call::Repair => {}
            Call::Hint { number } => {
                match answer {
                    Answer::Stored { .. } | Answer::Stale { .. } => {
                        self.hints.replayed(node, number);
                    }
                    Answer::Refused(Refusal::Skewed) => {}
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
                    if self.view.node(node).is_some_and(|node| node.placed) {
                        self.hints.add(node, write, now);
                    }
                    if waits {
                        self.write_failed(slot, write.version, now);
                    }
                } else if waits {
                    self.read_failed(slot, now);
                }
            }
            Call::Repair => {}
            Call::Hint { .. } => self.hint_done(node, now),
            Call::Sync { session } => self.sync_failed(node, session, now),
        }
    }

    fn hint_done(&mut self, node: NodeIx, now: UnixMs) {
        let link = &mut self.links[node.index()];
        link.replaying -= 1;
        if link.replaying == 0 {
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

fn written(deletes: bool, version: Version) -> Outcome<ValueView<'static>> {
    if deletes {
        Outcome::Deleted(version)
    } else {
        Outcome::Stored(version)
    }
}

fn bytes_of<'a>(value: &'a ValueIn<'_>) -> &'a [u8] {
    match value {
        ValueIn::Bytes(bytes) => bytes,
        ValueIn::Shared(bytes) => bytes,
    }
}
