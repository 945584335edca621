//! The apply loop: durable groups of a log become the copy, on a thread of its own, with the mass-change guard before it.
//!
//! Used by a mirror on one host and by a follower alike. The log goes on being written while this is paused or held.

pub mod limits;
mod mass;
mod pruning;
mod rolling;
mod room;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mirror_core::guard::{Destroyed, Window};
use mirror_core::history::Moment;
use mirror_core::{At, Change, Content, Name, ObjectId, Position, Record, Rows};

use super::adopt::{self, ADOPTING_KEY, LeftOut};
use super::differing::Differing;
use super::event::{Event, Ui};
use super::going::Tally;
use super::rotating::{Publishing, Rotating};
use super::seed::{self, Chained, Spooled};
use super::status::{FAILED_MAX, Failed, Hold, HoldReason, PathText, Stamp, Travelling};
use crate::apply::{
    Applier, ApplyError, Contents, Counts, Difference, DifferenceKind, Failure, Flush, Outcome,
    Patient, Store, store_error,
};
use crate::history::ask::{self, Answer, Ask};
use crate::history::events::Why;
use crate::history::prune::Zones;
use crate::history::settings::Settings;
use crate::history::tree::PastError;
use crate::history::{History, now_ns, parts};
use crate::index::Index;
use crate::log::{Cursor, LogError, LogReader, Waited};

pub use super::applied::{
    AGAIN_ROUNDS, Applied, ApplyOrder, ApplyOrders, ApplyStatus, Going, Told, going, past,
    try_again,
};
use limits::{Bounds, Pace};
pub use mass::hold_of;
pub use rolling::EVERY as VERIFY_EVERY;
use room::Batch;

/// Records applied at once.
const BATCH_RECORDS_MAX: usize = 8192;
/// While seeding a batch waits for so many records, but not longer than this.
const SEEDING_RECORDS_MIN: usize = 4096;
const SEEDING_WAIT_MAX: Duration = Duration::from_millis(250);
/// First wait before what failed is tried again; doubled up to a minute. From the start again when more fails.
const RETRY_MS_MIN: u64 = 100;
const RETRY_MS_MAX: u64 = 60_000;
/// Likewise what waits for a content on its way.
const HELD_MS: u64 = 10_000;
/// How often records that contradict the copy's rows are tried: not even time heals that.
const MISFIT_TRIES_MAX: u32 = 3;
/// Things moved aside that are named, each in a line.
const ASIDE_TOLD_MAX: u64 = 10;

pub struct ApplySetup {
    pub applier: Applier<Index>,
    pub reader: LogReader,
    pub contents: Arc<dyn Contents + Send + Sync>,
    /// Very much going at once waits for a person.
    pub holds_mass_change: bool,
    pub ui: Arc<dyn Ui>,
    /// Stays in the copy as it is.
    pub left_out: LeftOut,
    pub verbose: bool,
    /// An operator let a mass change go on: what is in the log now passes the guard.
    pub released: bool,
    /// Let through is also what the look at the start finds missing, until [`ApplyOrder::Seeded`].
    pub looking: bool,
    /// The copy was never equal yet: large batches, flushed together, until [`ApplyOrder::Seeded`].
    pub seeding: bool,
    /// What the copy may take.
    pub bounds: Arc<Bounds>,
    pub dst: PathBuf,
    pub state_dir: PathBuf,
    /// Where old versions are kept, and which.
    pub history: Option<HistorySetup>,
    /// Trees that are published by themselves.
    pub publishing: Option<Publishing>,
    /// Told of what was applied.
    pub told: Option<Arc<dyn Told>>,
    /// Done first on the thread: what is applied may come from a stranger.
    pub enter: Option<Enter>,
}

/// Of a mirror that keeps history.
#[derive(Debug, Clone)]
pub struct HistorySetup {
    pub state_dir: PathBuf,
    pub keeping: Settings,
    /// Read while the database can be had.
    pub zones: Zones,
}

impl HistorySetup {
    /// Made outside of all walls: what retention asks of the host is read here.
    pub fn new(state_dir: &Path, keeping: &Settings) -> HistorySetup {
        crate::history::clock::boot_id();
        HistorySetup {
            state_dir: state_dir.into(),
            keeping: keeping.clone(),
            zones: Zones::known(state_dir, &keeping.policy.timezone),
        }
    }
}

/// See [`super::confine`].
pub type Enter = Box<dyn FnOnce() + Send>;

/// Kept with the rows while all that they become is written down.
pub const HISTORY_KEY: &str = "history";
/// What is told to who asks for it.
pub const NO_HISTORY: &str =
    "this mirror keeps no history (yet: it begins once the first copy is complete)";

