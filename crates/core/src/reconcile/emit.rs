//! From the finished draft to the group of records.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::draft::{Ref, Spot};
use super::{Outcome, Proposed, Run, Source};
use crate::names::Names;
use crate::record::Change;
use crate::rows::Rows;
use crate::types::*;

pub(super) fn emit<R: Rows, S: Source>(
    run: Run<'_, R, S>,
    next: Position,
) -> Result<Outcome, R::Error> {
    let Run {
        mut draft,
        mut out,
        unlisted,
        later,
        ..
    } = run;
    let entangled = super::later::entangled(&mut draft, &later)?;
    // A name whose directory did not stay in the tree is no name.
    let mut inside: BTreeMap<Ref, bool> = BTreeMap::new();
    let mut reaches = |draft: &super::Draft<'_, R>, dir: Ref| -> Result<bool, R::Error> {
        if let Some(&known) = inside.get(&dir) {
            return Ok(known);
        }
        let answer = draft.reaches_root(dir)?;
        inside.insert(dir, answer);
        Ok(answer)
    };
    let mut keep_new: Vec<BTreeSet<Spot>> = Vec::with_capacity(draft.new.len());
    for token in 0..draft.new.len() {
        let mut names = BTreeSet::new();
        for spot in draft.names(Ref::New(token))? {
            if reaches(&draft, spot.dir)? {
                names.insert(spot);
            }
        }
        keep_new.push(names);
    }

    // Ids are positions: an object's id is that of the record that creates it, so creates come first, parents
    // before children, in the order they will have in the log.
    let order = creation_order(&keep_new);
    let mut ids: BTreeMap<usize, ObjectId> = BTreeMap::new();
    for (n, token) in order.iter().enumerate() {
        let position = Position {
            epoch: next.epoch,
            sequence: next.sequence + n as u64,
        };
        if let Some(id) = ObjectId::at(position) {
            ids.insert(*token, id);
        }
    }
    let resolve = |spot: &Spot| -> Option<At> {
        let parent = match spot.dir {
            Ref::Known(id) => id,
            Ref::New(token) => *ids.get(&token)?,
        };
        Some(At {
            parent,
            name: spot.name.clone(),
        })
    };

    for (spot, wanted) in later {
        let entangled = match wanted.known {
            Some(id) => entangled.get(&id).cloned().unwrap_or_default(),
            None => Vec::new(),
        };
        if let Some(at) = resolve(&spot) {
            out.later.push(super::Later {
                at,
                bits: wanted.bits,
                handle: wanted.handle,
                bytes: wanted.bytes,
                entangled,
            });
        }
    }

    let mut kept_known: BTreeMap<ObjectId, Names> = BTreeMap::new();
    let mut lost_parent: BTreeSet<At> = BTreeSet::new();
    let moves_dirs = draft.moves_dirs();
    for (id, touched) in draft.known() {
        let mut names = touched.kept.clone();
        if moves_dirs {
            for at in &touched.kept {
                if !reaches(&draft, Ref::Known(at.parent))? {
                    names.remove(at);
                    lost_parent.insert(at.clone());
                }
            }
        }
        for spot in &touched.gained {
            if reaches(&draft, spot.dir)? {
                names.extend(resolve(spot));
            }
        }
        kept_known.insert(*id, names);
    }
    let (known, mut new) = draft.into_parts();

    let mut creates = Vec::new();
    let mut links = Vec::new();
    for token in &order {
        let (Some(id), Some(object), Some(names)) =
            (ids.get(token), new.get_mut(*token), keep_new.get(*token))
        else {
            continue;
        };
        let mut names = names.iter().filter_map(resolve);
        let Some(at) = names.next() else { continue };
        if object.busy {
            out.busy.push(*id);
        }
        creates.push(Proposed {
            change: Change::Create {
                at,
                object: *id,
                state: object.state.clone(),
            },
            who: object.who.clone(),
            local: Some(object.local.clone()),
            body: core::mem::replace(&mut object.body, super::Body::None),
        });
        for at in names {
            links.push(Proposed {
                change: Change::Link { at, object: *id },
                who: object.who.clone(),
                local: None,
                body: super::Body::None,
            });
        }
    }

    let mut unlinks = Vec::new();
    let mut moves = Vec::new();
    let mut updates = Vec::new();
    for (id, touched) in known {
        let Some(after) = kept_known.get(&id) else {
            continue;
        };
        let who = touched
            .update
            .as_ref()
            .and_then(|update| update.who.clone());
        let before = &touched.object.names;
        // A name that only lost its directory goes with the directory's subtree, not by a record of its own,
        // unless the object lives on elsewhere under a name that must be a move.
        let mut lost: Vec<&At> = before.without(after).collect();
        let gained: Vec<&At> = after.without(before).collect();
        if after.is_empty() {
            lost.retain(|at| !lost_parent.contains(at));
        }
        let plain = |change| Proposed {
            change,
            who: who.clone(),
            local: None,
            body: super::Body::None,
        };
        for (from, to) in lost.iter().zip(&gained) {
            moves.push(plain(Change::Move {
                object: id,
                from: (*from).clone(),
                to: (*to).clone(),
            }));
        }
        for at in lost.iter().skip(gained.len()) {
            unlinks.push(plain(Change::Unlink {
                at: (*at).clone(),
                object: id,
            }));
        }
        for at in gained.iter().skip(lost.len()) {
            links.push(plain(Change::Link {
                at: (*at).clone(),
                object: id,
            }));
        }
        if let Some(update) = touched.update
            && (id == ObjectId::ROOT || !after.is_empty())
        {
            updates.push(Proposed {
                change: Change::Update {
                    object: id,
                    at: after.first().cloned(),
                    meta: update.meta,
                    content: update.content,
                },
                who: update.who,
                local: Some(update.local),
                body: update.body,
            });
        }
    }
    out.unlisted
        .extend(unlisted.iter().filter_map(|token| ids.get(token).copied()));
    out.unlisted.sort();
    out.unlisted.dedup();
    out.group = creates;
    out.group.extend(unlinks);
    out.group.extend(moves);
    out.group.extend(links);
    out.group.extend(updates);
    Ok(out)
}

/// New objects that have a name, each after the new directory it lies in.
fn creation_order(names: &[BTreeSet<Spot>]) -> Vec<usize> {
    let mut order = Vec::with_capacity(names.len());
    let mut done = alloc::vec![false; names.len()];
    for start in 0..names.len() {
        let mut chain = Vec::new();
        let mut at = start;
        while !done.get(at).copied().unwrap_or(true) {
            let Some(first) = names.get(at).and_then(|names| names.first()) else {
                break;
            };
            chain.push(at);
            match first.dir {
                Ref::New(parent) => at = parent,
                Ref::Known(_) => break,
            }
        }
        while let Some(token) = chain.pop() {
            if let Some(flag) = done.get_mut(token) {
                *flag = true;
                order.push(token);
            }
        }
    }
    order
}
