//! Probing: SWIM sections 3.1 and 4.3.

use std::sync::Arc;

use super::{
    DEAD_PING_HEARTBEATS, ERRANDS_MAX, Errand, Kind, Membership, PROBES_PER_ROUND, Probe, Progress,
    SUSPECT_HEARTBEATS, State,
};
use crate::cluster::rng::Rng;

impl Membership {
    pub(super) fn start_round(&mut self, rng: &mut Rng) {
        let unanswered = std::mem::take(&mut self.round);
        self.rounds += 1;
        self.round_started_ms = self.now_ms;
        self.next_round_ms = self.next_round_ms.saturating_add(self.config.heartbeat_ms);
        if self.next_round_ms <= self.now_ms {
            self.next_round_ms = self.heartbeats_from_now(1);
        }
        for target in self.draw_targets(unanswered, rng) {
            self.send(&target, Kind::Ping, None);
            self.round.push(Probe {
                target,
                progress: Progress::Pinged,
            });
        }
        if self.rounds.is_multiple_of(DEAD_PING_HEARTBEATS) {
            self.ping_the_dead(rng);
        }
    }

    /// Who is probed: first those that did not answer, until they do or are suspect, then
    /// the next in turn, but for those that have pinged this node just now: of two that probe
    /// each other one ping per heartbeat tells both.
    pub(super) fn draw_targets(&mut self, unanswered: Vec<Probe>, rng: &mut Rng) -> Vec<Arc<str>> {
        let mut targets: Vec<Arc<str>> = unanswered
            .into_iter()
            .map(|probe| probe.target)
            .filter(|id| self.state_of(id) == Some(State::Alive))
            .collect();
        let mut may_draw_anew = true;
        while targets.len() < PROBES_PER_ROUND {
            match self.order.pop() {
                Some(id) => {
                    let probed = self.state_of(&id).is_some_and(State::is_probed);
                    if probed && !targets.contains(&id) && !self.has_pinged_just_now(&id) {
                        self.count_silence_anew(&id);
                        targets.push(id);
                    }
                }
                None if may_draw_anew => {
                    may_draw_anew = false;
                    self.order = self.ids_where(State::is_probed);
                    rng.shuffle(&mut self.order);
                }
                None => break,
            }
        }
        targets
    }

    /// Whether a member that is alive has pinged this node within half a heartbeat: of two that
    /// probe each other exactly one finds that, however their rounds lie. Before silence counts
    /// ([`SUSPECT_HEARTBEATS`]) it is probed again: what fails is found at most half a
    /// heartbeat later.
    ///
    /// Who is not pinged hears of this node by its answers only, and if those are lost or late, by
    /// gossip and by relays. So it is pinged all the same where there are no relays or gossip is
    /// rarer than heartbeats.
    fn has_pinged_just_now(&self, id: &str) -> bool {
        let config = &self.config;
        let is_heard_otherwise =
            config.indirect_probes > 0 && config.gossip_interval_ms <= config.heartbeat_ms;
        is_heard_otherwise
            && self.others.get(id).is_some_and(|peer| {
                let passed_ms = |since_ms| self.now_ms.saturating_sub(since_ms);
                peer.member.state == State::Alive
                    && (peer.pinged_ms)
                        .is_some_and(|at| passed_ms(at) < self.config.heartbeat_ms / 2)
            })
    }

    /// In a large cluster a member's turn comes rarely. Had it been probed in each round, it
    /// would have been heard a heartbeat ago: one lost probe after a long while without any
    /// is no reason to suspect it.
    pub(super) fn count_silence_anew(&mut self, id: &str) {
        let from_ms = self.now_ms.saturating_sub(self.config.heartbeat_ms);
        if let Some(peer) = self.others.get_mut(id)
            && peer.member.state == State::Alive
        {
            peer.silent_since_ms = peer.silent_since_ms.max(from_ms);
        }
    }

    /// Nobody expects an answer, but one that is back hears what is said of it and refutes.
    pub(super) fn ping_the_dead(&mut self, rng: &mut Rng) {
        let mut dead = self.ids_where(|state| state == State::Dead);
        rng.shuffle(&mut dead);
        for id in dead.into_iter().take(PROBES_PER_ROUND) {
            self.send(&id, Kind::Ping, None);
        }
    }

