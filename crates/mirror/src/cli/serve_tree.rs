//! One tree of the service, in a process of its own: a mirror as `fs_mirror mirror` runs it, with settings from a file that
//! the service wrote. SIGHUP reads from it what can change meanwhile: limits, rates, hooks.

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::cli::args::{DetectorChoice, MirrorArgs, Rate, Say, ServeTreeArgs};
use crate::cli::exit::{self, CliError, Exit};
use crate::cli::mirror::prepare;
use crate::cli::screen::{Out, Screen};
use crate::engine::applying::limits::Bounds;
use crate::engine::control::Stop;
use crate::engine::event::{Event, RunEnd, Ui};
use crate::engine::options::{Detector, Output, Speed};
use crate::engine::service::backup::config::Tree;
use crate::engine::service::backup::hooks::Hooks;
use crate::engine::service::backup::load::one;
use crate::engine::service::pulse;
use crate::engine::status::Stamp;
use crate::sync::lock;
use crate::sys::signal::{Signal, Signals};

/// How soon a rate that depends on the time of day is taken over.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub fn run(args: &ServeTreeArgs) -> Result<Exit, CliError> {
    // Before any thread is started.
    let signals =
        Signals::new().map_err(|e| CliError::failed(format!("cannot catch signals: {e}")))?;
    pulse::begin();
    let mut tree = one(&args.settings, &args.name).map_err(CliError::usage)?;
    let stop = Stop::new();
    let log = Arc::new(Log::new());
    let bounds = Arc::new(Bounds::new(tree.limits));
    let speed = Speed::new(tree.bwlimit.now());
    let lines = log.clone();
    let hooks = Arc::new(Hooks::new(
        &tree,
        Arc::new(move |line| lines.event(Event::Notice(line))),
    ));
    hooks.set(&tree.hooks);
    let mirror = {
        let (tree, stop, log) = (tree.clone(), stop.clone(), log.clone());
        let (bounds, speed, hooks) = (bounds.clone(), speed.clone(), hooks.clone());
        std::thread::Builder::new()
            .name("tree".into())
            .spawn(move || -> Result<RunEnd, CliError> {
                let mut prepared = prepare(&mirror_args(&tree), Output::default())?;
                for line in std::mem::take(&mut prepared.notices) {
                    log.event(Event::Notice(line));
                }
                let mut options = prepared.options;
                options.stop = stop;
                options.patient = true;
                options.bounds = bounds;
                options.bwlimit = speed;
                options.told = Some(hooks);
                Ok(crate::engine::run_mirror(options, log)?)
            })
            .map_err(|e| CliError::failed(format!("cannot start a thread: {e}")))?
    };
    while !mirror.is_finished() {
        let mut fds = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(LOOK_EVERY.subsec_nanos()),
        };
        // Its end is seen soon.
        let _ = poll(&mut fds, Some(&timeout));
        while let Ok(Some(signal)) = signals.take() {
            match signal {
                Signal::Stop => stop.request(),
                Signal::Reload => match one(&args.settings, &args.name) {
                    Ok(new) => {
                        bounds.set(new.limits);
                        hooks.set(&new.hooks);
                        tree = new;
                        log.event(Event::Notice(
                            "limits, rates and hooks are read again".into(),
                        ));
                    }
                    Err(why) => log.event(Event::Notice(why)),
                },
            }
        }
        let now = tree.bwlimit.now();
        if now != speed.get() {
            speed.set(now);
            let rate = now.map_or("without limit".into(), |rate| {
                format!("{}/s", crate::cli::text::bytes(rate))
            });
            log.event(Event::Notice(format!("bwlimit is now {rate}")));
        }
    }
    hooks.stop();
    let end = mirror
        .join()
        .unwrap_or_else(|_| Err(CliError::failed("its thread broke off")))?;
    Ok(exit::of_run(&end, false))
}

/// As if a person had typed all of it.
fn mirror_args(tree: &Tree) -> MirrorArgs {
    let or_none = |list: &[String]| match list {
        [] => vec![String::new()],
        list => list.to_vec(),
    };
    let cross = match tree.cross.as_slice() {
        [] => vec!["".into()],
        list => list.to_vec(),
    };
    MirrorArgs {
        source: tree.source.clone(),
        dst: tree.dst.clone(),
        once: false,
        dry_run: false,
        adopt: false,
        // Who edits the configuration means it.
        repoint: true,
        yes: false,
        ignore: or_none(&tree.ignore),
        cross,
        no_history: !tree.history,
        history: tree.history,
        keeping: Some(Box::new(tree.keeping.clone())),
        owners: Some(tree.owners),
        on_mass_change: Some(tree.on_mass_change),
        state: tree.state.clone(),
        detector: Some(match tree.detector {
            None => DetectorChoice::Auto,
            Some(Detector::Fanotify) => DetectorChoice::Fanotify,
            Some(Detector::Inotify) => DetectorChoice::Inotify,
            Some(Detector::Scan) => DetectorChoice::Scan,
        }),
        // By time of day: it is set while it runs.
        bwlimit: Some(Rate(tree.bwlimit.fixed_rate())),
        compress: Some(tree.compress),
        timeout: Some(tree.timeout.unwrap_or_default()),
        verify_every: Some(tree.verify_every.unwrap_or_default()),
        remote_command: Some(tree.remote_command.clone().unwrap_or_default()),
        publish: Some(tree.publish.clone()),
        say: Say::default(),
    }
}

/// Lines for the service's log: what is worth one, and nothing twice.
struct Log {
    screen: Mutex<Screen>,
    start: Instant,
    /// Why there is no connection, as told.
    lost: Mutex<Option<String>>,
}

impl Log {
    fn new() -> Log {
        Log {
            screen: Mutex::new(Screen::new(Output::default(), false, TimeZone::system())),
            start: Instant::now(),
            lost: Mutex::default(),
        }
    }

    fn is_known(&self, event: &Event) -> bool {
        let mut lost = lock(&self.lost);
        match event {
            Event::Disconnected { reason, .. } => {
                lost.replace(reason.clone()).as_ref() == Some(reason)
            }
            Event::Connected { .. } => {
                *lost = None;
                false
            }
            _ => false,
        }
    }
}

impl Ui for Log {
    fn event(&self, event: Event) {
        if matches!(event, Event::Progress(_) | Event::Live { .. }) || self.is_known(&event) {
            return;
        }
        let mut screen = lock(&self.screen);
        let lines = screen.event(event, self.start.elapsed(), Stamp::now(), usize::MAX);
        // Written under the lock, so that lines come in order.
        let mut err = std::io::stderr().lock();
        for line in lines {
            if let Out::Stderr(line) | Out::Stdout(line) = line {
                let _ = writeln!(err, "{line}");
            }
        }
    }

    fn ask(&self, _: &str) -> bool {
        false
    }
}
