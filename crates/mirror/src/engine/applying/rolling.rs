//! The rolling verify: while nothing else is to be done the copy is compared with its rows, slowly, again and again.
//!
//! Each pass looks at every entry, and reads the contents of one file in [`READ_PARTS`], so that all are read once in so
//! many passes. What is slow, listing and reading, is another thread's, one thing at a time; what it found is looked at
//! again here, between two batches, where rows and copy are of one moment. What was changed by hand is repaired (what stood
//! there is in `adopted/` then), up to a limit; more is told, and counts as failed until a person decides.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use mirror_core::{At, Content, Name, ObjectId};
use serde::{Deserialize, Serialize};

use super::{Running, chain, root_or};
use crate::apply::{
    ApplyError, Difference, DifferenceKind, Further, Open, same_bytes, store_error,
};
use crate::engine::event::Event;
use crate::engine::going::count_below;
use crate::engine::status::{PathText, Rolling, Stamp};
use crate::engine::verify::word;
use crate::index::Index;
use crate::sys::{self, sched};

/// How often a pass begins, unless it is said otherwise.
pub const EVERY: Duration = Duration::from_secs(24 * 3600);
/// One file in so many is read in a pass.
pub const READ_PARTS: u64 = 7;
/// A pass takes as long as there is, but is not slower than this.
const ENTRIES_PER_S_MIN: u64 = 10;
const BYTES_PER_S_MIN: u64 = 1 << 20;
/// Longest time that a batch has to wait for it.
const SLICE: Duration = Duration::from_millis(5);
/// Entries repaired in one pass without asking: more is no slip of a hand.
const REPAIRED_MAX: u64 = 10_000;
/// Findings of a pass that are named.
const TOLD_MAX: u64 = 10;
const SAVE_EVERY: Duration = Duration::from_secs(60);
const NAMES: usize = 256;
const KEY: &str = "rolling";

/// Kept with the rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    pass: u64,
    /// When the last pass began, or was not due yet.
    began_ms: i64,
    /// One goes on, and has come so far.
    going: bool,
    after: Option<(u64, Vec<u8>)>,
    full_ms: Option<i64>,
    found: u64,
    repaired: u64,
}

pub struct Roll {
    every: Duration,
    kept: Kept,
    saved: Kept,
    saved_at: Instant,
    pass: Option<Pass>,
    /// Paths repaired in the pass before: what is changed again and again is for a person to decide.
    before: HashSet<Vec<u8>>,
}

struct Pass {
    began: Instant,
    /// Entries to be looked at, and how many were.
    entries: u64,
    done: u64,
    after: Option<At>,
    worker: Worker,
    /// It is at something.
    waiting: bool,
    repaired: HashSet<Vec<u8>>,
    entries_repaired: u64,
    told: u64,
}

struct Reading {
    at: At,
    content: Content,
    file: OwnedFd,
    ino: u64,
}

enum Job {
    Read(Reading),
    List { dir: ObjectId, fd: OwnedFd },
}

enum Found {
    Names(ObjectId, Vec<Name>),
    /// Another content than this, in the inode of this number.
    Other(At, Content, u64),
    /// That is all.
    Done,
}

