//! Measures what telemetry costs a node: processor time per GET of a build that leaves out
//! what requests are measured by, of a node as it is, and of nodes that export by OTLP to a
//! collector that takes what it is sent and never answers. A second node as it is shows what
//! two equal nodes differ by.
//!
//! `cargo run --release -p hypercache-perf --bin telemetry [rounds] [seconds]`

use std::fs;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hypercache_perf::report::{Rounds, print_machine, print_target};
use hypercache_perf::servers::{Server, build, node_of, node_with};
use hypercache_perf::{Load, pin};

/// The most that telemetry may cost, to a build without, and a collector that hangs, to a
/// node without one.
const RATIO_MAX: f64 = 1.03;

/// Where the build without telemetry goes.
const WITHOUT: &str = "target/without-telemetry";

/// A node that is measured, and what it is told.
struct Case {
    name: &'static str,
    server: Server,
}

/// What was measured of one case with one depth of pipelining.
#[derive(Clone, Default)]
struct Results {
    /// Of all threads of the node, per GET.
    cpu_us: Rounds,
    /// How much of a CPU the thread that exports takes, in percent.
    exporter: Rounds,
    rate: Rounds,
}

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let rounds = args.next().and_then(Result::ok).unwrap_or(5);
    let seconds = args.next().and_then(Result::ok).unwrap_or(2);
    build(&["--bin", "hypercache"])?;
    let without = ["--features", "without-telemetry", "--target-dir", WITHOUT];
    build(&[&["--bin", "hypercache"], &without[..]].concat())?;
    let without = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(WITHOUT);
    let without = without.join("release/hypercache");
    pin(1);
    print_machine(&["rustc"]);

    let endpoint = hanging_collector()?;
    let exporting = |more: &[(&str, &str)]| -> Vec<(String, String)> {
        let own = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let all = own.iter().chain(more);
        all.map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    let case = |name, settings: &[(String, String)]| -> io::Result<Case> {
        let server = node_with(1, "auto", settings)?;
        Ok(Case { name, server })
    };
    let cases = [
        case("off", &[])?,
        case("off, another node", &[])?,
        Case {
            name: "a build without telemetry",
            server: node_of(&without, 1, "auto", &[])?,
        },
        case("hanging collector", &exporting(&[]))?,
        case(
            "hanging collector, every request recorded",
            &exporting(&[("OTEL_TRACES_SAMPLER", "always_on")]),
        )?,
    ];
    let depths = [1, 16];
    let mut results = vec![Results::default(); cases.len() * depths.len()];
    for round in 0..rounds as usize {
        for (at, &pipeline) in depths.iter().enumerate() {
            for turn in 0..cases.len() {
                // Whoever comes first is not always the same.
                let index = (round + turn) % cases.len();
                let case = &cases[index];
                let results = &mut results[at * cases.len() + index];
                measure(case, pipeline, Duration::from_secs(seconds), results)?;
            }
        }
    }

    println!(
        "\n| OTLP | pipeline | CPU us/GET: median (min to max) | exporting thread, % of a CPU | GET/s |"
    );
    println!("|---|---|---|---|---|");
    for (at, pipeline) in depths.iter().enumerate() {
        for (index, case) in cases.iter().enumerate() {
            let Results {
                cpu_us,
                exporter,
                rate,
            } = &results[at * cases.len() + index];
            println!(
                "| {} | {pipeline} | {:.3} ({:.3} to {:.3}) | {:.3} | {:.0} |",
                case.name,
                cpu_us.median(),
                cpu_us.min(),
                cpu_us.max(),
                exporter.median(),
                rate.median()
            );
        }
    }
    println!("\n| target | reached | at most |\n|---|---|---|");
    for (at, pipeline) in depths.iter().enumerate() {
        let of = |index: usize| results[at * cases.len() + index].cpu_us.median();
        let off = of(0).min(of(1));
        let ratio = (of(0) + of(1)) / 2.0 / of(2);
        print_target(
            &format!("as it is, to a build without telemetry, pipelined {pipeline}"),
            ratio,
            &format!("{RATIO_MAX:.2}"),
            ratio <= RATIO_MAX,
        );
        let ratio = of(3) / off;
        println!(
            "| two nodes without OTLP, pipelined {pipeline} | {:.2} | |",
            of(0).max(of(1)) / off
        );
        print_target(
            &format!("collector hangs, to off, pipelined {pipeline}"),
            ratio,
            &format!("{RATIO_MAX:.2}"),
            ratio <= RATIO_MAX,
        );
    }
    Ok(())
}

/// One round of one case.
fn measure(
    case: &Case,
    pipeline: usize,
    duration: Duration,
    results: &mut Results,
) -> io::Result<()> {
    let load = Load {
        targets: vec![case.server.address.clone()],
        pipeline,
        duration,
        ..Load::default()
    };
    let (before, started) = (exporter_ns(&case.server)?, Instant::now());
    let outcome = load
        .run(&[case.server.pid()])
        .map_err(|error| io::Error::other(format!("{}: {error}", case.name)))?;
    let exporter_ns = exporter_ns(&case.server)? - before;
    let share = exporter_ns as f64 / started.elapsed().as_nanos() as f64;
    results.cpu_us.push(outcome.server_cpu_us);
    results.exporter.push(100.0 * share);
    results.rate.push(outcome.requests as f64 / outcome.seconds);
    Ok(())
}

/// For how long the node's exporting thread has run, where it has one.
fn exporter_ns(server: &Server) -> io::Result<u64> {
    for task in fs::read_dir(format!("/proc/{}/task", server.pid()))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == "telemetry" {
            let stat = fs::read_to_string(task.join("schedstat"))?;
            let ran = stat.split(' ').next().and_then(|ran| ran.parse().ok());
            return ran.ok_or_else(|| io::Error::other("schedstat has another form"));
        }
    }
    Ok(0)
}

/// Takes all that it is sent and answers nothing; returns its URL.
fn hanging_collector() -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || swallow(stream));
        }
    });
    Ok(format!("http://{address}"))
}

fn swallow(mut stream: TcpStream) {
    let mut chunk = [0; 64 << 10];
    while stream.read(&mut chunk).is_ok_and(|count| count > 0) {}
}
