//! Large files: which wait to be read, when each one's turn is, what is in hand, and which names wait for that.
//!
//! Pure: time is passed in, threads are the caller's. A file is known by its handle, so that it stays the same whatever
//! it is called meanwhile. Why it is so: `docs/decisions/0005-large-files.md`.
//!
//! Law: a name that waits in a hold is let go once a read of every file it waits for has ended, or the file is not here any
//! more. Reads wait for no name, so all holds end.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::reconcile::Dirty;
use crate::types::*;

#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    /// A file that never rests is read again after so many times what the last read took...
    pub apart_times: u64,
    /// ... but after so long at the latest (or what it took, if that is more).
    pub apart_ms_max: u64,
    /// Quiet for as long as the last read took, this at most, is a rest.
    pub rest_ms_max: u64,
    /// Files beyond this are read in place by whoever finds them.
    pub files_max: usize,
    /// Names that may wait. When there are more, all are let go.
    pub held_max: usize,
}

impl Default for ReadLimits {
    fn default() -> ReadLimits {
        ReadLimits {
            apart_times: 5,
            apart_ms_max: 60_000,
            rest_ms_max: 1000,
            files_max: 4096,
            held_max: 65_536,
        }
    }
}

/// Names to be looked at, with why.
pub type Names = Vec<(At, Dirty)>;

#[derive(Debug)]
enum State<R> {
    Waits,
    Reading { began_ms: u64 },
    InHand { reading: R },
}

#[derive(Debug)]
struct File<R> {
    names: BTreeMap<At, Dirty>,
    state: State<R>,
    bytes: u64,
    /// Since when the log is behind.
    since_ms: u64,
    wrote_ms: u64,
    /// First written since the read began.
    again_ms: Option<u64>,
    /// Somebody waits for it: as soon as it may be.
    hurry: bool,
    /// What is being read now is older than something that waits for it; once, so that it comes to an end.
    anew: Option<bool>,
    /// At once.
    urgent: bool,
}

/// What the last read of a file cost.
#[derive(Debug, Clone, Copy)]
struct Cost {
    began_ms: u64,
    ended_ms: u64,
    /// What was read is in the log.
    used: bool,
}

impl Cost {
    fn took(&self) -> u64 {
        self.ended_ms.saturating_sub(self.began_ms)
    }
    fn covers(&self, since_ms: u64) -> bool {
        self.used && self.began_ms >= since_ms
    }
}

#[derive(Debug)]
struct Hold {
    names: BTreeMap<At, Dirty>,
    /// For a read of each to end.
    reads: BTreeSet<Handle>,
    since_ms: u64,
}

/// A file that may be read now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub handle: Handle,
    pub bytes: u64,
    pub names: Vec<At>,
}

#[derive(Debug)]
pub struct Reads<R> {
    limits: ReadLimits,
    files: BTreeMap<Handle, File<R>>,
    costs: BTreeMap<Handle, Cost>,
    holds: Vec<Hold>,
    /// Since when names had waited that were let go: they may have to wait again.
    freed: BTreeMap<At, u64>,
}

impl<R> Reads<R> {
    pub fn new(limits: ReadLimits) -> Reads<R> {
        Reads {
            limits,
            files: BTreeMap::new(),
            costs: BTreeMap::new(),
            holds: Vec::new(),
            freed: BTreeMap::new(),
        }
    }

    /// Nothing is to be read, and no name waits.
    pub fn is_idle(&self) -> bool {
        self.files.is_empty() && self.holds.is_empty()
    }
    pub fn has_files(&self) -> bool {
        !self.files.is_empty()
    }
    pub fn is_full(&self) -> bool {
        self.files.len() >= self.limits.files_max
    }
    pub fn contains(&self, file: &Handle) -> bool {
        self.files.contains_key(file)
    }

    /// What was read and nobody has used yet.
    pub fn in_hand(&self, file: &Handle) -> Option<&R> {
        match &self.files.get(file)?.state {
            State::InHand { reading, .. } => Some(reading),
            _ => None,
        }
    }
    pub fn all_in_hand(&self) -> impl Iterator<Item = &R> {
        self.files.values().filter_map(|file| match &file.state {
            State::InHand { reading, .. } => Some(reading),
            _ => None,
        })
    }

