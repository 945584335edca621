//! Many versions, policies, snapshots and zones by chance: what goes is exactly what no kept state needs (S4).

use proptest::prelude::*;

use super::*;

/// One file: when each version was replaced, and at which position. The versions follow each other without a gap.
#[derive(Debug, Clone)]
struct File {
    versions: Vec<Version>,
}

impl File {
    /// The version that was current at an instant: found by going through all.
    fn at(&self, instant: i64) -> Option<usize> {
        let shows = |v: &Version| v.from.0 <= instant && instant < v.until.0;
        self.versions.iter().position(shows)
    }
    fn at_position(&self, at: Moment) -> Option<usize> {
        self.versions.iter().position(|v| v.a <= at && at < v.z)
    }
}

/// Every instant at which a state is kept by a policy at `now`, as a person would go through them.
fn instants(policy: &Policy, zone: &Zone, now: i64) -> Vec<i64> {
    let mut kept = Vec::new();
    for period in Period::ALL {
        let length = policy.tier(period);
        if length.is_zero() {
            continue;
        }
        let oldest = zone.before(MirrorTime(now), length).0;
        let shown = |at: i64| match period {
            Period::Hour => zone.local(at).div_euclid(HOUR),
            Period::Day => zone.local(at).div_euclid(DAY),
            Period::Week => (zone.local(at).div_euclid(DAY) + 3).div_euclid(7),
            Period::Month => {
                let (year, month, _) = zone::civil(zone.local(at).div_euclid(DAY));
                year * 12 + month
            }
        };
        let mut at = oldest - oldest.rem_euclid(STEP) - 2 * DAY;
        let mut latest = shown(at);
        while at <= now {
            let begins = match period {
                Period::Hour => zone.local(at).rem_euclid(HOUR) == 0,
                _ => shown(at) > latest,
            };
            latest = latest.max(shown(at));
            if begins && (oldest..=now).contains(&at) {
                kept.push(at);
            }
            at += STEP;
        }
    }
    kept
}

/// The versions that a policy keeps, one flag each.
fn needed(file: &File, policy: &Policy, zone: &Zone, now: i64, kept: &mut [bool]) {
    for instant in instants(policy, zone, now) {
        if let Some(n) = file.at(instant) {
            kept[n] = true;
        }
    }
    // Every state that was to be seen at some instant of the window, if only by its position.
    let window = zone.before(MirrorTime(now), policy.every).0;
    for (kept, version) in kept.iter_mut().zip(&file.versions) {
        let (from, until) = (version.from.0, version.until.0);
        let seen = from.max(window) < until;
        *kept |= seen || (from == until && from > window);
    }
}

const NOW: i64 = 20_750 * DAY + 15 * HOUR + 17 * MINUTE + 3;

/// In the zones used here nothing begins in between.
const STEP: i64 = 30 * MINUTE;

