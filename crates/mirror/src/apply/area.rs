//! The places apply works in: DST itself, and beside it staging, limbo, aside and adopted.
//!
//! ```text
//! STATE/staging/new/     new inodes before they get a name; wiped at open
//! STATE/staging/sink/    what capture or a link stages ahead of its record; wiped at open
//! STATE/staging/travelling/   contents on their way, as far as they came: kept over a restart
//! STATE/staging/limbo/   inodes that are between two names; sorted out after a crash by what the rows know of them
//! STATE/staging/aside/   new inodes about to trade places with something strange; after a crash moved to adopted
//! STATE/adopted/EPOCH.SEQUENCE/N/NAME   what somebody made by hand in the tree and that stood in the way
//! STATE/made            inodes made since the rows were last durable: see `journal`
//! STATE/applying         no batch beyond this position has touched the tree
//! ```

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mirror_core::plan::Place;
use mirror_core::{ObjectId, Position};

use super::{ApplyError, wipe};
use crate::sys::stat::{Stat, fstat, statx};
use crate::sys::{Errno, flags, open, target};

/// Records that a replay may have to take at once beyond those that were applied.
const AHEAD_RECORDS: u64 = 4096;

pub struct Area {
    pub root: Arc<OwnedFd>,
    pub root_stat: Stat,
    pub root_path: PathBuf,
    pub new: Arc<OwnedFd>,
    pub sink: Arc<OwnedFd>,
    pub travelling: Arc<OwnedFd>,
    pub limbo: Arc<OwnedFd>,
    pub aside: Arc<OwnedFd>,
    adopted: Arc<OwnedFd>,
    applying: std::fs::File,
    /// What `applying` says, once this process wrote it.
    noted: Option<Position>,
    /// Directory of this batch in `adopted/`, and the number of the next thing in it.
    adopting: Option<(String, OwnedFd, u64)>,
    pub moved_aside: Vec<Vec<u8>>,
}

fn io(step: &'static str, path: &Path, source: impl Into<std::io::Error>) -> ApplyError {
    ApplyError::Io {
        step,
        path: path.into(),
        source: source.into(),
    }
}

impl Area {
    pub fn open(dst: &Path, state: &Path, may_create: bool) -> Result<Area, ApplyError> {
        if may_create {
            std::fs::create_dir_all(dst).map_err(|e| io("create", dst, e))?;
        }
        let root = match open::dir_at_path(dst) {
            Err(Errno::NOENT) => {
                return Err(ApplyError::Root {
                    path: dst.into(),
                    what: "it is missing".into(),
                });
            }
            opened => opened.map_err(|e| io("open", dst, e))?,
        };
        let root_stat = fstat(&root).map_err(|e| io("look at", dst, e))?;
        std::fs::create_dir_all(state).map_err(|e| io("create", state, e))?;
        let state_fd = open::dir_at_path(state).map_err(|e| io("open", state, e))?;
        let staging = own_dir(&state_fd, "staging", state)?;
        let area = Area {
            root: Arc::new(root),
            root_stat,
            root_path: dst.into(),
            new: Arc::new(own_dir(&staging, "new", state)?),
            sink: Arc::new(own_dir(&staging, "sink", state)?),
            travelling: Arc::new(own_dir(&staging, "travelling", state)?),
            limbo: Arc::new(own_dir(&staging, "limbo", state)?),
            aside: Arc::new(own_dir(&staging, "aside", state)?),
            adopted: Arc::new(own_dir(&state_fd, "adopted", state)?),
            applying: std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(state.join("applying"))
                .map_err(|e| io("open", &state.join("applying"), e))?,
            noted: None,
            adopting: None,
            moved_aside: Vec::new(),
        };
        let there = fstat(&*area.new).map_err(|e| io("look at", state, e))?;
        if there.dev != area.root_stat.dev || there.mount_id != area.root_stat.mount_id {
            return Err(ApplyError::TwoFileSystems {
                dst: dst.into(),
                state: state.into(),
            });
        }
        Ok(area)
    }

