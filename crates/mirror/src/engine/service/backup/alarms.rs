//! Alarms: what is wrong with a tree, told once, daily while it lasts, and once when it is over.
//!
//! [`Alarms`] decides and is given the time; [`Teller`] runs the command, on a thread of its own. What was told is kept in
//! the service's state, so that a restart tells nothing twice and a recovery is told all the same.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};
use serde::{Deserialize, Serialize};

use super::command;
use super::config::Run;
use super::watch::Seen;
use crate::engine::status::{HoldReason, Stamp, State};

const DAY_S: f64 = 24.0 * 3600.0;
/// Alarms that wait for the command; the others come when there is room.
const WAITING_MAX: usize = 64;
/// Some things heal by themselves at once: only what lasts so long is told.
const PATIENCE_S: f64 = 60.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Hold,
    /// Very much changed at once, and was followed into history.
    MassChange,
    /// A limit of the tree's own.
    Limit,
    /// Less is free than stays free.
    Floor,
    /// It, or paths of it, failed.
    Failed,
    LostPeer,
    /// Its process is not there.
    Down,
    /// Its process says nothing.
    Stale,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::Hold => "hold",
            Kind::MassChange => "mass_change",
            Kind::Limit => "limit",
            Kind::Floor => "floor",
            Kind::Failed => "failed",
            Kind::LostPeer => "lost_peer",
            Kind::Down => "down",
            Kind::Stale => "stale",
        }
    }
    fn patience_s(self) -> f64 {
        match self {
            Kind::Hold | Kind::MassChange | Kind::Limit | Kind::Floor | Kind::Stale => 0.0,
            Kind::Failed | Kind::LostPeer | Kind::Down => PATIENCE_S,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Begins,
    Lasts,
    Over,
}

impl When {
    fn word(self) -> &'static str {
        match self {
            When::Begins => "begins",
            When::Lasts => "lasts",
            When::Over => "over",
        }
    }
}

/// One call of the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    pub tree: String,
    pub kind: Kind,
    pub when: When,
    pub what: String,
    pub since: Stamp,
    pub source: String,
    pub dst: OsString,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    tree: String,
    kind: Kind,
    since_ms: i64,
    /// `None`: not told yet.
    told_ms: Option<i64>,
    what: String,
}

#[derive(Debug, Default)]
pub struct Alarms {
    known: BTreeMap<(String, Kind), Known>,
    changed: bool,
}

/// What is wrong with a tree now.
pub fn wrong(seen: &Seen) -> Vec<(Kind, String)> {
    let mut out = Vec::new();
    if seen.pid.is_none() {
        let why = seen
            .waits
            .clone()
            .unwrap_or_else(|| "it does not run".into());
        out.push((Kind::Down, why));
        return out;
    }
    if seen.is_stale() {
        let age = seen
            .heartbeat
            .map_or("ever".into(), |at| format!("since {at}"));
        out.push((Kind::Stale, format!("its process has said nothing {age}")));
        return out;
    }
    let Some(status) = &seen.status else {
        return out;
    };
    if let Some(alarm) = &status.alarm {
        out.push((Kind::MassChange, alarm.what.clone()));
    }
    match &status.state {
        State::Hold(hold) if hold.reason == HoldReason::Limit => {
            out.push((Kind::Limit, hold.what.clone()));
        }
        State::Hold(hold) => out.push((Kind::Hold, hold.what.clone())),
        State::Failed { reason } => out.push((Kind::Failed, reason.clone())),
        State::Disconnected { reason, .. } => out.push((Kind::LostPeer, reason.clone())),
        _ => {}
    }
    if status.failed_total > 0 && !out.iter().any(|(kind, _)| *kind == Kind::Failed) {
        let first = status.failed.first();
        let first = first.map_or(String::new(), |f| format!(", as {}: {}", f.path, f.reason));
        out.push((
            Kind::Failed,
            format!("{} paths failed{first}", status.failed_total),
        ));
    }
    if let (Some(floor), Some(space)) = (seen.min_free, status.space)
        && space.bytes_free < floor
    {
        let size = crate::cli::text::bytes;
        let (free, floor) = (size(space.bytes_free), size(floor));
        out.push((
            Kind::Floor,
            format!("{free} are free on DST's file system, and min_free is {floor}"),
        ));
    }
    out
}

impl Alarms {
    /// What an earlier process knew; nothing if it can't be read.
    pub fn load(path: &Path) -> Alarms {
        let list: Vec<Known> = std::fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let known = list
            .into_iter()
            .map(|known| ((known.tree.clone(), known.kind), known));
        Alarms {
            known: known.collect(),
            changed: false,
        }
    }

