//! Which members own the partitions, and how that changes without a write being lost.
//!
//! A *roster* is a set of members; with the ring it says who owns what
//! ([`super::super::placement`]). Nodes hear of joins and leaves at different times, and
//! two that went by different rosters could each find a quorum that the other does not
//! see. So a change from one roster to the next goes through stages, and no node is ever
//! more than one stage ahead of another (the idea is that of Rae et al., "Online,
//! Asynchronous Schema Change in F1", 2013):
//!
//! ```text
//!                reads from   writes to      goes on when every node that serves says
//!   Settled      old          old            it is settled there, and the members have changed
//!   Joint        old          old and new    it is Joint and holds all that it owns by the new one
//!   Switched     new          old and new    it is Switched
//!   Settled      new          new
//! ```
//!
//! "Writes to old and new" means a quorum of each. Nodes in neighbouring stages find each
//! other's writes: each writes where the other reads ([`Terms::agree`]). What new owners
//! copy while all are Joint, together with what they are sent meanwhile, is all that was
//! ever acknowledged. Each node says in its [`Standing`] where it stands, and only once all
//! its cores go by it; standings spread like all news.
//!
//! **Exclusive.** Stages advance, and members are removed, only where more than half of the
//! old roster is alive, so at most one side of a partition changes owners. A node that sees
//! more than half of the roster dead for half of the grace is *fenced*: by the end of the
//! grace the others may have gone on without it, so it stops serving quorums.
//!
//! **Left behind.** Rosters are counted: the epoch grows with each that is settled. A node
//! that hears of a greater epoch, or starts, takes over the roster of the one that told it,
//! and so does one that is Joint and hears of one that has Switched. Of two rosters of one
//! epoch, which only clusters founded apart have, the larger goes.
//!
//! **Changes that overtake each other.** A change goes to its end before the next begins,
//! unless its Joint stage can be given up: while this node itself or a newcomer has not said
//! that it holds everything, or another has turned to another roster, nobody can have
//! switched. Should one have, because it knew more, the others hear of it and follow; until
//! then their terms do not agree, and what they answer each other does not count.
//!
//! **Places.** One that died keeps its place for the grace; one that drains keeps it because
//! it is most likely restarted. But when the roster could not spare all that are away and
//! drain together with a quorum left for every key, they lose their places, and the drain
//! waits until others hold what they had. Nobody leaves before all agree on who is about to.

use std::sync::Arc;

use super::{Kind, Member, Membership, Message, State};
use crate::cluster::Consistency;
use crate::cluster::rng::Rng;
use crate::hash::splitmix64;
use crate::mutation::{Mutation, planted};

/// How many members are told of a new standing directly; the others hear of it.
const TOLD_AT_ONCE: usize = 8;

/// Names a roster by its members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RosterId(pub u64);

/// The members that share the partitions among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// By id.
    members: Arc<[Arc<str>]>,
    id: RosterId,
}

impl Roster {
    /// These members.
    pub fn of(members: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut members: Vec<_> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        let mut named = Vec::new();
        for id in &members {
            named.extend((id.len() as u64).to_le_bytes());
            named.extend(id.as_bytes());
        }
        Self {
            members: members.into(),
            // 0 stands for none.
            id: RosterId(xxhash_rust::xxh3::xxh3_64(&named).max(1)),
        }
    }

    /// The ids of the members, in order.
    pub fn members(&self) -> &[Arc<str>] {
        &self.members
    }

    /// Its name.
    pub fn id(&self) -> RosterId {
        self.id
    }

    /// Whether a member belongs to it.
    pub fn contains(&self, id: &str) -> bool {
        self.members
            .binary_search_by(|member| (**member).cmp(id))
            .is_ok()
    }
}

/// How far a node has gone from one roster to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It reads from the old roster and writes to both.
    Joint,
    /// It reads from the new roster and writes to both.
    Switched,
    /// It goes by one roster.
    #[default]
    Settled,
}

