//! The change log: one record per change to the tree, appended, never rewritten.
//!
//! Segments are named by the position of their first record; bytes: `docs/FORMAT.md`. One writer ([`Log`]), any
//! number of readers ([`LogReader`], [`Cursor`]), which see only what is durable. Small content lies beside the log
//! in [`content`] segments, flushed before the records that name it. This module never looks at the mirrored tree
//! and never opens a socket.
#![allow(clippy::todo, unused_variables)]

use std::io;
use std::sync::Arc;
use std::time::Instant;

use mirror_core::{Change, ContentRef, Digest, Fork, Local, Position, Record, Who};

use crate::disk::Disk;

pub mod content;

pub use content::{ContentError, ContentStore};

/// Encoded frames of one group.
pub const GROUP_BYTES_MAX: usize = 32 << 20;

/// Why the log could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot {step} {name}")]
    Io {
        step: &'static str,
        name: String,
        source: io::Error,
    },
    /// No log is there (or only the beginning of one that never became durable).
    #[error("there is no log")]
    Absent,
    #[error("a log is already there")]
    Exists,
    /// Bytes that were durable are not what was written.
    #[error("log segment {segment} is damaged at byte {offset}: {what}")]
    Damaged {
        segment: String,
        offset: u64,
        what: &'static str,
    },
    #[error("log segment {segment} is of format version {version}, newer than this program")]
    Newer { segment: String, version: u32 },
    #[error("the log begins after {after}, at {first}: older records were pruned")]
    Pruned { after: Position, first: Position },
    #[error("{after} is not in this log")]
    Beyond { after: Position },
    /// Records to append do not continue this log.
    #[error("record {position} does not continue the log: {what}")]
    Refused {
        position: Position,
        what: &'static str,
    },
    #[error("{0} is too large")]
    TooLarge(&'static str),
    /// An earlier write or flush failed: nothing more is written until the log is opened again.
    #[error("the log stopped after an earlier failure: {0}")]
    Poisoned(String),
    #[error(transparent)]
    Content(#[from] ContentError),
}

#[derive(Debug, Clone)]
pub struct LogOptions {
    pub segment_bytes_max: u32,
    pub content_segment_bytes_max: u32,
    /// Unpacked content blocks kept in memory.
    pub content_cache_bytes_max: usize,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            segment_bytes_max: 64 << 20,
            content_segment_bytes_max: 64 << 20,
            content_cache_bytes_max: 16 << 20,
        }
    }
}

/// A point in the log: after this record the head hash is this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub position: Position,
    pub head: Digest,
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub tree: [u8; 16],
    /// The last record, if any is left.
    pub end: Option<End>,
    /// Bytes of a torn tail or an incomplete group that were cut off.
    pub cut_bytes: u64,
}

/// One change to append; the log gives it its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub change: Change,
    pub who: Option<Who>,
    pub local: Option<Local>,
    pub content: Option<ContentRef>,
}

/// A whole group, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub records: Vec<Record>,
    /// The stored frames of the records, one after the other.
    pub frames: Vec<u8>,
    /// The head after the last record.
    pub end: End,
}

impl Group {
    /// Appends the frames as they travel, without local bodies.
    pub fn to_wire(&self, out: &mut Vec<u8>) {
        todo!()
    }
}

/// What [`Log::prune`] may drop. `None`: no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneLimits {
    pub log_bytes_max: Option<u64>,
    pub content_bytes_max: Option<u64>,
    /// Segments whose last record is older than this time go.
    pub oldest_time_ns: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneStats {
    pub log_segments: usize,
    pub content_segments: usize,
    pub bytes: u64,
}

/// The writer.
pub struct Log {}

