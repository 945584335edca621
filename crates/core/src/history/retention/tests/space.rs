//! Room is short: what goes, in which order, and when following pauses instead (S12).

use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_795_000_000 * SECOND;
const GIB: u64 = 1 << 30;

#[test]
fn a_budget_in_bytes_counts_instead_of_the_share() {
    let budget = Budget {
        bytes_max: Some(100),
        ..Budget::default()
    };
    let space = |history_bytes| Space {
        history_bytes,
        total_bytes: 10,
        free_bytes: 10,
    };
    assert_eq!(budget.missing(&space(100)), 0);
    assert_eq!(budget.missing(&space(130)), 30);
}

#[test]
fn what_is_missing() {
    let budget = Budget {
        percent_max: 20,
        bytes_max: None,
        free_bytes_min: 50,
    };
    let space = |history_bytes, free_bytes| Space {
        history_bytes,
        total_bytes: 1000,
        free_bytes,
    };
    for (history, free, missing) in [
        (200, 50, 0),
        (199, 51, 0),
        (201, 50, 1),
        (200, 49, 1),
        (300, 20, 100),
        (210, 0, 50),
        (0, 0, 50),
    ] {
        assert_eq!(
            budget.missing(&space(history, free)),
            missing,
            "{history} {free}"
        );
    }
    let all = Space {
        history_bytes: u64::MAX,
        total_bytes: u64::MAX,
        free_bytes: 0,
    };
    let odd = Budget {
        percent_max: 200,
        bytes_max: None,
        free_bytes_min: 0,
    };
    assert_eq!(odd.missing(&all), 0);
}

/// A file system of 100 GiB. Somebody writes a version of 1 GiB a minute until long after the budget is reached.
/// Says which are left (the minute in which each was replaced), and how the last round ended.
fn flood(lock: Lock, points: &[Point], force: bool, minutes: i64) -> (Vec<i64>, Outcome) {
    let budget = Budget {
        percent_max: 20,
        bytes_max: None,
        free_bytes_min: 5 * GIB,
    };
    let eras = eras(no_tiers(Length::hours(1)), lock);
    let mut kept: Vec<(i64, Version)> = Vec::new();
    let mut outcome = Outcome::Enough;
    for minute in 0..minutes {
        let end = NOW + minute * MINUTE;
        let mut new = version(end - MINUTE, end);
        new.a = position(minute as u64);
        new.z = position(minute as u64 + 1);
        kept.push((minute, new));
        let rules = rules(end, &eras, points.to_vec(), force);
        kept.retain(|(_, v)| rules.fate(v) == Fate::Keep);
        let used = kept.len() as u64 * GIB;
        let missing = budget.missing(&Space {
            history_bytes: used,
            total_bytes: 100 * GIB,
            free_bytes: (100 * GIB).saturating_sub(10 * GIB + used),
        });
        let mut relief = Relief::new(&rules, missing);
        kept.retain(|(_, v)| !relief.fate(v, GIB).drops());
        outcome = relief.outcome();
        if matches!(outcome, Outcome::Pause { .. }) {
            break;
        }
    }
    (
        kept.into_iter().map(|(minute, _)| minute).collect(),
        outcome,
    )
}

#[test]
fn without_a_lock_the_oldest_goes_and_it_never_stops() {
    let (kept, outcome) = flood(Lock::Off, &[], false, 500);
    assert_eq!((kept, outcome), ((480..500).collect(), Outcome::Enough));
    // What is held stays, what is only named does not.
    let points = [snapshot(3, "named", false), snapshot(7, "held", true)];
    let (kept, outcome) = flood(Lock::Off, &points, false, 500);
    assert_eq!(kept[..2], [7, 481]);
    assert_eq!((kept.len(), outcome), (20, Outcome::Enough));
}

#[test]
fn with_a_lock_it_pauses_with_everything_promised_intact() {
    for lock in [Lock::Governance, Lock::Compliance] {
        let (kept, outcome) = flood(lock, &[], false, 500);
        assert_eq!(kept, (0..21).collect::<Vec<_>>(), "{lock}");
        assert_eq!(outcome, Outcome::Pause { missing: GIB });
    }
    let (kept, outcome) = flood(Lock::Governance, &[], true, 500);
    assert_eq!((kept, outcome), ((480..500).collect(), Outcome::Enough));
    let (kept, _) = flood(Lock::Compliance, &[], true, 500);
    assert_eq!(kept, (0..21).collect::<Vec<_>>());
}