/// What a node says of itself, so that others know how far they may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// When its process started: tells one life of a node from the next.
    pub life: u64,
    /// Grows with each change within one life; 0 while it knows no cluster.
    pub sequence: u32,
    /// How many rosters were settled before the one it comes from.
    pub epoch: u64,
    /// The roster it goes to, or has settled in.
    pub target: RosterId,
    /// How far it has gone.
    pub stage: Stage,
    /// Whether it holds all that it owns.
    pub holding: bool,
    /// Whether it is going to leave.
    pub draining: bool,
    /// Of whom it knows that they are going to leave; see [`Membership::leavers_agreed`].
    pub leavers: u64,
}

impl Standing {
    /// Whether it knows its cluster.
    pub fn serves(&self) -> bool {
        self.sequence > 0
    }

    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        (self.life, self.sequence) > (other.life, other.sequence)
    }

    /// Whether it has come as far as this on the way from the roster of `epoch`.
    fn reached(&self, epoch: u64, target: RosterId, stage: Stage) -> bool {
        self.epoch > epoch
            || self.epoch == epoch
                && self.target == target
                && self.stage >= stage
                && self.stage != Stage::Settled
    }

    fn has_copied(&self, epoch: u64, target: RosterId) -> bool {
        self.reached(epoch, target, Stage::Switched)
            || self.reached(epoch, target, Stage::Joint) && self.holding
    }
}

/// By which rosters a node reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// It reads from this one, and writes to it.
    pub reading: RosterId,
    /// It writes to this one as well; the default for none.
    pub also: RosterId,
}

impl Terms {
    /// Whether two nodes see each other's writes: each writes where the other reads.
    pub fn agree(self, other: Self) -> bool {
        self.writes_to(other.reading) && other.writes_to(self.reading)
    }

    /// Whether what is written by these terms can be found in this roster.
    pub fn writes_to(self, roster: RosterId) -> bool {
        roster != RosterId::default() && (self.reading == roster || self.also == roster)
    }
}

/// Where this node stands.
#[derive(Debug)]
pub(super) struct Placing {
    /// How many rosters were settled before `base`; 0 while it knows none.
    pub(super) epoch: u64,
    base: Roster,
    /// The same as `base` when settled.
    target: Roster,
    stage: Stage,
    /// Whether all that serve are known to be Joint: what is copied from now on counts.
    copying: bool,
    /// The version of the membership from which on all this is so.
    version: u64,
    /// Up to which version the cores follow, and whether they hold all they own by it.
    followed: (u64, bool),
    /// The version that was reviewed last: without a change there is nothing to go on for.
    reviewed: u64,
    draining: bool,
    /// Since when most of the roster is dead.
    majority_dead_since_ms: Option<u64>,
    fenced: bool,
}

impl Placing {
    pub(super) fn new() -> Self {
        let nobody = Roster::of([]);
        Self {
            epoch: 0,
            base: nobody.clone(),
            target: nobody,
            stage: Stage::Settled,
            copying: false,
            version: 0,
            followed: (0, false),
            reviewed: 0,
            draining: false,
            majority_dead_since_ms: None,
            fenced: false,
        }
    }
}

impl Membership {
    /// The roster this node reads from.
    pub fn reading(&self) -> &Roster {
        match self.placing.stage {
            Stage::Switched => &self.placing.target,
            Stage::Joint | Stage::Settled => &self.placing.base,
        }
    }

    /// The roster this node writes to besides.
    pub fn also(&self) -> Option<&Roster> {
        match self.placing.stage {
            Stage::Joint => Some(&self.placing.target),
            Stage::Switched => Some(&self.placing.base),
            Stage::Settled => None,
        }
    }

    /// How far it is on its way from one roster to the next.
    pub fn stage(&self) -> Stage {
        self.placing.stage
    }

    /// How many rosters were settled.
    pub fn epoch(&self) -> u64 {
        self.placing.epoch
    }

    /// Whether all that serve are known to write to the new roster too.
    pub fn copying(&self) -> bool {
        self.placing.copying
    }

    /// Whether the roster to come is the one that the members make up now.
    pub fn placed(&self) -> bool {
        self.placing.stage == Stage::Settled && self.wanted() == self.placing.base
    }

