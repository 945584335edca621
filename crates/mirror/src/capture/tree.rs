//! The source tree as this process reaches it: a private view of the root, and its directories by handle or by name.
//!
//! A view ends at its own mount. What is mounted below SRC and not crossed is invisible in it: the directory that the
//! mount hides is mirrored as it is underneath (usually empty), and the mount is listed as not mirrored. A crossed
//! mount (`--cross`) is a second view, a [`Part`], and stands in for the directory under its mount point. Without the
//! right to make a view (not root), mount points that are not crossed are left out with what they hide.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use mirror_core::reconcile::{Dir, Whereabouts};
use mirror_core::{Handle, Name};

use super::cache::Dirs;
pub use super::part::RootId;
use super::part::{self, Part, Tag};
use crate::engine::status::HoldReason;
use crate::sys::{Errno, descriptors, open, stat};

/// Directories kept open by each user of the tree.
const DIRS_OPEN_MAX: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("cannot {step} {}", shown(.path))]
    Io {
        step: &'static str,
        path: PathBuf,
        source: Errno,
    },
    /// A crossed path that is no mount (now): what is under it must not be taken for its content.
    #[error("nothing is mounted on {}, which is crossed", shown(.path))]
    NotMounted { path: PathBuf },
    /// A crossed path that does not lie in the tree.
    #[error(
        "{} can't be crossed: it is reached through a link, or through a mount that is not crossed itself",
        shown(.path)
    )]
    NotReached { path: PathBuf },
}

