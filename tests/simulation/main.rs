//! The cluster under every fault we know of, by seeds.
//!
//! `HC_SIM_SEED=7 ./perf/simulate` replays one seed, `HC_SIM_SEEDS=50000` runs so many,
//! `HC_SIM_FIRST=1000` begins there, `HC_SIM_FOREVER=1` runs until stopped. What is
//! asserted is what docs/consistency.md promises, no more and no less.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/history.rs"]
mod history;
mod overtaken;
mod scenarios;
mod world;

use history::{Broken, Kind, Request};
use std::sync::atomic::{AtomicU64, Ordering};

use hypercache::cluster::Consistency;
use hypercache::cluster::rng::Rng;
use world::{
    CLOCK_OFF_MS_MAX, Event, HINTS_PER_NODE, NEVER_MS, Network, SHARD_BYTES_MAX, World,
    WorldSettings,
};

const SEEDS: u64 = 1_000;
/// How long the dead keep their places where they lose them at all.
const GRACE_MS: u64 = 2_000;
/// The longest life of a value where values expire.
const TTL_MS_MAX: usize = 3_000;
/// Replicas that evict and differ are compared for so long until they leave it at that, and
/// then have to stay as they are for as long again.
const QUIET_MS: u64 = 5_000;
/// So many seeds have to show a planted fault.
#[cfg(feature = "mutations")]
const FAULT_SEEDS: u64 = 1_000;

/// Runs one seed, and says how many reads were answered from copies of other cores' items.
fn simulate(seed: u64) -> Result<u64, Broken> {
    let mut rng = Rng::new(seed);
    let nodes = 3 + rng.below(5);
    let sync = rng.below(2) == 0;
    // Now and then nodes die for good and lose their places. Then nobody else is cut off or
    // hangs for as long as that: what happens after the grace under partition is no promise.
    let removes = sync && nodes > 3 && rng.below(4) == 0;
    // Now and then shards are too small for their keys and evict all the time.
    let evicts = rng.below(8) == 0;
    // Without comparison nobody would find what came back behind a value that expired.
    let expires = sync && rng.below(4) == 0;
    let settings = WorldSettings {
        nodes,
        spares: rng.below(3),
        dead_grace_ms: if removes { GRACE_MS } else { NEVER_MS },
        replication: if nodes >= 5 && rng.below(3) == 0 {
            5
        } else {
            3
        },
        // Else hints have to bring replicas together that stay within reach.
        sync_interval_ms: if sync { 500 } else { NEVER_MS },
        hint_ttl_ms: if sync && rng.below(2) == 0 {
            300
        } else {
            3_600_000
        },
        keys: if evicts { 60 } else { 1 + rng.below(6) },
        items_max: if evicts { 1 + rng.below(10) } else { 0 },
    };
    let mut world = World::new(settings, Rng::new(rng.next_u64()));
    settle(&mut world, 20_000)?;
    let mut driver = Driver {
        rng,
        settings,
        expires,
        values: 0,
        deadline: world.now + if removes { 10_000 } else { 4_000 },
    };
    world.schedule(0, Event::Driver(0));
    while world.now < driver.deadline {
        let end = driver.deadline;
        if world.run_until(end).is_some() {
            driver.act(&mut world);
            let delay = driver.rng.below(12) as u64;
            world.schedule(delay, Event::Driver(0));
        }
        world.read_all_copies();
        bounds(&world)?;
    }
    driver.heal(&mut world);
    let settled = settle(&mut world, 60_000).and_then(|()| match evicts {
        true => quiet(&mut world),
        false => agreement(&world),
    });
    if settled.is_err() && setting("HC_SIM_SEED").is_some() {
        eprintln!("{settings:?}\n{}", world.describe());
    }
    settled?;
    for key in 0..settings.keys {
        let history: Vec<&Request> = world
            .requests
            .iter()
            .filter(|request| request.key == key)
            .collect();
        history::nothing_is_made_up(&history)?;
        if evicts {
            // The newest may be gone, and anything older in its place.
            continue;
        }
        let owners = world.owners(key);
        let owner = owners.into_iter().find(|&owner| world.nodes[owner].up);
        let value = world.value(owner.ok_or("no owner is left")?, key);
        history::ends_with(&history, value.as_deref(), world.now)?;
        history::quorum_reads(&history)?;
        history::order_of_writes(&history)?;
    }
    Ok(world.copies_read)
}

struct Driver {
    rng: Rng,
    settings: WorldSettings,
    /// Whether some values expire.
    expires: bool,
    values: u64,
    deadline: u64,
}

impl Driver {
    fn act(&mut self, world: &mut World) {
        if self.rng.below(100) < 88 {
            self.operate(world);
        } else {
            self.disturb(world);
        }
    }

