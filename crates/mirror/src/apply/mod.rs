//! The replica side: groups of records become an exact tree.
//!
//! [`Applier`] merges groups into one [`mirror_core::plan::Plan`], looks at every name the plan would touch, and
//! executes it through directory descriptors and single names only. New inodes are made in the state directory's
//! `staging/`, verified and complete before they get a name in the tree; what is replaced by hand-made changes moves to
//! `adopted/`. This module never follows a symlink, never uses a path below DST, and never reads the source.

mod area;
mod batch;
mod content;
pub mod crash;
mod dirs;
mod error;
mod foreign;
mod journal;
mod look;
mod meta;
pub mod options;
mod pending;
mod settable;
mod stage;
pub mod staging;
mod steps;
pub mod store;
#[cfg(test)]
mod tests;
mod verify;
mod wipe;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mirror_core::plan::{Merged, Misfit, Occupant, Overlay, Place, Step, Wanted, merge, order};
use mirror_core::{At, Content, ContentRef, Digest, ObjectId, Position, Record};

use area::{Area, look};
use batch::{Batch, StepError, ToFlush};
use dirs::{Dirs, is_local};
use journal::Journal;
use look::Looked;
use meta::Rules;
use options::Trace;
use pending::Pending;

pub use error::ApplyError;
pub use options::{Flush, Options, Owners};
pub use staging::{Staged, StagedDir, StagedFile, Staging, Token};
pub use store::Store;

/// Where the bytes of contents come from. Called from several threads at once.
pub trait Contents: Sync {
    /// The bytes of this content; `place`: where this host's log keeps them, if the record said so.
    fn fetch(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched;
}

/// What [`Contents::fetch`] found.
pub enum Fetched {
    /// Of a file with holes: only the bytes of `content.data`, in order.
    Bytes(Vec<u8>),
    /// The same, as a stream.
    Reader(Box<dyn Read + Send>),
    /// Already in staging, written through [`Staging`].
    Staged(Staged),
    /// The source does not have that version now, and looks at the object again because it was asked (*restate*). The old
    /// occupant stays; [`Applier::retry`] asks again, unless a successor record came first.
    Gone,
    /// Not now; tried again by [`Applier::retry`].
    Failed(String),
}

/// What one call of [`Applier::apply`] or [`Applier::retry`] did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The rows, and the tree but for `failed`, are as of here.
    pub applied: Option<Position>,
    pub counts: Counts,
    /// Objects that are not as they should be, with the reason. They stay listed in [`Applier::failed`].
    pub failed: Vec<Failure>,
    /// Objects that were listed as failed and now are as they should be.
    pub healed: Vec<ObjectId>,
    /// Things made by hand in the tree that stood in the way: moved to `adopted/`, shown as names inside it.
    pub moved_aside: Vec<Vec<u8>>,
    /// What this host can't set, kept in the rows only: of all there is, as of now.
    pub recorded: Recorded,
}

/// How much was done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub created: u64,
    pub content: u64,
    pub content_bytes: u64,
    pub meta: u64,
    pub renamed: u64,
    pub linked: u64,
    pub removed: u64,
    /// Already there and equal: nothing copied.
    pub adopted: u64,
    pub moved_aside: u64,
}

/// Objects with something that was only recorded, by what it was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    pub owners: u64,
    pub setid: u64,
    pub devices: u64,
    pub xattrs: u64,
    pub labels: u64,
    pub flags: u64,
    pub projects: u64,
}

/// An object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub object: ObjectId,
    /// What was being done: `stage`, `fetch`, `rename`, ...
    pub step: &'static str,
    pub reason: String,
    /// The source did not have this version when it was asked. Being asked made it look at the object again: either it
    /// has it by then, or a successor record, or the removal, is in the log.
    pub void: bool,
}

/// What [`Applier::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `None`: something that no record made.
    pub object: Option<ObjectId>,
    /// Relative to DST, raw bytes.
    pub path: Vec<u8>,
    pub what: DifferenceKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DifferenceKind {
    Missing,
    /// Not in the index.
    Extra,
    Type,
    Content,
    Meta,
    /// Another set of names.
    Links,
    Unreadable,
    /// Known: in the failed list.
    Pending,
}

