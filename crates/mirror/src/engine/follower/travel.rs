//! Contents on their way, each carried by a thread of its own into a file of staging, while apply goes on with all else.
//!
//! Decision: `docs/decisions/0008-passing-a-content.md`. A link that breaks, or a process that ends, leaves in the file what
//! came; whoever carries it next goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use mirror_core::{Content, Digest, ObjectId};

use super::contents::{Fetch, Fetching, STALLED, WHOLE_BYTES_MAX};
use super::hub::Hub;
use super::wire::{Link, PieceOf};
use crate::apply::{Fetched, FillError, Filler, Staging};
use crate::sync::lock;
use crate::sys::sched;

/// Contents that travel or have come, and bytes of them. Beyond this apply waits for each.
const CONTENTS_MAX: usize = 1024;
const BYTES_MAX: u64 = 256 << 30;
const THREADS_MAX: usize = 8;
/// Only one of these at a time, so that it leaves room for others.
const LARGE_BYTES_MIN: u64 = 64 << 20;
/// A content that is soon there is waited for, unless that was in vain a moment ago.
const PATIENCE: Duration = Duration::from_millis(50);
const NO_PATIENCE_FOR: Duration = Duration::from_secs(1);
/// What an earlier process left is removed after so long, when nobody asked for it.
const LEFT_FOR: Duration = Duration::from_secs(600);
const SWEPT_EVERY: Duration = Duration::from_secs(60);
const NAP: Duration = Duration::from_millis(200);

type Key = (ObjectId, Digest);

pub struct Travel {
    staging: Arc<Staging>,
    hub: Arc<Hub>,
    fetching: Arc<Fetching>,
    /// The session ends: nothing is waited for.
    stopping: Arc<AtomicBool>,
    state: Mutex<State>,
    changed: Condvar,
    wakes: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    began: Instant,
}

#[derive(Default)]
struct State {
    journeys: BTreeMap<Key, Journey>,
    bytes: u64,
    /// The next journey's number: first come, first served.
    next: u64,
    threads: usize,
    large: usize,
    /// Something arrived that apply does not know of.
    news: bool,
    impatient_until: Option<Instant>,
    /// Files of an earlier process that were not asked for yet.
    left: BTreeSet<String>,
    swept: Option<Instant>,
}

struct Journey {
    content: Content,
    number: u64,
    stage: Stage,
    unwanted: Arc<AtomicBool>,
    _fetch: Fetch,
}

enum Stage {
    Waits,
    Runs,
    There,
    Gone,
    Failed(String),
}

/// Why a content is not carried any further for now.
enum Halt {
    /// Nobody wants it, or the session ends.
    Dropped,
    Gone,
    Failed(String),
}

fn file_of((object, digest): &Key) -> String {
    let hash = blake3::Hash::from_bytes(digest.0);
    format!("{:016x}-{}", object.0, hash.to_hex())
}

