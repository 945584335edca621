//! `adopted/`: things made by hand in the copy that stood in the way. Nobody deletes them but a person (`fs_mirror
//! adopted --empty`), so how much they are is told.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::sync::lock;

/// In the state directory.
pub const DIR: &str = "adopted";

/// From so much on a monitor hears of it: bytes, or a tenth of the file system if that is more; or entries.
const LARGE_BYTES: u64 = 1 << 30;
const LARGE_ENTRIES: u64 = 1_000_000;
/// Not counted again sooner.
const COUNT_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// As they were in the copy: without the directories that keep them apart.
    pub entries: u64,
    /// Allocated.
    pub bytes: u64,
}

impl Aside {
    pub fn is_large(self, bytes_total: u64) -> bool {
        self.bytes >= LARGE_BYTES.max(bytes_total / 10) || self.entries >= LARGE_ENTRIES
    }
}

/// Entries below a directory and what they take. What goes meanwhile does not count. Never follows a symlink.
pub fn tally(dir: &Path) -> io::Result<Aside> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = Aside::default();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Err(e) if sum.entries > 0 || e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries.flatten() {
            let Ok(found) = entry.metadata() else {
                continue;
            };
            sum.entries += 1;
            sum.bytes += found.blocks() * 512;
            if found.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    Ok(sum)
}

/// One thing that was moved aside lies in `adopted/BATCH/NUMBER/`; the newest last.
pub fn batches(state_dir: &Path) -> io::Result<Vec<(PathBuf, SystemTime)>> {
    let mut batches = Vec::new();
    let entries = match std::fs::read_dir(state_dir.join(DIR)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(batches),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_dir() {
            batches.push((entry.path(), found.modified()?));
        }
    }
    batches.sort_by_key(|(_, changed)| *changed);
    Ok(batches)
}

/// What lies in one batch.
pub fn in_batch(batch: &Path) -> io::Result<Aside> {
    let mut sum = Aside::default();
    for number in std::fs::read_dir(batch)?.flatten() {
        let found = tally(&number.path())?;
        sum.entries += found.entries;
        sum.bytes += found.bytes;
    }
    Ok(sum)
}

pub fn all(state_dir: &Path) -> io::Result<Aside> {
    let mut sum = Aside::default();
    for (batch, _) in batches(state_dir)? {
        // What a person removes meanwhile is not there any more.
        let found = in_batch(&batch).unwrap_or_default();
        sum.entries += found.entries;
        sum.bytes += found.bytes;
    }
    Ok(sum)
}

/// Keeps count of it, on a thread of its own for as long as that takes, and only when something may have moved.
#[derive(Default)]
pub struct Watch {
    state: Arc<Mutex<Counted>>,
}

#[derive(Default)]
struct Counted {
    known: Option<Aside>,
    /// What the count was of: when the directory changed, and how much was moved.
    of: Option<(Option<SystemTime>, u64)>,
    looked: Option<Instant>,
    counting: bool,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        lock(&self.state)
    }

    pub fn known(&self) -> Option<Aside> {
        self.lock().known
    }

    /// `moved`: how much was moved there by this process.
    pub fn look(&self, state_dir: &Path, moved: u64) {
        let mut counted = self.lock();
        let soon = counted.looked.is_some_and(|at| at.elapsed() < COUNT_EVERY);
        if counted.counting || soon {
            return;
        }
        counted.looked = Some(Instant::now());
        let changed = std::fs::metadata(state_dir.join(DIR)).and_then(|found| found.modified());
        let now = Some((changed.ok(), moved));
        if counted.of == now {
            return;
        }
        (counted.counting, counted.of) = (true, now);
        drop(counted);
        let (state, state_dir) = (self.state.clone(), state_dir.to_path_buf());
        let counting = std::thread::Builder::new().name("aside".into());
        let started = counting.spawn(move || {
            let found = all(&state_dir).ok();
            let mut counted = lock(&state);
            counted.known = found.or(counted.known);
            counted.counting = false;
        });
        if started.is_err() {
            self.lock().counting = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_aside_is_counted() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(all(state.path()).unwrap(), Aside::default());
        let thing = state.path().join("adopted/1.7/0/a");
        std::fs::create_dir_all(&thing).unwrap();
        std::fs::write(thing.join("b"), vec![1; 10_000]).unwrap();
        std::os::unix::fs::symlink("/", thing.join("c")).unwrap();
        let found = all(state.path()).unwrap();
        assert_eq!(found.entries, 3);
        assert!(found.bytes >= 10_000 && found.bytes < 100_000, "{found:?}");
        assert!(!found.is_large(0));
        let large = Aside {
            bytes: 2 << 30,
            ..found
        };
        assert!(large.is_large(10 << 30) && !large.is_large(100 << 30));
    }
}
