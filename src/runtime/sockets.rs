//! TCP sockets of one core: listeners, streams, and the handles that end their waiting.
//!
//! Promises: a read appends to the buffer it is given and never grows it; a write
//! either sends everything or fails; buffers always come back. Bytes the kernel has
//! delivered are never lost.
//!
//! Never: cancels or drops a pending operation. To end one early (a timeout, a drain)
//! shut the socket down through its [`Aborter`] or [`Closer`] and await the operation:
//! a read then ends with what was still queued and at last with 0, a write and an
//! accept end with an error. That costs nothing per read and is the same on every driver.
//!
//! When the peer is slow, a write waits and takes no further memory; when it is gone,
//! reads end with 0 or an error and writes with an error. When file descriptors run out,
//! `accept` fails with the kernel's error at once: pause before accepting again.

use std::cell::Cell;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::backend;
use super::pending::PendingIo;
use super::segment::{Cursor, Segment};

/// Opens a listening socket that every core may open again on the same address
/// (`SO_REUSEPORT`): the kernel spreads connections over them.
///
/// `[::]` also takes IPv4 connections, and becomes `0.0.0.0` on a machine without IPv6.
/// The socket is non-blocking and closed on exec.
pub fn bind_reuseport(addr: SocketAddr, backlog: u16) -> io::Result<std::net::TcpListener> {
    bind_any_family(addr, Some(backlog))
}

/// Opens a socket on `addr` only if no other socket listens there, whether or not it
/// would share. Drop it before the cores bind: it holds the address alone.
pub fn bind_alone(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    bind_any_family(addr, None)
}

fn bind_any_family(
    addr: SocketAddr,
    shared_backlog: Option<u16>,
) -> io::Result<std::net::TcpListener> {
    let every_address = addr.is_ipv6() && addr.ip().is_unspecified();
    match bind_one(addr, every_address, shared_backlog) {
        Err(error) if every_address && is_without_ipv6(&error) => bind_one(
            SocketAddr::from(([0, 0, 0, 0], addr.port())),
            false,
            shared_backlog,
        ),
        bound => bound,
    }
}

/// Binds, and listens where `shared_backlog` says how many connections may wait: then
/// other sockets may do the same.
fn bind_one(
    addr: SocketAddr,
    dual: bool,
    shared_backlog: Option<u16>,
) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!dual)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared_backlog.is_some())?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    if let Some(backlog) = shared_backlog {
        socket.listen(i32::from(backlog))?;
    }
    Ok(socket.into())
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// The descriptor of a socket while it is open; `None` from the moment it is closed, so
/// that a handle never reaches a stranger's socket that got the same number.
#[derive(Clone)]
pub(super) struct Life(Rc<Cell<Option<RawFd>>>);

impl Life {
    pub(super) fn new(fd: RawFd) -> Self {
        Self(Rc::new(Cell::new(Some(fd))))
    }

    pub(super) fn end(&self) {
        self.0.set(None);
    }

    pub(super) fn is_alive(&self) -> bool {
        self.0.get().is_some()
    }

    pub(super) fn shutdown(&self, how: Shutdown) {
        if let Some(fd) = self.0.get() {
            // SAFETY: the socket's owner ends this life before it closes the descriptor,
            // on this same thread (`Rc`), so the descriptor is open during this call.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            // It fails only on a socket that is no longer connected: nothing waits there.
            let _ = SockRef::from(&fd).shutdown(how);
        }
    }
}

/// How many connections a listener gives out before the core gets a turn for its other
/// tasks: where connections are there already, accepting does not wait, and a storm of
/// them would stall the core.
const ACCEPTS_PER_TURN: u32 = 16;

/// Accepts connections on one core.
pub struct Listener {
    raw: backend::RawListener,
    life: Life,
    closed: Rc<Cell<bool>>,
    accepted: Cell<u32>,
}

impl Listener {
    /// Takes over a listening socket, made by [`bind_reuseport`]. Call it on a core.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<Self> {
        let (raw, fd) = backend::RawListener::from_std(listener)?;
        Ok(Self {
            raw,
            life: Life::new(fd),
            closed: Rc::default(),
            accepted: Cell::new(0),
        })
    }

    /// Waits for a connection. It comes with `TCP_NODELAY` set; an IPv4 peer on a
    /// dual-stack listener has its IPv4 address.
    ///
    /// Fails when the listener was closed ([`Listener::is_closed`] then says so), and
    /// with the kernel's error when the connection was gone already or no descriptor is
    /// left. Must not be dropped while pending.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        self.accepted.set(self.accepted.get() + 1);
        if self.accepted.get() > ACCEPTS_PER_TURN {
            self.accepted.set(0);
            super::yield_to_io().await;
        }
        let pending = PendingIo::new("accept");
        let accepted = self.raw.accept().await;
        pending.finish();
        let (raw, fd, peer) = accepted?;
        let stream = Stream::new(raw, fd);
        // It fails only on a connection that is gone; the first read will tell.
        let _ = SockRef::from(&stream.fd()).set_tcp_nodelay(true);
        Ok((
            stream,
            SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        ))
    }

    /// A handle that ends a pending accept.
    pub fn closer(&self) -> Closer {
        Closer {
            life: self.life.clone(),
            closed: Rc::clone(&self.closed),
        }
    }

    /// Whether a [`Closer`] has closed this listener.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.life.end();
    }
}

