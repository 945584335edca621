//! Putting a live tree back as it was: `restore --to-source` and `undo`. What differs is made beside its place and moved
//! there, whole; the source's mirror sees ordinary changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use mirror_core::history::Moment;
use mirror_core::{Name, ObjectId, State, escape};
use serde_json::json;

use crate::cli::args::{RestoreArgs, Say, UndoArgs};
use crate::cli::exit::{CliError, Exit};
use crate::cli::past::diff::Differs;
use crate::cli::past::get::{Told, checkout_error, merge, rules};
use crate::cli::past::log::Who;
use crate::cli::past::{Past, Stand, note, some_failed};
use crate::cli::places::show;
use crate::cli::{text, ui};
use crate::engine::options::SourceSpec;
use crate::history::asked::AsOf;
use crate::history::changes::Op;
use crate::history::checkout::Checkout;
use crate::history::tree::{Entry, PastTree};
use crate::sys::{Errno, open, target};

/// What is to be done at one path.
#[derive(Debug, Clone)]
enum Back {
    /// It was there and is not, or is another: make it.
    Put(Vec<u8>),
    /// Only its metadata is another.
    Meta(Vec<u8>, State),
    /// It was not there.
    Take(Vec<u8>),
}

impl Back {
    fn path(&self) -> &[u8] {
        match self {
            Back::Put(path) | Back::Meta(path, _) | Back::Take(path) => path,
        }
    }
    fn word(&self) -> &'static str {
        match self {
            Back::Put(_) => "put back",
            Back::Meta(..) => "attributes",
            Back::Take(_) => "remove",
        }
    }
}

impl Past {
    /// The live tree that this mirror follows.
    fn live(&self) -> Result<PathBuf, CliError> {
        match self.source() {
            SourceSpec::Local(path) => Ok(path.clone()),
            far => Err(CliError::failed(format!(
                "{far} is on another host, and changing it from here is not built yet: restore --to DIR, and copy from there"
            ))),
        }
    }

    /// What must be done so that the tree is as it was. `take`: also remove what was not there.
    fn back(&mut self, found: &[Differs], then: Moment, take: bool) -> Result<Vec<Back>, CliError> {
        let mut out: BTreeMap<Vec<u8>, Back> = BTreeMap::new();
        for differs in found {
            // Where it was then.
            let was = match (&differs.op, &differs.before) {
                (Op::Write | Op::Attributes, Some((id, _))) => {
                    let known = self.objects(then, &[*id])?.into_iter().next().flatten();
                    known.and_then(|known| known.path)
                }
                _ => None,
            };
            let was = was.unwrap_or_else(|| differs.path.clone());
            match (differs.op, &differs.before) {
                (Op::Attributes, Some((_, state))) => {
                    out.entry(was.clone())
                        .or_insert(Back::Meta(was, state.clone()));
                }
                (Op::Create | Op::Link, _) => {
                    if take {
                        let path = differs.path.clone();
                        out.entry(path.clone()).or_insert(Back::Take(path));
                    }
                }
                (op, Some(_)) => {
                    out.insert(was.clone(), Back::Put(was));
                    if let (Op::Rename, true, Some(to)) = (op, take, &differs.to) {
                        out.entry(to.clone()).or_insert(Back::Take(to.clone()));
                    }
                }
                (_, None) => {}
            }
        }
        Ok(out.into_values().collect())
    }
}

fn names(path: &[u8]) -> Option<Vec<Name>> {
    if path == b"." {
        return Some(Vec::new());
    }
    let parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty());
    parts.map(|part| Name::new(part).ok()).collect()
}

