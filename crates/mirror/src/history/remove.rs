//! Removes trees that are ours, whatever flags are set in them.

use std::os::fd::OwnedFd;

use crate::apply::meta::LATE_FLAGS;
use crate::sys::stat::statx;
use crate::sys::{Errno, dir, flags, open, target};

/// Takes away what would keep an inode from being changed, renamed or removed. An empty name is `dir` itself.
pub fn free(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let take = |fd: &OwnedFd| match flags::get(fd)? {
        Some(found) if found.flags & LATE_FLAGS != 0 => {
            flags::set_flags(fd, 0, LATE_FLAGS).map(drop)
        }
        _ => Ok(()),
    };
    if name.is_empty() {
        return take(dir);
    }
    let stat = statx(dir, name)?;
    if stat.is_dir() {
        take(&open::dir(dir, name)?)
    } else if stat.is_file() {
        take(&open::file(dir, name)?)
    } else {
        Ok(())
    }
}

/// A name and all below it. What is not there is gone already.
pub fn remove_tree(above: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match target::unlink(above, name) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        // A directory, or something with flags.
        Err(Errno::PERM) => {
            if !statx(above, name)?.is_dir() {
                free(above, name)?;
                return target::unlink(above, name);
            }
        }
        Err(e) => return Err(e),
    }
    let fd = open::dir(above, name)?;
    free(&fd, b"")?;
    let mut names: Vec<Vec<u8>> = Vec::new();
    dir::list(&fd, |name, _, _| names.push(name.to_vec()))?;
    for name in names {
        remove_tree(&fd, &name)?;
    }
    drop(fd);
    target::remove_dir(above, name)
}
