//! Getting things back: `cat`, `restore`, `checkout`.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use mirror_core::{Name, ObjectId, State};
use serde_json::json;

use crate::apply::Owners;
use crate::apply::content::{RangeReader, hasher};
use crate::apply::meta::Rules;
use crate::cli::args::{CatArgs, CheckoutArgs, RestoreArgs, Say};
use crate::cli::exit::{CliError, Exit, chain};
use crate::cli::past::{Past, Stand, note, shown, some_failed};
use crate::cli::places::show;
use crate::cli::{text, ui};
use crate::history::checkout::{Checkout, CheckoutError, Made, Progress, why_unkept};
use crate::history::tree::{Entry, PastTree, Where};
use crate::sys::{Errno, open, target};

/// A file goes to standard output, and only if its bytes are those of that version.
pub fn cat(args: &CatArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    let path = past.path(&args.path, args.which.mirror.is_some())?;
    let stand = past.stand(&args.at)?;
    let Some(entry) = past.tree(stand.moment).find(&path)? else {
        return Err(missing(&past, &path, &stand));
    };
    let Some(content) = entry.state.kind.content().cloned() else {
        let what = match entry.state.kind {
            mirror_core::Kind::Dir => "a directory",
            mirror_core::Kind::Symlink(_) => "a symbolic link",
            _ => "a special file",
        };
        return Err(CliError::usage(format!(
            "{} was {what}, not a file",
            shown(&path)
        )));
    };
    let failed = |why: String| CliError::failed(format!("{}: {why}", shown(&path)));
    if let Where::Unkept(why) = entry.bytes {
        return Err(failed(why_unkept(why).into()));
    }
    let mut out = std::io::stdout().lock();
    let written = |e: std::io::Error| CliError::failed(format!("cannot write: {e}"));
    if entry.bytes == Where::Nothing {
        std::io::copy(
            &mut std::io::Read::take(std::io::repeat(0), content.bytes),
            &mut out,
        )
        .map_err(written)?;
        return Ok(Exit::Done);
    }
    // Once to see that it is whole, once to say it; it is open, so nobody replaces it in between.
    let mut tree = past.tree(stand.moment);
    let mut opened = None;
    for _ in 0..3 {
        let fd = tree.open(&entry).map_err(|e| failed(e.to_string()))?;
        let again = rustix::io::fcntl_dupfd_cloexec(&fd, 0).map_err(|e| failed(e.to_string()))?;
        let mut hasher = hasher(&content);
        let copied = std::io::copy(&mut RangeReader::new(again, &content), &mut hasher);
        if copied.is_ok() && *hasher.finalize().as_bytes() == content.digest.0 {
            opened = Some(fd);
            break;
        }
    }
    let Some(fd) = opened else {
        return Err(failed(
            "what is kept of it is damaged: its bytes are not those of that version".into(),
        ));
    };
    let mut at = 0;
    let mut reader = RangeReader::new(fd, &content);
    for (offset, length) in crate::apply::content::ranges(&content) {
        let gap = offset.saturating_sub(at);
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), gap), &mut out)
            .map_err(written)?;
        std::io::copy(&mut std::io::Read::take(&mut reader, length), &mut out).map_err(written)?;
        at = offset + length;
    }
    let gap = content.bytes.saturating_sub(at);
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), gap), &mut out).map_err(written)?;
    out.flush().map_err(written)?;
    Ok(Exit::Done)
}

pub fn missing(past: &Past, path: &[Name], stand: &Stand) -> CliError {
    CliError::usage(format!(
        "{} was not there {}; `fs_mirror log {}` tells when it was",
        shown(path),
        past.around(stand),
        shown(path)
    ))
}

/// What is told while a tree is made.
pub struct Told {
    pub say: Say,
    pub failed: u64,
}

impl Progress for Told {
    fn made(&mut self, path: &[u8], _: &State) {
        if self.say.verbose && !self.say.json {
            ui::say(&mirror_core::escape(path));
        }
    }
    fn lost(&mut self, path: &[u8], why: &str) -> bool {
        self.failed += 1;
        let path = mirror_core::escape(path);
        match self.say.json {
            true => ui::say(&json!({"failed": path, "why": why}).to_string()),
            false => ui::complain(&format!("{path}: {why}")),
        }
        true
    }
}

pub fn checkout_error(e: CheckoutError) -> CliError {
    match e {
        CheckoutError::Past(e) => e.into(),
        e => CliError::failed(chain(&e)),
    }
}

