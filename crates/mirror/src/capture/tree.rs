//! The source tree as this process reaches it: a private view of the root, and its directories by handle or by name.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mirror_core::reconcile::{Dir, Whereabouts};
use mirror_core::{Handle, Name};
use rustix::fs::OFlags;

use super::cache::Dirs;
use crate::sys::stat::Stat;
use crate::sys::tree::Place;
use crate::sys::{Errno, descriptors, handle, open, stat, tree as clone};

/// Directories kept open by each user of the tree.
const DIRS_OPEN_MAX: usize = 128;

/// What makes a root the same root, after a remount or a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootId {
    pub handle: Handle,
    pub ino: u64,
    pub btime: mirror_core::Time,
    /// The file system's own id (`statfs`), which survives a remount where the device number does not.
    pub fsid: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("cannot {step} {}", mirror_core::escape(std::os::unix::ffi::OsStrExt::as_bytes(.path.as_os_str())))]
    Io {
        step: &'static str,
        path: PathBuf,
        source: Errno,
    },
}

/// The root, shared by all who look.
pub struct SourceTree {
    pub path: PathBuf,
    root: Arc<OwnedFd>,
    pub id: RootId,
    pub dev: (u32, u32),
    mount_id: Option<u64>,
    /// Directories open by handle, whatever they are called now. Else only by name from the root down.
    pub by_handle: bool,
    /// The root is a private view: what is mounted below it is invisible.
    pub private: bool,
    /// The root is its file system's root, where `lost+found` is the file system's own.
    pub fs_root: bool,
}

impl SourceTree {
    pub fn open(path: &Path) -> Result<SourceTree, TreeError> {
        let failed = |step: &'static str| {
            let path = path.to_path_buf();
            move |source: Errno| TreeError::Io { step, path, source }
        };
        let plain = open::dir_at_path(path).map_err(failed("open"))?;
        let (root, private) = match clone::private_clone_read_only(path) {
            Ok(fd) => (fd, true),
            Err(_) => (
                plain
                    .try_clone()
                    .map_err(|_| failed("open")(Errno::MFILE))?,
                false,
            ),
        };
        let of_root = stat::fstat(&root).map_err(failed("stat"))?;
        let handle = handle::name_to_handle_or_synthetic(&root, b"", &of_root)
            .map_err(failed("identify"))?;
        let by_handle = private
            && handle.kind != handle::SYNTHETIC
            && handle::open_by_handle(&root, &handle, OFlags::RDONLY | OFlags::DIRECTORY).is_ok()
            && clone::can_locate(&root, &plain).unwrap_or(false);
        let fs = rustix::fs::fstatfs(&root).map_err(failed("stat"))?;
        let fsid = fsid(&fs);
        let parent = open::parent(&plain).and_then(stat::fstat);
        let fs_root = parent.is_ok_and(|up| up.dev != of_root.dev || up.same_inode(&of_root));
        Ok(SourceTree {
            path: path.to_path_buf(),
            root: Arc::new(root),
            id: RootId {
                handle,
                ino: of_root.ino,
                btime: of_root.btime,
                fsid,
            },
            dev: of_root.dev,
            mount_id: of_root.mount_id,
            by_handle,
            private,
            fs_root,
        })
    }

    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Whether the path a person gave still leads to this root.
    pub fn still_there(&self) -> Result<(), &'static str> {
        let Ok(fd) = open::dir_at_path(&self.path) else {
            return Err("is gone");
        };
        let Ok(now) = stat::fstat(&fd) else {
            return Err("can't be read");
        };
        if now.dev != self.dev {
            return Err("was unmounted, or another file system covers it");
        }
        if now.ino != self.id.ino || now.btime != self.id.btime {
            return Err("is another directory now");
        }
        Ok(())
    }

    /// A mount, or something on another file system: not part of the tree.
    pub fn is_foreign(&self, found: &Stat) -> bool {
        found.dev != self.dev || (!self.private && found.mount_id != self.mount_id)
    }
}

/// The file system's own id as one number; its fields are private in the C library, its debug form is not.
fn fsid(fs: &rustix::fs::StatFs) -> u64 {
    let text = format!("{:?}", fs.f_fsid);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// One user's way into the tree, with directories of its own kept open.
pub struct Walker {
    tree: Arc<SourceTree>,
    dirs: Dirs,
}

/// Why a directory could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Not there any more, or not where it was.
    Stale,
    Failed(Errno),
}

