//! What the engine tells while it runs, and how a run ends.

use crate::engine::options::Detector;
use crate::engine::status::{Failed, Hold, Lag, LastChange, PathText};

/// Something a person or a script may want to see at once. Totals are in [`crate::engine::status::Status`].
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Watching began.
    Started {
        detector: Detector,
        why: String,
        not_mirrored: Vec<PathText>,
    },
    /// The first copy, or a comparison of everything, goes on. Send as often as you like.
    Progress(Progress),
    /// DST equals SRC as of a moment after the start. Comes again after each comparison of everything.
    Equal {
        entries: u64,
        files: u64,
        bytes: u64,
        seconds: f64,
    },
    /// All that could be done is done, and DST does not equal SRC.
    Incomplete(Box<Incomplete>),
    /// Entries of an adopted copy that the source does not have; `list` is the file that names them all.
    Extras {
        total: u64,
        sample: Vec<PathText>,
        list: String,
    },
    /// Following. Send as often as you like.
    Live {
        lag: Lag,
        last_change: Option<LastChange>,
        failures: u64,
        fuzzy: u64,
    },
    /// A path was brought up to date (shown with `-v`).
    Changed {
        what: &'static str,
        path: PathText,
    },
    /// What `--dry-run` would do to a path.
    Would {
        what: &'static str,
        path: PathText,
    },
    /// One line worth knowing; names in it are escaped.
    Notice(String),
    /// A guard stopped apply.
    Held(Hold),
    /// The guard's hold is over.
    Released,
    Paused,
    Resumed,
    /// The other end is gone; tried again in `retry_s` seconds.
    Disconnected {
        reason: String,
        retry_s: u64,
    },
    Connected {
        peer: String,
    },
    /// A path could not be read or written. Kept in `status` and tried again.
    Failed {
        path: PathText,
        reason: String,
    },
    /// A failed path is well again.
    Healed {
        path: PathText,
    },
}

/// What keeps the copy from being equal.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Incomplete {
    pub entries: u64,
    pub files: u64,
    pub bytes: u64,
    pub seconds: f64,
    /// Some of them; `failed_total` counts all.
    pub failed: Vec<Failed>,
    pub failed_total: u64,
    /// Files in the copy as read, not known to be whole.
    pub fuzzy: u64,
    /// Entries of DST that are not the source's, and were not moved aside.
    pub extras: u64,
}

/// How far a first copy or a comparison has come. A total that is not known yet is `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// Entries looked at, or copied.
    pub files: u64,
    pub files_total: Option<u64>,
    /// Bytes looked at, or copied.
    pub bytes: u64,
    pub bytes_total: Option<u64>,
    /// Nothing but a comparison so far: rates of bytes would mislead.
    pub comparing: bool,
}

/// Where the engine's events go. Called from several threads, must not block for long.
pub trait Ui: Send + Sync {
    fn event(&self, event: Event);
    /// A question with a yes/no answer; `false` when nobody can be asked and `--yes` was not given.
    fn ask(&self, question: &str) -> bool;
}

/// A ui that hears and says nothing; for tests and daemons.
pub struct Silent;

impl Ui for Silent {
    fn event(&self, _: Event) {}
    fn ask(&self, _: &str) -> bool {
        false
    }
}

/// How a run that did what it was asked to ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunEnd {
    /// Paths that are not as they are at the source, and are told in `status`. More than 0: exit 3.
    pub failed: u64,
    /// Files sent as read while they would not stop changing. More than 0: exit 3.
    pub fuzzy: u64,
    /// Entries of an adopted DST that are not the source's and stayed. More than 0: exit 3.
    pub extras: u64,
    /// Ended on hold: exit 4.
    pub held: Option<Hold>,
    /// Stopped by a signal or `stop` before it was done (only with `once` a matter: exit 1).
    pub stopped: bool,
}

/// Why a run could not go on. Each maps to one exit code (`cli::exit`).
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What was asked for can't be: exit 2.
    #[error("{0}")]
    Usage(String),
    /// A guard stopped it before it began, and with `--once` nobody waits: exit 4.
    #[error("on hold: {}", .0.what)]
    Held(Hold),
    /// Another process has this mirror, or time ran out: exit 5.
    #[error("{0}")]
    Busy(String),
    /// Nobody answers at the other end, or it will not let us in: exit 6.
    #[error("{0}")]
    Unreachable(String),
    /// Everything else: exit 1.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}
