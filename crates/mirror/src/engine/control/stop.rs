//! The flag that asks a run to end cleanly: by signal, by `stop`, or by a test.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Clones are one flag. Once asked for, a stop is never taken back.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Readable for ever once a stop was asked for.
    fd: Arc<OwnedFd>,
}

impl Stop {
    /// A flag of its own.
    pub fn new() -> Stop {
        match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
            Ok(fd) => Stop { fd: Arc::new(fd) },
            Err(e) => panic!("no descriptor for the stop flag: {e}"),
        }
    }

    pub fn request(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    pub fn requested(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Sleeps at most so long; true: a stop was asked for.
    pub fn wait(&self, at_most: Duration) -> bool {
        let time = Timespec {
            tv_sec: at_most.as_secs().min(1 << 30) as i64,
            tv_nsec: i64::from(at_most.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&time)), Ok(n) if n > 0)
    }

    /// To poll along with other descriptors: readable once a stop was asked for. Never read from it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Default for Stop {
    fn default() -> Stop {
        Stop::new()
    }
}
