//! `publish` in a mirror's settings: which plain trees of the past are made, where, and what they are called.
//!
//! ```toml
//! publish = { trees = { hourly = 24, daily = 7, weekly = 4, monthly = 12 }, names = "dated", dir = "/backup/snapshots" }
//! ```
//!
//! Off unless it is there. Without `trees` the usual numbers hold; with it, kinds that are not named are not made.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mirror_core::escape;

use crate::cli::parse;
use crate::engine::service::settings::{self, Node, Problems, Value};

const KEYS: &[&str] = &["kind", "trees", "names", "dir"];
/// Of one kind.
const TREES_MAX: u32 = 1000;

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Every {
    Hour,
    Day,
    Week,
    Month,
}

impl Every {
    pub const ALL: [Every; 4] = [Every::Hour, Every::Day, Every::Week, Every::Month];

    pub fn word(self) -> &'static str {
        match self {
            Every::Hour => "hourly",
            Every::Day => "daily",
            Every::Week => "weekly",
            Every::Month => "monthly",
        }
    }
    pub fn parse(word: &str) -> Option<Every> {
        Every::ALL.into_iter().find(|every| every.word() == word)
    }
    /// Of this kind, where nobody says how many.
    fn usual(self) -> u32 {
        match self {
            Every::Hour => 24,
            Every::Day => 7,
            Every::Week => 4,
            Every::Month => 12,
        }
    }
}

/// What trees are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// `hourly.20261122T1400Z`
    #[default]
    Dated,
    /// `hourly.0` is the newest, as rsnapshot has it.
    Numbered,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishSettings {
    /// How many of each kind, in the order of [`Every::ALL`].
    trees: [u32; 4],
    pub names: Names,
    /// `None`: in the state directory.
    pub dir: Option<PathBuf>,
}

impl Default for PublishSettings {
    fn default() -> PublishSettings {
        PublishSettings {
            trees: Every::ALL.map(Every::usual),
            names: Names::Dated,
            dir: None,
        }
    }
}

impl PublishSettings {
    pub fn count(&self, every: Every) -> usize {
        let trees = Every::ALL.into_iter().zip(self.trees);
        let mut of = trees.filter(|(kind, _)| *kind == every);
        of.next().map_or(0, |(_, count)| count as usize)
    }

    /// `"off"`, or a table. `None`: off, or wrong; then the problems say why.
    pub fn read(node: Node, problems: &mut Problems) -> Option<PublishSettings> {
        if matches!(&node.value, Value::Text(text) if text == "off") {
            return None;
        }
        let mut table = node.into_table(problems)?;
        let mut settings = PublishSettings::default();
        table.parsed("kind", problems, |text| match text {
            // Links, with reflinks where one can't be.
            "auto" | "links" => Ok(()),
            _ => Err("auto or links".into()),
        });
        if let Some(node) = table.take("trees")
            && let Some(mut inner) = node.into_table(problems)
        {
            settings.trees = Every::ALL.map(|every| {
                let count = inner.integer(every.word(), 0..=TREES_MAX, problems);
                count.unwrap_or(0)
            });
            inner.end(&Every::ALL.map(Every::word), problems);
        }
        if let Some(names) = table.parsed("names", problems, |text| match text {
            "dated" => Ok(Names::Dated),
            "numbered" => Ok(Names::Numbered),
            _ => Err("dated or numbered".into()),
        }) {
            settings.names = names;
        }
        settings.dir = table.parsed("dir", problems, |text| {
            let path = PathBuf::from(parse::unescape(text).map_err(|e| e.0)?);
            match path.is_absolute() {
                true => Ok(path.components().collect()),
                false => Err(format!("{} does not begin with /", escape(text.as_bytes()))),
            }
        });
        table.end(KEYS, problems);
        Some(settings)
    }

