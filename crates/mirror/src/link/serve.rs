//! The serving side of one connection: log and contents to one follower, its requests answered.
//!
//! Each follower has threads and a cursor of its own, so a slow one holds nobody back. What is sent is durable here.
//! Whether that is a worker with its capture, or a mirror that is followed itself, is behind [`Served`].

mod packs;

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Scope;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use mirror_core::{Digest, ObjectId, Position, Record};

use super::batches::{After, Got, Made};
use super::bucket::Bucket;
use super::cache::{CacheReader, ContentCache};
use super::conn::{Incoming, LinkError, Outgoing, Pulse, silence};
use super::message::{
    self as say, AHEAD_BYTES_MAX, Block, CONTENTS_BYTES, Cause, LIST_GROUPS, Message, PIECE_BYTES,
    PROTOCOL, PROTOCOL_MIN, SMALL_BYTES_MAX,
};
use super::packed::{Packer, Tries};
use super::report::{BarrierReport, Fit, Report};
use super::window::Window;
use crate::capture::state::{Barrier, Order};
use crate::engine::options::Compress;
use crate::engine::seed::{Chained, Spooled};
use crate::engine::serving::chain::{self, Chain};
use crate::engine::status::Positions;
use crate::log::{Cursor, End, LogError, LogReader, Waited};
use crate::sync::lock;
use crate::sys::sched;

/// Requests for content that wait; a follower asks for a few at a time.
const REQUESTS_MAX: usize = 256;
const REQUEST_THREADS: usize = 4;
/// Parts of a listed tree that were asked for and not sent yet.
pub const WANTS_MAX: usize = 64 << 10;
/// Of a bandwidth that was asked for, a piece takes this part of a second, so that little else waits behind it.
const PIECES_PER_S: u64 = 20;
const PIECE_BYTES_MIN: usize = 4 << 10;
/// A piece that shrinks is larger by so much: small ones shrink little.
const PACKED_TIMES: usize = 4;
/// Barriers and verifications of one follower at once.
const ASKED_MAX: usize = 16;
/// Records gathered before they are sent.
const BATCH_BYTES: usize = 512 << 10;
/// Likewise contents, but for the whole groups they belong to.
const BATCH_CONTENT_BYTES: usize = 4 << 20;
/// How often a change of the report is told.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// Where a follower stands that has nothing.
const BEFORE_ALL: Position = Position {
    epoch: 0,
    sequence: 0,
};
/// How soon a loop sees that its connection is closed.
const NAP: Duration = Duration::from_millis(200);

