//! Scans of everything, or of a part: begun when there is doubt, taken in a bounded amount at a time, and ended with the
//! guard's word on what is missing.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::engine::status::PathText;
/// Entries of read-ahead directories put into one group.
const AHEAD_ENTRIES_MAX: usize = 2048;
/// Missing names kept until a scan ends. More can only be a loss the guard stops at.
const MISSING_MAX: usize = 2_000_000;

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
                    return Ok(());
                }
                (Why::Part, dirs)
            }
        };
        // What the queue holds is older than the scan: resolve it first, so that nothing is lost between them.
        self.source.walker.forget_all();
        let setup = ScanSetup {
            tree: self.tree.clone(),
            index: self.index.clone(),
            filter: self.filter.clone(),
            sink: self.sink.clone(),
            watch: self.watch.clone(),
            read: self.options.read.clone(),
            threads: self.options.scan_threads,
            spill: self.spill.clone(),
        };
        if why != Why::Part {
            self.last_scan_began = Some(Instant::now());
            if let Some(dirs) = self.watch.dirs() {
                dirs.begin_round();
            }
        }
        let scan = Scan::start(setup, &dirs);
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
        });
        Ok(())
    }

    /// Takes what the workers found, a bounded amount at a time.
    pub(super) fn scan_found(&mut self) -> Result<(), Fatal> {
        let until = Instant::now() + Duration::from_millis(20);
        let mut ended = false;
        while let Some(running) = &mut self.running
            && let Ok(found) = running.scan.found.try_recv()
        {
            if !matches!(found, Found::End) && !std::mem::replace(&mut running.noted, true) {
                self.note(Note::ScanBegin)?;
            }
            let Some(running) = &mut self.running else {
                break;
            };
            match found {
                Found::End => ended = true,
                Found::Missing(names) => {
                    let why = running.why;
                    if why == Why::Part {
                        let dirty = names.into_iter().map(|at| (at, doubt())).collect();
                        self.reconcile(dirty, &[], None)?;
                    } else if running.missing.len() < MISSING_MAX {
                        running.missing.extend(names);
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
                Found::Ahead(prepared) => {
                    running.scan.taken(prepared.count());
                    self.ahead.push_back(*prepared);
                    let entries: usize = self.ahead.iter().map(PreparedDir::count).sum();
                    if entries >= AHEAD_ENTRIES_MAX {
                        self.take_ahead()?;
                    }
                }
            }
            if ended || Instant::now() >= until {
                break;
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
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        let Running {
            scan,
            why,
            began,
            missing,
            mut corrections,
            broken,
            mut found,
            noted,
        } = running;
        let seen = scan.seen();
        drop(scan);
        if self.shared.is_stopping() {
            return Ok(());
        }
        for asked in &mut self.barriers {
            asked.scans += 1;
        }
        if why == Why::Part {
            return Ok(());
        }
        if let Some(text) = broken {
            return Err(Fatal::Index(format!(
                "the tree could not be looked at: {text}"
            )));
        }
        self.hear_out()?;
        let lost = why == Why::Rolling && self.want_all == Some(Why::Overflow);
        let explained = why == Why::Overflow || lost;
        let released = std::mem::take(&mut self.options.released);
        if !explained && !released {
            let entries = seen.entries.load(std::sync::atomic::Ordering::Relaxed);
            self.guard_missing(&missing, entries)?;
        }
        for names in missing.chunks(DUE_MAX) {
            if self.shared.is_stopping() {
                return Ok(());
            }
            let dirty = names.iter().map(|at| (at.clone(), doubt())).collect();
            let gone = self.reconcile(dirty, &[], None)?;
            found += gone;
            if why == Why::Rolling {
                corrections += gone;
            }
        }
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

    /// What went while we looked has events that explain it; they are queued by now.
    fn hear_out(&mut self) -> Result<(), Fatal> {
        self.hear()?;
        self.look_at_due(true)
    }

    /// Holds if too much is missing. What went between our hearing and our looking has an event by now: a loss is only
    /// what stays the same object, absent, however often we hear.
    fn guard_missing(&mut self, missing: &[At], entries: u64) -> Result<(), Fatal> {
        const ROUNDS: usize = 4;
        let mut absent = self.still_absent(missing)?;
        for round in 0.. {
            let names: Vec<At> = absent.iter().map(|(at, _)| at.clone()).collect();
            match self.guard(&names, entries) {
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
    pub(super) fn guard(&self, missing: &[At], seen: u64) -> Result<(), Fatal> {
        let rows = self.rows();
        let mut gone = 0;
        let mut dirs: BTreeMap<Name, Loss> = BTreeMap::new();
        for at in missing {
            // What moved elsewhere was attached there meanwhile, and is not lost.
            let Some(id) = rows.name(at)? else { continue };
            let lost = 1 + rows.count_below(id)?;
            gone += lost;
            let mut first = at.clone();
            while first.parent != ObjectId::ROOT {
                let Some(up) = rows
                    .object(first.parent)?
                    .and_then(|dir| dir.names.into_iter().next())
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

pub(super) fn doubt() -> Dirty {
    Dirty {
        doubt: true,
        ..Dirty::default()
    }
}
