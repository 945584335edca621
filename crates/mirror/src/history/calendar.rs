//! Time zones of the host's database, as retention reckons with them.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use mirror_core::escape;
use mirror_core::history::retention::{MirrorTime, Zone};

/// The longest length that retention knows, and a bit.
const YEARS: i64 = 101;
/// No zone has changed its offset more often in that time.
const CHANGES_MAX: usize = 2000;

/// A time zone by its name. `UTC` is there without any database.
pub fn named(name: &str) -> Result<TimeZone, String> {
    if name.eq_ignore_ascii_case("utc") {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| {
        let name = escape(name.as_bytes());
        format!(
            "{name} is no time zone that this host knows: write one such as Europe/Berlin (`timedatectl list-timezones`), or UTC"
        )
    })
}

/// Its offsets over the years that retention can ask about at `now`.
pub fn zone(zone: &TimeZone, now: MirrorTime) -> Zone {
    let now = Timestamp::from_nanosecond(i128::from(now.0)).unwrap_or(Timestamp::UNIX_EPOCH);
    let seconds = YEARS * 31_556_952;
    let first = now
        .checked_sub(Span::new().seconds(seconds))
        .unwrap_or(Timestamp::UNIX_EPOCH);
    let offset_ns = |offset: jiff::tz::Offset| i64::from(offset.seconds()) * 1_000_000_000;
    let changes = zone
        .following(first)
        .take_while(|change| change.timestamp() <= now)
        .take(CHANGES_MAX)
        .filter_map(|change| {
            let at = i64::try_from(change.timestamp().as_nanosecond()).ok()?;
            Some((at, offset_ns(change.offset())))
        });
    Zone::new(offset_ns(zone.to_offset(first)), changes)
}

/// By name, as `Rules::new` asks for it.
pub fn zone_named(name: &str, now: MirrorTime) -> Result<Zone, String> {
    Ok(zone(&named(name)?, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use mirror_core::history::Moment;
    use mirror_core::history::retention::{
        Eras, Fate, Length, Lock, Period, Policy, Rules, Version,
    };

    /// Rules without a database: Central Europe, Lord Howe (half an hour), Chile (midnight is skipped or comes twice).
    const ZONES: [&str; 4] = [
        "CET-1CEST,M3.5.0,M10.5.0/3",
        "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
        "<-04>4<-03>,M9.1.6/24,M4.1.6/24",
        "EST5EDT,M3.2.0,M11.1.0",
    ];

    fn posix(text: &str) -> TimeZone {
        TimeZone::posix(text).unwrap()
    }

    fn ns(time: Timestamp) -> MirrorTime {
        MirrorTime(i64::try_from(time.as_nanosecond()).unwrap())
    }

    /// Each day's first instant as jiff finds it.
    fn midnights(zone: &TimeZone, from: jiff::civil::Date, days: usize) -> Vec<MirrorTime> {
        let of = |day: jiff::civil::Date| {
            ns(day
                .to_zoned(zone.clone())
                .unwrap()
                .start_of_day()
                .unwrap()
                .timestamp())
        };
        from.series(Span::new().days(1))
            .take(days)
            .map(of)
            .collect()
    }

    #[test]
    fn days_begin_where_jiff_says_so() {
        for text in ZONES {
            let tz = posix(text);
            let all = midnights(&tz, date(2025, 1, 1), 800);
            let now = *all.last().unwrap();
            let starts = zone(&tz, now).starts(Period::Day, all[0], now);
            assert_eq!(starts, all, "{text}");
        }
    }

    #[test]
    fn hours_months_and_lengths_over_a_century() {
        for text in ZONES {
            let tz = posix(text);
            let now = date(2026, 11, 23)
                .at(4, 30, 0, 0)
                .to_zoned(tz.clone())
                .unwrap();
            let known = zone(&tz, ns(now.timestamp()));
            for months in [1, 7, 24, 1200] {
                let before = now.checked_sub(Span::new().months(months)).unwrap();
                let length = Length::months(u32::try_from(months).unwrap());
                assert_eq!(
                    known.before(ns(now.timestamp()), length),
                    ns(before.timestamp()),
                    "{text} {months}"
                );
            }
            // Each full hour of two years is one, by the clock on the wall; none is left out but by a change.
            let from = ns(now.checked_sub(Span::new().months(24)).unwrap().timestamp());
            let starts = known.starts(Period::Hour, from, ns(now.timestamp()));
            for two in starts.windows(2) {
                let of = |at: MirrorTime| {
                    Timestamp::from_nanosecond(i128::from(at.0))
                        .unwrap()
                        .to_zoned(tz.clone())
                };
                assert_eq!((of(two[0]).minute(), of(two[0]).second()), (0, 0), "{text}");
                let minutes = (two[1].0 - two[0].0) / 60_000_000_000;
                let changed = of(two[0]).offset() != of(two[1]).offset();
                assert!(
                    minutes == 60 || (changed && (30..=90).contains(&minutes)),
                    "{text} {minutes}"
                );
            }
        }
    }

    /// S3: a nanosecond before, at and after midnight, on the days around both changes, kept a day each.
    #[test]
    fn the_border_of_a_day_over_both_changes() {
        let mut policy = Policy {
            every: Length::ZERO,
            hourly: Length::ZERO,
            weekly: Length::ZERO,
            monthly: Length::ZERO,
            ..Policy::default()
        };
        policy.set("daily", "35d").unwrap();
        for text in ZONES {
            let tz = posix(text);
            for (year, month) in [(2026, 3), (2026, 4), (2026, 9), (2026, 10), (2026, 11)] {
                let midnights = midnights(&tz, date(year, month, 1), 28);
                let now = MirrorTime(midnights[27].0 + 1);
                let eras = Eras::new(policy.clone(), Lock::Off, MirrorTime(0));
                let known = |_: &str| Ok::<_, ()>(zone(&tz, now));
                let rules = Rules::new(now, &eras, Vec::new(), false, known).unwrap();
                for at in midnights {
                    let fates = [-1, 0, 1].map(|by| {
                        rules.fate(&Version {
                            from: MirrorTime(at.0 - 1),
                            until: MirrorTime(at.0 + by),
                            a: Moment(1),
                            z: Moment(2),
                        })
                    });
                    assert_eq!(fates, [Fate::Drop, Fate::Drop, Fate::Keep], "{text} {at}");
                }
            }
        }
    }

    #[test]
    fn zones_by_name() {
        let now = MirrorTime(1_795_000_000_000_000_000);
        assert_eq!(zone_named("UTC", now), Ok(Zone::utc()));
        let why = zone_named("Mars/Olympus\n", now).unwrap_err();
        assert!(
            why.starts_with("Mars/Olympus\\x0a is no time zone that this host knows"),
            "{why}"
        );
        let Ok(berlin) = named("Europe/Berlin") else {
            println!("skipped: no time zone database here");
            return;
        };
        let (berlin, same) = (zone(&berlin, now), zone(&posix(ZONES[0]), now));
        let from = MirrorTime(now.0 - 3 * 365 * 86_400_000_000_000);
        for period in Period::ALL {
            assert_eq!(
                berlin.starts(period, from, now),
                same.starts(period, from, now)
            );
        }
        // Nothing is too early or too late for it.
        for now in [i64::MIN, 0, i64::MAX] {
            zone_named("Europe/Berlin", MirrorTime(now)).unwrap();
        }
    }
}
