//! Epoll, as the load generators use it: sockets known by a number, level-triggered.

use std::io;

/// Events taken in one call.
const EVENTS_MAX: usize = 128;

/// A set of sockets waited for together.
pub struct Epoll(i32);

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no arguments to get wrong; the result is checked.
        match unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(Self(fd)),
        }
    }

    /// Waits for what can be read from this socket too.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn add(&self, fd: i32, index: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, index, libc::EPOLLIN)
    }

    /// Whether to wait for room to write to a socket of the set as well.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn await_room(&self, fd: i32, index: usize, wanted: bool) -> io::Result<()> {
        let room = if wanted { libc::EPOLLOUT } else { 0 };
        self.control(libc::EPOLL_CTL_MOD, fd, index, libc::EPOLLIN | room)
    }

    fn control(&self, operation: i32, fd: i32, index: usize, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: index as u64,
        };
        // SAFETY: both descriptors are open and the event outlives the call.
        match unsafe { libc::epoll_ctl(self.0, operation, fd, &mut event) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Waits so many milliseconds at most, and calls `ready` for each socket with something to
    /// do until one fails; how many there were.
    ///
    /// # Errors
    ///
    /// When the system refuses, or with what `ready` failed with.
    pub fn wait(
        &self,
        timeout_ms: i32,
        mut ready: impl FnMut(usize) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let count = loop {
            // SAFETY: the kernel writes at most as many events as it is told there is room for.
            let count = unsafe {
                libc::epoll_wait(self.0, events.as_mut_ptr(), EVENTS_MAX as i32, timeout_ms)
            };
            match usize::try_from(count) {
                Ok(count) => break count,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        };
        events[..count]
            .iter()
            .try_for_each(|event| ready(event.u64 as usize))?;
        Ok(count)
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // SAFETY: ours, open, and not used afterwards.
        unsafe { libc::close(self.0) };
    }
}
