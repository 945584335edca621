//! Trees that look like a host of many CMS sites, and hold one of everything a tree can hold.
//!
//! `vhosts/www.example-N.test` are sites of about 500 files in about 75 directories. Sizes are lognormal around the
//! median, 1 % are images of 50 KiB to 2 MiB. Unless the tree is plain, sites also have links, attributes, ACLs, odd
//! names, holes and special files here and there, and `zoo` has one specimen of each, however small the tree.

mod maker;
mod site;
mod zoo;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags};

use maker::Maker;

/// What to make. The same parameters make the same tree, modification times included.
#[derive(Debug, Clone)]
pub struct Params {
    /// Regular files in the sites; the zoo has some sixty more.
    pub files: u64,
    pub seed: u64,
    /// Only directories and plain files with plain names.
    pub plain: bool,
    /// Half of the files are larger.
    pub size_bytes_median: f64,
    /// Also immutable and append-only specimens: nobody can remove the tree before [`remove`] unlocks it.
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
    /// Devices, FIFOs, sockets.
    pub specials: u64,
    pub xattrs: u64,
    pub bytes: u64,
    /// What this user or this file system could not make.
    pub skipped: BTreeSet<String>,
}

impl Made {
    fn add(&mut self, other: Made) {
        self.files += other.files;
        self.dirs += other.dirs;
        self.symlinks += other.symlinks;
        self.links += other.links;
        self.specials += other.specials;
        self.xattrs += other.xattrs;
        self.bytes += other.bytes;
        self.skipped.extend(other.skipped);
    }
}

const SITE_FILES: u64 = 500;

/// Makes a tree in `dir`, which is created when it is not there and must be empty otherwise.
pub fn tree(dir: &Path, params: &Params) -> anyhow::Result<Made> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let root = rustix::fs::openat(
        CWD,
        dir,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("cannot open {}", dir.display()))?;
    let mut outer = Maker::new(&root, params, u64::MAX);
    outer.dir(b"vhosts")?;
    let pools = site::Pools::new();
    let sites = params.files.div_ceil(SITE_FILES);
    let next = AtomicU64::new(0);
    let workers = std::thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(8);
    // Each site has random numbers of its own, so it does not matter who makes it.
    let parts = std::thread::scope(|scope| {
        let work = || -> anyhow::Result<Made> {
            let mut made = Made::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= sites {
                    return Ok(made);
                }
                let files = (params.files - number * SITE_FILES).min(SITE_FILES);
                made.add(site::site(
                    Maker::new(&root, params, number),
                    &pools,
                    number,
                    files,
                )?);
            }
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|e| std::panic::resume_unwind(e))
            })
            .collect::<Vec<_>>()
    });
    let mut made = Made::default();
    for part in parts {
        made.add(part?);
    }
    if !params.plain {
        made.add(zoo::zoo(Maker::new(&root, params, u64::MAX - 1), params)?);
    }
    outer.root();
    made.add(outer.finish()?);
    Ok(made)
}

/// Removes a tree, also one with immutable and append-only files in it, unreadable directories and endless paths.
pub fn remove(dir: &Path) -> std::io::Result<()> {
    let first = match std::fs::remove_dir_all(dir) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => e,
        done => return done,
    };
    unlock(dir)?;
    std::fs::remove_dir_all(dir).map_err(|_| first)
}

/// Takes immutable and append-only away, and makes directories passable. Locked things lie at ordinary depths.
fn unlock(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    const IMMUTABLE_AND_APPEND: u32 = 0x30;
    let kind = path.symlink_metadata()?.file_type();
    if kind.is_dir() || kind.is_file() {
        let _ = crate::change_flags(path, IMMUTABLE_AND_APPEND, 0);
    }
    if kind.is_dir() {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
        for entry in std::fs::read_dir(path)? {
            let path = entry?.path();
            if path.as_os_str().len() < 3000 {
                unlock(&path)?;
            }
        }
    }
    Ok(())
}
