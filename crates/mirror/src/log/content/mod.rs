//! Content segments: many small contents in packed blocks beside the log. Bytes: `docs/FORMAT.md`.
//!
//! A content is named by its place, which never changes. A segment is written once and never opened for writing
//! again. That the bytes are the right ones for a digest is for the caller to check.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use mirror_core::ContentRef;

use crate::disk::Disk;
use crate::sync::lock;

mod block;
mod cache;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

/// Unpacked bytes of a block, so also the largest content that can be put.
pub const BLOCK_RAW_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("cannot {step} {name}")]
    Io {
        step: &'static str,
        name: String,
        source: io::Error,
    },
    #[error("content segment {segment} is damaged at byte {offset}: {what}")]
    Damaged {
        segment: String,
        offset: u64,
        what: &'static str,
    },
    #[error("content segment {segment} is of format version {version}, newer than this program")]
    Newer { segment: String, version: u32 },
    /// The segment was pruned.
    #[error("content segment {segment} is gone")]
    Gone { segment: String },
    #[error("content of {bytes} bytes is too large for a content segment")]
    TooLarge { bytes: usize },
    #[error("content segments stopped after an earlier failure: {0}")]
    Poisoned(String),
}

fn io_error(step: &'static str, name: &str, source: io::Error) -> ContentError {
    ContentError::Io {
        step,
        name: name.to_owned(),
        source,
    }
}

/// Puts and gets contents. Clones share it.
#[derive(Clone)]
pub struct ContentStore {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    writer: Mutex<writer::Writer>,
    cache: Mutex<cache::Cache>,
}

impl ContentStore {
    /// What is there, or a new one.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        segment_bytes_max: u32,
        cache_bytes_max: usize,
    ) -> Result<ContentStore, ContentError> {
        disk.make_dir(segment::DIR)
            .map_err(|error| io_error("make", segment::DIR, error))?;
        let numbers = numbers(&*disk)?;
        let next = numbers.last().map_or(1, |last| last.saturating_add(1));
        let writer = writer::Writer::new(disk.clone(), segment_bytes_max, next);
        let inner = Inner {
            disk,
            writer: Mutex::new(writer),
            cache: Mutex::new(cache::Cache::new(cache_bytes_max)),
        };
        Ok(ContentStore {
            inner: Arc::new(inner),
        })
    }

    /// Stores a content; safe after the log's next flush.
    pub fn put(&self, bytes: &[u8]) -> Result<ContentRef, ContentError> {
        lock(&self.inner.writer).put(bytes)
    }

    pub fn get(&self, content: ContentRef) -> Result<Vec<u8>, ContentError> {
        if content.length == 0 {
            // Its block may never have come to be.
            return Ok(Vec::new());
        }
        let key = (content.segment, content.block);
        let known = lock(&self.inner.cache).get(key);
        let block = match known {
            Some(block) => block,
            None => {
                if let Some(bytes) = lock(&self.inner.writer).get_open(&content) {
                    return Ok(bytes);
                }
                let block = Arc::new(self.read_block(content.segment, content.block)?);
                lock(&self.inner.cache).put(key, block.clone());
                block
            }
        };
        let start = content.start as usize;
        let bytes = start
            .checked_add(content.length as usize)
            .and_then(|end| block.get(start..end));
        bytes
            .map(<[u8]>::to_vec)
            .ok_or_else(|| ContentError::Damaged {
                segment: segment::name(content.segment),
                offset: u64::from(content.block),
                what: "the content lies outside of the block",
            })
    }

    pub(super) fn flush(&self) -> Result<(), ContentError> {
        lock(&self.inner.writer).flush()
    }

    /// The segment that the next content goes into.
    pub(super) fn number(&self) -> u64 {
        lock(&self.inner.writer).number()
    }

    /// Bytes of each segment that is complete.
    pub(super) fn sizes(&self) -> Result<BTreeMap<u64, u64>, ContentError> {
        let current = self.number();
        let mut sizes = BTreeMap::new();
        for number in numbers(&*self.inner.disk)?
            .into_iter()
            .filter(|number| *number < current)
        {
            let name = segment::name(number);
            let file = self
                .inner
                .disk
                .open(&name)
                .map_err(|error| io_error("open", &name, error))?;
            sizes.insert(
                number,
                file.len().map_err(|error| io_error("read", &name, error))?,
            );
        }
        Ok(sizes)
    }

    /// Drops a complete segment.
    pub(super) fn remove(&self, number: u64) -> Result<(), ContentError> {
        let name = segment::name(number);
        self.inner
            .disk
            .remove(&name)
            .map_err(|error| io_error("remove", &name, error))?;
        lock(&self.inner.cache).forget_segment(number);
        Ok(())
    }

    pub(super) fn flush_names(&self) -> Result<(), ContentError> {
        self.inner
            .disk
            .flush_dir(segment::DIR)
            .map_err(|error| io_error("flush", segment::DIR, error))
    }

    fn read_block(&self, number: u64, offset: u32) -> Result<Vec<u8>, ContentError> {
        let name = segment::name(number);
        let file = match self.inner.disk.open(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ContentError::Gone { segment: name });
            }
            Err(error) => return Err(io_error("open", &name, error)),
        };
        let damaged = |offset: u32, what| ContentError::Damaged {
            segment: segment::name(number),
            offset: u64::from(offset),
            what,
        };
        let newer = |version| ContentError::Newer {
            segment: segment::name(number),
            version,
        };
        let read = |offset: u64, buffer: &mut [u8]| match file.read_at(offset, buffer) {
            Ok(read) if read == buffer.len() => Ok(()),
            Ok(_) => Err(ContentError::Damaged {
                segment: segment::name(number),
                offset,
                what: "the segment ends inside a header or block",
            }),
            Err(error) => Err(io_error("read", &segment::name(number), error)),
        };
        let mut header = [0; segment::HEADER_BYTES];
        read(0, &mut header)?;
        segment::check(&header, number).map_err(|bad| match bad {
            segment::BadHeader::Damaged(what) => damaged(0, what),
            segment::BadHeader::Newer(version) => newer(version),
        })?;
        let bad = |bad| match bad {
            block::BadBlock::Damaged(what) => damaged(offset, what),
            block::BadBlock::Newer(version) => newer(u32::from(version)),
        };
        let mut header = [0; block::HEADER_BYTES];
        read(u64::from(offset), &mut header)?;
        let parsed = block::Header::parse(&header).map_err(bad)?;
        let mut stored = vec![0; parsed.stored_len];
        read(u64::from(offset) + block::HEADER_BYTES as u64, &mut stored)?;
        parsed.unpack(&stored).map_err(bad)
    }
}

fn numbers(disk: &dyn Disk) -> Result<Vec<u64>, ContentError> {
    let names = disk
        .list(segment::DIR)
        .map_err(|error| io_error("list", segment::DIR, error))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| segment::number(name))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}
