//! Mass change: when is it more likely that the source is broken than that somebody meant it? (Promise P6.)
//!
//! Counted for the tree and for each first-level directory. The thresholds are the design's: more than 30 % of the
//! entries and more than 1,000 of them in the tree, or 90 % (from 20 entries up) in a first-level directory.

use alloc::collections::BTreeMap;

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
    fn take(&mut self, less: Flow) {
        self.gone = self.gone.saturating_sub(less.gone);
        self.new = self.new.saturating_sub(less.new);
        self.moved_in = self.moved_in.saturating_sub(less.moved_in);
        self.moved_out = self.moved_out.saturating_sub(less.moved_out);
    }
    /// How many fewer there are than before, for the directory.
    fn lost(self) -> u64 {
        let came = (self.new + self.moved_in).saturating_sub(self.moved_out);
        self.gone.saturating_sub(came)
    }
}

/// What went and came within the last minutes, for the guard of a mirror without history.
///
/// Only fewer entries than at the window's beginning are a loss: a file that is replaced, or a cache that is emptied and
/// filled again, is none.
#[derive(Debug, Default)]
pub struct Window {
    /// By slices of time, the oldest first.
    slices: BTreeMap<u64, BTreeMap<Option<Name>, Flow>>,
    /// Their sum.
    sum: BTreeMap<Option<Name>, Flow>,
}

impl Window {
    pub const MS: u64 = 300_000;
    const SLICE_MS: u64 = 10_000;
    /// First-level directories counted by themselves in one slice; more are counted for the tree only.
    const DIRS_MAX: usize = 10_000;

    /// What went and came in first-level directory `dir` (`None`: in the root itself) at `now_ms`.
    pub fn add(&mut self, dir: Option<Name>, flow: Flow, now_ms: u64) {
        self.forget(now_ms);
        let slice = self.slices.entry(now_ms / Self::SLICE_MS).or_default();
        let full = slice.len() >= Self::DIRS_MAX && !slice.contains_key(&dir);
        let dir = if full { None } else { dir };
        slice.entry(dir.clone()).or_default().add(flow);
        self.sum.entry(dir).or_default().add(flow);
    }

    fn forget(&mut self, now_ms: u64) {
        let oldest = now_ms.saturating_sub(Self::MS) / Self::SLICE_MS;
        while let Some(first) = self.slices.first_entry().filter(|e| *e.key() < oldest) {
            for (dir, flow) in first.remove() {
                if let Some(sum) = self.sum.get_mut(&dir) {
                    sum.take(flow);
                    if *sum == Flow::default() {
                        self.sum.remove(&dir);
                    }
                }
            }
        }
    }

    /// Losses now, given how many entries are left. `left(None, _)` is the tree; of a directory it is enough to know
    /// them up to the number given.
    pub fn judge(&self, left: &mut dyn FnMut(Option<&Name>, u64) -> u64) -> Option<Alarm> {
        let mut all = Flow::default();
        let mut dirs: BTreeMap<Name, Loss> = BTreeMap::new();
        for (dir, flow) in &self.sum {
            all.add(*flow);
            let gone = flow.lost();
            let Some(name) = dir else { continue };
            if gone.saturating_mul(100) < DIR_ENTRIES_MIN * DIR_PERCENT {
                continue;
            }
            // One more left than this, and it is less than the threshold.
            let enough = gone.saturating_mul(100) / DIR_PERCENT - gone + 1;
            let before = gone + left(Some(name), enough);
            dirs.insert(name.clone(), Loss { before, gone });
        }
        let gone = all.gone.saturating_sub(all.new);
        if gone == 0 && dirs.is_empty() {
            return None;
        }
        let before = gone + left(None, u64::MAX);
        judge(Loss { before, gone }, &dirs)
    }

    pub fn clear(&mut self) {
        self.slices.clear();
        self.sum.clear();
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

    #[test]
    fn the_window_forgets() {
        let mut window = Window::default();
        window.add(Some(name("site")), gone(50), 0);
        let mut left = |dir: Option<&Name>, _| if dir.is_some() { 2 } else { 100_000 };
        assert!(window.judge(&mut left).is_some());
        window.add(None, gone(1), Window::MS - 1);
        assert!(window.judge(&mut left).is_some());
        window.add(None, gone(1), Window::MS + Window::SLICE_MS);
        assert_eq!(window.judge(&mut left), None);
        assert_eq!(window.sum.len(), 1);
    }

    #[test]
    fn what_comes_again_is_no_loss() {
        // 40 sessions come and go each second, 10 are left: nothing is lost.
        let mut window = Window::default();
        let mut left = |dir: Option<&Name>, _| if dir.is_some() { 10 } else { 2_000 };
        let busy = Flow {
            gone: 40,
            new: 40,
            ..Flow::default()
        };
        for second in 0..1000 {
            window.add(Some(name("sessions")), busy, second * 1000);
            window.add(None, busy, second * 1000);
            assert_eq!(window.judge(&mut left), None, "{second}");
        }
        window.add(Some(name("sessions")), gone(95), 1_000_000);
        assert!(matches!(window.judge(&mut left), Some(Alarm::Dir { .. })));

        // A new version is moved in over the old one; what passes through the upload directory hides no loss there.
        let mut window = Window::default();
        let moved = |moved_in, moved_out| Flow {
            moved_in,
            moved_out,
            ..Flow::default()
        };
        window.add(
            Some(name("upload")),
            Flow {
                new: 30,
                moved_out: 30,
                ..Flow::default()
            },
            0,
        );
        window.add(Some(name("site")), moved(30, 0), 0);
        window.add(Some(name("site")), gone(30), 0);
        let mut none = |dir: Option<&Name>, _| if dir.is_some() { 0 } else { 2_000 };
        assert_eq!(window.judge(&mut none), None);
        window.add(Some(name("upload")), gone(30), 0);
        assert!(matches!(window.judge(&mut none), Some(Alarm::Dir { .. })));
        // A directory that was moved away as a whole lost nothing.
        let mut window = Window::default();
        window.add(Some(name("old")), moved(0, 500), 0);
        assert_eq!(window.judge(&mut none), None);
    }

    #[test]
    fn no_more_is_counted_than_decides() {
        for (lost, there) in [(18, 2), (18, 3), (900, 100), (900, 101), (17, 0)] {
            let mut window = Window::default();
            window.add(Some(name("d")), gone(lost), 0);
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
