//! `mirrord`'s commands.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::args::{
    ForgetArgs, StdioArgs, TreeArgs, TreeCheckArgs, TreeReleaseArgs, WorkerCommand,
};
use crate::cli::check::{self, Judged, More, look_all};
use crate::cli::control::{Seen, check_line, done, exit_of, forgot, let_through, show_seen};
use crate::cli::exit::{CliError, Exit};
use crate::cli::keys;
use crate::cli::places::show;
use crate::cli::show::Health;
use crate::cli::{parse, serve_worker, ui};
use crate::engine::control::{Client, ClientError, StateLock, Stop};
use crate::engine::service::word::{Process, Service};
use crate::engine::worker::{self, StdioOptions};
use crate::net::Program;

pub fn run(command: WorkerCommand) -> Result<Exit, CliError> {
    match command {
        WorkerCommand::Serve(args) => serve_worker::serve(args),
        WorkerCommand::Stdio(args) => stdio(args),
        WorkerCommand::Status(args) => status(&args),
        WorkerCommand::Check(args) => Ok(check(&args)),
        WorkerCommand::Wait(args) => serve_worker::wait(&args),
        WorkerCommand::Log(args) => serve_worker::log(&args),
        WorkerCommand::Config(command) => serve_worker::config(command),
        WorkerCommand::Pause(args) => order(&args, "paused", Client::pause),
        WorkerCommand::Resume(args) => order(&args, "resumed", Client::resume),
        WorkerCommand::Release(args) => release(&args),
        WorkerCommand::Forget(args) => forget(&args),
        WorkerCommand::Key(command) => keys::key(Program::Mirrord, &command),
        WorkerCommand::Trust(args) => keys::trust(Program::Mirrord, &args),
        WorkerCommand::Pair(args) => keys::pair(Program::Mirrord, &args),
    }
}

fn stdio(args: StdioArgs) -> Result<Exit, CliError> {
    let stop =
        Stop::on_signals().map_err(|e| CliError::failed(format!("cannot catch signals: {e}")))?;
    worker::stdio(StdioOptions {
        tree: args.tree,
        state: args.state,
        detector: args.detector.and_then(|d| d.detector()),
        linger: args.linger,
        log_max: args.log_max,
        stop,
    })?;
    Ok(Exit::Done)
}

/// A tree that commands are about.
struct Known {
    /// Its name in the service; `None`: a login had it captured.
    name: Option<String>,
    state_dir: PathBuf,
    /// What the service says of its process.
    process: Option<Process>,
}

/// Those that commands are about, and the service that runs here.
struct All {
    trees: Vec<Known>,
    service: Option<Service>,
}

impl All {
    /// The service says which trees it has, also when the state of one is gone or was never made.
    fn find(args: &TreeArgs) -> Result<All, CliError> {
        let state = args.state.clone().or_else(serve_worker::configured_state);
        let base = worker::state_base(state.as_deref())?;
        let service = Service::running(&base);
        let mut trees = Vec::new();
        for process in service.iter().flat_map(|service| &service.trees) {
            let state_dir = process.state.as_deref().map(parse::unescape);
            if let Some(Ok(state_dir)) = state_dir {
                trees.push(Known {
                    name: Some(process.name.clone()),
                    state_dir: state_dir.into(),
                    process: Some(process.clone()),
                });
            }
        }
        for state_dir in worker::state_dirs(state.as_deref())? {
            if trees.iter().all(|known| known.state_dir != state_dir) {
                let of = worker::config::of_service(&state_dir).and_then(|config| config.service);
                trees.push(Known {
                    name: of.map(|service| service.name),
                    state_dir,
                    process: None,
                });
            }
        }
        let Some(tree) = &args.tree else {
            return Ok(All { trees, service });
        };
        let called = |known: &Known| {
            known
                .name
                .as_ref()
                .is_some_and(|name| tree.as_os_str() == name.as_str())
        };
        let path =
            fs::canonicalize(tree).unwrap_or_else(|_| tree.components().collect::<PathBuf>());
        // The one of the service may leave something out.
        let has_path = |known: &Known| {
            worker::config::of_service(&known.state_dir).is_some_and(|config| config.tree == path)
        };
        let at = trees
            .iter()
            .position(called)
            .or_else(|| trees.iter().position(has_path));
        if let Some(at) = at {
            let trees = vec![trees.swap_remove(at)];
            return Ok(All { trees, service });
        }
        let state_dir = worker::state_dir(state.as_deref(), &path)?;
        if !state_dir.is_dir() {
            return Err(CliError::usage(format!(
                "{} was never captured here, and no tree of the service is called so",
                show(&path)
            )));
        }
        let trees = vec![Known {
            name: None,
            state_dir,
            process: None,
        }];
        Ok(All { trees, service })
    }

    /// How they are, in their order.
    fn look(&self) -> Vec<Result<Seen, CliError>> {
        let dirs = self.trees.iter().map(|known| known.state_dir.clone());
        let mut all = look_all(dirs.collect());
        for (known, seen) in self.trees.iter().zip(&mut all) {
            if let (Ok(Seen::Stopped { note, .. }), Some(process)) = (seen, &known.process) {
                *note = match (&process.waits, process.pid) {
                    (Some(waits), _) => Some(format!("not running: {waits}")),
                    (None, Some(pid)) if !known.state_dir.is_dir() => Some(format!(
                        "its state {} is not there (process {pid})",
                        show(&known.state_dir)
                    )),
                    _ => note.take(),
                };
            }
        }
        all
    }
}

