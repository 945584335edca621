//! `config.toml` in a mirror's state directory: what it follows and how. No keys, nothing that is only of one run.
//!
//! Every key is always there, so that a file cut short is found out. What can't be read is an error with its line,
//! never a default.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mirror_core::escape;
use serde::Deserialize;
use toml::Spanned;

use crate::cli::parse;
use crate::cli::places::show;
use crate::engine::applying::VERIFY_EVERY;
use crate::engine::options::{
    Compress, Detector, MirrorOptions, OnMassChange, Owners, SourceSpec, Speed,
};
use crate::engine::service::{self, settings};
use crate::filter::Filter;
use crate::history::publish_settings::PublishSettings;
use crate::history::settings::Settings;

const FORMAT: i64 = 1;
const CONFIG_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub source: SourceSpec,
    pub dst: PathBuf,
    pub ignore: Vec<String>,
    /// Relative to the source's root.
    pub cross: Vec<PathBuf>,
    pub owners: Owners,
    pub on_mass_change: OnMassChange,
    pub history: bool,
    /// What history keeps, and how long.
    pub keeping: Settings,
    pub detector: Option<Detector>,
    pub bwlimit: Option<u64>,
    pub compress: Compress,
    pub timeout: Option<Duration>,
    pub verify_every: Option<Duration>,
    pub remote_command: Option<String>,
    pub publish: Option<PublishSettings>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot {what} {}", show(.path))]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{}, line {line}: {why}", show(.path))]
    Bad {
        path: PathBuf,
        line: usize,
        why: String,
    },
    #[error("{} has format {format}, made by a newer version: this one knows {FORMAT}", show(.path))]
    Newer { path: PathBuf, format: i64 },
}

/// Settings a person gave on the command line; `None`: not given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Given {
    pub ignore: Option<Vec<String>>,
    pub cross: Option<Vec<PathBuf>>,
    pub owners: Option<Owners>,
    pub on_mass_change: Option<OnMassChange>,
    pub history: Option<bool>,
    pub keeping: Option<Settings>,
    pub detector: Option<Option<Detector>>,
    pub bwlimit: Option<Option<u64>>,
    pub compress: Option<Compress>,
    pub timeout: Option<Option<Duration>>,
    pub verify_every: Option<Option<Duration>>,
    pub remote_command: Option<Option<String>>,
    pub publish: Option<Option<PublishSettings>>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[allow(
        dead_code,
        reason = "read before the rest, to tell a newer file from a damaged one"
    )]
    format: i64,
    source: Spanned<String>,
    dst: Spanned<String>,
    ignore: Spanned<Vec<Spanned<String>>>,
    cross: Vec<Spanned<String>>,
    owners: Owners,
    on_mass_change: OnMassChange,
    /// Read by [`service::history`].
    #[allow(dead_code, reason = "only that it is there")]
    history: toml::Value,
    detector: Spanned<String>,
    bwlimit: Spanned<String>,
    /// Not in files of before there was one.
    compress: Option<Compress>,
    timeout: Spanned<String>,
    /// Not in files of before there was one.
    verify_every: Option<Spanned<String>>,
    remote_command: Spanned<String>,
    /// Not in files of before there was one.
    publish: Option<Spanned<toml::Value>>,
}

impl Config {
    pub fn new(source: SourceSpec, dst: PathBuf) -> Config {
        let usual = MirrorOptions::new(source, dst);
        Config {
            source: usual.source,
            dst: usual.dst,
            ignore: usual.ignore,
            cross: usual.cross,
            owners: usual.owners,
            on_mass_change: usual.on_mass_change,
            history: usual.history,
            keeping: usual.keeping,
            detector: usual.detector,
            bwlimit: usual.bwlimit.get(),
            compress: usual.compress,
            timeout: usual.timeout,
            verify_every: usual.verify_every,
            remote_command: usual.remote_command,
            publish: usual.publish,
        }
    }

