//! Keeping what a batch replaces or removes, before the first name changes: the inodes, and what they were.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mirror_core::history::{Moment, Passing, Row, Trace, Unkept, Was};
use mirror_core::plan::{Occupant, Place};
use mirror_core::{Kind, ObjectId};

use super::batch::{Batch, StepError};
use super::journal::{inode, inode_of};
use super::sifting::{Sifted, sift};
use super::{ApplyError, Store};
use crate::history::slots::Slot;
use crate::history::{self, History};
use crate::sys::Errno;
use crate::sys::stat::Stat;

/// What a batch needs to keep history.
pub(super) struct Keeper<'a> {
    pub history: &'a mut History,
    pub trace: Trace,
    /// Objects whose inodes in the copy may be of an older version than the one that ends here.
    pub owed: BTreeSet<ObjectId>,
    unkept: BTreeMap<Moment, Vec<(ObjectId, Unkept)>>,
    /// What is not to be kept.
    sifted: Sifted,
}

impl<'a> Keeper<'a> {
    pub fn new(history: &'a mut History, trace: Trace, owed: BTreeSet<ObjectId>) -> Keeper<'a> {
        Keeper {
            history,
            trace,
            owed,
            unkept: BTreeMap::new(),
            sifted: Sifted::new(),
        }
    }

    /// Of the bytes of an object that end in this batch: as what they are kept, if they are to be kept.
    fn slot(&self, object: ObjectId) -> Option<Slot> {
        let (until, _) = self.trace.ends.get(&object)?;
        Some(Slot {
            until: *until,
            object,
        })
    }

    fn lost(&mut self, slot: Slot, why: Unkept) {
        let list = self.unkept.entry(slot.until).or_default();
        list.push((slot.object, why));
    }

    fn is_sifted(&self, slot: Slot) -> bool {
        self.sifted.contains_key(&(slot.until, slot.object))
    }

    /// No room, or a broken disk, is no reason to lose a version: the batch comes again.
    fn keep(
        &mut self,
        slot: Slot,
        dir: &OwnedFd,
        name: &[u8],
        seen: &Stat,
    ) -> Result<(), StepError> {
        if self.is_sifted(slot) {
            return Ok(());
        }
        match self.history.slots.keep(slot, dir, name, seen) {
            Ok(_) => Ok(()),
            Err(Errno::STALE | Errno::NOENT) => {
                self.lost(slot, Unkept::Missing);
                Ok(())
            }
            Err(e) => Err(fatal("keep an old version in")(e)),
        }
    }

    /// What the groups changed goes to the catalogue.
    fn write(&mut self) -> Result<(), StepError> {
        let mut groups = std::mem::take(&mut self.trace.groups);
        for group in &mut groups {
            for (object, why) in self.unkept.remove(&group.moment).into_iter().flatten() {
                let was = Was::Unkept { object, why };
                group.rows.push(Row { was, who: None });
            }
        }
        let done = self.history.append(groups);
        done.map_err(|e| StepError::Fatal(ApplyError::History(e)))
    }
}

fn fatal(what: &'static str) -> impl Fn(Errno) -> StepError {
    move |e| {
        let source = e.into();
        StepError::Fatal(ApplyError::History(history::HistoryError::Io {
            what,
            source,
        }))
    }
}

impl<S: Store> Batch<'_, S> {
    /// Keeps all that stands at names of the tree now and will not after this batch, and notes what the batch changes.
    pub(super) fn keep_old(&mut self) -> Result<(), StepError> {
        let Some(mut keeper) = self.keeper.take() else {
            return Ok(());
        };
        let done = self.keep_all(&mut keeper);
        let done = done.and_then(|()| keeper.write());
        self.keeper = Some(keeper);
        done
    }

    fn keep_all(&mut self, keeper: &mut Keeper<'_>) -> Result<(), StepError> {
        let here_ns = keeper.history.now_ns();
        let sieve = &mut keeper.history.sieve;
        let sifted = sift(self.rows.base(), &keeper.trace.groups, sieve, here_ns);
        let sifted = sifted.map_err(|e| StepError::Fatal(super::store_error(e)))?;
        for ((until, object), why) in &sifted {
            keeper.lost(
                Slot {
                    until: *until,
                    object: *object,
                },
                *why,
            );
        }
        keeper.sifted = sifted;
        let mut kept = BTreeSet::new();
        let places: Vec<(Place, ObjectId)> = self
            .now
            .iter()
            .filter_map(|(place, occupant)| match occupant {
                Occupant::Old(id) => Some((place.clone(), *id)),
                Occupant::Is(id) if self.want(*id).is_none() => Some((place.clone(), *id)),
                _ => None,
            })
            .collect();
        for (place, id) in places {
            let old = self.target(id).and_then(|target| target.old.as_ref());
            let Some(old) = old.filter(|old| is_kept(&old.state.kind)) else {
                continue;
            };
            if kept.contains(&id) {
                continue;
            }
            let own = inode_of(&old.local);
            let slot = match keeper.owed.contains(&id) {
                true => self.slot_of_owed(keeper, id)?,
                false => keeper.slot(id),
            };
            let Some(slot) = slot else {
                continue;
            };
            // What goes with its directory is met when that is removed.
            let Ok((dir, name)) = self.physical(&place) else {
                continue;
            };
            let seen = super::area::look(&*dir, &name).map_err(StepError::sys("look"))?;
            let Some(seen) = seen.filter(|seen| inode(seen) == own) else {
                continue;
            };
            keeper.keep(slot, &dir, &name, &seen)?;
            kept.insert(id);
        }
        self.keep_passing(keeper)
    }

