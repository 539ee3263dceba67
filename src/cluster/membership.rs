//! Who is in the cluster, and who of them is alive: SWIM (Das, Gupta, Motivala, "SWIM:
//! Scalable Weakly-consistent Infection-style Process Group Membership Protocol", 2002)
//! as a pure state machine. The shell brings time, chance and messages; the machine says
//! what to send. It reads no clock, opens no socket and takes no lock.
//!
//! ```text
//!              a probe round failed and        still nothing,
//!              3 heartbeats of silence         6 heartbeats in all
//!     ┌─────────┐ ───────────────► ┌─────────┐ ───────────► ┌──────┐
//!     │  Alive  │                  │ Suspect │              │ Dead │
//!     └─────────┘ ◄─────────────── └─────────┘              └──────┘
//!       │  ▲  ▲    refuted: greater incarnation               │  │ grace over, and a
//!       │  │  └───────────────────────────────────────────────┘  │ majority is alive
//!       │  │ restarted: greater incarnation                      ▼
//!       │  └───────────────────────────────────────────────── ┌──────┐  10 min
//!       └───────────────────────────────────────────────────► │ Left │ ───────► forgotten
//!                       it said goodbye for good              └──────┘
//! ```
//!
//! One that says goodbye and may be back is Dead at once, by its own word.
//!
//! Who of the members owns what, and how that changes, is [`placing`]'s.
//!
//! **Invariants.**
//! - What is known of a member only grows in the order of (incarnation, state), with
//!   Alive < Suspect < Dead < Left. That order is total and holds SWIM's precedence rules
//!   (section 4.2), so all who have heard the same updates, in whatever order, agree.
//! - Only a member raises its own incarnation. It begins with the start time of the
//!   process, so a restart outranks whatever was said of the life before.
//! - A member that is Left owns nothing by any roster to come. Only its own goodbye or a node
//!   that sees a strict majority of its roster alive makes it Left: of two halves of a
//!   partition at most one removes the other.
//! - Equal calls with an equal seed give equal actions, byte for byte.
//!
//! **Founding.** A node knows its cluster, [`Membership::joined`], when one that knows it has
//! told it of all members; when all its seeds are there; or when they were waited for long
//! enough and most of those named by id, this node counted, are there. While one is there that
//! knows its cluster it waits to be told. So of the halves of
//! a partition at most one founds a cluster anew, and a restarted node never takes the first
//! few it meets for all there are. Where seeds have no ids nothing is known of how many
//! there should be: such a node founds a cluster of its own after the wait, and the ones
//! founded apart merge when they meet.
//!
//! **A slow peer.** Each heartbeat a few members are pinged in a shuffled round robin
//! (section 4.3), but for those that have just pinged this node; one that does not answer within half a heartbeat is also pinged by way of
//! others, and probed again in the next round. Any message from it counts as a sign of
//! life. Every message tells its receiver what is believed of it, so that one wrongly
//! suspected refutes at once. Time in which this machine itself did not run is not held
//! against others: its clock advances by one heartbeat per call at most.
//!
//! **A gone peer** is suspected, then dead, then removed by a majority. The dead are pinged
//! now and then, and seeds that nobody here knows are tried again, so that halves of a
//! healed partition, or ones that never met, find each other. One that was removed and
//! forgotten may be brought back by somebody who was cut off for longer than ten minutes;
//! it is then found dead and removed as before.
//!
//! **A lying peer.** Peers are trusted as far as the transport authenticated them. Nonsense
//! is bounded in size and memory and cannot panic or stall the machine; a false suspicion
//! is refuted. But a liar can spread false addresses or members that do not exist, and with
//! the greatest incarnation it silences an id for good. Two nodes that run under one id
//! outbid each other; both count it.
//!
//! **News** ride on the messages that are sent anyway (section 4.1): each change on
//! O(log n) of them, [`PIGGYBACK_MAX`] per message. Every gossip interval one member at
//! random is also sent, and sends back, all there is to know, which mends what loss left.
//!
//! **Bounds.** [`MEMBERS_MAX`] members, [`ERRANDS_MAX`] probes on behalf of others,
//! [`ACTIONS_MAX`] messages waiting to be taken away; what does not fit is refused and
//! counted. A heartbeat costs at most [`PROBES_PER_ROUND`] × (1 + k) messages of its own,
//! as many pings to the dead, and one per seed.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use super::rng::Rng;
use crate::clock::{SteadyClock, UnixMs, Version};

mod beliefs;
mod message;
mod news;
mod placing;
mod probing;

pub use message::{Kind, Malformed, Message, Update};
use placing::Placing;
pub use placing::{Roster, RosterId, Stage, Standing, Terms};

