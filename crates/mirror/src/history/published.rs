//! Trees that were published: where they stand, what they are of, and taking them away.
//!
//! A tree is a plain directory; what it is of is written beside it, in `STATE/snapshots/NAME.json` (`docs/FORMAT.md`), and
//! tells the tree by its inode: a name that was changed half is mended. Whatever is being made is in a directory of ours
//! that nobody else may enter; what a crash leaves there is removed.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mirror_core::escape;
use mirror_core::history::Moment;
use serde::{Deserialize, Serialize};

use super::remove::remove_tree;
use crate::apply::{Inode, inode};
use crate::cli::parse;
use crate::sys::stat::statx;
use crate::sys::{Errno, open, target};

const DIR: &str = "snapshots";
const FORMAT: u32 = 1;
/// Bytes of one file.
const RECORD_MAX: u64 = 1 << 20;
/// How long somebody else may have them.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Paths that are named, of those a tree lacks.
pub const MISSING_MAX: usize = 100;

/// One tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    format: u32,
    pub name: String,
    /// `hourly`, `daily`, `weekly`, `monthly`, or `named`.
    pub kind: String,
    /// Where it stands, if not in the state directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dir: Option<String>,
    pub moment: u64,
    pub position: String,
    /// The time it stands for, by this host's clock.
    pub at_ns: u64,
    /// Of the last change in it, by the worker's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub there_ns: Option<u64>,
    /// When the history began that `moment` is of, by this host's clock: another one counts anew.
    pub begins_ns: u64,
    /// When it was made.
    pub made_ns: u64,
    /// Its top: number, birth in seconds and nanoseconds.
    root: Inode,
    /// Made of an older one, at the cost of what differs.
    pub recycled: bool,
    /// Files that could not be had, and why.
    #[serde(default, skip_serializing_if = "is_none")]
    pub missing: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_paths: Vec<String>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// What is known of a tree before it stands.
pub struct New {
    pub name: String,
    pub kind: String,
    pub moment: Moment,
    pub at_ns: u64,
    pub there_ns: Option<u64>,
    pub begins_ns: u64,
    pub recycled: bool,
    pub missing: u64,
    pub missing_paths: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error("cannot {what} {}", escape(.path.as_os_str().as_bytes()))]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("published trees are just being changed by another process: try again")]
    Busy,
    #[error("{}: {why}", escape(.path.as_os_str().as_bytes()))]
    Odd { path: PathBuf, why: String },
}

type Result<T> = std::result::Result<T, ShelfError>;

fn failed<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> ShelfError {
    let path = path.to_path_buf();
    move |e| ShelfError::Io {
        what,
        path,
        source: e.into(),
    }
}

/// The trees of one mirror. Whoever changes them has its lock.
pub struct Shelf {
    /// Of what is written down.
    records: PathBuf,
    /// Where new trees go.
    dir: PathBuf,
    elsewhere: bool,
    /// Name of the directory for what is being made.
    work_name: String,
    lock: Option<File>,
}

impl Shelf {
    /// `dir`: where new trees go, if not in the state directory. Only to look.
    pub fn look(state_dir: &Path, dir: Option<&Path>) -> Result<Shelf> {
        let records = state_dir.join(DIR);
        let found = fs::metadata(state_dir).map_err(failed("look at", state_dir))?;
        Ok(Shelf {
            dir: dir.map_or_else(|| records.clone(), Path::to_path_buf),
            elsewhere: dir.is_some(),
            // Several mirrors may have one directory.
            work_name: format!(".fs_mirror-{:x}", found.ino()),
            records,
            lock: None,
        })
    }

