//! The tree as one reconcile would leave it: the rows, and over them what was detached and attached so far.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::Refreshed;
use super::source::{Body, Seen};
use crate::names::Names;
use crate::record::Who;
use crate::rows::{Object, Rows};
use crate::types::*;

/// An object: one the rows know, or one found in this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ref {
    Known(ObjectId),
    New(usize),
}

/// A name in a directory of either sort.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub dir: Ref,
    pub name: Name,
}

impl Spot {
    pub fn of(at: &At) -> Spot {
        Spot {
            dir: Ref::Known(at.parent),
            name: at.name.clone(),
        }
    }
    pub fn known(&self) -> Option<At> {
        match self.dir {
            Ref::Known(parent) => Some(At {
                parent,
                name: self.name.clone(),
            }),
            Ref::New(_) => None,
        }
    }
}

pub(super) struct NewObject {
    pub state: State,
    pub local: Local,
    pub body: Body,
    pub busy: bool,
    pub who: Option<Who>,
    pub names: BTreeSet<Spot>,
}

/// A known object that this call touched.
pub(super) struct Touched {
    pub object: Object,
    /// Of its names in the rows, those it still has. It may have very many: only what differs is gone through.
    pub kept: Names,
    /// Names it has besides.
    pub gained: BTreeSet<Spot>,
    pub update: Option<Refreshed>,
}

impl Touched {
    fn count(&self) -> usize {
        self.kept.len() + self.gained.len()
    }
    fn first(&self) -> Option<Spot> {
        let kept = self.kept.first().map(Spot::of);
        kept.into_iter().chain(self.gained.first().cloned()).min()
    }
    fn remove(&mut self, spot: &Spot) {
        if !self.gained.remove(spot)
            && let Some(at) = spot.known()
        {
            self.kept.remove(&at);
        }
    }
    fn insert(&mut self, spot: Spot) {
        match spot.known() {
            Some(at) if self.object.names.contains(&at) => drop(self.kept.insert(at)),
            _ => drop(self.gained.insert(spot)),
        }
    }
}

pub(super) struct Draft<'a, R: Rows> {
    rows: &'a R,
    /// Names whose binding is not what the rows say.
    names: BTreeMap<Spot, Option<Ref>>,
    known: BTreeMap<ObjectId, Touched>,
    pub new: Vec<NewObject>,
    new_by_handle: BTreeMap<Handle, usize>,
}

impl<'a, R: Rows> Draft<'a, R> {
    pub fn new(rows: &'a R) -> Self {
        Draft {
            rows,
            names: BTreeMap::new(),
            known: BTreeMap::new(),
            new: Vec::new(),
            new_by_handle: BTreeMap::new(),
        }
    }

    fn touch(&mut self, id: ObjectId) -> Result<Option<&mut Touched>, R::Error> {
        if let alloc::collections::btree_map::Entry::Vacant(slot) = self.known.entry(id) {
            let Some(object) = self.rows.object(id)? else {
                return Ok(None);
            };
            slot.insert(Touched {
                kept: object.names.clone(),
                gained: BTreeSet::new(),
                object,
                update: None,
            });
        }
        Ok(self.known.get_mut(&id))
    }

    pub fn object(&mut self, id: ObjectId) -> Result<Option<&Object>, R::Error> {
        Ok(self.touch(id)?.map(|touched| &touched.object))
    }

    /// Of a directory, and of nothing else.
    pub fn handle(&mut self, dir: Ref) -> Result<Option<Handle>, R::Error> {
        match dir {
            Ref::Known(id) => Ok(self
                .object(id)?
                .filter(|object| object.state.kind.is_dir())
                .and_then(|object| object.local.handle.clone())),
            Ref::New(token) => Ok(self.new.get(token).and_then(|new| new.local.handle.clone())),
        }
    }

    pub fn binding(&self, spot: &Spot) -> Result<Option<Ref>, R::Error> {
        if let Some(bound) = self.names.get(spot) {
            return Ok(*bound);
        }
        match spot.known() {
            Some(at) => Ok(self.rows.name(&at)?.map(Ref::Known)),
            None => Ok(None),
        }
    }

    /// As the rows say.
    pub fn binding_before(&self, spot: &Spot) -> Result<Option<Ref>, R::Error> {
        match spot.known() {
            Some(at) => Ok(self.rows.name(&at)?.map(Ref::Known)),
            None => Ok(None),
        }
    }

    /// Likewise.
    pub fn names_before(&mut self, id: ObjectId) -> Result<Vec<Spot>, R::Error> {
        let names = self.object(id)?.map(|object| &object.names);
        Ok(names
            .into_iter()
            .flat_map(|names| names.iter().map(Spot::of))
            .collect())
    }

    /// Whether it has a name that it had not.
    pub fn gained(&self, id: ObjectId) -> bool {
        let touched = self.known.get(&id);
        touched.is_some_and(|touched| !touched.gained.is_empty())
    }

    /// The object this inode is, if it is one we know: same handle, same type.
    pub fn by_handle(&mut self, seen: &Seen) -> Result<Option<Ref>, R::Error> {
        if let Some(&token) = self.new_by_handle.get(&seen.handle) {
            return Ok(Some(Ref::New(token)));
        }
        let Some(id) = self.rows.by_handle(&seen.handle)? else {
            return Ok(None);
        };
        let same = self
            .object(id)?
            .is_some_and(|object| seen.is_kind(&object.state.kind));
        Ok(same.then_some(Ref::Known(id)))
    }

