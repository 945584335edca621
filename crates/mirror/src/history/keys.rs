//! Where the rows of a segment are, by what they are about: in memory while it grows, in a file once it is sealed. Derived:
//! made again from the segment when it is lost.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use mirror_core::history::{Moment, Was};
use mirror_core::{Digest, Name, ObjectId};

use super::format::Placed;
use crate::disk::DiskFile;
use crate::sync::lock;

/// A row of a segment: its frame, and where it begins in that body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loc {
    pub frame: u32,
    pub row: u32,
}

/// When a group was applied, and where its first frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    pub moment: Moment,
    /// The worker's clock.
    pub there_ns: u64,
    pub here_ns: u64,
    pub frame: u32,
}

/// Which rows of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    State = 0,
    Unkept = 1,
    /// It lost or got a name.
    Named = 2,
}

const BY_NAME: u8 = b'n';
const BY_OBJECT: u8 = b'o';

/// Sorted by directory, name, moment.
pub fn name_key(dir: ObjectId, name: &[u8], moment: Moment) -> Vec<u8> {
    let mut key = name_prefix(dir, name);
    // No name has a NUL, so shorter ones come first.
    key.push(0);
    key.extend_from_slice(&moment.0.to_be_bytes());
    key
}

/// What all keys of names in a directory begin with, from this name on.
pub fn name_prefix(dir: ObjectId, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(18 + name.len());
    key.push(BY_NAME);
    key.extend_from_slice(&dir.0.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// The name and moment of a key of this directory.
pub fn name_of(key: &[u8], dir: ObjectId) -> Option<(Name, Moment)> {
    let rest = key.strip_prefix(name_prefix(dir, b"").as_slice())?;
    let (name, moment) = rest.split_last_chunk::<8>()?;
    let name = Name::new(name.strip_suffix(&[0])?).ok()?;
    Some((name, Moment(u64::from_be_bytes(*moment))))
}

pub fn object_key(id: ObjectId, kind: Kind, moment: Moment) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.push(BY_OBJECT);
    key.extend_from_slice(&id.0.to_be_bytes());
    key.push(kind as u8);
    key.extend_from_slice(&moment.0.to_be_bytes());
    key
}

/// In memory.
#[derive(Debug, Default)]
pub struct Keys {
    map: BTreeMap<Box<[u8]>, Loc>,
    pub times: Vec<Time>,
}

impl Keys {
    pub fn add(&mut self, placed: &Placed<'_>, frame: u32) {
        let loc = Loc {
            frame,
            row: placed.offset,
        };
        let moment = placed.moment;
        let mut put = |key: Vec<u8>| {
            self.map.insert(key.into(), loc);
        };
        match &placed.row.was {
            Was::Name { at, before, after } => {
                put(name_key(at.parent, at.name.as_bytes(), moment));
                for id in [before, after].into_iter().flatten() {
                    // One of several of the same object and moment is enough to find its group.
                    put(object_key(*id, Kind::Named, moment));
                }
            }
            Was::Object { object, .. } => put(object_key(*object, Kind::State, moment)),
            Was::Unkept { object, .. } => put(object_key(*object, Kind::Unkept, moment)),
        }
    }
    pub fn add_time(&mut self, time: Time) {
        if self
            .times
            .last()
            .is_none_or(|last| last.moment != time.moment)
        {
            self.times.push(time);
        }
    }
}

const MAGIC: [u8; 8] = *b"FSM.KEY\n";
const VERSION: u32 = 2;
const HEADER: usize = 96;
const TIME: usize = 28;
/// What a checksum is of: nothing is believed that was not checked, and no question reads the whole file.
const BLOCK: usize = 4096;
/// Blocks read lately.
const BLOCKS_KEPT: usize = 32;

/// A sealed segment's keys as bytes. `of`: the length of the segment; `head`: its hash chain at the end.
pub fn encode(keys: &Keys, of: u64, head: &Digest) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut offsets = Vec::with_capacity(keys.map.len() * 4);
    for (key, loc) in &keys.map {
        offsets.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        entries.extend_from_slice(&loc.frame.to_le_bytes());
        entries.extend_from_slice(&loc.row.to_le_bytes());
        entries.extend_from_slice(&(key.len() as u16).to_le_bytes());
        entries.extend_from_slice(key);
    }
    let mut times = Vec::with_capacity(keys.times.len() * TIME);
    for time in &keys.times {
        times.extend_from_slice(&time.moment.0.to_le_bytes());
        times.extend_from_slice(&time.there_ns.to_le_bytes());
        times.extend_from_slice(&time.here_ns.to_le_bytes());
        times.extend_from_slice(&time.frame.to_le_bytes());
    }
    let body = [entries.as_slice(), &offsets, &times].concat();
    let crcs = body.chunks(BLOCK).map(crc32c::crc32c);
    let crcs: Vec<u8> = crcs.flat_map(u32::to_le_bytes).collect();
    let mut out = Vec::with_capacity(HEADER + body.len() + crcs.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&of.to_le_bytes());
    out.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    out.extend_from_slice(&(keys.map.len() as u64).to_le_bytes());
    out.extend_from_slice(&(keys.times.len() as u64).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&crcs).to_le_bytes());
    out.resize(64, 0);
    out.extend_from_slice(&head.0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..12]), &out[16..]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&body);
    out.extend_from_slice(&crcs);
    out
}

