//! What could be set in the copy, kept with the rows: when that changes (`--owners`, root or not), the copy is brought to it.
//!
//! `apply.rules` in the index: what could be set when all that the rows say was set. `apply.recorded`: how many objects
//! have something that is in the rows only; always the sum over the rows. Bytes: [`Rules::to_bytes`], [`Recorded`] as eight u64.

use std::collections::VecDeque;
use std::time::Instant;

use mirror_core::plan::Wanted;
use mirror_core::{At, Name, Object, ObjectId, State};

use super::meta::Rules;
use super::{
    Applier, ApplyError, Contents, Failure, Outcome, Recorded, Store, store_error, verify,
};

pub(super) const RULES_KEY: &str = "apply.rules";
const RECORDED_KEY: &str = "apply.recorded";
/// Objects set again at once.
const SLICE: usize = if cfg!(test) { 3 } else { 1024 };
/// Names read at a time.
const PAGE: usize = 1024;

impl<S: Store> Applier<S> {
    /// What can be set is not what could be set: until [`Applier::set_again`] is done, the copy is not as the rows say.
    pub fn is_behind(&self) -> bool {
        self.behind.is_some()
    }
    /// What is only recorded, as of the rows.
    pub fn recorded(&self) -> Recorded {
        self.recorded
    }

    pub(super) fn open_rules(&mut self) -> Result<(), ApplyError> {
        let damaged = |what| ApplyError::Records(format!("the note of {what} is damaged"));
        let stored = self.store.get(RULES_KEY).map_err(store_error)?;
        let counted = self.store.get(RECORDED_KEY).map_err(store_error)?;
        if let Some(bytes) = &counted {
            let recorded = Recorded::from_bytes(bytes);
            self.recorded = recorded.ok_or_else(|| damaged("what is only recorded"))?;
        }
        let now = self.rules.to_bytes();
        match stored {
            Some(bytes) if bytes == now => {}
            Some(bytes) => {
                let before = Rules::from_bytes(&bytes);
                self.behind = Some(before.ok_or_else(|| damaged("what could be set"))?);
            }
            // Of before there was such a note: nothing is known to differ, but nothing was counted.
            None if self.store.position().is_some() => self.behind = Some(self.rules.clone()),
            None => self.store.set(RULES_KEY, Some(&now)).map_err(store_error)?,
        }
        Ok(())
    }

    pub(super) fn save_recorded(&mut self) -> Result<(), ApplyError> {
        let bytes = self.recorded.to_bytes();
        let set = self.store.set(RECORDED_KEY, Some(&bytes));
        set.map_err(store_error)
    }

    /// Sets again whatever can be set now and could not, or the other way round, a slice at a time. `each` is told what was
    /// done, and says whether to go on. Broken off it begins anew, and finds what was done. Not within a replay.
    pub fn set_again(
        &mut self,
        contents: &dyn Contents,
        each: &mut dyn FnMut(Outcome) -> bool,
    ) -> Result<(), ApplyError> {
        let Some(before) = self.behind.clone() else {
            return Ok(());
        };
        if self.replay_until.is_some() {
            return Ok(());
        }
        let mut recorded = Recorded::default();
        let mut rows = Walk::default();
        while let Some((_, row)) = rows.next(&self.store).map_err(store_error)? {
            recorded.add(self.rules.recorded(&row.state));
        }
        self.recorded = recorded;
        let mut rows = Walk::default();
        loop {
            let mut owed = 0;
            while owed < SLICE {
                let Some((id, row)) = rows.next(&self.store).map_err(store_error)? else {
                    break;
                };
                if self.owe_if_other(&before, id, row)? {
                    owed += 1;
                }
            }
            if owed == 0 {
                break;
            }
            self.dirty.get_or_insert_with(Instant::now);
            let mut outcome = self.retry(contents)?;
            // Nobody was told that it had failed.
            outcome.healed.clear();
            if !each(outcome) {
                return Ok(());
            }
        }
        let now = self.rules.to_bytes();
        self.store.set(RULES_KEY, Some(&now)).map_err(store_error)?;
        self.dirty.get_or_insert_with(Instant::now);
        // With it the list of what could not be set.
        self.checkpoint()?;
        self.behind = None;
        Ok(())
    }

