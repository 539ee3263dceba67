//! TLS on real sockets: what every runtime and driver must do alike.
#![allow(clippy::unwrap_used)]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/runtime.rs"]
mod support;
#[path = "support/tls.rs"]
mod tls;

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use certificates::{Authority, Identity, client_config};
use hypercache::runtime::{self, DriverChoice, Segment, Watch};
use hypercache::tls::handshake::HandshakeCounts;
use hypercache::tls::{ClientAuth, ServerTls, TlsStream, server_config};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ProtocolVersion};
use support::choices;
use tls::{HANDSHAKE_MS, Server, client, echo, expect_echo};

/// An authority and a server of it.
fn authority_and_server() -> (Authority, ServerTls) {
    let authority = Authority::new("servers");
    let tls = server_tls(&authority, None, ClientAuth::Require);
    (authority, tls)
}

fn server_tls(
    authority: &Authority,
    clients: Option<&Authority>,
    client_auth: ClientAuth,
) -> ServerTls {
    let identity = authority.server(&["localhost"]);
    let clients = clients.map(Authority::pem);
    server_config(
        identity.cert.as_bytes(),
        identity.key.as_bytes(),
        clients.as_ref().map(String::as_bytes),
        client_auth,
    )
    .unwrap()
}

/// Runs a test on each driver, with a client of each version.
fn on_each_driver_and_version(
    authority: &Authority,
    identity: Option<&Identity>,
    test: impl Fn(DriverChoice, &Arc<ClientConfig>),
) {
    for choice in choices() {
        for version in [&TLS13, &TLS12] {
            // Shown when the test fails.
            println!("on {choice:?} with {version:?}");
            test(choice, &client_config(authority, identity, version));
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn an_echo_comes_back_over_either_version() {
    let (authority, tls) = authority_and_server();
    on_each_driver_and_version(&authority, None, |choice, config| {
        let server = Server::start(choice, &tls, echo);
        let mut client = server.connect(config).unwrap();
        for size in [1, 100, 4095, 4096, 16 << 10, (16 << 10) + 1, 300_000] {
            // Twice as much as sockets buffer would need a second thread.
            expect_echo(&mut client, &pattern(size));
        }
        let connection = server.shaken().unwrap();
        let version = client.conn.protocol_version().unwrap();
        assert_eq!(connection.version, version);
        assert_eq!(connection.alpn.unwrap(), b"http/1.1");
        assert_eq!(client.conn.alpn_protocol().unwrap(), b"http/1.1");
    });
}

#[test]
fn older_versions_and_other_protocols_are_refused() {
    let (authority, tls) = authority_and_server();
    let mut config = ClientConfig::clone(&client_config(&authority, None, &TLS13));
    config.alpn_protocols = vec![b"h2".to_vec()];
    for choice in choices() {
        let server = Server::start(choice, &tls, echo);
        let refused = server.connect(&Arc::new(config.clone()));
        assert!(refused.is_err());
        drop(refused);
        server.shaken().unwrap_err();
        // A client that knows no more than TLS 1.1.
        let mut tcp = server.tcp();
        let mut hello = vec![22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2];
        hello.extend_from_slice(&[7; 32]);
        hello.extend_from_slice(&[0, 0, 2, 0, 47, 1, 0]);
        tcp.write_all(&hello).unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).unwrap();
        assert_eq!(answer[0], 21, "an alert: {answer:?}");
        drop(tcp);
        server.shaken().unwrap_err();
    }
}

/// A socket that sends each byte by itself.
struct Dribble(TcpStream);

impl Read for Dribble {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let one = buf.len().min(1);
        self.0.read(&mut buf[..one])
    }
}

impl Write for Dribble {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(&buf[..buf.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn it_works_one_byte_at_a_time() {
    let (authority, tls) = authority_and_server();
    on_each_driver_and_version(&authority, None, |choice, config| {
        let server = Server::start(choice, &tls, echo);
        let tls::Client { conn, sock, .. } = client(config, server.tcp());
        let mut client = rustls::StreamOwned::new(conn, Dribble(sock));
        expect_echo(&mut client, &pattern(100));
        expect_echo(&mut client, &pattern(5000));
        server.shaken().unwrap();
    });
}

#[test]
fn a_session_is_resumed_under_the_same_configuration_only() {
    let (authority, tls) = authority_and_server();
    let other = server_tls(&authority, None, ClientAuth::Require);
    on_each_driver_and_version(&authority, None, |choice, config| {
        let server = Server::start(choice, &tls, echo);
        for resumed in [false, true, true] {
            let mut client = server.connect(config).unwrap();
            expect_echo(&mut client, b"the tickets come before this");
            assert_eq!(server.shaken().unwrap().resumed, resumed);
        }
        // A reloaded one, with the same authority.
        let reloaded = Server::start(choice, &other, echo);
        let mut client = reloaded.connect(config).unwrap();
        expect_echo(&mut client, b"hello");
        assert!(!reloaded.shaken().unwrap().resumed);
    });
}

#[test]
fn a_required_client_certificate_is_required() {
    let (authority, ours, others) = (
        Authority::new("servers"),
        Authority::new("ours"),
        Authority::new("others"),
    );
    let tls = server_tls(&authority, Some(&ours), ClientAuth::Require);
    let alice = ours.client("alice");
    on_each_driver_and_version(&authority, Some(&alice), |choice, config| {
        let server = Server::start(choice, &tls, echo);
        for resumed in [false, true] {
            let mut client = server.connect(config).unwrap();
            expect_echo(&mut client, b"hello");
            let connection = server.shaken().unwrap();
            assert_eq!(connection.common_name.unwrap(), "alice");
            assert_eq!(connection.resumed, resumed);
        }
    });
    // One of another authority, one that is no client's, and none.
    let mallory = others.client("mallory");
    let server_only = ours.server(&["localhost"]);
    for refused in [Some(&mallory), Some(&server_only), None] {
        on_each_driver_and_version(&authority, refused, |choice, config| {
            let server = Server::start(choice, &tls, echo);
            let error = server
                .connect(config)
                .and_then(|mut client| client.read(&mut [0]))
                .unwrap_err();
            let said = error.to_string();
            assert!(said.contains("received fatal alert"), "{said}");
            server.shaken().unwrap_err();
        });
    }
}

#[test]
fn a_requested_client_certificate_may_be_missing_but_not_wrong() {
    let (authority, ours, others) = (
        Authority::new("servers"),
        Authority::new("ours"),
        Authority::new("others"),
    );
    let tls = server_tls(&authority, Some(&ours), ClientAuth::Request);
    let (alice, mallory) = (ours.client("alice"), others.client("alice"));
    for (identity, common_name) in [(None, None), (Some(&alice), Some("alice"))] {
        on_each_driver_and_version(&authority, identity, |choice, config| {
            let server = Server::start(choice, &tls, echo);
            let mut client = server.connect(config).unwrap();
            expect_echo(&mut client, b"hello");
            let connection = server.shaken().unwrap();
            assert_eq!(connection.common_name.as_deref(), common_name);
        });
    }
    on_each_driver_and_version(&authority, Some(&mallory), |choice, config| {
        let server = Server::start(choice, &tls, echo);
        server
            .connect(config)
            .and_then(|mut client| client.read(&mut [0]))
            .unwrap_err();
        server.shaken().unwrap_err();
    });
}

#[test]
fn a_long_chain_of_a_client_is_refused_unread() {
    let (authority, ours) = (Authority::new("servers"), Authority::new("ours"));
    for client_auth in [ClientAuth::Require, ClientAuth::Request] {
        let tls = server_tls(&authority, Some(&ours), client_auth);
        let eight = ours.client("alice").with_more(7);
        on_each_driver_and_version(&authority, Some(&eight), |choice, config| {
            let server = Server::start(choice, &tls, echo);
            expect_echo(&mut server.connect(config).unwrap(), b"hello");
            server.shaken().unwrap();
        });
        let nine = ours.client("alice").with_more(8);
        on_each_driver_and_version(&authority, Some(&nine), |choice, config| {
            let server = Server::start(choice, &tls, echo);
            server
                .connect(config)
                .and_then(|mut client| client.read(&mut [0]))
                .unwrap_err();
            let why = server.shaken().unwrap_err();
            assert!(why.contains("ChainTooLong"), "{why}");
        });
    }
}

/// A clock that stands still.
#[derive(Debug)]
struct At(u64);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            self.0,
        )))
    }
}

