//! The configuration of `mirrord serve`: which trees, how polite, where to listen. Read whole; what is wrong with it is
//! found all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::backup::user_of;
use super::super::rate::Rates;
use super::super::settings::{self, Place, Problem, Problems, Table};
use crate::cli::config::is_plain_relative;
use crate::cli::parse;
use crate::engine::options::Detector;
use crate::engine::session::show;
use crate::engine::worker::config::LiveSettings;
use crate::engine::worker::floor::Floor;
use crate::filter::Filter;
use crate::net::PORT;
use crate::net::trust::Address;
use crate::sys::polite::{IoNice, Polite};

const KEYS: &[&str] = &["listen", "connect_to", "user", "state", "tree"];
const TREE_KEYS: &[&str] = &[
    "path",
    "ignore",
    "cross",
    "detector",
    "log_max",
    "min_free",
    "nice",
    "io_nice",
    "memory_max",
    "bwlimit",
    "compress",
];
const LOG_BYTES_MIN: u64 = 256 << 10;
/// What a tree's process needs to begin at all.
const MEMORY_BYTES_MIN: u64 = 64 << 20;

/// What `mirrord serve` was asked for on its command line.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The file; it must be there if `named`.
    pub file: Option<PathBuf>,
    pub named: bool,
    /// `NAME=/path`
    pub trees: Vec<OsString>,
    pub listen: Vec<String>,
    pub state: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Empty: nowhere.
    pub listen: Vec<SocketAddr>,
    /// Backups that can't dial us: they are dialled, and offered our trees.
    pub connect_to: Vec<Address>,
    /// Whom the network process becomes.
    pub user: Option<String>,
    pub state: Option<PathBuf>,
    pub trees: Vec<TreeConfig>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TreeConfig {
    pub name: String,
    /// `None`: named on the command line.
    pub place: Option<Place>,
    pub path: TreePath,
    pub settings: TreeSettings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreePath {
    One(PathBuf),
    /// Each directory in it is a tree.
    Each(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct TreeSettings {
    pub ignore: Vec<String>,
    /// Relative to the tree, not leaving it.
    #[serde(serialize_with = "as_text")]
    pub cross: Vec<PathBuf>,
    pub detector: Option<Detector>,
    pub log_max: Option<u64>,
    pub polite: Polite,
    /// What a running process takes up.
    #[serde(skip)]
    pub live: LiveSettings,
}

fn as_text<S: serde::Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(paths.iter().map(|path| show(path)))
}

impl TreePath {
    /// `/var/www/*`, or a path.
    fn parse(text: &str) -> Result<TreePath, String> {
        let path = PathBuf::from(parse::unescape(text).map_err(|e| e.0)?);
        if !path.is_absolute() {
            return Err(format!("{} does not begin with a slash", show(&path)));
        }
        let star =
            |part: &std::ffi::OsStr| std::os::unix::ffi::OsStrExt::as_bytes(part).contains(&b'*');
        if path.file_name().is_some_and(|last| last == "*") {
            let dir = path.parent().unwrap_or(Path::new("/")).to_path_buf();
            if !dir.iter().any(star) {
                return Ok(TreePath::Each(dir));
            }
        } else if !path.iter().any(star) {
            return Ok(TreePath::One(path));
        }
        Err("a star stands only for the whole last part, as in /var/www/*".into())
    }

    pub fn show(&self) -> String {
        match self {
            TreePath::One(path) => show(path),
            TreePath::Each(dir) => show(&dir.join("*")),
        }
    }
}

/// What was found, and what is wrong with it.
#[derive(Debug)]
pub struct Loaded {
    /// With the good trees.
    pub config: Config,
    pub problems: Vec<Problem>,
    /// Trees that are there, with mistakes.
    pub bad_trees: BTreeSet<String>,
    /// As far as they could be understood.
    bad: Vec<TreeConfig>,
    /// What is not about one tree has mistakes, or nothing is known at all.
    pub general_is_bad: bool,
}

impl Loaded {
    /// All that was understood, for whoever looks for more mistakes.
    pub fn all(self) -> Config {
        let Loaded {
            mut config, bad, ..
        } = self;
        config.trees.extend(bad);
        config
    }

    /// A tree with mistakes stays as it was, where it was.
    pub fn keep_bad(&mut self, before: &Config) {
        for old in &before.trees {
            let taken = |tree: &TreeConfig| tree.name == old.name || tree.path == old.path;
            if self.bad_trees.contains(&old.name) && !self.config.trees.iter().any(taken) {
                self.config.trees.push(old.clone());
            }
        }
    }
}

/// Reads what was asked for. What is wrong comes beside what could be understood.
pub fn load(asked: &Asked) -> Loaded {
    let mut problems = Problems::default();
    let mut bad = BTreeSet::new();
    let mut of_trees = Problems::default();
    let mut config = Config {
        listen: Vec::new(),
        connect_to: Vec::new(),
        user: None,
        state: None,
        trees: Vec::new(),
    };
    if let Some(file) = &asked.file
        && (asked.named || file.exists())
        && let Some(table) = settings::read(file, &mut problems)
    {
        for (name, table) in take(table, &mut config, &mut problems) {
            let place = table.place.clone();
            let mut mine = Problems::default();
            let settings = tree(table, &mut mine);
            if let Err(why) = check_name(&name) {
                mine = Problems::default();
                mine.add(Some(&place), why);
            } else if let Some((path, settings)) = settings {
                config.trees.push(TreeConfig {
                    name: name.clone(),
                    place: Some(place),
                    path,
                    settings,
                });
            }
            if !mine.is_empty() {
                bad.insert(name);
            }
            of_trees.extend(mine);
        }
    }
    if !asked.listen.is_empty() {
        config.listen.clear();
        for text in &asked.listen {
            match address(text) {
                Ok(address) => config.listen.push(address),
                Err(why) => problems.add(None, format!("--listen: {why}")),
            }
        }
    }
    if let Some(state) = &asked.state {
        config.state = Some(state.clone());
    }
    for text in &asked.trees {
        match named_tree(text) {
            Ok(tree) => {
                // What is said now goes before what was written down.
                config.trees.retain(|other| other.name != tree.name);
                bad.remove(&tree.name);
                config.trees.push(tree);
            }
            Err(why) => problems.add(None, format!("--tree: {why}")),
        }
    }
    let general_is_bad = !problems.is_empty();
    check_paths(&config, &mut bad, &mut of_trees);
    let (bad_ones, good) = std::mem::take(&mut config.trees)
        .into_iter()
        .partition(|tree| bad.contains(&tree.name));
    config.trees = good;
    problems.extend(of_trees);
    if problems.is_empty() && config.trees.is_empty() {
        let why = match &asked.file {
            Some(file) => format!(
                "no tree: write [tree.NAME] into {}, or give --tree NAME=/path",
                show(file)
            ),
            None => "no tree: give --tree NAME=/path".into(),
        };
        problems.add(None, why);
    }
    Loaded {
        config,
        problems: problems.sorted(),
        bad_trees: bad,
        bad: bad_ones,
        general_is_bad,
    }
}

fn named_tree(text: &OsString) -> Result<TreeConfig, String> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = text.as_bytes();
    let shown = mirror_core::escape(bytes);
    let at = bytes.iter().position(|b| *b == b'=');
    let (name, path) = at
        .and_then(|at| Some((bytes.get(..at)?, bytes.get(at + 1..)?)))
        .ok_or_else(|| format!("{shown} is not NAME=/path"))?;
    let name = std::str::from_utf8(name).map_err(|_| format!("{shown}: a name is plain text"))?;
    check_name(name)?;
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let path = std::path::absolute(path).map_err(|e| format!("{shown}: {e}"))?;
    Ok(TreeConfig {
        name: name.into(),
        place: None,
        path: TreePath::One(path),
        settings: TreeSettings::default(),
    })
}

/// As in `trusted.toml`, and not like an option or a path.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = !name.is_empty()
        && name.len() <= 255
        && name != "*"
        && !name.starts_with(['-', '.'])
        && !name.contains(|c: char| c == '/' || c == '=' || c.is_control());
    if good {
        return Ok(());
    }
    Err(format!(
        "{} can't be the name of a tree: up to 255 bytes without / and =, not beginning with - or .",
        mirror_core::escape(name.as_bytes())
    ))
}

