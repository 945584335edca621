//! What a simple lsyncd.conf says: `settings{...}` and `sync{...}` of the three layers that lsyncd brings along.
//!
//! lsyncd runs where the source is, and pushes. Here the host that keeps the copy follows: so one part of what a `sync` says
//! goes to the source's host, to `mirrord serve`, and the other to the target's, to `fs_mirror serve`.

mod plan;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use mirror_core::escape;

use super::emit::{Import, Kind, Offered, Planned};
use super::lua::{self, Statement, Table};
use super::notes::{At, Notes};
use super::rsync_args::Args;
use super::{Names, ReadFile};
use crate::cli::parse;
use crate::engine::service::backup::config::TREES_MAX;
use values::{Entry, Value, Values};

/// Of a hostile file: what is left out, times the trees.
const RULES_AND_TREES_MAX: usize = 100_000;

/// Settings for which nothing needs to be said here, and why.
const SETTINGS: &[(&str, &str)] = &[
    ("logfile", "under systemd the journal has it"),
    ("logfacility", "under systemd the journal has it"),
    ("logident", "under systemd the journal has it"),
    ("log", "under systemd the journal has it"),
    ("pidfile", "systemd knows the process"),
    ("nodaemon", "systemd runs it in the foreground"),
    (
        "onepass",
        "`fs_mirror mirror --once` returns when all is copied",
    ),
    (
        "statusFile",
        "`mirrord status` and `fs_mirror status` tell it",
    ),
    (
        "statusInterval",
        "`mirrord status` and `fs_mirror status` tell it",
    ),
    (
        "statusIntervall",
        "`mirrord status` and `fs_mirror status` tell it",
    ),
    (
        "insist",
        "a target that can't be reached is tried again, always",
    ),
    (
        "inotifyMode",
        "files are looked at when they are closed, and while they are written",
    ),
    ("maxProcesses", "each tree has one process"),
    ("maxDelays", "changes come at once"),
    ("delay", "changes come at once"),
];

/// Likewise, of a sync.
const NEEDLESS: &[(&str, &str)] = &[
    (
        "delay",
        "changes come at once; what is being written waits until it rests",
    ),
    ("maxDelays", "changes come at once"),
    ("maxProcesses", "each tree has one process"),
    (
        "batchSizeLimit",
        "small files travel together, large ones beside them",
    ),
    ("init", "a start compares by what stat tells"),
    (
        "crontab",
        "what no event told is found by itself: a start scans, and verify_every looks at the copy",
    ),
    ("exitcodes", "a broken link is tried again, always"),
    ("rsyncExitCodes", "a broken link is tried again, always"),
    ("sshExitCodes", "a broken link is tried again, always"),
    (
        "ssh",
        "the target's host dials, over TLS, with keys that `pair` makes known",
    ),
    ("xargs", "no command is run at the target"),
    (
        "inotifyMode",
        "files are looked at when they are closed, and while they are written",
    ),
];

/// What a sync calls when something changed.
const ACTIONS: &[&str] = &[
    "action",
    "collect",
    "prepare",
    "onAttrib",
    "onCreate",
    "onModify",
    "onDelete",
    "onMove",
    "onStartup",
    "postcmd",
    "checkgauge",
];

/// Is it such a file?
pub fn looks_like(text: &[u8]) -> bool {
    lua::mentions(text, &["sync", "settings"])
}

struct Reader<'a> {
    open: &'a mut ReadFile<'a>,
    notes: Notes,
    /// What the source's host is called by others.
    this_host: String,
    values: Values,
    rules: usize,
    /// Some sync stands in it.
    any: bool,
    trees: Vec<Planned>,
    /// Names on each host.
    names: BTreeMap<Option<String>, Names>,
    offered: Vec<Offered>,
    offered_names: Names,
}

pub fn read<'a>(text: &[u8], this_host: &str, open: &'a mut ReadFile<'a>) -> Import {
    let statements = lua::parse(text);
    let mut reader = Reader {
        open,
        notes: Notes::default(),
        this_host: this_host.to_owned(),
        values: Values::new(&statements),
        rules: 0,
        any: false,
        trees: Vec::new(),
        names: BTreeMap::new(),
        offered: Vec::new(),
        offered_names: Names::default(),
    };
    if parse::source(&OsString::from(format!("mirror://{this_host}/x"))).is_err() {
        reader.this_host = "SOURCE-HOST".into();
    }
    for statement in statements {
        reader.statement(statement);
    }
    reader.end()
}

