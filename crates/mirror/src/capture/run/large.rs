//! Large files: the loop's side of their readers. What is to be read when, and which names wait for it, is decided in
//! `mirror_core::reads`.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mirror_core::hints::{Found, Hint};
use mirror_core::reads::{Names, Turn};
use mirror_core::reconcile::{
    Body, Dir, Dirty, Failure, Later, Look, Outcome, ReadEnd, Reading, Source,
};
use mirror_core::settle::Phase;
use mirror_core::{At, Handle, Kind, Rows};

use super::super::kernel::{Used, failure, look, way};
use super::super::prepared::unchanged;
use super::super::readers::Job;
use super::{Capture, Fatal};
use crate::engine::session::now_ns;
use crate::sys::{Errno, open, stat};

impl Capture {
    // ---- what a look found ----

    /// Of a batch those that need not wait.
    pub(super) fn without_held(&mut self, dirty: Names) -> Names {
        if self.source.reads.is_idle() {
            return dirty;
        }
        let now = self.now_ms();
        let reads = &mut self.source.reads;
        let (mut free, mut switches) = (Names::new(), Names::new());
        for (at, bits) in dirty {
            if reads.is_held(&at) {
                reads.join(&[(at, bits)]);
            } else if bits.switch && reads.has_files() {
                switches.push((at, bits));
            } else {
                free.push((at, bits));
            }
        }
        if !switches.is_empty() {
            reads.hold_for_all(switches, now);
        }
        free
    }

    /// Whether something in a batch turned out to have to wait; it is taken out of it.
    pub(super) fn hold_for_large(&mut self, outcome: &Outcome, dirty: &mut Names) -> bool {
        if outcome.later.is_empty() {
            return false;
        }
        let now = self.now_ms();
        let mut waits: BTreeSet<At> = BTreeSet::new();
        for later in &outcome.later {
            waits.extend(later.entangled.iter().cloned());
        }
        let before = dirty.len();
        let switches: Names = dirty.extract_if(.., |(_, bits)| bits.switch).collect();
        let tangled: Names = dirty.extract_if(.., |(at, _)| waits.contains(at)).collect();
        if dirty.len() == before {
            // Nothing that was asked for: looking again would find the same.
            return false;
        }
        self.want_large(outcome.later.clone());
        let reads = &mut self.source.reads;
        for later in outcome.later.iter().filter(|l| !l.entangled.is_empty()) {
            let bits = |at: &At| tangled.iter().find(|(held, _)| held == at);
            let names = later.entangled.iter().map(|at| match bits(at) {
                Some((at, bits)) => (at.clone(), bits.clone()),
                None => (at.clone(), Dirty::default()),
            });
            reads.hold_for(names.collect(), &later.handle, now);
        }
        if !switches.is_empty() {
            reads.hold_for_all(switches, now);
        }
        true
    }

    /// An outcome that is not appended: what was sunk for it is not needed. What is in hand stays there.
    pub(super) fn give_up(&mut self, outcome: Outcome) {
        drop(outcome);
        self.source.used.clear();
        for token in self.source.sunk.drain(..) {
            self.sink.forget(token);
        }
    }

    pub(super) fn want_large(&mut self, later: Vec<Later>) {
        let now = self.now_ms();
        for Later {
            at,
            bits,
            handle,
            bytes,
            ..
        } in later
        {
            self.source.reads.want(handle, bytes, at, bits, now);
        }
    }

