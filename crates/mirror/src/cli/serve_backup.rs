//! `fs_mirror serve`: reads the configuration, takes the service's lock, and hands over to the supervisor.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::cli::args::{ServeArgs, Service, Which};
use crate::cli::exit::{CliError, Exit};
use crate::cli::find::{Found, find};
use crate::cli::places::show;
use crate::cli::text::counted;
use crate::cli::ui;
use crate::engine::control::StateLock;
use crate::engine::service::backup::config::General;
use crate::engine::service::backup::load::{conf_d, load};
use crate::engine::service::backup::supervisor::{self, Setup};
use crate::net::{Program, config_dir};
use crate::sys::signal::Signals;

pub fn run(args: &ServeArgs) -> Result<Exit, CliError> {
    // Before any thread is started.
    let signals =
        Signals::new().map_err(|e| CliError::failed(format!("cannot catch signals: {e}")))?;
    let file = file(args.file.config.as_deref())?;
    must_be_there(&file, args.file.config.is_some())?;
    let loaded = load(&file);
    if !loaded.can_begin(&file) {
        for problem in &loaded.problems {
            ui::complain(&problem.to_string());
        }
        let count = counted(loaded.problems.len() as u64, "mistake", "mistakes");
        return Err(CliError::usage(format!(
            "the configuration has {count}: nothing is started"
        )));
    }
    let state = state_dir(&loaded.general)?;
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&state)
        .map_err(|e| CliError::failed(format!("cannot make {}: {e}", show(&state))))?;
    let lock = StateLock::take(&state)?;
    supervisor::run(Setup {
        file,
        loaded,
        state,
        lock,
        signals,
        quiet: args.quiet,
    })
    .map_err(CliError::failed)?;
    Ok(Exit::Done)
}

/// The configuration that was named, or the usual one.
pub fn file(named: Option<&Path>) -> Result<PathBuf, CliError> {
    let file = match named {
        Some(named) => named.to_path_buf(),
        None => config_dir(Program::FsMirror)
            .map_err(CliError::failed)?
            .join("fs_mirror.toml"),
    };
    std::path::absolute(&file).map_err(|e| CliError::failed(format!("{}: {e}", show(&file))))
}

/// One that was named must be there; else one in `conf.d` will do.
pub fn must_be_there(file: &Path, named: bool) -> Result<(), CliError> {
    let missing =
        matches!(fs::symlink_metadata(file), Err(e) if e.kind() == io::ErrorKind::NotFound);
    let other = fs::read_dir(conf_d(file)).is_ok_and(|mut dir| dir.next().is_some());
    if !missing || (other && !named) {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "there is no configuration {}: `fs_mirror add NAME SRC DST` makes one",
        show(file)
    )))
}

/// Where the service keeps what it needs for itself.
pub fn state_dir(general: &General) -> Result<PathBuf, CliError> {
    let set = |name: &str| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from).filter(|path| path.is_absolute())
    };
    if let Some(state) = &general.state {
        return Ok(state.clone());
    }
    if let Some(state) = set("FS_MIRROR_STATE") {
        return Ok(state);
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/fs_mirror".into());
    }
    let home = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    let home = home.map(|home| home.join("fs_mirror"));
    home.ok_or_else(|| {
        CliError::failed("no place for the service's state: set `state` in its configuration")
    })
}

/// What a command that can be about both is about.
pub enum Asked {
    Mirror(Found),
    /// The service of this configuration.
    Service(PathBuf),
}

pub fn asked_for(which: &Which, service: &Service) -> Result<Asked, CliError> {
    if service.all || service.config.is_some() {
        let file = file(service.config.as_deref())?;
        must_be_there(&file, service.config.is_some())?;
        return Ok(Asked::Service(file));
    }
    match find(which.mirror.as_deref()) {
        Ok(found) => Ok(Asked::Mirror(found)),
        Err(e) if which.mirror.is_some() => Err(e),
        Err(e) => match file(None) {
            Ok(file) if must_be_there(&file, false).is_ok() => Ok(Asked::Service(file)),
            _ => Err(e),
        },
    }
}
