//! `mirrord serve`: a process for each tree, kept running; a configuration that is read again on SIGHUP; lines for whoever
//! keeps the log. It opens no file of a tree; what comes from the network
//! ends in a process of its own ([`crate::net::door`]).

pub mod config;
mod summary;
mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::{Asked, Config, TreePath};
use trees::{Before, Tree};

use super::children::{Children, Happened, Spec};
use super::listening::Listening;
use super::notify::Notify;
use super::settings::Problem;
use crate::engine::control::{LockError, StateLock};
use crate::engine::event::RunError;
use crate::engine::session::show;
use crate::engine::status::Stamp;
use crate::engine::worker::{config as state, names};
use crate::net::Program;
use crate::sys::signal::{Signal, Signals};

/// All processes end within this: some of the five seconds are ours.
const STOP_WITHIN: Duration = Duration::from_secs(4);
/// How soon a new directory becomes a tree.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// Why a service does not begin.
pub enum NotBegun {
    /// The configuration is wrong: all that is.
    Config(Vec<Problem>),
    Run(RunError),
}

impl From<RunError> for NotBegun {
    fn from(error: RunError) -> NotBegun {
        NotBegun::Run(error)
    }
}

/// What is wrong with a configuration, paths that should be there included.
pub fn check(asked: &Asked) -> Result<(Config, PathBuf), NotBegun> {
    let (config, mut problems) = config::load(asked);
    let base = names::base(config.state.as_deref())?;
    let before = Before::read(&base);
    let (trees, _) = trees::all(&config, &base, &before);
    for tree in &config.trees {
        let path = match &tree.path {
            TreePath::One(path) => path,
            TreePath::Each(dir) => dir,
        };
        // What was served and is gone is no mistake of whoever wrote this.
        let served = trees.values().any(|known| {
            known.was_served() && (known.name == tree.name || known.path.starts_with(path))
        });
        let why = match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => continue,
            Ok(_) => format!("path: {} is not a directory", show(path)),
            Err(_) if served => continue,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                format!("path: {} does not exist", show(path))
            }
            Err(e) => format!("path: cannot look at {}: {e}", show(path)),
        };
        let place = tree.place.clone();
        problems.push(Problem { place, why });
    }
    if problems.is_empty() {
        Ok((config, base))
    } else {
        Err(NotBegun::Config(problems))
    }
}

/// What the trees are called, those that a star stands for included.
pub fn tree_names(asked: &Asked) -> Result<BTreeSet<String>, NotBegun> {
    let (config, base) = check(asked)?;
    let (trees, _) = trees::all(&config, &base, &Before::read(&base));
    Ok(trees.into_keys().collect())
}

/// Serves until SIGTERM or SIGINT. Call it from the main thread before there is another one.
pub fn serve(asked: Asked) -> Result<(), NotBegun> {
    let failed = |what: &str, e: String| RunError::Failed(anyhow::anyhow!("cannot {what}: {e}"));
    let signals = Signals::new().map_err(|e| failed("catch signals", e.to_string()))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let (config, base) = check(&asked)?;
    std::fs::create_dir_all(&base)
        .map_err(|e| failed(&format!("make {}", show(&base)), e.to_string()))?;
    let _lock = StateLock::take(&base).map_err(|e| match e {
        LockError::Busy { .. } => RunError::Busy(format!("another service runs here: {e}")),
        e => failed("begin", crate::cli::exit::chain(&e)),
    })?;
    let mut service = Service {
        asked,
        config,
        base,
        trees: BTreeMap::new(),
        told: BTreeSet::new(),
        gone: BTreeSet::new(),
        children: Children::new(STOP_WITHIN),
        listening: Listening::new(Program::Mirrord, say, None),
        notify: Notify::new(),
        summary: summary::Summary::default(),
    };
    service.run(&signals);
    Ok(())
}

struct Service {
    asked: Asked,
    config: Config,
    /// Where the states are.
    base: PathBuf,
    trees: BTreeMap<String, Tree>,
    /// What was said of directories that can't be trees.
    told: BTreeSet<String>,
    /// Trees whose directory is gone.
    gone: BTreeSet<String>,
    children: Children,
    listening: Listening,
    notify: Notify,
    summary: summary::Summary,
}

fn say(line: &str) {
    let mut err = std::io::stderr().lock();
    // The journal has the time itself.
    let _ = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => writeln!(err, "{line}"),
        None => writeln!(err, "{} {line}", Stamp::now()),
    };
}

fn said(name: &str, happened: &Happened) {
    say(&format!("{name}: {happened}"));
}

