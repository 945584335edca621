//! What the apply loop tells others, and what they may ask of it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use mirror_core::{Content, Digest, ObjectId, Position};

use super::control::{ControlError, Until};
use super::differing::Differing;
use super::seed::{Chained, Spooled};
use super::status::{Alarmed, Failed, HistoryStatus, Hold, PathText, Rolling, Travelling};
use crate::apply::{Counts, Difference, Failure, Recorded};
use crate::history::ask::{Answer, Ask};
use crate::history::tree::PastError;
use crate::sync::lock;

/// What others may see and wait for.
#[derive(Default)]
pub struct Applied {
    state: Mutex<ApplyStatus>,
    pub(super) changed: Condvar,
}

#[derive(Default, Clone)]
pub struct ApplyStatus {
    pub applied: Option<Position>,
    /// The rows are as of here, but for what waits for contents on their way.
    pub passed: Option<Position>,
    /// Contents on their way that apply has passed, and their bytes.
    pub travelling: Travelling,
    /// Of those: had failed before, and are asked for again.
    pub again: u64,
    /// Rows and position were durable up to here a while ago: older records are not needed any more.
    pub saved: Option<Position>,
    /// The log's durable end as apply last saw it.
    pub end: Option<Position>,
    /// Time of the oldest record that waits; `None`: nothing waits.
    pub waiting_since_ns: Option<u64>,
    pub counts: Counts,
    pub recorded: Recorded,
    pub failed: Vec<Failed>,
    pub failed_total: u64,
    pub differing: Differing,
    /// By `verify`, since this process began.
    pub repaired: u64,
    pub rolling: Option<Rolling>,
    pub history: Option<HistoryStatus>,
    /// Why it does not go on for now.
    pub waits: Option<String>,
    pub moved_aside: Vec<PathText>,
    pub hold: Option<Hold>,
    pub alarm_gone: u64,
    /// Very much changed at once, and nobody has looked yet.
    pub alarm: Option<Alarmed>,
    /// The loop is over, for this reason.
    pub ended: Option<String>,
    /// And the reason is that the log's records contradict the copy's rows.
    pub misfit: bool,
}

