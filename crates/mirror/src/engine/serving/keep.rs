//! What the log is kept for: followers, there or away, and how far each of them is.
//!
//! Kept in `followers.json`, so that a restarted worker still knows who will come back. If that is lost, the worst is
//! that somebody who comes back gets the tree whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use mirror_core::Position;
use serde::{Deserialize, Serialize};

use crate::disk::{RealDisk, read_file, replace_file};
use crate::engine::status::{Lag, Positions, Replica, Stamp, parse_position};
use crate::link::serve::FollowerState;
use crate::log::PruneLimits;

const FILE: &str = "followers.json";
const FILE_BYTES_MAX: usize = 1 << 20;
const KNOWN_MAX: usize = 64;
/// A follower that was away for longer is not waited for.
const AWAY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of the log, unless `--log-max` says otherwise; contents may take four times as much.
pub const LOG_BYTES_MAX: u64 = 256 << 20;
/// For followers that need it the log may grow to so many times that; then it goes all the same.
const WAITING_TIMES: u64 = 4;
/// Of the id of a copy, where its name alone does not tell it from another.
const ID_CHARS: usize = 8;
const SAVE_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Follower {
    /// Records after this are still wanted.
    after: String,
    seen: Stamp,
    /// As it last said.
    #[serde(default)]
    positions: Positions,
    #[serde(default)]
    failed: u64,
    /// As in [`FollowerState`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    replica: String,
    /// It makes one copy at a time: the log is kept for the next one, but no barrier waits for it.
    #[serde(default)]
    once: bool,
}

impl Follower {
    fn is_waited_for(&self, now: Stamp) -> bool {
        self.seen.seconds_until(now) < AWAY_MAX.as_secs_f64()
    }
}

#[derive(Default)]
pub struct Keep {
    known: BTreeMap<String, Follower>,
    saved: Option<Instant>,
    changed: bool,
}

/// The limits that come from what a person allows.
pub fn limits(log_max: u64) -> PruneLimits {
    PruneLimits {
        log_bytes_max: Some(log_max),
        content_bytes_max: Some(log_max.saturating_mul(4)),
        oldest_time_ns: None,
    }
}

