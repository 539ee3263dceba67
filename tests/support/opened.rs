//! Connections to servers that tests are themselves.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Something to read from and to write to.
pub trait Duplex: Read + Write {}

impl<T: Read + Write> Duplex for T {}

/// A connection that was accepted, over TLS where there is a configuration for it; whoever is
/// silent for longer than `patience` ends it.
pub fn opened(
    stream: TcpStream,
    tls: Option<&Arc<ServerConfig>>,
    patience: Duration,
) -> Box<dyn Duplex> {
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&stream, Some(patience)).expect("a timeout can be set");
    }
    match tls {
        None => Box::new(stream),
        Some(tls) => {
            let connection = ServerConnection::new(Arc::clone(tls)).expect("a connection");
            Box::new(StreamOwned::new(connection, stream))
        }
    }
}
