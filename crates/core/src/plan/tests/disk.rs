//! A file system in memory that executes steps, strictly: a step that a kernel would refuse is an error.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::tree::{Shape, Tree};
use crate::plan::{Merged, Occupant, Place, Seen, Step};
use crate::rows::{MemRows, Rows};
use crate::types::*;

type Ino = u32;

#[derive(Debug, Clone)]
struct Node {
    object: ObjectId,
    content: u32,
    mode: u16,
    /// Of a directory.
    names: Option<BTreeMap<Name, Ino>>,
    flushed: bool,
}

/// See the module.
pub struct Disk {
    nodes: BTreeMap<Ino, Node>,
    outside: BTreeMap<Place, Ino>,
    /// How a directory object is reached, as by an open descriptor.
    dirs: BTreeMap<ObjectId, Ino>,
    /// The inodes the rows know.
    known: BTreeMap<Ino, ObjectId>,
    next: Ino,
}

const ROOT: Ino = 1;

impl Disk {
    pub fn new(tree: &Tree) -> Disk {
        let mut disk = Disk {
            nodes: BTreeMap::new(),
            outside: BTreeMap::new(),
            dirs: BTreeMap::new(),
            known: BTreeMap::new(),
            next: ROOT,
        };
        for (id, shape) in &tree.objects {
            let ino = disk.add(*id, *shape, true);
            disk.known.insert(ino, *id);
        }
        let of: BTreeMap<ObjectId, Ino> = disk.known.iter().map(|(ino, id)| (*id, *ino)).collect();
        for (at, id) in &tree.names {
            let Some(names) = disk
                .nodes
                .get_mut(&of[&at.parent])
                .and_then(|n| n.names.as_mut())
            else {
                continue;
            };
            names.insert(at.name.clone(), of[id]);
        }
        disk
    }

    fn add(&mut self, object: ObjectId, shape: Shape, flushed: bool) -> Ino {
        let ino = self.next;
        self.next += 1;
        let names = shape.dir.then(BTreeMap::new);
        if shape.dir {
            self.dirs.insert(object, ino);
        }
        self.nodes.insert(
            ino,
            Node {
                object,
                content: shape.content,
                mode: shape.mode,
                names,
                flushed,
            },
        );
        ino
    }

    fn dir(&self, id: ObjectId) -> Result<&BTreeMap<Name, Ino>, String> {
        let node = self.dirs.get(&id).and_then(|ino| self.nodes.get(ino));
        node.and_then(|n| n.names.as_ref())
            .ok_or(format!("no directory {id:?}"))
    }
    fn dir_mut(&mut self, id: ObjectId) -> Result<&mut BTreeMap<Name, Ino>, String> {
        let node = self.dirs.get(&id).and_then(|ino| self.nodes.get_mut(ino));
        node.and_then(|n| n.names.as_mut())
            .ok_or(format!("no directory {id:?}"))
    }
    fn get(&self, place: &Place) -> Result<Option<Ino>, String> {
        match place {
            Place::Tree(at) => Ok(self.dir(at.parent)?.get(&at.name).copied()),
            place => Ok(self.outside.get(place).copied()),
        }
    }
    fn take(&mut self, place: &Place) -> Result<Ino, String> {
        let taken = match place {
            Place::Tree(at) => self.dir_mut(at.parent)?.remove(&at.name),
            place => self.outside.remove(place),
        };
        taken.ok_or(format!("nothing at {place:?}"))
    }
    fn set(&mut self, place: &Place, ino: Ino) -> Result<(), String> {
        // The kernel refuses to put a directory below itself.
        if let Place::Tree(at) = place {
            let dir = *self.dirs.get(&at.parent).ok_or("no directory")?;
            if self.reaches(ino, dir) {
                return Err("a directory goes below itself".to_string());
            }
            self.dir_mut(at.parent)?.insert(at.name.clone(), ino);
        } else {
            self.outside.insert(place.clone(), ino);
        }
        Ok(())
    }
    fn reaches(&self, from: Ino, to: Ino) -> bool {
        if from == to {
            return true;
        }
        let names = self.nodes.get(&from).and_then(|n| n.names.as_ref());
        names.is_some_and(|names| names.values().any(|child| self.reaches(*child, to)))
    }
    fn is_dir(&self, ino: Ino) -> bool {
        self.nodes.get(&ino).is_some_and(|n| n.names.is_some())
    }
    fn expect(&self, place: &Place, id: ObjectId) -> Result<Ino, String> {
        let ino = self.get(place)?.ok_or(format!("nothing at {place:?}"))?;
        match self.nodes.get(&ino) {
            Some(node) if node.object == id => Ok(ino),
            other => Err(format!("{other:?} is at {place:?}")),
        }
    }

