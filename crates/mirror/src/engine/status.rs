//! What a mirror (or a worker) says about itself, for people and for scripts.
//!
//! The JSON of these types is what `status --json` prints and what `status.json` in the state directory holds.
//! Fields are only ever added. Names and paths are text with `\xNN` for bytes that are not plain text.

use super::aside::Aside;
use super::confine::Confinement;
use std::collections::BTreeMap;
use std::fmt;

use mirror_core::{Position, escape};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::engine::options::{Compress, Detector};

/// How many failed paths `status` names; `failed_total` counts them all.
pub const FAILED_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the program that wrote this.
    pub version: String,
    pub pid: u32,
    pub started: Stamp,
    /// When this was true.
    pub now: Stamp,
    pub role: Role,
    /// The tree's name, in a service.
    #[serde(default)]
    pub name: Option<String>,
    /// As a person would type it.
    pub source: String,
    /// `None` on a worker.
    pub dst: Option<PathText>,
    pub state: State,
    /// `None`: nothing watches yet.
    pub detector: Option<DetectorStatus>,
    pub positions: Positions,
    pub lag: Lag,
    pub last_change: Option<LastChange>,
    /// When DST last was known to equal SRC.
    pub equal_at: Option<Stamp>,
    /// Names in the tree, all kinds.
    pub entries: u64,
    pub files: u64,
    pub bytes: u64,
    pub counters: Counters,
    /// At most [`FAILED_MAX`] of them, the oldest first.
    pub failed: Vec<Failed>,
    pub failed_total: u64,
    /// Mount points and subvolumes below SRC that are left out.
    pub not_mirrored: Vec<PathText>,
    /// What can't be set in the copy and is recorded instead, by kind ("owners", "xattrs"...).
    pub recorded: BTreeMap<String, u64>,
    /// Of DST's file system.
    pub space: Option<Space>,
    /// What lies in `adopted/`.
    #[serde(default)]
    pub aside: Option<Aside>,
    #[serde(default)]
    pub rolling: Option<Rolling>,
    /// `None`: none is kept, or nobody looked yet.
    #[serde(default)]
    pub history: Option<HistoryStatus>,
    /// What the threads that take a worker's word are behind; `None`: nobody else's word is taken here.
    #[serde(default)]
    pub confinement: Option<Confinement>,
    /// Contents on their way, for which nothing else waits. Until they are there what they belong to is not *applied*.
    #[serde(default)]
    pub travelling: Travelling,
    /// Replicas (of a worker), by name: those that are connected, and those that were and are waited for.
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// Bytes a second that may be sent to all of them together now.
    #[serde(default)]
    pub bwlimit: Option<u64>,
    /// What comes from upstream; `None`: there is no connection, or it needs none.
    #[serde(default)]
    pub link: Option<LinkStatus>,
    /// Bytes a second: a limit that lets no more come is what holds it back now.
    #[serde(default)]
    pub held_to: Option<u64>,
    /// Histories that were left for another one, and nothing explains it; until what lies aside of them is removed.
    #[serde(default)]
    pub forks: Vec<Fork>,
    /// Very much changed at once and was followed into history; until a person lets go nothing is rotated or pruned.
    #[serde(default)]
    pub alarm: Option<Alarmed>,
}

impl Status {
    /// A process that has just begun.
    pub fn new(role: Role, source: String, dst: Option<PathText>) -> Status {
        let now = Stamp::now();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started: now,
            now,
            role,
            name: None,
            source,
            dst,
            state: State::Starting,
            detector: None,
            positions: Positions::default(),
            lag: Lag::default(),
            last_change: None,
            equal_at: None,
            entries: 0,
            files: 0,
            bytes: 0,
            counters: Counters::default(),
            failed: Vec::new(),
            failed_total: 0,
            not_mirrored: Vec::new(),
            recorded: BTreeMap::new(),
            space: None,
            aside: None,
            rolling: None,
            history: None,
            confinement: None,
            travelling: Travelling::default(),
            replicas: Vec::new(),
            bwlimit: None,
            link: None,
            held_to: None,
            forks: Vec::new(),
            alarm: None,
        }
    }
}

