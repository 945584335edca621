//! Where hours, days, weeks and months begin: a time zone as a list of offsets, and nothing of its database.

use alloc::vec::Vec;

use super::length::Length;
use super::{DAY, HOUR, MirrorTime};

/// What a tier keeps the beginnings of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    Hour,
    Day,
    /// Begins on Monday.
    Week,
    Month,
}

impl Period {
    pub const ALL: [Period; 4] = [Period::Hour, Period::Day, Period::Week, Period::Month];

    /// The tier that keeps its beginnings.
    pub fn tier(self) -> &'static str {
        match self {
            Period::Hour => "hourly",
            Period::Day => "daily",
            Period::Week => "weekly",
            Period::Month => "monthly",
        }
    }

    /// Which period since 1970 a local time is in.
    fn index(self, local: i64) -> i64 {
        let day = local.div_euclid(DAY);
        match self {
            Period::Hour => local.div_euclid(HOUR),
            Period::Day => day,
            // 1970 began on a Thursday.
            Period::Week => (day + 3).div_euclid(7),
            Period::Month => {
                let (year, month, _) = civil(day);
                (year - 1970) * 12 + month - 1
            }
        }
    }

    /// The local time at which a period begins.
    fn begin(self, index: i64) -> i64 {
        match self {
            Period::Hour => index.saturating_mul(HOUR),
            Period::Day => index.saturating_mul(DAY),
            Period::Week => (index * 7 - 3).saturating_mul(DAY),
            Period::Month => {
                days(1970 + index.div_euclid(12), index.rem_euclid(12) + 1, 1).saturating_mul(DAY)
            }
        }
    }
}

/// A time zone over the years that retention asks about. Local times are nanoseconds since 1970-01-01 00:00 there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// From when on which offset from UTC (nanoseconds, east is positive) holds; ascending, the first from ever on.
    offsets: Vec<(i64, i64)>,
}

/// No zone was ever further from UTC than 26 hours.
const OFFSET_MAX: i64 = 26 * HOUR;

/// Nothing begins beyond: the first and the last month that nanoseconds since 1970 can tell are left out.
const EARLIEST: MirrorTime = MirrorTime(i64::MIN + 40 * DAY);
const LATEST: MirrorTime = MirrorTime(i64::MAX - 40 * DAY);

impl Zone {
    pub fn utc() -> Zone {
        Zone::new(0, [])
    }

    /// `first` is the offset before all changes; each of them is when, and to which offset. Ones that are not later
    /// than the one before are left out, offsets beyond 26 hours are cut.
    pub fn new(first: i64, changes: impl IntoIterator<Item = (i64, i64)>) -> Zone {
        let mut offsets = alloc::vec![(i64::MIN, first.clamp(-OFFSET_MAX, OFFSET_MAX))];
        for (at, offset) in changes {
            if offsets.last().is_some_and(|(before, _)| *before < at) {
                offsets.push((at, offset.clamp(-OFFSET_MAX, OFFSET_MAX)));
            }
        }
        Zone { offsets }
    }

    /// What a clock on the wall shows.
    pub fn local(&self, at: i64) -> i64 {
        let n = self.offsets.partition_point(|(since, _)| *since <= at);
        let offset = n.checked_sub(1).and_then(|n| self.offsets.get(n));
        at.saturating_add(offset.map_or(0, |(_, offset)| *offset))
    }

    /// The first instant at which the clock shows `local` or later: of a time that comes twice the first one, of one
    /// that is skipped the end of the gap.
    pub fn instant(&self, local: i64) -> i64 {
        for (n, (since, offset)) in self.offsets.iter().enumerate() {
            let until = self
                .offsets
                .get(n + 1)
                .map_or(i64::MAX, |(until, _)| *until);
            let at = local.saturating_sub(*offset).max(*since);
            if at < until {
                return at;
            }
        }
        i64::MAX
    }

    /// All beginnings in `[from, to]`, ascending.
    ///
    /// An hour begins whenever the clock shows a full one: an hour that comes twice begins twice, one that is skipped
    /// never. A day, week or month begins once, with its first instant, whether that is midnight or not.
    pub fn starts(&self, period: Period, from: MirrorTime, to: MirrorTime) -> Vec<MirrorTime> {
        let (from, to) = (from.max(EARLIEST), to.min(LATEST));
        let mut starts = Vec::new();
        // The latest period that the clock has shown.
        let mut latest = i64::MIN;
        for (n, (since, offset)) in self.offsets.iter().enumerate() {
            let until = self
                .offsets
                .get(n + 1)
                .map_or(i64::MAX, |(until, _)| *until);
            let (first, last) = ((*since).max(from.0), (until - 1).min(to.0));
            if period != Period::Hour && *since != i64::MIN {
                let index = period.index(since.saturating_add(*offset));
                // Skipped midnight: the day begins with the change. (At midnight itself the loop below finds it.)
                if index > latest && period.begin(index) < since.saturating_add(*offset) {
                    if (from.0..=to.0).contains(since) {
                        starts.push(MirrorTime(*since));
                    }
                    latest = index;
                }
            }
            if first <= last {
                let mut index = period.index(first.saturating_add(*offset));
                if period.begin(index).saturating_sub(*offset) < first {
                    index += 1;
                }
                if period != Period::Hour {
                    index = index.max(latest.saturating_add(1));
                }
                loop {
                    let at = period.begin(index).saturating_sub(*offset);
                    if at > last {
                        break;
                    }
                    starts.push(MirrorTime(at));
                    index += 1;
                }
            }
            let shown = until.saturating_sub(1).saturating_add(*offset);
            if until != i64::MAX {
                latest = latest.max(period.index(shown));
            }
            if until > to.0 {
                break;
            }
        }
        starts
    }

    /// That long before `now`: months first, by the calendar and the clock on the wall, then hours. A day that the
    /// month does not have is the end of that month.
    pub fn before(&self, now: MirrorTime, length: Length) -> MirrorTime {
        let mut at = now.0;
        if length.months > 0 {
            let local = self.local(at);
            let (year, month, day) = civil(local.div_euclid(DAY));
            let index = year * 12 + month - 1 - i64::from(length.months);
            let (year, month) = (index.div_euclid(12), index.rem_euclid(12) + 1);
            let end = days(year + month / 12, month % 12 + 1, 1);
            let there = days(year, month, day);
            at = self.instant(match there < end {
                true => there
                    .saturating_mul(DAY)
                    .saturating_add(local.rem_euclid(DAY)),
                false => end.saturating_mul(DAY),
            });
        }
        MirrorTime(at.saturating_sub(length.nanos))
    }
}

/// Year, month and day of a day since 1970.
pub(super) fn civil(day: i64) -> (i64, i64, i64) {
    // Eras of 400 years, years that begin in March: the day of the leap year is the last one.
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    (year, month, of_year - (153 * march + 2) / 5 + 1)
}

/// Days since 1970 of a date; a day beyond the month's is counted on.
pub(super) fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}
