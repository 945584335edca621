//! `mirrord serve`: a process for each tree, kept running; a configuration that is read again on SIGHUP; lines for whoever
//! keeps the log. It opens no file of a tree; what comes from the network
//! ends in a process of its own ([`crate::net::door`]).

pub mod config;
mod summary;
mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::{Asked, Config, TreePath};
use trees::{Before, Tree};

use super::backup::replace;
use super::children::{Children, Happened, Spec};
use super::elsewhere::Elsewhere;
use super::listening::Listening;
use super::log as say;
use super::notify::Notify;
use super::pulse::PATIENCE;
use super::settings::Problem;
use super::word::{Process, Service as Word, service_file};
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
const TELL_EVERY: Duration = Duration::from_secs(2);
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// Among the children; no tree is called so.
const LISTENER: &str = ".listener";
/// It beats each second, and trees go on without it after ten.
const LISTENER_PATIENCE: Duration = Duration::from_secs(60);

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

/// A configuration as it could be served now.
pub struct Plan {
    pub config: Config,
    /// Where the states are.
    pub base: PathBuf,
    trees: BTreeMap<String, Tree>,
    /// What was said of directories that can't be trees.
    told: Vec<String>,
    before: Before,
    /// Paths that should be there and are not: the others are served, and these when they are there.
    pub missing: Vec<Problem>,
    /// What is wrong with trees that are left out, or stay as they were.
    pub mistakes: Vec<Problem>,
}

/// What a configuration comes to, and what is wrong with it.
pub fn check(asked: &Asked) -> Result<Plan, NotBegun> {
    let loaded = config::load(asked);
    let base = names::base(loaded.config.state.as_deref())?;
    if loaded.problems.is_empty() {
        return Ok(plan(loaded.config, base));
    }
    let mut problems = loaded.problems.clone();
    problems.extend(plan(loaded.all(), base).missing);
    Err(NotBegun::Config(problems))
}

/// What can be served of it: trees with mistakes are as they were before, or not there. Nothing can, if what is about all of them is
/// wrong.
fn best(asked: &Asked, before: Option<&Config>) -> Result<Plan, NotBegun> {
    let mut loaded = config::load(asked);
    if let Some(before) = before {
        loaded.keep_bad(before);
    }
    if loaded.general_is_bad || loaded.config.trees.is_empty() {
        return check(asked);
    }
    let base = names::base(loaded.config.state.as_deref())?;
    let mut plan = plan(loaded.config, base);
    plan.mistakes = loaded.problems;
    Ok(plan)
}

fn plan(config: Config, base: PathBuf) -> Plan {
    let before = Before::read(&base);
    let (trees, told) = trees::all(&config, &base, &before);
    let mut missing = Vec::new();
    for tree in &config.trees {
        let path = match &tree.path {
            TreePath::One(path) => path,
            TreePath::Each(dir) => dir,
        };
        // What was served and is gone is no mistake of whoever wrote this.
        let served = || {
            trees.values().any(|known| {
                known.was_served() && (known.name == tree.name || known.path.starts_with(path))
            })
        };
        if let Some(why) = trees::missing(path)
            && !served()
        {
            let place = tree.place.clone();
            missing.push(Problem { place, why });
        }
    }
    Plan {
        config,
        base,
        trees,
        told,
        before,
        missing,
        mistakes: Vec::new(),
    }
}

/// What the trees are called, those that a star stands for included.
pub fn tree_names(asked: &Asked) -> Result<BTreeSet<String>, NotBegun> {
    Ok(check(asked)?.trees.into_keys().collect())
}

/// Serves until SIGTERM or SIGINT. Call it from the main thread before there is another one.
pub fn serve(asked: Asked) -> Result<(), NotBegun> {
    let failed = |what: &str, e: String| RunError::Failed(anyhow::anyhow!("cannot {what}: {e}"));
    let signals = Signals::new().map_err(|e| failed("catch signals", e.to_string()))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let plan = best(&asked, None)?;
    let base = plan.base.clone();
    std::fs::create_dir_all(&base)
        .map_err(|e| failed(&format!("make {}", show(&base)), e.to_string()))?;
    let _lock = StateLock::take(&base).map_err(|e| match e {
        LockError::Busy { .. } => RunError::Busy(format!("another service runs here: {e}")),
        e => failed("begin", crate::cli::exit::chain(&e)),
    })?;
    let mut service = Service {
        asked,
        config: plan.config.clone(),
        base,
        trees: BTreeMap::new(),
        told: BTreeSet::new(),
        gone: BTreeSet::new(),
        looking: Elsewhere::new(),
        read_again: false,
        mistakes: Vec::new(),
        missing: Vec::new(),
        children: Children::new(STOP_WITHIN),
        listening: Listening::new(Program::Mirrord, say, None),
        notify: Notify::new(),
        summary: summary::Summary::default(),
    };
    service.run(plan, &signals);
    Ok(())
}

