//! Bytes of regular files: written with their digest verified, and compared with what is there.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use mirror_core::Content;
use rustix::fs::ftruncate;
use rustix::io::{pread, pwrite, retry_on_intr};

use crate::sys::holes::written_ranges;
use crate::sys::stat::{Stat, fstat};
use crate::sys::{Errno, Result};

const BUFFER_BYTES: usize = 256 << 10;
const RANGES_MAX: usize = 1 << 20;

/// Why content could not be written.
#[derive(Debug)]
pub enum WriteError {
    /// What came is not what the record says.
    Different,
    Read(std::io::Error),
    Write(Errno),
}

/// The ranges to transfer: of a dense file all of it.
pub fn ranges(content: &Content) -> Vec<(u64, u64)> {
    if content.data.is_empty() {
        vec![(0, content.bytes)]
    } else {
        content.data.clone()
    }
}

/// The digest of `content` begun: of a file with holes the layout comes first.
pub fn hasher(content: &Content) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    if !content.data.is_empty() {
        hasher.update(b"fs_mirror sparse 1");
        hasher.update(&content.bytes.to_le_bytes());
        hasher.update(&(content.data.len() as u64).to_le_bytes());
        for (offset, length) in &content.data {
            hasher.update(&offset.to_le_bytes());
            hasher.update(&length.to_le_bytes());
        }
    }
    hasher
}

/// Ranges in order, apart from each other and inside the file.
pub fn is_sane(content: &Content) -> bool {
    let mut end = 0u64;
    for (offset, length) in &content.data {
        let Some(next) = offset.checked_add(*length) else {
            return false;
        };
        if *offset < end || next > content.bytes {
            return false;
        }
        end = next;
    }
    content.bytes <= i64::MAX as u64
}

/// The same of bytes that are all at hand: looked at first, and not copied.
pub fn write_bytes(
    file: &OwnedFd,
    content: &Content,
    bytes: &[u8],
) -> std::result::Result<(), WriteError> {
    if !is_sane(content) || bytes.len() as u64 != content.stored_bytes() {
        return Err(WriteError::Different);
    }
    let mut hasher = hasher(content);
    hasher.update(bytes);
    if hasher.finalize().as_bytes() != &content.digest.0 {
        return Err(WriteError::Different);
    }
    write_checked(file, content, bytes).map_err(WriteError::Write)
}

/// The same of bytes that were looked at already.
pub fn write_checked(file: &OwnedFd, content: &Content, bytes: &[u8]) -> Result<()> {
    let mut rest = bytes;
    for (offset, length) in ranges(content) {
        let take = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(rest.len());
        let (part, tail) = rest.split_at(take);
        write_all_at(file, part, offset)?;
        rest = tail;
    }
    if !content.data.is_empty() {
        ftruncate(file, content.bytes)?;
    }
    Ok(())
}

/// Fills an empty file from the bytes of the ranges, one after the other.
pub fn write(
    file: &OwnedFd,
    content: &Content,
    from: &mut dyn Read,
) -> std::result::Result<(), WriteError> {
    if !is_sane(content) {
        return Err(WriteError::Different);
    }
    let mut hasher = hasher(content);
    let mut buffer = vec![
        0;
        BUFFER_BYTES
            .min(usize::try_from(content.bytes).unwrap_or(BUFFER_BYTES))
            .max(1)
    ];
    if !content.data.is_empty() {
        ftruncate(file, content.bytes).map_err(WriteError::Write)?;
    }
    for (offset, length) in ranges(content) {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let room = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let Some(part) = buffer.get_mut(..room) else {
                return Err(WriteError::Different);
            };
            let got = match from.read(part) {
                Ok(0) => return Err(WriteError::Different),
                Ok(got) => got,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(WriteError::Read(e)),
            };
            let Some(part) = buffer.get(..got) else {
                return Err(WriteError::Different);
            };
            hasher.update(part);
            write_all_at(file, part, at).map_err(WriteError::Write)?;
            at += got as u64;
        }
    }
    if hasher.finalize().as_bytes() != &content.digest.0 {
        return Err(WriteError::Different);
    }
    Ok(())
}

