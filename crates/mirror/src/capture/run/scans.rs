//! Scans of everything, or of a part: begun when there is doubt, taken in a bounded amount at a time.
//!
//! Where a loss would have no event to explain it, what a scan finds is held back until the guard had its word on what
//! is missing (`docs/decisions/0006-a-hold-leaves-the-copy.md`). Live changes do not wait for that.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mirror_core::guard::{Alarm, Loss, judge};
use mirror_core::reconcile::Dirty;
use mirror_core::{At, Handle, Name, Note, ObjectId, Rows};

use super::super::kernel::trail;
use super::super::prepared::PreparedDir;
use super::super::scan::{Found, Scan, ScanSetup};
use super::look::DUE_MAX;
use super::{Capture, Fatal};
use crate::engine::going::count_below_but;
use crate::engine::status::PathText;
use crate::index::Index;

/// Entries of read-ahead directories put into one group.
const AHEAD_ENTRIES_MAX: usize = 2048;
/// Missing names kept until a scan ends. More can only be a loss the guard stops at.
const MISSING_MAX: usize = 2_000_000;
/// Names held back until the guard had its word. Where there are more, all is looked at once more after it.
const HELD_MAX: usize = 16_384;
/// Objects remembered that were found elsewhere.
const MOVED_MAX: usize = 2_000_000;

/// Why a full scan runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Start,
    /// Events were lost, so whatever is gone may have gone by them.
    Overflow,
    /// Nothing should be found.
    Rolling,
    /// New directories that were too large to list at once; not the whole tree.
    Part,
}

pub(super) struct Running {
    pub scan: Scan,
    pub why: Why,
    pub began: Instant,
    pub missing: Vec<At>,
    pub corrections: u64,
    pub broken: Option<String>,
    pub found: u64,
    /// The log says that it began: only a scan that finds something is worth a record.
    pub noted: bool,
    guard: Guard,
    /// What was found, in order, while the guard had not had its word.
    held: VecDeque<Found>,
    held_names: usize,
    /// There was more, or what must be looked at in another way.
    again: bool,
    /// Known objects found under new names: nothing of them is lost.
    moved: HashSet<ObjectId>,
}

/// When the guard has its word on what a scan finds missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    /// At the end, of what was not explained: all else is taken as it comes.
    Last,
    /// Before anything is taken.
    First,
    /// It had it, and what was held back is taken.
    Passed,
}

impl Running {
    fn next(&mut self) -> Option<Found> {
        match self.guard {
            Guard::Passed => Some(self.held.pop_front().unwrap_or(Found::End)),
            Guard::First | Guard::Last => self.scan.found.try_recv().ok(),
        }
    }

    fn miss(&mut self, names: Vec<At>) {
        if self.missing.len() < MISSING_MAX {
            self.missing.extend(names);
        }
    }

    /// What is left for now, if anything.
    fn hold_back(&mut self, found: Found) -> Option<Found> {
        let names = match &found {
            Found::Differ(dirty) => dirty.len(),
            Found::Failed(failed) => failed.len(),
            Found::Dir(_) => 1,
            _ => return Some(found),
        };
        self.held_names += names;
        if self.again || self.held_names > HELD_MAX {
            self.again = true;
            self.held.clear();
        } else {
            self.held.push_back(found);
        }
        None
    }
}

