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
//!              reads from   writes to      goes on when
//!   Settled    old          old            the members make up another roster
//!   Joint      old          old and new    all are Joint, and hold what they own by the new one
//!   Ready      old          old and new    all are Ready
//!   Switched   new          old and new    all are Switched
//!   Settled    new          new
//! ```
//!
//! "Writes to old and new" means a quorum of each. Nodes in neighbouring stages find each
//! other's writes: each writes where the other reads ([`Terms::agree`]). What new owners
//! copy while all are Joint, together with what they are sent meanwhile, is all that was
//! ever acknowledged. Each node says in its [`Standing`] where it stands, and only once all
//! its cores go by it; standings spread like all news.
//!
//! **All** are those that serve or may serve: also members that are dead within the grace,
//! which may be wrong; not those that said goodbye. When the grace is over the dead are
//! removed, and by then they are fenced.
//!
//! **Exclusive.** Stages advance, and members are removed, only where more than half of the
//! old roster is alive, so at most one side of a partition changes owners. A node that sees
//! more than half of the roster dead for half of the grace is *fenced*: by the end of the
//! grace the others may have gone on without it, so it stops serving quorums. So is one whose
//! process stood still for as long, until it hears of the others.
//!
//! **Turning back.** A change goes to its end before the next begins, unless nobody can have
//! switched: while this node has not said that it is Ready, or when another has turned to
//! another roster and so never said it. A node that was told of a change by others does not
//! know what an earlier life of it has said, and does not turn by itself.
//!
//! **Copies** count only with those they were made with ([`Membership::copying`]): when one
//! of them turned away meanwhile, or restarted, what it wrote past a new owner is not
//! there. Comparing anew costs little.
//!
//! **Left behind.** Rosters are counted: the epoch grows with each that is settled. A node
//! that hears of a greater epoch, or starts, takes over where the one that told it stands,
//! and so does one that is told of a later stage than it may know of. A roster is named by
//! what came before it ([`Roster`]), so that a node that was away while members left and came
//! back sees that it is not the roster it knew. Of two clusters founded apart the larger goes
//! on.
//!
//! **Places.** One that died keeps its place for the grace; one that drains keeps it because
//! it is most likely restarted. But when the roster could not spare all that are away and
//! drain together with a quorum left for every key, those that drain lose their places, and
//! wait until others hold what they had. Nobody leaves before all agree on who is about to.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Kind, Member, Membership, Message, State};
use crate::cluster::Consistency;
use crate::cluster::rng::Rng;
use crate::hash::splitmix64;
use crate::mutation::{Mutation, planted};

/// How many members are told of a new standing directly; the others hear of it.
const TOLD_AT_ONCE: usize = 8;

/// Names a roster by its members and by what came before it.
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
    /// The first roster of a cluster.
    pub fn founded(members: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self::after(RosterId::default(), members)
    }

    /// The roster of these members that comes after another one. Its name tells it from any
    /// other of the same members: what happened in between has not happened to it.
    fn after(previous: RosterId, members: impl IntoIterator<Item = Arc<str>>) -> Self {
        let roster = Self::named(previous, members);
        let mut named = previous.0.to_le_bytes().to_vec();
        for id in &*roster.members {
            named.extend((id.len() as u64).to_le_bytes());
            named.extend(id.as_bytes());
        }
        Self {
            // 0 stands for none.
            id: RosterId(xxhash_rust::xxh3::xxh3_64(&named).max(1)),
            ..roster
        }
    }

    /// A roster as another node has it.
    fn named(id: RosterId, members: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut members: Vec<_> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        let members = members.into();
        Self { members, id }
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
    /// The same, and all that serve hold what they own by the new roster: it does not turn
    /// back any more.
    Ready,
    /// It reads from the new roster and writes to both.
    Switched,
    /// It goes by one roster.
    #[default]
    Settled,
}

