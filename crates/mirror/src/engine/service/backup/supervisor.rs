//! The service's own process: it starts a process a tree, hands each its settings, follows the configuration when it is
//! told to, and tells how all of them are. It opens no tree and no connection.
//!
//! A tree's process reads its settings from a file of ours, so that a configuration that is being edited, or is broken,
//! never reaches it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::DirBuilder;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Kill, kill_process};

use super::super::elsewhere::Elsewhere;
use super::super::listening::Listening;
use super::config::{General, Tree};
use super::load::{Loaded, Placed, conf_d, load};
use super::offers::{Asking, Offers};
use super::replace;
use super::teller::{Now, Telling};
use crate::cli::parse;
use crate::cli::text::counted;
use crate::engine::control::StateLock;
use crate::engine::options::SourceSpec;
use crate::engine::service::children::{Children, Happened, Spec};
use crate::engine::service::notify::Notify;
use crate::engine::service::pulse::PATIENCE;
use crate::engine::service::settings::Problem;
use crate::engine::session::show;
use crate::engine::status::Stamp;
use crate::net::Program;
use crate::net::door::OFFERED_AT;
use crate::sync::lock;
use crate::sys::signal::{Signal, Signals};

/// All in all five seconds from SIGTERM to the end.
const STOP_WITHIN: Duration = Duration::from_secs(4);
/// Who ran for so long and ends has something new to say.
const STEADY: Duration = Duration::from_secs(60);
/// Lines of a tree's process that are remembered, so that one that fails again and again says it once.
const LINES_MAX: usize = 100;

pub struct Setup {
    pub file: PathBuf,
    pub loaded: Loaded,
    /// The service's own state, ours alone.
    pub state: PathBuf,
    pub lock: StateLock,
    pub signals: Signals,
    pub quiet: bool,
}

/// What a tree's process said, and how it was started last.
#[derive(Default)]
struct Said {
    lines: BTreeSet<String>,
    before: BTreeSet<String>,
    how: Option<String>,
    /// What it said last.
    last: Option<String>,
    started: Option<(Instant, Stamp)>,
}

struct Supervisor {
    file: PathBuf,
    state: PathBuf,
    quiet: bool,
    children: Children,
    general: General,
    /// As configured.
    asked: BTreeMap<String, Placed>,
    /// With those that patterns stand for.
    trees: BTreeMap<String, Placed>,
    asking: Asking,
    offers: Offers,
    problems: Vec<String>,
    reading: Elsewhere<Loaded>,
    /// It was changed while it was being read.
    read_again: bool,
    said: HashMap<String, Said>,
    listening: Listening,
}

pub use crate::engine::service::log;

/// Where a tree's process finds its settings.
pub fn settings_file(state: &Path, name: &str) -> PathBuf {
    state.join("trees").join(format!("{name}.toml"))
}

/// Where a tree's process gets a connection that its source's host dialed.
fn offers_socket(state: &Path) -> PathBuf {
    state.join("offers.sock")
}

/// Runs until it is told to stop.
pub fn run(setup: Setup) -> Result<(), String> {
    let trees = setup.state.join("trees");
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&trees)
        .map_err(|e| format!("cannot make {}: {e}", show(&trees)))?;
    let asking =
        Asking::start(&setup.state, log).map_err(|e| format!("cannot start a thread: {e}"))?;
    let mut service = Supervisor {
        file: setup.file,
        state: setup.state.clone(),
        quiet: setup.quiet,
        children: Children::new(STOP_WITHIN),
        general: setup.loaded.general,
        asked: setup.loaded.trees,
        trees: BTreeMap::new(),
        asking,
        offers: Offers::load(&setup.state),
        problems: told(&setup.loaded.problems),
        reading: Elsewhere::new(),
        read_again: false,
        said: HashMap::new(),
        listening: Listening::new(Program::FsMirror, log, Some(offers_socket(&setup.state))),
    };
    let now = Arc::new(Mutex::new(service.now()));
    let telling = Telling::start(setup.state, now.clone(), setup.quiet)
        .map_err(|e| format!("cannot start a thread: {e}"))?;
    if !service.problems.is_empty() {
        log(
            "what is wrong with a tree or a file concerns it alone: it is not followed until it is right",
        );
    }
    service.want();
    let mut notify = Notify::new();
    service.listen();
    if !service.quiet {
        log(&format!("serving {}", service.in_short()));
    }
    notify.ready(&service.in_short());
    loop {
        notify.alive();
        let at_most = Duration::from_millis(500);
        service.children.wait(&[setup.signals.as_fd()], at_most);
        for (name, happened) in service.children.tick() {
            service.happened(&name, happened);
        }
        let mut stop = false;
        while let Ok(Some(signal)) = setup.signals.take() {
            match signal {
                Signal::Stop => stop = true,
                Signal::Reload => {
                    notify.reloading();
                    service.read();
                }
            }
        }
        if stop {
            break;
        }
        if service.has_read() {
            notify.ready(&service.in_short());
        }
        service.listen();
        service.offered();
        *lock(&now) = service.now();
    }
    notify.stopping();
    if !service.quiet {
        log("stopping");
    }
    // Both at the same time.
    let closed = Listening::new(Program::FsMirror, log, None);
    let listening = std::mem::replace(&mut service.listening, closed);
    let door = std::thread::spawn(move || drop(listening));
    let Supervisor {
        children, quiet, ..
    } = &mut service;
    children.stop_all(&mut |name, happened| match happened {
        Happened::Stopped { killed: false, .. } => {}
        Happened::Said(_) if *quiet => {}
        other => log(&format!("{name}: {other}")),
    });
    service.asking.stop();
    let _ = door.join();
    telling.stop();
    drop(setup.lock);
    Ok(())
}

