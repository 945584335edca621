//! `fs_mirror mirror`: looks at the places, settles the settings, takes the lock, and hands over to the engine.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::cli::args::MirrorArgs;
use crate::cli::config::{self, Config, Given};
use crate::cli::exit::{self, CliError, Exit};
use crate::cli::parse;
use crate::cli::places::{self, DstHolds, PlaceError, Places, show};
use crate::cli::ui::{self, Console};
use crate::engine::control::{StateLock, Stop};
use crate::engine::event::{Event, Ui};
use crate::engine::options::{MirrorOptions, Output, Owners, SourceSpec, default_state_dir};
use crate::filter::Filter;

pub fn run(args: MirrorArgs) -> Result<Exit, CliError> {
    let output = ui::output(args.say.json, args.say.quiet, args.say.verbose);
    let stop =
        Stop::on_signals().map_err(|e| CliError::failed(format!("cannot catch signals: {e}")))?;
    let console = std::sync::Arc::new(Console::new(output, args.yes, stop.clone()));
    let mut prepared = prepare(&args, output)?;
    for line in std::mem::take(&mut prepared.notices) {
        console.event(Event::Notice(line));
    }
    prepared.options.stop = stop;
    let once = prepared.options.once;
    let end = crate::engine::run_mirror(prepared.options, console.clone());
    drop(console);
    if end.is_err()
        && let Some(made) = prepared.made
    {
        made.undo();
    }
    let end = end?;
    // With JSON or in a log the paths were told when they failed; here is where they can be looked up.
    let failed = end.failed + end.fuzzy;
    if failed > 0 && !args.say.json {
        let what = crate::cli::text::counted(failed, "path is", "paths are");
        ui::complain(&format!(
            "{what} not as at the source: `fs_mirror status -v -m {}` lists all",
            show(&args.dst)
        ));
    }
    Ok(exit::of_run(&end, once))
}

pub struct Prepared {
    pub options: MirrorOptions,
    /// Settings that were saved, and the like.
    pub notices: Vec<String>,
    /// What this run made before anything was mirrored.
    made: Option<Made>,
}

/// Places that were not there before this run.
struct Made {
    state_dir: PathBuf,
    /// `None`: it was there.
    dst: Option<PathBuf>,
    link: Option<PathBuf>,
}

impl Made {
    /// A mirror that could not begin leaves nothing behind. What holds anything of the source stays.
    fn undo(self) {
        // Nobody else has begun here meanwhile.
        let Ok(_lock) = StateLock::take(&self.state_dir) else {
            return;
        };
        if has_begun(&self.state_dir).unwrap_or(true) {
            return;
        }
        if let Some(dst) = self.dst
            && fs::remove_dir(&dst).is_err()
            && dst.exists()
        {
            return;
        }
        if let Some(link) = self.link {
            let _ = fs::remove_file(link);
        }
        let _ = fs::remove_dir_all(&self.state_dir);
    }
}

