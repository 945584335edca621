//! The flag that asks a run to end cleanly: by signal, by `stop`, or by a test.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// The process's own flag, once signals are turned into it; kept for ever, the handler writes to it.
static ON_SIGNALS: OnceLock<Stop> = OnceLock::new();

/// Clones are one flag. Once asked for, a stop is never taken back.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Readable for ever once a stop was asked for.
    fd: Arc<OwnedFd>,
}

impl Stop {
    /// A flag of its own. Panics when the process has no descriptor left: only made at start.
    pub fn new() -> Stop {
        match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
            Ok(fd) => Stop { fd: Arc::new(fd) },
            Err(e) => panic!("no descriptor for the stop flag: {e}"),
        }
    }

    /// The flag that SIGTERM, SIGINT and SIGHUP raise from now on. A second SIGINT kills.
    pub fn on_signals() -> io::Result<Stop> {
        let stop = ON_SIGNALS.get_or_init(Stop::new);
        crate::sys::stop_signals::stop_on_signals(stop.fd.as_fd())?;
        Ok(stop.clone())
    }

    pub fn request(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    pub fn requested(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Sleeps at most so long (a signal may cut it short); true: a stop was asked for.
    pub fn wait(&self, at_most: Duration) -> bool {
        let look = |at_most| {
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            poll(&mut fds, Some(&timespec(at_most)))
        };
        match look(at_most) {
            // Cut short, perhaps by the very signal that asked.
            Err(rustix::io::Errno::INTR) => matches!(look(Duration::ZERO), Ok(1..)),
            looked => matches!(looked, Ok(1..)),
        }
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

/// At most some thirty years.
pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(1 << 30) as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_are_one_flag() {
        let stop = Stop::new();
        let other = stop.clone();
        assert!(!other.requested());
        stop.request();
        stop.request();
        assert!(other.requested() && other.wait(Duration::from_secs(10)) && stop.requested());
        assert!(!Stop::new().requested());
    }
}
