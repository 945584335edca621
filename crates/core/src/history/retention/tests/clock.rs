//! The clock: jumps both ways, restarts, reboots, lies (S3, S11).

use proptest::prelude::*;

use super::*;
use crate::history::retention::clock::*;

const START: i64 = 1_795_000_000 * SECOND;
const YEARS: i64 = 3652 * DAY;

/// A host: what its clocks show.
#[derive(Debug, Clone, Copy)]
struct Host {
    wall: i64,
    since_boot: i64,
    boots: u8,
}

impl Host {
    fn new() -> Host {
        Host {
            wall: START,
            since_boot: HOUR,
            boots: 1,
        }
    }
    fn sample(&self) -> Sample {
        Sample {
            wall: self.wall,
            since_boot: self.since_boot,
            boot: [self.boots; 16],
        }
    }
    fn runs(&mut self, time: i64) {
        self.wall += time;
        self.since_boot += time;
    }
    /// Is off for a while, and then boots.
    fn reboots(&mut self, off: i64, booting: i64) {
        self.wall += off + booting;
        self.since_boot = booting;
        self.boots = self.boots.wrapping_add(1);
    }
}

fn passed(clock: &Clock) -> i64 {
    clock.time.0 - START
}

#[test]
fn it_goes_with_a_host_that_runs() {
    let mut host = Host::new();
    let mut clock = Clock::begin(host.sample());
    for _ in 0..1000 {
        host.runs(MINUTE);
        assert_eq!(clock.advance(host.sample(), Lock::Compliance), None);
        assert_eq!(clock.time.0, host.wall);
    }
    // Nothing passed, nothing moves.
    assert_eq!(clock.advance(host.sample(), Lock::Compliance), None);
    assert_eq!(clock.time.0, host.wall);
    // The process is away for a month: stored and loaded, that is a sample like any other.
    host.runs(30 * DAY);
    assert_eq!(clock.advance(host.sample(), Lock::Compliance), None);
    assert_eq!(clock.time.0, host.wall);
}

#[test]
fn ten_years_ahead_and_back_are_told_once_and_move_nothing() {
    for lock in Lock::ALL {
        for jump in [YEARS, -YEARS, 2 * HOUR, -2 * HOUR] {
            let told = |by: i64| match by > 0 {
                true => Some(Suspicion::Ahead(by)),
                false => Some(Suspicion::Back(-by)),
            };
            let mut host = Host::new();
            let mut clock = Clock::begin(host.sample());
            host.wall += jump;
            host.runs(MINUTE);
            assert_eq!(
                clock.advance(host.sample(), lock),
                told(jump),
                "{lock} {jump}"
            );
            for _ in 0..60 {
                host.runs(MINUTE);
                // Told once; a restart in between makes no difference, the clock is all its state.
                assert_eq!(clock.advance(host.sample(), lock), None);
            }
            let hour = passed(&clock) - 61 * MINUTE;
            assert!(
                (-61 * MINUTE / 100..=61 * MINUTE / 2000).contains(&hour),
                "{lock} {jump} {hour}"
            );
            // While nothing of ours runs: the kernel's time still counts, and nothing else.
            host.wall -= jump;
            host.runs(10 * DAY);
            assert_eq!(clock.advance(host.sample(), lock), told(-jump));
            assert!((passed(&clock) - 10 * DAY).abs() < 2 * HOUR);
        }
    }
}