/// From what was asked for to what the engine runs: places looked at, settings saved, lock taken.
pub fn prepare(args: &MirrorArgs, output: Output) -> Result<Prepared, CliError> {
    let source = parse::source(&args.source)?;
    // Which mounts are crossed decides whether DST is inside SRC; those saved are looked at once the state is known.
    let cross = cross_of(args, &source)?;
    let places = match places::check(
        &source,
        &args.dst,
        args.state.as_deref(),
        cross.as_deref().unwrap_or_default(),
    ) {
        Ok(places) => places,
        Err(PlaceError::SourceGone { path }) => return Err(source_gone(&path, args)),
        Err(e) => return Err(e.into()),
    };
    let given = given(args, cross)?;
    let begun = has_begun(&places.state_dir).map_err(|e| cannot("read", &places.state_dir, &e))?;
    // Without its log, but with an index, it was a mirror: the engine says what is lost.
    let was = places.state_dir.join("index").is_file();
    if places.dst_holds == DstHolds::Something && !begun && !was && !args.adopt {
        return Err(CliError::usage(format!(
            "DST {} is not empty and was never this mirror's: with --adopt what is equal stays and what is extra is \
             moved aside; else name a new directory",
            show(&places.dst)
        )));
    }
    let made = (!args.dry_run && !places.state_dir.exists()).then(|| Made {
        state_dir: places.state_dir.clone(),
        dst: (places.dst_holds == DstHolds::Missing).then(|| places.dst.clone()),
        link: places.state_link.clone(),
    });
    let lock = if args.dry_run {
        None
    } else {
        let usual = default_state_dir(&places.dst);
        if let Ok(link) = fs::symlink_metadata(&usual) {
            must_be_ours(&usual, link.uid())?;
        }
        Some(open_state(&places.state_dir)?)
    };
    // Under the lock from here: nobody else writes the configuration.
    let (config, notices) = settle(args, &places, given, begun, lock.is_some())?;
    if let SourceSpec::Local(_) = &places.source {
        places::check(
            &places.source,
            &args.dst,
            args.state.as_deref(),
            &config.cross,
        )?;
    }
    check_owners(&config)?;
    if let (Some(publish), false) = (&config.publish, args.dry_run) {
        let checked = publish.check(&places.dst, &places.state_dir);
        checked.map_err(CliError::usage)?;
        if !config.history {
            return Err(CliError::usage(
                "publish needs the history, which is off: take --no-history or publish away",
            ));
        }
    }
    if lock.is_some()
        && let Some(link) = &places.state_link
    {
        link_state(link, &places.state_dir)?;
    }
    let options = MirrorOptions {
        once: args.once,
        dry_run: args.dry_run,
        adopt: args.adopt,
        yes: args.yes,
        output,
        lock,
        ..config.options(&places.state_dir)
    };
    Ok(Prepared {
        options,
        notices,
        made,
    })
}

fn cannot(what: &str, path: &Path, e: &io::Error) -> CliError {
    CliError::failed(format!("cannot {what} {}: {e}", show(path)))
}

/// The settings of this run: what is saved, with what was given. Saved at once, so that they are printed only once.
fn settle(
    args: &MirrorArgs,
    places: &Places,
    given: Given,
    begun: bool,
    save: bool,
) -> Result<(Config, Vec<String>), CliError> {
    let mut notices = Vec::new();
    let saved = Config::load(&places.state_dir)?;
    let mut config = match (&saved, begun) {
        (None, true) => {
            return Err(CliError::failed(format!(
                "{} is missing, but the mirror was begun: put it back, or move {} away and start with --adopt",
                show(&Config::path(&places.state_dir)),
                show(&places.state_dir)
            )));
        }
        (None, false) => Config::new(places.source.clone(), places.dst.clone()),
        (Some(saved), true) if saved.source != places.source && !args.repoint => {
            return Err(CliError::usage(format!(
                "{} is a mirror of {}, not of {}: name that source, or another DST; with --repoint the same tree is \
                 followed from there",
                show(&places.dst),
                saved.source,
                places.source
            )));
        }
        (Some(saved), true) if saved.source != places.source && is_local(saved, places) => {
            return Err(CliError::usage(format!(
                "--repoint is for sources on other hosts, and {} is read here: its log is this mirror's own",
                match &saved.source {
                    local @ SourceSpec::Local(_) => local,
                    _ => &places.source,
                }
            )));
        }
        (Some(saved), _) => saved.clone(),
    };
    if config.dst != places.dst {
        if begun && places.state_link.is_some() {
            return Err(CliError::usage(format!(
                "{} is the state of the mirror {}, not of {}",
                show(&places.state_dir),
                show(&config.dst),
                show(&places.dst)
            )));
        }
        // The whole mirror was moved, state and all.
        notices.push(format!(
            "saved: dst = {} (was {})",
            show(&places.dst),
            show(&config.dst)
        ));
        config.dst = places.dst.clone();
    }
    // Nothing was mirrored yet, so a mistyped source may be corrected; or it is to be had from there now.
    if begun && config.source != places.source {
        let (was, is) = (&config.source, &places.source);
        notices.push(format!("saved: source = {is} (was {was})"));
    }
    config.source = places.source.clone();
    for (key, was, is) in config.take(given) {
        let verb = if save { "saved" } else { "for this run" };
        notices.push(match &saved {
            Some(_) => format!("{verb}: {key} = {is} (was {was})"),
            None => format!("{verb}: {key} = {is}"),
        });
    }
    if args.no_history && saved.is_none() {
        notices.push(
            "history is off: what is replaced or deleted at the source can't be had back".into(),
        );
    }
    if save && saved.as_ref() != Some(&config) {
        config.save(&places.state_dir)?;
    }
    Ok((config, notices))
}

