//! Child processes that are to be there: started, started again with growing waits when they end, ended within a limit,
//! and left alone when a new configuration says the same of them.
//!
//! One thread owns all of it and calls [`Children::wait`] and [`Children::tick`] in turn; it must live as long as the
//! children, because the kernel ends them with the thread that started them. What they print comes back as lines.
//! This module never knows what a child does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, PipeReader, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::pulse::{self, Pulse};
use crate::engine::back_off::BackOff;
use crate::sys::polite::{self, Polite};

/// Started in one tick: hundreds of trees do not all begin at once.
const STARTS_MAX: usize = 8;
/// Of a child that printed it.
const LINE_BYTES_MAX: usize = 4096;
/// Of one child, in one second; more are counted and left out.
const LINES_MAX: u32 = 50;
/// Read from one child in one tick.
const READ_BYTES_MAX: usize = 64 << 10;
/// Who ran for so long did not end because of how it was started: the next wait is a short one.
const STEADY: Duration = Duration::from_secs(60);
const WAIT_MS_MIN: u64 = 500;
const WAIT_MS_MAX: u64 = 60_000;

/// This very program, also when its file was replaced meanwhile.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// Called before each start; an error is told, and it is tried again later.
pub type Prepare = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A child that is to be there.
#[derive(Clone)]
pub struct Spec {
    /// What it is called in lines and views; one child a name.
    pub name: String,
    /// Mostly [`THIS_PROGRAM`].
    pub program: PathBuf,
    /// What `ps` shows as its name.
    pub shown_as: String,
    pub args: Vec<OsString>,
    /// Beside what we have ourselves.
    pub env: Vec<(OsString, OsString)>,
    /// Whatever else must be the same for a running child to be left alone.
    pub settings: String,
    pub polite: Polite,
    pub prepare: Option<Prepare>,
    /// Why it is not to be started yet. One that runs goes on.
    pub waits: Option<String>,
    /// It beats ([`pulse`]): one that stops to for so long is killed and started again.
    pub patience: Option<Duration>,
}

impl Spec {
    pub fn new(name: impl Into<String>, shown_as: impl Into<String>) -> Spec {
        Spec {
            name: name.into(),
            program: THIS_PROGRAM.into(),
            shown_as: shown_as.into(),
            args: Vec::new(),
            env: Vec::new(),
            settings: String::new(),
            polite: Polite::default(),
            prepare: None,
            waits: None,
            patience: None,
        }
    }

    fn is_same(&self, other: &Spec) -> bool {
        self.program == other.program
            && self.shown_as == other.shown_as
            && self.args == other.args
            && self.env == other.env
            && self.settings == other.settings
            && self.polite == other.polite
    }
}

/// What happened; `Display` is the line for the log, without the child's name.
#[derive(Debug, Clone, PartialEq)]
pub enum Happened {
    Started {
        pid: u32,
    },
    /// By itself: it is started again.
    Ended {
        how: String,
        again_in: Duration,
    },
    NotStarted {
        why: String,
        again_in: Duration,
    },
    /// It beat no more for so long, and is killed.
    Hangs {
        silent: Duration,
    },
    /// As it was told to. `again`: its settings changed, and it starts at once.
    Stopped {
        again: bool,
        killed: bool,
    },
    /// It printed this.
    Said(String),
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Happened::Started { pid } => write!(f, "started (process {pid})"),
            Happened::Ended { how, again_in } => {
                write!(f, "ended ({how}); again in {:.1} s", again_in.as_secs_f64())
            }
            Happened::NotStarted { why, again_in } => {
                let seconds = again_in.as_secs_f64();
                write!(f, "cannot start: {why}; again in {seconds:.1} s")
            }
            Happened::Hangs { silent } => write!(
                f,
                "hangs (its main loop did nothing for {:.0} s): it is killed",
                silent.as_secs_f64()
            ),
            Happened::Stopped { again, killed } => {
                f.write_str(if *killed {
                    "did not end when told to, and was killed"
                } else {
                    "ended"
                })?;
                f.write_str(if *again { "; starts again" } else { "" })
            }
            Happened::Said(line) => f.write_str(line),
        }
    }
}

