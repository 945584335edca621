//! The `history` key of a tree: `true`, `false`, or a table with what is kept and how long.

use mirror_core::escape;
use mirror_core::history::retention::{Lock, Period};

use crate::engine::service::settings::{Node, Problems, Table, Value};
use crate::filter::Filter;
use crate::history::calendar;
use crate::history::settings::{self, KEEP_KEYS, KEYS, PATH_KEYS, PATHS_MAX, PathRule, Settings};

/// Whether history is kept, and how. What is wrong is among the problems.
pub fn read(node: Node, problems: &mut Problems) -> (bool, Settings) {
    let place = node.place.clone();
    match node.value {
        Value::Bool(on) => (on, Settings::default()),
        Value::Table(table) => read_table(table, problems),
        other => {
            let why = format!(
                "history: true, false or a table is wanted here, and this is {}",
                other.what()
            );
            problems.add(Some(&place), why);
            (true, Settings::default())
        }
    }
}

fn read_table(mut table: Table, problems: &mut Problems) -> (bool, Settings) {
    let mut out = Settings::default();
    let on = table.bool("on", problems).unwrap_or(true);
    let policy = &mut out.policy;
    // What is wrong names the key itself.
    let mut length = |table: &mut Table, key: &str, problems: &mut Problems| {
        let Some(node) = table.take(key) else { return };
        let Some(word) = node.word(problems) else {
            return;
        };
        if let Err(why) = policy.set(key, &word) {
            problems.add(Some(&node.place), why);
        }
    };
    length(&mut table, "every", problems);
    if let Some(mut keep) = table
        .take("keep")
        .and_then(|node| node.into_table(problems))
    {
        for period in Period::ALL {
            length(&mut keep, period.tier(), problems);
        }
        if let Some(zone) = keep.parsed("timezone", problems, |text| {
            calendar::named(text).map(|_| text.to_owned())
        }) {
            out.policy.timezone = zone;
        }
        keep.end(KEEP_KEYS, problems);
    }
    if let Some(lock) = table.parsed("lock", problems, Lock::parse) {
        out.lock = lock;
    }
    if let Some(budget) = table.parsed("budget", problems, settings::budget) {
        out.budget = budget;
    }
    out.reserve = table.parsed("reserve", problems, |text| {
        crate::cli::parse::size(text).map_err(|e| e.0)
    });
    if let Some(interval) = table.parsed("min_interval", problems, settings::interval) {
        out.min_interval_ns = interval;
    }
    let rules = table.take("path");
    let rules = rules.and_then(|node| node.list(problems).map(<[Node]>::to_vec));
    for node in rules.unwrap_or_default() {
        if out.paths.len() >= PATHS_MAX {
            let why = format!("path: {PATHS_MAX} rules at most");
            problems.add(Some(&node.place), why);
            break;
        }
        let rule = node.into_table(problems);
        out.paths
            .extend(rule.and_then(|table| read_rule(table, problems)));
    }
    table.end(KEYS, problems);
    (on, out)
}

fn read_rule(mut table: Table, problems: &mut Problems) -> Option<PathRule> {
    let place = table.place.clone();
    let texts = table.texts("match", problems).unwrap_or_default();
    let patterns: Vec<String> = texts.iter().map(|(_, text)| text.clone()).collect();
    if let Err(bad) = Filter::new(&patterns) {
        let at = texts.get(bad.line.saturating_sub(1));
        let why = format!(
            "match: {} is no pattern: {}",
            escape(bad.pattern.as_bytes()),
            bad.why
        );
        problems.add(Some(at.map_or(&place, |(place, _)| place)), why);
        return None;
    }
    let has_keep = table.has("keep");
    let keep = table.parsed("keep", problems, settings::keep);
    if patterns.is_empty() || !has_keep {
        let why =
            "a rule says which paths and what of them: { match = [\"cache/\"], keep = \"none\" }";
        problems.add(Some(&place), why);
    }
    table.end(PATH_KEYS, problems);
    Some(PathRule {
        patterns,
        keep: keep?,
    })
}