/// What is served: a worker's tree, or a mirror.
pub trait Served: Send + Sync {
    fn ready(&self) -> Ready;
    /// Through whom the tree comes, and who we are.
    fn chain(&self) -> &Chain;
    /// Whether what this follower wants to be left out, say, can be had here.
    fn suits(&self, hello: &say::Hello) -> Result<(), String> {
        let _ = hello;
        Ok(())
    }
    /// A follower said its name, and which copy it is (nothing, if it is an older one). No two that are there are called
    /// the same.
    fn introduce(&self, state: &Mutex<FollowerState>, name: String, replica: &[u8]) {
        let _ = replica;
        lock(state).name = name;
    }
    /// The primary's clock in ns since 1970, and where its log ends, as far as that is known.
    fn clock(&self) -> (u64, Option<End>) {
        let end = match self.ready() {
            Ready::Open(open) => open.reader.tail().durable(),
            _ => None,
        };
        (now_ns(), end)
    }
    /// Whether a position that our log does not have yet may still come to it.
    fn reach(&self, position: Position, gone: &(dyn Fn() -> bool + Sync)) -> Reach {
        let _ = (position, gone);
        Reach::Never
    }
    /// What happened at the source before now is in the log here, durably, up to the answer. `None`: nobody waits any more.
    fn barrier(&self, gone: &(dyn Fn() -> bool + Sync)) -> Option<Barrier> {
        while !gone() {
            let (answer, answered) = bounded(1);
            self.order(Order::Barrier(answer));
            loop {
                match answered.recv_timeout(NAP) {
                    Ok(barrier) => return Some(barrier),
                    Err(RecvTimeoutError::Timeout) if !gone() => {}
                    Err(RecvTimeoutError::Timeout) => return None,
                    // Capture ended meanwhile: it is asked again.
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            std::thread::sleep(NAP);
        }
        None
    }
    /// A small content that can be had at once, to travel before its record.
    fn at_hand(&self, object: ObjectId, digest: Digest) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let end = self.read_back(object, digest, &mut |piece| {
            bytes.extend_from_slice(piece);
            bytes.len() as u64 <= SMALL_BYTES_MAX
        });
        (end == ReadBack::Complete).then_some(bytes)
    }
    /// Whether what is sent is packed, as far as our side has a say.
    fn compress(&self) -> Compress {
        Compress::Auto
    }
    /// What limits all connections together.
    fn bucket(&self) -> Option<Arc<Bucket>> {
        None
    }
    fn cache(&self) -> &Arc<ContentCache>;
    fn report(&self) -> Report;
    fn order(&self, order: Order);
    /// Lets a hold go on.
    fn release(&self);
    /// Worth a line, for people on this host.
    fn notice(&self, text: String);
    /// Reads an object's content again, in pieces, until `each` says false. Nothing is complete before
    /// [`ReadBack::Complete`]. A piece without bytes only asks whether somebody still wants it.
    fn read_back(
        &self,
        object: ObjectId,
        digest: Digest,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> ReadBack;
    /// The tree as the index has it now, in groups of records that make it.
    fn spool(&self, chained: Chained) -> Result<Spooled, String> {
        let _ = chained;
        Err("this worker can't send its tree whole".into())
    }
    /// Reads the whole source again and compares it with the index; `each` says false to stop.
    fn verify(&self, repair: bool, each: &mut dyn FnMut(Found) -> bool)
    -> Result<Compared, String>;
}

/// Whether there is something to serve.
pub enum Ready {
    /// Soon.
    NotYet,
    Open(Box<Open>),
    Never(Cause, String),
}

/// See [`Served::reach`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// It may be there by now.
    Look,
    NotYet(String),
    Never,
}

/// A log that can be served.
#[derive(Clone)]
pub struct Open {
    /// Name and version of the program that serves it.
    pub program: &'static str,
    pub tree: [u8; 16],
    pub path: Vec<u8>,
    pub detector: String,
    pub why: String,
    pub reader: LogReader,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadBack {
    Complete,
    /// The object has other content now, or is gone.
    Void,
    Failed(String),
    /// `each` said so.
    Stopped,
}

/// A difference between source and index.
pub struct Found {
    pub path: Vec<u8>,
    pub what: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    pub entries: u64,
    pub bytes: u64,
    pub different: u64,
    pub unknown: u64,
}

/// A follower as others see it.
#[derive(Debug, Clone, Default)]
pub struct FollowerState {
    pub name: String,
    /// The id of its state directory, in hex; empty: it did not say.
    pub replica: String,
    pub positions: Positions,
    /// As in [`say::Ack`].
    pub failed: u64,
    pub held: Option<String>,
    /// Records after this are still to be sent to it. `None`: it has not said where it stands.
    pub keep_after: Option<Position>,
    /// It makes one copy and goes.
    pub once: bool,
    /// It may order a look at everything, and release a hold. Who only has a key that is trusted here may not.
    pub may_order: bool,
}

pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

/// Serves until the connection ends. `state` shows meanwhile how far the follower is.
pub fn serve(
    served: &Arc<dyn Served>,
    outgoing: &Arc<Outgoing>,
    mut incoming: Incoming,
    state: &Mutex<FollowerState>,
) -> Result<(), LinkError> {
    let beat = {
        let served = served.clone();
        move || {
            let (time_ns, end) = served.clock();
            let end = end.map(say::At::from);
            Some(Message::from(say::Heartbeat { time_ns, end }))
        }
    };
    let pulse = Pulse::start(outgoing, &incoming, beat).map_err(|_| LinkError::Closed)?;
    let Message::Hello(hello) = incoming.next_message()? else {
        return Err(LinkError::Nonsense("it did not say hello".into()));
    };
    pulse.agree(silence(hello.timeout_ms));
    // From here on it is for us to say something.
    pulse.handshake(None);
    if hello.protocol < PROTOCOL_MIN || hello.protocol_min > PROTOCOL || hello.role != "follower" {
        let reason = format!(
            "mirrord {} here speaks protocol {PROTOCOL_MIN} to {PROTOCOL}, and the other side ({}) {} to {} as {}",
            env!("CARGO_PKG_VERSION"),
            super::conn::escaped(&hello.program),
            hello.protocol_min,
            hello.protocol,
            super::conn::escaped(&hello.role)
        );
        return refuse(outgoing, Cause::Usage, reason);
    }
    if hello.replica == served.chain().own() {
        let reason = "that is this very mirror: it can't follow itself".into();
        return refuse(outgoing, Cause::Usage, reason);
    }
    if let Err(reason) = served.suits(&hello) {
        return refuse(outgoing, Cause::Usage, reason);
    }
    let name = super::conn::escaped(&hello.name);
    served.introduce(state, name, &hello.replica);
    let cache = served.cache().reader();
    let connection = Connection {
        served: &**served,
        outgoing,
        cancelled: Mutex::default(),
        tree: OnceLock::new(),
        records_only: AtomicBool::new(false),
        seeds: hello.features & say::FEATURE_SEED != 0,
        window: (hello.features & say::FEATURE_TAKEN != 0).then(|| Window::new(Instant::now())),
        seeding: AtomicBool::new(false),
        packer: Mutex::default(),
        refused_orders: AtomicBool::new(false),
        state,
    };
    outgoing.packing.we_want(served.compress());
    let unpacks = hello.features & say::FEATURE_PACKED != 0;
    outgoing.packing.they_unpack(unpacks);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            if connection.welcome(hello.protocol).is_ok() {
                connection.send_reports();
            }
        });
        let done = connection.listen(scope, &mut incoming, state, cache);
        outgoing.close();
        done
    });
    drop(pulse);
    done
}