    /// A look wants this file's content, under this name.
    pub fn want(&mut self, file: Handle, bytes: u64, at: At, bits: Dirty, now_ms: u64) {
        let file = self.files.entry(file).or_insert_with(|| File {
            names: BTreeMap::new(),
            state: State::Waits,
            bytes,
            since_ms: now_ms,
            wrote_ms: now_ms,
            again_ms: None,
            hurry: false,
            anew: None,
            urgent: false,
        });
        file.bytes = bytes;
        let wrote = bits.contents || bits.doubt || !bits.wrote.is_empty();
        if wrote && !matches!(file.state, State::Waits) {
            file.again_ms.get_or_insert(now_ms);
        }
        file.names.entry(at).or_default().merge(bits);
    }

    /// A hint told that it was written.
    pub fn heard(&mut self, file: &Handle, now_ms: u64) {
        if let Some(file) = self.files.get_mut(file) {
            file.wrote_ms = now_ms;
            if !matches!(file.state, State::Waits) {
                file.again_ms.get_or_insert(now_ms);
            }
        }
    }

    /// Likewise, and which file is known by its name only.
    pub fn heard_at(&mut self, at: &At, now_ms: u64) {
        let named = |(handle, file): (&Handle, &File<R>)| {
            file.names.contains_key(at).then(|| handle.clone())
        };
        let files: Vec<Handle> = self.files.iter().filter_map(named).collect();
        files.iter().for_each(|file| self.heard(file, now_ms));
    }

    /// Somebody may have written it since its read began.
    pub fn is_written(&self, file: &Handle) -> bool {
        let file = self.files.get(file);
        file.is_some_and(|file| file.again_ms.is_some())
    }

    /// The last read is as long ago as so many times what it took.
    pub fn is_apart(&self, file: &Handle, times: u64, now_ms: u64) -> bool {
        let cost = self.costs.get(file);
        cost.is_none_or(|cost| cost.ended_ms + cost.took().saturating_mul(times) <= now_ms)
    }

    fn due_ms(&self, handle: &Handle, file: &File<R>) -> u64 {
        let Some(cost) = self.costs.get(handle).filter(|_| !file.urgent) else {
            return 0;
        };
        let took = cost.took();
        let least = cost.ended_ms + took;
        if file.hurry {
            return least;
        }
        let apart = (took * self.limits.apart_times).min(self.limits.apart_ms_max.max(took));
        let rests = file.wrote_ms + took.min(self.limits.rest_ms_max);
        (cost.ended_ms + apart).min(rests.max(least))
    }

    /// The file whose turn it is, if it is no larger than this.
    pub fn turn(&self, now_ms: u64, bytes_max: u64) -> Option<Turn> {
        let waiting = self.files.iter().filter(|(handle, file)| {
            matches!(file.state, State::Waits)
                && file.bytes <= bytes_max
                && self.due_ms(handle, file) <= now_ms
        });
        let (handle, file) = waiting.min_by_key(|(_, file)| (!file.urgent, file.since_ms))?;
        Some(Turn {
            handle: handle.clone(),
            bytes: file.bytes,
            names: file.names.keys().cloned().collect(),
        })
    }

    /// When the turn of the next file that is no larger comes. `None`: none waits.
    pub fn next_ms(&self, bytes_max: u64) -> Option<u64> {
        let waiting = self.files.iter();
        waiting
            .filter(|(_, file)| matches!(file.state, State::Waits) && file.bytes <= bytes_max)
            .map(|(handle, file)| self.due_ms(handle, file))
            .min()
    }

    pub fn begin(&mut self, file: &Handle, now_ms: u64) {
        if let Some(file) = self.files.get_mut(file) {
            file.state = State::Reading { began_ms: now_ms };
            file.again_ms = None;
            (file.hurry, file.urgent) = (false, false);
        }
    }

