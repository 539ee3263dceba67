//! Measures what replication costs: processor time summed over all nodes beside that of
//! one node by itself, operations per request between peers, and what clients see when
//! a node is lost. Rounds are interleaved; medians are printed.
//!
//! `cargo run --release -p hypercache-perf --bin replication [rounds] [seconds]`
//!
//! All servers share CPU 0, the load has CPU 1: what is compared is work, not waiting.
//! Whoever is not measured is stopped meanwhile. It ends with a failure when a bound is missed.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hypercache_perf::protocol::Answers;
use hypercache_perf::report::{Rounds, exit_code, print_machine, print_target};
use hypercache_perf::servers::{Cluster, Server, build, get, id, node};
use hypercache_perf::{Load, Protocol, pin};

/// Both CPUs, for what is lost under load.
const EVERY_CPU: &[usize] = &[];

fn main() -> ExitCode {
    exit_code(run())
}

fn run() -> io::Result<bool> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let rounds = args.next().and_then(Result::ok).unwrap_or(5);
    let seconds = args.next().and_then(Result::ok).unwrap_or(3);
    build(&["--bin", "hypercache"])?;
    print_machine(&["rustc"]);
    println!("\n| target | reached | bound |\n|---|---|---|");
    // On a thread of its own: it binds itself to a CPU, and what is started later would
    // inherit that.
    let cost = std::thread::spawn(move || measure_cost(rounds, Duration::from_secs(seconds)));
    let mut kept = cost
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the measurement of cost failed")))?;
    measure_hops(Duration::from_secs(seconds))?;
    for (how, signal) in [("killed", libc::SIGKILL), ("hanging", libc::SIGSTOP)] {
        kept &= measure_loss(rounds, how, signal)?;
    }
    Ok(kept)
}

/// Processor time per request, in the two clusters and the one node; true if no bound is missed.
fn measure_cost(rounds: u64, duration: Duration) -> io::Result<bool> {
    let single = node(1, "auto")?;
    let three = Cluster::start(3, &[], &[0])?;
    let five = Cluster::start(5, &[], &[0])?;
    pin(1);
    let put = puts(vec![single.address.clone()], duration);
    let put_three = puts(clients_of(&three), duration);
    let (owned, foreign): (Vec<usize>, Vec<usize>) = {
        let mut owned = Vec::new();
        let mut foreign = Vec::new();
        for key in 0..2_000 {
            match owns(&five, 0, key)? {
                true => owned.push(key),
                false => foreign.push(key),
            }
        }
        (owned, foreign)
    };
    let get_owned = Load {
        targets: vec![five.addresses[0].api.clone()],
        put_percent: 0,
        keys: owned,
        ..put.clone()
    };
    let get_foreign = Load {
        keys: foreign,
        ..get_owned.clone()
    };

    let mut cost: [Rounds; 4] = Default::default();
    let mut rate: [Rounds; 4] = Default::default();
    let mut grouped = Rounds::default();
    for _ in 0..rounds {
        let cases = [
            (&put, vec![single.pid()]),
            (&put_three, three.pids()),
            (&get_owned, five.pids()),
            (&get_foreign, five.pids()),
        ];
        for (case, (load, pids)) in cases.into_iter().enumerate() {
            stop_all_but(
                &pids,
                [&three.pids(), &five.pids(), slice::from_ref(&single.pid())],
            );
            let sent = || {
                let frames = three.metric("PeerFramesSent")?;
                Ok::<_, io::Error>((frames, three.metric("PeerOperationsSent")?))
            };
            let before = if case == 1 { sent()? } else { (0, 0) };
            let outcome = load.run(&pids)?;
            cost[case].push(outcome.server_cpu_us);
            rate[case].push(outcome.requests as f64 / outcome.seconds);
            if case == 1 {
                // What the nodes count is published ten times a second.
                std::thread::sleep(Duration::from_millis(300));
                let after = sent()?;
                grouped.push((after.1 - before.1) as f64 / (after.0 - before.0) as f64);
            }
        }
    }
    let [put, put_three, get_owned, get_foreign] = &cost;
    let mut kept = true;
    let mut judge = |what: &str, reached: f64, bound: &str, met: bool| {
        kept &= met;
        print_target(what, reached, bound, met);
    };
    let ratio = put_three.median() / put.median();
    let what = "QUORUM PUT on three nodes, RF 3, summed CPU to that of one node alone";
    judge(what, ratio, "at most 5", ratio <= 5.0);
    let what = "operations per request between peers under that load";
    let grouped = grouped.median();
    judge(what, grouped, "more than 4", grouped > 4.0);
    let ratio = get_foreign.median() / get_owned.median();
    let what = "GET at ONE through a node that is no owner, to one through an owner";
    judge(what, ratio, "at most 2.5", ratio <= 2.5);
    println!("\n| operation | CPU us/request: median (min to max) | requests/s |\n|---|---|---|");
    for (what, cost, rate) in [
        ("PUT, one node alone", put, &rate[0]),
        ("QUORUM PUT, three nodes, RF 3", put_three, &rate[1]),
        (
            "GET at ONE, five nodes, through an owner",
            get_owned,
            &rate[2],
        ),
        (
            "GET at ONE, five nodes, through another",
            get_foreign,
            &rate[3],
        ),
    ] {
        println!(
            "| {what} | {:.2} ({:.2} to {:.2}) | {:.0} |",
            cost.median(),
            cost.min(),
            cost.max(),
            rate.median()
        );
    }
    Ok(kept)
}

