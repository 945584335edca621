//! What others are told: barriers are answered, and the status shows what is so now.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use mirror_core::reconcile::Dirty;
use mirror_core::settle::Phase;
use mirror_core::{At, ObjectId, Rows};

use super::super::kernel::trail;
use super::super::state::Barrier;
use super::scans::Why;
use super::{Capture, Fatal};
use crate::engine::status::{FAILED_MAX, Failed, PathText};
use crate::sync::lock;
impl Capture {
    pub(super) fn answer_barriers(&mut self) -> Result<(), Fatal> {
        // Where directories come and events are lost without end, all was looked at often enough some time.
        const SCANS_MAX: u32 = 4;
        const ROUNDS_MAX: u32 = 16;
        if self.barriers.is_empty() || self.shared.is_stopping() {
            return Ok(());
        }
        let patient = self.barriers.iter().all(|asked| asked.scans < SCANS_MAX);
        if patient
            && (self.running.is_some() || self.want_all.is_some() || !self.want_some.is_empty())
        {
            return Ok(());
        }
        let looked = self.barriers.iter().all(|asked| asked.looked_ms.is_some());
        if looked && !self.is_covered() {
            return Ok(());
        }
        let began = self.last_scan_began;
        let unseen = self.barriers.iter().any(|asked| began < Some(asked.since));
        if self.is_blind() && unseen {
            self.want_all = Some(Why::Rolling);
            return Ok(());
        }
        // Whatever finished before the order is queued already.
        for _ in 0..8 {
            self.hear()?;
            if self.unheard.doubt.is_some() && unseen {
                self.want_all = Some(self.want_all.unwrap_or(Why::Rolling));
            }
            if patient && self.want_all.is_some() {
                return Ok(());
            }
            let now = self.now_ms();
            for id in if looked {
                Vec::new()
            } else {
                self.hot.objects()
            } {
                let Some(at) = self
                    .rows()
                    .object(id)?
                    .and_then(|object| object.names.first().cloned())
                else {
                    continue;
                };
                self.settle.hint(
                    at,
                    Dirty {
                        wrote: BTreeSet::from([id]),
                        ..Dirty::default()
                    },
                    Phase::Final,
                    now,
                );
            }
            self.look_at_linked(true)?;
            self.look_at_due(true)?;
            if self.shared.is_stopping() || (patient && !self.want_some.is_empty()) {
                return Ok(());
            }
            let early = lock(&self.early);
            if early.hints.is_empty() && !early.lost {
                break;
            }
        }
        let now_ms = self.now_ms();
        for asked in &mut self.barriers {
            asked.looked_ms.get_or_insert(now_ms);
        }
        // What was found to be too large to be read there is being read. Where such files come without end, all those
        // that were there were read some time.
        let all = self.read_large()?;
        if !(self.is_covered() && all)
            && self.barriers.iter().all(|asked| asked.rounds < ROUNDS_MAX)
        {
            self.barriers.iter_mut().for_each(|asked| asked.rounds += 1);
            return Ok(());
        }

        if self.tree.lost().is_some() {
            // What was looked at is not what a person finds there now. The guard holds in a moment.
            return Ok(());
        }
        self.flush()?;
        self.status_dirty = true;
        self.publish();
        let status = self.shared.lock();
        let answer = Barrier {
            position: self.log.end().map(|end| end.position),
            failed: status.failed.clone(),
            failed_total: status.failed_total,
            fuzzy: status.fuzzy.values().cloned().collect(),
            fuzzy_total: status.fuzzy.len() as u64,
        };
        drop(status);
        for asked in self.barriers.drain(..) {
            let _ = asked.answer.send(answer.clone());
        }
        Ok(())
    }

    pub(super) fn publish(&mut self) {
        if !std::mem::take(&mut self.status_dirty) {
            return;
        }
        // What lay in a directory that is gone can't fail any more.
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        self.failing
            .retain(|at, _| !matches!(rows.object(at.parent), Ok(None)));
        drop(rows);
        let failed: Vec<Failed> = self
            .failing
            .iter()
            .take(FAILED_MAX)
            .filter_map(|(at, failing)| {
                Some(Failed {
                    path: self.path(at)?,
                    reason: format!(
                        "cannot {}: {}",
                        failing.failure.step, failing.failure.reason
                    ),
                    since: failing.since,
                    tries: failing.tries,
                })
            })
            .collect();
        let stats = self.rows().stats();
        let fuzzy: Vec<ObjectId> = self.shared.lock().fuzzy.keys().copied().collect();
        let rows = self.rows();
        let gone: Vec<ObjectId> = fuzzy
            .into_iter()
            .filter(|id| matches!(rows.object(*id), Ok(None)))
            .collect();
        drop(rows);
        let mut status = self.shared.lock();
        for id in gone {
            status.fuzzy.remove(&id);
        }
        status.failed_total = self.failing.len() as u64;
        status.failed = failed;
        status.entries = stats.entries;
        status.files = stats.files;
        status.bytes = stats.bytes;
        status.hot = self.hot.len() as u64;
    }

    pub(super) fn path(&self, at: &At) -> Option<PathText> {
        let mut path = Vec::new();
        for name in trail(&*self.rows(), at.parent).ok()?? {
            path.extend_from_slice(name.as_bytes());
            path.push(b'/');
        }
        path.extend_from_slice(at.name.as_bytes());
        Some(PathText::new(&path))
    }

    pub(super) fn foreign(&mut self, paths: Vec<PathText>) {
        let mut status = self.shared.lock();
        for path in paths {
            if !status.foreign.contains(&path) && status.foreign.len() < FAILED_MAX {
                status.foreign.push(path);
            }
        }
        drop(status);
        self.status_dirty = true;
    }
}