/// Applies records to one copy.
pub struct Applier<S: Store> {
    store: S,
    area: Area,
    rules: Rules,
    staging: Arc<Staging>,
    options: Options,
    dirs: Dirs,
    pending: Pending,
    journal: Journal,
    recorded: Recorded,
    /// What could be set when the copy was made, where that is not what can be set now.
    behind: Option<Rules>,
    /// What a crash or a failure left in limbo.
    limbo: BTreeMap<Place, ObjectId>,
    /// The tree may show more than the rows say.
    replaying: bool,
    replay_until: Option<Position>,
    /// Since when the rows are not durable, and how many batches that is.
    dirty: Option<Instant>,
    batches: u32,
}

const ROOT_KEY: &str = "apply.root";

fn store_error<E: std::error::Error + Send + Sync + 'static>(error: E) -> ApplyError {
    ApplyError::Store(Box::new(error))
}

impl<S: Store> Applier<S> {
    /// Opens the copy at `dst` with its state in `state_dir`, on the same file system. A copy whose rows are empty is
    /// new: its directory is made, or taken as it is.
    pub fn open(
        dst: &Path,
        state_dir: &Path,
        store: S,
        options: Options,
    ) -> Result<Applier<S>, ApplyError> {
        let known = store.get(ROOT_KEY).map_err(store_error)?;
        let area = Area::open(dst, state_dir, known.is_none())?;
        let mut root = area.root_stat.ino.to_le_bytes().to_vec();
        root.extend(area.root_stat.btime.seconds.to_le_bytes());
        root.extend(area.root_stat.btime.nanos.to_le_bytes());
        if known.as_ref().is_some_and(|known| *known != root) {
            let what = "another directory is there now".into();
            return Err(ApplyError::Root {
                path: dst.into(),
                what,
            });
        }
        let io = |step| {
            move |e: crate::sys::Errno| ApplyError::Io {
                step,
                path: state_dir.into(),
                source: e.into(),
            }
        };
        wipe_all(&area.new)
            .and_then(|()| wipe_all(&area.sink))
            .map_err(io("empty the staging area of"))?;
        let tried = store.get(settable::RULES_KEY).map_err(store_error)?;
        let rules = match Rules::probe(&area.new, options.owners) {
            Ok(rules) => rules,
            // So full that nothing can be tried, when what is to be removed would make room: as it was found before.
            Err(e @ (crate::sys::Errno::NOSPC | crate::sys::Errno::DQUOT)) => tried
                .as_deref()
                .and_then(Rules::from_bytes)
                .filter(|rules| rules.owners == options.owners)
                .ok_or_else(|| io("try what can be kept in")(e))?,
            Err(e) => return Err(io("try what can be kept in")(e)),
        };
        let pending = match store.get(pending::KEY).map_err(store_error)? {
            None => Pending::default(),
            Some(bytes) => {
                let damaged = || ApplyError::Records("the list of what failed is damaged".into());
                Pending::decode(&bytes).ok_or_else(damaged)?
            }
        };
        let made = state_dir.join("made");
        let journal = Journal::open(&made).map_err(|source| ApplyError::Io {
            step: "open",
            path: made,
            source,
        })?;
        let applying = area.applying();
        let replay_until =
            applying.filter(|position| store.position().is_none_or(|have| have < *position));
        let mut applier = Applier {
            staging: Arc::new(Staging::new(area.sink.clone(), rules.clone())),
            dirs: Dirs::new(options.dir_fds_max),
            store,
            area,
            rules,
            options,
            pending,
            journal,
            recorded: Recorded::default(),
            behind: None,
            limbo: BTreeMap::new(),
            replaying: true,
            replay_until,
            dirty: None,
            batches: 0,
        };
        applier
            .sort_out_limbo()
            .map_err(io("sort out what a crash left in"))?;
        applier.open_rules()?;
        if known.is_none() {
            applier
                .store
                .set(ROOT_KEY, Some(&root))
                .map_err(store_error)?;
        }
        Ok(applier)
    }