    pub fn save(&mut self, path: &Path) -> std::io::Result<()> {
        if std::mem::take(&mut self.changed) {
            let list: Vec<&Known> = self.known.values().collect();
            super::replace(path, &serde_json::to_vec(&list)?, 0o600)?;
        }
        Ok(())
    }

    /// Brings what is known up to date. `tell` says whether it took the alarm; what it did not take comes again.
    pub fn look(&mut self, all: &[Seen], now: Stamp, tell: &mut dyn FnMut(Alarm) -> bool) {
        for seen in all {
            let wrong = wrong(seen);
            for (kind, what) in &wrong {
                let known = self
                    .known
                    .entry((seen.name.clone(), *kind))
                    .or_insert_with(|| Known {
                        tree: seen.name.clone(),
                        kind: *kind,
                        since_ms: now.ms,
                        told_ms: None,
                        what: String::new(),
                    });
                known.what.clone_from(what);
                let since = Stamp { ms: known.since_ms };
                let when = match known.told_ms {
                    None if since.seconds_until(now) >= kind.patience_s() => When::Begins,
                    Some(told) if Stamp { ms: told }.seconds_until(now) >= DAY_S => When::Lasts,
                    _ => continue,
                };
                if tell(seen.alarm(*kind, when, what, since)) {
                    known.told_ms = Some(now.ms);
                    self.changed = true;
                }
            }
            let over: Vec<Kind> = self
                .known
                .range((seen.name.clone(), Kind::Hold)..=(seen.name.clone(), Kind::Stale))
                .map(|((_, kind), _)| *kind)
                .filter(|kind| !wrong.iter().any(|(now, _)| now == kind))
                .collect();
            for kind in over {
                let key = (seen.name.clone(), kind);
                let Some(known) = self.known.get(&key) else {
                    continue;
                };
                let since = Stamp { ms: known.since_ms };
                let told = known.told_ms.is_none()
                    || tell(seen.alarm(kind, When::Over, &known.what, since));
                if told {
                    self.changed |= known.told_ms.is_some();
                    self.known.remove(&key);
                }
            }
        }
        // A tree that was taken out of the configuration is nobody's trouble any more.
        let there = |tree: &String| all.iter().any(|seen| seen.name == *tree);
        let before = self.known.len();
        self.known.retain(|(tree, _), _| there(tree));
        self.changed |= self.known.len() != before;
    }
}

