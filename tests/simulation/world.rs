//! A cluster in one thread: real membership, coordinators and stores, a network and
//! clocks made of a seed.
//!
//! Time moves from event to event. Nothing here sleeps, and the same seed always gives
//! the same history.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use crate::history::{Done, Expiry, Kind, Request};
use hypercache::clock::{Origin, UnixMs};
use hypercache::cluster::coordinator::{Config, Lane};
use hypercache::cluster::hints::HintLimits;
use hypercache::cluster::membership::{
    self, Action as MemberAction, Identity, Member, Membership, State,
};
use hypercache::cluster::message;
use hypercache::cluster::rng::Rng;
use hypercache::cluster::view::{Placements, Views};
use hypercache::cluster::{Consistency, Coordinator, LocalStore, NodeIx, View};
use hypercache::hash::{CoreCount, CoreId, KeyHash, PartitionId};
use hypercache::operations::{Action, Exchange, Home, Operation, Outcome};
use hypercache::store::{EvictionPolicy, Shard, ShardConfig, ValueIn};

thread_local! {
    static PLACEMENTS: RefCell<Placements> = RefCell::default();
}

pub const EPOCH_MS: u64 = 1_800_000_000_000;
const TICK_MS: u64 = 20;
const PEER_TIMEOUT_MS: u64 = 200;
pub const HEARTBEAT_MS: u64 = 100;
pub const SKEW_MS_MAX: u64 = 500;
pub const SHARD_BYTES_MAX: usize = 4 << 20;
pub const HINTS_PER_NODE: usize = 500;
/// How far clocks are from the true time, in either direction, where nobody sets them wrong.
pub const CLOCK_OFF_MS_MAX: u64 = 200;
/// Small steps that forget what has expired, between which clients are served.
const REAP_STEPS: usize = 1_000;
/// Longer than any simulation.
pub const NEVER_MS: u64 = 1 << 40;

