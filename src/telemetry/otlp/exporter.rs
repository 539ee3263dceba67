//! The thread that sends metrics and spans.
//!
//! ```text
//!             every interval ──► snapshot ──► request          the next has it all again
//!  metrics ─┤
//!             not taken ───────► sooner, after a back-off
//!
//!             every delay, or when a batch is full ──► batch ──► request
//!  spans   ─┤
//!             not taken ───────► the same again, after a back-off, TRIES times in all
//! ```
//!
//! It blocks, so it is a thread of its own. Its memory is bounded: by the queue of spans,
//! which drops what is too much, by one batch that waits to be sent again, and by one
//! message. A failure is logged when it is another than the one before. When the node
//! stops it sends what there is, once and for [`FLUSH_MAX`] at most.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;

use super::client::{Client, Fault, Rejected, Sent, partial_success};
use super::config::Config;
use super::metrics::Period;
use super::{metrics, resource, spans};
use crate::cluster::rng::Rng;
use crate::runtime::process_usage;
use crate::telemetry::export::ExportCounters;
use crate::telemetry::snapshot::Sources;
use crate::telemetry::trace::{Spans, Tracing};

/// How long a stopping node waits until its last spans and metrics are sent.
pub const FLUSH_MAX: Duration = Duration::from_secs(1);

/// How often a batch of spans is sent at most.
const TRIES: u32 = 5;

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// An exporter that does not run yet.
pub struct Exporter {
    metrics: Option<Client>,
    spans: Option<(Client, Spans)>,
    counters: Arc<ExportCounters>,
    config: Config,
}

impl Exporter {
    /// Prepares what the configuration asks for; nothing where it asks for nothing. Spans
    /// go to the second.
    ///
    /// # Errors
    ///
    /// When a file cannot be used: one line that names the variable.
    pub fn prepare(
        config: &Config,
        counters: &Arc<ExportCounters>,
    ) -> Result<(Option<Self>, Tracing), String> {
        let metrics = config.metrics.as_ref().map(Client::new).transpose()?;
        let client = config.traces.as_ref().map(Client::new).transpose()?;
        let (queue, plenty) = (config.spans_queue, config.spans_batch);
        let (tracing, spans) = match client {
            None => (Tracing::off(), None),
            Some(client) => {
                let (tracing, spans) =
                    Tracing::new(config.sampler, queue, plenty, Arc::clone(counters));
                (tracing, Some((client, spans)))
            }
        };
        let exporter = (!config.is_off()).then(|| Self {
            metrics,
            spans,
            counters: Arc::clone(counters),
            config: config.clone(),
        });
        Ok((exporter, tracing))
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When there is none to be had.
    pub fn start(self, sources: Arc<Sources>) -> io::Result<Handle> {
        let ended = Arc::new(AtomicBool::new(false));
        tracing::info!(
            metrics = self.metrics.as_ref().map(Client::authority),
            traces = self.spans.as_ref().map(|(client, _)| client.authority()),
            "telemetry is exported"
        );
        let resource = resource(&sources.facts.node_id, &self.config.attributes);
        let started_s = process_usage().started_s;
        let (done, is_done) = mpsc::channel();
        let now = Instant::now();
        let work = Work {
            metrics: self.metrics.map(|client| MetricsLane {
                lane: Lane::new(client, "metrics", &self.counters),
                interval: self.config.metrics_interval,
                due: now + self.config.metrics_interval,
                since_ns: started_s * 1_000_000_000,
                sources,
            }),
            spans: self.spans.map(|(client, spans)| SpansLane {
                lane: Lane::new(client, "spans", &self.counters),
                spans,
                delay: self.config.spans_delay,
                batch: self.config.spans_batch,
                due: now + self.config.spans_delay,
                held: None,
            }),
            resource,
            ended: Arc::clone(&ended),
        };
        let thread = thread::Builder::new()
            .name("telemetry".to_owned())
            .spawn(move || {
                work.run();
                let _ = done.send(());
            })?;
        Ok(Handle {
            ended,
            thread: thread.thread().clone(),
            is_done,
        })
    }
}

/// Ends the thread.
pub struct Handle {
    ended: Arc<AtomicBool>,
    thread: Thread,
    is_done: mpsc::Receiver<()>,
}

impl Handle {
    /// Has what there is sent, and waits for that, but not longer than [`FLUSH_MAX`].
    pub fn end(self) {
        self.ended.store(true, Ordering::Release);
        self.thread.unpark();
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.is_done.recv_timeout(FLUSH_MAX) {
            tracing::warn!("the last telemetry could not be exported in time");
        }
    }
}

/// What the thread owns.
struct Work {
    metrics: Option<MetricsLane>,
    spans: Option<SpansLane>,
    resource: Resource,
    ended: Arc<AtomicBool>,
}

impl Work {
    fn run(mut self) {
        if let Some(spans) = &self.spans {
            spans.spans.attend();
        }
        while !self.ended.load(Ordering::Acquire) {
            let now = Instant::now();
            let due = self.due(now);
            if due > now {
                // Ends early when there is much to send or all ends, and may for no reason.
                thread::park_timeout(due - now);
                continue;
            }
            self.guarded(|work| work.export_due(now));
        }
        self.guarded(Self::flush);
    }

