//! When much changed: counts a minute as bars, a line a span, so that one sees when it began.

use std::collections::BTreeMap;
use std::ffi::OsString;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::cli::text::{count, counted};

/// What a line may stand for; then days in a row.
const STEPS_MIN: [i64; 6] = [1, 5, 15, 60, 6 * 60, 24 * 60];
/// Lines of a picture, unless the days are more than that many weeks.
pub const LINES_MAX: usize = 60;
const BAR_MIN: usize = 8;

/// What happened in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minute {
    /// Of its beginning, in seconds.
    pub at: i64,
    pub changes: u64,
    /// Of them, what removed something.
    pub removed: u64,
}

/// The same, in spans of equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    pub step_s: i64,
    /// In order, each with something in it.
    pub spans: Vec<Minute>,
}

/// In as few steps as `lines_max` lines can show, gaps included. Hours and less are as UTC has them, longer ones as `zone` has.
pub fn timeline(minutes: &[Minute], lines_max: usize, zone: &TimeZone) -> Timeline {
    let ends = minutes
        .iter()
        .map(|m| m.at)
        .min()
        .zip(minutes.iter().map(|m| m.at).max());
    let Some((first, last)) = ends else {
        return Timeline {
            step_s: 60,
            spans: Vec::new(),
        };
    };
    let fits = |step_s: i64| last.saturating_sub(first) / step_s < lines_max.max(1) as i64;
    let day: i64 = 24 * 3600;
    let days = std::iter::successors(Some(2 * day), |step: &i64| step.checked_mul(2));
    let steps = STEPS_MIN.iter().map(|step| step * 60).chain(days);
    let step_s = steps
        .into_iter()
        .find(|step| fits(*step))
        .unwrap_or(i64::MAX);
    let mut spans: BTreeMap<i64, Minute> = BTreeMap::new();
    for minute in minutes {
        let shift = match step_s > 3600 {
            true => offset(minute.at, zone),
            false => 0,
        };
        let local = minute.at.saturating_add(shift);
        let at = local
            .saturating_sub(local.rem_euclid(step_s))
            .saturating_sub(shift);
        let span = spans.entry(at).or_insert(Minute {
            at,
            changes: 0,
            removed: 0,
        });
        span.changes = span.changes.saturating_add(minute.changes);
        span.removed = span
            .removed
            .saturating_add(minute.removed.min(minute.changes));
    }
    Timeline {
        step_s,
        spans: spans
            .into_values()
            .filter(|span| span.changes > 0)
            .collect(),
    }
}

/// Seconds that local time is ahead of UTC.
fn offset(at: i64, zone: &TimeZone) -> i64 {
    Timestamp::from_second(at).map_or(0, |time| i64::from(zone.to_offset(time).seconds()))
}

impl Timeline {
    /// The span in which most changed; of equal ones the first.
    pub fn peak(&self) -> Option<&Minute> {
        self.spans.iter().rev().max_by_key(|span| span.changes)
    }

    /// A picture for a terminal of so many columns.
    pub fn lines(&self, columns: usize, utf8: bool, zone: &TimeZone) -> Vec<String> {
        let Some(peak) = self.peak() else {
            return vec!["nothing changed".into()];
        };
        let number = count(peak.changes).len();
        let stamp = "2026-11-22 14:00".len();
        let tail = " removed  <- peak".len() + number;
        let bar = columns
            .saturating_sub(stamp + number + tail + 4)
            .max(BAR_MIN);
        let total = |of: fn(&Minute) -> u64| {
            let sums = self.spans.iter().map(of);
            sums.fold(0u64, u64::saturating_add)
        };
        let removed = total(|span| span.removed);
        let mut out = vec![format!(
            "{}, {} of them removed something; a line is {}",
            counted(total(|span| span.changes), "change", "changes"),
            count(removed),
            span_name(self.step_s)
        )];
        let mut before: Option<i64> = None;
        for span in &self.spans {
            if let Some(quiet) = before
                .map(|before| span.at.saturating_sub(before).saturating_sub(self.step_s))
                .filter(|quiet| *quiet > 0)
            {
                let blank = " ".repeat(stamp);
                out.push(format!("{blank} (nothing for {})", span_name(quiet)));
            }
            before = Some(span.at);
            let cells = cells(span.changes, peak.changes, bar);
            let gone = cells_of(span.removed, span.changes, cells);
            let (kept_sign, gone_sign) = if utf8 { ("█", "▒") } else { ("#", "-") };
            let picture = kept_sign.repeat(cells - gone) + &gone_sign.repeat(gone);
            let blank = " ".repeat(bar.saturating_sub(cells));
            let mut line = format!(
                "{} {picture}{blank} {:>number$}",
                clock(span.at, zone),
                count(span.changes)
            );
            if span.removed > 0 {
                line.push_str(&format!(" {:>number$} removed", count(span.removed)));
            }
            if span == peak {
                line.push_str("  <- peak");
            }
            out.push(line);
        }
        out
    }

