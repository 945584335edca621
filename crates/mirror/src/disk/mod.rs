//! State files behind a trait: the real directory, and one in memory that crashes.
//!
//! Names are relative to the state directory: `file` or `dir/file`. A write is safe after `flush` of the file, a
//! new, renamed or removed name after `flush_dir` of its directory. Nothing here knows what the files hold.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

mod real;
mod sim;
#[cfg(test)]
mod tests;

pub use real::RealDisk;
pub use sim::{Fault, SimDisk};

/// A directory of state files.
pub trait Disk: Send + Sync + 'static {
    /// A new, empty file; fails if the name exists.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// An existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames, replacing what is there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Files in a directory (`""`: the state directory itself), sorted.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes a directory if it isn't there, durable on return.
    fn make_dir(&self, dir: &str) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn flush_dir(&self, dir: &str) -> io::Result<()>;
}

/// One open state file.
pub trait DiskFile: Send + Sync + 'static {
    /// Writes all bytes at the end. After an error any part of them may be there.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;
    /// Overwrites bytes inside the file.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reads up to `buffer.len()` bytes; fewer only at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// fdatasync. After an error what was not durable is lost for good: never call it again, reopen.
    fn flush(&self) -> io::Result<()>;
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// Replaces or makes a small file in one step: readers, and a crash, find the old bytes or the new ones.
pub fn replace_file(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = format!("{name}.new");
    match disk.remove(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = disk.create(&beside)?;
    file.append(bytes)?;
    file.flush()?;
    disk.rename(&beside, name)?;
    disk.flush_dir(name.rsplit_once('/').map_or("", |(dir, _)| dir))
}

/// A file that has no name any more, made in `dir` under a name that nobody else uses there. It goes with its descriptor.
pub fn nameless(dir: &Path, name: &str) -> io::Result<File> {
    let path = dir.join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// A whole file of at most `bytes_max` bytes.
pub fn read_file(disk: &dyn Disk, name: &str, bytes_max: usize) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
    if len > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{name} is larger than {bytes_max} bytes"),
        ));
    }
    let mut bytes = vec![0; len];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
