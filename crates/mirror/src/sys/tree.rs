//! A private view of the tree's root, and whether a directory opened by handle lies inside it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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
    finish(clone(CWD, path, OpenTreeFlags::empty())?)
}

/// As [`private_clone`], of an open directory that is not itself of a clone.
pub fn private_clone_of(dir: impl AsFd) -> Result<OwnedFd> {
    finish(clone(dir, Path::new(""), OpenTreeFlags::AT_EMPTY_PATH)?)
}

/// As [`private_clone`], and all that is reached through it is read-only and keeps its access times: the source is
/// only read, and here the kernel sees to it. Before Linux 5.12 the kernel can't, and this is a plain clone.
pub fn private_clone_read_only(path: &Path) -> Result<OwnedFd> {
    let mount = clone(CWD, path, OpenTreeFlags::empty())?;
    match make_read_only(&mount) {
        Ok(()) | Err(Errno::NOSYS) => finish(mount),
        Err(e) => Err(e),
    }
}

fn clone(dir: impl AsFd, path: &Path, flags: OpenTreeFlags) -> Result<OwnedFd> {
    let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(dir, path, flags)
}

/// The descriptor of open_tree is `O_PATH`, and open_by_handle_at refuses those. With it the mount leaves its
/// namespace, so nothing can be set on it any more, and lives on for what is open in it.
fn finish(mount: OwnedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(mount, c".", flags, Mode::empty())
}

/// Shows a directory at another place as well, where nothing can be changed, no device opened, no program run, and nobody gets
/// rights by a file. `at` is an existing directory. `EPERM`: no `CAP_SYS_ADMIN`.
pub fn show_read_only(dir: &Path, at: &Path) -> Result<()> {
    const NOSUID: u64 = 0x2;
    const NODEV: u64 = 0x4;
    const NOEXEC: u64 = 0x8;
    let mount = clone(CWD, dir, OpenTreeFlags::empty())?;
    set_attributes(&mount, RDONLY | NOATIME | NOSUID | NODEV | NOEXEC)?;
    let flags = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, c"", CWD, at, flags)
}

const RDONLY: u64 = 0x1;
const NOATIME: u64 = 0x10;

fn make_read_only(mount: &OwnedFd) -> Result<()> {
    set_attributes(mount, RDONLY | NOATIME)
}

fn set_attributes(mount: &OwnedFd, set: u64) -> Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    /// Relative, no, or strict access times are one field, which must be cleared to be set.
    const ATIME_FIELD: u64 = 0x70;
    let attr = MountAttr {
        set,
        clear: ATIME_FIELD,
        propagation: 0,
        user_namespace: 0,
    };
    let (fd, size) = (mount.as_raw_fd(), size_of::<MountAttr>());
    // SAFETY: the kernel reads an empty C string and `attr` of the announced size.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size,
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
        Err(Errno::NAMETOOLONG) => climb(&of_root, of_dir, dir),
        Err(e) => Err(e),
    }
}

