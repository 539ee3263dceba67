use proptest::prelude::*;

use super::message::FORMAT;
use super::{Rng, *};

const HEARTBEAT_MS: u64 = 1000;
const TICK_MS: u64 = 100;
/// How long a message is under way, and the step of the virtual clock.
const LATENCY_MS: u64 = 20;
const START_MS: u64 = 1_000_000;
const GRACE_MS: u64 = 20 * HEARTBEAT_MS;
const CONFIG: Config = Config {
    heartbeat_ms: HEARTBEAT_MS,
    gossip_interval_ms: 2 * HEARTBEAT_MS,
    indirect_probes: 2,
    dead_grace_ms: GRACE_MS,
    clock_skew_ms: 10_000,
    join_timeout_ms: 5 * HEARTBEAT_MS,
    replication: 3,
};
/// What a round, a tick and the way of the news may add to a bound.
const SLACK_MS: u64 = 3 * HEARTBEAT_MS / 2;

fn arc(text: &str) -> Arc<str> {
    Arc::from(text)
}

fn identity(id: &str) -> Identity {
    identity_at(id, &format!("{id}:7000"))
}

fn identity_at(id: &str, address: &str) -> Identity {
    Identity {
        id: arc(id),
        peer_address: arc(address),
        client_address: arc("client:8080"),
    }
}

/// `address`, or `id@address`.
fn seed(text: &str) -> Seed {
    let (id, address) = text
        .rsplit_once('@')
        .map_or((None, text), |(id, address)| (Some(arc(id)), address));
    Seed {
        id,
        address: arc(address),
    }
}

struct Node {
    machine: Membership,
    rng: Rng,
    /// Neither ticks nor receives.
    stopped: bool,
}

struct Packet {
    from: Arc<str>,
    to: Arc<str>,
    message: Message,
}

/// Whether what the first address sends to the second is lost.
type Cut = dyn Fn(&str, &str) -> bool;

/// Machines by peer address, a virtual clock, and links that can be cut one way.
struct Net {
    now_ms: u64,
    nodes: BTreeMap<Arc<str>, Node>,
    under_way: Vec<Packet>,
    is_cut: Box<Cut>,
    loss_percent: usize,
    chance: Rng,
    trace: Vec<String>,
    /// Whether machines are left alone while they say that they have nothing to do.
    rests: bool,
    ticks: usize,
}

impl Net {
    fn new(seed: u64) -> Self {
        Self {
            now_ms: START_MS,
            nodes: BTreeMap::new(),
            under_way: Vec::new(),
            is_cut: Box::new(|_, _| false),
            loss_percent: 0,
            chance: Rng::new(seed),
            trace: Vec::new(),
            rests: true,
            ticks: 0,
        }
    }

    /// `count` nodes n0, n1, ... that all know of n0, and have met.
    fn joined(count: usize, config: Config) -> Self {
        let mut net = Self::new(1);
        for index in 0..count {
            net.start(config, identity(&format!("n{index}")), &["n0:7000"]);
        }
        net.run(3 * HEARTBEAT_MS);
        for index in 0..count {
            assert_eq!(net.believed_by(index), vec![State::Alive; count]);
        }
        net
    }

    fn start(&mut self, config: Config, me: Identity, seeds: &[&str]) {
        let address = Arc::clone(&me.peer_address);
        let seeds = seeds.iter().map(|address| seed(address)).collect();
        let machine = Membership::new(config, me, self.now_ms, seeds, self.now_ms);
        let rng = Rng::new(self.chance.next_u64());
        self.nodes.insert(
            address,
            Node {
                machine,
                rng,
                stopped: false,
            },
        );
    }

    fn run(&mut self, for_ms: u64) {
        for _ in 0..for_ms / LATENCY_MS {
            self.step();
        }
    }

    /// Runs until `done`; how long that took.
    fn run_until(&mut self, limit_ms: u64, done: impl Fn(&Self) -> bool) -> u64 {
        let from_ms = self.now_ms;
        while !done(self) {
            assert!(self.now_ms - from_ms < limit_ms, "not within {limit_ms} ms");
            self.step();
        }
        self.now_ms - from_ms
    }

    fn step(&mut self) {
        self.now_ms += LATENCY_MS;
        for packet in std::mem::take(&mut self.under_way) {
            self.deliver(packet);
        }
        if self.now_ms.is_multiple_of(TICK_MS) {
            for node in self.nodes.values_mut().filter(|node| !node.stopped) {
                // It was last told the time a step ago.
                let is_quiet = node.machine.quiet_ms().is_some_and(|ms| ms > LATENCY_MS);
                let rests = self.rests && is_quiet;
                if !rests {
                    self.ticks += 1;
                    node.machine.tick(self.now_ms, &mut node.rng);
                }
            }
        }
        self.collect();
    }

    fn deliver(&mut self, Packet { from, to, message }: Packet) {
        let lost = self.chance.below(100) < self.loss_percent;
        if lost || (self.is_cut)(&from, &to) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&to) else {
            return;
        };
        if node.stopped {
            return;
        }
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let message = Message::decode(&bytes).unwrap();
        self.trace
            .push(format!("{} {from} {to} {:?}", self.now_ms, message.kind));
        if let Some(reply) = node.machine.receive(self.now_ms, &mut node.rng, message) {
            self.under_way.push(Packet {
                from: to,
                to: from,
                message: reply,
            });
        }
    }

    fn collect(&mut self) {
        for (address, node) in &mut self.nodes {
            // As the cores do, which here have nothing to copy.
            let version = node.machine.version();
            if !node.stopped {
                node.machine
                    .follow(self.now_ms, &mut node.rng, version, true);
            }
            while let Some(action) = node.machine.poll_action() {
                if let Action::Send { to, message } = action {
                    self.under_way.push(Packet {
                        from: Arc::clone(address),
                        to,
                        message: *message,
                    });
                }
            }
        }
    }

    fn cut(&mut self, is_cut: impl Fn(&str, &str) -> bool + 'static) {
        self.is_cut = Box::new(is_cut);
    }

    fn heal(&mut self) {
        self.cut(|_, _| false);
    }

    fn at(&self, address: &str) -> &Membership {
        &self.nodes[address].machine
    }

    fn machine(&self, index: usize) -> &Membership {
        self.at(&format!("n{index}:7000"))
    }

    fn node(&mut self, index: usize) -> &mut Node {
        self.nodes.get_mut(&*format!("n{index}:7000")).unwrap()
    }

    fn crash(&mut self, index: usize) {
        self.nodes.remove(&*format!("n{index}:7000"));
    }

    fn state(&self, observer: usize, id: &str) -> Option<State> {
        self.machine(observer)
            .members()
            .find(|member| &*member.identity.id == id)
            .map(|m| m.state)
    }

    fn believed_by(&self, observer: usize) -> Vec<State> {
        self.machine(observer)
            .members()
            .map(|member| member.state)
            .collect()
    }

    fn all_see(&self, observers: &[usize], id: &str, state: State) -> bool {
        observers
            .iter()
            .all(|observer| self.state(*observer, id) == Some(state))
    }

    fn all_alive(&self, count: usize) -> bool {
        (0..count).all(|observer| self.believed_by(observer) == vec![State::Alive; count])
    }
}