impl Applied {
    pub fn lock(&self) -> MutexGuard<'_, ApplyStatus> {
        lock(&self.state)
    }
    /// Waits until something changed, at most so long.
    pub fn wait<'a>(
        &self,
        state: MutexGuard<'a, ApplyStatus>,
        at_most: Duration,
    ) -> MutexGuard<'a, ApplyStatus> {
        self.changed
            .wait_timeout(state, at_most)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
    pub(super) fn update(&self, change: impl FnOnce(&mut ApplyStatus)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// An order to the loop, answered between two batches.
pub enum ApplyOrder {
    /// Compare the copy with its rows; the answer ends when the channel closes.
    Verify {
        content: bool,
        found: Sender<Difference>,
        /// Sent when `found` is closed: whether everything was looked at.
        done: Sender<Result<(), String>>,
    },
    Repair {
        differences: Vec<Difference>,
        /// What could not be repaired.
        done: Sender<Result<Vec<Failure>, String>>,
    },
    /// Make rows and position durable.
    Checkpoint(Sender<Result<(), String>>),
    /// Try again what failed, now. Answered with how many of what still fails the source was asked about: what it says is
    /// in the log at the next barrier.
    Retry(Sender<u64>),
    /// Say what waits in the log.
    Show(Sender<Result<Going, String>>),
    /// Let a hold go on.
    Release,
    /// What the source's host held was let go on: what comes now passes the guard ...
    Look,
    /// ... until the look that finds it is over, which is in the log up to here.
    Looked(Option<Position>),
    /// What an adopted copy held besides is settled.
    Adopted(Sender<Result<(), String>>),
    /// The first copy is complete: from now on each batch is flushed. Answered when all of it is durable.
    Seeded(Sender<Result<(), String>>),
    /// The copy is equal: look at all of it within so long, again and again.
    Roll(Duration),
    /// Open the file of the copy that has this content, by its rows.
    Open(ObjectId, Digest, Sender<Option<(Content, OwnedFd)>>),
    /// Write a list of the whole tree, as of the position, what is owed included, into a file without a name in this
    /// directory.
    List(PathBuf, Chained, Sender<Result<Spooled, String>>),
    /// A question about the past.
    Past(Ask, Sender<Result<Answer, PastError>>),
    /// Look up: it is to stop.
    Wake,
}

/// Sends orders; the loop looks up at once.
#[derive(Clone)]
pub struct ApplyOrders {
    pub(super) sender: Sender<ApplyOrder>,
    pub(super) tail: crate::log::Tail,
}

impl ApplyOrders {
    /// An error: the loop is over.
    pub fn send(&self, order: ApplyOrder) -> Result<(), crossbeam_channel::SendError<ApplyOrder>> {
        self.sender.send(order)?;
        self.tail.wake();
        Ok(())
    }
}

/// Hears what was applied. Called by the apply loop, which it must not keep.
/// Called by a thread that may start no program and open nothing outside the copy and its state ([`super::confine`]).
pub trait Told: Send + Sync + std::fmt::Debug {
    /// These paths changed; the copy is as of here.
    fn applied(&self, position: Option<Position>, paths: &mut dyn Iterator<Item = Vec<u8>>);
    /// Anything may have changed.
    fn all_changed(&self, position: Option<Position>);
}

/// What the records that wait will do to the copy.
#[derive(Debug, Default, Clone)]
pub struct Going {
    pub gone: u64,
    pub new: u64,
    pub changed: u64,
    /// Some of the paths that go.
    pub sample: Vec<PathText>,
}

impl Applied {
    /// Waits until nothing is held, at most so long.
    pub fn wait_released(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        let mut state = self.lock();
        while state.hold.is_some() && Instant::now() < until {
            state = self.wait(state, Duration::from_millis(50));
        }
    }
}

/// Barriers that a wait adds for what the source was asked about.
pub const AGAIN_ROUNDS: u32 = 8;

/// Tries again what failed. True: the source was asked about some of it, and its answer is in the log at the next barrier.
pub fn try_again(orders: &ApplyOrders, until: &Until<'_>) -> bool {
    let (answer, told) = crossbeam_channel::bounded(1);
    if orders.send(ApplyOrder::Retry(answer)).is_err() {
        return false;
    }
    loop {
        match told.recv_timeout(until.nap()) {
            Ok(asked) => return asked > 0,
            Err(RecvTimeoutError::Timeout) if !until.over() => {}
            Err(_) => return false,
        }
    }
}

/// The answer to a question about the past, once the loop is between two batches.
pub fn past(orders: &ApplyOrders, ask: Ask) -> Result<Answer, ControlError> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let (answer, told) = crossbeam_channel::bounded(1);
    let over = || ControlError::Busy("the mirror is just stopping or starting: try again".into());
    orders
        .send(ApplyOrder::Past(ask, answer))
        .map_err(|_| over())?;
    match told.recv_timeout(PATIENCE) {
        Ok(answer) => answer.map_err(|error| match error {
            PastError::Unknown(text) => ControlError::Refused(text),
            error => ControlError::Failed(super::applying::chain(&error)),
        }),
        Err(RecvTimeoutError::Timeout) => Err(ControlError::Timeout(
            "apply is busy for longer than a minute".into(),
        )),
        Err(RecvTimeoutError::Disconnected) => Err(over()),
    }
}

/// What waits in the log, if the apply loop says so soon.
pub fn going(orders: &ApplyOrders) -> Option<Going> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let (answer, told) = crossbeam_channel::bounded(1);
    orders.send(ApplyOrder::Show(answer)).ok()?;
    told.recv_timeout(PATIENCE).ok()?.ok()
}
