//! The daemon: capture of one tree, served to any number of followers, for as long as the service wants it, or until
//! nobody has wanted it for a while.
//!
//! The main thread opens and closes sessions of capture and watches over the root, as the mirror on one host does; a
//! thread for each follower serves the log. State, socket and lock are in the state directory.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mirror_core::{Digest, ObjectId};

use super::super::applying::{chain, hold_of};
use super::super::control::{self, Client, Control, LockError, StateLock, Stop, persist_status};
use super::super::event::RunError;
use super::super::local::{below, holds_something, outer::hold, told_if_empty};
use super::super::lost;
use super::super::options::Compress;
use super::super::seed::{Chained, Spooled};
use super::super::service::pulse;
use super::super::serving::keep::{self, Keep};
use super::super::serving::{Chain, Followers, socket};
use super::super::session::{Session, SessionError, SessionSetup, show};
use super::super::status::{Hold, HoldReason, Role, Stamp, State, Status};
use super::StdioOptions;
use super::capture::{Live, index_path, path_bytes};
use super::config::{Config, LiveSettings, Watcher};
use super::floor::{self, Verdict};
use crate::capture::run::CaptureOptions;
use crate::capture::state::{Ended, Order};
use crate::capture::tree::{RootId, SourceTree, TreeError};
use crate::disk::RealDisk;
use crate::filter::Filter;
use crate::index;
use crate::link::bucket::Bucket;
use crate::link::cache::{CacheSink, ContentCache};
use crate::link::message::{Cause, Hello};
use crate::link::report::Report;
use crate::link::serve::{Compared, FollowerState, Found, ReadBack, Ready, Served};
use crate::log::LogOptions;
pub(super) use crate::sync::lock;
use crate::sys::{Errno, lease, mounts};

/// A daemon that never could begin ends soon: those who asked were told why.
const LINGER_FAILED: Duration = Duration::from_secs(10);
const NOTICES_MAX: usize = 100;
/// How soon it is seen that something ended or moved. Orders are seen at once.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the status is written down, and if it says the same. There may be hundreds of trees.
const SAVE_EVERY: Duration = Duration::from_secs(2);
const SAVE_SAME_EVERY: Duration = Duration::from_secs(20);
/// How long another one, started for a login, may take to make room for the service's.
const MAKE_ROOM_WITHIN: Duration = Duration::from_secs(15);
/// Below the floor for so long, although the log was pruned: capture ends.
const TIGHT_MAX: Duration = Duration::from_secs(5);

pub fn run(config: Config, options: StdioOptions) -> Result<(), RunError> {
    // Whoever can set our environment gets no other tree by it than the command line allows.
    if std::fs::canonicalize(&options.tree).ok().as_deref() != Some(config.tree.as_path()) {
        return Err(RunError::Usage(format!(
            "{} is not the tree of this state",
            show(&options.tree)
        )));
    }
    pulse::begin();
    // Away from the login that started us; fails only if we lead a group already.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    lease::init();
    let held = match StateLock::take(&config.state_dir) {
        Ok(lock) => lock,
        Err(LockError::Busy { .. }) if config.service.is_some() => {
            make_room(&config.state_dir, &options.stop)?
        }
        // Another one was faster: it serves.
        Err(LockError::Busy { .. }) => return Ok(()),
        Err(e) => return Err(RunError::Failed(anyhow::anyhow!("{}", chain(&e)))),
    };
    let filter = Filter::new(&config.ignore).map_err(|e| RunError::Usage(e.to_string()))?;
    let failed = |what: &str, e: std::io::Error| {
        RunError::Failed(anyhow::anyhow!(
            "cannot open {what} in {}: {e}",
            show(&config.state_dir)
        ))
    };
    let listener =
        socket::listen(&config.state_dir).map_err(|e| failed("the socket for followers", e))?;
    let chain = Chain::open(&config.state_dir).map_err(|e| failed("its id", e))?;
    chain
        .heard(&[] as &[&[u8]])
        .map_err(|e| failed("its id", std::io::Error::other(e)))?;
    let stop = options.stop.clone();
    let host = Arc::new(Host::new(config.clone(), stop, filter, chain));
    let control = control::serve(&config.state_dir, host.clone())
        .map_err(|e| failed("the control socket", e))?;
    let accepting = {
        let host = host.clone();
        std::thread::Builder::new()
            .name("accept".into())
            .spawn(move || {
                let served: Arc<dyn Served> = host.clone();
                host.followers.seats.accept(&served, &listener);
            })
    };
    let accepting = accepting.map_err(|e| failed("a thread", e))?;
    let (keep, told) = Keep::load(&host.config.state_dir);
    *lock(&host.followers.keep) = keep;
    if let Err(text) = told {
        host.notice(format!("{text}: whom the log is kept for is learned again"));
    }
    host.run();
    lock(&host.followers.keep).save(&host.config.state_dir, true);
    // No more followers, then those we have; what is in the log is durable.
    socket::remove(&host.config.state_dir);
    host.followers.seats.end("the worker stops");
    drop(control);
    let _ = accepting.join();
    let mut status = host.status();
    status.state = State::Stopped;
    let _ = persist_status(&host.config.state_dir, &status);
    drop(held);
    Ok(())
}

