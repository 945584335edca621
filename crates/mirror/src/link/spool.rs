//! Large contents on their way to several followers: read once, into a file without a name, which each follower reads at its
//! own pace, also while it still grows.
//!
//! The file is in the state directory, within a limit and the fourth part of what is free there; a content for which there is no
//! room is read by each follower for itself. What nobody has asked for in a while goes.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mirror_core::Digest;

use super::message::PIECE_BYTES;
use super::serve::ReadBack;
use crate::disk::nameless;
use crate::engine::local::outer::space;
use crate::sync::lock;

/// All contents in it together.
pub const SPOOL_BYTES_MAX: u64 = 1 << 30;
/// It may take the fourth part of what is free.
const PART_OF_FREE: u64 = 4;
/// How much a content may grow before what is free is looked at again.
const LOOK_EVERY_BYTES: u64 = 16 << 20;
/// A content that nobody asks for any more stays so long.
const KEPT: Duration = Duration::from_secs(60);
const NAP: Duration = Duration::from_millis(200);

pub struct Spool {
    dir: PathBuf,
    bytes_max: u64,
    number: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    by_digest: HashMap<Digest, Arc<Flight>>,
    /// The oldest first; may name some that are gone.
    order: VecDeque<Digest>,
    bytes: u64,
}

/// One content.
struct Flight {
    file: File,
    grown: Mutex<Grown>,
    changed: Condvar,
    readers: AtomicUsize,
}

struct Grown {
    bytes: u64,
    /// Room was asked for up to here.
    room: u64,
    end: Option<Ended>,
    /// When it was last read.
    used: Instant,
}

#[derive(Clone)]
enum Ended {
    As(ReadBack),
    /// No room for more: who reads it goes on alone.
    Full,
}

/// How following a flight ended.
pub enum Followed {
    End(ReadBack),
    /// After so many bytes whoever follows must go on alone.
    Alone(u64),
}

impl Spool {
    pub fn new(dir: &Path) -> Spool {
        Spool::with(dir, SPOOL_BYTES_MAX)
    }