    /// DST's path must still lead to the directory that is open: not unmounted, replaced or covered.
    pub fn check_root(&self) -> Result<(), ApplyError> {
        let wrong = |what: &str| ApplyError::Root {
            path: self.root_path.clone(),
            what: what.into(),
        };
        match std::fs::metadata(&self.root_path) {
            Ok(meta) => {
                use std::os::unix::fs::MetadataExt;
                let dev = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
                if meta.ino() != self.root_stat.ino || dev != self.root_stat.dev {
                    return Err(wrong("another directory is there now"));
                }
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(wrong("it is gone")),
            Err(e) => Err(io("look at", &self.root_path, e)),
        }
    }

    /// Where a place outside the tree is.
    pub fn outside(&self, place: &Place) -> Option<(Arc<OwnedFd>, Vec<u8>)> {
        match place {
            Place::Tree(_) => None,
            Place::Staging(id, n) => {
                Some((self.new.clone(), format!("{:016x}.{n}", id.0).into_bytes()))
            }
            Place::Limbo(a, b) => Some((
                self.limbo.clone(),
                format!("{:016x}-{:016x}", a.0, b.0).into_bytes(),
            )),
            Place::Aside(id) => Some((self.aside.clone(), format!("{:016x}", id.0).into_bytes())),
        }
    }

    /// The place a name in `limbo/` stands for.
    pub fn limbo_place(name: &[u8]) -> Option<Place> {
        let text = std::str::from_utf8(name).ok()?;
        let (a, b) = text.split_once('-')?;
        let id = |hex| u64::from_str_radix(hex, 16).ok().map(ObjectId);
        Some(Place::Limbo(id(a)?, id(b)?))
    }

    /// Moves (or `link_only` links) something to `adopted/`, where it goes by the name it was `called`. What was moved is told
    /// at the end of the batch. An immutable or append-only inode loses those flags; of its directory they are the caller's.
    pub fn move_aside(
        &mut self,
        position: Option<Position>,
        dir: &OwnedFd,
        name: &[u8],
        called: &[u8],
        link_only: bool,
    ) -> Result<(), Errno> {
        let (to, shown) = self.adopt_dir(position, called)?;
        let moved = || match link_only {
            true => target::link(dir, name, &to, called),
            false => target::rename(dir, name, &to, called),
        };
        match moved() {
            Err(Errno::PERM) => {
                wipe::lift(dir, name, &statx(dir, name)?)?;
                moved()?;
            }
            done => done?,
        }
        self.moved_aside.push(shown);
        Ok(())
    }

    /// A new directory in `adopted/` for one thing; returns it with the name to show.
    fn adopt_dir(
        &mut self,
        position: Option<Position>,
        name: &[u8],
    ) -> Result<(OwnedFd, Vec<u8>), Errno> {
        if self.adopting.is_none() {
            let batch = position.map_or("start".into(), |p| p.to_string());
            match target::create_dir(&*self.adopted, batch.as_bytes()) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            let fd = open::dir(&*self.adopted, batch.as_bytes())?;
            self.adopting = Some((batch, fd, 0));
        }
        let Some((batch, fd, next)) = &mut self.adopting else {
            return Err(Errno::IO);
        };
        loop {
            let number = next.to_string();
            *next += 1;
            match target::create_dir(&*fd, number.as_bytes()) {
                Ok(()) => {
                    let one = open::dir(&*fd, number.as_bytes())?;
                    let mut shown = format!("{batch}/{number}/").into_bytes();
                    shown.extend_from_slice(name);
                    return Ok((one, shown));
                }
                Err(Errno::EXIST) => {}
                // Somebody emptied it meanwhile.
                Err(Errno::NOENT) => {
                    self.adopting = None;
                    return self.adopt_dir(position, name);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// The next batch gets a directory of its own.
    pub fn end_batch(&mut self) -> Vec<Vec<u8>> {
        self.adopting = None;
        std::mem::take(&mut self.moved_aside)
    }

    /// No batch beyond this position has touched the tree. A torn one reads as none: it was not flushed, so nothing
    /// followed it.
    pub fn applying(&self) -> Option<Position> {
        let mut bytes = [0u8; 16];
        self.applying.read_exact_at(&mut bytes, 0).ok()?;
        let (body, sum) = bytes.split_at(12);
        if crc32c::crc32c(body).to_le_bytes() != sum {
            return None;
        }
        let epoch = u32::from_le_bytes(body[..4].try_into().ok()?);
        let sequence = u64::from_le_bytes(body[4..].try_into().ok()?);
        Some(Position { epoch, sequence })
    }

    /// Notes that the tree may show records up to here, before it does. Well ahead, so that few batches pay for a flush.
    pub fn may_show(&mut self, position: Position, flush: bool) -> Result<(), ApplyError> {
        if self.noted.is_some_and(|noted| position <= noted) {
            return Ok(());
        }
        let position = Position {
            sequence: position.sequence.saturating_add(AHEAD_RECORDS),
            ..position
        };
        let flushed = self.note(position);
        let flushed = flushed.and_then(|()| {
            if flush {
                self.applying.sync_data()
            } else {
                Ok(())
            }
        });
        flushed.map_err(|source| ApplyError::Flush {
            what: "the position being applied",
            source,
        })?;
        self.noted = Some(position);
        Ok(())
    }

    fn note(&self, position: Position) -> std::io::Result<()> {
        let mut bytes = [0u8; 16];
        bytes[..4].copy_from_slice(&position.epoch.to_le_bytes());
        bytes[4..12].copy_from_slice(&position.sequence.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..12]);
        bytes[12..].copy_from_slice(&sum.to_le_bytes());
        self.applying.write_all_at(&bytes, 0)
    }

    /// The tree shows no more than this, and is left so. Not flushed: an older note only means more work.
    pub fn comes_to_rest(&mut self, position: Position) {
        if self.noted.take().is_some_and(|noted| noted > position) {
            let _ = self.note(position);
        }
    }
}

/// A directory of ours, 0700, that hands nothing of its own down to what is made in it.
fn own_dir(parent: &OwnedFd, name: &str, state: &Path) -> Result<OwnedFd, ApplyError> {
    let path = || state.join(OsStr::from_bytes(name.as_bytes()));
    match target::create_dir(parent, name.as_bytes()) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(io("create", &path(), e)),
    }
    let fd = open::dir(parent, name.as_bytes()).map_err(|e| io("open", &path(), e))?;
    target::set_mode(&fd, b"", 0o700).map_err(|e| io("set the mode of", &path(), e))?;
    let _ = crate::sys::xattr::remove(&fd, b"", b"system.posix_acl_default");
    if let Ok(Some(found)) = flags::get(&fd) {
        if found.flags & flags::PROJINHERIT != 0 {
            let _ = flags::set_flags(&fd, 0, flags::PROJINHERIT);
        }
        if found.project != 0 {
            let _ = flags::set_project(&fd, 0);
        }
    }
    Ok(fd)
}

/// Of a name that may be free.
pub fn look(dir: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match statx(dir, name) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
