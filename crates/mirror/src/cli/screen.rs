//! What of the engine's events is shown, when and how. Pure: the clock and the width are told, lines come out.
//!
//! On a terminal one line is rewritten in place, at most five times a second; else plain lines, progress every ten
//! seconds; with `--json` one object a line on stdout. With `-q` only what is wrong.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::cli::text::{self, count, counted};
use crate::engine::event::{Event, Incomplete, Progress};
use crate::engine::options::Output;
use crate::engine::status::{Hold, Lag, LastChange, Stamp};

/// Something to write, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// A line on stdout.
    Stdout(String),
    /// A line on stderr.
    Stderr(String),
    /// The live line on the terminal is now this; empty: there is none.
    Live(String),
}

const LIVE_EVERY: Duration = Duration::from_millis(200);
const PLAIN_EVERY: Duration = Duration::from_secs(10);
const JSON_EVERY: Duration = Duration::from_secs(1);
/// Rates are over this much time.
const WINDOW: Duration = Duration::from_secs(10);
/// Lines about single paths that failed or healed, until the next summary.
const PATHS_TOLD_MAX: u64 = 50;

pub struct Screen {
    output: Output,
    colour: bool,
    zone: TimeZone,
    /// (when, files, bytes) of late.
    samples: VecDeque<(Duration, u64, u64)>,
    progress: Option<Progress>,
    live: Option<(Lag, Option<LastChange>, u64, u64)>,
    /// What the live line says instead while it lasts: paused, on hold, disconnected.
    banner: Option<String>,
    equal: bool,
    shown_at: Option<Duration>,
    shown: String,
    /// Failures and fuzzy files as last told in a plain line.
    told: Option<(u64, u64)>,
    /// Lines about single paths, failed and healed, since the copy last was found equal or not.
    paths_told: u64,
}

impl Screen {
    pub fn new(output: Output, colour: bool, zone: TimeZone) -> Screen {
        Screen {
            output,
            colour,
            zone,
            samples: VecDeque::new(),
            progress: None,
            live: None,
            banner: None,
            equal: false,
            shown_at: None,
            shown: String::new(),
            told: None,
            paths_told: 0,
        }
    }

    /// `now` is any clock that only goes forward, `columns` the terminal's width.
    pub fn event(&mut self, event: Event, now: Duration, at: Stamp, columns: usize) -> Vec<Out> {
        if self.output.json {
            return self.json_event(&event, now, at);
        }
        let mut out = Vec::new();
        let phase_changed = self.remember(&event, now);
        if let Some(line) = self.line_of(&event) {
            out.push(line);
        }
        if self.output.quiet {
            return out;
        }
        if self.output.terminal {
            let due = self
                .shown_at
                .is_none_or(|at| now.saturating_sub(at) >= LIVE_EVERY);
            if due || phase_changed || !out.is_empty() {
                out.extend(self.live_line(now, columns));
            }
        } else {
            out.extend(self.plain_line(&event, now));
        }
        out
    }

    /// Nothing happened for a while: what was held back is shown.
    pub fn tick(&mut self, now: Duration, columns: usize) -> Vec<Out> {
        let due = self
            .shown_at
            .is_some_and(|at| now.saturating_sub(at) >= LIVE_EVERY);
        if self.output.json || self.output.quiet || !self.output.terminal || !due {
            return Vec::new();
        }
        let before = self.shown.clone();
        let line = self.live_line(now, columns);
        line.into_iter().filter(|_| self.shown != before).collect()
    }

    /// Takes the live line off the terminal.
    pub fn end(&mut self) -> Vec<Out> {
        if self.shown.is_empty() {
            return Vec::new();
        }
        self.shown.clear();
        vec![Out::Live(String::new())]
    }

