//! The frame: what can be said of a record's bytes without understanding its body.

use alloc::vec::Vec;

use super::{CodecError, FRAME_BYTES_MAX};
use crate::types::{Digest, Position};

pub const HEADER_BYTES: usize = 80;
pub const MAGIC: [u8; 4] = *b"FSMr";
pub const VERSION: u8 = 1;

/// Last record of its group.
pub const FLAG_END: u16 = 1;
/// A reader that does not know the kind must stop.
pub const FLAG_MUST_UNDERSTAND: u16 = 2;

pub const KIND_OPEN: u8 = 1;
pub const KIND_CREATE: u8 = 2;
pub const KIND_LINK: u8 = 3;
pub const KIND_UNLINK: u8 = 4;
pub const KIND_MOVE: u8 = 5;
pub const KIND_UPDATE: u8 = 6;
pub const KIND_VOID: u8 = 7;
pub const KIND_NOTE: u8 = 8;
/// Not a record: says in a segment that all before it was durable when it was written. Never travels.
pub const KIND_SEAL: u8 = 255;

const AT_VERSION: usize = 4;
const AT_SHARED: usize = 8;
const AT_LOCAL: usize = 12;
const AT_STAMP: usize = 16;
const AT_CRC: usize = 20;
const AT_HEAD: usize = 24;
/// Where the hashed part begins; `HEADER_BYTES` ends its fixed part.
const AT_HASHED: usize = 56;

/// An intact frame (length and checksum are right, the version is known), not yet understood.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub kind: u8,
    pub flags: u16,
    pub position: Position,
    pub time_ns: u64,
    /// The chain's head after this record.
    pub head: Digest,
    /// Bytes of the segment that were durable when this frame was written; 0 on the wire.
    pub stamp: u32,
    pub shared: &'a [u8],
    pub local: &'a [u8],
    /// The whole frame.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// How long the frame at the beginning of `bytes` says it is. Not verified yet, but within the limit.
    pub fn length(bytes: &[u8]) -> Result<usize, CodecError> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            let known = bytes.len().min(MAGIC.len());
            return if bytes.get(..known) == MAGIC.get(..known) {
                Err(CodecError::Torn { need: HEADER_BYTES })
            } else {
                Err(CodecError::Corrupt("no record begins here"))
            };
        };
        if header[..4] != MAGIC {
            return Err(CodecError::Corrupt("no record begins here"));
        }
        let shared_len = read_u32(header, AT_SHARED) as usize;
        let local_len = read_u32(header, AT_LOCAL) as usize;
        shared_len
            .checked_add(local_len)
            .and_then(|bodies| bodies.checked_add(HEADER_BYTES))
            .filter(|&len| len <= FRAME_BYTES_MAX)
            .ok_or(CodecError::Corrupt("the length of the record can't be"))
    }

    /// The frame at the beginning of `bytes`.
    pub fn parse(bytes: &'a [u8]) -> Result<Frame<'a>, CodecError> {
        let len = Frame::length(bytes)?;
        let Some(bytes) = bytes.get(..len) else {
            return Err(CodecError::Torn { need: len });
        };
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(CodecError::Torn { need: HEADER_BYTES });
        };
        if checksum(bytes) != read_u32(header, AT_CRC) {
            return Err(CodecError::Corrupt("the checksum of the record is wrong"));
        }
        let version = header[AT_VERSION];
        if version > VERSION {
            return Err(CodecError::Newer { version });
        }
        if version == 0 || header[5..8] != [0; 3] || header[59] != 0 {
            return Err(CodecError::BadValue("header"));
        }
        let (shared, local) = bytes[HEADER_BYTES..].split_at(read_u32(header, AT_SHARED) as usize);
        let mut head = [0; 32];
        head.copy_from_slice(&header[AT_HEAD..AT_HASHED]);
        Ok(Frame {
            flags: u16::from_le_bytes([header[56], header[57]]),
            kind: header[58],
            position: Position {
                epoch: read_u32(header, 60),
                sequence: read_u64(header, 64),
            },
            time_ns: read_u64(header, 72),
            head: Digest(head),
            stamp: read_u32(header, AT_STAMP),
            shared,
            local,
            bytes,
        })
    }

    pub fn is_end(&self) -> bool {
        self.flags & FLAG_END != 0
    }

    pub fn is_seal(&self) -> bool {
        self.kind == KIND_SEAL
    }

    /// Does this record follow one with this head?
    pub fn continues(&self, prev: &Digest) -> bool {
        let hashed = &self.bytes[AT_HASHED..HEADER_BYTES + self.shared.len()];
        // One call for short input is much faster than the streaming hasher.
        let mut short = [0u8; 1024];
        let len = prev.0.len() + hashed.len();
        let head = if let Some(buffer) = short.get_mut(..len) {
            buffer[..32].copy_from_slice(&prev.0);
            buffer[32..].copy_from_slice(hashed);
            blake3::hash(buffer)
        } else {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&prev.0).update(hashed);
            hasher.finalize()
        };
        *head.as_bytes() == self.head.0
    }

    /// Appends this frame with another local body and stamp; everything else stays as it is.
    pub fn copy_with(&self, local: &[u8], stamp: u32, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let start = out.len();
        let len = HEADER_BYTES + self.shared.len() + local.len();
        if len > FRAME_BYTES_MAX {
            return Err(CodecError::TooLarge("record"));
        }
        out.extend_from_slice(&self.bytes[..HEADER_BYTES + self.shared.len()]);
        out.extend_from_slice(local);
        let frame = &mut out[start..];
        write_u32(frame, AT_LOCAL, local.len() as u32);
        write_u32(frame, AT_STAMP, stamp);
        let crc = checksum(frame);
        write_u32(frame, AT_CRC, crc);
        Ok(())
    }
}

