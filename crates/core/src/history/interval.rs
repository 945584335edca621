//! Which versions of a file get into history at all: decided when one is replaced, before it is kept.
//!
//! A file that is written all the time (a session, a log, a database) would fill history with versions that nobody
//! wants. So each file has an allowance: a burst of versions is kept whole, and beyond it one in each interval.
//! How long kept versions stay is another matter: [`retention`](super::retention).

use alloc::collections::BTreeMap;

use crate::types::ObjectId;

/// At most one version in this time of a file that is written all the time, if nobody says otherwise: 10 s.
pub const INTERVAL_NS: u64 = 10_000_000_000;

/// So many versions of a file are kept however fast they follow each other.
pub const BURST: u64 = 16;

/// So many files are remembered; the one that was changed least recently is forgotten first.
pub const FILES_MAX: usize = 1 << 16;

/// What is kept of the versions of the files at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    All,
    /// Nothing: caches, sessions.
    None,
    /// After the burst one in so many nanoseconds. 0 is [`Keep::All`].
    Interval(u64),
}

impl Default for Keep {
    fn default() -> Keep {
        Keep::Interval(INTERVAL_NS)
    }
}

/// Remembers of the files that change how much of their allowance is left.
///
/// Each kept version costs one interval of credit. Credit grows with time up to [`BURST`] intervals: by the time of the
/// worker's records or by the backup's clock, whichever moved more. So neither a worker whose clock stands still nor
/// a backlog that is applied in a moment makes history poorer. A clock that goes back and forth gives nothing twice:
/// only what is later than all before counts.
///
/// Law: a version is kept if an interval has passed since the last kept one, by either clock; and of a file's
/// versions at most `BURST + (passed by the one clock + passed by the other) / interval` are kept.
#[derive(Debug)]
pub struct Hot {
    files: BTreeMap<ObjectId, File>,
    /// The same files by the number of their last change.
    by_change: BTreeMap<u64, ObjectId>,
    changes: u64,
    files_max: usize,
}

#[derive(Debug, Clone, Copy)]
struct File {
    credit_ns: u64,
    /// The latest seen of each clock.
    record_ns: u64,
    mirror_ns: u64,
    change: u64,
}

impl Default for Hot {
    fn default() -> Hot {
        Hot::new(FILES_MAX)
    }
}

impl Hot {
    /// A file that is forgotten has its whole allowance again: with too little memory more is kept, not less.
    pub fn new(files_max: usize) -> Hot {
        Hot {
            files: BTreeMap::new(),
            by_change: BTreeMap::new(),
            changes: 0,
            files_max: files_max.max(1),
        }
    }

    /// Whether [`Hot::kept`] would keep the version.
    pub fn would_keep(&self, keep: Keep, object: ObjectId, record_ns: u64, mirror_ns: u64) -> bool {
        match interval(keep) {
            Err(kept) => kept,
            Ok(interval) => self.credit(interval, object, record_ns, mirror_ns) >= interval,
        }
    }

    /// Whether the version of the file that is replaced now is kept, with the time of the record that replaces it and
    /// the backup's own. If it is, it is taken from the file's allowance.
    pub fn kept(&mut self, keep: Keep, object: ObjectId, record_ns: u64, mirror_ns: u64) -> bool {
        let interval = match interval(keep) {
            Ok(interval) => interval,
            Err(kept) => return kept,
        };
        let credit = self.credit(interval, object, record_ns, mirror_ns);
        let left = credit.checked_sub(interval);
        self.changes += 1;
        let mut file = File {
            credit_ns: left.unwrap_or(credit),
            record_ns,
            mirror_ns,
            change: self.changes,
        };
        if let Some(before) = self.files.get(&object) {
            file.record_ns = file.record_ns.max(before.record_ns);
            file.mirror_ns = file.mirror_ns.max(before.mirror_ns);
            self.by_change.remove(&before.change);
        } else if self.files.len() >= self.files_max
            && let Some((_, oldest)) = self.by_change.pop_first()
        {
            self.files.remove(&oldest);
        }
        self.files.insert(object, file);
        self.by_change.insert(file.change, object);
        left.is_some()
    }

    /// Another file stands at its name from now on, written beside it and renamed: it has no allowance of its own.
    pub fn pass_on(&mut self, from: ObjectId, to: ObjectId) {
        let Some(file) = self.files.get(&from).copied() else {
            return;
        };
        self.forget(from);
        self.forget(to);
        self.files.insert(to, file);
        self.by_change.insert(file.change, to);
    }

    /// The file is gone: nothing will ask for it any more.
    pub fn forget(&mut self, object: ObjectId) {
        if let Some(file) = self.files.remove(&object) {
            self.by_change.remove(&file.change);
        }
    }

    /// How many files are remembered.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    fn credit(&self, interval: u64, object: ObjectId, record_ns: u64, mirror_ns: u64) -> u64 {
        let whole = interval.saturating_mul(BURST);
        let Some(file) = self.files.get(&object) else {
            return whole;
        };
        let by_record = record_ns.saturating_sub(file.record_ns);
        let by_mirror = mirror_ns.saturating_sub(file.mirror_ns);
        file.credit_ns
            .saturating_add(by_record.max(by_mirror))
            .min(whole)
    }
}

