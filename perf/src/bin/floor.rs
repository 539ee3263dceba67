//! The floor: the least a server on this runtime can do. It finds the end of each
//! request and answers a constant of 100 bytes; no parsing, no store, no timers.
//!
//! `floor [io_uring|epoll]` serves on a free port of 127.0.0.1 and prints its address.

use std::io::Write;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};

fn main() -> std::io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("epoll") {
        let builder = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new();
        return builder.build()?.block_on(serve());
    }
    let mut ring = io_uring::IoUring::builder();
    ring.setup_single_issuer().setup_defer_taskrun();
    let builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new();
    builder
        .with_entries(256)
        .uring_builder(ring)
        .build()?
        .block_on(serve())
}

async fn serve() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        monoio::spawn(answer(stream));
    }
}

async fn answer(mut stream: TcpStream) {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
        Content-Length: 100\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n";
    let constant = [HEAD, &[b'v'; 100]].concat();
    let mut input: Vec<u8> = Vec::with_capacity(4096);
    let mut output: Vec<u8> = Vec::with_capacity(16384);
    loop {
        let (read, returned) = stream.read(input).await;
        input = returned;
        if !matches!(read, Ok(count) if count > 0) {
            return;
        }
        let mut rest = 0;
        while let Some(at) = memchr::memmem::find(&input[rest..], b"\r\n\r\n") {
            output.extend_from_slice(&constant);
            rest += at + 4;
        }
        input.drain(..rest);
        let (written, returned) = stream.write_all(output).await;
        output = returned;
        output.clear();
        if written.is_err() {
            return;
        }
    }
}
