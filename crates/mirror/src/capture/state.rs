//! What capture lets others see of itself while it runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use mirror_core::guard::Alarm;
use mirror_core::{ObjectId, Position};

use super::scan::Seen;
use crate::engine::status::{Failed, LastChange, PathText};
use crate::sync::lock;

/// An order to the capture loop.
pub enum Order {
    /// Answer when everything that happened in the tree before this order is in the log, durably.
    Barrier(Sender<Barrier>),
    /// The content of this object is wanted and is not what the log says: read it again.
    Reread(ObjectId),
    /// Look at everything.
    Rescan,
    /// End cleanly.
    Stop,
}

/// What a barrier covers.
#[derive(Debug, Clone, Default)]
pub struct Barrier {
    /// The log's end. `None`: nothing is in the log.
    pub position: Option<Position>,
    pub failed: Vec<Failed>,
    pub failed_total: u64,
    pub fuzzy: Vec<PathText>,
    pub fuzzy_total: u64,
}

/// Why capture ended.
#[derive(Debug)]
pub enum Ended {
    Stopped,
    /// Entries are gone that nothing explains: nothing of it was written down.
    Held(Alarm, u64),
    /// The log can't be written, or the index can't be used. All is dirty for the next session.
    Failed(String),
}

#[derive(Default)]
pub struct CaptureStatus {
    /// A look at everything goes on, with these counts; `first`: nothing is known to be equal before it ends.
    pub scan: Option<(Arc<Seen>, Instant)>,
    /// Scans of everything that ended.
    pub scans: u64,
    pub overflows: u64,
    pub corrections: u64,
    pub torn: u64,
    pub proven: u64,
    pub fuzzy: BTreeMap<ObjectId, PathText>,
    pub failed: Vec<Failed>,
    pub failed_total: u64,
    pub foreign: Vec<PathText>,
    pub last_change: Option<LastChange>,
    /// Since when something waits for a large file to be read.
    pub behind_since_ns: Option<u64>,
    pub entries: u64,
    pub files: u64,
    pub bytes: u64,
    pub hot: u64,
    /// Directories that there is no watch for.
    pub unwatched: u64,
    pub notices: Vec<String>,
    /// The oldest record that somebody still has to read; `None`: nobody said yet, so nothing may go.
    pub needed: Option<Position>,
    /// Bytes that log and contents may take at most, because the file system is full; `None`: as ever.
    pub room: Option<u64>,
}

#[derive(Default)]
pub struct Shared {
    status: Mutex<CaptureStatus>,
    /// The session ends: whatever takes long is left as it is.
    pub stop: Arc<AtomicBool>,
    /// Of long files, as they are read.
    pub read_bytes: Arc<AtomicU64>,
    scanned: Condvar,
}

impl Shared {
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub fn lock(&self) -> MutexGuard<'_, CaptureStatus> {
        lock(&self.status)
    }
    /// A look at everything ended.
    pub fn scanned(&self) {
        self.scanned.notify_all();
    }
    /// Waits until some look at everything has ended, at most so long.
    pub fn wait_scanned(&self, at_most: Duration) {
        let status = self.lock();
        let _ = self
            .scanned
            .wait_timeout_while(status, at_most, |status| status.scans == 0);
    }
    /// Says something once.
    pub fn notice(&self, text: String) {
        let mut status = self.lock();
        if status.notices.len() < 1000 {
            status.notices.push(text);
        }
    }
}
