//! What no event tells of, and is looked at all the same.
//!
//! Watches of single directories miss what is written through a name outside of the tree, and directories beyond the
//! limit of watches; nobody hears what is changed elsewhere on a network file system, or through a mapping on an overlay. Files of the first kind are
//! asked for their ctime now and then, for the others everything is looked at more often. A barrier asks all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mirror_core::hints::HintName;
use mirror_core::passing::{Passage, Passing};
use mirror_core::reconcile::{Dir, Dirty};
use mirror_core::settle::Phase;
use mirror_core::{At, Change, Handle, Kind, Local, Name, Object, ObjectId, Record, Rows};

use super::super::kernel::way;
use super::{Capture, Fatal};
use crate::engine::options::Detector;
use crate::sys::stat;

/// How often files with unknown names are asked.
const LINKED_EVERY: Duration = Duration::from_secs(30);
/// How many are; more are left to the scan.
const LINKED_MAX: usize = 1 << 20;
/// How often everything is looked at where some of it is never heard of.
const SCAN_EVERY: Duration = Duration::from_secs(60);
/// For a doubt one part in so many of the time is spent on looking at everything.
const DOUBT_SHARE: u32 = 20;
/// Names in directories that are not known yet, kept while a scan is on its way.
const UNTOLD_MAX: usize = 65_536;
/// How long a directory is young, and how many are known to be.
const YOUNG: Duration = Duration::from_secs(2);
const YOUNG_MAX: usize = 4096;
/// Rows read at once.
const ROWS: usize = 1024;

#[derive(Default)]
pub struct Unheard {
    /// Files that have more names than the rows know.
    linked: BTreeSet<ObjectId>,
    asked: Option<Instant>,
    told: bool,
    /// Directories without a watch.
    pub unwatched: u64,
    passing: Passing,
    /// What was told of names in directories that the rows don't know yet.
    untold: Vec<(HintName, Passage)>,
    /// Directories that were just found: what happened in them before that was told to nobody.
    young: BTreeMap<ObjectId, Instant>,
    /// Since when something may have been changed through a name that came and went.
    pub doubt: Option<Instant>,
}

/// What leaves the tree with a group of records, or may.
#[derive(Default)]
pub struct Leaving {
    dirs: Vec<Handle>,
    /// Files with other names, perhaps elsewhere.
    files: Vec<ObjectId>,
}

impl Unheard {
    /// A new directory: from now on it is heard.
    pub fn found(&mut self, change: &Change) {
        if let Change::Create { object, state, .. } = change
            && state.kind.is_dir()
        {
            if self.young.len() >= YOUNG_MAX {
                self.young.clear();
            }
            self.young.insert(*object, Instant::now());
        }
    }
}

impl Capture {
    /// Some changes come without an event, so that only a look at everything is sure to find what there is.
    pub(super) fn is_blind(&self) -> bool {
        self.watch.detector == Detector::Scan || self.unheard.unwatched > 0 || self.tree.has_unheard
    }

    pub(super) fn scan_interval(&self) -> Duration {
        let usual = self.options.scan_interval;
        if self.is_blind() {
            usual.min(SCAN_EVERY)
        } else if self.unheard.doubt.is_some() {
            // A large tree is not looked at all the time for one name.
            usual.min(SCAN_EVERY.max(self.scan_took * DOUBT_SHARE))
        } else {
            usual
        }
    }

    /// What inotify told of names: did one come and go that another file may have been changed through?
    pub(super) fn names_passed(&mut self) -> Result<(), Fatal> {
        let Some(dirs) = self.watch.dirs() else {
            return Ok(());
        };
        let mut told = std::mem::take(&mut self.unheard.untold);
        told.extend(dirs.take_told());
        let now = self.now_ms();
        let index = self.index.clone();
        let rows = index
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut doubt = false;
        for (at, mut passage) in told {
            let (Some(parent), Some(name)) = (rows.by_handle(&at.dir)?, &at.name) else {
                if self.running.is_some() && self.unheard.untold.len() < UNTOLD_MAX {
                    self.unheard.untold.push((at, passage));
                }
                continue;
            };
            let name = name.clone();
            let at = At { parent, name };
            if let Passage::Came { dir: false, only } = &mut passage {
                *only = self
                    .stat_now(&rows, &at)?
                    .and_then(|found| (!found.is_dir() && found.nlink == 1).then_some(found.ino));
            }
            // Known to nobody, so it came before its directory was heard: what was done by it was not heard either.
            doubt |= passage == Passage::Went
                && self.unheard.young.contains_key(&parent)
                && !self.unheard.passing.knows(&at)
                && rows.name(&at)?.is_none();
            doubt |= self.unheard.passing.tell(at, passage, now);
        }
        drop(rows);
        if doubt {
            self.unheard.doubt = Some(Instant::now());
            // A file with a new ctime may be the one: it keeps its old one, so that the scan reads it.
            self.unconfirmed.drained(true, now);
            self.in_doubt();
        }
        let settle = &self.settle;
        self.unheard.passing.forget(now, |at| settle.waits(at));
        self.unheard
            .young
            .retain(|_, since| since.elapsed() < YOUNG);
        Ok(())
    }

