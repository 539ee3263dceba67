use std::net::TcpStream;
use std::time::Duration;

use super::*;

use crate::runtime::{Deadlines, DriverChoice, Listener, Timeouts, bind_reuseport, run_core};

const READ_MS: u64 = 1000;

fn deadlines() -> Rc<Deadlines> {
    let long = Duration::from_secs(3600);
    Deadlines::new(Timeouts {
        read: Duration::from_millis(READ_MS),
        write: long,
        idle: long,
        exchange: long,
    })
}

#[test]
fn who_is_too_late_when_its_turn_comes_takes_no_step() {
    run_core(None, DriverChoice::Auto, |_| async {
        let listener = bind_reuseport("127.0.0.1:0".parse().unwrap(), 1024).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let listener = Listener::from_std(listener).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (deadlines, handshakes) = (deadlines(), Handshakes::new(1));
        let watch = deadlines.watch(stream.aborter());
        watch.wait_for(Wait::Handshake);

        let steps = Cell::new(0);
        let step = || {
            steps.set(steps.get() + 1);
            Ok(())
        };
        handshakes.step(&watch, step).await.unwrap();
        assert_eq!(steps.get(), 1);

        // Another one is at its step until the time is over.
        let other = handshakes.gate.borrow_mut().arrive();
        while !handshakes.gate.borrow().is_stepping(other) {
            handshakes.admit();
            runtime::yield_to_io().await;
        }
        runtime::spawn({
            let (deadlines, handshakes) = (Rc::clone(&deadlines), Rc::clone(&handshakes));
            async move {
                while handshakes.waiting.borrow().is_empty() {
                    runtime::yield_to_io().await;
                }
                deadlines.sweep(READ_MS);
                handshakes.gate.borrow_mut().leave(other);
            }
        });
        let late = handshakes.step(&watch, step).await;
        assert!(matches!(late, Err(HandshakeError::TimedOut)), "{late:?}");
        assert_eq!(steps.get(), 1);

        // The gate is open for who is in time.
        let watch = deadlines.watch(stream.aborter());
        watch.wait_for(Wait::Handshake);
        handshakes.step(&watch, step).await.unwrap();
        assert_eq!(steps.get(), 2);
    })
    .unwrap();
}
