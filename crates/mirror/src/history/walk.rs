//! All of the catalogue, oldest first, read beside whoever appends to it: for what looks at every version. Only reads.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mirror_core::history::retention::{MirrorTime, Version};
use mirror_core::history::{Moment, Then, Was};
use mirror_core::{Digest, ObjectId};

use super::catalogue::{self, CatalogueError};
use super::events::Events;
use super::format::Dated;
use super::slots::{Slot, Slots};
use super::{HistoryError, Result};
use crate::disk::Disk;

/// A version that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub slot: Slot,
    pub version: Version,
}

/// What is met on the way, in order.
pub enum Met<'a> {
    /// A group, or the beginning of history: a position, and when it was applied here.
    Position(Moment, MirrorTime),
    Version(&'a Kept),
}

/// What a walk is over.
pub struct Walk<'a> {
    pub disk: &'a Arc<dyn Disk>,
    pub events: &'a Events,
    pub slots: &'a Slots,
    /// What ended later is left alone: it may not be durable.
    pub until: Moment,
}

/// What a walk found besides.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// It saw all there is up to `until`.
    pub to_the_end: bool,
    /// Slots of which no row tells, among those that rows tell of: nobody can ask for them.
    pub lost: Vec<Slot>,
}

impl Walk<'_> {
    /// Until `each` is false.
    pub fn run(&self, each: &mut dyn FnMut(Met<'_>) -> Result<bool>) -> Result<Walked> {
        let groups = self.slots.groups().map_err(HistoryError::io("list"))?;
        let begins = self.events.begins();
        let begins = begins.map(|(moment, _, _, here)| (moment, MirrorTime::of_ns(here)));
        let mut state = Walking {
            walk: self,
            each,
            begins: begins.collect(),
            groups: groups.into_iter().collect(),
            current: None,
            slots: BTreeSet::new(),
            before: None,
            since: HashMap::new(),
            made: Vec::new(),
            lost: Vec::new(),
        };
        let mut failed = None;
        let to_the_end = catalogue::read_all(&**self.disk, &mut |dated| {
            if dated.group.moment > self.until {
                return false;
            }
            match state.group(&dated) {
                Ok(go_on) => go_on,
                Err(e) => {
                    failed = Some(e);
                    false
                }
            }
        });
        let to_the_end = to_the_end?;
        if let Some(e) = failed {
            return Err(e);
        }
        let ended = to_the_end || state.before.is_some_and(|before| before >= self.until);
        Ok(Walked {
            to_the_end: ended,
            lost: state.lost,
        })
    }
}

struct Walking<'a, 'b> {
    walk: &'a Walk<'b>,
    each: &'a mut dyn FnMut(Met<'_>) -> Result<bool>,
    begins: std::collections::VecDeque<(Moment, MirrorTime)>,
    /// Groups of slots that have a directory.
    groups: BTreeSet<u64>,
    /// Of this one the slots that no row told of yet.
    current: Option<u64>,
    slots: BTreeSet<Slot>,
    before: Option<Moment>,
    /// Since when objects have the bytes that they have here, where they had others before.
    since: HashMap<ObjectId, (Moment, MirrorTime)>,
    /// Positions at which something was made, and the first of all.
    made: Vec<(Moment, MirrorTime)>,
    lost: Vec<Slot>,
}

impl Walking<'_, '_> {
    fn group(&mut self, dated: &Dated) -> Result<bool> {
        let (moment, here) = (dated.group.moment, MirrorTime::of_ns(dated.here_ns));
        while let Some((begin, at)) = self.begins.pop_front_if(|begin| begin.0 < moment) {
            self.made.push((begin, at));
            if !(self.each)(Met::Position(begin, at))? {
                return Ok(false);
            }
        }
        if self.before != Some(moment) {
            if !(self.each)(Met::Position(moment, here))? {
                return Ok(false);
            }
            let makes = dated.group.rows.iter().any(|row| match &row.was {
                Was::Name {
                    after: Some(id), ..
                } => Some(id.0) > self.before.map(|before| before.0),
                _ => false,
            });
            if makes || self.made.is_empty() {
                self.made.push((moment, here));
            }
        }
        for row in &dated.group.rows {
            let Was::Object { object, then, .. } = &row.was else {
                continue;
            };
            if !then.ends_bytes() {
                continue;
            }
            if !self.ended(*object, moment, here)? {
                return Ok(false);
            }
            match then {
                Then::Gone => self.since.remove(object),
                _ => self.since.insert(*object, (moment, here)),
            };
        }
        self.before = Some(moment);
        Ok(true)
    }

    fn ended(&mut self, object: ObjectId, until: Moment, here: MirrorTime) -> Result<bool> {
        let slot = Slot { until, object };
        if self.current != Some(slot.group()) {
            self.leave();
            self.current = Some(slot.group());
            if self.groups.contains(&slot.group()) {
                let found = self.walk.slots.in_group(slot.group());
                self.slots = found
                    .map_err(HistoryError::io("list"))?
                    .into_iter()
                    .collect();
            }
        }
        if !self.slots.remove(&slot) {
            return Ok(true);
        }
        let (a, from) = self.since.get(&object).copied().unwrap_or_else(|| {
            // An object's id is the position at which it was made.
            let a = Moment(object.0).min(until);
            let n = self.made.partition_point(|(moment, _)| *moment < a);
            (a, self.made.get(n).map_or(here, |(_, at)| *at))
        });
        let version = Version {
            from: from.min(here),
            until: here,
            a,
            z: until,
        };
        (self.each)(Met::Version(&Kept { slot, version }))
    }

    /// What is left of a group that rows are past.
    fn leave(&mut self) {
        for slot in std::mem::take(&mut self.slots) {
            let first = self.made.first().map(|(moment, _)| *moment);
            if Some(slot.until) > first {
                self.lost.push(slot);
            }
        }
    }
}

/// The head of a hash chain that must go on in the next segment.
pub(super) type Chain = Option<(u64, Digest)>;

/// Bytes of a whole segment.
pub(super) fn whole(disk: &dyn Disk, name: &str) -> std::result::Result<Vec<u8>, CatalogueError> {
    let failed = |source| CatalogueError::Io {
        what: "read",
        name: name.into(),
        source,
    };
    let file = disk.open(name).map_err(failed)?;
    let len = file.len().map_err(failed)?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    let mut got = 0;
    while got < bytes.len() {
        let rest = bytes.get_mut(got..).unwrap_or_default();
        match file.read_at(got as u64, rest).map_err(failed)? {
            0 => break,
            n => got += n,
        }
    }
    bytes.truncate(got);
    Ok(bytes)
}