/// Whether the addresses lie on two sides: nodes below n`boundary`, and the others.
fn is_across(boundary: usize, a: &str, b: &str) -> bool {
    let side = |address: &str| {
        address[1..]
            .split(':')
            .next()
            .and_then(|n| n.parse::<usize>().ok())
            .unwrap()
            < boundary
    };
    side(a) != side(b)
}

fn ping(from: Identity, incarnation: u64) -> Message {
    Message {
        from,
        incarnation,
        joined: true,
        standing: Standing::default(),
        founding: RosterId(0),
        epoch: 0,
        roster: RosterId(0),
        marks: 0,
        cleared: Version::ZERO,
        kind: Kind::Ping,
        updates: Vec::new(),
    }
}

fn lone(id: &str) -> Membership {
    Membership::new(CONFIG, identity(id), START_MS, Vec::new(), START_MS)
}

fn hear(machine: &mut Membership, message: Message) -> Option<Message> {
    machine.receive(START_MS, &mut Rng::new(7), message)
}

fn tell(machine: &mut Membership, updates: Vec<Update>) -> Option<Message> {
    hear(
        machine,
        Message {
            updates,
            ..ping(identity("teller"), 1)
        },
    )
}

fn update(id: &str, state: State, incarnation: u64) -> Update {
    Update {
        identity: identity(id),
        state,
        incarnation,
        standing: Standing::default(),
        marks: 0,
    }
}

#[test]
fn a_tick_while_all_is_quiet_changes_nothing() {
    let run = |rests| {
        let mut net = Net::new(7);
        net.rests = rests;
        for index in 0..5 {
            net.start(CONFIG, identity(&format!("n{index}")), &["n0:7000"]);
        }
        net.run(20 * HEARTBEAT_MS);
        let ticks = net.ticks;
        net.crash(3);
        net.run(2 * GRACE_MS);
        net.start(CONFIG, identity("n3"), &["n0:7000"]);
        net.loss_percent = 10;
        net.run(20 * HEARTBEAT_MS);
        (net.trace, ticks)
    };
    let ((trace, few), (always, many)) = (run(true), run(false));
    assert!(trace == always, "other messages were sent");
    assert!(few * 3 < many, "{few} ticks instead of {many}");
}

#[test]
fn what_is_cleared_in_the_future_is_refused_for_good() {
    let now = UnixMs(1_800_000_000_000);
    let mut machine = Membership::new(CONFIG, identity("a"), now.0, Vec::new(), now.0);
    let mut hear = |at: u64, cleared: Version| {
        let message = Message {
            cleared,
            ..ping(identity("b"), now.0)
        };
        machine.receive(at, &mut Rng::new(7), message);
        machine.cleared()
    };
    let hour = Version::at(now).later(3_600_000);
    assert_eq!(hear(now.0, hour), Version::ZERO);
    let within = Version::at(now).later(CONFIG.clock_skew_ms);
    assert_eq!(hear(now.0, within), within);
    assert_eq!(hear(now.0, Version::at(now)), within, "it only grows");
    let later = now.0 + 4_000_000;
    assert_eq!(
        hear(later, hour),
        within,
        "what was written since would be lost"
    );
    let newer = Version::at(UnixMs(later));
    assert_eq!(hear(later, newer), newer);
    assert_eq!(machine.counters().clears_refused, 1);
    assert!(!machine.clear(later, within), "a later one is cleared");
}

fn find<'a>(machine: &'a Membership, id: &str) -> Option<&'a Member> {
    machine.members().find(|member| &*member.identity.id == id)
}

/// Ticks through `for_ms` from where the machine's clock stands.
fn wait(machine: &mut Membership, rng: &mut Rng, for_ms: u64) {
    let until_ms = machine.clock.told().0 + for_ms;
    while machine.clock.told().0 < until_ms {
        machine.tick(machine.clock.told().0 + TICK_MS, rng);
    }
}

/// Tells every rumor until it is no longer news.
fn wear_out_rumors(machine: &mut Membership) {
    while !machine.rumors.is_empty() {
        machine.compose(Kind::Ack, &[]);
    }
}

fn sent_to(machine: &mut Membership, id: &str) -> Vec<Message> {
    let address = identity(id).peer_address;
    let sent = drain(machine)
        .into_iter()
        .filter_map(|action| match action {
            Action::Send { to, message } if to == address => Some(*message),
            _ => None,
        });
    sent.collect()
}

fn drain(machine: &mut Membership) -> Vec<Action> {
    std::iter::from_fn(|| machine.poll_action()).collect()
}

// Joining.

#[test]
fn nodes_meet_through_one_seed() {
    let mut net = Net::new(3);
    for index in 0..9 {
        net.start(CONFIG, identity(&format!("n{index}")), &["n4:7000"]);
    }
    net.run(3 * HEARTBEAT_MS);
    assert!(net.all_alive(9));
    assert!((0..9).all(|index| net.machine(index).joined()));
}

#[test]
fn seeds_that_name_the_node_itself_are_ignored() {
    let by_id = Seed {
        id: Some(arc("a")),
        address: arc("elsewhere:1"),
    };
    let mut machine = Membership::new(
        CONFIG,
        identity("a"),
        1,
        vec![by_id, seed("a:7000")],
        START_MS,
    );
    assert!(machine.joined());
    machine.tick(START_MS, &mut Rng::new(1));
    assert_eq!(drain(&mut machine), [Action::Changed]);
}

#[test]
fn a_message_that_led_back_to_its_sender_is_ignored() {
    let mut machine = lone("a");
    assert_eq!(hear(&mut machine, ping(identity("a"), START_MS)), None);
    assert_eq!(machine.counters().id_conflicts, 0);
    assert_eq!(machine.members().count(), 1);
}

