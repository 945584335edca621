//! How other commands reach a running mirror: its lock, its socket, its last status, and the flag that stops it.

mod client;
mod lock;
mod persist;
mod server;
mod stop;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{Client, ClientError};
pub use lock::{Holder, LockError, StateLock};
pub use persist::{
    Beat, HEARTBEAT_MAX, PersistError, leave_release, persist_status, read_status, take_release,
};
pub use server::{Handle, serve};
pub use stop::Stop;
#[cfg(test)]
use wire::Request;

use std::time::{Duration, Instant};

use mirror_core::Position;
use serde::{Deserialize, Serialize};

use crate::engine::applying::Going;
use crate::engine::status::{Failed, Hold, PathText, Positions, Replica, Stamp, Status};
use crate::history::ask::{Answer, Ask};

/// What a running mirror or worker answers. Called from several threads at once.
pub trait Control: Send + Sync {
    fn status(&self) -> Status;
    /// Returns when what happened at the source before this call is in the copy, durably.
    fn wait_idle(&self, until: &Until<'_>) -> Result<WaitReport, ControlError>;
    /// Returns when this position is applied.
    fn wait_position(
        &self,
        position: Position,
        until: &Until<'_>,
    ) -> Result<WaitReport, ControlError>;
    /// Returns when what happened in the tree before this call has come so far on `replicas` of them; `None`: on all that
    /// are connected or waited for, one at least. Also when time is up: the report says so.
    fn wait_replicas(
        &self,
        stage: Stage,
        replicas: Option<u32>,
        until: &Until<'_>,
    ) -> Result<WaitReport, ControlError> {
        let _ = (stage, replicas, until);
        Err(ControlError::Refused(
            "only a worker knows its replicas".into(),
        ))
    }
    /// Stops capture and apply, and closes every descriptor into SRC; pausing what is paused is fine.
    fn pause(&self) -> Result<(), ControlError>;
    fn resume(&self) -> Result<(), ControlError>;
    /// Shows what a hold will let through; with `yes` lets it through.
    fn release(&self, yes: bool) -> Result<ReleaseReport, ControlError>;
    /// Waits no more for replicas that are away: the one of this name, or those of the key of this name. Their names.
    fn forget(&self, replica: &str) -> Result<Vec<String>, ControlError> {
        let _ = replica;
        let why = "nobody follows a mirror of this host itself";
        Err(ControlError::Refused(why.into()))
    }
    /// Compares. `line` returns false when nobody listens any more: then end soon.
    fn verify(
        &self,
        options: VerifyOptions,
        line: &mut dyn FnMut(VerifyLine) -> bool,
    ) -> Result<VerifyEnd, ControlError>;
    /// Tells the last `lines` records, and with `follow` what comes. An empty line only asks whether anybody listens.
    fn log(
        &self,
        lines: usize,
        follow: bool,
        each: &mut dyn FnMut(LogLine) -> bool,
    ) -> Result<(), ControlError> {
        let _ = (lines, follow, each);
        Err(ControlError::Refused("only a worker tells its log".into()))
    }
    /// Answers a question about the past of the copy.
    fn past(&self, ask: Ask) -> Result<Answer, ControlError> {
        let _ = ask;
        Err(ControlError::Refused("only a mirror keeps history".into()))
    }
    /// Ends the process cleanly; returns at once.
    fn stop(&self);
}

/// How long a wait may take, and whether anybody still waits. Sleep in steps of [`Until::nap`] and look.
pub struct Until<'a> {
    pub at: Option<Instant>,
    pub gone: &'a (dyn Fn() -> bool + Sync),
}

impl Until<'_> {
    /// The deadline is past, or whoever asked is gone.
    pub fn over(&self) -> bool {
        self.at.is_some_and(|at| Instant::now() >= at) || (self.gone)()
    }
    /// How long to sleep (on a condition variable, say) before looking again.
    pub fn nap(&self) -> Duration {
        let step = Duration::from_millis(200);
        self.at.map_or(step, |at| {
            at.saturating_duration_since(Instant::now()).min(step)
        })
    }
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", content = "why", rename_all = "snake_case")]
pub enum ControlError {
    /// Time ran out: exit 5.
    #[error("timed out: {0}")]
    Timeout(String),
    /// Something else is going on that excludes this: exit 5.
    #[error("{0}")]
    Busy(String),
    /// On hold, so it can't come true: exit 4.
    #[error("on hold: {0}")]
    Held(String),
    /// Makes no sense here: exit 2.
    #[error("{0}")]
    Refused(String),
    /// The peer can't be reached: exit 6.
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Failed(String),
}

/// How far a replica is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It has the records.
    Received,
    /// They are on its disk.
    Durable,
    /// They are in its copy, durably.
    Applied,
}

/// What a wait found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WaitReport {
    pub positions: Positions,
    /// Paths the wait does not cover, bounded as in [`Status`].
    pub failed: Vec<Failed>,
    pub failed_total: u64,
    /// Files in the copy as read, not known to be whole; bounded, `fuzzy_total` counts them.
    pub fuzzy: Vec<PathText>,
    pub fuzzy_total: u64,
    /// The log's end when everything written before was in it.
    #[serde(default, with = "crate::engine::status::position_text")]
    pub position: Option<Position>,
    /// Of a wait for replicas, from here on: as they were at its end.
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// Which of them have not come so far.
    #[serde(default)]
    pub missing: Vec<String>,
    #[serde(default)]
    pub timed_out: bool,
    /// Paths that replicas could not apply, all together.
    #[serde(default)]
    pub failed_there: u64,
}

/// What a hold will let through, or let through.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReleaseReport {
    /// `None`: nothing is held.
    pub hold: Option<Hold>,
    pub released: bool,
    /// Entries that will go, come, and change.
    pub gone: u64,
    pub new: u64,
    pub changed: u64,
    /// Some of the paths that will go, the topmost ones, at most 100.
    pub sample: Vec<PathText>,
}

impl ReleaseReport {
    /// With what waits in the log.
    pub fn add(&mut self, going: Going) {
        self.gone = going.gone;
        self.new = going.new;
        self.changed = going.changed;
        self.sample = going.sample;
    }
}

/// A record, for people.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LogLine {
    #[serde(with = "crate::engine::status::position_text")]
    pub position: Option<Position>,
    pub at: Option<Stamp>,
    /// `create`, `write`, `unlink`, `move`...
    pub op: String,
    pub path: Option<PathText>,
    /// Where it moved.
    pub to: Option<PathText>,
    pub who: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOptions {
    pub against: Against,
    pub repair: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Against {
    /// Reads both trees.
    Source,
    /// Reads the copy and compares with what its index says.
    Index,
    /// Reads the old versions and compares with what the catalogue says.
    History,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyLine {
    pub path: PathText,
    /// What differs: "missing", "extra", "content", "mode"...
    pub what: String,
    pub repaired: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VerifyEnd {
    pub entries: u64,
    pub bytes: u64,
    pub different: u64,
    pub repaired: u64,
    /// Changed while compared, or unreadable: nothing is known about them.
    pub unknown: u64,
}