/// The state's lock, from a daemon that a login started: followers of it come back to this one.
fn make_room(state_dir: &Path, stop: &Stop) -> Result<StateLock, RunError> {
    let until = Instant::now() + MAKE_ROOM_WITHIN;
    loop {
        let busy = match StateLock::take(state_dir) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Busy { holder, .. }) => holder,
            Err(e) => return Err(RunError::Failed(anyhow::anyhow!("{}", chain(&e)))),
        };
        let of_login = Client::connect(state_dir).and_then(|mut client| {
            let of_login = client.status()?.name.is_none();
            if of_login {
                client.stop()?;
            }
            Ok(of_login)
        });
        if matches!(of_login, Ok(false)) || Instant::now() >= until || stop.requested() {
            return Err(RunError::Busy(format!(
                "{} is in use by {busy}",
                show(state_dir)
            )));
        }
        stop.wait(Duration::from_millis(200));
    }
}

/// What the followers and commands are told.
#[derive(Default)]
pub(super) struct Now {
    pub live: Option<Live>,
    pub hold: Option<Hold>,
    pub paused: bool,
    /// Why there is no session, if it is none of the above.
    pub failed: Option<(Cause, String)>,
    /// Likewise: there is no room for a log. It is waited for.
    pub no_room: Option<String>,
    /// A session has run: from now on the source may be gone without being a mistake.
    ever: bool,
    /// Of the tree that was captured last: the root's and those of crossed mounts.
    roots: Option<Vec<RootId>>,
    notices: VecDeque<String>,
    notices_total: u64,
}

#[derive(Default)]
pub(super) struct Want {
    pub paused: bool,
    /// What an operator let go on.
    pub released: Option<HoldReason>,
    pub stop: bool,
}

pub(super) struct Host {
    pub config: Config,
    stop: Stop,
    filter: Arc<Filter>,
    cache: Arc<ContentCache>,
    pub now: Mutex<Now>,
    want: Mutex<Want>,
    wanted: Condvar,
    pub followers: Followers,
    /// A primary begins its chain.
    chain: Chain,
    /// What is sent to all followers together.
    bucket: Arc<Bucket>,
    tended: Mutex<Tended>,
    pub began: Status,
}

/// What is looked at now and then.
#[derive(Default)]
struct Tended {
    at: Option<Instant>,
    settings: Watcher,
    live: LiveSettings,
    /// The rate the bucket has.
    rate: Option<u64>,
    /// Who was connected, by name.
    there: BTreeMap<String, usize>,
    /// Since when there is too little room.
    tight: Option<Instant>,
}

/// The status as it was last written down.
#[derive(Default)]
struct Saved {
    looked: Option<Instant>,
    written: Option<Instant>,
    /// All but when that was.
    said: Vec<u8>,
}

/// How a session ended.
enum End {
    Over,
    Paused,
    Held(Hold),
    Retry(String),
    NoRoom(String),
}

