//! What was understood, as a configuration of `fs_mirror serve` with words beside it, and as JSON.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use mirror_core::{escape, is_tricky};
use serde_json::{Value, json};

use super::notes::{Note, Notes};
use super::retention::Retention;
use crate::engine::options::Owners;
use crate::engine::service::backup::config::Tree;
use crate::engine::session::show;

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Rsnapshot,
    Lsyncd,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Rsnapshot => "rsnapshot",
            Kind::Lsyncd => "lsyncd",
        }
    }
}

#[derive(Debug)]
pub struct Import {
    pub kind: Kind,
    /// What to know first.
    pub head: Vec<String>,
    pub trees: Vec<Planned>,
    pub retention: Option<Retention>,
    pub notes: Notes,
}

const OWNERS: &str = "\
# owners = \"apply\", as rsync -a does: set-id bits and devices are real in such a copy, so keep it where no local user gets in.\n";
const MOUNTS: &str = "\
# What is mounted below a source was copied with it (no -x, one_fs). Here each is named where the source is followed:\n\
# cross = [\"DIR\", ...]; `fs_mirror status` lists those that are left out.\n";

/// A tree that is to be followed.
#[derive(Debug)]
pub struct Planned {
    pub tree: Tree,
    pub comments: Vec<String>,
    /// Which host keeps the copy; `None`: this one.
    pub host: Option<String>,
    /// What the source's host offers for it, when that is another one.
    pub offered: Option<Offered>,
    /// What is mounted below the source was a part of it.
    pub enters_mounts: bool,
    /// Why it must not begin by itself.
    pub off: Option<String>,
}

/// A tree of `mirrord serve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// The host that has it.
    pub host: String,
    pub name: String,
    pub path: PathBuf,
    pub ignore: Vec<String>,
}

impl Offered {
    fn to_toml(&self) -> String {
        let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let mut out = format!(
            "[tree.{}]\npath = {}\n",
            text(&self.name),
            text(&escape(self.path.as_os_str().as_encoded_bytes()))
        );
        if !self.ignore.is_empty() {
            let lines: Vec<String> = self.ignore.iter().map(|line| text(line)).collect();
            let _ = writeln!(out, "ignore = [{}]", lines.join(", "));
        }
        out
    }
}

impl Import {
    pub fn to_toml(&self, file: &Path) -> String {
        let mut out = String::new();
        let any = |of: &dyn Fn(&Planned) -> bool| self.trees.iter().any(of);
        comment(
            &mut out,
            &format!(
                "From {}, by `fs_mirror import`. For /etc/fs_mirror/fs_mirror.toml{}; then `fs_mirror config check`.",
                show(file),
                match self.hosts().first() {
                    Some(Some(host)) => format!(" of {}", escape(host.as_bytes())),
                    _ => String::new(),
                }
            ),
        );
        for line in &self.head {
            comment(&mut out, line);
        }
        if any(&|planned| planned.tree.owners == Owners::Apply) {
            out.push_str(OWNERS);
        }
        if any(&|planned| planned.enters_mounts) {
            out.push_str(MOUNTS);
        }
        self.offered(&mut out);
        if let Some(retention) = &self.retention {
            out.push('\n');
            out.push_str(&plain(&retention.to_toml()));
        }
        for (n, host) in self.hosts().iter().enumerate() {
            if n > 0 {
                let name = match host {
                    Some(host) => escape(host.as_bytes()),
                    None => "this host".into(),
                };
                out.push('\n');
                comment(
                    &mut out,
                    &format!(
                        "==== For the fs_mirror.toml of {name}, without the first # of each line:"
                    ),
                );
            }
            for planned in self.trees.iter().filter(|tree| tree.host == *host) {
                out.push('\n');
                planned.to_toml(&mut out, n > 0);
            }
        }
        self.rest(&mut out);
        out
    }