impl Service {
    fn run(&mut self, signals: &Signals) {
        say(&format!("mirrord {} serves", env!("CARGO_PKG_VERSION")));
        self.apply(true);
        self.listen();
        self.notify.ready(&self.in_short());
        let (mut looked, mut summed) = (Instant::now(), Instant::now());
        loop {
            self.children
                .wait(&[signals.as_fd()], Duration::from_millis(500));
            for (name, happened) in self.children.tick() {
                said(&name, &happened);
            }
            while let Ok(Some(signal)) = signals.take() {
                match signal {
                    Signal::Stop => return self.stop(),
                    Signal::Reload => self.reload(),
                }
            }
            self.notify.alive();
            self.listen();
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                self.apply(false);
            }
            if summed.elapsed() >= SUMMARY_EVERY {
                summed = Instant::now();
                let line = self.summary.line(self.trees.values(), &self.children);
                self.notify.status(&line);
                say(&line);
            }
        }
    }

    fn in_short(&self) -> String {
        match self.trees.len() {
            1 => "1 tree".into(),
            n => format!("{n} trees"),
        }
    }

    fn stop(&mut self) {
        self.notify.stopping();
        say("stopping");
        // Both at the same time.
        let closed = Listening::new(Program::Mirrord, say, None);
        let listening = std::mem::replace(&mut self.listening, closed);
        let door = std::thread::spawn(move || drop(listening));
        self.children
            .stop_all(&mut |name, happened| said(name, happened));
        let _ = door.join();
        say("stopped");
    }

    fn reload(&mut self) {
        self.notify.reloading();
        match check(&self.asked) {
            Ok((_, base)) if base != self.base => say(&format!(
                "state is {} now: it is taken up when the service is started again; everything stays as it was",
                show(&base)
            )),
            Ok((config, _)) => {
                say("reloading");
                self.config = config;
                self.apply(true);
            }
            Err(NotBegun::Config(problems)) => {
                for problem in &problems {
                    say(&problem.to_string());
                }
                say("the configuration is wrong: everything stays as it was");
            }
            Err(NotBegun::Run(error)) => say(&format!("cannot reload: {error}")),
        }
        self.notify.ready(&self.in_short());
    }

    /// Makes the processes those of the configuration. `all`: also if no directory came or went.
    fn apply(&mut self, all: bool) {
        let stars = |tree: &config::TreeConfig| matches!(tree.path, TreePath::Each(_));
        if !all && !self.config.trees.iter().any(stars) {
            return;
        }
        let before = Before::read(&self.base);
        let (trees, told) = trees::all(&self.config, &self.base, &before);
        let told: BTreeSet<String> = told.into_iter().collect();
        for line in told.difference(&self.told) {
            say(line);
        }
        self.told = told;
        self.tell_gone(&trees);
        if !all && trees == self.trees {
            return;
        }
        for tree in trees.values() {
            match self.trees.get(&tree.name) {
                Some(old) if old.path == tree.path => {}
                _ => say(&format!("{}: {}", tree.name, show(&tree.path))),
            }
        }
        for old in self.trees.values() {
            if !trees.contains_key(&old.name) {
                let dir = show(&old.state_dir);
                say(&format!(
                    "{}: not served any more; its state stays in {dir}",
                    old.name
                ));
            }
        }
        for left in before.left(&trees) {
            state::forget_service(&left.state_dir);
        }
        for tree in trees.values() {
            // A running process takes up what it can; what it can't makes it start again.
            let config = tree.config();
            let known = state::of_service(&tree.state_dir);
            if known.is_some_and(|known| known.service != config.service)
                && let Err(e) = config.write()
            {
                say(&format!("{}: cannot write its settings: {e}", tree.name));
            }
        }
        let places = trees
            .values()
            .map(|tree| (tree.name.clone(), tree.state_dir.clone()));
        self.listening.trees(places);
        self.children.want(trees.values().map(spec).collect());
        self.trees = trees;
    }

    fn listen(&mut self) {
        let config = &self.config;
        let user = config.user.as_deref();
        self.listening
            .tick(&config.listen, &config.connect_to, user);
    }

    fn tell_gone(&mut self, trees: &BTreeMap<String, Tree>) {
        let gone: BTreeSet<String> = trees
            .values()
            .filter(|tree| tree.found_by.is_some() && !tree.path.is_dir())
            .map(|tree| tree.name.clone())
            .collect();
        for name in gone.difference(&self.gone) {
            if let Some(tree) = trees.get(name) {
                say(&format!(
                    "{name}: {} is gone; the tree is kept (remove {} to forget it)",
                    show(&tree.path),
                    show(&tree.state_dir)
                ));
            }
        }
        for name in self.gone.difference(&gone) {
            if trees.contains_key(name) {
                say(&format!("{name}: its directory is back"));
            }
        }
        self.gone = gone;
    }
}

/// The process of a tree: the daemon that `mirrord stdio` starts, too.
fn spec(tree: &Tree) -> Spec {
    let mut spec = Spec::new(&tree.name, format!("mirrord: {}", tree.name));
    spec.args = vec!["stdio".into(), "--tree".into(), tree.path.clone().into()];
    spec.env = vec![
        (state::ENV.into(), tree.state_dir.clone().into()),
        (state::ENV_SERVICE.into(), tree.name.clone().into()),
    ];
    if tree.settings.polite.memory_bytes_max.is_some() {
        // Room that is only reserved counts, too.
        spec.env
            .push(("MIMALLOC_ARENA_EAGER_COMMIT".into(), "0".into()));
    }
    spec.settings = serde_json::to_string(&tree.settings).unwrap_or_default();
    spec.polite = tree.settings.polite;
    let tree = tree.clone();
    spec.prepare = Some(Arc::new(move || {
        if !tree.path.is_dir() {
            return Err(format!("{} is not there", show(&tree.path)));
        }
        names::make(&tree.state_dir, &tree.path).map_err(|e| e.to_string())?;
        let dir = show(&tree.state_dir);
        let written = tree.config().write();
        written.map_err(|e| format!("cannot write its settings into {dir}: {e}"))
    }));
    spec
}
