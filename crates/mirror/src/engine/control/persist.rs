//! The last status of a process, for when it does not run: `status.json`.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mirror_core::escape;

use crate::engine::status::{Hold, Status};

const STATUS_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    #[error("cannot read {}", escape(.path.as_os_str().as_bytes()))]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {why}", escape(.path.as_os_str().as_bytes()))]
    Damaged { path: PathBuf, why: String },
}

/// Replaces `status.json`. Not flushed: it is written every few seconds and only says what was.
pub fn persist_status(state_dir: &Path, status: &Status) -> io::Result<()> {
    let new = state_dir.join("status.json.new");
    let bytes = serde_json::to_vec(status)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&bytes)?;
    drop(file);
    fs::rename(&new, state_dir.join("status.json"))
}

/// A process that is well writes its status at least so often: an older one tells of a process that hangs.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// Writes the status now and then while a process rests.
#[derive(Debug, Default)]
pub struct Beat(Option<Instant>);

impl Beat {
    pub fn persist(&mut self, persist: impl FnOnce()) {
        const EVERY: Duration = Duration::from_secs(2);
        if self.0.is_none_or(|last| last.elapsed() >= EVERY) {
            self.0 = Some(Instant::now());
            persist();
        }
    }
}

/// The last status; `None`: there never was one.
pub fn read_status(state_dir: &Path) -> Result<Option<Status>, PersistError> {
    read(state_dir.join("status.json"))
}

/// An operator's word, given while no process runs, that this hold may go on: for the next process to take.
pub fn leave_release(state_dir: &Path, hold: &Hold) -> io::Result<()> {
    let new = state_dir.join("release.new");
    fs::write(&new, serde_json::to_vec(hold)?)?;
    fs::rename(&new, state_dir.join("release"))
}

/// The hold that was released while no process ran, if one was. It is good once: the file is gone then. What is
/// found must be compared with the hold there is now; another reason needs another word.
pub fn take_release(state_dir: &Path) -> Result<Option<Hold>, PersistError> {
    let path = state_dir.join("release");
    let hold = read(path.clone())?;
    match fs::remove_file(&path) {
        Ok(()) => Ok(hold),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(hold),
        Err(source) => Err(PersistError::Io { path, source }),
    }
}

fn read<T: serde::de::DeserializeOwned>(path: PathBuf) -> Result<Option<T>, PersistError> {
    let io = |source| PersistError::Io {
        path: path.clone(),
        source,
    };
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let mut bytes = Vec::new();
    file.take(STATUS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(e) => Err(PersistError::Damaged {
            path,
            why: e.to_string(),
        }),
    }
}
