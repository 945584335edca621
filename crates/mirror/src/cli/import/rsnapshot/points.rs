//! One backup line: where it reads from, and with which options.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::super::ReadFile;
use super::super::notes::{At, Notes};
use super::super::rsync_args::{Args, split};
use crate::cli::parse;
use crate::engine::options::SourceSpec;

/// A line that is copied from somewhere.
pub struct Point {
    pub at: At,
    pub line: Vec<u8>,
    pub source: Vec<u8>,
    pub below: String,
    pub options: Vec<Opt>,
}

/// `+name=value` of a backup line.
pub struct Opt {
    pub add: bool,
    pub name: String,
    pub value: String,
}

/// Settings that hold for all backup lines.
#[derive(Default)]
pub struct Global {
    pub short: Option<(String, At)>,
    pub long: Option<(String, At)>,
    pub ssh: Option<(String, At)>,
    /// Patterns, and files of them: kept or left out.
    pub rules: Vec<(bool, String, At)>,
    pub rule_files: Vec<(bool, String, At)>,
    pub one_fs: bool,
}

impl Point {
    /// `None`: it can't be followed; the notes say why.
    pub fn source(&self, notes: &mut Notes) -> Option<SourceSpec> {
        let text = &self.source;
        let refuse = |notes: &mut Notes, why: &str, instead: &str| {
            notes.open(&self.at, &self.line, why, instead);
            None
        };
        if text.starts_with(b"lvm://") {
            return refuse(
                notes,
                "no snapshot of a volume is made to read from",
                "follow the mounted file system itself, as /path; a database is dumped into a directory that is followed",
            );
        }
        if text.starts_with(b"rsync://") || is_rsyncd(text) {
            return refuse(
                notes,
                "the rsync daemon's protocol is not spoken",
                "install mirrord on that host and pair (README, \"As services\"), or use user@host:/path over ssh",
            );
        }
        let typed = OsString::from_vec(text.clone());
        match parse::source(&typed) {
            Ok(SourceSpec::Local(path)) if path.is_absolute() => {
                // Without dots and slashes at the end.
                Some(SourceSpec::Local(path.components().collect()))
            }
            Ok(SourceSpec::Ssh {
                user,
                host,
                port,
                path,
            }) => {
                let below_home = path.strip_prefix(b"~/").or(path.strip_prefix(b"./"));
                let path = below_home.unwrap_or(&path);
                let path = match path.iter().rposition(|b| *b != b'/') {
                    Some(last) => path.get(..=last).unwrap_or_default().to_vec(),
                    None => b"/".to_vec(),
                };
                if path.starts_with(b"~") {
                    return refuse(
                        notes,
                        "another user's home is not looked up",
                        "user@host:/path",
                    );
                }
                Some(SourceSpec::Ssh {
                    user,
                    host,
                    port,
                    path,
                })
            }
            Ok(_) => refuse(notes, "not known as a source", "/path or user@host:/path"),
            Err(e) => refuse(notes, &e.0, "/path or user@host:/path"),
        }
    }

