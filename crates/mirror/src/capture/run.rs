//! The capture loop: the only writer of the log and of the worker's index.
//!
//! It wakes for hints, for what a scan found, for orders, and for time. What is due is looked at, decided by
//! `mirror_core::reconcile`, appended as one group and made durable. Overflow, start and doubt of any kind are the same
//! thing: a scan of everything.

mod unheard;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Select, Sender};
use mirror_core::guard::{Alarm, Loss, judge};
use mirror_core::hints::{Hint, Hints, Unconfirmed};
use mirror_core::model::apply_group;
use mirror_core::reconcile::{Body, Dirty, Failure, Limits, Outcome, Source, reconcile};
use mirror_core::settle::{HotList, Phase, Settle, SettleLimits};
use mirror_core::{At, Change, Handle, Kind, Local, Name, Note, ObjectId, Position, Record, Rows};

use super::kernel::{KernelSource, trail};
use super::prepared::{Prepared, PreparedDir};
use super::read::{ReadOptions, Reader};
use super::scan::{Found, Scan, ScanSetup};
use super::sink::Sink;
use super::state::{Barrier, Ended, Order, Shared};
use super::tree::{SourceTree, Walker};
use super::watch::Watch;
use crate::engine::options::Detector;
use crate::engine::status::{FAILED_MAX, Failed, LastChange, PathText, Stamp};
use crate::filter::Filter;
use crate::index::{Index, IndexError};
use crate::log::{Draft, Log, LogError, PruneLimits};
use crate::sys::{open, stat};
use unheard::Unheard;

#[derive(Debug, Clone)]
pub struct CaptureOptions {
    pub settle: SettleLimits,
    pub read: ReadOptions,
    pub scan_threads: usize,
    /// The rolling scan, as safety net; without events the only detector.
    pub scan_interval: Duration,
    pub group_records_max: usize,
    /// How long the worker's index may lag behind the log on disk.
    pub index_flush: Duration,
    /// An operator said that what is missing at the first scan may go.
    pub released: bool,
    pub scan_at_start: bool,
    /// Mount points below the source, relative to it, that are part of the tree.
    pub cross: Vec<PathBuf>,
    /// What the log may keep beyond what is needed.
    pub prune: PruneLimits,
}

impl Default for CaptureOptions {
    fn default() -> CaptureOptions {
        CaptureOptions {
            settle: SettleLimits::default(),
            read: ReadOptions::default(),
            scan_threads: std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)),
            scan_interval: Duration::from_secs(3600),
            group_records_max: 4096,
            index_flush: Duration::from_millis(1000),
            released: false,
            scan_at_start: true,
            cross: Vec::new(),
            prune: PruneLimits {
                log_bytes_max: Some(256 << 20),
                content_bytes_max: Some(1 << 30),
                oldest_time_ns: None,
            },
        }
    }
}

pub struct CaptureSetup {
    pub tree: Arc<SourceTree>,
    pub index: Arc<RwLock<Index>>,
    pub log: Log,
    pub watch: Arc<Watch>,
    pub filter: Arc<Filter>,
    pub sink: Arc<dyn Sink>,
    pub shared: Arc<Shared>,
    pub orders: Receiver<Order>,
    /// Where a scan may put what does not fit in memory.
    pub spill: Option<PathBuf>,
    pub options: CaptureOptions,
}

/// Names looked at in one reconcile.
const DUE_MAX: usize = 2048;
/// Entries of read-ahead directories put into one group.
const AHEAD_ENTRIES_MAX: usize = 2048;
/// Missing names kept until a scan ends. More can only be a loss the guard stops at.
const MISSING_MAX: usize = 2_000_000;
/// From here on a file that changes all the time is read only so often...
const LARGE_BYTES: u64 = 32 << 20;
/// ... that reading it takes so many bytes a second ...
const LARGE_BYTES_PER_S: f64 = 64e6;
/// ... but at least this often.
const LARGE_WAIT_MAX: Duration = Duration::from_secs(300);

/// Why a full scan runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Start,
    /// Events were lost, so whatever is gone may have gone by them.
    Overflow,
    /// Nothing should be found.
    Rolling,
    /// New directories that were too large to list at once; not the whole tree.
    Part,
}

struct Running {
    scan: Scan,
    why: Why,
    began: Instant,
    missing: Vec<At>,
    corrections: u64,
    broken: Option<String>,
    found: u64,
}

struct Failing {
    dirty: Dirty,
    failure: Failure,
    since: Stamp,
    tries: u64,
    next: Instant,
}

pub struct Capture {
    tree: Arc<SourceTree>,
    index: Arc<RwLock<Index>>,
    log: Log,
    watch: Arc<Watch>,
    filter: Arc<Filter>,
    sink: Arc<dyn Sink>,
    shared: Arc<Shared>,
    orders: Receiver<Order>,
    spill: Option<PathBuf>,
    options: CaptureOptions,
    source: KernelSource,
    hints: Hints,
    /// Files whose new ctime waits until all hints are heard.
    unconfirmed: Unconfirmed,
    /// Hints that a running reconcile saw early; resolved again after it.
    early: Arc<Mutex<Early>>,
    settle: Settle,
    hot: HotList,
    began: Instant,
    running: Option<Running>,
    /// Directories to scan: everything, or some.
    want_all: Option<Why>,
    want_some: BTreeSet<ObjectId>,
    ahead: VecDeque<PreparedDir>,
    failing: BTreeMap<At, Failing>,
    /// Large files just read, and before when they are not read again.
    large: BTreeMap<ObjectId, Instant>,
    /// Large files that were written meanwhile.
    delayed: BTreeMap<At, (Instant, Dirty)>,
    barriers: Vec<(Instant, Sender<Barrier>)>,
    unheard: Unheard,
    root_dirty: bool,
    last_scan: Instant,
    /// Of a scan of everything.
    last_scan_began: Option<Instant>,
    last_index_flush: Instant,
    last_flush: Instant,
    time_ns: u64,
    unflushed: bool,
    index_dirty: bool,
    index_flush: Option<std::thread::JoinHandle<Result<(), IndexError>>>,
    last_prune: Instant,
    /// The index was durable up to here a minute ago.
    durable_mark: Option<Position>,
    status_dirty: bool,
}

