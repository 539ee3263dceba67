//! A network between real nodes, with the faults that networks have.
//!
//! Each node runs in a network namespace of its own, whose only way out is a TUN device. This
//! process holds the other ends of all of them and is the switch: one thread takes each packet
//! and drops it, keeps it back or hands it on, as the link from its sender to its receiver
//! says. What kernels, connections and nodes make of that is real. The test's clients are one
//! more port of the switch, and their links have no faults.
//!
//! This needs namespaces and TUN devices, and no program. `tc` would need `netem`, a classifier
//! and an action that drops, and kernels made for small virtual machines often have none.
//!
//! Nothing remains, however the process ends. Namespaces and devices have no names outside of
//! it: the kernel removes them with the last process and descriptor that hold them. And it kills
//! the nodes with the thread that started them.

#![allow(
    clippy::expect_used,
    reason = "a failure here is a failed test, or one that cannot run"
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypercache::cluster::rng::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{getegid, geteuid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::cluster::Place;

/// The first three bytes of all addresses. Nobody else sees them.
const NETWORK: &str = "10.77.0";
/// The last byte of the clients' address; that of a node is its number and 1.
const CLIENTS: u8 = 254;
/// No device here hands out longer packets.
const PACKET_BYTES_MAX: usize = 1500;
/// What would wait longer than this for a link of limited rate is dropped.
const QUEUE_TIME_MAX: Duration = Duration::from_millis(200);

/// What becomes of packets from one node to another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// How many of a hundred are lost, by chance.
    pub loss_percent: usize,
    /// How long each is under way at least.
    pub delay: Duration,
    /// How much longer at most, by chance: packets overtake each other.
    pub jitter: Duration,
    /// Bits per second, if they are limited.
    pub rate: Option<u32>,
}

/// Nothing arrives, and nobody is told.
pub const CUT: Link = Link {
    loss_percent: 100,
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    rate: None,
};

/// From each port to each port.
type Links = Vec<Vec<Link>>;

/// Namespaces for nodes, and the switch between them. It ends when dropped.
pub struct Network {
    /// One for each node.
    namespaces: Vec<File>,
    links: Arc<Mutex<Links>>,
    lost: Arc<AtomicU64>,
    switch: Option<JoinHandle<()>>,
    /// The switch ends when this is closed.
    running: Option<UnixStream>,
}

/// Moves this process into a network namespace of its own, and if it is not root into a user
/// namespace where it is, and sees that a network can be made there. Else says what is missing.
///
/// No other thread may run yet.
pub fn isolate() -> Result<(), String> {
    let (user, group) = (geteuid(), getegid());
    if unshare(UnshareFlags::NEWNET).is_err() {
        unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)
            .map_err(|error| format!("no network namespace can be made: {error}"))?;
        fs::write("/proc/self/setgroups", "deny")
            .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw())))
            .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw())))
            .map_err(|error| format!("no user can be mapped into a user namespace: {error}"))?;
    }
    Network::between(1).map(drop)
}

fn unshare(what: UnshareFlags) -> io::Result<()> {
    // SAFETY: descriptor tables stay shared.
    Ok(unsafe { unshare_unsafe(what) }?)
}

impl Network {
    /// A network for so many nodes, without faults.
    pub fn between(nodes: usize) -> Result<Self, String> {
        let mut namespaces = Vec::new();
        let mut ports = Vec::new();
        for node in 0..nodes {
            // A thread to be left behind, because it cannot go back.
            let opened = std::thread::spawn(move || {
                unshare(UnshareFlags::NEWNET)
                    .map_err(|error| format!("no further network namespace: {error}"))?;
                let namespace = File::open("/proc/thread-self/ns/net")
                    .map_err(|error| format!("/proc/thread-self/ns/net: {error}"))?;
                Ok::<_, String>((namespace, open_port(host(node))?))
            });
            let (namespace, port) = opened.join().expect("opening does not panic")?;
            namespaces.push(namespace);
            ports.push(port);
        }
        ports.push(open_port(CLIENTS)?);
        let links = vec![vec![Link::default(); ports.len()]; ports.len()];
        let links = Arc::new(Mutex::new(links));
        let lost = Arc::default();
        let switch = Switch::new(ports, Arc::clone(&links), Arc::clone(&lost));
        let (running, ended) = UnixStream::pair().map_err(|error| error.to_string())?;
        Ok(Self {
            namespaces,
            links,
            lost,
            switch: Some(std::thread::spawn(move || switch.run(&ended))),
            running: Some(running),
        })
    }

