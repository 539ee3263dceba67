//! What io_uring could give beyond what the runtime offers: the floor without the runtime.
//!
//! `ring [variant…] [bytes]` behaves on the wire as `floor` does, with the same settings of
//! the ring. One thread, one loop: take what completed, hand in what follows from it, wait.
//! On each connection at most one send is under way, and the buffers of a receive or a send
//! belong to the kernel until it completes: a connection is closed only when it has neither.
//! What a client is owed is kept as a number, and written in pieces of bounded size. Errors
//! of a connection end it, any other error ends the program.

use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use hypercache_perf::peers::raise_descriptor_limit;
use hypercache_perf::servers::floor_answer;
use io_uring::squeue::{Entry, Flags, SubmissionQueue};
use io_uring::types::{BufRingEntry, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, opcode};
use socket2::SockRef;

const ENTRIES: u32 = 256;

/// Bytes one receive takes, and one send at most (but one answer at least).
const RECEIVE_BYTES: usize = 4096;
const SEND_BYTES_MAX: usize = 65536;

/// Buffers that receives share, a power of two, and the number of their group.
const BUFFERS: u16 = 512;
const GROUP: u16 = 0;

/// Connections at most, where their descriptors are registered.
const REGISTERED_MAX: u32 = 2048;

/// How long `timer` waits at most.
const TICK: Duration = Duration::from_millis(100);

/// What ends a request.
const END: &[u8] = b"\r\n\r\n";

const USAGE: &str = "ring [variant…] [bytes]
  plain       a receive, then a send, as the runtime does them; the others change that
  multishot   one receive for all that comes, into buffers that connections share
  files       connections without a descriptor of the process (registered files)
  pollfirst   a receive waits for bytes before it looks for them
  ahead       the next receive is handed in with the send, not after it
  timer       a wait has an end, and the clock is read before and after it, as with timers
  coop        COOP_TASKRUN in the place of DEFER_TASKRUN
  spin=us     watches for completions so long after the last one before it waits";

fn main() -> ExitCode {
    let variant = match Variant::parse(std::env::args().skip(1)) {
        Ok(variant) => variant,
        Err(word) if word == "--help" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(word) => {
            eprintln!("{USAGE}\n{word} is no variant");
            return ExitCode::from(2);
        }
    };
    let Err(error) = serve(variant);
    eprintln!("{error}");
    ExitCode::FAILURE
}

#[derive(Clone, Copy, Default)]
struct Variant {
    multishot: bool,
    files: bool,
    poll_first: bool,
    ahead: bool,
    timer: bool,
    coop: bool,
    spin: Duration,
    value_bytes: usize,
}

impl Variant {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut variant = Self {
            value_bytes: 100,
            ..Self::default()
        };
        for word in words {
            match word.as_str() {
                "plain" => {}
                "multishot" => variant.multishot = true,
                "files" => variant.files = true,
                "pollfirst" => variant.poll_first = true,
                "ahead" => variant.ahead = true,
                "timer" => variant.timer = true,
                "coop" => variant.coop = true,
                other => {
                    let spin = other.strip_prefix("spin=").map(str::parse);
                    match (spin, other.parse()) {
                        (Some(Ok(us)), _) => variant.spin = Duration::from_micros(us),
                        (None, Ok(bytes)) => variant.value_bytes = bytes,
                        _ => return Err(word),
                    }
                }
            }
        }
        Ok(variant)
    }
}

fn serve(variant: Variant) -> io::Result<std::convert::Infallible> {
    raise_descriptor_limit();
    let listener = listen()?;
    let mut ring = build(variant)?;
    let mut server = Server {
        constant: floor_answer(variant.value_bytes),
        listener: Fd(listener.as_raw_fd()),
        buffers: Buffers::register(&ring.submitter())?,
        connections: Vec::new(),
        variant,
    };
    server.accept(&mut Queue::of(&mut ring))?;
    println!("{}", listener.local_addr()?);
    io::stdout().flush()?;
    let mut completed: Vec<cqueue::Entry> = Vec::new();
    let mut last = Instant::now();
    loop {
        wait(&mut ring, variant, last)?;
        completed.extend(ring.completion());
        let mut queue = Queue::of(&mut ring);
        for completion in completed.drain(..) {
            server.take(&completion, &mut queue)?;
        }
        drop(queue);
        if !variant.spin.is_zero() {
            last = Instant::now();
        }
    }
}

