//! Joining and dissemination: SWIM section 4.1, and exchanges of everything beside it.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{
    ACTIONS_MAX, Action, Kind, Member, Membership, Message, PIGGYBACK_MAX, STRANGER_HEARTBEATS,
    Seed, State, Update,
};
use crate::cluster::rng::Rng;

impl Membership {
    pub(super) fn knock_at_seeds(&mut self, rng: &mut Rng) {
        let alone = !self
            .others
            .values()
            .any(|peer| peer.member.state.is_placed());
        let all = alone || !self.joined;
        if !all && self.now_ms < self.next_strangers_ms {
            return;
        }
        let jitter_ms = rng.below(usize::try_from(self.config.heartbeat_ms).unwrap_or(usize::MAX));
        self.next_strangers_ms = self
            .heartbeats_from_now(STRANGER_HEARTBEATS)
            .saturating_add(jitter_ms as u64);
        let doors: Vec<Arc<str>> = self
            .seeds
            .iter()
            .filter(|seed| all || self.is_stranger(seed))
            .map(|seed| Arc::clone(&seed.address))
            .collect();
        for address in doors {
            let message = self.compose_everything(Kind::Gossip);
            self.post(address, message);
        }
    }

    pub(super) fn is_stranger(&self, seed: &Seed) -> bool {
        !self.knows(seed, State::is_placed)
    }

    pub(super) fn is_met(&self, seed: &Seed) -> bool {
        self.knows(seed, |state| state == State::Alive)
    }

    fn knows(&self, seed: &Seed, in_state: impl Fn(State) -> bool) -> bool {
        let mut members = self.others.values().map(|peer| &peer.member);
        members.any(
            |Member {
                 identity, state, ..
             }| {
                in_state(*state)
                    && (identity.peer_address == seed.address
                        || seed.id.as_ref() == Some(&identity.id))
            },
        )
    }

    /// Whether this node may take those it has met for its cluster: all seeds, or after a
    /// while most of those that have ids.
    pub(super) fn look_for_cluster(&mut self) {
        if self.joined {
            return;
        }
        let knows_it = |member: &Member| member.state.is_probed() && member.standing.serves();
        if self.others.values().any(|peer| knows_it(&peer.member)) {
            return;
        }
        let (met, seeds) = self.seeds_met();
        let waited_ms = self.now_ms.saturating_sub(self.started_ms);
        if met == seeds || waited_ms >= self.config.join_timeout_ms && self.met_most() {
            self.found();
        }
    }

    fn met_most(&self) -> bool {
        let named = || self.seeds.iter().filter(|seed| seed.id.is_some());
        let met = named().filter(|seed| self.is_met(seed)).count();
        (met + 1) * 2 > named().count() + 1
    }

    pub(super) fn gossip(&mut self, rng: &mut Rng) {
        // Kept even, as rounds are: then both are due in one tick where they are as long.
        let interval_ms = self.config.gossip_interval_ms;
        self.next_gossip_ms = self.next_gossip_ms.saturating_add(interval_ms);
        if self.next_gossip_ms <= self.now_ms {
            self.next_gossip_ms = self.now_ms.saturating_add(interval_ms);
        }
        let mut ids = self.ids_where(State::is_probed);
        if ids.is_empty() {
            return;
        }
        let id = ids.swap_remove(rng.below(ids.len()));
        let Some(peer) = self.others.get(&id) else {
            return;
        };
        let address = Arc::clone(&peer.member.identity.peer_address);
        let message = self.compose_everything(Kind::Gossip);
        self.post(address, message);
    }

    /// Sends to a member what it is to know first: what is believed of it, and of `subject`.
    pub(super) fn send(&mut self, to: &Arc<str>, kind: Kind, subject: Option<&Arc<str>>) {
        let Some(peer) = self.others.get(to) else {
            return;
        };
        let address = Arc::clone(&peer.member.identity.peer_address);
        let message = match subject {
            Some(subject) => self.compose(kind, &[to, subject]),
            None => self.compose(kind, &[to]),
        };
        self.post(address, message);
    }

    pub(super) fn post(&mut self, to: Arc<str>, message: Message) {
        if self.outgoing.len() < ACTIONS_MAX {
            let message = Box::new(message);
            self.outgoing.push_back(Action::Send { to, message });
        } else {
            self.counters.messages_dropped += 1;
        }
    }

    /// A message with what is believed of the members `first`, and news.
    pub(super) fn compose(&mut self, kind: Kind, first: &[&Arc<str>]) -> Message {
        let mut told: Vec<_> = self
            .rumors
            .iter()
            .filter(|(id, _)| !first.contains(id))
            .map(|(id, rumor)| (rumor.told, Reverse(rumor.version), Arc::clone(id)))
            .collect();
        told.sort_unstable();
        told.truncate(PIGGYBACK_MAX.saturating_sub(first.len()));

        let tellings_max = self.tellings_max();
        for (_, _, id) in &told {
            if let Some(rumor) = self.rumors.get_mut(id) {
                rumor.told += 1;
                if rumor.told >= tellings_max {
                    self.rumors.remove(id);
                }
            }
        }
        let ids = first
            .iter()
            .copied()
            .chain(told.iter().map(|(_, _, id)| id));
        let updates = ids
            .filter_map(|id| self.others.get(id))
            .map(|peer| peer.member.to_update());
        self.message(kind, updates.collect())
    }

    pub(super) fn compose_everything(&self, kind: Kind) -> Message {
        let members = self.others.values().map(|peer| &peer.member);
        let updates = members.map(|member| Update {
            marks: self.marks(&member.identity.id),
            ..member.to_update()
        });
        self.message(kind, updates.collect())
    }

    pub(super) fn message(&self, kind: Kind, updates: Vec<Update>) -> Message {
        Message {
            from: self.me.identity.clone(),
            incarnation: self.me.incarnation,
            joined: self.joined,
            standing: self.me.standing,
            founding: self.placing.founding,
            epoch: self.placing.epoch,
            roster: self.base_id(),
            marks: self.marks(&self.me.identity.id),
            cleared: self.cleared,
            kind,
            updates,
        }
    }

    /// How often a rumor is told: ⌈3 log₂(n + 1)⌉ times for n members, by which it has
    /// reached all with high probability.
    pub(super) fn tellings_max(&self) -> u32 {
        let members = self
            .members()
            .filter(|member| member.state.is_placed())
            .count() as u64;
        (members + 1)
            .saturating_pow(3)
            .next_power_of_two()
            .trailing_zeros()
    }
}
