//! Plain trees of the past, made of links: whole (`whole`), or from an older one by what differs (`recycled`).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use mirror_core::history::Moment;
use mirror_core::{At, Name, ObjectId, State};

use super::asked::{self, AsOf, Asks, Places};
use super::checkout::{Checkout, CheckoutError, Made, Progress};
use super::differs::Touched;
use super::links::{Links, undisturbed};
use super::remove::{free, remove_tree};
use super::tree::{Entry, PastError};
use crate::apply::meta::{LATE_FLAGS, Rules};
use crate::history::ask::Known;
use crate::sys::stat::statx;
use crate::sys::{Errno, open, target};

/// What it takes to make one.
pub struct Publish<'a> {
    pub asks: &'a mut dyn Asks,
    pub places: Places,
    pub rules: &'a Rules,
    pub progress: &'a mut dyn Progress,
    /// A directory of ours on the copy's file system.
    pub work: &'a OwnedFd,
    /// It is to stay over a power cut.
    pub durable: bool,
}

type Result<T> = std::result::Result<T, CheckoutError>;

fn io(what: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> CheckoutError {
    let path = match path {
        b"" => "the tree".into(),
        path => mirror_core::escape(path),
    };
    move |e| CheckoutError::Io {
        what,
        path,
        source: e.into(),
    }
}

fn names(path: &[u8]) -> Result<Vec<Name>> {
    let parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty());
    let name = |part: &[u8]| {
        Name::new(part).map_err(|_| PastError::Unknown("a path that can't be one".into()))
    };
    Ok(parts.map(name).collect::<std::result::Result<_, _>>()?)
}

fn joined(dir: &[u8], name: &Name) -> Vec<u8> {
    let mut path = dir.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    path
}

fn depth(path: &[u8]) -> usize {
    match path {
        b"" => 0,
        path => 1 + path.iter().filter(|b| **b == b'/').count(),
    }
}

fn dir_at(top: &OwnedFd, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let mut fd = open::dir_again(top)?;
    for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
        fd = open::dir(&fd, part)?;
    }
    Ok(fd)
}

