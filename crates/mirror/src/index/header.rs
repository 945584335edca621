//! What the index says about itself: the tree, the last record contained, and the counts.

use mirror_core::{Digest, Position};

use super::row::{BadRow, Input, put_varint};
use super::{Mark, Stats};

/// The format that this program reads and writes.
pub const FORMAT: u32 = 1;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    pub tree: Option<[u8; 16]>,
    pub mark: Option<Mark>,
    pub stats: Stats,
    /// No object with a greater id was ever put.
    pub id_max: u64,
    /// Whether any block hashes were ever put.
    pub blocks: bool,
}

const HAS_TREE: u8 = 1;
const HAS_MARK: u8 = 2;
const HAS_BLOCKS: u8 = 4;

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        let mut flags = 0;
        if self.tree.is_some() {
            flags |= HAS_TREE;
        }
        if self.mark.is_some() {
            flags |= HAS_MARK;
        }
        if self.blocks {
            flags |= HAS_BLOCKS;
        }
        out.push(flags);
        if let Some(tree) = &self.tree {
            out.extend_from_slice(tree);
        }
        if let Some(mark) = &self.mark {
            put_varint(&mut out, u64::from(mark.position.epoch));
            put_varint(&mut out, mark.position.sequence);
            out.extend_from_slice(&mark.head.0);
        }
        let stats = &self.stats;
        for count in [
            stats.entries,
            stats.objects,
            stats.files,
            stats.dirs,
            stats.bytes,
            self.id_max,
        ] {
            put_varint(&mut out, count);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Header, BadRow> {
        let mut input = Input(bytes);
        let flags = input.byte()?;
        if flags & !(HAS_TREE | HAS_MARK | HAS_BLOCKS) != 0 {
            return Err(BadRow);
        }
        let mut header = Header {
            blocks: flags & HAS_BLOCKS != 0,
            ..Header::default()
        };
        if flags & HAS_TREE != 0 {
            header.tree = Some(*input.take(16)?.first_chunk().ok_or(BadRow)?);
        }
        if flags & HAS_MARK != 0 {
            let epoch = input.varint_u32()?;
            let sequence = input.varint()?;
            let head = Digest(*input.take(32)?.first_chunk().ok_or(BadRow)?);
            let position = Position { epoch, sequence };
            header.mark = Some(Mark { position, head });
        }
        let stats = &mut header.stats;
        for count in [
            &mut stats.entries,
            &mut stats.objects,
            &mut stats.files,
            &mut stats.dirs,
            &mut stats.bytes,
            &mut header.id_max,
        ] {
            *count = input.varint()?;
        }
        match input.0.is_empty() {
            true => Ok(header),
            false => Err(BadRow),
        }
    }
}
