//! The kernel's event queue: merges, a limit, and what is lost beyond it.
//!
//! An event is merged into one that waits already when directory, name, object, process and directory-ness agree; it
//! keeps the old place, so order is lost. At the limit the newest are dropped and one overflow record stands behind.
//! An event is queued after its operation is visible and under no common lock, so events of different processes come
//! in another order than their operations: every actor has a pocket, emptied at the latest before its next operation.

use std::collections::VecDeque;

use mirror_core::hints::Hint;

/// Events the kernel compares a new one with.
const MERGE_WINDOW: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Hint { actor: usize, hint: Hint },
    Overflow,
}

#[derive(Debug, Clone)]
pub struct Queue {
    limit: usize,
    deaf: bool,
    queued: VecDeque<Event>,
    pockets: Vec<Vec<Hint>>,
    pub overflows: u64,
    pub merged: u64,
}

impl Queue {
    pub fn new(limit: usize, actors: usize) -> Queue {
        Queue {
            limit,
            deaf: false,
            queued: VecDeque::new(),
            pockets: vec![Vec::new(); actors],
            overflows: 0,
            merged: 0,
        }
    }

    /// The operation is visible; its event is on its way.
    pub fn raise(&mut self, actor: usize, hint: Hint) {
        self.pockets[actor].push(hint);
    }

    /// What an actor raised arrives in the queue.
    pub fn arrive(&mut self, actor: usize) {
        for hint in std::mem::take(&mut self.pockets[actor]) {
            self.push(actor, hint);
        }
    }

    pub fn arrive_all(&mut self) {
        for actor in 0..self.pockets.len() {
            self.arrive(actor);
        }
    }

    /// A mark is set, or gone with its process: then nothing is queued, and what was is lost.
    pub fn listen(&mut self, listen: bool) {
        self.deaf = !listen;
        self.queued.clear();
        if self.deaf {
            self.pockets.iter_mut().for_each(Vec::clear);
        }
    }

    fn push(&mut self, actor: usize, hint: Hint) {
        if self.deaf {
            return;
        }
        let old = self.queued.len().saturating_sub(MERGE_WINDOW);
        for event in self.queued.range_mut(old..).rev() {
            if let Event::Hint {
                actor: by,
                hint: before,
            } = event
                && *by == actor
                && before.at == hint.at
                && before.to == hint.to
                && before.object == hint.object
                && before.on_dir == hint.on_dir
            {
                before.contents |= hint.contents;
                before.closed |= hint.closed;
                before.created |= hint.created;
                before.renamed |= hint.renamed;
                self.merged += 1;
                return;
            }
        }
        if self.queued.len() >= self.limit {
            if !self.queued.contains(&Event::Overflow) {
                self.overflows += 1;
                self.queued.push_back(Event::Overflow);
            }
            return;
        }
        self.queued.push_back(Event::Hint { actor, hint });
    }

    /// Reads up to `max` events.
    pub fn read(&mut self, max: usize) -> Vec<Event> {
        self.queued.drain(..max.min(self.queued.len())).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }

    /// Nothing waits, nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        self.queued.is_empty() && self.pockets.iter().all(Vec::is_empty)
    }
}
