//! A watch for each directory (inotify): whose watch is whose, the two halves of a rename put together, and what
//! such watches can't hear: directories beyond the limit, and files that have names outside of the tree.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use mirror_core::hints::{Hint, HintName};
use mirror_core::passing::Passage;
use mirror_core::{Handle, Name};

use crate::sync::lock;
use crate::sys::inotify::{self, mask};
use crate::sys::{Errno, Result};

/// Files with more names than are known, kept until the capture loop comes for them.
const LINKED_MAX: usize = 65_536;
/// What was told of names, kept until then too; more is as good as lost.
const TOLD_MAX: usize = 400_000;
/// The first pause, of several that double, in which the second half of a rename comes if it comes at all.
const HALF: Duration = Duration::from_micros(50);
const HALVES: u32 = 6;

pub struct DirWatches {
    group: inotify::Group,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Directory, and the round it was last seen in.
    by_watch: HashMap<i32, (Handle, u32)>,
    /// By the handle's hash, which is enough to find what is then compared.
    by_dir: HashMap<u64, i32>,
    unwatched: HashSet<u64>,
    refused: Option<Errno>,
    round: u32,
    linked: Vec<(Handle, u32)>,
    told: Vec<(HintName, Passage)>,
}

fn hash(handle: &Handle) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(handle)
}