impl Known {
    fn shown(&self, seen: &Result<Seen, CliError>) -> String {
        let source = match seen {
            Ok(Seen::Running(status)) => Some(&status.source),
            Ok(Seen::Silent { last, .. } | Seen::Stopped { last, .. }) => {
                last.as_ref().map(|last| &last.source)
            }
            Err(_) => None,
        };
        let name = self.name.as_ref().or(source).cloned();
        name.unwrap_or_else(|| show(&self.state_dir))
    }
}

/// The state directories a command is about; a named tree that was never captured here is an error.
pub fn states(args: &TreeArgs) -> Result<Vec<PathBuf>, CliError> {
    let all = All::find(args)?.trees.into_iter();
    Ok(all.map(|known| known.state_dir).collect())
}

fn status(args: &TreeArgs) -> Result<Exit, CliError> {
    let all = All::find(args)?;
    if all.trees.is_empty() && !args.say.json && !args.say.quiet {
        ui::say("no tree was captured here yet");
    }
    for (known, seen) in all.trees.iter().zip(all.look()) {
        match (seen?, &known.name) {
            // It has no state that would say so.
            (seen @ Seen::Stopped { last: None, .. }, Some(name)) if !args.say.json => {
                let Seen::Stopped { note, .. } = seen else {
                    continue;
                };
                ui::say(&format!(
                    "{name}: {}",
                    note.as_deref().unwrap_or("not running")
                ));
            }
            (seen, _) => ui::say(show_seen(&seen, &known.state_dir, args.say).trim_end()),
        }
    }
    Ok(Exit::Done)
}

/// The worst tree decides.
fn check(args: &TreeCheckArgs) -> Exit {
    let (say, max_lag) = (args.trees.say, args.limits.max_lag);
    let mut all = match All::find(&args.trees) {
        Ok(all) => all,
        Err(e) => {
            ui::say(&check_line(Health::Unknown, &e.line, say));
            return exit_of(Health::Unknown);
        }
    };
    let one = args.trees.tree.is_some();
    if !one && all.service.is_some() {
        // What a login once had captured, or is served no more, is nobody's concern unless it runs.
        let runs = |dir: &Path| matches!(StateLock::holder(dir), Ok(Some(_)));
        all.trees
            .retain(|known| known.process.is_some() || runs(&known.state_dir));
    }
    if all.trees.is_empty() {
        ui::say(&check_line(
            Health::Unknown,
            "no tree was captured here yet",
            say,
        ));
        return exit_of(Health::Unknown);
    }
    let seen = all.look();
    let mut more = More::of(all.service.as_ref());
    if let Some(service) = all.service.as_ref().filter(|_| !one) {
        let listen = |problem: &String| problem.starts_with("cannot listen");
        let problems = service.problems.iter().cloned();
        (more.warnings, more.mistakes) = problems.partition(listen);
    }
    let known = all.trees.iter().zip(seen);
    let mut judged: Vec<Judged> = known
        .map(|(known, seen)| Judged::new(known.shown(&seen), seen, max_lag))
        .collect();
    match judged.as_mut_slice() {
        [only] if more.is_empty() => {
            ui::say(&check_line(only.health, &only.line, say));
            exit_of(only.health)
        }
        _ => check::say(&judged, &more, say),
    }
}

/// Asks the processes of the trees that a command is about; of all trees only those that run are meant.
fn each_running(
    args: &TreeArgs,
    mut ask: impl FnMut(&mut Client) -> Result<(), CliError>,
) -> Result<(), CliError> {
    for state_dir in states(args)? {
        match Client::connect(&state_dir) {
            Ok(mut client) => ask(&mut client)?,
            Err(ClientError::NotRunning) if args.tree.is_none() => {}
            Err(e) => return Err(named(&state_dir, e)),
        }
    }
    Ok(())
}

fn order(
    args: &TreeArgs,
    word: &str,
    give: impl Fn(&mut Client) -> Result<(), ClientError>,
) -> Result<Exit, CliError> {
    each_running(args, |client| Ok(give(client)?))?;
    done(word, args.say)
}

/// The last tree that can't be released decides.
fn release(args: &TreeReleaseArgs) -> Result<Exit, CliError> {
    let mut worst = Exit::Done;
    each_running(&args.trees, |client| {
        let done = let_through(client, args.yes, args.trees.say)?;
        if done != Exit::Done {
            worst = done;
        }
        Ok(())
    })?;
    Ok(worst)
}

/// The replicas of a key that is not trusted any more, as far as the trees' processes can be asked.
pub fn forget_key(name: &str) {
    let state = serve_worker::configured_state();
    for state_dir in worker::state_dirs(state.as_deref()).unwrap_or_default() {
        if let Ok(mut client) = Client::connect(&state_dir) {
            let _ = client.forget(name);
        }
    }
}

fn forget(args: &ForgetArgs) -> Result<Exit, CliError> {
    let mut forgotten = Vec::new();
    each_running(&args.trees, |client| {
        forgotten.extend(client.forget(&args.replica)?);
        Ok(())
    })?;
    forgotten.sort();
    forgotten.dedup();
    forgot(&args.replica, &forgotten, "mirrord", args.trees.say)
}

pub fn named(state_dir: &Path, e: ClientError) -> CliError {
    let error = CliError::from(e);
    CliError::new(error.exit, format!("{}: {}", show(state_dir), error.line))
}
