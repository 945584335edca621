//! Batches of the log, gathered and encoded once for all followers that stand at the same place.
//!
//! Followers that keep up stand at the same place nearly always: one of them gathers what comes after it, and the others send
//! the same bytes. A follower that stands anywhere else gathers for itself. Kept for moments, within a limit.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::packed::{Packer, RAW_BYTES_MAX};
use crate::log::{End, Mark};
use crate::sync::lock;

/// All batches together, and what is packed of them takes less than that again. One that is being sent lives on until it is.
pub const BATCHES_BYTES_MAX: usize = 32 << 20;
/// Nobody who keeps up comes later than this.
const KEPT: Duration = Duration::from_secs(10);

/// A place in a tree's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct After {
    tree: [u8; 16],
    end: Option<(u32, u64, [u8; 32])>,
}

impl After {
    pub fn new(tree: [u8; 16], end: Option<End>) -> After {
        let end = end.map(|end| (end.position.epoch, end.position.sequence, end.head.0));
        After { tree, end }
    }
}

/// What comes after a place.
pub struct Made {
    pub parts: Vec<Part>,
    pub end: End,
    /// Where a cursor stands after it.
    pub mark: Mark,
}

/// Messages, encoded, in their order, as many as can be packed together.
pub struct Part {
    frames: Vec<Vec<u8>>,
    /// `None`: not worth it.
    packed: OnceLock<Option<Vec<u8>>>,
}

impl Part {
    pub fn frames(&self) -> &[Vec<u8>] {
        &self.frames
    }

    pub fn bytes(&self) -> usize {
        self.frames.iter().map(Vec::len).sum()
    }

    /// All in one frame, made by whoever wants it first. With what that took, if it was now.
    pub fn packed(&self, packer: &Mutex<Packer>) -> (Option<&Vec<u8>>, Option<Duration>) {
        let mut took = None;
        let packed = self.packed.get_or_init(|| {
            let began = Instant::now();
            let frames: Vec<&[u8]> = self.frames.iter().map(Vec::as_slice).collect();
            let mut packer = lock(packer);
            let packed = packer.pack(&frames);
            took = Some(began.elapsed());
            packed
        });
        (packed.as_ref(), took)
    }
}

impl Made {
    pub fn new(frames: Vec<Vec<u8>>, end: End, mark: Mark) -> Made {
        let mut parts: Vec<Part> = Vec::new();
        for frame in frames {
            match parts.last_mut() {
                Some(last) if last.bytes() + frame.len() <= RAW_BYTES_MAX => {
                    last.frames.push(frame);
                }
                _ => parts.push(Part {
                    frames: vec![frame],
                    packed: OnceLock::new(),
                }),
            }
        }
        Made { parts, end, mark }
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }
}

#[derive(Default)]
pub struct Batches {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    slots: HashMap<After, Slot>,
    /// Those that are made, the oldest first.
    order: VecDeque<(After, Instant)>,
    bytes: usize,
}

enum Slot {
    /// Somebody gathers it.
    Coming,
    Made(Arc<Made>),
}

pub enum Got {
    Made(Arc<Made>),
    /// It is for whoever asked to gather it, and to say so.
    Claimed(Claim),
    /// It takes somebody else too long.
    Busy,
}

/// That somebody gathers; dropped without a batch, the next one may.
pub struct Claim {
    batches: Arc<Batches>,
    after: After,
}

impl Claim {
    pub fn done(self, made: Arc<Made>) {
        let mut state = self.batches.lock();
        state.bytes += made.bytes();
        state.slots.insert(self.after, Slot::Made(made));
        state.order.push_back((self.after, Instant::now()));
        state.shrink(BATCHES_BYTES_MAX, None);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.batches.lock();
        if matches!(state.slots.get(&self.after), Some(Slot::Coming)) {
            state.slots.remove(&self.after);
        }
        drop(state);
        self.batches.changed.notify_all();
    }
}

