//! State files in memory, which crash and fail on demand.
//!
//! Strict where file systems differ: data is safe only after a flush of its file, a name only after a flush of its
//! directory, and a failed flush loses what it was to make safe while readers still see it. Names persist in the
//! order they were made, data in any order and by the sector.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskFile};

use crate::sync::lock;

const SECTOR: usize = 512;

/// What an injected failure looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No space left; an append leaves half of its bytes.
    Full,
    /// An input/output error.
    Io,
}

/// A state directory in memory. Clones share it.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    dirs: BTreeSet<String>,
    names: BTreeMap<String, u64>,
    safe_names: BTreeMap<String, u64>,
    /// Since the last flush of their directory.
    name_steps: Vec<NameStep>,
    files: BTreeMap<u64, Bytes>,
    files_made: u64,
    /// Counts crashes: files opened before one are dead.
    life: u64,
    steps: u64,
    fault: Option<(u64, Fault)>,
}

#[derive(Default)]
struct Bytes {
    now: Vec<u8>,
    safe: Vec<u8>,
    /// Since the last flush.
    steps: Vec<DataStep>,
}

enum DataStep {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

enum NameStep {
    Make(String, u64),
    Rename(String, String),
    Remove(String),
}

struct SimFile {
    state: Arc<Mutex<State>>,
    id: u64,
    life: u64,
}

/// Small seeded randomness (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

fn dir_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

impl DataStep {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            DataStep::Write(offset, data) => write(bytes, *offset, data),
            DataStep::Truncate(len) => bytes.resize(*len, 0),
        }
    }
}

impl NameStep {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameStep::Make(name, id) => {
                names.insert(name.clone(), *id);
            }
            NameStep::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            NameStep::Remove(name) => {
                names.remove(name);
            }
        }
    }
    fn is_in(&self, dir: &str) -> bool {
        match self {
            NameStep::Make(name, _) | NameStep::Remove(name) => dir_of(name) == dir,
            NameStep::Rename(from, to) => dir_of(from) == dir || dir_of(to) == dir,
        }
    }
}

impl Bytes {
    /// What a crash leaves.
    fn crash(&mut self, random: &mut Random) {
        let mut left = std::mem::take(&mut self.safe);
        match random.below(4) {
            0 => {}
            1 => self.steps.iter().for_each(|step| step.apply(&mut left)),
            2 => {
                // Some, and of the next one a part.
                let whole = random.below(self.steps.len() + 1);
                self.steps
                    .iter()
                    .take(whole)
                    .for_each(|step| step.apply(&mut left));
                if let Some(DataStep::Write(offset, data)) = self.steps.get(whole) {
                    write(&mut left, *offset, &data[..random.below(data.len() + 1)]);
                }
            }
            _ => {
                // Sectors in no order; what did not get there is zero or anything.
                let garbage = random.below(3) == 0;
                for step in &self.steps {
                    match step {
                        DataStep::Write(offset, data) => {
                            let mut at = 0;
                            while at < data.len() {
                                let len = (SECTOR - (offset + at) % SECTOR).min(data.len() - at);
                                match random.below(4) {
                                    0 if garbage && left.len() <= offset + at => {
                                        let junk: Vec<u8> =
                                            (0..len).map(|_| random.below(256) as u8).collect();
                                        write(&mut left, offset + at, &junk);
                                    }
                                    0 | 1 => {}
                                    _ => write(&mut left, offset + at, &data[at..at + len]),
                                }
                                at += len;
                            }
                        }
                        DataStep::Truncate(_) if random.below(2) == 0 => {}
                        step => step.apply(&mut left),
                    }
                }
            }
        }
        self.now = left.clone();
        self.safe = left;
        self.steps.clear();
    }
}