    /// It was read. Its names, to be looked at first, and those let go, to be looked at after them. An error: what was
    /// read is of no use.
    pub fn end(&mut self, handle: &Handle, reading: R, now_ms: u64) -> Result<(Names, Names), R> {
        let Some(file) = self.files.get_mut(handle) else {
            return Err(reading);
        };
        let State::Reading { began_ms } = file.state else {
            return Err(reading);
        };
        if file.anew == Some(true) {
            file.anew = Some(false);
            file.state = State::Waits;
            file.hurry = true;
            self.cost(handle, began_ms, now_ms);
            return Err(reading);
        }
        file.state = State::InHand { reading };
        let names = file.names.clone().into_iter().collect();
        self.cost(handle, began_ms, now_ms);
        let released = self.let_go(|of| of == handle);
        Ok((names, released))
    }

    fn cost(&mut self, handle: &Handle, began_ms: u64, ended_ms: u64) {
        if self.costs.len() >= self.limits.files_max {
            let longest = 2 * self.limits.apart_ms_max;
            self.costs
                .retain(|_, cost| cost.ended_ms + longest > ended_ms);
            if self.costs.len() >= self.limits.files_max {
                self.costs.clear();
            }
        }
        let cost = Cost {
            began_ms,
            ended_ms,
            used: false,
        };
        self.costs.insert(handle.clone(), cost);
    }

    /// It could not be read, or is not what it was: names let go.
    pub fn failed(&mut self, handle: &Handle, now_ms: u64) -> Names {
        if let Some(File {
            state: State::Reading { began_ms },
            ..
        }) = self.files.get(handle)
        {
            self.cost(handle, *began_ms, now_ms);
        }
        self.drop_file(handle).1
    }

    /// What was read is in the log. `again`: it is another by now, or may be, and to be read once more under these names.
    pub fn used(&mut self, handle: &Handle, again: Names, now_ms: u64) {
        if let Some(cost) = self.costs.get_mut(handle) {
            cost.used = true;
        }
        if again.is_empty() {
            self.files.remove(handle);
        } else if let Some(file) = self.files.get_mut(handle) {
            file.state = State::Waits;
            file.since_ms = file.again_ms.take().unwrap_or(now_ms);
            file.anew = None;
            file.names = again.into_iter().collect();
        }
    }

    /// Nobody waits for this file any more: what was in hand, and names let go.
    pub fn drop_file(&mut self, handle: &Handle) -> (Option<R>, Names) {
        let reading = match self.files.remove(handle) {
            Some(File {
                state: State::InHand { reading, .. },
                ..
            }) => Some(reading),
            _ => None,
        };
        (reading, self.let_go(|of| of == handle))
    }

    /// The names by which it was wanted.
    pub fn names_of(&self, file: &Handle) -> Names {
        let names = self.files.get(file).map(|file| file.names.clone());
        names.unwrap_or_default().into_iter().collect()
    }

    /// Files in hand whose names were all looked at, and nobody used them. `waits`: a name is still to be looked at.
    pub fn unused(&self, waits: impl Fn(&At) -> bool) -> Vec<Handle> {
        let in_hand = self.files.iter();
        in_hand
            .filter(|(_, file)| matches!(file.state, State::InHand { .. }))
            .filter(|(_, file)| !file.names.keys().any(|at| waits(at) || self.is_held(at)))
            .map(|(handle, _)| handle.clone())
            .collect()
    }

    // ---- barriers ----

    /// Each file that waits was read since then, and no name waits that did when all was looked at: what was there until
    /// `since_ms` is in the log.
    pub fn covers(&self, since_ms: u64, looked_ms: u64) -> bool {
        self.holds.iter().all(|hold| hold.since_ms > looked_ms)
            && self.files.keys().all(|handle| {
                let cost = self.costs.get(handle);
                let in_hand = self.in_hand(handle).is_some();
                !in_hand && cost.is_some_and(|cost| cost.covers(since_ms))
            })
    }

    /// Somebody waits for what was there until `since_ms`: those that are not covered are read at once.
    pub fn urge(&mut self, since_ms: u64) {
        let Reads { files, costs, .. } = self;
        for (handle, file) in files {
            file.urgent |= costs.get(handle).is_none_or(|cost| !cost.covers(since_ms));
        }
    }

