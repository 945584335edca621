//! A mirror on one host: capture and apply in one process, through one log.
//!
//! The outer loop owns lock, socket and guards; a [`session`](super::session) with an apply loop is opened and closed in
//! it, as often as the source comes and goes. While there is none, no descriptor into SRC is open.

pub mod contents;
pub mod outer;
pub mod place;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select};
use mirror_core::guard::Alarm;

use super::adopt::{self, Extras};
use super::applying::{
    ApplyLoop, ApplyOrder, ApplySetup, HistorySetup, SEEDED_KEY, chain, hold_of, try_again,
};
use super::control::{
    Beat, Control, Handle, StateLock, Until, persist_status, serve, take_release,
};
use super::event::{Event, Incomplete, Progress, RunEnd, RunError, Ui};
use super::lost;
use super::options::{MirrorOptions, Owners, SourceSpec};
use super::reserve;
use super::service::pulse;
use super::session::{Opening, Session, SessionError, SessionSetup, is_root, show};
use super::status::{Hold, HoldReason, PathText, Role, Stamp, State, Status};
use crate::apply::{self, Applier, ApplyError};
use crate::capture::run::CaptureOptions;
use crate::capture::sink::{Limited, NoSink, Sink, StagingSink, Throttle};
use crate::capture::state::{Barrier, Ended};
use crate::capture::tree::{SourceTree, TreeError};
use crate::disk::RealDisk;
use crate::engine::rotating::Publishing;
use crate::filter::Filter;
use crate::index::{self, Index, IndexError, move_aside};
use crate::log::LogOptions;
use crate::sys::{Errno, lease, mounts};
use contents::SourceContents;
use outer::{Handles, Outer, hold};
use place::{Place, inode};

/// How one session ended.
enum End {
    /// All that was there at the start is done, as told here: said once nothing more can be held.
    Arrived {
        status: Box<Status>,
        extras: u64,
        began: Instant,
    },
    Stopped,
    Paused,
    Held(Hold),
    /// DST or its state is not there any more.
    CopyLost(Hold),
    /// Log and index make no sense (together): begin again by comparing, if that was asked for.
    Lost(String),
    /// Something went wrong that may go by itself.
    Retry(String),
}

pub fn run(mut options: MirrorOptions, ui: Arc<dyn Ui>) -> Result<RunEnd, RunError> {
    let SourceSpec::Local(source) = options.source.clone() else {
        return Err(RunError::Usage("this is not a local source".into()));
    };
    lease::init();
    if options.dry_run {
        return super::dry_run::local(&options, &source, &*ui);
    }
    let filter = Filter::new(&options.ignore).map_err(|e| RunError::Usage(e.to_string()))?;
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
    let status = Status::new(
        Role::Local,
        show(&source),
        Some(PathText::new(std::os::unix::ffi::OsStrExt::as_bytes(
            options.dst.as_os_str(),
        ))),
    );
    let outer = Arc::new(Outer::new(options.stop.clone(), status));
    match take_release(&options.state_dir) {
        Ok(Some(hold)) => outer.released(&hold),
        Ok(None) => {}
        Err(error) => return Err(RunError::Failed(anyhow::anyhow!("{}", chain(&error)))),
    }
    let mut mirror = Mirror {
        options,
        ui,
        outer,
        filter: Arc::new(filter),
        source,
        contradicted: 0,
        ever: false,
        lock: Some(lock),
        wanted: None,
    };
    mirror.run()
}

struct Mirror {
    options: MirrorOptions,
    ui: Arc<dyn Ui>,
    outer: Arc<Outer>,
    filter: Arc<Filter>,
    source: std::path::PathBuf,
    /// How often the log's records contradicted the copy's rows.
    contradicted: u32,
    /// A session has run: from now on the source may be gone without being a mistake of the caller.
    ever: bool,
    lock: Option<StateLock>,
    /// The root that the copy is of, when another one was found at the start.
    wanted: Option<Vec<u8>>,
}