/// Said, and as lines.
fn told(problems: &[Problem]) -> Vec<String> {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    for line in &lines {
        log(line);
    }
    lines
}

impl Supervisor {
    fn in_short(&self) -> String {
        counted(self.trees.len() as u64, "tree", "trees")
    }

    fn now(&self) -> Now {
        let trees = self.trees.values().map(|placed| {
            let name = &placed.tree.name;
            let said = self.said.get(name);
            let since = said.and_then(|said| said.started);
            let since = since.map_or_else(Stamp::now, |(_, at)| at);
            let mut view = self.children.view(name);
            // Why it ended says more than how.
            if let Some(waits) = view.as_mut().and_then(|view| view.waits.as_mut())
                && let Some(last) = said.and_then(|said| said.last.as_deref())
            {
                let last = last.strip_prefix("fs_mirror: ").unwrap_or(last);
                *waits = format!("{waits}: {last}");
            }
            (placed.tree.clone(), view, since)
        });
        Now {
            general: self.general.clone(),
            trees: trees.collect(),
            problems: self
                .problems
                .iter()
                .chain(&self.listening.problem)
                .cloned()
                .chain(self.offers.odd(&self.asked))
                .collect(),
            config: self.file.clone(),
            at: Stamp::now(),
        }
    }

    /// These trees, and no others, with settings where their processes look for them.
    fn want(&mut self) {
        self.trees = self.offers.expand(&self.asked);
        self.asking.want(&self.asked);
        let mut specs = Vec::new();
        for placed in self.trees.values() {
            let tree = &placed.tree;
            let file = settings_file(&self.state, &tree.name);
            if let Err(e) = replace(&file, tree.to_string().as_bytes(), 0o600) {
                log(&format!("{}: cannot write {}: {e}", tree.name, show(&file)));
                continue;
            }
            let many = !self.asked.contains_key(&tree.name);
            if let Some(dir) = tree.dst.parent().filter(|dir| many && !dir.exists())
                && let Err(e) = std::fs::create_dir(dir)
            {
                log(&format!("{}: cannot make {}: {e}", tree.name, show(dir)));
            }
            specs.push(self.spec(tree));
        }
        // A tree of this host itself has no log that others could follow.
        let local = |tree: &Tree| matches!(parse::source(&tree.source), Ok(SourceSpec::Local(_)));
        let places = self.trees.values().map(|placed| &placed.tree);
        let places = places.filter(|tree| !local(tree));
        self.listening
            .trees(places.map(|tree| (tree.name.clone(), tree.state_dir())));
        self.children.want(specs);
    }

    fn listen(&mut self) {
        let General { listen, user, .. } = &self.general;
        self.listening.tick(listen, &[], user.as_deref());
    }

    fn spec(&self, tree: &Tree) -> Spec {
        let file = settings_file(&self.state, &tree.name);
        Spec {
            args: vec![
                "serve-tree".into(),
                (&tree.name).into(),
                "--settings".into(),
                file.into(),
            ],
            settings: tree.fixed().to_string(),
            env: if tree.accept {
                vec![(OFFERED_AT.into(), offers_socket(&self.state).into())]
            } else {
                Vec::new()
            },
            polite: tree.polite,
            patience: Some(PATIENCE),
            ..Spec::new(tree.name.clone(), "fs_mirror")
        }
    }