    /// A scan of everything is over: what was in doubt before it began is known.
    pub(super) fn all_seen(&mut self, began: Instant) {
        if self.unheard.doubt.is_some_and(|since| since < began) {
            self.unheard.doubt = None;
        }
        let began = began.saturating_duration_since(self.began).as_millis() as u64;
        self.unheard.passing.scanned(began);
    }

    /// A scan found changes that no event told: worth a word?
    pub(super) fn correction(&self, corrections: u64) -> Option<String> {
        if self.is_blind() || self.unheard.doubt.is_some() || corrections == 0 {
            return None;
        }
        let may_be = match self.watch.detector {
            Detector::Inotify => {
                "inotify does not hear what is written through links outside of the tree"
            }
            _ => "please report this",
        };
        Some(format!(
            "the rolling scan found {corrections} changes that no event told: {may_be}"
        ))
    }

    /// Says once that there are too few watches, and counts the directories without.
    pub(super) fn count_unwatched(&mut self) {
        let Some(dirs) = self.watch.dirs() else {
            return;
        };
        let (unwatched, why) = dirs.unwatched();
        if self.running.is_some() && unwatched < self.unheard.unwatched {
            // Directories are being tried again.
            return;
        }
        if unwatched != self.unheard.unwatched {
            self.unheard.unwatched = unwatched;
            self.shared.lock().unwatched = unwatched;
        }
        if unwatched > 0 && !self.unheard.told {
            self.unheard.told = true;
            let why = why.map_or(String::new(), |e| match e {
                crate::sys::Errno::NOSPC => {
                    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
                    format!(
                        " (fs.inotify.max_user_watches is {})",
                        limit.as_deref().map_or("reached", str::trim)
                    )
                }
                e => format!(" ({})", std::io::Error::from(e)),
            });
            self.shared.notice(format!(
                "there is no watch for some directories{why}: everything is looked at every {} s",
                self.scan_interval().as_secs()
            ));
        }
    }

    /// What a group takes out of the tree, before it is applied to the rows.
    pub(super) fn leaving(&self, records: &[Record]) -> Result<Leaving, Fatal> {
        let mut leaving = Leaving::default();
        if self.watch.dirs().is_none() {
            return Ok(leaving);
        }
        let rows = self.rows();
        for record in records {
            let Change::Unlink { object, .. } = &record.change else {
                continue;
            };
            let Some(found) = rows.object(*object)? else {
                continue;
            };
            if !found.state.kind.is_dir() {
                leaving.file(*object, &found);
                continue;
            }
            leaving.dirs.extend(found.local.handle);
            let mut dirs = vec![*object];
            while let Some(dir) = dirs.pop() {
                let mut after: Option<Name> = None;
                loop {
                    let children = rows.scan(dir, after.as_ref(), ROWS)?;
                    let Some(last) = children.last() else { break };
                    after = Some(last.name.clone());
                    for child in children {
                        if child.object.state.kind.is_dir() {
                            leaving.dirs.extend(child.object.local.handle);
                            dirs.push(child.id);
                        } else {
                            leaving.file(child.id, &child.object);
                        }
                    }
                }
            }
        }
        Ok(leaving)
    }

    /// After it was applied: directories that did not stay elsewhere need no watch any more. Files that did may have
    /// writers who opened them by the name that is gone, and are heard of under that name only, or nowhere. Nobody new
    /// can come by it, so whoever may still write shows now: the hot list looks.
    pub(super) fn left(&mut self, leaving: Leaving) -> Result<(), Fatal> {
        let now = self.now_ms();
        for id in leaving.files {
            if self.rows().object(id)?.is_some() {
                self.hot.add(id, true, now);
            }
        }
        self.unwatch(leaving.dirs)
    }

