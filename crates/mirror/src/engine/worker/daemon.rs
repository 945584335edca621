//! The daemon: capture of one tree, served to any number of followers, until nobody has wanted it for a while.
//!
//! The main thread opens and closes sessions of capture and watches over the root, as the mirror on one host does; a
//! thread for each follower serves the log. State, socket and lock are in the state directory.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use mirror_core::{Digest, ObjectId, Position};
use serde::{Deserialize, Serialize};

use super::super::applying::{chain, hold_of};
use super::super::control::{
    self, Control, ControlError, LockError, ReleaseReport, StateLock, Stop, Until, VerifyEnd,
    VerifyLine, VerifyOptions, WaitReport, persist_status,
};
use super::super::event::RunError;
use super::super::local::{below, holds_something, outer::hold, told_if_empty};
use super::super::lost;
use super::super::options::Detector;
use super::super::seed::{Chained, Spooled};
use super::super::serving::keep::{self, Keep};
use super::super::serving::{Chain, Seats, socket};
use super::super::session::{Session, SessionError, SessionSetup, show};
use super::super::status::{Hold, HoldReason, Positions, Role, Stamp, State, Status};
use super::StdioOptions;
use super::capture::{Live, index_path, path_bytes};
use crate::capture::run::CaptureOptions;
use crate::capture::state::{Ended, Order};
use crate::capture::tree::{RootId, SourceTree, TreeError};
use crate::disk::{RealDisk, read_file, replace_file};
use crate::filter::Filter;
use crate::index;
use crate::link::cache::{CacheSink, ContentCache};
use crate::link::message::Cause;
use crate::link::report::Report;
use crate::link::serve::{Compared, Found, ReadBack, Ready, Served};
use crate::log::LogOptions;
use crate::sys::{Errno, lease, mounts};

/// Names the state directory to the daemon; what it is to do is in [`CONFIG`] there.
pub const ENV: &str = "MIRRORD_CAPTURE";
const CONFIG: &str = "daemon.json";
const CONFIG_BYTES_MAX: usize = 1 << 20;
/// A daemon that never could begin ends soon: those who asked were told why.
const LINGER_FAILED: Duration = Duration::from_secs(10);
const NOTICES_MAX: usize = 100;

/// What the daemon is to do.
#[derive(Debug, Clone)]
pub struct Config {
    pub tree: PathBuf,
    pub state_dir: PathBuf,
    pub ignore: Vec<String>,
    pub cross: Vec<PathBuf>,
    pub detector: Option<Detector>,
    pub linger: Duration,
    /// As in [`StdioOptions`].
    pub log_max: Option<u64>,
}

/// Raw bytes of paths survive as JSON numbers.
#[derive(Serialize, Deserialize)]
struct Written {
    tree: Vec<u8>,
    ignore: Vec<String>,
    cross: Vec<Vec<u8>>,
    detector: Option<Detector>,
    linger_ms: u64,
    #[serde(default)]
    log_max: Option<u64>,
}

pub fn write_config(config: &Config) -> std::io::Result<()> {
    let disk = RealDisk::open(&config.state_dir)?;
    let written = Written {
        tree: path_bytes(&config.tree),
        ignore: config.ignore.clone(),
        cross: config.cross.iter().map(|path| path_bytes(path)).collect(),
        detector: config.detector,
        linger_ms: u64::try_from(config.linger.as_millis()).unwrap_or(u64::MAX),
        log_max: config.log_max,
    };
    replace_file(&disk, CONFIG, &serde_json::to_vec(&written)?)
}

