//! The copy that records are applied to.

mod real;
mod store;

use mirror::log::ContentStore;
use mirror_core::{Digest, Position, Record};

pub use real::RealCopy;
pub use store::SimStore;

use crate::tree::SimTree;

/// What came of applying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    Done,
    /// Killed in the middle, as asked.
    Killed,
    /// Refused; nothing moved.
    Failed(String),
}

pub trait Copy {
    fn position(&self) -> Option<Position>;
    /// After a crash the next call must reach this position.
    fn replay_until(&self) -> Option<Position>;
    /// Applies consecutive whole groups; killed after so many things done to the tree, if that is asked for.
    fn apply(
        &mut self,
        groups: &[Record],
        head: Digest,
        contents: &ContentStore,
        kill: Option<u32>,
    ) -> Applied;
    /// Makes rows and position durable.
    fn checkpoint(&mut self) -> Result<(), String>;
    /// What failed is tried again; the number of things still failing, with the first reason.
    fn retry(&mut self, contents: &ContentStore) -> Result<Option<String>, String>;
    /// Killed between two calls, or the power fails.
    fn crash(&mut self) -> Result<(), String>;
    /// How the copy differs from the tree.
    fn differences(&mut self, tree: &SimTree) -> Vec<String>;
}
