//! Which versions are kept at an instant, and by which rule. One [`Rules`] is made for a pass over all versions.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::MirrorTime;
use super::policy::{Era, Eras, Lock, Policy};
use super::zone::{Period, Zone};
use crate::history::Moment;

/// A state of a file that is not the present one any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// It was current on this host in `[from, until)`.
    pub from: MirrorTime,
    pub until: MirrorTime,
    /// It was current at the positions `[a, z)`.
    pub a: Moment,
    pub z: Moment,
}

/// A position that is kept whatever the policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    pub at: Moment,
    pub label: String,
    pub kind: PointKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointKind {
    /// Until somebody removes it. `hold` (`--keep`): not even for want of room.
    Snapshot { hold: bool },
    /// The state before an alarm, which may be looked at until then.
    Alarm { until: MirrorTime },
}

/// What is to become of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Keep,
    /// No rule keeps it.
    Drop,
    /// A promise under `governance` would keep it, but for `--force`: to be logged.
    Forced,
    /// Kept by the rules, but there is no room, and nothing was promised.
    ForSpace,
}

impl Fate {
    pub fn drops(self) -> bool {
        self != Fate::Keep
    }
}

/// One reason to keep a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub rule: Rule,
    /// The rule is one of a policy that was in force once, and not taken from the present one.
    pub promise: Option<Promise>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    pub since: MirrorTime,
    pub until: MirrorTime,
    pub lock: Lock,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Every state is kept so long.
    Every,
    /// It was current when a period began: at the latest such instant.
    Tier {
        period: Period,
        at: MirrorTime,
    },
    Snapshot {
        label: String,
        at: Moment,
        hold: bool,
    },
    Alarm {
        label: String,
        at: Moment,
    },
}

impl Reason {
    /// One word, for scripts.
    pub fn name(&self) -> &'static str {
        if self.promise.is_some() {
            return "promise";
        }
        match &self.rule {
            Rule::Every => "every",
            Rule::Tier { period, .. } => period.tier(),
            Rule::Snapshot { hold: false, .. } => "snapshot",
            Rule::Snapshot { hold: true, .. } => "hold",
            Rule::Alarm { .. } => "alarm",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Promise { since, until, lock }) = &self.promise {
            write!(f, "promise ({lock}, in force {since} to {until}): ")?;
        }
        match &self.rule {
            Rule::Every => f.write_str("every state of the last days"),
            Rule::Tier { period, at } => write!(f, "{}: the state of {at}", period.tier()),
            Rule::Snapshot { label, at, hold } => {
                let kept = if *hold { ", --keep" } else { "" };
                write!(f, "snapshot {label} (pos:{}{kept})", at.position())
            }
            Rule::Alarm { label, at } => write!(f, "alarm {label} (pos:{})", at.position()),
        }
    }
}

/// All that keeps something, laid out for one instant.
#[derive(Debug, Clone)]
pub struct Rules {
    now: MirrorTime,
    /// What binds of the past, oldest first.
    past: Vec<Laid>,
    present: Laid,
    /// By position.
    points: Vec<Point>,
    /// Positions of `points`, and of those that are held.
    all: Vec<Moment>,
    held: Vec<Moment>,
    force: bool,
}

/// A policy at an instant.
#[derive(Debug, Clone)]
struct Laid {
    since: MirrorTime,
    /// It binds what became current before. The present one: everything.
    until: Option<MirrorTime>,
    lock: Lock,
    /// Whatever was current after this is kept.
    window: MirrorTime,
    /// The beginnings that each tier keeps, ascending, and all of them together.
    tiers: [Vec<MirrorTime>; 4],
    instants: Vec<MirrorTime>,
}

impl Rules {
    /// `zone` makes a time zone of its name, good from a hundred years ago to `now`. `force`: somebody said `--force`.
    pub fn new<E>(
        now: MirrorTime,
        eras: &Eras,
        mut points: Vec<Point>,
        force: bool,
        mut zone: impl FnMut(&str) -> Result<Zone, E>,
    ) -> Result<Rules, E> {
        let present = eras.present();
        let mut past: Vec<Laid> = Vec::new();
        for (n, era) in eras.all().iter().enumerate() {
            let Some(until) = era.until else { continue };
            // The same one later on binds all that this one binds.
            let again = |other: &Era| other.policy == era.policy && other.lock == era.lock;
            if era.lock == Lock::Off || eras.all().iter().skip(n + 1).any(again) {
                continue;
            }
            past.push(Laid::new(
                era,
                Some(until),
                now,
                &zone(&era.policy.timezone)?,
            ));
        }
        points.retain(|point| match point.kind {
            PointKind::Snapshot { .. } => true,
            PointKind::Alarm { until } => now < until,
        });
        points.sort_by_key(|point| point.at);
        let held = |point: &&Point| point.kind == PointKind::Snapshot { hold: true };
        Ok(Rules {
            now,
            past,
            present: Laid::new(present, None, now, &zone(&present.policy.timezone)?),
            all: points.iter().map(|point| point.at).collect(),
            held: points.iter().filter(held).map(|point| point.at).collect(),
            points,
            force,
        })
    }

    pub fn now(&self) -> MirrorTime {
        self.now
    }

