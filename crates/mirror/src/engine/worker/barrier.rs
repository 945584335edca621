//! Barriers: what was written to the tree before a call is in the log, then with so many replicas.
//!
//! Nothing is written into the tree for it. The event of a call that has returned is in the kernel's queue already, so
//! capture only has to hear, look and read out (`capture/run/tell.rs`); the log's end then is the position to wait for.

use std::collections::BTreeSet;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use mirror_core::Position;

use super::super::control::{Control, ControlError, Stage, Until, WaitReport};
use super::super::status::Replica;
use super::daemon::{Host, lock};
use crate::capture::state::{Barrier, Order};

/// How soon an acknowledgement is seen.
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl Host {
    /// What happened before this call is in the log, durably.
    pub(super) fn barrier(&self, until: &Until<'_>) -> Result<Barrier, ControlError> {
        loop {
            let Some(live) = self.live() else {
                {
                    let now = lock(&self.now);
                    if let Some(hold) = &now.hold {
                        return Err(ControlError::Held(hold.what.clone()));
                    }
                    if now.paused {
                        let what = "capture is paused: `mirrord resume` lets it go on";
                        return Err(ControlError::Busy(what.into()));
                    }
                    if until.over() {
                        let why = now.no_room.clone();
                        let failed = now.failed.as_ref().map(|(_, reason)| reason.clone());
                        return Err(ControlError::Timeout(match why.or(failed) {
                            Some(why) => format!("capture does not run: {why}"),
                            None => "capture does not run".into(),
                        }));
                    }
                }
                std::thread::sleep(until.nap().min(Duration::from_millis(50)));
                continue;
            };
            let (answer, answered) = bounded(1);
            let _ = live.orders.send(Order::Barrier(answer));
            drop(live);
            loop {
                match answered.recv_timeout(until.nap()) {
                    Ok(barrier) => return Ok(barrier),
                    // The session ended; what it did not see, the next one looks at.
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) if until.over() => {
                        return Err(ControlError::Timeout(
                            "what was written before is not all in the log yet".into(),
                        ));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
        }
    }

    /// Likewise, and then it has come so far on `wanted` replicas; `None`: on all that are there or are waited for, and on
    /// one at least.
    pub(super) fn wait_stage(
        &self,
        stage: Stage,
        wanted: Option<u32>,
        until: &Until<'_>,
    ) -> Result<WaitReport, ControlError> {
        let barrier = self.barrier(until)?;
        let mut report = WaitReport {
            position: barrier.position,
            failed: barrier.failed,
            failed_total: barrier.failed_total,
            fuzzy: barrier.fuzzy,
            fuzzy_total: barrier.fuzzy_total,
            ..WaitReport::default()
        };
        // Who comes later is not waited for, but counts.
        let mut expected: BTreeSet<String> = self.replicas().into_iter().map(|r| r.name).collect();
        loop {
            let replicas = self.replicas();
            // Nor is one that was forgotten meanwhile, or was there only once.
            expected.retain(|name| replicas.iter().any(|replica| replica.name == *name));
            let judged = judge(&replicas, &expected, stage, barrier.position, wanted);
            let over = until.over();
            if !judged.done && !judged.held && !over {
                std::thread::sleep(until.nap().min(LOOK_EVERY));
                continue;
            }
            report.positions = self.status().positions;
            report.missing = judged.missing;
            report.failed_there = judged.failed;
            report.replicas = replicas;
            if judged.held && !judged.done {
                let what = report.replicas.iter().find_map(|replica| {
                    let held = replica.held.as_ref()?;
                    Some(format!("{}: {held}", replica.name))
                });
                return Err(ControlError::Held(what.unwrap_or_default()));
            }
            report.timed_out = !judged.done;
            if report.timed_out && report.missing.is_empty() {
                report.missing.push(match expected.len() {
                    0 => "no replica was ever connected".into(),
                    n => {
                        let more = (wanted.unwrap_or(1) as usize).saturating_sub(n).max(1);
                        format!("{more} more replica(s), of which nothing was ever heard here")
                    }
                });
            }
            return Ok(report);
        }
    }

    /// Those that are there, and those that were and are waited for, by name.
    pub(super) fn replicas(&self) -> Vec<Replica> {
        let live = lock(&self.now).live.clone();
        let durable = live.and_then(|live| live.open.reader.tail().durable());
        self.followers.replicas(durable.map(|end| end.position))
    }
}

struct Judged {
    done: bool,
    /// It can't come true while somebody's hold lasts.
    held: bool,
    missing: Vec<String>,
    /// Paths that failed on those that have come so far.
    failed: u64,
}

fn judge(
    replicas: &[Replica],
    expected: &BTreeSet<String>,
    stage: Stage,
    position: Option<Position>,
    wanted: Option<u32>,
) -> Judged {
    let has = |replica: &Replica| {
        let at = match stage {
            Stage::Received => replica.positions.received,
            Stage::Durable => replica.positions.durable,
            Stage::Applied => replica.positions.applied,
        };
        at >= position
    };
    let reached: BTreeSet<&str> = replicas
        .iter()
        .filter(|replica| has(replica))
        .map(|replica| replica.name.as_str())
        .collect();
    let missing: Vec<String> = expected
        .iter()
        .filter(|name| !reached.contains(name.as_str()))
        .cloned()
        .collect();
    let done = match wanted {
        Some(wanted) => reached.len() >= wanted as usize,
        None => missing.is_empty() && !reached.is_empty(),
    };
    // Only what is applied waits for a hold there.
    let stuck = |name: &String| {
        stage == Stage::Applied
            && replicas
                .iter()
                .any(|replica| replica.name == *name && replica.held.is_some())
    };
    let can = reached.len() + missing.iter().filter(|name| !stuck(name)).count();
    let held = match wanted {
        Some(wanted) => can < wanted as usize && missing.iter().any(stuck),
        None => missing.iter().any(stuck),
    };
    let failed = replicas.iter().filter(|replica| has(replica));
    Judged {
        done,
        held,
        missing,
        failed: failed.map(|replica| replica.failed).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::status::{Lag, Positions, Stamp};

    fn at(sequence: u64) -> Option<Position> {
        Some(Position { epoch: 1, sequence })
    }

    fn replica(name: &str, received: u64, durable: u64, applied: u64) -> Replica {
        Replica {
            name: name.into(),
            connected: true,
            since: Stamp { ms: 0 },
            positions: Positions {
                received: at(received),
                durable: at(durable),
                applied: at(applied),
            },
            lag: Lag::default(),
            failed: 0,
            held: None,
            link: None,
            held_to: None,
        }
    }

    #[test]
    fn who_must_have_come_how_far() {
        let mut two = vec![replica("a", 9, 8, 7), replica("b", 5, 5, 5)];
        let names = |list: &[&str]| list.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
        let all = names(&["a", "b"]);
        let check = |two: &[Replica], stage, position, wanted| {
            let judged = judge(two, &all, stage, at(position), wanted);
            (judged.done, judged.held, judged.missing.join(" "))
        };
        let missing_b = |done| (done, false, "b".to_string());
        assert_eq!(
            check(&two, Stage::Applied, 5, None),
            (true, false, String::new())
        );
        assert_eq!(check(&two, Stage::Applied, 7, None), missing_b(false));
        assert_eq!(check(&two, Stage::Durable, 8, Some(1)), missing_b(true));
        assert_eq!(check(&two, Stage::Received, 9, Some(1)), missing_b(true));
        assert_eq!(check(&two, Stage::Received, 9, Some(2)), missing_b(false));
        // A hold there matters to what must be applied there, and only if no other will do.
        two[1].held = Some("gone".into());
        assert!(check(&two, Stage::Applied, 7, None).1);
        assert!(!check(&two, Stage::Durable, 7, None).1);
        assert!(!check(&two, Stage::Applied, 8, Some(1)).1);
        assert!(check(&two, Stage::Applied, 8, Some(2)).1);
        // What failed on one that is not there yet does not count.
        two[1].failed = 5;
        two[0].failed = 2;
        assert_eq!(judge(&two, &all, Stage::Applied, at(7), Some(1)).failed, 2);
        // Nobody is not everybody.
        let nobody = judge(&[], &names(&[]), Stage::Received, at(1), None);
        assert!(!nobody.done && !nobody.held);
        // Who comes later counts, and is not waited for.
        let later = judge(&two, &names(&["a"]), Stage::Applied, at(7), None);
        assert!(later.done);
    }
}