    // ---- names that wait ----

    pub fn is_held(&self, at: &At) -> bool {
        self.holds.iter().any(|hold| hold.names.contains_key(at))
    }

    /// A hint for names of which some wait: all of them wait. False: none does.
    pub fn join(&mut self, names: &[(At, Dirty)]) -> bool {
        let holds = &mut self.holds;
        let Some(hold) = holds
            .iter_mut()
            .find(|hold| names.iter().any(|(at, _)| hold.names.contains_key(at)))
        else {
            return false;
        };
        for (at, bits) in names {
            hold.names
                .entry(at.clone())
                .or_default()
                .merge(bits.clone());
        }
        true
    }

    /// These names wait for the files that are here now, as they are now.
    pub fn hold_for_all(&mut self, names: Names, now_ms: u64) {
        let mut reads = BTreeSet::new();
        for (handle, file) in &mut self.files {
            match file.state {
                // Its names are to be looked at before these.
                State::InHand { .. } => continue,
                State::Reading { .. } if file.again_ms.is_some() => {
                    file.anew.get_or_insert(true);
                }
                State::Reading { .. } | State::Waits => {}
            }
            file.hurry = true;
            reads.insert(handle.clone());
        }
        self.hold(names, reads, now_ms);
    }

    /// These names wait for this file, in whatever state it is read.
    pub fn hold_for(&mut self, names: Names, file: &Handle, now_ms: u64) {
        if let Some(found) = self.files.get_mut(file) {
            found.hurry = true;
            self.hold(names, BTreeSet::from([file.clone()]), now_ms);
        }
    }

    fn hold(&mut self, names: Names, reads: BTreeSet<Handle>, now_ms: u64) {
        let mut held = Hold {
            names: BTreeMap::new(),
            reads,
            since_ms: now_ms,
        };
        for (at, bits) in names {
            held.since_ms = held.since_ms.min(self.freed.remove(&at).unwrap_or(now_ms));
            held.names.entry(at).or_default().merge(bits);
        }
        // What waits under the same name waits together.
        let (same, mut holds): (Vec<Hold>, Vec<Hold>) = core::mem::take(&mut self.holds)
            .into_iter()
            .partition(|hold| hold.names.keys().any(|at| held.names.contains_key(at)));
        for hold in same {
            held.since_ms = held.since_ms.min(hold.since_ms);
            for (at, bits) in hold.names {
                held.names.entry(at).or_default().merge(bits);
            }
            held.reads.extend(hold.reads);
        }
        holds.push(held);
        self.holds = holds;
    }

    fn let_go(&mut self, is_over: impl Fn(&Handle) -> bool) -> Names {
        for hold in &mut self.holds {
            hold.reads.retain(|file| !is_over(file));
        }
        let too_many: usize = self.holds.iter().map(|hold| hold.names.len()).sum();
        let all = too_many > self.limits.held_max;
        let (free, held) = core::mem::take(&mut self.holds)
            .into_iter()
            .partition(|hold| all || hold.reads.is_empty());
        self.holds = held;
        let free: Vec<Hold> = free;
        let mut names = Names::new();
        for hold in free {
            for (at, bits) in hold.names {
                self.freed.insert(at.clone(), hold.since_ms);
                names.push((at, bits));
            }
        }
        names
    }

    /// Names that wait without anything to wait for, or too many of them.
    pub fn overdue(&mut self) -> Names {
        if self.holds.is_empty() {
            if self.files.is_empty() || self.freed.len() > self.limits.held_max {
                self.freed.clear();
            }
            return Names::new();
        }
        let here: BTreeSet<Handle> = self.files.keys().cloned().collect();
        self.let_go(|file| !here.contains(file))
    }

    /// Since when something is not in the log that waits here.
    pub fn oldest_ms(&self) -> Option<u64> {
        let files = self.files.values().map(|file| file.since_ms);
        let holds = self.holds.iter().map(|hold| hold.since_ms);
        files.chain(holds).min()
    }
}

#[cfg(test)]
mod tests;