#[test]
fn it_is_drawn_to_the_wall_gently() {
    // Behind by an hour: not faster than one part in 2,000, and then it is there.
    let mut host = Host::new();
    let mut clock = Clock::begin(host.sample());
    host.wall += HOUR;
    for day in 1..100 {
        let before = clock.time.0;
        host.runs(DAY);
        clock.advance(host.sample(), Lock::Compliance);
        let gained = clock.time.0 - before - DAY;
        assert!(gained <= DAY / 2000);
        assert_eq!(clock.time.0 == host.wall, day >= 84, "{day}");
    }
    // Ahead by an hour: it waits at most a hundredth.
    host.wall -= HOUR;
    for hours in 1..110 {
        let before = clock.time.0;
        host.runs(HOUR);
        clock.advance(host.sample(), Lock::Compliance);
        assert!(clock.time.0 - before >= HOUR - HOUR / 100);
        assert_eq!(clock.time.0 == host.wall, hours >= 100, "{hours}");
    }
}

#[test]
fn over_a_reboot_the_wall_is_believed_within_limits() {
    for (lock, off, believed, told) in [
        (Lock::Off, 5 * MINUTE, 5 * MINUTE, None),
        (Lock::Compliance, 5 * MINUTE, 5 * MINUTE, None),
        (Lock::Compliance, DAY - 1, DAY - 1, None),
        (Lock::Compliance, DAY, DAY, None),
        (Lock::Compliance, DAY + MINUTE - 1, DAY, None),
        (
            Lock::Governance,
            DAY + MINUTE,
            DAY,
            Some(Suspicion::Ahead(MINUTE)),
        ),
        (Lock::Off, 35 * DAY, 35 * DAY, None),
        (Lock::Off, 36 * DAY, 35 * DAY, Some(Suspicion::Ahead(DAY))),
        (
            Lock::Off,
            YEARS,
            35 * DAY,
            Some(Suspicion::Ahead(YEARS - 35 * DAY)),
        ),
        (Lock::Compliance, -YEARS, 0, Some(Suspicion::Back(YEARS))),
    ] {
        let mut host = Host::new();
        let mut clock = Clock::begin(host.sample());
        host.reboots(off, 3 * HOUR);
        assert_eq!(clock.advance(host.sample(), lock), told, "{lock} {off}");
        // Three hours have passed since it booted, whatever the wall says.
        assert_eq!(passed(&clock), believed + 3 * HOUR, "{lock} {off}");
    }
}

#[test]
fn a_saved_machine_that_goes_on_explains_nothing() {
    let mut host = Host::new();
    host.since_boot = 1000 * DAY;
    let mut clock = Clock::begin(host.sample());
    // Same boot, an earlier time.
    host.since_boot = 900 * DAY;
    host.wall += HOUR;
    assert_eq!(clock.advance(host.sample(), Lock::Compliance), None);
    assert_eq!(passed(&clock), HOUR);
    // Same boot, and slept unnoticed for a month: only what the kernel saw.
    host.wall += 30 * DAY;
    host.runs(HOUR);
    assert_eq!(
        clock.advance(host.sample(), Lock::Compliance),
        Some(Suspicion::Ahead(30 * DAY))
    );
    assert!(passed(&clock) - 2 * HOUR <= HOUR / 2000);
}

#[test]
fn a_lost_state_begins_where_history_ends() {
    let mut host = Host::new();
    host.since_boot = 100 * DAY;
    let sample = host.sample();
    for (latest, lock, time, told) in [
        (START - HOUR, Lock::Compliance, START, None),
        (START - 10 * DAY, Lock::Off, START, None),
        (
            START - 10 * DAY,
            Lock::Compliance,
            START - 9 * DAY,
            Some(Suspicion::Ahead(9 * DAY)),
        ),
        (
            START + DAY,
            Lock::Off,
            START + DAY,
            Some(Suspicion::Back(DAY)),
        ),
    ] {
        let (clock, suspicion) = Clock::recover(MirrorTime(latest), sample, lock);
        assert_eq!((clock.time.0, suspicion), (time, told));
        assert_eq!(clock.last, sample);
    }
    let mut clock = Clock::begin(sample);
    clock.at_least(MirrorTime(START + 5));
    clock.at_least(MirrorTime(START + 3));
    assert_eq!(passed(&clock), 5);
}

