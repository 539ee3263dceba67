use proptest::prelude::*;
use rustls::version::{TLS12, TLS13};

use super::super::config::{ClientAuth, server_config};
use super::*;

use crate::tls::certificates::{Authority, client_config};

/// Both ends of a connection, and what each has received and not taken in.
struct Pair {
    client: End,
    server: End,
}

struct End {
    session: Session,
    input: Vec<u8>,
    data: Vec<u8>,
}

impl End {
    fn new(session: Session) -> Self {
        Self {
            session,
            input: Vec::new(),
            data: Vec::new(),
        }
    }

    /// Takes in all whole records of what came.
    fn receive(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.input.extend_from_slice(bytes);
        while let Next::Whole { end } = self.session.next(&self.input) {
            if self.session.is_closed_by_peer() {
                break;
            }
            let (input, data) = (&mut self.input, &mut self.data);
            let done = self.session.open(input, end, data)?;
            self.input.drain(..done);
        }
        Ok(())
    }

    fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        self.session
            .seal(plain, &mut self.input, &mut sealed)
            .unwrap();
        sealed
    }
}

impl Pair {
    /// Before the first byte.
    fn new(version: &'static rustls::SupportedProtocolVersion) -> Self {
        thread_local! {
            static SETUP: (Authority, Arc<ServerConfig>) = {
                let authority = Authority::new("authority");
                let own = authority.server(&["localhost"]);
                let (cert, key) = (own.cert.as_bytes(), own.key.as_bytes());
                let tls = server_config(cert, key, None, ClientAuth::Require).unwrap();
                (authority, tls.config)
            };
        }
        let (client, server) = SETUP.with(|(authority, server)| {
            let client = client_config(authority, None, version);
            let name = ServerName::try_from("localhost").unwrap();
            (
                Session::client(client, name).unwrap(),
                Session::server(Arc::clone(server)).unwrap(),
            )
        });
        Self {
            client: End::new(client),
            server: End::new(server),
        }
    }

    /// Carries records to and fro, through `change`, until there are none.
    fn shake(&mut self, mut change: impl FnMut(Vec<u8>) -> Vec<u8>) -> Result<(), SessionError> {
        loop {
            let there = self.client.session.take_output();
            let back = self.server.session.take_output();
            if there.is_empty() && back.is_empty() {
                return Ok(());
            }
            self.server.receive(&change(there))?;
            self.client.receive(&change(back))?;
        }
    }

    fn shaken(version: &'static rustls::SupportedProtocolVersion) -> Self {
        let mut pair = Self::new(version);
        pair.shake(|bytes| bytes).unwrap();
        assert!(!pair.client.session.state().is_handshaking());
        assert!(!pair.server.session.state().is_handshaking());
        pair
    }
}

/// Cuts each handshake record in the clear into records of at most `len` bytes.
fn fragment(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some((header, _)) = rest.split_first_chunk::<5>() {
        let whole = 5 + usize::from(u16::from_be_bytes([header[3], header[4]]));
        let (record, others) = rest.split_at(whole);
        rest = others;
        if header[0] != 22 {
            out.extend_from_slice(record);
            continue;
        }
        for fragment in record[5..].chunks(len) {
            out.extend_from_slice(&header[..3]);
            out.extend_from_slice(&(fragment.len() as u16).to_be_bytes());
            out.extend_from_slice(fragment);
        }
    }
    out
}

#[test]
fn handshake_messages_may_be_cut_into_records() {
    for version in [&TLS13, &TLS12] {
        for len in [1, 3, 50, 200] {
            let mut pair = Pair::new(version);
            let mut hello = true;
            // Later messages are protected as they are.
            pair.shake(|bytes| match std::mem::take(&mut hello) {
                true => fragment(&bytes, len),
                false => bytes,
            })
            .unwrap();
            assert!(!pair.server.session.state().is_handshaking());
            let sealed = pair.client.seal(b"hello");
            pair.server.receive(&sealed).unwrap();
            assert_eq!(pair.server.data, b"hello");
        }
    }
}

#[test]
fn a_message_that_is_not_whole_keeps_its_beginning() {
    let mut pair = Pair::new(&TLS13);
    let hello = fragment(&pair.client.session.take_output(), 10);
    pair.server.receive(&hello[..100]).unwrap();
    assert!(pair.server.session.kept() > 0);
    assert_eq!(
        pair.server.session.next(&pair.server.input),
        Next::Missing {
            bytes: 15 - 100 % 15
        },
    );
    pair.server.receive(&hello[100..]).unwrap();
    assert_eq!(pair.server.session.kept(), 0);
    assert!(pair.server.input.is_empty());
}

#[test]
fn sizes_around_that_of_a_record_come_out_as_they_went_in() {
    for version in [&TLS13, &TLS12] {
        let mut pair = Pair::shaken(version);
        for len in [
            0,
            1,
            RECORD_DATA_MAX - 1,
            RECORD_DATA_MAX,
            RECORD_DATA_MAX + 1,
            100_000,
        ] {
            let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let sealed = pair.server.seal(&plain);
            assert!(sealed.len() <= len + len.div_ceil(RECORD_DATA_MAX) * RECORD_OVERHEAD_MAX);
            pair.client.receive(&sealed).unwrap();
            assert_eq!(std::mem::take(&mut pair.client.data), plain);
        }
    }
}

