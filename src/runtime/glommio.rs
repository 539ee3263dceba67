//! The runtime module on glommio: io_uring, or nothing.
//!
//! The second implementation, kept so that the choice of runtime stays a measurement.
//! What differs from monoio, as a user of the parent module sees it:
//! - There is no epoll: where io_uring is refused, or less than 512 KiB of memory may be
//!   locked, a core fails to start and the error says so. On kernels before 5.8 glommio
//!   itself ends the process.
//! - Reads and writes wait for readiness and then make the system call, so a dropped
//!   future loses nothing; the rule against it holds all the same.
//! - A read first zeroes the room it reads into, at most [`READ_BYTES_MAX`].
//! - A listener makes three system calls per accept more, and streams have no vectored
//!   write: ours makes the call itself and waits through glommio.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_lite::io::{AsyncReadExt, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};
use glommio::nop::NopSubmitter;
use glommio::{LocalExecutorBuilder, Placement};
use socket2::SockRef;

use super::driver::{DriverChoice, DriverKind, DriverReport};
use super::pending::RunningCore;
use super::segment::{Cursor, Segment};
use super::sockets::Steering;

/// Entries of each of the three rings glommio makes per core.
const RING_ENTRIES: usize = 256;

/// Registered buffers for file I/O, which is not done here: the least there can be.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// The most bytes one read takes, since the room for them is zeroed first.
const READ_BYTES_MAX: usize = 64 << 10;

/// The most parts one vectored write takes (`IOV_MAX`).
const VECTORED_PARTS_MAX: usize = 1024;

/// Runs `main` to its end on this thread. See the parent module.
pub(super) fn run_core<F, Fut>(choice: DriverChoice, main: F) -> io::Result<Fut::Output>
where
    F: FnOnce(DriverReport) -> Fut,
    Fut: Future,
{
    if choice == DriverChoice::Epoll {
        let why = "epoll was asked for, but this build runs on glommio, which has only io_uring";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let refused = |error: io::Error| {
        let why = format!("io_uring refused, and glommio has no other driver: {error}");
        io::Error::new(error.kind(), why)
    };
    probe().map_err(refused)?;
    // The caller has pinned this thread already.
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .ring_depth(RING_ENTRIES)
        .io_memory(IO_MEMORY_BYTES)
        .make()
        .map_err(|error| refused(error.into()))?;
    let report = DriverReport {
        kind: DriverKind::GlommioIoUring,
        fallback_reason: None,
    };
    Ok(executor.run(async {
        let running = RunningCore::enter();
        let output = main(report).await;
        drop(running);
        output
    }))
}

/// Whether a ring can be had at all: where it cannot, glommio panics instead of failing.
fn probe() -> io::Result<()> {
    /// `struct io_uring_params` is 120 bytes; zero asks for nothing special.
    const PARAMS_WORDS: usize = 30;
    let mut params = [0_u32; PARAMS_WORDS];
    // SAFETY: the kernel reads and writes one `io_uring_params`, for which there is room.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
    Ok(())
}

pub(super) fn spawn<F>(future: F)
where
    F: Future<Output = ()> + 'static,
{
    glommio::spawn_local(future).detach();
}

pub(super) async fn sleep(duration: Duration) {
    glommio::timer::sleep(duration).await;
}

/// Waits for an operation that does nothing: the task is not runnable meanwhile, so the
/// executor goes through I/O, timers and foreign wake-ups. Its own yield only goes to
/// the back of the queue until the preemption timer fires.
pub(super) async fn yield_to_io() {
    // An error would mean it ended early: the turn has been had all the same.
    let _ = NopSubmitter::new().run_nop().await;
}

pub(super) struct RawListener(TcpListener);

impl RawListener {
    pub(super) fn from_std(listener: std::net::TcpListener) -> io::Result<(Self, RawFd)> {
        // io_uring fails at once on a non-blocking socket instead of waiting.
        listener.set_nonblocking(false)?;
        let fd = listener.into_raw_fd();
        // SAFETY: `fd` was owned by `listener`, which gave it up.
        Ok((Self(unsafe { TcpListener::from_raw_fd(fd) }), fd))
    }

    pub(super) async fn accept(&self) -> io::Result<(RawStream, RawFd, SocketAddr)> {
        let stream = self.0.accept().await?;
        let peer = stream.peer_addr()?;
        let fd = stream.as_raw_fd();
        Ok((RawStream(stream), fd, peer))
    }
}

pub(super) struct RawStream(TcpStream);

impl RawStream {
    pub(super) fn from_std(stream: std::net::TcpStream) -> io::Result<(Self, RawFd)> {
        let fd = stream.into_raw_fd();
        // SAFETY: `fd` was owned by `stream`, which gave it up.
        Ok((Self(unsafe { TcpStream::from_raw_fd(fd) }), fd))
    }

    pub(super) async fn read(&mut self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let begin = buf.len();
        let end = buf.capacity().min(begin.saturating_add(READ_BYTES_MAX));
        buf.resize(end, 0);
        let read = self.0.read(&mut buf[begin..]).await;
        buf.truncate(begin + read.as_ref().map_or(0, |&count| count));
        (read, buf)
    }

    pub(super) async fn write(
        &mut self,
        buf: Vec<u8>,
        from: usize,
    ) -> (io::Result<usize>, Vec<u8>) {
        let wrote = self.write_some(&buf[from..]).await;
        (wrote, buf)
    }

    async fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        poll_fn(|context| Pin::new(&mut self.0).poll_write(context, bytes)).await
    }

    pub(super) async fn write_vectored(
        &mut self,
        parts: Vec<Segment>,
        from: Cursor,
    ) -> (io::Result<usize>, Vec<Segment>) {
        let wrote = match self.try_write_vectored(&parts, from) {
            Poll::Ready(wrote) => wrote,
            Poll::Pending => match from.rest(&parts).next() {
                Some(first) => self.write_some(first).await,
                None => Ok(0),
            },
        };
        (wrote, parts)
    }

    /// Writes what the socket takes without waiting.
    fn try_write_vectored(&self, parts: &[Segment], from: Cursor) -> Poll<io::Result<usize>> {
        let views: Vec<IoSlice<'_>> = from
            .rest(parts)
            .take(VECTORED_PARTS_MAX)
            .map(IoSlice::new)
            .collect();
        // SAFETY: `self` owns the descriptor and is borrowed for longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) };
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        match SockRef::from(&fd).send_vectored_with_flags(&views, flags) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            wrote => Poll::Ready(wrote),
        }
    }
}

/// It opens its socket itself, so the source port cannot be chosen: connections reach
/// any listener.
pub(super) async fn connect(
    addr: SocketAddr,
    timeout: Duration,
    _steering: Option<Steering>,
) -> io::Result<(RawStream, RawFd)> {
    // It refuses a timeout of zero.
    let timeout = timeout.max(Duration::from_millis(1));
    let stream = TcpStream::connect_timeout(addr, timeout).await?;
    let fd = stream.as_raw_fd();
    Ok((RawStream(stream), fd))
}