    /// Half a heartbeat without an answer: others may have a better way to the member.
    pub(super) fn ask_relays(&mut self, rng: &mut Rng) {
        let waited_ms = self.now_ms.saturating_sub(self.round_started_ms);
        if self.config.indirect_probes == 0 || waited_ms < self.config.heartbeat_ms / 2 {
            return;
        }
        for index in 0..self.round.len() {
            let Probe {
                target,
                progress: Progress::Pinged,
            } = &self.round[index]
            else {
                continue;
            };
            let target = Arc::clone(target);
            let mut relays = self.ids_where(|state| state == State::Alive);
            relays.retain(|id| *id != target);
            rng.shuffle(&mut relays);
            relays.truncate(self.config.indirect_probes);
            if relays.is_empty() {
                continue;
            }
            self.round[index].progress = Progress::RelaysAsked;
            for relay in relays {
                let kind = Kind::PingRequest {
                    target: Arc::clone(&target),
                };
                self.send(&relay, kind, Some(&target));
            }
        }
    }

    /// Counts the probes that nobody answered, suspects members that have also been silent
    /// for long, and leaves in the round those that failed.
    pub(super) fn judge_round(&mut self) {
        let mut round = std::mem::take(&mut self.round);
        round.retain(|probe| {
            probe.progress != Progress::Answered
                && self.state_of(&probe.target).is_some_and(State::is_placed)
        });
        for probe in &round {
            self.counters.heartbeat_failure += 1;
            if probe.progress == Progress::RelaysAsked {
                self.counters.indirect_probe_failure += 1;
            }
            let silent = self.others.get(&probe.target).is_some_and(|peer| {
                peer.member.state == State::Alive
                    && self.heartbeats_passed(SUSPECT_HEARTBEATS, peer.silent_since_ms)
            });
            if silent {
                self.suspect(&probe.target);
            }
        }
        self.round = round;
    }

    pub(super) fn take_ack(&mut self, target: &Arc<str>, incarnation: u64) {
        for probe in self
            .round
            .iter_mut()
            .filter(|probe| probe.target == *target)
        {
            if probe.progress != Progress::Answered {
                probe.progress = Progress::Answered;
                self.counters.heartbeat_success += 1;
            }
        }
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.errands)
            .into_iter()
            .partition(|errand| errand.target == *target);
        self.errands = waiting;
        for errand in done {
            let kind = Kind::IndirectAck {
                target: Arc::clone(target),
                incarnation,
            };
            self.send(&errand.asker, kind, Some(target));
        }
    }

    pub(super) fn run_errand(&mut self, target: Arc<str>, asker: Arc<str>) {
        if target == self.me.identity.id {
            let incarnation = self.me.incarnation;
            self.send(
                &asker,
                Kind::IndirectAck {
                    target,
                    incarnation,
                },
                None,
            );
            return;
        }
        if !self.state_of(&target).is_some_and(State::is_placed) {
            return;
        }
        let until_ms = self.heartbeats_from_now(1);
        let same = |errand: &&mut Errand| errand.target == target && errand.asker == asker;
        if let Some(errand) = self.errands.iter_mut().find(same) {
            errand.until_ms = until_ms;
        } else if self.errands.len() < ERRANDS_MAX {
            self.errands.push(Errand {
                target: Arc::clone(&target),
                asker,
                until_ms,
            });
        } else {
            self.counters.errands_refused += 1;
            return;
        }
        self.send(&target, Kind::Ping, None);
    }

    pub(super) fn take_indirect_ack(&mut self, target: &str, incarnation: u64) {
        let Some(peer) = self.others.get_mut(target) else {
            return;
        };
        if incarnation < peer.member.incarnation {
            // It will refute when it hears of the suspicion; until then this is no proof.
            return;
        }
        peer.silent_since_ms = self.now_ms;
        if peer.member.state == State::Suspect {
            self.counters.indirect_probe_refuted += 1;
        }
        let asked = |probe: &&mut Probe| {
            *probe.target == *target && probe.progress == Progress::RelaysAsked
        };
        if let Some(probe) = self.round.iter_mut().find(asked) {
            probe.progress = Progress::Answered;
            self.counters.indirect_probe_success += 1;
        }
    }
}
