//! What an rsnapshot.conf says: words separated by tabs, a setting a line.
//!
//! Nothing that it names is run; files that it includes are read.

mod points;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::emit::{Import, Kind, Planned};
use super::notes::{At, Notes, cut};
use super::patterns::{Lines, ignore_lines};
use super::retention::{AND_THEN, Level, Retention};
use super::rsync_args::Args;
use super::{Names, ReadFile};
use crate::cli::parse;
use crate::engine::options::{Owners, SourceSpec};
use crate::engine::service::backup::config::{TREES_MAX, Tree};
use crate::engine::service::rate::Rates;
use crate::engine::session::show;
use points::{Global, Opt, Point, typed};

pub use points::is_rsyncd;

const INCLUDES_DEEP_MAX: usize = 8;
const FILES_MAX: usize = 64;
/// Of a hostile file: what is left out, times the trees.
const RULES_AND_TREES_MAX: usize = 100_000;

/// Lines that make a file one of rsnapshot's.
const OURS: &[&[u8]] = &[
    b"config_version",
    b"snapshot_root",
    b"retain",
    b"interval",
    b"backup",
    b"backup_script",
    b"include_conf",
];

/// Settings for which nothing needs to be said here, and why.
const NEEDLESS: &[(&str, &str)] = &[
    ("config_version", "of rsnapshot's own"),
    ("cmd_cp", "no other program copies"),
    ("cmd_rm", "no other program removes"),
    ("cmd_rsync", "rsync is not used"),
    (
        "cmd_logger",
        "under systemd the journal has what is told; on_alarm tells alarms",
    ),
    ("cmd_du", "`fs_mirror status` tells sizes"),
    ("du_args", "`fs_mirror status` tells sizes"),
    ("cmd_rsnapshot_diff", "the log knows what changed"),
    ("cmd_ssh", "the ssh in PATH is called"),
    (
        "no_create_root",
        "a copy whose parent directory is not there is always refused, so an unmounted disk is never filled",
    ),
    ("link_dest", "old versions are kept by hard links anyway"),
    (
        "sync_first",
        "following and keeping old versions never wait for each other",
    ),
    ("use_lazy_deletes", "old versions go in the background"),
    ("rsync_numtries", "a broken link is tried again, always"),
    ("lockfile", "each copy is locked by its state"),
    ("stop_on_stale_lockfile", "locks end with their process"),
    (
        "verbose",
        "-q and -v of the commands; the service tells what matters",
    ),
    ("loglevel", "-q and -v of the commands"),
    ("logfile", "under systemd the journal has it"),
];

/// Is it such a file?
pub fn looks_like(text: &[u8]) -> bool {
    text.split(|b| *b == b'\n').any(|line| {
        let word = line
            .split(|b| b.is_ascii_whitespace())
            .next()
            .unwrap_or_default();
        word.len() < line.len() && OURS.contains(&word)
    })
}

struct Reader<'a> {
    open: &'a mut ReadFile<'a>,
    notes: Notes,
    files: usize,
    root: Option<PathBuf>,
    levels: Vec<Level>,
    global: Global,
    points: Vec<Point>,
    /// Some line says that something is to be copied.
    any: bool,
}

pub fn read<'a>(text: &[u8], open: &'a mut ReadFile<'a>) -> Import {
    let mut reader = Reader {
        open,
        notes: Notes::default(),
        files: 1,
        root: None,
        levels: Vec::new(),
        global: Global::default(),
        points: Vec::new(),
        any: false,
    };
    reader.file(text, None, 0);
    reader.end()
}

/// A line with its number; lines that begin with a blank belong to the one before.
fn logical(text: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut lines: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut goes_on = false;
    for (number, line) in text.split(|b| *b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let begins_blank = line.first().is_some_and(|b| b" \t".contains(b));
        let is_blank = line.trim_ascii().is_empty();
        match lines.last_mut() {
            Some((_, last)) if goes_on && begins_blank && !is_blank => {
                last.push(b'\t');
                last.extend_from_slice(line.trim_ascii());
            }
            _ if is_blank || line.starts_with(b"#") => goes_on = false,
            _ => {
                lines.push((number + 1, line.to_vec()));
                goes_on = true;
            }
        }
    }
    lines
}