impl Travel {
    pub fn new(
        staging: Arc<Staging>,
        hub: Arc<Hub>,
        fetching: Arc<Fetching>,
        stopping: Arc<AtomicBool>,
    ) -> Arc<Travel> {
        let left = staging.travelling().unwrap_or_default();
        Arc::new(Travel {
            staging,
            hub,
            fetching,
            stopping,
            state: Mutex::new(State {
                left: left.into_iter().collect(),
                ..State::default()
            }),
            changed: Condvar::new(),
            wakes: Mutex::default(),
            threads: Mutex::default(),
            began: Instant::now(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Called whenever something arrived.
    pub fn wakes(&self, wake: impl Fn() + Send + Sync + 'static) {
        let mut wakes = lock(&self.wakes);
        *wakes = Some(Box::new(wake));
    }

    /// Nothing is carried any more, and nobody writes. `stopping` is set.
    pub fn close(&self) {
        let mut threads = lock(&self.threads);
        for thread in threads.drain(..) {
            let _ = thread.join();
        }
    }

    /// `None`: so much travels that this one must be asked for in another way.
    pub fn fetch(
        self: &Arc<Self>,
        object: ObjectId,
        content: &Content,
        patiently: bool,
    ) -> Option<Fetched> {
        let key = (object, content.digest);
        let now = Instant::now();
        let mut state = self.lock();
        if !state.journeys.contains_key(&key) {
            let after = state.bytes.saturating_add(content.bytes);
            let full = state.journeys.len() >= CONTENTS_MAX
                || (after > BYTES_MAX && !state.journeys.is_empty());
            if full && !patiently {
                return None;
            }
            self.set_out(&mut state, key, content);
        }
        let soon = content.stored_bytes() <= WHOLE_BYTES_MAX
            && state.impatient_until.is_none_or(|until| now >= until);
        let until = if soon { now + PATIENCE } else { now };
        loop {
            let over = match state.journeys.get(&key).map(|journey| &journey.stage) {
                None => return Some(Fetched::Travels),
                Some(Stage::Waits | Stage::Runs) => false,
                Some(_) => true,
            };
            if over {
                let journey = state.remove(&key)?;
                drop(state);
                return Some(match journey.stage {
                    Stage::There => match self.staging.arrived(&file_of(&key), content) {
                        Ok(staged) => Fetched::Staged(staged),
                        Err(e) => Fetched::Failed(format!("cannot take what came: {e}")),
                    },
                    Stage::Gone => Fetched::Gone,
                    Stage::Failed(reason) => Fetched::Failed(reason),
                    Stage::Waits | Stage::Runs => Fetched::Travels,
                });
            }
            if self.is_over() {
                return Some(Fetched::Failed("the mirror stops".into()));
            }
            let left = until.saturating_duration_since(Instant::now());
            if !patiently && left.is_zero() {
                if soon {
                    state.impatient_until = Some(Instant::now() + NO_PATIENCE_FOR);
                }
                return Some(Fetched::Travels);
            }
            let nap = if patiently { NAP } else { left };
            state = self
                .changed
                .wait_timeout(state, nap)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn set_out(self: &Arc<Self>, state: &mut State, key: Key, content: &Content) {
        state.left.remove(&file_of(&key));
        state.bytes = state.bytes.saturating_add(content.bytes);
        let journey = Journey {
            content: content.clone(),
            number: state.next,
            stage: Stage::Waits,
            unwanted: Arc::default(),
            _fetch: self.fetching.begin(key.1),
        };
        state.next += 1;
        state.journeys.insert(key, journey);
        if state.threads < THREADS_MAX {
            let travel = self.clone();
            let started = std::thread::Builder::new()
                .name("travel".into())
                .spawn(move || travel.carry_all());
            if let Ok(thread) = started {
                state.threads += 1;
                let mut threads = lock(&self.threads);
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
            } else if state.threads == 0
                && let Some(journey) = state.journeys.get_mut(&key)
            {
                journey.stage = Stage::Failed("cannot start a thread".into());
            }
        }
    }

    /// Only this is wanted: of each object this content.
    pub fn keep(&self, wanted: &BTreeMap<ObjectId, Digest>) {
        let mut gone = Vec::new();
        {
            let mut state = self.lock();
            let wants = |(object, digest): &Key| wanted.get(object) == Some(digest);
            let keys: Vec<Key> = state.journeys.keys().copied().collect();
            for key in keys.into_iter().filter(|key| !wants(key)) {
                match state.journeys.get(&key) {
                    // Whoever carries it drops it.
                    Some(journey) if matches!(journey.stage, Stage::Runs) => {
                        journey.unwanted.store(true, Ordering::Release);
                    }
                    _ => {
                        state.remove(&key);
                        gone.push(file_of(&key));
                    }
                }
            }
            if state
                .swept
                .is_none_or(|swept| swept.elapsed() >= SWEPT_EVERY)
            {
                state.swept = Some(Instant::now());
                if self.began.elapsed() >= LEFT_FOR {
                    state.left.clear();
                }
                let known: BTreeSet<String> = state.journeys.keys().map(file_of).collect();
                let there = self.staging.travelling().unwrap_or_default();
                let left = &state.left;
                let lost = |name: &String| !known.contains(name) && !left.contains(name);
                gone.extend(there.into_iter().filter(lost));
            }
        }
        for name in gone {
            self.staging.drop_travelling(&name);
        }
    }

    pub fn has_arrived(&self) -> bool {
        std::mem::take(&mut self.lock().news)
    }

    // ---- the threads ----

    fn carry_all(&self) {
        sched::stand_back();
        loop {
            let Some((key, content, unwanted)) = self.lock().take_up() else {
                return;
            };
            let stage = match self.carry(&key, &content, &unwanted) {
                Ok(()) => Some(Stage::There),
                Err(Halt::Gone) => Some(Stage::Gone),
                Err(Halt::Failed(reason)) => Some(Stage::Failed(reason)),
                Err(Halt::Dropped) => None,
            };
            {
                let mut state = self.lock();
                if content.bytes >= LARGE_BYTES_MIN {
                    state.large -= 1;
                }
                let unwanted = unwanted.load(Ordering::Acquire);
                match stage {
                    Some(stage) if !unwanted => {
                        if let Some(journey) = state.journeys.get_mut(&key) {
                            journey.stage = stage;
                        }
                        state.news = true;
                    }
                    // What came stays for the next session.
                    _ if !unwanted => drop(state.remove(&key)),
                    _ => {
                        state.remove(&key);
                        self.staging.drop_travelling(&file_of(&key));
                    }
                }
            }
            self.changed.notify_all();
            if let Some(wake) = &*lock(&self.wakes) {
                wake();
            }
        }
    }

    /// Until it is there, complete and on stable storage.
    fn carry(&self, key: &Key, content: &Content, unwanted: &AtomicBool) -> Result<(), Halt> {
        let name = file_of(key);
        let go_on = || !self.is_over() && !unwanted.load(Ordering::Acquire);
        let begin = || {
            let file = self.staging.open_travelling(&name);
            let filled = file.map_err(FillError::Io);
            filled.and_then(|file| Filler::open(file, content, &go_on))
        };
        let mut filler = begin().map_err(|e| self.spoilt(&name, e))?;
        let mut found = filler.done() > 0;
        loop {
            let brought = self.bring(key, &mut filler, &go_on);
            brought.map_err(|halt| match halt {
                Ok(Halt::Gone) => {
                    self.staging.drop_travelling(&name);
                    Halt::Gone
                }
                Ok(halt) => halt,
                Err(e) => self.spoilt(&name, e),
            })?;
            match filler.finish() {
                Ok(()) => return Ok(()),
                // What was there before is not to be trusted: once more, all of it.
                Err(FillError::Different) if found => {
                    found = false;
                    self.staging.drop_travelling(&name);
                    filler = begin().map_err(|e| self.spoilt(&name, e))?;
                }
                Err(e) => return Err(self.spoilt(&name, e)),
            }
        }
    }

    /// All that is missing, over as many connections as that takes.
    fn bring(
        &self,
        (object, digest): &Key,
        filler: &mut Filler,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), Result<Halt, FillError>> {
        while !filler.is_complete() {
            let link = self.link(go_on).ok_or(Ok(Halt::Dropped))?;
            if !link.resumes() && filler.done() > 0 {
                filler.restart().map_err(Err)?;
            }
            let Ok((id, pieces)) = link.request(*object, *digest, filler.done()) else {
                // It broke just now.
                std::thread::sleep(NAP);
                continue;
            };
            let mut quiet_since = Instant::now();
            let halt = loop {
                match pieces.recv_timeout(NAP) {
                    Ok(PieceOf::Bytes(bytes, credit)) => {
                        quiet_since = Instant::now();
                        let written = filler.write(&bytes);
                        drop(credit);
                        if let Err(e) = written {
                            link.cancel(id);
                            return Err(Err(e));
                        }
                        if go_on() {
                            continue;
                        }
                        break Halt::Dropped;
                    }
                    Ok(PieceOf::End(0, _)) if filler.is_complete() => return Ok(()),
                    Ok(PieceOf::End(0, _)) => return Err(Err(FillError::Different)),
                    Ok(PieceOf::End(1, _)) => break Halt::Gone,
                    Ok(PieceOf::End(_, reason)) => return Err(Ok(Halt::Failed(reason))),
                    // The link broke: over the next one.
                    Err(RecvTimeoutError::Disconnected) => break Halt::Failed(String::new()),
                    Err(RecvTimeoutError::Timeout) if !go_on() => break Halt::Dropped,
                    Err(RecvTimeoutError::Timeout) if quiet_since.elapsed() >= STALLED => {
                        break Halt::Failed("the worker does not send it".into());
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
            };
            match halt {
                Halt::Failed(reason) if reason.is_empty() => {}
                halt => {
                    link.cancel(id);
                    return Err(Ok(halt));
                }
            }
        }
        Ok(())
    }

    fn link(&self, go_on: &dyn Fn() -> bool) -> Option<Arc<Link>> {
        loop {
            if !go_on() {
                return None;
            }
            if let Some(link) = self.hub.links.get() {
                return Some(link);
            }
            self.hub.links.wait(NAP);
        }
    }

    /// What came is of no use: its room may be needed.
    fn spoilt(&self, name: &str, error: FillError) -> Halt {
        match error {
            FillError::Stopped => Halt::Dropped,
            FillError::Different => {
                self.staging.drop_travelling(name);
                Halt::Failed("the worker sent other bytes than its log says".into())
            }
            FillError::Io(e) => {
                self.staging.drop_travelling(name);
                Halt::Failed(format!("cannot write what comes: {e}"))
            }
        }
    }
}

impl State {
    fn remove(&mut self, key: &Key) -> Option<Journey> {
        let journey = self.journeys.remove(key)?;
        self.bytes = self.bytes.saturating_sub(journey.content.bytes);
        Some(journey)
    }

    /// The next to be carried. `None`: the thread ends.
    fn take_up(&mut self) -> Option<(Key, Content, Arc<AtomicBool>)> {
        let busy = self.large > 0;
        let free = |journey: &Journey| {
            matches!(journey.stage, Stage::Waits)
                && !(busy && journey.content.bytes >= LARGE_BYTES_MIN)
        };
        let next = self
            .journeys
            .iter_mut()
            .filter(|(_, journey)| free(journey));
        let Some((key, journey)) = next.min_by_key(|(_, journey)| journey.number) else {
            self.threads -= 1;
            return None;
        };
        journey.stage = Stage::Runs;
        let taken = (*key, journey.content.clone(), journey.unwanted.clone());
        if taken.1.bytes >= LARGE_BYTES_MIN {
            self.large += 1;
        }
        Some(taken)
    }
}