/// How a child is, for a status.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub pid: Option<u32>,
    /// How often it was started.
    pub starts: u64,
    /// Why it does not run, if it does not.
    pub waits: Option<String>,
}

enum Is {
    Waiting {
        until: Instant,
        why: String,
    },
    Running {
        running: Running,
        since: Instant,
    },
    Stopping {
        running: Running,
        kill_at: Instant,
        killed: bool,
    },
}

struct Running {
    child: Child,
    printed: Printed,
    pulse: Option<Pulse>,
}

struct Kept {
    spec: Spec,
    is: Is,
    /// Nobody wants it any more: it goes when it has ended.
    gone: bool,
    back_off: BackOff,
    starts: u64,
}

/// See the module.
pub struct Children {
    kept: BTreeMap<String, Kept>,
    /// From SIGTERM to SIGKILL.
    stop_within: Duration,
}

impl Children {
    /// `stop_within`: how long a child may take from SIGTERM until it is killed.
    pub fn new(stop_within: Duration) -> Children {
        Children {
            kept: BTreeMap::new(),
            stop_within,
        }
    }

    /// From now on these are to be there, and no others. Who is there with the same settings is not touched.
    pub fn want(&mut self, specs: Vec<Spec>) {
        let now = Instant::now();
        for kept in self.kept.values_mut() {
            kept.gone = true;
        }
        for spec in specs {
            match self.kept.get_mut(&spec.name) {
                Some(kept) => {
                    kept.gone = false;
                    let same = kept.spec.is_same(&spec);
                    let begins = kept.spec.waits.is_some() && spec.waits.is_none();
                    kept.spec = spec;
                    match &mut kept.is {
                        Is::Waiting { until, .. } if !same || begins => {
                            *until = now;
                            kept.back_off.reset();
                        }
                        Is::Running { .. } if !same => {
                            kept.back_off.reset();
                            kept.stop(now + self.stop_within);
                        }
                        Is::Stopping { .. } if !same => kept.back_off.reset(),
                        _ => {}
                    }
                }
                None => {
                    let kept = Kept {
                        is: Is::Waiting {
                            until: now,
                            why: "starting".into(),
                        },
                        spec: spec.clone(),
                        gone: false,
                        back_off: BackOff::new(WAIT_MS_MIN, WAIT_MS_MAX),
                        starts: 0,
                    };
                    self.kept.insert(spec.name, kept);
                }
            }
        }
        for kept in self.kept.values_mut().filter(|kept| kept.gone) {
            kept.stop(now + self.stop_within);
        }
        self.kept
            .retain(|_, kept| !(kept.gone && matches!(kept.is, Is::Waiting { .. })));
    }

    /// Ends a child as if its settings had changed: it starts again at once.
    pub fn restart(&mut self, name: &str) {
        let kill_at = Instant::now() + self.stop_within;
        if let Some(kept) = self.kept.get_mut(name) {
            kept.stop(kill_at);
        }
    }

    pub fn view(&self, name: &str) -> Option<View> {
        let kept = self.kept.get(name)?;
        let (pid, waits) = match &kept.is {
            Is::Waiting { why, .. } => {
                let why = kept.spec.waits.as_ref().unwrap_or(why);
                (None, Some(why.clone()))
            }
            Is::Running { running, .. } => (Some(running.child.id()), None),
            Is::Stopping { running, .. } => {
                (Some(running.child.id()), Some("being ended".to_owned()))
            }
        };
        Some(View {
            pid,
            starts: kept.starts,
            waits,
        })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.kept.keys().map(String::as_str)
    }