#[test]
fn a_node_whose_seeds_are_silent_joins_alone_after_the_timeout_and_goes_on_knocking() {
    let mut net = Net::new(1);
    net.start(CONFIG, identity("n0"), &["n1:7000"]);
    net.run(CONFIG.join_timeout_ms - HEARTBEAT_MS);
    assert!(!net.machine(0).joined());
    net.run(2 * HEARTBEAT_MS);
    assert!(net.machine(0).joined());
    net.start(CONFIG, identity("n1"), &[]);
    net.run(3 * HEARTBEAT_MS / 2);
    assert!(net.all_alive(2));
}

/// Seeds of a cluster of `count` nodes, each with its id.
fn named_seeds(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("n{n}@n{n}:7000")).collect()
}

fn start_named(net: &mut Net, index: usize, seeds: &[String]) {
    let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
    net.start(CONFIG, identity(&format!("n{index}")), &seeds);
}

#[test]
fn nodes_that_start_together_know_their_cluster_once_all_are_there() {
    let (mut net, seeds) = (Net::new(1), named_seeds(5));
    for index in 0..4 {
        start_named(&mut net, index, &seeds);
    }
    net.run(2 * HEARTBEAT_MS);
    assert!((0..4).all(|index| !net.machine(index).joined()));
    assert_eq!(net.machine(0).seeds_met(), (3, 4));
    start_named(&mut net, 4, &seeds);
    net.run_until(3 * HEARTBEAT_MS / 2, |net| {
        (0..5).all(|index| net.machine(index).joined())
    });
    assert!(net.all_alive(5));
}

#[test]
fn most_of_the_named_seeds_found_a_cluster_after_the_timeout_and_fewer_never_do() {
    for (present, founds) in [(3, true), (2, false)] {
        let (mut net, seeds) = (Net::new(1), named_seeds(5));
        for index in 0..present {
            start_named(&mut net, index, &seeds);
        }
        net.run(CONFIG.join_timeout_ms - HEARTBEAT_MS);
        assert!((0..present).all(|index| !net.machine(index).joined()));
        net.run(10 * HEARTBEAT_MS);
        assert!((0..present).all(|index| net.machine(index).joined() == founds));
    }
}

#[test]
fn a_restarted_node_knows_its_cluster_when_one_that_does_has_told_it_of_all() {
    let (mut net, seeds) = (Net::new(1), named_seeds(5));
    for index in 0..5 {
        start_named(&mut net, index, &seeds);
    }
    net.run(3 * HEARTBEAT_MS);
    net.crash(0);
    let mut back = Membership::new(
        CONFIG,
        identity("n0"),
        net.now_ms,
        seeds.iter().map(|text| seed(text)).collect(),
        net.now_ms,
    );
    // A ping tells of its sender only.
    let rng = &mut Rng::new(1);
    back.receive(net.now_ms, rng, ping(identity("n1"), START_MS));
    assert!(!back.joined());
    let everything = net.machine(1).compose_everything(Kind::Gossip);
    // Neither does one that looks for its cluster itself know all.
    let unsure = Message {
        joined: false,
        ..everything.clone()
    };
    let few = Message {
        updates: Vec::new(),
        ..unsure
    };
    back.receive(net.now_ms, rng, few);
    assert!(!back.joined());
    back.receive(net.now_ms, rng, everything);
    assert!(back.joined());
    assert_eq!(back.members().count(), 5);
}

#[test]
fn halves_that_never_met_find_each_other_by_their_seeds() {
    let mut net = Net::new(1);
    net.cut(|a, b| is_across(2, a, b));
    for index in 0..4 {
        net.start(
            CONFIG,
            identity(&format!("n{index}")),
            &["n0:7000", "n2:7000"],
        );
    }
    net.run(20 * HEARTBEAT_MS);
    assert_eq!(net.machine(0).members().count(), 2);
    assert_eq!(net.machine(3).members().count(), 2);
    net.heal();
    net.run_until(15 * HEARTBEAT_MS, |net| net.all_alive(4));
}

// Failure detection.

#[test]
fn a_quiet_cluster_suspects_nobody() {
    let mut net = Net::joined(12, CONFIG);
    net.run(100 * HEARTBEAT_MS);
    assert!(net.all_alive(12));
    for index in 0..12 {
        let counters = net.machine(index).counters();
        assert_eq!((counters.nodes_suspect, counters.heartbeat_failure), (0, 0));
        assert!(counters.heartbeat_success >= 400);
    }
}

#[test]
fn a_crashed_node_is_suspect_after_three_and_dead_after_six_heartbeats_everywhere() {
    for count in [2, 3, 5, 12, 40] {
        let mut net = Net::joined(count, CONFIG);
        let victim = format!("n{}", count - 1);
        let rest: Vec<usize> = (0..count - 1).collect();
        net.crash(count - 1);
        let suspect_ms = net.run_until(60_000, |net| net.all_see(&rest, &victim, State::Suspect));
        let dead_ms =
            suspect_ms + net.run_until(60_000, |net| net.all_see(&rest, &victim, State::Dead));
        // Its last sign of life may be a round older than the crash.
        let earliest = |bound_ms: u64| bound_ms - HEARTBEAT_MS;
        let suspect = 3 * HEARTBEAT_MS;
        let dead = 6 * HEARTBEAT_MS;
        assert!(
            suspect_ms >= earliest(suspect) && suspect_ms <= suspect + SLACK_MS,
            "{suspect_ms}"
        );
        assert!(
            dead_ms >= earliest(dead) && dead_ms <= dead + SLACK_MS,
            "{dead_ms}"
        );
        assert_ne!(find(net.machine(0), &victim).unwrap().state, State::Left);
        assert_eq!(net.machine(0).counters().nodes_suspect, 1);
        assert_eq!(net.machine(0).counters().nodes_dead, 1);
    }
}

#[test]
fn a_pair_that_cannot_talk_is_kept_alive_by_indirect_probes() {
    let cut = |a: &str, b: &str| matches!((a, b), ("n0:7000", "n1:7000") | ("n1:7000", "n0:7000"));
    let mut net = Net::joined(4, CONFIG);
    net.cut(cut);
    net.run(60 * HEARTBEAT_MS);
    assert!(net.all_alive(4));
    for index in 0..4 {
        assert_eq!(net.machine(index).counters().nodes_suspect, 0);
    }
    assert!(net.machine(0).counters().indirect_probe_success >= 50);

    let mut net = Net::joined(
        4,
        Config {
            indirect_probes: 0,
            ..CONFIG
        },
    );
    net.cut(cut);
    net.run(60 * HEARTBEAT_MS);
    assert!(
        net.machine(0).counters().nodes_suspect > 0,
        "without relays it is suspected"
    );
}

