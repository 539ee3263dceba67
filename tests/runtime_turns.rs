//! Taking turns: yielding tasks and busy mailboxes starve neither sockets nor timers.
#![allow(clippy::unwrap_used)]

#[path = "support/runtime.rs"]
mod support;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hypercache::runtime::{mailbox, sleep, spawn, yield_to_io};
use support::{Flag, on_each_driver, pair, read_exactly};

#[test]
fn a_task_that_yields_starves_neither_io_nor_timers_nor_mailboxes() {
    on_each_driver(async || {
        let (mut here, mut there) = pair().await;
        let (sender, mut receiver) = mailbox::<u32>(4);
        let (echoed, slept, received) = (Flag::default(), Flag::default(), Flag::default());
        spawn({
            let echoed = echoed.clone();
            async move {
                for _ in 0..50 {
                    let ping = here.write_all(vec![7; 100]).await;
                    ping.0.unwrap();
                    read_exactly(&mut here, 100).await;
                }
                echoed.set();
            }
        });
        spawn(async move {
            for _ in 0..50 {
                let ping = read_exactly(&mut there, 100).await;
                there.write_all(ping).await.0.unwrap();
            }
        });
        spawn({
            let slept = slept.clone();
            async move {
                sleep(Duration::from_millis(2)).await;
                slept.set();
            }
        });
        spawn({
            let received = received.clone();
            async move {
                let mut messages = Vec::new();
                while receiver.recv_many(&mut messages).await > 0 {}
                assert_eq!(messages, (0..100).collect::<Vec<_>>());
                received.set();
            }
        });
        let feeder = thread::spawn(move || {
            for message in 0..100 {
                while sender.try_send(message).is_err() {
                    thread::yield_now();
                }
            }
        });
        // Two busy tasks, so that one is always runnable when the other waits.
        let stop = Rc::new(Cell::new(false));
        spawn({
            let stop = Rc::clone(&stop);
            async move {
                while !stop.get() {
                    yield_to_io().await;
                }
            }
        });
        for flag in [echoed, slept, received] {
            flag.wait().await;
        }
        stop.set(true);
        feeder.join().unwrap();
    });
}

#[test]
fn a_flooded_mailbox_starves_no_socket() {
    on_each_driver(async || {
        let (sender, mut receiver) = mailbox::<u64>(64);
        let stop = Arc::new(AtomicBool::new(false));
        let flood = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = sender.try_send(1);
                }
            }
        });
        spawn(async move {
            let mut messages = Vec::new();
            while receiver.recv_many(&mut messages).await > 0 {
                messages.clear();
            }
        });
        echo_rounds(200).await;
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap();
    });
}

/// With `DEFER_TASKRUN`, monoio parks without reaping completions when it finds a wake-up
/// from another thread first. Here it finds one each time.
#[test]
fn wake_ups_that_always_come_before_parking_starve_no_socket() {
    on_each_driver(async || {
        let (sender, mut receiver) = mailbox::<u64>(64);
        let (turn, sent) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(1)));
        let feeder = thread::spawn({
            let (turn, sent) = (Arc::clone(&turn), Arc::clone(&sent));
            move || {
                loop {
                    match turn.load(Ordering::Acquire) {
                        0 => return,
                        now if now == sent.load(Ordering::Relaxed) => thread::yield_now(),
                        now => {
                            let _ = sender.try_send(now);
                            sent.store(now, Ordering::Release);
                        }
                    }
                }
            }
        });
        let stop = Rc::new(Cell::new(false));
        spawn({
            let (stop, turn) = (Rc::clone(&stop), Arc::clone(&turn));
            async move {
                let mut messages = Vec::new();
                while receiver.recv_many(&mut messages).await > 0 {
                    let now = messages.pop().unwrap();
                    messages.clear();
                    if stop.get() {
                        turn.store(0, Ordering::Release);
                        return;
                    }
                    // Runs when the receiver waits already and the core has not parked.
                    let (turn, sent) = (Arc::clone(&turn), Arc::clone(&sent));
                    spawn(async move {
                        turn.store(now + 1, Ordering::Release);
                        while sent.load(Ordering::Acquire) != now + 1 {
                            thread::yield_now();
                        }
                    });
                }
            }
        });
        // The first message must find the receiver waiting: from then on each one does.
        yield_to_io().await;
        turn.store(2, Ordering::Release);
        echo_rounds(100).await;
        stop.set(true);
        while turn.load(Ordering::Acquire) != 0 {
            yield_to_io().await;
        }
        feeder.join().unwrap();
    });
}

/// Sends ten bytes back and forth on this core.
async fn echo_rounds(rounds: usize) {
    let (mut here, mut there) = pair().await;
    spawn(async move {
        for _ in 0..rounds {
            let ping = read_exactly(&mut there, 10).await;
            there.write_all(ping).await.0.unwrap();
        }
    });
    for _ in 0..rounds {
        here.write_all(vec![1; 10]).await.0.unwrap();
        read_exactly(&mut here, 10).await;
    }
}

#[test]
fn a_task_that_goes_on_yielding_does_not_keep_a_core_from_ending() {
    on_each_driver(async || {
        // It is ready in the turn in which the core ends.
        spawn(async {
            loop {
                yield_to_io().await;
            }
        });
        yield_to_io().await;
    });
}