/// `0.0.0.0:8737`, `[::]:8737`, or without the port, which then is ours.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, PORT)),
        Err(_) => Err(format!(
            "{} is no address: write 0.0.0.0:{PORT}, [::]:{PORT} or 192.0.2.7",
            mirror_core::escape(text.as_bytes())
        )),
    }
}

/// What is about no tree; those are given back.
fn take(mut table: Table, config: &mut Config, problems: &mut Problems) -> Vec<(String, Table)> {
    for (place, text) in table.texts("listen", problems).unwrap_or_default() {
        match address(&text) {
            Ok(address) => config.listen.push(address),
            Err(why) => problems.add(Some(&place), format!("listen: {why}")),
        }
    }
    for (place, text) in table.texts("connect_to", problems).unwrap_or_default() {
        match parse::host(&text) {
            Ok((host, port)) => config.connect_to.push(Address::new(&host, port)),
            Err(e) => problems.add(Some(&place), format!("connect_to: {}", e.0)),
        }
    }
    config.user = table.parsed("user", problems, |text| match user_of(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!(
            "there is no user {} here",
            mirror_core::escape(text.as_bytes())
        )),
    });
    config.state = table.parsed("state", problems, |text| {
        let path = PathBuf::from(parse::unescape(text).map_err(|e| e.0)?);
        match path.is_absolute() {
            true => Ok(path),
            false => Err(format!("{} does not begin with a slash", show(&path))),
        }
    });
    let trees = table.tables("tree", problems).into_iter().collect();
    table.end(KEYS, problems);
    trees
}