    /// Whatever was current after this the present policy keeps.
    pub fn window(&self) -> MirrorTime {
        self.present.window
    }

    /// The beginnings that the present policy and all promises keep, ascending.
    pub fn instants(&self) -> Vec<MirrorTime> {
        let all = self.past.iter().chain([&self.present]);
        let mut instants: Vec<MirrorTime> = all.flat_map(|laid| laid.instants.clone()).collect();
        instants.sort_unstable();
        instants.dedup();
        instants
    }

    /// The present lock, as it holds against this caller.
    pub fn locked(&self) -> bool {
        self.present.lock.holds(self.force)
    }

    /// What the rules say, however much room there is. O(log n), nothing is allocated.
    ///
    /// Law: it is dropped if and only if [`Rules::explain`] has no reason, or none but promises that were forced.
    pub fn fate(&self, version: &Version) -> Fate {
        if self.present.keeps(version) || any_in(&self.all, version) {
            return Fate::Keep;
        }
        let mut forced = false;
        for laid in &self.past {
            if laid.binds(version) && laid.keeps(version) {
                if laid.lock.holds(self.force) {
                    return Fate::Keep;
                }
                forced = true;
            }
        }
        match forced {
            true => Fate::Forced,
            false => Fate::Drop,
        }
    }

    /// What becomes of a version when room must be made: what is neither promised nor held goes.
    pub fn fate_for_space(&self, version: &Version) -> Fate {
        let fate = self.fate(version);
        if fate != Fate::Keep {
            return fate;
        }
        if any_in(&self.held, version) || self.withheld(version) {
            return Fate::Keep;
        }
        let promised =
            |laid: &Laid| laid.lock != Lock::Off && laid.binds(version) && laid.keeps(version);
        let point = self.present.lock != Lock::Off && any_in(&self.all, version);
        match point || promised(&self.present) || self.past.iter().any(promised) {
            true => Fate::Forced,
            false => Fate::ForSpace,
        }
    }

    /// A lock forbids to drop it.
    pub fn withheld(&self, version: &Version) -> bool {
        let withholds =
            |laid: &Laid| laid.lock.holds(self.force) && laid.binds(version) && laid.keeps(version);
        (self.locked() && any_in(&self.all, version))
            || withholds(&self.present)
            || self.past.iter().any(withholds)
    }

    /// Everything that keeps it, the present policy first.
    pub fn explain(&self, version: &Version) -> Vec<Reason> {
        let mut reasons = Vec::new();
        self.present.explain(version, None, &mut reasons);
        let first = self.all.partition_point(|at| *at < version.a);
        for point in self
            .points
            .iter()
            .skip(first)
            .take_while(|point| point.at < version.z)
        {
            let (label, at) = (point.label.clone(), point.at);
            let rule = match point.kind {
                PointKind::Snapshot { hold } => Rule::Snapshot { label, at, hold },
                PointKind::Alarm { .. } => Rule::Alarm { label, at },
            };
            reasons.push(Reason {
                rule,
                promise: None,
            });
        }
        for laid in self.past.iter().filter(|laid| laid.binds(version)) {
            let promise = laid.until.map(|until| Promise {
                since: laid.since,
                until,
                lock: laid.lock,
            });
            laid.explain(version, promise, &mut reasons);
        }
        reasons
    }
}

impl Laid {
    fn new(era: &Era, until: Option<MirrorTime>, now: MirrorTime, zone: &Zone) -> Laid {
        let policy: &Policy = &era.policy;
        let tiers = Period::ALL.map(|period| {
            let length = policy.tier(period);
            if length.is_zero() {
                return Vec::new();
            }
            zone.starts(period, zone.before(now, length), now)
        });
        let mut instants = tiers.concat();
        instants.sort_unstable();
        instants.dedup();
        Laid {
            since: era.since,
            until,
            lock: era.lock,
            window: zone.before(now, policy.every),
            tiers,
            instants,
        }
    }

    /// It was in force at some time since the version became current.
    fn binds(&self, version: &Version) -> bool {
        self.until.is_none_or(|until| version.from < until)
    }

    fn keeps(&self, version: &Version) -> bool {
        if version.until > self.window {
            return true;
        }
        let n = self.instants.partition_point(|at| *at < version.from);
        self.instants.get(n).is_some_and(|at| *at < version.until)
    }

    fn explain(&self, version: &Version, promise: Option<Promise>, reasons: &mut Vec<Reason>) {
        if version.until > self.window {
            reasons.push(Reason {
                rule: Rule::Every,
                promise,
            });
        }
        for (period, instants) in Period::ALL.into_iter().zip(&self.tiers) {
            let n = instants.partition_point(|at| *at < version.until);
            let latest = n.checked_sub(1).and_then(|n| instants.get(n));
            if let Some(&at) = latest.filter(|at| **at >= version.from) {
                reasons.push(Reason {
                    rule: Rule::Tier { period, at },
                    promise,
                });
            }
        }
    }
}

/// Whether one of the positions is among the version's.
fn any_in(positions: &[Moment], version: &Version) -> bool {
    let n = positions.partition_point(|at| *at < version.a);
    positions.get(n).is_some_and(|at| *at < version.z)
}
