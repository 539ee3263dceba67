//! Beliefs: SWIM section 4.2.

use std::sync::Arc;

use super::{
    DEAD_HEARTBEATS, Kind, LEFT_MEMORY_MS, MEMBERS_MAX, Member, Membership, Message, Peer, Rumor,
    SUSPECT_HEARTBEATS, State, Update, later,
};
use crate::cluster::rng::Rng;
use crate::mutation::{Mutation, planted};

impl Membership {
    /// Any message is news of its sender, at first hand. Tells whether it is a sign of life
    /// of the member known here: not when the sender is outdated, or another with its id.
    pub(super) fn hear(&mut self, message: &Message, rng: &mut Rng) -> bool {
        let (from, incarnation) = (&message.from, message.incarnation);
        let state = match message.kind {
            Kind::Leave => State::Left,
            Kind::Away => State::Dead,
            _ => State::Alive,
        };
        self.learn(
            Update {
                identity: from.clone(),
                state,
                incarnation,
                standing: message.standing,
                marks: message.marks,
            },
            rng,
        );
        if from.id == self.me.identity.id {
            return false;
        }
        match self.others.get_mut(&from.id) {
            Some(peer)
                if peer.member.incarnation == incarnation && peer.member.identity == *from =>
            {
                peer.silent_since_ms = self.now_ms;
                if message.kind == Kind::Ping {
                    peer.pinged_ms = Some(self.now_ms);
                }
                true
            }
            _ => false,
        }
    }

    pub(super) fn learn(&mut self, update: Update, rng: &mut Rng) {
        if update.identity.id == self.me.identity.id {
            self.answer_for_me(update);
            return;
        }
        let id = Arc::clone(&update.identity.id);
        let was = self.state_of(&id);
        match was {
            None => self.admit(update),
            Some(_) => {
                self.note_standing(&update);
                self.revise(update);
            }
        }
        // A newcomer gets a place by chance among those still to be probed (section 4.3).
        let is_probed = self.state_of(&id).is_some_and(State::is_probed);
        if is_probed && !was.is_some_and(State::is_probed) && !self.order.contains(&id) {
            let place = rng.below(self.order.len() + 1);
            self.order.insert(place, id);
        }
    }

    fn note_standing(&mut self, update: &Update) {
        if let Some(peer) = self.others.get_mut(&update.identity.id)
            && update.standing.is_newer_than(&peer.member.standing)
        {
            peer.member.standing = update.standing;
            self.spread(Arc::clone(&update.identity.id));
        }
    }

    /// Defends this node against what is said of it, by an incarnation that outranks it.
    pub(super) fn answer_for_me(&mut self, update: Update) {
        // A clock that stepped back between two lives of this node.
        if update.standing.life > self.me.standing.life {
            self.me.standing.life = update.standing.life.saturating_add(1);
        }
        let is_alive = update.state == State::Alive;
        let is_me = update.identity == self.me.identity;
        let is_known = update.incarnation == self.me.incarnation && is_alive && is_me;
        if update.incarnation < self.me.incarnation || is_known {
            return;
        }
        if planted(Mutation::ForgetRefutation) {
            return;
        }
        if is_alive && !is_me {
            self.counters.id_conflicts += 1;
        }
        // No rumor is needed: every message states its sender's incarnation.
        self.me.incarnation = update.incarnation.saturating_add(1);
        self.mark_changed();
    }

    pub(super) fn admit(&mut self, update: Update) {
        if update.state == State::Left && update.marks == 0 {
            // Or those that left would be told from one to the other for ever.
            return;
        }
        if self.others.len() + 1 >= MEMBERS_MAX {
            self.counters.members_refused += 1;
            return;
        }
        let id = Arc::clone(&update.identity.id);
        self.count_entry(None, update.state);
        let peer = Peer {
            member: Member::new(update, self.now_ms),
            silent_since_ms: self.now_ms,
            pinged_ms: None,
            refutable_until_ms: self.heartbeats_from_now(SUSPECT_HEARTBEATS),
        };
        self.others.insert(Arc::clone(&id), peer);
        self.spread(id);
    }

    pub(super) fn revise(&mut self, update: Update) {
        let now_ms = self.now_ms;
        let refutable_until_ms = self.heartbeats_from_now(SUSPECT_HEARTBEATS);
        let Some(peer) = self.others.get_mut(&update.identity.id) else {
            return;
        };
        let member = &mut peer.member;
        let was = member.state;
        if (update.incarnation, update.state) <= (member.incarnation, was) {
            return;
        }
        if update.incarnation > member.incarnation {
            member.incarnation = update.incarnation;
            member.identity = update.identity;
        }
        member.enter(update.state, now_ms);
        match update.state {
            // Only the member itself can have raised its incarnation.
            State::Alive => peer.silent_since_ms = now_ms,
            State::Suspect => peer.refutable_until_ms = refutable_until_ms,
            State::Dead | State::Left => {}
        }
        let id = Arc::clone(&member.identity.id);
        self.count_entry(Some(was), update.state);
        self.spread(id);
    }

    /// This node's own finding about a member.
    pub(super) fn declare(&mut self, id: &str, state: State) {
        if let Some(peer) = self.others.get(id) {
            self.revise(Update {
                state,
                ..peer.member.to_update()
            });
        }
    }

    pub(super) fn suspect(&mut self, id: &str) {
        self.declare(id, State::Suspect);
        // The round that failed was the first part of its time to be heard.
        let until_ms = later(
            self.round_started_ms,
            self.config.heartbeat_ms,
            SUSPECT_HEARTBEATS,
        );
        if let Some(peer) = self.others.get_mut(id) {
            peer.refutable_until_ms = until_ms;
        }
    }

    pub(super) fn count_entry(&mut self, was: Option<State>, is: State) {
        match is {
            _ if was == Some(is) => {}
            State::Suspect => self.counters.nodes_suspect += 1,
            State::Dead => self.counters.nodes_dead += 1,
            State::Left if was == Some(State::Dead) => self.counters.nodes_removed += 1,
            State::Alive | State::Left => {}
        }
    }

    pub(super) fn run_out_timers(&mut self) {
        let now_ms = self.now_ms;
        self.errands.retain(|errand| errand.until_ms > now_ms);
        let may_remove = self.sees_majority();
        let mut verdicts = Vec::new();
        for (id, peer) in &self.others {
            let in_state_ms = now_ms.saturating_sub(peer.member.since_ms);
            let verdict = match peer.member.state {
                State::Suspect
                    if now_ms >= peer.refutable_until_ms
                        && self.heartbeats_passed(DEAD_HEARTBEATS, peer.silent_since_ms) =>
                {
                    Some(State::Dead)
                }
                State::Dead if may_remove && in_state_ms >= self.config.dead_grace_ms => {
                    Some(State::Left)
                }
                State::Left if in_state_ms >= LEFT_MEMORY_MS && !self.may_own(id) => None,
                _ => continue,
            };
            verdicts.push((Arc::clone(id), verdict));
        }
        for (id, verdict) in verdicts {
            match verdict {
                Some(state) => self.declare(&id, state),
                None => self.forget(&id),
            }
        }
    }

    pub(super) fn forget(&mut self, id: &str) {
        self.others.remove(id);
        self.rumors.remove(id);
        self.mark_changed();
    }

    pub(super) fn spread(&mut self, id: Arc<str>) {
        self.mark_changed();
        self.rumors.insert(
            id,
            Rumor {
                told: 0,
                version: self.version,
            },
        );
    }

    pub(super) fn mark_changed(&mut self) {
        self.version += 1;
        self.changed = true;
    }
}
