//! `source = "mirror://host/*"`: all trees that a host offers to our key, each in a directory of its own.
//!
//! What a host ever offered is kept in the service's state. A tree that is offered no more is followed further, so that
//! its copy is there and is said to be alone; only the operator takes it away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use mirror_core::escape;
use serde::{Deserialize, Serialize};

use super::config::{TREES_MAX, Tree, name};
use super::load::Placed;
use super::replace;
use crate::cli::parse;
use crate::engine::control::Stop;
use crate::engine::options::SourceSpec;
use crate::link::Outgoing;
use crate::link::message::{List, Message};
use crate::net::{Program, config_dir, dial};
use crate::sync::lock;

const ASK_EVERY: Duration = Duration::from_secs(30);
/// For connecting, and again for the answer.
const WITHIN: Duration = Duration::from_secs(15);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What one host offered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Offered {
    /// Ever.
    trees: BTreeSet<String>,
    /// Of them, those that are offered no more.
    gone: BTreeSet<String>,
    /// Offered now, and not followed: why.
    #[serde(default)]
    refused: BTreeMap<String, String>,
}

/// What all hosts offered, by source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Offers(BTreeMap<String, Offered>);

fn file(state: &Path) -> PathBuf {
    state.join("offers.json")
}

fn key(tree: &Tree) -> String {
    escape(tree.source.as_encoded_bytes())
}

impl Offers {
    /// What is known; nothing if it can't be read: the hosts say it again.
    pub fn load(state: &Path) -> Offers {
        let bytes = std::fs::read(file(state)).ok();
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// A host's answer. Lines for the log about what is new; `None`: nothing is.
    fn heard(&mut self, pattern: &Tree, names: Vec<String>) -> Option<Vec<String>> {
        let offered = self.0.entry(key(pattern)).or_default();
        let before = offered.clone();
        let mut lines = Vec::new();
        let mut now = BTreeSet::new();
        offered.refused.clear();
        for tree in names {
            match name(&one_name(pattern, &tree)) {
                Ok(_) => drop(now.insert(tree)),
                Err(why) if offered.refused.len() < TREES_MAX => {
                    offered.refused.insert(tree, why);
                }
                Err(_) => {}
            }
        }
        for (tree, why) in &offered.refused {
            if !before.refused.contains_key(tree) {
                lines.push(not_followed(pattern, why));
            }
        }
        for tree in now
            .difference(&before.trees)
            .take(TREES_MAX.saturating_sub(before.trees.len()))
        {
            offered.trees.insert(tree.clone());
            lines.push(format!(
                "{}: {tree} is offered, and followed from now on",
                pattern.name
            ));
        }
        offered.gone = offered.trees.difference(&now).cloned().collect();
        for tree in offered.gone.difference(&before.gone) {
            lines.push(format!(
                "{}: {tree} is offered no more; its copy is kept",
                pattern.name
            ));
        }
        for tree in before.gone.difference(&offered.gone) {
            lines.push(format!("{}: {tree} is offered again", pattern.name));
        }
        (*offered != before).then_some(lines)
    }

    /// The trees that patterns stand for, in place of the patterns.
    pub fn expand(&self, trees: &BTreeMap<String, Placed>) -> BTreeMap<String, Placed> {
        let mut out = BTreeMap::new();
        for (named, placed) in trees {
            let pattern = &placed.tree;
            let Some(dir) = pattern.every_below() else {
                out.insert(named.clone(), placed.clone());
                continue;
            };
            let source = pattern.source.as_encoded_bytes();
            let source = String::from_utf8_lossy(source.strip_suffix(b"*").unwrap_or(source));
            for tree in self
                .0
                .get(&key(pattern))
                .map(|o| &o.trees)
                .into_iter()
                .flatten()
            {
                let one = Tree {
                    name: one_name(pattern, tree),
                    source: format!("{source}{tree}").into(),
                    dst: dir.join(tree),
                    ..pattern.clone()
                };
                // One that stands there by itself comes first.
                if out.len() < TREES_MAX && !trees.contains_key(&one.name) {
                    let place = placed.place.clone();
                    out.insert(one.name.clone(), Placed { tree: one, place });
                }
            }
        }
        out
    }

    /// A line for each tree that is followed and offered no more, or offered and can't be followed.
    pub fn odd(&self, trees: &BTreeMap<String, Placed>) -> Vec<String> {
        let patterns = trees
            .values()
            .map(|placed| &placed.tree)
            .filter(|tree| tree.every_below().is_some());
        let mut odd = Vec::new();
        for pattern in patterns {
            let Some(offered) = self.0.get(&key(pattern)) else {
                continue;
            };
            let gone = offered.gone.iter().map(|tree| {
                let name = one_name(pattern, tree);
                format!("{name}: offered no more; its copy is kept")
            });
            let refused = offered.refused.values();
            odd.extend(gone.chain(refused.map(|why| not_followed(pattern, why))));
        }
        odd
    }
}

fn not_followed(pattern: &Tree, why: &str) -> String {
    format!("{}: offered, and not followed: {why}", pattern.name)
}

fn one_name(pattern: &Tree, tree: &str) -> String {
    format!("{}.{tree}", pattern.name)
}

/// Asks a service which trees we may follow.
fn ask(host: &str, port: Option<u16>) -> Result<Vec<String>, String> {
    let config = config_dir(Program::FsMirror)?;
    let mut dialed =
        dial::dial(host, port, &config, WITHIN).map_err(|e| crate::cli::exit::chain(&e))?;
    let (done, waits) = bounded::<()>(0);
    let closer = dialed.closer.clone();
    // Whoever takes the question and says nothing is cut off.
    let clock = std::thread::spawn(move || {
        if waits.recv_timeout(WITHIN) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            closer();
        }
    });
    let outgoing = Outgoing::new(dialed.writer, dialed.closer);
    let program = concat!("fs_mirror ", env!("CARGO_PKG_VERSION")).to_owned();
    let answer = outgoing
        .send(List { program })
        .map_err(|e| e.to_string())
        .and_then(|()| {
            Message::read_up_to(&mut dialed.reader, &mut Vec::new(), ANSWER_BYTES_MAX)
                .map_err(|e| e.to_string())
        });
    outgoing.close();
    drop(done);
    let _ = clock.join();
    match answer {
        Ok(Message::Names(names)) => Ok(names.trees),
        Ok(Message::Refused(no)) => Err(crate::link::conn::escaped(&no.reason)),
        Ok(_) => Err("it does not say which trees it has".into()),
        Err(why) => Err(format!("it did not say which trees it has: {why}")),
    }
}

