//! What an adopted copy holds and the source does not: found once all else is equal, told, asked about, moved aside.
//!
//! Nothing is deleted, and without a yes nothing is moved. Until that is settled the rows say so ([`ADOPTING_KEY`]), so
//! that a mirror that was killed meanwhile asks again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mirror_core::Name;
use mirror_core::guard::{DIR_ENTRIES_MIN, DIR_PERCENT, Loss, judge};

use super::applying::{ApplyLoop, ApplyOrder};
use super::aside;
use super::event::{Event, RunError, Ui};
use super::options::MirrorOptions;
use super::service::pulse;
use super::session::show;
use super::status::PathText;
use crate::apply::{Difference, DifferenceKind};
use crate::filter::Filter;
use crate::index::{Index, IndexError};

/// Kept with the rows from the start of an adoption until its extras are settled.
pub const ADOPTING_KEY: &str = "adopting";
/// In the state directory: every extra entry as last found, one a line.
pub const LIST: &str = "extras.list";
/// With [`ADOPTING_KEY`]: whether somebody is asked.
const ASK: &[u8] = b"1";
const ASK_NOT: &[u8] = b"0";
/// How many are named at once.
const NAMED_MAX: usize = 10;

/// An adoption begins. `ask`: before anything moves aside.
pub fn begin(rows: &mut Index, ask: bool) -> Result<(), IndexError> {
    rows.meta_put(ADOPTING_KEY, if ask { ASK } else { ASK_NOT })?;
    // Also for who is killed before anything else is durable.
    rows.flush()
}

/// Whether one goes on, and then whether somebody is asked.
pub fn begun(rows: &Index) -> Result<Option<bool>, IndexError> {
    let value = rows.meta_get(ADOPTING_KEY)?;
    Ok(value.map(|value| value != ASK_NOT))
}

/// What the copy may hold though no record made it: entries that are left out now and were mirrored or adopted before.
pub struct LeftOut {
    filter: Filter,
    dst: PathBuf,
}

impl LeftOut {
    pub fn new(options: &MirrorOptions) -> Result<LeftOut, RunError> {
        Ok(LeftOut {
            filter: Filter::new(&options.ignore).map_err(|e| RunError::Usage(e.to_string()))?,
            dst: options.dst.clone(),
        })
    }

    pub fn has(&self, difference: &Difference) -> bool {
        let is_dir = || {
            let at = self.dst.join(OsStr::from_bytes(&difference.path));
            at.symlink_metadata().is_ok_and(|meta| meta.is_dir())
        };
        difference.what == DifferenceKind::Extra
            && !self.filter.is_empty()
            && self.filter.ignored(&difference.path, is_dir())
    }
}

/// What became of the extra entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extras {
    /// There is none (any more).
    None,
    /// They are where they were.
    Left(u64),
}

/// Finds the extras of the copy and moves them aside. `ask`: only after a yes.
pub fn settle(
    apply: &ApplyLoop,
    ui: &dyn Ui,
    options: &MirrorOptions,
    ask: bool,
) -> Result<Extras, RunError> {
    let state_dir = &options.state_dir;
    pulse::rest();
    let (found, differences) = crossbeam_channel::unbounded();
    let (done, verified) = crossbeam_channel::bounded(1);
    let _ = apply.orders.send(ApplyOrder::Verify {
        content: false,
        found,
        done,
    });
    let mut extras: Vec<Difference> = differences
        .iter()
        .filter(|difference| difference.what == DifferenceKind::Extra)
        .collect();
    match verified.recv() {
        Ok(Ok(())) => {}
        Ok(Err(text)) => return Err(RunError::Failed(anyhow::anyhow!("{text}"))),
        Err(_) => return Err(RunError::Failed(anyhow::anyhow!("apply stopped"))),
    }
    if extras.is_empty() {
        return finish(apply);
    }
    extras.sort_by(|a, b| a.path.cmp(&b.path));
    let total = extras.len() as u64;
    let list = state_dir.join(LIST);
    write_list(&list, &extras)
        .map_err(|e| RunError::Failed(anyhow::anyhow!("cannot write {}: {e}", show(&list))))?;
    ui.event(Event::Extras {
        total,
        sample: extras
            .iter()
            .take(NAMED_MAX)
            .map(|extra| PathText::new(&extra.path))
            .collect(),
        list: show(&list),
    });
    let adopted = show(&state_dir.join(aside::DIR));
    let it = if total == 1 { "it" } else { "them" };
    let ask = ask || (asks_for_many(options) && many(&options.dst, &extras));
    if ask && !ui.ask(&format!("Move {it} to {adopted}?")) {
        return Ok(Extras::Left(total));
    }
    let (done, answer) = crossbeam_channel::bounded(1);
    let _ = apply.orders.send(ApplyOrder::Repair {
        differences: extras,
        done,
    });
    let not_moved =
        |why: &str| RunError::Failed(anyhow::anyhow!("extras could not be moved aside: {why}"));
    match answer.recv() {
        Ok(Ok(_)) => {}
        Ok(Err(text)) => return Err(not_moved(&text)),
        Err(_) => return Err(not_moved("apply stopped")),
    }
    finish(apply)
}

fn asks_for_many(options: &MirrorOptions) -> bool {
    options.holds_mass_change()
}

/// So much that it would hold if it were removed.
fn many(dst: &Path, extras: &[Difference]) -> bool {
    let count = |path: &Path| aside::tally(path).map_or(0, |found| found.entries);
    let mut gone = 0;
    let mut dirs: BTreeMap<Name, Loss> = BTreeMap::new();
    for extra in extras {
        let path = dst.join(OsStr::from_bytes(&extra.path));
        let is_dir = path.symlink_metadata().is_ok_and(|found| found.is_dir());
        let below = if is_dir { count(&path) } else { 0 };
        gone += 1 + below;
        let mut names = extra.path.splitn(2, |byte| *byte == b'/');
        let first = names.next().and_then(|first| Name::new(first).ok());
        let Some(first) = first else { continue };
        let inside = names.next().is_some();
        if inside || is_dir {
            dirs.entry(first).or_default().gone += below + u64::from(inside);
        }
    }
    for (name, loss) in &mut dirs {
        loss.before = match loss.gone >= DIR_ENTRIES_MIN * DIR_PERCENT / 100 {
            true => count(&dst.join(OsStr::from_bytes(name.as_bytes()))),
            false => u64::MAX,
        };
    }
    let before = if gone >= DIR_ENTRIES_MIN {
        count(dst)
    } else {
        u64::MAX
    };
    judge(Loss { before, gone }, &dirs).is_some()
}

/// From now on it is a mirror as any other.
fn finish(apply: &ApplyLoop) -> Result<Extras, RunError> {
    let (done, answer) = crossbeam_channel::bounded(1);
    let _ = apply.orders.send(ApplyOrder::Adopted(done));
    match answer.recv() {
        Ok(Ok(())) => Ok(Extras::None),
        Ok(Err(text)) => Err(RunError::Failed(anyhow::anyhow!("{text}"))),
        Err(_) => Err(RunError::Failed(anyhow::anyhow!("apply stopped"))),
    }
}

fn write_list(list: &Path, extras: &[Difference]) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(list)?;
    let mut out = io::BufWriter::new(file);
    for extra in extras {
        writeln!(out, "{}", PathText::new(&extra.path))?;
    }
    out.flush()
}
