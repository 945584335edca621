//! Where the next operation happens.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Workload;

/// Few names, so that operations meet each other.
const NAMES: [&[u8]; 10] = [
    b"n0",
    b"n1",
    b"n2",
    b"n3",
    b"n4",
    b"n5",
    b"n6",
    b"caf\xe9",
    b"line\nbreak",
    &[b'n'; 255],
];

pub fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

impl Workload {
    /// A path below the tree or, one in four, below `outside`, whether something is there or not.
    pub(super) fn place(&mut self) -> PathBuf {
        let base = match &self.outside {
            Some(outside) if self.rng.chance(0.25) => outside.clone(),
            _ => self.tree.clone(),
        };
        self.below(base)
    }

    fn passed(&self) -> u64 {
        if self.params.existing { 3 } else { 0 }
    }
    fn depth(&self, path: &Path) -> u64 {
        let roots = [Some(&self.tree), self.outside.as_ref()];
        let below = roots
            .into_iter()
            .flatten()
            .find_map(|root| path.strip_prefix(root).ok());
        below.map_or(0, |below| below.components().count() as u64)
    }

    /// One to four names below a directory, never through a symlink. In a tree that was there before, its upper levels
    /// are only passed through, so that one operation does not take most of it away.
    fn below(&mut self, mut path: PathBuf) -> PathBuf {
        let passed = self.passed();
        for level in 0..self.rng.range(1, 4) + passed {
            let name = self.name_with(&path, if level < passed { 0.8 } else { 0.5 });
            path.push(OsStr::from_bytes(&name));
            if !is_dir(&path) || (level >= passed && self.rng.chance(0.3)) {
                break;
            }
        }
        path
    }

    pub(super) fn name(&mut self, dir: &Path) -> Vec<u8> {
        self.name_with(dir, 0.5)
    }
    /// One of ours or, where this is wanted and so likely, one that is there.
    fn name_with(&mut self, dir: &Path, there: f64) -> Vec<u8> {
        if self.params.existing && self.rng.chance(there) {
            let names = std::fs::read_dir(dir).map(|entries| {
                let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
                names.sort_unstable();
                names
            });
            if let Ok(names) = names
                && !names.is_empty()
            {
                return self.rng.pick(&names).as_bytes().to_vec();
            }
        }
        self.own_name()
    }
    pub(super) fn own_name(&mut self) -> Vec<u8> {
        self.rng.pick(&NAMES).to_vec()
    }

    /// A place where something is, found within a few tries.
    pub(super) fn something(&mut self, wanted: impl Fn(&Path) -> bool) -> io::Result<PathBuf> {
        for _ in 0..12 {
            let path = self.place();
            if wanted(&path) {
                return Ok(path);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
    pub(super) fn any(&mut self) -> io::Result<PathBuf> {
        self.something(exists)
    }
    pub(super) fn regular(&mut self) -> io::Result<PathBuf> {
        self.something(|path| path.symlink_metadata().is_ok_and(|meta| meta.is_file()))
    }
    pub(super) fn directory(&mut self) -> io::Result<PathBuf> {
        for _ in 0..12 {
            let path = self.place();
            if is_dir(&path) {
                return Ok(path);
            }
            if let Some(parent) = path.parent()
                && self.depth(parent) > self.passed()
            {
                return Ok(parent.to_owned());
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
    /// A directory, the roots included.
    pub(super) fn directory_or_root(&mut self) -> PathBuf {
        if self.rng.chance(0.7)
            && let Ok(dir) = self.directory()
        {
            return dir;
        }
        match &self.outside {
            Some(outside) if self.rng.chance(0.25) => outside.clone(),
            _ => self.tree.clone(),
        }
    }

    /// A name beside `path` that nobody else uses.
    pub(super) fn beside(&mut self, path: &Path) -> PathBuf {
        self.serial += 1;
        path.with_file_name(format!(".tmp-{}-{}", self.params.seed, self.serial))
    }
}
