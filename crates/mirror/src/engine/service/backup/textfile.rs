//! Metrics for node_exporter's textfile collector: all trees in one file, replaced as a whole.

use std::fmt::Write;

use super::watch::{STATES, Seen};
use crate::engine::status::Stamp;

struct Metrics<'a> {
    out: String,
    all: &'a [Seen],
}

impl Metrics<'_> {
    fn head(&mut self, name: &str, help: &str) {
        let _ = writeln!(
            self.out,
            "# HELP fs_mirror_{name} {help}\n# TYPE fs_mirror_{name} gauge"
        );
    }

    /// One value a tree; `None`: nothing is known.
    fn each(&mut self, name: &str, help: &str, value: impl Fn(&Seen) -> Option<f64>) {
        self.head(name, help);
        for seen in self.all {
            if let Some(value) = value(seen) {
                let _ = writeln!(
                    self.out,
                    "fs_mirror_{name}{{tree=\"{}\"}} {value}",
                    seen.name
                );
            }
        }
    }
}

/// The whole file. A tree's name needs no quoting: it is letters, digits, dots, dashes and underscores.
pub fn metrics(all: &[Seen], now: Stamp) -> String {
    let mut to = Metrics {
        out: String::new(),
        all,
    };
    let s = |stamp: Stamp| stamp.ms as f64 / 1000.0;
    let known = |n: u64| Some(n as f64);
    to.head(
        "service_heartbeat_seconds",
        "When the service wrote this, in seconds since 1970.",
    );
    let _ = writeln!(to.out, "fs_mirror_service_heartbeat_seconds {}", s(now));
    to.each(
        "up",
        "1 while the tree's process runs and says how it is.",
        |seen| Some(f64::from(u8::from(seen.pid.is_some() && !seen.is_stale()))),
    );
    to.each(
        "heartbeat_seconds",
        "When the tree's process last said how it is, in seconds since 1970.",
        |seen| seen.heartbeat.map(s),
    );
    to.each(
        "starts",
        "How often the tree's process was started since the service was.",
        |seen| known(seen.starts),
    );
    let of = |seen: &Seen| seen.status.clone();
    to.each(
        "lag_seconds",
        "Age of the oldest change that is not in the copy.",
        |seen| Some(of(seen)?.lag.seconds),
    );
    to.each(
        "lag_records",
        "Changes that are known and not in the copy.",
        |seen| known(of(seen)?.lag.records),
    );
    to.each(
        "received_sequence",
        "Sequence of the last record received.",
        |seen| known(of(seen)?.positions.received?.sequence),
    );
    to.each(
        "durable_sequence",
        "Sequence of the last record that is durable here.",
        |seen| known(of(seen)?.positions.durable?.sequence),
    );
    to.each(
        "applied_sequence",
        "Sequence of the last record applied.",
        |seen| known(of(seen)?.positions.applied?.sequence),
    );
    to.each(
        "failed_paths",
        "Paths that are not as at the source.",
        |seen| known(of(seen)?.failed_total),
    );
    to.each("entries", "Names in the tree.", |seen| {
        known(of(seen)?.entries)
    });
    to.each("bytes", "Bytes of the tree's files.", |seen| {
        known(of(seen)?.bytes)
    });
    to.each("free_bytes", "Bytes free on DST's file system.", |seen| {
        known(of(seen)?.space?.bytes_free)
    });
    to.each(
        "equal_seconds",
        "When the copy was last known to be equal, in seconds since 1970.",
        |seen| of(seen)?.equal_at.map(s),
    );
    to.each("connected", "1 while changes come in.", |seen| {
        let state = seen.state();
        Some(f64::from(u8::from(matches!(
            state,
            "following" | "seeding" | "hold" | "limit"
        ))))
    });
    to.head(
        "state",
        "1 for the state that the tree is in, 0 for the others.",
    );
    for seen in all {
        for state in STATES {
            let is = u8::from(seen.state() == state);
            let _ = writeln!(
                to.out,
                "fs_mirror_state{{tree=\"{}\",state=\"{state}\"}} {is}",
                seen.name
            );
        }
    }
    to.out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::status::{Role, State, Status};
    use mirror_core::Position;

    #[test]
    fn every_line_is_a_comment_or_a_sample() {
        let mut status = Status::new(Role::Replica, "/s".into(), None);
        status.state = State::Following;
        status.lag.seconds = 0.25;
        status.positions.applied = Some(Position {
            epoch: 2,
            sequence: 77,
        });
        let well = Seen {
            heartbeat: Some(Stamp { ms: 1500 }),
            looked: Stamp { ms: 2000 },
            status: Some(status),
            ..Seen::new("web.1", "/s", "/b")
        };
        let down = Seen {
            pid: None,
            ..Seen::new("down", "/s", "/b")
        };
        let text = metrics(&[well, down], Stamp { ms: 2000 });
        for line in text.lines() {
            let sample = line.rsplit_once(' ').is_some_and(|(name, value)| {
                name.starts_with("fs_mirror_") && value.parse::<f64>().is_ok()
            });
            assert!(sample || line.starts_with("# "), "{line}");
        }
        for want in [
            "fs_mirror_up{tree=\"web.1\"} 1",
            "fs_mirror_up{tree=\"down\"} 0",
            "fs_mirror_heartbeat_seconds{tree=\"web.1\"} 1.5",
            "fs_mirror_lag_seconds{tree=\"web.1\"} 0.25",
            "fs_mirror_applied_sequence{tree=\"web.1\"} 77",
            "fs_mirror_state{tree=\"down\",state=\"down\"} 1",
            "fs_mirror_connected{tree=\"down\"} 0",
        ] {
            assert!(text.lines().any(|line| line == want), "{want}\n{text}");
        }
        assert!(!text.contains("lag_seconds{tree=\"down\"}"));
    }
}
