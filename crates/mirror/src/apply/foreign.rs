//! Inodes of the copy with names that are not the copy's, as in snapshots somebody makes of links (`cp -al`, rsnapshot):
//! what such an inode shows elsewhere is not ours to change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mirror_core::plan::{Occupant, Place, Seen};
use mirror_core::{At, ObjectId};

use super::batch::{Batch, StepError};
use super::journal::{Inode, inode, inode_of};
use super::{Store, crash};
use crate::sys::target;

impl<S: Store> Batch<'_, S> {
    /// An equal inode that somebody put at one name does not stand for an object whose own inode is there at another.
    pub fn one_inode_each(&mut self, seen: &mut Seen) {
        let shows = |at: &At, stat: &Inode| {
            self.stats
                .get(at)
                .is_some_and(|found| inode(found) == *stat)
        };
        let mut twice = BTreeMap::new();
        for (id, made) in &self.made {
            let Some(old) = self.target(*id).and_then(|t| t.old.as_ref()) else {
                continue;
            };
            let (own, other) = (inode_of(&old.local), inode_of(made));
            let is = Some(Occupant::Is(*id));
            let mut slots = seen.slots.iter();
            if own != other && slots.any(|(at, found)| *found == is && shows(at, &own)) {
                twice.insert(*id, other);
            }
        }
        for (at, occupant) in &mut seen.slots {
            if let Some(Occupant::Is(id)) = occupant
                && twice.get(id).is_some_and(|other| shows(at, other))
            {
                *occupant = Some(Occupant::Old(*id));
            }
        }
        for id in twice.keys() {
            self.made.remove(id);
        }
    }

    /// Whatever would be changed in place though it has more links than we know of is to be replaced instead. Every name
    /// that an earlier run can have left of it was looked at, or is in limbo: a link that is not found is not ours.
    pub fn spare_foreign(&mut self, seen: &mut Seen) -> Result<(), StepError> {
        let mut found: HashMap<Inode, u32> = HashMap::new();
        for stat in self.stats.values() {
            if stat.nlink > 1 && !stat.is_dir() {
                *found.entry(inode(stat)).or_default() += 1;
            }
        }
        for (inode, unseen) in &self.unseen {
            *found.entry(*inode).or_default() += unseen;
        }
        if found.is_empty() || crash::planted("break_hardlink") {
            return Ok(());
        }
        for id in seen.limbo.values() {
            if let Some(old) = self.target(*id).and_then(|t| t.old.as_ref()) {
                *found.entry(inode_of(&old.local)).or_default() += 1;
            }
        }
        // Each object once: all its names show one inode.
        let mut doubtful = BTreeMap::new();
        for (at, occupant) in &seen.slots {
            if let (Some(Occupant::Is(id)), Some(stat)) = (occupant, self.stats.get(at))
                && !stat.is_dir()
                && stat.nlink > found.get(&inode(stat)).copied().unwrap_or(1)
            {
                doubtful.entry(*id).or_insert_with(|| (at.clone(), *stat));
            }
        }
        let mut spared = BTreeSet::new();
        for (id, (at, stat)) in doubtful {
            let Some(want) = self.want(id).map(|want| want.state.clone()) else {
                continue;
            };
            let (here, _) = self.rules.here(&want);
            let dir = self.dir(at.parent)?;
            let same = match self.rules.read(&dir, at.name.as_bytes()) {
                Ok((now, have)) => now.same_inode(&stat) && self.rules.same(&have, &here.meta),
                Err(_) => false,
            };
            if same {
                continue;
            }
            if self.made.remove(&id).is_some() && !self.journal.before.contains_key(&inode(&stat)) {
                self.counts.adopted = self.counts.adopted.saturating_sub(1);
            }
            spared.insert(id);
        }
        for occupant in seen.slots.values_mut() {
            if let Some(Occupant::Is(id)) = occupant
                && spared.contains(id)
            {
                *occupant = Some(Occupant::Old(*id));
            }
        }
        self.unpin(seen, &spared)
    }

    /// What a crash left of these in limbo is the same inode: no more than a name of ours that it loses.
    fn unpin(&mut self, seen: &mut Seen, spared: &BTreeSet<ObjectId>) -> Result<(), StepError> {
        let pins: Vec<Place> = seen
            .limbo
            .iter()
            .filter(|(_, id)| spared.contains(id))
            .map(|(place, _)| place.clone())
            .collect();
        for place in pins {
            if let Some((dir, name)) = self.area.outside(&place) {
                target::unlink(&dir, &name).map_err(StepError::sys("remove"))?;
            }
            seen.limbo.remove(&place);
        }
        Ok(())
    }
}
