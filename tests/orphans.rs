//! The node as process 1 of a PID namespace, as it is in a container: it ends when it is told
//! to, and whoever loses its parent there does not remain as a zombie.
//!
//! The namespace is made by `unshare` of util-linux, as root or in a user namespace. Where it
//! cannot be made no case runs, and one line on stderr says so: this file has its own `main`,
//! because what a passing `#[test]` prints is not shown.

#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

#[path = "support/files.rs"]
mod files;
#[path = "support/node.rs"]
mod node;

use std::fs;
use std::io::{BufRead, BufReader, PipeWriter, Write, pipe};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::catch_unwind;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use files::Folder;
use node::{GUARD, Node};
use rustix::process::{Pid, Signal, kill_process};

/// `unshare` ends with its child and tells its exit code; whoever kills `unshare`, or ends
/// the test, ends the namespace.
const NAMESPACE: &[&str] = &[
    "setpriv",
    "--pdeathsig=KILL",
    "unshare",
    "--pid",
    "--fork",
    "--kill-child=KILL",
];
const USER_NAMESPACE: &[&str] = &["--user", "--map-root-user"];

/// Leaves two orphans to what is run as `$0`, which is process 1 then: one has ended before,
/// the other does when standard input does.
const WITH_ORPHANS: &str =
    "(true &); exec 3<&0; (cat <&3 >&2 &); exec 3<&-; exec \"$0\" </dev/null";

/// How often is looked at what is waited for.
const POLL: Duration = Duration::from_millis(5);

type Case = fn(&[&str]);

const CASES: &[(&str, Case)] = &[
    ("process_1_waits_for_orphans", process_1_waits_for_orphans),
    ("process_1_ends_when_told_to", process_1_ends_when_told_to),
    (
        "process_1_ends_when_told_to_while_it_starts",
        process_1_ends_when_told_to_while_it_starts,
    ),
    (
        "process_1_is_not_ended_by_other_signals",
        process_1_is_not_ended_by_other_signals,
    ),
];

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let namespace = match namespace() {
        Ok(namespace) => namespace,
        Err(reason) => {
            eprintln!("orphans: NOT RUN: {reason}");
            return ExitCode::SUCCESS;
        }
    };
    let mut failed = 0;
    for (name, case) in CASES {
        let result = match catch_unwind(|| case(&namespace)) {
            Ok(()) => "ok",
            Err(_) => {
                failed += 1;
                "FAILED"
            }
        };
        println!("orphans: {name} ... {result}");
    }
    println!("orphans: {} run, {failed} failed", CASES.len());
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The command that a namespace can be made with here, or what is missing.
fn namespace() -> Result<Vec<&'static str>, String> {
    let mut reason = String::new();
    for command in [NAMESPACE.to_vec(), [NAMESPACE, USER_NAMESPACE].concat()] {
        match Command::new(command[0])
            .args(&command[1..])
            .arg("true")
            .output()
        {
            Ok(output) if output.status.success() => return Ok(command),
            Ok(output) => reason = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => reason = format!("{}: {error}", command[0]),
        }
    }
    Err(reason)
}

/// A node that is process 1 of its own namespace, with orphans.
struct Init {
    /// `unshare`, which is the parent of process 1.
    outer: Node,
    /// The number of process 1 outside.
    pid: Pid,
    /// While this is open, one orphan runs.
    orphan: Option<PipeWriter>,
}

impl Init {
    fn start(namespace: &[&str]) -> Self {
        let (input, orphan) = pipe().unwrap();
        let mut command = as_process_1(namespace, &[]);
        command.stdin(input);
        let outer = Node::spawn(command);
        Self {
            pid: process_1(outer.pid()),
            outer,
            orphan: Some(orphan),
        }
    }

    fn adopted(&self) -> Vec<u32> {
        children(self.pid.as_raw_pid() as u32)
    }
}

/// The command of a node that will be process 1, with its own settings.
fn as_process_1(namespace: &[&str], env: &[(&str, &str)]) -> Command {
    let template = node::command(env);
    let mut command = Command::new(namespace[0]);
    command
        .args(&namespace[1..])
        .args(["sh", "-c", WITH_ORPHANS])
        .arg(template.get_program())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap());
    for (name, value) in template.get_envs() {
        command.env(name, value.unwrap());
    }
    command
}

/// The number that process 1 has outside, as the only child of `unshare`.
fn process_1(outer: u32) -> Pid {
    let children = children(outer);
    let [pid] = children[..] else {
        panic!("one process 1: {children:?}");
    };
    Pid::from_raw(pid as i32).unwrap()
}

/// The processes whose parent this one is, zombies among them.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number| {
            // It may have ended meanwhile.
            let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
            let behind_name = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
            let field = behind_name.split_whitespace().nth(1);
            field.is_some_and(|field| field == parent.to_string())
        })
        .collect()
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < GUARD, "{what}");
        thread::sleep(POLL);
    }
}

fn process_1_waits_for_orphans(namespace: &[&str]) {
    let mut init = Init::start(namespace);
    // `true` ended before the node began; it is waited for without a further signal.
    wait_until("the first is waited for", || init.adopted().len() == 1);
    let mut orphan = init.orphan.take().unwrap();
    orphan.write_all(b"\n").unwrap();
    drop(orphan);
    wait_until("the second is waited for", || init.adopted().is_empty());
    assert_eq!(init.outer.connect().get("/healthz").status, 200);
}

fn process_1_ends_when_told_to(namespace: &[&str]) {
    for signal in [Signal::TERM, Signal::INT] {
        let mut init = Init::start(namespace);
        kill_process(init.pid, signal).unwrap();
        assert_eq!(init.outer.wait().code(), Some(0), "{signal:?}");
    }
}

/// A signal that process 1 does not handle yet is not even pending for it: it would be lost.
fn process_1_ends_when_told_to_while_it_starts(namespace: &[&str]) {
    let folder = Folder::new();
    let token = folder.path("token");
    assert!(
        Command::new("mkfifo")
            .arg(&token)
            .status()
            .unwrap()
            .success()
    );
    let mut command = as_process_1(namespace, &[("HYPERCACHE_AUTH_TOKEN_FILE", &token)]);
    let mut outer = command.spawn().unwrap();
    // It opens as soon as the node reads it, which it then does until this is closed.
    let mut opened = None;
    wait_until("the node reads its token", || {
        let mut options = fs::OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        opened = options.open(&token).ok();
        opened.is_some()
    });
    let mut written = opened.unwrap();
    kill_process(process_1(outer.id()), Signal::TERM).unwrap();
    written.write_all(b"token").unwrap();
    drop(written);
    let log = BufReader::new(outer.stderr.take().unwrap());
    let serving = log.lines().any(|line| line.unwrap().contains("serving"));
    // Or the node would run on.
    let _ = outer.kill();
    let ended = outer.wait().unwrap();
    assert!(!serving, "it serves");
    assert_eq!(ended.code(), Some(128 + libc::SIGTERM));
}

fn process_1_is_not_ended_by_other_signals(namespace: &[&str]) {
    let mut init = Init::start(namespace);
    for signal in [Signal::HUP, Signal::PIPE, Signal::CHILD] {
        kill_process(init.pid, signal).unwrap();
    }
    assert_eq!(init.outer.connect().get("/healthz").status, 200);
    kill_process(init.pid, Signal::TERM).unwrap();
    assert_eq!(init.outer.wait().code(), Some(0));
}
