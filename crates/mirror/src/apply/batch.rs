//! One batch on its way into the tree: what is at every place concerned, and the rows as they become true.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mirror_core::plan::{Merged, Occupant, Overlay, Place, Seen, Target};
use mirror_core::{At, Kind, Local, Meta, Names, Object, ObjectId, Position, Rows, State};

use super::area::{Area, look};
use super::dirs::{DirError, Dirs, is_local};
use super::journal::{Inode, Journal, inode, inode_of};
use super::keeping::Keeper;
use super::meta::Rules;
use super::pending::Replaced;
use super::staging::local_of;
use super::{ApplyError, Contents, Counts, Failure, Options, Staging, Store, store_error};
use crate::sys::Errno;
use crate::sys::stat::Stat;

/// See the module.
pub(super) struct Batch<'a, S: Store> {
    pub rows: Overlay<'a, S>,
    pub area: &'a mut Area,
    pub dirs: &'a mut Dirs,
    pub rules: &'a Rules,
    pub staging: &'a Staging,
    pub contents: &'a dyn Contents,
    pub options: &'a Options,
    pub merged: &'a Merged,
    pub journal: &'a mut Journal,
    /// Where old versions go, if they are kept.
    pub keeper: Option<Keeper<'a>>,
    /// See [`super::pending::Pending`].
    pub replaced: &'a BTreeMap<Inode, Replaced>,
    /// Where the batch leads.
    pub position: Option<Position>,
    /// After a crash or an error: the tree may show any mixture of before and after.
    pub replaying: bool,

    /// What is at each place concerned.
    pub now: BTreeMap<Place, Occupant>,
    /// How many of its wanted names do not show an object's right inode, of objects that have such.
    pub unplaced: BTreeMap<ObjectId, usize>,
    /// What was seen at names, to be compared before they are overwritten.
    pub stats: BTreeMap<At, Stat>,
    /// Whose inodes the objects concerned had before.
    pub known: HashMap<Inode, ObjectId>,
    /// How many names of an inode surely are as the rows say, and were not looked at.
    pub unseen: HashMap<Inode, u32>,
    /// Inodes that are, or become, an object's: made or found in this batch.
    pub made: BTreeMap<ObjectId, Local>,
    /// Of those, the ones whose metadata is already as wanted.
    pub complete: BTreeSet<ObjectId>,
    pub failed: BTreeMap<ObjectId, Failure>,
    /// Of those: their contents are on their way.
    pub travels: BTreeSet<ObjectId>,
    /// What strange things outside the tree were called in it.
    pub called: BTreeMap<Place, Vec<u8>>,
    /// Objects whose inode's ctime changed.
    pub stirred: BTreeSet<ObjectId>,
    /// Objects whose inode got another mtime by us, so that every name of it shows that.
    pub stamped: BTreeSet<ObjectId>,
    /// Objects whose immutable or append-only flag is still to be set.
    pub late: BTreeSet<ObjectId>,
    pub flush: ToFlush,
    pub counts: Counts,
}

/// What was staged or changed in place and is not flushed yet.
#[derive(Default)]
pub(super) struct ToFlush {
    pub fds: Vec<Arc<OwnedFd>>,
    /// More than are worth flushing one by one, or not open any more.
    pub all: bool,
    pub dirs: BTreeSet<ObjectId>,
}

impl ToFlush {
    /// Up to here each inode is flushed by itself, beyond it the whole file system at once: see
    /// `docs/decisions/0002-flush-policy.md`.
    pub const FDS_MAX: usize = 64;

    pub fn add(&mut self, fd: Option<Arc<OwnedFd>>) {
        match fd {
            Some(fd) if self.fds.len() < Self::FDS_MAX && !self.all => self.fds.push(fd),
            _ => {
                self.all = true;
                self.fds.clear();
            }
        }
    }
}

