//! Names to addresses, off the cores.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use super::handoff::handoff;

/// How many lookups this process has under way at once. Each is a thread, and one whose
/// asker has given up stays until the system's resolver does, which may take long.
const LOOKUPS_MAX: usize = 128;

static LOOKUPS: Lookups = Lookups::new(LOOKUPS_MAX);

/// The first address of `host:port`, within `timeout` ([`io::ErrorKind::TimedOut`] after
/// it). A name is looked up by the system's resolver on a thread of its own, anew each
/// time: a pod that was restarted has another address.
///
/// # Errors
///
/// The resolver's; the kernel's when no thread can be started;
/// [`io::ErrorKind::ResourceBusy`] when too many lookups are under way.
pub async fn resolve(name: &str, timeout: Duration) -> io::Result<SocketAddr> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let name = name.to_owned();
    look_up(&LOOKUPS, timeout, move || {
        name.to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    })
    .await
}

async fn look_up(
    lookups: &'static Lookups,
    timeout: Duration,
    find: impl FnOnce() -> io::Result<SocketAddr> + Send + 'static,
) -> io::Result<SocketAddr> {
    let Some(permit) = lookups.begin() else {
        let why = "too many names are being looked up";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
    };
    let (giver, mut taker) = handoff();
    thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(move || {
            let found = find();
            // Before the answer: whoever has it may look up the next name.
            drop(permit);
            giver.give(found);
        })?;
    let mut pause = pin!(super::sleep(timeout));
    poll_fn(|context| match Pin::new(&mut taker).poll(context) {
        Poll::Ready(found) => Poll::Ready(
            found.unwrap_or_else(|| Err(io::Error::other("the resolver's thread ended"))),
        ),
        Poll::Pending => {
            let over = pause.as_mut().poll(context);
            over.map(|()| Err(io::ErrorKind::TimedOut.into()))
        }
    })
    .await
}

/// Counts what is under way, up to a limit.
struct Lookups {
    under_way: AtomicUsize,
    max: usize,
}

impl Lookups {
    const fn new(max: usize) -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            max,
        }
    }

    fn begin(&'static self) -> Option<Permit> {
        let permit = Permit(self);
        let others = self.under_way.fetch_add(1, Ordering::Relaxed);
        // Dropping the permit takes it out of the count again.
        (others < self.max).then_some(permit)
    }
}

/// One lookup under way, until dropped.
struct Permit(&'static Lookups);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::{DriverChoice, run_core};
    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(5);

    fn here() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    #[test]
    fn an_address_needs_no_lookup_and_a_name_is_looked_up() {
        run_core(None, DriverChoice::Auto, async |_| {
            assert_eq!(resolve("127.0.0.1:1", LONG).await.unwrap(), here());
            let found = resolve("localhost:1", LONG).await.unwrap();
            assert!(found.ip().is_loopback() && found.port() == 1);
        })
        .unwrap();
    }

    #[test]
    fn a_lookup_that_hangs_is_given_up_and_counts_until_it_ends() {
        static ONE: Lookups = Lookups::new(1);
        run_core(None, DriverChoice::Auto, async |_| {
            let (end, ended) = mpsc::channel::<()>();
            let hung = look_up(&ONE, SHORT, move || {
                let _ = ended.recv();
                Ok(here())
            });
            assert_eq!(hung.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
            let refused = look_up(&ONE, LONG, || Ok(here())).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
            drop(end);
            while ONE.under_way.load(Ordering::Relaxed) > 0 {
                super::super::yield_to_io().await;
            }
            assert_eq!(look_up(&ONE, LONG, || Ok(here())).await.unwrap(), here());
        })
        .unwrap();
    }

    #[test]
    fn a_lookup_that_panics_is_an_error_and_counts_no_more() {
        static ONE: Lookups = Lookups::new(1);
        run_core(None, DriverChoice::Auto, async |_| {
            assert!(look_up(&ONE, LONG, || panic!("planted")).await.is_err());
            assert_eq!(look_up(&ONE, LONG, || Ok(here())).await.unwrap(), here());
        })
        .unwrap();
    }
}
