//! The trees of the service: added, removed, listed, and how they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirror_core::escape;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::cli::args::{AddArgs, ListArgs, RemoveArgs, Say};
use crate::cli::check::{self, Judged, More, look_all};
use crate::cli::control::{Seen, check_line, exit_of, judge, show_seen};
use crate::cli::exit::{CliError, Exit};
use crate::cli::places::{self, show};
use crate::cli::serve_backup::{file, must_be_there, state_dir};
use crate::cli::show::Health;
use crate::cli::text::counted;
use crate::cli::{parse, ui};
use crate::engine::control::StateLock;
use crate::engine::service::backup::config::{Tree, file_of, name};
use crate::engine::service::backup::load::{Loaded, conf_d, load, load_with, one};
use crate::engine::service::backup::offers::Offers;
use crate::engine::service::backup::supervisor::settings_file;
use crate::engine::service::elsewhere::Elsewhere;
use crate::engine::service::rate::Rates;
use crate::engine::service::word::{Process, Service};

/// How long a monitor's question waits for the configuration.
const READ_WITHIN: Duration = Duration::from_secs(4);

pub fn add(args: &AddArgs) -> Result<Exit, CliError> {
    let config = file(args.file.config.as_deref())?;
    let tree = tree(args)?;
    let path = file_of(&conf_d(&config), &tree.name);
    if fs::symlink_metadata(&path).is_ok() {
        return Err(CliError::usage(format!(
            "{} is there already: `fs_mirror remove {}` first, or edit it",
            show(&path),
            tree.name
        )));
    }
    let text = format!(
        "# Written by `fs_mirror add`; edit it as you like, then reload the service.\n{tree}"
    );
    let loaded = load_with(&config, Some((&path, &text)));
    if !loaded
        .trees
        .get(&tree.name)
        .is_some_and(|placed| placed.tree == tree)
    {
        let own = |place: &crate::engine::service::settings::Place| *place.file == path;
        let mine = loaded
            .problems
            .iter()
            .find(|p| p.place.as_ref().is_some_and(own));
        let why = mine
            .or(loaded.problems.first())
            .map_or("it can't be read back".into(), |p| p.why.clone());
        return Err(CliError::usage(why));
    }
    if tree.every_below().is_none() {
        let source = parse::source(&tree.source)?;
        places::check(&source, &tree.dst, tree.state.as_deref(), &tree.cross)?;
    }
    // What the unit, and whoever looks for settings of all trees, expects to be there.
    if matches!(fs::symlink_metadata(&config), Err(e) if e.kind() == std::io::ErrorKind::NotFound) {
        write_new(&config, MAIN_FILE)
            .map_err(|e| CliError::failed(format!("cannot write {}: {e}", show(&config))))?;
    }
    write_new(&path, &text)
        .map_err(|e| CliError::failed(format!("cannot write {}: {e}", show(&path))))?;
    let told = reload(&loaded, &config);
    if args.say.json {
        ui::say(
            &json!({"added": tree.name, "file": show(&path), "reloaded": told.is_some()})
                .to_string(),
        );
    } else if !args.say.quiet {
        ui::say(&format!(
            "added {} in {}{}",
            tree.name,
            show(&path),
            follows(told)
        ));
    }
    Ok(Exit::Done)
}

const NO_SERVICE: &str = "no service runs with this configuration: `systemctl enable --now fs_mirror`, or `fs_mirror serve`";

fn follows(told: Option<i32>) -> String {
    match told {
        Some(pid) => format!("; the running service (process {pid}) was told"),
        None => format!("; {NO_SERVICE}"),
    }
}