#[test]
fn a_resumed_session_ends_with_the_clients_certificate() {
    const END_OF_2030: u64 = 1_924_991_999;
    let authority = Authority::new("servers");
    let before = server_tls(&authority, Some(&authority), ClientAuth::Require);
    let at = |time| {
        let mut config = rustls::ServerConfig::clone(&before.config);
        config.time_provider = Arc::new(At(time));
        ServerTls {
            config: Arc::new(config),
            ..before.clone()
        }
    };
    let alice = authority.client_until("alice", (2031, 1, 1));
    on_each_driver_and_version(&authority, Some(&alice), |choice, config| {
        let server = Server::start(choice, &at(END_OF_2030 - 10), echo);
        for resumed in [false, true] {
            let mut client = server.connect(config).unwrap();
            expect_echo(&mut client, b"hello");
            assert_eq!(server.shaken().unwrap().resumed, resumed);
        }
        // The same ticket keys, some seconds later.
        let server = Server::start(choice, &at(END_OF_2030 + 10), echo);
        let error = server
            .connect(config)
            .and_then(|mut client| client.read(&mut [0]));
        assert!(error.is_err());
        let why = server.shaken().unwrap_err();
        assert!(why.to_lowercase().contains("expired"), "{why}");
    });
}

#[test]
fn what_is_not_tls_is_told_so_and_closed() {
    let (_, tls) = authority_and_server();
    let garbage: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &[0; 100],
        &[22, 3, 1, 0xFF, 0xFF, 1, 2, 3],
        &[22, 3, 1, 0, 5, 1, 0, 0, 1, 0],
    ];
    for choice in choices() {
        let server = Server::start(choice, &tls, echo);
        for bytes in garbage {
            let mut tcp = server.tcp();
            tcp.write_all(bytes).unwrap();
            let mut answer = Vec::new();
            tcp.read_to_end(&mut answer).unwrap();
            assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
            drop(tcp);
            let why = server.shaken().unwrap_err();
            assert!(why.contains("the TLS handshake failed"), "{why}");
        }
        let counts = HandshakeCounts {
            failed: garbage.len() as u64,
            ..HandshakeCounts::default()
        };
        server.wait_for_counts(counts);
    }
}