    fn happened(&mut self, name: &str, happened: Happened) {
        let said = self.said.entry(name.to_owned()).or_default();
        let line = happened.to_string();
        let worth = match &happened {
            Happened::Started { .. } => {
                let first = said.started.is_none();
                said.started = Some((Instant::now(), Stamp::now()));
                said.last = None;
                said.before = std::mem::take(&mut said.lines);
                first || said.how.is_none()
            }
            Happened::Said(line) => {
                said.last = Some(line.clone());
                if said.lines.len() < LINES_MAX {
                    said.lines.insert(line.clone());
                }
                !said.before.contains(line)
            }
            Happened::Ended { how, .. } | Happened::NotStarted { why: how, .. } => {
                let steady = said.started.is_some_and(|(at, _)| at.elapsed() >= STEADY);
                let new = steady || said.how.as_deref() != Some(how);
                said.how = Some(how.clone());
                if steady {
                    said.lines.clear();
                }
                new
            }
            Happened::Hangs { .. } => true,
            Happened::Stopped { killed, .. } => {
                said.lines.clear();
                said.how = None;
                *killed || !self.trees.contains_key(name)
            }
        };
        if worth && !self.quiet {
            log(&format!("{name}: {line}"));
        }
        if !self.trees.contains_key(name) && self.children.view(name).is_none() {
            self.said.remove(name);
        }
    }

    /// What hosts offer is not what it was.
    fn offered(&mut self) {
        let offers = self.asking.offers();
        if offers != self.offers {
            self.offers = offers;
            self.want();
        }
    }

    /// Has the configuration read again: what hangs there holds up nobody.
    fn read(&mut self) {
        if self.reading.is_busy() {
            self.read_again = true;
            return;
        }
        self.read_again = false;
        let file = self.file.clone();
        if let Err(e) = self.reading.begin(move || load(&file)) {
            log(&format!("cannot start a thread: {e}"));
        }
    }

    /// True: what was asked for is done, or will not be soon.
    fn has_read(&mut self) -> bool {
        if let Some(loaded) = self.reading.take() {
            self.take_over(loaded);
            if self.read_again {
                self.read();
            }
            return !self.reading.is_busy();
        }
        if self.reading.hangs() {
            let line = format!(
                "{} or a file of {} does not answer: everything stays as it was until it does",
                show(&self.file),
                show(&conf_d(&self.file))
            );
            log(&line);
            self.problems = vec![line];
            return true;
        }
        false
    }

    /// Takes over what is right of the configuration; what is wrong stays as it was.
    fn take_over(&mut self, loaded: Loaded) {
        self.problems = told(&loaded.problems);
        if !loaded.general_is_bad && loaded.bad_files.is_empty() {
            if self.general.state != loaded.general.state {
                log("state is taken over when the service is started again");
            }
            self.general = loaded.general;
        }
        let mut after = loaded.trees;
        for (name, placed) in &self.asked {
            let unknown =
                loaded.bad_trees.contains(name) || loaded.bad_files.contains(&*placed.place.file);
            if unknown && !after.contains_key(name) {
                log(&format!("{name}: goes on with its settings of before"));
                after.insert(name.clone(), placed.clone());
            }
        }
        self.asked = after;
        let before = std::mem::take(&mut self.trees);
        self.want();
        self.asking.ask_soon();
        let mut live = Vec::new();
        let (mut added, mut changed) = (0, 0);
        for (name, placed) in &self.trees {
            match before.get(name) {
                None => added += 1,
                Some(old) if old.tree == placed.tree => {}
                Some(old) => {
                    changed += 1;
                    if old.tree.fixed() == placed.tree.fixed() {
                        live.push(name.clone());
                    }
                }
            }
        }
        let removed: Vec<&String> = before
            .keys()
            .filter(|name| !self.trees.contains_key(*name))
            .collect();
        for name in &removed {
            let dst = before.get(*name).map(|placed| show(&placed.tree.dst));
            log(&format!(
                "{name}: followed no more; {} stays",
                dst.unwrap_or_default()
            ));
        }
        log(&format!(
            "configuration read again: {added} added, {changed} changed, {} removed, {} wrong",
            removed.len(),
            self.problems.len()
        ));
        for name in live {
            let pid = self.children.view(&name).and_then(|view| view.pid);
            // Not waited for yet, so the number is still its own.
            if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid as i32)) {
                let _ = kill_process(pid, Kill::HUP);
            }
        }
    }
}
