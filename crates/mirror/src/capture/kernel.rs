//! The source tree through the kernel, as `reconcile` wants to see it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mirror_core::reads::Reads;
use mirror_core::reconcile::{
    Body, Dir, Dirty, Failure, Look, ReadEnd, Reading, Seen, Source, Whereabouts,
};
use mirror_core::{At, Handle, Name, ObjectId};

use super::read::{self, Into, Reader};
use super::sink::Sink;
use super::tree::{Closed, SourceTree, Walker};
use super::watch::Watch;
use crate::filter::Filter;
use crate::sys::{Errno, dir, open, stat};

pub struct KernelSource {
    pub walker: Walker,
    pub reader: Reader,
    pub sink: Arc<dyn Sink>,
    pub filter: Arc<Filter>,
    pub watch: Arc<Watch>,
    /// Hints that came in meanwhile, for [`Source::more`].
    pub more: Box<dyn FnMut() -> Vec<(At, Dirty)> + Send>,
    /// Large files, which are not read here.
    pub reads: Reads<Reading>,
    /// Those in hand that this reconcile used, as it saw them.
    pub used: Vec<Used>,
    /// What was sunk while this reconcile read.
    pub sunk: Vec<u64>,
}

/// A file in hand that was used, as it was seen then and where.
pub struct Used {
    pub seen: Seen,
    pub dir: Handle,
    pub name: Name,
}

pub fn failure(step: &'static str, error: Errno) -> Failure {
    Failure {
        step,
        reason: std::io::Error::from(error).to_string(),
    }
}

/// One look at one name of a directory of this handle, open as `fd`. Where a crossed mount stands, it is what is seen.
pub fn look(tree: &SourceTree, dir: &Handle, fd: &OwnedFd, name: &Name) -> Look {
    if let Some(part) = tree.crossed_at(dir, name) {
        return match part.stat(part.root(), b"") {
            Ok(found) => Look::Seen(read::seen(&found, part.id.handle.clone())),
            Err(e) => Look::Failed(failure("stat", e)),
        };
    }
    let Some(part) = tree.part_of(dir) else {
        return Look::Stale;
    };
    match part.look(fd, name.as_bytes()) {
        Ok((found, _)) if part.is_foreign(&found) => Look::Foreign,
        Ok((found, handle)) => Look::Seen(read::seen(&found, handle)),
        Err(Errno::NOENT) => Look::Absent,
        Err(Errno::STALE | Errno::NOTDIR) => Look::Stale,
        Err(e) => Look::Failed(failure("stat", e)),
    }
}

/// Reads what [`look`] saw under that name.
pub fn read_one(
    tree: &SourceTree,
    reader: &mut Reader,
    (dir, fd): (&Handle, &OwnedFd),
    name: &Name,
    seen: &Seen,
    content: bool,
    into: Into<'_>,
) -> ReadEnd {
    match tree.crossed_at(dir, name) {
        Some(part) => reader.read(part.root(), None, seen, content, into),
        None => reader.read(fd, Some(name), seen, content, into),
    }
}

impl KernelSource {
    fn open(&mut self, dir: &Dir<'_>) -> Result<Arc<OwnedFd>, Box<Look>> {
        self.walker.open(dir).map_err(|closed| {
            Box::new(match closed {
                Closed::Stale => Look::Stale,
                Closed::Failed(e) => Look::Failed(failure("open the directory of", e)),
            })
        })
    }

    fn is_lost_and_found(&self, dir: &Dir<'_>, name: &Name) -> bool {
        let part = self.walker.tree().part_of(dir.handle);
        part.is_some_and(|part| part.is_lost_and_found(dir.handle, name.as_bytes()))
    }

