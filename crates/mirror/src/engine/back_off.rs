//! Waits that grow from one failure to the next, and differ from host to host, so that not all come back at once.

use std::io::Read;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct BackOff {
    next_ms: u64,
    ms_min: u64,
    ms_max: u64,
}

const MS_MIN: u64 = 500;
const MS_MAX: u64 = 30_000;

impl Default for BackOff {
    fn default() -> BackOff {
        BackOff::new(MS_MIN, MS_MAX)
    }
}

impl BackOff {
    pub fn new(ms_min: u64, ms_max: u64) -> BackOff {
        BackOff {
            next_ms: ms_min,
            ms_min,
            ms_max,
        }
    }

    /// Between three and five quarters of a time that doubles.
    pub fn next_wait(&mut self) -> Duration {
        let base = self.next_ms;
        self.next_ms = (base * 2).min(self.ms_max);
        let mut random = [0u8; 8];
        let spread = match std::fs::File::open("/dev/urandom")
            .and_then(|mut from| from.read_exact(&mut random))
        {
            Ok(()) => u64::from_le_bytes(random) % (base / 2 + 1),
            Err(_) => u64::from(std::process::id()) % (base / 2 + 1),
        };
        Duration::from_millis(base * 3 / 4 + spread)
    }

    pub fn reset(&mut self) {
        self.next_ms = self.ms_min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_bounded() {
        let mut back_off = BackOff::default();
        let waits: Vec<Duration> = (0..12).map(|_| back_off.next_wait()).collect();
        assert!(waits[0] >= Duration::from_millis(375) && waits[0] <= Duration::from_millis(625));
        assert!(waits.iter().all(|w| *w <= Duration::from_millis(37_500)));
        assert!(waits[11] >= Duration::from_millis(22_500));
        back_off.reset();
        assert!(back_off.next_wait() <= Duration::from_millis(625));
    }
}
