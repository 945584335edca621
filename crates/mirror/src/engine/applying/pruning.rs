//! Letting old versions go while a mirror runs: a pass every few minutes in a thread of its own, and at once when room is
//! short. Apply only ends a pass: it removes what the pass emptied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use mirror_core::history::Moment;
use mirror_core::history::retention::{Lock, MirrorTime};

use super::{HistorySetup, Running, chain};
use crate::engine::event::Event;
use crate::engine::local::outer::space;
use crate::engine::status::{HistoryStatus, Stamp};
use crate::history::ask::Answer;
use crate::history::prune::{Orders, Pruner, Report};
use crate::history::rotation_is_held;
use crate::history::tree::PastError;
use crate::sys::sched;

/// Between the end of a pass and the next, at least; and so many times as long as it took.
const EVERY: Duration = Duration::from_secs(300);
const REST_TIMES: u32 = 20;
/// The first one, after a start.
const FIRST_AFTER: Duration = Duration::from_secs(20);
/// How often it is looked whether room is short, and how soon after a pass another one is of use.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const SHORT_AGAIN: Duration = Duration::from_secs(10);

pub(super) struct Pruning {
    next: Instant,
    look: Instant,
    ended: Option<Instant>,
    pass: Option<Pass>,
    /// Passes that ended, and how the last one did.
    passes: u64,
    last: Result<Report, String>,
    /// What was told of want of room.
    told_short: bool,
}

struct Pass {
    stop: Arc<AtomicBool>,
    done: Receiver<Result<Report, String>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Default for Pruning {
    fn default() -> Pruning {
        let now = Instant::now();
        Pruning {
            next: now + FIRST_AFTER,
            look: now,
            ended: None,
            pass: None,
            passes: 0,
            last: Ok(Report::default()),
            told_short: false,
        }
    }
}

impl Running {
    /// Looked at between batches, and while one waits.
    pub(super) fn prune(&mut self) {
        if self.applier.history().is_none() || self.history.is_none() {
            return;
        }
        if let Some(pass) = &self.pruning.pass {
            let report = match pass.done.try_recv() {
                Ok(report) => report,
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => Err("the pass broke off".into()),
            };
            self.pruning.pass = None;
            self.pruned(report);
        }
        let now = Instant::now();
        let held = self.applier.history().and_then(rotation_is_held);
        // While an alarm is looked at nothing goes but for want of room.
        if (now >= self.pruning.next && held.is_none()) || self.is_short(now) {
            self.begin_pruning(false);
        }
    }

    /// The file system has less free than is to stay free, and a pass may help.
    fn is_short(&mut self, now: Instant) -> bool {
        let waits = self
            .pruning
            .ended
            .is_some_and(|ended| now < ended + SHORT_AGAIN);
        if waits || now < self.pruning.look {
            return false;
        }
        self.pruning.look = now + LOOK_EVERY;
        let (Some(setup), Some(space)) = (&self.history, space(&self.dst)) else {
            return false;
        };
        space.bytes_free < setup.keeping.budget_of(space.bytes_total).free_bytes_min
    }

    fn begin_pruning(&mut self, force: bool) {
        let (Some(setup), Some(saved)) = (&self.history, self.saved()) else {
            return;
        };
        let HistorySetup {
            state_dir,
            keeping,
            zones,
        } = setup.clone();
        let Some(history) = self.applier.history_mut() else {
            return;
        };
        let now = MirrorTime::of_ns(history.now_ns());
        let told = history.clock.told();
        let eras = history.events.policies();
        let dst = self.dst.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (tell, done) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("prune".into())
            .spawn(move || {
                sched::stand_back();
                let space = || space(&dst).map(|space| (space.bytes_total, space.bytes_free));
                let total = space().map_or(0, |space| space.0);
                let orders = Orders {
                    eras,
                    budget: keeping.budget_of(total),
                    now,
                    until: saved,
                    force,
                    dry_run: false,
                };
                let go_on = || !stopped.load(Ordering::Acquire);
                let pruned = Pruner::open(&state_dir, zones)
                    .and_then(|mut pruner| pruner.run(&orders, &space, &go_on, &mut |_| {}));
                let _ = tell.send(pruned.map_err(|e| chain(&e)));
            });
        if let Some(text) = told {
            self.ui.event(Event::Notice(text));
        }
        match thread {
            Ok(thread) => {
                self.pruning.pass = Some(Pass {
                    stop,
                    done,
                    thread: Some(thread),
                });
            }
            Err(e) => self.pruned(Err(format!("cannot start a thread: {e}"))),
        }
    }

