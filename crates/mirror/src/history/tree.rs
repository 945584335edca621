//! The tree as of a position, asked page by page: what a command shows, copies or serves.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use mirror_core::history::asof::AsOfError;
use mirror_core::history::{AsOf, Bytes, Moment, Unkept, Was};
use mirror_core::plan::same_inode_kind;
use mirror_core::{At, Kind, Name, ObjectId, Rows, State};

use super::slots::Slot;
use super::{History, HistoryError};
use crate::apply::{Inode, inode_of};

/// Entries of a page.
pub const PAGE: usize = 1024;
/// Directories above each other.
const DEPTH_MAX: usize = 1 << 14;

#[derive(Debug, thiserror::Error)]
pub enum PastError {
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error("the index of the copy failed: {0}")]
    Rows(String),
    /// What is asked for is not in the window, or contradicts itself.
    #[error("{0}")]
    Unknown(String),
    #[error("cannot ask the running mirror: {0}")]
    Asking(String),
}

/// Where the bytes of a version can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// It has none.
    Nothing,
    /// In the copy, under this path below DST; it may be replaced any moment, then ask again.
    Live(PathBuf),
    Kept(Slot),
    /// Nowhere, for this reason.
    Unkept(Unkept),
}

/// One name of the tree as of a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Name,
    pub id: ObjectId,
    pub state: State,
    pub bytes: Where,
    /// Which inode of the copy holds them, while they are [`Where::Live`] and that is sure.
    pub inode: Option<Inode>,
}

/// The tree as of one position, wherever the answer comes from.
pub trait PastTree {
    fn root(&mut self) -> Result<State, PastError>;
    /// Entries in order of names after `after`, and the name to go on after unless that was all.
    fn page(
        &mut self,
        dir: ObjectId,
        after: Option<&Name>,
    ) -> Result<(Vec<Entry>, Option<Name>), PastError>;
    fn entry(&mut self, at: &At) -> Result<Option<Entry>, PastError>;
    /// The bytes of a version as they are now: [`Where`] may have become another place since it was told.
    fn open(&mut self, entry: &Entry) -> Result<OwnedFd, PastError>;
}

/// Of rows and history at hand.
pub struct Here<'a, R> {
    pub rows: &'a R,
    pub history: &'a History,
    pub moment: Moment,
    paths: HashMap<ObjectId, Option<PathBuf>>,
    paths_then: HashMap<ObjectId, Option<Vec<u8>>>,
}

