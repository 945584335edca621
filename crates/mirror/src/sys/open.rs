//! Opening what is only to be read: no symlink followed, no device woken, no terminal taken, no access time moved.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Errno, Result, raw};

/// A regular file for reading. Opening a FIFO or a device does not block, but look (`fstat`) before you read.
/// `ELOOP`: a symlink. `EAGAIN`: somebody holds a write lease.
pub fn file(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    quiet(
        dir,
        raw::component(name)?,
        OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY,
    )
}

/// A directory for reading, so that it can be listed and its handles resolved. `ENOTDIR`: something else, symlinks included.
pub fn dir(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    quiet(
        dir,
        raw::component(name)?,
        OFlags::NOFOLLOW | OFlags::DIRECTORY,
    )
}

/// The same directory once more, with a position of its own.
pub fn dir_again(dir: impl AsFd) -> Result<OwnedFd> {
    quiet(dir, b".", OFlags::DIRECTORY)
}

/// The parent of a directory. At the root of a file system or of the process this is the directory itself;
/// `ENOENT`: the directory was reached by handle and lies outside what the mount shows.
pub fn parent(dir: impl AsFd) -> Result<OwnedFd> {
    quiet(dir, b"..", OFlags::DIRECTORY)
}

/// A directory by path; here, and only here, symlinks are followed, as a person who types a path means it.
pub fn dir_at_path(path: &Path) -> Result<OwnedFd> {
    quiet(
        CWD,
        std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()),
        OFlags::DIRECTORY,
    )
}

/// Anything, as `O_PATH`: to look at and to name, not to read.
pub fn path(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    openat(
        dir,
        raw::component(name)?,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// What an `O_PATH` descriptor holds, a regular file or directory, for reading: the same inode, whatever its names show now.
pub fn again(held: impl AsFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", held.as_fd().as_raw_fd());
    quiet(CWD, path.as_bytes(), OFlags::NONBLOCK | OFlags::NOCTTY)
}

fn quiet(dir: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    match openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner and root may ask for that.
        Err(Errno::PERM) => openat(dir, name, flags, Mode::empty()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::stat;
    use std::io::Read;

    #[test]
    fn reading_leaves_the_access_time() {
        let t = tempfile::tempdir().unwrap();
        let f = t.path().join("f");
        std::fs::write(&f, b"x").unwrap();
        let dir = dir_at_path(t.path()).unwrap();
        // relatime moves an access time that is older than a day, or than the change.
        let past = std::fs::FileTimes::new().set_accessed(std::time::SystemTime::UNIX_EPOCH);
        std::fs::File::options()
            .write(true)
            .open(&f)
            .unwrap()
            .set_times(past)
            .unwrap();
        let old = stat::statx(&dir, b"f").unwrap().atime;
        assert_eq!(old.seconds, 0);
        let mut text = Vec::new();
        std::fs::File::from(file(&dir, b"f").unwrap())
            .read_to_end(&mut text)
            .unwrap();
        assert_eq!(stat::statx(&dir, b"f").unwrap().atime, old);
    }

    #[test]
    fn a_fifo_does_not_block_and_a_symlink_is_not_followed() {
        let t = tempfile::tempdir().unwrap();
        let d = dir_at_path(t.path()).unwrap();
        rustix::fs::mkfifoat(&d, "p", Mode::RWXU).unwrap();
        std::os::unix::fs::symlink("/", t.path().join("l")).unwrap();
        file(&d, b"p").unwrap();
        assert_eq!(file(&d, b"l").unwrap_err(), Errno::LOOP);
        assert_eq!(dir(&d, b"l").unwrap_err(), Errno::NOTDIR);
        assert!(
            stat::fstat(path(&d, b"l").unwrap())
                .unwrap()
                .file_type()
                .is_symlink()
        );
        let up = parent(&d).unwrap();
        assert!(
            stat::fstat(up)
                .unwrap()
                .same_inode(&stat::fstat(dir_at_path(&std::env::temp_dir()).unwrap()).unwrap())
        );
    }
}
