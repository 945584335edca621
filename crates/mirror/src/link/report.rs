//! What a worker tells of itself besides records, as JSON inside a message. Fields are only ever added.

use serde::{Deserialize, Serialize};

use super::frame::BODY_BYTES_MAX;
use crate::engine::status::{Counters, DetectorStatus, Failed, Hold, LastChange, PathText};

/// Listed paths in a report; the totals count them all.
pub const LISTED_MAX: usize = 200;

/// How capture is doing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub detector: Option<DetectorStatus>,
    pub not_mirrored: Vec<PathText>,
    /// A look at everything goes on.
    pub scan: Option<ScanReport>,
    /// Looks at everything that ended since capture began.
    pub scans: u64,
    pub hold: Option<Hold>,
    /// What a hold's release lets go, if that is known.
    pub held_gone: u64,
    pub paused: bool,
    pub failed: Vec<Failed>,
    pub failed_total: u64,
    pub fuzzy: Vec<PathText>,
    pub fuzzy_total: u64,
    pub counters: Counters,
    pub entries: u64,
    pub files: u64,
    pub bytes: u64,
    pub last_change: Option<LastChange>,
    /// Bytes of long files read since capture began: something goes on, though nothing else is to be told yet.
    pub read_bytes: u64,
    /// Since when, by the worker's clock, a large file waits to be read. `None`: none does.
    pub behind_since_ns: Option<u64>,
    /// Things worth a line, the newest last; `notices_total` counts all there ever were.
    pub notices: Vec<String>,
    pub notices_total: u64,
    /// From a mirror that is followed itself: nothing comes to it from the primary now.
    pub cut: Option<Cut>,
    /// Bytes a second: no more is sent, and that is what holds the sending back now.
    pub held_to: Option<u64>,
}

/// Since when nothing comes, by the primary's clock, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cut {
    pub since_ns: u64,
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScanReport {
    pub entries: u64,
    pub bytes: u64,
    pub read_files: u64,
    pub read_bytes: u64,
}

/// What a barrier does not cover.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BarrierReport {
    pub failed: Vec<Failed>,
    pub failed_total: u64,
    pub fuzzy: Vec<PathText>,
    pub fuzzy_total: u64,
    /// No barrier can be had, for this reason.
    pub error: Option<String>,
}

/// As JSON that fits into a message: the lists are cut until it does.
pub trait Fit: Serialize + Clone {
    fn cut(&mut self, max: usize);

    fn fit(&self) -> String {
        let mut report = self.clone();
        let mut max = LISTED_MAX;
        loop {
            report.cut(max);
            let text = serde_json::to_string(&report).unwrap_or_default();
            if text.len() <= BODY_BYTES_MAX / 2 || max == 0 {
                return text;
            }
            max /= 2;
        }
    }
}

impl Fit for Report {
    fn cut(&mut self, max: usize) {
        self.not_mirrored.truncate(max);
        self.failed.truncate(max);
        self.fuzzy.truncate(max);
        let first = self.notices.len().saturating_sub(max);
        self.notices.drain(..first);
    }
}

impl Fit for BarrierReport {
    fn cut(&mut self, max: usize) {
        self.failed.truncate(max);
        self.fuzzy.truncate(max);
    }
}

/// Characters of one text that a peer wrote for people.
const TEXT_CHARS_MAX: usize = 1000;

/// What a peer wrote for people, as one line that is not too long and holds nothing that a terminal would obey.
pub fn line(text: &str) -> String {
    let mut line: String = text.chars().take(TEXT_CHARS_MAX).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line.replace(mirror_core::is_tricky, "\u{fffd}")
}

/// What a peer sent, with nothing in its texts that a terminal would obey.
pub fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, serde_json::Error> {
    let mut value: serde_json::Value = serde_json::from_str(json)?;
    clean(&mut value);
    serde_json::from_value(value)
}

fn clean(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) if text.chars().any(mirror_core::is_tricky) => {
            *text = text.replace(mirror_core::is_tricky, "\u{fffd}");
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(clean),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(clean),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_comes_through() {
        let json = "{\"notices\":[\"a\\u001b[2Jb\\u202ec\\n\"]}";
        let report: Report = parse(json).unwrap();
        assert_eq!(report.notices, ["a\u{fffd}[2Jb\u{fffd}c\u{fffd}"]);
        assert_eq!(line("\u{9b}x"), "\u{fffd}x");
        let long = line(&"y".repeat(1 << 20));
        assert_eq!(long.chars().count(), TEXT_CHARS_MAX + 1);
    }
}
