//! The configuration of the backup service: what may stand in its TOML, and what it means.
//!
//! A tree with a mistake in it is left out and named; the others are as if it were not there.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirror_core::escape;

use super::deadman::Url;
use crate::cli::config::is_plain_relative;
use crate::cli::parse;
use crate::engine::applying::VERIFY_EVERY;
use crate::engine::applying::limits::Limits;
use crate::engine::options::{
    Compress, Detector, OnMassChange, Owners, SourceSpec, default_state_dir,
};
use crate::engine::service;
use crate::engine::service::rate::Rates;
use crate::engine::service::settings::{Place, Problems, Table};
use crate::filter::Filter;
use crate::history::publish_settings::PublishSettings;
use crate::history::settings::Settings;
use crate::net::PORT;
use crate::sys::polite::{IoNice, Polite};

/// Trees of one service.
pub const TREES_MAX: usize = 1000;
const HOOKS_MAX: usize = 20;
const NAME_BYTES_MAX: usize = 64;
/// How far a tree may be behind while all is well.
const MAX_LAG: Duration = Duration::from_secs(300);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
const HOOK_QUIET: Duration = Duration::from_secs(1);

/// What is not about one tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct General {
    /// Where the door listens.
    pub listen: Vec<SocketAddr>,
    /// Who the door is.
    pub user: Option<String>,
    /// The service's own state.
    pub state: Option<PathBuf>,
    pub textfile: Option<PathBuf>,
    pub deadman: Option<Url>,
    pub on_alarm: Option<Run>,
    pub max_lag: Option<Duration>,
}

impl General {
    pub fn max_lag(&self) -> Duration {
        self.max_lag.unwrap_or(MAX_LAG)
    }
}

/// A command of the operator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// For `/bin/sh -c`.
    pub command: String,
    pub user: Option<String>,
    pub timeout: Duration,
}

/// Run after something was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub run: Run,
    /// gitignore patterns of what it is for; empty: everything.
    pub patterns: Vec<String>,
    /// It waits until nothing was applied for so long.
    pub quiet: Duration,
}

/// A tree that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub name: String,
    /// As typed.
    pub source: OsString,
    /// The source's host dials ours (`connect_to` there); in `source` it stands with the name it is trusted by here.
    pub accept: bool,
    pub dst: PathBuf,
    /// `None`: beside DST.
    pub state: Option<PathBuf>,
    pub ignore: Vec<String>,
    pub cross: Vec<PathBuf>,
    pub owners: Owners,
    pub on_mass_change: OnMassChange,
    pub history: bool,
    /// What history keeps, and how long.
    pub keeping: Settings,
    pub detector: Option<Detector>,
    pub bwlimit: Rates,
    pub compress: Compress,
    pub timeout: Option<Duration>,
    pub verify_every: Option<Duration>,
    pub remote_command: Option<String>,
    pub publish: Option<PublishSettings>,
    pub limits: Limits,
    pub polite: Polite,
    pub hooks: Vec<Hook>,
}

/// The table of a tree, as it is written.
pub const TREE_KEYS: &[&str] = &[
    "source",
    "accept",
    "dst",
    "state",
    "ignore",
    "cross",
    "owners",
    "on_mass_change",
    "history",
    "detector",
    "bwlimit",
    "compress",
    "timeout",
    "verify_every",
    "remote_command",
    "publish",
    "bytes_max",
    "inodes_max",
    "ops_max",
    "min_free",
    "nice",
    "io_nice",
    "memory_max",
    "hook",
];
const GENERAL_KEYS: &[&str] = &[
    "listen", "user", "state", "textfile", "deadman", "max_lag", "on_alarm", "tree",
];
const HOOK_KEYS: &[&str] = &["on", "command", "patterns", "quiet", "timeout", "user"];
const RUN_KEYS: &[&str] = &["command", "timeout", "user"];

/// A tree's name: it becomes a file's name, an argument, a label.
pub fn name(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let first = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if !first || text.len() > NAME_BYTES_MAX || !text.bytes().all(good) {
        return Err(format!(
            "{} is no name of a tree: letters, digits, dot, dash and underscore, {NAME_BYTES_MAX} at most, a letter or digit first",
            escape(text.as_bytes())
        ));
    }
    Ok(text.to_owned())
}

fn words<T>(parsed: Result<T, parse::ParseError>) -> Result<T, String> {
    parsed.map_err(|e| e.0)
}

