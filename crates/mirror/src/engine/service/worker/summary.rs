//! How all trees are, in one line a minute. It is read from what their processes last wrote down, so that one that hangs
//! holds up nobody.

use std::collections::BTreeMap;

use super::super::children::Children;
use super::trees::Tree;
use crate::cli::text::{count, counted, seconds};
use crate::engine::control::{HEARTBEAT_MAX, read_status};
use crate::engine::status::{Stamp, State, Status};

#[derive(Default)]
pub struct Summary {
    /// Records of each tree when it was summed up last.
    records: BTreeMap<String, u64>,
}

fn word(status: Option<&Status>) -> &'static str {
    if status.is_some_and(|s| s.now.seconds_until(Stamp::now()) > HEARTBEAT_MAX.as_secs_f64()) {
        return "silent";
    }
    match status.map(|status| &status.state) {
        Some(State::Following) => "following",
        Some(State::Seeding { .. }) => "seeding",
        Some(State::Starting) => "starting",
        Some(State::Paused { .. }) => "paused",
        Some(State::Hold(_)) => "on hold",
        Some(State::Disconnected { .. }) => "disconnected",
        Some(State::Failed { .. }) => "failed",
        Some(State::Stopped) | None => "not running",
    }
}

impl Summary {
    pub fn line<'a>(
        &mut self,
        trees: impl Iterator<Item = &'a Tree>,
        children: &Children,
    ) -> String {
        let mut states: BTreeMap<&'static str, u64> = BTreeMap::new();
        let (mut records, mut new, mut there, mut away, mut failed) =
            (0u64, 0u64, 0u64, 0u64, 0u64);
        let (mut lag, mut all) = (0f64, 0u64);
        let mut now_records = BTreeMap::new();
        for tree in trees {
            all += 1;
            let runs = children
                .view(&tree.name)
                .is_some_and(|view| view.pid.is_some());
            let status = read_status(&tree.state_dir).ok().flatten();
            *states
                .entry(word(status.as_ref().filter(|_| runs)))
                .or_default() += 1;
            let Some(status) = status else { continue };
            let n = status.counters.records;
            let before = self.records.get(&tree.name).copied().unwrap_or(n);
            records += n;
            new += n.saturating_sub(before);
            now_records.insert(tree.name.clone(), n);
            failed += status.failed_total;
            lag = lag.max(status.lag.seconds);
            let connected = status.replicas.iter().filter(|r| r.connected).count() as u64;
            there += connected;
            away += status.replicas.len() as u64 - connected;
        }
        self.records = now_records;
        let states: Vec<String> = states
            .iter()
            .map(|(word, n)| format!("{} {word}", count(*n)))
            .collect();
        let mut line = format!(
            "{}: {}; {} ({} new); {} connected, {away} away; lag {}",
            counted(all, "tree", "trees"),
            states.join(", "),
            counted(records, "record", "records"),
            count(new),
            counted(there, "replica", "replicas"),
            seconds(lag)
        );
        if failed > 0 {
            line.push_str(&format!("; {} failed", counted(failed, "path", "paths")));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::status::Role;

    #[test]
    fn a_process_that_hangs_is_not_following() {
        let mut status = Status::new(Role::Primary, "/srv/www".into(), None);
        status.state = State::Following;
        assert_eq!(word(Some(&status)), "following");
        status.now.ms -= HEARTBEAT_MAX.as_millis() as i64 + 1000;
        assert_eq!(word(Some(&status)), "silent");
        assert_eq!(word(None), "not running");
    }
}
