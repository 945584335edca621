//! A directory as it was, to be seen at once at another place, read-only.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::apply::meta::Rules;
use crate::apply::{self};
use crate::cli::args::ViewArgs;
use crate::cli::exit::{CliError, Exit, chain};
use crate::cli::find::find;
use crate::cli::past::{Past, note, shown, some_failed};
use crate::cli::places::show;
use crate::cli::{text, ui};
use crate::engine::options::Owners;
use crate::history::checkout::Progress;
use crate::history::publish::Publish;
use crate::history::views::View;
use crate::sys::open;

struct Told {
    failed: u64,
}

impl Progress for Told {
    fn lost(&mut self, path: &[u8], why: &str) -> bool {
        self.failed += 1;
        ui::complain(&format!("{}: {why}", mirror_core::escape(path)));
        true
    }
}

fn failed<'a, E: std::fmt::Display>(what: &'a str, path: &'a Path) -> impl Fn(E) -> CliError + 'a {
    move |e| CliError::failed(format!("cannot {what} {}: {e}", show(path)))
}

pub fn run(args: &ViewArgs) -> Result<Exit, CliError> {
    let (path, at) = match args.paths.as_slice() {
        [at] => (None, at),
        [path, at] if !args.drop => (Some(path), at),
        _ => {
            return Err(CliError::usage(
                "view takes [PATH] MOUNTPOINT, and --drop a MOUNTPOINT alone",
            ));
        }
    };
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::usage(
            "a view is a mount, which only root can make: `fs_mirror checkout` copies the tree",
        ));
    }
    if args.drop {
        let state_dir = find(args.which.mirror.as_deref())?.state_dir;
        return drop_view(&state_dir, at);
    }
    let Some(time) = &args.at else {
        return Err(CliError::usage("as of when? --at T"));
    };
    let mut past = Past::open(&args.which)?;
    let stand = past.stand(time)?;
    if past.part().is_some() {
        return Err(CliError::usage(
            "that is of before the copy was compared anew: `fs_mirror checkout` copies it",
        ));
    }
    let names = match path {
        Some(path) => past.path(path.as_os_str(), args.which.mirror.is_some())?,
        None => Vec::new(),
    };
    let Some(entry) = past.tree(stand.moment).find(&names)? else {
        return Err(CliError::usage(format!(
            "{} was not there: {}",
            shown(&names),
            past.around(&stand)
        )));
    };
    if !entry.state.kind.is_dir() {
        return Err(CliError::usage(format!(
            "{} is no directory: `fs_mirror cat` shows a file",
            shown(&names)
        )));
    }
    let at = mount_point(at, &past)?;
    note(args.say.quiet, args.say.json, &past.around(&stand));
    let state_dir = past.state_dir.clone();
    View::all(&state_dir).map_err(failed("look at the views of", &state_dir))?;
    let view = View::new(&state_dir).map_err(failed("make a view in", &state_dir))?;
    let done = fill(&mut past, &view, stand.moment, (&entry, &names)).and_then(|done| {
        view.show(&at).map_err(failed("mount at", &at))?;
        Ok(done)
    });
    let (files, lost) = match done {
        Ok(done) => done,
        Err(e) => {
            let _ = view.remove();
            return Err(e);
        }
    };
    match args.say.json {
        true => ui::say(
            &json!({"at": show(&at), "position": stand.moment.position().to_string(), "files": files, "failed": lost})
                .to_string(),
        ),
        false if !args.say.quiet => ui::say(&format!(
            "{}: {}, read-only; `fs_mirror view --drop {}` ends it",
            show(&at),
            text::counted(files, "file", "files"),
            show(&at)
        )),
        false => {}
    }
    Ok(some_failed(lost))
}

fn fill(
    past: &mut Past,
    view: &View,
    moment: mirror_core::history::Moment,
    (entry, names): (&crate::history::tree::Entry, &[mirror_core::Name]),
) -> Result<(u64, u64), CliError> {
    let tree = view.tree();
    let work = view.work().map_err(failed("open", &tree))?;
    let top = open::dir_at_path(&tree).map_err(failed("open", &tree))?;
    let owners = match past.owners {
        Owners::Apply => apply::Owners::Apply,
        Owners::Record => apply::Owners::Record,
    };
    let rules = Rules::probe(&work, owners).map_err(failed("write to", &tree))?;
    let path: Vec<&[u8]> = names.iter().map(mirror_core::Name::as_bytes).collect();
    let mut told = Told { failed: 0 };
    let places = past.places();
    let mut publish = Publish {
        asks: past,
        places,
        rules: &rules,
        progress: &mut told,
        work: &work,
        durable: false,
    };
    let made = publish.whole(moment, (entry.id, &entry.state, &path.join(&b'/')), &top);
    let made = made.map_err(|e| CliError::failed(chain(&e)))?;
    Ok((made.files + made.links, told.failed))
}

/// An empty directory outside of the mirror.
fn mount_point(typed: &Path, past: &Past) -> Result<PathBuf, CliError> {
    let at = fs::canonicalize(typed)
        .map_err(|e| CliError::usage(format!("{} can't be a mount point: {e}", show(typed))))?;
    for top in [&past.dst, &past.state_dir] {
        if at.starts_with(top) {
            return Err(CliError::usage(format!(
                "{} is inside {}, which holds nothing else: name a directory outside of it",
                show(&at),
                show(top)
            )));
        }
    }
    match fs::read_dir(&at).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(at),
        Ok(false) => Err(CliError::usage(format!(
            "{} is not empty: name an empty directory",
            show(&at)
        ))),
        Err(e) => Err(CliError::usage(format!(
            "{} can't be a mount point: {e}",
            show(&at)
        ))),
    }
}

fn drop_view(state_dir: &Path, typed: &Path) -> Result<Exit, CliError> {
    let at = fs::canonicalize(typed).unwrap_or_else(|_| typed.to_path_buf());
    let all = View::all(state_dir).map_err(failed("look at the views of", state_dir))?;
    let Some(view) = all.iter().find(|view| view.is_at(&at)) else {
        return Err(CliError::usage(format!(
            "{} is no view of this mirror",
            show(&at)
        )));
    };
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::NOFOLLOW).map_err(|e| {
        let e = std::io::Error::from(e);
        CliError::new(Exit::Busy, format!("cannot unmount {}: {e}", show(&at)))
    })?;
    view.remove().map_err(failed("remove the view of", &at))?;
    Ok(Exit::Done)
}
