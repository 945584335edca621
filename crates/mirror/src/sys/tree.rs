//! A private view of the tree's root, and whether a directory opened by handle lies inside it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::OpenTreeFlags;

use super::stat::{Stat, fstat};
use super::{Errno, Result, handle, open, raw};

/// A directory as a mount of its own that nobody else sees: what is mounted below it is invisible here, hidden
/// files are reachable, and [`locate`] works. Not recursive. Usable with `open_by_handle`. Keeps the file system
/// busy after an unmount until closed.
/// `EPERM`: no `CAP_SYS_ADMIN`; `EINVAL`: this mount can't be cloned; `ENOSYS`: before Linux 5.2.
/// Then open it plainly ([`open::dir_at_path`]), and be careful at mount points.
pub fn private_clone(path: &Path) -> Result<OwnedFd> {
    clone(CWD, path.as_os_str().as_bytes(), OpenTreeFlags::empty())
}

/// As [`private_clone`], of an open directory.
pub fn private_clone_of(dir: impl AsFd) -> Result<OwnedFd> {
    clone(dir, b"", OpenTreeFlags::AT_EMPTY_PATH)
}

fn clone(dir: impl AsFd, path: &[u8], flags: OpenTreeFlags) -> Result<OwnedFd> {
    let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(dir, path, flags)?;
    // The descriptor of open_tree is O_PATH, and open_by_handle_at refuses those.
    openat(
        mount,
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Makes everything reached through a [`private_clone`] read-only and without access times, for as long as it lives.
/// The source is only read, and here the kernel sees to it.
pub fn make_read_only(clone: impl AsFd) -> Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const RDONLY: u64 = 0x1;
    const NOATIME: u64 = 0x10;
    /// Relative, no, or strict access times are one field, which must be cleared to be set.
    const ATIME_FIELD: u64 = 0x70;
    let attr = MountAttr {
        set: RDONLY | NOATIME,
        clear: ATIME_FIELD,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: the kernel reads an empty C string and `attr` of the announced size.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            clone.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    raw::check(r).map(drop)
}

/// What `/proc/self/fd` says this descriptor is. For people and for [`locate`]: of a file it may be a dead name.
pub fn readlink_fd(fd: impl AsFd) -> Result<Vec<u8>> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(rustix::fs::readlinkat(CWD, path.as_str(), Vec::with_capacity(256))?.into_bytes())
}

/// Where a directory lies, seen from a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Root,
    Outside,
    /// Path from the root, no slash at its ends. As of now: it may be renamed before you read this.
    Inside(Vec<u8>),
    /// Inside, and its path is longer than the kernel can tell: climb with [`open::parent`].
    Deep,
    /// Removed, and still open somewhere.
    Gone,
}

/// `root` is a [`private_clone`], `dir` a directory opened by handle through it.
/// Right only where [`can_locate`] said yes.
pub fn locate(root: impl AsFd, dir: impl AsFd) -> Result<Place> {
    let (root, dir) = (root.as_fd(), dir.as_fd());
    let (of_root, of_dir) = (fstat(root)?, fstat(dir)?);
    if of_dir.same_inode(&of_root) {
        return Ok(Place::Root);
    }
    if of_dir.nlink == 0 {
        return Ok(Place::Gone);
    }
    match readlink_fd(dir) {
        Ok(path) => match path.as_slice() {
            b"/" => Ok(Place::Outside),
            [b'/', inside @ ..] => Ok(Place::Inside(inside.to_vec())),
            // Some other form, such as "(unreachable)/..."; never seen through a private clone.
            _ => Ok(Place::Outside),
        },
        Err(Errno::NAMETOOLONG) => climb(&of_root, open::parent(dir)?),
        Err(e) => Err(e),
    }
}

/// Up from a directory whose path is too long: every step shortens it, so this ends.
fn climb(root: &Stat, mut dir: OwnedFd) -> Result<Place> {
    loop {
        let here = fstat(&dir)?;
        if here.same_inode(root) {
            return Ok(Place::Deep);
        }
        match readlink_fd(&dir) {
            Ok(path) if path == b"/" || !path.starts_with(b"/") => return Ok(Place::Outside),
            Ok(_) => return Ok(Place::Deep),
            Err(Errno::NAMETOOLONG) => {}
            Err(e) => return Err(e),
        }
        dir = match open::parent(&dir) {
            Ok(up) if fstat(&up)?.same_inode(&here) => return Ok(Place::Outside),
            Ok(up) => up,
            Err(Errno::NOENT) => return Ok(Place::Outside),
            Err(e) => return Err(e),
        };
    }
}

/// Does [`locate`] tell the truth here? Asks about directories whose place is known: the root, one directory in it
/// if there is one, and the root's parent, which is outside. `original` is the root opened plainly.
/// True also where nothing can be outside, the root being its file system's own.
pub fn can_locate(clone: impl AsFd, original: impl AsFd) -> Result<bool> {
    let (clone, original) = (clone.as_fd(), original.as_fd());
    let ask = |dir: &OwnedFd| -> Result<Place> {
        let handle = handle::name_to_handle(dir, b"")?.handle;
        let by_handle = handle::open_by_handle(clone, &handle, OFlags::RDONLY | OFlags::DIRECTORY)?;
        locate(clone, by_handle)
    };
    if ask(&original.try_clone_to_owned().map_err(|_| Errno::MFILE)?)? != Place::Root {
        return Ok(false);
    }
    let mut inside = None;
    let _ = super::dir::try_list(clone, |name, kind, _| {
        if kind.is_dir() {
            inside = Some(name.to_vec());
            return Err(());
        }
        Ok(())
    })?;
    if let Some(name) = inside {
        // It may be removed or renamed just now; then it proves nothing.
        if let Ok(dir) = open::dir(clone, &name)
            && let Ok(place) = ask(&dir)
            && !matches!(place, Place::Inside(_) | Place::Gone)
        {
            return Ok(false);
        }
    }
    let parent = open::parent(original)?;
    let (of_parent, of_root) = (fstat(&parent)?, fstat(original)?);
    if of_parent.dev != of_root.dev || of_parent.same_inode(&of_root) {
        return Ok(true);
    }
    Ok(ask(&parent)? == Place::Outside)
}