#[test]
fn only_what_is_held_is_left_and_following_goes_on() {
    let points: Vec<Point> = (0..30).map(|at| snapshot(at, "held", true)).collect();
    let (kept, outcome) = flood(Lock::Off, &points, false, 30);
    assert_eq!(kept, (0..30).collect::<Vec<_>>());
    assert_eq!(outcome, Outcome::Short { missing: 10 * GIB });
}

#[test]
fn what_was_promised_once_is_intact_though_the_lock_is_off() {
    let mut eras = eras(no_tiers(Length::days(10)), Lock::Compliance);
    eras.change(
        no_tiers(Length::days(10)),
        Lock::Off,
        MirrorTime(NOW),
        MirrorTime(0),
    )
    .unwrap();
    let rules = rules(NOW + DAY, &eras, Vec::new(), true);
    let mut relief = Relief::new(&rules, 10);
    assert_eq!(relief.fate(&version(NOW - 1, NOW), 4), Fate::Keep);
    assert_eq!(relief.fate(&version(NOW, NOW + 1), 4), Fate::ForSpace);
    assert_eq!(relief.outcome(), Outcome::Pause { missing: 6 });
    // Enough has gone: the rest is left alone.
    assert_eq!(relief.fate(&version(NOW, NOW + 2), 7), Fate::ForSpace);
    assert_eq!(relief.fate(&version(NOW, NOW + 3), 7), Fate::Keep);
    assert_eq!(relief.outcome(), Outcome::Enough);
}

#[test]
fn force_is_told_wherever_it_was_needed() {
    let eras = eras(no_tiers(Length::days(10)), Lock::Governance);
    let points = alloc::vec![snapshot(15, "named", false)];
    let rules = rules(NOW, &eras, points, true);
    assert!(!rules.locked());
    assert_eq!(rules.fate_for_space(&version(NOW - DAY, NOW)), Fate::Forced);
    // Old, but named: the lock would have kept it.
    assert_eq!(rules.fate_for_space(&version(0, 1)), Fate::Forced);
    let other = Version {
        a: position(30),
        z: position(31),
        ..version(0, 1)
    };
    assert_eq!(rules.fate_for_space(&other), Fate::Drop);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever room is missing: what is held or promised is intact, and of the rest nothing young goes before
    /// something old.
    #[test]
    fn nothing_promised_goes_for_room(
        lock in 0usize..3,
        past in 0usize..3,
        force in any::<bool>(),
        mut ends in proptest::collection::vec(0i64..40 * 24, 1..40),
        named in 0u64..40,
        held in 0u64..40,
        missing in 0u64..300,
    ) {
        ends.sort();
        let (lock, past) = (Lock::ALL[lock], Lock::ALL[past]);
        let mut eras = eras(no_tiers(Length::days(30)), past);
        eras.change(no_tiers(Length::days(10)), lock, MirrorTime(NOW - 20 * DAY), MirrorTime(0)).unwrap();
        let points = alloc::vec![snapshot(named, "named", false), snapshot(held, "held", true)];
        let rules = rules(NOW, &eras, points, force);
        let mut relief = Relief::new(&rules, missing);
        let mut freed = 0;
        let mut spared = false;
        let first = NOW - 40 * DAY;
        let mut from = first - HOUR;
        for (n, end) in ends.into_iter().enumerate() {
            let until = first + end * HOUR;
            let sequence = n as u64;
            let version = Version { a: position(sequence), z: position(sequence + 1), ..version(from, until) };
            let fate = relief.fate(&version, 10);
            let by_past = until > NOW - 30 * DAY && from < NOW - 20 * DAY;
            let by_present = until > NOW - 10 * DAY;
            let promised = (past.holds(force) && by_past)
                || (lock.holds(force) && (by_present || sequence == named || sequence == held));
            if promised || sequence == held {
                prop_assert_eq!(fate, Fate::Keep);
            } else if freed < missing {
                prop_assert!(fate.drops() && !spared);
            }
            let any_rule = by_present || sequence == named || (past.holds(force) && by_past);
            prop_assert_eq!(fate == Fate::ForSpace || fate == Fate::Keep || fate == Fate::Forced || !any_rule, true);
            if fate.drops() {
                freed += 10;
            } else if !promised && sequence != held {
                spared = true;
            }
            from = until;
        }
        let left = missing.saturating_sub(freed);
        prop_assert_eq!(relief.missing(), left);
        prop_assert_eq!(relief.outcome() == Outcome::Enough, left == 0);
    }
}