impl Mirror {
    fn run(&mut self) -> Result<RunEnd, RunError> {
        reserve::give_up(&self.options.state_dir);
        let mut control = self.serve()?;
        let mut wait = Duration::from_millis(200);
        loop {
            let began = Instant::now();
            let end = match self.session() {
                Ok(end) => end,
                Err(error)
                    if self.ever || reserve::is_waited_for(&error, &self.options.state_dir) =>
                {
                    End::Retry(error.to_string())
                }
                Err(error) => return Err(error),
            };
            self.outer.close();
            match end {
                End::Arrived {
                    status,
                    extras,
                    began,
                } => {
                    told_arrival(&*self.ui, &status, extras, began);
                    return Ok(self.finish(RunEnd {
                        failed: status.failed_total,
                        fuzzy: status.counters.fuzzy,
                        extras,
                        held: None,
                        stopped: false,
                    }));
                }
                End::Stopped => {
                    return Ok(self.finish(RunEnd {
                        stopped: true,
                        ..RunEnd::default()
                    }));
                }
                End::Paused => {
                    self.ui.event(Event::Paused);
                    self.outer.set_state(State::Paused {
                        since: Stamp::now(),
                    });
                    self.persist();
                    let mut beat = Beat::default();
                    let rests = |want: &outer::Want| want.paused;
                    if self
                        .outer
                        .wait_while(rests, || beat.persist(|| self.persist()))
                    {
                        return Ok(self.finish(RunEnd {
                            stopped: true,
                            ..RunEnd::default()
                        }));
                    }
                    self.ui.event(Event::Resumed);
                }
                End::Held(mut hold) => {
                    self.hold(&mut hold);
                    if self.options.once {
                        return Ok(self.finish(RunEnd {
                            held: Some(hold),
                            ..RunEnd::default()
                        }));
                    }
                    if self.wait_held(&hold) {
                        return Ok(self.finish(RunEnd {
                            held: Some(hold),
                            stopped: true,
                            ..RunEnd::default()
                        }));
                    }
                    self.outer.set_state(State::Starting);
                    self.ui.event(Event::Released);
                }
                End::CopyLost(hold) => {
                    self.ui.event(Event::Held(hold.clone()));
                    // Lock, socket and status lie there too: all is let go.
                    drop(control);
                    self.lock = None;
                    if self.options.once {
                        return Ok(RunEnd {
                            held: Some(hold),
                            ..RunEnd::default()
                        });
                    }
                    loop {
                        pulse::beat();
                        if self.options.stop.wait(Duration::from_millis(500)) {
                            return Ok(RunEnd {
                                held: Some(hold),
                                stopped: true,
                                ..RunEnd::default()
                            });
                        }
                        if self.options.state_dir.join("config.toml").exists()
                            || self.options.state_dir.join("log").is_dir()
                        {
                            match StateLock::take(&self.options.state_dir) {
                                Ok(lock) => {
                                    self.lock = Some(lock);
                                    break;
                                }
                                Err(_) => continue,
                            }
                        }
                    }
                    control = self.serve()?;
                    self.ui.event(Event::Released);
                }
                End::Lost(reason) if !self.options.adopt => {
                    let line = lost::with_adopt(&reason, &self.options.state_dir);
                    self.outer.set_state(State::Failed { reason });
                    self.persist();
                    return Err(RunError::Failed(anyhow::anyhow!("{line}")));
                }
                End::Lost(reason) => {
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
                }
                End::Retry(reason) => {
                    if began.elapsed() > Duration::from_secs(60) {
                        wait = Duration::from_millis(200);
                    }
                    self.ui.event(Event::Notice(format!(
                        "{reason}; trying again in {:.1} s",
                        wait.as_secs_f64()
                    )));
                    self.outer.set_state(State::Failed {
                        reason: reason.clone(),
                    });
                    self.persist();
                    if self.options.once && wait > Duration::from_secs(2) {
                        return Err(RunError::Failed(anyhow::anyhow!(reason)));
                    }
                    if self.options.stop.wait(wait) {
                        return Ok(self.finish(RunEnd {
                            stopped: true,
                            ..RunEnd::default()
                        }));
                    }
                    wait = (wait * 2).min(Duration::from_secs(30));
                }
            }
        }
    }

