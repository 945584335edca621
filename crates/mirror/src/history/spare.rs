//! A packed second copy of a sealed segment: what is damaged is made again from it. Bytes: `docs/FORMAT.md`.

use std::io::{self, Read, Write};
use std::sync::Arc;

use mirror_core::Digest;

use crate::disk::DiskFile;

const MAGIC: [u8; 8] = *b"FSM.SPA\n";
const VERSION: u32 = 1;
const HEADER: usize = 72;
/// Packed while batches wait: what takes longer saves little more.
const LEVEL: i32 = 1;
const CHUNK: usize = 256 << 10;

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads a state file from its beginning up to `end`.
struct Reading {
    file: Arc<dyn DiskFile>,
    at: u64,
    end: u64,
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let got = self.file.read_at(self.at, &mut buffer[..most])?;
        self.at += got as u64;
        Ok(got)
    }
}

/// The spare of the first `len` bytes of a file.
pub fn encode(file: &Arc<dyn DiskFile>, len: u64) -> io::Result<Vec<u8>> {
    let mut packer = zstd::stream::write::Encoder::new(vec![0; HEADER], LEVEL)?;
    let mut hash = blake3::Hasher::new();
    let (mut at, mut buffer) = (0, vec![0; CHUNK]);
    while at < len {
        let most = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        let got = file.read_at(at, &mut buffer[..most])?;
        if got == 0 {
            return Err(damaged("it is shorter than it was"));
        }
        hash.update(&buffer[..got]);
        packer.write_all(&buffer[..got])?;
        at += got as u64;
    }
    let mut out = packer.finish()?;
    let packed = (out.len() - HEADER) as u64;
    let crc = crc32c::crc32c(&out[HEADER..]);
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&len.to_le_bytes());
    out[24..32].copy_from_slice(&packed.to_le_bytes());
    out[32..36].copy_from_slice(&crc.to_le_bytes());
    out[40..72].copy_from_slice(hash.finalize().as_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..12]), &out[16..HEADER]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// See the module.
pub struct Spare {
    file: Arc<dyn DiskFile>,
    /// Of the file that it is a copy of.
    pub len: u64,
    packed: u64,
    crc: u32,
    digest: Digest,
}

impl Spare {
    /// Only what stands at its beginning is looked at.
    pub fn open(file: Arc<dyn DiskFile>) -> io::Result<Spare> {
        let mut header = [0; HEADER];
        if file.read_at(0, &mut header)? < HEADER || header[..8] != MAGIC {
            return Err(damaged("it does not begin as it must"));
        }
        let small = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let large = |at: usize| u64::from(small(at)) | u64::from(small(at + 4)) << 32;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
        if small(12) != crc || small(8) != VERSION {
            return Err(damaged("its beginning is damaged"));
        }
        let mut digest = Digest([0; 32]);
        digest.0.copy_from_slice(&header[40..]);
        let spare = Spare {
            len: large(16),
            packed: large(24),
            crc: small(32),
            digest,
            file,
        };
        match spare.file.len()? == spare.packed.saturating_add(HEADER as u64) {
            true => Ok(spare),
            false => Err(damaged("it is not as long as it says")),
        }
    }

    /// Unpacks it, whether or not it is intact; `Ok` if it is.
    fn unpack(&self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let reading = Reading {
            file: self.file.clone(),
            at: HEADER as u64,
            end: HEADER as u64 + self.packed,
        };
        let wrong = |_| damaged("it can't be unpacked");
        let mut unpacked = zstd::stream::read::Decoder::new(reading).map_err(wrong)?;
        let mut hash = blake3::Hasher::new();
        let (mut len, mut buffer) = (0u64, vec![0; CHUNK]);
        loop {
            let got = unpacked.read(&mut buffer).map_err(wrong)?;
            if got == 0 {
                break;
            }
            len += got as u64;
            if len > self.len {
                return Err(damaged("it holds more than it says"));
            }
            hash.update(&buffer[..got]);
            each(&buffer[..got])?;
        }
        match len == self.len && *hash.finalize().as_bytes() == self.digest.0 {
            true => Ok(()),
            false => Err(damaged("its checksum is wrong")),
        }
    }

    /// Reads all of it. An error: it is of no use.
    pub fn check(&self) -> io::Result<()> {
        let (mut at, mut crc, mut buffer) = (HEADER as u64, 0, vec![0; CHUNK]);
        loop {
            let got = self.file.read_at(at, &mut buffer)?;
            if got == 0 {
                break;
            }
            crc = crc32c::crc32c_append(crc, &buffer[..got]);
            at += got as u64;
        }
        if crc != self.crc {
            return Err(damaged("its checksum is wrong"));
        }
        self.unpack(&mut |_| Ok(()))
    }

    /// Writes what it is a copy of; checked before, so that no more is written than is right.
    pub fn restore(&self, to: &dyn DiskFile) -> io::Result<()> {
        self.check()?;
        self.unpack(&mut |bytes| to.append(bytes))
    }
}
