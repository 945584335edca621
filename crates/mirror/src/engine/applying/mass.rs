//! The mass-change guard of a mirror without history: what it counts, and the hold in words.

use std::time::Duration;

use mirror_core::guard::{Alarm, Flow};
use mirror_core::{At, Name, ObjectId, Record, Rows};

use super::{Running, chain};
use crate::engine::event::Event;
use crate::engine::going::{Tally, count_below};
use crate::engine::status::{Hold, HoldReason, PathText, Stamp};
use crate::index::Index;
use crate::planted;

impl Running {
    /// The guard of a mirror without history: very much going at once holds here until somebody lets it.
    pub(super) fn may_apply(&mut self, batch: &[Record]) -> Result<bool, String> {
        let last = batch.last().map(|record| record.position);
        if !self.holds_mass_change
            || self.looking
            || last <= self.passes
            || planted::is("mass_change_unseen")
        {
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
        if all.gone == 0 {
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
