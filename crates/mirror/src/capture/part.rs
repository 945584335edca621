//! One file system of the tree: the one SRC lies on, or one mounted below SRC that `--cross` made part of the tree.
//!
//! A file handle means something on its own file system only, and two of them may use the same bytes. So each handle
//! of a crossed mount carries the mount's *tag* in the upper half of its kind (the kernel's kinds use the lower
//! half), here and in the index; those of SRC's own file system carry none. A tag is made of the mount's path, so that
//! it is the same in the next run.

use std::borrow::Cow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use mirror_core::reconcile::Whereabouts;
use mirror_core::{Handle, Name, Time};
use rustix::fs::OFlags;

use super::tree::TreeError;
use crate::sys::fanotify::{self, Fsid};
use crate::sys::stat::Stat;
use crate::sys::tree::{self as view, Place};
use crate::sys::{Errno, dir, handle, open, stat};

/// 0: SRC itself.
pub type Tag = u16;

/// As many as fit beside a kind.
pub const TAG_MAX: Tag = 0x7fff;
const TAG_SHIFT: u32 = 16;

/// The handle as it is known beside those of other file systems.
pub fn tagged(handle: Handle, tag: Tag) -> Handle {
    let kind = if handle.kind < 0 {
        handle::SYNTHETIC - i32::from(tag)
    } else {
        handle.kind | (i32::from(tag) << TAG_SHIFT)
    };
    Handle { kind, ..handle }
}

pub fn tag_of(handle: &Handle) -> Tag {
    tag_of_kind(handle.kind)
}

pub fn tag_of_kind(kind: i32) -> Tag {
    let tag = if kind < 0 {
        i64::from(handle::SYNTHETIC) - i64::from(kind)
    } else {
        i64::from(kind >> TAG_SHIFT)
    };
    // Of bytes from a disk: what is no tag is nobody's.
    Tag::try_from(tag).unwrap_or(Tag::MAX)
}

/// As the file system itself knows it.
fn untagged(handle: &Handle) -> Cow<'_, Handle> {
    if tag_of(handle) == 0 {
        return Cow::Borrowed(handle);
    }
    let kind = if handle.kind < 0 {
        handle::SYNTHETIC
    } else {
        handle.kind & ((1 << TAG_SHIFT) - 1)
    };
    Cow::Owned(Handle {
        kind,
        bytes: handle.bytes.clone(),
    })
}

/// A path's tag; `taken` are those of paths before it.
pub fn tag_for(path: &[Name], taken: &[Tag]) -> Option<Tag> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for name in path {
        for &byte in name.as_bytes().iter().chain(b"/") {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let first = (hash ^ (hash >> 32)) % u64::from(TAG_MAX);
    (0..u64::from(TAG_MAX))
        .map(|n| ((first + n) % u64::from(TAG_MAX)) as Tag + 1)
        .find(|tag| !taken.contains(tag))
}

/// What makes a root the same root, after a remount or a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootId {
    pub handle: Handle,
    pub ino: u64,
    pub btime: Time,
    /// The file system's own id, where it does not change from mount to mount: the roots of two fresh ones may agree in
    /// all else.
    pub fsid: Option<Fsid>,
}

/// What is different about some kinds of file system.
#[derive(Debug, Clone, Copy, Default)]
struct FsKind {
    name: &'static str,
    /// Handles last only as long as its cache does.
    ephemeral: bool,
    /// Has trees of its own inside one mount, each with a device number.
    subvolumes: bool,
    /// Has an id of its own, made of a UUID; others make one of the device's number.
    has_id: bool,
    /// Attributes are kept here for a while, each name's apart: ask anew.
    stale: bool,
    /// What this kernel does not hear of.
    unheard: Option<&'static str>,
}

