//! What several followers are sent is read and made once: contents that capture has just read, large ones on their way
//! ([`Spool`]), and batches of the log ([`Batches`]).
//!
//! Capture hands the files it reads to the sink: small ones stay in memory for a moment, and a sender that comes along soon
//! finds them here by their digest. Large ones go to the spool, if more than one follower is there. What does not fit, or is not
//! fetched in time, is forgotten and read again.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mirror_core::{Content, Digest, Meta, Name, ObjectId};

use super::batches::Batches;
use super::message::SMALL_BYTES_MAX;
use super::serve::ReadBack;
use super::spool::{Followed, Put, Spool};
use crate::capture::sink::{Sink, SinkDir, SinkFile};
use crate::sync::lock;

/// All contents together.
pub const CACHE_BYTES_MAX: usize = 32 << 20;
/// How long a scan waits for a sender that has fallen behind, each time.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct ContentCache {
    state: Mutex<State>,
    taken: Condvar,
    /// Followers that are sending; without any nothing is kept.
    readers: AtomicUsize,
    spool: Option<Arc<Spool>>,
    batches: Arc<Batches>,
}

#[derive(Default)]
struct State {
    bytes: usize,
    by_digest: HashMap<Digest, Arc<[u8]>>,
    /// In the order they came; may name some that are gone.
    order: VecDeque<Digest>,
    /// Senders were too slow once: nobody waits for them until one of them takes something.
    tired: bool,
}

impl State {
    fn remove(&mut self, digest: &Digest) -> Option<Arc<[u8]>> {
        let bytes = self.by_digest.remove(digest)?;
        self.bytes -= bytes.len();
        Some(bytes)
    }
}

impl ContentCache {
    /// With a spool in this directory.
    pub fn in_dir(dir: &Path) -> ContentCache {
        ContentCache {
            spool: Some(Arc::new(Spool::new(dir))),
            ..ContentCache::default()
        }
    }

    /// More than one follower is sent the same.
    pub fn several(&self) -> bool {
        self.readers.load(Ordering::SeqCst) > 1
    }

    pub fn batches(&self) -> &Arc<Batches> {
        &self.batches
    }

    /// A content that `produce` can say, as often as it is asked: once for all that ask at about the same time.
    pub fn read(
        &self,
        digest: Digest,
        produce: impl Fn(&mut dyn FnMut(&[u8]) -> bool) -> ReadBack + Clone + Send + 'static,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> ReadBack {
        let once = produce.clone();
        let mut skip = match &self.spool {
            Some(spool) => match spool.read(digest, self.several(), once, each) {
                Followed::End(end) => return end,
                Followed::Alone(from) => from,
            },
            None => 0,
        };
        produce(&mut |piece| {
            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= known as u64;
            each(piece.get(known..).unwrap_or_default())
        })
    }

