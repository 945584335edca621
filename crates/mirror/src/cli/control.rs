//! The commands that talk to a running mirror: status, check, wait, pause, resume, release, verify.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::cli::args::{
    CheckArgs, MirrorForgetArgs, PlainArgs, ReleaseArgs, Say, StatusArgs, VerifyArgs, WaitArgs,
};
use crate::cli::exit::{CliError, Exit, chain};
use crate::cli::find::{Found, find};
use crate::cli::past::{self, Past};
use crate::cli::serve_backup::{self, Asked};
use crate::cli::show::{self, Health};
use crate::cli::{trees, ui};
use crate::engine::aside;
use crate::engine::control::{
    Against, Client, ClientError, HEARTBEAT_MAX, PersistError, StateLock, Stop, VerifyLine,
    VerifyOptions, leave_release, read_status,
};
use crate::engine::event::{Silent, Ui};
use crate::engine::options::MirrorOptions;
use crate::engine::status::{Role, Stamp, State, Status};

/// What is known of a mirror, and from where.
#[derive(Debug)]
pub enum Seen {
    /// Its process says so, now.
    Running(Box<Status>),
    /// There is a process, but it does not answer; this is what it last wrote.
    Silent {
        why: String,
        last: Option<Box<Status>>,
    },
    /// No process; this is what the last one wrote, or why that is not known.
    Stopped {
        last: Option<Box<Status>>,
        note: Option<String>,
    },
}

/// One that is alive answers at once, one on a busy machine a little later.
const LOOK_WITHIN: Duration = Duration::from_secs(4);

pub fn look(state_dir: &Path) -> Result<Seen, CliError> {
    let asked = Client::connect(state_dir).and_then(|mut client| client.status_within(LOOK_WITHIN));
    match asked {
        Ok(status) => Ok(Seen::Running(Box::new(status))),
        Err(ClientError::NotRunning) => {
            let (last, note) = last_or_why(state_dir)?;
            match StateLock::holder(state_dir) {
                // Just starting or ending: its lock is there, its socket is not.
                Ok(Some(holder)) => Ok(Seen::Silent {
                    why: format!("{holder} does not answer"),
                    last,
                }),
                Ok(None) => Ok(Seen::Stopped { last, note }),
                Err(e) => Err(e.into()),
            }
        }
        Err(e @ (ClientError::Silent(_) | ClientError::Told(_))) => Ok(Seen::Silent {
            why: chain(&e),
            last: last_or_why(state_dir).unwrap_or_default().0,
        }),
        Err(e @ ClientError::Io(_)) => Err(e.into()),
    }
}

/// What was last written; if that can't be understood, a line that says so.
fn last_or_why(state_dir: &Path) -> Result<(Option<Box<Status>>, Option<String>), CliError> {
    match read_status(state_dir) {
        Ok(status) => Ok((status.map(Box::new), None)),
        Err(e @ PersistError::Damaged { .. }) => {
            let note = format!("what it last was is not known: {}", chain(&e));
            Ok((None, Some(note)))
        }
        Err(e @ PersistError::Io { .. }) => Err(CliError::failed(chain(&e))),
    }
}

fn last(state_dir: &Path) -> Result<Option<Box<Status>>, CliError> {
    match read_status(state_dir) {
        Ok(status) => Ok(status.map(Box::new)),
        Err(e @ (PersistError::Io { .. } | PersistError::Damaged { .. })) => {
            Err(CliError::failed(chain(&e)))
        }
    }
}

pub fn status(args: &StatusArgs) -> Result<Exit, CliError> {
    let found = match serve_backup::asked_for(&args.which, &args.service)? {
        Asked::Mirror(found) => found,
        Asked::Service(file) => return trees::status(&file, args.say),
    };
    let mut seen = look(&found.state_dir)?;
    if let Seen::Stopped {
        last: Some(last), ..
    } = &mut seen
    {
        last.aside = aside::all(&found.state_dir).ok().or(last.aside);
    }
    ui::say(show_seen(&seen, &found.state_dir, args.say).trim_end());
    if args.say.verbose && !args.say.json && keeps_history(&seen) {
        // That they can't be named now is no failure of the status.
        let past = Past::open(&args.which);
        let top = past.and_then(|mut past| past::prune::top(&mut past, false));
        for (n, line) in top.unwrap_or_default().iter().enumerate() {
            let head = if n == 0 { "old versions" } else { "" };
            ui::say(&format!("  {head:<13} {line}"));
        }
    }
    Ok(Exit::Done)
}

/// It runs, and has looked at its old versions.
fn keeps_history(seen: &Seen) -> bool {
    matches!(seen, Seen::Running(status) if status.history.is_some())
}