/// Members known at a time: this node, and those that left and are still remembered, count.
pub const MEMBERS_MAX: usize = 1024;
/// Updates in one message.
pub const UPDATES_MAX: usize = 1024;
/// Updates in a message that is not gossip of everything.
pub const PIGGYBACK_MAX: usize = 64;
/// Members probed per heartbeat.
pub const PROBES_PER_ROUND: usize = 5;
/// Pings on behalf of others whose answer is awaited.
pub const ERRANDS_MAX: usize = 256;
/// Messages that wait for [`Membership::poll_action`].
pub const ACTIONS_MAX: usize = 4096;
/// The length of an id, in bytes.
pub const ID_BYTES_MAX: usize = 253;
/// The length of an address, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 512;

/// Silence, in heartbeats, after which a failed probe makes a member suspect; also how long
/// one has to refute of whose suspicion this node was told.
const SUSPECT_HEARTBEATS: u64 = 3;
/// Silence, in heartbeats, after which a suspect is dead.
const DEAD_HEARTBEATS: u64 = 6;
/// Heartbeats from one ping of the dead to the next.
const DEAD_PING_HEARTBEATS: u64 = 3;
/// Heartbeats, before jitter, from one attempt at unknown seeds to the next.
const STRANGER_HEARTBEATS: u64 = 10;
/// Versions that are remembered because they cannot be cleared.
const CLEARED_REFUSED_MAX: usize = 16;
/// How long one that left is remembered, so that old news do not bring it back.
const LEFT_MEMORY_MS: u64 = 10 * 60 * 1000;

/// How the protocol is paced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// From one probe round to the next.
    pub heartbeat_ms: u64,
    /// From one exchange of everything to the next.
    pub gossip_interval_ms: u64,
    /// How many others are asked to ping a member that did not answer; 0 for none.
    pub indirect_probes: usize,
    /// How long a dead member stays placed, at least.
    pub dead_grace_ms: u64,
    /// How long a node waits for all its seeds before most of them will do.
    pub join_timeout_ms: u64,
    /// How far the clocks of two nodes may be apart.
    pub clock_skew_ms: u64,
    /// Copies of each key: how many owners may be away with a quorum left.
    pub replication: usize,
}

/// A node's name and where it is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its id.
    pub id: Arc<str>,
    /// Where peers reach it, `host:port`; a name is resolved on each connect.
    pub peer_address: Arc<str>,
    /// Where clients reach it.
    pub client_address: Arc<str>,
}

/// What is believed of a member. The order is that of precedence within one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum State {
    /// It answers.
    Alive,
    /// It did not answer and may still refute.
    Suspect,
    /// It is taken to be gone, but its place is kept.
    Dead,
    /// It said goodbye, or was removed after the grace.
    Left,
}

impl State {
    /// The contract's word; outsiders do not tell the left from the dead.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead | Self::Left => "dead",
        }
    }

    fn is_probed(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }

    fn is_placed(self) -> bool {
        self != Self::Left
    }
}

/// What the shell is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send a message. A reply that comes back goes to [`Membership::receive`]; losing
    /// either is allowed.
    Send {
        /// The peer address of the receiver.
        to: Arc<str>,
        /// What to send.
        message: Box<Message>,
    },
    /// Members or their states changed: publish a new view.
    Changed,
}

/// A node to join by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seed {
    /// Its id, when the setting names one.
    pub id: Option<Arc<str>>,
    /// Its peer address.
    pub address: Arc<str>,
}

/// A member as this node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who it is.
    pub identity: Identity,
    /// What is believed of it.
    pub state: State,
    /// Which life of the node this is, and how often it was defended.
    pub incarnation: u64,
    /// Where it stands, as far as is known.
    pub standing: Standing,
    /// Since when it is in this state. On the machine's own clock: the `now_ms` it is given,
    /// less the stalls of this process.
    pub since_ms: u64,
}

impl Member {
    fn new(update: Update, since_ms: u64) -> Self {
        Self {
            identity: update.identity,
            state: update.state,
            incarnation: update.incarnation,
            standing: update.standing,
            since_ms,
        }
    }

    fn enter(&mut self, state: State, now_ms: u64) {
        if self.state != state {
            self.state = state;
            self.since_ms = now_ms;
        }
    }

    /// Whether it is dead by its own word.
    fn said_goodbye(&self) -> bool {
        self.state == State::Dead && self.standing.gone
    }

    fn to_update(&self) -> Update {
        Update {
            identity: self.identity.clone(),
            state: self.state,
            incarnation: self.incarnation,
            standing: self.standing,
            marks: 0,
        }
    }
}

