//! Before a batch is applied: is there room for it, and is it time? What there is no room for waits on hold.

use std::time::{Duration, Instant};

use mirror_core::{Digest, Record};

use super::limits::{Taken, fits};
use super::{Running, chain};
use crate::engine::event::Event;
use crate::engine::status::{Hold, HoldReason};
use crate::log::{Cursor, Group};

/// Of what waits for room so many records are looked at: what they remove may make room for what they bring.
const WAITING_RECORDS_MAX: usize = 65_536;
/// How often it is looked whether there is room again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Whole groups that are to be applied.
#[derive(Default)]
pub(super) struct Batch {
    pub records: Vec<Record>,
    /// Where a group ends, by the number of records up to there, and the log's hash there.
    ends: Vec<(usize, Digest)>,
}

impl Batch {
    pub fn push(&mut self, group: Group) {
        self.records.extend(group.records);
        self.ends.push((self.records.len(), group.end.head));
    }
    pub fn head(&self) -> Option<Digest> {
        self.ends.last().map(|(_, head)| *head)
    }
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
    pub fn clear(&mut self) {
        self.records.clear();
        self.ends.clear();
    }
    /// Takes away what comes after so many records, which end a group.
    fn cut(&mut self, records: usize) -> Batch {
        let groups = self.ends.partition_point(|(end, _)| *end <= records);
        let ends = self.ends.split_off(groups);
        Batch {
            records: self.records.split_off(records.min(self.records.len())),
            ends: ends
                .iter()
                .map(|(end, head)| (end - records, *head))
                .collect(),
        }
    }
}

impl Running {
    /// As much of the batch as there is room for; what is cut off comes next. Waits while there is none. False: stopped.
    pub(super) fn room(
        &mut self,
        cursor: &mut Cursor,
        batch: &mut Batch,
        next: &mut Batch,
    ) -> Result<bool, String> {
        // After a crash the copy may already be there: that must be reached at once.
        if self.applier.replay_until().is_some() {
            return Ok(true);
        }
        loop {
            let mut limits = self.bounds.get();
            limits.min_free = limits.min_free.max(self.locked_floor());
            if !limits.any_room() {
                self.room_again();
                return Ok(true);
            }
            let taken = Taken::of(&self.applier, &self.dst);
            let found = match fits(self.applier.store(), taken, &limits, &batch.records) {
                Ok(found) => found,
                // Apply says it better.
                Err(_) => return Ok(true),
            };
            match found.full {
                Some(hold) if found.records == 0 => self.full(hold),
                _ => {
                    self.room_again();
                    *next = batch.cut(found.records);
                    return Ok(true);
                }
            }
            let until = Instant::now() + LOOK_EVERY;
            while Instant::now() < until {
                if self.stopped() {
                    return Ok(false);
                }
                self.orders();
                self.checkpoint_if_due()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            while batch.records.len() < WAITING_RECORDS_MAX
                && let Some(group) = cursor.next_group().map_err(|e| chain(&e))?
            {
                batch.push(group);
            }
            let end = self.reader.tail().durable().map(|end| end.position);
            self.applied.update(|status| status.end = end);
        }
    }

    fn full(&mut self, mut hold: Hold) {
        let before = self.applied.lock().hold.clone();
        match before {
            Some(before) if before.what == hold.what => return,
            Some(before) => hold.since = before.since,
            None => self.ui.event(Event::Held(hold.clone())),
        }
        self.applied.update(|status| status.hold = Some(hold));
    }

    fn room_again(&mut self) {
        let mut state = self.applied.lock();
        let held = state.hold.as_ref();
        if held.is_some_and(|hold| hold.reason == HoldReason::Limit) {
            state.hold = None;
            drop(state);
            self.applied.changed.notify_all();
            self.ui.event(Event::Released);
        }
    }

    /// Waits until as many operations were done as may be. False: stopped.
    pub(super) fn paced(&mut self) -> Result<bool, String> {
        loop {
            let wait = self.pace.wait();
            if wait.is_zero() || self.bounds.get().ops_max.is_none() {
                return Ok(true);
            }
            if self.stopped() {
                return Ok(false);
            }
            self.orders();
            self.checkpoint_if_due()?;
            std::thread::sleep(wait.min(Duration::from_millis(50)));
        }
    }

    /// Records that are applied at once, so that a slow pace is a steady one.
    pub(super) fn batch_max(&self, most: usize) -> usize {
        let pace = self.bounds.get().ops_max.unwrap_or(u64::MAX);
        usize::try_from(pace).unwrap_or(usize::MAX).clamp(1, most)
    }
}
