//! Writes down what groups change while they are folded: see [`crate::plan::merge`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::rows::{Group, Moment, Row, Then, Was};
use crate::record::{Change, Record, Who};
use crate::rows::{Object, Rows};
use crate::types::*;

/// Names listed at once below a directory that goes.
const PAGE: usize = 1024;

/// Bytes that came and went within what was folded: they never were in the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passing {
    pub object: ObjectId,
    /// From here on it had others, or was gone.
    pub until: Moment,
    pub time_ns: u64,
    pub state: State,
    /// Where this host has them, if it does.
    pub place: Option<ContentRef>,
    pub void: bool,
}

/// What was traced.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    pub groups: Vec<Group>,
    pub passing: Vec<Passing>,
    /// Where the bytes that an object had before all of this ended.
    pub ends: BTreeMap<ObjectId, (Moment, u64)>,
    /// Directories that went, with all below them: names in them hold nothing.
    gone_dirs: BTreeSet<ObjectId>,
    /// Of objects whose bytes came since: where from.
    fresh: BTreeMap<ObjectId, Fresh>,
}

#[derive(Debug, Clone, Default)]
struct Fresh {
    place: Option<ContentRef>,
    void: bool,
}

/// A group being folded.
#[derive(Debug, Default)]
pub struct Open {
    names: BTreeMap<At, (Option<ObjectId>, Option<ObjectId>, Option<u32>)>,
    objects: BTreeMap<ObjectId, (State, Local, Option<u32>)>,
    who: Vec<Who>,
}

impl Open {
    fn who(&mut self, record: &Record) -> Option<u32> {
        let who = record.who.as_ref()?;
        let at = self.who.iter().rposition(|known| known == who);
        let at = at.unwrap_or_else(|| {
            self.who.push(who.clone());
            self.who.len() - 1
        });
        Some(at as u32)
    }

    /// A name goes.
    pub fn leaves(&mut self, at: &At, object: ObjectId, record: &Record) {
        let who = self.who(record);
        let slot = self.names.entry(at.clone()).or_insert((None, None, who));
        slot.0 = Some(object);
    }

    /// A name comes.
    pub fn comes(&mut self, at: &At, object: ObjectId, record: &Record) {
        let who = self.who(record);
        let slot = self.names.entry(at.clone()).or_insert((None, None, who));
        slot.1 = Some(object);
        slot.2 = who.or(slot.2);
    }

    /// An object is about to change, or may be gone.
    pub fn touches(&mut self, id: ObjectId, object: &Object, record: &Record) {
        if !self.objects.contains_key(&id) {
            let who = self.who(record);
            let was = (object.state.clone(), object.local.clone(), who);
            self.objects.insert(id, was);
        }
    }
}

impl Trace {
    /// Bytes came for an object.
    pub fn brought(&mut self, object: ObjectId, place: Option<ContentRef>) {
        self.fresh.insert(object, Fresh { place, void: false });
    }
    pub fn void(&mut self, object: ObjectId) {
        if let Some(fresh) = self.fresh.get_mut(&object) {
            fresh.void = true;
        }
    }

    /// The group is folded: `tree` is as of its end, but that what went with a directory is still below it.
    /// `brought`: contents of this group, to be noted by [`Trace::brought`] once this returned.
    pub fn close<R: Rows>(
        &mut self,
        open: Open,
        tree: &R,
        group: &[Record],
        gone_dirs: &[ObjectId],
    ) -> Result<(), R::Error> {
        let Some(last) = group.last() else {
            return Ok(());
        };
        let Open {
            names,
            mut objects,
            who,
        } = open;
        let mut out = Group {
            moment: Moment::of(last.position),
            time_ns: last.time_ns,
            rows: Vec::with_capacity(names.len() + objects.len()),
            who,
        };
        for (at, (before, after, who)) in names {
            // Taken away and given back.
            if before == after {
                continue;
            }
            let was = Was::Name { at, before, after };
            out.rows.push(Row { was, who });
        }
        let by = out.rows.first().and_then(|row| row.who);
        for dir in gone_dirs {
            self.below(*dir, tree, &mut objects, &mut out, by)?;
        }
        for (object, (state, local, who)) in objects {
            let now = tree.object(object)?;
            let then = match &now {
                None => Then::Gone,
                Some(now) if self.is_cut_off(now) && object != ObjectId::ROOT => Then::Gone,
                Some(now) if now.state == state => continue,
                Some(now) if crate::plan::same_inode_kind(&now.state.kind, &state.kind) => {
                    Then::Meta
                }
                Some(_) => Then::Content,
            };
            self.row(&mut out, object, state, local, then, who);
        }
        if !out.rows.is_empty() {
            self.groups.push(out);
        }
        Ok(())
    }

