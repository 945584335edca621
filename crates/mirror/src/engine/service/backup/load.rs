//! The configuration as it lies on disk: one file and those of `conf.d` beside it, merged, and checked as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::{General, TREES_MAX, Tree};
use crate::engine::service::settings::{Place, Problem, Problems, parse, read};
use crate::engine::session::show;

/// What was found, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Loaded {
    pub general: General,
    /// The good ones.
    pub trees: BTreeMap<String, Placed>,
    pub problems: Vec<Problem>,
    /// Trees that are there, with mistakes.
    pub bad_trees: BTreeSet<String>,
    /// Files of which nothing is known.
    pub bad_files: BTreeSet<PathBuf>,
    /// What is not about one tree has mistakes.
    pub general_is_bad: bool,
}

impl Loaded {
    /// What is right of it can be followed: what is about all trees, and one of them at least.
    pub fn can_begin(&self, file: &Path) -> bool {
        let general_is_good = !self.general_is_bad && !self.bad_files.contains(file);
        self.problems.is_empty() || (general_is_good && !self.trees.is_empty())
    }
}

/// A tree and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    pub tree: Tree,
    pub place: Place,
}

/// The directory with a file a tree.
pub fn conf_d(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("/")).join("conf.d")
}

/// Its own file, if it is there, and those of `conf.d`, by name.
pub fn files(file: &Path) -> io::Result<Vec<PathBuf>> {
    let mut more = Vec::new();
    match fs::read_dir(conf_d(file)) {
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                let hidden = path
                    .file_name()
                    .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                if !hidden && path.extension().is_some_and(|e| e == "toml") {
                    more.push(path);
                }
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    more.sort();
    if fs::symlink_metadata(file).is_ok() {
        more.insert(0, file.to_path_buf());
    }
    Ok(more)
}

/// Reads all of it. Nothing but looking.
pub fn load(file: &Path) -> Loaded {
    load_with(file, None)
}

/// Likewise, as it would be with one file more, or another one of its name.
pub fn load_with(file: &Path, more: Option<(&Path, &str)>) -> Loaded {
    let mut loaded = Loaded::default();
    let mut problems = Problems::default();
    let files = match files(file) {
        Ok(files) => files,
        Err(e) => {
            let dir = conf_d(file);
            problems.add(None, format!("cannot read {}: {e}", show(&dir)));
            loaded.bad_files.insert(dir);
            vec![file.to_path_buf()]
        }
    };
    let mut files = files;
    if let Some((path, _)) = more
        && !files.iter().any(|file| file == path)
    {
        files.push(path.to_path_buf());
    }
    let mut order = Vec::new();
    for path in files {
        let table = match more {
            Some((name, text)) if name == path => {
                parse(Arc::new(path.clone()), text, &mut problems)
            }
            _ => read(&path, &mut problems),
        };
        let Some(mut table) = table else {
            loaded.bad_files.insert(path);
            continue;
        };
        let mut own = Problems::default();
        for (name, inner) in table.tables("tree", &mut own) {
            let place = inner.place.clone();
            let mut mine = Problems::default();
            if let Some(first) = loaded.trees.get(&name) {
                let why = format!("tree {name} is there already: {}", first.place);
                mine.add(Some(&place), why);
            }
            if order.len() >= TREES_MAX {
                mine.add(
                    Some(&place),
                    format!("{TREES_MAX} trees are the most that one service follows"),
                );
            }
            let duplicate = !mine.is_empty();
            match Tree::read(&name, inner, &mut mine) {
                Some(tree) => {
                    order.push(name.clone());
                    loaded.trees.insert(name, Placed { tree, place });
                }
                // The first of two that are called the same stays.
                None if duplicate => {}
                None => drop(loaded.bad_trees.insert(name)),
            }
            problems.extend(mine);
        }
        loaded.general.read(&mut table, &mut own);
        General::end(table, &mut own);
        loaded.general_is_bad |= !own.is_empty();
        problems.extend(own);
    }
    apart(&mut loaded, order, &mut problems);
    loaded.problems = problems.sorted();
    loaded
}

/// No two trees share a DST or a state, nor lies one's inside another's: the one that comes later is refused.
fn apart(loaded: &mut Loaded, order: Vec<String>, problems: &mut Problems) {
    struct At {
        what: &'static str,
        path: PathBuf,
        tree: String,
    }
    let mut taken: Vec<At> = Vec::new();
    let general = &loaded.general;
    if let Some(state) = &general.state {
        taken.push(At {
            what: "the state of the service",
            path: canonical(state),
            tree: String::new(),
        });
    }
    for name in order {
        let Some(Placed { tree, place }) = loaded.trees.get(&name) else {
            continue;
        };
        let mine = match tree.every_below() {
            // All below is of trees that it stands for.
            Some(dir) => vec![("DST", dir.to_path_buf())],
            None => vec![
                ("DST", tree.dst.clone()),
                ("the state directory", tree.state_dir()),
            ],
        };
        let mine: Vec<At> = mine
            .into_iter()
            .map(|(what, path)| At {
                what,
                path: canonical(&path),
                tree: name.clone(),
            })
            .collect();
        let mut why = None;
        for one in &mine {
            let other = taken
                .iter()
                .chain(mine.iter().filter(|other| other.what != one.what));
            for other in other {
                let (a, b) = (&one.path, &other.path);
                if !a.starts_with(b) && !b.starts_with(a) {
                    continue;
                }
                let whose = match (other.tree.is_empty(), other.tree == name) {
                    (true, _) => other.what.to_owned(),
                    (_, true) => format!("its own {}", other.what.trim_start_matches("the ")),
                    _ => format!("{} of tree {}", other.what, other.tree),
                };
                let how = if a == b {
                    "is also"
                } else if a.starts_with(b) {
                    "is inside"
                } else {
                    "holds"
                };
                why.get_or_insert(format!(
                    "{} {} {how} {whose}, {}",
                    one.what,
                    show(a),
                    show(b)
                ));
            }
        }
        match why {
            Some(why) => {
                problems.add(Some(place), format!("tree {name}: {why}"));
                loaded.trees.remove(&name);
                loaded.bad_trees.insert(name);
            }
            None => taken.extend(mine),
        }
    }
}

/// Without links, as far as it is there.
fn canonical(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let Ok(found) = fs::canonicalize(above) {
            let below = path.strip_prefix(above).unwrap_or(Path::new(""));
            // Joining nothing would add a slash.
            return if below.as_os_str().is_empty() {
                found
            } else {
                found.join(below)
            };
        }
    }
    path.to_path_buf()
}

/// One tree's settings, from a file that the service wrote for its process.
pub fn one(file: &Path, name: &str) -> Result<Tree, String> {
    let mut problems = Problems::default();
    let tables = read(file, &mut problems).map(|mut table| table.tables("tree", &mut problems));
    let found = tables
        .into_iter()
        .flatten()
        .find(|(found, _)| found == name);
    let tree = found.and_then(|(_, table)| Tree::read(name, table, &mut problems));
    tree.ok_or_else(|| match problems.sorted().first() {
        Some(problem) => problem.to_string(),
        None => format!("{} does not name tree {name}", show(file)),
    })
}