/// A listener whose connections send without delay: they inherit that.
fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    SockRef::from(&listener).set_tcp_nodelay(true)?;
    Ok(listener)
}

fn build(variant: Variant) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer();
    match variant.coop {
        true => builder.setup_coop_taskrun(),
        false => builder.setup_defer_taskrun(),
    };
    if !variant.spin.is_zero() {
        builder.setup_taskrun_flag();
    }
    let ring = builder.build(ENTRIES)?;
    if variant.files {
        ring.submitter().register_files_sparse(REGISTERED_MAX)?;
    }
    Ok(ring)
}

/// Hands in what is queued and returns when something has completed, or the time is over.
fn wait(ring: &mut IoUring, variant: Variant, last: Instant) -> io::Result<()> {
    if !variant.spin.is_zero() && watch(ring, variant.spin, last)? {
        return Ok(());
    }
    let waited = if variant.timer {
        let began = Instant::now();
        let end = Timespec::new().nsec(TICK.as_nanos() as u32);
        let waited = ring
            .submitter()
            .submit_with_args(1, &SubmitArgs::new().timespec(&end));
        std::hint::black_box(began.elapsed());
        waited
    } else {
        ring.submit_and_wait(1)
    };
    match waited.map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::ETIME | libc::EINTR), _)) | Ok(_) => Ok(()),
        Err((_, error)) => Err(error),
    }
}

/// Hands in what is queued and says whether anything is complete. If not, watches until
/// completions are to be had by waiting, but no longer than `spin` after the last one.
fn watch(ring: &mut IoUring, spin: Duration, last: Instant) -> io::Result<bool> {
    const GETEVENTS: u32 = 1;
    let (submitter, mut queued, mut completed) = ring.split();
    // SAFETY: no argument is passed, and what entries point to is as `Queue::push` wants it.
    unsafe { submitter.enter::<()>(queued.len() as u32, 0, GETEVENTS, None) }?;
    queued.sync();
    completed.sync();
    while completed.is_empty() && !queued.taskrun() && last.elapsed() < spin {
        std::hint::spin_loop();
        completed.sync();
    }
    Ok(!completed.is_empty())
}

/// Where entries are handed in.
struct Queue<'ring> {
    submitter: Submitter<'ring>,
    entries: SubmissionQueue<'ring>,
}

impl<'ring> Queue<'ring> {
    fn of(ring: &'ring mut IoUring) -> Self {
        let (submitter, entries, _) = ring.split();
        Self { submitter, entries }
    }

    fn push(&mut self, entry: &Entry, operation: Operation, number: u32) -> io::Result<()> {
        let tag = u64::from(number) << 8 | operation as u64;
        let entry = entry.clone().user_data(tag);
        // SAFETY: an entry points to nothing, to the shared buffers, which are never freed,
        // or to the input or output of a connection, which is kept as it is until no
        // operation of its is under way.
        while unsafe { self.entries.push(&entry) }.is_err() {
            self.submitter.submit()?;
            self.entries.sync();
        }
        Ok(())
    }
}

/// What completed. The connection's number is the rest of an entry's tag.
#[derive(Clone, Copy)]
enum Operation {
    Accept,
    Receive,
    Send,
    Close,
}

impl Operation {
    const ALL: [Self; 4] = [Self::Accept, Self::Receive, Self::Send, Self::Close];
}

struct Server {
    variant: Variant,
    constant: Vec<u8>,
    listener: Fd,
    buffers: Buffers,
    /// By the number of the descriptor, or of the registered file.
    connections: Vec<Option<Connection>>,
}

struct Connection {
    heads: Heads,
    input: Vec<u8>,
    /// What is being sent, and how much of it has been.
    output: Vec<u8>,
    sent: usize,
    /// Answers that are not in `output` yet.
    owed: usize,
    receiving: bool,
    sending: bool,
    /// Whether nothing more is received.
    ended: bool,
}

