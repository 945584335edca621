//! Where the log ends, shared between its writer and whoever waits for more.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mirror_core::Position;

use super::End;

use crate::sync::lock;

/// Where the log ends, for looking at and waiting on. Clones share it.
#[derive(Clone)]
pub struct Tail {
    shared: Arc<(Mutex<State>, Condvar)>,
}

struct State {
    appended: Option<End>,
    durable: Option<End>,
    /// The segment being written, and how much of it is durable.
    segment: Position,
    durable_bytes: u64,
    stopped: Option<Option<String>>,
    /// Counts calls of `wake`.
    woken: u64,
}

/// Why a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// The durable end is past the position waited on.
    Durable(End),
    /// The deadline passed, or somebody called [`Tail::wake`].
    Deadline,
    /// The writer is gone, or stopped after a failure (`Some`): nothing more comes.
    Stopped(Option<String>),
}

impl Tail {
    pub(super) fn new(end: Option<End>, segment: Position, durable_bytes: u64) -> Tail {
        let state = State {
            appended: end,
            durable: end,
            segment,
            durable_bytes,
            stopped: None,
            woken: 0,
        };
        Tail {
            shared: Arc::new((Mutex::new(state), Condvar::new())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.0)
    }

    /// The last record written, durable or not.
    pub fn appended(&self) -> Option<End> {
        self.lock().appended
    }

    /// The last record that readers see. Of an empty log that follows another one: where it begins.
    pub fn durable(&self) -> Option<End> {
        self.lock().durable
    }

    /// Waits until something after `after` is durable.
    pub fn wait_past(&self, after: Option<Position>, deadline: Instant) -> Waited {
        self.wait_past_since(after, deadline, self.woken())
    }

    /// How often somebody called [`Tail::wake`], for [`Tail::wait_past_since`].
    pub fn woken(&self) -> u64 {
        self.lock().woken
    }

    /// As [`Tail::wait_past`], but a wake since [`Tail::woken`] said `woken` ends it too: none is missed between.
    pub fn wait_past_since(
        &self,
        after: Option<Position>,
        deadline: Instant,
        woken: u64,
    ) -> Waited {
        let mut state = self.lock();
        loop {
            if let Some(end) = state
                .durable
                .filter(|end| after.is_none_or(|after| end.position > after))
            {
                return Waited::Durable(end);
            }
            if let Some(failure) = &state.stopped {
                return Waited::Stopped(failure.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.woken != woken {
                return Waited::Deadline;
            }
            let waited = self.shared.1.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends all waits that are on now; for stopping a loop.
    pub fn wake(&self) {
        self.lock().woken += 1;
        self.shared.1.notify_all();
    }

    pub(super) fn append(&self, end: Option<End>) {
        self.lock().appended = end;
    }

    pub(super) fn flushed(&self, end: Option<End>, segment: Position, durable_bytes: u64) {
        let mut state = self.lock();
        (state.durable, state.segment, state.durable_bytes) = (end, segment, durable_bytes);
        drop(state);
        self.shared.1.notify_all();
    }

    pub(super) fn stop(&self, failure: Option<String>) {
        let mut state = self.lock();
        if state.stopped.is_none() {
            state.stopped = Some(failure);
        }
        drop(state);
        self.shared.1.notify_all();
    }

    /// The segment being written, its durable bytes, and the durable end, all of one moment.
    pub(super) fn view(&self) -> (Position, u64, Option<End>) {
        let state = self.lock();
        (state.segment, state.durable_bytes, state.durable)
    }
}
