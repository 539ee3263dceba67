//! The load at a fixed rate: what a request waited for is counted from when it was due.
//!
//! A closed loop that waits for a slow answer does not send what it would have sent
//! meanwhile, and so leaves out just the requests that would have been slow ("coordinated
//! omission"). Here every request is due at a time that does not depend on the server:
//! request k at k / rate, on connection k modulo connections. If its connection has as many
//! outstanding as it may, it waits there, and that counts. What the server has not answered
//! when the run is over counts as having taken until then.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::load::{Connection, Load, READ_BYTES, Usage};
use crate::poll::Epoll;

/// How long the load runs before latencies count; less if the measurement itself is shorter.
const WARM_UP_MAX: Duration = Duration::from_millis(200);

/// How long answers are awaited after the last request was due.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// With less time than this until the next request is due, the loop turns without sleeping:
/// the system may wake it that much late.
const SLEEP_MARGIN_NS: u64 = 1_000_000;

/// Requests at most in one run.
const REQUESTS_MAX: f64 = 1e9;

/// What came of a run at a fixed rate.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Answers per second while requests were due.
    pub answered_per_s: f64,
    /// Nanoseconds from when a request was due to its answer.
    pub latency_ns: Histogram,
    /// Nanoseconds from when a request was due to when it was sent, of those whose connection
    /// was free: how late this load generator was itself.
    pub late_ns: Histogram,
    /// Requests without an answer at the end.
    pub unanswered: u64,
    /// Processor time of the servers in microseconds per request.
    pub server_cpu_us: f64,
    /// As in a closed loop.
    pub server_waited: f64,
}

impl Load {
    /// Sends so many requests per second to servers that have all keys.
    ///
    /// # Errors
    ///
    /// When a server cannot be reached or answers anything but what it should.
    pub fn measure_at(&self, requests_per_s: u32, pids: &[u32]) -> io::Result<Timed> {
        let warm_up = WARM_UP_MAX.min(self.duration);
        let schedule = Schedule::new(requests_per_s, warm_up, self.duration)?;
        let mut connections = self.connect_all()?;
        let mut book = Book::new(schedule, self.connections, self.pipeline);
        let (before, started) = (Usage::of(pids)?, Instant::now());
        drive(&mut connections, &mut book)?;
        let (used, seconds) = (
            Usage::of(pids)?.since(before),
            started.elapsed().as_secs_f64(),
        );
        Ok(Timed {
            answered_per_s: book.in_time as f64 / self.duration.as_secs_f64(),
            server_cpu_us: used.ran_ns as f64 / 1000.0 / book.answered.max(1) as f64,
            server_waited: used.waited_ns as f64 / 1e9 / seconds,
            unanswered: book.unanswered,
            latency_ns: book.latency_ns,
            late_ns: book.late_ns,
        })
    }
}

/// Sends what is due and takes answers, until all are there or too late.
fn drive(connections: &mut [Connection], book: &mut Book) -> io::Result<()> {
    let poll = Epoll::new()?;
    for (index, connection) in connections.iter().enumerate() {
        connection.register(&poll, index)?;
    }
    let started = Instant::now();
    let clock = || started.elapsed().as_nanos() as u64;
    let mut chunk = vec![0; READ_BYTES];
    loop {
        let now = clock();
        // All that is due is released before any is sent: requests that are due on one
        // connection by now are written together.
        for index in book.release_due(now) {
            let index = index % connections.len();
            send_due(&mut connections[index], book, &poll, index, clock())?;
        }
        if book.is_complete() {
            return Ok(());
        }
        if now > book.schedule.end_ns + DRAIN_MAX.as_nanos() as u64 {
            book.give_up(now);
            return Ok(());
        }
        let until_next = match book.next_due_ns() {
            Some(due) => due.saturating_sub(clock()),
            None => 2 * SLEEP_MARGIN_NS,
        };
        let timeout_ms = until_next.saturating_sub(SLEEP_MARGIN_NS) / 1_000_000;
        poll.wait(timeout_ms as i32, |index| {
            let connection = &mut connections[index];
            connection.write_rest(&poll, index)?;
            let count = connection.receive(&mut chunk)?;
            let now = clock();
            (0..count).for_each(|_| book.answer(index, now));
            send_due(connection, book, &poll, index, now)
        })?;
    }
}

