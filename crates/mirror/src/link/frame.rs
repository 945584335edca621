//! A frame: a header of fixed size and a body, checked before anybody looks at it.

use std::io::{self, Read};

pub const HEADER_BYTES: usize = 16;
pub const MAGIC: [u8; 4] = *b"FSMw";
/// Of the header. What the bodies mean is agreed on in `Hello`.
pub const VERSION: u8 = 1;
/// A body. Longer things travel in pieces.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// A receiver that does not know the kind must give up.
pub const FLAG_MUST_UNDERSTAND: u16 = 1;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended, perhaps in the middle of a frame.
    #[error("the connection ended")]
    Ended,
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// Something that is no frame, with its first bytes.
    #[error("what came is not the protocol of mirrord")]
    NoFrame(Vec<u8>),
    #[error("the other side speaks frames of version {0}, newer than this program")]
    Newer(u8),
    #[error("a frame of {came} bytes came, and {max} is the limit")]
    TooLong { came: u32, max: usize },
    #[error("a frame came damaged")]
    Damaged,
}

/// What a header says of the body that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub kind: u8,
    pub must_understand: bool,
}

/// Appends a whole frame. The body must fit ([`BODY_BYTES_MAX`]).
pub fn put(kind: u8, must_understand: bool, body: &[u8], out: &mut Vec<u8>) {
    assert!(body.len() <= BODY_BYTES_MAX, "a body of {}", body.len());
    let mut header = [0u8; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[5] = kind;
    let flags = if must_understand {
        FLAG_MUST_UNDERSTAND
    } else {
        0
    };
    header[6..8].copy_from_slice(&flags.to_le_bytes());
    header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), body);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
}

/// Reads one frame; its body replaces what is in `body`.
pub fn read(from: &mut impl Read, body: &mut Vec<u8>) -> Result<Head, FrameError> {
    read_up_to(from, body, BODY_BYTES_MAX)
}

/// Likewise, when a body of more than `max` bytes can't be meant.
pub fn read_up_to(
    from: &mut impl Read,
    body: &mut Vec<u8>,
    max: usize,
) -> Result<Head, FrameError> {
    let header = read_header(from, max)?;
    read_body(from, &header, body)
}

/// Of a frame whose body is still to be read.
pub struct Header {
    head: Head,
    length: usize,
    crc: u32,
    /// What the checksum covers of the header.
    sum: u32,
}

pub fn read_header(from: &mut impl Read, max: usize) -> Result<Header, FrameError> {
    let mut header = [0u8; HEADER_BYTES];
    let got = fill(from, &mut header)?;
    if got == 0 {
        return Err(FrameError::Ended);
    }
    let magic = got.min(MAGIC.len());
    if header[..magic] != MAGIC[..magic] {
        return Err(FrameError::NoFrame(header[..got].to_vec()));
    }
    if got < HEADER_BYTES {
        return Err(FrameError::Ended);
    }
    if header[4] != VERSION {
        return Err(FrameError::Newer(header[4]));
    }
    let flags = u16::from_le_bytes([header[6], header[7]]);
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if length as usize > max {
        return Err(FrameError::TooLong { came: length, max });
    }
    Ok(Header {
        head: Head {
            kind: header[5],
            must_understand: flags & FLAG_MUST_UNDERSTAND != 0,
        },
        length: length as usize,
        crc: u32::from_le_bytes([header[12], header[13], header[14], header[15]]),
        sum: crc32c::crc32c(&header[..12]),
    })
}

/// Its body replaces what is in `body`.
pub fn read_body(
    from: &mut impl Read,
    header: &Header,
    body: &mut Vec<u8>,
) -> Result<Head, FrameError> {
    body.clear();
    body.resize(header.length, 0);
    if fill(from, body)? < body.len() {
        return Err(FrameError::Ended);
    }
    if crc32c::crc32c_append(header.sum, body) != header.crc {
        return Err(FrameError::Damaged);
    }
    Ok(header.head)
}

/// Reads until the buffer is full or the stream ends; how much that was.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, FrameError> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..)
        && !rest.is_empty()
    {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(FrameError::Io(e)),
        }
    }
    Ok(got)
}
