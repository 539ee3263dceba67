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

/// A transport of which something was received already: that is read first.
pub struct Resumed<T> {
    transport: T,
    received: Vec<u8>,
}

impl<T> Resumed<T> {
    /// Reads `received`, then what `transport` receives.
    pub fn new(transport: T, received: Vec<u8>) -> Self {
        Self {
            transport,
            received,
        }
    }
}

impl<T: Transport> Transport for Resumed<T> {
    async fn read(&mut self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let room = buf.capacity() - buf.len();
        if self.received.is_empty() || room == 0 {
            return self.transport.read(buf).await;
        }
        let count = room.min(self.received.len());
        buf.extend(self.received.drain(..count));
        if self.received.is_empty() {
            self.received = Vec::new();
        }
        (Ok(count), buf)
    }

    fn write_all(&mut self, buf: Vec<u8>) -> impl Future<Output = (io::Result<()>, Vec<u8>)> {
        self.transport.write_all(buf)
    }

    fn write_vectored_all(
        &mut self,
        parts: Vec<Segment>,
    ) -> impl Future<Output = (io::Result<()>, Vec<Segment>)> {
        self.transport.write_vectored_all(parts)
    }

    fn shutdown_write(&mut self) -> impl Future<Output = io::Result<()>> {
        self.transport.shutdown_write()
    }

    fn set_linger_zero(&self) -> io::Result<()> {
        self.transport.set_linger_zero()
    }
}
