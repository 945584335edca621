//! A nanosecond before, at and after every border (S3).

use super::*;
use crate::history::retention::policy::ERAS_MAX;

const NOW: i64 = 1_795_000_000 * SECOND + 7;

/// The fates of versions that end a nanosecond before, at and after an instant.
fn ending_around(rules: &Rules, from: i64, until: i64) -> [Fate; 3] {
    [-1, 0, 1].map(|by| rules.fate(&version(from, until + by)))
}

#[test]
fn the_window() {
    let rules = rules(
        NOW,
        &eras(no_tiers(Length::hours(72)), Lock::Off),
        Vec::new(),
        false,
    );
    let border = NOW - 72 * HOUR;
    assert_eq!(
        ending_around(&rules, border - DAY, border),
        [Fate::Drop, Fate::Drop, Fate::Keep]
    );
    // Time goes on: the same version, a nanosecond before, at and after the moment it may go.
    let old = version(NOW - DAY, NOW);
    let at = |now| {
        super::rules(
            now,
            &eras(no_tiers(Length::hours(72)), Lock::Off),
            Vec::new(),
            false,
        )
        .fate(&old)
    };
    let gone = NOW + 72 * HOUR;
    assert_eq!(
        [at(gone - 1), at(gone), at(gone + 1)],
        [Fate::Keep, Fate::Drop, Fate::Drop]
    );
    // No window: even what was replaced just now goes; what is current for some reason stays.
    let rules = super::rules(
        NOW,
        &eras(no_tiers(Length::ZERO), Lock::Off),
        Vec::new(),
        false,
    );
    assert_eq!(
        ending_around(&rules, 0, NOW),
        [Fate::Drop, Fate::Drop, Fate::Keep]
    );
    // The clock was behind once: what is later than now is kept.
    assert_eq!(rules.fate(&version(NOW + DAY, NOW + 2 * DAY)), Fate::Keep);
}

#[test]
fn each_tier() {
    let since = |zone: &Zone, now, period, length| {
        zone.starts(
            period,
            zone.before(MirrorTime(now), length),
            MirrorTime(now),
        )
    };
    for period in Period::ALL {
        let mut policy = no_tiers(Length::ZERO);
        policy.set(period.tier(), "3mo").unwrap();
        let now = utc(2026, 11, 23, 4);
        let kept = since(&Zone::utc(), now, period, Length::months(3));
        assert_eq!(
            kept[0].0,
            match period {
                Period::Hour => utc(2026, 8, 23, 4),
                Period::Day | Period::Week => utc(2026, 8, 24, 0),
                Period::Month => utc(2026, 9, 1, 0),
            }
        );
        let rules = rules(now, &eras(policy, Lock::Off), Vec::new(), false);
        let name = period.tier();
        for at in kept.into_iter().filter(|at| at.0 < now) {
            // It ends at the instant: the next one is the state of that instant. So does what begins later.
            let around = ending_around(&rules, at.0 - 1, at.0);
            assert_eq!(around, [Fate::Drop, Fate::Drop, Fate::Keep], "{name} {at}");
            let begins = [-1, 0, 1].map(|by| rules.fate(&version(at.0 + by, at.0 + 2)));
            assert_eq!(begins, [Fate::Keep, Fate::Keep, Fate::Drop], "{name} {at}");
            assert_eq!(names(&rules, &version(at.0, at.0 + 1)), name);
        }
    }
}

#[test]
fn an_instant_leaves_its_tier() {
    let mut policy = no_tiers(Length::ZERO);
    policy.set("hourly", "7d").unwrap();
    let hour = utc(2026, 11, 23, 4);
    let short = version(hour, hour + 1);
    let at = |now| rules(now, &eras(policy.clone(), Lock::Off), Vec::new(), false).fate(&short);
    let gone = hour + 7 * DAY;
    assert_eq!(
        [at(gone - 1), at(gone), at(gone + 1)],
        [Fate::Keep, Fate::Keep, Fate::Drop]
    );
    // Before the hour has come there is nothing to keep, but such a version cannot have ended either.
    assert_eq!(at(hour), Fate::Keep);
}

