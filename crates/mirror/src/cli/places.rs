//! Are SRC, DST and the state where they can be? Looks only; answers what can't be with one line and the way out.
//!
//! Two paths are compared by their canonical names *and* by their place inside their file system, which a bind mount
//! does not change. A DST below SRC is fine when another file system is mounted between: mounts are not entered.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mirror_core::escape;

use crate::engine::options::{SourceSpec, default_state_dir};
use crate::sys::mounts::{self, Mount};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// A local one is canonical.
    pub source: SourceSpec,
    /// Canonical; on the mount of `state_dir`.
    pub dst: PathBuf,
    pub dst_holds: DstHolds,
    /// Canonical. May not exist.
    pub state_dir: PathBuf,
    /// Where other commands look for the state of the DST that was typed, if `--state` put it elsewhere.
    pub state_link: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DstHolds {
    /// It does not exist, its parent does.
    Missing,
    Nothing,
    Something,
}

#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("SRC {} does not exist", show(.path))]
    SourceGone { path: PathBuf },
    #[error("{0}")]
    Unfit(String),
    #[error("cannot {what} {}", show(.path))]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

pub fn show(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

fn unfit<T>(text: impl Into<String>) -> Result<T, PlaceError> {
    Err(PlaceError::Unfit(text.into()))
}

/// `cross` are the mounts that are part of the tree, relative to SRC.
pub fn check(
    source: &SourceSpec,
    dst: &Path,
    state: Option<&Path>,
    cross: &[PathBuf],
) -> Result<Places, PlaceError> {
    let table = mounts::read().map_err(|source| PlaceError::Io {
        what: "read",
        path: "/proc/self/mountinfo".into(),
        source,
    })?;
    check_in(&table, source, dst, state, cross)
}

fn check_in(
    table: &[Mount],
    source: &SourceSpec,
    dst: &Path,
    state: Option<&Path>,
    cross: &[PathBuf],
) -> Result<Places, PlaceError> {
    let source = match source {
        SourceSpec::Local(path) => SourceSpec::Local(check_source(path)?),
        far @ (SourceSpec::Ssh { .. } | SourceSpec::Service { .. }) => far.clone(),
    };
    let (typed_dst, dst_holds) = check_dst(dst)?;
    let state_dir = match state {
        Some(state) => canonical_or_new(state, "the state directory")?,
        None => canonical_or_new(&default_state_dir(&typed_dst), "the state directory")?,
    };
    if state_dir.exists() && !state_dir.is_dir() {
        return unfit(format!(
            "the state directory {} is not a directory",
            show(&state_dir)
        ));
    }
    let dst = on_the_mount_of(table, &typed_dst, &state_dir, state.is_some())?;
    for (a, b) in [(&state_dir, &dst), (&dst, &state_dir)] {
        if a.starts_with(b) {
            return unfit(format!(
                "DST {} and its state {} can't be inside each other: DST holds the copy and nothing else",
                show(&dst),
                show(&state_dir)
            ));
        }
    }
    of_no_other(&typed_dst, "DST")?;
    of_no_other(&state_dir, "the state directory")?;
    if let SourceSpec::Local(src) = &source {
        apart(table, src, &dst, "DST", cross)?;
        apart(table, src, &state_dir, "the state directory", cross)?;
    }
    let beside = default_state_dir(&typed_dst);
    let state_link = (state.is_some() && state_dir != beside).then_some(beside);
    Ok(Places {
        source,
        dst,
        dst_holds,
        state_dir,
        state_link,
    })
}

/// What lies inside another mirror's copy or state is that mirror's.
fn of_no_other(path: &Path, what: &'static str) -> Result<(), PlaceError> {
    for above in path.ancestors().skip(1) {
        let inside = if default_state_dir(above).join("config.toml").is_file() {
            "the copy"
        } else if above.join("config.toml").is_file() && above.join("lock").is_file() {
            "the state"
        } else {
            continue;
        };
        return unfit(format!(
            "{what} {} is inside {inside} of another mirror, {}: name a place beside it",
            show(path),
            show(above)
        ));
    }
    Ok(())
}

fn check_source(path: &Path) -> Result<PathBuf, PlaceError> {
    let io = |source| PlaceError::Io {
        what: "read SRC",
        path: path.into(),
        source,
    };
    let canonical = match fs::canonicalize(path) {
        Ok(canonical) => canonical,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(PlaceError::SourceGone { path: path.into() });
        }
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return unfit(format!("SRC {} is not a directory", show(path)));
        }
        Err(e) => return Err(io(e)),
    };
    if !fs::metadata(&canonical).map_err(io)?.is_dir() {
        return unfit(format!("SRC {} is not a directory", show(path)));
    }
    fs::read_dir(&canonical).map_err(io)?;
    Ok(canonical)
}

