//! Mass change: when is it more likely that the source is broken than that somebody meant it? (Promise P6.)
//!
//! Counted for the tree and for each first-level directory. The thresholds are the design's: more than 30 % of the
//! entries and more than 1,000 of them in the tree, or 90 % (from 20 entries up) in a first-level directory.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::types::*;

pub const TREE_PERCENT: u64 = 30;
pub const TREE_ENTRIES_MIN: u64 = 1000;
pub const DIR_PERCENT: u64 = 90;
pub const DIR_ENTRIES_MIN: u64 = 20;

/// Entries that were there, and how many of them are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loss {
    pub before: u64,
    pub gone: u64,
}

impl Loss {
    fn percent_over(self, percent: u64) -> bool {
        self.gone.saturating_mul(100) > self.before.saturating_mul(percent)
    }
    fn percent_at_least(self, percent: u64) -> bool {
        self.gone.saturating_mul(100) >= self.before.saturating_mul(percent)
    }
}

/// What a guard holds for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    Tree(Loss),
    Dir {
        name: Name,
        loss: Loss,
    },
    /// The root has no entry left, though it had some.
    Empty {
        before: u64,
    },
}

/// Says whether so much is gone that a person must look. First-level directories that are gone themselves count
/// with all their entries.
pub fn judge(tree: Loss, dirs: &BTreeMap<Name, Loss>) -> Option<Alarm> {
    if tree.before > 0 && tree.gone >= tree.before && tree.before >= DIR_ENTRIES_MIN {
        return Some(Alarm::Empty {
            before: tree.before,
        });
    }
    if tree.gone > TREE_ENTRIES_MIN && tree.percent_over(TREE_PERCENT) {
        return Some(Alarm::Tree(tree));
    }
    dirs.iter()
        .find(|(_, loss)| {
            loss.before >= DIR_ENTRIES_MIN && loss.gone > 0 && loss.percent_at_least(DIR_PERCENT)
        })
        .map(|(name, loss)| Alarm::Dir {
            name: name.clone(),
            loss: *loss,
        })
}

/// Entries that went and came, of one first-level directory or of the root itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// Names taken away that are nowhere else in the tree.
    pub gone: u64,
    /// Names that are new in the tree.
    pub new: u64,
    /// Entries that came from another first-level directory, or went to one: no loss for the tree, and what moves out
    /// is none for the directory either, but what only passes through is no gain.
    pub moved_in: u64,
    pub moved_out: u64,
}

impl Flow {
    pub fn add(&mut self, more: Flow) {
        self.gone += more.gone;
        self.new += more.new;
        self.moved_in += more.moved_in;
        self.moved_out += more.moved_out;
    }
    /// Of the directory.
    fn fall(self) -> Fall {
        let came = (self.new + self.moved_in).saturating_sub(self.moved_out);
        Fall::of(self.gone, came)
    }
}

/// How the number of entries went within a stretch of time. Two stretches make one: see [`Fall::then`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Fall {
    /// How many fewer there are at its end than at its beginning; below zero: more.
    sum: i64,
    /// How many fewer there are at its end than at any moment in it, the beginning included.
    most: u64,
}

impl Fall {
    fn of(gone: u64, came: u64) -> Fall {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Fall {
            sum: signed(gone).saturating_sub(signed(came)),
            most: gone.saturating_sub(came),
        }
    }
    fn then(self, later: Fall) -> Fall {
        let before = i64::try_from(self.most)
            .unwrap_or(i64::MAX)
            .saturating_add(later.sum);
        Fall {
            sum: self.sum.saturating_add(later.sum),
            most: later.most.max(u64::try_from(before).unwrap_or(0)),
        }
    }
}

/// What went and came within the last minutes, for the guard of a mirror without history.
///
/// A loss is how many fewer entries there are than there were at some moment in the window. So a file that is replaced,
/// or a cache from which as much goes as comes, is none, and what was made a minute ago hides no loss.
#[derive(Debug, Default)]
pub struct Window {
    /// By slices of time, the oldest first; the whole tree, and by first-level directory.
    slices: BTreeMap<u64, (Fall, BTreeMap<Name, Fall>)>,
    /// Directories that lost something in the last batch.
    suspects: Vec<Name>,
}

impl Window {
    pub const MS: u64 = 300_000;
    const SLICE_MS: u64 = 10_000;
    /// First-level directories counted by themselves in one slice; more are counted for the tree only.
    const DIRS_MAX: usize = 10_000;

    /// What went and came in one batch at `now_ms`, by first-level directory (`None`: in the root itself).
    pub fn add(&mut self, flows: &BTreeMap<Option<Name>, Flow>, now_ms: u64) {
        let oldest = now_ms.saturating_sub(Self::MS) / Self::SLICE_MS;
        self.slices = self.slices.split_off(&oldest);
        let (tree, dirs) = self.slices.entry(now_ms / Self::SLICE_MS).or_default();
        let mut all = Flow::default();
        self.suspects.clear();
        for (dir, flow) in flows {
            all.add(*flow);
            let Some(name) = dir else { continue };
            if flow.gone > 0 {
                self.suspects.push(name.clone());
            }
            if let Some(known) = dirs.get_mut(name) {
                *known = known.then(flow.fall());
            } else if dirs.len() < Self::DIRS_MAX {
                dirs.insert(name.clone(), flow.fall());
            }
        }
        *tree = tree.then(Fall::of(all.gone, all.new));
    }