#[test]
fn a_handshake_has_one_deadline_however_its_bytes_come() {
    let (authority, tls) = authority_and_server();
    let config = client_config(&authority, None, &TLS13);
    for choice in choices() {
        let server = Server::start(choice, &tls, echo);
        let silent = server.tcp();
        let mut dribbling = server.tcp();
        let _half = half(&config, &server);
        // By then the others, which came earlier, are waited for as well.
        server.wait_for_in_progress(1);
        for byte in [22, 3, 1] {
            dribbling.write_all(&[byte]).unwrap();
            server.advance(HANDSHAKE_MS / 4);
        }
        assert_eq!(server.in_progress(), 1);
        assert_eq!(server.counts(), HandshakeCounts::default());
        server.advance(HANDSHAKE_MS / 4);
        for _ in 0..3 {
            let why = server.shaken().unwrap_err();
            assert!(why.contains("too long"), "{why}");
        }
        for mut tcp in [silent, dribbling] {
            assert!(matches!(tcp.read(&mut [0]), Ok(0) | Err(_)));
        }
        let counts = HandshakeCounts {
            timed_out: 3,
            ..HandshakeCounts::default()
        };
        server.wait_for_counts(counts);
    }
}

#[test]
fn a_handshake_of_too_many_records_is_given_up() {
    let (authority, tls) = authority_and_server();
    for choice in choices() {
        let server = Server::start(choice, &tls, echo);
        let mut client = client(&client_config(&authority, None, &TLS13), server.tcp());
        let mut hello = Vec::new();
        client.conn.write_tls(&mut hello).unwrap();
        let mut tcp = client.sock;
        let mut fragments = Vec::new();
        for byte in &hello[5..] {
            fragments.extend_from_slice(&[22, 3, 1, 0, 1, *byte]);
        }
        // The server may be gone before the last.
        let _ = tcp.write_all(&fragments);
        let why = server.shaken().unwrap_err();
        assert!(why.contains("too many"), "{why}");
    }
}