/// The interval, or the answer where there is none.
fn interval(keep: Keep) -> Result<u64, bool> {
    match keep {
        Keep::All | Keep::Interval(0) => Err(true),
        Keep::None => Err(false),
        Keep::Interval(interval) => Ok(interval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;
    const FILE: ObjectId = ObjectId(7);

    /// How many of `versions` are kept, `step` apart by each clock, after `start`.
    fn run(hot: &mut Hot, versions: u64, record_step: u64, mirror_step: u64) -> u64 {
        let start = 1_000_000 * S;
        (1..=versions)
            .filter(|n| {
                let (record, mirror) = (start + n * record_step, start + n * mirror_step);
                let would = hot.would_keep(Keep::default(), FILE, record, mirror);
                assert_eq!(would, hot.kept(Keep::default(), FILE, record, mirror));
                would
            })
            .count() as u64
    }

    #[test]
    fn a_burst_is_kept_whole_and_then_one_in_each_interval() {
        // Ten a second for 1,000 s: the burst, and 99 or 100 more.
        let kept = run(&mut Hot::default(), 10_000, S / 10, S / 10);
        assert_eq!(kept, 16 + 99);
        assert_eq!(run(&mut Hot::default(), 16, 0, 0), 16);
        assert_eq!(run(&mut Hot::default(), 17, 0, 0), 16);
        // One in ten seconds: all.
        assert_eq!(run(&mut Hot::default(), 1000, 10 * S, 10 * S), 1000);
    }

    #[test]
    fn the_clock_that_moved_more_counts() {
        // The worker's clock stands still.
        assert_eq!(run(&mut Hot::default(), 1000, 0, 10 * S), 1000);
        // A backlog of days is applied in no time.
        assert_eq!(run(&mut Hot::default(), 1000, 10 * S, 0), 1000);
        assert_eq!(run(&mut Hot::default(), 1000, S, 0), 16 + 99);
    }

    #[test]
    fn a_clock_that_goes_back_and_forth_gives_nothing_twice() {
        let mut hot = Hot::default();
        let kept = (0..1000)
            .filter(|n| hot.kept(Keep::default(), FILE, (n % 2) * 3600 * S, 50 * S))
            .count();
        // Once the hour, which is a whole allowance: one of it was gone by then.
        assert_eq!(kept, 17);
    }

    #[test]
    fn the_policy_of_the_path_comes_first() {
        let mut hot = Hot::default();
        for _ in 0..100 {
            assert!(hot.kept(Keep::All, FILE, 0, 0));
            assert!(hot.kept(Keep::Interval(0), FILE, 0, 0));
            assert!(!hot.kept(Keep::None, FILE, 0, 0));
        }
        assert_eq!(hot.files(), 0);
    }

    #[test]
    fn memory_is_bounded_and_who_is_forgotten_starts_anew() {
        let mut hot = Hot::new(3);
        for _ in 0..20 {
            hot.kept(Keep::default(), FILE, 0, 0);
        }
        assert!(!hot.would_keep(Keep::default(), FILE, 0, 0));
        for other in 100..103 {
            // Asking does not count as a change.
            assert!(!hot.would_keep(Keep::default(), FILE, 0, 0));
            assert!(hot.kept(Keep::default(), ObjectId(other), 0, 0));
            assert!(hot.files() <= 3);
        }
        assert!(hot.would_keep(Keep::default(), FILE, 0, 0));
        hot.forget(ObjectId(101));
        assert_eq!((hot.files(), hot.by_change.len()), (2, 2));
    }

    #[test]
    fn who_replaces_a_file_by_a_new_one_gets_no_new_allowance() {
        let mut hot = Hot::default();
        let kept = (0..1000u64)
            .filter(|n| {
                let kept = hot.kept(Keep::default(), ObjectId(n + 1), n * S, n * S);
                hot.pass_on(ObjectId(n + 1), ObjectId(n + 2));
                kept
            })
            .count();
        assert_eq!((kept, hot.files(), hot.by_change.len()), (16 + 99, 1, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The law in the comment of [`Hot`], with clocks that do as they like.
        #[test]
        fn as_much_as_promised_and_no_more(
            steps in proptest::collection::vec((-30i64..40, 0u64..8), 1..120)
        ) {
            let mut hot = Hot::default();
            let keep = Keep::Interval(10 * S);
            let (mut record, mut mirror) = (1_000_000 * S, 2_000_000 * S);
            let (mut first, mut record_max) = (None, 0);
            let mut last: Option<(u64, u64)> = None;
            let mut kept = 0;
            for (by_record, by_mirror) in steps {
                record = record.saturating_add_signed(by_record * S as i64);
                mirror += by_mirror * S;
                let (first_record, first_mirror) = *first.get_or_insert((record, mirror));
                let due = last.is_none_or(|(r, m)| record >= r + 10 * S || mirror >= m + 10 * S);
                let this = hot.kept(keep, FILE, record, mirror);
                prop_assert!(this || !due);
                record_max = record_max.max(record);
                if this {
                    kept += 1;
                    last = Some((record_max, mirror));
                }
                let passed = record_max - first_record + mirror - first_mirror;
                prop_assert!(kept <= BURST + passed / (10 * S), "{kept} kept in {passed}");
            }
        }
    }
}