    /// After a crash: the next call of `apply` must bring every group up to here at least, in one slice, because the
    /// tree may already show some of it. `None`: nothing to do.
    pub fn replay_until(&self) -> Option<Position> {
        self.replay_until
    }
    /// The log as it was found ends here. Nothing beyond was ever applied, so no replay need reach further.
    pub fn log_ends(&mut self, end: Option<Position>) {
        let have = self.store.position();
        self.replay_until = self.replay_until.min(end).filter(|end| have < Some(*end));
    }
    pub fn store(&self) -> &S {
        &self.store
    }
    /// For small things kept with the index, durable at the next checkpoint; rows are the applier's.
    pub fn store_mut(&mut self) -> &mut S {
        self.dirty.get_or_insert_with(Instant::now);
        &mut self.store
    }
    /// The sink for contents that come before their record.
    pub fn staging(&self) -> Arc<Staging> {
        self.staging.clone()
    }
    /// Steady state or first copy: see [`Flush`]. Going back to `Batch` flushes what the other way left out.
    pub fn set_flush(&mut self, flush: Flush) -> Result<(), ApplyError> {
        if self.options.flush != flush {
            self.checkpoint()?;
            self.options.flush = flush;
        }
        Ok(())
    }

    /// Brings the tree from the rows to after these groups: consecutive whole groups, the first one following the
    /// rows' position. `head`: the log's hash at the last record. An error means the position did not move and the same
    /// groups must come again; a single object that fails is in the outcome instead.
    pub fn apply(
        &mut self,
        groups: &[Record],
        head: Digest,
        contents: &dyn Contents,
    ) -> Result<Outcome, ApplyError> {
        let Some(position) = groups.last().map(|record| record.position) else {
            return Ok(self.outcome());
        };
        if self.replay_until.is_some_and(|until| until > position) {
            return Err(ApplyError::Records(format!(
                "a replay must reach {:?} at once",
                self.replay_until
            )));
        }
        let outcome = self.batch(groups, Some(position), contents)?;
        self.store.advance(position, head);
        self.replay_until = None;
        self.replaying = false;
        self.dirty.get_or_insert_with(Instant::now);
        self.batches += 1;
        self.trace(Trace::Rows);
        let late = self
            .dirty
            .is_some_and(|since| since.elapsed() >= self.options.checkpoint_every);
        if late || self.batches >= self.options.checkpoint_batches_max {
            self.checkpoint()?;
        }
        Ok(Outcome {
            applied: Some(position),
            ..outcome
        })
    }

    /// Tries again what failed.
    pub fn retry(&mut self, contents: &dyn Contents) -> Result<Outcome, ApplyError> {
        if self.pending.wanted.is_empty() || self.replay_until.is_some() {
            return Ok(self.outcome());
        }
        let outcome = self.batch(&[], self.store.position(), contents)?;
        self.dirty.get_or_insert_with(Instant::now);
        Ok(outcome)
    }

    /// What is not as it should be, as of the position.
    pub fn failed(&self) -> Vec<Failure> {
        self.pending.why.values().cloned().collect()
    }

    /// Where an object is by the rows, or will be that is only wanted yet. `None`: it is not known at all.
    pub fn path_of(&self, object: ObjectId) -> Option<Vec<u8>> {
        let mut names: Vec<mirror_core::Name> = Vec::new();
        let mut id = object;
        while id != ObjectId::ROOT && names.len() < 1 << 16 {
            let row = self.store.object(id).ok()?;
            let wanted = || self.pending.wanted.get(&id)?.want.clone();
            let at = row.or_else(wanted)?.names.into_iter().next()?;
            id = at.parent;
            names.push(at.name);
        }
        let names: Vec<&[u8]> = names
            .iter()
            .rev()
            .map(mirror_core::Name::as_bytes)
            .collect();
        Some(names.join(&b'/'))
    }