impl State {
    /// Counts a step that can fail, and fails it if its time has come.
    fn step(&mut self) -> Result<(), Fault> {
        self.steps += 1;
        match self.fault {
            Some((after, fault)) if self.steps > after => Err(fault),
            _ => Ok(()),
        }
    }
    fn find(&self, name: &str) -> io::Result<u64> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn name_step(&mut self, step: NameStep) {
        step.apply(&mut self.names);
        self.name_steps.push(step);
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> io::Error {
        match fault {
            Fault::Full => io::Error::from_raw_os_error(libc::ENOSPC),
            Fault::Io => io::Error::from_raw_os_error(libc::EIO),
        }
    }
}

impl SimDisk {
    pub fn new() -> SimDisk {
        SimDisk::default()
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
    /// Power fails: what was not flushed is dropped or torn, as the seed says. Open files are dead from here on,
    /// injected faults are healed.
    pub fn crash(&self, seed: u64) {
        let mut state = self.lock();
        let mut random = Random(seed);
        state.life += 1;
        state.fault = None;
        let kept = random.below(state.name_steps.len() + 1);
        let steps: Vec<NameStep> = state.name_steps.drain(..).collect();
        steps
            .iter()
            .take(kept)
            .for_each(|step| step.apply(&mut state.safe_names));
        state.names = state.safe_names.clone();
        let named: BTreeSet<u64> = state.names.values().copied().collect();
        state.files.retain(|id, _| named.contains(id));
        state
            .files
            .values_mut()
            .for_each(|bytes| bytes.crash(&mut random));
    }
    /// From the `n`-th next step on (0: at once), every step that writes, flushes or names fails like this.
    pub fn fail_after(&self, n: u64, fault: Fault) {
        let mut state = self.lock();
        state.fault = Some((state.steps + n, fault));
    }
    pub fn heal(&self) {
        self.lock().fault = None;
    }
    /// Steps that could have failed, so far.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }
    /// Changes a file behind its user's back, durably.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.lock();
        let id = state.find(name)?;
        let bytes = state.files.entry(id).or_default();
        change(&mut bytes.now);
        bytes.safe = bytes.now.clone();
        bytes.steps.clear();
        Ok(())
    }
    /// A copy of everything, as it is now, durable.
    pub fn copy(&self) -> SimDisk {
        let state = self.lock();
        let mut copy = State {
            dirs: state.dirs.clone(),
            names: state.names.clone(),
            safe_names: state.names.clone(),
            files_made: state.files_made,
            ..State::default()
        };
        for (id, bytes) in &state.files {
            let now = bytes.now.clone();
            let safe = now.clone();
            copy.files.insert(
                *id,
                Bytes {
                    now,
                    safe,
                    steps: Vec::new(),
                },
            );
        }
        SimDisk {
            state: Arc::new(Mutex::new(copy)),
        }
    }
    fn file(&self, id: u64, life: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            state: self.state.clone(),
            id,
            life,
        })
    }
}

impl Disk for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        state.step()?;
        if !dir_of(name).is_empty() && !state.dirs.contains(dir_of(name)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.files_made += 1;
        let id = state.files_made;
        state.files.insert(id, Bytes::default());
        state.name_step(NameStep::Make(name.to_owned(), id));
        Ok(self.file(id, state.life))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.lock();
        Ok(self.file(state.find(name)?, state.life))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        state.find(from)?;
        state.name_step(NameStep::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.find(name)?;
        state.step()?;
        state.name_step(NameStep::Remove(name.to_owned()));
        Ok(())
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.lock();
        if !dir.is_empty() && !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = state.names.keys().filter(|name| dir_of(name) == dir);
        Ok(names
            .map(|name| name.rsplit('/').next().unwrap_or(name).to_owned())
            .collect())
    }
    fn make_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        state.dirs.insert(dir.to_owned());
        Ok(())
    }
    fn flush_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        let steps = std::mem::take(&mut state.name_steps);
        for step in steps {
            if step.is_in(dir) {
                step.apply(&mut state.safe_names);
            } else {
                state.name_steps.push(step);
            }
        }
        Ok(())
    }
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = lock(&self.state);
        if state.life != self.life {
            return Err(io::Error::other(
                "the machine went down since this file was opened",
            ));
        }
        act(&mut state)
    }
    fn change(&self, state: &mut State, step: DataStep) {
        let bytes = state.files.entry(self.id).or_default();
        step.apply(&mut bytes.now);
        bytes.steps.push(step);
    }
}

impl DiskFile for SimFile {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.with(|state| {
            let end = state.files.entry(self.id).or_default().now.len();
            match state.step() {
                Ok(()) => {
                    self.change(state, DataStep::Write(end, bytes.to_vec()));
                    Ok(())
                }
                Err(fault) => {
                    if fault == Fault::Full {
                        self.change(
                            state,
                            DataStep::Write(end, bytes[..bytes.len() / 2].to_vec()),
                        );
                    }
                    Err(fault.into())
                }
            }
        })
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|state| {
            state.step()?;
            self.change(state, DataStep::Write(offset as usize, bytes.to_vec()));
            Ok(())
        })
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(|state| {
            let bytes = &state.files.entry(self.id).or_default().now;
            let rest = bytes
                .get(usize::try_from(offset).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        })
    }
    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.files.entry(self.id).or_default().now.len() as u64))
    }
    fn flush(&self) -> io::Result<()> {
        self.with(|state| {
            let result = state.step();
            let bytes = state.files.entry(self.id).or_default();
            let steps = std::mem::take(&mut bytes.steps);
            // The kernel marks pages clean even when it could not write them.
            result?;
            steps.iter().for_each(|step| step.apply(&mut bytes.safe));
            Ok(())
        })
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(|state| {
            state.step()?;
            self.change(state, DataStep::Truncate(len as usize));
            Ok(())
        })
    }
}
