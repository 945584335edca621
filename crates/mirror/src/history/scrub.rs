//! Reads old versions again and compares them with what the catalogue says their bytes were. Beside whoever keeps them; a
//! damaged one is made again from another version with the same bytes, or set aside: then it is not kept any more.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use mirror_core::history::{Moment, Was};
use mirror_core::{Content, Digest};

use super::format::Dated;
use super::slots::{self, Slot, Slots};
use super::{HistoryError, Result, catalogue};
use crate::apply::{content, same_bytes};
use crate::disk::Disk;
use crate::sys::{Errno, target};

/// Where damaged versions go, below the history's directory.
const ASIDE: &str = "damaged";
const BESIDE: &[u8] = b"made-again";

/// A version whose bytes are not its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    pub slot: Slot,
    pub end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It stands there as it is.
    Left,
    Repaired,
    /// Nothing else has its bytes.
    SetAside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scrubbed {
    pub versions: u64,
    pub bytes: u64,
}

/// Reads all versions, oldest first, until `go_on` is false.
pub fn scrub(
    disk: &dyn Disk,
    state_dir: &Path,
    repair: bool,
    go_on: &mut dyn FnMut() -> bool,
    each: &mut dyn FnMut(Damaged),
) -> Result<Scrubbed> {
    let mut slots = Slots::open(state_dir).map_err(HistoryError::io("open"))?;
    let mut done = Scrubbed::default();
    let mut bad: BTreeMap<Slot, Content> = BTreeMap::new();
    let mut failed = None;
    let read = catalogue::read_all(disk, &mut |dated| {
        for (slot, content) in ended(dated) {
            match is_right(&slots, slot, &content, go_on) {
                Ok(None) => {}
                Ok(Some(right)) => {
                    done.versions += 1;
                    done.bytes += content.stored_bytes();
                    if !right {
                        bad.insert(slot, content);
                    }
                }
                Err(e) => failed = Some(e),
            }
        }
        failed.is_none() && go_on()
    });
    read?;
    if let Some(e) = failed {
        return Err(HistoryError::io("read")(e));
    }
    // Who else has the same bytes?
    let mut sources: BTreeMap<[u8; 32], Slot> = BTreeMap::new();
    if repair && !bad.is_empty() {
        let wanted: Vec<Digest> = bad.values().map(|content| content.digest).collect();
        catalogue::read_all(disk, &mut |dated| {
            for (slot, content) in ended(dated) {
                let known = sources.contains_key(&content.digest.0);
                if !known && wanted.contains(&content.digest) && !bad.contains_key(&slot) {
                    let right = is_right(&slots, slot, &content, &mut || true);
                    if let Ok(Some(true)) = right {
                        sources.insert(content.digest.0, slot);
                    }
                }
            }
            go_on()
        })?;
    }
    for (slot, content) in bad {
        let end = match (repair, sources.get(&content.digest.0)) {
            (false, _) => End::Left,
            (true, Some(from)) => {
                make_again(&mut slots, *from, slot, &content)
                    .map_err(HistoryError::io("repair"))?;
                End::Repaired
            }
            (true, None) => {
                set_aside(state_dir, slot).map_err(HistoryError::io("set aside in"))?;
                End::SetAside
            }
        };
        each(Damaged { slot, end });
    }
    Ok(done)
}

/// Versions that end with a group.
fn ended(dated: Dated) -> Vec<(Slot, Content)> {
    let until: Moment = dated.group.moment;
    let rows = dated.group.rows.into_iter();
    let ended = rows.filter_map(|row| match row.was {
        Was::Object {
            object,
            state,
            then,
            ..
        } if then.ends_bytes() => {
            let content = state.kind.content()?.clone();
            Some((Slot { until, object }, content))
        }
        _ => None,
    });
    ended
        .filter(|(_, content)| content.stored_bytes() > 0)
        .collect()
}

/// `None`: it is not kept, or nobody wants to know any more.
fn is_right(
    slots: &Slots,
    slot: Slot,
    content: &Content,
    go_on: &mut dyn FnMut() -> bool,
) -> io::Result<Option<bool>> {
    let file = match slots.open_file(slot) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::IO) => return Ok(Some(false)),
        Err(e) => return Err(e.into()),
    };
    let mut stopped = false;
    let same = same_bytes(&file, content, &mut |_| {
        stopped |= !go_on();
        !stopped
    });
    match same {
        _ if stopped => Ok(None),
        Ok(same) => Ok(Some(same)),
        Err(Errno::IO) => Ok(Some(false)),
        Err(e) => Err(e.into()),
    }
}

fn make_again(slots: &mut Slots, from: Slot, to: Slot, content: &Content) -> io::Result<()> {
    let mut bytes = content::RangeReader::new(slots.open_file(from)?, content);
    let (dir, name) = slots.place(to)?;
    match target::unlink(&dir, BESIDE) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let file = target::create_file(&dir, BESIDE)?;
    match content::write(&file, content, &mut bytes) {
        Ok(()) => {}
        Err(content::WriteError::Write(e)) => return Err(e.into()),
        Err(content::WriteError::Read(e)) => return Err(e),
        Err(content::WriteError::Different) => {
            return Err(io::Error::other("the other copy changed meanwhile"));
        }
    }
    rustix::fs::fsync(&file)?;
    target::rename(&dir, BESIDE, &dir, &name)?;
    rustix::fs::fsync(&dir)?;
    Ok(())
}

fn set_aside(state_dir: &Path, slot: Slot) -> io::Result<()> {
    let aside = state_dir.join(slots::DIR).join(ASIDE);
    std::fs::create_dir_all(&aside)?;
    let from = state_dir.join(slot.path());
    let name = from.file_name().unwrap_or_default();
    std::fs::rename(&from, aside.join(name))
}
