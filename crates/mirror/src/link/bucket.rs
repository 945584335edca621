//! A token bucket: how many bytes a second a sender may send.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// No limit until one is set.
#[derive(Default)]
pub struct Bucket {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often another limit was set.
    changes: u64,
    bytes_per_s: Option<u64>,
    /// Bytes that may be sent now; below zero: sent on credit.
    left: f64,
    at: Option<Instant>,
}

impl Bucket {
    pub fn limit(&self, bytes_per_s: Option<u64>) {
        let mut state = lock(&self.state);
        *state = State {
            changes: state.changes + 1,
            bytes_per_s: bytes_per_s.map(|rate| rate.max(1)),
            left: 0.0,
            at: None,
        };
    }

    /// Counts how often a limit was set: who waits because of another one need not.
    pub fn changes(&self) -> u64 {
        let state = lock(&self.state);
        state.changes
    }

    /// Bytes a second.
    pub fn rate(&self) -> Option<u64> {
        let state = lock(&self.state);
        state.bytes_per_s
    }

    /// Counts `bytes` as sent now, and says how long to wait before sending anything more.
    pub fn take(&self, bytes: usize, now: Instant) -> Duration {
        let mut state = lock(&self.state);
        let Some(rate) = state.bytes_per_s.map(|rate| rate as f64) else {
            return Duration::ZERO;
        };
        let since = state
            .at
            .map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        // A tenth of a second of silence may be made up for, no more.
        state.left = (state.left + since * rate).min(rate / 10.0) - bytes as f64;
        state.at = Some(now);
        if state.left >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64((-state.left / rate).min(3600.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_never_waits() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(1 << 30, Instant::now()), Duration::ZERO);
    }

    #[test]
    fn the_rate_is_kept_over_time() {
        let bucket = Bucket::default();
        bucket.limit(Some(1000));
        let start = Instant::now();
        let mut now = start;
        for _ in 0..100 {
            now += bucket.take(500, now);
        }
        let seconds = now.duration_since(start).as_secs_f64();
        assert!((49.0..51.0).contains(&seconds), "{seconds}");
    }
}