    /// True: the line now stands for something else, so show it at once.
    fn remember(&mut self, event: &Event, now: Duration) -> bool {
        match event {
            Event::Progress(progress) => {
                let first = self.progress.is_none();
                self.progress = Some(progress.clone());
                self.samples
                    .push_back((now, progress.files, progress.bytes));
                while self.samples.len() > 2
                    && self
                        .samples
                        .get(1)
                        .is_some_and(|(at, ..)| now.saturating_sub(*at) >= WINDOW)
                {
                    self.samples.pop_front();
                }
                // Many events a second: every other sample says as much.
                if self.samples.len() > 256 {
                    let mut nth = 0;
                    self.samples.retain(|_| {
                        nth += 1;
                        nth % 2 == 1
                    });
                }
                first
            }
            Event::Equal { .. } | Event::Incomplete(_) => {
                self.progress = None;
                self.paths_told = 0;
                self.samples.clear();
                self.equal = true;
                true
            }
            Event::Live {
                lag,
                last_change,
                failures,
                fuzzy,
            } => {
                let first = self.live.is_none() || self.progress.is_some();
                self.live = Some((*lag, last_change.clone(), *failures, *fuzzy));
                self.progress = None;
                self.samples.clear();
                first
            }
            Event::Held(hold) => self.set_banner(Some(format!("on hold: {}", hold.what))),
            Event::Paused => self.set_banner(Some("paused".into())),
            Event::Disconnected { reason, retry_s } => {
                let again = if *retry_s > 0 {
                    format!(", again in {retry_s} s")
                } else {
                    String::new()
                };
                self.set_banner(Some(format!("disconnected: {reason}{again}")))
            }
            Event::Released | Event::Resumed | Event::Connected { .. } => self.set_banner(None),
            _ => false,
        }
    }

    fn set_banner(&mut self, banner: Option<String>) -> bool {
        self.banner = banner;
        true
    }

    /// The line an event is worth by itself.
    fn line_of(&mut self, event: &Event) -> Option<Out> {
        let quiet = self.output.quiet;
        let unless_quiet = |line: String| (!quiet).then_some(Out::Stderr(line));
        match event {
            Event::Started {
                detector,
                why,
                not_mirrored,
            } => {
                let mut line = format!("watching with {detector}");
                if !why.is_empty() {
                    line.push_str(&format!(": {why}"));
                }
                for path in not_mirrored {
                    line.push_str(&format!(
                        "\nnot mirrored: {path} is another mount (--cross {path} adds it)"
                    ));
                }
                unless_quiet(line)
            }
            Event::Equal {
                entries,
                files,
                bytes,
                seconds,
            } => unless_quiet(format!(
                "{}: {} ({}, {}) in {}",
                self.paint("equal", GREEN),
                counted(*entries, "entry", "entries"),
                counted(*files, "file", "files"),
                text::bytes(*bytes),
                text::seconds(*seconds)
            )),
            Event::Changed { what, path } => {
                (self.output.verbose && !quiet).then(|| Out::Stdout(format!("{what} {path}")))
            }
            Event::Would { what, path } => Some(Out::Stdout(format!("{what} {path}"))),
            Event::Notice(line) => unless_quiet(line.clone()),
            Event::Held(hold) => Some(Out::Stderr(self.paint(&held_line(hold), RED))),
            Event::Released => unless_quiet("released: going on".into()),
            Event::Paused => unless_quiet("paused".into()),
            Event::Resumed => unless_quiet("resumed".into()),
            Event::Disconnected { reason, retry_s } => Some(Out::Stderr(self.paint(
                &match retry_s {
                    0 => format!("disconnected: {reason}"),
                    s => format!("disconnected: {reason}; trying again in {s} s"),
                },
                RED,
            ))),
            Event::Connected { peer } => unless_quiet(format!("connected to {peer}")),
            Event::Incomplete(what) => Some(Out::Stderr(self.incomplete(what))),
            Event::Extras {
                total,
                sample,
                list,
            } => {
                let is = if *total == 1 { "is" } else { "are" };
                let mut line = format!(
                    "{} of DST {is} not in SRC:",
                    counted(*total, "entry", "entries")
                );
                for path in sample {
                    line.push_str(&format!("\n  {path}"));
                }
                let more = total.saturating_sub(sample.len() as u64);
                if more > 0 {
                    line.push_str(&format!("\n  ... and {} more", count(more)));
                }
                unless_quiet(format!("{line}\n  listed in {list}"))
            }
            Event::Failed { path, reason } => {
                let line = format!("failed: {path}: {reason}");
                self.one_path(line)
                    .map(|line| self.paint(&line, RED))
                    .map(Out::Stderr)
            }
            Event::Healed { path } if !quiet => {
                let line = self.one_path(format!("well again: {path}"));
                line.map(Out::Stderr)
            }
            Event::Healed { .. } => None,
            Event::Progress(_) | Event::Live { .. } => None,
        }
    }

