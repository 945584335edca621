//! What changes a copy: single components relative to directory descriptors, nothing followed, nothing half done.
//!
//! Wrapped here is only what is easy to get wrong. Take from `rustix::fs` as they are: `fsync`, `fdatasync`,
//! `syncfs`, `ftruncate`, `fchmod`, `fchown` (both not on `O_PATH`), `copy_file_range`.
//! What is new inherits from its directory: a default ACL, the group (set-gid directory), the project and some flags.
//! Make it in a directory of our own, or set all of it, zero and "none" too.
//! Order for an inode: chown (clears set-id bits and capabilities), chmod, xattrs and ACLs (an ACL may change the
//! group bits: chmod again when they differ), times, immutable and append-only flags last.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mirror_core::types::Time;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    UTIME_OMIT, Uid,
};

use super::raw::{Call, component, component_or_self};
use super::{Errno, Result, raw};

/// A new empty file, 0600, open for reading and writing. `EEXIST`: the name is taken, by whatever.
pub fn create_file(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, component(name)?, flags, Mode::RUSR | Mode::WUSR)
}

/// An existing regular file for writing in place. Look at it (`fstat`) before writing: it may be anything but a symlink.
pub fn open_for_writing(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags =
        OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, component(name)?, flags, Mode::empty())
}

/// A new file without a name, 0600, for [`link_fd`]; it vanishes with its last descriptor.
/// `None`: this file system has no such files.
pub fn create_unnamed(dir: impl AsFd) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, c".", flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(Some(fd)),
        // ISDIR, NOENT: what kernels without it make of the flag.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A new directory, 0700.
pub fn create_dir(dir: impl AsFd, name: &[u8]) -> Result<()> {
    rustix::fs::mkdirat(dir, component(name)?, Mode::RWXU)
}

/// A new symlink; its target is 1 to 4095 bytes, of any kind.
pub fn create_symlink(dir: impl AsFd, name: &[u8], target: &[u8]) -> Result<()> {
    rustix::fs::symlinkat(target, dir, component(name)?)
}

/// A new FIFO, socket or device node, 0600. `rdev` is major and minor, of devices only.
/// `EPERM`: no `CAP_MKNOD`, or the file system forbids it.
pub fn create_node(dir: impl AsFd, name: &[u8], kind: FileType, rdev: (u32, u32)) -> Result<()> {
    let name = component(name)?;
    let device = rustix::fs::makedev(rdev.0, rdev.1);
    match kind {
        FileType::Fifo | FileType::Socket => {
            rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, 0)
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device)
        }
        _ => Err(Errno::INVAL),
    }
}

/// One more name for what a name stands for (a symlink itself, too). `EMLINK`: it has as many as it can have.
pub fn link(from: impl AsFd, from_name: &[u8], to: impl AsFd, to_name: &[u8]) -> Result<()> {
    rustix::fs::linkat(
        from,
        component(from_name)?,
        to,
        component(to_name)?,
        AtFlags::empty(),
    )
}

/// A name for an open file, also one of [`create_unnamed`] or opened by handle. `ENOENT`: its last name is gone.
pub fn link_fd(file: impl AsFd, dir: impl AsFd, name: &[u8]) -> Result<()> {
    let name = component(name)?;
    match rustix::fs::linkat(&file, c"", &dir, name, AtFlags::EMPTY_PATH) {
        // Without CAP_DAC_READ_SEARCH the kernel says "no such file"; the path through /proc needs no right.
        Err(Errno::NOENT | Errno::PERM) => {
            let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
            rustix::fs::linkat(CWD, path.as_str(), dir, name, AtFlags::SYMLINK_FOLLOW)
        }
        done => done,
    }
}

/// Renames over whatever has the name; of two names of one inode this does nothing, successfully.
pub fn rename(from: impl AsFd, from_name: &[u8], to: impl AsFd, to_name: &[u8]) -> Result<()> {
    rustix::fs::renameat(from, component(from_name)?, to, component(to_name)?)
}

