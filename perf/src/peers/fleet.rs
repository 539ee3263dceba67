//! The servers that are compared: how each is started, alike, on CPU 0.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::results::Facts;
use super::scenarios::Scenario;
use crate::load::Load;
use crate::protocol::Protocol;
use crate::servers::{Server, beside, floor_of, free_port, node, redis, ring, start_at};

/// The CPU of the servers.
const CPU: &[usize] = &[0];

/// Values that memcached may hold, in MiB: more than any scenario stores.
const MEMCACHED_MIB: &str = "4096";

/// Connections that memcached and nginx take: more than any scenario opens.
const CONNECTIONS_MAX: &str = "4096";

/// Up to so many bytes nginx answers with a string of its settings, which cannot be longer
/// than 4096; above that with a file in memory.
const NGINX_STRING_BYTES_MAX: usize = 2048;

/// What names of the floor without the runtime begin with.
const RING: &str = "ring:";

/// A server to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// One core on io_uring where that is allowed.
    Hypercache,
    /// One core on epoll.
    HypercacheEpoll,
    /// The bare runtime on io_uring.
    Floor,
    /// The bare runtime on epoll.
    FloorEpoll,
    /// redis-server without persistence.
    Redis,
    /// memcached with one worker, asked by `get`.
    Memcached,
    /// The same asked by `mg`.
    MemcachedMeta,
    /// nginx with one process and a static answer.
    Nginx,
    /// The floor without the runtime: its name, with variants of it after the colon.
    Ring(&'static str),
}

impl Peer {
    /// All that run unless told otherwise, in the order of the tables.
    pub const ALL: [Self; 8] = [
        Self::Hypercache,
        Self::HypercacheEpoll,
        Self::Floor,
        Self::FloorEpoll,
        Self::Redis,
        Self::Memcached,
        Self::MemcachedMeta,
        Self::Nginx,
    ];

    /// The one with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        if name.starts_with(RING) {
            // One for each word of a command line.
            return Some(Self::Ring(name.to_owned().leak()));
        }
        Self::ALL.into_iter().find(|peer| peer.name() == name)
    }

    /// By which it is chosen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hypercache => "hypercache",
            Self::HypercacheEpoll => "hypercache-epoll",
            Self::Floor => "floor",
            Self::FloorEpoll => "floor-epoll",
            Self::Redis => "redis",
            Self::Memcached => "memcached",
            Self::MemcachedMeta => "memcached-meta",
            Self::Nginx => "nginx",
            Self::Ring(name) => name,
        }
    }

    /// What it speaks.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Redis => Protocol::Resp,
            Self::Memcached => Protocol::Memcached,
            Self::MemcachedMeta => Protocol::MemcachedMeta,
            _ => Protocol::Http,
        }
    }

    /// Whether it knows one answer only.
    fn is_static(self) -> bool {
        matches!(
            self,
            Self::Floor | Self::FloorEpoll | Self::Nginx | Self::Ring(_)
        )
    }

    /// Whether it can do what this scenario asks, and differs in that from the others.
    pub(super) fn can(self, scenario: &Scenario) -> bool {
        match self {
            // It writes as memcached does.
            Self::MemcachedMeta => scenario.put_percent < 100,
            _ => scenario.put_percent == 0 || !self.is_static(),
        }
    }

    fn start(self, value_bytes: usize) -> io::Result<(Server, Option<Scratch>)> {
        let server = match self {
            Self::Hypercache => node(1, "auto"),
            Self::HypercacheEpoll => node(1, "epoll"),
            Self::Floor => floor_of("io_uring", value_bytes),
            Self::FloorEpoll => floor_of("epoll", value_bytes),
            Self::Ring(name) => ring(name[RING.len()..].split('+'), value_bytes),
            Self::Redis => redis(),
            Self::Memcached | Self::MemcachedMeta => memcached(),
            Self::Nginx => return nginx(value_bytes).map(|(server, files)| (server, Some(files))),
        };
        server.map(|server| (server, None))
    }

    /// What its program says of its version.
    fn version(self) -> io::Result<String> {
        let (program, argument): (PathBuf, _) = match self {
            Self::Hypercache | Self::HypercacheEpoll => (beside("hypercache")?, "--version"),
            // They have none of their own: they are built with this program.
            Self::Floor | Self::FloorEpoll | Self::Ring(_) => {
                return Ok(env!("CARGO_PKG_VERSION").to_owned());
            }
            Self::Redis => ("redis-server".into(), "--version"),
            Self::Memcached | Self::MemcachedMeta => ("memcached".into(), "--version"),
            Self::Nginx => ("nginx".into(), "-v"),
        };
        let output = Command::new(program).arg(argument).output()?;
        // nginx says it on the other stream.
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        Ok(said.lines().next().unwrap_or_default().trim().to_owned())
    }
}