fn tree(args: &AddArgs) -> Result<Tree, CliError> {
    let name = name(&args.name).map_err(CliError::usage)?;
    let absolute = |path: &Path| {
        let path = std::path::absolute(path);
        path.map(|path| path.components().collect::<PathBuf>())
            .map_err(|e| CliError::usage(e.to_string()))
    };
    let source = match parse::source(&args.source)? {
        crate::engine::options::SourceSpec::Local(path) => absolute(&path)?.into_os_string(),
        _ => args.source.clone(),
    };
    let mut tree = Tree::new(&name, source, absolute(&args.dst)?);
    tree.state = args.state.as_deref().map(absolute).transpose()?;
    tree.accept = args.accept;
    tree.ignore = args.ignore.clone();
    tree.cross = args.cross.clone();
    tree.owners = args.owners.unwrap_or(tree.owners);
    tree.on_mass_change = args.on_mass_change.unwrap_or(tree.on_mass_change);
    tree.detector = args.detector.and_then(|d| d.detector());
    tree.bwlimit = Rates::fixed(args.bwlimit.and_then(|rate| rate.0));
    tree.compress = args.compress.unwrap_or_default();
    tree.timeout = args.timeout.filter(|t| !t.is_zero());
    if let Some(every) = args.verify_every {
        tree.verify_every = (!every.is_zero()).then_some(every);
    }
    tree.remote_command = args.remote_command.clone();
    tree.limits.bytes_max = args.bytes_max;
    tree.limits.inodes_max = args.inodes_max;
    tree.limits.ops_max = args.ops_max;
    tree.limits.min_free = args.min_free;
    tree.polite.nice = args.nice;
    Ok(tree)
}

const MAIN_FILE: &str = "# Settings of the service itself. The trees that `fs_mirror add` writes are in conf.d beside this file.\n";

/// A new file, whole or not at all.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    // Hidden ones are not read.
    let new = dir.join(format!(
        ".{}.new",
        path.file_name().unwrap_or_default().display()
    ));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&new)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())?;
    fs::rename(&new, path)?;
    fs::File::open(dir)?.sync_all()
}

/// Tells the running service, if there is one; its process.
fn reload(loaded: &Loaded, config: &Path) -> Option<i32> {
    let state = state_dir(&loaded.general).ok()?;
    // Another configuration may use the same state.
    let service = Service::read(&state)?;
    let pid = StateLock::holder(&state).ok()??.pid?;
    let pid = i32::try_from(pid)
        .ok()
        .filter(|pid| service.pid as i32 == *pid)?;
    if service.config != show(config) {
        return None;
    }
    kill_process(Pid::from_raw(pid)?, Signal::HUP).ok()?;
    Some(pid)
}

pub fn remove(args: &RemoveArgs) -> Result<Exit, CliError> {
    let config = file(args.file.config.as_deref())?;
    must_be_there(&config, false)?;
    let path = file_of(&conf_d(&config), &args.name);
    let loaded = load(&config);
    let Some(placed) = loaded.trees.get(&args.name) else {
        if loaded.bad_trees.contains(&args.name) {
            return Err(CliError::usage(format!(
                "tree {} has mistakes: `fs_mirror config check -c {}` names them; put them right, or take it out by hand",
                args.name,
                show(&config)
            )));
        }
        return Err(CliError::usage(format!(
            "there is no tree {} in {}: `fs_mirror list` names them",
            escape(args.name.as_bytes()),
            show(&config)
        )));
    };
    let alone = loaded
        .trees
        .values()
        .filter(|other| other.place.file == placed.place.file)
        .count()
        == 1;
    if *placed.place.file != path || !alone {
        return Err(CliError::usage(format!(
            "tree {} stands in {}, among other things: take it out there, and reload the service",
            args.name, placed.place
        )));
    }
    fs::remove_file(&path)
        .map_err(|e| CliError::failed(format!("cannot remove {}: {e}", show(&path))))?;
    let told = reload(&loaded, &config);
    let (dst, state) = (show(&placed.tree.dst), show(&placed.tree.state_dir()));
    if args.say.json {
        ui::say(&json!({"removed": args.name, "dst": dst, "state_dir": state, "reloaded": told.is_some()}).to_string());
    } else if !args.say.quiet {
        let told = told.map_or(String::new(), |pid| {
            format!("; the running service (process {pid}) was told")
        });
        ui::say(&format!(
            "removed {}{told}; the copy {dst} and its state {state} stay",
            args.name
        ));
    }
    Ok(Exit::Done)
}