impl Keep {
    /// Whether what was known could be read.
    pub fn load(state_dir: &Path) -> (Keep, Result<(), String>) {
        let read = RealDisk::open(state_dir)
            .and_then(|disk| read_file(&disk, FILE, FILE_BYTES_MAX))
            .map(|bytes| serde_json::from_slice(&bytes));
        let (known, told) = match read {
            Ok(Ok(known)) => (known, Ok(())),
            Ok(Err(e)) => (BTreeMap::new(), Err(format!("{FILE} is damaged ({e})"))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => (BTreeMap::new(), Ok(())),
            Err(e) => (BTreeMap::new(), Err(format!("cannot read {FILE}: {e}"))),
        };
        let keep = Keep {
            known,
            ..Keep::default()
        };
        (keep, told)
    }

    /// One that was there until now.
    pub fn went(&mut self, state: &FollowerState, after: Position) {
        self.seen(state, after);
        if let Some(known) = self.known.get_mut(&state.name) {
            known.seen = Stamp::now();
            self.changed = true;
        }
    }

    /// A follower that is there now, and wants what comes after this.
    pub fn seen(&mut self, state: &FollowerState, after: Position) {
        let name = state.name.as_str();
        let follower = Follower {
            after: after.to_string(),
            seen: Stamp::now(),
            positions: state.positions,
            failed: state.failed,
            replica: state.replica.clone(),
            once: state.once,
        };
        if let Some(known) = self.known.get_mut(name)
            && known.after == follower.after
            && known.positions == follower.positions
            && known.failed == follower.failed
            && known.replica == follower.replica
            && known.once == follower.once
            && known.seen.seconds_until(follower.seen) < 60.0
        {
            return;
        }
        self.known.insert(name.to_owned(), follower);
        self.changed = true;
        while self.known.len() > KNOWN_MAX {
            // Of the key with the most names: nobody makes others be forgotten by many names of its own.
            let mut names: BTreeMap<&str, usize> = BTreeMap::new();
            for name in self.known.keys() {
                *names.entry(key_of(name)).or_default() += 1;
            }
            let rank = |name: &str| names.get(key_of(name)).copied().unwrap_or(0);
            let oldest = (self.known.iter())
                .min_by_key(|(name, known)| (std::cmp::Reverse(rank(name)), known.seen));
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else {
                break;
            };
            self.known.remove(&oldest);
        }
    }

    /// Waits no more for the one of this name, or those of the key of this name, that are not there. Their names.
    pub fn forget(&mut self, which: &str, there: &[Replica]) -> Vec<String> {
        let is_meant = |name: &str| {
            (name == which || key_of(name) == which)
                && there.iter().all(|replica| replica.name != name)
        };
        let names = self.known.keys().filter(|name| is_meant(name));
        let names: Vec<String> = names.cloned().collect();
        self.known.retain(|name, _| !names.contains(name));
        self.changed |= !names.is_empty();
        names
    }

    /// What a copy that calls itself so is called here, and what a person should know of it. `there`: another copy is
    /// connected by that name.
    pub fn name(
        &self,
        name: String,
        replica: &str,
        there: impl Fn(&str) -> bool,
    ) -> (String, Option<String>) {
        let short = replica.get(..ID_CHARS).unwrap_or(replica);
        if short.is_empty() {
            return (name, None);
        }
        let other = format!("{name} #{short}");
        if self.known.get(&other).is_some_and(|k| k.replica == replica) {
            return (other, None);
        }
        if there(&name) {
            let told = format!("two copies call themselves {name}: the second one is {other} here");
            return (other, Some(told));
        }
        let known = self.known.get(&name).map_or("", |k| &k.replica);
        let told = (!known.is_empty() && known != replica).then(|| {
            format!("{name} is another copy than before: it takes the place of that one, which is not waited for any more")
        });
        (name, told)
    }

    /// Those that are waited for and are not there, as they were last.
    pub fn away(&self, there: &[Replica]) -> Vec<Replica> {
        let now = Stamp::now();
        self.known
            .iter()
            .filter(|(_, known)| known.is_waited_for(now) && !known.once)
            .filter(|(name, _)| there.iter().all(|replica| replica.name != **name))
            .map(|(name, known)| Replica {
                name: name.clone(),
                connected: false,
                since: known.seen,
                positions: known.positions,
                lag: Lag::default(),
                failed: known.failed,
                held: None,
                link: None,
                held_to: None,
            })
            .collect()
    }

    pub fn save(&mut self, state_dir: &Path, now: bool) {
        let due = self.saved.is_none_or(|saved| saved.elapsed() >= SAVE_EVERY);
        if !self.changed || !(due || now) {
            return;
        }
        self.saved = Some(Instant::now());
        self.changed = false;
        // Not being able to is no harm: it is tried again.
        let _ = serde_json::to_vec(&self.known)
            .map_err(std::io::Error::from)
            .and_then(|bytes| replace_file(&RealDisk::open(state_dir)?, FILE, &bytes));
    }

    /// Records up to here may go when the log is over its limits. `log_bytes`: what it takes now.
    pub fn needed(&self, end: Position, log_bytes: u64, log_max: u64) -> Position {
        if log_bytes > log_max.saturating_mul(WAITING_TIMES) {
            return end;
        }
        let now = Stamp::now();
        self.known
            .values()
            .filter(|known| known.is_waited_for(now))
            .filter_map(|known| parse_position(&known.after))
            .fold(end, Position::min)
    }
}

/// What the door puts before a name: whose key it is.
fn key_of(name: &str) -> &str {
    name.split_once(": ").map_or(name, |(key, _)| key)
}

/// Bytes of the files in a directory.
pub fn bytes_in(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Position {
        Position { epoch: 1, sequence }
    }

    fn named(name: &str) -> FollowerState {
        FollowerState {
            name: name.into(),
            ..FollowerState::default()
        }
    }

    #[test]
    fn the_slowest_decides_until_it_costs_too_much() {
        let mut keep = Keep::default();
        assert_eq!(keep.needed(at(100), 0, 10), at(100));
        keep.seen(&named("a"), at(50));
        keep.seen(&named("b"), at(70));
        assert_eq!(keep.needed(at(100), 40, 10), at(50));
        assert_eq!(keep.needed(at(100), 41, 10), at(100));
        keep.seen(&named("a"), at(90));
        assert_eq!(keep.needed(at(100), 0, 10), at(70));
        if let Some(b) = keep.known.get_mut("b") {
            b.seen.ms -= 8 * 24 * 3600 * 1000;
        }
        assert_eq!(keep.needed(at(100), 0, 10), at(90));
    }

    #[test]
    fn two_copies_of_one_name_keep_their_places() {
        let mut keep = Keep::default();
        let (one, two) = ("1111111111", "2222222222");
        let nobody = |_: &str| false;
        let name = |keep: &Keep, replica: &str, there: &dyn Fn(&str) -> bool| {
            let (name, told) = keep.name("a".into(), replica, there);
            (name, told.is_some())
        };
        assert_eq!(name(&keep, one, &nobody), ("a".into(), false));
        let seen = |keep: &mut Keep, name: &str, replica: &str, after| {
            let replica = replica.into();
            let state = FollowerState {
                replica,
                ..named(name)
            };
            keep.seen(&state, at(after));
        };
        seen(&mut keep, "a", one, 5);
        let first_is_there = |name: &str| name == "a";
        assert_eq!(
            name(&keep, two, &first_is_there),
            ("a #22222222".into(), true)
        );
        seen(&mut keep, "a #22222222", two, 9);
        // Both come back, in whatever order, to what is kept for each.
        for there in [&nobody as &dyn Fn(&str) -> bool, &first_is_there] {
            assert_eq!(name(&keep, two, there), ("a #22222222".into(), false));
        }
        assert_eq!(name(&keep, one, &nobody), ("a".into(), false));
        assert_eq!(keep.needed(at(100), 0, 10), at(5));
        // One that was made anew takes its own place, and that is said; an older one does not tell who it is.
        assert_eq!(name(&keep, "3333333333", &nobody), ("a".into(), true));
        assert_eq!(name(&keep, "", &first_is_there), ("a".into(), false));
    }

    #[test]
    fn for_who_copies_now_and_then_the_log_is_kept_but_nobody_waits() {
        let mut keep = Keep::default();
        let state = FollowerState {
            once: true,
            ..named("cron")
        };
        keep.seen(&state, at(5));
        assert_eq!(keep.needed(at(9), 0, 10), at(5));
        assert!(keep.away(&[]).is_empty());
        keep.seen(&named("cron"), at(5));
        assert_eq!(keep.away(&[]).len(), 1);
    }

    #[test]
    fn who_does_not_come_back_is_forgotten_and_nobody_pushes_others_out() {
        let mut keep = Keep::default();
        keep.seen(&named("backup: a"), at(5));
        for n in 0..100 {
            keep.seen(&named(&format!("evil: {n}")), at(7));
        }
        let names = |keep: &Keep| keep.known.len();
        assert_eq!(names(&keep), KNOWN_MAX);
        assert_eq!(keep.needed(at(9), 0, 10), at(5));
        assert_eq!(keep.forget("evil: 99", &[]), ["evil: 99"]);
        assert_eq!(keep.forget("nobody", &[]), [""; 0]);
        let connected = Replica {
            connected: true,
            ..keep.away(&[]).remove(1)
        };
        assert_eq!(keep.forget("evil", &[connected]).len(), KNOWN_MAX - 3);
        assert_eq!(names(&keep), 2);
    }

    #[test]
    fn who_is_away_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut keep = Keep::load(dir.path()).0;
        for n in 0..100 {
            keep.seen(&named(&n.to_string()), at(n + 1));
        }
        assert_eq!(keep.known.len(), KNOWN_MAX);
        keep.save(dir.path(), true);
        let (again, told) = Keep::load(dir.path());
        assert_eq!((again.known.len(), told), (KNOWN_MAX, Ok(())));
        let there = [Replica {
            connected: true,
            ..again.away(&[]).remove(0)
        }];
        assert_eq!(again.away(&there).len(), KNOWN_MAX - 1);
        assert!(again.away(&there).iter().all(|replica| !replica.connected));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Keep::load(dir.path()).1.is_err());
    }
}