/// Why a step did not happen.
#[derive(Debug)]
pub(super) enum StepError {
    /// This object fails, others go on.
    Fails { step: &'static str, reason: String },
    /// An earlier failure took away its ground.
    Held,
    /// The batch can't go on.
    Fatal(ApplyError),
}

impl StepError {
    pub fn sys(step: &'static str) -> impl Fn(Errno) -> StepError {
        move |e| StepError::Fails {
            step,
            reason: std::io::Error::from(e).to_string(),
        }
    }
}

impl From<DirError> for StepError {
    fn from(error: DirError) -> StepError {
        match error {
            DirError::Store(e) => StepError::Fatal(ApplyError::Store(e)),
            DirError::Unknown => StepError::Held,
            other => StepError::Fails {
                step: "open",
                reason: other.to_string(),
            },
        }
    }
}

/// What the names concerned show of which object, after all steps.
#[derive(Default)]
pub(super) struct Stands {
    pub at: BTreeMap<ObjectId, BTreeSet<At>>,
    /// Something of these is under a name that the rows do not give them, and must go.
    pub left: BTreeSet<ObjectId>,
    /// Inodes that the rows do not speak of.
    pub replaced: BTreeMap<Inode, Replaced>,
}

impl<S: Store> Batch<'_, S> {
    pub fn store_error(error: S::Error) -> StepError {
        StepError::Fatal(store_error(error))
    }
    pub fn target(&self, id: ObjectId) -> Option<&Target> {
        self.merged.objects.get(&id)
    }
    pub fn want(&self, id: ObjectId) -> Option<&Object> {
        self.target(id).and_then(|t| t.want.as_ref())
    }
    pub fn dir(&mut self, id: ObjectId) -> Result<Arc<OwnedFd>, DirError> {
        self.dirs.open(&self.rows, self.area, id)
    }
    /// The descriptor and name a place stands for.
    pub fn physical(&mut self, place: &Place) -> Result<(Arc<OwnedFd>, Vec<u8>), StepError> {
        match place {
            Place::Tree(at) => Ok((self.dir(at.parent)?, at.name.as_bytes().to_vec())),
            place => self.area.outside(place).ok_or(StepError::Held),
        }
    }
    pub fn row(&self, id: ObjectId) -> Result<Option<Object>, StepError> {
        self.rows.object(id).map_err(Self::store_error)
    }

    /// What the names concerned show before the first step, from the rows and from what was seen.
    pub fn begin(&mut self, seen: &Seen) -> Result<(), StepError> {
        for (id, target) in &self.merged.objects {
            let occupant = if target.want.is_none() || target.keeps_content() {
                Occupant::Is(*id)
            } else {
                Occupant::Old(*id)
            };
            let (before, _) = target.names(seen.sure.contains(id));
            for at in &before {
                self.now.insert(Place::Tree(at.clone()), occupant);
            }
        }
        if self
            .target(ObjectId::ROOT)
            .is_some_and(|root| root.old.is_none())
        {
            let state = State {
                kind: Kind::Dir,
                meta: Meta::default(),
            };
            let local = local_of(&self.area.root_stat);
            self.put(
                ObjectId::ROOT,
                Object {
                    state,
                    local,
                    names: Names::new(),
                },
            )?;
        }
        for (at, occupant) in &seen.slots {
            let place = Place::Tree(at.clone());
            let before = self.now.get(&place).copied();
            // The same by name, but another inode: the row must speak of that.
            let other = match occupant {
                Some(Occupant::Is(id)) if before == *occupant => match self.made.get(id).cloned() {
                    Some(made) => self.row(*id)?.is_some_and(|row| {
                        (row.local.ino, row.local.btime) != (made.ino, made.btime)
                    }),
                    None => false,
                },
                _ => false,
            };
            if before != *occupant || other {
                self.set(&place, *occupant)?;
            }
            if let Some(Occupant::Old(id)) = occupant {
                self.stays_known(*id, at)?;
            }
        }
        for (place, id) in &seen.limbo {
            let target = self.target(*id);
            let right =
                target.is_some_and(|t| t.is_dir() || (t.want.is_some() && t.keeps_content()));
            let occupant = if right {
                Occupant::Is(*id)
            } else {
                Occupant::Old(*id)
            };
            self.now.insert(place.clone(), occupant);
            if self.target(*id).is_some_and(Target::is_dir) {
                self.dirs.elsewhere.insert(*id, place.clone());
            }
        }
        self.unplaced.clear();
        for (id, target) in &self.merged.objects {
            let (_, names) = target.names(seen.sure.contains(id));
            let right = Some(&Occupant::Is(*id));
            let open = names
                .iter()
                .filter(|at| self.now.get(&Place::Tree((*at).clone())) != right);
            let open = open.count();
            if open > 0 {
                self.unplaced.insert(*id, open);
            }
        }
        Ok(())
    }