/// A client that sends its first message and no more.
fn half(config: &Arc<ClientConfig>, server: &Server) -> tls::Client {
    let mut half = client(config, server.tcp());
    half.conn.write_tls(&mut half.sock).unwrap();
    half
}

#[test]
fn who_is_silent_or_dribbles_keeps_nobody_from_shaking_hands() {
    let (authority, tls) = authority_and_server();
    let config = client_config(&authority, None, &TLS13);
    for choice in choices() {
        let server = Server::with_limit(choice, &tls, 2, echo);
        let silent: Vec<_> = (0..20).map(|_| server.tcp()).collect();
        for mut dribbling in &silent[10..] {
            // The better part of a record.
            dribbling.write_all(&[22, 3, 1, 0, 200, 1]).unwrap();
        }
        for completed in 1..=3 {
            expect_echo(&mut server.connect(&config).unwrap(), b"hello");
            server.wait_for_counts(HandshakeCounts {
                completed,
                ..HandshakeCounts::default()
            });
        }
        server.wait_for_in_progress(0);
        server.advance(HANDSHAKE_MS);
        server.wait_for_counts(HandshakeCounts {
            completed: 3,
            timed_out: 20,
            ..HandshakeCounts::default()
        });
    }
}

#[test]
fn beyond_the_limit_the_newest_handshake_is_refused() {
    let (authority, tls) = authority_and_server();
    let config = client_config(&authority, None, &TLS13);
    for choice in choices() {
        let server = Server::with_limit(choice, &tls, 2, echo);
        let _waiting = [half(&config, &server), half(&config, &server)];
        server.wait_for_in_progress(2);
        assert!(server.connect(&config).is_err());
        assert!(server.shaken().unwrap_err().contains("in progress"));
        server.wait_for_counts(HandshakeCounts {
            refused: 1,
            ..HandshakeCounts::default()
        });
        server.advance(HANDSHAKE_MS);
        server.wait_for_in_progress(0);
        expect_echo(&mut server.connect(&config).unwrap(), b"hello");
    }
}

#[test]
fn a_flood_of_half_handshakes_leaves_connections_alone() {
    const FLOOD: u64 = 500;
    let (authority, tls) = authority_and_server();
    let config = client_config(&authority, None, &TLS13);
    for choice in choices() {
        let server = Server::start(choice, &tls, echo);
        let mut established = server.connect(&config).unwrap();
        expect_echo(&mut established, b"before");
        let flood: Vec<_> = (0..FLOOD).map(|_| half(&config, &server)).collect();
        for _ in 0..100 {
            expect_echo(&mut established, b"during");
        }
        server.wait_for_in_progress(FLOOD);
        expect_echo(&mut established, b"still during");
        server.advance(HANDSHAKE_MS);
        server.wait_for_in_progress(0);
        drop(flood);
        let counts = server.counts();
        assert_eq!((counts.completed, counts.timed_out), (1, FLOOD));
        expect_echo(&mut established, b"after");
    }
}

type Serving = Pin<Box<dyn Future<Output = ()>>>;

const LARGE: usize = 20 << 20;