    /// Rows up to here are durable.
    fn saved(&self) -> Option<Moment> {
        let saved = self.applied.lock().saved;
        saved.map(Moment::of).or(self.saved_at_start)
    }

    fn pruned(&mut self, report: Result<Report, String>) {
        let now = Instant::now();
        self.pruning.ended = Some(now);
        self.pruning.passes += 1;
        let took = report.as_ref().map_or(Duration::ZERO, |report| {
            Duration::from_millis(report.took_ms)
        });
        self.pruning.next = now + EVERY.max(took * REST_TIMES);
        let report = report.and_then(|report| {
            let Some(history) = self.applier.history_mut() else {
                return Ok(report);
            };
            let settled = report.settle(history);
            settled.map(|_| report).map_err(|e| chain(&e))
        });
        match &report {
            Ok(report) => {
                let short = report.missing > 0;
                if short && !std::mem::replace(&mut self.pruning.told_short, short) {
                    self.ui.event(Event::Notice(shortage(report)));
                }
                self.pruning.told_short = short;
                if report.forced > 0 {
                    let versions = crate::cli::text::counted(report.forced, "version", "versions");
                    let text = format!("history: {versions} went that were promised: --force");
                    self.ui.event(Event::Notice(text));
                }
                self.tell_history(report.clone());
            }
            Err(text) => {
                let text = format!("history can't be pruned: {text}");
                self.ui.event(Event::Notice(text));
            }
        }
        self.pruning.last = report;
    }

    fn tell_history(&mut self, report: Report) {
        let Some(setup) = &self.history else { return };
        let lock = setup.keeping.lock;
        let Some(history) = self.applier.history() else {
            return;
        };
        let oldest = history.oldest().ok().flatten();
        let history = HistoryStatus {
            versions: report.kept,
            bytes: report.kept_bytes,
            catalogue_bytes: report.catalogue_bytes,
            oldest: oldest.map(|oldest| Stamp::from_ns(oldest.there_ns)),
            lock: lock.name().into(),
            missing_bytes: report.missing,
            looked_at: Stamp::now(),
        };
        self.applied.update(|status| status.history = Some(history));
    }

    /// Somebody asks for a pass; it is answered with how many have ended, to be asked about by [`Running::prune_ended`].
    pub(super) fn prune_now(&mut self, force: bool) -> Result<Answer, PastError> {
        if self.applier.history().is_none() {
            return Err(PastError::Unknown(super::NO_HISTORY.into()));
        }
        let held = self.applier.history().and_then(rotation_is_held);
        if let Some(why) = held.filter(|_| !force) {
            let text = format!("nothing is let go now: {why} (--force does it anyway)");
            return Err(PastError::Unknown(text));
        }
        // One that is under way began without this word.
        if self.pruning.pass.is_some() {
            return Ok(Answer::PruneBusy);
        }
        self.begin_pruning(force);
        match self.pruning.pass {
            Some(_) => Ok(Answer::PruneBegun(self.pruning.passes)),
            None => Ok(Answer::PruneBusy),
        }
    }

    /// How the pass ended that began after so many; `None`: it goes on.
    pub(super) fn prune_ended(&self, after: u64) -> Result<Answer, PastError> {
        if self.pruning.passes <= after {
            return Ok(Answer::Pruned(None));
        }
        match &self.pruning.last {
            Ok(report) => Ok(Answer::Pruned(Some(report.clone()))),
            Err(text) => Err(PastError::Asking(text.clone())),
        }
    }

    /// What stays free because history is locked: following pauses for it.
    pub(super) fn locked_floor(&self) -> Option<u64> {
        let setup = self.history.as_ref()?;
        if setup.keeping.lock == Lock::Off || self.applier.history().is_none() {
            return None;
        }
        let total = space(&self.dst)?.bytes_total;
        Some(setup.keeping.budget_of(total).free_bytes_min)
    }
}

/// Nothing else may go, or can.
fn shortage(report: &Report) -> String {
    let missing = crate::cli::text::bytes(report.missing);
    match report.locked {
        true => format!(
            "history takes {missing} more than it may, and what is left of it is locked: following pauses where the reserve begins"
        ),
        false => format!(
            "history takes {missing} more than it may, and nothing of it can go but what is held (`snapshot rm`)"
        ),
    }
}
