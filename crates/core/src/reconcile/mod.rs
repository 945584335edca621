//! From looks to records: which names differ from the index, and the group of records that says so.
//!
//! Events are hints, state is truth: nothing here is concluded from an event mask. Every dirty name is looked at
//! and detached where it differs, then what was found is attached by identity (the file handle), so swaps,
//! cycles and inversions need no special case. What no name holds at the end has left the tree.
//!
//! Law: after [`crate::model::apply_group`] of the outcome's group, the rows agree with what the source showed for every
//! name that was looked at.

mod draft;
mod emit;
mod later;
mod source;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

pub use draft::Ref;
use draft::{Draft, Spot};
pub use source::*;

use crate::names;
use crate::record::{Change, Who};
use crate::rows::Rows;
use crate::types::*;

/// Names looked at over and over in one call, because the tree changes under us, before it is left to the next one.
const ROUNDS_MAX: u32 = 20;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A group grows no further than this by listing new directories, nor by names of one file that nobody called dirty;
    /// what is left is in `Outcome::unlisted` and `Outcome::again`.
    pub group_records_max: usize,
    /// Hints were lost: every name is looked at as in doubt, whatever led to it ([`crate::doubt`]).
    pub in_doubt: bool,
}

/// One record to be, with what rides beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed {
    pub change: Change,
    pub who: Option<Who>,
    pub local: Option<Local>,
    pub body: Body,
}

/// What one reconcile found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The group, in an order the log accepts; empty when nothing changed.
    pub group: Vec<Proposed>,
    /// Objects whose state is what the index says, but seen through a newer inode state: rows to touch, no record.
    pub touched: Vec<(ObjectId, Local, Option<bool>)>,
    /// Files whose inode changed and whose bytes were not read, as nothing told that they changed. Their rows keep the
    /// old ctime, or a write whose hint is lost afterwards would never be found; [`crate::hints::Unconfirmed`]
    /// says when the rows may have the new one.
    pub unconfirmed: BTreeMap<ObjectId, Local>,
    /// New directories that were created but not listed for want of room: scan them.
    pub unlisted: Vec<ObjectId>,
    /// Known directories that were found in another place while in doubt.
    pub moved_dirs: Vec<ObjectId>,
    /// Could not be read; to be listed, and looked at again.
    pub failed: Vec<(At, Dirty, Failure)>,
    /// Looked at and not failed.
    pub settled: Vec<At>,
    /// Files that somebody may still be writing (known by object once the group is applied).
    pub busy: Vec<ObjectId>,
    /// Could not be settled in this call: dirty again.
    pub again: Vec<(At, Dirty)>,
    pub looks: u64,
    /// A look ran into another file system.
    pub foreign: Vec<At>,
    /// Files whose bytes are to be read, by the name each was found under.
    pub later: Vec<Later>,
}

/// A file whose bytes are to be read before anything is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Later {
    pub at: At,
    pub bits: Dirty,
    pub handle: Handle,
    pub bytes: u64,
    /// It has another name now, which must not come before its bytes: the names that have to wait with it, as they stand
    /// for each other's objects. The group of such an outcome is not to be appended; look again without these names.
    pub entangled: Vec<At>,
}

/// Looks at `dirty` and says what changed. `dirs` are known directories whose own attributes may have moved: only the
/// root, which has no name, has to be given here. `next` is the position the first record of the group will get.
pub fn reconcile<R: Rows, S: Source>(
    rows: &R,
    source: &mut S,
    dirty: Vec<(At, Dirty)>,
    dirs: &[ObjectId],
    next: Position,
    limits: Limits,
) -> Result<Outcome, R::Error> {
    let mut run = Run {
        draft: Draft::new(rows),
        source,
        limits,
        work: BTreeMap::new(),
        rounds: BTreeMap::new(),
        dirs: dirs.iter().copied().collect(),
        out: Outcome::default(),
        read: BTreeMap::new(),
        stale: BTreeMap::new(),
        wrote: BTreeSet::new(),
        about: BTreeSet::new(),
        met: BTreeSet::new(),
        crowded: BTreeMap::new(),
        unlisted: Vec::new(),
        later: BTreeMap::new(),
    };
    for (at, bits) in dirty {
        run.want(
            Spot {
                dir: Ref::Known(at.parent),
                name: at.name,
            },
            bits,
        );
    }
    run.look_all()?;
    for _ in 0..3 {
        if !run.search_limbo()? {
            break;
        }
        run.look_all()?;
    }
    run.refresh_dirs()?;
    emit::emit(run, next)
}

