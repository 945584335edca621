//! Inode flags (`chattr`) and the project id, of regular files and directories.
//!
//! Never call this on anything else: on a device node the request goes to the driver.

use std::os::fd::{AsFd, AsRawFd};

use super::raw::{self, Call};
use super::{Errno, Result};

/// Of one inode; `flags` as `FS_IOC_GETFLAGS` gives them, unmasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    pub flags: u32,
    /// 0 where the file system has none.
    pub project: u32,
}

pub const SYNC: u32 = 0x8;
pub const IMMUTABLE: u32 = 0x10;
pub const APPEND: u32 = 0x20;
pub const NODUMP: u32 = 0x40;
pub const NOATIME: u32 = 0x80;
pub const NOCOW: u32 = 0x80_0000;
pub const PROJINHERIT: u32 = 0x2000_0000;

/// The flags that [`peek`] can see. The others need an open descriptor.
pub const PEEKED: u32 = SYNC | IMMUTABLE | APPEND | NODUMP | NOATIME | PROJINHERIT;

/// `FS_XFLAG_*` bits and the flags they stand for.
const XFLAGS: [(u64, u32); 6] = [
    (0x8, IMMUTABLE),
    (0x10, APPEND),
    (0x20, SYNC),
    (0x40, NOATIME),
    (0x80, NODUMP),
    (0x200, PROJINHERIT),
];

const SYS_FILE_GETATTR: libc::c_long = 468;
static FILE_GETATTR: Call = Call::new();

#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

#[repr(C, align(8))]
#[derive(Default)]
struct FileAttr {
    xflags: u64,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
}

const FS_IOC_GETFLAGS: libc::Ioctl = libc::_IOR::<libc::c_long>(b'f' as u32, 1);
const FS_IOC_SETFLAGS: libc::Ioctl = libc::_IOW::<libc::c_long>(b'f' as u32, 2);
const FS_IOC_FSGETXATTR: libc::Ioctl = libc::_IOR::<FsXattr>(b'X' as u32, 31);
const FS_IOC_FSSETXATTR: libc::Ioctl = libc::_IOW::<FsXattr>(b'X' as u32, 32);

