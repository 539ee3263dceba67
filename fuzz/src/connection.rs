//! A whole connection, as the node serves it, over a wire in memory.
//!
//! * The same bytes, whole or in any pieces, give the same requests with the same bodies,
//!   the same answers in order, and are refused or not. Only whoever is denied before its
//!   body has come is cut off earlier.
//! * Nothing is read, and nobody answered, behind a refusal or a close.
//! * Nobody is served whose credentials were not verified first.
//! * What the connection keeps in memory is bounded by the limits, not by the client.
//!
//! The credentials `no` are denied, those that begin with `v` have to be verified, and any
//! others are good.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hypercache::api::{ApiError, Turn};
use hypercache::buffers::{Buffers, Pool};
use hypercache::hash::CoreCount;
use hypercache::http::{self, Head, Method};
use hypercache::node::connection::{Common, Entry, Limits, Service, serve};
use hypercache::operations::Exchange;
use hypercache::runtime::{Aborter, Deadlines, Segment, Timeouts, Transport};

use super::cuts::Cuts;

const LIMITS: Limits = Limits {
    request: http::Limits {
        head_bytes_max: 600,
        target_bytes_max: 200,
        headers_max: 8,
        body_bytes_max: 2000,
    },
    pipeline_depth: 3,
};

/// What a connection of these limits may hold of what it has received.
const INPUT_BYTES_MAX: usize = 32 << 10;

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let whole = connection(bytes, std::iter::repeat(usize::MAX));
    if bytes.len() <= 600 {
        let dribbled = connection(bytes, std::iter::repeat(1));
        agrees(&dribbled, &whole);
    }
    for (salt, longest) in [(0, 8), (1, 200)] {
        agrees(&connection(bytes, Cuts::of(bytes, salt, longest)), &whole);
    }
}

fn agrees(pieces: &Outcome, whole: &Outcome) {
    if let Some(Event::Denied) = pieces.events.last()
        && pieces.closed
    {
        assert!(whole.events.starts_with(&pieces.events));
        assert!(whole.sent.starts_with(&pieces.sent));
    } else {
        assert_eq!(pieces, whole);
    }
}

/// What came of a connection.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    events: Vec<Event>,
    /// What was sent, but for `100 Continue`: who has sent the body already is not told.
    sent: String,
    /// Whether the node has closed it.
    closed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Served(Request),
    Denied,
    Refused,
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: &'static str,
    path: Vec<u8>,
    query: Option<Vec<u8>>,
    body: Vec<u8>,
}

fn connection(bytes: &[u8], pieces: impl Iterator<Item = usize>) -> Outcome {
    let wait = Duration::from_secs(1);
    let deadlines = Deadlines::new(Timeouts {
        read: wait,
        write: wait,
        idle: wait,
        exchange: wait,
    });
    let service = Rc::new(Recorder::default());
    let sent = Rc::new(RefCell::new(Vec::new()));
    let wire = Wire {
        arriving: bytes,
        pieces,
        sent: Rc::clone(&sent),
        is_shut: Rc::default(),
    };
    let is_shut = Rc::clone(&wire.is_shut);
    {
        let served = serve(
            Rc::clone(&service),
            (),
            Common::new(LIMITS, Buffers::new(Pool::unlimited())),
            wire,
            deadlines.watch(Aborter::of_nothing()),
        );
        let mut served = std::pin::pin!(served);
        let mut context = Context::from_waker(Waker::noop());
        // The wire is always ready, so one poll is the whole life of the connection.
        assert_eq!(served.as_mut().poll(&mut context), Poll::Ready(()));
    }
    let recorder = Rc::into_inner(service).expect("the connection is gone");
    let sent = String::from_utf8(sent.take()).expect("answers are text");
    let permission = std::str::from_utf8(http::CONTINUE).expect("it is text");
    Outcome {
        events: recorder.events.into_inner(),
        sent: sent.replace(permission, ""),
        closed: is_shut.get(),
    }
}

/// Notes what it is asked, and answers with the number of the request.
#[derive(Default)]
struct Recorder {
    events: RefCell<Vec<Event>>,
    closed: Cell<bool>,
    verified: RefCell<Vec<Vec<u8>>>,
}

impl Recorder {
    fn note(&self, event: Event, closes: bool) {
        assert!(!self.closed.replace(closes), "it was closed");
        self.events.borrow_mut().push(event);
    }