/// The keys of a sealed segment, read as they are asked for.
pub struct KeysFile {
    file: Arc<dyn DiskFile>,
    /// The length of the segment that they are of.
    pub of: u64,
    entries: u64,
    count: u64,
    times: u64,
    /// Of each block of what follows the header.
    crcs: Vec<u32>,
    pub head: Digest,
    blocks: Mutex<Vec<(u64, Arc<Vec<u8>>)>>,
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the keys are damaged")
}

impl KeysFile {
    pub fn open(file: Arc<dyn DiskFile>) -> io::Result<KeysFile> {
        let mut header = [0; HEADER];
        if file.read_at(0, &mut header)? < HEADER || header[..8] != MAGIC {
            return Err(damaged());
        }
        let small = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let large = |at: usize| u64::from(small(at)) | u64::from(small(at + 4)) << 32;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
        if small(8) != VERSION || small(12) != crc {
            return Err(damaged());
        }
        let mut head = Digest([0; 32]);
        head.0.copy_from_slice(&header[64..]);
        let mut keys = KeysFile {
            of: large(16),
            entries: large(24),
            count: large(32),
            times: large(40),
            crcs: Vec::new(),
            head,
            file,
            blocks: Mutex::default(),
        };
        let body = keys.body_len().ok_or_else(damaged)?;
        let crcs = body.div_ceil(BLOCK as u64) * 4;
        // No more is allocated than the file has.
        if (HEADER as u64)
            .checked_add(body)
            .and_then(|len| len.checked_add(crcs))
            != Some(keys.file.len()?)
        {
            return Err(damaged());
        }
        let mut bytes = vec![0; crcs as usize];
        let got = keys.file.read_at(HEADER as u64 + body, &mut bytes)?;
        if got < bytes.len() || crc32c::crc32c(&bytes) != small(48) {
            return Err(damaged());
        }
        let words = bytes.chunks_exact(4);
        keys.crcs = words
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        Ok(keys)
    }

    fn body_len(&self) -> Option<u64> {
        let offsets = self.count.checked_mul(4)?;
        let times = self.times.checked_mul(TIME as u64)?;
        self.entries.checked_add(offsets)?.checked_add(times)
    }

