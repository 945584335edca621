//! A piece of a segment in memory, which moves on as it is read.

use std::io;
use std::sync::Arc;

use crate::disk::DiskFile;

/// Bytes read in one go.
const CHUNK: usize = 256 << 10;

pub struct Window {
    file: Arc<dyn DiskFile>,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    pub fn new(file: Arc<dyn DiskFile>) -> Window {
        Window {
            file,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// Bytes from `offset` on: at least `want` of them unless `limit`, an offset in the file, or the file's end
    /// comes first; never any from `limit` on.
    pub fn at(&mut self, offset: u64, want: usize, limit: u64) -> io::Result<&[u8]> {
        let want = want.min(usize::try_from(limit.saturating_sub(offset)).unwrap_or(usize::MAX));
        let held =
            offset >= self.start && offset + want as u64 <= self.start + self.bytes.len() as u64;
        if !held {
            let len = want
                .max(CHUNK)
                .min(usize::try_from(limit.saturating_sub(offset)).unwrap_or(usize::MAX));
            self.bytes.resize(len, 0);
            self.start = offset;
            match self.file.read_at(offset, &mut self.bytes) {
                Ok(read) => self.bytes.truncate(read),
                Err(error) => {
                    self.bytes.clear();
                    return Err(error);
                }
            }
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let to = usize::try_from(limit.saturating_sub(self.start))
            .unwrap_or(usize::MAX)
            .min(self.bytes.len());
        Ok(self.bytes.get(from..to).unwrap_or_default())
    }

    pub fn file_len(&self) -> io::Result<u64> {
        self.file.len()
    }
}
