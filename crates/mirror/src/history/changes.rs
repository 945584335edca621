//! What happened, as lines for people and scripts: each group's rows told as creations, writes, renames, removals.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mirror_core::history::{Group, Moment, Row, Then, Was};
use mirror_core::{At, Kind, Name, ObjectId, Rows, State, Who};
use serde::{Deserialize, Serialize};

use super::ask::Hex;
use super::catalogue::CatalogueError;
use super::format::Dated;
use super::tree::{Here, PastError};
use super::{History, Kind as Of};

/// Objects that one path stood for, at most.
const OBJECTS_MAX: usize = 256;
/// Moments of one path, at most; newest win.
const MOMENTS_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Create,
    /// Other bytes.
    Write,
    /// Mode, owner, times, extended attributes.
    Attributes,
    Rename,
    /// One more name.
    Link,
    /// One name less, of several.
    Unlink,
    Remove,
}

impl Op {
    pub const ALL: [Op; 7] = [
        Op::Create,
        Op::Write,
        Op::Attributes,
        Op::Rename,
        Op::Link,
        Op::Unlink,
        Op::Remove,
    ];
    pub fn word(self) -> &'static str {
        match self {
            Op::Create => "create",
            Op::Write => "write",
            Op::Attributes => "attributes",
            Op::Rename => "rename",
            Op::Link => "link",
            Op::Unlink => "unlink",
            Op::Remove => "remove",
        }
    }
}

/// An object's state in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    /// `file`, `directory`, `symlink`, `device`, `fifo`, `socket`.
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Hex>,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Read while it was being written.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fuzzy: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Brief {
    pub fn of(state: &State) -> Brief {
        let kind = match &state.kind {
            Kind::File(_) => "file",
            Kind::Dir => "directory",
            Kind::Symlink(_) => "symlink",
            Kind::Device { .. } => "device",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
        };
        let content = state.kind.content();
        Brief {
            kind: kind.into(),
            bytes: content.map(|content| content.bytes),
            digest: content.map(|content| Hex(content.digest.0.to_vec())),
            mode: state.meta.mode,
            uid: state.meta.uid,
            gid: state.meta.gid,
            fuzzy: content.is_some_and(|content| content.fuzzy),
        }
    }
}

/// Who did it, as far as the worker could tell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct By {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
}

impl By {
    fn of(who: &Who) -> By {
        By {
            pid: who.pid,
            uid: who.uid,
            exe: who.exe.as_ref().map(|exe| mirror_core::escape(exe)),
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub moment: u64,
    /// The worker's clock.
    pub there_ns: u64,
    pub here_ns: u64,
    pub op: Op,
    pub object: u64,
    pub path: Hex,
    /// Where it was renamed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Hex>,
    /// Another file went by that.
    #[serde(default, skip_serializing_if = "is_false")]
    pub over: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Brief>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Brief>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<By>,
    /// Of a directory that went: how many entries went with it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub below: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Tells groups, oldest first.
pub struct Teller<'a, R> {
    rows: &'a R,
    history: &'a History,
    begins: Moment,
    /// What goes with a directory is told by that.
    folds: bool,
    /// Of directories, as of the group told last.
    paths: HashMap<ObjectId, Option<Vec<u8>>>,
}

fn catalogue(error: CatalogueError) -> PastError {
    PastError::History(error.into())
}

#[derive(Default)]
struct Names {
    from: Vec<At>,
    to: Vec<At>,
    who: Option<u32>,
}

impl<'a, R: Rows<Error: std::fmt::Display>> Teller<'a, R> {
    pub fn new(rows: &'a R, history: &'a History) -> Teller<'a, R> {
        Teller {
            rows,
            history,
            begins: history.begins().unwrap_or_default(),
            folds: true,
            paths: HashMap::new(),
        }
    }

    fn here(&self, moment: Moment) -> Here<'a, R> {
        Here::new(self.rows, self.history, moment)
    }

    /// A path in a directory as of before or after the group.
    fn path(&mut self, at: &At, moment: Moment) -> Result<Vec<u8>, PastError> {
        let dir = match self.paths.get(&at.parent) {
            Some(path) => path.clone(),
            None => {
                let path = self.here(moment).path_then(at.parent, 0)?;
                self.paths.insert(at.parent, path.clone());
                path
            }
        };
        let mut path = dir.unwrap_or_else(|| b"?".to_vec());
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(at.name.as_bytes());
        Ok(path)
    }

