//! Looking: names that are due are looked at, and what differs becomes a group of the log and of the index.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mirror_core::model::apply_group;
use mirror_core::reconcile::{Body, Dir, Dirty, Failure, Limits, Outcome, reconcile};
use mirror_core::settle::{HotList, Phase};
use mirror_core::{At, Change, Kind, ObjectId, Record, Rows};

use super::super::kernel::way;
use super::super::prepared::{Prepared, PreparedDir};
use super::{Capture, Fatal};
use crate::engine::options::Detector;
use crate::engine::status::{FAILED_MAX, LastChange, PathText, Stamp};
use crate::log::{Draft, LogError};
use crate::sys::{lease, open, stat};
/// Names looked at in one reconcile.
pub(super) const DUE_MAX: usize = 2048;
/// A large file that is only held open is read once more after so many times what its last read took.
const HELD_OPEN_TIMES: u64 = 30;

pub(super) struct Failing {
    pub dirty: Dirty,
    pub failure: Failure,
    pub since: Stamp,
    pub tries: u64,
    pub next: Instant,
}

impl Capture {
    /// Looks at what is due, or (`all`) at everything that waits.
    pub(super) fn look_at_due(&mut self, all: bool) -> Result<(), Fatal> {
        let now = if all { u64::MAX } else { self.now_ms() };
        // The kernel's queue must not grow while we look, and flushes must not wait for ever. What never rests is looked
        // at some more times for a barrier; then it is as it was at one of them.
        let rounds_max = match all {
            true => self.settle.len() / DUE_MAX + 8,
            false => 4,
        };
        let mut rounds = 0;
        loop {
            let due = self.settle.take(now, DUE_MAX);
            let none = due.is_empty() && !self.root_dirty;
            if self.shared.is_stopping() || (none && !(self.drop_unused() && all)) {
                return Ok(());
            }
            let roots: &[ObjectId] = if std::mem::take(&mut self.root_dirty) {
                &[ObjectId::ROOT]
            } else {
                &[]
            };
            self.reconcile(due, roots, None)?;
            rounds += 1;
            if rounds >= rounds_max {
                return Ok(());
            }
        }
    }

    pub(super) fn reconcile(
        &mut self,
        dirty: Vec<(At, Dirty)>,
        dirs: &[ObjectId],
        ahead: Option<Vec<PreparedDir>>,
    ) -> Result<u64, Fatal> {
        let next = self.log.next_position();
        let limits = Limits {
            group_records_max: self.options.group_records_max,
            in_doubt: self.doubt.is_some(),
        };
        let index = self.index.clone();
        if let Some(ahead) = ahead {
            let rows = index.read().unwrap_or_else(PoisonError::into_inner);
            let mut source = Prepared::new(&mut self.source, ahead);
            let outcome = reconcile(&*rows, &mut source, dirty, dirs, next, limits)?;
            drop(rows);
            return self.commit_unless_stopping(outcome);
        }
        let mut dirty = self.without_held(dirty);
        loop {
            let rows = index.read().unwrap_or_else(PoisonError::into_inner);
            let outcome = reconcile(&*rows, &mut self.source, dirty.clone(), dirs, next, limits)?;
            drop(rows);
            // Something that must wait for a large file was found: the rest is looked at without it.
            if !self.hold_for_large(&outcome, &mut dirty) {
                return self.commit_unless_stopping(outcome);
            }
            self.give_up(outcome);
        }
    }

    fn commit_unless_stopping(&mut self, outcome: Outcome) -> Result<u64, Fatal> {
        self.hints.looked();
        if self.shared.is_stopping() {
            // Looks were broken off. The next session's scan finds it all.
            self.give_up(outcome);
            return Ok(0);
        }
        self.commit(outcome)
    }