/// The value of a `compress` key.
pub fn compress(text: &str) -> Result<Compress, String> {
    <Compress as clap::ValueEnum>::from_str(text, false).map_err(|_| "auto, on or off".into())
}

fn path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(words(parse::unescape(text))?);
    match path.is_absolute() {
        true => Ok(path.components().collect()),
        false => Err(format!("{} does not begin with /", escape(text.as_bytes()))),
    }
}

fn unless_never<T>(
    text: &str,
    none: &str,
    parse: impl FnOnce(&str) -> Result<T, parse::ParseError>,
) -> Result<Option<T>, String> {
    match text {
        text if text == none => Ok(None),
        text => words(parse(text)).map(Some),
    }
}

/// A user of this host.
fn user(text: &str) -> Result<String, String> {
    match super::command::user_of(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("there is no user {} here", escape(text.as_bytes()))),
    }
}

/// Where to listen: an address, a port, or both.
fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text
        .strip_prefix(':')
        .and_then(|port| port.parse::<u16>().ok());
    let plain = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    match (port, text.parse::<SocketAddr>(), plain.parse::<IpAddr>()) {
        (Some(port), ..) => Ok((Ipv6Addr::UNSPECIFIED, port).into()),
        (_, Ok(both), _) => Ok(both),
        (.., Ok(address)) => Ok((address, PORT).into()),
        _ => Err(format!(
            "{} is no address to listen on: write 0.0.0.0, 192.0.2.1:8737, [::]:8737 or :8737",
            escape(text.as_bytes())
        )),
    }
}

impl General {
    /// Takes what is not about one tree out of a file; what a file before it said already is a mistake.
    pub fn read(&mut self, table: &mut Table, problems: &mut Problems) {
        let place = table.place.clone();
        if let Some(texts) = table.texts("listen", problems) {
            for (place, text) in texts {
                match address(&text) {
                    Ok(one) if self.listen.contains(&one) => {
                        problems.add(Some(&place), format!("listen: {one} is there twice"));
                    }
                    Ok(one) => self.listen.push(one),
                    Err(why) => problems.add(Some(&place), format!("listen: {why}")),
                }
            }
        }
        let at = &place;
        once(
            "user",
            &mut self.user,
            table.parsed("user", problems, user),
            at,
            problems,
        );
        once(
            "state",
            &mut self.state,
            table.parsed("state", problems, path),
            at,
            problems,
        );
        once(
            "textfile",
            &mut self.textfile,
            table.parsed("textfile", problems, textfile),
            at,
            problems,
        );
        once(
            "deadman",
            &mut self.deadman,
            table.parsed("deadman", problems, Url::parse),
            at,
            problems,
        );
        let max_lag = table.parsed("max_lag", problems, |t| words(parse::duration(t)));
        once("max_lag", &mut self.max_lag, max_lag, at, problems);
        if let Some(node) = table.take("on_alarm")
            && let Some(mut inner) = node.into_table(problems)
        {
            let at = inner.place.clone();
            let run = Run::read(&mut inner, problems);
            inner.end(RUN_KEYS, problems);
            once("on_alarm", &mut self.on_alarm, run, &at, problems);
        }
    }

    pub fn end(table: Table, problems: &mut Problems) {
        table.end(GENERAL_KEYS, problems);
    }
}

fn once<T>(key: &str, into: &mut Option<T>, value: Option<T>, at: &Place, problems: &mut Problems) {
    if value.is_some() && into.is_some() {
        problems.add(Some(at), format!("{key} is set in another file already"));
    } else if value.is_some() {
        *into = value;
    }
}

fn textfile(text: &str) -> Result<PathBuf, String> {
    let file = path(text)?;
    if file.extension().is_none_or(|e| e != "prom") {
        return Err("node_exporter reads files whose names end in .prom".into());
    }
    Ok(file)
}

impl Run {
    fn read(table: &mut Table, problems: &mut Problems) -> Option<Run> {
        let place = table.place.clone();
        let command = table.parsed("command", problems, |text| match text.trim() {
            "" => Err("it is empty".into()),
            text if text.contains('\0') => Err("it holds a zero byte".into()),
            text => Ok(text.to_owned()),
        });
        let user = table.parsed("user", problems, user);
        let timeout = table.parsed("timeout", problems, |t| match words(parse::duration(t))? {
            Duration::ZERO => Err("a command needs some time".into()),
            time => Ok(time),
        });
        if command.is_none() {
            problems.add(Some(&place), "a command is wanted here: command = \"...\"");
        }
        Some(Run {
            command: command?,
            user,
            timeout: timeout.unwrap_or(COMMAND_TIMEOUT),
        })
    }
}

