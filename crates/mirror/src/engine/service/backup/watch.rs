//! How all trees are, as seen from outside their processes: what each wrote of itself last, and whether it still does.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use mirror_core::escape;

use super::alarms::{Alarm, Kind, When};
use super::config::Tree;
use crate::cli::show::{Health, health};
use crate::cli::text::{counted, seconds};
use crate::engine::control::{HEARTBEAT_MAX, read_status};
use crate::engine::service::children::View;
use crate::engine::status::{Stamp, State, Status};

/// One tree.
#[derive(Debug, Clone)]
pub struct Seen {
    pub name: String,
    pub source: String,
    pub dst: PathBuf,
    pub min_free: Option<u64>,
    pub pid: Option<u32>,
    pub starts: u64,
    /// Why it does not run.
    pub waits: Option<String>,
    /// Since when this process runs, at least.
    pub since: Stamp,
    /// Of the process that runs; `None`: it has said nothing yet.
    pub status: Option<Status>,
    pub heartbeat: Option<Stamp>,
    /// When this was seen.
    pub looked: Stamp,
}

impl Seen {
    #[cfg(test)]
    pub fn new(name: &str, source: &str, dst: &str) -> Seen {
        let now = Stamp::now();
        Seen {
            name: name.into(),
            source: source.into(),
            dst: dst.into(),
            min_free: None,
            pid: Some(1),
            starts: 1,
            waits: None,
            since: now,
            status: None,
            heartbeat: None,
            looked: now,
        }
    }

    /// What its process wrote last, if it is that process's.
    pub fn look(tree: &Tree, view: Option<View>, since: Stamp) -> Seen {
        let view = view.unwrap_or(View {
            pid: None,
            starts: 0,
            waits: None,
        });
        let last = read_status(&tree.state_dir()).ok().flatten();
        let status = last.filter(|last| Some(last.pid) == view.pid);
        Seen {
            name: tree.name.clone(),
            source: escape(tree.source.as_bytes()),
            dst: tree.dst.clone(),
            min_free: tree.limits.min_free,
            pid: view.pid,
            starts: view.starts,
            waits: view.waits,
            since,
            heartbeat: status.as_ref().map(|status| status.now),
            status,
            looked: Stamp::now(),
        }
    }

    /// Its process is there and does not say so any more.
    pub fn is_stale(&self) -> bool {
        let last = self.heartbeat.unwrap_or(self.since);
        self.pid.is_some() && last.seconds_until(self.looked) > HEARTBEAT_MAX.as_secs_f64()
    }

    pub fn health(&self, max_lag: Duration) -> (Health, String) {
        match &self.status {
            _ if self.pid.is_none() => {
                let why = self.waits.clone().unwrap_or_default();
                (Health::Critical, format!("not running: {why}"))
            }
            _ if self.is_stale() => (Health::Critical, "its process says nothing any more".into()),
            None => (Health::Warning, "starting".into()),
            Some(status) => health(status, max_lag),
        }
    }

    /// One word for labels and summaries.
    pub fn state(&self) -> &'static str {
        if self.pid.is_none() {
            return "down";
        }
        if self.is_stale() {
            return "stale";
        }
        match self.status.as_ref().map(|status| &status.state) {
            None | Some(State::Starting) => "starting",
            Some(State::Seeding { .. }) => "seeding",
            Some(State::Following) => "following",
            Some(State::Paused { .. }) => "paused",
            Some(State::Hold(hold)) if hold.reason == crate::engine::status::HoldReason::Limit => {
                "limit"
            }
            Some(State::Hold(_)) => "hold",
            Some(State::Disconnected { .. }) => "disconnected",
            Some(State::Failed { .. }) => "failed",
            Some(State::Stopped) => "stopped",
        }
    }

    pub fn alarm(&self, kind: Kind, when: When, what: &str, since: Stamp) -> Alarm {
        Alarm {
            tree: self.name.clone(),
            kind,
            when,
            what: what.to_owned(),
            since,
            source: self.source.clone(),
            dst: OsString::from(&self.dst),
        }
    }
}

/// All words of [`Seen::state`].
pub const STATES: [&str; 11] = [
    "following",
    "seeding",
    "starting",
    "paused",
    "hold",
    "limit",
    "disconnected",
    "failed",
    "stale",
    "down",
    "stopped",
];

/// The line of each minute.
pub fn summary(all: &[Seen]) -> String {
    let mut parts = Vec::new();
    for state in STATES {
        let these: Vec<&str> = all
            .iter()
            .filter(|seen| seen.state() == state)
            .map(|seen| seen.name.as_str())
            .collect();
        let what = match state {
            "hold" => "on hold",
            "limit" => "at a limit",
            "stale" => "silent",
            other => other,
        };
        match (these.as_slice(), state) {
            ([], _) => {}
            (some, "following") => parts.push(format!("{} {what}", some.len())),
            (some, _) => {
                let names: Vec<&str> = some.iter().take(5).copied().collect();
                let more = if some.len() > names.len() {
                    ", ..."
                } else {
                    ""
                };
                parts.push(format!(
                    "{} {what} ({}{more})",
                    some.len(),
                    names.join(", ")
                ));
            }
        }
    }
    let lag = |seen: &Seen| {
        seen.status
            .as_ref()
            .map_or(0.0, |status| status.lag.seconds)
    };
    let worst = all
        .iter()
        .max_by(|a, b| lag(a).total_cmp(&lag(b)))
        .filter(|seen| lag(seen) > 0.0);
    let worst = worst.map_or(String::new(), |seen| {
        format!("; worst lag {} ({})", seconds(lag(seen)), seen.name)
    });
    let failed: u64 = all
        .iter()
        .filter_map(|seen| seen.status.as_ref())
        .map(|s| s.failed_total)
        .sum();
    let failed = match failed {
        0 => String::new(),
        n => format!("; {} failed", counted(n, "path", "paths")),
    };
    let parts = if parts.is_empty() {
        String::new()
    } else {
        format!(": {}", parts.join(", "))
    };
    format!(
        "{}{parts}{worst}{failed}",
        counted(all.len() as u64, "tree", "trees")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::status::Role;

    #[test]
    fn a_minute_in_one_line() {
        assert_eq!(summary(&[]), "0 trees");
        let following = |name: &str, lag: f64| {
            let mut status = Status::new(Role::Replica, "/s".into(), None);
            status.state = State::Following;
            status.lag.seconds = lag;
            Seen {
                heartbeat: Some(status.now),
                status: Some(status),
                ..Seen::new(name, "/s", "/b")
            }
        };
        let down = Seen {
            pid: None,
            waits: Some("exit code 2".into()),
            ..Seen::new("shop", "/s", "/b")
        };
        let minute = Duration::from_secs(60);
        assert_eq!(
            down.health(minute),
            (Health::Critical, "not running: exit code 2".into())
        );
        assert_eq!(
            Seen::new("new", "/s", "/b").health(minute).0,
            Health::Warning
        );
        let all = [following("a", 0.0), following("b", 1.5), down];
        assert_eq!(
            summary(&all),
            "3 trees: 2 following, 1 down (shop); worst lag 1.5 s (b)"
        );
        // A process that was there long ago and never said anything.
        let mut silent = Seen::new("x", "/s", "/b");
        silent.since = Stamp {
            ms: silent.looked.ms - 61_000,
        };
        assert_eq!(
            (silent.state(), silent.health(minute).0),
            ("stale", Health::Critical)
        );
    }
}