    pub(super) fn commit(&mut self, outcome: Outcome) -> Result<u64, Fatal> {
        let Outcome {
            group,
            touched,
            unconfirmed,
            unlisted,
            moved_dirs,
            failed,
            settled,
            busy,
            again,
            foreign,
            later,
            ..
        } = outcome;
        self.want_large(later);
        let mut bound = BTreeSet::new();
        let now = Instant::now();
        let now_ms = self.now_ms();
        for at in settled {
            if self.failing.remove(&at).is_some() {
                self.status_dirty = true;
            }
        }
        for (at, dirty, failure) in failed {
            self.fail(at, dirty, failure, now);
        }
        for (at, dirty) in again {
            self.settle.hint(at, dirty, Phase::Open, now_ms);
        }
        if !foreign.is_empty() {
            let paths: Vec<PathText> = foreign.iter().filter_map(|at| self.path(at)).collect();
            self.foreign(paths);
        }
        let records = group.len() as u64;
        if !group.is_empty() {
            let mut drafts = Vec::with_capacity(group.len());
            let store = self.log.content();
            for proposed in group {
                let content = match proposed.body {
                    Body::None => None,
                    Body::Bytes(bytes) => Some(store.put(&bytes).map_err(LogError::from)?),
                    Body::Token(token) => {
                        bound.insert(token);
                        if let Some(object) = proposed.change.object() {
                            self.sink.bind(token, object);
                        }
                        None
                    }
                };
                drafts.push(Draft {
                    change: proposed.change,
                    who: proposed.who,
                    local: proposed.local,
                    content,
                });
            }
            let time = self.time();
            let records = self.log.append(drafts, time)?;
            self.unflushed = true;
            let leaving = self.leaving(&records)?;
            let index = self.index.clone();
            let mut rows = index.write().unwrap_or_else(PoisonError::into_inner);
            apply_group(&mut *rows, &records).map_err(|e| {
                Fatal::Index(format!("the index refuses a group of its own log: {e:?}"))
            })?;
            // Whoever reads the rows knows what they are as of.
            if let Some(end) = self.log.end() {
                rows.set_position(end.position, end.head);
            }
            drop(rows);
            self.index_dirty = true;
            self.left(leaving)?;
            self.noted(&records);
        }
        if !touched.is_empty() {
            let mut rows = self.rows_mut();
            for (id, local, proven) in touched {
                if let Some(mut object) = rows.object(id)? {
                    object.local = local;
                    if let (Kind::File(content), Some(proven)) = (&mut object.state.kind, proven) {
                        content.proven = proven;
                    }
                    rows.put(id, object)?;
                }
            }
            drop(rows);
            self.index_dirty = true;
        }
        self.used_large(&bound)?;
        let unconfirmed = self.confirmable(unconfirmed)?;
        self.unconfirmed.add(unconfirmed, now_ms);
        for id in busy {
            self.hot.add(id, true, now_ms);
        }
        self.want_some.extend(unlisted);
        let moved = moved_dirs.into_iter().filter(|dir| self.doubt.moved(*dir));
        self.want_some.extend(moved);
        Ok(records)
    }

    /// Counters and last change from records just appended.
    pub(super) fn noted(&mut self, records: &[Record]) {
        let mut last = None;
        let mut fuzzy = Vec::new();
        let mut proven = 0;
        for record in records {
            let at = match &record.change {
                Change::Create { at, .. } | Change::Link { at, .. } | Change::Unlink { at, .. } => {
                    Some(at)
                }
                Change::Move { to, .. } => Some(to),
                Change::Update { at, .. } => at.as_ref(),
                _ => None,
            };
            if self.watch.detector == Detector::Inotify {
                self.unheard.found(&record.change);
            }
            last = at.or(last);
            if let (Some(content), Some(id)) = (record.change.content(), record.change.object()) {
                proven += u64::from(content.proven);
                fuzzy.push((id, content.fuzzy, at));
            }
        }
        let last = last.and_then(|at| self.path(at)).map(|path| LastChange {
            at: Stamp::from_ns(self.time_ns),
            path,
        });
        let fuzzy: Vec<_> = fuzzy
            .into_iter()
            .map(|(id, fuzzy, at)| {
                (
                    id,
                    if fuzzy {
                        at.and_then(|at| self.path(at))
                    } else {
                        None
                    },
                )
            })
            .collect();
        let mut status = self.shared.lock();
        if last.is_some() {
            status.last_change = last;
        }
        status.proven += proven;
        for (id, path) in fuzzy {
            match path {
                Some(path) if status.fuzzy.len() < FAILED_MAX => {
                    status.fuzzy.insert(id, path);
                    status.torn += 1;
                }
                Some(_) => status.torn += 1,
                None => {
                    status.fuzzy.remove(&id);
                }
            }
        }
        drop(status);
        self.status_dirty = true;
    }

