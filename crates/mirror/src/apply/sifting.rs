//! Which of the versions that end in a batch are kept at all: decided before the first is linked, in the order in which
//! they ended.

use std::collections::{BTreeMap, BTreeSet};

use mirror_core::history::{Group, Moment, Then, Unkept, Was};
use mirror_core::{At, ObjectId, Rows};

use super::keeping::is_kept;
use crate::history::keep::{Ends, Sieve};

/// Directories above each other; more is no tree.
const DEPTH_MAX: usize = 4096;
/// A file of more names is kept like any other, wherever they are.
const NAMES_MAX: usize = 64;

/// What is not kept, and why.
pub(super) type Sifted = BTreeMap<(Moment, ObjectId), Unkept>;

/// `rows`: before the first of these groups. `here_ns`: by this host's clock.
pub(super) fn sift<R: Rows>(
    rows: &R,
    groups: &[Group],
    sieve: &mut Sieve,
    here_ns: u64,
) -> Result<Sifted, R::Error> {
    let mut out = Sifted::new();
    let mut names = Names {
        rows,
        moved: BTreeMap::new(),
    };
    let paths = sieve.asks_for_paths();
    for group in groups {
        let mut heirs = None;
        for row in &group.rows {
            let Was::Object {
                object,
                state,
                then,
                ..
            } = &row.was
            else {
                continue;
            };
            if !then.ends_bytes() || !is_kept(&state.kind) {
                continue;
            }
            let ends = match then {
                Then::Gone => {
                    let heirs = heirs.get_or_insert_with(|| heirs_of(group));
                    heirs
                        .get(object)
                        .map_or(Ends::Gone, |heir| Ends::ReplacedBy(*heir))
                }
                _ => Ends::Replaced,
            };
            let at = match paths {
                true => names.paths(*object)?,
                false => Vec::new(),
            };
            let keep = sieve.policy(&at);
            let clocks = (group.time_ns, here_ns);
            if let Err(why) = sieve.decide(keep, *object, ends, clocks) {
                out.insert((group.moment, *object), why);
            }
        }
        if paths {
            names.take(group)?;
        }
    }
    Ok(out)
}

/// Of files that lost a name to another one in this group: which one.
fn heirs_of(group: &Group) -> BTreeMap<ObjectId, ObjectId> {
    let rows = group.rows.iter();
    let pairs = rows.filter_map(|row| match &row.was {
        Was::Name {
            before: Some(before),
            after: Some(after),
            ..
        } => Some((*before, *after)),
        _ => None,
    });
    pairs.collect()
}

/// Where things are between two groups of a batch.
struct Names<'a, R> {
    rows: &'a R,
    /// All names of those that got or lost one.
    moved: BTreeMap<ObjectId, BTreeSet<At>>,
}

impl<R: Rows> Names<'_, R> {
    fn of(&self, id: ObjectId) -> Result<BTreeSet<At>, R::Error> {
        if let Some(names) = self.moved.get(&id) {
            return Ok(names.clone());
        }
        let object = self.rows.object(id)?;
        let names = object.iter().flat_map(|object| &object.names);
        Ok(names.take(NAMES_MAX + 1).cloned().collect())
    }

    fn paths(&self, id: ObjectId) -> Result<Vec<Vec<u8>>, R::Error> {
        let mut paths = Vec::new();
        let names = self.of(id)?;
        if names.len() > NAMES_MAX {
            return Ok(paths);
        }
        for at in names {
            let mut parts = vec![at.name.as_bytes().to_vec()];
            let mut dir = at.parent;
            while dir != ObjectId::ROOT && parts.len() < DEPTH_MAX {
                let Some(above) = self.of(dir)?.pop_first() else {
                    break;
                };
                parts.push(above.name.as_bytes().to_vec());
                dir = above.parent;
            }
            parts.reverse();
            paths.push(parts.join(&b'/'));
        }
        Ok(paths)
    }

    fn take(&mut self, group: &Group) -> Result<(), R::Error> {
        for row in &group.rows {
            let Was::Name { at, before, after } = &row.was else {
                continue;
            };
            for (id, is) in [(before, false), (after, true)] {
                let Some(id) = *id else { continue };
                let mut names = self.of(id)?;
                match is {
                    true => names.insert(at.clone()),
                    false => names.remove(at),
                };
                self.moved.insert(id, names);
            }
        }
        Ok(())
    }
}
