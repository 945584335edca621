//! `verify` of a mirror that no process runs, under its lock.
//!
//! Against the index without repair: only the copy and its index are read, so it works when the source is lost. All
//! else needs the source: the mirror is run as `fs_mirror mirror` does, brought up to date, asked, and stopped.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::adopt::LeftOut;
use super::applying::{chain, root_or};
use super::control::{
    Against, Client, ClientError, ControlError, Stop, VerifyEnd, VerifyLine, VerifyOptions,
    persist_status, read_status,
};
use super::differing::Differing;
use super::event::{Event, RunError, Ui};
use super::options::{MirrorOptions, Owners};
use super::status::{FAILED_MAX, PathText};
use super::verify::word;
use crate::apply::{self, Applier, DifferenceKind};
use crate::index::{self, Index};

pub fn verify(
    options: MirrorOptions,
    verify: VerifyOptions,
    ui: Arc<dyn Ui>,
    line: &mut dyn FnMut(VerifyLine) -> bool,
) -> Result<VerifyEnd, RunError> {
    if verify.against == Against::Index && !verify.repair {
        return against_index(&options, &*ui, line);
    }
    let (state_dir, stop, asked) = (options.state_dir.clone(), Stop::new(), options.stop.clone());
    let options = MirrorOptions {
        once: false,
        dry_run: false,
        stop: stop.clone(),
        ..options
    };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| super::run_mirror(options, ui));
        let ended = || running.is_finished();
        // A signal meant for us ends the mirror, and with it the question.
        let watching = scope.spawn({
            let stop = stop.clone();
            move || {
                while !stop.wait(Duration::from_millis(100)) {
                    if asked.requested() {
                        stop.request();
                    }
                }
            }
        });
        let told = ask(&state_dir, verify, &ended, line);
        stop.request();
        let _ = watching.join();
        match (told, running.join()) {
            (Ok(end), _) => Ok(end),
            // Why it ended says more than that it did.
            (Err(ClientError::NotRunning | ClientError::Silent(_)), Ok(Err(error))) => Err(error),
            (Err(_), Ok(Ok(end))) if end.held.is_some() => match end.held {
                Some(hold) => Err(RunError::Held(hold)),
                None => Err(RunError::Failed(anyhow::anyhow!("it was held"))),
            },
            (Err(error), _) => Err(run_error(error)),
        }
    })
}

fn ask(
    state_dir: &Path,
    verify: VerifyOptions,
    ended: &dyn Fn() -> bool,
    line: &mut dyn FnMut(VerifyLine) -> bool,
) -> Result<VerifyEnd, ClientError> {
    let mut client = loop {
        match Client::connect(state_dir) {
            Err(ClientError::NotRunning) if !ended() => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => break other?,
        }
    };
    // A mirror that has just been started is brought up to date first.
    client.wait_idle(None)?;
    client.verify(verify, &mut |found| {
        line(found);
    })
}

fn run_error(error: ClientError) -> RunError {
    match error {
        ClientError::Told(ControlError::Held(what)) => {
            let reason = super::status::HoldReason::Unexplained;
            RunError::Held(super::local::outer::hold(reason, what))
        }
        ClientError::Told(ControlError::Unreachable(text)) => RunError::Unreachable(text),
        ClientError::Told(ControlError::Refused(text)) => RunError::Usage(text),
        ClientError::Told(ControlError::Busy(text) | ControlError::Timeout(text)) => {
            RunError::Busy(text)
        }
        other => RunError::Failed(anyhow::anyhow!("{}", chain(&other))),
    }
}

/// The copy alone, as its index says.
fn against_index(
    options: &MirrorOptions,
    ui: &dyn Ui,
    line: &mut dyn FnMut(VerifyLine) -> bool,
) -> Result<VerifyEnd, RunError> {
    let failed = |what: &str, error: &dyn std::error::Error| {
        RunError::Failed(anyhow::anyhow!("{what}: {}", chain(error)))
    };
    let path = options.state_dir.join("index");
    if !path.exists() {
        return Err(RunError::Failed(anyhow::anyhow!(
            "there is no index to compare with: {} does not exist; start the mirror, which makes it again",
            super::session::show(&path)
        )));
    }
    let (rows, _) = Index::open(&path, index::Options::default())
        .map_err(|e| failed("cannot open the copy's index", &e))?;
    let stats = rows.stats();
    let mut applier = Applier::open(
        &options.dst,
        &options.state_dir,
        rows,
        apply::Options {
            owners: match options.owners {
                Owners::Apply => apply::Owners::Apply,
                Owners::Record => apply::Owners::Record,
            },
            ..apply::Options::default()
        },
    )
    .map_err(|e| failed("cannot open DST", &e))?;
    if applier.replay_until().is_some() {
        ui.event(Event::Notice(
            "the mirror was not stopped cleanly: what was done in its last moments may be listed as different".into(),
        ));
    }
    let left_out = LeftOut::new(options)?;
    let mut end = VerifyEnd {
        entries: stats.entries,
        bytes: stats.bytes,
        ..VerifyEnd::default()
    };
    let replayed = applier.replay_until().is_none();
    let mut differing = Differing::default();
    applier
        .verify(true, &mut |difference| {
            if difference.what == DifferenceKind::Pending {
                end.unknown += 1;
                return;
            }
            if left_out.has(&difference) {
                return;
            }
            differing.add(&difference);
            end.different += 1;
            line(VerifyLine {
                path: PathText::new(root_or(&difference.path)),
                what: word(difference.what).into(),
                repaired: false,
            });
        })
        .map_err(|e| failed("cannot compare", &e))?;
    // A copy that is known not to be equal is not called equal by the next run. What a crash left undone is done then.
    let before = Differing::load(applier.store());
    if replayed && before != differing {
        differing
            .save(applier.store_mut())
            .and_then(|()| applier.close().map(drop))
            .map_err(|e| failed("cannot record what differs", &e))?;
        told_last(&options.state_dir, &before, &differing);
    }
    Ok(end)
}

/// What the last process wrote of itself says so, too, as far as it can be read.
fn told_last(state_dir: &Path, before: &Differing, now: &Differing) {
    let Ok(Some(mut last)) = read_status(state_dir) else {
        return;
    };
    last.failed.retain(|failed| !before.listed.contains(failed));
    last.failed.extend(now.listed.iter().cloned());
    last.failed.truncate(FAILED_MAX);
    last.failed_total = last.failed_total.saturating_sub(before.total) + now.total;
    let _ = persist_status(state_dir, &last);
}
