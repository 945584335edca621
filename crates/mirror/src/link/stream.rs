//! An open file's content in pieces, hashed on the way.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use mirror_core::Content;

use super::message::PIECE_BYTES;
use crate::capture::read::hasher;

/// How reading ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Streamed {
    /// And what was read is the content.
    Complete,
    /// The file has other bytes, or fewer.
    Different,
    Failed(String),
    /// `each` said so.
    Stopped,
}

/// Of a file with holes: the bytes of its data ranges, in order.
pub fn stream(file: &File, content: &Content, each: &mut dyn FnMut(&[u8]) -> bool) -> Streamed {
    let whole = [(0, content.bytes)];
    let ranges = if content.data.is_empty() {
        &whole[..]
    } else {
        &content.data[..]
    };
    let mut hash = hasher(content.bytes, &content.data);
    let mut buffer = vec![0u8; PIECE_BYTES];
    for (start, length) in ranges {
        let mut done = 0;
        while done < *length {
            let want = usize::try_from(length - done).unwrap_or(PIECE_BYTES);
            let room = want.min(buffer.len());
            let piece = buffer.get_mut(..room).unwrap_or_default();
            let n = match file.read_at(piece, start.saturating_add(done)) {
                Ok(0) => return Streamed::Different,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Streamed::Failed(e.to_string()),
            };
            let piece = piece.get(..n).unwrap_or_default();
            hash.update(piece);
            if !each(piece) {
                return Streamed::Stopped;
            }
            done += n as u64;
        }
    }
    if *hash.finalize().as_bytes() == content.digest.0 {
        Streamed::Complete
    } else {
        Streamed::Different
    }
}
