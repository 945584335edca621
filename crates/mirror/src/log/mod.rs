//! The change log: one record per change to the tree, appended, never rewritten.
//!
//! Segments are named by the position of their first record; bytes: `docs/FORMAT.md`. One writer ([`Log`]), any
//! number of readers ([`LogReader`], [`Cursor`]), which see only what is durable. Small content lies beside the log
//! in [`content`] segments, flushed before the records that name it. This module never looks at the mirrored tree
//! and never opens a socket.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex};

use mirror_core::{Change, ContentRef, Digest, Local, Position, Who};

use crate::disk::Disk;
use crate::sync::lock;

pub mod content;
mod cursor;
mod prune;
mod receive;
mod recover;
mod segment;
mod tail;
#[cfg(test)]
mod tests;
mod walk;
mod window;
mod writer;

pub use content::{ContentError, ContentStore};
pub use cursor::{Cursor, Group, LogReader, Mark};
pub use tail::{Tail, Waited};
pub use writer::Log;

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
    #[error(
        "log segment {segment} holds a record of unknown kind {kind} at byte {offset}, from a newer program"
    )]
    UnknownKind {
        segment: String,
        offset: u64,
        kind: u8,
    },
    /// The log does not reach back that far.
    #[error("the log begins at {first}: older records were pruned")]
    Pruned { first: Position },
    /// No group of this log ends with that record.
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

/// What writer and readers share.
struct Shared {
    disk: Arc<dyn Disk>,
    tree: [u8; 16],
    /// By the position of their first record; never empty.
    segments: Mutex<BTreeMap<Position, segment::Header>>,
    tail: Tail,
    content: ContentStore,
}

fn io_error(step: &'static str, name: &str, source: io::Error) -> LogError {
    LogError::Io {
        step,
        name: name.to_owned(),
        source,
    }
}

/// An error with its causes in one line.
fn describe(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
