//! How much room history may take, and what goes when it takes more.

use super::rules::{Fate, Rules, Version};

/// What history may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Of the file system, in percent.
    pub percent_max: u8,
    /// So many bytes instead.
    pub bytes_max: Option<u64>,
    /// So much of the file system stays free: following stops for it where history is locked.
    pub free_bytes_min: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            percent_max: 20,
            bytes_max: None,
            free_bytes_min: 0,
        }
    }
}

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub history_bytes: u64,
    /// Of the file system.
    pub total_bytes: u64,
    pub free_bytes: u64,
}

impl Budget {
    /// How many bytes of history must go.
    pub fn missing(&self, space: &Space) -> u64 {
        let share = u128::from(space.total_bytes) * u128::from(self.percent_max.min(100)) / 100;
        let share = u64::try_from(share).unwrap_or(u64::MAX);
        let share = self.bytes_max.unwrap_or(share);
        let over = space.history_bytes.saturating_sub(share);
        over.max(self.free_bytes_min.saturating_sub(space.free_bytes))
    }
}

/// Makes room. The versions are offered in the order of their `until`: the oldest history goes first.
///
/// To be used when a pass with the rules alone has freed too little: otherwise old versions that the rules keep would
/// go although younger ones that nothing keeps are still to come.
#[derive(Debug)]
pub struct Relief<'a> {
    rules: &'a Rules,
    missing: u64,
    withheld: bool,
}

/// How making room ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Enough,
    /// Nothing else can go, and nothing is locked: following goes on as long as the file system takes it.
    Short {
        missing: u64,
    },
    /// Nothing else may go: following pauses, with an alarm.
    Pause {
        missing: u64,
    },
}

impl<'a> Relief<'a> {
    pub fn new(rules: &'a Rules, missing: u64) -> Relief<'a> {
        Relief {
            rules,
            missing,
            withheld: false,
        }
    }

    /// `bytes`: what dropping it frees.
    pub fn fate(&mut self, version: &Version, bytes: u64) -> Fate {
        if self.missing == 0 {
            return self.rules.fate(version);
        }
        let fate = self.rules.fate_for_space(version);
        if fate.drops() {
            self.missing = self.missing.saturating_sub(bytes);
        } else {
            self.withheld = self.withheld || self.rules.withheld(version);
        }
        fate
    }

    /// How many bytes must still go.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    pub fn outcome(&self) -> Outcome {
        let missing = self.missing;
        match missing {
            0 => Outcome::Enough,
            _ if self.withheld || self.rules.locked() => Outcome::Pause { missing },
            _ => Outcome::Short { missing },
        }
    }
}
