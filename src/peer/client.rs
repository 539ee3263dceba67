//! One connection to one peer: one request at a time, kept open between them.
//!
//! The address is resolved on every connect. A request that fails closes the
//! connection. One that fails on a connection that had been idle, before a byte of
//! an answer came, is tried once more on a fresh one: the peer may just have closed
//! it, and everything peers say to each other may be said twice.
//!
//! **TLS.** Where [`Access::tls`] says so, the peer must show a certificate of one of the
//! authorities there, for the name that is expected or else for the host of its address,
//! which may be an IP address. A connection made by another [`Access::tls`] than the one
//! in force is not used any more: its next request goes over a fresh one.
//!
//! **Deadlines.** Resolving the address and connecting take at most
//! [`Dialing::timeout`] together; a handshake takes at most
//! [`Timeouts::read`](crate::runtime::Timeouts); writing a request and reading its answer
//! take at most [`Timeouts::exchange`](crate::runtime::Timeouts) together. A request on a
//! fresh connection so ends within all three; one that is tried once more, within another
//! exchange and all of them. The core's [`Deadlines`] keep the last two, to a tick: an
//! overdue connection is shut down, so that the pending call ends by itself.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::answer::{self, broken};
use super::channel::Channel;
use super::token::PeerToken;
use crate::runtime::{self, Deadlines, Steering, Stream, Transport, Wait, Watch};
use crate::tls;
use crate::trace_context::Context;

/// The largest head of an answer.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// What a connection keeps for the next answer.
const BUFFER_BYTES_KEPT: usize = 64 << 10;
const READ_BYTES: usize = 16 << 10;

/// What peers are shown. Replaced whole when credentials change.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The cluster's secret.
    pub token: PeerToken,
    /// How they are spoken to, if not in the clear.
    pub tls: Option<TlsAccess>,
}

/// How peers are spoken to under TLS.
#[derive(Clone)]
pub struct TlsAccess {
    /// Whom to trust, and what to show.
    pub config: Arc<ClientConfig>,
    /// The name that every peer's certificate bears; without one, the host of its
    /// address.
    pub server_name: Option<ServerName<'static>>,
}

impl TlsAccess {
    /// Whether a connection made by one is as good as one made by the other.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.server_name == other.server_name
    }
}

impl fmt::Debug for TlsAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsAccess({:?})", self.server_name)
    }
}

/// What all connections of one core to peers have in common.
#[derive(Clone)]
pub struct Dialing {
    /// Who keeps their deadlines.
    pub deadlines: Rc<Deadlines>,
    /// How long it may take to resolve an address and to connect to it.
    pub timeout: Duration,
    /// What they are shown and how they are spoken to, from the next request on.
    pub access: Rc<RefCell<Access>>,
}

/// A connection to one peer, opened when it is needed.
pub struct Client {
    dialing: Dialing,
    address: Arc<str>,
    steering: Option<Steering>,
    open: Option<Open>,
    buffer: Vec<u8>,
    answered: bool,
}

/// A connection that stands.
struct Open {
    channel: Channel,
    watch: Watch,
    /// What it was made by.
    tls: Option<TlsAccess>,
}

impl Client {
    /// No connection yet.
    pub fn new(dialing: Dialing, address: Arc<str>, steering: Option<Steering>) -> Self {
        Self {
            dialing,
            address,
            steering,
            open: None,
            buffer: Vec::new(),
            answered: false,
        }
    }

    /// Where it connects to.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Goes over to another address.
    pub fn set_address(&mut self, address: Arc<str>) {
        if address != self.address {
            self.address = address;
            self.open = None;
        }
    }

    /// Starts the bytes of a request whose body is `body_len` bytes long.
    pub fn head(&self, method: &str, target: &str, body_len: usize) -> Vec<u8> {
        self.head_within(None, method, target, body_len)
    }

