//! Who is in the cluster: SWIM (Das, Gupta, Motivala, "SWIM: Scalable Weakly-consistent
//! Infection-style Process Group Membership Protocol", 2002), without I/O.
//!
//! ```text
//!             probe and its relays unanswered,      silent for 6 heartbeats
//!             silent for 3 heartbeats
//!   Alive ───────────────────────────► Suspect ─────────────────────────► Dead
//!     ▲ ▲                                 │                                 │ grace over, and
//!     │ └──── refuted: greater ───────────┘                                 │ a majority alive
//!     └────── incarnation ◄─────────────────────────────────────────────────┤
//!                                    leave() ───────────────────────────► Left
//! ```
//!
//! Each heartbeat a few members are probed, in shuffled turns (section 4.3); one that
//! does not answer is probed through relays. What changed travels with every message
//! (4.1) and, whole, with a periodic exchange with one member. A member that learns it
//! is suspected defends itself with a greater incarnation (4.2); a restarted one begins
//! with a greater one (its start time) and is taken back at once, wherever it is now.
//!
//! A dead member keeps its place among the owners for a grace, and longer while no
//! majority of those placed is alive here: a minority never removes anyone.
//!
//! Bounds: [`MEMBERS_MAX`] members, [`UPDATES_MAX`] updates in a message. Whoever lies
//! can disturb membership; the shell lets in only who shows the peer token.

mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use wire::Malformed;

use super::rng::Rng;
use crate::mutation::{Mutation, planted};

/// The most members; more are not taken in.
pub const MEMBERS_MAX: usize = 1024;
/// The most updates in one message.
pub const UPDATES_MAX: usize = 1024;
/// How many members are probed each heartbeat.
const PROBES_MAX: usize = 5;
/// Updates that travel with an ordinary message.
const PIGGYBACK_MAX: usize = 64;
/// How long one that left is remembered, so that old gossip does not bring it back.
const LEFT_MEMORY_MS: u64 = 600_000;
/// Every how many heartbeats the dead and unknown seeds are tried.
const RETRY_HEARTBEATS: u64 = 5;

/// What does not change while a node runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Between two probes of one member.
    pub heartbeat_ms: u64,
    /// Between two whole exchanges.
    pub gossip_interval_ms: u64,
    /// Relays of an indirect probe.
    pub indirect_probes: usize,
    /// How long a dead member keeps its place.
    pub dead_grace_ms: u64,
    /// How long seeds are looked for before this node is content alone.
    pub join_timeout_ms: u64,
}

/// A node, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub id: Arc<str>,
    /// Its peer listener, by name or address.
    pub peer_address: Arc<str>,
    /// Its client listener.
    pub client_address: Arc<str>,
}

/// What is believed of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Alive,
    /// It does not answer.
    Suspect,
    /// It has not answered for long.
    Dead,
    /// It went, or was removed.
    Left,
}

impl State {
    fn rank(self) -> u8 {
        match self {
            Self::Alive => 0,
            Self::Suspect => 1,
            Self::Dead => 2,
            Self::Left => 3,
        }
    }
}

/// What one member says of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Who.
    pub identity: Identity,
    /// What is believed of it.
    pub state: State,
    /// In which of its incarnations.
    pub incarnation: u64,
}

/// What a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Are you there?
    Ping,
    /// Yes.
    Ack,
    /// Is that member there? I cannot reach it.
    PingRequest {
        /// Its id.
        target: Arc<str>,
    },
    /// It is: it answered me.
    IndirectAck {
        /// Its id.
        target: Arc<str>,
    },
    /// All I know; tell me all you know.
    Gossip,
    /// All I know.
    GossipReply,
    /// I am going.
    Leave,
}

/// A message between members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who sends it.
    pub from: Identity,
    /// Its incarnation.
    pub incarnation: u64,
    /// What it is for.
    pub kind: Kind,
    /// What else it says.
    pub updates: Vec<Update>,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this; a reply goes to [`Membership::receive`], a loss is no matter.
    Send {
        /// A peer listener.
        to: Arc<str>,
        /// What to send.
        message: Message,
    },
    /// Members or states changed.
    Changed,
}

/// Where to look for the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The node there, where it was named.
    pub id: Option<Arc<str>>,
    /// Its peer listener.
    pub address: Arc<str>,
}

