//! The tree as of a position, as rows: names, objects, and handles. The index of a worker or a replica is one
//! implementation (on disk, in `mirror::index`); [`MemRows`] is another, for tests and the simulator.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ops::Bound;

use crate::names::Names;
use crate::types::*;

/// An object, with all its names. A directory has exactly one name, the root none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub state: State,
    pub local: Local,
    pub names: Names,
}

/// Reading and writing rows. Law for every implementation: `at` is in `object(name(at)).names`, and
/// `name(n) == Some(id)` for every `n` of `object(id).names`; the caller keeps both sides in step through
/// [`crate::model::apply_group`].
pub trait Rows {
    type Error;
    fn name(&self, at: &At) -> Result<Option<ObjectId>, Self::Error>;
    fn object(&self, id: ObjectId) -> Result<Option<Object>, Self::Error>;
    /// The object whose `local.handle` is this one.
    fn by_handle(&self, handle: &Handle) -> Result<Option<ObjectId>, Self::Error>;
    /// Names in a directory in byte order, after `after`, at most `max` of them.
    fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, Self::Error>;
    /// Makes object `id` be this, names included: names it had before and has no more are gone.
    fn put(&mut self, id: ObjectId, object: Object) -> Result<(), Self::Error>;
    /// Forgets an object, its handle and those of its names that still point to it.
    fn remove(&mut self, id: ObjectId) -> Result<(), Self::Error>;
}

/// Rows in memory.
#[derive(Debug, Clone, Default)]
pub struct MemRows {
    names: BTreeMap<At, ObjectId>,
    objects: BTreeMap<ObjectId, Object>,
    handles: BTreeMap<Handle, ObjectId>,
}

impl MemRows {
    pub fn objects(&self) -> impl Iterator<Item = (&ObjectId, &Object)> {
        self.objects.iter()
    }
}

impl Rows for MemRows {
    type Error = Infallible;
    fn name(&self, at: &At) -> Result<Option<ObjectId>, Infallible> {
        Ok(self.names.get(at).copied())
    }
    fn object(&self, id: ObjectId) -> Result<Option<Object>, Infallible> {
        Ok(self.objects.get(&id).cloned())
    }
    fn by_handle(&self, handle: &Handle) -> Result<Option<ObjectId>, Infallible> {
        Ok(self.handles.get(handle).copied())
    }
    fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, Infallible> {
        let low = match after {
            Some(name) => Bound::Excluded(At {
                parent: dir,
                name: name.clone(),
            }),
            None => match Name::new(b"\x01") {
                // The smallest name there is.
                Ok(name) => Bound::Included(At { parent: dir, name }),
                Err(BadName) => Bound::Unbounded,
            },
        };
        Ok(self
            .names
            .range((low, Bound::Unbounded))
            .take_while(|(at, _)| at.parent == dir)
            .take(max)
            .map(|(at, id)| (at.name.clone(), *id))
            .collect())
    }
    fn put(&mut self, id: ObjectId, object: Object) -> Result<(), Infallible> {
        self.remove(id)?;
        for at in &object.names {
            self.names.insert(at.clone(), id);
        }
        if let Some(handle) = &object.local.handle {
            self.handles.insert(handle.clone(), id);
        }
        self.objects.insert(id, object);
        Ok(())
    }
    fn remove(&mut self, id: ObjectId) -> Result<(), Infallible> {
        if let Some(old) = self.objects.remove(&id) {
            for at in &old.names {
                if self.names.get(at) == Some(&id) {
                    self.names.remove(at);
                }
            }
            if let Some(handle) = &old.local.handle
                && self.handles.get(handle) == Some(&id)
            {
                self.handles.remove(handle);
            }
        }
        Ok(())
    }
}