    /// A run with these settings, everything else as usual.
    pub fn options(self, state_dir: &Path) -> MirrorOptions {
        MirrorOptions {
            state_dir: state_dir.into(),
            ignore: self.ignore,
            cross: self.cross,
            owners: self.owners,
            on_mass_change: self.on_mass_change,
            history: self.history,
            keeping: self.keeping,
            detector: self.detector,
            bwlimit: Speed::new(self.bwlimit),
            compress: self.compress,
            timeout: self.timeout,
            verify_every: self.verify_every,
            remote_command: self.remote_command,
            publish: self.publish,
            ..MirrorOptions::new(self.source, self.dst)
        }
    }

    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("config.toml")
    }

    /// `None`: there is none.
    pub fn load(state_dir: &Path) -> Result<Option<Config>, ConfigError> {
        let path = Config::path(state_dir);
        let io = |source| ConfigError::Io {
            what: "read",
            path: path.clone(),
            source,
        };
        let mut bytes = Vec::new();
        match fs::File::open(&path) {
            Ok(file) => file
                .take(CONFIG_BYTES_MAX)
                .read_to_end(&mut bytes)
                .map_err(io)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(e)),
        };
        Config::parse(&path, &bytes).map(Some)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Config, ConfigError> {
        let line_at = |at: usize| 1 + bytes.iter().take(at).filter(|&&b| b == b'\n').count();
        let bad = |at: usize, why: String| ConfigError::Bad {
            path: path.into(),
            line: line_at(at),
            why: one_line(&why),
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|e| bad(e.valid_up_to(), "not UTF-8 text".into()))?;
        let toml_error = |e: toml::de::Error| {
            // What is missing is missing at the end, as far as anybody can say.
            let at = e
                .span()
                .filter(|s| *s != (0..text.len()))
                .map_or(text.trim_end().len(), |s| s.start);
            bad(at, e.message().to_owned())
        };
        let table: toml::Table = text.parse().map_err(toml_error)?;
        match table.get("format").and_then(toml::Value::as_integer) {
            Some(FORMAT) => {}
            Some(format) if format > FORMAT => {
                return Err(ConfigError::Newer {
                    path: path.into(),
                    format,
                });
            }
            _ => return Err(bad(0, format!("format must be there, and {FORMAT}"))),
        }
        let raw: Raw = toml::from_str(text).map_err(toml_error)?;
        let (history, keeping) = read_history(path, text)?;
        let at = |span: Range<usize>| span.start;
        let words = |e: parse::ParseError| e.0;

        let source = raw.source.span();
        let source = parse::unescape(raw.source.get_ref())
            .and_then(|text| parse::source(&text))
            .map_err(|e| bad(at(source), words(e)))?;
        let dst =
            parse::unescape(raw.dst.get_ref()).map_err(|e| bad(at(raw.dst.span()), words(e)))?;
        let ignore_at = at(raw.ignore.span());
        let spans: Vec<usize> = raw.ignore.get_ref().iter().map(|p| at(p.span())).collect();
        let ignore: Vec<String> = raw
            .ignore
            .into_inner()
            .into_iter()
            .map(Spanned::into_inner)
            .collect();
        Filter::new(&ignore).map_err(|e| {
            bad(
                spans
                    .get(e.line.saturating_sub(1))
                    .copied()
                    .unwrap_or(ignore_at),
                e.to_string(),
            )
        })?;
        let mut cross = Vec::new();
        for path in raw.cross {
            let inner =
                parse::unescape(path.get_ref()).map_err(|e| bad(at(path.span()), words(e)))?;
            let inner = PathBuf::from(inner);
            if !is_plain_relative(&inner) {
                return Err(bad(
                    at(path.span()),
                    "a cross path is relative to SRC, without . and ..".into(),
                ));
            }
            cross.push(inner);
        }
        let detector = match raw.detector.get_ref().as_str() {
            "auto" => None,
            "fanotify" => Some(Detector::Fanotify),
            "inotify" => Some(Detector::Inotify),
            "scan" => Some(Detector::Scan),
            _ => {
                return Err(bad(
                    at(raw.detector.span()),
                    "detector is auto, fanotify, inotify or scan".into(),
                ));
            }
        };
        let bwlimit = match raw.bwlimit.get_ref().as_str() {
            "none" => None,
            text => parse::rate(text).map_err(|e| bad(at(raw.bwlimit.span()), words(e)))?,
        };
        let timeout = match raw.timeout.get_ref().as_str() {
            "none" => None,
            text => Some(parse::duration(text).map_err(|e| bad(at(raw.timeout.span()), words(e)))?),
        };
        let verify_every = match &raw.verify_every {
            None => Some(VERIFY_EVERY),
            Some(text) => match text.get_ref().as_str() {
                "never" => None,
                some => Some(parse::duration(some).map_err(|e| bad(at(text.span()), words(e)))?),
            },
        };
        let remote_command = match raw.remote_command.get_ref().as_str() {
            "mirrord" => None,
            "" => {
                return Err(bad(
                    at(raw.remote_command.span()),
                    "remote_command is empty".into(),
                ));
            }
            text => Some(text.to_owned()),
        };
        let publish = match &raw.publish {
            None => None,
            Some(value) => PublishSettings::from_toml(value.get_ref())
                .map_err(|why| bad(at(value.span()), format!("publish: {why}")))?,
        };
        Ok(Config {
            source,
            dst: dst.into(),
            ignore,
            cross,
            owners: raw.owners,
            on_mass_change: raw.on_mass_change,
            history,
            keeping,
            detector,
            bwlimit,
            compress: raw.compress.unwrap_or_default(),
            timeout,
            verify_every,
            remote_command,
            publish,
        })
    }

    /// Replaces the file, durably. The caller holds the state's lock.
    pub fn save(&self, state_dir: &Path) -> Result<(), ConfigError> {
        let path = Config::path(state_dir);
        let io = |source| ConfigError::Io {
            what: "write",
            path: path.clone(),
            source,
        };
        let new = state_dir.join("config.toml.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(io)?;
        file.write_all(self.to_toml().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(io)?;
        fs::rename(&new, &path).map_err(io)?;
        fs::File::open(state_dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io)
    }

    /// The file's text, each setting as a person would write it.
    pub fn to_toml(&self) -> String {
        let mut out = String::from(
            "# What this mirror follows and how. Written by `fs_mirror mirror`; edit it while the mirror is stopped,\n\
             # then `fs_mirror config check`. In source, dst and cross a byte that is not plain text is \\xNN.\n",
        );
        out.push_str(&format!("format = {FORMAT}\n"));
        for (key, value) in self.settings() {
            out.push_str(&format!("{key} = {value}\n"));
        }
        out
    }

    /// Keys and values, as TOML, in the order of the file.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let text = |s: &str| toml::Value::String(s.to_owned()).to_string();
        let list = |items: Vec<String>| match items.len() {
            0 => "[]".to_owned(),
            1 => format!("[{}]", items.concat()),
            _ => format!("[\n    {},\n]", items.join(",\n    ")),
        };
        let word = |v: Option<Detector>| v.map_or("auto".to_owned(), |d| d.to_string());
        vec![
            ("source", text(&self.source.to_string())),
            ("dst", text(&show(&self.dst))),
            (
                "ignore",
                list(self.ignore.iter().map(|p| text(p)).collect()),
            ),
            (
                "cross",
                list(self.cross.iter().map(|p| text(&show(p))).collect()),
            ),
            (
                "owners",
                text(match self.owners {
                    Owners::Apply => "apply",
                    Owners::Record => "record",
                }),
            ),
            (
                "on_mass_change",
                text(match self.on_mass_change {
                    OnMassChange::Auto => "auto",
                    OnMassChange::Hold => "hold",
                    OnMassChange::Follow => "follow",
                }),
            ),
            (
                "history",
                self.keeping
                    .to_toml(self.history)
                    .unwrap_or_else(|| "true".into()),
            ),
            ("detector", text(&word(self.detector))),
            (
                "bwlimit",
                text(&self.bwlimit.map_or("none".into(), parse::show_rate)),
            ),
            ("compress", text(&self.compress.to_string())),
            (
                "timeout",
                text(&self.timeout.map_or("none".into(), parse::show_duration)),
            ),
            (
                "verify_every",
                text(
                    &self
                        .verify_every
                        .map_or("never".into(), parse::show_duration),
                ),
            ),
            (
                "remote_command",
                text(self.remote_command.as_deref().unwrap_or("mirrord")),
            ),
            ("publish", PublishSettings::to_toml(self.publish.as_ref())),
        ]
    }

    /// Takes over what was given; what that changed, as `(key, was, is)`.
    pub fn take(&mut self, given: Given) -> Vec<(&'static str, String, String)> {
        let before = self.settings();
        fn set<T>(to: &mut T, from: Option<T>) {
            if let Some(from) = from {
                *to = from;
            }
        }
        set(&mut self.ignore, given.ignore);
        set(&mut self.cross, given.cross);
        set(&mut self.owners, given.owners);
        set(&mut self.on_mass_change, given.on_mass_change);
        set(&mut self.history, given.history);
        set(&mut self.keeping, given.keeping);
        set(&mut self.detector, given.detector);
        set(&mut self.bwlimit, given.bwlimit);
        set(&mut self.compress, given.compress);
        set(&mut self.timeout, given.timeout);
        set(&mut self.verify_every, given.verify_every);
        set(&mut self.remote_command, given.remote_command);
        set(&mut self.publish, given.publish);
        let after = self.settings();
        before
            .into_iter()
            .zip(after)
            .filter(|((_, was), (_, is))| was != is)
            .map(|((key, was), (_, is))| (key, one_line(&was), one_line(&is)))
            .collect()
    }
}