impl Server {
    fn take(&mut self, completion: &cqueue::Entry, queue: &mut Queue<'_>) -> io::Result<()> {
        let (result, flags) = (completion.result(), completion.flags());
        let number = (completion.user_data() >> 8) as u32;
        match Operation::ALL[(completion.user_data() & 3) as usize] {
            Operation::Accept => {
                if result < 0 {
                    return Err(io::Error::from_raw_os_error(-result));
                }
                if !cqueue::more(flags) {
                    self.accept(queue)?;
                }
                let number = result as usize;
                if self.connections.len() <= number {
                    self.connections.resize_with(number + 1, || None);
                }
                self.connections[number] = Some(Connection::new(self.variant));
                self.proceed(result as u32, queue)
            }
            Operation::Receive => {
                if let Some(connection) = &mut self.connections[number as usize] {
                    connection.receiving = cqueue::more(flags);
                    let count = result.max(0) as usize;
                    if let Some(buffer) = cqueue::buffer_select(flags) {
                        let received = self.buffers.received(buffer, count);
                        connection.owed += connection.heads.end_in(received);
                        self.buffers.give_back(buffer);
                    } else {
                        let received = &connection.input[..count];
                        connection.owed += connection.heads.end_in(received);
                    }
                    // Without a free buffer it is tried again: they are given back at once.
                    connection.ended = result <= 0 && result != -libc::ENOBUFS;
                }
                self.proceed(number, queue)
            }
            Operation::Send => {
                if let Some(connection) = &mut self.connections[number as usize] {
                    connection.sending = false;
                    connection.sent += result.max(0) as usize;
                    if result <= 0 {
                        // Nobody is there any more; a receive under way will say so too.
                        connection.ended = true;
                        connection.owed = 0;
                        connection.sent = connection.output.len();
                    }
                }
                self.proceed(number, queue)
            }
            Operation::Close => Ok(()),
        }
    }

    fn accept(&self, queue: &mut Queue<'_>) -> io::Result<()> {
        let accept =
            opcode::AcceptMulti::new(self.listener).allocate_file_index(self.variant.files);
        queue.push(&accept.build(), Operation::Accept, 0)
    }

    /// Hands in what a connection needs next.
    fn proceed(&mut self, number: u32, queue: &mut Queue<'_>) -> io::Result<()> {
        let variant = self.variant;
        let Some(connection) = &mut self.connections[number as usize] else {
            return Ok(());
        };
        let fd = Fd(number as i32);
        let kind = match variant.files {
            true => Flags::FIXED_FILE,
            false => Flags::empty(),
        };
        if !connection.sending && connection.has_output(&self.constant) {
            let rest = &connection.output[connection.sent..];
            let send = opcode::Send::new(fd, rest.as_ptr(), rest.len() as u32).build();
            queue.push(&send.flags(kind), Operation::Send, number)?;
            connection.sending = true;
        }
        let may_receive = variant.multishot || variant.ahead || !connection.sending;
        if may_receive && !connection.receiving && !connection.ended {
            let receive = match variant.multishot {
                true => opcode::RecvMulti::new(fd, GROUP).build(),
                false => {
                    let input = &mut connection.input;
                    opcode::Recv::new(fd, input.as_mut_ptr(), input.len() as u32).build()
                }
            };
            let receive = match variant.poll_first {
                true => poll_first(receive),
                false => receive,
            };
            queue.push(&receive.flags(kind), Operation::Receive, number)?;
            connection.receiving = true;
        }
        if connection.ended && !connection.sending && !connection.receiving {
            self.connections[number as usize] = None;
            let close = match variant.files {
                true => opcode::Close::new(Fixed(number)).build(),
                false => opcode::Close::new(fd).build(),
            };
            queue.push(&close, Operation::Close, number)?;
        }
        Ok(())
    }
}

/// Has a receive wait before it tries, for which the crate has no name.
fn poll_first(mut entry: Entry) -> Entry {
    const IORING_RECVSEND_POLL_FIRST: u16 = 1;
    // SAFETY: an entry is the kernel's `io_uring_sqe`, of 64 bytes; its `ioprio` is the
    // second of its 16-bit words.
    unsafe { *(&raw mut entry).cast::<u16>().add(1) |= IORING_RECVSEND_POLL_FIRST };
    entry
}

impl Connection {
    fn new(variant: Variant) -> Self {
        let input_bytes = if variant.multishot { 0 } else { RECEIVE_BYTES };
        Self {
            heads: Heads::default(),
            input: vec![0; input_bytes],
            output: Vec::new(),
            sent: 0,
            owed: 0,
            receiving: false,
            sending: false,
            ended: false,
        }
    }