    /// The group is in the log; `bound` is what it took of what was sunk.
    pub(super) fn used_large(&mut self, bound: &BTreeSet<u64>) -> Result<(), Fatal> {
        for token in std::mem::take(&mut self.source.sunk) {
            if !bound.contains(&token) {
                self.sink.forget(token);
            }
        }
        let now = self.now_ms();
        let used = std::mem::take(&mut self.source.used);
        let handles: BTreeSet<Handle> = used.iter().map(|used| used.seen.handle.clone()).collect();
        for handle in handles {
            let reads = &self.source.reads;
            let Some(reading) = reads.in_hand(&handle) else {
                continue;
            };
            let (mut stale, mut moved) = (false, false);
            let proven = matches!(&reading.kind, Some(Kind::File(content)) if content.proven);
            let then = &reading.seen;
            let mut names = Names::new();
            for Used { seen, dir, name } in used.iter().filter(|used| used.seen.handle == handle) {
                moved |= !unchanged(then, seen);
                stale |= (then.mtime, then.bytes) != (seen.mtime, seen.bytes);
                stale |= reads.is_written(&handle) && !(proven && then.ctime == seen.ctime);
                let rows = self.rows();
                if let Some(parent) = rows.by_handle(dir)? {
                    let name = name.clone();
                    let wrote = rows.by_handle(&handle)?.into_iter().collect();
                    let bits = Dirty {
                        contents: true,
                        wrote,
                        ..Dirty::default()
                    };
                    names.push((At { parent, name }, bits));
                }
            }
            if let Body::Token(token) = reading.body
                && !bound.contains(&token)
            {
                self.sink.forget(token);
            }
            if stale {
                self.source.reads.used(&handle, names, now);
                continue;
            }
            self.source.reads.used(&handle, Names::new(), now);
            if moved {
                // Its attributes; and its bytes, where nobody tells that they were not written.
                let all = !self.source.tells_objects();
                for (at, bits) in names {
                    let bits = if all { bits } else { Dirty::default() };
                    self.settle.hint(at, bits, Phase::Final, now);
                }
            }
        }
        Ok(())
    }

    /// In hand, all its names looked at, and nobody wanted it: it is gone, or was read otherwise. True: there are names to
    /// look at that waited.
    pub(super) fn drop_unused(&mut self) -> bool {
        if self.source.reads.is_idle() {
            return false;
        }
        let before = self.settle.len();
        let settle = &self.settle;
        let unused = self.source.reads.unused(|at| settle.waits(at));
        let now = self.now_ms();
        for handle in unused {
            let (reading, free) = self.source.reads.drop_file(&handle);
            self.forget_body(reading);
            self.let_go(free, now);
        }
        let free = self.source.reads.overdue();
        self.let_go(free, now);
        self.settle.len() > before
    }

    fn forget_body(&self, reading: Option<Reading>) {
        if let Some(Reading {
            body: Body::Token(token),
            ..
        }) = reading
        {
            self.sink.forget(token);
        }
    }

    /// Names whose look is due now.
    fn due(&mut self, names: Names, now: u64) {
        for (at, bits) in names {
            self.settle.hint(at, bits, Phase::Final, now);
        }
    }

    /// Names that waited, to be looked at after what they waited for.
    fn let_go(&mut self, names: Names, now: u64) {
        for (at, bits) in names {
            let bits = Dirty {
                switch: false,
                ..bits
            };
            self.settle.hint(at, bits, Phase::Final, now + 1);
        }
    }

    // ---- hints ----

    /// A file that is to be read was written, or a name was told that waits: then all that was told waits with it.
    pub(super) fn heard_of_large(&mut self, hint: &Hint, found: &mut Found, now: u64) {
        let reads = &mut self.source.reads;
        if hint.contents {
            match &hint.object {
                Some(handle) => reads.heard(handle, now),
                None => {
                    for (at, ..) in &found.dirty {
                        reads.heard_at(at, now);
                    }
                }
            }
        }
        let names: Names = found
            .dirty
            .iter()
            .map(|(at, bits, _)| (at.clone(), bits.clone()))
            .collect();
        if reads.join(&names) {
            found.dirty.clear();
        }
    }

    // ---- the readers ----

    /// Begins to read what is due, as far as there are readers. False: some of it must be looked at again.
    pub(super) fn read_large(&mut self) -> Result<bool, Fatal> {
        let mut all = true;
        while let Some(room) = self.readers.room()
            && let now = self.now_ms()
            && let Some(turn) = self.source.reads.turn(now, room)
        {
            if self.shared.is_stopping() {
                break;
            }
            match self.open_large(&turn)? {
                Ok(job) => {
                    self.source.reads.begin(&turn.handle, now);
                    if let Err(failure) = self.readers.begin(job) {
                        self.failed_large(&turn.handle, failure);
                    }
                }
                // Where it was it is not any more: its names tell.
                Err(None) => {
                    all = false;
                    let names = self.source.reads.names_of(&turn.handle);
                    let (_, free) = self.source.reads.drop_file(&turn.handle);
                    self.due(names, now);
                    self.let_go(free, now);
                }
                Err(Some(failure)) => self.failed_large(&turn.handle, failure),
            }
        }
        Ok(all)
    }

