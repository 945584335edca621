//! Comparing the whole copy with the rows, and putting right what differs.

use std::os::fd::OwnedFd;

use mirror_core::plan::Wanted;
use mirror_core::{At, Kind, Meta, Name, Object, ObjectId, State};

use super::area::{Area, look};
use super::dirs::{DirError, Dirs};
use super::look::same_content;
use super::meta::{Rules, same_type};
use super::pending::Pending;
use super::{ApplyError, Difference, DifferenceKind, Failure, Store};
use crate::sys::{Errno, dir};

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

fn store<E: std::error::Error + Send + Sync + 'static>(error: E) -> ApplyError {
    ApplyError::Store(Box::new(error))
}

impl<S: Store> Verify<'_, S> {
    /// Only reads. A directory that can't be entered is a difference itself, and what is below it is not listed.
    pub fn run(&mut self) -> Result<(), ApplyError> {
        if let Some(root) = self.rows.object(ObjectId::ROOT).map_err(store)? {
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
            match self.rows.name(&At {
                parent: id,
                name: name.clone(),
            }) {
                Ok(Some(_)) => {}
                Ok(None) => extra.push(name),
                Err(e) => failed = Some(e),
            }
        });
        if let Some(e) = failed {
            return Err(store(e));
        }
        if listed.is_err() {
            let path = self.path(id)?;
            self.found(Some(id), path, DifferenceKind::Unreadable);
        }
        for name in extra {
            let path = self.path_of(&At { parent: id, name })?;
            self.found(None, path, DifferenceKind::Extra);
        }
        let mut after: Option<Name> = None;
        loop {
            let page = self
                .rows
                .children(id, after.as_ref(), PAGE)
                .map_err(store)?;
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
        let Some(row) = self.rows.object(id).map_err(store)? else {
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
        let row = self.rows.object(id).map_err(store)?;
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
            let row = self.rows.object(dir).map_err(store)?;
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
