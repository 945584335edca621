//! Contents on a follower: from the log's content segments, from memory, or asked of the worker.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use mirror_core::{Content, ContentRef, Digest, ObjectId, Position};

use super::hub::Hub;
use super::travel::Travel;
use super::wire::{Link, PieceOf};
use crate::apply::{Contents, Fetched};
use crate::capture::read::hasher;
use crate::log::ContentStore;
use crate::sync::lock;

/// Contents that came ahead of their record and are not kept beside the log. What does not fit goes there too.
const MEMORY_BYTES_MAX: usize = 48 << 20;
/// How long nothing of them need go until the next ones are kept beside the log.
const PATIENCE: Duration = Duration::from_secs(1);
/// Checked before it is handed over; larger is streamed, and apply checks it.
pub const WHOLE_BYTES_MAX: u64 = 1 << 20;
/// How long a content that must be asked for waits for a link that is down.
const LINK_WAIT: Duration = Duration::from_secs(10);
/// A worker that is there and does not send.
pub const STALLED: Duration = Duration::from_secs(600);

/// Contents in memory until the records that bring them are applied.
#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: usize,
    by_digest: HashMap<Digest, Held>,
    /// What may go once this position is applied.
    until: VecDeque<(Position, Vec<Digest>)>,
    /// It was waited for room in vain, and nothing went since.
    stuck: bool,
}

struct Held {
    bytes: Arc<Vec<u8>>,
    /// Batches that brought it.
    count: usize,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Of a content that was checked. An error: it does not fit.
    pub fn put(&self, digest: Digest, bytes: Vec<u8>) -> Result<(), Vec<u8>> {
        let mut state = self.lock();
        if let Some(held) = state.by_digest.get_mut(&digest) {
            held.count += 1;
            return Ok(());
        }
        if state.bytes + bytes.len() > MEMORY_BYTES_MAX {
            return Err(bytes);
        }
        state.bytes += bytes.len();
        let bytes = Arc::new(bytes);
        state.by_digest.insert(digest, Held { bytes, count: 1 });
        Ok(())
    }

    /// Waits until so much more fits, as long as what is here goes: what is applied soon need not be written beside the
    /// log. `nap` takes a moment and tells of what is applied ([`Memory::applied`]); false: nobody waits any more.
    pub fn await_room(&self, bytes: usize, nap: &mut dyn FnMut() -> bool) {
        let (mut last, mut since) = (usize::MAX, Instant::now());
        loop {
            let mut state = self.lock();
            let fits = state.bytes + bytes.min(MEMORY_BYTES_MAX) <= MEMORY_BYTES_MAX;
            if fits || state.stuck {
                return;
            }
            if state.bytes < last {
                (last, since) = (state.bytes, Instant::now());
            } else if since.elapsed() >= PATIENCE {
                state.stuck = true;
                return;
            }
            drop(state);
            if !nap() {
                return;
            }
        }
    }

    /// These belong to records up to here.
    pub fn belong(&self, digests: Vec<Digest>, until: Position) {
        self.lock().until.push_back((until, digests));
    }

    /// What belongs to records up to here is not needed any more.
    pub fn applied(&self, applied: Position) {
        let mut state = self.lock();
        while state
            .until
            .front()
            .is_some_and(|(until, _)| *until <= applied)
        {
            let digests = state.until.pop_front().map(|(_, digests)| digests);
            for digest in digests.into_iter().flatten() {
                state.give_up(&digest);
            }
        }
    }

    pub fn get(&self, digest: &Digest) -> Option<Arc<Vec<u8>>> {
        self.lock()
            .by_digest
            .get(digest)
            .map(|held| held.bytes.clone())
    }
}

impl State {
    fn give_up(&mut self, digest: &Digest) {
        if let Some(held) = self.by_digest.get_mut(digest) {
            held.count -= 1;
            if held.count == 0 {
                self.stuck = false;
                self.bytes -= held.bytes.len();
                self.by_digest.remove(digest);
            }
        }
    }
}

/// Contents that are being asked for, how often each.
#[derive(Default)]
pub struct Fetching(Mutex<HashMap<Digest, usize>>);

impl Fetching {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        lock(&self.0)
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    pub fn begin(self: &Arc<Fetching>, digest: Digest) -> Fetch {
        *self.lock().entry(digest).or_default() += 1;
        Fetch {
            of: self.clone(),
            digest,
        }
    }
}

