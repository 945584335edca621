//! Records as bytes: a frame of a fixed header, a shared body and a local body. Bytes: `docs/FORMAT.md`.
//!
//! The shared body and the header's identity (kind, flags, position, time) are hashed into the chain and are
//! equal on every host; the local body is this host's own and can be taken off or replaced. Nothing here reads a
//! file, and no byte sequence makes it panic or allocate more than a small multiple of its length.

use alloc::vec::Vec;

use crate::record::Record;
use crate::types::*;

mod body;
mod fields;
pub mod frame;
mod limits;
#[cfg(test)]
mod tests;

pub use frame::Frame;

/// The head hash before the first record of a log that begins at the beginning.
pub const GENESIS: Digest = Digest([0; 32]);
/// A whole frame. Bounds what a reader buffers before it has a checksum.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Names and values of all extended attributes of one object.
pub const XATTRS_BYTES_MAX: usize = 1 << 20;
/// The value of one extended attribute (the kernel's limit).
pub const XATTR_VALUE_BYTES_MAX: usize = 65536;
pub const SYMLINK_BYTES_MAX: usize = 4095;
pub const EXE_BYTES_MAX: usize = 4096;
pub const HANDLE_BYTES_MAX: usize = 128;
/// Bytes of one file: what the kernel can say.
pub const SIZE_MAX: u64 = i64::MAX as u64;
/// Data ranges of one sparse file.
pub const DATA_RANGES_MAX: usize = 1 << 20;

/// Why bytes are not a record, or a record can't be bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecError {
    /// The bytes end inside a frame that needs at least this many.
    Torn { need: usize },
    /// The bytes are not what was written: magic, length or checksum is wrong.
    Corrupt(&'static str),
    /// Intact, but does not continue the chain.
    ChainBroken,
    /// Intact, of a newer version.
    Newer { version: u8 },
    /// Intact, of a kind that must be understood and is not.
    UnknownKind { kind: u8 },
    /// A field holds what it can't hold.
    BadValue(&'static str),
    /// A field or the frame is larger than its limit.
    TooLarge(&'static str),
}

/// Appends the record's frame to `out` and returns the new head. `out` is untouched on error.
pub fn encode(record: &Record, prev: &Digest, out: &mut Vec<u8>) -> Result<Digest, CodecError> {
    encode_stamped(record, prev, 0, out)
}

/// [`encode`] for a log segment of which `stamp` bytes are durable.
pub fn encode_stamped(
    record: &Record,
    prev: &Digest,
    stamp: u32,
    out: &mut Vec<u8>,
) -> Result<Digest, CodecError> {
    let start = out.len();
    let result = encode_parts(record, prev, stamp, out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn encode_parts(
    record: &Record,
    prev: &Digest,
    stamp: u32,
    out: &mut Vec<u8>,
) -> Result<Digest, CodecError> {
    let start = out.len();
    frame::begin(out);
    body::put_shared(&record.change, record.who.as_ref(), out)?;
    let shared_len = out.len() - start - frame::HEADER_BYTES;
    body::put_local(record.local.as_ref(), record.content.as_ref(), out)?;
    let (kind, flags) = body::kind(&record.change);
    let head = frame::Head {
        kind,
        flags: if record.end {
            flags | frame::FLAG_END
        } else {
            flags
        },
        position: record.position,
        time_ns: record.time_ns,
        stamp,
    };
    frame::finish(out, start, shared_len, &head, prev)
}

/// The record at the beginning of `bytes`, the new head, and how many bytes it took.
pub fn decode(bytes: &[u8], prev: &Digest) -> Result<(Record, Digest, usize), CodecError> {
    let frame = Frame::parse(bytes)?;
    if !frame.continues(prev) {
        return Err(CodecError::ChainBroken);
    }
    Ok((record(&frame)?, frame.head, frame.bytes.len()))
}

/// What an intact frame says. Does not look at the chain.
pub fn record(frame: &Frame<'_>) -> Result<Record, CodecError> {
    let (change, who) = body::get_shared(frame.kind, frame.flags, frame.shared)?;
    let (local, content) = body::get_local(frame.local)?;
    Ok(Record {
        position: frame.position,
        time_ns: frame.time_ns,
        end: frame.is_end(),
        who,
        change,
        local,
        content,
    })
}

/// Copies the frame at the beginning of `frame` without its local body, as it travels. Returns the bytes consumed.
pub fn strip(frame: &[u8], out: &mut Vec<u8>) -> Result<usize, CodecError> {
    let frame = Frame::parse(frame)?;
    frame.copy_with(&[], 0, out)?;
    Ok(frame.bytes.len())
}

/// Copies the frame at the beginning of `frame` with this local body instead of its own. Returns the bytes consumed.
pub fn attach(
    frame: &[u8],
    local: Option<&Local>,
    content: Option<&ContentRef>,
    out: &mut Vec<u8>,
) -> Result<usize, CodecError> {
    let frame = Frame::parse(frame)?;
    attach_stamped(&frame, local, content, 0, out)?;
    Ok(frame.bytes.len())
}

/// [`attach`] for a log segment of which `stamp` bytes are durable.
pub fn attach_stamped(
    frame: &Frame<'_>,
    local: Option<&Local>,
    content: Option<&ContentRef>,
    stamp: u32,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let mut bytes = Vec::new();
    body::put_local(local, content, &mut bytes)?;
    frame.copy_with(&bytes, stamp, out)
}
