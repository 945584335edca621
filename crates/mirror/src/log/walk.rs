//! Frame after frame through one segment, checksums and chain verified.

use std::io;

use mirror_core::codec::{CodecError, Frame, GENESIS, frame};
use mirror_core::{Digest, Position};

use super::End;
use super::window::Window;
use crate::planted;

/// What stands at an offset.
pub enum Step<'a> {
    Frame(Frame<'a>),
    /// A seal of this many bytes.
    Seal {
        stamp: u32,
        bytes: u64,
    },
    /// The limit is reached.
    End,
    /// The bytes are no frame, or end inside of one: a torn tail, or damage.
    Broken(&'static str),
    /// Intact, but can't stand here.
    Misplaced(&'static str),
    Newer(u32),
}

/// Where a walk is: an offset, and what comes before it.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub offset: u64,
    pub end: Option<End>,
}

impl Place {
    pub fn head(&self) -> Digest {
        self.end.map_or(GENESIS, |end| end.head)
    }

    /// Looks at what stands here. Nothing at or after `limit` is looked at.
    pub fn look<'a>(&self, window: &'a mut Window, limit: u64) -> io::Result<Step<'a>> {
        if self.offset >= limit {
            return Ok(Step::End);
        }
        let header = window.at(self.offset, frame::HEADER_BYTES, limit)?;
        let need = Frame::length(header).unwrap_or(frame::HEADER_BYTES);
        let frame = match Frame::parse(window.at(self.offset, need, limit)?) {
            Ok(frame) => frame,
            Err(error) => return Ok(broken(error)),
        };
        if frame.is_seal() {
            let right = self
                .end
                .is_some_and(|end| end.position == frame.position && end.head == frame.head);
            return Ok(if right {
                Step::Seal {
                    stamp: frame.stamp,
                    bytes: frame.bytes.len() as u64,
                }
            } else {
                Step::Misplaced("the seal is of another record")
            });
        }
        if !follows(self.end.map(|end| end.position), &frame) {
            return Ok(Step::Misplaced("the position does not follow"));
        }
        if !frame.continues(&self.head()) && !planted::is("chain_unchecked") {
            return Ok(Step::Misplaced("the hash chain is broken"));
        }
        Ok(Step::Frame(frame))
    }

    /// The place after a frame.
    pub fn after(&self, frame: &Frame<'_>) -> Place {
        let end = End {
            position: frame.position,
            head: frame.head,
        };
        Place {
            offset: self.offset + frame.bytes.len() as u64,
            end: Some(end),
        }
    }
}

fn broken(error: CodecError) -> Step<'static> {
    match error {
        CodecError::Torn { .. } => Step::Broken("a record is cut off"),
        CodecError::Newer { version } => Step::Newer(u32::from(version)),
        CodecError::Corrupt(what) | CodecError::BadValue(what) | CodecError::TooLarge(what) => {
            Step::Broken(what)
        }
        CodecError::ChainBroken | CodecError::UnknownKind { .. } => {
            Step::Broken("a record is damaged")
        }
    }
}

/// Sequences count up by one; only the record that opens an epoch may raise it.
pub fn follows(prev: Option<Position>, frame: &Frame<'_>) -> bool {
    follows_position(prev, frame.position, frame.kind == frame::KIND_OPEN)
}

pub fn follows_position(prev: Option<Position>, position: Position, opens: bool) -> bool {
    match prev {
        None => position.sequence == 1 && opens,
        Some(prev) => {
            let epoch = if opens {
                position.epoch > prev.epoch
            } else {
                position.epoch == prev.epoch
            };
            epoch && prev.sequence.checked_add(1) == Some(position.sequence)
        }
    }
}