    /// Whether there is anything to send; takes what is owed once all before it is sent.
    fn has_output(&mut self, constant: &[u8]) -> bool {
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
            let count = self.owed.min((SEND_BYTES_MAX / constant.len()).max(1));
            (0..count).for_each(|_| self.output.extend_from_slice(constant));
            self.owed -= count;
        }
        self.sent < self.output.len()
    }
}

/// Finds the ends of requests in bytes that come in pieces.
#[derive(Default)]
struct Heads {
    /// How many bytes of an end came last.
    matched: usize,
}

impl Heads {
    /// How many requests end in this piece.
    fn end_in(&mut self, mut piece: &[u8]) -> usize {
        let mut ends = 0;
        while self.matched > 0
            && let Some((&byte, rest)) = piece.split_first()
        {
            ends += self.step(byte);
            piece = rest;
        }
        while let Some(at) = memchr::memmem::find(piece, END) {
            ends += 1;
            piece = &piece[at + END.len()..];
        }
        let last = piece.len().saturating_sub(END.len() - 1);
        ends + piece[last..].iter().map(|&b| self.step(b)).sum::<usize>()
    }

    fn step(&mut self, byte: u8) -> usize {
        self.matched = match byte {
            _ if byte == END[self.matched] => self.matched + 1,
            // It may begin an end, whatever was before it.
            b'\r' => 1,
            _ => 0,
        };
        let is_end = self.matched == END.len();
        if is_end {
            self.matched = 0;
        }
        usize::from(is_end)
    }
}

/// Buffers that the kernel fills in the order they are given to it. A number that came with
/// a completion is ours until it is given back.
struct Buffers {
    ring: *mut BufRingEntry,
    bytes: *mut u8,
    given: u16,
}

/// The kernel wants the ring to begin with a page.
#[repr(C, align(4096))]
struct Aligned([u128; BUFFERS as usize]);

impl Buffers {
    fn register(submitter: &Submitter<'_>) -> io::Result<Self> {
        // The kernel may write to both for as long as the program runs.
        let ring: *mut Aligned = Box::leak(Box::new(Aligned([0; BUFFERS as usize])));
        let bytes = vec![0; BUFFERS as usize * RECEIVE_BYTES].leak();
        // SAFETY: memory of so many entries, of 16 bytes each, that is never freed.
        unsafe { submitter.register_buf_ring(ring as u64, BUFFERS, GROUP) }?;
        let mut buffers = Self {
            ring: ring.cast(),
            bytes: bytes.as_mut_ptr(),
            given: 0,
        };
        (0..BUFFERS).for_each(|buffer| buffers.give_back(buffer));
        Ok(buffers)
    }

    /// The bytes received into a buffer that was not given back since.
    fn received(&self, buffer: u16, count: usize) -> &[u8] {
        assert!(buffer < BUFFERS && count <= RECEIVE_BYTES);
        // SAFETY: within the memory, and the kernel does not write to it until it is given
        // back, for which the caller's borrow must have ended.
        unsafe {
            let begin = self.bytes.add(usize::from(buffer) * RECEIVE_BYTES);
            std::slice::from_raw_parts(begin, count)
        }
    }

    fn give_back(&mut self, buffer: u16) {
        assert!(buffer < BUFFERS);
        // SAFETY: both are within their memory. The kernel reads an entry only after the
        // count of those given includes it, and by then it is complete.
        unsafe {
            let place = usize::from(self.given % BUFFERS);
            let entry = &mut *self.ring.add(place);
            entry.set_addr(self.bytes.add(usize::from(buffer) * RECEIVE_BYTES) as u64);
            entry.set_len(RECEIVE_BYTES as u32);
            entry.set_bid(buffer);
            self.given = self.given.wrapping_add(1);
            let count = BufRingEntry::tail(self.ring).cast_mut();
            AtomicU16::from_ptr(count).store(self.given, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_found_wherever_the_bytes_are_cut() {
        let requests = b"GET /a\r\n\r\n\r\r\n\r\r\n\r\n\r\n\n\r\nGET /b\r\nx: y\r\n\r\n";
        for first in 0..=requests.len() {
            for second in first..=requests.len() {
                let mut heads = Heads::default();
                let pieces = [
                    &requests[..first],
                    &requests[first..second],
                    &requests[second..],
                ];
                let ends: usize = pieces.iter().map(|piece| heads.end_in(piece)).sum();
                assert_eq!(ends, 3, "cut at {first} and {second}");
            }
        }
    }
}
