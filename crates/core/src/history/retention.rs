//! How long history is kept: which versions may go, which may not, and why. Choices: `docs/decisions/0012-retention.md`.
//!
//! All of it is arithmetic over the backup's own clock ([`clock`]); no time of a worker gets in here, so that no worker
//! can shorten or lengthen what is kept. Nothing here reads a clock, a catalogue or a disk: the caller hands in the
//! versions, [`rules`] judges each in O(log n), [`space`] says what goes beyond the rules when room is short.

pub mod clock;
pub mod length;
pub mod policy;
pub mod rules;
pub mod space;
pub mod zone;

#[cfg(test)]
mod tests;

pub use clock::Clock;
pub use length::Length;
pub use policy::{Era, Eras, Lock, Policy};
pub use rules::{Fate, Point, PointKind, Promise, Reason, Rule, Rules, Version};
pub use space::{Budget, Outcome, Relief, Space};
pub use zone::{Period, Zone};

pub const SECOND: i64 = 1_000_000_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

/// An instant by the backup's retention clock: nanoseconds since 1970. Never a worker's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MirrorTime(pub i64);

impl MirrorTime {
    /// As it is stored. What nanoseconds since 1970 cannot tell any more is the end of time.
    pub fn of_ns(ns: u64) -> MirrorTime {
        MirrorTime(i64::try_from(ns).unwrap_or(i64::MAX))
    }
    /// To be stored; before 1970 is 1970.
    pub fn ns(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0)
    }
}

impl core::fmt::Display for MirrorTime {
    /// RFC 3339 in UTC, to the second.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (year, month, day) = zone::civil(self.0.div_euclid(DAY));
        let second = self.0.rem_euclid(DAY) / SECOND;
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
    }
}
