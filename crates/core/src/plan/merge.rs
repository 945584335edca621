//! Folding whole groups into the final state of each object they touch.
//!
//! What lies below a removed directory is not listed here, so that removing a million files costs nothing until the
//! executor walks them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::{Merged, Overlay, Target};
use crate::history::trace::{self, Trace};
use crate::names::Names;
use crate::record::{Change, Record};
use crate::rows::{Object, Rows};
use crate::types::*;

/// An object that an earlier batch failed to bring to this state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `None`: it must go.
    pub want: Option<Object>,
    pub place: Option<ContentRef>,
    pub void: bool,
    /// Names the rows do not speak of, where something of it was seen and could not be taken away yet.
    pub also: BTreeSet<At>,
}

/// The groups can't be true of these rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit<E> {
    Rows(E),
    /// The record there speaks of something that is not so.
    Record {
        position: Position,
        what: &'static str,
    },
}

impl<E> From<E> for Misfit<E> {
    fn from(error: E) -> Self {
        Misfit::Rows(error)
    }
}

/// Folds consecutive whole groups. `pending` is what earlier batches still owe; of it only what these groups touch, or
/// what touches the same names and directories, is part of the result, or everything with `all`.
/// Law: rows changed as the result says are `model::apply_group` applied in sequence (to rows in which
/// nothing is owed).
pub fn merge<R: Rows>(
    rows: &R,
    pending: &BTreeMap<ObjectId, Wanted>,
    groups: &[Record],
    all: bool,
) -> Result<Merged, Misfit<R::Error>> {
    fold(rows, pending, groups, all, None).map(|(merged, _)| merged)
}

/// The same, and what each group changed.
pub fn merge_traced<R: Rows>(
    rows: &R,
    pending: &BTreeMap<ObjectId, Wanted>,
    groups: &[Record],
    all: bool,
) -> Result<(Merged, Trace), Misfit<R::Error>> {
    let (merged, trace) = fold(rows, pending, groups, all, Some(Trace::default()))?;
    Ok((merged, trace.unwrap_or_default()))
}

fn fold<R: Rows>(
    rows: &R,
    pending: &BTreeMap<ObjectId, Wanted>,
    groups: &[Record],
    all: bool,
    trace: Option<Trace>,
) -> Result<(Merged, Option<Trace>), Misfit<R::Error>> {
    let mut fold = Fold::new(rows, pending)?;
    fold.trace = trace;
    let mut rest = groups;
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|r| r.end)
            .map_or(rest.len(), |i| i + 1);
        let (group, tail) = rest.split_at(end);
        fold.group(group)?;
        rest = tail;
    }
    let trace = fold.trace.take();
    Ok((fold.finish(pending, all)?, trace))
}

/// The rows as they would be if nothing were owed.
pub fn owed<'a, R: Rows>(
    rows: &'a R,
    pending: &BTreeMap<ObjectId, Wanted>,
) -> Result<Overlay<'a, R>, R::Error> {
    let mut tree = Overlay::new(rows);
    // First what goes: a name taken by one object may have been another's.
    for (id, wanted) in pending {
        match &wanted.want {
            None => tree.remove(*id)?,
            Some(_) => {
                if let Some(mut object) = tree.object(*id)? {
                    object.names.clear();
                    tree.put(*id, object)?;
                }
            }
        }
    }
    for (id, wanted) in pending {
        if let Some(object) = &wanted.want {
            tree.put(*id, object.clone())?;
        }
    }
    Ok(tree)
}

struct Fold<'a, R> {
    tree: Overlay<'a, R>,
    touched: BTreeSet<ObjectId>,
    mentioned: BTreeSet<At>,
    /// Directories removed; what is below them is still in `tree`.
    gone_dirs: BTreeSet<ObjectId>,
    made_dirs: BTreeSet<ObjectId>,
    /// Where the wanted content of an object comes from, and whether it is void.
    contents: BTreeMap<ObjectId, Source>,
    trace: Option<Trace>,
}

#[derive(Clone, Copy)]
struct Source {
    /// The record that brought it; `None`: a batch before this one.
    record: Option<Position>,
    place: Option<ContentRef>,
    void: bool,
}

