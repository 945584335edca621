//! Removing a subtree below a directory of ours: one descriptor at a time, however deep, in bounded memory.

use std::os::fd::{AsFd, OwnedFd};

use super::area::look;
use super::meta::LATE_FLAGS;
use crate::sys::stat::{Stat, fstat};
use crate::sys::{Errno, Result, dir, flags, open, target};

/// What to do with an entry of a directory that is being removed.
pub enum Verdict {
    /// Remove it; a directory with what is in it, and the judge knows that one by this key.
    Delete(u64),
    /// It was moved away.
    Gone,
}

/// Looks at each entry before it goes.
pub trait Judge {
    /// `dir` is the key of the directory. May move the entry away.
    fn judge(&mut self, dir: u64, fd: &OwnedFd, name: &[u8]) -> Result<Verdict>;
    /// The entry is removed.
    fn removed(&mut self, _dir: u64, _name: &[u8]) {}
}

/// Everything goes.
pub struct All;

impl Judge for All {
    fn judge(&mut self, _: u64, _: &OwnedFd, _: &[u8]) -> Result<Verdict> {
        Ok(Verdict::Delete(0))
    }
}

const NAMES_MAX: usize = 1024;

struct Level {
    key: u64,
    /// How it is called in its parent.
    name: Vec<u8>,
    stat: Stat,
    /// Directories found in it that are to be entered.
    dirs: Vec<(Vec<u8>, u64)>,
}

/// Removes `name` in `top`, whatever it is. Stops at the first thing that can't be removed.
pub fn remove(top: impl AsFd, name: &[u8], key: u64, judge: &mut dyn Judge) -> Result<()> {
    let Some(stat) = look(&top, name)? else {
        return Ok(());
    };
    if !stat.is_dir() {
        return unlink(&top, name);
    }
    let mut fd = enter(&top, name)?;
    let mut levels = vec![Level {
        key,
        name: name.into(),
        stat: fstat(&fd)?,
        dirs: Vec::new(),
    }];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else {
            return Ok(());
        };
        if let Some((name, key)) = level.dirs.pop() {
            fd = enter(&fd, &name)?;
            let stat = fstat(&fd)?;
            levels.push(Level {
                key,
                name,
                stat,
                dirs: Vec::new(),
            });
            continue;
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        let listed = dir::try_list(&fd, |name, _, _| {
            names.push(name.into());
            if names.len() < NAMES_MAX {
                Ok(())
            } else {
                Err(())
            }
        })?;
        let _ = listed;
        if names.is_empty() {
            let name = std::mem::take(&mut level.name);
            let parent = if depth == 1 {
                None
            } else {
                Some(open::parent(&fd)?)
            };
            levels.pop();
            match (parent, levels.last()) {
                (Some(parent), Some(up)) => {
                    // Nobody moves anything here but us; be sure all the same before going on in another directory.
                    if !fstat(&parent)?.same_inode(&up.stat) {
                        return Err(Errno::STALE);
                    }
                    remove_dir(&parent, &name)?;
                    judge.removed(up.key, &name);
                    fd = parent;
                }
                _ => return remove_dir(&top, &name),
            }
            continue;
        }
        for name in names {
            let key = level.key;
            match judge.judge(key, &fd, &name)? {
                Verdict::Gone => {}
                Verdict::Delete(below) => match unlink(&fd, &name) {
                    Ok(()) => judge.removed(key, &name),
                    Err(Errno::ISDIR) => level.dirs.push((name, below)),
                    Err(e) => return Err(e),
                },
            }
        }
    }
}

fn enter(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let fd = match open::dir(&dir, name) {
        Err(Errno::ACCESS) => {
            target::set_mode(&dir, name, 0o700)?;
            open::dir(&dir, name)?
        }
        opened => opened?,
    };
    // Without write permission nothing in it can be removed (root does not care).
    if !rustix::process::geteuid().is_root() {
        let _ = target::set_mode(&fd, b"", 0o700);
    }
    Ok(fd)
}

fn unlink(dir: impl AsFd, name: &[u8]) -> Result<()> {
    match target::unlink(&dir, name) {
        Err(Errno::PERM) => {
            let stat = crate::sys::stat::statx(&dir, name)?;
            if stat.is_dir() {
                return Err(Errno::ISDIR);
            }
            lift(&dir, name, &stat)?;
            flags::set_flags(&dir, 0, LATE_FLAGS)?;
            target::unlink(&dir, name)
        }
        done => done,
    }
}

fn remove_dir(dir: impl AsFd, name: &[u8]) -> Result<()> {
    match target::remove_dir(&dir, name) {
        Err(Errno::PERM) => {
            let stat = crate::sys::stat::statx(&dir, name)?;
            lift(&dir, name, &stat)?;
            flags::set_flags(&dir, 0, LATE_FLAGS)?;
            target::remove_dir(&dir, name)
        }
        done => done,
    }
}

/// Takes away what keeps an inode from being moved or removed.
pub(super) fn lift(dir: impl AsFd, name: &[u8], stat: &Stat) -> Result<()> {
    let fd = match (stat.is_dir(), stat.is_file()) {
        (true, _) => open::dir(&dir, name)?,
        (_, true) => open::file(&dir, name)?,
        _ => return Ok(()),
    };
    if fstat(&fd)?.same_inode(stat) {
        flags::set_flags(fd, 0, LATE_FLAGS)?;
    }
    Ok(())
}
