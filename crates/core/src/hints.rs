//! From what the kernel said to the names that must be looked at.
//!
//! A hint says only where to look. Its bits are merged over time and their order is lost, so nothing is concluded
//! from them but where, and how soon. A directory that the rows do not know is handed back as unknown: it may be
//! new, it may lie outside the tree, and only the file system can tell ([`Hints::classify`]).
//!
//! Law: a hint must be resolved against rows that hold every group whose looks began before the hint was taken from
//! the queue. Hints that a running reconcile is given early ([`crate::reconcile::Source::more`]) are resolved again
//! after its group was applied, or a write to an object that was new in that group would be forgotten.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::names;
use crate::reconcile::{Dirty, Whereabouts};
use crate::record::Who;
use crate::rows::Rows;
use crate::settle::Phase;
use crate::types::*;

/// A name as an event tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HintName {
    /// Handle of the directory.
    pub dir: Handle,
    /// `None`: the directory itself (the kernel says `.`).
    pub name: Option<Name>,
}

/// One event of the kernel's queue, whatever interface it came through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hint {
    /// Where it happened; of a rename: the old side. May be a dead alias, or missing.
    pub at: Option<HintName>,
    /// The new side of a rename.
    pub to: Option<HintName>,
    /// Handle of the object it happened to.
    pub object: Option<Handle>,
    /// The bytes may have changed (written, truncated, or closed after being open for writing).
    pub contents: bool,
    /// A descriptor open for writing was closed.
    pub closed: bool,
    pub created: bool,
    pub renamed: bool,
    /// The object is a directory.
    pub on_dir: bool,
    /// The object, a directory, may come from where nobody heard for this tree what happened in it.
    pub entered: bool,
    pub who: Option<Who>,
}

/// Whether names hinted before must be looked at before (or with) this one, so that no switch overtakes what it
/// switches to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Switch {
    #[default]
    No,
    Yes,
    /// A name of an object not known yet was renamed: a link being switched, unless bytes were written under it.
    UnlessWritten(At),
}

/// What a hint asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub dirty: Vec<(At, Dirty, Phase)>,
    /// Directories to [`Hints::classify`].
    pub unknown: Vec<Handle>,
    /// The root's own attributes may have changed: it has no name that could be dirty.
    pub root: bool,
    pub switch: Switch,
}

/// Resolves hints; remembers which directories lie outside the tree, and where those are that nobody looked at yet.
#[derive(Debug, Clone)]
pub struct Hints {
    outside: BTreeSet<Handle>,
    /// Until the next look: the first new name on the way down to a directory that the rows do not know. Should it have
    /// moved on from there, then a hint of that says where.
    fresh: BTreeMap<Handle, At>,
    /// Of an object with more names only the first one is looked at, with those the hint tells.
    names_max: usize,
}

impl Default for Hints {
    fn default() -> Hints {
        Hints::with_names_max(names::FEW)
    }
}

/// Directories outside the tree that are remembered.
const OUTSIDE_MAX: usize = 65_536;
/// New directories that are remembered between two looks.
const FRESH_MAX: usize = 65_536;
/// Levels climbed to find a known directory. Deeper than any path that was made in one go.
const CLIMB_MAX: usize = 65_536;

impl Hints {
    pub fn new() -> Hints {
        Hints::default()
    }
    pub fn with_names_max(names_max: usize) -> Hints {
        Hints {
            outside: BTreeSet::new(),
            fresh: BTreeMap::new(),
            names_max,
        }
    }

    /// Forgets what lies outside, as after an overflow or any other doubt.
    pub fn clear(&mut self) {
        self.outside.clear();
        self.fresh.clear();
    }

    /// What was dirty is looked at, and the rows changed: what is new now is asked for anew.
    pub fn looked(&mut self) {
        self.fresh.clear();
    }

    fn remember(&mut self, dir: Handle, at: At) {
        if self.fresh.len() >= FRESH_MAX {
            self.fresh.clear();
        }
        self.fresh.insert(dir, at);
    }

