//! What must be done to a copy so that it becomes what groups of records say: pure decisions, no I/O.
//!
//! [`merge`] folds whole groups into the final state of each object they touch. The executor looks at the names that
//! are concerned and tells what it found ([`Seen`]), and [`order`] turns both into a [`Plan`]: steps that keep these
//! laws after *each* of them (`tests.rs` checks them on random trees):
//!
//! 1. The end is what the groups say, applied in sequence.
//! 2. A name of a directory that does not move itself, which exists before and after, is never missing.
//! 3. A name never shows anything but an object that it, or a name it trades objects with, had before or has after.
//!    Temporary things live in staging and limbo, outside the tree.
//! 4. Nothing gets a name in the tree before it is complete and flushed.
//! 5. A directory is never moved below itself.
//! 6. Cycles are broken by exchange; files are pinned by a link in limbo.
//! 7. Deletes come last; a subtree first leaves the tree by one rename.
//! 8. After a crash at any step, planning again from the old rows and a new look ends the same.

mod merge;
mod order;
mod overlay;
#[cfg(test)]
pub(crate) mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

pub use merge::{Misfit, Wanted, merge, merge_traced, owed};
pub use order::order;
pub use overlay::Overlay;

use crate::names::Names;
use crate::rows::Object;
use crate::types::*;

/// What groups, merged, want of the objects they touch.
#[derive(Debug, Clone, Default)]
pub struct Merged {
    pub objects: BTreeMap<ObjectId, Target>,
    /// Every name that a record mentions: after a crash a thing may stand at any of them.
    pub mentioned: BTreeSet<At>,
    /// Names where an earlier batch that failed left something of these objects: looked at in any case.
    pub owed: BTreeSet<At>,
}

/// What is to become of one object. Neither `old` nor `want`: it came and went, and a crash may have left it somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The row. `None`: the copy does not have it yet.
    pub old: Option<Object>,
    /// `None`: it must go. `local` means nothing here.
    pub want: Option<Object>,
    /// Where this host has the bytes of the wanted content, if a record said so.
    pub place: Option<ContentRef>,
    /// The wanted content can't be had.
    pub void: bool,
    /// It is, or was, a directory.
    pub dir: bool,
}

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occupant {
    /// The inode that is, or becomes, this object's: nothing must be staged for it.
    Is(ObjectId),
    /// An inode that was this object's, and that another one must replace.
    Old(ObjectId),
    /// Something that no record made.
    Strange { dir: bool },
}

/// What the executor saw. A name that is not listed is as the rows say.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// `None`: the name is free.
    pub slots: BTreeMap<At, Option<Occupant>>,
    /// Left there by a crash.
    pub limbo: BTreeMap<Place, ObjectId>,
    /// Objects that stay as they are under all names they have before and after, and those names are not in `slots`: of a
    /// file with very many only those that change are gone through.
    pub sure: BTreeSet<ObjectId>,
}

impl Target {
    /// The names that matter: before and after. Of one of `sure` those that change, and one that stays.
    pub fn names(&self, sure: bool) -> (Names, Names) {
        let of = |object: &Option<Object>| {
            let names = object.as_ref().map(|object| object.names.clone());
            names.unwrap_or_default()
        };
        let (old, want) = (of(&self.old), of(&self.want));
        if !sure {
            return (old, want);
        }
        let stays = old.iter().find(|at| want.contains(at));
        let before = old.without(&want).chain(stays).cloned().collect();
        let after = want.without(&old).chain(stays).cloned().collect();
        (before, after)
    }
}

/// Where an inode can stand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A name in a directory of the tree, or of a new directory that is still in staging.
    Tree(At),
    /// New inodes, and further links of inodes that are safe elsewhere. Wiped after a crash.
    Staging(ObjectId, u32),
    /// Holds one of these two objects, also after a crash.
    Limbo(ObjectId, ObjectId),
    /// Holds this object's new inode or, after an exchange, something strange. Moved to `adopted/` after a crash.
    Aside(ObjectId),
}

/// One step. The executor skips a step whose premise does not hold any more because an earlier one failed: the object
/// is not at `from`, or what is at `to` is not `over`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a new inode, complete but for a directory's own metadata.
    Stage { object: ObjectId, place: Place },
    /// A staged directory has its staged children: set its metadata.
    Finish { object: ObjectId },
    /// Flush what was staged.
    FlushStaged,
    /// One more name of an inode; `to` is free.
    Link {
        object: ObjectId,
        from: Place,
        to: Place,
    },
    /// `over` is never a directory.
    Rename {
        object: ObjectId,
        from: Place,
        to: Place,
        over: Option<Occupant>,
    },
    /// `object` goes to `to`, what was there to `from`, at once.
    Exchange {
        object: ObjectId,
        from: Place,
        to: At,
        other: Occupant,
    },
    /// Metadata of an inode that stays.
    Meta { object: ObjectId },
    /// Not a directory.
    Unlink { place: Place, occupant: Occupant },
    /// Something strange leaves for `adopted/`.
    Aside { place: Place },
    /// A directory's metadata, its mtime above all, after everything in it was done.
    DirMeta { object: ObjectId },
    /// Flush the directories that changed, and the inodes whose metadata did.
    FlushDirs,
    /// A directory in limbo goes, with what the rows say is below it; anything else in it moves aside.
    Remove { object: ObjectId, place: Place },
}

/// Steps in order, and objects for which there is no order (the records contradict themselves).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub stuck: BTreeSet<ObjectId>,
}

impl Target {
    /// Same inode content before and after: nothing to stage when the old inode is there.
    pub fn keeps_content(&self) -> bool {
        match (&self.old, &self.want) {
            (Some(old), Some(want)) => same_inode_kind(&old.state.kind, &want.state.kind),
            _ => false,
        }
    }
    pub fn is_dir(&self) -> bool {
        self.dir
    }
}

/// Whether an inode of the one kind can stay and be the other.
pub fn same_inode_kind(a: &Kind, b: &Kind) -> bool {
    match (a, b) {
        (Kind::File(a), Kind::File(b)) => a.same(b),
        _ => a == b,
    }
}
