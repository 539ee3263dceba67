//! Names to addresses, off the cores.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread;

use super::handoff::handoff;

/// The first address of `host:port`. A name is looked up by the system's resolver on a
/// thread of its own, anew each time: a pod that was restarted has another address.
///
/// # Errors
///
/// The resolver's, or the kernel's when no thread can be started.
pub async fn resolve(name: &str) -> io::Result<SocketAddr> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let (giver, taker) = handoff();
    let name = name.to_owned();
    thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(move || {
            let found = name.to_socket_addrs().and_then(|mut addresses| {
                addresses.next().ok_or_else(|| {
                    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
                })
            });
            giver.give(found);
        })?;
    taker
        .await
        .unwrap_or_else(|| Err(io::Error::other("the resolver ended")))
}
