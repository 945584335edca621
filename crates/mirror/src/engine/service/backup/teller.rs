//! The thread of the service that looks at all trees every few seconds, and tells: the summary, alarms, the textfile, the
//! dead-man URL, and `service.json` for other commands. It may hang on a slow disk without holding up any tree.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::alarms::{Alarms, Teller, file};
use super::config::{General, Tree};
use super::replace;
use super::supervisor::log;
use super::textfile::metrics;
use super::watch::{Seen, summary};
use crate::cli::show::Health;
use crate::engine::control::{HEARTBEAT_MAX, Stop};
use crate::engine::service::children::View;
use crate::engine::service::word::{Process, Service, service_file};
use crate::engine::session::show;
use crate::engine::status::Stamp;
use crate::sync::lock;

const LOOK_EVERY: Duration = Duration::from_secs(2);
const TEXTFILE_EVERY: Duration = Duration::from_secs(15);
const MINUTE: Duration = Duration::from_secs(60);

/// What is to be looked at.
#[derive(Clone)]
pub struct Now {
    pub general: General,
    /// And since when its process runs.
    pub trees: Vec<(Tree, Option<View>, Stamp)>,
    pub problems: Vec<String>,
    pub config: PathBuf,
    /// When the loop that keeps the processes was here.
    pub at: Stamp,
}

pub struct Telling {
    stop: Stop,
    thread: JoinHandle<()>,
}

impl Telling {
    pub fn start(state: PathBuf, now: Arc<Mutex<Now>>, quiet: bool) -> std::io::Result<Telling> {
        let stop = Stop::new();
        let asked = stop.clone();
        let thread = std::thread::Builder::new()
            .name("telling".into())
            .spawn(move || {
                let mut loops = Loop::new(state, quiet);
                loop {
                    let now = lock(&now).clone();
                    loops.look(&now);
                    if asked.wait(LOOK_EVERY) {
                        break;
                    }
                }
                loops.end();
            })?;
        Ok(Telling { stop, thread })
    }

    /// Ends it; one that hangs on a disk is left behind.
    pub fn stop(self) {
        const WITHIN: Duration = Duration::from_millis(500);
        self.stop.request();
        let until = Instant::now() + WITHIN;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Loop {
    state: PathBuf,
    quiet: bool,
    alarms: Alarms,
    teller: Option<Teller>,
    textfile_at: Option<Instant>,
    /// As last written there: it is written at once when one changes.
    states: Vec<(String, &'static str)>,
    summary_at: Instant,
    deadman_at: Option<Instant>,
    /// A call goes on.
    calling: Arc<AtomicBool>,
    /// What could not be written, so that it is told once.
    complained: Option<String>,
}

impl Loop {
    fn new(state: PathBuf, quiet: bool) -> Loop {
        Loop {
            alarms: Alarms::load(&file(&state)),
            state,
            quiet,
            teller: None,
            textfile_at: None,
            states: Vec::new(),
            summary_at: Instant::now(),
            deadman_at: None,
            calling: Arc::default(),
            complained: None,
        }
    }

    fn look(&mut self, now: &Now) {
        let all: Vec<Seen> = now
            .trees
            .iter()
            .map(|(tree, view, since)| Seen::look(tree, view.clone(), *since))
            .collect();
        let mut wrong = self.leave_word(&all, now).err();
        self.tell(&all, now);
        let states: Vec<(String, &'static str)> = all
            .iter()
            .map(|seen| (seen.name.clone(), seen.state()))
            .collect();
        let due = |at: Option<Instant>, every: Duration| at.is_none_or(|at| at.elapsed() >= every);
        if let Some(path) = &now.general.textfile
            && (due(self.textfile_at, TEXTFILE_EVERY) || self.states != states)
        {
            self.states = states;
            self.textfile_at = Some(Instant::now());
            let text = metrics(&all, Stamp::now());
            let written = replace(path, text.as_bytes(), 0o644);
            wrong = wrong.or(written.err().map(|e| cannot_write(path, &e)));
        }
        if wrong.is_some() && wrong != self.complained {
            log(wrong.as_deref().unwrap_or_default());
        }
        self.complained = wrong;
        if self.summary_at.elapsed() >= MINUTE {
            self.summary_at = Instant::now();
            if !self.quiet {
                log(&summary(&all));
            }
        }
        let max_lag = now.general.max_lag();
        let goes_round = now.at.seconds_until(Stamp::now()) < HEARTBEAT_MAX.as_secs_f64();
        if let Some(url) = &now.general.deadman
            && goes_round
            && due(self.deadman_at, MINUTE)
            && all
                .iter()
                .all(|seen| seen.health(max_lag).0 < Health::Critical)
            && !self.calling.swap(true, Ordering::AcqRel)
        {
            self.deadman_at = Some(Instant::now());
            let (url, calling) = (url.clone(), self.calling.clone());
            let started = std::thread::Builder::new()
                .name("deadman".into())
                .spawn(move || {
                    if let Err(why) = url.get() {
                        log(&format!("dead-man address: {why}"));
                    }
                    calling.store(false, Ordering::Release);
                });
            if started.is_err() {
                self.calling.store(false, Ordering::Release);
            }
        }
    }

    fn tell(&mut self, all: &[Seen], now: &Now) {
        let Some(run) = &now.general.on_alarm else {
            return;
        };
        if self.teller.is_none() {
            self.teller = Teller::start(Arc::new(|line| log(&line))).ok();
        }
        let Some(teller) = &self.teller else { return };
        self.alarms
            .look(all, Stamp::now(), &mut |alarm| teller.tell(run, alarm));
        if let Err(e) = self.alarms.save(&file(&self.state)) {
            log(&cannot_write(&file(&self.state), &e));
        }
    }

    fn leave_word(&self, all: &[Seen], now: &Now) -> Result<(), String> {
        let trees = all.iter().map(|seen| Process {
            name: seen.name.clone(),
            pid: seen.pid,
            starts: seen.starts,
            waits: seen.waits.clone(),
            state: None,
        });
        let service = Service {
            pid: std::process::id(),
            config: show(&now.config),
            // Not our own heartbeat: we go on while the loop that keeps the processes hangs.
            now: now.at,
            trees: trees.collect(),
            problems: now.problems.clone(),
        };
        let path = service_file(&self.state);
        let bytes = serde_json::to_vec(&service).unwrap_or_default();
        replace(&path, &bytes, 0o600).map_err(|e| cannot_write(&path, &e))
    }

    fn end(self) {
        if let Some(teller) = self.teller {
            teller.stop();
        }
    }
}

fn cannot_write(path: &Path, e: &std::io::Error) -> String {
    format!("cannot write {}: {e}", show(path))
}
