//! Which steps, in which order. The laws are in the module's comment.
//!
//! The planner plays the steps on a small model of the names concerned while it writes them down. First new
//! things are staged, whole directories at once. Then every name that must show something else gets it: from staging
//! or limbo by rename, or by exchange where a directory stands in the way, so that the old occupant leaves in the same
//! instant. Files that move and whose old name is wanted by another are pinned in limbo by a link first; directories
//! trade places. What then is left over is deleted.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::{Merged, Occupant, Place, Plan, Seen, Step};
use crate::rows::{Object, Rows};
use crate::types::*;

/// The steps that make the copy what `merged` says, starting from what was `seen`.
pub fn order<R: Rows>(rows: &R, merged: &Merged, seen: &Seen) -> Result<Plan, R::Error> {
    let mut planner = Planner::new(rows, merged, seen);
    planner.stage();
    planner.pin();
    planner.place_all()?;
    planner.metas();
    planner.deletes();
    Ok(planner.plan)
}

struct Planner<'a, R> {
    rows: &'a R,
    merged: &'a Merged,
    plan: Plan,
    /// What stands at each name concerned now.
    now: BTreeMap<At, Occupant>,
    /// What each name concerned must show at the end.
    end: BTreeMap<At, ObjectId>,
    /// Where each directory concerned is now.
    dirs: BTreeMap<ObjectId, Place>,
    /// Where the right inode of each other object concerned is now.
    good: BTreeMap<ObjectId, Good>,
    /// How many names each of those must get yet.
    owes: BTreeMap<ObjectId, usize>,
    /// Objects that had to be made.
    fresh: BTreeSet<ObjectId>,
    /// Directories made in staging, and still there or in a directory that is.
    staged_dirs: BTreeSet<ObjectId>,
    /// Things in limbo that nobody wants at the end.
    leftover: BTreeMap<Place, Occupant>,
    /// Directories in which a name changed.
    changed: BTreeSet<ObjectId>,
    links: u32,
}

/// Places of an object's right inode, by what they must show at the end. A file may have very many.
#[derive(Default)]
struct Good {
    /// The object.
    right: BTreeSet<Place>,
    /// Nothing.
    free: BTreeSet<Place>,
    /// Another one.
    taken: BTreeSet<Place>,
}

impl Good {
    fn sets(&self) -> [&BTreeSet<Place>; 3] {
        [&self.right, &self.free, &self.taken]
    }
    fn first(&self) -> Option<&Place> {
        self.sets().into_iter().filter_map(BTreeSet::first).min()
    }
    fn places(&self) -> impl Iterator<Item = &Place> {
        self.sets().into_iter().flatten()
    }
    fn is_empty(&self) -> bool {
        self.first().is_none()
    }
    fn contains(&self, place: &Place) -> bool {
        self.sets().iter().any(|set| set.contains(place))
    }
}

/// What trying to fill a name came to.
enum Placed {
    Done,
    Later,
}

