//! `apply_group` against a trivially simple model, over thousands of seeded groups, possible and impossible ones.

extern crate std;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use std::format;

use super::*;
use crate::record::{Change, Note};
use crate::rows::MemRows;

/// The whole tree as two maps.
#[derive(Clone, Default, Debug, PartialEq)]
struct Simple {
    names: BTreeMap<At, ObjectId>,
    objects: BTreeMap<ObjectId, State>,
}

impl Simple {
    /// The law word by word; `None` when the group is impossible.
    fn apply(&self, group: &[Record]) -> Option<Simple> {
        let mut tree = self.clone();
        for record in group {
            if let Change::Create { at, object, state } = &record.change {
                let parent = tree.objects.get(&at.parent)?;
                if !parent.kind.is_dir() || tree.objects.insert(*object, state.clone()).is_some() {
                    return None;
                }
            }
        }
        for record in group {
            if let Change::Unlink { at, object }
            | Change::Move {
                object, from: at, ..
            } = &record.change
                && tree.names.remove(at) != Some(*object)
            {
                return None;
            }
        }
        for record in group {
            if let Change::Create { at, object, .. }
            | Change::Link { at, object }
            | Change::Move { object, to: at, .. } = &record.change
            {
                let linked = matches!(record.change, Change::Link { .. });
                let possible = tree.objects.get(&at.parent)?.kind.is_dir()
                    && !(tree.objects.get(object)?.kind.is_dir() && linked)
                    && tree.names.insert(at.clone(), *object).is_none();
                if !possible {
                    return None;
                }
            }
        }
        for record in group {
            if let Change::Update {
                object,
                at,
                meta,
                content,
            } = &record.change
            {
                if at.as_ref().map_or(*object != ObjectId::ROOT, |at| {
                    tree.names.get(at) != Some(object)
                }) {
                    return None;
                }
                let state = tree.objects.get_mut(object)?;
                if let Some(meta) = meta {
                    state.meta = meta.clone();
                }
                match (&mut state.kind, content) {
                    (_, None) => {}
                    (Kind::File(old), Some(content)) => *old = content.clone(),
                    _ => return None,
                }
            }
        }
        // Directories that lead nowhere but have a name make a circle.
        for object in tree.objects.keys() {
            let mut id = *object;
            for _ in 0..=tree.objects.len() {
                match tree.names.iter().find(|(_, named)| **named == id) {
                    Some((at, _)) => id = at.parent,
                    None => break,
                }
            }
            if tree.names.values().any(|named| *named == id) {
                return None;
            }
        }
        loop {
            let named: BTreeSet<ObjectId> = tree.names.values().copied().collect();
            let before = tree.objects.len();
            tree.objects
                .retain(|id, _| *id == ObjectId::ROOT || named.contains(id));
            tree.names
                .retain(|at, _| tree.objects.contains_key(&at.parent));
            if tree.objects.len() == before {
                return Some(tree);
            }
        }
    }
}

