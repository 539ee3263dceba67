//! Measures one node beside the floor and redis, interleaved, and prints medians.
//!
//! `cargo run --release -p hypercache-perf --bin single-node [rounds] [seconds]`

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use hypercache_perf::report::{Rounds, print_machine, print_target};
use hypercache_perf::servers::{build, floor, node, redis};
use hypercache_perf::{Load, Locality, Protocol, pin};

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let rounds = args.next().and_then(Result::ok).unwrap_or(5);
    let seconds = args.next().and_then(Result::ok).unwrap_or(3);
    build(&["--bin", "hypercache"])?;
    build(&["-p", "hypercache-perf", "--bin", "floor"])?;
    pin(1);
    print_machine(&["redis-server", "rustc"]);

    let mut servers = BTreeMap::new();
    servers.insert("floor", floor("io_uring")?);
    servers.insert("floor-epoll", floor("epoll")?);
    servers.insert("hypercache", node(1, "auto")?);
    servers.insert("hypercache-epoll", node(1, "epoll")?);
    servers.insert("hypercache-2", node(2, "auto")?);
    match redis() {
        Ok(server) => drop(servers.insert("redis", server)),
        Err(error) => println!("redis-server is not measured: {error}"),
    }

    let base = Load {
        duration: Duration::from_secs(seconds),
        ..Load::default()
    };
    let mut cases = Vec::new();
    for pipeline in [1, 16] {
        for put in [false, true] {
            for server in [
                "floor",
                "hypercache",
                "redis",
                "floor-epoll",
                "hypercache-epoll",
            ] {
                let protocol = if server == "redis" {
                    Protocol::Resp
                } else {
                    Protocol::Http
                };
                // The floor knows one answer: it is measured with GET only.
                if !(put && server.starts_with("floor")) {
                    cases.push((
                        server,
                        Load {
                            pipeline,
                            put_percent: 100 * u32::from(put),
                            protocol,
                            ..base.clone()
                        },
                    ));
                }
            }
        }
        for locality in [Locality::Local, Locality::Half] {
            cases.push((
                "hypercache-2",
                Load {
                    pipeline,
                    locality,
                    ..base.clone()
                },
            ));
        }
    }
    let mut results: Vec<(Rounds, Rounds)> = vec![Default::default(); cases.len()];
    for _ in 0..rounds {
        for ((name, load), (cpu, rate)) in cases.iter().zip(&mut results) {
            let Some(server) = servers.get(name) else {
                continue;
            };
            let load = Load {
                targets: vec![server.address.clone()],
                ..load.clone()
            };
            let outcome = load
                .run(&[server.pid()])
                .map_err(|error| io::Error::other(format!("{name}: {error}")))?;
            cpu.push(outcome.server_cpu_us);
            rate.push(outcome.requests as f64 / outcome.seconds);
        }
    }
    println!(
        "\n| server | operation | pipeline | keys | CPU us/request: median (min to max) | requests/s |"
    );
    println!("|---|---|---|---|---|---|");
    let mut medians = BTreeMap::new();
    for ((name, load), (cpu, rate)) in cases.iter().zip(&results) {
        if cpu.is_empty() {
            continue;
        }
        let operation = if load.put_percent > 0 { "PUT" } else { "GET" };
        let (cpu_median, rate) = (cpu.median(), rate.median());
        println!(
            "| {name} | {operation} | {} | {:?} | {cpu_median:.3} ({:.3} to {:.3}) | {rate:.0} |",
            load.pipeline,
            load.locality,
            cpu.min(),
            cpu.max()
        );
        medians.insert(
            format!("{name} {operation} {} {:?}", load.pipeline, load.locality),
            cpu_median,
        );
    }
    println!("\n| target | reached | at most |\n|---|---|---|");
    for (what, one, other, most) in [
        (
            "GET, to the floor",
            "hypercache GET 1 Any",
            "floor GET 1 Any",
            1.10,
        ),
        (
            "GET pipelined 16, to the floor",
            "hypercache GET 16 Any",
            "floor GET 16 Any",
            1.6,
        ),
        (
            "GET pipelined 16, to redis",
            "hypercache GET 16 Any",
            "redis GET 16 Any",
            1.0,
        ),
        (
            "half of the keys elsewhere, to none, pipelined 16",
            "hypercache-2 GET 16 Half",
            "hypercache-2 GET 16 Local",
            1.5,
        ),
    ] {
        if let (Some(one), Some(other)) = (medians.get(one), medians.get(other)) {
            let ratio = one / other;
            print_target(what, ratio, &format!("{most:.2}"), ratio <= most);
        }
    }
    Ok(())
}
