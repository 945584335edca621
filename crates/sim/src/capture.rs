//! The capture loop in miniature: hints to dirty names to looks to groups to rows. No disk, no kernel.

use std::collections::BTreeSet;

use mirror::capture::prepared::{Prepared, PreparedDir};
use mirror_core::doubt::Doubt;
use mirror_core::hints::{Hint, Hints, Unconfirmed};
use mirror_core::model::apply_group;
use mirror_core::reconcile::{Body, Dirty, Limits, Outcome, Proposed, reconcile};
use mirror_core::settle::{Phase, Settle, SettleLimits};
use mirror_core::{At, Change, Local, MemRows, Name, ObjectId, Rows};

use crate::ahead::Ahead;
use crate::eye::{Eye, whereabouts};
use crate::journal::{Journal, Stop};
use crate::script::Setup;
use crate::tree::Event;
use crate::world::World;

/// Defects planted on purpose: the checks must find each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weakness {
    /// Object handles are ignored.
    pub no_object: bool,
    /// Events of directories that are not known are dropped.
    pub no_outside: bool,
    /// One hint in so many is lost.
    pub lose: Option<u64>,
    /// An overflow is not followed by a scan.
    pub no_overflow: bool,
    /// Bytes written are looked for only under the name they were written by.
    pub no_wrote: bool,
    /// Hints read in the middle of a look are not resolved again.
    pub no_again: bool,
    /// A look at the attributes of a file takes its new ctime for granted.
    pub trust_ctime: bool,
    /// While a scan makes up for lost hints, what is told is looked at as if nothing was lost.
    pub trust_hints: bool,
    pub seen: u64,
}

