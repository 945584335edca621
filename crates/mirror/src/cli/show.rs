//! A [`Status`] as a person reads it, and as one line for a monitor.

use std::fmt::Write;
use std::time::Duration;

use jiff::tz::TimeZone;
use mirror_core::Position;

use crate::cli::text::{bytes, count, counted, seconds, stamp};
use crate::engine::control::{ReleaseReport, VerifyEnd, WaitReport};
use crate::engine::going::SAMPLE_MAX;
use crate::engine::status::{Hold, HoldReason, LinkStatus, Role, Stamp, State, Status};

/// How many failed paths and mounts are shown without `-v`.
const FEW: usize = 10;

/// The whole status. `now` tells how old it is when nothing runs.
pub fn status(status: &Status, running: bool, all: bool, now: Stamp, zone: &TimeZone) -> String {
    let mut out = Table::default();
    let dst = status
        .dst
        .as_ref()
        .map(|d| format!("{d} <- "))
        .unwrap_or_default();
    let name = status
        .name
        .as_ref()
        .map(|name| format!("{name}: "))
        .unwrap_or_default();
    out.head(&format!("{name}{dst}{}", status.source));
    let state = state(&status.state, status.now, zone);
    if running {
        out.row("state", &state);
    } else {
        out.row("state", "not running");
        let age = seconds(status.now.seconds_until(now));
        out.row("", &format!("{age} ago it was: {state}"));
    }
    if let State::Hold(hold) = &status.state {
        out.row("hold", &hold.what);
        out.row("", &way_out(hold, status.role));
    }
    let well = status.failed_total == 0 && status.counters.fuzzy == 0;
    // A worker has no copy that could be equal or late.
    let primary = status.role == Role::Primary;
    match status.equal_at {
        _ if primary => {}
        Some(at) if running && status.state == State::Following && well => out.row(
            "equal",
            &format!("known to be at {}, followed since", stamp(at, zone)),
        ),
        Some(at) => out.row("equal", &format!("last known to be at {}", stamp(at, zone))),
        None => out.row("equal", "not known to be yet"),
    }
    let lag = &status.lag;
    let behind = format!(
        "{}, {}",
        counted(lag.records, "record", "records"),
        bytes(lag.bytes)
    );
    if !primary {
        out.row("lag", &format!("{}, {behind}", seconds(lag.seconds)));
        if let Some(rate) = status.held_to {
            out.row("", &held_to(rate));
        }
    }
    if let Some(last) = &status.last_change {
        out.row(
            "last change",
            &format!("{} {}", stamp(last.at, zone), last.path),
        );
    }
    let tree = format!(
        "{}, {}",
        counted(status.files, "file", "files"),
        bytes(status.bytes)
    );
    out.row(
        "tree",
        &format!("{} ({tree})", counted(status.entries, "entry", "entries")),
    );
    let at = |p: Option<Position>| p.map_or("none".to_owned(), |p| p.to_string());
    let p = &status.positions;
    out.row(
        "position",
        &format!(
            "received {} · durable {} · applied {}",
            at(p.received),
            at(p.durable),
            at(p.applied)
        ),
    );
    if let Some(detector) = &status.detector {
        let why = if detector.why.is_empty() {
            String::new()
        } else {
            format!(": {}", detector.why)
        };
        out.row("detector", &format!("{}{why}", detector.uses));
    }
    if status.failed_total > 0 {
        let shown = if all { status.failed.len() } else { FEW };
        out.row("failed", &counted(status.failed_total, "path", "paths"));
        for failed in status.failed.iter().take(shown) {
            let tries = counted(failed.tries, "try", "tries");
            out.item(&format!(
                "{}: {} (since {}, {tries})",
                failed.path,
                failed.reason,
                stamp(failed.since, zone)
            ));
        }
        let more = status
            .failed_total
            .saturating_sub(shown.min(status.failed.len()) as u64);
        if more > 0 {
            out.item(&format!(
                "... and {} more{}",
                count(more),
                if all { "" } else { " (-v shows them)" }
            ));
        }
    }
    if !status.not_mirrored.is_empty() {
        out.row(
            "not mirrored",
            &format!(
                "{} (--cross PATH adds one)",
                counted(status.not_mirrored.len() as u64, "mount", "mounts")
            ),
        );
        let shown = if all { status.not_mirrored.len() } else { FEW };
        for path in status.not_mirrored.iter().take(shown) {
            out.item(path.as_str());
        }
        if status.not_mirrored.len() > shown {
            out.item(&format!(
                "... and {} more (-v shows them)",
                count((status.not_mirrored.len() - shown) as u64)
            ));
        }
    }
    if !status.recorded.is_empty() {
        let kinds: Vec<String> = status
            .recorded
            .iter()
            .map(|(kind, n)| format!("{kind} {}", count(*n)))
            .collect();
        out.row(
            "recorded",
            &format!(
                "{} (kept in the index, not set in the copy)",
                kinds.join(" · ")
            ),
        );
    }
    if let Some(confinement) = &status.confinement {
        for (wall, why) in &confinement.lacks {
            out.row("confined", &format!("not by {wall}: {why}"));
        }
    }
    for fork in &status.forks {
        out.row(
            "fork",
            &format!(
                "{}; the log before lies in {}: remove it when you know why",
                fork.what, fork.aside
            ),
        );
    }
    let counters = counters(status);
    if !counters.is_empty() {
        out.row("counted", &counters);
    }
    for replica in &status.replicas {
        let since = stamp(replica.since, zone);
        let link = if replica.connected && running {
            format!("connected since {since}")
        } else {
            format!("away, last seen {since}")
        };
        out.row("replica", &format!("{}: {link}", replica.name));
        let p = &replica.positions;
        out.item(&format!(
            "received {} · durable {} · applied {} · lag {}, {}",
            at(p.received),
            at(p.durable),
            at(p.applied),
            seconds(replica.lag.seconds),
            counted(replica.lag.records, "record", "records")
        ));
        if let Some(link) = &replica.link {
            out.item(&format!("sent {}", traffic(link)));
        }
        if let Some(rate) = replica.held_to {
            out.item(&held_to(rate));
        }
        if replica.failed > 0 {
            let failed = counted(replica.failed, "path", "paths");
            out.item(&format!(
                "{failed} failed there: `fs_mirror status` there lists them"
            ));
        }
        if let Some(held) = &replica.held {
            out.item(&format!("on hold there: {held}"));
        }
    }
    if let Some(rate) = status.bwlimit {
        out.row(
            "bwlimit",
            &format!("{}/s now, to all replicas together", bytes(rate)),
        );
    }
    if let Some(link) = &status.link {
        out.row("link", &format!("{} came", traffic(link)));
    }
    if let Some(space) = &status.space {
        let inodes = if space.inodes_total > 0 {
            format!(", {} inodes free", count(space.inodes_free))
        } else {
            String::new()
        };
        out.row(
            "space",
            &format!(
                "{} of {} free{inodes}",
                bytes(space.bytes_free),
                bytes(space.bytes_total)
            ),
        );
    }
    if let Some(history) = &status.history {
        let oldest = history
            .oldest
            .map(|at| format!(", back to {}", stamp(at, zone)))
            .unwrap_or_default();
        out.row(
            "history",
            &format!(
                "{}, {} and {} of catalogue{oldest}",
                counted(history.versions, "version", "versions"),
                bytes(history.bytes),
                bytes(history.catalogue_bytes)
            ),
        );
        if history.lock != "off" {
            out.row("", &format!("locked: {}", history.lock));
        }
        if history.missing_bytes > 0 {
            let missing = bytes(history.missing_bytes);
            out.row(
                "",
                &format!(
                    "{missing} more than it may take: `fs_mirror prune --top` names what takes most"
                ),
            );
        }
    }
    let travelling = status.travelling;
    if travelling.files > 0 {
        let files = counted(travelling.files, "large file", "large files");
        let bytes = bytes(travelling.bytes);
        out.row("on its way", &format!("{files}, {bytes}; all else goes on"));
    }
    if let Some(rolling) = &status.rolling {
        let full = match rolling.last_full {
            Some(at) => format!("all of the copy by {}", stamp(at, zone)),
            None => "not all of the copy yet".into(),
        };
        let now = match rolling.looked_at {
            Some(n) => format!(", looking ({})", counted(n, "entry", "entries")),
            None => String::new(),
        };
        let found = match rolling.found {
            0 => String::new(),
            n => format!(
                "; {} changed by hand, {} repaired",
                count(n),
                count(rolling.repaired)
            ),
        };
        out.row("looked at", &format!("{full}{now}{found}"));
    }
    if let Some(aside) = status.aside.filter(|aside| aside.entries > 0) {
        let entries = counted(aside.entries, "entry", "entries");
        let bytes = bytes(aside.bytes);
        out.row(
            "adopted",
            &format!("{entries}, {bytes}, moved aside (`fs_mirror adopted --empty` removes them)"),
        );
    }
    let since = stamp(status.started, zone);
    let process = if running {
        format!("{} since {since}", status.pid)
    } else {
        format!("was {}, from {since}", status.pid)
    };
    out.row("process", &format!("{process}, version {}", status.version));
    out.text
}

