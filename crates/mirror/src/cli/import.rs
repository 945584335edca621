//! `fs_mirror import`: what another tool's configuration says, as ours. It reads and prints; nothing is changed or run.

mod emit;
mod lsyncd;
mod lua;
mod notes;
mod patterns;
mod retention;
mod rsnapshot;
mod rsync_args;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

pub use emit::Kind;

use crate::cli::args::Say;
use crate::cli::exit::{CliError, Exit};
use crate::cli::ui;
use crate::engine::session::show;

/// Of one file, and of all that it names.
const FILE_BYTES_MAX: u64 = 1 << 20;
const FILES_BYTES_MAX: usize = 4 << 20;
const NAME_BYTES_MAX: usize = 60;

#[derive(Debug, Args)]
#[command(after_help = CODES)]
pub struct ImportArgs {
    /// rsnapshot.conf or lsyncd.conf
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Whose it is [default: what it looks like]
    #[arg(long, value_enum, value_name = "TOOL")]
    pub from: Option<Kind>,
    #[command(flatten)]
    pub say: Say,
}

const CODES: &str = "\
Prints a configuration for `fs_mirror serve`; lines that were not understood, or have no counterpart here, are named on \
stderr and in comments at its end. Nothing is changed or run; files that FILE includes are read.

Exit codes: 0 all was understood; 1 it can't be read; 2 wrong usage, or it is no such file; 3 printed, but some lines were not \
understood.";

/// Reads a file that was named in another one.
pub type ReadFile<'a> = dyn FnMut(&Path) -> Result<Arc<[u8]>, String> + 'a;

pub fn run(args: &ImportArgs) -> Result<Exit, CliError> {
    let text = read(&args.file).map_err(CliError::failed)?;
    let looks = (rsnapshot::looks_like(&text), lsyncd::looks_like(&text));
    let kind = kind(args, looks)?;
    let mut more = More::default();
    let mut open = |path: &Path| more.read(path);
    let import = match kind {
        Kind::Rsnapshot => rsnapshot::read(&text, &mut open),
        Kind::Lsyncd => lsyncd::read(&text, &this_host(), &mut open),
    };
    if args.say.json {
        ui::say(&import.to_json(&args.file).to_string());
    } else {
        ui::say(import.to_toml(&args.file).trim_end());
    }
    if import.notes.all_understood() {
        return Ok(Exit::Done);
    }
    if !args.say.json && !args.say.quiet {
        // On a terminal they were just seen as comments.
        if !io::stdout().is_terminal() {
            for note in &import.notes.open {
                ui::complain(&format!("{}: {note}", note.at.in_file(&args.file)));
            }
        }
        let lines = match import.notes.open.len() + import.notes.more {
            1 => "1 line was".to_owned(),
            n => format!("{n} lines were"),
        };
        ui::complain(&format!(
            "fs_mirror: {lines} not understood, or have no counterpart here; see the comments at the end"
        ));
    }
    Ok(Exit::SomeFailed)
}

/// As asked for, else what it looks like, else what it is called.
fn kind(args: &ImportArgs, (rsnapshot, lsyncd): (bool, bool)) -> Result<Kind, CliError> {
    let name = args.file.file_name().unwrap_or_default().as_bytes();
    let called = |word: &[u8]| name.windows(word.len()).any(|part| part == word);
    let none = |what: &str| {
        Err(CliError::usage(format!(
            "{} is {what}: rsnapshot.conf has lines like snapshot_root, retain, backup (then a tab), lsyncd.conf has sync{{...}}",
            show(&args.file)
        )))
    };
    match (args.from, rsnapshot, lsyncd) {
        (Some(Kind::Rsnapshot), false, _) => none("no rsnapshot.conf"),
        (Some(Kind::Lsyncd), _, false) => none("no lsyncd.conf"),
        (Some(kind), ..) => Ok(kind),
        (None, true, false) => Ok(Kind::Rsnapshot),
        (None, false, true) => Ok(Kind::Lsyncd),
        (None, true, true) if called(b"rsnapshot") => Ok(Kind::Rsnapshot),
        (None, true, true) if called(b"lsyncd") || called(b".lua") => Ok(Kind::Lsyncd),
        (None, true, true) => none("both, by its lines: say --from rsnapshot or --from lsyncd"),
        (None, false, false) => none("neither rsnapshot's nor lsyncd's"),
    }
}

/// Whole, if it is a plain file (or a pipe) of a size that a person writes.
fn read(path: &Path) -> Result<Arc<[u8]>, String> {
    let wrong = |e: io::Error| format!("cannot read {}: {e}", show(path));
    let file = File::open(path).map_err(wrong)?;
    if file.metadata().map_err(wrong)?.is_dir() {
        return Err(format!("{} is a directory", show(path)));
    }
    let mut text = Vec::new();
    let mut some = file.take(FILE_BYTES_MAX + 1);
    some.read_to_end(&mut text).map_err(wrong)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!(
            "{} is larger than {FILE_BYTES_MAX} bytes: that is no configuration",
            show(path)
        ));
    }
    Ok(text.into())
}

/// Files that are named in the first one, each read once.
#[derive(Default)]
struct More {
    read: BTreeMap<PathBuf, Result<Arc<[u8]>, String>>,
    bytes: usize,
}

impl More {
    fn read(&mut self, path: &Path) -> Result<Arc<[u8]>, String> {
        if let Some(known) = self.read.get(path) {
            return known.clone();
        }
        let is_file = std::fs::metadata(path).map(|meta| meta.is_file());
        let found = match is_file {
            Err(e) => Err(format!("cannot read {}: {e}", show(path))),
            Ok(false) => Err(format!("{} is no plain file", show(path))),
            Ok(true) if self.bytes > FILES_BYTES_MAX => {
                Err(format!("at most {FILES_BYTES_MAX} bytes are read in all"))
            }
            Ok(true) => read(path),
        };
        self.bytes += found.as_ref().map_or(0, |text| text.len());
        self.read.insert(path.to_path_buf(), found.clone());
        found
    }
}

/// What others call this host, as far as it knows.
fn this_host() -> String {
    let name = rustix::system::uname();
    match name.nodename().to_str() {
        Ok(name) if !name.is_empty() && name != "(none)" => name.to_owned(),
        _ => "SOURCE-HOST".into(),
    }
}

/// Names of trees, each given once.
#[derive(Debug, Default)]
struct Names {
    given: BTreeSet<String>,
}

impl Names {
    /// What a tree may be called that is wanted to be called so.
    fn given(&mut self, wanted: &str) -> String {
        let mut name = String::new();
        for c in wanted.chars() {
            match c {
                c if c.is_ascii_alphanumeric() || c == '.' || c == '_' => name.push(c),
                _ if name.ends_with('-') || name.is_empty() => {}
                _ => name.push('-'),
            }
            if name.len() >= NAME_BYTES_MAX - 6 {
                break;
            }
        }
        // That ending is of states, beside the copies.
        let name = name.replace(".fs_mirror", "-fs_mirror");
        let name = name.trim_matches(['-', '.', '_']);
        let name = if name.is_empty() { "tree" } else { name };
        let numbered = (2..).map(|n: u32| format!("{name}-{n}"));
        let free = std::iter::once(name.to_owned())
            .chain(numbered)
            .find(|name| !self.given.contains(name));
        let free = free.unwrap_or_default();
        self.given.insert(free.clone());
        free
    }
}