    /// A library that panics must not take the thread with it: nothing would be exported
    /// any more, and nobody would see it.
    fn guarded(&mut self, step: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| step(self))).is_err() {
            tracing::error!("an export of telemetry crashed");
            let later = Instant::now() + BACKOFF_MAX;
            if let Some(metrics) = &mut self.metrics {
                metrics.due = later;
            }
            if let Some(spans) = &mut self.spans {
                spans.due = later;
                spans.give_up();
            }
        }
    }

    /// When there is something to do next.
    fn due(&self, now: Instant) -> Instant {
        let metrics = self.metrics.as_ref().map(|metrics| metrics.due);
        let spans = self.spans.as_ref().map(|spans| spans.due(now));
        let far = now + Duration::from_secs(3600);
        metrics.into_iter().chain(spans).min().unwrap_or(far)
    }

    fn export_due(&mut self, now: Instant) {
        if let Some(metrics) = self.metrics.as_mut().filter(|metrics| metrics.due <= now) {
            metrics.export(&self.resource);
        }
        if let Some(spans) = self.spans.as_mut().filter(|spans| spans.due(now) <= now) {
            spans.export(&self.resource);
        }
    }

    fn flush(&mut self) {
        // A little less than is waited for.
        let until = Instant::now() + FLUSH_MAX * 9 / 10;
        if let Some(spans) = &mut self.spans {
            spans.flush(&self.resource, until);
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.send(&self.resource, left(until));
        }
    }
}

fn left(until: Instant) -> Duration {
    // None at all would be taken for no bound.
    let left = until.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}

/// What metrics and spans have in common.
struct Lane {
    client: Client,
    /// What it carries.
    what: &'static str,
    counters: Arc<ExportCounters>,
    /// The failure that was logged, while it lasts.
    told: Option<Fault>,
    /// Whether it was logged that a part was rejected.
    told_rejected: bool,
    /// How many requests in a row were not taken.
    failures: u32,
    rng: Rng,
}

/// What is to become of what was sent.
enum Verdict {
    /// It is done with, but for so many that were rejected.
    Taken(u64),
    /// It was not wanted.
    Refused,
    /// It may be sent again after so long.
    Later(Duration),
}

impl Lane {
    fn new(client: Client, what: &'static str, counters: &Arc<ExportCounters>) -> Self {
        Self {
            client,
            what,
            counters: Arc::clone(counters),
            told: None,
            told_rejected: false,
            failures: 0,
            rng: Rng::new(unix_ns()),
        }
    }

    fn send(
        &mut self,
        message: &[u8],
        most: Duration,
        rejected: impl FnOnce(&[u8]) -> Option<Rejected>,
    ) -> Verdict {
        match self.client.send(message, most, rejected) {
            Sent::Taken(rejected) => {
                self.counters.exports.count();
                self.failures = 0;
                if self.told.take().is_some() {
                    tracing::info!(what = self.what, "telemetry is exported again");
                }
                self.tell_rejected(&rejected);
                Verdict::Taken(rejected.count)
            }
            Sent::Refused(fault) => {
                self.failed(fault);
                Verdict::Refused
            }
            Sent::Later(fault, after) => {
                self.failed(fault);
                let after = after.unwrap_or_else(|| self.backoff());
                Verdict::Later(after.max(BACKOFF_MIN / 2))
            }
        }
    }

    /// Longer with each failure, and not the same for all nodes.
    fn backoff(&mut self) -> Duration {
        let doubled = BACKOFF_MIN * (1 << self.failures.saturating_sub(1).min(16));
        let most = doubled.min(BACKOFF_MAX);
        let spread_ms = most.as_millis() as usize / 2;
        most / 2 + Duration::from_millis(self.rng.below(spread_ms + 1) as u64)
    }

