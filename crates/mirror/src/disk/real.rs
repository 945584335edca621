//! State files in a real directory, reached through its descriptor only.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};

use super::{Disk, DiskFile};

/// A state directory. Every name is resolved below its descriptor, symbolic links are not followed.
pub struct RealDisk {
    dir: OwnedFd,
}

struct RealFile {
    file: File,
}

impl RealDisk {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> io::Result<RealDisk> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(RealDisk {
            dir: fs::open(path, flags, Mode::empty())?,
        })
    }
    /// A directory that is open already.
    pub fn from_fd(dir: OwnedFd) -> RealDisk {
        RealDisk { dir }
    }
    fn open_dir(&self, dir: &str) -> io::Result<OwnedFd> {
        let dir = if dir.is_empty() { "." } else { dir };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(fs::openat(&self.dir, dir, flags, Mode::empty())?)
    }
    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<Arc<dyn DiskFile>> {
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Arc::new(RealFile {
            file: File::from(fd),
        }))
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open_file(name, OFlags::CREATE | OFlags::EXCL)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open_file(name, OFlags::empty())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::renameat(&self.dir, from, &self.dir, to)?)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.dir, name, AtFlags::empty())?)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let fd = self.open_dir(dir)?;
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&fd)? {
            let entry = entry?;
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            // Our own names are ASCII; whatever else lies here is not ours.
            if kind == FileType::RegularFile
                && let Ok(name) = CString::from(entry.file_name()).into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
    fn make_dir(&self, dir: &str) -> io::Result<()> {
        match fs::mkdirat(&self.dir, dir, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.open_dir(dir)?;
        self.flush_dir(dir.rsplit_once('/').map_or("", |(parent, _)| parent))
    }
    fn flush_dir(&self, dir: &str) -> io::Result<()> {
        Ok(fs::fsync(self.open_dir(dir)?)?)
    }
}

impl DiskFile for RealFile {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.len()?)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(fs::fdatasync(&self.file)?)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}
