//! What the other commands see of a mirror on one host, session or no session.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use mirror_core::Position;

use crate::capture::sink::Throttle;
use crate::capture::state::{Barrier, Order, Shared};
use crate::capture::tree::{RootId, SourceTree};
use crate::engine::applying::{
    AGAIN_ROUNDS, Applied, ApplyOrder, ApplyOrders, going, past, try_again,
};
use crate::engine::aside;
use crate::engine::control::{
    Against, Control, ControlError, ReleaseReport, Stop, Until, VerifyEnd, VerifyLine,
    VerifyOptions, WaitReport,
};
use crate::engine::options::Detector;
use crate::engine::service::pulse;
use crate::engine::session::now_ns;
use crate::engine::status::{
    Alarmed, DetectorStatus, FAILED_MAX, Failed, Hold, HoldReason, Lag, PathText, Positions, Space,
    Stamp, State, Status,
};
use crate::engine::verify;
use crate::history::ask::{Answer, Ask};
use crate::index::Index;
use crate::log::Tail;
use crate::sync::lock;

/// Nothing is held, but perhaps an alarm waits for a person.
pub fn released_alarm(
    alarm: Option<Alarmed>,
    orders: Option<ApplyOrders>,
    yes: bool,
) -> ReleaseReport {
    let Some(alarm) = alarm else {
        return ReleaseReport::default();
    };
    let released = yes && orders.is_some_and(|orders| orders.send(ApplyOrder::Release).is_ok());
    ReleaseReport {
        hold: Some(hold(HoldReason::MassChange, alarm.what)),
        released,
        ..ReleaseReport::default()
    }
}

/// How long a release waits for the loops to go on.
pub const RELEASED_WITHIN: Duration = Duration::from_secs(5);

/// The running session.
#[derive(Clone)]
pub struct Handles {
    pub orders: Sender<Order>,
    pub apply_orders: ApplyOrders,
    pub index: Arc<RwLock<Index>>,
    pub tail: Tail,
    pub shared: Arc<Shared>,
    pub applied: Arc<Applied>,
    pub tree: Arc<SourceTree>,
    pub detector: Detector,
    pub why: String,
    pub not_mirrored: Vec<PathText>,
    pub dst: PathBuf,
    /// What an adopted copy held and the source does not is out of the way.
    pub adopted: Arc<AtomicBool>,
}

/// What was asked for.
#[derive(Default)]
pub struct Want {
    pub paused: bool,
    /// What an operator let go on.
    pub released: Option<HoldReason>,
    pub stop: bool,
}

pub struct Outer {
    stop: Stop,
    want: Mutex<Want>,
    changed: Condvar,
    handles: Mutex<Option<Handles>>,
    status: Mutex<Status>,
    roots: Mutex<Option<Vec<RootId>>>,
    /// The first copy or comparison is done, but perhaps for what failed.
    arrived: AtomicBool,
    /// What lies in `adopted/`.
    pub aside: aside::Watch,
    /// The session is being closed: nothing may wait for room.
    pub stopping: AtomicBool,
    /// What keeps the session's limit.
    throttle: Mutex<Option<Arc<Throttle>>>,
}

impl Outer {
    pub fn new(stop: Stop, status: Status) -> Outer {
        Outer {
            stop,
            want: Mutex::default(),
            changed: Condvar::new(),
            handles: Mutex::new(None),
            status: Mutex::new(status),
            roots: Mutex::new(None),
            arrived: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            throttle: Mutex::default(),
            aside: aside::Watch::default(),
        }
    }

    pub fn set_throttle(&self, throttle: Arc<Throttle>) {
        *lock(&self.throttle) = Some(throttle);
    }

    pub fn with<T>(&self, ask: impl FnOnce(&Want) -> T) -> T {
        ask(&lock(&self.want))
    }

    fn order(&self, change: impl FnOnce(&mut Want)) {
        change(&mut lock(&self.want));
        self.changed.notify_all();
    }