    /// The inode of an object whose later version never came: kept as what it is.
    fn slot_of_owed(&self, keeper: &Keeper<'_>, id: ObjectId) -> Result<Option<Slot>, StepError> {
        let Some(old) = self.target(id).and_then(|target| target.old.as_ref()) else {
            return Ok(None);
        };
        let until = keeper
            .trace
            .ends
            .get(&id)
            .map_or(Moment::MAX, |ends| ends.0);
        // The newest version with these bytes that is over.
        let rows = keeper.history.catalogue.rows_of_object(
            id,
            history::Kind::State,
            (Moment(0), until),
            1 << 16,
        );
        let rows = rows.map_err(|e| StepError::Fatal(ApplyError::History(e.into())))?;
        let ended = rows.iter().rev().find_map(|found| {
            let was = found.object_was()?;
            let same = mirror_core::plan::same_inode_kind(&was.state.kind, &old.state.kind);
            (same && was.then.ends_bytes()).then_some(found.moment)
        });
        // Or it ends here.
        let here = keeper.slot(id).filter(|slot| {
            let ends_here = |row: &Row| match &row.was {
                Was::Object { object, state, .. } => {
                    *object == id
                        && mirror_core::plan::same_inode_kind(&state.kind, &old.state.kind)
                }
                _ => false,
            };
            let mut groups = keeper.trace.groups.iter();
            groups.any(|group| group.moment == slot.until && group.rows.iter().any(ends_here))
        });
        let ended = ended.map(|until| Slot { until, object: id });
        Ok(here.or(ended))
    }

    /// Versions that came and went within this batch, so that the copy never shows them.
    fn keep_passing(&mut self, keeper: &mut Keeper<'_>) -> Result<(), StepError> {
        for passing in std::mem::take(&mut keeper.trace.passing) {
            let Passing {
                object,
                until,
                state,
                place,
                void,
                ..
            } = passing;
            let slot = Slot { until, object };
            if !is_kept(&state.kind) || keeper.is_sifted(slot) {
                continue;
            }
            if void {
                keeper.lost(slot, Unkept::Void);
                continue;
            }
            // A batch that was broken off kept it already, or, if power went, perhaps not all of it.
            let bytes = state.kind.content().map(|content| content.bytes);
            let stat = keeper.history.slots.stat(slot);
            if let Some(stat) = stat.map_err(fatal("look into"))? {
                if Some(stat.bytes) == bytes {
                    continue;
                }
                let removed = keeper.history.slots.remove(slot);
                removed.map_err(fatal("write to"))?;
            }
            let (dir, name) = keeper
                .history
                .slots
                .place(slot)
                .map_err(fatal("write to"))?;
            let (mut here, _) = self.rules.here(&state);
            here.meta.flags &= !super::meta::LATE_FLAGS;
            // It gets its name when it is whole.
            let dir = Arc::new(dir);
            let new = [name.as_slice(), b".new"].concat();
            let _ = crate::sys::target::unlink(&*dir, &new);
            match self.make_aside(object, (dir.clone(), new.clone()), here, place)? {
                true => crate::sys::target::rename(&*dir, &new, &*dir, &name)
                    .map_err(fatal("write to"))?,
                false => keeper.lost(slot, Unkept::Void),
            }
        }
        Ok(())
    }

    /// What goes with a directory.
    pub(super) fn keep_going(
        &mut self,
        id: ObjectId,
        dir: &OwnedFd,
        name: &[u8],
    ) -> Result<(), StepError> {
        let Some(mut keeper) = self.keeper.take() else {
            return Ok(());
        };
        let done = self.keep_with_dir(&mut keeper, id, dir, name);
        self.keeper = Some(keeper);
        done
    }

    fn keep_with_dir(
        &mut self,
        keeper: &mut Keeper<'_>,
        id: ObjectId,
        dir: &OwnedFd,
        name: &[u8],
    ) -> Result<(), StepError> {
        let slot = match keeper.owed.contains(&id) {
            true => self.slot_of_owed(keeper, id)?,
            false => keeper.slot(id),
        };
        let (Some(slot), Some(row)) = (slot, self.row(id)?) else {
            return Ok(());
        };
        let seen = super::area::look(dir, name).map_err(StepError::sys("look"))?;
        match seen.filter(|seen| seen.is_file() && inode(seen) == inode_of(&row.local)) {
            Some(seen) if seen.bytes > 0 => keeper.keep(slot, dir, name, &seen),
            _ => Ok(()),
        }
    }
}

/// Whether there is more to keep than what the catalogue says.
pub(super) fn is_kept(kind: &Kind) -> bool {
    kind.content()
        .is_some_and(|content| content.stored_bytes() > 0)
}
