//! The sink: contents written straight into the staging area by whoever reads the source, before their record exists.
//!
//! Thread-safe. What is staged under a [`Token`] is bound to an object when its record is appended, and
//! [`super::Applier::apply`] then puts it in place without copying. Staging never outlives the process: it is wiped
//! at open, and what was lost is fetched again.

use std::io;

use mirror_core::{Content, Meta, Name, ObjectId};

/// Chosen by the writer, each used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// The staging area.
pub struct Staging {}

/// A directory being filled. The files get their final names at once, because nobody can see them yet.
pub struct StagedDir {}

/// A file being written.
pub struct StagedFile {}

/// A finished file in staging: only its key, so it may be dropped.
#[derive(Debug)]
pub struct Staged {}

impl Staging {
    /// A directory whose files will be staged. Several tokens may be bound to the same directory.
    pub fn begin_dir(&self, _token: Token) -> io::Result<StagedDir> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// A single file.
    pub fn file(&self, _token: Token) -> io::Result<StagedFile> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// What was finished under this token is the content of `object` (a file), or the files of `object` (a directory).
    /// Call it after `finish` and before the record is given to apply.
    pub fn bind(&self, _token: Token, _object: ObjectId) {}
    /// Gives up what was staged under this token.
    pub fn forget(&self, _token: Token) {}
    /// Files and bytes staged and not yet in place: for back-pressure.
    pub fn waiting(&self) -> (u64, u64) {
        (0, 0)
    }
}

impl StagedDir {
    /// A whole small file at once: the cheapest way. `bytes` as in [`super::Fetched::Bytes`], of digest
    /// `content.digest`: the caller has hashed them.
    pub fn put(
        &mut self,
        _name: &Name,
        _bytes: &[u8],
        _content: &Content,
        _meta: &Meta,
    ) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// A file to be written in pieces.
    pub fn file(&mut self, _name: &Name) -> io::Result<StagedFile> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// No more files come under this token.
    pub fn finish(self) {}
}

impl StagedFile {
    /// Bytes at the offset; what is never written stays a hole. Whoever writes gives every byte of `content.data`.
    pub fn write_at(&mut self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Size, holes and metadata become final. `content.digest` is the caller's word for what it wrote. Returns the file
    /// for [`super::Fetched::Staged`]; one that was begun under a token or in a directory is found by `bind` and the
    /// result may be dropped.
    pub fn finish(self, _content: &Content, _meta: &Meta) -> io::Result<Staged> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