/// Names on the left, values beside each other.
#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn head(&mut self, line: &str) {
        let _ = writeln!(self.text, "{line}");
    }
    fn row(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.text, "  {name:<13} {value}");
    }
    fn item(&mut self, value: &str) {
        let _ = writeln!(self.text, "    {value}");
    }
}

/// How a hold ends, for whoever asks one of this role.
pub fn way_out(hold: &Hold, role: Role) -> String {
    let release = match role {
        Role::Primary => "`mirrord release`",
        Role::Replica | Role::Local => "`fs_mirror release`",
    };
    match hold.reason {
        HoldReason::RootGone => "it goes on by itself when the same directory is back".into(),
        HoldReason::CopyLost => "it goes on by itself when DST and its state are back".into(),
        HoldReason::Limit => {
            "it goes on by itself when there is room again or the limit is raised".into()
        }
        HoldReason::RootReplaced | HoldReason::RootCovered => format!(
            "it goes on by itself when the same directory is back; {release} takes what is there now for the source"
        ),
        HoldReason::RootEmpty => format!(
            "it goes on by itself when something is there again; {release} empties the copy, too, and shows it first"
        ),
        HoldReason::Unexplained | HoldReason::MassChange => {
            format!("{release} shows what would go, and lets it through")
        }
    }
}