    /// Whether others may have gone on without this node: most of its roster has been dead
    /// for half of the grace.
    pub fn fenced(&self) -> bool {
        self.placing.fenced
    }

    /// Whether this node is going to leave.
    pub fn draining(&self) -> bool {
        self.placing.draining
    }

    /// Whether a member may own partitions at present, or is about to.
    pub fn may_own(&self, id: &str) -> bool {
        self.placing.base.contains(id) || self.placing.target.contains(id)
    }

    /// The cores of this node go by the membership of this version, and by it hold all
    /// that they own or not.
    pub fn follow(&mut self, now_ms: u64, rng: &mut Rng, version: u64, holding: bool) {
        self.advance(now_ms);
        if self.placing.followed != (version, holding) {
            self.placing.followed = (version, holding);
            self.placing.reviewed = 0;
        }
        self.review(rng);
    }

    /// This node is going to leave: others read elsewhere, and take over what only it has.
    pub fn drain(&mut self, now_ms: u64, rng: &mut Rng) {
        self.advance(now_ms);
        if !self.placing.draining {
            self.placing.draining = true;
            self.mark_changed();
            self.review(rng);
        }
    }

    /// Whether all that serve know of the same members that they are going to leave: then no
    /// two leave that could not be spared together, neither knowing of the other.
    pub fn leavers_agreed(&self) -> bool {
        let leavers = self.leavers();
        self.all_that_serve(|member| member.leavers == leavers)
            || planted(Mutation::LeaveUnannounced)
    }

    /// Stands for the set of those that are known to be going to leave.
    fn leavers(&self) -> u64 {
        let others = self.others_that_serve();
        let others = others.filter(|member| member.standing.draining);
        let me = self.placing.draining.then_some(&self.me);
        others.chain(me).fold(0, |set, member| {
            let name = xxhash_rust::xxh3::xxh3_64(member.identity.id.as_bytes());
            set ^ splitmix64(name ^ member.standing.life)
        })
    }

    /// Whether this node's place is kept when it leaves now.
    pub(super) fn keeps_place(&self) -> bool {
        let id = &self.me.identity.id;
        self.placing.base.contains(id) && self.placing.target.contains(id)
    }

    /// Begins a cluster of those that are here.
    pub(super) fn found(&mut self) {
        let here = self.members().filter(|member| {
            member.state == State::Alive || member.identity.id == self.me.identity.id
        });
        let roster = Roster::of(here.map(|member| Arc::clone(&member.identity.id)));
        self.joined = true;
        self.settle(1, roster);
    }

    fn settle(&mut self, epoch: u64, roster: Roster) {
        self.placing.epoch = epoch;
        self.placing.base = roster.clone();
        self.enter(Stage::Settled, roster);
    }

    fn enter(&mut self, stage: Stage, target: Roster) {
        self.placing.stage = stage;
        self.placing.target = target;
        self.placing.copying = false;
        self.mark_changed();
        self.placing.version = self.version;
    }

    /// Takes over where the sender of a full message stands, if it is ahead.
    pub(super) fn adopt(&mut self, message: &Message) {
        if !message.joined {
            return;
        }
        let marked = |mark: u8| {
            let sender = (message.marks & mark != 0).then(|| Arc::clone(&message.from.id));
            let others = message
                .updates
                .iter()
                .filter(move |update| update.marks & mark != 0);
            Roster::of(
                sender
                    .into_iter()
                    .chain(others.map(|update| Arc::clone(&update.identity.id))),
            )
        };
        let (base, target) = (marked(BASE), marked(TARGET));
        if base.members.is_empty() || target.members.is_empty() {
            return;
        }
        let switched = message.marks & SWITCHED != 0;
        let rank = |epoch: u64, base: &Roster, switched: bool, target: &Roster| {
            let size = |roster: &Roster| (roster.members.len(), roster.id);
            (epoch, size(base), switched.then(|| size(target)))
        };
        let Placing {
            epoch,
            base: own_base,
            target: own_target,
            stage,
            ..
        } = &self.placing;
        let own = rank(*epoch, own_base, *stage == Stage::Switched, own_target);
        if self.joined && rank(message.epoch, &base, switched, &target) <= own {
            return;
        }
        self.joined = true;
        self.settle(message.epoch, base.clone());
        if target != base {
            let stage = match switched {
                true => Stage::Switched,
                false => Stage::Joint,
            };
            self.enter(stage, target);
        }
    }

