//! Which trees there are now: the configured ones, and one for each directory where a path ends with a star. Directories
//! come and go; one that was served and is gone stays a tree, until somebody removes its state.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::settings::Problem;
use super::config::{Config, TreeConfig, TreePath, TreeSettings, check_name};
use crate::engine::session::show;
use crate::engine::worker::config as state;
use crate::engine::worker::config::InService;
use crate::engine::worker::names::{self, Variant};

/// Directories of one path with a star that are trees; more are told and left out.
const EACH_MAX: usize = 4096;

/// A tree that is to be served.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    pub name: String,
    /// Canonical, where it is there.
    pub path: PathBuf,
    pub state_dir: PathBuf,
    pub found_by: Option<String>,
    pub settings: TreeSettings,
    /// It asks the service's listener for events.
    pub listened: bool,
    /// Why its directory can't be served now, and where that was asked for. It begins when the directory is there.
    pub missing: Option<Problem>,
}

impl Tree {
    /// As its process is to have it.
    pub fn config(&self) -> state::Config {
        state::Config {
            tree: self.path.clone(),
            state_dir: self.state_dir.clone(),
            ignore: self.settings.ignore.clone(),
            cross: self.settings.cross.clone(),
            detector: self.settings.detector,
            linger: std::time::Duration::ZERO,
            log_max: self.settings.log_max,
            service: Some(InService {
                name: self.name.clone(),
                found_by: self.found_by.clone(),
                listener: self.listened,
                live: self.settings.live.clone(),
            }),
        }
    }

    pub fn was_served(&self) -> bool {
        self.state_dir.join("log").is_dir()
    }
}

/// What the states say of trees that were served before.
pub struct Before {
    known: Vec<state::Config>,
}

impl Before {
    pub fn read(base: &Path) -> Before {
        let dirs = names::all(Some(base)).unwrap_or_default();
        let known = dirs.iter().filter_map(|dir| state::of_service(dir));
        Before {
            known: known.collect(),
        }
    }

    /// The states of trees that none of these is: the service has nothing to do with them any more.
    pub fn left<'a>(
        &'a self,
        trees: &'a BTreeMap<String, Tree>,
    ) -> impl Iterator<Item = &'a state::Config> {
        self.known.iter().filter(|config| {
            trees
                .values()
                .all(|tree| tree.state_dir != config.state_dir)
        })
    }
}

/// All trees of a configuration, by name. What can't be one is told.
pub fn all(config: &Config, base: &Path, before: &Before) -> (BTreeMap<String, Tree>, Vec<String>) {
    let mut trees = BTreeMap::new();
    let mut told = Vec::new();
    for tree in &config.trees {
        if let TreePath::One(path) = &tree.path {
            put(&mut trees, &mut told, base, tree, &tree.name, path, None);
        }
    }
    for tree in &config.trees {
        let TreePath::Each(dir) = &tree.path else {
            continue;
        };
        let pattern = tree.path.show();
        let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
        match directories(dir) {
            Ok(dirs) => {
                for path in dirs {
                    let last = path.file_name().unwrap_or_default();
                    let name = std::str::from_utf8(last.as_bytes()).map_err(|_| {
                        format!(
                            "{} can't be the name of a tree: not UTF-8 text",
                            show(Path::new(last))
                        )
                    });
                    match name.and_then(|name| check_name(name).map(|()| name)) {
                        Ok(_) if found.len() >= EACH_MAX => {
                            told.push(format!("{pattern}: more than {EACH_MAX} directories"));
                            break;
                        }
                        Ok(name) => drop(found.insert(name.into(), path.clone())),
                        Err(why) => told.push(format!("{pattern}: {why}")),
                    }
                }
            }
            Err(e) => told.push(format!("{pattern}: cannot read it: {e}")),
        }
        // Those that were there stay.
        for config in &before.known {
            if let Some(service) = &config.service
                && service.found_by.as_deref() == Some(pattern.as_str())
                && !found.contains_key(&service.name)
            {
                found.insert(service.name.clone(), config.tree.clone());
            }
        }
        for (name, path) in found {
            let by = Some(pattern.clone());
            put(&mut trees, &mut told, base, tree, &name, &path, by);
        }
    }
    // One alone is heard best where it is; without rights nobody can listen for others.
    if trees.len() > 1 && rustix::process::geteuid().is_root() {
        for tree in trees.values_mut() {
            tree.listened = tree.settings.detector.is_none();
        }
    }
    (trees, told)
}