impl Stage {
    /// Whether the old roster is read from, and the new one only written to.
    pub fn reads_old(self) -> bool {
        matches!(self, Self::Joint | Self::Ready)
    }
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
    /// How often it has entered [`Stage::Joint`] in this life.
    pub attempt: u32,
    /// Whether it holds all that it owns.
    pub holding: bool,
    /// With whom it copied that, see [`Membership::copying`].
    pub copying: u64,
    /// Whether it is going to leave.
    pub draining: bool,
    /// Whether it has left: its goodbye, for those that hear of it from others.
    pub gone: bool,
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

    /// Whether it holds all it owns by the new roster, from copies that count for one
    /// that copies with the same companions.
    fn has_copied(&self, epoch: u64, target: RosterId, companions: u64) -> bool {
        self.reached(epoch, target, Stage::Switched)
            || self.reached(epoch, target, Stage::Joint)
                && self.holding
                && self.copying == companions
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
    /// Names the cluster by the roster it was founded with.
    pub(super) founding: RosterId,
    /// How many rosters were settled before `base`; 0 while it knows none.
    pub(super) epoch: u64,
    base: Roster,
    /// The same as `base` when settled.
    target: Roster,
    stage: Stage,
    /// Whether this node turned to the target by itself; else it was told of it, and
    /// cannot know what an earlier life of it has said.
    turned_here: bool,
    attempt: u32,
    /// See [`Membership::copying`].
    copying: u64,
    /// The version of the membership from which on all this is so.
    version: u64,
    /// Up to which version the cores follow, and whether they hold all they own by it.
    followed: (u64, bool),
    /// The version that was reviewed last: without a change there is nothing to go on for.
    reviewed: u64,
    draining: bool,
    /// Since when most of the roster is dead.
    majority_dead_since_ms: Option<u64>,
    /// Of whom this node has heard since its process stood still for so long that the others
    /// may have gone on; nothing once they are more than half of the roster, or it never did.
    stalled: Option<BTreeSet<Arc<str>>>,
    fenced: bool,
}

impl Placing {
    pub(super) fn new() -> Self {
        let nobody = Roster::named(RosterId::default(), []);
        Self {
            founding: RosterId::default(),
            epoch: 0,
            base: nobody.clone(),
            target: nobody,
            stage: Stage::Settled,
            turned_here: false,
            attempt: 0,
            copying: 0,
            version: 0,
            followed: (0, false),
            reviewed: 0,
            draining: false,
            majority_dead_since_ms: None,
            stalled: None,
            fenced: false,
        }
    }
}

impl Membership {
    /// The roster this node reads from.
    pub fn reading(&self) -> &Roster {
        match self.placing.stage {
            Stage::Switched => &self.placing.target,
            Stage::Joint | Stage::Ready | Stage::Settled => &self.placing.base,
        }
    }