    /// All its names are in directories that went.
    fn is_cut_off(&self, object: &Object) -> bool {
        !object.names.is_empty()
            && object
                .names
                .iter()
                .all(|at| self.gone_dirs.contains(&at.parent))
    }

    fn row(
        &mut self,
        out: &mut Group,
        object: ObjectId,
        state: State,
        local: Local,
        then: Then,
        who: Option<u32>,
    ) {
        if then.ends_bytes() && state.kind.content().is_some() {
            match self.fresh.remove(&object) {
                Some(fresh) => self.passing.push(Passing {
                    object,
                    until: out.moment,
                    time_ns: out.time_ns,
                    state: state.clone(),
                    place: fresh.place,
                    void: fresh.void,
                }),
                None => drop(self.ends.entry(object).or_insert((out.moment, out.time_ns))),
            }
        }
        let was = Was::Object {
            object,
            state,
            local,
            then,
        };
        out.rows.push(Row { was, who });
    }

    /// What goes with a directory.
    fn below<R: Rows>(
        &mut self,
        top: ObjectId,
        tree: &R,
        // As they were before the group.
        objects: &mut BTreeMap<ObjectId, (State, Local, Option<u32>)>,
        out: &mut Group,
        who: Option<u32>,
    ) -> Result<(), R::Error> {
        let mut todo = Vec::from([top]);
        // First the directories: a file is gone only if none of its names is outside of them.
        let mut dirs = Vec::new();
        while let Some(dir) = todo.pop() {
            if !self.gone_dirs.insert(dir) {
                continue;
            }
            dirs.push(dir);
            each_child(tree, dir, |_, id| {
                if let Some(child) = tree.object(id)?
                    && child.state.kind.is_dir()
                {
                    todo.push(id);
                }
                Ok(())
            })?;
        }
        let mut met = BTreeSet::new();
        for dir in dirs {
            each_child(tree, dir, |name, id| {
                let at = At { parent: dir, name };
                let was = Was::Name {
                    at,
                    before: Some(id),
                    after: None,
                };
                out.rows.push(Row { was, who });
                if let Some(child) = tree.object(id)?
                    && (child.state.kind.is_dir() || self.is_cut_off(&child))
                    && met.insert(id)
                {
                    let was = objects.remove(&id);
                    let (state, local, _) = was.unwrap_or((child.state, child.local, None));
                    self.row(out, id, state, local, Then::Gone, who);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn each_child<R: Rows>(
    tree: &R,
    dir: ObjectId,
    mut each: impl FnMut(Name, ObjectId) -> Result<(), R::Error>,
) -> Result<(), R::Error> {
    let mut after = None;
    loop {
        let page = tree.children(dir, after.as_ref(), PAGE)?;
        let Some((last, _)) = page.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        for (name, id) in page {
            each(name, id)?;
        }
    }
}

/// Whether a record brings bytes.
pub fn brings(record: &Record) -> Option<ObjectId> {
    match &record.change {
        Change::Create { object, .. } | Change::Update { object, .. } => {
            record.change.content().map(|_| *object)
        }
        _ => None,
    }
}
