//! Old versions: inodes of the copy that were replaced or removed, as plain files by the position at which they ended.
//!
//! ```text
//! STATE/history/GGGGGGGGGGGGG/MMMMMMMMMMMMMMMM-OOOOOOOOOOOOOOOO
//! ```
//!
//! G the moment's group of 4,096, M the moment, O the object, all in hex. Their bytes never change; their metadata is what
//! it was last, and what it was before is in the catalogue.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use mirror_core::ObjectId;
use mirror_core::history::Moment;

use crate::sys::stat::{Stat, fstat, statx};
use crate::sys::{Errno, dir, flags, open, target};

pub const DIR: &str = "history";
/// Directories kept open.
const OPEN_MAX: usize = 8;
const STUCK_FLAGS: u32 = flags::IMMUTABLE | flags::APPEND;

/// A file by which a version is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// It was current until here.
    pub until: Moment,
    pub object: ObjectId,
}

impl Slot {
    pub fn group(self) -> u64 {
        self.until.0 >> 12
    }
    fn name(self) -> Vec<u8> {
        format!("{:016x}-{:016x}", self.until.0, self.object.0).into_bytes()
    }
    fn parse(name: &[u8]) -> Option<Slot> {
        let (until, object) = std::str::from_utf8(name).ok()?.split_once('-')?;
        let hex = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok())?;
        Some(Slot {
            until: Moment(hex(until)?),
            object: ObjectId(hex(object)?),
        })
    }
    /// Below the state directory.
    pub fn path(self) -> String {
        let name = String::from_utf8_lossy(&self.name()).into_owned();
        format!("{DIR}/{}/{name}", group_name(self.group()))
    }
}

/// What is free once this name goes: nothing, while the inode has others (a published tree, or the copy).
pub fn freed_by(stat: &Stat) -> u64 {
    match stat.nlink {
        0 | 1 => stat.blocks.saturating_mul(512),
        _ => 0,
    }
}

fn group_name(group: u64) -> String {
    format!("{group:013x}")
}

/// See the module.
pub struct Slots {
    top: OwnedFd,
    open: BTreeMap<u64, OwnedFd>,
    /// Directories with names that are not flushed.
    dirty: BTreeMap<u64, ()>,
    top_dirty: bool,
}

