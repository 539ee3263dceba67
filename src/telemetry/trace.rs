//! Spans: what was done for whom, and for how long.
//!
//! A core asks its [`Tracer`] whether something is to be recorded; most of the time it is
//! not, and that costs a branch where tracing is off and a multiplication where it is on.
//! What is recorded goes into a bounded queue, from which another thread takes it. That
//! never waits: when the queue is full the span is dropped and counted.
//!
//! What a span can say is a fixed list ([`Work`]): kinds, names of nodes, lengths, counts.
//! It has no place for a key or a value.

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use opentelemetry::{SpanId, TraceFlags, TraceId};

use super::export::ExportCounters;
use super::latency::{Operation, Via};
use crate::trace_context::Context;

/// Which new traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether what belongs to a trace is recorded exactly when the trace is.
    pub parent_based: bool,
    /// A trace is recorded when the lower half of its id, without its last bit, is below
    /// this.
    limit: u64,
}

impl Sampler {
    /// Records this share of all traces, from 0 to 1.
    pub fn ratio(parent_based: bool, ratio: f64) -> Self {
        Self {
            parent_based,
            limit: (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64,
        }
    }

    /// Whether it records a trace whose id ends in these bits.
    #[inline]
    fn takes(self, lower: u64) -> bool {
        lower >> 1 < self.limit
    }

    /// Whether it records what belongs to a trace that began elsewhere.
    fn takes_child(self, parent: &Context) -> bool {
        match self.parent_based {
            true => parent.is_sampled(),
            false => self.takes(u128::from_be_bytes(parent.trace.to_bytes()) as u64),
        }
    }
}

/// What a span is about, and all that it says.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A request of a client.
    Request(Request),
    /// Operations sent to another node, until it has answered.
    PeerCall(PeerCall),
    /// Operations of another node, carried out here.
    PeerServe {
        /// Bytes of the frame.
        bytes: u64,
        /// Bytes of the answer.
        answer_bytes: u64,
    },
    /// Something that a core does by itself.
    Upkeep(Upkeep),
}

/// A request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its method, or `_OTHER`.
    pub method: &'static str,
    /// The pattern that its path matches; empty where there is none.
    pub route: &'static str,
    /// What it asks for, where durations of that are recorded.
    pub operation: Option<Operation>,
    /// How far it had to go.
    pub via: Via,
    /// The status of its answer; 0 where that is not known.
    pub status: u16,
    /// How long the key is, where it is about one.
    pub key_bytes: Option<u64>,
    /// How long the value is that was written or read, where there is one.
    pub value_bytes: Option<u64>,
}

/// Operations on their way to another node and back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCall {
    /// The node.
    pub peer: Arc<str>,
    /// Over which of the connections to it.
    pub lane: &'static str,
    /// How many operations.
    pub operations: u64,
    /// Bytes of the frame.
    pub bytes: u64,
}

/// Something that a core does by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// What.
    pub kind: UpkeepKind,
    /// With which node, where it is one.
    pub peer: Option<Arc<str>>,
    /// On which core.
    pub core: u64,
    /// How much, each number under its name.
    pub counts: Vec<(&'static str, u64)>,
}

/// What a core does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpkeepKind {
    /// Sends a node the writes that it did not take.
    HintReplay,
    /// Compares what it holds with another owner.
    Sync,
    /// Copies what it lacks, or hands over what it does not own any more.
    Transfer,
    /// Gets all that it owns.
    Bootstrap,
}

impl UpkeepKind {
    /// The name of its spans.
    pub fn name(self) -> &'static str {
        match self {
            Self::HintReplay => "hint.replay",
            Self::Sync => "sync",
            Self::Transfer => "transfer",
            Self::Bootstrap => "bootstrap",
        }
    }
}

/// Something that is recorded and has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Which one.
    pub context: Context,
    /// Of what it is a part.
    pub parent: Option<SpanId>,
    /// Others that it served as well.
    pub links: Vec<Context>,
    /// When it began, in nanoseconds since 1970.
    pub started_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// What it was.
    pub work: Work,
    /// Whether it came to no good end.
    pub failed: bool,
}

/// Something that is recorded and under way.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    /// Which span it will be.
    pub context: Context,
    parent: Option<SpanId>,
    at: Instant,
    at_ns: u64,
}

/// Where the spans of a node go. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracing(Option<Arc<Recording>>);

struct Recording {
    sampler: Sampler,
    spans: Sender<Span>,
    /// So many spans are waiting that they should be fetched at once.
    plenty: usize,
    taker: Taker,
    counters: Arc<ExportCounters>,
}

/// Wakes the thread that takes the spans.
#[derive(Default)]
pub struct Taker {
    thread: OnceLock<Thread>,
    woken: AtomicBool,
}

impl Taker {
    #[cold]
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

impl fmt::Debug for Tracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "on" } else { "off" })
    }
}

/// The other end of [`Tracing`].
pub struct Spans {
    spans: Receiver<Span>,
    recording: Arc<Recording>,
}