/// Closes a [`Listener`] from elsewhere on the same core.
#[derive(Clone)]
pub struct Closer {
    life: Life,
    closed: Rc<Cell<bool>>,
}

impl Closer {
    /// Stops listening: a pending accept, and each later one, returns an error.
    /// Connections the kernel had queued here are reset. Does nothing the second time,
    /// or when the listener is gone.
    pub fn close(&self) {
        self.closed.set(true);
        self.life.shutdown(Shutdown::Both);
    }
}

/// Ends the waiting of a [`Stream`] from elsewhere on the same core.
#[derive(Clone)]
pub struct Aborter {
    life: Life,
}

impl Aborter {
    /// One of a stream that is gone: for what is not spoken over a socket.
    pub fn of_nothing() -> Self {
        let life = Life::new(-1);
        life.end();
        Self { life }
    }

    /// A pending read, and each later one, ends with what is still queued and then 0.
    /// Writing goes on. Does nothing when the stream is gone.
    pub fn shutdown_read(&self) {
        self.life.shutdown(Shutdown::Read);
    }

    /// As [`Aborter::shutdown_read`], and a pending write, and each later one, fails.
    pub fn shutdown_both(&self) {
        self.life.shutdown(Shutdown::Both);
    }

    /// Whether the stream still exists.
    pub fn is_alive(&self) -> bool {
        self.life.is_alive()
    }
}

/// Source ports by which a client chooses the core that serves it ([`Steered::Chosen`]): below
/// those that systems give out by themselves, unless they are told otherwise.
pub const CHOSEN_PORTS: RangeInclusive<u16> = 16_384..=32_767;

/// Which connections a server steers by source port ([`steer`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steered {
    /// All: to port modulo listeners.
    All,
    /// Those from [`CHOSEN_PORTS`]: to half of the port, modulo listeners. Systems that
    /// hand out such ports by themselves prefer even ones. The kernel spreads the others.
    Chosen,
}

/// Which of a server's listeners a connection is to reach, where the server steers by
/// source port ([`steer`]): source ports with this remainder lead there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// The listener wanted.
    pub listener: u16,
    /// How many there are.
    pub listeners: u16,
}

/// Has the kernel choose among listeners that share an address, bound in this order, by
/// the source port of a connection. What was rewritten on its way (NAT) reaches any of them.
/// Give it any one of the listeners.
///
/// # Errors
///
/// When the kernel does not take the filter; connections are then spread as before.
pub fn steer(listener: &std::net::TcpListener, listeners: u16, steered: Steered) -> io::Result<()> {
    // Offsets from here on count from the network header (linux/filter.h, SKF_NET_OFF).
    const NETWORK_HEADER: u32 = (-0x10_0000_i32).cast_unsigned();
    const IPV4_HEADER: u32 = 20;
    const IPV6_HEADER: u32 = 40;
    // Returns the accumulator; libc has no name for it.
    const BPF_A: u32 = 0x10;
    // No listener has this number: the kernel chooses as if there were no filter.
    const NONE: u32 = u32::MAX;
    let op = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let load_half = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    let constant = libc::BPF_JMP | libc::BPF_K;
    let chosen = [
        op(
            constant | libc::BPF_JGE,
            0,
            1,
            u32::from(*CHOSEN_PORTS.start()),
        ),
        op(
            constant | libc::BPF_JGT,
            0,
            1,
            u32::from(*CHOSEN_PORTS.end()),
        ),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, NONE),
        op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 0, 0, 1),
    ];
    let load_port = [
        // The IP version is the upper half of the first byte.
        op(load_byte, 0, 0, NETWORK_HEADER),
        op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 0, 0, 4),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 2, 6),
        op(load_half, 0, 0, NETWORK_HEADER.wrapping_add(IPV6_HEADER)),
        op(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        op(load_half, 0, 0, NETWORK_HEADER.wrapping_add(IPV4_HEADER)),
    ];
    let choose = [
        op(
            libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K,
            0,
            0,
            u32::from(listeners.max(1)),
        ),
        op(libc::BPF_RET | BPF_A, 0, 0, 0),
    ];
    let mut program = load_port.to_vec();
    if steered == Steered::Chosen {
        program.extend(chosen);
    }
    program.extend(choose);
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel reads `filter` and the `len` instructions it points to during
    // this call only; both outlive it. The descriptor is open: `listener` is borrowed.
    let done = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Connects to `addr`, within `timeout` ([`io::ErrorKind::TimedOut`] after it), to the