/// What happens at some time.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Tick {
        node: usize,
        life: u32,
    },
    /// A frame arrives at a node.
    Frame {
        envelope: Envelope,
        bytes: Vec<u8>,
    },
    /// The answer to a frame arrives.
    Answer {
        envelope: Envelope,
        bytes: Vec<u8>,
    },
    /// A frame that was not answered is given up.
    Timeout {
        envelope: Envelope,
    },
    /// A membership message arrives.
    Gossip {
        from: usize,
        to: String,
        bytes: Vec<u8>,
    },
    GossipReply {
        from: usize,
        to: usize,
        life: u32,
        bytes: Vec<u8>,
    },
    /// A process that has said goodbye ends.
    End {
        node: usize,
        life: u32,
    },
    /// The driver's turn: an operation or a fault.
    Driver(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub from: usize,
    pub life: u32,
    pub core: usize,
    pub to: String,
    pub peer: NodeIx,
    pub lane: u8,
    pub sequence: u64,
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// One simulated process.
pub struct Process {
    pub id: String,
    pub address: String,
    pub life: u32,
    pub up: bool,
    pub paused: bool,
    /// Whether it was told to leave, and ends when it can be done without.
    pub draining: bool,
    /// How far its clock is ahead, in milliseconds.
    pub skew_ms: i64,
    /// How much later everything it sends arrives.
    pub slow_ms: u64,
    pub membership: Membership,
    views: Views,
    pub cores: Vec<Coordinator>,
    pub view: Arc<View>,
    /// What came while it was paused.
    backlog: Vec<Event>,
}

/// How the network treats messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network {
    pub loss_percent: usize,
    pub duplicate_percent: usize,
    pub delay_ms_max: u64,
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub nodes: Vec<Process>,
    pub network: Network,
    /// Pairs (from, to) that nothing passes.
    pub cut: std::collections::BTreeSet<(usize, usize)>,
    pub requests: Vec<Request>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    settings: WorldSettings,
    pub keys: Vec<Vec<u8>>,
    exchanges: BTreeMap<usize, (Exchange, hypercache::operations::Ticket)>,
    /// The node, its life and the core whose client waits for a request.
    entered: BTreeMap<usize, (usize, u32, usize)>,
    /// Reads answered from copies of other cores' items.
    pub copies_read: u64,
    /// The first of them that the item's core would have answered otherwise.
    pub stale_copy: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub struct WorldSettings {
    /// Those that found the cluster; the seeds of all.
    pub nodes: usize,
    /// Nodes that may join later.
    pub spares: usize,
    pub dead_grace_ms: u64,
    pub replication: usize,
    pub sync_interval_ms: u64,
    pub hint_ttl_ms: u64,
    pub keys: usize,
    /// What each core may hold; 0 for all there is.
    pub items_max: usize,
}

fn finding(outcome: Outcome<hypercache::store::ValueView<'_>>) -> Option<Done> {
    match outcome {
        Outcome::Found(found) => Some(Done::Found(found.value.bytes().to_vec(), found.version)),
        _ => None,
    }
}

fn shard(cores: CoreCount, core: CoreId, items_max: usize) -> Shard {
    Shard::new(ShardConfig {
        cores,
        core,
        items_max,
        bytes_max: SHARD_BYTES_MAX,
        value_bytes_max: 64 << 10,
        tombstones_max: 10_000,
        eviction: EvictionPolicy::default(),
    })
    .unwrap()
}

impl World {
    pub fn new(settings: WorldSettings, rng: Rng) -> Self {
        let mut world = Self {
            now: EPOCH_MS,
            rng,
            nodes: Vec::new(),
            network: Network::default(),
            cut: Default::default(),
            requests: Vec::new(),
            queue: BinaryHeap::new(),
            order: 0,
            settings,
            keys: (0..settings.keys)
                .map(|key| format!("key-{key}").into_bytes())
                .collect(),
            exchanges: BTreeMap::new(),
            entered: BTreeMap::new(),
            copies_read: 0,
            stale_copy: None,
        };
        for index in 0..settings.nodes + settings.spares {
            let cores = 1 + world.rng.below(2);
            let mut process = world.process(index, 0, cores);
            process.up = index < settings.nodes;
            world.nodes.push(process);
            if index >= settings.nodes {
                continue;
            }
            world.schedule(
                0,
                Event::Tick {
                    node: index,
                    life: 0,
                },
            );
        }
        world
    }

    fn process(&mut self, index: usize, life: u32, cores: usize) -> Process {
        let id = format!("node-{index}");
        // A name: it leads to whatever life of the node there is.
        let address = format!("node-{index}:7946");
        let identity = Identity {
            id: Arc::from(&*id),
            peer_address: Arc::from(&*address),
            client_address: Arc::from(&*address),
        };
        let seeds = (0..self.settings.nodes).map(|seed| membership::Seed {
            id: Some(Arc::from(format!("node-{seed}"))),
            address: Arc::from(format!("node-{seed}:7946")),
        });
        let config = membership::Config {
            heartbeat_ms: HEARTBEAT_MS,
            gossip_interval_ms: HEARTBEAT_MS,
            indirect_probes: 2,
            dead_grace_ms: self.settings.dead_grace_ms,
            clock_skew_ms: SKEW_MS_MAX,
            join_timeout_ms: 1_000,
            replication: self.settings.replication,
        };
        let most = CLOCK_OFF_MS_MAX as i64;
        let skew_ms = self.rng.below(2 * CLOCK_OFF_MS_MAX as usize + 1) as i64 - most;
        let membership = Membership::new(
            config,
            identity,
            self.now + u64::from(life),
            seeds.collect(),
            self.now,
        );
        let count = CoreCount::new(cores).unwrap();
        let mut views = Views::new(self.settings.replication, 64);
        let view = Arc::new(PLACEMENTS.with_borrow_mut(|known| views.of(&membership, known)));
        let local_now = UnixMs((self.now as i64 + skew_ms) as u64);
        let cores = count
            .cores()
            .map(|core| {
                let config = Config {
                    core,
                    cores: count,
                    hints: HintLimits {
                        ttl_ms: self.settings.hint_ttl_ms,
                        per_node: HINTS_PER_NODE,
                        per_node_bytes: 1 << 20,
                        total: 2 * HINTS_PER_NODE,
                        total_bytes: 2 << 20,
                    },
                    hint_replay_ms: 100,
                    clock_skew_ms_max: SKEW_MS_MAX,
                    sync_interval_ms: self.settings.sync_interval_ms,
                    rebalance_interval_ms: 200,
                    sync_interval_ms_max: NEVER_MS,
                    patience_ms: PEER_TIMEOUT_MS,
                    transfer_rate: 0,
                    drop_grace_ms: 500,
                    bootstrap_timeout_ms: NEVER_MS,
                    copies_bytes_max: 1 << 20,
                };
                let shard = shard(count, core, self.settings.items_max);
                let local = LocalStore::new(shard, Origin::of(&id, life as u8), 3_600_000);
                Coordinator::new(
                    config,
                    local,
                    Arc::clone(&view),
                    self.rng.next_u64(),
                    local_now,
                )
            })
            .collect();
        Process {
            id,
            address,
            life,
            up: true,
            paused: false,
            draining: false,
            skew_ms,
            slow_ms: 0,
            membership,
            views,
            cores,
            view,
            backlog: Vec::new(),
        }
    }

    pub fn schedule(&mut self, delay_ms: u64, event: Event) {
        self.order += 1;
        let scheduled = Scheduled {
            at: self.now + delay_ms,
            order: self.order,
            event,
        };
        self.queue.push(Reverse(scheduled));
    }

    /// Carries out events until one of the driver's comes up; false when time is over.
    pub fn run_until(&mut self, end: u64) -> Option<u64> {
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at > end {
                break;
            }
            let Some(Reverse(next)) = self.queue.pop() else {
                break;
            };
            self.now = self.now.max(next.at);
            if let Event::Driver(number) = next.event {
                return Some(number);
            }
            self.carry_out(next.event);
        }
        self.now = self.now.max(end);
        None
    }

    pub fn time_of(&self, node: usize) -> UnixMs {
        UnixMs((self.now as i64 + self.nodes[node].skew_ms) as u64)
    }

    fn by_address(&self, address: &str) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| node.up && node.address == address)
    }

    fn passes(&mut self, from: usize, to: usize) -> Option<u64> {
        if self.cut.contains(&(from, to)) || self.rng.below(100) < self.network.loss_percent {
            return None;
        }
        let delay = 1 + self.rng.below(self.network.delay_ms_max as usize + 1) as u64;
        Some(delay + self.nodes[from].slow_ms)
    }

    fn carry_out(&mut self, event: Event) {
        let target = match &event {
            Event::Tick { node, life } | Event::End { node, life }
                if self.nodes[*node].life == *life =>
            {
                Some(*node)
            }
            Event::Frame { envelope, .. } => self.by_address(&envelope.to),
            Event::Answer { envelope, .. } | Event::Timeout { envelope } => {
                Some(envelope.from).filter(|&from| self.nodes[from].life == envelope.life)
            }
            Event::Gossip { to, .. } => self.by_address(to),
            Event::GossipReply { to, life, .. } => {
                Some(*to).filter(|&to| self.nodes[to].life == *life)
            }
            _ => None,
        };
        let Some(target) = target.filter(|&target| self.nodes[target].up) else {
            return;
        };
        if self.nodes[target].paused {
            self.nodes[target].backlog.push(event);
            return;
        }
        let now = self.time_of(target);
        match event {
            Event::Tick { node, life } => {
                let mut rng = Rng::new(self.rng.next_u64());
                self.nodes[node].membership.tick(self.now, &mut rng);
                for core in &mut self.nodes[node].cores {
                    core.tick(now);
                    core.tick_copies(now);
                    while core.local_mut().shard_mut().reap(now, REAP_STEPS) {}
                }
                self.schedule(TICK_MS, Event::Tick { node, life });
            }
            Event::Frame { envelope, bytes } => self.frame(target, envelope, &bytes, now),
            Event::Answer { envelope, bytes } => {
                let lane = Lane::ALL[usize::from(envelope.lane)];
                self.nodes[target].cores[envelope.core].answered(
                    envelope.peer,
                    lane,
                    envelope.sequence,
                    &bytes,
                    now,
                );
            }
            Event::Timeout { envelope } => {
                let lane = Lane::ALL[usize::from(envelope.lane)];
                self.nodes[target].cores[envelope.core].failed(
                    envelope.peer,
                    lane,
                    envelope.sequence,
                    now,
                );
            }
            Event::Gossip { from, bytes, .. } => {
                let message = membership::Message::decode(&bytes).unwrap();
                let mut rng = Rng::new(self.rng.next_u64());
                let reply = self.nodes[target]
                    .membership
                    .receive(self.now, &mut rng, message);
                if let Some(reply) = reply {
                    let mut bytes = Vec::new();
                    reply.encode(&mut bytes);
                    let life = self.nodes[from].life;
                    if let Some(delay) = self.passes(target, from) {
                        self.schedule(
                            delay,
                            Event::GossipReply {
                                from: target,
                                to: from,
                                life,
                                bytes,
                            },
                        );
                    }
                }
            }
            Event::GossipReply { bytes, .. } => {
                let message = membership::Message::decode(&bytes).unwrap();
                let mut rng = Rng::new(self.rng.next_u64());
                self.nodes[target]
                    .membership
                    .receive(self.now, &mut rng, message);
            }
            Event::End { node, .. } => self.nodes[node].up = false,
            Event::Driver(_) => {}
        }
        if self.nodes[target].up {
            self.follow_up(target);
        }
    }

    fn frame(&mut self, target: usize, envelope: Envelope, bytes: &[u8], now: UnixMs) {
        let node = &mut self.nodes[target];
        let cores = CoreCount::new(node.cores.len()).unwrap();
        let split = message::split(bytes, cores).unwrap();
        let mut answers = Vec::new();
        for (core, part) in &split.parts {
            let mut answer = Vec::new();
            node.cores[core.index()]
                .serve(part, now, &mut answer)
                .unwrap();
            answers.push((*core, answer));
        }
        let bytes = message::join(&split.order, &answers).unwrap();
        if let Some(delay) = self.passes(target, envelope.from) {
            self.schedule(delay, Event::Answer { envelope, bytes });
        }
    }

    /// Does what a node has left to do: frames, gossip, views, answers to clients.
    pub fn follow_up(&mut self, index: usize) {
        loop {
            let action = self.nodes[index].membership.poll_action();
            match action {
                None => break,
                Some(MemberAction::Send { to, message }) => {
                    let mut bytes = Vec::new();
                    message.encode(&mut bytes);
                    let receiver = self.by_address(&to);
                    if let Some(receiver) = receiver
                        && let Some(delay) = self.passes(index, receiver)
                    {
                        let to = to.to_string();
                        self.schedule(
                            delay,
                            Event::Gossip {
                                from: index,
                                to,
                                bytes,
                            },
                        );
                    }
                }
                Some(MemberAction::Changed) => {}
            }
        }
        self.renew_view(index);
        self.follow(index);
        self.end_if_drained(index);
        for core in 0..self.nodes[index].cores.len() {
            self.collect(index, core);
            let peers: Vec<(NodeIx, String)> = self.nodes[index]
                .view
                .nodes()
                .filter(|(ix, _)| *ix != self.nodes[index].view.me())
                .map(|(ix, node)| (ix, node.peer_address.to_string()))
                .collect();
            for (peer, to) in peers {
                for lane in Lane::ALL {
                    let polled = self.nodes[index].cores[core].poll(peer, lane);
                    let Some((sequence, frame)) = polled else {
                        continue;
                    };
                    let bytes = frame.to_vec();
                    let envelope = Envelope {
                        from: index,
                        life: self.nodes[index].life,
                        core,
                        to: to.clone(),
                        peer,
                        lane: lane as u8,
                        sequence,
                    };
                    self.transmit(envelope, bytes);
                }
            }
            self.collect(index, core);
        }
    }

    fn transmit(&mut self, envelope: Envelope, bytes: Vec<u8>) {
        let timeout = Event::Timeout {
            envelope: envelope.clone(),
        };
        self.schedule(PEER_TIMEOUT_MS, timeout);
        let Some(receiver) = self.by_address(&envelope.to) else {
            return;
        };
        if let Some(delay) = self.passes(envelope.from, receiver) {
            if self.rng.below(100) < self.network.duplicate_percent {
                let late = delay + self.rng.below(400) as u64;
                let (envelope, bytes) = (envelope.clone(), bytes.clone());
                self.schedule(late, Event::Frame { envelope, bytes });
            }
            self.schedule(delay, Event::Frame { envelope, bytes });
        }
    }

    /// Has a node say goodbye once it has handed over, and end a little later.
    fn end_if_drained(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let unsent: usize = node.cores.iter().map(Coordinator::unsent).sum();
        let follows = node.view.version() == node.membership.version();
        if !node.draining || !follows || unsent > 0 || !node.view.can_spare_me() {
            return;
        }
        node.draining = false;
        node.membership.leave(self.now);
        let life = node.life;
        self.schedule(100, Event::End { node: index, life });
    }

    /// Tells a node to leave.
    pub fn drain(&mut self, index: usize) {
        let mut rng = Rng::new(self.rng.next_u64());
        let node = &mut self.nodes[index];
        node.draining = true;
        node.membership.drain(self.now, &mut rng);
        self.follow_up(index);
    }

    /// Tells a node to have the cluster forget everything.
    pub fn clear(&mut self, index: usize) {
        let now = self.time_of(index);
        let node = &mut self.nodes[index];
        let stamps = node
            .cores
            .iter_mut()
            .map(|core| core.local_mut().stamp(now));
        if let Some(version) = stamps.max() {
            node.membership.clear(self.now, version);
        }
        self.follow_up(index);
    }

    /// Ends a node for good, as a machine that breaks.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].up = false;
    }

    /// Whether a node takes writes of clients.
    pub fn takes_writes(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        node.up && !node.paused && !node.membership.draining()
    }

    /// Tells membership how far the cores have come, as the control thread does.
    fn follow(&mut self, index: usize) {
        let mut rng = Rng::new(self.rng.next_u64());
        let node = &mut self.nodes[index];
        let lacking = |core: &Coordinator| !core.view().joined() || core.sync().missing() > 0;
        let holding = !node.cores.iter().any(lacking);
        let version = node.view.version();
        node.membership.follow(self.now, &mut rng, version, holding);
    }

    fn renew_view(&mut self, index: usize) {
        let now = self.time_of(index);
        let node = &mut self.nodes[index];
        if node.view.version() == node.membership.version()
            && node.view.joined() == node.membership.joined()
        {
            return;
        }
        let view =
            Arc::new(PLACEMENTS.with_borrow_mut(|known| node.views.of(&node.membership, known)));
        node.view = Arc::clone(&view);
        for core in &mut node.cores {
            core.set_view(Arc::clone(&view), now);
        }
    }

    /// Takes the outcomes of operations that are finished.
    fn collect(&mut self, index: usize, core: usize) {
        let mut finished = Vec::new();
        self.nodes[index].cores[core].take_finished(&mut finished);
        for (batch, home) in finished {
            self.done(home.reply, batch);
        }
    }

    fn done(&mut self, request: usize, batch: Box<hypercache::operations::Batch>) {
        let Some((mut exchange, ticket)) = self.exchanges.remove(&request) else {
            return;
        };
        exchange.put_back(batch);
        let (node, life, entered) = self.entered.remove(&request).unwrap();
        if self.nodes[node].life == life {
            self.nodes[node].cores[entered].keep_copies(&mut exchange);
        }
        let (_, outcome) = exchange.outcome(ticket).unwrap();
        let done = match outcome {
            Outcome::Found(found) => Done::Found(found.value.bytes().to_vec(), found.version),
            Outcome::Missing => Done::Missing,
            Outcome::Stored(version) | Outcome::Deleted(version) => Done::Written(Some(version)),
            _ => Done::Failed,
        };
        self.requests[request].result = Some(done);
        self.requests[request].ended = self.now;
    }

    /// What a core answers a read of another core's key from a copy, if it has one. Notes when
    /// the key's own core would answer otherwise.
    fn read_copy(
        &mut self,
        node: usize,
        entered: usize,
        key: usize,
        consistency: Consistency,
    ) -> Option<Done> {
        let now = self.time_of(node);
        let (bytes, cores) = (&self.keys[key], &mut self.nodes[node].cores);
        let hash = KeyHash::of(bytes);
        let core = hash.partition().core(CoreCount::new(cores.len())?);
        let copied = cores[entered].get_copy(hash, bytes, consistency, now);
        let copied = copied.and_then(finding)?;
        let owned = cores[core.index()].get_here(hash, bytes, consistency, now);
        let owned = owned.and_then(finding);
        self.copies_read += 1;
        if owned.as_ref() != Some(&copied) && self.stale_copy.is_none() {
            let wrong = format!("a copy says {copied:?}, its owner {owned:?}");
            self.stale_copy = Some(wrong);
        }
        Some(copied)
    }

    /// Reads every copy there is. Clients, who come to a copy only if they read a key twice at
    /// one node while nobody writes it, would find few.
    pub fn read_all_copies(&mut self) {
        for node in 0..self.nodes.len() {
            if !self.nodes[node].up || self.nodes[node].paused {
                continue;
            }
            for core in 0..self.nodes[node].cores.len() {
                for key in 0..self.keys.len() {
                    self.read_copy(node, core, key, Consistency::One);
                }
            }
        }
    }

    /// Starts an operation at a node, as its client listener would.
    pub fn request(
        &mut self,
        node: usize,
        key: usize,
        kind: Kind,
        consistency: Consistency,
    ) -> usize {
        self.request_expiring(node, key, kind, consistency, None)
    }

    /// The same, for a value that lives so long if one is put.
    pub fn request_expiring(
        &mut self,
        node: usize,
        key: usize,
        kind: Kind,
        consistency: Consistency,
        ttl_ms: Option<u64>,
    ) -> usize {
        let now = self.time_of(node);
        let expires_at = ttl_ms.map(|ttl_ms| UnixMs(now.0 + ttl_ms));
        let number = self.requests.len();
        self.requests.push(Request {
            key,
            started: self.now,
            ended: u64::MAX,
            consistency,
            kind: kind.clone(),
            expiry: expires_at.map(|at| Expiry {
                first: at.0 - CLOCK_OFF_MS_MAX,
                last: at.0 + CLOCK_OFF_MS_MAX,
            }),
            result: None,
        });
        let bytes = self.keys[key].clone();
        let hash = KeyHash::of(&bytes);
        let cores = CoreCount::new(self.nodes[node].cores.len()).unwrap();
        let core = hash.partition().core(cores);
        // The core that the client is connected to.
        let entered = self.rng.below(cores.get());
        let enters_elsewhere = kind == Kind::Get && entered != core.index();
        if enters_elsewhere && let Some(copied) = self.read_copy(node, entered, key, consistency) {
            self.requests[number].result = Some(copied);
            self.requests[number].ended = self.now;
            return number;
        }
        let mut exchange = Exchange::new(cores);
        let action = match &kind {
            Kind::Get => Action::Get,
            Kind::Put(value) => Action::Put {
                value: ValueIn::Bytes(value),
                expires_at,
            },
            Kind::Delete => Action::Delete,
        };
        let operation = Operation {
            hash,
            key: &bytes,
            action,
            consistency,
        };
        let ticket = exchange.add(core, operation);
        if enters_elsewhere {
            // Keys are few and read seldom: every one of them counts as hot.
            exchange.want_copy(ticket);
        }
        let batch = exchange.take(0).unwrap();
        self.exchanges.insert(number, (exchange, ticket));
        self.entered
            .insert(number, (node, self.nodes[node].life, entered));
        let home = Home {
            core,
            reply: number,
            served_by: core,
        };
        if let Some(batch) = self.nodes[node].cores[core.index()].run(batch, home, now) {
            self.done(number, batch);
        }
        self.follow_up(node);
        number
    }

    /// Kills a node; it starts again at once, empty, at another address.
    pub fn restart_empty(&mut self, index: usize) {
        let life = self.nodes[index].life + 1;
        let cores = self.nodes[index].cores.len();
        // What clients had under way there is never answered.
        let process = self.process(index, life, cores);
        self.nodes[index] = process;
        self.schedule(0, Event::Tick { node: index, life });
    }

    pub fn pause(&mut self, index: usize) {
        self.nodes[index].paused = true;
    }

    pub fn resume(&mut self, index: usize) {
        self.nodes[index].paused = false;
        for event in std::mem::take(&mut self.nodes[index].backlog) {
            self.schedule(0, event);
        }
    }

    /// Nodes that own a key, by the view of the first that is up.
    pub fn owners(&self, key: usize) -> Vec<usize> {
        let partition = KeyHash::of(&self.keys[key]).partition();
        let first = self.up().next().expect("a node is up");
        let ids = self.nodes[first].view.owner_ids(partition);
        ids.filter_map(|id| self.nodes.iter().position(|node| node.id == id))
            .collect()
    }

    /// What a node holds of a key.
    pub fn resident(&self, node: usize, key: usize) -> Option<hypercache::store::Resident> {
        let hash = KeyHash::of(&self.keys[key]);
        let cores = CoreCount::new(self.nodes[node].cores.len()).unwrap();
        let core = hash.partition().core(cores);
        self.nodes[node].cores[core.index()]
            .local()
            .resident(hash, &self.keys[key])
    }

    pub fn value(&self, node: usize, key: usize) -> Option<Vec<u8>> {
        let hash = KeyHash::of(&self.keys[key]);
        let cores = CoreCount::new(self.nodes[node].cores.len()).unwrap();
        let core = hash.partition().core(cores);
        let shard = self.nodes[node].cores[core.index()].local().shard();
        let item = shard.peek(hash, &self.keys[key], self.time_of(node))?;
        Some(item.value.bytes().to_vec())
    }

    pub fn settings(&self) -> &WorldSettings {
        &self.settings
    }

    /// Whether nodes may be too small for what is written.
    pub fn evicts(&self) -> bool {
        self.settings.items_max > 0
    }

    /// How many items the nodes that are up have evicted.
    pub fn evicted(&self) -> u64 {
        let cores = self.up().flat_map(|node| &self.nodes[node].cores);
        let evicted = cores.map(|core| core.local().shard().stats().evicted_items);
        evicted.sum()
    }

    pub fn up(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|&index| self.nodes[index].up)
    }

    /// Whether every node that is up sees just those alive, and no change of owners is
    /// under way.
    pub fn converged(&self) -> bool {
        let first = self.up().next().map(|first| self.nodes[first].view.terms());
        self.up().all(|index| {
            let view = &self.nodes[index].view;
            let alive = view.nodes().filter(|(_, peer)| peer.state == State::Alive);
            alive.count() == self.up().count()
                && view.joined()
                && self.nodes[index].membership.placed()
                && Some(view.terms()) == first
        })
    }

    /// Where every node stands, for whoever looks into a broken seed.
    pub fn describe(&self) -> String {
        let describe = |node: &Process| {
            let membership = &node.membership;
            let rosters = (membership.reading(), membership.also());
            let missing = node.cores.iter().map(|core| core.sync().missing());
            let members = membership.members().map(|member| {
                let Member {
                    identity,
                    state,
                    standing,
                    ..
                } = member;
                format!("\n    {} {state:?} {standing:?}", identity.id)
            });
            format!(
                "{} up {} life {} missing {} {rosters:?}{}",
                node.id,
                node.up,
                node.life,
                missing.sum::<usize>(),
                members.collect::<String>()
            )
        };
        let nodes: Vec<String> = self.nodes.iter().map(describe).collect();
        nodes.join("\n")
    }

    /// Whether no node that is up has a change of owners under way.
    pub fn settled(&self) -> bool {
        let settled = |index: usize| {
            let node = &self.nodes[index];
            node.view.joined() && node.membership.placed()
        };
        self.up().all(settled)
    }

    /// How many nodes do not have the data of all their partitions.
    pub fn lacking(&self) -> usize {
        let has_all = |index: &usize| {
            let node = &self.nodes[*index];
            node.view.joined() && node.cores.iter().all(|core| core.sync().missing() == 0)
        };
        self.up().filter(|index| !has_all(index)).count()
    }

    /// Nodes that have left without anybody having heard their goodbye: changes of owners wait
    /// for them until they are back, or the grace is over.
    pub fn left_unheard(&self) -> Vec<usize> {
        let is_unheard = |index: &usize| {
            let id = &*self.nodes[*index].id;
            let members = self.up().flat_map(|up| self.nodes[up].membership.members());
            let mut known = members
                .filter(|member| *member.identity.id == *id)
                .peekable();
            known.peek().is_some() && known.all(|member| !member.standing.gone)
        };
        let down = (0..self.nodes.len()).filter(|&index| !self.nodes[index].up);
        down.filter(is_unheard).collect()
    }

    /// How many members of any roster, old or to come, are down: owners change only where more
    /// than half of a roster is there.
    pub fn broken(&self) -> usize {
        let is_placed = |node: &Process| {
            self.up()
                .any(|up| self.nodes[up].membership.may_own(&node.id))
        };
        let nodes = self.nodes.iter();
        nodes.filter(|node| !node.up && is_placed(node)).count()
    }

    /// How many owners of a key may lose its data with a majority of them left.
    pub fn survivable(&self) -> usize {
        let rosters = self.up().flat_map(|index| {
            let membership = &self.nodes[index].membership;
            std::iter::once(membership.reading()).chain(membership.also())
        });
        let smallest = rosters.map(|roster| roster.members().len()).min();
        (smallest.unwrap_or(0).min(self.settings.replication)).saturating_sub(1) / 2
    }

    /// How many nodes that keys are read from are away, about to leave, or lack data.
    pub fn weakness(&self) -> usize {
        let lacks = |core: &Coordinator| {
            let view = core.view();
            let lacks = |partition| view.owns(partition) && !core.sync().holds(partition);
            let own =
                |partition: &PartitionId| partition.core(core.config().cores) == core.config().core;
            !view.joined() || core.sync().missing() > 0 && PartitionId::all().filter(own).any(lacks)
        };
        let is_strong = |node: &Process| {
            node.up && !node.membership.draining() && !node.cores.iter().any(lacks)
        };
        let is_read = |node: &Process| {
            self.up()
                .any(|reader| self.nodes[reader].membership.reading().contains(&node.id))
        };
        let nodes = self.nodes.iter();
        nodes
            .filter(|node| is_read(node) && !is_strong(node))
            .count()
    }
}
