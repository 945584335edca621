//! Mass change: when is it more likely that the source is broken than that somebody meant it? (Promise P6.)
//!
//! Counted for the tree and for each first-level directory. The thresholds are the design's: more than 30 % of the
//! entries and more than 1,000 of them in the tree, or 90 % (from 20 entries up) in a first-level directory.

use alloc::collections::BTreeMap;
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

/// Deletes seen happening, over a sliding window, for the guard of a mirror without history.
#[derive(Debug, Default)]
pub struct Window {
    gone: Vec<(u64, Option<Name>, u64)>,
}

impl Window {
    pub const MS: u64 = 300_000;

    /// `entries` below first-level directory `dir` (`None`: in the root itself) went at `now_ms`.
    pub fn add(&mut self, dir: Option<Name>, entries: u64, now_ms: u64) {
        self.gone.retain(|(when, _, _)| when + Self::MS > now_ms);
        match self.gone.last_mut() {
            Some((when, last, count)) if *last == dir && now_ms < *when + 1000 => *count += entries,
            _ => self.gone.push((now_ms, dir, entries)),
        }
    }

    /// Losses now, given how many entries there are left. `left(None)` is the tree.
    pub fn judge(&self, left: &mut dyn FnMut(Option<&Name>) -> u64) -> Option<Alarm> {
        let mut tree = 0;
        let mut dirs: BTreeMap<Name, Loss> = BTreeMap::new();
        for (_, dir, entries) in &self.gone {
            tree += entries;
            if let Some(name) = dir {
                dirs.entry(name.clone()).or_default().gone += entries;
            }
        }
        for (name, loss) in &mut dirs {
            loss.before = loss.gone + left(Some(name));
        }
        judge(
            Loss {
                before: tree + left(None),
                gone: tree,
            },
            &dirs,
        )
    }

    pub fn clear(&mut self) {
        self.gone.clear();
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

    #[test]
    fn the_window_forgets() {
        let mut window = Window::default();
        window.add(Some(name("site")), 50, 0);
        let mut left = |dir: Option<&Name>| if dir.is_some() { 2 } else { 100_000 };
        assert!(window.judge(&mut left).is_some());
        window.add(None, 1, Window::MS + 1);
        assert_eq!(window.judge(&mut left), None);
    }
}
