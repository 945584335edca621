//! Letting old versions go, against a brute force on the real structures: what stays is what the rules say, by hand; and what
//! is said to be whole is.

use std::collections::{BTreeMap, BTreeSet};

use mirror_core::history::Moment;
use mirror_core::history::retention::{Budget, DAY, HOUR, Lock, MINUTE, MirrorTime};
use mirror_core::{Change, ObjectId};

use super::past::Kept;
use super::*;
use crate::history::prune::{Orders, Pruner, Report, Zones};
use crate::history::settings::Settings;
use crate::history::slots::Slot;
use crate::history::whole::Whole;

/// One file's bytes, since when, and until when.
#[derive(Debug, Clone, Copy)]
struct Bytes {
    a: Moment,
    from: i64,
    ended: Option<(Moment, i64)>,
}

struct Pruned {
    kept: Kept,
    random: super::same::Random,
    now: i64,
    bytes: BTreeMap<ObjectId, Vec<Bytes>>,
    /// Lengths in days of every, hourly, daily, weekly, monthly, and until when they were promised; the last is in force.
    policies: Vec<([i64; 5], i64)>,
    points: BTreeSet<Moment>,
}

fn settings(days: [i64; 5], lock: Lock) -> Settings {
    let mut settings = Settings {
        lock,
        min_interval_ns: 0,
        ..Settings::default()
    };
    let keys = ["every", "hourly", "daily", "weekly", "monthly"];
    for (key, days) in keys.into_iter().zip(days) {
        settings.policy.set(key, &format!("{days}d")).unwrap();
    }
    settings
}

impl Pruned {
    fn new(seed: u64, days: [i64; 5], lock: Lock) -> Pruned {
        let kept = Kept::new(Options {
            flush: Flush::Never,
            ..Options::default()
        });
        let mut pruned = Pruned {
            kept,
            random: super::same::Random(seed),
            // After the beginning of history, which is now.
            now: 40_000 * DAY,
            bytes: BTreeMap::new(),
            policies: Vec::new(),
            points: BTreeSet::new(),
        };
        pruned.choose(days, lock);
        pruned
    }

    fn history(&mut self) -> &mut crate::history::History {
        let now = MirrorTime(self.now);
        let history = self.kept.pair.applier().history_mut().unwrap();
        history.clock.set(now);
        history
    }

    fn choose(&mut self, days: [i64; 5], lock: Lock) {
        let settings = settings(days, lock);
        self.history().choose(&settings).unwrap();
        let now = self.now;
        if let Some(last) = self.policies.last_mut() {
            last.1 = now;
        }
        self.policies.push((days, i64::MAX));
    }

    fn step(&mut self) {
        self.now += 1 + self.random.below(7 * 60) as i64 * MINUTE + self.random.below(1000) as i64;
        self.history();
        for _ in 0..1 + self.random.below(3) {
            let name = format!("f{}", self.random.below(8));
            match self.random.below(12) {
                0 if self.kept.pair.src(&name).exists() => self.kept.pair.rm(&name),
                _ => {
                    let text = format!("{} {}", self.now, self.random.below(1 << 30));
                    self.kept.pair.write(&name, text.as_bytes());
                }
            }
        }
        let records = self.kept.pair.source.look();
        let Some(last) = records.last() else { return };
        let last = Moment::of(last.position);
        let mut ends = records.iter().filter(|record| record.end);
        let mut end = Moment(0);
        for record in &records {
            if Moment::of(record.position) > end {
                end = Moment::of(ends.next().unwrap().position);
            }
            let Some(object) = record.change.object() else {
                continue;
            };
            let list = self.bytes.entry(object).or_default();
            let new = record.change.content().is_some();
            if (new || matches!(record.change, Change::Unlink { .. }))
                && let Some(bytes) = list.last_mut().filter(|bytes| bytes.ended.is_none())
            {
                bytes.ended = Some((end, self.now));
            }
            if new {
                list.push(Bytes {
                    a: end,
                    from: self.now,
                    ended: None,
                });
            }
        }
        let outcome = self.kept.pair.apply(&records);
        assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
        if self.random.below(3) == 0 {
            self.kept.remember(last);
        }
    }

    fn prune(&mut self, space: Option<(u64, u64)>, force: bool) -> Report {
        let until = self.kept.pair.applier().moment();
        let state = self.kept.pair.state.clone();
        let history = self.history();
        let orders = Orders {
            eras: history.events.policies(),
            budget: Budget {
                percent_max: 100,
                bytes_max: None,
                free_bytes_min: 1 << 20,
            },
            now: MirrorTime::of_ns(history.now_ns()),
            until,
            force,
            dry_run: false,
        };
        let zones = Zones::known(&state, "UTC");
        let mut pruner = Pruner::open(&state, zones).unwrap();
        let report = pruner.run(&orders, &|| space, &|| true, &mut |_| {});
        let report = report.unwrap();
        report.settle(self.history()).unwrap();
        report
    }

