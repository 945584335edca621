//! The capture loop: the only writer of the log and of the worker's index.
//!
//! It wakes for hints, for what a scan found, for orders, and for time. What is due is looked at, decided by
//! `mirror_core::reconcile`, appended as one group and made durable. Overflow, start and doubt of any kind are the same
//! thing: a scan of everything.

mod durable;
mod heard;
mod large;
mod look;
mod scans;
mod tell;
mod unheard;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Select, Sender};
use mirror_core::doubt::Doubt;
use mirror_core::guard::Alarm;
use mirror_core::hints::{Hints, Unconfirmed};
use mirror_core::reads::{ReadLimits, Reads};
use mirror_core::reconcile::Dirty;
use mirror_core::settle::{HotList, Phase, Settle, SettleLimits};
use mirror_core::{At, Local, ObjectId, Position, Rows};

use super::kernel::KernelSource;
use super::prepared::PreparedDir;
use super::read::{ReadOptions, Reader};
use super::readers::Readers;
use super::sink::Sink;
use super::state::{Barrier, Ended, Order, Shared};
use super::tree::{SourceTree, Walker};
use super::watch::Watch;
use crate::filter::Filter;
use crate::index::{Index, IndexError};
use crate::log::{Log, LogError, PruneLimits};
use heard::{Early, more_hints};
use look::Failing;
use scans::{Running, Why};
use unheard::Unheard;
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    pub settle: SettleLimits,
    pub read: ReadOptions,
    pub reads: ReadLimits,
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
    /// How often that is looked at.
    pub prune_every: Duration,
}

impl Default for CaptureOptions {
    fn default() -> CaptureOptions {
        CaptureOptions {
            settle: SettleLimits::default(),
            read: ReadOptions::default(),
            reads: ReadLimits::default(),
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
            prune_every: Duration::from_secs(60),
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
    /// Hints were lost, and not all was looked at since.
    doubt: Doubt,
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
    readers: Readers,
    /// Since when something is not in the log that waits for a large file, as it was told.
    behind_ms: Option<u64>,
    barriers: Vec<Asked>,
    unheard: Unheard,
    root_dirty: bool,
    last_scan: Instant,
    scan_took: Duration,
    /// Of a scan of everything.
    last_scan_began: Option<Instant>,
    last_index_flush: Instant,
    last_flush: Instant,
    time_ns: u64,
    unflushed: bool,
    index_dirty: bool,
    index_flush: Option<std::thread::JoinHandle<Result<(), IndexError>>>,
    last_prune: Instant,
    /// The index was durable up to here when that was looked at before.
    durable_mark: Option<Position>,
    status_dirty: bool,
}

/// Somebody waits for what was so until he asked.
struct Asked {
    since: Instant,
    answer: Sender<Barrier>,
    /// Scans that ended since.
    scans: u32,
    /// All that was dirty then was looked at; large files may still be being read.
    looked_ms: Option<u64>,
    /// How often more of them were found by then.
    rounds: u32,
}

/// What must end the loop.
enum Fatal {
    Log(LogError),
    Index(String),
    /// Nothing is heard any more.
    Deaf(String),
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
            mut options,
        } = setup;
        options.read.stop = shared.stop.clone();
        options.read.done = shared.read_bytes.clone();
        let early: Arc<Mutex<Early>> = Arc::default();
        let more = more_hints(watch.clone(), index.clone(), early.clone());
        let source = KernelSource {
            walker: Walker::new(tree.clone()),
            reader: Reader::new(options.read.clone()),
            sink: sink.clone(),
            filter: filter.clone(),
            watch: watch.clone(),
            more,
            reads: Reads::new(options.reads),
            used: Vec::new(),
            sunk: Vec::new(),
        };
        let readers = Readers::new(options.read.clone(), sink.clone());
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
            doubt: Doubt::default(),
            early,
            hot: HotList::default(),
            began: now,
            running: None,
            want_all: None,
            want_some: BTreeSet::new(),
            ahead: VecDeque::new(),
            failing: BTreeMap::new(),
            readers,
            behind_ms: None,
            barriers: Vec::new(),
            unheard: Unheard::default(),
            last_scan_began: None,
            root_dirty: true,
            last_scan: now,
            scan_took: Duration::ZERO,
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
            Err(Fatal::Index(error) | Fatal::Deaf(error)) => Ended::Failed(error),
        };
        self.running = None;
        self.close_readers();
        if !matches!(ended, Ended::Failed(_)) {
            let closed = self
                .flush()
                .and_then(|()| self.flush_index(true))
                .and_then(|()| Ok(self.log.seal()?));
            if let Err(fatal) = closed {
                return Ended::Failed(match fatal {
                    Fatal::Log(error) => chain(&error),
                    Fatal::Index(error) | Fatal::Deaf(error) => error,
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
            // Where there is a copy, what the root itself became waits for the guard like all that is found.
            let copied = self.rows().stats().entries > 0;
            self.root_dirty = !copied;
            if copied {
                self.in_doubt();
            }
        }
        loop {
            self.hear()?;
            self.scan_found()?;
            self.start_scan()?;
            self.take_read();
            self.look_at_due(false)?;
            self.read_large()?;
            self.look_at_hot()?;
            self.look_at_linked(false)?;
            self.count_unwatched();
            self.retry_failed();
            self.flush_in_turn()?;
            self.flush_index(false)?;
            self.answer_barriers()?;
            self.tell_behind();
            self.publish();
            if self.shared.is_stopping() || self.wait()? {
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

    /// Waits for the next reason to wake. True: stop.
    fn wait(&mut self) -> Result<bool, Fatal> {
        let now = self.now_ms();
        let busy = !self.ahead.is_empty()
            || self.scan_waits()
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
        if let Some(room) = self.readers.room()
            && let Some(next) = self.source.reads.next_ms(room)
        {
            timeout = timeout.min(Duration::from_millis(next.saturating_sub(now)));
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
        let read = self.readers.ended().clone();
        select.recv(&read);
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
                self.barriers.push(Asked {
                    since: Instant::now(),
                    answer,
                    scans: 0,
                    looked_ms: None,
                    rounds: 0,
                });
            }
            Ok(Order::Rescan) => self.want_all = Some(self.want_all.unwrap_or(Why::Rolling)),
            Ok(Order::Reread(id)) => {
                let at = self
                    .rows()
                    .object(id)?
                    .and_then(|object| object.names.first().cloned());
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
