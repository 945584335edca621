//! What a full `verify` found different in the copy. It counts as failed, over restarts too, until it is repaired or a
//! later `verify` finds it as it should be: a copy that is known not to be equal is never called equal.

use serde::{Deserialize, Serialize};

use super::status::{FAILED_MAX, Failed, PathText, Stamp};
use super::verify::word;
use crate::apply::{ApplyError, Difference, store_error};
use crate::index::Index;

/// Kept with the rows.
const KEY: &str = "differing";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Differing {
    /// The first ones.
    pub listed: Vec<Failed>,
    pub total: u64,
}

impl Differing {
    /// What cannot be read any more is as good as nothing: the next `verify` tells.
    pub fn load(rows: &Index) -> Differing {
        let bytes = rows.meta_get(KEY).ok().flatten();
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    pub fn add(&mut self, difference: &Difference) {
        self.total += 1;
        if self.listed.len() < FAILED_MAX {
            self.listed.push(Failed {
                path: PathText::new(super::applying::root_or(&difference.path)),
                reason: format!("verify found: {}", word(difference.what)),
                since: Stamp::now(),
                tries: 1,
            });
        }
    }

    /// A finding that comes again in each pass. True: it is new.
    pub fn add_once(&mut self, difference: &Difference) -> bool {
        let path = PathText::new(super::applying::root_or(&difference.path));
        let known = self.listed.iter().any(|failed| failed.path == path);
        let new = !known && self.listed.len() < FAILED_MAX;
        if new {
            self.add(difference);
        }
        new
    }

    pub fn repaired(&mut self, difference: &Difference) {
        let path = PathText::new(super::applying::root_or(&difference.path));
        self.total = self.total.saturating_sub(1);
        self.listed.retain(|failed| failed.path != path);
        if self.total == 0 {
            self.listed.clear();
        }
    }

    pub fn save(&self, rows: &mut Index) -> Result<(), ApplyError> {
        let saved = match serde_json::to_vec(self) {
            Ok(bytes) if self.total > 0 => rows.meta_put(KEY, &bytes),
            _ => rows.meta_remove(KEY),
        };
        saved.map_err(store_error)
    }
}
