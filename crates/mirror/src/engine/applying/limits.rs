//! What of this host a copy may take: bytes, entries, operations a second, and a floor of free space that stays. Decided
//! before a batch is applied, by what the rows will be after it, so that a copy never passes its limit to come back.
//!
//! What does not fit waits on hold and is looked at again together with what came after it: what is removed at the source
//! later makes room for what was made there before.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mirror_core::model::{ModelError, apply_group};
use mirror_core::plan::Overlay;
use mirror_core::{At, Change, Content, Handle, Kind, Name, Object, ObjectId, Record, Rows};
use serde::{Deserialize, Serialize};

use crate::apply::Applier;
use crate::engine::local::outer::space;
use crate::engine::status::{Hold, HoldReason, Stamp};
use crate::index::Index;
use crate::sync::lock;

/// `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Sum of the sizes of the copy's files.
    pub bytes_max: Option<u64>,
    /// Files, directories and all else, a file with many names once.
    pub inodes_max: Option<u64>,
    /// Records applied in a second.
    pub ops_max: Option<u64>,
    /// Bytes of DST's file system that stay free.
    pub min_free: Option<u64>,
}

impl Limits {
    /// Whether any of them is about room.
    pub fn any_room(&self) -> bool {
        self.bytes_max.is_some() || self.inodes_max.is_some() || self.min_free.is_some()
    }
}

/// Limits that may change while they hold.
#[derive(Debug, Default)]
pub struct Bounds(Mutex<Limits>);

impl Bounds {
    pub fn new(limits: Limits) -> Bounds {
        Bounds(Mutex::new(limits))
    }
    pub fn set(&self, limits: Limits) {
        *lock(&self.0) = limits;
    }
    pub fn get(&self) -> Limits {
        *lock(&self.0)
    }
}

/// What there is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// By the rows.
    pub bytes: u64,
    pub inodes: u64,
    /// Of the file system, with what is staged already.
    pub free: u64,
}

impl Taken {
    pub fn of(applier: &Applier<Index>, dst: &Path) -> Taken {
        let stats = applier.store().stats();
        let free = space(dst).map_or(u64::MAX, |space| space.bytes_free);
        let (_, staged) = applier.staging().waiting();
        Taken {
            bytes: stats.bytes,
            inodes: stats.objects,
            free: free.saturating_add(staged),
        }
    }
}

/// How many of these records may be applied, at a group's end, and what keeps the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Fits {
    pub records: usize,
    pub full: Option<Hold>,
}

/// The longest run of whole groups from the first on after which the copy is within its limits, or has grown in nothing
/// that is over them. Groups are applied together, so what is between does not count.
pub fn fits<R: Rows>(
    rows: &R,
    taken: Taken,
    limits: &Limits,
    records: &[Record],
) -> Result<Fits, ModelError<R::Error>> {
    let all = Fits {
        records: records.len(),
        full: None,
    };
    if !limits.any_room() {
        return Ok(all);
    }
    // Mostly it is plain that there is room.
    let mut most = After::of(taken);
    for record in records {
        if let Some(content) = record.change.content() {
            most.bytes = most.bytes.saturating_add(content.bytes);
            most.staged = most.staged.saturating_add(written(content));
        }
        most.inodes += u64::from(matches!(record.change, Change::Create { .. }));
    }
    if over(taken, most, limits).is_none() {
        return Ok(all);
    }
    let mut weighed = Weighed::new(rows, taken);
    let (mut good, mut begin, mut full) = (0, 0, None);
    for (n, record) in records.iter().enumerate() {
        if !record.end {
            continue;
        }
        apply_group(&mut weighed, records.get(begin..=n).unwrap_or_default())?;
        begin = n + 1;
        match over(taken, weighed.after, limits) {
            None => (good, full) = (begin, None),
            Some(line) => full = full.or(Some(line)),
        }
    }
    Ok(Fits {
        records: good,
        full: full.map(|what| Hold {
            reason: HoldReason::Limit,
            since: Stamp::now(),
            what,
            gone: None,
            of: None,
            below: None,
        }),
    })
}

/// What there will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct After {
    bytes: u64,
    inodes: u64,
    /// Content that must be written beside what it replaces.
    staged: u64,
}

impl After {
    fn of(taken: Taken) -> After {
        After {
            bytes: taken.bytes,
            inodes: taken.inodes,
            staged: 0,
        }
    }
}