fn length(max_hours: i64) -> impl Strategy<Value = Length> {
    prop_oneof![
        1 => Just(Length::ZERO),
        4 => (1..=max_hours).prop_map(Length::hours),
        1 => (1..=2u32).prop_map(Length::months),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    (
        length(60),
        length(100),
        length(24 * 20),
        length(24 * 40),
        length(24 * 70),
    )
        .prop_map(|(every, hourly, daily, weekly, monthly)| Policy {
            // A window of months would keep all of it.
            every: if every.months > 0 {
                Length::ZERO
            } else {
                every
            },
            hourly,
            daily,
            weekly,
            monthly,
            timezone: "UTC".into(),
        })
}

/// An instant up to 80 days ago: any, or one next to a full hour, which is where things go wrong.
fn instant() -> impl Strategy<Value = i64> {
    prop_oneof![
        (0..80 * DAY).prop_map(|ago| NOW - ago),
        (0i64..80 * 24, -1i64..=1).prop_map(|(hours, by)| {
            let at = NOW - hours * HOUR;
            at - at.rem_euclid(HOUR) + by
        }),
        // Exactly so many hours ago: the border of a length.
        (0i64..100, -1i64..=1).prop_map(|(hours, by)| NOW - hours * HOUR + by),
    ]
}

fn file() -> impl Strategy<Value = File> {
    proptest::collection::vec((instant(), 1u64..4), 2..30).prop_map(|mut changes| {
        changes.sort();
        let mut sequence = 100;
        let mut ends: Vec<(i64, u64)> = Vec::new();
        for (at, by) in changes {
            sequence += by;
            ends.push((at.min(NOW), sequence));
        }
        let versions = ends.windows(2).map(|two| Version {
            from: MirrorTime(two[0].0),
            until: MirrorTime(two[1].0),
            a: position(two[0].1),
            z: position(two[1].1),
        });
        File {
            versions: versions.collect(),
        }
    })
}

fn zone() -> impl Strategy<Value = Zone> {
    prop_oneof![
        Just(Zone::utc()),
        Just(Zone::new(5 * HOUR + 30 * MINUTE, [])),
        (0i64..80 * 24, prop_oneof![Just(1i64), Just(-1)]).prop_map(|(hours, by)| {
            let at = NOW - hours * HOUR;
            Zone::new(HOUR, [(at - at.rem_euclid(HOUR), HOUR + by * HOUR)])
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_goes_is_exactly_what_nothing_needs(
        file in file(),
        (present, zone) in (policy(), zone()),
        points in proptest::collection::vec((100u64..200, 0u8..4), 0..4),
    ) {
        let points: Vec<Point> = points
            .into_iter()
            .map(|(at, kind)| match kind {
                0 => snapshot(at, "held", true),
                1 => snapshot(at, "named", false),
                past => Point {
                    at: position(at),
                    label: "mass".into(),
                    kind: PointKind::Alarm { until: MirrorTime(NOW - 1 + i64::from(past - 2) * 2) },
                },
            })
            .collect();
        let mut kept = alloc::vec![false; file.versions.len()];
        needed(&file, &present, &zone, NOW, &mut kept);
        for point in &points {
            let over = matches!(point.kind, PointKind::Alarm { until } if until.0 <= NOW);
            if let Some(n) = file.at_position(point.at).filter(|_| !over) {
                kept[n] = true;
            }
        }
        let rules = rules_in(NOW, &eras(present, Lock::Off), points, false, &zone);
        for (version, kept) in file.versions.iter().zip(kept) {
            let fate = rules.fate(version);
            prop_assert_eq!(fate == Fate::Keep, kept, "{:?}: {}", version, names(&rules, version));
            prop_assert_eq!(rules.explain(version).is_empty(), fate == Fate::Drop);
        }
    }

    /// Under a lock each policy since a version became current keeps what it would keep alone.
    #[test]
    fn promises_add_up(
        file in file(),
        policies in proptest::collection::vec((policy(), 0usize..3, 0i64..80 * 24), 1..5),
        zone in zone(),
        force in any::<bool>(),
    ) {
        let mut policies = policies;
        policies.sort_by_key(|(_, _, ago)| -ago);
        let mut eras: Option<Eras> = None;
        // All of them, with those that promised nothing: Eras may forget what never matters.
        let mut all: Vec<(Policy, Lock, i64)> = Vec::new();
        for (policy, lock, hours) in policies {
            let (lock, since) = (Lock::ALL[lock], NOW - hours * HOUR);
            match &mut eras {
                None => eras = Some(Eras::new(policy.clone(), lock, MirrorTime(since))),
                Some(eras) => {
                    eras.change(policy.clone(), lock, MirrorTime(since), MirrorTime(0)).unwrap();
                }
            }
            all.push((policy, lock, since));
        }
        let eras = eras.unwrap();
        prop_assert_eq!(Eras::restore(eras.all().to_vec()), Ok(eras.clone()));
        let rules = rules_in(NOW, &eras, Vec::new(), force, &zone);
        let mut firm = alloc::vec![false; file.versions.len()];
        let mut soft = firm.clone();
        for (n, (policy, lock, _)) in all.iter().enumerate() {
            let mut kept = alloc::vec![false; file.versions.len()];
            needed(&file, policy, &zone, NOW, &mut kept);
            // When the next one came, unless that was the same.
            let later = all.iter().skip(n + 1).find(|(p, l, _)| (p, l) != (policy, lock));
            let present = later.is_none();
            for (n, version) in file.versions.iter().enumerate() {
                let binds = later.is_none_or(|(_, _, end)| version.from.0 < *end);
                let holds = present || lock.holds(force);
                firm[n] |= kept[n] && binds && holds;
                soft[n] |= kept[n] && binds && (holds || *lock == Lock::Governance);
            }
        }
        for (n, version) in file.versions.iter().enumerate() {
            let expected = match (firm[n], soft[n]) {
                (true, _) => Fate::Keep,
                (false, true) => Fate::Forced,
                (false, false) => Fate::Drop,
            };
            prop_assert_eq!(rules.fate(version), expected, "{:?}: {}", version, names(&rules, version));
            prop_assert_eq!(rules.explain(version).is_empty(), expected == Fate::Drop);
        }
    }
}
