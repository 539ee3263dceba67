//! A TLS server on a core of its own, and blocking clients for it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses its part of it, and a failure here is a failed test"
)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use hypercache::runtime::{
    self, Deadlines, DriverChoice, Listener, Timeouts, Watch, bind_reuseport,
};
use hypercache::tls::handshake::HandshakeCounts;
use hypercache::tls::{HandshakeError, Handshakes, ServerTls, TlsStream, accept};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// How long a test waits for what should come at once, before it fails.
pub const GUARD: Duration = Duration::from_secs(30);

/// How long a handshake may take, by the clock that the test moves.
pub const HANDSHAKE_MS: u64 = 1000;

/// A client's connection.
pub type Client = StreamOwned<ClientConnection, TcpStream>;

/// What a server does with a connection.
pub type Serve = fn(TlsStream, Watch) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

/// What became of a handshake.
pub type Shaken = Result<Connection, String>;

/// A connection, as the server sees it when the handshake is done.
#[derive(Debug)]
pub struct Connection {
    pub version: rustls::ProtocolVersion,
    pub alpn: Option<Vec<u8>>,
    pub resumed: bool,
    pub common_name: Option<String>,
}

/// A running server; ends when dropped, and says that it dropped no pending I/O.
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    shaken: mpsc::Receiver<Shaken>,
    core: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    now_ms: AtomicU64,
    swept_ms: AtomicU64,
    in_progress: AtomicU64,
    counts: Mutex<HandshakeCounts>,
}

impl Server {
    /// Takes as many handshakes at a time as a test needs.
    pub fn start(choice: DriverChoice, tls: &ServerTls, serve: Serve) -> Self {
        Self::with_limit(choice, tls, 1 << 20, serve)
    }

    /// Takes at most `limit` handshakes at a time.
    pub fn with_limit(choice: DriverChoice, tls: &ServerTls, limit: usize, serve: Serve) -> Self {
        let listener = bind_reuseport("127.0.0.1:0".parse().unwrap(), 1024).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let (tell, shaken) = mpsc::channel();
        let core = thread::spawn({
            let (shared, tls) = (Arc::clone(&shared), tls.clone());
            move || {
                runtime::run_core(None, choice, |_| async move {
                    let listener = Listener::from_std(listener).unwrap();
                    run(listener, tls, limit, serve, shared, tell).await;
                })
                .unwrap();
            }
        });
        Self {
            address,
            shared,
            shaken,
            core: Some(core),
        }
    }

    /// How the next handshake ended.
    pub fn shaken(&self) -> Shaken {
        self.shaken.recv_timeout(GUARD).unwrap()
    }

    /// Moves the server's clock on, and waits until it has seen that.
    pub fn advance(&self, ms: u64) {
        let now = self.shared.now_ms.fetch_add(ms, Ordering::SeqCst) + ms;
        self.wait_until(|| self.shared.swept_ms.load(Ordering::SeqCst) >= now);
    }

    /// Waits until so many handshakes are in progress.
    pub fn wait_for_in_progress(&self, count: u64) {
        self.wait_until(|| self.shared.in_progress.load(Ordering::SeqCst) == count);
    }

    pub fn in_progress(&self) -> u64 {
        self.shared.in_progress.load(Ordering::SeqCst)
    }

    pub fn counts(&self) -> HandshakeCounts {
        *self.shared.counts.lock().unwrap()
    }

    /// Waits until the handshakes have ended like this.
    pub fn wait_for_counts(&self, counts: HandshakeCounts) {
        self.wait_until(|| self.counts() == counts);
    }

    fn wait_until(&self, condition: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !condition() {
            assert!(begun.elapsed() < GUARD, "{:?}", self.counts());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A connection whose handshake is done on this side.
    pub fn connect(&self, config: &Arc<ClientConfig>) -> io::Result<Client> {
        let mut client = client(config, self.tcp());
        while client.conn.is_handshaking() {
            client.conn.complete_io(&mut client.sock)?;
        }
        Ok(client)
    }

    /// A connection without TLS.
    pub fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let ended = self.core.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
            assert_eq!(runtime::dropped_pending_io(), 0);
        }
    }
}

async fn run(
    listener: Listener,
    tls: ServerTls,
    limit: usize,
    serve: Serve,
    shared: Arc<Shared>,
    tell: mpsc::Sender<Shaken>,
) {
    let handshakes = Handshakes::new(limit);
    let long = Duration::from_secs(3600);
    let deadlines = Deadlines::new(Timeouts {
        read: Duration::from_millis(HANDSHAKE_MS),
        write: long,
        idle: long,
        exchange: long,
    });
    runtime::spawn({
        let (handshakes, deadlines) = (Rc::clone(&handshakes), Rc::clone(&deadlines));
        let shared = Arc::clone(&shared);
        async move {
            loop {
                let now = shared.now_ms.load(Ordering::SeqCst);
                deadlines.sweep(now);
                shared.swept_ms.store(now, Ordering::SeqCst);
                let in_progress = handshakes.in_progress() as u64;
                shared.in_progress.store(in_progress, Ordering::SeqCst);
                *shared.counts.lock().unwrap() = handshakes.counts();
                runtime::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let tls = Rc::new(tls);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let watch = deadlines.watch(stream.aborter());
        let (tls, handshakes) = (Rc::clone(&tls), Rc::clone(&handshakes));
        let tell = tell.clone();
        runtime::spawn(async move {
            let accepted = accept(stream, &tls, &handshakes, &watch).await;
            let _ = tell.send(describe(&accepted));
            if let Ok(stream) = accepted {
                serve(stream, watch).await;
            }
        });
    }
}

fn describe(accepted: &Result<TlsStream, HandshakeError>) -> Shaken {
    let stream = accepted.as_ref().map_err(ToString::to_string)?;
    Ok(Connection {
        version: stream.version().unwrap(),
        alpn: stream.alpn_protocol().map(<[u8]>::to_vec),
        resumed: stream.is_resumed(),
        common_name: stream
            .peer_certificates()
            .and_then(|chain| hypercache::tls::config::subject_cn(&chain[0])),
    })
}

/// Sends back whatever comes.
pub fn echo(mut stream: TlsStream, _: Watch) -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        let mut buffer = Vec::with_capacity(4096);
        loop {
            let (read, bytes) = stream.read(buffer).await;
            if !matches!(read, Ok(count) if count > 0) {
                let _ = stream.shutdown_write().await;
                return;
            }
            let (written, mut bytes) = stream.write_all(bytes).await;
            if written.is_err() {
                return;
            }
            bytes.clear();
            buffer = bytes;
        }
    })
}

/// A client's endpoint on a connection.
pub fn client(config: &Arc<ClientConfig>, stream: TcpStream) -> Client {
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    StreamOwned::new(connection, stream)
}

/// Sends `bytes` and takes them back.
pub fn expect_echo(client: &mut (impl Read + Write), bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    client.flush().unwrap();
    let mut back = vec![0; bytes.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == bytes, "{} bytes came back changed", bytes.len());
}
