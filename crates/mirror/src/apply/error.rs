//! Why apply could not go on. What concerns one object is a [`super::Failure`] instead.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("cannot {step} {path}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// DST is not the directory it was: unmounted, replaced, covered. Nothing was changed.
    #[error("{path} is not the directory this mirror was made in: {what}")]
    Root { path: PathBuf, what: String },
    /// DST and its state directory lie on different file systems.
    #[error("{dst} and {state} are on different file systems")]
    TwoFileSystems { dst: PathBuf, state: PathBuf },
    /// More objects failed than are kept in the list: the position did not move. Tried again later by the caller.
    #[error("{count} entries could not be written, the first: {first}")]
    TooManyFailures { count: usize, first: String },
    /// A flush failed: what was staged is not believed. The position did not move; the same groups can come again.
    #[error("cannot flush {what}")]
    Flush {
        what: &'static str,
        source: io::Error,
    },
    /// The records don't fit the rows: our own mistake or a damaged index.
    #[error("the records do not fit the index: {0}")]
    Records(String),
    #[error("the index of the copy failed")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An old version can't be kept, or not be written down. Nothing moved; the same groups can come again.
    #[error("the history failed")]
    History(#[source] crate::history::HistoryError),
    /// Likewise of one that the copy never showed.
    #[error("cannot {step} an old version: {reason}")]
    Unkept { step: &'static str, reason: String },
    #[error("not built yet")]
    Unfinished,
}
