//! Opening: finds where the log ends, cuts what a crash left behind it, and names any other damage.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use mirror_core::Position;
use mirror_core::codec::{Frame, frame};

use super::segment::{self, BadHeader, Header};
use super::walk::{Place, Step};
use super::window::Window;
use super::{End, LogError, io_error};
use crate::disk::{Disk, DiskFile};
use crate::planted;

/// The log as it was found.
pub struct Found {
    pub segments: BTreeMap<Position, Header>,
    /// The last segment, open, and its length, all durable.
    pub file: Arc<dyn DiskFile>,
    pub len: u64,
    pub end: Option<End>,
    pub time_ns: u64,
    /// The last thing in the segment is a seal.
    pub sealed: bool,
    pub cut_bytes: u64,
}

pub fn recover(disk: &dyn Disk) -> Result<Found, LogError> {
    let names = match disk.list(segment::DIR) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LogError::Absent),
        Err(error) => return Err(io_error("list", segment::DIR, error)),
    };
    // A segment gets its name when its header is safe: what has none yet never held a record.
    for name in names.iter().filter(|name| name.ends_with(segment::UNBORN)) {
        let name = format!("{}/{name}", segment::DIR);
        disk.remove(&name)
            .map_err(|error| io_error("remove", &name, error))?;
    }
    let mut positions: Vec<Position> = names
        .iter()
        .filter_map(|name| segment::position(name))
        .collect();
    positions.sort_unstable();
    let mut segments = BTreeMap::new();
    for &first in &positions {
        let header = read_header(disk, first)?;
        if segments
            .values()
            .next()
            .is_some_and(|other: &Header| other.tree != header.tree)
        {
            return Err(damaged(first, 0, "it is of another tree"));
        }
        segments.insert(first, header);
    }
    let Some((&last, header)) = segments.last_key_value() else {
        return Err(LogError::Absent);
    };
    let header = *header;
    let mut found = scan(disk, last, &header)?;
    found.segments = segments;
    Ok(found)
}

pub fn damaged(segment: Position, offset: u64, what: &'static str) -> LogError {
    LogError::Damaged {
        segment: segment::name(segment),
        offset,
        what,
    }
}

pub fn open(disk: &dyn Disk, first: Position) -> Result<Arc<dyn DiskFile>, LogError> {
    let name = segment::name(first);
    disk.open(&name)
        .map_err(|error| io_error("open", &name, error))
}

pub fn read_header(disk: &dyn Disk, first: Position) -> Result<Header, LogError> {
    let mut bytes = vec![0; segment::HEADER_BYTES];
    let read = open(disk, first)?.read_at(0, &mut bytes);
    bytes.truncate(read.map_err(|error| io_error("read", &segment::name(first), error))?);
    let header = Header::parse(&bytes).map_err(|bad| match bad {
        BadHeader::Damaged(what) => damaged(first, 0, what),
        BadHeader::Newer(version) => LogError::Newer {
            segment: segment::name(first),
            version,
        },
    })?;
    if header.first != first {
        return Err(damaged(first, 0, "the header names another position"));
    }
    Ok(header)
}

/// Is there an intact frame from `from` on that was written when more than `durable` bytes were durable?
fn later_frames(
    window: &mut Window,
    first: Position,
    from: u64,
    len: u64,
    durable: u64,
) -> Result<bool, LogError> {
    let name = || segment::name(first);
    let mut offset = from;
    while offset < len {
        let bytes = window
            .at(offset, frame::MAGIC.len(), len)
            .map_err(|error| io_error("read", &name(), error))?;
        // Shorter than the magic: too short for a frame.
        let Some(last) = bytes.len().checked_sub(frame::MAGIC.len()) else {
            break;
        };
        let Some(at) = bytes
            .windows(frame::MAGIC.len())
            .position(|bytes| bytes == frame::MAGIC)
        else {
            offset += last as u64 + 1;
            continue;
        };
        offset += at as u64;
        let header = window
            .at(offset, frame::HEADER_BYTES, len)
            .map_err(|error| io_error("read", &name(), error))?;
        if let Ok(need) = Frame::length(header) {
            let bytes = window
                .at(offset, need, len)
                .map_err(|error| io_error("read", &name(), error))?;
            match Frame::parse(bytes) {
                Ok(frame) if u64::from(frame.stamp) > durable => return Ok(true),
                _ => {}
            }
        }
        offset += 1;
    }
    Ok(false)
}

/// Walks the last segment to the end of its last whole group and cuts there.
fn scan(disk: &dyn Disk, first: Position, header: &Header) -> Result<Found, LogError> {
    let file = open(disk, first)?;
    let name = segment::name(first);
    let read = |error| io_error("read", &segment::name(first), error);
    let len = file.len().map_err(read)?;
    let mut window = Window::new(file.clone());
    let mut place = Place {
        offset: segment::HEADER_BYTES as u64,
        end: header.prev,
    };
    let (mut group_end, mut sealed) = (place, false);
    let mut time_ns = header.time_ns;
    // The header was flushed before anything was written behind it.
    let mut durable = segment::HEADER_BYTES as u64;
    loop {
        match place.look(&mut window, len).map_err(read)? {
            Step::Frame(frame) => {
                durable = durable.max(u64::from(frame.stamp));
                time_ns = time_ns.max(frame.time_ns);
                place = place.after(&frame);
                if frame.is_end() {
                    (group_end, sealed) = (place, false);
                }
            }
            Step::Seal { stamp, bytes } => {
                durable = durable.max(u64::from(stamp));
                place.offset += bytes;
                (group_end, sealed) = (place, true);
            }
            Step::End => break,
            Step::Misplaced(what) => return Err(damaged(first, place.offset, what)),
            Step::Newer(version) => {
                return Err(LogError::Newer {
                    segment: name,
                    version,
                });
            }
            Step::Broken(what) => {
                let offset = place.offset;
                if !planted::is("damage_taken_for_a_torn_tail")
                    && later_frames(&mut window, first, offset + 1, len, offset)?
                {
                    return Err(damaged(first, offset, what));
                }
                break;
            }
        }
    }
    if durable > group_end.offset {
        return Err(damaged(first, group_end.offset, "the group has no end"));
    }
    if group_end.offset < len && !planted::is("torn_tail_kept") {
        file.truncate(group_end.offset)
            .map_err(|error| io_error("cut", &name, error))?;
    }
    // After a failed flush the kernel may show us bytes that are not on disk: write again what is not known to be.
    let mut offset = durable;
    while offset < group_end.offset {
        let bytes = window.at(offset, 1, group_end.offset).map_err(read)?;
        if bytes.is_empty() {
            return Err(damaged(first, offset, "the segment became shorter"));
        }
        file.write_at(offset, bytes)
            .map_err(|error| io_error("write", &name, error))?;
        offset += bytes.len() as u64;
    }
    file.flush()
        .map_err(|error| io_error("flush", &name, error))?;
    disk.flush_dir(segment::DIR)
        .map_err(|error| io_error("flush", segment::DIR, error))?;
    Ok(Found {
        segments: BTreeMap::new(),
        file,
        len: group_end.offset,
        end: group_end.end,
        time_ns,
        sealed,
        cut_bytes: len - group_end.offset,
    })
}
