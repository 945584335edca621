//! Views: a directory as it was, made of links in `STATE/views/N/tree`, and shown elsewhere by a read-only mount, so that nobody
//! writes through it into the copy or the history. `STATE/views/N/at` says where, escaped; a view that is shown nowhere goes.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use mirror_core::escape;

use super::remove::remove_tree;
use crate::cli::parse;
use crate::sys::{open, tree};

const DIR: &str = "views";
const VIEWS_MAX: u32 = 1000;

pub struct View {
    dir: PathBuf,
}

fn mkdir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

impl View {
    /// A new one, to be filled.
    pub fn new(state_dir: &Path) -> io::Result<View> {
        let top = state_dir.join(DIR);
        match mkdir(&top) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        for n in 0..VIEWS_MAX {
            let dir = top.join(n.to_string());
            match mkdir(&dir) {
                Ok(()) => {
                    mkdir(&dir.join("tree"))?;
                    return Ok(View { dir });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::other("too many views: drop some"))
    }

    pub fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    pub fn work(&self) -> io::Result<OwnedFd> {
        Ok(open::dir_at_path(&self.dir)?)
    }

    /// Shows it, once it is filled. `at`: an empty directory.
    pub fn show(&self, at: &Path) -> io::Result<()> {
        fs::write(self.dir.join("at"), escape(at.as_os_str().as_bytes()))?;
        Ok(tree::show_read_only(&self.tree(), at)?)
    }

    /// Where it is to be seen.
    fn at(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(self.dir.join("at")).ok()?;
        parse::unescape(&text).ok().map(PathBuf::from)
    }

    pub fn is_at(&self, at: &Path) -> bool {
        let inode = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        self.at().as_deref() == Some(at) && inode(at).is_some() && inode(at) == inode(&self.tree())
    }

    pub fn remove(&self) -> io::Result<()> {
        let (Some(above), Some(name)) = (self.dir.parent(), self.dir.file_name()) else {
            return Ok(());
        };
        let above = open::dir_at_path(above)?;
        Ok(remove_tree(&above, name.as_bytes())?)
    }

    /// Those that are seen somewhere; the others are removed, but for one that was just begun.
    pub fn all(state_dir: &Path) -> io::Result<Vec<View>> {
        let mut all = Vec::new();
        let entries = match fs::read_dir(state_dir.join(DIR)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(all),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let view = View { dir: entry.path() };
            match view.at() {
                Some(at) if view.is_at(&at) => all.push(view),
                Some(_) => view.remove()?,
                None => {
                    // Somebody fills it, or was killed while he did.
                    let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
                    if age > std::time::Duration::from_secs(3600) {
                        view.remove()?;
                    }
                }
            }
        }
        Ok(all)
    }
}