    /// What an earlier process renamed before it died is the row's inode still, and until it is replaced the row must say
    /// where it is: nothing else would know it for ours.
    fn stays_known(&mut self, id: ObjectId, at: &At) -> Result<(), StepError> {
        let Some(mut row) = self.row(id)? else {
            return Ok(());
        };
        let is_it = |stat: &Stat| (stat.ino, stat.btime) == (row.local.ino, row.local.btime);
        if self.stats.get(at).is_some_and(is_it) && row.names.insert(at.clone()) {
            self.put(id, row)?;
        }
        Ok(())
    }

    /// A place shows something else now: remembered here and, when it is a name of the tree, in the rows.
    pub fn set(&mut self, place: &Place, occupant: Option<Occupant>) -> Result<(), StepError> {
        let before = match occupant {
            Some(occupant) => self.now.insert(place.clone(), occupant),
            None => self.now.remove(place),
        };
        if let Place::Tree(at) = place {
            self.count_placed(at, before, occupant);
            if let Some(Occupant::Is(id) | Occupant::Old(id)) = before
                && let Some(mut row) = self.row(id)?
                && row.names.remove(at)
            {
                self.put(id, row)?;
            }
            if let Some(Occupant::Is(id)) = occupant {
                let mut row = self.adopt_row(id)?;
                row.names.insert(at.clone());
                self.put(id, row)?;
            }
        }
        if let Some(Occupant::Is(id)) = occupant
            && self.target(id).is_some_and(Target::is_dir)
        {
            match place {
                Place::Tree(_) => drop(self.dirs.elsewhere.remove(&id)),
                place => drop(self.dirs.elsewhere.insert(id, place.clone())),
            }
        }
        Ok(())
    }

    fn count_placed(&mut self, at: &At, before: Option<Occupant>, after: Option<Occupant>) {
        if before == after {
            return;
        }
        let wants = |id| self.want(id).is_some_and(|want| want.names.contains(at));
        let shown = |occupant| match occupant {
            Some(Occupant::Is(id)) if wants(id) => Some(id),
            _ => None,
        };
        let (lost, gained) = (shown(before), shown(after));
        if let Some(id) = lost {
            *self.unplaced.entry(id).or_default() += 1;
        }
        if let Some(id) = gained
            && let Some(open) = self.unplaced.get_mut(&id)
        {
            *open -= 1;
            if *open == 0 {
                self.unplaced.remove(&id);
            }
        }
    }

    /// The row of an object whose right inode stands somewhere; a new inode takes the row over.
    fn adopt_row(&mut self, id: ObjectId) -> Result<Object, StepError> {
        let row = self.row(id)?;
        match (self.made.get(&id), row) {
            (Some(local), Some(row))
                if row.local.ino == local.ino && row.local.btime == local.btime =>
            {
                Ok(row)
            }
            (Some(local), _) => {
                let want = self.want(id).map(|want| want.state.clone());
                let mut state = want.unwrap_or(State {
                    kind: Kind::Dir,
                    meta: Meta::default(),
                });
                if !self.complete.contains(&id) {
                    // Not what is wanted until its metadata was set.
                    state.meta = Meta::default();
                }
                Ok(Object {
                    state,
                    local: local.clone(),
                    names: Names::new(),
                })
            }
            (None, Some(row)) => Ok(row),
            (None, None) => Err(StepError::Held),
        }
    }

    pub fn put(&mut self, id: ObjectId, row: Object) -> Result<(), StepError> {
        self.rows.put(id, row).map_err(Self::store_error)
    }