/// The servers that run, each started when it is first needed.
#[derive(Default)]
pub(super) struct Fleet {
    /// By the size of the answer too where there is only one.
    running: BTreeMap<(Peer, usize), Server>,
    /// How many keys with values of which size a server was given last.
    stored: BTreeMap<Peer, (usize, usize)>,
    /// Dropped after the servers that use them.
    files: Vec<Scratch>,
}

impl Fleet {
    /// Starts a server and tells its version, or why it cannot be measured.
    pub(super) fn introduce(&mut self, peer: Peer) -> Facts {
        let started = self.server(peer, Load::default().value_bytes).map(|_| ());
        let version = started.and_then(|()| peer.version());
        let (version, missing) = match version {
            Ok(version) => (Some(version), None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (None, Some("not installed".to_owned()))
            }
            Err(error) => (None, Some(error.to_string())),
        };
        Facts {
            server: peer.name(),
            version,
            missing,
        }
    }

    /// The load on this server, which has all keys, and the process that runs it.
    pub(super) fn prepare(&mut self, peer: Peer, load: Load) -> io::Result<(Load, [u32; 1])> {
        let server = self.server(peer, load.value_bytes)?;
        let pids = [server.pid()];
        let targets = vec![server.address.clone()];
        let load = Load { targets, ..load };
        let (keys, value_bytes) = (load.keys.len(), load.value_bytes);
        let stored = self.stored.get(&peer);
        let is_there = stored.is_some_and(|&(k, bytes)| bytes == value_bytes && k >= keys);
        if !peer.is_static() && !is_there {
            load.preload()?;
            self.stored.insert(peer, (keys, value_bytes));
        }
        Ok((load, pids))
    }

    fn server(&mut self, peer: Peer, value_bytes: usize) -> io::Result<&Server> {
        let size = if peer.is_static() { value_bytes } else { 0 };
        match self.running.entry((peer, size)) {
            std::collections::btree_map::Entry::Occupied(server) => Ok(server.into_mut()),
            std::collections::btree_map::Entry::Vacant(place) => {
                let (server, files) = peer.start(value_bytes)?;
                self.files.extend(files);
                Ok(place.insert(server))
            }
        }
    }
}

/// memcached with one worker thread.
fn memcached() -> io::Result<Server> {
    let port = free_port()?.to_string();
    let mut command = Command::new("memcached");
    command
        .args(["-l", "127.0.0.1", "-p", &port, "-U", "0", "-t", "1"])
        .args(["-m", MEMCACHED_MIB, "-c", CONNECTIONS_MAX]);
    // SAFETY: no arguments, and it cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        // It refuses to run as root unless told so.
        command.args(["-u", "root"]);
    }
    start_at(command, CPU, format!("127.0.0.1:{port}"))
}

/// nginx with one process that gives the same answer to every GET.
fn nginx(value_bytes: usize) -> io::Result<(Server, Scratch)> {
    let port = free_port()?;
    let scratch = Scratch::new(&format!("nginx-{value_bytes}"))?;
    let directory = scratch.0.display();
    let answer = match value_bytes {
        0..=NGINX_STRING_BYTES_MAX => format!("return 200 \"{}\";", "v".repeat(value_bytes)),
        _ => {
            fs::write(scratch.0.join("value"), vec![b'v'; value_bytes])?;
            format!("root {directory}; rewrite ^ /value break; open_file_cache max=16;")
        }
    };
    // `master_process off`: the process that was started is the one that serves, and ends
    // with its parent; it is the same loop as that of a worker.
    let settings = format!(
        "daemon off; master_process off; pid {directory}/pid; error_log stderr crit;
        events {{ worker_connections {CONNECTIONS_MAX}; }}
        http {{
            access_log off; sendfile on; tcp_nodelay on;
            keepalive_requests 1000000000; keepalive_timeout 1h;
            client_body_temp_path {directory}; proxy_temp_path {directory};
            fastcgi_temp_path {directory}; uwsgi_temp_path {directory};
            scgi_temp_path {directory};
            server {{
                listen 127.0.0.1:{port};
                default_type application/octet-stream;
                location / {{ {answer} }}
            }}
        }}"
    );
    let file = scratch.0.join("nginx.conf");
    fs::write(&file, settings)?;
    let mut command = Command::new("nginx");
    // What it says before it has read its settings goes to stderr too.
    command.arg("-e").arg("stderr");
    command.arg("-p").arg(&scratch.0).arg("-c").arg(&file);
    let server = start_at(command, CPU, format!("127.0.0.1:{port}"))?;
    Ok((server, scratch))
}

/// A directory of this process, in memory where the system has such, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        let directory = parent.join(format!("hypercache-perf-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory)?;
        Ok(Self(directory))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
