//! Names that came and went between two looks, where the kernel tells names and never inodes (inotify).
//!
//! A hard link that is made, written through and removed before anybody looks leaves events under a name that leads
//! nowhere; its inode lives on under another name, of which nothing is told. The same holds for whoever keeps such a
//! file open: his writes are told under the dead name for ever. Which file it was only a look at everything can find.
//!
//! So names that are given are kept here for a while. A name that is taken away again was harmless when it was seen to
//! be the only one of its file, and when nothing happened under it; else there is doubt.

use alloc::collections::{BTreeMap, VecDeque};

use crate::types::At;

/// What was told of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// It was given. `only`: the inode of the file that was seen under it just after, if it has no other name.
    Came { dir: bool, only: Option<u64> },
    /// What it stood for was renamed; so are those who have it open.
    Left,
    /// It was taken away.
    Went,
    /// Something happened to what it stands for, or stood for.
    Touched,
}

#[derive(Debug, Default)]
struct Told {
    last_ms: u64,
    /// It was given, and not looked at since for sure.
    bound: bool,
    dir: bool,
    only: Option<u64>,
    /// What was taken away was taken for this inode, which it was not if a later look finds it here.
    claim: Option<u64>,
    touched: bool,
    /// Something unknown had this name.
    unsure: bool,
}

#[derive(Debug, Default)]
pub struct Passing {
    names: BTreeMap<At, Told>,
    old: VecDeque<(u64, At)>,
}

impl Passing {
    /// An event is queued a moment after its operation can be seen, so that a look may have seen what came later.
    const LATE_MS: u64 = 1000;
    /// Beyond this there is doubt.
    pub const NAMES_MAX: usize = 16_384;

    /// True: what was written may be unheard of; look at everything.
    pub fn tell(&mut self, at: At, passage: Passage, now_ms: u64) -> bool {
        if !matches!(passage, Passage::Came { .. }) && !self.names.contains_key(&at) {
            return false;
        }
        if self.names.len() >= Self::NAMES_MAX {
            self.names.clear();
            self.old.clear();
            return true;
        }
        let told = match self.names.entry(at) {
            alloc::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            alloc::collections::btree_map::Entry::Vacant(entry) => {
                self.old.push_back((now_ms, entry.key().clone()));
                entry.insert(Told::default())
            }
        };
        told.last_ms = now_ms;
        let mut doubt = false;
        match passage {
            Passage::Came { dir, only } => {
                doubt |= told.lose();
                told.unsure |= told
                    .claim
                    .is_some_and(|claim| only.is_none_or(|only| only == claim));
                told.claim = None;
                (told.bound, told.dir, told.only) = (true, dir, only);
            }
            Passage::Left => told.bound = false,
            Passage::Went => doubt |= told.lose(),
            Passage::Touched => told.touched = true,
        }
        if told.unsure && core::mem::take(&mut told.touched) {
            doubt = true;
        }
        doubt
    }

    /// Whether anything was told of this name of late.
    pub fn knows(&self, at: &At) -> bool {
        self.names.contains_key(at)
    }

    /// Forgets what is over. `waits`: whether a name has still to be looked at.
    pub fn forget(&mut self, now_ms: u64, waits: impl Fn(&At) -> bool) {
        for _ in 0..self.old.len() {
            let Some((since, _)) = self.old.front() else {
                break;
            };
            if since + Self::LATE_MS > now_ms {
                break;
            }
            let Some((_, at)) = self.old.pop_front() else {
                break;
            };
            let Some(told) = self.names.get(&at) else {
                continue;
            };
            if told.unsure {
                // Until everything was looked at.
                continue;
            }
            if told.last_ms + Self::LATE_MS > now_ms || waits(&at) {
                self.old.push_back((now_ms, at));
            } else {
                self.names.remove(&at);
            }
        }
    }

    /// Everything was looked at, by a scan that began then: who still has a lost file open is known by now.
    pub fn scanned(&mut self, began_ms: u64) {
        self.names
            .retain(|_, told| !told.unsure || told.last_ms >= began_ms);
    }
}

impl Told {
    /// The name does not stand any more for what it was given to.
    fn lose(&mut self) -> bool {
        if !core::mem::take(&mut self.bound) {
            return false;
        }
        if self.dir {
            // It can't be known whether anybody listened in it in time.
            return true;
        }
        match self.only {
            Some(inode) => self.claim = Some(inode),
            None => self.unsure = true,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Name, ObjectId};

    fn at(name: &str) -> At {
        At {
            parent: ObjectId::ROOT,
            name: Name::new(name.as_bytes()).unwrap(),
        }
    }
    const fn came(only: Option<u64>) -> Passage {
        Passage::Came { dir: false, only }
    }
    /// Which of the steps raises doubt first.
    fn doubts(steps: &[Passage]) -> Option<usize> {
        let mut passing = Passing::default();
        steps
            .iter()
            .position(|step| passing.tell(at("x"), *step, 0))
    }
    use Passage::{Left, Touched, Went};

    #[test]
    fn a_link_that_was_written_and_removed_is_doubt() {
        assert_eq!(doubts(&[came(None), Touched, Went]), Some(2));
        assert_eq!(doubts(&[came(None), Went, Touched]), Some(2));
        assert_eq!(doubts(&[came(None), Touched, came(Some(7))]), Some(2));
    }

    #[test]
    fn what_had_no_other_name_is_none() {
        assert_eq!(doubts(&[came(Some(7)), Touched, Went, Touched]), None);
        let renamed = [came(None), Touched, Left, came(None), Touched, Left];
        assert_eq!(doubts(&renamed), None);
        let twice = [came(Some(7)), Touched, Went, came(Some(8)), Touched, Went];
        assert_eq!(doubts(&twice), None);
        assert_eq!(doubts(&[Touched, Went, Left, Touched]), None);
    }

    #[test]
    fn a_look_that_came_too_late_proves_nothing() {
        // What was seen at first is what came second.
        let late = [came(Some(8)), Touched, Went, came(Some(8))];
        assert_eq!(doubts(&late), Some(3));
        let gone = [came(Some(8)), Touched, Went, came(None)];
        assert_eq!(doubts(&gone), Some(3));
    }

    #[test]
    fn a_directory_that_came_and_went_is_doubt() {
        let dir = Passage::Came {
            dir: true,
            only: None,
        };
        assert_eq!(doubts(&[dir, Went]), Some(1));
        assert_eq!(doubts(&[dir, Left, Went]), None);
    }

    #[test]
    fn it_is_forgotten_when_it_is_over_and_doubt_when_all_was_looked_at() {
        let mut passing = Passing::default();
        passing.tell(at("x"), came(None), 0);
        passing.forget(900, |_| false);
        passing.forget(1500, |_| true);
        assert_eq!(passing.names.len(), 1);
        passing.forget(2500, |_| false);
        assert_eq!(passing.names.len(), 0);
        passing.tell(at("y"), came(None), 3000);
        passing.tell(at("y"), Went, 3000);
        passing.forget(9000, |_| false);
        assert!(passing.tell(at("y"), Touched, 9000));
        passing.scanned(9000);
        assert_eq!(passing.names.len(), 1);
        passing.scanned(9001);
        assert_eq!(passing.names.len(), 0);
    }
}