impl Hook {
    fn read(mut table: Table, problems: &mut Problems) -> Option<Hook> {
        let place = table.place.clone();
        let on = table.parsed("on", problems, |text| match text {
            "applied" => Ok(()),
            _ => Err("hooks are for \"applied\"".into()),
        });
        if on.is_none() {
            problems.add(Some(&place), "a hook says when: on = \"applied\"");
        }
        let patterns = patterns(&mut table, "patterns", problems);
        let quiet = table.parsed("quiet", problems, |t| words(parse::duration(t)));
        let run = Run::read(&mut table, problems);
        table.end(HOOK_KEYS, problems);
        Some(Hook {
            run: run?,
            patterns,
            quiet: quiet.unwrap_or(HOOK_QUIET),
        })
    }
}

/// gitignore lines, each checked.
fn patterns(table: &mut Table, key: &str, problems: &mut Problems) -> Vec<String> {
    let texts = table.texts(key, problems).unwrap_or_default();
    let lines: Vec<String> = texts.iter().map(|(_, text)| text.clone()).collect();
    if let Err(bad) = Filter::new(&lines) {
        let place = texts
            .get(bad.line.saturating_sub(1))
            .map(|(place, _)| place);
        problems.add(place.or(Some(&table.place)), format!("{key}: {bad}"));
    }
    lines
}

impl Tree {
    /// A tree with all settings as usual.
    pub fn new(name: &str, source: OsString, dst: PathBuf) -> Tree {
        Tree {
            name: name.to_owned(),
            source,
            accept: false,
            dst,
            state: None,
            ignore: Vec::new(),
            cross: Vec::new(),
            owners: Owners::Record,
            on_mass_change: OnMassChange::Auto,
            history: true,
            keeping: Settings::default(),
            detector: None,
            bwlimit: Rates::default(),
            compress: Compress::Auto,
            timeout: None,
            verify_every: Some(VERIFY_EVERY),
            remote_command: None,
            publish: None,
            limits: Limits::default(),
            polite: Polite::default(),
            hooks: Vec::new(),
        }
    }

    pub fn state_dir(&self) -> PathBuf {
        match &self.state {
            Some(state) => state.clone(),
            None => default_state_dir(&self.dst),
        }
    }

    /// It stands for all trees of a host, `mirror://host/*`, each in a directory of its name in this one.
    pub fn every_below(&self) -> Option<&Path> {
        let every = self.source.as_bytes().starts_with(b"mirror://")
            && self.source.as_bytes().ends_with(b"/*");
        every.then(|| self.dst.parent()).flatten()
    }

    /// What a running process can't take over: it must be started again when this differs.
    pub fn fixed(&self) -> Tree {
        Tree {
            bwlimit: Rates::default(),
            limits: Limits::default(),
            hooks: Vec::new(),
            ..self.clone()
        }
    }