impl DirWatches {
    pub fn new() -> Result<DirWatches> {
        Ok(DirWatches {
            group: inotify::Group::new()?,
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A directory is about to be listed: from now on its events are heard.
    pub fn add(&self, dir: &OwnedFd, handle: &Handle) {
        let added = self.group.add(dir);
        let mut state = self.lock();
        match added {
            Ok(watch) => {
                let round = state.round;
                state.by_watch.insert(watch, (handle.clone(), round));
                state.by_dir.insert(hash(handle), watch);
                state.unwatched.remove(&hash(handle));
            }
            Err(error) => {
                state.unwatched.insert(hash(handle));
                state.refused = Some(error);
            }
        }
    }

    /// A directory that left the tree.
    pub fn remove(&self, handle: &Handle) {
        let mut state = self.lock();
        state.unwatched.remove(&hash(handle));
        let Some(watch) = state.by_dir.remove(&hash(handle)) else {
            return;
        };
        if state
            .by_watch
            .get(&watch)
            .is_some_and(|(dir, _)| dir == handle)
        {
            state.by_watch.remove(&watch);
            let _ = self.group.remove(watch);
        }
    }

    pub fn count(&self) -> usize {
        self.lock().by_watch.len()
    }

    /// How many directories have no watch, and why the last of them has none.
    pub fn unwatched(&self) -> (u64, Option<Errno>) {
        let state = self.lock();
        (state.unwatched.len() as u64, state.refused)
    }

    /// A look at everything begins: what it does not come by may have left the tree.
    pub fn begin_round(&self) {
        let mut state = self.lock();
        state.round = state.round.wrapping_add(1);
        // Each is tried again when it is visited.
        state.unwatched.clear();
    }

    /// Watched, and not come by in this round.
    pub fn not_seen(&self) -> Vec<Handle> {
        let state = self.lock();
        let round = state.round;
        state
            .by_watch
            .values()
            .filter(|(_, seen)| *seen != round)
            .map(|(dir, _)| dir.clone())
            .collect()
    }

    /// A file seen with so many links.
    pub fn linked(&self, handle: &Handle, links: u32) {
        let mut state = self.lock();
        if state.linked.len() < LINKED_MAX {
            state.linked.push((handle.clone(), links));
        }
    }

    pub fn take_linked(&self) -> Vec<(Handle, u32)> {
        std::mem::take(&mut self.lock().linked)
    }

    /// What was told of names since, in order.
    pub fn take_told(&self) -> Vec<(HintName, Passage)> {
        std::mem::take(&mut self.lock().told)
    }

    /// Readable while something is queued.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    /// Everything queued until now, and not what comes meanwhile, which may be without end. False: some was lost.
    pub fn read(&self, buffer: &mut [u8], hints: &mut Vec<Hint>) -> bool {
        let mut state = self.lock();
        let mut left = self.group.pending_bytes().unwrap_or(u64::MAX);
        // The first half of a rename, whose second is the next record if it stayed among the watched.
        let mut half: Option<(u32, Hint)> = None;
        let mut waited = 0;
        let mut whole = true;
        while left > 0 || (half.is_some() && waited < HALVES) {
            let records = match self.group.read(buffer) {
                Ok(records) => records,
                Err(Errno::INTR) => continue,
                Err(_) => {
                    whole = false;
                    break;
                }
            };
            waited += u32::from(left == 0);
            if records.is_empty() {
                if half.is_none() {
                    break;
                }
                left = 0;
                std::thread::sleep(HALF * (1 << waited));
                continue;
            }
            left = left.saturating_sub(records.bytes());
            for record in records {
                let Ok(record) = record else {
                    whole = false;
                    break;
                };
                if record.overflow() {
                    whole = false;
                    continue;
                }
                if record.mask & mask::IGNORED != 0 {
                    if let Some((dir, _)) = state.by_watch.remove(&record.wd)
                        && state.by_dir.get(&hash(&dir)) == Some(&record.wd)
                    {
                        state.by_dir.remove(&hash(&dir));
                    }
                    continue;
                }
                // Of a directory that is just being added nothing is known: it is listed after this.
                let Some((dir, _)) = state.by_watch.get(&record.wd) else {
                    continue;
                };
                let hint = hint(&record, dir.clone());
                if let Some(at) = &hint.at
                    && at.name.is_some()
                {
                    let at = at.clone();
                    state.told.push((at, passage(&record)));
                }
                if record.mask & mask::MOVED_TO != 0
                    && half
                        .as_ref()
                        .is_some_and(|(cookie, _)| *cookie == record.cookie)
                    && let Some((_, mut first)) = half.take()
                {
                    first.to = hint.at;
                    hints.push(first);
                    continue;
                }
                hints.extend(half.take().map(|(_, first)| first));
                if record.mask & mask::MOVED_FROM != 0 {
                    half = Some((record.cookie, hint));
                } else {
                    hints.push(hint);
                }
            }
        }
        hints.extend(half.map(|(_, first)| first));
        if state.told.len() > TOLD_MAX {
            state.told.clear();
            whole = false;
        }
        whole
    }
}

fn hint(record: &inotify::Record<'_>, dir: Handle) -> Hint {
    let has = |bit: u32| record.mask & bit != 0;
    Hint {
        at: Some(HintName {
            dir,
            name: record.name.and_then(|name| Name::new(name).ok()),
        }),
        to: None,
        object: None,
        contents: has(mask::MODIFY) || has(mask::CLOSE_WRITE),
        closed: has(mask::CLOSE_WRITE),
        created: has(mask::CREATE),
        renamed: has(mask::MOVED_FROM) || has(mask::MOVED_TO),
        on_dir: record.is_dir(),
        entered: false,
        who: None,
    }
}

fn passage(record: &inotify::Record<'_>) -> Passage {
    let has = |bit: u32| record.mask & bit != 0;
    if has(mask::CREATE) || has(mask::MOVED_TO) {
        Passage::Came {
            dir: record.is_dir(),
            only: None,
        }
    } else if has(mask::MOVED_FROM) {
        Passage::Left
    } else if has(mask::DELETE) {
        Passage::Went
    } else {
        Passage::Touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    fn handle(n: u8) -> Handle {
        Handle {
            kind: 1,
            bytes: vec![n].into(),
        }
    }
    fn heard(watches: &DirWatches) -> Vec<Hint> {
        let mut hints = Vec::new();
        assert!(watches.read(&mut vec![0; 4096], &mut hints));
        hints
    }

    #[test]
    fn a_rename_is_one_hint_and_half_of_one_is_one_too() {
        let t = tempfile::tempdir().unwrap();
        let at = |path: &str| t.path().join(path);
        for dir in ["a", "b", "out"] {
            fs::create_dir(at(dir)).unwrap();
        }
        fs::write(at("a/f"), "").unwrap();
        let watches = DirWatches::new().unwrap();
        watches.add(&File::open(at("a")).unwrap().into(), &handle(1));
        watches.add(&File::open(at("b")).unwrap().into(), &handle(2));
        fs::rename(at("a/f"), at("b/g")).unwrap();
        fs::rename(at("b/g"), at("out/g")).unwrap();
        fs::rename(at("out/g"), at("b/h")).unwrap();
        let name = |dir: u8, name: &str| {
            Some(HintName {
                dir: handle(dir),
                name: Name::new(name.as_bytes()).ok(),
            })
        };
        let shown: Vec<_> = heard(&watches).into_iter().map(|h| (h.at, h.to)).collect();
        assert_eq!(
            shown,
            [
                (name(1, "f"), name(2, "g")),
                (name(2, "g"), None),
                (name(2, "h"), None)
            ]
        );
    }

    #[test]
    fn a_removed_directory_is_forgotten() {
        let t = tempfile::tempdir().unwrap();
        let at = |path: &str| t.path().join(path);
        let watches = DirWatches::new().unwrap();
        for (n, dir) in ["a", "b"].into_iter().enumerate() {
            fs::create_dir(at(dir)).unwrap();
            watches.add(&File::open(at(dir)).unwrap().into(), &handle(n as u8));
        }
        watches.begin_round();
        watches.add(&File::open(at("a")).unwrap().into(), &handle(0));
        assert_eq!(watches.not_seen(), [handle(1)]);
        fs::remove_dir(at("a")).unwrap();
        heard(&watches);
        assert_eq!(watches.count(), 1);
        watches.remove(&handle(1));
        assert_eq!(watches.count(), 0);
        fs::write(at("b/f"), "").unwrap();
        assert!(heard(&watches).is_empty());
    }
}