impl Capture {
    pub(super) fn start_scan(&mut self) -> Result<(), Fatal> {
        if self.running.is_some() || !self.ahead.is_empty() {
            return Ok(());
        }
        if self.want_all.is_none() && self.last_scan.elapsed() >= self.scan_interval() {
            self.want_all = Some(Why::Rolling);
        }
        let (why, dirs) = match self.want_all.take() {
            Some(why) => {
                self.want_some.clear();
                (
                    why,
                    vec![(ObjectId::ROOT, self.tree.id.handle.clone(), Vec::new())],
                )
            }
            None if self.want_some.is_empty() => return Ok(()),
            None => {
                let rows = self.rows();
                let mut dirs = Vec::new();
                for id in &self.want_some {
                    if let Some(object) = rows.object(*id)?
                        && let Some(handle) = object.local.handle
                        && let Some(path) = trail(&*rows, *id)?
                    {
                        dirs.push((*id, handle, path));
                    }
                }
                drop(rows);
                self.want_some.clear();
                if dirs.is_empty() {
                    self.doubt.scan_ended(false, self.now_ms());
                    return Ok(());
                }
                (Why::Part, dirs)
            }
        };
        // What the queue holds is older than the scan: resolve it first, so that nothing is lost between them.
        self.source.walker.forget_all();
        // Without a copy there is nothing to lose, and what was released may go.
        let guard = match why {
            Why::Start | Why::Rolling
                if !self.options.released && self.rows().stats().entries > 0 =>
            {
                Guard::First
            }
            _ => Guard::Last,
        };
        if why != Why::Part {
            self.last_scan_began = Some(Instant::now());
            self.doubt.scan_began();
            if let Some(dirs) = self.watch.dirs() {
                dirs.begin_round();
            }
        }
        let scan = Scan::start(self.scan_setup(guard), &dirs);
        if why != Why::Part {
            self.shared.lock().scan = Some((scan.seen(), Instant::now()));
        }
        self.running = Some(Running {
            scan,
            why,
            began: Instant::now(),
            missing: Vec::new(),
            corrections: 0,
            broken: None,
            found: 0,
            noted: why == Why::Part,
            guard,
            held: VecDeque::new(),
            held_names: 0,
            again: false,
            moved: HashSet::new(),
        });
        Ok(())
    }

    fn scan_setup(&self, guard: Guard) -> ScanSetup {
        ScanSetup {
            tree: self.tree.clone(),
            index: self.index.clone(),
            filter: self.filter.clone(),
            sink: self.sink.clone(),
            watch: self.watch.clone(),
            read: self.options.read.clone(),
            threads: self.options.scan_threads,
            survey: guard == Guard::First,
            spill: self.spill.clone(),
        }
    }