fn tree(mut table: Table, problems: &mut Problems) -> Option<(TreePath, TreeSettings)> {
    let place = table.place.clone();
    let before = problems.len();
    let path = table.parsed("path", problems, TreePath::parse);
    if path.is_none() && problems.len() == before {
        problems.add(Some(&place), "path is missing: path = \"/srv/www\"");
    }
    let ignore = table.texts("ignore", problems).unwrap_or_default();
    let patterns: Vec<String> = ignore.iter().map(|(_, text)| text.clone()).collect();
    if let Err(e) = Filter::new(&patterns) {
        let at = ignore.get(e.line.saturating_sub(1));
        problems.add(at.map(|(place, _)| place), format!("ignore: {e}"));
    }
    let mut cross = Vec::new();
    for (place, text) in table.texts("cross", problems).unwrap_or_default() {
        match parse::unescape(&text).map(PathBuf::from) {
            Ok(path) if is_plain_relative(&path) => cross.push(path),
            Ok(_) => problems.add(
                Some(&place),
                "cross: a path relative to the tree, without . and ..",
            ),
            Err(e) => problems.add(Some(&place), format!("cross: {}", e.0)),
        }
    }
    let detector = table.parsed("detector", problems, |text| match text {
        "auto" => Ok(None),
        word => <Detector as clap::ValueEnum>::from_str(word, false)
            .map(Some)
            .map_err(|_| "it is auto, fanotify, inotify or scan".into()),
    });
    let log_max = table.parsed("log_max", problems, |text| match parse::size(text) {
        Ok(bytes) if bytes < LOG_BYTES_MIN => Err("a log needs 256K at least".into()),
        other => other.map_err(|e| e.0),
    });
    let min_free = table.parsed("min_free", problems, Floor::parse);
    let nice = table.integer::<i8>("nice", -20..=19, problems);
    let io_nice = table.parsed("io_nice", problems, |text| match text {
        "idle" => Ok(IoNice::Idle),
        digit => match digit.parse::<u8>() {
            Ok(level) if level <= 7 => Ok(IoNice::BestEffort(level)),
            _ => Err("it is idle, or 0 (first) to 7 (last)".into()),
        },
    });
    let memory_max = table.parsed("memory_max", problems, |text| match parse::size(text) {
        Ok(bytes) if bytes < MEMORY_BYTES_MIN => Err("a tree's process needs 64M at least".into()),
        other => other.map_err(|e| e.0),
    });
    let bwlimit = table
        .take("bwlimit")
        .and_then(|node| Rates::read(&node, problems));
    let compress = table.parsed("compress", problems, super::super::backup::config::compress);
    table.end(TREE_KEYS, problems);
    Some((
        path?,
        TreeSettings {
            ignore: patterns,
            cross,
            detector: detector.flatten(),
            log_max,
            polite: Polite {
                nice,
                io_nice,
                memory_bytes_max: memory_max,
            },
            live: LiveSettings {
                min_free: min_free.unwrap_or_default(),
                bwlimit: bwlimit.unwrap_or_default(),
                compress: compress.unwrap_or_default(),
            },
        },
    ))
}

