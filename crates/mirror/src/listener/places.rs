//! Where a directory of one file system lies: by its handle, climbing to the top, past the roots of trees.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use mirror_core::Handle;
use rustix::fs::{Mode, OFlags, openat};

use super::route::{Names, Place, Tree, Trees, World, union};
use crate::sys::fanotify::{self, Fsid, HandleRef};
use crate::sys::stat::{self, Stat};
use crate::sys::{Errno, handle, mounts, open, tree};

/// Directories of which is known where they lie, in each of two generations.
const KNOWN_MAX: usize = 64 << 10;
/// Deeper than that nobody looks.
const LEVELS_MAX: usize = 4096;

type Key = Box<[u8]>;

fn key(kind: i32, bytes: &[u8]) -> Key {
    [&kind.to_le_bytes()[..], bytes].concat().into()
}

/// See the module.
pub struct Places {
    /// The whole file system, and nothing that is mounted in it.
    view: OwnedFd,
    top: Stat,
    roots: HashMap<Key, Trees>,
    young: HashMap<Key, Trees>,
    old: HashMap<Key, Trees>,
    /// Opened last, because what follows mostly is of the same directory.
    last: Option<(Key, OwnedFd)>,
}

impl Places {
    /// The whole file system that this directory is on. Why not, in words.
    pub fn whole(of: &OwnedFd, fsid: Fsid) -> Result<Places, String> {
        let dev = stat::fstat(of).map_err(|e| e.to_string())?.dev;
        let mounts = mounts::read().map_err(|e| e.to_string())?;
        for mount in mounts.iter().filter(|m| m.root == b"/" && m.dev == dev) {
            let at: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&mount.at);
            let Ok(plain) = open::dir_at_path(Path::new(at)) else {
                continue;
            };
            let Ok(found) = stat::fstat(&plain) else {
                continue;
            };
            // Another one may be mounted over it.
            if found.mount_id.is_some_and(|id| id != mount.id) || found.dev != dev {
                continue;
            }
            let Ok(view) = tree::private_clone_of(&plain) else {
                continue;
            };
            let top = stat::fstat(&view).map_err(|e| e.to_string())?;
            if top.same_inode(&found) && fanotify::fsid(&view).ok() == Some(fsid) {
                return Ok(Places {
                    view,
                    top,
                    roots: HashMap::new(),
                    young: HashMap::new(),
                    old: HashMap::new(),
                    last: None,
                });
            }
        }
        Err("no mount shows the whole file system".into())
    }

    pub fn view(&self) -> &OwnedFd {
        &self.view
    }

    /// From now on this directory is a tree's root.
    pub fn add(&mut self, tree: Tree, root: &OwnedFd) -> Result<(), Errno> {
        let found = handle::name_to_handle(root, b"")?.handle;
        drop(self.open(found.kind, &found.bytes)?);
        let entry = self.roots.entry(key(found.kind, &found.bytes));
        let own: Trees = [tree].into();
        let trees = entry.or_default();
        *trees = union(trees, &own);
        self.forget();
        Ok(())
    }

    pub fn remove(&mut self, tree: Tree) {
        self.roots.retain(|_, trees| {
            *trees = trees.iter().copied().filter(|t| *t != tree).collect();
            !trees.is_empty()
        });
        self.forget();
    }

    fn open(&self, kind: i32, bytes: &[u8]) -> Result<OwnedFd, Errno> {
        let wanted = Handle {
            kind,
            bytes: bytes.into(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
        handle::open_by_handle(&self.view, &wanted, flags)
    }

    fn known(&mut self, key: &[u8]) -> Option<Trees> {
        if let Some(trees) = self.young.get(key) {
            return Some(trees.clone());
        }
        let (key, trees) = self.old.remove_entry(key)?;
        self.know(key, trees.clone());
        Some(trees)
    }

    fn know(&mut self, key: Key, trees: Trees) {
        if self.young.len() >= KNOWN_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, trees);
    }

    /// Up to the top, or to what is known.
    fn climb(&mut self, start: OwnedFd, anew: bool) -> Result<Place, Errno> {
        let mut way: Vec<Key> = Vec::new();
        let mut here = start;
        let mut trees = loop {
            let found = stat::fstat(&here)?;
            if found.nlink == 0 {
                return Ok(Place::Gone);
            }
            let own = handle::name_to_handle(&here, b"")?.handle;
            let own = key(own.kind, &own.bytes);
            if !anew && let Some(trees) = self.known(&own) {
                break trees;
            }
            way.push(own);
            if found.same_inode(&self.top) {
                break Trees::default();
            }
            if way.len() > LEVELS_MAX {
                return Ok(Place::Unknown);
            }
            here = open::parent(&here)?;
        };
        for step in way.into_iter().rev() {
            if let Some(own) = self.roots.get(&step) {
                trees = union(&trees, own);
            }
            self.know(step, trees.clone());
        }
        Ok(Place::Below(trees))
    }

    /// The only name that this open file has now.
    fn other_name(&mut self, file: &OwnedFd, found: &Stat) -> Option<Trees> {
        let path = tree::readlink_fd(file).ok()?;
        let path = path.strip_prefix(b"/")?;
        let (dir, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (path.get(..at)?, path.get(at + 1..)?),
            None => (&b"."[..], path),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(&self.view, dir, flags | OFlags::NOATIME, Mode::empty()).ok()?;
        let named = stat::statx(&dir, name).ok()?;
        if !named.same_inode(found) || named.nlink != 1 {
            return None;
        }
        match self.climb(dir, false) {
            Ok(Place::Below(trees)) => Some(trees),
            _ => None,
        }
    }

    fn is_told(&mut self, found: &Stat, dir: HandleRef<'_>, name: &[u8]) -> bool {
        let wanted = key(dir.kind, dir.bytes);
        if self.last.as_ref().is_none_or(|(last, _)| *last != wanted) {
            let Ok(fd) = self.open(dir.kind, dir.bytes) else {
                return false;
            };
            self.last = Some((wanted, fd));
        }
        let Some((_, fd)) = &self.last else {
            return false;
        };
        stat::statx(fd, name).is_ok_and(|named| named.same_inode(found))
    }
}

impl World for Places {
    fn dir(&mut self, dir: HandleRef<'_>, anew: bool) -> Place {
        if !anew && let Some(trees) = self.known(&key(dir.kind, dir.bytes)) {
            return Place::Below(trees);
        }
        match self.open(dir.kind, dir.bytes) {
            Ok(fd) => self.climb(fd, anew).unwrap_or(Place::Unknown),
            Err(Errno::STALE) => Place::Gone,
            Err(_) => Place::Unknown,
        }
    }

    fn file(&mut self, file: HandleRef<'_>, told: Option<(HandleRef<'_>, &[u8])>) -> Names {
        let wanted = file.to_handle();
        let fd = match handle::open_by_handle(&self.view, &wanted, OFlags::PATH) {
            Ok(fd) => fd,
            Err(Errno::STALE) => return Names::Gone,
            Err(_) => return Names::Any,
        };
        let Ok(found) = stat::fstat(&fd) else {
            return Names::Any;
        };
        match (found.nlink, told) {
            (0, _) => Names::Gone,
            (1, Some((dir, name))) => {
                if self.is_told(&found, dir, name) {
                    return Names::Told;
                }
                match self.other_name(&fd, &found) {
                    Some(trees) => Names::Other(trees),
                    None => Names::Any,
                }
            }
            _ => Names::Any,
        }
    }

    fn root(&self, dir: HandleRef<'_>) -> Option<Trees> {
        self.roots.get(&key(dir.kind, dir.bytes)).cloned()
    }

    fn forget(&mut self) {
        self.young.clear();
        self.old.clear();
        self.last = None;
    }
}