    pub fn tell(&mut self, dated: &Dated) -> Result<Vec<Change>, PastError> {
        let group = &dated.group;
        let (now, before) = (group.moment, Moment(group.moment.0.saturating_sub(1)));
        let mut names: BTreeMap<ObjectId, Names> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        let mut gone_dirs = BTreeSet::new();
        let mut states: BTreeMap<ObjectId, (&State, Then, &Row)> = BTreeMap::new();
        for row in &group.rows {
            match &row.was {
                Was::Name { at, before, after } => {
                    if let Some(id) = before {
                        let of = names.entry(*id).or_default();
                        of.from.push(at.clone());
                        of.who = row.who.or(of.who);
                    }
                    if let Some(id) = after {
                        let of = names.entry(*id).or_default();
                        of.to.push(at.clone());
                        of.who = row.who.or(of.who);
                        if before.is_some() {
                            taken.insert(at.clone());
                        }
                    }
                }
                Was::Object {
                    object,
                    state,
                    then,
                    ..
                } => {
                    if *then == Then::Gone && state.kind.is_dir() {
                        gone_dirs.insert(*object);
                    }
                    states.insert(*object, (state, *then, row));
                }
                Was::Unkept { .. } => {}
            }
        }
        let mut below: BTreeMap<ObjectId, u64> = BTreeMap::new();
        let mut out = Vec::new();
        // As of before the group; known from the one told before it, unless a directory moved.
        let moved = |id: &ObjectId| self.paths.contains_key(id);
        if names.keys().any(moved) {
            self.paths.clear();
        }
        for (id, of) in &names {
            let gone = matches!(states.get(id), Some((_, Then::Gone, _)));
            let with = of.from.iter().find(|at| gone_dirs.contains(&at.parent));
            if let Some(dir) = with.filter(|_| self.folds) {
                // It went with its directory.
                *below.entry(dir.parent).or_default() += 1;
                continue;
            }
            if gone && let Some(at) = of.from.first() {
                if taken.contains(at) {
                    continue;
                }
                let path = self.path(at, before)?;
                let (state, _, row) = states[id];
                let who = row.who.or(of.who);
                let mut change = self.change(dated, Op::Remove, *id, path, who);
                change.before = Some(Brief::of(state));
                out.push(change);
            }
        }
        for change in &mut out {
            change.below = count_below(ObjectId(change.object), &below, &names);
        }
        if names.keys().any(|id| self.paths.contains_key(id)) {
            self.paths.clear();
        }
        for (id, of) in &names {
            if matches!(states.get(id), Some((_, Then::Gone, _))) {
                continue;
            }
            self.named(dated, *id, of, &taken, &mut out)?;
        }
        if names.keys().any(|id| self.paths.contains_key(id)) {
            self.paths.clear();
        }
        for (id, (state, then, row)) in states {
            if then == Then::Gone {
                continue;
            }
            let Some(after) = self.here(now).state(id)? else {
                continue;
            };
            // What moves a directory's times is told already.
            let mut same_time = state.clone();
            same_time.meta.mtime = after.meta.mtime;
            if state.kind.is_dir() && same_time == after {
                continue;
            }
            let path = match id {
                ObjectId::ROOT => b".".to_vec(),
                id => self
                    .here(now)
                    .path_then(id, 0)?
                    .unwrap_or_else(|| b"?".to_vec()),
            };
            let op = match then {
                Then::Content => Op::Write,
                _ => Op::Attributes,
            };
            let mut change = self.change(dated, op, id, path, row.who);
            change.before = Some(Brief::of(state));
            change.after = Some(Brief::of(&after));
            out.push(change);
        }
        Ok(out)
    }

    fn named(
        &mut self,
        dated: &Dated,
        id: ObjectId,
        of: &Names,
        taken: &BTreeSet<At>,
        out: &mut Vec<Change>,
    ) -> Result<(), PastError> {
        let (now, before) = (
            dated.group.moment,
            Moment(dated.group.moment.0.saturating_sub(1)),
        );
        let state = self.here(now).state(id)?;
        let brief = state.as_ref().map(Brief::of);
        let created = of.from.is_empty() && self.is_new(id, now)?;
        let (mut from, mut to) = (of.from.iter(), of.to.iter());
        loop {
            let (op, path, moved) = match (from.next(), to.next()) {
                (None, None) => return Ok(()),
                (Some(from), Some(to)) => {
                    // Its directory may have moved in the same group.
                    let old = self.here(before).path_then(from.parent, 0)?;
                    let mut path = old.unwrap_or_else(|| b"?".to_vec());
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(from.name.as_bytes());
                    let new = self.path(to, now)?;
                    (Op::Rename, path, Some((new, taken.contains(to))))
                }
                (Some(from), None) => (Op::Unlink, self.path(from, before)?, None),
                (None, Some(to)) => {
                    // A new file over another one is what a program makes of it that writes beside and renames.
                    let op = match (created, taken.contains(to)) {
                        (true, true) => Op::Write,
                        (true, false) => Op::Create,
                        (false, _) => Op::Link,
                    };
                    (op, self.path(to, now)?, None)
                }
            };
            let mut change = self.change(dated, op, id, path, of.who);
            change.after = brief.clone();
            if let Some((to, over)) = moved {
                change.to = Some(Hex(to));
                change.over = over;
            }
            out.push(change);
        }
    }