/// Two trees are not one directory. What is missing is for whoever knows what was there before.
fn check_paths(config: &Config, bad: &mut BTreeSet<String>, problems: &mut Problems) {
    let mut seen: BTreeMap<PathBuf, &str> = BTreeMap::new();
    for tree in &config.trees {
        let path = match &tree.path {
            TreePath::One(path) => path.clone(),
            TreePath::Each(dir) => dir.join("*"),
        };
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        if let Some(other) = seen.insert(path, &tree.name) {
            let why = format!("{} is the tree {other} already", tree.path.show());
            problems.add(tree.place.as_ref(), why);
            bad.insert(tree.name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::options::Compress;

    fn of(text: &str) -> (Config, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mirrord.toml");
        std::fs::write(&file, text).unwrap();
        let asked = Asked {
            file: Some(file.clone()),
            named: true,
            ..Asked::default()
        };
        let Loaded {
            config, problems, ..
        } = load(&asked);
        let cut = format!("{}, ", show(&file));
        let lines = problems.iter().map(|p| p.to_string().replace(&cut, ""));
        (config, lines.collect())
    }

    #[test]
    fn a_whole_configuration() {
        let (config, problems) = of(
            "listen = ['0.0.0.0:9000', '::1']\nconnect_to = 'backup:99'\nuser = 'nobody'\nstate = '/var/lib/x'\n\
             [tree.blog]\npath = '/srv/blog'\nignore = ['*.log', '!keep.log']\ncross = 'mnt'\ndetector = 'scan'\n\
             log_max = '1M'\nmin_free = '10%'\nnice = 10\nio_nice = 'idle'\nmemory_max = '1G'\nbwlimit = '5M'\n\
             compress = 'on'\n\
             [tree.sites]\npath = '/var/www/*'\nio_nice = 7\n",
        );
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.connect_to, [Address::new("backup", Some(99))]);
        assert_eq!(config.listen[1].port(), PORT);
        assert_eq!(config.trees[1].path, TreePath::Each("/var/www".into()));
        let blog = &config.trees[0].settings;
        assert_eq!((blog.cross.len(), blog.ignore.len()), (1, 2));
        assert_eq!(blog.live.min_free, Floor::Percent(10));
        assert_eq!(blog.polite.io_nice, Some(IoNice::Idle));
        assert_eq!(blog.live.bwlimit.at(0), Some(5 << 20));
        assert_eq!(blog.live.compress, Compress::On);
    }

    #[test]
    fn all_mistakes_at_once() {
        let (_, problems) = of(
            "listen = 'here'\nlissen = 1\n[tree.a]\npath = 'srv'\nnice = 20\n[tree.b]\n[tree.'c/d']\npath = '/c'\n\
             [tree.e]\npath = '/x*/y'\nignore = ['ok', '[z-a]']\ncross = ['../up']\ndetector = 'eyes'\nlog_max = '1K'\n\
             min_free = 'some'\nio_nice = 9\nmemory_max = '1M'\nbwlimit = 'fast'\n[tree.f]\npath = '/one'\n\
             [tree.g]\ncompress = 'lz4'\npath = '/one'\n",
        );
        let begins = [
            "line 1: listen: here is no address",
            "line 2: no setting is called lissen; there are listen, connect_to, user, state, tree",
            "line 4: path: srv does not begin with a slash",
            "line 5: nice is a number from -20 to 19",
            "line 6: path is missing",
            "line 7: c/d can't be the name of a tree",
            "line 10: path: a star stands only",
            "line 11: ignore: ",
            "line 12: cross: ",
            "line 13: detector: it is auto, fanotify, inotify or scan",
            "line 14: log_max: a log needs 256K at least",
            "line 15: min_free: ",
            "line 16: io_nice: ",
            "line 17: memory_max: ",
            "line 18: bwlimit: ",
            "line 21: /one is the tree f already",
            "line 22: compress: auto, on or off",
        ];
        assert_eq!(problems.len(), begins.len(), "{problems:#?}");
        for (problem, begin) in problems.iter().zip(begins) {
            assert!(problem.starts_with(begin), "{problem} / {begin}");
        }
    }

    #[test]
    fn what_the_command_line_says() {
        let asked = Asked {
            trees: vec!["a=/x".into(), "b".into(), "-c=/y".into()],
            listen: vec!["127.0.0.1:0".into()],
            ..Asked::default()
        };
        let loaded = load(&asked);
        assert_eq!(loaded.config.trees.len(), 1);
        assert_eq!(loaded.problems.len(), 2, "{loaded:?}");
        assert!(loaded.general_is_bad);
        let Loaded { problems, .. } = load(&Asked::default());
        assert!(problems[0].why.starts_with("no tree"), "{problems:?}");
    }
}