/// Answers each byte with parts of all sizes.
fn answer_in_parts(mut stream: TlsStream, _: Watch) -> Serving {
    Box::pin(async move {
        let body: Arc<[u8]> = pattern(LARGE).into();
        while let (Ok(1), _) = stream.read(Vec::with_capacity(1)).await {
            let parts = vec![
                Segment::from(b"head".to_vec()),
                Segment::from(vec![]),
                Segment::shared(Arc::clone(&body), 0..100).unwrap(),
                Segment::from(Arc::clone(&body)),
                Segment::shared(Arc::clone(&body), 7..(16 << 10) + 7).unwrap(),
                Segment::from(b"tail".to_vec()),
            ];
            let (written, parts) = stream.write_vectored_all(parts).await;
            written.unwrap();
            assert_eq!(parts.len(), 6);
        }
    })
}

#[test]
fn a_vectored_write_arrives_in_order_and_whole() {
    let (authority, tls) = authority_and_server();
    let body = pattern(LARGE);
    let mut expected = b"head".to_vec();
    expected.extend_from_slice(&body[..100]);
    expected.extend_from_slice(&body);
    expected.extend_from_slice(&body[7..(16 << 10) + 7]);
    expected.extend_from_slice(b"tail");
    on_each_driver_and_version(&authority, None, |choice, config| {
        let server = Server::start(choice, &tls, answer_in_parts);
        let mut client = server.connect(config).unwrap();
        for _ in 0..2 {
            client.write_all(b"?").unwrap();
            let mut answer = vec![0; expected.len()];
            client.read_exact(&mut answer).unwrap();
            assert!(answer == expected, "the answer is changed");
        }
    });
}

/// Reads to the end, and then tells what came and how it ended.
fn tell_the_end(mut stream: TlsStream, _: Watch) -> Serving {
    Box::pin(async move {
        let mut count = 0;
        let end = loop {
            match stream.read(Vec::with_capacity(1000)).await.0 {
                Ok(0) => break "end",
                Ok(more) => count += more,
                Err(_) => break "error",
            }
        };
        let in_order = stream.ended_in_order();
        let told = format!("{count} bytes, {end}, in order: {in_order}");
        let _ = stream.write_all(told.into_bytes()).await;
        let _ = stream.shutdown_write().await;
        // Until the client has left.
        let _ = stream.read(Vec::with_capacity(1)).await;
    })
}

#[test]
fn a_close_notify_ends_one_direction_and_is_answered_by_another() {
    let (authority, tls) = authority_and_server();
    on_each_driver_and_version(&authority, None, |choice, config| {
        let server = Server::start(choice, &tls, tell_the_end);
        let mut client = server.connect(config).unwrap();
        client.write_all(&[1; 5000]).unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        let mut told = String::new();
        // An end without close_notify would be an error.
        client.read_to_string(&mut told).unwrap();
        assert_eq!(told, "5000 bytes, end, in order: true");
    });
}

#[test]
fn a_truncated_stream_gives_whole_records_and_ends() {
    let (authority, tls) = authority_and_server();
    on_each_driver_and_version(&authority, None, |choice, config| {
        for cut in [0, 1, 5, 500] {
            let server = Server::start(choice, &tls, tell_the_end);
            let mut client = server.connect(config).unwrap();
            client.write_all(&[1; 5000]).unwrap();
            let mut record = Vec::new();
            client.conn.writer().write_all(&[2; 5000]).unwrap();
            while client.conn.wants_write() {
                client.conn.write_tls(&mut record).unwrap();
            }
            client.sock.write_all(&record[..cut]).unwrap();
            client.sock.shutdown(Shutdown::Write).unwrap();
            let mut told = String::new();
            client.read_to_string(&mut told).unwrap();
            assert_eq!(told, "5000 bytes, end, in order: false");
        }
    });
}

#[test]
fn a_forged_record_is_an_error_and_told_by_an_alert() {
    let (authority, tls) = authority_and_server();
    on_each_driver_and_version(&authority, None, |choice, config| {
        let server = Server::start(choice, &tls, tell_the_end);
        let mut client = server.connect(config).unwrap();
        client.write_all(b"good").unwrap();
        let mut forged = vec![23, 3, 3, 0, 100];
        forged.extend_from_slice(&[9; 100]);
        client.sock.write_all(&forged).unwrap();
        let error = client.read(&mut [0]).unwrap_err().to_string();
        assert!(error.contains("BadRecordMac"), "{error}");
    });
}

