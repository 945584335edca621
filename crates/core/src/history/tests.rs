//! The tree as of every position, of random groups, is the tree that was there.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::convert::Infallible;

use super::asof::{AsOf, Bytes, NameWas, ObjectWas, Past};
use super::rows::{Moment, Unkept, Was};
use super::trace::Trace;
use crate::model::{GroupSplitter, apply_group};
use crate::plan::merge_traced;
use crate::plan::tests::tree::{Random, Tree};
use crate::rows::{MemRows, Rows};
use crate::types::*;

/// Rows in memory.
#[derive(Default)]
pub struct Memory {
    names: BTreeMap<(ObjectId, Name, Moment), Option<ObjectId>>,
    objects: BTreeMap<(ObjectId, Moment), ObjectWas>,
}

impl Memory {
    fn take(&mut self, trace: &Trace) {
        for group in &trace.groups {
            for row in &group.rows {
                match &row.was {
                    Was::Name { at, before, .. } => {
                        let key = (at.parent, at.name.clone(), group.moment);
                        let again = self.names.insert(key, *before);
                        assert_eq!(again, None, "a name twice in a group");
                    }
                    Was::Object {
                        object,
                        state,
                        then,
                        ..
                    } => {
                        let was = ObjectWas {
                            moment: group.moment,
                            state: state.clone(),
                            then: *then,
                        };
                        let again = self.objects.insert((*object, group.moment), was);
                        assert_eq!(again, None, "an object twice in a group");
                    }
                    Was::Unkept { .. } => {}
                }
            }
        }
    }
}

impl Past for Memory {
    type Error = Infallible;
    fn name_after(&self, at: &At, moment: Moment) -> Result<Option<NameWas>, Infallible> {
        let from = (at.parent, at.name.clone(), Moment(moment.0 + 1));
        let to = (at.parent, at.name.clone(), Moment::MAX);
        let first = self.names.range(from..=to).next();
        Ok(first.map(|((_, _, moment), before)| NameWas {
            moment: *moment,
            before: *before,
        }))
    }
    fn names_after(
        &self,
        dir: ObjectId,
        moment: Moment,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, NameWas)>, Infallible> {
        let mut found: Vec<(Name, NameWas)> = Vec::new();
        for ((parent, name, at), before) in &self.names {
            let later = after.is_none_or(|after| name > after);
            let known = found.last().is_some_and(|(last, _)| last == name);
            if *parent == dir && later && !known && *at > moment && found.len() < max {
                let was = NameWas {
                    moment: *at,
                    before: *before,
                };
                found.push((name.clone(), was));
            }
        }
        Ok(found)
    }
    fn object_after(&self, id: ObjectId, moment: Moment) -> Result<Option<ObjectWas>, Infallible> {
        let range = (id, Moment(moment.0 + 1))..=(id, Moment::MAX);
        Ok(self.objects.range(range).next().map(|(_, was)| was.clone()))
    }
    fn kept(&self, _: ObjectId, _: Moment) -> Result<Result<(), Unkept>, Infallible> {
        Ok(Ok(()))
    }
}

/// All that a tree shows: each name's way, object and state.
type Shown = Vec<(Vec<Name>, ObjectId, State)>;

fn shown(
    children: &dyn Fn(ObjectId) -> Vec<(Name, ObjectId)>,
    state: &dyn Fn(ObjectId) -> State,
) -> Shown {
    let mut out = Vec::from([(Vec::new(), ObjectId::ROOT, state(ObjectId::ROOT))]);
    let mut todo = Vec::from([(Vec::new(), ObjectId::ROOT)]);
    while let Some((way, dir)) = todo.pop() {
        for (name, id) in children(dir) {
            let mut way = way.clone();
            way.push(name);
            let state = state(id);
            if state.kind.is_dir() {
                todo.push((way.clone(), id));
            }
            out.push((way, id, state));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

fn now(rows: &MemRows) -> Shown {
    let children = |dir| rows.children(dir, None, usize::MAX).unwrap_or_default();
    let state = |id| rows.object(id).unwrap_or_default().unwrap().state;
    shown(&children, &state)
}

fn as_of(view: &AsOf<'_, MemRows, Memory>, page: usize) -> Shown {
    let children = |dir| {
        let (mut out, mut after) = (Vec::new(), None);
        loop {
            let (found, next) = view.children(dir, after.as_ref(), page).unwrap();
            out.extend(found);
            match next {
                Some(name) => after = Some(name),
                None => return out,
            }
        }
    };
    let state = |id| view.state(id).unwrap().unwrap();
    shown(&children, &state)
}

#[test]
fn the_tree_as_of_every_position_is_what_was_there() {
    for seed in 0..1500 {
        let mut random = Random::new(seed ^ 0x7157);
        let mut tree = Tree::default();
        for _ in 0..random.below(20) {
            tree.random_op(&mut random);
        }
        let mut rows = tree.rows();
        let mut past = Memory::default();
        let mut then = Vec::from([(Moment::default(), now(&rows))]);
        let mut bytes_end: BTreeMap<(ObjectId, Moment), ()> = BTreeMap::new();
        for _ in 0..1 + random.below(6) {
            // Some groups are folded together, as apply does.
            let mut batch = Vec::new();
            for _ in 0..1 + random.below(4) {
                let before = tree.clone();
                for _ in 0..1 + random.below(6) {
                    tree.random_op(&mut random);
                }
                batch.extend(before.group_to(&mut tree, &mut random));
            }
            let traced = merge_traced(&rows, &BTreeMap::new(), &batch, false);
            let Ok((_, trace)) = traced else {
                panic!("seed {seed}: the groups do not fit");
            };
            past.take(&trace);
            // Every ending of bytes is told once: of those in the copy, and of those that only passed.
            for (object, (moment, _)) in &trace.ends {
                bytes_end.insert((*object, *moment), ());
            }
            for passing in &trace.passing {
                let again = bytes_end.insert((passing.object, passing.until), ());
                assert_eq!(again, None, "seed {seed}: one version ends twice");
            }
            let mut groups = GroupSplitter::new();
            for record in batch {
                if let Ok(Some(group)) = groups.push(record) {
                    let moment = Moment::of(group[group.len() - 1].position);
                    apply_group(&mut rows, &group).unwrap();
                    then.push((moment, now(&rows)));
                }
            }
        }
        for (moment, was) in &then {
            let view = AsOf {
                rows: &rows,
                past: &past,
                moment: *moment,
            };
            let page = 1 + (seed % 5) as usize;
            assert_eq!(&as_of(&view, page), was, "seed {seed}, as of {moment:?}");
            for (_, id, state) in was {
                let Some(content) = state.kind.content() else {
                    continue;
                };
                // The bytes are where a version with this content ended, or still in the copy.
                match view.bytes(*id).unwrap() {
                    Some(Bytes::Nothing) => assert_eq!(content.stored_bytes(), 0),
                    Some(Bytes::Live) => {
                        let live = rows.object(*id).unwrap().unwrap().state;
                        assert!(live.kind.content().unwrap().same(content), "seed {seed}");
                    }
                    Some(Bytes::Kept(until)) => {
                        let was = &past.objects[&(*id, until)];
                        assert!(was.state.kind.content().unwrap().same(content));
                        assert!(bytes_end.contains_key(&(*id, until)), "seed {seed}: {id:?}");
                    }
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
        }
    }
}