impl Slots {
    pub fn open(state_dir: &Path) -> io::Result<Slots> {
        let state = open::dir_at_path(state_dir)?;
        match target::create_dir(&state, DIR.as_bytes()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let top = open::dir(&state, DIR.as_bytes())?;
        target::set_mode(&top, b"", 0o700)?;
        let _ = crate::sys::xattr::remove(&top, b"", b"system.posix_acl_default");
        Ok(Slots {
            top,
            open: BTreeMap::new(),
            dirty: BTreeMap::new(),
            top_dirty: true,
        })
    }

    /// The directory of a group, made if it is not there.
    fn dir_for(&mut self, group: u64) -> Result<&OwnedFd, Errno> {
        if !self.open.contains_key(&group) {
            let name = group_name(group).into_bytes();
            match target::create_dir(&self.top, &name) {
                Ok(()) => {
                    self.top_dirty = true;
                    target::set_mode(&self.top, &name, 0o700)?;
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            let fd = open::dir(&self.top, &name)?;
            if self.open.len() >= OPEN_MAX {
                self.open.pop_first();
            }
            self.open.insert(group, fd);
        }
        self.open.get(&group).ok_or(Errno::NOENT)
    }

    /// Where a version is made that never was in the copy: a directory and the name in it.
    pub fn place(&mut self, slot: Slot) -> Result<(OwnedFd, Vec<u8>), Errno> {
        let dir = rustix::io::fcntl_dupfd_cloexec(self.dir_for(slot.group())?, 0)?;
        self.dirty.insert(slot.group(), ());
        Ok((dir, slot.name()))
    }

    /// Keeps the inode that has this name, so that it outlives it. True: it is kept now, and was not before.
    pub fn keep(
        &mut self,
        slot: Slot,
        from: &OwnedFd,
        name: &[u8],
        seen: &Stat,
    ) -> Result<bool, Errno> {
        let to_name = slot.name();
        let to = self.dir_for(slot.group())?;
        let linked = match target::link(from, name, to, &to_name) {
            // What may not be linked may not be removed either: whoever comes to that takes the flag away.
            Err(Errno::PERM) if seen.is_file() => {
                let fd = open::file(from, name)?;
                let found = fstat(&fd)?;
                if !found.same_inode(seen) {
                    return Err(Errno::STALE);
                }
                flags::set_flags(&fd, 0, STUCK_FLAGS)?;
                target::link(from, name, to, &to_name)
            }
            done => done,
        };
        match linked {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            // As many names as the file system allows.
            Err(Errno::MLINK) => {
                let source = open::file(from, name)?;
                let made = target::create_file(to, &to_name)?;
                let filled = match target::clone_content(&source, &made) {
                    Ok(true) => Ok(()),
                    _ => target::copy_range(&source, &made, 0, seen.bytes).map(drop),
                };
                if let Err(e) = filled.and_then(|()| rustix::fs::fdatasync(&made)) {
                    let _ = target::unlink(to, &to_name);
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
        // The name may have shown something else by the time it was linked.
        let kept = statx(to, &to_name)?;
        if kept.nlink > 1 && !kept.same_inode(seen) {
            target::unlink(to, &to_name)?;
            return Err(Errno::STALE);
        }
        self.dirty.insert(slot.group(), ());
        Ok(true)
    }

    pub fn stat(&self, slot: Slot) -> Result<Option<Stat>, Errno> {
        let dir = match open::dir(&self.top, group_name(slot.group()).as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        match statx(&dir, &slot.name()) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn open_file(&self, slot: Slot) -> Result<OwnedFd, Errno> {
        let dir = open::dir(&self.top, group_name(slot.group()).as_bytes())?;
        open::file(&dir, &slot.name())
    }

    pub fn remove(&mut self, slot: Slot) -> Result<(), Errno> {
        let dir = self.dir_for(slot.group())?;
        match target::unlink(dir, &slot.name()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Groups that have a directory, in order.
    pub fn groups(&self) -> Result<Vec<u64>, Errno> {
        let mut groups = Vec::new();
        dir::list(&self.top, |name, _, _| {
            let text = std::str::from_utf8(name).ok();
            groups.extend(text.and_then(|text| u64::from_str_radix(text, 16).ok()));
        })?;
        groups.sort_unstable();
        Ok(groups)
    }

    /// What is kept in a group, in order.
    pub fn in_group(&self, group: u64) -> Result<Vec<Slot>, Errno> {
        let dir = match open::dir(&self.top, group_name(group).as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut slots = Vec::new();
        dir::list(&dir, |name, _, _| slots.extend(Slot::parse(name)))?;
        slots.sort_unstable();
        Ok(slots)
    }

    /// How many are kept in a group, and what would be free without them.
    pub fn usage(&self, group: u64) -> Result<(u64, u64), Errno> {
        let dir = match open::dir(&self.top, group_name(group).as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok((0, 0)),
            Err(e) => return Err(e),
        };
        let (mut count, mut bytes) = (0, 0u64);
        let mut names = Vec::new();
        dir::list(&dir, |name, _, _| names.push(name.to_vec()))?;
        for name in names {
            match statx(&dir, &name) {
                Ok(stat) => {
                    count += 1;
                    bytes = bytes.saturating_add(freed_by(&stat));
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok((count, bytes))
    }

    /// Removes the directory of a group that is empty.
    pub fn remove_group(&mut self, group: u64) -> Result<(), Errno> {
        self.open.remove(&group);
        self.dirty.remove(&group);
        match target::remove_dir(&self.top, group_name(group).as_bytes()) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Makes the names of what was kept durable.
    pub fn flush(&mut self) -> io::Result<()> {
        for group in std::mem::take(&mut self.dirty).into_keys() {
            match self.dir_for(group) {
                Ok(fd) => rustix::fs::fsync(fd)?,
                Err(e) => return Err(e.into()),
            }
        }
        if std::mem::take(&mut self.top_dirty) {
            rustix::fs::fsync(&self.top)?;
        }
        Ok(())
    }
}