impl Weakness {
    pub fn filter(&mut self, hint: &Hint, rows: &MemRows) -> Option<Hint> {
        self.seen += 1;
        if self.lose.is_some_and(|n| self.seen.is_multiple_of(n)) {
            return None;
        }
        let mut hint = hint.clone();
        if self.no_object {
            hint.object = None;
        }
        if self.no_outside
            && [&hint.at, &hint.to]
                .into_iter()
                .flatten()
                .all(|told| rows.by_handle(&told.dir) == Ok(None))
            && hint.at.is_some()
        {
            return None;
        }
        Some(hint)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureStats {
    pub hints: u64,
    pub overflows: u64,
    pub looks: u64,
    pub groups: u64,
    pub records: u64,
    pub again: u64,
    pub foreign: u64,
}

pub struct Capture {
    pub rows: MemRows,
    hints: Hints,
    settle: Settle,
    /// Directories to list.
    scan: BTreeSet<ObjectId>,
    root_dirty: bool,
    early: Vec<Event>,
    ahead: Ahead,
    unconfirmed: Unconfirmed,
    doubt: Doubt,
    setup: Setup,
    pub weak: Weakness,
    pub journal: Journal,
    pub stats: CaptureStats,
}

impl Capture {
    /// A capture that begins at the beginning, into memory.
    pub fn new(world: &World, setup: Setup, weak: Weakness) -> Result<Capture, Stop> {
        let mut capture = Capture::bare(setup, weak, Journal::memory(), MemRows::default());
        let open = Proposed {
            change: Change::Open {
                tree: [1; 16],
                claim: [2; 16],
                parent: None,
            },
            who: None,
            local: None,
            body: Body::None,
        };
        capture.append(vec![open], 0)?;
        capture.know_root(world)?;
        Ok(capture)
    }

    /// A capture over a log and the rows as of its end.
    pub fn resume(
        world: &World,
        setup: Setup,
        weak: Weakness,
        journal: Journal,
        rows: MemRows,
    ) -> Result<Capture, Stop> {
        let mut capture = Capture::bare(setup, weak, journal, rows);
        capture.know_root(world)?;
        Ok(capture)
    }

    fn bare(setup: Setup, weak: Weakness, journal: Journal, rows: MemRows) -> Capture {
        Capture {
            rows,
            hints: Hints::with_names_max(setup.names_max),
            settle: Settle::new(SettleLimits {
                quiet_ms: 20,
                wait_ms_max: 100,
            }),
            scan: BTreeSet::new(),
            root_dirty: true,
            early: Vec::new(),
            ahead: Ahead::default(),
            unconfirmed: Unconfirmed::default(),
            doubt: Doubt::default(),
            setup,
            weak,
            journal,
            stats: CaptureStats::default(),
        }
    }

    /// The root's handle is this host's own knowledge and in no record.
    fn know_root(&mut self, world: &World) -> Result<(), Stop> {
        let Ok(root) = self.rows.object(ObjectId::ROOT);
        let mut root = root.ok_or_else(|| "the log has no root".to_owned())?;
        root.local.handle = Some(world.tree.root_handle());
        let Ok(()) = self.rows.put(ObjectId::ROOT, root);
        self.scan_all();
        Ok(())
    }

    /// Everything is in doubt: every directory is listed again.
    pub fn scan_all(&mut self) {
        self.scan = self
            .rows
            .objects()
            .filter(|(_, object)| object.state.kind.is_dir())
            .map(|(id, _)| *id)
            .collect();
        // What is known of nothing yet is read, and all that is told since then is heard.
        if self.rows.objects().nth(1).is_some() {
            self.doubt.lost(None);
            self.doubt.scan_began();
        }
        self.root_dirty = true;
        self.hints.clear();
    }

    pub fn is_idle(&self) -> bool {
        self.settle.is_empty()
            && self.scan.is_empty()
            && !self.root_dirty
            && self.early.is_empty()
            && self.ahead.is_empty()
    }

    /// What is left to do, for a message.
    pub fn waiting(&self) -> String {
        format!(
            "dirty {:?}, to list {:?}, root {}, early {:?}",
            self.settle, self.scan, self.root_dirty, self.early
        )
    }

    /// Reads hints, looks at what is due, and applies what was found.
    pub fn pump(&mut self, world: &mut World, events: usize, names: usize) -> Result<(), Stop> {
        let mut read = std::mem::take(&mut self.early);
        if self.weak.no_again {
            read.retain(|event| *event == Event::Overflow);
        }
        read.extend(world.tree.queue.read(events));
        let lost = read.contains(&Event::Overflow);
        for event in read {
            self.take_event(world, event);
        }
        if world.tree.queue.is_empty() {
            let settle = &self.settle;
            self.doubt
                .drained(world.now_ms(), |until| settle.waits_since(until));
            let confirmed = self.unconfirmed.drained(lost, world.now_ms());
            self.confirm(confirmed);
        }
        self.take_ahead(world, names)?;
        self.list(world, names);
        self.ahead.work(world, &self.rows);
        if self.scan.is_empty() && self.ahead.is_empty() {
            // Names it made dirty are waited for, as those that were told.
            self.doubt.scan_ended(false, world.now_ms());
        }
        let due = self.settle.take(world.now_ms(), names);
        if due.is_empty() && !self.root_dirty {
            return Ok(());
        }
        let dirs: &[ObjectId] = if std::mem::take(&mut self.root_dirty) {
            &[ObjectId::ROOT]
        } else {
            &[]
        };
        self.reconcile(world, due, dirs, Vec::new())
    }

    fn reconcile(
        &mut self,
        world: &mut World,
        mut due: Vec<(At, Dirty)>,
        dirs: &[ObjectId],
        ahead: Vec<PreparedDir>,
    ) -> Result<(), Stop> {
        if self.weak.no_wrote {
            due.iter_mut().for_each(|(_, dirty)| {
                dirty.contents |= !dirty.wrote.is_empty();
                dirty.wrote.clear();
            });
        }
        let in_doubt = self.doubt.is_some() && !self.weak.trust_hints;
        let mut eye = Eye {
            world,
            rows: &self.rows,
            hints: &mut self.hints,
            early: &mut self.early,
            by_trail: self.setup.by_trail,
            weak: &mut self.weak,
        };
        let limits = Limits {
            group_records_max: self.setup.group_records_max,
            in_doubt,
        };
        let Ok(outcome) = if ahead.is_empty() {
            reconcile(&self.rows, &mut eye, due, dirs, self.journal.next(), limits)
        } else {
            let mut source = Prepared::new(&mut eye, ahead);
            reconcile(
                &self.rows,
                &mut source,
                due,
                dirs,
                self.journal.next(),
                limits,
            )
        };
        self.hints.looked();
        self.settled(outcome, world.now_ms())
    }

    /// What a scan worker read becomes a group, as in `mirror::capture::run`.
    fn take_ahead(&mut self, world: &mut World, max: usize) -> Result<(), Stop> {
        let batch = self.ahead.batch(&self.rows, max);
        if batch.is_empty() {
            return Ok(());
        }
        let contents = Dirty {
            contents: true,
            ..Dirty::default()
        };
        let doubt = Dirty {
            doubt: true,
            ..Dirty::default()
        };
        let mut dirty = Vec::new();
        for (known, dir) in &batch {
            if let Some(id) = known {
                for name in dir.names() {
                    let at = At {
                        parent: *id,
                        name: name.clone(),
                    };
                    dirty.push((at, contents.clone()));
                }
            }
            if let Some(own) = &dir.own
                && let Ok(Some(parent)) = self.rows.by_handle(&own.parent)
            {
                let at = At {
                    parent,
                    name: own.name.clone(),
                };
                let why = if known.is_some() { &doubt } else { &contents };
                dirty.push((at, why.clone()));
            }
        }
        let ahead = batch.into_iter().map(|(_, dir)| dir).collect();
        self.reconcile(world, dirty, &[], ahead)
    }

    fn settled(&mut self, outcome: Outcome, now_ms: u64) -> Result<(), Stop> {
        self.stats.looks += outcome.looks;
        self.stats.again += outcome.again.len() as u64;
        if !outcome.group.is_empty() {
            self.append(outcome.group, now_ms * 1_000_000)?;
        }
        for (id, local, proven) in outcome.touched {
            let Ok(Some(mut object)) = self.rows.object(id) else {
                continue;
            };
            object.local = local;
            if let (Some(proven), mirror_core::Kind::File(content)) =
                (proven, &mut object.state.kind)
            {
                content.proven = proven;
            }
            let Ok(()) = self.rows.put(id, object);
        }
        if self.weak.trust_ctime {
            self.confirm(outcome.unconfirmed);
        } else {
            self.unconfirmed.add(outcome.unconfirmed, now_ms);
        }
        self.scan.extend(outcome.unlisted);
        for (at, dirty) in outcome.again {
            self.settle.hint(at, dirty, Phase::Final, now_ms);
        }
        for (at, dirty, _) in outcome.failed {
            self.settle.hint(at, dirty, Phase::Open, now_ms);
        }
        Ok(())
    }

    fn confirm(&mut self, files: impl IntoIterator<Item = (ObjectId, Local)>) {
        for (id, local) in files {
            if let Ok(Some(mut object)) = self.rows.object(id)
                && object.local.handle == local.handle
            {
                object.local = local;
                let Ok(()) = self.rows.put(id, object);
            }
        }
    }

    fn take_event(&mut self, world: &mut World, event: Event) {
        self.stats.hints += 1;
        let hint = match event {
            Event::Overflow => {
                self.stats.overflows += 1;
                if !self.weak.no_overflow {
                    self.scan_all();
                }
                return;
            }
            Event::Hint { hint, .. } => hint,
        };
        let Some(hint) = self.weak.filter(&hint, &self.rows) else {
            return;
        };
        let Ok(mut found) = self.hints.resolve(&self.rows, &hint);
        let now_ms = world.now_ms();
        let Ok(()) = self.unconfirmed.heard(&self.rows, &found);
        self.settle.accept(&mut found, now_ms);
        self.root_dirty |= found.root;
        for dir in found.unknown {
            let Ok(at) = self
                .hints
                .classify(&self.rows, &dir, &mut |dir| whereabouts(world, dir));
            if let Some(at) = at {
                self.settle.hint(at, Dirty::default(), Phase::Final, now_ms);
            }
        }
    }

    /// Lists directories that are in doubt: all names there are and all names we know are dirty.
    fn list(&mut self, world: &mut World, max: usize) {
        for _ in 0..max {
            let Some(dir) = self.scan.pop_first() else {
                return;
            };
            let Ok(Some(object)) = self.rows.object(dir) else {
                continue;
            };
            let Some(handle) = &object.local.handle else {
                continue;
            };
            let trail = self.setup.by_trail.then(|| self.trail(dir));
            world.race();
            let now_ms = world.now_ms();
            let Some(names) = world.tree.list(handle, trail.as_deref()) else {
                if let Some(at) = object.names.first() {
                    let doubt = Dirty {
                        doubt: true,
                        ..Dirty::default()
                    };
                    self.settle.hint(at.clone(), doubt, Phase::Final, now_ms);
                    if self.setup.by_trail {
                        self.scan.insert(dir);
                        return;
                    }
                }
                continue;
            };
            let Ok(known) = self.rows.children(dir, None, usize::MAX);
            let all: BTreeSet<Name> = names
                .into_iter()
                .chain(known.into_iter().map(|(name, _)| name))
                .collect();
            let mut unread = Vec::new();
            for name in all {
                let known = At {
                    parent: dir,
                    name: name.clone(),
                };
                if self.setup.ahead
                    && self.rows.name(&known) == Ok(None)
                    && self
                        .ahead
                        .new_name(world, &self.rows, handle, &name, &mut unread)
                {
                    continue;
                }
                let at = At { parent: dir, name };
                let doubt = Dirty {
                    doubt: true,
                    ..Dirty::default()
                };
                self.settle.hint(at, doubt, Phase::Final, now_ms);
            }
            self.ahead.read_known(world, handle, unread);
            self.root_dirty |= dir == ObjectId::ROOT;
        }
    }

    fn trail(&self, dir: ObjectId) -> Vec<Name> {
        let mut trail = Vec::new();
        let mut at = dir;
        while at != ObjectId::ROOT {
            let Ok(Some(object)) = self.rows.object(at) else {
                break;
            };
            let Some(name) = object.names.first() else {
                break;
            };
            trail.push(name.name.clone());
            at = name.parent;
        }
        trail.reverse();
        trail
    }

    fn append(&mut self, group: Vec<Proposed>, time_ns: u64) -> Result<(), Stop> {
        let records = self.journal.append(group, time_ns)?;
        apply_group(&mut self.rows, &records)
            .map_err(|error| format!("the model refuses a group: {error:?}\n{records:#?}"))?;
        self.stats.groups += 1;
        self.stats.records += records.len() as u64;
        Ok(())
    }
}