    fn owe_if_other(
        &mut self,
        before: &Rules,
        id: ObjectId,
        row: Object,
    ) -> Result<bool, ApplyError> {
        let (was, is) = (before.here(&row.state).0, self.rules.here(&row.state).0);
        let why = "what can be set here is not as it was";
        if was == is {
            return Ok(false);
        }
        if was.kind == is.kind {
            self.owe(id, true, why)?;
            return Ok(true);
        }
        // A stand-in is there, and of our making.
        if self.rules.here(&was).0.kind != was.kind {
            self.owe(id, false, why)?;
            return Ok(true);
        }
        let wanted = Wanted {
            want: Some(row.clone()),
            place: None,
            void: false,
            also: Default::default(),
        };
        self.pending.wanted.entry(id).or_insert(wanted);
        let why = Failure {
            object: id,
            step: "repair",
            reason: why.into(),
            void: false,
        };
        self.pending.why.entry(id).or_insert(why);
        let stands = Object { state: was, ..row };
        self.recount(Some(&row.state), Some(&stands.state));
        self.store.put(id, stands).map_err(store_error)?;
        Ok(true)
    }

    /// See [`verify::owe`].
    pub(super) fn owe(
        &mut self,
        id: ObjectId,
        meta_only: bool,
        why: &str,
    ) -> Result<(), ApplyError> {
        let mut forgot = |state: &State| self.recorded.sub(self.rules.recorded(state));
        let (rows, pending) = (&mut self.store, &mut self.pending);
        verify::owe(rows, pending, id, meta_only, why, &mut forgot).map_err(store_error)
    }

    /// A row says something else now.
    pub(super) fn recount(&mut self, before: Option<&State>, after: Option<&State>) {
        if let Some(state) = before
            && self.recorded != Recorded::default()
        {
            self.recorded.sub(self.rules.recorded(state));
        }
        if let Some(state) = after {
            self.recorded.add(self.rules.recorded(state));
        }
    }
}

/// All rows, each object once, a directory before what is in it.
#[derive(Default)]
struct Walk {
    begun: bool,
    dirs: Vec<ObjectId>,
    dir: Option<(ObjectId, Option<Name>)>,
    page: VecDeque<(Name, ObjectId)>,
}

impl Walk {
    fn next<S: Store>(&mut self, rows: &S) -> Result<Option<(ObjectId, Object)>, S::Error> {
        if !std::mem::replace(&mut self.begun, true) {
            self.dirs.push(ObjectId::ROOT);
            if let Some(root) = rows.object(ObjectId::ROOT)? {
                return Ok(Some((ObjectId::ROOT, root)));
            }
        }
        loop {
            if let (Some((dir, after)), Some((name, id))) = (&mut self.dir, self.page.pop_front()) {
                *after = Some(name.clone());
                let at = At { parent: *dir, name };
                let Some(row) = rows.object(id)? else {
                    continue;
                };
                if row.names.first() != Some(&at) {
                    continue;
                }
                if row.state.kind.is_dir() {
                    self.dirs.push(id);
                }
                return Ok(Some((id, row)));
            }
            if let Some((dir, after @ Some(_))) = &self.dir {
                self.page = rows.children(*dir, after.as_ref(), PAGE)?.into();
                if !self.page.is_empty() {
                    continue;
                }
            }
            let Some(dir) = self.dirs.pop() else {
                return Ok(None);
            };
            self.page = rows.children(dir, None, PAGE)?.into();
            self.dir = Some((dir, None));
        }
    }
}

impl Recorded {
    pub fn add(&mut self, other: Recorded) {
        self.each(other, u64::saturating_add);
    }
    pub fn sub(&mut self, other: Recorded) {
        self.each(other, u64::saturating_sub);
    }
    fn each(&mut self, other: Recorded, f: fn(u64, u64) -> u64) {
        for (mine, other) in self.parts().into_iter().zip({ other }.parts()) {
            *mine = f(*mine, *other);
        }
    }
    fn parts(&mut self) -> [&mut u64; 8] {
        let Recorded {
            owners,
            setid,
            devices,
            xattrs,
            labels,
            flags,
            projects,
            times,
        } = self;
        [
            owners, setid, devices, xattrs, labels, flags, projects, times,
        ]
    }
    fn to_bytes(mut self) -> Vec<u8> {
        let parts = self.parts().into_iter();
        parts.flat_map(|part| part.to_le_bytes()).collect()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Recorded> {
        let mut recorded = Recorded::default();
        if bytes.len() != 64 {
            return None;
        }
        for (part, bytes) in recorded.parts().into_iter().zip(bytes.chunks_exact(8)) {
            *part = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(recorded)
    }
}