    fn unwatch(&self, leaving: Vec<Handle>) -> Result<(), Fatal> {
        let Some(dirs) = self.watch.dirs() else {
            return Ok(());
        };
        let rows = self.rows();
        for handle in leaving {
            if rows.by_handle(&handle)?.is_none() {
                dirs.remove(&handle);
            }
        }
        Ok(())
    }

    /// After a scan of everything: watches of directories that nobody came by and nobody knows.
    pub(super) fn sweep_watches(&self) -> Result<(), Fatal> {
        match self.watch.dirs() {
            Some(dirs) => self.unwatch(dirs.not_seen()),
            None => Ok(()),
        }
    }

    /// Remembers files that were seen with more links than the rows know names.
    fn know_linked(&mut self) -> Result<(), Fatal> {
        let Some(dirs) = self.watch.dirs() else {
            return Ok(());
        };
        for (handle, links) in dirs.take_linked() {
            let rows = self.rows();
            let Some(id) = rows.by_handle(&handle)? else {
                continue;
            };
            let names = rows.object(id)?.map_or(0, |object| object.names.len());
            drop(rows);
            // Once all names are known it is asked a last time: by one that is gone it may have been written.
            if links as usize > names && self.unheard.linked.len() < LINKED_MAX {
                self.unheard.linked.insert(id);
            }
        }
        Ok(())
    }

    /// Of files with unknown names not all that happens is told: their rows keep the ctime of when they were read.
    pub(super) fn confirmable(
        &mut self,
        mut files: BTreeMap<ObjectId, Local>,
    ) -> Result<BTreeMap<ObjectId, Local>, Fatal> {
        self.know_linked()?;
        files.retain(|id, _| !self.unheard.linked.contains(id));
        Ok(files)
    }

    /// Asks files with unknown names whether they changed: now and then, or (`now`) at once.
    pub(super) fn look_at_linked(&mut self, now: bool) -> Result<(), Fatal> {
        self.know_linked()?;
        let due = self
            .unheard
            .asked
            .is_none_or(|asked| asked.elapsed() >= LINKED_EVERY);
        if self.unheard.linked.is_empty() || !(due || now) {
            return Ok(());
        }
        self.unheard.asked = Some(Instant::now());
        let ids: Vec<ObjectId> = self.unheard.linked.iter().copied().collect();
        for id in ids {
            if self.shared.is_stopping() {
                return Ok(());
            }
            match self.ask_linked(id)? {
                Asked::Same => {}
                Asked::Gone => {
                    self.unheard.linked.remove(&id);
                }
                Asked::Changed(at) => {
                    let now_ms = self.now_ms();
                    let wrote = BTreeSet::from([id]);
                    self.settle.hint(
                        at,
                        Dirty {
                            wrote,
                            ..Dirty::default()
                        },
                        Phase::Final,
                        now_ms,
                    );
                }
            }
        }
        Ok(())
    }

    fn ask_linked(&mut self, id: ObjectId) -> Result<Asked, Fatal> {
        let index = self.index.clone();
        let rows = index
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(object) = rows.object(id)? else {
            return Ok(Asked::Gone);
        };
        let Some(at) = object.names.first().cloned() else {
            return Ok(Asked::Gone);
        };
        let Some((parent, trail)) = way(&*rows, at.parent, self.tree.by_handle)? else {
            return Ok(Asked::Gone);
        };
        drop(rows);
        let Ok(dir) = self.source.walker.open(&Dir {
            handle: &parent,
            trail,
        }) else {
            return Ok(Asked::Same);
        };
        let Ok(found) = stat::statx(&dir, at.name.as_bytes()) else {
            return Ok(Asked::Same);
        };
        if found.ino != object.local.ino || found.ctime != object.local.ctime {
            return Ok(Asked::Changed(at));
        }
        if found.nlink as usize <= object.names.len() {
            return Ok(Asked::Gone);
        }
        Ok(Asked::Same)
    }
}

impl Leaving {
    fn file(&mut self, id: ObjectId, object: &Object) {
        if object.names.len() > 1 && matches!(object.state.kind, Kind::File(_)) {
            self.files.push(id);
        }
    }
}

enum Asked {
    Same,
    /// Gone, or all of its names are known by now.
    Gone,
    Changed(At),
}
