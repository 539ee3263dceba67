//! What keys of other cores cost on a node of two cores, with copies of hot keys and without,
//! beside connections that ask only for keys of their own core.
//!
//! `cargo run --release -p hypercache-perf --bin hop [rounds] [seconds] [keys]`

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use hypercache_perf::popularity::Popularity;
use hypercache_perf::report::{Rounds, exit_code, print_machine, print_target};
use hypercache_perf::servers::{Server, build, node_with};
use hypercache_perf::{Load, Locality, pin};

/// Under Zipf's law, copies may cost so much more than no hop at all.
const ZIPF_MAX: f64 = 1.15;
/// Where all keys are used alike, copies may cost so much more than none.
const UNIFORM_MAX: f64 = 1.02;

/// How long copies are given to be taken, before anything is measured.
const WARM_UP: Duration = Duration::from_secs(4);

struct Case {
    popularity: Popularity,
    copies: bool,
    locality: Locality,
    pipeline: usize,
    server: usize,
    cpu: Rounds,
    rate: Rounds,
}

fn main() -> ExitCode {
    exit_code(measure())
}

fn measure() -> io::Result<bool> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let mut next = |default| args.next().and_then(Result::ok).unwrap_or(default);
    let (rounds, seconds, keys) = (next(7), next(1), next(100_000));
    build(&["--bin", "hypercache"])?;
    pin(1);
    print_machine(&["rustc"]);

    // A node for each load, so that each has copies of what it is asked for.
    let mut servers = Vec::new();
    let mut cases = Vec::new();
    for popularity in [Popularity::Zipf(0.99), Popularity::Uniform] {
        let first = servers.len();
        servers.extend([start(true)?, start(false)?]);
        for pipeline in [1, 16] {
            // Without a hop copies are of no use. What is compared is measured one after the other.
            let kinds = [
                (false, Locality::Local),
                (true, Locality::Any),
                (false, Locality::Any),
            ];
            cases.extend(kinds.map(|(copies, locality)| Case {
                popularity,
                copies,
                locality,
                pipeline,
                server: first + usize::from(!copies),
                cpu: Rounds::default(),
                rate: Rounds::default(),
            }));
        }
    }
    for round in 0..=rounds {
        for case in &mut cases {
            let server = &servers[case.server];
            let load = Load {
                targets: vec![server.address.clone()],
                popularity: case.popularity,
                pipeline: case.pipeline,
                locality: case.locality,
                keys: (0..keys as usize).collect(),
                duration: match round {
                    0 => WARM_UP,
                    _ => Duration::from_secs(seconds),
                },
                ..Load::default()
            };
            // Stored once: a write ends the copies of its key.
            let outcome = match round {
                0 => load.run(&[server.pid()]),
                _ => load.measure(&[server.pid()]),
            };
            let outcome = outcome.map_err(|error| {
                let (popularity, copies) = (case.popularity, case.copies);
                let (locality, pipeline) = (case.locality, case.pipeline);
                io::Error::other(format!(
                    "{popularity:?}, copies {copies}, {locality:?}, pipelining {pipeline}: {error}"
                ))
            })?;
            if round > 0 {
                case.cpu.push(outcome.server_cpu_us);
                case.rate.push(outcome.requests as f64 / outcome.seconds);
            }
        }
    }
    print(&cases)
}

fn start(copies: bool) -> io::Result<Server> {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let off = [setting("HYPERCACHE_HOT_COPIES", "0")];
    node_with(2, "auto", if copies { &[] } else { &off })
}

fn print(cases: &[Case]) -> io::Result<bool> {
    println!(
        "\n| keys | copies | asked for | pipeline | CPU us/GET: median (min to max) | GET/s |\n|---|---|---|---|---|---|"
    );
    for case in cases {
        let (median, min, max) = (case.cpu.median(), case.cpu.min(), case.cpu.max());
        let copies = if case.copies { "yes" } else { "no" };
        println!(
            "| {:?} | {copies} | {:?} | {} | {median:.3} ({min:.3} to {max:.3}) | {:.0} |",
            case.popularity,
            case.locality,
            case.pipeline,
            case.rate.median()
        );
    }
    println!("\n| target | reached | at most |\n|---|---|---|");
    let cost = |popularity, copies, locality, pipeline| {
        let case = cases.iter().find(|case| {
            (case.popularity, case.copies, case.locality, case.pipeline)
                == (popularity, copies, locality, pipeline)
        });
        case.map(|case| case.cpu.clone()).unwrap_or_default()
    };
    let mut kept = true;
    for pipeline in [1, 16] {
        for (what, popularity, copies, locality, most) in [
            (
                "Zipf 0.99, copies, to all local",
                Popularity::Zipf(0.99),
                false,
                Locality::Local,
                Some(ZIPF_MAX),
            ),
            (
                "Zipf 0.99, copies, to none",
                Popularity::Zipf(0.99),
                false,
                Locality::Any,
                None,
            ),
            (
                "uniform, copies, to none",
                Popularity::Uniform,
                false,
                Locality::Any,
                Some(UNIFORM_MAX),
            ),
        ] {
            // Of each round: the machine is quicker in some than in others.
            let ratio = cost(popularity, true, Locality::Any, pipeline)
                .to(&cost(popularity, copies, locality, pipeline))
                .median();
            let most_text = most.map_or_else(String::new, |most| format!("{most:.2}"));
            let is_kept = most.is_none_or(|most| ratio <= most);
            print_target(
                &format!("{what}, pipelining {pipeline}"),
                ratio,
                &most_text,
                is_kept,
            );
            kept &= is_kept;
        }
    }
    Ok(kept)
}
