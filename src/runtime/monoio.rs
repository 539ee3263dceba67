//! The runtime module on monoio: io_uring where it is granted, else epoll.
//!
//! What this file knows of monoio 0.2.4, and works around:
//! - Its own fallback to epoll probes with a tiny ring, so the real one can still fail.
//!   Here each driver is built for real, and any failure moves on to the next.
//! - With `DEFER_TASKRUN`, completions are reaped only when the core parks. A task that
//!   yields by waking itself keeps the core from parking, and so starves all I/O and with it all
//!   timers: see [`yield_to_io`].
//! - With its timers each wait of a core has an end, for which the kernel starts and stops a timer:
//!   see [`sleep`](super::sleep()).
//! - A dropped operation loses bytes: see the parent module's `pending`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use monoio::buf::{IoVecBuf, Slice, SliceMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::{TcpListener, TcpStream, UnixStream};
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::driver::{DriverChoice, DriverKind, DriverReport};
use super::pending::RunningCore;
use super::segment::{Cursor, Segment};
use super::sleep::Sleeping;
pub(super) use super::sleep::sleep;
use super::sockets::{Life, Steering};

/// Submission entries of a core's ring (the completion side has twice as many) and
/// events taken per epoll wait. More gained nothing when measured.
const RING_ENTRIES: u32 = 256;

/// The most bytes one operation is asked to move; io_uring counts them in 32 bits.
const OPERATION_BYTES_MAX: usize = 1 << 30;

/// The most parts one vectored write takes (`IOV_MAX`).
const VECTORED_PARTS_MAX: usize = 1024;

enum Runtime {
    IoUring(monoio::Runtime<IoUringDriver>),
    Epoll(monoio::Runtime<TimeDriver<LegacyDriver>>),
}

thread_local! {
    /// Readable at any time on a core that runs io_uring: see [`yield_to_io`].
    static ALWAYS_READABLE: RefCell<Option<Rc<UnixStream>>> = const { RefCell::new(None) };
}

/// Runs `main` to its end on this thread. See the parent module.
pub(super) fn run_core<F, Fut>(choice: DriverChoice, main: F) -> io::Result<Fut::Output>
where
    F: FnOnce(DriverReport) -> Fut,
    Fut: Future,
{
    let (runtime, report) = build(choice)?;
    let uses_io_uring = matches!(runtime, Runtime::IoUring(_));
    let core = async move {
        let sleeping = Sleeping::begin()?;
        if uses_io_uring {
            let readable = always_readable()?;
            ALWAYS_READABLE.with(|slot| *slot.borrow_mut() = Some(Rc::new(readable)));
        }
        let running = RunningCore::enter();
        let output = main(report).await;
        drop(running);
        sleeping.end().await;
        ALWAYS_READABLE.with(|slot| slot.borrow_mut().take());
        Ok(output)
    };
    match runtime {
        Runtime::IoUring(mut runtime) => runtime.block_on(core),
        Runtime::Epoll(mut runtime) => runtime.block_on(core),
    }
}

/// A socket whose other end is closed: reading it would give 0 at any time.
fn always_readable() -> io::Result<UnixStream> {
    let (kept, closed) = std::os::unix::net::UnixStream::pair()?;
    drop(closed);
    UnixStream::from_std(kept)
}

fn build(choice: DriverChoice) -> io::Result<(Runtime, DriverReport)> {
    if choice == DriverChoice::Epoll {
        return Ok((
            build_epoll()?,
            DriverReport {
                kind: DriverKind::Epoll,
                fallback_reason: None,
            },
        ));
    }
    let mut tuned = io_uring::IoUring::builder();
    tuned.setup_single_issuer().setup_defer_taskrun();
    let tuned_refusal = match build_io_uring(tuned) {
        Ok(runtime) => {
            let report = DriverReport {
                kind: DriverKind::IoUringTuned,
                fallback_reason: None,
            };
            return Ok((runtime, report));
        }
        Err(error) => error,
    };
    let plain = probe().and_then(|()| build_io_uring(io_uring::IoUring::builder()));
    let plain_refusal = match plain {
        Ok(runtime) => {
            let reason =
                format!("io_uring with SINGLE_ISSUER and DEFER_TASKRUN refused: {tuned_refusal}");
            let report = DriverReport {
                kind: DriverKind::IoUring,
                fallback_reason: Some(reason),
            };
            return Ok((runtime, report));
        }
        Err(error) => error,
    };
    let reason = format!("io_uring refused: {plain_refusal}");
    if choice == DriverChoice::IoUring {
        return Err(io::Error::new(plain_refusal.kind(), reason));
    }
    let report = DriverReport {
        kind: DriverKind::Epoll,
        fallback_reason: Some(reason),
    };
    Ok((build_epoll()?, report))
}