struct Run<'a, R: Rows, S: Source> {
    draft: Draft<'a, R>,
    source: &'a mut S,
    limits: Limits,
    /// Names to look at. Looked at in order, so that a directory comes before what lies below it only by chance.
    work: BTreeMap<Spot, Dirty>,
    rounds: BTreeMap<Spot, u32>,
    /// Known directories in which something was looked at: their own times may have moved.
    dirs: BTreeSet<ObjectId>,
    out: Outcome,
    /// Known objects read in this call, whether their content was, and as of which ctime.
    read: BTreeMap<ObjectId, (bool, Time)>,
    /// Names in directories that could not be opened where they were thought to be.
    stale: BTreeMap<Spot, Dirty>,
    /// Known objects that were written, by whatever name: they are read wherever they are found.
    wrote: BTreeSet<ObjectId>,
    /// Known objects that something happened to, and those that were seen under a name.
    about: BTreeSet<ObjectId>,
    met: BTreeSet<ObjectId>,
    /// Objects that got more names than they have links, by that look: some of the others must be gone.
    crowded: BTreeMap<Ref, u32>,
    unlisted: Vec<usize>,
    later: BTreeMap<Spot, later::Wanted>,
}

/// What is to be said of a known object that changed.
#[derive(Debug, Clone)]
struct Refreshed {
    meta: Option<Meta>,
    content: Option<Content>,
    local: Local,
    body: Body,
    who: Option<Who>,
}