    pub fn to_json(&self) -> Value {
        let span = |span: &Minute| {
            json!({
                "at": utc(span.at),
                "changes": span.changes,
                "removed": span.removed,
            })
        };
        json!({
            "step_s": self.step_s,
            "peak": self.peak().map(span),
            "spans": self.spans.iter().map(span).collect::<Vec<_>>(),
        })
    }
}

/// At least one for what there is.
fn cells(n: u64, of: u64, bar: usize) -> usize {
    let scaled = u128::from(n) * bar as u128 / u128::from(of.max(1));
    usize::try_from(scaled).unwrap_or(bar).clamp(1, bar.max(1))
}

/// A part of them; all only when it is all.
fn cells_of(part: u64, of: u64, cells: usize) -> usize {
    match part {
        0 => 0,
        part if part >= of => cells,
        part => self::cells(part, of, cells).min(cells.saturating_sub(1)),
    }
}

fn clock(at: i64, zone: &TimeZone) -> String {
    match Timestamp::from_second(at) {
        Ok(time) => time
            .to_zoned(zone.clone())
            .strftime("%Y-%m-%d %H:%M")
            .to_string(),
        Err(_) => "(no time)       ".into(),
    }
}

fn utc(at: i64) -> String {
    Timestamp::from_second(at).map_or("(no time)".into(), |time| time.to_string())
}

/// `5 minutes`, `an hour`, `2 days`
fn span_name(s: i64) -> String {
    let (n, one, many) = match s {
        s if s % 86_400 == 0 => (s / 86_400, "a day", "days"),
        s if s % 3600 == 0 => (s / 3600, "an hour", "hours"),
        s => (s / 60, "a minute", "minutes"),
    };
    match n {
        1 => one.into(),
        n => format!("{} {many}", count(n.unsigned_abs())),
    }
}

