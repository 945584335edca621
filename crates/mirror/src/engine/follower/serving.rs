//! A mirror that is followed itself: it answers from its own log and copy, and asks upstream for what neither has.
//!
//! Records go out as they came. A content is had from the log's content segments, from memory, from the copy (hashed while
//! it is sent), else from upstream; only when upstream says so it is void. Barriers are upstream's, answered once all up
//! to them is durable here. Nothing of the primary is ordered from here: rescan, release and repair are for the mirror
//! that follows it directly.

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use mirror_core::{Content, Digest, ObjectId, Position};

use super::contents::{Fetching, Memory};
use super::hub::Hub;
use super::wire::{Covered, PieceOf, VerifyOf};
use crate::capture::state::{Barrier, Order};
use crate::engine::applying::{Applied, ApplyOrder, ApplyOrders};
use crate::engine::confine::{Confine, Part};
use crate::engine::event::Event;
use crate::engine::options::{MirrorOptions, Owners};
use crate::engine::seed::{Chained, Spooled};
use crate::engine::serving::keep::{self, Keep};
use crate::engine::serving::{Chain, Seats, socket};
use crate::engine::session::show;
use crate::link::cache::ContentCache;
use crate::link::message::{self as say, Cause, SMALL_BYTES_MAX};
use crate::link::report::Report;
use crate::link::serve::{Compared, FollowerState, Found, Open, Reach, ReadBack, Ready, Served};
use crate::link::stream::{Streamed, stream};
use crate::log::{End, LogReader};
use crate::sync::lock;

const NAP: Duration = Duration::from_millis(200);
/// After a start it may take so long to reach upstream; from then on who comes is told that there is nothing.
const FIRST_WITHIN: Duration = Duration::from_secs(20);
/// For a content that is on its way here.
const OWN_WITHIN: Duration = Duration::from_secs(300);
/// For upstream to send the next piece of a content.
const PIECE_WITHIN: Duration = Duration::from_secs(600);
/// For a follower that is ahead of us: it is answered within the time of a handshake.
const REACH_WITHIN: Duration = Duration::from_secs(10);
/// For the list of the whole tree to be written.
const LIST_WITHIN: Duration = Duration::from_secs(600);
/// Contents the copy turned out not to have.
const BAD_MAX: usize = 1024;

/// A session's log and copy.
#[derive(Clone)]
pub struct Live {
    pub reader: LogReader,
    pub orders: ApplyOrders,
    pub applied: Arc<Applied>,
    pub memory: Arc<Memory>,
    pub fetching: Arc<Fetching>,
    /// The state directory as this session reaches it.
    pub state: PathBuf,
}

pub struct Serving {
    hub: Arc<Hub>,
    state_dir: PathBuf,
    path: Vec<u8>,
    ignore: Vec<String>,
    cross: Vec<PathBuf>,
    cache: Arc<ContentCache>,
    live: Mutex<Option<Live>>,
    began: Instant,
    /// By their digests.
    bad: Mutex<HashSet<Digest>>,
    told_orders: AtomicBool,
}

/// The socket, open until dropped.
pub struct Door {
    seats: Arc<Seats>,
    state_dir: PathBuf,
    accepting: Option<JoinHandle<()>>,
}

