//! Where bulk content goes while it is read, so that a first copy and large files are read once.
//!
//! In a mirror on one host the sink is the copy's own staging area; over a link it is the wire. What no sink takes
//! is read again by whoever needs it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mirror_core::{Content, Meta, Name, ObjectId};

use crate::apply::{StagedDir, StagedFile, Staging, Token};
use crate::engine::options::Speed;
use crate::sync::lock;

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
    throttle: Arc<Throttle>,
}

/// Whoever spends more than there is, waits: until it is there, another limit is set, or it is over.
pub struct Throttle {
    speed: Speed,
    state: Mutex<Spent>,
    stop: Arc<dyn Fn() -> bool + Send + Sync>,
}

struct Spent {
    bytes_per_s: u64,
    /// All that was spent at this rate is paid for by then.
    free_at: Instant,
    /// Until when somebody waits.
    waits: Option<Instant>,
}

const NAP: Duration = Duration::from_millis(50);
/// For so long after it let somebody wait, the limit is what holds us back.
const HELD_LATELY: Duration = Duration::from_secs(1);

impl Throttle {
    pub fn new(speed: Speed, stop: Arc<dyn Fn() -> bool + Send + Sync>) -> Throttle {
        let state = Spent {
            bytes_per_s: 0,
            free_at: Instant::now(),
            waits: None,
        };
        Throttle {
            speed,
            state: Mutex::new(state),
            stop,
        }
    }

    fn spend(&self, bytes: usize) {
        let Some(rate) = self.speed.get() else {
            return;
        };
        let until = {
            let mut state = lock(&self.state);
            let now = Instant::now();
            if state.bytes_per_s != rate {
                // What was owed at another rate is forgiven.
                state.free_at = now;
                state.bytes_per_s = rate;
            }
            let until = state.free_at.max(now);
            let cost = Duration::from_secs_f64((bytes as f64 / rate as f64).min(1e6));
            state.free_at = until + cost;
            if until > now {
                state.waits = Some(until);
            }
            until
        };
        while self.speed.get() == Some(rate) && !(self.stop)() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(NAP));
        }
        lock(&self.state).waits = Some(Instant::now());
    }

    /// The limit, if it is what holds us back.
    pub fn held_to(&self) -> Option<u64> {
        let waits = lock(&self.state).waits;
        let lately = waits.is_some_and(|until| Instant::now() < until + HELD_LATELY);
        self.speed.get().filter(|_| lately)
    }
}

impl Limited {
    pub fn new(inner: Arc<dyn Sink>, throttle: Arc<Throttle>) -> Limited {
        Limited { inner, throttle }
    }
}

struct LimitedDir(Box<dyn SinkDir>, Arc<Throttle>);
struct LimitedFile(Box<dyn SinkFile>, Arc<Throttle>);

impl Sink for Limited {
    fn dir(&self) -> Option<(u64, Box<dyn SinkDir>)> {
        let (token, dir) = self.inner.dir()?;
        Some((token, Box::new(LimitedDir(dir, self.throttle.clone()))))
    }
    fn file(&self) -> Option<(u64, Box<dyn SinkFile>)> {
        let (token, file) = self.inner.file()?;
        Some((token, Box::new(LimitedFile(file, self.throttle.clone()))))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// Days are owed; somebody waits for that, and no longer than until this was done.
    fn waits_until(then: impl FnOnce(&Speed, &AtomicBool)) {
        let (speed, over) = (Speed::new(Some(10)), Arc::new(AtomicBool::new(false)));
        let told = over.clone();
        let stop = Arc::new(move || told.load(Ordering::Acquire));
        let throttle = Arc::new(Throttle::new(speed.clone(), stop));
        throttle.spend(1 << 20);
        assert_eq!(
            throttle.held_to(),
            None,
            "what is spent first is paid later"
        );
        let waits = {
            let throttle = throttle.clone();
            std::thread::spawn(move || throttle.spend(1))
        };
        while throttle.held_to() != Some(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        then(&speed, &over);
        waits.join().unwrap();
    }

    #[test]
    fn another_limit_and_the_end_are_heard_of_while_somebody_waits() {
        waits_until(|speed, _| speed.set(None));
        waits_until(|speed, _| speed.set(Some(1 << 30)));
        waits_until(|_, over| over.store(true, Ordering::Release));
    }
}
