//! Comparing the whole copy with the rows, and putting right what differs.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mirror_core::plan::Wanted;
use mirror_core::{At, Content, Kind, Meta, Name, Object, ObjectId, State};

use super::area::{Area, look};
use super::dirs::{DirError, Dirs};
use super::look::same_content;
use super::meta::{Rules, same_type};
use super::pending::Pending;
use super::{Applier, ApplyError, Difference, DifferenceKind, Failure, Store, store_error};
use crate::sys::stat::fstat;
use crate::sys::{Errno, dir, open};

/// Names read at a time.
const PAGE: usize = 1024;

pub(super) struct Verify<'a, S: Store> {
    pub rows: &'a S,
    pub area: &'a Area,
    pub rules: &'a Rules,
    pub pending: &'a Pending,
    pub dirs: Dirs,
    pub content: bool,
    pub each: &'a mut dyn FnMut(Difference),
}

impl<S: Store> Verify<'_, S> {
    /// Only reads. A directory that can't be entered is a difference itself, and what is below it is not listed.
    pub fn run(&mut self) -> Result<(), ApplyError> {
        if let Some(root) = self.rows.object(ObjectId::ROOT).map_err(store_error)? {
            let root_fd = self.area.root.clone();
            if self.meta_differs(&root_fd, b"", &root) {
                self.found(Some(ObjectId::ROOT), Vec::new(), DifferenceKind::Meta);
            }
        }
        for id in self.pending.wanted.keys() {
            let path = self.path(*id)?;
            self.found(Some(*id), path, DifferenceKind::Pending);
        }
        let mut todo = vec![ObjectId::ROOT];
        while let Some(id) = todo.pop() {
            self.directory(id, &mut todo)?;
        }
        Ok(())
    }

    fn found(&mut self, object: Option<ObjectId>, path: Vec<u8>, what: DifferenceKind) {
        (self.each)(Difference { object, path, what });
    }

    fn directory(&mut self, id: ObjectId, todo: &mut Vec<ObjectId>) -> Result<(), ApplyError> {
        let fd = match self.dirs.open(self.rows, self.area, id) {
            Ok(fd) => fd,
            Err(DirError::Store(e)) => return Err(ApplyError::Store(e)),
            Err(e) => {
                let what = if matches!(e, DirError::Io(_)) {
                    DifferenceKind::Unreadable
                } else {
                    DifferenceKind::Missing
                };
                let path = self.path(id)?;
                self.found(Some(id), path, what);
                return Ok(());
            }
        };
        let mut extra = Vec::new();
        let mut failed = None;
        let listed = dir::list(&*fd, |name, _, _| {
            let Ok(name) = Name::new(name) else { return };
            let at = At { parent: id, name };
            match self.rows.name(&at) {
                Ok(Some(_)) => {}
                Ok(None) if self.pending.lies_at(&at) => {}
                Ok(None) => extra.push(at),
                Err(e) => failed = Some(e),
            }
        });
        if let Some(e) = failed {
            return Err(store_error(e));
        }
        if listed.is_err() {
            let path = self.path(id)?;
            self.found(Some(id), path, DifferenceKind::Unreadable);
        }
        for at in extra {
            let path = self.path_of(&at)?;
            self.found(None, path, DifferenceKind::Extra);
        }
        let mut after: Option<Name> = None;
        loop {
            let page = self
                .rows
                .children(id, after.as_ref(), PAGE)
                .map_err(store_error)?;
            for (name, child) in &page {
                self.entry(
                    &fd,
                    At {
                        parent: id,
                        name: name.clone(),
                    },
                    *child,
                    todo,
                )?;
            }
            match page.last() {
                Some((name, _)) if page.len() == PAGE => after = Some(name.clone()),
                _ => return Ok(()),
            }
        }
    }

    fn entry(
        &mut self,
        fd: &OwnedFd,
        at: At,
        id: ObjectId,
        todo: &mut Vec<ObjectId>,
    ) -> Result<(), ApplyError> {
        let Some(row) = self.rows.object(id).map_err(store_error)? else {
            return Err(ApplyError::Records(format!(
                "a name of the unknown object {}",
                id.0
            )));
        };
        let name = at.name.as_bytes();
        let (here, _) = self.rules.here(&row.state);
        let owed = self.pending.wanted.contains_key(&id);
        let what = match look(fd, name) {
            Ok(None) => Some(DifferenceKind::Missing),
            Err(_) => Some(DifferenceKind::Unreadable),
            Ok(Some(stat)) if !same_type(&here.kind, &stat) => Some(DifferenceKind::Type),
            Ok(Some(stat)) => {
                let first = row.names.first() == Some(&at);
                let other = stat.ino != row.local.ino || stat.btime != row.local.btime;
                if stat.is_dir() {
                    if !other {
                        todo.push(id);
                    }
                    other.then_some(DifferenceKind::Missing)
                } else if other && row.names.len() > 1 {
                    Some(DifferenceKind::Links)
                } else if first && (self.content || !matches!(here.kind, Kind::File(_))) {
                    match same_content(&here.kind, fd, name, &stat) {
                        Ok(true) => None,
                        Ok(false) => Some(DifferenceKind::Content),
                        Err(_) => Some(DifferenceKind::Unreadable),
                    }
                } else if let Kind::File(content) = &here.kind {
                    (content.bytes != stat.bytes).then_some(DifferenceKind::Content)
                } else {
                    None
                }
            }
        };
        let what = match what {
            None if self.meta_differs(fd, name, &row) => Some(DifferenceKind::Meta),
            what => what,
        };
        if let Some(what) = what
            && !owed
        {
            let path = self.path_of(&at)?;
            self.found(Some(id), path, what);
        }
        Ok(())
    }

    fn meta_differs(&self, fd: &OwnedFd, name: &[u8], row: &Object) -> bool {
        let (here, _) = self.rules.here(&row.state);
        match self.rules.read(fd, name) {
            Ok((_, have)) => !self.rules.same(&have, &here.meta),
            Err(_) => true,
        }
    }

    fn path(&self, id: ObjectId) -> Result<Vec<u8>, ApplyError> {
        let row = self.rows.object(id).map_err(store_error)?;
        let row = row.or_else(|| self.pending.wanted.get(&id).and_then(|w| w.want.clone()));
        match row.and_then(|row| row.names.first().cloned()) {
            Some(at) => self.path_of(&at),
            None => Ok(Vec::new()),
        }
    }

    fn path_of(&self, at: &At) -> Result<Vec<u8>, ApplyError> {
        let mut names = vec![at.name.clone()];
        let mut dir = at.parent;
        while dir != ObjectId::ROOT && names.len() < 1 << 16 {
            let row = self.rows.object(dir).map_err(store_error)?;
            let row = row.or_else(|| self.pending.wanted.get(&dir).and_then(|w| w.want.clone()));
            let Some(up) = row.and_then(|row| row.names.first().cloned()) else {
                break;
            };
            names.push(up.name);
            dir = up.parent;
        }
        let names: Vec<&[u8]> = names.iter().rev().map(Name::as_bytes).collect();
        Ok(names.join(&b'/'))
    }
}

