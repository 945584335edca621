//! One merged batch from the look to the rows: what it did becomes true there, what failed is owed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mirror_core::history::Trace;
use mirror_core::plan::{Merged, Occupant, Overlay, Place, Step, Wanted, order};
use mirror_core::{At, ObjectId, Position};

use super::batch::{Batch, StepError, ToFlush};
use super::keeping::Keeper;
use super::look::Looked;
use super::pending::{Held, Pending};
use super::{
    Applier, ApplyError, Contents, Counts, Failure, Outcome, Store, crash, store_error, wipe_all,
};

pub(super) enum Executed {
    Done(Box<Outcome>),
    Lost(BTreeSet<ObjectId>),
    /// Nothing was done: the rows must be durable first.
    Unknown,
}

impl<S: Store> Applier<S> {
    pub(super) fn execute(
        &mut self,
        merged: &Merged,
        traced: Trace,
        position: Option<Position>,
        // Time of the first record; `None`: no records, only what is owed.
        fresh: Option<u64>,
        contents: &dyn Contents,
    ) -> Result<Executed, ApplyError> {
        let mut rows = Overlay::new(&self.store);
        let new = merged.objects.iter().filter(|(_, t)| t.old.is_none());
        new.for_each(|(id, _)| rows.mark_new(*id));
        let owed = self.pending.wanted.keys().copied().collect();
        let keeper = self.history.as_mut();
        let keeper = keeper.map(|history| Keeper::new(history, traced, owed));
        let mut batch = Batch {
            rows,
            area: &mut self.area,
            dirs: &mut self.dirs,
            rules: &self.rules,
            staging: &self.staging,
            contents,
            journal: &mut self.journal,
            replaced: &self.pending.replaced,
            options: &self.options,
            merged,
            keeper,
            position,
            replaying: self.replaying,
            now: BTreeMap::new(),
            unplaced: BTreeMap::new(),
            stats: BTreeMap::new(),
            known: HashMap::new(),
            unseen: HashMap::new(),
            made: BTreeMap::new(),
            complete: BTreeSet::new(),
            failed: BTreeMap::new(),
            travels: BTreeSet::new(),
            called: BTreeMap::new(),
            stirred: BTreeSet::new(),
            stamped: BTreeSet::new(),
            late: BTreeSet::new(),
            flush: ToFlush::default(),
            counts: Counts::default(),
        };
        let fatal = |error| match error {
            StepError::Fatal(e) => e,
            StepError::Fails { step, reason } => ApplyError::Records(format!("{step}: {reason}")),
            StepError::Held => ApplyError::Records("a step without ground".into()),
        };
        let seen = match batch.look(&self.limbo).map_err(fatal)? {
            Looked::Lost(dirs) => return Ok(Executed::Lost(dirs)),
            Looked::Seen(seen) => seen,
        };
        let plan = order(&self.store, merged, &seen).map_err(store_error)?;
        if self.dirty.is_some() && plan.steps.iter().any(|step| passes_limbo(step, merged)) {
            return Ok(Executed::Unknown);
        }
        batch.begin(&seen).map_err(fatal)?;
        batch.run(&plan).map_err(fatal)?;
        batch.restat().map_err(fatal)?;

        let stands = batch.stands().map_err(fatal)?;
        let Batch {
            rows,
            now,
            failed,
            travels,
            counts,
            ..
        } = batch;
        let limbo: BTreeMap<Place, ObjectId> = now
            .iter()
            .filter_map(|(place, occupant)| match (place, occupant) {
                (Place::Limbo(..), Occupant::Is(id)) => Some((place.clone(), *id)),
                _ => None,
            })
            .collect();
        let in_limbo: BTreeSet<ObjectId> = limbo.values().copied().collect();
        let mut pending = self.pending.clone();
        pending.replaced.extend(stands.replaced);
        let mut outcome = Outcome {
            counts,
            ..Outcome::default()
        };
        let mut changes = rows.into_changes();
        drop_unreachable(&mut changes, &in_limbo);
        let settled = |id: &ObjectId, row: Option<&mirror_core::Object>| {
            !stands.left.contains(id)
                && match (&merged.objects[id].want, row) {
                    (None, None) => true,
                    (Some(want), Some(row)) => want.state == row.state && want.names == row.names,
                    _ => false,
                }
        };
        let kept = |id: &ObjectId, row: &mirror_core::Object| {
            !row.names.is_empty() || *id == ObjectId::ROOT || in_limbo.contains(id)
        };
        let mut failed = failed;
        // What waits may wait for that; once nothing travels it is known.
        let any_travels = !travels.is_empty()
            || !self.asked
            || (pending.travels.iter()).any(|id| !merged.objects.contains_key(id));
        let before = self.store.position();
        for (id, target) in &merged.objects {
            let row = match changes.get(id) {
                Some(row) => row.as_ref(),
                None => target.old.as_ref(),
            };
            let row = row.filter(|row| kept(id, row));
            if settled(id, row) && !failed.contains_key(id) {
                let known = pending.wanted.remove(id).is_some();
                if pending.held.remove(id).is_none() && known {
                    outcome.healed.push(*id);
                }
                pending.travels.remove(id);
                pending.why.remove(id);
                continue;
            }
            let why = failed.remove(id).unwrap_or_else(|| Failure {
                object: *id,
                step: "wait",
                reason: "something it depends on failed".into(),
                void: target.void,
            });
            let void = why.void;
            let known = |at: &At| row.as_ref().is_some_and(|row| row.names.contains(at));
            let seen = stands.at.get(id).cloned().unwrap_or_default();
            let wanted = Wanted {
                want: target.want.clone(),
                place: target.place,
                void,
                also: seen.into_iter().filter(|at| !known(at)).collect(),
            };
            let travels = travels.contains(id);
            match travels {
                true => pending.travels.insert(*id),
                false => pending.travels.remove(id),
            };
            let new = pending.wanted.insert(*id, wanted).is_none();
            let may_wait = travels || (any_travels && why.step == "wait");
            // Where it had failed, and was passed, nothing goes back.
            if may_wait && (new || fresh.is_some() || pending.held.contains_key(id)) {
                let since_ns = fresh.unwrap_or_default();
                let held = Held { before, since_ns };
                pending.held.entry(*id).or_insert(held);
                pending.why.insert(*id, why);
            } else if may_wait {
                pending.why.entry(*id).or_insert(why);
            } else {
                pending.held.remove(id);
                pending.why.insert(*id, why.clone());
                outcome.failed.push(why);
            }
        }
        // What failed without being part of the batch: directories whose time could not be restored.
        for (id, why) in failed {
            let row = self.store.object(id).map_err(store_error)?;
            if row.is_some() {
                pending.wanted.insert(
                    id,
                    Wanted {
                        want: row,
                        place: None,
                        void: false,
                        also: BTreeSet::new(),
                    },
                );
                pending.why.insert(id, why.clone());
            }
            outcome.failed.push(why);
        }
        let newly = outcome.failed.len();
        let failed = pending.wanted.len().saturating_sub(pending.held.len());
        if newly > self.options.failed_max || failed > self.options.failed_max.max(newly) {
            let first = outcome
                .failed
                .first()
                .map(|why| format!("{}: {}", why.step, why.reason));
            return Err(ApplyError::TooManyFailures {
                count: newly,
                first: first.unwrap_or_default(),
            });
        }
        crash::point("rows");
        let mut new = Vec::new();
        for (id, row) in changes {
            let target = merged.objects.get(&id);
            let known = target.is_none_or(|t| t.old.is_some());
            let row = row.filter(|row| kept(&id, row));
            let before = match target {
                Some(target) => target.old.clone(),
                None => self.store.object(id).map_err(store_error)?,
            };
            self.recount(
                before.as_ref().map(|row| &row.state),
                row.as_ref().map(|row| &row.state),
            );
            match row {
                Some(row) if known => self.store.put(id, row).map_err(store_error)?,
                Some(row) => new.push((id, row)),
                None if known => self.store.remove(id).map_err(store_error)?,
                None => {}
            }
        }
        // When what had their names before has let go of them.
        for (id, row) in new {
            self.store.put_new(id, row).map_err(store_error)?;
        }
        self.pending = pending;
        self.limbo.retain(|_, id| !merged.objects.contains_key(id));
        self.limbo.extend(limbo);
        if self.limbo.is_empty() {
            let Pending {
                wanted, replaced, ..
            } = &mut self.pending;
            replaced.retain(|_, was| wanted.contains_key(&was.object));
        }
        self.staging.tidy();
        if !outcome.failed.is_empty() || any_travels {
            // What was made in vain would be in the way of the next try.
            let _ = wipe_all(&self.area.new);
        }
        self.dirs.elsewhere.clear();
        outcome.moved_aside = self.area.end_batch();
        outcome.recorded = self.recorded;
        Ok(Executed::Done(Box::new(outcome)))
    }
}

