//! The management listener: health and metrics, for kubelets and monitoring.
//!
//! Runs on a thread of its own, beside the data cores, on the same connection
//! code as the client listener; it reads what the cores count and never waits
//! for them.

use std::borrow::Cow;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::api::{ApiError, NodeFacts, Turn, Writer};
use crate::hash::CoreCount;
use crate::http::{Connection, Head, HttpDate, Method, Status};
use crate::node::connection::{self, Limits, Service};
use crate::node::deadlines::{Deadlines, Timeouts};
use crate::operations::Exchange;
use crate::runtime::{self, Listener};
use crate::telemetry::prometheus::Exposition;

/// How many management connections may be open.
const CONNECTIONS_MAX: usize = 256;

const TICK: Duration = Duration::from_millis(100);

/// What the management listener serves.
#[derive(Debug)]
pub struct Management {
    /// About the node.
    pub facts: Arc<NodeFacts>,
    /// The metrics.
    pub exposition: Exposition,
    /// Set once the node is stopping.
    pub stopping: Arc<AtomicBool>,
}

struct Serving {
    management: Management,
    date: Cell<HttpDate>,
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

impl Management {
    /// Serves until the process ends.
    pub async fn run(self, listener: Listener, limits: Limits, timeouts: Timeouts) {
        let serving = Rc::new(Serving {
            management: self,
            date: Cell::new(HttpDate::at(unix_seconds())),
        });
        let deadlines = Deadlines::new(timeouts);
        let limits = Rc::new(limits);
        runtime::spawn(tick(Rc::clone(&serving), Rc::clone(&deadlines)));
        loop {
            match listener.accept().await {
                Ok((stream, _)) if deadlines.open() < CONNECTIONS_MAX => {
                    let watch = deadlines.watch(stream.aborter());
                    let service = Rc::clone(&serving);
                    runtime::spawn(connection::serve(
                        service,
                        Rc::clone(&limits),
                        stream,
                        watch,
                    ));
                }
                Ok(_) => tracing::warn!("a management connection over the limit was closed"),
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the management listener");
                    runtime::sleep(TICK).await;
                }
            }
        }
    }
}

async fn tick(serving: Rc<Serving>, deadlines: Rc<Deadlines>) {
    let started = Instant::now();
    loop {
        runtime::sleep(TICK).await;
        serving.date.set(HttpDate::at(unix_seconds()));
        deadlines.sweep(started.elapsed().as_millis() as u64);
    }
}

impl Service for Serving {
    type Job = std::convert::Infallible;
    type Link = ();

    fn link(&self) {}

    fn turn(&self) -> Turn {
        Turn::new(Exchange::new(CoreCount::ONE))
    }

    fn handle(
        &self,
        head: &Head<'_>,
        _body: Cow<'_, [u8]>,
        turn: &mut Turn,
    ) -> Option<std::convert::Infallible> {
        turn.closes |= !head.keep_alive;
        let date = self.date.get();
        let mut writer = Writer {
            answers: &mut turn.answers,
            facts: &self.management.facts,
            date: &date,
            connection: Connection::after(head.version, head.keep_alive),
            head_only: head.method == Method::Head,
        };
        let reads = matches!(head.method, Method::Get | Method::Head);
        match head.path {
            b"/health" | b"/metrics" if !reads => {
                writer.error(&ApiError::method_not_allowed("GET, HEAD".to_owned()));
            }
            b"/health" if self.management.stopping.load(Ordering::Relaxed) => {
                writer.respond(Status::ServiceUnavailable, "text/plain", b"draining", &[]);
            }
            b"/health" => writer.respond(Status::Ok, "text/plain", b"ok", &[]),
            b"/metrics" => match self.management.exposition.render() {
                Ok(text) => {
                    writer.respond(Status::Ok, Exposition::MEDIA_TYPE, text.as_bytes(), &[])
                }
                Err(_) => writer.error(&ApiError::internal("the metrics could not be written")),
            },
            _ => writer.error(&ApiError::not_found("no such route")),
        }
        None
    }

    fn refuse(&self, error: &ApiError, turn: &mut Turn) {
        turn.closes = true;
        Writer {
            answers: &mut turn.answers,
            facts: &self.management.facts,
            date: &self.date.get(),
            connection: Connection::Close,
            head_only: false,
        }
        .error(error);
    }

    async fn settle(&self, (): &(), _turn: &mut Turn) {}

    async fn run(&self, (): &(), job: std::convert::Infallible, _turn: &mut Turn) {
        match job {}
    }
}