pub fn write_all_at(file: impl AsFd, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        let wrote = retry_on_intr(|| pwrite(&file, bytes, offset))?;
        if wrote == 0 {
            return Err(Errno::IO);
        }
        bytes = bytes.get(wrote..).unwrap_or_default();
        offset += wrote as u64;
    }
    Ok(())
}

/// Whether an open file holds exactly this content. Holes count: a file with holes where there must be none, or without
/// where there must be some, is different; where exactly they lie is the file system's affair.
pub fn matches(file: &OwnedFd, stat: &Stat, content: &Content) -> Result<bool> {
    matches_so_far(file, stat, content, &mut |_| true)
}

/// The same of a file that is open, at the pace of `more`, which is told of all bytes read and may end it: then false.
pub fn same_bytes(
    file: &OwnedFd,
    content: &Content,
    more: &mut dyn FnMut(usize) -> bool,
) -> Result<bool> {
    matches_so_far(file, &fstat(file)?, content, more)
}

fn matches_so_far(
    file: &OwnedFd,
    stat: &Stat,
    content: &Content,
    more: &mut dyn FnMut(usize) -> bool,
) -> Result<bool> {
    if !stat.is_file() || stat.bytes != content.bytes || !is_sane(content) {
        return Ok(false);
    }
    // Blocks say nothing: an attribute block, or room allocated beyond the end, makes up for a hole.
    let here = written_ranges(file, stat.bytes, RANGES_MAX)?;
    if here.is_empty() != content.data.is_empty() && stat.bytes > 0 {
        return Ok(false);
    }
    let mut hasher = hasher(content);
    let mut buffer = vec![0; BUFFER_BYTES];
    for (offset, length) in ranges(content) {
        let complete = read_range(file, offset, length, &mut buffer, |part| {
            hasher.update(part);
            more(part.len())
        })?;
        if !complete {
            return Ok(false);
        }
    }
    if hasher.finalize().as_bytes() != &content.digest.0 {
        return Ok(false);
    }
    // What is data here and hole there must be zeros.
    for (offset, length) in &here {
        let mut at = *offset;
        let end = offset + length;
        for (start, length) in &content.data {
            if at < (*start).min(end) && !is_zero(file, at, (*start).min(end) - at, &mut buffer)? {
                return Ok(false);
            }
            at = at.max(start + length);
        }
        if at < end && !content.data.is_empty() && !is_zero(file, at, end - at, &mut buffer)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_zero(file: &OwnedFd, offset: u64, length: u64, buffer: &mut [u8]) -> Result<bool> {
    read_range(file, offset, length, buffer, |part| {
        part.iter().all(|b| *b == 0)
    })
}

/// False: the file ended early, or `each` said so.
fn read_range(
    file: &OwnedFd,
    offset: u64,
    length: u64,
    buffer: &mut [u8],
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<bool> {
    let mut at = offset;
    let end = offset + length;
    while at < end {
        let room = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let got = retry_on_intr(|| pread(file, buffer.get_mut(..room).unwrap_or_default(), at))?;
        if got == 0 || !each(buffer.get(..got).unwrap_or_default()) {
            return Ok(false);
        }
        at += got as u64;
    }
    Ok(true)
}

/// Reads the ranges of a file one after the other: the copy of a file we already have.
pub struct RangeReader {
    file: OwnedFd,
    ranges: std::vec::IntoIter<(u64, u64)>,
    at: u64,
    end: u64,
}

impl RangeReader {
    pub fn new(file: OwnedFd, content: &Content) -> RangeReader {
        RangeReader {
            file,
            ranges: ranges(content).into_iter(),
            at: 0,
            end: 0,
        }
    }
}

impl Read for RangeReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.end {
            let Some((offset, length)) = self.ranges.next() else {
                return Ok(0);
            };
            (self.at, self.end) = (offset, offset.saturating_add(length));
        }
        let room = usize::try_from(self.end - self.at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let got = retry_on_intr(|| {
            pread(
                &self.file,
                buffer.get_mut(..room).unwrap_or_default(),
                self.at,
            )
        })?;
        self.at += got as u64;
        Ok(got)
    }
}
