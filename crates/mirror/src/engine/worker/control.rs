//! What commands ask of the daemon.

use std::time::Duration;

use mirror_core::Position;

use super::super::control::{
    Control, ControlError, LogLine, ReleaseReport, Stage, Until, VerifyEnd, VerifyLine,
    VerifyOptions, WaitReport,
};
use super::super::status::{Lag, Positions, Replica, Stamp, State, Status};
use super::daemon::{Host, lock};
use crate::link::serve::Served;

/// That of the replica that is furthest behind.
fn worst(replicas: &[Replica]) -> Lag {
    let lags = replicas.iter().map(|replica| replica.lag);
    lags.fold(Lag::default(), |worst, lag| Lag {
        seconds: worst.seconds.max(lag.seconds),
        records: worst.records.max(lag.records),
        bytes: worst.bytes.max(lag.bytes),
    })
}

impl Control for Host {
    fn status(&self) -> Status {
        let report = self.report();
        let (state, live) = {
            let now = lock(&self.now);
            let state = match (&now.live, &now.hold, &now.failed) {
                (Some(_), _, _) if report.scan.is_some() && report.scans == 0 => {
                    let scan = report.scan.unwrap_or_default();
                    State::Seeding {
                        files: scan.entries,
                        files_total: None,
                        bytes: scan.bytes,
                        bytes_total: None,
                        bytes_per_s: 0,
                        eta_s: None,
                    }
                }
                (Some(_), _, _) => State::Following,
                (None, Some(hold), _) => State::Hold(hold.clone()),
                (None, None, _) if now.paused => State::Paused {
                    since: Stamp::now(),
                },
                (None, None, Some((_, reason))) => State::Failed {
                    reason: reason.clone(),
                },
                (None, None, None) => match &now.no_room {
                    Some(reason) => State::Failed {
                        reason: format!("{reason}: waiting for room"),
                    },
                    None => State::Starting,
                },
            };
            (state, now.live.clone())
        };
        let (received, durable) = match &live {
            Some(live) => {
                let tail = live.open.reader.tail();
                (tail.appended(), tail.durable())
            }
            None => (None, None),
        };
        let replicas = self.followers.replicas(durable.map(|end| end.position));
        let mut counters = report.counters;
        counters.records = durable.map_or(0, |end| end.position.sequence);
        Status {
            now: Stamp::now(),
            state,
            detector: report.detector,
            positions: Positions {
                received: received.map(|end| end.position),
                durable: durable.map(|end| end.position),
                applied: replicas
                    .iter()
                    .map(|replica| replica.positions.applied)
                    .min()
                    .flatten(),
            },
            last_change: report.last_change,
            entries: report.entries,
            files: report.files,
            bytes: report.bytes,
            counters,
            failed: report.failed,
            failed_total: report.failed_total,
            not_mirrored: report.not_mirrored,
            lag: worst(&replicas),
            bwlimit: self.rate(),
            replicas,
            ..self.began.clone()
        }
    }

    /// On a worker: what happened before is in the log, durably.
    fn wait_idle(&self, until: &Until<'_>) -> Result<WaitReport, ControlError> {
        let barrier = self.barrier(until)?;
        Ok(WaitReport {
            positions: self.status().positions,
            position: barrier.position,
            failed: barrier.failed,
            failed_total: barrier.failed_total,
            fuzzy: barrier.fuzzy,
            fuzzy_total: barrier.fuzzy_total,
            ..WaitReport::default()
        })
    }

    fn wait_replicas(
        &self,
        stage: Stage,
        replicas: Option<u32>,
        until: &Until<'_>,
    ) -> Result<WaitReport, ControlError> {
        self.wait_stage(stage, replicas, until)
    }

    /// On a worker: every follower has applied it.
    fn wait_position(
        &self,
        position: Position,
        until: &Until<'_>,
    ) -> Result<WaitReport, ControlError> {
        loop {
            let status = self.status();
            let everywhere = !status.replicas.is_empty()
                && status
                    .replicas
                    .iter()
                    .all(|replica| replica.positions.applied >= Some(position));
            if everywhere {
                return Ok(WaitReport {
                    positions: status.positions,
                    failed: status.failed,
                    failed_total: status.failed_total,
                    ..WaitReport::default()
                });
            }
            if until.over() {
                return Err(ControlError::Timeout(format!(
                    "not every follower has applied {position}"
                )));
            }
            std::thread::sleep(until.nap());
        }
    }

    fn log(
        &self,
        lines: usize,
        follow: bool,
        each: &mut dyn FnMut(LogLine) -> bool,
    ) -> Result<(), ControlError> {
        self.tell_log(lines, follow, each)
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.want(|want| want.paused = true);
        for _ in 0..300 {
            {
                let now = lock(&self.now);
                if now.live.is_none() && (now.paused || now.hold.is_some()) {
                    return Ok(());
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(ControlError::Timeout(
            "capture did not come to rest within 30 s".into(),
        ))
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.want(|want| want.paused = false);
        Ok(())
    }

    fn release(&self, yes: bool) -> Result<ReleaseReport, ControlError> {
        let Some(hold) = lock(&self.now).hold.clone() else {
            return Ok(ReleaseReport::default());
        };
        if yes {
            self.want(|want| want.released = Some(hold.reason));
        }
        Ok(ReleaseReport {
            gone: hold.gone.unwrap_or(0),
            hold: Some(hold),
            released: yes,
            ..ReleaseReport::default()
        })
    }

    fn forget(&self, replica: &str) -> Result<Vec<String>, ControlError> {
        let names = self.followers.forget(replica, &self.config.state_dir);
        for name in &names {
            self.notice(format!("{name} is not waited for any more"));
        }
        Ok(names)
    }

    fn verify(
        &self,
        _: VerifyOptions,
        _: &mut dyn FnMut(VerifyLine) -> bool,
    ) -> Result<VerifyEnd, ControlError> {
        Err(ControlError::Refused(
            "a worker has no copy to verify: ask the mirror".into(),
        ))
    }

    fn stop(&self) {
        self.want(|want| want.stop = true);
    }
}