/// Kept with the rows once the copy was equal for the first time.
pub const SEEDED_KEY: &str = "seeded";

pub struct ApplyLoop {
    pub applied: Arc<Applied>,
    pub orders: ApplyOrders,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: JoinHandle<Result<Index, String>>,
    rotating: Option<Rotating>,
}

impl ApplyLoop {
    pub fn start(setup: ApplySetup) -> std::io::Result<ApplyLoop> {
        let applied = Arc::new(Applied::default());
        let (orders, taken) = unbounded();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let tail = setup.reader.tail();
        let mut setup = setup;
        let publishing = setup.publishing.take();
        let ui = setup.ui.clone();
        setup
            .applier
            .log_ends(tail.durable().map(|end| end.position));
        {
            let mut status = applied.lock();
            // Until all of it is set as it can be set now, no position is reached.
            let position = setup.applier.applied();
            status.applied = position.filter(|_| !setup.applier.is_behind());
            status.passed = setup.applier.store().position();
            status.recorded = setup.applier.recorded();
            // What failed before this start is known before it is tried again.
            status.failed_total = setup.applier.failed().len() as u64;
            status.differing = Differing::load(setup.applier.store());
        }
        let (shared, stopped) = (applied.clone(), stop.clone());
        let passes = setup
            .released
            .then(|| tail.durable())
            .flatten()
            .map(|end| end.position);
        let thread = std::thread::Builder::new()
            .name("apply".into())
            .spawn(move || {
                if let Some(enter) = setup.enter {
                    enter();
                }
                let saved_at_start = setup.applier.store().position().map(Moment::of);
                let on_way = setup.applier.travelling().into_keys().collect();
                let mut running = Running {
                    applier: setup.applier,
                    reader: setup.reader,
                    contents: setup.contents,
                    holds_mass_change: setup.holds_mass_change,
                    ui: setup.ui,
                    left_out: setup.left_out,
                    verbose: setup.verbose,
                    applied: shared.clone(),
                    orders: taken,
                    stop: stopped,
                    window: Window::default(),
                    destroyed: Destroyed::default(),
                    began: Instant::now(),
                    passes,
                    looking: setup.looking,
                    seeding: setup.seeding,
                    bounds: setup.bounds,
                    dst: setup.dst,
                    state_dir: setup.state_dir,
                    history: setup.history,
                    pruning: pruning::Pruning::default(),
                    saved_at_start,
                    told: setup.told,
                    pace: Pace::default(),
                    retry_ms: RETRY_MS_MIN,
                    retry_at: None,
                    unsaved: None,
                    aside_told: 0,
                    on_way,
                    trouble: HashMap::new(),
                    roll: None,
                };
                let done = running.run();
                running.roll_saved();
                let closed = running.applier.close().map_err(|e| chain(&e));
                let ended = match (&done, &closed) {
                    (Err(text), _) => Some(text.clone()),
                    (Ok(()), Err(text)) => Some(text.clone()),
                    _ => None,
                };
                shared.update(|status| status.ended = Some(ended.unwrap_or_default()));
                done.and(closed)
            })?;
        let orders = ApplyOrders {
            sender: orders,
            tail,
        };
        let rotating = publishing.map(|what| Rotating::start(what, orders.clone(), ui));
        Ok(ApplyLoop {
            applied,
            orders,
            stop,
            thread,
            rotating: rotating.transpose()?,
        })
    }

    /// Ends the loop after the batch it is in; everything applied is durable then.
    pub fn stop(self) -> Result<Index, String> {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        let _ = self.orders.send(ApplyOrder::Wake);
        let ended = self.thread.join();
        if let Some(rotating) = self.rotating {
            rotating.end();
        }
        ended.unwrap_or_else(|_| Err("the apply thread broke off".into()))
    }

    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Why it does not run any more, and whether records that contradict the copy's rows are the reason.
    pub fn why_ended(&self) -> (String, bool) {
        let state = self.applied.lock();
        (state.ended.clone().unwrap_or_default(), state.misfit)
    }
}

