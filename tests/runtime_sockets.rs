//! Sockets, drivers and pinning: what every runtime and driver must do alike.
#![allow(clippy::unwrap_used)]

#[path = "support/runtime.rs"]
mod support;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use hypercache::runtime::{
    DriverChoice, DriverKind, Listener, Segment, bind_reuseport, connect, dropped_pending_io,
    run_core, sleep, spawn, yield_to_io,
};
use support::{Flag, LONG, listen, on_each_driver, pair, read_exactly, read_to_end};

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

#[test]
fn a_read_appends_and_never_grows_the_buffer() {
    on_each_driver(async || {
        let (mut here, mut there) = pair().await;
        here.write_all(b"0123456789".to_vec()).await.0.unwrap();
        let mut buf = Vec::with_capacity(6);
        buf.extend_from_slice(b"ab");
        let capacity = buf.capacity();
        while buf.len() < capacity {
            let (read, back) = there.read(buf).await;
            buf = back;
            assert_ne!(read.unwrap(), 0);
        }
        assert_eq!(buf.capacity(), capacity);
        assert_eq!(buf[..6], *b"ab0123");
        let (read, buf) = there.read(buf).await;
        assert_eq!(
            read.unwrap_err().kind(),
            io::ErrorKind::InvalidInput,
            "a full buffer"
        );
        assert_eq!(buf.len(), capacity, "and the buffer comes back");
    });
}

#[test]
fn an_aborted_read_ends_and_loses_no_byte() {
    on_each_driver(async || {
        let (mut here, mut there) = pair().await;
        let (read_once, ended) = (Flag::default(), Flag::default());
        let aborter = there.aborter();
        let got = Rc::new(RefCell::new(Vec::new()));
        spawn({
            let (got, read_once, ended) = (Rc::clone(&got), read_once.clone(), ended.clone());
            async move {
                let first = read_exactly(&mut there, 1000).await;
                got.borrow_mut().extend(first);
                read_once.set();
                let rest = read_to_end(&mut there).await;
                got.borrow_mut().extend(rest);
                ended.set();
            }
        });
        here.write_all(vec![1; 1000]).await.0.unwrap();
        read_once.wait().await;
        // The second read is pending by now, or about to be; either way the bytes that
        // arrive before the abort are delivered before the end is.
        yield_to_io().await;
        here.write_all(vec![2; 1990]).await.0.unwrap();
        aborter.shutdown_read();
        ended.wait().await;
        assert_eq!(got.borrow().len(), 2990);
        assert!(
            !aborter.is_alive(),
            "the task has ended and dropped its stream"
        );
        aborter.shutdown_both();
    });
}

#[test]
fn an_idle_read_is_ended_by_a_timeout() {
    on_each_driver(async || {
        let (_here, mut there) = pair().await;
        let aborter = there.aborter();
        spawn(async move {
            sleep(Duration::from_millis(5)).await;
            aborter.shutdown_read();
        });
        let (read, buf) = there.read(Vec::with_capacity(10)).await;
        assert_eq!(read.unwrap(), 0);
        assert!(buf.is_empty());
        there.write_all(b"late".to_vec()).await.0.unwrap();
    });
}

#[test]
fn an_aborted_write_fails() {
    on_each_driver(async || {
        let (mut here, _there) = pair().await;
        let aborter = here.aborter();
        spawn(async move {
            sleep(Duration::from_millis(5)).await;
            aborter.shutdown_both();
        });
        // More than any socket buffer: nobody reads it.
        let (wrote, buf) = here.write_all(vec![0; 64 << 20]).await;
        wrote.unwrap_err();
        assert_eq!(buf.len(), 64 << 20);
        let (wrote, parts) = here.write_vectored_all(vec![Segment::from(vec![1])]).await;
        wrote.unwrap_err();
        assert_eq!(parts.len(), 1);
    });
}