    /// From the value of `publish` in a `config.toml`.
    pub fn from_toml(value: &toml::Value) -> Result<Option<PublishSettings>, String> {
        let mut problems = Problems::default();
        let file = Arc::new(PathBuf::from("publish"));
        let table = settings::parse(file, &format!("publish = {value}\n"), &mut problems);
        let read = table
            .and_then(|mut table| table.take("publish"))
            .and_then(|node| PublishSettings::read(node, &mut problems));
        match problems.sorted().into_iter().next() {
            Some(problem) => Err(problem.why),
            None => Ok(read),
        }
    }

    /// As [`PublishSettings::read`] wants it, for both files.
    pub fn to_toml(of: Option<&PublishSettings>) -> String {
        of.map_or_else(|| "\"off\"".to_owned(), PublishSettings::to_string)
    }

    /// Whether trees can be made there for a mirror with this state directory. `Err`: what is wrong, in a line.
    pub fn check(&self, dst: &Path, state_dir: &Path) -> Result<(), String> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let shown = escape(dir.as_os_str().as_bytes());
        let found = std::fs::metadata(dir)
            .map_err(|e| format!("publish.dir {shown} can't be used: {e}"))?;
        if !found.is_dir() {
            return Err(format!("publish.dir {shown} is no directory"));
        }
        let real = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());
        for (top, what) in [(dst, "the copy"), (state_dir, "its state")] {
            let top = std::fs::canonicalize(top).unwrap_or_else(|_| top.into());
            if real.starts_with(&top) {
                return Err(format!(
                    "publish.dir {shown} is inside {what}, which holds nothing else: name a directory beside it"
                ));
            }
        }
        let ours = std::fs::metadata(state_dir)
            .map_err(|e| format!("cannot look at {}: {e}", state_dir.display()))?;
        if ours.dev() != found.dev() {
            return Err(format!(
                "publish.dir {shown} is on another file system than the copy: hard links can't reach there"
            ));
        }
        Ok(())
    }
}

impl fmt::Display for PublishSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trees: Vec<String> = Every::ALL
            .into_iter()
            .map(|every| format!("{} = {}", every.word(), self.count(every)))
            .collect();
        let names = match self.names {
            Names::Dated => "dated",
            Names::Numbered => "numbered",
        };
        write!(
            f,
            "{{ trees = {{ {} }}, names = \"{names}\"",
            trees.join(", ")
        )?;
        if let Some(dir) = &self.dir {
            let dir = toml::Value::String(escape(dir.as_os_str().as_bytes()));
            write!(f, ", dir = {dir}")?;
        }
        write!(f, " }}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<PublishSettings>, String> {
        let table: toml::Table = text.parse().unwrap();
        PublishSettings::from_toml(table.get("publish").unwrap())
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "publish = {}",
            "publish = { trees = { hourly = 6 }, names = \"numbered\", dir = \"/b/x\\\\x0ay\" }",
            "[publish]\nkind = \"auto\"\ntrees = { hourly = 24, daily = 7 }",
        ] {
            let settings = read(text).unwrap().unwrap();
            let again = format!("publish = {}", PublishSettings::to_toml(Some(&settings)));
            assert_eq!(read(&again).unwrap(), Some(settings), "{again}");
        }
        assert_eq!(read("publish = \"off\"").unwrap(), None);
        let usual = read("publish = {}").unwrap().unwrap();
        assert_eq!(Every::ALL.map(|every| usual.count(every)), [24, 7, 4, 12]);
        let some = read("publish = { trees = { daily = 3 } }")
            .unwrap()
            .unwrap();
        assert_eq!(Every::ALL.map(|every| some.count(every)), [0, 3, 0, 0]);
    }

    #[test]
    fn every_mistake_is_told() {
        for (text, why) in [
            ("publish = true", "a table is wanted here"),
            ("publish = { tress = {} }", "tress"),
            (
                "publish = { trees = { hourly = -1 } }",
                "hourly is a number from 0 to 1000",
            ),
            ("publish = { trees = { yearly = 1 } }", "yearly"),
            ("publish = { names = \"odd\" }", "dated or numbered"),
            ("publish = { dir = \"rel\" }", "does not begin with /"),
            ("publish = { kind = \"zfs\" }", "auto or links"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
