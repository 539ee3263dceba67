//! A whole connection, as the node serves it, over a wire in memory.
//!
//! * The same bytes, whole or in any pieces, give the same requests with the same bodies,
//!   the same answers in order, and are refused or not.
//! * Nothing is read, and nobody answered, behind a refusal or a close.
//! * What the connection keeps in memory is bounded by the limits, not by the client.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hypercache::api::{ApiError, Turn};
use hypercache::hash::CoreCount;
use hypercache::http::{self, Head, Method};
use hypercache::node::connection::{Limits, Service, serve};
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
        assert_eq!(connection(bytes, std::iter::repeat(1)), whole);
    }
    for (salt, longest) in [(0, 8), (1, 200)] {
        assert_eq!(connection(bytes, Cuts::of(bytes, salt, longest)), whole);
    }
}

/// What came of a connection.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    requests: Vec<Request>,
    /// What was sent, but for `100 Continue`: who has sent the body already is not told.
    sent: Vec<u8>,
    refused: bool,
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
        is_shut: false,
    };
    {
        let served = serve(
            Rc::clone(&service),
            Rc::new(LIMITS),
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
        requests: recorder.requests.into_inner(),
        sent: sent.replace(permission, "").into_bytes(),
        refused: recorder.refused.into_inner(),
    }
}

/// Notes what it is asked, and answers with the number of the request.
#[derive(Default)]
struct Recorder {
    requests: RefCell<Vec<Request>>,
    refused: RefCell<bool>,
}

impl Recorder {
    fn answer(&self, turn: &mut Turn) {
        let number = self.requests.borrow().len();
        let answer = format!("answer {number}\n");
        turn.answers.bytes.extend_from_slice(answer.as_bytes());
    }
}

impl Service for Recorder {
    type Job = ();
    type Link = ();

    fn link(&self) {}

    fn turn(&self) -> Turn {
        Turn::new(Exchange::new(CoreCount::ONE))
    }

    fn handle(&self, head: &Head<'_>, body: Cow<'_, [u8]>, turn: &mut Turn) -> Option<()> {
        assert!(!turn.closes && !*self.refused.borrow(), "it was closed");
        assert!(body.len() as u64 <= LIMITS.request.body_bytes_max);
        self.requests.borrow_mut().push(Request {
            method: head.method.name(),
            path: head.path.to_vec(),
            query: head.query.map(<[u8]>::to_vec),
            body: body.into_owned(),
        });
        turn.closes |= !head.keep_alive;
        if head.method == Method::Post {
            return Some(());
        }
        self.answer(turn);
        None
    }

    fn refuse(&self, error: &ApiError, turn: &mut Turn) {
        assert!((400..600).contains(&(error.status as u16)));
        assert!(!self.refused.replace(true), "refused twice");
        turn.closes = true;
        turn.answers.bytes.extend_from_slice(b"refused\n");
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
    is_shut: bool,
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
        assert!(!self.is_shut);
        self.sent.borrow_mut().extend_from_slice(&buf);
        (Ok(()), buf)
    }

    async fn write_vectored_all(&mut self, parts: Vec<Segment>) -> (io::Result<()>, Vec<Segment>) {
        assert!(!self.is_shut);
        for part in &parts {
            self.sent.borrow_mut().extend_from_slice(part.as_slice());
        }
        (Ok(()), parts)
    }

    async fn shutdown_write(&mut self) -> io::Result<()> {
        self.is_shut = true;
        Ok(())
    }

    fn set_linger_zero(&self) -> io::Result<()> {
        Ok(())
    }
}