#[test]
fn a_link_lossy_one_way_is_healed_by_indirect_probes() {
    let mut net = Net::joined(4, CONFIG);
    net.cut(|a, b| (a, b) == ("n0:7000", "n1:7000"));
    net.run(60 * HEARTBEAT_MS);
    assert!(net.all_alive(4));
    for index in 0..4 {
        assert_eq!(net.machine(index).counters().nodes_suspect, 0);
    }
}

#[test]
fn loss_of_a_tenth_of_all_messages_kills_nobody() {
    let mut net = Net::joined(8, CONFIG);
    net.loss_percent = 10;
    net.run(300 * HEARTBEAT_MS);
    for index in 0..8 {
        assert_eq!(net.machine(index).counters().nodes_dead, 0);
    }
    net.loss_percent = 0;
    net.run(10 * HEARTBEAT_MS);
    assert!(net.all_alive(8));
}

#[test]
fn one_lost_probe_is_no_suspicion_in_a_cluster_too_large_to_probe_each_round() {
    let mut net = Net::joined(30, CONFIG);
    net.run(20 * HEARTBEAT_MS);
    net.loss_percent = 100;
    net.run(3 * HEARTBEAT_MS / 2);
    net.loss_percent = 0;
    net.run(5 * HEARTBEAT_MS);
    for index in 0..30 {
        let counters = net.machine(index).counters();
        assert!(counters.heartbeat_failure > 0);
        assert_eq!(counters.nodes_suspect, 0);
    }
}

#[test]
fn a_paused_node_comes_back_alive_everywhere_and_blames_nobody() {
    let mut net = Net::joined(4, CONFIG);
    net.node(3).stopped = true;
    net.run(12 * HEARTBEAT_MS);
    assert!(net.all_see(&[0, 1, 2], "n3", State::Dead));
    net.node(3).stopped = false;
    net.run_until(2 * HEARTBEAT_MS, |net| net.all_alive(4));
    net.run(10 * HEARTBEAT_MS);
    assert!(net.all_alive(4));
    assert_eq!(net.machine(3).counters().nodes_suspect, 0);
    assert!(find(net.machine(3), "n3").unwrap().incarnation > START_MS);
}

#[test]
fn a_short_pause_is_refuted_before_it_is_death() {
    let mut net = Net::joined(4, CONFIG);
    net.node(3).stopped = true;
    net.run_until(60_000, |net| net.all_see(&[0, 1, 2], "n3", State::Suspect));
    net.node(3).stopped = false;
    net.run_until(2 * HEARTBEAT_MS, |net| net.all_alive(4));
    assert!((0..3).all(|index| net.machine(index).counters().nodes_dead == 0));
}

#[test]
fn a_suspicion_heard_of_leaves_three_heartbeats_to_refute_however_long_the_silence_before() {
    let mut machine = lone("a");
    let mut rng = Rng::new(1);
    tell(&mut machine, vec![update("b", State::Suspect, 5)]);
    machine.others.get_mut("b").unwrap().silent_since_ms = 0;
    wait(&mut machine, &mut rng, 3 * HEARTBEAT_MS - TICK_MS);
    assert_eq!(find(&machine, "b").unwrap().state, State::Suspect);
    wait(&mut machine, &mut rng, TICK_MS);
    assert_eq!(find(&machine, "b").unwrap().state, State::Dead);
}

#[test]
fn a_suspicion_of_ones_own_leaves_two_heartbeats_to_refute_however_long_the_silence_before() {
    let mut machine = lone("a");
    let mut rng = Rng::new(1);
    tell(
        &mut machine,
        (0..40)
            .map(|n| update(&format!("m{n}"), State::Alive, 1))
            .collect(),
    );
    let mut suspect_ms: BTreeMap<Arc<str>, u64> = BTreeMap::new();
    for _ in 0..60 * HEARTBEAT_MS / TICK_MS {
        wait(&mut machine, &mut rng, TICK_MS);
        for Member {
            identity,
            state,
            since_ms,
            ..
        } in machine.members()
        {
            match state {
                State::Suspect => {
                    suspect_ms.insert(Arc::clone(&identity.id), *since_ms);
                }
                State::Dead => assert!(since_ms - suspect_ms[&identity.id] >= 2 * HEARTBEAT_MS),
                _ => {}
            }
        }
    }
    assert_eq!(suspect_ms.len(), 41);
}

#[test]
fn a_suspect_that_others_hear_does_not_die() {
    let mut machine = lone("a");
    let mut rng = Rng::new(1);
    tell(&mut machine, vec![update("b", State::Suspect, 5)]);
    for _ in 0..10 {
        wait(&mut machine, &mut rng, HEARTBEAT_MS);
        let kind = Kind::IndirectAck {
            target: arc("b"),
            incarnation: 5,
        };
        let message = Message {
            kind,
            ..ping(identity("teller"), 1)
        };
        machine.receive(machine.clock.told().0, &mut rng, message);
    }
    assert_eq!(find(&machine, "b").unwrap().state, State::Suspect);
    assert_eq!(machine.counters().indirect_probe_refuted, 10);
}

#[test]
fn one_that_refuted_is_given_time_to_be_heard() {
    let mut machine = lone("a");
    let mut rng = Rng::new(1);
    tell(&mut machine, vec![update("b", State::Dead, 5)]);
    machine.others.get_mut("b").unwrap().silent_since_ms = 0;
    tell(&mut machine, vec![update("b", State::Alive, 6)]);
    wait(&mut machine, &mut rng, 5 * HEARTBEAT_MS / 2);
    assert_eq!(find(&machine, "b").unwrap().state, State::Alive);
}

