//! When a busy name is looked at: hints come in, names that are due go out. Pure: time is passed in.
//!
//! A name is due at once when its last hint was final (closed, renamed, removed, attributes changed). A file that is
//! being written waits until it was quiet for `quiet_ms`, and never longer than `wait_ms_max` after its first hint.
//! Settling must not break causes: a hint that switches something (a directory renamed, a symlink made) first makes
//! everything due that was hinted before it ([`Settle::release`]).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::hints::{Found, Switch};
use crate::reconcile::Dirty;
use crate::types::*;

#[derive(Debug, Clone, Copy)]
pub struct SettleLimits {
    pub quiet_ms: u64,
    pub wait_ms_max: u64,
}

impl Default for SettleLimits {
    fn default() -> Self {
        SettleLimits {
            quiet_ms: 100,
            wait_ms_max: 1000,
        }
    }
}

/// How a hint leaves its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing more is expected: look now.
    Final,
    /// Somebody is at work: more hints will come.
    Open,
}

#[derive(Debug)]
struct Waiting {
    dirty: Dirty,
    due_ms: u64,
    first_ms: u64,
}

#[derive(Debug, Default)]
pub struct Settle {
    limits: SettleLimits,
    waiting: BTreeMap<At, Waiting>,
    due: BTreeSet<(u64, At)>,
}