/// What trees are called that are followed here; `None`: there is no configuration that could tell.
pub fn names(config: Option<&Path>) -> Option<BTreeSet<String>> {
    let named = config.is_some();
    let config = file(config).ok()?;
    must_be_there(&config, named).ok()?;
    let loaded = load(&config);
    let state = state_dir(&loaded.general).ok();
    let offers = state.as_deref().map(Offers::load).unwrap_or_default();
    Some(offers.expand(&loaded.trees).into_keys().collect())
}

/// What can't be used is told; true: something can't.
fn complain(loaded: &Loaded) -> bool {
    for problem in &loaded.problems {
        ui::complain(&problem.to_string());
    }
    !loaded.problems.is_empty()
}

pub fn list(args: &ListArgs) -> Result<Exit, CliError> {
    let config = file(args.file.config.as_deref())?;
    must_be_there(&config, args.file.config.is_some())?;
    let loaded = load(&config);
    for placed in loaded.trees.values() {
        let tree = &placed.tree;
        let (source, dst) = (escape(tree.source.as_bytes()), show(&tree.dst));
        if args.say.json {
            let (state, file) = (show(&tree.state_dir()), show(&placed.place.file));
            ui::say(
                &json!({"name": tree.name, "source": source, "dst": dst, "state_dir": state, "file": file,
                    "line": placed.place.line})
                .to_string(),
            );
        } else {
            ui::say(&format!("{}: {dst} <- {source}", tree.name));
        }
    }
    if loaded.trees.is_empty() && loaded.problems.is_empty() && !args.say.json {
        ui::complain("no tree is followed yet: `fs_mirror add NAME SRC DST`");
    }
    Ok(if complain(&loaded) {
        Exit::Usage
    } else {
        Exit::Done
    })
}

pub fn check_config(config: &Path, say: Say) -> Result<Exit, CliError> {
    let loaded = load(config);
    if complain(&loaded) {
        return Ok(Exit::Usage);
    }
    let count = counted(loaded.trees.len() as u64, "tree", "trees");
    if say.json {
        ui::say(
            &json!({"file": show(config), "good": true, "trees": loaded.trees.len()}).to_string(),
        );
    } else if !say.quiet {
        ui::say(&format!("{} is good: {count}", show(config)));
    }
    Ok(Exit::Done)
}

pub fn show_config(config: &Path, say: Say) -> Result<Exit, CliError> {
    let loaded = load(config);
    for placed in loaded.trees.values() {
        let text = placed.tree.to_string();
        if say.json {
            let table: toml::Table = text.parse().map_err(|e| CliError::failed(format!("{e}")))?;
            ui::say(&serde_json::to_value(table).unwrap_or_default().to_string());
        } else {
            ui::say(&format!("# {}\n{}", placed.place, text));
        }
    }
    Ok(if complain(&loaded) {
        Exit::Usage
    } else {
        Exit::Done
    })
}

/// A tree of the service.
struct Known {
    tree: Tree,
    seen: Result<Seen, CliError>,
}