/// The limit that is passed, in words.
fn over(now: Taken, after: After, limits: &Limits) -> Option<String> {
    let size = crate::cli::text::bytes;
    let count = crate::cli::text::count;
    if let Some(max) = limits.bytes_max
        && after.bytes > max
        && after.bytes > now.bytes
    {
        let (would, max) = (size(after.bytes), size(max));
        return Some(format!(
            "the copy would hold {would}, and bytes_max is {max}"
        ));
    }
    if let Some(max) = limits.inodes_max
        && after.inodes > max
        && after.inodes > now.inodes
    {
        let (would, max) = (count(after.inodes), count(max));
        return Some(format!(
            "the copy would hold {would} files and directories, and inodes_max is {max}"
        ));
    }
    if let Some(floor) = limits.min_free
        && after.staged > 0
        && now.free.saturating_sub(after.staged) < floor
    {
        let (needs, free, floor) = (size(after.staged), size(now.free), size(floor));
        return Some(format!(
            "{needs} are to be written, {free} are free on DST's file system, and min_free is {floor}"
        ));
    }
    None
}

/// Rows that keep count of what they hold.
struct Weighed<'a, R> {
    over: Overlay<'a, R>,
    after: After,
    staged: BTreeMap<ObjectId, u64>,
}

fn bytes_of(object: &Object) -> u64 {
    match &object.state.kind {
        Kind::File(content) => content.bytes,
        _ => 0,
    }
}

/// Holes take no room.
fn written(content: &Content) -> u64 {
    if content.data.is_empty() {
        return content.bytes;
    }
    let lengths = content.data.iter().map(|(_, length)| *length);
    lengths.fold(0, u64::saturating_add)
}

impl<'a, R: Rows> Weighed<'a, R> {
    fn new(base: &'a R, taken: Taken) -> Weighed<'a, R> {
        Weighed {
            over: Overlay::new(base),
            after: After::of(taken),
            staged: BTreeMap::new(),
        }
    }

    fn stage(&mut self, id: ObjectId, bytes: u64) {
        let before = match bytes {
            0 => self.staged.remove(&id),
            bytes => self.staged.insert(id, bytes),
        };
        let staged = self.after.staged.saturating_sub(before.unwrap_or(0));
        self.after.staged = staged.saturating_add(bytes);
    }
}

impl<R: Rows> Rows for Weighed<'_, R> {
    type Error = R::Error;
    fn name(&self, at: &At) -> Result<Option<ObjectId>, R::Error> {
        self.over.name(at)
    }
    fn object(&self, id: ObjectId) -> Result<Option<Object>, R::Error> {
        self.over.object(id)
    }
    fn by_handle(&self, handle: &Handle) -> Result<Option<ObjectId>, R::Error> {
        self.over.by_handle(handle)
    }
    fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, R::Error> {
        self.over.children(dir, after, max)
    }
    fn put(&mut self, id: ObjectId, object: Object) -> Result<(), R::Error> {
        let before = self.over.object(id)?;
        let bytes = bytes_of(&object);
        let was = before.as_ref().map_or(0, bytes_of);
        self.after.bytes = self.after.bytes.saturating_sub(was).saturating_add(bytes);
        self.after.inodes += u64::from(before.is_none());
        let there = self.over.base().object(id)?;
        let staged = match &object.state.kind {
            kind if there.is_some_and(|there| there.state.kind == *kind) => 0,
            Kind::File(content) => written(content),
            _ => 0,
        };
        self.stage(id, staged);
        self.over.put(id, object)
    }
    fn remove(&mut self, id: ObjectId) -> Result<(), R::Error> {
        if let Some(before) = self.over.object(id)? {
            self.after.bytes = self.after.bytes.saturating_sub(bytes_of(&before));
            self.after.inodes = self.after.inodes.saturating_sub(1);
        }
        self.stage(id, 0);
        self.over.remove(id)
    }
}

/// Operations a second: whoever has done many waits before the next.
#[derive(Debug)]
pub struct Pace {
    free_at: Instant,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            free_at: Instant::now(),
        }
    }
}

impl Pace {
    /// So many were done, at most so many a second are to be.
    pub fn did(&mut self, records: usize, ops_max: Option<u64>) {
        let Some(max) = ops_max else { return };
        let cost = Duration::from_secs_f64(records as f64 / max.max(1) as f64);
        // A pause does not save up for later.
        self.free_at = self.free_at.max(Instant::now()) + cost;
    }

