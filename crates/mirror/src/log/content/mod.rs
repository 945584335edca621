//! Content segments: many small contents in compressed blocks beside the log. Bytes: `docs/FORMAT.md`.

#![allow(clippy::todo, unused_variables)]
use std::io;

use mirror_core::ContentRef;

/// Unpacked bytes of a block, so also the largest content that can be put.
pub const BLOCK_RAW_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("cannot {step} {name}")]
    Io {
        step: &'static str,
        name: String,
        source: io::Error,
    },
    #[error("content segment {segment} is damaged at byte {offset}: {what}")]
    Damaged {
        segment: String,
        offset: u64,
        what: &'static str,
    },
    #[error("content segment {segment} is of format version {version}, newer than this program")]
    Newer { segment: String, version: u32 },
    /// The segment was pruned.
    #[error("content segment {segment} is gone")]
    Gone { segment: String },
    #[error("content of {bytes} bytes is too large for a content segment")]
    TooLarge { bytes: usize },
    #[error("content segments stopped after an earlier failure: {0}")]
    Poisoned(String),
}

/// Puts and gets contents. Clones share it.
#[derive(Clone)]
pub struct ContentStore {}

impl ContentStore {
    /// Stores a content; safe after the log's next flush.
    pub fn put(&self, bytes: &[u8]) -> Result<ContentRef, ContentError> {
        todo!()
    }
    pub fn get(&self, content: ContentRef) -> Result<Vec<u8>, ContentError> {
        todo!()
    }
}
