//! What came of a batch, and of a comparison of the copy with its rows.

use mirror_core::{ObjectId, Position};

/// What one call of [`Applier::apply`] or [`Applier::retry`] did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The tree is as of here but for `failed`; the rows may be further, but for what waits for contents on their way.
    pub applied: Option<Position>,
    pub counts: Counts,
    /// Objects that are not as they should be, with the reason. They stay listed in [`Applier::failed`].
    pub failed: Vec<Failure>,
    /// Objects that were listed as failed and now are as they should be.
    pub healed: Vec<ObjectId>,
    /// Things made by hand in the tree that stood in the way: moved to `adopted/`, shown as names inside it.
    pub moved_aside: Vec<Vec<u8>>,
    /// What this host can't set, kept in the rows only: of all there is, as of now.
    pub recorded: Recorded,
}

/// How much was done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub created: u64,
    pub content: u64,
    pub content_bytes: u64,
    pub meta: u64,
    pub renamed: u64,
    pub linked: u64,
    pub removed: u64,
    /// Already there and equal: nothing copied.
    pub adopted: u64,
    pub moved_aside: u64,
}

impl Counts {
    /// A record may name files of any size.
    pub fn add_bytes(&mut self, bytes: u64) {
        self.content_bytes = self.content_bytes.saturating_add(bytes);
    }
}

/// Objects with something that was only recorded, by what it was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    pub owners: u64,
    pub setid: u64,
    pub devices: u64,
    pub xattrs: u64,
    pub labels: u64,
    pub flags: u64,
    pub projects: u64,
    /// Finer, earlier or later than the file system can tell.
    pub times: u64,
}

/// An object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub object: ObjectId,
    /// What was being done: `stage`, `fetch`, `rename`, ...
    pub step: &'static str,
    pub reason: String,
    /// The source did not have this version when it was asked. Being asked made it look at the object again: either it
    /// has it by then, or a successor record, or the removal, is in the log.
    pub void: bool,
}

/// What [`Applier::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `None`: something that no record made.
    pub object: Option<ObjectId>,
    /// Relative to DST, raw bytes.
    pub path: Vec<u8>,
    pub what: DifferenceKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DifferenceKind {
    Missing,
    /// Not in the index.
    Extra,
    Type,
    Content,
    Meta,
    /// Another set of names.
    Links,
    Unreadable,
    /// Known: in the failed list.
    Pending,
}