/// The `history` key of a file that is TOML.
fn read_history(path: &Path, text: &str) -> Result<(bool, Settings), ConfigError> {
    let mut problems = settings::Problems::default();
    let table = settings::parse(Arc::new(path.to_path_buf()), text, &mut problems);
    let node = table.and_then(|mut table| table.take("history"));
    let usual = (true, Settings::default());
    let read = node.map_or(usual, |node| service::history::read(node, &mut problems));
    match problems.sorted().into_iter().next() {
        None => Ok(read),
        Some(problem) => Err(ConfigError::Bad {
            path: path.into(),
            line: problem.place.map_or(1, |place| place.line),
            why: one_line(&problem.why),
        }),
    }
}

/// Not empty, not absolute, no `.` or `..`.
pub fn is_plain_relative(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    !bytes.is_empty()
        && bytes
            .split(|&b| b == b'/')
            .all(|part| !part.is_empty() && part != b"." && part != b"..")
}

/// Line ends and indents become single blanks, anything else unprintable is escaped.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ").replace("[ ", "[").replace(", ]", "]");
    line.chars()
        .map(|c| {
            if c.is_control() {
                escape(c.to_string().as_bytes())
            } else {
                c.to_string()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn sample() -> Config {
        let mut config = Config::new(
            SourceSpec::Ssh {
                user: Some("bob".into()),
                host: "::1".into(),
                port: Some(22),
                path: b"/s\xff\\\n'\"".into(),
            },
            PathBuf::from(OsStr::from_bytes(b"/backup/w\xfeb")),
        );
        config.ignore = vec!["*.log".into(), "a\\ b\\ ".into(), "#'\"".into(), "é".into()];
        config.cross = vec![OsStr::from_bytes(b"mnt/\x01").into()];
        config.detector = Some(Detector::Inotify);
        config.bwlimit = Some(1500);
        config.compress = Compress::On;
        config.timeout = Some(Duration::from_secs(90));
        config.remote_command = Some("sudo -n mirrord".into());
        config.keeping.min_interval_ns = 0;
        config
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/c"), text.as_bytes())
    }

    #[test]
    fn what_is_saved_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::load(dir.path()).unwrap(), None);
        for config in [
            sample(),
            Config::new(SourceSpec::Local("/srv/www".into()), "/b/www".into()),
        ] {
            config.save(dir.path()).unwrap();
            assert_eq!(Config::load(dir.path()).unwrap(), Some(config));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_cut_short_anywhere_is_no_config() {
        let text = sample().to_toml();
        for end in (0..text.len() - 1).filter(|&n| text.is_char_boundary(n)) {
            let cut = &text[..end];
            assert!(
                parse(cut).is_err() || parse(cut).ok() == Some(sample()),
                "{cut}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let usual = Config::new(SourceSpec::Local("/srv/www".into()), "/b/www".into());
        let text = Config {
            owners: Owners::Apply,
            history: false,
            ..usual
        }
        .to_toml();
        let with = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            parse(&text.replace(from, to)).unwrap_err().to_string()
        };
        let table = [
            (
                with("history = false", "histroy = false"),
                "/c, line 10: unknown field `histroy`",
            ),
            (
                with("owners = \"apply\"", "owners = \"aply\""),
                "/c, line 8: unknown variant `aply`",
            ),
            (
                with("bwlimit = \"none\"", "bwlimit = \"fast\""),
                "/c, line 12: fast is not a size",
            ),
            (
                with("timeout = \"none\"", "timeout = \"\""),
                "/c, line 14: (nothing) is not a duration",
            ),
            (
                with("compress = \"auto\"", "compress = \"lz4\""),
                "/c, line 13: unknown variant `lz4`",
            ),
            (
                with("detector = \"auto\"", "detector = \"magic\""),
                "/c, line 11: detector is auto",
            ),
            (
                with("ignore = []", "ignore = [\n 'ok',\n 'a[z-a]'\n]"),
                "/c, line 8: bad ignore pattern 2 (a[z-a])",
            ),
            (
                with("cross = []", "cross = ['../x']"),
                "/c, line 7: a cross path",
            ),
            (
                with("\"/srv/www\"", "'/srv\\www'"),
                "/c, line 4: a backslash",
            ),
            (with("history = false\n", ""), "missing field `history`"),
            (with("history = false", "history = maybe"), "/c, line 10: "),
            (
                with("history = false", "history = { lock = 'of' }"),
                "/c, line 10: lock: of is no lock",
            ),
            (
                with("history = false", "history = 1"),
                "/c, line 10: history: true, false or a table",
            ),
            (
                with("format = 1", "format = 2"),
                "/c has format 2, made by a newer version",
            ),
            (
                with("format = 1", "format = 'x'"),
                "/c, line 1: format must be there, and 1",
            ),
        ];
        for (got, want) in table {
            assert!(got.contains(want), "{got}\n   instead of {want}");
            assert!(!got.contains('\n'), "{got}");
        }
        let not_text = Config::parse(Path::new("/c"), b"format = 1\n# \xff\n")
            .unwrap_err()
            .to_string();
        assert_eq!(not_text, "/c, line 2: not UTF-8 text");
    }

    #[test]
    fn given_settings_replace_saved_ones() {
        let mut config = sample();
        assert_eq!(config.take(Given::default()), vec![]);
        let given = Given {
            ignore: Some(vec!["x".into(), "y".into()]),
            bwlimit: Some(None),
            owners: Some(config.owners),
            ..Given::default()
        };
        let changes = config.take(given);
        let said: Vec<String> = changes
            .iter()
            .map(|(key, was, is)| format!("{key}: {was} -> {is}"))
            .collect();
        assert_eq!(said.len(), 2);
        assert!(
            said[0].starts_with("ignore: [\"*.log\", ") && said[0].ends_with(" -> [\"x\", \"y\"]"),
            "{}",
            said[0]
        );
        assert_eq!(said[1], "bwlimit: \"1500\" -> \"none\"");
    }
}