impl Log {
    /// A new log of a tree, with its first record (`Open` of epoch 1), durable.
    pub fn create(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        tree: [u8; 16],
        claim: [u8; 16],
        time_ns: u64,
    ) -> Result<Log, LogError> {
        todo!()
    }
    /// A new, empty log that follows another one, from after `end` (`None`: from the beginning).
    pub fn create_follower(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        tree: [u8; 16],
        end: Option<End>,
    ) -> Result<Log, LogError> {
        todo!()
    }
    /// Opens what is there: cuts a torn tail of the last segment, names any other damage as an error.
    pub fn open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<(Log, Recovered), LogError> {
        todo!()
    }
    pub fn tree(&self) -> [u8; 16] {
        todo!()
    }
    /// The position that the first record of the next group gets; the following ones count up from it.
    pub fn next_position(&self) -> Position {
        todo!()
    }
    /// The last appended record, durable or not. Of an empty follower's log: where it begins.
    pub fn end(&self) -> Option<End> {
        todo!()
    }
    /// Appends one group and returns it with its positions. Not durable before [`Log::flush`].
    pub fn append(&mut self, group: Vec<Draft>, time_ns: u64) -> Result<Vec<Record>, LogError> {
        todo!()
    }
    /// Opens a new epoch after the log's end; a group of its own.
    pub fn append_open(
        &mut self,
        epoch: u32,
        claim: [u8; 16],
        parent: Option<Fork>,
        time_ns: u64,
    ) -> Result<Record, LogError> {
        todo!()
    }
    /// Appends whole groups of another host's records, positions and times unchanged.
    pub fn append_records(&mut self, records: &[Record]) -> Result<(), LogError> {
        todo!()
    }
    /// Appends whole groups of another host's frames as they came from the wire, unknown fields included; CRC, chain
    /// and order are verified. `local` says what to store in each record's local body.
    pub fn append_frames(
        &mut self,
        frames: &[u8],
        local: &mut dyn FnMut(&Record) -> (Option<Local>, Option<ContentRef>),
    ) -> Result<Vec<Record>, LogError> {
        todo!()
    }
    /// Makes everything appended durable, content first, and shows it to the readers.
    pub fn flush(&mut self) -> Result<Option<End>, LogError> {
        todo!()
    }
    /// Flushes and seals: damage to the last bytes is then told from a torn tail.
    pub fn finish(self) -> Result<(), LogError> {
        todo!()
    }
    /// Drops old whole segments beyond the limits, none that holds `keep_from` or a later record.
    pub fn prune(
        &mut self,
        keep_from: Position,
        limits: &PruneLimits,
    ) -> Result<PruneStats, LogError> {
        todo!()
    }
    pub fn content(&self) -> ContentStore {
        todo!()
    }
    pub fn reader(&self) -> LogReader {
        todo!()
    }
    pub fn tail(&self) -> Tail {
        todo!()
    }
}

/// Reads what is durable. Clones are cheap; `Send`.
#[derive(Clone)]
pub struct LogReader {}

impl LogReader {
    /// Groups after this position; `None`: from the log's first.
    pub fn cursor(&self, after: Option<Position>) -> Result<Cursor, LogError> {
        todo!()
    }
    /// The head after this record, if it is in the log and durable.
    pub fn head_at(&self, position: Position) -> Result<Option<Digest>, LogError> {
        todo!()
    }
    /// The first record that is still there.
    pub fn first(&self) -> Position {
        todo!()
    }
    pub fn content(&self) -> ContentStore {
        todo!()
    }
    pub fn tail(&self) -> Tail {
        todo!()
    }
}

/// Where the log ends, for waiting on.
#[derive(Clone)]
pub struct Tail {}

/// Why a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// The durable end is past the position waited on.
    Durable(End),
    Deadline,
    /// The writer is gone, or stopped after a failure (`Some`): nothing more comes.
    Stopped(Option<String>),
}

impl Tail {
    pub fn appended(&self) -> Option<End> {
        todo!()
    }
    pub fn durable(&self) -> Option<End> {
        todo!()
    }
    /// Waits until something after `after` is durable.
    pub fn wait_past(&self, after: Option<Position>, deadline: Instant) -> Waited {
        todo!()
    }
    /// Wakes all waiters, who then find the deadline passed or something new; for stopping a loop.
    pub fn wake(&self) {
        todo!()
    }
}

/// Reads whole groups, following segments and the durable end; verifies checksums and chain.
pub struct Cursor {}

impl Cursor {
    /// The next durable group; `None`: nothing more yet.
    pub fn next_group(&mut self) -> Result<Option<Group>, LogError> {
        todo!()
    }
    /// The last record returned, or where the cursor began.
    pub fn position(&self) -> Option<Position> {
        todo!()
    }
}
