//! What one `sync{...}` becomes: a tree here, or one that another host follows and this one offers.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use mirror_core::escape;

use super::super::emit::{Offered, Planned};
use super::super::notes::Notes;
use super::super::patterns::ignore_lines;
use super::super::rsnapshot::is_rsyncd;
use super::{Reader, Sync};
use crate::cli::parse;
use crate::engine::options::{Owners, SourceSpec, default_state_dir};
use crate::engine::service::backup::config::Tree;
use crate::engine::service::rate::Rates;
use crate::engine::session::show;

/// Where a sync puts its copy.
enum Target {
    Here(PathBuf),
    On(String, PathBuf),
}

impl Reader<'_> {
    /// A tree of it, unless nobody knows from where to where.
    pub fn plan(&mut self, sync: Sync) {
        let Some(source) = self.source(&sync) else {
            return;
        };
        let Some(target) = self.target(&sync) else {
            return;
        };
        let name = source.file_name().unwrap_or_default().as_bytes();
        let name = match name {
            b"" => "root".into(),
            name => String::from_utf8_lossy(name).into_owned(),
        };
        let lines = ignore_lines(&sync.args.rules, &[]);
        for (at, pattern, why) in &lines.refused {
            self.notes.open(
                at,
                pattern.as_bytes(),
                why.as_str(),
                "a gitignore line in `ignore` of the tree",
            );
        }
        let (host, dst) = match target {
            Target::Here(dst) => (None, dst),
            Target::On(host, dst) => (Some(host), dst),
        };
        let given = self.names.entry(host.clone()).or_default().given(&name);
        let comments = vec![format!(
            "{}: sync {} {} -> {}{}",
            sync.at,
            sync.layer,
            show(&source),
            host.as_ref()
                .map(|host| format!("{}:", escape(host.as_bytes())))
                .unwrap_or_default(),
            show(&dst)
        )];
        let (typed, offered) = match &host {
            None => (source.clone().into_os_string(), None),
            Some(_) => {
                let offered = self.offer(&name, &source, lines.lines.clone());
                let typed = OsString::from(format!("mirror://{}/{}", offered.host, offered.name));
                (typed, Some(offered))
            }
        };
        let mut tree = Tree::new(&given, typed, dst);
        if host.is_none() {
            tree.ignore = lines.lines;
        } else {
            tree.bwlimit = Rates::fixed(sync.args.bytes_per_s);
            tree.timeout = sync.args.timeout;
        }
        if sync.args.owners {
            tree.owners = Owners::Apply;
        }
        if sync.args.one_fs {
            self.notes.needless(
                &sync.at,
                b"one_file_system",
                "what is mounted below a tree is never entered, unless named (cross)",
            );
        }
        let off = self.clash(&sync, &host, &tree.dst).or(sync.off);
        self.trees.push(Planned {
            tree,
            comments,
            host,
            offered,
            enters_mounts: !sync.args.one_fs,
            off,
        });
    }

    /// No two copies share a place on a host.
    fn clash(&mut self, sync: &Sync, host: &Option<String>, dst: &Path) -> Option<String> {
        let inside = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let others = self.trees.iter().filter(|tree| tree.host == *host);
        let clash = others.map(|tree| &tree.tree).find(|other| {
            inside(&other.dst, dst)
                || inside(&default_state_dir(&other.dst), dst)
                || inside(&default_state_dir(dst), &other.dst)
        })?;
        let why = format!(
            "its copy and that of tree {} are one, or one is inside the other",
            clash.name
        );
        self.notes.open(
            &sync.at,
            show(dst).as_bytes(),
            why.as_str(),
            "a directory of its own for each copy",
        );
        Some(why)
    }

    /// One for each directory and what is left out of it, however many follow it.
    fn offer(&mut self, name: &str, path: &Path, ignore: Vec<String>) -> Offered {
        let known = self
            .offered
            .iter()
            .find(|known| known.path == path && known.ignore == ignore);
        if let Some(known) = known {
            return known.clone();
        }
        let offered = Offered {
            host: self.this_host.clone(),
            name: self.offered_names.given(name),
            path: path.to_path_buf(),
            ignore,
        };
        self.offered.push(offered.clone());
        offered
    }

    fn source(&mut self, sync: &Sync) -> Option<PathBuf> {
        let why = match sync.source.as_deref().map(absolute) {
            Some(Ok(path)) => return Some(path),
            Some(Err(why)) => why,
            None => "it is missing, or was not understood",
        };
        let text = [b"source ", sync.source.as_deref().unwrap_or_default()].concat();
        self.notes.open(&sync.at, &text, why, "source = \"/path\"");
        None
    }

    /// `None`: nobody knows where it is; the notes say why.
    fn target(&mut self, sync: &Sync) -> Option<Target> {
        let text = match (&sync.target, &sync.host, &sync.targetdir) {
            (Some(target), None, None) => target.clone(),
            (None, Some(host), Some(dir)) => {
                let mut text = host.clone();
                text.push(b':');
                text.extend_from_slice(dir);
                text
            }
            _ => {
                self.notes.open(
                    &sync.at,
                    b"sync target",
                    "target, or host and targetdir, are missing or were not understood",
                    "target = \"/path\" or \"host:/path\"",
                );
                return None;
            }
        };
        let refuse = |notes: &mut Notes, why: &str, instead: &str| {
            notes.open(&sync.at, &text, why, instead);
            None
        };
        let notes = &mut self.notes;
        if text.starts_with(b"rsync://") || is_rsyncd(&text) {
            return refuse(
                notes,
                "which directory a module of an rsync daemon is, only its host knows",
                "target = \"host:/path\" with that directory, and import again",
            );
        }
        match parse::source(&OsString::from_vec(text.clone())) {
            Ok(SourceSpec::Local(path)) => match absolute(path.as_os_str().as_bytes()) {
                Ok(path) => Some(Target::Here(path)),
                Err(why) => refuse(notes, why, "target = \"/path\""),
            },
            Ok(SourceSpec::Ssh { host, path, .. }) => match absolute(&path) {
                Ok(path) if ["localhost", "127.0.0.1", "::1"].contains(&host.as_str()) => {
                    Some(Target::Here(path))
                }
                Ok(path) => Some(Target::On(host, path)),
                Err(why) => refuse(notes, why, "the directory's whole path on that host"),
            },
            Ok(_) => refuse(notes, "not known as a target", "target = \"host:/path\""),
            Err(e) => refuse(notes, &e.0, "target = \"host:/path\""),
        }
    }
}

fn absolute(bytes: &[u8]) -> Result<PathBuf, &'static str> {
    let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
    if bytes.contains(&0) {
        return Err("it holds a zero byte");
    }
    if !path.is_absolute() {
        return Err("it does not begin with /");
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("it holds ..");
    }
    Ok(path.components().collect())
}
