//! Groups that no tree can follow are named, not planned.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::model::apply_group;
use crate::plan::{Misfit, merge};
use crate::record::{Change, Record};
use crate::rows::MemRows;
use crate::types::*;

const A: ObjectId = ObjectId(ObjectId::ROOT.0 + 10);
const B: ObjectId = ObjectId(ObjectId::ROOT.0 + 11);
const C: ObjectId = ObjectId(ObjectId::ROOT.0 + 12);

fn at(parent: ObjectId, name: &str) -> At {
    let name = Name::new(name.as_bytes()).unwrap();
    At { parent, name }
}

fn group(changes: Vec<Change>) -> Vec<Record> {
    let last = changes.len() - 1;
    changes
        .into_iter()
        .enumerate()
        .map(|(n, change)| Record {
            position: Position {
                epoch: 1,
                sequence: 1000 + n as u64,
            },
            time_ns: 0,
            end: n == last,
            who: None,
            change,
            local: None,
            content: None,
        })
        .collect()
}

fn dir(object: ObjectId, at: At) -> Change {
    let state = State {
        kind: Kind::Dir,
        meta: Meta::default(),
    };
    Change::Create { at, object, state }
}

fn moved(object: ObjectId, from: At, to: At) -> Change {
    Change::Move { object, from, to }
}

/// `a/b` and `c`.
fn rows() -> MemRows {
    let mut rows = MemRows::default();
    let open = Change::Open {
        tree: [1; 16],
        claim: [2; 16],
        parent: None,
    };
    apply_group(&mut rows, &group(alloc::vec![open])).unwrap();
    let dirs = [
        dir(A, at(ObjectId::ROOT, "a")),
        dir(B, at(A, "b")),
        dir(C, at(ObjectId::ROOT, "c")),
    ];
    apply_group(&mut rows, &group(dirs.into())).unwrap();
    rows
}

/// What is wrong with these groups.
fn misfit(groups: &[Vec<Change>]) -> Option<&'static str> {
    let rows = rows();
    let records: Vec<Record> = groups.iter().cloned().flat_map(group).collect();
    // The law of a group says so, too.
    let mut copy = rows.clone();
    let possible = groups
        .iter()
        .all(|changes| apply_group(&mut copy, &group(changes.clone())).is_ok());
    let found = match merge(&rows, &BTreeMap::new(), &records, false) {
        Ok(_) => None,
        Err(Misfit::Record { what, .. }) => Some(what),
        Err(Misfit::Rows(never)) => match never {},
    };
    assert_eq!(possible, found.is_none(), "{found:?}");
    found
}

#[test]
fn a_directory_is_not_moved_into_itself() {
    let root = ObjectId::ROOT;
    let into_itself = "a directory is moved into itself";
    let below = moved(A, at(root, "a"), at(B, "a"));
    assert_eq!(misfit(&[alloc::vec![below]]), Some(into_itself));
    let itself = moved(A, at(root, "a"), at(A, "a"));
    assert_eq!(misfit(&[alloc::vec![itself]]), Some(into_itself));
    // By two moves, in one group or in two.
    let one = moved(C, at(root, "c"), at(B, "c"));
    let other = moved(A, at(root, "a"), at(C, "a"));
    let both = alloc::vec![one.clone(), other.clone()];
    assert_eq!(misfit(&[both]), Some(into_itself));
    let apart = [alloc::vec![one], alloc::vec![other]];
    assert_eq!(misfit(&apart), Some(into_itself));
}

#[test]
fn parent_and_child_may_change_places() {
    let root = ObjectId::ROOT;
    let up = moved(B, at(A, "b"), at(root, "a"));
    let down = moved(A, at(root, "a"), at(B, "b"));
    assert_eq!(misfit(&[alloc::vec![up, down]]), None);
}

#[test]
fn the_root_has_no_name() {
    let linked = Change::Link {
        at: at(A, "root"),
        object: ObjectId::ROOT,
    };
    assert_eq!(misfit(&[alloc::vec![linked]]), Some("the root gets a name"));
    let made = dir(ObjectId::ROOT, at(A, "root"));
    assert_eq!(misfit(&[alloc::vec![made]]), Some("the root gets a name"));
}
