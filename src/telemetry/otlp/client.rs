//! One request to a collector, and what its answer means (OTLP 1.x, section "OTLP/HTTP").
//!
//! A collector may be slow, gone or lying: a request has a time in which it must be
//! answered, an answer a size that it must not exceed; redirects are not followed and
//! proxies not asked.

use std::fmt;
use std::time::Duration;

use prost::Message;
use ureq::Agent;
use ureq::http::header::{CONTENT_TYPE, RETRY_AFTER};
use ureq::http::{HeaderMap, Uri};

use super::config::{Headers, Target};
use crate::tls::blocking;

/// The largest answer that is read: all that it may say is how much was rejected.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
const HEAD_BYTES_MAX: usize = 32 << 10;

/// The longest that a collector may have us wait.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// How much of what a collector says is repeated.
const WORDS_MAX: usize = 200;

/// Where one kind of telemetry goes.
pub struct Client {
    agent: Agent,
    url: Uri,
    headers: Headers,
    timeout: Duration,
}

/// What an answer says of a part that the collector did not take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejected {
    /// How many spans or numbers.
    pub count: u64,
    /// Why, in its words.
    pub reason: String,
}

/// What became of a request.
#[derive(Debug)]
pub enum Sent {
    /// The collector has it, but for what it rejected.
    Taken(Rejected),
    /// It does not want it.
    Refused(Fault),
    /// It may take it later, perhaps not before so long.
    Later(Fault, Option<Duration>),
}

impl Client {
    /// What is sent where `target` says.
    ///
    /// # Errors
    ///
    /// When the certificates that it names cannot be read.
    pub fn new(target: &Target) -> Result<Self, String> {
        let pem = match &target.certificate {
            None => None,
            Some((variable, path)) => {
                let cannot = |error: &dyn fmt::Display| {
                    format!("{variable}={}: cannot be used: {error}", path.display())
                };
                let pem = std::fs::read(path).map_err(|error| cannot(&error))?;
                // What is there must be of use, whatever the scheme.
                blocking::trusting(Some(&pem)).ok_or_else(|| cannot(&"not certificates in PEM"))?;
                Some(pem)
            }
        };
        let tls = blocking::trusting(pem.as_deref());
        let tls = tls.ok_or_else(|| "no certificates to trust".to_owned())?;
        let agent = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .max_response_header_size(HEAD_BYTES_MAX)
            .user_agent(concat!(
                "OTel-OTLP-Exporter-Rust/",
                env!("CARGO_PKG_VERSION"),
                " hypercache"
            ))
            .build()
            .new_agent();
        Ok(Self {
            agent,
            url: target.url.clone(),
            headers: target.headers.clone(),
            timeout: target.timeout,
        })
    }

    /// Where it sends to, without the path, which may hold a secret.
    pub fn authority(&self) -> String {
        let part = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let scheme = part(self.url.scheme_str());
        format!(
            "{scheme}://{}",
            part(self.url.authority().map(|host| host.as_str()))
        )
    }

    /// Sends a message and waits for the answer, at most as long as it may take and
    /// `most`. `rejected` reads an answer's body.
    pub fn send(
        &self,
        message: &[u8],
        most: Duration,
        rejected: impl FnOnce(&[u8]) -> Option<Rejected>,
    ) -> Sent {
        let mut request = self
            .agent
            .post(&self.url)
            .header(CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.headers.0 {
            request = request.header(name, value);
        }
        let timeout = Some(self.timeout.min(most));
        let request = request.config().timeout_global(timeout).build();
        let mut answer = match request.send(message) {
            Ok(answer) => answer,
            Err(error) => return Sent::Later(Fault::of(error), None),
        };
        let status = answer.status().as_u16();
        match status {
            200..=299 => {
                let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
                // What cannot be read says nothing: the status was good.
                let body = body.read_to_vec().unwrap_or_default();
                Sent::Taken(rejected(&body).unwrap_or_default())
            }
            429 | 502 | 503 | 504 => {
                Sent::Later(Fault::Status(status), retry_after(answer.headers()))
            }
            _ => Sent::Refused(Fault::Status(status)),
        }
    }
}

/// Seconds to wait, where it says so.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let seconds = Duration::from_secs(seconds.trim().parse().ok()?);
    Some(seconds.min(RETRY_AFTER_MAX))
}

/// Reads the body of an answer.
pub fn partial_success<M: Message + Default>(
    body: &[u8],
    told: impl FnOnce(M) -> Option<(i64, String)>,
) -> Option<Rejected> {
    let (count, reason) = told(M::decode(body).ok()?)?;
    Some(Rejected {
        count: u64::try_from(count).unwrap_or(0),
        reason: reason.chars().take(WORDS_MAX).collect(),
    })
}

/// Why a collector has not taken something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody answers, or not in HTTP.
    Unreachable(String),
    /// The answer takes too long.
    Slow,
    /// The certificate is not vouched for, or TLS fails otherwise.
    Tls(String),
    /// This is the answer.
    Status(u16),
}

impl Fault {
    fn of(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Timeout(_) => Self::Slow,
            ureq::Error::Rustls(error) => Self::Tls(error.to_string()),
            ureq::Error::Tls(error) => Self::Tls(error.to_owned()),
            ureq::Error::Io(error) => match error.get_ref() {
                Some(inner) if inner.is::<rustls::Error>() => Self::Tls(inner.to_string()),
                _ => Self::Unreachable(error.to_string()),
            },
            error => Self::Unreachable(error.to_string()),
        }
    }

    /// Whether it is the same thing again.
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Status(status), Self::Status(other)) => status == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => f.write_str(error),
            Self::Slow => f.write_str("no answer in time"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Status(status) => write!(f, "it answers {status}"),
        }
    }
}
