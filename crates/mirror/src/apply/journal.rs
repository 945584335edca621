//! Which inodes were made for which objects since the rows were last durable: `STATE/made`.
//!
//! Only a help after a crash: with it a replay knows its own doing by identity, and need neither compare bytes nor take
//! what an earlier batch made and a later one replaced for somebody's work. Never flushed; without it, or after a
//! power cut, bytes are compared.
//!
//! Bytes: `FSMm`, version 1 (u32), boot id (16); then entries of 48: object (u64), inode (u64), birth seconds (i64) and
//! nanoseconds (u32), first 16 bytes of the content's digest (zeros: no regular file), crc32c of the 44 before. All
//! little endian. The first entry that is torn ends it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use mirror_core::{Kind, Local, ObjectId};

use crate::sys::stat::Stat;

const HEADER: u64 = 24;
const ENTRY: usize = 48;

/// An inode, as far as a number used again is told apart.
pub type Inode = (u64, i64, u32);

/// What an inode was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ours {
    pub object: ObjectId,
    pub digest: [u8; 16],
}

pub struct Journal {
    file: File,
    end: u64,
    /// What a process before this one wrote, until the next checkpoint.
    pub before: HashMap<Inode, Ours>,
    /// The machine has run since then, so what was written is there.
    pub trusted: bool,
}

pub fn inode(stat: &Stat) -> Inode {
    (stat.ino, stat.btime.seconds, stat.btime.nanos)
}

/// The one a row speaks of.
pub fn inode_of(local: &Local) -> Inode {
    (local.ino, local.btime.seconds, local.btime.nanos)
}

pub fn digest_of(kind: &Kind) -> [u8; 16] {
    let mut digest = [0; 16];
    if let Some(content) = kind.content() {
        digest.copy_from_slice(&content.digest.0[..16]);
    }
    digest
}

fn header() -> [u8; HEADER as usize] {
    let mut header = [0; HEADER as usize];
    header[..4].copy_from_slice(b"FSMm");
    header[4] = 1;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
    if let Ok(id) = u128::from_str_radix(&hex, 16) {
        header[8..].copy_from_slice(&id.to_le_bytes());
    }
    header
}

impl Journal {
    pub fn open(path: &Path) -> io::Result<Journal> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut &file, &mut bytes)?;
        let header = header();
        let mut journal = Journal {
            file,
            end: HEADER,
            before: HashMap::new(),
            trusted: false,
        };
        let Some((found, entries)) = bytes.split_first_chunk::<{ HEADER as usize }>() else {
            journal.restart(|_| false)?;
            return Ok(journal);
        };
        if found[..8] != header[..8] {
            journal.restart(|_| false)?;
            return Ok(journal);
        }
        journal.trusted = found == &header && header[8..] != [0; 16];
        for entry in entries.chunks_exact(ENTRY) {
            let Some((inode, ours)) = parse(entry) else {
                break;
            };
            journal.before.insert(inode, ours);
            journal.end += ENTRY as u64;
        }
        Ok(journal)
    }

    /// The rows are durable: nothing before this matters, but for objects that failed, whose inodes may still lie about.
    pub fn restart(&mut self, keep: impl Fn(ObjectId) -> bool) -> io::Result<()> {
        self.before.retain(|_, ours| keep(ours.object));
        self.trusted |= self.before.is_empty();
        let mut header = header();
        if !self.trusted {
            // Of no boot.
            header[8..].fill(0);
        }
        self.file.set_len(HEADER)?;
        self.file.write_all_at(&header, 0)?;
        self.end = HEADER;
        let kept: Vec<_> = self
            .before
            .iter()
            .map(|(inode, ours)| (*inode, *ours))
            .collect();
        self.write(&kept)
    }

    pub fn add(&mut self, made: &[(ObjectId, Local, [u8; 16])]) -> io::Result<()> {
        let entry = |(object, local, digest): &(ObjectId, Local, [u8; 16])| {
            let (object, digest) = (*object, *digest);
            (inode_of(local), Ours { object, digest })
        };
        let made: Vec<_> = made.iter().map(entry).collect();
        self.write(&made)
    }

    fn write(&mut self, made: &[(Inode, Ours)]) -> io::Result<()> {
        if made.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(made.len() * ENTRY);
        for ((ino, seconds, nanos), ours) in made {
            let start = bytes.len();
            bytes.extend(ours.object.0.to_le_bytes());
            bytes.extend(ino.to_le_bytes());
            bytes.extend(seconds.to_le_bytes());
            bytes.extend(nanos.to_le_bytes());
            bytes.extend(ours.digest);
            let sum = crc32c::crc32c(bytes.get(start..).unwrap_or_default());
            bytes.extend(sum.to_le_bytes());
        }
        self.file.write_all_at(&bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

fn parse(entry: &[u8]) -> Option<(Inode, Ours)> {
    let (body, sum) = entry.split_at_checked(ENTRY - 4)?;
    if crc32c::crc32c(body).to_le_bytes() != sum {
        return None;
    }
    let u64_at = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
    let nanos = u32::from_le_bytes(body.get(24..28)?.try_into().ok()?);
    let ours = Ours {
        object: ObjectId(u64_at(0)?),
        digest: body.get(28..44)?.try_into().ok()?,
    };
    Some(((u64_at(8)?, u64_at(16)?.cast_signed(), nanos), ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::Time;

    #[test]
    fn what_was_made_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made");
        let local = |ino| Local {
            ino,
            btime: Time {
                seconds: -3,
                nanos: 4,
            },
            ..Local::default()
        };
        let mut journal = Journal::open(&path).unwrap();
        journal
            .add(&[
                (ObjectId(7), local(70), [1; 16]),
                (ObjectId(8), local(80), [0; 16]),
            ])
            .unwrap();
        journal.add(&[(ObjectId(9), local(90), [9; 16])]).unwrap();
        let again = Journal::open(&path).unwrap();
        assert!(again.trusted);
        assert_eq!(again.before.len(), 3);
        assert_eq!(
            again.before[&(70, -3, 4)],
            Ours {
                object: ObjectId(7),
                digest: [1; 16]
            }
        );
        // A torn tail ends it.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(Journal::open(&path).unwrap().before.len(), 2);
        let mut flipped = bytes.clone();
        flipped[24 + 5] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert_eq!(Journal::open(&path).unwrap().before.len(), 0);
        // Another boot.
        let mut other = bytes.clone();
        other[9] ^= 1;
        std::fs::write(&path, other).unwrap();
        let mut again = Journal::open(&path).unwrap();
        assert!(!again.trusted && again.before.len() == 3);
        again.restart(|_| false).unwrap();
        assert!(Journal::open(&path).unwrap().before.is_empty());
    }
}
