//! The walk through both trees in step. Depth is bounded neither by the length of a path nor by open descriptors.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType};
use rustix::io::Errno;

use super::content;
use super::inode::{Inode, Scratch, Xattr};
use super::{Class, Difference, Options};
use crate::escape;

/// Levels of directories kept open; what is above is opened again through `..` on the way back.
const OPEN_LEVELS: usize = 100;

/// As many differences were found as were asked for.
pub struct Full;

pub struct Walk<'a> {
    options: &'a Options,
    pub found: Vec<Difference>,
    /// Path of the entry being looked at, to be shown.
    path: Vec<u8>,
    levels: Vec<Level>,
    /// First path of each inode with several names, left and right.
    links: [HashMap<(u64, u64), Vec<u8>>; 2],
    scratch: Scratch,
    buffers: (Vec<u8>, Vec<u8>),
}

/// A pair of directories being listed.
struct Level {
    left: Side,
    right: Side,
    /// Length of the path of the directory, in [`Walk::path`].
    path_length: usize,
}

struct Side {
    /// `None`: closed to save descriptors.
    dir: Option<Inode>,
    id: (u64, u64),
    names: std::iter::Peekable<std::vec::IntoIter<Vec<u8>>>,
}

impl Side {
    fn new(dir: Inode) -> Result<Side, Errno> {
        let names = dir.names()?.into_iter().peekable();
        Ok(Side {
            id: dir.id,
            dir: Some(dir),
            names,
        })
    }
    fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.dir
            .as_ref()
            .map(|dir| dir.fd.as_fd())
            .ok_or(Errno::BADF)
    }
    /// Opens it again from a directory inside it.
    fn reopen(&mut self, child: &Side) -> Result<(), Errno> {
        if self.dir.is_none() {
            let dir = Inode::open(child.fd()?, c"..", false)?;
            if dir.id != self.id {
                return Err(Errno::STALE);
            }
            self.dir = Some(dir);
        }
        Ok(())
    }
}

