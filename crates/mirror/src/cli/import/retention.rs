//! How long rsnapshot kept what, as our history and rotation say it.

use std::fmt::Write;

use super::notes::{At, Notes};
use crate::history::settings::Settings;

/// Whether this version reads `[publish]`. Until then it is printed as a comment.
const PUBLISH_IS_READ: bool = false;

/// What becomes of rsnapshot.
pub const AND_THEN: &str = match PUBLISH_IS_READ {
    true => "take rsnapshot's lines out of the crontab",
    false => "let rsnapshot's backup lines name the copies instead of the sources",
};

/// What we rotate, in steps of hours, days, weeks and months.
const LEVELS: [&str; 4] = ["hourly", "daily", "weekly", "monthly"];
/// Likewise, as durations are written; kept at least so long.
const UNITS: [(&str, u32); 4] = [("h", 24), ("d", 7), ("w", 4), ("m", 3)];

/// One `retain` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    pub name: String,
    pub count: u32,
    pub at: At,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// Of [`LEVELS`].
    counts: [Option<u32>; 4],
    comments: Vec<String>,
}

impl Retention {
    /// By their names where those say it, else by their order, from the most frequent on. `None`: nothing was kept.
    pub fn of(levels: &[Level], notes: &mut Notes) -> Option<Retention> {
        let mut out = Retention::default();
        let mut next = 0;
        let mut by_order = false;
        for level in levels {
            let line = format!("retain {} {}", level.name, level.count);
            let known = LEVELS.iter().position(|name| *name == level.name);
            let yearly = ["yearly", "annual", "annually"].contains(&level.name.as_str());
            let at = match known {
                Some(at) => at,
                None if yearly => 3,
                None => next,
            };
            if at >= LEVELS.len() || (known.is_none() && !yearly && out.counts[at].is_some()) {
                notes.open(
                    &level.at,
                    line.as_bytes(),
                    "there are four steps: hourly, daily, weekly, monthly",
                    "a longer time for the monthly ones",
                );
                continue;
            }
            next = at + 1;
            let count = match yearly {
                true => level.count.saturating_mul(12),
                false => level.count,
            };
            if yearly {
                notes.open(
                    &level.at,
                    line.as_bytes(),
                    "there are four steps: hourly, daily, weekly, monthly",
                    format!("so many monthly ones as that is ({count})"),
                );
            }
            let slot = &mut out.counts[at];
            *slot = Some(slot.unwrap_or(0).max(count));
            by_order |= known.is_none() && !yearly;
            out.comments
                .push(format!("{}: {line} -> {}", level.at, LEVELS[at]));
        }
        if by_order {
            out.comments.push(
                "The names say nothing about the time between two of them, so their order was taken: hourly, daily, weekly, \
                 monthly. Compare with the crontab."
                    .into(),
            );
        }
        (!levels.is_empty()).then_some(out)
    }

    /// What history keeps.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        for (level, count) in self.counts() {
            let unit = LEVELS.iter().position(|name| *name == level);
            let Some((unit, least)) = unit.and_then(|at| UNITS.get(at)) else {
                continue;
            };
            // rsnapshot may keep longer than we can: then as long as we do anyway.
            let _ = settings
                .policy
                .set(level, &format!("{}{unit}", count.max(*least)));
        }
        settings
    }

    /// What was understood, and the table of the trees that are published.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for line in &self.comments {
            let _ = writeln!(out, "# {line}");
        }
        let trees: Vec<String> = self
            .counts()
            .map(|(name, count)| format!("{name} = {count}"))
            .collect();
        let tables = format!(
            "[publish]\ntrees = {{ {} }}\nnames = \"numbered\"\n",
            trees.join(", ")
        );
        if PUBLISH_IS_READ {
            out.push_str(&tables);
        } else {
            out.push_str(
                "# How long history keeps what stands with each tree (history). Snapshots as plain trees stay rsnapshot's work\n\
                 # until a version of ours publishes them. Then:\n",
            );
            for line in tables.lines() {
                let _ = writeln!(out, "{}", format!("#{line}").trim_end());
            }
        }
        out
    }

    /// As JSON has it.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u32)> {
        LEVELS
            .into_iter()
            .zip(self.counts)
            .filter_map(|(name, count)| Some((name, count?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_or_by_order() {
        let table: &[(&[(&str, u32)], &[(&str, u32)], usize)] = &[
            (
                &[("alpha", 6), ("beta", 7), ("gamma", 4), ("delta", 3)],
                &[("hourly", 6), ("daily", 7), ("weekly", 4), ("monthly", 3)],
                0,
            ),
            (
                &[("daily", 7), ("weekly", 4), ("monthly", 12)],
                &[("daily", 7), ("weekly", 4), ("monthly", 12)],
                0,
            ),
            (
                &[("nightly", 7), ("weekly", 4)],
                &[("hourly", 7), ("weekly", 4)],
                0,
            ),
            (&[("monthly", 6), ("yearly", 3)], &[("monthly", 36)], 1),
            (
                &[("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)],
                &[("hourly", 1), ("daily", 2), ("weekly", 3), ("monthly", 4)],
                1,
            ),
            (&[], &[], 0),
        ];
        for (levels, want, open) in table {
            let levels: Vec<Level> = levels
                .iter()
                .map(|(name, count)| Level {
                    name: name.to_string(),
                    count: *count,
                    at: At::line(3),
                })
                .collect();
            let mut notes = Notes::default();
            let got = Retention::of(&levels, &mut notes);
            let counts: Vec<_> = got.iter().flat_map(Retention::counts).collect();
            assert_eq!(counts, *want);
            assert_eq!(notes.open.len(), *open, "{want:?}");
            assert_eq!(got.is_none(), levels.is_empty());
        }
    }

    #[test]
    fn what_is_kept_and_what_is_published() {
        let level = |name: &str, count| Level {
            name: name.into(),
            count,
            at: At::line(3),
        };
        let levels = [level("alpha", 6), level("daily", 10)];
        let text = Retention::of(&levels, &mut Notes::default())
            .unwrap()
            .to_toml();
        assert!(text.contains("line 3: retain alpha 6 -> hourly"), "{text}");
        let bare: Vec<&str> = text
            .lines()
            .map(|line| line.strip_prefix('#').unwrap_or(line))
            .filter(|line| !line.starts_with(' '))
            .collect();
        let table: toml::Table = bare.join("\n").parse().unwrap();
        let settings = Retention::of(&levels, &mut Notes::default())
            .unwrap()
            .settings();
        assert_eq!(
            settings.to_string(),
            "{ keep = { hourly = \"1d\", daily = \"10d\" } }"
        );
        assert_eq!(table["publish"]["trees"]["hourly"].as_integer(), Some(6));
        assert_eq!(table["publish"]["names"].as_str(), Some("numbered"));
    }
}
