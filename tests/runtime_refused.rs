//! Machines that refuse io_uring, or grant too little for it: a core must come up on the
//! best driver left, say why, and serve. Each case runs in a child process, this test
//! binary again with one test named and an environment variable set, because seccomp
//! filters, limits and user ids cannot be taken back.
#![allow(clippy::unwrap_used)]

#[path = "support/runtime.rs"]
mod support;

use std::env;
use std::io;
use std::process::Command;

use hypercache::runtime::{DriverChoice, DriverKind, DriverReport, run_core, spawn};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use support::{pair, read_exactly};

const CHILD: &str = "RUNTIME_REFUSED_CHILD";
const NOBODY: libc::uid_t = 65534;

/// Runs `body` in a child process, as test `name` again.
fn in_child(name: &str, body: impl FnOnce()) {
    if env::var_os(CHILD).is_some() {
        body();
        return;
    }
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr),
    );
    assert!(child.status.success(), "{}\n{out}\n{err}", child.status);
    assert!(
        out.contains("1 passed"),
        "the child ran another test:\n{out}"
    );
}

/// From here on this thread gets `errno` for `io_uring_setup`.
fn refuse_io_uring(errno: i32) {
    let filter = SeccompFilter::new(
        [(libc::SYS_io_uring_setup, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    apply_filter(&program).unwrap();
}

/// Locks at most 64 KiB of memory from here on, as an unprivileged user, if we may.
fn lock_little_memory() {
    let limit = libc::rlimit {
        rlim_cur: 64 << 10,
        rlim_max: 64 << 10,
    };
    // SAFETY: the limit outlives the call, which only reads it; the others take no memory.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit), 0);
        if libc::geteuid() == 0 {
            assert_eq!(libc::setgid(NOBODY), 0);
            assert_eq!(libc::setuid(NOBODY), 0);
        }
    }
}

/// Runs a core that serves an echo, and tells its driver.
fn serve(choice: DriverChoice) -> io::Result<DriverReport> {
    run_core(None, choice, async |report| {
        let (mut here, mut there) = pair().await;
        spawn(async move {
            let bytes = read_exactly(&mut there, 5).await;
            there.write_all(bytes).await.0.unwrap();
        });
        here.write_all(b"hello".to_vec()).await.0.unwrap();
        assert_eq!(read_exactly(&mut here, 5).await, b"hello");
        report
    })
}

fn expect_refusal(errno: i32) {
    refuse_io_uring(errno);
    let os_error = io::Error::from_raw_os_error(errno).to_string();
    let forced = serve(DriverChoice::IoUring).unwrap_err();
    assert!(forced.to_string().contains("io_uring refused"), "{forced}");
    assert!(forced.to_string().contains(&os_error), "{forced}");
    if cfg!(feature = "glommio") {
        assert!(serve(DriverChoice::Auto).is_err());
        return;
    }
    let report = serve(DriverChoice::Auto).unwrap();
    assert_eq!(report.kind, DriverKind::Epoll);
    assert_eq!(
        report.fallback_reason.unwrap(),
        format!("io_uring refused: {os_error}")
    );
    let asked = serve(DriverChoice::Epoll).unwrap();
    assert_eq!(
        asked,
        DriverReport {
            kind: DriverKind::Epoll,
            fallback_reason: None
        }
    );
}

#[test]
fn a_forbidden_io_uring_means_epoll_and_the_reason() {
    in_child("a_forbidden_io_uring_means_epoll_and_the_reason", || {
        expect_refusal(libc::EPERM)
    });
}

#[test]
fn an_absent_io_uring_means_epoll_and_the_reason() {
    in_child("an_absent_io_uring_means_epoll_and_the_reason", || {
        expect_refusal(libc::ENOSYS)
    });
}

#[test]
fn io_uring_without_memory_for_its_rings_means_epoll() {
    in_child("io_uring_without_memory_for_its_rings_means_epoll", || {
        expect_refusal(libc::ENOMEM)
    });
}

#[test]
fn little_lockable_memory_still_gives_a_driver() {
    in_child("little_lockable_memory_still_gives_a_driver", || {
        lock_little_memory();
        if cfg!(feature = "glommio") {
            let refused = serve(DriverChoice::Auto).unwrap_err();
            assert!(
                refused.to_string().to_lowercase().contains("memlock"),
                "{refused}"
            );
            return;
        }
        // Which driver depends on the kernel: since 5.12 rings are not counted as locked.
        let report = serve(DriverChoice::Auto).unwrap();
        assert_eq!(
            report.kind == DriverKind::IoUringTuned,
            report.fallback_reason.is_none()
        );
        println!("{report:?}");
    });
}