    pub fn with(dir: &Path, bytes_max: u64) -> Spool {
        Spool {
            dir: dir.to_path_buf(),
            bytes_max,
            number: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    fn nameless(&self) -> io::Result<File> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        nameless(&self.dir, &format!("spool.{number}"))
    }

    /// A new one under this digest. `None`: there is one, or it can't be made.
    fn begin(&self, digest: Digest) -> Option<Arc<Flight>> {
        let flight = Arc::new(Flight {
            file: self.nameless().ok()?,
            grown: Mutex::new(Grown {
                bytes: 0,
                room: 0,
                end: None,
                used: Instant::now(),
            }),
            changed: Condvar::new(),
            readers: AtomicUsize::new(0),
        });
        let mut state = lock(&self.state);
        if state.by_digest.contains_key(&digest) {
            return None;
        }
        state.by_digest.insert(digest, flight.clone());
        state.order.push_back(digest);
        Some(flight)
    }

    /// The bytes of this content, whoever reads them: `produce` does if nobody has. `several`: it is worth it. Locks are
    /// taken in the order spool, content.
    pub fn read(
        self: &Arc<Spool>,
        digest: Digest,
        several: bool,
        produce: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> ReadBack + Send + 'static,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Followed {
        let known = lock(&self.state).by_digest.get(&digest).cloned();
        let flight = match known {
            Some(flight) => flight,
            None if !several => return Followed::Alone(0),
            None => match self.begin(digest) {
                Some(flight) => {
                    let (spool, of) = (self.clone(), flight.clone());
                    // Counted before it looks whether anybody reads.
                    let seat = Seat::take(&flight);
                    let started =
                        std::thread::Builder::new()
                            .name("spool".into())
                            .spawn(move || {
                                let end = produce(&mut |bytes| spool.grow(&of, bytes));
                                spool.over(digest, &of, end);
                            });
                    if started.is_err() {
                        self.forget(&digest, &flight);
                        return Followed::Alone(0);
                    }
                    let followed = flight.follow(each);
                    drop(seat);
                    return followed;
                }
                // Somebody else was faster.
                None => match lock(&self.state).by_digest.get(&digest).cloned() {
                    Some(flight) => flight,
                    None => return Followed::Alone(0),
                },
            },
        };
        let _seat = Seat::take(&flight);
        flight.follow(each)
    }

    /// What capture has just read. Only whole does it appear.
    pub fn put(self: &Arc<Spool>) -> Option<Put> {
        Some(Put {
            spool: self.clone(),
            file: self.nameless().ok()?,
            bytes: 0,
            room: 0,
        })
    }

    /// False: no more is wanted, or may come.
    fn grow(&self, flight: &Flight, bytes: &[u8]) -> bool {
        if flight.readers.load(Ordering::Acquire) == 0 {
            return false;
        }
        let (at, room) = {
            let grown = lock(&flight.grown);
            (grown.bytes, grown.room)
        };
        let after = at + bytes.len() as u64;
        let mut room = room;
        let fits = after <= room || self.take_room(&mut room, after);
        let fits = fits && flight.file.write_all_at(bytes, at).is_ok();
        let mut grown = lock(&flight.grown);
        grown.room = room;
        if fits {
            grown.bytes = after;
        } else {
            grown.end = Some(Ended::Full);
        }
        drop(grown);
        flight.changed.notify_all();
        fits
    }

    /// Counts room for so many bytes; what is oldest goes for it.
    fn take_room(&self, room: &mut u64, bytes: u64) -> bool {
        let wanted = bytes.max(*room + LOOK_EVERY_BYTES);
        let free = space(&self.dir).map_or(u64::MAX, |space| space.bytes_free);
        let mut state = lock(&self.state);
        // What it has is not free any more.
        let bytes_max = self
            .bytes_max
            .min(free.saturating_add(state.bytes) / PART_OF_FREE);
        let more = wanted - *room;
        state.shrink(bytes_max.saturating_sub(more), None);
        if state.bytes + more > bytes_max {
            return false;
        }
        state.bytes += more;
        *room = wanted;
        true
    }

    fn over(&self, digest: Digest, flight: &Arc<Flight>, end: ReadBack) {
        let complete = end == ReadBack::Complete;
        let spare = {
            let mut grown = lock(&flight.grown);
            grown.end.get_or_insert(Ended::As(end));
            let spare = grown.room - grown.bytes.min(grown.room);
            if complete {
                grown.room -= spare;
            }
            spare
        };
        flight.changed.notify_all();
        if complete {
            let mut state = lock(&self.state);
            state.bytes -= spare.min(state.bytes);
        } else {
            // What is not whole is read anew by who comes next.
            self.forget(&digest, flight);
        }
    }

    fn forget(&self, digest: &Digest, flight: &Arc<Flight>) {
        let mut state = lock(&self.state);
        // It may have gone already, and another one may have begun.
        if state
            .by_digest
            .get(digest)
            .is_some_and(|known| Arc::ptr_eq(known, flight))
        {
            state.by_digest.remove(digest);
            let room = lock(&flight.grown).room;
            state.bytes -= room.min(state.bytes);
        }
    }

    /// What nobody has read for a while goes.
    pub fn sweep(&self) {
        let mut state = lock(&self.state);
        state.shrink(u64::MAX, Instant::now().checked_sub(KEPT));
    }

    pub fn clear(&self) {
        lock(&self.state).shrink(0, Some(Instant::now()));
    }
}

impl State {
    /// The oldest that nobody reads go, until there are no more bytes than this, and those not read since `until`.
    fn shrink(&mut self, bytes_max: u64, until: Option<Instant>) {
        let State {
            by_digest,
            order,
            bytes,
        } = self;
        order.retain(|digest| {
            let Some(flight) = by_digest.get(digest) else {
                return false;
            };
            let grown = lock(&flight.grown);
            let unused = grown.end.is_some() && flight.readers.load(Ordering::Acquire) == 0;
            let old = until.is_some_and(|until| grown.used < until);
            let room = grown.room;
            drop(grown);
            if !unused || !(old || *bytes > bytes_max) {
                return true;
            }
            *bytes -= room.min(*bytes);
            by_digest.remove(digest);
            false
        });
    }
}

struct Seat(Arc<Flight>);

impl Seat {
    fn take(flight: &Arc<Flight>) -> Seat {
        flight.readers.fetch_add(1, Ordering::AcqRel);
        Seat(flight.clone())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.0.grown).used = Instant::now();
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Flight {
    fn follow(&self, each: &mut dyn FnMut(&[u8]) -> bool) -> Followed {
        let mut at = 0;
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let (bytes, end) = {
                let mut grown = lock(&self.grown);
                while grown.bytes == at && grown.end.is_none() {
                    let (again, waited) = self
                        .changed
                        .wait_timeout(grown, NAP)
                        .unwrap_or_else(PoisonError::into_inner);
                    grown = again;
                    if waited.timed_out() && grown.bytes == at && grown.end.is_none() {
                        drop(grown);
                        if !each(&[]) {
                            return Followed::End(ReadBack::Stopped);
                        }
                        grown = lock(&self.grown);
                    }
                }
                (grown.bytes, grown.end.clone())
            };
            if at == bytes {
                return match end {
                    Some(Ended::As(ReadBack::Stopped)) | Some(Ended::Full) | None => {
                        Followed::Alone(at)
                    }
                    Some(Ended::As(end)) => Followed::End(end),
                };
            }
            let room = buffer
                .len()
                .min(usize::try_from(bytes - at).unwrap_or(PIECE_BYTES));
            let piece = buffer.get_mut(..room).unwrap_or_default();
            let n = match self.file.read_at(piece, at) {
                Ok(0) => return Followed::Alone(at),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Followed::Alone(at),
            };
            if !each(piece.get(..n).unwrap_or_default()) {
                return Followed::End(ReadBack::Stopped);
            }
            at += n as u64;
        }
    }
}

/// A content that comes as it is read for the first time.
pub struct Put {
    spool: Arc<Spool>,
    file: File,
    bytes: u64,
    room: u64,
}

impl Put {
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let after = self.bytes + bytes.len() as u64;
        if after > self.room && !self.spool.take_room(&mut self.room, after) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(bytes, self.bytes)?;
        self.bytes = after;
        Ok(())
    }

