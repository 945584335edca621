//! A copy begun from a tree that came whole: its records applied from their file, on a thread of its own, before there is
//! a log.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use mirror_core::{Record, codec};

use super::contents::WireContents;
use crate::apply::{Applier, Contents, Counts, Flush, Patient};
use crate::engine::applying::limits::{Bounds, Fits, Pace, Taken, fits};
use crate::engine::applying::{Enter, Told, chain};
use crate::engine::event::{Event, Ui};
use crate::engine::seed;
use crate::engine::status::Hold;
use crate::index::Index;
use crate::log::End;
use crate::sync::lock;

/// Records applied at once.
const BATCH_RECORDS: usize = 8192;

pub struct Begin {
    pub at: End,
    pub tree: [u8; 16],
    pub made: Arc<Made>,
    thread: JoinHandle<Result<Applier<Index>, String>>,
}

/// How much is made.
#[derive(Default)]
pub struct Made {
    pub files: AtomicU64,
    pub bytes: AtomicU64,
    /// There is no room for more.
    full: Mutex<Option<Hold>>,
}

impl Made {
    pub fn full(&self) -> Option<Hold> {
        lock(&self.full).clone()
    }

    /// The hold is told once, and once that it is over.
    fn set_full(&self, hold: Option<Hold>, ui: &dyn Ui) {
        let mut full = lock(&self.full);
        match (&*full, &hold) {
            (None, Some(hold)) => ui.event(Event::Held(hold.clone())),
            (Some(_), None) => ui.event(Event::Released),
            (Some(_), Some(_)) => return,
            (None, None) => {}
        }
        *full = hold;
    }

    fn add(&self, counts: &Counts) {
        let files = counts.created + counts.adopted;
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes
            .fetch_add(counts.content_bytes, Ordering::Relaxed);
    }
}

impl Begin {
    pub fn start(
        mut applier: Applier<Index>,
        contents: WireContents,
        state_dir: PathBuf,
        (at, tree): (End, [u8; 16]),
        asked: Asked,
        enter: Enter,
    ) -> std::io::Result<Begin> {
        let made = Arc::new(Made::default());
        let count = made.clone();
        let thread = std::thread::Builder::new()
            .name("begin".into())
            .spawn(move || {
                enter();
                let path = state_dir.join(seed::FILE);
                let file = File::open(&path).map_err(|e| format!("cannot read the tree: {e}"))?;
                let done = apply(&mut applier, &contents, file, at, &asked, &count);
                let _ = std::fs::remove_file(&path);
                done.map(|()| applier)
            })?;
        Ok(Begin {
            at,
            tree,
            made,
            thread,
        })
    }

    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    pub fn join(self) -> Result<Applier<Index>, String> {
        self.thread
            .join()
            .unwrap_or_else(|_| Err("the thread broke off".into()))
    }
}

/// What the thread must heed.
pub struct Asked {
    pub stopping: Arc<AtomicBool>,
    pub bounds: Arc<Bounds>,
    pub told: Option<Arc<dyn Told>>,
    pub dst: PathBuf,
    pub ui: Arc<dyn Ui>,
}

impl Asked {
    fn stopped(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits until there is room for some of these records, and time; how many. 0: stopped.
    fn room(&self, applier: &Applier<Index>, batch: &[Record], pace: &Pace, made: &Made) -> usize {
        while !self.stopped() {
            let limits = self.bounds.get();
            let wait = pace.wait();
            if limits.ops_max.is_some() && !wait.is_zero() {
                std::thread::sleep(wait.min(Duration::from_millis(50)));
                continue;
            }
            let taken = Taken::of(applier, &self.dst);
            match fits(applier.store(), taken, &limits, batch) {
                Ok(Fits {
                    records: 0,
                    full: Some(hold),
                }) => made.set_full(Some(hold), &*self.ui),
                Ok(found) => {
                    made.set_full(None, &*self.ui);
                    return found.records;
                }
                // Apply says it better.
                Err(_) => return batch.len(),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        0
    }
}

fn apply(
    applier: &mut Applier<Index>,
    contents: &dyn Contents,
    file: File,
    at: End,
    asked: &Asked,
    made: &Made,
) -> Result<(), String> {
    applier
        .set_flush(Flush::Checkpoint)
        .map_err(|e| chain(&e))?;
    let mut from = BufReader::new(file);
    let mut head = codec::GENESIS;
    let mut batch = Vec::new();
    let mut pace = Pace::default();
    loop {
        if asked.stopped() {
            return Err("stopped".into());
        }
        let group =
            seed::next_group(&mut from).map_err(|e| format!("cannot read the tree: {e}"))?;
        let last = group.is_none();
        if let Some(group) = group {
            batch.append(&mut seed::decode_group(&group, &mut head)?);
        }
        let ops_max = asked.bounds.get().ops_max;
        let pace_max = ops_max.map_or(BATCH_RECORDS, |ops| usize::try_from(ops).unwrap_or(1));
        while batch.len() >= BATCH_RECORDS.min(pace_max.max(1)) || (last && !batch.is_empty()) {
            let records = asked.room(applier, &batch, &pace, made);
            let some = batch.get(..records).unwrap_or_default();
            if some.is_empty() {
                return Err("stopped".into());
            }
            let outcome = applier
                .apply(some, at.head, &Patient(contents))
                .map_err(|e| chain(&e))?;
            made.add(&outcome.counts);
            pace.did(records, ops_max);
            batch.drain(..records);
        }
        if last {
            break;
        }
    }
    applier.set_flush(Flush::Batch).map_err(|e| chain(&e))?;
    applier.checkpoint().map_err(|e| chain(&e))?;
    if let Some(told) = &asked.told {
        told.all_changed(Some(at.position));
    }
    Ok(())
}
