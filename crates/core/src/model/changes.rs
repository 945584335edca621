//! A group against the rows: first what it makes of each object, checked, then carried out.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::{Effect, Impossible, ModelError, remove};
use crate::names::Names;
use crate::record::{Change, Record};
use crate::rows::{Object, Rows};
use crate::types::*;

/// What a group makes of one object.
struct Changed {
    /// As the group leaves it.
    after: Object,
    created: bool,
    /// Names it had and loses, and those it is given.
    lost: Vec<At>,
    gained: Vec<At>,
}

/// What a group makes of the rows.
pub(super) struct Changes {
    objects: BTreeMap<ObjectId, Changed>,
    /// Names given, and to whom.
    given: BTreeMap<At, ObjectId>,
}

fn impossible<E>(record: &Record, why: Impossible) -> ModelError<E> {
    ModelError::Impossible {
        position: record.position,
        why,
    }
}

/// Works out what the group makes of the rows. Changes nothing.
pub(super) fn check<R: Rows>(rows: &R, group: &[Record]) -> Result<Changes, ModelError<R::Error>> {
    let mut check = Check {
        rows,
        objects: BTreeMap::new(),
        given: BTreeMap::new(),
        taken: BTreeSet::new(),
        parents: BTreeMap::new(),
    };
    for record in group {
        check.create(record, group.len() == 1)?;
    }
    for record in group {
        check.take(record)?;
    }
    for record in group {
        check.give(record)?;
    }
    for record in group {
        check.update(record)?;
    }
    check.cycles(group)?;
    Ok(Changes {
        objects: check.objects,
        given: check.given,
    })
}

struct Check<'a, R: Rows> {
    rows: &'a R,
    objects: BTreeMap<ObjectId, Changed>,
    given: BTreeMap<At, ObjectId>,
    taken: BTreeSet<At>,
    /// Known objects that names are given in: is it a directory?
    parents: BTreeMap<ObjectId, bool>,
}

