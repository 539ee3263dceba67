//! The floor: the least a server on this runtime can do. It finds the end of each
//! request and answers a constant; no parsing, no store, no timers.
//!
//! `floor [io_uring|epoll] [bytes]` answers with so many bytes (100) on a free port of
//! 127.0.0.1 and prints its address.

use std::io::Write;
use std::rc::Rc;

use hypercache_perf::servers::floor_answer;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};

fn main() -> std::io::Result<()> {
    let (driver, bytes) = (std::env::args().nth(1), std::env::args().nth(2));
    let bytes = bytes.and_then(|bytes| bytes.parse().ok()).unwrap_or(100);
    if driver.as_deref() == Some("epoll") {
        let builder = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new();
        return builder.build()?.block_on(serve(bytes));
    }
    let mut ring = io_uring::IoUring::builder();
    ring.setup_single_issuer().setup_defer_taskrun();
    let builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new();
    builder
        .with_entries(256)
        .uring_builder(ring)
        .build()?
        .block_on(serve(bytes))
}

async fn serve(bytes: usize) -> std::io::Result<()> {
    let constant: Rc<[u8]> = floor_answer(bytes).into();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        monoio::spawn(answer(stream, constant.clone()));
    }
}

async fn answer(mut stream: TcpStream, constant: Rc<[u8]>) {
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
