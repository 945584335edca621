//! Is the index the tree? Names, identities, content and metadata.

use std::collections::BTreeMap;

use mirror_core::{Content, Kind, MemRows, Name, ObjectId, Rows, State, escape};

use crate::tree::{Ino, SimTree};

/// The first differences between rows and the real tree; empty when they are equal.
pub fn differences(rows: &MemRows, tree: &SimTree) -> Vec<String> {
    let mut check = Check {
        rows,
        tree,
        found: Vec::new(),
        objects: BTreeMap::new(),
        inodes: BTreeMap::new(),
    };
    check.pair(ObjectId::ROOT, tree.root, "/");
    check.dir(ObjectId::ROOT, tree.root, "");
    let lost: Vec<String> = rows
        .objects()
        .filter(|(id, _)| !check.objects.contains_key(id))
        .map(|(id, object)| format!("{id:?} is under no path: {:?}", object.names))
        .collect();
    check.found.extend(lost);
    check.found
}

struct Check<'a> {
    rows: &'a MemRows,
    tree: &'a SimTree,
    found: Vec<String>,
    objects: BTreeMap<ObjectId, Ino>,
    inodes: BTreeMap<Ino, ObjectId>,
}

impl Check<'_> {
    fn dir(&mut self, id: ObjectId, ino: Ino, path: &str) {
        let Ok(known) = self.rows.children(id, None, usize::MAX);
        let mut known: BTreeMap<Name, ObjectId> = known.into_iter().collect();
        let real = self.tree.entries(ino).cloned().unwrap_or_default();
        for (name, ino) in real {
            let path = format!("{path}/{}", escape(name.as_bytes()));
            match known.remove(&name) {
                None => self.found.push(format!("{path} is missing")),
                Some(id) => {
                    self.pair(id, ino, &path);
                    if self.tree.entries(ino).is_some() {
                        self.dir(id, ino, &path);
                    }
                }
            }
        }
        for (name, _) in known {
            let name = escape(name.as_bytes());
            self.found.push(format!("{path}/{name} does not exist"));
        }
    }

    fn pair(&mut self, id: ObjectId, ino: Ino, path: &str) {
        if *self.objects.entry(id).or_insert(ino) != ino
            || *self.inodes.entry(ino).or_insert(id) != id
        {
            self.found
                .push(format!("{path}: hard links are grouped otherwise"));
        }
        let Ok(Some(object)) = self.rows.object(id) else {
            self.found.push(format!("{path}: has no object"));
            return;
        };
        let Some(real) = self.tree.state(ino) else {
            return;
        };
        if !same(&object.state, &real) {
            self.found.push(format!(
                "{path}: is {:?}, is thought to be {:?}",
                real, object.state
            ));
        }
        if object.local.handle != self.tree.inode(ino).map(|inode| inode.handle()) {
            self.found.push(format!("{path}: has another handle"));
        }
    }
}

/// Equal in everything that is mirrored.
pub fn same(a: &State, b: &State) -> bool {
    let kinds = match (&a.kind, &b.kind) {
        (Kind::File(a), Kind::File(b)) => Content::same(a, b),
        (a, b) => a == b,
    };
    kinds && a.meta == b.meta
}
