//! The replica side: groups of records become an exact tree.
//!
//! [`Applier`] merges groups into one [`mirror_core::plan::Plan`], looks at every name the plan would touch, and
//! executes it through directory descriptors and single names only. New inodes are made in the state directory's
//! `staging/`, verified and complete before they get a name in the tree; what is replaced by hand-made changes moves to
//! `adopted/`. This module never follows a symlink, never uses a path below DST, and never reads the source.

pub mod crash;
mod error;
pub mod options;
pub mod staging;
pub mod store;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use mirror_core::{Content, ContentRef, Digest, ObjectId, Position, Record};

pub use error::ApplyError;
pub use options::{Flush, Options, Owners};
pub use staging::{Staged, StagedDir, StagedFile, Staging, Token};
pub use store::Store;

/// Where the bytes of contents come from. Called from several threads at once.
pub trait Contents: Sync {
    /// The bytes of this content; `place`: where this host's log keeps them, if the record said so.
    fn fetch(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched;
}

/// What [`Contents::fetch`] found.
pub enum Fetched {
    /// Of a file with holes: only the bytes of `content.data`, in order.
    Bytes(Vec<u8>),
    /// The same, as a stream.
    Reader(Box<dyn Read + Send>),
    /// Already in staging, written through [`Staging`].
    Staged(Staged),
    /// That version can't be had any more. The old occupant stays, the object waits for its successor record.
    Gone,
    /// Not now; tried again by [`Applier::retry`].
    Failed(String),
}

/// What one call of [`Applier::apply`] or [`Applier::retry`] did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The rows, and the tree but for `failed`, are as of here.
    pub applied: Option<Position>,
    pub counts: Counts,
    /// Objects that are not as they should be, with the reason. They stay listed in [`Applier::failed`].
    pub failed: Vec<Failure>,
    /// Objects that were listed as failed and now are as they should be.
    pub healed: Vec<ObjectId>,
    /// Things made by hand in the tree that stood in the way: moved to `adopted/`, shown as names inside it.
    pub moved_aside: Vec<Vec<u8>>,
    /// What this host can't set, kept in the rows only.
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
}

/// An object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub object: ObjectId,
    /// What was being done: `stage`, `fetch`, `rename`, ...
    pub step: &'static str,
    pub reason: String,
    /// The content is void: only a successor record heals it.
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

/// Applies records to one copy.
pub struct Applier<S: Store> {
    store: S,
    staging: Arc<Staging>,
}

impl<S: Store> Applier<S> {
    /// Opens the copy at `dst` (made when missing) with its state in `state_dir`, on the same file system.
    pub fn open(
        _dst: &Path,
        _state_dir: &Path,
        _store: S,
        _options: Options,
    ) -> Result<Applier<S>, ApplyError> {
        Err(ApplyError::Unfinished)
    }
    /// After a crash: the next call of `apply` must bring every group up to here at least, in one slice, because the
    /// tree may already show some of it. `None`, or a position the store has: nothing to do.
    pub fn replay_until(&self) -> Option<Position> {
        None
    }
    pub fn store(&self) -> &S {
        &self.store
    }
    /// For small things kept with the index; rows are the applier's.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }
    /// The sink for contents that come before their record.
    pub fn staging(&self) -> Arc<Staging> {
        self.staging.clone()
    }
    /// Brings the tree from the rows to after these groups: consecutive whole groups, the first one following the
    /// rows' position. `head`: the log's hash at the last record. An error means the position did not move and the same
    /// groups must come again; a single object that fails is in the outcome instead.
    pub fn apply(
        &mut self,
        _groups: &[Record],
        _head: Digest,
        _contents: &dyn Contents,
    ) -> Result<Outcome, ApplyError> {
        Err(ApplyError::Unfinished)
    }
    /// Tries again what failed.
    pub fn retry(&mut self, _contents: &dyn Contents) -> Result<Outcome, ApplyError> {
        Err(ApplyError::Unfinished)
    }
    /// What is not as it should be, as of the position.
    pub fn failed(&self) -> Vec<Failure> {
        Vec::new()
    }
    /// Makes rows and position durable now. Otherwise that happens about once a second, within `apply`.
    pub fn checkpoint(&mut self) -> Result<(), ApplyError> {
        Err(ApplyError::Unfinished)
    }
    /// Checkpoint, staging emptied, descriptors closed.
    pub fn close(self) -> Result<S, ApplyError> {
        Err(ApplyError::Unfinished)
    }
    /// Compares the whole copy with the rows: content hashes (with `content`) and all metadata. Only reads.
    pub fn verify(
        &self,
        _content: bool,
        _each: &mut dyn FnMut(Difference),
    ) -> Result<(), ApplyError> {
        Err(ApplyError::Unfinished)
    }
    /// Puts right what `verify` found: moves strangers aside, makes what is missing or different anew.
    pub fn repair(
        &mut self,
        _differences: &[Difference],
        _contents: &dyn Contents,
    ) -> Result<Outcome, ApplyError> {
        Err(ApplyError::Unfinished)
    }
}