impl<'a, R: Rows> Fold<'a, R> {
    fn new(rows: &'a R, pending: &BTreeMap<ObjectId, Wanted>) -> Result<Self, R::Error> {
        let tree = owed(rows, pending)?;
        let mut contents = BTreeMap::new();
        for (id, wanted) in pending {
            if wanted.want.is_some() {
                contents.insert(
                    *id,
                    Source {
                        record: None,
                        place: wanted.place,
                        void: wanted.void,
                    },
                );
            }
        }
        Ok(Fold {
            tree,
            touched: BTreeSet::new(),
            mentioned: BTreeSet::new(),
            gone_dirs: BTreeSet::new(),
            made_dirs: BTreeSet::new(),
            contents,
            trace: None,
        })
    }

    fn group(&mut self, group: &[Record]) -> Result<(), Misfit<R::Error>> {
        let mut loose = BTreeSet::new();
        let mut moved = Vec::new();
        let mut open = self.trace.as_ref().map(|_| trace::Open::default());
        for record in group {
            let misfit = |what| Misfit::Record {
                position: record.position,
                what,
            };
            let (Change::Unlink { at, object }
            | Change::Move {
                from: at, object, ..
            }) = &record.change
            else {
                continue;
            };
            self.mentioned.insert(at.clone());
            let mut row = self
                .tree
                .object(*object)?
                .ok_or(misfit("an unknown object loses a name"))?;
            if let Some(open) = &mut open {
                open.touches(*object, &row, record);
                open.leaves(at, *object, record);
            }
            if !row.names.remove(at) {
                return Err(misfit("an object loses a name it does not have"));
            }
            loose.insert(*object);
            self.put(*object, row)?;
        }
        for record in group {
            let misfit = |what| Misfit::Record {
                position: record.position,
                what,
            };
            match &record.change {
                Change::Create { object, .. }
                | Change::Link { object, .. }
                | Change::Move { object, .. }
                    if *object == ObjectId::ROOT =>
                {
                    return Err(misfit("the root gets a name"));
                }
                Change::Create { at, object, state } => {
                    self.free(at, record.position)?;
                    if ObjectId::at(record.position) != Some(*object)
                        && self.tree.object(*object)?.is_some()
                    {
                        return Err(misfit("an object is created twice"));
                    }
                    let row = Object {
                        state: state.clone(),
                        local: Local::default(),
                        names: Names::one(at.clone()),
                    };
                    if let Some(open) = &mut open {
                        open.comes(at, *object, record);
                    }
                    self.touched.insert(*object);
                    if state.kind.is_dir() {
                        self.made_dirs.insert(*object);
                    }
                    // An id that is this record's position can't be in rows of before it.
                    if ObjectId::at(record.position) == Some(*object) {
                        self.tree.put_new(*object, row)?;
                    } else {
                        self.tree.put(*object, row)?;
                    }
                    self.comes(*object, record);
                }
                Change::Link { at, object } | Change::Move { to: at, object, .. } => {
                    self.free(at, record.position)?;
                    let mut row = self
                        .tree
                        .object(*object)?
                        .ok_or(misfit("an unknown object gets a name"))?;
                    if row.state.kind.is_dir() && !row.names.is_empty() {
                        return Err(misfit("a directory gets a second name"));
                    }
                    if row.state.kind.is_dir() {
                        moved.push((*object, record.position));
                    }
                    if let Some(open) = &mut open {
                        open.comes(at, *object, record);
                    }
                    row.names.insert(at.clone());
                    self.put(*object, row)?;
                }
                Change::Open { .. } if self.tree.object(ObjectId::ROOT)?.is_none() => {
                    let state = State {
                        kind: Kind::Dir,
                        meta: Meta::default(),
                    };
                    let root = Object {
                        state,
                        local: Local::default(),
                        names: Names::new(),
                    };
                    self.put(ObjectId::ROOT, root)?;
                }
                _ => {}
            }
        }
        for record in group {
            match &record.change {
                Change::Update {
                    object,
                    meta,
                    content,
                    ..
                } => {
                    let position = record.position;
                    let unknown = Misfit::Record {
                        position,
                        what: "an unknown object changes",
                    };
                    let mut row = self.tree.object(*object)?.ok_or(unknown)?;
                    if let Some(open) = &mut open {
                        open.touches(*object, &row, record);
                    }
                    if let Some(meta) = meta {
                        row.state.meta = meta.clone();
                    }
                    if let Some(content) = content {
                        if !matches!(row.state.kind, Kind::File(_)) {
                            return Err(Misfit::Record {
                                position,
                                what: "content for something that is no file",
                            });
                        }
                        row.state.kind = Kind::File(content.clone());
                        self.comes(*object, record);
                    }
                    self.put(*object, row)?;
                }
                Change::Void { of, object } => {
                    if let Some(source) = self.contents.get_mut(object)
                        && source.record.is_none_or(|record| record == *of)
                    {
                        source.void = true;
                        if let Some(trace) = &mut self.trace {
                            trace.void(*object);
                        }
                    }
                }
                _ => {}
            }
        }
        self.no_cycle(&moved)?;
        let mut gone_dirs = Vec::new();
        for id in loose {
            if let Some(row) = self.tree.object(id)?
                && row.names.is_empty()
            {
                if row.state.kind.is_dir() {
                    self.gone_dirs.insert(id);
                    gone_dirs.push(id);
                }
                self.tree.remove(id)?;
            }
        }
        if let (Some(open), Some(trace)) = (open, &mut self.trace) {
            trace.close(open, &self.tree, group, &gone_dirs)?;
            for record in group {
                if let Some(object) = trace::brings(record) {
                    trace.brought(object, record.content);
                }
            }
        }
        Ok(())
    }

