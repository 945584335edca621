//! Who did it, as far as `/proc` still tells.

use std::os::fd::{AsFd, BorrowedFd};

use mirror_core::record::Who;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, readlinkat};

/// A path longer than this is cut off as unknown.
const EXE_BYTES_MAX: usize = 4096;

/// What is known of a process now. It may be gone (then only the pid is told), or, without a pidfd, be another one
/// that took the number meanwhile: ask soon after the event. With a pidfd it is this one or nothing.
pub fn of(pid: u32, pidfd: Option<BorrowedFd<'_>>) -> Who {
    let exe = readlinkat(CWD, format!("/proc/{pid}/exe"), Vec::new())
        .ok()
        .map(|path| path.into_bytes());
    let uid = std::fs::read(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|status| effective_uid(&status));
    if pidfd.is_some_and(is_gone) {
        return Who {
            pid: Some(pid),
            uid: None,
            exe: None,
        };
    }
    let exe = exe
        .filter(|path| path.len() <= EXE_BYTES_MAX)
        .map(Vec::into_boxed_slice);
    Who {
        pid: Some(pid),
        uid,
        exe,
    }
}

/// The second number of the `Uid:` line.
fn effective_uid(status: &[u8]) -> Option<u32> {
    let line = status
        .split(|&b| b == b'\n')
        .find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line)
        .ok()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// A pidfd is readable once its process has ended.
fn is_gone(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    !matches!(
        rustix::event::poll(&mut fds, Some(&Timespec::default())),
        Ok(0)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_this_process() {
        let who = of(std::process::id(), None);
        assert_eq!(who.uid, Some(rustix::process::geteuid().as_raw()));
        let exe = std::env::current_exe().unwrap();
        assert_eq!(who.exe.as_deref(), Some(exe.as_os_str().as_encoded_bytes()));
    }

    #[test]
    fn a_process_that_is_gone_is_only_a_number() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(
            of(pid, None),
            Who {
                pid: Some(pid),
                uid: None,
                exe: None
            }
        );
    }

    #[test]
    fn reads_the_effective_uid() {
        assert_eq!(
            effective_uid(b"Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\n"),
            Some(2)
        );
        assert_eq!(effective_uid(b"Name:\tUid:\n"), None);
        assert_eq!(effective_uid(b"Uid:\t1\n"), None);
    }
}
