//! Gathers contents into blocks and blocks into segments.

use std::sync::Arc;

use mirror_core::ContentRef;

use super::block::Packer;
use super::{BLOCK_RAW_BYTES_MAX, ContentError, io_error, segment};
use crate::disk::{Disk, DiskFile};
use crate::planted;

pub struct Writer {
    disk: Arc<dyn Disk>,
    segment_bytes_max: u32,
    packer: Packer,
    /// The segment being written, or the next one to begin.
    number: u64,
    file: Option<Arc<dyn DiskFile>>,
    /// Bytes of the segment, its header included, without the open block.
    written: u32,
    /// Contents of the open block.
    raw: Vec<u8>,
    /// Written since the last flush.
    dirty: bool,
    failed: Option<String>,
}

impl Writer {
    /// Begins with segment `number`, which does not exist: an older one may end in a torn block, and stays as it is.
    pub fn new(disk: Arc<dyn Disk>, segment_bytes_max: u32, number: u64) -> Writer {
        Writer {
            disk,
            segment_bytes_max: segment_bytes_max.min(1 << 30),
            packer: Packer::new(),
            number,
            file: None,
            written: segment::HEADER_BYTES as u32,
            raw: Vec::new(),
            dirty: false,
            failed: None,
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn put(&mut self, bytes: &[u8]) -> Result<ContentRef, ContentError> {
        self.alive()?;
        if bytes.len() > BLOCK_RAW_BYTES_MAX {
            return Err(ContentError::TooLarge { bytes: bytes.len() });
        }
        if self.raw.len() + bytes.len() > BLOCK_RAW_BYTES_MAX {
            let cut = self.cut_block();
            self.remember(cut)?;
        }
        let content = ContentRef {
            segment: self.number,
            block: self.written,
            start: self.raw.len() as u32,
            length: bytes.len() as u32,
        };
        self.raw.extend_from_slice(bytes);
        Ok(content)
    }

    /// A content of the block that is still open.
    pub fn get_open(&self, content: &ContentRef) -> Option<Vec<u8>> {
        let here = content.segment == self.number && content.block == self.written;
        let start = content.start as usize;
        let bytes = self
            .raw
            .get(start..start.checked_add(content.length as usize)?)?;
        (here && !self.raw.is_empty()).then(|| bytes.to_vec())
    }

    pub fn flush(&mut self) -> Result<(), ContentError> {
        self.alive()?;
        let flushed = self.cut_block().and_then(|()| self.flush_file());
        self.remember(flushed)
    }

    fn alive(&self) -> Result<(), ContentError> {
        match &self.failed {
            Some(failure) => Err(ContentError::Poisoned(failure.clone())),
            None => Ok(()),
        }
    }

    /// After a failure nobody can say what is on disk.
    fn remember(&mut self, result: Result<(), ContentError>) -> Result<(), ContentError> {
        if let Err(error) = &result {
            self.failed = Some(super::super::describe(error));
        }
        result
    }

    fn cut_block(&mut self) -> Result<(), ContentError> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let name = segment::name(self.number);
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let file = self
                    .disk
                    .create(&name)
                    .map_err(|error| io_error("create", &name, error))?;
                file.append(&segment::header(self.number))
                    .map_err(|error| io_error("write", &name, error))?;
                self.file = Some(file.clone());
                self.dirty = true;
                self.disk
                    .flush_dir(segment::DIR)
                    .map_err(|error| io_error("flush", segment::DIR, error))?;
                file
            }
        };
        let block = self.packer.pack(&self.raw);
        file.append(&block)
            .map_err(|error| io_error("write", &name, error))?;
        self.dirty = true;
        self.raw.clear();
        self.written += block.len() as u32;
        if self.written >= self.segment_bytes_max {
            self.flush_file()?;
            self.file = None;
            self.number += 1;
            self.written = segment::HEADER_BYTES as u32;
        }
        Ok(())
    }

    fn flush_file(&mut self) -> Result<(), ContentError> {
        let dirty = self.dirty && !planted::is("content_not_flushed");
        if let Some(file) = self.file.as_ref().filter(|_| dirty) {
            file.flush()
                .map_err(|error| io_error("flush", &segment::name(self.number), error))?;
            self.dirty = false;
        }
        Ok(())
    }
}
