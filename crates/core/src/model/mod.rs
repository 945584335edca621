//! The law of a group in code: what a group of records makes of the rows.
//!
//! Strict: a group that can't be true of these rows is an error, found before a row is changed. Memory is bounded
//! by the group and by the depth of what it removes, not by how much that is.

use alloc::vec::Vec;

use crate::record::Record;
use crate::rows::Rows;
use crate::types::*;

mod changes;
mod remove;
#[cfg(test)]
mod tests;

/// Records in one group.
pub const GROUP_RECORDS_MAX: usize = 65536;

/// What a group did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effect {
    /// Objects that the group left without a name, in order of their ids; directories took all below with them.
    pub gone: Vec<ObjectId>,
    /// Objects removed in all, those below removed directories included.
    pub removed: u64,
    pub created: u64,
}

/// Why a group can't be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelError<E> {
    /// The rows failed; they may be half changed.
    Rows(E),
    /// The group says what can't be; no row was changed.
    Impossible { position: Position, why: Impossible },
    /// The rows contradict themselves at this object, found while removing; they are half changed.
    BrokenRows(ObjectId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impossible {
    UnknownObject,
    /// The directory that a name is given in is not there, or is created later in the group.
    UnknownParent,
    ParentIsNoDirectory,
    /// A name is taken away that this object does not have, or twice.
    NameMissing,
    /// A name is given that is taken after all detaching, or given twice.
    NameTaken,
    /// An update names a name that the object does not have.
    WrongName,
    ObjectExists,
    /// A directory is linked.
    DirectoryWithTwoNames,
    /// A directory would come to lie below itself.
    Cycle,
    /// Content for something that is no regular file.
    NoFile,
    /// The root can't be named, unnamed or created again.
    Root,
    /// An `Open` stands alone in its group.
    OpenNotAlone,
}

/// Applies one whole group.
///
/// Law: first all names that records take away are detached, then all names that they give are attached, then
/// objects take their new state, then objects without a name go, directories with all below them.
pub fn apply_group<R: Rows>(
    rows: &mut R,
    group: &[Record],
) -> Result<Effect, ModelError<R::Error>> {
    let changes = changes::check(rows, group)?;
    changes::carry_out(rows, changes)
}

/// Collects a stream of records into whole groups.
#[derive(Debug, Default)]
pub struct GroupSplitter {
    records: Vec<Record>,
}

/// A group grew over [`GROUP_RECORDS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupTooLarge;

impl GroupSplitter {
    pub fn new() -> GroupSplitter {
        GroupSplitter::default()
    }

    /// The whole group, when this record is its last.
    pub fn push(&mut self, record: Record) -> Result<Option<Vec<Record>>, GroupTooLarge> {
        if self.records.len() >= GROUP_RECORDS_MAX {
            return Err(GroupTooLarge);
        }
        let end = record.end;
        self.records.push(record);
        Ok(end.then(|| core::mem::take(&mut self.records)))
    }

    /// Records of a group that has not ended yet.
    pub fn pending(&self) -> usize {
        self.records.len()
    }
}