    /// One line of many that may come: after some, `status` has to tell the rest.
    fn one_path(&mut self, line: String) -> Option<String> {
        self.paths_told += 1;
        match self.paths_told {
            1..=PATHS_TOLD_MAX => Some(line),
            n if n == PATHS_TOLD_MAX + 1 => {
                Some("... and more: `fs_mirror status -v` lists them".into())
            }
            _ => None,
        }
    }

    fn incomplete(&self, what: &Incomplete) -> String {
        let mut why = Vec::new();
        if what.failed_total > 0 {
            why.push(format!(
                "{} failed",
                counted(what.failed_total, "path", "paths")
            ));
        }
        if what.fuzzy > 0 {
            why.push(format!("{} fuzzy", counted(what.fuzzy, "file", "files")));
        }
        if what.extras > 0 {
            let n = counted(what.extras, "entry", "entries");
            why.push(format!(
                "{n} of DST not in SRC and not moved aside (--yes moves them)"
            ));
        }
        let head = format!("incomplete: {}", why.join(", "));
        let mut text = self.paint(&head, RED);
        text.push_str(&format!(
            "; {} ({}, {}) in {}",
            counted(what.entries, "entry", "entries"),
            counted(what.files, "file", "files"),
            text::bytes(what.bytes),
            text::seconds(what.seconds)
        ));
        for failed in &what.failed {
            text.push_str(&format!("\n  {}: {}", failed.path, failed.reason));
        }
        let more = what.failed_total.saturating_sub(what.failed.len() as u64);
        if more > 0 && !what.failed.is_empty() {
            text.push_str(&format!("\n  ... and {} more failed", count(more)));
        }
        text
    }

    fn live_line(&mut self, now: Duration, columns: usize) -> Option<Out> {
        // The last column stays free: some terminals wrap when it is filled.
        let columns = columns.saturating_sub(1);
        let line = match (&self.banner, &self.progress, &self.live) {
            (Some(banner), ..) => text::fit(banner, columns),
            (None, Some(progress), _) => text::fit(&self.progress_line(progress, columns), columns),
            (None, None, Some((lag, last, failures, fuzzy))) => {
                self.following_line(lag, last.as_ref(), *failures, *fuzzy, columns)
            }
            (None, None, None) => String::new(),
        };
        self.shown_at = Some(now);
        if line.is_empty() && self.shown.is_empty() {
            return None;
        }
        self.shown = line.clone();
        Some(Out::Live(line))
    }

    /// A line for a log: rarely, and when something is new.
    fn plain_line(&mut self, event: &Event, now: Duration) -> Option<Out> {
        match event {
            Event::Progress(progress) => {
                let since = *self.shown_at.get_or_insert(now);
                if now.saturating_sub(since) < PLAIN_EVERY {
                    return None;
                }
                self.shown_at = Some(now);
                Some(Out::Stderr(self.progress_line(progress, usize::MAX)))
            }
            Event::Live {
                lag,
                failures,
                fuzzy,
                ..
            } => {
                self.shown_at = None;
                let told = (*failures, *fuzzy);
                if self.told == Some(told) {
                    return None;
                }
                self.told = Some(told);
                Some(Out::Stderr(self.following_line(
                    lag,
                    None,
                    *failures,
                    *fuzzy,
                    usize::MAX,
                )))
            }
            _ => None,
        }
    }