impl Spans {
    /// From now on this thread is woken when there are many.
    pub fn attend(&self) {
        let _ = self.recording.taker.thread.set(std::thread::current());
    }

    /// Takes as many as there are, at most so many.
    pub fn take(&self, most: usize) -> Vec<Span> {
        self.recording.taker.woken.store(false, Ordering::Release);
        self.spans.try_iter().take(most).collect()
    }

    /// Whether there are so many that they should not wait.
    pub fn are_plenty(&self) -> bool {
        self.spans.len() >= self.recording.plenty
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }
}

impl Tracing {
    /// Records nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Records what the sampler says. At most `queue` spans wait to be taken; when there
    /// are `plenty`, whoever takes them is woken.
    pub fn new(
        sampler: Sampler,
        queue: usize,
        plenty: usize,
        counters: Arc<ExportCounters>,
    ) -> (Self, Spans) {
        let (sender, receiver) = crossbeam_channel::bounded(queue);
        let recording = Arc::new(Recording {
            sampler,
            spans: sender,
            plenty,
            taker: Taker::default(),
            counters,
        });
        let spans = Spans {
            spans: receiver,
            recording: Arc::clone(&recording),
        };
        (Self(Some(recording)), spans)
    }

    /// What a thread records with.
    pub fn tracer(&self) -> Tracer {
        Tracer {
            recording: self.0.clone(),
            ids: Ids::new(),
        }
    }
}

/// What one thread records with.
pub struct Tracer {
    recording: Option<Arc<Recording>>,
    ids: Ids,
}

impl Tracer {
    /// Whether anything is recorded at all.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.recording.is_some()
    }

    /// Begins a request that came with this `traceparent`, if it is to be recorded.
    #[inline]
    pub fn begin_request(&self, traceparent: Option<&[u8]>) -> Option<Begun> {
        let recording = self.recording.as_ref()?;
        match traceparent {
            None => self.root(recording),
            Some(header) => self.continued(recording, header),
        }
    }

    /// Begins something that nobody asked for, if it is to be recorded.
    #[inline]
    pub fn begin_root(&self) -> Option<Begun> {
        self.root(self.recording.as_ref()?)
    }

    /// Begins a part of something that may be recorded.
    pub fn begin_part_of(&self, parent: &Context) -> Option<Begun> {
        let recorded = self.is_on() && parent.is_sampled();
        recorded.then(|| self.child(parent))
    }

    /// Begins a part of what another node says that it records.
    pub fn begin_remote_part(&self, traceparent: Option<&[u8]>) -> Option<Begun> {
        self.recording.as_ref()?;
        self.begin_part_of(&Context::parse(traceparent?)?)
    }

    #[inline]
    fn root(&self, recording: &Recording) -> Option<Begun> {
        let lower = self.ids.next();
        if !recording.sampler.takes(lower) {
            return None;
        }
        let trace = TraceId::from(u128::from(self.ids.next()) << 64 | u128::from(lower));
        Some(self.begun(trace, None))
    }

    #[cold]
    fn continued(&self, recording: &Recording, header: &[u8]) -> Option<Begun> {
        let Some(parent) = Context::parse(header) else {
            return self.root(recording);
        };
        let recorded = recording.sampler.takes_child(&parent);
        recorded.then(|| self.child(&parent))
    }

    fn child(&self, parent: &Context) -> Begun {
        self.begun(parent.trace, Some(parent.span))
    }

    fn begun(&self, trace: TraceId, parent: Option<SpanId>) -> Begun {
        // The one id that would be none comes once in 2^64 times.
        let span = SpanId::from(self.ids.next().max(1));
        let flags = TraceFlags::SAMPLED;
        Begun {
            context: Context { trace, span, flags },
            parent,
            at: Instant::now(),
            at_ns: unix_ns(),
        }
    }

    /// Ends what was begun.
    pub fn end(&self, begun: &Begun, work: Work, failed: bool) {
        self.end_linked(begun, Vec::new(), work, failed);
    }

    /// Ends what was begun and served others as well.
    pub fn end_linked(&self, begun: &Begun, links: Vec<Context>, work: Work, failed: bool) {
        let took = u64::try_from(begun.at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.record(Span {
            context: begun.context,
            parent: begun.parent,
            links,
            started_ns: begun.at_ns,
            ended_ns: begun.at_ns.saturating_add(took),
            work,
            failed,
        });
    }

    /// Records something that has just ended and took so long, if it is to be: as a part
    /// of something recorded, or for itself.
    pub fn record_upkeep(
        &self,
        parent: Option<&Context>,
        upkeep: Upkeep,
        took: Duration,
        failed: bool,
    ) -> Option<Context> {
        let begun = match parent {
            Some(parent) => self.begin_part_of(parent)?,
            None => self.begin_root()?,
        };
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.record(Span {
            context: begun.context,
            parent: begun.parent,
            links: Vec::new(),
            started_ns: begun.at_ns.saturating_sub(took),
            ended_ns: begun.at_ns,
            work: Work::Upkeep(upkeep),
            failed,
        });
        Some(begun.context)
    }

    fn record(&self, span: Span) {
        let Some(recording) = &self.recording else {
            return;
        };
        if recording.spans.try_send(span).is_err() {
            recording.counters.spans_dropped.count();
        } else if recording.spans.len() >= recording.plenty {
            recording.taker.wake();
        }
    }
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}

