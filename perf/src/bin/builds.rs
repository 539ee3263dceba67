//! Compares builds of the node, as linked with one C library or another.
//!
//! `cargo run --release -p hypercache-perf --bin builds [rounds] [seconds] binary…`
//!
//! Drives a node of each binary in turn and prints medians. The same binary named twice
//! shows what equal nodes differ by.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use hypercache_perf::report::{Rounds, exit_code, print_machine};
use hypercache_perf::servers::{Server, node_of};
use hypercache_perf::{Load, Locality, pin};

/// Cores, whether it writes, requests pipelined, bytes of a value, which keys.
const CASES: [(usize, bool, usize, usize, Locality); 7] = [
    (1, false, 1, 100, Locality::Any),
    (1, false, 16, 100, Locality::Any),
    (1, true, 1, 100, Locality::Any),
    (1, true, 16, 100, Locality::Any),
    (1, true, 1, 16 << 10, Locality::Any),
    (2, true, 16, 100, Locality::Half),
    (2, true, 1, 16 << 10, Locality::Half),
];

fn main() -> ExitCode {
    exit_code(run().map(|()| true))
}

fn run() -> io::Result<()> {
    let (numbers, binaries): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|argument| argument.parse::<u64>().is_ok());
    let mut numbers = numbers.iter().flat_map(|number| number.parse::<u64>());
    let (rounds, seconds) = (numbers.next().unwrap_or(5), numbers.next().unwrap_or(1));
    let binaries: Vec<PathBuf> = binaries.iter().map(PathBuf::from).collect();
    if binaries.is_empty() {
        return Err(io::Error::other("name the binaries to compare"));
    }
    pin(1);
    print_machine(&["rustc"]);
    let start = |cores| -> io::Result<Vec<Server>> {
        let node = |binary| node_of(binary, cores, "auto", &[]);
        binaries.iter().map(|binary| node(binary)).collect()
    };
    println!(
        "\n| binary | cores | operation | bytes | pipeline | CPU us/request: median (min to max) | requests/s |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (cores, put, pipeline, value_bytes, locality) in CASES {
        let servers = start(cores)?;
        let mut results: Vec<(Rounds, Rounds)> = vec![Default::default(); servers.len()];
        for _ in 0..rounds {
            for (server, (cpu, rate)) in servers.iter().zip(&mut results) {
                let load = Load {
                    targets: vec![server.address.clone()],
                    put_percent: 100 * u32::from(put),
                    pipeline,
                    value_bytes,
                    locality,
                    duration: Duration::from_secs(seconds),
                    ..Load::default()
                };
                let outcome = load.run(&[server.pid()])?;
                cpu.push(outcome.server_cpu_us);
                rate.push(outcome.requests as f64 / outcome.seconds);
            }
        }
        let operation = if put { "PUT" } else { "GET" };
        for (binary, (cpu, rate)) in binaries.iter().zip(&results) {
            println!(
                "| {} | {cores} | {operation} | {value_bytes} | {pipeline} | {:.3} ({:.3} to {:.3}) | {:.0} |",
                binary.display(),
                cpu.median(),
                cpu.min(),
                cpu.max(),
                rate.median()
            );
        }
    }
    Ok(())
}