/// One of them, until dropped.
pub struct Fetch {
    of: Arc<Fetching>,
    digest: Digest,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let mut now = self.of.lock();
        if let Some(count) = now.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                now.remove(&self.digest);
            }
        }
    }
}

/// What apply asks.
pub struct WireContents {
    /// `None`: there is no log yet.
    pub store: Option<ContentStore>,
    pub memory: Arc<Memory>,
    pub fetching: Arc<Fetching>,
    pub hub: Arc<Hub>,
    pub travel: Arc<Travel>,
    /// The session ends: nothing is waited for.
    pub stopping: Arc<AtomicBool>,
}

pub fn is_it(bytes: &[u8], content: &Content) -> bool {
    bytes.len() as u64 == content.stored_bytes() && {
        let mut hash = hasher(content.bytes, &content.data);
        hash.update(bytes);
        *hash.finalize().as_bytes() == content.digest.0
    }
}

impl WireContents {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn link(&self) -> Option<Arc<Link>> {
        let until = Instant::now() + LINK_WAIT;
        loop {
            if let Some(link) = self.hub.links.get() {
                return Some(link);
            }
            if self.stopping() || Instant::now() >= until {
                return None;
            }
            self.hub.links.wait(Duration::from_millis(100));
        }
    }

    /// What is here already.
    fn here(&self, content: &Content, place: Option<ContentRef>) -> Option<Fetched> {
        if content.bytes == 0 {
            return Some(Fetched::Bytes(Arc::default()));
        }
        if let Some(bytes) = self.memory.get(&content.digest) {
            return Some(Fetched::Bytes(bytes));
        }
        let bytes = self.store.as_ref()?.get(place?).ok()?;
        is_it(&bytes, content).then(|| Fetched::Bytes(bytes.into()))
    }

    /// In the calling thread.
    fn ask(&self, object: ObjectId, content: &Content) -> Fetched {
        let Some(link) = self.link() else {
            return Fetched::Failed("the link to the source is down".into());
        };
        let Ok((id, pieces)) = link.request(object, content.digest, 0) else {
            return Fetched::Failed("the link to the source went down".into());
        };
        let mut coming = Coming {
            id,
            pieces,
            link,
            stopping: self.stopping.clone(),
            left: content.stored_bytes(),
            piece: Vec::new(),
            at: 0,
            over: false,
            _fetch: self.fetching.begin(content.digest),
        };
        match coming.next_piece() {
            Ok(true) => {}
            Ok(false) => {}
            Err(Broken::Void) => return Fetched::Gone,
            Err(Broken::Failed(reason)) => return Fetched::Failed(reason),
        }
        if content.stored_bytes() > WHOLE_BYTES_MAX {
            return Fetched::Reader(Box::new(coming));
        }
        let mut bytes = Vec::new();
        loop {
            bytes.extend_from_slice(&std::mem::take(&mut coming.piece));
            match coming.next_piece() {
                Ok(true) => {}
                Ok(false) => break,
                Err(Broken::Void) => return Fetched::Gone,
                Err(Broken::Failed(reason)) => return Fetched::Failed(reason),
            }
        }
        if is_it(&bytes, content) {
            Fetched::Bytes(bytes.into())
        } else {
            Fetched::Failed("the worker sent other bytes than its log says".into())
        }
    }
}

