//! `mirrord serve`, `config`, `wait` and `log`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use jiff::tz::TimeZone;
use serde_json::json;

use crate::cli::args::{Say, TreeArgs};
use crate::cli::exit::{CliError, Exit};
use crate::cli::text;
use crate::cli::worker::{named, states};
use crate::cli::{parse, show, ui};
use crate::engine::control::{Client, ClientError, LogLine, Stage, WaitReport};
use crate::engine::service::worker::config::{Asked, Config};
use crate::engine::service::worker::{self as service, NotBegun};
use crate::engine::worker::config::{is_served, of_service};
use crate::net::{self, Program};

#[derive(Debug, Args, Default)]
pub struct WorkerServeArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// Serve this tree, beside those of the file (again for more)
    #[arg(long, value_name = "NAME=/PATH")]
    pub tree: Vec<OsString>,
    /// Listen here, as 0.0.0.0:8737 (again for more) [default: what the file says; else nowhere]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Where states of trees are kept [default: what the file says, else /var/lib/mirrord as root, else the user's state
    /// directory]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

#[derive(Debug, Args, Default)]
pub struct FileArgs {
    /// The configuration [default: /etc/mirrord/mirrord.toml as root, else the user's configuration directory]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum ServiceConfigCommand {
    /// Is the configuration good? All mistakes, with file and line
    Check(ConfigArgs),
    /// Show what it says
    Show(ConfigArgs),
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    pub file: FileArgs,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = WAIT_CODES)]
pub struct StageArgs {
    /// How far it must have come
    #[arg(
        long = "for",
        value_enum,
        value_name = "STAGE",
        default_value = "applied"
    )]
    pub stage: Stage,
    /// On so many replicas [default: all that are connected or away for less than a week, one at least]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub replicas: Option<u32>,
    /// Give up after this long
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub trees: TreeArgs,
}

const WAIT_CODES: &str = "\
Everything written to the tree before this command has come so far when it returns 0; writes through a memory map that is \
still open may be missing. Exit codes: 0 it came true; 3 it did, but listed paths failed or are fuzzy; 4 on hold; 5 timed \
out, or paused; 1 not running.";

#[derive(Debug, Args)]
pub struct LogArgs {
    /// Go on with what comes, until stopped
    #[arg(short, long)]
    pub follow: bool,
    /// So many of the last records
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub lines: usize,
    #[command(flatten)]
    pub trees: TreeArgs,
}

fn asked(file: &FileArgs) -> Result<Asked, CliError> {
    let named = file.file.is_some();
    let file = match &file.file {
        Some(file) => file.clone(),
        None => net::config_dir(Program::Mirrord)
            .map_err(CliError::usage)?
            .join("mirrord.toml"),
    };
    Ok(Asked {
        file: Some(file),
        named,
        ..Asked::default()
    })
}

/// The state directory that the usual configuration names, for commands that are not told another one.
pub fn configured_state() -> Option<PathBuf> {
    let asked = asked(&FileArgs::default()).ok()?;
    if std::env::var_os("MIRRORD_STATE").is_some() {
        return None;
    }
    crate::engine::service::worker::config::load(&asked)
        .config
        .state
}

/// What trees are called that this configuration serves; `None`: there is none that could tell.
pub fn tree_names(config: Option<&Path>) -> Option<BTreeSet<String>> {
    let asked = asked(&FileArgs {
        file: config.map(Path::to_path_buf),
    })
    .ok()?;
    asked.file.as_deref().filter(|file| file.exists())?;
    service::tree_names(&asked).ok()
}

fn not_begun(error: NotBegun) -> CliError {
    match error {
        NotBegun::Run(error) => error.into(),
        NotBegun::Config(problems) => {
            let mut lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let last = lines.pop().unwrap_or_default();
            for line in lines {
                ui::complain(&format!("mirrord: {line}"));
            }
            CliError::usage(last)
        }
    }
}

pub fn serve(args: WorkerServeArgs) -> Result<Exit, CliError> {
    let asked = Asked {
        trees: args.tree,
        listen: args.listen,
        state: args.state,
        ..asked(&args.file)?
    };
    service::serve(asked).map_err(not_begun)?;
    Ok(Exit::Done)
}