/// Of old versions, as of the last pass over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStatus {
    pub versions: u64,
    /// What would be free without them.
    pub bytes: u64,
    pub catalogue_bytes: u64,
    /// The oldest time that can be had, by the worker's clock.
    pub oldest: Option<Stamp>,
    pub lock: String,
    /// More than it may take, and nothing else may go, or can.
    pub missing_bytes: u64,
    pub looked_at: Stamp,
}

/// What goes over one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// As asked for here (at the side that sends: by both).
    pub compress: Compress,
    /// Packed now, where it shrinks.
    pub packed: bool,
    /// Since it was connected.
    pub bytes: u64,
    /// So many more there would have been.
    pub saved_bytes: u64,
    /// What the link can do, where it is known to be slow. Only the side that sends says so.
    #[serde(default)]
    pub bytes_per_s: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Travelling {
    pub files: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Captures, serves.
    Primary,
    /// Follows, applies.
    Replica,
    /// Both in one process, on one host.
    Local,
}

/// What it is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum State {
    Starting,
    /// The first copy, or a comparison of everything: not known to be equal.
    Seeding {
        files: u64,
        files_total: Option<u64>,
        bytes: u64,
        bytes_total: Option<u64>,
        bytes_per_s: u64,
        eta_s: Option<u64>,
    },
    Following,
    Paused {
        since: Stamp,
    },
    Hold(Hold),
    Disconnected {
        since: Stamp,
        reason: String,
    },
    Failed {
        reason: String,
    },
    /// Ended cleanly; only found in `status.json`.
    Stopped,
}

/// A guard stopped apply (or capture): the copy stays as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    pub reason: HoldReason,
    pub since: Stamp,
    /// One line for people, names escaped.
    pub what: String,
    /// Entries that would go, and of how many, where that is the reason.
    pub gone: Option<u64>,
    pub of: Option<u64>,
    /// The directory it is about; `None`: the whole tree.
    pub below: Option<PathText>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldReason {
    RootGone,
    RootReplaced,
    RootCovered,
    RootEmpty,
    /// Entries are gone that no event explains.
    Unexplained,
    /// Very much went at once, seen happening, and there is no history to keep it.
    MassChange,
    /// DST is gone, covered or was replaced.
    CopyLost,
    /// The copy would pass a limit: bytes, entries, or the free space that stays.
    Limit,
}

impl HoldReason {
    /// Whether an operator's word lets it go on. Else there is nothing to go on with: it does so by itself.
    pub fn can_be_released(self) -> bool {
        !matches!(
            self,
            HoldReason::RootGone | HoldReason::CopyLost | HoldReason::Limit
        )
    }

    /// Another directory stands where the root was; let go on, it is the root.
    pub fn is_another_root(self) -> bool {
        matches!(self, HoldReason::RootReplaced | HoldReason::RootCovered)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DetectorStatus {
    pub uses: Detector,
    pub why: String,
}

/// How far it is. On a primary all three are the log's end as captured, durable, and acknowledged by the slowest replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Positions {
    #[serde(with = "position_text")]
    pub received: Option<Position>,
    #[serde(with = "position_text")]
    pub durable: Option<Position>,
    #[serde(with = "position_text")]
    pub applied: Option<Position>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Lag {
    /// Age of the oldest change that is not in the copy; 0 when none is known.
    pub seconds: f64,
    pub records: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastChange {
    pub at: Stamp,
    pub path: PathText,
}

/// Things that happened since the mirror was made (or, where it can't be known, since the process began).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Queue overflows of the kernel.
    pub overflows: u64,
    /// Differences a scan found that no event explained.
    pub scan_corrections: u64,
    /// Reads of a file that changed meanwhile, thrown away.
    pub torn_reads: u64,
    /// Files that are in the copy as read, not known to be whole.
    pub fuzzy: u64,
    /// Files whose content was read while nobody could write it.
    pub proven: u64,
    /// Entries taken over from what DST held before.
    pub adopted: u64,
    /// Entries of DST that were not the source's, now in `adopted/`.
    pub moved_aside: u64,
    /// Entries of the copy changed by hand, repaired.
    pub repaired: u64,
    /// Directories without a watch, for want of watches: found changed by scans alone.
    pub unwatched: u64,
    pub records: u64,
}

/// A path that is not as it is at the source, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    pub path: PathText,
    pub reason: String,
    pub since: Stamp,
    pub tries: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub bytes_free: u64,
    pub bytes_total: u64,
    pub inodes_free: u64,
    pub inodes_total: u64,
}

/// How the copy is compared with its index, a little at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolling {
    pub every_s: u64,
    /// When all of it had been looked at.
    pub last_full: Option<Stamp>,
    /// Entries looked at in the pass that goes on.
    pub looked_at: Option<u64>,
    /// Since the mirror was made: changed by hand, and of that repaired.
    pub found: u64,
    pub repaired: u64,
}