    /// Whether the object came with this group.
    fn is_new(&self, id: ObjectId, now: Moment) -> Result<bool, PastError> {
        let first = self
            .history
            .catalogue
            .object_after(id, Of::Named, Moment(0));
        let first = first.map_err(catalogue)?;
        Ok(first.is_some_and(|first| first.moment == now) && Moment(id.0) > self.begins)
    }

    fn change(
        &self,
        dated: &Dated,
        op: Op,
        id: ObjectId,
        path: Vec<u8>,
        who: Option<u32>,
    ) -> Change {
        let group: &Group = &dated.group;
        let who = who.and_then(|who| group.who.get(who as usize));
        Change {
            moment: group.moment.0,
            there_ns: group.time_ns,
            here_ns: dated.here_ns,
            op,
            object: id.0,
            path: Hex(path),
            to: None,
            over: false,
            before: None,
            after: None,
            who: who.map(By::of),
            below: 0,
        }
    }

    /// All that happened to what ever stood at this path, oldest first: also under the names it had before and after.
    pub fn of_path(&mut self, path: &[Name]) -> Result<Vec<Change>, PastError> {
        let Some((name, dirs)) = path.split_last() else {
            return Ok(Vec::new());
        };
        // A directory may be gone, and another one have its name.
        let mut parents = BTreeSet::from([ObjectId::ROOT]);
        for dir in dirs {
            let mut next = BTreeSet::new();
            for parent in parents {
                next.extend(self.stood_at(&At {
                    parent,
                    name: dir.clone(),
                })?);
            }
            parents = next.into_iter().take(OBJECTS_MAX).collect();
        }
        let mut objects = BTreeSet::new();
        let mut moments = BTreeSet::new();
        let all = (Moment(0), Moment::MAX);
        for parent in parents {
            let at = At {
                parent,
                name: name.clone(),
            };
            let rows = self.history.catalogue.rows_of_name(&at, all, MOMENTS_MAX);
            moments.extend(rows.map_err(catalogue)?.iter().map(|found| found.moment));
            objects.extend(self.stood_at(&at)?);
        }
        for id in objects.iter().take(OBJECTS_MAX) {
            for kind in [Of::State, Of::Named] {
                let rows = self
                    .history
                    .catalogue
                    .rows_of_object(*id, kind, all, MOMENTS_MAX);
                moments.extend(rows.map_err(catalogue)?.iter().map(|found| found.moment));
            }
        }
        while moments.len() > MOMENTS_MAX {
            moments.pop_first();
        }
        self.folds = false;
        let mut out = Vec::new();
        for moment in moments {
            let mut found = Vec::new();
            let between = (Moment(moment.0.saturating_sub(1)), moment);
            let read = self.history.catalogue.groups(between, &mut |dated| {
                found.push(dated);
                true
            });
            read.map_err(catalogue)?;
            self.paths.clear();
            for dated in merge_parts(found) {
                let told = self.tell(&dated)?;
                out.extend(
                    told.into_iter()
                        .filter(|change| objects.contains(&ObjectId(change.object))),
                );
            }
        }
        Ok(out)
    }

    /// What a name ever stood for.
    fn stood_at(&self, at: &At) -> Result<BTreeSet<ObjectId>, PastError> {
        let all = (Moment(0), Moment::MAX);
        let rows = self.history.catalogue.rows_of_name(at, all, MOMENTS_MAX);
        let mut objects = BTreeSet::new();
        for found in rows.map_err(catalogue)? {
            if let Was::Name { before, after, .. } = found.row.was {
                objects.extend([before, after].into_iter().flatten());
            }
        }
        let now = self
            .rows
            .name(at)
            .map_err(|e| PastError::Rows(e.to_string()))?;
        objects.extend(now);
        Ok(objects)
    }
}

/// Entries below a directory that went, at any depth.
fn count_below(
    dir: ObjectId,
    direct: &BTreeMap<ObjectId, u64>,
    names: &BTreeMap<ObjectId, Names>,
) -> u64 {
    let mut count = 0;
    let mut todo = vec![dir];
    let mut met = BTreeSet::new();
    while let Some(dir) = todo.pop() {
        let Some(n) = direct.get(&dir).filter(|_| met.insert(dir)) else {
            continue;
        };
        count += n;
        let inside = |(id, of): (&ObjectId, &Names)| {
            let here = of.from.iter().any(|at| at.parent == dir);
            (here && direct.contains_key(id)).then_some(*id)
        };
        todo.extend(names.iter().filter_map(inside));
    }
    count
}

/// Frames are small, so a large group is in several of them.
pub fn merge_parts(parts: Vec<Dated>) -> Vec<Dated> {
    let mut out: Vec<Dated> = Vec::new();
    for part in parts {
        match out.last_mut() {
            Some(last) if last.group.moment == part.group.moment => {
                let base = last.group.who.len() as u32;
                last.group.who.extend(part.group.who);
                last.group
                    .rows
                    .extend(part.group.rows.into_iter().map(|row| Row {
                        who: row.who.map(|who| who + base),
                        ..row
                    }));
            }
            _ => out.push(part),
        }
    }
    out
}