/// The directory of these names, made where it is missing; no symlink is followed.
pub fn dir_of(top: &OwnedFd, names: &[Name]) -> Result<OwnedFd, Errno> {
    let mut fd = rustix::io::fcntl_dupfd_cloexec(top, 0)?;
    for name in names {
        match target::create_dir(&fd, name.as_bytes()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        fd = open::dir(&fd, name.as_bytes())?;
    }
    Ok(fd)
}

pub fn by_fd(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Does it all; how many of it.
fn carry_out(
    past: &mut Past,
    (stand, now): (&Stand, Option<Moment>),
    live: &Path,
    todo: &[Back],
    told: &mut Told,
) -> Result<u64, CliError> {
    let failed = |what: &str, path: &Path, e: &dyn std::fmt::Display| {
        CliError::failed(format!("cannot {what} {}: {e}", show(path)))
    };
    let io = std::io::Error::from;
    let top = open::dir_at_path(live).map_err(|e| failed("open", live, &io(e)))?;
    let staged = format!(".fs_mirror-restore.{}", std::process::id());
    target::create_dir(&top, staged.as_bytes()).map_err(|e| failed("write to", live, &io(e)))?;
    let at = live.join(&staged);
    let done: Result<_, CliError> = (|| {
        let stage = open::dir(&top, staged.as_bytes()).map_err(|e| failed("open", &at, &io(e)))?;
        target::set_mode(&stage, b"", 0o700).map_err(|e| failed("write to", &at, &io(e)))?;
        let rules = rules(&stage)?;
        let mut count = 0;
        let takes = todo.iter().any(|back| matches!(back, Back::Take(_)));
        let mut not_put: Option<u64> = None;
        let before = told.failed;
        let mut listed = Listed::default();
        let mut seen_now = Listed::default();
        // What goes, goes last: a file may have moved.
        let (take, put): (Vec<_>, Vec<_>) =
            todo.iter().partition(|back| matches!(back, Back::Take(_)));
        for back in put.into_iter().chain(take.into_iter().rev()) {
            if matches!(back, Back::Take(_)) && *not_put.get_or_insert(told.failed - before) > 0 {
                // It may be the only place where something is that could not be put back.
                told.failed += 1;
                ui::complain(&format!(
                    "{}: left, because not all could be put back",
                    escape(back.path())
                ));
                continue;
            }
            let Some(path) = names(back.path()) else {
                continue;
            };
            if let Some(why) = changed_since(past, now, &top, &path, &mut seen_now)? {
                told.failed += 1;
                ui::complain(&format!("{}: left as it is: {why}", escape(back.path())));
                continue;
            }
            let one = match back {
                Back::Put(_) => put_one(
                    past,
                    stand,
                    (&top, &stage),
                    &path,
                    &rules,
                    (&mut listed, takes),
                    told,
                ),
                Back::Meta(_, state) => meta_one(&top, &path, state, &rules),
                Back::Take(_) => take_one(&top, &path),
            };
            match one {
                Ok(()) => {
                    count += 1;
                    if told.say.verbose && !told.say.json {
                        ui::say(&format!("{:<10}  {}", back.word(), escape(back.path())));
                    }
                }
                Err(e) if e.exit == Exit::SomeFailed => {}
                Err(e) => {
                    told.failed += 1;
                    ui::complain(&format!("{}: {}", escape(back.path()), e.line));
                }
            }
        }
        Ok((count, rules))
    })();
    let _ = fs::remove_dir_all(&at);
    let (count, rules) = done?;
    // What was done in them moved their times.
    let mut dirs: BTreeSet<Vec<Name>> = BTreeSet::new();
    for path in todo.iter().filter_map(|back| names(back.path())) {
        let mut above = path.as_slice();
        while let Some((_, rest)) = above.split_last() {
            above = rest;
            if !dirs.insert(above.to_vec()) {
                break;
            }
        }
    }
    for dir in dirs.iter().rev() {
        if let Some(entry) = past.tree(stand.moment).find(dir)?
            && entry.state.kind.is_dir()
            && let Err(e) = meta_one(&top, dir, &entry.state, &rules)
        {
            told.failed += 1;
            ui::complain(&format!("{}: {}", crate::cli::past::shown(dir), e.line));
        }
    }
    Ok(count)
}

fn sys(what: &str) -> impl FnOnce(Errno) -> CliError {
    move |e| CliError::failed(format!("cannot {what}: {}", std::io::Error::from(e)))
}

/// Why a path of the live tree is not what the mirror knows of it now: then nobody could have it back. `None`: it is.
fn changed_since(
    past: &mut Past,
    now: Option<Moment>,
    top: &OwnedFd,
    path: &[Name],
    listed: &mut Listed,
) -> Result<Option<&'static str>, CliError> {
    let (Some(now), Some((name, above))) = (now, path.split_last()) else {
        return Ok(None);
    };
    listed.load(&mut past.tree(now), above)?;
    let known = listed.entries.get(name);
    let mut dir = rustix::io::fcntl_dupfd_cloexec(top, 0).map_err(sys("open it"))?;
    for name in above {
        dir = match open::dir(&dir, name.as_bytes()) {
            Ok(dir) => dir,
            // Put back before, or not there yet.
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(sys("open its directory")(e)),
        };
    }
    let there = crate::sys::stat::statx(&dir, name.as_bytes()).ok();
    Ok(match (known, there) {
        (_, None) => None,
        (None, Some(_)) => Some("something is there that the mirror does not know yet"),
        (Some(entry), Some(stat)) => {
            let same = crate::apply::meta::same_type(&entry.state.kind, &stat);
            let file = entry.state.kind.content().is_none_or(|content| {
                content.bytes == stat.bytes && entry.state.meta.mtime == stat.mtime
            });
            (!same || !file)
                .then_some("it changed a moment ago, and the mirror does not know that yet")
        }
    })
}

/// One directory as it was: what is put back beside each other is asked for at once.
#[derive(Default)]
struct Listed {
    dir: Option<Vec<Name>>,
    entries: BTreeMap<Name, Entry>,
}

impl Listed {
    fn load(&mut self, tree: &mut AsOf<'_>, dir: &[Name]) -> Result<(), CliError> {
        if self.dir.as_deref() == Some(dir) {
            return Ok(());
        }
        self.entries.clear();
        self.dir = Some(dir.to_vec());
        let Some(found) = tree.find(dir)? else {
            return Ok(());
        };
        let mut after = None;
        loop {
            let (entries, next) = tree.page(found.id, after.as_ref())?;
            let named = entries.into_iter().map(|entry| (entry.name.clone(), entry));
            self.entries.extend(named);
            match next {
                Some(name) => after = Some(name),
                None => return Ok(()),
            }
        }
    }
}

fn put_one(
    past: &mut Past,
    stand: &Stand,
    (top, stage): (&OwnedFd, &OwnedFd),
    path: &[Name],
    rules: &crate::apply::meta::Rules,
    (listed, take): (&mut Listed, bool),
    told: &mut Told,
) -> Result<(), CliError> {
    let mut tree = past.tree(stand.moment);
    let Some((name, above)) = path.split_last() else {
        let state = tree.root()?;
        return meta_one(top, path, &state, rules);
    };
    listed.load(&mut tree, above)?;
    let Some(mut entry) = listed.entries.get(name).cloned() else {
        return Ok(());
    };
    let dir = dir_of(top, above).map_err(sys("open its directory"))?;
    let keep = rustix::io::fcntl_dupfd_cloexec(stage, 0).map_err(sys("open the staging area"))?;
    entry.name = Name::new(b"new").map_err(|_| CliError::failed("no name"))?;
    let before = told.failed;
    let mut checkout = Checkout::new(&mut tree, rules, told, keep);
    checkout.entry(&entry).map_err(checkout_error)?;
    if told.failed != before && !entry.state.kind.is_dir() {
        return Err(CliError::new(Exit::SomeFailed, String::new()));
    }
    let name = name.as_bytes();
    let there = crate::sys::stat::statx(&dir, name).ok();
    match (entry.state.kind.is_dir(), there) {
        (true, Some(_)) => {
            let (from, to) = (
                by_fd(stage).join("new"),
                by_fd(&dir).join(std::ffi::OsStr::from_bytes(name)),
            );
            merge(&from, &to, take, rules)
                .map_err(|(_, e)| CliError::failed(format!("cannot put it in place: {e}")))?;
            let _ = fs::remove_dir_all(&from);
            Ok(())
        }
        (false, Some(stat)) if stat.is_dir() => {
            let _ = target::unlink(stage, b"new");
            Err(CliError::failed(
                "a directory is there now, and it was none: --delete removes that",
            ))
        }
        _ => target::rename(stage, b"new", &dir, name).map_err(sys("put it in place")),
    }
}

fn meta_one(
    top: &OwnedFd,
    path: &[Name],
    state: &State,
    rules: &crate::apply::meta::Rules,
) -> Result<(), CliError> {
    let (here, _) = rules.here(state);
    let set = match path.split_last() {
        None => rules.adjust(top, &here.kind, &here.meta, true),
        Some((name, above)) => {
            let dir = dir_of(top, above).map_err(sys("open its directory"))?;
            let held = crate::apply::meta::hold(&dir, name.as_bytes()).map_err(sys("open it"))?;
            if held.stat.is_dir() != state.kind.is_dir() {
                return Err(CliError::failed("something else is there now"));
            }
            rules.adjust(&held.fd, &here.kind, &here.meta, true)
        }
    };
    set.map(drop).map_err(sys("set its attributes"))
}

fn take_one(top: &OwnedFd, path: &[Name]) -> Result<(), CliError> {
    let Some((name, above)) = path.split_last() else {
        return Ok(());
    };
    let mut dir = rustix::io::fcntl_dupfd_cloexec(top, 0).map_err(sys("open it"))?;
    for name in above {
        dir = match open::dir(&dir, name.as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(sys("open its directory")(e)),
        };
    }
    match target::unlink(&dir, name.as_bytes()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            let path = by_fd(&dir).join(std::ffi::OsStr::from_bytes(name.as_bytes()));
            fs::remove_dir_all(&path)
                .map_err(|e| CliError::failed(format!("cannot remove it: {e}")))
        }
        Err(e) => Err(sys("remove it")(e)),
    }
}

