//! A content that comes in pieces, into a file that may hold the first part of it already.
//!
//! What the file holds is hashed, never believed: the digest of all of it decides.

use std::io;
use std::os::fd::OwnedFd;

use mirror_core::Content;
use rustix::fs::{fdatasync, ftruncate};
use rustix::io::{pread, retry_on_intr};

use super::content::{hasher, is_sane, ranges, write_all_at};
use crate::sys::behind::Behind;
use crate::sys::stat::fstat;

const BUFFER_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub enum FillError {
    /// It is not the content. Begin anew.
    Different,
    /// `go_on` said no.
    Stopped,
    Io(io::Error),
}

impl From<rustix::io::Errno> for FillError {
    fn from(error: rustix::io::Errno) -> FillError {
        FillError::Io(error.into())
    }
}

/// See the module.
pub struct Filler {
    file: OwnedFd,
    content: Content,
    ranges: Vec<(u64, u64)>,
    /// The range that is being filled, and how far.
    range: usize,
    within: u64,
    hasher: blake3::Hasher,
    done: u64,
    total: u64,
    behind: Behind,
}

impl Filler {
    /// Reads what is there; `go_on` is asked now and then.
    pub fn open(
        file: OwnedFd,
        content: &Content,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Filler, FillError> {
        if !is_sane(content) {
            return Err(FillError::Different);
        }
        let ranges = ranges(content);
        let mut filler = Filler {
            file,
            content: content.clone(),
            total: ranges.iter().map(|(_, length)| length).sum(),
            ranges,
            range: 0,
            within: 0,
            hasher: hasher(content),
            done: 0,
            behind: Behind::default(),
        };
        let end = fstat(&filler.file)?.bytes;
        if end > content.bytes {
            filler.restart()?;
            return Ok(filler);
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Some((offset, left)) = filler.next() {
            let room = left
                .min(end.saturating_sub(offset))
                .min(buffer.len() as u64) as usize;
            let Some(room) = buffer.get_mut(..room).filter(|room| !room.is_empty()) else {
                break;
            };
            if !go_on() {
                return Err(FillError::Stopped);
            }
            let got = retry_on_intr(|| pread(&filler.file, &mut *room, offset))?;
            if got == 0 {
                break;
            }
            filler.hasher.update(buffer.get(..got).unwrap_or_default());
            filler.advance(got as u64);
        }
        Ok(filler)
    }

    /// Bytes of the data ranges, in order, that are there.
    pub fn done(&self) -> u64 {
        self.done
    }
    pub fn is_complete(&self) -> bool {
        self.done == self.total
    }

    /// Nothing of it is there.
    pub fn restart(&mut self) -> Result<(), FillError> {
        ftruncate(&self.file, 0)?;
        (self.range, self.within, self.done) = (0, 0, 0);
        self.hasher = hasher(&self.content);
        self.behind = Behind::default();
        Ok(())
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), FillError> {
        while !bytes.is_empty() {
            let Some((offset, left)) = self.next() else {
                return Err(FillError::Different);
            };
            let room = usize::try_from(left).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(bytes.len().min(room));
            write_all_at(&self.file, part, offset)?;
            self.hasher.update(part);
            self.advance(part.len() as u64);
            self.behind.wrote(&self.file, offset + part.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    /// That was all: checked, and on stable storage.
    pub fn finish(self) -> Result<(), FillError> {
        if !self.is_complete() || self.hasher.finalize().as_bytes() != &self.content.digest.0 {
            return Err(FillError::Different);
        }
        ftruncate(&self.file, self.content.bytes)?;
        Ok(fdatasync(&self.file)?)
    }

    /// Where the next byte goes, and how many may follow it there.
    fn next(&mut self) -> Option<(u64, u64)> {
        loop {
            let (offset, length) = *self.ranges.get(self.range)?;
            if self.within < length {
                return Some((offset + self.within, length - self.within));
            }
            self.range += 1;
            self.within = 0;
        }
    }
    fn advance(&mut self, bytes: u64) {
        self.within += bytes;
        self.done += bytes;
    }
}

#[cfg(test)]
mod tests {
    use mirror_core::Digest;
    use rustix::fs::{CWD, Mode, OFlags, openat};

    use super::*;

    fn content(bytes: u64, data: Vec<(u64, u64)>, stream: &[u8]) -> Content {
        let mut content = Content {
            bytes,
            digest: Digest([0; 32]),
            data,
            proven: true,
            fuzzy: false,
        };
        let mut hash = hasher(&content);
        hash.update(stream);
        content.digest = Digest(*hash.finalize().as_bytes());
        content
    }

    #[test]
    fn it_goes_on_wherever_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let stream: Vec<u8> = (0..10_000u32).map(|n| (n * 31) as u8).collect();
        let dense = content(10_000, vec![], &stream);
        let data = vec![(100, 3000), (5000, 6000), (20_000, 1000)];
        let holey = content(30_000, data, &stream);
        for (which, content) in [("dense", &dense), ("holey", &holey)] {
            for left in [0, 1, 2999, 3000, 3001, 9000, 9001, 9999, 10_000] {
                let path = dir.path().join(format!("{which}{left}"));
                let open = || {
                    let flags = OFlags::RDWR | OFlags::CREATE;
                    openat(CWD, &path, flags, Mode::from_raw_mode(0o600)).unwrap()
                };
                let mut first = Filler::open(open(), content, &|| true).unwrap();
                first.write(&stream[..left]).unwrap();
                drop(first);
                let mut second = Filler::open(open(), content, &|| true).unwrap();
                assert_eq!(second.done(), left as u64, "{which}");
                for piece in stream[left..].chunks(777) {
                    second.write(piece).unwrap();
                }
                assert!(matches!(second.write(b"x"), Err(FillError::Different)));
                second.finish().unwrap();
                let there = std::fs::read(&path).unwrap();
                assert_eq!(there.len() as u64, content.bytes);
                let mut at = 0;
                for (offset, length) in ranges(content) {
                    let (offset, length) = (offset as usize, length as usize);
                    assert_eq!(there[offset..][..length], stream[at..][..length]);
                    at += length;
                }
            }
        }
    }

    #[test]
    fn a_torn_part_is_found_at_the_end_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("torn");
        let stream = vec![7u8; 5000];
        let content = content(5000, vec![], &stream);
        std::fs::write(&path, vec![0u8; 2000]).unwrap();
        let open = || openat(CWD, &path, OFlags::RDWR, Mode::empty()).unwrap();
        let mut filler = Filler::open(open(), &content, &|| true).unwrap();
        filler.write(&stream[2000..]).unwrap();
        assert!(matches!(filler.finish(), Err(FillError::Different)));
        let mut again = Filler::open(open(), &content, &|| true).unwrap();
        again.restart().unwrap();
        again.write(&stream).unwrap();
        again.finish().unwrap();
        // Longer than the content can be: nothing of it is taken.
        std::fs::write(&path, vec![7u8; 6000]).unwrap();
        assert_eq!(Filler::open(open(), &content, &|| true).unwrap().done(), 0);
        let stopped = Filler::open(open(), &content, &|| false);
        assert!(stopped.is_ok_and(|filler| filler.done() == 0));
    }
}