    /// To change them.
    pub fn open(state_dir: &Path, dir: Option<&Path>) -> Result<Shelf> {
        let mut shelf = Shelf::look(state_dir, dir)?;
        match fs::DirBuilder::new().mode(0o700).create(&shelf.records) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed("make", &shelf.records)(e)),
        }
        let path = shelf.records.join(".lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open", &path))?;
        let began = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                // A program that is just being started has it for a moment, too.
                Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => return Err(ShelfError::Busy),
                Err(TryLockError::Error(e)) => return Err(failed("lock", &path)(e)),
            }
        }
        shelf.lock = Some(lock);
        shelf.clear()?;
        Ok(shelf)
    }

    fn dir_of(&self, tree: &Published) -> PathBuf {
        let elsewhere = tree.dir.as_ref();
        let elsewhere = elsewhere.and_then(|dir| parse::unescape(dir).ok());
        elsewhere.map_or_else(|| self.records.clone(), PathBuf::from)
    }

    pub fn path(&self, tree: &Published) -> PathBuf {
        self.dir_of(tree).join(&tree.name)
    }

    fn record(&self, name: &str) -> PathBuf {
        self.records.join(format!("{name}.json"))
    }

    /// All, by the time they stand for, the oldest first. Those that somebody took away are not there any more.
    pub fn list(&self) -> Result<Vec<Published>> {
        let mut all: Vec<Published> = Vec::new();
        let entries = match fs::read_dir(&self.records) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(all),
            Err(e) => return Err(failed("read", &self.records)(e)),
        };
        for entry in entries {
            let entry = entry.map_err(failed("read", &self.records))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            let Some(tree) = self.read(name)? else {
                continue;
            };
            let standing = self.inode_at(&self.dir_of(&tree).join(name))?;
            let name = match standing == Some(tree.root) {
                true => Some(name.to_owned()),
                false => self.find(&tree)?,
            };
            let Some(name) = name else {
                self.forget(entry.path())?;
                continue;
            };
            // A change of its name was broken off: of two that speak of it, either is right.
            if tree.name == name || !all.iter().any(|known| known.root == tree.root) {
                all.retain(|known| known.root != tree.root);
                all.push(Published { name, ..tree });
            }
        }
        all.sort_by(|a, b| (a.at_ns, &a.name).cmp(&(b.at_ns, &b.name)));
        Ok(all)
    }

    fn read(&self, name: &str) -> Result<Option<Published>> {
        let path = self.record(name);
        let mut bytes = Vec::new();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &path)(e)),
        };
        io::Read::read_to_end(&mut io::Read::take(file, RECORD_MAX), &mut bytes)
            .map_err(failed("read", &path))?;
        let tree: std::result::Result<Published, _> = serde_json::from_slice(&bytes);
        match tree {
            Ok(tree) if tree.format == FORMAT => Ok(Some(tree)),
            Ok(tree) => Err(ShelfError::Odd {
                path,
                why: format!("it is of format {}, made by a newer version", tree.format),
            }),
            Err(e) => Err(ShelfError::Odd {
                path,
                why: format!("it is damaged ({e}): remove it, and the tree beside it"),
            }),
        }
    }

    fn inode_at(&self, path: &Path) -> Result<Option<Inode>> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        let above = match open::dir_at_path(above) {
            Ok(above) => above,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed("open", above)(e)),
        };
        match statx(&above, name.as_bytes()) {
            Ok(stat) => Ok(Some(inode(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(failed("look at", path)(e)),
        }
    }

    /// The name of a tree that has another one than is written down.
    fn find(&self, tree: &Published) -> Result<Option<String>> {
        let dir = self.dir_of(tree);
        let Ok(entries) = fs::read_dir(&dir) else {
            return Ok(None);
        };
        for entry in entries {
            let entry = entry.map_err(failed("read", &dir))?;
            if self.inode_at(&entry.path())? == Some(tree.root) {
                return Ok(entry.file_name().into_string().ok());
            }
        }
        Ok(None)
    }

    fn forget(&self, record: PathBuf) -> Result<()> {
        // Who only looks changes nothing.
        if self.lock.is_none() {
            return Ok(());
        }
        match fs::remove_file(&record) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("remove", &record)(e)),
        }
    }

    fn write(&self, tree: &Published) -> Result<()> {
        let path = self.record(&tree.name);
        let new = self.records.join(".new");
        let text = serde_json::to_vec_pretty(tree).map_err(failed("write", &path))?;
        let mut file = File::create(&new).map_err(failed("write", &new))?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("write", &path))?;
        File::open(&self.records)
            .and_then(|dir| dir.sync_all())
            .map_err(failed("flush", &self.records))
    }

    fn work_path(&self) -> PathBuf {
        self.dir.join(&self.work_name)
    }

    /// Where something is made: nobody else can enter.
    pub fn work(&self) -> Result<OwnedFd> {
        let path = self.work_path();
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed("make", &path)(e)),
        }
        let above = open::dir_at_path(&self.dir).map_err(failed("open", &self.dir))?;
        open::dir(&above, self.work_name.as_bytes()).map_err(failed("open", &path))
    }

    /// Removes what was being made, or going.
    pub fn clear(&self) -> Result<()> {
        let mut dirs = vec![self.dir.clone()];
        if self.elsewhere {
            dirs.push(self.records.clone());
        }
        for dir in dirs {
            let path = dir.join(&self.work_name);
            let above = match open::dir_at_path(&dir) {
                Ok(above) => above,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(failed("open", &dir)(e)),
            };
            remove_tree(&above, self.work_name.as_bytes()).map_err(failed("remove", &path))?;
        }
        Ok(())
    }

    /// Takes a tree away from where users see it, into [`Shelf::work`], under this name. False: it can't be had there.
    pub fn take(&self, tree: &Published, work: &OwnedFd, name: &[u8]) -> Result<bool> {
        let (dir, path) = (self.dir_of(tree), self.path(tree));
        let above = open::dir_at_path(&dir).map_err(failed("open", &dir))?;
        match target::rename(&above, tree.name.as_bytes(), work, name) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::XDEV) => return Ok(false),
            Err(e) => return Err(failed("move", &path)(e)),
        }
        self.forget(self.record(&tree.name))?;
        Ok(true)
    }

    /// Removes one for good.
    pub fn remove(&self, tree: &Published) -> Result<()> {
        let work = self.work()?;
        let path = self.path(tree);
        if !self.take(tree, &work, b"going")? {
            // On another file system than new ones: it can't be moved out of sight.
            let dir = self.dir_of(tree);
            match open::dir_at_path(&dir) {
                Ok(above) => {
                    remove_tree(&above, tree.name.as_bytes()).map_err(failed("remove", &path))?
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(failed("open", &dir)(e)),
            }
            return self.forget(self.record(&tree.name));
        }
        remove_tree(&work, b"going").map_err(failed("remove", &path))
    }

    /// Whether something of somebody else's has this name.
    pub fn is_taken(&self, name: &str) -> bool {
        self.dir.join(name).symlink_metadata().is_ok() || self.record(name).exists()
    }

    /// Shows what is complete in [`Shelf::work`] as `made`.
    pub fn put(&self, new: New, work: &OwnedFd, made: &[u8]) -> Result<Published> {
        let to = self.dir.join(&new.name);
        let stat = statx(work, made).map_err(failed("look at", &self.work_path()))?;
        let tree = Published {
            format: FORMAT,
            kind: new.kind,
            dir: self
                .elsewhere
                .then(|| escape(self.dir.as_os_str().as_bytes())),
            moment: new.moment.0,
            position: new.moment.position().to_string(),
            at_ns: new.at_ns,
            there_ns: new.there_ns,
            begins_ns: new.begins_ns,
            made_ns: super::now_ns(),
            root: inode(&stat),
            recycled: new.recycled,
            missing: new.missing,
            missing_paths: new.missing_paths,
            name: new.name,
        };
        // First: a tree of which nothing is known would be in the way for good.
        self.write(&tree)?;
        let above = open::dir_at_path(&self.dir).map_err(failed("open", &self.dir))?;
        let moved = target::rename_noreplace(work, made, &above, tree.name.as_bytes());
        moved.map_err(failed("make", &to))?;
        rustix::fs::fsync(&above).map_err(failed("flush", &self.dir))?;
        Ok(tree)
    }

    /// Gives a tree another name, which is free.
    pub fn rename(&self, tree: &mut Published, name: String) -> Result<()> {
        let (dir, from) = (self.dir_of(tree), self.path(tree));
        let above = open::dir_at_path(&dir).map_err(failed("open", &dir))?;
        let old = std::mem::replace(&mut tree.name, name);
        let moved = target::rename_noreplace(&above, old.as_bytes(), &above, tree.name.as_bytes());
        moved.map_err(failed("rename", &from))?;
        self.write(tree)?;
        self.forget(self.record(&old))
    }
}
