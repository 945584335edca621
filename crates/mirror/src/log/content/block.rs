//! A block of a content segment: up to 256 KiB of contents behind a checksum, packed when that pays.

use super::BLOCK_RAW_BYTES_MAX;

pub const HEADER_BYTES: usize = 20;
const MAGIC: [u8; 4] = *b"FSMb";
const VERSION: u8 = 1;
const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;

const LEVEL: i32 = 1;
/// Packing must save more than a tenth.
const SAVES_PERCENT_MIN: usize = 10;
/// Larger blocks are probed with two samples of this size first.
const SAMPLE_BYTES: usize = 16 << 10;

/// Why bytes are no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadBlock {
    Damaged(&'static str),
    Newer(u8),
}

pub struct Header {
    version: u8,
    codec: u8,
    pub raw_len: usize,
    pub stored_len: usize,
    crc: u32,
    /// What the checksum covers of the header.
    sum: u32,
}

/// Packs blocks; keeps its working memory.
pub struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Packer {
    pub fn new() -> Packer {
        // Without memory for it blocks stay unpacked.
        Packer {
            zstd: zstd::bulk::Compressor::new(LEVEL).ok(),
        }
    }

    /// The block of these contents, header included.
    pub fn pack(&mut self, raw: &[u8]) -> Vec<u8> {
        let packed = self.try_pack(raw);
        let (codec, stored) = match &packed {
            Some(packed) => (CODEC_ZSTD, packed.as_slice()),
            None => (CODEC_RAW, raw),
        };
        let mut block = Vec::with_capacity(HEADER_BYTES + stored.len());
        block.extend_from_slice(&MAGIC);
        block.extend_from_slice(&[VERSION, codec, 0, 0]);
        block.extend_from_slice(&(raw.len() as u32).to_le_bytes());
        block.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&block), stored);
        block.extend_from_slice(&crc.to_le_bytes());
        block.extend_from_slice(stored);
        block
    }

    fn try_pack(&mut self, raw: &[u8]) -> Option<Vec<u8>> {
        let zstd = self.zstd.as_mut()?;
        if raw.len() > 4 * SAMPLE_BYTES {
            let middle = raw.len() / 2;
            let samples = [
                raw.get(..SAMPLE_BYTES)?,
                raw.get(middle..middle + SAMPLE_BYTES)?,
            ];
            if !samples.iter().any(|sample| {
                zstd.compress(sample)
                    .is_ok_and(|packed| pays(sample, &packed))
            }) {
                return None;
            }
        }
        zstd.compress(raw).ok().filter(|packed| pays(raw, packed))
    }
}

fn pays(raw: &[u8], packed: &[u8]) -> bool {
    packed.len() < raw.len() - raw.len() * SAVES_PERCENT_MIN / 100
}

impl Header {
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, BadBlock> {
        let number = |at: usize| {
            let mut number = [0; 4];
            number.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(number)
        };
        if bytes[..4] != MAGIC {
            return Err(BadBlock::Damaged("no block begins here"));
        }
        let header = Header {
            version: bytes[4],
            codec: bytes[5],
            raw_len: number(8) as usize,
            stored_len: number(12) as usize,
            crc: number(16),
            sum: crc32c::crc32c(&bytes[..16]),
        };
        if header.raw_len > BLOCK_RAW_BYTES_MAX || header.stored_len > header.raw_len {
            // Of any version: what is larger can't be checked with bounded memory.
            return Err(BadBlock::Damaged("the length of the block can't be"));
        }
        Ok(header)
    }

    /// The contents of the block.
    pub fn unpack(&self, stored: &[u8]) -> Result<Vec<u8>, BadBlock> {
        if stored.len() != self.stored_len || crc32c::crc32c_append(self.sum, stored) != self.crc {
            return Err(BadBlock::Damaged("the checksum of the block is wrong"));
        }
        if self.version > VERSION {
            return Err(BadBlock::Newer(self.version));
        }
        let raw = match self.codec {
            CODEC_RAW => stored.to_vec(),
            CODEC_ZSTD => zstd::bulk::decompress(stored, self.raw_len)
                .map_err(|_| BadBlock::Damaged("the block can't be unpacked"))?,
            _ => return Err(BadBlock::Damaged("the block is packed in an unknown way")),
        };
        if raw.len() == self.raw_len {
            Ok(raw)
        } else {
            Err(BadBlock::Damaged("the block has another length"))
        }
    }
}
