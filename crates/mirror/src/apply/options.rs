//! How a copy is to be made.

use std::sync::Arc;
use std::time::Duration;

/// Whose files they are on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Owner, group, set-id bits, devices and capabilities as at the source. Needs root.
    Apply,
    /// Files are ours; what was withheld is in the rows.
    Record,
}

/// When the tree is flushed. Reasons: `docs/decisions/0002-flush-policy.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Each batch: staged inodes before they get a name, directories after. For steady state.
    Batch,
    /// Only before rows become durable, the whole file system at once. For a copy that is not yet equal anyway.
    Checkpoint,
    /// Never: tests.
    Never,
}

#[derive(Clone)]
pub struct Options {
    pub owners: Owners,
    pub flush: Flush,
    /// A copy made by something else is being taken over: what no record named yet may still get one, and is left alone.
    pub adopting: bool,
    /// Keep replaced inodes. Not built yet: must be false.
    pub history: bool,
    /// Rows and position become durable this often.
    pub checkpoint_every: Duration,
    /// Or after so many batches.
    pub checkpoint_batches_max: u32,
    /// More failed objects than this stop apply instead of growing the list.
    pub failed_max: usize,
    /// Directory descriptors kept open.
    pub dir_fds_max: usize,
    /// Threads that fetch, write and flush contents.
    pub threads: usize,
    /// Tells a test the order of what was done to the file system.
    pub trace: Option<Arc<dyn Fn(Trace) + Send + Sync>>,
}

/// What a test is told, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    Staged,
    FlushStaged,
    Renamed,
    Removed,
    FlushDirs,
    Rows,
    FlushRows,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            owners: Owners::Apply,
            flush: Flush::Batch,
            adopting: false,
            history: false,
            checkpoint_every: Duration::from_secs(1),
            checkpoint_batches_max: 200,
            failed_max: 10_000,
            dir_fds_max: crate::sys::descriptors::share(256, 4),
            threads: 4,
            trace: None,
        }
    }
}