    /// The same for a request that is a part of something recorded.
    pub fn head_within(
        &self,
        context: Option<&Context>,
        method: &str,
        target: &str,
        body_len: usize,
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + body_len);
        let address = &self.address;
        let token = self.dialing.access.borrow().token.header();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {address}\r\n{token}\
             Content-Length: {body_len}\r\n"
        );
        out.extend_from_slice(head.as_bytes());
        if let Some(context) = context {
            out.extend_from_slice(b"traceparent: ");
            out.extend_from_slice(&context.header());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    /// Sends a request, head and body, and waits for the body of its answer.
    ///
    /// # Errors
    ///
    /// When it cannot be sent or is not answered in time, or not with 200.
    pub async fn exchange(&mut self, request: Vec<u8>) -> io::Result<Vec<u8>> {
        self.close_if_outdated();
        let reused = self.open.is_some();
        self.answered = false;
        match self.try_exchange(request).await {
            Ok(body) => Ok(body),
            Err((error, request)) => {
                let timed_out = self.timed_out();
                self.open = None;
                if !reused || self.answered || timed_out {
                    return Err(error);
                }
                let retried = self.try_exchange(request).await;
                retried.map_err(|(error, _)| {
                    self.open = None;
                    error
                })
            }
        }
    }

    fn timed_out(&self) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.watch.expired().is_some())
    }

    /// Closes a connection that would not be made like this any more.
    fn close_if_outdated(&mut self) {
        let access = self.dialing.access.borrow();
        self.open.take_if(|open| match (&open.tls, &access.tls) {
            (None, None) => false,
            (Some(made_by), Some(in_force)) => !made_by.is(in_force),
            _ => true,
        });
    }

    async fn try_exchange(&mut self, request: Vec<u8>) -> Result<Vec<u8>, (io::Error, Vec<u8>)> {
        if let Err(error) = self.begin().await {
            return Err((error, request));
        }
        let Some(open) = &mut self.open else {
            return Err((broken("not connected"), request));
        };
        let (written, request) = open.channel.write_all(request).await;
        if let Err(error) = written {
            return Err((error, request));
        }
        let body = match self.read_answer().await {
            Ok(body) => body,
            Err(error) => return Err((error, request)),
        };
        if self.timed_out() {
            // The answer was there already when the connection was shut down.
            self.open = None;
        }
        if let Some(open) = &self.open {
            open.watch.wait_for(Wait::Nothing);
        }
        Ok(body)
    }

    /// Sees to it that there is a connection, and begins an exchange.
    async fn begin(&mut self) -> io::Result<()> {
        if let Some(open) = &self.open {
            open.watch.wait_for(Wait::Exchange);
            return Ok(());
        }
        self.buffer.clear();
        let (begun, limit) = (Instant::now(), self.dialing.timeout);
        let address = runtime::resolve(&self.address, limit).await?;
        let left = limit.saturating_sub(begun.elapsed());
        let stream = runtime::connect(address, left, self.steering).await?;
        let watch = self.dialing.deadlines.watch(stream.aborter());
        let tls = self.dialing.access.borrow().tls.clone();
        let channel = match &tls {
            None => Channel::Plain(stream),
            Some(tls) => self.shake_hands(stream, tls, &watch).await?,
        };
        watch.wait_for(Wait::Exchange);
        self.open = Some(Open {
            channel,
            watch,
            tls,
        });
        Ok(())
    }

    async fn shake_hands(
        &self,
        stream: Stream,
        tls: &TlsAccess,
        watch: &Watch,
    ) -> io::Result<Channel> {
        let name = match &tls.server_name {
            Some(name) => name.clone(),
            None => server_name(&self.address)?,
        };
        watch.wait_for(Wait::Handshake);
        match tls::connect(stream, Arc::clone(&tls.config), name).await {
            Ok(stream) => Ok(Channel::Tls(Box::new(stream))),
            Err(_) if watch.expired().is_some() => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error.into()),
        }
    }

    async fn read_answer(&mut self) -> io::Result<Vec<u8>> {
        let head = loop {
            if let Some(head) = answer::parse_head(&self.buffer)? {
                break head;
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(broken("the answer's head is too long"));
            }
            self.fill(READ_BYTES).await?;
        };
        let whole = head.len + head.body_len;
        while self.buffer.len() < whole {
            self.fill((whole - self.buffer.len()).min(1 << 20)).await?;
        }
        if self.buffer.len() > whole {
            return Err(broken("more than one answer"));
        }
        let body = self.buffer[head.len..].to_vec();
        self.buffer.clear();
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        if head.closes {
            self.open = None;
        }
        Ok(body)
    }

    async fn fill(&mut self, room: usize) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Err(broken("not connected"));
        };
        self.buffer.reserve(room);
        let (read, buffer) = open.channel.read(std::mem::take(&mut self.buffer)).await;
        self.buffer = buffer;
        match read? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {
                self.answered = true;
                Ok(())
            }
        }
    }
}

/// The host of an address with a port, as the name of a server.
fn server_name(address: &str) -> io::Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(|_| broken("the peer's host is no server name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_expected_to_be_the_host_of_its_address() {
        for (address, name) in [
            ("node-0.nodes.svc:7002", "node-0.nodes.svc"),
            ("10.0.0.1:7002", "10.0.0.1"),
            ("[::1]:7002", "::1"),
        ] {
            assert_eq!(server_name(address).unwrap().to_str(), name);
        }
        assert!(server_name("a b:7002").is_err());
    }
}