    /// Sets what becomes of packets from one node to another.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        self.links.lock().expect("the switch runs")[from][to] = link;
    }

    /// Sets what becomes of packets between any of some nodes and any of others, both ways.
    pub fn set_between(&self, some: &[usize], others: &[usize], link: Link) {
        for &one in some {
            for &other in others {
                self.set(one, other, link);
                self.set(other, one, link);
            }
        }
    }

    /// How many packets were lost because a link said so.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        let mut links = self.links.lock().expect("the switch runs");
        links
            .iter_mut()
            .flatten()
            .for_each(|link| *link = Link::default());
    }
}

impl Place for Network {
    fn network(&self) -> &str {
        NETWORK
    }

    fn enter(&self, node: usize, command: &mut Command) {
        let namespace = self.namespaces[node]
            .try_clone()
            .expect("descriptors are left");
        // SAFETY: one system call, on a descriptor that the closure owns.
        unsafe {
            command.pre_exec(move || {
                let kind = Some(LinkNameSpaceType::Network);
                Ok(move_into_link_name_space(namespace.as_fd(), kind)?)
            });
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.running = None;
        if let Some(switch) = self.switch.take() {
            let ended = switch.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the switch failed"
            );
        }
    }
}

/// Carries packets from port to port.
struct Switch {
    /// The nodes' devices, then the clients'.
    ports: Vec<File>,
    links: Arc<Mutex<Links>>,
    lost: Arc<AtomicU64>,
    /// For each link of limited rate when it has sent what it took.
    free_at: Vec<Vec<Instant>>,
    under_way: BinaryHeap<Reverse<Packet>>,
    /// How many packets were taken.
    taken: u64,
    rng: Rng,
}

/// In the order in which they arrive.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    arrives: Instant,
    /// Those that arrive at the same time do so in the order in which they were sent.
    number: u64,
    to: usize,
    bytes: Vec<u8>,
}

impl Switch {
    fn new(ports: Vec<File>, links: Arc<Mutex<Links>>, lost: Arc<AtomicU64>) -> Self {
        Self {
            free_at: vec![vec![Instant::now(); ports.len()]; ports.len()],
            ports,
            links,
            lost,
            under_way: BinaryHeap::new(),
            taken: 0,
            rng: Rng::new(0),
        }
    }

