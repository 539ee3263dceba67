//! What process 1 of a PID namespace owes its other processes: whoever loses its parent
//! becomes its child, and remains in the process table, as a zombie, until it is waited for.
//!
//! In an image of one file the node is process 1, and what an operator or a probe runs beside
//! it may leave children behind. Never: waiting where the node is another process. It starts
//! none itself, so whatever children it has then are somebody else's to wait for.

use rustix::io::Errno;
use rustix::process::{WaitOptions, getpid, wait};

/// Whether orphans become children of this process.
pub fn adopts_orphans() -> bool {
    getpid().is_init()
}

/// Waits for the children that have ended. Returns when none is left that has.
pub fn reap_orphans() {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            // The others still run, or (ECHILD) there are none.
            Ok(None) | Err(_) => return,
        }
    }
}
