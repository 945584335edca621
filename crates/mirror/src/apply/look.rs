//! Looking at the names a batch concerns, before anything is planned: is each what the rows say, our own doing from
//! before a crash, already what is wanted, or somebody's hand-made change?

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;

use mirror_core::plan::{Occupant, Seen, Target};
use mirror_core::{At, Kind, Name, Names, Object, ObjectId, Rows, State};

use super::area::look;
use super::batch::{Batch, StepError};
use super::dirs::{DirError, is_local};
use super::journal::{Inode, digest_of, inode, inode_of};
use super::meta::{exposed, same_type};
use super::staging::local_of;
use super::{Store, content};
use crate::sys::stat::{Stat, fstat};
use crate::sys::{self, Errno, dir, open, target};

/// Of an object with fewer names each is looked at.
const SURE_MIN: usize = 64;

struct Look {
    seen: Seen,
    /// Which object each name is to show.
    end: BTreeMap<At, ObjectId>,
    /// Names wanted in directories that are new.
    below: BTreeMap<ObjectId, Vec<At>>,
    /// Inodes that were taken for new objects.
    claimed: HashMap<Inode, ObjectId>,
    todo: Vec<At>,
    /// Names in directories that are not where the rows say: looked at once those are found.
    later: Vec<(ObjectId, At)>,
    /// Nobody but a look can know what is in these.
    adopted: BTreeSet<ObjectId>,
    /// Directories that are not where the rows say.
    lost: BTreeSet<ObjectId>,
}

/// What a look came to.
pub(super) enum Looked {
    Seen(Seen),
    /// These directories of the copy were removed or replaced by hand, so nothing the rows say below them holds.
    Lost(BTreeSet<ObjectId>),
}