/// What is known of a member.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who and where it is.
    pub identity: Identity,
    /// What is believed of it.
    pub state: State,
    /// In which of its incarnations.
    pub incarnation: u64,
    /// Whether it may own partitions.
    pub placed: bool,
    /// Since when it is in this state.
    pub since_ms: u64,
    heard_ms: u64,
}

/// What was counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the fields of /dist/metrics")]
pub struct Counters {
    pub heartbeat_success: u64,
    pub heartbeat_failure: u64,
    pub indirect_probe_success: u64,
    pub indirect_probe_failure: u64,
    pub indirect_probe_refuted: u64,
    pub nodes_suspect: u64,
    pub nodes_dead: u64,
    pub nodes_removed: u64,
    pub id_conflicts: u64,
    pub members_refused: u64,
}

#[derive(Debug)]
struct Probe {
    relays_at_ms: u64,
    ends_at_ms: u64,
    relayed: bool,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Membership {
    config: Config,
    me: Identity,
    incarnation: u64,
    seeds: Vec<Seed>,
    members: BTreeMap<Arc<str>, Member>,
    probes: BTreeMap<Arc<str>, Probe>,
    /// Whom a relayed probe is for: target, then who asked.
    relayed: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    turns: Vec<Arc<str>>,
    /// What to pass on, and how often it was.
    rumours: BTreeMap<Arc<str>, usize>,
    actions: VecDeque<Action>,
    started_ms: u64,
    next_heartbeat_ms: u64,
    next_gossip_ms: u64,
    heartbeats: u64,
    joined: bool,
    leaving: bool,
    version: u64,
    counters: Counters,
}

impl Membership {
    /// A node that knows no other. `incarnation` is greater at every start.
    pub fn new(
        config: Config,
        me: Identity,
        incarnation: u64,
        seeds: Vec<Seed>,
        now_ms: u64,
    ) -> Self {
        let seeds: Vec<Seed> = seeds
            .into_iter()
            .filter(|seed| seed.id.as_deref() != Some(&*me.id) && seed.address != me.peer_address)
            .collect();
        let own = Member {
            identity: me.clone(),
            state: State::Alive,
            incarnation,
            placed: true,
            since_ms: now_ms,
            heard_ms: now_ms,
        };
        Self {
            joined: seeds.is_empty(),
            members: BTreeMap::from([(Arc::clone(&me.id), own)]),
            config,
            me,
            incarnation,
            seeds,
            probes: BTreeMap::new(),
            relayed: BTreeMap::new(),
            turns: Vec::new(),
            rumours: BTreeMap::new(),
            actions: VecDeque::new(),
            started_ms: now_ms,
            next_heartbeat_ms: now_ms,
            next_gossip_ms: now_ms + 1,
            heartbeats: 0,
            leaving: false,
            version: 1,
            counters: Counters::default(),
        }
    }

    /// This node.
    pub fn me(&self) -> &Identity {
        &self.me
    }

    /// Every member that is known, this one too, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Whether this node has found its cluster, or founded one.
    pub fn joined(&self) -> bool {
        self.joined
    }

    /// Grows with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Does what is due. Call it several times per heartbeat.
    pub fn tick(&mut self, now_ms: u64, rng: &mut Rng) {
        if self.leaving {
            return;
        }
        if !self.joined && now_ms.saturating_sub(self.started_ms) >= self.config.join_timeout_ms {
            self.joined = true;
            self.changed();
        }
        self.follow_probes(now_ms, rng);
        self.age(now_ms);
        if now_ms >= self.next_heartbeat_ms {
            self.next_heartbeat_ms = now_ms + self.config.heartbeat_ms;
            self.heartbeats += 1;
            self.look_for_seeds(rng);
            self.probe(now_ms, rng);
        }
        if now_ms >= self.next_gossip_ms {
            self.next_gossip_ms = now_ms + self.config.gossip_interval_ms;
            let others = self.others(|member| member.state == State::Alive);
            if !others.is_empty() {
                let to = Arc::clone(&others[rng.below(others.len())].peer_address);
                self.send_all(to, Kind::Gossip);
            }
        }
    }

