//! Links to the inodes that hold a version, in the copy or in the history, where they are exactly what is wanted: bytes and all
//! metadata.
//!
//! Apply never changes the bytes of an inode, and nothing of one that has more links than the copy has names. So a link is
//! sure once a batch of apply that may have looked before it was made is over; then it is looked at once more.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use mirror_core::{Name, ObjectId, State};

use super::asked::Places;
use super::tree::{Entry, Where};
use crate::apply::meta::{LATE_FLAGS, Rules};
use crate::apply::{content, inode};
use crate::sys::stat::{fstat, statx};
use crate::sys::{Errno, flags, open, target};

/// Links that are not sure yet.
const UNSURE_MAX: usize = 1000;

/// What became of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    Linked,
    /// No inode is what is wanted, or there is no room for a link more: a copy must do.
    Other,
}

struct Unsure {
    path: Vec<Name>,
    entry: Entry,
    ctime: mirror_core::Time,
}

/// See the module.
pub struct Links {
    places: Places,
    /// The directory of the last one.
    from: Option<(PathBuf, OwnedFd)>,
    unsure: Vec<Unsure>,
    /// Each change of an inode gives it another ctime, however soon it comes after somebody looked.
    fine: bool,
    /// Copies made in place of links are to stay over a power cut.
    pub durable: bool,
    /// Objects of which some names may be links, and others copies.
    pub split: BTreeSet<ObjectId>,
}

impl Links {
    /// `work`: a directory of ours on the same file system.
    pub fn new(places: Places, work: &OwnedFd, durable: bool) -> Result<Links, Errno> {
        Ok(Links {
            places,
            from: None,
            unsure: Vec::new(),
            fine: is_fine(work)?,
            durable,
            split: BTreeSet::new(),
        })
    }

    fn dir(&mut self, path: PathBuf) -> Result<&OwnedFd, Errno> {
        if self.from.as_ref().is_none_or(|(known, _)| *known != path) {
            let (top, below) = match path.strip_prefix(&self.places.dst) {
                Ok(below) => (&self.places.dst, below),
                Err(_) => match path.strip_prefix(&self.places.state_dir) {
                    Ok(below) => (&self.places.state_dir, below),
                    Err(_) => return Err(Errno::NOENT),
                },
            };
            let fd = super::asked::dir_below(top, below)?;
            self.from = Some((path, fd));
        }
        match &self.from {
            Some((_, fd)) => Ok(fd),
            None => Err(Errno::NOENT),
        }
    }

    /// Makes `name` in `dir`, if an inode is what it is to be. `path`: the same below the top of the tree.
    pub fn put(
        &mut self,
        rules: &Rules,
        entry: &Entry,
        here: &State,
        (dir, name): (&OwnedFd, &[u8]),
        path: &[Name],
    ) -> Result<Stands, Errno> {
        let (Some(wanted), Some(here_content)) = (entry.state.kind.content(), here.kind.content())
        else {
            return Ok(Stands::Other);
        };
        let from: PathBuf = match &entry.bytes {
            Where::Live(path) => self.places.dst.join(path),
            Where::Kept(slot) => self.places.state_dir.join(slot.path()),
            Where::Nothing | Where::Unkept(_) => return Ok(Stands::Other),
        };
        let (Some(above), Some(own)) = (from.parent().map(Path::to_path_buf), from.file_name())
        else {
            return Ok(Stands::Other);
        };
        let own = std::os::unix::ffi::OsStrExt::as_bytes(own).to_vec();
        let linked = self
            .dir(above)
            .and_then(|from| target::link(from, &own, dir, name));
        match linked {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Errno::EXIST),
            // Gone meanwhile, as many names as there can be, or one that may not be linked: immutable.
            Err(
                Errno::NOENT
                | Errno::NOTDIR
                | Errno::LOOP
                | Errno::MLINK
                | Errno::PERM
                | Errno::XDEV
                | Errno::STALE,
            ) => {
                self.from = None;
                self.split.insert(entry.id);
                return Ok(Stands::Other);
            }
            Err(e) => return Err(e),
        }
        let (stat, meta) = rules.read(dir, name)?;
        let is_it = stat.is_file() && stat.bytes == here_content.bytes;
        let is_it = is_it
            && match (&entry.bytes, entry.inode) {
                // What a path shows may be another file by now.
                (Where::Live(_), Some(known)) => inode(&stat) == known,
                (Where::Live(_), None) => {
                    let file = open::file(dir, name)?;
                    content::matches(&file, &fstat(&file)?, wanted)?
                }
                _ => true,
            };
        if !is_it {
            self.split.insert(entry.id);
        }
        if !is_it || !rules.same(&meta, &here.meta) {
            target::unlink(dir, name)?;
            return Ok(Stands::Other);
        }
        self.unsure.push(Unsure {
            path: path.to_vec(),
            entry: entry.clone(),
            ctime: stat.ctime,
        });
        Ok(Stands::Linked)
    }

    pub fn many(&self) -> bool {
        self.unsure.len() >= UNSURE_MAX
    }

    /// To be called after an answer of apply: links made before it that are not what they were. They are to be made anew.
    pub fn look_again(
        &mut self,
        rules: &Rules,
        top: &OwnedFd,
    ) -> Result<Vec<(Vec<Name>, Entry)>, Errno> {
        let mut changed = Vec::new();
        let mut dir: Option<(Vec<Name>, OwnedFd)> = None;
        for unsure in std::mem::take(&mut self.unsure) {
            let Some((name, above)) = unsure.path.split_last() else {
                continue;
            };
            if dir.as_ref().is_none_or(|(known, _)| known != above) {
                let mut fd = open::dir_again(top)?;
                for name in above {
                    fd = open::dir(&fd, name.as_bytes())?;
                }
                dir = Some((above.to_vec(), fd));
            }
            let Some((_, fd)) = &dir else { continue };
            let stat = statx(fd, name.as_bytes())?;
            if self.fine && stat.ctime == unsure.ctime {
                continue;
            }
            // A link more or less moves it, too.
            let (_, meta) = rules.read(fd, name.as_bytes())?;
            let (here, _) = rules.here(&unsure.entry.state);
            if !rules.same(&meta, &here.meta) {
                self.split.insert(unsure.entry.id);
                changed.push((unsure.path, unsure.entry));
            }
        }
        Ok(changed)
    }
}

/// Whether a look at an inode makes the time of its next change another one (Linux 6.13), tried out.
fn is_fine(dir: &OwnedFd) -> Result<bool, Errno> {
    let name = b"grain";
    let file = target::create_file(dir, name)?;
    let mut fine = true;
    for mode in [0o600, 0o640, 0o600, 0o640] {
        let before = fstat(&file)?.ctime;
        target::set_mode(&file, b"", mode)?;
        fine &= fstat(&file)?.ctime != before;
    }
    target::unlink(dir, name)?;
    Ok(fine)
}

/// Does something in a directory that is finished: its time and flags stay as they are.
pub fn undisturbed<T>(
    dir: &OwnedFd,
    act: impl FnOnce(&OwnedFd) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let before = fstat(dir)?;
    let late = flags::get(dir)?.map_or(0, |found| found.flags & LATE_FLAGS);
    if late != 0 {
        flags::set_flags(dir, 0, LATE_FLAGS)?;
    }
    let done = act(dir);
    target::set_mtime(dir, b"", before.mtime)?;
    if late != 0 {
        flags::set_flags(dir, late, LATE_FLAGS)?;
    }
    done
}