impl Host {
    fn new(config: Config, stop: Stop, filter: Filter, chain: Chain) -> Host {
        let mut began = Status::new(Role::Primary, show(&config.tree), None);
        began.name = config.service.as_ref().map(|service| service.name.clone());
        let cache = Arc::new(ContentCache::in_dir(&config.state_dir));
        Host {
            config,
            stop,
            filter: Arc::new(filter),
            cache,
            now: Mutex::default(),
            want: Mutex::default(),
            wanted: Condvar::new(),
            followers: Followers::default(),
            chain,
            bucket: Arc::default(),
            tended: Mutex::default(),
            began,
        }
    }

    /// A line for whoever keeps the log. The service puts time and name before it.
    fn say(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        // Nobody may be there to read it.
        let _ = match self.config.service {
            Some(_) => writeln!(err, "{text}"),
            None => writeln!(err, "{} {text}", Stamp::now()),
        };
    }

    pub(super) fn notice(&self, text: String) {
        self.say(&text);
        let mut now = lock(&self.now);
        now.notices.push_back(text);
        now.notices_total += 1;
        if now.notices.len() > NOTICES_MAX {
            now.notices.pop_front();
        }
    }

    // ---- the outer loop ----

    /// Keeps a session running until it is time to go.
    fn run(&self) {
        let mut wait = Duration::from_millis(200);
        let mut idle = Instant::now();
        loop {
            let began = Instant::now();
            let end = self.session(&mut idle);
            lock(&self.now).live = None;
            match end {
                End::Over => return,
                End::Paused => {
                    lock(&self.now).paused = true;
                    self.notice("paused".into());
                    if self.rest(&mut idle, None, |want| !want.paused) {
                        return;
                    }
                    lock(&self.now).paused = false;
                    self.notice("resumed".into());
                }
                End::Held(mut hold) => {
                    told_if_empty(&mut hold, &self.config.tree);
                    self.notice(format!("on hold: {}", hold.what));
                    let until = match hold.reason {
                        HoldReason::RootGone
                        | HoldReason::RootCovered
                        | HoldReason::RootReplaced => None,
                        // Only a look at everything can tell.
                        _ => Some(Instant::now() + Duration::from_secs(60)),
                    };
                    lock(&self.now).hold = Some(hold);
                    let over = self.rest(&mut idle, until, |want| want.released.is_some());
                    if over {
                        return;
                    }
                }
                End::Retry(reason) => {
                    if began.elapsed() > Duration::from_secs(60) {
                        wait = Duration::from_millis(200);
                    }
                    self.notice(format!("{reason}; trying again"));
                    if self.rest(&mut idle, Some(Instant::now() + wait), |want| {
                        want.released.is_some()
                    }) {
                        return;
                    }
                    wait = (wait * 2).min(Duration::from_secs(30));
                }
                End::NoRoom(what) => {
                    self.notice(format!("{what}: capture stops until there is room again"));
                    lock(&self.now).no_room = Some(what);
                    while !self.has_room() {
                        let look = Some(Instant::now() + Duration::from_secs(1));
                        if self.rest(&mut idle, look, |want| want.released.is_some()) {
                            return;
                        }
                    }
                    lock(&self.now).no_room = None;
                    self.notice("there is room again: everything is looked at".into());
                }
            }
        }
    }

    /// Nobody wanted us for long enough, or a stop was asked for.
    fn is_over(&self, idle: &mut Instant) -> bool {
        if self.stop.requested() || lock(&self.want).stop {
            return true;
        }
        if !self.followers.seats.is_empty() {
            *idle = Instant::now();
            return false;
        }
        let ever = lock(&self.now).ever;
        let linger = if self.config.service.is_some() {
            return false;
        } else if ever {
            self.config.linger
        } else {
            self.config.linger.min(LINGER_FAILED)
        };
        idle.elapsed() >= linger
    }

    /// Waits without a session until `until`, or an order, or (held) the same root is back. True: it is over.
    fn rest(
        &self,
        idle: &mut Instant,
        until: Option<Instant>,
        go_on: impl Fn(&Want) -> bool,
    ) -> bool {
        let mut looked = Instant::now();
        let mut saved = Saved::default();
        loop {
            pulse::beat();
            if self.is_over(idle) {
                return true;
            }
            {
                let want = lock(&self.want);
                if go_on(&want) || until.is_some_and(|until| Instant::now() >= until) {
                    return false;
                }
                drop(
                    self.wanted
                        .wait_timeout(want, Duration::from_millis(100))
                        .unwrap_or_else(PoisonError::into_inner),
                );
            }
            if looked.elapsed() >= Duration::from_millis(500) {
                looked = Instant::now();
                if self.root_is_back() {
                    return false;
                }
            }
            self.tend();
            self.save(&mut saved);
        }
    }