fn build_io_uring(flags: io_uring::Builder) -> io::Result<Runtime> {
    RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(RING_ENTRIES)
        .uring_builder(flags)
        .build()
        .map(Runtime::IoUring)
}

fn build_epoll() -> io::Result<Runtime> {
    RuntimeBuilder::<LegacyDriver>::new()
        .with_entries(RING_ENTRIES)
        .enable_timer()
        .build()
        .map(Runtime::Epoll)
}

/// Whether this kernel's io_uring has the operations we use. Kernels that accept the
/// tuned flags have them all.
fn probe() -> io::Result<()> {
    use io_uring::opcode::{Accept, Close, PollAdd, Read, Recv, Send, Writev};
    let ring = io_uring::IoUring::new(8)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let used = [
        Accept::CODE,
        Close::CODE,
        PollAdd::CODE,
        Read::CODE,
        Recv::CODE,
        Send::CODE,
        Writev::CODE,
    ];
    if used.iter().all(|&code| probe.is_supported(code)) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this kernel's io_uring lacks operations",
    ))
}

pub(super) fn spawn<F>(future: F)
where
    F: Future<Output = ()> + 'static,
{
    drop(monoio::spawn(future));
}

/// Lets the core do one whole turn: reap completions, fire timers, take wake-ups from
/// other cores, and run the tasks these made ready.
///
/// On io_uring this waits for a poll of a descriptor that is always readable: the task
/// is not runnable meanwhile, so the core parks, and parking returns at once. On epoll that
/// does not make it wait; so it waits for a timer of the runtime's that is due already, which
/// makes the core park without waiting.
pub(super) async fn yield_to_io() {
    let readable = ALWAYS_READABLE.with(|slot| slot.borrow().clone());
    if let Some(readable) = readable {
        // An error would mean it ended early: the turn has been had all the same.
        let _ = readable.readable(true).await;
        return;
    }
    // Timer ticks are whole milliseconds, rounded up; this is the tick that began last.
    let now = Instant::now();
    let due = now
        .checked_sub(Duration::from_nanos(999_999))
        .unwrap_or(now);
    if !waited(monoio::time::sleep_until(due.into())).await {
        yield_once().await;
    }
}

/// Awaits `future` and says whether it made us wait.
async fn waited(future: impl Future<Output = ()>) -> bool {
    let mut future = std::pin::pin!(future);
    let mut polls = 0;
    std::future::poll_fn(|context| {
        polls += 1;
        future.as_mut().poll(context)
    })
    .await;
    polls > 1
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Sets the mode the driver wants: io_uring fails at once on a non-blocking socket
/// instead of waiting, epoll needs it.
fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_nonblocking(monoio::utils::is_legacy())
}

pub(super) struct RawListener(TcpListener);

impl RawListener {
    pub(super) fn from_std(listener: std::net::TcpListener) -> io::Result<(Self, RawFd)> {
        prepare(SockRef::from(&listener))?;
        let fd = listener.as_raw_fd();
        Ok((Self(TcpListener::from_std(listener)?), fd))
    }

    pub(super) async fn accept(&self) -> io::Result<(RawStream, RawFd, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        let fd = stream.as_raw_fd();
        Ok((RawStream(stream), fd, peer))
    }
}

pub(super) struct RawStream(TcpStream);