pub fn show_seen(seen: &Seen, state_dir: &Path, say: Say) -> String {
    let (running, status, note) = match seen {
        Seen::Running(status) => (true, Some(status), None),
        Seen::Silent { why, last } => (false, last.as_ref(), Some(why.as_str())),
        Seen::Stopped { last, note } => (false, last.as_ref(), note.as_deref()),
    };
    if say.json {
        let state_dir = crate::cli::places::show(state_dir);
        return json!({"running": running, "note": note, "state_dir": state_dir, "status": status})
            .to_string();
    }
    let text = |status| {
        let (now, zone) = (Stamp::now(), TimeZone::system());
        show::status(status, running, say.verbose, now, &zone)
    };
    // Whoever starts another one because none runs would find it busy.
    let silent = matches!(seen, Seen::Silent { .. });
    let rests = if silent {
        "does not answer"
    } else {
        "not running"
    };
    let mut text = match status {
        Some(status) if silent => text(status).replacen("not running\n", "does not answer\n", 1),
        Some(status) => text(status),
        None => {
            let known = match note {
                Some(_) => "",
                None => ", and nothing is known of it yet",
            };
            format!("{}: {rests}{known}\n", crate::cli::places::show(state_dir))
        }
    };
    if let Some(note) = note {
        text.push_str(&format!("  note          {note}\n"));
    }
    text
}

pub fn check(args: &CheckArgs) -> Exit {
    let seen = match serve_backup::asked_for(&args.which, &args.service) {
        Ok(Asked::Service(file)) => return trees::check(&file, args.limits.max_lag, args.say),
        Ok(Asked::Mirror(found)) => look(&found.state_dir),
        Err(e) => Err(e),
    };
    let (health, line) = judge(seen, args.limits.max_lag);
    ui::say(&check_line(health, &line, args.say));
    exit_of(health)
}

pub fn check_line(health: Health, line: &str, say: Say) -> String {
    if say.json {
        json!({"health": health.word().to_ascii_lowercase(), "code": health as u8, "line": line})
            .to_string()
    } else {
        format!("FS_MIRROR {} - {line}", health.word())
    }
}

pub fn judge(seen: Result<Seen, CliError>, max_lag: Duration) -> (Health, String) {
    match seen {
        Ok(Seen::Running(status)) => show::health(&status, max_lag),
        // A process that is busy starting has a fresh file; one that hangs has not.
        Ok(Seen::Silent { why, last }) => match last {
            Some(last) if last.now.seconds_until(Stamp::now()) < HEARTBEAT_MAX.as_secs_f64() => {
                let (health, line) = show::health(&last, max_lag);
                (health.max(Health::Warning), format!("{why}; {line}"))
            }
            _ => (Health::Critical, why),
        },
        Ok(Seen::Stopped { last, .. }) => {
            let age = last.map(|s| {
                format!(
                    " for {}",
                    crate::cli::text::seconds(s.now.seconds_until(Stamp::now()))
                )
            });
            (
                Health::Critical,
                format!("not running{}", age.unwrap_or_default()),
            )
        }
        Err(e) if e.exit == Exit::Usage => (Health::Unknown, e.line),
        Err(e) => (Health::Critical, e.line),
    }
}

/// A monitor's codes are a language of their own; the numbers are what counts.
pub fn exit_of(health: Health) -> Exit {
    match health {
        Health::Ok => Exit::Done,
        Health::Warning => Exit::Failed,
        Health::Critical => Exit::Usage,
        Health::Unknown => Exit::SomeFailed,
    }
}

/// A connection to the mirror's process, or why there is none, with the way out.
fn connect(found: &Found) -> Result<Client, CliError> {
    Client::connect(&found.state_dir).map_err(|e| match e {
        ClientError::NotRunning => CliError::failed(match StateLock::holder(&found.state_dir) {
            Ok(Some(holder)) => {
                format!("the mirror's process ({holder}) takes no orders yet: try again")
            }
            _ => match found.config() {
                Ok(config) => format!(
                    "the mirror is not running: start it with `fs_mirror mirror {} {}`",
                    config.source,
                    crate::cli::places::show(&config.dst)
                ),
                Err(_) => {
                    "the mirror is not running: start it with `fs_mirror mirror SRC DST`".into()
                }
            },
        }),
        other => other.into(),
    })
}