/// Whether what is printed may hold more than ASCII: what `LC_ALL`, `LC_CTYPE` and `LANG` say, the first that says anything.
pub fn speaks_utf8(var: impl Fn(&str) -> Option<OsString>) -> bool {
    let said = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(var)
        .find(|value| !value.is_empty());
    said.is_some_and(|value| {
        let value = value.to_string_lossy().to_ascii_lowercase();
        value.contains("utf-8") || value.contains("utf8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::width;

    /// 2026-11-22 14:00 UTC
    const START: i64 = 1_795_356_000;

    fn minutes(of: &[(i64, u64, u64)]) -> Vec<Minute> {
        of.iter()
            .map(|(minute, changes, removed)| Minute {
                at: START + minute * 60,
                changes: *changes,
                removed: *removed,
            })
            .collect()
    }

    #[test]
    fn a_picture() {
        let found = timeline(
            &minutes(&[(0, 2, 0), (1, 10, 5), (2, 1200, 1200), (9, 12, 1)]),
            LINES_MAX,
            &TimeZone::UTC,
        );
        assert_eq!(
            found.lines(70, false, &TimeZone::UTC),
            [
                "1,224 changes, 1,206 of them removed something; a line is a minute",
                "2026-11-22 14:00 #                           2",
                "2026-11-22 14:01 #                          10     5 removed",
                "2026-11-22 14:02 ----------------------- 1,200 1,200 removed  <- peak",
                "                 (nothing for 6 minutes)",
                "2026-11-22 14:09 #                          12     1 removed",
            ]
        );
        let utf8 = found.lines(70, true, &TimeZone::UTC);
        assert!(utf8[1].contains('█') && utf8[3].contains('▒'), "{utf8:?}");
        assert_eq!(
            timeline(&[], 60, &TimeZone::UTC).lines(80, true, &TimeZone::UTC),
            ["nothing changed"]
        );
    }

    #[test]
    fn steps_grow_with_the_time() {
        let day = 24 * 60;
        for (last, step_min) in [
            (0, 1),
            (59, 1),
            (60, 5),
            (299, 5),
            (300, 15),
            (900, 60),
            (60 * 60, 6 * 60),
            (20 * day, day),
            (70 * day, 2 * day),
            (10_000 * day, 256 * day),
        ] {
            let found = timeline(
                &minutes(&[(0, 1, 0), (last, 1, 1)]),
                LINES_MAX,
                &TimeZone::UTC,
            );
            assert_eq!(found.step_s, step_min * 60, "{last}");
            let sum: u64 = found.spans.iter().map(|span| span.changes).sum();
            assert_eq!(sum, 2);
            assert!(found.lines(80, true, &TimeZone::UTC).len() <= LINES_MAX + 2);
        }
        for extreme in [i64::MIN, i64::MAX] {
            let one = Minute {
                at: extreme,
                changes: u64::MAX,
                removed: u64::MAX,
            };
            let found = timeline(&[one, minutes(&[(0, 1, 0)])[0]], 1, &TimeZone::UTC);
            assert!(!found.lines(0, true, &TimeZone::UTC).is_empty());
            found.to_json();
        }
    }

    #[test]
    fn days_are_the_reader_s() {
        let zone = TimeZone::fixed(jiff::tz::offset(-5));
        // 14:00 UTC is 09:00 there; 03:00 UTC the next day is 22:00 of the same.
        let busy = minutes(&[(0, 1, 0), (13 * 60, 1, 0), (40 * 24 * 60, 1, 0)]);
        let found = timeline(&busy, LINES_MAX, &zone);
        assert_eq!(found.step_s, 24 * 3600);
        assert_eq!(found.spans.len(), 2);
        let lines = found.lines(80, false, &zone);
        assert!(lines[1].starts_with("2026-11-22 00:00 ####"), "{lines:?}");
    }

    #[test]
    fn lines_keep_to_the_width() {
        let busy = minutes(&[(0, 1_000_000, 999_999), (1, 1, 1), (2, 500_000, 0)]);
        let found = timeline(&busy, LINES_MAX, &TimeZone::UTC);
        for columns in [80, 120, 200] {
            for line in found.lines(columns, true, &TimeZone::UTC) {
                assert!(width(&line) <= columns, "{line}");
            }
        }
        assert_eq!(cells_of(999_999, 1_000_000, 40), 39);
        assert_eq!(
            (cells_of(0, 5, 4), cells_of(5, 5, 4), cells_of(1, 9, 1)),
            (0, 4, 0)
        );
    }

    #[test]
    fn for_programs() {
        let found = timeline(&minutes(&[(0, 2, 1), (3, 5, 0)]), 60, &TimeZone::UTC);
        assert_eq!(
            found.to_json().to_string(),
            r#"{"peak":{"at":"2026-11-22T14:03:00Z","changes":5,"removed":0},"spans":[{"at":"2026-11-22T14:00:00Z","changes":2,"removed":1},{"at":"2026-11-22T14:03:00Z","changes":5,"removed":0}],"step_s":60}"#
        );
    }

    #[test]
    fn which_signs_a_terminal_has() {
        let says = |set: &[(&str, &str)]| {
            speaks_utf8(|name| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| value.into())
            })
        };
        for (set, want) in [
            (&[("LANG", "en_GB.UTF-8")][..], true),
            (&[("LANG", "C.utf8")], true),
            (&[("LC_ALL", "C"), ("LANG", "en_GB.UTF-8")], false),
            (&[("LC_ALL", ""), ("LANG", "en_GB.UTF-8")], true),
            (&[], false),
        ] {
            assert_eq!(says(set), want, "{set:?}");
        }
    }
}
