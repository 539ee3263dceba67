//! The hypercache binary: arguments, settings, start, exit code; nothing else.

use std::process::ExitCode;

use hypercache::node::lifecycle;
use hypercache::settings::{Invocation, Settings};
use hypercache::telemetry::logs;

fn main() -> ExitCode {
    let hostname = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let invocation = Settings::from(std::env::args_os().skip(1), std::env::vars_os(), &hostname);
    match invocation {
        Ok(Invocation::Help(text) | Invocation::Version(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Invocation::CheckConfig(settings)) => match lifecycle::check(&settings) {
            Ok(()) => {
                println!("configuration ok");
                ExitCode::SUCCESS
            }
            Err(error) => {
                logs::start_error(&error.to_string());
                ExitCode::from(2)
            }
        },
        Ok(Invocation::Run(settings)) => run(&settings),
        Err(error) => {
            logs::start_error(&error.to_string());
            ExitCode::from(2)
        }
    }
}

fn run(settings: &Settings) -> ExitCode {
    keep_frees_short();
    if let Err(error) = logs::init(settings.log_level) {
        logs::start_error(&format!("cannot start a thread: {error}"));
        return ExitCode::FAILURE;
    }
    let code = lifecycle::run(settings).unwrap_or_else(|error| {
        logs::start_error(&error.to_string());
        ExitCode::FAILURE
    });
    logs::flush();
    code
}

/// Has glibc merge small freed blocks as they are freed. By default it keeps them
/// apart and merges all of them when the next large block is asked for: after
/// millions of evicted items that one call takes tens of milliseconds.
fn keep_frees_short() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes plain numbers; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MXFAST, 0);
    }
}
