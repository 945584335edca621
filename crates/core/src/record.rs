//! A record: one change in the log. Bytes: `docs/FORMAT.md`, written by [`crate::codec`].
//!
//! Records come in **groups**: what one look at the tree found. `end` marks the last record of a group. A group
//! is applied whole or not at all, and means a set, not a sequence: *first* every name that a record takes away
//! (`Unlink`, the `from` of `Move`) is detached, *then* every name that a record gives (`Create`, `Link`, the
//! `to` of `Move`) is attached, then objects take their new state (`Update`), and an object left without a name is gone,
//! a directory with everything below it. So swaps, cycles and a/b -> b/a inversions need no special case. In a
//! group a directory's `Create` comes before what is created in it. [`crate::model::apply_group`] is this law in code.

use crate::types::*;
use alloc::boxed::Box;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub position: Position,
    /// The primary's clock in ns since 1970, never going back within a log.
    pub time_ns: u64,
    /// Last of its group.
    pub end: bool,
    /// `None`: not known.
    pub who: Option<Who>,
    pub change: Change,
    /// This host's own knowledge; not sent, not hashed.
    pub local: Option<Local>,
    /// Where this host has the bytes of the content this record brings, if it has them in a content segment.
    pub content: Option<ContentRef>,
}

/// Who changed it, as far as the event told. Every field may be unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Who {
    pub pid: Option<u32>,
    pub uid: Option<u32>,
    /// Path of the executable, raw bytes, at most 4096 of them.
    pub exe: Option<Box<[u8]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Opens an epoch; always a group of its own. The first one creates [`ObjectId::ROOT`].
    Open {
        tree: [u8; 16],
        claim: [u8; 16],
        parent: Option<Fork>,
    },
    /// A new object under its first name, content and metadata included.
    Create {
        at: At,
        object: ObjectId,
        state: State,
    },
    /// One more name of a known object (never a directory).
    Link { at: At, object: ObjectId },
    /// A name goes. An object whose last name goes in this group is gone, with all below it.
    Unlink { at: At, object: ObjectId },
    /// A name goes and another one of the same object comes. For a directory this is the only way to move.
    Move { object: ObjectId, from: At, to: At },
    /// A known object's metadata, content or both are now these. `at`: one of its names after the group
    /// (of the root: `None`).
    Update {
        object: ObjectId,
        at: Option<At>,
        meta: Option<Meta>,
        content: Option<Content>,
    },
    /// The content that the record at `of` names can't be had any more; the record that replaces it follows.
    Void { of: Position, object: ObjectId },
    /// Something worth knowing happened; changes nothing in the tree.
    Note(Note),
}

/// Where an epoch branched off its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    pub position: Position,
    pub head: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The kernel's queue overflowed; a look at everything follows.
    Overflow,
    /// A look at the whole tree, that found something, began or ended. At its end the log equals the tree as of then.
    ScanBegin,
    ScanEnd,
    /// A guard stopped, or an operator let go on.
    Hold,
    Release,
    /// Of a newer version, which says that it may be passed over. Never written.
    Unknown,
}

impl Change {
    /// The content this record brings, if it brings one.
    pub fn content(&self) -> Option<&Content> {
        match self {
            Change::Create {
                state:
                    State {
                        kind: Kind::File(content),
                        ..
                    },
                ..
            } => Some(content),
            Change::Update { content, .. } => content.as_ref(),
            _ => None,
        }
    }
    pub fn object(&self) -> Option<ObjectId> {
        match self {
            Change::Create { object, .. }
            | Change::Link { object, .. }
            | Change::Unlink { object, .. }
            | Change::Move { object, .. }
            | Change::Update { object, .. }
            | Change::Void { object, .. } => Some(*object),
            Change::Open { .. } => Some(ObjectId::ROOT),
            Change::Note(_) => None,
        }
    }
}