/// What it does, in a few words.
pub fn state(state: &State, now: Stamp, zone: &TimeZone) -> String {
    match state {
        State::Starting => "starting".into(),
        State::Seeding {
            files,
            files_total,
            bytes: done,
            bytes_total,
            bytes_per_s,
            eta_s,
        } => {
            let of = |total: Option<String>| total.map(|t| format!(" of {t}")).unwrap_or_default();
            let files = format!("{}{} files", count(*files), of(files_total.map(count)));
            let done = format!("{}{}", bytes(*done), of(bytes_total.map(bytes)));
            let eta = eta_s
                .map(|s| format!(", {} left", seconds(s as f64)))
                .unwrap_or_default();
            format!("seeding: {files}, {done}, {}/s{eta}", bytes(*bytes_per_s))
        }
        State::Following => "following".into(),
        State::Paused { since } => format!("paused since {}", stamp(*since, zone)),
        State::Hold(hold) => format!("on hold since {}", stamp(hold.since, zone)),
        State::Disconnected { since, reason } => {
            format!(
                "disconnected for {}: {reason}",
                seconds(since.seconds_until(now))
            )
        }
        State::Failed { reason } => format!("failed: {reason}"),
        State::Stopped => "stopped".into(),
    }
}

/// Only what ever happened.
fn counters(status: &Status) -> String {
    let c = &status.counters;
    let all = [
        ("overflows", c.overflows),
        ("scan corrections", c.scan_corrections),
        ("torn reads", c.torn_reads),
        ("fuzzy", c.fuzzy),
        ("proven", c.proven),
        ("adopted", c.adopted),
        ("moved aside", c.moved_aside),
        ("repaired", c.repaired),
        ("records", c.records),
    ];
    let some: Vec<String> = all
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(name, n)| format!("{name} {}", count(*n)))
        .collect();
    some.join(" · ")
}

