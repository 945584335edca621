//! Trees as a source would have them, changed at random, and the groups that say what changed.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::record::{Change, Record};
use crate::rows::{MemRows, Object, Rows};
use crate::types::*;

/// xorshift64*: the same seed gives the same run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len() as u64) as usize).cloned()
    }
}

/// What a test tells objects apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub dir: bool,
    pub content: u32,
    pub mode: u16,
}

#[derive(Debug, Clone)]
pub struct Tree {
    pub names: BTreeMap<At, ObjectId>,
    pub objects: BTreeMap<ObjectId, Shape>,
    sequence: u64,
}

pub fn at(parent: ObjectId, name: &str) -> At {
    At {
        parent,
        name: Name::new(name.as_bytes()).unwrap(),
    }
}

impl Default for Tree {
    fn default() -> Tree {
        let root = Shape {
            dir: true,
            content: 0,
            mode: 0,
        };
        Tree {
            names: BTreeMap::new(),
            objects: BTreeMap::from([(ObjectId::ROOT, root)]),
            sequence: 1,
        }
    }
}

pub fn state(shape: Shape) -> State {
    let kind = if shape.dir {
        Kind::Dir
    } else {
        Kind::File(content(shape.content))
    };
    State {
        kind,
        meta: Meta {
            mode: shape.mode,
            ..Meta::default()
        },
    }
}

fn content(version: u32) -> Content {
    let mut digest = [0; 32];
    digest[..4].copy_from_slice(&version.to_le_bytes());
    Content {
        bytes: version.into(),
        digest: Digest(digest),
        data: Vec::new(),
        proven: true,
        fuzzy: false,
    }
}

impl Tree {
    fn add(&mut self, parent: ObjectId, name: &str, dir: bool) -> ObjectId {
        self.sequence += 1;
        let id = ObjectId((1 << 44) | self.sequence);
        let place = at(parent, name);
        if let Some(old) = self.names.remove(&place) {
            self.tidy(old);
        }
        self.names.insert(place, id);
        self.objects.insert(
            id,
            Shape {
                dir,
                content: self.sequence as u32,
                mode: 0,
            },
        );
        id
    }
    pub fn mkdir(&mut self, parent: ObjectId, name: &str) -> ObjectId {
        self.add(parent, name, true)
    }
    pub fn create(&mut self, parent: ObjectId, name: &str) -> ObjectId {
        self.add(parent, name, false)
    }
    pub fn rename(&mut self, from: &At, to: &At) {
        let Some(id) = self.names.get(from).copied() else {
            return;
        };
        if from == to || self.names.get(to) == Some(&id) || self.is_below(to.parent, id) {
            return;
        }
        if self.objects[&id].dir
            && let Some(victim) = self.names.get(to)
            && self.is_below(from.parent, *victim)
        {
            return;
        }
        self.names.remove(from);
        if let Some(old) = self.names.insert(to.clone(), id) {
            self.tidy(old);
        }
        self.tidy(id);
    }
    pub fn exchange(&mut self, a: &At, b: &At) {
        let (Some(x), Some(y)) = (self.names.get(a).copied(), self.names.get(b).copied()) else {
            return;
        };
        if x == y || self.is_below(b.parent, x) || self.is_below(a.parent, y) {
            return;
        }
        self.names.insert(a.clone(), y);
        self.names.insert(b.clone(), x);
    }
    pub fn names_of(&self, id: ObjectId) -> Vec<At> {
        self.names
            .iter()
            .filter(|(_, o)| **o == id)
            .map(|(at, _)| at.clone())
            .collect()
    }
    fn is_below(&self, dir: ObjectId, top: ObjectId) -> bool {
        let mut at = dir;
        loop {
            if at == top {
                return true;
            }
            match self.names.iter().find(|(_, id)| **id == at) {
                Some((name, _)) => at = name.parent,
                None => return false,
            }
        }
    }
    /// Forgets an object without names, with all below.
    fn tidy(&mut self, id: ObjectId) {
        if id != ObjectId::ROOT && !self.names.values().any(|o| *o == id) {
            self.objects.remove(&id);
            let below: Vec<At> = self
                .names
                .keys()
                .filter(|at| at.parent == id)
                .cloned()
                .collect();
            for at in below {
                if let Some(child) = self.names.remove(&at) {
                    self.tidy(child);
                }
            }
        }
    }
    /// Names from the root, as objects and bytes: equal paths mean nothing on the way moved.
    pub fn path(&self, dir: ObjectId) -> Vec<(At, ObjectId)> {
        let mut path = Vec::new();
        let mut at = dir;
        while let Some((name, id)) = self.names.iter().find(|(_, id)| **id == at) {
            path.push((name.clone(), *id));
            at = name.parent;
        }
        path.push((super::tree::at(at, "end"), at));
        path
    }