    /// Which options hold for a line: its own instead of the global ones, or besides.
    pub fn args(&self, global: &Global, open: &mut ReadFile, notes: &mut Notes) -> Args {
        let mut args = Args::default();
        let own = |name: &str| {
            let found = self.options.iter().rfind(|o| o.name == name && !o.add);
            found.map(|o| (o.value.clone(), self.at.clone()))
        };
        let added = |name: &str| self.options.iter().rfind(|o| o.name == name && o.add);
        let or = |own: Option<(String, At)>, global: &Option<(String, At)>, usual: &str| {
            own.or_else(|| global.clone())
                .unwrap_or_else(|| (usual.into(), At::line(0)))
        };
        let (short, at) = or(own("rsync_short_args"), &global.short, "-a");
        args.read(&split(&short), &at, notes);
        if let Some(more) = added("rsync_short_args") {
            args.read(&split(&more.value), &self.at, notes);
        }
        let usual = "--delete --numeric-ids --relative --delete-excluded";
        let (long, at) = or(own("rsync_long_args"), &global.long, usual);
        args.read(&split(&long), &at, notes);
        // A line with rules of its own has lost the global ones; rsnapshot does so.
        let is_rule = |o: &&Opt| {
            ["include", "exclude", "include_file", "exclude_file"].contains(&o.name.as_str())
        };
        let mut rules = Vec::new();
        let mut files = Vec::new();
        for one in self.options.iter().filter(is_rule) {
            let keep = one.name.starts_with("include");
            let rule = (keep, one.value.clone(), self.at.clone());
            match one.name.ends_with("_file") {
                true => files.push(rule),
                false => rules.push(rule),
            }
        }
        if rules.is_empty() && files.is_empty() && own("rsync_long_args").is_none() {
            rules = global.rules.clone();
            files = global.rule_files.clone();
        }
        for (keep, pattern, at) in rules {
            args.rule(keep, &pattern, &at, notes);
        }
        args.rule_files.extend(files);
        if let Some(more) = added("rsync_long_args") {
            args.read(&split(&more.value), &self.at, notes);
        }
        if let Some((ssh, at)) = own("ssh_args").or_else(|| global.ssh.clone())
            && !is_local(&self.source)
        {
            args.ssh(&split(&ssh), &at, notes);
        }
        args.one_fs |= match own("one_fs") {
            Some((value, _)) => value == "1",
            None => global.one_fs,
        };
        for one in &self.options {
            let known = [
                "one_fs",
                "rsync_short_args",
                "rsync_long_args",
                "ssh_args",
                "include",
                "exclude",
                "include_file",
                "exclude_file",
            ];
            if !known.contains(&one.name.as_str()) && !one.name.starts_with("linux_lvm_") {
                notes.open(
                    &self.at,
                    format!("{}={}", one.name, one.value).as_bytes(),
                    "not known as an option of a backup line",
                    "the settings of a tree are in docs/BACKUP.md",
                );
            }
        }
        for (keep, path, at) in std::mem::take(&mut args.rule_files) {
            let file = Arc::new(PathBuf::from(&path));
            let mut inside = at.clone();
            inside.file = Some(file.clone());
            match open(&file) {
                Ok(text) => args.rule_lines(keep, &text, &inside, notes),
                Err(why) => notes.open(
                    &at,
                    path.as_bytes(),
                    why,
                    "its lines in `ignore` of the tree",
                ),
            }
        }
        args
    }
}

fn is_local(source: &[u8]) -> bool {
    source.starts_with(b"/")
}

/// `host::module`. Colons in brackets belong to an address.
pub fn is_rsyncd(text: &[u8]) -> bool {
    let slash = text.iter().position(|b| *b == b'/').unwrap_or(text.len());
    let host = text.get(..slash).unwrap_or_default();
    let after = host.iter().rposition(|b| *b == b']').unwrap_or(0);
    let mut pairs = host.get(after..).unwrap_or_default().windows(2);
    pairs.any(|two| two == b"::")
}

/// A source as `source = ` has it.
pub fn typed(source: &SourceSpec, args: &Args) -> OsString {
    let mut out = Vec::new();
    match source {
        SourceSpec::Local(path) => out.extend_from_slice(path.as_os_str().as_bytes()),
        SourceSpec::Service { host, name, .. } => {
            out.extend_from_slice(format!("mirror://{host}/{name}").as_bytes());
        }
        SourceSpec::Ssh {
            user, host, path, ..
        } => {
            let user = args.ssh_user.as_ref().or(user.as_ref());
            let user = user.map(|user| format!("{user}@")).unwrap_or_default();
            let host = match host.contains(':') {
                true => format!("[{host}]"),
                false => host.clone(),
            };
            match (args.ssh_port, path.starts_with(b"/")) {
                (Some(port), true) => out.extend(format!("ssh://{user}{host}:{port}").bytes()),
                (Some(port), false) => out.extend(format!("ssh://{user}{host}:{port}/~/").bytes()),
                (None, _) => out.extend(format!("{user}{host}:").bytes()),
            }
            out.extend_from_slice(path);
        }
    }
    OsString::from_vec(out)
}
