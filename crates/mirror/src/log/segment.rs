//! Names and headers of log segments. Bytes: `docs/FORMAT.md`.

use mirror_core::{Digest, Position};

use super::End;

pub const DIR: &str = "log";
pub const HEADER_BYTES: usize = 128;
/// Ends the name of a segment until its header is safe.
pub const UNBORN: &str = ".new";
const MAGIC: [u8; 8] = *b"FSM.LOG\n";
const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub tree: [u8; 16],
    /// Position of the first record, also the segment's name.
    pub first: Position,
    /// What the first record follows; `None` at the very beginning.
    pub prev: Option<End>,
    /// Records of this segment name no content segment before this one, but for a few that were put early.
    pub content_from: u64,
    /// Time of the first record: none of an earlier segment is later.
    pub time_ns: u64,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHeader {
    Damaged(&'static str),
    Newer(u32),
}

pub fn name(first: Position) -> String {
    format!("{DIR}/{:08x}.{:016x}.log", first.epoch, first.sequence)
}

/// The position in a segment's name in its directory.
pub fn position(name: &str) -> Option<Position> {
    let (epoch, sequence) = name.strip_suffix(".log")?.split_once('.')?;
    if epoch.len() != 8 || sequence.len() != 16 {
        return None;
    }
    let epoch = u32::from_str_radix(epoch, 16).ok()?;
    Some(Position {
        epoch,
        sequence: u64::from_str_radix(sequence, 16).ok()?,
    })
}

impl Header {
    pub fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.tree);
        put(32, &self.first.epoch.to_le_bytes());
        put(40, &self.first.sequence.to_le_bytes());
        if let Some(prev) = &self.prev {
            put(36, &prev.position.epoch.to_le_bytes());
            put(48, &prev.position.sequence.to_le_bytes());
            put(56, &prev.head.0);
        }
        put(88, &self.content_from.to_le_bytes());
        put(96, &self.time_ns.to_le_bytes());
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn parse(bytes: &[u8]) -> Result<Header, BadHeader> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BadHeader::Damaged("the segment ends inside its header"));
        };
        fn take<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
            let mut taken = [0; N];
            taken.copy_from_slice(&bytes[at..at + N]);
            taken
        }
        if take(bytes, 0) != MAGIC {
            return Err(BadHeader::Damaged("no log segment begins here"));
        }
        if u32::from_le_bytes(take(bytes, 12)) != checksum(bytes) {
            return Err(BadHeader::Damaged("the checksum of the header is wrong"));
        }
        match u32::from_le_bytes(take(bytes, 8)) {
            VERSION => {}
            newer if newer > VERSION => return Err(BadHeader::Newer(newer)),
            _ => return Err(BadHeader::Damaged("there is no such version")),
        }
        let prev_epoch = u32::from_le_bytes(take(bytes, 36));
        let prev = (prev_epoch != 0).then(|| End {
            position: Position {
                epoch: prev_epoch,
                sequence: u64::from_le_bytes(take(bytes, 48)),
            },
            head: Digest(take(bytes, 56)),
        });
        Ok(Header {
            tree: take(bytes, 16),
            first: Position {
                epoch: u32::from_le_bytes(take(bytes, 32)),
                sequence: u64::from_le_bytes(take(bytes, 40)),
            },
            prev,
            content_from: u64::from_le_bytes(take(bytes, 88)),
            time_ns: u64::from_le_bytes(take(bytes, 96)),
        })
    }
}

fn checksum(bytes: &[u8; HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}