    fn slots(&mut self) -> BTreeSet<Slot> {
        let slots = &self.history().slots;
        let groups = slots.groups().unwrap();
        let all = groups.iter().map(|group| slots.in_group(*group).unwrap());
        all.flatten().collect()
    }

    /// By hand: every rule, every instant.
    fn wanted(&self) -> BTreeSet<Slot> {
        let mut wanted = BTreeSet::new();
        for (object, list) in &self.bytes {
            for bytes in list {
                let Some((until, until_ns)) = bytes.ended else {
                    continue;
                };
                let current = |at: i64| bytes.from <= at && at < until_ns;
                let by = |(days, promised): &([i64; 5], i64)| {
                    let [every, tiers @ ..] = days;
                    let periods = [HOUR, DAY, 7 * DAY];
                    let tier = |period: i64, days: i64, begin: i64| {
                        let first = (self.now - days * DAY - begin).div_euclid(period);
                        let last = (self.now - begin).div_euclid(period);
                        (first..=last)
                            .map(move |n| n * period + begin)
                            .any(|at| at >= self.now - days * DAY && days > 0 && current(at))
                    };
                    let mut tiers = periods.into_iter().zip(tiers);
                    // 1970 began on a Thursday; no monthly tier here.
                    bytes.from < *promised
                        && (until_ns > self.now - every * DAY
                            || tiers.any(|(period, days)| {
                                tier(period, *days, if period > DAY { 4 * DAY } else { 0 })
                            }))
                };
                let point = self.points.iter().any(|at| bytes.a <= *at && *at < until);
                if point || self.policies.iter().any(by) {
                    wanted.insert(Slot {
                        until,
                        object: *object,
                    });
                }
            }
        }
        wanted
    }

    fn snapshot(&mut self, name: &str, keep: bool) {
        let moment = self.kept.pair.applier().moment();
        let here_ns = self.history().now_ns();
        let event = crate::history::events::Event::Snapshot {
            name: name.into(),
            moment: moment.0,
            there_ns: 0,
            here_ns,
            keep,
            note: None,
        };
        self.history().events.add(event).unwrap();
        self.points.insert(moment);
    }

    /// What is said to be whole is as it was then.
    fn check_whole(&mut self) -> (usize, usize) {
        let disk = crate::disk::RealDisk::open(&self.kept.pair.state).unwrap();
        let whole = Whole::load(&disk).unwrap();
        let all = std::mem::take(&mut self.kept.was);
        let (is, not): (Vec<_>, Vec<_>) = all.into_iter().partition(|(at, _)| whole.has(*at));
        self.kept.was = is;
        self.kept.check_all();
        let counts = (self.kept.was.len(), not.len());
        self.kept.was.extend(not);
        self.kept.was.sort();
        counts
    }
}

#[test]
fn what_stays_is_what_the_rules_say_and_what_is_whole_is_as_it_was() {
    for seed in 1..=2 {
        let mut run = Pruned::new(seed, [2, 4, 12, 40, 0], Lock::Governance);
        for n in 0..300 {
            run.step();
            if n == 150 {
                run.snapshot("before", false);
            }
            // What was promised stays promised, what comes now is not.
            if n == 200 {
                run.choose([1, 0, 3, 0, 0], Lock::Off);
            }
            if run.random.below(12) == 0 {
                run.prune(None, false);
                let (slots, wanted) = (run.slots(), run.wanted());
                let more: Vec<&Slot> = slots.difference(&wanted).collect();
                let less: Vec<&Slot> = wanted.difference(&slots).collect();
                assert!(
                    !slots.is_empty() && slots == wanted,
                    "seed {seed}, {n}: more {more:?}, less {less:?}, {:?}",
                    run.bytes
                );
            }
        }
        let report = run.prune(None, false);
        let slots = run.slots();
        assert_eq!(slots, run.wanted());
        assert_eq!((report.kept, report.missing), (slots.len() as u64, 0));
        let (whole, not) = run.check_whole();
        println!(
            "seed {seed}: {} versions, {whole} positions whole, {not} not",
            slots.len()
        );
        assert!(whole > 0 && not > 0);
        // Asked with force, only the policy of today counts, and the snapshot.
        let first = run.policies.remove(0);
        let report = run.prune(None, true);
        assert!(report.forced > 0);
        assert_eq!(run.slots(), run.wanted());
        run.policies.insert(0, first);
        run.check_whole();
        run.kept.forget();
    }
}