impl Reader<'_> {
    fn file(&mut self, text: &[u8], file: Option<Arc<PathBuf>>, depth: usize) {
        for (line, bytes) in logical(text) {
            let at = At {
                file: file.clone(),
                line,
            };
            self.line(&at, &bytes, depth);
        }
    }

    fn line(&mut self, at: &At, line: &[u8], depth: usize) {
        // Runs of tabs separate; the fourth word takes the rest.
        let words: Vec<&[u8]> = line
            .split(|b| *b == b'\t')
            .filter(|word| !word.is_empty())
            .collect();
        let word = |n: usize| words.get(n).copied().unwrap_or_default();
        let text = |n: usize| String::from_utf8_lossy(word(n)).trim().to_owned();
        let name = text(0);
        if words.len() < 2 {
            let (why, instead) = match line.contains(&b' ') {
                true => (
                    "words are separated by tabs, and this line has none",
                    "tabs between the words",
                ),
                false => ("it has no value", "the setting with its value, or no line"),
            };
            return self.notes.open(at, line, why, instead);
        }
        if let Some((_, why)) = NEEDLESS.iter().find(|(known, _)| *known == name) {
            return self.notes.needless(at, line, *why);
        }
        let one = ["snapshot_root", "one_fs", "ssh_args", "include", "exclude"];
        if words.len() > 2 && (one.contains(&name.as_str()) || name.starts_with("rsync_")) {
            self.notes.open(
                at,
                &words.get(2..).unwrap_or_default().join(&b' '),
                format!("after a tab, so rsnapshot does not read it as a part of {name} either"),
                "blanks within a value, tabs between words only",
            );
        }
        self.any |= name.starts_with("backup");
        match name.as_str() {
            "include_conf" => self.include(at, line, &text(1), depth),
            "snapshot_root" => self.root(at, line, word(1)),
            "retain" | "interval" => match text(2).parse::<u32>() {
                Ok(count) if count > 0 => self.levels.push(Level {
                    name: text(1),
                    count,
                    at: at.clone(),
                }),
                _ => self.notes.open(
                    at,
                    line,
                    "the number of snapshots is wanted",
                    "retain NAME NUMBER",
                ),
            },
            "backup" => self.point(at, line, &words),
            "one_fs" => self.global.one_fs = text(1) == "1",
            "rsync_short_args" => self.global.short = Some((text(1), at.clone())),
            "rsync_long_args" => self.global.long = Some((text(1), at.clone())),
            "ssh_args" => self.global.ssh = Some((text(1), at.clone())),
            "include" | "exclude" => match std::str::from_utf8(word(1)) {
                Ok(pattern) => {
                    let rule = (name == "include", pattern.to_owned(), at.clone());
                    self.global.rules.push(rule);
                }
                Err(_) => self
                    .notes
                    .open(at, line, "a pattern is UTF-8 here", "? for each such byte"),
            },
            "include_file" | "exclude_file" => {
                let file = (name == "include_file", text(1), at.clone());
                self.global.rule_files.push(file);
            }
            "backup_script" => self.notes.open(
                at,
                line,
                "nothing is run to make what is copied",
                "let cron run the script into a directory of its own, and follow that directory as a tree",
            ),
            "backup_exec" => self.notes.open(
                at,
                line,
                "no command is run at a time of day",
                "cron; or a [[tree.NAME.hook]] on = \"applied\", which runs when something changed",
            ),
            "cmd_preexec" => self.notes.open(
                at,
                line,
                "there is no beginning of a backup: changes are followed all the time",
                "what prepares data (a dump, say) runs from cron, into a directory that is followed",
            ),
            "cmd_postexec" => self.notes.open(
                at,
                line,
                "there is no end of a backup: changes are followed all the time",
                "a [[tree.NAME.hook]] on = \"applied\", or on_alarm",
            ),
            _ if name.starts_with("linux_lvm_") => self
                .notes
                .needless(at, line, "no snapshot of a volume is made to read from"),
            _ => self.notes.open(
                at,
                line,
                "not known as a setting of rsnapshot",
                "see `fs_mirror serve --help` and docs/BACKUP.md for what there is",
            ),
        }
    }

    fn include(&mut self, at: &At, line: &[u8], path: &str, depth: usize) {
        if path.starts_with('`') {
            return self.notes.open(
                at,
                line,
                "no command of a configuration is run",
                "run it yourself, and name the file it makes",
            );
        }
        if depth >= INCLUDES_DEEP_MAX || self.files >= FILES_MAX {
            return self.notes.open(
                at,
                line,
                format!("at most {FILES_MAX} files, {INCLUDES_DEEP_MAX} deep, are read"),
                "one file",
            );
        }
        self.files += 1;
        let path = PathBuf::from(path);
        match (self.open)(&path) {
            Ok(text) => self.file(&text, Some(Arc::new(path)), depth + 1),
            Err(why) => self
                .notes
                .open(at, line, why, "import that file by itself, where it is"),
        }
    }

    fn root(&mut self, at: &At, line: &[u8], path: &[u8]) {
        let path = PathBuf::from(OsString::from_vec(path.trim_ascii().to_vec()));
        let plain = path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        match path.is_absolute() && plain {
            true => self.root = Some(path.components().collect()),
            false => self.notes.open(
                at,
                line,
                "a path that begins with / is wanted",
                "an absolute path without ..",
            ),
        }
    }

    fn point(&mut self, at: &At, line: &[u8], words: &[&[u8]]) {
        let word = |n: usize| words.get(n).copied().unwrap_or_default().trim_ascii();
        let (source, below) = (word(1), String::from_utf8_lossy(word(2)));
        if below.is_empty() || below.starts_with('/') || below.split('/').any(|part| part == "..") {
            return self.notes.open(
                at,
                line,
                "where it goes is a path below snapshot_root",
                "backup SOURCE DIRECTORY/",
            );
        }
        let rest: Vec<&[u8]> = words.get(3..).unwrap_or_default().to_vec();
        let rest = String::from_utf8_lossy(&rest.join(&b'\t')).into_owned();
        let mut options = Vec::new();
        for pair in rest.split(',').filter(|pair| !pair.trim().is_empty()) {
            let pair = pair.trim();
            let (add, pair) = match pair.strip_prefix('+') {
                Some(pair) => (true, pair),
                None => (false, pair),
            };
            match pair.split_once('=') {
                Some((name, value)) => options.push(Opt {
                    add,
                    name: name.split_whitespace().collect(),
                    value: value.trim().to_owned(),
                }),
                None => self.notes.open(
                    at,
                    pair.as_bytes(),
                    "an option of a backup line is name=value",
                    "commas separate such options, so none can hold one",
                ),
            }
        }
        self.points.push(Point {
            at: at.clone(),
            line: line.to_vec(),
            source: source.to_vec(),
            below: below.into_owned(),
            options,
        });
    }

    fn end(mut self) -> Import {
        let points = std::mem::take(&mut self.points);
        let root = self.root.clone().unwrap_or_else(|| {
            self.notes.open(
                &At::line(0),
                b"snapshot_root",
                "it is missing, so nobody knows where copies go",
                "dst of each tree: /backup stands there now",
            );
            PathBuf::from("/backup")
        });
        let live = root.join("live");
        let (mut trees, mut names, mut rules) = (Vec::new(), Names::default(), 0);
        let mut concerned = Concerned::default();
        for point in &points {
            if trees.len() >= TREES_MAX || rules > RULES_AND_TREES_MAX {
                let why = format!(
                    "one service follows {TREES_MAX} trees at most, with {RULES_AND_TREES_MAX} ignore lines"
                );
                self.notes
                    .open(&point.at, &point.line, why, "a second backup host");
                continue;
            }
            let Some(source) = point.source(&mut self.notes) else {
                continue;
            };
            let args = point.args(&self.global, self.open, &mut self.notes);
            rules += args.rules.len();
            trees.extend(self.planned(point, source, args, &live, &mut names, &mut concerned));
        }
        if !self.any {
            self.notes.open(
                &At::line(0),
                b"backup",
                "there is no backup line",
                "`fs_mirror add NAME SRC DST`",
            );
        }
        concerned.tell(&mut self.notes);
        let retention = Retention::of(&self.levels, &mut self.notes);
        if let Some(retention) = &retention {
            let planned = trees.iter_mut();
            planned.for_each(|planned| planned.tree.keeping = retention.settings());
        }
        let head = vec![
            format!(
                "rsnapshot copies when cron says; a mirror follows each change. snapshot_root is {}: its snapshots stay as",
                show(&root)
            ),
            "they are, copies go beside them. Before the first start:".into(),
            format!("    mkdir -p {}", show(&live)),
            format!("Once `fs_mirror status` says that all are equal, {AND_THEN}."),
        ];
        Import {
            kind: Kind::Rsnapshot,
            head,
            trees,
            retention,
            notes: self.notes,
        }
    }

    fn planned(
        &mut self,
        point: &Point,
        source: SourceSpec,
        args: Args,
        live: &Path,
        names: &mut Names,
        concerned: &mut Concerned,
    ) -> Option<Planned> {
        let typed = typed(&source, &args);
        let path = match &source {
            SourceSpec::Local(path) => path.as_os_str().as_bytes().to_vec(),
            SourceSpec::Ssh { path, .. } => path.clone(),
            SourceSpec::Service { .. } => Vec::new(),
        };
        if let Err(e) = parse::source(&typed) {
            self.notes
                .open(&point.at, &point.line, e.0, "a source that fs_mirror knows");
            return None;
        }
        let path = String::from_utf8_lossy(&path).into_owned();
        let named = match path.trim_matches('/') {
            "" => format!("{}-root", point.below),
            inner => format!("{}-{inner}", point.below),
        };
        let name = names.given(&named);
        let mut tree = Tree::new(&name, typed, live.join(&name));
        let above = above(&path, args.relative);
        let lines = ignore_lines(
            &args.rules,
            &above.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        concerned.note(&args, &lines);
        for (at, pattern, why) in lines.refused {
            self.notes.open(
                &at,
                pattern.as_bytes(),
                format!("for tree {name}: {why}"),
                "a gitignore line in `ignore` of the tree",
            );
        }
        tree.ignore = lines.lines;
        if args.owners {
            tree.owners = Owners::Apply;
        }
        if let SourceSpec::Ssh { .. } = source {
            tree.bwlimit = Rates::fixed(args.bytes_per_s);
            tree.timeout = args.timeout;
            tree.remote_command = args.remote_command;
        } else if args.bytes_per_s.is_some() {
            self.notes.needless(
                &point.at,
                b"--bwlimit",
                "it is for links; on this host nothing is sent",
            );
        }
        let mut comments = vec![format!("{}: {}", point.at, cut(&point.line))];
        if !point.source.ends_with(b"/") {
            comments.push(
                "it must be a directory: of a single file make a tree of its directory".into(),
            );
        }
        Some(Planned {
            tree,
            comments,
            host: None,
            offered: None,
            enters_mounts: !args.one_fs,
            off: None,
        })
    }
}

/// The names between the place that a leading slash of a pattern means and the root of the tree.
fn above(path: &str, relative: bool) -> Vec<String> {
    let names: Vec<String> = path
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .map(str::to_owned)
        .collect();
    if relative { names } else { Vec::new() }
}

/// Which rules are about some tree. One that is about none had no effect in rsnapshot either.
#[derive(Default)]
struct Concerned {
    rules: BTreeMap<(At, String), bool>,
}

impl Concerned {
    fn note(&mut self, args: &Args, lines: &Lines) {
        for (rule, concerned) in args.rules.iter().zip(&lines.concerned) {
            let key = (rule.at.clone(), rule.pattern.clone());
            *self.rules.entry(key).or_default() |= concerned;
        }
    }

    fn tell(self, notes: &mut Notes) {
        for ((at, pattern), concerned) in self.rules {
            if !concerned {
                notes.needless(&at, pattern.as_bytes(), "it is about none of the trees");
            }
        }
    }
}
