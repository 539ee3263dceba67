//! The floor without the runtime, each variant by itself: what is answered, and to whom.
//! Where the system refuses io_uring there is nothing to test, and it is said.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

use hypercache_perf::servers::{Server, start};

const VARIANTS: [&[&str]; 9] = [
    &["plain"],
    &["multishot"],
    &["files"],
    &["pollfirst"],
    &["ahead"],
    &["timer"],
    &["coop"],
    &["spin=50"],
    &["multishot", "files", "pollfirst", "timer", "spin=50"],
];

const REQUEST: &[u8] = b"GET /cache/k HTTP/1.1\r\nHost: a\r\n\r\n";

/// Runs this for each variant.
fn each(test: impl Fn(&Server)) {
    if let Err(error) = io_uring::IoUring::new(8) {
        eprintln!("not tested, no io_uring: {error}");
        return;
    }
    for words in VARIANTS {
        eprintln!("{words:?}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ring"));
        command.args(words).arg("10");
        test(&start(command, &[], |line| Some(line.to_owned())).unwrap());
    }
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(&server.address).unwrap();
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).unwrap();
    stream.set_write_timeout(patience).unwrap();
    stream
}

/// All that is sent to a connection whose requests are these.
fn all_answers(server: &Server, requests: &[u8]) -> Vec<u8> {
    let mut stream = connect(server);
    stream.write_all(requests).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).unwrap();
    answers
}

/// The answer, which is always the same.
fn answer(server: &Server) -> Vec<u8> {
    let answer = all_answers(server, REQUEST);
    let text = std::str::from_utf8(&answer).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.contains("\r\nContent-Length: 10\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\nvvvvvvvvvv"), "{text}");
    answer
}

fn expect(stream: &mut TcpStream, answer: &[u8]) {
    let mut read = vec![0; answer.len()];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(read, answer);
}

#[test]
fn a_request_cut_anywhere_is_answered_once_it_is_whole() {
    each(|server| {
        let answer = answer(server);
        let mut stream = connect(server);
        let mut before = REQUEST;
        for cut in 1..REQUEST.len() {
            let (begin, end) = REQUEST.split_at(cut);
            stream.write_all(&[before, begin].concat()).unwrap();
            // When this answer is here, the beginning of the next request is read.
            expect(&mut stream, &answer);
            before = end;
        }
        stream.write_all(before).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut last = Vec::new();
        stream.read_to_end(&mut last).unwrap();
        assert_eq!(last, answer);
    });
}

#[test]
fn more_than_all_buffers_hold_is_read_and_answered() {
    const CONNECTIONS: usize = 40;
    const REQUESTS: usize = 12;
    let long = [&vec![b'x'; 20_000], REQUEST].concat().repeat(REQUESTS);
    each(|server| {
        let answers = answer(server).repeat(REQUESTS);
        let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(server)).collect();
        streams
            .iter_mut()
            .for_each(|stream| stream.write_all(&long).unwrap());
        streams
            .iter_mut()
            .for_each(|stream| expect(stream, &answers));
    });
}

#[test]
fn many_requests_at_once_are_answered_in_full_before_the_end() {
    const REQUESTS: usize = 1500;
    each(|server| {
        let answers = answer(server).repeat(REQUESTS);
        assert!(all_answers(server, &REQUEST.repeat(REQUESTS)) == answers);
    });
}

#[test]
fn connections_that_end_leave_their_places() {
    // As many as can be registered, and some.
    const CONNECTIONS: usize = 2100;
    each(|server| {
        let answer = answer(server);
        for number in 0..CONNECTIONS {
            match number % 3 {
                0 => assert_eq!(all_answers(server, REQUEST), answer),
                1 => drop(connect(server)),
                // Its end is a reset: the answer was not read.
                _ => connect(server).write_all(REQUEST).unwrap(),
            }
        }
    });
}

#[test]
fn what_is_no_variant_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_ring"))
        .args(["plain", "spin=often"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let complained = String::from_utf8(output.stderr).unwrap();
    assert!(complained.contains("spin=often is no variant"));
    assert!(complained.contains("multishot"), "they are listed");
}