#[test]
fn key_updates_are_answered_and_a_flood_of_them_ends_the_connection() {
    let (authority, tls) = authority_and_server();
    let config = client_config(&authority, None, &TLS13);
    for choice in choices() {
        let server = Server::start(choice, &tls, echo);
        let mut client = server.connect(&config).unwrap();
        for size in [1, 10_000, 100_000] {
            client.conn.refresh_traffic_keys().unwrap();
            expect_echo(&mut client, &pattern(size));
        }
        for _ in 0..1000 {
            client.conn.refresh_traffic_keys().unwrap();
        }
        let ended = client.flush().and_then(|()| client.read(&mut [0]));
        assert!(!matches!(ended, Ok(1)), "{ended:?}");
    }
}

#[test]
fn small_buffers_get_everything() {
    fn echo_bytewise(mut stream: TlsStream, _: Watch) -> Serving {
        Box::pin(async move {
            loop {
                let (read, byte) = stream.read(Vec::with_capacity(1)).await;
                if !matches!(read, Ok(1)) {
                    return;
                }
                stream.write_all(byte).await.0.unwrap();
            }
        })
    }
    let (authority, tls) = authority_and_server();
    on_each_driver_and_version(&authority, None, |choice, config| {
        let server = Server::start(choice, &tls, echo_bytewise);
        let mut client = server.connect(config).unwrap();
        expect_echo(&mut client, &pattern(3000));
        assert!(matches!(
            client.conn.protocol_version(),
            Some(ProtocolVersion::TLSv1_2 | ProtocolVersion::TLSv1_3)
        ));
    });
}

/// Another task of the core: runs once each time that it is woken and somebody yields.
#[derive(Default)]
struct Bystander {
    turns: Cell<u64>,
    waker: Cell<Option<Waker>>,
}

impl Bystander {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn run(self: Rc<Self>) {
        std::future::poll_fn(|context| {
            self.turns.set(self.turns.get() + 1);
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }
}

/// Reads to the end, and then tells how much it was given between two turns of another
/// task, at most.
fn tell_the_most_in_a_turn(mut stream: TlsStream, _: Watch) -> Serving {
    Box::pin(async move {
        let bystander = Rc::<Bystander>::default();
        runtime::spawn(Rc::clone(&bystander).run());
        let (mut turn, mut in_turn, mut most) = (0, 0, 0);
        while let (Ok(count @ 1..), _) = stream.read(Vec::with_capacity(64 << 10)).await {
            if turn != bystander.turns.get() {
                turn = bystander.turns.get();
                in_turn = 0;
            }
            in_turn += count;
            most = most.max(in_turn);
            bystander.wake();
        }
        let _ = stream.write_all(most.to_string().into_bytes()).await;
        let _ = stream.shutdown_write().await;
        // Until the client has left.
        let _ = stream.read(Vec::with_capacity(1)).await;
    })
}

#[test]
fn records_of_one_byte_leave_others_their_turn() {
    let (authority, tls) = authority_and_server();
    on_each_driver_and_version(&authority, None, |choice, config| {
        let server = Server::start(choice, &tls, tell_the_most_in_a_turn);
        let mut client = server.connect(config).unwrap();
        let mut records = Vec::new();
        for _ in 0..2000 {
            client.conn.writer().write_all(&[1]).unwrap();
            while client.conn.wants_write() {
                client.conn.write_tls(&mut records).unwrap();
            }
        }
        client.sock.write_all(&records).unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        let mut told = String::new();
        client.read_to_string(&mut told).unwrap();
        // A byte is a record. 32 are a turn, but on epoll a task that yields can be the
        // next one several times.
        let most: usize = told.parse().unwrap();
        assert!((1..1000).contains(&most), "{most} records in one turn");
    });
}