    /// Sleeps until a child prints something or ends, one of `others` is readable, a start or a kill is due, or so long.
    pub fn wait(&self, others: &[BorrowedFd<'_>], at_most: Duration) {
        let now = Instant::now();
        let mut at_most = at_most;
        let mut fds: Vec<PollFd<'_>> = others
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        for kept in self.kept.values() {
            let (due, running) = match &kept.is {
                Is::Waiting { until, .. } => (kept.spec.waits.is_none().then_some(*until), None),
                Is::Running { running, .. } => (None, Some(running)),
                Is::Stopping {
                    running, kill_at, ..
                } => (Some(*kill_at), Some(running)),
            };
            if let Some(due) = due {
                at_most = at_most.min(due.saturating_duration_since(now));
            }
            match running.map(|running| &running.printed.pipe) {
                Some(Some(pipe)) => fds.push(PollFd::new(pipe, PollFlags::IN)),
                // It closed what it prints to: only looking tells when it ends.
                Some(None) => at_most = at_most.min(Duration::from_millis(100)),
                None => {}
            }
        }
        let timeout = Timespec {
            tv_sec: at_most.as_secs().min(3600) as i64,
            tv_nsec: i64::from(at_most.subsec_nanos()),
        };
        let _ = poll(&mut fds, Some(&timeout));
    }

    /// Does what is due, and says what happened, by name.
    pub fn tick(&mut self) -> Vec<(String, Happened)> {
        let now = Instant::now();
        let mut starts = STARTS_MAX;
        let mut all = Vec::new();
        for (name, kept) in &mut self.kept {
            let happened = kept.tick(now, &mut starts);
            all.extend(happened.into_iter().map(|h| (name.clone(), h)));
        }
        self.kept
            .retain(|_, kept| !(kept.gone && matches!(kept.is, Is::Waiting { .. })));
        all
    }

    /// Ends all of them, at the same time; who has not ended by then is killed.
    pub fn stop_all(&mut self, each: &mut dyn FnMut(&str, &Happened)) {
        self.want(Vec::new());
        while !self.kept.is_empty() {
            for (name, happened) in self.tick() {
                each(&name, &happened);
            }
            if !self.kept.is_empty() {
                self.wait(&[], Duration::from_millis(100));
            }
        }
    }
}

impl Drop for Children {
    /// Nothing is left running, whatever became of the supervisor.
    fn drop(&mut self) {
        for kept in self.kept.values_mut() {
            if let Is::Running { running, .. } | Is::Stopping { running, .. } = &mut kept.is {
                let _ = running.child.kill();
                let _ = running.child.wait();
            }
        }
    }
}

impl Kept {
    fn stop(&mut self, kill_at: Instant) {
        let why = String::new();
        let waiting = Is::Waiting {
            until: Instant::now(),
            why,
        };
        self.is = match std::mem::replace(&mut self.is, waiting) {
            Is::Running { running, .. } => {
                running.signal(Signal::TERM);
                Is::Stopping {
                    running,
                    kill_at,
                    killed: false,
                }
            }
            other => other,
        };
    }

    fn tick(&mut self, now: Instant, starts: &mut usize) -> Vec<Happened> {
        let mut happened = Vec::new();
        match &mut self.is {
            Is::Waiting { .. } if self.spec.waits.is_some() => {}
            Is::Waiting { until, .. } => {
                if now >= *until && *starts > 0 && !self.gone {
                    *starts -= 1;
                    happened.push(self.start(now));
                }
            }
            Is::Running { running, since } => {
                running.printed.lines(now, &mut happened);
                if let Some(how) = running.ended(&mut happened) {
                    if since.elapsed() >= STEADY {
                        self.back_off.reset();
                    }
                    let again_in = self.back_off.next_wait();
                    self.is = Is::Waiting {
                        until: now + again_in,
                        why: how.clone(),
                    };
                    happened.push(Happened::Ended { how, again_in });
                } else if let Some(silent) = self.spec.patience
                    && running.hangs(now)
                {
                    happened.push(Happened::Hangs { silent });
                    // A stopped process hears nothing else. Its end is seen as any other.
                    running.signal(Signal::KILL);
                }
            }
            Is::Stopping {
                running,
                kill_at,
                killed,
            } => {
                running.printed.lines(now, &mut happened);
                if running.ended(&mut happened).is_some() {
                    happened.push(Happened::Stopped {
                        again: !self.gone,
                        killed: *killed,
                    });
                    self.is = Is::Waiting {
                        until: now,
                        why: "starts again".into(),
                    };
                } else if !*killed && now >= *kill_at {
                    *killed = true;
                    // Seen at the next tick; a process that can't even be killed is looked at every second.
                    *kill_at = now + Duration::from_secs(1);
                    let _ = running.child.kill();
                } else if *killed && now >= *kill_at {
                    *kill_at = now + Duration::from_secs(1);
                }
            }
        }
        happened
    }

