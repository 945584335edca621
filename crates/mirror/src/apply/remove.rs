//! Subtrees that leave the tree for good: what the rows say is in them goes, anything else moves aside.

use std::os::fd::OwnedFd;

use mirror_core::plan::{Occupant, Place};
use mirror_core::{At, Object, ObjectId, Rows};

use super::Store;
use super::batch::{Batch, StepError};
use super::journal::inode;
use super::look::same_content;
use super::meta::LATE_FLAGS;
use super::options::Trace;
use super::wipe::{self, Judge, Verdict};
use crate::sys::stat::{Stat, statx};
use crate::sys::{self, Errno, flags};

impl<S: Store> Batch<'_, S> {
    /// A subtree that left the tree goes for good. Nothing that failed may be in it.
    pub(super) fn remove(&mut self, object: ObjectId, place: &Place) -> Result<(), StepError> {
        self.expect(place, Some(Occupant::Is(object)))?;
        for id in self.unplaced.keys() {
            for at in &self.row(*id)?.map(|row| row.names).unwrap_or_default() {
                if self.is_below(at.parent, object)? {
                    return Err(StepError::Held);
                }
            }
        }
        let (dir, name) = self.physical(place)?;
        self.dirs.forget(object);
        let mut judge = Removing {
            batch: self,
            error: None,
        };
        let removed = wipe::remove(&dir, &name, object.0, &mut judge);
        if let Some(e) = judge.error {
            return Err(e);
        }
        removed.map_err(StepError::sys("remove"))?;
        self.set(place, None)?;
        self.dirs.elsewhere.remove(&object);
        self.sweep(object)?;
        self.counts.removed += 1;
        self.trace(Trace::Removed);
        Ok(())
    }

    /// Directories that were gone before this batch began, as after a crash: nothing is left of them but rows.
    pub(super) fn sweep_gone(&mut self) -> Result<(), StepError> {
        let merged = self.merged;
        let standing: std::collections::BTreeSet<Occupant> = self.now.values().copied().collect();
        for (id, target) in &merged.objects {
            if target.want.is_none()
                && target.is_dir()
                && !standing.contains(&Occupant::Is(*id))
                && self.row(*id)?.is_some()
            {
                self.sweep(*id)?;
            }
        }
        Ok(())
    }

    /// Forgets a directory that is gone, with rows of what was not found in it.
    fn sweep(&mut self, dir: ObjectId) -> Result<(), StepError> {
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            self.rows.remove(dir).map_err(Self::store_error)?;
            loop {
                let page = self
                    .rows
                    .children(dir, None, 1024)
                    .map_err(Self::store_error)?;
                if page.is_empty() {
                    break;
                }
                for (name, id) in page {
                    let at = At { parent: dir, name };
                    let Some(mut row) = self.row(id)? else {
                        return Err(StepError::Held);
                    };
                    row.names.remove(&at);
                    if row.names.is_empty() {
                        if row.state.kind.is_dir() {
                            todo.push(id);
                        }
                        self.rows.remove(id).map_err(Self::store_error)?;
                    } else {
                        self.put(id, row)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn is_below(&self, dir: ObjectId, top: ObjectId) -> Result<bool, StepError> {
        let mut at = dir;
        for _ in 0..1 << 20 {
            if at == top {
                return Ok(true);
            }
            match self
                .row(at)?
                .and_then(|row| row.names.first().map(|name| name.parent))
            {
                Some(parent) => at = parent,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// Lets go only what the rows say is there; anything else moves aside.
struct Removing<'b, 'a, S: Store> {
    batch: &'b mut Batch<'a, S>,
    error: Option<StepError>,
}

impl<S: Store> Removing<'_, '_, S> {
    fn known(
        &mut self,
        dir: u64,
        fd: &OwnedFd,
        name: &[u8],
    ) -> Result<Option<ObjectId>, StepError> {
        let Ok(name) = mirror_core::Name::new(name) else {
            return Ok(None);
        };
        let at = At {
            parent: ObjectId(dir),
            name,
        };
        let stat = statx(fd, at.name.as_bytes()).map_err(StepError::sys("look"))?;
        if let Some(id) = self.known_before(&at, fd, &stat) {
            return Ok(Some(id));
        }
        if let Some(was) = self.batch.replaced.get(&inode(&stat)) {
            return Ok(was.is_as_left(&stat).then_some(was.object));
        }
        if let Some(ours) = self.batch.journal.before.get(&inode(&stat)) {
            return Ok(Some(ours.object));
        }
        let Some(id) = self.batch.rows.name(&at).map_err(Batch::<S>::store_error)? else {
            return Ok(None);
        };
        let Some(row) = self.batch.row(id)? else {
            return Ok(None);
        };
        if stat.ino != row.local.ino || stat.btime != row.local.btime {
            return Ok(None);
        }
        let stirred = self.batch.stirred.contains(&id);
        let untouched = stirred || self.is_untouched(fd, &at, &stat, &row);
        Ok(untouched.then_some(id))
    }

    /// The inode an object had before this batch, under a name that goes with the directory, or under one that only a
    /// process before this one gave it.
    fn known_before(&self, at: &At, fd: &OwnedFd, stat: &Stat) -> Option<ObjectId> {
        let id = *self.batch.known.get(&inode(stat))?;
        let target = self.batch.target(id)?;
        let old = target.old.as_ref()?;
        // What is still needed, nothing takes away.
        if target.keeps_content() && (target.is_dir() || !self.batch.is_placed(id)) {
            return None;
        }
        let now = self.batch.now.get(&Place::Tree(at.clone()));
        let seen = now == Some(&Occupant::Old(id));
        (seen || self.is_untouched(fd, at, stat, old)).then_some(id)
    }

    fn is_untouched(&self, fd: &OwnedFd, at: &At, stat: &Stat, row: &Object) -> bool {
        stat.is_dir() || stat.ctime == row.local.ctime || {
            let (here, _) = self.batch.rules.here(&row.state);
            // A link more or less moves ctime too; only other bytes are somebody's work.
            same_content(&here.kind, fd, at.name.as_bytes(), stat).unwrap_or(false)
        }
    }
}

impl<S: Store> Judge for Removing<'_, '_, S> {
    fn judge(&mut self, dir: u64, fd: &OwnedFd, name: &[u8]) -> sys::Result<Verdict> {
        let aside = match self.known(dir, fd, name) {
            Ok(Some(id)) => match self.batch.keep_going(id, fd, name) {
                Ok(()) => return Ok(Verdict::Delete(id.0)),
                Err(e) => Err(e),
            },
            Ok(None) => match self.batch.move_aside(fd, name, name, false) {
                // It goes itself.
                Err(StepError::Fails { .. }) if flags::set_flags(fd, 0, LATE_FLAGS).is_ok() => {
                    self.batch.move_aside(fd, name, name, false)
                }
                done => done,
            },
            Err(e) => Err(e),
        };
        match aside {
            Ok(()) => Ok(Verdict::Gone),
            Err(e) => {
                self.error = Some(e);
                Err(Errno::CANCELED)
            }
        }
    }
    fn removed(&mut self, dir: u64, name: &[u8]) {
        let Ok(name) = mirror_core::Name::new(name) else {
            return;
        };
        let at = At {
            parent: ObjectId(dir),
            name,
        };
        let Ok(Some(id)) = self.batch.rows.name(&at) else {
            return;
        };
        let Ok(Some(mut row)) = self.batch.row(id) else {
            return;
        };
        row.names.remove(&at);
        self.batch.dirs.forget(id);
        self.batch.counts.removed += 1;
        let done = if row.names.is_empty() && row.state.kind.is_dir() {
            self.batch.sweep(id)
        } else if row.names.is_empty() {
            self.batch.rows.remove(id).map_err(Batch::<S>::store_error)
        } else {
            self.batch.stirred.insert(id);
            self.batch.put(id, row)
        };
        if let Err(e) = done {
            self.error = Some(e);
        }
    }
}