    fn failed(&mut self, fault: Fault) {
        self.counters.export_failures.count();
        self.failures = self.failures.saturating_add(1);
        if self.told.as_ref().is_some_and(|told| told.is_like(&fault)) {
            return;
        }
        tracing::warn!(
            what = self.what,
            url = %self.client.authority(),
            error = %fault,
            "telemetry cannot be exported"
        );
        self.told = Some(fault);
    }

    fn tell_rejected(&mut self, rejected: &Rejected) {
        if *rejected != Rejected::default() && !self.told_rejected {
            self.told_rejected = true;
            tracing::warn!(
                what = self.what,
                count = rejected.count,
                reason = %rejected.reason,
                "the collector rejects a part of the telemetry; that is said once"
            );
        }
    }
}

struct MetricsLane {
    lane: Lane,
    interval: Duration,
    due: Instant,
    /// Since when is counted.
    since_ns: u64,
    sources: Arc<Sources>,
}

impl MetricsLane {
    fn export(&mut self, resource: &Resource) {
        let begun = Instant::now();
        let verdict = self.send(resource, Duration::MAX);
        let now = Instant::now();
        // What is sent later is newer, and says all that this would have said.
        self.due = match verdict {
            Verdict::Later(after) => now + after,
            Verdict::Taken(_) | Verdict::Refused => (begun + self.interval).max(now),
        };
    }

    fn send(&mut self, resource: &Resource, most: Duration) -> Verdict {
        let period = Period {
            since_ns: self.since_ns,
            until_ns: unix_ns(),
        };
        let snapshot = self.sources.snapshot();
        let message = metrics::request(&snapshot, resource.clone(), period).encode_to_vec();
        self.lane.send(&message, most, |body| {
            partial_success(body, |answer: ExportMetricsServiceResponse| {
                let part = answer.partial_success?;
                Some((part.rejected_data_points, part.error_message))
            })
        })
    }
}

struct SpansLane {
    lane: Lane,
    spans: Spans,
    delay: Duration,
    batch: usize,
    due: Instant,
    /// A batch that was not taken yet.
    held: Option<Held>,
}

/// A batch of spans, encoded.
struct Held {
    message: Vec<u8>,
    count: u64,
    tries: u32,
    due: Instant,
}

impl SpansLane {
    fn due(&self, now: Instant) -> Instant {
        match &self.held {
            Some(held) => held.due,
            None if self.spans.are_plenty() => now,
            None => self.due,
        }
    }

    /// The next batch: the one that was not taken, or a new one; nothing when there are no
    /// spans.
    fn next(&mut self, resource: &Resource) -> Option<Held> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        let spans = self.spans.take(self.batch);
        let count = spans.len() as u64;
        (count > 0).then(|| Held {
            message: spans::request(spans, resource.clone()).encode_to_vec(),
            count,
            tries: 0,
            due: Instant::now(),
        })
    }

    fn export(&mut self, resource: &Resource) {
        if let Some(mut held) = self.next(resource) {
            match self.send(&held, Duration::MAX) {
                Verdict::Later(after) if held.tries + 1 < TRIES => {
                    held.tries += 1;
                    held.due = Instant::now() + after;
                    self.held = Some(held);
                }
                Verdict::Later(_) | Verdict::Refused => self.drop_spans(held.count),
                Verdict::Taken(_) => {}
            }
        }
        self.due = Instant::now() + self.delay;
    }

    fn send(&mut self, held: &Held, most: Duration) -> Verdict {
        let verdict = self.lane.send(&held.message, most, |body| {
            partial_success(body, |answer: ExportTraceServiceResponse| {
                let part = answer.partial_success?;
                Some((part.rejected_spans, part.error_message))
            })
        });
        if let Verdict::Taken(rejected) = verdict {
            let rejected = rejected.min(held.count);
            self.drop_spans(rejected);
            self.lane.counters.spans_exported.add(held.count - rejected);
        }
        verdict
    }

    /// Sends what there is, until something is not taken.
    fn flush(&mut self, resource: &Resource, until: Instant) {
        while let Some(held) = self.next(resource) {
            let most = left(until);
            if !matches!(self.send(&held, most), Verdict::Taken(_)) || Instant::now() >= until {
                let waiting = self.spans.len() as u64;
                tracing::warn!(spans = held.count + waiting, "the last spans are lost");
                return;
            }
        }
    }

    fn give_up(&mut self) {
        if let Some(held) = self.held.take() {
            self.drop_spans(held.count);
        }
    }

    fn drop_spans(&self, count: u64) {
        self.lane.counters.spans_dropped.add(count);
    }
}
