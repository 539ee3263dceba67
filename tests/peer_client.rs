//! Connections to peers: their deadlines, with a clock that only the test moves, and TLS.
#![allow(clippy::unwrap_used)]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/runtime.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::time::Duration;

use certificates::{Authority, Identity};
use hypercache::peer::client::{Access, Client, Dialing, TlsAccess};
use hypercache::runtime::{Deadlines, Listener, Timeouts, spawn, yield_to_io};
use hypercache::tls::{
    ClientAuth, Handshakes, ServerTls, TlsStream, accept as accept_tls, client_config,
    server_config,
};
use rustls::pki_types::ServerName;
use support::{Flag, LONG, listen, on_each_driver, read_exactly};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// More than sockets buffer.
const LARGE: usize = 16 << 20;

/// Exchanges may take a second of the test's time, and connecting longer than it lasts.
fn dialing() -> Dialing {
    let second = Duration::from_secs(1);
    Dialing {
        deadlines: Deadlines::new(Timeouts {
            read: second,
            write: second,
            idle: second,
            exchange: second,
        }),
        timeout: LONG,
        access: Default::default(),
    }
}

/// What becomes of a request, once it has ended.
#[derive(Clone, Default)]
struct Ending {
    ended: Flag,
    answer: Rc<RefCell<Option<io::Result<Vec<u8>>>>>,
}

impl Ending {
    async fn wait(&self) -> io::Result<Vec<u8>> {
        self.ended.wait().await;
        self.answer.take().unwrap()
    }
}

/// Starts a request with a large body; says how long it is.
fn start(dialing: Dialing, address: &str) -> (usize, Ending) {
    let mut client = Client::new(dialing, address.into(), None);
    let mut request = client.head("POST", "/", LARGE);
    request.resize(request.len() + LARGE, 0);
    let len = request.len();
    let ending = Ending::default();
    let told = ending.clone();
    spawn(async move {
        let answer = client.exchange(request).await;
        told.answer.replace(Some(answer));
        told.ended.set();
    });
    (len, ending)
}

#[test]
fn one_deadline_covers_a_request_and_its_answer() {
    on_each_driver(async || {
        let (listener, address) = listen();
        let dialing = dialing();
        let (len, ending) = start(dialing.clone(), &address.to_string());
        let (mut peer, _) = listener.accept().await.unwrap();
        read_exactly(&mut peer, 1).await;
        dialing.deadlines.sweep(999);
        read_exactly(&mut peer, len - 1).await;
        // Lets the client see that all is written.
        for _ in 0..10 {
            yield_to_io().await;
        }
        dialing.deadlines.sweep(1000);
        // Too late, and perhaps refused.
        let _ = peer.write_all(ANSWER.to_vec()).await;
        assert!(ending.wait().await.is_err());
    });
}

#[test]
fn a_request_that_the_peer_does_not_take_ends() {
    on_each_driver(async || {
        let (listener, address) = listen();
        let dialing = dialing();
        let (_, ending) = start(dialing.clone(), &address.to_string());
        let (mut peer, _) = listener.accept().await.unwrap();
        read_exactly(&mut peer, 1).await;
        dialing.deadlines.sweep(1000);
        assert!(ending.wait().await.is_err());
    });
}

#[test]
fn an_answer_at_the_last_moment_does_not_spoil_the_next_request() {
    on_each_driver(async || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dialing = dialing();
        let deadlines = Rc::clone(&dialing.deadlines);
        spawn(async move {
            for connection in 0..2 {
                let mut peer = accept(&listener).await;
                read_head(&mut peer).await;
                // Nothing runs between the answer and the sweep: the client finds both.
                peer.write_all(ANSWER).unwrap();
                if connection == 0 {
                    deadlines.sweep(1000);
                }
            }
        });
        let mut client = Client::new(dialing, address.into(), None);
        for _ in 0..2 {
            let request = client.head("GET", "/", 0);
            assert_eq!(client.exchange(request).await.unwrap(), b"ok");
        }
    });
}

/// Takes a connection without leaving the core's thread, nor stopping it.
async fn accept(listener: &std::net::TcpListener) -> std::net::TcpStream {
    listener.set_nonblocking(true).unwrap();
    loop {
        if let Ok((peer, _)) = listener.accept() {
            peer.set_nonblocking(true).unwrap();
            return peer;
        }
        yield_to_io().await;
    }
}

/// The same for a request without a body.
async fn read_head(peer: &mut std::net::TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match peer.read(&mut byte) {
            Ok(count) => head.extend_from_slice(&byte[..count]),
            Err(_) => yield_to_io().await,
        }
    }
}

/// How a node listens.
fn listening(authority: &Authority, identity: &Identity) -> ServerTls {
    let (cert, key) = (identity.cert.as_bytes(), identity.key.as_bytes());
    let ca = authority.pem();
    server_config(cert, key, Some(ca.as_bytes()), ClientAuth::Require).unwrap()
}