    fn operate(&mut self, world: &mut World) {
        let node = self.rng.below(world.nodes.len());
        if !world.nodes[node].up || world.nodes[node].paused {
            return;
        }
        let key = self.rng.below(self.settings.keys);
        let kind = match self.rng.below(10) {
            0..4 => {
                self.values += 1;
                Kind::Put(format!("value-{}", self.values).into_bytes())
            }
            4..6 => Kind::Delete,
            _ => Kind::Get,
        };
        let consistency = match self.rng.below(10) {
            0 => Consistency::One,
            1 => Consistency::All,
            _ => Consistency::Quorum,
        };
        let expires = self.expires && matches!(kind, Kind::Put(_)) && self.rng.below(2) == 0;
        let ttl_ms = expires.then(|| 1 + self.rng.below(TTL_MS_MAX) as u64);
        if kind == Kind::Get || world.takes_writes(node) {
            world.request_expiring(node, key, kind, consistency, ttl_ms);
        }
    }

    fn disturb(&mut self, world: &mut World) {
        let nodes = world.nodes.len();
        let (one, other) = (self.rng.below(nodes), self.rng.below(nodes));
        let chosen = self.rng.below(15);
        if self.settings.dead_grace_ms < NEVER_MS && (1..9).contains(&chosen) {
            self.break_machine(world, one);
            return;
        }
        match chosen {
            0 => {
                world.network = Network {
                    loss_percent: self.rng.below(20),
                    duplicate_percent: self.rng.below(30),
                    delay_ms_max: self.rng.below(60) as u64,
                }
            }
            1 => {
                world.cut.insert((one, other));
            }
            2 => {
                world.cut.extend([(one, other), (other, one)]);
            }
            3 => {
                // One side of the cluster against the other.
                for a in 0..nodes {
                    for b in 0..nodes {
                        if (a <= one) != (b <= one) {
                            world.cut.insert((a, b));
                        }
                    }
                }
            }
            4..6 => world.cut.clear(),
            6 => world.pause(one),
            7 => (0..nodes).for_each(|node| world.resume(node)),
            8 => world.nodes[one].slow_ms = self.rng.below(80) as u64,
            9 => {
                // Now and then a clock is further off than allowed, but not where values
                // expire by it.
                let is_wrong = self.rng.below(6) == 0 && !self.expires;
                let most = if is_wrong {
                    900
                } else {
                    CLOCK_OFF_MS_MAX as usize
                };
                world.nodes[one].skew_ms = self.rng.below(2 * most + 1) as i64 - most as i64;
            }
            10..12 => self.change_members(world, one),
            _ => {
                // As long as a majority of every key's owners survives with its data,
                // whoever else is cut off, paused or slow.
                let more = world.survivable().saturating_sub(world.weakness());
                if self.settings.sync_interval_ms < NEVER_MS && more > 0 {
                    let count = 1 + self.rng.below(more);
                    let chosen = (one..one + count).map(|node| node % nodes);
                    chosen
                        .filter(|&node| world.nodes[node].up)
                        .collect::<Vec<_>>()
                        .into_iter()
                        .for_each(|node| world.restart_empty(node));
                }
            }
        }
    }

    /// A machine breaks, for as long as it likes.
    fn break_machine(&mut self, world: &mut World, one: usize) {
        let survivable = world.survivable();
        let weakness = world.weakness().max(world.broken());
        if self.rng.below(4) == 0 && weakness < survivable && world.nodes[one].up {
            world.kill(one);
        }
    }

    /// Members change one at a time: one joins, leaves, or comes back after it left.
    fn change_members(&mut self, world: &mut World, one: usize) {
        let copies = self.settings.sync_interval_ms < NEVER_MS;
        let is_under_way = world.nodes.iter().any(|node| node.draining) || !world.settled();
        if !copies || is_under_way || world.weakness() > 0 && world.nodes[one].up {
            return;
        }
        if !world.nodes[one].up {
            world.restart_empty(one);
        } else if world
            .up()
            .any(|node| node != one && world.takes_writes(node))
        {
            // The last one stays: restarted alone it would wait for the others.
            world.drain(one);
        }
    }

    fn heal(&mut self, world: &mut World) {
        let most = CLOCK_OFF_MS_MAX as i64;
        world.network = Network::default();
        world.cut.clear();
        for node in 0..world.nodes.len() {
            world.nodes[node].slow_ms = 0;
            world.nodes[node].skew_ms = world.nodes[node].skew_ms.clamp(-most, most);
            world.resume(node);
        }
        if self.settings.dead_grace_ms == NEVER_MS {
            for node in world.left_unheard() {
                world.restart_empty(node);
            }
        }
    }
}