impl<'a, R: Rows<Error: std::fmt::Display>> Here<'a, R> {
    pub fn new(rows: &'a R, history: &'a History, moment: Moment) -> Here<'a, R> {
        Here {
            rows,
            history,
            moment,
            paths: HashMap::new(),
            paths_then: HashMap::new(),
        }
    }

    pub fn view(&self) -> AsOf<'a, R, History> {
        AsOf {
            rows: self.rows,
            past: self.history,
            moment: self.moment,
        }
    }

    pub fn state(&self, id: ObjectId) -> Result<Option<State>, PastError> {
        self.view().state(id).map_err(error)
    }

    /// What a path stood for; `None`: nothing.
    pub fn find(&self, path: &[Name]) -> Result<Option<ObjectId>, PastError> {
        let view = self.view();
        let mut id = ObjectId::ROOT;
        for name in path {
            let at = At {
                parent: id,
                name: name.clone(),
            };
            match view.name(&at).map_err(error)? {
                Some(found) => id = found,
                None => return Ok(None),
            }
        }
        Ok(Some(id))
    }

    pub fn root_state(&self) -> Result<State, PastError> {
        let state = self.state(ObjectId::ROOT)?;
        state.ok_or_else(|| PastError::Unknown("the tree has no root".into()))
    }

    fn describe(&mut self, name: Name, id: ObjectId) -> Result<Option<Entry>, PastError> {
        let Some(state) = self.state(id)? else {
            return Ok(None);
        };
        let bytes = match self.view().bytes(id).map_err(error)? {
            None | Some(Bytes::Nothing) => Where::Nothing,
            Some(Bytes::Kept(until)) => Where::Kept(Slot { until, object: id }),
            Some(Bytes::Live) => self.live(id, &state.kind)?,
            // A later version may never have come, and this one stands there still.
            Some(Bytes::Unkept(_, why)) => match self.live(id, &state.kind)? {
                Where::Live(path) => Where::Live(path),
                _ => Where::Unkept(why),
            },
        };
        let inode = match &bytes {
            Where::Live(_) => self.inode(id, &state.kind)?,
            _ => None,
        };
        Ok(Some(Entry {
            name,
            id,
            state,
            bytes,
            inode,
        }))
    }

    /// Rows that are owed know none: what stands there is of an earlier version.
    fn inode(&self, id: ObjectId, kind: &Kind) -> Result<Option<Inode>, PastError> {
        let row = self.rows.object(id).map_err(rows_error)?;
        let row = row.filter(|row| same_inode_kind(&row.state.kind, kind));
        let inode = row.map(|row| inode_of(&row.local));
        // A file system without birth times can't tell a number that is used again.
        Ok(inode.filter(|inode| inode.0 != 0 && (inode.1, inode.2) != (0, 0)))
    }

    /// All names that the object had.
    pub fn names_then(&self, id: ObjectId) -> Result<Vec<At>, PastError> {
        let row = self.rows.object(id).map_err(rows_error)?;
        let names = row.map(|row| row.names).unwrap_or_default();
        let mut names: BTreeSet<At> = names.iter().cloned().collect();
        let catalogue = &self.history.catalogue;
        let failed = |e: super::catalogue::CatalogueError| PastError::History(e.into());
        let mut from = self.moment;
        while let Some(found) = catalogue
            .object_after(id, super::Kind::Named, from)
            .map_err(failed)?
        {
            let before = Moment(found.moment.0.saturating_sub(1));
            let read = catalogue.groups((before, found.moment), &mut |dated| {
                for row in &dated.group.rows {
                    if let Was::Name { at, before, .. } = &row.was
                        && *before == Some(id)
                    {
                        names.insert(at.clone());
                    }
                }
                true
            });
            read.map_err(failed)?;
            from = found.moment;
        }
        let mut had = Vec::new();
        for at in names {
            if self.name(&at)? == Some(id) {
                had.push(at);
            }
        }
        Ok(had)
    }

    /// Where the copy has the object, if it is of these bytes there.
    fn live(&mut self, id: ObjectId, kind: &Kind) -> Result<Where, PastError> {
        let row = self.rows.object(id).map_err(rows_error)?;
        let Some(row) = row.filter(|row| same_inode_kind(&row.state.kind, kind)) else {
            return Ok(Where::Unkept(Unkept::Missing));
        };
        let Some(at) = row.names.first() else {
            return Ok(Where::Unkept(Unkept::Missing));
        };
        match self.path_now(at.parent, 0)? {
            Some(mut path) => {
                path.push(os(at.name.as_bytes()));
                Ok(Where::Live(path))
            }
            None => Ok(Where::Unkept(Unkept::Missing)),
        }
    }

    /// The present path of a directory, below the root.
    fn path_now(&mut self, dir: ObjectId, depth: usize) -> Result<Option<PathBuf>, PastError> {
        if dir == ObjectId::ROOT {
            return Ok(Some(PathBuf::new()));
        }
        if let Some(path) = self.paths.get(&dir) {
            return Ok(path.clone());
        }
        let row = self.rows.object(dir).map_err(rows_error)?;
        let at = row.and_then(|row| row.names.first().cloned());
        let path = match at {
            Some(at) if depth < DEPTH_MAX => {
                let above = self.path_now(at.parent, depth + 1)?;
                above.map(|above| above.join(os(at.name.as_bytes())))
            }
            _ => None,
        };
        self.paths.insert(dir, path.clone());
        Ok(path)
    }

    pub fn page(
        &mut self,
        dir: ObjectId,
        after: Option<&Name>,
    ) -> Result<(Vec<Entry>, Option<Name>), PastError> {
        let (found, next) = self.view().children(dir, after, PAGE).map_err(error)?;
        let mut entries = Vec::with_capacity(found.len());
        for (name, id) in found {
            entries.extend(self.describe(name, id)?);
        }
        Ok((entries, next))
    }

    pub fn name(&self, at: &At) -> Result<Option<ObjectId>, PastError> {
        self.view().name(at).map_err(error)
    }

    /// An object that had a name then: its state, its bytes, and its path.
    pub fn object(&mut self, id: ObjectId) -> Result<Option<(Entry, Option<Vec<u8>>)>, PastError> {
        let name = Name::new(b"x").map_err(|_| PastError::Unknown("no name".into()))?;
        let Some(entry) = self.describe(name, id)? else {
            return Ok(None);
        };
        let path = self.path_then(id, 0)?;
        Ok(Some((entry, path)))
    }

    /// A path of an object as of the moment, below the root.
    pub fn path_then(&mut self, id: ObjectId, depth: usize) -> Result<Option<Vec<u8>>, PastError> {
        if id == ObjectId::ROOT {
            return Ok(Some(Vec::new()));
        }
        if let Some(path) = self.paths_then.get(&id) {
            return Ok(path.clone());
        }
        let path = match self.name_then(id)? {
            Some(at) if depth < DEPTH_MAX => {
                let above = self.path_then(at.parent, depth + 1)?;
                above.map(|mut above| {
                    if !above.is_empty() {
                        above.push(b'/');
                    }
                    above.extend_from_slice(at.name.as_bytes());
                    above
                })
            }
            _ => None,
        };
        self.paths_then.insert(id, path.clone());
        Ok(path)
    }

    /// A name that the object had.
    fn name_then(&self, id: ObjectId) -> Result<Option<At>, PastError> {
        let mut from = self.moment;
        loop {
            let catalogue = &self.history.catalogue;
            let found = catalogue.object_after(id, super::Kind::Named, from);
            let Some(found) = found.map_err(|e| PastError::History(e.into()))? else {
                let row = self.rows.object(id).map_err(rows_error)?;
                let names = row.map(|row| row.names).unwrap_or_default();
                // Any that it had then already.
                for at in &names {
                    if self.name(at)? == Some(id) {
                        return Ok(Some(at.clone()));
                    }
                }
                return Ok(None);
            };
            let mut had = None;
            let before = Moment(found.moment.0.saturating_sub(1));
            let read = catalogue.groups((before, found.moment), &mut |dated| {
                for row in &dated.group.rows {
                    if let Was::Name { at, before, .. } = &row.was
                        && *before == Some(id)
                    {
                        had = Some(at.clone());
                        return false;
                    }
                }
                true
            });
            read.map_err(|e| PastError::History(e.into()))?;
            if had.is_some() {
                return Ok(had);
            }
            // It only got one more there.
            from = found.moment;
        }
    }

    pub fn entry(&mut self, at: &At) -> Result<Option<Entry>, PastError> {
        match self.view().name(at).map_err(error)? {
            Some(id) => self.describe(at.name.clone(), id),
            None => Ok(None),
        }
    }
}

fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

fn rows_error(error: impl std::fmt::Display) -> PastError {
    PastError::Rows(error.to_string())
}

fn error<A: std::fmt::Display>(error: AsOfError<A, HistoryError>) -> PastError {
    match error {
        AsOfError::Rows(e) => rows_error(e),
        AsOfError::Past(e) => PastError::History(e),
    }
}