    /// Losses after the last batch, given how many entries are left. `left(None, _)` is the tree; of a directory it is
    /// enough to know them up to the number given.
    pub fn judge(&self, left: &mut dyn FnMut(Option<&Name>, u64) -> u64) -> Option<Alarm> {
        let mut dirs: BTreeMap<Name, Loss> = BTreeMap::new();
        for name in &self.suspects {
            let gone = self
                .slices
                .values()
                .filter_map(|(_, dirs)| dirs.get(name))
                .fold(Fall::default(), |sum, slice| sum.then(*slice))
                .most;
            if gone.saturating_mul(100) < DIR_ENTRIES_MIN * DIR_PERCENT {
                continue;
            }
            // One more left than this, and it is less than the threshold.
            let enough = gone.saturating_mul(100) / DIR_PERCENT - gone + 1;
            let before = gone + left(Some(name), enough);
            dirs.insert(name.clone(), Loss { before, gone });
        }
        let gone = self
            .slices
            .values()
            .fold(Fall::default(), |sum, (tree, _)| sum.then(*tree))
            .most;
        if gone == 0 && dirs.is_empty() {
            return None;
        }
        let before = gone + left(None, u64::MAX);
        judge(Loss { before, gone }, &dirs)
    }

    pub fn clear(&mut self) {
        self.slices.clear();
        self.suspects.clear();
    }
}

/// Files whose content was written over, replaced or removed within the last minutes: what ransomware does, and a deployment.
/// Each file counts once. For the alarm of a mirror with history.
#[derive(Debug, Default)]
pub struct Destroyed {
    slices: BTreeMap<u64, BTreeSet<ObjectId>>,
}

impl Destroyed {
    /// More is not needed to know that it is much.
    const FILES_MAX: usize = 1 << 20;

    pub fn add(&mut self, files: impl IntoIterator<Item = ObjectId>, now_ms: u64) {
        let oldest = now_ms.saturating_sub(Window::MS) / Window::SLICE_MS;
        self.slices = self.slices.split_off(&oldest);
        for file in files {
            if self.count() >= Self::FILES_MAX {
                return;
            }
            if !self.slices.values().any(|slice| slice.contains(&file)) {
                let slice = self.slices.entry(now_ms / Window::SLICE_MS).or_default();
                slice.insert(file);
            }
        }
    }

    fn count(&self) -> usize {
        self.slices.values().map(BTreeSet::len).sum()
    }

    /// Given how many files there are now; those that are gone were there, too.
    pub fn judge(&self, files: u64) -> Option<Loss> {
        let gone = self.count() as u64;
        let loss = Loss {
            before: files.max(gone),
            gone,
        };
        (gone > TREE_ENTRIES_MIN && loss.percent_over(TREE_PERCENT)).then_some(loss)
    }

