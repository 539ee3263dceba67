//! What a connection to a peer is spoken over: a socket, or TLS on a socket.

use std::io;

use crate::runtime::{Segment, Stream, Transport};
use crate::tls::TlsStream;

/// A socket, in the clear or not.
pub enum Channel {
    /// In the clear.
    Plain(Stream),
    /// Under TLS.
    Tls(Box<TlsStream>),
}

impl Transport for Channel {
    async fn read(&mut self, buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Plain(stream) => stream.read(buf).await,
            Self::Tls(stream) => stream.read(buf).await,
        }
    }

    async fn write_all(&mut self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Plain(stream) => stream.write_all(buf).await,
            Self::Tls(stream) => stream.write_all(buf).await,
        }
    }

    async fn write_vectored_all(&mut self, parts: Vec<Segment>) -> (io::Result<()>, Vec<Segment>) {
        match self {
            Self::Plain(stream) => stream.write_vectored_all(parts).await,
            Self::Tls(stream) => stream.write_vectored_all(parts).await,
        }
    }

    async fn shutdown_write(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => Stream::shutdown_write(stream),
            Self::Tls(stream) => stream.shutdown_write().await,
        }
    }

    fn set_linger_zero(&self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.set_linger_zero(),
            Self::Tls(stream) => stream.set_linger_zero(),
        }
    }
}