#[test]
fn of_two_members_one_pings_the_other_in_each_heartbeat() {
    let frequent = Config {
        gossip_interval_ms: HEARTBEAT_MS,
        ..CONFIG
    };
    let without_relays = Config {
        indirect_probes: 0,
        ..frequent
    };
    // Both ping where the other would else be heard of too rarely if answers are lost.
    for (config, expected) in [(frequent, 20), (without_relays, 40), (CONFIG, 40)] {
        for apart_ms in [3 * TICK_MS, 7 * TICK_MS] {
            let mut net = Net::new(1);
            net.start(config, identity("n0"), &["n1:7000"]);
            net.run(apart_ms);
            net.start(config, identity("n1"), &["n0:7000"]);
            net.run(5 * HEARTBEAT_MS);
            assert!(net.all_alive(2));
            net.trace.clear();
            net.run(20 * HEARTBEAT_MS);
            let is_ping = |line: &&String| line.ends_with(" Ping");
            let pings = net.trace.iter().filter(is_ping).count();
            assert_eq!(pings, expected, "{apart_ms} ms apart");
            net.crash(1);
            let limit_ms = 4 * HEARTBEAT_MS + SLACK_MS;
            net.run_until(limit_ms, |net| net.state(0, "n1") == Some(State::Suspect));
        }
    }
}

#[test]
fn members_that_did_not_answer_are_probed_again_in_the_next_round() {
    let mut machine = lone("a");
    let mut rng = Rng::new(1);
    tell(
        &mut machine,
        (0..30)
            .map(|n| update(&format!("m{n}"), State::Alive, 1))
            .collect(),
    );
    let probed = |machine: &Membership| -> Vec<Arc<str>> {
        machine
            .round
            .iter()
            .map(|probe| Arc::clone(&probe.target))
            .collect()
    };
    wait(&mut machine, &mut rng, TICK_MS);
    let first = probed(&machine);
    assert_eq!(first.len(), PROBES_PER_ROUND);
    wait(&mut machine, &mut rng, HEARTBEAT_MS);
    assert_eq!(machine.counters().heartbeat_failure, 5);
    assert_eq!(probed(&machine), first);
}

#[test]
fn a_round_robin_probes_everyone_before_anyone_again() {
    let mut machine = lone("a");
    let mut rng = Rng::new(1);
    tell(
        &mut machine,
        (0..29)
            .map(|n| update(&format!("m{n}"), State::Alive, 1))
            .collect(),
    );
    let mut probed = Vec::new();
    for _ in 0..6 {
        wait(&mut machine, &mut rng, HEARTBEAT_MS);
        for probe in machine.round.drain(..) {
            probed.push(probe.target);
        }
    }
    probed.sort_unstable();
    probed.dedup();
    assert_eq!(probed.len(), 30, "teller and 29 others, five per round");
}

#[test]
fn a_request_to_ping_tells_what_is_believed_of_the_target() {
    let mut machine = lone("a");
    let mut rng = Rng::new(1);
    tell(&mut machine, vec![update("b", State::Suspect, 5)]);
    wear_out_rumors(&mut machine);
    wait(&mut machine, &mut rng, HEARTBEAT_MS - TICK_MS);
    let asked = sent_to(&mut machine, "teller");
    let asked = asked
        .iter()
        .find(|m| m.kind == Kind::PingRequest { target: arc("b") })
        .unwrap();
    assert!(asked.updates.contains(&update("b", State::Suspect, 5)));
}

#[test]
fn errands_are_over_after_a_heartbeat() {
    let mut machine = lone("a");
    tell(&mut machine, vec![update("b", State::Alive, 5)]);
    let kind = Kind::PingRequest { target: arc("b") };
    hear(
        &mut machine,
        Message {
            kind,
            ..ping(identity("teller"), 1)
        },
    );
    assert_eq!(machine.errands.len(), 1);
    wait(&mut machine, &mut Rng::new(1), HEARTBEAT_MS);
    assert!(machine.errands.is_empty());
}

// Beliefs.

#[test]
fn news_take_effect_in_the_order_of_incarnation_and_state() {
    let states = [State::Alive, State::Suspect, State::Dead, State::Left];
    let known = states
        .into_iter()
        .flat_map(|state| [(state, 4), (state, 5)]);
    for (was, old) in known {
        for (is, new) in states
            .into_iter()
            .flat_map(|state| [(state, 4), (state, 5)])
        {
            let mut machine = lone("a");
            tell(
                &mut machine,
                vec![update("b", State::Alive, 1), update("b", was, old)],
            );
            tell(&mut machine, vec![update("b", is, new)]);
            let member = find(&machine, "b").unwrap();
            let expected = if (new, is) > (old, was) {
                (new, is)
            } else {
                (old, was)
            };
            assert_eq!((member.incarnation, member.state), expected);
        }
    }
}

#[test]
fn a_suspected_node_refutes_in_its_answer() {
    for state in [State::Suspect, State::Dead, State::Left] {
        let mut machine = lone("a");
        let reply = tell(&mut machine, vec![update("a", state, START_MS + 9)]).unwrap();
        assert_eq!((reply.kind, reply.incarnation), (Kind::Ack, START_MS + 10));
    }
}

#[test]
fn old_news_about_oneself_are_ignored() {
    let mut machine = lone("a");
    tell(&mut machine, vec![update("a", State::Dead, START_MS - 1)]);
    assert_eq!(find(&machine, "a").unwrap().incarnation, START_MS);
}

#[test]
fn an_answer_tells_its_receiver_what_is_believed_of_it() {
    let mut machine = lone("a");
    tell(&mut machine, vec![update("b", State::Dead, 5)]);
    wear_out_rumors(&mut machine);
    let reply = hear(&mut machine, ping(identity("b"), 5)).unwrap();
    assert_eq!(reply.updates[0], update("b", State::Dead, 5));
    assert_eq!(find(&machine, "b").unwrap().state, State::Dead);
    hear(&mut machine, ping(identity("b"), 6));
    assert_eq!(find(&machine, "b").unwrap().state, State::Alive);
}

#[test]
fn a_ping_tells_its_receiver_what_is_believed_of_it() {
    let mut machine = lone("a");
    tell(&mut machine, vec![update("b", State::Suspect, 5)]);
    wear_out_rumors(&mut machine);
    machine.tick(START_MS, &mut Rng::new(1));
    let sent = sent_to(&mut machine, "b");
    assert_eq!(sent[0].kind, Kind::Ping);
    assert_eq!(sent[0].updates, [update("b", State::Suspect, 5)]);
}

#[test]
fn another_address_is_believed_only_with_a_greater_incarnation() {
    let mut machine = lone("a");
    hear(&mut machine, ping(identity("b"), 5));
    hear(&mut machine, ping(identity_at("b", "other:1"), 5));
    let elsewhere = Update {
        identity: identity_at("b", "other:1"),
        ..update("b", State::Suspect, 5)
    };
    tell(&mut machine, vec![elsewhere]);
    assert_eq!(find(&machine, "b").unwrap().identity, identity("b"));
    hear(&mut machine, ping(identity_at("b", "other:1"), 6));
    assert_eq!(
        find(&machine, "b").unwrap().identity,
        identity_at("b", "other:1")
    );
}