impl Settle {
    pub fn new(limits: SettleLimits) -> Settle {
        Settle {
            limits,
            ..Settle::default()
        }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes what a hint asked for, releasing first what it would overtake. The rest of `found` (unknown directories,
    /// the root) is the caller's.
    pub fn accept(&mut self, found: &mut Found, now_ms: u64) {
        let switch = match &found.switch {
            Switch::No => false,
            Switch::Yes => true,
            Switch::UnlessWritten(at) => !self
                .waiting
                .get(at)
                .is_some_and(|waiting| waiting.dirty.contents),
        };
        if switch {
            self.release(now_ms);
        }
        for (at, mut dirty, phase) in found.dirty.drain(..) {
            dirty.switch |= switch;
            self.hint(at, dirty, phase, now_ms);
        }
    }

    pub fn hint(&mut self, at: At, dirty: Dirty, phase: Phase, now_ms: u64) {
        let (first_ms, before) = match self.waiting.remove(&at) {
            Some(waiting) => {
                self.due.remove(&(waiting.due_ms, at.clone()));
                (waiting.first_ms, Some(waiting.dirty))
            }
            None => (now_ms, None),
        };
        let due_ms = match phase {
            Phase::Final => now_ms,
            Phase::Open => (now_ms + self.limits.quiet_ms).min(first_ms + self.limits.wait_ms_max),
        };
        let dirty = match before {
            Some(mut merged) => {
                merged.merge(dirty);
                merged
            }
            None => dirty,
        };
        self.due.insert((due_ms, at.clone()));
        self.waiting.insert(
            at,
            Waiting {
                dirty,
                due_ms,
                first_ms,
            },
        );
    }

    /// Everything that was hinted until now is due now.
    pub fn release(&mut self, now_ms: u64) {
        let names: Vec<At> = self
            .due
            .iter()
            .filter(|(due, _)| *due > now_ms)
            .map(|(_, at)| at.clone())
            .collect();
        for at in names {
            if let Some(waiting) = self.waiting.get_mut(&at) {
                self.due.remove(&(waiting.due_ms, at.clone()));
                waiting.due_ms = now_ms;
                self.due.insert((now_ms, at));
            }
        }
    }

    /// Names that are due, oldest first, at most `max` of them.
    pub fn take(&mut self, now_ms: u64, max: usize) -> Vec<(At, Dirty)> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((due, _)) = self.due.first()
            && *due <= now_ms
            && let Some((_, at)) = self.due.pop_first()
        {
            if let Some(waiting) = self.waiting.remove(&at) {
                taken.push((at, waiting.dirty));
            }
        }
        taken
    }

    /// Whether this name is still to be looked at.
    pub fn waits(&self, at: &At) -> bool {
        self.waiting.contains_key(at)
    }

    /// Whether a name that was hinted until then is still to be looked at.
    pub fn waits_since(&self, until_ms: u64) -> bool {
        let mut waiting = self.waiting.values();
        waiting.any(|waiting| waiting.first_ms <= until_ms)
    }

    /// When the next name is due.
    pub fn next_ms(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    pub fn clear(&mut self) {
        self.waiting.clear();
        self.due.clear();
    }
}

/// Files that somebody may still write without telling: looked at again with growing intervals until the
/// lease probe says that nobody can.
#[derive(Debug, Default)]
pub struct HotList {
    files: BTreeMap<ObjectId, (u64, u64)>,
    due: BTreeSet<(u64, ObjectId)>,
}

impl HotList {
    pub const INTERVAL_MS_MIN: u64 = 50;
    pub const INTERVAL_MS_MAX: u64 = 30_000;
    /// Beyond this the file that is due last is left to the rolling scan.
    pub const FILES_MAX: usize = 16_384;

    pub fn len(&self) -> usize {
        self.files.len()
    }
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The file is, or still is, open for writing. `changed`: it moved since the last look.
    pub fn add(&mut self, object: ObjectId, changed: bool, now_ms: u64) {
        let interval = match self.files.get(&object) {
            Some((due, interval)) => {
                self.due.remove(&(*due, object));
                if changed {
                    Self::INTERVAL_MS_MIN
                } else {
                    (interval * 2).min(Self::INTERVAL_MS_MAX)
                }
            }
            None => Self::INTERVAL_MS_MIN,
        };
        self.files.insert(object, (now_ms + interval, interval));
        self.due.insert((now_ms + interval, object));
        if self.files.len() > Self::FILES_MAX
            && let Some((_, last)) = self.due.pop_last()
        {
            self.files.remove(&last);
        }
    }

    pub fn remove(&mut self, object: ObjectId) {
        if let Some((due, _)) = self.files.remove(&object) {
            self.due.remove(&(due, object));
        }
    }

    pub fn objects(&self) -> Vec<ObjectId> {
        self.files.keys().copied().collect()
    }

    /// 0: not on the list.
    pub fn interval_ms(&self, object: ObjectId) -> u64 {
        self.files.get(&object).map_or(0, |(_, interval)| *interval)
    }

    /// Files whose turn it is. They stay on the list; call [`HotList::add`] or [`HotList::remove`] for each.
    pub fn due(&self, now_ms: u64, max: usize) -> Vec<ObjectId> {
        self.due
            .iter()
            .take_while(|(due, _)| *due <= now_ms)
            .take(max)
            .map(|(_, id)| *id)
            .collect()
    }

    pub fn next_ms(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str) -> At {
        At {
            parent: ObjectId::ROOT,
            name: Name::new(name.as_bytes()).unwrap(),
        }
    }
    fn names(taken: Vec<(At, Dirty)>) -> Vec<alloc::string::String> {
        taken
            .iter()
            .map(|(at, _)| alloc::format!("{}", at.name))
            .collect()
    }

    #[test]
    fn a_closed_file_is_due_at_once_and_a_written_one_waits_for_quiet() {
        let mut settle = Settle::new(SettleLimits {
            quiet_ms: 100,
            wait_ms_max: 1000,
        });
        settle.hint(at("a"), Dirty::default(), Phase::Open, 0);
        settle.hint(at("b"), Dirty::default(), Phase::Final, 0);
        assert_eq!(names(settle.take(0, 9)), ["b"]);
        settle.hint(at("a"), Dirty::default(), Phase::Open, 90);
        assert!(settle.take(150, 9).is_empty());
        assert_eq!(settle.next_ms(), Some(190));
        assert_eq!(names(settle.take(190, 9)), ["a"]);
        assert!(settle.is_empty());
    }

    #[test]
    fn a_file_that_never_rests_is_due_after_the_longest_wait() {
        let mut settle = Settle::new(SettleLimits {
            quiet_ms: 100,
            wait_ms_max: 1000,
        });
        for now in (0..2000).step_by(10) {
            settle.hint(
                at("log"),
                Dirty {
                    contents: true,
                    ..Dirty::default()
                },
                Phase::Open,
                now,
            );
            if let Some((_, dirty)) = settle.take(now, 9).pop() {
                assert_eq!(now, 1000);
                assert!(dirty.contents);
                return;
            }
        }
        panic!("never due");
    }

    #[test]
    fn a_switch_releases_what_was_hinted_before() {
        let mut settle = Settle::new(SettleLimits::default());
        settle.hint(at("page"), Dirty::default(), Phase::Open, 0);
        settle.release(5);
        settle.hint(at("current"), Dirty::default(), Phase::Final, 5);
        assert_eq!(names(settle.take(5, 9)), ["current", "page"]);
    }

    #[test]
    fn the_hot_list_backs_off_and_comes_back() {
        let mut hot = HotList::default();
        let id = ObjectId(7);
        hot.add(id, true, 0);
        assert_eq!(hot.due(50, 9), [id]);
        hot.add(id, false, 50);
        assert!(hot.due(149, 9).is_empty());
        assert_eq!(hot.due(150, 9), [id]);
        hot.add(id, true, 150);
        assert_eq!(hot.next_ms(), Some(200));
        hot.remove(id);
        assert!(hot.is_empty());
    }
}