    /// Takes a message in; what it returns is the reply.
    pub fn receive(&mut self, now_ms: u64, rng: &mut Rng, message: Message) -> Option<Message> {
        let Message {
            from,
            incarnation,
            kind,
            updates,
        } = message;
        if from.id == self.me.id {
            // Ourselves through a seed's other name, or another node with our id.
            if from.peer_address != self.me.peer_address {
                self.counters.id_conflicts += 1;
                self.defend(incarnation);
            }
            return None;
        }
        let leaves = kind == Kind::Leave;
        let state = if leaves { State::Left } else { State::Alive };
        self.learn(
            Update {
                identity: from.clone(),
                state,
                incarnation,
            },
            now_ms,
        );
        self.heard(&from.id, incarnation, now_ms);
        for update in updates {
            self.learn(update, now_ms);
        }
        if !self.joined {
            self.joined = true;
            self.changed();
        }
        if self.leaving {
            return None;
        }
        match kind {
            Kind::Ping => Some(self.message(Kind::Ack, Some(&from.id))),
            Kind::Gossip => Some(self.whole(Kind::GossipReply)),
            Kind::Ack => {
                if self.probes.remove(&from.id).is_some() {
                    self.counters.heartbeat_success += 1;
                }
                for asker in self.relayed.remove(&from.id).unwrap_or_default() {
                    let kind = Kind::IndirectAck {
                        target: Arc::clone(&from.id),
                    };
                    self.send(&asker, kind);
                }
                None
            }
            Kind::PingRequest { target } => {
                let askers = self.relayed.entry(Arc::clone(&target)).or_default();
                if !askers.contains(&from.id) && askers.len() < MEMBERS_MAX {
                    askers.push(from.id);
                }
                self.send(&target, Kind::Ping);
                None
            }
            Kind::IndirectAck { target } => {
                if self.probes.remove(&target).is_some() {
                    self.counters.heartbeat_success += 1;
                    self.counters.indirect_probe_success += 1;
                }
                let suspect = self
                    .members
                    .get(&target)
                    .is_some_and(|member| member.state == State::Suspect);
                if suspect {
                    self.counters.indirect_probe_refuted += 1;
                }
                if let Some(member) = self.members.get_mut(&target) {
                    member.heard_ms = now_ms;
                }
                let _ = rng;
                None
            }
            Kind::GossipReply | Kind::Leave => None,
        }
    }

    /// Tells everyone that this node goes. It does not defend itself any more.
    pub fn leave(&mut self, now_ms: u64) {
        self.leaving = true;
        self.incarnation += 1;
        if let Some(own) = self.members.get_mut(&self.me.id) {
            own.incarnation = self.incarnation;
            own.since_ms = now_ms;
        }
        let others: Vec<_> = self
            .others(|member| matches!(member.state, State::Alive | State::Suspect))
            .iter()
            .map(|identity| Arc::clone(&identity.id))
            .collect();
        for id in others {
            self.send(&id, Kind::Leave);
        }
    }

    fn others(&self, wanted: impl Fn(&Member) -> bool) -> Vec<&Identity> {
        self.members
            .values()
            .filter(|member| member.identity.id != self.me.id && wanted(member))
            .map(|member| &member.identity)
            .collect()
    }

    fn changed(&mut self) {
        self.version += 1;
        if self.actions.back() != Some(&Action::Changed) {
            self.actions.push_back(Action::Changed);
        }
    }

    fn message(&mut self, kind: Kind, to: Option<&Arc<str>>) -> Message {
        let updates = self.piggyback(to);
        Message {
            from: self.me.clone(),
            incarnation: self.incarnation,
            kind,
            updates,
        }
    }

    fn whole(&self, kind: Kind) -> Message {
        let updates = self
            .members
            .values()
            .take(UPDATES_MAX)
            .map(update_of)
            .collect();
        Message {
            from: self.me.clone(),
            incarnation: self.incarnation,
            kind,
            updates,
        }
    }

    /// The news that were passed on least, and what concerns the receiver itself.
    fn piggyback(&mut self, to: Option<&Arc<str>>) -> Vec<Update> {
        let limit = 3 * (usize::BITS - self.members.len().leading_zeros()) as usize;
        let mut news: Vec<(usize, Arc<str>)> = self
            .rumours
            .iter()
            .map(|(id, told)| (*told, Arc::clone(id)))
            .collect();
        news.sort_unstable();
        news.truncate(PIGGYBACK_MAX);
        for (told, id) in &news {
            if told + 1 >= limit {
                self.rumours.remove(id);
            } else {
                self.rumours.insert(Arc::clone(id), told + 1);
            }
        }
        let mut ids: Vec<Arc<str>> = news.into_iter().map(|(_, id)| id).collect();
        let accused = to.filter(|to| {
            let member = self.members.get(*to);
            member.is_some_and(|member| member.state != State::Alive) && !ids.contains(to)
        });
        ids.extend(accused.cloned());
        ids.iter()
            .filter_map(|id| self.members.get(id).map(update_of))
            .collect()
    }

