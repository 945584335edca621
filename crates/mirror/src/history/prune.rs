//! Which versions go, and letting them go: a pass over the catalogue and the slots, oldest first, in a thread of its own beside
//! apply or in a command. Rules: [`mirror_core::history::retention`]. A pass reads the catalogue and the list of slots, and
//! removes slots; what apply has open is apply's: it removes emptied directories and old segments ([`Report::settle`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use mirror_core::history::Moment;
use mirror_core::history::retention::policy::Era;
use mirror_core::history::retention::{
    Budget, Eras, Fate, MirrorTime, Outcome, Point, PointKind, Relief, Rules, Space,
};
use serde::{Deserialize, Serialize};

use super::events::{Event, Events};
use super::slots::{Slot, Slots, freed_by};
use super::walk::{Kept, Met, Walk};
use super::whole::Whole;
use super::{History, HistoryError, Result, calendar};
use crate::disk::{Disk, RealDisk};

/// Versions that go at once, after it is written down which positions they make less than whole.
const AT_ONCE: usize = 4096;
/// Versions a second, at most: the disk has others to serve.
const PER_S_MAX: u64 = 100_000;

/// How a pass ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Versions that are kept, and what would be free without them.
    pub kept: u64,
    pub kept_bytes: u64,
    /// That went, and what that freed.
    pub gone: u64,
    pub gone_bytes: u64,
    /// Of those: promised under `governance`, and somebody said `--force`.
    pub forced: u64,
    /// Of those: no rule let them go, but want of room.
    pub for_space: u64,
    /// So many bytes must still go.
    pub missing: u64,
    /// Nothing else may go, because it is locked.
    pub locked: bool,
    pub catalogue_bytes: u64,
    /// Versions looked at, and for how long.
    pub took_ms: u64,
    /// Groups of slots that may be empty, and the position before which no row is asked for.
    #[serde(skip)]
    pub emptied: BTreeSet<u64>,
    #[serde(skip)]
    pub needed_from: Option<Moment>,
}

/// What a pass goes by.
pub struct Orders {
    pub eras: Vec<Era>,
    pub budget: Budget,
    pub now: MirrorTime,
    /// What ended later is left alone.
    pub until: Moment,
    pub force: bool,
    pub dry_run: bool,
}

/// Time zones that were read before: behind walls no database can be had.
#[derive(Debug, Clone, Default)]
pub struct Zones(BTreeMap<String, TimeZone>);

impl Zones {
    /// Those of all that is or was in force. One that this host does not know any more counts as UTC.
    pub fn of(names: impl Iterator<Item = String>) -> Zones {
        Zones(
            names
                .map(|name| {
                    let zone = calendar::named(&name).unwrap_or(TimeZone::UTC);
                    (name, zone)
                })
                .collect(),
        )
    }
    /// Those of a state directory, and this one.
    pub fn known(state_dir: &Path, present: &str) -> Zones {
        let events = RealDisk::open(state_dir).and_then(|disk| Events::look(&disk));
        let eras = events.map(|events| events.policies()).unwrap_or_default();
        let names = eras.into_iter().map(|era| era.policy.timezone);
        Zones::of(names.chain([present.to_owned()]))
    }

    fn get(&self, name: &str, now: MirrorTime) -> mirror_core::history::retention::Zone {
        let zone = self.0.get(name).cloned();
        calendar::zone(&zone.unwrap_or(TimeZone::UTC), now)
    }
}

/// Files of a history, as a pass sees them.
pub struct Pruner {
    disk: Arc<dyn Disk>,
    slots: Slots,
    /// The same, to remove.
    hands: Slots,
    events: Events,
    zones: Zones,
    whole: Whole,
}

/// What is to become of a version; [`Pruner::run`] tells each.
pub struct Judged<'a> {
    pub kept: &'a Kept,
    pub bytes: u64,
    pub fate: Fate,
    pub rules: &'a Rules,
}

impl Pruner {
    pub fn open(state_dir: &Path, zones: Zones) -> Result<Pruner> {
        let disk = RealDisk::open(state_dir).map_err(HistoryError::io("open"))?;
        let disk: Arc<dyn Disk> = Arc::new(disk);
        Ok(Pruner {
            slots: Slots::open(state_dir).map_err(HistoryError::io("open"))?,
            hands: Slots::open(state_dir).map_err(HistoryError::io("open"))?,
            events: Events::look(&*disk).map_err(HistoryError::io("read"))?,
            whole: Whole::load(&*disk).map_err(HistoryError::io("read"))?,
            zones,
            disk,
        })
    }

    pub fn eras(&self) -> Vec<Era> {
        self.events.policies()
    }

    fn rules(&self, orders: &Orders) -> Result<Option<Rules>> {
        if orders.eras.is_empty() {
            return Ok(None);
        }
        let eras = Eras::restore(orders.eras.clone());
        let eras = eras.map_err(|why| HistoryError::Io {
            what: "understand the policies of",
            source: std::io::Error::other(why),
        })?;
        let points = self.events.snapshots().into_iter().map(|snapshot| Point {
            at: snapshot.moment,
            label: snapshot.name,
            kind: PointKind::Snapshot {
                hold: snapshot.keep,
            },
        });
        let zone = |name: &str| Ok::<_, HistoryError>(self.zones.get(name, orders.now));
        Rules::new(orders.now, &eras, points.collect(), orders.force, zone).map(Some)
    }

