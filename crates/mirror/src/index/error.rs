//! What can go wrong with an index, as far as callers tell it apart.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The bytes are not what this program wrote. The index can be moved aside ([`super::move_aside`]) and rebuilt.
    #[error("the index {path} is damaged: {what}")]
    Damaged { path: PathBuf, what: String },
    /// Written by a newer program. Nothing was changed.
    #[error("the index {path} has format {found}, this program knows {known}: use a newer program")]
    Newer {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    /// Written by an older program that this one can't read. It can be moved aside and rebuilt.
    #[error(
        "the index {path} has the old format {found}, this program needs {known}: it must be rebuilt"
    )]
    Older {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    /// Another process has it open.
    #[error("the index {path} is in use by another process")]
    InUse { path: PathBuf },
    /// The disk failed or is full. The index can't be used any more; what the last flush wrote stands. Open it again.
    #[error("cannot {step} the index {path}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// An object that can't be kept: too many bytes in one row.
    #[error("object {object} needs {bytes} bytes in the index {path}, more than fit")]
    TooLarge {
        path: PathBuf,
        object: u64,
        bytes: usize,
    },
}

impl IndexError {
    /// Whether moving the index aside and building it again is the cure.
    pub fn is_rebuildable(&self) -> bool {
        matches!(self, IndexError::Damaged { .. } | IndexError::Older { .. })
    }
}