struct Worker {
    jobs: Option<Sender<Job>>,
    found: Receiver<Found>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(bytes_per_s: u64) -> std::io::Result<Worker> {
        let (jobs, taken) = bounded::<Job>(1);
        let (tell, found) = bounded(4);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("rolling".into())
            .spawn(move || {
                sched::stand_back();
                while let Ok(job) = taken.recv() {
                    let done = match job {
                        Job::List { dir, fd } => list(dir, &fd, &tell, &stopped),
                        Job::Read(reading) => read(reading, bytes_per_s, &tell, &stopped),
                    };
                    if done.is_none() || tell.send(Found::Done).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Worker {
            jobs: Some(jobs),
            found,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Whoever waits to tell something must get through, to see that it is over.
            while !thread.is_finished() {
                while self.found.try_recv().is_ok() {}
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
    }
}

/// `None`: nobody listens any more.
fn list(dir: ObjectId, fd: &OwnedFd, tell: &Sender<Found>, stop: &AtomicBool) -> Option<()> {
    let mut names = Vec::new();
    let listed = sys::dir::try_list(fd, |name, _, _| {
        if stop.load(Ordering::Acquire) {
            return Err(());
        }
        names.extend(Name::new(name));
        if names.len() >= NAMES {
            let names = std::mem::take(&mut names);
            return tell.send(Found::Names(dir, names)).map_err(drop);
        }
        Ok(())
    });
    match listed {
        Ok(Err(())) => None,
        // What can't be listed is found when it is looked at.
        Ok(Ok(())) | Err(_) => tell.send(Found::Names(dir, names)).ok(),
    }
}

fn read(reading: Reading, bytes_per_s: u64, tell: &Sender<Found>, stop: &AtomicBool) -> Option<()> {
    let Reading {
        at,
        content,
        file,
        ino,
    } = reading;
    let began = Instant::now();
    let mut bytes = 0u64;
    // What others have in memory stays there.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::NoReuse);
    let same = same_bytes(&file, &content, &mut |more| {
        bytes += more as u64;
        let due = Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
        while began.elapsed() < due && !stop.load(Ordering::Acquire) {
            std::thread::sleep((due - began.elapsed().min(due)).min(Duration::from_millis(50)));
        }
        !stop.load(Ordering::Acquire)
    });
    match same {
        _ if stop.load(Ordering::Acquire) => None,
        Ok(true) => Some(()),
        Ok(false) | Err(_) => tell.send(Found::Other(at, content, ino)).ok(),
    }
}

fn now_ms() -> i64 {
    Stamp::now().ms
}

impl Roll {
    /// The first pass of a copy that was just made begins when the next one would.
    pub fn new(every: Duration, rows: &mut Index) -> Result<Roll, ApplyError> {
        let kept = rows.meta_get(KEY).map_err(store_error)?;
        let kept: Option<Kept> = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut roll = Roll {
            every,
            saved: kept.clone().unwrap_or_default(),
            kept: kept.unwrap_or_default(),
            saved_at: Instant::now(),
            pass: None,
            before: HashSet::new(),
        };
        if roll.kept == Kept::default() {
            roll.kept.began_ms = now_ms();
            roll.save(rows)?;
        }
        Ok(roll)
    }

    fn save(&mut self, rows: &mut Index) -> Result<(), ApplyError> {
        self.saved_at = Instant::now();
        if self.saved == self.kept {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&self.kept).unwrap_or_default();
        rows.meta_put(KEY, &bytes).map_err(store_error)?;
        self.saved = self.kept.clone();
        Ok(())
    }

    fn status(&self) -> Rolling {
        Rolling {
            every_s: self.every.as_secs(),
            last_full: self.kept.full_ms.map(|ms| Stamp { ms }),
            looked_at: self.pass.as_ref().map(|pass| pass.done),
            found: self.kept.found,
            repaired: self.kept.repaired,
        }
    }

    fn is_due(&self) -> bool {
        let every = i64::try_from(self.every.as_millis()).unwrap_or(i64::MAX);
        self.kept.going || now_ms() >= self.kept.began_ms.saturating_add(every)
    }

    /// A file of this pass.
    fn reads(&self, id: ObjectId) -> bool {
        id.0 % READ_PARTS == self.kept.pass % READ_PARTS
    }
}

impl Running {
    /// Looks at some more of the copy, if that is due and nothing else is owed.
    pub(super) fn roll(&mut self) {
        let Some(mut roll) = self.roll.take() else {
            return;
        };
        let rests = self.seeding
            || self.looking
            || self.applier.is_behind()
            || self.applier.replay_until().is_some()
            || !self.applier.failed().is_empty();
        if !rests && (roll.pass.is_some() || roll.is_due()) {
            let done = self.roll_some(&mut roll);
            if let Err(error) = done {
                // The next one begins where it is due.
                let text = format!("the copy can't be looked at: {}", chain(&error));
                self.ui.event(Event::Notice(text));
                roll.pass = None;
                roll.kept.going = false;
                roll.kept.began_ms = now_ms();
            }
            let status = roll.status();
            self.applied.update(|state| state.rolling = Some(status));
        }
        self.roll = Some(roll);
    }

    pub(super) fn roll_every(&mut self, every: Duration) {
        match Roll::new(every, self.applier.store_mut()) {
            Ok(roll) => {
                let status = roll.status();
                self.applied.update(|state| state.rolling = Some(status));
                self.roll = Some(roll);
            }
            Err(error) => self.ui.event(Event::Notice(chain(&error))),
        }
    }

    /// Before the rows are closed.
    pub(super) fn roll_saved(&mut self) {
        if let Some(roll) = &mut self.roll {
            roll.pass = None;
            let _ = roll.save(self.applier.store_mut());
        }
    }

    fn roll_some(&mut self, roll: &mut Roll) -> Result<(), ApplyError> {
        let until = Instant::now() + SLICE;
        let mut open = self.applier.look_around()?;
        if roll.pass.is_none() {
            self.begin_pass(roll)?;
            let Some(pass) = &mut roll.pass else {
                return Ok(());
            };
            // The root has no entry that stands for it.
            if pass.after.is_none() {
                let mut found = Vec::new();
                let further = self
                    .applier
                    .verify_root(&mut |found_one| found.push(found_one))?;
                pass.hand_over(ObjectId::ROOT, None, further);
                self.roll_found(roll, found)?;
            }
        }
        while Instant::now() < until {
            let Some(pass) = &mut roll.pass else {
                return Ok(());
            };
            let found = match pass.worker.found.try_recv() {
                Ok(Found::Done) => {
                    pass.waiting = false;
                    continue;
                }
                Ok(Found::Names(dir, names)) => {
                    let mut extra = Vec::new();
                    for name in names {
                        extra.extend(self.applier.verify_extra(&mut open, dir, name)?);
                    }
                    extra
                }
                Ok(Found::Other(at, content, ino)) => self
                    .applier
                    .verify_content(&mut open, &at, &content, ino)?
                    .into_iter()
                    .collect(),
                Err(TryRecvError::Disconnected) => {
                    return Err(ApplyError::Records("the looking thread broke off".into()));
                }
                Err(TryRecvError::Empty) => {
                    if pass.waiting || pass.done >= pass.due(roll.every) {
                        break;
                    }
                    match self.next_entry(roll, &mut open)? {
                        Some(found) => found,
                        None => break,
                    }
                }
            };
            if !found.is_empty() {
                self.roll_found(roll, found)?;
                // What was put right may be another directory now.
                open = self.applier.look_around()?;
            }
        }
        if roll.saved_at.elapsed() >= SAVE_EVERY {
            roll.save(self.applier.store_mut())?;
            self.unsaved.get_or_insert(Instant::now());
        }
        Ok(())
    }

    fn begin_pass(&mut self, roll: &mut Roll) -> Result<(), ApplyError> {
        let stats = self.applier.store().stats();
        let seconds = roll.every.as_secs().max(1);
        let rate = (stats.bytes / READ_PARTS / seconds * 2).max(BYTES_PER_S_MIN);
        let worker = Worker::start(rate)
            .map_err(|e| ApplyError::Records(format!("cannot start a thread: {e}")))?;
        let resumed = std::mem::replace(&mut roll.kept.going, true);
        if !resumed {
            roll.kept.pass += 1;
            roll.kept.began_ms = now_ms();
            roll.kept.after = None;
        }
        let after = roll.kept.after.as_ref().and_then(|(parent, name)| {
            let name = Name::new(name).ok()?;
            let parent = ObjectId(*parent);
            Some(At { parent, name })
        });
        roll.pass = Some(Pass {
            began: Instant::now(),
            entries: stats.entries.max(1),
            done: 0,
            after,
            worker,
            waiting: false,
            repaired: HashSet::new(),
            entries_repaired: 0,
            told: 0,
        });
        Ok(())
    }

    /// Looks at the next entry. `None`: there is none, the pass is over.
    fn next_entry(
        &mut self,
        roll: &mut Roll,
        open: &mut Open,
    ) -> Result<Option<Vec<Difference>>, ApplyError> {
        let Some(pass) = &roll.pass else {
            return Ok(None);
        };
        let next = self
            .applier
            .store()
            .entry_after(pass.after.as_ref())
            .map_err(store_error)?;
        let Some((at, id)) = next else {
            roll.before = roll
                .pass
                .take()
                .map(|pass| pass.repaired)
                .unwrap_or_default();
            roll.kept.going = false;
            roll.kept.after = None;
            roll.kept.full_ms = Some(now_ms());
            roll.save(self.applier.store_mut())?;
            self.unsaved.get_or_insert(Instant::now());
            return Ok(None);
        };
        let mut found = Vec::new();
        let read = roll.reads(id);
        let further = self
            .applier
            .verify_entry(open, &at, id, read, &mut |difference| {
                found.push(difference)
            })?;
        roll.kept.after = Some((at.parent.0, at.name.as_bytes().to_vec()));
        if let Some(pass) = &mut roll.pass {
            pass.done += 1;
            pass.after = Some(at.clone());
            pass.hand_over(id, Some(at), further);
        }
        Ok(Some(found))
    }

    /// What was changed by hand is told, and put right.
    fn roll_found(&mut self, roll: &mut Roll, found: Vec<Difference>) -> Result<(), ApplyError> {
        for difference in found {
            if difference.what == DifferenceKind::Pending || self.left_out.has(&difference) {
                continue;
            }
            let entries = match difference.object {
                Some(_) if difference.what == DifferenceKind::Meta => 1,
                Some(id) => count_below(self.applier.store(), id, REPAIRED_MAX)
                    .map_err(store_error)?
                    .saturating_add(1),
                None => 1,
            };
            let Some(pass) = &mut roll.pass else {
                return Ok(());
            };
            let again = roll.before.contains(&difference.path);
            let repairs = !again && pass.entries_repaired + entries <= REPAIRED_MAX;
            if !repairs {
                let mut differing = self.applied.lock().differing.clone();
                if !differing.add_once(&difference) {
                    continue;
                }
                self.differ(differing)?;
            }
            roll.kept.found += 1;
            pass.told += 1;
            let told = pass.told;
            let path = PathText::new(root_or(&difference.path));
            let changed = format!(
                "{path} was changed by hand in the copy ({})",
                word(difference.what)
            );
            if repairs {
                pass.entries_repaired += entries;
                pass.repaired.insert(difference.path.clone());
                let mut outcome = self
                    .applier
                    .repair(std::slice::from_ref(&difference), &*self.contents)?;
                let failed = outcome.failed.clone();
                // Nobody was told that it had failed.
                outcome.healed.clear();
                self.took(outcome);
                self.repaired(std::slice::from_ref(&difference), &failed);
                roll.kept.repaired += u64::from(failed.is_empty());
            }
            let text = match (told, repairs) {
                (0..=TOLD_MAX, true) => format!("{changed}: repaired"),
                (0..=TOLD_MAX, false) => {
                    let why = if again {
                        "once more"
                    } else {
                        "as very much was"
                    };
                    format!("{changed}, {why}: `fs_mirror verify --repair` puts it right")
                }
                (n, _) if n == TOLD_MAX + 1 => {
                    "more was changed by hand in the copy: `fs_mirror status` counts it".into()
                }
                _ => continue,
            };
            self.ui.event(Event::Notice(text));
        }
        Ok(())
    }
}

impl Pass {
    /// How many entries should have been looked at by now.
    fn due(&self, every: Duration) -> u64 {
        let elapsed = self.began.elapsed().as_secs_f64();
        let share = elapsed / every.as_secs_f64().max(1.0) * self.entries as f64;
        share.max(elapsed * ENTRIES_PER_S_MIN as f64) as u64 + 1
    }

    fn hand_over(&mut self, id: ObjectId, at: Option<At>, further: Further) {
        let job = match (further, at) {
            (Further::Dir(fd), _) => Job::List { dir: id, fd },
            (Further::File(file, content, ino), Some(at)) => Job::Read(Reading {
                at,
                content,
                file,
                ino,
            }),
            (Further::Nothing | Further::File(..), _) => return,
        };
        // It waits for the next one; else it broke off, which is seen in a moment.
        if let Some(jobs) = &self.worker.jobs {
            self.waiting = jobs.try_send(job).is_ok();
        }
    }
}