#[test]
fn the_wall_is_trusted_on_somebodys_word_unless_locked() {
    let mut host = Host::new();
    let mut clock = Clock::begin(host.sample());
    host.wall += YEARS;
    clock.advance(host.sample(), Lock::Governance);
    for (lock, force, done) in [
        (Lock::Compliance, true, false),
        (Lock::Governance, false, false),
        (Lock::Governance, true, true),
        (Lock::Off, false, true),
    ] {
        let mut clock = clock;
        assert_eq!(clock.trust_wall(lock, force), done);
        assert_eq!(passed(&clock), if done { YEARS } else { 0 });
    }
    // Never back.
    host.wall -= 2 * YEARS;
    clock.advance(host.sample(), Lock::Off);
    assert!(clock.trust_wall(Lock::Off, false));
    assert_eq!(passed(&clock), 0);
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Runs(i64),
    WallMoves(i64),
    Reboots(i64, i64),
    /// The machine's earlier state comes back, its clocks included.
    Restored(i64),
    Strange(i64, i64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..3 * DAY).prop_map(Event::Runs),
        3 => (-YEARS..YEARS).prop_map(Event::WallMoves),
        2 => (0..50 * DAY, 0..HOUR).prop_map(|(off, booting)| Event::Reboots(off, booting)),
        1 => (0..DAY).prop_map(Event::Restored),
        1 => (any::<i64>(), any::<i64>()).prop_map(|(wall, since)| Event::Strange(wall, since)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// The law of [`Clock::advance`].
    #[test]
    fn it_never_goes_back_and_never_runs_away(
        events in proptest::collection::vec(event(), 1..40),
        lock in 0usize..3,
    ) {
        let lock = Lock::ALL[lock];
        let off_max = if lock == Lock::Off { OFF_MAX } else { OFF_LOCKED_MAX };
        let mut host = Host::new();
        let mut clock = Clock::begin(host.sample());
        for event in events {
            let before = clock.time.0;
            let (least, most) = match event {
                Event::Runs(time) => {
                    host.runs(time);
                    (time - time / LOSE_ONE_IN, time + time / GAIN_ONE_IN)
                }
                Event::WallMoves(by) => {
                    host.wall = host.wall.saturating_add(by);
                    (0, 0)
                }
                Event::Reboots(off, booting) => {
                    host.reboots(off, booting);
                    (booting, booting + off_max)
                }
                Event::Restored(ago) => {
                    host.since_boot = host.since_boot.saturating_sub(ago);
                    host.wall = host.wall.saturating_sub(ago);
                    (0, if ago == 0 { 0 } else { off_max })
                }
                Event::Strange(wall, since_boot) => {
                    // It must only not go back; all else ends here.
                    let mut clock = clock;
                    clock.advance(Sample { wall, since_boot, boot: host.sample().boot }, lock);
                    prop_assert!(clock.time.0 >= before);
                    clock.advance(Sample { wall, since_boot, boot: [0; 16] }, lock);
                    prop_assert!(clock.time.0 >= before);
                    (0, 0)
                }
            };
            clock.advance(host.sample(), lock);
            let step = clock.time.0 - before;
            prop_assert!((least..=most).contains(&step), "{:?}: {} not in {}..={}", event, step, least, most);
        }
    }

    /// It makes no difference how often it is asked, but for rounding.
    #[test]
    fn how_often_it_is_fed_does_not_matter(
        steps in proptest::collection::vec(1..HOUR, 1..50),
        jump in -YEARS..YEARS,
    ) {
        let mut host = Host::new();
        host.wall += jump;
        let mut once = Clock::begin(Host::new().sample());
        let mut often = once;
        for step in &steps {
            host.runs(*step);
            often.advance(host.sample(), Lock::Compliance);
        }
        once.advance(host.sample(), Lock::Compliance);
        prop_assert!((once.time.0 - often.time.0).abs() <= steps.len() as i64);
    }
}
