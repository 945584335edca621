//! The laws of a plan on random trees: a model file system executes it step by step and is checked after each.

mod disk;
mod misfit;
pub(crate) mod tree;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use self::disk::Disk;
use self::tree::{Random, Tree};
use super::*;
use crate::record::Record;
use crate::rows::{MemRows, Rows};

/// Groups that lead from one tree to another.
struct Case {
    old: Tree,
    new: Tree,
    rows: MemRows,
    records: Vec<Record>,
}

fn case(random: &mut Random) -> Case {
    let mut tree = Tree::default();
    for _ in 0..random.below(25) {
        tree.random_op(random);
    }
    let old = tree.clone();
    let mut records = Vec::new();
    for _ in 0..1 + random.below(3) {
        let before = tree.clone();
        for _ in 0..1 + random.below(8) {
            tree.random_op(random);
        }
        records.extend(before.group_to(&mut tree, random));
    }
    Case {
        rows: old.rows(),
        old,
        new: tree,
        records,
    }
}

fn plan_of(case: &Case) -> (Merged, Plan) {
    let Ok(merged) = merge(&case.rows, &BTreeMap::new(), &case.records, false) else {
        panic!("the groups do not fit");
    };
    let Ok(plan) = order(&case.rows, &merged, &Seen::default());
    // What is known of the names that stay makes no difference.
    let stays = |target: &Target| match (&target.old, &target.want) {
        (Some(old), Some(want)) => !target.is_dir() && old.state == want.state,
        _ => false,
    };
    let sure = merged.objects.iter().filter(|(_, target)| stays(target));
    let seen = Seen {
        sure: sure.map(|(id, _)| *id).collect(),
        ..Seen::default()
    };
    let Ok(again) = order(&case.rows, &merged, &seen);
    assert_eq!(again, plan, "all that stays is gone through");
    (merged, plan)
}

fn seeds() -> core::ops::Range<u64> {
    let count = option_env!("PLAN_SEEDS")
        .and_then(|n| n.parse().ok())
        .unwrap_or(4000);
    0..count
}

#[test]
fn every_step_keeps_the_laws_and_the_end_is_right() {
    for seed in seeds() {
        let mut random = Random::new(seed);
        let case = case(&mut random);
        let (merged, plan) = plan_of(&case);
        assert!(plan.stuck.is_empty(), "seed {seed}: stuck {:?}", plan.stuck);
        let laws = Laws::new(&case, &merged);
        let mut disk = Disk::new(&case.old);
        let mut deleting = false;
        for (i, step) in plan.steps.iter().enumerate() {
            let context =
                || alloc::format!("seed {seed}, step {i}: {step:?}\nof {:#?}", plan.steps);
            if let Err(why) = disk.run(step, &merged, &case.rows) {
                panic!("{why}\n{}", context());
            }
            match step {
                Step::Unlink { .. } | Step::Remove { .. } => deleting = true,
                Step::Link {
                    to: Place::Tree(_), ..
                }
                | Step::Rename {
                    to: Place::Tree(_), ..
                }
                | Step::Exchange { .. } => {
                    assert!(!deleting, "a name is given after a delete\n{}", context());
                }
                _ => {}
            }
            if let Err(why) = laws.check(&disk) {
                panic!("{why}\n{}", context());
            }
        }
        assert_eq!(
            disk.shown(),
            case.new.shown(),
            "seed {seed}: {:#?}",
            plan.steps
        );
        assert!(
            disk.is_clean(),
            "seed {seed}: something is left in staging or limbo: {:#?}",
            plan.steps
        );
    }
}

#[test]
fn a_crash_at_any_step_converges() {
    for seed in seeds() {
        let mut random = Random::new(seed ^ 0x5eed);
        let case = case(&mut random);
        let (merged, mut plan) = plan_of(&case);
        let mut disk = Disk::new(&case.old);
        for _ in 0..3 {
            let stop = random.below(plan.steps.len() as u64 + 1) as usize;
            for step in &plan.steps[..stop] {
                if let Err(why) = disk.run(step, &merged, &case.rows) {
                    panic!("seed {seed}: {why}\n{step:?} of {:#?}", plan.steps);
                }
            }
            let seen = disk.crash(&merged, &case.old);
            let Ok(again) = order(&case.rows, &merged, &seen);
            plan = again;
        }
        for step in &plan.steps {
            if let Err(why) = disk.run(step, &merged, &case.rows) {
                panic!(
                    "seed {seed} after crashes: {why}\n{step:?} of {:#?}",
                    plan.steps
                );
            }
        }
        assert_eq!(
            disk.shown(),
            case.new.shown(),
            "seed {seed} after crashes: {:#?}",
            plan.steps
        );
        assert!(
            disk.is_clean(),
            "seed {seed} after crashes: something is left over: {:#?}",
            plan.steps
        );
    }
}

