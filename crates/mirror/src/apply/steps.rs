//! The steps of a plan on the real file system. A step whose premise an earlier failure took away is left out.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mirror_core::plan::{Occupant, Place, Plan, Step};
use mirror_core::{At, Object, ObjectId};

use super::area::look;
use super::batch::{Batch, StepError, ToFlush};
use super::dirs::is_local;
use super::journal::digest_of;
use super::meta::{LATE_FLAGS, hold};
use super::options::{Flush, Trace};
use super::staging::local_of;
use super::{ApplyError, Store, crash, stage};
use crate::sys::stat::statx;
use crate::sys::{self, Errno, flags, open, target};

impl<S: Store> Batch<'_, S> {
    pub fn run(&mut self, plan: &Plan) -> Result<(), StepError> {
        for id in &plan.stuck {
            self.fail(*id, "order", "the records contradict each other".into());
        }
        self.stage(&plan.steps)?;
        let mixed = crash::planted("reorder_renames").then(|| mixed_up(&plan.steps));
        for step in mixed.as_deref().unwrap_or(&plan.steps) {
            let (object, done) = match step {
                Step::Stage { .. } => continue,
                Step::Finish { object } => (*object, self.finish(*object)),
                Step::FlushStaged => (ObjectId::ROOT, self.before_names()),
                Step::Link { object, from, to } => (*object, self.link(*object, from, to)),
                Step::Rename {
                    object,
                    from,
                    to,
                    over,
                } => (*object, self.rename(*object, from, to, *over)),
                Step::Exchange {
                    object,
                    from,
                    to,
                    other,
                } => (*object, self.exchange(*object, from, to, *other)),
                Step::Meta { object } => (*object, self.meta(*object)),
                Step::Unlink { place, occupant } => {
                    (object_of(*occupant), self.unlink(place, *occupant))
                }
                Step::Aside { place } => (ObjectId::ROOT, self.aside(place)),
                Step::DirMeta { object } => (*object, self.dir_meta(*object)),
                Step::FlushDirs => (ObjectId::ROOT, self.flush_dirs()),
                Step::Remove { object, place } => (*object, self.remove(*object, place)),
            };
            match done {
                Ok(()) => {}
                // What it held back shows in the comparison at the end.
                Err(StepError::Held) => {}
                Err(e) => self.refuse(object, e)?,
            }
            crash::point("step");
        }
        self.sweep_gone()
    }

    /// All that must be on stable storage before the first name changes.
    fn before_names(&mut self) -> Result<(), StepError> {
        let made: Vec<_> = self
            .made
            .iter()
            .map(|(id, local)| {
                let kind = self.want(*id).map(|want| &want.state.kind);
                (*id, local.clone(), kind.map_or([0; 16], digest_of))
            })
            .collect();
        // Without it bytes are compared after a crash.
        let _ = self.journal.add(&made);
        if let Some(position) = self.position {
            let flush = self.options.flush != Flush::Never;
            self.area
                .may_show(position, flush)
                .map_err(StepError::Fatal)?;
        }
        self.keep_old()?;
        if crash::planted("attach_before_content") {
            return Ok(());
        }
        self.flush_staged()
    }

    /// The premise of a step: these places show this.
    pub(super) fn expect(
        &self,
        place: &Place,
        occupant: Option<Occupant>,
    ) -> Result<(), StepError> {
        if self.now.get(place).copied() == occupant || crash::planted("reorder_renames") {
            Ok(())
        } else {
            Err(StepError::Held)
        }
    }

    /// What is about to be replaced or removed is still what was looked at.
    fn recheck(&mut self, place: &Place, dir: &OwnedFd, name: &[u8]) -> Result<(), StepError> {
        let Place::Tree(at) = place else {
            return Ok(());
        };
        let Some(seen) = self.stats.get(at) else {
            return Ok(());
        };
        let now = look(dir, name).map_err(StepError::sys("look"))?;
        let ours = match self.now.get(place) {
            Some(Occupant::Is(id)) => self.stamped.contains(id),
            _ => false,
        };
        let same = now.is_some_and(|now| {
            let time = ours || now.mtime == seen.mtime;
            let file = now.is_dir() || (now.bytes == seen.bytes && time);
            now.ino == seen.ino && now.btime == seen.btime && file
        });
        if same {
            return Ok(());
        }
        Err(StepError::Fails {
            step: "replace",
            reason: "somebody changes it in the copy at this moment".into(),
        })
    }

    fn changed(&mut self, place: &Place) {
        if let Place::Tree(at) = place {
            self.flush.dirs.insert(at.parent);
            self.stats.remove(at);
        }
    }

    /// Runs a system call, and once more after taking away what forbids it: flags or modes of the directories or of
    /// the inode itself.
    fn insist(
        &mut self,
        step: &'static str,
        places: &[&Place],
        call: impl Fn() -> sys::Result<()>,
    ) -> Result<(), StepError> {
        match call() {
            Err(Errno::PERM | Errno::ACCESS | Errno::XDEV) => {}
            done => return done.map_err(StepError::sys(step)),
        }
        for place in places {
            if let Place::Tree(at) = place {
                let fd = self.dir(at.parent)?;
                self.dirs
                    .lift(at.parent, &fd)
                    .map_err(StepError::sys(step))?;
            }
            let (dir, name) = self.physical(place)?;
            if let Some(stat) = look(&dir, &name).map_err(StepError::sys(step))? {
                if !stat.is_dir() && !stat.is_file() {
                    continue;
                }
                let Ok(held) = hold(&dir, &name) else {
                    continue;
                };
                let (fd, found) = (held.fd, held.stat);
                let seen = match place {
                    Place::Tree(at) => self.stats.get(at).unwrap_or(&stat),
                    _ => &stat,
                };
                if !found.same_inode(seen) || found.btime != seen.btime {
                    continue;
                }
                flags::set_flags(&fd, 0, LATE_FLAGS).map_err(StepError::sys(step))?;
                if let Some(Occupant::Is(id)) = self.now.get(place).copied() {
                    self.late.insert(id);
                    if stat.is_dir() {
                        // Moving a directory writes into it.
                        self.dirs.lift(id, &fd).map_err(StepError::sys(step))?;
                    }
                }
            }
        }
        call().map_err(StepError::sys(step))
    }

    fn link(&mut self, object: ObjectId, from: &Place, to: &Place) -> Result<(), StepError> {
        self.expect(from, Some(Occupant::Is(object)))?;
        self.expect(to, None)?;
        let (from_dir, from_name) = self.physical(from)?;
        let (to_dir, to_name) = self.physical(to)?;
        self.make_way(to, &to_dir)?;
        if crash::planted("break_hardlink") && matches!(to, Place::Tree(_)) {
            let copied = copy(&from_dir, &from_name, &to_dir, &to_name);
            copied.map_err(StepError::sys("copy"))?;
        } else {
            self.insist("link", &[from, to], || {
                target::link(&from_dir, &from_name, &to_dir, &to_name)
            })?;
        }
        self.set(to, Some(Occupant::Is(object)))?;
        self.changed(to);
        self.stirred.insert(object);
        self.counts.linked += u64::from(matches!(to, Place::Tree(_)));
        Ok(())
    }

    fn rename(
        &mut self,
        object: ObjectId,
        from: &Place,
        to: &Place,
        over: Option<Occupant>,
    ) -> Result<(), StepError> {
        self.expect(from, Some(Occupant::Is(object)))?;
        self.expect(to, over)?;
        if let Some(Occupant::Is(id)) = over
            && !self.has_another_place(id, to)
        {
            return Err(StepError::Held);
        }
        self.not_into_itself(object, to)?;
        let (from_dir, from_name) = self.physical(from)?;
        let (to_dir, to_name) = self.physical(to)?;
        if matches!(from, Place::Tree(_)) {
            self.recheck(from, &from_dir, &from_name)?;
        }
        if over.is_some() {
            self.recheck(to, &to_dir, &to_name)?;
        }
        if let Some(Occupant::Strange { .. }) = over {
            self.move_aside(&to_dir, &to_name, &to_name, true)?;
        }
        if over.is_some() && crash::planted("unlink_before_rename") {
            let _ = target::unlink(&to_dir, &to_name);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        self.insist("rename", &[from, to], || match over {
            Some(_) => target::rename(&from_dir, &from_name, &to_dir, &to_name),
            None => match target::rename_noreplace(&from_dir, &from_name, &to_dir, &to_name) {
                Err(Errno::INVAL) if look(&to_dir, &to_name)?.is_none() => {
                    target::rename(&from_dir, &from_name, &to_dir, &to_name)
                }
                done => done,
            },
        })?;
        self.set(from, None)?;
        self.set(to, Some(Occupant::Is(object)))?;
        self.changed(from);
        self.changed(to);
        self.stirred.insert(object);
        if let Some(Occupant::Is(other)) = over {
            // It has one name less, or is gone.
            self.stirred.insert(other);
        }
        self.counts.renamed += u64::from(matches!((from, to), (Place::Tree(_), Place::Tree(_))));
        self.trace(Trace::Renamed);
        Ok(())
    }

    /// What was to leave a directory before that moves below it may have been held back.
    fn not_into_itself(&self, object: ObjectId, to: &Place) -> Result<(), StepError> {
        let Place::Tree(at) = to else { return Ok(()) };
        if !self.target(object).is_some_and(|t| t.is_dir()) {
            return Ok(());
        }
        let mut way = BTreeSet::new();
        let mut dir = at.parent;
        while dir != ObjectId::ROOT && way.insert(dir) {
            if dir == object {
                return Err(StepError::Held);
            }
            let row = self.row(dir)?;
            let Some(name) = row.as_ref().and_then(|row| row.names.first()) else {
                break;
            };
            dir = name.parent;
        }
        Ok(())
    }

    /// Whether an inode that is still wanted stays reachable when this place is overwritten.
    fn has_another_place(&self, id: ObjectId, place: &Place) -> bool {
        if self.want(id).is_none() || crash::planted("reorder_renames") {
            return true;
        }
        let is = Occupant::Is(id);
        let at_end = self
            .want(id)
            .into_iter()
            .flat_map(|w| &w.names)
            .map(|at| Place::Tree(at.clone()));
        let before = self
            .target(id)
            .and_then(|t| t.old.as_ref())
            .into_iter()
            .flat_map(|o| &o.names);
        let mut places = at_end
            .chain(before.map(|at| Place::Tree(at.clone())))
            .chain([Place::Limbo(id, id)]);
        places.any(|other| other != *place && self.now.get(&other) == Some(&is))
            || self
                .now
                .iter()
                .any(|(other, occupant)| other != place && *occupant == is)
    }

    fn exchange(
        &mut self,
        object: ObjectId,
        from: &Place,
        to: &At,
        other: Occupant,
    ) -> Result<(), StepError> {
        let to = &Place::Tree(to.clone());
        self.expect(from, Some(Occupant::Is(object)))?;
        self.expect(to, Some(other))?;
        self.not_into_itself(object, to)?;
        if let Occupant::Is(other) | Occupant::Old(other) = other {
            self.not_into_itself(other, from)?;
        }
        let (from_dir, from_name) = self.physical(from)?;
        let (to_dir, to_name) = self.physical(to)?;
        self.recheck(from, &from_dir, &from_name)?;
        self.recheck(to, &to_dir, &to_name)?;
        self.insist("exchange", &[from, to], || {
            match target::exchange(&from_dir, &from_name, &to_dir, &to_name) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    swap_slowly(&from_dir, &from_name, &to_dir, &to_name)
                }
                done => done,
            }
        })?;
        self.set(to, Some(Occupant::Is(object)))?;
        self.set(from, Some(other))?;
        self.changed(from);
        self.changed(to);
        self.stirred.insert(object);
        match other {
            Occupant::Is(other) => drop(self.stirred.insert(other)),
            Occupant::Strange { .. } => drop(self.called.insert(from.clone(), to_name)),
            Occupant::Old(_) => {}
        }
        self.counts.renamed += 1;
        self.trace(Trace::Renamed);
        Ok(())
    }

    /// Metadata of a file that keeps its inode.
    fn meta(&mut self, object: ObjectId) -> Result<(), StepError> {
        let Some(want) = self.want(object).map(|w| w.state.clone()) else {
            return Ok(());
        };
        let Some(at) = self.name_of(object) else {
            return Err(StepError::Held);
        };
        let row = self.row(object)?.ok_or(StepError::Held)?;
        let (here, _) = self.rules.here(&want);
        if here.meta.flags & LATE_FLAGS != 0 {
            self.late.insert(object);
        }
        if row.state == want && !self.stirred.contains(&object) && !self.late.contains(&object) {
            return Ok(());
        }
        let dir = self.dir(at.parent)?;
        let name = at.name.as_bytes();
        let held = hold(&dir, name).map_err(StepError::sys("look"))?;
        if !is_local(&held.stat, &row.local) {
            return Err(StepError::Held);
        }
        let set = self.rules.adjust(&held.fd, &here.kind, &here.meta, false);
        let set = set.map_err(StepError::sys("set the metadata of"))?;
        if set {
            // Any other name of it that has to go yet shows our own change, also one that only a replay knows of.
            self.stamped.insert(object);
            self.counts.meta += 1;
            self.stirred.insert(object);
            if self.options.flush == Flush::Batch {
                // A special file can't be opened; its directory's flush takes it along.
                match held.stat.is_file() {
                    true => self.flush.add(held.open.then(|| Arc::new(held.fd))),
                    false => drop(self.flush.dirs.insert(at.parent)),
                }
            }
        }
        self.settled(object)
    }

    fn unlink(&mut self, place: &Place, occupant: Occupant) -> Result<(), StepError> {
        self.expect(place, Some(occupant))?;
        let (Occupant::Is(id) | Occupant::Old(id)) = occupant else {
            return Err(StepError::Held);
        };
        // An older version that has no name any more is of no use.
        let is_lost = matches!((place, occupant), (Place::Limbo(..), Occupant::Old(_)));
        if !self.is_placed(id) && !is_lost {
            return Err(StepError::Held);
        }
        let (dir, name) = self.physical(place)?;
        self.recheck(place, &dir, &name)?;
        self.insist("remove", &[place], || match target::unlink(&dir, &name) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        })?;
        self.set(place, None)?;
        self.changed(place);
        self.stirred.insert(id);
        self.counts.removed += 1;
        self.trace(Trace::Removed);
        Ok(())
    }

    fn aside(&mut self, place: &Place) -> Result<(), StepError> {
        let Some(Occupant::Strange { .. }) = self.now.get(place) else {
            return Err(StepError::Held);
        };
        let (dir, name) = self.physical(place)?;
        let Some(seen) = look(&dir, &name).map_err(StepError::sys("look"))? else {
            return self.set(place, None);
        };
        let called = self.called.remove(place).unwrap_or_else(|| name.clone());
        match self.move_aside(&dir, &name, &called, false) {
            Ok(()) => {}
            Err(StepError::Fails { .. }) => {
                if let Place::Tree(at) = place {
                    let fd = self.dir(at.parent)?;
                    self.dirs
                        .lift(at.parent, &fd)
                        .map_err(StepError::sys("move aside"))?;
                }
                if (seen.is_file() || seen.is_dir())
                    && let Ok(held) = hold(&dir, &name)
                    && held.stat.same_inode(&seen)
                {
                    let _ = flags::set_flags(&held.fd, 0, LATE_FLAGS);
                }
                self.move_aside(&dir, &name, &called, false)?;
            }
            Err(e) => return Err(e),
        }
        self.set(place, None)?;
        self.changed(place);
        Ok(())
    }

    /// A directory's own metadata, after everything in it is done.
    fn dir_meta(&mut self, object: ObjectId) -> Result<(), StepError> {
        let want = self.want(object).cloned();
        let wanted = want.is_some();
        let Some(row) = self.row(object)? else {
            return Err(StepError::Held);
        };
        let Object { state, .. } = want.unwrap_or(row.clone());
        let fd = match self.dir(object) {
            Ok(fd) => fd,
            // It was never made; its own failure says why.
            Err(super::dirs::DirError::Unknown) => return Err(StepError::Held),
            Err(e) => return Err(e.into()),
        };
        let (here, _) = self.rules.here(&state);
        let full = wanted
            || self.replaying
            || self.dirs.lifted.contains(&object)
            || self.late.contains(&object);
        // A root without a record yet is as it was made.
        if object == ObjectId::ROOT && state.meta == mirror_core::Meta::default() {
            return self.settled(object);
        }
        if crash::planted("lose_mtime") {
            return self.settled(object);
        }
        let set = if full {
            self.rules.adjust(&fd, &here.kind, &here.meta, true)
        } else {
            target::set_mtime(&fd, b"", here.meta.mtime).map(|()| true)
        };
        match set {
            Ok(true) => {
                self.flush.dirs.insert(object);
                if wanted && row.state.meta != state.meta {
                    self.counts.meta += 1;
                }
                self.dirs.lifted.remove(&object);
                self.late.remove(&object);
                self.settled(object)
            }
            Ok(false) => self.settled(object),
            Err(e) => {
                // The rows must not say that it is as it should be.
                let mut row = row;
                row.state.meta = mirror_core::Meta::default();
                self.put(object, row)?;
                Err(StepError::sys("set the metadata of")(e))
            }
        }
    }

    /// A batch that was cut off may have changed names in these without setting their times again, and now finds nothing
    /// left to change there.
    fn dirs_cut_off(&mut self) -> Result<(), StepError> {
        let merged = self.merged;
        let objects = merged
            .objects
            .values()
            .flat_map(|target| target.old.iter().chain(&target.want));
        let mut dirs: BTreeSet<ObjectId> = objects
            .flat_map(|object| &object.names)
            .map(|at| at.parent)
            .collect();
        dirs.extend(merged.mentioned.iter().map(|at| at.parent));
        for id in dirs {
            if self.row(id)?.is_none() || self.target(id).is_some_and(|t| t.want.is_none()) {
                continue;
            }
            match self.dir_meta(id) {
                Ok(()) | Err(StepError::Held) => {}
                Err(e) => self.refuse(id, e)?,
            }
        }
        Ok(())
    }

    fn flush_dirs(&mut self) -> Result<(), StepError> {
        if self.replaying {
            self.dirs_cut_off()?;
        }
        for id in std::mem::take(&mut self.dirs.lifted) {
            if self.row(id)?.is_some() && self.target(id).is_none_or(|t| t.want.is_some()) {
                self.late.insert(id);
                match self.dir_meta(id) {
                    Ok(()) | Err(StepError::Held) => {}
                    Err(e) => self.refuse(id, e)?,
                }
            }
        }
        for id in std::mem::take(&mut self.late) {
            if self.target(id).is_some_and(|t| t.is_dir()) {
                continue;
            }
            match self.set_late(id) {
                Ok(()) | Err(StepError::Held) => {}
                Err(e) => self.refuse(id, e)?,
            }
        }
        let pending = std::mem::take(&mut self.flush);
        if self.options.flush != Flush::Batch || crash::planted("skip_dir_flush") {
            return Ok(());
        }
        let mut fds = pending.fds;
        let mut all = pending.all || pending.dirs.len() + fds.len() > ToFlush::FDS_MAX;
        if !all {
            for id in pending.dirs {
                if self.target(id).is_some_and(|t| t.want.is_none()) {
                    continue;
                }
                match self.dir(id) {
                    Ok(fd) => fds.push(fd),
                    Err(_) => all = true,
                }
            }
        }
        if fds.is_empty() && !all {
            return Ok(());
        }
        stage::flush(&fds, all, &self.area.new, self.options.threads).map_err(|e| {
            StepError::Fatal(ApplyError::Flush {
                what: "directories",
                source: e.into(),
            })
        })?;
        self.trace(Trace::FlushDirs);
        Ok(())
    }

    /// Flags that would have kept the inode from getting its names.
    fn set_late(&mut self, id: ObjectId) -> Result<(), StepError> {
        let Some(want) = self.want(id).map(|w| w.state.clone()) else {
            return Ok(());
        };
        let Some(at) = self.name_of(id) else {
            return Err(StepError::Held);
        };
        let (here, _) = self.rules.here(&want);
        let dir = self.dir(at.parent)?;
        let row = self.row(id)?.ok_or(StepError::Held)?;
        let held = hold(&dir, at.name.as_bytes()).map_err(StepError::sys("look"))?;
        if !is_local(&held.stat, &row.local) {
            return Err(StepError::Held);
        }
        let set = self.rules.adjust(&held.fd, &here.kind, &here.meta, true);
        let set = set.map_err(StepError::sys("set the flags of"))?;
        if set {
            self.stirred.insert(id);
            self.flush.add(held.open.then(|| Arc::new(held.fd)));
        }
        Ok(())
    }

    /// After all steps: inodes that got names since they were last looked at.
    pub fn restat(&mut self) -> Result<(), StepError> {
        for id in std::mem::take(&mut self.stirred) {
            let Some(mut row) = self.row(id)? else {
                continue;
            };
            let Some(at) = row.names.first().cloned() else {
                continue;
            };
            if row.state.kind.is_dir() {
                continue;
            }
            let Ok(dir) = self.dir(at.parent) else {
                continue;
            };
            match statx(&dir, at.name.as_bytes()) {
                Ok(stat) if is_local(&stat, &row.local) => {
                    row.local = local_of(&stat);
                    self.put(id, row)?;
                }
                // Whoever may change names in the copy can do so between a look and a rename.
                Ok(_) | Err(Errno::NOENT) => {
                    let reason = "somebody changes it in the copy at this moment";
                    self.fail(id, "look", reason.into());
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// A planted defect: the first rename trades places with the last one, and so on.
fn mixed_up(steps: &[Step]) -> Vec<Step> {
    let mut steps = steps.to_vec();
    let renames: Vec<usize> = (0..steps.len())
        .filter(|i| {
            matches!(
                steps.get(*i),
                Some(Step::Rename { .. } | Step::Exchange { .. })
            )
        })
        .collect();
    for (a, b) in renames
        .iter()
        .zip(renames.iter().rev())
        .take(renames.len() / 2)
    {
        steps.swap(*a, *b);
    }
    steps
}

fn object_of(occupant: Occupant) -> ObjectId {
    match occupant {
        Occupant::Is(id) | Occupant::Old(id) => id,
        Occupant::Strange { .. } => ObjectId::ROOT,
    }
}

/// For file systems that can't exchange: for an instant the name is missing.
fn swap_slowly(a: &OwnedFd, a_name: &[u8], b: &OwnedFd, b_name: &[u8]) -> sys::Result<()> {
    let mut spare = a_name
        .get(..a_name.len().min(250))
        .unwrap_or(a_name)
        .to_vec();
    spare.extend_from_slice(b".swap");
    target::rename_noreplace(b, b_name, a, &spare).or_else(|e| match e {
        Errno::INVAL if look(a, &spare)?.is_none() => target::rename(b, b_name, a, &spare),
        e => Err(e),
    })?;
    target::rename(a, a_name, b, b_name)?;
    target::rename(a, &spare, a, a_name)
}

fn copy(from: &OwnedFd, from_name: &[u8], to: &OwnedFd, to_name: &[u8]) -> sys::Result<()> {
    let source = open::file(from, from_name)?;
    let file = target::create_file(to, to_name)?;
    let bytes = sys::stat::fstat(&source)?.bytes;
    target::copy_range(&source, &file, 0, bytes).map(drop)
}