    pub fn random_op(&mut self, random: &mut Random) {
        let dirs: Vec<ObjectId> = self
            .objects
            .iter()
            .filter(|(_, s)| s.dir)
            .map(|(id, _)| *id)
            .collect();
        let names: Vec<At> = self.names.keys().cloned().collect();
        let parent = random.pick(&dirs).unwrap_or(ObjectId::ROOT);
        let free = at(parent, ["a", "b", "c", "d"][random.below(4) as usize]);
        let some = random.pick(&names);
        match (random.below(12), some) {
            (0..=1, _) | (_, None) => drop(self.add(
                parent,
                &String::from_utf8_lossy(free.name.as_bytes()),
                false,
            )),
            (2..=3, _) => {
                self.add(parent, &String::from_utf8_lossy(free.name.as_bytes()), true);
            }
            (4, Some(at)) => {
                if let Some(id) = self.names.remove(&at) {
                    self.tidy(id);
                }
            }
            (5..=7, Some(from)) => {
                let to = random
                    .pick(&names)
                    .filter(|_| random.chance(50))
                    .unwrap_or(free);
                self.rename(&from, &to);
            }
            (8, Some(a)) => {
                if let Some(b) = random.pick(&names) {
                    self.exchange(&a, &b);
                }
            }
            (9, Some(from)) => {
                let id = self.names[&from];
                if !self.objects[&id].dir && !self.names.contains_key(&free) {
                    self.names.insert(free, id);
                }
            }
            (10, Some(at)) => {
                self.sequence += 1;
                let id = self.names[&at];
                if let Some(shape) = self.objects.get_mut(&id)
                    && !shape.dir
                {
                    shape.content = self.sequence as u32;
                }
            }
            (_, Some(at)) => {
                let id = self.names[&at];
                if let Some(shape) = self.objects.get_mut(&id) {
                    shape.mode ^= 0o111;
                }
            }
        }
    }

    pub fn rows(&self) -> MemRows {
        let mut rows = MemRows::default();
        for (id, shape) in &self.objects {
            let object = Object {
                state: state(*shape),
                local: Local::default(),
                names: self.names_of(*id).into(),
            };
            let Ok(()) = rows.put(*id, object);
        }
        rows
    }

    /// One group that turns this tree into `new`, whose ids are drawn on.
    pub fn group_to(&self, new: &mut Tree, random: &mut Random) -> Vec<Record> {
        let mut changes = Vec::new();
        let gone = |id: ObjectId| !new.objects.contains_key(&id);
        let mut attach = Vec::new();
        let mut updates = Vec::new();
        for (id, shape) in &new.objects {
            let names = new.names_of(*id);
            let Some(old) = self.objects.get(id) else {
                for (i, at) in names.into_iter().enumerate() {
                    let depth = new.path(at.parent).len();
                    let change = match i {
                        0 => Change::Create {
                            at,
                            object: *id,
                            state: state(*shape),
                        },
                        _ => Change::Link { at, object: *id },
                    };
                    attach.push((i > 0, depth, change));
                }
                continue;
            };
            let before = self.names_of(*id);
            let mut lost: Vec<At> = before
                .iter()
                .filter(|at| !names.contains(at))
                .cloned()
                .collect();
            for to in names.iter().filter(|at| !before.contains(at)) {
                let change = match lost.pop() {
                    Some(from) => Change::Move {
                        object: *id,
                        from,
                        to: to.clone(),
                    },
                    None => Change::Link {
                        at: to.clone(),
                        object: *id,
                    },
                };
                attach.push((true, 0, change));
            }
            for at in lost {
                if !gone(at.parent) || random.chance(50) {
                    changes.push(Change::Unlink { at, object: *id });
                }
            }
            if old != shape {
                let meta = (old.mode != shape.mode).then(|| state(*shape).meta);
                let content = (old.content != shape.content).then(|| content(shape.content));
                updates.push(Change::Update {
                    object: *id,
                    at: names.first().cloned(),
                    meta,
                    content,
                });
            }
        }
        for id in self.objects.keys().filter(|id| gone(**id)) {
            for at in self.names_of(*id) {
                if !gone(at.parent) {
                    changes.push(Change::Unlink { at, object: *id });
                }
            }
        }
        attach.sort_by_key(|(later, depth, _)| (*later, *depth));
        changes.extend(attach.into_iter().map(|(_, _, change)| change));
        changes.extend(updates);
        let count = changes.len();
        changes
            .into_iter()
            .enumerate()
            .map(|(i, change)| {
                new.sequence += 1;
                Record {
                    position: Position {
                        epoch: 1,
                        sequence: new.sequence,
                    },
                    time_ns: 0,
                    end: i + 1 == count,
                    who: None,
                    change,
                    local: None,
                    content: None,
                }
            })
            .collect()
    }

    /// The tree as lines: what a reader would see.
    pub fn shown(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (at, id) in &self.names {
            let shape = self.objects[id];
            let content = if shape.dir { 0 } else { shape.content };
            lines.push(format!(
                "{:?}/{} {id:?} {content} {}",
                at.parent, at.name, shape.mode
            ));
        }
        lines
    }
}