impl Publish<'_> {
    /// Fills `top` with a directory as it was, all below it, and its metadata. `path`: its path then.
    pub fn whole(
        &mut self,
        moment: Moment,
        (dir, state, path): (ObjectId, &State, &[u8]),
        top: &OwnedFd,
    ) -> Result<Made> {
        let mut links = Links::new(self.places.clone(), self.work, self.durable)
            .map_err(io("write to", b""))?;
        let again = open::dir_again(top).map_err(io("open", b""))?;
        let mut tree = AsOf::new(self.asks, self.places.clone(), moment);
        let mut checkout = Checkout::new(&mut tree, self.rules, self.progress, again);
        checkout.links = Some(&mut links);
        checkout.fill_top(dir, state)?;
        checkout.sure(true)?;
        let made = checkout.made.clone();
        self.join(moment, path, &links.split, top)?;
        Ok(made)
    }

    /// One inode for all names of an object of which some became links and others copies.
    fn join(
        &mut self,
        moment: Moment,
        below: &[u8],
        split: &BTreeSet<ObjectId>,
        top: &OwnedFd,
    ) -> Result<()> {
        let ids: Vec<ObjectId> = split.iter().copied().collect();
        let all = asked::names_of(self.asks, moment, &ids)?;
        let several: Vec<Vec<At>> = all.into_iter().filter(|names| names.len() > 1).collect();
        let parents = several.iter().flatten().map(|at| at.parent).collect();
        let dirs = self.known(moment, &parents)?;
        for group in several {
            let mut found = Vec::new();
            for at in group {
                let Some(path) = dirs.get(&at.parent).and_then(|dir| dir.path.as_deref()) else {
                    continue;
                };
                let path = match path.strip_prefix(below) {
                    Some([b'/', rest @ ..]) => rest,
                    Some(rest) if rest.is_empty() || below.is_empty() => rest,
                    _ => continue,
                };
                let dir = match dir_at(top, path) {
                    Ok(dir) => dir,
                    Err(Errno::NOENT | Errno::NOTDIR) => continue,
                    Err(e) => return Err(io("open", path)(e)),
                };
                match statx(&dir, at.name.as_bytes()) {
                    Ok(stat) => found.push((dir, at.name, stat)),
                    Err(Errno::NOENT) => {}
                    Err(e) => return Err(io("look at", path)(e)),
                }
            }
            // The copy is the one that nobody else has.
            let Some(copy) = found.iter().min_by_key(|(.., stat)| stat.nlink) else {
                continue;
            };
            for (dir, name, stat) in &found {
                if !stat.same_inode(&copy.2) {
                    let joined = undisturbed(dir, |dir| {
                        target::unlink(dir, name.as_bytes())?;
                        target::link(&copy.0, copy.1.as_bytes(), dir, name.as_bytes())
                    });
                    joined.map_err(io("link", name.as_bytes()))?;
                }
            }
        }
        Ok(())
    }

    fn known(
        &mut self,
        moment: Moment,
        ids: &BTreeSet<ObjectId>,
    ) -> Result<BTreeMap<ObjectId, Known>> {
        let ids: Vec<ObjectId> = ids.iter().copied().collect();
        let found = asked::objects(self.asks, moment, &ids)?;
        let found = ids.into_iter().zip(found);
        Ok(found.filter_map(|(id, known)| Some((id, known?))).collect())
    }

    /// Makes `top`, the tree as of `from`, the tree as of `until`. Cost: what differs. After an error it is neither.
    pub fn recycled(&mut self, (from, until): (Moment, Moment), top: &OwnedFd) -> Result<Made> {
        let plan = self.plan(from, until)?;
        match target::create_dir(self.work, LIMBO) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(io("write to", b"")(e)),
        }
        let limbo = open::dir(self.work, LIMBO).map_err(io("open", b""))?;
        plan.detach(top, &limbo)?;
        plan.attach_dirs(top, &limbo)?;
        let mut links = Links::new(self.places.clone(), self.work, self.durable)
            .map_err(io("write to", b""))?;
        let again = open::dir_again(top).map_err(io("open", b""))?;
        let mut tree = AsOf::new(self.asks, self.places.clone(), until);
        let mut checkout = Checkout::new(&mut tree, self.rules, self.progress, again);
        checkout.links = Some(&mut links);
        plan.attach_others(top, &limbo, &mut checkout)?;
        checkout.sure(true)?;
        let made = checkout.made.clone();
        self.join(until, b"", &links.split, top)?;
        plan.set_flags(self.rules, top)?;
        for (path, state) in &plan.finish {
            let dir = dir_at(top, path).map_err(io("open", path))?;
            let (here, _) = self.rules.here(state);
            let set = self.rules.adjust(&dir, &here.kind, &here.meta, true);
            set.map_err(io("set the metadata of", path))?;
        }
        remove_tree(self.work, LIMBO).map_err(io("remove", b""))?;
        Ok(made)
    }

    fn plan(&mut self, from: Moment, until: Moment) -> Result<Plan> {
        let Touched {
            names,
            objects,
            gone,
        } = Touched::between(self.asks, from, until)?;
        let comes: BTreeSet<ObjectId> = names.values().filter_map(|(_, after)| *after).collect();
        let stays = |id: &ObjectId| !gone.contains(id) || comes.contains(id);
        let both: Vec<ObjectId> = objects.iter().copied().filter(stays).collect();
        let then = asked::states(self.asks, from, &both)?;
        let now = asked::states(self.asks, until, &both)?;
        let mut changed = BTreeSet::new();
        let mut finish = BTreeSet::new();
        for (id, (was, is)) in both.iter().zip(then.iter().zip(&now)) {
            if was == is {
                continue;
            }
            match is.as_ref().is_some_and(|state| state.kind.is_dir()) {
                true => finish.insert(*id),
                false => changed.insert(*id),
            };
        }
        let mut names: Vec<Name3> = names
            .into_iter()
            .map(|(at, (before, after))| Name3 { at, before, after })
            .collect();
        // Names that stand for the same object, which is made anew.
        let touched: BTreeSet<At> = names.iter().map(|name| name.at.clone()).collect();
        let anew: Vec<ObjectId> = changed.iter().copied().collect();
        for (id, all) in anew.iter().zip(asked::names_of(self.asks, until, &anew)?) {
            let also = all.into_iter().filter(|at| !touched.contains(at));
            names.extend(also.map(|at| Name3 {
                at,
                before: Some(*id),
                after: Some(*id),
            }));
        }
        let comes: BTreeSet<ObjectId> = names.iter().filter_map(|name| name.after).collect();
        let survives = |id: &ObjectId| comes.contains(id) && !changed.contains(id);
        // What is in a directory that goes as a whole goes with it.
        let leaves: Vec<(At, ObjectId)> = names
            .iter()
            .filter_map(|name| Some((name.at.clone(), name.before?)))
            .filter(|(at, id)| survives(id) || !gone.contains(&at.parent))
            .collect();
        let arrives: Vec<(At, ObjectId)> = names
            .iter()
            .filter_map(|name| Some((name.at.clone(), name.after?)))
            .collect();
        let dirs = self.known(from, &leaves.iter().map(|(at, _)| at.parent).collect())?;
        let path = |dirs: &BTreeMap<ObjectId, Known>, at: &At| {
            let path = dirs.get(&at.parent).and_then(|known| known.path.clone());
            path.ok_or_else(|| PastError::Unknown("a directory that is not known".into()))
        };
        let mut detach = Vec::new();
        for (at, id) in &leaves {
            detach.push((path(&dirs, at)?, at.name.clone(), *id, survives(id)));
        }
        // What is inside is taken out before.
        detach.sort_by_key(|(dir, ..)| std::cmp::Reverse(depth(dir)));
        let mut ids: BTreeSet<ObjectId> = arrives.iter().map(|(_, id)| *id).collect();
        ids.extend(arrives.iter().map(|(at, _)| at.parent));
        finish.extend(leaves.iter().map(|(at, _)| at.parent));
        finish.extend(arrives.iter().map(|(at, _)| at.parent));
        ids.extend(finish.iter().copied());
        let ids = ids
            .into_iter()
            .filter(|id| !gone.contains(id) || comes.contains(id));
        let now = self.known(until, &ids.collect())?;
        let mut attach = Vec::new();
        for (at, id) in arrives {
            let known = now.get(&id).cloned();
            let known = known.ok_or_else(|| PastError::Unknown("nothing is known of it".into()))?;
            if known.state.kind.is_dir() {
                finish.insert(id);
            }
            let entry = Entry {
                name: at.name.clone(),
                id,
                state: known.state,
                bytes: known.bytes,
                inode: known.inode,
            };
            attach.push((path(&now, &at)?, entry));
        }
        attach.sort_by_key(|(dir, _)| depth(dir));
        // What only got one more name is to be had under another.
        let leaving: BTreeSet<ObjectId> = leaves.iter().map(|(_, id)| *id).collect();
        let more: BTreeSet<ObjectId> = attach
            .iter()
            .map(|(_, entry)| entry)
            .filter(|entry| !entry.state.kind.is_dir())
            .map(|entry| entry.id)
            .filter(|id| !changed.contains(id) && !leaving.contains(id))
            .collect();
        let more: Vec<ObjectId> = more.into_iter().collect();
        let mut others = BTreeMap::new();
        let found = asked::names_of(self.asks, until, &more)?;
        for (id, all) in more.iter().zip(found) {
            if let Some(at) = all.into_iter().find(|at| !touched.contains(at)) {
                others.insert(*id, at);
            }
        }
        let dirs = self.known(until, &others.values().map(|at| at.parent).collect())?;
        let others = others.into_iter();
        let others = others.map(|(id, at)| Ok((id, (path(&dirs, &at)?, at.name))));
        let finish = finish.into_iter().filter_map(|id| {
            let known = now.get(&id)?;
            let path = known.path.clone()?;
            known
                .state
                .kind
                .is_dir()
                .then(|| (path, known.state.clone()))
        });
        Ok(Plan {
            detach,
            attach,
            finish: finish.collect(),
            others: others.collect::<std::result::Result<_, PastError>>()?,
        })
    }
}

