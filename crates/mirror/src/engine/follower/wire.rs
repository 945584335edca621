//! The connection as the rest of a follower uses it: questions with answers, and whether there is one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use mirror_core::{Digest, ObjectId, Position};

use crate::engine::options::Compress;
use crate::engine::status::LinkStatus;
use crate::link::conn::Arrived;
use crate::link::message::{self as say, Message};
use crate::link::report::{self, BarrierReport};
use crate::link::{LinkError, Outgoing};
use crate::log::End;
use crate::sync::lock;

/// Pieces of one content that wait for whoever asked for it.
const PIECES_MAX: usize = 16;
/// Likewise where the worker keeps a window: it bounds the bytes, and nobody need wait.
const WINDOW_PIECES_MAX: usize = 4096;
/// Differences that wait likewise.
const FOUND_MAX: usize = 1024;
/// How long the connection waits for whoever asked for a content, and does not take it.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

pub enum PieceOf {
    Bytes(Vec<u8>, Credit),
    /// As in [`say::PieceEnd`].
    End(u8, String),
}

/// Counts a piece as taken when it is dropped, whoever had it last.
pub struct Credit {
    bytes: u64,
    taken: Arc<Counter>,
}

/// Pieces taken over one connection.
struct Counter {
    outgoing: Arc<Outgoing>,
    bytes: Mutex<u64>,
    /// The worker wants to know.
    said: bool,
}

impl Drop for Credit {
    fn drop(&mut self) {
        if self.taken.said {
            // Said in order, or the worker would be told less than before.
            let mut bytes = lock(&self.taken.bytes);
            *bytes += self.bytes;
            let _ = self.taken.outgoing.send(say::Taken { bytes: *bytes });
        }
    }
}

/// What a barrier covers.
#[derive(Debug, Clone)]
pub struct Covered {
    pub position: Option<Position>,
    pub report: BarrierReport,
}

pub enum VerifyOf {
    Found { path: Vec<u8>, what: String },
    Done(say::VerifyDone),
}

/// A connection that follows. Questions end (their channels close) when it does.
pub struct Link {
    pub outgoing: Arc<Outgoing>,
    /// Of both sides.
    features: u64,
    /// What came over it.
    pub arrived: Arc<Arrived>,
    /// As asked for here.
    pub compress: Compress,
    /// We make one copy and go.
    pub once: bool,
    taken: Arc<Counter>,
    /// It was said where to begin.
    following: AtomicBool,
    next: AtomicU64,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    closed: bool,
    contents: HashMap<u64, Sender<PieceOf>>,
    barriers: HashMap<u64, Sender<Covered>>,
    verifies: HashMap<u64, Sender<VerifyOf>>,
}

impl Link {
    pub fn new(
        outgoing: Arc<Outgoing>,
        features: u64,
        arrived: Arc<Arrived>,
        compress: Compress,
        once: bool,
    ) -> Link {
        let taken = Counter {
            outgoing: outgoing.clone(),
            bytes: Mutex::new(0),
            said: features & say::FEATURE_TAKEN != 0,
        };
        Link {
            outgoing,
            features,
            arrived,
            compress,
            once,
            taken: Arc::new(taken),
            following: AtomicBool::new(false),
            next: AtomicU64::new(1),
            asked: Mutex::default(),
        }
    }

    /// Says where to begin, if nobody did.
    pub fn follow(&self, after: Option<End>, bwlimit: Option<u64>) -> Result<(), LinkError> {
        self.follow_by(after, bwlimit, false)
    }

    /// Likewise, with the tree as a list first.
    pub fn follow_listed(&self, bwlimit: Option<u64>) -> Result<(), LinkError> {
        self.follow_by(None, bwlimit, true)
    }

    fn follow_by(
        &self,
        after: Option<End>,
        bwlimit: Option<u64>,
        listed: bool,
    ) -> Result<(), LinkError> {
        if self.following.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.outgoing.send(say::Follow {
            after: after.map(say::At::from),
            bwlimit: bwlimit.unwrap_or(0),
            records_only: false,
            listed,
            once: self.once,
        })
    }

    /// Another rate from now on. False: the worker does not know of such a thing.
    pub fn pace(&self, bwlimit: Option<u64>) -> Result<bool, LinkError> {
        if !self.packs() {
            return Ok(false);
        }
        let bwlimit = bwlimit.unwrap_or(0);
        let packing = self.compress.code();
        self.outgoing.send(say::Pace { bwlimit, packing })?;
        Ok(true)
    }

    /// For `status`.
    pub fn told(&self) -> LinkStatus {
        LinkStatus {
            compress: self.compress,
            packed: self.arrived.comes_packed(),
            bytes: self.arrived.bytes(),
            saved_bytes: self.arrived.saved(),
            bytes_per_s: None,
        }
    }

    /// What comes may be packed.
    pub fn packs(&self) -> bool {
        self.features & say::FEATURE_PACKED != 0
    }

