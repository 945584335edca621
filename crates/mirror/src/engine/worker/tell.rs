//! The log's records as lines for people: `mirrord log`.
//!
//! A record names a directory by its id; what path that has is asked of the rows as they are now.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mirror_core::record::Note;
use mirror_core::{At, Change, Kind, ObjectId, Record, Rows, Who};

use super::super::control::{ControlError, LogLine};
use super::super::status::{PathText, Stamp};
use super::capture::Live;
use super::daemon::Host;
use crate::capture::kernel::trail;
use crate::log::{Cursor, Waited};

/// At most so many are told of what was.
const LINES_MAX: usize = 100_000;
const NAP: Duration = Duration::from_millis(200);

impl Host {
    /// The last `lines` records, and with `follow` those that come, until `each` says false.
    pub(super) fn tell_log(
        &self,
        lines: usize,
        follow: bool,
        each: &mut dyn FnMut(LogLine) -> bool,
    ) -> Result<(), ControlError> {
        let failed = |e: crate::log::LogError| ControlError::Failed(crate::cli::exit::chain(&e));
        let Some(live) = self.live() else {
            return Err(ControlError::Busy("capture does not run now".into()));
        };
        let lines = lines.min(LINES_MAX);
        let mut cursor = live.open.reader.cursor_from_first().map_err(failed)?;
        let mut last: VecDeque<Record> = VecDeque::new();
        while let Some(group) = cursor.next_group().map_err(failed)? {
            last.extend(group.records);
            let over = last.len().saturating_sub(lines);
            last.drain(..over);
        }
        for record in last {
            if !each(line(&live, &record)) {
                return Ok(());
            }
        }
        if follow {
            told(live, cursor, each)
        } else {
            Ok(())
        }
    }
}

fn told(
    live: Live,
    mut cursor: Cursor,
    each: &mut dyn FnMut(LogLine) -> bool,
) -> Result<(), ControlError> {
    loop {
        let failed = |e: crate::log::LogError| ControlError::Failed(crate::cli::exit::chain(&e));
        while let Some(group) = cursor.next_group().map_err(failed)? {
            for record in &group.records {
                if !each(line(&live, record)) {
                    return Ok(());
                }
            }
        }
        let deadline = Instant::now() + NAP;
        let waited = live
            .open
            .reader
            .tail()
            .wait_past(cursor.position(), deadline);
        if matches!(waited, Waited::Stopped(_)) {
            return Err(ControlError::Busy("capture stopped".into()));
        }
        // Nothing is said for long: whether anybody listens is seen at the next line, or by the server's end.
        if !each(LogLine::default()) {
            return Ok(());
        }
    }
}

fn line(live: &Live, record: &Record) -> LogLine {
    let path = |at: &At| Some(path(live, at));
    let (op, at, to) = match &record.change {
        Change::Open { .. } => ("open", None, None),
        Change::Create { at, state, .. } => {
            let op = match state.kind {
                Kind::Dir => "mkdir",
                Kind::File(_) => "create",
                Kind::Symlink { .. } => "symlink",
                _ => "special",
            };
            (op, path(at), None)
        }
        Change::Link { at, .. } => ("link", path(at), None),
        Change::Unlink { at, .. } => ("unlink", path(at), None),
        Change::Move { from, to, .. } => ("move", path(from), path(to)),
        Change::Update {
            at, meta, content, ..
        } => {
            let op = match (content, meta) {
                (Some(_), _) => "write",
                _ => "meta",
            };
            let root = || Some(PathText::new(b"."));
            (op, at.as_ref().map_or_else(root, path), None)
        }
        Change::Void { .. } => ("void", None, None),
        Change::Note(note) => {
            let op = match note {
                Note::Overflow => "overflow",
                Note::ScanBegin => "scan begins",
                Note::ScanEnd => "scan ends",
                Note::Hold => "hold",
                Note::Release => "release",
                Note::Unknown => "note",
            };
            (op, None, None)
        }
    };
    LogLine {
        position: Some(record.position),
        at: Some(Stamp::from_ns(record.time_ns)),
        op: op.into(),
        path: at,
        to,
        who: record.who.as_ref().map(who),
    }
}

fn who(who: &Who) -> String {
    let mut parts = Vec::new();
    if let Some(uid) = who.uid {
        parts.push(format!("uid={uid}"));
    }
    if let Some(pid) = who.pid {
        parts.push(format!("pid={pid}"));
    }
    if let Some(exe) = &who.exe {
        parts.push(format!("exe={}", mirror_core::escape(exe)));
    }
    parts.join(" ")
}

fn path(live: &Live, at: &At) -> PathText {
    let rows = live.index.read().unwrap_or_else(PoisonError::into_inner);
    let mut bytes = Vec::new();
    let known = at.parent == ObjectId::ROOT || matches!(rows.object(at.parent), Ok(Some(_)));
    match trail(&*rows, at.parent) {
        Ok(Some(names)) if known => {
            for name in names {
                bytes.extend_from_slice(name.as_bytes());
                bytes.push(b'/');
            }
        }
        // It was removed, or moved away, since.
        _ => bytes.extend_from_slice(b".../"),
    }
    bytes.extend_from_slice(at.name.as_bytes());
    PathText::new(&bytes)
}
