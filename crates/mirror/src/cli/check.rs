//! `check` of several trees: one line for all, then one a tree; the worst decides. All are asked at the same time, because a
//! monitor waits a few seconds and no more.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use serde_json::json;

use crate::cli::args::Say;
use crate::cli::control::{Seen, check_line, exit_of, judge, look};
use crate::cli::exit::{CliError, Exit};
use crate::cli::show::Health;
use crate::cli::text::{counted, seconds};
use crate::cli::ui;
use crate::engine::service::word::Service;

/// Threads that ask.
const ASKING_MAX: usize = 256;
/// All of it. Monitors give up after 10 s.
const ALL_WITHIN: Duration = Duration::from_secs(8);
/// Trees named in the first line.
const NAMED_MAX: usize = 5;

/// How these mirrors are, in their order. One that hangs holds up no other.
pub fn look_all(state_dirs: Vec<PathBuf>) -> Vec<Result<Seen, CliError>> {
    let count = state_dirs.len();
    let mut found: Vec<Option<Result<Seen, CliError>>> = (0..count).map(|_| None).collect();
    let (sender, receiver) = unbounded();
    let (dirs, next) = (Arc::new(state_dirs), Arc::new(AtomicUsize::new(0)));
    let ask = move || {
        while let Some((at, dir)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            dirs.get(at).map(|dir| (at, dir))
        } {
            if sender.send((at, look(dir))).is_err() {
                return;
            }
        }
    };
    let threads = (0..count.min(ASKING_MAX)).filter(|_| {
        let thread = std::thread::Builder::new().name("ask".into());
        thread.spawn(ask.clone()).is_ok()
    });
    if threads.count() == 0 {
        ask();
    }
    // The last thread that ends closes the channel.
    drop(ask);
    let until = Instant::now() + ALL_WITHIN;
    while let Ok((at, seen)) = receiver.recv_deadline(until) {
        if let Some(one) = found.get_mut(at) {
            *one = Some(seen);
        }
    }
    let silent = || {
        let why = format!("it did not answer within {} s", ALL_WITHIN.as_secs());
        Ok(Seen::Silent { why, last: None })
    };
    found
        .into_iter()
        .map(|one| one.unwrap_or_else(silent))
        .collect()
}

/// A tree, by its name, how it is, and why in one line.
pub struct Judged {
    pub name: String,
    pub health: Health,
    pub line: String,
}

impl Judged {
    pub fn new(name: String, seen: Result<Seen, CliError>, max_lag: Duration) -> Judged {
        let note = match &seen {
            Ok(Seen::Stopped {
                note: Some(note), ..
            }) => Some(note.clone()),
            _ => None,
        };
        let (health, line) = judge(seen, max_lag);
        Judged {
            name,
            health,
            line: note.unwrap_or(line),
        }
    }
}

/// What is worse than a tree by itself, or beside it.
#[derive(Default)]
pub struct More {
    /// Before all else.
    pub critical: Option<String>,
    /// Of the configuration, each with its file and line.
    pub mistakes: Vec<String>,
    pub warnings: Vec<String>,
}

impl More {
    pub fn is_empty(&self) -> bool {
        self.critical.is_none() && self.mistakes.is_empty() && self.warnings.is_empty()
    }

    /// The loop that keeps the processes hangs.
    pub fn of(service: Option<&Service>) -> More {
        let hangs = service.and_then(|service| Some((service.pid, service.stands_still()?)));
        More {
            critical: hangs.map(|(pid, age)| {
                format!(
                    "the service (process {pid}) stands still for {}: it starts no process and reads no configuration",
                    seconds(age)
                )
            }),
            ..More::default()
        }
    }
}

/// Says how all of them are.
pub fn say(judged: &[Judged], more: &More, say: Say) -> Exit {
    let count = |health: Health| judged.iter().filter(|one| one.health == health).count();
    let worst = judged.iter().map(|one| one.health).max();
    let mut health = worst.unwrap_or(Health::Ok);
    let (critical, warning) = (
        count(Health::Critical) + count(Health::Unknown),
        count(Health::Warning),
    );
    let mut line = format!(
        "{}: {} ok, {warning} warning, {critical} critical",
        counted(judged.len() as u64, "tree", "trees"),
        count(Health::Ok)
    );
    let worst = judged
        .iter()
        .filter(|one| one.health == health && health > Health::Ok);
    let names: Vec<&str> = worst.map(|one| one.name.as_str()).take(NAMED_MAX).collect();
    if !names.is_empty() {
        line.push_str(&format!(" ({})", names.join(", ")));
    }
    if judged.is_empty() && more.mistakes.is_empty() {
        line = "no tree is followed".into();
    }
    if let Some(first) = more.mistakes.first() {
        health = health.max(Health::Warning);
        let mistakes = counted(more.mistakes.len() as u64, "mistake", "mistakes");
        line.push_str(&format!("; {mistakes} in the configuration: {first}"));
    }
    for warning in &more.warnings {
        health = health.max(Health::Warning);
        line.push_str(&format!("; {warning}"));
    }
    if let Some(critical) = &more.critical {
        health = health.max(Health::Critical);
        line = format!("{critical}; {line}");
    }
    // A bar would begin figures.
    let line = line.replace('|', "/");
    if say.json {
        let trees: Vec<_> = judged
            .iter()
            .map(|one| json!({"name": one.name, "health": one.health.word().to_ascii_lowercase(), "line": one.line}))
            .collect();
        let word = health.word().to_ascii_lowercase();
        let all = json!({"health": word, "code": health as u8, "line": line, "trees": trees, "mistakes": more.mistakes});
        ui::say(&all.to_string());
        return exit_of(health);
    }
    ui::say(&check_line(health, &line, say));
    for Judged { name, health, line } in judged {
        let line = line.split(" | ").next().unwrap_or_default();
        ui::say(&format!("{} {name}: {line}", health.word()));
    }
    for mistake in more.mistakes.iter().skip(1) {
        ui::say(&format!("WARNING configuration: {mistake}"));
    }
    exit_of(health)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::service::elsewhere::Elsewhere;
    use crate::engine::status::Stamp;

    #[test]
    fn a_service_that_stands_still_is_told() {
        let mut service = Service {
            pid: 7,
            config: "/etc/x.toml".into(),
            now: Stamp::now(),
            trees: Vec::new(),
            problems: Vec::new(),
        };
        assert!(More::of(Some(&service)).is_empty());
        service.now.ms -= 61_000;
        let more = More::of(Some(&service));
        assert!(
            more.critical.as_deref().is_some_and(
                |line| line.starts_with("the service (process 7) stands still for 1 min")
            ),
            "{:?}",
            more.critical
        );
    }

    #[test]
    fn what_hangs_is_not_waited_for() {
        let (sender, receiver) = crossbeam_channel::bounded::<()>(1);
        let mut reading = Elsewhere::new();
        reading.begin(move || receiver.recv().is_ok()).unwrap();
        assert_eq!(reading.wait(Duration::from_millis(20)), None);
        assert!(reading.is_busy() && reading.take().is_none());
        sender.send(()).unwrap();
        assert_eq!(reading.wait(Duration::from_secs(60)), Some(true));
        assert!(!reading.is_busy());
    }
}
