//! The free space that a worker leaves alone on the file system of its state, so that it never fills `/var`.
//!
//! Below it the log may keep only what still fits, whoever wants it; is that not enough, capture ends, and begins with a
//! look at everything once there is room again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cli::parse;

/// Unless somebody says otherwise: a twentieth of the file system, but no more than this.
const USUAL_BYTES_MAX: u64 = 1 << 30;
const USUAL_PERCENT: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Floor {
    #[default]
    Usual,
    Bytes(u64),
    Percent(u8),
}

/// Of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub free: u64,
    pub total: u64,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Plenty,
    /// Log and contents may take so many bytes together.
    Tight(u64),
}

impl Floor {
    /// `1G`, `5%`, or `0` for none.
    pub fn parse(text: &str) -> Result<Floor, String> {
        if let Some(percent) = text.trim().strip_suffix('%') {
            return match percent.trim().parse::<u8>() {
                Ok(percent) if percent <= 90 => Ok(Floor::Percent(percent)),
                _ => Err(format!("{text:?} is no share: write 1% to 90%")),
            };
        }
        parse::size(text).map(Floor::Bytes).map_err(|e| e.0)
    }

    pub fn show(self) -> String {
        match self {
            Floor::Usual => "5% or 1G, whichever is less".into(),
            Floor::Bytes(bytes) => parse::show_rate(bytes),
            Floor::Percent(percent) => format!("{percent}%"),
        }
    }

    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Floor::Usual => (total / 100 * USUAL_PERCENT).min(USUAL_BYTES_MAX),
            Floor::Bytes(bytes) => bytes,
            Floor::Percent(percent) => total / 100 * u64::from(percent),
        }
    }

    /// `taken`: what log and contents take now.
    pub fn judge(self, room: Room, taken: u64) -> Verdict {
        let floor = self.bytes(room.total);
        if room.free >= floor {
            return Verdict::Plenty;
        }
        Verdict::Tight(taken.saturating_sub(floor - room.free))
    }

    /// Whether capture may begin again: a little more than where it ended.
    pub fn has_room(self, room: Room) -> bool {
        let floor = self.bytes(room.total);
        room.free >= floor.saturating_add(floor / 10)
    }
}

/// Of the file system that `dir` is on, as far as this process may use it.
pub fn room(dir: &Path) -> Option<Room> {
    let found = rustix::fs::statvfs(dir).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(Room {
        free: bytes(found.f_bavail),
        total: bytes(found.f_blocks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        assert_eq!(Floor::parse("2G"), Ok(Floor::Bytes(2 << 30)));
        assert_eq!(Floor::parse(" 7 %"), Ok(Floor::Percent(7)));
        assert_eq!(Floor::parse("0"), Ok(Floor::Bytes(0)));
        assert!(Floor::parse("99%").is_err() && Floor::parse("much").is_err());
    }

    #[test]
    fn below_the_floor_only_what_fits_is_kept() {
        let room = |free| Room {
            free,
            total: 100 << 30,
        };
        assert_eq!(Floor::Usual.bytes(100 << 30), 1 << 30);
        assert_eq!(Floor::Usual.bytes(1 << 30), (1 << 30) / 100 * 5);
        assert_eq!(Floor::Usual.judge(room(1 << 30), 7), Verdict::Plenty);
        let short = room((1 << 30) - 100);
        assert_eq!(Floor::Usual.judge(short, 1000), Verdict::Tight(900));
        assert_eq!(Floor::Usual.judge(short, 50), Verdict::Tight(0));
        assert_eq!(Floor::Bytes(0).judge(room(0), 50), Verdict::Plenty);
        assert!(!Floor::Usual.has_room(room(1 << 30)));
        assert!(Floor::Usual.has_room(room(2 << 30)));
    }
}
