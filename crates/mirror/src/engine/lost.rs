//! State that can't be used any more: which it is, and the way out, for people; and how it is put aside.
//!
//! A damaged log is never cut or skipped over: with `--adopt` it moves aside as it is, and all is compared again.

use std::path::{Path, PathBuf};

use mirror_core::Position;

use super::applying::chain;
use super::session::show;
use super::status::{Fork, Stamp};
use crate::disk::{RealDisk, read_file, replace_file};
use crate::history::parts;
use crate::index::{Index, IndexError};
use crate::log::{ContentError, LogError, LogReader};

/// Files and directories of a mirror's state that are of one log.
const OF_ONE_LOG: [&str; 7] = [
    "index",
    "source-index",
    "applying",
    "made",
    "content",
    "log",
    FORK,
];

/// Why this log was given up: another history that nothing explains. It goes aside with the log, and is told until a person
/// has removed that.
const FORK: &str = "fork";
const FORK_BYTES_MAX: usize = 4096;

/// Whose log is here: the host and the tree there, as they were asked for.
const FOLLOWED: &str = "followed";
const FOLLOWED_BYTES_MAX: usize = 1 << 16;

/// Logs and indexes that were put aside; the oldest go. What was in the copy is not among them.
const ASIDE_MAX: usize = 8;

/// Why log and index can't be used, if beginning anew by comparing is the way out of it.
pub fn lost_log(error: &LogError) -> Option<String> {
    match error {
        LogError::Damaged { .. } | LogError::Pruned { .. } | LogError::Beyond { .. } => {
            Some(chain(error))
        }
        LogError::Content(ContentError::Damaged { .. }) => Some(chain(error)),
        _ => None,
    }
}

/// Why a log can't be opened, where beginning anew is not the way out.
pub fn cannot_open(error: &LogError) -> String {
    let newer = matches!(
        error,
        LogError::Newer { .. }
            | LogError::UnknownKind { .. }
            | LogError::Content(ContentError::Newer { .. })
    );
    let way_out = if newer {
        ": use the version that wrote it, or a newer one"
    } else {
        ""
    };
    format!("cannot open the log: {}{way_out}", chain(error))
}

/// Beginning anew helps; what to say when nobody said that it may.
pub fn with_adopt(reason: &str, state_dir: &Path) -> String {
    format!(
        "{reason}. The copy is as it was. Start with --adopt: all is compared again, nothing equal is copied, and the old \
         log and index are kept in {}",
        show(&state_dir.join("divergence"))
    )
}

/// The notice that something was cut off the log's end. `ends_early`: an index knows of records that came after it.
pub fn cut(bytes: u64, ends_early: bool) -> String {
    if ends_early {
        return format!(
            "the log's end is lost; {bytes} bytes of a group without an end were cut off"
        );
    }
    format!("the log's torn tail was cut off ({bytes} bytes, never acknowledged)")
}