    /// What this hint asks for. An empty answer is an event of no concern to the tree.
    pub fn resolve<R: Rows>(&mut self, rows: &R, hint: &Hint) -> Result<Found, R::Error> {
        let mut found = Found::default();
        let object = match &hint.object {
            Some(handle) => rows.by_handle(handle)?,
            None => None,
        };
        let known = match object {
            Some(id) => rows.object(id)?.map(|object| (id, object)),
            None => None,
        };
        let link = known
            .as_ref()
            .is_some_and(|(_, object)| matches!(object.state.kind, Kind::Symlink(_)));
        if hint.renamed && (hint.on_dir || link) {
            found.switch = Switch::Yes;
        }
        let phase = if (hint.contents && !hint.closed && !hint.renamed)
            || (hint.created && !hint.on_dir && !hint.closed && known.is_none())
        {
            Phase::Open
        } else {
            Phase::Final
        };
        let mut dirty = Dirty {
            // Of an object that is known, the bytes are read under whatever name it is found.
            contents: hint.contents && known.is_none(),
            doubt: false,
            switch: false,
            who: hint.who.clone(),
            ..Dirty::default()
        };
        if let Some((id, object)) = &known {
            if hint.contents {
                dirty.wrote.insert(*id);
            }
            // Any name leads to the inode; only what the hint tells can stand for another one now. Should the first one do
            // so, by a hint that is still to come, the others are tried.
            let names = match object.names.len() > self.names_max {
                true => {
                    dirty.about.insert(*id);
                    1
                }
                false => self.names_max,
            };
            for at in object.names.iter().take(names) {
                found.dirty.push((at.clone(), dirty.clone(), phase));
            }
            found.root |= *id == ObjectId::ROOT;
        }
        let mut outside = false;
        if hint.contents
            && hint.object.is_none()
            && let Some(HintName {
                dir,
                name: Some(name),
            }) = &hint.at
            && let Some(parent) = rows.by_handle(dir)?
            && let Some(id) = rows.name(&At {
                parent,
                name: name.clone(),
            })?
        {
            // Told by name only: what has that name was written, or something new by then; `contents` is for that.
            dirty.wrote.insert(id);
        }
        for (side, told) in [&hint.at, &hint.to].into_iter().enumerate() {
            let Some(told) = told else { continue };
            let Some(parent) = rows.by_handle(&told.dir)? else {
                outside = true;
                if !found.unknown.contains(&told.dir) {
                    found.unknown.push(told.dir.clone());
                }
                continue;
            };
            let at = match &told.name {
                Some(name) => At {
                    parent,
                    name: name.clone(),
                },
                None if parent == ObjectId::ROOT => {
                    found.root = true;
                    continue;
                }
                // The directory itself: looked at under its own name.
                None => match rows
                    .object(parent)?
                    .and_then(|dir| dir.names.first().cloned())
                {
                    Some(at) => at,
                    None => continue,
                },
            };
            if side == 0 && hint.renamed && !hint.on_dir && known.is_none() {
                found.switch = Switch::UnlessWritten(at.clone());
            }
            if !found.dirty.iter().any(|(named, ..)| *named == at) {
                found.dirty.push((at, dirty.clone(), phase));
            }
        }
        if outside && hint.renamed && hint.on_dir {
            self.outside.clear();
        }
        if hint.on_dir
            && (hint.created || hint.renamed)
            && known.is_none()
            && let Some(dir) = &hint.object
        {
            self.appeared(rows, dir, hint.to.as_ref().or(hint.at.as_ref()))?;
        }
        found.unknown.retain(|dir| !self.outside.contains(dir));
        Ok(found)
    }

