//! Files whose bytes are not read yet: what is said of them, and which names must wait with one that got another name.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::Run;
use super::draft::{Draft, Ref, Spot};
use super::source::{Dirty, Seen, Source};
use crate::rows::Rows;
use crate::types::*;

pub(super) struct Wanted {
    pub handle: Handle,
    pub bytes: u64,
    pub known: Option<ObjectId>,
    pub bits: Dirty,
}

impl<R: Rows, S: Source> Run<'_, R, S> {
    pub(super) fn read_later(
        &mut self,
        spot: Spot,
        known: Option<ObjectId>,
        bits: Dirty,
        seen: &Seen,
    ) {
        let wanted = self.later.entry(spot).or_insert_with(|| Wanted {
            handle: seen.handle.clone(),
            bytes: seen.bytes,
            known,
            bits: Dirty::default(),
        });
        (wanted.handle, wanted.bytes) = (seen.handle.clone(), seen.bytes);
        wanted.known = known;
        wanted.bits.merge(bits);
    }
}

/// Of each known object that is to be read and gained a name: that name, those it had, the objects that stand under any of
/// them before or after, their names, and so on.
pub(super) fn entangled<R: Rows>(
    draft: &mut Draft<'_, R>,
    later: &BTreeMap<Spot, Wanted>,
) -> Result<BTreeMap<ObjectId, Vec<At>>, R::Error> {
    let mut all = BTreeMap::new();
    let ids: BTreeSet<ObjectId> = later.values().filter_map(|wanted| wanted.known).collect();
    for id in ids {
        if !draft.gained(id) {
            continue;
        }
        let mut objects = Vec::from([Ref::Known(id)]);
        let (mut met, mut spots) = (BTreeSet::from([Ref::Known(id)]), BTreeSet::new());
        while let Some(object) = objects.pop() {
            let mut names = draft.names(object)?;
            if let Ref::Known(id) = object {
                names.extend(draft.names_before(id)?);
            }
            for spot in names {
                if !spots.insert(spot.clone()) {
                    continue;
                }
                let here = [draft.binding(&spot)?, draft.binding_before(&spot)?];
                for object in here.into_iter().flatten() {
                    if met.insert(object) {
                        objects.push(object);
                    }
                }
            }
        }
        all.insert(id, spots.iter().filter_map(Spot::known).collect());
    }
    Ok(all)
}
