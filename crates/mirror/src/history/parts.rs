//! Earlier parts of the history: when the copy was compared anew (its log was given up, its index lost, or none was kept for
//! a while), positions and identities begin anew, too. What was kept until then goes to `STATE/past/N/`, whole, with the
//! index as it was last, and can be asked for as before.
//!
//! A version that was in the copy when a part ended is where that path's version of the next part's beginning is.

use std::io;
use std::path::{Path, PathBuf};

use super::{catalogue, slots};

pub const DIR: &str = "past";
const PARTS_MAX: u32 = 1 << 16;

/// Numbers of earlier parts, oldest first.
pub fn all(state_dir: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(state_dir.join(DIR)).into_iter().flatten();
    let mut numbers: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

pub fn dir(state_dir: &Path, part: u32) -> PathBuf {
    state_dir.join(DIR).join(part.to_string())
}

/// What a crash left half way: a part without its name.
pub fn finish(state_dir: &Path) -> io::Result<()> {
    let new = state_dir.join(format!("{DIR}.new"));
    if !new.exists() {
        return Ok(());
    }
    if new.join(catalogue::DIR).exists() {
        let next = all(state_dir).last().map_or(1, |last| last + 1);
        std::fs::create_dir_all(state_dir.join(DIR))?;
        std::fs::rename(&new, dir(state_dir, next))?;
        return std::fs::File::open(state_dir.join(DIR))?.sync_all();
    }
    // The catalogue, which goes last, is still where it was.
    let slots = new.join(slots::DIR);
    if slots.exists() && !state_dir.join(slots::DIR).exists() {
        std::fs::rename(&slots, state_dir.join(slots::DIR))?;
    }
    match std::fs::remove_file(new.join("index")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::fs::remove_dir(&new)
}

/// What is kept ends here. `index`: as of the end, if there is one. Where nothing is kept nothing is done.
pub fn end(state_dir: &Path, index: Option<&Path>) -> io::Result<()> {
    finish(state_dir)?;
    if !state_dir.join(catalogue::DIR).exists() {
        return Ok(());
    }
    let next = all(state_dir).last().map_or(1, |last| last + 1);
    if next > PARTS_MAX {
        return Err(io::Error::other("too many parts of the history"));
    }
    let part = dir(state_dir, next);
    // Under another name first: a crash in between leaves nothing that looks whole and is not.
    let new = state_dir.join(format!("{DIR}.new"));
    std::fs::create_dir_all(&new)?;
    if let Some(index) = index {
        // The one in use goes on changing.
        let linked = match index.parent() == Some(state_dir) {
            true => std::fs::copy(index, new.join("index")).map(drop),
            false => std::fs::hard_link(index, new.join("index")),
        };
        match linked {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                std::fs::copy(index, new.join("index"))?;
            }
            _ => {}
        }
    }
    for name in [slots::DIR, catalogue::DIR] {
        match std::fs::rename(state_dir.join(name), new.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    std::fs::create_dir_all(state_dir.join(DIR))?;
    std::fs::rename(&new, &part)?;
    std::fs::File::open(state_dir.join(DIR))?.sync_all()?;
    std::fs::File::open(state_dir)?.sync_all()
}
