//! Measures hypercache beside redis-server, memcached, nginx and the floor: throughput in a
//! closed loop, latency at fixed rates. perf/README.md tells how, and how to read it.
//!
//! `cargo run --release -p hypercache-perf --bin peers -- --help`

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use hypercache_perf::peers::{Invocation, Options, run};
use hypercache_perf::report::exit_code;
use hypercache_perf::servers::beside;

fn main() -> ExitCode {
    match Invocation::parse(std::env::args().skip(1)) {
        Ok(Invocation::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Invocation::Run(options)) => exit_code(measure(&options).map(|()| true)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn measure(options: &Options) -> io::Result<()> {
    let report = run(options)?;
    print!("{}", report.markdown());
    println!();
    let json = place(options.json.as_ref(), "peers.json")?;
    std::fs::write(&json, serde_json::to_string_pretty(&report)?)?;
    println!("All figures: {}", json.display());
    if let Some(picture) = report.svg() {
        let svg = place(options.svg.as_ref(), "peers.svg")?;
        std::fs::write(&svg, picture)?;
        println!("Throughput against p99: {}", svg.display());
    }
    Ok(())
}

fn place(chosen: Option<&PathBuf>, name: &str) -> io::Result<PathBuf> {
    chosen.map_or_else(|| beside(name), |path| Ok(path.clone()))
}
