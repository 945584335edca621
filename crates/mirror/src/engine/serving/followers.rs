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
        self.seats.tell(&mut keep);
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
        let mut keep = lock(&self.keep);
        self.seats.tell(&mut keep);
        let away = keep.away(&replicas);
        drop(keep);
        replicas.extend(away);
        replicas.sort_by(|a, b| a.name.cmp(&b.name));
        let (now, ends) = (Stamp::now(), lock(&self.ends));
        for replica in &mut replicas {
            replica.lag = ends.lag(replica.positions.applied, now);
        }
        replicas
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_came_and_went_at_once_is_known_at_once() {
        let followers = Followers::default();
        let sequence = 7;
        let state = FollowerState {
            name: "a".into(),
            keep_after: Some(Position { epoch: 1, sequence }),
            ..FollowerState::default()
        };
        followers.seats.goes(state.clone());
        let away = followers.replicas(None);
        assert_eq!((away.len(), away[0].connected), (1, false));
        // Who is forgotten is not remembered by what was not told yet.
        followers.seats.goes(state);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(followers.forget("a", dir.path()), ["a"]);
        assert!(followers.replicas(None).is_empty());
    }
}