impl<S: Store> Batch<'_, S> {
    pub fn look(
        &mut self,
        limbo: &BTreeMap<mirror_core::plan::Place, ObjectId>,
    ) -> Result<Looked, StepError> {
        let merged = self.merged;
        let mut state = Look {
            seen: Seen::default(),
            end: BTreeMap::new(),
            below: BTreeMap::new(),
            claimed: HashMap::new(),
            todo: Vec::new(),
            later: Vec::new(),
            adopted: BTreeSet::new(),
            lost: BTreeSet::new(),
        };
        let gone = |id: &ObjectId| merged.objects.get(id).is_some_and(|t| t.want.is_none());
        let mut names = BTreeSet::new();
        let none = Names::new();
        for (id, target) in &merged.objects {
            let sure = self.is_sure(target)?;
            let (old, want) = (target.old.as_ref(), target.want.as_ref());
            let stay = |other: Option<&Object>| match other {
                Some(other) if sure => other.names.clone(),
                _ => Names::new(),
            };
            let (before, after) = (stay(old), stay(want));
            for at in want.map_or(&none, |want| &want.names).without(&before) {
                state.end.insert(at.clone(), *id);
                let parent = merged.objects.get(&at.parent);
                if parent.is_some_and(|t| t.old.is_none() && t.want.is_some())
                    && at.parent != ObjectId::ROOT
                {
                    state.below.entry(at.parent).or_default().push(at.clone());
                } else {
                    names.insert(at.clone());
                }
            }
            if let Some(old) = &target.old {
                let inode = inode_of(&old.local);
                self.known.insert(inode, *id);
                // What goes with its directory is found there when that is removed; what stays is looked for now.
                let stays = target.want.is_some();
                let names_of = old.names.without(&after);
                let names_of = names_of.filter(|at| stays || !gone(&at.parent));
                let looked: Vec<At> = names_of.cloned().collect();
                if sure {
                    state.seen.sure.insert(*id);
                    let unseen = old.names.len() - looked.len();
                    self.unseen.insert(inode, unseen as u32);
                }
                names.extend(looked);
            }
        }
        for at in merged.owed.iter().filter(|at| !gone(&at.parent)) {
            // What the rows give to an object that is not concerned is not ours to judge.
            let whose = self.rows.name(at).map_err(Self::store_error)?;
            if whose.is_none_or(|id| merged.objects.contains_key(&id)) {
                names.insert(at.clone());
            }
        }
        if self.replaying {
            names.extend(
                merged
                    .mentioned
                    .iter()
                    .filter(|at| !gone(&at.parent))
                    .cloned(),
            );
            // Gone from its directory, but a crash may have left it anywhere.
            for target in merged.objects.values() {
                names.extend(target.old.iter().flat_map(|o| o.names.iter().cloned()));
            }
        }
        for (place, id) in limbo {
            if merged.objects.contains_key(id) {
                state.seen.limbo.insert(place.clone(), *id);
            }
            if self.row(*id)?.is_some_and(|row| row.state.kind.is_dir()) {
                self.dirs.elsewhere.insert(*id, place.clone());
            }
        }
        state.todo = names.into_iter().rev().collect();
        loop {
            while let Some(at) = state.todo.pop() {
                self.look_at(&mut state, at)?;
            }
            let later = std::mem::take(&mut state.later);
            for (_, at) in &later {
                self.look_at(&mut state, at.clone())?;
            }
            if state.later.len() == later.len() && state.todo.is_empty() {
                break;
            }
        }
        for (dir, at) in std::mem::take(&mut state.later) {
            if gone(&dir) {
                // A batch before a crash removed it already, and nothing has a name in it any more.
                state.seen.slots.insert(at, None);
            } else {
                state.lost.insert(dir);
            }
        }
        let shown: BTreeSet<Occupant> = state.seen.slots.values().copied().flatten().collect();
        for (id, target) in &merged.objects {
            if !target.is_dir()
                || target.old.is_none()
                || target.want.is_none()
                || *id == ObjectId::ROOT
            {
                continue;
            }
            if !shown.contains(&Occupant::Is(*id))
                && !state.seen.limbo.values().any(|other| other == id)
            {
                state.lost.insert(*id);
            }
        }
        // What the rows do not have can't be forgotten; what is to be done there fails, and is tried again.
        for id in std::mem::take(&mut state.lost) {
            if self
                .rows
                .base()
                .object(id)
                .map_err(Self::store_error)?
                .is_some()
            {
                state.lost.insert(id);
            }
        }
        if state.lost.is_empty() {
            self.one_inode_each(&mut state.seen);
            self.spare_foreign(&mut state.seen)?;
            Ok(Looked::Seen(state.seen))
        } else {
            Ok(Looked::Lost(state.lost))
        }
    }

    /// Whether every name of a file with very many of them shows what the rows say, by a look at one: its ctime moves
    /// with each name it gets or loses, and with what is changed by hand.
    fn is_sure(&mut self, target: &Target) -> Result<bool, StepError> {
        let (Some(old), Some(want)) = (&target.old, &target.want) else {
            return Ok(false);
        };
        if old.names.len() < SURE_MIN
            || old.state != want.state
            || self.replaying
            || !self.merged.owed.is_empty()
        {
            return Ok(false);
        }
        let stays = |at: &&At| want.names.contains(at);
        let Some(at) = old.names.iter().find(stays) else {
            return Ok(false);
        };
        let fd = match self.dir(at.parent) {
            Ok(fd) => fd,
            Err(DirError::Store(e)) => return Err(DirError::Store(e).into()),
            Err(_) => return Ok(false),
        };
        let stat = look(&fd, at.name.as_bytes()).ok().flatten();
        Ok(stat.is_some_and(|stat| is_local(&stat, &old.local) && stat.ctime == old.local.ctime))
    }

    fn look_at(&mut self, state: &mut Look, at: At) -> Result<(), StepError> {
        if state.seen.slots.contains_key(&at) {
            return Ok(());
        }
        let fd = match self.dir(at.parent) {
            Ok(fd) => fd,
            Err(DirError::Store(e)) => return Err(DirError::Store(e).into()),
            Err(DirError::Changed(id)) => {
                state.later.push((id, at));
                return Ok(());
            }
            // The steps there will fail, and say so.
            Err(_) => return Ok(()),
        };
        let name = at.name.as_bytes();
        let stat = match look(&fd, name) {
            Ok(Some(stat)) => stat,
            Ok(None) => {
                state.seen.slots.insert(at, None);
                return Ok(());
            }
            Err(e) => {
                if let Some(id) = state.end.get(&at) {
                    self.fail(*id, "look", std::io::Error::from(e).to_string());
                }
                return Ok(());
            }
        };
        let occupant = self.recognise(state, &at, &fd, &stat)?;
        if let Occupant::Is(id) = occupant
            && stat.is_dir()
            && self.known.get(&inode(&stat)) == Some(&id)
        {
            // Perhaps it moved before a crash; what is below it is reached here.
            let place = mirror_core::plan::Place::Tree(at.clone());
            self.dirs.elsewhere.insert(id, place);
        }
        self.stats.insert(at.clone(), stat);
        state.seen.slots.insert(at.clone(), Some(occupant));
        if let Occupant::Is(id) = occupant
            && state.adopted.contains(&id)
        {
            self.enter_adopted(state, id, &fd, name)?;
        }
        Ok(())
    }

    fn recognise(
        &mut self,
        state: &mut Look,
        at: &At,
        fd: &OwnedFd,
        stat: &Stat,
    ) -> Result<Occupant, StepError> {
        let merged = self.merged;
        let strange = Occupant::Strange { dir: stat.is_dir() };
        if stat.dev != self.area.root_stat.dev {
            return Ok(strange);
        }
        if let Some(id) = state.claimed.get(&inode(stat)) {
            return Ok(Occupant::Is(*id));
        }
        if let Some(id) = self.known.get(&inode(stat)).copied() {
            let Some(target) = merged.objects.get(&id) else {
                return Ok(strange);
            };
            return self.recognise_known(id, target, fd, at.name.as_bytes(), stat);
        }
        if let Some(was) = self.replaced.get(&inode(stat)) {
            return Ok(match was.is_as_left(stat) {
                true => Occupant::Old(was.object),
                false => strange,
            });
        }
        if let Some(occupant) = self.recognise_ours(state, fd, at.name.as_bytes(), stat) {
            return Ok(occupant);
        }
        let Some(id) = state.end.get(at).copied() else {
            return Ok(strange);
        };
        let Some(want) = merged.objects.get(&id).and_then(|t| t.want.as_ref()) else {
            return Ok(strange);
        };
        let (here, _) = self.rules.here(&want.state);
        if !same_type(&here.kind, stat) {
            return Ok(strange);
        }
        if stat.is_dir() {
            // A directory the rows know somewhere else is not replaced by a stranger.
            if merged.objects.get(&id).is_some_and(|t| t.old.is_some()) {
                return Ok(strange);
            }
            self.made.insert(id, local_of(stat));
            state.claimed.insert(inode(stat), id);
            state.adopted.insert(id);
            self.counts.adopted += 1;
            return Ok(Occupant::Is(id));
        }
        if !same_content(&here.kind, fd, at.name.as_bytes(), stat).unwrap_or(false) {
            return Ok(strange);
        }
        // Equal in content. Another inode has the name already, or this one has names that are not ours to change
        // (see also `foreign`).
        let taken = self.made.contains_key(&id);
        let foreign_links = stat.nlink as usize > want.names.len();
        let differs = foreign_links && {
            let (_, have) = self
                .rules
                .read(fd, at.name.as_bytes())
                .map_err(StepError::sys("look"))?;
            !self.rules.same(&have, &here.meta)
        };
        if taken || differs {
            return Ok(Occupant::Old(id));
        }
        self.made.insert(id, local_of(stat));
        state.claimed.insert(inode(stat), id);
        self.counts.adopted += 1;
        Ok(Occupant::Is(id))
    }

    /// Made by a process before this one, after the rows were durable for the last time.
    fn recognise_ours(
        &mut self,
        state: &mut Look,
        fd: &OwnedFd,
        name: &[u8],
        stat: &Stat,
    ) -> Option<Occupant> {
        let ours = *self.journal.before.get(&inode(stat))?;
        let id = ours.object;
        // Not part of this batch: then it is not a crash that we recover from.
        let target = self.merged.objects.get(&id)?;
        if target.dir != stat.is_dir() {
            return None;
        }
        if stat.is_dir() {
            if target.old.is_some() {
                return None;
            }
            self.made.insert(id, local_of(stat));
            state.claimed.insert(inode(stat), id);
            if target.want.is_some() {
                state.adopted.insert(id);
            }
            return Some(Occupant::Is(id));
        }
        let Some(want) = &target.want else {
            return Some(Occupant::Old(id));
        };
        let (here, _) = self.rules.here(&want.state);
        if !same_type(&here.kind, stat)
            || digest_of(&here.kind) != ours.digest
            || self.made.contains_key(&id)
        {
            return Some(Occupant::Old(id));
        }
        // Its bytes were complete before it got its name; only power may have taken them since.
        let trusted = self.journal.trusted && stat.mtime == here.meta.mtime;
        if !trusted && !same_content(&here.kind, fd, name, stat).unwrap_or(false) {
            return Some(Occupant::Old(id));
        }
        self.made.insert(id, local_of(stat));
        state.claimed.insert(inode(stat), id);
        Some(Occupant::Is(id))
    }

    /// An inode of ours: is it as we left it?
    fn recognise_known(
        &mut self,
        id: ObjectId,
        target: &Target,
        fd: &OwnedFd,
        name: &[u8],
        stat: &Stat,
    ) -> Result<Occupant, StepError> {
        let strange = Occupant::Strange { dir: stat.is_dir() };
        let Some(old) = &target.old else {
            return Ok(Occupant::Is(id));
        };
        let (here, _) = self.rules.here(&old.state);
        if !same_type(&here.kind, stat) {
            return Ok(strange);
        }
        if stat.is_dir() {
            return Ok(Occupant::Is(id));
        }
        if stat.ctime != old.local.ctime {
            // Changed by hand, or by us before a crash: only the bytes tell.
            if !same_content(&here.kind, fd, name, stat).unwrap_or(false) {
                return Ok(strange);
            }
            self.stirred.insert(id);
        }
        let Some(want) = &target.want else {
            return Ok(Occupant::Is(id));
        };
        let (want_here, _) = self.rules.here(&want.state);
        let exposed = stat.is_file() && exposed(stat, &here.meta, &want_here.meta);
        if !target.keeps_content() || exposed {
            return Ok(Occupant::Old(id));
        }
        Ok(Occupant::Is(id))
    }

    /// A directory was there already: everything in it is looked at, and what nobody wants is strange.
    fn enter_adopted(
        &mut self,
        state: &mut Look,
        id: ObjectId,
        parent: &OwnedFd,
        name: &[u8],
    ) -> Result<(), StepError> {
        state.adopted.remove(&id);
        let opened = self.open_adopted(id, parent, name);
        let fd = match opened {
            Ok(fd) => std::sync::Arc::new(fd),
            Err(e) => {
                self.fail(id, "open", std::io::Error::from(e).to_string());
                return Ok(());
            }
        };
        let mut row = mirror_core::Object {
            state: State {
                kind: Kind::Dir,
                meta: Default::default(),
            },
            local: Default::default(),
            names: Default::default(),
        };
        if let Some(local) = self.made.get(&id) {
            row.local = local.clone();
        }
        if let Some(at) = self.want(id).and_then(|w| w.names.first()) {
            row.names.insert(at.clone());
        }
        self.put(id, row)?;
        self.dirs.keep(id, fd.clone());
        let mut names = Vec::new();
        if !self.options.adopting {
            let listed = dir::list(&*fd, |name, _, _| names.extend(Name::new(name).ok()));
            if let Err(e) = listed {
                self.fail(id, "list", std::io::Error::from(e).to_string());
            }
        }
        state
            .todo
            .extend(names.into_iter().map(|name| At { parent: id, name }));
        state
            .todo
            .extend(state.below.remove(&id).unwrap_or_default());
        Ok(())
    }

    fn open_adopted(
        &mut self,
        id: ObjectId,
        parent: &OwnedFd,
        name: &[u8],
    ) -> sys::Result<OwnedFd> {
        let held = open::path(parent, name)?;
        let stat = fstat(&held)?;
        if !stat.is_dir()
            || self
                .made
                .get(&id)
                .is_some_and(|made| !is_local(&stat, made))
        {
            return Err(Errno::STALE);
        }
        match open::again(&held) {
            Err(Errno::ACCESS) => {
                target::set_mode(&held, b"", 0o700)?;
                open::again(&held)
            }
            opened => opened,
        }
    }
}

/// Whether an inode of the right type holds what `kind` says.
pub(super) fn same_content(
    kind: &Kind,
    dir: &OwnedFd,
    name: &[u8],
    stat: &Stat,
) -> sys::Result<bool> {
    match kind {
        Kind::File(want) => {
            if stat.bytes != want.bytes {
                return Ok(false);
            }
            let fd = open::file(dir, name)?;
            let now = fstat(&fd)?;
            Ok(now.same_inode(stat) && content::matches(&fd, &now, want)?)
        }
        Kind::Symlink(link) => Ok(target::read_symlink(dir, name)? == **link),
        Kind::Device { major, minor, .. } => Ok(stat.rdev == (*major, *minor)),
        Kind::Dir | Kind::Fifo | Kind::Socket => Ok(true),
    }
}
