//! The past of a copy: old versions as plain files (`slots`), what they were (`catalogue`), positions with names (`events`),
//! and from these the tree as of any position.
//!
//! Apply keeps the inode before it is replaced, and appends what was before each group; `core::history` says how the tree as
//! of a position follows from that and the rows of the present. Layout and bytes: `docs/FORMAT.md`.

pub mod ask;
pub mod asked;
pub mod calendar;
pub mod catalogue;
pub mod changes;
pub mod checkout;
pub mod clock;
pub mod differs;
pub mod events;
mod format;
pub mod keep;
mod keys;
pub mod links;
pub mod parts;
pub mod prune;
pub mod publish;
pub mod publish_settings;
pub mod published;
mod remove;
pub mod rotate;
pub mod scrub;
pub mod settings;
pub mod slots;
mod spare;
pub mod stopped;
#[cfg(test)]
mod tests;
pub mod times;
pub mod tree;
pub mod views;
pub mod walk;
pub mod whole;

use std::io;
use std::path::Path;
use std::sync::Arc;

use mirror_core::history::asof::{NameWas, ObjectWas};
use mirror_core::history::retention::Lock;
use mirror_core::history::retention::policy::ERAS_MAX;
use mirror_core::history::{Group, Moment, Past, Unkept, Was};
use mirror_core::{At, Name, ObjectId};

use crate::disk::{Disk, RealDisk};
use crate::sys::Errno;
use catalogue::{Catalogue, CatalogueError, Known, Lost, SEGMENT_BYTES_MAX};
use clock::HostClock;
use events::{Event, Events, Why};
use keep::Sieve;
use slots::{Slot, Slots};

pub use format::Dated;
pub use keys::{Kind, Time};
use settings::Settings;

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("cannot {what} the history")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

impl HistoryError {
    fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> HistoryError {
        move |source| HistoryError::Io {
            what,
            source: source.into(),
        }
    }
}

type Result<T> = std::result::Result<T, HistoryError>;

/// See the module. One process has it, the one that holds the mirror's lock.
pub struct History {
    pub catalogue: Catalogue,
    pub slots: Slots,
    pub events: Events,
    /// What gets into it at all.
    pub sieve: Sieve,
    pub clock: HostClock,
    disk: Arc<dyn Disk>,
}

/// This host's clock.
pub fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos() as u64)
}

/// Whether trees that users may need soon would go now: then rotation waits. `Some`: why.
pub fn rotation_is_held(history: &History) -> Option<String> {
    let (_, before, what) = history.events.alarm()?;
    let before = before.position();
    Some(format!(
        "{what} (before it: pos:{before}); `fs_mirror release` lets it go on"
    ))
}

impl History {
    /// That of the mirror with this state directory, made if there is none. What is damaged in it is made again; if that
    /// can't be, history begins anew after what is lost.
    pub fn open(state_dir: &Path, tree: [u8; 16], known: Option<Known>) -> Result<History> {
        let disk = RealDisk::open(state_dir).map_err(HistoryError::io("open"))?;
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let (events, catalogue) = written(disk.clone(), tree, SEGMENT_BYTES_MAX, known)?;
        let latest = catalogue.last_time(&|_| true)?.map(|time| time.here_ns);
        let latest = latest.max(events.latest_ns());
        let lock = events.policies().last().map_or(Lock::Off, |era| era.lock);
        let clock =
            HostClock::open(disk.clone(), latest, lock).map_err(HistoryError::io("read"))?;
        Ok(History {
            events,
            catalogue,
            slots: Slots::open(state_dir).map_err(HistoryError::io("open"))?,
            sieve: Sieve::default(),
            clock,
            disk,
        })
    }

    /// What was damaged and is dealt with since the last call, each in a line.
    pub fn told(&mut self) -> Vec<String> {
        let mut told = std::mem::take(&mut self.events.told);
        told.extend(self.catalogue.told());
        told
    }

    /// By the clock that retention goes by.
    pub fn now_ns(&mut self) -> u64 {
        self.clock.now().ns()
    }

    /// What somebody chose is in force from now on; a change is written down.
    pub fn choose(&mut self, settings: &Settings) -> Result<()> {
        self.sieve = Sieve::new(settings);
        let (policy, lock) = (&settings.policy, settings.lock);
        let eras = self.events.policies();
        if eras
            .last()
            .is_some_and(|era| era.policy == *policy && era.lock == lock)
        {
            return Ok(());
        }
        let binding = eras.iter().filter(|era| era.lock != Lock::Off).count();
        if binding >= ERAS_MAX {
            let text = format!("{ERAS_MAX} policies still bind under the lock");
            return Err(HistoryError::io("change the policy of")(io::Error::other(
                text,
            )));
        }
        let here_ns = self.now_ns();
        let event = Event::policy(policy, lock, here_ns);
        self.clock.set_lock(lock);
        self.events.add(event).map_err(HistoryError::io("write"))
    }

