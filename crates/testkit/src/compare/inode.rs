//! One inode, as far as it can be looked at.

use std::ffi::CStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::escape;
use crate::sys;

/// Flags a person can set: secrm, undelete, compr, sync, immutable, append, nodump, noatime, notail, dirsync, nocow,
/// projinherit. What the file system sets by itself is no part of a copy.
const FLAGS_KEPT: u32 =
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x8000 | 0x1_0000 | 0x80_0000 | 0x2000_0000;

pub struct Inode {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: (i64, u32),
    /// (device, inode): the identity while the tree stands still.
    pub id: (u64, u64),
    pub links: u32,
    pub device: (u32, u32),
    pub mount_root: bool,
    pub fd: OwnedFd,
    /// Why `fd` is only good for looking (O_PATH), of a file or directory.
    pub unreadable: Option<Errno>,
}

/// Room for names and values of attributes: neither may be larger.
pub struct Scratch(Vec<u8>, Vec<u8>);

impl Scratch {
    pub fn new() -> Scratch {
        Scratch(vec![0; 65536], vec![0; 65536])
    }
}

/// An attribute's name, and its value or why it can't be read.
pub type Xattr = (Vec<u8>, Result<Vec<u8>, Errno>);

impl Inode {
    /// Opens what `name` in `dir` is, never following a link in place of it (but for a root, `follow`).
    pub fn open(dir: BorrowedFd<'_>, name: &CStr, follow: bool) -> Result<Inode, Errno> {
        let nofollow = if follow {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        let at = if follow {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let before = rustix::fs::statx(dir, name, at, StatxFlags::BASIC_STATS)?;
        let kind = FileType::from_raw_mode(u32::from(before.stx_mode));
        let only_look = OFlags::PATH | OFlags::CLOEXEC | nofollow;
        let read = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | nofollow;
        let mut unreadable = None;
        let fd = match kind {
            FileType::RegularFile | FileType::Directory => {
                let mut opened =
                    rustix::fs::openat(dir, name, read | OFlags::NOATIME, Mode::empty());
                if let Err(Errno::PERM) = opened {
                    opened = rustix::fs::openat(dir, name, read, Mode::empty());
                }
                match opened {
                    Err(e @ (Errno::ACCESS | Errno::PERM)) => {
                        unreadable = Some(e);
                        rustix::fs::openat(dir, name, only_look, Mode::empty())?
                    }
                    opened => opened?,
                }
            }
            _ => rustix::fs::openat(dir, name, only_look, Mode::empty())?,
        };
        let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        if FileType::from_raw_mode(u32::from(stat.stx_mode)) != kind {
            return Err(Errno::AGAIN);
        }
        Ok(Inode {
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            id: (
                rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
                stat.stx_ino,
            ),
            links: stat.stx_nlink,
            device: (stat.stx_rdev_major, stat.stx_rdev_minor),
            mount_root: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
            fd,
            unreadable,
        })
    }

    fn is_opened(&self) -> bool {
        matches!(self.kind, FileType::RegularFile | FileType::Directory)
            && self.unreadable.is_none()
    }

    pub fn target(&self) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(&self.fd, c"", Vec::new())?.into_bytes())
    }

    /// Sorted by name. A file system without attributes has none.
    pub fn xattrs(&self, scratch: &mut Scratch) -> Result<Vec<Xattr>, Errno> {
        let Scratch(names, value) = scratch;
        // An O_PATH descriptor answers no attribute call itself, but its link in /proc leads to the very inode.
        let path = (!self.is_opened()).then(|| format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        let listed = match &path {
            None => rustix::fs::flistxattr(&self.fd, names.as_mut_slice()),
            Some(path) => rustix::fs::listxattr(path, names.as_mut_slice()),
        };
        let length = match listed {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => 0,
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        for name in names[..length]
            .split(|&b| b == 0)
            .filter(|name| !name.is_empty())
        {
            let got = match &path {
                None => rustix::fs::fgetxattr(&self.fd, name, value.as_mut_slice()),
                Some(path) => rustix::fs::getxattr(path, name, value.as_mut_slice()),
            };
            match got {
                Ok(length) => found.push((name.to_vec(), Ok(value[..length].to_vec()))),
                Err(Errno::NODATA) => {}
                Err(e) => found.push((name.to_vec(), Err(e))),
            }
        }
        found.sort_by(|a: &Xattr, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Where they can't be had there are none.
    pub fn flags(&self) -> u32 {
        if self.is_opened() {
            sys::flags(&self.fd).unwrap_or(0) & FLAGS_KEPT
        } else {
            0
        }
    }
    pub fn project(&self) -> u32 {
        let project = if self.is_opened() {
            sys::project(&self.fd)
        } else {
            sys::project_of_any(&self.fd)
        };
        project.unwrap_or(0)
    }

    /// The names in a directory, sorted.
    pub fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        if let Some(e) = self.unreadable {
            return Err(e);
        }
        let mut buffer = vec![MaybeUninit::uninit(); 65536];
        let mut listing = RawDir::new(self.fd.as_fd(), &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = listing.next() {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// What it is, in a few words.
impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            FileType::RegularFile => write!(f, "file of {} bytes", self.size),
            FileType::Symlink => match self.target() {
                Ok(target) => write!(f, "symlink to {}", escape(&target)),
                Err(e) => write!(f, "symlink ({e})"),
            },
            FileType::CharacterDevice | FileType::BlockDevice => {
                write!(
                    f,
                    "{} {}:{}",
                    kind_name(self.kind),
                    self.device.0,
                    self.device.1
                )
            }
            kind => f.write_str(kind_name(kind)),
        }
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}