    /// Waits while this holds. True: stop.
    pub fn wait_while(&self, holds: impl Fn(&Want) -> bool, mut meanwhile: impl FnMut()) -> bool {
        let mut want = lock(&self.want);
        loop {
            drop(want);
            pulse::beat();
            meanwhile();
            want = lock(&self.want);
            if want.stop || self.stop.requested() {
                return true;
            }
            if !holds(&want) {
                return false;
            }
            want = self
                .changed
                .wait_timeout(want, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits a moment for this to come true.
    pub fn wait_a_little(&self, until: impl Fn(&Want) -> bool) -> bool {
        let want = lock(&self.want);
        if until(&want) {
            return true;
        }
        let want = self
            .changed
            .wait_timeout(want, Duration::from_millis(100))
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        until(&want)
    }

    /// Released while no process ran.
    pub fn released(&self, hold: &Hold) {
        self.order(|want| want.released = Some(hold.reason));
    }

    pub fn take_released(&self) -> Option<HoldReason> {
        lock(&self.want).released.take()
    }

    pub fn open(&self, handles: Handles) {
        *lock(&self.roots) = Some(handles.tree.ids());
        *lock(&self.handles) = Some(handles);
        self.refresh();
    }

    pub fn close(&self) {
        self.refresh();
        *lock(&self.handles) = None;
        self.changed.notify_all();
    }

    /// Of the tree that was followed last: the root's and those of crossed mounts.
    pub fn roots(&self) -> Option<Vec<RootId>> {
        lock(&self.roots).clone()
    }

    pub fn set_state(&self, state: State) {
        let mut status = lock(&self.status);
        status.state = state;
        status.now = Stamp::now();
    }

    /// Nothing of what an adopted copy held is in the way any more, or a person wants it left.
    pub fn adopted(&self) {
        if let Some(handles) = self.handles() {
            handles.adopted.store(true, Ordering::Release);
        }
    }

    /// The first copy is done. What failed keeps it from being equal, and so does what an adopted copy holds besides.
    pub fn arrived(&self, extras: u64) -> Status {
        self.arrived.store(extras == 0, Ordering::Release);
        let mut status = self.refresh();
        if extras == 0 && status.failed_total == 0 && status.counters.fuzzy == 0 {
            // As of a moment after the start; what came since is on its way.
            status.equal_at = Some(Stamp::now());
            lock(&self.status).equal_at = status.equal_at;
        }
        status
    }

    pub fn snapshot(&self) -> Status {
        let mut status = lock(&self.status).clone();
        status.now = Stamp::now();
        status
    }

    fn handles(&self) -> Option<Handles> {
        lock(&self.handles).clone()
    }

    /// Brings the status up to date from the running session.
    pub fn refresh(&self) -> Status {
        let Some(handles) = self.handles() else {
            return self.snapshot();
        };
        let end = handles.tail.durable();
        let appended = handles.tail.appended();
        let applied = handles.applied.lock().clone();
        let mut capture = handles.shared.lock();
        capture.needed = applied.saved;
        let mut status = lock(&self.status);
        status.now = Stamp::now();
        status.alarm.clone_from(&applied.alarm);
        status.detector = Some(DetectorStatus {
            uses: handles.detector,
            why: handles.why.clone(),
        });
        status.positions = Positions {
            received: appended.map(|end| end.position),
            durable: end.map(|end| end.position),
            applied: applied.applied,
        };
        let behind = match (end, applied.applied) {
            (Some(end), Some(applied)) => end.position.sequence.saturating_sub(applied.sequence),
            (Some(end), None) => end.position.sequence,
            _ => 0,
        };
        let seconds = match applied.waiting_since_ns {
            Some(since) if behind > 0 => now_ns().saturating_sub(since) as f64 / 1e9,
            _ => 0.0,
        };
        let unread = capture
            .behind_since_ns
            .map_or(0.0, |since| now_ns().saturating_sub(since) as f64 / 1e9);
        status.lag = Lag {
            seconds: unread.max(seconds),
            records: behind,
            bytes: 0,
        };
        status.held_to = lock(&self.throttle)
            .as_ref()
            .and_then(|throttle| throttle.held_to());
        if capture.last_change.is_some() {
            status.last_change = capture.last_change.clone();
        }
        if capture.entries > 0 || capture.scans > 0 {
            (status.entries, status.files, status.bytes) =
                (capture.entries, capture.files, capture.bytes);
        }
        let counters = &mut status.counters;
        counters.overflows = capture.overflows;
        counters.scan_corrections = capture.corrections;
        counters.torn_reads = capture.torn;
        counters.proven = capture.proven;
        counters.unwatched = capture.unwatched;
        counters.fuzzy = capture.fuzzy.len() as u64;
        counters.adopted = applied.counts.adopted;
        counters.moved_aside = applied.counts.moved_aside;
        counters.repaired = applied.repaired;
        counters.records = end.map_or(0, |end| end.position.sequence);
        let mut failed: Vec<Failed> = capture
            .failed
            .iter()
            .chain(&applied.failed)
            .chain(&applied.differing.listed)
            .cloned()
            .collect();
        failed.sort_by_key(|failed| failed.since);
        failed.truncate(FAILED_MAX);
        status.failed = failed;
        status.failed_total = capture.failed_total + applied.failed_total + applied.differing.total;
        let mut not_mirrored = handles.not_mirrored.clone();
        for path in &capture.foreign {
            if !not_mirrored
                .iter()
                .any(|known| known.as_str().ends_with(path.as_str()))
            {
                not_mirrored.push(path.clone());
            }
        }
        status.not_mirrored = not_mirrored;
        let recorded = &applied.recorded;
        status.recorded = [
            ("owners", recorded.owners),
            ("setid", recorded.setid),
            ("devices", recorded.devices),
            ("xattrs", recorded.xattrs),
            ("labels", recorded.labels),
            ("flags", recorded.flags),
            ("projects", recorded.projects),
            ("times", recorded.times),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| (what.to_string(), count))
        .collect();
        status.space = space(&handles.dst);
        status.aside = self.aside.known();
        status.rolling = applied.rolling;
        status.history = applied.history;
        let arrived = self.arrived.load(Ordering::Acquire);
        let well = status.failed_total == 0 && status.counters.fuzzy == 0;
        if arrived && well && behind == 0 && status.equal_at.is_none() {
            status.equal_at = Some(status.now);
        }
        status.state = match (&applied.hold, &capture.scan) {
            (Some(hold), _) => State::Hold(hold.clone()),
            (None, _) if applied.waits.is_some() => State::Failed {
                reason: applied.waits.clone().unwrap_or_default(),
            },
            (None, Some((seen, began))) if !arrived => {
                let files = seen.entries.load(Ordering::Relaxed);
                let bytes = seen.read_bytes.load(Ordering::Relaxed);
                let seconds = began.elapsed().as_secs_f64().max(0.001);
                State::Seeding {
                    files,
                    files_total: None,
                    bytes,
                    bytes_total: None,
                    bytes_per_s: (bytes as f64 / seconds) as u64,
                    eta_s: None,
                }
            }
            (None, None) if !arrived => State::Seeding {
                files: capture.files,
                files_total: Some(capture.files),
                bytes: capture.bytes,
                bytes_total: Some(capture.bytes),
                bytes_per_s: 0,
                eta_s: None,
            },
            _ => State::Following,
        };
        status.clone()
    }

    fn session(&self) -> Result<Handles, ControlError> {
        if let Some(handles) = self.handles() {
            return Ok(handles);
        }
        match lock(&self.status).state.clone() {
            State::Hold(hold) => Err(ControlError::Held(hold.what)),
            State::Paused { .. } => Err(ControlError::Busy(
                "the mirror is paused: `fs_mirror resume` lets it go on".into(),
            )),
            _ => Err(ControlError::Busy("the mirror is starting".into())),
        }
    }

    fn wait_applied(
        &self,
        wanted: Option<Position>,
        until: &Until<'_>,
    ) -> Result<(), ControlError> {
        loop {
            let handles = self.session()?;
            let state = handles.applied.lock();
            if let Some(hold) = &state.hold {
                return Err(ControlError::Held(hold.what.clone()));
            }
            if wanted.is_none_or(|wanted| state.applied >= Some(wanted)) {
                return Ok(());
            }
            if until.over() {
                let have = state
                    .applied
                    .map_or("nothing".to_string(), |position| position.to_string());
                let want = wanted.map_or(String::new(), |position| position.to_string());
                return Err(ControlError::Timeout(format!(
                    "applied {have}, waiting for {want}"
                )));
            }
            drop(
                handles
                    .applied
                    .wait(state, until.nap().min(Duration::from_millis(50))),
            );
        }
    }

    /// What happened in the tree before now is in the log.
    fn barrier(&self, handles: &Handles, until: &Until<'_>) -> Result<Barrier, ControlError> {
        let (answer, asked) = bounded(1);
        let _ = handles.orders.send(Order::Barrier(answer));
        loop {
            match asked.recv_timeout(until.nap()) {
                Ok(barrier) => return Ok(barrier),
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {
                    return match self.session() {
                        Err(ControlError::Held(what)) => Err(ControlError::Held(what)),
                        _ => Err(ControlError::Busy("the mirror is restarting".into())),
                    };
                }
                Err(crossbeam_channel::RecvTimeoutError::Timeout) if until.over() => {
                    return Err(ControlError::Timeout(
                        "what was written before is not all in the log yet".into(),
                    ));
                }
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Rows and tree of the copy durable.
    fn checkpoint(&self, until: &Until<'_>) -> Result<(), ControlError> {
        let handles = self.session()?;
        let (done, answer) = bounded(1);
        let _ = handles.apply_orders.send(ApplyOrder::Checkpoint(done));
        loop {
            match answer.recv_timeout(until.nap()) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(text)) => return Err(ControlError::Failed(text)),
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {
                    return Err(ControlError::Busy("the mirror is restarting".into()));
                }
                Err(crossbeam_channel::RecvTimeoutError::Timeout) if until.over() => {
                    return Err(ControlError::Timeout("saving the copy's index".into()));
                }
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn report(&self, fuzzy: Vec<PathText>, fuzzy_total: u64) -> WaitReport {
        let status = self.refresh();
        WaitReport {
            positions: status.positions,
            failed: status.failed,
            failed_total: status.failed_total,
            fuzzy,
            fuzzy_total,
            ..WaitReport::default()
        }
    }
}

pub fn space(path: &std::path::Path) -> Option<Space> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(Space {
        bytes_free: found.f_bavail.saturating_mul(found.f_frsize),
        bytes_total: found.f_blocks.saturating_mul(found.f_frsize),
        inodes_free: found.f_favail,
        inodes_total: found.f_files,
    })
}

impl Control for Outer {
    fn status(&self) -> Status {
        self.refresh()
    }

    fn wait_idle(&self, until: &Until<'_>) -> Result<WaitReport, ControlError> {
        // A mirror that is just starting has a session soon.
        let handles = loop {
            match self.session() {
                Err(ControlError::Busy(text))
                    if !until.over() && !self.with(|want| want.paused) =>
                {
                    let _ = text;
                    std::thread::sleep(until.nap().min(Duration::from_millis(20)));
                }
                other => break other?,
            }
        };
        let mut rounds = 0;
        let barrier = loop {
            let barrier = self.barrier(&handles, until)?;
            self.wait_applied(barrier.position, until)?;
            // What failed is tried again; what the source was asked about is in the log at the next barrier.
            let failed = handles.applied.lock().failed_total;
            if failed == 0 || rounds == AGAIN_ROUNDS || !try_again(&handles.apply_orders, until) {
                break barrier;
            }
            rounds += 1;
        };
        while !handles.adopted.load(Ordering::Acquire) {
            self.wait_applied(barrier.position, until)?;
            if until.over() {
                let what = "what the source does not have is being moved aside";
                return Err(ControlError::Timeout(what.into()));
            }
            std::thread::sleep(until.nap().min(Duration::from_millis(10)));
        }
        self.checkpoint(until)?;
        Ok(self.report(barrier.fuzzy, barrier.fuzzy_total))
    }

    fn wait_position(
        &self,
        position: Position,
        until: &Until<'_>,
    ) -> Result<WaitReport, ControlError> {
        self.wait_applied(Some(position), until)?;
        let fuzzy = self
            .session()?
            .shared
            .lock()
            .fuzzy
            .values()
            .cloned()
            .collect::<Vec<_>>();
        let total = fuzzy.len() as u64;
        Ok(self.report(fuzzy, total))
    }

    fn past(&self, ask: Ask) -> Result<Answer, ControlError> {
        past(&self.session()?.apply_orders, ask)
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.order(|want| want.paused = true);
        // Done when nothing is open any more.
        for _ in 0..300 {
            if self.handles().is_none()
                && matches!(
                    lock(&self.status).state,
                    State::Paused { .. } | State::Hold(_)
                )
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(ControlError::Timeout(
            "the mirror did not come to rest within 30 s".into(),
        ))
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.order(|want| want.paused = false);
        Ok(())
    }

    fn release(&self, yes: bool) -> Result<ReleaseReport, ControlError> {
        let status = self.refresh();
        let State::Hold(hold) = status.state else {
            let handles = self.handles();
            return Ok(released_alarm(
                status.alarm,
                handles.map(|handles| handles.apply_orders),
                yes,
            ));
        };
        let mut report = ReleaseReport {
            gone: hold.gone.unwrap_or(0),
            hold: Some(hold.clone()),
            released: yes,
            ..ReleaseReport::default()
        };
        let handles = self
            .handles()
            .filter(|_| hold.reason == HoldReason::MassChange);
        if let Some(going) = handles.as_ref().and_then(|h| going(&h.apply_orders)) {
            report.add(going);
        }
        if !yes || !hold.reason.can_be_released() {
            report.released = false;
            return Ok(report);
        }
        // Whoever asks next must not find it held any more.
        match handles {
            Some(handles) => {
                let _ = handles.apply_orders.send(ApplyOrder::Release);
                handles.applied.wait_released(RELEASED_WITHIN);
                self.refresh();
            }
            None => {
                self.order(|want| want.released = Some(hold.reason));
                let until = Instant::now() + RELEASED_WITHIN;
                while matches!(lock(&self.status).state, State::Hold(_)) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        Ok(report)
    }

    fn verify(
        &self,
        options: VerifyOptions,
        line: &mut dyn FnMut(VerifyLine) -> bool,
    ) -> Result<VerifyEnd, ControlError> {
        let forever = Until {
            at: None,
            gone: &|| false,
        };
        // What waits, or is held, does not matter to a comparison of the copy with its own index.
        if options.against == Against::Source {
            self.wait_idle(&forever)?;
        }
        let handles = self.session()?;
        let mut end = VerifyEnd::default();
        if options.against == Against::Source {
            let source = verify::SourceOf {
                tree: handles.tree.clone(),
                index: handles.index.clone(),
                shared: handles.shared.clone(),
                orders: handles.orders.clone(),
                settled: &|| self.wait_idle(&forever).map(drop),
            };
            verify::source(&source, options.repair, line, &mut end)?;
        }
        verify::copy(&handles.apply_orders, options.repair, line, &mut end)?;
        let stats = handles
            .index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .stats();
        (end.entries, end.bytes) = (stats.entries, stats.bytes);
        Ok(end)
    }

    fn stop(&self) {
        self.order(|want| want.stop = true);
    }
}

/// So that a hold made elsewhere reads alike.
pub fn hold(reason: HoldReason, what: String) -> Hold {
    Hold {
        reason,
        since: Stamp::now(),
        what,
        gone: None,
        of: None,
        below: None,
    }
}
