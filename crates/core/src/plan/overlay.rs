//! Rows with changes on top that are kept in memory.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::Bound;

use crate::names::Names;
use crate::rows::{Object, Rows};
use crate::types::*;

/// Reads through to `base` for what was not changed. Law: reads answer as if `base` had been changed.
pub struct Overlay<'a, R> {
    base: &'a R,
    objects: BTreeMap<ObjectId, Option<Object>>,
    names: BTreeMap<At, Option<ObjectId>>,
    /// Objects that `base` can't have: it is not asked for them, nor for names in them.
    new: BTreeSet<ObjectId>,
    /// Objects with a name that became another's while they still have it.
    robbed: BTreeSet<ObjectId>,
}

impl<'a, R: Rows> Overlay<'a, R> {
    pub fn new(base: &'a R) -> Self {
        Overlay {
            base,
            objects: BTreeMap::new(),
            names: BTreeMap::new(),
            new: BTreeSet::new(),
            robbed: BTreeSet::new(),
        }
    }
    pub fn base(&self) -> &'a R {
        self.base
    }
    /// The objects that were put (`Some`) or removed.
    pub fn changes(&self) -> &BTreeMap<ObjectId, Option<Object>> {
        &self.objects
    }
    pub fn into_changes(self) -> BTreeMap<ObjectId, Option<Object>> {
        self.objects
    }
    /// Of what was put: where the copy has it is not where it will be.
    pub fn forget_locals(&mut self) {
        for object in self.objects.values_mut().flatten() {
            object.local = Local::default();
        }
    }
    /// Says that `base` does not have this object.
    pub fn mark_new(&mut self, id: ObjectId) {
        self.new.insert(id);
    }
    /// Whether the object was put by [`Overlay::put_new`].
    pub fn is_new(&self, id: ObjectId) -> bool {
        self.new.contains(&id)
    }
    /// [`Rows::put`] of an object that `base` never had.
    pub fn put_new(&mut self, id: ObjectId, object: Object) -> Result<(), R::Error> {
        if !self.objects.contains_key(&id) {
            self.new.insert(id);
        }
        self.put(id, object)
    }
    /// Whether an object is a directory; `None`: there is no such object.
    pub fn is_dir(&self, id: ObjectId) -> Result<Option<bool>, R::Error> {
        match self.objects.get(&id) {
            Some(found) => Ok(found.as_ref().map(|object| object.state.kind.is_dir())),
            None => Ok(self.object(id)?.map(|object| object.state.kind.is_dir())),
        }
    }
    fn let_go<'n>(
        &mut self,
        id: ObjectId,
        names: impl Iterator<Item = &'n At>,
    ) -> Result<(), R::Error> {
        for at in names {
            if self.name(at)? == Some(id) {
                self.names.insert(at.clone(), None);
            }
        }
        Ok(())
    }
}

impl<R: Rows> Rows for Overlay<'_, R> {
    type Error = R::Error;
    fn name(&self, at: &At) -> Result<Option<ObjectId>, R::Error> {
        match self.names.get(at) {
            Some(found) => Ok(*found),
            None if self.new.contains(&at.parent) => Ok(None),
            None => self.base.name(at),
        }
    }
    fn object(&self, id: ObjectId) -> Result<Option<Object>, R::Error> {
        match self.objects.get(&id) {
            Some(found) => Ok(found.clone()),
            None if self.new.contains(&id) => Ok(None),
            None => self.base.object(id),
        }
    }
    fn by_handle(&self, handle: &Handle) -> Result<Option<ObjectId>, R::Error> {
        for (id, object) in &self.objects {
            if object
                .as_ref()
                .is_some_and(|o| o.local.handle.as_ref() == Some(handle))
            {
                return Ok(Some(*id));
            }
        }
        Ok(self
            .base
            .by_handle(handle)?
            .filter(|id| !self.objects.contains_key(id)))
    }
    fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, R::Error> {
        let mut out = Vec::new();
        let mut after = after.cloned();
        while out.len() < max {
            let page = self.base.children(dir, after.as_ref(), max)?;
            let last = page.len() < max;
            let end = if last {
                None
            } else {
                page.last().map(|(name, _)| name.clone())
            };
            let mut merged: BTreeMap<Name, Option<ObjectId>> =
                page.into_iter().map(|(n, id)| (n, Some(id))).collect();
            let low = match &after {
                Some(name) => Bound::Excluded(At {
                    parent: dir,
                    name: name.clone(),
                }),
                None => match Name::new(b"\x01") {
                    Ok(name) => Bound::Included(At { parent: dir, name }),
                    Err(BadName) => Bound::Unbounded,
                },
            };
            for (at, id) in self.names.range((low, Bound::Unbounded)) {
                if at.parent != dir || end.as_ref().is_some_and(|end| at.name > *end) {
                    break;
                }
                merged.insert(at.name.clone(), *id);
            }
            out.extend(
                merged
                    .into_iter()
                    .filter_map(|(name, id)| id.map(|id| (name, id))),
            );
            after = end;
            if last {
                break;
            }
        }
        out.truncate(max);
        Ok(out)
    }
    fn put(&mut self, id: ObjectId, object: Object) -> Result<(), R::Error> {
        // Most are put again under nearly the same names: only what differs is gone through.
        let before = match self.objects.get(&id) {
            Some(Some(old)) => old.names.clone(),
            Some(None) => Names::new(),
            None if self.new.contains(&id) => Names::new(),
            None => {
                let before = self.base.object(id)?.map_or(Names::new(), |old| old.names);
                // Of these nobody knows yet whether another one took them.
                if before.iter().any(|at| self.names.contains_key(at)) {
                    self.robbed.insert(id);
                }
                before
            }
        };
        self.let_go(id, before.without(&object.names))?;
        let kept = match self.robbed.remove(&id) {
            true => Names::new(),
            false => before,
        };
        for at in object.names.without(&kept) {
            match self.names.get_mut(at) {
                Some(owner) => {
                    if let Some(other) = owner.replace(id).filter(|other| *other != id) {
                        self.robbed.insert(other);
                    }
                }
                None => drop(self.names.insert(at.clone(), Some(id))),
            }
        }
        self.objects.insert(id, Some(object));
        Ok(())
    }
    fn remove(&mut self, id: ObjectId) -> Result<(), R::Error> {
        if let Some(old) = self.object(id)? {
            self.let_go(id, old.names.iter())?;
        }
        self.objects.insert(id, None);
        Ok(())
    }
}