impl<R: Rows> Check<'_, R> {
    fn create(&mut self, record: &Record, alone: bool) -> Result<(), ModelError<R::Error>> {
        let (object, state) = match &record.change {
            Change::Create { at, object, state } => {
                if *object == ObjectId::ROOT {
                    return Err(impossible(record, Impossible::Root));
                }
                self.parent(record, at.parent)?;
                (*object, state.clone())
            }
            Change::Open { .. } if !alone => {
                return Err(impossible(record, Impossible::OpenNotAlone));
            }
            Change::Open { parent: None, .. } => {
                let meta = Meta::default();
                (
                    ObjectId::ROOT,
                    State {
                        kind: Kind::Dir,
                        meta,
                    },
                )
            }
            _ => return Ok(()),
        };
        let known = self.objects.contains_key(&object) || self.row(object)?.is_some();
        if known {
            return Err(impossible(record, Impossible::ObjectExists));
        }
        self.parents.insert(object, state.kind.is_dir());
        let after = Object {
            state,
            local: record.local.clone().unwrap_or_default(),
            names: Names::new(),
        };
        let changed = Changed {
            after,
            created: true,
            lost: Vec::new(),
            gained: Vec::new(),
        };
        self.objects.insert(object, changed);
        Ok(())
    }

    fn take(&mut self, record: &Record) -> Result<(), ModelError<R::Error>> {
        let (at, object) = match &record.change {
            Change::Unlink { at, object } => (at, *object),
            Change::Move { object, from, .. } => (from, *object),
            _ => return Ok(()),
        };
        let changed = self.named(record, object)?;
        if !changed.after.names.remove(at) {
            return Err(impossible(record, Impossible::NameMissing));
        }
        changed.lost.push(at.clone());
        self.taken.insert(at.clone());
        Ok(())
    }

    fn give(&mut self, record: &Record) -> Result<(), ModelError<R::Error>> {
        let (at, object) = match &record.change {
            Change::Create { at, object, .. } => (at, *object),
            Change::Link { at, object } => (at, *object),
            Change::Move { object, to, .. } => (to, *object),
            _ => return Ok(()),
        };
        self.parent(record, at.parent)?;
        let occupied =
            !self.taken.contains(at) && self.rows.name(at).map_err(ModelError::Rows)?.is_some();
        if occupied || self.given.insert(at.clone(), object).is_some() {
            return Err(impossible(record, Impossible::NameTaken));
        }
        let linked = matches!(record.change, Change::Link { .. });
        let changed = self.named(record, object)?;
        if changed.after.state.kind.is_dir() && (linked || !changed.after.names.is_empty()) {
            return Err(impossible(record, Impossible::DirectoryWithTwoNames));
        }
        changed.after.names.insert(at.clone());
        changed.gained.push(at.clone());
        Ok(())
    }

    fn update(&mut self, record: &Record) -> Result<(), ModelError<R::Error>> {
        if let Change::Update {
            object,
            at,
            meta,
            content,
        } = &record.change
        {
            let after = &mut self.known(record, *object)?.after;
            let right = match at {
                Some(at) => after.names.contains(at),
                None => *object == ObjectId::ROOT,
            };
            if !right {
                return Err(impossible(record, Impossible::WrongName));
            }
            if let Some(meta) = meta {
                after.state.meta = meta.clone();
            }
            if let Some(content) = content {
                let Kind::File(old) = &mut after.state.kind else {
                    return Err(impossible(record, Impossible::NoFile));
                };
                *old = content.clone();
            }
        }
        // A later look knows better than an earlier one, whatever it was that it saw.
        let object = match record.change {
            Change::Void { .. } | Change::Note(_) => None,
            _ => record.change.object(),
        };
        if let (Some(object), Some(local)) = (object, &record.local) {
            self.known(record, object)?.after.local = local.clone();
        }
        Ok(())
    }

    /// Every directory that moved must still lead up to the root, or to what is gone.
    fn cycles(&mut self, group: &[Record]) -> Result<(), ModelError<R::Error>> {
        let mut fine = BTreeSet::from([ObjectId::ROOT]);
        for record in group {
            let Change::Move { object, .. } = record.change else {
                continue;
            };
            if !self
                .objects
                .get(&object)
                .is_some_and(|changed| changed.after.state.kind.is_dir())
            {
                continue;
            }
            let mut way = BTreeSet::new();
            let mut next = Some(object);
            while let Some(id) = next.filter(|id| !fine.contains(id)) {
                if !way.insert(id) {
                    return Err(impossible(record, Impossible::Cycle));
                }
                next = match self.objects.get(&id) {
                    Some(changed) => changed.after.names.first().map(|at| at.parent),
                    None => match self.row(id)? {
                        Some(object) => object.names.first().map(|at| at.parent),
                        None => return Err(impossible(record, Impossible::UnknownParent)),
                    },
                };
            }
            fine.append(&mut way);
        }
        Ok(())
    }

    /// Names are given only in directories.
    fn parent(&mut self, record: &Record, id: ObjectId) -> Result<(), ModelError<R::Error>> {
        let is_dir = match self.parents.get(&id) {
            Some(is_dir) => *is_dir,
            None => {
                let Some(object) = self.row(id)? else {
                    return Err(impossible(record, Impossible::UnknownParent));
                };
                let is_dir = object.state.kind.is_dir();
                self.parents.insert(id, is_dir);
                is_dir
            }
        };
        if is_dir {
            Ok(())
        } else {
            Err(impossible(record, Impossible::ParentIsNoDirectory))
        }
    }

    /// An object whose names may change.
    fn named(
        &mut self,
        record: &Record,
        id: ObjectId,
    ) -> Result<&mut Changed, ModelError<R::Error>> {
        if id == ObjectId::ROOT {
            return Err(impossible(record, Impossible::Root));
        }
        self.known(record, id)
    }

    fn known(
        &mut self,
        record: &Record,
        id: ObjectId,
    ) -> Result<&mut Changed, ModelError<R::Error>> {
        use alloc::collections::btree_map::Entry;
        match self.objects.entry(id) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => match self.rows.object(id).map_err(ModelError::Rows)? {
                Some(after) => Ok(entry.insert(Changed {
                    after,
                    created: false,
                    lost: Vec::new(),
                    gained: Vec::new(),
                })),
                None => Err(impossible(record, Impossible::UnknownObject)),
            },
        }
    }

    fn row(&self, id: ObjectId) -> Result<Option<Object>, ModelError<R::Error>> {
        self.rows.object(id).map_err(ModelError::Rows)
    }
}

/// Makes the rows so.
pub(super) fn carry_out<R: Rows>(
    rows: &mut R,
    changes: Changes,
) -> Result<Effect, ModelError<R::Error>> {
    let Changes { objects, given } = changes;
    let mut effect = Effect::default();
    // What loses a name to another object lets go of it first; what is gone and holds nothing, goes.
    for (&id, changed) in &objects {
        let nameless = changed.after.names.is_empty() && id != ObjectId::ROOT;
        if nameless {
            effect.gone.push(id);
            if !changed.after.state.kind.is_dir() {
                rows.remove(id).map_err(ModelError::Rows)?;
                effect.removed += 1;
                continue;
            }
        }
        let yields = changed
            .lost
            .iter()
            .any(|at| given.get(at).is_some_and(|other| *other != id));
        // A directory that goes must not be found below what it may now hold.
        if yields || nameless {
            let mut object = changed.after.clone();
            for at in &changed.gained {
                object.names.remove(at);
            }
            rows.put(id, object).map_err(ModelError::Rows)?;
        }
    }
    for (id, changed) in objects {
        effect.created += u64::from(changed.created);
        if !changed.after.names.is_empty() || id == ObjectId::ROOT {
            rows.put(id, changed.after).map_err(ModelError::Rows)?;
        }
    }
    for &id in &effect.gone {
        effect.removed += remove::subtree(rows, id)?;
    }
    Ok(effect)
}
