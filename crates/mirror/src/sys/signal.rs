//! Signals as something to poll for, and the one to ignore.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Errno, Result, raw};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Receives SIGTERM, SIGINT and SIGHUP as records instead of as interruptions.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the three signals for this thread and those it starts from now on, so call it first thing in `main`.
    /// Programs started with `std::process::Command` have them blocked, too: [`super::polite::on_start`] unblocks them.
    pub fn new() -> Result<Signals> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises the set; the others read it. Blocking signals runs no code of ours.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) {
                0 => {}
                code => return Err(Errno::from_raw_os_error(code)),
            }
            let fd = raw::check(
                libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into(),
            )?;
            Ok(Signals {
                fd: OwnedFd::from_raw_fd(fd as i32),
            })
        }
    }

    /// The next one that waits, if any; poll the descriptor for reading to wait for it.
    pub fn take(&self) -> Result<Option<Signal>> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut info)) {
            Ok(_) => {
                let number = info.first_chunk().map(|first| u32::from_ne_bytes(*first));
                Ok(Some(if number == Some(libc::SIGHUP as u32) {
                    Signal::Reload
                } else {
                    Signal::Stop
                }))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A peer that hangs up is an error of the write (`EPIPE`), not our end. The Rust runtime does this for programs;
/// a library can't rely on it.
pub fn ignore_pipe() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_come_one_by_one() {
        // A thread of its own: the block must not leak into other tests.
        std::thread::spawn(|| {
            let signals = Signals::new().unwrap();
            assert_eq!(signals.take().unwrap(), None);
            for (number, want) in [
                (libc::SIGHUP, Signal::Reload),
                (libc::SIGTERM, Signal::Stop),
                (libc::SIGINT, Signal::Stop),
            ] {
                // SAFETY: to this thread, which has it blocked.
                unsafe { libc::pthread_kill(libc::pthread_self(), number) };
                assert_eq!(signals.take().unwrap(), Some(want));
                assert_eq!(signals.take().unwrap(), None);
            }
        })
        .join()
        .unwrap();
    }
}