/// A line for the log.
type Say = fn(&str);

/// The thread that asks.
pub struct Asking {
    shared: Arc<Shared>,
    stop: Stop,
    thread: JoinHandle<()>,
}

struct Shared {
    /// Ask all of them, now.
    soon: AtomicBool,
    patterns: Mutex<Vec<Tree>>,
    offers: Mutex<Offers>,
    state: PathBuf,
}

impl Asking {
    pub fn start(state: &Path, say: Say) -> std::io::Result<Asking> {
        let shared = Arc::new(Shared {
            soon: AtomicBool::new(false),
            patterns: Mutex::default(),
            offers: Mutex::new(Offers::load(state)),
            state: state.to_path_buf(),
        });
        let stop = Stop::new();
        let (asked, one) = (stop.clone(), shared.clone());
        let thread = std::thread::Builder::new()
            .name("offers".into())
            .spawn(move || {
                let mut told: BTreeMap<String, String> = BTreeMap::new();
                let mut last: BTreeMap<String, Instant> = BTreeMap::new();
                loop {
                    if one.soon.swap(false, Ordering::AcqRel) {
                        last.clear();
                    }
                    let patterns = lock(&one.patterns).clone();
                    for pattern in patterns {
                        let source = key(&pattern);
                        if last.get(&source).is_some_and(|at| at.elapsed() < ASK_EVERY) {
                            continue;
                        }
                        last.insert(source.clone(), Instant::now());
                        match one.ask(&pattern, say) {
                            Ok(()) => drop(told.remove(&source)),
                            Err(why) if told.get(&source) == Some(&why) => {}
                            Err(why) => {
                                say(&format!("{}: {why}", pattern.name));
                                told.insert(source, why);
                            }
                        }
                    }
                    if asked.wait(Duration::from_millis(500)) {
                        return;
                    }
                }
            })?;
        Ok(Asking {
            shared,
            stop,
            thread,
        })
    }