    fn save(&self, saved: &mut Saved) {
        if saved
            .looked
            .is_none_or(|looked| looked.elapsed() >= SAVE_EVERY)
        {
            saved.looked = Some(Instant::now());
            // What it goes on to write nobody would ever read; whoever starts it again begins anew.
            if !self.config.state_dir.join("lock").exists() {
                let state_dir = show(&self.config.state_dir);
                self.notice(format!("its state {state_dir} is gone: it ends"));
                lock(&self.want).stop = true;
                return;
            }
            let status = self.status();
            let timeless = Status {
                now: Stamp { ms: 0 },
                ..status.clone()
            };
            let said = serde_json::to_vec(&timeless).unwrap_or_default();
            let fresh = saved
                .written
                .is_some_and(|written| written.elapsed() < SAVE_SAME_EVERY);
            if fresh && said == saved.said {
                return;
            }
            (saved.written, saved.said) = (Some(Instant::now()), said);
            let _ = persist_status(&self.config.state_dir, &status);
        }
    }

    /// Held because the root was not there, and now it is again, or another directory in its place, which is told.
    fn root_is_back(&self) -> bool {
        let (roots, gone) = {
            let now = lock(&self.now);
            let gone = match &now.hold {
                Some(hold)
                    if matches!(
                        hold.reason,
                        HoldReason::RootGone | HoldReason::RootCovered | HoldReason::RootReplaced
                    ) =>
                {
                    hold.reason == HoldReason::RootGone
                }
                Some(hold) if hold.reason == HoldReason::RootEmpty => {
                    return holds_something(&self.config.tree);
                }
                _ => return false,
            };
            (now.roots.clone(), gone)
        };
        let Ok(tree) = SourceTree::open_with(&self.config.tree, &self.config.cross) else {
            return false;
        };
        gone || roots.is_some_and(|roots| tree.is_same(&roots))
    }

    fn session(&self, idle: &mut Instant) -> End {
        if lock(&self.want).paused {
            return End::Paused;
        }
        self.tend();
        if self.config.service.is_some() && self.room_is_gone() {
            return End::NoRoom(self.too_little());
        }
        pulse::rest();
        let session = match self.open_session() {
            Ok(session) => session,
            Err(end) => return end,
        };
        for text in &session.notices {
            self.notice(text.clone());
        }
        let live = Live::new(
            &session,
            path_bytes(&self.config.tree),
            below(&self.config.tree, &self.config.cross),
        );
        {
            let mut now = lock(&self.now);
            now.roots = Some(session.tree.ids());
            now.live = Some(live);
            now.hold = None;
            now.failed = None;
            now.no_room = None;
            now.ever = true;
        }
        let end = self.watch_over(&session, idle);
        lock(&self.now).live = None;
        pulse::rest();
        let ended = session.stop();
        match (end, ended) {
            (End::Over, Ended::Failed(reason)) => {
                self.notice(reason);
                End::Over
            }
            (end, _) => end,
        }
    }

