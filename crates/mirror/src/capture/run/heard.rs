//! Hints: what the kernel said becomes names that are due, at once or when they are quiet.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use mirror_core::hints::{Hint, Hints};
use mirror_core::reconcile::{Dir, Dirty};
use mirror_core::settle::Phase;
use mirror_core::{At, Note, ObjectId, Rows};

use super::super::kernel::way;
use super::super::watch::Watch;
use super::scans::Why;
use super::{Capture, Fatal};
use crate::index::Index;
use crate::sync::lock;
use crate::sys::stat::{self, Stat};
#[derive(Default)]
pub(super) struct Early {
    pub hints: Vec<Hint>,
    pub lost: bool,
}

impl Capture {
    pub(super) fn hear(&mut self) -> Result<(), Fatal> {
        let early = std::mem::take(&mut *lock(&self.early));
        let (hints, lost) = self.watch.drain();
        let lost = lost || early.lost;
        let (deaf, news) = self.watch.news();
        if let Some(why) = deaf {
            return Err(Fatal::Deaf(why));
        }
        if let Some(line) = news {
            self.shared.lock().notices.push(line);
        }
        self.names_passed()?;
        for hint in early.hints.into_iter().chain(hints) {
            self.hint(hint)?;
        }
        let now = self.now_ms();
        let settle = &self.settle;
        let held = !self.source.reads.is_idle();
        self.doubt
            .drained(now, |until| held || settle.waits_since(until));
        let confirmed = self.unconfirmed.drained(lost, now);
        if !confirmed.is_empty() {
            let mut rows = self.rows_mut();
            for (id, local) in confirmed {
                if let Some(mut object) = rows.object(id)?
                    && object.local.handle == local.handle
                {
                    object.local = local;
                    rows.put(id, object)?;
                }
            }
            drop(rows);
            self.index_dirty = true;
        }
        if lost {
            self.lost()?;
        }
        Ok(())
    }

    pub(super) fn lost(&mut self) -> Result<(), Fatal> {
        self.hints.clear();
        self.shared.lock().overflows += 1;
        self.want_all = Some(Why::Overflow);
        self.in_doubt();
        self.note(Note::Overflow)
    }

    /// What was written until now may have been told to nobody.
    pub(super) fn in_doubt(&mut self) {
        // By path, the way to anything may pass through a new directory.
        let new_from = ObjectId::at(self.log.next_position()).filter(|_| self.tree.by_handle);
        self.doubt.lost(new_from);
    }

    pub(super) fn hint(&mut self, hint: Hint) -> Result<(), Fatal> {
        let now = self.now_ms();
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = self.hints.resolve(&*rows, &hint)?;
        self.root_dirty |= found.root;
        self.unconfirmed.heard(&*rows, &found)?;
        if hint.created && !hint.contents {
            for at in 0..found.dirty.len() {
                let Some((name, _, Phase::Open)) = found.dirty.get(at) else {
                    continue;
                };
                let name = name.clone();
                if self.is_complete(&rows, &name)?
                    && let Some((_, _, phase)) = found.dirty.get_mut(at)
                {
                    *phase = Phase::Final;
                }
            }
        }
        if !self.source.reads.is_idle() {
            self.heard_of_large(&hint, &mut found, now);
        }
        self.settle.accept(&mut found, now);
        let mut entered = false;
        if hint.entered {
            let object = hint.object.as_ref();
            let to = hint.to.as_ref().map(|to| &to.dir);
            for dir in [object, to].into_iter().flatten() {
                entered |= rows.by_handle(dir)?.is_some();
            }
        }
        for dir in found.unknown {
            let walker = &mut self.source.walker;
            if let Some(at) = self
                .hints
                .classify(&*rows, &dir, &mut |dir| walker.locate(dir))?
            {
                entered |= hint.entered;
                self.settle.hint(
                    at,
                    Dirty {
                        contents: true,
                        who: hint.who.clone(),
                        ..Dirty::default()
                    },
                    Phase::Final,
                    now,
                );
            }
        }
        if entered && self.doubt.entered() {
            let id = match &hint.object {
                Some(dir) => rows.by_handle(dir)?,
                None => None,
            };
            drop(rows);
            self.want_some.extend(id);
            // One that is not known is read with all that is in it; what it holds that is known has moved.
            if self.want_some.is_empty() && self.running.is_none() {
                self.doubt.scan_ended(false, now);
            }
        }
        Ok(())
    }

    /// A name that was just made and is nothing that will be written and closed: a symlink, a node, one more link.
    pub(super) fn is_complete(&mut self, rows: &Index, at: &At) -> Result<bool, Fatal> {
        Ok(self
            .stat_now(rows, at)?
            .is_none_or(|found| !found.is_file() || found.nlink > 1))
    }

    /// What is under a name now, looked at without a word to anyone.
    pub(super) fn stat_now(&mut self, rows: &Index, at: &At) -> Result<Option<Stat>, Fatal> {
        let Some((handle, trail)) = way(rows, at.parent, self.tree.by_handle)? else {
            return Ok(None);
        };
        let Ok(fd) = self.source.walker.open(&Dir {
            handle: &handle,
            trail,
        }) else {
            return Ok(None);
        };
        Ok(stat::statx(&fd, at.name.as_bytes()).ok())
    }
}

/// What [`Source::more`] answers: names hinted meanwhile, as the rows know them now. The hints come again later.
pub(super) fn more_hints(
    watch: Arc<Watch>,
    index: Arc<RwLock<Index>>,
    early: Arc<Mutex<Early>>,
) -> Box<dyn FnMut() -> Vec<(At, Dirty)> + Send> {
    Box::new(move || {
        let (hints, lost) = watch.drain();
        let mut names = Vec::new();
        if let Ok(rows) = index.try_read() {
            let mut resolver = Hints::new();
            for hint in &hints {
                if let Ok(found) = resolver.resolve(&*rows, hint) {
                    names.extend(found.dirty.into_iter().map(|(at, dirty, _)| (at, dirty)));
                }
            }
        }
        let mut early = lock(&early);
        early.hints.extend(hints);
        early.lost |= lost;
        names
    })
}