#[test]
fn for_want_of_room_the_oldest_goes_first_and_nothing_that_is_locked() {
    let full = Some((1 << 40, 0));
    // Everything is in the window of everything.
    let mut run = Pruned::new(7, [30, 0, 0, 0, 0], Lock::Off);
    for n in 0..60 {
        run.step();
        if n == 20 {
            run.snapshot("held", true);
        }
    }
    let before = run.slots();
    let nothing = run.prune(Some((1 << 40, 1 << 40)), false);
    assert_eq!((nothing.gone, &run.slots()), (0, &before));
    let taken = nothing.kept_bytes;
    // So much is missing that half of it goes.
    let report = run.prune(Some((1 << 40, (1 << 20) - taken / 2)), false);
    let after = run.slots();
    assert!(report.for_space > 0 && report.missing == 0 && !report.locked);
    let gone: Vec<&Slot> = before.difference(&after).collect();
    let newest = gone.iter().map(|slot| slot.until).max().unwrap();
    let held = *run.points.first().unwrap();
    for slot in after.iter().filter(|slot| slot.until < newest) {
        let list = &run.bytes[&slot.object];
        let ends = |bytes: &&Bytes| bytes.ended.map(|ended| ended.0) == Some(slot.until);
        let bytes = list.iter().find(ends).unwrap();
        assert!(bytes.a <= held && held < slot.until, "{slot:?}");
    }
    run.check_whole();
    let report = run.prune(full, false);
    assert!(report.missing > 0 && !report.locked);
    let is_held = |slot: &Slot| {
        let ends = |bytes: &&Bytes| bytes.ended.map(|ended| ended.0) == Some(slot.until);
        let bytes = run.bytes[&slot.object].iter().find(ends).unwrap();
        bytes.a <= held && held < slot.until
    };
    let left = {
        let slots = &run
            .kept
            .pair
            .applier
            .as_ref()
            .unwrap()
            .history()
            .unwrap()
            .slots;
        let groups = slots.groups().unwrap();
        let all = groups.iter().flat_map(|g| slots.in_group(*g).unwrap());
        all.collect::<Vec<Slot>>()
    };
    assert!(!left.is_empty() && left.iter().all(is_held));
    run.kept.forget();
    // Locked: nothing goes, whoever asks.
    let mut run = Pruned::new(8, [30, 0, 0, 0, 0], Lock::Compliance);
    (0..40).for_each(|_| run.step());
    let before = run.slots();
    let report = run.prune(full, true);
    assert!(report.locked && report.missing > 0 && report.gone == 0);
    assert_eq!(run.slots(), before);
    run.check_whole();
    run.kept.forget();
}

/// `FS_MIRROR_PRUNE` sets how many, to measure it.
#[test]
fn many_versions_go_quickly_and_segments_after_them() {
    use mirror_core::history::{Group, Row, Then, Was};
    use mirror_core::{Content, Digest, Kind, Local, Meta, State};
    let asked = std::env::var("FS_MIRROR_PRUNE").ok();
    let count: u64 = asked.and_then(|n| n.parse().ok()).unwrap_or(5000);
    let dir = tempfile::tempdir().unwrap();
    let mut history = crate::history::History::open(dir.path(), [7; 16], None).unwrap();
    history.clock.set(MirrorTime(1000 * DAY));
    history
        .choose(&settings([1, 0, 0, 0, 0], Lock::Off))
        .unwrap();
    let why = crate::history::events::Why::New;
    history.begin(Moment(1), 0, why).unwrap();
    let content = Content {
        bytes: 4096,
        digest: Digest([1; 32]),
        data: Vec::new(),
        proven: true,
        fuzzy: false,
    };
    let state = State {
        kind: Kind::File(content),
        meta: Meta::default(),
    };
    for some in (0..count).collect::<Vec<u64>>().chunks(100) {
        let groups = some.iter().map(|n| {
            let (until, object) = (Moment(100 + n), ObjectId(2 + n % 50));
            let slot = Slot { until, object };
            let (fd, name) = history.slots.place(slot).unwrap();
            let file = crate::sys::target::create_file(&fd, &name).unwrap();
            rustix::io::write(&file, &[7; 4096]).unwrap();
            let was = Was::Object {
                object,
                state: state.clone(),
                local: Local::default(),
                then: Then::Content,
            };
            Group {
                moment: until,
                time_ns: 0,
                rows: vec![Row { was, who: None }],
                who: Vec::new(),
            }
        });
        let groups = groups.collect();
        history.append(groups).unwrap();
    }
    history.flush().unwrap();
    history.clock.set(MirrorTime(1002 * DAY));
    let orders = Orders {
        eras: history.events.policies(),
        budget: Budget::default(),
        now: MirrorTime(1002 * DAY),
        until: Moment::MAX,
        force: false,
        dry_run: false,
    };
    let mut pruner = Pruner::open(dir.path(), Zones::default()).unwrap();
    let began = std::time::Instant::now();
    let report = pruner.run(&orders, &|| None, &|| true, &mut |_| {});
    let report = report.unwrap();
    let took = began.elapsed();
    report.settle(&mut history).unwrap();
    assert_eq!((report.gone, report.kept), (count, 0));
    let a_second = count as f64 / took.as_secs_f64();
    println!(
        "{count} versions in {took:?}: {a_second:.0} a second, {} bytes",
        report.gone_bytes
    );
    assert_eq!(report.gone_bytes, count * 4096);
    // The newest two groups of slots are apply's.
    assert!(history.slots.groups().unwrap().len() <= 2);
}