pub fn config(command: ServiceConfigCommand) -> Result<Exit, CliError> {
    match command {
        ServiceConfigCommand::Check(args) => {
            let mut asked = asked(&args.file)?;
            asked.named = true;
            let plan = service::check(&asked).map_err(not_begun)?;
            if !plan.missing.is_empty() {
                return Err(not_begun(NotBegun::Config(plan.missing)));
            }
            let config = plan.config;
            if args.say.json {
                ui::say(&json!({"good": true, "trees": config.trees.len()}).to_string());
            } else if !args.say.quiet {
                let trees = text::counted(config.trees.len() as u64, "tree", "trees");
                ui::say(&format!("good: {trees}"));
            }
            Ok(Exit::Done)
        }
        ServiceConfigCommand::Show(args) => {
            let mut asked = asked(&args.file)?;
            asked.named = true;
            let plan = service::check(&asked).map_err(not_begun)?;
            show_config(&plan.config, &plan.base, args.say);
            Ok(Exit::Done)
        }
    }
}

fn show_config(config: &Config, state: &std::path::Path, say: Say) {
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    let state = crate::cli::places::show(state);
    if say.json {
        let trees: Vec<_> = config
            .trees
            .iter()
            .map(|tree| {
                json!({
                    "name": tree.name,
                    "path": tree.path.show(),
                    "settings": tree.settings,
                    "min_free": tree.settings.live.min_free.show(),
                    "bwlimit_now": tree.settings.live.bwlimit.now(),
                    "compress": tree.settings.live.compress,
                })
            })
            .collect();
        let user = &config.user;
        let dials: Vec<String> = config.connect_to.iter().map(ToString::to_string).collect();
        ui::say(
            &json!({"listen": listen, "connect_to": dials, "user": user, "state": state, "trees": trees}).to_string(),
        );
        return;
    }
    let nowhere = "nowhere".to_owned();
    let row = |name: &str, value: &str| ui::say(&format!("  {name:<11} {value}"));
    ui::say(&format!(
        "listens: {}",
        if listen.is_empty() {
            nowhere
        } else {
            listen.join(", ")
        }
    ));
    ui::say(&format!("states:  {state}"));
    for address in &config.connect_to {
        ui::say(&format!("dials:   {address}"));
    }
    for tree in &config.trees {
        let set = &tree.settings;
        ui::say(&format!("{}: {}", tree.name, tree.path.show()));
        if !set.ignore.is_empty() {
            row("ignore", &set.ignore.join("  "));
        }
        for path in &set.cross {
            row("cross", &crate::cli::places::show(path));
        }
        if let Some(detector) = set.detector {
            row("detector", &detector.to_string());
        }
        if let Some(bytes) = set.log_max {
            row("log_max", &parse::show_rate(bytes));
        }
        row("min_free", &set.live.min_free.show());
        if let Some(nice) = set.polite.nice {
            row("nice", &nice.to_string());
        }
        if let Some(io) = set.polite.io_nice {
            row("io_nice", &format!("{io:?}").to_lowercase());
        }
        if let Some(bytes) = set.polite.memory_bytes_max {
            row("memory_max", &parse::show_rate(bytes));
        }
        if let Some(rate) = set.live.bwlimit.now() {
            row("bwlimit", &format!("{} now", parse::show_rate(rate)));
        }
        row("compress", &set.live.compress.to_string());
    }
}

pub fn wait(args: &StageArgs) -> Result<Exit, CliError> {
    let until = args.timeout.map(|timeout| Instant::now() + timeout);
    let states = states(&args.trees)?;
    let mut worst: Option<Exit> = None;
    for some in states.chunks(WAITS_MAX) {
        // All at once: what one tree takes is not taken from the others.
        let reports: Vec<_> = std::thread::scope(|scope| {
            let asked = some.iter().map(|state_dir| {
                let one = move || wait_for(args, state_dir, until);
                (state_dir, scope.spawn(one))
            });
            let asked: Vec<_> = asked.collect();
            let broke = || CliError::failed("the question ended by itself");
            asked
                .into_iter()
                .map(|(dir, asked)| (dir, asked.join().unwrap_or_else(|_| Err(broke()))))
                .collect()
        });
        for (state_dir, report) in reports {
            let found = match report {
                Ok(None) => continue,
                Ok(Some(report)) => said(&report, args, state_dir),
                Err(error) => {
                    ui::complain(&format!("mirrord: {}: {}", tree_of(state_dir), error.line));
                    error.exit
                }
            };
            worst = Some(worst.map_or(found, |worst| worse(worst, found)));
        }
    }
    worst.ok_or_else(|| CliError::failed("no tree is served here now"))
}

/// Trees that are waited for at once, a thread each.
const WAITS_MAX: usize = 512;