/// Lets the cluster come to rest.
fn settle(world: &mut World, ms: u64) -> Result<(), Broken> {
    let end = world.now + ms;
    while world.now < end {
        let until = (world.now + 1_000).min(end);
        while world.run_until(until).is_some() {}
        let cores = world.up().flat_map(|node| &world.nodes[node].cores);
        let quiet = cores.map(|core| core.unsent()).sum::<usize>() == 0;
        let alike = world.evicts() || agreement(world).is_ok();
        if world.converged() && world.lacking() == 0 && quiet && alike {
            return Ok(());
        }
    }
    if !world.converged() {
        return Err("membership did not converge".to_owned());
    }
    if world.lacking() > 0 {
        return Err("a node never got its data".to_owned());
    }
    Ok(())
}

fn bounds(world: &World) -> Result<(), Broken> {
    if let Some(wrong) = &world.stale_copy {
        return Err(wrong.clone());
    }
    for node in &world.nodes {
        for core in &node.cores {
            if core.hints().len() > 2 * HINTS_PER_NODE {
                return Err(format!("{} keeps too many hints", node.id));
            }
            let shard = core.local().shard();
            if shard.bytes() > SHARD_BYTES_MAX {
                return Err(format!("{} holds too many bytes", node.id));
            }
            let items_max = world.settings().items_max;
            if items_max > 0 && shard.len() > items_max {
                return Err(format!("{} holds too many items", node.id));
            }
        }
    }
    Ok(())
}

/// Once clients are gone, replicas that cannot hold everything do not go on filling each
/// other up.
fn quiet(world: &mut World) -> Result<(), Broken> {
    let mut run = |ms: u64| {
        let end = world.now + ms;
        while world.run_until(end).is_some() {}
        world.evicted()
    };
    let before = run(QUIET_MS);
    let after = run(QUIET_MS);
    bounds(world)?;
    match after - before {
        0 => Ok(()),
        evicted => Err(format!(
            "{evicted} items were evicted though no client wrote"
        )),
    }
}

/// All owners of a key hold the same.
fn agreement(world: &World) -> Result<(), Broken> {
    for key in 0..world.keys.len() {
        let mut owners = world.owners(key);
        owners.retain(|&owner| world.nodes[owner].up);
        let held: Vec<_> = owners
            .iter()
            .map(|&node| {
                let resident = world.resident(node, key);
                let stamp = resident.map(|item| (item.version, item.origin, item.tombstone));
                (stamp, world.value(node, key))
            })
            .collect();
        if held.iter().any(|one| *one != held[0]) {
            return Err(format!(
                "owners {owners:?} of key {key} do not agree: {held:?}"
            ));
        }
    }
    Ok(())
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_promise_holds_under_every_fault() {
    if let Some(seed) = setting("HC_SIM_SEED") {
        if let Err(broken) = simulate(seed) {
            panic!("{broken}");
        }
        return;
    }
    let seeds = match setting("HC_SIM_FOREVER") {
        Some(_) => u64::MAX,
        None => setting("HC_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let first = setting("HC_SIM_FIRST").unwrap_or(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let copies_read = AtomicU64::new(0);
    let broken: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|thread| {
                let copies_read = &copies_read;
                scope.spawn(move || {
                    for seed in
                        (first + thread..first.saturating_add(seeds)).step_by(threads as usize)
                    {
                        match simulate(seed) {
                            Ok(read) => copies_read.fetch_add(read, Ordering::Relaxed),
                            Err(broken) => {
                                return Some(format!(
                                    "{broken}\nreplay it: HC_SIM_SEED={seed} ./perf/simulate"
                                ));
                            }
                        };
                    }
                    None
                })
            })
            .collect();
        runs.into_iter()
            .filter_map(|run| run.join().unwrap())
            .collect()
    });
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    // What nobody read was not compared with anything.
    let copies_read = copies_read.into_inner();
    assert!(copies_read >= seeds, "{copies_read} reads from copies");
}

/// Each fault that can be planted is found: the simulation can fail.
#[cfg(feature = "mutations")]
#[test]
fn planted_faults_are_found() {
    use hypercache::mutation::{Mutation, plant};
    let missed: Vec<_> = Mutation::BY_CHANCE
        .into_iter()
        .filter(|&mutation| {
            plant(Some(mutation));
            let found = (0..FAULT_SEEDS).find_map(|seed| Some((seed, simulate(seed).err()?)));
            plant(None);
            match &found {
                Some((seed, broken)) => println!("{mutation:?}: seed {seed}: {broken}"),
                None => println!("{mutation:?}: not found"),
            }
            found.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