    pub fn finish(mut self, digest: Digest) {
        let flight = Arc::new(Flight {
            file: match self.file.try_clone() {
                Ok(file) => file,
                Err(_) => return,
            },
            grown: Mutex::new(Grown {
                bytes: self.bytes,
                room: self.bytes,
                end: Some(Ended::As(ReadBack::Complete)),
                used: Instant::now(),
            }),
            changed: Condvar::new(),
            readers: AtomicUsize::new(0),
        });
        let mut state = lock(&self.spool.state);
        if state.by_digest.contains_key(&digest) {
            return;
        }
        state.bytes -= (self.room - self.bytes).min(state.bytes);
        self.room = 0;
        state.by_digest.insert(digest, flight);
        state.order.push_back(digest);
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        if self.room > 0 {
            let mut state = lock(&self.spool.state);
            state.bytes -= self.room.min(state.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn all(
        spool: &Arc<Spool>,
        n: u8,
        reads: &Arc<AtomicUsize>,
        bytes: usize,
    ) -> (Vec<u8>, Followed) {
        let (mut got, reads) = (Vec::new(), reads.clone());
        let produce = move |each: &mut dyn FnMut(&[u8]) -> bool| {
            reads.fetch_add(1, Ordering::SeqCst);
            for piece in vec![n; bytes].chunks(1 << 18) {
                if !each(piece) {
                    return ReadBack::Stopped;
                }
            }
            ReadBack::Complete
        };
        let followed = spool.read(digest(n), true, produce, &mut |piece| {
            got.extend_from_slice(piece);
            true
        });
        (got, followed)
    }

    #[test]
    fn many_read_and_one_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::with(dir.path(), 64 << 20));
        let reads = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let (got, followed) = all(&spool, 7, &reads, 5 << 20);
                    assert!(matches!(followed, Followed::End(ReadBack::Complete)));
                    assert_eq!(got, vec![7; 5 << 20]);
                });
            }
        });
        assert_eq!(reads.load(Ordering::SeqCst), 1);
        wait_bytes(&spool, 5 << 20);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        spool.sweep();
        assert_eq!(lock(&spool.state).by_digest.len(), 1);
        spool.clear();
        wait_empty(&spool);
    }

    #[test]
    fn what_does_not_fit_is_read_alone_from_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::with(dir.path(), 20 << 20));
        let reads = Arc::new(AtomicUsize::new(0));
        let (got, followed) = all(&spool, 1, &reads, 40 << 20);
        let Followed::Alone(from) = followed else {
            panic!("there is room for 20 MiB");
        };
        assert!(from == got.len() as u64 && from <= 20 << 20, "{from}");
        wait_empty(&spool);
        // And what fits is put in place of what was there.
        for n in 2..5 {
            let (got, followed) = all(&spool, n, &reads, 15 << 20);
            assert!(matches!(followed, Followed::End(ReadBack::Complete)), "{n}");
            assert_eq!(got.len(), 15 << 20);
        }
        assert_eq!(lock(&spool.state).by_digest.len(), 1);
        // One that came with the first reading, and one that was given up.
        let mut put = spool.put().unwrap();
        put.write(b"whole").unwrap();
        put.finish(digest(9));
        let mut given_up = spool.put().unwrap();
        given_up.write(b"half").unwrap();
        drop(given_up);
        let (got, _) = all(&spool, 9, &reads, 1);
        assert_eq!(got, b"whole");
        spool.clear();
        wait_empty(&spool);
    }

    fn wait_empty(spool: &Spool) {
        wait_bytes(spool, 0);
    }

    /// Whoever reads gives back what room it did not need after those that follow have seen the end.
    fn wait_bytes(spool: &Spool, bytes: u64) {
        for _ in 0..6000 {
            if lock(&spool.state).bytes == bytes {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} and not {bytes}", lock(&spool.state).bytes);
    }

    #[test]
    fn what_ended_badly_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::with(dir.path(), 64 << 20));
        let void = |_: &mut dyn FnMut(&[u8]) -> bool| ReadBack::Void;
        let followed = spool.read(digest(1), true, void, &mut |_| true);
        assert!(matches!(followed, Followed::End(ReadBack::Void)));
        wait_empty(&spool);
        for _ in 0..6000 {
            if lock(&spool.state).by_digest.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let reads = Arc::new(AtomicUsize::new(0));
        let (got, _) = all(&spool, 1, &reads, 10);
        assert_eq!((got.len(), reads.load(Ordering::SeqCst)), (10, 1));
        // Alone there is nothing to share.
        let alone = spool.read(digest(2), false, void, &mut |_| true);
        assert!(matches!(alone, Followed::Alone(0)));
    }
}