/// Up from a directory whose path is too long; every step shortens it, so this ends.
fn climb(root: &Stat, mut here: Stat, start: BorrowedFd<'_>) -> Result<Place> {
    let mut above: Option<OwnedFd> = None;
    loop {
        let up = match open::parent(above.as_ref().map_or(start, |dir| dir.as_fd())) {
            Ok(up) => up,
            Err(Errno::NOENT) => return Ok(Place::Outside),
            Err(e) => return Err(e),
        };
        let stat = fstat(&up)?;
        if stat.same_inode(root) {
            return Ok(Place::Deep);
        }
        if stat.same_inode(&here) {
            return Ok(Place::Outside);
        }
        match readlink_fd(&up) {
            Ok(path) if path.len() > 1 && path.starts_with(b"/") => return Ok(Place::Deep),
            Ok(_) => return Ok(Place::Outside),
            Err(Errno::NAMETOOLONG) => {}
            Err(e) => return Err(e),
        }
        (here, above) = (stat, Some(up));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::target;
    use std::fs::create_dir_all;

    /// `None`: may not clone here.
    fn cloned(path: &Path) -> Option<OwnedFd> {
        match private_clone(path) {
            Err(e @ (Errno::PERM | Errno::NOSYS)) => {
                println!("skipped: {e}");
                None
            }
            done => Some(done.unwrap()),
        }
    }
    /// What `locate` says of a directory found by its handle, as capture does.
    fn place(root: &OwnedFd, path: &Path) -> Place {
        let handle = handle::name_to_handle(open::dir_at_path(path).unwrap(), b"")
            .unwrap()
            .handle;
        locate(
            root,
            handle::open_by_handle(root, &handle, OFlags::RDONLY | OFlags::DIRECTORY).unwrap(),
        )
        .unwrap()
    }

    fn places(base: &Path) {
        let t = tempfile::tempdir_in(base).unwrap();
        let at = |path: &str| t.path().join(path);
        create_dir_all(at("root/a/b (deleted)")).unwrap();
        create_dir_all(at("out/o")).unwrap();
        let Some(root) = cloned(&at("root")) else {
            return;
        };
        assert!(can_locate(&root, open::dir_at_path(&at("root")).unwrap()).unwrap());
        assert_eq!(place(&root, &at("root")), Place::Root);
        assert_eq!(place(&root, &at("root/a")), Place::Inside(b"a".to_vec()));
        assert_eq!(
            place(&root, &at("root/a/b (deleted)")),
            Place::Inside(b"a/b (deleted)".to_vec())
        );
        assert_eq!(place(&root, &at("out/o")), Place::Outside);
        assert_eq!(place(&root, t.path()), Place::Outside);
        // The root is renamed and stays the root; a directory comes in and goes out.
        std::fs::rename(at("root"), at("out/root2")).unwrap();
        assert_eq!(place(&root, &at("out/root2")), Place::Root);
        assert_eq!(place(&root, &at("out")), Place::Outside);
        std::fs::rename(at("out/o"), at("out/root2/a/o")).unwrap();
        assert_eq!(
            place(&root, &at("out/root2/a/o")),
            Place::Inside(b"a/o".to_vec())
        );
        std::fs::rename(at("out/root2/a"), at("gone")).unwrap();
        assert_eq!(place(&root, &at("gone/o")), Place::Outside);
        create_dir_all(at("out/root2/x")).unwrap();
        let held = open::dir_at_path(&at("out/root2/x")).unwrap();
        std::fs::remove_dir(at("out/root2/x")).unwrap();
        assert_eq!(locate(&root, held).unwrap(), Place::Gone);
    }

    #[test]
    fn a_directory_by_handle_is_in_or_out() {
        places(&std::env::temp_dir());
        places(Path::new("/dev/shm"));
    }

    #[test]
    fn paths_longer_than_a_page_are_deep() {
        let t = tempfile::tempdir().unwrap();
        let at = |path: &str| t.path().join(path);
        create_dir_all(at("root")).unwrap();
        create_dir_all(at("out")).unwrap();
        let Some(root) = cloned(&at("root")) else {
            return;
        };
        for (top, want) in [("root", Place::Deep), ("out", Place::Outside)] {
            let mut dir = open::dir_at_path(&at(top)).unwrap();
            for _ in 0..25 {
                target::create_dir(&dir, &[b'd'; 250]).unwrap();
                dir = open::dir(&dir, &[b'd'; 250]).unwrap();
            }
            let handle = handle::name_to_handle(&dir, b"").unwrap().handle;
            let dir =
                handle::open_by_handle(&root, &handle, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
            assert_eq!(locate(&root, dir).unwrap(), want);
        }
        // The standard library removes such a tree by descriptors.
    }

    #[test]
    fn a_read_only_clone_reads_only() {
        let t = tempfile::tempdir().unwrap();
        std::fs::write(t.path().join("f"), b"x").unwrap();
        let root = match private_clone_read_only(t.path()) {
            Err(Errno::PERM) => return println!("skipped: may not clone mounts"),
            done => done.unwrap(),
        };
        assert_eq!(target::create_dir(&root, b"d").unwrap_err(), Errno::ROFS);
        assert_eq!(
            target::set_mode(&root, b"f", 0o600).unwrap_err(),
            Errno::ROFS
        );
        let handle = handle::name_to_handle(&root, b"f").unwrap().handle;
        handle::open_by_handle(&root, &handle, OFlags::RDONLY).unwrap();
        assert_eq!(
            handle::open_by_handle(&root, &handle, OFlags::RDWR).unwrap_err(),
            Errno::ROFS
        );
        let file = open::file(&root, b"f").unwrap();
        assert!(!super::super::lease::writable_by_anyone(&file).unwrap());
        super::super::lease::write_protect(&file).unwrap();
        // Only through the clone.
        let other = private_clone_of(open::dir_at_path(t.path()).unwrap()).unwrap();
        target::set_mode(&other, b"f", 0o600).unwrap();
        std::fs::write(t.path().join("g"), b"x").unwrap();
    }
}
