//! Timeouts of connections, without a timer per read and without ever dropping a
//! pending read or write.
//!
//! Each connection keeps one entry in its core's [`Deadlines`]: what it waits
//! for and until when. The core's tick sweeps the entries; one that is overdue
//! has its socket shut down, so that the pending call completes by itself (a read
//! with end of file, a write with an error) and the connection, which still owns
//! its buffers, learns from [`Watch::expired`] why. Cost on the request path: a
//! few stores. Precision: one tick.
//!
//! A core without work need not sweep so often: it lets the deadlines rest
//! ([`Deadlines::rest`]) until the next of them, and is rung for when one is set that comes
//! sooner. Meanwhile they read the clock themselves, so that none begins in the past.
//!
//! A stop works the same way: connections that wait for a next request are shut
//! down for reading at once; whatever had already arrived is still read and
//! answered. Handshakes are cut: nothing was asked yet.
//!
//! And so does making room where there are as many connections as there may be
//! ([`Deadlines::make_room`]): the one that has waited longest for a next request goes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Aborter, Alarm};

/// How long a connection may wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the rest of a request whose first byte has arrived, and for a client's
    /// handshake.
    pub read: Duration,
    /// For the client to take an answer.
    pub write: Duration,
    /// For the next request.
    pub idle: Duration,
    /// For a peer to take a request of ours and to answer it.
    pub exchange: Duration,
}

/// After an answer that closes the connection, how long the client may take to
/// close its side, so that it reads the answer before it sees a reset.
const LINGER: Duration = Duration::from_secs(2);

/// How many connections that were cut for others may be going at once.
pub const CUT_MAX: usize = 64;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing of the client's: it is being served.
    Nothing,
    /// The client to bring its handshake to an end: one deadline for the whole of it.
    Handshake,
    /// The first byte of a request.
    Idle,
    /// The rest of a request.
    Request,
    /// The client to take its answer.
    Write,
    /// The client to close after the last answer.
    Linger,
    /// A peer to take a request of ours and to answer it.
    Exchange,
}

/// How many connections were cut because something took too long, by what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Handshakes.
    pub handshake: u64,
    /// Next requests that did not come.
    pub idle: u64,
    /// Requests that did not arrive whole.
    pub request: u64,
    /// Answers that were not taken.
    pub write: u64,
    /// Peers that did not answer.
    pub exchange: u64,
}

impl Expired {
    fn count(&mut self, wait: Wait) {
        let counted = match wait {
            Wait::Handshake => &mut self.handshake,
            Wait::Idle => &mut self.idle,
            Wait::Request => &mut self.request,
            Wait::Write => &mut self.write,
            Wait::Exchange => &mut self.exchange,
            // The connection had its last answer.
            Wait::Linger | Wait::Nothing => return,
        };
        *counted += 1;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.handshake + self.idle + self.request + self.write + self.exchange
    }
}

struct Entry {
    deadline_ms: u64,
    wait: Wait,
    /// Its place among all waits for a next request of this core.
    idle_turn: u64,
    expired: Option<Wait>,
    aborter: Option<Aborter>,
}

/// The time between two sweeps that are further apart than usual.
#[derive(Clone, Copy)]
struct Rest {
    began: Instant,
    /// When it is to end, in the time of the deadlines.
    until_ms: u64,
}

/// The waits of all connections of one core.
pub struct Deadlines {
    timeouts: Timeouts,
    /// As of the last sweep.
    now_ms: Cell<u64>,
    rest: Cell<Option<Rest>>,
    /// Ends it.
    alarm: RefCell<Rc<Alarm>>,
    stopping: Cell<bool>,
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<usize>>,
    open: Cell<usize>,
    expired: Cell<Expired>,
    /// How many times a connection has begun to wait for a next request.
    idle_turns: Cell<u64>,
    displaced: Cell<u64>,
}

impl Deadlines {
    /// No connections yet.
    pub fn new(timeouts: Timeouts) -> Rc<Self> {
        Rc::new(Self {
            timeouts,
            now_ms: Cell::new(0),
            rest: Cell::new(None),
            alarm: RefCell::default(),
            stopping: Cell::new(false),
            entries: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            open: Cell::new(0),
            expired: Cell::default(),
            idle_turns: Cell::new(0),
            displaced: Cell::new(0),
        })
    }

    /// Watches a new connection.
    pub fn watch(self: &Rc<Self>, aborter: Aborter) -> Watch {
        let entry = Entry {
            deadline_ms: u64::MAX,
            wait: Wait::Nothing,
            idle_turn: 0,
            expired: None,
            aborter: Some(aborter),
        };
        let mut entries = self.entries.borrow_mut();
        let index = match self.free.borrow_mut().pop() {
            Some(index) => {
                entries[index] = entry;
                index
            }
            None => {
                entries.push(entry);
                entries.len() - 1
            }
        };
        self.open.set(self.open.get() + 1);
        Watch {
            deadlines: Rc::clone(self),
            index,
        }
    }