    /// Makes rows and position durable now. Otherwise that happens about once a second, within `apply`.
    pub fn checkpoint(&mut self) -> Result<(), ApplyError> {
        if self.dirty.is_none() {
            return Ok(());
        }
        if self.options.flush == Flush::Checkpoint {
            let synced = rustix::fs::syncfs(&*self.area.new);
            synced.map_err(|e| ApplyError::Flush {
                what: "the copy",
                source: e.into(),
            })?;
            self.trace(Trace::FlushDirs);
        }
        let bytes = if self.pending.wanted.is_empty() {
            None
        } else {
            let bytes = self.pending.encode();
            Some(bytes.ok_or_else(|| {
                ApplyError::Records("the list of what failed can't be written".into())
            })?)
        };
        self.store
            .set(pending::KEY, bytes.as_deref())
            .map_err(store_error)?;
        self.save_recorded()?;
        crash::point("checkpoint");
        self.store.flush().map_err(store_error)?;
        crash::point("checkpointed");
        self.trace(Trace::FlushRows);
        // A list that could not be shortened only names inodes that the rows know by now.
        let wanted = &self.pending.wanted;
        let _ = self.journal.restart(|object| wanted.contains_key(&object));
        self.dirty = None;
        self.batches = 0;
        Ok(())
    }

    /// Checkpoint, and what was staged in vain removed.
    pub fn close(mut self) -> Result<S, ApplyError> {
        self.checkpoint()?;
        self.staging.forget_all();
        let wiped = wipe_all(&self.area.new).and_then(|()| wipe_all(&self.area.sink));
        wiped.map_err(|e| ApplyError::Io {
            step: "empty the staging area beside",
            path: self.area.root_path.clone(),
            source: e.into(),
        })?;
        Ok(self.store)
    }

    /// Compares the whole copy with the rows: all metadata and, with `content`, every byte. Only reads.
    pub fn verify(
        &self,
        content: bool,
        each: &mut dyn FnMut(Difference),
    ) -> Result<(), ApplyError> {
        self.area.check_root()?;
        let dirs = Dirs::new(self.options.dir_fds_max);
        let (rows, area, rules, pending) = (&self.store, &self.area, &self.rules, &self.pending);
        verify::Verify {
            rows,
            area,
            rules,
            pending,
            dirs,
            content,
            each,
        }
        .run()
    }

    /// Puts right what `verify` found: moves strangers aside, makes what is missing or different anew.
    pub fn repair(
        &mut self,
        differences: &[Difference],
        contents: &dyn Contents,
    ) -> Result<Outcome, ApplyError> {
        self.area.check_root()?;
        let mut moved = 0;
        for difference in differences {
            match (difference.object, difference.what) {
                (_, DifferenceKind::Pending) => {}
                (None, _) => {
                    let aside = verify::walk(&self.area, &difference.path)
                        .and_then(|(fd, name)| self.move_extra(&fd, &name));
                    match aside {
                        Ok(()) => moved += 1,
                        Err(crate::sys::Errno::NOENT) => {}
                        Err(e) => {
                            let path = self.area.root_path.clone();
                            return Err(ApplyError::Io {
                                step: "move something aside in",
                                path,
                                source: e.into(),
                            });
                        }
                    }
                    // Moving it changed its directory's time.
                    self.owe_parent(&difference.path)?;
                }
                (Some(id), what) => {
                    let meta_only = what == DifferenceKind::Meta;
                    let why = "it was changed by hand in the copy";
                    self.owe(id, meta_only, why)?;
                    self.owe_parent(&difference.path)?;
                }
            }
        }
        self.replaying = true;
        self.dirty.get_or_insert_with(Instant::now);
        let mut outcome = self.retry(contents)?;
        self.replaying = self.replay_until.is_some();
        outcome.counts.moved_aside += moved;
        Ok(outcome)
    }

    fn move_extra(&mut self, fd: &std::os::fd::OwnedFd, name: &[u8]) -> crate::sys::Result<()> {
        let (to, shown) = self.area.adopt_dir(self.store.position(), name)?;
        crate::sys::target::rename(fd, name, &to, name)?;
        self.area.moved_aside.push(shown);
        Ok(())
    }

    /// The directory a path lies in has another mtime now.
    fn owe_parent(&mut self, path: &[u8]) -> Result<(), ApplyError> {
        let mut dir = ObjectId::ROOT;
        let mut names: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        names.pop();
        for name in names {
            let Ok(name) = mirror_core::Name::new(name) else {
                return Ok(());
            };
            match self
                .store
                .name(&mirror_core::At { parent: dir, name })
                .map_err(store_error)?
            {
                Some(id) => dir = id,
                None => return Ok(()),
            }
        }
        let why = "something in it was put right";
        self.owe(dir, true, why)
    }