fn simple(rows: &MemRows) -> Simple {
    let mut tree = Simple::default();
    for (id, object) in rows.objects() {
        tree.objects.insert(*id, object.state.clone());
        assert!(object.names.iter().is_sorted());
        for at in &object.names {
            assert_eq!(rows.name(at), Ok(Some(*id)));
            tree.names.insert(at.clone(), *id);
        }
    }
    // No name is left over that no object knows of.
    for dir in tree.objects.keys() {
        for (name, id) in rows.children(*dir, None, usize::MAX).unwrap() {
            assert_eq!(tree.names.get(&At { parent: *dir, name }), Some(&id));
        }
    }
    tree
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
    fn pick<T: Clone>(&mut self, list: &[T]) -> Option<T> {
        list.get(self.below(list.len())).cloned()
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn at(parent: ObjectId, text: &str) -> At {
    At {
        parent,
        name: name(text),
    }
}

fn content(n: usize) -> Content {
    Content {
        bytes: n as u64,
        digest: Digest([n as u8; 32]),
        data: Vec::new(),
        proven: false,
        fuzzy: false,
    }
}

fn dir() -> State {
    State {
        kind: Kind::Dir,
        meta: Meta::default(),
    }
}

fn file(n: usize) -> State {
    State {
        kind: Kind::File(content(n)),
        meta: Meta::default(),
    }
}

fn group(first: u64, changes: Vec<Change>) -> Vec<Record> {
    let last = changes.len();
    let record = |(n, change): (usize, Change)| Record {
        position: Position {
            epoch: 1,
            sequence: first + n as u64,
        },
        time_ns: 0,
        end: n + 1 == last,
        who: None,
        change,
        local: None,
        content: None,
    };
    changes.into_iter().enumerate().map(record).collect()
}

fn opened() -> MemRows {
    let mut rows = MemRows::default();
    let open = Change::Open {
        tree: [0; 16],
        claim: [0; 16],
        parent: None,
    };
    apply_group(&mut rows, &group(1, vec![open])).unwrap();
    rows
}

/// A group that is possible more often than not.
fn random_group(random: &mut Random, tree: &Simple, first: u64) -> Vec<Record> {
    let mut dirs: Vec<ObjectId> = tree
        .objects
        .iter()
        .filter(|(_, s)| s.kind.is_dir())
        .map(|(id, _)| *id)
        .collect();
    let mut names: Vec<(At, ObjectId)> = tree
        .names
        .iter()
        .map(|(at, id)| (at.clone(), *id))
        .collect();
    let mut free = BTreeSet::new();
    let mut changes = Vec::new();
    for n in 0..1 + random.below(6) {
        let target = |random: &mut Random, dirs: &[ObjectId], free: &BTreeSet<At>| {
            let freed: Vec<At> = free.iter().cloned().collect();
            match random.pick(&freed) {
                Some(at) if random.below(2) == 0 => at,
                _ => at(random.pick(dirs).unwrap(), &format!("{}", random.below(12))),
            }
        };
        let taken = random.below(names.len().max(1));
        let change = match random.below(10) {
            0..3 => {
                let object = ObjectId((1 << 44) | (first + n as u64));
                let at = target(random, &dirs, &free);
                let state = if random.below(2) == 0 {
                    dir()
                } else {
                    file(random.below(200))
                };
                if state.kind.is_dir() {
                    dirs.push(object);
                }
                Change::Create { at, object, state }
            }
            3 => match names.get(taken) {
                Some((_, object)) => Change::Link {
                    at: target(random, &dirs, &free),
                    object: *object,
                },
                None => continue,
            },
            4..6 if !names.is_empty() => {
                let (at, object) = names.swap_remove(taken);
                free.insert(at.clone());
                Change::Unlink { at, object }
            }
            6..9 if !names.is_empty() => {
                let (from, object) = names.swap_remove(taken);
                free.insert(from.clone());
                let to = target(random, &dirs, &free);
                Change::Move { object, from, to }
            }
            _ => match names.get(taken) {
                Some((at, object)) => Change::Update {
                    object: *object,
                    at: Some(at.clone()),
                    meta: (random.below(2) == 0).then(|| Meta {
                        mode: random.below(512) as u16,
                        ..Meta::default()
                    }),
                    content: (random.below(2) == 0).then(|| content(random.below(200))),
                },
                None => Change::Note(Note::Overflow),
            },
        };
        changes.push(change);
    }
    group(first, changes)
}

#[test]
fn agrees_with_the_simple_model() {
    let (mut possible, mut impossible) = (0, 0);
    for seed in 0..3000u64 {
        let mut random = Random(seed);
        let mut rows = opened();
        let mut tree = simple(&rows);
        let mut next = 2;
        for _ in 0..12 {
            let group = random_group(&mut random, &tree, next);
            next += group.len() as u64;
            let expected = tree.apply(&group);
            let result = apply_group(&mut rows, &group);
            match expected {
                Some(expected) => {
                    let effect = result
                        .unwrap_or_else(|error| panic!("seed {seed}: {error:?} for {group:#?}"));
                    let created = expected
                        .objects
                        .keys()
                        .filter(|id| !tree.objects.contains_key(id))
                        .count();
                    let after = expected.objects.len() as u64;
                    assert_eq!(
                        tree.objects.len() as u64 + effect.created - effect.removed,
                        after,
                        "seed {seed}"
                    );
                    assert!(effect.created as usize >= created);
                    tree = expected;
                    possible += 1;
                }
                None => {
                    assert!(
                        matches!(result, Err(ModelError::Impossible { .. })),
                        "seed {seed}: {result:?} for {group:#?}"
                    );
                    impossible += 1;
                }
            }
            assert_eq!(simple(&rows), tree, "seed {seed}: {group:#?}");
        }
    }
    assert!(
        possible > 10_000 && impossible > 1_000,
        "{possible} possible, {impossible} impossible"
    );
}

/// Applies groups written as text to a tree written as text, and shows the tree, sorted.
fn check(groups: Vec<Vec<Change>>) -> String {
    let mut rows = opened();
    let mut next = 2;
    for changes in groups {
        let group = group(next, changes);
        next += group.len() as u64;
        apply_group(&mut rows, &group).unwrap();
    }
    let tree = simple(&rows);
    let mut lines: Vec<String> = tree
        .names
        .iter()
        .map(|(at, id)| format!("{}/{}={}", short(at.parent), at.name, short(*id)))
        .collect();
    lines.sort();
    lines.join(" ")
}

fn short(id: ObjectId) -> u64 {
    id.0 & ((1 << 44) - 1)
}

fn id(n: u64) -> ObjectId {
    ObjectId((1 << 44) | n)
}

fn create(parent: u64, text: &str, n: u64, state: State) -> Change {
    Change::Create {
        at: at(id(parent), text),
        object: id(n),
        state,
    }
}

fn moved(n: u64, from: (u64, &str), to: (u64, &str)) -> Change {
    Change::Move {
        object: id(n),
        from: at(id(from.0), from.1),
        to: at(id(to.0), to.1),
    }
}

#[test]
fn swaps_and_inversions_need_no_order() {
    let ab = vec![create(1, "a", 2, dir()), create(2, "b", 3, dir())];
    assert_eq!(check(vec![ab.clone()]), "1/a=2 2/b=3");
    // a/b becomes b/a.
    let inversion = vec![moved(2, (1, "a"), (3, "a")), moved(3, (2, "b"), (1, "b"))];
    assert_eq!(check(vec![ab, inversion]), "1/b=3 3/a=2");
    let files = vec![create(1, "a", 2, file(1)), create(1, "b", 3, file(2))];
    let swap = vec![moved(2, (1, "a"), (1, "b")), moved(3, (1, "b"), (1, "a"))];
    assert_eq!(check(vec![files, swap]), "1/a=3 1/b=2");
}

#[test]
fn a_directory_goes_with_all_below_but_not_what_has_a_name_elsewhere() {
    let made = vec![
        create(1, "d", 2, dir()),
        create(2, "e", 3, dir()),
        create(3, "f", 4, file(1)),
        create(3, "g", 5, file(1)),
        Change::Link {
            at: at(id(1), "kept"),
            object: id(5),
        },
        create(2, "h", 7, dir()),
    ];
    let gone = vec![
        Change::Unlink {
            at: at(id(1), "d"),
            object: id(2),
        },
        moved(7, (2, "h"), (1, "out")),
    ];
    assert_eq!(check(vec![made, gone]), "1/kept=5 1/out=7");
}

#[test]
fn a_deep_and_a_wide_subtree_go() {
    let mut rows = opened();
    let mut changes = vec![create(1, "d", 2, dir())];
    for n in 3..3000 {
        // A chain of directories, each with two files beside the next.
        let parent = if n % 3 == 0 { n - 1 } else { (n / 3) * 3 - 1 };
        changes.push(create(
            parent.max(2),
            &format!("{n}"),
            n,
            if n % 3 == 2 { dir() } else { file(1) },
        ));
        if n % 3 == 0 {
            let Some(Change::Create { at: place, .. }) = changes.last_mut() else {
                unreachable!()
            };
            place.parent = id(n - 1);
        }
    }
    let made = group(2, changes);
    let before = apply_group(&mut rows, &made).unwrap();
    assert_eq!(before.created, 2998);
    let wide: Vec<Change> = (4000..6000)
        .map(|n| create(2, &format!("w{n}"), n, dir()))
        .collect();
    apply_group(&mut rows, &group(4000, wide)).unwrap();
    let gone = Change::Unlink {
        at: at(id(1), "d"),
        object: id(2),
    };
    let effect = apply_group(&mut rows, &group(9000, vec![gone])).unwrap();
    assert_eq!((effect.removed, effect.gone), (4998, vec![id(2)]));
    assert_eq!(rows.objects().count(), 1);
}

#[test]
fn local_parts_are_kept() {
    let mut rows = opened();
    let mut made = group(2, vec![create(1, "a", 2, file(1))]);
    let local = Local {
        ino: 7,
        handle: Some(Handle {
            kind: 1,
            bytes: vec![9].into(),
        }),
        ..Local::default()
    };
    made[0].local = Some(local.clone());
    apply_group(&mut rows, &made).unwrap();
    let rename = group(3, vec![moved(2, (1, "a"), (1, "b"))]);
    apply_group(&mut rows, &rename).unwrap();
    assert_eq!(rows.object(id(2)).unwrap().unwrap().local, local);
    assert_eq!(
        rows.by_handle(local.handle.as_ref().unwrap()),
        Ok(Some(id(2)))
    );
}

#[test]
fn impossible_groups_say_why() {
    let why = |changes: Vec<Change>| {
        let mut rows = opened();
        let made = vec![
            create(1, "d", 2, dir()),
            create(2, "e", 3, dir()),
            create(1, "f", 4, file(1)),
        ];
        apply_group(&mut rows, &group(2, made)).unwrap();
        match apply_group(&mut rows, &group(10, changes)) {
            Err(ModelError::Impossible { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    };
    let link = |n, parent, text| Change::Link {
        at: at(id(parent), text),
        object: id(n),
    };
    let unlink = |n, parent, text| Change::Unlink {
        at: at(id(parent), text),
        object: id(n),
    };
    assert_eq!(why(vec![link(99, 1, "x")]), Impossible::UnknownObject);
    assert_eq!(why(vec![link(4, 99, "x")]), Impossible::UnknownParent);
    assert_eq!(
        why(vec![
            create(11, "x", 10, file(1)),
            create(1, "y", 11, dir())
        ]),
        Impossible::UnknownParent
    );
    assert_eq!(why(vec![link(4, 4, "x")]), Impossible::ParentIsNoDirectory);
    assert_eq!(why(vec![unlink(4, 1, "x")]), Impossible::NameMissing);
    assert_eq!(
        why(vec![unlink(4, 1, "f"), unlink(4, 1, "f")]),
        Impossible::NameMissing
    );
    assert_eq!(why(vec![link(4, 1, "d")]), Impossible::NameTaken);
    assert_eq!(
        why(vec![link(4, 1, "x"), link(4, 1, "x")]),
        Impossible::NameTaken
    );
    assert_eq!(
        why(vec![create(1, "x", 4, file(1))]),
        Impossible::ObjectExists
    );
    assert_eq!(
        why(vec![link(2, 1, "x")]),
        Impossible::DirectoryWithTwoNames
    );
    assert_eq!(why(vec![moved(2, (1, "d"), (3, "x"))]), Impossible::Cycle);
    assert_eq!(why(vec![link(1, 1, "x")]), Impossible::Root);
    let update = |n, place: Option<At>| Change::Update {
        object: id(n),
        at: place,
        meta: None,
        content: Some(content(1)),
    };
    assert_eq!(
        why(vec![update(2, Some(at(id(1), "d")))]),
        Impossible::NoFile
    );
    assert_eq!(
        why(vec![update(4, Some(at(id(1), "x")))]),
        Impossible::WrongName
    );
    assert_eq!(why(vec![update(4, None)]), Impossible::WrongName);
    let open = Change::Open {
        tree: [0; 16],
        claim: [0; 16],
        parent: None,
    };
    assert_eq!(why(vec![open.clone()]), Impossible::ObjectExists);
    assert_eq!(why(vec![open, unlink(4, 1, "f")]), Impossible::OpenNotAlone);
}

#[test]
fn the_splitter_gives_whole_groups() {
    let mut splitter = GroupSplitter::new();
    let records = group(
        1,
        vec![Change::Note(Note::Hold), Change::Note(Note::Release)],
    );
    assert_eq!(splitter.push(records[0].clone()), Ok(None));
    assert_eq!(splitter.pending(), 1);
    assert_eq!(splitter.push(records[1].clone()), Ok(Some(records)));
    assert_eq!(splitter.pending(), 0);
}
