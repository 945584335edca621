//! Where bulk content goes while it is read, so that a first copy and large files are read once.
//!
//! In a mirror on one host the sink is the copy's own staging area; over a link it is the wire. What no sink takes
//! is read again by whoever needs it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mirror_core::{Content, Meta, Name, ObjectId};

use crate::apply::{StagedDir, StagedFile, Staging, Token};
use crate::engine::options::Speed;

pub trait Sink: Send + Sync {
    /// A directory whose files are about to be read. `None`: nobody wants it.
    fn dir(&self) -> Option<(u64, Box<dyn SinkDir>)>;
    /// One file.
    fn file(&self) -> Option<(u64, Box<dyn SinkFile>)>;
    /// What was sunk under this token is `object`; called before its record can be seen.
    fn bind(&self, token: u64, object: ObjectId);
    fn forget(&self, token: u64);
    /// Waits while too much is staged and not yet in place. False: stop.
    fn room(&self) -> bool;
}

pub trait SinkDir: Send {
    fn put(&mut self, name: &Name, bytes: &[u8], content: &Content, meta: &Meta) -> io::Result<()>;
    fn file(&mut self, name: &Name) -> io::Result<Box<dyn SinkFile>>;
    fn finish(self: Box<Self>);
}

pub trait SinkFile: Send {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn finish(self: Box<Self>, content: &Content, meta: &Meta) -> io::Result<()>;
}

/// Nobody wants bulk content now.
pub struct NoSink;

impl Sink for NoSink {
    fn dir(&self) -> Option<(u64, Box<dyn SinkDir>)> {
        None
    }
    fn file(&self) -> Option<(u64, Box<dyn SinkFile>)> {
        None
    }
    fn bind(&self, _: u64, _: ObjectId) {}
    fn forget(&self, _: u64) {}
    fn room(&self) -> bool {
        true
    }
}

/// Straight into the staging area of the copy on this host.
pub struct StagingSink {
    staging: Arc<Staging>,
    next: AtomicU64,
    stop: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// Files staged and not yet in place, beyond which reading ahead waits.
const WAITING_FILES_MAX: u64 = 16_384;
/// Likewise bytes.
const WAITING_BYTES_MAX: u64 = 4 << 30;

impl StagingSink {
    pub fn new(staging: Arc<Staging>, stop: Arc<dyn Fn() -> bool + Send + Sync>) -> StagingSink {
        StagingSink {
            staging,
            next: AtomicU64::new(1),
            stop,
        }
    }
    fn token(&self) -> Token {
        Token(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

impl Sink for StagingSink {
    fn dir(&self) -> Option<(u64, Box<dyn SinkDir>)> {
        let token = self.token();
        let dir = self.staging.begin_dir(token).ok()?;
        Some((token.0, Box::new(dir)))
    }
    fn file(&self) -> Option<(u64, Box<dyn SinkFile>)> {
        let token = self.token();
        let file = self.staging.file(token).ok()?;
        Some((token.0, Box::new(file)))
    }
    fn bind(&self, token: u64, object: ObjectId) {
        self.staging.bind(Token(token), object);
    }
    fn forget(&self, token: u64) {
        self.staging.forget(Token(token));
    }
    fn room(&self) -> bool {
        loop {
            if (self.stop)() {
                return false;
            }
            let (files, bytes) = self.staging.waiting();
            if files < WAITING_FILES_MAX && bytes < WAITING_BYTES_MAX {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

impl SinkDir for StagedDir {
    fn put(&mut self, name: &Name, bytes: &[u8], content: &Content, meta: &Meta) -> io::Result<()> {
        StagedDir::put(self, name, bytes, content, meta)
    }
    fn file(&mut self, name: &Name) -> io::Result<Box<dyn SinkFile>> {
        Ok(Box::new(StagedDir::file(self, name)?))
    }
    fn finish(self: Box<Self>) {
        // What could not be finished is not bound, and asked for again by apply.
        StagedDir::finish(*self);
    }
}

impl SinkFile for StagedFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        StagedFile::write_at(self, bytes, offset)
    }
    fn finish(self: Box<Self>, content: &Content, meta: &Meta) -> io::Result<()> {
        StagedFile::finish(*self, content, meta).map(drop)
    }
}

/// A sink that takes no more than so many bytes a second.
pub struct Limited {
    inner: Arc<dyn Sink>,
    bucket: Arc<Bucket>,
}

/// Whoever spends more than there is, waits.
pub struct Bucket {
    speed: Speed,
    free_at: std::sync::Mutex<std::time::Instant>,
}

impl Bucket {
    pub fn new(speed: Speed) -> Bucket {
        Bucket {
            speed,
            free_at: std::sync::Mutex::new(std::time::Instant::now()),
        }
    }
    pub fn spend(&self, bytes: usize) {
        let Some(bytes_per_s) = self.speed.get() else {
            return;
        };
        let now = std::time::Instant::now();
        let cost = std::time::Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
        let wait = {
            let mut free_at = self
                .free_at
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let begin = (*free_at).max(now);
            *free_at = begin + cost;
            begin - now
        };
        std::thread::sleep(wait);
    }
}

impl Limited {
    pub fn new(inner: Arc<dyn Sink>, speed: Speed) -> Limited {
        Limited {
            inner,
            bucket: Arc::new(Bucket::new(speed)),
        }
    }
}

struct LimitedDir(Box<dyn SinkDir>, Arc<Bucket>);
struct LimitedFile(Box<dyn SinkFile>, Arc<Bucket>);

impl Sink for Limited {
    fn dir(&self) -> Option<(u64, Box<dyn SinkDir>)> {
        let (token, dir) = self.inner.dir()?;
        Some((token, Box::new(LimitedDir(dir, self.bucket.clone()))))
    }
    fn file(&self) -> Option<(u64, Box<dyn SinkFile>)> {
        let (token, file) = self.inner.file()?;
        Some((token, Box::new(LimitedFile(file, self.bucket.clone()))))
    }
    fn bind(&self, token: u64, object: ObjectId) {
        self.inner.bind(token, object);
    }
    fn forget(&self, token: u64) {
        self.inner.forget(token);
    }
    fn room(&self) -> bool {
        self.inner.room()
    }
}

impl SinkDir for LimitedDir {
    fn put(&mut self, name: &Name, bytes: &[u8], content: &Content, meta: &Meta) -> io::Result<()> {
        self.1.spend(bytes.len());
        self.0.put(name, bytes, content, meta)
    }
    fn file(&mut self, name: &Name) -> io::Result<Box<dyn SinkFile>> {
        Ok(Box::new(LimitedFile(self.0.file(name)?, self.1.clone())))
    }
    fn finish(self: Box<Self>) {
        self.0.finish();
    }
}

impl SinkFile for LimitedFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.spend(bytes.len());
        self.0.write_at(bytes, offset)
    }
    fn finish(self: Box<Self>, content: &Content, meta: &Meta) -> io::Result<()> {
        self.0.finish(content, meta)
    }
}