    /// Every directory that got a name leads up to the root, or to what is gone.
    fn no_cycle(&self, moved: &[(ObjectId, Position)]) -> Result<(), Misfit<R::Error>> {
        let mut fine = BTreeSet::from([ObjectId::ROOT]);
        for (id, position) in moved {
            let mut way = BTreeSet::new();
            let mut next = Some(*id);
            while let Some(id) = next.filter(|id| !fine.contains(id)) {
                if !way.insert(id) {
                    return Err(Misfit::Record {
                        position: *position,
                        what: "a directory is moved into itself",
                    });
                }
                let row = self.tree.object(id)?;
                next = row.and_then(|row| row.names.first().map(|at| at.parent));
            }
            fine.append(&mut way);
        }
        Ok(())
    }

    fn put(&mut self, id: ObjectId, object: Object) -> Result<(), R::Error> {
        self.touched.insert(id);
        self.tree.put(id, object)
    }

    fn comes(&mut self, object: ObjectId, record: &Record) {
        if record.change.content().is_some() {
            let source = Source {
                record: Some(record.position),
                place: record.content,
                void: false,
            };
            self.contents.insert(object, source);
        }
    }

    /// Names are given after all were taken away, so a name that is still taken is a contradiction.
    fn free(&mut self, at: &At, position: Position) -> Result<(), Misfit<R::Error>> {
        self.mentioned.insert(at.clone());
        if self.tree.name(at)?.is_some() {
            return Err(Misfit::Record {
                position,
                what: "a name is given that is taken",
            });
        }
        match self.tree.is_dir(at.parent)? {
            Some(true) => Ok(()),
            _ => Err(Misfit::Record {
                position,
                what: "a name is given in something that is no directory",
            }),
        }
    }