/// What must end the loop.
enum Fatal {
    Log(LogError),
    Index(String),
    Held(Alarm, u64),
}

impl From<LogError> for Fatal {
    fn from(error: LogError) -> Fatal {
        Fatal::Log(error)
    }
}
impl From<IndexError> for Fatal {
    fn from(error: IndexError) -> Fatal {
        Fatal::Index(error.to_string())
    }
}

#[derive(Default)]
struct Early {
    hints: Vec<Hint>,
    lost: bool,
}

impl Capture {
    pub fn new(setup: CaptureSetup) -> Capture {
        let CaptureSetup {
            tree,
            index,
            log,
            watch,
            filter,
            sink,
            shared,
            orders,
            spill,
            options,
        } = setup;
        let early: Arc<Mutex<Early>> = Arc::default();
        let more = more_hints(watch.clone(), index.clone(), early.clone());
        let source = KernelSource {
            walker: Walker::new(tree.clone()),
            reader: Reader::new(options.read.clone()),
            sink: sink.clone(),
            filter: filter.clone(),
            watch: watch.clone(),
            more,
        };
        let now = Instant::now();
        Capture {
            tree,
            index,
            log,
            watch,
            filter,
            sink,
            shared,
            orders,
            spill,
            settle: Settle::new(options.settle),
            options,
            source,
            hints: Hints::new(),
            unconfirmed: Unconfirmed::default(),
            early,
            hot: HotList::default(),
            began: now,
            running: None,
            want_all: None,
            want_some: BTreeSet::new(),
            ahead: VecDeque::new(),
            failing: BTreeMap::new(),
            large: BTreeMap::new(),
            delayed: BTreeMap::new(),
            barriers: Vec::new(),
            unheard: Unheard::default(),
            last_scan_began: None,
            root_dirty: true,
            last_scan: now,
            last_index_flush: now,
            last_flush: now,
            time_ns: 0,
            unflushed: false,
            index_dirty: false,
            index_flush: None,
            last_prune: now,
            durable_mark: None,
            status_dirty: true,
        }
    }

    /// Runs until stopped or until it can't go on. Gives the log back, to be closed.
    pub fn run(mut self) -> Ended {
        let ended = match self.run_until() {
            Ok(()) => Ended::Stopped,
            Err(Fatal::Held(alarm, gone)) => Ended::Held(alarm, gone),
            Err(Fatal::Log(error)) => Ended::Failed(chain(&error)),
            Err(Fatal::Index(error)) => Ended::Failed(error),
        };
        self.running = None;
        if !matches!(ended, Ended::Failed(_)) {
            let closed = self
                .flush()
                .and_then(|()| self.flush_index(true))
                .and_then(|()| Ok(self.log.seal()?));
            if let Err(fatal) = closed {
                return Ended::Failed(match fatal {
                    Fatal::Log(error) => chain(&error),
                    Fatal::Index(error) => error,
                    Fatal::Held(..) => String::new(),
                });
            }
        }
        ended
    }

    fn run_until(&mut self) -> Result<(), Fatal> {
        self.know_root()?;
        if self.options.scan_at_start {
            self.want_all = Some(Why::Start);
        }
        loop {
            self.hear()?;
            self.scan_found()?;
            self.start_scan()?;
            self.release_delayed(false);
            self.look_at_due(false)?;
            self.look_at_hot()?;
            self.look_at_linked(false)?;
            self.count_unwatched();
            self.retry_failed();
            self.flush_in_turn()?;
            self.flush_index(false)?;
            self.answer_barriers()?;
            self.publish();
            if self.wait()? {
                return Ok(());
            }
        }
    }

