//! The follower: records and contents come over ssh or from a service, into a log of our own, and are applied to the copy.
//!
//! As in a mirror on one host the outer loop owns lock and socket, and opens and closes sessions: the copy, its log,
//! a thread that receives ([`receive`]), and the apply loop. The log goes on being written while apply is held.

mod acks;
mod arriving;
mod begin;
mod contents;
mod dial;
mod dry_run;
mod exposed;
mod far;
mod hub;
mod let_go;
mod listed;
mod receive;
mod serving;
mod ssh;
mod travel;
mod verify;
mod wire;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver as Channel, bounded};
use mirror_core::Position;

use super::adopt::{self, Extras};
use super::applying::{ApplyLoop, ApplyOrder, ApplySetup, Enter, HistorySetup, chain};
use super::confine::{Confine, Part};
use super::control::{Beat, Handle, StateLock, persist_status, take_release};
use super::event::{Event, Progress, RunEnd, RunError, Ui};
use super::local::place::Place;
use super::local::{JUDGED_WITHIN, holds_something, outer::hold, serve_told, told_arrival};
use super::lost;
use super::options::{MirrorOptions, Owners};
use super::reserve;
use super::seed;
use super::service::pulse;
use super::serving::Chain;
use super::session::show;
use super::status::{Hold, HoldReason, PathText, Role, Stamp, State, Status};
use crate::apply::{self, Applier, ApplyError};
use crate::capture::run::CaptureOptions;
use crate::disk::{Disk, RealDisk};
use crate::engine::rotating::Publishing;
use crate::index::{self, Index, move_aside};
use crate::log::{End as LogEnd, Log, LogError, LogOptions};
use crate::sync::lock;
use acks::Acks;
use begin::{Asked, Begin};
use contents::{Fetching, Memory, WireContents};
use dial::Dialer;
use far::Far;
use hub::{Handles, Hub};
use listed::Known;
use receive::{ANSWER_TIMEOUTS, Ended, Receiver, answer_max};
use serving::{Door, Live, Serving};
use travel::Travel;
use wire::Covered;

/// How often old records of our own log are dropped.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// Rounds in which `--once` waits for what failed at first.
const ONCE_ROUNDS: u32 = 3;

/// So often all is compared anew at once; then `--once` ends, and another mirror takes its time.
const RESTARTS_MAX: u32 = 3;
const RESTARTED_WAIT: Duration = Duration::from_secs(60);
/// Of log and contents, while the copy waits for room.
const HELD_BYTES_MAX: u64 = 2 << 30;
/// Kept with the rows: what of the tree the log is of.
const VARIANT_KEY: &str = "variant";

#[derive(PartialEq, serde::Serialize, serde::Deserialize)]
struct Variant {
    ignore: Vec<String>,
    cross: Vec<Vec<u8>>,
}

/// What a thread that takes the worker's word does first.
fn enter(confine: &Arc<Confine>, part: Part, hub: &Arc<Hub>) -> Enter {
    let (confine, hub) = (confine.clone(), hub.clone());
    Box::new(move || {
        hub.confined(&confine.enter(part));
        crate::planted::escape(&format!("{part:?}"));
    })
}

/// How one session ended.
enum End {
    Done(RunEnd),
    /// All that was there at the start is done, as told here: said once nothing more can be held.
    Arrived {
        status: Box<Status>,
        extras: u64,
        began: Instant,
        failed: u64,
        fuzzy: u64,
    },
    Stopped,
    Paused,
    /// DST or its state is not there any more.
    CopyLost(Hold),
    /// Log and index make no sense with the worker's: begin again by comparing.
    Restart(String),
    /// Something went wrong that may go by itself.
    Retry(String),
}

/// Runs a mirror of a tree on another host until it is done (`once`), stopped, or can't go on.
pub fn run(mut options: MirrorOptions, ui: Arc<dyn Ui>) -> Result<RunEnd, RunError> {
    let Some(far) = Far::new(&options) else {
        return Err(RunError::Usage("this source is on this host".into()));
    };
    if options.dry_run {
        return dry_run::run(&options, &far, &*ui);
    }
    std::fs::create_dir_all(&options.state_dir).map_err(|e| {
        RunError::Failed(anyhow::anyhow!(
            "cannot make {}: {e}",
            show(&options.state_dir)
        ))
    })?;
    let lock = match options.lock.take() {
        Some(lock) => lock,
        None => StateLock::take(&options.state_dir).map_err(|e| RunError::Busy(e.to_string()))?,
    };
    let released = take_release(&options.state_dir)
        .map_err(|e| RunError::Failed(anyhow::anyhow!("{}", chain(&e))))?;
    let status = Status::new(
        Role::Replica,
        options.source.to_string(),
        Some(PathText::new(std::os::unix::ffi::OsStrExt::as_bytes(
            options.dst.as_os_str(),
        ))),
    );
    let chain = Chain::open(&options.state_dir).map_err(|e| {
        let dir = show(&options.state_dir);
        RunError::Failed(anyhow::anyhow!("cannot read who we are in {dir}: {e}"))
    })?;
    let hub = Arc::new(Hub::new(
        options.stop.clone(),
        ui.clone(),
        status,
        chain,
        options.state_dir.clone(),
    ));
    let serving = Serving::new(hub.clone(), &options);
    Follower {
        options,
        ui,
        hub,
        serving,
        far,
        lock: Some(lock),
        released: released
            .as_ref()
            .is_some_and(|hold| hold.reason == HoldReason::MassChange),
        released_there: Arc::new(AtomicBool::new(
            released.is_some_and(|hold| hold.reason != HoldReason::MassChange),
        )),
        comparing: false,
        known: None,
        restarts: 0,
        contradicted: Cell::new(false),
        ever: false,
    }
    .run()
}