/// What happened so far, as seen from this node; numbers only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Probes answered directly.
    pub heartbeat_success: u64,
    /// Probes answered in no way.
    pub heartbeat_failure: u64,
    /// Probes answered by way of another member.
    pub indirect_probe_success: u64,
    /// Probes that other members were asked for too, in vain.
    pub indirect_probe_failure: u64,
    /// Indirect answers from members that were suspect.
    pub indirect_probe_refuted: u64,
    /// Members that became suspect.
    pub nodes_suspect: u64,
    /// Members that became dead.
    pub nodes_dead: u64,
    /// Dead members that were removed, by this node or another.
    pub nodes_removed: u64,
    /// Claims of another node to this node's id.
    pub id_conflicts: u64,
    /// Updates refused because [`MEMBERS_MAX`] members are known.
    pub members_refused: u64,
    /// Requests to ping a member refused because [`ERRANDS_MAX`] are under way.
    pub errands_refused: u64,
    /// Messages dropped because [`ACTIONS_MAX`] were waiting.
    pub messages_dropped: u64,
    /// Versions up to which all is said to be cleared, refused for lying in the future.
    pub clears_refused: u64,
}

/// The membership of one node.
#[derive(Debug)]
pub struct Membership {
    config: Config,
    me: Member,
    others: BTreeMap<Arc<str>, Peer>,
    seeds: Vec<Seed>,

    /// This machine's clock, see [`Self::advance`].
    now_ms: u64,
    clock: SteadyClock,
    started_ms: u64,
    next_round_ms: u64,
    next_gossip_ms: u64,
    next_strangers_ms: u64,

    /// See [`Self::joined`].
    joined: bool,
    placing: Placing,
    /// See [`Self::cleared`].
    cleared: Version,
    /// Those last heard of that cannot be.
    cleared_refused: VecDeque<Version>,
    rounds: u64,
    round_started_ms: u64,
    round: Vec<Probe>,
    /// Whom to probe, last first, until all have been and the order is drawn anew.
    order: Vec<Arc<str>>,
    errands: Vec<Errand>,
    rumors: BTreeMap<Arc<str>, Rumor>,

    version: u64,
    changed: bool,
    outgoing: VecDeque<Action>,
    counters: Counters,
}

/// Another member, and what concerns only this node's watch over it.
#[derive(Debug)]
struct Peer {
    member: Member,
    /// The last sign of life, or where silence begins to count, see
    /// [`Membership::count_silence_anew`].
    silent_since_ms: u64,
    /// When it last pinged this node.
    pinged_ms: Option<u64>,
    /// Until when it may refute; read while it is suspect.
    refutable_until_ms: u64,
}

/// A member probed in this round.
#[derive(Debug)]
struct Probe {
    target: Arc<str>,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Pinged,
    RelaysAsked,
    Answered,
}

/// A ping on behalf of another member.
#[derive(Debug)]
struct Errand {
    target: Arc<str>,
    asker: Arc<str>,
    until_ms: u64,
}

/// A change that others may not know yet. What it says is read from the member when told.
#[derive(Debug)]
struct Rumor {
    told: u32,
    version: u64,
}

impl Membership {
    /// A node that starts, alone. `incarnation` is its start time in milliseconds, so that
    /// it grows with every restart. Seeds that name this node are left out.
    pub fn new(
        config: Config,
        me: Identity,
        incarnation: u64,
        mut seeds: Vec<Seed>,
        now_ms: u64,
    ) -> Self {
        seeds.retain(|seed| seed.id.as_ref() != Some(&me.id) && seed.address != me.peer_address);
        // A heartbeat of zero would stop the clock.
        let config = Config {
            heartbeat_ms: config.heartbeat_ms.max(1),
            ..config
        };
        let me = Update {
            identity: me,
            state: State::Alive,
            incarnation,
            standing: Standing {
                life: incarnation,
                ..Standing::default()
            },
            marks: 0,
        };
        let mut membership = Self {
            joined: false,
            placing: Placing::new(),
            cleared: Version::ZERO,
            cleared_refused: VecDeque::new(),
            me: Member::new(me, now_ms),
            others: BTreeMap::new(),
            seeds,
            now_ms,
            clock: SteadyClock::new(UnixMs(now_ms), config.heartbeat_ms),
            started_ms: now_ms,
            next_round_ms: now_ms,
            next_gossip_ms: now_ms.saturating_add(config.gossip_interval_ms),
            next_strangers_ms: later(now_ms, config.heartbeat_ms, STRANGER_HEARTBEATS),
            rounds: 0,
            round_started_ms: now_ms,
            round: Vec::new(),
            order: Vec::new(),
            errands: Vec::new(),
            rumors: BTreeMap::new(),
            version: 1,
            changed: true,
            outgoing: VecDeque::new(),
            counters: Counters::default(),
            config,
        };
        if membership.seeds.is_empty() {
            membership.found();
        }
        membership
    }