impl Walker {
    pub fn new(tree: Arc<SourceTree>) -> Walker {
        Walker {
            tree,
            // The loop and each thread of a scan have one.
            dirs: Dirs::new(descriptors::share(DIRS_OPEN_MAX, 16)),
        }
    }

    pub fn tree(&self) -> &Arc<SourceTree> {
        &self.tree
    }

    pub fn open(&mut self, dir: &Dir<'_>) -> Result<Arc<OwnedFd>, Closed> {
        if *dir.handle == self.tree.id.handle {
            return Ok(self.tree.root.clone());
        }
        if let Some(fd) = self.dirs.get(dir.handle) {
            return Ok(fd);
        }
        let fd = if self.tree.by_handle {
            handle::open_by_handle(
                &self.tree.root,
                dir.handle,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME,
            )
            .map_err(|e| {
                if e == Errno::STALE {
                    Closed::Stale
                } else {
                    Closed::Failed(e)
                }
            })?
        } else {
            self.walk(dir)?
        };
        let fd = Arc::new(fd);
        self.dirs.put(dir.handle, fd.clone());
        Ok(fd)
    }

    /// By name from the root down; what is found must be what was meant.
    fn walk(&self, dir: &Dir<'_>) -> Result<OwnedFd, Closed> {
        let closed = |e: Errno| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Closed::Stale,
            e => Closed::Failed(e),
        };
        let trail: &[Name] = dir.trail.as_deref().ok_or(Closed::Stale)?;
        let mut fd: Option<OwnedFd> = None;
        for name in trail {
            fd = Some(match &fd {
                Some(fd) => open::dir(fd, name.as_bytes()).map_err(closed)?,
                None => open::dir(self.tree.root.as_fd(), name.as_bytes()).map_err(closed)?,
            });
        }
        let fd = fd.ok_or(Closed::Stale)?;
        let found = stat::fstat(&fd).map_err(Closed::Failed)?;
        let handle =
            handle::name_to_handle_or_synthetic(&fd, b"", &found).map_err(Closed::Failed)?;
        if handle == *dir.handle {
            Ok(fd)
        } else {
            Err(Closed::Stale)
        }
    }

    /// A directory that was just found as `name` in `parent`, so that its children need no walk.
    pub fn remember(&mut self, handle: &Handle, fd: Arc<OwnedFd>) {
        self.dirs.put(handle, fd);
    }

    pub fn forget(&mut self, handle: &Handle) {
        self.dirs.remove(handle);
    }

    pub fn forget_all(&mut self) {
        self.dirs.clear();
    }

    /// Where a directory stands now. Without handles nobody can tell: `Gone` then, and its parent's events speak.
    pub fn locate(&mut self, wanted: &Handle) -> Whereabouts {
        if *wanted == self.tree.id.handle {
            return Whereabouts::Root;
        }
        if !self.tree.by_handle {
            return Whereabouts::Gone;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
        let Ok(fd) = handle::open_by_handle(&self.tree.root, wanted, flags) else {
            return Whereabouts::Gone;
        };
        match clone::locate(self.tree.root.as_fd(), &fd) {
            Ok(Place::Root) => Whereabouts::Root,
            Ok(Place::Outside) => Whereabouts::Outside,
            Ok(Place::Inside(path)) => {
                let name = path
                    .rsplit(|&b| b == b'/')
                    .next()
                    .and_then(|name| Name::new(name).ok());
                self.inside(&fd, name, wanted).unwrap_or(Whereabouts::Gone)
            }
            Ok(Place::Deep) => self.inside(&fd, None, wanted).unwrap_or(Whereabouts::Gone),
            Ok(Place::Gone) | Err(_) => Whereabouts::Gone,
        }
    }

    fn inside(&self, fd: &OwnedFd, name: Option<Name>, wanted: &Handle) -> Option<Whereabouts> {
        let up = open::parent(fd).ok()?;
        let parent = handle::name_to_handle(&up, b"").ok()?.handle;
        let name = match name {
            Some(name) => name,
            None => name_in(&up, wanted)?,
        };
        Some(Whereabouts::Inside { parent, name })
    }
}

/// The name under which a directory lists a child, for paths that are too long to be told.
fn name_in(dir: &OwnedFd, wanted: &Handle) -> Option<Name> {
    let mut found = None;
    let mut tried = HashSet::new();
    let _ = crate::sys::dir::try_list(dir, |name, kind, _| {
        if kind.is_dir()
            && tried.insert(name.to_vec())
            && handle::name_to_handle(dir, name).is_ok_and(|found| found.handle == *wanted)
        {
            found = Name::new(name).ok();
            return Err(());
        }
        Ok(())
    });
    found
}
