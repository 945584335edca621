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
pub mod differs;
pub mod events;
mod format;
mod keys;
pub mod publish_settings;
pub mod slots;
pub mod stopped;
#[cfg(test)]
mod tests;
pub mod times;
pub mod tree;

use std::io;
use std::path::Path;
use std::sync::Arc;

use mirror_core::history::asof::{NameWas, ObjectWas};
use mirror_core::history::{Group, Moment, Past, Unkept, Was};
use mirror_core::{At, Name, ObjectId};

use crate::disk::{Disk, RealDisk};
use crate::sys::Errno;
use catalogue::{Catalogue, CatalogueError};
use events::{Event, Events, Why};
use slots::{Slot, Slots};

pub use format::Dated;
pub use keys::{Kind, Time};

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
}

/// This host's clock.
pub fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos() as u64)
}

impl History {
    /// That of the mirror with this state directory, made if there is none.
    pub fn open(state_dir: &Path, tree: [u8; 16]) -> Result<History> {
        let disk = RealDisk::open(state_dir).map_err(HistoryError::io("open"))?;
        let disk: Arc<dyn Disk> = Arc::new(disk);
        Ok(History {
            events: Events::open(&*disk).map_err(HistoryError::io("read"))?,
            catalogue: Catalogue::open(disk, tree)?,
            slots: Slots::open(state_dir).map_err(HistoryError::io("open"))?,
        })
    }

    /// From here on all is written down.
    pub fn begin(&mut self, moment: Moment, there_ns: u64, why: Why) -> Result<()> {
        let event = Event::Begin {
            moment: moment.0,
            there_ns,
            here_ns: now_ns(),
            why,
        };
        self.events.add(event).map_err(HistoryError::io("write"))
    }

    /// Groups that are about to be applied.
    pub fn append(&mut self, groups: Vec<Group>) -> Result<()> {
        let here_ns = now_ns();
        let dated = |group| Dated { group, here_ns };
        let groups: Vec<Dated> = groups.into_iter().map(dated).collect();
        Ok(self.catalogue.append(&groups)?)
    }

    /// All that was kept and written down is durable.
    pub fn flush(&mut self) -> Result<()> {
        self.slots.flush().map_err(HistoryError::io("flush"))?;
        Ok(self.catalogue.flush()?)
    }

    /// Where what is known without a gap begins.
    pub fn begins(&self) -> Option<Moment> {
        self.events.begins().map(|(moment, ..)| moment).next_back()
    }

    pub fn is_kept(&self, slot: Slot) -> std::result::Result<bool, Errno> {
        Ok(self.slots.stat(slot)?.is_some())
    }
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
