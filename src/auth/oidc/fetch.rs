//! The thread that keeps an issuer's keys fresh.
//!
//! It asks for the discovery document, then for the key set it names, when
//! [`Refresh`] says so; whoever is to use the keys is called with each set that differs
//! from the one before. It blocks, so it is a thread of its own, and only it waits: to
//! ask for a fetch ([`Handle::ask`]) or to end it ([`Fetcher::end`]) is to set a flag.
//!
//! The issuer may be slow, gone or lying. Every document has a time in which it must
//! have come and a size that it must not exceed; redirects are not followed, proxies not
//! asked, and a certificate must be vouched for. Whatever goes wrong, the keys known
//! stay in use, the failure is counted, and it is logged when it is another than the one
//! before.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ureq::Agent;
use ureq::http::header::ACCEPT;

use super::Config;
use super::discovery::{self, Discovery, DiscoveryFault};
use super::issuer::{Issuer, Scheme};
use super::keys::{self, KeySet, KeysFault};
use super::refresh::Refresh;
use crate::clock::SteadyMs;
use crate::tls::blocking;

/// The largest head of an answer that is read.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// The running thread. Dropped, it ends.
#[derive(Debug)]
pub struct Fetcher {
    handle: Handle,
}

impl Fetcher {
    /// Starts it. `publish` is called on its thread with the first set of keys, and with
    /// each that differs from the one before.
    pub fn start(
        config: &Config,
        publish: impl FnMut(Arc<KeySet>) + Send + 'static,
    ) -> Result<Self, StartFault> {
        let shared = Arc::new(Shared::default());
        let work = Work {
            source: Source::new(config)?,
            publish,
            keys: None,
            shared: Arc::clone(&shared),
            refresh: Refresh::new(
                u64::try_from(config.refresh_interval.as_millis()).unwrap_or(u64::MAX),
                SteadyMs(0),
            ),
            started: Instant::now(),
            told: None,
        };
        let thread = thread::Builder::new()
            .name("oidc".to_owned())
            .spawn(|| work.run())
            .map_err(StartFault::Thread)?;
        Ok(Self {
            handle: Handle {
                shared,
                thread: thread.thread().clone(),
            },
        })
    }

    /// What others ask it with.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Tells it to end, and does not wait: a fetch under way ends in its own time, and
    /// its keys are not published.
    pub fn end(&self) {
        self.handle.shared.ended.store(true, Ordering::Release);
        self.handle.thread.unpark();
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.end();
    }
}

/// Why it cannot be started.
#[derive(Debug)]
pub enum StartFault {
    /// The certificates of the authorities cannot be read, or there is none.
    Authorities,
    /// There is no thread to be had.
    Thread(io::Error),
}

impl fmt::Display for StartFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authorities => f.write_str("not certificates in PEM"),
            Self::Thread(error) => write!(f, "no thread to fetch keys on: {error}"),
        }
    }
}

impl std::error::Error for StartFault {}

/// Asks for fetches, and reads what is counted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Handle {
    /// Asks for a fetch because a token names a key that is not known. Never blocks, and
    /// costs a load while an earlier ask waits. Asks are bounded; see [`Refresh`].
    pub fn ask(&self) {
        let asked = &self.shared.asked;
        if !asked.load(Ordering::Relaxed) && !asked.swap(true, Ordering::AcqRel) {
            self.thread.unpark();
        }
    }

    /// What has been counted so far.
    pub fn counts(&self) -> Counts {
        let fetches = self.shared.fetches.load(Ordering::Acquire);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            fetches,
            failures: read(&self.shared.failures),
            keys: read(&self.shared.keys),
            last_success_unix_s: read(&self.shared.last_success_unix_s),
        }
    }
}

/// What is known of the fetches at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Fetches that have ended.
    pub fetches: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// How many keys are in use.
    pub keys: u64,
    /// When a fetch last succeeded; 0 before any has.
    pub last_success_unix_s: u64,
}

/// What the thread and the handles share.
#[derive(Debug, Default)]
struct Shared {
    /// Set by who asks, cleared when a fetch begins.
    asked: AtomicBool,
    ended: AtomicBool,
    fetches: AtomicU64,
    failures: AtomicU64,
    keys: AtomicU64,
    last_success_unix_s: AtomicU64,
}

/// What the thread owns.
struct Work<P> {
    source: Source,
    publish: P,
    /// Those that were published last.
    keys: Option<Arc<KeySet>>,
    shared: Arc<Shared>,
    refresh: Refresh,
    started: Instant,
    /// The failure that was logged, while it lasts.
    told: Option<Fault>,
}

impl<P: FnMut(Arc<KeySet>)> Work<P> {
    fn run(mut self) {
        while !self.has_ended() {
            if self.shared.asked.load(Ordering::Acquire) {
                self.refresh.ask();
            }
            let now = self.now();
            let wait_ms = self.refresh.due().since(now);
            if wait_ms > 0 {
                // Ends early when someone asks, and may for no reason.
                thread::park_timeout(Duration::from_millis(wait_ms));
            } else {
                self.shared.asked.store(false, Ordering::Release);
                self.refresh.begin(now);
                self.fetch();
            }
        }
    }

    fn fetch(&mut self) {
        // A library that panics must not take the thread with it: there would be no
        // more keys, and nobody would see it.
        let found =
            catch_unwind(AssertUnwindSafe(|| self.source.keys())).unwrap_or(Err(Fault::Crash));
        if self.has_ended() {
            return;
        }
        match found {
            Ok(keys) => self.succeeded(keys),
            Err(fault) => self.failed(fault),
        }
        // Last, so that whoever sees the count sees what the fetch has led to.
        self.shared.fetches.fetch_add(1, Ordering::Release);
    }