/// What a monitor makes of it: the codes of Nagios plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    Unknown = 3,
}

impl Health {
    pub fn word(self) -> &'static str {
        match self {
            Health::Ok => "OK",
            Health::Warning => "WARNING",
            Health::Critical => "CRITICAL",
            Health::Unknown => "UNKNOWN",
        }
    }
}

/// How well a running mirror is, and why in one line, with figures after a bar as monitors graph them.
pub fn health(status: &Status, max_lag: Duration) -> (Health, String) {
    let mut worst = Health::Ok;
    let mut why = Vec::new();
    let mut find = |health: Health, line: String| {
        worst = worst.max(health);
        why.push(line);
    };
    let lag = status.lag.seconds;
    match &status.state {
        State::Following => {}
        State::Starting => find(Health::Warning, "starting".into()),
        State::Seeding { .. } => find(Health::Warning, "seeding: not known to be equal yet".into()),
        State::Paused { since } => find(
            Health::Warning,
            format!("paused for {}", seconds(since.seconds_until(status.now))),
        ),
        State::Hold(hold) => find(Health::Critical, format!("on hold: {}", hold.what)),
        State::Disconnected { since, reason } => {
            let away = since.seconds_until(status.now);
            let health = if away > max_lag.as_secs_f64() {
                Health::Critical
            } else {
                Health::Warning
            };
            find(
                health,
                format!("disconnected for {}: {reason}", seconds(away)),
            );
        }
        State::Failed { reason } => find(Health::Critical, format!("failed: {reason}")),
        State::Stopped => find(Health::Critical, "stopped".into()),
    }
    if let Some(alarm) = &status.alarm {
        find(
            Health::Critical,
            format!(
                "alarm: {}; followed into history, nothing is rotated or pruned: `fs_mirror release --yes` when you have looked",
                alarm.what
            ),
        );
    }
    if lag > max_lag.as_secs_f64() {
        find(
            Health::Critical,
            format!(
                "lag {} is over {}",
                seconds(lag),
                seconds(max_lag.as_secs_f64())
            ),
        );
    }
    // A service has replicas to look after; what a login started, comes and goes.
    let away = status.replicas.iter().filter(|r| !r.connected);
    for replica in away.filter(|_| status.name.is_some()) {
        let away = replica.since.seconds_until(status.now);
        let health = if away > max_lag.as_secs_f64() {
            Health::Critical
        } else {
            Health::Warning
        };
        find(
            health,
            format!("{} is away for {}", replica.name, seconds(away)),
        );
    }
    if status.failed_total > 0 {
        let first = status
            .failed
            .first()
            .map(|f| format!(" ({}: {})", f.path, f.reason))
            .unwrap_or_default();
        find(
            Health::Warning,
            format!(
                "{} failed{first}",
                counted(status.failed_total, "path", "paths")
            ),
        );
    }
    let total = status.space.map_or(0, |space| space.bytes_total);
    if let Some(aside) = status.aside.filter(|aside| aside.is_large(total)) {
        find(
            Health::Warning,
            format!(
                "adopted/ holds {} ({}): `fs_mirror adopted --empty` removes them",
                counted(aside.entries, "entry", "entries"),
                bytes(aside.bytes)
            ),
        );
    }
    if let Some(fork) = status.forks.last() {
        find(
            Health::Warning,
            format!("{} (remove {} when you know why)", fork.what, fork.aside),
        );
    }
    if why.is_empty() {
        why.push(format!("following, lag {}", seconds(lag)));
    }
    // A bar in a message would end it.
    let line = why.join("; ").replace('|', "/");
    let figures = format!(
        "lag={lag:.3}s;;{:.0} records={} failed={} fuzzy={} entries={}",
        max_lag.as_secs_f64(),
        status.lag.records,
        status.failed_total,
        status.counters.fuzzy,
        status.entries
    );
    (worst, format!("{line} | {figures}"))
}