#[test]
fn a_restart_under_a_new_address_is_taken_back_at_once() {
    for pause_ms in [0, 12 * HEARTBEAT_MS] {
        let mut net = Net::joined(4, CONFIG);
        net.crash(3);
        net.run(pause_ms);
        let again = identity_at("n3", "n3-new:7000");
        net.start(CONFIG, again.clone(), &["n0:7000"]);
        net.run_until(2 * HEARTBEAT_MS, |net| {
            (0..3).all(|index| {
                let member = find(net.machine(index), "n3").unwrap();
                member.state == State::Alive && member.identity == again
            })
        });
        net.run(10 * HEARTBEAT_MS);
        assert!(net.all_see(&[0, 1, 2], "n3", State::Alive));
        assert_eq!(net.at("n3-new:7000").counters().id_conflicts, 0);
    }
}

#[test]
fn a_restart_whose_clock_stepped_back_outbids_its_life_before() {
    let mut net = Net::joined(3, CONFIG);
    net.crash(2);
    let me = identity("n2");
    let machine = Membership::new(CONFIG, me, 1, vec![seed("n0:7000")], net.now_ms);
    let rng = Rng::new(9);
    net.nodes.insert(
        arc("n2:7000"),
        Node {
            machine,
            rng,
            stopped: false,
        },
    );
    net.run(10 * HEARTBEAT_MS);
    assert!(net.all_alive(3));
    assert!(find(net.machine(0), "n2").unwrap().incarnation > START_MS);
}

#[test]
fn two_nodes_with_one_id_count_the_conflict() {
    let mut net = Net::joined(3, CONFIG);
    net.start(CONFIG, identity_at("n2", "twin:7000"), &["n0:7000"]);
    net.run(5 * HEARTBEAT_MS);
    assert!(net.machine(2).counters().id_conflicts > 0);
    assert_eq!(net.machine(0).counters().id_conflicts, 0);
}

// Leaving and removal.

#[test]
fn a_goodbye_is_known_to_all_at_once_and_nobody_is_suspected() {
    let mut net = Net::joined(6, CONFIG);
    let now_ms = net.now_ms;
    net.node(5).machine.leave(now_ms);
    net.collect();
    net.run(2 * LATENCY_MS);
    assert!(net.all_see(&[0, 1, 2, 3, 4], "n5", State::Dead));
    net.run(5 * HEARTBEAT_MS);
    net.crash(5);
    assert!(net.all_see(&[0, 1, 2, 3, 4], "n5", State::Dead));
    net.run(GRACE_MS);
    assert!(net.all_see(&[0, 1, 2, 3, 4], "n5", State::Left));
    for index in 0..5 {
        assert_eq!(net.machine(index).counters().nodes_suspect, 0);
    }
}

/// One copy of each key: nobody's place can be spared.
const ONE_COPY: Config = Config {
    replication: 1,
    ..CONFIG
};

/// Has a node drain, and leave when others have its place.
fn leave_for_good(net: &mut Net, index: usize) {
    let now_ms = net.now_ms;
    let node = net.node(index);
    node.machine.drain(now_ms, &mut node.rng);
    let id = format!("n{index}");
    net.run_until(10 * HEARTBEAT_MS, |net| !net.machine(index).may_own(&id));
    let now_ms = net.now_ms;
    net.node(index).machine.leave(now_ms);
    net.collect();
    net.run(HEARTBEAT_MS);
}

#[test]
fn one_that_left_answers_with_its_goodbye_and_refutes_nothing() {
    let mut machine = lone("a");
    machine.leave(START_MS);
    let reply = tell(&mut machine, vec![update("a", State::Dead, START_MS + 5)]).unwrap();
    assert_eq!((reply.kind, reply.incarnation), (Kind::Away, START_MS + 1));
    let mut listener = lone("teller");
    hear(&mut listener, ping(identity("a"), START_MS));
    hear(
        &mut listener,
        Message {
            kind: Kind::Leave,
            ..ping(identity("a"), START_MS + 1)
        },
    );
    assert_eq!(find(&listener, "a").unwrap().state, State::Left);
}

#[test]
fn those_that_left_are_not_learned_of_again_once_forgotten() {
    let mut machine = lone("a");
    tell(&mut machine, vec![update("b", State::Left, 5)]);
    assert_eq!(find(&machine, "b"), None);
}

#[test]
fn one_that_left_is_not_brought_back_by_old_news_and_is_forgotten_in_time() {
    let mut net = Net::joined(3, ONE_COPY);
    let incarnation = find(net.machine(2), "n2").unwrap().incarnation;
    leave_for_good(&mut net, 2);
    net.crash(2);
    let old = vec![update("n2", State::Alive, incarnation)];
    tell(&mut net.node(0).machine, old.clone());
    assert_eq!(net.state(0, "n2"), Some(State::Left));
    net.run(LEFT_MEMORY_MS - 10 * HEARTBEAT_MS);
    assert_eq!(net.state(0, "n2"), Some(State::Left));
    net.run(11 * HEARTBEAT_MS);
    assert_eq!(net.state(0, "n2"), None);
    assert_eq!(net.state(1, "n2"), None);
}

#[test]
fn a_majority_removes_the_dead_after_the_grace_and_counts_it() {
    let mut net = Net::joined(3, CONFIG);
    net.crash(2);
    net.run_until(60_000, |net| net.all_see(&[0, 1], "n2", State::Dead));
    net.run(GRACE_MS - HEARTBEAT_MS);
    assert!(net.all_see(&[0, 1], "n2", State::Dead));
    net.run(2 * HEARTBEAT_MS);
    assert!(net.all_see(&[0, 1], "n2", State::Left));
    assert_eq!(net.machine(0).counters().nodes_removed, 1);
    assert_eq!(net.machine(1).counters().nodes_removed, 1);
}

#[test]
fn a_minority_or_a_half_never_removes_anyone() {
    for (count, rest) in [(2, 1), (4, 2), (5, 2)] {
        let mut net = Net::joined(count, CONFIG);
        for index in rest..count {
            net.crash(index);
        }
        net.run(GRACE_MS * 10);
        for observer in 0..rest {
            assert_eq!(net.machine(observer).counters().nodes_removed, 0);
            assert_eq!(
                net.machine(observer)
                    .members()
                    .filter(|m| m.state != State::Left)
                    .count(),
                count
            );
        }
    }
}