impl RawStream {
    pub(super) fn from_std(stream: std::net::TcpStream) -> io::Result<(Self, RawFd)> {
        prepare(SockRef::from(&stream))?;
        let fd = stream.as_raw_fd();
        Ok((Self(TcpStream::from_std(stream)?), fd))
    }

    pub(super) async fn read(&mut self, buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let begin = buf.len();
        let end = buf
            .capacity()
            .min(begin.saturating_add(OPERATION_BYTES_MAX));
        let (read, slice) = self.0.read(SliceMut::new(buf, begin, end)).await;
        (read, slice.into_inner())
    }

    pub(super) async fn write(
        &mut self,
        buf: Vec<u8>,
        from: usize,
    ) -> (io::Result<usize>, Vec<u8>) {
        let end = buf.len().min(from.saturating_add(OPERATION_BYTES_MAX));
        let (wrote, slice) = self.0.write(Slice::new(buf, from, end)).await;
        (wrote, slice.into_inner())
    }

    pub(super) async fn write_vectored(
        &mut self,
        parts: Vec<Segment>,
        from: Cursor,
    ) -> (io::Result<usize>, Vec<Segment>) {
        let (wrote, gather) = self.0.writev(Gather::new(parts, from)).await;
        (wrote, gather.parts)
    }
}

/// The parts of a vectored write with the kernel's view of them, kept together because
/// the operation owns both until it completes.
struct Gather {
    views: Vec<libc::iovec>,
    parts: Vec<Segment>,
}

impl Gather {
    fn new(parts: Vec<Segment>, from: Cursor) -> Self {
        let views = from
            .rest(&parts)
            .take(VECTORED_PARTS_MAX)
            .map(|bytes| libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            })
            .collect();
        Self { views, parts }
    }
}

// SAFETY: the views lie in a heap allocation, and what they point to lies in the heap
// allocations of `parts` (`Vec<u8>` or `Arc<[u8]>`), which nothing changes until the
// operation gives `self` back: all stay put when `self` moves.
unsafe impl IoVecBuf for Gather {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.views.as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        self.views.len()
    }
}

/// Connects without blocking and waits until the socket is writable. A timeout shuts the
/// socket down, which ends the wait.
pub(super) async fn connect(
    addr: SocketAddr,
    timeout: Duration,
    steering: Option<Steering>,
) -> io::Result<(RawStream, RawFd)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(steering) = steering {
        steer_source(&socket, addr, steering)?;
    }
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    let fd = stream.as_raw_fd();
    let life = Life::new(fd);
    let expired = Rc::new(Cell::new(false));
    spawn(expire(life.clone(), Rc::clone(&expired), timeout));
    let writable = stream.writable(false).await;
    life.end();
    if expired.get() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    writable?;
    // SAFETY: `stream` owns the descriptor and lives until the end of this function.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let socket = SockRef::from(&borrowed);
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    prepare(socket)?;
    Ok((RawStream(stream), fd))
}

/// Binds a socket to a source port that leads to the listener wanted. Without a free one
/// among some tries the kernel chooses: the connection then reaches any listener.
fn steer_source(socket: &Socket, addr: SocketAddr, steering: Steering) -> io::Result<()> {
    // Where Linux gives out ports for outgoing connections by default.
    const FIRST: u32 = 32_768;
    const COUNT: u32 = 28_000;
    const TRIES: u32 = 32;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let listeners = u32::from(steering.listeners.max(1));
    let unspecified: SocketAddr = match addr {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    for _ in 0..TRIES {
        // Spread over the range, so that neighbours do not try the same ports.
        let step = NEXT
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_mul(2_654_435_761)
            .wrapping_add(std::process::id())
            % (COUNT / listeners);
        let first = FIRST.next_multiple_of(listeners) + u32::from(steering.listener);
        let port = (first + step * listeners) as u16;
        let source = SocketAddr::new(unspecified.ip(), port);
        match socket.bind(&source.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    Ok(())
}

async fn expire(life: Life, expired: Rc<Cell<bool>>, timeout: Duration) {
    sleep(timeout).await;
    if life.is_alive() {
        expired.set(true);
        life.shutdown(Shutdown::Both);
    }
}