    /// How long to wait before the next.
    pub fn wait(&self) -> Duration {
        self.free_at.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::{Digest, MemRows, Meta, Position, State};

    const ROOT: u64 = ObjectId::ROOT.0;

    fn at(parent: u64, name: &str) -> At {
        At {
            parent: ObjectId(parent),
            name: Name::new(name.as_bytes()).unwrap(),
        }
    }
    fn content(bytes: u64) -> Content {
        Content {
            bytes,
            digest: Digest([bytes as u8; 32]),
            data: Vec::new(),
            proven: true,
            fuzzy: false,
        }
    }
    fn record(change: Change, end: bool) -> Record {
        Record {
            position: Position {
                epoch: 1,
                sequence: 1,
            },
            time_ns: 0,
            end,
            who: None,
            change,
            local: None,
            content: None,
        }
    }
    fn make(object: u64, at: At, kind: Kind) -> Record {
        let state = State {
            kind,
            meta: Meta::default(),
        };
        let object = ObjectId(object);
        record(Change::Create { at, object, state }, true)
    }
    fn file(object: u64, name: &str, bytes: u64) -> Record {
        make(object, at(ROOT, name), Kind::File(content(bytes)))
    }
    fn write(object: u64, name: &str, bytes: u64) -> Record {
        let change = Change::Update {
            object: ObjectId(object),
            at: Some(at(ROOT, name)),
            meta: None,
            content: Some(content(bytes)),
        };
        record(change, true)
    }
    fn unlink(object: u64, at: At) -> Record {
        let object = ObjectId(object);
        record(Change::Unlink { at, object }, true)
    }
    fn link(object: u64, at: At) -> Record {
        let object = ObjectId(object);
        record(Change::Link { at, object }, true)
    }

    /// `a` of 100 bytes (10), `d/x` of 50 (20, 21): 150 bytes, 4 inodes with the root.
    fn rows() -> MemRows {
        let mut rows = MemRows::default();
        let open = Change::Open {
            tree: [1; 16],
            claim: [2; 16],
            parent: None,
        };
        let made = [
            record(open, true),
            file(10, "a", 100),
            make(20, at(ROOT, "d"), Kind::Dir),
            make(21, at(20, "x"), Kind::File(content(50))),
        ];
        for one in made {
            apply_group(&mut rows, &[one]).unwrap();
        }
        rows
    }

    fn limits(bytes: u64, inodes: u64, floor: u64) -> Limits {
        let some = |n: u64| (n > 0).then_some(n);
        Limits {
            bytes_max: some(bytes),
            inodes_max: some(inodes),
            ops_max: None,
            min_free: some(floor),
        }
    }

    #[test]
    fn as_far_as_there_is_room() {
        let now = Taken {
            bytes: 150,
            inodes: 4,
            free: 1000,
        };
        let none = limits(0, 0, 0);
        let table = [
            ("no limit", none, vec![file(30, "b", 1 << 40)], 1),
            ("room", limits(200, 5, 100), vec![file(30, "b", 50)], 1),
            ("bytes", limits(199, 0, 0), vec![file(30, "b", 50)], 0),
            ("inodes", limits(0, 4, 0), vec![file(30, "b", 0)], 0),
            (
                "one more name is no inode",
                limits(0, 4, 0),
                vec![link(10, at(ROOT, "b"))],
                1,
            ),
            ("floor", limits(0, 0, 951), vec![file(30, "b", 50)], 0),
            (
                "floor, to the byte",
                limits(0, 0, 950),
                vec![file(30, "b", 50)],
                1,
            ),
            (
                "a part of it",
                limits(210, 0, 0),
                vec![file(30, "b", 50), file(31, "c", 50), file(32, "e", 5)],
                1,
            ),
            (
                "room is made later",
                limits(210, 0, 0),
                vec![file(30, "b", 100), unlink(10, at(ROOT, "a"))],
                2,
            ),
            (
                "by a directory that goes with all below it",
                limits(160, 4, 0),
                vec![file(30, "b", 50), unlink(20, at(ROOT, "d"))],
                2,
            ),
            (
                "what comes and goes takes nothing",
                limits(150, 4, 999),
                vec![file(30, "b", 1 << 40), unlink(30, at(ROOT, "b"))],
                2,
            ),
            (
                "smaller, though over the limit",
                limits(10, 1, 0),
                vec![write(10, "a", 99)],
                1,
            ),
            (
                "as large, though over the limit",
                limits(10, 1, 0),
                vec![write(10, "a", 100)],
                1,
            ),
            (
                "larger, over the limit",
                limits(10, 1, 0),
                vec![write(10, "a", 101)],
                0,
            ),
            (
                "below the floor nothing is written",
                limits(0, 0, 2000),
                vec![write(10, "a", 1)],
                0,
            ),
            (
                "but removed",
                limits(0, 0, 2000),
                vec![unlink(10, at(ROOT, "a"))],
                1,
            ),
        ];
        for (what, limits, records, want) in table {
            let found = fits(&rows(), now, &limits, &records).unwrap();
            assert_eq!(found.records, want, "{what}: {found:?}");
            assert_eq!(
                found.full.is_some(),
                want < records.len(),
                "{what}: {found:?}"
            );
        }
        let found = fits(&rows(), now, &limits(199, 0, 0), &[file(30, "b", 50)]).unwrap();
        let hold = found.full.unwrap();
        assert_eq!(
            hold.what,
            "the copy would hold 200 B, and bytes_max is 199 B"
        );
        assert!(!hold.reason.can_be_released());
    }

    #[test]
    fn a_pause_does_not_save_up() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait(), Duration::ZERO);
        pace.did(1000, None);
        assert_eq!(pace.wait(), Duration::ZERO);
        pace.did(1000, Some(10));
        let wait = pace.wait();
        assert!(
            wait > Duration::from_secs(90) && wait <= Duration::from_secs(100),
            "{wait:?}"
        );
    }
}
