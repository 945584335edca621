//! A hold of the worker's that it was told to let go: what it sent before it heard so still speaks of it.

use std::time::{Duration, Instant};

use crate::engine::status::Hold;

/// It has heard by then, and if it says so again, it holds again.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct LetGo(Option<(Hold, Instant)>);

impl LetGo {
    pub fn told(&mut self, hold: Hold, now: Instant) {
        self.0 = Some((hold, now));
    }

    /// What it holds, by what it says now.
    pub fn holds(&mut self, said: Option<Hold>, now: Instant) -> Option<Hold> {
        match &self.0 {
            Some((hold, told))
                if said.as_ref() == Some(hold) && now.duration_since(*told) < HEARD_WITHIN =>
            {
                None
            }
            _ => {
                self.0 = None;
                said
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::status::{HoldReason, Stamp};

    #[test]
    fn what_was_said_before_it_heard_does_not_count() {
        let hold = |ms| {
            Some(Hold {
                reason: HoldReason::Unexplained,
                since: Stamp { ms },
                what: "the source is empty".into(),
                gone: Some(42),
                of: Some(42),
                below: None,
            })
        };
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let told = || {
            let mut let_go = LetGo::default();
            assert_eq!(let_go.holds(hold(1), now), hold(1));
            let_go.told(hold(1).unwrap(), now);
            assert_eq!(let_go.holds(hold(1), after(1)), None);
            let_go
        };
        // Not heard at all, another one, and the same one once it was let go.
        assert_eq!(told().holds(hold(1), after(5)), hold(1));
        assert_eq!(told().holds(hold(2), after(1)), hold(2));
        let mut let_go = told();
        assert_eq!(let_go.holds(None, after(1)), None);
        assert_eq!(let_go.holds(hold(1), after(2)), hold(1));
    }
}
