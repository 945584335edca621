//! Trees that look like a host of many CMS sites, and hold one of everything a tree can hold.

use std::path::Path;

/// What to make. The same parameters make the same tree, times included.
#[derive(Debug, Clone)]
pub struct Params {
    /// Regular files, about.
    pub files: u64,
    pub seed: u64,
    /// Only directories and plain files with plain names.
    pub plain: bool,
    /// Bytes of a file, half of them larger.
    pub size_bytes_median: f64,
    /// Also immutable and append-only files (they hinder whoever removes the tree; see [`crate::sys`]).
    pub locked: bool,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            files: 1000,
            seed: 1,
            plain: false,
            size_bytes_median: 4096.0,
            locked: false,
        }
    }
}

/// What was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    pub files: u64,
    pub dirs: u64,
    pub symlinks: u64,
    /// Additional names of an inode.
    pub links: u64,
    pub specials: u64,
    pub xattrs: u64,
    pub bytes: u64,
    /// What this user or this file system could not make.
    pub skipped: Vec<String>,
}

/// Makes a tree in `dir`, which is created when it is not there.
pub fn tree(dir: &Path, params: &Params) -> anyhow::Result<Made> {
    let _ = (dir, params);
    anyhow::bail!("not built yet")
}
