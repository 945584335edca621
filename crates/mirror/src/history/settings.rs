//! What is kept of a tree's past, as somebody chose it. Read by `engine::service::history`, used by [`super::keep`] (what
//! gets into history at all) and [`super::prune`] (how long it stays).

use std::fmt::{self, Write};
use std::time::Duration;

use mirror_core::history::interval::{INTERVAL_NS, Keep};
use mirror_core::history::retention::{Budget, Lock, Policy};

use crate::cli::parse;

/// The keys of the table, and of what is in it.
pub const KEYS: &[&str] = &[
    "on",
    "every",
    "keep",
    "lock",
    "budget",
    "reserve",
    "min_interval",
    "path",
];
pub const KEEP_KEYS: &[&str] = &["hourly", "daily", "weekly", "monthly", "timezone"];
pub const PATH_KEYS: &[&str] = &["match", "keep"];
/// Rules about paths, of one tree.
pub const PATHS_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub policy: Policy,
    pub lock: Lock,
    /// Its `free_bytes_min` is [`Settings::reserve`], once the file system is known.
    pub budget: Budget,
    /// So much stays free on DST's file system. `None`: a hundredth of it, at most 1 GiB.
    pub reserve: Option<u64>,
    /// Of a file that is written all the time one version in so long is kept.
    pub min_interval_ns: u64,
    pub paths: Vec<PathRule>,
}

/// What is kept of the files at some paths. The first rule that matches decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRule {
    /// gitignore patterns.
    pub patterns: Vec<String>,
    pub keep: Keep,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            policy: Policy::default(),
            lock: Lock::Off,
            budget: Budget::default(),
            reserve: None,
            min_interval_ns: INTERVAL_NS,
            paths: Vec::new(),
        }
    }
}

impl Settings {
    /// The budget on a file system of so many bytes.
    pub fn budget_of(&self, total_bytes: u64) -> Budget {
        let usual = (total_bytes / 100).min(1 << 30);
        Budget {
            free_bytes_min: self.reserve.unwrap_or(usual),
            ..self.budget
        }
    }

    /// The value of a `history` key: what is not as usual. `None`: all is.
    pub fn to_toml(&self, on: bool) -> Option<String> {
        let usual = Settings::default();
        if *self == usual {
            return (!on).then(|| "false".into());
        }
        let text = |s: &str| toml::Value::String(s.to_owned()).to_string();
        let mut parts: Vec<String> = Vec::new();
        let mut put = |key: &str, value: String| parts.push(format!("{key} = {value}"));
        if !on {
            put("on", "false".into());
        }
        let mut keep = Vec::new();
        let pairs = self.policy.settings().into_iter();
        for ((key, value), (_, was)) in pairs.zip(usual.policy.settings()) {
            match key {
                _ if value == was => {}
                "every" => put(key, text(&value)),
                _ => keep.push(format!("{key} = {}", text(&value))),
            }
        }
        if self.policy.timezone != usual.policy.timezone {
            keep.push(format!("timezone = {}", text(&self.policy.timezone)));
        }
        if !keep.is_empty() {
            put("keep", format!("{{ {} }}", keep.join(", ")));
        }
        if self.lock != usual.lock {
            put("lock", text(self.lock.name()));
        }
        if self.budget != usual.budget {
            put("budget", text(&budget_text(&self.budget)));
        }
        if let Some(reserve) = self.reserve {
            put("reserve", text(&reserve.to_string()));
        }
        if self.min_interval_ns != usual.min_interval_ns {
            put("min_interval", text(&interval_text(self.min_interval_ns)));
        }
        if !self.paths.is_empty() {
            let rules: Vec<String> = self.paths.iter().map(PathRule::to_toml).collect();
            put("path", format!("[{}]", rules.join(", ")));
        }
        Some(format!("{{ {} }}", parts.join(", ")))
    }
}

impl PathRule {
    fn to_toml(&self) -> String {
        let text = |s: &str| toml::Value::String(s.to_owned()).to_string();
        let patterns: Vec<String> = self.patterns.iter().map(|p| text(p)).collect();
        let keep = match self.keep {
            Keep::All => "all".into(),
            Keep::None => "none".into(),
            Keep::Interval(ns) => interval_text(ns),
        };
        let mut out = String::new();
        let _ = write!(
            out,
            "{{ match = [{}], keep = {} }}",
            patterns.join(", "),
            text(&keep)
        );
        out
    }
}

fn interval_text(ns: u64) -> String {
    parse::show_duration(Duration::from_nanos(ns))
}

fn budget_text(budget: &Budget) -> String {
    match budget.bytes_max {
        Some(bytes) => bytes.to_string(),
        None => format!("{}%", budget.percent_max),
    }
}

/// `20%`, or a size.
pub fn budget(text: &str) -> Result<Budget, String> {
    let usual = Budget::default();
    if let Some(percent) = text.trim().strip_suffix('%') {
        return match percent.trim().parse::<u8>() {
            Ok(percent_max @ 1..=100) => Ok(Budget {
                percent_max,
                ..usual
            }),
            _ => Err("a share of the file system is 1% to 100%".into()),
        };
    }
    match parse::size(text).map_err(|e| e.0)? {
        0 => Err("no room at all is `history = false`".into()),
        bytes => Ok(Budget {
            bytes_max: Some(bytes),
            ..usual
        }),
    }
}

/// `none`, `all`, or how much time there is between two versions.
pub fn keep(text: &str) -> Result<Keep, String> {
    match text {
        "none" => Ok(Keep::None),
        "all" => Ok(Keep::All),
        text => match interval(text) {
            Ok(ns) => Ok(Keep::Interval(ns)),
            Err(why) => Err(format!("none, all, or a time such as 30s: {why}")),
        },
    }
}

pub fn interval(text: &str) -> Result<u64, String> {
    let time = parse::duration(text).map_err(|e| e.0)?;
    u64::try_from(time.as_nanos()).map_err(|_| "that is too long".into())
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_toml(true).unwrap_or_else(|| "true".into()))
    }
}
