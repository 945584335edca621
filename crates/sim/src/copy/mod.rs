//! The copy that records are applied to.

mod real;
mod store;

use mirror::apply::{Contents, Fetched};
use mirror::log::ContentStore;
use mirror_core::{Content, ContentRef, Digest, MemRows, ObjectId, Position, Record, Rows};

pub use real::RealCopy;
pub use store::SimStore;

use crate::tree::{SimTree, digest};

/// What came of applying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    Done,
    /// Killed in the middle, as asked.
    Killed,
    /// Refused; nothing moved.
    Failed(String),
}

/// Contents as a mirror on one host has them: beside the log, else from the source while it is still that version.
pub struct Local<'a> {
    pub store: ContentStore,
    pub rows: &'a MemRows,
    pub tree: &'a SimTree,
}

impl Contents for Local<'_> {
    fn fetch(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched {
        if let Some(place) = place {
            return match self.store.get(place) {
                Ok(bytes) => Fetched::Bytes(bytes.into()),
                Err(error) => Fetched::Failed(format!("{error:?}")),
            };
        }
        let Ok(row) = self.rows.object(object);
        let bytes = row
            .and_then(|row| row.local.handle)
            .and_then(|handle| self.tree.by_handle(&handle))
            .and_then(|inode| self.tree.bytes(inode.ino))
            .filter(|bytes| digest(bytes) == content.digest);
        match bytes {
            Some(bytes) => Fetched::Bytes(bytes.to_vec().into()),
            None => Fetched::Gone,
        }
    }
}

pub trait Copy {
    fn position(&self) -> Option<Position>;
    /// After a crash the next call must reach this position.
    fn replay_until(&self) -> Option<Position>;
    /// There is nothing in the log beyond this, which is not before its end at the start.
    fn log_ends(&mut self, end: Option<Position>);
    /// Applies consecutive whole groups; killed after so many things done to the tree, if that is asked for.
    fn apply(
        &mut self,
        groups: &[Record],
        head: Digest,
        contents: &dyn Contents,
        kill: Option<u32>,
    ) -> Applied;
    /// Makes rows and position durable.
    fn checkpoint(&mut self) -> Result<(), String>;
    /// What failed is tried again; the number of things still failing, with the first reason.
    fn retry(&mut self, contents: &dyn Contents) -> Result<Option<String>, String>;
    /// Killed between two calls, or the power fails.
    fn crash(&mut self) -> Result<(), String>;
    /// Batches that took something for made by hand, which nobody does here: what a crash left and no row explains.
    fn adopted(&self) -> u64;
    /// How the copy differs from the tree.
    fn differences(&mut self, tree: &SimTree) -> Vec<String>;
}