    fn start(&mut self, now: Instant) -> Happened {
        let started = match &self.spec.prepare {
            Some(prepare) => prepare(),
            None => Ok(()),
        };
        let started = started.and_then(|()| {
            start(&self.spec)
                .map_err(|e| format!("{}: {e}", crate::engine::session::show(&self.spec.program)))
        });
        match started {
            Ok(running) => {
                let pid = running.child.id();
                self.starts += 1;
                self.is = Is::Running {
                    running,
                    since: now,
                };
                Happened::Started { pid }
            }
            Err(why) => {
                let again_in = self.back_off.next_wait();
                self.is = Is::Waiting {
                    until: now + again_in,
                    why: why.clone(),
                };
                Happened::NotStarted { why, again_in }
            }
        }
    }
}

fn start(spec: &Spec) -> io::Result<Running> {
    let (from, to) = io::pipe()?;
    rustix::io::ioctl_fionbio(&from, true)?;
    let (pulse, stdin) = match spec.patience.map(Pulse::new).transpose()? {
        Some((pulse, theirs)) => (Some(pulse), Stdio::from(theirs)),
        None => (None, Stdio::null()),
    };
    let mut command = Command::new(&spec.program);
    command
        .arg0(&spec.shown_as)
        .args(&spec.args)
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        // It is none of its business that we speak with systemd.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .current_dir("/")
        .env(pulse::ENV, std::process::id().to_string())
        .stdin(stdin)
        .stdout(to.try_clone()?)
        .stderr(to);
    polite::on_start(&mut command, spec.polite);
    Ok(Running {
        child: command.spawn()?,
        printed: Printed {
            pipe: Some(from),
            line: Vec::new(),
            lines: 0,
            left_out: 0,
            second: None,
        },
        pulse,
    })
}

impl Running {
    fn hangs(&mut self, now: Instant) -> bool {
        let pid = self.child.id();
        let pulse = self.pulse.as_mut();
        pulse.is_some_and(|pulse| pulse.hangs(pid, now))
    }