impl Reader<'_> {
    fn statement(&mut self, statement: Statement) {
        match statement {
            Statement::Call { line, name, table } => match name.join(".").as_str() {
                "sync" => self.sync(line, &table),
                "settings" => {
                    let entries = self.values.entries(&table, 0);
                    self.settings(entries);
                }
                other => self.notes.open(
                    &At::line(line),
                    format!("{other}{{...}}").as_bytes(),
                    "a call of a function",
                    "only settings{...} and sync{...} are read",
                ),
            },
            Statement::Set { line, name, value } => {
                let value = self.values.value(&value, 0);
                match (name.as_slice(), value) {
                    ([name], Value::Table(entries)) if name == "settings" => self.settings(entries),
                    ([first, key], value) if first == "settings" => self.settings(vec![Entry {
                        line,
                        key: Some(key.clone()),
                        value,
                    }]),
                    ([name], value) => self.values.set(name, value),
                    (name, _) => self.notes.open(
                        &At::line(line),
                        name.join(".").as_bytes(),
                        "a part of a table is set",
                        "the whole table in one piece",
                    ),
                }
            }
            Statement::Other {
                line, what, calls, ..
            } => {
                let syncs = calls.iter().filter(|name| *name == "sync").count();
                self.any |= syncs > 0;
                let text = match syncs {
                    0 => what.to_owned(),
                    _ => format!("{what} with sync{{...}} in it"),
                };
                let instead = match syncs {
                    0 => "only settings{...}, sync{...} and names for values are read",
                    _ => "write out each sync{...} by itself, and import again",
                };
                self.notes.open(
                    &At::line(line),
                    text.as_bytes(),
                    "Lua beyond plain values is not run",
                    instead,
                );
            }
        }
    }

    fn settings(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            let at = At::line(entry.line);
            let key = entry.key.unwrap_or_default();
            match SETTINGS.iter().find(|(name, _)| *name == key) {
                Some((_, why)) => {
                    let text = format!("settings {key}");
                    self.notes.needless(&at, text.as_bytes(), *why);
                }
                None => self.notes.open(
                    &at,
                    format!("settings {key}").as_bytes(),
                    "not known as a setting of lsyncd",
                    "what may be set is in docs/BACKUP.md",
                ),
            }
        }
    }

    fn sync(&mut self, line: usize, table: &Table) {
        self.any = true;
        let at = At::line(line);
        if self.trees.len() >= TREES_MAX || self.rules > RULES_AND_TREES_MAX {
            let why = format!(
                "one service follows {TREES_MAX} trees at most, with {RULES_AND_TREES_MAX} ignore lines"
            );
            return self.notes.open(&at, b"sync", why, "a second backup host");
        }
        let entries = self.values.entries(table, 0);
        let layer = entries.iter().find(|entry| entry.key.is_none());
        let layer = match layer.map(|entry| &entry.value) {
            Some(Value::Name(name)) => name.join("."),
            Some(Value::Other(what)) => {
                return self
                    .notes
                    .open(&at, b"sync", *what, "only plain values are read");
            }
            _ => String::new(),
        };
        if !["default.rsync", "default.rsyncssh", "default.direct"].contains(&layer.as_str()) {
            let what = if layer.is_empty() {
                "a layer of its own"
            } else {
                &layer
            };
            return self.notes.open(
                &at,
                format!("sync of {what}").as_bytes(),
                "only default.rsync, default.rsyncssh and default.direct copy a tree as it is",
                "what is run after changes: a [[tree.NAME.hook]] on = \"applied\" of a copy",
            );
        }
        let mut sync = Sync::new(at, &layer);
        for entry in &entries {
            self.setting(&mut sync, entry);
        }
        self.rules += sync.args.rules.len();
        self.plan(sync);
    }

    fn setting(&mut self, sync: &mut Sync, entry: &Entry) {
        let at = At::line(entry.line);
        let Some(key) = entry.key.as_deref() else {
            return;
        };
        if let Some((_, why)) = NEEDLESS.iter().find(|(name, _)| *name == key) {
            return self.notes.needless(&at, key.as_bytes(), *why);
        }
        if ACTIONS.contains(&key) {
            return self.notes.open(
                &at,
                key.as_bytes(),
                "nothing of the configuration is run when something changes at the source",
                "a [[tree.NAME.hook]] on = \"applied\" of the copy",
            );
        }
        let into = match key {
            "source" => &mut sync.source,
            "target" => &mut sync.target,
            "host" => &mut sync.host,
            "targetdir" => &mut sync.targetdir,
            "exclude" | "filter" => {
                for text in self.texts(key, entry) {
                    match key {
                        "filter" => sync.args.filter(&text, &at, &mut self.notes),
                        _ => sync.args.rule(false, &text, &at, &mut self.notes),
                    }
                }
                return;
            }
            "excludeFrom" | "filterFrom" => {
                for path in self.texts(key, entry) {
                    self.rule_file(sync, &path, &at);
                }
                return;
            }
            "delete" => return self.deletions(sync, entry),
            "rsync" => return self.rsync(sync, entry),
            "rsyncOpts" | "rsyncOps" => {
                let words: Vec<String> = self
                    .texts(key, entry)
                    .iter()
                    .flat_map(|text| super::rsync_args::split(text))
                    .collect();
                return sync.args.read(&words, &at, &mut self.notes);
            }
            _ => {
                return self.notes.open(
                    &at,
                    key.as_bytes(),
                    "not known as a setting of a sync",
                    "what may be set for a tree is in docs/BACKUP.md",
                );
            }
        };
        match &entry.value {
            Value::Text(text) if !text.is_empty() => *into = Some(text.clone()),
            other => self.notes.open(
                &at,
                key.as_bytes(),
                other.no_text(),
                "a text in quotes, or a name that is set to one, once",
            ),
        }
    }

    /// A text, or several.
    fn texts(&mut self, key: &str, entry: &Entry) -> Vec<String> {
        let alone;
        let entries = match &entry.value {
            Value::Table(entries) => entries,
            value => {
                alone = vec![Entry {
                    line: entry.line,
                    key: None,
                    value: value.clone(),
                }];
                &alone
            }
        };
        let mut out = Vec::new();
        for entry in entries {
            let text = match &entry.value {
                Value::Text(text) => std::str::from_utf8(text).map_err(|_| "it is not UTF-8"),
                other => Err(other.no_text()),
            };
            match text {
                Ok(text) => out.push(text.to_owned()),
                Err(why) => self.notes.open(
                    &At::line(entry.line),
                    key.as_bytes(),
                    why,
                    "texts in quotes",
                ),
            }
        }
        out
    }

    fn rule_file(&mut self, sync: &mut Sync, path: &str, at: &At) {
        let file = Arc::new(PathBuf::from(path));
        match (self.open)(&file) {
            Ok(text) => {
                let inside = At {
                    file: Some(file),
                    line: at.line,
                };
                sync.args.rule_lines(false, &text, &inside, &mut self.notes);
            }
            Err(why) => self.notes.open(
                at,
                path.as_bytes(),
                why,
                "its lines in `ignore` of the tree",
            ),
        }
    }

    fn deletions(&mut self, sync: &mut Sync, entry: &Entry) {
        let said = match &entry.value {
            Value::Bool(true) => return,
            Value::Bool(false) => "false".to_owned(),
            Value::Text(text) => escape(text),
            _ => "?".into(),
        };
        sync.off = Some(format!(
            "delete = {said}, and a copy here loses what the source loses"
        ));
        self.notes.open(
            &At::line(entry.line),
            format!("delete = {said}").as_bytes(),
            "a copy is exact: what goes at the source goes in the copy, too, so the tree is printed switched off",
            "old versions kept beside the copy, once this version keeps them; else keep lsyncd, or rsync without --delete, for this tree",
        );
    }

    /// Options by name, as rsync takes them.
    fn rsync(&mut self, sync: &mut Sync, entry: &Entry) {
        let Value::Table(entries) = &entry.value else {
            return self.notes.open(
                &At::line(entry.line),
                b"rsync",
                entry.value.no_text(),
                "rsync = { ... }",
            );
        };
        for entry in entries {
            let at = At::line(entry.line);
            let Some(key) = entry.key.as_deref() else {
                continue;
            };
            let option = key.replace('_', "-");
            let words = match &entry.value {
                _ if key == "binary" => continue,
                _ if key == "_extra" => self.texts(key, entry),
                Value::Bool(true) => vec![format!("--{option}")],
                // Without one of these, what is copied is not what is there.
                Value::Bool(false) if ["links", "times"].contains(&key) => {
                    vec![format!("--no-{option}")]
                }
                Value::Bool(false) | Value::Nil => continue,
                Value::Number(number) => vec![format!("--{option}={number}")],
                Value::Text(text) => {
                    vec![format!("--{option}={}", String::from_utf8_lossy(text))]
                }
                other => {
                    self.notes.open(
                        &at,
                        format!("rsync {key}").as_bytes(),
                        other.no_text(),
                        "a plain value",
                    );
                    continue;
                }
            };
            sync.args.read(&words, &at, &mut self.notes);
        }
    }

    fn end(mut self) -> Import {
        if !self.any {
            self.notes.open(
                &At::line(0),
                b"sync",
                "there is no sync{...} in it",
                "`fs_mirror add NAME SRC DST`",
            );
        }
        let mut head = vec![
            "lsyncd pushes from the source's host; here the host that keeps the copy follows. A target that holds a copy already is taken".into(),
            "over once by hand, before the service starts, so that only what differs travels:".into(),
            "    fs_mirror mirror SOURCE DST --adopt --once".into(),
        ];
        if self.trees.iter().any(|tree| tree.offered.is_some()) {
            let host = escape(self.this_host.as_bytes());
            head.push(format!("{host} is this host; write the name or address by which the others reach it. Make the two know each other:"));
            head.push(format!("    {host}# mirrord pair --tree NAME"));
            head.push("    target# fs_mirror pair ... (as that prints)".into());
            head.push(format!("Where the target can't reach {host}: `connect_to`, see docs/BACKUP.md, \"A worker that can't be reached\"."));
        }
        head.push("Then stop lsyncd: both at once would write into the same copy.".into());
        Import {
            kind: Kind::Lsyncd,
            head,
            trees: self.trees,
            retention: None,
            notes: self.notes,
        }
    }
}

/// What one `sync{...}` says.
struct Sync {
    at: At,
    layer: String,
    source: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
    targetdir: Option<Vec<u8>>,
    args: Args,
    off: Option<String>,
}

impl Sync {
    fn new(at: At, layer: &str) -> Sync {
        Sync {
            at,
            layer: layer.to_owned(),
            source: None,
            target: None,
            host: None,
            targetdir: None,
            args: Args::default(),
            off: None,
        }
    }
}