    fn serve(&self) -> Result<Handle, RunError> {
        serve_told(&self.options.state_dir, self.outer.clone(), &*self.ui)
    }

    fn finish(&mut self, end: RunEnd) -> RunEnd {
        let mut status = self.outer.snapshot();
        if !matches!(status.state, State::Hold(_)) {
            status.state = State::Stopped;
        }
        let _ = persist_status(&self.options.state_dir, &status);
        end
    }

    fn persist(&self) {
        let _ = persist_status(&self.options.state_dir, &self.outer.snapshot());
    }

    fn hold(&self, hold: &mut Hold) {
        // Apply tells its own.
        let told = self.outer.snapshot().state == State::Hold(hold.clone());
        told_if_empty(hold, &self.source);
        let hold = hold.clone();
        if !told {
            self.ui.event(Event::Held(hold.clone()));
        }
        self.outer.set_state(State::Hold(hold));
        self.persist();
    }

    /// Waits until the reason is gone or an operator lets it go on. True: stop.
    fn wait_held(&self, hold: &Hold) -> bool {
        let mut last = Instant::now();
        let copy = inode(&self.options.dst);
        let mut beat = Beat::default();
        loop {
            pulse::beat();
            beat.persist(|| self.persist());
            let over = self
                .outer
                .wait_a_little(|want| want.released.is_some() || want.stop);
            if self.options.stop.requested() {
                return true;
            }
            if over {
                return self.outer.with(|want| want.stop);
            }
            match hold.reason {
                HoldReason::RootGone | HoldReason::RootCovered | HoldReason::RootReplaced => {
                    if last.elapsed() > Duration::from_millis(500) {
                        last = Instant::now();
                        // Opening it tells whether it is the same root; if not it holds again at once, quietly.
                        if self.root_is_back(hold.reason) {
                            return false;
                        }
                    }
                }
                HoldReason::CopyLost => {
                    // Whether it is the right one is seen when it is opened.
                    if inode(&self.options.dst) != copy {
                        return false;
                    }
                }
                HoldReason::RootEmpty => {
                    if last.elapsed() > Duration::from_millis(500) {
                        last = Instant::now();
                        if holds_something(&self.source) {
                            return false;
                        }
                    }
                }
                // Only a look at everything can tell.
                _ => {
                    if last.elapsed() > Duration::from_secs(60) {
                        return false;
                    }
                }
            }
        }
    }