    /// What is not of use any more goes.
    pub fn sweep(&self) {
        self.batches.sweep();
        if let Some(spool) = &self.spool {
            spool.sweep();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Counts one more sender for as long as the guard lives.
    pub fn reader(self: &Arc<ContentCache>) -> CacheReader {
        self.readers.fetch_add(1, Ordering::SeqCst);
        CacheReader {
            cache: self.clone(),
        }
    }

    pub fn put(&self, digest: Digest, bytes: &[u8]) {
        if bytes.len() > CACHE_BYTES_MAX / 4 || self.readers.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut state = self.lock();
        if state.by_digest.contains_key(&digest) {
            return;
        }
        while state.bytes + bytes.len() > CACHE_BYTES_MAX
            && let Some(oldest) = state.order.pop_front()
        {
            state.remove(&oldest);
        }
        state.bytes += bytes.len();
        state.by_digest.insert(digest, bytes.into());
        state.order.push_back(digest);
    }

    /// The content, if it is still here. With a single sender it is then forgotten.
    pub fn take(&self, digest: &Digest) -> Option<Arc<[u8]>> {
        let alone = self.readers.load(Ordering::SeqCst) <= 1;
        let mut state = self.lock();
        let found = if alone {
            state.remove(digest)
        } else {
            state.by_digest.get(digest).cloned()
        };
        if found.is_some() {
            state.tired = false;
            // Names of what is gone must not gather.
            if state.order.len() > 2 * state.by_digest.len() + 1024 {
                let State {
                    order, by_digest, ..
                } = &mut *state;
                order.retain(|digest| by_digest.contains_key(digest));
            }
            self.taken.notify_all();
        }
        found
    }

    /// Waits a moment while it is nearly full and somebody is about to take from it.
    fn room(&self) {
        let until = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while state.bytes > CACHE_BYTES_MAX * 3 / 4
            && !state.tired
            && self.readers.load(Ordering::SeqCst) > 0
        {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.tired = true;
                return;
            }
            state = self
                .taken
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// A sender that takes from the cache.
pub struct CacheReader {
    cache: Arc<ContentCache>,
}

impl CacheReader {
    pub fn take(&self, digest: &Digest) -> Option<Arc<[u8]>> {
        self.cache.take(digest)
    }

    /// What was read for one of several, for the others.
    pub fn read(&self, digest: Digest, bytes: &[u8]) {
        if self.cache.several() {
            self.cache.put(digest, bytes);
        }
    }

    pub fn cache(&self) -> &ContentCache {
        &self.cache
    }
}

impl Drop for CacheReader {
    fn drop(&mut self) {
        let left = self.cache.readers.fetch_sub(1, Ordering::SeqCst) - 1;
        if left == 0 {
            *self.cache.lock() = State::default();
        }
        if left < 2 {
            self.cache.batches.clear();
            if let Some(spool) = &self.cache.spool {
                spool.clear();
            }
        }
        self.cache.taken.notify_all();
    }
}

/// Capture's sink on a worker.
pub struct CacheSink(pub Arc<ContentCache>);

impl Sink for CacheSink {
    fn dir(&self) -> Option<(u64, Box<dyn SinkDir>)> {
        if self.0.readers.load(Ordering::SeqCst) == 0 {
            return None;
        }
        Some((0, Box::new(CacheDir(self.0.clone()))))
    }
    fn file(&self) -> Option<(u64, Box<dyn SinkFile>)> {
        if self.0.readers.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let file = CacheFile {
            cache: self.0.clone(),
            small: Vec::new(),
            large: None,
        };
        Some((0, Box::new(file)))
    }
    fn bind(&self, _: u64, _: ObjectId) {}
    fn forget(&self, _: u64) {}
    fn room(&self) -> bool {
        self.0.room();
        true
    }
}

struct CacheDir(Arc<ContentCache>);

impl SinkDir for CacheDir {
    fn put(&mut self, _: &Name, bytes: &[u8], content: &Content, _: &Meta) -> io::Result<()> {
        if bytes.len() as u64 <= SMALL_BYTES_MAX {
            self.0.put(content.digest, bytes);
        }
        Ok(())
    }
    fn file(&mut self, _: &Name) -> io::Result<Box<dyn SinkFile>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn finish(self: Box<Self>) {}
}

/// A file that is read by itself. Its bytes come in order, without holes.
struct CacheFile {
    cache: Arc<ContentCache>,
    small: Vec<u8>,
    large: Option<Put>,
}

impl SinkFile for CacheFile {
    fn write_at(&mut self, bytes: &[u8], _: u64) -> io::Result<()> {
        if let Some(large) = &mut self.large {
            return large.write(bytes);
        }
        if (self.small.len() + bytes.len()) as u64 <= SMALL_BYTES_MAX {
            self.small.extend_from_slice(bytes);
            return Ok(());
        }
        // For one alone it is no better than to read the file again.
        let spool = self.cache.spool.as_ref().filter(|_| self.cache.several());
        let mut large = spool
            .and_then(Spool::put)
            .ok_or(io::ErrorKind::Unsupported)?;
        large.write(&std::mem::take(&mut self.small))?;
        large.write(bytes)?;
        self.large = Some(large);
        Ok(())
    }

    fn finish(self: Box<Self>, content: &Content, _: &Meta) -> io::Result<()> {
        match self.large {
            Some(large) => large.finish(content.digest),
            None => self.cache.put(content.digest, &self.small),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u32) -> Digest {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        Digest(bytes)
    }

    #[test]
    fn keeps_nothing_for_nobody() {
        let cache = Arc::new(ContentCache::default());
        cache.put(digest(1), b"one");
        assert!(cache.take(&digest(1)).is_none());
        let reader = cache.reader();
        cache.put(digest(1), b"one");
        assert_eq!(reader.take(&digest(1)).as_deref(), Some(&b"one"[..]));
        assert!(reader.take(&digest(1)).is_none(), "the only one took it");
    }

    #[test]
    fn several_readers_find_the_same_and_the_oldest_goes() {
        let cache = Arc::new(ContentCache::default());
        let (a, b) = (cache.reader(), cache.reader());
        let big = vec![7; 1 << 20];
        for n in 0..40 {
            cache.put(digest(n), &big);
        }
        assert!(a.take(&digest(0)).is_none());
        assert!(a.take(&digest(39)).is_some() && b.take(&digest(39)).is_some());
        assert!(cache.lock().bytes <= CACHE_BYTES_MAX);
        drop((a, b));
        assert_eq!(cache.lock().bytes, 0);
    }

    #[test]
    fn a_slow_reader_is_waited_for_once() {
        let cache = Arc::new(ContentCache::default());
        let _reader = cache.reader();
        for n in 0..32 {
            cache.put(digest(n), &vec![7; 1 << 20]);
        }
        let before = Instant::now();
        cache.room();
        let once = before.elapsed();
        assert!(once >= PATIENCE);
        cache.room();
        assert!(before.elapsed() < once + PATIENCE / 2);
    }
}