/// Log, contents and indexes move aside.
pub fn give_up_state(state_dir: &Path) -> std::io::Result<PathBuf> {
    let base = state_dir.join("divergence");
    std::fs::create_dir_all(&base)?;
    let aside = base.join(Stamp::now().to_string());
    std::fs::create_dir(&aside)?;
    forget_oldest(&base)?;
    // Positions and identities begin anew. First of all: what is kept needs the index as it was.
    parts::end(state_dir, Some(&state_dir.join("index")))?;
    for name in OF_ONE_LOG {
        match std::fs::rename(state_dir.join(name), aside.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(aside)
}

/// The log is to be given up for this, and no takeover explains it. Not being able to say so is no reason to stay apart.
pub fn note_fork(state_dir: &Path, what: &str) {
    let _ = RealDisk::open(state_dir).and_then(|disk| replace_file(&disk, FORK, what.as_bytes()));
}

fn followed(host: &str, tree: &[u8]) -> Vec<u8> {
    [host.as_bytes(), b"\0", tree].concat()
}

/// This tree of this host was followed here.
pub fn note_followed(state_dir: &Path, host: &str, tree: &[u8]) {
    if !was_followed(state_dir, host, tree) {
        let bytes = followed(host, tree);
        let _ = RealDisk::open(state_dir).and_then(|disk| replace_file(&disk, FOLLOWED, &bytes));
    }
}

/// And it was the last one.
pub fn was_followed(state_dir: &Path, host: &str, tree: &[u8]) -> bool {
    let read =
        RealDisk::open(state_dir).and_then(|disk| read_file(&disk, FOLLOWED, FOLLOWED_BYTES_MAX));
    read.is_ok_and(|bytes| bytes == followed(host, tree))
}

/// What was noted of logs that lie aside, the oldest first.
pub fn forks(state_dir: &Path) -> Vec<Fork> {
    let base = state_dir.join("divergence");
    let entries = std::fs::read_dir(&base).into_iter().flatten().flatten();
    let mut forks: Vec<Fork> = entries
        .filter_map(|entry| {
            let disk = RealDisk::open(&entry.path()).ok()?;
            let what = read_file(&disk, FORK, FORK_BYTES_MAX).ok()?;
            Some(Fork {
                aside: show(&entry.path()),
                what: String::from_utf8_lossy(&what).into_owned(),
            })
        })
        .collect();
    forks.sort_by(|a, b| a.aside.cmp(&b.aside));
    forks
}

/// Their names are times.
fn forget_oldest(base: &Path) -> std::io::Result<()> {
    let mut aside: Vec<PathBuf> = std::fs::read_dir(base)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    aside.sort();
    let over = aside.len().saturating_sub(ASIDE_MAX);
    aside
        .iter()
        .take(over)
        .try_for_each(std::fs::remove_dir_all)
}

/// Why the copy's rows and the log can't be of one history, if they can't. `None` for the log: there is none.
pub fn misfit(rows: &Index, log: Option<(&LogReader, [u8; 16])>) -> Option<String> {
    match (log, rows.mark()) {
        (None, None) => None,
        (None, Some(mark)) => Some(format!(
            "the log is lost, and the copy's index stands at {}",
            mark.position
        )),
        (Some((_, tree)), _) if rows.tree().is_some_and(|known| known != tree) => {
            Some("the copy's index and the log are of different trees".into())
        }
        (Some((reader, _)), None) => {
            let first = reader.first();
            (first.sequence > 1)
                .then(|| format!("the copy's index is lost, and the log begins only at {first}"))
        }
        (Some((reader, _)), Some(mark)) => match reader.head_at(mark.position) {
            Ok(Some(head)) if head == mark.head => None,
            Ok(_) | Err(LogError::Beyond { .. }) => Some(not_in_it(mark.position, reader)),
            Err(error) => Some(format!("the log can't be read: {}", chain(&error))),
        },
    }
}

fn not_in_it(position: Position, reader: &LogReader) -> String {
    let stands = format!("the log is damaged: the copy's index stands at {position}");
    match reader.tail().durable() {
        Some(end) if end.position < position => {
            format!("{stands}, and the log ends at {} already", end.position)
        }
        _ => format!("{stands}, which is not in it (any more)"),
    }
}

/// The notice that an index is made again.
pub fn rebuilt(error: &IndexError, aside: &Path) -> String {
    format!(
        "{}: it is made again, and the old one is kept as {}",
        chain(error),
        show(aside)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_aside_does_not_pile_up() {
        let state = tempfile::tempdir().unwrap();
        let mut last = PathBuf::new();
        for n in 0..ASIDE_MAX + 3 {
            std::fs::write(state.path().join("index"), n.to_string()).unwrap();
            last = give_up_state(state.path()).unwrap();
            // Their names are times.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let kept = std::fs::read_dir(state.path().join("divergence")).unwrap();
        assert_eq!(kept.count(), ASIDE_MAX);
        let newest = std::fs::read_to_string(last.join("index")).unwrap();
        assert_eq!(newest, (ASIDE_MAX + 2).to_string());
    }
}
