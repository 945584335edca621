//! Operations on names, kinds and metadata.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
    lremovexattr, lsetxattr, makedev, mknodat, renameat_with, symlinkat,
};

use super::Workload;
use super::files::write_file;
use super::place::is_dir;

/// None of them leads out of the directory it lies in.
const TARGETS: [&[u8]; 6] = [
    b"n0",
    b"n1/n2",
    b"n3",
    b"nowhere",
    b"caf\xe9",
    b"/nonexistent/\x1b",
];
/// Owner all, user 33 and group read, mask, others read; as an access and as a default list.
const ACL: &[u8] =
    b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x04\0\x21\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
                     \x10\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A file, or a directory with all that is in it.
fn remove(path: &Path) -> io::Result<()> {
    if is_dir(path) {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

impl Workload {
    pub(super) fn mkdir(&mut self) -> io::Result<()> {
        fs::create_dir(self.place())
    }
    pub(super) fn mkdir_write_rename(&mut self) -> io::Result<()> {
        let top = self.place();
        let inner = self.name(&top);
        let bottom = top.join(OsStr::from_bytes(&inner)).join("n0");
        fs::create_dir_all(&bottom)?;
        for name in ["n1", "n2"] {
            write_file(
                &bottom.join(name),
                &self.bytes[..self.rng.range(1, 2000) as usize],
            )?;
        }
        fs::rename(top, self.place())
    }
    /// Files and directories, over others or to free names, within, into and out of the tree.
    pub(super) fn rename(&mut self) -> io::Result<()> {
        let (from, to) = (self.any()?, self.place());
        fs::rename(from, to)
    }
    fn rename_with(&mut self, from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
        Ok(renameat_with(CWD, from, CWD, to, flags)?)
    }
    pub(super) fn exchange(&mut self) -> io::Result<()> {
        let (one, two) = (self.any()?, self.any()?);
        self.rename_with(&one, &two, RenameFlags::EXCHANGE)
    }
    pub(super) fn whiteout(&mut self) -> io::Result<()> {
        let (from, to) = (self.any()?, self.place());
        self.rename_with(&from, &to, RenameFlags::WHITEOUT)
    }
    pub(super) fn swap(&mut self) -> io::Result<()> {
        let (one, two) = (self.any()?, self.any()?);
        let free = self.beside(&one);
        fs::rename(&one, &free)?;
        let there = fs::rename(&two, &one);
        // The first comes back to a name, whether or not the second could be moved.
        fs::rename(&free, if there.is_ok() { &two } else { &one })?;
        there
    }
    /// a/b becomes b/a.
    pub(super) fn invert(&mut self) -> io::Result<()> {
        let parent = self.directory()?;
        let name = self.name(&parent);
        let child = parent.join(OsStr::from_bytes(&name));
        if !is_dir(&child) {
            fs::create_dir(&child)?;
        }
        let free = self.beside(&parent);
        fs::rename(&child, &free)?;
        let Some(own_name) = parent.file_name() else {
            return Ok(());
        };
        fs::rename(&parent, free.join(own_name))?;
        fs::rename(&free, &parent)
    }
    pub(super) fn link(&mut self) -> io::Result<()> {
        let (from, to) = (
            self.something(|path| !is_dir(path) && path.symlink_metadata().is_ok())?,
            self.place(),
        );
        fs::hard_link(from, to)
    }
    pub(super) fn link_rename_link(&mut self) -> io::Result<()> {
        let (from, x, y) = (self.regular()?, self.place(), self.place());
        fs::hard_link(&from, &x)?;
        fs::rename(&x, y)?;
        fs::hard_link(from, x)
    }
    pub(super) fn unlink(&mut self) -> io::Result<()> {
        let path = self.something(|path| !is_dir(path) && path.symlink_metadata().is_ok())?;
        fs::remove_file(&path)?;
        // The same name at once again: file systems like to give the same inode number.
        if self.rng.chance(0.2) {
            write_file(&path, b"again")
        } else {
            Ok(())
        }
    }
    pub(super) fn rmdir(&mut self) -> io::Result<()> {
        fs::remove_dir(self.directory()?)
    }
    pub(super) fn remove_all(&mut self) -> io::Result<()> {
        fs::remove_dir_all(self.directory()?)
    }
    /// Many files at once, gone again at once half of the time.
    pub(super) fn burst(&mut self) -> io::Result<()> {
        let dir = self.place();
        fs::create_dir(&dir)?;
        for number in 0..self.rng.range(10, 40) {
            write_file(
                &dir.join(format!("f{number}")),
                &self.bytes[..number as usize * 10],
            )?;
        }
        if self.rng.chance(0.5) {
            fs::remove_dir_all(dir)
        } else {
            Ok(())
        }
    }

    pub(super) fn symlink(&mut self) -> io::Result<()> {
        let path = self.place();
        Ok(symlinkat(*self.rng.pick(&TARGETS), CWD, &path)?)
    }
    /// Removed and made again, or replaced at once as deploy tools do.
    pub(super) fn retarget(&mut self) -> io::Result<()> {
        let path =
            self.something(|path| path.symlink_metadata().is_ok_and(|meta| meta.is_symlink()))?;
        let target = *self.rng.pick(&TARGETS);
        if self.rng.chance(0.5) {
            fs::remove_file(&path)?;
            return Ok(symlinkat(target, CWD, &path)?);
        }
        let temporary = self.beside(&path);
        symlinkat(target, CWD, &temporary)?;
        let result = fs::rename(&temporary, path);
        if result.is_err() {
            fs::remove_file(temporary)?;
        }
        result
    }
    fn make_node(&mut self, path: &Path) -> io::Result<()> {
        let (kind, device) = *self.rng.pick(&[
            (FileType::Fifo, 0),
            (FileType::Socket, 0),
            (FileType::CharacterDevice, makedev(1, 3)),
            (FileType::CharacterDevice, 0),
            // Of no driver: others open what they find, and write to it.
            (FileType::BlockDevice, makedev(120, 250)),
        ]);
        Ok(mknodat(
            CWD,
            path,
            kind,
            Mode::from_raw_mode(0o640),
            device,
        )?)
    }
    pub(super) fn node(&mut self) -> io::Result<()> {
        let path = self.place();
        self.make_node(&path)
    }
    /// Another kind of thing under the same name.
    pub(super) fn change_type(&mut self) -> io::Result<()> {
        let path = self.any()?;
        remove(&path)?;
        match self.rng.below(4) {
            0 => fs::create_dir(path),
            1 => Ok(symlinkat(*self.rng.pick(&TARGETS), CWD, &path)?),
            2 => self.make_node(&path),
            _ => write_file(&path, b"now a file"),
        }
    }

    /// Something whose metadata may be changed by path; a symlink would be followed.
    fn no_symlink(&mut self) -> io::Result<std::path::PathBuf> {
        self.something(|path| path.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()))
    }
    pub(super) fn chmod(&mut self) -> io::Result<()> {
        let path = self.no_symlink()?;
        let mut mode = *self
            .rng
            .pick(&[0o600, 0o644, 0o755, 0o700, 0o4755, 0o2755, 0o1777, 0o000]);
        if !self.privileged {
            // We want to go on working here.
            mode |= 0o700;
        }
        Ok(rustix::fs::chmodat(
            CWD,
            &path,
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )?)
    }
    pub(super) fn chown(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let uid = Uid::from_raw(*self.rng.pick(&[0, 33, 10_001, 4_000_000_000]));
        let gid = Gid::from_raw(*self.rng.pick(&[0, 33, 10_001, 4_000_000_000]));
        Ok(rustix::fs::chownat(
            CWD,
            &path,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
    pub(super) fn utimens(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let seconds = self.rng.below(4_000_000_000) as i64 - 1_000_000_000;
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: self.rng.below(1_000_000_000) as i64,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        Ok(rustix::fs::utimensat(
            CWD,
            &path,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
    pub(super) fn xattr(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let name = *self.rng.pick(&["user.a", "user.b", "trusted.a"]);
        if self.rng.chance(0.3) {
            return Ok(lremovexattr(&path, name)?);
        }
        let length = self.rng.below(200) as usize;
        Ok(lsetxattr(
            &path,
            name,
            &self.bytes[..length],
            XattrFlags::empty(),
        )?)
    }
    pub(super) fn acl(&mut self) -> io::Result<()> {
        let path = self.no_symlink()?;
        let name = if is_dir(&path) && self.rng.chance(0.5) {
            "system.posix_acl_default"
        } else {
            "system.posix_acl_access"
        };
        if self.rng.chance(0.3) {
            return Ok(lremovexattr(&path, name)?);
        }
        Ok(lsetxattr(&path, name, ACL, XattrFlags::empty())?)
    }
    pub(super) fn capability(&mut self) -> io::Result<()> {
        let path = self.regular()?;
        Ok(lsetxattr(
            &path,
            "security.capability",
            CAPABILITY,
            XattrFlags::empty(),
        )?)
    }
    pub(super) fn flags(&mut self) -> io::Result<()> {
        const NODUMP: u32 = 0x40;
        if !self.params.flags {
            return Ok(());
        }
        let path = self.something(|path| {
            path.symlink_metadata()
                .is_ok_and(|meta| meta.is_dir() || meta.is_file())
        })?;
        let (clear, set) = if self.rng.chance(0.5) {
            (0, NODUMP)
        } else {
            (NODUMP, 0)
        };
        crate::change_flags(&path, clear, set)
    }
}