/// Numbers for ids: Lehmer's generator with 128 bits of state, seeded by the system. They
/// differ from those of others and cannot be told from chance by sampling, which is all
/// that ids are for; they are no secrets.
struct Ids(Cell<u128>);

impl Ids {
    fn new() -> Self {
        let random = || u128::from(RandomState::new().build_hasher().finish());
        // Odd, or it would end in zeros.
        Self(Cell::new(random() << 64 | random() | 1))
    }

    #[inline]
    fn next(&self) -> u64 {
        let state = self.0.get().wrapping_mul(0xda94_2042_e4dd_58b5);
        self.0.set(state);
        (state >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::SpanKind;
    use opentelemetry_sdk::trace::{Sampler as Reference, SamplingDecision, ShouldSample};
    use proptest::prelude::*;

    use super::*;

    const SAMPLED: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn tracer(sampler: Sampler, queue: usize) -> (Tracer, Spans, Arc<ExportCounters>) {
        let counters = Arc::new(ExportCounters::default());
        let (tracing, spans) = Tracing::new(sampler, queue, queue, Arc::clone(&counters));
        (tracing.tracer(), spans, counters)
    }

    fn serve() -> Work {
        Work::PeerServe {
            bytes: 1,
            answer_bytes: 2,
        }
    }

    #[test]
    fn where_tracing_is_off_nothing_begins() {
        let tracer = Tracing::off().tracer();
        assert!(tracer.begin_request(Some(SAMPLED)).is_none());
        assert!(tracer.begin_request(None).is_none());
        assert!(tracer.begin_root().is_none());
        assert!(tracer.begin_remote_part(Some(SAMPLED)).is_none());
    }

    #[test]
    fn a_parent_decides_where_the_sampler_says_so() {
        let (tracer, ..) = tracer(Sampler::ratio(true, 0.0), 1);
        let begun = tracer.begin_request(Some(SAMPLED)).unwrap();
        let parent = Context::parse(SAMPLED).unwrap();
        assert_eq!(begun.context.trace, parent.trace);
        assert_eq!(begun.parent, Some(parent.span));
        assert!(begun.context.is_sampled() && begun.context.span != parent.span);
        assert!(tracer.begin_request(None).is_none());
        assert!(tracer.begin_request(Some(b"nonsense")).is_none());

        let (tracer, ..) = super::tests::tracer(Sampler::ratio(true, 1.0), 1);
        assert!(tracer.begin_request(Some(UNSAMPLED)).is_none());
        assert!(tracer.begin_request(None).is_some());
        let (tracer, ..) = super::tests::tracer(Sampler::ratio(false, 1.0), 1);
        assert!(tracer.begin_request(Some(UNSAMPLED)).is_some());
        assert!(tracer.begin_remote_part(Some(UNSAMPLED)).is_none());
    }

    #[test]
    fn about_the_share_that_is_asked_for_is_recorded() {
        let (tracer, ..) = tracer(Sampler::ratio(true, 0.25), 1);
        let taken = (0..40_000).filter(|_| tracer.begin_root().is_some());
        let taken = taken.count();
        assert!((9_000..11_000).contains(&taken), "{taken}");
    }

    #[test]
    fn a_full_queue_drops_spans_and_counts_them() {
        let (tracer, spans, counters) = tracer(Sampler::ratio(true, 1.0), 2);
        for _ in 0..5 {
            let begun = tracer.begin_root().unwrap();
            tracer.end(&begun, serve(), false);
        }
        assert_eq!(counters.spans_dropped.get(), 3);
        assert_eq!(spans.take(10).len(), 2);
        assert!(spans.is_empty());
    }

    #[test]
    fn ids_differ_between_threads_and_from_one_to_the_next() {
        let ids: Vec<u64> = (0..100)
            .flat_map(|_| {
                let ids = Ids::new();
                (0..100).map(|_| ids.next()).collect::<Vec<_>>()
            })
            .collect();
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }

    proptest! {
        #[test]
        fn traces_are_chosen_as_by_other_implementations(
            trace in 1_u128..,
            ratio in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0],
        ) {
            let trace = TraceId::from(trace);
            let theirs = Reference::TraceIdRatioBased(ratio)
                .should_sample(None, trace, "", &SpanKind::Server, &[], &[]);
            let context = Context {
                trace,
                span: SpanId::from(1),
                flags: TraceFlags::NOT_SAMPLED,
            };
            prop_assert_eq!(
                Sampler::ratio(false, ratio).takes_child(&context),
                theirs.decision == SamplingDecision::RecordAndSample,
            );
        }
    }
}