    /// How many connections are watched.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// How many connections were cut because something took too long.
    pub fn expired(&self) -> Expired {
        self.expired.get()
    }

    /// How many connections were cut to make room for another.
    pub fn displaced(&self) -> u64 {
        self.displaced.get()
    }

    /// Whether connections are to close as soon as they have answered.
    #[inline]
    pub fn stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Whether one more connection may be watched where there may be `limit`. If there are
    /// as many, the one that has waited longest for a next request is cut for it: whoever
    /// holds connections without using them keeps nobody out. What it had sent already is
    /// still answered, so it goes a moment later; no more than [`CUT_MAX`] are going at once.
    pub fn make_room(&self, limit: usize) -> bool {
        let open = self.open();
        open < limit || (open < limit + CUT_MAX && self.cut_longest_idle())
    }

    /// Cuts the connection that has waited longest for a next request; false if none waits
    /// for one.
    fn cut_longest_idle(&self) -> bool {
        let mut entries = self.entries.borrow_mut();
        let idle = entries.iter_mut().filter(|entry| {
            entry.wait == Wait::Idle && entry.expired.is_none() && entry.aborter.is_some()
        });
        let Some(longest) = idle.min_by_key(|entry| entry.idle_turn) else {
            return false;
        };
        longest.deadline_ms = u64::MAX;
        longest.expired = Some(Wait::Idle);
        cut(longest);
        self.displaced.set(self.displaced.get() + 1);
        true
    }

    /// Moves the time on and cuts what is overdue. `now_ms` counts from any
    /// fixed point and never goes back.
    pub fn sweep(&self, now_ms: u64) {
        self.now_ms.set(now_ms);
        if let Some(rest) = self.rest.get() {
            let began = Instant::now();
            self.rest.set(Some(Rest { began, ..rest }));
        }
        let mut expired = self.expired.get();
        for entry in self.entries.borrow_mut().iter_mut() {
            if entry.deadline_ms <= now_ms {
                entry.deadline_ms = u64::MAX;
                entry.expired = Some(entry.wait);
                expired.count(entry.wait);
                cut(entry);
            }
        }
        self.expired.set(expired);
    }

    /// How long it is until the first deadline; `None` if nothing has one.
    pub fn next(&self) -> Option<Duration> {
        let entries = self.entries.borrow();
        let next_ms = entries.iter().map(|entry| entry.deadline_ms).min();
        let next_ms = next_ms.filter(|&deadline_ms| deadline_ms != u64::MAX)?;
        Some(Duration::from_millis(next_ms.saturating_sub(self.now_ms())))
    }

    /// There need be no sweep for so long, unless the alarm rings: it does when a deadline is
    /// set that comes sooner.
    pub fn rest(&self, pause: Duration, alarm: &Rc<Alarm>) {
        let now_ms = self.now_ms();
        self.now_ms.set(now_ms);
        self.rest.set(Some(Rest {
            began: Instant::now(),
            until_ms: now_ms.saturating_add(pause.as_millis() as u64),
        }));
        *self.alarm.borrow_mut() = Rc::clone(alarm);
    }

    /// Sweeps come as often as usual again.
    pub fn end_rest(&self) {
        self.now_ms.set(self.now_ms());
        self.rest.set(None);
    }

    #[inline]
    fn now_ms(&self) -> u64 {
        let swept_ms = self.now_ms.get();
        match self.rest.get() {
            None => swept_ms,
            Some(rest) => swept_ms.saturating_add(rest.began.elapsed().as_millis() as u64),
        }
    }

    /// A deadline has been set.
    #[inline]
    fn is_due_at(&self, deadline_ms: u64) {
        if self
            .rest
            .get()
            .is_some_and(|rest| deadline_ms < rest.until_ms)
        {
            self.alarm.borrow().ring();
        }
    }

    /// Lets no connection wait for a next request any more.
    pub fn stop(&self) {
        self.stopping.set(true);
        for entry in self.entries.borrow_mut().iter_mut() {
            if matches!(entry.wait, Wait::Handshake | Wait::Idle | Wait::Linger) {
                cut(entry);
            }
        }
    }
}

fn cut(entry: &Entry) {
    let Some(aborter) = &entry.aborter else {
        return;
    };
    match entry.wait {
        Wait::Nothing => {}
        // Reading only: a request that did not arrive in time still gets its 408.
        Wait::Idle | Wait::Request | Wait::Linger => aborter.shutdown_read(),
        Wait::Handshake | Wait::Write | Wait::Exchange => aborter.shutdown_both(),
    }
}