    fn rows(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn rows_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
    fn time(&mut self) -> u64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64);
        self.time_ns = self.time_ns.max(now);
        self.time_ns
    }

    /// The root is found by its handle, which is this host's own knowledge and no record.
    fn know_root(&mut self) -> Result<(), Fatal> {
        let mut rows = self.rows_mut();
        if let Some(mut root) = rows.object(ObjectId::ROOT)?
            && root.local.handle.as_ref() != Some(&self.tree.id.handle)
        {
            root.local = Local {
                handle: Some(self.tree.id.handle.clone()),
                ino: self.tree.id.ino,
                ..root.local
            };
            rows.put(ObjectId::ROOT, root)?;
        }
        Ok(())
    }

    // ---- hints ----

    fn hear(&mut self) -> Result<(), Fatal> {
        let early = std::mem::take(&mut *self.early.lock().unwrap_or_else(PoisonError::into_inner));
        let (hints, lost) = self.watch.drain();
        let lost = lost || early.lost;
        for hint in early.hints.into_iter().chain(hints) {
            self.hint(hint)?;
        }
        let confirmed = self.unconfirmed.drained(lost, self.now_ms());
        if !confirmed.is_empty() {
            let mut rows = self.rows_mut();
            for (id, local) in confirmed {
                if let Some(mut object) = rows.object(id)?
                    && object.local.handle == local.handle
                {
                    object.local = local;
                    rows.put(id, object)?;
                }
            }
            drop(rows);
            self.index_dirty = true;
        }
        if lost {
            self.lost()?;
        }
        Ok(())
    }

    fn lost(&mut self) -> Result<(), Fatal> {
        self.hints.clear();
        self.shared.lock().overflows += 1;
        self.want_all = Some(Why::Overflow);
        self.note(Note::Overflow)
    }

    fn note(&mut self, note: Note) -> Result<(), Fatal> {
        let time = self.time();
        self.log.append(
            vec![Draft {
                change: Change::Note(note),
                who: None,
                local: None,
                content: None,
            }],
            time,
        )?;
        self.unflushed = true;
        Ok(())
    }

    fn hint(&mut self, hint: Hint) -> Result<(), Fatal> {
        let now = self.now_ms();
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = self.hints.resolve(&*rows, &hint)?;
        self.root_dirty |= found.root;
        self.unconfirmed.heard(&*rows, &found)?;
        if hint.created && !hint.contents {
            for at in 0..found.dirty.len() {
                let Some((name, _, Phase::Open)) = found.dirty.get(at) else {
                    continue;
                };
                let name = name.clone();
                if self.is_complete(&rows, &name)?
                    && let Some((_, _, phase)) = found.dirty.get_mut(at)
                {
                    *phase = Phase::Final;
                }
            }
        }
        self.hold_back(&rows, &mut found.dirty)?;
        self.settle.accept(&mut found, now);
        for dir in found.unknown {
            let walker = &mut self.source.walker;
            if let Some(at) = self
                .hints
                .classify(&*rows, &dir, &mut |dir| walker.locate(dir))?
            {
                self.settle.hint(
                    at,
                    Dirty {
                        contents: true,
                        who: hint.who.clone(),
                        ..Dirty::default()
                    },
                    Phase::Final,
                    now,
                );
            }
        }
        Ok(())
    }

    /// A large file that is written again and again is not read whole each time: it waits, the larger the longer.
    fn hold_back(
        &mut self,
        rows: &Index,
        dirty: &mut Vec<(At, Dirty, Phase)>,
    ) -> Result<(), Fatal> {
        if self.large.is_empty() {
            return Ok(());
        }
        let mut kept = Vec::with_capacity(dirty.len());
        for (at, bits, phase) in dirty.drain(..) {
            let due = bits
                .wrote
                .iter()
                .filter_map(|id| self.large.get(id))
                .max()
                .copied();
            match due {
                Some(due) if due > Instant::now() && rows.name(&at)?.is_some() => {
                    self.delayed
                        .entry(at)
                        .or_insert((due, Dirty::default()))
                        .1
                        .merge(bits);
                }
                _ => kept.push((at, bits, phase)),
            }
        }
        *dirty = kept;
        Ok(())
    }

    /// Large files whose time has come, or (`all`) all of them.
    fn release_delayed(&mut self, all: bool) {
        let now = Instant::now();
        let now_ms = self.now_ms();
        let due: Vec<At> = self
            .delayed
            .iter()
            .filter(|(_, (due, _))| all || *due <= now)
            .map(|(at, _)| at.clone())
            .collect();
        for at in due {
            if let Some((_, dirty)) = self.delayed.remove(&at) {
                self.settle.hint(at, dirty, Phase::Final, now_ms);
            }
        }
        self.large.retain(|_, due| *due > now);
    }

    /// A name that was just made and is nothing that will be written and closed: a symlink, a node, one more link.
    fn is_complete(&mut self, rows: &Index, at: &At) -> Result<bool, Fatal> {
        let Some(parent) = rows.object(at.parent)? else {
            return Ok(true);
        };
        let Some(handle) = parent.local.handle else {
            return Ok(true);
        };
        let trail = if self.source.wants_trail() {
            trail(rows, at.parent)?
        } else {
            None
        };
        let Ok(fd) = self.source.walker.open(&mirror_core::reconcile::Dir {
            handle: &handle,
            trail,
        }) else {
            return Ok(true);
        };
        Ok(match stat::statx(&fd, at.name.as_bytes()) {
            Ok(found) => !found.is_file() || found.nlink > 1,
            Err(_) => true,
        })
    }

    // ---- looking ----

    /// Looks at what is due, or (`all`) at everything that waits.
    fn look_at_due(&mut self, all: bool) -> Result<(), Fatal> {
        let now = if all { u64::MAX } else { self.now_ms() };
        let mut rounds = 0;
        loop {
            let due = self.settle.take(now, DUE_MAX);
            if due.is_empty() && !self.root_dirty {
                return Ok(());
            }
            let roots: &[ObjectId] = if std::mem::take(&mut self.root_dirty) {
                &[ObjectId::ROOT]
            } else {
                &[]
            };
            self.reconcile(due, roots, None)?;
            rounds += 1;
            // The kernel's queue must not grow while we look, and flushes must not wait for ever.
            if !all && rounds >= 4 {
                return Ok(());
            }
        }
    }

    fn reconcile(
        &mut self,
        dirty: Vec<(At, Dirty)>,
        dirs: &[ObjectId],
        ahead: Option<Vec<PreparedDir>>,
    ) -> Result<u64, Fatal> {
        let next = self.log.next_position();
        let limits = Limits {
            group_records_max: self.options.group_records_max,
        };
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        let outcome = match ahead {
            Some(ahead) => {
                let mut source = Prepared::new(&mut self.source, ahead);
                reconcile(&*rows, &mut source, dirty, dirs, next, limits)?
            }
            None => reconcile(&*rows, &mut self.source, dirty, dirs, next, limits)?,
        };
        drop(rows);
        self.commit(outcome)
    }

    fn commit(&mut self, outcome: Outcome) -> Result<u64, Fatal> {
        let Outcome {
            group,
            touched,
            unconfirmed,
            unlisted,
            failed,
            settled,
            busy,
            again,
            foreign,
            ..
        } = outcome;
        let now = Instant::now();
        let now_ms = self.now_ms();
        for at in settled {
            if self.failing.remove(&at).is_some() {
                self.status_dirty = true;
            }
        }
        for (at, dirty, failure) in failed {
            self.fail(at, dirty, failure, now);
        }
        for (at, dirty) in again {
            self.settle.hint(at, dirty, Phase::Open, now_ms);
        }
        if !foreign.is_empty() {
            let paths: Vec<PathText> = foreign.iter().filter_map(|at| self.path(at)).collect();
            self.foreign(paths);
        }
        let records = group.len() as u64;
        if !group.is_empty() {
            let mut drafts = Vec::with_capacity(group.len());
            let store = self.log.content();
            for proposed in group {
                let content = match proposed.body {
                    Body::None => None,
                    Body::Bytes(bytes) => Some(store.put(&bytes).map_err(LogError::from)?),
                    Body::Token(token) => {
                        if let Some(object) = proposed.change.object() {
                            self.sink.bind(token, object);
                        }
                        None
                    }
                };
                drafts.push(Draft {
                    change: proposed.change,
                    who: proposed.who,
                    local: proposed.local,
                    content,
                });
            }
            let time = self.time();
            let records = self.log.append(drafts, time)?;
            self.unflushed = true;
            let leaving = self.leaving(&records)?;
            let index = self.index.clone();
            let mut rows = index.write().unwrap_or_else(PoisonError::into_inner);
            apply_group(&mut *rows, &records).map_err(|e| {
                Fatal::Index(format!("the index refuses a group of its own log: {e:?}"))
            })?;
            drop(rows);
            self.index_dirty = true;
            self.left(leaving)?;
            self.noted(&records);
        }
        if !touched.is_empty() {
            let mut rows = self.rows_mut();
            for (id, local, proven) in touched {
                if let Some(mut object) = rows.object(id)? {
                    object.local = local;
                    if let (Kind::File(content), Some(proven)) = (&mut object.state.kind, proven) {
                        content.proven = proven;
                    }
                    rows.put(id, object)?;
                }
            }
            drop(rows);
            self.index_dirty = true;
        }
        self.unconfirmed.add(unconfirmed, now_ms);
        for id in busy {
            self.hot.add(id, true, now_ms);
        }
        self.want_some.extend(unlisted);
        Ok(records)
    }

    /// Counters and last change from records just appended.
    fn noted(&mut self, records: &[Record]) {
        let mut last = None;
        let mut fuzzy = Vec::new();
        let mut proven = 0;
        let mut large = Vec::new();
        if self.watch.detector == Detector::Inotify {
            self.names_gone(records);
        }
        for record in records {
            let at = match &record.change {
                Change::Create { at, .. } | Change::Link { at, .. } | Change::Unlink { at, .. } => {
                    Some(at)
                }
                Change::Move { to, .. } => Some(to),
                Change::Update { at, .. } => at.as_ref(),
                _ => None,
            };
            last = at.or(last);
            if let (Some(content), Some(id)) = (record.change.content(), record.change.object()) {
                proven += u64::from(content.proven);
                if content.bytes >= LARGE_BYTES {
                    let wait = Duration::from_secs_f64(content.bytes as f64 / LARGE_BYTES_PER_S);
                    large.push((id, Instant::now() + wait.min(LARGE_WAIT_MAX)));
                }
                fuzzy.push((id, content.fuzzy, at));
            }
        }
        let last = last.and_then(|at| self.path(at)).map(|path| LastChange {
            at: Stamp::from_ns(self.time_ns),
            path,
        });
        let fuzzy: Vec<_> = fuzzy
            .into_iter()
            .map(|(id, fuzzy, at)| {
                (
                    id,
                    if fuzzy {
                        at.and_then(|at| self.path(at))
                    } else {
                        None
                    },
                )
            })
            .collect();
        self.large.extend(large);
        let mut status = self.shared.lock();
        if last.is_some() {
            status.last_change = last;
        }
        status.proven += proven;
        for (id, path) in fuzzy {
            match path {
                Some(path) if status.fuzzy.len() < FAILED_MAX => {
                    status.fuzzy.insert(id, path);
                    status.torn += 1;
                }
                Some(_) => status.torn += 1,
                None => {
                    status.fuzzy.remove(&id);
                }
            }
        }
        drop(status);
        self.status_dirty = true;
    }

    /// A writer that opened a file by a name that is gone now is heard of under that name only, which inotify ties to
    /// no inode. Nobody new can come by it, so whoever may still write shows now: the hot list looks.
    fn names_gone(&mut self, records: &[Record]) {
        let now = self.now_ms();
        for record in records {
            let Change::Unlink { object, .. } = &record.change else {
                continue;
            };
            let left = self.rows().object(*object);
            if let Ok(Some(left)) = left
                && matches!(left.state.kind, Kind::File(_))
            {
                self.hot.add(*object, true, now);
            }
        }
    }

    fn path(&self, at: &At) -> Option<PathText> {
        let mut path = Vec::new();
        for name in trail(&*self.rows(), at.parent).ok()?? {
            path.extend_from_slice(name.as_bytes());
            path.push(b'/');
        }
        path.extend_from_slice(at.name.as_bytes());
        Some(PathText::new(&path))
    }

    fn fail(&mut self, at: At, dirty: Dirty, failure: Failure, now: Instant) {
        const BACK_OFF_S_MAX: u64 = 60;
        let failing = self.failing.entry(at).or_insert_with(|| Failing {
            dirty: Dirty::default(),
            failure: failure.clone(),
            since: Stamp::now(),
            tries: 0,
            next: now,
        });
        failing.dirty.merge(dirty);
        failing.failure = failure;
        failing.tries += 1;
        failing.next =
            now + Duration::from_secs((1u64 << failing.tries.min(6)).min(BACK_OFF_S_MAX) / 2);
        self.status_dirty = true;
    }

    fn retry_failed(&mut self) {
        let now = Instant::now();
        let now_ms = self.now_ms();
        for (at, failing) in &mut self.failing {
            if failing.next <= now {
                failing.next = now + Duration::from_secs(60);
                self.settle.hint(
                    at.clone(),
                    Dirty {
                        contents: true,
                        doubt: true,
                        ..failing.dirty.clone()
                    },
                    Phase::Final,
                    now_ms,
                );
            }
        }
    }

    fn look_at_hot(&mut self) -> Result<(), Fatal> {
        let now = self.now_ms();
        for id in self.hot.due(now, 256) {
            self.look_at_hot_one(id, now)?;
        }
        Ok(())
    }

    /// A file that somebody may still write: nobody can any more, or its ctime moved: read it again.
    fn look_at_hot_one(&mut self, id: ObjectId, now: u64) -> Result<(), Fatal> {
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = rows.object(id)? else {
            self.hot.remove(id);
            return Ok(());
        };
        let Some(at) = object.names.first().cloned() else {
            self.hot.remove(id);
            return Ok(());
        };
        let parent = rows
            .object(at.parent)?
            .and_then(|parent| parent.local.handle);
        let trail = if self.source.wants_trail() {
            trail(&*rows, at.parent)?
        } else {
            None
        };
        drop(rows);
        let Some(parent) = parent else { return Ok(()) };
        let opened = self.source.walker.open(&mirror_core::reconcile::Dir {
            handle: &parent,
            trail,
        });
        let Ok(dir) = opened else {
            self.hot.remove(id);
            return Ok(());
        };
        let Ok(fd) = open::file(&dir, at.name.as_bytes()) else {
            self.hot.remove(id);
            return Ok(());
        };
        let Ok(found) = stat::fstat(&fd) else {
            return Ok(());
        };
        if found.ino != object.local.ino {
            self.hot.remove(id);
            return Ok(());
        }
        let writers = crate::sys::lease::writable_by_anyone(&fd).unwrap_or(true)
            && !crate::planted::is("trust_unproven");
        let moved = found.ctime != object.local.ctime;
        // Without leases, or where stores show nowhere (tmpfs), the bytes themselves are asked at the long interval.
        let long = self.hot.interval_ms(id) >= HotList::INTERVAL_MS_MAX;
        if writers {
            let _ = crate::sys::lease::write_protect(&fd);
            self.hot.add(id, moved, now);
        } else {
            self.hot.remove(id);
        }
        if moved || !writers || long {
            let wrote = BTreeSet::from([id]);
            self.settle.hint(
                at,
                Dirty {
                    wrote,
                    ..Dirty::default()
                },
                Phase::Final,
                now,
            );
        }
        Ok(())
    }

    // ---- scans ----

    fn start_scan(&mut self) -> Result<(), Fatal> {
        if self.running.is_some() || !self.ahead.is_empty() {
            return Ok(());
        }
        if self.want_all.is_none() && self.last_scan.elapsed() >= self.scan_interval() {
            self.want_all = Some(Why::Rolling);
        }
        let (why, dirs) = match self.want_all.take() {
            Some(why) => {
                self.want_some.clear();
                self.note(Note::ScanBegin)?;
                (
                    why,
                    vec![(ObjectId::ROOT, self.tree.id.handle.clone(), Vec::new())],
                )
            }
            None if self.want_some.is_empty() => return Ok(()),
            None => {
                let rows = self.rows();
                let mut dirs = Vec::new();
                for id in &self.want_some {
                    if let Some(object) = rows.object(*id)?
                        && let Some(handle) = object.local.handle
                        && let Some(path) = trail(&*rows, *id)?
                    {
                        dirs.push((*id, handle, path));
                    }
                }
                drop(rows);
                self.want_some.clear();
                if dirs.is_empty() {
                    return Ok(());
                }
                (Why::Part, dirs)
            }
        };
        // What the queue holds is older than the scan: resolve it first, so that nothing is lost between them.
        self.source.walker.forget_all();
        let setup = ScanSetup {
            tree: self.tree.clone(),
            index: self.index.clone(),
            filter: self.filter.clone(),
            sink: self.sink.clone(),
            watch: self.watch.clone(),
            read: self.options.read.clone(),
            threads: self.options.scan_threads,
            spill: self.spill.clone(),
        };
        if why != Why::Part {
            self.last_scan_began = Some(Instant::now());
            if let Some(dirs) = self.watch.dirs() {
                dirs.begin_round();
            }
        }
        let scan = Scan::start(setup, &dirs);
        if why != Why::Part {
            self.shared.lock().scan = Some((scan.seen(), Instant::now()));
        }
        self.running = Some(Running {
            scan,
            why,
            began: Instant::now(),
            missing: Vec::new(),
            corrections: 0,
            broken: None,
            found: 0,
        });
        Ok(())
    }

    /// Takes what the workers found, a bounded amount at a time.
    fn scan_found(&mut self) -> Result<(), Fatal> {
        let until = Instant::now() + Duration::from_millis(20);
        let mut ended = false;
        while let Some(running) = &mut self.running
            && let Ok(found) = running.scan.found.try_recv()
        {
            match found {
                Found::End => ended = true,
                Found::Missing(names) => {
                    let why = running.why;
                    if why == Why::Part {
                        let dirty = names.into_iter().map(|at| (at, doubt())).collect();
                        self.reconcile(dirty, &[], None)?;
                    } else if running.missing.len() < MISSING_MAX {
                        running.missing.extend(names);
                    }
                }
                Found::Differ(dirty) => {
                    let found = self.reconcile(dirty, &[], None)?;
                    self.corrected(found);
                }
                Found::Dir(id) => {
                    let found = self.reconcile(Vec::new(), &[id], None)?;
                    self.corrected(found);
                }
                Found::Failed(failed) => {
                    let now = Instant::now();
                    for (at, failure) in failed {
                        self.fail(at, doubt(), failure, now);
                    }
                }
                Found::Foreign(paths) => {
                    self.foreign(paths.iter().map(|path| PathText::new(path)).collect())
                }
                Found::Broken(text) => running.broken = Some(text),
                Found::Ahead(prepared) => {
                    self.ahead.push_back(*prepared);
                    let entries: usize = self.ahead.iter().map(PreparedDir::count).sum();
                    if entries >= AHEAD_ENTRIES_MAX {
                        self.take_ahead()?;
                    }
                }
            }
            if ended || Instant::now() >= until {
                break;
            }
        }
        if ended
            || self
                .running
                .as_ref()
                .is_some_and(|running| running.scan.found.is_empty())
        {
            self.take_ahead()?;
        }
        if ended {
            self.scan_ended()?;
        }
        Ok(())
    }

    fn corrected(&mut self, records: u64) {
        if let Some(running) = &mut self.running {
            running.found += records;
            if running.why == Why::Rolling {
                running.corrections += records;
            }
        }
    }

    /// Directories that were read ahead become one group.
    fn take_ahead(&mut self) -> Result<(), Fatal> {
        while !self.ahead.is_empty() {
            let mut batch: Vec<PreparedDir> = Vec::new();
            let mut handles: BTreeSet<Handle> = BTreeSet::new();
            let mut dirty: Vec<(At, Dirty)> = Vec::new();
            let mut entries = 0;
            let index = self.index.clone();
            let rows = index.read().unwrap_or_else(PoisonError::into_inner);
            while let Some(mut dir) = self.ahead.pop_front() {
                // A directory comes once in a batch, so that its parts do not hide each other.
                if handles.contains(&dir.handle)
                    || (entries > 0 && entries + dir.count() > 2 * AHEAD_ENTRIES_MAX)
                {
                    self.ahead.push_front(dir);
                    break;
                }
                entries += dir.count();
                let changed = |name: &Name, parent| {
                    (
                        At {
                            parent,
                            name: name.clone(),
                        },
                        Dirty {
                            contents: true,
                            ..Dirty::default()
                        },
                    )
                };
                match (rows.by_handle(&dir.handle)?, &dir.own) {
                    (Some(id), _) => {
                        if let Some(token) = dir.token {
                            self.sink.bind(token, id);
                        }
                        dirty.extend(dir.names().map(|name| changed(name, id)));
                        if let Some(own) = dir.own.take()
                            && let Some(parent) = rows.by_handle(&own.parent)?
                        {
                            dirty.push((
                                At {
                                    parent,
                                    name: own.name,
                                },
                                doubt(),
                            ));
                        }
                    }
                    (None, Some(own)) => {
                        if let Some(parent) = rows.by_handle(&own.parent)? {
                            dirty.push(changed(&own.name, parent));
                        } else if !handles.contains(&own.parent) {
                            // Its parent could not be taken; that is listed and tried again, with all below it.
                            if let Some(token) = dir.token {
                                self.sink.forget(token);
                            }
                            continue;
                        }
                    }
                    (None, None) => {
                        if let Some(token) = dir.token {
                            self.sink.forget(token);
                        }
                        continue;
                    }
                }
                handles.insert(dir.handle.clone());
                batch.push(dir);
            }
            drop(rows);
            if !batch.is_empty() {
                let found = self.reconcile(dirty, &[], Some(batch))?;
                self.corrected(found);
            }
        }
        Ok(())
    }

    fn scan_ended(&mut self) -> Result<(), Fatal> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        let Running {
            scan,
            why,
            began,
            missing,
            mut corrections,
            broken,
            mut found,
        } = running;
        let seen = scan.seen();
        drop(scan);
        if why == Why::Part {
            return Ok(());
        }
        if let Some(text) = broken {
            return Err(Fatal::Index(format!(
                "the tree could not be looked at: {text}"
            )));
        }
        let released = std::mem::take(&mut self.options.released);
        if why != Why::Overflow && !released {
            let entries = seen.entries.load(std::sync::atomic::Ordering::Relaxed);
            self.guard(&missing, entries)?;
        }
        for names in missing.chunks(DUE_MAX) {
            let dirty = names.iter().map(|at| (at.clone(), doubt())).collect();
            let gone = self.reconcile(dirty, &[], None)?;
            found += gone;
            if why == Why::Rolling {
                corrections += gone;
            }
        }
        self.note(Note::ScanEnd)?;
        self.flush()?;
        self.last_scan = Instant::now();
        self.sweep_watches()?;
        self.count_unwatched();
        let word = self.correction(corrections);
        let mut status = self.shared.lock();
        status.scan = None;
        status.scans += 1;
        if let Some(text) = word {
            status.corrections += corrections;
            status.notices.push(text);
        }
        drop(status);
        let _ = (began, found);
        self.status_dirty = true;
        Ok(())
    }

    /// Names that are missing, with all below them: too many to believe?
    fn guard(&self, missing: &[At], seen: u64) -> Result<(), Fatal> {
        let rows = self.rows();
        let mut gone = 0;
        let mut dirs: BTreeMap<Name, Loss> = BTreeMap::new();
        for at in missing {
            // What moved elsewhere was attached there meanwhile, and is not lost.
            let Some(id) = rows.name(at)? else { continue };
            let lost = 1 + rows.count_below(id)?;
            gone += lost;
            let mut first = at.clone();
            while first.parent != ObjectId::ROOT {
                let Some(up) = rows
                    .object(first.parent)?
                    .and_then(|dir| dir.names.into_iter().next())
                else {
                    break;
                };
                first = up;
            }
            let is_dir = rows
                .name(&first)?
                .map(|id| rows.object(id))
                .transpose()?
                .flatten()
                .is_some_and(|o| o.state.kind.is_dir());
            if is_dir {
                dirs.entry(first.name).or_default().gone += if at.parent == ObjectId::ROOT {
                    lost - 1
                } else {
                    lost
                };
            }
        }
        for (name, loss) in &mut dirs {
            if let Some(id) = rows.name(&At {
                parent: ObjectId::ROOT,
                name: name.clone(),
            })? {
                loss.before = rows.count_below(id)?;
            }
        }
        let before = rows.stats().entries;
        drop(rows);
        let alarm = if seen == 0 && before > 0 && gone > 0 {
            Some(Alarm::Empty { before })
        } else {
            judge(Loss { before, gone }, &dirs)
        };
        alarm.map_or(Ok(()), |alarm| Err(Fatal::Held(alarm, gone)))
    }

    fn foreign(&mut self, paths: Vec<PathText>) {
        let mut status = self.shared.lock();
        for path in paths {
            if !status.foreign.contains(&path) && status.foreign.len() < FAILED_MAX {
                status.foreign.push(path);
            }
        }
        drop(status);
        self.status_dirty = true;
    }

    // ---- durability ----

    fn flush(&mut self) -> Result<(), Fatal> {
        if std::mem::take(&mut self.unflushed) {
            self.last_flush = Instant::now();
            self.log.flush()?;
        }
        Ok(())
    }

    /// While a scan fills the log, a flush every so often will do.
    fn flush_in_turn(&mut self) -> Result<(), Fatal> {
        const EVERY: Duration = Duration::from_millis(50);
        if self.running.is_some() && self.last_flush.elapsed() < EVERY {
            return Ok(());
        }
        self.flush()
    }

    /// Makes the index durable every so often. The wait for the disk is another thread's, but at the end (`now`).
    fn flush_index(&mut self, now: bool) -> Result<(), Fatal> {
        if self
            .index_flush
            .as_ref()
            .is_some_and(|flush| now || flush.is_finished())
            && let Some(flush) = self.index_flush.take()
        {
            flush
                .join()
                .map_err(|_| Fatal::Index("the index's flush broke off".into()))??;
        }
        if !self.index_dirty
            || self.index_flush.is_some()
            || (!now && self.last_index_flush.elapsed() < self.options.index_flush)
        {
            return Ok(());
        }
        self.flush()?;
        let end = self.log.end();
        let index = self.index.clone();
        let mut rows = index.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = end {
            rows.set_position(end.position, end.head);
        }
        if now {
            rows.flush()?;
        } else if let Some(flush) = rows.flush_start()? {
            drop(rows);
            self.index_flush = Some(std::thread::spawn(move || flush.finish()));
        }
        self.index_dirty = false;
        self.last_index_flush = Instant::now();
        self.prune()
    }

    /// Drops old segments that neither index nor any replica needs.
    fn prune(&mut self) -> Result<(), Fatal> {
        const EVERY: Duration = Duration::from_secs(60);
        if self.last_prune.elapsed() < EVERY {
            return Ok(());
        }
        self.last_prune = Instant::now();
        let needed = self.shared.lock().needed;
        let own = self.durable_mark;
        let mark = self.rows().mark().map(|mark| mark.position);
        self.durable_mark = mark;
        if let (Some(needed), Some(own)) = (needed, own) {
            self.log.prune(needed.min(own), &self.options.prune)?;
        }
        Ok(())
    }

    // ---- others ----

    fn answer_barriers(&mut self) -> Result<(), Fatal> {
        if self.barriers.is_empty()
            || self.running.is_some()
            || self.want_all.is_some()
            || !self.want_some.is_empty()
        {
            return Ok(());
        }
        let began = self.last_scan_began;
        if self.is_blind() && self.barriers.iter().any(|(asked, _)| began < Some(*asked)) {
            self.want_all = Some(Why::Rolling);
            return Ok(());
        }
        // Whatever finished before the order is queued already.
        for _ in 0..8 {
            self.hear()?;
            if self.want_all.is_some() {
                return Ok(());
            }
            let now = self.now_ms();
            for id in self.hot.objects() {
                let Some(at) = self
                    .rows()
                    .object(id)?
                    .and_then(|object| object.names.into_iter().next())
                else {
                    continue;
                };
                self.settle.hint(
                    at,
                    Dirty {
                        wrote: BTreeSet::from([id]),
                        ..Dirty::default()
                    },
                    Phase::Final,
                    now,
                );
            }
            self.release_delayed(true);
            self.look_at_linked(true)?;
            self.look_at_due(true)?;
            if !self.want_some.is_empty() {
                return Ok(());
            }
            let early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
            if early.hints.is_empty() && !early.lost {
                break;
            }
        }
        self.flush()?;
        self.status_dirty = true;
        self.publish();
        let status = self.shared.lock();
        let answer = Barrier {
            position: self.log.end().map(|end| end.position),
            failed: status.failed.clone(),
            failed_total: status.failed_total,
            fuzzy: status.fuzzy.values().cloned().collect(),
            fuzzy_total: status.fuzzy.len() as u64,
        };
        drop(status);
        for (_, barrier) in self.barriers.drain(..) {
            let _ = barrier.send(answer.clone());
        }
        Ok(())
    }

    fn publish(&mut self) {
        if !std::mem::take(&mut self.status_dirty) {
            return;
        }
        // What lay in a directory that is gone can't fail any more.
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        self.failing
            .retain(|at, _| !matches!(rows.object(at.parent), Ok(None)));
        drop(rows);
        let failed: Vec<Failed> = self
            .failing
            .iter()
            .take(FAILED_MAX)
            .filter_map(|(at, failing)| {
                Some(Failed {
                    path: self.path(at)?,
                    reason: format!(
                        "cannot {}: {}",
                        failing.failure.step, failing.failure.reason
                    ),
                    since: failing.since,
                    tries: failing.tries,
                })
            })
            .collect();
        let stats = self.rows().stats();
        let fuzzy: Vec<ObjectId> = self.shared.lock().fuzzy.keys().copied().collect();
        let rows = self.rows();
        let gone: Vec<ObjectId> = fuzzy
            .into_iter()
            .filter(|id| matches!(rows.object(*id), Ok(None)))
            .collect();
        drop(rows);
        let mut status = self.shared.lock();
        for id in gone {
            status.fuzzy.remove(&id);
        }
        status.failed_total = self.failing.len() as u64;
        status.failed = failed;
        status.entries = stats.entries;
        status.files = stats.files;
        status.bytes = stats.bytes;
        status.hot = self.hot.len() as u64;
    }

    /// Waits for the next reason to wake. True: stop.
    fn wait(&mut self) -> Result<bool, Fatal> {
        let now = self.now_ms();
        let busy = !self.ahead.is_empty()
            || (self.running.is_none() && (self.want_all.is_some() || !self.want_some.is_empty()));
        let mut timeout = if busy {
            Duration::ZERO
        } else {
            Duration::from_millis(1000)
        };
        for next in [self.settle.next_ms(), self.hot.next_ms()]
            .into_iter()
            .flatten()
        {
            timeout = timeout.min(Duration::from_millis(next.saturating_sub(now)));
        }
        if let Some(due) = self.delayed.values().map(|(due, _)| *due).min() {
            timeout = timeout.min(due.saturating_duration_since(Instant::now()));
        }
        if self.unflushed {
            timeout = timeout.min(Duration::from_millis(20));
        }
        if self.index_dirty {
            timeout = timeout.min(
                self.options
                    .index_flush
                    .saturating_sub(self.last_index_flush.elapsed()),
            );
        }
        let (wake, orders) = (self.watch.wake.clone(), self.orders.clone());
        let found = self
            .running
            .as_ref()
            .map(|running| running.scan.found.clone());
        let mut select = Select::new();
        let wake_at = select.recv(&wake);
        let orders_at = select.recv(&orders);
        if let Some(found) = &found {
            select.recv(found);
        }
        match select.ready_timeout(timeout) {
            Ok(ready) if ready == wake_at => {
                let _ = wake.try_recv();
            }
            Ok(ready) if ready == orders_at => return self.order(),
            Ok(_) | Err(_) => {}
        }
        Ok(false)
    }

    fn order(&mut self) -> Result<bool, Fatal> {
        match self.orders.try_recv() {
            Ok(Order::Stop) | Err(crossbeam_channel::TryRecvError::Disconnected) => {
                return Ok(true);
            }
            Ok(Order::Barrier(answer)) => {
                self.barriers.push((Instant::now(), answer));
            }
            Ok(Order::Rescan) => self.want_all = Some(self.want_all.unwrap_or(Why::Rolling)),
            Ok(Order::Reread(id)) => {
                let at = self
                    .rows()
                    .object(id)?
                    .and_then(|object| object.names.into_iter().next());
                if let Some(at) = at {
                    let now = self.now_ms();
                    self.settle.hint(
                        at,
                        Dirty {
                            wrote: BTreeSet::from([id]),
                            ..Dirty::default()
                        },
                        Phase::Final,
                        now,
                    );
                }
            }
            Err(crossbeam_channel::TryRecvError::Empty) => {}
        }
        Ok(false)
    }
}

fn doubt() -> Dirty {
    Dirty {
        doubt: true,
        ..Dirty::default()
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What [`Source::more`] answers: names hinted meanwhile, as the rows know them now. The hints come again later.
fn more_hints(
    watch: Arc<Watch>,
    index: Arc<RwLock<Index>>,
    early: Arc<Mutex<Early>>,
) -> Box<dyn FnMut() -> Vec<(At, Dirty)> + Send> {
    Box::new(move || {
        let (hints, lost) = watch.drain();
        let mut names = Vec::new();
        if let Ok(rows) = index.try_read() {
            let mut resolver = Hints::new();
            for hint in &hints {
                if let Ok(found) = resolver.resolve(&*rows, hint) {
                    names.extend(found.dirty.into_iter().map(|(at, dirty, _)| (at, dirty)));
                }
            }
        }
        let mut early = early.lock().unwrap_or_else(PoisonError::into_inner);
        early.hints.extend(hints);
        early.lost |= lost;
        names
    })
}