/// Whether this process was started to be the daemon.
pub fn asked() -> Result<Option<Config>, RunError> {
    let Some(state_dir) = std::env::var_os(ENV).map(PathBuf::from) else {
        return Ok(None);
    };
    let failed = |e: String| {
        RunError::Failed(anyhow::anyhow!(
            "cannot read {}: {e}",
            show(&state_dir.join(CONFIG))
        ))
    };
    let disk = RealDisk::open(&state_dir).map_err(|e| failed(e.to_string()))?;
    let bytes = read_file(&disk, CONFIG, CONFIG_BYTES_MAX).map_err(|e| failed(e.to_string()))?;
    let written: Written = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
    Ok(Some(Config {
        tree: PathBuf::from(OsString::from_vec(written.tree)),
        state_dir: state_dir.clone(),
        ignore: written.ignore,
        cross: written
            .cross
            .into_iter()
            .map(|path| PathBuf::from(OsString::from_vec(path)))
            .collect(),
        detector: written.detector,
        linger: Duration::from_millis(written.linger_ms),
        log_max: written.log_max,
    }))
}

pub fn run(config: Config, options: StdioOptions) -> Result<(), RunError> {
    // Whoever can set our environment gets no other tree by it than the command line allows.
    if std::fs::canonicalize(&options.tree).ok().as_deref() != Some(config.tree.as_path()) {
        return Err(RunError::Usage(format!(
            "{} is not the tree of this state",
            show(&options.tree)
        )));
    }
    // Away from the login that started us; fails only if we lead a group already.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    lease::init();
    let lock = match StateLock::take(&config.state_dir) {
        Ok(lock) => lock,
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
                host.seats.accept(&served, &listener);
            })
    };
    let accepting = accepting.map_err(|e| failed("a thread", e))?;
    let (keep, told) = Keep::load(&host.config.state_dir);
    *host.keep.lock().unwrap_or_else(PoisonError::into_inner) = keep;
    if let Err(text) = told {
        host.notice(format!("{text}: whom the log is kept for is learned again"));
    }
    host.run();
    let saved = &mut *host.keep.lock().unwrap_or_else(PoisonError::into_inner);
    saved.save(&host.config.state_dir, true);
    // No more followers, then those we have; what is in the log is durable.
    socket::remove(&host.config.state_dir);
    host.seats.end("the worker stops");
    drop(control);
    let _ = accepting.join();
    let mut status = host.status();
    status.state = State::Stopped;
    let _ = persist_status(&host.config.state_dir, &status);
    drop(lock);
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the followers and commands are told.
#[derive(Default)]
struct Now {
    live: Option<Live>,
    hold: Option<Hold>,
    paused: bool,
    /// Why there is no session, if it is none of the above.
    failed: Option<(Cause, String)>,
    /// A session has run: from now on the source may be gone without being a mistake.
    ever: bool,
    /// Of the tree that was captured last: the root's and those of crossed mounts.
    roots: Option<Vec<RootId>>,
    notices: VecDeque<String>,
    notices_total: u64,
}

#[derive(Default)]
struct Want {
    paused: bool,
    /// What an operator let go on.
    released: Option<HoldReason>,
    stop: bool,
}

struct Host {
    config: Config,
    stop: Stop,
    filter: Arc<Filter>,
    cache: Arc<ContentCache>,
    now: Mutex<Now>,
    want: Mutex<Want>,
    wanted: Condvar,
    seats: Arc<Seats>,
    /// A primary begins its chain.
    chain: Chain,
    /// Whom the log is kept for.
    keep: Mutex<Keep>,
    began: Status,
}

/// How a session ended.
enum End {
    Over,
    Paused,
    Held(Hold),
    Retry(String),
}

impl Host {
    fn new(config: Config, stop: Stop, filter: Filter, chain: Chain) -> Host {
        let began = Status::new(Role::Primary, show(&config.tree), None);
        let cache = Arc::new(ContentCache::in_dir(&config.state_dir));
        Host {
            config,
            stop,
            filter: Arc::new(filter),
            cache,
            now: Mutex::default(),
            want: Mutex::default(),
            wanted: Condvar::new(),
            seats: Arc::default(),
            chain,
            keep: Mutex::default(),
            began,
        }
    }