impl<'a> Walk<'a> {
    pub fn new(options: &'a Options) -> Walk<'a> {
        Walk {
            options,
            found: Vec::new(),
            path: Vec::new(),
            levels: Vec::new(),
            links: [HashMap::new(), HashMap::new()],
            scratch: Scratch::new(),
            buffers: (vec![0; 256 << 10], vec![0; 256 << 10]),
        }
    }

    pub fn run(&mut self, left: &Path, right: &Path) -> Result<(), Full> {
        let open = |path: &Path| {
            use std::os::unix::ffi::OsStrExt;
            let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
            Inode::open(CWD, &name, true)
        };
        match (open(left), open(right)) {
            (Ok(left), Ok(right)) => self.pair(left, right)?,
            (left, right) => return self.unreadable(left.err(), right.err()),
        }
        while let Some((name, order)) = self.next_name() {
            let Some(level) = self.levels.last() else {
                break;
            };
            self.path.truncate(level.path_length);
            if self.levels.len() == 1 && name == b"lost+found" {
                continue;
            }
            let Ok(c_name) = CString::new(name.as_slice()) else {
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            let open = |side: &Side| side.fd().and_then(|dir| Inode::open(dir, &c_name, false));
            match order {
                Ordering::Less => {
                    let one = open(&level.left);
                    self.single(one, Class::Missing)?;
                }
                Ordering::Greater => {
                    let one = open(&level.right);
                    self.single(one, Class::Extra)?;
                }
                Ordering::Equal => match (open(&level.left), open(&level.right)) {
                    (Ok(left), Ok(right)) => self.pair(left, right)?,
                    (left, right) => self.unreadable(left.err(), right.err())?,
                },
            }
            self.climb()?;
        }
        Ok(())
    }

    /// The next name of the innermost directories, and on which side it is (`Equal`: both).
    fn next_name(&mut self) -> Option<(Vec<u8>, Ordering)> {
        let level = self.levels.last_mut()?;
        let (left, right) = (&mut level.left.names, &mut level.right.names);
        let order = match (left.peek(), right.peek()) {
            (Some(a), Some(b)) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let name = match order {
            Ordering::Less => left.next(),
            Ordering::Greater => right.next(),
            Ordering::Equal => {
                right.next();
                left.next()
            }
        };
        name.map(|name| (name, order))
    }

    /// Leaves directories that are done.
    fn climb(&mut self) -> Result<(), Full> {
        while self.levels.len() > 1 {
            let Some(level) = self.levels.last_mut() else {
                break;
            };
            if level.left.names.peek().is_some() || level.right.names.peek().is_some() {
                break;
            }
            let Some(mut done) = self.levels.pop() else {
                break;
            };
            // A parent that can't be opened again is left out with all that it still had.
            while let Some(parent) = self.levels.last_mut() {
                let left = parent.left.reopen(&done.left).err();
                let right = parent.right.reopen(&done.right).err();
                if left.is_none() && right.is_none() {
                    break;
                }
                self.path.truncate(parent.path_length);
                self.unreadable(left, right)?;
                // `done` stays the way up only if it is open; else nothing above can be reached, and each level says so.
                if let Some(lost) = self.levels.pop()
                    && lost.left.dir.is_some()
                    && lost.right.dir.is_some()
                {
                    done = lost;
                }
            }
        }
        Ok(())
    }

    fn differ(
        &mut self,
        class: Class,
        left: impl ToString,
        right: impl ToString,
    ) -> Result<(), Full> {
        if self.options.ignore.contains(&class) {
            return Ok(());
        }
        let path = if self.path.is_empty() {
            ".".to_owned()
        } else {
            escape(&self.path)
        };
        self.found.push(Difference {
            path,
            class,
            left: left.to_string(),
            right: right.to_string(),
        });
        match self.options.differences_max {
            Some(max) if self.found.len() >= max => Err(Full),
            _ => Ok(()),
        }
    }

    fn differ_if<T: PartialEq>(
        &mut self,
        class: Class,
        left: T,
        right: T,
        show: fn(&T) -> String,
    ) -> Result<(), Full> {
        if left == right {
            Ok(())
        } else {
            self.differ(class, show(&left), show(&right))
        }
    }

    fn unreadable(&mut self, left: Option<Errno>, right: Option<Errno>) -> Result<(), Full> {
        let show = |e: Option<Errno>| e.map_or("readable".to_owned(), |e| e.to_string());
        self.differ(Class::Unreadable, show(left), show(right))
    }

    fn single(&mut self, inode: Result<Inode, Errno>, class: Class) -> Result<(), Full> {
        let shown = match inode {
            Ok(inode) if self.options.skip_mounts && inode.mount_root => return Ok(()),
            Ok(inode) => inode.to_string(),
            // It went while we looked, or can't be looked at: the name alone differs already.
            Err(e) => e.to_string(),
        };
        if class == Class::Missing {
            self.differ(class, shown, "-")
        } else {
            self.differ(class, "-", shown)
        }
    }

    fn pair(&mut self, left: Inode, right: Inode) -> Result<(), Full> {
        let inside = !self.levels.is_empty();
        if inside && self.options.skip_mounts && (left.mount_root || right.mount_root) {
            return Ok(());
        }
        if left.kind != right.kind {
            return self.differ(Class::Type, left, right);
        }
        self.metadata(&left, &right)?;
        match left.kind {
            FileType::Directory => self.descend(left, right),
            FileType::RegularFile => self.contents(&left, &right),
            FileType::Symlink => match (left.target(), right.target()) {
                (Ok(left), Ok(right)) => {
                    self.differ_if(Class::Target, left, right, |target| escape(target))
                }
                (left, right) => self.unreadable(left.err(), right.err()),
            },
            FileType::CharacterDevice | FileType::BlockDevice => {
                self.differ_if(Class::Device, left.device, right.device, |d| {
                    format!("{}:{}", d.0, d.1)
                })
            }
            _ => Ok(()),
        }
    }

    fn metadata(&mut self, left: &Inode, right: &Inode) -> Result<(), Full> {
        self.differ_if(Class::Mode, left.mode, right.mode, |mode| {
            format!("{mode:04o}")
        })?;
        self.differ_if(Class::Uid, left.uid, right.uid, u32::to_string)?;
        self.differ_if(Class::Gid, left.gid, right.gid, u32::to_string)?;
        self.differ_if(Class::Mtime, left.mtime, right.mtime, |t| {
            format!("{}.{:09}", t.0, t.1)
        })?;
        if !self.options.ignore.contains(&Class::Xattr) {
            match (
                left.xattrs(&mut self.scratch),
                right.xattrs(&mut self.scratch),
            ) {
                (Ok(left), Ok(right)) if left == right => {}
                (Ok(left), Ok(right)) => {
                    self.differ(
                        Class::Xattr,
                        xattrs_but(&left, &right),
                        xattrs_but(&right, &left),
                    )?;
                }
                (left, right) => self.unreadable(left.err(), right.err())?,
            }
        }
        if !self.options.ignore.contains(&Class::Flags) {
            self.differ_if(Class::Flags, left.flags(), right.flags(), |flags| {
                format!("{flags:#x}")
            })?;
        }
        if !self.options.ignore.contains(&Class::Project) {
            self.differ_if(
                Class::Project,
                left.project(),
                right.project(),
                u32::to_string,
            )?;
        }
        if left.kind != FileType::Directory {
            self.same_links(left, right)?;
        }
        Ok(())
    }

    /// Both sides must name the same earlier path as the same inode (or none): so the partitions are equal. Names that
    /// only one side has take no part, nor do names outside the trees.
    fn same_links(&mut self, left: &Inode, right: &Inode) -> Result<(), Full> {
        if left.links < 2 && right.links < 2 {
            return Ok(());
        }
        let mut first = [left, right]
            .into_iter()
            .zip(&mut self.links)
            .map(|(inode, links)| {
                if inode.links < 2 {
                    return self.path.clone();
                }
                links
                    .entry(inode.id)
                    .or_insert_with(|| self.path.clone())
                    .clone()
            });
        let (Some(a), Some(b)) = (first.next(), first.next()) else {
            return Ok(());
        };
        let own = self.path.clone();
        let show = |path: &Vec<u8>| {
            if *path == own {
                "an inode of its own so far".to_owned()
            } else {
                format!("linked to {}", escape(path))
            }
        };
        if a == b {
            Ok(())
        } else {
            self.differ(Class::Links, show(&a), show(&b))
        }
    }

    fn contents(&mut self, left: &Inode, right: &Inode) -> Result<(), Full> {
        if left.size != right.size {
            return self.differ(Class::Size, left.size, right.size);
        }
        if left.unreadable.is_some() || right.unreadable.is_some() {
            return self.unreadable(left.unreadable, right.unreadable);
        }
        let (a, b, size) = (left.fd.as_fd(), right.fd.as_fd(), left.size);
        let (left_data, right_data) = match (content::data(a, size), content::data(b, size)) {
            (Ok(left), Ok(right)) => (left, right),
            (left, right) => return self.unreadable(left.err(), right.err()),
        };
        if !self.options.ignore.contains(&Class::Content) {
            let either = left_data.iter().chain(&right_data).copied().collect();
            match content::first_difference(a, b, either, size, &mut self.buffers) {
                Ok(None) => {}
                Ok(Some(offset)) => {
                    let show = |fd| {
                        let mut bytes = [0u8; 24];
                        let got = rustix::io::pread(fd, &mut bytes, offset).unwrap_or(0);
                        format!("at {offset} of {size}: {}", escape(&bytes[..got]))
                    };
                    self.differ(Class::Content, show(a), show(b))?;
                }
                Err(e) => self.unreadable(Some(e), Some(e))?,
            }
        }
        let has_holes = left_data.iter().map(|range| range.1 - range.0).sum::<u64>() < size;
        if has_holes && !self.options.ignore.contains(&Class::Blocks) {
            let surplus = content::surplus(a, b, &left_data, size);
            // A block with data is a difference of holes, said below.
            if !surplus.is_empty() && left_data == right_data {
                self.differ(Class::Blocks, "no blocks there", content::show(&surplus))?;
            }
        }
        if content::same_data(a, b, &left_data, &right_data) {
            return Ok(());
        }
        self.differ_if(Class::Holes, left_data, right_data, content::show)
    }

    fn descend(&mut self, left: Inode, right: Inode) -> Result<(), Full> {
        let (left, right) = match (Side::new(left), Side::new(right)) {
            (Ok(left), Ok(right)) => (left, right),
            (left, right) => return self.unreadable(left.err(), right.err()),
        };
        self.levels.push(Level {
            left,
            right,
            path_length: self.path.len(),
        });
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS + 1) {
            self.levels[far].left.dir = None;
            self.levels[far].right.dir = None;
        }
        Ok(())
    }
}

/// The attributes of `of` that `other` doesn't have just so.
fn xattrs_but(of: &[Xattr], other: &[Xattr]) -> String {
    let shown: Vec<String> = of
        .iter()
        .filter(|xattr| !other.contains(xattr))
        .map(|(name, value)| match value {
            Ok(value) if value.len() > 64 => {
                format!(
                    "{}={}... ({} bytes)",
                    escape(name),
                    escape(&value[..64]),
                    value.len()
                )
            }
            Ok(value) => format!("{}={}", escape(name), escape(value)),
            Err(e) => format!("{}: {e}", escape(name)),
        })
        .collect();
    if shown.is_empty() {
        "-".into()
    } else {
        shown.join(", ")
    }
}