    /// `None`: it can't be; the problems say why.
    pub fn read(named: &str, mut table: Table, problems: &mut Problems) -> Option<Tree> {
        let place = table.place.clone();
        if let Err(why) = name(named) {
            problems.add(Some(&place), why);
        }
        for key in ["source", "dst"] {
            if !table.has(key) {
                problems.add(Some(&place), format!("{key} is missing"));
            }
        }
        let source = table.parsed("source", problems, |text| {
            let typed = words(parse::unescape(text))?;
            match words(parse::source(&typed))? {
                SourceSpec::Local(path) if !path.is_absolute() => {
                    Err(format!("{} does not begin with /", escape(text.as_bytes())))
                }
                _ => Ok(typed),
            }
        });
        let dst = table.parsed("dst", problems, path);
        let mut tree = Tree::new(named, source.unwrap_or_default(), dst.unwrap_or_default());
        tree.accept = table.bool("accept", problems) == Some(true);
        if tree.accept
            && !matches!(
                parse::source(&tree.source),
                Ok(SourceSpec::Service { port: None, .. })
            )
        {
            problems.add(
                Some(&place),
                "accept: the source is mirror://NAME/TREE then, with the name that `fs_mirror trust` shows",
            );
        }
        tree.state = table.parsed("state", problems, path);
        let every = tree.every_below().is_some();
        if every != tree.dst.ends_with("*") {
            problems.add(
                Some(&place),
                "all trees of a host are source = \"mirror://host/*\" and dst = \"/directory/*\"",
            );
        }
        if every && tree.accept {
            problems.add(
                Some(&place),
                "accept: a host that dials is followed tree by tree, not with *",
            );
        }
        if every && tree.state.is_some() {
            problems.add(
                Some(&place),
                "state: each of many trees has its state beside its DST",
            );
        }
        tree.ignore = patterns(&mut table, "ignore", problems);
        for (place, text) in table.texts("cross", problems).unwrap_or_default() {
            match words(parse::unescape(&text)).map(PathBuf::from) {
                Ok(inner) if is_plain_relative(&inner) => tree.cross.push(inner),
                Ok(_) => problems.add(
                    Some(&place),
                    "cross: a path relative to the source, without . and ..",
                ),
                Err(why) => problems.add(Some(&place), format!("cross: {why}")),
            }
        }
        if let Some(owners) = table.parsed("owners", problems, |text| match text {
            "apply" => Ok(Owners::Apply),
            "record" => Ok(Owners::Record),
            _ => Err("apply or record".into()),
        }) {
            tree.owners = owners;
        }
        if let Some(what) = table.parsed("on_mass_change", problems, |text| match text {
            "auto" => Ok(OnMassChange::Auto),
            "hold" => Ok(OnMassChange::Hold),
            "follow" => Ok(OnMassChange::Follow),
            _ => Err("auto, hold or follow".into()),
        }) {
            tree.on_mass_change = what;
        }
        if let Some(node) = table.take("history") {
            (tree.history, tree.keeping) = service::history::read(node, problems);
        }
        if let Some(detector) = table.parsed("detector", problems, |text| match text {
            "auto" => Ok(None),
            "fanotify" => Ok(Some(Detector::Fanotify)),
            "inotify" => Ok(Some(Detector::Inotify)),
            "scan" => Ok(Some(Detector::Scan)),
            _ => Err("auto, fanotify, inotify or scan".into()),
        }) {
            tree.detector = detector;
        }
        if let Some(node) = table.take("bwlimit") {
            tree.bwlimit = Rates::read(&node, problems).unwrap_or_default();
        }
        tree.compress = table
            .parsed("compress", problems, compress)
            .unwrap_or_default();
        let time = |none: &'static str| move |text: &str| unless_never(text, none, parse::duration);
        tree.timeout = table.parsed("timeout", problems, time("none")).flatten();
        if let Some(every) = table.parsed("verify_every", problems, time("never")) {
            tree.verify_every = every.filter(|every| !every.is_zero());
        }
        tree.remote_command = table
            .parsed("remote_command", problems, |text| match text.trim() {
                "" => Err("it is empty".into()),
                "mirrord" => Ok(None),
                text => Ok(Some(text.to_owned())),
            })
            .flatten();
        if let Some(node) = table.take("publish") {
            tree.publish = PublishSettings::read(node, problems);
        }
        let mut amount = |key, least: u64, problems: &mut Problems| {
            table.parsed(key, problems, |text| match words(parse::size(text))? {
                amount if amount < least => Err(format!("at least {least} is wanted")),
                amount => Ok(amount),
            })
        };
        tree.limits = Limits {
            bytes_max: amount("bytes_max", 0, problems),
            inodes_max: amount("inodes_max", 1, problems),
            ops_max: amount("ops_max", 1, problems),
            min_free: amount("min_free", 0, problems),
        };
        tree.polite.memory_bytes_max = amount("memory_max", MEMORY_BYTES_MIN, problems);
        tree.polite.nice = table.integer("nice", -20..=19, problems);
        tree.polite.io_nice =
            table.parsed("io_nice", problems, |text| match (text, text.parse()) {
                ("idle", _) => Ok(IoNice::Idle),
                (_, Ok(level @ 0..=7)) => Ok(IoNice::BestEffort(level)),
                _ => Err("0 (first) to 7 (last), or idle".into()),
            });
        for hook in table
            .take("hook")
            .map(|node| node.list(problems).unwrap_or_default().to_vec())
            .unwrap_or_default()
        {
            if tree.hooks.len() >= HOOKS_MAX {
                problems.add(
                    Some(&hook.place),
                    format!("a tree has {HOOKS_MAX} hooks at most"),
                );
                break;
            }
            if let Some(inner) = hook.into_table(problems) {
                tree.hooks.extend(Hook::read(inner, problems));
            }
        }
        table.end(TREE_KEYS, problems);
        problems.is_empty().then_some(tree)
    }
}

