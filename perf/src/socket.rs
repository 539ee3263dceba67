//! What the load is sent over: a socket in the clear, or one under TLS.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// A connection to a server.
pub enum Socket {
    /// In the clear.
    Plain(TcpStream),
    /// Under TLS.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Socket {
    /// Connects and, where `tls` is given, shakes hands; blocking.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached or is not trusted.
    pub fn connect(target: &str, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let mut stream = TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        let Some(config) = tls else {
            return Ok(Self::Plain(stream));
        };
        let name = ServerName::from(stream.peer_addr()?.ip());
        let mut connection =
            ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        let stream = StreamOwned::new(connection, stream);
        Ok(Self::Tls(Box::new(stream)))
    }

    /// The connection under TLS, if any.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    /// Whether the handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => {
                stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.tcp().as_raw_fd()
    }
}
