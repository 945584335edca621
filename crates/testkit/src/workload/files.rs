//! Operations on what files hold.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, Timespec, Timestamps};

use super::Workload;
use crate::sys::Mapping;

const HELD_MAX: usize = 20;
const MAPPED_MAX: usize = 6;
/// Nothing is written beyond this.
const SIZE_BYTES_MAX: u64 = 2 << 20;

/// Never follows a symlink, and never waits for the other end of a FIFO.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}
fn open_write(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true).write(true))
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    open(
        path,
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644),
    )?
    .write_all(bytes)
}

impl Workload {
    /// Some of our bytes.
    fn piece(&mut self, length_max: u64) -> &[u8] {
        let length = self.rng.range(1, length_max) as usize;
        let start = self.rng.below((self.bytes.len() - length) as u64) as usize;
        &self.bytes[start..start + length]
    }

    /// Creates the file when it is not there.
    pub(super) fn append(&mut self) -> io::Result<()> {
        let path = self.place();
        let mut file = open(
            &path,
            OpenOptions::new().append(true).create(true).mode(0o644),
        )?;
        let few = self.rng.chance(0.8);
        file.write_all(self.piece(if few { 100 } else { 10_000 }))
    }
    pub(super) fn overwrite(&mut self) -> io::Result<()> {
        let path = self.regular()?;
        let file = open_write(&path)?;
        let size = file.metadata()?.len().clamp(1, SIZE_BYTES_MAX);
        let offset = self.rng.below(size);
        file.write_all_at(self.piece(2000), offset)
    }
    /// Several chunks, some of them large, with holes now and then.
    pub(super) fn write_big(&mut self) -> io::Result<()> {
        let path = self.place();
        let file = open(
            &path,
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o644),
        )?;
        let mut offset = 0;
        for _ in 0..self.rng.range(1, 4) {
            if self.rng.chance(0.2) {
                offset += self.rng.range(1, 50) * 4096;
            }
            let most = if self.rng.chance(0.2) {
                900_000
            } else {
                50_000
            };
            let piece = self.piece(most);
            file.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
    pub(super) fn truncate(&mut self) -> io::Result<()> {
        let path = self.regular()?;
        let size = if self.rng.chance(0.4) {
            0
        } else {
            self.rng.below(200_000)
        };
        rustix::fs::ftruncate(open_write(&path)?, size)?;
        Ok(())
    }

    /// As careful programs save: a temporary file, then a rename over the old one.
    pub(super) fn save_by_rename(&mut self) -> io::Result<()> {
        let path = self.place();
        let temporary = self.beside(&path);
        let mut file = open(
            &temporary,
            OpenOptions::new().write(true).create_new(true).mode(0o600),
        )?;
        file.write_all(self.piece(20_000))?;
        let result = fs::rename(&temporary, &path);
        if result.is_err() {
            fs::remove_file(&temporary)?;
        }
        result
    }
    /// As editors save: the old file becomes the backup, a new one comes in its place.
    pub(super) fn save_with_backup(&mut self) -> io::Result<()> {
        let path = self.regular()?;
        let mut backup = path.as_os_str().to_owned();
        backup.push("~");
        if self.rng.chance(0.5) {
            fs::rename(&path, &backup)?;
        } else {
            let _ = fs::remove_file(&backup);
            fs::hard_link(&path, &backup)?;
            fs::remove_file(&path)?;
        }
        let mut file = open(
            &path,
            OpenOptions::new().write(true).create_new(true).mode(0o644),
        )?;
        file.write_all(self.piece(5000))?;
        if self.rng.chance(0.5) {
            fs::remove_file(&backup)
        } else {
            Ok(())
        }
    }
    /// Other bytes, but size and modification time as before.
    pub(super) fn rewrite_unseen(&mut self) -> io::Result<()> {
        let path = self.regular()?;
        let file = open_write(&path)?;
        let before = file.metadata()?;
        let length = before.len().clamp(1, 3000);
        let piece = self.piece(length);
        file.write_all_at(&piece[..piece.len().min(before.len() as usize)], 0)?;
        let time = Timespec {
            tv_sec: before.mtime(),
            tv_nsec: before.mtime_nsec(),
        };
        rustix::fs::futimens(
            &file,
            &Timestamps {
                last_access: time,
                last_modification: time,
            },
        )?;
        Ok(())
    }
    pub(super) fn fallocate(&mut self) -> io::Result<()> {
        let path = self.regular()?;
        let file = open_write(&path)?;
        let flags = *self.rng.pick(&[
            FallocateFlags::empty(),
            FallocateFlags::KEEP_SIZE,
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::COLLAPSE_RANGE,
            FallocateFlags::INSERT_RANGE,
        ]);
        let size = file.metadata()?.len();
        let blocks = (size / 4096).min(SIZE_BYTES_MAX / 4096);
        let offset = self.rng.below(blocks + 1) * 4096;
        let length = self.rng.range(1, 4) * 4096;
        rustix::fs::fallocate(&file, flags, offset, length)?;
        Ok(())
    }
    /// From one file into another, inside the kernel; a clone where the file system can.
    pub(super) fn copy_range(&mut self) -> io::Result<()> {
        let (from, to) = (self.regular()?, self.place());
        let from = open(&from, OpenOptions::new().read(true))?;
        let to = open(
            &to,
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644),
        )?;
        if self.rng.chance(0.3) && rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
            return Ok(());
        }
        rustix::fs::copy_file_range(&from, None, &to, None, 1 << 20)?;
        Ok(())
    }

    pub(super) fn map_and_store(&mut self) -> io::Result<()> {
        let path = self.regular()?;
        let file = open_write(&path)?;
        if file.metadata()?.len() == 0 {
            rustix::fs::ftruncate(&file, 5000)?;
        }
        let size = file.metadata()?.len().min(64 << 10);
        let mapping = Mapping::new(&file, size as usize)?;
        drop(file);
        let offset = self.rng.below(size) as usize;
        mapping.store(&self.bytes_file, offset, 100)?;
        if self.params.mappings && self.rng.chance(0.5) {
            if self.mapped.len() >= MAPPED_MAX {
                self.mapped.remove(0);
            }
            self.mapped.push(mapping);
        }
        Ok(())
    }
    pub(super) fn store_held(&mut self) -> io::Result<()> {
        if self.mapped.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let number = self.rng.below(self.mapped.len() as u64) as usize;
        let offset = self.rng.below(64 << 10) as usize;
        let length = self.rng.range(1, 300) as usize;
        self.mapped[number].store(&self.bytes_file, offset, length)?;
        if self.rng.chance(0.2) {
            self.mapped.remove(number);
        }
        Ok(())
    }

    fn keep(&mut self, file: File) {
        if self.held.len() >= HELD_MAX {
            self.held.remove(0);
        }
        self.held.push(file);
    }
    pub(super) fn hold(&mut self) -> io::Result<()> {
        let path = self.regular()?;
        let file = open_write(&path)?;
        self.keep(file);
        Ok(())
    }
    pub(super) fn write_held(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let number = self.rng.below(self.held.len() as u64) as usize;
        let offset = self.rng.below(20_000);
        let length = self.rng.range(1, 3000) as usize;
        self.held[number].write_all_at(&self.bytes[..length], offset)?;
        match self.rng.below(10) {
            0 => drop(self.held.remove(number)),
            1 => rustix::fs::fchmod(&self.held[number], Mode::from_raw_mode(0o640))?,
            2 => rustix::fs::ftruncate(&self.held[number], offset)?,
            _ => {}
        }
        Ok(())
    }
    /// The file goes, its writer does not; perhaps it has another name.
    pub(super) fn unlink_held(&mut self) -> io::Result<()> {
        let path = self.regular()?;
        let file = open_write(&path)?;
        if self.rng.chance(0.3) {
            let other = self.place();
            let _ = fs::hard_link(&path, other);
        }
        fs::remove_file(&path)?;
        file.write_all_at(self.piece(1000), 0)?;
        self.keep(file);
        Ok(())
    }
    /// A file without a name gets one, and is changed through its descriptor afterwards.
    pub(super) fn tmpfile(&mut self) -> io::Result<()> {
        let dir = self.directory_or_root();
        let name = self.own_name();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&dir, flags, Mode::from_raw_mode(0o644))?);
        file.write_all_at(self.piece(3000), 0)?;
        let to = CString::new([dir.as_os_str().as_bytes(), b"/", &name].concat())?;
        use std::os::fd::AsRawFd;
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, from, CWD, to.as_c_str(), AtFlags::SYMLINK_FOLLOW)?;
        if self.rng.chance(0.5) {
            file.write_all_at(self.piece(100), 1000)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o604))?;
        }
        if self.rng.chance(0.3) {
            self.keep(file);
        }
        Ok(())
    }
}