#[test]
fn by_the_clock_on_the_wall_both_ways() {
    let mut policy = no_tiers(Length::ZERO);
    policy.set("daily", "35d").unwrap();
    policy.set("monthly", "24m").unwrap();
    for (now, midnights) in [
        (
            utc(2026, 4, 10, 12),
            [utc(2026, 3, 28, 23), utc(2026, 3, 29, 22)],
        ),
        (
            utc(2026, 11, 10, 12),
            [utc(2026, 10, 24, 22), utc(2026, 10, 25, 23)],
        ),
    ] {
        let rules = rules_in(
            now,
            &eras(policy.clone(), Lock::Off),
            Vec::new(),
            false,
            &berlin(),
        );
        for at in midnights {
            let around = ending_around(&rules, at - 1, at);
            assert_eq!(
                around,
                [Fate::Drop, Fate::Drop, Fate::Keep],
                "{}",
                MirrorTime(at)
            );
            // An hour before or after, where midnight is with another offset.
            for hour in [-HOUR, HOUR] {
                assert_eq!(rules.fate(&version(at + hour, at + hour + 1)), Fate::Drop);
            }
        }
    }
    // The first of a month is both.
    let first = utc(2026, 10, 31, 23);
    let rules = rules_in(
        utc(2026, 11, 10, 12),
        &eras(policy, Lock::Off),
        Vec::new(),
        false,
        &berlin(),
    );
    assert_eq!(names(&rules, &version(first, first + 1)), "daily monthly");
}

#[test]
fn the_defaults_in_one_line_each() {
    let rules = rules(NOW, &eras(Policy::default(), Lock::Off), Vec::new(), false);
    let said: Vec<String> = [
        // Within the window, over a full hour or not.
        (NOW - 2 * HOUR, NOW - HOUR),
        (NOW - 10, NOW - 5),
        // Four days ago: an hour that has one, and one that has none.
        (NOW - 4 * DAY, NOW - 4 * DAY + HOUR),
        (NOW - 4 * DAY, NOW - 4 * DAY + 1),
        (NOW - 20 * DAY, NOW - 19 * DAY),
        (NOW - 60 * DAY, NOW - 53 * DAY),
        (NOW - 400 * DAY, NOW - 360 * DAY),
        (NOW - 2000 * DAY, NOW - 1000 * DAY),
    ]
    .into_iter()
    .map(|(from, until)| names(&rules, &version(from, until)))
    .collect();
    let expected = [
        "every hourly",
        "every",
        "hourly",
        "",
        "daily",
        "weekly",
        "monthly",
        "",
    ];
    assert_eq!(said, expected);
}

#[test]
fn positions() {
    let policy = no_tiers(Length::ZERO);
    let old = version(0, 1);
    let kept = |at, kind| {
        let point = Point {
            at: position(at),
            label: "x".into(),
            kind,
        };
        let rules = rules(
            NOW,
            &eras(policy.clone(), Lock::Off),
            alloc::vec![point],
            false,
        );
        (rules.fate(&old) == Fate::Keep, names(&rules, &old))
    };
    let named = PointKind::Snapshot { hold: false };
    let nothing = (false, String::new());
    // The version was current at 10 to 19.
    assert_eq!(kept(9, named), nothing);
    assert_eq!(kept(10, named), (true, "snapshot".into()));
    assert_eq!(
        kept(19, PointKind::Snapshot { hold: true }),
        (true, "hold".into())
    );
    assert_eq!(kept(20, named), nothing);
    // Another epoch is later, whatever its sequence.
    let rules = rules(
        NOW,
        &eras(policy.clone(), Lock::Off),
        alloc::vec![Point {
            at: Moment::of(Position {
                epoch: 2,
                sequence: 15
            }),
            label: "x".into(),
            kind: named
        }],
        false,
    );
    assert_eq!(rules.fate(&old), Fate::Drop);
    let alarm = |until| {
        kept(
            15,
            PointKind::Alarm {
                until: MirrorTime(until),
            },
        )
    };
    assert_eq!(alarm(NOW - 1), nothing);
    assert_eq!(alarm(NOW), nothing);
    assert_eq!(alarm(NOW + 1), (true, "alarm".into()));
}

#[test]
fn a_promise_binds_what_was_current_while_it_was_in_force() {
    let changed = NOW - 50 * DAY;
    for (lock, force, fate) in [
        (Lock::Off, false, Fate::Drop),
        (Lock::Governance, false, Fate::Keep),
        (Lock::Governance, true, Fate::Forced),
        (Lock::Compliance, false, Fate::Keep),
        (Lock::Compliance, true, Fate::Keep),
    ] {
        // Shorter from then on, and the lock is taken away, too.
        let mut eras = eras(no_tiers(Length::days(100)), lock);
        let change = |eras: &mut Eras, now| {
            eras.change(
                no_tiers(Length::days(1)),
                Lock::Off,
                MirrorTime(now),
                MirrorTime(0),
            )
        };
        assert_eq!(change(&mut eras, changed), Ok(true));
        assert_eq!(change(&mut eras, changed + 1), Ok(false));
        let rules = rules(NOW, &eras, Vec::new(), force);
        let fates = [-1, 0, 1].map(|by| rules.fate(&version(changed + by, changed + 5)));
        assert_eq!(fates, [fate, Fate::Drop, Fate::Drop], "{lock} {force}");
        // And only as long as was promised.
        let promised = NOW - 100 * DAY;
        let ends = ending_around(&rules, 0, promised);
        assert_eq!(ends, [Fate::Drop, Fate::Drop, fate], "{lock} {force}");
        if lock != Lock::Off {
            assert_eq!(names(&rules, &version(0, promised + 1)), "promise");
            let why = rules.explain(&version(0, promised + 1))[0].to_string();
            assert!(
                why.starts_with("promise (") && why.ends_with(": every state of the last days"),
                "{why}"
            );
        }
    }
}

