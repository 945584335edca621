//! Directories of the copy by object: opened name by name from DST's root, nothing followed, each inode compared with
//! what the rows say, and kept open as long as there is room.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mirror_core::plan::Place;
use mirror_core::{Local, ObjectId, Rows};

use super::area::Area;
use crate::sys::stat::{Stat, fstat};
use crate::sys::{Errno, flags, open, target};

/// Why a directory can't be had.
#[derive(Debug)]
pub enum DirError {
    /// It, or one above it, is not (or not yet) in the copy.
    Unknown,
    /// Somebody changed the copy: another thing has the name, or nothing.
    Changed(ObjectId),
    Io(Errno),
    Store(Box<dyn std::error::Error + Send + Sync>),
}

impl std::fmt::Display for DirError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DirError::Unknown => f.write_str("a directory above it could not be made"),
            DirError::Changed(_) => f.write_str("a directory above it was changed by hand"),
            DirError::Io(e) => write!(f, "a directory above it: {}", std::io::Error::from(*e)),
            DirError::Store(e) => write!(f, "the index failed: {e}"),
        }
    }
}

pub struct Dirs {
    open: HashMap<ObjectId, (Arc<OwnedFd>, u64)>,
    clock: u64,
    open_max: usize,
    /// Directories that are not at a name: in staging or limbo.
    pub elsewhere: HashMap<ObjectId, Place>,
    /// Directories whose mode or flags were changed so that we can work in them; set right at the end of the batch.
    pub lifted: BTreeSet<ObjectId>,
}

/// Whether this is the inode the rows speak of.
pub fn is_local(stat: &Stat, local: &Local) -> bool {
    stat.ino == local.ino
        && (local.btime == stat.btime || local.btime == mirror_core::Time::default())
}

impl Dirs {
    pub fn new(open_max: usize) -> Dirs {
        Dirs {
            open: HashMap::new(),
            clock: 0,
            open_max: open_max.max(8),
            elsewhere: HashMap::new(),
            lifted: BTreeSet::new(),
        }
    }

    pub fn forget(&mut self, id: ObjectId) {
        self.open.remove(&id);
    }
    pub fn clear(&mut self) {
        self.open.clear();
        self.elsewhere.clear();
        self.lifted.clear();
    }

    pub fn open<R: Rows>(
        &mut self,
        rows: &R,
        area: &Area,
        id: ObjectId,
    ) -> Result<Arc<OwnedFd>, DirError>
    where
        R::Error: std::error::Error + Send + Sync + 'static,
    {
        if id == ObjectId::ROOT {
            return Ok(area.root.clone());
        }
        self.clock += 1;
        if let Some((fd, used)) = self.open.get_mut(&id) {
            *used = self.clock;
            return Ok(fd.clone());
        }
        // Up to something that is open, then down.
        let mut path = Vec::new();
        let mut at = id;
        let mut fd = loop {
            if at == ObjectId::ROOT {
                break area.root.clone();
            }
            if let Some((fd, _)) = self.open.get(&at) {
                break fd.clone();
            }
            if path.len() > 1 << 20 {
                return Err(DirError::Unknown);
            }
            let object = rows.object(at).map_err(|e| DirError::Store(Box::new(e)))?;
            let object = object.ok_or(DirError::Unknown)?;
            let place = match self.elsewhere.get(&at) {
                Some(place) => place.clone(),
                None => Place::Tree(object.names.first().cloned().ok_or(DirError::Unknown)?),
            };
            match place {
                Place::Tree(name) => {
                    path.push((at, name.name.as_bytes().to_vec(), object.local));
                    at = name.parent;
                }
                place => {
                    let (fd, name) = area.outside(&place).ok_or(DirError::Unknown)?;
                    path.push((at, name, object.local));
                    break fd;
                }
            }
        };
        for (id, name, local) in path.into_iter().rev() {
            fd = Arc::new(self.step(area, id, &fd, &name, &local)?);
            self.keep(id, fd.clone());
        }
        Ok(fd)
    }

    fn step(
        &mut self,
        area: &Area,
        id: ObjectId,
        dir: &OwnedFd,
        name: &[u8],
        local: &Local,
    ) -> Result<OwnedFd, DirError> {
        let fd = match open::dir(dir, name) {
            Err(Errno::ACCESS) => {
                let held = open::path(dir, name).map_err(DirError::Io)?;
                let stat = fstat(&held).map_err(DirError::Io)?;
                if !stat.is_dir() || !is_local(&stat, local) {
                    return Err(DirError::Changed(id));
                }
                target::set_mode(&held, b"", stat.permissions() | 0o700).map_err(DirError::Io)?;
                self.lifted.insert(id);
                open::again(&held)
            }
            opened => opened,
        };
        let fd = match fd {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(DirError::Changed(id)),
            Err(e) => return Err(DirError::Io(e)),
        };
        let stat = fstat(&fd).map_err(DirError::Io)?;
        // A mount on top of a directory of the copy is not the copy either.
        if !is_local(&stat, local) || stat.dev != area.root_stat.dev {
            return Err(DirError::Changed(id));
        }
        Ok(fd)
    }

    pub fn keep(&mut self, id: ObjectId, fd: Arc<OwnedFd>) {
        if self.open.len() >= self.open_max {
            let mut used: Vec<u64> = self.open.values().map(|(_, used)| *used).collect();
            used.sort_unstable();
            let oldest = used.get(used.len() / 4).copied().unwrap_or(0);
            self.open.retain(|_, (_, used)| *used > oldest);
        }
        self.clock += 1;
        self.open.insert(id, (fd, self.clock));
    }

    /// Makes a directory of ours writable again for a moment: no permission, or flags that forbid it.
    pub fn lift(&mut self, id: ObjectId, fd: &OwnedFd) -> Result<(), Errno> {
        self.lifted.insert(id);
        let lifted = flags::IMMUTABLE | flags::APPEND | flags::PROJINHERIT;
        flags::set_flags(fd, 0, lifted)?;
        if !rustix::process::geteuid().is_root() {
            let mode = fstat(fd)?.permissions();
            if mode & 0o300 != 0o300 {
                target::set_mode(fd, b"", mode | 0o700)?;
            }
        }
        Ok(())
    }
}