    /// These are asked for from now on.
    pub fn want(&self, trees: &BTreeMap<String, Placed>) {
        let patterns = trees
            .values()
            .map(|placed| &placed.tree)
            .filter(|tree| tree.every_below().is_some());
        *lock(&self.shared.patterns) = patterns.cloned().collect();
    }

    /// Does not wait until it is time.
    pub fn ask_soon(&self) {
        self.shared.soon.store(true, Ordering::Release);
    }

    pub fn offers(&self) -> Offers {
        lock(&self.shared.offers).clone()
    }

    /// Ends it; one that waits for a host is left behind.
    pub fn stop(self) {
        self.stop.request();
        let until = Instant::now() + Duration::from_millis(200);
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Shared {
    fn ask(&self, pattern: &Tree, say: Say) -> Result<(), String> {
        let Ok(SourceSpec::Service { host, port, .. }) = parse::source(&pattern.source) else {
            return Err("its source names no service".into());
        };
        let names = ask(&host, port)?;
        let mut offers = lock(&self.offers).clone();
        let Some(lines) = offers.heard(pattern, names) else {
            return Ok(());
        };
        let path = file(&self.state);
        let bytes = serde_json::to_vec(&offers).unwrap_or_default();
        replace(&path, &bytes, 0o600)
            .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        *lock(&self.offers) = offers;
        for line in lines {
            say(&line);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::service::settings::Place;

    #[test]
    fn what_was_offered_once_is_kept() {
        let pattern = Tree::new("web", "mirror://web:99/*".into(), "/b/web/*".into());
        let other = Tree::new("web.shop", "/s".into(), "/b/other".into());
        let place = Place {
            file: Arc::new("/c".into()),
            line: 1,
        };
        let placed = |tree: &Tree| {
            (
                tree.name.clone(),
                Placed {
                    tree: tree.clone(),
                    place: place.clone(),
                },
            )
        };
        let trees = BTreeMap::from([placed(&pattern), placed(&other)]);
        let mut offers = Offers::default();
        assert_eq!(offers.expand(&trees).len(), 1);
        let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let lines = offers
            .heard(&pattern, names(&["blog", "shop", "../x"]))
            .unwrap();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].contains("is no name of a tree"), "{lines:?}");
        assert_eq!(
            offers.heard(&pattern, names(&["shop", "blog", "../x"])),
            None
        );
        let all = offers.expand(&trees);
        let found: Vec<_> = all
            .values()
            .map(|p| {
                (
                    p.tree.name.as_str(),
                    p.tree.source.to_str().unwrap(),
                    p.tree.dst.to_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("web.blog", "mirror://web:99/blog", "/b/web/blog"),
                ("web.shop", "/s", "/b/other")
            ]
        );
        let lines = offers.heard(&pattern, names(&["shop"])).unwrap();
        assert_eq!(lines, ["web: blog is offered no more; its copy is kept"]);
        assert_eq!(offers.expand(&trees), all);
        assert_eq!(
            offers.odd(&trees),
            ["web.blog: offered no more; its copy is kept"]
        );
        // One that can't be followed is told when it comes alone, too, and for as long as it is offered.
        let lines = offers.heard(&pattern, names(&["shop", "my site"])).unwrap();
        assert!(
            lines.len() == 1 && lines[0].contains("not followed: web.my site"),
            "{lines:?}"
        );
        assert_eq!(offers.heard(&pattern, names(&["shop", "my site"])), None);
        assert_eq!(offers.odd(&trees)[1..], lines);
        assert!(offers.heard(&pattern, names(&["shop"])).is_some());
        assert_eq!(offers.odd(&trees).len(), 1);
        assert_eq!(offers.heard(&pattern, names(&["shop"])), None);
        let lines = offers.heard(&pattern, names(&["shop", "blog"])).unwrap();
        assert_eq!(lines, ["web: blog is offered again"]);
        assert!(offers.odd(&trees).is_empty());
    }
}