#[test]
fn halves_of_a_partition_declare_each_other_dead_and_merge_when_it_heals() {
    for (count, boundary, for_ms) in [(6, 3, 30_000), (6, 3, 900_000), (5, 2, 60_000)] {
        let mut net = Net::joined(count, CONFIG);
        net.cut(move |a, b| is_across(boundary, a, b));
        net.run(10 * HEARTBEAT_MS);
        let left: Vec<usize> = (0..boundary).collect();
        let right: Vec<usize> = (boundary..count).collect();
        for id in &right {
            assert!(net.all_see(&left, &format!("n{id}"), State::Dead));
        }
        for id in &left {
            assert!(net.all_see(&right, &format!("n{id}"), State::Dead));
        }
        net.run(for_ms);
        assert!(
            left.iter()
                .all(|index| net.machine(*index).counters().nodes_removed == 0)
        );
        net.heal();
        net.run_until(10 * HEARTBEAT_MS, |net| net.all_alive(count));
        net.run(10 * HEARTBEAT_MS);
        assert!(net.all_alive(count));
    }
}

// Bounds and dissemination.

#[test]
fn more_members_than_the_limit_are_refused_and_counted() {
    let mut machine = lone("a");
    let updates = (0..MEMBERS_MAX)
        .map(|n| update(&format!("m{n}"), State::Alive, 1))
        .collect();
    tell(&mut machine, updates);
    assert_eq!(machine.members().count(), MEMBERS_MAX);
    assert_eq!(
        machine.counters().members_refused,
        2,
        "teller has one place, and this node"
    );
    let all = machine.compose_everything(Kind::Gossip);
    assert!(all.updates.len() < UPDATES_MAX);
}

#[test]
fn a_change_rides_on_a_bounded_number_of_messages_and_few_per_message() {
    let mut machine = lone("a");
    let updates = (0..200)
        .map(|n| update(&format!("m{n}"), State::Alive, 1))
        .collect();
    tell(&mut machine, updates);
    let mut told: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    for _ in 0..200 {
        let message = machine.compose(Kind::Ack, &[]);
        assert!(message.updates.len() <= PIGGYBACK_MAX);
        for update in message.updates {
            *told.entry(update.identity.id).or_default() += 1;
        }
    }
    // 202 members: 3 log₂ 203 = 22.99..; the teller's own place was told in an answer.
    assert_eq!(machine.tellings_max(), 23);
    assert!(told.len() >= 200 && told.values().all(|times| *times <= 23));
    assert!(told.values().filter(|times| **times == 23).count() >= 137);
    assert!(machine.rumors.is_empty());
}

#[test]
fn errands_and_waiting_messages_are_bounded_and_counted() {
    let mut machine = lone("a");
    let updates = (0..1000)
        .map(|n| update(&format!("m{n}"), State::Alive, 1))
        .collect();
    tell(&mut machine, updates);
    for n in 0..ERRANDS_MAX + 1 {
        let kind = Kind::PingRequest {
            target: arc(&format!("m{n}")),
        };
        hear(
            &mut machine,
            Message {
                kind,
                ..ping(identity("teller"), 1)
            },
        );
    }
    assert_eq!(machine.errands.len(), ERRANDS_MAX);
    assert_eq!(machine.counters().errands_refused, 1);
    for _ in 0..ACTIONS_MAX {
        let kind = Kind::PingRequest { target: arc("a") };
        hear(
            &mut machine,
            Message {
                kind,
                ..ping(identity("teller"), 1)
            },
        );
    }
    assert_eq!(machine.counters().messages_dropped, ERRANDS_MAX as u64);
    assert_eq!(drain(&mut machine).len(), ACTIONS_MAX + 1);
}

#[test]
fn everything_is_exchanged_with_one_member_each_interval() {
    let mut machine = lone("a");
    let mut rng = Rng::new(1);
    tell(&mut machine, vec![update("b", State::Dead, 5)]);
    wait(&mut machine, &mut rng, 2 * CONFIG.gossip_interval_ms);
    let sent = sent_to(&mut machine, "teller");
    let pushed: Vec<_> = sent
        .iter()
        .filter(|message| message.kind == Kind::Gossip)
        .collect();
    assert_eq!(pushed.len(), 2);
    assert!(pushed.iter().all(|message| message.updates.len() == 2));
    let reply = hear(
        &mut machine,
        Message {
            kind: Kind::Gossip,
            ..ping(identity("b"), 5)
        },
    );
    let reply = reply.unwrap();
    assert_eq!((reply.kind, reply.updates.len()), (Kind::GossipReply, 2));
}

#[test]
fn changes_raise_the_version_and_are_announced_once() {
    let mut machine = lone("a");
    drain(&mut machine);
    let before = machine.version();
    tell(
        &mut machine,
        vec![update("b", State::Alive, 1), update("c", State::Alive, 1)],
    );
    assert!(machine.version() > before);
    assert_eq!(drain(&mut machine), [Action::Changed]);
    let after = machine.version();
    tell(&mut machine, vec![update("b", State::Alive, 1)]);
    assert_eq!(machine.version(), after);
    assert_eq!(drain(&mut machine), []);
}

#[test]
fn members_are_listed_by_id_with_this_node_among_them() {
    let mut machine = lone("m");
    tell(
        &mut machine,
        vec![update("z", State::Alive, 1), update("b", State::Alive, 1)],
    );
    let ids: Vec<&str> = machine
        .members()
        .map(|member| &*member.identity.id)
        .collect();
    assert_eq!(ids, ["b", "m", "teller", "z"]);
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = || {
        let mut net = Net::joined(7, CONFIG);
        net.loss_percent = 20;
        net.crash(6);
        net.run(40 * HEARTBEAT_MS);
        net.trace
    };
    assert_eq!(run(), run());
}

#[test]
fn a_clock_that_steps_back_or_leaps_kills_nobody() {
    let mut net = Net::joined(3, CONFIG);
    net.now_ms -= 500 * HEARTBEAT_MS;
    net.run(10 * HEARTBEAT_MS);
    net.now_ms += 100_000 * HEARTBEAT_MS;
    net.run(10 * HEARTBEAT_MS);
    assert!(net.all_alive(3));
    assert!((0..3).all(|index| net.machine(index).counters().nodes_suspect == 0));
}

