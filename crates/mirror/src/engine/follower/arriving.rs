//! Contents that came, while their records did not yet.
//!
//! In memory, and beyond that in a file without a name: nothing that a peer sends outlives the connection unless a record
//! names it, and then only the bytes that record means.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mirror_core::{Content, Digest};

use super::contents::is_it;
use crate::disk::nameless;
use crate::engine::local::outer::space;
use crate::engine::session::show;
use crate::link::message::{AHEAD_BYTES_MAX, Block};

/// Contents that no record names yet, by number.
const UNNAMED_MAX: usize = 1 << 17;
/// Bytes of them in memory.
const MEMORY_BYTES_MAX: usize = 16 << 20;
/// What came and is not in use yet may take the fourth part of what is free.
const PART_OF_FREE: u64 = 4;
/// In the state directory, for the moment until it has no name any more.
const FILE: &str = "arriving";

#[derive(Debug)]
pub enum Full {
    /// No worker sends so much ahead.
    TooMuch(String),
    /// It can't be kept here.
    NoRoom(String),
}

pub struct Arriving {
    state_dir: PathBuf,
    by_digest: HashMap<Digest, Arrived>,
    /// All that came, equal ones too.
    bytes: u64,
    in_memory: usize,
    /// Of what the worker does not keep.
    passing: usize,
    file: Option<File>,
    in_file: u64,
}

struct Arrived {
    /// The worker keeps it beside its log.
    kept: bool,
    body: Body,
}

enum Body {
    Memory(Vec<u8>),
    File { offset: u64, length: usize },
}

impl Arriving {
    pub fn new(state_dir: &Path) -> Arriving {
        Arriving {
            state_dir: state_dir.to_path_buf(),
            by_digest: HashMap::new(),
            bytes: 0,
            in_memory: 0,
            passing: 0,
            file: None,
            in_file: 0,
        }
    }

    pub fn put(&mut self, block: Block, kept: bool) -> Result<(), Full> {
        self.bytes = self.bytes.saturating_add(block.bytes.len() as u64);
        if self.bytes > AHEAD_BYTES_MAX || self.by_digest.len() >= UNNAMED_MAX {
            return Err(Full::TooMuch(format!(
                "contents of {} MiB come without their records",
                self.bytes >> 20
            )));
        }
        let digest = Digest(block.digest);
        if self.by_digest.contains_key(&digest) {
            return Ok(());
        }
        let length = block.bytes.len();
        let body = if self.in_memory + block.bytes.len() <= MEMORY_BYTES_MAX {
            self.in_memory += block.bytes.len();
            Body::Memory(block.bytes)
        } else {
            self.spill(&block.bytes)?
        };
        if !kept {
            self.passing += length;
        }
        self.by_digest.insert(digest, Arrived { kept, body });
        Ok(())
    }

    /// Bytes that are to be in memory until they are applied.
    pub fn passing(&self) -> usize {
        self.passing
    }

    fn spill(&mut self, bytes: &[u8]) -> Result<Body, Full> {
        let (offset, length) = (self.in_file, bytes.len());
        let after = offset + length as u64;
        room(&self.state_dir, offset, after).map_err(Full::NoRoom)?;
        let written = match &self.file {
            Some(file) => file.write_all_at(bytes, offset),
            None => nameless(&self.state_dir, FILE).and_then(|file| {
                let done = file.write_all_at(bytes, offset);
                self.file = Some(file);
                done
            }),
        };
        written.map_err(|e| Full::NoRoom(no_room(&self.state_dir, &e.to_string())))?;
        self.in_file = after;
        Ok(Body::File { offset, length })
    }