/// A new or empty directory of ours; true: it was made.
fn new_dir(dir: &Path, past: &Past) -> Result<(PathBuf, bool), CliError> {
    let absolute = std::path::absolute(dir).map_err(|e| CliError::usage(e.to_string()))?;
    let parent = absolute
        .parent()
        .and_then(|parent| fs::canonicalize(parent).ok());
    let (Some(parent), Some(name)) = (parent, absolute.file_name()) else {
        return Err(CliError::usage(format!(
            "{} can't be made: the directory above it does not exist",
            show(dir)
        )));
    };
    let dir = parent.join(name);
    for (top, what) in [(&past.dst, "the copy"), (&past.state_dir, "its state")] {
        if dir.starts_with(top) {
            return Err(CliError::usage(format!(
                "{} is inside {what}, which holds nothing else: name a directory outside of {}",
                show(&dir),
                show(top)
            )));
        }
    }
    let failed = |e: std::io::Error| CliError::failed(format!("cannot make {}: {e}", show(&dir)));
    match fs::create_dir(&dir) {
        Ok(()) => Ok((dir, true)),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            match fs::read_dir(&dir).map_err(failed)?.next() {
                None => Ok((dir, false)),
                Some(_) => Err(CliError::usage(format!(
                    "{} is not empty: name a new directory",
                    show(&dir)
                ))),
            }
        }
        Err(e) => Err(failed(e)),
    }
}

/// What can be set there.
pub fn rules(dir: &OwnedFd) -> Result<Rules, CliError> {
    let owners = match rustix::process::geteuid().is_root() {
        true => Owners::Apply,
        false => Owners::Record,
    };
    Rules::probe(dir, owners).map_err(|e| {
        let e = std::io::Error::from(e);
        CliError::failed(format!("cannot write there: {e}"))
    })
}

fn open_dir(dir: &Path) -> Result<OwnedFd, CliError> {
    open::dir_at_path(dir).map_err(|e| {
        let e = std::io::Error::from(e);
        CliError::failed(format!("cannot open {}: {e}", show(dir)))
    })
}

fn summary(made: &Made) -> String {
    format!(
        "{}, {}, {}",
        text::counted(made.files + made.links, "file", "files"),
        text::counted(made.dirs, "directory", "directories"),
        text::bytes(made.bytes)
    )
}

fn summary_json(made: &Made, failed: u64, to: &Path, stand: &Stand) -> serde_json::Value {
    json!({
        "to": show(to), "position": stand.moment.position().to_string(),
        "files": made.files, "links": made.links, "directories": made.dirs, "others": made.others,
        "bytes": made.bytes, "failed": failed,
    })
}

pub fn checkout(args: &CheckoutArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    let stand = past.stand(&args.at)?;
    let (dir, created) = new_dir(&args.dir, &past)?;
    note(args.say.quiet, args.say.json, &past.around(&stand));
    let mut told = Told {
        say: args.say,
        failed: 0,
    };
    let done = fill(&mut past, &stand, &dir, &mut told);
    let made = match done {
        Ok(made) => made,
        Err(e) => {
            // Half a tree helps nobody.
            let _ = match created {
                true => fs::remove_dir_all(&dir),
                false => empty(&dir),
            };
            return Err(e);
        }
    };
    match args.say.json {
        true => ui::say(&summary_json(&made, told.failed, &dir, &stand).to_string()),
        false if !args.say.quiet => ui::say(&format!("{}: {}", show(&dir), summary(&made))),
        false => {}
    }
    Ok(some_failed(told.failed))
}

fn empty(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.symlink_metadata()?.is_dir() {
            true => fs::remove_dir_all(path)?,
            false => fs::remove_file(path)?,
        }
    }
    Ok(())
}

fn fill(past: &mut Past, stand: &Stand, dir: &Path, told: &mut Told) -> Result<Made, CliError> {
    let top = open_dir(dir)?;
    let rules = rules(&top)?;
    let mut tree = past.tree(stand.moment);
    let root = tree.root()?;
    let mut checkout = Checkout::new(&mut tree, &rules, told, top);
    checkout
        .fill_top(ObjectId::ROOT, &root)
        .map_err(checkout_error)?;
    Ok(checkout.made)
}

