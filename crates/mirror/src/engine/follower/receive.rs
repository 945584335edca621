//! The receiving thread: connects, shakes hands, and writes what comes into the log; again and again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use mirror_core::{Content, ContentRef, Digest, escape};

use super::arriving::{Arriving, Full, room};
use super::contents::Memory;
use super::dial::Dialer;
use super::far::{Far, Peer};
use super::hub::Hub;
use super::listed::{Known, Listed, PutError};
use super::wire::Link;
use crate::disk::Disk;
use crate::engine::applying::chain;
use crate::engine::back_off::BackOff;
use crate::engine::event::{Event, RunError};
use crate::engine::lost;
use crate::engine::options::{Compress, MirrorOptions};
use crate::engine::seed;
use crate::engine::soon::Soon;
use crate::link::conn::{HANDSHAKE_S_MAX, Incoming, escaped, silence};
use crate::link::message::{self as say, Cause, Message, PROTOCOL, PROTOCOL_MIN};
use crate::link::serve::{hostname, now_ns};
use crate::link::{LinkError, Outgoing, Pulse};
use crate::log::{End, GROUP_BYTES_MAX, Log, LogError, LogOptions};
use crate::sync::lock;

/// Records that came and are not whole groups yet. A worker gathers little more than one group.
pub const RECORDS_BYTES_MAX: usize = GROUP_BYTES_MAX + (8 << 20);
/// How long a person may take to type a password or to check a key.
pub const TYPING: Duration = Duration::from_secs(180);
/// With `--once` a link that broke is tried again for so long.
const ONCE_TRIES: Duration = Duration::from_secs(60);
/// Between looks at how far it is applied.
const NAP: Duration = Duration::from_millis(10);

/// Why the thread ended.
pub enum Ended {
    /// The session was closed.
    Stopped,
    /// It makes no sense to try again.
    Fatal(RunError),
    /// Our log does not fit theirs: compare everything again.
    Restart(String),
    /// Our own log can't be written.
    Local(String),
}

pub struct Receiver {
    pub far: Far,
    pub dialer: Dialer,
    pub options: MirrorOptions,
    pub hub: Arc<Hub>,
    pub disk: Arc<dyn Disk>,
    /// `None` until the first connection says of which tree it is.
    pub log: Arc<Mutex<Option<Log>>>,
    pub memory: Arc<Memory>,
    pub stopping: Arc<AtomicBool>,
    /// Told when there is a log.
    pub begun: Sender<()>,
    /// This mirror was connected before, in this or another run.
    pub ever: bool,
    /// Told when the tree came whole, as of where, and its id; it is in [`seed::FILE`].
    pub seeded: Sender<(End, [u8; 16])>,
    /// What is left out or crossed is not what this log is of: another capture there, and another log.
    pub changed: bool,
    /// Of the tree that comes whole, until there is a log.
    pub tree: Option<[u8; 16]>,
    /// What was known of the copy before it began anew.
    pub known: Option<Known>,
    /// A list of the tree is coming, or has come.
    pub listed: Option<Listed>,
    /// It has come, and is being made.
    pub came_whole: bool,
    /// What the worker holds was let go on while no process ran here. Taken once.
    pub released: Arc<AtomicBool>,
    /// The last connection ended, or did not begin, in a way that lets another one begin soon.
    pub soon: bool,
}

/// Why one connection ended.
enum Broken {
    Link(LinkError),
    Refused(Cause, String),
    Ended(Ended),
}

impl From<LinkError> for Broken {
    fn from(error: LinkError) -> Broken {
        Broken::Link(error)
    }
}

