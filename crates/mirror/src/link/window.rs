//! How much of what was asked for is under way at once: as much as keeps the link busy, and little more.
//!
//! What is more than that queues somewhere, in ssh, a socket, a router, and a small message queues behind it. The window
//! grows while answers come as fast as they ever did, and shrinks when they come later than that by [`QUEUE_MAX`].

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// What may wait somewhere on the way, as time.
const QUEUE_MAX: Duration = Duration::from_millis(2);
const WINDOW_MIN: u64 = 16 << 10;
const WINDOW_START: u64 = 256 << 10;
const WINDOW_MAX: u64 = 16 << 20;
/// What one piece takes to be sent must not look like a queue, and each costs both ends some work.
const PIECE_TIME: Duration = Duration::from_micros(300);
const PIECE_MIN: u64 = 4 << 10;
const PIECE_MAX: u64 = super::message::PIECE_BYTES as u64;
/// The fastest answer of so long is what the link can do. Twice this, at most.
const FASTEST_OF: Duration = Duration::from_secs(60);
const NAP: Duration = Duration::from_millis(200);

pub struct Window {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    bytes: u64,
    piece: u64,
    sent: u64,
    taken: u64,
    /// What was sent up to where, and when.
    marks: VecDeque<(u64, Instant)>,
    /// The fastest answers of this while and of the one before.
    fastest: [Option<Duration>; 2],
    since: Instant,
    /// The fastest answer since the window was set last, which was when so much had been sent.
    lately: Option<Duration>,
    set_at: u64,
    /// It was never too large yet: twice as much each time.
    young: bool,
    /// Somebody had to wait since then: more would have been sent.
    full: bool,
}

impl Window {
    pub fn new(now: Instant) -> Window {
        Window {
            state: Mutex::new(State {
                bytes: WINDOW_START,
                piece: PIECE_MIN,
                sent: 0,
                taken: 0,
                marks: VecDeque::new(),
                fastest: [None; 2],
                since: now,
                lately: None,
                set_at: 0,
                young: true,
                full: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// How long a piece should be.
    pub fn piece(&self) -> usize {
        self.lock().piece as usize
    }

    /// Waits until so many bytes may be sent, and counts them as sent. False: it is over.
    pub fn wait(&self, bytes: usize, is_over: &dyn Fn() -> bool) -> bool {
        let mut state = self.lock();
        loop {
            let under_way = state.sent - state.taken;
            // One is always under way, however large.
            if under_way == 0 || under_way + bytes as u64 <= state.bytes {
                state.sent += bytes as u64;
                let mark = (state.sent, Instant::now());
                state.marks.push_back(mark);
                return true;
            }
            state.full = true;
            if is_over() {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, NAP)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The other side has taken so much of it, in all. False: that can't be.
    pub fn taken(&self, total: u64, now: Instant) -> bool {
        let mut state = self.lock();
        if total > state.sent {
            return false;
        }
        state.taken = state.taken.max(total);
        let mut answered = None;
        while let Some((end, at)) = state.marks.front().copied()
            && end <= total
        {
            state.marks.pop_front();
            answered = Some(now.saturating_duration_since(at));
        }
        if let Some(took) = answered {
            state.answered(took, now);
        }
        self.changed.notify_all();
        true
    }

    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.lock().bytes
    }
}

impl State {
    fn answered(&mut self, took: Duration, now: Instant) {
        let earlier = |a: Option<Duration>| Some(a.map_or(took, |a| a.min(took)));
        if now.saturating_duration_since(self.since) >= FASTEST_OF {
            self.fastest = [None, self.fastest[0]];
            self.since = now;
        }
        self.fastest[0] = earlier(self.fastest[0]);
        self.lately = earlier(self.lately);
        if self.taken < self.set_at {
            return;
        }
        // All that was under way when it was set last was answered.
        let fastest = self.fastest.into_iter().flatten().min();
        if let (Some(fastest), Some(lately)) = (fastest, self.lately.take()) {
            self.young &= lately <= fastest + QUEUE_MAX / 2;
            if self.full {
                let bytes_per_s = self.bytes as f64 / lately.as_secs_f64().max(1e-6);
                let piece = bytes_per_s * PIECE_TIME.as_secs_f64();
                self.piece = (piece as u64).clamp(PIECE_MIN, PIECE_MAX);
            }
            let right = (fastest + QUEUE_MAX).as_secs_f64() / lately.as_secs_f64().max(1e-6);
            let right = if self.young { 2.0 } else { right };
            if right < 1.0 || self.full {
                let bytes = self.bytes as f64 * right.clamp(0.5, 2.0);
                self.bytes = (bytes as u64).clamp(WINDOW_MIN, WINDOW_MAX);
            }
        }
        self.full = false;
        self.set_at = self.sent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link with so much latency and rate, always wanted; the window after so many answers, and how late the last came.
    fn after(answers: u32, latency: Duration, bytes_per_s: u64) -> (u64, Duration) {
        let mut now = Instant::now();
        let window = Window::new(now);
        let mut free = now;
        let mut under_way = VecDeque::new();
        let mut late = Duration::ZERO;
        let (mut sent, mut taken) = (0, 0);
        for _ in 0..answers {
            loop {
                let piece = window.piece() as u64;
                let mut state = window.lock();
                if sent - taken > 0 && sent - taken + piece > state.bytes {
                    state.full = true;
                    break;
                }
                sent += piece;
                state.sent = sent;
                state.marks.push_back((sent, now));
                free = free.max(now) + Duration::from_secs_f64(piece as f64 / bytes_per_s as f64);
                under_way.push_back((sent, now, free + latency));
            }
            let (total, at, due) = under_way.pop_front().unwrap();
            now = now.max(due);
            taken = total;
            late = now - at;
            assert!(window.taken(total, now));
        }
        (window.bytes(), late)
    }

    #[test]
    fn a_long_fat_link_is_filled() {
        // 100 ms and 100 Mbit/s: 1.25 MB are under way.
        let (bytes, _) = after(3000, Duration::from_millis(100), 12_500_000);
        assert!((1_200_000..2_000_000).contains(&bytes), "{bytes}");
        let (bytes, _) = after(5000, Duration::from_millis(10), 1_000_000_000);
        assert!(bytes >= 9_000_000, "{bytes}");
    }

    #[test]
    fn nothing_queues_on_a_slow_one() {
        let (bytes, late) = after(3000, Duration::from_millis(1), 12_500_000);
        assert!(bytes <= 256 << 10, "{bytes}");
        assert!(late <= Duration::from_millis(22), "{late:?}");
        let (bytes, _) = after(3000, Duration::ZERO, 125_000);
        assert!(bytes <= WINDOW_MIN + (16 << 10), "{bytes}");
    }

    #[test]
    fn one_piece_may_always_go_and_no_more_than_was_sent_is_taken() {
        let window = Window::new(Instant::now());
        assert!(window.wait(1 << 30, &|| false));
        assert!(!window.wait(1, &|| true));
        assert!(!window.taken((1 << 30) + 1, Instant::now()));
        assert!(window.taken(1 << 30, Instant::now()));
        assert!(window.wait(1, &|| true));
    }
}