    pub fn run(&mut self, step: &Step, merged: &Merged, rows: &MemRows) -> Result<(), String> {
        let want = |id: &ObjectId| {
            merged
                .objects
                .get(id)
                .and_then(|t| t.want.as_ref())
                .map(|w| w.state.clone())
        };
        match step {
            Step::Stage { object, place } => {
                let state = want(object).ok_or("staging what nobody wants")?;
                let content = state.kind.content().map_or(0, |c| c.bytes as u32);
                let dir = state.kind.is_dir();
                // A directory gets its metadata by `Finish`.
                let mode = if dir { 0o7777 } else { state.meta.mode };
                let ino = self.add(*object, Shape { dir, content, mode }, false);
                if self.get(place)?.is_some() {
                    return Err("staging over something".to_string());
                }
                self.set(place, ino)?;
            }
            Step::Finish { object } | Step::Meta { object } | Step::DirMeta { object } => {
                let state = want(object).or(rows.object(*object).ok().flatten().map(|o| o.state));
                let mode = state.ok_or("metadata of what nobody wants")?.meta.mode;
                let dir = self.dirs.get(object).copied();
                for (ino, node) in &mut self.nodes {
                    if node.object == *object && (dir.is_none() || dir == Some(*ino)) {
                        node.mode = mode;
                    }
                }
            }
            Step::FlushStaged => self.nodes.values_mut().for_each(|node| node.flushed = true),
            Step::FlushDirs => {}
            Step::Link { object, from, to } => {
                let ino = self.expect(from, *object)?;
                if self.is_dir(ino) || self.get(to)?.is_some() {
                    return Err("cannot link".to_string());
                }
                self.set(to, ino)?;
            }
            Step::Rename {
                object,
                from,
                to,
                over,
            } => {
                let ino = self.expect(from, *object)?;
                if let Some(old) = self.get(to)? {
                    if old == ino || self.is_dir(old) || self.is_dir(ino) {
                        return Err("cannot rename over".to_string());
                    }
                    self.check_occupant(old, *over)?;
                } else if over.is_some() {
                    return Err("nothing to rename over".to_string());
                }
                self.take(from)?;
                self.set(to, ino)?;
            }
            Step::Exchange {
                object,
                from,
                to,
                other,
            } => {
                let to = Place::Tree(to.clone());
                let ino = self.expect(from, *object)?;
                let old = self.get(&to)?.ok_or("nothing to exchange with")?;
                self.check_occupant(old, Some(*other))?;
                for (ino, place) in [(ino, &to), (old, from)] {
                    if let Place::Tree(at) = place
                        && self.reaches(ino, self.dirs[&at.parent])
                    {
                        return Err("exchange with something inside".to_string());
                    }
                }
                self.take(from)?;
                self.take(&to)?;
                self.set(from, old)?;
                self.set(&to, ino)?;
            }
            Step::Unlink { place, occupant } => {
                let ino = self.get(place)?.ok_or("nothing to unlink")?;
                if self.is_dir(ino) {
                    return Err("unlink of a directory".to_string());
                }
                self.check_occupant(ino, Some(*occupant))?;
                self.take(place)?;
            }
            Step::Aside { place } => drop(self.take(place)?),
            Step::Remove { object, place } => {
                if want(object).is_some() {
                    return Err("removing what is wanted".to_string());
                }
                self.expect(place, *object)?;
                self.take(place)?;
            }
        }
        Ok(())
    }

    fn check_occupant(&self, ino: Ino, occupant: Option<Occupant>) -> Result<(), String> {
        let object = self.nodes.get(&ino).map(|n| n.object);
        match occupant {
            Some(Occupant::Is(id) | Occupant::Old(id)) if object == Some(id) => Ok(()),
            Some(Occupant::Strange { dir }) if dir == self.is_dir(ino) => Ok(()),
            other => Err(format!("{object:?} is there, not {other:?}")),
        }
    }