    /// From here on all is written down.
    pub fn begin(&mut self, moment: Moment, there_ns: u64, why: Why) -> Result<()> {
        let event = Event::Begin {
            moment: moment.0,
            there_ns,
            here_ns: self.now_ns(),
            why,
        };
        self.events.add(event).map_err(HistoryError::io("write"))
    }

    /// Groups that are about to be applied.
    pub fn append(&mut self, groups: Vec<Group>) -> Result<()> {
        let here_ns = self.now_ns();
        let dated = |group| Dated { group, here_ns };
        let groups: Vec<Dated> = groups.into_iter().map(dated).collect();
        Ok(self.catalogue.append(&groups)?)
    }

    /// All that was kept and written down is durable.
    pub fn flush(&mut self) -> Result<()> {
        self.slots.flush().map_err(HistoryError::io("flush"))?;
        self.catalogue.flush()?;
        self.clock.save_if_due().map_err(HistoryError::io("write"))
    }

    /// Where what is known without a gap begins.
    pub fn begins(&self) -> Option<Moment> {
        self.events.begins().map(|(moment, ..)| moment).next_back()
    }

    pub fn is_kept(&self, slot: Slot) -> std::result::Result<bool, Errno> {
        Ok(self.slots.stat(slot)?.is_some())
    }
}

/// What is written down of the past.
fn written(
    disk: Arc<dyn Disk>,
    tree: [u8; 16],
    segment_bytes_max: u64,
    known: Option<Known>,
) -> Result<(Events, Catalogue)> {
    let mut events = Events::open(&*disk).map_err(HistoryError::io("read"))?;
    if let Some(known) = known
        && (events.lost || events.begins().next().is_none())
        && (events.lost || known.last.is_some())
    {
        begin_after(&mut events, known.now).map_err(HistoryError::io("write"))?;
    }
    let mut lost = |lost: Lost| {
        begin_after(&mut events, lost.known_from).map_err(|source| CatalogueError::Io {
            what: "begin anew after what is damaged in",
            name: lost.name,
            source,
        })
    };
    let catalogue = Catalogue::open_with(disk, tree, segment_bytes_max, known, &mut lost)?;
    Ok((events, catalogue))
}

/// What was before is not known any more.
fn begin_after(events: &mut Events, moment: Moment) -> io::Result<bool> {
    let begins = events.begins().map(|(moment, ..)| moment).next_back();
    if begins >= Some(moment) && !std::mem::take(&mut events.lost) {
        return Ok(false);
    }
    let why = Why::Damaged;
    let begin = Event::Begin {
        moment: moment.0,
        // When that was at the worker, nobody here knows better.
        there_ns: now_ns(),
        // Not by the wall: what is written down moves the clock that retention goes by.
        here_ns: events.latest_ns().unwrap_or(0),
        why,
    };
    events.add(begin).map(|()| true)
}

impl Past for History {
    type Error = HistoryError;
    fn name_after(&self, at: &At, moment: Moment) -> Result<Option<NameWas>> {
        let found = self.catalogue.name_after(at, moment)?;
        Ok(found.and_then(|found| found.name_was()))
    }
    fn names_after(
        &self,
        dir: ObjectId,
        moment: Moment,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, NameWas)>> {
        let found = self.catalogue.names_after(dir, moment, after, max)?;
        let was = |(name, found): (Name, catalogue::Found)| Some((name, found.name_was()?));
        Ok(found.into_iter().filter_map(was).collect())
    }
    fn object_after(&self, id: ObjectId, moment: Moment) -> Result<Option<ObjectWas>> {
        let found = self.catalogue.object_after(id, Kind::State, moment)?;
        Ok(found.and_then(|found| found.object_was()))
    }
    fn kept(&self, id: ObjectId, until: Moment) -> Result<std::result::Result<(), Unkept>> {
        let slot = Slot { until, object: id };
        if self.is_kept(slot).map_err(HistoryError::io("look into"))? {
            return Ok(Ok(()));
        }
        let before = Moment(until.0.saturating_sub(1));
        let found = self.catalogue.object_after(id, Kind::Unkept, before)?;
        Ok(Err(match found {
            Some(found) if found.moment == until => match found.row.was {
                Was::Unkept { why, .. } => why,
                _ => Unkept::Missing,
            },
            _ => Unkept::Missing,
        }))
    }
}