    fn trace(&self, what: Trace) {
        if let Some(trace) = &self.options.trace {
            trace(what);
        }
    }
    fn outcome(&self) -> Outcome {
        Outcome {
            applied: self.store.position(),
            recorded: self.recorded,
            ..Outcome::default()
        }
    }

    fn batch(
        &mut self,
        groups: &[Record],
        position: Option<Position>,
        contents: &dyn Contents,
    ) -> Result<Outcome, ApplyError> {
        self.area.check_root()?;
        // Each round learns of directories that are not there any more; there are finitely many.
        loop {
            // What is kept open may have been moved out of the copy by hand, or is known to be lost by now.
            let lifted = std::mem::take(&mut self.dirs.lifted);
            self.dirs.clear();
            self.dirs.lifted = lifted;
            let merged = merge(&self.store, &self.pending.wanted, groups, groups.is_empty());
            let merged = merged.map_err(|misfit| match misfit {
                Misfit::Rows(e) => store_error(e),
                Misfit::Record { position, what } => {
                    ApplyError::Records(format!("{what}, at {position}"))
                }
            })?;
            match self.execute(&merged, position, contents) {
                Ok(Executed::Done(outcome)) => return Ok(outcome),
                Ok(Executed::Unknown) => {
                    self.checkpoint()?;
                    let sorted = self.sort_out_limbo();
                    sorted.map_err(|e| ApplyError::Io {
                        step: "sort out limbo beside",
                        path: self.area.root_path.clone(),
                        source: e.into(),
                    })?;
                }
                Ok(Executed::Lost(dirs)) => {
                    for id in dirs {
                        let why = "its directory was changed by hand in the copy";
                        self.owe(id, false, why)?;
                    }
                    self.replaying = true;
                }
                Err(e) => {
                    // Some of it may be in the tree, and nothing staged is believed.
                    self.replaying = true;
                    self.staging.forget_all();
                    let _ = wipe_all(&self.area.new).and_then(|()| wipe_all(&self.area.sink));
                    let _ = self.sort_out_limbo();
                    self.dirs.clear();
                    return Err(e);
                }
            }
        }
    }