    fn run(mut self, ended: &UnixStream) {
        let mut bytes = [0; PACKET_BYTES_MAX];
        while !self.wait(ended) {
            for from in 0..self.ports.len() {
                match self.ports[from].read(&mut bytes) {
                    Ok(count) => self.take(from, &bytes[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => panic!("reading from a port: {error}"),
                }
            }
            self.deliver();
        }
    }

    /// Waits for a packet or until one arrives; whether the end came instead.
    fn wait(&self, ended: &UnixStream) -> bool {
        let next = self.under_way.peek().map(|Reverse(packet)| {
            let wait = packet.arrives.saturating_duration_since(Instant::now());
            Timespec::try_from(wait).expect("a short time")
        });
        let ports = self.ports.iter();
        let mut polled: Vec<_> = ports
            .map(|port| PollFd::new(port, PollFlags::IN))
            .chain([PollFd::new(ended, PollFlags::IN)])
            .collect();
        match poll(&mut polled, next.as_ref()) {
            Ok(_) => polled.last().is_some_and(|end| !end.revents().is_empty()),
            Err(rustix::io::Errno::INTR) => false,
            Err(error) => panic!("waiting for packets: {error}"),
        }
    }

    fn take(&mut self, from: usize, bytes: &[u8]) {
        let Some(to) = self.receiver(bytes) else {
            return;
        };
        let link = self.links.lock().expect("no test panics with it")[from][to];
        if self.rng.below(100) < link.loss_percent {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = Instant::now();
        let jitter = self.rng.below(link.jitter.as_micros() as usize + 1);
        let mut arrives = now + link.delay + Duration::from_micros(jitter as u64);
        if let Some(rate) = link.rate {
            let free_at = &mut self.free_at[from][to];
            let queued = free_at.saturating_duration_since(now);
            if queued > QUEUE_TIME_MAX {
                return;
            }
            let sending = Duration::from_secs(bytes.len() as u64 * 8) / rate;
            *free_at = now + queued + sending;
            arrives += queued + sending;
        }
        self.taken += 1;
        self.under_way.push(Reverse(Packet {
            arrives,
            number: self.taken,
            to,
            bytes: bytes.to_vec(),
        }));
    }

    /// The port that an IPv4 packet is for (RFC 791 section 3.1).
    fn receiver(&self, packet: &[u8]) -> Option<usize> {
        let is_ipv4 = packet.first()? >> 4 == 4;
        let host = *packet.get(19).filter(|_| is_ipv4)?;
        let clients = self.ports.len() - 1;
        match host {
            CLIENTS => Some(clients),
            _ => usize::from(host)
                .checked_sub(1)
                .filter(|&node| node < clients),
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(packet)) = self.under_way.peek()
            && packet.arrives <= now
        {
            // What a kernel does not take is lost like what a network loses.
            let _ = self.ports[packet.to].write(&packet.bytes);
            self.under_way.pop();
        }
    }
}

/// The last byte of a node's address.
fn host(node: usize) -> u8 {
    u8::try_from(node + 1).expect("a handful of nodes")
}

/// Makes this thread's namespace a port of the switch, under an address.
fn open_port(host: u8) -> Result<File, String> {
    const DEVICE: &str = "port";
    let tun = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|error| format!("/dev/net/tun: {error}"))?;
    let kind = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let configured = || -> io::Result<()> {
        ioctl(&tun, libc::TUNSETIFF, &mut flags(DEVICE, kind))?;
        // Any socket stands for the namespace it was made in.
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut address = ipv4(DEVICE, [10, 77, 0, host]);
        ioctl(&socket, libc::SIOCSIFADDR, &mut address)?;
        let mut mask = ipv4(DEVICE, [255, 255, 255, 0]);
        ioctl(&socket, libc::SIOCSIFNETMASK, &mut mask)?;
        for device in ["lo", DEVICE] {
            let mut up = flags(device, libc::IFF_UP as libc::c_short);
            ioctl(&socket, libc::SIOCSIFFLAGS, &mut up)?;
        }
        Ok(())
    };
    configured().map_err(|error| format!("no TUN device can be made: {error}"))?;
    Ok(tun)
}

fn flags(device: &str, ifru_flags: libc::c_short) -> libc::ifreq {
    ifreq(device, libc::__c_anonymous_ifr_ifru { ifru_flags })
}

fn ipv4(device: &str, address: [u8; 4]) -> libc::ifreq {
    let mut sa_data = [0; 14];
    // Behind the port.
    for (byte, to) in address.into_iter().zip(&mut sa_data[2..]) {
        *to = byte as libc::c_char;
    }
    let ifru_addr = libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data,
    };
    ifreq(device, libc::__c_anonymous_ifr_ifru { ifru_addr })
}

fn ifreq(device: &str, ifr_ifru: libc::__c_anonymous_ifr_ifru) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (byte, to) in device.bytes().zip(&mut ifr_name) {
        *to = byte as libc::c_char;
    }
    libc::ifreq { ifr_name, ifr_ifru }
}

fn ioctl(to: &impl AsRawFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the calls made here read and write one `ifreq`, which lives until they return.
    match unsafe { libc::ioctl(to.as_raw_fd(), number, request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
