//! The names of one object: a sorted set, as cheap to clone as to change by one, however many there are.
//!
//! A file may have 65,000 names and more, and each record about it looks at its row: what is shared with the row before
//! is neither copied nor compared. Runs of names are shared between clones; a change copies the run it falls into.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::types::At;

/// Of an object with no more names than this each of them is looked at whenever something happened to it.
pub const FEW: usize = 16;

/// Names in one run.
const RUN_MAX: usize = 128;

/// See the module. Nearly all have one name, which takes no room elsewhere.
#[derive(Clone, Default)]
pub struct Names(Form);

#[derive(Clone, Default)]
enum Form {
    #[default]
    None,
    One(At),
    /// Two at least.
    Many(Arc<Many>),
}

#[derive(Clone)]
struct Many {
    count: usize,
    /// In order, none empty, each in order.
    runs: Vec<Arc<Vec<At>>>,
}

impl Names {
    pub const fn new() -> Names {
        Names(Form::None)
    }
    pub const fn one(at: At) -> Names {
        Names(Form::One(at))
    }
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::None => 0,
            Form::One(_) => 1,
            Form::Many(many) => many.count,
        }
    }
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Form::None)
    }
    pub fn first(&self) -> Option<&At> {
        self.iter().next()
    }
    pub fn clear(&mut self) {
        self.0 = Form::None;
    }

    pub fn contains(&self, at: &At) -> bool {
        match &self.0 {
            Form::None => false,
            Form::One(one) => one == at,
            Form::Many(many) => {
                let run = many.runs.get(many.run_of(at));
                run.is_some_and(|run| run.binary_search(at).is_ok())
            }
        }
    }

    /// Whether it was not there before.
    pub fn insert(&mut self, at: At) -> bool {
        match &mut self.0 {
            Form::None => self.0 = Form::One(at),
            Form::One(one) if *one == at => return false,
            Form::One(one) => *self = [one.clone(), at].into_iter().collect(),
            Form::Many(many) => {
                let place = many.run_of(&at);
                let run = many.runs.get(place);
                let Some(Err(within)) = run.map(|run| run.binary_search(&at)) else {
                    return false;
                };
                Arc::make_mut(many).insert(place, within, at);
            }
        }
        true
    }

    /// Whether it was there.
    pub fn remove(&mut self, at: &At) -> bool {
        match &mut self.0 {
            Form::None => return false,
            Form::One(one) if one != at => return false,
            Form::One(_) => self.0 = Form::None,
            Form::Many(many) => {
                let place = many.run_of(at);
                let run = many.runs.get(place);
                let Some(Ok(within)) = run.map(|run| run.binary_search(at)) else {
                    return false;
                };
                let many = Arc::make_mut(many);
                many.remove(place, within);
                if many.count == 1 {
                    let last = many.runs.first().and_then(|run| run.first()).cloned();
                    self.0 = last.map_or(Form::None, Form::One);
                }
            }
        }
        true
    }

    /// Removes the names of which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&At) -> bool) {
        let lost: Vec<At> = self.iter().filter(|at| !keep(at)).cloned().collect();
        if lost.len() * 8 < self.len() {
            for at in &lost {
                self.remove(at);
            }
        } else if !lost.is_empty() {
            // Both in order.
            let mut lost = lost.iter().peekable();
            let kept = self.iter().filter(|at| lost.next_if_eq(at).is_none());
            *self = kept.cloned().collect();
        }
    }

    /// Those that `other` does not have, in order. Runs that both share cost nothing.
    pub fn without<'a>(&'a self, other: &'a Names) -> impl Iterator<Item = &'a At> {
        let (mut single, mut runs) = self.parts();
        let (_, mut others) = other.parts();
        // Most differ in one place.
        while let (Some((run, rest)), Some((other, other_rest))) =
            (runs.split_first(), others.split_first())
            && Arc::ptr_eq(run, other)
        {
            (runs, others) = (rest, other_rest);
        }
        while let (Some((run, rest)), Some((other, other_rest))) =
            (runs.split_last(), others.split_last())
            && Arc::ptr_eq(run, other)
        {
            (runs, others) = (rest, other_rest);
        }
        if let ([run], [other]) = (runs, others) {
            let same = run.iter().zip(other.iter()).take_while(|(a, b)| a == b);
            single = run.get(same.count()..).unwrap_or_default();
            let ends = single.iter().rev().zip(other.iter().rev());
            let same = ends.take_while(|(a, b)| a == b).count();
            single = single.get(..single.len() - same).unwrap_or_default();
            runs = &[];
        }
        let single = single.iter();
        let of_runs = runs.iter().filter(|run| !other.shares(run));
        let all = single.chain(of_runs.flat_map(|run| run.iter()));
        all.filter(|at| !other.contains(at))
    }

    fn shares(&self, run: &Arc<Vec<At>>) -> bool {
        match (&self.0, run.first()) {
            (Form::Many(many), Some(first)) => {
                let mine = many.runs.get(many.run_of(first));
                mine.is_some_and(|mine| Arc::ptr_eq(mine, run))
            }
            _ => false,
        }
    }

    fn parts(&self) -> (&[At], &[Arc<Vec<At>>]) {
        match &self.0 {
            Form::None => (&[], &[]),
            Form::One(at) => (core::slice::from_ref(at), &[]),
            Form::Many(many) => (&[], &many.runs),
        }
    }

    pub fn iter(&self) -> Iter<'_> {
        let (run, runs) = self.parts();
        Iter {
            left: self.len(),
            run: run.iter(),
            runs: runs.iter(),
        }
    }
}