/// See [`Status::alarm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alarmed {
    pub since: Stamp,
    /// The last position before it.
    #[serde(default, with = "position_text")]
    pub before: Option<Position>,
    pub what: String,
}

/// See [`Status::forks`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// Where the log before lies.
    pub aside: String,
    pub what: String,
}

/// A replica as its primary sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    pub name: String,
    pub connected: bool,
    /// Connected since then, or last seen then.
    pub since: Stamp,
    /// As it last said.
    pub positions: Positions,
    /// How far it is behind the log's end, applied.
    #[serde(default)]
    pub lag: Lag,
    /// Paths it could not apply.
    #[serde(default)]
    pub failed: u64,
    /// Why it applies nothing, if it is on hold.
    #[serde(default)]
    pub held: Option<String>,
    /// `None`: it is away.
    #[serde(default)]
    pub link: Option<LinkStatus>,
    /// Bytes a second: this limit is what holds it back now.
    #[serde(default)]
    pub held_to: Option<u64>,
}

/// A path or name as text that can be shown and told apart: see [`mirror_core::escape`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathText(String);

impl PathText {
    pub fn new(bytes: &[u8]) -> PathText {
        PathText(escape(bytes))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PathText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A moment, to the millisecond; RFC 3339 in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Since 1970.
    pub ms: i64,
}

impl Stamp {
    pub fn now() -> Stamp {
        Stamp {
            ms: jiff::Timestamp::now().as_millisecond(),
        }
    }
    pub fn from_ns(ns: u64) -> Stamp {
        Stamp {
            ms: i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX),
        }
    }
    /// Seconds from `self` to `later`, 0 when the clock went back.
    pub fn seconds_until(self, later: Stamp) -> f64 {
        later.ms.saturating_sub(self.ms).max(0) as f64 / 1000.0
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.ms) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => f.write_str("(a time beyond the calendar)"),
        }
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Stamp, D::Error> {
        let text = String::deserialize(from)?;
        let time: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Stamp {
            ms: time.as_millisecond(),
        })
    }
}

/// A position as `EPOCH.SEQ`, with or without `pos:` before it.
pub fn parse_position(text: &str) -> Option<Position> {
    let text = text.strip_prefix("pos:").unwrap_or(text);
    let (epoch, sequence) = text.split_once('.')?;
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(epoch) || !digits(sequence) {
        return None;
    }
    Some(Position {
        epoch: epoch.parse().ok()?,
        sequence: sequence.parse().ok()?,
    })
}

pub mod position_text {
    use super::*;

    pub fn serialize<S: Serializer>(position: &Option<Position>, to: S) -> Result<S::Ok, S::Error> {
        match position {
            Some(position) => to.collect_str(position),
            None => to.serialize_none(),
        }
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Position>, D::Error> {
        match Option::<String>::deserialize(from)? {
            Some(text) => parse_position(&text)
                .map(Some)
                .ok_or_else(|| serde::de::Error::custom("a position is EPOCH.SEQ")),
            None => Ok(None),
        }
    }
}