    /// Whether every byte is as it was written.
    pub fn is_intact(&self) -> io::Result<bool> {
        for n in 0..self.crcs.len() as u64 {
            match self.read_block(n) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidData => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn read_block(&self, n: u64) -> io::Result<Vec<u8>> {
        let crc = self.crcs.get(n as usize).ok_or_else(damaged)?;
        let body = self.body_len().ok_or_else(damaged)?;
        let at = n * BLOCK as u64;
        let mut bytes = vec![0; BLOCK.min(body.saturating_sub(at) as usize)];
        let got = self.file.read_at(HEADER as u64 + at, &mut bytes)?;
        let right = got == bytes.len() && crc32c::crc32c(&bytes) == *crc;
        right.then_some(bytes).ok_or_else(damaged)
    }

    fn block(&self, n: u64) -> io::Result<Arc<Vec<u8>>> {
        let mut kept = lock(&self.blocks);
        if let Some((_, bytes)) = kept.iter().find(|(known, _)| *known == n) {
            return Ok(bytes.clone());
        }
        let bytes = Arc::new(self.read_block(n)?);
        if kept.len() >= BLOCKS_KEPT {
            kept.remove(0);
        }
        kept.push((n, bytes.clone()));
        Ok(bytes)
    }

    /// Bytes of the body; fewer only at its end.
    fn read_at(&self, mut at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(left) = buffer.get_mut(done..).filter(|left| !left.is_empty()) {
            let n = at / BLOCK as u64;
            if n >= self.crcs.len() as u64 {
                break;
            }
            let block = self.block(n)?;
            let Some(from) = block
                .get((at % BLOCK as u64) as usize..)
                .filter(|b| !b.is_empty())
            else {
                break;
            };
            let count = from.len().min(left.len());
            left[..count].copy_from_slice(&from[..count]);
            done += count;
            at += count as u64;
        }
        Ok(done)
    }

    fn read<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.read_at(at, &mut bytes)? {
            n if n == N => Ok(bytes),
            _ => Err(damaged()),
        }
    }

    fn offset(&self, n: u64) -> io::Result<u64> {
        let at = self.entries + n * 4;
        Ok(u64::from(u32::from_le_bytes(self.read(at)?)))
    }

    /// An entry, and where the next one begins.
    fn entry(&self, at: u64, buffer: &mut Vec<u8>) -> io::Result<(Loc, u64)> {
        let first: [u8; 10] = self.read(at)?;
        let word =
            |n: usize| u32::from_le_bytes([first[n], first[n + 1], first[n + 2], first[n + 3]]);
        let loc = Loc {
            frame: word(0),
            row: word(4),
        };
        let len = usize::from(u16::from_le_bytes([first[8], first[9]]));
        let end = at + 10 + len as u64;
        if end > self.entries {
            return Err(damaged());
        }
        buffer.resize(len, 0);
        if self.read_at(at + 10, buffer)? < len {
            return Err(damaged());
        }
        Ok((loc, end))
    }

    /// The number of the first entry whose key is not below this one.
    fn lower_bound(&self, key: &[u8]) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.count);
        let mut buffer = Vec::new();
        while low < high {
            let middle = low + (high - low) / 2;
            self.entry(self.offset(middle)?, &mut buffer)?;
            match buffer.as_slice() < key {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Ok(low)
    }

    /// The last group of the segment.
    pub fn last_time(&self) -> io::Result<Option<Time>> {
        self.times.checked_sub(1).map(|n| self.time(n)).transpose()
    }

    fn time(&self, n: u64) -> io::Result<Time> {
        let at = self.entries + self.count * 4 + n * TIME as u64;
        let bytes: [u8; TIME] = self.read(at)?;
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        Ok(Time {
            moment: Moment(number(0)),
            there_ns: number(8),
            here_ns: number(16),
            frame: u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]),
        })
    }
}

/// The keys of one segment.
pub enum Table {
    Memory(Keys),
    File(KeysFile),
}

impl Table {
    /// Entries from this key on, in order, until `each` is false.
    pub fn from(
        &self,
        key: &[u8],
        each: &mut dyn FnMut(&[u8], Loc) -> io::Result<bool>,
    ) -> io::Result<()> {
        match self {
            Table::Memory(keys) => {
                let from = (std::ops::Bound::Included(key), std::ops::Bound::Unbounded);
                for (key, loc) in keys.map.range::<[u8], _>(from) {
                    if !each(key, *loc)? {
                        break;
                    }
                }
                Ok(())
            }
            Table::File(keys) => {
                let first = keys.lower_bound(key)?;
                if first >= keys.count {
                    return Ok(());
                }
                let mut at = keys.offset(first)?;
                let mut buffer = Vec::new();
                while at < keys.entries {
                    let (loc, next) = keys.entry(at, &mut buffer)?;
                    if !each(&buffer, loc)? {
                        break;
                    }
                    at = next;
                }
                Ok(())
            }
        }
    }

    pub fn times(&self) -> u64 {
        match self {
            Table::Memory(keys) => keys.times.len() as u64,
            Table::File(keys) => keys.times,
        }
    }
    /// The n-th group of the segment.
    pub fn time(&self, n: u64) -> io::Result<Time> {
        match self {
            Table::Memory(keys) => keys.times.get(n as usize).copied().ok_or_else(damaged),
            Table::File(keys) if n < keys.times => keys.time(n),
            Table::File(_) => Err(damaged()),
        }
    }
    /// How many groups come before the first one for which `is_after` holds; it holds for all that follow.
    pub fn times_until(&self, is_after: &dyn Fn(&Time) -> bool) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.times());
        while low < high {
            let middle = low + (high - low) / 2;
            match is_after(&self.time(middle)?) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        Ok(low)
    }
}
