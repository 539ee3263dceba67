//! The codec: reading a head, writing the most frequent answer, decoding chunks.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use hypercache::http::{ChunkedDecoder, Connection, HttpDate, Limits, parse_head, write_ok_octets};

const LIMITS: Limits = Limits {
    head_bytes_max: 16 << 10,
    target_bytes_max: 8 << 10,
    headers_max: 64,
    body_bytes_max: 4 << 20,
};

fn heads(c: &mut Criterion) {
    let minimal = b"GET /v1/cache/key123 HTTP/1.1\r\nHost: perf\r\n\r\n";
    let curl = b"GET /v1/cache/key123 HTTP/1.1\r\nHost: localhost:8080\r\n\
        User-Agent: curl/8.1.2\r\nAccept: */*\r\n\r\n";
    let put = b"PUT /v1/cache/key123?ttl=10m HTTP/1.1\r\nHost: localhost:8080\r\n\
        Content-Type: application/octet-stream\r\nContent-Length: 100\r\n\r\n";
    for (name, head) in [
        ("minimal get", &minimal[..]),
        ("curl get", curl),
        ("put", put),
    ] {
        c.bench_function(&format!("parse_head/{name}"), |b| {
            b.iter(|| parse_head(black_box(head), &LIMITS).is_ok());
        });
    }
}

fn answers(c: &mut Criterion) {
    let date = HttpDate::at(0);
    let mut out = Vec::with_capacity(4096);
    c.bench_function("write_ok_octets", |b| {
        b.iter(|| {
            out.clear();
            write_ok_octets(&mut out, &date, black_box(100), Connection::KeepAlive);
            out.len()
        });
    });
}

fn chunks(c: &mut Criterion) {
    let mut input = Vec::new();
    for _ in 0..16 {
        input.extend_from_slice(b"400\r\n");
        input.extend_from_slice(&[b'c'; 1024]);
        input.extend_from_slice(b"\r\n");
    }
    input.extend_from_slice(b"0\r\n\r\n");
    let mut out = Vec::with_capacity(32 << 10);
    c.bench_function("chunked/16 KiB", |b| {
        b.iter(|| {
            out.clear();
            ChunkedDecoder::default()
                .decode(black_box(&input), &mut out, 1 << 20)
                .is_ok()
        });
    });
}

criterion_group!(benches, heads, answers, chunks);
criterion_main!(benches);
