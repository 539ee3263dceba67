//! Requests that two parsers could take apart differently, and so hide another request
//! (RFC 9112 section 11.2). A proxy in front of a node may be the other parser.
//!
//! Whatever is ambiguous is refused and its connection closed: behind each stands a
//! request that deletes a key, and the key must still be there. What is merely unusual is
//! served, and the request behind it answered as itself. And a body is a body, whatever
//! it looks like and wherever it is sent.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/node.rs"]
mod node;

use std::io::Write;

use node::{Answer, Client, Node};

/// A PUT with these fields and this body.
macro_rules! put {
    ($fields:expr, $body:expr) => {
        concat!(
            "PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\n",
            $fields,
            "\r\n\r\n",
            $body
        )
        .as_bytes()
    };
}

/// A chunked PUT with this body.
macro_rules! chunked {
    ($body:expr) => {
        put!("Transfer-Encoding: chunked", $body)
    };
}

const HIDDEN: &[u8] = b"DELETE /v1/cache/victim HTTP/1.1\r\nHost: x\r\n\r\n";
const NEXT: &[u8] = b"GET /v1/cache/victim HTTP/1.1\r\nHost: x\r\n\r\n";
const HELLO: &str = "5\r\nhello\r\n0\r\n\r\n";

/// Requests of one kind, each with the status it is refused with.
type Refused = (&'static str, &'static [(u16, &'static [u8])]);

const REFUSED: &[Refused] = &[
    (
        "both a length and chunks: CL.TE and TE.CL",
        &[
            (400, put!("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n")),
            (400, put!("Content-Length: 0\r\nTransfer-Encoding: chunked", "0\r\n\r\n")),
            (400, put!("transfer-encoding: CHUNKED\r\ncontent-length: 4", "0\r\n\r\n")),
            (501, put!("Content-Length: 5\r\nTransfer-Encoding: identity", "hello")),
            (400, put!("Content-Length: 5\r\nTransfer-Encoding:", "hello")),
        ],
    ),
    (
        "codings that one parser sees and the other does not: TE.TE",
        &[
            (400, put!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked\r\nTransfer-encoding: x", "0\r\n\r\n")),
            (501, put!("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked, chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked, identity", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: identity, chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: gzip, chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: ,chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked,", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: xchunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunkedx", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: x chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked x", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: \"chunked\"", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: 'chunked'", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked;q=1", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked; a=b", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: \x0bchunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: \x0cchunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked\x0b", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: chunked\0", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding: \x7fchunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding:", "0\r\n\r\n")),
            (400, b"PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \xa0chunked\r\n\r\n0\r\n\r\n"),
            (400, b"PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\xff\r\n\r\n0\r\n\r\n"),
            (501, put!("Transfer-Encoding: identity", "hello")),
            (501, put!("Transfer-Encoding: gzip", "")),
            (501, put!("Transfer-Encoding: chunke", "0\r\n\r\n")),
            (400, put!("Transfer_Encoding: chunked", "0\r\n\r\n")),
            (400, put!("transfer_encoding: x", "")),
        ],
    ),
    (
        "chunks where there are none to be: HTTP/1.0",
        &[
            (400, b"PUT /v1/cache/k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            (400, b"PUT /v1/cache/k HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ],
    ),
    (
        "lengths that are read in two ways",
        &[
            (400, put!("Content-Length: 5\r\nContent-Length: 5", "hello")),
            (400, put!("Content-Length: 5\r\nContent-Length: 6", "hello")),
            (400, put!("Content-Length: 0\r\nContent-Length: 5", "hello")),
            (400, put!("Content-Length: 5\r\ncontent-length: 5", "hello")),
            (400, put!("Content-Length: 5, 5", "hello")),
            (400, put!("Content-Length: 5,", "hello")),
            (400, put!("Content-Length: 0, 5", "hello")),
            (400, put!("Content-Length: +5", "hello")),
            (400, put!("Content-Length: -5", "hello")),
            (400, put!("Content-Length: -0", "")),
            (400, put!("Content-Length: 0x5", "hello")),
            (400, put!("Content-Length: 5e0", "hello")),
            (400, put!("Content-Length: 5.0", "hello")),
            (400, put!("Content-Length: 5_0", "hello")),
            (400, put!("Content-Length: 5 5", "hello")),
            (400, put!("Content-Length: 5;q=1", "hello")),
            (400, put!("Content-Length: \"5\"", "hello")),
            (400, put!("Content-Length: \x0b5", "hello")),
            (400, put!("Content-Length: 5\x0c", "hello")),
            (400, put!("Content-Length: 5\0", "hello")),
            (400, put!("Content-Length:", "")),
            (400, put!("Content-Length: \t", "")),
            (400, put!("Content-Length: 18446744073709551616", "")),
            (400, put!("Content-Length: 18446744073709551621", "hello")),
            (400, put!("Content-Length: 99999999999999999999999", "")),
            (413, put!("Content-Length: 18446744073709551615", "")),
            (413, put!("Content-Length: 4194305", "")),
            (400, put!("Content_Length: 5", "hello")),
            (400, "PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length: ５\r\n\r\nhello".as_bytes()),
        ],
    ),
    (
        "names that one parser trims or folds and the other does not",
        &[
            (400, put!("Content-Length : 5", "hello")),
            (400, put!("Content-Length\t: 5", "hello")),
            (400, put!(" Content-Length: 5", "hello")),
            (400, put!("\tTransfer-Encoding: chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding : chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding\x0b: chunked", "0\r\n\r\n")),
            (400, put!("Transfer Encoding: chunked", "0\r\n\r\n")),
            (400, put!("Transfer-Encoding\0: chunked", "0\r\n\r\n")),
            (400, put!("\0Content-Length: 5", "hello")),
            (400, put!("Content-Length", "hello")),
            (400, put!(": 5", "hello")),
            (400, put!("X: a\r\n Content-Length: 5", "hello")),
            (400, put!("X: a\r\n\tTransfer-Encoding: chunked", "0\r\n\r\n")),
            (400, put!("Content-Length: 1\r\n 5", "hello")),
            (400, put!("Content-Length:\r\n 5", "hello")),
            (400, put!("Transfer-Encoding:\r\n chunked", "0\r\n\r\n")),
            (400, b"PUT /v1/cache/k HTTP/1.1\r\n Host: x\r\nContent-Length: 5\r\n\r\nhello"),
            (400, b"PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length\xa0: 5\r\n\r\nhello"),
            (400, b"PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\n\xefContent-Length: 5\r\n\r\nhello"),
        ],
    ),
    (
        "lines that end in something else than CR LF",
        &[
            (400, b"GET /v1/cache/k HTTP/1.1\nHost: x\n\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: x\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: x\r\n\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: x\n\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\rHost: x\r\r"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\r\nHost: x\r\n\r\n"),
            (400, b"\nGET /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"\rGET /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"\r\n\nGET /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, put!("X: a\nContent-Length: 5", "hello")),
            (400, put!("X: a\rContent-Length: 5", "hello")),
            (400, put!("X: a\r\rContent-Length: 5", "hello")),
            (400, put!("X: a\0\r\nContent-Length: 5", "hello")),
            (400, put!("X: a\rb", "")),
        ],
    ),
    (
        "chunk sizes that are read in two ways",
        &[
            (400, chunked!("+5\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("-5\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("0x5\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!(" 5\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5 \r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5\t\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5 ;a\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5_0\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5h\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5,5\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("\0005\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("\r\n5\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("\r\n")),
            (400, chunked!(";a\r\n\r\n")),
            (400, chunked!("g\r\n")),
            (400, chunked!("fffffffffffffffff\r\n")),
            (400, chunked!("10000000000000005\r\nhello\r\n0\r\n\r\n")),
            (413, chunked!("ffffffffffffffff\r\n")),
            (413, chunked!("ffffffff\r\n")),
            (413, chunked!("5\r\nhello\r\nfffffffffffffffb\r\n")),
        ],
    ),
    (
        "chunks whose lines end in something else, within extensions too",
        &[
            (400, chunked!("5\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5\rhello\r\n0\r\n\r\n")),
            (400, chunked!("5\r\rhello\r\n0\r\n\r\n")),
            (400, chunked!("5;a\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5;a\nb\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5;a\rb\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5;a=\"\n\"\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5;a\0b\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5;a\x7f\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("5\r\nhello\n0\r\n\r\n")),
            (400, chunked!("5\r\nhello\r0\r\n\r\n")),
            (400, chunked!("5\r\nhello0\r\n\r\n")),
            (400, chunked!("5\r\nhelloX\r\n0\r\n\r\n")),
            (400, chunked!("5\r\nhelloXX0\r\n\r\n")),
            (400, chunked!("4\r\nhello\r\n0\r\n\r\n")),
            (400, chunked!("0\n\r\n")),
            (400, chunked!("0\r\n\n")),
            (400, chunked!("0;a\n\r\n")),
            (400, chunked!("0\r\n\r\r\n")),
        ],
    ),
    (
        "trailers that are the beginning of another request, or frame one",
        &[
            (400, chunked!("0\r\nGET /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n")),
            (400, chunked!("0\r\nContent-Length: 5\r\n\r\nhello")),
            (400, chunked!("0\r\nA: b\r\ncontent-length: 5\r\n\r\nhello")),
            (400, chunked!("0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
            (400, chunked!("0\r\nHost: y\r\n\r\n")),
            (400, chunked!("0\r\n folded\r\n\r\n")),
            (400, chunked!("0\r\nA: b\r\n folded\r\n\r\n")),
            (400, chunked!("0\r\nA : b\r\n\r\n")),
            (400, chunked!("0\r\n: b\r\n\r\n")),
            (400, chunked!("0\r\nA\r\n\r\n")),
            (400, chunked!("0\r\nA: b\n\r\n")),
            (400, chunked!("0\r\nA: b\nC: d\r\n\r\n")),
            (400, chunked!("0\r\nA: b\rC: d\r\n\r\n")),
            (400, chunked!("0\r\nA: \0\r\n\r\n")),
        ],
    ),
    (
        "hosts that are none, or two",
        &[
            (400, b"GET /v1/cache/k HTTP/1.1\r\n\r\n"),
            (400, b"GET http://x/v1/cache/k HTTP/1.1\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: a, b\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: a b\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: user@a\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost: a/v1\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nHost : a\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1\r\nX: y\r\n Host: a\r\n\r\n"),
        ],
    ),
    (
        "request lines that are taken apart in two ways",
        &[
            (400, b"GET  /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k  HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET\t/v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k\tHTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET\x0b/v1/cache/k\x0bHTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b" GET /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1 \r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/a b HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k#f HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/\0 HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/\xff HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET * HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET x:80 HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n"),
            (400, b"GET http:///v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET http://x?a HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET file:///v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"G\0T /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"G(T /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, b"0\r\n\r\nGET /v1/cache/k HTTP/1.1\r\nHost: x\r\n\r\n"),
        ],
    ),
    (
        "other protocols",
        &[
            (400, b"GET /v1/cache/k\r\n\r\n"),
            (400, b"GET /v1/cache/k\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k http/1.1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1.10\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/01.1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTP/1,1\r\nHost: x\r\n\r\n"),
            (400, b"GET /v1/cache/k HTTPS/1.1\r\nHost: x\r\n\r\n"),
            (505, b"GET /v1/cache/k HTTP/0.9\r\nHost: x\r\n\r\n"),
            (505, b"GET /v1/cache/k HTTP/1.2\r\nHost: x\r\n\r\n"),
            (505, b"GET /v1/cache/k HTTP/2.0\r\nHost: x\r\n\r\n"),
            (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ],
    ),
    (
        "expectations that one parser waits for and the other does not",
        &[
            (417, put!("Expect: something\r\nContent-Length: 5", "hello")),
            (417, put!("Expect: 100-continue, 100-continue\r\nContent-Length: 5", "hello")),
            (417, put!("Expect: 100-continue, x\r\nContent-Length: 5", "hello")),
            (417, put!("Expect:\r\nContent-Length: 5", "hello")),
            (417, put!("Expect: 100-continue\r\nExpect: x\r\nContent-Length: 5", "hello")),
        ],
    ),
    (
        "callers who are two",
        &[(400, put!("Authorization: Bearer a\r\nAuthorization: Bearer b", ""))],
    ),
];

/// What is unusual but clear, each with the statuses of its answers.
const SERVED: &[(&str, &[u16], &[u8])] = &[
    ("an empty line first", &[200], b"\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("names and codings in other letters", &[200], b"PUT /v1/cache/k HTTP/1.1\r\nhOsT: x\r\ntRANSFER-eNCODING: ChUnKeD\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ("spaces around values", &[200], put!("Content-Length: \t 5 \t", "hello")),
    ("no space before a value", &[200], put!("Content-Length:5", "hello")),
    ("spaces around a coding", &[200], put!("Transfer-Encoding: \tchunked \t", "5\r\nhello\r\n0\r\n\r\n")),
    ("a length with leading zeros", &[200], put!("Content-Length: 0005", "hello")),
    ("a length of zero", &[200], put!("Content-Length: 0", "")),
    ("no body at all", &[200], put!("X: y", "")),
    ("a size with leading zeros", &[200], chunked!("0000000000000005\r\nhello\r\n0\r\n\r\n")),
    ("sizes in either case", &[200], chunked!("a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n")),
    ("extensions", &[200], chunked!("5;a;b=c;d=\"e;f\"\r\nhello\r\n0;last\r\n\r\n")),
    ("trailers", &[200], chunked!("5\r\nhello\r\n0\r\nDigest: x\r\nContent-Lengthy: 5\r\n\r\n")),
    ("trailers announced", &[200], put!("Trailer: Digest\r\nTransfer-Encoding: chunked", "0\r\nDigest: x\r\n\r\n")),
    ("codings accepted in answers", &[200], put!("TE: trailers, chunked\r\nContent-Length: 5", "hello")),
    ("fields that look like framing", &[200], put!("X-Content-Length: 9\r\nContent-Length-: 9\r\nX-Transfer-Encoding: chunked\r\nContent-Length: 5", "hello")),
    ("framing named as of this connection only", &[200], put!("Connection: keep-alive, Content-Length, Transfer-Encoding\r\nContent-Length: 5", "hello")),
    ("the old way to keep a connection", &[200], put!("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nContent-Length: 5", "hello")),
    ("an upgrade that is not taken up", &[200], put!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 5", "hello")),
    ("bytes beyond ASCII in a value", &[200], b"PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nX: \xe4\xff\r\nContent-Length: 5\r\n\r\nhello"),
    ("a URL whose host is another", &[200], b"GET http://a/healthz HTTP/1.1\r\nHost: b\r\n\r\n"),
    ("a host without a name", &[200], b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n"),
    ("a host that is an address", &[200], b"GET /healthz HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n"),
    ("the body with the question whether to send it", &[200], put!("Expect: 100-continue\r\nContent-Length: 5", "hello")),
    ("the same with chunks", &[200], put!("Expect: 100-CONTINUE\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")),
    ("the question without a body", &[200], b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n"),
    ("two at once", &[200, 200], b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("HTTP/1.0 that is kept", &[200], b"PUT /v1/cache/k HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"),
    ("a method in other letters", &[405], b"put /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"),
];

fn node() -> Node {
    let node = Node::start(&[]);
    node.connect().put("/v1/cache/victim", b"ALIVE");
    node
}

fn assert_alive(node: &Node, why: &str) {
    assert_eq!(
        node.connect().get("/v1/cache/victim").text(),
        "ALIVE",
        "{why}"
    );
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[test]
fn what_is_ambiguous_is_refused_and_nothing_behind_it_is_done() {
    let node = node();
    for (class, cases) in REFUSED {
        for (status, request) in *cases {
            let case = format!("{class}: {}", shown(request));
            let mut client = node.connect();
            client.send([request, HIDDEN].concat());
            expect_refusal(&mut client, *status, &case);
            assert_alive(&node, &case);
        }
    }
}

#[test]
fn a_refusal_does_not_depend_on_how_the_bytes_arrive() {
    let node = node();
    for (class, cases) in REFUSED {
        for (status, request) in *cases {
            let case = format!("{class}: {}", shown(request));
            let mut client = node.connect();
            for byte in [request, HIDDEN].concat() {
                // The node may have hung up on what it has seen already.
                if client.stream.write_all(&[byte]).is_err() {
                    break;
                }
            }
            expect_refusal(&mut client, *status, &case);
        }
    }
    assert_alive(&node, "none of them");
}

#[test]
fn every_listener_refuses_alike() {
    let node = node();
    let peer = node.serving["peer"].as_str().unwrap().to_owned();
    for address in [&node.mgmt, &peer] {
        for (class, cases) in REFUSED {
            // The other listeners take other lengths of bodies.
            for (status, request) in cases.iter().filter(|(status, _)| *status != 413) {
                let mut client = Client::connect(address);
                client.send([request, HIDDEN].concat());
                let case = format!("{class}: {}", shown(request));
                // Where nobody is asked who they are and nothing depends on a body, it is
                // not looked at: the answer ends the connection all the same.
                let answer = client.answer();
                assert!(
                    [*status, 404].contains(&answer.status),
                    "{case}: {answer:?}"
                );
                expect_end(&mut client, &answer, &case);
            }
        }
    }
}

fn expect_refusal(client: &mut Client, status: u16, case: &str) {
    let answer = client.answer();
    assert_eq!(answer.status, status, "{case}: {answer:?}");
    expect_end(client, &answer, case);
}

/// Nothing behind this answer is done.
fn expect_end(client: &mut Client, answer: &Answer, case: &str) {
    assert_eq!(answer.header("Connection"), Some("close"), "{case}");
    assert!(answer.json()["error"].is_string(), "{case}");
    client.expect_closed();
}

#[test]
fn what_is_unusual_but_clear_is_served_and_so_is_what_follows() {
    let node = node();
    for (what, statuses, request) in SERVED {
        let mut client = node.connect();
        client.send([request, NEXT].concat());
        for status in *statuses {
            let answer = client.answer();
            assert_eq!(answer.status, *status, "{what}: {answer:?}");
        }
        assert_eq!(client.answer().text(), "ALIVE", "{what}");

        let mut client = node.connect();
        for byte in [request, NEXT].concat() {
            // A body that does not matter and is not there yet is not waited for.
            if client.stream.write_all(&[byte]).is_err() {
                break;
            }
        }
        let mut closes = false;
        for status in *statuses {
            let mut answer = client.answer();
            if answer.status == 100 {
                answer = client.answer();
            }
            assert_eq!(
                answer.status, *status,
                "{what}, in single bytes: {answer:?}"
            );
            closes = answer.header("Connection") == Some("close");
            if closes {
                break;
            }
        }
        if closes {
            client.expect_closed();
        } else {
            assert_eq!(client.answer().text(), "ALIVE", "{what}, in single bytes");
        }
    }
}

#[test]
fn a_body_is_a_body_whatever_it_looks_like_and_wherever_it_is_sent() {
    let node = node();
    let chunks = [
        format!("{:x}\r\n", HIDDEN.len()).as_bytes(),
        HIDDEN,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    for method in ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"] {
        for target in [
            "/healthz",
            "/v1/cache/k",
            "/v1/cache/batch/get",
            "/v1/me",
            "/nowhere",
        ] {
            for (framing, body) in [
                (format!("Content-Length: {}", HIDDEN.len()), HIDDEN),
                ("Transfer-Encoding: chunked".to_owned(), &chunks),
            ] {
                let case = format!("{method} {target} {framing}");
                let mut client = node.connect();
                let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
                client.send([head.as_bytes(), body, NEXT].concat());
                let answer = client.answer_to(method);
                assert!(
                    answer.status < 500 && answer.status >= 200,
                    "{case}: {answer:?}"
                );
                if answer.header("Connection") == Some("close") {
                    client.expect_closed();
                } else {
                    assert_eq!(client.answer().text(), "ALIVE", "{case}");
                }
            }
        }
    }
}

#[test]
fn what_follows_a_close_is_not_answered() {
    let node = node();
    for request in [
        &b"GET /healthz HTTP/1.0\r\n\r\n"[..],
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: x\r\nConnection: CLOSE\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
    ] {
        let mut client = node.connect();
        client.send([request, HIDDEN].concat());
        assert_eq!(client.answer().text(), "ok", "{}", shown(request));
        client.expect_closed();
        assert_alive(&node, &shown(request));
    }
}

#[test]
fn half_a_request_is_never_taken_for_a_whole_one() {
    let node = node();
    let requests = [
        put!("Content-Length: 5", "hello").to_vec(),
        [put!("Transfer-Encoding: chunked", ""), HELLO.as_bytes()].concat(),
    ];
    for request in requests {
        for end in 1..request.len() {
            let mut client = node.connect();
            client.send(&request[..end]);
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(
                client.try_answer("PUT").is_none(),
                "{}",
                shown(&request[..end])
            );
        }
    }
}
