//! Contents that capture has just read, kept for a moment so that serving them reads no file again.
//!
//! A scan hands every small file it reads to the sink; a sender that comes along soon finds it here by its digest. What
//! does not fit, or is not fetched in time, is forgotten and read again.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mirror_core::{Content, Digest, Meta, Name, ObjectId};

use super::message::SMALL_BYTES_MAX;
use crate::capture::sink::{Sink, SinkDir, SinkFile};

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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl Drop for CacheReader {
    fn drop(&mut self) {
        if self.cache.readers.fetch_sub(1, Ordering::SeqCst) == 1 {
            *self.cache.lock() = State::default();
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
    /// Large files are read again when they are sent.
    fn file(&self) -> Option<(u64, Box<dyn SinkFile>)> {
        None
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
