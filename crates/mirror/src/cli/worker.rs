//! `mirrord`'s commands.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::args::{StdioArgs, TreeArgs, TreeCheckArgs, WorkerCommand};
use crate::cli::control::{check_line, done, exit_of, judge, look, show_seen};
use crate::cli::exit::{CliError, Exit};
use crate::cli::keys;
use crate::cli::places::show;
use crate::cli::show::Health;
use crate::cli::{serve_worker, ui};
use crate::engine::control::{Client, ClientError, Stop};
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

/// The state directories a command is about; a named tree that was never captured here is an error.
pub fn states(args: &TreeArgs) -> Result<Vec<PathBuf>, CliError> {
    let state = args.state.clone().or_else(serve_worker::configured_state);
    let all = worker::state_dirs(state.as_deref());
    let Some(tree) = &args.tree else {
        return Ok(all?);
    };
    let is_called = |state_dir: &PathBuf| {
        let service = worker::config::of_service(state_dir).and_then(|config| config.service);
        service.is_some_and(|service| tree.as_os_str() == service.name.as_str())
    };
    if let Some(state_dir) = all?.into_iter().find(is_called) {
        return Ok(vec![state_dir]);
    }
    let tree = fs::canonicalize(tree).unwrap_or_else(|_| tree.components().collect::<PathBuf>());
    // The one of the service may leave something out.
    let of_service = worker::state_dirs(state.as_deref())?
        .into_iter()
        .find(|dir| worker::config::of_service(dir).is_some_and(|config| config.tree == tree));
    if let Some(state_dir) = of_service {
        return Ok(vec![state_dir]);
    }
    let state_dir = worker::state_dir(state.as_deref(), &tree)?;
    if !state_dir.is_dir() {
        return Err(CliError::usage(format!(
            "{} was never captured here, and no tree of the service is called so",
            show(&tree)
        )));
    }
    Ok(vec![state_dir])
}

fn status(args: &TreeArgs) -> Result<Exit, CliError> {
    let states = states(args)?;
    if states.is_empty() && !args.say.json && !args.say.quiet {
        ui::say("no tree was captured here yet");
    }
    for state_dir in states {
        let seen = look(&state_dir)?;
        ui::say(show_seen(&seen, &state_dir, args.say).trim_end());
    }
    Ok(Exit::Done)
}

/// The worst tree decides.
fn check(args: &TreeCheckArgs) -> Exit {
    let say = args.trees.say;
    let states = match states(&args.trees) {
        Ok(states) if states.is_empty() => Err("no tree was captured here yet".to_owned()),
        Ok(states) => Ok(states),
        Err(e) => Err(e.line),
    };
    match states {
        Err(line) => {
            ui::say(&check_line(Health::Unknown, &line, say));
            exit_of(Health::Unknown)
        }
        Ok(states) => {
            let judged: Vec<(Health, String)> = states
                .iter()
                .map(|s| judge(look(s), args.limits.max_lag))
                .collect();
            for (health, line) in &judged {
                ui::say(&check_line(*health, line, say));
            }
            exit_of(
                judged
                    .iter()
                    .map(|(health, _)| *health)
                    .max()
                    .unwrap_or(Health::Unknown),
            )
        }
    }
}

fn order(
    args: &TreeArgs,
    word: &str,
    give: impl Fn(&mut Client) -> Result<(), ClientError>,
) -> Result<Exit, CliError> {
    for state_dir in states(args)? {
        match Client::connect(&state_dir) {
            Ok(mut client) => give(&mut client)?,
            // Of all trees only those that run are meant.
            Err(ClientError::NotRunning) if args.tree.is_none() => {}
            Err(e) => return Err(named(&state_dir, e)),
        }
    }
    done(word, args.say)
}

pub fn named(state_dir: &Path, e: ClientError) -> CliError {
    let error = CliError::from(e);
    CliError::new(error.exit, format!("{}: {}", show(state_dir), error.line))
}
