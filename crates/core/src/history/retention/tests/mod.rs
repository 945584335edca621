//! Retention against a brute force that looks at every instant, and its borders one by one.

mod borders;
mod brute;
mod clock;
mod space;
mod zones;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::convert::Infallible;

use super::zone::days;
use super::*;
use crate::history::Moment;
use crate::types::Position;

fn utc(year: i64, month: i64, day: i64, hour: i64) -> i64 {
    days(year, month, day) * DAY + hour * HOUR
}

fn position(sequence: u64) -> Moment {
    Moment::of(Position { epoch: 1, sequence })
}

/// Current in `[from, until)`, at positions that nothing else is said about.
fn version(from: i64, until: i64) -> Version {
    Version {
        from: MirrorTime(from),
        until: MirrorTime(until),
        a: position(10),
        z: position(20),
    }
}

fn snapshot(at: u64, label: &str, hold: bool) -> Point {
    Point {
        at: position(at),
        label: String::from(label),
        kind: PointKind::Snapshot { hold },
    }
}

fn no_tiers(every: Length) -> Policy {
    Policy {
        every,
        hourly: Length::ZERO,
        daily: Length::ZERO,
        weekly: Length::ZERO,
        monthly: Length::ZERO,
        ..Policy::default()
    }
}

fn eras(policy: Policy, lock: Lock) -> Eras {
    Eras::new(policy, lock, MirrorTime(0))
}

/// Summer time from the last Sunday of March to that of October 2026, at 01:00 UTC.
fn berlin() -> Zone {
    let changes = [
        (utc(2026, 3, 29, 1), 2 * HOUR),
        (utc(2026, 10, 25, 1), HOUR),
    ];
    Zone::new(HOUR, changes)
}

fn rules_in(now: i64, eras: &Eras, points: Vec<Point>, force: bool, zone: &Zone) -> Rules {
    let made = Rules::new(MirrorTime(now), eras, points, force, |_| {
        Ok::<Zone, Infallible>(zone.clone())
    });
    match made {
        Ok(rules) => rules,
        Err(never) => match never {},
    }
}

fn rules(now: i64, eras: &Eras, points: Vec<Point>, force: bool) -> Rules {
    rules_in(now, eras, points, force, &Zone::utc())
}

fn names(rules: &Rules, version: &Version) -> String {
    let reasons = rules.explain(version);
    let names: Vec<_> = reasons.iter().map(Reason::name).collect();
    names.join(" ")
}