    fn open_session(&self) -> Result<Session, End> {
        let first = !lock(&self.now).ever;
        let fail = |cause: Cause, reason: String| {
            if first {
                lock(&self.now).failed = Some((cause, reason.clone()));
            }
            End::Retry(reason)
        };
        let disk = RealDisk::open(&self.config.state_dir).map_err(|e| {
            fail(
                Cause::Failed,
                format!("cannot open {}: {e}", show(&self.config.state_dir)),
            )
        })?;
        let begun = !first
            || std::fs::read_dir(self.config.state_dir.join("log"))
                .is_ok_and(|mut entries| entries.next().is_some());
        let released = lock(&self.want).released.take();
        let setup = SessionSetup {
            opening: None,
            source: self.config.tree.clone(),
            disk: Arc::new(disk),
            index: index_path(&self.config.state_dir),
            index_options: index::Options::default(),
            log_options: LogOptions {
                // Whole segments go: a small log has small ones.
                segment_bytes_max: u32::try_from(self.log_max() / 4)
                    .unwrap_or(u32::MAX)
                    .clamp(64 << 10, LogOptions::default().segment_bytes_max),
                content_segment_bytes_max: u32::try_from(self.log_max())
                    .unwrap_or(u32::MAX)
                    .clamp(256 << 10, LogOptions::default().content_segment_bytes_max),
                ..LogOptions::default()
            },
            filter: self.filter.clone(),
            sink: Arc::new(CacheSink(self.cache.clone())),
            detector: self.config.detector,
            listener: self.listener_base(),
            released,
            capture: CaptureOptions {
                cross: self.config.cross.clone(),
                prune: keep::limits(self.log_max()),
                // The smaller it is, the sooner it is full.
                prune_every: Duration::from_secs((self.log_max() / (4 << 20)).clamp(1, 60)),
                ..CaptureOptions::default()
            },
        };
        Session::open(setup).map_err(|error| match error {
            SessionError::OtherRoot { what, .. } => End::Held(hold(HoldReason::RootReplaced, what)),
            SessionError::Tree(TreeError::Io {
                source: Errno::NOENT | Errno::NOTDIR,
                ref path,
                ..
            }) if !first => End::Held(hold(
                HoldReason::RootGone,
                format!("{} is gone", show(path)),
            )),
            SessionError::NotCrossed(text) => End::Held(hold(HoldReason::Unexplained, text)),
            SessionError::Tree(error @ TreeError::NotMounted { .. }) if begun => {
                End::Held(hold(HoldReason::RootGone, error.to_string()))
            }
            SessionError::Tree(
                error @ (TreeError::NotMounted { .. } | TreeError::NotReached { .. }),
            ) => fail(Cause::Usage, error.to_string()),
            SessionError::Detector(text) => fail(Cause::Usage, text),
            SessionError::Log(error) if lost::lost_log(&error).is_some() => fail(
                Cause::Failed,
                format!(
                    "{}. The mirror can go on without it: move {} away on this host, then start the mirror with --adopt",
                    chain(&error),
                    show(&self.config.state_dir)
                ),
            ),
            SessionError::Log(error) => fail(Cause::Failed, lost::cannot_open(&error)),
            error => fail(Cause::Failed, chain(&error)),
        })
    }

    /// Where the service and its listener are, if there is one.
    fn listener_base(&self) -> Option<PathBuf> {
        let service = self.config.service.as_ref()?;
        let base = self.config.state_dir.parent()?;
        service.listener.then(|| base.to_path_buf())
    }

