//! One process per state directory: a lock on its file `lock`, which names the holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror_core::escape;
use std::os::unix::ffi::OsStrExt;

use crate::engine::status::Stamp;
use crate::sys::tree;

/// One who asks who the holder is has the lock for a moment; whoever has it for longer than this holds it.
const ASKED_WITHIN: Duration = Duration::from_millis(200);

/// Held as long as a clone of it lives; the kernel drops it with the process, so a stale one can't exist.
#[derive(Debug, Clone)]
pub struct StateLock {
    file: Arc<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{} is in use by {holder}", escape(.state_dir.as_os_str().as_bytes()))]
    Busy { state_dir: PathBuf, holder: Holder },
    #[error("cannot lock {}", escape(.path.as_os_str().as_bytes()))]
    Io { path: PathBuf, source: io::Error },
}

/// Who has the lock, as far as its file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: Option<u32>,
    pub since: Option<Stamp>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}")?,
            None => f.write_str("another process")?,
        }
        match self.since {
            Some(since) => write!(f, ", since {since}"),
            None => Ok(()),
        }
    }
}

impl StateLock {
    /// Takes the lock of an existing state directory. Waits only as long as one who merely asks for the holder may have it.
    pub fn take(state_dir: &Path) -> Result<StateLock, LockError> {
        let path = state_dir.join("lock");
        let io = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        // Open through a private view, where that is possible, it keeps nobody from unmounting the file system.
        let view = tree::private_clone(state_dir).ok();
        let file = view.as_ref().map_or_else(
            || path.clone(),
            |view| PathBuf::from(format!("/proc/self/fd/{}/lock", view.as_raw_fd())),
        );
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(file)
            .map_err(io)?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < ASKED_WITHIN => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Busy {
                        state_dir: state_dir.into(),
                        holder: read_holder(&mut file),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
        }
        // Only a courtesy to the second process: that it can't be written (full disk) is no reason to stop.
        let _ = write_holder(&mut file);
        Ok(StateLock {
            file: Arc::new(file),
        })
    }

    /// Who holds the lock of this state directory; `None`: nobody.
    pub fn holder(state_dir: &Path) -> Result<Option<Holder>, LockError> {
        let path = state_dir.join("lock");
        let io = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut file = match OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
        {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(e)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(read_holder(&mut file))),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

impl Drop for StateLock {
    fn drop(&mut self) {
        // The last one: say that nobody holds it, so that the file never names a stranger.
        if Arc::strong_count(&self.file) == 1 {
            let _ = self.file.set_len(0);
        }
    }
}

fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{} {}", std::process::id(), Stamp::now())
}

fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    let _ = file.take(200).read_to_string(&mut text);
    let mut words = text.split_whitespace();
    Holder {
        pid: words.next().and_then(|w| w.parse().ok()),
        since: words
            .next()
            .and_then(|w| w.parse::<jiff::Timestamp>().ok())
            .map(|t| Stamp {
                ms: t.as_millisecond(),
            }),
    }
}
