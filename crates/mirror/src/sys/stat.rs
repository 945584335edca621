//! What an inode looks like, by `statx`: never follows a symlink, never triggers an automount.

use std::os::fd::AsFd;

use mirror_core::types::Time;
use rustix::fs::{AtFlags, FileType, StatxAttributes, StatxFlags, StatxTimestamp};

use super::{Result, raw};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// `st_mode`: type and permission bits.
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub bytes: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub ino: u64,
    /// Major and minor of the file system's device.
    pub dev: (u32, u32),
    /// Major and minor of the device this node stands for.
    pub rdev: (u32, u32),
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// Zero where the file system has none.
    pub btime: Time,
    /// `None` before Linux 5.8.
    pub mount_id: Option<u64>,
    pub attributes: StatxAttributes,
}

impl Stat {
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode.into())
    }
    pub fn is_dir(&self) -> bool {
        self.file_type().is_dir()
    }
    pub fn is_file(&self) -> bool {
        self.file_type().is_file()
    }
    /// Permission, set-id and sticky bits, as `mirror_core::types::Meta::mode` keeps them.
    pub fn permissions(&self) -> u16 {
        self.mode & 0o7777
    }
    /// Fewer blocks than bytes: the file may have holes (or is compressed, or inline).
    pub fn may_have_holes(&self) -> bool {
        self.blocks.saturating_mul(512) < self.bytes
    }
    /// A file system is mounted here, or this is a mount's own root (Linux 5.8).
    pub fn is_mount_root(&self) -> bool {
        self.attributes.contains(StatxAttributes::MOUNT_ROOT)
    }
    /// Same inode. Says nothing about a number used again: compare handles for that.
    pub fn same_inode(&self, other: &Stat) -> bool {
        self.dev == other.dev && self.ino == other.ino
    }
}

/// Of `name` in `dir`; an empty name is `dir` itself.
pub fn statx(dir: impl AsFd, name: &[u8]) -> Result<Stat> {
    ask(dir, name, AtFlags::empty())
}

/// As [`statx`], and a file system that keeps attributes of elsewhere (FUSE, network) asks there now.
pub fn statx_fresh(dir: impl AsFd, name: &[u8]) -> Result<Stat> {
    ask(dir, name, AtFlags::STATX_FORCE_SYNC)
}

fn ask(dir: impl AsFd, name: &[u8], more: AtFlags) -> Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH | more;
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    let x = rustix::fs::statx(dir, raw::component_or_self(name)?, flags, mask)?;
    let has = |flag: StatxFlags| x.stx_mask & flag.bits() != 0;
    Ok(Stat {
        mode: x.stx_mode,
        nlink: x.stx_nlink,
        uid: x.stx_uid,
        gid: x.stx_gid,
        bytes: x.stx_size,
        blocks: x.stx_blocks,
        ino: x.stx_ino,
        dev: (x.stx_dev_major, x.stx_dev_minor),
        rdev: (x.stx_rdev_major, x.stx_rdev_minor),
        atime: time(&x.stx_atime),
        mtime: time(&x.stx_mtime),
        ctime: time(&x.stx_ctime),
        btime: if has(StatxFlags::BTIME) {
            time(&x.stx_btime)
        } else {
            Time::default()
        },
        mount_id: has(StatxFlags::MNT_ID).then_some(x.stx_mnt_id),
        attributes: x.stx_attributes,
    })
}

/// Of an open descriptor, `O_PATH` included.
pub fn fstat(fd: impl AsFd) -> Result<Stat> {
    statx(fd, b"")
}

fn time(t: &StatxTimestamp) -> Time {
    Time {
        seconds: t.tv_sec,
        nanos: t.tv_nsec,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Errno;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn agrees_with_the_standard_library_and_does_not_follow() {
        let t = tempfile::tempdir().unwrap();
        std::fs::write(t.path().join("f"), b"hello").unwrap();
        std::os::unix::fs::symlink("f", t.path().join("l")).unwrap();
        let dir = File::open(t.path()).unwrap();
        let meta = std::fs::metadata(t.path().join("f")).unwrap();
        let stat = statx(&dir, b"f").unwrap();
        assert!(stat.is_file() && !stat.is_dir());
        assert_eq!((stat.ino, stat.bytes, stat.nlink), (meta.ino(), 5, 1));
        assert_eq!(
            stat.mtime,
            Time {
                seconds: meta.mtime(),
                nanos: meta.mtime_nsec() as u32
            }
        );
        assert_eq!(
            stat.ctime,
            Time {
                seconds: meta.ctime(),
                nanos: meta.ctime_nsec() as u32
            }
        );
        assert!(statx(&dir, b"l").unwrap().file_type().is_symlink());
        assert_eq!(
            fstat(&dir).unwrap().ino,
            std::fs::metadata(t.path()).unwrap().ino()
        );
        assert_eq!(statx(&dir, b"none").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn refuses_names_that_lead_elsewhere() {
        let dir = File::open("/tmp").unwrap();
        for name in [&b".."[..], b".", b"a/b", b"/", b"a\0b"] {
            assert_eq!(statx(&dir, name).unwrap_err(), Errno::INVAL);
        }
    }

    #[test]
    fn a_long_name_reaches_the_kernel() {
        let dir = File::open("/tmp").unwrap();
        assert_eq!(statx(&dir, &[b'x'; 255]).unwrap_err(), Errno::NOENT);
        assert_eq!(statx(&dir, &[b'x'; 256]).unwrap_err(), Errno::NAMETOOLONG);
    }
}