    fn watch_over(&self, session: &Session, idle: &mut Instant) -> End {
        let watch = mounts::Watch::new().ok();
        let (mut looked, mut saved, mut weighed) = (Instant::now(), Saved::default(), None);
        loop {
            pulse::beat();
            {
                let want = lock(&self.want);
                if !want.paused && !want.stop {
                    drop(
                        self.wanted
                            .wait_timeout(want, LOOK_EVERY)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                }
            }
            let notices = std::mem::take(&mut session.shared.lock().notices);
            for text in notices {
                self.notice(text);
            }
            if self.is_over(idle) {
                return End::Over;
            }
            if lock(&self.want).paused {
                return End::Paused;
            }
            let moved = watch.as_ref().is_none_or(|watch| {
                watch
                    .changed(Some(&rustix::event::Timespec::default()))
                    .unwrap_or(true)
            });
            if moved || looked.elapsed() >= Duration::from_secs(1) {
                looked = Instant::now();
                if let Some((reason, what)) = session.tree.lost() {
                    return End::Held(hold(reason, what));
                }
            }
            if let Some(ended) = session.ended() {
                return match ended {
                    Ended::Held(alarm, _) => End::Held(hold_of(
                        &alarm,
                        HoldReason::Unexplained,
                        "are gone, and no event says why",
                    )),
                    Ended::Failed(reason) => End::Retry(reason),
                    Ended::Stopped => End::Retry("capture stopped by itself".into()),
                };
            }
            self.tend();
            if let Some(end) = self.keep_log(session, &mut weighed) {
                return end;
            }
            self.save(&mut saved);
        }
    }

    fn log_max(&self) -> u64 {
        self.config.log_max.unwrap_or(keep::LOG_BYTES_MAX)
    }

    /// Says how much of the log is still needed, and may be there.
    fn keep_log(&self, session: &Session, weighed: &mut Option<Instant>) -> Option<End> {
        let end = session.reader.tail().durable()?;
        self.followers.saw(end.position);
        self.followers.save(&self.config.state_dir);
        if weighed.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return None;
        }
        *weighed = Some(Instant::now());
        let keep = lock(&self.followers.keep);
        let log_bytes = keep::bytes_in(&self.config.state_dir.join("log"));
        let needed = keep.needed(end.position, log_bytes, self.log_max());
        drop(keep);
        let taken = log_bytes + keep::bytes_in(&self.config.state_dir.join("content"));
        let mut tended = lock(&self.tended);
        let verdict = match floor::room(&self.config.state_dir) {
            Some(room) if self.config.service.is_some() => tended.live.min_free.judge(room, taken),
            _ => Verdict::Plenty,
        };
        let mut status = session.shared.lock();
        match verdict {
            Verdict::Plenty => {
                status.needed = Some(needed);
                status.room = None;
                tended.tight = None;
            }
            Verdict::Tight(bytes) => {
                status.needed = Some(end.position);
                status.room = Some(bytes);
                let since = *tended.tight.get_or_insert_with(Instant::now);
                drop((status, tended));
                if since.elapsed() >= TIGHT_MAX {
                    lock(&self.tended).tight = None;
                    return Some(End::NoRoom(self.too_little()));
                }
            }
        }
        None
    }

    fn has_room(&self) -> bool {
        let min_free = lock(&self.tended).live.min_free;
        floor::room(&self.config.state_dir).is_none_or(|room| min_free.has_room(room))
    }

    /// Not even what is there already fits.
    fn room_is_gone(&self) -> bool {
        let min_free = lock(&self.tended).live.min_free;
        let dir = &self.config.state_dir;
        let taken = keep::bytes_in(&dir.join("log")) + keep::bytes_in(&dir.join("content"));
        floor::room(dir)
            .is_some_and(|room| matches!(min_free.judge(room, taken), Verdict::Tight(0)))
    }

    fn too_little(&self) -> String {
        let min_free = lock(&self.tended).live.min_free;
        let dir = &self.config.state_dir;
        let free = floor::room(dir).map_or(0, |room| room.free);
        format!(
            "only {} free on the file system of {}, and min_free is {}",
            crate::cli::text::bytes(free),
            show(dir),
            min_free.show()
        )
    }

    /// Takes up settings that were left, and tells who came and who went.
    fn tend(&self) {
        let Some(service) = &self.config.service else {
            return;
        };
        let mut tended = lock(&self.tended);
        if tended
            .at
            .is_some_and(|at| at.elapsed() < Duration::from_millis(500))
        {
            return;
        }
        if tended.at.replace(Instant::now()).is_none() {
            tended.live = service.live.clone();
        }
        if let Some(live) = tended.settings.look(&self.config.state_dir) {
            tended.live = live;
        }
        let rate = tended.live.bwlimit.now();
        if rate != tended.rate {
            tended.rate = rate;
            self.bucket.limit(rate);
            self.say(&match rate {
                Some(rate) => format!("sends at most {}/s", crate::cli::text::bytes(rate)),
                None => "sends without a limit".into(),
            });
        }
        let mut there: BTreeMap<String, usize> = BTreeMap::new();
        for replica in self.followers.seats.replicas() {
            if !replica.name.is_empty() {
                *there.entry(replica.name).or_default() += 1;
            }
        }
        let before = std::mem::replace(&mut tended.there, there.clone());
        drop(tended);
        for name in there.keys().filter(|name| !before.contains_key(*name)) {
            self.say(&format!("{name} is connected"));
        }
        for name in before.keys().filter(|name| !there.contains_key(*name)) {
            self.say(&format!("{name} is disconnected"));
        }
    }

    /// The most that is sent to all followers together now.
    pub(super) fn rate(&self) -> Option<u64> {
        lock(&self.tended).rate
    }

