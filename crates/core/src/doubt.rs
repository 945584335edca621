//! Hints were lost, and not everything was looked at since.
//!
//! A look that nobody told of a write takes the bytes of a file as known and in the end gives its row the new ctime
//! ([`crate::hints::Unconfirmed`]). That is right only while every write is told. After a loss (a start, an overflow) a
//! file may have been written with size and mtime kept; is it renamed before the scan comes by, then the hint of the
//! rename is all that leads to it. So until the scan has ended every look reads the bytes of what has a moved ctime
//! ([`crate::reconcile::Limits::in_doubt`]), and a directory that moves is scanned once more, with all below it: it may
//! have left a place the scan was still to visit for one it had visited.

use crate::hints::Unconfirmed;
use crate::types::ObjectId;

#[derive(Debug, Default)]
pub struct Doubt {
    state: State,
    /// Objects from here on were new after the loss: all of them was read since.
    new_from: Option<ObjectId>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    No,
    /// Hints were lost, and no scan began since.
    Lost,
    Scanning,
    /// All was looked at by then; what moved before may still have to be heard.
    Scanned(u64),
    /// All of that was heard by then; it may still have to be looked at.
    Heard(u64),
}

impl Doubt {
    /// Hints were lost. Where a scan can't miss what lies below a new directory that moves, `new_from` is the next
    /// object there will be.
    pub fn lost(&mut self, new_from: Option<ObjectId>) {
        self.state = State::Lost;
        self.new_from = new_from;
    }

    pub fn is_some(&self) -> bool {
        self.state != State::No
    }

    /// A scan of everything begins.
    pub fn scan_began(&mut self) {
        if self.state == State::Lost {
            self.state = State::Scanning;
        }
    }

    /// A known directory was found in another place, or may have been there for a while: must it be scanned?
    pub fn moved(&mut self, dir: ObjectId) -> bool {
        let new = self.new_from.is_some_and(|new_from| dir >= new_from);
        if new || matches!(self.state, State::No | State::Lost) {
            return false;
        }
        self.state = State::Scanning;
        true
    }

    /// A directory came from where nobody heard what happened in it: must it be scanned, with what moves meanwhile? What it
    /// holds may be known from before it went there.
    pub fn entered(&mut self) -> bool {
        match self.state {
            // All is going to be scanned.
            State::Lost => false,
            State::No => {
                self.state = State::Scanning;
                self.new_from = None;
                true
            }
            _ => {
                self.state = State::Scanning;
                true
            }
        }
    }

    /// A scan ended, of everything or of directories that moved; `more` of those are still to be scanned.
    pub fn scan_ended(&mut self, more: bool, now_ms: u64) {
        if self.state == State::Scanning && !more {
            self.state = State::Scanned(now_ms);
        }
    }

    /// The queue was emptied at `now_ms`. `waits` says whether a name hinted until then is still to be looked at.
    pub fn drained(&mut self, now_ms: u64, waits: impl FnOnce(u64) -> bool) {
        match self.state {
            State::Scanned(at) if at + Unconfirmed::LATE_MS <= now_ms => {
                self.state = State::Heard(now_ms);
            }
            State::Heard(at) if !waits(at) => self.state = State::No,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: u64 = Unconfirmed::LATE_MS;

    #[test]
    fn ends_once_all_was_scanned_and_heard_and_looked_at() {
        let mut doubt = Doubt::default();
        assert!(!doubt.is_some());
        doubt.lost(None);
        // A scan that began before the loss proves nothing.
        doubt.scan_ended(false, 10);
        doubt.drained(10 + 2 * LATE, |_| false);
        doubt.scan_began();
        doubt.scan_ended(false, 5000);
        doubt.drained(5000 + LATE - 1, |_| false);
        doubt.drained(5000 + LATE, |_| false);
        doubt.drained(5001 + LATE, |until| until == 5000 + LATE);
        assert!(doubt.is_some());
        doubt.drained(5002 + LATE, |_| false);
        assert!(!doubt.is_some());
    }

    #[test]
    fn a_directory_that_moves_is_scanned_before_it_ends() {
        let mut doubt = Doubt::default();
        assert!(!doubt.moved(ObjectId(1)));
        doubt.lost(Some(ObjectId(100)));
        // All is scanned after the loss anyway.
        assert!(!doubt.moved(ObjectId(1)));
        doubt.scan_began();
        assert!(doubt.moved(ObjectId(1)));
        assert!(!doubt.moved(ObjectId(100)));
        doubt.scan_ended(true, 10);
        doubt.drained(10 + LATE, |_| false);
        doubt.scan_ended(false, 20 + LATE);
        assert!(doubt.moved(ObjectId(2)));
        doubt.drained(30 + 2 * LATE, |_| false);
        doubt.drained(31 + 2 * LATE, |_| false);
        assert!(doubt.is_some());
    }

    #[test]
    fn what_comes_from_elsewhere_is_scanned_with_what_moves_meanwhile() {
        let mut doubt = Doubt::default();
        // New after a loss of long ago says nothing of now.
        doubt.lost(Some(ObjectId(5)));
        doubt.scan_began();
        doubt.scan_ended(false, 0);
        doubt.drained(LATE, |_| false);
        doubt.drained(LATE + 1, |_| false);
        assert!(!doubt.is_some() && !doubt.moved(ObjectId(7)));
        assert!(doubt.entered() && doubt.moved(ObjectId(7)));
        doubt.scan_ended(false, 2 * LATE);
        doubt.drained(3 * LATE, |_| false);
        assert!(doubt.entered());
        doubt.drained(9 * LATE, |_| false);
        assert!(doubt.is_some());
        doubt.lost(None);
        assert!(!doubt.entered());
    }

    #[test]
    fn a_loss_in_the_middle_begins_it_anew() {
        let mut doubt = Doubt::default();
        doubt.lost(None);
        doubt.scan_began();
        doubt.lost(None);
        doubt.scan_ended(false, 0);
        doubt.drained(LATE, |_| false);
        doubt.drained(LATE + 1, |_| false);
        assert!(doubt.is_some());
    }
}