/// What can't be waited for outweighs what is late, and that failed paths.
fn worse(a: Exit, b: Exit) -> Exit {
    let weight = |exit| match exit {
        Exit::Done => 0,
        Exit::SomeFailed => 1,
        Exit::Busy => 2,
        _ => 3,
    };
    if weight(b) > weight(a) { b } else { a }
}

/// `None`: it is not meant.
fn wait_for(
    args: &StageArgs,
    state_dir: &Path,
    until: Option<Instant>,
) -> Result<Option<WaitReport>, CliError> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let asked = Client::connect(state_dir)
            .and_then(|mut client| client.wait_replicas(args.stage, args.replicas, left));
        match asked {
            Ok(report) => return Ok(Some(report)),
            // What a login once started is not meant; what the service has is.
            Err(ClientError::NotRunning)
                if args.trees.tree.is_none() && of_service(state_dir).is_none() =>
            {
                return Ok(None);
            }
            // Its process is being started again: a barrier that begins later covers more.
            Err(ClientError::NotRunning | ClientError::Silent(_))
                if is_served(state_dir) && left.is_none_or(|left| !left.is_zero()) =>
            {
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(ClientError::NotRunning) if is_served(state_dir) => {
                let why = "timed out: the tree's process does not run";
                return Err(CliError::new(Exit::Busy, why));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// In the configuration of a service.
fn name_of(state_dir: &Path) -> Option<String> {
    Some(of_service(state_dir)?.service?.name)
}

/// As a person calls it.
fn tree_of(state_dir: &Path) -> String {
    name_of(state_dir).unwrap_or_else(|| crate::cli::places::show(state_dir))
}

fn said(report: &WaitReport, args: &StageArgs, state_dir: &std::path::Path) -> Exit {
    let say = args.trees.say;
    if say.json {
        let tree = name_of(state_dir);
        let report = serde_json::to_value(report).unwrap_or_default();
        let state_dir = crate::cli::places::show(state_dir);
        ui::say(&json!({"tree": tree, "state_dir": state_dir, "report": report}).to_string());
    } else {
        let wrong = show::wait(report);
        if !wrong.is_empty() {
            ui::complain(wrong.trim_end());
        }
        for replica in report.replicas.iter().filter(|replica| replica.failed > 0) {
            let failed = text::counted(replica.failed, "path", "paths");
            ui::complain(&format!("failed: {failed} on {}", replica.name));
        }
        if report.timed_out {
            let stage = format!("{:?}", args.stage).to_lowercase();
            let (tree, missing) = (tree_of(state_dir), report.missing.join(", "));
            ui::complain(&format!(
                "mirrord: {tree}: timed out: not {stage} yet: {missing}"
            ));
        }
    }
    if report.timed_out {
        Exit::Busy
    } else if report.failed_total + report.fuzzy_total + report.failed_there > 0 {
        Exit::SomeFailed
    } else {
        Exit::Done
    }
}

pub fn log(args: &LogArgs) -> Result<Exit, CliError> {
    let mut states = states(&args.trees)?;
    if args.trees.tree.is_none() {
        states.retain(|state_dir| Client::connect(state_dir).is_ok());
    }
    let [state_dir] = states.as_slice() else {
        return Err(CliError::usage(match states.len() {
            0 => "no tree is served here now",
            _ => "name one tree: several are served here",
        }));
    };
    let mut client = Client::connect(state_dir).map_err(|e| named(state_dir, e))?;
    let (say, zone) = (args.trees.say, TimeZone::system());
    client
        .log(args.lines, args.follow, &mut |line| {
            ui::say(&shown(&line, say, &zone));
            true
        })
        .map_err(|e| named(state_dir, e))?;
    Ok(Exit::Done)
}

fn shown(line: &LogLine, say: Say, zone: &TimeZone) -> String {
    if say.json {
        return serde_json::to_string(line).unwrap_or_default();
    }
    let at = line.at.map_or(String::new(), |at| text::stamp(at, zone));
    let position = line.position.map_or(String::new(), |p| p.to_string());
    let mut out = format!("{at} {position} {}", line.op);
    if let Some(path) = &line.path {
        out.push_str(&format!(" {path}"));
    }
    if let Some(to) = &line.to {
        out.push_str(&format!(" -> {to}"));
    }
    if let Some(who) = line
        .who
        .as_ref()
        .filter(|who| say.verbose && !who.is_empty())
    {
        out.push_str(&format!(" ({who})"));
    }
    out
}