    fn finish(
        mut self,
        pending: &BTreeMap<ObjectId, Wanted>,
        all: bool,
    ) -> Result<Merged, Misfit<R::Error>> {
        let mut alive = BTreeMap::new();
        self.add_pending(pending, all, &mut alive)?;
        let mut merged = Merged {
            objects: BTreeMap::new(),
            mentioned: self.mentioned,
            owed: BTreeSet::new(),
        };
        for id in self.touched {
            if let Some(wanted) = pending.get(&id) {
                merged.owed.extend(wanted.also.iter().cloned());
            }
            let old = if self.tree.is_new(id) {
                None
            } else {
                self.tree.base().object(id)?
            };
            let mut want = self.tree.object(id)?;
            if let Some(object) = &mut want
                && id != ObjectId::ROOT
            {
                let mut dead = Vec::new();
                // Nothing else can take the ground from under a name.
                let firm = self.gone_dirs.is_empty() && pending.is_empty();
                for at in object.names.iter().filter(|_| !firm) {
                    if !is_alive(&self.tree, at.parent, &mut alive)? {
                        dead.push(at.clone());
                    }
                }
                for at in &dead {
                    object.names.remove(at);
                }
                if object.names.is_empty() {
                    want = None;
                }
            }
            let known = want.as_ref().or(old.as_ref());
            let dir = known.map_or(self.made_dirs.contains(&id), |o| o.state.kind.is_dir());
            let source = self.contents.get(&id);
            merged.objects.insert(
                id,
                Target {
                    old,
                    want,
                    place: source.and_then(|s| s.place),
                    void: source.is_some_and(|s| s.void),
                    dir,
                },
            );
        }
        Ok(merged)
    }

    /// What is owed and hangs together with what is touched: the same object, its directory, or one of its names.
    fn add_pending(
        &mut self,
        pending: &BTreeMap<ObjectId, Wanted>,
        all: bool,
        alive: &mut BTreeMap<ObjectId, bool>,
    ) -> Result<(), R::Error> {
        if all {
            self.touched.extend(pending.keys());
            return Ok(());
        }
        let mut left: BTreeSet<ObjectId> = pending
            .keys()
            .copied()
            .filter(|id| !self.touched.contains(id))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if !self.gone_dirs.is_empty() {
            for id in left.clone() {
                let names = self.tree.object(id)?.map(|o| o.names).unwrap_or_default();
                for at in &names {
                    if !is_alive(&self.tree, at.parent, alive)? {
                        left.remove(&id);
                        self.touched.insert(id);
                    }
                }
            }
        }
        // The names and directories that what is touched has or had, growing until nothing new is met.
        let mut slots = self.mentioned.clone();
        let mut dirs: BTreeSet<ObjectId> = slots.iter().map(|at| at.parent).collect();
        let mut fresh: Vec<ObjectId> = self.touched.iter().copied().collect();
        loop {
            for id in fresh.drain(..) {
                dirs.insert(id);
                for object in [self.tree.object(id)?, self.tree.base().object(id)?]
                    .into_iter()
                    .flatten()
                {
                    dirs.extend(object.names.iter().map(|at| at.parent));
                    slots.extend(object.names.iter().cloned());
                }
                slots.extend(pending.get(&id).into_iter().flat_map(|w| w.also.clone()));
            }
            for id in &left {
                let also = pending.get(id).into_iter().flat_map(|w| &w.also);
                let mut meets = dirs.contains(id) || also.into_iter().any(|at| slots.contains(at));
                for object in [self.tree.object(*id)?, self.tree.base().object(*id)?]
                    .into_iter()
                    .flatten()
                {
                    meets |= object
                        .names
                        .iter()
                        .any(|at| slots.contains(at) || self.touched.contains(&at.parent));
                }
                if meets {
                    fresh.push(*id);
                }
            }
            if fresh.is_empty() {
                return Ok(());
            }
            for id in &fresh {
                left.remove(id);
                self.touched.insert(*id);
            }
        }
    }
}

/// Whether a directory is still below the root, not below a removed one.
fn is_alive<R: Rows>(
    tree: &R,
    dir: ObjectId,
    known: &mut BTreeMap<ObjectId, bool>,
) -> Result<bool, R::Error> {
    let mut path = Vec::new();
    let mut at = dir;
    let verdict = loop {
        if at == ObjectId::ROOT {
            break true;
        }
        if let Some(verdict) = known.get(&at) {
            break *verdict;
        }
        if path.contains(&at) {
            break false;
        }
        path.push(at);
        match tree
            .object(at)?
            .and_then(|o| o.names.first().map(|name| name.parent))
        {
            Some(parent) => at = parent,
            None => break false,
        }
    };
    for id in path {
        known.insert(id, verdict);
    }
    Ok(verdict)
}