    /// One pass. `space`: of DST's file system, all of it and what is free. `go_on` is asked between two slices.
    pub fn run(
        &mut self,
        orders: &Orders,
        space: &dyn Fn() -> Option<(u64, u64)>,
        go_on: &dyn Fn() -> bool,
        each: &mut dyn FnMut(&Judged<'_>),
    ) -> Result<Report> {
        let began = Instant::now();
        let mut report = Report::default();
        let Some(rules) = self.rules(orders)? else {
            return Ok(report);
        };
        let mut judge = |kept: &Kept, _: &dyn Fn() -> u64| rules.fate(&kept.version);
        // What is in the window of everything need not even be looked up, unless each is to be told.
        let stop = (!orders.dry_run).then(|| rules.window());
        self.sweep((orders, &rules, stop), &mut judge, go_on, each, &mut report)?;
        report.catalogue_bytes = self.catalogue_bytes()?;
        (report.kept, report.kept_bytes) = self.usage()?;
        if let Some((total_bytes, free_bytes)) = space()
            && go_on()
        {
            // What a dry run let go is still there.
            let spared = if orders.dry_run { report.gone_bytes } else { 0 };
            let missing = orders.budget.missing(&Space {
                history_bytes: (report.kept_bytes + report.catalogue_bytes).saturating_sub(spared),
                total_bytes,
                free_bytes: free_bytes.saturating_add(spared),
            });
            if missing > 0 {
                let mut relief = Relief::new(&rules, missing);
                let mut judge =
                    |kept: &Kept, bytes: &dyn Fn() -> u64| match rules.fate(&kept.version) {
                        Fate::Keep => relief.fate(&kept.version, bytes()),
                        gone => gone,
                    };
                let mut more = Report::default();
                let mut tell = |judged: &Judged<'_>| {
                    if judged.fate == Fate::ForSpace || !orders.dry_run {
                        each(judged);
                    }
                };
                self.sweep(
                    (orders, &rules, None),
                    &mut judge,
                    go_on,
                    &mut tell,
                    &mut more,
                )?;
                report.missing = relief.missing();
                report.locked = matches!(relief.outcome(), Outcome::Pause { .. });
                report.add(more, orders.dry_run);
                (report.kept, report.kept_bytes) = self.usage()?;
            }
        }
        report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(report)
    }