/// What was looked at elsewhere.
enum Looked {
    /// The configuration was read again.
    Read(Result<Plan, NotBegun>),
    /// Only the directories.
    Dirs(Plan),
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
    looking: Elsewhere<Looked>,
    /// A reload was asked for while something was under way.
    read_again: bool,
    /// Of the configuration as last read: of trees, or of all of it, which then was not taken over.
    mistakes: Vec<String>,
    missing: Vec<Problem>,
    children: Children,
    listening: Listening,
    notify: Notify,
    summary: summary::Summary,
}

fn said(name: &str, happened: &Happened) {
    let name = match name {
        LISTENER => "the listener",
        name => name,
    };
    say(&format!("{name}: {happened}"));
}

impl Service {
    fn run(&mut self, plan: Plan, signals: &Signals) {
        say(&format!("mirrord {} serves", env!("CARGO_PKG_VERSION")));
        self.wrong(&plan);
        self.apply(plan, true);
        self.listen();
        self.notify.ready(&self.in_short());
        self.leave_word();
        let mut looked = Instant::now();
        let (mut summed, mut told) = (Instant::now(), Instant::now());
        loop {
            self.children
                .wait(&[signals.as_fd()], Duration::from_millis(500));
            for (name, happened) in self.children.tick() {
                said(&name, &happened);
            }
            while let Ok(Some(signal)) = signals.take() {
                match signal {
                    Signal::Stop => return self.stop(),
                    Signal::Reload => {
                        self.notify.reloading();
                        self.read_again = true;
                    }
                }
            }
            self.notify.alive();
            self.listen();
            if self.has_looked() {
                looked = Instant::now();
                self.leave_word();
            }
            if !self.looking.is_busy() {
                if self.read_again {
                    self.read();
                } else if looked.elapsed() >= LOOK_EVERY {
                    looked = Instant::now();
                    self.look();
                }
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.leave_word();
            }
            if summed.elapsed() >= SUMMARY_EVERY {
                summed = Instant::now();
                let line = self.summary.line(self.trees.values(), &self.children);
                self.notify.status(&line);
                say(&line);
            }
        }
    }

    /// Has the configuration read again. What hangs there holds up nobody.
    fn read(&mut self) {
        self.read_again = false;
        let (asked, before) = (self.asked.clone(), self.config.clone());
        let begun = self
            .looking
            .begin(move || Looked::Read(best(&asked, Some(&before))));
        self.begun(begun);
    }

    /// Directories come and go, and what was missing may be there.
    fn look(&mut self) {
        let stars = |tree: &config::TreeConfig| matches!(tree.path, TreePath::Each(_));
        let missing = |tree: &Tree| tree.missing.is_some();
        if !self.config.trees.iter().any(stars) && !self.trees.values().any(missing) {
            return;
        }
        let (config, base) = (self.config.clone(), self.base.clone());
        let begun = self.looking.begin(move || Looked::Dirs(plan(config, base)));
        self.begun(begun);
    }

    fn begun(&self, begun: std::io::Result<()>) {
        if let Err(e) = begun {
            say(&format!("cannot start a thread: {e}"));
        }
    }