    /// The roster this node writes to besides.
    pub fn also(&self) -> Option<&Roster> {
        match self.placing.stage {
            Stage::Joint | Stage::Ready => Some(&self.placing.target),
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

    /// Stands for the nodes that are all known to write to the new roster too, so that what
    /// is copied now counts; 0 while there is one that is not known to. It is another when one
    /// of them has turned away meanwhile, though it came back.
    pub fn copying(&self) -> u64 {
        self.placing.copying
    }

    /// Names the roster that this node comes from.
    pub(super) fn base_id(&self) -> RosterId {
        self.placing.base.id
    }

    /// Whether all cores stand where this node stands.
    pub fn is_followed(&self) -> bool {
        self.placing.followed.0 >= self.placing.version
    }

    /// Whether this node has settled in the roster that the members make up now.
    pub fn placed(&self) -> bool {
        self.placing.stage == Stage::Settled && self.wanted() == *self.placing.base.members
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

    /// Whether all that are there know of the same members that they are going to leave: then
    /// no two leave that could not be spared together, neither knowing of the other. And
    /// whether they have come as far as this node: nobody waits for what only it could say.
    pub fn leavers_agreed(&self) -> bool {
        let leavers = self.leavers();
        let agrees = |member: &Member| {
            member.standing.leavers == leavers && member.standing.epoch >= self.placing.epoch
        };
        let mut others = self.others_needed();
        others.all(|member| !member.state.is_probed() || agrees(member))
            || planted(Mutation::LeaveUnannounced)
    }

    /// Stands for the set of those that are known to be going to leave.
    fn leavers(&self) -> u64 {
        let others = self.others_needed();
        let others = others.filter(|member| member.standing.draining);
        let me = self.placing.draining.then_some(&self.me);
        others.chain(me).fold(0, |set, member| {
            set ^ splitmix64(name_of(member) ^ member.standing.life)
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
        let roster = Roster::founded(here.map(|member| Arc::clone(&member.identity.id)));
        self.joined = true;
        self.placing.founding = roster.id;
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
        self.placing.copying = 0;
        self.placing.turned_here = false;
        self.changed_here();
    }

    /// This node stands elsewhere, and says so once its cores do.
    fn changed_here(&mut self) {
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
            let others = others.map(|update| Arc::clone(&update.identity.id));
            sender.into_iter().chain(others)
        };
        let base = Roster::named(message.roster, marked(BASE));
        let target = Roster::after(base.id, marked(TARGET));
        let changes = target.members != base.members;
        if base.members.is_empty() || target.members.is_empty() {
            return;
        }
        let stage = match changes {
            false => Stage::Settled,
            true if message.marks & SWITCHED != 0 => Stage::Switched,
            true if message.marks & READY != 0 => Stage::Ready,
            true => Stage::Joint,
        };
        if self.joined && !self.is_behind(message, &base, stage, &target) {
            return;
        }
        self.joined = true;
        self.placing.founding = message.founding;
        self.settle(message.epoch, base);
        if changes {
            self.enter(stage, target);
        }
    }

    /// Whether another node, which is in this stage on the way to this roster, is ahead.
    fn is_behind(&self, message: &Message, base: &Roster, stage: Stage, target: &Roster) -> bool {
        let rank = |roster: &Roster| (roster.members.len(), roster.id);
        let own = &self.placing;
        if message.founding != own.founding {
            let theirs = (base.members.len(), message.founding);
            return theirs > (own.base.members.len(), own.founding);
        }
        if (message.epoch, base.id) != (own.epoch, own.base.id) {
            return (message.epoch, base.id) > (own.epoch, own.base.id);
        }
        match (stage, own.stage) {
            (Stage::Switched, Stage::Switched) => rank(target) > rank(&own.target),
            (Stage::Switched, _) => true,
            // It was told to be Joint, and an earlier life of it may have been Ready.
            (Stage::Ready, Stage::Joint) => !own.turned_here,
            _ => false,
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
        let is_me = *id == *self.me.identity.id;
        mark(BASE, base.contains(id))
            | mark(TARGET, target.contains(id))
            | mark(SWITCHED, is_me && *stage == Stage::Switched)
            | mark(READY, is_me && *stage == Stage::Ready)
    }

    /// Whether [`Membership::review`] has nothing to do before something changes.
    pub(super) fn is_at_ease(&self) -> bool {
        self.placing.stage == Stage::Settled
            && self.placing.reviewed == self.version
            && self.placing.majority_dead_since_ms.is_none()
            && !self.placing.fenced
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
        let Placing {
            epoch,
            stage,
            copying,
            ..
        } = self.placing;
        let (base, target) = (self.placing.base.id, self.placing.target.id);
        match stage {
            Stage::Settled if wanted == *self.placing.base.members => return false,
            Stage::Settled if planted(Mutation::SkipJointStage) => {
                self.settle(epoch + 1, Roster::after(base, wanted));
            }
            Stage::Settled => self.turn(wanted),
            Stage::Joint | Stage::Ready
                if wanted != *self.placing.target.members && self.may_turn() =>
            {
                self.turn(wanted);
            }
            Stage::Joint | Stage::Ready if copying != self.companions() => {
                self.placing.copying = self.companions();
                self.changed_here();
            }
            Stage::Joint | Stage::Ready => {
                let may_go_on = |standing: &Standing| {
                    standing.reached(epoch, target, stage)
                        && standing.has_copied(epoch, target, copying)
                };
                let newcomers_are_there = stage == Stage::Ready || self.newcomers_have_copied();
                if copying == 0
                    || !newcomers_are_there
                    || !self.all_needed(may_go_on)
                    || !self.sees_majority()
                {
                    return false;
                }
                self.placing.stage = match stage {
                    Stage::Joint => Stage::Ready,
                    _ => Stage::Switched,
                };
                self.changed_here();
            }
            Stage::Switched => {
                if !self.all_needed(|standing| standing.reached(epoch, target, Stage::Switched)) {
                    return false;
                }
                self.settle(epoch.saturating_add(1), self.placing.target.clone());
            }
        }
        true
    }

    /// Goes to another roster, or back to the one it comes from.
    fn turn(&mut self, wanted: Vec<Arc<str>>) {
        let base = self.placing.base.clone();
        if wanted == *base.members {
            self.enter(Stage::Settled, base);
            return;
        }
        self.placing.attempt += 1;
        self.enter(Stage::Joint, Roster::after(base.id, wanted));
        self.placing.turned_here = true;
    }

    /// Says where this node stands, once its cores stand there.
    fn publish(&mut self, rng: &mut Rng) {
        let Placing {
            epoch,
            stage,
            attempt,
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
            standing = Standing {
                epoch,
                target: self.placing.target.id,
                stage,
                attempt,
                holding: followed.1 && (copying != 0 || !stage.reads_old()),
                copying,
                ..standing
            };
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

    /// Whether all that have to come along, this node among them, have come so far.
    fn all_needed(&self, has: impl Fn(&Standing) -> bool) -> bool {
        let others = &mut self.others_needed();
        has(&self.me.standing) && others.all(|member| has(&member.standing))
    }

    /// The other members without whom this node does not go on: those that serve, those of the
    /// old roster that may have begun to, and those that are dead and may serve somewhere all
    /// the same. When the grace is over these are removed, and by then they serve no quorums.
    fn others_needed(&self) -> impl Iterator<Item = &Member> {
        let others = self.others.values().map(|peer| &peer.member);
        others.filter(|member| {
            let serves =
                member.standing.serves() || self.placing.base.contains(&member.identity.id);
            serves && member.state != State::Left && !member.said_goodbye()
        })
    }

    /// See [`Membership::copying`].
    fn companions(&self) -> u64 {
        let (epoch, target) = (self.placing.epoch, self.placing.target.id);
        if !self.all_needed(|standing| standing.reached(epoch, target, Stage::Joint)) {
            return 0;
        }
        let all = self.others_needed().chain(std::iter::once(&self.me));
        let companions = all.fold(0, |set, member| {
            let Standing { life, attempt, .. } = member.standing;
            set ^ splitmix64(name_of(member) ^ life ^ u64::from(attempt) << 40)
        });
        companions.max(1)
    }

    /// Whether each member of the new roster that is not in the old one is there, and holds
    /// what it will own: going on without would leave keys with an owner less.
    fn newcomers_have_copied(&self) -> bool {
        let Placing {
            epoch,
            base,
            target,
            copying,
            ..
        } = &self.placing;
        let has_copied = |id: &Arc<str>| match self.others.get(id) {
            Some(peer) => {
                let Member {
                    state, standing, ..
                } = &peer.member;
                state.is_probed() && standing.has_copied(*epoch, target.id, *copying)
            }
            None => *id == self.me.identity.id,
        };
        let mut newcomers = target.members.iter().filter(|id| !base.contains(id));
        newcomers.all(has_copied)
    }

    /// Whether this node can go to another roster than its target: nobody can have switched.
    /// So it is when this node never said that it is Ready, in this life or, if it was told of
    /// the change, by what all others say that know this life; or when a member of the old
    /// roster has turned away, which never said it either.
    fn may_turn(&self) -> bool {
        let Placing {
            epoch,
            ref base,
            ref target,
            stage,
            turned_here,
            copying,
            ..
        } = self.placing;
        let is_joint = |standing: &Standing| {
            standing.reached(epoch, target.id, Stage::Joint)
                && standing.stage == Stage::Joint
                && standing.copying == copying
        };
        let never_ready =
            stage == Stage::Joint && (turned_here || copying != 0 && self.all_needed(is_joint));
        let turned = |member: &Member| {
            member.state.is_probed()
                && base.contains(&member.identity.id)
                && member.standing.serves()
                && member.standing.epoch == epoch
                && member.standing.target != target.id
        };
        never_ready || self.others_needed().any(turned)
    }

    /// Whether more than half of the roster is alive.
    pub(super) fn sees_majority(&self) -> bool {
        let base = &self.placing.base;
        let alive = self
            .members()
            .filter(|member| member.state == State::Alive && base.contains(&member.identity.id));
        alive.count() * 2 > base.members.len()
    }

    /// The process stood still: whoever else is on this machine may have as well. Under a new
    /// incarnation it can tell what was said since from what waited in its sockets.
    pub(super) fn stood_still(&mut self) {
        self.placing.stalled = Some(BTreeSet::new());
        self.me.incarnation = self.me.incarnation.saturating_add(1);
        self.mark_changed();
    }

    /// A member has told all it knows.
    pub(super) fn heard_all(&mut self, message: &Message) {
        let me = &self.me;
        let knows_me = message.updates.iter().any(|update| {
            update.identity.id == me.identity.id && update.incarnation >= me.incarnation
        });
        let Placing { base, stalled, .. } = &mut self.placing;
        if let Some(heard) = stalled
            && knows_me
            && base.contains(&message.from.id)
        {
            heard.insert(Arc::clone(&message.from.id));
            if (heard.len() + 1) * 2 > base.members.len() {
                *stalled = None;
            }
        }
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
        let is_over = |since| now_ms.saturating_sub(since) >= self.config.dead_grace_ms / 2;
        let stalled = self.placing.stalled.is_some() && base.members.len() > 1;
        let cut_off = since.is_some_and(is_over) && !planted(Mutation::IgnoreFence);
        let fenced = cut_off || stalled;
        self.placing.majority_dead_since_ms = since;
        if fenced != self.placing.fenced {
            self.placing.fenced = fenced;
            self.mark_changed();
        }
    }

    /// The members that, as they are, should share the partitions.
    fn wanted(&self) -> Vec<Arc<str>> {
        let base = &self.placing.base;
        let has_place = |member: &Member| base.contains(&member.identity.id);
        let is_me = |member: &Member| member.identity.id == self.me.identity.id;
        let drains = |member: &Member| match is_me(member) {
            true => self.placing.draining,
            false => member.standing.draining,
        };
        let serves = |member: &Member| member.standing.serves() || is_me(member);
        let copies = self.config.replication.clamp(1, base.members.len().max(1));
        let spare = copies - Consistency::Quorum.needed(copies);
        let away =
            |member: &&Member| has_place(member) && (member.state == State::Dead || drains(member));
        let leaves = |member: &Member| member.state.is_probed() && drains(member);
        let takes_over =
            |member: &Member| member.state == State::Alive && serves(member) && !drains(member);
        let crowded = self.members().filter(away).count() > spare
            && self.members().any(leaves)
            && self.members().any(takes_over)
            && self.sees_majority();
        let is_wanted = |member: &&Member| match member.state {
            State::Left => false,
            // Without a goodbye it is only away for now.
            State::Dead if !member.said_goodbye() => has_place(member),
            _ if drains(member) => has_place(member) && !crowded,
            State::Dead => has_place(member),
            State::Alive | State::Suspect => has_place(member) || serves(member),
        };
        let wanted = self.members().filter(is_wanted);
        let wanted: Vec<_> = wanted
            .map(|member| Arc::clone(&member.identity.id))
            .collect();
        match wanted.is_empty() {
            true => base.members.to_vec(),
            false => wanted,
        }
    }
}

fn name_of(member: &Member) -> u64 {
    xxhash_rust::xxh3::xxh3_64(member.identity.id.as_bytes())
}

/// A member of the sender's old roster.
const BASE: u8 = 1;
/// A member of the sender's new roster.
const TARGET: u8 = 2;
/// The sender itself, when it reads from the new roster.
const SWITCHED: u8 = 4;
/// The sender itself, when it is ready to.
const READY: u8 = 8;
/// All the marks there are.
pub(super) const MARKS: u8 = BASE | TARGET | SWITCHED | READY;

fn mark(mark: u8, is_set: bool) -> u8 {
    if is_set { mark } else { 0 }
}
