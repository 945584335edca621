//! What a group changed, told by what was before it. Read backwards from the present, such rows make the tree as of any
//! position: a name, or an object, is at a position what the first row after it says that it was before.

use alloc::vec::Vec;

use crate::record::Who;
use crate::types::*;

/// A position as one number, in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    pub const MAX: Moment = Moment(u64::MAX);

    /// As an object's id would be. What does not fit is no position that a log of ours can reach.
    pub fn of(position: Position) -> Moment {
        ObjectId::at(position).map_or(Moment::MAX, |id| Moment(id.0))
    }
    pub fn position(self) -> Position {
        Position {
            epoch: (self.0 >> 44) as u32,
            sequence: self.0 & ((1 << 44) - 1),
        }
    }
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Its metadata changed; the bytes are the same.
    Meta,
    /// Other bytes came, and perhaps other metadata.
    Content,
    /// It lost its last name.
    Gone,
}

impl Then {
    /// The bytes it had before are not current any more.
    pub fn ends_bytes(self) -> bool {
        !matches!(self, Then::Meta)
    }
}

/// Why bytes of a version are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unkept {
    /// The policy of its path is `none`.
    Policy,
    /// Another version of the same file was kept less than the minimum interval before.
    Interval,
    /// The source did not have it any more when it was asked for.
    Void,
    /// The copy did not have it: it failed, or somebody changed it there.
    Missing,
}

/// One row of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Was {
    /// The name stood for `before`, and from the group on for `after`; `None`: it was, or is, free.
    Name {
        at: At,
        before: Option<ObjectId>,
        after: Option<ObjectId>,
    },
    /// The object was in this state. `local`: its inode in the copy.
    Object {
        object: ObjectId,
        state: State,
        local: Local,
        then: Then,
    },
    /// The bytes that the object had before this group are not kept.
    Unkept { object: ObjectId, why: Unkept },
}

/// A row, and who did it: an index into [`Group::who`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub was: Was,
    pub who: Option<u32>,
}

/// What one group changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// Of its last record: the tree is never as of a position inside a group.
    pub moment: Moment,
    /// The worker's clock.
    pub time_ns: u64,
    pub rows: Vec<Row>,
    pub who: Vec<Who>,
}

impl Group {
    pub fn who_of(&self, row: &Row) -> Option<&Who> {
        self.who.get(row.who? as usize)
    }
}