fn fs_kind(fd: &OwnedFd) -> FsKind {
    let number = rustix::fs::fstatfs(fd).map_or(0, |fs| fs.f_type as u32);
    let plain = |name| FsKind {
        name,
        ..FsKind::default()
    };
    let remote = |name| FsKind {
        stale: true,
        unheard: Some("what is changed elsewhere"),
        ..plain(name)
    };
    match number {
        0x6573_5546 => FsKind {
            ephemeral: true,
            ..remote("FUSE")
        },
        0x9123_683e => FsKind {
            subvolumes: true,
            has_id: true,
            ..plain("btrfs")
        },
        0x794c_7630 => FsKind {
            unheard: Some("what is stored through mappings"),
            ..plain("overlay")
        },
        0xef53 => FsKind {
            has_id: true,
            ..plain("ext4")
        },
        0x6969 => remote("NFS"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => remote("SMB"),
        0x0102_1997 => remote("9p"),
        0x00c3_6400 => remote("CephFS"),
        0x5346_414f => remote("AFS"),
        0x0bd0_0bd0 => remote("Lustre"),
        _ => plain("this file system"),
    }
}

pub struct Part {
    pub tag: Tag,
    /// From SRC down; empty: SRC itself.
    pub path: Vec<Name>,
    /// Where it is mounted: a directory of the part above (by its handle there), and the name in it.
    pub at: Option<(Handle, Name)>,
    root: Arc<OwnedFd>,
    pub id: RootId,
    pub dev: (u32, u32),
    mount_id: Option<u64>,
    /// Directories open by handle, whatever they are called now. Else only by name from the root down.
    pub by_handle: bool,
    /// Why not.
    pub no_handles: Option<String>,
    /// The root is a private view: what is mounted below it is invisible.
    pub private: bool,
    /// The root is its file system's root, where `lost+found` is the file system's own.
    fs_root: bool,
    kind: FsKind,
}

impl Part {
    /// `plain`: the directory as everybody sees it, opened at `path`.
    pub fn open(
        path: &Path,
        plain: &OwnedFd,
        tag: Tag,
        names: Vec<Name>,
        at: Option<(Handle, Name)>,
    ) -> Result<Part, TreeError> {
        let failed = |step: &'static str| {
            let path = path.to_path_buf();
            move |source: Errno| TreeError::Io { step, path, source }
        };
        let (root, refused) = match view::private_clone_read_only(path) {
            Ok(fd) => (fd, None),
            Err(e) => (
                plain
                    .try_clone()
                    .map_err(|_| failed("open")(Errno::MFILE))?,
                Some(e),
            ),
        };
        let found = stat::fstat(&root).map_err(failed("stat"))?;
        let parent = open::parent(plain).and_then(stat::fstat);
        let kind = fs_kind(&root);
        let mut part = Part {
            tag,
            path: names,
            at,
            id: RootId {
                handle: handle::synthetic(&found),
                ino: found.ino,
                btime: found.btime,
                fsid: kind.has_id.then(|| fanotify::fsid(&root).ok()).flatten(),
            },
            dev: found.dev,
            mount_id: found.mount_id,
            by_handle: false,
            no_handles: None,
            private: refused.is_none(),
            fs_root: parent.is_ok_and(|up| up.dev != found.dev || up.same_inode(&found)),
            kind,
            root: Arc::new(root),
        };
        part.id.handle = part
            .identify(part.root.as_fd(), b"", &found)
            .map_err(failed("identify"))?;
        part.no_handles = part.why_no_handles(plain, refused);
        part.by_handle = part.no_handles.is_none();
        Ok(part)
    }

    fn why_no_handles(&self, plain: &OwnedFd, refused: Option<Errno>) -> Option<String> {
        let name = self.kind.name;
        match refused {
            Some(Errno::PERM) => {
                return Some("it needs root (CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH)".into());
            }
            Some(e) => return Some(format!("its mount can't be viewed apart ({e})")),
            None => {}
        }
        if self.kind.ephemeral {
            return Some(format!("{name} gives no file handles that last"));
        }
        if self.id.handle.kind < 0 {
            return Some(format!("{name} has no file handles"));
        }
        match self.open_by_handle(&self.id.handle) {
            Ok(_) => {}
            Err(Errno::PERM) => return Some("it needs CAP_DAC_READ_SEARCH".into()),
            Err(_) => return Some(format!("directories of {name} can't be opened by handle")),
        }
        if view::can_locate(&self.root, plain).unwrap_or(false) {
            None
        } else {
            Some("/proc does not tell where a directory lies".into())
        }
    }

    pub fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// The handle by which `name` in `dir` (empty: `dir` itself) is known; `found` is its stat.
    pub fn identify(&self, dir: impl AsFd, name: &[u8], found: &Stat) -> Result<Handle, Errno> {
        let handle = if self.kind.ephemeral {
            handle::synthetic_at(dir, name, found)?
        } else {
            handle::name_to_handle_or_synthetic(dir, name, found)?
        };
        Ok(tagged(handle, self.tag))
    }

    /// The stat of `name` in `dir`; an empty name is `dir` itself.
    pub fn stat(&self, dir: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
        if self.kind.stale {
            stat::statx_fresh(dir, name)
        } else {
            stat::statx(dir, name)
        }
    }

    /// The stat of `name` in `dir` and its handle, of one inode.
    pub fn look(&self, dir: &OwnedFd, name: &[u8]) -> Result<(Stat, Handle), Errno> {
        let mut found = self.stat(dir, name)?;
        for _ in 0..8 {
            if self.is_foreign(&found) {
                // Not one of ours, whatever it is.
                return Ok((found, handle::synthetic(&found)));
            }
            let handle = self.identify(dir, name, &found)?;
            let again = stat::statx(dir, name)?;
            // Nothing but its names and owner changes a symlink: another one may have the same number.
            let same = again.ctime == found.ctime || !found.file_type().is_symlink();
            if again.ino == found.ino && again.btime == found.btime && same {
                return Ok((again, handle));
            }
            found = again;
        }
        Err(Errno::AGAIN)
    }

    /// A mount, or a subvolume: something else than this part.
    pub fn is_foreign(&self, found: &Stat) -> bool {
        match (found.mount_id, self.mount_id) {
            // One overlay shows several device numbers, so where mounts are told apart the number says nothing.
            (Some(there), Some(here)) => {
                there != here || (self.kind.subvolumes && found.dev != self.dev)
            }
            _ => found.dev != self.dev,
        }
    }

    /// `lost+found` of a file system is never part of a tree.
    pub fn is_lost_and_found(&self, dir: &Handle, name: &[u8]) -> bool {
        self.fs_root && name == b"lost+found" && *dir == self.id.handle
    }

    /// `ESTALE`: gone.
    pub fn open_by_handle(&self, wanted: &Handle) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
        handle::open_by_handle(&self.root, &untagged(wanted), flags)
    }

    /// Whether `path` leads to this root still; else how it is not.
    pub fn still_at(&self, path: &Path) -> Result<(), &'static str> {
        let Ok(fd) = open::dir_at_path(path) else {
            return Err(if self.at.is_some() {
                "is not mounted"
            } else {
                "is gone"
            });
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

    /// What no event tells of here.
    pub fn unheard(&self) -> Option<String> {
        let what = self.kind.unheard?;
        Some(format!("{what} on {}", self.kind.name))
    }

    /// As fanotify's records name this file system.
    pub fn fsid(&self) -> Result<Fsid, Errno> {
        fanotify::fsid(&self.root)
    }

    /// Where a directory of this part stands now.
    pub fn locate(&self, wanted: &Handle) -> Whereabouts {
        let here = || match &self.at {
            None => Whereabouts::Root,
            Some((parent, name)) => Whereabouts::Inside {
                parent: parent.clone(),
                name: name.clone(),
            },
        };
        if *wanted == self.id.handle {
            return here();
        }
        if !self.by_handle {
            return Whereabouts::Gone;
        }
        let Ok(fd) = self.open_by_handle(wanted) else {
            return Whereabouts::Gone;
        };
        match view::locate(self.root.as_fd(), &fd) {
            Ok(Place::Root) => here(),
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
        let parent = self.identify(&up, b"", &stat::fstat(&up).ok()?).ok()?;
        let name = match name {
            Some(name) => name,
            None => self.name_in(&up, wanted)?,
        };
        Some(Whereabouts::Inside { parent, name })
    }

    /// The name under which a directory lists a child, for paths that are too long to be told.
    fn name_in(&self, up: &OwnedFd, wanted: &Handle) -> Option<Name> {
        let wanted = untagged(wanted);
        let mut found = None;
        let _ = dir::try_list(up, |name, kind, _| {
            if kind.is_dir()
                && handle::name_to_handle(up, name).is_ok_and(|found| found.handle == *wanted)
            {
                found = Name::new(name).ok();
                return Err(());
            }
            Ok(())
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(kind: i32) -> Handle {
        Handle {
            kind,
            bytes: vec![1, 2, 3, 4].into(),
        }
    }

    #[test]
    fn a_tag_comes_off_again() {
        for kind in [handle::SYNTHETIC, 0, 1, 0x81, 0xff, 0xffff] {
            for tag in [0, 1, 77, TAG_MAX] {
                let with = tagged(handle(kind), tag);
                assert_eq!(tag_of(&with), tag);
                assert_eq!(*untagged(&with), handle(kind));
                assert_eq!(with == handle(kind), tag == 0);
            }
        }
        for kind in [i32::MIN, i32::MAX] {
            tag_of(&handle(kind));
        }
    }

    #[test]
    fn paths_get_tags_that_stay() {
        let path = |text: &str| -> Vec<Name> {
            text.split('/')
                .map(|name| Name::new(name.as_bytes()).unwrap())
                .collect()
        };
        let a = tag_for(&path("a/b"), &[]).unwrap();
        assert_eq!(tag_for(&path("a/b"), &[]), Some(a));
        assert_ne!(tag_for(&path("a/b"), &[a]), Some(a));
        assert_ne!(tag_for(&path("ab"), &[]), Some(a));
        assert!((1..=TAG_MAX).contains(&a));
    }
}