/// `EEXIST`: the name is taken. `EINVAL`: the file system can't promise that.
pub fn rename_noreplace(
    from: impl AsFd,
    from_name: &[u8],
    to: impl AsFd,
    to_name: &[u8],
) -> Result<()> {
    let (from_name, to_name) = (component(from_name)?, component(to_name)?);
    rustix::fs::renameat_with(from, from_name, to, to_name, RenameFlags::NOREPLACE)
}

/// Swaps two names in one step. `ENOENT`: one is missing. `EINVAL`: the file system can't.
pub fn exchange(a: impl AsFd, a_name: &[u8], b: impl AsFd, b_name: &[u8]) -> Result<()> {
    rustix::fs::renameat_with(
        a,
        component(a_name)?,
        b,
        component(b_name)?,
        RenameFlags::EXCHANGE,
    )
}

/// Removes a name of anything but a directory (`EISDIR`).
pub fn unlink(dir: impl AsFd, name: &[u8]) -> Result<()> {
    rustix::fs::unlinkat(dir, component(name)?, AtFlags::empty())
}

/// Removes an empty directory.
pub fn remove_dir(dir: impl AsFd, name: &[u8]) -> Result<()> {
    rustix::fs::unlinkat(dir, component(name)?, AtFlags::REMOVEDIR)
}

/// Owner and group by number, of a name or (empty name) of any descriptor. Clears set-id bits and capabilities.
pub fn set_owner(dir: impl AsFd, name: &[u8], uid: u32, gid: u32) -> Result<()> {
    // The kernel takes the highest number as "leave it", so it belongs to nobody.
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    rustix::fs::chownat(
        dir,
        component_or_self(name)?,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        flags,
    )
}

static FCHMODAT2: Call = Call::new();

/// Whether modes are set without a path through `/proc`.
pub(super) fn has_fchmodat2() -> bool {
    let none = FCHMODAT2.attempt(|| {
        // SAFETY: the kernel reads an empty C string; no descriptor has this number.
        raw::check(unsafe { libc::syscall(libc::SYS_fchmodat2, -1, c"".as_ptr(), 0, 0) }).map(drop)
    });
    none.is_some()
}

/// Permission, set-id and sticky bits, of a name or (empty name) of any descriptor. A symlink has none to set: `EOPNOTSUPP`.
pub fn set_mode(dir: impl AsFd, name: &[u8], mode: u16) -> Result<()> {
    let name = component_or_self(name)?;
    let mode = u32::from(mode & 0o7777);
    let (fd, flags) = (
        dir.as_fd().as_raw_fd(),
        libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH,
    );
    let done = FCHMODAT2.attempt(|| {
        raw::with_c_str(name, |name| {
            // SAFETY: the kernel reads a C string.
            raw::check(unsafe {
                libc::syscall(libc::SYS_fchmodat2, fd, name.as_ptr(), mode, flags)
            })
            .map(drop)
        })
    });
    done.unwrap_or_else(|| {
        // Before Linux 6.6: hold the inode, see that it is no symlink, then go through /proc.
        let held;
        let held = if name.is_empty() {
            dir.as_fd()
        } else {
            held = super::open::path(&dir, name)?;
            held.as_fd()
        };
        if super::stat::fstat(held)?.file_type().is_symlink() {
            return Err(Errno::OPNOTSUPP);
        }
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        rustix::fs::chmodat(
            CWD,
            path.as_str(),
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )
    })
}