    /// The marks of a member in a message.
    pub(super) fn marks(&self, id: &str) -> u8 {
        let Placing {
            base,
            target,
            stage,
            ..
        } = &self.placing;
        let is_me_switched = *stage == Stage::Switched && *id == *self.me.identity.id;
        mark(BASE, base.contains(id))
            | mark(TARGET, target.contains(id))
            | mark(SWITCHED, is_me_switched)
    }

    /// Goes on as far as what is known allows, and says so.
    pub(super) fn review(&mut self, rng: &mut Rng) {
        if !self.joined || self.me.state != State::Alive {
            return;
        }
        self.mind_the_fence();
        while self.placing.reviewed != self.version {
            self.placing.reviewed = self.version;
            self.publish(rng);
            while self.go_on() {}
        }
    }

    /// Takes one step, if one is to be taken.
    fn go_on(&mut self) -> bool {
        let wanted = self.wanted();
        let (epoch, target) = (self.placing.epoch, self.placing.target.id);
        match self.placing.stage {
            Stage::Settled if wanted == self.placing.base => false,
            Stage::Settled if planted(Mutation::SkipJointStage) => {
                self.settle(epoch + 1, wanted);
                true
            }
            Stage::Settled => {
                self.enter(Stage::Joint, wanted);
                true
            }
            Stage::Joint if wanted != self.placing.target && self.may_turn() => {
                let stage = match wanted == self.placing.base {
                    true => Stage::Settled,
                    false => Stage::Joint,
                };
                self.enter(stage, wanted);
                true
            }
            Stage::Joint if !self.placing.copying => {
                let all = self.all_that_serve(|member| member.reached(epoch, target, Stage::Joint));
                if all {
                    self.placing.copying = true;
                    self.mark_changed();
                    self.placing.version = self.version;
                }
                all
            }
            Stage::Joint => {
                let all = self.all_that_serve(|member| member.has_copied(epoch, target))
                    && self.newcomers_have_copied()
                    && self.sees_majority();
                if all {
                    self.enter(Stage::Switched, self.placing.target.clone());
                }
                all
            }
            Stage::Switched => {
                let all = self
                    .all_that_serve(|member| member.reached(epoch, target, Stage::Switched))
                    && self.sees_majority();
                if all {
                    self.settle(epoch + 1, self.placing.target.clone());
                }
                all
            }
        }
    }

    /// Says where this node stands, once its cores stand there.
    fn publish(&mut self, rng: &mut Rng) {
        let Placing {
            epoch,
            stage,
            version,
            followed,
            draining,
            copying,
            ..
        } = self.placing;
        let said = self.me.standing;
        let leavers = self.leavers();
        let mut standing = Standing {
            draining,
            leavers,
            ..said
        };
        if followed.0 >= version {
            standing.epoch = epoch;
            standing.target = self.placing.target.id;
            standing.stage = stage;
            standing.holding = followed.1 && (copying || stage != Stage::Joint);
        }
        if standing == said && said.serves() || !said.serves() && followed.0 < version {
            return;
        }
        standing.sequence += 1;
        self.me.standing = standing;
        self.mark_changed();
        let mut told = self.ids_where(State::is_probed);
        rng.shuffle(&mut told);
        for id in told.into_iter().take(TOLD_AT_ONCE) {
            self.send(&id, Kind::News, None);
        }
    }

    /// Whether all that serve, this node among them, have come so far.
    fn all_that_serve(&self, has: impl Fn(&Standing) -> bool) -> bool {
        has(&self.me.standing) && self.others_that_serve().all(|member| has(&member.standing))
    }

    fn others_that_serve(&self) -> impl Iterator<Item = &Member> {
        let others = self.others.values().map(|peer| &peer.member);
        others.filter(|member| member.state.is_probed() && member.standing.serves())
    }

