//! `[[tree.NAME.hook]] on = "applied"`: a command that is told what changed in the copy, once it has been quiet.
//!
//! What changed is gathered while a command runs or waits; beyond a limit it is only known that anything may have. Apply
//! never waits for a hook. What was gathered and not told when the process ends is lost.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mirror_core::Position;

use super::command;
use super::config::{Hook, Tree};
use crate::engine::applying::Told;
use crate::filter::Filter;
use crate::sync::lock;

/// Paths that one run is told; with more it is told that anything may have changed.
const PATHS_MAX: usize = 10_000;
const PATHS_BYTES_MAX: usize = 1 << 20;
/// A tree that is never quiet for so long gets its run all the same.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// What a hook has to be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Gathered {
    paths: BTreeSet<Vec<u8>>,
    bytes: usize,
    all: bool,
    position: Option<Position>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Gathered {
    fn add(&mut self, path: Vec<u8>) {
        if self.all {
            return;
        }
        let bytes = path.len() + 1;
        if self.paths.insert(path) {
            self.bytes += bytes;
        }
        if self.paths.len() > PATHS_MAX || self.bytes > PATHS_BYTES_MAX {
            self.everything();
        }
    }

    fn everything(&mut self) {
        self.all = true;
        self.paths.clear();
        self.bytes = 0;
    }

    fn touched(&mut self, position: Option<Position>) {
        let now = Instant::now();
        self.position = position.or(self.position);
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    /// How long to wait before the run; `None`: there is nothing to tell.
    fn due_in(&self, quiet: Duration, now: Instant) -> Option<Duration> {
        let (first, last) = (self.first?, self.last?);
        let at = (last + quiet).min(first + quiet.max(QUIET_MAX));
        Some(at.saturating_duration_since(now))
    }

    fn input(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes);
        for path in &self.paths {
            out.extend_from_slice(path);
            out.push(0);
        }
        out
    }
}