    /// Without handles its children are reached through the descriptor of a directory that was just found.
    fn remember(&mut self, parent: &OwnedFd, name: &Name, handle: &Handle) {
        let tree = self.walker.tree().clone();
        let Some(part) = tree.part_of(handle) else {
            return;
        };
        if part.by_handle || part.id.handle == *handle {
            return;
        }
        if let Ok(child) = open::dir(parent, name.as_bytes())
            && let Ok(found) = stat::fstat(&child)
            && part.identify(&child, b"", &found).as_ref() == Ok(handle)
        {
            self.walker.remember(handle, Arc::new(child));
        }
    }
}

impl Source for KernelSource {
    fn look(&mut self, dir: &Dir<'_>, name: &Name) -> Look {
        if self.is_lost_and_found(dir, name) {
            return Look::Absent;
        }
        if self.reader.options.stop.load(Ordering::Acquire) {
            // What was found is thrown away.
            return Look::Failed(failure("stat", Errno::CANCELED));
        }
        let fd = match self.open(dir) {
            Ok(fd) => fd,
            Err(look) => return *look,
        };
        let found = look(self.walker.tree(), dir.handle, &fd, name);
        match &found {
            // An open directory that was removed has no names; its own name says that it is gone.
            Look::Absent if stat::fstat(fd.as_fd()).is_ok_and(|found| found.nlink == 0) => {
                self.walker.forget(dir.handle);
                Look::Stale
            }
            Look::Seen(seen) if seen.is_dir() => {
                self.remember(&fd, name, &seen.handle);
                found
            }
            Look::Seen(seen) if seen.is_file() && seen.nlink > 1 => {
                self.watch.linked(&seen.handle, seen.nlink);
                found
            }
            _ => found,
        }
    }

    fn look_again(&mut self, dir: &Dir<'_>, name: &Name, then: &Seen) -> Look {
        if let Ok(fd) = self.open(dir)
            && self.walker.tree().crossed_at(dir.handle, name).is_none()
            && let Some(part) = self.walker.tree().part_of(dir.handle)
            && let Ok(found) = part.stat(&*fd, name.as_bytes())
            && !part.is_foreign(&found)
            && read::same_state(&found, then)
        {
            return Look::Seen(Seen {
                blocks: found.blocks,
                ..then.clone()
            });
        }
        self.look(dir, name)
    }

    fn look_dir(&mut self, dir: &Dir<'_>) -> Look {
        let fd = match self.open(dir) {
            Ok(fd) => fd,
            Err(look) => return *look,
        };
        let found = match self.walker.tree().part_of(dir.handle) {
            Some(part) => part.stat(&*fd, b""),
            None => stat::fstat(fd.as_fd()),
        };
        match found {
            Ok(found) if found.nlink == 0 => {
                self.walker.forget(dir.handle);
                Look::Stale
            }
            Ok(found) => Look::Seen(read::seen(&found, dir.handle.clone())),
            Err(e) => Look::Failed(failure("stat", e)),
        }
    }

    fn list(&mut self, wanted: &Dir<'_>, max: usize) -> Result<Option<Vec<Name>>, Failure> {
        let fd = match self.open(wanted) {
            Ok(fd) => fd,
            Err(look) => match *look {
                Look::Failed(failure) => return Err(failure),
                _ => return Ok(Some(Vec::new())),
            },
        };
        self.watch.add_dir(&fd, wanted.handle);
        // A descriptor of its own: the position in a directory belongs to the open file.
        let fd = match reopen(&fd) {
            Ok(fd) => fd,
            // Removed while we stood in it: nothing is in it.
            Err(Errno::NOENT | Errno::STALE) => return Ok(Some(Vec::new())),
            Err(e) => return Err(failure("list", e)),
        };
        let mut names = Vec::new();
        let done = dir::try_list(&fd, |name, _, _| {
            if names.len() >= max {
                return Err(());
            }
            names.extend(Name::new(name));
            Ok(())
        });
        match done {
            Ok(Ok(())) => Ok(Some(names)),
            Ok(Err(())) => Ok(None),
            Err(Errno::NOENT | Errno::STALE) => Ok(Some(Vec::new())),
            Err(e) => Err(failure("list", e)),
        }
    }