    /// Which hosts keep copies, the first of which the configuration is for.
    fn hosts(&self) -> Vec<Option<String>> {
        let mut hosts = Vec::new();
        for tree in &self.trees {
            if !hosts.contains(&tree.host) {
                hosts.push(tree.host.clone());
            }
        }
        hosts
    }

    /// What the hosts of the sources need.
    fn offered(&self, out: &mut String) {
        let mut told: Vec<&Offered> = Vec::new();
        for offered in self.trees.iter().filter_map(|tree| tree.offered.as_ref()) {
            if told.contains(&offered) {
                continue;
            }
            if told.is_empty() {
                let host = escape(offered.host.as_bytes());
                out.push('\n');
                comment(
                    out,
                    &format!(
                        "==== For /etc/mirrord/mirrord.toml of {host}, the host of the source, without the first # of each line:"
                    ),
                );
                out.push_str("#listen = \"0.0.0.0:8737\"\n");
            }
            out.push_str("#\n");
            off(out, &offered.to_toml());
            told.push(offered);
        }
    }

    /// What has to be thought about, and what has not.
    fn rest(&self, out: &mut String) {
        let Notes {
            open,
            needless,
            more,
        } = &self.notes;
        if !open.is_empty() {
            out.push('\n');
            comment(out, "==== Not understood, or without a counterpart here:");
            for note in open {
                comment(out, &format!("{}: {note}", note.at));
            }
        }
        if *more > 0 {
            comment(out, &format!("... and {more} more"));
        }
        if !needless.is_empty() {
            out.push('\n');
            comment(out, "==== Understood, and not needed here:");
            for note in needless {
                comment(out, &format!("{}: {note}", note.at));
            }
        }
    }

    pub fn to_json(&self, file: &Path) -> Value {
        let note = |note: &Note| {
            json!({
                "file": show(note.at.file.as_ref().map_or(file, |file| file.as_path())),
                "line": (note.at.line > 0).then_some(note.at.line),
                "text": note.text,
                "why": note.why,
                "instead": (!note.instead.is_empty()).then_some(&note.instead),
            })
        };
        let tree = |planned: &Planned| {
            json!({
                "name": planned.tree.name,
                "source": escape(planned.tree.source.as_encoded_bytes()),
                "dst": show(&planned.tree.dst),
                "host": planned.host,
                "toml": planned.tree.to_string(),
                "mirrord_toml": planned.offered.as_ref().map(Offered::to_toml),
                "off": planned.off,
            })
        };
        let retention = self.retention.as_ref().map(|retention| {
            let counts = retention
                .counts()
                .map(|(name, n)| (name.to_owned(), n.into()));
            Value::Object(counts.collect())
        });
        json!({
            "from": self.kind.name(),
            "file": show(file),
            "toml": self.to_toml(file),
            "trees": self.trees.iter().map(tree).collect::<Vec<_>>(),
            "retention": retention,
            "not_understood": self.notes.open.iter().map(note).collect::<Vec<_>>(),
            "not_understood_more": self.notes.more,
            "not_needed": self.notes.needless.iter().map(note).collect::<Vec<_>>(),
        })
    }
}

impl Planned {
    fn to_toml(&self, out: &mut String, elsewhere: bool) {
        for line in &self.comments {
            comment(out, line);
        }
        if let Some(why) = &self.off {
            comment(out, &format!("Off: {why}"));
        }
        let text = self.tree.to_string();
        match elsewhere || self.off.is_some() {
            true => off(out, &text),
            false => out.push_str(&text),
        }
    }
}

/// A line of words.
fn comment(out: &mut String, line: &str) {
    let _ = writeln!(out, "# {}", plain(line));
}

/// Settings that only a person puts in force.
fn off(out: &mut String, text: &str) {
    for line in text.lines() {
        let _ = writeln!(out, "#{line}");
    }
}

/// What was quoted is escaped already; this holds for whatever was not.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if is_tricky(c) && c != '\n' { '?' } else { c })
        .collect()
}