    /// What was found waits to be taken.
    pub(super) fn scan_waits(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.guard == Guard::Passed)
    }

    /// Takes what the workers found, a bounded amount at a time.
    pub(super) fn scan_found(&mut self) -> Result<(), Fatal> {
        let until = Instant::now() + Duration::from_millis(20);
        let mut ended = false;
        while !ended
            && Instant::now() < until
            && let Some(running) = &mut self.running
            && let Some(mut found) = running.next()
        {
            if running.guard == Guard::First {
                match running.hold_back(found) {
                    Some(Found::End) => {
                        self.let_pass()?;
                        if self.shared.is_stopping() {
                            return Ok(());
                        }
                        continue;
                    }
                    Some(at_once) => found = at_once,
                    None => continue,
                }
                if let Found::Missing(names) = found {
                    running.miss(names);
                    continue;
                }
            } else if !matches!(found, Found::End) && !std::mem::replace(&mut running.noted, true) {
                self.note(Note::ScanBegin)?;
            }
            let Some(running) = &mut self.running else {
                break;
            };
            match found {
                Found::End => ended = true,
                Found::Missing(names) => {
                    if running.why == Why::Part {
                        self.look_at_missing(&names)?;
                    } else {
                        running.miss(names);
                    }
                }
                Found::Differ(dirty) => {
                    let found = self.reconcile(dirty, &[], None)?;
                    self.corrected(found);
                }
                Found::Dir(id) => {
                    let found = self.reconcile(Vec::new(), &[id], None)?;
                    self.corrected(found);
                }
                Found::Failed(failed) => {
                    let now = Instant::now();
                    for (at, failure) in failed {
                        self.fail(at, doubt(), failure, now);
                    }
                }
                Found::Foreign(paths) => {
                    self.foreign(paths.iter().map(|path| PathText::new(path)).collect())
                }
                Found::Broken(text) => running.broken = Some(text),
                Found::Moved(objects) => {
                    if running.moved.len() < MOVED_MAX {
                        running.moved.extend(objects);
                    }
                }
                Found::Deeper => running.again = true,
                Found::Ahead(prepared) => {
                    running.scan.taken(prepared.count());
                    self.ahead.push_back(*prepared);
                    let entries: usize = self.ahead.iter().map(PreparedDir::count).sum();
                    if entries >= AHEAD_ENTRIES_MAX {
                        self.take_ahead()?;
                    }
                }
            }
        }
        if ended
            || self
                .running
                .as_ref()
                .is_some_and(|running| running.scan.found.is_empty())
        {
            self.take_ahead()?;
        }
        if ended {
            self.scan_ended()?;
        }
        Ok(())
    }

    /// All was looked at: the guard's word, and if that is well, what was held back is taken.
    fn let_pass(&mut self) -> Result<(), Fatal> {
        self.judge()?;
        let again = self.running.as_ref().is_some_and(|running| running.again);
        let scan = again.then(|| {
            self.source.walker.forget_all();
            let root = (ObjectId::ROOT, self.tree.id.handle.clone(), Vec::new());
            Scan::start(self.scan_setup(Guard::Last), &[root])
        });
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        match scan {
            Some(scan) => {
                self.shared.lock().scan = Some((scan.seen(), running.began));
                running.scan = scan;
                running.guard = Guard::Last;
                running.missing.clear();
            }
            None => running.guard = Guard::Passed,
        }
        Ok(())
    }

    /// Holds if much is missing that nothing explains.
    fn judge(&mut self) -> Result<(), Fatal> {
        if self.shared.is_stopping() {
            return Ok(());
        }
        if let Some(running) = &mut self.running
            && let Some(text) = running.broken.take()
        {
            return Err(Fatal::Index(format!(
                "the tree could not be looked at: {text}"
            )));
        }
        self.hear_out()?;
        let released = std::mem::take(&mut self.options.released);
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let lost = running.why == Why::Rolling && self.want_all == Some(Why::Overflow);
        let explained = running.why == Why::Overflow || lost;
        if explained || released {
            return Ok(());
        }
        let seen = running.scan.seen();
        let entries = seen.entries.load(std::sync::atomic::Ordering::Relaxed);
        let missing = std::mem::take(&mut running.missing);
        let moved = std::mem::take(&mut running.moved);
        self.guard_missing(&missing, &moved, entries)?;
        if let Some(running) = &mut self.running {
            running.missing = missing;
        }
        Ok(())
    }

    pub(super) fn corrected(&mut self, records: u64) {
        if let Some(running) = &mut self.running {
            running.found += records;
            if running.why == Why::Rolling {
                running.corrections += records;
            }
        }
    }

    /// Directories that were read ahead become one group.
    pub(super) fn take_ahead(&mut self) -> Result<(), Fatal> {
        while !self.ahead.is_empty() && !self.shared.is_stopping() {
            let mut batch: Vec<PreparedDir> = Vec::new();
            let mut handles: BTreeSet<Handle> = BTreeSet::new();
            let mut dirty: Vec<(At, Dirty)> = Vec::new();
            let mut entries = 0;
            let index = self.index.clone();
            let rows = index.read().unwrap_or_else(PoisonError::into_inner);
            while let Some(mut dir) = self.ahead.pop_front() {
                // A directory comes once in a batch, so that its parts do not hide each other.
                if handles.contains(&dir.handle)
                    || (entries > 0 && entries + dir.count() > 2 * AHEAD_ENTRIES_MAX)
                {
                    self.ahead.push_front(dir);
                    break;
                }
                entries += dir.count();
                let changed = |name: &Name, parent| {
                    (
                        At {
                            parent,
                            name: name.clone(),
                        },
                        Dirty {
                            contents: true,
                            ..Dirty::default()
                        },
                    )
                };
                match (rows.by_handle(&dir.handle)?, &dir.own) {
                    (Some(id), _) => {
                        // Events told of these; they are being read.
                        let reads = &self.source.reads;
                        dir.entries
                            .retain(|_, reading| !reads.contains(&reading.seen.handle));
                        if let Some(token) = dir.token {
                            self.sink.bind(token, id);
                        }
                        dirty.extend(dir.names().map(|name| changed(name, id)));
                        if let Some(own) = dir.own.take()
                            && let Some(parent) = rows.by_handle(&own.parent)?
                        {
                            dirty.push((
                                At {
                                    parent,
                                    name: own.name,
                                },
                                doubt(),
                            ));
                        }
                    }
                    (None, Some(own)) => {
                        if let Some(parent) = rows.by_handle(&own.parent)? {
                            dirty.push(changed(&own.name, parent));
                        } else if !handles.contains(&own.parent) {
                            // Its parent could not be taken; that is listed and tried again, with all below it.
                            if let Some(token) = dir.token {
                                self.sink.forget(token);
                            }
                            continue;
                        }
                    }
                    (None, None) => {
                        if let Some(token) = dir.token {
                            self.sink.forget(token);
                        }
                        continue;
                    }
                }
                handles.insert(dir.handle.clone());
                batch.push(dir);
            }
            drop(rows);
            if !batch.is_empty() {
                let found = self.reconcile(dirty, &[], Some(batch))?;
                self.corrected(found);
            }
        }
        Ok(())
    }

    pub(super) fn scan_ended(&mut self) -> Result<(), Fatal> {
        let all = self
            .running
            .as_ref()
            .is_some_and(|running| running.why != Why::Part && running.guard == Guard::Last);
        if all {
            self.judge()?;
        }
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        let Running {
            scan,
            why,
            began,
            missing,
            mut corrections,
            mut found,
            mut noted,
            ..
        } = running;
        drop(scan);
        if self.shared.is_stopping() {
            return Ok(());
        }
        for asked in &mut self.barriers {
            asked.scans += 1;
        }
        if why == Why::Part {
            self.doubt
                .scan_ended(!self.want_some.is_empty(), self.now_ms());
            return Ok(());
        }
        if !missing.is_empty() && !std::mem::replace(&mut noted, true) {
            self.note(Note::ScanBegin)?;
        }
        for names in missing.chunks(DUE_MAX) {
            if self.shared.is_stopping() {
                return Ok(());
            }
            let gone = self.look_at_missing(names)?;
            found += gone;
            if why == Why::Rolling {
                corrections += gone;
            }
        }
        self.doubt
            .scan_ended(!self.want_some.is_empty(), self.now_ms());
        if noted {
            self.note(Note::ScanEnd)?;
        }
        self.flush()?;
        self.last_scan = Instant::now();
        self.scan_took = began.elapsed();
        self.sweep_watches()?;
        self.count_unwatched();
        let word = self.correction(corrections);
        self.all_seen(began);
        let mut status = self.shared.lock();
        status.scan = None;
        status.scans += 1;
        if let Some(text) = word {
            status.corrections += corrections;
            status.notices.push(text);
        }
        drop(status);
        self.shared.scanned();
        let _ = found;
        self.status_dirty = true;
        Ok(())
    }

    /// Names that a scan did not find. A directory that is there all the same was elsewhere for a while, and nobody
    /// went into it.
    fn look_at_missing(&mut self, names: &[At]) -> Result<u64, Fatal> {
        let dirty = names.iter().map(|at| (at.clone(), doubt())).collect();
        let records = self.reconcile(dirty, &[], None)?;
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        for at in names {
            if let Some(id) = rows.name(at)?
                && let Some(object) = rows.object(id)?
                && object.state.kind.is_dir()
                && self.doubt.moved(id)
            {
                self.want_some.insert(id);
            }
        }
        Ok(records)
    }

    /// What went while we looked has events that explain it; they are queued by now.
    fn hear_out(&mut self) -> Result<(), Fatal> {
        self.hear()?;
        self.look_at_due(true)
    }

    /// Holds if too much is missing. What went between our hearing and our looking has an event by now: a loss is only
    /// what stays the same object, absent, however often we hear.
    fn guard_missing(
        &mut self,
        missing: &[At],
        moved: &HashSet<ObjectId>,
        entries: u64,
    ) -> Result<(), Fatal> {
        const ROUNDS: usize = 4;
        let mut absent = self.still_absent(missing)?;
        for round in 0.. {
            let names: Vec<At> = absent.iter().map(|(at, _)| at.clone()).collect();
            match self.guard(&names, moved, entries) {
                Err(Fatal::Held(..)) if round < ROUNDS && !self.shared.is_stopping() => {}
                judged => return judged,
            }
            std::thread::sleep(Duration::from_millis(5));
            self.hear_out()?;
            let now: BTreeMap<At, ObjectId> = self.still_absent(&names)?.into_iter().collect();
            absent.retain(|(at, id)| now.get(at) == Some(id));
        }
        Ok(())
    }

    /// Of names that were missing those that are so now. A name may be there again, and stand for something new.
    fn still_absent(&mut self, missing: &[At]) -> Result<Vec<(At, ObjectId)>, Fatal> {
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        let mut absent = Vec::new();
        for at in missing {
            if self.shared.is_stopping() {
                break;
            }
            if let Some(id) = rows.name(at)?
                && self.stat_now(&rows, at)?.is_none()
            {
                absent.push((at.clone(), id));
            }
        }
        Ok(absent)
    }

    /// Names that are missing, with all below them: too many to believe?
    fn guard(&self, missing: &[At], moved: &HashSet<ObjectId>, seen: u64) -> Result<(), Fatal> {
        let rows = self.rows();
        let mut gone = 0;
        let mut dirs: BTreeMap<Name, Loss> = BTreeMap::new();
        for at in missing {
            // What moved elsewhere was attached there meanwhile or is going to be, and is not lost.
            let Some(id) = rows.name(at)?.filter(|id| !moved.contains(id)) else {
                continue;
            };
            let lost = 1 + lost_below(&rows, id, moved)?;
            gone += lost;
            let mut first = at.clone();
            while first.parent != ObjectId::ROOT {
                let Some(up) = rows
                    .object(first.parent)?
                    .and_then(|dir| dir.names.first().cloned())
                else {
                    break;
                };
                first = up;
            }
            let is_dir = rows
                .name(&first)?
                .map(|id| rows.object(id))
                .transpose()?
                .flatten()
                .is_some_and(|o| o.state.kind.is_dir());
            if is_dir {
                dirs.entry(first.name).or_default().gone += if at.parent == ObjectId::ROOT {
                    lost - 1
                } else {
                    lost
                };
            }
        }
        for (name, loss) in &mut dirs {
            if let Some(id) = rows.name(&At {
                parent: ObjectId::ROOT,
                name: name.clone(),
            })? {
                loss.before = rows.count_below(id)?;
            }
        }
        let before = rows.stats().entries;
        drop(rows);
        let alarm = if seen == 0 && before > 0 && gone > 0 {
            Some(Alarm::Empty { before })
        } else {
            judge(Loss { before, gone }, &dirs)
        };
        alarm.map_or(Ok(()), |alarm| Err(Fatal::Held(alarm, gone)))
    }
}

/// Entries below an object that are not found elsewhere.
fn lost_below(rows: &Index, id: ObjectId, moved: &HashSet<ObjectId>) -> Result<u64, Fatal> {
    if moved.is_empty() {
        return Ok(rows.count_below(id)?);
    }
    // Rows that contain each other would never end.
    let max = rows.stats().entries.saturating_add(1);
    Ok(count_below_but(rows, id, max, |child| {
        moved.contains(child)
    })?)
}

pub(super) fn doubt() -> Dirty {
    Dirty {
        doubt: true,
        ..Dirty::default()
    }
}