#[test]
fn an_aborter_never_reaches_a_later_socket_of_the_same_number() {
    on_each_driver(async || {
        let (here, there) = pair().await;
        let aborters = [here.aborter(), there.aborter()];
        drop((here, there));
        // Closing is asynchronous on io_uring.
        for _ in 0..10 {
            yield_to_io().await;
        }
        let (mut here, mut there) = pair().await;
        for aborter in aborters {
            assert!(!aborter.is_alive());
            aborter.shutdown_both();
        }
        here.write_all(b"still here".to_vec()).await.0.unwrap();
        assert_eq!(read_exactly(&mut there, 10).await, b"still here");
    });
}

#[test]
fn large_vectored_writes_reach_a_slow_reader_whole() {
    on_each_driver(async || {
        let (mut here, mut there) = pair().await;
        let body: Arc<[u8]> = (0..8 << 20).map(|i: usize| ((i * 7) >> 3) as u8).collect();
        let mut parts = Vec::new();
        let mut expected = Vec::new();
        // More parts than one system call takes, of all sizes, some empty.
        for i in 0..3000 {
            let head = vec![i as u8; i % 7];
            expected.extend_from_slice(&head);
            parts.push(Segment::from(head));
        }
        for range in [0..1, 1..1, 1..5 << 20, 0..8 << 20] {
            expected.extend_from_slice(&body[range.clone()]);
            parts.push(Segment::shared(Arc::clone(&body), range).unwrap());
        }
        let got = Rc::new(RefCell::new(None));
        let done = Flag::default();
        spawn({
            let (got, done, len) = (Rc::clone(&got), done.clone(), expected.len());
            async move {
                let mut all = Vec::with_capacity(len);
                while all.len() < len {
                    // Small reads with turns in between: the writer has to wait often.
                    let chunk = read_exactly(&mut there, 50_000.min(len - all.len())).await;
                    all.extend_from_slice(&chunk);
                    yield_to_io().await;
                }
                *got.borrow_mut() = Some(all);
                done.set();
            }
        });
        let (wrote, parts) = here.write_vectored_all(parts).await;
        wrote.unwrap();
        assert_eq!(parts.len(), 3004);
        done.wait().await;
        assert!(
            got.borrow().as_ref().unwrap() == &expected,
            "the bytes differ"
        );
        assert_eq!(
            Arc::strong_count(&body),
            5,
            "shared by four parts, not copied"
        );
        here.write_vectored_all(vec![]).await.0.unwrap();
        here.write_vectored_all(vec![Segment::from(vec![])])
            .await
            .0
            .unwrap();
    });
}

#[test]
fn a_closed_listener_ends_its_pending_accept() {
    on_each_driver(async || {
        let (listener, addr) = listen();
        let closer = listener.closer();
        let ended = Flag::default();
        spawn({
            let ended = ended.clone();
            async move {
                assert!(listener.accept().await.is_err());
                assert!(listener.is_closed());
                assert!(listener.accept().await.is_err(), "and each later one");
                ended.set();
            }
        });
        // Let the accept become pending first.
        yield_to_io().await;
        yield_to_io().await;
        closer.close();
        ended.wait().await;
        closer.close();
        assert!(
            connect(addr, LONG, None).await.is_err(),
            "nobody listens any more"
        );
    });
}

#[test]
fn every_core_can_listen_on_the_same_port() {
    on_each_driver(async || {
        let first = bind_reuseport("[::]:0".parse().unwrap(), 16).unwrap();
        let addr = first.local_addr().unwrap();
        let second = bind_reuseport(addr, 16).unwrap();
        let port = addr.port();
        drop(second);
        let listener = Listener::from_std(first).unwrap();
        let here = connect(([127, 0, 0, 1], port).into(), LONG, None)
            .await
            .unwrap();
        let (there, peer) = listener.accept().await.unwrap();
        assert!(
            peer.is_ipv4(),
            "an IPv4 peer of [::] keeps its address: {peer}"
        );
        assert_eq!(peer, here.local_addr().unwrap());
        assert_eq!(there.peer_addr().unwrap(), peer);
    });
}