    fn execute(
        &mut self,
        merged: &Merged,
        position: Option<Position>,
        contents: &dyn Contents,
    ) -> Result<Executed, ApplyError> {
        let mut rows = Overlay::new(&self.store);
        let new = merged.objects.iter().filter(|(_, t)| t.old.is_none());
        new.for_each(|(id, _)| rows.mark_new(*id));
        let mut batch = Batch {
            rows,
            area: &mut self.area,
            dirs: &mut self.dirs,
            rules: &self.rules,
            staging: &self.staging,
            contents,
            journal: &mut self.journal,
            options: &self.options,
            merged,
            position,
            replaying: self.replaying,
            now: BTreeMap::new(),
            stats: BTreeMap::new(),
            made: BTreeMap::new(),
            complete: BTreeSet::new(),
            failed: BTreeMap::new(),
            called: BTreeMap::new(),
            stirred: BTreeSet::new(),
            stamped: BTreeSet::new(),
            late: BTreeSet::new(),
            flush: ToFlush::default(),
            counts: Counts::default(),
        };
        let fatal = |error| match error {
            StepError::Fatal(e) => e,
            StepError::Fails { step, reason } => ApplyError::Records(format!("{step}: {reason}")),
            StepError::Held => ApplyError::Records("a step without ground".into()),
        };
        let seen = match batch.look(&self.limbo).map_err(fatal)? {
            Looked::Lost(dirs) => return Ok(Executed::Lost(dirs)),
            Looked::Seen(seen) => seen,
        };
        let plan = order(&self.store, merged, &seen).map_err(store_error)?;
        if self.dirty.is_some() && plan.steps.iter().any(|step| passes_limbo(step, merged)) {
            return Ok(Executed::Unknown);
        }
        batch.begin(&seen).map_err(fatal)?;
        batch.run(&plan).map_err(fatal)?;
        batch.restat().map_err(fatal)?;

        let Batch {
            rows,
            now,
            failed,
            counts,
            ..
        } = batch;
        let limbo: BTreeMap<Place, ObjectId> = now
            .iter()
            .filter_map(|(place, occupant)| match (place, occupant) {
                (Place::Limbo(..), Occupant::Is(id)) => Some((place.clone(), *id)),
                _ => None,
            })
            .collect();
        let in_limbo: BTreeSet<ObjectId> = limbo.values().copied().collect();
        // Where something of an object that is not settled was left, the next try looks again.
        let mut stands: BTreeMap<ObjectId, BTreeSet<At>> = BTreeMap::new();
        for (place, occupant) in &now {
            if let (Place::Tree(at), Occupant::Is(id) | Occupant::Old(id)) = (place, occupant) {
                stands.entry(*id).or_default().insert(at.clone());
            }
        }
        let mut pending = self.pending.clone();
        let mut outcome = Outcome {
            counts,
            ..Outcome::default()
        };
        let mut changes = rows.into_changes();
        drop_unreachable(&mut changes, &in_limbo);
        let settled = |id: &ObjectId, row: Option<&mirror_core::Object>| match (
            &merged.objects[id].want,
            row,
        ) {
            (None, None) => true,
            (Some(want), Some(row)) => want.state == row.state && want.names == row.names,
            _ => false,
        };
        let kept = |id: &ObjectId, row: &mirror_core::Object| {
            !row.names.is_empty() || *id == ObjectId::ROOT || in_limbo.contains(id)
        };
        let mut failed = failed;
        for (id, target) in &merged.objects {
            let row = match changes.get(id) {
                Some(row) => row.as_ref(),
                None => target.old.as_ref(),
            };
            let row = row.filter(|row| kept(id, row));
            if settled(id, row) && !failed.contains_key(id) {
                if pending.wanted.remove(id).is_some() {
                    outcome.healed.push(*id);
                }
                pending.why.remove(id);
                continue;
            }
            let why = failed.remove(id).unwrap_or_else(|| Failure {
                object: *id,
                step: "wait",
                reason: "something it depends on failed".into(),
                void: target.void,
            });
            let void = why.void;
            let known = |at: &At| row.as_ref().is_some_and(|row| row.names.contains(at));
            let seen = stands.remove(id).unwrap_or_default();
            let wanted = Wanted {
                want: target.want.clone(),
                place: target.place,
                void,
                also: seen.into_iter().filter(|at| !known(at)).collect(),
            };
            pending.wanted.insert(*id, wanted);
            pending.why.insert(*id, why.clone());
            outcome.failed.push(why);
        }
        // What failed without being part of the batch: directories whose time could not be restored.
        for (id, why) in failed {
            let row = self.store.object(id).map_err(store_error)?;
            if row.is_some() {
                pending.wanted.insert(
                    id,
                    Wanted {
                        want: row,
                        place: None,
                        void: false,
                        also: BTreeSet::new(),
                    },
                );
                pending.why.insert(id, why.clone());
            }
            outcome.failed.push(why);
        }
        let newly = outcome.failed.len();
        if newly > self.options.failed_max
            || pending.wanted.len() > self.options.failed_max.max(newly)
        {
            let first = outcome
                .failed
                .first()
                .map(|why| format!("{}: {}", why.step, why.reason));
            return Err(ApplyError::TooManyFailures {
                count: newly,
                first: first.unwrap_or_default(),
            });
        }
        crash::point("rows");
        let mut new = Vec::new();
        for (id, row) in changes {
            let target = merged.objects.get(&id);
            let known = target.is_none_or(|t| t.old.is_some());
            let row = row.filter(|row| kept(&id, row));
            let before = match target {
                Some(target) => target.old.clone(),
                None => self.store.object(id).map_err(store_error)?,
            };
            self.recount(
                before.as_ref().map(|row| &row.state),
                row.as_ref().map(|row| &row.state),
            );
            match row {
                Some(row) if known => self.store.put(id, row).map_err(store_error)?,
                Some(row) => new.push((id, row)),
                None if known => self.store.remove(id).map_err(store_error)?,
                None => {}
            }
        }
        // When what had their names before has let go of them.
        for (id, row) in new {
            self.store.put_new(id, row).map_err(store_error)?;
        }
        self.pending = pending;
        self.limbo.retain(|_, id| !merged.objects.contains_key(id));
        self.limbo.extend(limbo);
        self.staging.tidy();
        if !outcome.failed.is_empty() {
            // What was made in vain would be in the way of the next try.
            let _ = wipe_all(&self.area.new);
        }
        self.dirs.elsewhere.clear();
        outcome.moved_aside = self.area.end_batch();
        outcome.recorded = self.recorded;
        Ok(Executed::Done(outcome))
    }