/// What a wait found, when it found something wrong.
pub fn wait(report: &WaitReport) -> String {
    let mut out = String::new();
    for failed in &report.failed {
        let _ = writeln!(out, "failed: {}: {}", failed.path, failed.reason);
    }
    more(
        &mut out,
        report.failed_total,
        report.failed.len(),
        " failed",
    );
    for path in &report.fuzzy {
        let _ = writeln!(out, "fuzzy: {path}");
    }
    more(&mut out, report.fuzzy_total, report.fuzzy.len(), " fuzzy");
    out
}

fn more(out: &mut String, total: u64, shown: usize, what: &str) {
    let more = total.saturating_sub(shown as u64);
    if more > 0 {
        let _ = writeln!(out, "... and {} more{what}", count(more));
    }
}

/// What a hold will let through.
pub fn release(report: &ReleaseReport) -> String {
    let Some(hold) = &report.hold else {
        return "nothing is held\n".into();
    };
    let mut out = String::new();
    let _ = writeln!(out, "on hold: {}", hold.what);
    if !hold.reason.can_be_released() {
        let _ = writeln!(
            out,
            "nothing to let through: {}",
            way_out(hold, Role::Replica)
        );
        return out;
    }
    if hold.reason.is_another_root() {
        let _ = writeln!(
            out,
            "what is there now is taken for the source: what it does not have goes from the copy"
        );
    }
    if report.gone + report.new + report.changed == 0 {
        return out;
    }
    let verb = if report.released {
        "go now"
    } else {
        "would go"
    };
    let _ = write!(out, "{} {verb}", counted(report.gone, "entry", "entries"));
    // Without them it was not looked into what waits.
    if report.new + report.changed > 0 {
        let _ = write!(
            out,
            ", {} new, {} changed",
            count(report.new),
            count(report.changed)
        );
    }
    out.push('\n');
    for path in &report.sample {
        let _ = writeln!(out, "  {path}");
    }
    if report.sample.len() >= SAMPLE_MAX {
        let _ = writeln!(out, "  ... and more");
    }
    out
}

pub fn verified(end: &VerifyEnd) -> String {
    let mut line = format!(
        "{} compared ({}): {}",
        counted(end.entries, "entry", "entries"),
        bytes(end.bytes),
        if end.different == 0 {
            "no difference".to_owned()
        } else {
            counted(end.different, "difference", "differences")
        }
    );
    if end.repaired > 0 {
        line.push_str(&format!(", {} repaired", count(end.repaired)));
    }
    if end.unknown > 0 {
        line.push_str(&format!(
            ", {} changed or unreadable meanwhile",
            count(end.unknown)
        ));
    }
    line
}

fn traffic(link: &LinkStatus) -> String {
    let packed = match (link.packed, link.saved_bytes) {
        (false, 0) => String::new(),
        (now, saved) => format!(
            "{}, {} saved",
            if now {
                ", compressed"
            } else {
                ", not compressed now"
            },
            bytes(saved)
        ),
    };
    let slow = link.bytes_per_s;
    let slow = slow.map_or(String::new(), |rate| {
        format!("; the link can do {}/s", bytes(rate))
    });
    format!("{}{packed}{slow}", bytes(link.bytes))
}

fn held_to(rate: u64) -> String {
    format!("held back by the limit of {}/s", bytes(rate))
}

#[cfg(test)]
mod tests;
