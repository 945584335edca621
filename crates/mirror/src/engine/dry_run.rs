//! `mirror --dry-run`: what would be done, told and not done. Only reads, makes no state.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::event::{Event, RunEnd, RunError, Ui};
use super::options::MirrorOptions;
use super::status::PathText;
use crate::filter::Filter;

/// Compares by type, size, mtime, mode, owner and link target, as a first look does; bytes are not read.
pub fn local(options: &MirrorOptions, source: &Path, ui: &dyn Ui) -> Result<RunEnd, RunError> {
    let filter = Filter::new(&options.ignore).map_err(|e| RunError::Usage(e.to_string()))?;
    let root = fs::symlink_metadata(source).map_err(|e| {
        RunError::Failed(anyhow::anyhow!(
            "cannot read {}: {e}",
            super::session::show(source)
        ))
    })?;
    let mut run = Dry {
        ui,
        filter,
        cross: options.cross.clone(),
        fs_root: is_fs_root(source, &root),
        adopt: adopts(options),
        failed: 0,
        stopped: options.stop.clone(),
    };
    let mut dirs: Vec<(Vec<u8>, u64)> = vec![(Vec::new(), root.dev())];
    while let Some((dir, dev)) = dirs.pop() {
        if run.stopped.requested() {
            return Ok(RunEnd {
                stopped: true,
                ..RunEnd::default()
            });
        }
        run.dir(source, &options.dst, &dir, dev, &mut dirs);
    }
    Ok(RunEnd {
        failed: run.failed,
        ..RunEnd::default()
    })
}

/// DST is not a mirror yet: what is extra in it would be moved aside.
pub fn adopts(options: &MirrorOptions) -> bool {
    options.adopt && !options.state_dir.join("log").is_dir()
}

fn is_fs_root(path: &Path, root: &fs::Metadata) -> bool {
    path.parent()
        .and_then(|up| fs::metadata(up).ok())
        .is_none_or(|up| up.dev() != root.dev() || up.ino() == root.ino())
}

struct Dry<'a> {
    ui: &'a dyn Ui,
    filter: Filter,
    /// Mounts that are part of the tree.
    cross: Vec<PathBuf>,
    fs_root: bool,
    /// DST was never this mirror's: nothing in it is removed.
    adopt: bool,
    failed: u64,
    stopped: super::control::Stop,
}

fn join(root: &Path, below: &[u8]) -> PathBuf {
    if below.is_empty() {
        root.to_path_buf()
    } else {
        root.join(OsString::from_vec(below.to_vec()))
    }
}

fn names(dir: &Path) -> std::io::Result<BTreeMap<Vec<u8>, fs::Metadata>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Ok(meta) = fs::symlink_metadata(entry.path()) {
            found.insert(entry.file_name().as_bytes().to_vec(), meta);
        }
    }
    Ok(found)
}

impl Dry<'_> {
    fn dir(
        &mut self,
        source: &Path,
        dst: &Path,
        below: &[u8],
        dev: u64,
        dirs: &mut Vec<(Vec<u8>, u64)>,
    ) {
        let (from, to) = (join(source, below), join(dst, below));
        let there = match names(&from) {
            Ok(there) => there,
            Err(error) => {
                self.failed += 1;
                self.ui.event(Event::Failed {
                    path: PathText::new(below),
                    reason: format!("cannot list: {error}"),
                });
                return;
            }
        };
        let here = names(&to).unwrap_or_default();
        for (name, meta) in &there {
            let mut path = below.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let crossed = |path: &[u8]| self.cross.iter().any(|c| c.as_os_str().as_bytes() == path);
            let fs_root = if below.is_empty() {
                self.fs_root
            } else {
                crossed(below)
            };
            let lost = fs_root && name == b"lost+found";
            let foreign = meta.dev() != dev && !crossed(&path);
            if lost || foreign || self.filter.ignored(&path, meta.is_dir()) {
                continue;
            }
            let what = match here.get(name) {
                None => Some("new"),
                Some(copy) => differs(
                    meta,
                    copy,
                    &from.join(OsString::from_vec(name.clone())),
                    &to.join(OsString::from_vec(name.clone())),
                ),
            };
            if let Some(what) = what {
                self.ui.event(Event::Would {
                    what,
                    path: PathText::new(&path),
                });
            }
            if meta.is_dir() {
                dirs.push((path, meta.dev()));
            }
        }
        for name in here.keys().filter(|name| !there.contains_key(*name)) {
            let mut path = below.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            self.ui.event(Event::Would {
                what: if self.adopt { "moved aside" } else { "removed" },
                path: PathText::new(&path),
            });
        }
    }
}

fn differs(
    meta: &fs::Metadata,
    copy: &fs::Metadata,
    from: &Path,
    to: &Path,
) -> Option<&'static str> {
    let kind = |m: &fs::Metadata| {
        let t = m.file_type();
        (
            t.is_dir(),
            t.is_file(),
            t.is_symlink(),
            t.is_fifo(),
            t.is_socket(),
            t.is_char_device(),
            t.is_block_device(),
        )
    };
    if kind(meta) != kind(copy) {
        return Some("replaced");
    }
    let time = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec());
    if meta.is_file() && (meta.len() != copy.len() || time(meta) != time(copy)) {
        return Some("changed");
    }
    if meta.is_symlink() && fs::read_link(from).ok() != fs::read_link(to).ok() {
        return Some("changed");
    }
    let same = meta.mode() == copy.mode()
        && meta.uid() == copy.uid()
        && meta.gid() == copy.gid()
        && time(meta) == time(copy);
    (!same).then_some("attributes")
}