/// Runs the command, one call after the other.
pub struct Teller {
    queue: Sender<(Run, Alarm)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Teller {
    pub fn start(say: Arc<dyn Fn(String) + Send + Sync>) -> std::io::Result<Teller> {
        let (queue, taken) = bounded::<(Run, Alarm)>(WAITING_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("alarms".into())
            .spawn(move || {
                for (run, alarm) in taken {
                    let stopped = || stopped.load(Ordering::Acquire);
                    if stopped() {
                        return;
                    }
                    let text = format!("{}: {}", alarm.tree, alarm.what);
                    if let Err(why) =
                        command::run(&run, &environment(&alarm), text.as_bytes(), &stopped)
                    {
                        let command = mirror_core::escape(run.command.as_bytes());
                        say(format!(
                            "alarm of {} could not be told: {command}: {why}",
                            alarm.tree
                        ));
                    }
                }
            })?;
        Ok(Teller {
            queue,
            stop,
            thread: Some(thread),
        })
    }

    /// False: too many wait.
    pub fn tell(&self, run: &Run, alarm: Alarm) -> bool {
        self.queue.try_send((run.clone(), alarm)).is_ok()
    }

    /// Ends it, and a command that runs.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        drop(std::mem::replace(&mut self.queue, bounded(0).0));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn environment(alarm: &Alarm) -> Vec<(&'static str, OsString)> {
    vec![
        ("FS_MIRROR_ALARM", alarm.kind.word().into()),
        ("FS_MIRROR_WHEN", alarm.when.word().into()),
        ("FS_MIRROR_TREE", (&alarm.tree).into()),
        ("FS_MIRROR_TEXT", (&alarm.what).into()),
        ("FS_MIRROR_SINCE", alarm.since.to_string().into()),
        ("FS_MIRROR_SOURCE", (&alarm.source).into()),
        ("FS_MIRROR_DST", alarm.dst.clone()),
    ]
}

/// Where what was told is kept.
pub fn file(state: &Path) -> PathBuf {
    state.join("alarms.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::status::{Hold, Role, Space, Status};

    fn seen(state: State) -> Seen {
        let mut status = Status::new(Role::Replica, "far:/s".into(), None);
        status.state = state;
        Seen {
            heartbeat: Some(status.now),
            looked: status.now,
            status: Some(status),
            ..Seen::new("blog", "far:/s", "/b")
        }
    }
    fn hold(reason: HoldReason, what: &str) -> State {
        State::Hold(Hold {
            reason,
            since: Stamp::now(),
            what: what.into(),
            gone: None,
            of: None,
            below: None,
        })
    }
    fn at(seconds: i64) -> Stamp {
        Stamp { ms: seconds * 1000 }
    }

    #[test]
    fn what_is_wrong() {
        let kinds =
            |seen: &Seen| -> Vec<&str> { wrong(seen).iter().map(|(k, _)| k.word()).collect() };
        let well = seen(State::Following);
        assert!(kinds(&well).is_empty());
        assert_eq!(kinds(&seen(hold(HoldReason::Limit, "full"))), ["limit"]);
        assert_eq!(kinds(&seen(hold(HoldReason::MassChange, "x"))), ["hold"]);
        assert_eq!(
            kinds(&seen(State::Failed { reason: "x".into() })),
            ["failed"]
        );
        let since = Stamp::now();
        let reason = "x".to_string();
        assert_eq!(
            kinds(&seen(State::Disconnected { since, reason })),
            ["lost_peer"]
        );
        assert_eq!(
            kinds(&Seen {
                pid: None,
                ..well.clone()
            }),
            ["down"]
        );
        let looked = Stamp {
            ms: well.looked.ms + 61_000,
        };
        assert_eq!(
            kinds(&Seen {
                looked,
                ..well.clone()
            }),
            ["stale"]
        );
        let mut low = Seen {
            min_free: Some(100),
            ..well.clone()
        };
        let status = low.status.as_mut().unwrap();
        status.failed_total = 3;
        status.space = Some(Space {
            bytes_free: 99,
            bytes_total: 1000,
            inodes_free: 1,
            inodes_total: 1,
        });
        assert_eq!(kinds(&low), ["failed", "floor"]);
    }

    #[test]
    fn once_daily_and_when_it_is_over() {
        let mut alarms = Alarms::default();
        let mut look = |state: State, now: Stamp, takes: bool| -> Vec<String> {
            let mut told = Vec::new();
            alarms.look(&[seen(state)], now, &mut |alarm| {
                told.push(format!(
                    "{} {}: {}",
                    alarm.kind.word(),
                    alarm.when.word(),
                    alarm.what
                ));
                takes
            });
            told
        };
        let full = || hold(HoldReason::Limit, "full");
        assert_eq!(look(full(), at(100), false), ["limit begins: full"]);
        assert_eq!(look(full(), at(102), true), ["limit begins: full"]);
        assert!(look(full(), at(104), true).is_empty());
        assert!(look(full(), at(102 + 86_399), true).is_empty());
        assert_eq!(look(full(), at(102 + 86_400), true), ["limit lasts: full"]);
        assert_eq!(
            look(State::Following, at(90_000), false),
            ["limit over: full"]
        );
        assert_eq!(
            look(State::Following, at(90_002), true),
            ["limit over: full"]
        );
        assert!(look(State::Following, at(90_004), true).is_empty());
        // What heals by itself soon is not told, and neither that it did.
        let failed = || State::Failed { reason: "x".into() };
        assert!(look(failed(), at(91_000), true).is_empty());
        assert!(look(failed(), at(91_059), true).is_empty());
        assert!(look(State::Following, at(91_061), true).is_empty());
        assert!(look(failed(), at(92_000), true).is_empty());
        assert_eq!(look(failed(), at(92_060), true), ["failed begins: x"]);
    }

    #[test]
    fn a_restart_tells_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        let full = [seen(hold(HoldReason::Limit, "full"))];
        let mut alarms = Alarms::load(&path);
        let mut told = 0;
        alarms.look(&full, at(100), &mut |_| {
            told += 1;
            true
        });
        alarms.save(&path).unwrap();
        let mut alarms = Alarms::load(&path);
        alarms.look(&full, at(200), &mut |_| {
            told += 1;
            true
        });
        assert_eq!(told, 1);
        alarms.look(&[], at(300), &mut |_| {
            told += 1;
            true
        });
        alarms.save(&path).unwrap();
        assert!(Alarms::load(&path).known.is_empty() && told == 1);
    }
}