impl Many {
    /// The run that a name is in, or would come into.
    fn run_of(&self, at: &At) -> usize {
        let after = |run: &Arc<Vec<At>>| run.first().is_some_and(|first| first <= at);
        self.runs.partition_point(after).saturating_sub(1)
    }

    fn insert(&mut self, place: usize, within: usize, at: At) {
        self.count += 1;
        let is_last = place + 1 == self.runs.len();
        let Some(run) = self.runs.get_mut(place) else {
            self.runs.push(Arc::new(Vec::from([at])));
            return;
        };
        if run.len() < RUN_MAX {
            Arc::make_mut(run).insert(within, at);
        } else if is_last && within == run.len() {
            // Many are made in order: full runs stay full.
            self.runs.push(Arc::new(Vec::from([at])));
        } else {
            let run = Arc::make_mut(run);
            let mut upper = run.split_off(RUN_MAX / 2);
            match within.checked_sub(run.len()) {
                Some(within) if within > 0 => upper.insert(within.min(upper.len()), at),
                _ => run.insert(within, at),
            }
            self.runs.insert(place + 1, Arc::new(upper));
        }
    }

    fn remove(&mut self, place: usize, within: usize) {
        let Some(run) = self.runs.get_mut(place) else {
            return;
        };
        self.count -= 1;
        let run = Arc::make_mut(run);
        run.remove(within);
        let (is_empty, length) = (run.is_empty(), run.len());
        if is_empty {
            self.runs.remove(place);
        } else if let Some(next) = self.runs.get(place + 1)
            && length + next.len() <= RUN_MAX / 2
        {
            let next = self.runs.remove(place + 1);
            if let Some(run) = self.runs.get_mut(place) {
                Arc::make_mut(run).extend(next.iter().cloned());
            }
        }
    }
}

