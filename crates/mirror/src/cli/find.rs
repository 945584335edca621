//! Which mirror a command is about: `-m`, or the one around the current directory, as git finds its repository.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::cli::config::Config;
use crate::cli::exit::CliError;
use crate::cli::places::show;
use crate::engine::options::default_state_dir;

/// A mirror's state directory, found but not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub state_dir: PathBuf,
}

impl Found {
    /// Its configuration; an error when it has none.
    pub fn config(&self) -> Result<Config, CliError> {
        Config::load(&self.state_dir)?.ok_or_else(|| {
            CliError::failed(format!(
                "{} is missing",
                show(&Config::path(&self.state_dir))
            ))
        })
    }
}

pub fn find(named: Option<&Path>) -> Result<Found, CliError> {
    match named {
        Some(named) => by_name(named),
        None => {
            let here = env::current_dir()
                .map_err(|e| CliError::failed(format!("cannot tell the current directory: {e}")))?;
            around(&here).ok_or_else(|| {
                CliError::usage(format!(
                    "{} is not inside a mirror: go into one, or name it with -m DST",
                    show(&here)
                ))
            })
        }
    }
}

/// DST or its state directory, typed in any way.
fn by_name(named: &Path) -> Result<Found, CliError> {
    // A DST that is gone is still found by the state beside it.
    let path = fs::canonicalize(named).unwrap_or_else(|_| named.components().collect());
    if is_state_dir(&path) {
        return Ok(Found { state_dir: path });
    }
    if let Some(found) = beside(&path).or_else(|| beside(&named.components().collect::<PathBuf>()))
    {
        return Ok(found);
    }
    Err(CliError::usage(format!(
        "there is no mirror at {}: {} does not exist",
        show(named),
        show(&default_state_dir(&path))
    )))
}

/// Looks upward: the first directory that has a state beside it, or that is a state.
fn around(dir: &Path) -> Option<Found> {
    dir.ancestors().find_map(|dir| {
        if is_state_dir(dir) {
            Some(Found {
                state_dir: dir.into(),
            })
        } else {
            beside(dir)
        }
    })
}

fn beside(dst: &Path) -> Option<Found> {
    dst.file_name()?;
    let state_dir = fs::canonicalize(default_state_dir(dst)).ok()?;
    state_dir.is_dir().then_some(Found { state_dir })
}

fn is_state_dir(dir: &Path) -> bool {
    let named_so = dir
        .file_name()
        .unwrap_or(OsStr::new(""))
        .as_bytes()
        .ends_with(b".fs_mirror");
    let has = |name: &str| dir.join(name).is_file();
    (named_so && dir.is_dir()) || (has("config.toml") && has("lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_found_from_anywhere_inside() {
        let held = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(held.path()).unwrap();
        for dir in [
            "www/blog/img",
            "www.fs_mirror/log",
            "other/x",
            "far/state",
            "gone.fs_mirror",
        ] {
            fs::create_dir_all(top.join(dir)).unwrap();
        }
        for file in ["far/state/config.toml", "far/state/lock"] {
            fs::write(top.join(file), "").unwrap();
        }
        std::os::unix::fs::symlink(top.join("far/state"), top.join("other.fs_mirror")).unwrap();
        let state = |name: &str| {
            Some(Found {
                state_dir: top.join(name),
            })
        };
        for (from, want) in [
            ("www/blog/img", state("www.fs_mirror")),
            ("www", state("www.fs_mirror")),
            ("www.fs_mirror/log", state("www.fs_mirror")),
            ("other/x", state("far/state")),
            ("far/state", state("far/state")),
            ("far", None),
        ] {
            assert_eq!(around(&top.join(from)), want, "{from}");
        }
        for (named, want) in [
            ("www", state("www.fs_mirror")),
            ("www/", state("www.fs_mirror")),
            ("other/x/../../www/.", state("www.fs_mirror")),
            ("www.fs_mirror", state("www.fs_mirror")),
            ("other", state("far/state")),
            ("far/state", state("far/state")),
            ("gone", state("gone.fs_mirror")),
            ("gone/", state("gone.fs_mirror")),
            ("www/blog", None),
            ("nothing", None),
        ] {
            assert_eq!(by_name(&top.join(named)).ok(), want, "{named}");
        }
        let error = Found {
            state_dir: top.join("www.fs_mirror"),
        }
        .config()
        .unwrap_err();
        assert!(
            error.line.ends_with("www.fs_mirror/config.toml is missing"),
            "{error}"
        );
    }
}