    /// The tree came whole: where to begin is still to be said.
    pub fn seeded(&self) {
        self.following.store(false, Ordering::Release);
    }

    fn ask(
        &self,
        enter: impl FnOnce(&mut Asked, u64),
        message: impl FnOnce(u64) -> Message,
    ) -> Result<u64, LinkError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut asked = lock(&self.asked);
            if asked.closed {
                return Err(LinkError::Closed);
            }
            enter(&mut asked, id);
        }
        self.outgoing.send(message(id))?;
        Ok(id)
    }

    pub fn request(
        &self,
        object: ObjectId,
        digest: Digest,
        from: u64,
    ) -> Result<(u64, Receiver<PieceOf>), LinkError> {
        let windowed = self.features & say::FEATURE_TAKEN != 0;
        let most = if windowed {
            WINDOW_PIECES_MAX
        } else {
            PIECES_MAX
        };
        let (sender, pieces) = bounded(most);
        let id = self.ask(
            |asked, id| drop(asked.contents.insert(id, sender)),
            |id| {
                say::Request {
                    id,
                    object: object.0,
                    digest: digest.0,
                    from: (from > 0).then_some(from),
                }
                .into()
            },
        )?;
        Ok((id, pieces))
    }

    /// The worker can leave out what is there of a content.
    pub fn resumes(&self) -> bool {
        self.features & say::FEATURE_FROM != 0
    }

    pub fn cancel(&self, id: u64) {
        if lock(&self.asked).contents.remove(&id).is_some() {
            let _ = self.outgoing.send(say::Cancel { id });
        }
    }

    pub fn barrier(&self) -> Result<Receiver<Covered>, LinkError> {
        let (sender, done) = bounded(1);
        self.ask(
            |asked, id| drop(asked.barriers.insert(id, sender)),
            |id| say::Barrier { id }.into(),
        )?;
        Ok(done)
    }

    pub fn verify(&self, repair: bool) -> Result<Receiver<VerifyOf>, LinkError> {
        let (sender, found) = bounded(FOUND_MAX);
        self.ask(
            |asked, id| drop(asked.verifies.insert(id, sender)),
            |id| say::Verify { id, repair }.into(),
        )?;
        Ok(found)
    }

    /// An answer that came in. False: it is none.
    pub fn answer(&self, message: Message) -> Result<Option<Message>, LinkError> {
        match message {
            Message::Piece(piece) => {
                let credit = Credit {
                    bytes: piece.bytes.len() as u64,
                    taken: self.taken.clone(),
                };
                self.piece(piece.id, PieceOf::Bytes(piece.bytes, credit));
            }
            Message::PieceEnd(end) => {
                let reason = crate::link::conn::escaped(&end.reason);
                self.piece(end.id, PieceOf::End(end.end, reason));
                lock(&self.asked).contents.remove(&end.id);
            }
            Message::BarrierDone(done) => {
                let report = report::parse(&done.report)
                    .map_err(|e| LinkError::Nonsense(format!("a barrier's report: {e}")))?;
                if let Some(sender) = lock(&self.asked).barriers.remove(&done.id) {
                    let position = done.position.map(Position::from);
                    let _ = sender.try_send(Covered { position, report });
                }
            }
            Message::VerifyFound(found) => {
                let sender = lock(&self.asked).verifies.get(&found.id).cloned();
                if let Some(sender) = sender {
                    let what = crate::link::conn::escaped(&found.what);
                    let path = found.path;
                    if sender
                        .send_timeout(VerifyOf::Found { path, what }, TAKEN_WITHIN)
                        .is_err()
                    {
                        lock(&self.asked).verifies.remove(&found.id);
                    }
                }
            }
            Message::VerifyDone(done) => {
                let sender = lock(&self.asked).verifies.remove(&done.id);
                if let Some(sender) = sender {
                    let _ = sender.send_timeout(VerifyOf::Done(done), TAKEN_WITHIN);
                }
            }
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    fn piece(&self, id: u64, piece: PieceOf) {
        let sender = lock(&self.asked).contents.get(&id).cloned();
        let Some(sender) = sender else { return };
        if sender.send_timeout(piece, TAKEN_WITHIN).is_err() {
            self.cancel(id);
        }
    }

    fn close(&self) {
        let mut asked = lock(&self.asked);
        *asked = Asked {
            closed: true,
            ..Asked::default()
        };
    }
}

/// The connection there is now, if there is one.
#[derive(Default)]
pub struct Links {
    now: Mutex<Option<Arc<Link>>>,
    changed: Condvar,
}

impl Links {
    pub fn get(&self) -> Option<Arc<Link>> {
        lock(&self.now).clone()
    }

    pub fn set(&self, link: Option<Arc<Link>>) {
        let before = std::mem::replace(&mut *lock(&self.now), link);
        if let Some(before) = before {
            before.close();
        }
        self.changed.notify_all();
    }

    pub fn wait(&self, at_most: Duration) {
        drop(
            self.changed
                .wait_timeout(lock(&self.now), at_most)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}
