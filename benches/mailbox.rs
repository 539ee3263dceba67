//! What a mailbox costs: the queue by itself, and a hop to another core and back.
//!
//! `hop` has two cores that both sleep when idle, so it is ruled by waking them up; a
//! batch shows what is left per message when that is shared.
#![allow(missing_docs)]

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hypercache::runtime::{DriverChoice, Receiver, Sender, mailbox, read_facts, run_core};

fn push_and_drain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("push_drain");
    for batch in [1_u64, 16, 256] {
        let (sender, mut receiver) = mailbox::<u64>(1024);
        let mut got = Vec::with_capacity(1024);
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("batch_{batch}"), |bencher| {
            bencher.iter(|| {
                for message in 0..batch {
                    let _ = sender.try_send(black_box(message));
                }
                receiver.try_drain(&mut got);
                black_box(&mut got).clear();
            });
        });
    }
    group.finish();
}

fn hop(criterion: &mut Criterion) {
    let cpus = read_facts().map(|facts| facts.mask).unwrap_or_default();
    let cpu = |index: usize| cpus.get(index).copied().filter(|_| cpus.len() > 1);
    let mut group = criterion.benchmark_group("hop");
    for batch in [1_u64, 16] {
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("round_trip_batch_{batch}"), |bencher| {
            bencher.iter_custom(|rounds| {
                let (ask, questions) = mailbox(1024);
                let (answer, answers) = mailbox(1024);
                let (here, there) = (cpu(0), cpu(1));
                let echoing = thread::spawn(move || {
                    run_core(there, DriverChoice::Auto, async |_| {
                        echo(questions, answer).await
                    })
                });
                let asking = thread::spawn(move || {
                    run_core(here, DriverChoice::Auto, async |_| {
                        round_trips(ask, answers, rounds, batch).await
                    })
                });
                let took = asking.join().ok().and_then(Result::ok).unwrap_or_default();
                let _ = echoing.join();
                took
            });
        });
    }
    group.finish();
}

async fn echo(mut questions: Receiver<u64>, answer: Sender<u64>) {
    let mut got = Vec::new();
    while questions.recv_many(&mut got).await > 0 {
        for question in got.drain(..) {
            let _ = answer.try_send(question);
        }
    }
}

async fn round_trips(
    ask: Sender<u64>,
    mut answers: Receiver<u64>,
    rounds: u64,
    batch: u64,
) -> Duration {
    let mut got = Vec::new();
    let start = Instant::now();
    for _ in 0..rounds {
        for message in 0..batch {
            let _ = ask.try_send(message);
        }
        while got.len() < batch as usize {
            answers.recv_many(&mut got).await;
        }
        got.clear();
    }
    start.elapsed()
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = push_and_drain, hop
}
criterion_main!(benches);