/// Each tree, with what the service says about its process. What the configuration does not say rightly any more is
/// followed as it was before: that is a tree, too.
fn look_at_all(loaded: &Loaded) -> (Vec<Known>, Option<Service>) {
    let state = state_dir(&loaded.general).ok();
    let service = state.as_deref().and_then(Service::running);
    let offers = state.as_deref().map(Offers::load).unwrap_or_default();
    let trees = offers.expand(&loaded.trees).into_iter();
    let mut trees: BTreeMap<String, Tree> =
        trees.map(|(name, placed)| (name, placed.tree)).collect();
    if let (Some(state), Some(service)) = (&state, &service) {
        for process in &service.trees {
            if !trees.contains_key(&process.name)
                && let Ok(tree) = one(&settings_file(state, &process.name), &process.name)
            {
                trees.insert(process.name.clone(), tree);
            }
        }
    }
    let dirs = trees.values().map(Tree::state_dir).collect();
    let seen = trees.into_values().zip(look_all(dirs));
    let known = seen.map(|(tree, mut seen)| {
        let process = service.as_ref().and_then(|s| s.process(&tree.name));
        if let Ok(Seen::Stopped { note, .. }) = &mut seen
            && service.is_some()
        {
            let state_dir = tree.state_dir();
            *note = Some(match process {
                Some(Process {
                    starts: 1..,
                    waits: Some(waits),
                    ..
                }) => format!("its process ended: {waits}"),
                Some(Process { pid: Some(pid), .. }) if tree.dst.is_dir() && !state_dir.is_dir() => {
                    format!(
                        "its state {} is not there: on hold until DST and its state are back (process {pid})",
                        show(&state_dir)
                    )
                }
                Some(Process {
                    pid: None,
                    waits: Some(waits),
                    ..
                }) => waits.clone(),
                // It was not asked yet, or it has not opened its socket.
                _ => "starting".into(),
            });
        }
        Known { tree, seen }
    });
    (known.collect(), service)
}

const NOT_RUNNING: &str =
    "the service is not running: `systemctl enable --now fs_mirror`, or `fs_mirror serve`";

pub fn status(config: &Path, say: Say) -> Result<Exit, CliError> {
    let loaded = load(config);
    let (all, service) = look_at_all(&loaded);
    if service.is_none() && !say.json {
        ui::complain(NOT_RUNNING);
    }
    for Known { tree, seen } in all {
        let state_dir = tree.state_dir();
        match seen {
            Ok(seen) if say.json => {
                let text = show_seen(&seen, &state_dir, say);
                let mut value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                if let Some(object) = value.as_object_mut() {
                    object.insert("name".into(), tree.name.into());
                }
                ui::say(&value.to_string());
            }
            Ok(seen) if say.verbose => {
                ui::say(&format!(
                    "{}:\n{}",
                    tree.name,
                    show_seen(&seen, &state_dir, say).trim_end()
                ));
            }
            Ok(seen) => {
                let note = match &seen {
                    Seen::Stopped {
                        note: Some(note), ..
                    } => Some(note.clone()),
                    _ => None,
                };
                let (_, line) = judge(Ok(seen), Duration::MAX);
                let line = line.split(" | ").next().unwrap_or_default().to_owned();
                let line = note.unwrap_or(line);
                ui::say(&format!(
                    "{}: {} <- {}: {line}",
                    tree.name,
                    show(&tree.dst),
                    escape(tree.source.as_bytes())
                ));
            }
            Err(e) => ui::complain(&format!("{}: {}", tree.name, e.line)),
        }
    }
    Ok(if complain(&loaded) {
        Exit::Usage
    } else {
        Exit::Done
    })
}

/// One line for all, then one a tree; the worst decides.
pub fn check(config: &Path, max_lag: Duration, say: Say) -> Exit {
    let file = config.to_path_buf();
    let mut reading = Elsewhere::new();
    let begun = reading.begin(move || load(&file));
    // A file that hangs is worth a word, before the monitor gives up on us.
    let loaded = begun.ok().and_then(|()| reading.wait(READ_WITHIN));
    let Some(loaded) = loaded else {
        let line = format!("the configuration {} does not answer", show(config));
        ui::say(&check_line(Health::Critical, &line, say));
        return exit_of(Health::Critical);
    };
    let (all, service) = look_at_all(&loaded);
    let judged: Vec<Judged> = all
        .into_iter()
        .map(|Known { tree, seen }| Judged::new(tree.name, seen, max_lag))
        .collect();
    let mut more = More::of(service.as_ref());
    more.mistakes = loaded.problems.iter().map(ToString::to_string).collect();
    match &service {
        Some(service) => {
            let worth =
                |p: &&String| p.starts_with("cannot listen") || p.ends_with("its copy is kept");
            more.warnings
                .extend(service.problems.iter().find(worth).cloned());
        }
        None => more.critical = Some("the service is not running".into()),
    }
    check::say(&judged, &more, say)
}