fn put(
    trees: &mut BTreeMap<String, Tree>,
    told: &mut Vec<String>,
    base: &Path,
    config: &TreeConfig,
    name: &str,
    path: &Path,
    found_by: Option<String>,
) {
    let variant = Variant {
        ignore: config.settings.ignore.clone(),
        cross: config.settings.cross.clone(),
    };
    let canonical = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let state_dir = match names::of(Some(base), &canonical, &variant) {
        Ok(dir) => dir,
        Err(e) => {
            told.push(format!("{name}: {e}"));
            return;
        }
    };
    if let Some(other) = trees.get(name) {
        told.push(format!(
            "{}: {name} is the tree {} already",
            config.path.show(),
            show(&other.path)
        ));
        return;
    }
    // A directory that is a tree by its own name is not one of a star, too.
    if found_by.is_some() && trees.values().any(|other| other.path == canonical) {
        return;
    }
    trees.insert(
        name.to_owned(),
        Tree {
            name: name.to_owned(),
            path: canonical,
            state_dir,
            found_by,
            settings: config.settings.clone(),
            listened: false,
            missing: missing(path).map(|why| Problem {
                place: config.place.clone(),
                why,
            }),
        },
    );
}

/// Why this is no directory that could be a tree.
pub fn missing(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => None,
        Ok(_) => Some(format!("path: {} is not a directory", show(path))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("path: {} does not exist", show(path)))
        }
        Err(e) => Some(format!("path: cannot look at {}: {e}", show(path))),
    }
}

/// Directories, not links to them, and not hidden ones.
fn directories(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir && !name.as_bytes().starts_with(b".") && name != "lost+found" {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::config::{Asked, Loaded, load};
    use super::*;

    #[test]
    fn directories_come_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let www = dir.path().join("www");
        let base = dir.path().join("state");
        for name in ["a", "b", ".hidden", "-odd"] {
            std::fs::create_dir_all(www.join(name)).unwrap();
        }
        std::fs::write(www.join("file"), "").unwrap();
        std::os::unix::fs::symlink("a", www.join("link")).unwrap();
        let file = dir.path().join("c.toml");
        let text = format!(
            "[tree.www]\npath = '{0}/*'\n[tree.b]\npath = '{0}/a'\n",
            www.display()
        );
        std::fs::write(&file, text).unwrap();
        let asked = Asked {
            file: Some(file),
            named: true,
            ..Asked::default()
        };
        let Loaded {
            config, problems, ..
        } = load(&asked);
        assert!(problems.is_empty(), "{problems:?}");
        let (trees, told) = all(&config, &base, &Before::read(&base));
        // `b` is taken by another directory, which is then not `a`, too; `-odd` is no name.
        assert_eq!(trees.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(told.len(), 2, "{told:?}");
        std::fs::create_dir(www.join("c")).unwrap();
        let (trees, _) = all(&config, &base, &Before::read(&base));
        assert_eq!(trees.keys().collect::<Vec<_>>(), ["b", "c"]);
        let c = &trees["c"];
        std::fs::create_dir_all(&c.state_dir).unwrap();
        std::fs::write(c.state_dir.join("lock"), "").unwrap();
        c.config().write().unwrap();
        std::fs::remove_dir(www.join("c")).unwrap();
        let before = Before::read(&base);
        let (again, _) = all(&config, &base, &before);
        let (again_c, why) = {
            let mut again = again["c"].clone();
            let why = again.missing.take();
            (again, why.map(|problem| problem.why))
        };
        assert_eq!(&again_c, c);
        assert!(why.is_some_and(|why| why.ends_with("/c does not exist")));
        assert_eq!(before.left(&again).count(), 0);
        let none = BTreeMap::new();
        assert_eq!(before.left(&none).count(), 1);
    }
}