    /// Takes over what was looked at, if that is done.
    fn has_looked(&mut self) -> bool {
        match self.looking.take() {
            Some(Looked::Read(read)) => {
                self.take_over(read);
                self.notify.ready(&self.in_short());
                true
            }
            // What was read meanwhile says it better.
            Some(Looked::Dirs(_)) if self.read_again => false,
            Some(Looked::Dirs(plan)) => {
                self.apply(plan, false);
                true
            }
            None => {
                if self.looking.hangs() {
                    let line = "the configuration, or a directory it names, does not answer: everything stays as it was until it does";
                    say(line);
                    self.mistakes = vec![line.to_owned()];
                    self.notify.ready(&self.in_short());
                }
                false
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

    fn take_over(&mut self, read: Result<Plan, NotBegun>) {
        match read {
            Ok(plan) if plan.base != self.base => say(&format!(
                "state is {} now: it is taken up when the service is started again; everything stays as it was",
                show(&plan.base)
            )),
            Ok(plan) => {
                say("reloading");
                self.wrong(&plan);
                self.config = plan.config.clone();
                self.apply(plan, true);
            }
            Err(NotBegun::Config(problems)) => {
                self.mistakes = problems.iter().map(ToString::to_string).collect();
                for problem in &self.mistakes {
                    say(problem);
                }
                say("the configuration is wrong: everything stays as it was");
            }
            Err(NotBegun::Run(error)) => say(&format!("cannot reload: {error}")),
        }
    }

    /// Says what is wrong with single trees.
    fn wrong(&mut self, plan: &Plan) {
        self.mistakes = plan.mistakes.iter().map(ToString::to_string).collect();
        for problem in &self.mistakes {
            say(problem);
        }
        if !self.mistakes.is_empty() {
            say(
                "what is wrong with a tree concerns that tree alone: it stays as it was, or is not served until it is right",
            );
        }
    }

    /// What `status` and `check` go by.
    fn leave_word(&self) {
        let trees = self.trees.values().map(|tree| {
            let view = self.children.view(&tree.name);
            Process {
                name: tree.name.clone(),
                pid: view.as_ref().and_then(|view| view.pid),
                starts: view.as_ref().map_or(0, |view| view.starts),
                waits: view.and_then(|view| view.waits),
                state: Some(show(&tree.state_dir)),
            }
        });
        let file = self.asked.file.as_deref();
        let word = Word {
            pid: std::process::id(),
            config: file.map(show).unwrap_or_default(),
            now: Stamp::now(),
            trees: trees.collect(),
            problems: self
                .mistakes
                .iter()
                .cloned()
                .chain(self.missing.iter().map(ToString::to_string))
                .chain(self.listening.problem.clone())
                .collect(),
        };
        let bytes = serde_json::to_vec(&word).unwrap_or_default();
        // Who asks finds that it grows old.
        let _ = replace(&service_file(&self.base), &bytes, 0o600);
    }

    /// Makes the processes those of the configuration. `all`: also if no directory came or went.
    fn apply(&mut self, plan: Plan, all: bool) {
        let Plan {
            trees,
            told,
            before,
            missing,
            ..
        } = plan;
        for problem in &missing {
            if !self.missing.contains(problem) {
                say(&format!(
                    "{problem}: it is served when it is there, the others are now"
                ));
            }
        }
        self.missing = missing;
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
                _ if tree.missing.is_some() => {}
                _ => say(&format!("{}: {}", tree.name, show(&tree.path))),
            }
        }
        for tree in trees.values().filter(|tree| tree.found_by.is_none()) {
            let before = self.trees.get(&tree.name).map(|old| &old.missing);
            match (&tree.missing, before) {
                (Some(problem), None | Some(None)) if !self.missing.contains(problem) => {
                    say(&format!("{}: {}: it is waited for", tree.name, problem.why))
                }
                (None, Some(Some(_))) => say(&format!("{}: its directory is there", tree.name)),
                _ => {}
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
        // One with a mistake may be anything that was there before.
        let left = before.left(&trees).filter(|_| self.mistakes.is_empty());
        for left in left {
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
        let mut specs: Vec<Spec> = trees.values().map(spec).collect();
        if trees.values().any(|tree| tree.listened) {
            specs.push(listener(&self.base));
        }
        self.children.want(specs);
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
            .filter(|tree| tree.found_by.is_some() && tree.missing.is_some())
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

/// The process that hears the kernel for all trees.
fn listener(base: &Path) -> Spec {
    let mut spec = Spec::new(LISTENER, "mirrord: listener");
    spec.env = vec![(crate::listener::ENV.into(), base.into())];
    spec.patience = Some(LISTENER_PATIENCE);
    spec
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
    spec.patience = Some(PATIENCE);
    spec.waits = tree.missing.as_ref().map(|problem| problem.why.clone());
    let tree = tree.clone();
    spec.prepare = Some(Arc::new(move || {
        names::make(&tree.state_dir, &tree.path).map_err(|e| e.to_string())?;
        let dir = show(&tree.state_dir);
        let written = tree.config().write();
        written.map_err(|e| format!("cannot write its settings into {dir}: {e}"))
    }));
    spec
}
