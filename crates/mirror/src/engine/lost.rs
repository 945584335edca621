//! State that can't be used any more: which it is, and the way out, for people; and how it is put aside.
//!
//! A damaged log is never cut or skipped over: with `--adopt` it moves aside as it is, and all is compared again.

use std::path::{Path, PathBuf};

use super::applying::chain;
use super::session::show;
use super::status::Stamp;
use crate::index::{Index, IndexError};
use crate::log::{ContentError, LogError, LogReader};

/// Files and directories of a mirror's state that are of one log.
const OF_ONE_LOG: [&str; 6] = [
    "index",
    "source-index",
    "applying",
    "made",
    "content",
    "log",
];

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

/// Log, contents and indexes move aside.
pub fn give_up_state(state_dir: &Path) -> std::io::Result<PathBuf> {
    let base = state_dir.join("divergence");
    std::fs::create_dir_all(&base)?;
    let aside = base.join(Stamp::now().to_string());
    std::fs::create_dir(&aside)?;
    for name in OF_ONE_LOG {
        match std::fs::rename(state_dir.join(name), aside.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(aside)
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
            Ok(_) | Err(LogError::Beyond { .. }) => Some(format!(
                "the log is damaged: the copy's index stands at {}, which is not in it (any more)",
                mark.position
            )),
            Err(error) => Some(format!("the log can't be read: {}", chain(&error))),
        },
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