pub fn restore(args: &RestoreArgs) -> Result<Exit, CliError> {
    if args.to_source {
        return super::back::to_source(args);
    }
    let Some(to) = &args.to else {
        return Err(CliError::usage(
            "where to? --to DIR writes below a directory of this host, --to-source changes the source itself \
             (a mirror is never edited)",
        ));
    };
    let mut past = Past::open(&args.which)?;
    let stand = past.stand(&args.at)?;
    let mut wanted = Vec::new();
    for typed in &args.paths {
        let path = past.path(typed, args.which.mirror.is_some())?;
        match past.tree(stand.moment).find(&path)? {
            Some(entry) => wanted.push((path, entry)),
            None => return Err(missing(&past, &path, &stand)),
        }
    }
    note(args.say.quiet, args.say.json, &past.around(&stand));
    let to = std::path::absolute(to).map_err(|e| CliError::usage(e.to_string()))?;
    for (top, what) in [(&past.dst, "the copy"), (&past.state_dir, "its state")] {
        let mut ancestors = to.ancestors();
        let real = ancestors.find_map(|above| fs::canonicalize(above).ok());
        if real.is_some_and(|real| real.starts_with(top)) {
            return Err(CliError::usage(format!(
                "{} is inside {what}: a mirror is never edited, name a directory outside of it",
                show(&to)
            )));
        }
    }
    let mut told = Told {
        say: args.say,
        failed: 0,
    };
    if args.dry_run {
        for (path, entry) in &wanted {
            would(&mut past, &stand, path, entry, &mut told)?;
        }
        return Ok(some_failed(told.failed));
    }
    let mut sum = Made::default();
    for (path, entry) in &wanted {
        let made = restore_one(
            &mut past,
            &stand,
            (path, entry),
            &to,
            args.delete,
            &mut told,
        )?;
        sum.files += made.files;
        sum.dirs += made.dirs;
        sum.others += made.others;
        sum.bytes += made.bytes;
        sum.links += made.links;
    }
    match args.say.json {
        true => ui::say(&summary_json(&sum, told.failed, &to, &stand).to_string()),
        false if !args.say.quiet => ui::say(&format!("{}: {}", show(&to), summary(&sum))),
        false => {}
    }
    Ok(some_failed(told.failed))
}

/// Lists what a restore would make.
fn would(
    past: &mut Past,
    stand: &Stand,
    path: &[Name],
    entry: &Entry,
    told: &mut Told,
) -> Result<(), CliError> {
    let mut todo = vec![(path.to_vec(), entry.clone())];
    while let Some((path, entry)) = todo.pop() {
        if let Where::Unkept(why) = entry.bytes {
            told.lost(shown(&path).as_bytes(), why_unkept(why));
            continue;
        }
        let bytes = entry.state.kind.content().map(|content| content.bytes);
        match (told.say.json, bytes) {
            (true, _) => ui::say(&json!({"would": shown(&path), "bytes": bytes}).to_string()),
            (false, Some(bytes)) => ui::say(&format!("{} ({})", shown(&path), text::bytes(bytes))),
            (false, None) => ui::say(&shown(&path)),
        }
        if entry.state.kind.is_dir() {
            let mut after = None;
            loop {
                let (entries, next) = past.tree(stand.moment).page(entry.id, after.as_ref())?;
                for entry in entries {
                    let mut below = path.clone();
                    below.push(entry.name.clone());
                    todo.push((below, entry));
                }
                match next {
                    Some(name) => after = Some(name),
                    None => break,
                }
            }
        }
    }
    Ok(())
}

