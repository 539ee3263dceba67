//! TLS 1.2 and 1.3 on the sockets of a core.
//!
//! * [`config`]: from the bytes of PEM files to configurations, and what certificates say.
//! * [`handshake`]: becoming a [`TlsStream`], as server or client, without stalling a core.
//! * [`stream`]: [`TlsStream`], the [`Transport`](crate::runtime::Transport) that results.
//! * [`blocking`]: what clients that block, on threads of their own, trust.
//!
//! [`session`] is one endpoint without its socket and [`gate`] decides which handshake may
//! compute when: both are pure. Cryptography and protocol are rustls's, always with the
//! provider named here, never with a default of the process.

pub mod blocking;
pub mod config;
mod gate;
pub mod handshake;
mod session;
pub mod stream;

pub use self::config::{ClientAuth, ClientVerifier, ServerTls, client_config, server_config};
pub use self::handshake::{HandshakeError, Handshakes, accept, accept_begun, connect};
pub use self::stream::TlsStream;

#[cfg(test)]
#[path = "../../tests/support/certificates.rs"]
mod certificates;
