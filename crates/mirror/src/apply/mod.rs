//! The replica side: groups of records become an exact tree.
//!
//! [`Applier`] merges groups into one [`mirror_core::plan::Plan`], looks at every name the plan would touch, and
//! executes it through directory descriptors and single names only. New inodes are made in the state directory's
//! `staging/`, verified and complete before they get a name in the tree; what is replaced by hand-made changes moves to
//! `adopted/`. This module never follows a symlink, never uses a path below DST, and never reads the source.

mod area;
mod batch;
pub(crate) mod content;
pub mod crash;
mod dirs;
mod error;
mod execute;
mod filler;
mod foreign;
mod journal;
mod keeping;
mod limbo;
mod look;
pub(crate) mod meta;
pub mod options;
mod outcome;
mod pending;
mod readout;
mod remove;
mod repair;
mod settable;
mod sifting;
mod stage;
pub mod staging;
mod steps;
pub mod store;
#[cfg(test)]
mod tests;
mod verify;
mod wipe;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mirror_core::history::{Moment, Trace as Traced};
use mirror_core::plan::{Misfit, Place, merge, merge_traced};
use mirror_core::{Content, ContentRef, Digest, ObjectId, Position, Record};

use crate::history::History;
use area::Area;
use dirs::Dirs;
use execute::Executed;
use journal::Journal;
use meta::Rules;
use options::Trace;
use pending::Pending;

pub use content::same_bytes;
pub use error::ApplyError;
pub use filler::{FillError, Filler};
pub use journal::{Inode, inode, inode_of};
pub use options::{Flush, Options, Owners};
pub use outcome::{Counts, Difference, DifferenceKind, Failure, Outcome, Recorded};
pub(crate) use stage::make_special;
pub use staging::{Staged, StagedDir, StagedFile, Staging, Token};
pub use store::Store;
pub use verify::{Further, Open};

/// Where the bytes of contents come from. Called from several threads at once.
pub trait Contents: Sync {
    /// The bytes of this content; `place`: where this host's log keeps them, if the record said so.
    fn fetch(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched;
    /// The same, but never [`Fetched::Travels`]: waits for it, however long it takes.
    fn fetch_patiently(
        &self,
        object: ObjectId,
        content: &Content,
        place: Option<ContentRef>,
    ) -> Fetched {
        self.fetch(object, content, place)
    }
    /// The same, but only if this host has it: a version that is over already is not asked for anywhere.
    fn at_hand(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched {
        self.fetch(object, content, place)
    }
    /// Of what was answered with [`Fetched::Travels`] only this is still wanted.
    fn keep(&self, wanted: &BTreeMap<ObjectId, Digest>) {
        let _ = wanted;
    }
    /// Whether some of it is there, or is known not to come, since this was asked last.
    fn has_arrived(&self) -> bool {
        false
    }
}

/// For those who must have it now.
pub struct Patient<'a>(pub &'a dyn Contents);

impl Contents for Patient<'_> {
    fn fetch(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched {
        self.0.fetch_patiently(object, content, place)
    }
    fn at_hand(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched {
        self.0.at_hand(object, content, place)
    }
}

/// For versions that are over.
struct AtHand<'a>(&'a dyn Contents);

impl Contents for AtHand<'_> {
    fn fetch(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched {
        self.0.at_hand(object, content, place)
    }
}

/// What [`Contents::fetch`] found.
pub enum Fetched {
    /// Of a file with holes: only the bytes of `content.data`, in order.
    Bytes(Arc<Vec<u8>>),
    /// The same, as a stream.
    Reader(Box<dyn Read + Send>),
    /// Already in staging, written through [`Staging`].
    Staged(Staged),
    /// The source does not have that version now, and looks at the object again because it was asked (*restate*). The old
    /// occupant stays; [`Applier::retry`] asks again, unless a successor record came first.
    Gone,
    /// On its way: the object waits, and all that does not depend on it goes on. [`Applier::retry`] once it is there.
    Travels,
    /// Not now; tried again by [`Applier::retry`].
    Failed(String),
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
    history: Option<History>,
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
    /// What an earlier process held was asked for again by this one.
    asked: bool,
}

const ROOT_KEY: &str = "apply.root";

pub(crate) fn store_error<E: std::error::Error + Send + Sync + 'static>(error: E) -> ApplyError {
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
        let mut pending = match store.get(pending::KEY).map_err(store_error)? {
            None => Pending::default(),
            Some(bytes) => {
                let damaged = || ApplyError::Records("the list of what failed is damaged".into());
                Pending::decode(&bytes).ok_or_else(damaged)?
            }
        };
        // What failed may have been done after all, by a try the rows do not know of.
        for wanted in pending.wanted.values_mut() {
            let names = wanted
                .want
                .iter()
                .flat_map(|want| want.names.iter().cloned());
            wanted.also.extend(names);
        }
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
            asked: pending.held.is_empty(),
            staging: Arc::new(Staging::new(
                area.sink.clone(),
                area.travelling.clone(),
                rules.clone(),
            )),
            dirs: Dirs::new(options.dir_fds_max),
            store,
            area,
            rules,
            options,
            pending,
            journal,
            history: None,
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