/// A process needs some to begin with.
const MEMORY_BYTES_MIN: u64 = 64 << 20;

/// Its table, as a person would write it; only what is not as usual.
impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Tree::new(&self.name, self.source.clone(), self.dst.clone());
        writeln!(f, "[tree.{}]", toml_key(&self.name))?;
        let mut put = |key: &str, value: Option<String>| match value {
            Some(value) => writeln!(f, "{key} = {value}"),
            None => Ok(()),
        };
        let text = |s: &str| toml::Value::String(s.to_owned()).to_string();
        let bytes = |bytes: &[u8]| text(&escape(bytes));
        let list =
            |items: Vec<String>| (!items.is_empty()).then(|| format!("[{}]", items.join(", ")));
        put("source", Some(bytes(self.source.as_bytes())))?;
        put("accept", self.accept.then(|| "true".into()))?;
        put("dst", Some(bytes(self.dst.as_os_str().as_bytes())))?;
        put(
            "state",
            self.state
                .as_ref()
                .map(|state| bytes(state.as_os_str().as_bytes())),
        )?;
        put(
            "ignore",
            list(self.ignore.iter().map(|p| text(p)).collect()),
        )?;
        put(
            "cross",
            list(
                self.cross
                    .iter()
                    .map(|p| bytes(p.as_os_str().as_bytes()))
                    .collect(),
            ),
        )?;
        put(
            "owners",
            (self.owners != usual.owners).then(|| text("apply")),
        )?;
        put(
            "on_mass_change",
            (self.on_mass_change != usual.on_mass_change).then(|| match self.on_mass_change {
                OnMassChange::Auto => text("auto"),
                OnMassChange::Hold => text("hold"),
                OnMassChange::Follow => text("follow"),
            }),
        )?;
        put("history", self.keeping.to_toml(self.history))?;
        put("detector", self.detector.map(|d| text(&d.to_string())))?;
        put(
            "bwlimit",
            (self.bwlimit != usual.bwlimit).then(|| self.bwlimit.to_toml()),
        )?;
        put(
            "compress",
            (self.compress != usual.compress).then(|| text(&self.compress.to_string())),
        )?;
        put(
            "timeout",
            self.timeout.map(|t| text(&parse::show_duration(t))),
        )?;
        let every = self
            .verify_every
            .map_or("never".into(), parse::show_duration);
        put(
            "verify_every",
            (self.verify_every != usual.verify_every).then(|| text(&every)),
        )?;
        put("remote_command", self.remote_command.as_deref().map(text))?;
        put("publish", self.publish.as_ref().map(ToString::to_string))?;
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        put("bytes_max", number(self.limits.bytes_max))?;
        put("inodes_max", number(self.limits.inodes_max))?;
        put("ops_max", number(self.limits.ops_max))?;
        put("min_free", number(self.limits.min_free))?;
        put("nice", self.polite.nice.map(|n| n.to_string()))?;
        put(
            "io_nice",
            self.polite.io_nice.map(|io| match io {
                IoNice::Idle => text("idle"),
                IoNice::BestEffort(level) => level.to_string(),
            }),
        )?;
        put("memory_max", number(self.polite.memory_bytes_max))?;
        for hook in &self.hooks {
            writeln!(
                f,
                "[[tree.{}.hook]]\non = \"applied\"",
                toml_key(&self.name)
            )?;
            let mut put = |key: &str, value: Option<String>| match value {
                Some(value) => writeln!(f, "{key} = {value}"),
                None => Ok(()),
            };
            put("command", Some(text(&hook.run.command)))?;
            put(
                "patterns",
                list(hook.patterns.iter().map(|p| text(p)).collect()),
            )?;
            put("quiet", Some(text(&parse::show_duration(hook.quiet))))?;
            put(
                "timeout",
                Some(text(&parse::show_duration(hook.run.timeout))),
            )?;
            put("user", hook.run.user.as_deref().map(text))?;
        }
        Ok(())
    }
}

/// A dot in a name would make it two.
fn toml_key(name: &str) -> String {
    if name.contains('.') {
        format!("\"{name}\"")
    } else {
        name.to_owned()
    }
}

/// The file of a tree that `add` made.
pub fn file_of(conf_d: &Path, name: &str) -> PathBuf {
    conf_d.join(format!("{name}.toml"))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