/// Makes one path beside where it is to be, whole, and moves it there: no half-restored file, ever.
fn restore_one(
    past: &mut Past,
    stand: &Stand,
    (path, entry): (&[Name], &Entry),
    to: &Path,
    delete: bool,
    told: &mut Told,
) -> Result<Made, CliError> {
    let (above, name) = match path.split_last() {
        Some((name, above)) => (above, Some(name)),
        None => (path, None),
    };
    let failed = |what: &str, path: &Path, e: &dyn std::fmt::Display| {
        CliError::failed(format!("cannot {what} {}: {e}", show(path)))
    };
    fs::create_dir_all(to).map_err(|e| failed("make", to, &e))?;
    // No symlink that somebody put there is followed.
    let top = super::back::dir_of(&open_dir(to)?, above)
        .map_err(|e| failed("open the directory for", to, &std::io::Error::from(e)))?;
    let dir = super::back::by_fd(&top);
    let staged = format!(".fs_mirror-restore.{}", std::process::id());
    target::create_dir(&top, staged.as_bytes())
        .map_err(|e| failed("write to", &dir, &std::io::Error::from(e)))?;
    let staging = dir.join(&staged);
    let made = (|| {
        let stage = open::dir(&top, staged.as_bytes())
            .map_err(|e| failed("open", &staging, &std::io::Error::from(e)))?;
        target::set_mode(&stage, b"", 0o700)
            .map_err(|e| failed("write to", &staging, &std::io::Error::from(e)))?;
        let rules = rules(&stage)?;
        let keep =
            rustix::io::fcntl_dupfd_cloexec(&stage, 0).map_err(|e| failed("open", &staging, &e))?;
        let before = told.failed;
        let mut tree = past.tree(stand.moment);
        let mut entry = entry.clone();
        if name.is_none() {
            entry.name = Name::new(b"tree").map_err(|_| failed("make", &staging, &"no name"))?;
        }
        let mut checkout = Checkout::new(&mut tree, &rules, told, stage);
        checkout.entry(&entry).map_err(checkout_error)?;
        let made = checkout.made.clone();
        let from = staging.join(std::ffi::OsStr::from_bytes(entry.name.as_bytes()));
        let at = match name {
            Some(name) => dir.join(std::ffi::OsStr::from_bytes(name.as_bytes())),
            None => dir.clone(),
        };
        if entry.state.kind.is_dir() {
            merge(&from, &at, delete && told.failed == before, &rules)
                .map_err(|(path, e)| failed("put in place", &path, &e))?;
        } else if told.failed == before {
            let name = entry.name.as_bytes();
            match target::rename(&keep, name, &top, name) {
                Ok(()) => {}
                Err(e @ Errno::ISDIR) if delete => {
                    fs::remove_dir_all(&at).map_err(|e| failed("replace", &at, &e))?;
                    target::rename(&keep, name, &top, name)
                        .map_err(|_| failed("put in place", &at, &std::io::Error::from(e)))?;
                }
                Err(Errno::ISDIR) => {
                    return Err(failed(
                        "put in place",
                        &at,
                        &"a directory is there now (--delete replaces it)",
                    ));
                }
                Err(e) => return Err(failed("put in place", &at, &std::io::Error::from(e))),
            }
        }
        Ok(made)
    })();
    let _ = fs::remove_dir_all(&staging);
    made
}

/// Moves what was made over what is there: files replace files, directories are joined. With `delete` what else is there goes.
pub fn merge(
    from: &Path,
    to: &Path,
    delete: bool,
    rules: &Rules,
) -> Result<(), (PathBuf, std::io::Error)> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |e| (path, e)
    };
    match to.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return fs::rename(from, to).map_err(at(to));
        }
        Err(e) => return Err((to.into(), e)),
        Ok(found) if !found.is_dir() => {
            if !delete {
                let e = std::io::Error::other("a file is there now (--delete replaces it)");
                return Err((to.into(), e));
            }
            fs::remove_file(to).map_err(at(to))?;
            return fs::rename(from, to).map_err(at(to));
        }
        Ok(_) => {}
    }
    // Before anything moves out of it.
    let meta = read_meta(from, rules).map_err(at(from))?;
    let names = |dir: &Path| -> Result<Vec<std::ffi::OsString>, (PathBuf, std::io::Error)> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(at(dir))? {
            names.push(entry.map_err(at(dir))?.file_name());
        }
        Ok(names)
    };
    let mine = names(from)?;
    if delete {
        for name in names(to)? {
            let path = to.join(&name);
            // Where it is being made.
            let staging = name.as_bytes().starts_with(b".fs_mirror-restore.");
            if !mine.contains(&name) && !staging {
                let is_dir = path.symlink_metadata().map_err(at(&path))?.is_dir();
                let gone = if is_dir {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                gone.map_err(at(&path))?;
            }
        }
    }
    for name in mine {
        let (inner, outer) = (from.join(&name), to.join(&name));
        let is_dir = inner.symlink_metadata().map_err(at(&inner))?.is_dir();
        match is_dir {
            true => merge(&inner, &outer, delete, rules)?,
            false => match fs::rename(&inner, &outer) {
                Err(e) if e.kind() == std::io::ErrorKind::IsADirectory && delete => {
                    fs::remove_dir_all(&outer).map_err(at(&outer))?;
                    fs::rename(&inner, &outer).map_err(at(&outer))?;
                }
                done => done.map_err(at(&outer))?,
            },
        }
    }
    // Its own metadata, its times above all, come last.
    set_meta(to, &meta, rules).map_err(at(to))
}

fn read_meta(dir: &Path, rules: &Rules) -> std::io::Result<mirror_core::Meta> {
    let (_, meta) = rules.read(open::dir_at_path(dir)?, b"")?;
    Ok(meta)
}

fn set_meta(dir: &Path, meta: &mirror_core::Meta, rules: &Rules) -> std::io::Result<()> {
    rules.adjust(
        &open::dir_at_path(dir)?,
        &mirror_core::Kind::Dir,
        meta,
        true,
    )?;
    Ok(())
}
