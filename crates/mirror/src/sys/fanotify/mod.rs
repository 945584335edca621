//! fanotify: one mark on a file system tells of every change in it, with file handles and names.
//!
//! What the kernel tells is a hint where to look. Masks merge and lose order: conclude nothing from them but
//! "look at these names, and at this object".

mod record;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};

#[cfg(test)]
pub use self::record::written;
pub use self::record::{Fsid, HandleRef, Malformed, Record, Records};
use super::{Errno, Result, raw};

/// Bits of [`Record::mask`].
pub mod mask {
    pub const MODIFY: u64 = libc::FAN_MODIFY;
    pub const ATTRIB: u64 = libc::FAN_ATTRIB;
    pub const CLOSE_WRITE: u64 = libc::FAN_CLOSE_WRITE;
    pub const CREATE: u64 = libc::FAN_CREATE;
    pub const DELETE: u64 = libc::FAN_DELETE;
    pub const RENAME: u64 = libc::FAN_RENAME;
    /// In place of `RENAME` on kernels before 5.17.
    pub const MOVED_FROM: u64 = libc::FAN_MOVED_FROM;
    pub const MOVED_TO: u64 = libc::FAN_MOVED_TO;
    pub const OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;
    /// The object is a directory.
    pub const ONDIR: u64 = libc::FAN_ONDIR;
}

const EVENTS: u64 =
    mask::CREATE | mask::DELETE | mask::MODIFY | mask::ATTRIB | mask::CLOSE_WRITE | mask::ONDIR;

/// How many events wait before the newest are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// As many as memory holds: a reader that stops eats its own memory. Needs `CAP_SYS_ADMIN`.
    Unlimited,
    /// `fs.fanotify.max_queued_events` as it is when the group is made.
    Limited,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub queue: Queue,
    /// A descriptor of the process with every record: exact, and about 1 us dearer.
    pub pidfd: bool,
    /// Do without object handles and `RENAME` even where the kernel has them, as before 5.17.
    pub plain: bool,
}

/// A queue of records of the file systems marked for it.
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
    /// The kernel tells the object's handle with every record, and renames as one.
    pub has_target: bool,
    pub has_pidfd: bool,
}

impl Group {
    pub fn new(queue: Queue) -> Result<Group> {
        Group::with(Options {
            queue,
            pidfd: false,
            plain: false,
        })
    }

    /// `EPERM`: no right to an unlimited queue; `EMFILE`: too many groups of this user; `ENOSYS`: not in this
    /// kernel; `EINVAL`: before Linux 5.9.
    pub fn with(options: Options) -> Result<Group> {
        let base = libc::FAN_CLASS_NOTIF
            | libc::FAN_NONBLOCK
            | libc::FAN_CLOEXEC
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_DFID_NAME
            | if options.queue == Queue::Unlimited {
                libc::FAN_UNLIMITED_QUEUE
            } else {
                0
            };
        // What the kernel may lack, best first.
        for has_pidfd in [true, false] {
            for has_target in [true, false] {
                if (has_pidfd && !options.pidfd) || (has_target && options.plain) {
                    continue;
                }
                let pidfd = if has_pidfd { libc::FAN_REPORT_PIDFD } else { 0 };
                let target = if has_target {
                    libc::FAN_REPORT_TARGET_FID
                } else {
                    0
                };
                // SAFETY: takes integers only.
                let r =
                    unsafe { libc::fanotify_init(base | pidfd | target, libc::O_RDONLY as u32) };
                match raw::check(r.into()) {
                    Ok(fd) => {
                        // SAFETY: the kernel just gave us this descriptor, nobody else owns it.
                        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
                        return Ok(Group {
                            fd,
                            has_target,
                            has_pidfd,
                        });
                    }
                    Err(Errno::INVAL) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Err(Errno::INVAL)
    }

    /// Everything that changes on the file system of the directory `dir`, in and out of any tree and in every
    /// namespace, is told from now on. The mark dies silently with the file system's last mount, and keeps nothing
    /// mounted. Why not: [`explain`].
    pub fn mark_filesystem(&self, dir: impl AsFd) -> Result<()> {
        self.mark(libc::FAN_MARK_ADD, dir.as_fd())
    }

    pub fn unmark_filesystem(&self, dir: impl AsFd) -> Result<()> {
        self.mark(libc::FAN_MARK_REMOVE, dir.as_fd())
    }

    fn mark(&self, act: u32, dir: BorrowedFd<'_>) -> Result<()> {
        let renames = if self.has_target {
            mask::RENAME
        } else {
            mask::MOVED_FROM | mask::MOVED_TO
        };
        let flags = act | libc::FAN_MARK_FILESYSTEM | libc::FAN_MARK_ONLYDIR;
        // SAFETY: the path is a C string; the rest are integers.
        let r = unsafe {
            libc::fanotify_mark(
                self.fd.as_raw_fd(),
                flags,
                EVENTS | renames,
                dir.as_raw_fd(),
                c".".as_ptr(),
            )
        };
        raw::check(r.into()).map(drop)
    }

    /// Waits until there is something to read. False: `timeout` passed (`None`: never), or a signal came.
    pub fn poll(&self, timeout: Option<&Timespec>) -> Result<bool> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The records waiting now, as many as fit; none when there are none. 256 KiB is a good size, 4 KiB the least.
    pub fn read<'a>(&self, buffer: &'a mut [u8]) -> Result<Records<'a>> {
        let length = self.fill(buffer)?;
        let filled = buffer.get(..length).ok_or(Errno::IO)?;
        // SAFETY: the kernel just wrote these bytes for us, and the pidfds in them are ours.
        Ok(unsafe { Records::from_kernel(filled) })
    }

    /// Likewise as bytes, to be passed on. Not for a group with pidfds.
    pub fn read_bytes(&self, buffer: &mut [u8]) -> Result<usize> {
        if self.has_pidfd {
            return Err(Errno::INVAL);
        }
        self.fill(buffer)
    }

    fn fill(&self, buffer: &mut [u8]) -> Result<usize> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer)) {
            Err(Errno::AGAIN) => Ok(0),
            done => done,
        }
    }

    /// How many records wait.
    pub fn pending(&self) -> Result<u64> {
        // The kernel counts the fixed part of each, whatever comes with it.
        const RECORD_BYTES: u64 = 24;
        Ok(rustix::io::ioctl_fionread(&self.fd)? / RECORD_BYTES)
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why a file system can't be watched, for the line at start.
pub fn explain(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => "fanotify needs CAP_SYS_ADMIN",
        Errno::NOSYS => "this kernel has no fanotify",
        Errno::INVAL => "this kernel's fanotify is too old (5.9 is needed)",
        Errno::XDEV => "the mount shows a btrfs subvolume, which fanotify can't mark",
        Errno::NODEV => "the file system has no identity that fanotify could report",
        Errno::OPNOTSUPP => "the file system has no file handles that fanotify could report",
        Errno::MFILE => "too many fanotify groups of this user",
        Errno::NOSPC => "too many fanotify marks of this user",
        _ => "fanotify was refused",
    }
}

/// The identity of a file system as records tell it.
pub fn fsid(fd: impl AsFd) -> Result<Fsid> {
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the kernel fills one `struct statfs`; all zeros is a valid one too.
    let found = unsafe {
        raw::check(libc::fstatfs(fd.as_fd().as_raw_fd(), found.as_mut_ptr()).into())?;
        found.assume_init()
    };
    // SAFETY: `fsid_t` is two plain ints which libc keeps private.
    Ok(Fsid(unsafe {
        std::mem::transmute::<libc::fsid_t, [i32; 2]>(found.f_fsid)
    }))
}
