//! Room that is ours on DST's file system, for the day when it is full: given up at a start that finds it so, it lets the
//! index and the log be opened, and then what is removed at the source makes room.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::event::RunError;

const FILE: &str = "reserve";
const BYTES_MIN: u64 = 2 << 20;
const BYTES_MAX: u64 = 32 << 20;
/// It is taken when this many times as much is free.
const FREE_TIMES: u64 = 8;

/// How much is kept, and how much is free, for whoever may use the last of it.
fn room(state: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(state).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    let keep = (bytes(found.f_blocks) / 256).clamp(BYTES_MIN, BYTES_MAX);
    let free = if rustix::process::geteuid().is_root() {
        found.f_bfree
    } else {
        found.f_bavail
    };
    Some((keep, bytes(free)))
}

/// Takes it, where there is plenty. That it can't be had is no failure.
pub fn take(state: &Path) {
    let file = state.join(FILE);
    let Some((keep, free)) = room(state) else {
        return;
    };
    if free < keep.saturating_mul(FREE_TIMES) || file.exists() {
        return;
    }
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&file);
    let Ok(made) = made else { return };
    if fallocate(&made, FallocateFlags::empty(), 0, keep).is_err() {
        let _ = fs::remove_file(&file);
    }
}

/// Gives it up where the file system is full.
pub fn give_up(state: &Path) {
    if room(state).is_some_and(|(keep, free)| free < keep) {
        let file = state.join(FILE);
        // XFS frees at once what is cut off, and later what is removed.
        if let Ok(file) = OpenOptions::new().write(true).open(&file) {
            let _ = file.set_len(0);
        }
        let _ = fs::remove_file(file);
    }
}

/// Whether a mirror that was begun could not go on for want of room only, which may come.
pub fn is_waited_for(error: &RunError, state: &Path) -> bool {
    let RunError::Failed(error) = error else {
        return false;
    };
    // Errors have become lines on their way here; the number in them is the kernel's.
    let line = format!("{error:#}");
    let has = |errno: Errno| line.contains(&format!("(os error {})", errno.raw_os_error()));
    let begun = || fs::read_dir(state.join("log")).is_ok_and(|mut log| log.next().is_some());
    (has(Errno::NOSPC) || has(Errno::DQUOT)) && begun()
}
