//! Sockets of the runtime module: what every runtime and driver must do alike.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hypercache::runtime::{
    Aborter, DriverChoice, DriverReport, Listener, Segment, Stream, bind_reuseport, connect,
    dropped_pending_io, mailbox, run_core, sleep, spawn, yield_to_io,
};

const LONG: Duration = Duration::from_secs(30);

/// Runs a test on each driver this runtime can have.
fn on_each_driver<Fut: Future>(test: impl Fn() -> Fut) {
    for choice in drivers() {
        run_core(None, choice, |_report: DriverReport| test()).unwrap();
    }
}

fn drivers() -> Vec<DriverChoice> {
    if cfg!(feature = "glommio") {
        return vec![DriverChoice::IoUring];
    }
    vec![DriverChoice::Epoll, DriverChoice::IoUring]
}

fn listen() -> (Listener, SocketAddr) {
    let listener = bind_reuseport("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let addr = listener.local_addr().unwrap();
    (Listener::from_std(listener).unwrap(), addr)
}

/// Two ends of one connection.
async fn pair() -> (Stream, Stream) {
    let (listener, addr) = listen();
    let here = connect(addr, LONG).await.unwrap();
    let (there, peer) = listener.accept().await.unwrap();
    assert_eq!(peer, here.local_addr().unwrap());
    (here, there)
}

/// Reads until `len` bytes are there.
async fn read_exactly(stream: &mut Stream, len: usize) -> Vec<u8> {
    let mut buf = Vec::with_capacity(len);
    while buf.len() < len {
        let (read, back) = stream.read(buf).await;
        buf = back;
        assert_ne!(read.unwrap(), 0, "the stream ended after {} of {len} bytes", buf.len());
    }
    buf
}

/// Sets a flag that a task waits for, turn by turn.
#[derive(Clone, Default)]
struct Flag(Rc<Cell<bool>>);

impl Flag {
    fn set(&self) {
        self.0.set(true);
    }

    async fn wait(&self) {
        while !self.0.get() {
            yield_to_io().await;
        }
    }
}

#[test]
fn an_echo_comes_back() {
    on_each_driver(async || {
        let (mut here, mut there) = pair().await;
        spawn(async move {
            loop {
                let (read, buf) = there.read(Vec::with_capacity(1000)).await;
                if read.unwrap() == 0 {
                    return;
                }
                there.write_all(buf).await.0.unwrap();
            }
        });
        for size in [1, 999, 1000, 1001, 100_000] {
            let sent: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let (wrote, sent) = here.write_all(sent).await;
            wrote.unwrap();
            assert_eq!(read_exactly(&mut here, size).await, sent);
        }
    });
}