    /// Once over all versions, or those that ended before `stop`.
    fn sweep(
        &mut self,
        (orders, rules, stop): (&Orders, &Rules, Option<MirrorTime>),
        judge: &mut dyn FnMut(&Kept, &dyn Fn() -> u64) -> Fate,
        go_on: &dyn Fn() -> bool,
        each: &mut dyn FnMut(&Judged<'_>),
        report: &mut Report,
    ) -> Result<()> {
        let began = Instant::now();
        let named: BTreeSet<Moment> = self.events.snapshots().iter().map(|s| s.moment).collect();
        let was = self.whole.clone();
        let mut wanted: BTreeSet<Moment> = named.into_iter().filter(|at| was.has(*at)).collect();
        let mut whole = was.clone();
        whole.some.extend(&wanted);
        let instants = rules.instants();
        let (mut next, mut before, mut broken_off) = (0, None, false);
        let mut going: Vec<(Kept, u64)> = Vec::new();
        let (slots, hands, disk) = (&self.slots, &mut self.hands, &self.disk);
        let walk = Walk {
            disk,
            events: &self.events,
            slots,
            until: orders.until,
        };
        let walked = walk.run(&mut |met| {
            match met {
                Met::Position(moment, here) => {
                    while let Some(instant) = instants.get(next).filter(|at| **at < here) {
                        // The tree as of that instant.
                        if let Some(before) = before.filter(|before| was.has(*before)) {
                            wanted.insert(before);
                            whole.some.insert(before);
                        }
                        let _ = instant;
                        next += 1;
                    }
                    before = Some(moment);
                    if stop.is_some_and(|stop| here > stop) {
                        return Ok(false);
                    }
                }
                Met::Version(kept) => {
                    let bytes = || bytes_of(slots, kept.slot);
                    let fate = judge(kept, &bytes);
                    if fate.drops() || orders.dry_run {
                        let bytes = bytes();
                        each(&Judged {
                            kept,
                            bytes,
                            fate,
                            rules,
                        });
                        if fate.drops() {
                            report.gone += 1;
                            report.gone_bytes += bytes;
                            report.forced += u64::from(fate == Fate::Forced);
                            report.for_space += u64::from(fate == Fate::ForSpace);
                            going.push((*kept, bytes));
                        }
                    }
                    if !fate.drops() {
                        report.needed_from.get_or_insert(kept.slot.until);
                    }
                    if going.len() >= AT_ONCE {
                        if !orders.dry_run {
                            let going = std::mem::take(&mut going);
                            remove(&going, &mut whole, (&**disk, hands), began, report)?;
                        }
                        going.clear();
                        if !go_on() {
                            broken_off = true;
                            return Ok(false);
                        }
                    }
                }
            }
            Ok(true)
        })?;
        if orders.dry_run {
            return Ok(());
        }
        remove(&going, &mut whole, (&**disk, hands), began, report)?;
        for slot in walked.lost {
            hands
                .remove(slot)
                .map_err(HistoryError::io("remove from"))?;
            report.emptied.insert(slot.group());
        }
        if broken_off {
            // What is not known to be needless is needed.
            report.needed_from = Some(Moment(0));
        } else {
            let last = before.unwrap_or_default();
            whole.some.retain(|at| wanted.contains(at) || *at > last);
            let oldest = whole.some.first().copied();
            let needed = oldest.into_iter().chain([whole.all_from]);
            report.needed_from = needed.chain(report.needed_from).min();
        }
        if whole != was {
            whole.save(&**disk).map_err(HistoryError::io("write"))?;
        }
        self.whole = whole;
        Ok(())
    }

    /// Versions that are kept, and what would be free without them.
    fn usage(&self) -> Result<(u64, u64)> {
        let (mut versions, mut bytes) = (0, 0);
        let listed = HistoryError::io("list");
        for group in self.slots.groups().map_err(listed)? {
            let sizes = self.slots.usage(group).map_err(HistoryError::io("list"))?;
            versions += sizes.0;
            bytes += sizes.1;
        }
        Ok((versions, bytes))
    }

    fn catalogue_bytes(&self) -> Result<u64> {
        let listed = self.disk.list(super::catalogue::DIR);
        let mut bytes = 0;
        for name in listed.map_err(HistoryError::io("list"))? {
            let file = self.disk.open(&format!("{}/{name}", super::catalogue::DIR));
            bytes += file.and_then(|file| file.len()).unwrap_or(0);
        }
        Ok(bytes)
    }
}

impl Report {
    fn add(&mut self, more: Report, dry_run: bool) {
        // A dry run meets what goes by the rules again.
        match dry_run {
            true => {
                self.gone = more.gone;
                self.gone_bytes = more.gone_bytes;
                self.forced = more.forced;
            }
            false => {
                self.gone += more.gone;
                self.gone_bytes += more.gone_bytes;
                self.forced += more.forced;
            }
        }
        self.for_space += more.for_space;
        self.emptied.extend(more.emptied);
        self.needed_from = more.needed_from;
    }

    /// What only who has the history open may do: whoever was replaced by nothing goes. Bytes of the catalogue that went.
    pub fn settle(&self, history: &mut History) -> Result<u64> {
        // Apply may still put a version into the newest ones.
        let newest = history.slots.groups().map_err(HistoryError::io("list"))?;
        let newest = newest.last().copied().unwrap_or(0);
        for group in self.emptied.iter().filter(|group| **group + 1 < newest) {
            let removed = history.slots.remove_group(*group);
            removed.map_err(HistoryError::io("remove from"))?;
        }
        let here_ns = history.now_ns();
        if self.forced > 0 {
            let event = Event::Forced {
                here_ns,
                versions: self.forced,
            };
            let added = history.events.add(event);
            added.map_err(HistoryError::io("write"))?;
        }
        let Some(needed) = self.needed_from else {
            return Ok(0);
        };
        if !history.catalogue.would_drop(needed) {
            return Ok(0);
        }
        let event = Event::Pruned {
            moment: needed.0,
            here_ns,
        };
        let added = history.events.add(event);
        added.map_err(HistoryError::io("write"))?;
        Ok(history.catalogue.drop_before(needed)?)
    }
}

/// What is free without it: nothing, while it has other names.
fn bytes_of(slots: &Slots, slot: Slot) -> u64 {
    match slots.stat(slot) {
        Ok(Some(stat)) => freed_by(&stat),
        _ => 0,
    }
}

/// Lets versions go, once it is written down what that makes less than whole.
fn remove(
    going: &[(Kept, u64)],
    whole: &mut Whole,
    (disk, slots): (&dyn Disk, &mut Slots),
    began: Instant,
    report: &mut Report,
) -> Result<()> {
    if going.is_empty() {
        return Ok(());
    }
    let slice = Instant::now();
    for (kept, _) in going {
        whole.lacks(&kept.version);
    }
    whole.save(disk).map_err(HistoryError::io("write"))?;
    for (kept, _) in going {
        let removed = slots.remove(kept.slot);
        removed.map_err(HistoryError::io("remove from"))?;
        report.emptied.insert(kept.slot.group());
    }
    // Others come to the disk in between.
    let rests = slice.elapsed() / 4;
    let due = Duration::from_micros(report.gone.saturating_mul(1_000_000) / PER_S_MAX);
    std::thread::sleep(rests.max(due.saturating_sub(began.elapsed())));
    Ok(())
}