impl State {
    /// The oldest go until no more than so many bytes are left, and those that were made before `until`.
    fn shrink(&mut self, bytes_max: usize, until: Option<Instant>) {
        while let Some((after, made_at)) = self.order.front().copied()
            && (self.bytes > bytes_max || until.is_some_and(|until| made_at < until))
        {
            self.order.pop_front();
            if let Some(Slot::Made(made)) = self.slots.remove(&after) {
                self.bytes -= made.bytes();
            }
        }
    }
}

impl Batches {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What comes after this place, waited for so long if somebody gathers it.
    pub fn get(self: &Arc<Batches>, after: After, at_most: Duration) -> Got {
        let until = Instant::now() + at_most;
        let mut state = self.lock();
        loop {
            match state.slots.get(&after) {
                Some(Slot::Made(made)) => return Got::Made(made.clone()),
                None => {
                    state.slots.insert(after, Slot::Coming);
                    return Got::Claimed(Claim {
                        batches: self.clone(),
                        after,
                    });
                }
                Some(Slot::Coming) => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Got::Busy;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What was made a while ago goes.
    pub fn sweep(&self) {
        let until = Instant::now().checked_sub(KEPT);
        self.lock().shrink(usize::MAX, until);
    }

    pub fn clear(&self) {
        self.lock().shrink(0, Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::{Digest, Position};

    fn end(sequence: u64) -> End {
        End {
            position: Position { epoch: 1, sequence },
            head: Digest([sequence as u8; 32]),
        }
    }

    fn made(sequence: u64, bytes: usize) -> Arc<Made> {
        let frames = vec![vec![0; bytes]];
        Arc::new(Made::new(frames, end(sequence), Mark::default()))
    }

    fn after(sequence: u64) -> After {
        After::new([1; 16], Some(end(sequence)))
    }

    fn claimed(batches: &Arc<Batches>, after: After) -> Option<Claim> {
        match batches.get(after, Duration::ZERO) {
            Got::Claimed(claim) => Some(claim),
            _ => None,
        }
    }

    #[test]
    fn one_gathers_and_the_others_have_it() {
        let batches = Arc::new(Batches::default());
        let claim = claimed(&batches, after(1)).unwrap();
        assert!(matches!(batches.get(after(1), Duration::ZERO), Got::Busy));
        assert!(claimed(&batches, after(2)).is_some());
        let others: Vec<_> = (0..4)
            .map(|_| {
                let batches = batches.clone();
                std::thread::spawn(
                    move || match batches.get(after(1), Duration::from_secs(60)) {
                        Got::Made(made) => made.end,
                        _ => panic!("it was gathered"),
                    },
                )
            })
            .collect();
        claim.done(made(5, 10));
        for other in others {
            assert_eq!(other.join().unwrap(), end(5));
        }
        // Another tree's log may begin alike.
        assert!(claimed(&batches, After::new([2; 16], Some(end(1)))).is_some());
    }

    #[test]
    fn who_gathers_nothing_leaves_it_to_the_next() {
        let batches = Arc::new(Batches::default());
        let claim = claimed(&batches, after(1)).unwrap();
        drop(claim);
        assert!(claimed(&batches, after(1)).is_some());
        assert!(batches.lock().slots.is_empty());
    }

    #[test]
    fn the_oldest_go() {
        let batches = Arc::new(Batches::default());
        let third = BATCHES_BYTES_MAX / 3;
        for n in 1..=4 {
            claimed(&batches, after(n)).unwrap().done(made(n, third));
        }
        assert!(claimed(&batches, after(1)).is_some());
        assert!(matches!(
            batches.get(after(2), Duration::ZERO),
            Got::Made(_)
        ));
        assert!(batches.lock().bytes <= BATCHES_BYTES_MAX);
        batches.sweep();
        assert_eq!(batches.lock().order.len(), 3);
        batches.clear();
        assert_eq!(batches.lock().bytes, 0);
    }
}