struct Running {
    applier: Applier<Index>,
    reader: LogReader,
    contents: Arc<dyn Contents + Send + Sync>,
    holds_mass_change: bool,
    ui: Arc<dyn Ui>,
    left_out: LeftOut,
    verbose: bool,
    applied: Arc<Applied>,
    orders: Receiver<ApplyOrder>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    window: Window,
    destroyed: Destroyed,
    began: Instant,
    retry_ms: u64,
    retry_at: Option<Instant>,
    /// Since when something applied is not durable.
    unsaved: Option<Instant>,
    /// Records up to here pass the guard.
    passes: Option<Position>,
    looking: bool,
    seeding: bool,
    bounds: Arc<Bounds>,
    dst: PathBuf,
    state_dir: PathBuf,
    history: Option<HistorySetup>,
    pruning: pruning::Pruning,
    /// Rows were durable up to here when this began.
    saved_at_start: Option<Moment>,
    told: Option<Arc<dyn Told>>,
    pace: Pace,
    /// Things moved aside so far.
    aside_told: u64,
    /// Whose contents were on their way when we looked last.
    on_way: BTreeSet<ObjectId>,
    /// What is known of objects that failed, and is not kept with the rows.
    trouble: HashMap<ObjectId, Trouble>,
    roll: Option<rolling::Roll>,
}

#[derive(Clone)]
struct Trouble {
    since: Stamp,
    tries: u64,
    reason: String,
    /// A person was told.
    told: bool,
}

fn reason_of(failure: &Failure) -> String {
    format!("cannot {}: {}", failure.step, failure.reason)
}

impl Running {
    fn stopped(&self) -> bool {
        self.stop.load(std::sync::atomic::Ordering::Acquire)
    }