    pub fn dir_by_handle(&mut self, handle: &Handle) -> Result<Option<Ref>, R::Error> {
        if let Some(&token) = self.new_by_handle.get(handle) {
            return Ok(Some(Ref::New(token)));
        }
        Ok(self.rows.by_handle(handle)?.map(Ref::Known))
    }

    pub fn names(&mut self, object: Ref) -> Result<Vec<Spot>, R::Error> {
        Ok(match object {
            Ref::Known(id) => match self.touch(id)? {
                Some(touched) => {
                    let kept = touched.kept.iter().map(Spot::of);
                    kept.chain(touched.gained.iter().cloned()).collect()
                }
                None => Vec::new(),
            },
            Ref::New(token) => {
                let names = self.new.get(token).map(|new| &new.names);
                names.into_iter().flatten().cloned().collect()
            }
        })
    }

    pub fn names_count(&mut self, object: Ref) -> Result<usize, R::Error> {
        Ok(match object {
            Ref::Known(id) => self.touch(id)?.map_or(0, |touched| touched.count()),
            Ref::New(token) => self.new.get(token).map_or(0, |new| new.names.len()),
        })
    }

    /// The one name of a directory; `None` for the root and for what lies in limbo.
    pub fn name_of(&mut self, dir: Ref) -> Result<Option<Spot>, R::Error> {
        Ok(match dir {
            Ref::Known(id) => self.touch(id)?.and_then(|touched| touched.first()),
            Ref::New(token) => self
                .new
                .get(token)
                .and_then(|new| new.names.first().cloned()),
        })
    }

    pub fn detach(&mut self, spot: &Spot) -> Result<(), R::Error> {
        match self.binding(spot)? {
            None => return Ok(()),
            Some(Ref::Known(id)) => {
                if let Some(touched) = self.touch(id)? {
                    touched.remove(spot);
                }
            }
            Some(Ref::New(token)) => {
                if let Some(new) = self.new.get_mut(token) {
                    new.names.remove(spot);
                }
            }
        }
        self.names.insert(spot.clone(), None);
        Ok(())
    }

    pub fn attach(&mut self, spot: Spot, object: Ref) -> Result<(), R::Error> {
        match object {
            Ref::Known(id) => {
                if let Some(touched) = self.touch(id)? {
                    touched.insert(spot.clone());
                }
            }
            Ref::New(token) => {
                if let Some(new) = self.new.get_mut(token) {
                    new.names.insert(spot.clone());
                }
            }
        }
        self.names.insert(spot, Some(object));
        Ok(())
    }

    pub fn add(&mut self, new: NewObject) -> usize {
        let token = self.new.len();
        if let Some(handle) = &new.local.handle {
            self.new_by_handle.insert(handle.clone(), token);
        }
        self.new.push(new);
        token
    }

    pub fn new_objects(&self) -> usize {
        self.new.len()
    }

    pub fn update(&mut self, id: ObjectId, refreshed: Refreshed) {
        if let Some(touched) = self.known.get_mut(&id) {
            touched.update = Some(match touched.update.take() {
                None => refreshed,
                Some(before) => Refreshed {
                    content: refreshed.content.or(before.content),
                    ..refreshed
                },
            });
        }
    }

    /// Whether `dir` is `top` or lies below it.
    pub fn is_below(&self, dir: Ref, top: Ref) -> Result<bool, R::Error> {
        let mut at = dir;
        loop {
            if at == top {
                return Ok(true);
            }
            match self.parent(at)? {
                Some(above) => at = above,
                None => return Ok(false),
            }
        }
    }

    pub fn reaches_root(&self, dir: Ref) -> Result<bool, R::Error> {
        self.is_below(dir, Ref::Known(ObjectId::ROOT))
    }

    fn parent(&self, dir: Ref) -> Result<Option<Ref>, R::Error> {
        Ok(self.own_name(dir)?.map(|spot| spot.dir))
    }

    fn own_name(&self, dir: Ref) -> Result<Option<Spot>, R::Error> {
        match dir {
            Ref::New(token) => Ok(self
                .new
                .get(token)
                .and_then(|new| new.names.first().cloned())),
            Ref::Known(id) => match self.known.get(&id) {
                Some(touched) => Ok(touched.first()),
                None => Ok(self
                    .rows
                    .object(id)?
                    .and_then(|object| object.names.first().map(Spot::of))),
            },
        }
    }

    /// Names from the root down; `None` when `dir` does not reach the root.
    pub fn trail(&self, dir: Ref) -> Result<Option<Vec<Name>>, R::Error> {
        let mut trail = Vec::new();
        let mut at = dir;
        while at != Ref::Known(ObjectId::ROOT) {
            let Some(spot) = self.own_name(at)? else {
                return Ok(None);
            };
            trail.push(spot.name);
            at = spot.dir;
        }
        trail.reverse();
        Ok(Some(trail))
    }

    /// Known objects that had a name and have none now.
    pub fn nameless(&self) -> Vec<(ObjectId, Object)> {
        self.known
            .iter()
            .filter(|(id, touched)| {
                **id != ObjectId::ROOT && touched.count() == 0 && !touched.object.names.is_empty()
            })
            .map(|(id, touched)| (*id, touched.object.clone()))
            .collect()
    }

    /// Whether a known directory is not where it was, so that names in it, or below it, may have left the tree.
    pub fn moves_dirs(&self) -> bool {
        self.known.values().any(|touched| {
            touched.object.state.kind.is_dir() && touched.kept.len() != touched.object.names.len()
        })
    }

    pub fn known(&self) -> &BTreeMap<ObjectId, Touched> {
        &self.known
    }

    pub fn into_parts(self) -> (BTreeMap<ObjectId, Touched>, Vec<NewObject>) {
        (self.known, self.new)
    }
}