impl Contents for WireContents {
    fn fetch(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched {
        self.here(content, place)
            .or_else(|| self.travel.fetch(object, content, false))
            .unwrap_or_else(|| self.ask(object, content))
    }

    fn fetch_patiently(
        &self,
        object: ObjectId,
        content: &Content,
        place: Option<ContentRef>,
    ) -> Fetched {
        self.here(content, place)
            .or_else(|| self.travel.fetch(object, content, true))
            .unwrap_or_else(|| self.ask(object, content))
    }

    fn at_hand(&self, _: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched {
        self.here(content, place).unwrap_or(Fetched::Gone)
    }

    fn keep(&self, wanted: &BTreeMap<ObjectId, Digest>) {
        self.travel.keep(wanted);
    }

    fn has_arrived(&self) -> bool {
        self.travel.has_arrived()
    }
}

/// A content on its way.
struct Coming {
    id: u64,
    pieces: Receiver<PieceOf>,
    link: Arc<Link>,
    stopping: Arc<AtomicBool>,
    /// Bytes that may still come.
    left: u64,
    piece: Vec<u8>,
    at: usize,
    over: bool,
    _fetch: Fetch,
}

enum Broken {
    Void,
    Failed(String),
}

impl Coming {
    /// False: that was all.
    fn next_piece(&mut self) -> Result<bool, Broken> {
        if self.over {
            return Ok(false);
        }
        let until = Instant::now() + STALLED;
        loop {
            match self.pieces.recv_timeout(Duration::from_millis(200)) {
                Ok(PieceOf::Bytes(bytes, _taken)) => {
                    self.left = self
                        .left
                        .checked_sub(bytes.len() as u64)
                        .ok_or_else(|| Broken::Failed("more came than the content has".into()))?;
                    self.piece = bytes;
                    self.at = 0;
                    return Ok(true);
                }
                Ok(PieceOf::End(0, _)) => {
                    self.over = true;
                    return Ok(false);
                }
                Ok(PieceOf::End(1, _)) => {
                    self.over = true;
                    return Err(Broken::Void);
                }
                Ok(PieceOf::End(_, reason)) => {
                    self.over = true;
                    return Err(Broken::Failed(reason));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.over = true;
                    return Err(Broken::Failed("the link to the source went down".into()));
                }
                Err(RecvTimeoutError::Timeout) if self.stopping.load(Ordering::Acquire) => {
                    return Err(Broken::Failed("the mirror stops".into()));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= until => {
                    return Err(Broken::Failed("the worker does not send it".into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Read for Coming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.piece.len() {
            match self.next_piece() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(Broken::Void) => {
                    return Err(io::Error::other("the source's content changed meanwhile"));
                }
                Err(Broken::Failed(reason)) => return Err(io::Error::other(reason)),
            }
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.at += n;
        Ok(n)
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if !self.over {
            self.link.cancel(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }
    fn at(sequence: u64) -> Position {
        Position { epoch: 1, sequence }
    }

    #[test]
    fn contents_stay_until_their_records_are_applied() {
        let memory = Memory::default();
        let put = |n, bytes: &[u8]| memory.put(digest(n), bytes.to_vec()).is_ok();
        assert!(put(1, b"one") && put(2, b"two"));
        memory.belong(vec![digest(1), digest(2)], at(5));
        assert!(put(1, b"one"));
        memory.belong(vec![digest(1)], at(9));
        memory.applied(at(4));
        assert!(memory.get(&digest(2)).is_some());
        memory.applied(at(5));
        assert!(memory.get(&digest(2)).is_none() && memory.get(&digest(1)).is_some());
        memory.applied(at(9));
        assert!(memory.get(&digest(1)).is_none());
        assert_eq!(memory.lock().bytes, 0);
    }

    #[test]
    fn room_is_awaited_as_long_as_something_goes() {
        let memory = Memory::default();
        let part = MEMORY_BYTES_MAX / 4;
        for n in 1..=4 {
            assert!(memory.put(digest(n), vec![0; part]).is_ok());
            memory.belong(vec![digest(n)], at(u64::from(n)));
        }
        let mut applied = 0;
        memory.await_room(2 * part, &mut || {
            applied += 1;
            memory.applied(at(applied));
            true
        });
        assert_eq!(applied, 2);
        // More than ever fits: all goes.
        memory.await_room(9 * part, &mut || {
            applied += 1;
            memory.applied(at(applied));
            true
        });
        assert_eq!(applied, 4);
        // Nothing goes: once in vain, and not again.
        assert!(memory.put(digest(5), vec![0; part]).is_ok());
        memory.belong(vec![digest(5)], at(5));
        let nap = || {
            std::thread::sleep(Duration::from_millis(5));
            true
        };
        memory.await_room(4 * part, &mut nap.clone());
        assert!(memory.lock().stuck);
        memory.await_room(4 * part, &mut || panic!("it waits again"));
        memory.applied(at(5));
        assert!(!memory.lock().stuck);
    }

    #[test]
    fn memory_is_bounded() {
        let memory = Memory::default();
        let put = |n, bytes: &[u8]| memory.put(digest(n), bytes.to_vec()).is_ok();
        let big = vec![0; MEMORY_BYTES_MAX / 2];
        assert!(put(1, &big) && put(2, &big));
        assert!(!put(3, b"x"));
        memory.belong(vec![digest(1)], at(1));
        memory.applied(at(1));
        assert!(put(3, b"x"));
    }
}
