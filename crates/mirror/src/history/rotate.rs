//! Rotation as in 2007: `hourly`, `daily`, `weekly` and `monthly` trees, each the state at exactly the full hour, midnight,
//! Monday, or first of the month (UTC, by this host's clock), so many of each as are wanted.
//!
//! The oldest of a kind, which is to go, becomes the newest by what differs; without one a tree is made whole.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};
use mirror_core::ObjectId;
use mirror_core::history::Moment;

use super::ask::{Answer, Ask, Window, state_of};
use super::asked::{Asks, Places, odd};
use super::checkout::{CheckoutError, Progress};
use super::publish::Publish;
use super::publish_settings::{Every, Names, PublishSettings};
use super::published::{MISSING_MAX, New, Published, Shelf, ShelfError};
use super::tree::PastError;
use crate::apply::Owners;
use crate::apply::meta::Rules;
use crate::sys::{Errno, open, target};

#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error(transparent)]
    Past(#[from] PastError),
    #[error(transparent)]
    Checkout(#[from] CheckoutError),
    #[error("rotation is held: {0}")]
    Held(String),
    #[error("cannot write where trees are published")]
    Work(#[source] std::io::Error),
    #[error(
        "{0} is there already, and is not this mirror's: take it away, or name another publish.dir"
    )]
    Taken(String),
}

type Result<T> = std::result::Result<T, RotateError>;

/// What became of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Made(Box<Published>, PathBuf),
    /// That of the last border is there.
    UpToDate(Every),
    /// History begins after the last border; the next one is then.
    TooEarly {
        every: Every,
        next_ns: u64,
    },
}

/// The last border of a kind at or before a time, and the one after it.
pub fn borders(every: Every, now_ns: u64) -> Option<(u64, u64)> {
    let now = Timestamp::from_nanosecond(i128::from(now_ns)).ok()?;
    let now = now.to_zoned(TimeZone::UTC);
    let midnight = |day: Zoned| day.start_of_day().ok();
    let (last, next) = match every {
        Every::Hour => {
            let ns = now_ns - now_ns % 3_600_000_000_000;
            return Some((ns, ns + 3_600_000_000_000));
        }
        Every::Day => (midnight(now.clone())?, 1.day()),
        Every::Week => {
            let since = now.weekday().since(Weekday::Monday);
            (
                midnight(now.checked_sub(i64::from(since).days()).ok()?)?,
                1.week(),
            )
        }
        Every::Month => (midnight(now.first_of_month().ok()?)?, 1.month()),
    };
    let next = last.checked_add(next).ok()?;
    let ns = |time: &Zoned| u64::try_from(time.timestamp().as_nanosecond()).ok();
    Some((ns(&last)?, ns(&next)?))
}

/// `20261122T1400Z`
fn stamp(ns: u64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(ns)).unwrap_or_default();
    let time = time.to_zoned(TimeZone::UTC);
    time.strftime("%Y%m%dT%H%MZ").to_string()
}

/// Whether a name is one that rotation gives.
pub fn is_rotated(name: &str) -> bool {
    let kind = name.split_once('.').map_or(name, |(kind, _)| kind);
    Every::parse(kind).is_some()
}

struct Missing {
    count: u64,
    paths: Vec<String>,
}

impl Progress for Missing {
    fn lost(&mut self, path: &[u8], why: &str) -> bool {
        self.count += 1;
        if self.paths.len() < MISSING_MAX {
            self.paths
                .push(format!("{}: {why}", mirror_core::escape(path)));
        }
        true
    }
}

/// Whether a border was passed of which there is no tree.
pub fn is_due(state_dir: &Path, settings: &PublishSettings, now_ns: u64) -> Result<bool> {
    let trees = Shelf::look(state_dir, settings.dir.as_deref())?.list()?;
    let due = |every: &Every| {
        let of_kind = trees.iter().filter(|tree| tree.kind == every.word());
        let newest = of_kind.map(|tree| tree.at_ns).max();
        let last = borders(*every, now_ns).map(|(last, _)| last);
        settings.count(*every) > 0 && newest < last
    };
    Ok(Every::ALL.iter().any(due))
}

/// Who publishes.
pub struct Rotation<'a> {
    pub asks: &'a mut dyn Asks,
    pub places: Places,
    pub owners: Owners,
    pub settings: PublishSettings,
    pub shelf: Shelf,
}

/// Which state, and how it is called.
struct Wanted {
    name: String,
    kind: String,
    moment: Moment,
    at_ns: u64,
    there_ns: Option<u64>,
    begins_ns: u64,
}

const MADE: &[u8] = b"tree";