    fn answer(&self, turn: &mut Turn) {
        let number = self.events.borrow().len();
        let answer = format!("answer {number}\n");
        turn.answers.bytes.extend_from_slice(answer.as_bytes());
    }

    fn has_verified(&self, authorization: Option<&[u8]>) -> bool {
        let shown = authorization.unwrap_or_default();
        !shown.starts_with(b"v") || self.verified.borrow().iter().any(|known| known == shown)
    }
}

impl Service for Recorder {
    type Job = ();
    type Link = ();

    fn admit(&self, _link: &(), head: &Head<'_>) -> Entry {
        if head.authorization == Some(b"no") {
            Entry::Denied(ApiError::unauthorized())
        } else if self.has_verified(head.authorization) {
            Entry::Granted
        } else {
            Entry::Unverified
        }
    }

    async fn verify(&self, _link: &(), authorization: Vec<u8>) {
        assert!(!self.has_verified(Some(&authorization)), "verified twice");
        self.verified.borrow_mut().push(authorization);
    }

    fn turn(&self) -> Turn {
        Turn::new(Exchange::new(CoreCount::ONE))
    }

    fn handle(
        &self,
        _link: &(),
        head: &Head<'_>,
        body: Cow<'_, [u8]>,
        turn: &mut Turn,
    ) -> Option<()> {
        assert!(body.len() as u64 <= LIMITS.request.body_bytes_max);
        assert!(head.authorization != Some(b"no") && self.has_verified(head.authorization));
        let request = Request {
            method: head.method.name(),
            path: head.path.to_vec(),
            query: head.query.map(<[u8]>::to_vec),
            body: body.into_owned(),
        };
        turn.closes |= !head.keep_alive;
        self.note(Event::Served(request), turn.closes);
        if head.method == Method::Post {
            return Some(());
        }
        self.answer(turn);
        None
    }

    fn deny(&self, head: &Head<'_>, _error: &ApiError, turn: &mut Turn) {
        turn.closes |= !head.keep_alive;
        self.note(Event::Denied, turn.closes);
        self.answer(turn);
    }

    fn refuse(&self, error: &ApiError, _head_only: bool, turn: &mut Turn) {
        turn.closes = true;
        let denied = error.status == http::Status::Unauthorized;
        assert!((400..600).contains(&(error.status as u16)));
        self.note(
            if denied {
                Event::Denied
            } else {
                Event::Refused
            },
            true,
        );
        self.answer(turn);
    }

    async fn settle(&self, _link: &(), _turn: &mut Turn) {}

    async fn run(&self, _link: &(), _job: (), turn: &mut Turn) {
        self.answer(turn);
    }
}

/// A client that has sent everything already, and whose bytes arrive in pieces.
struct Wire<'a, P> {
    arriving: &'a [u8],
    pieces: P,
    sent: Rc<RefCell<Vec<u8>>>,
    is_shut: Rc<Cell<bool>>,
}

impl<P: Iterator<Item = usize>> Transport for Wire<'_, P> {
    async fn read(&mut self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        assert!(buf.capacity() <= INPUT_BYTES_MAX, "{}", buf.capacity());
        let room = buf.capacity() - buf.len();
        assert!(room > 0, "a read without room says that the client is gone");
        let piece = self.pieces.next().unwrap_or(1).min(room);
        let (piece, rest) = self.arriving.split_at(piece.min(self.arriving.len()));
        buf.extend_from_slice(piece);
        self.arriving = rest;
        (Ok(piece.len()), buf)
    }

    async fn write_all(&mut self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        assert!(!self.is_shut.get());
        self.sent.borrow_mut().extend_from_slice(&buf);
        (Ok(()), buf)
    }

    async fn write_vectored_all(&mut self, parts: Vec<Segment>) -> (io::Result<()>, Vec<Segment>) {
        assert!(!self.is_shut.get());
        for part in &parts {
            self.sent.borrow_mut().extend_from_slice(part.as_slice());
        }
        (Ok(()), parts)
    }

    async fn shutdown_write(&mut self) -> io::Result<()> {
        self.is_shut.set(true);
        Ok(())
    }

    fn set_linger_zero(&self) -> io::Result<()> {
        Ok(())
    }
}
