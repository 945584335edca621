//! Reading: whole groups, in order, verified, as far as they are durable.

use std::ops::Bound;
use std::sync::Arc;

use mirror_core::codec::{self, CodecError};
use mirror_core::model::GROUP_RECORDS_MAX;
use mirror_core::{Digest, Position, Record};

use super::recover::{self, damaged};
use super::segment::{self, Header};
use super::walk::{Place, Step};
use super::window::Window;
use super::{ContentStore, End, GROUP_BYTES_MAX, LogError, Shared, Tail, io_error, lock};

/// A whole group, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub records: Vec<Record>,
    /// The stored frames of the records, one after the other.
    pub frames: Vec<u8>,
    /// The head after the last record.
    pub end: End,
}

impl Group {
    /// Appends the frames as they travel, without local bodies.
    pub fn to_wire(&self, out: &mut Vec<u8>) {
        let mut rest = self.frames.as_slice();
        while !rest.is_empty() {
            // The frames were verified when they were read, and only become shorter.
            let Ok(len) = codec::strip(rest, out) else {
                break;
            };
            rest = rest.get(len..).unwrap_or_default();
        }
    }
}

/// Reads what is durable. Clones are cheap.
#[derive(Clone)]
pub struct LogReader {
    pub(super) shared: Arc<Shared>,
}

impl LogReader {
    /// Groups after this position, which must be the last of its group; `None`: from the very beginning.
    pub fn cursor(&self, after: Option<Position>) -> Result<Cursor, LogError> {
        let cursor = self.cursor_from_first()?;
        match after {
            _ if cursor.position() == after => Ok(cursor),
            // The log does not begin at the beginning.
            None => Err(LogError::Pruned {
                first: self.first(),
            }),
            Some(after) => {
                let (segment, place, ends) = self.find(after)?.ok_or(LogError::Beyond { after })?;
                if ends {
                    self.cursor_at(segment, place)
                } else {
                    Err(LogError::Beyond { after })
                }
            }
        }
    }

    /// Groups from the first that is still there.
    pub fn cursor_from_first(&self) -> Result<Cursor, LogError> {
        let header = self.first_header();
        self.cursor_at(
            header.first,
            Place {
                offset: segment::HEADER_BYTES as u64,
                end: header.prev,
            },
        )
    }