/// What a look at one entry leaves to be looked into.
pub enum Further {
    Nothing,
    /// What else is in it?
    Dir(OwnedFd),
    /// Does it hold this? With the inode's number.
    File(OwnedFd, Content, u64),
}

/// Directories of the copy that are open while some of it is looked at; only until the next batch.
pub struct Open(Dirs);

/// The copy compared with the rows a little at a time. Only reads.
impl<S: Store> Applier<S> {
    pub fn look_around(&self) -> Result<Open, ApplyError> {
        self.area.check_root()?;
        Ok(Open(Dirs::new(self.options.dir_fds_max)))
    }

    fn verifier<'a>(&'a self, each: &'a mut dyn FnMut(Difference)) -> Verify<'a, S> {
        Verify {
            rows: &self.store,
            area: &self.area,
            rules: &self.rules,
            pending: &self.pending,
            dirs: Dirs::new(0),
            content: false,
            each,
        }
    }

    /// `None`: it is not there, as its own entry says.
    fn opened(&self, open: &mut Open, dir: ObjectId) -> Result<Option<Arc<OwnedFd>>, ApplyError> {
        match open.0.open(&self.store, &self.area, dir) {
            Ok(fd) => Ok(Some(fd)),
            Err(DirError::Store(e)) => Err(ApplyError::Store(e)),
            Err(_) => Ok(None),
        }
    }

    pub fn verify_root(&self, each: &mut dyn FnMut(Difference)) -> Result<Further, ApplyError> {
        let fd = self.area.root.clone();
        let mut verify = self.verifier(each);
        if let Some(root) = self.store.object(ObjectId::ROOT).map_err(store_error)?
            && verify.meta_differs(&fd, b"", &root)
        {
            verify.found(Some(ObjectId::ROOT), Vec::new(), DifferenceKind::Meta);
        }
        Ok(open::dir_again(&*fd).map_or(Further::Nothing, Further::Dir))
    }