impl Drop for Door {
    fn drop(&mut self) {
        socket::remove(&self.state_dir);
        self.seats.end("the mirror there stops");
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Serving {
    pub fn new(hub: Arc<Hub>, options: &MirrorOptions) -> Arc<Serving> {
        let (keep, told) = Keep::load(&options.state_dir);
        if let Err(text) = told {
            hub.ui.event(Event::Notice(format!(
                "{text}: whom the log is kept for is learned again"
            )));
        }
        *lock(&hub.followers.keep) = keep;
        Arc::new(Serving {
            hub,
            state_dir: options.state_dir.clone(),
            path: std::os::unix::ffi::OsStrExt::as_bytes(options.dst.as_os_str()).to_vec(),
            ignore: options.ignore.clone(),
            cross: options.cross.clone(),
            cache: Arc::new(ContentCache::in_dir(&options.state_dir)),
            live: Mutex::default(),
            began: Instant::now(),
            bad: Mutex::default(),
            told_orders: AtomicBool::new(false),
        })
    }

    /// Lets followers in. A mirror that can't goes on without.
    pub fn open(self: &Arc<Serving>) -> Option<Door> {
        let seats = self.hub.followers.seats.clone();
        let opened = socket::listen(&self.state_dir).and_then(|listener| {
            seats.begin();
            let (served, seats): (Arc<dyn Served>, _) = (self.clone(), seats.clone());
            // Of the copy they get what apply opens for them: log and spool are all they reach themselves.
            let confine = Confine::new(&self.state_dir, &self.state_dir, Owners::Record)?;
            let hub = self.hub.clone();
            std::thread::Builder::new()
                .name("accept".into())
                .spawn(move || {
                    hub.confined(&confine.enter(Part::Receive));
                    seats.accept(&served, &listener);
                })
        });
        match opened {
            Ok(accepting) => Some(Door {
                seats,
                state_dir: self.state_dir.clone(),
                accepting: Some(accepting),
            }),
            Err(e) => {
                self.hub.ui.event(Event::Notice(format!(
                    "no other mirror can follow this one: cannot open a socket in {}: {e}",
                    show(&self.state_dir)
                )));
                None
            }
        }
    }

    /// What a session has, or that there is none.
    pub fn set(&self, live: Option<Live>) {
        lock(&self.bad).clear();
        let over = live.is_none();
        *lock(&self.live) = live;
        if over {
            // They hold the log open, which must not keep the copy's disk busy.
            self.hub
                .followers
                .seats
                .hang_up("the mirror there rests for a moment");
        }
    }

    fn live(&self) -> Option<Live> {
        lock(&self.live).clone()
    }

    /// Records up to here are needed by nobody who follows.
    pub fn needed(&self, log_dir: &std::path::Path, end: Position) -> Position {
        let followers = &self.hub.followers;
        followers.save(&self.state_dir);
        let keep = lock(&followers.keep);
        keep.needed(end, keep::bytes_in(log_dir), keep::LOG_BYTES_MAX)
    }

    // ---- contents ----

    /// From here, if it is here or on its way. `None`: it is not.
    fn own(
        &self,
        live: &Live,
        object: ObjectId,
        digest: Digest,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Option<ReadBack> {
        let target = live.reader.tail().durable().map(|end| end.position);
        let until = Instant::now() + OWN_WITHIN;
        let mut asked: Option<Receiver<_>> = None;
        loop {
            if let Some(bytes) = live.memory.get(&digest) {
                let stays = each(&bytes);
                return Some(if stays {
                    ReadBack::Complete
                } else {
                    ReadBack::Stopped
                });
            }
            if lock(&self.bad).contains(&digest) {
                return None;
            }
            // Answered between two batches; one question at a time.
            let answer = asked
                .take()
                .or_else(|| open_in_copy(live, object, digest))?;
            match answer.recv_timeout(NAP) {
                Ok(Some((content, fd))) => {
                    return Some(self.send_file(&File::from(fd), &content, each));
                }
                Ok(None) => {}
                Err(RecvTimeoutError::Timeout) => asked = Some(answer),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
            let rests = {
                let state = live.applied.lock();
                let waits = state.hold.is_some() || state.waits.is_some();
                waits || state.ended.is_some() || (asked.is_none() && state.applied >= target)
            };
            if (rests && !live.fetching.has(&digest)) || Instant::now() >= until {
                return None;
            }
            if !each(&[]) {
                return Some(ReadBack::Stopped);
            }
            let state = live.applied.lock();
            drop(live.applied.wait(state, Duration::from_millis(20)));
        }
    }

    fn send_file(
        &self,
        file: &File,
        content: &Content,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> ReadBack {
        let why = match stream(file, content, each) {
            Streamed::Complete => return ReadBack::Complete,
            Streamed::Stopped => return ReadBack::Stopped,
            Streamed::Different => "the copy there has other bytes than its log says".into(),
            Streamed::Failed(reason) => format!("the copy there can't be read: {reason}"),
        };
        // Whoever asks again gets it from upstream.
        let mut bad = lock(&self.bad);
        if bad.len() >= BAD_MAX {
            bad.clear();
        }
        bad.insert(content.digest);
        ReadBack::Failed(why)
    }

    // ---- barriers ----

    /// Upstream's answer. `None`: the link is down, or nobody waits any more.
    fn ask_upstream(&self, gone: &dyn Fn() -> bool) -> Option<Covered> {
        let answer = self.hub.links.get()?.barrier().ok()?;
        loop {
            match answer.recv_timeout(NAP) {
                Ok(covered) => return Some(covered),
                Err(RecvTimeoutError::Timeout) if !gone() => {}
                Err(_) => return None,
            }
        }
    }

    /// Until the log here has this durably. False: given up.
    fn wait_durable(&self, position: Option<Position>, gone: &dyn Fn() -> bool) -> bool {
        while !gone() {
            let Some(live) = self.live() else {
                std::thread::sleep(NAP);
                continue;
            };
            let tail = live.reader.tail();
            let durable = tail.durable().map(|end| end.position);
            if durable >= position {
                return true;
            }
            let _ = tail.wait_past(durable, Instant::now() + NAP);
        }
        false
    }
}

fn forward(
    hub: &Hub,
    object: ObjectId,
    digest: Digest,
    each: &mut dyn FnMut(&[u8]) -> bool,
) -> ReadBack {
    let down = || ReadBack::Failed("the mirror there is not connected to its source".into());
    let Some(link) = hub.links.get() else {
        return down();
    };
    let Ok((id, pieces)) = link.request(object, digest, 0) else {
        return down();
    };
    let mut until = Instant::now() + PIECE_WITHIN;
    let end = loop {
        match pieces.recv_timeout(NAP) {
            Ok(PieceOf::Bytes(bytes, _taken)) if each(&bytes) => {
                until = Instant::now() + PIECE_WITHIN;
            }
            Ok(PieceOf::Bytes(..)) => break ReadBack::Stopped,
            Ok(PieceOf::End(0, _)) => return ReadBack::Complete,
            Ok(PieceOf::End(1, _)) => return ReadBack::Void,
            Ok(PieceOf::End(_, reason)) => return ReadBack::Failed(reason),
            Err(RecvTimeoutError::Disconnected) => return down(),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= until => {
                break ReadBack::Failed("its source does not send it".into());
            }
            Err(RecvTimeoutError::Timeout) if each(&[]) => {}
            Err(RecvTimeoutError::Timeout) => break ReadBack::Stopped,
        }
    };
    link.cancel(id);
    end
}

fn open_in_copy(
    live: &Live,
    object: ObjectId,
    digest: Digest,
) -> Option<Receiver<Option<(Content, std::os::fd::OwnedFd)>>> {
    let (sender, answer) = bounded(1);
    let order = ApplyOrder::Open(object, digest, sender);
    live.orders.send(order).ok().map(|()| answer)
}

impl Served for Serving {
    fn ready(&self) -> Ready {
        if self.hub.with(|want| want.paused) {
            let why = "the mirror there is paused: `fs_mirror resume` there lets it go on";
            return Ready::Never(Cause::Failed, why.into());
        }
        match self.live() {
            // Through whom it comes is not known: it might be through whoever asks.
            Some(live) if self.hub.chain.whole().is_some() => {
                let detector = self.hub.known_report().detector;
                let (uses, why) = match detector {
                    Some(detector) => (detector.uses.to_string(), detector.why),
                    None => Default::default(),
                };
                Ready::Open(Box::new(Open {
                    program: concat!("fs_mirror ", env!("CARGO_PKG_VERSION")),
                    tree: live.reader.tree(),
                    path: self.path.clone(),
                    detector: uses,
                    why,
                    reader: live.reader,
                }))
            }
            _ if self.began.elapsed() < FIRST_WITHIN => Ready::NotYet,
            _ => Ready::Never(
                Cause::Failed,
                format!(
                    "the mirror there has nothing of its source yet: {}",
                    self.hub.last_reason()
                ),
            ),
        }
    }

    fn chain(&self) -> &Chain {
        &self.hub.chain
    }

    fn introduce(&self, state: &Mutex<FollowerState>, name: String, replica: &[u8]) {
        let told = self.hub.followers.introduce(state, name, replica);
        if let Some(text) = told {
            self.notice(text);
        }
    }

    fn suits(&self, hello: &say::Hello) -> Result<(), String> {
        let crossed = || {
            let theirs = hello.cross.iter().map(|path| path.as_slice());
            theirs.eq(self
                .cross
                .iter()
                .map(|path| std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())))
        };
        let what = if !hello.ignore.is_empty() && hello.ignore != self.ignore {
            "--ignore"
        } else if !hello.cross.is_empty() && !crossed() {
            "--cross"
        } else {
            return Ok(());
        };
        Err(format!(
            "a mirror is followed as it is: {what} can be said only where the source itself is followed"
        ))
    }

    fn clock(&self) -> (u64, Option<End>) {
        self.hub.primary_clock()
    }

    fn reach(&self, position: Position, gone: &(dyn Fn() -> bool + Sync)) -> Reach {
        let until = Instant::now() + REACH_WITHIN;
        let over = || gone() || Instant::now() >= until;
        let Some(covered) = self.ask_upstream(&over) else {
            return Reach::NotYet(format!(
                "the mirror there has not come to {position} yet, and gets nothing from its source now"
            ));
        };
        // The primary does not have it either.
        if covered.position < Some(position) {
            return Reach::Never;
        }
        if self.wait_durable(Some(position), &over) {
            Reach::Look
        } else {
            Reach::NotYet(format!(
                "the mirror there has not come to {position} yet: it is behind this one"
            ))
        }
    }

    fn barrier(&self, gone: &(dyn Fn() -> bool + Sync)) -> Option<Barrier> {
        while !gone() {
            if let Some(covered) = self.ask_upstream(gone)
                && covered.report.error.is_none()
            {
                if !self.wait_durable(covered.position, gone) {
                    return None;
                }
                return Some(Barrier {
                    position: covered.position,
                    failed: covered.report.failed,
                    failed_total: covered.report.failed_total,
                    fuzzy: covered.report.fuzzy,
                    fuzzy_total: covered.report.fuzzy_total,
                });
            }
            std::thread::sleep(NAP);
        }
        None
    }

    fn at_hand(&self, object: ObjectId, digest: Digest) -> Option<Vec<u8>> {
        let live = self.live()?;
        if let Some(bytes) = live.memory.get(&digest) {
            return Some(bytes.to_vec());
        }
        // While apply is at work it does not answer; it is then asked for.
        let durable = live.reader.tail().durable().map(|end| end.position);
        if live.applied.lock().applied < durable || lock(&self.bad).contains(&digest) {
            return None;
        }
        let answer = open_in_copy(&live, object, digest)?;
        let (content, fd) = answer.recv_timeout(NAP).ok()??;
        let mut bytes = Vec::new();
        let end = self.send_file(&File::from(fd), &content, &mut |piece| {
            bytes.extend_from_slice(piece);
            bytes.len() as u64 <= SMALL_BYTES_MAX
        });
        (end == ReadBack::Complete).then_some(bytes)
    }

    fn cache(&self) -> &Arc<ContentCache> {
        &self.cache
    }

    fn report(&self) -> Report {
        self.hub.passed_on()
    }

    /// What is ordered from below does not reach the primary.
    fn order(&self, _: Order) {
        self.release();
    }

    fn release(&self) {
        if !self.told_orders.swap(true, Ordering::AcqRel) {
            self.notice(
                "a mirror that follows this one orders the source to do something: that is for mirrors that follow it \
                 directly"
                    .into(),
            );
        }
    }

    fn notice(&self, text: String) {
        self.hub.ui.event(Event::Notice(text));
    }

    fn read_back(
        &self,
        object: ObjectId,
        digest: Digest,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> ReadBack {
        let Some(live) = self.live() else {
            return ReadBack::Failed("the mirror there is not at work now".into());
        };
        match self.own(&live, object, digest, each) {
            Some(end) => end,
            None => {
                let hub = self.hub.clone();
                let read =
                    move |each: &mut dyn FnMut(&[u8]) -> bool| forward(&hub, object, digest, each);
                self.cache.read(digest, read, each)
            }
        }
    }

    fn spool(&self, chained: Chained) -> Result<Spooled, String> {
        let resting = || "the mirror there is not at work now".to_string();
        let live = self.live().ok_or_else(resting)?;
        let (answer, listed) = bounded(1);
        let order = ApplyOrder::List(live.state, chained, answer);
        live.orders.send(order).map_err(|_| resting())?;
        let until = Instant::now() + LIST_WITHIN;
        loop {
            match listed.recv_timeout(NAP) {
                Ok(listed) => return listed,
                Err(RecvTimeoutError::Disconnected) => return Err(resting()),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= until => {
                    return Err("the copy there is being changed all the time".into());
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn verify(
        &self,
        repair: bool,
        each: &mut dyn FnMut(Found) -> bool,
    ) -> Result<Compared, String> {
        if repair {
            return Err(
                "only a mirror that follows the source directly can have it repaired there".into(),
            );
        }
        let down = || "the mirror there is not connected to its source".to_string();
        let link = self.hub.links.get().ok_or_else(down)?;
        let found = link.verify(false).map_err(|_| down())?;
        loop {
            match found.recv() {
                Ok(VerifyOf::Found { path, what }) => {
                    if !each(Found { path, what }) {
                        return Err("nobody listens any more".into());
                    }
                }
                Ok(VerifyOf::Done(done)) if done.error.is_empty() => {
                    return Ok(Compared {
                        entries: done.entries,
                        bytes: done.bytes,
                        different: done.different,
                        unknown: done.unknown,
                    });
                }
                Ok(VerifyOf::Done(done)) => return Err(done.error),
                Err(_) => return Err(down()),
            }
        }
    }
}