    fn root_is_back(&self, reason: HoldReason) -> bool {
        let Ok(tree) = SourceTree::open_with(&self.source, &self.options.cross) else {
            return false;
        };
        match self.outer.roots() {
            Some(roots) => tree.is_same(&roots),
            // Not there when this process began: whether it is the right one is seen when it is opened.
            None => match &self.wanted {
                Some(wanted) => is_root(&tree, wanted),
                None => reason == HoldReason::RootGone,
            },
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
            Ok(End::Lost(text)) => Ok(End::Lost(place.typed(&text))),
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
        let disk = RealDisk::open(&place.state)
            .map_err(|e| failed("cannot open the state directory", &e))?;
        let source_index = place.state.join("source-index");
        let opening = Opening::start(&source_index, &index::Options::default());
        let rows = self.open_rows(place)?;
        let fresh = rows.mark().is_none();
        let held = holds_something(&place.dst);
        let begun = self.has_log(place);
        if !begun && let Some(reason) = lost::misfit(&rows, None) {
            return Ok(End::Lost(reason));
        }
        if fresh && held && !self.options.adopt && !begun {
            return Err(RunError::Usage(format!(
                "{} is not empty and is no mirror: give an empty DST, or --adopt to compare what it holds and copy only what differs",
                show(&self.options.dst)
            )));
        }
        let options = apply::Options {
            owners: match self.options.owners {
                Owners::Apply => apply::Owners::Apply,
                Owners::Record => apply::Owners::Record,
            },
            ..apply::Options::default()
        };
        let seeding = rows
            .meta_get(SEEDED_KEY)
            .map_err(|e| failed("cannot read the index", &e))?
            .is_none();
        let mut applier = match Applier::open(&place.dst, &place.state, rows, options) {
            Ok(applier) => applier,
            Err(ApplyError::Root { what, .. }) => {
                let what = place.lost_text(&what);
                return Ok(End::Held(hold(HoldReason::CopyLost, what)));
            }
            Err(error) => return Err(failed("cannot open DST", &error)),
        };
        place.opened();
        let adoption = self
            .adoption(&mut applier, fresh && held, place)
            .map_err(|e| failed("cannot use the index", &e))?;
        let adopting = adoption.is_some();
        let stop = self.options.stop.clone();
        let outer = self.outer.clone();
        let stopping: Arc<dyn Fn() -> bool + Send + Sync> =
            Arc::new(move || stop.requested() || outer.stopping.load(Ordering::Acquire));
        self.outer.stopping.store(false, Ordering::Release);
        let sink: Arc<dyn Sink> = if adopting {
            // What is equal must not be copied, so nothing is staged before it was compared.
            Arc::new(NoSink)
        } else {
            let staging = StagingSink::new(applier.staging(), stopping.clone());
            let staging: Arc<dyn Sink> = Arc::new(staging);
            // In a service a limit may come later.
            match self.options.bwlimit.get().is_some() || self.options.patient {
                true => {
                    let speed = self.options.bwlimit.clone();
                    let throttle = Arc::new(Throttle::new(speed, stopping));
                    self.outer.set_throttle(throttle.clone());
                    Arc::new(Limited::new(staging, throttle))
                }
                false => staging,
            }
        };
        let released = self.outer.take_released();
        let setup = SessionSetup {
            source: self.source.clone(),
            disk: Arc::new(disk),
            index: source_index,
            opening,
            index_options: index::Options::default(),
            log_options: LogOptions::default(),
            filter: self.filter.clone(),
            sink,
            detector: self.options.detector,
            listener: None,
            released,
            capture: CaptureOptions {
                cross: self.options.cross.clone(),
                ..CaptureOptions::default()
            },
        };
        let session = match Session::open(setup) {
            Ok(session) => session,
            Err(error) => return self.not_opened(error, self.ever || begun),
        };
        let of = Some((&session.reader, session.tree_id));
        if let Some(reason) = lost::misfit(applier.store(), of) {
            drop(applier);
            session.stop();
            return Ok(End::Lost(reason));
        }
        for notice in &session.notices {
            self.ui.event(Event::Notice(notice.clone()));
        }
        let contents = Arc::new(SourceContents::new(
            session.reader.content(),
            session.tree.clone(),
            session.index.clone(),
            session.orders.clone(),
        ));
        let apply = ApplyLoop::start(ApplySetup {
            applier,
            reader: session.reader.clone(),
            contents,
            holds_mass_change: self.options.holds_mass_change(),
            ui: self.ui.clone(),
            released: released == Some(HoldReason::MassChange),
            looking: released.is_some(),
            seeding,
            // Its own eyes saw it.
            enter: None,
            left_out: adopt::LeftOut::new(&self.options)?,
            verbose: self.options.output.verbose,
            bounds: self.options.bounds.clone(),
            dst: place.dst.clone(),
            state_dir: place.state.clone(),
            history: self
                .options
                .history
                .then(|| HistorySetup::new(&place.state, &self.options.keeping)),
            publishing: Publishing::of(&self.options),
            told: self.options.told.clone(),
        })
        .map_err(|e| failed("cannot start a thread", &e))?;
        let not_mirrored = below(&self.source, &self.options.cross);
        self.ui.event(Event::Started {
            detector: session.detector,
            why: crate::sync::lock(&session.why).clone(),
            not_mirrored: not_mirrored.clone(),
        });
        self.outer.open(Handles {
            orders: session.orders.clone(),
            apply_orders: apply.orders.clone(),
            index: session.index.clone(),
            tail: session.reader.tail(),
            shared: session.shared.clone(),
            applied: apply.applied.clone(),
            tree: session.tree.clone(),
            detector: session.detector,
            why: crate::sync::lock(&session.why).clone(),
            not_mirrored,
            dst: place.dst.clone(),
            adopted: Arc::new(AtomicBool::new(!adopting)),
        });
        self.ever = true;
        let end = self.follow(&session, &apply, place, adoption);
        pulse::rest();
        // What is staged and what waits for room must not keep the threads.
        self.outer.stopping.store(true, Ordering::Release);
        self.outer.close();
        let ended = session.stop();
        let told = apply.applied.clone();
        let applied = apply.stop();
        let end = end?;
        if let (End::Arrived { .. } | End::Stopped, Ended::Failed(reason)) = (&end, &ended) {
            return Ok(End::Retry(reason.clone()));
        }
        if matches!(end, End::Arrived { .. }) {
            // Held while it was being closed.
            if let Some(hold) = told.lock().hold.clone() {
                return Ok(End::Held(hold));
            }
            if let Ended::Held(alarm, _) = &ended {
                return Ok(End::Held(unexplained(alarm)));
            }
        }
        if let (End::Arrived { .. }, Err(reason)) = (&end, applied) {
            return Ok(End::Retry(reason));
        }
        Ok(end)
    }

    /// Whether the copy may hold what the source never had, and then whether somebody is asked before it moves aside.
    fn adoption(
        &self,
        applier: &mut Applier<Index>,
        found_full: bool,
        place: &Place,
    ) -> Result<Option<Ask>, IndexError> {
        let rows = applier.store_mut();
        if let Some(ask) = adopt::begun(rows)? {
            return Ok(Some(Ask(ask)));
        }
        if !found_full {
            return Ok(None);
        }
        // A copy whose index was lost is ours all the same.
        let ask = !self.has_log(place);
        adopt::begin(rows, ask)?;
        Ok(Some(Ask(ask)))
    }

    fn has_log(&self, place: &Place) -> bool {
        std::fs::read_dir(place.state.join("log")).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// The rows of the copy. Damaged ones are made again: from the log, or by comparing.
    fn open_rows(&self, place: &Place) -> Result<Index, RunError> {
        let path = place.state.join("index");
        let failed = |e: IndexError| RunError::Failed(anyhow::anyhow!("{}", chain(&e)));
        match Index::open(&path, index::Options::default()) {
            Ok((index, opened)) => {
                if opened.created && self.has_log(place) {
                    let text =
                        format!("the copy's index {} is gone: it is made again", show(&path));
                    self.ui.event(Event::Notice(text));
                }
                Ok(index)
            }
            Err(error) if error.is_rebuildable() => {
                let aside = move_aside(&path).map_err(failed)?;
                self.ui.event(Event::Notice(lost::rebuilt(&error, &aside)));
                Ok(Index::open(&path, index::Options::default())
                    .map_err(failed)?
                    .0)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// `begun`: there is a copy, which must not lose what is not there just now.
    fn not_opened(&mut self, error: SessionError, begun: bool) -> Result<End, RunError> {
        let hold = |reason, what: String| End::Held(hold(reason, what));
        match error {
            SessionError::OtherRoot { what, wanted } => {
                self.wanted = wanted;
                Ok(hold(HoldReason::RootReplaced, what))
            }
            SessionError::Tree(TreeError::Io {
                source: Errno::NOENT | Errno::NOTDIR,
                ref path,
                ..
            }) if self.ever => Ok(hold(
                HoldReason::RootGone,
                format!("{} is gone", show(path)),
            )),
            SessionError::NotCrossed(text) => Ok(hold(HoldReason::Unexplained, text)),
            SessionError::Tree(error @ TreeError::NotMounted { .. }) if begun => {
                Ok(hold(HoldReason::RootGone, error.to_string()))
            }
            SessionError::Tree(
                error @ (TreeError::NotMounted { .. } | TreeError::NotReached { .. }),
            ) => Err(RunError::Usage(error.to_string())),
            SessionError::Detector(text) => Err(RunError::Usage(text)),
            SessionError::Log(error) => match lost::lost_log(&error) {
                Some(reason) => Ok(End::Lost(reason)),
                None => Err(RunError::Failed(anyhow::anyhow!(
                    "{}",
                    lost::cannot_open(&error)
                ))),
            },
            error => Err(RunError::Failed(anyhow::anyhow!("{}", chain(&error)))),
        }
    }

    /// The session's main loop: watches over everything and shows it.
    fn follow(
        &mut self,
        session: &Session,
        apply: &ApplyLoop,
        place: &Place,
        adoption: Option<Ask>,
    ) -> Result<End, RunError> {
        let watch = mounts::Watch::new().ok();
        let mut first = First::Scanning;
        let began = Instant::now();
        let (mut last_saved, mut last_root) = (Instant::now(), Instant::now());
        loop {
            pulse::beat();
            self.nap(&first, session, apply);
            for text in std::mem::take(&mut session.shared.lock().notices) {
                self.ui.event(Event::Notice(text));
            }
            if self.options.stop.requested() || self.outer.with(|want| want.stop) {
                return Ok(End::Stopped);
            }
            if self.outer.with(|want| want.paused) {
                return Ok(End::Paused);
            }
            let moved = watch.as_ref().is_none_or(|watch| {
                watch
                    .changed(Some(&rustix::event::Timespec::default()))
                    .unwrap_or(true)
            });
            if moved || last_root.elapsed() > Duration::from_secs(1) {
                last_root = Instant::now();
                if !place.still_there() {
                    let what = format!("{} is gone or covered", show(&self.options.state_dir));
                    return Ok(End::CopyLost(hold(HoldReason::CopyLost, what)));
                }
                if let Some(what) = place.dst_lost() {
                    return Ok(End::Held(hold(HoldReason::CopyLost, what)));
                }
                if let Some((reason, what)) = session.tree.lost() {
                    return Ok(End::Held(hold(reason, what)));
                }
            }
            if let Some(ended) = session.ended() {
                return Ok(match ended {
                    Ended::Held(alarm, _) => End::Held(unexplained(&alarm)),
                    Ended::Failed(reason) => End::Retry(reason),
                    Ended::Stopped => End::Retry("capture stopped by itself".into()),
                });
            }
            if !apply.is_running() {
                let (reason, misfit) = apply.why_ended();
                if misfit {
                    self.contradicted += 1;
                }
                // What is opened anew may heal it; only to begin anew without these rows is left then.
                if misfit && self.contradicted == 2 {
                    return Ok(End::Lost(reason));
                }
                return Ok(End::Retry(format!("apply stopped: {reason}")));
            }
            let moved = apply.applied.lock().counts.moved_aside;
            self.outer.aside.look(&place.state, moved);
            self.outer.refresh();
            if let Some(end) = self.first(&mut first, session, apply, began, adoption)? {
                return Ok(end);
            }
            if last_saved.elapsed() > Duration::from_secs(2) {
                last_saved = Instant::now();
                self.persist();
                if matches!(first, First::Following { .. }) {
                    reserve::take(&place.state);
                }
            }
        }
    }

    /// Until something may have changed, but not for long.
    fn nap(&self, first: &First, session: &Session, apply: &ApplyLoop) {
        const NAP: Duration = Duration::from_millis(10);
        match first {
            First::Scanning => session.shared.wait_scanned(NAP),
            First::Barrier(answer, _) => {
                let mut select = Select::new();
                select.recv(answer);
                let _ = select.ready_timeout(NAP);
            }
            First::Applying(barrier, _) => {
                let state = apply.applied.lock();
                if state.hold.is_some() || state.applied < barrier.position {
                    drop(apply.applied.wait(state, NAP));
                }
            }
            First::Following { .. } => {
                self.options.stop.wait(10 * NAP);
            }
        }
    }

    /// What is in the log by now went through the guard, too: a short while is spent on that at the end of a run.
    fn judged(&self, session: &Session, apply: &ApplyLoop) {
        let end = session.reader.tail().durable().map(|end| end.position);
        let until = Instant::now() + JUDGED_WITHIN;
        let mut state = apply.applied.lock();
        while state.applied < end
            && state.hold.is_none()
            && state.ended.is_none()
            && Instant::now() < until
            && !self.options.stop.requested()
        {
            state = apply.applied.wait(state, Duration::from_millis(50));
        }
    }

    /// From the first scan to the first time the copy is equal.
    fn first(
        &self,
        first: &mut First,
        session: &Session,
        apply: &ApplyLoop,
        began: Instant,
        adoption: Option<Ask>,
    ) -> Result<Option<End>, RunError> {
        match first {
            First::Scanning => {
                let (scans, scan) = {
                    let status = session.shared.lock();
                    (
                        status.scans,
                        status.scan.as_ref().map(|(seen, _)| seen.clone()),
                    )
                };
                if let Some(seen) = scan {
                    let copied = seen.read_files.load(Ordering::Relaxed);
                    let (files, bytes) = (
                        seen.entries.load(Ordering::Relaxed),
                        seen.read_bytes.load(Ordering::Relaxed),
                    );
                    let known = session
                        .index
                        .read()
                        .unwrap_or_else(PoisonError::into_inner)
                        .stats();
                    let comparing = copied == 0;
                    self.ui.event(Event::Progress(Progress {
                        files,
                        files_total: (known.entries > files).then_some(known.entries),
                        bytes: if comparing {
                            seen.bytes.load(Ordering::Relaxed)
                        } else {
                            bytes
                        },
                        bytes_total: None,
                        comparing,
                    }));
                }
                if scans > 0 {
                    *first = First::Barrier(session.barrier(), 0);
                }
            }
            First::Barrier(answer, rounds) => {
                if let Ok(barrier) = answer.try_recv() {
                    // What waits for more to come need not.
                    let _ = apply.orders.send(ApplyOrder::Wake);
                    *first = First::Applying(barrier, *rounds);
                }
            }
            First::Applying(barrier, rounds) => {
                let (applied, failed, held) = {
                    let state = apply.applied.lock();
                    (state.applied, state.failed_total, state.hold.clone())
                };
                if let Some(hold) = held {
                    if self.options.once {
                        return Ok(Some(End::Held(hold)));
                    }
                    return Ok(None);
                }
                if barrier
                    .position
                    .is_none_or(|wanted| applied >= Some(wanted))
                {
                    let until = Until {
                        at: Some(Instant::now() + Duration::from_secs(10)),
                        gone: &|| self.options.stop.requested(),
                    };
                    // What the source was asked about is in the log at the next barrier.
                    if failed > 0 && *rounds < ROUNDS_MAX && try_again(&apply.orders, &until) {
                        *rounds += 1;
                        *first = First::Barrier(session.barrier(), *rounds);
                        return Ok(None);
                    }
                    let extras = match adoption {
                        Some(Ask(ask)) => adopt::settle(apply, &*self.ui, &self.options, ask)?,
                        None => Extras::None,
                    };
                    self.outer.adopted();
                    let (done, answer) = crossbeam_channel::bounded(1);
                    let _ = apply.orders.send(ApplyOrder::Seeded(done));
                    match answer.recv_timeout(Duration::from_secs(600)) {
                        Ok(Ok(())) => {}
                        Ok(Err(text)) => return Ok(Some(End::Retry(text))),
                        Err(_) => {
                            let text = "the copy could not be made durable".into();
                            return Ok(Some(End::Retry(text)));
                        }
                    }
                    let left = match extras {
                        Extras::None => 0,
                        Extras::Left(left) => left,
                    };
                    let ends = self.options.once || left > 0;
                    if ends {
                        self.judged(session, apply);
                    }
                    // It may have come meanwhile. While it stands nothing is called equal.
                    let held = apply.applied.lock().hold.clone();
                    if let Some(hold) = held {
                        return Ok(ends.then_some(End::Held(hold)));
                    }
                    let status = self.outer.arrived(left);
                    reserve::take(&self.options.state_dir);
                    if ends {
                        return Ok(Some(End::Arrived {
                            status: Box::new(status),
                            extras: left,
                            began,
                        }));
                    }
                    let equal = told_arrival(&*self.ui, &status, left, began);
                    if let Some(every) = self.options.verify_every {
                        let _ = apply.orders.send(ApplyOrder::Roll(every));
                    }
                    *first = First::Following { equal };
                }
            }
            First::Following { equal } => {
                let status = self.outer.refresh();
                if !*equal && status.equal_at.is_some() {
                    *equal = told_arrival(&*self.ui, &status, 0, began);
                }
                self.ui.event(Event::Live {
                    lag: status.lag,
                    last_change: status.last_change,
                    failures: status.failed_total,
                    fuzzy: status.counters.fuzzy,
                });
            }
        }
        Ok(None)
    }
}

enum First {
    Scanning,
    /// With the rounds that went by because something failed.
    Barrier(Receiver<Barrier>, u32),
    Applying(Barrier, u32),
    /// `equal`: that it is, was told.
    Following {
        equal: bool,
    },
}

fn unexplained(alarm: &Alarm) -> Hold {
    hold_of(
        alarm,
        HoldReason::Unexplained,
        "are gone, and no event says why",
    )
}

/// How long a run that is done waits for what came while it went on.
pub const JUDGED_WITHIN: Duration = Duration::from_secs(5);

/// Rounds that wait for what failed at first.
const ROUNDS_MAX: u32 = 3;

/// An adopted copy's extras move aside; true: after a yes.
#[derive(Clone, Copy)]
struct Ask(bool);

/// All that was there at the start is done: says whether the copy is equal, and if not, what is not. True: it is.
/// Lets other commands in; where the socket has no file, that is told.
pub fn serve_told(
    state_dir: &Path,
    control: Arc<dyn Control>,
    ui: &dyn Ui,
) -> Result<Handle, RunError> {
    let handle = serve(state_dir, control).map_err(|e| {
        RunError::Failed(anyhow::anyhow!(
            "cannot open the control socket in {}: {e}",
            show(state_dir)
        ))
    })?;
    if let Some(e) = &handle.without_a_file {
        ui.event(Event::Notice(format!(
            "no file for the control socket in {}: {e}; commands find it without",
            show(state_dir)
        )));
    }
    Ok(handle)
}

pub fn told_arrival(ui: &dyn Ui, status: &Status, extras: u64, began: Instant) -> bool {
    const NAMED_MAX: usize = 10;
    let seconds = began.elapsed().as_secs_f64();
    let (entries, files, bytes) = (status.entries, status.files, status.bytes);
    let fuzzy = status.counters.fuzzy;
    let equal = status.failed_total == 0 && fuzzy == 0 && extras == 0;
    ui.event(if equal {
        Event::Equal {
            entries,
            files,
            bytes,
            seconds,
        }
    } else {
        Event::Incomplete(Box::new(Incomplete {
            entries,
            files,
            bytes,
            seconds,
            failed: status.failed.iter().take(NAMED_MAX).cloned().collect(),
            failed_total: status.failed_total,
            fuzzy,
            extras,
        }))
    });
    equal
}

/// Who lets another root be taken for the source should know what is in it.
pub fn told_if_empty(hold: &mut Hold, source: &Path) {
    if hold.reason.is_another_root() && !holds_something(source) {
        hold.what.push_str("; what is there now is empty");
    }
}

pub fn holds_something(dst: &Path) -> bool {
    std::fs::read_dir(dst).is_ok_and(|mut entries| entries.next().is_some())
}

/// Mount points below the source that are not crossed: what lies in them is not mirrored.
pub fn below(source: &Path, cross: &[std::path::PathBuf]) -> Vec<PathText> {
    use std::os::unix::ffi::OsStrExt;
    let Ok(table) = mounts::read() else {
        return Vec::new();
    };
    let crossed: Vec<_> = cross.iter().map(|path| source.join(path)).collect();
    mounts::below(&table, source.as_os_str().as_bytes())
        .filter(|mount| {
            !crossed
                .iter()
                .any(|path| path.as_os_str().as_bytes() == mount.at)
        })
        .map(|mount| PathText::new(&mount.at))
        .collect()
}
