//! What the tests of the runtime module share.
#![allow(dead_code)]

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hypercache::runtime::{
    DriverChoice, DriverReport, Listener, Stream, bind_reuseport, connect, run_core, yield_to_io,
};

/// A timeout that no passing test reaches.
pub const LONG: Duration = Duration::from_secs(30);

/// One choice for each driver that this runtime has and this machine grants.
pub fn choices() -> Vec<DriverChoice> {
    if cfg!(feature = "glommio") {
        return vec![DriverChoice::Auto];
    }
    vec![DriverChoice::Epoll, DriverChoice::Auto]
}

/// After which a test counts as hanging.
const HANG: Duration = Duration::from_secs(60);

/// Runs a test on each driver that this runtime has and this machine grants.
pub fn on_each_driver<Fut: Future + 'static>(test: impl Fn() -> Fut + Copy + Send + 'static) {
    for choice in choices() {
        finishes(move || {
            run_core(None, choice, |report: DriverReport| {
                // Shown when the test fails.
                println!("on {report:?}");
                test()
            })
            .unwrap();
        });
    }
}

/// Runs `test` on a thread of its own and fails when it hangs: a lost wake-up must not
/// be a test run that never ends.
pub fn finishes(test: impl FnOnce() + Send + 'static) {
    let (done, outcome) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match outcome.recv_timeout(HANG) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs"),
        _ => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
    }
}

/// A listener on a free port of this machine.
pub fn listen() -> (Listener, SocketAddr) {
    let listener = bind_reuseport("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let addr = listener.local_addr().unwrap();
    (Listener::from_std(listener).unwrap(), addr)
}

/// Two ends of one connection.
pub async fn pair() -> (Stream, Stream) {
    let (listener, addr) = listen();
    let here = connect(addr, LONG, None).await.unwrap();
    let (there, peer) = listener.accept().await.unwrap();
    assert_eq!(peer, here.local_addr().unwrap());
    (here, there)
}

/// Reads `len` bytes and not one more.
pub async fn read_exactly(stream: &mut Stream, len: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        let (read, chunk) = stream.read(Vec::with_capacity(len - all.len())).await;
        assert_ne!(
            read.unwrap(),
            0,
            "the stream ended after {} of {len} bytes",
            all.len()
        );
        all.extend_from_slice(&chunk);
    }
    all
}

/// Reads until the end.
pub async fn read_to_end(stream: &mut Stream) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let (read, chunk) = stream.read(Vec::with_capacity(4096)).await;
        if read.unwrap() == 0 {
            return all;
        }
        all.extend_from_slice(&chunk);
    }
}

/// Set by one task, awaited turn by turn by another.
#[derive(Clone, Default)]
pub struct Flag(Rc<Cell<bool>>);

impl Flag {
    pub fn set(&self) {
        self.0.set(true);
    }

    pub async fn wait(&self) {
        while !self.0.get() {
            yield_to_io().await;
        }
    }
}