/// All flags and the project of an open regular file or directory (not `O_PATH`). `None`: the file system has no flags.
pub fn get(fd: impl AsFd) -> Result<Option<Flags>> {
    let fd = fd.as_fd();
    match read_flags(fd) {
        Ok(flags) => {
            let project = match read_fsxattr(fd) {
                Ok(attributes) => attributes.project,
                Err(e) if unsupported(e) => 0,
                Err(e) => return Err(e),
            };
            Ok(Some(Flags { flags, project }))
        }
        Err(e) if unsupported(e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Without opening the file: the project and those flags that are in [`PEEKED`]. `None`: this kernel (before 6.17)
/// or file system can't: open it and [`get`].
pub fn peek(dir: impl AsFd, name: &[u8]) -> Result<Option<Flags>> {
    let name = raw::component_or_self(name)?;
    let at = if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        libc::AT_SYMLINK_NOFOLLOW
    };
    let mut found = FileAttr::default();
    let done = FILE_GETATTR.attempt(|| {
        raw::with_c_str(name, |name| {
            let dir = dir.as_fd().as_raw_fd();
            // SAFETY: the kernel writes at most the announced size into `found` and reads a C string.
            let r = unsafe {
                libc::syscall(
                    SYS_FILE_GETATTR,
                    dir,
                    name.as_ptr(),
                    &raw mut found,
                    size_of::<FileAttr>(),
                    at,
                )
            };
            raw::check(r)
        })
    });
    match done {
        None => Ok(None),
        Some(Err(e)) if unsupported(e) => Ok(None),
        Some(Err(e)) => Err(e),
        Some(Ok(_)) => {
            let bits = XFLAGS.iter().filter(|(xflag, _)| found.xflags & xflag != 0);
            Ok(Some(Flags {
                flags: bits.fold(0, |all, (_, flag)| all | flag),
                project: found.project,
            }))
        }
    }
}

/// Makes the flags in `mask` be those of `want`, and leaves the others. What the file system refuses is returned
/// as bits (0: all as wanted). Immutable and append-only come last and go first: with them nothing else can be set.
/// `NOCOW` can be set only while a file is empty.
pub fn set_flags(fd: impl AsFd, want: u32, mask: u32) -> Result<u32> {
    let fd = fd.as_fd();
    let old = match read_flags(fd) {
        Ok(old) => old,
        Err(e) if unsupported(e) => return Ok(want & mask),
        Err(e) => return Err(e),
    };
    let new = (old & !mask) | (want & mask);
    if new == old {
        return Ok(0);
    }
    match write_flags(fd, new) {
        Ok(()) => {}
        // One of them is refused: one by one, so that the others stand.
        Err(e) if unsupported(e) => {
            let mut now = old;
            for bit in (0..32)
                .map(|n| 1u32 << n)
                .filter(|bit| (old ^ new) & bit != 0)
            {
                match write_flags(fd, now ^ bit) {
                    Ok(()) => now ^= bit,
                    Err(e) if unsupported(e) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Err(e) => return Err(e),
    }
    // Some file systems accept and forget.
    Ok((read_flags(fd)? ^ want) & mask)
}

/// `EOPNOTSUPP`: the file system has no projects.
pub fn set_project(fd: impl AsFd, project: u32) -> Result<()> {
    let fd = fd.as_fd();
    let mut attributes = match read_fsxattr(fd) {
        Ok(attributes) => attributes,
        Err(e) if unsupported(e) && project == 0 => return Ok(()),
        Err(e) if unsupported(e) => return Err(Errno::OPNOTSUPP),
        Err(e) => return Err(e),
    };
    if attributes.project == project {
        return Ok(());
    }
    attributes.project = project;
    // SAFETY: the kernel reads one `struct fsxattr`.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) };
    match raw::check(r.into()) {
        Ok(_) => Ok(()),
        Err(e) if unsupported(e) => Err(Errno::OPNOTSUPP),
        Err(e) => Err(e),
    }
}

fn unsupported(e: Errno) -> bool {
    matches!(
        e,
        Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS
    )
}

fn read_flags(fd: impl AsFd) -> Result<u32> {
    // The request says "long", the kernel means "int", and some FUSE versions write a long all the same.
    let mut flags = [0u32; 2];
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes four or eight bytes into eight.
    let r = unsafe { libc::ioctl(fd, FS_IOC_GETFLAGS, &raw mut flags) };
    raw::check(r.into())?;
    Ok(flags[0])
}

fn write_flags(fd: impl AsFd, flags: u32) -> Result<()> {
    let flags = [flags, 0];
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads four or eight bytes of eight.
    let r = unsafe { libc::ioctl(fd, FS_IOC_SETFLAGS, &raw const flags) };
    raw::check(r.into()).map(drop)
}

fn read_fsxattr(fd: impl AsFd) -> Result<FsXattr> {
    let mut found = FsXattr::default();
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes one `struct fsxattr`.
    let r = unsafe { libc::ioctl(fd, FS_IOC_FSGETXATTR, &raw mut found) };
    raw::check(r.into())?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::open;
    use mirror_core::types::Meta;

    #[test]
    fn set_read_and_peek_agree() {
        let t = tempfile::tempdir().unwrap();
        let dir = open::dir_at_path(t.path()).unwrap();
        std::fs::write(t.path().join("f"), b"x").unwrap();
        let file = open::file(&dir, b"f").unwrap();
        let Some(before) = get(&file).unwrap() else {
            return println!("skipped: no flags on the temp directory");
        };
        let kept = Meta::FLAGS_KEPT;
        assert_eq!(before.flags & kept, 0);
        let want = NODUMP | NOATIME | SYNC;
        assert_eq!(set_flags(&file, want, kept).unwrap(), 0);
        let now = get(&file).unwrap().unwrap();
        assert_eq!(
            now.flags,
            before.flags | want,
            "the file system's own flags stay"
        );
        if let Some(peeked) = peek(&dir, b"f").unwrap() {
            assert_eq!(
                peeked,
                Flags {
                    flags: want,
                    project: 0
                }
            );
            assert_eq!(peek(&file, b"").unwrap(), Some(peeked));
        } else {
            println!("skipped peek: not in this kernel");
        }
        if rustix::process::geteuid().is_root() {
            assert_eq!(set_flags(&file, want | IMMUTABLE, kept).unwrap(), 0);
            assert_eq!(
                std::fs::write(t.path().join("f"), b"y")
                    .unwrap_err()
                    .raw_os_error(),
                Some(libc::EPERM)
            );
        }
        assert_eq!(set_flags(&file, 0, kept).unwrap(), 0);
        assert_eq!(get(&file).unwrap(), Some(before));
        // A directory flag that is in no extended set, and one that ext4 refuses.
        const DIRSYNC: u32 = 0x1_0000;
        assert_eq!(set_flags(&dir, DIRSYNC, kept).unwrap(), 0);
        assert_eq!(get(&dir).unwrap().unwrap().flags & kept, DIRSYNC);
        assert_eq!(
            peek(&dir, b"").unwrap().map_or(0, |p| p.flags),
            0,
            "peek can't see it, and says so by PEEKED"
        );
        let refused = set_flags(&dir, NOCOW | NODUMP, kept).unwrap();
        assert!(refused == 0 || refused == NOCOW, "{refused:x}");
        assert_eq!(get(&dir).unwrap().unwrap().flags & NODUMP, NODUMP);
    }

    #[test]
    fn a_file_system_without_flags_says_so() {
        let dir = open::dir_at_path("/proc/sys/kernel".as_ref()).unwrap();
        assert_eq!(get(&dir).unwrap(), None);
        assert_eq!(set_flags(&dir, NODUMP, NODUMP | SYNC).unwrap(), NODUMP);
        assert_eq!(set_project(&dir, 0), Ok(()));
        assert_eq!(set_project(&dir, 7), Err(Errno::OPNOTSUPP));
    }
}