const LIMBO: &[u8] = b"limbo";

struct Name3 {
    at: At,
    before: Option<ObjectId>,
    after: Option<ObjectId>,
}

/// What makes one tree another. Paths are those of directories.
struct Plan {
    /// Names as they were, the deepest first, and whether the object comes back elsewhere.
    detach: Vec<(Vec<u8>, Name, ObjectId, bool)>,
    /// Names as they are to be, the highest first.
    attach: Vec<(Vec<u8>, Entry)>,
    /// Directories whose metadata is to be set in the end.
    finish: Vec<(Vec<u8>, State)>,
    /// Of objects that only get more names: one that they have.
    others: BTreeMap<ObjectId, (Vec<u8>, Name)>,
}

fn limbo_name(id: ObjectId) -> Vec<u8> {
    format!("{:016x}", id.0).into_bytes()
}

impl Plan {
    fn detach(&self, top: &OwnedFd, limbo: &OwnedFd) -> Result<()> {
        for (dir, name, id, survives) in &self.detach {
            let path = joined(dir, name);
            let fd = dir_at(top, dir).map_err(io("open", dir))?;
            let name = name.as_bytes();
            // Nothing that stands here is anybody else's as long as it has such flags: those can't be linked.
            free(&fd, b"").map_err(io("write to", dir))?;
            let stat = statx(&fd, name).map_err(io("look at", &path))?;
            let kept = limbo_name(*id);
            let done = if *survives {
                free(&fd, name).map_err(io("write to", &path))?;
                match target::rename_noreplace(&fd, name, limbo, &kept) {
                    Err(Errno::EXIST) if !stat.is_dir() => target::unlink(&fd, name),
                    done => done,
                }
            } else {
                remove_tree(&fd, name)
            };
            done.map_err(io("take away", &path))?;
        }
        Ok(())
    }