/// How a node connects.
fn connecting(authority: &Authority, identity: &Identity, name: Option<&str>) -> Access {
    let own = (identity.cert.as_bytes(), identity.key.as_bytes());
    let tls = client_config(authority.pem().as_bytes(), Some(own)).unwrap();
    Access {
        tls: Some(TlsAccess {
            config: tls.config,
            server_name: name.map(|name| ServerName::try_from(name.to_owned()).unwrap()),
        }),
        ..Access::default()
    }
}

/// Answers every request on every connection; counts the connections it has accepted.
fn serve_over_tls(listener: Listener, tls: ServerTls) -> Rc<Cell<usize>> {
    let connections = Rc::new(Cell::new(0));
    let accepted = Rc::clone(&connections);
    let tls = Rc::new(tls);
    spawn(async move {
        let handshakes = Handshakes::new(10);
        let deadlines = dialing().deadlines;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let watch = deadlines.watch(stream.aborter());
            let (tls, handshakes) = (Rc::clone(&tls), Rc::clone(&handshakes));
            let accepted = Rc::clone(&accepted);
            spawn(async move {
                if let Ok(stream) = accept_tls(stream, &tls, &handshakes, &watch).await {
                    accepted.set(accepted.get() + 1);
                    answer_over_tls(stream).await;
                }
            });
        }
    });
    connections
}

async fn answer_over_tls(mut stream: TlsStream) {
    let mut head = Vec::new();
    loop {
        let (read, bytes) = stream.read(Vec::with_capacity(1000)).await;
        if !matches!(read, Ok(count) if count > 0) {
            return;
        }
        head.extend(bytes);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            stream.write_all(ANSWER.to_vec()).await.0.unwrap();
        }
    }
}

async fn get(client: &mut Client) -> io::Result<Vec<u8>> {
    let request = client.head("GET", "/", 0);
    client.exchange(request).await
}

#[test]
fn peers_speak_over_tls_and_verify_each_other() {
    on_each_driver(async || {
        let (ours, others) = (Authority::new("ours"), Authority::new("others"));
        // The address of this machine, and a name that is not its own.
        let node = ours.node(&["127.0.0.1", "nodes.internal"]);
        let (listener, address) = listen();
        let connections = serve_over_tls(listener, listening(&ours, &node));
        for name in [None, Some("nodes.internal")] {
            let dialing = dialing();
            dialing.access.replace(connecting(&ours, &node, name));
            let mut client = Client::new(dialing, address.to_string().into(), None);
            for _ in 0..3 {
                assert_eq!(get(&mut client).await.unwrap(), b"ok");
            }
        }
        assert_eq!(connections.get(), 2);
        let stranger = others.node(&["127.0.0.1"]);
        for refused in [
            connecting(&ours, &node, Some("other.internal")),
            connecting(&others, &node, None),
            connecting(&ours, &stranger, None),
            Access::default(),
        ] {
            let dialing = dialing();
            dialing.access.replace(refused);
            let mut client = Client::new(dialing, address.to_string().into(), None);
            get(&mut client).await.unwrap_err();
        }
        assert_eq!(connections.get(), 2);
    });
}

#[test]
fn a_new_configuration_holds_from_the_next_request_on() {
    on_each_driver(async || {
        let (ours, others) = (Authority::new("ours"), Authority::new("others"));
        let node = ours.node(&["127.0.0.1"]);
        let (listener, address) = listen();
        let connections = serve_over_tls(listener, listening(&ours, &node));
        let dialing = dialing();
        let access = Rc::clone(&dialing.access);
        access.replace(connecting(&ours, &node, None));
        let mut client = Client::new(dialing, address.to_string().into(), None);
        get(&mut client).await.unwrap();
        // The same again, as after a change of the token.
        let same = access.borrow().clone();
        access.replace(same);
        get(&mut client).await.unwrap();
        assert_eq!(connections.get(), 1);
        access.replace(connecting(&ours, &node, None));
        get(&mut client).await.unwrap();
        assert_eq!(connections.get(), 2);
        access.replace(connecting(&others, &node, None));
        get(&mut client).await.unwrap_err();
        access.replace(Access::default());
        get(&mut client).await.unwrap_err();
    });
}

#[test]
fn a_peer_that_does_not_shake_hands_is_given_up() {
    on_each_driver(async || {
        let (listener, address) = listen();
        let ours = Authority::new("ours");
        let dialing = dialing();
        let node = ours.node(&["127.0.0.1"]);
        dialing.access.replace(connecting(&ours, &node, None));
        let deadlines = Rc::clone(&dialing.deadlines);
        let (_, ending) = start(dialing, &address.to_string());
        let (mut peer, _) = listener.accept().await.unwrap();
        read_exactly(&mut peer, 100).await;
        deadlines.sweep(1000);
        let error = ending.wait().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    });
}
