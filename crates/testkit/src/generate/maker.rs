//! The hands of the generator: makes one thing at a time and counts it. Paths are relative to the tree.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use anyhow::Context;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{Made, Params};
use crate::escape;
use crate::rng::Rng;

/// 2025-06-15; most times are in the six years before.
const NEWEST: i64 = 1_750_000_000;

pub struct Maker<'a> {
    root: &'a OwnedFd,
    pub rng: Rng,
    pub plain: bool,
    pub size_bytes_median: f64,
    pub privileged: bool,
    /// Of what gets no other owner. Only root gives owners.
    pub owner: Option<(u32, u32)>,
    made: Made,
    /// Directories get mode, owner and time last, because what is made in them changes these.
    dirs: Vec<(Vec<u8>, Finish)>,
}

/// What an inode gets after it is made, in this order: owner, mode, (attributes,) time.
#[derive(Debug, Clone, Copy)]
pub struct Finish {
    pub mode: u32,
    pub owner: Option<(u32, u32)>,
    pub mtime: (i64, u32),
}

impl<'a> Maker<'a> {
    pub fn new(root: &'a OwnedFd, params: &Params, part: u64) -> Maker<'a> {
        Maker {
            root,
            rng: Rng::part(params.seed, part),
            plain: params.plain,
            size_bytes_median: params.size_bytes_median,
            privileged: crate::is_root(),
            owner: None,
            made: Made::default(),
            dirs: Vec::new(),
        }
    }

    /// A time as files have them: nanoseconds mostly, whole seconds where a tool unpacked an archive.
    pub fn mtime(&mut self) -> (i64, u32) {
        let seconds = NEWEST - self.rng.below(6 * 365 * 86_400) as i64;
        (
            seconds,
            if self.rng.chance(0.2) {
                0
            } else {
                self.rng.below(1_000_000_000) as u32
            },
        )
    }
    pub fn finish_of(&mut self, mode: u32) -> Finish {
        Finish {
            mode,
            owner: None,
            mtime: self.mtime(),
        }
    }

    pub fn skip(&mut self, what: &str, why: impl Into<io::Error>) {
        self.made.skipped.insert(format!("{what}: {}", why.into()));
    }

    pub fn dir(&mut self, path: &[u8]) -> anyhow::Result<()> {
        let finish = self.finish_of(0o755);
        self.dir_with(path, finish)
    }
    pub fn dir_with(&mut self, path: &[u8], finish: Finish) -> anyhow::Result<()> {
        rustix::fs::mkdirat(self.root, path, Mode::from_raw_mode(0o755))
            .with_context(|| escape(path))?;
        self.made.dirs += 1;
        self.dirs.push((path.to_vec(), finish));
        Ok(())
    }
    /// The root of the tree itself gets its time too.
    pub fn root(&mut self) {
        let finish = self.finish_of(0o755);
        self.dirs.push((b".".to_vec(), finish));
    }

    /// Chunks of bytes at offsets in a file of this size; what lies between is holes.
    pub fn file(
        &mut self,
        path: &[u8],
        size: u64,
        chunks: &[(u64, &[u8])],
    ) -> anyhow::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.root, path, flags, Mode::from_raw_mode(0o600))
            .with_context(|| escape(path))?;
        let file = File::from(fd);
        let mut end = 0;
        for (offset, bytes) in chunks {
            file.write_all_at(bytes, *offset)
                .with_context(|| escape(path))?;
            self.made.bytes += bytes.len() as u64;
            end = end.max(offset + bytes.len() as u64);
        }
        if size > end {
            file.set_len(size).with_context(|| escape(path))?;
        }
        self.made.files += 1;
        Ok(file)
    }
    pub fn finish_file(&mut self, file: &File, finish: Finish) -> anyhow::Result<()> {
        if let Some((uid, gid)) = finish.owner.filter(|_| self.privileged) {
            rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        // After the owner, because a new owner takes set-id bits away.
        rustix::fs::fchmod(file, Mode::from_raw_mode(finish.mode))?;
        rustix::fs::futimens(file, &times(finish.mtime))?;
        Ok(())
    }
    /// A whole file at once.
    pub fn plain_file(&mut self, path: &[u8], bytes: &[u8], finish: Finish) -> anyhow::Result<()> {
        let file = self.file(path, 0, &[(0, bytes)])?;
        self.finish_file(&file, finish)
    }

    pub fn symlink(
        &mut self,
        path: &[u8],
        target: &[u8],
        owner: Option<(u32, u32)>,
    ) -> anyhow::Result<()> {
        match rustix::fs::symlinkat(target, self.root, path) {
            Ok(()) => {}
            Err(e @ (Errno::NAMETOOLONG | Errno::INVAL)) => {
                self.skip(
                    &format!("symlink with a target of {} bytes", target.len()),
                    e,
                );
                return Ok(());
            }
            Err(e) => return Err(e).with_context(|| escape(path)),
        }
        self.made.symlinks += 1;
        let mtime = self.mtime();
        self.finish_at(
            path,
            Finish {
                mode: 0o777,
                owner,
                mtime,
            },
        )
    }
    pub fn link(&mut self, old: &[u8], new: &[u8]) -> anyhow::Result<()> {
        rustix::fs::linkat(self.root, old, self.root, new, AtFlags::empty())
            .with_context(|| escape(new))?;
        self.made.links += 1;
        Ok(())
    }
    /// `false`: not possible here, and noted.
    pub fn node(
        &mut self,
        path: &[u8],
        kind: FileType,
        device: u64,
        finish: Finish,
    ) -> anyhow::Result<bool> {
        match rustix::fs::mknodat(self.root, path, kind, Mode::from_raw_mode(0o600), device) {
            Ok(()) => {}
            Err(e @ (Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL)) => {
                self.skip(&format!("{kind:?}"), e);
                return Ok(false);
            }
            Err(e) => return Err(e).with_context(|| escape(path)),
        }
        self.made.specials += 1;
        rustix::fs::chmodat(
            self.root,
            path,
            Mode::from_raw_mode(finish.mode),
            AtFlags::empty(),
        )?;
        self.finish_at(path, finish)?;
        Ok(true)
    }
    /// Owner and time of what can't be opened.
    fn finish_at(&mut self, path: &[u8], finish: Finish) -> anyhow::Result<()> {
        if let Some((uid, gid)) = finish.owner.filter(|_| self.privileged) {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(self.root, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        rustix::fs::utimensat(
            self.root,
            path,
            &times(finish.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        Ok(())
    }
    pub fn set_mtime(&mut self, path: &[u8], mtime: (i64, u32)) -> anyhow::Result<()> {
        Ok(rustix::fs::utimensat(
            self.root,
            path,
            &times(mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    pub fn xattr(&mut self, path: &[u8], name: &[u8], value: &[u8]) -> anyhow::Result<()> {
        let by_path = self.through_proc(path)?;
        let set = rustix::fs::setxattr(&by_path.1, name, value, XattrFlags::empty());
        self.xattr_set(name, set)
    }
    pub fn xattr_of(&mut self, file: &File, name: &[u8], value: &[u8]) -> anyhow::Result<()> {
        let set = rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
        self.xattr_set(name, set)
    }
    fn xattr_set(&mut self, name: &[u8], set: Result<(), Errno>) -> anyhow::Result<()> {
        match set {
            Ok(()) => self.made.xattrs += 1,
            Err(
                e @ (Errno::PERM
                | Errno::ACCESS
                | Errno::OPNOTSUPP
                | Errno::NOSPC
                | Errno::RANGE
                | Errno::TOOBIG),
            ) => {
                let class = name.split(|&b| b == b'.').next().unwrap_or(name);
                self.skip(&format!("{} attribute", escape(class)), e);
            }
            Err(e) => return Err(e).with_context(|| format!("attribute {}", escape(name))),
        }
        Ok(())
    }
    pub fn flags(&mut self, path: &[u8], flags: u32) -> anyhow::Result<()> {
        let fd = rustix::fs::openat(
            self.root,
            path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        if let Err(e) =
            crate::sys::flags(&fd).and_then(|now| crate::sys::set_flags(&fd, now | flags))
        {
            self.skip(&format!("inode flag {flags:#x}"), e);
        }
        Ok(())
    }

    /// A path that leads to the very inode, whatever kind it is.
    fn through_proc(&self, path: &[u8]) -> anyhow::Result<(OwnedFd, String)> {
        use std::os::fd::AsRawFd;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.root, path, flags, Mode::empty())?;
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Ok((fd, link))
    }

    /// Directories inside each other, `levels` of them, all with this name, and a file at the bottom.
    pub fn deep(
        &mut self,
        top: &[u8],
        name: &[u8],
        levels: u32,
        bottom: &[u8],
    ) -> anyhow::Result<()> {
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.dir(top)?;
        let mut dir = rustix::fs::openat(self.root, top, open, Mode::empty())?;
        let mut all = Vec::new();
        for _ in 0..levels {
            rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
            let inner = rustix::fs::openat(&dir, name, open, Mode::empty())?;
            all.push(std::mem::replace(&mut dir, inner));
        }
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(
            &dir,
            bottom,
            write,
            Mode::from_raw_mode(0o644),
        )?);
        file.write_all_at(b"at the bottom\n", 0)?;
        let finish = self.finish_of(0o640);
        self.finish_file(&file, finish)?;
        all.push(dir);
        for dir in all.iter().skip(1) {
            let mtime = self.mtime();
            rustix::fs::futimens(dir, &times(mtime))?;
        }
        self.made.dirs += u64::from(levels);
        self.made.files += 1;
        Ok(())
    }

    /// Gives the directories what they get, innermost first.
    pub fn finish(mut self) -> anyhow::Result<Made> {
        for (path, finish) in std::mem::take(&mut self.dirs).into_iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(self.root, &path, flags, Mode::empty())
                .with_context(|| escape(&path))?;
            self.finish_file(&File::from(fd), finish)
                .with_context(|| escape(&path))?;
        }
        Ok(self.made)
    }
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
