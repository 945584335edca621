//! Taking over another host's records as they are.

use mirror_core::codec::{self, CodecError, Frame, GENESIS};
use mirror_core::model::GROUP_RECORDS_MAX;
use mirror_core::{ContentRef, Local, Position, Record};

use super::{End, Log, LogError, walk};

/// What the local body of a record is to say.
type LocalOf<'a> = &'a mut dyn FnMut(&Record) -> (Option<Local>, Option<ContentRef>);

impl Log {
    /// Appends whole groups of another host's records, positions and times unchanged.
    pub fn append_records(&mut self, records: &[Record]) -> Result<(), LogError> {
        if let Some(last) = records.last().filter(|record| !record.end) {
            return Err(LogError::Refused {
                position: last.position,
                what: "its group has no end",
            });
        }
        for group in records.split_inclusive(|record| record.end) {
            self.append_group(group)?;
        }
        Ok(())
    }

    /// Appends whole groups of another host's frames as they came from the wire, unknown fields included; checksum,
    /// chain and order are verified before anything is appended. `local` says what to store in each record's local
    /// body.
    pub fn append_frames(
        &mut self,
        frames: &[u8],
        local: LocalOf<'_>,
    ) -> Result<Vec<Record>, LogError> {
        self.alive()?;
        let mut groups: Vec<Vec<(Frame<'_>, Record)>> = Vec::new();
        let (mut rest, mut end, mut ended) = (frames, self.end, true);
        while !rest.is_empty() {
            let position = end.map_or(
                Position {
                    epoch: 1,
                    sequence: 1,
                },
                |end| end.position,
            );
            let frame = Frame::parse(rest).map_err(|error| refused(position, error))?;
            rest = rest.get(frame.bytes.len()..).unwrap_or_default();
            let record = codec::record(&frame).map_err(|error| refused(frame.position, error))?;
            if !walk::follows(end.map(|end| end.position), &frame) {
                return Err(LogError::Refused {
                    position: frame.position,
                    what: "the position does not follow",
                });
            }
            if !frame.continues(&end.map_or(GENESIS, |end| end.head)) {
                return Err(LogError::Refused {
                    position: frame.position,
                    what: "the hash chain is broken",
                });
            }
            end = Some(End {
                position: frame.position,
                head: frame.head,
            });
            if ended {
                groups.push(Vec::new());
            }
            ended = frame.is_end();
            if let Some(group) = groups.last_mut() {
                group.push((frame, record));
                if group.len() > GROUP_RECORDS_MAX {
                    return Err(LogError::TooLarge("a group of records"));
                }
            }
        }
        if let Some(end) = end.filter(|_| !ended) {
            return Err(LogError::Refused {
                position: end.position,
                what: "its group has no end",
            });
        }
        let mut records = Vec::new();
        for group in groups {
            let mut group = group;
            for (_, record) in &mut group {
                (record.local, record.content) = local(record);
            }
            let Some((first, _)) = group.first() else {
                continue;
            };
            let (first, time_ns) = (first.position, first.time_ns);
            self.put_group(
                first,
                time_ns,
                group.iter().map(|(_, record)| record),
                |stamp, out| {
                    let mut end = None;
                    for (frame, record) in &group {
                        codec::attach_stamped(
                            frame,
                            record.local.as_ref(),
                            record.content.as_ref(),
                            stamp,
                            out,
                        )
                        .map_err(|error| refused(record.position, error))?;
                        end = Some(End {
                            position: frame.position,
                            head: frame.head,
                        });
                    }
                    Ok(end)
                },
            )?;
            records.extend(group.into_iter().map(|(_, record)| record));
        }
        Ok(records)
    }
}

pub(super) fn refused(position: Position, error: CodecError) -> LogError {
    let what = match error {
        CodecError::Torn { .. } => "it is cut off",
        CodecError::ChainBroken => "the hash chain is broken",
        CodecError::Newer { .. } => "it is of a newer format version",
        CodecError::UnknownKind { .. } => "it is of an unknown kind that must be understood",
        CodecError::Corrupt(what) | CodecError::BadValue(what) | CodecError::TooLarge(what) => what,
    };
    LogError::Refused { position, what }
}