impl<'a, R: Rows> Planner<'a, R> {
    fn new(rows: &'a R, merged: &'a Merged, seen: &Seen) -> Self {
        let mut planner = Planner {
            rows,
            merged,
            plan: Plan::default(),
            now: BTreeMap::new(),
            end: BTreeMap::new(),
            dirs: BTreeMap::new(),
            good: BTreeMap::new(),
            owes: BTreeMap::new(),
            fresh: BTreeSet::new(),
            staged_dirs: BTreeSet::new(),
            leftover: BTreeMap::new(),
            changed: BTreeSet::new(),
            links: 0,
        };
        for (id, target) in &merged.objects {
            let (before, after) = target.names(seen.sure.contains(id));
            for at in &after {
                planner.end.insert(at.clone(), *id);
            }
            for at in &before {
                if seen.slots.contains_key(at) {
                    continue;
                }
                let stays = target.want.is_none() || target.keeps_content();
                let occupant = if stays {
                    Occupant::Is(*id)
                } else {
                    Occupant::Old(*id)
                };
                planner.now.insert(at.clone(), occupant);
            }
        }
        for (at, occupant) in &seen.slots {
            if let Some(occupant) = occupant {
                planner.now.insert(at.clone(), *occupant);
            }
        }
        // What is below a directory that goes, goes with it.
        let gone = |at: &At| {
            merged
                .objects
                .get(&at.parent)
                .is_some_and(|t| t.want.is_none())
        };
        let shows = |at: &At, id: &ObjectId| planner.now.get(at) == Some(&Occupant::Is(*id));
        let placed = planner.end.iter().filter(|(at, id)| shows(at, id));
        let placed: BTreeSet<ObjectId> = placed.map(|(_, id)| *id).collect();
        // An inode that will not be needed at any name. A further name of a file that keeps others: enough that its
        // right inode stands elsewhere.
        let unwanted = |occupant: &Occupant| match occupant {
            Occupant::Is(id) => planner.want(*id).is_none() || placed.contains(id),
            Occupant::Old(_) => true,
            Occupant::Strange { .. } => false,
        };
        let going = planner
            .now
            .iter()
            .filter(|(at, occupant)| gone(at) && unwanted(occupant));
        let going: Vec<At> = going.map(|(at, _)| at.clone()).collect();
        for at in going {
            planner.now.remove(&at);
        }
        for (at, id) in &planner.end {
            let shows = planner.now.get(at) == Some(&Occupant::Is(*id));
            *planner.owes.entry(*id).or_default() += usize::from(!shows);
        }
        let now = core::mem::take(&mut planner.now);
        for (at, occupant) in &now {
            if let Occupant::Is(id) = occupant {
                planner.arrives(*id, Place::Tree(at.clone()));
            }
        }
        planner.now = now;
        for (place, id) in &seen.limbo {
            if planner.is_dir(*id) {
                planner.dirs.entry(*id).or_insert(place.clone());
            } else if planner.want(*id).is_some()
                && merged.objects.get(id).is_some_and(|t| t.keeps_content())
            {
                planner.arrives(*id, place.clone());
            } else {
                planner.leftover.insert(place.clone(), Occupant::Old(*id));
            }
        }
        for (id, target) in &merged.objects {
            let there = planner.dirs.contains_key(id)
                || planner.good.get(id).is_some_and(|good| !good.is_empty());
            if target.want.is_some() && !there && *id != ObjectId::ROOT {
                planner.fresh.insert(*id);
            }
        }
        planner
    }

