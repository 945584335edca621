//! The whole engine on one host: capture, the real log on a disk that fails, and a copy. Crashes, then goes on.

use std::sync::Arc;

use mirror::disk::{Fault, SimDisk};
use mirror::log::{ContentError, Log, LogError, LogOptions};
use mirror_core::model::apply_group;
use mirror_core::{MemRows, Position};

use crate::capture::{Capture, Weakness};
use crate::check::differences;
use crate::copy::{Applied, Copy, Local};
use crate::index_run::{Case, rest};
use crate::journal::{Journal, Stop};
use crate::script::{Setup, Step};
use crate::world::World;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    pub crashes: u64,
    pub kills: u64,
    pub log_failures: u64,
    pub batches: u64,
    pub records: u64,
    pub overflows: u64,
    pub adopted: u64,
    /// Of everything that was recorded and applied, in order: equal runs have equal ones.
    pub trace: u64,
}

pub struct Engine<C> {
    pub world: World,
    setup: Setup,
    weak: Weakness,
    disk: SimDisk,
    capture: Option<Capture>,
    /// The worker's index as it is on disk.
    index: (MemRows, Option<Position>),
    pub copy: C,
    pub stats: EngineStats,
}

const OPTIONS: LogOptions = LogOptions {
    // Small, so that there are many.
    segment_bytes_max: 8 << 10,
    content_segment_bytes_max: 4 << 10,
    content_cache_bytes_max: 1 << 20,
};

/// What a failing disk explains.
fn is_io(error: &LogError) -> bool {
    matches!(
        error,
        LogError::Io { .. } | LogError::Content(ContentError::Io { .. })
    )
}

impl<C: Copy> Engine<C> {
    pub fn new(world: World, setup: Setup, weak: Weakness, copy: C) -> Result<Engine<C>, Stop> {
        let mut engine = Engine {
            world,
            setup,
            weak,
            disk: SimDisk::new(),
            capture: None,
            index: Default::default(),
            copy,
            stats: EngineStats::default(),
        };
        engine.start()?;
        Ok(engine)
    }