    pub fn clear(&mut self) {
        self.slices.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }
    fn dirs(list: &[(&str, u64, u64)]) -> BTreeMap<Name, Loss> {
        list.iter()
            .map(|(n, before, gone)| {
                (
                    name(n),
                    Loss {
                        before: *before,
                        gone: *gone,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn many_files_written_over_within_minutes_are_an_alarm() {
        let mut destroyed = Destroyed::default();
        // One file that changes all the time is one.
        for n in 0..5000 {
            destroyed.add([ObjectId(7)], n * 50);
        }
        assert_eq!(destroyed.judge(2000), None);
        destroyed.add((100..1099).map(ObjectId), 250_000);
        assert_eq!(destroyed.judge(2000), None, "1,000 are not more than 1,000");
        destroyed.add([ObjectId(2000)], 250_000);
        assert!(destroyed.judge(2000).is_some());
        assert_eq!(destroyed.judge(4000), None, "25 %");
        // Half an hour later it is forgotten.
        destroyed.add([ObjectId(1)], 250_000 + 1_800_000);
        assert_eq!(destroyed.judge(2000), None);
    }

    #[test]
    fn thresholds_are_as_promised() {
        let none = BTreeMap::new();
        assert_eq!(
            judge(
                Loss {
                    before: 10_000,
                    gone: 3_000
                },
                &none
            ),
            None
        );
        assert!(matches!(
            judge(
                Loss {
                    before: 10_000,
                    gone: 3_001
                },
                &none
            ),
            Some(Alarm::Tree(_))
        ));
        assert_eq!(
            judge(
                Loss {
                    before: 1_500,
                    gone: 1_000
                },
                &none
            ),
            None
        );
        assert!(matches!(
            judge(
                Loss {
                    before: 1_500,
                    gone: 1_001
                },
                &none
            ),
            Some(Alarm::Tree(_))
        ));
        assert!(matches!(
            judge(
                Loss {
                    before: 30,
                    gone: 30
                },
                &none
            ),
            Some(Alarm::Empty { before: 30 })
        ));
        assert_eq!(judge(Loss { before: 5, gone: 5 }, &none), None);
        assert_eq!(
            judge(
                Loss {
                    before: 100_000,
                    gone: 17
                },
                &dirs(&[("a", 20, 17)])
            ),
            None
        );
        assert!(
            judge(
                Loss {
                    before: 100_000,
                    gone: 18
                },
                &dirs(&[("a", 20, 18)])
            )
            .is_some()
        );
        assert_eq!(
            judge(
                Loss {
                    before: 100_000,
                    gone: 19
                },
                &dirs(&[("a", 19, 19)])
            ),
            None
        );
    }

    fn gone(gone: u64) -> Flow {
        Flow {
            gone,
            ..Flow::default()
        }
    }
    fn new(new: u64) -> Flow {
        Flow {
            new,
            ..Flow::default()
        }
    }
    fn one(dir: &str, flow: Flow) -> BTreeMap<Option<Name>, Flow> {
        BTreeMap::from([(Some(name(dir)), flow)])
    }

    #[test]
    fn the_window_forgets() {
        let mut window = Window::default();
        let mut left = |dir: Option<&Name>, _| if dir.is_some() { 2 } else { 100_000 };
        window.add(&one("site", gone(50)), 0);
        assert!(window.judge(&mut left).is_some());
        window.add(&one("site", gone(1)), Window::MS - 1);
        assert!(window.judge(&mut left).is_some());
        window.add(&one("site", gone(1)), Window::MS + Window::SLICE_MS);
        assert_eq!(window.judge(&mut left), None);
    }

    #[test]
    fn what_comes_again_is_no_loss() {
        // Sessions come and go, 40 each second: nothing is lost, whichever is heard first.
        let mut window = Window::default();
        let mut left = |dir: Option<&Name>, _| if dir.is_some() { 10 } else { 2_000 };
        let both = Flow {
            gone: 40,
            new: 40,
            ..Flow::default()
        };
        for second in 0..1000 {
            let now = second * 1000;
            window.add(&one("sessions", both), now);
            assert_eq!(window.judge(&mut left), None, "{second}");
            window.add(&one("sessions", new(10)), now);
            window.add(&one("sessions", gone(10)), now);
            assert_eq!(window.judge(&mut left), None, "{second}");
        }
        window.add(&one("sessions", gone(95)), 1_000_000);
        assert!(matches!(window.judge(&mut left), Some(Alarm::Dir { .. })));
    }

    #[test]
    fn what_was_just_made_hides_no_loss() {
        let mut none = |dir: Option<&Name>, _| if dir.is_some() { 0 } else { 100_000 };
        let mut window = Window::default();
        // In one slice, and over several.
        for later in [1, 60_000] {
            window.clear();
            window.add(&one("site", new(7000)), 0);
            assert_eq!(window.judge(&mut none), None);
            window.add(&one("site", gone(4000)), later);
            window.add(&one("site", gone(3000)), later + 1);
            let alarm = window.judge(&mut none);
            let loss = Loss {
                before: 7000,
                gone: 7000,
            };
            assert!(
                matches!(alarm, Some(Alarm::Dir { loss: l, .. }) if l == loss),
                "{alarm:?}"
            );
        }
    }

    #[test]
    fn moves_are_no_loss() {
        let mut none = |dir: Option<&Name>, _| if dir.is_some() { 0 } else { 100_000 };
        let moved = |moved_in, moved_out| Flow {
            moved_in,
            moved_out,
            ..Flow::default()
        };
        // A new version is moved in over the old one.
        let mut window = Window::default();
        window.add(
            &one(
                "site",
                Flow {
                    gone: 30,
                    ..moved(30, 0)
                },
            ),
            0,
        );
        assert_eq!(window.judge(&mut none), None);
        // A directory that was moved away as a whole.
        window.add(&one("old", moved(0, 500)), 0);
        assert_eq!(window.judge(&mut none), None);
        // What only passes through hides no loss.
        let passing = Flow {
            new: 30,
            gone: 30,
            ..moved(0, 30)
        };
        window.add(&one("upload", passing), 0);
        assert!(matches!(window.judge(&mut none), Some(Alarm::Dir { .. })));
    }

    #[test]
    fn no_more_is_counted_than_decides() {
        for (lost, there) in [(18, 2), (18, 3), (900, 100), (900, 101), (17, 0)] {
            let mut window = Window::default();
            window.add(&one("d", gone(lost)), 0);
            let held = |enough: bool| {
                window.judge(&mut |dir: Option<&Name>, most| match dir {
                    Some(_) if enough => there.min(most),
                    Some(_) => there,
                    None => 1_000_000,
                })
            };
            assert_eq!(
                held(true).is_some(),
                held(false).is_some(),
                "{lost} {there}"
            );
            assert_eq!(
                held(true).is_some(),
                lost * 10 >= (lost + there) * 9 && lost + there >= 20
            );
        }
    }
}