    fn want(&self, id: ObjectId) -> Option<&'a Object> {
        self.merged.objects.get(&id).and_then(|t| t.want.as_ref())
    }
    fn is_dir(&self, id: ObjectId) -> bool {
        self.merged.objects.get(&id).is_some_and(|t| t.is_dir())
    }
    fn is_dir_occupant(&self, occupant: &Occupant) -> bool {
        match occupant {
            Occupant::Is(id) | Occupant::Old(id) => self.is_dir(*id),
            Occupant::Strange { dir } => *dir,
        }
    }
    fn arrives(&mut self, id: ObjectId, place: Place) {
        if self.is_dir(id) {
            self.dirs.insert(id, place);
        } else {
            let end = self.ends_as(&place);
            let good = self.good.entry(id).or_default();
            match end {
                Some(end) if end == id => good.right.insert(place),
                Some(_) => good.taken.insert(place),
                None => good.free.insert(place),
            };
        }
    }
    fn leaves(&mut self, id: ObjectId, place: &Place) {
        if let Some(good) = self.good.get_mut(&id) {
            let _ = good.right.remove(place) || good.free.remove(place) || good.taken.remove(place);
        }
    }
    /// A name shows something else now. Returns what it showed before.
    fn show(&mut self, at: &At, occupant: Option<Occupant>) -> Option<Occupant> {
        let before = match occupant {
            Some(occupant) => self.now.insert(at.clone(), occupant),
            None => self.now.remove(at),
        };
        if let Some(id) = self.end.get(at) {
            let right = Some(Occupant::Is(*id));
            let owes = self.owes.entry(*id).or_default();
            *owes = (*owes + usize::from(before == right))
                .saturating_sub(usize::from(occupant == right));
        }
        before
    }
    fn ends_as(&self, place: &Place) -> Option<ObjectId> {
        match place {
            Place::Tree(at) => self.end.get(at).copied(),
            _ => None,
        }
    }
    fn step(&mut self, step: Step) {
        self.plan.steps.push(step);
    }

    // Staging.

    /// New directories are built whole: below a new directory everything new, and every further link, is made in place.
    fn stage(&mut self) {
        let fresh_dirs: Vec<ObjectId> = self
            .fresh
            .iter()
            .copied()
            .filter(|id| self.is_dir(*id))
            .collect();
        let mut order = Vec::new();
        for id in fresh_dirs {
            let mut chain = Vec::new();
            let mut at = id;
            while self.fresh.contains(&at)
                && !self.staged_dirs.contains(&at)
                && !chain.contains(&at)
            {
                chain.push(at);
                match self.want(at).and_then(|w| w.names.first()) {
                    Some(name) => at = name.parent,
                    None => break,
                }
            }
            for id in chain.into_iter().rev() {
                if self.staged_dirs.insert(id) {
                    order.push(id);
                }
            }
        }
        for id in &order {
            let Some(at) = self.want(*id).and_then(|w| w.names.first()).cloned() else {
                continue;
            };
            self.make(*id, at);
        }
        let others: Vec<ObjectId> = self
            .fresh
            .iter()
            .copied()
            .filter(|id| !self.is_dir(*id))
            .collect();
        for id in others {
            let Some(want) = self.want(id) else { continue };
            let inside = want
                .names
                .iter()
                .find(|at| self.staged_dirs.contains(&at.parent));
            match inside.or(want.names.first()).cloned() {
                Some(at) => self.make(id, at),
                None => continue,
            }
        }
        // Further links in new directories, of old inodes too.
        let open = self.end.iter().filter(|(at, id)| {
            self.staged_dirs.contains(&at.parent)
                && !self.now.contains_key(at)
                && !self.is_dir(**id)
        });
        let open: Vec<(At, ObjectId)> = open.map(|(at, id)| (at.clone(), *id)).collect();
        for (at, id) in open {
            if let Some(from) = self.good.get(&id).and_then(|good| good.first()).cloned() {
                self.link(id, from, Place::Tree(at));
            }
        }
        for id in order.iter().rev() {
            self.step(Step::Finish { object: *id });
        }
        self.step(Step::FlushStaged);
    }

    fn make(&mut self, id: ObjectId, at: At) {
        let inside = self.staged_dirs.contains(&at.parent) && !self.now.contains_key(&at);
        let place = if inside {
            Place::Tree(at.clone())
        } else {
            Place::Staging(id, 0)
        };
        if inside {
            self.show(&at, Some(Occupant::Is(id)));
        }
        self.arrives(id, place.clone());
        self.step(Step::Stage { object: id, place });
    }

    // Steps played on the model.

    fn link(&mut self, id: ObjectId, from: Place, to: Place) {
        if let Place::Tree(at) = &to {
            self.show(at, Some(Occupant::Is(id)));
            self.changed.insert(at.parent);
        }
        self.arrives(id, to.clone());
        self.step(Step::Link {
            object: id,
            from,
            to,
        });
    }

    fn rename(&mut self, id: ObjectId, from: Place, to: Place) {
        let over = match &to {
            Place::Tree(at) => {
                self.changed.insert(at.parent);
                self.show(at, Some(Occupant::Is(id)))
            }
            _ => None,
        };
        if let Place::Tree(at) = &from {
            self.show(at, None);
            self.changed.insert(at.parent);
        }
        if let Some(Occupant::Is(lost)) = over {
            self.leaves(lost, &to);
        }
        self.leaves(id, &from);
        self.arrives(id, to.clone());
        self.step(Step::Rename {
            object: id,
            from,
            to,
            over,
        });
    }

    fn exchange(&mut self, id: ObjectId, from: Place, to: At, other: Occupant) {
        self.changed.insert(to.parent);
        let there = Place::Tree(to.clone());
        self.leaves(id, &from);
        if let Occupant::Is(other) = other {
            self.leaves(other, &there);
        }
        self.show(&to, Some(Occupant::Is(id)));
        self.arrives(id, there);
        match &from {
            Place::Tree(at) => {
                self.changed.insert(at.parent);
                self.show(at, Some(other));
            }
            place if !matches!(other, Occupant::Is(_)) => {
                self.leftover.insert(place.clone(), other);
            }
            _ => {}
        }
        if let Occupant::Is(other) = other {
            self.arrives(other, from.clone());
        }
        self.step(Step::Exchange {
            object: id,
            from,
            to,
            other,
        });
    }

    /// Where `id` waits to be exchanged with `other`, so that a crash leaves no doubt about what is there.
    fn waiting_room(id: ObjectId, other: Occupant) -> Place {
        match other {
            Occupant::Is(other) | Occupant::Old(other) => Place::Limbo(id, other),
            Occupant::Strange { .. } => Place::Aside(id),
        }
    }

    // Names.

    /// A file that moves away from names which others will get: keep a link of it where nobody else comes.
    fn pin(&mut self) {
        let in_danger = |(id, good): (&ObjectId, &Good)| {
            let owes = self.owes.get(id).is_some_and(|owes| *owes > 0);
            let safe = !good.right.is_empty() || !good.free.is_empty();
            let from = good.first().filter(|_| owes && !safe)?;
            Some((*id, from.clone()))
        };
        let pins: Vec<(ObjectId, Place)> = self.good.iter().filter_map(in_danger).collect();
        for (id, from) in pins {
            self.link(id, from, Place::Limbo(id, id));
        }
    }

    fn place_all(&mut self) -> Result<(), R::Error> {
        let wrong = |(at, id): &(&At, &ObjectId)| self.now.get(at) != Some(&Occupant::Is(**id));
        let open = self.end.iter().filter(wrong);
        let mut open: Vec<At> = open.map(|(at, _)| at.clone()).collect();
        let mut forced = 0;
        let forced_max = 4 * open.len() + 16;
        loop {
            let mut later = Vec::new();
            let before = self.plan.steps.len();
            for at in open {
                let Some(id) = self.end.get(&at).copied() else {
                    continue;
                };
                if self.now.get(&at) == Some(&Occupant::Is(id)) {
                    continue;
                }
                match self.place(id, &at)? {
                    Placed::Done => {}
                    Placed::Later => later.push(at),
                }
            }
            open = later;
            if open.is_empty() {
                return Ok(());
            }
            if self.plan.steps.len() == before {
                forced += 1;
                if forced > forced_max || !self.force(&open)? {
                    let stuck = open.iter().filter_map(|at| self.end.get(at).copied());
                    self.plan.stuck.extend(stuck);
                    return Ok(());
                }
            }
        }
    }

    /// Gives the name its final object if that breaks no law now.
    fn place(&mut self, id: ObjectId, at: &At) -> Result<Placed, R::Error> {
        if self.is_dir(id) {
            self.place_dir(id, at)
        } else {
            Ok(self.place_other(id, at))
        }
    }

    fn place_other(&mut self, id: ObjectId, at: &At) -> Placed {
        let Some(good) = self.good.get(&id) else {
            return Placed::Later;
        };
        // A place that nobody needs at the end can be moved, once all other names have theirs.
        let spare = match self.owes.get(&id) {
            Some(1) => good.free.first(),
            _ => None,
        };
        let base = good.right.first().or(good.free.first());
        let base = base.or(good.taken.first());
        let (Some(base), spare) = (base.cloned(), spare.cloned()) else {
            return Placed::Later;
        };
        let to = Place::Tree(at.clone());
        let Some(there) = self.now.get(at).copied() else {
            match spare {
                Some(spare) => self.rename(id, spare, to),
                None => self.link(id, base, to),
            }
            return Placed::Done;
        };
        if self.is_dir_occupant(&there) {
            let room = Self::waiting_room(id, there);
            match spare {
                // A crash left it there.
                _ if self.good.get(&id).is_some_and(|good| good.contains(&room)) => {}
                Some(spare) => self.rename(id, spare, room.clone()),
                None => self.link(id, base, room.clone()),
            }
            self.exchange(id, room, at.clone(), there);
        } else {
            match spare {
                Some(spare) => self.rename(id, spare, to),
                None => {
                    self.links += 1;
                    let step = Place::Staging(id, self.links);
                    self.link(id, base, step.clone());
                    self.rename(id, step, to);
                }
            }
        }
        Placed::Done
    }

    fn place_dir(&mut self, id: ObjectId, at: &At) -> Result<Placed, R::Error> {
        let Some(from) = self.dirs.get(&id).cloned() else {
            return Ok(Placed::Later);
        };
        if self.is_below(at.parent, id)? {
            return Ok(Placed::Later);
        }
        let to = Place::Tree(at.clone());
        let there = self.now.get(at).copied();
        match (&from, there) {
            // Another one must come here in the instant this one leaves: that one's turn takes this one out.
            (Place::Tree(_), there) if self.must_trade(&from, there) => Ok(Placed::Later),
            (_, None) => {
                self.rename(id, from, to);
                Ok(Placed::Done)
            }
            (Place::Tree(old), Some(other)) if !self.is_inside(old.parent, other)? => {
                self.exchange(id, from, at.clone(), other);
                Ok(Placed::Done)
            }
            (_, Some(other)) => {
                let room = Self::waiting_room(id, other);
                if from != room {
                    self.rename(id, from, room.clone());
                }
                self.exchange(id, room, at.clone(), other);
                Ok(Placed::Done)
            }
        }
    }

    /// The name the directory leaves will show something else, which is not what it would trade places with.
    fn must_trade(&self, from: &Place, there: Option<Occupant>) -> bool {
        self.ends_as(from)
            .is_some_and(|end| there != Some(Occupant::Is(end)))
    }

    /// Nothing could be placed: only directories are left, in cycles or in each other's way.
    fn force(&mut self, open: &[At]) -> Result<bool, R::Error> {
        // A cycle: trade, which puts one of them where it belongs.
        for at in open {
            let (Some(id), Some(other)) = (self.end.get(at).copied(), self.now.get(at).copied())
            else {
                continue;
            };
            let Some(Place::Tree(old)) = self.dirs.get(&id).cloned() else {
                continue;
            };
            if !self.is_below(at.parent, id)? && !self.is_inside(old.parent, other)? {
                self.exchange(id, Place::Tree(old), at.clone(), other);
                return Ok(true);
            }
        }
        // In each other's way: something between the two moves, so its name is not one that must stay. Take it out.
        for at in open {
            let Some(id) = self.end.get(at).copied() else {
                continue;
            };
            let Some(from) = self.dirs.get(&id).cloned() else {
                continue;
            };
            for dir in self.path_up(at.parent)? {
                if dir == id {
                    break;
                }
                if self.is_misplaced(dir) && self.send_to_limbo(dir) {
                    return Ok(true);
                }
            }
            if matches!(from, Place::Tree(_)) && self.send_to_limbo(id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn send_to_limbo(&mut self, id: ObjectId) -> bool {
        match self.dirs.get(&id).cloned() {
            Some(from @ Place::Tree(_)) => {
                self.rename(id, from, Place::Limbo(id, id));
                true
            }
            _ => false,
        }
    }

    fn is_misplaced(&self, dir: ObjectId) -> bool {
        match (
            self.dirs.get(&dir),
            self.want(dir).and_then(|w| w.names.first()),
        ) {
            (Some(Place::Tree(now)), Some(end)) => now != end,
            _ => false,
        }
    }

    /// The directory and those above it, as they stand now.
    fn path_up(&self, dir: ObjectId) -> Result<Vec<ObjectId>, R::Error> {
        let mut path = vec![dir];
        let mut at = dir;
        while at != ObjectId::ROOT {
            let up = match self.dirs.get(&at) {
                Some(Place::Tree(name)) => Some(name.parent),
                Some(_) => None,
                None => self
                    .rows
                    .object(at)?
                    .and_then(|o| o.names.first().map(|name| name.parent)),
            };
            match up {
                Some(up) if !path.contains(&up) => {
                    path.push(up);
                    at = up;
                }
                _ => break,
            }
        }
        Ok(path)
    }

    fn is_below(&self, dir: ObjectId, top: ObjectId) -> Result<bool, R::Error> {
        Ok(self.path_up(dir)?.contains(&top))
    }

    /// Whether `dir` is, or is below, this occupant.
    fn is_inside(&self, dir: ObjectId, occupant: Occupant) -> Result<bool, R::Error> {
        match occupant {
            Occupant::Is(id) if self.is_dir(id) => self.is_below(dir, id),
            _ => Ok(false),
        }
    }

    // After the names.

    fn metas(&mut self) {
        for (id, target) in &self.merged.objects {
            if target.want.is_some() && !self.fresh.contains(id) && !self.is_dir(*id) {
                self.step(Step::Meta { object: *id });
            }
        }
    }

    fn deletes(&mut self) {
        let mut removes = Vec::new();
        let over = self.now.iter().filter(|(at, _)| !self.end.contains_key(at));
        let over: Vec<(At, Occupant)> =
            over.map(|(at, occupant)| (at.clone(), *occupant)).collect();
        for (at, occupant) in over {
            let place = Place::Tree(at.clone());
            match occupant {
                Occupant::Strange { .. } => self.step(Step::Aside { place }),
                Occupant::Is(id) if self.is_dir(id) => {
                    if self.want(id).is_none() {
                        let limbo = Place::Limbo(id, id);
                        self.rename(id, place, limbo.clone());
                        removes.push((id, limbo));
                    }
                }
                _ => self.step(Step::Unlink { place, occupant }),
            }
            self.changed.insert(at.parent);
        }
        let queued: BTreeSet<ObjectId> = removes.iter().map(|(id, _)| *id).collect();
        for (id, place) in &self.dirs {
            let outside = !matches!(place, Place::Tree(_));
            if outside && self.want(*id).is_none() && !queued.contains(id) {
                removes.push((*id, place.clone()));
            }
        }
        for (id, good) in &self.good {
            for place in good
                .places()
                .filter(|place| !matches!(place, Place::Tree(_)))
            {
                self.plan.steps.push(Step::Unlink {
                    place: place.clone(),
                    occupant: Occupant::Is(*id),
                });
            }
        }
        for (place, occupant) in self.leftover.clone() {
            match occupant {
                Occupant::Strange { .. } => self.step(Step::Aside { place }),
                _ => self.step(Step::Unlink { place, occupant }),
            }
        }
        self.dir_metas();
        self.step(Step::FlushDirs);
        for (object, place) in removes {
            self.step(Step::Remove { object, place });
        }
    }

    fn dir_metas(&mut self) {
        let touched = self
            .merged
            .objects
            .iter()
            .filter(|(id, t)| t.want.is_some() && self.is_dir(**id));
        let mut dirs: BTreeSet<ObjectId> = touched.map(|(id, _)| *id).collect();
        let gone = |id: &ObjectId| {
            self.merged
                .objects
                .get(id)
                .is_some_and(|t| t.want.is_none())
        };
        dirs.extend(self.changed.iter().filter(|id| !gone(id)));
        for object in dirs {
            self.step(Step::DirMeta { object });
        }
    }
}
