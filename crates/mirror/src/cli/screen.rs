//! What of the engine's events is shown, when and how. Pure: the clock and the width are told, lines come out.
//!
//! On a terminal one line is rewritten in place, at most five times a second; else plain lines, progress every ten
//! seconds; with `--json` one object a line on stdout. With `-q` only what is wrong.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::cli::text::{self, count, counted};
use crate::engine::event::{Event, Progress};
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
            Event::Equal { .. } => {
                self.progress = None;
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
    fn line_of(&self, event: &Event) -> Option<Out> {
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
            Event::Failed { path, reason } => Some(Out::Stderr(
                self.paint(&format!("failed: {path}: {reason}"), RED),
            )),
            Event::Healed { path } => unless_quiet(format!("well again: {path}")),
            Event::Progress(_) | Event::Live { .. } => None,
        }
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
    let mut line = format!("on hold: {}", hold.what);
    if let (Some(gone), Some(of)) = (hold.gone, hold.of) {
        line.push_str(&format!(" ({} of {} entries)", count(gone), count(of)));
    }
    line.push_str("; the copy stays as it is: `fs_mirror release` shows what would go");
    line
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
mod tests {
    use super::*;
    use crate::engine::options::Detector;
    use crate::engine::status::{HoldReason, PathText};

    fn screen(output: Output) -> Screen {
        Screen::new(output, false, TimeZone::UTC)
    }
    fn show(screen: &mut Screen, event: Event, ms: u64) -> String {
        let at = Stamp {
            ms: 1_000_000_000_000 + ms as i64,
        };
        let out = screen.event(event, Duration::from_millis(ms), at, 80);
        let lines: Vec<String> = out
            .into_iter()
            .map(|o| match o {
                Out::Stdout(l) => format!("out: {l}"),
                Out::Stderr(l) => format!("err: {l}"),
                Out::Live(l) => format!("live: {l}"),
            })
            .collect();
        lines.join("\n")
    }
    fn progress(files: u64, bytes: u64) -> Event {
        let (files_total, bytes_total) = (Some(100_000), Some(4 << 30));
        Event::Progress(Progress {
            files,
            files_total,
            bytes,
            bytes_total,
            comparing: false,
        })
    }
    fn live(seconds: f64, records: u64, path: &str, failures: u64) -> Event {
        Event::Live {
            lag: Lag {
                seconds,
                records,
                bytes: records * 1000,
            },
            last_change: Some(LastChange {
                at: Stamp {
                    ms: 1_000_000_000_000,
                },
                path: PathText::new(path.as_bytes()),
            }),
            failures,
            fuzzy: 0,
        }
    }
    fn hold() -> Hold {
        Hold {
            reason: HoldReason::MassChange,
            since: Stamp { ms: 0 },
            what: "entries went below blog".into(),
            gone: Some(4000),
            of: Some(5000),
            below: None,
        }
    }
    fn failed() -> Event {
        Event::Failed {
            path: PathText::new(b"a\nb"),
            reason: "permission denied".into(),
        }
    }
    fn equal() -> Event {
        Event::Equal {
            entries: 102_345,
            files: 100_000,
            bytes: 4 << 30,
            seconds: 41.7,
        }
    }

    #[test]
    fn on_a_terminal() {
        let s = &mut screen(Output {
            terminal: true,
            ..Output::default()
        });
        let started = Event::Started {
            detector: Detector::Fanotify,
            why: "one mark on the file system".into(),
            not_mirrored: vec![PathText::new(b"mnt/x")],
        };
        assert_eq!(
            show(s, started, 0),
            "err: watching with fanotify: one mark on the file system\n\
             not mirrored: mnt/x is another mount (--cross mnt/x adds it)"
        );
        assert_eq!(
            show(s, progress(0, 0), 0),
            "live: copying 0 of 100,000 files · 0 B of 4.0 GiB"
        );
        assert_eq!(show(s, progress(500, 10 << 20), 100), "");
        assert_eq!(s.tick(Duration::from_millis(150), 80), []);
        assert_eq!(s.tick(Duration::from_millis(200), 80).len(), 1);
        assert_eq!(s.tick(Duration::from_millis(400), 80), []);
        assert_eq!(
            show(s, progress(10_000, 200 << 20), 2000),
            "live: copying 10,000 of 100,000 files · 200 MiB of 4.0 GiB · 100 MiB/s · 0:39 left"
        );
        assert_eq!(
            s.live_line(Duration::from_secs(3), 200),
            Some(Out::Live(
                "copying 10,000 of 100,000 files · 200 MiB of 4.0 GiB · 100 MiB/s · 5,000 files/s · 0:39 left".into()
            ))
        );
        assert_eq!(
            show(s, failed(), 2001),
            "err: failed: a\\x0ab: permission denied\n\
             live: copying 10,000 of 100,000 files · 200 MiB of 4.0 GiB · 100 MiB/s · 0:39 left"
        );
        assert_eq!(
            show(s, equal(), 2100),
            "err: equal: 102,345 entries (100,000 files, 4.0 GiB) in 42 s\nlive: "
        );
        assert_eq!(
            show(s, live(0.04, 0, "blog/wp-config.php", 0), 2101),
            "live: following · lag 0.0 s · last change 01:46:40 blog/wp-config.php"
        );
        assert_eq!(show(s, live(1.0, 1, "x", 0), 2200), "");
        assert_eq!(
            show(s, live(0.0, 0, &"deep/".repeat(40), 2), 2302),
            "live: following · lag 0.0 s · last change 01:46:40 …p/deep/deep/deep/deep/ · 2 failed"
        );
        let long = format!("{}/wp-config.php", "deep".repeat(40));
        assert_eq!(
            show(s, live(1.26, 3, &long, 2), 2520),
            "live: following · lag 1.3 s (3 records, 2.9 KiB) · 2 failed"
        );
        assert_eq!(
            show(s, Event::Held(hold()), 2521),
            "err: on hold: entries went below blog (4,000 of 5,000 entries); the copy stays as it is: \
             `fs_mirror release` shows what would go\nlive: on hold: entries went below blog"
        );
        assert!(
            show(s, Event::Released, 2522)
                .starts_with("err: released: going on\nlive: following · lag 1.3 s")
        );
        assert_eq!(
            show(
                s,
                Event::Changed {
                    what: "wrote",
                    path: PathText::new(b"x")
                },
                2523
            ),
            ""
        );
        assert_eq!(s.end(), [Out::Live(String::new())]);
        assert_eq!(s.end(), []);
    }

    #[test]
    fn in_a_pipe() {
        let s = &mut screen(Output {
            verbose: true,
            ..Output::default()
        });
        assert_eq!(show(s, progress(0, 0), 0), "");
        for ms in 1..100 {
            assert_eq!(show(s, progress(ms, ms), ms * 100), "");
        }
        assert_eq!(
            show(s, progress(20_000, 1 << 30), 10_000),
            "err: copying 20,000 of 100,000 files · 1.0 GiB of 4.0 GiB · 102 MiB/s · 2,000 files/s · 0:40 left"
        );
        assert_eq!(show(s, progress(20_001, 1 << 30), 10_100), "");
        assert_eq!(
            show(s, live(0.0, 0, "x", 0), 11_000),
            "err: following · lag 0.0 s"
        );
        assert_eq!(show(s, live(0.3, 4, "x", 0), 60_000), "");
        assert_eq!(
            show(s, live(0.3, 4, "x", 1), 60_001),
            "err: following · lag 0.3 s (4 records, 3.9 KiB) · 1 failed"
        );
        assert_eq!(
            show(
                s,
                Event::Changed {
                    what: "wrote",
                    path: PathText::new(b"x")
                },
                60_002
            ),
            "out: wrote x"
        );
        assert_eq!(s.tick(Duration::from_secs(100), 80), []);
        assert_eq!(s.end(), []);
    }

    #[test]
    fn quiet_shows_what_is_wrong() {
        let s = &mut screen(Output {
            quiet: true,
            terminal: true,
            ..Output::default()
        });
        for event in [
            progress(1, 1),
            live(0.0, 0, "x", 1),
            equal(),
            Event::Notice("x".into()),
            Event::Paused,
        ] {
            assert_eq!(show(s, event, 0), "");
        }
        assert_eq!(
            show(s, failed(), 0),
            "err: failed: a\\x0ab: permission denied"
        );
        assert!(show(s, Event::Held(hold()), 0).starts_with("err: on hold"));
        let gone = Event::Disconnected {
            reason: "no route to host".into(),
            retry_s: 4,
        };
        assert_eq!(
            show(s, gone, 0),
            "err: disconnected: no route to host; trying again in 4 s"
        );
        assert_eq!(s.tick(Duration::from_secs(9), 80), []);
    }

    #[test]
    fn every_event_is_one_json_object() {
        let s = &mut screen(Output {
            json: true,
            verbose: true,
            ..Output::default()
        });
        let path = || PathText::new(b"a\xff\n");
        let events = vec![
            Event::Started {
                detector: Detector::Scan,
                why: "asked for".into(),
                not_mirrored: vec![path()],
            },
            progress(1, 2),
            equal(),
            live(0.5, 1, "x", 0),
            Event::Changed {
                what: "wrote",
                path: path(),
            },
            Event::Would {
                what: "delete",
                path: path(),
            },
            Event::Notice("line".into()),
            Event::Held(hold()),
            Event::Released,
            Event::Paused,
            Event::Resumed,
            Event::Disconnected {
                reason: "x".into(),
                retry_s: 1,
            },
            Event::Connected { peer: "h".into() },
            failed(),
            Event::Healed { path: path() },
        ];
        for (n, event) in events.into_iter().enumerate() {
            let line = show(s, event, n as u64 * 2000);
            let value: Value = serde_json::from_str(line.strip_prefix("out: ").unwrap()).unwrap();
            assert!(
                value["event"].is_string() && value["at"].is_string() && !line.contains('\n'),
                "{line}"
            );
        }
        assert!(show(s, progress(5, 5), 50_000).contains("\"files\":5,"));
        assert_eq!(show(s, progress(5, 5), 50_100), "");
        assert_eq!(
            show(s, Event::Healed { path: path() }, 0),
            r#"out: {"at":"2001-09-09T01:46:40.000Z","event":"healed","path":"a\\xff\\x0a"}"#
        );
    }

    #[test]
    fn colours_only_when_asked() {
        let output = Output {
            terminal: true,
            ..Output::default()
        };
        let s = &mut Screen::new(output, true, TimeZone::UTC);
        assert_eq!(
            show(s, failed(), 0),
            "err: \x1b[31mfailed: a\\x0ab: permission denied\x1b[0m"
        );
    }
}