    /// The head after this record, if it is in the log and durable. Known, too, of the record before the log's first.
    pub fn head_at(&self, position: Position) -> Result<Option<Digest>, LogError> {
        match self.first_header().prev {
            Some(end) if end.position == position => Ok(Some(end.head)),
            _ => match self.find(position) {
                Ok(found) => Ok(found.map(|(_, place, _)| place.head())),
                Err(LogError::Pruned { .. }) => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// The first record that is still there, or the first that is to come.
    pub fn first(&self) -> Position {
        self.first_header().first
    }

    pub fn tree(&self) -> [u8; 16] {
        self.shared.tree
    }

    pub fn content(&self) -> ContentStore {
        self.shared.content.clone()
    }

    pub fn tail(&self) -> Tail {
        self.shared.tail.clone()
    }

    fn first_header(&self) -> Header {
        let segments = lock(&self.shared.segments);
        // A log always has a segment.
        segments.values().next().copied().unwrap_or(Header {
            tree: self.shared.tree,
            first: Position {
                epoch: 1,
                sequence: 1,
            },
            prev: None,
            content_from: 0,
            time_ns: 0,
        })
    }

    /// The segment and the place after this durable record, and whether it ends its group.
    fn find(&self, position: Position) -> Result<Option<(Position, Place, bool)>, LogError> {
        let (current, durable_bytes, durable) = self.shared.tail.view();
        if durable.is_none_or(|end| end.position < position) {
            return Ok(None);
        }
        // Where the writer stands is known without a walk.
        if let Some(end) = durable.filter(|end| end.position == position) {
            let place = Place {
                offset: durable_bytes,
                end: Some(end),
            };
            return Ok(Some((current, place, true)));
        }
        let header = lock(&self.shared.segments)
            .range(..=position)
            .next_back()
            .map(|(_, header)| *header);
        let Some(header) = header else {
            return Err(LogError::Pruned {
                first: self.first(),
            });
        };
        let name = segment::name(header.first);
        let file = recover::open(&*self.shared.disk, header.first)?;
        let limit = match header.first == current {
            true => durable_bytes,
            false => file.len().map_err(|error| io_error("read", &name, error))?,
        };
        let mut window = Window::new(file);
        let mut place = Place {
            offset: segment::HEADER_BYTES as u64,
            end: header.prev,
        };
        loop {
            match place
                .look(&mut window, limit)
                .map_err(|error| io_error("read", &name, error))?
            {
                Step::Frame(frame) => {
                    let (here, ends) = (frame.position, frame.is_end());
                    place = place.after(&frame);
                    if here == position {
                        return Ok(Some((header.first, place, ends)));
                    }
                    if here > position {
                        return Ok(None);
                    }
                }
                Step::Seal { bytes, .. } => place.offset += bytes,
                Step::End => return Ok(None),
                Step::Broken(what) | Step::Misplaced(what) => {
                    return Err(damaged(header.first, place.offset, what));
                }
                Step::Newer(version) => {
                    return Err(LogError::Newer {
                        segment: name,
                        version,
                    });
                }
            }
        }
    }

    fn cursor_at(&self, first: Position, place: Place) -> Result<Cursor, LogError> {
        let window = Window::new(recover::open(&*self.shared.disk, first)?);
        Ok(Cursor {
            shared: self.shared.clone(),
            segment: first,
            window,
            place,
        })
    }
}

/// Where a [`Cursor`] stands.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    segment: Position,
    place: Place,
}

#[cfg(test)]
impl Default for Mark {
    fn default() -> Mark {
        let segment = Position {
            epoch: 1,
            sequence: 1,
        };
        let place = Place {
            offset: 0,
            end: None,
        };
        Mark { segment, place }
    }
}

/// Reads whole groups, following segments and the durable end; verifies checksums and chain. After an error it stands
/// where it stood.
pub struct Cursor {
    shared: Arc<Shared>,
    segment: Position,
    window: Window,
    place: Place,
}

impl Cursor {
    /// The last record returned, or where the cursor began.
    pub fn position(&self) -> Option<Position> {
        self.place.end.map(|end| end.position)
    }

    /// The head after [`Cursor::position`].
    pub fn end(&self) -> Option<End> {
        self.place.end
    }

    /// Where it stands, for another cursor of the same log.
    pub fn mark(&self) -> Mark {
        Mark {
            segment: self.segment,
            place: self.place,
        }
    }

    /// Stands where another cursor of the same log stood.
    pub fn go_to(&mut self, mark: &Mark) -> Result<(), LogError> {
        if mark.segment != self.segment {
            self.window = Window::new(recover::open(&*self.shared.disk, mark.segment)?);
            self.segment = mark.segment;
        }
        self.place = mark.place;
        Ok(())
    }

    /// The next durable group; `None`: nothing more yet.
    pub fn next_group(&mut self) -> Result<Option<Group>, LogError> {
        loop {
            let (current, durable_bytes, _) = self.shared.tail.view();
            let limit = if self.segment == current {
                durable_bytes
            } else {
                self.window
                    .file_len()
                    .map_err(|error| io_error("read", &segment::name(self.segment), error))?
            };
            if let Some(group) = self.read_group(limit)? {
                return Ok(Some(group));
            }
            if self.segment == current || !self.next_segment()? {
                return Ok(None);
            }
        }
    }

    /// Goes on to the segment after this one, which must follow it.
    fn next_segment(&mut self) -> Result<bool, LogError> {
        let later = (Bound::Excluded(self.segment), Bound::Unbounded);
        let next = lock(&self.shared.segments)
            .range(later)
            .next()
            .map(|(_, header)| *header);
        let Some(header) = next else {
            return Ok(false);
        };
        let prev = header.prev.map(|end| end.position);
        if prev != self.position() {
            // Pruned from under us, or a segment in between is missing.
            let first = lock(&self.shared.segments)
                .keys()
                .next()
                .copied()
                .unwrap_or(header.first);
            return Err(if header.first == first {
                LogError::Pruned { first }
            } else {
                damaged(
                    header.first,
                    0,
                    "the segment does not follow the one before",
                )
            });
        }
        if header.prev.map(|end| end.head) != self.place.end.map(|end| end.head) {
            return Err(damaged(header.first, 0, "the hash chain is broken"));
        }
        self.window = Window::new(recover::open(&*self.shared.disk, header.first)?);
        self.segment = header.first;
        self.place.offset = segment::HEADER_BYTES as u64;
        Ok(true)
    }

    fn read_group(&mut self, limit: u64) -> Result<Option<Group>, LogError> {
        let segment = self.segment;
        let mut place = self.place;
        let mut records = Vec::new();
        let mut frames = Vec::new();
        loop {
            let step = place.look(&mut self.window, limit);
            match step.map_err(|error| io_error("read", &segment::name(segment), error))? {
                Step::Frame(frame) => {
                    let record = codec::record(&frame).map_err(|error| match error {
                        CodecError::UnknownKind { kind } => LogError::UnknownKind {
                            segment: segment::name(segment),
                            offset: place.offset,
                            kind,
                        },
                        CodecError::BadValue(what) | CodecError::TooLarge(what) => {
                            damaged(segment, place.offset, what)
                        }
                        _ => damaged(segment, place.offset, "the record can't be read"),
                    })?;
                    if records.len() >= GROUP_RECORDS_MAX || frames.len() > GROUP_BYTES_MAX {
                        return Err(damaged(segment, place.offset, "a group is too large"));
                    }
                    frames.extend_from_slice(frame.bytes);
                    place = place.after(&frame);
                    let end = record.end;
                    records.push(record);
                    if let Some(last) = place.end.filter(|_| end) {
                        self.place = place;
                        return Ok(Some(Group {
                            records,
                            frames,
                            end: last,
                        }));
                    }
                }
                Step::Seal { bytes, .. } if records.is_empty() => {
                    place.offset += bytes;
                    self.place = place;
                }
                Step::End if records.is_empty() => return Ok(None),
                Step::Seal { .. } | Step::End => {
                    return Err(damaged(segment, place.offset, "the group has no end"));
                }
                Step::Broken(what) | Step::Misplaced(what) => {
                    return Err(damaged(segment, place.offset, what));
                }
                Step::Newer(version) => {
                    return Err(LogError::Newer {
                        segment: segment::name(segment),
                        version,
                    });
                }
            }
        }
    }
}
