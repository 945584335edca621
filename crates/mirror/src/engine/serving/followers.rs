//! All who follow a tree: those that are there, and those the log is kept for.

use std::path::Path;
use std::sync::{Arc, Mutex};

use mirror_core::Position;

use super::keep::Keep;
use super::lag::Ends;
use super::seats::Seats;
use crate::engine::status::{Replica, Stamp};
use crate::link::serve::FollowerState;
use crate::sync::lock;

#[derive(Default)]
pub struct Followers {
    pub seats: Arc<Seats>,
    pub keep: Mutex<Keep>,
    /// When the log's end was where.
    ends: Mutex<Ends>,
}

impl Followers {
    /// The log is durable up to there now.
    pub fn saw(&self, end: Position) {
        lock(&self.ends).saw(Stamp::now(), end);
    }

    /// What was learned of those that are there is kept, too.
    pub fn save(&self, state_dir: &Path) {
        let mut keep = lock(&self.keep);
        self.seats.tell(&mut keep);
        keep.save(state_dir, false);
    }

    /// The answer: what a person should know.
    pub fn introduce(
        &self,
        state: &Mutex<FollowerState>,
        name: String,
        replica: &[u8],
    ) -> Option<String> {
        self.seats
            .introduce(&mut lock(&self.keep), state, name, replica)
    }

    /// Keeps no log, and waits no more, for those that are away and called so, or are of the key called so. Their names.
    pub fn forget(&self, replica: &str, state_dir: &Path) -> Vec<String> {
        let there = self.seats.replicas();
        let mut keep = lock(&self.keep);
        let names = keep.forget(replica, &there);
        keep.save(state_dir, true);
        names
    }

    /// By name: those that are there, and those that were and are waited for. `end`: of the log, now.
    pub fn replicas(&self, end: Option<Position>) -> Vec<Replica> {
        if let Some(end) = end {
            self.saw(end);
        }
        let mut replicas = self.seats.replicas();
        // One that connects has no name yet.
        replicas.retain(|replica| !replica.name.is_empty());
        let away = lock(&self.keep).away(&replicas);
        replicas.extend(away);
        replicas.sort_by(|a, b| a.name.cmp(&b.name));
        let (now, ends) = (Stamp::now(), lock(&self.ends));
        for replica in &mut replicas {
            replica.lag = ends.lag(replica.positions.applied, now);
        }
        replicas
    }
}