/// Sends what waits on a connection as far as it may have that outstanding.
fn send_due(
    connection: &mut Connection,
    book: &mut Book,
    poll: &Epoll,
    index: usize,
    now: u64,
) -> io::Result<()> {
    loop {
        let count = book.sendable(index).min(connection.sendable());
        if count == 0 {
            return Ok(());
        }
        book.send(index, count, now);
        connection.send(count, poll, index)?;
    }
}

/// When requests are due, in nanoseconds from the start.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    interval_ns: f64,
    /// Requests in all.
    requests: u64,
    /// Those due before this are not measured.
    begin_ns: u64,
    /// No request is due from here on.
    end_ns: u64,
}

impl Schedule {
    fn new(requests_per_s: u32, warm_up: Duration, measured: Duration) -> io::Result<Self> {
        let all = warm_up + measured;
        let requests = (f64::from(requests_per_s) * all.as_secs_f64()).floor();
        if !(1.0..=REQUESTS_MAX).contains(&requests) {
            return Err(io::Error::other(format!(
                "{requests_per_s} requests per second for {all:?}: not 1 to {REQUESTS_MAX} requests"
            )));
        }
        Ok(Self {
            interval_ns: 1e9 / f64::from(requests_per_s),
            requests: requests as u64,
            begin_ns: warm_up.as_nanos() as u64,
            end_ns: all.as_nanos() as u64,
        })
    }

    fn due_ns(&self, request: u64) -> u64 {
        (request as f64 * self.interval_ns) as u64
    }
}

/// How far each connection is with its requests.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    released: u64,
    sent: u64,
    answered: u64,
    /// Whether the first request that is released and not sent could have been sent when it
    /// was due.
    free: bool,
}

/// What was due, sent and answered. Knows no sockets and no clock: times are arguments.
#[derive(Debug)]
struct Book {
    schedule: Schedule,
    connections: Vec<Progress>,
    outstanding_max: u64,
    released: u64,
    answered: u64,
    /// Answers that came while requests were due, without the warm-up.
    in_time: u64,
    unanswered: u64,
    latency_ns: Histogram,
    late_ns: Histogram,
}

impl Book {
    fn new(schedule: Schedule, connections: usize, outstanding_max: usize) -> Self {
        Self {
            schedule,
            connections: vec![Progress::default(); connections],
            outstanding_max: outstanding_max as u64,
            released: 0,
            answered: 0,
            in_time: 0,
            unanswered: 0,
            latency_ns: Histogram::default(),
            late_ns: Histogram::default(),
        }
    }

    /// Releases what is due; the connections it is on, to be taken modulo their number.
    fn release_due(&mut self, now: u64) -> Range<usize> {
        let count = self.connections.len();
        let (first, before) = (self.released % count as u64, self.released);
        while self.release(now).is_some() {}
        let released = (self.released - before).min(count as u64);
        first as usize..(first + released) as usize
    }

    /// The connection of the next request, if that is due.
    fn release(&mut self, now: u64) -> Option<usize> {
        if self.next_due_ns()? > now {
            return None;
        }
        let index = (self.released % self.connections.len() as u64) as usize;
        self.released += 1;
        let connection = &mut self.connections[index];
        if connection.released == connection.sent {
            connection.free = connection.sent - connection.answered < self.outstanding_max;
        }
        connection.released += 1;
        Some(index)
    }

    /// When the next request is due; `None` after the last.
    fn next_due_ns(&self) -> Option<u64> {
        (self.released < self.schedule.requests).then(|| self.schedule.due_ns(self.released))
    }