    /// Opens it under one of the names it was seen under, if it is still there.
    fn open_large(&mut self, turn: &Turn) -> Result<Result<Job, Option<Failure>>, Fatal> {
        let index = self.index.clone();
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        let mut failed = None;
        for at in &turn.names {
            let Some((parent, trail)) = way(&*rows, at.parent, self.tree.by_handle)? else {
                continue;
            };
            let dir = Dir {
                handle: &parent,
                trail,
            };
            let Ok(fd) = self.source.walker.open(&dir) else {
                continue;
            };
            match look(self.source.walker.tree(), &parent, &fd, &at.name) {
                Look::Seen(seen) if seen.handle == turn.handle => {}
                _ => continue,
            }
            let opened = open::file(&fd, at.name.as_bytes());
            match opened.and_then(|fd| Ok((stat::fstat(&fd)?, fd))) {
                // Between the look and here another one may have taken its name.
                Ok((found, fd)) if self.is_it(&fd, &found, turn, &parent) => {
                    return Ok(Ok(Job {
                        fd,
                        name: at.name.clone(),
                        found,
                        handle: turn.handle.clone(),
                    }));
                }
                Ok(_) | Err(Errno::NOENT | Errno::STALE | Errno::LOOP | Errno::NOTDIR) => {}
                Err(e) => failed = Some(failure("open", e)),
            }
        }
        Ok(Err(failed))
    }

    fn is_it(
        &self,
        fd: &std::os::fd::OwnedFd,
        found: &stat::Stat,
        turn: &Turn,
        parent: &Handle,
    ) -> bool {
        let part = self.tree.part_of(parent);
        found.is_file()
            && part.is_some_and(|part| part.identify(fd, b"", found).as_ref() == Ok(&turn.handle))
    }

    fn failed_large(&mut self, handle: &Handle, failure: Failure) {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        let names = self.source.reads.names_of(handle);
        let free = self.source.reads.failed(handle, now_ms);
        for (at, bits) in names {
            self.fail(at, bits, failure.clone(), now);
        }
        self.let_go(free, now_ms);
    }

    /// What the readers are done with is looked at.
    pub(super) fn take_read(&mut self) {
        while let Some(ended) = self.readers.take() {
            let now = self.now_ms();
            let handle = ended.handle;
            match ended.end {
                ReadEnd::Done(reading) => match self.source.reads.end(&handle, reading, now) {
                    Ok((names, free)) => {
                        self.due(names, now);
                        self.let_go(free, now);
                    }
                    Err(reading) => self.forget_body(Some(reading)),
                },
                ReadEnd::Failed(failure) => self.failed_large(&handle, failure),
                ReadEnd::Moved | ReadEnd::Later => {
                    let names = self.source.reads.names_of(&handle);
                    let free = self.source.reads.failed(&handle, now);
                    self.due(names, now);
                    self.let_go(free, now);
                }
            }
        }
    }

    /// The session ends: what is being read is found again by the next one.
    pub(super) fn close_readers(&mut self) {
        self.readers.close();
        while let Some(ended) = self.readers.take() {
            if let ReadEnd::Done(reading) = ended.end {
                self.forget_body(Some(reading));
            }
        }
        let in_hand: Vec<Reading> = self.source.reads.all_in_hand().cloned().collect();
        for reading in in_hand {
            self.forget_body(Some(reading));
        }
    }

    // ---- what is told ----

    /// What each barrier asks for is read; else it is read at once.
    pub(super) fn is_covered(&mut self) -> bool {
        let mut covered = true;
        for asked in &self.barriers {
            let since = asked.since.saturating_duration_since(self.began);
            let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            let looked_ms = asked.looked_ms.unwrap_or(u64::MAX);
            if !self.source.reads.covers(since_ms, looked_ms) {
                self.source.reads.urge(since_ms);
                covered = false;
            }
        }
        covered
    }

    /// Since when the log is behind because of large files.
    pub(super) fn tell_behind(&mut self) {
        let behind_ms = self.source.reads.oldest_ms();
        if behind_ms == self.behind_ms {
            return;
        }
        self.behind_ms = behind_ms;
        let since_ns = behind_ms.map(|since| {
            let ago = Duration::from_millis(self.now_ms().saturating_sub(since));
            now_ns().saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(0))
        });
        self.shared.lock().behind_since_ns = since_ns;
    }
}