struct Follower {
    options: MirrorOptions,
    ui: Arc<dyn Ui>,
    hub: Arc<Hub>,
    /// For those who follow us.
    serving: Arc<Serving>,
    far: Far,
    lock: Option<StateLock>,
    /// A mass change was let through while no process ran.
    released: bool,
    /// Likewise what the worker held; taken once.
    released_there: Arc<AtomicBool>,
    /// Log and index were given up: DST is ours all the same.
    comparing: bool,
    /// The rows that were given up: the source need not tell all again.
    known: Option<PathBuf>,
    /// How often this process began again by comparing.
    restarts: u32,
    /// Begun again because the records contradicted the rows.
    contradicted: Cell<bool>,
    /// A session has run.
    ever: bool,
}

impl Follower {
    fn run(&mut self) -> Result<RunEnd, RunError> {
        reserve::give_up(&self.options.state_dir);
        self.hub.look_for_forks(&self.options.state_dir);
        let mut control = self.serve()?;
        let mut door = self.let_in();
        let mut wait = Duration::from_millis(200);
        let stopped = RunEnd {
            stopped: true,
            ..RunEnd::default()
        };
        loop {
            let began = Instant::now();
            let end = match self.session() {
                Ok(end) => end,
                Err(error) if reserve::is_waited_for(&error, &self.options.state_dir) => {
                    End::Retry(error.to_string())
                }
                Err(error) => {
                    self.hub.close();
                    self.finish(match &error {
                        // Whoever lets it go finds it there.
                        RunError::Held(hold) => State::Hold(hold.clone()),
                        _ => State::Failed {
                            reason: error.to_string(),
                        },
                    });
                    return Err(error);
                }
            };
            self.hub.close();
            match end {
                End::Done(end) => {
                    self.finish(end.held.clone().map_or(State::Stopped, State::Hold));
                    return Ok(end);
                }
                End::Arrived {
                    status,
                    extras,
                    began,
                    failed,
                    fuzzy,
                } => {
                    told_arrival(&*self.ui, &status, extras, began);
                    self.finish(State::Stopped);
                    return Ok(RunEnd {
                        failed,
                        fuzzy,
                        extras,
                        held: None,
                        stopped: false,
                    });
                }
                End::Stopped => {
                    let state = self.hub.snapshot().state;
                    self.finish(match state {
                        State::Hold(hold) => State::Hold(hold),
                        _ => State::Stopped,
                    });
                    return Ok(stopped);
                }
                End::Paused => {
                    self.ui.event(Event::Paused);
                    self.hub.set_state(State::Paused {
                        since: Stamp::now(),
                    });
                    self.persist();
                    let mut beat = Beat::default();
                    let rests = |want: &hub::Want| want.paused;
                    if self
                        .hub
                        .wait_while(rests, || beat.persist(|| self.persist()))
                    {
                        return Ok(stopped);
                    }
                    self.ui.event(Event::Resumed);
                }
                End::CopyLost(hold) => {
                    self.ui.event(Event::Held(hold.clone()));
                    // Lock, socket and status lie there too: all is let go.
                    drop((control, door));
                    self.lock = None;
                    if self.options.once || self.wait_for_copy() {
                        return Ok(RunEnd {
                            held: Some(hold),
                            stopped: !self.options.once,
                            ..RunEnd::default()
                        });
                    }
                    control = self.serve()?;
                    door = self.let_in();
                    self.ui.event(Event::Released);
                }
                End::Restart(reason) if self.restarts >= RESTARTS_MAX && self.options.once => {
                    self.finish(State::Failed {
                        reason: reason.clone(),
                    });
                    return Err(RunError::Failed(anyhow::anyhow!(reason)));
                }
                End::Restart(reason) => {
                    // Whoever makes us begin again at once does so again.
                    if self.restarts >= RESTARTS_MAX {
                        self.hub.set_state(State::Failed {
                            reason: reason.clone(),
                        });
                        self.persist();
                        pulse::rest();
                        if self.options.stop.wait(RESTARTED_WAIT) {
                            return Ok(stopped);
                        }
                    }
                    self.restarts += 1;
                    let aside = lost::give_up_state(&self.options.state_dir).map_err(|e| {
                        RunError::Failed(anyhow::anyhow!(
                            "cannot move the old log aside in {}: {e}",
                            show(&self.options.state_dir)
                        ))
                    })?;
                    self.ui.event(Event::Notice(format!(
                        "{reason}. All is compared again, nothing equal is copied; the old log and index are in {}",
                        show(&aside)
                    )));
                    self.hub.look_for_forks(&self.options.state_dir);
                    self.comparing = true;
                    self.known = Some(aside.join("index"));
                }
                End::Retry(reason) => {
                    if began.elapsed() > Duration::from_secs(60) {
                        wait = Duration::from_millis(200);
                    }
                    self.ui.event(Event::Notice(format!(
                        "{reason}; trying again in {:.1} s",
                        wait.as_secs_f64()
                    )));
                    self.hub.set_state(State::Failed {
                        reason: reason.clone(),
                    });
                    self.persist();
                    if self.options.once && wait > Duration::from_secs(2) {
                        return Err(RunError::Failed(anyhow::anyhow!(reason)));
                    }
                    if self.options.stop.wait(wait) {
                        return Ok(stopped);
                    }
                    wait = (wait * 2).min(Duration::from_secs(30));
                }
            }
        }
    }