/// One of the two is a directory of this host, which the mirror captures itself.
fn is_local(saved: &Config, places: &Places) -> bool {
    [&saved.source, &places.source]
        .iter()
        .any(|source| matches!(source, SourceSpec::Local(_)))
}

/// A source that is not there: for a mirror that follows it a hold, else a mistake.
fn source_gone(path: &Path, args: &MirrorArgs) -> CliError {
    let line = format!("SRC {} does not exist", show(path));
    let state = match &args.state {
        Some(state) => state.clone(),
        None => default_state_dir(
            &fs::canonicalize(&args.dst).unwrap_or_else(|_| args.dst.components().collect()),
        ),
    };
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    match Config::load(&state) {
        Ok(Some(config))
            if config.source == SourceSpec::Local(absolute)
                && has_begun(&state).unwrap_or(false) =>
        {
            CliError::new(
                Exit::Hold,
                format!(
                    "on hold: {line}; the copy stays as it is until the same directory is back"
                ),
            )
        }
        _ => CliError::usage(line),
    }
}

fn given(args: &MirrorArgs, cross: Option<Vec<PathBuf>>) -> Result<Given, CliError> {
    // One empty pattern takes all away.
    let ignore = (!args.ignore.is_empty()).then(|| {
        args.ignore
            .iter()
            .filter(|p| !p.is_empty())
            .cloned()
            .collect::<Vec<String>>()
    });
    if let Some(patterns) = &ignore {
        Filter::new(patterns)?;
    }
    let remote_command = args.remote_command.as_deref().map(|c| match c.trim() {
        "" | "mirrord" => None,
        command => Some(command.to_owned()),
    });
    Ok(Given {
        ignore,
        cross,
        owners: args.owners,
        on_mass_change: args.on_mass_change,
        history: (args.no_history || args.history).then_some(!args.no_history),
        keeping: args.keeping.as_deref().cloned(),
        detector: args.detector.map(|d| d.detector()),
        bwlimit: args.bwlimit.map(|rate| rate.0),
        compress: args.compress,
        timeout: args.timeout.map(|t| (!t.is_zero()).then_some(t)),
        verify_every: args.verify_every.map(|t| (!t.is_zero()).then_some(t)),
        remote_command,
        publish: args.publish.clone(),
    })
}

/// `--cross` as paths relative to SRC; they may be typed whole.
fn cross_of(args: &MirrorArgs, source: &SourceSpec) -> Result<Option<Vec<PathBuf>>, CliError> {
    if args.cross.is_empty() {
        return Ok(None);
    }
    let roots: Vec<PathBuf> = match source {
        SourceSpec::Local(path) => {
            let mut roots = vec![path.clone()];
            roots.extend(std::path::absolute(path));
            roots.extend(fs::canonicalize(path));
            roots
        }
        SourceSpec::Ssh { path, .. } => vec![PathBuf::from(std::ffi::OsStr::from_bytes(path))],
        SourceSpec::Service { .. } => Vec::new(),
    };
    let mut out = Vec::new();
    for path in args.cross.iter().filter(|p| !p.as_os_str().is_empty()) {
        let inner = roots
            .iter()
            .find_map(|root| path.strip_prefix(root).ok())
            .unwrap_or(path);
        // `components` drops doubled and last slashes, and dots.
        let inner: PathBuf = inner
            .components()
            .filter(|c| !matches!(c, std::path::Component::CurDir))
            .collect();
        if !config::is_plain_relative(&inner) {
            return Err(CliError::usage(format!(
                "--cross {} is not below SRC",
                show(path)
            )));
        }
        if let SourceSpec::Local(root) = source
            && !root.join(&inner).is_dir()
        {
            return Err(CliError::usage(format!(
                "--cross {} is not a directory below SRC",
                show(path)
            )));
        }
        if !out.contains(&inner) {
            out.push(inner);
        }
    }
    Ok(Some(out))
}