/// PUTs of 100 bytes over 64 connections.
fn puts(targets: Vec<String>, duration: Duration) -> Load {
    Load {
        targets,
        put_percent: 100,
        duration,
        ..Load::default()
    }
}

fn clients_of(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.addresses.iter();
    nodes.map(|node| node.api.clone()).collect()
}

/// Stops the processes of all groups but the one, which goes on.
fn stop_all_but(running: &[u32], groups: [&[u32]; 3]) {
    for group in groups {
        let signal = if group == running {
            libc::SIGCONT
        } else {
            libc::SIGSTOP
        };
        for &pid in group {
            // SAFETY: a system call on plain values; the children are not reaped yet.
            unsafe { libc::kill(pid as i32, signal) };
        }
    }
}

/// Whether frames reach the core they are for, where nodes have as many cores.
fn measure_hops(duration: Duration) -> io::Result<()> {
    let cluster = Cluster::start(3, &[("HYPERCACHE_CORES", "2")], EVERY_CPU)?;
    let load = puts(clients_of(&cluster), duration);
    load.run(&cluster.pids())?;
    let frames = cluster.prometheus("hypercache_peer_frames_total")?;
    let hopped = cluster.prometheus("hypercache_peer_frames_hopped_total")?;
    println!("\n| frames between three nodes of two cores each | |\n|---|---|");
    println!("| received | {frames} |\n| that had to go to another core | {hopped} |");
    Ok(())
}

fn owns(cluster: &Cluster, node: usize, key: usize) -> io::Result<bool> {
    let target = format!("/dist/owners?key=key{key}");
    let (_, body) = get(&cluster.addresses[node].management, &target)?;
    Ok(body.contains(&format!("\"{}\"", id(node))))
}

/// What one request of a client came to.
struct Seen {
    at: Instant,
    took: Duration,
    failed: bool,
}