/// listener that `steering` names. The stream has `TCP_NODELAY` set.
pub async fn connect(
    addr: SocketAddr,
    timeout: Duration,
    steering: Option<Steering>,
) -> io::Result<Stream> {
    let pending = PendingIo::new("connect");
    let connected = backend::connect(addr, timeout, steering).await;
    pending.finish();
    let (raw, fd) = connected?;
    let stream = Stream::new(raw, fd);
    SockRef::from(&stream.fd()).set_tcp_nodelay(true)?;
    Ok(stream)
}

/// A TCP connection, living on one core.
pub struct Stream {
    raw: backend::RawStream,
    fd: RawFd,
    life: Life,
}

impl Stream {
    fn new(raw: backend::RawStream, fd: RawFd) -> Self {
        Self {
            raw,
            fd,
            life: Life::new(fd),
        }
    }

    /// Takes over a connection that another core has accepted. Call it on the core that is to
    /// have it.
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<Self> {
        let (raw, fd) = backend::RawStream::from_std(stream)?;
        Ok(Self::new(raw, fd))
    }

    /// Gives the connection up, for another core: nothing may be pending on it.
    pub fn into_std(self) -> io::Result<std::net::TcpStream> {
        // Another descriptor of the same socket: how a driver lets go of its own is its business.
        Ok(self.fd().try_clone_to_owned()?.into())
    }

    /// Reads once into the room `buf` has left (its length to its capacity), appending.
    /// 0 is the end of the stream. A buffer without room is an error, not an end.
    /// Must not be dropped while pending.
    pub async fn read(&mut self, buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        if buf.len() == buf.capacity() {
            return (Err(io::Error::from(io::ErrorKind::InvalidInput)), buf);
        }
        let pending = PendingIo::new("read");
        let done = self.raw.read(buf).await;
        pending.finish();
        done
    }

    /// Writes all of `buf`. Must not be dropped while pending.
    pub async fn write_all(&mut self, mut buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let pending = PendingIo::new("write");
        let mut sent = 0;
        let result = loop {
            if sent == buf.len() {
                break Ok(());
            }
            let (wrote, back) = self.raw.write(buf, sent).await;
            buf = back;
            match wrote {
                Ok(0) => break Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(count) => sent += count,
                Err(error) => break Err(error),
            }
        };
        pending.finish();
        (result, buf)
    }

    /// Writes what the socket takes at once of a few bytes: for a last word that is not
    /// worth waiting for. Returns how much that was.
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        SockRef::from(&self.fd()).send_with_flags(bytes, flags)
    }

    /// Throws away a little of what has arrived already, without waiting: closing a socket
    /// that holds unread bytes resets the connection.
    pub fn discard_now(&mut self) {
        let mut discarded = [std::mem::MaybeUninit::<u8>::uninit(); 4096];
        let _ = SockRef::from(&self.fd()).recv_with_flags(&mut discarded, libc::MSG_DONTWAIT);
    }

    /// Writes all of `parts`, in order, without copying them together. Must not be
    /// dropped while pending.
    pub async fn write_vectored_all(
        &mut self,
        mut parts: Vec<Segment>,
    ) -> (io::Result<()>, Vec<Segment>) {
        let pending = PendingIo::new("write");
        let mut cursor = Cursor::default();
        cursor.advance(&parts, 0);
        let result = loop {
            if cursor.is_at_end(&parts) {
                break Ok(());
            }
            let (wrote, back) = self.raw.write_vectored(parts, cursor).await;
            parts = back;
            match wrote {
                Ok(0) => break Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(count) => cursor.advance(&parts, count),
                Err(error) => break Err(error),
            }
        };
        pending.finish();
        (result, parts)
    }

    /// A handle that ends this stream's waiting, for timeouts and drains.
    pub fn aborter(&self) -> Aborter {
        Aborter {
            life: self.life.clone(),
        }
    }

    /// Tells the peer that nothing more will be written. Reading goes on.
    pub fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(&self.fd()).shutdown(Shutdown::Write)
    }

    /// Makes dropping this stream reset the connection instead of closing it in order:
    /// unsent bytes are thrown away and no `TIME_WAIT` is left behind.
    pub fn set_linger_zero(&self) -> io::Result<()> {
        SockRef::from(&self.fd()).set_linger(Some(Duration::ZERO))
    }

    /// The address of the other side.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        inet(SockRef::from(&self.fd()).peer_addr()?)
    }

    /// The address of this side.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        inet(SockRef::from(&self.fd()).local_addr()?)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `raw` owns the descriptor and is borrowed for as long as the answer.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.life.end();
    }
}

fn inet(addr: socket2::SockAddr) -> io::Result<SocketAddr> {
    let addr = addr.as_socket().ok_or(io::ErrorKind::Unsupported)?;
    Ok(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}
