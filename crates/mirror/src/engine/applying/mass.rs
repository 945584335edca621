//! Very much at once: a mirror without history holds, one with it follows and raises an alarm. What is counted, and in which words.

use std::time::Duration;

use mirror_core::guard::{Alarm, Flow};
use mirror_core::{At, Change, Name, ObjectId, Record, Rows};

use super::{Running, chain};
use crate::engine::event::Event;
use crate::engine::going::{Tally, count_below};
use crate::engine::status::{Alarmed, Hold, HoldReason, PathText, Stamp};
use crate::index::Index;
use crate::planted;

impl Running {
    /// Without history very much going at once holds here until somebody lets it.
    pub(super) fn may_apply(&mut self, batch: &[Record]) -> Result<bool, String> {
        let last = batch.last().map(|record| record.position);
        if !self.holds_mass_change && self.applier.history().is_none() {
            return Ok(true);
        }
        if self.looking || last <= self.passes || planted::is("mass_change_unseen") {
            return Ok(true);
        }
        let now = self.began.elapsed().as_millis() as u64;
        let store = self.applier.store();
        let flows = Tally::of(store, false, batch).map_err(|e| chain(&e))?.flows;
        // A batch that comes again after an error is not counted again.
        self.passes = last;
        let mut all = Flow::default();
        flows.values().for_each(|flow| all.add(*flow));
        self.window.add(&flows, now);
        if !self.holds_mass_change {
            self.destroyed.add(destroyed(store, batch), now);
        }
        let rewritten = self.destroyed.judge(store.stats().files);
        if all.gone == 0 && rewritten.is_none() {
            return Ok(true);
        }
        // The rows are still as they were before.
        let alarm = self.window.judge(&mut |dir, most| match dir {
            None => (store.stats().entries + all.new).saturating_sub(all.gone),
            Some(name) => {
                let flow = flows.get(&Some(name.clone())).copied().unwrap_or_default();
                let came = flow.new + flow.moved_in;
                let went = flow.gone + flow.moved_out;
                let before = in_first_level(store, name, most.saturating_add(went));
                (before + came).saturating_sub(went)
            }
        });
        if !self.holds_mass_change {
            let what = match (alarm, rewritten) {
                (Some(alarm), _) => {
                    let how = "were removed within minutes";
                    hold_of(&alarm, HoldReason::MassChange, how).what
                }
                (None, Some(loss)) => format!(
                    "{} of {} files were written over, replaced or removed within minutes",
                    loss.gone, loss.before
                ),
                (None, None) => return Ok(true),
            };
            self.alarm(what)?;
            return Ok(true);
        }
        let Some(alarm) = alarm else { return Ok(true) };
        let hold = hold_of(
            &alarm,
            HoldReason::MassChange,
            "were removed within minutes",
        );
        self.applied.update(|status| {
            status.hold = Some(hold.clone());
            status.alarm_gone = all.gone;
        });
        self.ui.event(Event::Held(hold));
        while self.applied.lock().hold.is_some() {
            if self.stopped() {
                return Ok(false);
            }
            self.orders();
            let end = self.reader.tail().durable().map(|end| end.position);
            let state = self.applied.lock();
            let mut state = self.applied.wait(state, Duration::from_millis(50));
            state.end = end;
        }
        Ok(true)
    }
}

impl Running {
    /// Followed into history, told, and until a person has looked nothing is rotated or pruned.
    fn alarm(&mut self, what: String) -> Result<(), String> {
        let moment = self.applier.moment().0;
        let Some(history) = self.applier.history_mut() else {
            return Ok(());
        };
        if history.events.alarm().is_some() {
            return Ok(());
        }
        let here_ns = crate::history::now_ns();
        let event = crate::history::events::Event::Alarm {
            moment,
            here_ns,
            what: what.clone(),
        };
        // Following goes on in any case.
        if let Err(e) = history.events.add(event) {
            self.ui.event(Event::Notice(format!(
                "ALARM: {what}. It can't be noted ({e}): rotation and pruning are not held"
            )));
            self.destroyed.clear();
            self.window.clear();
            let alarm = Alarmed {
                since: Stamp::now(),
                before: Some(mirror_core::history::Moment(moment).position()),
                what,
            };
            self.applied.update(|status| status.alarm = Some(alarm));
            return Ok(());
        }
        self.ui.event(Event::Notice(format!(
            "ALARM: {what}. It is followed into history, from position {} on; nothing is rotated or pruned until `fs_mirror \
             release --yes`",
            mirror_core::history::Moment(moment).position()
        )));
        self.show_alarm();
        Ok(())
    }

    pub(super) fn show_alarm(&mut self) {
        let alarm = self.applier.history().and_then(|history| {
            let (here_ns, moment, what) = history.events.alarm()?;
            Some(Alarmed {
                since: Stamp {
                    ms: (here_ns / 1_000_000) as i64,
                },
                before: Some(moment.position()),
                what: what.to_owned(),
            })
        });
        self.applied.update(|status| status.alarm = alarm);
    }

    /// A person has looked.
    pub(super) fn clear_alarm(&mut self) {
        self.destroyed.clear();
        if let Some(history) = self.applier.history_mut()
            && history.events.alarm().is_some()
        {
            let here_ns = crate::history::now_ns();
            let cleared = history
                .events
                .add(crate::history::events::Event::Cleared { here_ns });
            if let Err(e) = cleared {
                self.ui.event(Event::Notice(format!(
                    "cannot note that an alarm is over: {e}"
                )));
            }
        }
        self.show_alarm();
    }
}

/// Files that lose what they held.
fn destroyed(store: &Index, batch: &[Record]) -> Vec<ObjectId> {
    let is_file = |id: ObjectId| matches!(store.object(id), Ok(Some(row)) if row.state.kind.content().is_some());
    let loses = |record: &Record| match &record.change {
        Change::Update {
            object,
            content: Some(_),
            ..
        }
        | Change::Unlink { object, .. } => Some(*object).filter(|id| is_file(*id)),
        _ => None,
    };
    batch.iter().filter_map(loses).collect()
}

/// Entries in a first-level directory, itself included, counted up to `max`.
fn in_first_level(store: &Index, name: &Name, max: u64) -> u64 {
    let at = At {
        parent: ObjectId::ROOT,
        name: name.clone(),
    };
    match store.name(&at) {
        Ok(Some(id)) => 1 + count_below(store, id, max).unwrap_or(0),
        _ => 0,
    }
}

/// A hold in words.
pub fn hold_of(alarm: &Alarm, reason: HoldReason, how: &str) -> Hold {
    let since = Stamp::now();
    match alarm {
        Alarm::Tree(loss) => Hold {
            reason,
            since,
            what: format!("{} of {} entries {how}", loss.gone, loss.before),
            gone: Some(loss.gone),
            of: Some(loss.before),
            below: None,
        },
        Alarm::Dir { name, loss } => Hold {
            reason,
            since,
            what: format!("{} of {} entries in {name} {how}", loss.gone, loss.before),
            gone: Some(loss.gone),
            of: Some(loss.before),
            below: Some(PathText::new(name.as_bytes())),
        },
        Alarm::Empty { before } => Hold {
            reason: if reason == HoldReason::Unexplained {
                HoldReason::RootEmpty
            } else {
                reason
            },
            since,
            what: format!("the source is empty, and had {before} entries"),
            gone: Some(*before),
            of: Some(*before),
            below: None,
        },
    }
}