#[derive(Debug)]
struct Running {
    hook: Hook,
    filter: Filter,
    gathered: Mutex<Gathered>,
    woken: Condvar,
    stop: AtomicBool,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        lock(&self.gathered)
    }

    fn wants(&self, path: &[u8]) -> bool {
        // Nobody says whether it is a directory, or was one.
        self.filter.is_empty()
            || self.filter.ignored(path, false)
            || self.filter.ignored(path, true)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The next that is due; `None`: it ends.
    fn next(&self) -> Option<Gathered> {
        let mut gathered = self.lock();
        loop {
            if self.stopped() {
                return None;
            }
            let wait = gathered.due_in(self.hook.quiet, Instant::now());
            if wait.is_some_and(|wait| wait.is_zero()) {
                return Some(std::mem::take(&mut gathered));
            }
            let wait = wait.unwrap_or(Duration::from_secs(3600));
            let woken = self.woken.wait_timeout(gathered, wait);
            gathered = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A line for the log.
type Say = Arc<dyn Fn(String) + Send + Sync>;

/// All hooks of a tree.
pub struct Hooks {
    tree: String,
    dst: OsString,
    say: Say,
    running: Mutex<Vec<Arc<Running>>>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks")
            .field("tree", &self.tree)
            .finish_non_exhaustive()
    }
}

impl Hooks {
    pub fn new(tree: &Tree, say: Say) -> Hooks {
        Hooks {
            tree: tree.name.clone(),
            dst: tree.dst.clone().into_os_string(),
            say,
            running: Mutex::default(),
        }
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<Running>>> {
        lock(&self.running)
    }

    /// From now on these. One that stays keeps what it has gathered.
    pub fn set(&self, hooks: &[Hook]) {
        let mut running = self.running();
        let mut before = std::mem::take(&mut *running);
        for hook in hooks {
            let same = before.iter().position(|old| old.hook == *hook);
            if let Some(old) = same {
                running.push(before.remove(old));
                continue;
            }
            let new = Arc::new(Running {
                hook: hook.clone(),
                filter: Filter::new(&hook.patterns).unwrap_or_else(|_| Filter::none()),
                gathered: Mutex::default(),
                woken: Condvar::new(),
                stop: AtomicBool::new(false),
            });
            let one = new.clone();
            let (tree, dst, say) = (self.tree.clone(), self.dst.clone(), self.say.clone());
            let started = std::thread::Builder::new()
                .name("hook".into())
                .spawn(move || {
                    while let Some(gathered) = one.next() {
                        let env = environment(&tree, &dst, &gathered);
                        let stopped = || one.stopped();
                        let run = command::run(&one.hook.run, &env, &gathered.input(), &stopped);
                        if let Err(why) = run {
                            let command = mirror_core::escape(one.hook.run.command.as_bytes());
                            say(format!("hook failed: {command}: {why}"));
                        }
                    }
                });
            match started {
                Ok(_) => running.push(new),
                Err(e) => (self.say)(format!("cannot start a hook: {e}")),
            }
        }
        stop(&before);
    }

    /// Ends them, and the commands that run.
    pub fn stop(&self) {
        stop(&self.running());
    }
}

fn stop(running: &[Arc<Running>]) {
    for one in running {
        let gathered = one.lock();
        one.stop.store(true, Ordering::Release);
        drop(gathered);
        one.woken.notify_all();
    }
}

fn environment(tree: &str, dst: &OsString, gathered: &Gathered) -> Vec<(&'static str, OsString)> {
    let position = gathered
        .position
        .map_or(String::new(), |position| position.to_string());
    vec![
        ("FS_MIRROR_TREE", tree.into()),
        ("FS_MIRROR_DST", dst.clone()),
        ("FS_MIRROR_POSITION", position.into()),
        (
            "FS_MIRROR_ALL_CHANGED",
            if gathered.all { "1" } else { "0" }.into(),
        ),
    ]
}

impl Told for Hooks {
    fn applied(&self, position: Option<Position>, paths: &mut dyn Iterator<Item = Vec<u8>>) {
        let running = self.running();
        if running.is_empty() {
            return;
        }
        // A run takes paths and position together.
        let mut gathered: Vec<_> = running
            .iter()
            .map(|hook| (hook, hook.lock(), false))
            .collect();
        for path in paths {
            for (hook, gathered, touched) in &mut gathered {
                if hook.wants(&path) {
                    gathered.add(path.clone());
                    *touched = true;
                }
            }
        }
        for (hook, mut gathered, touched) in gathered {
            if touched {
                gathered.touched(position);
                hook.woken.notify_all();
            }
        }
    }

    fn all_changed(&self, position: Option<Position>) {
        for hook in self.running().iter() {
            let mut gathered = hook.lock();
            gathered.everything();
            gathered.touched(position);
            drop(gathered);
            hook.woken.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::service::backup::config::Run;

    #[test]
    fn a_run_waits_for_quiet_but_not_for_ever() {
        let quiet = Duration::from_secs(2);
        let now = Instant::now();
        let mut gathered = Gathered::default();
        assert_eq!(gathered.due_in(quiet, now), None);
        gathered.first = Some(now);
        gathered.last = Some(now + Duration::from_secs(1));
        assert_eq!(gathered.due_in(quiet, now), Some(Duration::from_secs(3)));
        gathered.last = Some(now + Duration::from_secs(100));
        assert_eq!(gathered.due_in(quiet, now), Some(QUIET_MAX));
        assert_eq!(
            gathered.due_in(quiet, now + QUIET_MAX),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn too_many_paths_are_anything() {
        let mut gathered = Gathered::default();
        for path in ["b", "a", "b"] {
            gathered.add(path.into());
        }
        assert_eq!((gathered.input(), gathered.bytes), (b"a\0b\0".to_vec(), 4));
        for n in 0..PATHS_MAX {
            gathered.add(n.to_string().into());
        }
        assert!(gathered.all && gathered.input().is_empty());
        gathered.add(b"c".to_vec());
        assert!(gathered.input().is_empty());
        let mut gathered = Gathered::default();
        for n in 0..PATHS_BYTES_MAX / 4000 + 1 {
            gathered.add(format!("{n:04000}").into());
        }
        assert!(gathered.all);
    }

    #[test]
    fn what_changed_is_told_once_to_whom_it_concerns() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let hook = |patterns: &[&str], command: String| Hook {
            run: Run {
                command,
                user: None,
                timeout: Duration::from_secs(60),
            },
            patterns: patterns.iter().map(|p| p.to_string()).collect(),
            quiet: Duration::from_millis(50),
        };
        let tree = Tree::new("blog", "/s".into(), dir.path().into());
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = said.clone();
        let hooks = Hooks::new(
            &tree,
            Arc::new(move |line| lines.lock().unwrap().push(line)),
        );
        let tell = format!(
            "(echo $FS_MIRROR_TREE $FS_MIRROR_POSITION $FS_MIRROR_ALL_CHANGED; tr '\\0' ' ') > {0}.new; mv {0}.new {0}",
            out.display()
        );
        hooks.set(&[hook(&["conf/", "*.php"], tell), hook(&[], "exit 9".into())]);
        let at = |sequence| Some(Position { epoch: 1, sequence });
        let mut paths = ["conf/a", "x.txt", "a/b.php"]
            .iter()
            .map(|p| p.as_bytes().to_vec());
        hooks.applied(at(7), &mut paths);
        hooks.applied(at(8), &mut std::iter::once(b"conf/a".to_vec()));
        let wait = |want: &str| {
            let until = Instant::now() + Duration::from_secs(60);
            while std::fs::read_to_string(&out).unwrap_or_default() != want {
                assert!(
                    Instant::now() < until,
                    "{want}: {:?}",
                    std::fs::read_to_string(&out)
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        wait("blog 1.8 0\na/b.php conf/a ");
        hooks.all_changed(at(9));
        wait("blog 1.9 1\n");
        let until = Instant::now() + Duration::from_secs(60);
        while said.lock().unwrap().is_empty() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(said.lock().unwrap()[0], "hook failed: exit 9: exit code 9");
        hooks.stop();
    }
}