/// A directory that did not get its name takes down what was staged in it: no row may say that it is there.
fn drop_unreachable(
    changes: &mut BTreeMap<ObjectId, Option<mirror_core::Object>>,
    in_limbo: &BTreeSet<ObjectId>,
) {
    loop {
        let nameless = |id: &ObjectId, row: &Option<mirror_core::Object>| {
            *id != ObjectId::ROOT
                && !in_limbo.contains(id)
                && row.as_ref().is_none_or(|row| row.names.is_empty())
        };
        let gone: BTreeSet<ObjectId> = changes
            .iter()
            .filter(|(id, row)| nameless(id, row))
            .map(|(id, _)| *id)
            .collect();
        if gone.is_empty() {
            return;
        }
        let mut changed = false;
        for row in changes.values_mut().flatten() {
            let names = row.names.len();
            row.names.retain(|at| !gone.contains(&at.parent));
            changed |= row.names.len() != names;
        }
        if !changed {
            return;
        }
    }
}

/// Whether something that stays wanted is outside the tree for a moment. A crash then must find it in the durable rows,
/// or it would be taken for something that was on its way in, and be made again.
fn passes_limbo(step: &Step, merged: &Merged) -> bool {
    let wanted = |id: &ObjectId| {
        merged
            .objects
            .get(id)
            .is_some_and(|t| t.want.is_some() && t.old.is_some())
    };
    match step {
        Step::Exchange { object, other, .. } => match other {
            Occupant::Is(other) => wanted(object) || wanted(other),
            _ => wanted(object),
        },
        Step::Link { object, to, .. } | Step::Rename { object, to, .. } => {
            matches!(to, Place::Limbo(..)) && wanted(object)
        }
        _ => false,
    }
}