impl<'a> Rotation<'a> {
    pub fn open(
        asks: &'a mut dyn Asks,
        places: Places,
        owners: Owners,
        settings: PublishSettings,
    ) -> Result<Rotation<'a>> {
        let shelf = Shelf::open(&places.state_dir, settings.dir.as_deref())?;
        Ok(Rotation {
            asks,
            places,
            owners,
            settings,
            shelf,
        })
    }

    fn window(&mut self) -> Result<Window> {
        match self.asks.ask(&Ask::Window)? {
            Answer::Window(window) => Ok(window),
            _ => Ok(odd()?),
        }
    }

    /// What is due at `now_ns`; of one kind alone, if one is named.
    pub fn rotate(&mut self, only: Option<Every>, now_ns: u64) -> Result<Vec<Done>> {
        let window = self.window()?;
        if let Some(why) = &window.rotation_held {
            return Err(RotateError::Held(why.clone()));
        }
        let mut all = Vec::new();
        for every in Every::ALL {
            if only.is_none_or(|only| only == every) && self.settings.count(every) > 0 {
                all.push(self.one(every, &window, now_ns)?);
            }
        }
        Ok(all)
    }

    fn of_kind(&self, every: Every) -> Result<Vec<Published>> {
        let mut trees = self.shelf.list()?;
        trees.retain(|tree| tree.kind == every.word());
        Ok(trees)
    }

    fn one(&mut self, every: Every, window: &Window, now_ns: u64) -> Result<Done> {
        let Some((at_ns, next_ns)) = borders(every, now_ns) else {
            return Err(PastError::Unknown("this host's clock shows no time".into()).into());
        };
        let mut trees = self.of_kind(every)?;
        let count = self.settings.count(every);
        if trees.last().is_some_and(|tree| tree.at_ns >= at_ns) {
            self.shrink(&mut trees, count)?;
            self.name_all(every, &mut trees, None)?;
            return Ok(Done::UpToDate(every));
        }
        let Answer::Stand { at, .. } = self.asks.ask(&Ask::StandHere { here_ns: at_ns })? else {
            return Ok(odd()?);
        };
        let begins = window.begins;
        let Some(begins) = begins.filter(|begins| begins.here_ns <= at_ns) else {
            return Ok(Done::TooEarly { every, next_ns });
        };
        let at = at.filter(|at| at.moment >= begins.moment).unwrap_or(begins);
        // One that is to go anyway, if it is of a time from which all is written down.
        self.shrink(&mut trees, count)?;
        let oldest = (trees.len() >= count)
            .then(|| trees.first().cloned())
            .flatten();
        let usable = oldest.clone().filter(|tree| {
            let known = tree.moment >= begins.moment && tree.moment <= at.moment;
            known && tree.missing == 0 && tree.begins_ns == begins.here_ns
        });
        let wanted = Wanted {
            name: String::new(),
            kind: every.word().into(),
            moment: Moment(at.moment),
            at_ns,
            there_ns: Some(at.there_ns),
            begins_ns: begins.here_ns,
        };
        let (new, work) = self.make(wanted, usable.as_ref())?;
        // It may not have been used.
        if let Some(oldest) = oldest {
            trees.retain(|tree| tree.name != oldest.name);
            let still = self.of_kind(every)?;
            if still.iter().any(|tree| tree.name == oldest.name) {
                self.shelf.remove(&oldest)?;
            }
        }
        let name = self.name_all(every, &mut trees, Some(at_ns))?;
        let tree = self.put(New { name, ..new }, &work)?;
        let path = self.shelf.path(&tree);
        Ok(Done::Made(Box::new(tree), path))
    }

    fn put(&self, new: New, work: &OwnedFd) -> Result<Published> {
        if self.shelf.is_taken(&new.name) {
            return Err(RotateError::Taken(new.name));
        }
        let tree = self.shelf.put(new, work, MADE)?;
        self.shelf.clear()?;
        Ok(tree)
    }

    /// Those beyond their number go.
    fn shrink(&self, trees: &mut Vec<Published>, count: usize) -> Result<()> {
        while trees.len() > count {
            let oldest = trees.remove(0);
            self.shelf.remove(&oldest)?;
        }
        Ok(())
    }

    /// Gives each tree the name it is to have, with a new one of that time if there is one, and returns that one's name.
    fn name_all(
        &self,
        every: Every,
        trees: &mut [Published],
        new_ns: Option<u64>,
    ) -> Result<String> {
        let name = |nth: usize, at_ns: u64| match self.settings.names {
            Names::Dated => format!("{}.{}", every.word(), stamp(at_ns)),
            Names::Numbered => format!("{}.{nth}", every.word()),
        };
        let newer = usize::from(new_ns.is_some());
        let count = trees.len();
        // Each moves to a name that is free by then: the oldest first, or, over a gap, the newest.
        for _ in 0..=count {
            let mut moved = false;
            for (n, tree) in trees.iter_mut().enumerate() {
                let wanted = name(count - 1 - n + newer, tree.at_ns);
                if tree.name != wanted && !self.shelf.is_taken(&wanted) {
                    self.shelf.rename(tree, wanted)?;
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        Ok(name(0, new_ns.unwrap_or(0)))
    }

    /// A tree of a position by a name somebody chose.
    pub fn named(
        &mut self,
        name: &str,
        moment: Moment,
        there_ns: Option<u64>,
    ) -> Result<(Published, PathBuf)> {
        if self.shelf.is_taken(name) {
            return Err(RotateError::Taken(name.into()));
        }
        let begins_ns = self.window()?.begins.map_or(0, |begins| begins.here_ns);
        let wanted = Wanted {
            name: name.into(),
            kind: "named".into(),
            moment,
            at_ns: super::now_ns(),
            there_ns,
            begins_ns,
        };
        let (new, work) = self.make(wanted, None)?;
        let tree = self.put(new, &work)?;
        let path = self.shelf.path(&tree);
        Ok((tree, path))
    }

    /// Makes a tree in [`Shelf::work`], of `old` if it can be.
    fn make(&mut self, wanted: Wanted, old: Option<&Published>) -> Result<(New, OwnedFd)> {
        let mut recycled = None;
        if let Some(old) = old {
            let work = self.shelf.work()?;
            if self.shelf.take(old, &work, MADE)? {
                // One that somebody changed can't become another: then one is made whole.
                match self.fill(&wanted, &work, Some(Moment(old.moment))) {
                    Ok(missing) => recycled = Some((missing, work)),
                    Err(RotateError::Past(PastError::Asking(why))) => {
                        return Err(PastError::Asking(why).into());
                    }
                    Err(_) => self.shelf.clear()?,
                }
            }
        }
        let is_recycled = recycled.is_some();
        let (missing, work) = match recycled {
            Some(done) => done,
            None => {
                let work = self.shelf.work()?;
                (self.fill(&wanted, &work, None)?, work)
            }
        };
        let new = New {
            name: wanted.name,
            kind: wanted.kind,
            moment: wanted.moment,
            at_ns: wanted.at_ns,
            there_ns: wanted.there_ns,
            begins_ns: wanted.begins_ns,
            recycled: is_recycled,
            missing: missing.count,
            missing_paths: missing.paths,
        };
        Ok((new, work))
    }

    fn fill(&mut self, wanted: &Wanted, work: &OwnedFd, from: Option<Moment>) -> Result<Missing> {
        let failed = |e: Errno| RotateError::Work(e.into());
        let rules = Rules::probe(work, self.owners).map_err(failed)?;
        let mut missing = Missing {
            count: 0,
            paths: Vec::new(),
        };
        if from.is_none() {
            target::create_dir(work, MADE).map_err(failed)?;
        }
        let top = open::dir(work, MADE).map_err(failed)?;
        let root = Ask::Root {
            moment: wanted.moment.0,
        };
        let Answer::State(root) = self.asks.ask(&root)? else {
            return Ok(odd()?);
        };
        let root = state_of(&root)?;
        let mut publish = Publish {
            asks: self.asks,
            places: self.places.clone(),
            rules: &rules,
            progress: &mut missing,
            work,
            durable: true,
        };
        match from {
            Some(from) => publish.recycled((from, wanted.moment), &top)?,
            None => publish.whole(wanted.moment, (ObjectId::ROOT, &root, b""), &top)?,
        };
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(text: &str) -> u64 {
        let time: Timestamp = text.parse().unwrap();
        u64::try_from(time.as_nanosecond()).unwrap()
    }

    #[test]
    fn borders_are_full_hours_midnights_mondays_and_firsts() {
        for (every, now, last, next) in [
            (
                Every::Hour,
                "2026-11-22T14:59:59.9Z",
                "2026-11-22T14:00:00Z",
                "2026-11-22T15:00:00Z",
            ),
            (
                Every::Hour,
                "2026-11-22T15:00:00Z",
                "2026-11-22T15:00:00Z",
                "2026-11-22T16:00:00Z",
            ),
            (
                Every::Day,
                "2026-11-22T00:00:00Z",
                "2026-11-22T00:00:00Z",
                "2026-11-23T00:00:00Z",
            ),
            (
                Every::Week,
                "2026-11-22T14:00:00Z",
                "2026-11-16T00:00:00Z",
                "2026-11-23T00:00:00Z",
            ),
            (
                Every::Week,
                "2026-11-23T00:00:00Z",
                "2026-11-23T00:00:00Z",
                "2026-11-30T00:00:00Z",
            ),
            (
                Every::Month,
                "2026-12-31T23:59:59Z",
                "2026-12-01T00:00:00Z",
                "2027-01-01T00:00:00Z",
            ),
        ] {
            assert_eq!(
                borders(every, ns(now)),
                Some((ns(last), ns(next))),
                "{every:?} {now}"
            );
        }
        assert_eq!(stamp(ns("2026-11-22T14:00:00Z")), "20261122T1400Z");
    }
}