/// Something was mirrored into this state's DST: its log has begun.
fn has_begun(state_dir: &Path) -> io::Result<bool> {
    match fs::read_dir(state_dir.join("log")) {
        Ok(mut log) => Ok(log.next().is_some()),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Makes the state directory if need be, ours alone, and takes its lock.
fn open_state(state_dir: &Path) -> Result<StateLock, CliError> {
    parents_are_safe(state_dir)?;
    match fs::DirBuilder::new().mode(0o700).create(state_dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let meta = fs::metadata(state_dir).map_err(|e| cannot("read", state_dir, &e))?;
            must_be_ours(state_dir, meta.uid())?;
            if meta.mode() & 0o077 != 0 {
                let only_ours = fs::Permissions::from_mode(0o700);
                fs::set_permissions(state_dir, only_ours)
                    .map_err(|e| cannot("close to others", state_dir, &e))?;
            }
        }
        Err(e) => return Err(cannot("make", state_dir, &e)),
    }
    Ok(StateLock::take(state_dir)?)
}

/// Whoever may rename our state could put another in its place. A sticky directory (as `/tmp`) does not let him.
fn parents_are_safe(state_dir: &Path) -> Result<(), CliError> {
    let us = rustix::process::geteuid().as_raw();
    for dir in state_dir.ancestors().skip(1) {
        let Ok(meta) = fs::metadata(dir) else {
            continue;
        };
        let theirs = meta.uid() != us && meta.uid() != 0;
        if theirs && meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0 {
            return Err(CliError::failed(format!(
                "{} belongs to user {} and may be written by more than him: {} in it is not safe there; `chmod go-w` it, \
                 or keep the mirror elsewhere",
                show(dir),
                meta.uid(),
                show(state_dir)
            )));
        }
    }
    Ok(())
}

/// Also for root: where others may write beside DST, a directory or a link of theirs would lead us elsewhere.
fn must_be_ours(state: &Path, uid: u32) -> Result<(), CliError> {
    if uid == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(CliError::failed(format!(
        "{} belongs to another user ({uid}): run this as that user, give it and the copy to user {} (chown -R), or move \
         it away",
        show(state),
        rustix::process::geteuid().as_raw()
    )))
}

/// Leaves a link where other commands look for the state.
fn link_state(link: &Path, state_dir: &Path) -> Result<(), CliError> {
    match symlink(state_dir, link) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            if fs::canonicalize(link).is_ok_and(|there| there == state_dir) {
                return Ok(());
            }
            Err(CliError::usage(format!(
                "{} is another state of this DST: use it, or move it away",
                show(link)
            )))
        }
        // No room or no right to make it there: `-m` takes the state directory too.
        Err(_) => Ok(()),
    }
}

/// Setting owners needs the right to; found out now rather than file by file.
fn check_owners(config: &Config) -> Result<(), CliError> {
    use rustix::thread::CapabilitySet;
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::CHOWN));
    if config.owners == Owners::Apply && !may {
        return Err(CliError::usage(
            "owners = apply needs root: run it as root, or with --owners record (owners are kept in the index)",
        ));
    }
    Ok(())
}