impl Receiver {
    pub fn run(mut self) -> Ended {
        let mut back_off = BackOff::default();
        let mut soon = Soon::default();
        let mut broken_since: Option<Instant> = None;
        let mut reached = self.reached();
        loop {
            if self.stopped() {
                return Ended::Stopped;
            }
            if self.hub.is_full() {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            let began = Instant::now();
            self.soon = false;
            let reason = match self.connect() {
                Ok(never) => match never {},
                Err(Some(ended)) => return ended,
                Err(None) if self.stopped() => return Ended::Stopped,
                Err(None) => self.hub.last_reason(),
            };
            let connected = self.hub.disconnected(&reason);
            let before = std::mem::replace(&mut reached, self.reached());
            let worked = connected && (before != reached || began.elapsed() >= ONCE_TRIES);
            if worked {
                // It worked a moment ago: begin with short waits.
                back_off.reset();
                broken_since = Some(Instant::now());
            }
            let tried = broken_since.get_or_insert(began).elapsed();
            if !self.ever
                || (self.options.once && !(self.hub.was_connected() && tried < ONCE_TRIES))
            {
                return Ended::Fatal(RunError::Unreachable(reason));
            }
            let wait = soon.next_wait(self.soon, worked, &mut back_off);
            self.hub.ui.event(Event::Disconnected {
                reason,
                retry_s: wait.as_secs().max(1),
            });
            let until = Instant::now() + wait;
            while Instant::now() < until && !self.stopped() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn reached(&self) -> Option<End> {
        lock(&self.log).as_ref().and_then(Log::end)
    }

    fn stopped(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// One connection, until it ends. `Err(None)`: to be tried again, for the hub's last reason.
    fn connect(&mut self) -> Result<std::convert::Infallible, Option<Ended>> {
        let mut peer = match self.dialer.connect() {
            Ok(peer) => peer,
            Err(unreached) => {
                self.soon = unreached.refused;
                self.hub.set_reason(unreached.why);
                return Err(None);
            }
        };
        let Some(incoming) = peer.incoming.take() else {
            return Err(None);
        };
        self.hub.set_outgoing(Some(peer.outgoing.clone()));
        if self.stopped() {
            // Whoever stops us may have missed this connection.
            peer.outgoing.close();
        }
        let broken = self.talk(&peer, incoming);
        self.hub.set_outgoing(None);
        let host = escape(self.far.host.as_bytes());
        match broken {
            Broken::Ended(ended) => Err(Some(ended)),
            Broken::Refused(cause, reason) => {
                let line = format!("{host}: {}", escaped(&reason));
                let error = match cause {
                    Cause::Usage => RunError::Usage(line.clone()),
                    Cause::Forbidden => RunError::Unreachable(line.clone()),
                    _ => RunError::Failed(anyhow::anyhow!(line.clone())),
                };
                // What was once right may be so again: the tree's disk comes back, the key's line is put right.
                if !self.ever || self.options.once {
                    return Err(Some(Ended::Fatal(error)));
                }
                self.hub.set_reason(line);
                Err(None)
            }
            Broken::Link(error) => {
                if self.stopped() {
                    return Err(None);
                }
                let reason = if self.hub.is_connected() {
                    format!("the link to {host} broke: {error}")
                } else {
                    self.far.why(&error, &mut peer)
                };
                // Whoever breaks the protocol does so again.
                if self.options.once
                    && self.hub.is_connected()
                    && let Some(error) = hopeless(&error, &reason)
                {
                    return Err(Some(Ended::Fatal(error)));
                }
                // It said so: it is being restarted, say.
                self.soon = matches!(error, LinkError::Bye(_));
                self.hub.set_reason(reason);
                Err(None)
            }
        }
    }

    fn talk(&mut self, peer: &Peer, mut incoming: Incoming) -> Broken {
        let outgoing = &peer.outgoing;
        let beat = || {
            Some(Message::from(say::Heartbeat {
                time_ns: now_ns(),
                end: None,
            }))
        };
        let pulse = match Pulse::start(outgoing, &incoming, beat) {
            Ok(pulse) => pulse,
            Err(_) => return Broken::Link(LinkError::Closed),
        };
        peer.limit(&pulse);
        if self.far.terminal {
            // Somebody may be typing a password.
            pulse.agree(TYPING);
            pulse.handshake(Some(TYPING));
        }
        let broken = match self.shake_hands(outgoing, &mut incoming, &pulse) {
            Ok(link) => {
                let broken = self.follow(&link, &mut incoming, &pulse);
                self.hub.links.set(None);
                broken
            }
            Err(broken) => broken,
        };
        drop(pulse);
        broken
    }

    /// Until the worker says what it serves and our place in it is found.
    fn shake_hands(
        &mut self,
        outgoing: &Arc<Outgoing>,
        incoming: &mut Incoming,
        pulse: &Pulse,
    ) -> Result<Arc<Link>, Broken> {
        let own = self.hub.chain.own();
        outgoing.send(hello(&self.options, &self.far, &own))?;
        let welcome = loop {
            match incoming.next_message()? {
                Message::Welcome(welcome) => break welcome,
                Message::Refused(no) => {
                    return Err(Broken::Refused(Cause::of(no.cause), no.reason));
                }
                Message::Heartbeat(_) => {}
                Message::Report(report) => {
                    self.hub.report(&report.json, &self.far.host)?;
                    self.not_yet(pulse)?;
                }
                other => return Err(nonsense(&other)),
            }
        };
        // A heartbeat alone is not what it promises.
        pulse.handshake(Some(handshake_max(&self.options)));
        pulse.agree(silence(timeout_ms(&self.options)));
        if !(PROTOCOL_MIN..=PROTOCOL).contains(&welcome.protocol) {
            return Err(Broken::Ended(Ended::Fatal(RunError::Failed(
                anyhow::anyhow!(
                    "{} speaks protocol {}, and this program {PROTOCOL_MIN} to {PROTOCOL}: install the same version on \
                     both hosts",
                    escape(self.far.host.as_bytes()),
                    welcome.protocol
                ),
            ))));
        }
        self.join_chain(&welcome)?;
        let begin = self.begin_log(&welcome)?;
        let features = welcome.features & FEATURES;
        let (arrived, compress) = (incoming.arrived(), self.options.compress);
        let once = self.options.once;
        let link = Link::new(outgoing.clone(), features, arrived, compress, once);
        let link = Arc::new(link);
        if link.packs() {
            incoming.unpacks();
            if compress != Compress::Auto {
                link.pace(self.options.bwlimit.get())?;
            }
        }
        match begin {
            Some(None) if self.listed.is_some() => {
                link.follow_listed(self.options.bwlimit.get())?
            }
            Some(after) => link.follow(after, self.options.bwlimit.get())?,
            None => {}
        }
        self.ever = true;
        self.hub.connected(&link, &welcome, &self.far.host);
        // The copy may have got its log a moment ago, when there was no link to say so.
        if begin.is_none()
            && let Some(log) = &*lock(&self.log)
        {
            link.follow(log.end(), self.options.bwlimit.get())?;
        }
        Ok(link)
    }

    /// We are the next in the chain of whoever serves us, unless we are in it already.
    fn join_chain(&self, welcome: &say::Welcome) -> Result<(), Broken> {
        let said: Vec<&[u8]> = welcome.chain.iter().map(|id| id.as_slice()).collect();
        match self.hub.chain.heard(&said) {
            Ok(false) => {}
            // Who follows us learns of it by coming again.
            Ok(true) => self
                .hub
                .followers
                .seats
                .hang_up("the way to the source is another one now"),
            Err(error) => {
                let (host, path) = (&self.far.host, &self.far.path);
                let line = format!(
                    "cannot follow {}:{}: {error}",
                    escape(host.as_bytes()),
                    escape(path)
                );
                if self.hub.was_connected() && !self.options.once {
                    return Err(Broken::Refused(Cause::Failed, line));
                }
                return Err(Broken::Ended(Ended::Fatal(RunError::Usage(line))));
            }
        }
        Ok(())
    }

    /// A word that was given while no process ran here. True: it was passed on.
    fn let_through(&self) -> bool {
        let hold = self.hub.known_report().hold;
        let passed_on = hold.is_some_and(|hold| hold.reason.can_be_released())
            && self.released.load(Ordering::Acquire)
            && self.hub.let_through().is_ok();
        if passed_on {
            // Only now: whoever looks in between must not take the hold for one that nobody let go.
            self.released.store(false, Ordering::Release);
        }
        passed_on
    }

    /// Nothing is served now: a person must do something there first.
    fn not_yet(&self, pulse: &Pulse) -> Result<(), Broken> {
        if self.let_through() {
            return Ok(());
        }
        let report = self.hub.known_report();
        if self.options.once
            && let Some(hold) = report.hold
        {
            return Err(Broken::Ended(Ended::Fatal(RunError::Held(hold))));
        }
        if self.options.once && report.paused {
            return Err(Broken::Ended(Ended::Fatal(RunError::Busy(format!(
                "capture is paused on {}: `mirrord resume` there lets it go on",
                escape(self.far.host.as_bytes())
            )))));
        }
        let rests = report.hold.is_some() || report.paused;
        pulse.handshake((!rests).then(|| handshake_max(&self.options)));
        Ok(())
    }

    /// The log of the tree that is served; what to follow after. `None`: nothing is to be followed yet, the tree came
    /// whole and is being made.
    fn begin_log(&mut self, welcome: &say::Welcome) -> Result<Option<Option<End>>, Broken> {
        let mut log = lock(&self.log);
        if log.as_ref().is_none_or(|log| log.tree() == welcome.tree) {
            lost::note_followed(&self.options.state_dir, &self.far.host, &self.far.path);
        }
        match &*log {
            Some(log) if log.tree() != welcome.tree && self.changed => Err(Broken::Ended(
                Ended::Restart("what is left out or crossed was changed".into()),
            )),
            Some(log) if log.tree() != welcome.tree => {
                let host = escape(self.far.host.as_bytes());
                let text = format!(
                    "{host} serves {} with another history than this mirror has: its state there was lost or replaced, \
                     or it is another tree",
                    escape(&welcome.path)
                );
                let state_dir = &self.options.state_dir;
                Err(Broken::Ended(if self.options.adopt {
                    Ended::Restart(text)
                } else if lost::was_followed(state_dir, &self.far.host, &self.far.path) {
                    // The same host, by its key, and the same tree, by its name there.
                    let text = format!("unexplained fork: {text}");
                    lost::note_fork(state_dir, &text);
                    Ended::Restart(text)
                } else {
                    Ended::Fatal(RunError::Failed(anyhow::anyhow!(
                        "{text}. If it is the right tree, start with --adopt: all is compared, and nothing equal is \
                         copied again"
                    )))
                }))
            }
            Some(log) => Ok(Some(log.end())),
            None if self.tree.is_some_and(|tree| tree != welcome.tree) => Err(Broken::Ended(
                Ended::Restart("the source has another history than a moment ago".into()),
            )),
            None if self.came_whole => Ok(None),
            // Much of it is known: what differs of it comes, and the log begins after it.
            None if self.known.is_some() && welcome.features & say::FEATURE_LIST != 0 => {
                self.tree = Some(welcome.tree);
                self.listed = Some(Listed::default());
                Ok(Some(None))
            }
            // Its log does not reach back to the beginning: the tree comes whole, and the log begins after it.
            None if welcome.features & say::FEATURE_SEED != 0
                && welcome.first.is_some_and(|first| first.sequence > 1) =>
            {
                self.tree = Some(welcome.tree);
                Ok(Some(None))
            }
            None => {
                let options = LogOptions::default();
                let made = Log::create_follower(self.disk.clone(), options, welcome.tree, None)
                    .map_err(|e| Broken::Ended(Ended::Local(chain(&e))))?;
                *log = Some(made);
                drop(log);
                let _ = self.begun.send(());
                Ok(Some(None))
            }
        }
    }

    fn follow(&mut self, link: &Arc<Link>, incoming: &mut Incoming, pulse: &Pulse) -> Broken {
        let mut coming = Coming::default();
        loop {
            let message = match incoming.next_message() {
                Ok(message) => message,
                Err(error) => return Broken::Link(error),
            };
            if !matches!(message, Message::Heartbeat(_)) {
                pulse.handshake(None);
            }
            if !matches!(message, Message::Heartbeat(_) | Message::Report(_)) {
                self.hub.news();
            }
            let done = match link.answer(message) {
                Ok(Some(message)) => self.take(message, link, &mut coming),
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(broken) = done {
                return broken;
            }
            if let Some(came) = incoming.came()
                && let Err(error) = link.outgoing.send(came)
            {
                return Broken::Link(error);
            }
        }
    }

    fn take(
        &mut self,
        message: Message,
        link: &Arc<Link>,
        coming: &mut Coming,
    ) -> Result<(), Broken> {
        match message {
            Message::Seed(seed) => self.seed(&seed, coming),
            Message::SeedList(list) => self.list(&list, link),
            Message::SeedEnd(end) => {
                self.end_seed(end.at.into(), coming)?;
                self.came_whole = true;
                link.seeded();
                let tree = self.tree.unwrap_or_default();
                let _ = self.seeded.send((end.at.into(), tree));
                Ok(())
            }
            Message::Contents(contents) => self.contents(contents, coming),
            Message::Records(records) => {
                if coming.records.len() + records.bytes.len() > RECORDS_BYTES_MAX {
                    return Err(LinkError::Nonsense("a group of records has no end".into()).into());
                }
                coming.records.extend_from_slice(&records.bytes);
                if records.whole {
                    self.append(link, coming)?;
                }
                Ok(())
            }
            Message::Heartbeat(beat) => {
                self.hub.heard(beat.time_ns, beat.end.map(Into::into));
                Ok(())
            }
            Message::Report(report) => {
                self.hub.report(&report.json, &self.far.host)?;
                self.let_through();
                Ok(())
            }
            Message::Refused(no) => Err(match Cause::of(no.cause) {
                Cause::Pruned | Cause::Forked => Broken::Ended(self.not_ours(&no)),
                cause => Broken::Refused(cause, no.reason),
            }),
            other => Err(nonsense(&other)),
        }
    }

    /// Our place is not in the worker's history.
    fn not_ours(&self, no: &say::Refused) -> Ended {
        let reason = format!(
            "{}: {}",
            escape(self.far.host.as_bytes()),
            escaped(&no.reason)
        );
        let empty = lock(&self.log)
            .as_ref()
            .is_none_or(|log| log.end().is_none());
        if empty {
            // From the very beginning is not there either, and that worker does not send the tree whole.
            return Ended::Fatal(RunError::Failed(anyhow::anyhow!(
                "{reason}, and the mirrord there is too old to begin a copy without it: install the same version on both \
                 hosts"
            )));
        }
        let epoch = |at: Option<mirror_core::Position>| at.map(|at| at.epoch);
        let ours = self.reached().map(|end| end.position);
        if Cause::of(no.cause) == Cause::Forked && epoch(self.hub.known_end()) <= epoch(ours) {
            let what = format!(
                "unexplained fork: {reason}, and no takeover says why (an older image or copy of the state there, or \
                 a lost disk?)"
            );
            lost::note_fork(&self.options.state_dir, &what);
            return Ended::Restart(what);
        }
        Ended::Restart(reason)
    }

    fn cannot_seed(&self, error: &std::io::Error) -> Broken {
        let file = self.options.state_dir.join(seed::FILE);
        let file = crate::engine::session::show(&file);
        Broken::Ended(Ended::Local(format!("cannot write {file}: {error}")))
    }

    fn cannot_put(&self, error: PutError) -> Broken {
        match error {
            PutError::Io(error) => self.cannot_seed(&error),
            PutError::NotListed => LinkError::Nonsense(error.to_string()).into(),
        }
    }

    fn list(&mut self, list: &say::SeedList, link: &Link) -> Result<(), Broken> {
        let tree = self.tree.unwrap_or_default();
        let (Some(listed), Some(known), false) = (&mut self.listed, &self.known, self.came_whole)
        else {
            return Err(LinkError::Nonsense("a list comes that nobody asked for".into()).into());
        };
        if let Some(differs) = listed.take(list, known, tree, &link.outgoing)? {
            self.hub.ui.event(Event::Notice(differs.to_string()));
        }
        Ok(())
    }

    fn end_seed(&mut self, at: End, coming: &mut Coming) -> Result<(), Broken> {
        let mut file = match coming.seed.take() {
            Some(file) => file,
            None => self.create_seed()?,
        };
        let rest = match &mut self.listed {
            Some(listed) => listed.finish(at, &mut file),
            None => Ok(()),
        };
        rest.map_err(|e| self.cannot_put(e))?;
        file.flush().map_err(|e| self.cannot_seed(&e))
    }

    fn create_seed(&self) -> Result<BufWriter<File>, Broken> {
        let file = seed::create(&self.options.state_dir);
        Ok(BufWriter::new(file.map_err(|e| self.cannot_seed(&e))?))
    }

    /// Whole groups go into a file, to be made into the copy once all are there.
    fn seed(&mut self, seed: &say::Seed, coming: &mut Coming) -> Result<(), Broken> {
        if lock(&self.log).is_some() || self.came_whole {
            return Err(LinkError::Nonsense("a tree comes that nobody asked for".into()).into());
        }
        if coming.group.len() + seed.bytes.len() > RECORDS_BYTES_MAX {
            return Err(LinkError::Nonsense("a group of records has no end".into()).into());
        }
        coming.group.extend_from_slice(&seed.bytes);
        if !seed.whole {
            return Ok(());
        }
        let mut file = match coming.seed.take() {
            Some(file) => file,
            None => self.create_seed()?,
        };
        let group = std::mem::take(&mut coming.group);
        let before = coming.seed_bytes;
        coming.seed_bytes += group.len() as u64;
        room(&self.options.state_dir, before, coming.seed_bytes)
            .map_err(|what| Broken::Ended(Ended::Local(what)))?;
        let put = match &mut self.listed {
            Some(listed) => listed.put(&group, &mut file),
            None => seed::put_group(&mut file, &group).map_err(PutError::Io),
        };
        put.map_err(|e| self.cannot_put(e))?;
        coming.seed = Some(file);
        Ok(())
    }

    fn contents(&self, contents: say::Contents, coming: &mut Coming) -> Result<(), Broken> {
        let arriving = coming
            .arriving
            .get_or_insert_with(|| Arriving::new(&self.options.state_dir));
        for block in contents.blocks {
            arriving
                .put(block, contents.kept)
                .map_err(|full| match full {
                    Full::TooMuch(what) => Broken::Link(LinkError::Nonsense(what)),
                    Full::NoRoom(what) => Broken::Ended(Ended::Local(what)),
                })?;
        }
        Ok(())
    }

    /// Says what is here, and what of it is on disk, if that is not what the log's tail says.
    fn acknowledge(
        &self,
        link: &Link,
        received: Option<End>,
        durable: Option<End>,
    ) -> Result<(), Broken> {
        let ack = self.hub.ack().unwrap_or_default();
        let place = |end: Option<End>| end.map(|end| end.position.into());
        link.outgoing.send(say::Ack {
            received: place(received).or(ack.received),
            durable: place(durable).or(ack.durable),
            ..ack
        })?;
        Ok(())
    }

    /// Whole groups into the log, acknowledged, made durable, acknowledged again.
    fn append(&self, link: &Link, coming: &mut Coming) -> Result<(), Broken> {
        let frames = std::mem::take(&mut coming.records);
        let mut arriving = coming.arriving.take();
        let mut named: HashMap<Digest, Option<ContentRef>> = HashMap::new();
        let (mut in_memory, mut wrong) = (Vec::new(), 0u64);
        let passing = arriving.as_ref().map_or(0, Arriving::passing);
        self.memory.await_room(passing, &mut || {
            if let Some(passed) = self.hub.passed(NAP) {
                self.memory.applied(passed);
            }
            !self.stopped()
        });
        let end = {
            let mut log = lock(&self.log);
            let Some(log) = log.as_mut() else {
                return Err(Broken::Link(LinkError::Closed));
            };
            let local = |error: LogError| match error {
                LogError::Refused { .. } | LogError::TooLarge(_) => {
                    Broken::Link(LinkError::Nonsense(chain(&error)))
                }
                error => Broken::Ended(Ended::Local(chain(&error))),
            };
            let store = log.content();
            let mut place_of = |content: &Content| {
                let (bytes, kept) = match arriving.as_mut()?.take(content) {
                    Ok(found) => found?,
                    Err(()) => {
                        wrong += 1;
                        return None;
                    }
                };
                let bytes = match kept {
                    true => bytes,
                    false => match self.memory.put(content.digest, bytes) {
                        Ok(()) => {
                            in_memory.push(content.digest);
                            return None;
                        }
                        Err(bytes) => bytes,
                    },
                };
                // A failure comes again at the flush.
                store.put(&bytes).ok()
            };
            log.append_frames(&frames, &mut |record| {
                let place = record.change.content().and_then(|content| {
                    *named
                        .entry(content.digest)
                        .or_insert_with(|| place_of(content))
                });
                (None, place)
            })
            .map_err(local)?;
            log.end()
        };
        if end.is_some() {
            // The disk may take its time.
            self.acknowledge(link, end, None)?;
        }
        let end = match lock(&self.log).as_mut() {
            Some(log) => log
                .flush()
                .map_err(|error| Broken::Ended(Ended::Local(chain(&error))))?,
            None => return Err(Broken::Link(LinkError::Closed)),
        };
        let Some(end) = end else { return Ok(()) };
        if !in_memory.is_empty() {
            self.memory.belong(in_memory, end.position);
        }
        self.hub.received(end);
        self.acknowledge(link, Some(end), Some(end))?;
        if wrong > 0 {
            // Nothing of them was kept: who needs them asks for them.
            let what = format!("contents are not what their records say ({wrong} of them)");
            return Err(LinkError::Nonsense(what).into());
        }
        Ok(())
    }
}

pub fn timeout_ms(options: &MirrorOptions) -> u64 {
    options.timeout.map_or(0, |timeout| {
        u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)
    })
}

/// For the handshake, each of its two parts.
pub fn handshake_max(options: &MirrorOptions) -> Duration {
    silence(timeout_ms(options)).max(Duration::from_secs(HANDSHAKE_S_MAX))
}

/// For an answer that the first copy waits for, while nothing else comes either: so many times `--timeout`.
pub const ANSWER_TIMEOUTS: u32 = 8;

pub fn answer_max(options: &MirrorOptions) -> Duration {
    silence(timeout_ms(options)) * ANSWER_TIMEOUTS
}

/// What this side knows.
const FEATURES: u64 = say::FEATURE_SEED
    | say::FEATURE_LIST
    | say::FEATURE_TAKEN
    | say::FEATURE_PACKED
    | say::FEATURE_FROM;

/// What we are and want.
pub fn hello(options: &MirrorOptions, far: &Far, replica: &[u8]) -> say::Hello {
    say::Hello {
        protocol: PROTOCOL,
        protocol_min: PROTOCOL_MIN,
        features: FEATURES,
        role: "follower".into(),
        program: concat!("fs_mirror ", env!("CARGO_PKG_VERSION")).into(),
        tree: far.path.clone(),
        timeout_ms: timeout_ms(options),
        ignore: options.ignore.clone(),
        detector: options.detector.map(|d| d.to_string()).unwrap_or_default(),
        name: format!(
            "{}:{}",
            hostname(),
            crate::engine::session::show(&options.dst)
        ),
        cross: options
            .cross
            .iter()
            .map(|path| path.as_os_str().as_bytes().to_vec().into())
            .collect(),
        replica: replica.to_vec(),
    }
}

/// What came and is not in the log yet.
#[derive(Default)]
struct Coming {
    records: Vec<u8>,
    arriving: Option<Arriving>,
    /// A tree that comes whole: the group that is coming, and where those go that came.
    group: Vec<u8>,
    seed: Option<BufWriter<File>>,
    seed_bytes: u64,
}

/// What trying again does not change.
fn hopeless(error: &LinkError, reason: &str) -> Option<RunError> {
    match error {
        LinkError::Nonsense(_) => Some(RunError::Failed(anyhow::anyhow!(reason.to_owned()))),
        LinkError::Late(_) => Some(RunError::Unreachable(reason.to_owned())),
        _ => None,
    }
}

fn nonsense(message: &Message) -> Broken {
    LinkError::Nonsense(format!(
        "a worker does not say messages of kind {} now",
        message.kind()
    ))
    .into()
}