    /// Lets time pass: ends and begins probe rounds, gossips, knocks at seeds, runs out
    /// timers. To be called about ten times per heartbeat, but need not be while
    /// [`Membership::quiet_ms`] says so.
    pub fn tick(&mut self, now_ms: u64, rng: &mut Rng) {
        self.advance(now_ms);
        if self.me.state != State::Alive {
            return;
        }
        if self.now_ms >= self.next_round_ms {
            self.judge_round();
            self.run_out_timers();
            self.start_round(rng);
            self.knock_at_seeds(rng);
        } else {
            self.ask_relays(rng);
            self.run_out_timers();
        }
        if self.now_ms >= self.next_gossip_ms {
            self.gossip(rng);
        }
        self.look_for_cluster();
        self.review(rng);
    }

    /// For how long [`Membership::tick`] would find nothing to do, in milliseconds, unless a
    /// message comes. `None` while anything runs out but rounds: an unanswered probe, the time
    /// of somebody who is not alive, a change of owners.
    pub fn quiet_ms(&self) -> Option<u64> {
        let answered = |probe: &Probe| probe.progress == Progress::Answered;
        let alive = |peer: &Peer| matches!(peer.member.state, State::Alive | State::Left);
        let is_quiet = self.me.state == State::Alive
            && self.joined
            && self.errands.is_empty()
            && self.round.iter().all(answered)
            && self.others.values().all(alive)
            && self.is_at_ease();
        let next_ms = self.next_round_ms.min(self.next_gossip_ms);
        is_quiet.then(|| next_ms.saturating_sub(self.now_ms))
    }

    /// Takes a message or a reply in. What it returns goes back as the answer.
    pub fn receive(&mut self, now_ms: u64, rng: &mut Rng, message: Message) -> Option<Message> {
        self.advance(now_ms);
        if message.from == self.me.identity {
            // A seed's address led back here.
            return None;
        }
        let kind = &message.kind;
        if self.me.state != State::Alive {
            // What it still answers must not be what was cleared.
            self.hear_cleared(now_ms, message.cleared);
            // Whoever still asks missed the goodbye.
            let asks = matches!(kind, Kind::Ping | Kind::Gossip | Kind::PingRequest { .. });
            return asks.then(|| self.compose(self.goodbye(), &[]));
        }
        let heard = self.hear(&message, rng);
        if heard {
            self.hear_cleared(now_ms, message.cleared);
        }
        for update in message.updates.iter().take(UPDATES_MAX) {
            self.learn(update.clone(), rng);
        }
        if heard && matches!(kind, Kind::Gossip | Kind::GossipReply) {
            self.adopt(&message);
            self.heard_all(&message);
        }
        self.look_for_cluster();
        self.review(rng);
        let Message {
            from,
            incarnation,
            kind,
            ..
        } = message;
        match kind {
            Kind::Ping => return Some(self.compose(Kind::Ack, &[&from.id])),
            Kind::Gossip => return Some(self.compose_everything(Kind::GossipReply)),
            Kind::Ack if heard => self.take_ack(&from.id, incarnation),
            Kind::PingRequest { target } => self.run_errand(target, from.id),
            Kind::IndirectAck {
                target,
                incarnation,
            } => {
                self.take_indirect_ack(&target, incarnation);
            }
            Kind::Ack | Kind::GossipReply | Kind::News | Kind::Leave | Kind::Away => {}
        }
        None
    }

    /// The next thing to do, until there is none. To be drained after every call that
    /// changes something.
    pub fn poll_action(&mut self) -> Option<Action> {
        if std::mem::take(&mut self.changed) {
            return Some(Action::Changed);
        }
        self.outgoing.pop_front()
    }

    /// Says goodbye to all that are there: for a while if this node has a place to come back
    /// to, else for good. From now on it only answers that it is gone, and lets others say
    /// of it what they want.
    pub fn leave(&mut self, now_ms: u64) {
        self.advance(now_ms);
        if self.me.state != State::Alive {
            return;
        }
        let state = match self.keeps_place() {
            true => State::Dead,
            false => State::Left,
        };
        self.me.incarnation = self.me.incarnation.saturating_add(1);
        self.me.standing.sequence = self.me.standing.sequence.saturating_add(1);
        self.me.standing.gone = true;
        self.me.enter(state, self.now_ms);
        self.mark_changed();
        self.round.clear();
        self.errands.clear();
        for id in self.ids_where(State::is_probed) {
            self.send(&id, self.goodbye(), None);
        }
    }