/// Names in order.
#[derive(Clone)]
pub struct Iter<'a> {
    left: usize,
    run: core::slice::Iter<'a, At>,
    runs: core::slice::Iter<'a, Arc<Vec<At>>>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a At;
    fn next(&mut self) -> Option<&'a At> {
        let at = match self.run.next() {
            Some(at) => at,
            None => {
                self.run = self.runs.next()?.iter();
                self.run.next()?
            }
        };
        self.left -= 1;
        Some(at)
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}
impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a Names {
    type Item = &'a At;
    type IntoIter = Iter<'a>;
    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl FromIterator<At> for Names {
    fn from_iter<I: IntoIterator<Item = At>>(names: I) -> Names {
        let mut names: Vec<At> = names.into_iter().collect();
        if !names.is_sorted_by(|a, b| a < b) {
            names.sort_unstable();
            names.dedup();
        }
        if names.len() < 2 {
            return names.pop().map_or(Names::new(), Names::one);
        }
        let count = names.len();
        let mut runs = Vec::with_capacity(count.div_ceil(RUN_MAX));
        let mut names = names.into_iter();
        while names.len() > 0 {
            let run: Vec<At> = names.by_ref().take(RUN_MAX).collect();
            runs.push(Arc::new(run));
        }
        Names(Form::Many(Arc::new(Many { count, runs })))
    }
}

impl Extend<At> for Names {
    fn extend<I: IntoIterator<Item = At>>(&mut self, names: I) {
        for at in names {
            self.insert(at);
        }
    }
}

impl From<Vec<At>> for Names {
    fn from(names: Vec<At>) -> Names {
        names.into_iter().collect()
    }
}

impl PartialEq for Names {
    fn eq(&self, other: &Names) -> bool {
        self.len() == other.len() && self.without(other).next().is_none()
    }
}
impl Eq for Names {}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Name, ObjectId};
    use alloc::collections::BTreeSet;
    use alloc::format;

    fn at(n: u64) -> At {
        At {
            parent: ObjectId(n % 3),
            name: Name::new(format!("{n}").as_bytes()).unwrap(),
        }
    }

    fn check(names: &Names, set: &BTreeSet<At>) {
        assert_eq!(names.len(), set.len());
        assert_eq!(names.is_empty(), set.is_empty());
        assert_eq!(names.iter().len(), set.len());
        assert!(names.iter().eq(set));
        assert_eq!(names.first(), set.first());
        if let Form::Many(many) = &names.0 {
            assert!(many.count >= 2);
            let small = |run: &Arc<Vec<At>>| !run.is_empty() && run.len() <= RUN_MAX;
            assert!(many.runs.iter().all(small));
        }
        let again: Names = set.iter().cloned().collect();
        assert_eq!(*names, again);
    }

    #[test]
    fn is_a_sorted_set() {
        let mut random = 1u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            (random >> 33) % below
        };
        for most in [1, 2, 3, 40, 3000] {
            let (mut names, mut set) = (Names::new(), BTreeSet::new());
            let mut before = names.clone();
            for step in 0..4 * most {
                let name = at(next(most));
                // First it grows, then it shrinks.
                if next(4) < if step < 2 * most { 3 } else { 1 } {
                    assert_eq!(names.insert(name.clone()), set.insert(name.clone()));
                } else {
                    assert_eq!(names.remove(&name), set.remove(&name));
                }
                assert_eq!(names.contains(&name), set.contains(&name));
                if step % 64 == 0 {
                    check(&names, &set);
                    let old: BTreeSet<At> = before.iter().cloned().collect();
                    assert!(names.without(&before).eq(set.difference(&old)));
                    assert!(before.without(&names).eq(old.difference(&set)));
                    assert_eq!(names == before, set == old);
                    before = names.clone();
                }
            }
            for part in [1000, 3, 1] {
                let keep = |at: &At| {
                    !at.name
                        .as_bytes()
                        .iter()
                        .map(|b| u64::from(*b))
                        .sum::<u64>()
                        .is_multiple_of(part)
                };
                names.retain(keep);
                set.retain(keep);
                check(&names, &set);
            }
        }
    }

    #[test]
    fn a_change_copies_one_run() {
        let all: Names = (0..60_000).map(at).collect();
        let mut more = all.clone();
        assert!(more.insert(at(70_000)) && more.remove(&at(7)));
        let Form::Many(many) = &more.0 else {
            panic!("{} names", more.len());
        };
        let own = many.runs.iter().filter(|run| !all.shares(run)).count();
        assert!(own <= 3, "{own} runs of {}", many.runs.len());
        assert!(more.without(&all).eq([&at(70_000)]));
        assert!(all.without(&more).eq([&at(7)]));
    }
}