    pub(super) fn fail(&mut self, at: At, dirty: Dirty, failure: Failure, now: Instant) {
        const BACK_OFF_S_MAX: u64 = 60;
        if self.shared.is_stopping() {
            return;
        }
        let failing = self.failing.entry(at).or_insert_with(|| Failing {
            dirty: Dirty::default(),
            failure: failure.clone(),
            since: Stamp::now(),
            tries: 0,
            next: now,
        });
        failing.dirty.merge(dirty);
        failing.failure = failure;
        failing.tries += 1;
        failing.next =
            now + Duration::from_secs((1u64 << failing.tries.min(6)).min(BACK_OFF_S_MAX) / 2);
        self.status_dirty = true;
    }

    pub(super) fn retry_failed(&mut self) {
        let now = Instant::now();
        let now_ms = self.now_ms();
        for (at, failing) in &mut self.failing {
            if failing.next <= now {
                failing.next = now + Duration::from_secs(60);
                self.settle.hint(
                    at.clone(),
                    Dirty {
                        contents: true,
                        doubt: true,
                        ..failing.dirty.clone()
                    },
                    Phase::Final,
                    now_ms,
                );
            }
        }
    }

    pub(super) fn look_at_hot(&mut self) -> Result<(), Fatal> {
        let now = self.now_ms();
        for id in self.hot.due(now, 256) {
            self.look_at_hot_one(id, now)?;
        }
        Ok(())
    }

    /// A file that somebody may still write: nobody can any more, or its ctime moved: read it again.
    pub(super) fn look_at_hot_one(&mut self, id: ObjectId, now: u64) -> Result<(), Fatal> {
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = rows.object(id)? else {
            self.hot.remove(id);
            return Ok(());
        };
        let Some(at) = object.names.first().cloned() else {
            self.hot.remove(id);
            return Ok(());
        };
        let way = way(&*rows, at.parent, self.tree.by_handle)?;
        drop(rows);
        let (Some((parent, trail)), Some(handle)) = (way, object.local.handle.clone()) else {
            self.hot.remove(id);
            return Ok(());
        };
        let opened = self.source.walker.open(&Dir {
            handle: &parent,
            trail,
        });
        let fd = opened
            .ok()
            .and_then(|dir| open::file(&dir, at.name.as_bytes()).ok());
        let found = fd.and_then(|fd| stat::fstat(&fd).ok().map(|found| (fd, found)));
        let Some((fd, found)) = found.filter(|(_, found)| found.ino == object.local.ino) else {
            // It is not there (any more), which its events will tell. Who writes it may do so all the same.
            self.hot.add(id, false, now);
            return Ok(());
        };
        let writers =
            lease::writable_by_anyone(&fd).unwrap_or(true) && !crate::planted::is("trust_unproven");
        let moved = found.ctime != object.local.ctime;
        // Without leases, or where stores show nowhere (tmpfs), the bytes themselves are asked at the long interval.
        let long = self.hot.interval_ms(id) >= HotList::INTERVAL_MS_MAX
            && self.source.reads.is_apart(&handle, HELD_OPEN_TIMES, now);
        if moved {
            self.source.reads.heard(&handle, now);
        }
        if writers {
            let _ = lease::write_protect(&fd);
            self.hot.add(id, moved, now);
        } else {
            self.hot.remove(id);
        }
        if moved || !writers || long {
            let wrote = BTreeSet::from([id]);
            self.settle.hint(
                at,
                Dirty {
                    wrote,
                    ..Dirty::default()
                },
                Phase::Final,
                now,
            );
        }
        Ok(())
    }
}