    /// Every name a reader can reach, or what is wrong with one.
    pub fn visible(&self) -> Result<BTreeMap<At, ObjectId>, String> {
        let mut out = BTreeMap::new();
        let mut todo = alloc::vec![ROOT];
        while let Some(ino) = todo.pop() {
            let Some(node) = self.nodes.get(&ino) else {
                continue;
            };
            for (name, child) in node.names.iter().flatten() {
                let at = At {
                    parent: node.object,
                    name: name.clone(),
                };
                let Some(below) = self.nodes.get(child) else {
                    return Err(format!("{at:?} dangles"));
                };
                if !below.flushed {
                    return Err(format!("{at:?} was not flushed"));
                }
                out.insert(at, below.object);
                todo.push(*child);
            }
        }
        Ok(out)
    }

    pub fn shown(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut todo = alloc::vec![ROOT];
        while let Some(ino) = todo.pop() {
            let Some(node) = self.nodes.get(&ino) else {
                continue;
            };
            for (name, child) in node.names.iter().flatten() {
                let below = &self.nodes[child];
                let content = if below.names.is_some() {
                    0
                } else {
                    below.content
                };
                let at = At {
                    parent: node.object,
                    name: name.clone(),
                };
                lines.push((
                    at.clone(),
                    format!(
                        "{:?}/{name} {:?} {content} {}",
                        at.parent, below.object, below.mode
                    ),
                ));
                todo.push(*child);
            }
        }
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    pub fn is_clean(&self) -> bool {
        self.outside.is_empty()
    }

    /// Power comes back: staging is wiped, limbo is sorted out, and every name concerned is looked at.
    pub fn crash(&mut self, merged: &Merged, old: &Tree) -> Seen {
        let mut seen = Seen::default();
        self.outside
            .retain(|place, _| !matches!(place, Place::Staging(..)));
        for (place, ino) in self.outside.clone() {
            match self.known.get(&ino) {
                Some(id) if old.objects.contains_key(id) => drop(seen.limbo.insert(place, *id)),
                // A new inode on its way.
                _ => drop(self.outside.remove(&place)),
            }
        }
        self.dirs.retain(|_, ino| self.known.contains_key(ino));
        let mut end = BTreeMap::new();
        let mut slots: BTreeSet<At> = merged.mentioned.clone();
        for (id, target) in &merged.objects {
            for at in target.want.iter().flat_map(|w| &w.names) {
                slots.insert(at.clone());
                end.insert(at.clone(), *id);
            }
            slots.extend(target.old.iter().flat_map(|o| o.names.iter().cloned()));
        }
        // Parents first: what is in an adopted directory can be looked at only then.
        loop {
            let before = seen.slots.len();
            for at in &slots {
                if seen.slots.contains_key(at) || self.dir(at.parent).is_err() {
                    continue;
                }
                let Ok(found) = self.get(&Place::Tree(at.clone())) else {
                    continue;
                };
                let occupant = found.map(|ino| self.recognise(ino, end.get(at).copied(), merged));
                if let (Some(ino), Some(Occupant::Is(id))) = (found, occupant)
                    && self.is_dir(ino)
                {
                    self.dirs.insert(id, ino);
                }
                seen.slots.insert(at.clone(), occupant);
            }
            if seen.slots.len() == before {
                return seen;
            }
        }
    }

    fn recognise(&self, ino: Ino, wanted: Option<ObjectId>, merged: &Merged) -> Occupant {
        let node = &self.nodes[&ino];
        if let Some(id) = self.known.get(&ino) {
            return match merged.objects.get(id) {
                Some(t) if t.want.is_some() && !t.keeps_content() => Occupant::Old(*id),
                _ => Occupant::Is(*id),
            };
        }
        match wanted.and_then(|id| {
            merged
                .objects
                .get(&id)
                .and_then(|t| t.want.as_ref())
                .map(|w| (id, w))
        }) {
            // Equal content stands for the same object; here the object itself is compared.
            Some((id, want))
                if node.object == id && want.state.kind.is_dir() == self.is_dir(ino) =>
            {
                Occupant::Is(id)
            }
            _ => Occupant::Strange {
                dir: self.is_dir(ino),
            },
        }
    }
}