    /// What matters least goes first when it does not fit.
    fn progress_line(&self, progress: &Progress, columns: usize) -> String {
        let what = match (progress.comparing, self.equal) {
            (true, _) => "comparing",
            (false, true) => "catching up",
            (false, false) => "copying",
        };
        let mut parts = Vec::new();
        parts.push(match progress.files_total {
            Some(total) => format!("{} of {} files", count(progress.files), count(total)),
            None => counted(progress.files, "file", "files"),
        });
        parts.push(match progress.bytes_total {
            Some(total) => format!("{} of {}", text::bytes(progress.bytes), text::bytes(total)),
            None => text::bytes(progress.bytes),
        });
        if let Some((files_rate, bytes_rate)) = self.rates() {
            if !progress.comparing {
                parts.push(format!("{}/s", text::bytes(bytes_rate as u64)));
            }
            let files_rate_at = parts.len();
            parts.push(format!("{} files/s", count(files_rate as u64)));
            if let Some(left) = left(progress, files_rate, bytes_rate) {
                parts.push(format!("{} left", text::clock(left)));
            }
            if text::width(what) + 1 + text::width(&parts.join(" · ")) > columns {
                parts.remove(files_rate_at);
            }
        }
        format!("{what} {}", parts.join(" · "))
    }

    /// Files and bytes per second of late; `None`: too early to say.
    fn rates(&self) -> Option<(f64, f64)> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.0.saturating_sub(first.0).as_secs_f64();
        if seconds < 0.5 {
            return None;
        }
        Some((
            last.1.saturating_sub(first.1) as f64 / seconds,
            last.2.saturating_sub(first.2) as f64 / seconds,
        ))
    }

    fn following_line(
        &self,
        lag: &Lag,
        last: Option<&LastChange>,
        failures: u64,
        fuzzy: u64,
        columns: usize,
    ) -> String {
        let mut line = format!("following · lag {}", text::seconds(lag.seconds));
        if lag.records > 0 {
            line.push_str(&format!(
                " ({}, {})",
                counted(lag.records, "record", "records"),
                text::bytes(lag.bytes)
            ));
        }
        let mut tail = String::new();
        if failures > 0 {
            tail.push_str(&format!(" · {} failed", count(failures)));
        }
        if fuzzy > 0 {
            tail.push_str(&format!(" · {} fuzzy", count(fuzzy)));
        }
        if let Some(last) = last {
            let time = text::stamp(last.at, &self.zone);
            let time = time.split(' ').nth(1).unwrap_or_default().to_owned();
            let middle = format!(" · last change {time} ");
            // The path gets what is left, if that is enough to tell anything.
            let room = columns
                .saturating_sub(text::width(&line) + text::width(&middle) + text::width(&tail));
            if room >= 8 {
                line.push_str(&middle);
                line.push_str(&text::fit_end(last.path.as_str(), room));
            }
        }
        line.push_str(&tail);
        text::fit(&line, columns)
    }

    fn json_event(&mut self, event: &Event, now: Duration, at: Stamp) -> Vec<Out> {
        if matches!(event, Event::Progress(_) | Event::Live { .. }) {
            let first = self.remember(event, now);
            let due = self
                .shown_at
                .is_none_or(|at| now.saturating_sub(at) >= JSON_EVERY);
            if !due && !first {
                return Vec::new();
            }
            self.shown_at = Some(now);
        }
        if matches!(event, Event::Changed { .. }) && !self.output.verbose {
            return Vec::new();
        }
        let rates = self.rates();
        vec![Out::Stdout(json_of(event, at, rates).to_string())]
    }

    fn paint(&self, text: &str, colour: &str) -> String {
        if self.colour {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

const RED: &str = "31";
const GREEN: &str = "32";

/// Seconds to go; the slower of files and bytes tells.
fn left(progress: &Progress, files_rate: f64, bytes_rate: f64) -> Option<u64> {
    let time = |done: u64, total: Option<u64>, rate: f64| {
        let todo = total?.saturating_sub(done) as f64;
        match todo {
            0.0 => Some(0.0),
            _ if rate > 0.0 => Some(todo / rate),
            _ => None,
        }
    };
    let files = time(progress.files, progress.files_total, files_rate);
    let bytes = time(progress.bytes, progress.bytes_total, bytes_rate);
    let most = match (files, bytes) {
        (Some(a), Some(b)) => a.max(b),
        (Some(a), None) | (None, Some(a)) => a,
        (None, None) => return None,
    };
    // Beyond a hundred days nobody counts.
    (most < 8_640_000.0).then_some(most.ceil() as u64)
}

fn held_line(hold: &Hold) -> String {
    format!(
        "on hold: {}; the copy stays as it is: {}",
        hold.what,
        crate::cli::show::way_out(hold, crate::engine::status::Role::Replica)
    )
}

fn json_of(event: &Event, at: Stamp, rates: Option<(f64, f64)>) -> Value {
    let (name, mut value) = match event {
        Event::Started {
            detector,
            why,
            not_mirrored,
        } => (
            "started",
            json!({"detector": detector, "why": why, "not_mirrored": not_mirrored}),
        ),
        Event::Progress(p) => (
            "progress",
            json!({
                "files": p.files, "files_total": p.files_total, "bytes": p.bytes, "bytes_total": p.bytes_total,
                "comparing": p.comparing,
                "files_per_s": rates.map(|r| r.0 as u64), "bytes_per_s": rates.map(|r| r.1 as u64),
                "eta_s": rates.and_then(|(files, bytes)| left(p, files, bytes)),
            }),
        ),
        Event::Equal {
            entries,
            files,
            bytes,
            seconds,
        } => (
            "equal",
            json!({"entries": entries, "files": files, "bytes": bytes, "seconds": seconds}),
        ),
        Event::Incomplete(what) => (
            "incomplete",
            json!({
                "entries": what.entries, "files": what.files, "bytes": what.bytes, "seconds": what.seconds,
                "failed": what.failed, "failed_total": what.failed_total, "fuzzy": what.fuzzy, "extras": what.extras,
            }),
        ),
        Event::Extras {
            total,
            sample,
            list,
        } => (
            "extras",
            json!({"total": total, "sample": sample, "list": list}),
        ),
        Event::Live {
            lag,
            last_change,
            failures,
            fuzzy,
        } => (
            "live",
            json!({"lag": lag, "last_change": last_change, "failures": failures, "fuzzy": fuzzy}),
        ),
        Event::Changed { what, path } => ("changed", json!({"what": what, "path": path})),
        Event::Would { what, path } => ("would", json!({"what": what, "path": path})),
        Event::Notice(line) => ("notice", json!({"line": line})),
        Event::Held(hold) => ("held", json!({"hold": hold})),
        Event::Released => ("released", json!({})),
        Event::Paused => ("paused", json!({})),
        Event::Resumed => ("resumed", json!({})),
        Event::Disconnected { reason, retry_s } => (
            "disconnected",
            json!({"reason": reason, "retry_s": retry_s}),
        ),
        Event::Connected { peer } => ("connected", json!({"peer": peer})),
        Event::Failed { path, reason } => ("failed", json!({"path": path, "reason": reason})),
        Event::Healed { path } => ("healed", json!({"path": path})),
    };
    if let Some(fields) = value.as_object_mut() {
        fields.insert("event".into(), name.into());
        fields.insert("at".into(), at.to_string().into());
    }
    value
}

#[cfg(test)]
mod tests;