    fn serve(&self) -> Result<Handle, RunError> {
        serve_told(&self.options.state_dir, self.hub.clone(), &*self.ui)
    }

    /// Nobody follows what ends in a moment.
    fn let_in(&self) -> Option<Door> {
        (!self.options.once).then(|| self.serving.open()).flatten()
    }

    fn finish(&self, state: State) {
        let mut status = self.hub.snapshot();
        status.state = state;
        let _ = persist_status(&self.options.state_dir, &status);
    }

    fn persist(&self) {
        let _ = persist_status(&self.options.state_dir, &self.hub.snapshot());
    }

    /// Until DST's state is back and ours. True: stop.
    fn wait_for_copy(&mut self) -> bool {
        loop {
            pulse::beat();
            if self.options.stop.wait(Duration::from_millis(500)) {
                return true;
            }
            if self.options.state_dir.join("log").is_dir()
                && let Ok(lock) = StateLock::take(&self.options.state_dir)
            {
                self.lock = Some(lock);
                return false;
            }
        }
    }

    fn session(&mut self) -> Result<End, RunError> {
        pulse::rest();
        let place = Place::open(&self.options.dst, &self.options.state_dir);
        let plain = self.ui.clone();
        self.ui = place.typed_ui(&plain);
        let end = self.session_in(&place);
        self.ui = plain;
        match end {
            Ok(End::Retry(text)) => Ok(End::Retry(place.typed(&text))),
            Ok(End::Restart(text)) => Ok(End::Restart(place.typed(&text))),
            Err(error) => Err(place.typed_error(error)),
            end => end,
        }
    }