    /// When the request with this number on a connection is due.
    fn due_ns(&self, connection: usize, number: u64) -> u64 {
        let connections = self.connections.len() as u64;
        self.schedule
            .due_ns(number * connections + connection as u64)
    }

    /// How many requests may be sent on a connection.
    fn sendable(&self, connection: usize) -> usize {
        let progress = &self.connections[connection];
        let room = self.outstanding_max - (progress.sent - progress.answered);
        room.min(progress.released - progress.sent) as usize
    }

    fn send(&mut self, connection: usize, count: usize, now: u64) {
        let due = self.due_ns(connection, self.connections[connection].sent);
        let progress = &mut self.connections[connection];
        progress.sent += count as u64;
        if std::mem::take(&mut progress.free) && due >= self.schedule.begin_ns {
            self.late_ns.record(now.saturating_sub(due));
        }
    }

    /// Takes the next answer on a connection.
    fn answer(&mut self, connection: usize, now: u64) {
        let due = self.due_ns(connection, self.connections[connection].answered);
        self.connections[connection].answered += 1;
        self.answered += 1;
        if (self.schedule.begin_ns..self.schedule.end_ns).contains(&now) {
            self.in_time += 1;
        }
        self.measure(due, now);
    }

    fn measure(&mut self, due: u64, now: u64) {
        if due >= self.schedule.begin_ns {
            self.latency_ns.record(now.saturating_sub(due));
        }
    }

    fn is_complete(&self) -> bool {
        self.answered == self.schedule.requests
    }

