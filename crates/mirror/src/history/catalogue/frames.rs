//! The frames of a segment, one after the other: what is intact, and what is not.

use std::io;
use std::sync::Arc;

use mirror_core::Digest;
use mirror_core::history::Moment;

use super::HEADER;
use crate::disk::DiskFile;
use crate::history::format::{self, FRAME, FrameKind};
use crate::history::keys::{Keys, Time};

const CHUNK: usize = 1 << 20;
const MAGIC: &[u8; 4] = b"FSMc";

/// A whole frame, header included. `None`: none that is intact stands there.
pub fn read_frame(file: &Arc<dyn DiskFile>, at: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; FRAME];
    if file.read_at(at, &mut bytes)? < FRAME {
        return Ok(None);
    }
    let Some(header) = format::header(&bytes) else {
        return Ok(None);
    };
    // No more is allocated than the file has.
    let left = file.len()?.saturating_sub(at + FRAME as u64);
    if header.body as u64 > left {
        return Ok(None);
    }
    bytes.resize(FRAME + header.body, 0);
    let got = file.read_at(at + FRAME as u64, &mut bytes[FRAME..])?;
    Ok((got == header.body && format::is_intact(&bytes)).then_some(bytes))
}

/// What stands in a segment from its beginning on.
pub struct Walked {
    pub keys: Keys,
    pub head: Digest,
    /// Where something else stands than what must be there.
    pub bad: Option<(u64, &'static str)>,
    /// The last group that is whole ends here, which is before `bad`.
    pub whole: u64,
}

/// A place that can't be read is as bad as one with other bytes.
pub fn is_damage(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::InvalidData || e.raw_os_error() == Some(libc::EIO)
}

pub fn walk(file: &Arc<dyn DiskFile>, len: u64) -> io::Result<Walked> {
    let mut head = [0; 32];
    file.read_at(32, &mut head)?;
    let mut walked = Walked {
        keys: Keys::default(),
        head: Digest(head),
        bad: None,
        whole: HEADER as u64,
    };
    let mut at = HEADER as u64;
    while at < len {
        match step(file, at, &mut walked) {
            Ok(Ok(next)) => at = next,
            Ok(Err(what)) => {
                walked.bad = Some((at, what));
                break;
            }
            Err(e) if is_damage(&e) => {
                walked.bad = Some((at, "it can't be read"));
                break;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(walked)
}

fn step(
    file: &Arc<dyn DiskFile>,
    at: u64,
    walked: &mut Walked,
) -> io::Result<Result<u64, &'static str>> {
    let Some(frame) = read_frame(file, at)? else {
        return Ok(Err("the frame is damaged"));
    };
    let Some(header) = format::header(&frame) else {
        return Ok(Err("the frame is damaged"));
    };
    if !format::continues(&frame, &walked.head) {
        return Ok(Err("it does not follow what is before it"));
    }
    if header.kind == FrameKind::Groups {
        let Ok(groups) = format::unpack(&frame[FRAME..]) else {
            return Ok(Err("a row can't be read"));
        };
        for (dated, offsets) in &groups {
            let group = &dated.group;
            for (row, offset) in group.rows.iter().zip(offsets) {
                let placed = format::Placed {
                    row,
                    moment: group.moment,
                    offset: *offset,
                };
                walked.keys.add(&placed, at as u32);
            }
            walked.keys.add_time(Time {
                moment: group.moment,
                there_ns: group.time_ns,
                here_ns: dated.here_ns,
                frame: at as u32,
            });
        }
    }
    walked.head = header.head;
    let next = at + frame.len() as u64;
    if !header.goes_on {
        walked.whole = next;
    }
    Ok(Ok(next))
}

/// The next place from here on where frames go on: one that is the last, or that the next one follows.
pub fn next_frame(file: &Arc<dyn DiskFile>, from: u64, len: u64) -> io::Result<Option<u64>> {
    let mut at = from;
    let mut buffer = vec![0; CHUNK];
    while at < len {
        let most = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        let got = match file.read_at(at, &mut buffer[..most]) {
            Ok(got) => got,
            Err(e) if is_damage(&e) => {
                // Perhaps only some of it.
                at += 4096;
                continue;
            }
            Err(e) => return Err(e),
        };
        for n in (0..got).filter(|n| buffer.get(*n..*n + 4).is_some_and(|found| found == MAGIC)) {
            if is_row(file, at + n as u64, len)? {
                return Ok(Some(at + n as u64));
            }
        }
        if got < most || got < 4 {
            break;
        }
        at += got as u64 - 3;
    }
    Ok(None)
}

/// Bytes of a file may look like a frame; no two of them are chained to what follows.
fn is_row(file: &Arc<dyn DiskFile>, at: u64, len: u64) -> io::Result<bool> {
    let read = |at| match read_frame(file, at) {
        Err(e) if is_damage(&e) => Ok(None),
        read => read,
    };
    let Some(frame) = read(at)? else {
        return Ok(false);
    };
    let next = at + frame.len() as u64;
    let Some(header) = format::header(&frame) else {
        return Ok(false);
    };
    let follows = read(next)?.is_some_and(|next| format::continues(&next, &header.head));
    Ok(next == len || follows)
}

/// What can be had of a damaged segment.
#[derive(Default)]
pub struct Salvage {
    /// Frames that are intact, in order, without those of a last group that is not whole.
    pub frames: Vec<u64>,
    /// Something is missing in between, or at the end.
    pub has_hole: bool,
    /// The first group after all that is lost, if one is left.
    pub known_from: Option<Moment>,
}

/// `head`: what the first frame must follow, if that is known.
pub fn salvage(
    file: &Arc<dyn DiskFile>,
    len: u64,
    mut head: Option<Digest>,
) -> io::Result<Salvage> {
    let mut found = Salvage::default();
    let (mut at, mut whole) = (HEADER as u64, 0);
    let mut after_hole = false;
    while at < len {
        let frame = match read_frame(file, at) {
            Err(e) if is_damage(&e) => None,
            read => read?,
        };
        let groups = frame.as_ref().and_then(|frame| {
            let header = format::header(frame)?;
            match header.kind {
                FrameKind::Groups => Some((header, format::unpack(&frame[FRAME..]).ok()?)),
                _ => Some((header, Vec::new())),
            }
        });
        let (Some(frame), Some((header, groups))) = (frame, groups) else {
            after_hole = true;
            (found.has_hole, found.known_from) = (true, None);
            match next_frame(file, at + 1, len)? {
                Some(next) => at = next,
                None => break,
            }
            head = None;
            continue;
        };
        let follows = head.is_none_or(|head| format::continues(&frame, &head));
        if std::mem::take(&mut after_hole) || !follows {
            found.has_hole = true;
            found.known_from = groups.first().map(|(dated, _)| dated.group.moment);
        }
        head = Some(header.head);
        found.frames.push(at);
        if !header.goes_on {
            whole = found.frames.len();
        }
        at += frame.len() as u64;
    }
    if whole < found.frames.len() {
        found.frames.truncate(whole);
        (found.has_hole, found.known_from) = (true, None);
    }
    Ok(found)
}
