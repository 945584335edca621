//! What can go wrong with an index, as far as callers tell it apart.

use std::io;
use std::path::{Path, PathBuf};

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
    /// Written by an older program, in a way that this one can't read. It can be moved aside and rebuilt.
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
    /// The disk failed or is full. The index takes no more changes; what the last flush wrote stands. Open it again.
    #[error("cannot {step} the index {path}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl IndexError {
    /// Whether moving the index aside and building it again is the cure.
    pub fn is_rebuildable(&self) -> bool {
        matches!(self, IndexError::Damaged { .. } | IndexError::Older { .. })
    }

    pub(super) fn damaged(path: &Path, what: impl ToString) -> IndexError {
        IndexError::Damaged {
            path: path.into(),
            what: what.to_string(),
        }
    }
    pub(super) fn io(step: &'static str, path: &Path, source: io::Error) -> IndexError {
        IndexError::Io {
            step,
            path: path.into(),
            source,
        }
    }
    /// From whatever error of the store.
    pub(super) fn store(
        step: &'static str,
        path: &Path,
        error: impl Into<redb::Error>,
    ) -> IndexError {
        match error.into() {
            redb::Error::Io(source) => match source.kind() {
                // What the store says of a file that isn't one of its own or ends too soon.
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    IndexError::damaged(path, source)
                }
                _ => IndexError::io(step, path, source),
            },
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
                IndexError::InUse { path: path.into() }
            }
            redb::Error::Corrupted(what) => IndexError::damaged(path, what),
            error @ (redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableIsNotMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted) => IndexError::damaged(path, error),
            error => IndexError::io(step, path, io::Error::other(error)),
        }
    }
}