    /// Whether each member of the new roster that is not in the old one is there, and holds
    /// what it will own: going on without would leave keys with an owner less.
    fn newcomers_have_copied(&self) -> bool {
        let Placing {
            epoch,
            base,
            target,
            ..
        } = &self.placing;
        let has_copied = |id: &Arc<str>| match self.others.get(id) {
            Some(peer) => {
                let Member {
                    state, standing, ..
                } = &peer.member;
                state.is_probed() && standing.has_copied(*epoch, target.id)
            }
            None => *id == self.me.identity.id,
        };
        let mut newcomers = target.members.iter().filter(|id| !base.contains(id));
        newcomers.all(has_copied)
    }

    /// Whether the Joint stage can be given up: nobody can have switched, by all that is
    /// known here.
    fn may_turn(&self) -> bool {
        let (epoch, target) = (self.placing.epoch, self.placing.target.id);
        let turned = |standing: &Standing| standing.epoch == epoch && standing.target != target;
        !self.me.standing.has_copied(epoch, target)
            || !self.newcomers_have_copied()
            || self
                .others_that_serve()
                .any(|member| turned(&member.standing))
    }

    /// Whether more than half of the roster is alive.
    pub(super) fn sees_majority(&self) -> bool {
        let base = &self.placing.base;
        let alive = self
            .members()
            .filter(|member| member.state == State::Alive && base.contains(&member.identity.id));
        alive.count() * 2 > base.members.len()
    }

    fn mind_the_fence(&mut self) {
        let base = &self.placing.base;
        let dead = self
            .others
            .values()
            .map(|peer| &peer.member)
            .filter(|member| member.state == State::Dead && base.contains(&member.identity.id));
        let now_ms = self.now_ms;
        let since = (dead.count() * 2 > base.members.len())
            .then(|| self.placing.majority_dead_since_ms.unwrap_or(now_ms));
        let fenced = since
            .is_some_and(|since| now_ms.saturating_sub(since) >= self.config.dead_grace_ms / 2);
        self.placing.majority_dead_since_ms = since;
        if fenced != self.placing.fenced {
            self.placing.fenced = fenced;
            self.mark_changed();
        }
    }

    /// The roster that the members, as they are, should share the partitions by.
    fn wanted(&self) -> Roster {
        let base = &self.placing.base;
        let has_place = |member: &Member| base.contains(&member.identity.id);
        let drains = |member: &Member| match member.identity.id == self.me.identity.id {
            true => self.placing.draining,
            false => member.standing.draining,
        };
        let serves =
            |member: &Member| member.standing.serves() || member.identity.id == self.me.identity.id;
        let away =
            |member: &Member| has_place(member) && (member.state == State::Dead || drains(member));
        let copies = self.config.replication.clamp(1, base.members.len().max(1));
        let spare = copies - Consistency::Quorum.needed(copies);
        let takes_over =
            |member: &Member| member.state == State::Alive && serves(member) && !drains(member);
        let crowded = self.members().filter(|member| away(member)).count() > spare
            && self
                .members()
                .any(|member| member.state.is_probed() && drains(member))
            && self.members().any(takes_over)
            && self.sees_majority();
        let wanted = self.members().filter(|member| match member.state {
            State::Left => false,
            _ if away(member) => !crowded,
            State::Dead => false,
            State::Alive | State::Suspect => has_place(member) || serves(member) && !drains(member),
        });
        let roster = Roster::of(wanted.map(|member| Arc::clone(&member.identity.id)));
        match roster.members.is_empty() {
            true => base.clone(),
            false => roster,
        }
    }
}

/// A member of the sender's old roster.
const BASE: u8 = 1;
/// A member of the sender's new roster.
const TARGET: u8 = 2;
/// The sender itself, when it reads from the new roster.
const SWITCHED: u8 = 4;
/// All the marks there are.
pub(super) const MARKS: u8 = BASE | TARGET | SWITCHED;

fn mark(mark: u8, is_set: bool) -> u8 {
    if is_set { mark } else { 0 }
}
