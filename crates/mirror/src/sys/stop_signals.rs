//! Signals that ask the program to end, turned into one readable descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Where the handler writes; -1: nowhere yet.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);

/// From now on SIGTERM, SIGINT and SIGHUP add one to this eventfd instead of killing; a second SIGINT kills as
/// usual. A signal that was ignored when we were started (`nohup`) stays ignored. `fd` must live as long as the process.
pub fn stop_on_signals(fd: BorrowedFd<'static>) -> io::Result<()> {
    STOP_FD.store(fd.as_raw_fd(), Ordering::SeqCst);
    for (signal, flags) in [
        (libc::SIGTERM, libc::SA_RESTART),
        (libc::SIGHUP, libc::SA_RESTART),
        (libc::SIGINT, libc::SA_RESTART | libc::SA_RESETHAND),
    ] {
        // SAFETY: an all-zero `sigaction` is a valid value of this plain C struct; the calls get valid pointers to it.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &mut old) != 0 {
                return Err(io::Error::last_os_error());
            }
            if old.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = on_stop as *const () as usize;
            new.sa_flags = flags;
            if libc::sigaction(signal, &new, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Only what a signal handler may do: one write, errno put back.
extern "C" fn on_stop(_signal: libc::c_int) {
    let fd = STOP_FD.load(Ordering::SeqCst);
    let one = 1u64.to_ne_bytes();
    // SAFETY: `write` and the errno location are safe in a handler; the buffer lives through the call, and a bad
    // descriptor is only an error.
    unsafe {
        let errno = *libc::__errno_location();
        let _ = libc::write(fd, one.as_ptr().cast(), one.len());
        *libc::__errno_location() = errno;
    }
}