/// Modification time to the nanosecond, of a name (symlinks too) or (empty name) of any descriptor; the access time
/// stays. What the file system can't hold it rounds down or clamps: compare after setting.
pub fn set_mtime(dir: impl AsFd, name: &[u8], mtime: Time) -> Result<()> {
    if mtime.nanos >= 1_000_000_000 {
        return Err(Errno::INVAL);
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanos.into(),
        },
    };
    let name = component_or_self(name)?;
    if !name.is_empty() {
        return rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW);
    }
    match rustix::fs::utimensat(&dir, c"", &times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8.
        Err(Errno::INVAL) => rustix::fs::futimens(dir, &times),
        done => done,
    }
}

/// Makes a hole; what it covered reads as zeros. The length of the file stays.
/// False: this file system has no holes, write zeros.
pub fn punch_hole(file: impl AsFd, start: u64, bytes: u64) -> Result<bool> {
    if bytes == 0 {
        return Ok(true);
    }
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file, mode, start, bytes)) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes `to` share all blocks of `from`. False: they can't share; copy.
pub fn clone_content(from: impl AsFd, to: impl AsFd) -> Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Copies a range to the same place in another file, in the kernel, sharing blocks where it can. Returns how many
/// bytes were copied: fewer when `from` ends early, or when the kernel can't do this pair; read and write the rest.
pub fn copy_range(from: impl AsFd, to: impl AsFd, start: u64, bytes: u64) -> Result<u64> {
    let mut done = 0;
    while done < bytes {
        let (mut at_from, mut at_to) = (start + done, start + done);
        let step = usize::try_from(bytes - done)
            .unwrap_or(usize::MAX)
            .min(1 << 30);
        match rustix::fs::copy_file_range(&from, Some(&mut at_from), &to, Some(&mut at_to), step) {
            Ok(0) => break,
            Ok(copied) => done += copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub bytes_total: u64,
    /// For us: what is reserved for root does not count, whoever we are.
    pub bytes_free: u64,
    /// `None`: the file system makes inodes as it needs them (btrfs).
    pub inodes_free: Option<u64>,
    pub read_only: bool,
}

pub fn space(fd: impl AsFd) -> Result<Space> {
    let found = rustix::fs::fstatvfs(fd)?;
    Ok(Space {
        bytes_total: found.f_blocks.saturating_mul(found.f_frsize),
        bytes_free: found.f_bavail.saturating_mul(found.f_frsize),
        inodes_free: (found.f_files > 0).then_some(found.f_favail),
        read_only: found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

/// The target of a symlink, all of it. `EINVAL`: it is something else.
pub fn read_symlink(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    rustix::fs::readlinkat(dir, component_or_self(name)?, Vec::new()).map(CString::into_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{open, stat};
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    fn places() -> [tempfile::TempDir; 2] {
        [
            tempfile::tempdir().unwrap(),
            tempfile::tempdir_in("/dev/shm").unwrap(),
        ]
    }
    fn opened(path: &Path) -> OwnedFd {
        open::dir_at_path(path).unwrap()
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused_by_every_call() {
        let t = tempfile::tempdir().unwrap();
        let d = opened(t.path());
        for bad in [&b".."[..], b".", b"", b"a/b", b"a\0b"] {
            let all = [
                create_file(&d, bad).map(drop),
                open_for_writing(&d, bad).map(drop),
                create_dir(&d, bad),
                create_symlink(&d, bad, b"x"),
                create_node(&d, bad, FileType::Fifo, (0, 0)),
                link(&d, bad, &d, b"n"),
                link(&d, b"n", &d, bad),
                link_fd(&d, &d, bad),
                rename(&d, bad, &d, b"n"),
                rename_noreplace(&d, b"n", &d, bad),
                exchange(&d, bad, &d, b"n"),
                unlink(&d, bad),
                remove_dir(&d, bad),
            ];
            assert_eq!(all, [Err(Errno::INVAL); 13], "{bad:?}");
            if !bad.is_empty() {
                assert_eq!(set_owner(&d, bad, 0, 0), Err(Errno::INVAL));
                assert_eq!(set_mode(&d, bad, 0o700), Err(Errno::INVAL));
                assert_eq!(set_mtime(&d, bad, Time::default()), Err(Errno::INVAL));
                assert_eq!(read_symlink(&d, bad), Err(Errno::INVAL));
            }
        }
    }

    #[test]
    fn names_come_move_swap_and_go() {
        for t in places() {
            let d = opened(t.path());
            create_file(&d, b"a").unwrap();
            assert_eq!(create_file(&d, b"a").unwrap_err(), Errno::EXIST);
            create_dir(&d, b"b").unwrap();
            let (a, b) = (
                stat::statx(&d, b"a").unwrap().ino,
                stat::statx(&d, b"b").unwrap().ino,
            );
            assert_eq!(rename_noreplace(&d, b"a", &d, b"b"), Err(Errno::EXIST));
            exchange(&d, b"a", &d, b"b").unwrap();
            assert_eq!(stat::statx(&d, b"a").unwrap().ino, b);
            assert_eq!(exchange(&d, b"a", &d, b"none"), Err(Errno::NOENT));
            rename_noreplace(&d, b"b", &d, b"c").unwrap();
            link(&d, b"c", &d, b"c2").unwrap();
            rename(&d, b"c", &d, b"c2").unwrap();
            assert_eq!(
                stat::statx(&d, b"c").unwrap().ino,
                a,
                "renaming onto a twin does nothing"
            );
            assert!(unlink(&d, b"a").is_err());
            remove_dir(&d, b"a").unwrap();
            assert_eq!(remove_dir(&d, b"c").unwrap_err(), Errno::NOTDIR);
            unlink(&d, b"c").unwrap();
            unlink(&d, b"c2").unwrap();
        }
    }

    #[test]
    fn symlinks_hold_any_bytes_and_are_never_followed() {
        for t in places() {
            let d = opened(t.path());
            let target = [b"/\xff\n".to_vec(), vec![b'x'; 4000]].concat();
            create_symlink(&d, b"l", &target).unwrap();
            assert_eq!(read_symlink(&d, b"l").unwrap(), target);
            create_file(&d, b"f").unwrap();
            create_symlink(&d, b"to_f", b"f").unwrap();
            let before = stat::statx(&d, b"f").unwrap();
            assert_eq!(open_for_writing(&d, b"to_f").unwrap_err(), Errno::LOOP);
            let time = Time {
                seconds: -5,
                nanos: 123_456_789,
            };
            set_mtime(&d, b"to_f", time).unwrap();
            assert_eq!(stat::statx(&d, b"to_f").unwrap().mtime, time);
            assert_eq!(set_mode(&d, b"to_f", 0o600).unwrap_err(), Errno::OPNOTSUPP);
            link(&d, b"to_f", &d, b"to_f2").unwrap();
            assert!(stat::statx(&d, b"to_f2").unwrap().file_type().is_symlink());
            if rustix::process::geteuid().is_root() {
                set_owner(&d, b"to_f", 12, 34).unwrap();
                let link = stat::statx(&d, b"to_f").unwrap();
                assert_eq!((link.uid, link.gid), (12, 34));
            }
            assert_eq!(stat::statx(&d, b"f").unwrap(), before);
        }
    }

    #[test]
    fn metadata_by_name_and_by_descriptor() {
        for t in places() {
            let d = opened(t.path());
            let file = create_file(&d, b"f").unwrap();
            create_dir(&d, b"dir").unwrap();
            create_node(&d, b"p", FileType::Fifo, (0, 0)).unwrap();
            create_node(&d, b"s", FileType::Socket, (0, 0)).unwrap();
            let time = Time {
                seconds: 1_000_000_007,
                nanos: 999_999_999,
            };
            for name in [&b"f"[..], b"dir", b"p", b"s"] {
                let atime = stat::statx(&d, name).unwrap().atime;
                set_mode(&d, name, 0o7751).unwrap();
                set_mtime(&d, name, time).unwrap();
                let now = stat::statx(&d, name).unwrap();
                assert_eq!(
                    (now.permissions(), now.mtime, now.atime),
                    (0o7751, time, atime)
                );
                // The descriptor itself, opened only as a place.
                let path = open::path(&d, name).unwrap();
                set_mode(&path, b"", 0o640).unwrap();
                set_mtime(&path, b"", Time::default()).unwrap();
                let now = stat::fstat(&path).unwrap();
                assert_eq!((now.permissions(), now.mtime), (0o640, Time::default()));
            }
            set_mode(&file, b"", 0o600).unwrap();
            set_mtime(&file, b"", time).unwrap();
            assert_eq!(stat::fstat(&file).unwrap().mtime, time);
            assert_eq!(
                set_mtime(
                    &file,
                    b"",
                    Time {
                        seconds: 0,
                        nanos: 1_000_000_000
                    }
                ),
                Err(Errno::INVAL)
            );
            assert_eq!(set_owner(&file, b"", u32::MAX, 0), Err(Errno::INVAL));
        }
    }

    #[test]
    fn device_nodes_keep_their_numbers() {
        let t = tempfile::tempdir().unwrap();
        let d = opened(t.path());
        for (name, kind) in [
            (&b"c"[..], FileType::CharacterDevice),
            (b"b", FileType::BlockDevice),
        ] {
            match create_node(&d, name, kind, (4095, 70_000)) {
                Err(Errno::PERM) => return println!("skipped: may not make device nodes"),
                done => done.unwrap(),
            }
            let stat = stat::statx(&d, name).unwrap();
            assert_eq!((stat.file_type(), stat.rdev), (kind, (4095, 70_000)));
        }
        assert_eq!(
            create_node(&d, b"x", FileType::RegularFile, (0, 0)),
            Err(Errno::INVAL)
        );
    }

    #[test]
    fn an_unnamed_file_gets_a_name() {
        for t in places() {
            let d = opened(t.path());
            let Some(file) = create_unnamed(&d).unwrap() else {
                println!("skipped: no unnamed files here");
                continue;
            };
            link_fd(&file, &d, b"n").unwrap();
            assert_eq!(link_fd(&file, &d, b"n").unwrap_err(), Errno::EXIST);
            link_fd(&file, &d, b"m").unwrap();
            assert_eq!(stat::statx(&d, b"n").unwrap().nlink, 2);
            // By an O_PATH descriptor too.
            link_fd(open::path(&d, b"n").unwrap(), &d, b"o").unwrap();
            assert_eq!(stat::statx(&d, b"n").unwrap().nlink, 3);
        }
    }

    #[test]
    fn holes_copies_and_room() {
        for t in places() {
            let d = opened(t.path());
            let from = File::from(create_file(&d, b"a").unwrap());
            let to = File::from(create_file(&d, b"b").unwrap());
            from.write_all_at(&[3; 100_000], 0).unwrap();
            assert!(punch_hole(&from, 8192, 65536).unwrap());
            assert!(punch_hole(&from, 5, 0).unwrap());
            assert!(stat::fstat(&from).unwrap().may_have_holes());
            let cloned = clone_content(&from, &to).unwrap();
            let copied = copy_range(&from, &to, 4096, 1 << 20).unwrap();
            assert!(copied == 100_000 - 4096 || copied == 0, "{copied}");
            if copied > 0 || cloned {
                let mut bytes = vec![1; 4096];
                to.read_exact_at(&mut bytes, 4096).unwrap();
                assert_eq!(bytes, [3; 4096]);
                to.read_exact_at(&mut bytes, 8192).unwrap();
                assert_eq!(bytes, [0; 4096]);
            }
            let space = space(&d).unwrap();
            assert!(
                space.bytes_free > 0 && space.bytes_free <= space.bytes_total && !space.read_only
            );
            assert!(space.inodes_free.is_none_or(|n| n > 0));
        }
    }
}