    fn attach_dirs(&self, top: &OwnedFd, limbo: &OwnedFd) -> Result<()> {
        for (dir, entry) in &self.attach {
            if !entry.state.kind.is_dir() {
                continue;
            }
            let path = joined(dir, &entry.name);
            let fd = dir_at(top, dir).map_err(io("open", dir))?;
            free(&fd, b"").map_err(io("write to", dir))?;
            let name = entry.name.as_bytes();
            let done = match target::rename_noreplace(limbo, &limbo_name(entry.id), &fd, name) {
                Err(Errno::NOENT) => target::create_dir(&fd, name),
                done => done,
            };
            done.map_err(io("make", &path))?;
        }
        Ok(())
    }

    /// Those that keep names from coming and going.
    fn set_flags(&self, rules: &Rules, top: &OwnedFd) -> Result<()> {
        for (dir, entry) in &self.attach {
            let (here, _) = rules.here(&entry.state);
            if here.kind.is_dir() || here.meta.flags & LATE_FLAGS == 0 {
                continue;
            }
            let path = joined(dir, &entry.name);
            let fd = dir_at(top, dir).map_err(io("open", dir))?;
            let file = open::file(&fd, entry.name.as_bytes()).map_err(io("open", &path))?;
            let set = rules.adjust(&file, &here.kind, &here.meta, true);
            set.map_err(io("set the flags of", &path))?;
        }
        Ok(())
    }

    fn attach_others(
        &self,
        top: &OwnedFd,
        limbo: &OwnedFd,
        checkout: &mut Checkout<'_>,
    ) -> Result<()> {
        for (dir, entry) in &self.attach {
            if entry.state.kind.is_dir() {
                continue;
            }
            let path = joined(dir, &entry.name);
            let fd = dir_at(top, dir).map_err(io("open", dir))?;
            free(&fd, b"").map_err(io("write to", dir))?;
            let name = entry.name.as_bytes();
            let linked = match self.others.get(&entry.id) {
                Some((other, other_name)) => {
                    let from = dir_at(top, other).map_err(io("open", other))?;
                    target::link(&from, other_name.as_bytes(), &fd, name)
                }
                None => target::link(limbo, &limbo_name(entry.id), &fd, name),
            };
            match linked {
                Ok(()) => {}
                Err(Errno::NOENT) => {
                    checkout.put(entry, &names(&path)?)?;
                }
                Err(e) => return Err(io("link", &path)(e)),
            }
        }
        Ok(())
    }
}