    /// The content that a record names, and whether it is to be kept beside the log. An error: what came is something
    /// else.
    pub fn take(&mut self, content: &Content) -> Result<Option<(Vec<u8>, bool)>, ()> {
        let Some(Arrived { kept, body }) = self.by_digest.remove(&content.digest) else {
            return Ok(None);
        };
        let bytes = match body {
            Body::Memory(bytes) => bytes,
            Body::File { offset, length } => {
                let mut bytes = vec![0; length];
                match &self.file {
                    // What can't be read back is asked for again.
                    Some(file) if file.read_exact_at(&mut bytes, offset).is_ok() => bytes,
                    _ => return Ok(None),
                }
            }
        };
        if is_it(&bytes, content) {
            Ok(Some((bytes, kept)))
        } else {
            Err(())
        }
    }
}

/// Whether something that has so many bytes may grow to so many.
pub fn room(state_dir: &Path, before: u64, after: u64) -> Result<(), String> {
    match space(state_dir) {
        Some(space) if after > space.bytes_free.saturating_add(before) / PART_OF_FREE => {
            let (mib, free) = (after >> 20, space.bytes_free >> 20);
            Err(no_room(
                state_dir,
                &format!("{mib} MiB, and {free} MiB are free"),
            ))
        }
        _ => Ok(()),
    }
}

fn no_room(state_dir: &Path, why: &str) -> String {
    format!("no room in {} for what comes: {why}", show(state_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(bytes: Vec<u8>) -> Block {
        Block {
            digest: *blake3::hash(&bytes).as_bytes(),
            bytes,
        }
    }

    fn content(bytes: &[u8]) -> Content {
        Content {
            bytes: bytes.len() as u64,
            digest: Digest(*blake3::hash(bytes).as_bytes()),
            data: Vec::new(),
            proven: true,
            fuzzy: false,
        }
    }

    #[test]
    fn what_a_record_names_is_had_back_wherever_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut arriving = Arriving::new(dir.path());
        let bytes = |n: u8| vec![n; 200_000];
        for n in 0..200 {
            arriving.put(block(bytes(n)), n % 2 == 0).unwrap();
        }
        assert!(arriving.in_memory <= MEMORY_BYTES_MAX && arriving.in_file > 20_000_000);
        for n in [0, 1, 150, 199] {
            let found = arriving.take(&content(&bytes(n))).unwrap();
            assert_eq!(found, Some((bytes(n), n % 2 == 0)));
            assert_eq!(arriving.take(&content(&bytes(n))), Ok(None));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_bytes_than_the_digest_says_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut arriving = Arriving::new(dir.path());
        let digest = content(b"this").digest.0;
        let bytes = b"that".to_vec();
        arriving.put(Block { digest, bytes }, true).unwrap();
        assert_eq!(arriving.take(&content(b"this")), Err(()));
        // With holes the digest is of more than the bytes.
        let data = vec![(0, 4)];
        let mut hash = crate::capture::read::hasher(4096, &data);
        hash.update(b"data");
        let holey = Content {
            bytes: 4096,
            digest: Digest(*hash.finalize().as_bytes()),
            data,
            proven: true,
            fuzzy: false,
        };
        let (digest, bytes) = (holey.digest.0, b"data".to_vec());
        arriving.put(Block { digest, bytes }, true).unwrap();
        assert_eq!(arriving.take(&holey), Ok(Some((b"data".to_vec(), true))));
    }

    #[test]
    fn what_comes_without_records_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut arriving = Arriving::new(dir.path());
        // The same again and again takes no room, and has an end too.
        let one = block(vec![7; 200_000]);
        let mut sent = 0;
        let refused = loop {
            match arriving.put(one.clone(), true) {
                Ok(()) => sent += one.bytes.len() as u64,
                Err(full) => break full,
            }
        };
        assert!(matches!(refused, Full::TooMuch(_)), "{refused:?}");
        assert!(
            sent <= AHEAD_BYTES_MAX && arriving.in_memory + arriving.in_file as usize == 200_000
        );
        let mut arriving = Arriving::new(dir.path());
        let full = (0..)
            .find_map(|n: u64| arriving.put(block(n.to_le_bytes().to_vec()), true).err())
            .unwrap();
        assert!(matches!(full, Full::TooMuch(_)), "{full:?}");
        assert_eq!(arriving.by_digest.len(), UNNAMED_MAX);
    }
}