impl<R: Rows, S: Source> Run<'_, R, S> {
    fn want(&mut self, spot: Spot, mut bits: Dirty) {
        bits.doubt |= self.limits.in_doubt;
        self.work.entry(spot).or_default().merge(bits);
    }

    /// All names of an object. Of one with many of them as far as there is room in a group; the rest is left to the next
    /// one. Of one with few all of them, for a rename that is told in two groups would be a link and a loss.
    fn want_names(&mut self, object: Ref, mut bits: Dirty) -> Result<(), R::Error> {
        bits.doubt |= self.limits.in_doubt;
        let all = self.draft.names(object)?;
        let many = all.len() > names::FEW;
        for name in all {
            match name.known() {
                Some(at) if many && self.work.len() >= self.limits.group_records_max => {
                    self.out.again.push((at, bits.clone()));
                }
                _ => self.want(name, bits.clone()),
            }
        }
        Ok(())
    }

    fn look_all(&mut self) -> Result<(), R::Error> {
        let mut sought: BTreeSet<ObjectId> = BTreeSet::new();
        loop {
            self.look_work()?;
            // A directory that moved and stays in the tree has its names still to be looked at.
            for (spot, bits) in core::mem::take(&mut self.stale) {
                if self.draft.reaches_root(spot.dir)? {
                    self.want(spot, bits);
                } else {
                    // Perhaps it is found again; else all below it is gone with it.
                    self.stale.insert(spot, bits);
                }
            }
            // What was written and is not read yet, or was not even seen, has a name that nobody called dirty.
            let unread = self.wrote.iter().filter(|id| !self.has_read(id));
            let unmet = self.about.iter().filter(|id| !self.met.contains(id));
            let unread: BTreeSet<ObjectId> = unread
                .chain(unmet)
                .filter(|id| !sought.contains(id))
                .copied()
                .collect();
            for id in unread {
                sought.insert(id);
                let mut bits = Dirty::default();
                match self.wrote.contains(&id) {
                    true => bits.wrote.insert(id),
                    false => bits.about.insert(id),
                };
                self.want_names(Ref::Known(id), bits)?;
            }
            // Only now: whoever got a new name often lost one that is dirty too.
            for (object, links) in core::mem::take(&mut self.crowded) {
                if self.draft.names_count(object)? as u64 > u64::from(links) {
                    self.want_names(object, Dirty::default())?;
                }
            }
            if self.work.is_empty() {
                return Ok(());
            }
        }
    }

    fn has_read(&self, id: &ObjectId) -> bool {
        self.read.get(id).is_some_and(|(content, _)| *content)
    }

    fn look_work(&mut self) -> Result<(), R::Error> {
        while let Some((spot, bits)) = self.work.pop_first() {
            self.wrote.extend(&bits.wrote);
            self.about.extend(&bits.about);
            let rounds = self.rounds.entry(spot.clone()).or_insert(0);
            *rounds += 1;
            if *rounds > ROUNDS_MAX {
                match (spot.known(), spot.dir) {
                    (Some(at), _) => self.out.again.push((at, bits)),
                    (None, Ref::New(token)) => self.unlisted.push(token),
                    (None, Ref::Known(_)) => {}
                }
                continue;
            }
            self.look_at(spot, bits)?;
        }
        Ok(())
    }

    fn look_at(&mut self, spot: Spot, bits: Dirty) -> Result<(), R::Error> {
        let Some(handle) = self.draft.handle(spot.dir)? else {
            // The directory left the index, or was never known here: its own name tells.
            return self.look_above(spot.dir);
        };
        self.out.looks += 1;
        let trail = if self.source.wants_trail() {
            self.draft.trail(spot.dir)?
        } else {
            None
        };
        let dir = Dir {
            handle: &handle,
            trail,
        };
        let look = self.source.look(&dir, &spot.name);
        if let Ref::Known(id) = spot.dir {
            self.dirs.insert(id);
        }
        match look {
            Look::Stale => {
                self.look_above(spot.dir)?;
                self.stale.entry(spot).or_default().merge(bits);
                Ok(())
            }
            Look::Foreign => {
                if let Some(at) = spot.known() {
                    self.out.foreign.push(at);
                }
                Ok(())
            }
            Look::Failed(failure) => {
                self.fail(&spot, bits, failure);
                Ok(())
            }
            Look::Absent => {
                self.draft.detach(&spot)?;
                self.settled(&spot);
                Ok(())
            }
            Look::Seen(seen) => self.seen(spot, bits, seen, dir.trail),
        }
    }

    fn settled(&mut self, spot: &Spot) {
        if let Some(at) = spot.known() {
            self.out.settled.push(at);
        }
    }

    fn fail(&mut self, spot: &Spot, bits: Dirty, failure: Failure) {
        // A name in a directory that is itself new is found again when the directory is scanned.
        match (spot.known(), spot.dir) {
            (Some(at), _) => self.out.failed.push((at, bits, failure)),
            (None, Ref::New(token)) => self.unlisted.push(token),
            (None, Ref::Known(_)) => {}
        }
    }

    /// A directory is not where it was: look at its own name.
    fn look_above(&mut self, dir: Ref) -> Result<(), R::Error> {
        if let Some(spot) = self.draft.name_of(dir)? {
            self.want(spot, Dirty::default());
        }
        Ok(())
    }

    fn seen(
        &mut self,
        spot: Spot,
        bits: Dirty,
        seen: Seen,
        trail: Option<Vec<Name>>,
    ) -> Result<(), R::Error> {
        let old = self.draft.binding(&spot)?;
        let known = self.draft.by_handle(&seen)?;
        // An object whose handle is not known (its index was made again) is learned by path and type; whether it is
        // equal, the bytes say.
        let (known, bits) = match (known, old) {
            (None, Some(Ref::Known(id))) => {
                let learns = self.draft.object(id)?.is_some_and(|object| {
                    object.local.handle.is_none() && seen.is_kind(&object.state.kind)
                });
                if learns {
                    (
                        old,
                        Dirty {
                            contents: true,
                            ..bits
                        },
                    )
                } else {
                    (known, bits)
                }
            }
            _ => (known, bits),
        };
        if let (Some(old), Some(known)) = (old, known)
            && old == known
        {
            self.settled(&spot);
            return self.refresh(&spot, known, bits, &seen);
        }
        if known.is_none() && old.is_none() && self.ignored(&spot, seen.is_dir())? {
            self.settled(&spot);
            return Ok(());
        }
        match known {
            Some(known) => {
                // Written by its name of before, perhaps, which leads nobody here.
                let doubt = bits.doubt || !self.source.tells_objects();
                let bits = Dirty { doubt, ..bits };
                if old.is_some() {
                    self.draft.detach(&spot)?;
                }
                self.attach_known(&spot, known, &seen)?;
                self.settled(&spot);
                self.refresh(&spot, known, bits, &seen)
            }
            None => self.attach_new(spot, old, bits, seen, trail),
        }
    }

    fn ignored(&mut self, spot: &Spot, is_dir: bool) -> Result<bool, R::Error> {
        let mut error = None;
        let draft = &self.draft;
        let ignored = self.source.ignored(
            &mut || match draft.trail(spot.dir) {
                Ok(trail) => trail.unwrap_or_default(),
                Err(e) => {
                    error = Some(e);
                    Vec::new()
                }
            },
            &spot.name,
            is_dir,
        );
        error.map_or(Ok(ignored), Err)
    }

    fn attach_known(&mut self, spot: &Spot, known: Ref, seen: &Seen) -> Result<(), R::Error> {
        if seen.is_dir() {
            // A directory has one name: whatever we thought it was called must be looked at again.
            if let Some(old) = self.draft.name_of(known)? {
                self.draft.detach(&old)?;
                self.want(old, Dirty::default());
            }
            if self.draft.is_below(spot.dir, known)? {
                // Attaching would close a circle, so our view of the ancestors is behind.
                let mut above = spot.dir;
                while above != known
                    && let Some(name) = self.draft.name_of(above)?
                {
                    above = name.dir;
                    self.want(name, Dirty::default());
                }
                self.want(spot.clone(), Dirty::default());
                return Ok(());
            }
            if let (Ref::Known(id), true) = (known, self.limits.in_doubt) {
                self.out.moved_dirs.push(id);
            }
        } else {
            self.crowded.insert(known, seen.nlink);
        }
        self.draft.attach(spot.clone(), known)
    }

    fn attach_new(
        &mut self,
        spot: Spot,
        old: Option<Ref>,
        bits: Dirty,
        seen: Seen,
        trail: Option<Vec<Name>>,
    ) -> Result<(), R::Error> {
        let Some(handle) = self.draft.handle(spot.dir)? else {
            return Ok(());
        };
        let reading = match self.source.read(
            &Dir {
                handle: &handle,
                trail,
            },
            Some(&spot.name),
            &seen,
            true,
        ) {
            ReadEnd::Done(reading) => reading,
            ReadEnd::Moved => {
                self.want(spot, bits);
                return Ok(());
            }
            ReadEnd::Failed(failure) => {
                // The old occupant is gone from this name all the same, but a name that exists is never reported
                // missing: it stays as it was until its new inode can be read.
                self.fail(&spot, bits, failure);
                return Ok(());
            }
            ReadEnd::Later => {
                // Likewise.
                self.read_later(spot, None, bits, &seen);
                return Ok(());
            }
        };
        let Some(kind) = reading.kind else {
            return Ok(());
        };
        if old.is_some() {
            self.draft.detach(&spot)?;
        }
        let is_dir = kind.is_dir();
        let token = self.draft.add(draft::NewObject {
            local: reading.seen.local(),
            state: State {
                kind,
                meta: reading.meta,
            },
            body: reading.body,
            busy: reading.busy,
            who: bits.who.clone(),
            names: BTreeSet::new(),
        });
        self.settled(&spot);
        self.draft.attach(spot, Ref::New(token))?;
        if is_dir {
            self.list_new(token, bits.who)?;
        }
        Ok(())
    }

    /// A directory we had never seen: nobody announces its children.
    fn list_new(&mut self, token: usize, who: Option<Who>) -> Result<(), R::Error> {
        let used = self.draft.new_objects() + self.work.len();
        let room = self.limits.group_records_max.saturating_sub(used);
        let Some(handle) = self.draft.handle(Ref::New(token))? else {
            return Ok(());
        };
        let trail = if self.source.wants_trail() {
            self.draft.trail(Ref::New(token))?
        } else {
            None
        };
        match self.source.list(
            &Dir {
                handle: &handle,
                trail,
            },
            room,
        ) {
            Ok(Some(names)) => {
                for name in names {
                    self.want(
                        Spot {
                            dir: Ref::New(token),
                            name,
                        },
                        Dirty {
                            contents: true,
                            doubt: false,
                            switch: false,
                            who: who.clone(),
                            ..Dirty::default()
                        },
                    );
                }
            }
            // Too large, or unreadable now: a scan of it follows and reports what it meets.
            Ok(None) | Err(_) => self.unlisted.push(token),
        }
        Ok(())
    }

    /// The object at `spot` is the one we know: did its inode change?
    fn refresh(
        &mut self,
        spot: &Spot,
        known: Ref,
        mut bits: Dirty,
        seen: &Seen,
    ) -> Result<(), R::Error> {
        let id = match known {
            Ref::Known(id) => id,
            Ref::New(token) => return self.read_again(spot, token, bits, seen),
        };
        self.met.insert(id);
        if self.wrote.contains(&id) {
            bits.wrote.insert(id);
        }
        let Some(object) = self.draft.object(id)?.cloned() else {
            return Ok(());
        };
        let moved = object.local.ctime != seen.ctime;
        let before = self.read.get(&id).copied();
        let content = match &object.state.kind {
            Kind::File(content) => {
                before.is_some_and(|(content, _)| content)
                    || bits.contents
                    || bits.wrote.contains(&id)
                    || seen.bytes != content.bytes
                    || seen.mtime != object.state.meta.mtime
                    || (bits.doubt && (moved || !content.proven))
                    || self.source.is_reading(&seen.handle)
            }
            _ => false,
        };
        if !content && !moved {
            return Ok(());
        }
        if let Some((content_read, ctime)) = before
            && (content_read || !content)
            && ctime == seen.ctime
        {
            return Ok(());
        }
        let Some(handle) = self.draft.handle(spot.dir)? else {
            return Ok(());
        };
        let trail = if self.source.wants_trail() {
            self.draft.trail(spot.dir)?
        } else {
            None
        };
        match self.source.read(
            &Dir {
                handle: &handle,
                trail,
            },
            Some(&spot.name),
            seen,
            content,
        ) {
            ReadEnd::Done(reading) => {
                self.read.insert(id, (content, reading.seen.ctime));
                if reading.busy {
                    self.out.busy.push(id);
                }
                self.compare(id, reading, bits.who)
            }
            ReadEnd::Moved => {
                self.want(spot.clone(), bits);
                Ok(())
            }
            ReadEnd::Failed(failure) => {
                self.out
                    .settled
                    .retain(|at| Some(at) != spot.known().as_ref());
                self.fail(spot, bits, failure);
                Ok(())
            }
            ReadEnd::Later => {
                self.read_later(spot.clone(), Some(id), bits, seen);
                Ok(())
            }
        }
    }

    /// An object that is new in this call, found again: under another name, or by another way. If it changed since it
    /// was read, it is read again; the hint may be of a name it had meanwhile.
    fn read_again(
        &mut self,
        spot: &Spot,
        token: usize,
        bits: Dirty,
        seen: &Seen,
    ) -> Result<(), R::Error> {
        let Some(new) = self.draft.new.get(token) else {
            return Ok(());
        };
        if new.local.ctime == seen.ctime || new.state.kind.is_dir() {
            return Ok(());
        }
        let Some(handle) = self.draft.handle(spot.dir)? else {
            return Ok(());
        };
        let trail = if self.source.wants_trail() {
            self.draft.trail(spot.dir)?
        } else {
            None
        };
        let dir = Dir {
            handle: &handle,
            trail,
        };
        match self.source.read(&dir, Some(&spot.name), seen, true) {
            ReadEnd::Done(reading) => self.replace_new(token, reading),
            ReadEnd::Moved => self.want(spot.clone(), bits),
            ReadEnd::Failed(failure) => self.fail(spot, bits, failure),
            ReadEnd::Later => self.read_later(spot.clone(), None, bits, seen),
        }
        Ok(())
    }

    fn replace_new(&mut self, token: usize, reading: Reading) {
        if let (Some(new), Some(kind)) = (self.draft.new.get_mut(token), reading.kind) {
            new.local = reading.seen.local();
            new.state = State {
                kind,
                meta: reading.meta,
            };
            // A directory's was made of what lies in it.
            if !new.state.kind.is_dir() {
                new.body = reading.body;
            }
            new.busy = reading.busy;
        }
    }

    fn compare(
        &mut self,
        id: ObjectId,
        reading: Reading,
        who: Option<Who>,
    ) -> Result<(), R::Error> {
        let Some(object) = self.draft.object(id)? else {
            return Ok(());
        };
        let mut local = reading.seen.local();
        if reading.kind.is_some() {
            self.out.unconfirmed.remove(&id);
        } else if local.ctime != object.local.ctime {
            if !reading.busy {
                self.out.unconfirmed.insert(id, local.clone());
            }
            local.ctime = object.local.ctime;
        }
        let meta = (reading.meta != object.state.meta).then_some(reading.meta);
        let (mut content, mut proven) = (None, None);
        let mut body = Body::None;
        if let (Some(Kind::File(new)), Kind::File(old)) = (reading.kind, &object.state.kind) {
            // The same bytes, but known to be whole now: those who have them are told.
            if !new.same(old) || (old.fuzzy && !new.fuzzy) {
                content = Some(new);
                body = reading.body;
            } else if new.proven != old.proven {
                proven = Some(new.proven);
            }
        }
        if meta.is_some() || content.is_some() {
            self.draft.update(
                id,
                Refreshed {
                    meta,
                    content,
                    local,
                    body,
                    who,
                },
            );
        } else if local != object.local || proven.is_some() {
            self.out.touched.push((id, local, proven));
        }
        Ok(())
    }

    /// Objects that lost every name: a directory may have moved to where nobody looked yet. True when there is
    /// more to look at.
    fn search_limbo(&mut self) -> Result<bool, R::Error> {
        let mut files = false;
        for (id, object) in self.draft.nameless() {
            if object.state.kind.is_dir() {
                let Some(handle) = &object.local.handle else {
                    continue;
                };
                if let Whereabouts::Inside { parent, name } = self.source.locate(handle)
                    && let Some(dir) = self.draft.dir_by_handle(&parent)?
                {
                    // Unless it is below itself, which a name in limbo can't answer.
                    if dir != Ref::Known(id) {
                        self.want(Spot { dir, name }, Dirty::default());
                    }
                }
            } else {
                files = true;
            }
        }
        if files {
            for (at, bits) in self.source.more() {
                self.want(
                    Spot {
                        dir: Ref::Known(at.parent),
                        name: at.name,
                    },
                    bits,
                );
            }
        }
        Ok(!self.work.is_empty())
    }

    /// Directories in which names were looked at: an entry that comes or goes moves their own times silently.
    fn refresh_dirs(&mut self) -> Result<(), R::Error> {
        for id in core::mem::take(&mut self.dirs) {
            if self.read.contains_key(&id) || !self.draft.reaches_root(Ref::Known(id))? {
                continue;
            }
            let Some(object) = self.draft.object(id)?.cloned() else {
                continue;
            };
            let Some(handle) = object.local.handle.clone() else {
                continue;
            };
            let trail = if self.source.wants_trail() {
                self.draft.trail(Ref::Known(id))?
            } else {
                None
            };
            let dir = Dir {
                handle: &handle,
                trail,
            };
            let failure = match self.source.look_dir(&dir) {
                Look::Seen(seen)
                    if seen.ctime == object.local.ctime
                        && seen.mtime == object.state.meta.mtime =>
                {
                    continue;
                }
                Look::Seen(seen) => match self.source.read(&dir, None, &seen, false) {
                    ReadEnd::Done(reading) => {
                        self.compare(id, reading, None)?;
                        continue;
                    }
                    ReadEnd::Moved | ReadEnd::Later => None,
                    ReadEnd::Failed(failure) => Some(failure),
                },
                Look::Failed(failure) => Some(failure),
                Look::Absent | Look::Stale | Look::Foreign => None,
            };
            // It moved on while we looked: under its own name it is found again, or found gone.
            let name = self.draft.name_of(Ref::Known(id))?;
            match (name.and_then(|spot| spot.known()), failure) {
                (Some(at), Some(failure)) => {
                    self.out.failed.push((at, Dirty::default(), failure));
                }
                (Some(at), None) => self.out.again.push((at, Dirty::default())),
                (None, _) => {}
            }
        }
        self.refresh_new_dirs()
    }

    /// New directories were read before they were listed (and watched, where each has a watch of its own): what came
    /// into them between has moved their times.
    fn refresh_new_dirs(&mut self) -> Result<(), R::Error> {
        for token in 0..self.draft.new_objects() {
            let Some(new) = self.draft.new.get(token) else {
                continue;
            };
            let (true, Some(handle)) = (new.state.kind.is_dir(), new.local.handle.clone()) else {
                continue;
            };
            let known = (new.local.ctime, new.state.meta.mtime);
            let trail = if self.source.wants_trail() {
                match self.draft.trail(Ref::New(token))? {
                    Some(trail) => Some(trail),
                    None => continue,
                }
            } else {
                None
            };
            let dir = Dir {
                handle: &handle,
                trail,
            };
            // What is not there any more has a name that says so; its events come.
            if let Look::Seen(seen) = self.source.look_dir(&dir)
                && (seen.ctime, seen.mtime) != known
                && let ReadEnd::Done(reading) = self.source.read(&dir, None, &seen, false)
            {
                self.replace_new(token, reading);
            }
        }
        Ok(())
    }
}