    fn session_in(&mut self, place: &Place) -> Result<End, RunError> {
        let failed = |what: &str, error: &dyn std::error::Error| {
            RunError::Failed(anyhow::anyhow!("{what}: {}", chain(error)))
        };
        reserve::give_up(&place.state);
        for dir in ["", "staging"] {
            if let Err(error) = std::fs::create_dir_all(place.state.join(dir)) {
                return Err(RunError::Failed(anyhow::anyhow!(
                    "cannot make {}: {error}",
                    show(&self.options.state_dir.join(dir))
                )));
            }
        }
        let disk: Arc<dyn Disk> = Arc::new(
            RealDisk::open(&place.state)
                .map_err(|e| failed("cannot open the state directory", &e))?,
        );
        let mut cut_bytes = 0;
        let log = match Log::open(disk.clone(), LogOptions::default()) {
            Ok((log, recovered)) => {
                cut_bytes = recovered.cut_bytes;
                Some(log)
            }
            Err(LogError::Absent) => None,
            Err(error @ (LogError::Io { .. } | LogError::Content(_))) if self.ever => {
                return Ok(End::Retry(chain(&error)));
            }
            Err(error) => match lost::lost_log(&error) {
                Some(reason) if self.options.adopt => return Ok(End::Restart(reason)),
                Some(reason) => {
                    let line = lost::with_adopt(&reason, &self.options.state_dir);
                    return Err(RunError::Failed(anyhow::anyhow!("{line}")));
                }
                None => {
                    let line = lost::cannot_open(&error);
                    return Err(RunError::Failed(anyhow::anyhow!("{line}")));
                }
            },
        };
        let mut rows = self.open_rows(place)?;
        let reader = log.as_ref().map(Log::reader);
        let of = reader
            .as_ref()
            .zip(log.as_ref())
            .map(|(reader, log)| (reader, log.tree()));
        if let Some(reason) = lost::misfit(&rows, of) {
            drop((rows, reader, log));
            return Ok(End::Restart(reason));
        }
        if cut_bytes > 0 {
            self.ui.event(Event::Notice(lost::cut(cut_bytes, false)));
        }
        let fresh = rows.mark().is_none();
        let holds = holds_something(&place.dst);
        // A tree that came whole was being made when we were killed: what is there is ours.
        let was_begun = self.options.state_dir.join(seed::FILE).exists();
        if fresh && holds && log.is_none() && !self.options.adopt && !self.comparing && !was_begun {
            return Err(RunError::Usage(format!(
                "{} is not empty and is no mirror: give an empty DST, or --adopt to compare what it holds and copy only \
                 what differs",
                show(&self.options.dst)
            )));
        }
        if let Some(log) = &log {
            rows.set_tree(log.tree());
        }
        let options = apply::Options {
            owners: match self.options.owners {
                Owners::Apply => apply::Owners::Apply,
                Owners::Record => apply::Owners::Record,
            },
            ..apply::Options::default()
        };
        let mut applier = match Applier::open(&place.dst, &place.state, rows, options) {
            Ok(applier) => applier,
            Err(ApplyError::Root { what, .. }) if self.ever => {
                return Ok(End::Retry(place.lost_text(&what)));
            }
            Err(ApplyError::Root { what, .. }) => {
                let what = place.lost_text(&what);
                return Err(RunError::Held(hold(HoldReason::CopyLost, what)));
            }
            Err(error) if self.ever => return Ok(End::Retry(chain(&error))),
            Err(error) => return Err(failed("cannot open DST", &error)),
        };
        place.opened();
        if fresh && let Some(line) = exposed::warning(&self.options.dst, self.options.owners) {
            self.ui.event(Event::Notice(line));
        }
        let confine = Confine::new(&place.dst, &place.state, self.options.owners)
            .map_err(|e| failed("cannot open DST", &e))?;
        let confine = Arc::new(confine);
        let dialer =
            Dialer::start(self.far.clone()).map_err(|e| failed("cannot start a thread", &e))?;
        let adoption = self
            .adoption(&mut applier, fresh && holds, log.is_some())
            .map_err(|e| failed("cannot use the index", &e))?;
        let changed = self
            .variant_changed(&mut applier, log.is_some())
            .map_err(|e| failed("cannot use the index", &e))?;
        let ever = log.is_some() || self.ever || self.options.patient;
        self.ever = true;
        let memory = Arc::new(Memory::default());
        let fetching = Arc::new(Fetching::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let (begun, has_begun) = bounded(1);
        let (seeded, came_whole) = bounded(1);
        if log.is_some() {
            let _ = begun.send(());
        }
        let known = match (&log, &self.known) {
            (None, Some(rows)) => Known::open(rows, &self.options.state_dir),
            _ => None,
        };
        let log = Arc::new(Mutex::new(log));
        let receiver = Receiver {
            far: self.far.clone(),
            dialer,
            options: self.options.clone(),
            hub: self.hub.clone(),
            disk: disk.clone(),
            log: log.clone(),
            memory: memory.clone(),
            stopping: stopping.clone(),
            begun,
            ever,
            changed,
            seeded,
            tree: None,
            known,
            listed: None,
            came_whole: false,
            released: self.released_there.clone(),
            soon: false,
        };
        let (tell, ended) = bounded(1);
        let receiving = std::thread::Builder::new()
            .name("receive".into())
            .spawn({
                let enter = enter(&confine, Part::Receive, &self.hub);
                move || {
                    enter();
                    let _ = tell.send(receiver.run());
                }
            })
            .map_err(|e| failed("cannot start a thread", &e))?;
        let travel = Travel::new(
            applier.staging(),
            self.hub.clone(),
            fetching.clone(),
            stopping.clone(),
        );
        let mut session = Session {
            follower: self,
            travel: travel.clone(),
            place,
            confine,
            log: &log,
            memory,
            fetching,
            stopping: stopping.clone(),
            ended,
            has_begun,
            came_whole,
            disk,
            begin: None,
            waiting: Some(applier),
            apply: None,
            adoption,
            first: First::Connecting,
            letting: Letting::No,
            began: Instant::now(),
            rounds: 0,
            speed: self.options.bwlimit.get(),
        };
        let end = session.run();
        pulse::rest();
        let apply = session.apply.take();
        let begin = session.begin.take();
        drop(session.waiting.take());
        drop(session);
        self.serving.set(None);
        // Nothing may wait for the link or for apply any more.
        stopping.store(true, Ordering::Release);
        self.hub.links.set(None);
        self.hub.hang_up();
        while !receiving.is_finished() {
            // A connection that was just being made is ended too.
            self.hub.hang_up();
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = receiving.join();
        self.hub.close();
        // What it has made is found again by comparing.
        drop(begin.map(Begin::join));
        let told = apply.as_ref().map(|apply| apply.applied.clone());
        let applied = apply.map_or(Ok(()), |apply| apply.stop().map(drop));
        travel.close();
        // Held while it was being closed, here or there.
        let held = told.and_then(|told| told.lock().hold.clone());
        let held = held.or_else(|| self.hub.known_report().hold);
        if let Some(log) = lock(&log).take()
            && let Err(error) = log.finish()
        {
            self.ui.event(Event::Notice(format!(
                "the log could not be closed: {}",
                chain(&error)
            )));
        }
        match (end?, applied) {
            (End::Arrived { extras, .. }, _) if held.is_some() => Ok(End::Done(RunEnd {
                extras,
                held,
                ..RunEnd::default()
            })),
            (End::Done(_) | End::Arrived { .. }, Err(reason)) => Ok(End::Retry(reason)),
            (end, _) => Ok(end),
        }
    }

    /// Whether the copy may hold what the source never had, and then whether somebody is asked before it moves aside.
    fn adoption(
        &self,
        applier: &mut Applier<Index>,
        found_full: bool,
        has_log: bool,
    ) -> Result<Option<bool>, index::IndexError> {
        let rows = applier.store_mut();
        if let Some(ask) = adopt::begun(rows)? {
            return Ok(Some(ask));
        }
        if !found_full {
            return Ok(None);
        }
        // A copy whose log or index was lost is ours all the same; but a worker that contradicts itself is not to say
        // what of it goes.
        let was_begun = self.options.state_dir.join(seed::FILE).exists();
        let ours = has_log || self.comparing || (was_begun && !self.options.adopt);
        let ask = !ours || self.contradicted.get();
        adopt::begin(rows, ask)?;
        Ok(Some(ask))
    }

    /// Whether ignore lines or crossed mounts are others than those this log is of, and no mount is left out that
    /// was crossed: what it held would go.
    fn variant_changed(
        &self,
        applier: &mut Applier<Index>,
        has_log: bool,
    ) -> Result<bool, index::IndexError> {
        let now = Variant {
            ignore: self.options.ignore.clone(),
            cross: self
                .options
                .cross
                .iter()
                .map(|path| std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec())
                .collect(),
        };
        let rows = applier.store_mut();
        let before: Option<Variant> = rows
            .meta_get(VARIANT_KEY)?
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if !has_log || before.is_none() {
            let bytes = serde_json::to_vec(&now).unwrap_or_default();
            rows.meta_put(VARIANT_KEY, &bytes)?;
            return Ok(false);
        }
        Ok(before.is_some_and(|before| {
            before != now && before.cross.iter().all(|path| now.cross.contains(path))
        }))
    }

    /// The rows of the copy. Damaged ones are made again, from the log or by comparing.
    fn open_rows(&self, place: &Place) -> Result<Index, RunError> {
        let path = place.state.join("index");
        let failed = |e: index::IndexError| RunError::Failed(anyhow::anyhow!("{}", chain(&e)));
        match Index::open(&path, index::Options::default()) {
            Ok((index, _)) => Ok(index),
            Err(error) if error.is_rebuildable() => {
                let aside = move_aside(&path).map_err(failed)?;
                self.ui.event(Event::Notice(lost::rebuilt(&error, &aside)));
                let opened = Index::open(&path, index::Options::default());
                Ok(opened.map_err(failed)?.0)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// Sum of the sizes of the files directly in a directory.
fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}

/// From the first connection to the first time the copy is equal.
enum First {
    Connecting,
    Barrier(Channel<Covered>),
    Applying(Covered),
    /// `equal`: that it is, was told.
    Following {
        equal: bool,
    },
}

/// What a worker held goes through the guard here, too: until its look at everything is over.
enum Letting {
    No,
    /// That is to be asked.
    Ask,
    Asked(Channel<Covered>),
}

struct Session<'a> {
    follower: &'a Follower,
    place: &'a Place,
    confine: Arc<Confine>,
    log: &'a Mutex<Option<Log>>,
    memory: Arc<Memory>,
    fetching: Arc<Fetching>,
    travel: Arc<Travel>,
    stopping: Arc<AtomicBool>,
    ended: Channel<Ended>,
    has_begun: Channel<()>,
    /// The tree came whole, as of here.
    came_whole: Channel<(LogEnd, [u8; 16])>,
    disk: Arc<dyn Disk>,
    /// And is being made.
    begin: Option<Begin>,
    /// The copy, until there is a log to apply.
    waiting: Option<Applier<Index>>,
    apply: Option<ApplyLoop>,
    /// The copy may hold what the source never had; true: somebody is asked before it moves aside.
    adoption: Option<bool>,
    first: First,
    letting: Letting,
    began: Instant,
    rounds: u32,
    /// What the worker was told to keep to.
    speed: Option<u64>,
}

impl Session<'_> {
    fn run(&mut self) -> Result<End, RunError> {
        let (options, hub) = (&self.follower.options, &self.follower.hub);
        let mut saved = Instant::now();
        let mut looked = Instant::now();
        let mut pruned = Instant::now();
        let mut acks: Option<Acks> = None;
        loop {
            pulse::beat();
            let nap = match self.first {
                First::Following { .. } => 100,
                _ => 10,
            };
            options.stop.wait(Duration::from_millis(nap));
            if options.stop.requested() || hub.with(|want| want.stop) {
                return Ok(End::Stopped);
            }
            if hub.with(|want| want.paused) {
                return Ok(End::Paused);
            }
            if looked.elapsed() >= Duration::from_millis(500) {
                looked = Instant::now();
                if !self.place.still_there() {
                    let what = format!("{} is gone or covered", show(&options.state_dir));
                    return Ok(End::CopyLost(hold(HoldReason::CopyLost, what)));
                }
                if let Some(what) = self.place.dst_lost() {
                    return Ok(End::Retry(what));
                }
            }
            if let Ok(ended) = self.ended.try_recv() {
                return match ended {
                    Ended::Stopped => Ok(End::Retry("the link ended by itself".into())),
                    Ended::Fatal(error) => Err(error),
                    Ended::Restart(reason) => Ok(End::Restart(reason)),
                    Ended::Local(reason) => Ok(End::Retry(reason)),
                };
            }
            if self.has_begun.try_recv().is_ok()
                && let Some(applier) = self.waiting.take()
            {
                self.apply = Some(self.start_apply(applier)?);
            }
            if let Ok(at) = self.came_whole.try_recv()
                && let Some(applier) = self.waiting.take()
            {
                self.begin = Some(self.make(applier, at)?);
            }
            if let Some(end) = self.made()? {
                return Ok(end);
            }
            self.let_through();
            if let Some(apply) = &self.apply {
                let moved = apply.applied.lock().counts.moved_aside;
                hub.aside.look(&self.place.state, moved);
            }
            if options.bwlimit.get() != self.speed {
                self.speed = options.bwlimit.get();
                let told = hub.links.get().map(|link| link.pace(self.speed));
                // An older worker hears of it when it is told where to go on.
                if !matches!(told, Some(Ok(true))) {
                    hub.hang_up();
                }
            }
            let status = hub.refresh();
            if let Some(apply) = &self.apply {
                if acks.is_none() {
                    acks = Acks::start(hub.clone(), apply.applied.clone()).ok();
                }
                if !apply.is_running() {
                    let (reason, misfit) = apply.why_ended();
                    // Once that is a reason to begin again; a worker whose log can't be true has no better one.
                    if misfit && !self.follower.contradicted.replace(true) {
                        return Ok(End::Restart(reason));
                    }
                    return Ok(End::Retry(format!("apply stopped: {reason}")));
                }
                let (passed, needed) = {
                    let state = apply.applied.lock();
                    (state.passed, state.saved)
                };
                if let Some(passed) = passed {
                    self.memory.applied(passed);
                }
                if pruned.elapsed() >= PRUNE_EVERY {
                    pruned = Instant::now();
                    if let Some(needed) = needed {
                        self.prune(needed);
                    }
                }
            }
            if let Some(end) = self.first(&status)? {
                return Ok(end);
            }
            if saved.elapsed() > Duration::from_secs(2) {
                saved = Instant::now();
                self.follower.persist();
                hub.followers.save(&options.state_dir);
                self.receive_no_more(&status);
                if matches!(self.first, First::Following { .. }) {
                    reserve::take(&self.place.state);
                }
            }
        }
    }

    /// While the copy waits for room its log takes what comes, but not without end.
    fn receive_no_more(&self, status: &Status) {
        let (options, hub) = (&self.follower.options, &self.follower.hub);
        let waits = matches!(&status.state, State::Hold(hold) if hold.reason == HoldReason::Limit);
        let floor = options.bounds.get().min_free.unwrap_or(0) / 2;
        let full = waits && {
            let free = status.space.map_or(u64::MAX, |space| space.bytes_free);
            let kept = ["log", "content"].map(|dir| bytes_in(&options.state_dir.join(dir)));
            free < floor || kept.iter().sum::<u64>() > HELD_BYTES_MAX
        };
        if hub.set_full(full) && full {
            self.follower.ui.event(Event::Notice(
                "what waits fills the log: nothing more is received until there is room for it in the copy".into(),
            ));
        }
    }

    fn let_through(&mut self) {
        let (hub, Some(apply)) = (&self.follower.hub, &self.apply) else {
            return;
        };
        if hub.was_let_through() {
            let _ = apply.orders.send(ApplyOrder::Look);
            self.letting = Letting::Ask;
        }
        match &self.letting {
            Letting::No => {}
            Letting::Ask => {
                if let Some(link) = hub.links.get()
                    && let Ok(answer) = link.barrier()
                {
                    self.letting = Letting::Asked(answer);
                }
            }
            Letting::Asked(answer) => match answer.try_recv() {
                Ok(covered) => {
                    let _ = apply.orders.send(ApplyOrder::Looked(covered.position));
                    self.letting = Letting::No;
                }
                Err(crossbeam_channel::TryRecvError::Disconnected) => self.letting = Letting::Ask,
                Err(crossbeam_channel::TryRecvError::Empty) => {}
            },
        }
    }

    /// The copy is made of what came whole; its contents are asked for.
    fn make(&self, applier: Applier<Index>, at: (LogEnd, [u8; 16])) -> Result<Begin, RunError> {
        let contents = WireContents {
            store: None,
            memory: self.memory.clone(),
            fetching: self.fetching.clone(),
            hub: self.follower.hub.clone(),
            travel: self.travel.clone(),
            stopping: self.stopping.clone(),
        };
        let options = &self.follower.options;
        let asked = Asked {
            stopping: self.stopping.clone(),
            bounds: options.bounds.clone(),
            told: options.told.clone(),
            dst: self.place.dst.clone(),
            ui: self.follower.ui.clone(),
        };
        let enter = enter(&self.confine, Part::Apply, &self.follower.hub);
        Begin::start(
            applier,
            contents,
            options.state_dir.clone(),
            at,
            asked,
            enter,
        )
        .map_err(|e| RunError::Failed(anyhow::anyhow!("cannot start a thread: {e}")))
    }

    /// Shows how far that is. Once it is done the log begins after it.
    fn made(&mut self) -> Result<Option<End>, RunError> {
        let Some(begin) = &self.begin else {
            return Ok(None);
        };
        let hub = &self.follower.hub;
        if !begin.is_over() {
            let files = begin.made.files.load(Ordering::Relaxed);
            let bytes = begin.made.bytes.load(Ordering::Relaxed);
            let total = hub.known_report().files;
            if let Some(hold) = begin.made.full() {
                hub.set_state(State::Hold(hold));
                return Ok(None);
            }
            hub.set_state(State::Seeding {
                files,
                files_total: (total > 0).then_some(total),
                bytes,
                bytes_total: None,
                bytes_per_s: 0,
                eta_s: None,
            });
            self.follower.ui.event(Event::Progress(Progress {
                files,
                files_total: (total > files).then_some(total),
                bytes,
                bytes_total: None,
                comparing: bytes == 0,
            }));
            return Ok(None);
        }
        let Some(begin) = self.begin.take() else {
            return Ok(None);
        };
        let (at, tree) = (begin.at, begin.tree);
        let applier = match begin.join() {
            Ok(applier) => applier,
            Err(reason) => {
                let reason = format!("the copy could not be begun: {reason}");
                return Ok(Some(End::Restart(reason)));
            }
        };
        let options = LogOptions::default();
        match Log::create_follower(self.disk.clone(), options, tree, Some(at)) {
            Ok(log) => {
                *lock(self.log) = Some(log);
            }
            Err(error) => return Ok(Some(End::Retry(chain(&error)))),
        }
        if let Some(link) = hub.links.get() {
            let _ = link.follow(Some(at), self.follower.options.bwlimit.get());
        }
        self.apply = Some(self.start_apply(applier)?);
        Ok(None)
    }

    fn start_apply(&self, mut applier: Applier<Index>) -> Result<ApplyLoop, RunError> {
        let options = &self.follower.options;
        let reader = match &*lock(self.log) {
            Some(log) => log.reader(),
            None => return Err(RunError::Failed(anyhow::anyhow!("there is no log"))),
        };
        applier.store_mut().set_tree(reader.tree());
        let contents = Arc::new(WireContents {
            store: Some(reader.content()),
            memory: self.memory.clone(),
            fetching: self.fetching.clone(),
            hub: self.follower.hub.clone(),
            travel: self.travel.clone(),
            stopping: self.stopping.clone(),
        });
        let tail = reader.tail();
        let served = reader.clone();
        let wake = tail.clone();
        self.travel.wakes(move || wake.wake());
        let apply = ApplyLoop::start(ApplySetup {
            applier,
            reader,
            contents,
            holds_mass_change: options.holds_mass_change(),
            ui: self.follower.ui.clone(),
            seeding: false,
            enter: Some(enter(&self.confine, Part::Apply, &self.follower.hub)),
            released: self.follower.released,
            looking: false,
            left_out: adopt::LeftOut::new(options)?,
            verbose: options.output.verbose,
            bounds: options.bounds.clone(),
            dst: self.place.dst.clone(),
            state_dir: self.place.state.clone(),
            history: options
                .history
                .then(|| HistorySetup::new(&self.place.state, &options.keeping)),
            publishing: Publishing::of(options),
            told: options.told.clone(),
        })
        .map_err(|e| RunError::Failed(anyhow::anyhow!("cannot start a thread: {e}")))?;
        self.follower.hub.open(Handles {
            apply_orders: apply.orders.clone(),
            applied: apply.applied.clone(),
            tail,
            dst: self.place.dst.clone(),
            adopted: Arc::new(AtomicBool::new(self.adoption.is_none())),
        });
        self.follower.serving.set(Some(Live {
            reader: served,
            orders: apply.orders.clone(),
            applied: apply.applied.clone(),
            memory: self.memory.clone(),
            fetching: self.fetching.clone(),
            state: self.place.state.clone(),
        }));
        Ok(apply)
    }

    fn prune(&self, needed: Position) {
        let mut log = lock(self.log);
        let follows = self
            .follower
            .serving
            .needed(&self.place.state.join("log"), needed);
        if let Some(log) = log.as_mut()
            && let Err(error) = log.prune(needed.min(follows), &CaptureOptions::default().prune)
        {
            self.follower.ui.event(Event::Notice(format!(
                "old records could not be dropped: {}",
                chain(&error)
            )));
        }
    }

    fn first(&mut self, status: &Status) -> Result<Option<End>, RunError> {
        let (options, hub, ui) = (
            &self.follower.options,
            &self.follower.hub,
            &self.follower.ui,
        );
        if options.once
            && matches!(status.state, State::Hold(_))
            && !self.follower.released_there.load(Ordering::Acquire)
            // It may have been passed on since.
            && let State::Hold(hold) = hub.refresh().state
        {
            return Ok(Some(End::Done(RunEnd {
                held: Some(hold),
                ..RunEnd::default()
            })));
        }
        if let Some(end) = self.unanswered(status)? {
            return Ok(Some(end));
        }
        match &self.first {
            First::Connecting => {
                if let Some(link) = hub.links.get()
                    && let Ok(answer) = link.barrier()
                {
                    self.first = First::Barrier(answer);
                }
            }
            First::Barrier(answer) => {
                match answer.try_recv() {
                    Ok(covered) => self.first = First::Applying(covered),
                    Err(crossbeam_channel::TryRecvError::Disconnected) => {
                        self.first = First::Connecting;
                    }
                    Err(crossbeam_channel::TryRecvError::Empty) => {}
                }
                self.progress(status);
            }
            First::Applying(covered) => {
                self.progress(status);
                let covered = covered.clone();
                let held = matches!(status.state, State::Hold(_));
                if !held
                    && covered
                        .position
                        .is_none_or(|wanted| status.positions.applied >= Some(wanted))
                {
                    return self.first_applied(&covered);
                }
            }
            First::Following { equal } => {
                if !equal && status.equal_at.is_some() {
                    let equal = told_arrival(&**ui, status, 0, self.began);
                    self.first = First::Following { equal };
                }
                ui.event(Event::Live {
                    lag: status.lag,
                    last_change: status.last_change.clone(),
                    failures: status.failed_total,
                    fuzzy: status.counters.fuzzy,
                });
            }
        }
        Ok(None)
    }

    /// A worker that says that it is there, and nothing of what it was asked for, does so for ever.
    fn unanswered(&self, status: &Status) -> Result<Option<End>, RunError> {
        let (options, hub) = (&self.follower.options, &self.follower.hub);
        let report = hub.known_report();
        let rests = report.hold.is_some() || report.paused;
        let waits = match &self.first {
            First::Connecting | First::Barrier(_) => true,
            First::Applying(covered) => {
                self.begin.is_none() && status.positions.durable < covered.position
            }
            First::Following { .. } => false,
        };
        let most = answer_max(options);
        if !waits || rests || !hub.is_connected() || hub.no_news_for() < most {
            return Ok(None);
        }
        let line = format!(
            "{} does not answer: only heartbeats came for {} s ({ANSWER_TIMEOUTS} times --timeout)",
            mirror_core::escape(self.follower.far.host.as_bytes()),
            most.as_secs()
        );
        if options.once {
            return Err(RunError::Unreachable(line));
        }
        Ok(Some(End::Retry(line)))
    }

    fn progress(&self, status: &Status) {
        let report = self.follower.hub.known_report();
        let Some(apply) = &self.apply else { return };
        let counts = apply.applied.lock().counts;
        let total = report.scan.is_none() && report.scans > 0;
        self.follower.ui.event(Event::Progress(Progress {
            files: counts.created + counts.adopted,
            files_total: total.then_some(status.entries),
            bytes: counts.content_bytes,
            bytes_total: None,
            comparing: counts.content_bytes == 0,
        }));
    }

    /// What is known of the source by now went through the guard, too: a short while is spent on that at the end of a run.
    fn judged(&self, apply: &ApplyLoop) {
        let hub = &self.follower.hub;
        let end = hub.known_end();
        let until = Instant::now() + JUDGED_WITHIN;
        let mut state = apply.applied.lock();
        while state.applied < end
            && state.hold.is_none()
            && state.ended.is_none()
            && Instant::now() < until
            && hub.is_connected()
            && !self.follower.options.stop.requested()
        {
            state = apply.applied.wait(state, Duration::from_millis(50));
        }
    }

    /// Everything that there was at the start is applied.
    fn first_applied(&mut self, covered: &Covered) -> Result<Option<End>, RunError> {
        let follower = self.follower;
        let (options, hub) = (&follower.options, &follower.hub);
        let Some(apply) = &self.apply else {
            return Ok(None);
        };
        let (failed, again) = {
            let state = apply.applied.lock();
            (state.failed_total, state.again)
        };
        if again > 0 && self.follower.hub.is_connected() {
            return Ok(None);
        }
        if failed > 0 && self.rounds < ONCE_ROUNDS {
            // What changed while it was read has a successor on its way.
            self.rounds += 1;
            self.first = First::Connecting;
            options.stop.wait(Duration::from_millis(300));
            return Ok(None);
        }
        let left = match self.adoption.take() {
            Some(ask) => match adopt::settle(apply, &*follower.ui, options, ask)? {
                Extras::None => 0,
                Extras::Left(left) => left,
            },
            None => 0,
        };
        hub.adopted();
        let ends = options.once || left > 0;
        if ends {
            self.judged(apply);
        }
        // It may have come meanwhile. While it stands nothing is called equal.
        let held = hub.refresh().state;
        if let State::Hold(hold) = held {
            return Ok(ends.then(|| {
                End::Done(RunEnd {
                    extras: left,
                    held: Some(hold),
                    ..RunEnd::default()
                })
            }));
        }
        let status = hub.arrived(left);
        if !ends {
            let equal = told_arrival(&*follower.ui, &status, left, self.began);
            if let Some(every) = options.verify_every {
                let _ = apply.orders.send(ApplyOrder::Roll(every));
            }
            self.first = First::Following { equal };
            return Ok(None);
        }
        let (done, answer) = bounded(1);
        let _ = apply.orders.send(ApplyOrder::Checkpoint(done));
        Ok(Some(match answer.recv_timeout(Duration::from_secs(600)) {
            Ok(Ok(())) => End::Arrived {
                failed: status.failed_total.max(covered.report.failed_total),
                fuzzy: status.counters.fuzzy.max(covered.report.fuzzy_total),
                status: Box::new(status),
                extras: left,
                began: self.began,
            },
            Ok(Err(text)) => End::Retry(text),
            Err(_) => End::Retry("the copy's index could not be saved".into()),
        }))
    }
}