    pub(super) fn live(&self) -> Option<Live> {
        lock(&self.now).live.clone()
    }

    pub(super) fn want(&self, change: impl FnOnce(&mut Want)) {
        change(&mut lock(&self.want));
        self.wanted.notify_all();
    }
}

impl Served for Host {
    fn notice(&self, text: String) {
        self.say(&text);
    }

    fn bucket(&self) -> Option<Arc<Bucket>> {
        Some(self.bucket.clone())
    }

    fn compress(&self) -> Compress {
        lock(&self.tended).live.compress
    }

    fn introduce(&self, state: &Mutex<FollowerState>, name: String, replica: &[u8]) {
        let told = self.followers.introduce(state, name, replica);
        if let Some(text) = told {
            self.notice(text);
        }
    }

    /// What a tree of the service is, the service says.
    fn suits(&self, hello: &Hello) -> Result<(), String> {
        let Some(service) = &self.config.service else {
            return Ok(());
        };
        let cross: Vec<Vec<u8>> = hello.cross.iter().map(|path| path.to_vec()).collect();
        let ours: Vec<Vec<u8>> = self.config.cross.iter().map(|p| path_bytes(p)).collect();
        let detector = self.config.detector.map(|d| d.to_string());
        let odd = [
            (
                !hello.ignore.is_empty() && hello.ignore != self.config.ignore,
                "ignore",
            ),
            (!cross.is_empty() && cross != ours, "cross"),
            (
                !hello.detector.is_empty() && Some(&hello.detector) != detector.as_ref(),
                "detector",
            ),
        ];
        match odd.iter().find(|(is, _)| *is) {
            None => Ok(()),
            Some((_, what)) => Err(format!(
                "{what} of the tree {} is set on the worker, in its configuration: follow it without one",
                service.name
            )),
        }
    }

    fn ready(&self) -> Ready {
        let now = lock(&self.now);
        match (&now.live, &now.failed) {
            (Some(live), _) => Ready::Open(Box::new(live.open.clone())),
            (None, Some((cause, reason))) => Ready::Never(*cause, reason.clone()),
            (None, None) => Ready::NotYet,
        }
    }

    fn chain(&self) -> &Chain {
        &self.chain
    }

    fn cache(&self) -> &Arc<ContentCache> {
        &self.cache
    }

    fn report(&self) -> Report {
        let (live, mut report) = {
            let now = lock(&self.now);
            let report = Report {
                hold: now.hold.clone(),
                held_gone: now.hold.as_ref().and_then(|hold| hold.gone).unwrap_or(0),
                paused: now.paused,
                notices: now.notices.iter().cloned().collect(),
                notices_total: now.notices_total,
                ..Report::default()
            };
            (now.live.clone(), report)
        };
        if let Some(live) = live {
            live.fill(&mut report);
        }
        report
    }

    fn order(&self, order: Order) {
        if let Some(live) = self.live() {
            let _ = live.orders.send(order);
        }
    }

    fn release(&self) {
        let held = lock(&self.now).hold.as_ref().map(|hold| hold.reason);
        if held.is_some() {
            self.want(|want| want.released = held);
        }
    }

    fn read_back(
        &self,
        object: ObjectId,
        digest: Digest,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> ReadBack {
        match self.live() {
            Some(live) => {
                let shared = live.shared.clone();
                let read = move |each: &mut dyn FnMut(&[u8]) -> bool| {
                    let mut each = |piece: &[u8]| !shared.is_stopping() && each(piece);
                    live.read_back(object, digest, &mut each)
                };
                self.cache.read(digest, read, each)
            }
            None => ReadBack::Failed("the source is not being captured now".into()),
        }
    }

    fn spool(&self, chained: Chained) -> Result<Spooled, String> {
        let Some(live) = self.live() else {
            return Err("the source is not being captured now".into());
        };
        live.spool(&self.config.state_dir, chained)
    }

    fn verify(
        &self,
        repair: bool,
        each: &mut dyn FnMut(Found) -> bool,
    ) -> Result<Compared, String> {
        let Some(live) = self.live() else {
            return Err("the source is not being captured now".into());
        };
        live.verify(repair, each)
    }
}