pub(super) fn shown(path: &Path) -> String {
    mirror_core::escape(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
}

/// The root and what is crossed below it, shared by all who look.
pub struct SourceTree {
    pub path: PathBuf,
    pub id: RootId,
    /// All of the tree's directories open by handle, whatever they are called now.
    pub by_handle: bool,
    /// What is mounted below and not crossed is invisible.
    pub private: bool,
    /// Some changes come without an event, by the nature of a file system.
    pub has_unheard: bool,
    /// SRC first; a crossed mount after the one it lies in.
    parts: Vec<Part>,
}

impl SourceTree {
    pub fn open(path: &Path) -> Result<SourceTree, TreeError> {
        SourceTree::open_with(path, &[])
    }

    /// With these mount points below it, relative to it, as part of the tree.
    pub fn open_with(path: &Path, cross: &[PathBuf]) -> Result<SourceTree, TreeError> {
        let plain = open::dir_at_path(path).map_err(|source| TreeError::Io {
            step: "open",
            path: path.to_path_buf(),
            source,
        })?;
        let root = Part::open(path, &plain, 0, Vec::new(), None)?;
        let id = root.id.clone();
        let mut parts = vec![root];
        let mut wanted = cross
            .iter()
            .map(|cross| names_of(path, cross))
            .collect::<Result<Vec<_>, _>>()?;
        wanted.sort();
        wanted.dedup();
        for names in wanted {
            let taken: Vec<Tag> = parts.iter().map(|part| part.tag).collect();
            let part = cross_one(path, &parts, names, &taken)?;
            parts.push(part);
        }
        Ok(SourceTree {
            path: path.to_path_buf(),
            id,
            by_handle: parts.iter().all(|part| part.by_handle),
            private: parts.iter().all(|part| part.private),
            has_unheard: parts.iter().any(|part| part.unheard().is_some()),
            parts,
        })
    }

    pub fn root(&self) -> &OwnedFd {
        // There always is the first one.
        self.parts[0].root()
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The crossed mounts.
    pub fn crossed(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().skip(1)
    }

    /// Where a person finds this part.
    pub fn path_of(&self, part: &Part) -> PathBuf {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let mut path = self.path.clone();
        path.extend(
            part.path
                .iter()
                .map(|name| OsStr::from_bytes(name.as_bytes())),
        );
        path
    }

    /// The part that a directory's handle is of.
    pub fn part_of(&self, handle: &Handle) -> Option<&Part> {
        let tag = part::tag_of(handle);
        self.parts.iter().find(|part| part.tag == tag)
    }

    /// The crossed mount that stands under this name.
    pub fn crossed_at(&self, dir: &Handle, name: &Name) -> Option<&Part> {
        self.crossed().find(|part| {
            part.at
                .as_ref()
                .is_some_and(|(parent, at)| at == name && parent == dir)
        })
    }

    /// The root or a crossed mount that is not where it was: why to stop, in a line.
    pub fn lost(&self) -> Option<(HoldReason, String)> {
        self.parts.iter().find_map(|part| {
            let path = self.path_of(part);
            let what = part.still_at(&path).err()?;
            let reason = match what {
                "is gone" | "is not mounted" => HoldReason::RootGone,
                "is another directory now" => HoldReason::RootReplaced,
                _ => HoldReason::RootCovered,
            };
            let crossed = if part.at.is_some() { " (crossed)" } else { "" };
            Some((reason, format!("{}{crossed} {what}", shown(&path))))
        })
    }

    /// The same directories by the same handles.
    pub fn is_same(&self, ids: &[RootId]) -> bool {
        self.parts.iter().map(|part| &part.id).eq(ids)
    }

    pub fn ids(&self) -> Vec<RootId> {
        self.parts.iter().map(|part| part.id.clone()).collect()
    }

    /// What no event tells of somewhere in the tree.
    pub fn unheard(&self) -> Option<String> {
        self.parts.iter().find_map(Part::unheard)
    }
}

/// A path relative to SRC as names.
fn names_of(root: &Path, cross: &Path) -> Result<Vec<Name>, TreeError> {
    use std::os::unix::ffi::OsStrExt;
    let bad = || TreeError::NotReached {
        path: root.join(cross),
    };
    let names = cross
        .components()
        .filter(|step| !matches!(step, Component::CurDir))
        .map(|step| match step {
            Component::Normal(name) => Name::new(name.as_bytes()).map_err(|_| bad()),
            _ => Err(bad()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if names.is_empty() {
        return Err(bad());
    }
    Ok(names)
}

/// Opens the mount at these names. What lies above it must be in a part already.
fn cross_one(
    root: &Path,
    parts: &[Part],
    names: Vec<Name>,
    taken: &[Tag],
) -> Result<Part, TreeError> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let mut path = root.to_path_buf();
    path.extend(names.iter().map(|name| OsStr::from_bytes(name.as_bytes())));
    let not_mounted = |_| TreeError::NotMounted { path: path.clone() };
    let not_reached = || TreeError::NotReached { path: path.clone() };
    let (Some((name, above)), Some(up_path)) = (names.split_last(), path.parent()) else {
        return Err(not_reached());
    };
    let part = parts
        .iter()
        .filter(|part| above.starts_with(&part.path))
        .max_by_key(|part| part.path.len())
        .ok_or_else(not_reached)?;
    let mut dir = part.root().clone();
    for step in above.get(part.path.len()..).unwrap_or_default() {
        dir = match open::dir(&dir, step.as_bytes()) {
            Ok(below) => Arc::new(below),
            Err(Errno::NOENT) => return Err(not_mounted(Errno::NOENT)),
            Err(_) => return Err(not_reached()),
        };
    }
    // A person who follows the path must come by this very directory, and find a mount there.
    let up = open::dir_at_path(up_path)
        .and_then(stat::fstat)
        .map_err(not_mounted)?;
    let seen = stat::fstat(&*dir).map_err(not_mounted)?;
    if !seen.same_inode(&up) || part.is_foreign(&seen) {
        return Err(not_reached());
    }
    let under = stat::statx(&*dir, name.as_bytes()).map_err(not_mounted)?;
    if !under.is_dir() {
        return Err(not_reached());
    }
    let plain = open::dir_at_path(&path).map_err(not_mounted)?;
    let here = stat::fstat(&plain).map_err(not_mounted)?;
    if here.dev == up.dev && here.mount_id == up.mount_id {
        return Err(TreeError::NotMounted { path });
    }
    let parent = part
        .identify(&*dir, b"", &seen)
        .map_err(|source| TreeError::Io {
            step: "identify",
            path: up_path.to_path_buf(),
            source,
        })?;
    let tag = part::tag_for(&names, taken).ok_or_else(not_reached)?;
    let at = Some((parent, name.clone()));
    Part::open(&path, &plain, tag, names, at)
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
        let part = self.tree.part_of(dir.handle).ok_or(Closed::Stale)?;
        if *dir.handle == part.id.handle {
            return Ok(part.root().clone());
        }
        if let Some(fd) = self.dirs.get(dir.handle) {
            return Ok(fd);
        }
        let fd = if part.by_handle {
            part.open_by_handle(dir.handle).map_err(|e| match e {
                Errno::STALE => Closed::Stale,
                e => Closed::Failed(e),
            })?
        } else {
            walk(part, dir)?
        };
        let fd = Arc::new(fd);
        self.dirs.put(dir.handle, fd.clone());
        Ok(fd)
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
        match self.tree.part_of(wanted) {
            Some(part) => part.locate(wanted),
            None => Whereabouts::Gone,
        }
    }
}

/// By name from the part's root down; what is found must be what was meant.
fn walk(part: &Part, dir: &Dir<'_>) -> Result<OwnedFd, Closed> {
    let closed = |e: Errno| match e {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Closed::Stale,
        e => Closed::Failed(e),
    };
    let trail = dir.trail.as_deref().ok_or(Closed::Stale)?;
    let trail = trail
        .strip_prefix(part.path.as_slice())
        .ok_or(Closed::Stale)?;
    let mut fd: Option<OwnedFd> = None;
    for name in trail {
        fd = Some(match &fd {
            Some(fd) => open::dir(fd, name.as_bytes()).map_err(closed)?,
            None => open::dir(part.root().as_fd(), name.as_bytes()).map_err(closed)?,
        });
    }
    let fd = fd.ok_or(Closed::Stale)?;
    let found = stat::fstat(&fd).map_err(Closed::Failed)?;
    let handle = part.identify(&fd, b"", &found).map_err(Closed::Failed)?;
    if handle == *dir.handle {
        Ok(fd)
    } else {
        Err(Closed::Stale)
    }
}
