//! A core that has ended leaves nothing behind: a process may run many, one after the other.
//! The only test of its program, because it counts the descriptors of the process.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use hypercache::runtime::{DriverChoice, run_core, sleep, spawn, yield_to_io};

#[test]
fn a_core_that_has_ended_has_closed_what_it_opened() {
    let choices = match cfg!(feature = "glommio") {
        true => &[DriverChoice::Auto][..],
        false => &[DriverChoice::Auto, DriverChoice::Epoll],
    };
    for &choice in choices {
        run(choice);
        let before = open_descriptors();
        for _ in 0..5 {
            run(choice);
        }
        assert_eq!(open_descriptors(), before, "{choice:?}");
    }
}

/// Runs a core on which some tasks sleep when it ends.
fn run(choice: DriverChoice) {
    let main = |_| async {
        for seconds in 0..3 {
            spawn(sleep(Duration::from_secs(seconds)));
        }
        yield_to_io().await;
    };
    run_core(None, choice, main).unwrap();
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
