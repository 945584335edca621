//! How far somebody is behind the log's end, in seconds: when the end went past where he stands.

use std::collections::VecDeque;

use mirror_core::Position;

use crate::engine::status::{Lag, Stamp};

const SAMPLES_MAX: usize = 4096;
/// More often than this the end is not noted.
const EVERY_MS: i64 = 50;

/// Where the log's end was, and since when.
#[derive(Default)]
pub struct Ends {
    samples: VecDeque<(Stamp, Position)>,
    end: Option<Position>,
}

impl Ends {
    /// The durable end is there now.
    pub fn saw(&mut self, now: Stamp, end: Position) {
        if self.end == Some(end) {
            return;
        }
        self.end = Some(end);
        match self.samples.back_mut() {
            // Sooner than so: part of what came then.
            Some((at, position)) if now.ms.saturating_sub(at.ms) < EVERY_MS => *position = end,
            _ => self.samples.push_back((now, end)),
        }
        if self.samples.len() > SAMPLES_MAX {
            self.thin(now);
        }
    }

    /// What is older need not be as exact: a hundredth of its age.
    fn thin(&mut self, now: Stamp) {
        let mut last: Option<i64> = None;
        let mut kept = VecDeque::new();
        for &(at, position) in self.samples.iter().rev() {
            let age = now.ms.saturating_sub(at.ms);
            if last.is_none_or(|last| age.saturating_sub(last) > age / 100) {
                last = Some(age);
                kept.push_front((at, position));
            }
        }
        // All of one moment, if the clock was set back: the newer half will do.
        let over = kept.len().saturating_sub(SAMPLES_MAX / 2);
        kept.drain(..over);
        self.samples = kept;
    }

    /// Of one who has come so far. Exact as far as this process saw; what is older counts from where it began to see.
    pub fn lag(&self, at: Option<Position>, now: Stamp) -> Lag {
        let Some(end) = self.end.filter(|end| at < Some(*end)) else {
            return Lag::default();
        };
        let since = self
            .samples
            .iter()
            .find(|(_, position)| at < Some(*position))
            .map_or(now, |(since, _)| *since);
        Lag {
            seconds: since.seconds_until(now),
            records: end.sequence.saturating_sub(at.map_or(0, |at| at.sequence)),
            bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Position {
        Position { epoch: 1, sequence }
    }

    #[test]
    fn lag_is_since_the_end_went_past() {
        let mut ends = Ends::default();
        let ms = |ms| Stamp { ms };
        assert_eq!(ends.lag(None, ms(5)), Lag::default());
        ends.saw(ms(1000), at(10));
        ends.saw(ms(3000), at(20));
        ends.saw(ms(3010), at(25));
        // Idle: nothing grows.
        assert_eq!(ends.lag(Some(at(25)), ms(99_000)), Lag::default());
        let lag = ends.lag(Some(at(10)), ms(5000));
        assert_eq!((lag.seconds, lag.records), (2.0, 15));
        let lag = ends.lag(None, ms(5000));
        assert_eq!((lag.seconds, lag.records), (4.0, 25));
    }

    #[test]
    fn what_is_noted_has_a_limit() {
        let mut ends = Ends::default();
        for n in 0..100_000i64 {
            ends.saw(Stamp { ms: n * 100 }, at(n as u64 + 1));
            assert!(ends.samples.len() <= SAMPLES_MAX + 1);
        }
        let now = Stamp { ms: 100_000 * 100 };
        for (position, seconds) in [(90_000, 1_000.0), (50_000, 5_000.0), (99_000, 100.0)] {
            let lag = ends.lag(Some(at(position)), now).seconds;
            assert!(
                (seconds * 0.97..seconds * 1.01).contains(&lag),
                "{position}: {lag}"
            );
        }
        assert_eq!(ends.lag(Some(at(100_000)), now), Lag::default());
    }
}