#[test]
fn connecting_fails_when_refused_and_when_unanswered() {
    on_each_driver(async || {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = closed.local_addr().unwrap();
        drop(closed);
        let refused = connect(addr, LONG, None).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

        // A full accept queue makes the kernel ignore further attempts.
        let full = bind_reuseport("127.0.0.1:0".parse().unwrap(), 0).unwrap();
        let addr = full.local_addr().unwrap();
        let mut queued = Vec::new();
        let unanswered = loop {
            match connect(addr, Duration::from_millis(20), None).await {
                Ok(stream) => queued.push(stream),
                Err(error) => break error,
            }
            assert!(queued.len() < 10, "a backlog of 0 must fill up");
        };
        assert_eq!(unanswered.kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn lingering_zero_resets_the_connection() {
    on_each_driver(async || {
        let (here, mut there) = pair().await;
        here.set_linger_zero().unwrap();
        drop(here);
        let error = there.read(Vec::with_capacity(1)).await.0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn the_end_of_writing_is_the_end_of_reading() {
    on_each_driver(async || {
        let (mut here, mut there) = pair().await;
        here.write_all(b"bye".to_vec()).await.0.unwrap();
        here.shutdown_write().unwrap();
        assert_eq!(read_to_end(&mut there).await, b"bye");
        there.write_all(b"you too".to_vec()).await.0.unwrap();
        assert_eq!(read_exactly(&mut here, 7).await, b"you too");
    });
}

#[test]
fn dropping_a_pending_read_trips_the_guard() {
    on_each_driver(async || {
        let (here, mut there) = pair().await;
        let before = dropped_pending_io();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut read = pin!(there.read(Vec::with_capacity(10)));
            let polled = read.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending());
        }));
        assert_eq!(
            outcome.is_err(),
            cfg!(debug_assertions),
            "it panics in debug builds"
        );
        assert!(dropped_pending_io() > before, "and is counted in all");
        drop(here);
    });
}

#[test]
fn dropping_a_read_that_never_began_is_harmless() {
    on_each_driver(async || {
        let (_here, mut there) = pair().await;
        drop(there.read(Vec::with_capacity(10)));
    });
}

#[test]
fn a_stopping_core_drops_its_waiting_tasks_quietly() {
    on_each_driver(async || {
        let (here, mut there) = pair().await;
        spawn(async move {
            let _here = here;
            let _ = there.read(Vec::with_capacity(10)).await;
        });
        yield_to_io().await;
    });
}

#[test]
fn a_forced_driver_is_the_one_that_runs() {
    let kind = |choice| run_core(None, choice, async |report| report.kind);
    if cfg!(feature = "glommio") {
        assert_eq!(
            kind(DriverChoice::Auto).unwrap(),
            DriverKind::GlommioIoUring
        );
        let refused = kind(DriverChoice::Epoll).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
        return;
    }
    assert_eq!(kind(DriverChoice::Epoll).unwrap(), DriverKind::Epoll);
    let auto = run_core(None, DriverChoice::Auto, async |report| report).unwrap();
    assert_eq!(
        auto.kind == DriverKind::IoUringTuned,
        auto.fallback_reason.is_none()
    );
    match kind(DriverChoice::IoUring) {
        Ok(kind) => assert_eq!(kind, auto.kind),
        Err(_) => assert_eq!(auto.kind, DriverKind::Epoll),
    }
}

#[test]
fn a_core_is_pinned_to_its_cpu() {
    let cpu = *hypercache::runtime::read_facts()
        .unwrap()
        .mask
        .last()
        .unwrap();
    thread::spawn(move || {
        run_core(Some(cpu), DriverChoice::Auto, async |_| {}).unwrap();
        assert_eq!(hypercache::runtime::read_facts().unwrap().mask, [cpu]);
    })
    .join()
    .unwrap();
    let absent = 100_000;
    assert!(run_core(Some(absent), DriverChoice::Auto, async |_| {}).is_err());
}