    /// A directory that the rows do not know was made, or came, under this name.
    fn appeared<R: Rows>(
        &mut self,
        rows: &R,
        dir: &Handle,
        told: Option<&HintName>,
    ) -> Result<(), R::Error> {
        self.fresh.remove(dir);
        let Some(HintName {
            dir: parent,
            name: Some(name),
        }) = told
        else {
            return Ok(());
        };
        let at = match rows.by_handle(parent)? {
            Some(parent) => Some(At {
                parent,
                name: name.clone(),
            }),
            None => self.fresh.get(parent).cloned(),
        };
        if let Some(at) = at {
            self.remember(dir.clone(), at);
        }
        Ok(())
    }

    /// Where an unknown directory lies: the name to look at when it is inside, the first below a directory that is
    /// known. Looking at that name finds a new directory, and lists it with all that lies below.
    pub fn classify<R: Rows>(
        &mut self,
        rows: &R,
        dir: &Handle,
        locate: &mut dyn FnMut(&Handle) -> Whereabouts,
    ) -> Result<Option<At>, R::Error> {
        if self.outside.contains(dir) {
            return Ok(None);
        }
        if let Some(at) = self.fresh.get(dir) {
            return Ok(Some(at.clone()));
        }
        let mut below = dir.clone();
        for step in 0..CLIMB_MAX {
            match locate(&below) {
                Whereabouts::Inside { parent, name } => {
                    if let Some(parent) = rows.by_handle(&parent)? {
                        let at = At { parent, name };
                        self.remember(dir.clone(), at.clone());
                        return Ok(Some(at));
                    }
                    below = parent;
                }
                Whereabouts::Outside if step == 0 => {
                    if self.outside.len() >= OUTSIDE_MAX {
                        self.outside.clear();
                    }
                    self.outside.insert(below);
                    return Ok(None);
                }
                // It moves while we climb: the events of that say where to look.
                Whereabouts::Outside | Whereabouts::Gone | Whereabouts::Root => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// Files whose inode moved on for a reason that was told, while their bytes were not read.
///
/// The ctime of a row says: the bytes are as of then. When a rename is told and a write is not (yet), a look finds the
/// ctime of both. Had the row that ctime, and were the write's hint lost in an overflow or a crash, then the scan that
/// follows would trust the old bytes for ever. So the row gets it only once all that was told until the look is known to
/// have been heard: the queue was emptied, nothing was lost, and no hint spoke of a write.
#[derive(Debug, Default)]
pub struct Unconfirmed {
    files: BTreeMap<ObjectId, (Local, u64)>,
}

impl Unconfirmed {
    /// An event is queued a moment after its operation can be seen.
    pub const LATE_MS: u64 = 1000;
    /// Beyond this a file keeps its old ctime and is read again after the next doubt.
    pub const FILES_MAX: usize = 65_536;

    /// What a reconcile left, which ended at `now_ms`.
    pub fn add(&mut self, files: BTreeMap<ObjectId, Local>, now_ms: u64) {
        for (id, local) in files {
            if self.files.len() < Self::FILES_MAX || self.files.contains_key(&id) {
                self.files.insert(id, (local, now_ms));
            }
        }
    }

    /// What a hint asks for, before it is acted on.
    pub fn heard<R: Rows>(&mut self, rows: &R, found: &Found) -> Result<(), R::Error> {
        if self.files.is_empty() {
            return Ok(());
        }
        for (at, dirty, _) in &found.dirty {
            for id in &dirty.wrote {
                self.files.remove(id);
            }
            if dirty.contents
                && let Some(id) = rows.name(at)?
            {
                self.files.remove(&id);
            }
        }
        Ok(())
    }

    /// The queue was emptied at `now_ms` and all of it heard, or some of it is `lost`. Returns the rows' new local
    /// parts, for objects that are still the same inode.
    pub fn drained(&mut self, lost: bool, now_ms: u64) -> Vec<(ObjectId, Local)> {
        if lost {
            self.files.clear();
            return Vec::new();
        }
        let due: Vec<ObjectId> = self
            .files
            .iter()
            .filter(|(_, (_, looked))| looked + Self::LATE_MS <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        due.into_iter()
            .filter_map(|id| self.files.remove(&id).map(|(local, _)| (id, local)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;

    use super::*;
    use crate::rows::{MemRows, Object};

    fn handle(number: u8) -> Handle {
        Handle {
            kind: 1,
            bytes: Box::from([number]),
        }
    }

    fn told(dir: u8, name: &str) -> Option<HintName> {
        Some(HintName {
            dir: handle(dir),
            name: Name::new(name.as_bytes()).ok(),
        })
    }

    /// A tree whose root has handle 0 and is empty.
    fn rows() -> MemRows {
        let mut rows = MemRows::default();
        let root = Object {
            state: State {
                kind: Kind::Dir,
                meta: Meta::default(),
            },
            names: Default::default(),
            local: Local {
                handle: Some(handle(0)),
                ..Local::default()
            },
        };
        rows.put(ObjectId::ROOT, root).unwrap();
        rows
    }

    fn made(dir: u8, name: &str, object: u8) -> Hint {
        Hint {
            at: told(dir, name),
            object: Some(handle(object)),
            created: true,
            on_dir: true,
            ..Hint::default()
        }
    }

    /// Where to look for what happened in `dir`, and how often the file system had to be asked.
    fn place(hints: &mut Hints, rows: &MemRows, dir: u8) -> (Option<At>, u32) {
        let mut asked = 0;
        let at = hints
            .classify(rows, &handle(dir), &mut |_| {
                asked += 1;
                Whereabouts::Gone
            })
            .unwrap();
        (at, asked)
    }

    fn below_root(name: &str) -> Option<At> {
        Some(At {
            parent: ObjectId::ROOT,
            name: Name::new(name.as_bytes()).unwrap(),
        })
    }

    #[test]
    fn where_a_new_directory_lies_is_not_asked() {
        let (rows, mut hints) = (rows(), Hints::new());
        hints.resolve(&rows, &made(0, "a", 1)).unwrap();
        hints.resolve(&rows, &made(1, "b", 2)).unwrap();
        assert_eq!(place(&mut hints, &rows, 1), (below_root("a"), 0));
        assert_eq!(place(&mut hints, &rows, 2), (below_root("a"), 0));
        assert_eq!(place(&mut hints, &rows, 3), (None, 1));
        hints.looked();
        assert_eq!(place(&mut hints, &rows, 2), (None, 1));
    }

    #[test]
    fn a_new_directory_that_moved_on_is_looked_for_where_it_went() {
        let (rows, mut hints) = (rows(), Hints::new());
        hints.resolve(&rows, &made(0, "a", 1)).unwrap();
        let mut moved = Hint {
            at: told(0, "a"),
            to: told(0, "z"),
            object: Some(handle(1)),
            renamed: true,
            on_dir: true,
            ..Hint::default()
        };
        let found = hints.resolve(&rows, &moved).unwrap();
        assert!(
            found
                .dirty
                .iter()
                .any(|(at, ..)| Some(at) == below_root("z").as_ref())
        );
        assert_eq!(place(&mut hints, &rows, 1), (below_root("z"), 0));
        // Out of the tree: only the file system can tell.
        (moved.at, moved.to) = (told(0, "z"), told(9, "elsewhere"));
        hints.resolve(&rows, &moved).unwrap();
        assert_eq!(place(&mut hints, &rows, 1), (None, 1));
    }

    #[test]
    fn an_answer_of_the_file_system_holds_until_the_next_look() {
        let (rows, mut hints) = (rows(), Hints::new());
        let mut asked = 0;
        for _ in 0..3 {
            let at = hints.classify(&rows, &handle(7), &mut |_| {
                asked += 1;
                Whereabouts::Inside {
                    parent: handle(0),
                    name: Name::new(b"new").unwrap(),
                }
            });
            assert_eq!(at.unwrap(), below_root("new"));
        }
        assert_eq!(asked, 1);
    }
}