    /// Counts what is not answered as having taken until now.
    fn give_up(&mut self, now: u64) {
        self.unanswered = self.schedule.requests - self.answered;
        for index in 0..self.connections.len() {
            let Progress {
                answered, released, ..
            } = self.connections[index];
            for number in answered..released {
                self.measure(self.due_ns(index, number), now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    const MS: u64 = 1_000_000;

    fn schedule(requests_per_s: u32) -> Schedule {
        Schedule::new(requests_per_s, Duration::ZERO, Duration::from_secs(1)).unwrap()
    }

    /// Plays a second of 1,000 requests/s on 10 connections to a server that answers each
    /// after 1 ms, but nothing from 300 to 500 ms: then it answers all it has.
    fn stalled_server(outstanding_max: usize) -> Book {
        let mut book = Book::new(schedule(1_000), 10, outstanding_max);
        let mut under_way: Vec<(u64, usize)> = Vec::new();
        for now in (0..3_000 * MS).step_by(MS as usize / 10) {
            assert!(book.release_due(now).len() <= 10);
            for index in 0..10 {
                let count = book.sendable(index);
                book.send(index, count, now);
                under_way.extend((0..count).map(|_| (now + MS, index)));
            }
            if (300 * MS..500 * MS).contains(&now) {
                continue;
            }
            under_way.retain(|&(due, index)| {
                if due <= now {
                    book.answer(index, now);
                }
                due > now
            });
            if book.is_complete() {
                break;
            }
        }
        assert!(book.is_complete());
        book
    }

    #[test]
    fn a_stalled_server_yields_the_full_delay_in_the_percentiles() {
        for outstanding_max in [1, 16] {
            let book = stalled_server(outstanding_max);
            let latency = &book.latency_ns;
            assert_eq!(latency.total(), 1_000);
            // The request due as it stalls waits 200 ms, the one due in its middle 100 ms:
            // a fifth of all requests are due in the stall, so a tenth waits longer than that.
            let longest = latency.max();
            assert!((199 * MS..215 * MS).contains(&longest), "{longest}");
            let tenth = latency.quantile(0.9);
            assert!((95 * MS..115 * MS).contains(&tenth), "{tenth}");
            let most = latency.quantile(0.99);
            assert!((185 * MS..212 * MS).contains(&most), "{most}");
            assert!(latency.quantile(0.5) < 2 * MS);
            // The load was never late itself: what waits for an answer does not count.
            assert!(book.late_ns.max() < MS);
        }
    }

    #[test]
    fn what_is_never_answered_counts_until_the_end() {
        let mut book = Book::new(schedule(1_000), 10, 1);
        assert_eq!(book.release_due(1_000 * MS), 0..10);
        (0..10).for_each(|index| book.send(index, book.sendable(index), 0));
        assert!(!book.is_complete());
        book.give_up(1_500 * MS);
        assert_eq!((book.unanswered, book.latency_ns.total()), (1_000, 1_000));
        assert_eq!(book.latency_ns.max(), 1_500 * MS);
        assert!(book.latency_ns.quantile(0.001) >= 501 * MS);
    }

    #[test]
    fn requests_are_due_at_even_times_and_the_warm_up_is_not_measured() {
        let schedule =
            Schedule::new(40_000, Duration::from_millis(200), Duration::from_secs(1)).unwrap();
        assert_eq!((schedule.requests, schedule.begin_ns), (48_000, 200 * MS));
        assert_eq!(schedule.due_ns(0), 0);
        assert_eq!(schedule.due_ns(40_000), 1_000 * MS);
        let mut book = Book::new(schedule, 1, 1);
        while book.release(u64::MAX).is_some() {
            book.send(0, 1, 0);
            book.answer(0, 0);
        }
        assert_eq!(book.latency_ns.total(), 40_000);
    }

    #[test]
    fn a_load_that_is_late_itself_says_so() {
        let mut book = Book::new(schedule(1_000), 2, 16);
        assert_eq!(book.release_due(10 * MS), 0..2);
        assert_eq!((book.sendable(0), book.sendable(1)), (6, 5));
        book.send(0, 6, 10 * MS);
        assert_eq!((book.late_ns.total(), book.late_ns.max()), (1, 10 * MS));
        assert_eq!(book.release_due(11 * MS), 1..2);
        book.send(1, 6, 12 * MS);
        assert_eq!((book.late_ns.total(), book.late_ns.max()), (2, 11 * MS));
    }

    #[test]
    fn a_rate_without_any_request_is_refused() {
        assert!(Schedule::new(0, Duration::ZERO, Duration::from_secs(1)).is_err());
        assert!(Schedule::new(5, Duration::ZERO, Duration::from_millis(100)).is_err());
    }

    /// A server of one connection that answers each request with these bytes, and before
    /// the one with this number sleeps.
    fn server(answer: &'static [u8], slow: usize, delay: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut chunk, mut ends, mut served) = ([0; 4096], 0, 0);
            while let Ok(count @ 1..) = stream.read(&mut chunk) {
                ends += chunk[..count].iter().filter(|&&byte| byte == b'\n').count();
                // A request is three lines.
                for _ in 0..std::mem::replace(&mut ends, 0) / 3 {
                    served += 1;
                    if served == slow {
                        std::thread::sleep(delay);
                    }
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            }
        });
        address
    }

    fn load(target: String) -> Load {
        Load {
            targets: vec![target],
            connections: 1,
            value_bytes: 3,
            duration: Duration::from_millis(500),
            ..Load::default()
        }
    }

    #[test]
    fn a_real_stall_shows_with_all_requests_that_were_due_in_it() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let target = server(answer, 300, Duration::from_millis(200));
        let timed = load(target)
            .measure_at(1_000, &[std::process::id()])
            .unwrap();
        assert_eq!(timed.latency_ns.total(), 500);
        // 200 of the 500 requests were due in the stall, 100 of them in its first half.
        assert!(timed.latency_ns.max() >= 199 * MS);
        assert!(timed.latency_ns.quantile(0.8) >= 95 * MS);
    }

    #[test]
    fn a_wrong_answer_ends_the_run() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd"[..],
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\
                HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        ] {
            let target = server(answer, 0, Duration::ZERO);
            let timed = load(target.clone()).measure_at(1_000, &[std::process::id()]);
            assert!(timed.is_err(), "{timed:?}");
            let target = server(answer, 0, Duration::ZERO);
            assert!(load(target).measure(&[std::process::id()]).is_err());
        }
    }
}
