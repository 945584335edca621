//! What somebody chose to keep, since when, and whether it can be taken back.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::MirrorTime;
use super::length::Length;
use super::zone::Period;

/// How long the states of a tree are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Every state, down to the interval of hot files.
    pub every: Length,
    /// The states at each full hour, at the beginning of each day, week and month. Zero: no such tier.
    pub hourly: Length,
    pub daily: Length,
    pub weekly: Length,
    pub monthly: Length,
    /// Where hours, days, weeks and months begin: a name of the time zone database, or `UTC`.
    pub timezone: String,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            every: Length::hours(72),
            hourly: Length::days(7),
            daily: Length::days(35),
            weekly: Length::weeks(13),
            monthly: Length::months(24),
            timezone: "UTC".into(),
        }
    }
}

impl Policy {
    pub fn tier(&self, period: Period) -> Length {
        match period {
            Period::Hour => self.hourly,
            Period::Day => self.daily,
            Period::Week => self.weekly,
            Period::Month => self.monthly,
        }
    }

    /// Takes one setting, `every` or the name of a tier, as it is written in a configuration.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
        let told = |why| format!("{key}: {why}");
        if key == "every" {
            self.every = Length::window(text).map_err(told)?;
            return Ok(());
        }
        let Some(period) = Period::ALL.into_iter().find(|p| p.tier() == key) else {
            return Err(format!(
                "{key} is no tier: every, hourly, daily, weekly, monthly"
            ));
        };
        let length = Length::tier(text).map_err(told)?;
        // So many instants are looked through for a version at most.
        if period == Period::Hour
            && (length.months > HOURLY_MAX.months || length.nanos > HOURLY_NANOS_MAX)
        {
            return Err(format!(
                "{key}: {length} is too long for every hour: at most {HOURLY_MAX}"
            ));
        }
        *match period {
            Period::Hour => &mut self.hourly,
            Period::Day => &mut self.daily,
            Period::Week => &mut self.weekly,
            Period::Month => &mut self.monthly,
        } = length;
        Ok(())
    }

    /// The settings as [`Policy::set`] takes them.
    pub fn settings(&self) -> [(&'static str, String); 5] {
        let tier = |period: Period| (period.tier(), self.tier(period).to_string());
        let [hour, day, week, month] = Period::ALL.map(tier);
        [("every", self.every.to_string()), hour, day, week, month]
    }
}

/// Each full hour is kept for ten years at most.
const HOURLY_MAX: Length = Length::months(120);
const HOURLY_NANOS_MAX: i64 = 3653 * super::DAY;

/// What a promise is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Lock {
    /// The policy of today counts, and when room is short the oldest history goes first.
    #[default]
    Off,
    /// What was promised is kept, unless somebody says `--force`, which is logged.
    Governance,
    /// What was promised is kept.
    Compliance,
}

impl Lock {
    pub const ALL: [Lock; 3] = [Lock::Off, Lock::Governance, Lock::Compliance];

    pub fn name(self) -> &'static str {
        match self {
            Lock::Off => "off",
            Lock::Governance => "governance",
            Lock::Compliance => "compliance",
        }
    }

    pub fn parse(text: &str) -> Result<Lock, String> {
        Lock::ALL
            .into_iter()
            .find(|lock| lock.name() == text)
            .ok_or_else(|| {
                let text = crate::types::escape(text.as_bytes());
                format!("{text} is no lock: off, governance or compliance")
            })
    }

    /// Whether it holds against somebody who did or did not say `--force`.
    pub fn holds(self, force: bool) -> bool {
        match self {
            Lock::Off => false,
            Lock::Governance => !force,
            Lock::Compliance => true,
        }
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A policy, and the time in which it was in force: `[since, until)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Era {
    pub policy: Policy,
    pub lock: Lock,
    pub since: MirrorTime,
    /// `None`: still in force.
    pub until: Option<MirrorTime>,
}

/// What was in force, oldest first; the last era is the present one.
///
/// Past eras without a lock promised nothing and are not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eras(Vec<Era>);

/// A change of policy beyond so many that still bind is refused.
pub const ERAS_MAX: usize = 256;

impl Eras {
    pub fn new(policy: Policy, lock: Lock, since: MirrorTime) -> Eras {
        Eras(alloc::vec![Era {
            policy,
            lock,
            since,
            until: None
        }])
    }

    /// As they were stored. Refused when they do not follow each other, or the last one has ended.
    pub fn restore(eras: Vec<Era>) -> Result<Eras, String> {
        let mut before: Option<MirrorTime> = None;
        let last = eras.len().checked_sub(1).ok_or("there is no policy")?;
        for (n, era) in eras.iter().enumerate() {
            let ends = era.until.is_none_or(|until| era.since <= until);
            if !ends || before.is_some_and(|b| b > era.since) || era.until.is_none() != (n == last)
            {
                return Err(format!(
                    "the policy in force since {} overlaps another one",
                    era.since
                ));
            }
            before = era.until;
        }
        Ok(Eras(eras))
    }

    pub fn all(&self) -> &[Era] {
        &self.0
    }

    pub fn present(&self) -> &Era {
        match self.0.last() {
            Some(era) => era,
            None => unreachable!("made with one era, and none is taken away without another"),
        }
    }

    /// From `now` on another policy or lock is in force. `oldest`: when the oldest version that is still kept became
    /// current; eras that ended before bind nothing any more. Says whether anything changed.
    pub fn change(
        &mut self,
        policy: Policy,
        lock: Lock,
        now: MirrorTime,
        oldest: MirrorTime,
    ) -> Result<bool, String> {
        let present = self.present();
        if present.policy == policy && present.lock == lock {
            return Ok(false);
        }
        let now = now.max(present.since);
        let binds =
            |era: &&Era| era.lock != Lock::Off && era.until.is_none_or(|until| until > oldest);
        let mut eras: Vec<Era> = self.0.iter().filter(binds).cloned().collect();
        if eras.len() >= ERAS_MAX {
            return Err(format!(
                "{ERAS_MAX} policies still bind under the lock: no other one before versions of the oldest are gone"
            ));
        }
        if let Some(era) = eras.last_mut() {
            era.until = era.until.or(Some(now));
        }
        eras.push(Era {
            policy,
            lock,
            since: now,
            until: None,
        });
        self.0 = eras;
        Ok(true)
    }
}
