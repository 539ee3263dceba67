//! Mailboxes: order, backpressure, and that no wake-up is ever lost.
#![allow(clippy::unwrap_used)]

#[path = "support/runtime.rs"]
mod support;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use hypercache::runtime::{
    RECEIVE_BATCH_MAX, Receiver, Sender, TrySendError, mailbox, run_core, spawn, yield_to_io,
};
use support::{Flag, choices, finishes, on_each_driver};

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Count {
    fn woken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn messages_of_one_sender_arrive_in_order() {
    for choice in choices() {
        let (sender, mut receiver) = mailbox::<u32>(8);
        let feeder = thread::spawn(move || {
            run_core(None, choice, async |_| {
                for message in 0..50_000 {
                    sender.send(message).await.unwrap();
                }
            })
            .unwrap();
        });
        let got = run_core(None, choice, async |_| {
            let mut got = Vec::new();
            while receiver.recv_many(&mut got).await > 0 {}
            got
        })
        .unwrap();
        feeder.join().unwrap();
        assert!(got.into_iter().eq(0..50_000));
    }
}

#[test]
fn a_full_mailbox_hands_the_message_back_and_takes_it_once_drained() {
    let (sender, mut receiver) = mailbox::<u32>(2);
    sender.try_send(1).unwrap();
    sender.try_send(2).unwrap();
    assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
    assert_eq!(sender.len(), 2);

    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    let mut send = pin!(sender.send(3));
    // However often it is polled, it is listed once.
    for _ in 0..3 {
        assert!(send.as_mut().poll(&mut context).is_pending());
    }
    assert_eq!(count.woken(), 0);
    let mut got = Vec::new();
    assert_eq!(receiver.try_drain(&mut got), 2);
    assert_eq!(count.woken(), 1);
    assert_eq!(send.as_mut().poll(&mut context), Poll::Ready(Ok(())));
    assert_eq!(receiver.try_drain(&mut got), 1);
    assert_eq!(count.woken(), 1);
    assert_eq!(got, [1, 2, 3]);
}

#[test]
fn the_receiver_is_woken_once_per_turn_and_only_while_it_waits() {
    let (sender, mut receiver) = mailbox::<u32>(100);
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    sender.try_send(0).unwrap();
    assert_eq!(count.woken(), 0, "it does not wait yet");
    let mut got = Vec::new();
    for turn in 1..=20 {
        let before = got.len();
        {
            let mut receive = pin!(receiver.recv_many(&mut got));
            let mut polled = receive.as_mut().poll(&mut context);
            if turn == 1 {
                assert_eq!(polled, Poll::Ready(1));
                continue;
            }
            assert!(polled.is_pending());
            for message in 0..10 {
                sender.clone().try_send(message).unwrap();
            }
            polled = receive.as_mut().poll(&mut context);
            assert_eq!(polled, Poll::Ready(10));
        }
        assert_eq!(got.len() - before, 10);
        assert_eq!(count.woken(), turn - 1);
        drop(sender.clone());
        assert_eq!(
            count.woken(),
            turn - 1,
            "dropping a sender wakes nobody who runs"
        );
    }
}

#[test]
fn a_batch_is_bounded() {
    let (sender, mut receiver) = mailbox::<usize>(RECEIVE_BATCH_MAX * 2);
    for message in 0..RECEIVE_BATCH_MAX + 5 {
        sender.try_send(message).unwrap();
    }
    let mut got = Vec::new();
    assert_eq!(receiver.try_drain(&mut got), RECEIVE_BATCH_MAX);
    assert_eq!(receiver.try_drain(&mut got), 5);
    assert_eq!(receiver.try_drain(&mut got), 0);
}

#[test]
fn a_receiver_learns_that_all_senders_are_gone() {
    on_each_driver(async || {
        let (sender, mut receiver) = mailbox::<u32>(4);
        let ended = Flag::default();
        spawn({
            let ended = ended.clone();
            async move {
                let mut got = Vec::new();
                while receiver.recv_many(&mut got).await > 0 {}
                assert_eq!(got, [7]);
                ended.set();
            }
        });
        let other = sender.clone();
        yield_to_io().await;
        drop(sender);
        thread::spawn(move || other.try_send(7).unwrap())
            .join()
            .unwrap();
        ended.wait().await;
    });
}

#[test]
fn a_waiting_sender_learns_that_the_receiver_is_gone() {
    on_each_driver(async || {
        let (sender, receiver) = mailbox::<u32>(1);
        sender.try_send(1).unwrap();
        let ended = Flag::default();
        spawn({
            let ended = ended.clone();
            async move {
                assert_eq!(sender.send(2).await, Err(2));
                assert_eq!(sender.try_send(3), Err(TrySendError::Closed(3)));
                assert!(sender.is_closed());
                ended.set();
            }
        });
        yield_to_io().await;
        thread::spawn(move || drop(receiver)).join().unwrap();
        ended.wait().await;
    });
}

/// One core sends bursts and waits for as many answers before the next: a single lost
/// wake-up, of a receiver or of a sender, stops it for good.
#[test]
fn no_wake_up_is_lost_between_two_cores() {
    for choice in choices() {
        finishes(move || {
            let (ask, questions) = mailbox::<u32>(3);
            let (answer, answers) = mailbox::<u32>(3);
            let echo = thread::spawn(move || {
                run_core(None, choice, async |_| echo(questions, answer).await).unwrap();
            });
            run_core(None, choice, async |_| bursts(ask, answers).await).unwrap();
            echo.join().unwrap();
        });
    }
}

async fn echo(mut questions: Receiver<u32>, answer: Sender<u32>) {
    let mut got = Vec::new();
    while questions.recv_many(&mut got).await > 0 {
        for question in got.drain(..) {
            answer.send(question).await.unwrap();
        }
    }
}

async fn bursts(ask: Sender<u32>, mut answers: Receiver<u32>) {
    let ask = Arc::new(ask);
    let (mut next, mut expected) = (0, 0);
    let mut got = Vec::new();
    for round in 0..20_000_u32 {
        // 1 to 8 at once, into mailboxes that hold 3.
        let burst = 1 + round.wrapping_mul(2_654_435_761) % 8;
        let ask = Arc::clone(&ask);
        spawn(async move {
            for message in next..next + burst {
                ask.send(message).await.unwrap();
            }
        });
        next += burst;
        while expected < next {
            answers.recv_many(&mut got).await;
            for message in got.drain(..) {
                assert_eq!(message, expected);
                expected += 1;
            }
        }
    }
}

#[test]
fn many_threads_may_send_at_once() {
    for choice in choices() {
        finishes(move || {
            let (sender, mut receiver) = mailbox::<(usize, u32)>(4);
            let feeders: Vec<_> = (0..3)
                .map(|id| {
                    let sender = sender.clone();
                    thread::spawn(move || {
                        run_core(None, choice, async |_| {
                            for message in 0..5000 {
                                sender.send((id, message)).await.unwrap();
                            }
                        })
                        .unwrap();
                    })
                })
                .collect();
            drop(sender);
            run_core(None, choice, async |_| {
                let mut next = [0; 3];
                let mut got = Vec::new();
                while receiver.recv_many(&mut got).await > 0 {
                    for (id, message) in got.drain(..) {
                        assert_eq!(message, next[id]);
                        next[id] += 1;
                    }
                }
                assert_eq!(next, [5000; 3]);
            })
            .unwrap();
            for feeder in feeders {
                feeder.join().unwrap();
            }
        });
    }
}