// The binary form.

fn any_identity() -> impl Strategy<Value = Identity> {
    ("[a-z0-9é-]{1,60}", "[ -~]{0,512}", "[ -~]{0,40}").prop_map(|(id, peer, client)| Identity {
        id: arc(&id),
        peer_address: arc(&peer),
        client_address: arc(&client),
    })
}

fn any_update() -> impl Strategy<Value = Update> {
    let state = prop::sample::select(vec![State::Alive, State::Suspect, State::Dead, State::Left]);
    (
        any_identity(),
        state,
        any::<u64>(),
        any_standing(),
        0..16_u8,
    )
        .prop_map(|(identity, state, incarnation, standing, marks)| Update {
            identity,
            state,
            incarnation,
            standing,
            marks,
        })
}

fn any_standing() -> impl Strategy<Value = Standing> {
    let stages = vec![Stage::Joint, Stage::Ready, Stage::Switched, Stage::Settled];
    let stage = prop::sample::select(stages);
    (
        any::<(u64, u32, u64, u64, u64)>(),
        stage,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |((life, sequence, epoch, target, leavers), stage, holding, draining)| Standing {
                life,
                sequence,
                epoch,
                target: RosterId(target),
                stage,
                attempt: sequence,
                copying: epoch,
                holding,
                draining,
                gone: draining,
                leavers,
            },
        )
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Ping),
        Just(Kind::Ack),
        "[a-z]{1,253}".prop_map(|target| Kind::PingRequest {
            target: arc(&target)
        }),
        ("[a-z]{1,253}", any::<u64>()).prop_map(|(target, incarnation)| Kind::IndirectAck {
            target: arc(&target),
            incarnation,
        }),
        Just(Kind::Gossip),
        Just(Kind::GossipReply),
        Just(Kind::News),
        Just(Kind::Leave),
        Just(Kind::Away),
    ]
}

fn any_message() -> impl Strategy<Value = Message> {
    (
        any_identity(),
        (any::<(u64, bool, u64)>(), any_standing(), 0..16_u8),
        any_kind(),
        prop::collection::vec(any_update(), 0..20),
    )
        .prop_map(|(from, said, kind, updates)| Message {
            from,
            incarnation: said.0.0,
            joined: said.0.1,
            standing: said.1,
            founding: said.1.target,
            epoch: said.0.2,
            roster: RosterId(said.0.2),
            marks: said.2,
            cleared: Version::new(said.0.2 >> 11).unwrap(),
            kind,
            updates,
        })
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn a_message_is_read_as_it_was_written(message in any_message()) {
        prop_assert_eq!(Message::decode(&encoded(&message)), Ok(message));
    }

    #[test]
    fn a_truncated_or_longer_message_is_malformed(message in any_message(), cut in any::<usize>()) {
        let mut bytes = encoded(&message);
        prop_assert_eq!(Message::decode(&bytes[..cut % bytes.len()]), Err(Malformed));
        bytes.push(0);
        prop_assert_eq!(Message::decode(&bytes), Err(Malformed));
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = FORMAT;
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn a_damaged_message_is_read_or_refused_and_whatever_is_read_is_survived(
        message in any_message(),
        damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = encoded(&message);
        for (place, byte) in damage {
            let place = place % bytes.len();
            bytes[place] = byte;
        }
        if let Ok(message) = Message::decode(&bytes) {
            let mut machine = lone("a");
            hear(&mut machine, message);
            machine.tick(START_MS + TICK_MS, &mut Rng::new(1));
            drain(&mut machine);
        }
    }

    #[test]
    fn all_agree_whatever_the_order_of_the_news(
        news in prop::collection::vec((0..3usize, 0..4usize, 1..4u64), 1..12),
        seed in any::<u64>(),
    ) {
        let states = [State::Alive, State::Suspect, State::Dead, State::Left];
        let first = (0..3).map(|n| update(&format!("m{n}"), State::Alive, 0));
        let mut news: Vec<Update> = news
            .into_iter()
            .map(|(n, state, incarnation)| update(&format!("m{n}"), states[state], incarnation))
            .collect();
        let believed = |news: &[Update]| -> Vec<(u64, State)> {
            let mut machine = lone("a");
            tell(&mut machine, first.clone().collect());
            tell(&mut machine, news.to_vec());
            machine.members().map(|member| (member.incarnation, member.state)).collect()
        };
        let before = believed(&news);
        Rng::new(seed).shuffle(&mut news);
        prop_assert_eq!(believed(&news), before);
    }
}

#[test]
fn lengths_out_of_bounds_are_malformed() {
    let long = |id: usize, address: usize| {
        encoded(&ping(identity_at(&"i".repeat(id), &"a".repeat(address)), 1))
    };
    assert!(Message::decode(&long(ID_BYTES_MAX, ADDRESS_BYTES_MAX)).is_ok());
    assert_eq!(Message::decode(&long(ID_BYTES_MAX + 1, 1)), Err(Malformed));
    assert_eq!(
        Message::decode(&long(1, ADDRESS_BYTES_MAX + 1)),
        Err(Malformed)
    );
    assert_eq!(Message::decode(&long(1, 70_000)), Err(Malformed));
    assert_eq!(Message::decode(&long(0, 1)), Err(Malformed));
}

#[test]
fn another_format_text_that_is_no_utf8_and_too_many_updates_are_malformed() {
    let good = encoded(&ping(identity("a"), 1));
    for (place, byte) in [(0, 1), (1, 0), (1, 99), (2, 2), (5, 0xFF)] {
        let mut bytes = good.clone();
        bytes[place] = byte;
        assert_eq!(Message::decode(&bytes), Err(Malformed));
    }
    let updates = vec![update("b", State::Alive, 1); UPDATES_MAX + 1];
    let mut message = Message {
        updates,
        ..ping(identity("a"), 1)
    };
    let cut_off = Message::decode(&encoded(&message)).unwrap();
    message.updates.truncate(UPDATES_MAX);
    assert_eq!(cut_off, message);
    let mut bytes = good;
    let count_at = bytes.len() - 2;
    bytes[count_at..].copy_from_slice(&u16::MAX.to_le_bytes());
    assert_eq!(Message::decode(&bytes), Err(Malformed));
}

#[test]
fn states_have_the_names_of_the_contract() {
    let names = [State::Alive, State::Suspect, State::Dead, State::Left].map(State::name);
    assert_eq!(names, ["alive", "suspect", "dead", "dead"]);
}