    fn send(&mut self, to: &Arc<str>, kind: Kind) {
        let Some(member) = self.members.get(to) else {
            return;
        };
        let address = Arc::clone(&member.identity.peer_address);
        let message = self.message(kind, Some(to));
        let to = address;
        self.actions.push_back(Action::Send { to, message });
    }

    fn send_all(&mut self, to: Arc<str>, kind: Kind) {
        let message = self.whole(kind);
        self.actions.push_back(Action::Send { to, message });
    }

    fn look_for_seeds(&mut self, rng: &mut Rng) {
        let alone = self.members.len() == 1;
        if !alone && self.joined && rng.below(2 * RETRY_HEARTBEATS as usize) != 0 {
            return;
        }
        let unknown: Vec<Arc<str>> = self
            .seeds
            .iter()
            .filter(|seed| {
                !self.members.values().any(|member| {
                    member.identity.peer_address == seed.address
                        || Some(&member.identity.id) == seed.id.as_ref()
                })
            })
            .map(|seed| Arc::clone(&seed.address))
            .collect();
        for address in unknown {
            self.send_all(address, Kind::Gossip);
        }
    }

    fn probe(&mut self, now_ms: u64, rng: &mut Rng) {
        for _ in 0..PROBES_MAX {
            if self.turns.is_empty() {
                let mut turns: Vec<_> = self
                    .others(|member| matches!(member.state, State::Alive | State::Suspect))
                    .iter()
                    .map(|identity| Arc::clone(&identity.id))
                    .collect();
                rng.shuffle(&mut turns);
                self.turns = turns;
            }
            let Some(id) = self.turns.pop() else {
                break;
            };
            if self.probes.contains_key(&id) || !self.members.contains_key(&id) {
                continue;
            }
            let probe = Probe {
                relays_at_ms: now_ms + self.config.heartbeat_ms / 2,
                ends_at_ms: now_ms + self.config.heartbeat_ms,
                relayed: false,
            };
            self.probes.insert(Arc::clone(&id), probe);
            self.send(&id, Kind::Ping);
            if self.turns.is_empty() {
                break;
            }
        }
        if self.heartbeats.is_multiple_of(RETRY_HEARTBEATS) {
            let dead = self.others(|member| member.state == State::Dead);
            let dead: Vec<_> = dead
                .iter()
                .map(|identity| Arc::clone(&identity.peer_address))
                .collect();
            for address in dead {
                self.send_all(address, Kind::Gossip);
            }
        }
    }

    fn follow_probes(&mut self, now_ms: u64, rng: &mut Rng) {
        let ids: Vec<Arc<str>> = self.probes.keys().cloned().collect();
        for id in ids {
            let Some(probe) = self.probes.get_mut(&id) else {
                continue;
            };
            if now_ms >= probe.ends_at_ms {
                if probe.relayed {
                    self.counters.indirect_probe_failure += 1;
                }
                self.counters.heartbeat_failure += 1;
                self.probes.remove(&id);
                self.missed(&id, now_ms);
            } else if now_ms >= probe.relays_at_ms && !probe.relayed {
                probe.relayed = true;
                let mut relays: Vec<_> = self
                    .others(|member| member.state == State::Alive && member.identity.id != id)
                    .iter()
                    .map(|identity| Arc::clone(&identity.id))
                    .collect();
                rng.shuffle(&mut relays);
                relays.truncate(self.config.indirect_probes);
                if let Some(probe) = self.probes.get_mut(&id) {
                    probe.relayed = !relays.is_empty();
                    probe.relays_at_ms = u64::MAX;
                }
                for relay in relays {
                    let target = Arc::clone(&id);
                    self.send(&relay, Kind::PingRequest { target });
                }
            }
        }
    }

    /// A whole round of probing a member failed.
    fn missed(&mut self, id: &Arc<str>, now_ms: u64) {
        let silence = 3 * self.config.heartbeat_ms;
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        if member.state == State::Alive && now_ms.saturating_sub(member.heard_ms) >= silence {
            member.state = State::Suspect;
            member.since_ms = now_ms;
            self.counters.nodes_suspect += 1;
            self.rumours.insert(Arc::clone(id), 0);
            self.changed();
        }
    }