    fn note(&mut self, what: &str) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.stats.trace.to_le_bytes());
        hasher.update(what.as_bytes());
        let mut word = [0; 8];
        word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        self.stats.trace = u64::from_le_bytes(word);
    }

    /// The worker comes up: mark set, log opened, index replayed, then everything is looked at.
    fn start(&mut self) -> Result<(), Stop> {
        self.world.tree.queue.listen(true);
        let disk: Arc<SimDisk> = Arc::new(self.disk.clone());
        let log = match Log::open(disk.clone(), OPTIONS) {
            Ok((log, _)) => log,
            Err(LogError::Absent) => {
                let now = self.world.tree.now_ns;
                // Nothing of an earlier try can be left that matters: no record was durable.
                self.index = Default::default();
                Log::create(disk, OPTIONS, [1; 16], [2; 16], now)?
            }
            Err(error) if is_io(&error) => return Err(error.into()),
            Err(error) => return Err(Stop::Wrong(format!("the log does not open: {error:?}"))),
        };
        let (mut rows, position) = self.index.clone();
        let mut cursor = match log.reader().cursor(position) {
            Ok(cursor) => cursor,
            Err(error) if is_io(&error) => return Err(error.into()),
            Err(error) => {
                return Err(Stop::Wrong(format!(
                    "the index is not in the log's history: {error:?}"
                )));
            }
        };
        while let Some(group) = cursor.next_group()? {
            apply_group(&mut rows, &group.records)
                .map_err(|error| format!("the log does not fit the index: {error:?}"))?;
        }
        let journal = Journal::Log(Box::new(log));
        let capture = Capture::resume(&self.world, self.setup, self.weak, journal, rows)?;
        self.capture = Some(capture);
        Ok(())
    }

    /// Down, and up again after some operations that nobody watched.
    fn restart(&mut self, down: usize) -> Result<(), Stop> {
        if let Some(capture) = self.capture.take() {
            self.stats.overflows += capture.stats.overflows;
            self.stats.records += capture.stats.records;
            self.weak.seen = capture.weak.seen;
        }
        self.world.tree.queue.listen(false);
        self.world.go_on(down);
        self.start()
    }

    /// What fails with the log makes the worker start over; what is wrong ends the run.
    fn heal(&mut self, done: Result<(), Stop>) -> Result<(), Stop> {
        let mut done = done;
        for _ in 0..3 {
            match done {
                Err(Stop::Log(error)) => {
                    self.stats.log_failures += 1;
                    self.note(&format!("log: {error}"));
                    self.disk.heal();
                    done = self.restart(0);
                }
                done => return done,
            }
        }
        done
    }

    pub fn step(&mut self, step: &Step) -> Result<(), Stop> {
        let done = self.try_step(step);
        self.heal(done)
    }

    fn capture(&mut self) -> Result<&mut Capture, Stop> {
        self.capture
            .as_mut()
            .ok_or_else(|| Stop::Wrong("the worker is down".into()))
    }

    fn try_step(&mut self, step: &Step) -> Result<(), Stop> {
        match *step {
            Step::Do { .. } | Step::Wait(_) => Ok(()),
            Step::Pump { events, names, .. } => {
                let Some(capture) = &mut self.capture else {
                    return Ok(());
                };
                capture.pump(&mut self.world, events, names)
            }
            Step::Flush { index } => {
                let capture = self.capture()?;
                let end = match capture.journal.log() {
                    Some(log) => log.flush()?,
                    None => None,
                };
                if index && let Some(end) = end {
                    let rows = capture.rows.clone();
                    self.index = (rows, Some(end.position));
                }
                Ok(())
            }
            Step::Apply { groups, kill } => self.apply(groups, kill),
            Step::Checkpoint => Ok(self.copy.checkpoint()?),
            Step::Crash { power, down } => {
                self.stats.crashes += 1;
                self.note("crash");
                if let Some(seed) = power {
                    self.disk.crash(seed);
                }
                self.copy.crash()?;
                self.restart(down)
            }
            Step::Fault { after, full } => {
                let fault = if full { Fault::Full } else { Fault::Io };
                self.disk.fail_after(after, fault);
                Ok(())
            }
        }
    }

    /// Applies what is durable: up to so many groups, and as many as a replay needs.
    fn apply(&mut self, max: usize, kill: Option<u32>) -> Result<(), Stop> {
        let position = self.copy.position();
        let until = self.copy.replay_until();
        let capture = self.capture()?;
        let Some(log) = capture.journal.log() else {
            return Ok(());
        };
        let reader = log.reader();
        let store = log.content();
        let mut cursor = match reader.cursor(position) {
            Ok(cursor) => cursor,
            Err(error) if is_io(&error) => return Err(error.into()),
            Err(error) => {
                return Err(Stop::Wrong(format!(
                    "the copy is not in the log's history: {error:?}"
                )));
            }
        };
        let mut records = Vec::new();
        let mut head = None;
        let mut groups = 0;
        while groups < max
            || until.is_some_and(|until| cursor.position().is_none_or(|at| at < until))
        {
            let Some(group) = cursor.next_group()? else {
                self.copy.log_ends(cursor.position());
                break;
            };
            records.extend(group.records);
            head = Some(group.end.head);
            groups += 1;
        }
        let Some(head) = head else { return Ok(()) };
        let Some(capture) = &self.capture else {
            return Ok(());
        };
        let contents = Local {
            store,
            rows: &capture.rows,
            tree: &self.world.tree,
        };
        let applied = self.copy.apply(&records, head, &contents, kill);
        self.stats.batches += 1;
        self.note(&format!("{:?} {head:?} {applied:?}", self.copy.position()));
        match applied {
            Applied::Done => Ok(()),
            Applied::Killed => {
                self.stats.kills += 1;
                // It is one process.
                self.restart(0)
            }
            Applied::Failed(error) => Err(Stop::Wrong(format!("apply: {error}"))),
        }
    }

    /// The actors are done, the disk is well: everything must become equal.
    pub fn finish(&mut self) -> Result<(), Stop> {
        self.disk.heal();
        self.world.quiet();
        let mut done = self.come_to_rest();
        for _ in 0..3 {
            if !matches!(done, Err(Stop::Log(_))) {
                break;
            }
            self.heal(done)?;
            done = self.come_to_rest();
        }
        done?;
        let found = match &self.capture {
            Some(capture) => differences(&capture.rows, &self.world.tree),
            None => return Err(Stop::Wrong("the worker is down".into())),
        };
        if !found.is_empty() {
            return Err(Stop::Wrong(format!("index: {}", found.join("\n"))));
        }
        self.apply(usize::MAX, None)?;
        let store = match self.capture()?.journal.log() {
            Some(log) => log.content(),
            None => return Ok(()),
        };
        let Some(capture) = &self.capture else {
            return Ok(());
        };
        let contents = Local {
            store,
            rows: &capture.rows,
            tree: &self.world.tree,
        };
        if let Some(failure) = self.copy.retry(&contents)? {
            return Err(Stop::Wrong(format!("still failing: {failure}")));
        }
        self.stats.adopted = self.copy.adopted();
        let found = self.copy.differences(&self.world.tree);
        if !found.is_empty() {
            return Err(Stop::Wrong(found.join("\n")));
        }
        let capture = self.capture()?;
        let (overflows, records) = (capture.stats.overflows, capture.stats.records);
        self.stats.overflows += overflows;
        self.stats.records += records;
        Ok(())
    }

    fn come_to_rest(&mut self) -> Result<(), Stop> {
        let Some(capture) = &mut self.capture else {
            return Err(Stop::Wrong("the worker is down".into()));
        };
        rest(&mut self.world, capture)?;
        if let Some(log) = capture.journal.log() {
            log.flush()?;
        }
        Ok(())
    }
}

/// Runs a whole case; the error says what went wrong.
pub fn run<C: Copy>(case: &Case, weak: Weakness, copy: C) -> Result<EngineStats, String> {
    try_run(case, weak, copy).map_err(|stop| stop.to_string())
}

fn try_run<C: Copy>(case: &Case, weak: Weakness, copy: C) -> Result<EngineStats, Stop> {
    let world = case.world();
    let mut engine = Engine::new(world, case.setup, weak, copy)?;
    while let Some(step) = engine.world.next_step() {
        engine.step(&step)?;
    }
    engine.finish()?;
    Ok(engine.stats)
}