/// Clients of four nodes read and write at QUORUM while the fifth is lost; true if none of them
/// noticed for longer than a second.
fn measure_loss(rounds: u64, how: &str, signal: i32) -> io::Result<bool> {
    const CLIENTS: usize = 16;
    const BEFORE: Duration = Duration::from_secs(2);
    const AFTER: Duration = Duration::from_secs(4);
    const GRACE: Duration = Duration::from_secs(1);
    let mut failed = [Rounds::default(), Rounds::default()];
    let mut slow: [Rounds; 3] = Default::default();
    let mut requests = Rounds::default();
    for _ in 0..rounds {
        let cluster = Cluster::start(5, &[], EVERY_CPU)?;
        let mut targets = clients_of(&cluster);
        targets.truncate(4);
        let over = AtomicBool::new(false);
        let (lost, seen) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (target, over) = (&targets[client % targets.len()], &over);
                    scope.spawn(move || ask(target, client, over))
                })
                .collect();
            std::thread::sleep(BEFORE);
            let lost = Instant::now();
            if let Some(node) = &cluster.nodes[4] {
                Server::signal(node, signal);
            }
            std::thread::sleep(AFTER);
            over.store(true, Ordering::Relaxed);
            let seen: Vec<Seen> = clients
                .into_iter()
                .filter_map(|client| client.join().ok())
                .flatten()
                .collect();
            (lost, seen)
        });
        let since = |seen: &&Seen| seen.at.checked_duration_since(lost);
        let phases: [Vec<&Seen>; 3] = [
            seen.iter().filter(|seen| since(seen).is_none()).collect(),
            seen.iter()
                .filter(|seen| since(seen).is_some_and(|after| after < GRACE))
                .collect(),
            seen.iter()
                .filter(|seen| since(seen).is_some_and(|after| after >= GRACE))
                .collect(),
        ];
        for (phase, slow) in phases.iter().zip(&mut slow) {
            let mut took = Rounds::default();
            phase
                .iter()
                .for_each(|seen| took.push(seen.took.as_secs_f64() * 1000.0));
            slow.push(took.quantile(0.99));
        }
        for (phase, failed) in phases[1..].iter().zip(&mut failed) {
            failed.push(phase.iter().filter(|seen| seen.failed).count() as f64);
        }
        requests.push(phases[2].len() as f64);
    }
    println!("\n| one node of five {how}, QUORUM GET and PUT | reached | bound |\n|---|---|---|");
    let what = "failed after the first second, worst round";
    let kept = failed[1].max() == 0.0;
    print_target(what, failed[1].max(), "0", kept);
    println!(
        "| of so many requests, median | {:.0} | |",
        requests.median()
    );
    println!(
        "| failed in the first second, worst round | {:.0} | |",
        failed[0].max()
    );
    for (what, slow) in [
        ("p99 before, ms", &slow[0]),
        ("p99 in the first second, ms", &slow[1]),
        ("p99 afterwards, ms", &slow[2]),
    ] {
        println!("| {what} | {:.2} | |", slow.median());
    }
    Ok(kept)
}

/// One client: by turns a PUT and a GET at QUORUM, each when the one before is answered.
fn ask(target: &str, client: usize, over: &AtomicBool) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut stream = None;
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        let key = (client * 7919 + number / 2 * 31) % 5_000;
        let request = match number % 2 {
            0 => format!(
                "PUT /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\n\
                 X-Cache-Consistency: QUORUM\r\nContent-Length: 100\r\n\r\n{:v<100}",
                ""
            ),
            _ => format!(
                "GET /v1/cache/key{key} HTTP/1.1\r\nHost: perf\r\n\
                 X-Cache-Consistency: QUORUM\r\n\r\n"
            ),
        };
        number += 1;
        let at = Instant::now();
        let answered = exchange(target, &mut stream, request.as_bytes());
        if answered.is_err() {
            stream = None;
        }
        seen.push(Seen {
            at,
            took: at.elapsed(),
            failed: answered.is_err(),
        });
    }
    seen
}

/// An error also for any answer that is not a success.
fn exchange(target: &str, open: &mut Option<TcpStream>, request: &[u8]) -> io::Result<()> {
    let stream = match open {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(target)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            open.insert(stream)
        }
    };
    stream.write_all(request)?;
    let mut answers = Answers::new(Protocol::Http);
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if answers.feed(&chunk[..count])? == 1 {
            return Ok(());
        }
    }
}