    /// The copy's inode has the wanted state now.
    pub fn settled(&mut self, id: ObjectId) -> Result<(), StepError> {
        let merged = self.merged;
        let Some(want) = merged.objects.get(&id).and_then(|t| t.want.as_ref()) else {
            return Ok(());
        };
        self.complete.insert(id);
        if let Some(Some(row)) = self.rows.changes().get(&id)
            && row.state == want.state
        {
            return Ok(());
        }
        let state = want.state.clone();
        if let Some(mut row) = self.row(id)?
            && row.state != state
        {
            row.state = state;
            self.put(id, row)?;
        }
        Ok(())
    }

    pub fn fail(&mut self, object: ObjectId, step: &'static str, reason: String) {
        self.failed.entry(object).or_insert(Failure {
            object,
            step,
            reason,
            void: false,
        });
    }

    /// Where something of an object is left after all steps: if that object is not settled, the next try looks there.
    pub fn stands(&mut self) -> Result<Stands, StepError> {
        let mut stands = Stands::default();
        let now = std::mem::take(&mut self.now);
        for (place, occupant) in &now {
            let (Place::Tree(at), Occupant::Is(id) | Occupant::Old(id)) = (place, occupant) else {
                continue;
            };
            let merged = self.merged;
            let goes = |id| (merged.objects.get(&id)).is_some_and(|t| t.want.is_none());
            if goes(*id) || matches!(occupant, Occupant::Old(_)) {
                let Some(stat) = self.look_again(at) else {
                    continue;
                };
                let row = self.row(*id)?;
                let row = row.filter(|row| row.names.contains(at));
                let seen = self.stats.get(at).unwrap_or(&stat);
                if !stat.is_dir()
                    && inode(seen) == inode(&stat)
                    && row.as_ref().is_none_or(|row| !is_local(&stat, &row.local))
                {
                    let was = Replaced::new(*id, seen);
                    stands.replaced.insert(inode(&stat), was);
                }
                // What is in a directory that goes, goes with it.
                if goes(at.parent) {
                    continue;
                }
                // It is there still because whoever is to have its name failed.
                if row.is_none() {
                    stands.left.insert(*id);
                }
            }
            stands.at.entry(*id).or_default().insert(at.clone());
        }
        self.now = now;
        let is_limbo = |place: &Place| matches!(place, Place::Limbo(..));
        if self.replaying && self.now.keys().any(is_limbo) {
            self.stands_unseen(&mut stands);
        }
        Ok(stands)
    }

    /// What a process before this one moved or linked into a directory that goes, and can't go yet, is not looked for there.
    fn stands_unseen(&self, stands: &mut Stands) {
        let olds = (self.merged.objects.iter()).filter_map(|(id, t)| Some((*id, t.old.as_ref()?)));
        for (id, old) in olds.filter(|(_, old)| !old.state.kind.is_dir()) {
            let was = Replaced::by_row(id, &self.rules.here(&old.state).0);
            stands.replaced.entry(inode_of(&old.local)).or_insert(was);
        }
    }

    fn look_again(&mut self, at: &At) -> Option<Stat> {
        let dir = self.dir(at.parent).ok()?;
        look(&dir, at.name.as_bytes()).ok().flatten()
    }

    /// Every wanted name of the object shows its right inode.
    pub fn is_placed(&self, id: ObjectId) -> bool {
        !self.unplaced.contains_key(&id)
    }

    /// A name in the tree where the object's right inode stands now.
    pub fn name_of(&self, id: ObjectId) -> Option<At> {
        let want = self.want(id)?;
        let here = |at: &&At| self.now.get(&Place::Tree((*at).clone())) == Some(&Occupant::Is(id));
        want.names.iter().find(here).cloned()
    }

    /// Moves something that no record made from here to `adopted/`, where it goes by the name it was `called`.
    pub fn move_aside(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        called: &[u8],
        link_only: bool,
    ) -> Result<(), StepError> {
        self.area
            .move_aside(self.position, dir, name, called, link_only)
            .map_err(StepError::sys("move aside"))?;
        self.counts.moved_aside += 1;
        Ok(())
    }
}