    /// After a crash: whose inodes are in limbo? What the rows do not know was on its way in, and is made again.
    fn sort_out_limbo(&mut self) -> crate::sys::Result<()> {
        self.limbo.clear();
        for name in names_in(&self.area.limbo)? {
            let Some(stat) = look(&*self.area.limbo, &name)? else {
                continue;
            };
            let text = name.strip_suffix(b".swap").unwrap_or(&name);
            let place = Area::limbo_place(text);
            let mut whose = None;
            if let Some(Place::Limbo(a, b)) = &place {
                for id in [a, b] {
                    if let Ok(Some(row)) = self.store.object(*id)
                        && is_local(&stat, &row.local)
                    {
                        whose = Some(*id);
                    }
                }
            }
            match (whose, place) {
                (Some(id), Some(place)) => {
                    if text.len() != name.len() {
                        crate::sys::target::rename_noreplace(
                            &*self.area.limbo,
                            &name,
                            &*self.area.limbo,
                            text,
                        )?;
                    }
                    self.limbo.insert(place, id);
                }
                _ => wipe::remove(&*self.area.limbo, &name, 0, &mut wipe::All)?,
            }
        }
        for name in names_in(&self.area.aside)? {
            let (to, shown) = self.area.adopt_dir(self.store.position(), &name)?;
            crate::sys::target::rename(&*self.area.aside, &name, &to, &name)?;
            self.area.moved_aside.push(shown);
        }
        Ok(())
    }
}

/// A directory that did not get its name takes down what was staged in it: no row may say that it is there.
fn drop_unreachable(
    changes: &mut BTreeMap<ObjectId, Option<mirror_core::Object>>,
    in_limbo: &BTreeSet<ObjectId>,
) {
    loop {
        let nameless = |id: &ObjectId, row: &Option<mirror_core::Object>| {
            *id != ObjectId::ROOT
                && !in_limbo.contains(id)
                && row.as_ref().is_none_or(|row| row.names.is_empty())
        };
        let gone: BTreeSet<ObjectId> = changes
            .iter()
            .filter(|(id, row)| nameless(id, row))
            .map(|(id, _)| *id)
            .collect();
        let mut changed = false;
        for row in changes.values_mut().flatten() {
            let names = row.names.len();
            row.names.retain(|at| !gone.contains(&at.parent));
            changed |= row.names.len() != names;
        }
        if !changed {
            return;
        }
    }
}

enum Executed {
    Done(Outcome),
    Lost(BTreeSet<ObjectId>),
    /// Nothing was done: the rows must be durable first.
    Unknown,
}

/// Whether something that stays wanted is outside the tree for a moment. A crash then must find it in the durable rows,
/// or it would be taken for something that was on its way in, and be made again.
fn passes_limbo(step: &Step, merged: &Merged) -> bool {
    let wanted = |id: &ObjectId| {
        merged
            .objects
            .get(id)
            .is_some_and(|t| t.want.is_some() && t.old.is_some())
    };
    match step {
        Step::Exchange { object, other, .. } => match other {
            Occupant::Is(other) => wanted(object) || wanted(other),
            _ => wanted(object),
        },
        Step::Link { object, to, .. } | Step::Rename { object, to, .. } => {
            matches!(to, Place::Limbo(..)) && wanted(object)
        }
        _ => false,
    }
}

fn names_in(dir: &std::os::fd::OwnedFd) -> crate::sys::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    crate::sys::dir::list(dir, |name, _, _| names.push(name.to_vec()))?;
    Ok(names)
}

fn wipe_all(dir: &std::os::fd::OwnedFd) -> crate::sys::Result<()> {
    for name in names_in(dir)? {
        wipe::remove(dir, &name, 0, &mut wipe::All)?;
    }
    Ok(())
}