    /// Has the whole cluster forget what was written up to this version: all that are there
    /// are told at once, the others by the first message that reaches them.
    /// False if a later one is cleared already.
    pub fn clear(&mut self, now_ms: u64, version: Version) -> bool {
        self.advance(now_ms);
        if version <= self.cleared {
            return false;
        }
        self.cleared = version;
        self.mark_changed();
        for id in self.ids_where(State::is_probed) {
            self.send(&id, Kind::News, None);
        }
        true
    }

    /// Takes over what another node knows to be cleared, unless that lies further ahead of
    /// this machine's clock than clocks may be apart: its sender's is wrong. Such a version
    /// stays refused when the time has come for it, or what was written since would be lost.
    fn hear_cleared(&mut self, now_ms: u64, version: Version) {
        if version <= self.cleared || self.cleared_refused.contains(&version) {
            return;
        }
        let credible = Version::at(UnixMs(now_ms)).later(self.config.clock_skew_ms);
        if version > credible {
            self.counters.clears_refused += 1;
            if self.cleared_refused.len() == CLEARED_REFUSED_MAX {
                self.cleared_refused.pop_front();
            }
            self.cleared_refused.push_back(version);
            return;
        }
        self.cleared = version;
        self.mark_changed();
    }

    /// Up to which version everything written is forgotten, as far as this node knows. It
    /// only grows, and every message carries it: whoever was away knows it before it
    /// is a member again.
    pub fn cleared(&self) -> Version {
        self.cleared
    }

    fn goodbye(&self) -> Kind {
        match self.me.state {
            State::Left => Kind::Leave,
            _ => Kind::Away,
        }
    }

    /// This node.
    pub fn me(&self) -> &Identity {
        &self.me.identity
    }

    /// All members by id: this node, and until they are forgotten those that left.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        let id: &str = &self.me.identity.id;
        let before = self.others.range::<str, _>((Unbounded, Excluded(id)));
        let after = self.others.range::<str, _>((Excluded(id), Unbounded));
        before
            .map(|(_, peer)| &peer.member)
            .chain(std::iter::once(&self.me))
            .chain(after.map(|(_, peer)| &peer.member))
    }

    /// Whether this node knows its cluster, see "Founding" above. Once it does it always
    /// will.
    pub fn joined(&self) -> bool {
        self.joined
    }

    /// How many of the seeds are alive, and how many there are.
    pub fn seeds_met(&self) -> (usize, usize) {
        let met = self.seeds.iter().filter(|seed| self.is_met(seed)).count();
        (met, self.seeds.len())
    }

    /// Grows with every change of a member.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Moves this machine's clock by the time that passed, but by one heartbeat at most:
    /// while the process was stopped nobody could be heard, and nobody is blamed for it. A
    /// clock that steps back stands still for one call.
    fn advance(&mut self, now_ms: u64) {
        let stood_still_ms = now_ms.saturating_sub(self.clock.told().0);
        let Config {
            heartbeat_ms,
            dead_grace_ms,
            ..
        } = self.config;
        // For less nobody takes it for dead.
        if stood_still_ms >= (dead_grace_ms / 2).max(later(0, heartbeat_ms, DEAD_HEARTBEATS)) {
            self.stood_still();
        }
        let passed = self.clock.advance(UnixMs(now_ms));
        self.now_ms = self.started_ms.saturating_add(passed.0);
    }

    fn heartbeats_from_now(&self, count: u64) -> u64 {
        later(self.now_ms, self.config.heartbeat_ms, count)
    }

    fn heartbeats_passed(&self, count: u64, since_ms: u64) -> bool {
        self.now_ms.saturating_sub(since_ms) >= self.config.heartbeat_ms.saturating_mul(count)
    }

    fn ids_where(&self, wanted: impl Fn(State) -> bool) -> Vec<Arc<str>> {
        self.others
            .iter()
            .filter(|(_, peer)| wanted(peer.member.state))
            .map(|(id, _)| Arc::clone(id))
            .collect()
    }

    fn state_of(&self, id: &str) -> Option<State> {
        self.others.get(id).map(|peer| peer.member.state)
    }
}

fn later(from_ms: u64, heartbeat_ms: u64, count: u64) -> u64 {
    from_ms.saturating_add(heartbeat_ms.saturating_mul(count))
}

#[cfg(test)]
mod tests;