    /// From now on what is replaced and removed is kept; `None`: not any more.
    pub fn set_history(&mut self, history: Option<History>) -> Option<History> {
        std::mem::replace(&mut self.history, history)
    }
    pub fn history(&self) -> Option<&History> {
        self.history.as_ref()
    }
    pub fn history_mut(&mut self) -> Option<&mut History> {
        self.history.as_mut()
    }
    /// What the log says of the tree now: the rows, but what is owed as it ought to be.
    pub fn logical(&self) -> Result<mirror_core::plan::Overlay<'_, S>, ApplyError> {
        mirror_core::plan::owed(&self.store, &self.pending.wanted).map_err(store_error)
    }
    /// Both, at once.
    pub fn with_past<T>(
        &mut self,
        ask: impl FnOnce(&mirror_core::plan::Overlay<'_, S>, Option<&mut History>) -> T,
    ) -> Result<T, S::Error>
    where
        T: Sized,
    {
        let mut rows = mirror_core::plan::owed(&self.store, &self.pending.wanted)?;
        rows.forget_locals();
        Ok(ask(&rows, self.history.as_mut()))
    }
    /// What the rows know of the history that belongs to them.
    pub fn known(&self) -> Result<crate::history::catalogue::Known, ApplyError> {
        let last = self.store.get(HISTORY_LAST_KEY).map_err(store_error)?;
        Ok(crate::history::catalogue::Known {
            now: self.moment(),
            last: history_last(last),
        })
    }
    /// The position of the rows, as histories count.
    pub fn moment(&self) -> Moment {
        self.store.position().map_or(Moment(0), Moment::of)
    }

    /// Whether a copy is being adopted: see [`Options::adopting`].
    pub fn set_adopting(&mut self, adopting: bool) {
        self.options.adopting = adopting;
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
            applied: self.applied(),
            ..outcome
        })
    }

    /// All records up to here are in the copy, but for what failed. Behind the rows' position while contents travel.
    pub fn applied(&self) -> Option<Position> {
        let held = self.pending.held.values().map(|held| held.before);
        held.chain([self.store.position()]).min().flatten()
    }
    /// Time of the oldest record that waits for a content on its way.
    pub fn held_since_ns(&self) -> Option<u64> {
        self.pending.held.values().map(|held| held.since_ns).min()
    }
    /// Objects whose contents are on their way, and what of.
    pub fn travelling(&self) -> BTreeMap<ObjectId, Content> {
        let content = |id: &ObjectId| {
            let want = self.pending.wanted.get(id)?.want.as_ref()?;
            Some((*id, want.state.kind.content()?.clone()))
        };
        self.pending.travels.iter().filter_map(content).collect()
    }
    /// Of those: had failed before, and the position passed them.
    pub fn asked_again(&self) -> usize {
        let held = |id: &&ObjectId| !self.pending.held.contains_key(id);
        self.pending.travels.iter().filter(held).count()
    }
    /// What an earlier process waited for was not asked for again yet.
    pub fn must_ask(&self) -> bool {
        !self.asked && self.replay_until.is_none()
    }
    /// Something waits for a content on its way.
    pub fn holds(&self) -> bool {
        !self.pending.held.is_empty()
    }

    /// Tries again what failed.
    pub fn retry(&mut self, contents: &dyn Contents) -> Result<Outcome, ApplyError> {
        if self.pending.wanted.is_empty() || self.replay_until.is_some() {
            return Ok(self.outcome());
        }
        let outcome = self.batch(&[], self.store.position(), contents)?;
        self.asked = true;
        self.dirty.get_or_insert_with(Instant::now);
        Ok(Outcome {
            applied: self.applied(),
            ..outcome
        })
    }

    /// What is not as it should be, as of [`Applier::applied`].
    pub fn failed(&self) -> Vec<Failure> {
        let failed = |(id, _): &(&ObjectId, &Failure)| !self.pending.held.contains_key(id);
        let failed = self.pending.why.iter().filter(failed);
        failed.map(|(_, why)| why.clone()).collect()
    }

    /// Where an object is by the rows, or will be that is only wanted yet. `None`: it is not known at all.
    pub fn path_of(&self, object: ObjectId) -> Option<Vec<u8>> {
        let mut names: Vec<mirror_core::Name> = Vec::new();
        let mut id = object;
        while id != ObjectId::ROOT && names.len() < 1 << 16 {
            let row = self.store.object(id).ok()?;
            let wanted = || self.pending.wanted.get(&id)?.want.clone();
            let at = row.or_else(wanted)?.names.first()?.clone();
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
        // Rows must not say that something is gone before what is kept of it is safe.
        if self.options.flush != Flush::Never
            && let Some(history) = &mut self.history
        {
            history.flush().map_err(ApplyError::History)?;
            // What must be there when it is opened again.
            let last = history.catalogue.last().map(|last| last.0.to_le_bytes());
            self.store
                .set(HISTORY_LAST_KEY, last.as_ref().map(|last| &last[..]))
                .map_err(store_error)?;
        }
        self.store.flush().map_err(store_error)?;
        crash::point("checkpointed");
        self.trace(Trace::FlushRows);
        // A list that could not be shortened only names inodes that the rows know by now.
        let wanted = &self.pending.wanted;
        // And until a replay is done they are all needed, as while what it is to remove is still there.
        let unfinished = self.replaying || !self.limbo.is_empty();
        let _ = self
            .journal
            .restart(|object| unfinished || wanted.contains_key(&object));
        self.dirty = None;
        self.batches = 0;
        Ok(())
    }

    /// Checkpoint, and what was staged in vain removed.
    pub fn close(mut self) -> Result<S, ApplyError> {
        self.checkpoint()?;
        if !self.replaying
            && self.replay_until.is_none()
            && let Some(position) = self.store.position()
        {
            self.area.comes_to_rest(position);
        }
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

    fn trace(&self, what: Trace) {
        if let Some(trace) = &self.options.trace {
            trace(what);
        }
    }
    fn outcome(&self) -> Outcome {
        Outcome {
            applied: self.applied(),
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
            let wanted = &self.pending.wanted;
            let merged = match self.history {
                Some(_) => merge_traced(&self.store, wanted, groups, groups.is_empty()),
                None => merge(&self.store, wanted, groups, groups.is_empty())
                    .map(|merged| (merged, Traced::default())),
            };
            let (merged, traced) = merged.map_err(|misfit| match misfit {
                Misfit::Rows(e) => store_error(e),
                Misfit::Record { position, what } => {
                    ApplyError::Records(format!("{what}, at {position}"))
                }
            })?;
            let fresh = groups.first().map(|record| record.time_ns);
            match self.execute(&merged, traced, position, fresh, contents) {
                Ok(Executed::Done(outcome)) => return Ok(*outcome),
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
}

/// Kept with the rows: the last group that history had when they were made durable.
pub const HISTORY_LAST_KEY: &str = "history_last";

pub fn history_last(value: Option<Vec<u8>>) -> Option<Moment> {
    let bytes = value?.try_into().ok()?;
    Some(Moment(u64::from_le_bytes(bytes)))
}

/// What these rows still owe.
pub fn wanted_of<S: Store>(
    store: &S,
) -> Result<BTreeMap<ObjectId, mirror_core::plan::Wanted>, ApplyError> {
    let Some(bytes) = store.get(pending::KEY).map_err(store_error)? else {
        return Ok(BTreeMap::new());
    };
    let damaged = || ApplyError::Records("the list of what failed is damaged".into());
    Ok(Pending::decode(&bytes).ok_or_else(damaged)?.wanted)
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