/// What goes into a header beside the lengths.
pub(super) struct Head {
    pub kind: u8,
    pub flags: u16,
    pub position: Position,
    pub time_ns: u64,
    pub stamp: u32,
}

/// Begins a frame: room for its header. Bodies are appended after it.
pub(super) fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; HEADER_BYTES]);
}

/// Fills in the header of the frame that begins at `start` and ends at the end of `out`; returns the new head.
pub(super) fn finish(
    out: &mut [u8],
    start: usize,
    shared_len: usize,
    head: &Head,
    prev: &Digest,
) -> Result<Digest, CodecError> {
    let frame = &mut out[start..];
    if frame.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLarge("record"));
    }
    let local_len = frame.len() - HEADER_BYTES - shared_len;
    fill(frame, shared_len, local_len, head);
    // The head's place holds the previous head while hashing, so that the hashed bytes lie in one piece.
    frame[AT_HEAD..AT_HASHED].copy_from_slice(&prev.0);
    let new = blake3::hash(&frame[AT_HEAD..HEADER_BYTES + shared_len]);
    frame[AT_HEAD..AT_HASHED].copy_from_slice(new.as_bytes());
    let crc = checksum(frame);
    write_u32(frame, AT_CRC, crc);
    Ok(Digest(*new.as_bytes()))
}

/// Appends a seal: all `stamp` bytes of the segment before it are durable, and end with this record.
pub fn seal(position: Position, head: &Digest, stamp: u32, out: &mut Vec<u8>) {
    let start = out.len();
    begin(out);
    let frame = &mut out[start..];
    let seal = Head {
        kind: KIND_SEAL,
        flags: 0,
        position,
        time_ns: 0,
        stamp,
    };
    fill(frame, 0, 0, &seal);
    frame[AT_HEAD..AT_HASHED].copy_from_slice(&head.0);
    let crc = checksum(frame);
    write_u32(frame, AT_CRC, crc);
}

fn fill(frame: &mut [u8], shared_len: usize, local_len: usize, head: &Head) {
    frame[..4].copy_from_slice(&MAGIC);
    frame[AT_VERSION] = VERSION;
    write_u32(frame, AT_SHARED, shared_len as u32);
    write_u32(frame, AT_LOCAL, local_len as u32);
    write_u32(frame, AT_STAMP, head.stamp);
    frame[AT_HASHED..58].copy_from_slice(&head.flags.to_le_bytes());
    frame[58] = head.kind;
    write_u32(frame, 60, head.position.epoch);
    frame[64..72].copy_from_slice(&head.position.sequence.to_le_bytes());
    frame[72..80].copy_from_slice(&head.time_ns.to_le_bytes());
}

fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..AT_CRC]), &frame[AT_CRC + 4..])
}

fn read_u32(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn read_u64(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn write_u32(frame: &mut [u8], at: usize, value: u32) {
    frame[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