fn check_dst(path: &Path) -> Result<(PathBuf, DstHolds), PlaceError> {
    if path.as_os_str().is_empty() {
        return unfit("DST is empty");
    }
    let io = |source| PlaceError::Io {
        what: "read DST",
        path: path.into(),
        source,
    };
    let canonical = canonical_or_new(path, "DST")?;
    let name = canonical.file_name().unwrap_or_default();
    if name.as_bytes().ends_with(b".fs_mirror") {
        return unfit(format!(
            "DST {} is named like a state directory: leave out .fs_mirror",
            show(&canonical)
        ));
    }
    match fs::symlink_metadata(&canonical) {
        Ok(meta) if !meta.is_dir() => unfit(format!(
            "DST {} is a file, not a directory",
            show(&canonical)
        )),
        Ok(_) => {
            let holds = match fs::read_dir(&canonical).map_err(io)?.next() {
                None => DstHolds::Nothing,
                Some(_) => DstHolds::Something,
            };
            Ok((canonical, holds))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((canonical, DstHolds::Missing)),
        Err(e) => Err(io(e)),
    }
}

/// The canonical path of what is there, or of what could be made there: its parent must exist.
fn canonical_or_new(path: &Path, what: &'static str) -> Result<PathBuf, PlaceError> {
    let io = |source| PlaceError::Io {
        what: "find",
        path: path.into(),
        source,
    };
    match fs::canonicalize(path) {
        Ok(canonical) => return Ok(canonical),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return unfit(format!("{what} {} is below a file", show(path)));
        }
        Err(e) => return Err(io(e)),
    }
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
        return unfit(format!(
            "{what} {} is a symbolic link that points nowhere",
            show(path)
        ));
    }
    // `components` drops a slash at the end, which would hide the name.
    let tidy: PathBuf = path.components().collect();
    let Some(name) = tidy.file_name() else {
        return unfit(format!("{what} {} does not exist", show(path)));
    };
    let parent = match tidy.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match fs::canonicalize(parent) {
        Ok(parent) if parent.is_dir() => Ok(parent.join(name)),
        Ok(parent) => unfit(format!(
            "{what} {} is below a file, {}",
            show(path),
            show(&parent)
        )),
        Err(e) if e.kind() == io::ErrorKind::NotFound => unfit(format!(
            "{what} {} can't be made: {} does not exist",
            show(path),
            show(parent)
        )),
        Err(e) => Err(io(e)),
    }
}

/// The mount a path that may not exist is, or would be, on.
fn mount_of<'a>(table: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts::of_path(table, path.as_os_str().as_bytes())
}

/// A path's file system and its place in there.
fn place(table: &[Mount], path: &Path) -> Option<((u32, u32), PathBuf)> {
    let mount = mount_of(table, path)?;
    let below = path.strip_prefix(OsStr::from_bytes(&mount.at)).ok()?;
    Some((mount.dev, join(&mount.root, below)))
}

fn join(dir: &[u8], below: &Path) -> PathBuf {
    let dir = PathBuf::from(OsStr::from_bytes(dir));
    // Joining nothing would add a slash.
    if below.as_os_str().is_empty() {
        dir
    } else {
        dir.join(below)
    }
}

/// DST as seen through the mount of its state, because nothing can be renamed from mount to mount.
fn on_the_mount_of(
    table: &[Mount],
    dst: &Path,
    state: &Path,
    asked: bool,
) -> Result<PathBuf, PlaceError> {
    let (Some(dst_mount), Some(state_mount)) = (mount_of(table, dst), mount_of(table, state))
    else {
        return unfit(format!(
            "cannot find out which file system DST {} is on",
            show(dst)
        ));
    };
    if dst_mount.id == state_mount.id {
        return Ok(dst.into());
    }
    // The same directory under its name in the state's mount, if it has one there.
    if dst_mount.dev == state_mount.dev
        && let Some((_, inside)) = place(table, dst)
        && let Ok(below) = inside.strip_prefix(OsStr::from_bytes(&state_mount.root))
    {
        let other = join(&state_mount.at, below);
        let same = match (fs::metadata(dst), fs::metadata(&other)) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        if asked && same && mount_of(table, &other).is_some_and(|m| m.id == state_mount.id) {
            return Ok(other);
        }
    }
    if asked {
        return unfit(format!(
            "the state directory {} is not on the file system and mount of DST {}: name a place beside it",
            show(state),
            show(dst)
        ));
    }
    let name = Path::new("NAME");
    unfit(format!(
        "DST {} is a mount point, so its state can't stand beside it on the same file system: use a directory below it \
         ({}), or --state DIR on that file system, outside DST",
        show(dst),
        show(&dst.join(name))
    ))
}

/// SRC and what must not be in it, nor around it.
fn apart(
    table: &[Mount],
    src: &Path,
    other: &Path,
    what: &str,
    cross: &[PathBuf],
) -> Result<(), PlaceError> {
    let inode = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let (src_at, other_at) = (place(table, src), place(table, other));
    let src_inode = inode(src);
    if src == other || (src_inode.is_some() && src_inode == inode(other)) {
        return unfit(format!(
            "SRC and {what} are the same directory, {}",
            show(src)
        ));
    }
    let same_fs =
        |a: &Option<((u32, u32), PathBuf)>, b: &Option<((u32, u32), PathBuf)>| match (a, b) {
            (Some((dev_a, path_a)), Some((dev_b, path_b))) => {
                dev_a == dev_b && path_a.starts_with(path_b)
            }
            _ => false,
        };
    // Climbing to the edge of the mount meets SRC: inside, whatever the names say.
    let mut climbed = false;
    for dir in other.ancestors().skip(1) {
        if mount_of(table, dir).map(|m| m.id) != mount_of(table, other).map(|m| m.id) {
            break;
        }
        climbed |= src_inode.is_some() && inode(dir) == src_inode;
    }
    let entered = cross.iter().any(|c| other.starts_with(src.join(c)));
    let by_name = other.starts_with(src) && {
        let between = mount_of(table, other).map(|m| m.id) != mount_of(table, src).map(|m| m.id);
        !between || entered
    };
    if climbed || by_name || same_fs(&other_at, &src_at) {
        return unfit(format!(
            "{what} {} is inside SRC {}, and would be mirrored into itself: use a directory outside SRC, or one on \
             another file system",
            show(other),
            show(src)
        ));
    }
    if src.starts_with(other) || same_fs(&src_at, &other_at) {
        return unfit(format!(
            "SRC {} is inside {what} {}, which holds the copy and nothing else: use a directory outside of it",
            show(src),
            show(other)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