pub fn wait(args: &WaitArgs) -> Result<Exit, CliError> {
    let found = find(args.which.mirror.as_deref())?;
    let mut client = connect(&found)?;
    let report = match args.for_what.position {
        Some(position) => client.wait_position(position, args.timeout)?,
        None => client.wait_idle(args.timeout)?,
    };
    if args.say.json {
        ui::say(&to_json(&report));
    } else {
        let wrong = show::wait(&report);
        if !wrong.is_empty() {
            ui::complain(wrong.trim_end());
        }
    }
    let all_well = report.failed_total == 0 && report.fuzzy_total == 0;
    Ok(if all_well {
        Exit::Done
    } else {
        Exit::SomeFailed
    })
}

pub fn pause(args: &PlainArgs) -> Result<Exit, CliError> {
    let found = find(args.which.mirror.as_deref())?;
    connect(&found)?.pause()?;
    done("paused", args.say)
}

pub fn resume(args: &PlainArgs) -> Result<Exit, CliError> {
    let found = find(args.which.mirror.as_deref())?;
    connect(&found)?.resume()?;
    done("resumed", args.say)
}

pub fn forget(args: &MirrorForgetArgs) -> Result<Exit, CliError> {
    let found = find(args.which.mirror.as_deref())?;
    let forgotten = connect(&found)?.forget(&args.replica)?;
    forgot(&args.replica, &forgotten, "fs_mirror", args.say)
}

/// Says who was forgotten; nobody is a mistake.
pub fn forgot(
    asked: &str,
    forgotten: &[String],
    program: &str,
    say: Say,
) -> Result<Exit, CliError> {
    if say.json {
        ui::say(&json!({ "forgotten": forgotten }).to_string());
    } else if forgotten.is_empty() {
        let replica = mirror_core::escape(asked.as_bytes());
        return Err(CliError::usage(format!(
            "no replica that is away is called {replica}: `{program} status` names them"
        )));
    } else if !say.quiet {
        let names: Vec<String> = forgotten
            .iter()
            .map(|name| mirror_core::escape(name.as_bytes()))
            .collect();
        ui::say(&format!("forgotten: {}", names.join(", ")));
    }
    Ok(Exit::Done)
}

pub fn done(word: &str, say: Say) -> Result<Exit, CliError> {
    if say.json {
        ui::say(&json!({"done": word}).to_string());
    } else if !say.quiet {
        ui::say(word);
    }
    Ok(Exit::Done)
}

pub fn release(args: &ReleaseArgs) -> Result<Exit, CliError> {
    let found = find(args.which.mirror.as_deref())?;
    let mut client = match connect(&found) {
        Ok(client) => client,
        Err(e) => return release_stopped(args, &found, e),
    };
    let_through(&mut client, args.yes, args.say)
}

/// Shows what a hold keeps back, asks unless `yes`, and releases it.
pub fn let_through(client: &mut Client, yes: bool, say: Say) -> Result<Exit, CliError> {
    if !yes {
        let would = client.release(false)?;
        if say.json {
            ui::say(&to_json(&would));
        } else {
            ui::say(show::release(&would).trim_end());
        }
        match &would.hold {
            None => return Ok(Exit::Done),
            Some(hold) if !hold.reason.can_be_released() => return Ok(Exit::Hold),
            Some(_) => {}
        }
        if !ui::can_ask() || say.json {
            return Err(CliError::new(
                Exit::Hold,
                "still on hold: --yes lets it through",
            ));
        }
        if !ui::ask("Let it through?", None) {
            return Err(CliError::new(Exit::Hold, "still on hold"));
        }
    }
    let report = client.release(true)?;
    if let Some(hold) = &report.hold
        && !hold.reason.can_be_released()
    {
        return Err(CliError::new(
            Exit::Hold,
            format!(
                "on hold: {}; {}",
                hold.what,
                show::way_out(hold, Role::Replica)
            ),
        ));
    }
    if say.json {
        ui::say(&to_json(&report));
    } else if !say.quiet {
        if yes {
            ui::say(show::release(&report).trim_end());
        } else {
            ui::say("released");
        }
    }
    let through = report.released || report.hold.is_none();
    Ok(if through { Exit::Done } else { Exit::Hold })
}