    fn notice(&self, text: String) {
        eprintln!("{} {text}", Stamp::now());
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
            }
        }
    }

    /// Nobody wanted us for long enough, or a stop was asked for.
    fn is_over(&self, idle: &mut Instant) -> bool {
        if self.stop.requested() || lock(&self.want).stop {
            return true;
        }
        if !self.seats.is_empty() {
            *idle = Instant::now();
            return false;
        }
        let ever = lock(&self.now).ever;
        let linger = if ever {
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
        let mut saved: Option<Instant> = None;
        loop {
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
            self.save(&mut saved);
        }
    }

    fn save(&self, saved: &mut Option<Instant>) {
        if saved.is_none_or(|saved| saved.elapsed() >= Duration::from_secs(2)) {
            *saved = Some(Instant::now());
            let _ = persist_status(&self.config.state_dir, &self.status());
        }
    }

    /// Held because the root was not there, and now it is again.
    fn root_is_back(&self) -> bool {
        let roots = {
            let now = lock(&self.now);
            match &now.hold {
                Some(hold)
                    if matches!(
                        hold.reason,
                        HoldReason::RootGone | HoldReason::RootCovered | HoldReason::RootReplaced
                    ) => {}
                Some(hold) if hold.reason == HoldReason::RootEmpty => {
                    return holds_something(&self.config.tree);
                }
                _ => return false,
            }
            now.roots.clone()
        };
        let Ok(tree) = SourceTree::open_with(&self.config.tree, &self.config.cross) else {
            return false;
        };
        roots.is_some_and(|roots| tree.is_same(&roots))
    }

    fn session(&self, idle: &mut Instant) -> End {
        if lock(&self.want).paused {
            return End::Paused;
        }
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
            now.ever = true;
        }
        let end = self.watch_over(&session, idle);
        lock(&self.now).live = None;
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

    fn watch_over(&self, session: &Session, idle: &mut Instant) -> End {
        let watch = mounts::Watch::new().ok();
        let (mut looked, mut saved, mut weighed) = (Instant::now(), None, None);
        loop {
            {
                let want = lock(&self.want);
                if !want.paused && !want.stop {
                    drop(
                        self.wanted
                            .wait_timeout(want, Duration::from_millis(100))
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
            self.keep_log(session, &mut weighed);
            self.save(&mut saved);
        }
    }

    fn log_max(&self) -> u64 {
        self.config.log_max.unwrap_or(keep::LOG_BYTES_MAX)
    }

    /// Says how much of the log is still needed.
    fn keep_log(&self, session: &Session, weighed: &mut Option<Instant>) {
        let mut keep = lock(&self.keep);
        self.seats.tell(&mut keep);
        keep.save(&self.config.state_dir, false);
        if weighed.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return;
        }
        *weighed = Some(Instant::now());
        if let Some(end) = session.reader.tail().durable() {
            let bytes = keep::bytes_in(&self.config.state_dir.join("log"));
            let needed = keep.needed(end.position, bytes, self.log_max());
            session.shared.lock().needed = Some(needed);
        }
    }

    fn live(&self) -> Option<Live> {
        lock(&self.now).live.clone()
    }

    fn want(&self, change: impl FnOnce(&mut Want)) {
        change(&mut lock(&self.want));
        self.wanted.notify_all();
    }
}

impl Served for Host {
    fn notice(&self, text: String) {
        eprintln!("{} {text}", Stamp::now());
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

impl Control for Host {
    fn status(&self) -> Status {
        let report = self.report();
        let (state, live) = {
            let now = lock(&self.now);
            let state = match (&now.live, &now.hold, &now.failed) {
                (Some(_), _, _) if report.scan.is_some() && report.scans == 0 => {
                    let scan = report.scan.unwrap_or_default();
                    State::Seeding {
                        files: scan.entries,
                        files_total: None,
                        bytes: scan.bytes,
                        bytes_total: None,
                        bytes_per_s: 0,
                        eta_s: None,
                    }
                }
                (Some(_), _, _) => State::Following,
                (None, Some(hold), _) => State::Hold(hold.clone()),
                (None, None, _) if now.paused => State::Paused {
                    since: Stamp::now(),
                },
                (None, None, Some((_, reason))) => State::Failed {
                    reason: reason.clone(),
                },
                (None, None, None) => State::Starting,
            };
            (state, now.live.clone())
        };
        let replicas = self.seats.replicas();
        let (received, durable) = match &live {
            Some(live) => {
                let tail = live.open.reader.tail();
                (tail.appended(), tail.durable())
            }
            None => (None, None),
        };
        let mut counters = report.counters;
        counters.records = durable.map_or(0, |end| end.position.sequence);
        Status {
            now: Stamp::now(),
            state,
            detector: report.detector,
            positions: Positions {
                received: received.map(|end| end.position),
                durable: durable.map(|end| end.position),
                applied: replicas
                    .iter()
                    .map(|replica| replica.positions.applied)
                    .min()
                    .flatten(),
            },
            last_change: report.last_change,
            entries: report.entries,
            files: report.files,
            bytes: report.bytes,
            counters,
            failed: report.failed,
            failed_total: report.failed_total,
            not_mirrored: report.not_mirrored,
            replicas,
            ..self.began.clone()
        }
    }

    /// On a worker: what happened before is in the log, durably.
    fn wait_idle(&self, until: &Until<'_>) -> Result<WaitReport, ControlError> {
        loop {
            let Some(live) = self.live() else {
                let now = lock(&self.now);
                if let Some(hold) = &now.hold {
                    return Err(ControlError::Held(hold.what.clone()));
                }
                if until.over() {
                    return Err(ControlError::Timeout("capture does not run".into()));
                }
                drop(now);
                std::thread::sleep(until.nap().min(Duration::from_millis(50)));
                continue;
            };
            let (answer, answered) = bounded(1);
            let _ = live.orders.send(Order::Barrier(answer));
            drop(live);
            loop {
                match answered.recv_timeout(until.nap()) {
                    Ok(barrier) => {
                        return Ok(WaitReport {
                            positions: self.status().positions,
                            failed: barrier.failed,
                            failed_total: barrier.failed_total,
                            fuzzy: barrier.fuzzy,
                            fuzzy_total: barrier.fuzzy_total,
                        });
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) if until.over() => {
                        return Err(ControlError::Timeout(
                            "what was written before is not all in the log yet".into(),
                        ));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
        }
    }

    /// On a worker: every follower has applied it.
    fn wait_position(
        &self,
        position: Position,
        until: &Until<'_>,
    ) -> Result<WaitReport, ControlError> {
        loop {
            let status = self.status();
            let everywhere = !status.replicas.is_empty()
                && status
                    .replicas
                    .iter()
                    .all(|replica| replica.positions.applied >= Some(position));
            if everywhere {
                return Ok(WaitReport {
                    positions: status.positions,
                    failed: status.failed,
                    failed_total: status.failed_total,
                    ..WaitReport::default()
                });
            }
            if until.over() {
                return Err(ControlError::Timeout(format!(
                    "not every follower has applied {position}"
                )));
            }
            std::thread::sleep(until.nap());
        }
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.want(|want| want.paused = true);
        for _ in 0..300 {
            {
                let now = lock(&self.now);
                if now.live.is_none() && (now.paused || now.hold.is_some()) {
                    return Ok(());
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(ControlError::Timeout(
            "capture did not come to rest within 30 s".into(),
        ))
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.want(|want| want.paused = false);
        Ok(())
    }

    fn release(&self, yes: bool) -> Result<ReleaseReport, ControlError> {
        let Some(hold) = lock(&self.now).hold.clone() else {
            return Ok(ReleaseReport::default());
        };
        if yes {
            self.want(|want| want.released = Some(hold.reason));
        }
        Ok(ReleaseReport {
            gone: hold.gone.unwrap_or(0),
            hold: Some(hold),
            released: yes,
            ..ReleaseReport::default()
        })
    }

    fn verify(
        &self,
        _: VerifyOptions,
        _: &mut dyn FnMut(VerifyLine) -> bool,
    ) -> Result<VerifyEnd, ControlError> {
        Err(ControlError::Refused(
            "a worker has no copy to verify: ask the mirror".into(),
        ))
    }

    fn stop(&self) {
        self.want(|want| want.stop = true);
    }
}