    /// All of an entry but its bytes; with `read` its file is opened for those.
    pub fn verify_entry(
        &self,
        open: &mut Open,
        at: &At,
        id: ObjectId,
        read: bool,
        each: &mut dyn FnMut(Difference),
    ) -> Result<Further, ApplyError> {
        let Some(fd) = self.opened(open, at.parent)? else {
            return Ok(Further::Nothing);
        };
        let mut differs = false;
        let mut each = |difference| {
            differs = true;
            each(difference);
        };
        self.verifier(&mut each)
            .entry(&fd, at.clone(), id, &mut Vec::new())?;
        let row = self.store.object(id).map_err(store_error)?;
        let Some(row) = row.filter(|_| !differs && !self.pending.wanted.contains_key(&id)) else {
            return Ok(Further::Nothing);
        };
        let name = at.name.as_bytes();
        let (here, _) = self.rules.here(&row.state);
        let further = match here.kind {
            Kind::Dir => open::dir(&fd, name).ok().map(Further::Dir),
            Kind::File(content) if read && row.names.first() == Some(at) => {
                let file = open::file(&fd, name).ok();
                file.and_then(|file| {
                    let ino = fstat(&file).ok()?.ino;
                    Some(Further::File(file, content, ino))
                })
            }
            _ => None,
        };
        Ok(further.unwrap_or(Further::Nothing))
    }

    /// Whether no row speaks of what is there under this name.
    pub fn verify_extra(
        &self,
        open: &mut Open,
        dir: ObjectId,
        name: Name,
    ) -> Result<Option<Difference>, ApplyError> {
        let at = At { parent: dir, name };
        if self.store.name(&at).map_err(store_error)?.is_some() || self.pending.lies_at(&at) {
            return Ok(None);
        }
        let Some(fd) = self.opened(open, dir)? else {
            return Ok(None);
        };
        if !matches!(look(&fd, at.name.as_bytes()), Ok(Some(_))) {
            return Ok(None);
        }
        let path = self.verifier(&mut |_| {}).path_of(&at)?;
        Ok(Some(Difference {
            object: None,
            path,
            what: DifferenceKind::Extra,
        }))
    }

    /// Of what was read and is not this content: whether the row still says that it should be.
    pub fn verify_content(
        &self,
        open: &mut Open,
        at: &At,
        content: &Content,
        ino: u64,
    ) -> Result<Option<Difference>, ApplyError> {
        let Some(id) = self.store.name(at).map_err(store_error)? else {
            return Ok(None);
        };
        let row = self.store.object(id).map_err(store_error)?;
        let wanted = row.is_some_and(|row| row.state.kind.content() == Some(content));
        let Some(fd) = self.opened(open, at.parent)?.filter(|_| wanted) else {
            return Ok(None);
        };
        let there = look(&fd, at.name.as_bytes());
        if !matches!(there, Ok(Some(found)) if found.ino == ino) {
            return Ok(None);
        }
        let path = self.verifier(&mut |_| {}).path_of(at)?;
        Ok(Some(Difference {
            object: Some(id),
            path,
            what: DifferenceKind::Content,
        }))
    }
}

/// Forgets what the rows say of an object's inode, and of everything below it, so that it is owed and made anew.
/// `meta_only`: its inode and content are trusted. `forgot`: told each state that the rows do not say any more.
pub(super) fn owe<S: Store>(
    rows: &mut S,
    pending: &mut Pending,
    id: ObjectId,
    meta_only: bool,
    why: &str,
    forgot: &mut dyn FnMut(&State),
) -> Result<(), S::Error> {
    let mut todo = vec![id];
    while let Some(id) = todo.pop() {
        let Some(mut row) = rows.object(id)? else {
            continue;
        };
        let wanted = Wanted {
            want: Some(row.clone()),
            place: None,
            void: false,
            also: Default::default(),
        };
        pending.wanted.entry(id).or_insert(wanted);
        let why = Failure {
            object: id,
            step: "repair",
            reason: why.into(),
            void: false,
        };
        pending.why.entry(id).or_insert(why);
        forgot(&row.state);
        if meta_only || id == ObjectId::ROOT {
            row.state.meta = Meta::default();
            rows.put(id, row)?;
            continue;
        }
        if row.state.kind.is_dir() {
            let mut after: Option<Name> = None;
            loop {
                let page = rows.children(id, after.as_ref(), PAGE)?;
                todo.extend(page.iter().map(|(_, id)| *id));
                match page.last() {
                    Some((name, _)) if page.len() == PAGE => after = Some(name.clone()),
                    _ => break,
                }
            }
        }
        rows.remove(id)?;
    }
    Ok(())
}

/// The directory in which a path's last name lies, opened name by name, and that name.
pub(super) fn walk(area: &Area, path: &[u8]) -> Result<(OwnedFd, Vec<u8>), Errno> {
    let mut names: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    let last = names.pop().ok_or(Errno::INVAL)?;
    let mut fd = rustix::io::fcntl_dupfd_cloexec(&*area.root, 0)?;
    for name in names {
        fd = crate::sys::open::dir(&fd, name)?;
    }
    Ok((fd, last.to_vec()))
}