/// One connection's entry; gone when dropped.
pub struct Watch {
    deadlines: Rc<Deadlines>,
    index: usize,
}

impl Watch {
    /// Says what the connection waits for from now on.
    #[inline]
    pub fn wait_for(&self, wait: Wait) {
        let timeouts = &self.deadlines.timeouts;
        let limit = match wait {
            Wait::Nothing => None,
            Wait::Idle => Some(timeouts.idle),
            Wait::Request | Wait::Handshake => Some(timeouts.read),
            Wait::Write => Some(timeouts.write),
            Wait::Linger => Some(LINGER),
            Wait::Exchange => Some(timeouts.exchange),
        };
        let mut entries = self.deadlines.entries.borrow_mut();
        let entry = &mut entries[self.index];
        entry.wait = wait;
        if wait == Wait::Idle {
            let turns = &self.deadlines.idle_turns;
            turns.set(turns.get() + 1);
            entry.idle_turn = turns.get();
        }
        entry.deadline_ms = match limit {
            None => u64::MAX,
            Some(limit) => self
                .deadlines
                .now_ms()
                .saturating_add(limit.as_millis() as u64),
        };
        self.deadlines.is_due_at(entry.deadline_ms);
        if self.deadlines.stopping.get() && matches!(wait, Wait::Handshake | Wait::Idle) {
            cut(entry);
        }
    }

    /// The wait of this connection that was cut for taking too long.
    pub fn expired(&self) -> Option<Wait> {
        self.deadlines.entries.borrow()[self.index].expired
    }

    /// Whether connections are to close as soon as they have answered.
    #[inline]
    pub fn stopping(&self) -> bool {
        self.deadlines.stopping()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut entries = self.deadlines.entries.borrow_mut();
        let entry = &mut entries[self.index];
        entry.aborter = None;
        entry.deadline_ms = u64::MAX;
        self.deadlines.free.borrow_mut().push(self.index);
        self.deadlines.open.set(self.deadlines.open.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::net::{TcpListener, TcpStream};
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::runtime::Stream;

    const TIMEOUTS: Timeouts = Timeouts {
        read: Duration::from_secs(5),
        write: Duration::from_secs(5),
        idle: Duration::from_secs(60),
        exchange: Duration::from_secs(1),
    };

    /// Runs with a watched connection; it has to be made on a core.
    fn with_watch(test: impl FnOnce(Rc<Deadlines>, Watch) + Send + 'static) {
        crate::runtime::run_core(None, crate::runtime::DriverChoice::Auto, |_| async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let stream = Stream::from_std(client).unwrap();
            let deadlines = Deadlines::new(TIMEOUTS);
            let watch = deadlines.watch(stream.aborter());
            test(deadlines, watch);
        })
        .unwrap();
    }

    fn has_rung(alarm: &Alarm) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(alarm.rung()).poll(&mut context).is_ready()
    }

    #[test]
    fn the_first_deadline_says_how_long_no_sweep_is_needed() {
        with_watch(|deadlines, watch| {
            deadlines.sweep(1_000);
            assert_eq!(deadlines.next(), None);
            watch.wait_for(Wait::Request);
            assert_eq!(deadlines.next(), Some(TIMEOUTS.read));
            deadlines.sweep(3_000);
            assert_eq!(deadlines.next(), Some(Duration::from_secs(3)));
        });
    }

    #[test]
    fn a_deadline_within_a_rest_ends_it_and_a_later_one_does_not() {
        with_watch(|deadlines, watch| {
            let alarm = Rc::default();
            deadlines.rest(Duration::from_secs(3), &alarm);
            watch.wait_for(Wait::Request);
            assert!(!has_rung(&alarm));
            watch.wait_for(Wait::Exchange);
            assert!(has_rung(&alarm));
            deadlines.end_rest();
            watch.wait_for(Wait::Exchange);
            assert!(!has_rung(&alarm), "the rest is over");
        });
    }

    #[test]
    fn what_begins_to_wait_after_a_long_rest_has_all_of_its_time() {
        with_watch(|deadlines, watch| {
            let alarm = Rc::default();
            deadlines.rest(Duration::from_secs(3), &alarm);
            let mut rest = deadlines.rest.get().unwrap();
            rest.began -= Duration::from_secs(2);
            deadlines.rest.set(Some(rest));
            watch.wait_for(Wait::Exchange);
            deadlines.sweep(2_900);
            assert_eq!(watch.expired(), None);
            deadlines.sweep(3_100);
            assert_eq!(watch.expired(), Some(Wait::Exchange));
        });
    }
}
