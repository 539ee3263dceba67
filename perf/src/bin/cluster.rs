//! Runs a cluster of nodes on this machine until Ctrl-C.
//!
//! `./perf/cluster [nodes]`; node n serves clients on 127.0.0.1:8080+n, management on
//! 9080+n and peers on 7945+n. `HYPERCACHE_` settings in the environment go to all.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use hypercache_perf::servers::{Addresses, await_ready, build, confine, id, member};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// More would not fit the ports.
const NODES_MAX: u16 = 100;

struct Node {
    id: String,
    log: PathBuf,
    child: Child,
    running: bool,
}

impl Node {
    /// Notices when it has ended.
    fn ended(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        if !self.running {
            return Ok(None);
        }
        let status = self.child.try_wait()?;
        self.running = status.is_none();
        Ok(status)
    }

    fn last_line(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or_default().to_owned()
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let count = match std::env::args().nth(1) {
        None => 5,
        Some(text) => match text.parse() {
            Ok(count @ 1..=NODES_MAX) => count,
            _ => {
                let what = format!("{text}: expected a number of nodes from 1 to {NODES_MAX}");
                return Err(io::Error::other(what));
            }
        },
    };
    build(&["--bin", "hypercache"])?;
    let signals = listen()?;
    let addresses: Vec<Addresses> = (1..=count)
        .map(|node| Addresses {
            api: format!("127.0.0.1:{}", 8080 + node),
            management: format!("127.0.0.1:{}", 9080 + node),
            peers: format!("127.0.0.1:{}", 7945 + node),
        })
        .collect();
    let mut nodes = (0..usize::from(count))
        .map(|node| start(node, &addresses))
        .collect::<io::Result<Vec<_>>>()?;
    println!(
        "{:<10}{:<28}{:<28}{:<18}pid",
        "node", "clients", "management", "peers"
    );
    for (node, addresses) in nodes.iter().zip(&addresses) {
        let (api, management) = (&addresses.api, &addresses.management);
        println!(
            "{:<10}{:<28}{:<28}{:<18}{}",
            node.id,
            format!("http://{api}"),
            format!("http://{management}"),
            addresses.peers,
            node.child.id()
        );
    }
    println!("logs: {}", log_folder()?.display());
    let ready = std::thread::spawn(move || {
        addresses
            .iter()
            .try_for_each(|node| await_ready(&node.management, addresses.len()))
    });
    let stopped = watch(&mut nodes, &signals, ready);
    stop(&mut nodes)?;
    stopped
}

/// SIGINT and SIGTERM, and ends of nodes, as messages.
fn listen() -> io::Result<mpsc::Receiver<i32>> {
    let (send, receive) = mpsc::channel();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGCHLD])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if send.send(signal).is_err() {
                return;
            }
        }
    });
    Ok(receive)
}

fn log_folder() -> io::Result<PathBuf> {
    let folder = std::env::current_exe()?.with_file_name("cluster-logs");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn start(node: usize, addresses: &[Addresses]) -> io::Result<Node> {
    let binary = hypercache_perf::servers::beside("hypercache")?;
    let log = log_folder()?.join(format!("{}.log", id(node)));
    let mut command = member(node, addresses, &binary);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        // Ctrl-C reaches this program only, which then stops the nodes.
        .process_group(0);
    confine(&mut command, &[]);
    Ok(Node {
        id: id(node),
        log,
        child: command.spawn()?,
        running: true,
    })
}

/// Returns when it is told to stop, or when the cluster did not form.
fn watch(
    nodes: &mut [Node],
    signals: &mpsc::Receiver<i32>,
    ready: std::thread::JoinHandle<io::Result<()>>,
) -> io::Result<()> {
    let mut ready = Some(ready);
    loop {
        if let Some(finished) = ready.take_if(|ready| ready.is_finished()) {
            finished
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the wait for the nodes failed")))?;
            println!("ready: any node serves any key; Ctrl-C stops them");
        }
        match signals.recv_timeout(Duration::from_millis(100)) {
            Ok(SIGINT | SIGTERM) => return Ok(()),
            Ok(_) | Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("no signals can be received"));
            }
        }
        for node in nodes.iter_mut() {
            if let Some(status) = node.ended()? {
                println!("{} ended, {status}: {}", node.id, node.last_line());
                if ready.is_some() {
                    return Err(io::Error::other("the cluster did not form"));
                }
            }
        }
        if nodes.iter().all(|node| !node.running) {
            return Err(io::Error::other("no node is left"));
        }
    }
}

/// Stops the nodes as an operator would, all at once, and waits for them.
fn stop(nodes: &mut [Node]) -> io::Result<()> {
    for node in nodes.iter().filter(|node| node.running) {
        // SAFETY: a system call on plain values; the child is not reaped yet.
        unsafe { libc::kill(node.child.id() as i32, libc::SIGTERM) };
    }
    for node in nodes.iter_mut().filter(|node| node.running) {
        let status = node.child.wait()?;
        println!("{} stopped, {status}", node.id);
    }
    Ok(())
}