/// What must hold after every step.
struct Laws {
    /// Names that exist before and after in directories that do not move.
    stay: BTreeSet<At>,
    /// The objects a name may show.
    allowed: BTreeMap<At, BTreeSet<ObjectId>>,
}

impl Laws {
    fn new(case: &Case, merged: &Merged) -> Laws {
        let mut stay = BTreeSet::new();
        for at in case.old.names.keys() {
            if case.new.names.contains_key(at)
                && case.old.path(at.parent) == case.new.path(at.parent)
            {
                stay.insert(at.clone());
            }
        }
        // Names that trade objects, directly or by way of others.
        let mut groups: Vec<(BTreeSet<At>, BTreeSet<ObjectId>)> = Vec::new();
        for id in merged.objects.keys() {
            let mut names: BTreeSet<At> = case.old.names_of(*id).into_iter().collect();
            names.extend(case.new.names_of(*id));
            let mut objects = BTreeSet::from([*id]);
            groups.retain(|(other, ids)| {
                let apart = other.is_disjoint(&names);
                if !apart {
                    names.extend(other.iter().cloned());
                    objects.extend(ids);
                }
                apart
            });
            groups.push((names, objects));
        }
        let mut allowed: BTreeMap<At, BTreeSet<ObjectId>> = BTreeMap::new();
        for (at, id) in &case.old.names {
            allowed.entry(at.clone()).or_default().insert(*id);
        }
        for (names, objects) in groups {
            for at in names {
                allowed.entry(at).or_default().extend(&objects);
            }
        }
        Laws { stay, allowed }
    }

    fn check(&self, disk: &Disk) -> Result<(), alloc::string::String> {
        let shown = disk.visible()?;
        for at in &self.stay {
            if !shown.contains_key(at) {
                return Err(alloc::format!("{at:?} is missing"));
            }
        }
        for (at, id) in &shown {
            if !self.allowed.get(at).is_some_and(|ids| ids.contains(id)) {
                return Err(alloc::format!("{at:?} shows {id:?}"));
            }
        }
        Ok(())
    }
}

#[test]
fn an_inversion_needs_no_limbo() {
    // a/b -> b/a
    let mut tree = Tree::default();
    let a = tree.mkdir(ObjectId::ROOT, "a");
    let b = tree.mkdir(a, "b");
    let old = tree.clone();
    tree.rename(&tree::at(a, "b"), &tree::at(ObjectId::ROOT, "b"));
    tree.rename(&tree::at(ObjectId::ROOT, "a"), &tree::at(b, "a"));
    let records = old.group_to(&mut tree, &mut Random::new(1));
    let case = Case {
        rows: old.rows(),
        old,
        new: tree,
        records,
    };
    let (_, plan) = plan_of(&case);
    let moves: Vec<_> = plan
        .steps
        .iter()
        .filter(|s| matches!(s, Step::Rename { .. } | Step::Exchange { .. }))
        .collect();
    assert_eq!(moves.len(), 2, "{:#?}", plan.steps);
}

#[test]
fn a_swap_is_one_exchange() {
    let mut tree = Tree::default();
    let a = tree.mkdir(ObjectId::ROOT, "a");
    tree.mkdir(a, "x");
    tree.mkdir(ObjectId::ROOT, "b");
    let old = tree.clone();
    tree.exchange(
        &tree::at(ObjectId::ROOT, "a"),
        &tree::at(ObjectId::ROOT, "b"),
    );
    let records = old.group_to(&mut tree, &mut Random::new(1));
    let case = Case {
        rows: old.rows(),
        old,
        new: tree,
        records,
    };
    let (_, plan) = plan_of(&case);
    let moves: Vec<_> = plan
        .steps
        .iter()
        .filter(|s| matches!(s, Step::Rename { .. } | Step::Exchange { .. }))
        .collect();
    assert!(
        matches!(moves.as_slice(), [Step::Exchange { .. }]),
        "{moves:#?}"
    );
}

#[test]
fn what_is_owed_is_planned_with_what_touches_it() {
    let mut tree = Tree::default();
    let old = tree.clone();
    let dir = tree.mkdir(ObjectId::ROOT, "dir");
    let rows = old.rows();
    let pending = BTreeMap::from([(
        dir,
        Wanted {
            also: Default::default(),
            want: tree.rows().object(dir).ok().flatten(),
            place: None,
            void: false,
        },
    )]);
    let before = tree.clone();
    let file = tree.create(dir, "file");
    let records = before.group_to(&mut tree, &mut Random::new(1));
    let Ok(merged) = merge(&rows, &pending, &records, false) else {
        panic!("misfit")
    };
    assert_eq!(
        merged.objects.keys().copied().collect::<Vec<_>>(),
        [dir, file]
    );
    let Ok(merged) = merge(&rows, &pending, &[], false) else {
        panic!("misfit")
    };
    assert!(merged.objects.is_empty());
    let Ok(merged) = merge(&rows, &pending, &[], true) else {
        panic!("misfit")
    };
    assert_eq!(merged.objects.len(), 1);
}