    fn succeeded(&mut self, keys: KeySet) {
        self.refresh.succeed(self.now());
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_unix_s = now.map_or(0, |since| since.as_secs());
        let last = &self.shared.last_success_unix_s;
        last.store(now_unix_s, Ordering::Relaxed);
        let issuer = self.source.issuer.as_str();
        if self.told.take().is_some() {
            tracing::info!(issuer, "the issuer's keys can be fetched again");
        }
        if self.keys.as_deref() == Some(&keys) {
            return;
        }
        let (count, passed_over) = (keys.len(), keys.passed_over());
        if keys.is_empty() {
            tracing::warn!(
                issuer,
                passed_over,
                "the issuer has no keys of use: no token is accepted"
            );
        } else {
            tracing::info!(issuer, keys = count, passed_over, "keys of the issuer");
        }
        let keys = Arc::new(keys);
        self.keys = Some(Arc::clone(&keys));
        self.shared.keys.store(count as u64, Ordering::Relaxed);
        // Whoever has asked until here has not seen these keys.
        self.shared.asked.store(false, Ordering::Release);
        (self.publish)(keys);
    }

    fn failed(&mut self, fault: Fault) {
        self.refresh.fail(self.now(), random());
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
        let told = self.told.as_ref().map(mem::discriminant);
        if told == Some(mem::discriminant(&fault)) {
            return;
        }
        tracing::warn!(
            issuer = self.source.issuer.as_str(),
            error = %fault,
            keys = self.keys.as_ref().map_or(0, |keys| keys.len()),
            "the issuer's keys cannot be fetched; those known stay in use"
        );
        self.told = Some(fault);
    }

    fn now(&self) -> SteadyMs {
        SteadyMs(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }
}

/// Where keys come from.
struct Source {
    issuer: Issuer,
    agent: Agent,
}

impl Source {
    fn new(config: &Config) -> Result<Self, StartFault> {
        let tls = blocking::trusting(config.ca_pem.as_deref()).ok_or(StartFault::Authorities)?;
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(config.issuer.scheme() == Scheme::Https)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_resolve(Some(config.connect_timeout))
            .timeout_connect(Some(config.connect_timeout))
            .timeout_global(Some(config.fetch_timeout))
            .max_response_header_size(HEAD_BYTES_MAX)
            // Between fetches any connection would go stale.
            .max_idle_connections(0)
            .user_agent(concat!("hypercache/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self {
            issuer: config.issuer.clone(),
            agent,
        })
    }

    fn keys(&self) -> Result<KeySet, Fault> {
        let url = self.issuer.discovery_url();
        let document = self.document(&url, discovery::DOCUMENT_BYTES_MAX)?;
        let found = Discovery::parse(&document, &self.issuer).map_err(Fault::Discovery)?;
        let document = self.document(&found.jwks_uri, keys::DOCUMENT_BYTES_MAX)?;
        KeySet::parse(&document).map_err(Fault::Keys)
    }

    fn document(&self, url: &str, bytes_max: u64) -> Result<Vec<u8>, Fault> {
        let fault = |error| Fault::of(url, error);
        let request = self.agent.get(url).header(ACCEPT, "application/json");
        let mut answer = request.call().map_err(fault)?;
        if answer.status() != 200 {
            return Err(Fault::Status(url.to_owned(), answer.status().as_u16()));
        }
        let body = answer.body_mut().with_config().limit(bytes_max);
        body.read_to_vec().map_err(fault)
    }
}

/// Why keys could not be fetched. URLs are those of the document concerned.
#[derive(Debug)]
enum Fault {
    /// Nobody answers, or not in HTTP.
    Unreachable(String, ureq::Error),
    /// The answer takes too long.
    Slow(String),
    /// The certificate is not vouched for, or TLS fails otherwise.
    Tls(String, String),
    /// The answer is another than 200.
    Status(String, u16),
    /// The answer is too large.
    TooLarge(String),
    /// The discovery document is refused.
    Discovery(DiscoveryFault),
    /// The key set is refused.
    Keys(KeysFault),
    /// The thread panicked.
    Crash,
}

impl Fault {
    fn of(url: &str, error: ureq::Error) -> Self {
        let url = url.to_owned();
        match error {
            ureq::Error::Timeout(_) => Self::Slow(url),
            ureq::Error::BodyExceedsLimit(_) | ureq::Error::LargeResponseHeader(..) => {
                Self::TooLarge(url)
            }
            ureq::Error::Rustls(error) => Self::Tls(url, error.to_string()),
            ureq::Error::Tls(error) => Self::Tls(url, error.to_owned()),
            ureq::Error::Io(error) => match error.get_ref() {
                Some(inner) if inner.is::<rustls::Error>() => Self::Tls(url, inner.to_string()),
                _ => Self::Unreachable(url, error.into()),
            },
            error => Self::Unreachable(url, error),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(url, error) => write!(f, "{url}: {error}"),
            Self::Slow(url) => write!(f, "{url}: no answer in time"),
            Self::Tls(url, error) => write!(f, "{url}: TLS: {error}"),
            Self::Status(url, status) => write!(f, "{url}: answers {status}"),
            Self::TooLarge(url) => write!(f, "{url}: the answer is too large"),
            Self::Discovery(fault) => write!(f, "discovery document: {fault}"),
            Self::Keys(fault) => write!(f, "key set: {fault}"),
            Self::Crash => f.write_str("the fetch crashed"),
        }
    }
}

/// A number of chance, not for secrets.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