pub fn refuse(outgoing: &Outgoing, cause: Cause, reason: String) -> Result<(), LinkError> {
    outgoing.send(say::Refused {
        cause: cause.code(),
        reason,
    })
}

pub fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

struct Connection<'a> {
    served: &'a dyn Served,
    outgoing: &'a Outgoing,
    /// Requests whose pieces nobody wants any more.
    cancelled: Mutex<HashSet<u64>>,
    /// What the follower was told that it follows.
    tree: OnceLock<[u8; 16]>,
    records_only: AtomicBool,
    /// The follower takes a tree whole.
    seeds: bool,
    /// Pieces that it has not taken yet. `None`: it does not say so.
    window: Option<Window>,
    /// And is sent one now.
    seeding: AtomicBool,
    packer: Mutex<Packer>,
    refused_orders: AtomicBool,
    state: &'a Mutex<FollowerState>,
}

impl<'a> Connection<'a> {
    /// Says what is served, as soon as there is something. A hold is told meanwhile.
    fn welcome(&self, protocol: u32) -> Result<(), LinkError> {
        let mut told = None;
        let open = loop {
            match self.served.ready() {
                Ready::Open(open) => break open,
                Ready::Never(cause, reason) => {
                    refuse(self.outgoing, cause, reason)?;
                    return Err(LinkError::Closed);
                }
                Ready::NotYet if self.outgoing.is_closed() => return Err(LinkError::Closed),
                Ready::NotYet => {
                    let report = self.served.report();
                    if (report.hold.is_some() || report.paused) && told.as_ref() != Some(&report) {
                        self.outgoing.send(say::Report { json: report.fit() })?;
                        told = Some(report);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        };
        let _ = self.tree.set(open.tree);
        let may_order = lock(self.state).may_order;
        let no_orders = match may_order {
            true => 0,
            false => say::FEATURE_NO_ORDERS,
        };
        self.outgoing.send(say::Welcome {
            protocol: PROTOCOL.min(protocol),
            features: say::FEATURE_SEED
                | say::FEATURE_LIST
                | say::FEATURE_TAKEN
                | say::FEATURE_PACKED
                | say::FEATURE_FROM
                | no_orders,
            program: open.program.into(),
            tree: open.tree,
            path: open.path.clone(),
            detector: open.detector.clone(),
            why: open.why.clone(),
            first: Some(open.reader.first().into()),
            end: open.reader.tail().durable().map(say::At::from),
            host: hostname(),
            chain: chain::to_wire(self.served.chain().whole().unwrap_or_default()),
        })
    }

    fn obey(&self, what: u8) {
        let (name, may) = {
            let state = lock(self.state);
            (state.name.clone(), state.may_order)
        };
        if !may {
            if !self.refused_orders.swap(true, Ordering::AcqRel) {
                let text = "orders a release or a look at everything, and may not: whoever comes through the door only follows";
                self.served.notice(format!("{name} {text}"));
            }
            return;
        }
        match what {
            say::Order::RESCAN => self.served.order(Order::Rescan),
            say::Order::RELEASE => {
                self.served.notice(format!("{name} releases what is held"));
                self.served.release();
            }
            // Of a newer version: better not at all than wrong.
            _ => {}
        }
    }

    fn listen<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        incoming: &mut Incoming,
        state: &Mutex<FollowerState>,
        cache: CacheReader,
    ) -> Result<(), LinkError> {
        let mut cache = Some(cache);
        let mut requests: Option<Sender<say::Request>> = None;
        let mut wants: Option<Sender<say::SeedWant>> = None;
        let asked = Arc::new(());
        loop {
            match incoming.next_message()? {
                Message::Follow(follow) => {
                    let Some(reader) = cache.take() else {
                        return Err(LinkError::Nonsense("it follows twice".into()));
                    };
                    self.outgoing
                        .bucket
                        .limit((follow.bwlimit > 0).then_some(follow.bwlimit));
                    self.records_only
                        .store(follow.records_only, Ordering::Relaxed);
                    lock(self.state).once = follow.once;
                    let after = follow.after.map(End::from);
                    let listed = follow.listed && after.is_none();
                    match self.begin(after) {
                        Ok(_) | Err((Cause::Pruned, _)) if listed => {
                            cache = Some(reader);
                            self.seeds_now()?;
                            let (sender, wanted) = unbounded();
                            wants = Some(sender);
                            scope.spawn(move || self.send_seed(Some(&wanted)));
                        }
                        Err((Cause::Pruned, _)) if after.is_none() && self.seeds => {
                            cache = Some(reader);
                            self.seeds_now()?;
                            scope.spawn(|| self.send_seed(None));
                        }
                        Ok(from) => {
                            // Who only looks comes once.
                            if !follow.records_only {
                                self.keep(after.map_or(BEFORE_ALL, |after| after.position));
                            }
                            scope.spawn(move || self.send_log(after, from, &reader));
                        }
                        Err((Cause::Failed, reason)) if !self.is_open() => {
                            // Since the welcome: a hold, say, which whoever comes again is told of.
                            self.outgoing.send(say::Bye { reason })?;
                            return Err(LinkError::Closed);
                        }
                        Err((cause, reason)) => {
                            refuse(self.outgoing, cause, reason)?;
                            cache = Some(reader);
                        }
                    }
                }
                Message::SeedWant(want) => {
                    let Some(wants) = &wants else {
                        return Err(LinkError::Nonsense("it wants a tree too early".into()));
                    };
                    if wants.len() >= WANTS_MAX {
                        return Err(LinkError::Nonsense("too many questions at once".into()));
                    }
                    // Whoever sends them ends when the connection does.
                    let _ = wants.send(want);
                }
                Message::Ack(ack) => {
                    let mut state = lock(state);
                    state.positions = Positions {
                        received: ack.received.map(Position::from),
                        durable: ack.durable.map(Position::from),
                        applied: ack.applied.map(Position::from),
                    };
                    state.failed = ack.failed.unwrap_or(0);
                    state.held = ack.held.map(|why| super::conn::escaped(&why));
                    // Kept before it was told where to begin is what it says at last.
                    if state.keep_after.is_some() {
                        state.keep_after = state.keep_after.max(state.positions.durable);
                    }
                }
                Message::Request(request) => {
                    let requests = requests.get_or_insert_with(|| {
                        let (sender, taken) = bounded(REQUESTS_MAX);
                        for _ in 0..REQUEST_THREADS {
                            let taken = taken.clone();
                            scope.spawn(move || self.answer_requests(&taken));
                        }
                        sender
                    });
                    let id = request.id;
                    if requests.try_send(request).is_err() {
                        self.piece_end(id, 2, "too many requests at once".into())?;
                    }
                }
                Message::Cancel(cancel) => {
                    let mut cancelled = lock(&self.cancelled);
                    if cancelled.len() > 4 * REQUESTS_MAX {
                        cancelled.clear();
                    }
                    cancelled.insert(cancel.id);
                }
                Message::Barrier(barrier) => {
                    if Arc::strong_count(&asked) > ASKED_MAX {
                        return Err(LinkError::Nonsense("too many barriers at once".into()));
                    }
                    let seat = asked.clone();
                    scope.spawn(move || {
                        self.answer_barrier(barrier.id);
                        drop(seat);
                    });
                }
                Message::Verify(verify) => {
                    if Arc::strong_count(&asked) > ASKED_MAX {
                        return Err(LinkError::Nonsense("too many questions at once".into()));
                    }
                    let seat = asked.clone();
                    scope.spawn(move || {
                        self.answer_verify(verify);
                        drop(seat);
                    });
                }
                Message::Order(order) => self.obey(order.what),
                Message::Taken(taken) => {
                    let fits = |window: &Window| window.taken(taken.bytes, Instant::now());
                    if !self.window.as_ref().is_some_and(fits) {
                        return Err(LinkError::Nonsense("it takes more than was sent".into()));
                    }
                }
                Message::Came(came) => {
                    let packing = &self.outgoing.packing;
                    packing.came(came.bytes, came.waited_us, Instant::now());
                }
                Message::Pace(pace) => {
                    let limit = (pace.bwlimit > 0).then_some(pace.bwlimit);
                    if limit != self.outgoing.bucket.rate() {
                        self.outgoing.bucket.limit(limit);
                    }
                    self.outgoing.packing.they_want(pace.packing);
                }
                Message::Heartbeat(_) => {}
                other => {
                    return Err(LinkError::Nonsense(format!(
                        "a follower does not say messages of kind {}",
                        other.kind()
                    )));
                }
            }
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.served.ready(), Ready::Open(_))
    }

    /// A cursor after the follower's last record, if that is in our history.
    fn begin(&self, after: Option<End>) -> Result<(LogReader, Cursor), (Cause, String)> {
        let Ready::Open(open) = self.served.ready() else {
            return Err((Cause::Failed, "capture does not run now".into()));
        };
        if self.tree.get().is_some_and(|tree| *tree != open.tree) {
            return Err((Cause::Usage, "the tree has another history now".into()));
        }
        let reader = open.reader;
        let pruned = |first: Position| {
            (
                Cause::Pruned,
                format!(
                    "the log there begins at {first} and no longer reaches back to where this mirror stands"
                ),
            )
        };
        let failed = |e: LogError| match e {
            LogError::Pruned { first } => pruned(first),
            e => (Cause::Failed, crate::cli::exit::chain(&e)),
        };
        match after {
            None => {
                let first = reader.first();
                if first.sequence > 1 {
                    return Err(pruned(first));
                }
            }
            Some(after) => {
                let forked = || {
                    (
                        Cause::Forked,
                        format!(
                            "the log there has another history: it does not contain {} as this mirror has it",
                            after.position
                        ),
                    )
                };
                let mut found = reader.head_at(after.position);
                if matches!(found, Ok(None) | Err(LogError::Beyond { .. }))
                    && after.position > reader.first()
                {
                    let gone = || self.outgoing.is_closed();
                    match self.served.reach(after.position, &gone) {
                        Reach::Look => found = reader.head_at(after.position),
                        Reach::NotYet(reason) => return Err((Cause::Failed, reason)),
                        Reach::Never => {}
                    }
                }
                match found {
                    Ok(Some(head)) if head == after.head => {}
                    Ok(Some(_)) => return Err(forked()),
                    Ok(None) if after.position < reader.first() => {
                        return Err(pruned(reader.first()));
                    }
                    Ok(None) | Err(LogError::Beyond { .. }) => return Err(forked()),
                    Err(e) => return Err(failed(e)),
                }
            }
        }
        let cursor = reader
            .cursor(after.map(|after| after.position))
            .map_err(failed)?;
        Ok((reader, cursor))
    }

    fn keep(&self, after: Position) {
        let mut state = lock(self.state);
        state.keep_after = Some(after);
    }

    // ---- the tree, whole ----

    fn seeds_now(&self) -> Result<(), LinkError> {
        if self.seeding.swap(true, Ordering::AcqRel) {
            return Err(LinkError::Nonsense("it begins twice".into()));
        }
        Ok(())
    }

    /// `wanted`: the follower gets a list, and says of which groups it wants the records.
    fn send_seed(&self, wanted: Option<&Receiver<say::SeedWant>>) {
        let done = self.send_tree(wanted);
        self.seeding.store(false, Ordering::Release);
        if !matches!(done, Ok(Ok(()))) {
            let told = match done {
                Ok(Err(reason)) => refuse(self.outgoing, Cause::Failed, reason),
                _ => Err(LinkError::Closed),
            };
            if told.is_err() {
                self.outgoing.close();
            }
        }
    }

    /// The inner error: why it can't be sent.
    fn send_tree(
        &self,
        wanted: Option<&Receiver<say::SeedWant>>,
    ) -> Result<Result<(), String>, LinkError> {
        let chained = match wanted {
            Some(_) => Chained::Apart,
            None => Chained::Through,
        };
        let spooled = match self.served.spool(chained) {
            Ok(spooled) => spooled,
            Err(reason) => return Ok(Err(reason)),
        };
        self.keep(spooled.end.position);
        let sent = match wanted {
            None => self.send_groups(&spooled, 0..spooled.groups.len())?,
            Some(wanted) => {
                self.send_list(&spooled)?;
                self.send_wanted(&spooled, wanted)?
            }
        };
        if let Err(reason) = sent {
            return Ok(Err(reason));
        }
        self.outgoing.send(say::SeedEnd {
            at: spooled.end.into(),
        })?;
        Ok(Ok(()))
    }

    fn send_list(&self, spooled: &Spooled) -> Result<(), LinkError> {
        let lists = spooled.groups.len().div_ceil(LIST_GROUPS);
        for (n, groups) in spooled.groups.chunks(LIST_GROUPS).enumerate() {
            self.send_bulk(say::SeedList {
                at: spooled.end.into(),
                last: n + 1 == lists,
                hashes: groups.iter().flat_map(|group| group.hash).collect(),
            })?;
        }
        Ok(())
    }

    fn send_wanted(
        &self,
        spooled: &Spooled,
        wanted: &Receiver<say::SeedWant>,
    ) -> Result<Result<(), String>, LinkError> {
        let mut next = 0;
        while !self.outgoing.is_closed() {
            let want = match wanted.recv_timeout(NAP) {
                Ok(want) => want,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let end = want.from.saturating_add(want.count);
            let (Ok(from), Ok(end)) = (usize::try_from(want.from), usize::try_from(end)) else {
                return Ok(Err("groups were asked for that are not there".into()));
            };
            // In their order, each once: nobody is sent more than the tree.
            if from < next || end > spooled.groups.len() {
                return Ok(Err("groups were asked for that are not there".into()));
            }
            next = end;
            if let Err(reason) = self.send_groups(spooled, from..end)? {
                return Ok(Err(reason));
            }
            if want.last {
                return Ok(Ok(()));
            }
        }
        Err(LinkError::Closed)
    }

    fn send_groups(
        &self,
        spooled: &Spooled,
        groups: Range<usize>,
    ) -> Result<Result<(), String>, LinkError> {
        for n in groups {
            match spooled.group(n) {
                Ok(frames) => self.send_group(&frames)?,
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(()))
    }

    fn send_group(&self, group: &[u8]) -> Result<(), LinkError> {
        let pieces = group.len().div_ceil(PIECE_BYTES);
        for (n, piece) in group.chunks(PIECE_BYTES).enumerate() {
            self.send_bulk(say::Seed {
                whole: n + 1 == pieces,
                bytes: piece.to_vec(),
            })?;
        }
        Ok(())
    }

    // ---- log ----

    fn send_log(&self, after: Option<End>, from: (LogReader, Cursor), cache: &CacheReader) {
        if let Err(error) = self.send_log_until(after, from, cache) {
            let _ = self.outgoing.send(say::Bye {
                reason: error.to_string(),
            });
            self.outgoing.close();
        }
    }

    fn send_log_until(
        &self,
        mut last: Option<End>,
        (mut reader, mut cursor): (LogReader, Cursor),
        cache: &CacheReader,
    ) -> Result<(), LinkError> {
        while !self.outgoing.is_closed() {
            let failed = |e: LogError| LinkError::Nonsense(crate::cli::exit::chain(&e));
            let durable = reader.tail().durable().map(|end| end.position);
            while cursor.position() < durable {
                let made = self
                    .next_batch(&reader, &mut cursor, cache)
                    .map_err(failed)?;
                let Some(made) = made else { break };
                self.send_batch(&made)?;
                last = Some(made.end);
            }
            let deadline = Instant::now() + NAP;
            match reader.tail().wait_past(cursor.position(), deadline) {
                Waited::Durable(_) | Waited::Deadline => {}
                Waited::Stopped(_) => {
                    // Capture ended; a new session of it opens the same log again.
                    std::thread::sleep(NAP);
                    match self.begin(last) {
                        Ok(again) => (reader, cursor) = again,
                        Err((Cause::Failed, _)) => {}
                        Err((_, reason)) => return Err(LinkError::Bye(reason)),
                    }
                }
            }
        }
        Ok(())
    }

    /// What comes next, gathered by whoever of those that stand here comes first. `None`: nothing does now.
    fn next_batch(
        &self,
        reader: &LogReader,
        cursor: &mut Cursor,
        cache: &CacheReader,
    ) -> Result<Option<Arc<Made>>, LogError> {
        let alone = !cache.cache().several() || self.records_only.load(Ordering::Relaxed);
        let claim = if alone {
            None
        } else {
            let after = After::new(reader.tree(), cursor.end());
            match cache.cache().batches().get(after, NAP) {
                Got::Made(made) => {
                    cursor.go_to(&made.mark)?;
                    return Ok(Some(made));
                }
                Got::Claimed(claim) => Some(claim),
                Got::Busy => None,
            }
        };
        let mut batch = Batch::default();
        self.gather(reader, cursor, cache, &mut batch)?;
        let Some(end) = batch.end else {
            return Ok(None);
        };
        let made = Arc::new(Made::new(batch.finish(), end, cursor.mark()));
        if let Some(claim) = claim {
            claim.done(made.clone());
        }
        Ok(Some(made))
    }

    /// Whole groups, until there are enough or no more now.
    fn gather(
        &self,
        reader: &LogReader,
        cursor: &mut Cursor,
        cache: &CacheReader,
        batch: &mut Batch,
    ) -> Result<(), LogError> {
        let store = reader.content();
        let records_only = self.records_only.load(Ordering::Relaxed);
        while batch.records.len() < BATCH_BYTES
            && batch.content_bytes < BATCH_CONTENT_BYTES
            && !self.outgoing.is_closed()
        {
            let Some(group) = cursor.next_group()? else {
                return Ok(());
            };
            for record in &group.records {
                let Some(content) = record.change.content() else {
                    continue;
                };
                if content.bytes == 0 || records_only || batch.sent.contains(&content.digest) {
                    continue;
                }
                let bytes = content.stored_bytes();
                if bytes.saturating_add(batch.content_bytes as u64) > AHEAD_BYTES_MAX {
                    continue;
                }
                if let Some(place) = record.content
                    && let Ok(bytes) = store.get(place)
                {
                    batch.sent.insert(content.digest);
                    batch.put(true, content.digest, bytes);
                } else if content.stored_bytes() <= SMALL_BYTES_MAX
                    && let Some(bytes) = self.small(record, content.digest, cache)
                {
                    batch.sent.insert(content.digest);
                    batch.put(false, content.digest, bytes);
                }
            }
            group.to_wire(&mut batch.records);
            batch.end = Some(group.end);
        }
        Ok(())
    }

    /// A content that is not beside the log: what capture has just read, or the file itself. Without it the follower
    /// asks, if it still wants it.
    fn small(&self, record: &Record, digest: Digest, cache: &CacheReader) -> Option<Vec<u8>> {
        if let Some(bytes) = cache.take(&digest) {
            return Some(bytes.to_vec());
        }
        let bytes = self.served.at_hand(record.change.object()?, digest)?;
        cache.read(digest, &bytes);
        Some(bytes)
    }

    fn send_reports(&self) {
        let mut told = None;
        while !self.outgoing.is_closed() {
            let mut report = self.served.report();
            report.held_to = self.outgoing.held_to().or(report.held_to);
            self.outgoing.packing.we_want(self.served.compress());
            if told.as_ref() != Some(&report) {
                let json = report.fit();
                told = Some(report);
                if self.outgoing.send(say::Report { json }).is_err() {
                    return;
                }
            }
            self.served.cache().sweep();
            let until = Instant::now() + REPORT_EVERY;
            while Instant::now() < until && !self.outgoing.is_closed() {
                std::thread::sleep(NAP.min(REPORT_EVERY));
            }
        }
    }

    // ---- answers ----

    fn answer_requests(&self, taken: &Receiver<say::Request>) {
        sched::stand_back();
        loop {
            let request = match taken.recv_timeout(NAP) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) if !self.outgoing.is_closed() => continue,
                Err(_) => return,
            };
            if self.answer_request(&request).is_err() {
                return;
            }
        }
    }

    fn answer_request(&self, request: &say::Request) -> Result<(), LinkError> {
        let wanted = || !self.outgoing.is_closed() && !lock(&self.cancelled).contains(&request.id);
        let mut sent = Ok(());
        let mut gathered: Vec<u8> = Vec::new();
        // Of the pieces before.
        let tries = RefCell::new(Tries::default());
        let mut send = |bytes: Vec<u8>| {
            sent = self.send_piece(request.id, bytes, &tries, &|| !wanted());
            sent.is_ok()
        };
        let (object, digest) = (ObjectId(request.object), Digest(request.digest));
        // All of it is read, and checked; the first part is there.
        let mut skip = request.from.unwrap_or(0);
        let mut end = self.served.read_back(object, digest, &mut |piece| {
            let there = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= there as u64;
            let mut rest = piece.get(there..).unwrap_or_default();
            while !rest.is_empty() {
                let size = self.piece_bytes(tries.borrow().shrank());
                let room = size.saturating_sub(gathered.len()).max(1);
                let (part, after) = rest.split_at(rest.len().min(room));
                gathered.extend_from_slice(part);
                rest = after;
                if gathered.len() >= size && !send(std::mem::take(&mut gathered)) {
                    return false;
                }
            }
            wanted()
        });
        if end == ReadBack::Complete && !gathered.is_empty() && !send(gathered) {
            end = ReadBack::Stopped;
        }
        if !wanted() {
            // Nobody waits for the rest of it.
            end = ReadBack::Stopped;
            sent = Ok(());
        }
        sent?;
        lock(&self.cancelled).remove(&request.id);
        match end {
            ReadBack::Complete => self.piece_end(request.id, 0, String::new()),
            ReadBack::Void => self.piece_end(request.id, 1, String::new()),
            ReadBack::Failed(reason) => self.piece_end(request.id, 2, reason),
            ReadBack::Stopped => Ok(()),
        }
    }

    /// `shrinks`: it will be less by far.
    fn piece_bytes(&self, shrinks: bool) -> usize {
        let window = self.window.as_ref().map_or(PIECE_BYTES, Window::piece);
        let rate = self.outgoing.rate();
        let times = if shrinks { PACKED_TIMES } else { 1 };
        let in_time = rate.map_or(PIECE_BYTES as u64, |rate| {
            (rate / PIECES_PER_S).saturating_mul(times as u64)
        });
        window
            .min(usize::try_from(in_time).unwrap_or(PIECE_BYTES))
            .max(PIECE_BYTES_MIN * times)
    }

    fn send_piece(
        &self,
        id: u64,
        bytes: Vec<u8>,
        tries: &RefCell<Tries>,
        unwanted: &dyn Fn() -> bool,
    ) -> Result<(), LinkError> {
        let waits = |window: &Window| window.wait(bytes.len(), unwanted);
        if !self.window.as_ref().is_none_or(waits) {
            return Err(LinkError::Closed);
        }
        let frame = Message::from(say::Piece { id, bytes }).encoded()?;
        let mut packed = None;
        if self.packs_now() && tries.borrow_mut().worth() {
            packed = self.pack(&frame);
            tries.borrow_mut().tried(packed.is_some());
        }
        self.outgoing.send_behind(&packed.unwrap_or(frame))
    }

    fn piece_end(&self, id: u64, end: u8, reason: String) -> Result<(), LinkError> {
        self.outgoing.send(say::PieceEnd { id, end, reason })
    }

    fn answer_barrier(&self, id: u64) {
        let mut done = say::BarrierDone {
            id,
            position: None,
            report: String::new(),
        };
        let answer = self.served.barrier(&|| self.outgoing.is_closed());
        let report = match answer {
            Some(barrier) => {
                done.position = barrier.position.map(say::Place::from);
                BarrierReport {
                    failed: barrier.failed,
                    failed_total: barrier.failed_total,
                    fuzzy: barrier.fuzzy,
                    fuzzy_total: barrier.fuzzy_total,
                    error: None,
                }
            }
            None => return,
        };
        done.report = report.fit();
        // Counts and failures as of the barrier come before it.
        let json = self.served.report().fit();
        let _ = self.outgoing.send(say::Report { json });
        let _ = self.outgoing.send(done);
    }

    fn answer_verify(&self, verify: say::Verify) {
        let compared = self.served.verify(verify.repair, &mut |found| {
            self.outgoing
                .send(say::VerifyFound {
                    id: verify.id,
                    path: found.path,
                    what: found.what,
                })
                .is_ok()
        });
        let (compared, error) = match compared {
            Ok(compared) => (compared, String::new()),
            Err(error) => (Compared::default(), error),
        };
        let _ = self.outgoing.send(say::VerifyDone {
            id: verify.id,
            entries: compared.entries,
            bytes: compared.bytes,
            different: compared.different,
            unknown: compared.unknown,
            error,
        });
    }
}

/// What goes out together.
#[derive(Default)]
struct Batch {
    records: Vec<u8>,
    end: Option<End>,
    /// Contents that are full messages, encoded.
    frames: Vec<Vec<u8>>,
    kept: Vec<Block>,
    kept_bytes: usize,
    passing: Vec<Block>,
    passing_bytes: usize,
    content_bytes: usize,
    /// Contents in this batch, so that equal ones travel once.
    sent: HashSet<Digest>,
}

impl Batch {
    fn put(&mut self, kept: bool, digest: Digest, bytes: Vec<u8>) {
        let (blocks, sum) = if kept {
            (&mut self.kept, &mut self.kept_bytes)
        } else {
            (&mut self.passing, &mut self.passing_bytes)
        };
        *sum += bytes.len() + 48;
        self.content_bytes += bytes.len();
        blocks.push(Block {
            digest: digest.0,
            bytes,
        });
        if *sum >= CONTENTS_BYTES {
            *sum = 0;
            let blocks = std::mem::take(blocks);
            self.message(say::Contents { kept, blocks });
        }
    }

    /// What does not fit a message is left out, and asked for.
    fn message(&mut self, message: impl Into<Message>) {
        let mut frame = Vec::new();
        if message.into().encode(&mut frame).is_ok() {
            self.frames.push(frame);
        }
    }

    /// Contents, then the records.
    fn finish(mut self) -> Vec<Vec<u8>> {
        for kept in [true, false] {
            let blocks = std::mem::take(if kept {
                &mut self.kept
            } else {
                &mut self.passing
            });
            if !blocks.is_empty() {
                self.message(say::Contents { kept, blocks });
            }
        }
        let records = std::mem::take(&mut self.records);
        let pieces = records.len().div_ceil(PIECE_BYTES);
        for (n, piece) in records.chunks(PIECE_BYTES).enumerate() {
            self.message(say::Records {
                whole: n + 1 == pieces,
                bytes: piece.to_vec(),
            });
        }
        self.frames
    }
}