    fn read(&mut self, dir: &Dir<'_>, name: Option<&Name>, seen: &Seen, content: bool) -> ReadEnd {
        if content
            && seen.is_file()
            && let Some(name) = name
        {
            if let Some(reading) = self.reads.in_hand(&seen.handle) {
                self.used.push(Used {
                    seen: seen.clone(),
                    dir: dir.handle.clone(),
                    name: name.clone(),
                });
                return ReadEnd::Done(reading.clone());
            }
            let apart = seen.bytes > self.reader.options.apart_bytes && !self.reads.is_full();
            if apart || self.reads.contains(&seen.handle) {
                return ReadEnd::Later;
            }
        }
        let fd = match self.open(dir) {
            Ok(fd) => fd,
            Err(look) => match *look {
                Look::Failed(failure) => return ReadEnd::Failed(failure),
                _ => return ReadEnd::Moved,
            },
        };
        let into = Into::Sink(&*self.sink);
        let end = match name {
            Some(name) => read_one(
                self.walker.tree(),
                &mut self.reader,
                (dir.handle, &fd),
                name,
                seen,
                content,
                into,
            ),
            None => self.reader.read(&fd, None, seen, content, into),
        };
        if let ReadEnd::Done(Reading {
            body: Body::Token(token),
            ..
        }) = &end
        {
            self.sunk.push(*token);
        }
        end
    }

    fn is_reading(&self, file: &Handle) -> bool {
        self.reads.contains(file)
    }

    fn locate(&mut self, dir: &Handle) -> Whereabouts {
        self.walker.locate(dir)
    }

    fn more(&mut self) -> Vec<(At, Dirty)> {
        (self.more)()
    }

    fn wants_trail(&self) -> bool {
        !self.walker.tree().by_handle
    }

    fn tells_objects(&self) -> bool {
        self.watch.dirs().is_none()
    }

    fn ignored(&mut self, trail: &mut dyn FnMut() -> Vec<Name>, name: &Name, is_dir: bool) -> bool {
        ignored(&self.filter, trail, name, is_dir)
    }
}

pub fn ignored(
    filter: &Filter,
    trail: &mut dyn FnMut() -> Vec<Name>,
    name: &Name,
    is_dir: bool,
) -> bool {
    if filter.is_empty() {
        return false;
    }
    let mut path = Vec::new();
    for name in trail() {
        path.extend_from_slice(name.as_bytes());
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    filter.ignored(&path, is_dir)
}

/// The same directory with a position of its own.
pub fn reopen(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(fd, c".", flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(fd, c".", flags, Mode::empty()),
        done => done,
    }
}

/// How a directory is opened ([`Dir`]), by the rows: its handle, and unless that alone opens it (`by_handle`) the names down
/// to it. `None`: no such directory, or its handle is not known.
pub fn way<R: mirror_core::Rows>(
    rows: &R,
    dir: ObjectId,
    by_handle: bool,
) -> Result<Option<(Handle, Option<Vec<Name>>)>, R::Error> {
    let Some(handle) = rows.object(dir)?.and_then(|found| found.local.handle) else {
        return Ok(None);
    };
    let trail = match by_handle {
        true => None,
        false => trail(rows, dir)?,
    };
    Ok(Some((handle, trail)))
}

/// The names from the root down to a directory, by the rows.
pub fn trail<R: mirror_core::Rows>(rows: &R, dir: ObjectId) -> Result<Option<Vec<Name>>, R::Error> {
    let mut trail = Vec::new();
    let mut at = dir;
    while at != ObjectId::ROOT {
        let Some(object) = rows.object(at)? else {
            return Ok(None);
        };
        let Some(name) = object.names.first() else {
            return Ok(None);
        };
        trail.push(name.name.clone());
        at = name.parent;
    }
    trail.reverse();
    Ok(Some(trail))
}
