//! Where periods begin, against walking through time minute by minute.

use proptest::prelude::*;

use super::*;

/// All of it found by looking at the clock each minute.
fn walked(zone: &Zone, period: Period, from: i64, to: i64) -> Vec<MirrorTime> {
    let index = |local: i64| -> i64 {
        let day = local.div_euclid(DAY);
        match period {
            Period::Hour => local.div_euclid(HOUR),
            Period::Day => day,
            Period::Week => (day + 3).div_euclid(7),
            Period::Month => {
                let (year, month, _) = zone::civil(day);
                year * 12 + month
            }
        }
    };
    // Offsets differ by two days at most, so nobody has shown a later period before that.
    let mut at = from - 4 * DAY;
    at -= at.rem_euclid(MINUTE);
    let mut latest = index(zone.local(at));
    let mut found = Vec::new();
    while at <= to {
        let local = zone.local(at);
        let begins = match period {
            Period::Hour => local.rem_euclid(HOUR) == 0,
            _ => index(local) > latest,
        };
        latest = latest.max(index(local));
        if begins && at >= from {
            found.push(MirrorTime(at));
        }
        at += MINUTE;
    }
    found
}

fn month_days(since_1970: i64) -> i64 {
    let (year, month) = (1970 + since_1970 / 12, since_1970 % 12 + 1);
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

#[test]
fn dates_are_what_counting_says() {
    let (mut year, mut month, mut day) = (1970, 1, 1);
    for since in 0..120_000 {
        assert_eq!(zone::civil(since), (year, month, day));
        assert_eq!(days(year, month, day), since);
        day += 1;
        if day > month_days((year - 1970) * 12 + month - 1) {
            (month, day) = (month + 1, 1);
        }
        if month > 12 {
            (year, month) = (year + 1, 1);
        }
    }
    for since in -120_000..0 {
        let (year, month, day) = zone::civil(since);
        assert_eq!(days(year, month, day), since);
    }
    assert_eq!(zone::civil(-1), (1969, 12, 31));
    assert_eq!(zone::civil(days(2000, 2, 29)), (2000, 2, 29));
}

#[test]
fn hours_and_days_over_both_changes_of_summer_time() {
    let zone = berlin();
    let day = |month, date| MirrorTime(zone.instant(utc(2026, month, date, 0)));
    // The 29th of March has 23 hours, the 25th of October 25; each hour begins an hour after the one before.
    for (month, date, hours) in [(3, 28, 24), (3, 29, 23), (10, 24, 24), (10, 25, 25)] {
        let (from, to) = (day(month, date), MirrorTime(day(month, date + 1).0 - 1));
        let starts = zone.starts(Period::Hour, from, to);
        assert_eq!(starts.len(), hours, "{date}.{month}.");
        assert!(starts.windows(2).all(|two| two[1].0 - two[0].0 == HOUR));
        assert_eq!(zone.starts(Period::Day, from, to), [from]);
        assert_eq!(to.0 + 1 - from.0, hours as i64 * HOUR);
    }
    // 02:30 is skipped, and comes twice.
    let skipped = zone.instant(utc(2026, 3, 29, 2) + 30 * MINUTE);
    assert_eq!(MirrorTime(skipped).to_string(), "2026-03-29T01:00:00Z");
    let twice = zone.instant(utc(2026, 10, 25, 2) + 30 * MINUTE);
    assert_eq!(MirrorTime(twice).to_string(), "2026-10-25T00:30:00Z");
    // Weeks begin on Monday, months on the first, by the clock on the wall.
    let of = |period, from, to| zone.starts(period, MirrorTime(from), MirrorTime(to));
    assert_eq!(
        of(Period::Week, utc(2026, 3, 20, 0), utc(2026, 4, 1, 0)),
        [
            MirrorTime(utc(2026, 3, 22, 23)),
            MirrorTime(utc(2026, 3, 29, 22))
        ]
    );
    assert_eq!(
        of(Period::Month, utc(2026, 3, 1, 0), utc(2026, 11, 1, 0)).len(),
        8
    );
}

#[test]
fn a_midnight_that_is_skipped_or_comes_twice_begins_one_day() {
    let to_summer = utc(2026, 3, 1, 3);
    // São Paulo once: 00:00 became 01:00.
    let gap = Zone::new(-3 * HOUR, [(to_summer, -2 * HOUR)]);
    let around = |zone: &Zone, period| {
        zone.starts(
            period,
            MirrorTime(to_summer - 20 * HOUR),
            MirrorTime(to_summer + 20 * HOUR),
        )
    };
    assert_eq!(around(&gap, Period::Day), [MirrorTime(to_summer)]);
    assert_eq!(around(&gap, Period::Month), [MirrorTime(to_summer)]);
    // 00:30 became 23:30: the day had begun already.
    let fold = Zone::new(-3 * HOUR, [(to_summer + 30 * MINUTE, -4 * HOUR)]);
    assert_eq!(around(&fold, Period::Day), [MirrorTime(to_summer)]);
    assert_eq!(around(&fold, Period::Month), [MirrorTime(to_summer)]);
    // 23:30 became 00:30.
    let half = Zone::new(-3 * HOUR, [(to_summer - 30 * MINUTE, -2 * HOUR)]);
    assert_eq!(
        around(&half, Period::Day),
        [MirrorTime(to_summer - 30 * MINUTE)]
    );
    // A whole day is left out (Samoa): no day begins twice, none at no time.
    let samoa = Zone::new(-10 * HOUR, [(utc(2011, 12, 30, 10), 14 * HOUR)]);
    let starts = samoa.starts(
        Period::Day,
        MirrorTime(utc(2011, 12, 28, 12)),
        MirrorTime(utc(2012, 1, 1, 0)),
    );
    let hours: Vec<i64> = starts
        .windows(2)
        .map(|two| (two[1].0 - two[0].0) / HOUR)
        .collect();
    assert_eq!(hours, [24, 24]);
    assert_eq!(starts[1], MirrorTime(utc(2011, 12, 30, 10)));
}

#[test]
fn months_go_back_by_the_calendar() {
    let zone = berlin();
    for (now, months, before) in [
        ((2026, 5, 15), 1, (2026, 4, 15)),
        ((2026, 5, 31), 1, (2026, 5, 1)),
        ((2026, 3, 28), 1, (2026, 2, 28)),
        ((2026, 3, 29), 1, (2026, 3, 1)),
        ((2024, 3, 29), 1, (2024, 2, 29)),
        ((2026, 1, 15), 1, (2025, 12, 15)),
        ((2026, 12, 31), 1, (2026, 12, 1)),
        ((2026, 1, 31), 2, (2025, 12, 1)),
        ((2026, 12, 15), 24, (2024, 12, 15)),
        ((2026, 11, 15), 1200, (1926, 11, 15)),
    ] {
        let at = |(y, m, d)| MirrorTime(zone.instant(utc(y, m, d, 0)));
        assert_eq!(
            zone.before(at(now), Length::months(months)),
            at(before),
            "{now:?} - {months}"
        );
    }
    // The same time on the wall, though the offset was another one.
    let noon = MirrorTime(zone.instant(utc(2026, 4, 10, 12)));
    let before = zone.before(noon, Length::months(1));
    assert_eq!(before.to_string(), "2026-03-10T11:00:00Z");
    let mixed = Length {
        months: 1,
        nanos: DAY,
    };
    assert_eq!(zone.before(noon, mixed).to_string(), "2026-03-09T11:00:00Z");
}

#[test]
fn nothing_overflows_at_the_ends_of_time() {
    for zone in [Zone::utc(), berlin(), Zone::new(i64::MAX, [(0, i64::MIN)])] {
        for at in [i64::MIN, i64::MIN + DAY, -1, 0, i64::MAX - DAY, i64::MAX] {
            for months in [0, 1, 1200] {
                let length = Length {
                    months,
                    nanos: length::NANOS_MAX,
                };
                assert!(zone.before(MirrorTime(at), length) <= MirrorTime(at));
            }
            for period in Period::ALL {
                let (from, to) = (
                    MirrorTime(at.saturating_sub(DAY)),
                    MirrorTime(at.saturating_add(DAY)),
                );
                assert!(zone.starts(period, from, to).len() <= 100);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Zones no country has: any offset, changed at any minute by up to a day.
    #[test]
    fn starts_are_what_the_clock_shows(
        first in -14 * 60i64..=14 * 60,
        changes in proptest::collection::vec((0i64..40 * 24 * 60, -90i64..=90, 0u8..6), 0..5),
        from in 0i64..30 * 24 * 60,
        minutes in 0i64..8 * 24 * 60,
        nudge in -1i64..=1,
    ) {
        let base = utc(2026, 2, 10, 0);
        let mut changes = changes;
        changes.sort();
        let mut offset = first;
        let changes: Vec<(i64, i64)> = changes
            .into_iter()
            .map(|(at, by, far)| {
                offset = (offset + if far == 0 { by * 16 } else { by }).clamp(-14 * 60, 14 * 60);
                (base + at * MINUTE, offset * MINUTE)
            })
            .collect();
        let zone = Zone::new(first * MINUTE, changes);
        let from = base + from * MINUTE + nudge;
        let to = from + minutes * MINUTE;
        for period in Period::ALL {
            let starts = zone.starts(period, MirrorTime(from), MirrorTime(to));
            prop_assert_eq!(&starts, &walked(&zone, period, from, to), "{:?}", period);
        }
        // The first instant that shows a local time or a later one.
        let local = zone.local(from);
        let at = zone.instant(local);
        prop_assert!(at <= from && zone.local(at) >= local);
        prop_assert!(zone.local(at - 1) < local);
    }
}