/// No process: what the last one held is released for the next one. `otherwise`: nothing was held.
fn release_stopped(
    args: &ReleaseArgs,
    found: &Found,
    otherwise: CliError,
) -> Result<Exit, CliError> {
    let _lock = match StateLock::take(&found.state_dir) {
        Ok(lock) => lock,
        Err(_) => return Err(otherwise),
    };
    let Some(State::Hold(hold)) = last(&found.state_dir)?.map(|last| last.state) else {
        return Err(otherwise);
    };
    if !hold.reason.can_be_released() {
        return Err(CliError::new(
            Exit::Hold,
            format!(
                "on hold: {}; {}",
                hold.what,
                show::way_out(&hold, Role::Replica)
            ),
        ));
    }
    let yes = args.yes
        || (!args.say.json && ui::can_ask() && {
            ui::complain(&format!("on hold: {}", hold.what));
            ui::ask("Let it through when the mirror is started again?", None)
        });
    if !yes {
        return Err(CliError::new(
            Exit::Hold,
            format!("still on hold: {}; --yes lets it through", hold.what),
        ));
    }
    leave_release(&found.state_dir, &hold).map_err(|e| {
        CliError::failed(format!(
            "cannot leave word in {}: {e}",
            crate::cli::places::show(&found.state_dir)
        ))
    })?;
    done("released for the next start", args.say)
}

pub fn verify(args: &VerifyArgs) -> Result<Exit, CliError> {
    if args.against == Against::History {
        return crate::cli::past::verify::run(args);
    }
    let found = find(args.which.mirror.as_deref())?;
    let options = VerifyOptions {
        against: args.against,
        repair: args.repair,
    };
    let say = args.say;
    let mut tell = |line: VerifyLine| {
        if say.json {
            ui::say(&to_json(&line));
        } else {
            let repaired = if line.repaired { " (repaired)" } else { "" };
            ui::say(&format!("{}: {}{repaired}", line.path, line.what));
        }
    };
    let end = match Client::connect(&found.state_dir) {
        // Without a process this one does it, under the mirror's lock.
        Err(ClientError::NotRunning) => {
            let stop = Stop::on_signals()
                .map_err(|e| CliError::failed(format!("cannot catch signals: {e}")))?;
            let output = ui::output(say.json, say.quiet, say.verbose);
            let lock = Some(StateLock::take(&found.state_dir)?);
            let run = MirrorOptions {
                stop: stop.clone(),
                output,
                lock,
                ..found.config()?.options(&found.state_dir)
            };
            // Beside the lines of `verify` nothing may stand in JSON.
            let ui: Arc<dyn Ui> = if say.json {
                Arc::new(Silent)
            } else {
                Arc::new(ui::Console::new(output, false, stop.clone()))
            };
            crate::engine::verify(run, options, ui, &mut |line| {
                tell(line);
                !stop.requested()
            })?
        }
        Err(other) => return Err(other.into()),
        Ok(mut client) => client.verify(options, &mut tell)?,
    };
    if say.json {
        ui::say(&json!({"end": end}).to_string());
    } else if !say.quiet {
        ui::complain(&show::verified(&end));
    }
    let all_well = end.different <= end.repaired && end.unknown == 0;
    Ok(if all_well {
        Exit::Done
    } else {
        Exit::SomeFailed
    })
}

fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value)
        .unwrap_or(Value::Null)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::control::persist_status;

    #[test]
    fn what_a_monitor_makes_of_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let minute = Duration::from_secs(60);
        let judged = || judge(look(dir.path()), minute);
        assert_eq!(judged(), (Health::Critical, "not running".into()));

        let mut status = Status::new(Role::Local, "/s".into(), None);
        status.state = State::Following;
        persist_status(dir.path(), &status).unwrap();
        let (health, line) = judged();
        assert!(
            health == Health::Critical && line.starts_with("not running for 0."),
            "{line}"
        );

        let shown = || show_seen(&look(dir.path()).unwrap(), dir.path(), Say::default());
        assert!(
            shown().contains("  state         not running\n"),
            "{}",
            shown()
        );
        let lock = StateLock::take(dir.path()).unwrap();
        assert!(
            shown().contains("  state         does not answer\n"),
            "{}",
            shown()
        );
        let (health, line) = judged();
        assert!(
            health == Health::Warning && line.contains(" does not answer; following, lag"),
            "{line}"
        );
        status.now = Stamp {
            ms: status.now.ms - 61_000,
        };
        persist_status(dir.path(), &status).unwrap();
        let (health, line) = judged();
        assert!(
            health == Health::Critical && line.ends_with(" does not answer"),
            "{line}"
        );
        drop(lock);

        std::fs::write(dir.path().join("status.json"), "{").unwrap();
        let (health, line) = judged();
        assert!(
            health == Health::Critical && line == "not running",
            "{line}"
        );
        let nowhere = judge(Err(CliError::usage("there is no mirror at /x")), minute);
        assert_eq!(nowhere.0, Health::Unknown);
        assert_eq!(
            check_line(nowhere.0, &nowhere.1, Say::default()),
            "FS_MIRROR UNKNOWN - there is no mirror at /x"
        );
    }
}