#[test]
fn a_longer_policy_counts_at_once_and_for_all_there_is() {
    let mut eras = eras(no_tiers(Length::days(1)), Lock::Compliance);
    eras.change(
        no_tiers(Length::days(100)),
        Lock::Compliance,
        MirrorTime(NOW),
        MirrorTime(0),
    )
    .unwrap();
    let rules = rules(NOW, &eras, Vec::new(), false);
    assert_eq!(rules.fate(&version(0, NOW - 99 * DAY)), Fate::Keep);
    assert_eq!(rules.fate(&version(0, NOW - 100 * DAY)), Fate::Drop);
}

#[test]
fn eras_follow_each_other_and_end() {
    let mut eras = eras(no_tiers(Length::days(1)), Lock::Compliance);
    let days = |n: usize| no_tiers(Length::days(n as i64 + 2));
    for n in 0..ERAS_MAX - 1 {
        let at = MirrorTime(n as i64 * 10 + 10);
        assert_eq!(
            eras.change(days(n), Lock::Compliance, at, MirrorTime(0)),
            Ok(true)
        );
    }
    let before = eras.clone();
    let full = eras.change(days(999), Lock::Off, MirrorTime(NOW), MirrorTime(0));
    assert!(full.unwrap_err().contains("still bind"));
    assert_eq!(eras, before);
    // What was current under the oldest is gone: the first era ended at 10.
    assert_eq!(
        eras.change(days(999), Lock::Off, MirrorTime(NOW), MirrorTime(10)),
        Ok(true)
    );
    assert_eq!(eras.all().len(), ERAS_MAX);
    // Nothing is promised any more when all of it is gone, and a clock that went back does no harm.
    assert_eq!(
        eras.change(days(5), Lock::Off, MirrorTime(5), MirrorTime(NOW)),
        Ok(true)
    );
    assert_eq!(eras.all().len(), 1);
    assert_eq!(eras.present().since, MirrorTime(NOW));
    // What is stored is believed only if it makes sense.
    let era = |since, until: Option<i64>| Era {
        policy: days(1),
        lock: Lock::Governance,
        since: MirrorTime(since),
        until: until.map(MirrorTime),
    };
    for bad in [
        alloc::vec![],
        alloc::vec![era(0, Some(5))],
        alloc::vec![era(0, None), era(5, None)],
        alloc::vec![era(0, Some(6)), era(5, None)],
        alloc::vec![era(5, Some(4)), era(5, None)],
    ] {
        assert!(Eras::restore(bad.clone()).is_err(), "{bad:?}");
    }
    assert!(Eras::restore(alloc::vec![era(0, Some(5)), era(5, None)]).is_ok());
}

#[test]
fn settings_are_read_as_they_are_written() {
    let mut policy = Policy::default();
    let written = policy
        .settings()
        .map(|(key, value)| alloc::format!("{key}={value}"))
        .join(" ");
    assert_eq!(
        written,
        "every=72h hourly=1w daily=5w weekly=13w monthly=2y"
    );
    policy.set("every", "1d").unwrap();
    policy.set("daily", "none").unwrap();
    let mut again = Policy::default();
    for (key, value) in policy.settings() {
        again.set(key, &value).unwrap();
    }
    assert_eq!(again, policy);
    for (key, text, says) in [
        ("every", "30m", "every: 30m may be minutes or months"),
        (
            "hourly",
            "11y",
            "hourly: 11y is too long for every hour: at most 10y",
        ),
        ("yearly", "1y", "yearly is no tier: every, hourly"),
        ("daily", "week", "daily: week is no length of time"),
    ] {
        let why = policy.set(key, text).unwrap_err();
        assert!(why.starts_with(says), "{why}");
    }
    assert_eq!(policy, again);
    assert_eq!(
        Lock::ALL.map(|lock| Lock::parse(lock.name())),
        Lock::ALL.map(Ok)
    );
    assert!(
        Lock::parse("on")
            .unwrap_err()
            .contains("on is no lock: off, governance")
    );
}
