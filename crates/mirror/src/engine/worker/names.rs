//! Where a worker keeps what it knows of a tree.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::super::event::RunError;
use super::super::session::show;

/// What makes a capture another one beside the tree itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variant {
    /// gitignore patterns, in their order.
    pub ignore: Vec<String>,
    /// Mounts that are part of the tree, relative to it.
    pub cross: Vec<PathBuf>,
}

/// The directory with all states: what was asked for, `MIRRORD_STATE`, or the usual place.
pub fn base(state: Option<&Path>) -> Result<PathBuf, RunError> {
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|e| RunError::Usage(format!("the state directory {}: {e}", show(path))))
    };
    if let Some(state) = state {
        return absolute(state);
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(state) = set("MIRRORD_STATE") {
        return absolute(Path::new(&state));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/mirrord"));
    }
    if let Some(state) = set("XDG_STATE_HOME").map(PathBuf::from)
        && state.is_absolute()
    {
        return Ok(state.join("mirrord"));
    }
    match set("HOME").map(PathBuf::from) {
        Some(home) if home.is_absolute() => Ok(home.join(".local/state/mirrord")),
        _ => Err(RunError::Usage(
            "no place for the state: HOME is not set; name one with --state".into(),
        )),
    }
}

/// Readable, and different for different trees and variants.
fn name(tree: &Path, variant: &Variant) -> String {
    let last = tree.file_name().unwrap_or(OsStr::new("root"));
    let readable: String = last
        .as_bytes()
        .iter()
        .take(40)
        .map(|&b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => b as char,
            _ => '_',
        })
        .collect();
    let mut hasher = blake3::Hasher::new();
    hasher.update(tree.as_os_str().as_bytes());
    for pattern in &variant.ignore {
        hasher.update(b"\0ignore\0");
        hasher.update(pattern.as_bytes());
    }
    for path in &variant.cross {
        hasher.update(b"\0cross\0");
        hasher.update(path.as_os_str().as_bytes());
    }
    let hex = hasher.finalize().to_hex();
    format!("{readable}-{}", hex.get(..12).unwrap_or_default())
}

pub fn of(state: Option<&Path>, tree: &Path, variant: &Variant) -> Result<PathBuf, RunError> {
    Ok(base(state)?.join(name(tree, variant)))
}

/// Every directory in the usual place that has a state in it, sorted.
pub fn all(state: Option<&Path>) -> Result<Vec<PathBuf>, RunError> {
    let base = base(state)?;
    let entries = match std::fs::read_dir(&base) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => {
            return Err(RunError::Failed(anyhow::anyhow!(
                "cannot read {}: {e}",
                show(&base)
            )));
        }
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("lock").exists())
        .collect();
    found.sort();
    Ok(found)
}

/// Makes the state directory, for us alone. Never inside the tree, which would be mirrored with it.
pub fn make(state_dir: &Path, tree: &Path) -> Result<(), RunError> {
    if state_dir.starts_with(tree) {
        return Err(RunError::Usage(format!(
            "the state directory {} would be inside the tree {}: name another place with --state or MIRRORD_STATE",
            show(state_dir),
            show(tree)
        )));
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(|e| {
            RunError::Failed(anyhow::anyhow!(
                "cannot make the state directory {}: {e}",
                show(state_dir)
            ))
        })?;
    let real = std::fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_path_buf());
    if real.starts_with(tree) {
        return Err(RunError::Usage(format!(
            "the state directory {} is inside the tree {}: name another place with --state or MIRRORD_STATE",
            show(&real),
            show(tree)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_different() {
        let plain = Variant::default();
        let a = name(Path::new("/srv/www"), &plain);
        let b = name(Path::new("/home/www"), &plain);
        let c = name(
            Path::new("/srv/www"),
            &Variant {
                ignore: vec!["*.log".into()],
                ..Variant::default()
            },
        );
        assert!(a.starts_with("www-") && b.starts_with("www-") && c.starts_with("www-"));
        let d = name(
            Path::new("/srv/www"),
            &Variant {
                cross: vec!["*.log".into()],
                ..Variant::default()
            },
        );
        assert!(a != b && b != c && a != c && d != c);
        assert!(name(Path::new("/"), &plain).starts_with("root-"));
        let odd = name(Path::new(OsStr::from_bytes(b"/x/\xff a\n")), &plain);
        assert!(odd.starts_with("__a_-"), "{odd}");
    }
}