fn list(todo: &[Back], say: Say) {
    for back in todo {
        match say.json {
            true => {
                ui::say(&json!({"would": back.word(), "path": escape(back.path())}).to_string())
            }
            false => ui::say(&format!("{:<10}  {}", back.word(), escape(back.path()))),
        }
    }
}

fn end(done: u64, failed: u64, live: &Path, stand: &Stand, say: Say) -> Exit {
    match say.json {
        true => ui::say(
            &json!({
                "to": show(live), "position": stand.moment.position().to_string(), "done": done, "failed": failed,
            })
            .to_string(),
        ),
        false if !say.quiet => ui::say(&format!(
            "{}: {} as {} before",
            show(live),
            text::counted(done, "path", "paths"),
            if done == 1 { "it was" } else { "they were" }
        )),
        false => {}
    }
    some_failed(failed)
}

fn inside(path: &[u8], tops: &[Vec<u8>]) -> bool {
    tops.iter().any(|top| {
        top.is_empty()
            || path
                .strip_prefix(top.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
    })
}

/// `restore --to-source`.
pub fn to_source(args: &RestoreArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    let live = past.live()?;
    let now = past.stand("now")?;
    let stand = past.stand(&args.at)?;
    if past.part().is_some() {
        return Err(CliError::usage(
            "that time is in an earlier part of the history: restore --to DIR, and copy from there",
        ));
    }
    let mut tops = Vec::new();
    for typed in &args.paths {
        let path = past.path(typed, args.which.mirror.is_some())?;
        if past.tree(stand.moment).find(&path)?.is_none() {
            return Err(super::get::missing(&past, &path, &stand));
        }
        let names: Vec<&[u8]> = path.iter().map(Name::as_bytes).collect();
        tops.push(names.join(&b'/'));
    }
    note(args.say.quiet, args.say.json, &past.around(&stand));
    let mut found = past.differs(stand.moment, now.moment)?;
    // What lies in a directory that is not there any more is told by that.
    let mut above = Vec::new();
    for top in &tops {
        let covers = |differs: &&Differs| {
            differs.before.is_some()
                && matches!(differs.op, Op::Remove | Op::Rename | Op::Write)
                && !top.is_empty()
                && differs.path != *top
                && inside(top, std::slice::from_ref(&differs.path))
        };
        if found.iter().any(|differs| covers(&differs)) {
            above.push(Back::Put(top.clone()));
        }
    }
    found.retain(|differs| {
        inside(&differs.path, &tops) || differs.to.as_ref().is_some_and(|to| inside(to, &tops))
    });
    let mut todo = past.back(&found, stand.moment, args.delete)?;
    todo.extend(above);
    if args.dry_run {
        list(&todo, args.say);
        return Ok(Exit::Done);
    }
    let mut told = Told {
        say: args.say,
        failed: 0,
    };
    let done = carry_out(
        &mut past,
        (&stand, Some(now.moment)),
        &live,
        &todo,
        &mut told,
    )?;
    Ok(end(done, told.failed, &live, &stand, args.say))
}

/// Takes back what somebody did, where nobody else changed it later.
pub fn undo(args: &UndoArgs) -> Result<Exit, CliError> {
    if args.to_source == args.to.is_some() {
        return Err(CliError::usage(
            "where to? --to DIR writes what was before below a directory of this host, --to-source changes the source itself \
             (a mirror is never edited)",
        ));
    }
    let who: Vec<Who> = args
        .who
        .iter()
        .map(|who| Who::parse(who))
        .collect::<Result<_, _>>()?;
    let mut past = Past::open(&args.which)?;
    let now = past.stand("now")?;
    let stand = past.stand(&args.since)?;
    if past.part().is_some() {
        return Err(CliError::usage(
            "that time is in an earlier part of the history",
        ));
    }
    // Who changed each object last, and whether the one we mean ever did.
    let mut touched: BTreeSet<ObjectId> = BTreeSet::new();
    let mut others: BTreeMap<ObjectId, String> = BTreeMap::new();
    let mut others_at: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    past.changes((stand.moment, now.moment), &mut |change| {
        let id = ObjectId(change.object);
        let fits = who.iter().all(|who| who.fits(change.who.as_ref()));
        if fits {
            touched.insert(id);
        } else {
            let by = crate::cli::past::log::who(change.who.as_ref());
            if touched.contains(&id) {
                others.insert(id, by.clone());
            }
            for path in [Some(&change.path), change.to.as_ref()]
                .into_iter()
                .flatten()
            {
                others_at.insert(path.0.clone(), by.clone());
            }
        }
        true
    })?;
    note(args.say.quiet, args.say.json, &past.around(&stand));
    let mut found = past.differs(stand.moment, now.moment)?;
    let id_of = |differs: &Differs| {
        let of = |side: &Option<(ObjectId, State)>| side.as_ref().map(|(id, _)| *id);
        (of(&differs.before), of(&differs.after))
    };
    found.retain(|differs| {
        let (before, after) = id_of(differs);
        [before, after]
            .into_iter()
            .flatten()
            .any(|id| touched.contains(&id))
    });
    let mut told = Told {
        say: args.say,
        failed: 0,
    };
    found.retain(|differs| {
        let (before, after) = id_of(differs);
        let other = [before, after]
            .into_iter()
            .flatten()
            .find_map(|id| others.get(&id));
        // By its name, too; and in a directory that would go.
        let at = |path: &Vec<u8>| {
            let mut below = path.clone();
            below.push(b'/');
            let inside = others_at.range(below.clone()..).next();
            let inside =
                inside.filter(|(other, _)| differs.op == Op::Create && other.starts_with(&below));
            others_at.get(path).or(inside.map(|(_, by)| by))
        };
        let other = other
            .or_else(|| at(&differs.path))
            .or_else(|| differs.to.as_ref().and_then(at));
        if let Some(other) = other {
            told.failed += 1;
            let path = escape(differs.to.as_ref().unwrap_or(&differs.path));
            match args.say.json {
                true => ui::say(&json!({"left": path, "changed_later_by": other}).to_string()),
                false => ui::complain(&format!("{path}: left as it is, {other} changed it later")),
            }
        }
        other.is_none()
    });
    let mut todo = past.back(&found, stand.moment, args.to_source)?;
    if !args.to_source {
        for back in &mut todo {
            if let Back::Meta(path, state) = back
                && !state.kind.is_dir()
            {
                *back = Back::Put(path.clone());
            }
        }
        todo.retain(|back| matches!(back, Back::Put(_)));
    }
    if args.dry_run {
        list(&todo, args.say);
        return Ok(some_failed(told.failed));
    }
    let live = match &args.to {
        Some(to) => {
            fs::create_dir_all(to)
                .map_err(|e| CliError::failed(format!("cannot make {}: {e}", show(to))))?;
            let to = fs::canonicalize(to).map_err(|e| CliError::usage(e.to_string()))?;
            if to.starts_with(&past.dst) || to.starts_with(&past.state_dir) {
                return Err(CliError::usage(
                    "a mirror is never edited: name a directory outside of it",
                ));
            }
            to
        }
        None => past.live()?,
    };
    let known = args.to_source.then_some(now.moment);
    let done = carry_out(&mut past, (&stand, known), &live, &todo, &mut told)?;
    Ok(end(done, told.failed, &live, &stand, args.say))
}
