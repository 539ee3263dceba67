//! The hot path, to be run under callgrind by `perf/profile instructions`: a case is warmed
//! up, then answers so many requests within `hypercache_measured`, where instructions are
//! counted.
//!
//! `instructions list` names the cases, `instructions CASE REQUESTS` runs one and prints how
//! many requests it has answered in there; without arguments each is run for a moment.
#![allow(missing_docs)]

mod hot_path;

use std::hint::black_box;
use std::process::ExitCode;

use hot_path::{CASES, Case, HotPath};

/// Turns before anything is counted: buffers have their size then.
const WARM_UP: usize = 200;

fn main() -> ExitCode {
    // Cargo passes `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments.as_slice() {
        [] => exit_code(CASES.iter().all(|&case| run(case, 1600))),
        ["list"] => {
            CASES.iter().for_each(|case| println!("{}", case.name));
            ExitCode::SUCCESS
        }
        [name, requests] => {
            let case = CASES.into_iter().find(|case| case.name == name);
            let (Some(case), Ok(requests)) = (case, requests.parse()) else {
                return ExitCode::from(2);
            };
            exit_code(run(case, requests))
        }
        _ => ExitCode::from(2),
    }
}

fn exit_code(right: bool) -> ExitCode {
    ExitCode::from(u8::from(!right))
}

/// Whether the case is answered as it should be.
fn run(case: Case, requests: usize) -> bool {
    let Ok(mut path) = HotPath::new(case) else {
        return false;
    };
    if !path.is_right(case) {
        eprintln!("{}: wrong answers", case.name);
        return false;
    }
    (0..WARM_UP).for_each(|_| {
        path.turn();
    });
    let turns = requests / case.pipeline;
    black_box(hypercache_measured(&mut path, turns));
    println!("{} {}", case.name, turns * case.pipeline);
    true
}

/// Callgrind collects while this runs; it finds it by its name.
#[inline(never)]
fn hypercache_measured(path: &mut HotPath, turns: usize) -> usize {
    (0..turns).map(|_| path.turn()).sum()
}