    fn run(&mut self) -> Result<(), String> {
        if self.seeding {
            self.applier
                .set_flush(Flush::Checkpoint)
                .map_err(|e| chain(&e))?;
        }
        let adopting = adopt::begun(self.applier.store()).map_err(|e| chain(&e))?;
        self.applier.set_adopting(adopting.is_some());
        self.keep_history().map_err(|e| chain(&e))?;
        let after = self.applier.store().position();
        let mut cursor = self.reader.cursor(after).map_err(|e| chain(&e))?;
        let mut batch = Batch::default();
        // What there was no room for.
        let mut next = Batch::default();
        let mut tries = 0u32;
        while !self.stopped() {
            let woken = self.reader.tail().woken();
            self.set_again()?;
            self.orders();
            if batch.is_empty() {
                batch = std::mem::take(&mut next);
            }
            self.fill(&mut cursor, &mut batch).map_err(|e| chain(&e))?;
            self.arrived();
            if batch.is_empty() {
                let waiting = self.applier.held_since_ns();
                self.applied
                    .update(|status| status.waiting_since_ns = waiting);
                self.retry()?;
                self.roll();
                self.idle(&cursor, woken)?;
                continue;
            }
            let waiting = batch.records.first().map(|record| record.time_ns);
            let waiting = self.applier.held_since_ns().or(waiting);
            let end = self.reader.tail().durable().map(|end| end.position);
            self.applied.update(|status| {
                status.waiting_since_ns = waiting;
                status.end = end;
            });
            // Held, and stopped while holding.
            if !self.paced()?
                || (next.is_empty() && !self.room(&mut cursor, &mut batch, &mut next)?)
            {
                break;
            }
            if !self.may_apply(&batch.records)? {
                break;
            }
            let Some(last) = batch.head() else { continue };
            match self.applier.apply(&batch.records, last, &*self.contents) {
                Ok(outcome) => {
                    if std::mem::take(&mut tries) > 0 {
                        self.applied.update(|status| status.waits = None);
                    }
                    self.tell(&batch.records, &outcome);
                    self.pace
                        .did(batch.records.len(), self.bounds.get().ops_max);
                    batch.clear();
                    self.took(outcome);
                    // Also while there is always more to apply.
                    self.retry()?;
                }
                Err(error) => {
                    // Nothing moved: the same records come again. A disk that is full may have room later.
                    tries += 1;
                    let text = chain(&error);
                    let misfit = matches!(error, ApplyError::Records(_));
                    if misfit && tries >= MISFIT_TRIES_MAX {
                        self.applied.update(|status| status.misfit = true);
                        return Err(text);
                    }
                    if matches!(error, ApplyError::Unfinished) || tries > 1000 {
                        return Err(text);
                    }
                    if tries == 1 {
                        self.ui.event(Event::Notice(format!("apply waits: {text}")));
                        self.applied.update(|status| status.waits = Some(text));
                    }
                    let wait = Duration::from_millis((100u64 << tries.min(7)).min(10_000));
                    let until = Instant::now() + wait;
                    while Instant::now() < until && !self.stopped() {
                        self.orders();
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
            }
        }
        Ok(())
    }

    /// What is in the copy as it can be set here.
    fn reached(&self) -> Option<Position> {
        let position = self.applier.applied();
        position.filter(|_| !self.applier.is_behind())
    }

    /// Another `--owners`, or another user: all that can be set now and was only recorded, or the other way round.
    fn set_again(&mut self) -> Result<(), String> {
        if !self.applier.is_behind() || self.applier.replay_until().is_some() {
            return Ok(());
        }
        let mut outcomes = Vec::new();
        let stop = self.stop.clone();
        let patient = Patient(&*self.contents);
        let set = self.applier.set_again(&patient, &mut |outcome| {
            outcomes.push(outcome);
            !stop.load(std::sync::atomic::Ordering::Acquire)
        });
        for outcome in outcomes {
            self.took(outcome);
        }
        set.map_err(|e| chain(&e))?;
        let (position, recorded) = (self.reached(), self.applier.recorded());
        self.applied.update(|status| {
            status.applied = position;
            status.recorded = recorded;
        });
        Ok(())
    }

    /// Whole groups, as many as are durable and fit. After a crash at least up to where the copy may already be.
    fn fill(&mut self, cursor: &mut Cursor, batch: &mut Batch) -> Result<(), LogError> {
        let until = self.applier.replay_until();
        if !batch.is_empty() {
            return Ok(());
        }
        let most = self.batch_max(BATCH_RECORDS_MAX);
        let mut began = None;
        loop {
            let reached = batch.records.last().map(|record| record.position);
            let must = until.is_some_and(|until| reached.is_none_or(|reached| reached < until));
            if batch.records.len() >= most && !must {
                return Ok(());
            }
            if let Some(group) = cursor.next_group()? {
                batch.push(group);
                continue;
            }
            // A first copy is cheapest in large pieces; nobody waits for one file of it.
            if !self.seeding || batch.is_empty() || batch.records.len() >= SEEDING_RECORDS_MIN {
                return Ok(());
            }
            let began = *began.get_or_insert_with(Instant::now);
            if began.elapsed() >= SEEDING_WAIT_MAX || self.stopped() || !self.orders.is_empty() {
                return Ok(());
            }
            let deadline = Instant::now() + Duration::from_millis(20);
            let _ = self.reader.tail().wait_past(cursor.position(), deadline);
        }
    }

    fn idle(&mut self, cursor: &Cursor, woken: u64) -> Result<(), String> {
        // Small waits, so that rows are saved in time; records and orders wake it at once.
        let deadline = Instant::now() + Duration::from_millis(100);
        let tail = self.reader.tail();
        match tail.wait_past_since(cursor.position(), deadline, woken) {
            Waited::Durable(_) => {}
            Waited::Deadline => self.checkpoint_if_due()?,
            // Nothing comes any more but orders.
            Waited::Stopped(_) => {
                if let Ok(order) = self.orders.recv_timeout(Duration::from_millis(50)) {
                    self.order(order);
                }
            }
        }
        Ok(())
    }

    /// Rows and position become durable within a second of the last batch, also when nothing more comes.
    fn checkpoint_if_due(&mut self) -> Result<(), String> {
        const SAVED_WITHIN: Duration = Duration::from_secs(1);
        if self
            .unsaved
            .is_some_and(|since| since.elapsed() >= SAVED_WITHIN)
        {
            self.unsaved = None;
            let position = self.applier.store().position();
            if let Err(error) = self.applier.checkpoint() {
                self.unsaved = Some(Instant::now());
                self.ui.event(Event::Notice(format!(
                    "the copy's index can't be saved: {}",
                    chain(&error)
                )));
            } else {
                self.applied.update(|status| status.saved = position);
            }
        }
        Ok(())
    }

    fn orders(&mut self) {
        self.prune();
        while let Ok(order) = self.orders.try_recv() {
            self.order(order);
        }
    }

    fn order(&mut self, order: ApplyOrder) {
        match order {
            ApplyOrder::Wake => {}
            ApplyOrder::Verify {
                content,
                found,
                done,
            } => {
                let verified = self.verify(content, found);
                let _ = done.send(verified.map_err(|e| chain(&e)));
            }
            ApplyOrder::Repair { differences, done } => {
                let outcome = self
                    .applier
                    .repair(&differences, &Patient(&*self.contents))
                    .map_err(|e| chain(&e));
                let _ = done.send(outcome.map(|mut outcome| {
                    let failed = outcome.failed.clone();
                    // Nobody was told that it had failed.
                    outcome.healed.clear();
                    self.took(outcome);
                    self.repaired(&differences, &failed);
                    failed
                }));
            }
            ApplyOrder::Checkpoint(done) => {
                let _ = done.send(self.applier.checkpoint().map_err(|e| chain(&e)));
            }
            ApplyOrder::Retry(answer) => {
                self.try_again();
                let failed = self.applier.failed();
                let _ = answer.send(failed.iter().filter(|why| why.void).count() as u64);
            }
            ApplyOrder::Show(answer) => {
                let _ = answer.send(self.going());
            }
            ApplyOrder::Open(object, digest, answer) => {
                let opened = self.applier.open_content(object, digest);
                let _ = answer.send(opened.unwrap_or(None));
            }
            ApplyOrder::List(state_dir, chained, answer) => {
                let _ = answer.send(self.list(&state_dir, chained));
            }
            ApplyOrder::Past(ask, answer) => {
                let _ = answer.send(self.past(&ask));
            }
            ApplyOrder::Release => self.release(),
            ApplyOrder::Look => self.looking = true,
            ApplyOrder::Looked(until) => {
                self.looking = false;
                self.passes = self.passes.max(until);
            }
            ApplyOrder::Adopted(done) => {
                let _ = done.send(self.adopted().map_err(|e| chain(&e)));
            }
            ApplyOrder::Roll(every) => self.roll_every(every),
            ApplyOrder::Seeded(done) => {
                self.looking = false;
                let _ = done.send(self.seeded().map_err(|e| chain(&e)));
            }
        }
    }

    fn verify(&mut self, content: bool, found: Sender<Difference>) -> Result<(), ApplyError> {
        let mut differing = Differing::default();
        let left_out = &self.left_out;
        self.applier.verify(content, &mut |difference| {
            if left_out.has(&difference) {
                return;
            }
            // What is owed anyway is listed as failed already.
            if difference.what != DifferenceKind::Pending {
                differing.add(&difference);
            }
            let _ = found.send(difference);
        })?;
        // Else it did not look at all there is.
        if content {
            self.differ(differing)?;
        }
        Ok(())
    }

    fn repaired(&mut self, differences: &[Difference], failed: &[Failure]) {
        let mut differing = self.applied.lock().differing.clone();
        let mut repaired = 0;
        for difference in differences {
            let again = |id| failed.iter().any(|failure| failure.object == id);
            if difference.what == DifferenceKind::Pending || difference.object.is_some_and(again) {
                continue;
            }
            repaired += 1;
            differing.repaired(difference);
        }
        self.applied.update(|status| status.repaired += repaired);
        if let Err(error) = self.differ(differing) {
            self.ui.event(Event::Notice(chain(&error)));
        }
    }

    fn differ(&mut self, differing: Differing) -> Result<(), ApplyError> {
        if self.applied.lock().differing != differing {
            differing.save(self.applier.store_mut())?;
            self.applier.checkpoint()?;
            self.applied.update(|status| status.differing = differing);
        }
        Ok(())
    }

    /// Once the copy was equal, or is taken up again: from then on old versions are kept.
    fn keep_history(&mut self) -> Result<(), ApplyError> {
        let kept = self
            .applier
            .store()
            .meta_get(HISTORY_KEY)
            .map_err(store_error)?;
        let Some(HistorySetup {
            state_dir, keeping, ..
        }) = &self.history
        else {
            if kept.is_some() {
                // As it is now, so that what is kept can be asked for also when it is taken up again.
                self.applier.checkpoint()?;
                let ended = parts::end(&self.state_dir, Some(&self.state_dir.join("index")));
                ended.map_err(|source| ApplyError::Io {
                    step: "set the history aside in",
                    path: self.state_dir.clone(),
                    source,
                })?;
                let gone = self.applier.store_mut().meta_remove(HISTORY_KEY);
                gone.map_err(store_error)?;
            }
            return Ok(());
        };
        if self.seeding || self.applier.history().is_some() {
            return Ok(());
        }
        if kept.is_none() {
            // Nothing says what became of the copy since.
            let ended = parts::end(state_dir, None);
            ended.map_err(|source| ApplyError::Io {
                step: "set the history aside in",
                path: state_dir.clone(),
                source,
            })?;
        }
        let tree = self.reader.tree();
        if self.applier.store().tree().is_none() {
            self.applier.store_mut().set_tree(tree);
        }
        let mut known = self.applier.known()?;
        // Of a time when it was kept, too.
        known.last = known.last.filter(|_| kept.is_some());
        let history = History::open(state_dir, tree, Some(known));
        let mut history = history.map_err(ApplyError::History)?;
        if let Err(e) = history.choose(keeping) {
            // What was in force before stays in force.
            self.ui.event(Event::Notice(format!(
                "what history is to keep can't be noted: {}",
                chain(&e)
            )));
        }
        if kept.is_none() {
            let why = match parts::all(state_dir).is_empty() {
                true => Why::New,
                false => Why::Compared,
            };
            let moment = self.applier.moment();
            let begun = history.begin(moment, now_ns(), why);
            begun.map_err(ApplyError::History)?;
            let put = self.applier.store_mut().meta_put(HISTORY_KEY, b"1");
            put.map_err(store_error)?;
        }
        for text in history.told() {
            self.ui.event(Event::Notice(format!("history: {text}")));
        }
        self.applier.set_history(Some(history));
        self.show_alarm();
        Ok(())
    }

    fn past(&mut self, ask: &Ask) -> Result<Answer, PastError> {
        match ask {
            Ask::Prune { force } => return self.prune_now(*force),
            Ask::PruneEnd { after } => return self.prune_ended(*after),
            _ => {}
        }
        let now = self.applier.moment();
        let answer = self.applier.with_past(|rows, history| match history {
            Some(history) => ask::answer(rows, history, now, ask),
            None => Err(PastError::Unknown(NO_HISTORY.into())),
        });
        let told = self.applier.history_mut().map(History::told);
        for text in told.unwrap_or_default() {
            self.ui.event(Event::Notice(format!("history: {text}")));
        }
        answer.unwrap_or_else(|e| Err(PastError::Rows(chain(&e))))
    }

    fn list(&self, state_dir: &Path, chained: Chained) -> Result<Spooled, String> {
        let rows = self.applier.store();
        let of = (self.reader.tree(), seed::end_of(rows)?);
        seed::spool_rows(rows, &self.applier.owed().collect(), of, state_dir, chained)
    }

    fn adopted(&mut self) -> Result<(), ApplyError> {
        let gone = self.applier.store_mut().meta_remove(ADOPTING_KEY);
        gone.map_err(store_error)?;
        self.applier.set_adopting(false);
        Ok(())
    }

    fn seeded(&mut self) -> Result<(), ApplyError> {
        if std::mem::take(&mut self.seeding) {
            let set = self.applier.store_mut().meta_put(SEEDED_KEY, b"1");
            set.map_err(store_error)?;
            self.applier.set_flush(Flush::Batch)?;
        }
        self.keep_history()?;
        self.applier.checkpoint()
    }

    /// What waits, read from the log again.
    fn going(&self) -> Result<Going, String> {
        let store = self.applier.store();
        let mut tally = Tally::new(store, true);
        let end = self.reader.tail().durable().map(|end| end.position);
        for learning in [true, false] {
            let after = store.position();
            let mut cursor = self.reader.cursor(after).map_err(|e| chain(&e))?;
            // Both passes see the same records.
            while cursor.position() < end && !self.stopped() {
                let Some(group) = cursor.next_group().map_err(|e| chain(&e))? else {
                    break;
                };
                for record in &group.records {
                    let done = if learning {
                        tally.learn(record)
                    } else {
                        tally.count(record)
                    };
                    done.map_err(|e| chain(&e))?;
                }
            }
        }
        let (gone, new) = tally.totals();
        Ok(Going {
            gone,
            new,
            changed: tally.changed,
            sample: tally.sample,
        })
    }

    fn release(&mut self) {
        self.window.clear();
        self.clear_alarm();
        // All that was shown may pass, not only the batch it was held for.
        self.passes = self
            .passes
            .max(self.reader.tail().durable().map(|end| end.position));
        let mut state = self.applied.lock();
        let full = |hold: &Hold| hold.reason == HoldReason::Limit;
        // Nobody's word makes room.
        if !state.hold.as_ref().is_some_and(full) && state.hold.take().is_some() {
            drop(state);
            self.applied.changed.notify_all();
            self.ui.event(Event::Released);
        }
    }

    /// Contents that were on their way are there, or an earlier process waited for some.
    fn arrived(&mut self) {
        if self.applier.replay_until().is_none()
            && (self.contents.has_arrived() || self.applier.must_ask())
        {
            self.try_again();
        }
    }

    fn retry(&mut self) -> Result<(), String> {
        if self.applier.failed().is_empty() {
            self.retry_ms = RETRY_MS_MIN;
            if !self.applier.holds() {
                self.retry_at = None;
                return Ok(());
            }
            // Who waits for a content is told when it came; this is for what was lost on the way to being told.
            self.retry_ms = HELD_MS;
        }
        let at = *self
            .retry_at
            .get_or_insert(Instant::now() + Duration::from_millis(self.retry_ms));
        if Instant::now() < at {
            return Ok(());
        }
        self.retry_ms = (self.retry_ms * 2).min(RETRY_MS_MAX);
        self.retry_at = Some(Instant::now() + Duration::from_millis(self.retry_ms));
        self.try_again();
        Ok(())
    }

    fn try_again(&mut self) {
        match self.applier.retry(&*self.contents) {
            Ok(outcome) => self.took(outcome),
            Err(error) => self.ui.event(Event::Notice(format!(
                "trying again failed: {}",
                chain(&error)
            ))),
        }
    }

    fn took(&mut self, outcome: Outcome) {
        self.unsaved.get_or_insert(Instant::now());
        let position = self.reached();
        let end = self.reader.tail().durable().map(|end| end.position);
        let more = self.applier.store().position() < end;
        for failure in &outcome.failed {
            let reason = reason_of(failure);
            let known = self.trouble.get(&failure.object).cloned();
            // What the source wrote over since then comes with a record that is still to be applied.
            let may_pass = more && (failure.void || failure.step == "wait");
            let tries = known.as_ref().map_or(0, |known| known.tries) + 1;
            let since = known.as_ref().map_or_else(Stamp::now, |known| known.since);
            // Told once, and again when the reason is another.
            let news = known.is_none_or(|known| known.reason != reason || !known.told);
            if news && !may_pass {
                let path = self.path_of(failure.object);
                let reason = reason.clone();
                self.ui.event(Event::Failed { path, reason });
            }
            let trouble = Trouble {
                since,
                tries,
                reason,
                told: !(news && may_pass),
            };
            self.trouble.insert(failure.object, trouble);
        }
        let untold = |id: &&ObjectId| self.trouble.get(id).is_some_and(|known| !known.told);
        let healed = outcome.healed.iter().filter(|id| !untold(id));
        let healed: Vec<ObjectId> = healed.copied().collect();
        let travelling = self.applier.travelling();
        self.tell_late(&travelling, &outcome);
        let wanted = travelling.iter().map(|(id, content)| (*id, content.digest));
        self.contents.keep(&wanted.collect());
        let all = self.applier.failed();
        let total = all.len() as u64;
        let failed = self.failed(&all);
        if total > self.applied.lock().failed_total {
            self.retry_ms = RETRY_MS_MIN;
            self.retry_at = None;
        }
        if all.is_empty() {
            self.trouble.clear();
        } else if self.trouble.len() > all.len() {
            let still: HashSet<ObjectId> = all.iter().map(|failure| failure.object).collect();
            self.trouble.retain(|object, _| still.contains(object));
        }
        for object in healed {
            let path = self.path_of(object);
            self.ui.event(Event::Healed { path });
        }
        self.tell_aside(&outcome.moved_aside);
        let passed = self.applier.store().position();
        let again = self.applier.asked_again() as u64;
        let on_way = Travelling {
            files: travelling.len() as u64,
            bytes: travelling.values().map(|content| content.bytes).sum(),
        };
        self.applied.update(|status| {
            status.applied = position;
            status.passed = passed;
            status.travelling = on_way;
            status.again = again;
            add(&mut status.counts, &outcome.counts);
            status.recorded = outcome.recorded;
            status.failed = failed;
            status.failed_total = total;
            let room = FAILED_MAX.saturating_sub(status.moved_aside.len());
            status.moved_aside.extend(
                outcome
                    .moved_aside
                    .iter()
                    .take(room)
                    .map(|path| PathText::new(path)),
            );
        });
    }

    /// What was passed while its content was on its way, or had failed, and is there now.
    fn tell_late(&mut self, travelling: &BTreeMap<ObjectId, Content>, outcome: &Outcome) {
        let Some(told) = &self.told else { return };
        let on_way = travelling.keys().copied().collect();
        let before = std::mem::replace(&mut self.on_way, on_way);
        let failed = |id: &ObjectId| outcome.failed.iter().any(|failure| failure.object == *id);
        let arrived = before
            .iter()
            .filter(|id| !travelling.contains_key(id))
            .chain(&outcome.healed);
        let paths: Vec<Vec<u8>> = arrived
            .filter(|id| !failed(id))
            .filter_map(|id| self.applier.path_of(*id))
            .map(|path| root_or(&path).to_vec())
            .collect();
        if !paths.is_empty() {
            told.applied(self.reached(), &mut paths.into_iter());
        }
    }

    /// Some of what was moved aside is named; all of it is counted, and found in `adopted/`.
    fn tell_aside(&mut self, moved: &[Vec<u8>]) {
        for path in moved {
            self.aside_told += 1;
            let text = match self.aside_told {
                0..=ASIDE_TOLD_MAX => {
                    format!("moved aside to adopted/{}", mirror_core::escape(path))
                }
                n if n == ASIDE_TOLD_MAX + 1 => {
                    "more is moved aside to adopted/: `fs_mirror status` counts it".into()
                }
                _ => return,
            };
            self.ui.event(Event::Notice(text));
        }
    }

    fn failed(&self, all: &[Failure]) -> Vec<Failed> {
        let now = Stamp::now();
        let listed = all.iter().take(FAILED_MAX);
        listed
            .map(|failure| {
                let known = self.trouble.get(&failure.object);
                Failed {
                    path: self.path_of(failure.object),
                    reason: reason_of(failure),
                    since: known.map_or(now, |known| known.since),
                    tries: known.map_or(1, |known| known.tries),
                }
            })
            .collect()
    }

    fn path_of(&self, object: ObjectId) -> PathText {
        match self.applier.path_of(object) {
            Some(path) => PathText::new(root_or(&path)),
            None => PathText::new(format!("object {}", object.0).as_bytes()),
        }
    }

    /// `-v`: a line for each path.
    fn tell(&self, batch: &[Record], outcome: &Outcome) {
        if let Some(told) = &self.told {
            let travelling = self.applier.travelling();
            let failed: HashSet<ObjectId> = outcome.failed.iter().map(|f| f.object).collect();
            // These are told when they are there.
            let is_there = |record: &&Record| {
                record
                    .change
                    .object()
                    .is_none_or(|id| !travelling.contains_key(&id) && !failed.contains(&id))
            };
            let paths = batch
                .iter()
                .filter(is_there)
                .flat_map(|record| paths_of(self.applier.store(), record));
            told.applied(self.reached(), &mut paths.into_iter());
        }
        if !self.verbose {
            return;
        }
        for record in batch {
            let (what, at) = match &record.change {
                Change::Create { at, .. } => ("new", at),
                Change::Link { at, .. } => ("linked", at),
                Change::Unlink { at, .. } => ("removed", at),
                Change::Move { to, .. } => ("moved", to),
                Change::Update {
                    at: Some(at),
                    content,
                    ..
                } => (
                    if content.is_some() {
                        "changed"
                    } else {
                        "attributes"
                    },
                    at,
                ),
                _ => continue,
            };
            let mut path = match path_of(self.applier.store(), at.parent) {
                Some(path) if !path.is_empty() => {
                    let mut path = path;
                    path.push(b'/');
                    path
                }
                _ => Vec::new(),
            };
            path.extend_from_slice(at.name.as_bytes());
            self.ui.event(Event::Changed {
                what,
                path: PathText::new(&path),
            });
        }
    }
}

/// The paths that a record is about, as far as the rows know their directories.
fn paths_of<R: Rows>(rows: &R, record: &Record) -> Vec<Vec<u8>> {
    let names = match &record.change {
        Change::Create { at, .. }
        | Change::Link { at, .. }
        | Change::Unlink { at, .. }
        | Change::Update { at: Some(at), .. } => vec![at],
        Change::Update { at: None, .. } => return vec![b".".to_vec()],
        Change::Move { from, to, .. } => vec![from, to],
        _ => return Vec::new(),
    };
    let path = |at: &At| {
        let mut path = path_of(rows, at.parent)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(at.name.as_bytes());
        Some(path)
    };
    names.into_iter().filter_map(path).collect()
}

/// How a path below the root is shown: the root itself is `.`.
pub fn root_or(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

/// The path of an object below the root, by the rows; of the root itself: empty.
pub fn path_of<R: Rows>(rows: &R, object: ObjectId) -> Option<Vec<u8>> {
    let mut names: Vec<Name> = Vec::new();
    let mut at = object;
    while at != ObjectId::ROOT {
        let name = rows.object(at).ok()??.names.first()?.clone();
        at = name.parent;
        names.push(name.name);
    }
    let names: Vec<&[u8]> = names.iter().rev().map(Name::as_bytes).collect();
    Some(names.join(&b'/'))
}

fn add(sum: &mut Counts, more: &Counts) {
    sum.created += more.created;
    sum.content += more.content;
    sum.add_bytes(more.content_bytes);
    sum.meta += more.meta;
    sum.renamed += more.renamed;
    sum.linked += more.linked;
    sum.removed += more.removed;
    sum.adopted += more.adopted;
    sum.moved_aside += more.moved_aside;
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