    /// Moves suspects and the dead on as their time passes.
    fn age(&mut self, now_ms: u64) {
        let heartbeat = self.config.heartbeat_ms;
        let placed = self.members.values().filter(|member| member.placed).count();
        let alive = self
            .members
            .values()
            .filter(|member| member.placed && member.state == State::Alive)
            .count();
        let mut news = Vec::new();
        for (id, member) in &mut self.members {
            let since = now_ms.saturating_sub(member.since_ms);
            let silent = now_ms.saturating_sub(member.heard_ms);
            match member.state {
                State::Suspect if since >= 3 * heartbeat && silent >= 6 * heartbeat => {
                    member.state = State::Dead;
                    self.counters.nodes_dead += 1;
                }
                State::Dead
                    if member.placed
                        && since >= self.config.dead_grace_ms
                        && 2 * alive > placed =>
                {
                    member.state = State::Left;
                    member.placed = false;
                    self.counters.nodes_removed += 1;
                }
                _ => continue,
            }
            member.since_ms = now_ms;
            news.push(Arc::clone(id));
        }
        let before = self.members.len();
        self.members.retain(|_, member| {
            member.state != State::Left || now_ms.saturating_sub(member.since_ms) < LEFT_MEMORY_MS
        });
        if !news.is_empty() || self.members.len() != before {
            for id in news {
                self.rumours.insert(id, 0);
            }
            self.changed();
        }
    }

    fn heard(&mut self, id: &Arc<str>, incarnation: u64, now_ms: u64) {
        if let Some(member) = self.members.get_mut(id)
            && incarnation >= member.incarnation
        {
            member.heard_ms = now_ms;
        }
    }

    /// Takes in what is said of a member, unless more is known (SWIM, section 4.2).
    fn learn(&mut self, update: Update, now_ms: u64) {
        let id = Arc::clone(&update.identity.id);
        if id == self.me.id {
            let accused = update.state != State::Alive;
            let imposter = update.identity.peer_address != self.me.peer_address;
            if update.incarnation >= self.incarnation && (accused || imposter) {
                self.counters.id_conflicts += u64::from(imposter && !accused);
                self.defend(update.incarnation);
            }
            return;
        }
        let news = match self.members.get_mut(&id) {
            None => {
                if update.state == State::Left {
                    return;
                }
                if self.members.len() >= MEMBERS_MAX {
                    self.counters.members_refused += 1;
                    return;
                }
                let member = Member {
                    identity: update.identity,
                    state: update.state,
                    incarnation: update.incarnation,
                    placed: true,
                    since_ms: now_ms,
                    heard_ms: now_ms,
                };
                self.members.insert(Arc::clone(&id), member);
                true
            }
            Some(member) => {
                let newer = update.incarnation > member.incarnation
                    || update.incarnation == member.incarnation
                        && update.state.rank() > member.state.rank();
                if newer {
                    match update.state {
                        State::Alive => member.heard_ms = now_ms,
                        State::Suspect if member.state != State::Suspect => {
                            self.counters.nodes_suspect += 1;
                        }
                        State::Dead if member.state != State::Dead => {
                            self.counters.nodes_dead += 1;
                        }
                        _ => {}
                    }
                    if update.incarnation > member.incarnation {
                        member.identity = update.identity;
                    }
                    member.state = update.state;
                    member.incarnation = update.incarnation;
                    member.placed = match update.state {
                        State::Left => false,
                        State::Alive => true,
                        _ => member.placed,
                    };
                    member.since_ms = now_ms;
                }
                newer
            }
        };
        if news {
            self.rumours.insert(id, 0);
            self.changed();
        }
    }

    /// Somebody says of this node, in this incarnation, what is not so.
    fn defend(&mut self, incarnation: u64) {
        if self.leaving || planted(Mutation::ForgetRefutation) {
            return;
        }
        self.incarnation = self.incarnation.max(incarnation) + 1;
        if let Some(own) = self.members.get_mut(&self.me.id) {
            own.incarnation = self.incarnation;
        }
        self.rumours.insert(Arc::clone(&self.me.id), 0);
        self.changed();
    }
}

fn update_of(member: &Member) -> Update {
    Update {
        identity: member.identity.clone(),
        state: member.state,
        incarnation: member.incarnation,
    }
}

#[cfg(test)]
mod tests;