    fn signal(&self, signal: Signal) {
        // Not waited for yet, so the number is still its own.
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// How it ended, if it did, after the last it said.
    fn ended(&mut self, happened: &mut Vec<Happened>) -> Option<String> {
        let status = match self.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => Ok(status),
            Err(e) => Err(e),
        };
        self.printed.rest(happened);
        Some(match status {
            Ok(status) => how(status),
            Err(e) => format!("cannot wait for it: {e}"),
        })
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "by itself".into(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".into(),
    }
}

/// What a child prints, cut into lines, so many a second.
struct Printed {
    /// `None`: it closed it.
    pipe: Option<PipeReader>,
    line: Vec<u8>,
    lines: u32,
    left_out: u64,
    second: Option<Instant>,
}

impl Printed {
    fn lines(&mut self, now: Instant, out: &mut Vec<Happened>) {
        if self.left_out > 0
            && self
                .second
                .is_some_and(|at| now.duration_since(at) >= Duration::from_secs(1))
        {
            let text = format!("({} lines more were left out)", self.left_out);
            out.push(Happened::Said(text));
            self.left_out = 0;
        }
        let mut buffer = [0u8; 4096];
        let mut read = 0;
        while read < READ_BYTES_MAX {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    read += n;
                    for &byte in buffer.get(..n).unwrap_or_default() {
                        if byte == b'\n' {
                            self.end_line(now, out);
                        } else if self.line.len() < LINE_BYTES_MAX {
                            self.line.push(byte);
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    /// It has ended: what is still in the pipe, and a line without an end.
    fn rest(&mut self, out: &mut Vec<Happened>) {
        let now = Instant::now();
        self.lines(now, out);
        if !self.line.is_empty() {
            self.end_line(now, out);
        }
        if self.left_out > 0 {
            let text = format!("({} lines more were left out)", self.left_out);
            out.push(Happened::Said(text));
            self.left_out = 0;
        }
        self.pipe = None;
    }

    fn end_line(&mut self, now: Instant, out: &mut Vec<Happened>) {
        let line = std::mem::take(&mut self.line);
        let fresh = self
            .second
            .is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1));
        if fresh {
            self.second = Some(now);
            self.lines = 0;
        }
        self.lines += 1;
        if self.lines > LINES_MAX {
            self.left_out += 1;
            return;
        }
        let text: String = String::from_utf8_lossy(&line)
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        if !text.trim().is_empty() {
            out.push(Happened::Said(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(name: &str, script: &str) -> Spec {
        Spec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            ..Spec::new(name, "sh")
        }
    }

    /// Until `done` says so of all that happened so far.
    fn until(
        children: &mut Children,
        seen: &mut Vec<(String, Happened)>,
        done: impl Fn(&[(String, Happened)]) -> bool,
    ) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            seen.extend(children.tick());
            if done(seen) {
                return;
            }
            assert!(Instant::now() < end, "{seen:?}");
            children.wait(&[], Duration::from_millis(200));
        }
    }

    fn said(seen: &[(String, Happened)], name: &str, line: &str) -> bool {
        seen.iter()
            .any(|(n, h)| n == name && *h == Happened::Said(line.into()))
    }

    fn pid(children: &Children, name: &str) -> Option<u32> {
        children.view(name).and_then(|view| view.pid)
    }

    #[test]
    fn who_ends_is_started_again_later() {
        let mut children = Children::new(Duration::from_secs(30));
        let mut seen = Vec::new();
        children.want(vec![sh("a", "echo here; exit 7")]);
        until(&mut children, &mut seen, |seen| {
            seen.iter()
                .filter(|(_, h)| matches!(h, Happened::Started { .. }))
                .count()
                >= 2
        });
        assert!(said(&seen, "a", "here"), "{seen:?}");
        let ended = seen.iter().find_map(|(_, h)| match h {
            Happened::Ended { how, again_in } => Some((how.clone(), *again_in)),
            _ => None,
        });
        let (how, again_in) = ended.unwrap();
        assert_eq!(how, "exit code 7");
        assert!(again_in >= Duration::from_millis(375), "{again_in:?}");
    }

    #[test]
    fn what_did_not_change_is_not_touched() {
        let mut children = Children::new(Duration::from_secs(30));
        let mut seen = Vec::new();
        let stays = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
        children.want(vec![
            sh("same", stays),
            sh("other", stays),
            sh("gone", stays),
        ]);
        until(&mut children, &mut seen, |seen| {
            ["same", "other", "gone"]
                .iter()
                .all(|n| said(seen, n, "up"))
        });
        let before = pid(&children, "same");
        let other = pid(&children, "other");
        let changed = Spec {
            settings: "new".into(),
            ..sh("other", stays)
        };
        children.want(vec![sh("same", stays), changed]);
        seen.clear();
        until(&mut children, &mut seen, |seen| said(seen, "other", "up"));
        until(&mut children, &mut seen, |seen| {
            seen.iter()
                .any(|(n, h)| n == "gone" && matches!(h, Happened::Stopped { .. }))
        });
        assert_eq!(pid(&children, "same"), before);
        assert!(pid(&children, "other").is_some_and(|now| Some(now) != other));
        assert_eq!(children.names().collect::<Vec<_>>(), ["other", "same"]);
        let mut ends = 0;
        children.stop_all(&mut |_, h| ends += u32::from(matches!(h, Happened::Stopped { .. })));
        assert_eq!((ends, children.names().count()), (2, 0));
    }

    #[test]
    fn who_has_to_wait_begins_when_it_may() {
        let mut children = Children::new(Duration::from_secs(30));
        let mut seen = Vec::new();
        let script = "echo up; exec sleep 600";
        let waits = Spec {
            waits: Some("its mount is not there".into()),
            ..sh("late", script)
        };
        children.want(vec![waits.clone(), sh("other", script)]);
        until(&mut children, &mut seen, |seen| said(seen, "other", "up"));
        let view = children.view("late").unwrap();
        assert_eq!(
            (view.pid, view.waits.as_deref()),
            (None, Some("its mount is not there"))
        );
        // Nothing is due: nobody may be woken for it.
        let began = Instant::now();
        children.wait(&[], Duration::from_millis(50));
        assert!(began.elapsed() >= Duration::from_millis(40));
        children.want(vec![sh("late", script), sh("other", script)]);
        until(&mut children, &mut seen, |seen| said(seen, "late", "up"));
        // One that runs is left alone, whatever it would have to wait for now.
        let before = pid(&children, "late");
        children.want(vec![waits, sh("other", script)]);
        children.tick();
        assert!(before.is_some());
        assert_eq!(pid(&children, "late"), before);
    }

    #[test]
    fn who_does_not_listen_is_killed() {
        let mut children = Children::new(Duration::from_millis(100));
        let mut seen = Vec::new();
        children.want(vec![sh(
            "deaf",
            "trap '' TERM; echo up; while :; do sleep 0.05; done",
        )]);
        until(&mut children, &mut seen, |seen| said(seen, "deaf", "up"));
        let mut killed = false;
        children.stop_all(&mut |_, h| {
            killed |= matches!(h, Happened::Stopped { killed: true, .. });
        });
        assert!(killed);
    }

    #[test]
    fn who_beats_no_more_is_killed_and_started_again() {
        let mut children = Children::new(Duration::from_secs(30));
        let mut seen = Vec::new();
        let patience = Some(Duration::from_secs(3));
        let beats = "while :; do echo . >&0; sleep 0.05; done";
        let hangs = "echo up; for i in 1 2 3; do echo . >&0; done; kill -STOP $$";
        let of = |name: &str, script: &str| Spec {
            patience,
            ..sh(name, script)
        };
        children.want(vec![
            of("beats", beats),
            of("hangs", hangs),
            of("begins", "sleep 600"),
        ]);
        let twice = |seen: &[(String, Happened)]| {
            let up = Happened::Said("up".into());
            seen.iter().filter(|(_, h)| *h == up).count() >= 2
        };
        until(&mut children, &mut seen, twice);
        let hung: Vec<&str> = seen
            .iter()
            .filter(|(_, h)| matches!(h, Happened::Hangs { .. }))
            .map(|(name, _)| name.as_str())
            .collect();
        // On a busy machine the one that beats may be late; one that never did is not judged.
        assert!(
            hung.contains(&"hangs") && !hung.contains(&"begins"),
            "{seen:?}"
        );
        assert!(
            seen.iter()
                .any(|(_, h)| { matches!(h, Happened::Ended { how, .. } if how == "signal 9") })
        );
    }

    #[test]
    fn a_flood_is_cut_and_a_start_that_fails_is_told() {
        let mut children = Children::new(Duration::from_secs(30));
        let mut seen = Vec::new();
        let mut unready = sh("unready", "exit 0");
        unready.prepare = Some(Arc::new(|| Err("its disk is gone".into())));
        let flood =
            "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; printf '\\033[2J'; sleep 60";
        children.want(vec![sh("flood", flood), unready]);
        until(&mut children, &mut seen, |seen| {
            seen.iter().any(|(_, h)| h.to_string().contains("left out"))
        });
        let lines = seen.iter().filter(|(n, _)| n == "flood").count();
        assert!(lines < 1500, "{lines}");
        assert!(seen.iter().any(|(n, h)| {
            n == "unready"
                && h.to_string()
                    .starts_with("cannot start: its disk is gone; again in")
        }));
        let view = children.view("unready").unwrap();
        assert_eq!((view.pid, view.starts), (None, 0));
    }
}
