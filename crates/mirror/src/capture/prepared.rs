//! A source that was read ahead: what scan workers already read in parallel is answered from memory, everything else
//! by the real source.
//!
//! A hint that came after the worker read, and before its reading became rows, may have found nothing to call dirty:
//! the object was in no row yet. So every look is a new one, and what was read counts only where that look still shows
//! the same inode in the same state, and nobody could write it while it was read: a write that was under way had
//! stamped its times already.

use std::collections::HashMap;

use mirror_core::reconcile::{
    Dir, Dirty, Failure, Look, ReadEnd, Reading, Seen, Source, Whereabouts,
};
use mirror_core::{At, Handle, Name};

/// (Part of) one directory as a scan worker found and read it.
pub struct PreparedDir {
    pub handle: Handle,
    /// The directory itself: its attributes read, and its name. `None`: it is known, and these are entries of it.
    /// Its ctime is of before it was listed, or zero when it moved since.
    pub own: Option<PreparedOwn>,
    /// Seen and read: what is neither a directory nor has more than one name.
    pub entries: HashMap<Name, Reading>,
    /// Names left to the real source: hard links, and what could not be read.
    pub others: Vec<Name>,
    /// What the entries' content was staged under.
    pub token: Option<u64>,
}

pub struct PreparedOwn {
    pub parent: Handle,
    pub name: Name,
    pub reading: Reading,
}

impl PreparedDir {
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.entries.keys().chain(&self.others)
    }
    pub fn count(&self) -> usize {
        self.entries.len() + self.others.len() + usize::from(self.own.is_some())
    }
}

pub struct Prepared<'a, S> {
    real: &'a mut S,
    dirs: HashMap<Handle, PreparedDir>,
    /// Directories of this batch, by the directory they lie in.
    subdirs: HashMap<Handle, HashMap<Name, Handle>>,
}

impl<'a, S: Source> Prepared<'a, S> {
    /// Each directory at most once.
    pub fn new(real: &'a mut S, dirs: Vec<PreparedDir>) -> Prepared<'a, S> {
        let mut subdirs: HashMap<Handle, HashMap<Name, Handle>> = HashMap::new();
        for dir in &dirs {
            if let Some(own) = &dir.own {
                subdirs
                    .entry(own.parent.clone())
                    .or_default()
                    .insert(own.name.clone(), dir.handle.clone());
            }
        }
        Prepared {
            real,
            dirs: dirs
                .into_iter()
                .map(|dir| (dir.handle.clone(), dir))
                .collect(),
            subdirs,
        }
    }

    fn own(&self, handle: &Handle) -> Option<&PreparedOwn> {
        self.dirs.get(handle)?.own.as_ref()
    }
}

/// The same inode in the same state. Blocks do not count: they come with writeback, in its own time.
pub fn unchanged(then: &Seen, now: &Seen) -> bool {
    then.ctime == now.ctime
        && then.mtime == now.mtime
        && then.bytes == now.bytes
        && (then.mode, then.nlink, then.uid, then.gid) == (now.mode, now.nlink, now.uid, now.gid)
        && then.handle == now.handle
}

impl<S: Source> Source for Prepared<'_, S> {
    fn look(&mut self, dir: &Dir<'_>, name: &Name) -> Look {
        let prepared = self.dirs.get(dir.handle);
        match prepared.and_then(|prepared| prepared.entries.get(name)) {
            Some(reading) => self.real.look_again(dir, name, &reading.seen),
            None => self.real.look(dir, name),
        }
    }

    fn look_dir(&mut self, dir: &Dir<'_>) -> Look {
        self.real.look_dir(dir)
    }

    fn list(&mut self, dir: &Dir<'_>, max: usize) -> Result<Option<Vec<Name>>, Failure> {
        if let Some(own) = self.own(dir.handle) {
            let then = own.reading.seen.clone();
            if let Look::Seen(now) = self.real.look_dir(dir)
                && unchanged(&then, &now)
                && let Some(prepared) = self.dirs.get(dir.handle)
            {
                let below = self
                    .subdirs
                    .get(dir.handle)
                    .into_iter()
                    .flat_map(HashMap::keys);
                return Ok(Some(prepared.names().chain(below).cloned().collect()));
            }
        }
        self.real.list(dir, max)
    }

    fn read(&mut self, dir: &Dir<'_>, name: Option<&Name>, seen: &Seen, content: bool) -> ReadEnd {
        if let Some(name) = name
            && let Some(prepared) = self.dirs.get_mut(dir.handle)
            && prepared
                .entries
                .get(name)
                .is_some_and(|reading| unchanged(&reading.seen, seen) && !reading.busy)
            && let Some(reading) = prepared.entries.remove(name)
        {
            return ReadEnd::Done(reading);
        }
        // A directory itself, by whatever name.
        if let Some(own) = self.own(&seen.handle)
            && unchanged(&own.reading.seen, seen)
        {
            return ReadEnd::Done(own.reading.clone());
        }
        self.real.read(dir, name, seen, content)
    }

    fn is_reading(&self, file: &Handle) -> bool {
        self.real.is_reading(file)
    }

    fn locate(&mut self, dir: &Handle) -> Whereabouts {
        self.real.locate(dir)
    }

    fn more(&mut self) -> Vec<(At, Dirty)> {
        self.real.more()
    }

    fn wants_trail(&self) -> bool {
        self.real.wants_trail()
    }

    fn tells_objects(&self) -> bool {
        self.real.tells_objects()
    }

    fn ignored(&mut self, trail: &mut dyn FnMut() -> Vec<Name>, name: &Name, is_dir: bool) -> bool {
        self.real.ignored(trail, name, is_dir)
    }
}
