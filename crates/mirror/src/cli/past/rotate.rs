//! Plain trees of the past: `rotate`, `snapshot publish`, and what `snapshot list` and `rm` say and do about them.

use serde_json::json;

use crate::apply;
use crate::cli::args::{RotateArgs, SnapshotPublishArgs};
use crate::cli::exit::{CliError, Exit, chain};
use crate::cli::past::{Past, note, position, some_failed};
use crate::cli::places::show;
use crate::cli::{text, ui};
use crate::engine::options::Owners;
use crate::history::now_ns;
use crate::history::publish_settings::{Every, PublishSettings};
use crate::history::published::{Published, Shelf, ShelfError};
use crate::history::rotate::{Done, RotateError, Rotation, is_rotated};

impl From<ShelfError> for CliError {
    fn from(e: ShelfError) -> CliError {
        let exit = match e {
            ShelfError::Busy => Exit::Busy,
            _ => Exit::Failed,
        };
        CliError::new(exit, chain(&e))
    }
}

impl From<RotateError> for CliError {
    fn from(e: RotateError) -> CliError {
        match e {
            RotateError::Shelf(e) => e.into(),
            RotateError::Past(e) => e.into(),
            RotateError::Held(_) => CliError::new(Exit::Hold, e.to_string()),
            RotateError::Taken(_) => CliError::usage(e.to_string()),
            e => CliError::failed(chain(&e)),
        }
    }
}

fn settings(past: &Past) -> Result<PublishSettings, CliError> {
    let settings = past.publish.clone().unwrap_or_default();
    let checked = settings.check(&past.dst, &past.state_dir);
    checked.map_err(CliError::usage)?;
    Ok(settings)
}

fn rotation(past: &mut Past, settings: PublishSettings) -> Result<Rotation<'_>, CliError> {
    let places = past.places();
    let owners = match past.owners {
        Owners::Apply => apply::Owners::Apply,
        Owners::Record => apply::Owners::Record,
    };
    Ok(Rotation::open(past, places, owners, settings)?)
}

/// The trees of this mirror.
pub fn shelf(past: &Past) -> Result<Shelf, CliError> {
    let dir = past
        .publish
        .as_ref()
        .and_then(|publish| publish.dir.clone());
    Ok(Shelf::look(&past.state_dir, dir.as_deref())?)
}

pub fn rotate(args: &RotateArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    let settings = settings(&past)?;
    let only = args.kind.as_deref().and_then(Every::parse);
    if let Some(every) = only
        && settings.count(every) == 0
    {
        return Err(CliError::usage(format!(
            "no {} trees are wanted: `publish` in the settings names the others",
            every.word()
        )));
    }
    let done = rotation(&mut past, settings)?.rotate(only, now_ns())?;
    let mut missing = 0;
    let told = |line: &str| note(args.say.quiet, args.say.json, line);
    for done in &done {
        match done {
            Done::Made(tree, path) => {
                missing += tree.missing;
                made(&past, tree, path, args.say.json, args.say.quiet);
            }
            Done::UpToDate(every) => told(&format!("{}: the last one is there", every.word())),
            Done::TooEarly { every, next_ns } => told(&format!(
                "{}: history begins after the last border, the first tree is that of {} \
                 (`fs_mirror snapshot publish NAME` makes one now)",
                every.word(),
                past.time(*next_ns)
            )),
        }
    }
    Ok(some_failed(missing))
}

fn made(past: &Past, tree: &Published, path: &std::path::Path, json: bool, quiet: bool) {
    for lost in &tree.missing_paths {
        ui::complain(lost);
    }
    match json {
        true => ui::say(&as_json(tree, path).to_string()),
        false if !quiet => ui::say(&line(past, tree, path)),
        false => {}
    }
}

pub fn as_json(tree: &Published, path: &std::path::Path) -> serde_json::Value {
    json!({
        "published": tree.name, "kind": tree.kind, "path": show(path), "position": tree.position,
        "at_ns": tree.at_ns, "time_ns": tree.there_ns, "made_ns": tree.made_ns, "recycled": tree.recycled,
        "missing": tree.missing,
    })
}

pub fn line(past: &Past, tree: &Published, path: &std::path::Path) -> String {
    let mut line = format!(
        "{}  {}  position {}",
        show(path),
        past.time(tree.at_ns),
        position(tree.moment)
    );
    if tree.missing > 0 {
        let files = text::counted(tree.missing, "file", "files");
        line.push_str(&format!("  without {files} not kept as of then"));
    }
    line
}

pub fn publish(args: &SnapshotPublishArgs) -> Result<Exit, CliError> {
    crate::history::times::valid_name(&args.name).map_err(CliError::usage)?;
    if is_rotated(&args.name) {
        return Err(CliError::usage(format!(
            "{} is a name that rotation gives: choose another",
            args.name
        )));
    }
    let mut past = Past::open(&args.which)?;
    let settings = settings(&past)?;
    let window = past.window()?;
    let stand = match &args.at {
        Some(at) => past.stand(at)?,
        None if window.snapshots.iter().any(|known| known.name == args.name) => {
            past.stand(&args.name)?
        }
        None => past.stand(&format!("pos:{}", position(window.moment)))?,
    };
    if past.part().is_some() {
        return Err(CliError::usage(
            "that is of before the copy was compared anew, and what is published is of after that: `fs_mirror checkout` copies it",
        ));
    }
    note(args.say.quiet, args.say.json, &past.around(&stand));
    let there_ns = stand.at.map(|at| at.there_ns);
    let published = rotation(&mut past, settings)?.named(&args.name, stand.moment, there_ns);
    let (tree, path) = published?;
    made(&past, &tree, &path, args.say.json, args.say.quiet);
    Ok(some_failed(tree.missing))
}

/// Removes the tree of that name. False: there is none.
pub fn remove(past: &Past, name: &str) -> Result<bool, CliError> {
    let dir = past
        .publish
        .as_ref()
        .and_then(|publish| publish.dir.clone());
    if !shelf(past)?.list()?.iter().any(|tree| tree.name == name) {
        return Ok(false);
    }
    let shelf = Shelf::open(&past.state_dir, dir.as_deref())?;
    let trees = shelf.list()?;
    match trees.iter().find(|tree| tree.name == name) {
        Some(tree) => {
            shelf.remove(tree)?;
            shelf.clear()?;
            Ok(true)
        }
        None => Ok(false),
    }
}
