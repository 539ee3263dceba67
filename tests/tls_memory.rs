//! What connections under TLS hold on to: little while they are idle, and little of a
//! large answer that its client does not take.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/runtime.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use certificates::{Authority, client_config};
use hypercache::runtime::{
    Deadlines, Listener, Segment, Timeouts, bind_reuseport, run_core, sleep, spawn, yield_to_io,
};
use hypercache::tls::{ClientAuth, Handshakes, ServerTls, TlsStream, accept, server_config};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use support::{LONG, choices, finishes};

/// Counts the bytes that each thread holds.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Connections of the test of idle ones.
const CONNECTIONS: usize = 100;

/// What the application reads into; not TLS's.
const BUFFER: usize = 4096;

/// What an idle connection may hold beyond that: keys, the state of the protocol and the
/// task that waits.
const IDLE_BYTES_MAX: usize = 10 << 10;

/// More than sockets buffer.
const LARGE: usize = 16 << 20;

/// What may be held of an answer while it is sent.
const SENDING_BYTES_MAX: usize = 512 << 10;

fn setup() -> (Authority, ServerTls) {
    let authority = Authority::new("authority");
    let own = authority.server(&["localhost"]);
    let (cert, key) = (own.cert.as_bytes(), own.key.as_bytes());
    let tls = server_config(cert, key, None, ClientAuth::Require).unwrap();
    (authority, tls)
}

fn listener() -> (std::net::TcpListener, SocketAddr) {
    let listener = bind_reuseport("127.0.0.1:0".parse().unwrap(), 1024).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn accept_one(
    listener: &Listener,
    tls: &ServerTls,
    handshakes: &Rc<Handshakes>,
) -> TlsStream {
    let (stream, _) = listener.accept().await.unwrap();
    let deadlines = Deadlines::new(Timeouts {
        read: LONG,
        write: LONG,
        idle: LONG,
        exchange: LONG,
    });
    let watch = deadlines.watch(stream.aborter());
    accept(stream, tls, handshakes, &watch).await.unwrap()
}

fn connect(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    StreamOwned::new(connection, TcpStream::connect(address).unwrap())
}

#[test]
fn an_idle_connection_holds_no_buffer_of_its_own() {
    let (authority, tls) = setup();
    for version in [&TLS13, &TLS12] {
        let config = client_config(&authority, None, version);
        for choice in choices() {
            let (tls, config) = (tls.clone(), Arc::clone(&config));
            finishes(move || {
                let (listener, address) = listener();
                let (leave, left) = mpsc::channel::<()>();
                let clients = thread::spawn(move || {
                    let mut clients = Vec::new();
                    for _ in 0..CONNECTIONS {
                        let mut client = connect(&config, address);
                        let mut large = vec![1; 20_000];
                        client.write_all(&large).unwrap();
                        client.read_exact(&mut large).unwrap();
                        clients.push(client);
                    }
                    let _ = left.recv();
                });
                let held = run_core(None, choice, |_| async move {
                    idle(Listener::from_std(listener).unwrap(), tls).await
                })
                .unwrap();
                drop(leave);
                clients.join().unwrap();
                println!("{held} bytes per idle connection with {version:?} on {choice:?}");
                assert!(held <= IDLE_BYTES_MAX, "{held} bytes");
            });
        }
    }
}

/// Serves the clients, and tells what each of their connections holds once all are idle.
async fn idle(listener: Listener, tls: ServerTls) -> usize {
    let handshakes = Handshakes::new(10);
    let served = Rc::new(Cell::new(0));
    let before = LIVE.get();
    for _ in 0..CONNECTIONS {
        let mut stream = accept_one(&listener, &tls, &handshakes).await;
        let served = Rc::clone(&served);
        spawn(async move {
            let mut buffer = Vec::with_capacity(BUFFER);
            loop {
                let (read, bytes) = stream.read(buffer).await;
                if !matches!(read, Ok(count) if count > 0) {
                    return;
                }
                served.set(served.get() + bytes.len());
                let (written, mut bytes) = stream.write_all(bytes).await;
                written.unwrap();
                bytes.clear();
                buffer = bytes;
            }
        });
    }
    while served.get() < CONNECTIONS * 20_000 {
        sleep(Duration::from_millis(1)).await;
    }
    // The last one still has to come back to its read.
    for _ in 0..100 {
        yield_to_io().await;
    }
    let held = usize::try_from(LIVE.get() - before).unwrap();
    held / CONNECTIONS - BUFFER
}

#[test]
fn an_answer_that_is_not_taken_is_not_encrypted_ahead() {
    let (authority, tls) = setup();
    let config = client_config(&authority, None, &TLS13);
    for choice in choices() {
        let (tls, config) = (tls.clone(), Arc::clone(&config));
        finishes(move || {
            let (listener, address) = listener();
            let (go_on, may_go_on) = mpsc::channel::<()>();
            let client = thread::spawn(move || {
                let mut client = connect(&config, address);
                client.write_all(b"?").unwrap();
                let mut first = [0];
                client.read_exact(&mut first).unwrap();
                may_go_on.recv().unwrap();
                let mut rest = 0;
                let mut buffer = vec![0; 1 << 20];
                while rest < LARGE - 1 {
                    rest += client.read(&mut buffer).unwrap();
                }
            });
            let peak = run_core(None, choice, |_| async move {
                let listener = Listener::from_std(listener).unwrap();
                let handshakes = Handshakes::new(10);
                let stream = accept_one(&listener, &tls, &handshakes).await;
                send(stream, go_on).await
            })
            .unwrap();
            client.join().unwrap();
            println!("{peak} bytes while sending on {choice:?}");
            assert!(peak <= SENDING_BYTES_MAX, "{peak} bytes");
        });
    }
}

/// Answers at large, and tells how much was held meanwhile beyond the answer itself.
async fn send(mut stream: TlsStream, go_on: mpsc::Sender<()>) -> usize {
    stream.read(Vec::with_capacity(1)).await.0.unwrap();
    let body: Arc<[u8]> = vec![7; LARGE].into();
    let parts = vec![
        Segment::from(b"head".to_vec()),
        Segment::shared(body, 4..LARGE).unwrap(),
    ];
    let sent: Rc<RefCell<Option<std::io::Result<()>>>> = Rc::default();
    let done = Rc::clone(&sent);
    let before = LIVE.get();
    PEAK.set(before);
    spawn(async move {
        let (written, parts) = stream.write_vectored_all(parts).await;
        done.replace(Some(written));
        drop((stream, parts));
    });
    // Long enough to fill what sockets buffer, if the write went on without a reader.
    for _ in 0..50 {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(sent.borrow().is_none(), "the client has taken nothing yet");
    go_on.send(()).unwrap();
    while sent.borrow().is_none() {
        sleep(Duration::from_millis(1)).await;
    }
    sent.take().unwrap().unwrap();
    usize::try_from(PEAK.get() - before).unwrap()
}
