//! When to try again: waits grow from one failure to the next, but a host that is there and just does not serve *now* (its
//! service is being restarted) is asked again in a second or two.

use std::time::Duration;

use crate::engine::back_off::BackOff;

/// So often in a row; then it is a failure like any other.
const TRIES_MAX: u32 = 15;
/// One second to one and two thirds.
const WAIT_MS: u64 = 1333;

#[derive(Default)]
pub struct Soon {
    tries: u32,
}

impl Soon {
    /// `soon`: how the last connection ended, or why there was none; `worked`: there was one, and it was good for something.
    pub fn next_wait(&mut self, soon: bool, worked: bool, back_off: &mut BackOff) -> Duration {
        if worked || !soon {
            self.tries = 0;
        }
        if !soon || self.tries >= TRIES_MAX {
            return back_off.next_wait();
        }
        self.tries += 1;
        BackOff::new(WAIT_MS, WAIT_MS).next_wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_restarted_is_asked_soon_and_who_is_gone_less_and_less() {
        let mut back_off = BackOff::default();
        let mut soon = Soon::default();
        let short = |wait: Duration| wait <= Duration::from_secs(2);
        // The host boots: waits grow.
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            last = soon.next_wait(false, false, &mut back_off);
        }
        assert!(last > Duration::from_secs(15));
        // It is up, its service is not yet.
        for _ in 0..TRIES_MAX {
            let wait = soon.next_wait(true, false, &mut back_off);
            assert!(short(wait) && wait >= Duration::from_secs(1), "{wait:?}");
        }
        // And never will be.
        for _ in 0..5 {
            assert!(!short(soon.next_wait(true, false, &mut back_off)));
        }
        // It was there, and said that it ends.
        assert!(short(soon.next_wait(true, true, &mut back_off)));
        assert!(!short(soon.next_wait(false, false, &mut back_off)));
    }
}
