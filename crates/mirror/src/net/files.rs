//! Small files of the configuration directory that others must not change: read with care, replaced in one step.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, open, openat, renameat, unlinkat};

use crate::cli::places::show;

/// Held while one of the files is changed, so that two programs do not lose each other's changes.
const LOCK: &str = "lock";

#[derive(Debug, thiserror::Error)]
pub enum NetFileError {
    #[error("cannot {what} {}", show(.path))]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// It may have been made or changed by somebody else.
    #[error("{} {why}", show(.path))]
    Unsafe { path: PathBuf, why: String },
    #[error("{}, line {line}: {why}", show(.path))]
    Bad {
        path: PathBuf,
        line: usize,
        why: String,
    },
    #[error("{} is not a private key of Ed25519 in PKCS8: restore it from a backup, or remove it and pair again", show(.0))]
    NoKey(PathBuf),
}

/// How much others may do with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// Others may neither read nor write it, and it is no symbolic link.
    Secret,
    /// Others may not write it.
    Public,
}

pub fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetFileError {
    let path = path.to_path_buf();
    move |source| NetFileError::Io { what, path, source }
}

/// Makes the directory, for us alone, if it isn't there.
pub fn make_dir(dir: &Path) -> Result<(), NetFileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error("make", dir))?;
    check_dir(dir)
}

/// Whoever may write in the directory could put another file in place of any.
fn check_dir(dir: &Path) -> Result<(), NetFileError> {
    let meta = fs::metadata(dir).map_err(io_error("read", dir))?;
    check_owner(&meta, dir)?;
    if meta.mode() & 0o022 != 0 {
        return Err(NetFileError::Unsafe {
            path: dir.into(),
            why: "can be written by others: `chmod go-w` it".into(),
        });
    }
    Ok(())
}

fn check_owner(meta: &fs::Metadata, path: &Path) -> Result<(), NetFileError> {
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() == us || meta.uid() == 0 {
        return Ok(());
    }
    Err(NetFileError::Unsafe {
        path: path.into(),
        why: format!("belongs to user {}, not to us: `chown` it", meta.uid()),
    })
}

/// A whole file; `None`: there is none.
pub fn read(
    path: &Path,
    secrecy: Secrecy,
    bytes_max: u64,
) -> Result<Option<Vec<u8>>, NetFileError> {
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if secrecy == Secrecy::Secret {
        flags |= OFlags::NOFOLLOW;
    }
    let unsafe_file = |why: &str| NetFileError::Unsafe {
        path: path.into(),
        why: why.into(),
    };
    let file = match open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => {
            return Err(unsafe_file("is a symbolic link: put the file itself there"));
        }
        Err(e) => return Err(io_error("read", path)(e.into())),
    };
    let meta = file.metadata().map_err(io_error("read", path))?;
    if !meta.is_file() {
        return Err(unsafe_file("is not a plain file"));
    }
    check_owner(&meta, path)?;
    match secrecy {
        Secrecy::Secret if meta.mode() & 0o077 != 0 => {
            return Err(unsafe_file("can be read by others: `chmod 600` it"));
        }
        Secrecy::Public if meta.mode() & 0o022 != 0 => {
            return Err(unsafe_file("can be written by others: `chmod go-w` it"));
        }
        _ => {}
    }
    if meta.len() > bytes_max {
        return Err(unsafe_file(&format!("is larger than {bytes_max} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    Ok(Some(bytes))
}

/// A directory in which files are replaced, while nobody else does.
pub struct Held {
    dir: OwnedFd,
    path: PathBuf,
    _lock: OwnedFd,
}

impl Held {
    pub fn take(dir: &Path) -> Result<Held, NetFileError> {
        make_dir(dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(dir, flags, Mode::empty()).map_err(|e| io_error("open", dir)(e.into()))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let failed = |e: rustix::io::Errno| io_error("lock", &dir.join(LOCK))(e.into());
        let lock = openat(&fd, LOCK, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(failed)?;
        Ok(Held {
            dir: fd,
            path: dir.into(),
            _lock: lock,
        })
    }

    /// Makes or replaces a file that only we may read and write: a crash leaves the old one or the new one.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), NetFileError> {
        let new = format!("{name}.new");
        let path = self.path.join(name);
        let failed = |e: io::Error| io_error("write", &path)(e);
        match unlinkat(&self.dir, &new, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(failed(e.into())),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&self.dir, &new, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| failed(e.into()))?;
        let mut file = File::from(file);
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        renameat(&self.dir, &new, &self.dir, name).map_err(|e| failed(e.into()))?;
        rustix::fs::fsync(&self.dir).map_err(|e| failed(e.into()))
    }
}
