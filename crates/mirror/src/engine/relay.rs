//! Carries events from the threads to whoever shows them, on the thread that owns the ui.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::event::{Event, Ui};

/// A ui for threads: what it is told comes out of the channel. It can't be asked.
pub struct Relay {
    to: Sender<Event>,
}

impl Relay {
    pub fn new() -> (Arc<Relay>, Receiver<Event>) {
        let (to, from) = unbounded();
        (Arc::new(Relay { to }), from)
    }
}

impl Ui for Relay {
    fn event(&self, event: Event) {
        // A verbose burst must not fill memory when nobody shows it fast enough: lines for people may be dropped.
        if matches!(event, Event::Changed { .. }) && self.to.len() > 100_000 {
            return;
        }
        let _ = self.to.send(event);
    }
    fn ask(&self, _: &str) -> bool {
        false
    }
}
