//! The kernel's limit on queued fanotify events, lowered for a while.

use std::fs::{self, File};
use std::io;

use rustix::fs::FlockOperation;

use super::Skip;

const LIMIT: &str = "/proc/sys/fs/fanotify/max_queued_events";

/// While this lives, a newly opened fanotify group gets this limit (the kernel reads it when the group is made, so
/// drop the guard as soon as the program under test watches). The setting is the whole machine's: guards wait for each
/// other, also those of other processes, and the old value comes back on drop. A killed process leaves it changed.
#[derive(Debug)]
pub struct QueueLimit {
    before: String,
    /// Holds the lock.
    _turn: File,
}

impl QueueLimit {
    pub fn set(events: u32) -> Result<QueueLimit, Skip> {
        if !crate::is_root() {
            return Err(Skip("needs root (fs.fanotify.max_queued_events)".into()));
        }
        let skip = |e: io::Error| Skip(format!("fs.fanotify.max_queued_events: {e}"));
        let turn =
            File::create(std::env::temp_dir().join("testkit-queue-limit.lock")).map_err(skip)?;
        rustix::fs::flock(&turn, FlockOperation::LockExclusive).map_err(|e| skip(e.into()))?;
        let before = fs::read_to_string(LIMIT).map_err(skip)?;
        fs::write(LIMIT, events.to_string()).map_err(skip)?;
        Ok(QueueLimit {
            before,
            _turn: turn,
        })
    }
}

impl Drop for QueueLimit {
    fn drop(&mut self) {
        let _ = fs::write(LIMIT, self.before.trim());
    }
}
