//! Positions with names.

use serde_json::json;

use crate::cli::args::{SnapshotCommand, SnapshotCreateArgs, SnapshotListArgs, SnapshotRmArgs};
use crate::cli::exit::{CliError, Exit};
use crate::cli::past::{Past, position, rotate};
use crate::cli::ui;
use crate::history::ask::{Answer, Ask, SnapshotLine};

pub fn run(command: &SnapshotCommand) -> Result<Exit, CliError> {
    match command {
        SnapshotCommand::Create(args) => create(args),
        SnapshotCommand::List(args) => list(args),
        SnapshotCommand::Rm(args) => remove(args),
        SnapshotCommand::Publish(args) => rotate::publish(args),
    }
}

fn create(args: &SnapshotCreateArgs) -> Result<Exit, CliError> {
    crate::history::times::valid_name(&args.name).map_err(CliError::usage)?;
    let mut past = Past::open(&args.which)?;
    let moment = match &args.at {
        Some(at) => Some(past.stand(at)?.moment.0),
        None => None,
    };
    let ask = Ask::Snapshot {
        name: args.name.clone(),
        moment,
        keep: args.keep,
        note: args.note.clone(),
    };
    let Answer::Snapshot(made) = past.ask(&ask)? else {
        return Err(CliError::failed("the answer is not of this version"));
    };
    match args.say.json {
        true => ui::say(&as_json(&made).to_string()),
        false if !args.say.quiet => ui::say(&line(&past, &made)),
        false => {}
    }
    Ok(Exit::Done)
}

fn as_json(snapshot: &SnapshotLine) -> serde_json::Value {
    json!({
        "name": snapshot.name, "position": position(snapshot.moment).to_string(),
        "time_ns": snapshot.there_ns, "made_ns": snapshot.here_ns, "keep": snapshot.keep, "note": snapshot.note,
    })
}

fn line(past: &Past, snapshot: &SnapshotLine) -> String {
    let mut line = format!(
        "{}  {}  position {}",
        snapshot.name,
        past.time(snapshot.there_ns),
        position(snapshot.moment)
    );
    if snapshot.keep {
        line.push_str("  keep");
    }
    if let Some(note) = &snapshot.note {
        line.push_str(&format!("  {}", mirror_core::escape(note.as_bytes())));
    }
    line
}

fn list(args: &SnapshotListArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    let window = past.window()?;
    let shelf = rotate::shelf(&past)?;
    let trees = shelf.list()?;
    if window.snapshots.is_empty() && trees.is_empty() && !args.say.json && !args.say.quiet {
        ui::complain("no snapshots: `fs_mirror snapshot create NAME` makes one");
    }
    for snapshot in &window.snapshots {
        match args.say.json {
            true => ui::say(&as_json(snapshot).to_string()),
            false => ui::say(&line(&past, snapshot)),
        }
    }
    for tree in &trees {
        let path = shelf.path(tree);
        match args.say.json {
            true => ui::say(&rotate::as_json(tree, &path).to_string()),
            false => ui::say(&rotate::line(&past, tree, &path)),
        }
        if args.say.verbose && !args.say.json {
            for lost in &tree.missing_paths {
                ui::say(&format!("    {lost}"));
            }
        }
    }
    Ok(Exit::Done)
}

fn remove(args: &SnapshotRmArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    let name = args.name.clone();
    let known = past.window()?.snapshots;
    let removed = rotate::remove(&past, &name)?;
    if !removed || known.iter().any(|known| known.name == name) {
        past.ask(&Ask::RemoveSnapshot { name })?;
    }
    if !args.say.quiet && !args.say.json {
        ui::say(&format!("{} is no snapshot any more", args.name));
    }
    Ok(Exit::Done)
}
