//! What a connection is spoken over: a socket, or TLS on a socket.

use std::future::Future;
use std::io;

use super::segment::Segment;
use super::sockets::Stream;

/// Ordered bytes to and from a peer, in the clear or not.
///
/// Promises what [`Stream`] promises: a read appends to the buffer it is given and never
/// grows it; a write sends everything or fails; buffers always come back. No future of it
/// may be dropped while pending.
pub trait Transport {
    /// See [`Stream::read`].
    fn read(&mut self, buf: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)>;

    /// See [`Stream::write_all`].
    fn write_all(&mut self, buf: Vec<u8>) -> impl Future<Output = (io::Result<()>, Vec<u8>)>;

    /// See [`Stream::write_vectored_all`].
    fn write_vectored_all(
        &mut self,
        parts: Vec<Segment>,
    ) -> impl Future<Output = (io::Result<()>, Vec<Segment>)>;

    /// Tells the peer that nothing more will be written. Reading goes on.
    fn shutdown_write(&mut self) -> impl Future<Output = io::Result<()>>;

    /// See [`Stream::set_linger_zero`].
    fn set_linger_zero(&self) -> io::Result<()>;
}

impl Transport for Stream {
    fn read(&mut self, buf: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> {
        Stream::read(self, buf)
    }

    fn write_all(&mut self, buf: Vec<u8>) -> impl Future<Output = (io::Result<()>, Vec<u8>)> {
        Stream::write_all(self, buf)
    }

    fn write_vectored_all(
        &mut self,
        parts: Vec<Segment>,
    ) -> impl Future<Output = (io::Result<()>, Vec<Segment>)> {
        Stream::write_vectored_all(self, parts)
    }

    fn shutdown_write(&mut self) -> impl Future<Output = io::Result<()>> {
        std::future::ready(Stream::shutdown_write(self))
    }

    fn set_linger_zero(&self) -> io::Result<()> {
        Stream::set_linger_zero(self)
    }
}
