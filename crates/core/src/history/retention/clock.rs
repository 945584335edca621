//! The backup's retention clock: what time it is for everything that is kept or dropped.
//!
//! The wall clock can be set by anybody who can answer an NTP query, or by a typing mistake; kept history must survive
//! both. So this clock goes by the kernel's time since boot, which nobody can set, and the wall clock only draws it
//! gently to where it should be. No worker's time ever gets in here.

use super::policy::Lock;
use super::{DAY, MINUTE, MirrorTime};

/// Behind the wall it catches up by at most one part in so many: what is promised for 35 days is shorter by 25 minutes
/// at most, whoever sets the wall clock.
pub const GAIN_ONE_IN: i64 = 2000;
/// Ahead of the wall it waits: it loses one part in so many. That only keeps things longer.
pub const LOSE_ONE_IN: i64 = 100;
/// Over a reboot only the wall clock can say how long the host was off; under a lock it is believed up to here.
pub const OFF_LOCKED_MAX: i64 = DAY;
/// And without a lock up to here.
pub const OFF_MAX: i64 = 35 * DAY;
/// The wall clock differs by so much from what the kernel's time explains: told.
pub const JUMP_MIN: i64 = MINUTE;

/// What the host's clocks show, read one right after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Nanoseconds since 1970 (`CLOCK_REALTIME`).
    pub wall: i64,
    /// Nanoseconds since the host booted, sleep included (`CLOCK_BOOTTIME`).
    pub since_boot: i64,
    /// The kernel's random boot id.
    pub boot: [u8; 16],
}

/// The clock; what is in it is stored, and is all there is to store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    pub time: MirrorTime,
    /// What it was last fed with.
    pub last: Sample,
}

/// The wall clock did something that time does not explain. Told once for each jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// It jumped ahead by so many nanoseconds. (Over a reboot: by so much more than is believed.)
    Ahead(i64),
    /// It jumped back by so many.
    Back(i64),
}

impl Clock {
    /// On a host without any history: the wall's time is as good as any.
    pub fn begin(sample: Sample) -> Clock {
        Clock {
            time: MirrorTime(sample.wall),
            last: sample,
        }
    }

    /// When the stored state is lost, but there is history: its latest time is all that is known, and the wall is
    /// believed as over a reboot.
    pub fn recover(latest: MirrorTime, sample: Sample, lock: Lock) -> (Clock, Option<Suspicion>) {
        let (step, suspicion) = off(sample.wall.saturating_sub(latest.0), lock);
        let time = MirrorTime(latest.0.saturating_add(step));
        (Clock { time, last: sample }, suspicion)
    }

    /// History cannot end after now: after a crash the catalogue may be ahead of the stored clock.
    pub fn at_least(&mut self, time: MirrorTime) {
        self.time = self.time.max(time);
    }

    /// Goes on to what `sample` says. Never goes back, whatever it says.
    ///
    /// Law: on one boot, over any samples and restarts of the process, it moves by the time since boot, at most
    /// 1/[`LOSE_ONE_IN`] less and 1/[`GAIN_ONE_IN`] more. Over a reboot it moves by the new time since boot, and by
    /// at most [`OFF_LOCKED_MAX`] or [`OFF_MAX`] more.
    pub fn advance(&mut self, sample: Sample, lock: Lock) -> Option<Suspicion> {
        let by_wall = sample.wall.saturating_sub(self.last.wall);
        let (step, suspicion) =
            if sample.boot == self.last.boot && sample.since_boot >= self.last.since_boot {
                let passed = sample.since_boot.saturating_sub(self.last.since_boot);
                let ahead = sample
                    .wall
                    .saturating_sub(self.time.0)
                    .saturating_sub(passed);
                let drawn = ahead.clamp(-(passed / LOSE_ONE_IN), passed / GAIN_ONE_IN);
                (
                    passed.saturating_add(drawn),
                    jump(by_wall.saturating_sub(passed)),
                )
            } else {
                // A saved virtual machine that goes on brings an earlier time of the same boot back: that explains nothing.
                let passed = match sample.boot == self.last.boot {
                    true => 0,
                    false => sample.since_boot.max(0),
                };
                let (off, suspicion) = off(by_wall.saturating_sub(passed), lock);
                (passed.saturating_add(off), suspicion)
            };
        self.time = MirrorTime(self.time.0.saturating_add(step));
        self.last = sample;
        suspicion
    }

    /// An operator says that the wall is right and this clock is behind it: goes on to the wall's time. What was kept
    /// gets older by that, so a lock forbids it. Says whether it was done; there is no going back.
    pub fn trust_wall(&mut self, lock: Lock, force: bool) -> bool {
        if lock.holds(force) {
            return false;
        }
        self.time = self.time.max(MirrorTime(self.last.wall));
        true
    }
}

/// How much is believed of what the wall clock says about a time in which nothing ran.
fn off(by_wall: i64, lock: Lock) -> (i64, Option<Suspicion>) {
    let max = match lock {
        Lock::Off => OFF_MAX,
        Lock::Governance | Lock::Compliance => OFF_LOCKED_MAX,
    };
    let believed = by_wall.clamp(0, max);
    (believed, jump(by_wall.saturating_sub(believed)))
}

fn jump(unexplained: i64) -> Option<Suspicion> {
    match unexplained {
        JUMP_MIN.. => Some(Suspicion::Ahead(unexplained)),
        n if n <= -JUMP_MIN => Some(Suspicion::Back(n.saturating_neg())),
        _ => None,
    }
}