#[test]
fn key_updates_are_answered_before_the_next_data() {
    let mut pair = Pair::shaken(&TLS13);
    for round in 0..200_u32 {
        pair.client.update_keys();
        let sealed = pair.client.seal(&round.to_be_bytes());
        pair.server.receive(&sealed).unwrap();
        let data = std::mem::take(&mut pair.server.data);
        let answer = pair.server.seal(&data);
        pair.client.receive(&answer).unwrap();
        assert_eq!(std::mem::take(&mut pair.client.data), round.to_be_bytes());
    }
}

impl End {
    fn update_keys(&mut self) {
        let Side::Client(connection) = &mut self.session.side else {
            panic!("not a client");
        };
        match connection.process_tls_records(&mut []).state.unwrap() {
            ConnectionState::WriteTraffic(traffic) => traffic.refresh_traffic_keys().unwrap(),
            state => panic!("{state:?}"),
        }
    }
}

#[test]
fn a_flood_of_key_updates_fails_and_costs_no_memory() {
    let mut pair = Pair::shaken(&TLS13);
    let mut received = 0;
    let failed = (0..1000).find_map(|_| {
        pair.client.update_keys();
        let update = pair.client.seal(b"");
        received += 1;
        pair.server.receive(&update).err()
    });
    assert!(failed.is_some());
    assert!(received <= SILENT_RECORDS_MAX, "{received}");
    assert!(pair.server.session.output.len() < 1000);
    assert!(pair.server.input.len() < 100);
}

#[test]
fn a_close_is_told_once_and_ends_what_comes() {
    for version in [&TLS13, &TLS12] {
        let mut pair = Pair::shaken(version);
        let mut sealed = pair.client.seal(b"last");
        let (session, input) = (&mut pair.client.session, &mut pair.client.input);
        session.close(input, &mut sealed).unwrap();
        let told = sealed.len();
        session.close(input, &mut sealed).unwrap();
        assert_eq!(sealed.len(), told);
        sealed.extend_from_slice(b"GET / HTTP/1.1");
        pair.server.receive(&sealed).unwrap();
        assert_eq!(pair.server.data, b"last");
        assert!(pair.server.session.is_closed_by_peer());
        // The other direction goes on.
        let answer = pair.server.seal(b"answer");
        pair.client.receive(&answer).unwrap();
        assert_eq!(pair.client.data, b"answer");
    }
}

#[test]
fn a_close_behind_key_updates_has_room() {
    let mut pair = Pair::shaken(&TLS13);
    pair.client.update_keys();
    let update = pair.client.seal(b"");
    pair.server.receive(&update).unwrap();
    let mut sealed = Vec::new();
    let (session, input) = (&mut pair.server.session, &mut pair.server.input);
    session.close(input, &mut sealed).unwrap();
    pair.client.receive(&sealed).unwrap();
    assert!(pair.client.session.is_closed_by_peer());
}

#[test]
fn a_record_of_one_connection_is_refused_on_another() {
    for version in [&TLS13, &TLS12] {
        let (mut one, mut other) = (Pair::shaken(version), Pair::shaken(version));
        let sealed = one.client.seal(b"hello");
        other.server.receive(&sealed).unwrap_err();
        assert!(other.server.data.is_empty());
        // An alert stands ready, and only one.
        let alert = other.server.session.take_output();
        assert!((7..60).contains(&alert.len()), "{}", alert.len());
        other.client.receive(&alert).unwrap_err();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_comes_a_session_fails_or_goes_on(
        is_12 in any::<bool>(),
        changes in prop::collection::vec((0..8_usize, 0..3000_usize, any::<u8>(), 0..4_u8), 0..6),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut pair = Pair::new(if is_12 { &TLS12 } else { &TLS13 });
        let mut flight = 0;
        let shaken = pair.shake(|mut bytes| {
            for &(at, index, byte, kind) in &changes {
                if at != flight || bytes.is_empty() {
                    continue;
                }
                let index = index % bytes.len();
                match kind {
                    0 => bytes[index] = byte,
                    1 => bytes.truncate(index),
                    2 => bytes.insert(index, byte),
                    _ => bytes.extend_from_within(index..),
                }
            }
            flight += 1;
            bytes
        });
        let whole = !pair.client.session.state().is_handshaking()
            && !pair.server.session.state().is_handshaking();
        if shaken.is_ok() && whole {
            let mut sealed = pair.client.seal(b"hello");
            sealed.extend_from_slice(&garbage);
            let received = pair.server.receive(&sealed);
            if pair.server.input.is_empty() || received.is_ok() {
                prop_assert!(pair.server.data.is_empty() || pair.server.data == b"hello");
            }
        }
    }
}
